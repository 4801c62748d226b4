//! Carries out what [`crate::decide`] decides: one loop that owns the state.
//!
//! A watch is a listing followed by changes, and a lost change leads to a new listing. So every
//! round of the loop is the same, in the order of `State::step`: ask containerd for everything that
//! is due, take on files, and wait for the next event. The loop gives each event to the state and
//! carries out the actions that follow at once. Errands wait for containerd, so the loop runs them
//! one after the other. Slow work (reading bundles and importing them) runs in jobs outside the
//! loop and comes back as an event.
//!
//! Dropping any of this at any await loses nothing: all that matters is in the ledger, or in
//! containerd under a lease.

mod alarm;
mod answer;
mod crashes;
mod errands;
mod hands;
mod job;
mod journal;
mod ready;
mod require;
mod unpack;
mod work;

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tracing::{info, warn};

use self::alarm::Alarm;
use self::answer::{Asked, View};
use self::hands::{Hands, Live};
use crate::control::Question;
use crate::decide::line::shown;
use crate::decide::{Action, Errand, Event, Step, Turn};
use crate::images::watch::Watch;
use crate::metrics::Metrics;
use crate::outcome::Outcome;
use crate::place::Place;
use crate::settings::{Reloaded, Settings};
use crate::state::State;
use crate::state::crash::{self, Marker};
use crate::state::ledger::{self, Ledger, LockError, Saved, Store};
use crate::status::{self, Status};
use crate::sys;
use crate::systemd::Systemd;
use crate::verdict::{Health, Verdict};
use basics::backoff;

/// Time between two verdicts on the node: systemd's socket takes few messages at a time.
const VERDICT_PACE: Duration = Duration::from_secs(1);
/// Longest sleep of the loop when nothing is due.
const IDLE: Duration = Duration::from_secs(3600);
/// Longest time that a turn may wait for containerd and still count as alive. Each call has a
/// deadline of its own. A turn makes a handful of calls, and another for each record that it takes
/// a pin from.
const LONGEST_TURN: Duration = Duration::from_secs(600);
/// Time that a stop takes in addition to the grace: the daemon writes and syncs the ledger.
const FAREWELL: Duration = Duration::from_secs(10);

/// A request to the daemon from outside.
#[derive(Debug)]
pub enum Signal {
    /// Stop. The first request waits until the running jobs end or the grace is over. The second
    /// stops at once.
    Stop,
    /// The configuration was read again. Contains the changes, or the mistakes.
    Reload(Box<Result<Reloaded, String>>),
}

/// The reason why the daemon ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The daemon was told to stop.
    Stopped,
    /// The daemon waits for a containerd that is no longer this node's, or was not yet when it
    /// started.
    Misplaced,
}

/// The reason why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state folder is not usable, or another daemon uses it.
    #[error(transparent)]
    State(#[from] LockError),
    /// The images folder cannot be watched at all.
    #[error("cannot watch the images folder")]
    Watch(#[source] std::io::Error),
}

/// Runs until the daemon is told to stop, or has to start again with another containerd or folder.
///
/// # Errors
///
/// Returns an error if another daemon has the state folder, or if the images folder cannot be
/// watched at all. The daemon logs every later failure and waits for it to pass.
pub async fn run(
    settings: Settings,
    node: Place,
    mut signals: mpsc::UnboundedReceiver<Signal>,
) -> Result<Ended, StartError> {
    let mut daemon = Daemon::start(settings, node)?;
    let ended = std::panic::AssertUnwindSafe(daemon.live(&mut signals))
        .catch_unwind()
        .await;
    match ended {
        Ok(ended) => {
            daemon.hands.marker.clear();
            Ok(ended)
        }
        Err(panic) => {
            daemon.hands.marker.dies_of(&crash::panic_text(&*panic));
            std::panic::resume_unwind(panic)
        }
    }
}

struct Daemon {
    state: State,
    hands: Hands,
    /// Errands that were decided and have not run yet.
    errands: VecDeque<Errand>,
    /// Time of the last verdict on the node.
    judged: Instant,
    /// The last verdict in the log, and whether it was about containerd.
    told: Option<(Health, bool)>,
    systemd: Rc<Systemd>,
    asked: Asked,
    alarm: Alarm,
}

/// Returns a turn at the current time.
fn turn() -> Turn {
    Turn::new(Instant::now(), Timestamp::now(), backoff::chance())
}

/// Returns the folders of bundles that receipts stand for. With other settings than before, no
/// listing may search them.
fn folders_of_bundles(node: &Place, ledger: &Ledger) -> BTreeSet<PathBuf> {
    let entries = ledger.entries().into_iter();
    let stood_for = entries.filter_map(|entry| entry.stands_for.as_ref());
    let folders = stood_for.filter_map(|of| {
        let (folder, below) = node.locate(OsStr::new(&of.bundle))?;
        folder.join(below).parent().map(Path::to_owned)
    });
    folders.collect()
}

impl Daemon {
    fn start(settings: Settings, node: Place) -> Result<Daemon, StartError> {
        let (mut store, mut ledger, notices) = Store::open(&settings.state_dir)?;
        for notice in notices {
            warn!("{notice}");
        }
        let (mut marker, left) = Marker::open(&settings.state_dir);
        if crashes::inherit(&left, &mut ledger, &node.images_dir) {
            // Save before anything that could crash again, and before the marker is cleared.
            if let Saved::NotSaved(Some(notice)) = store.save(&ledger) {
                warn!("{notice}");
            }
        }
        marker.clear();
        let of_bundles = folders_of_bundles(&node, &ledger);
        let watch = Watch::start(&node.dirs()).map_err(StartError::Watch)?;
        let now = Instant::now();
        let asked = Asked::start(&settings);
        let home = node.is_home.then_some(node.distribution);
        let (images_dir, more_dirs) = (node.images_dir.clone(), node.later_dirs());
        let boot = ledger::boot_id();
        let mut hands = Hands::new(node, &settings, watch, store, marker, Metrics::new());
        hands.undo_removals(&of_bundles);
        Ok(Daemon {
            hands,
            state: State::new(settings, (images_dir, &more_dirs), home, ledger, boot, now),
            errands: VecDeque::new(),
            judged: now.checked_sub(VERDICT_PACE).unwrap_or(now),
            told: None,
            systemd: Rc::new(Systemd::from_environment()),
            asked,
            alarm: Alarm::new(),
        })
    }

    /// Runs the loop until the daemon ends, and then shuts down in order.
    async fn live(&mut self, signals: &mut Signals) -> Ended {
        let settings = Arc::clone(&self.state.settings);
        self.stamp(&settings).await;
        self.work(signals).await;
        if !self.state.is_draining {
            self.end_rows();
            self.hands.save(&self.state.ledger);
            return Ended::Misplaced;
        }
        self.drain(signals).await;
        self.hands.save(&self.state.ledger);
        self.asked.end(&self.snapshot(), &self.state);
        info!("stopped");
        Ended::Stopped
    }

    /// Runs the loop until the daemon is told to stop, or is misplaced.
    async fn work(&mut self, signals: &mut Signals) {
        self.list();
        self.systemd.ready();
        while !self.state.is_draining && !self.state.is_misplaced {
            let systemd = Rc::clone(&self.systemd);
            match attended(&systemd, signals, self.round()).await {
                Ok(until) => {
                    let wake = self.wake(signals, until).await;
                    self.on(wake).await;
                }
                Err(signals) => {
                    for signal in signals {
                        self.on_signal(signal).await;
                    }
                }
            }
        }
    }

    /// Runs one round: does everything that is due, as [`State::step`] decides, and reports to
    /// systemd and to clients. Returns when the next round is due if nothing happens before.
    async fn round(&mut self) -> Instant {
        let mut step = Step::Ask;
        let due = loop {
            let readings = self.hands.readings(step, &self.state.settings);
            let mut turn = turn();
            let next = self.state.step(step, readings, &mut turn);
            self.carry_out(turn);
            while let Some(errand) = self.errands.pop_front() {
                let (event, live) = self.attend(errand).await;
                if live.is_some() {
                    self.hands.containerd = live;
                }
                self.take(event);
            }
            match next {
                ControlFlow::Continue(next) => step = next,
                ControlFlow::Break(due) => break due,
            }
        };
        self.write_metrics_if_due();
        let now = Instant::now();
        let dues = [
            due,
            Some(self.tell_systemd()),
            self.tell_news(now),
            self.asked.metrics_due(),
        ];
        dues.into_iter().flatten().fold(now + IDLE, Instant::min)
    }

    /// Runs an errand, and answers status questions meanwhile. A comparison of thousands of images
    /// takes seconds, and the state changes only when it has ended.
    async fn attend(&mut self, errand: Errand) -> (Event, Option<Live>) {
        let Daemon {
            state, hands, asked, ..
        } = self;
        let view = View { state, hands };
        let ran = hands.run(errand, state);
        tokio::pin!(ran);
        loop {
            tokio::select! {
                biased;
                ran = &mut ran => return ran,
                question = asked.next_reading() => asked.reply(question, &view),
            }
        }
    }

    /// Lists the folders at once.
    fn list(&mut self) {
        self.state.relist = false;
        let listed = self.hands.list(&self.state);
        self.take(Event::Listed(listed));
    }

    /// Gives an event to the state, and carries out the actions that follow.
    fn take(&mut self, event: Event) {
        let mut turn = turn();
        self.state.on(event, &mut turn);
        self.carry_out(turn);
    }

    /// Carries out the actions of a turn, and of the turns that follow from them.
    fn carry_out(&mut self, turn: Turn) {
        let mut turns = VecDeque::from([turn]);
        while let Some(Turn { actions, errands, .. }) = turns.pop_front() {
            self.errands.extend(errands);
            for action in actions {
                for event in self.perform(action) {
                    let mut next = self::turn();
                    self.state.on(event, &mut next);
                    turns.push_back(next);
                }
            }
        }
        let lanes = &self.state.lanes;
        self.hands.work.retain(|name| lanes.get(name).is_some());
        self.hands.close();
        self.hands.marker.note(self.state.under_way());
    }

    /// Carries out one action. Returns the events that result.
    fn perform(&mut self, action: Action) -> Vec<Event> {
        let state = &self.state;
        match action {
            Action::Say(line) => journal::say(&line),
            Action::Save => {
                self.hands.save(&state.ledger);
                // Each import ends with this, and the daemon may have nothing else to do for days.
                if state.lanes.is_empty() {
                    sys::trim_memory();
                }
            }
            Action::List => {
                let listed = self.hands.list(state);
                return vec![Event::Listed(listed)];
            }
            Action::Watch(folders) => self.hands.watch.also(folders),
            Action::Look(files) => return self.hands.look(state, files),
            Action::Open(name, version) => return vec![self.hands.open(name, version)],
            Action::Start(start) => self.hands.start(state, start),
            Action::Remove(name, version) => return vec![self.hands.remove(name, &version)],
            Action::Import(name, leave) => self.hands.import(state, &name, leave),
            Action::Pull(name) => self.hands.work.pull(&name),
            Action::Abort(name) => self.hands.work.abort(&name),
            Action::Count(name) => self.hands.count(&name),
            Action::CountRestored => self.hands.metrics.count_restored(),
            Action::Report(name, is_told) => self.hands.work.report(&name, is_told),
            Action::Disconnect => self.hands.disconnect(),
            Action::Check => return self.hands.check(&state.settings).into_iter().collect(),
            Action::AbortCheck => self.hands.check.abort(),
            Action::Unpack(images) => {
                return self.hands.unpack(&state.settings, images).into_iter().collect();
            }
            Action::InterruptUnpacking => self.hands.unpacking.interrupt(),
            Action::CheckFiles if self.hands.has_lost_files(&state.ledger) => return vec![Event::FilesLost],
            Action::CheckFiles => {}
            Action::Adopt => self.hands.adopt(&state.settings),
        }
        Vec::new()
    }

    /// Tells systemd that the loop is alive, and the verdict on the node. Logs the verdict if it
    /// has changed. Returns when the next report is due. Each verdict takes time and a thousand
    /// bundles are a thousand turns of the loop, so verdicts are [`VERDICT_PACE`] apart.
    fn tell_systemd(&mut self) -> Instant {
        let now = Instant::now();
        let alive_due = self.systemd.alive().unwrap_or(now + IDLE);
        let due = self.judged + VERDICT_PACE;
        if due > now {
            return alive_due.min(due);
        }
        let status = self.snapshot();
        self.judged = now;
        let text = status_line(&status);
        if self.systemd.is_news(&text) {
            self.systemd.status(&text);
        }
        self.tell_verdict(&status.verdict);
        self.asked.note_health(status.verdict.health, now);
        self.asked.note_ready(&status, &self.state, now);
        alive_due
    }

    /// Logs the verdict on the node if it has changed. Work that comes and goes is not logged.
    fn tell_verdict(&mut self, verdict: &Verdict) {
        let short = verdict.in_short();
        let said = Some((verdict.health, verdict.is_without_containerd()));
        if verdict.health == Health::Working || said == self.told {
            return;
        }
        let outcome = Outcome::Verdict.as_str();
        match verdict.health.is_well() {
            true => info!(outcome, "the node is {short}"),
            false => warn!(outcome, "the node is {short} (`airgapd status` says why)"),
        }
        self.told = said;
    }

    /// Waits for the next event that wakes the loop. Safe to cancel.
    async fn wake(&mut self, signals: &mut Signals, until: Instant) -> Wake {
        let Hands {
            work,
            check,
            unpacking,
            watch,
            containerd,
            ..
        } = &mut self.hands;
        tokio::select! {
            biased;
            Some(signal) = signals.recv() => Wake::Signal(signal),
            (name, came) = work.next() => Wake::Event(Event::Job(name, Box::new(came))),
            () = watch.changed() => Wake::Event(Event::Hinted),
            checked = check.next() => Wake::Event(Event::Checked(checked)),
            progress = unpacking.next() => Wake::Event(Event::Unpacking(progress)),
            // Questions come before changes: an import makes thousands of changes, and a caller
            // should not wait for the last of them.
            question = self.asked.next() => Wake::Question(question),
            change = hands::next_event(containerd) => Wake::Event(change.map_or(Event::Ended, Event::Changed)),
            () = self.alarm.until(until) => Wake::Timer,
        }
    }

    async fn on(&mut self, wake: Wake) {
        match wake {
            Wake::Timer => {}
            Wake::Event(event) => self.take(event),
            Wake::Question(question) => self.answer(question),
            Wake::Signal(signal) => self.on_signal(signal).await,
        }
    }

    async fn on_signal(&mut self, signal: Signal) {
        match signal {
            Signal::Stop => self.state.is_draining = true,
            Signal::Reload(read) => self.reload(*read).await,
        }
    }

    /// Takes over a configuration that was read again. A configuration with mistakes changes
    /// nothing.
    async fn reload(&mut self, read: Result<Reloaded, String>) {
        self.systemd.reloading();
        match read {
            Ok(reloaded) => {
                self.stamp(&reloaded.settings).await;
                let fingerprint = self.hands.fingerprint(&reloaded.settings);
                self.take(Event::Reloaded(Box::new(reloaded), fingerprint));
            }
            Err(mistakes) => self.take(Event::Misread(mistakes)),
        }
        self.systemd.ready();
    }

    /// Looks at the files under `require`, for at most half a second. Equal files let a certain
    /// result outlive a restart and a reload.
    async fn stamp(&mut self, settings: &Settings) {
        if !settings.require.is_empty() {
            let stamp = self.hands.check.stamp(settings).await;
            self.take(Event::Stamped(stamp));
        }
    }

    /// Lets running jobs end, until the grace is over or a second stop comes.
    async fn drain(&mut self, signals: &mut Signals) {
        let grace = self.state.settings.grace;
        self.systemd.stopping(grace + FAREWELL);
        self.state.is_draining = true;
        if !self.state.lanes.is_empty() {
            let text = format!("stopping: waiting up to {grace:?} for the running imports");
            info!("{text}");
            self.systemd.status(&text);
        }
        self.state.lanes.drop_waiting();
        self.hands.unpacking.interrupt();
        let deadline = Instant::now() + grace;
        while !self.state.lanes.is_empty() {
            let until = self.systemd.alive().map_or(deadline, |due| due.min(deadline));
            match self.wake(signals, until).await {
                Wake::Signal(Signal::Stop) => break,
                Wake::Signal(Signal::Reload(_)) => {}
                wake => self.on(wake).await,
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        for job in self.state.lanes.all() {
            let bundle = shown(&job.name);
            info!(bundle, "import interrupted, continues at the next start");
        }
        self.end_rows();
    }

    /// Logs the counts of lines that were held back.
    fn end_rows(&mut self) {
        self.state.rows.end().iter().for_each(journal::say);
    }
}

/// Returns the verdict and the counts, for `systemctl status`.
fn status_line(status: &Status) -> String {
    let containerd = match &status.containerd.version {
        Some(version) => format!("; containerd {version}"),
        None => String::new(),
    };
    let importing = status
        .bundles
        .iter()
        .filter(|bundle| bundle.state == status::State::Importing);
    let importing: Vec<_> = importing.map(|bundle| bundle.waits_for.as_deref()).collect();
    let importing = match importing.as_slice() {
        [] => String::new(),
        [Some(held_back), ..] => format!(", {} importing ({held_back})", importing.len()),
        [None, ..] => format!(", {} importing", importing.len()),
    };
    let failed = status.bundles.iter();
    let failed = failed.filter(|bundle| bundle.state == status::State::Failed);
    let failed = match failed.count() {
        0 => String::new(),
        count => format!(", {count} failed"),
    };
    let (verdict, images) = (status.verdict.headline(), status.image_count);
    let bundles = basics::counted(status.bundles.len(), "bundle");
    format!("{verdict}; {images}, {bundles}{importing}{failed}{containerd}")
}

/// The requests to the daemon, in the order in which they come.
type Signals = mpsc::UnboundedReceiver<Signal>;

/// Runs a round of the loop to its end. Meanwhile systemd hears that the loop is alive, for at most
/// [`LONGEST_TURN`]. A stop does not wait for a containerd that does not answer.
///
/// Returns when the next round is due.
///
/// # Errors
///
/// Returns the signals that came during the round, in order, if there are any. A stop ends the
/// round, which is dropped.
async fn attended(
    systemd: &Systemd,
    signals: &mut Signals,
    round: impl Future<Output = Instant>,
) -> Result<Instant, Vec<Signal>> {
    tokio::pin!(round);
    let given_up = Instant::now() + LONGEST_TURN;
    let mut received = Vec::new();
    loop {
        let now = Instant::now();
        let alive_due = (now < given_up).then(|| systemd.alive()).flatten();
        tokio::select! {
            biased;
            Some(signal) = signals.recv() => {
                let is_stop = matches!(signal, Signal::Stop);
                received.push(signal);
                if is_stop {
                    return Err(received);
                }
            }
            until = &mut round => match received.is_empty() {
                true => return Ok(until),
                false => return Err(received),
            },
            () = sleep_until(alive_due.unwrap_or(given_up + IDLE)) => {}
        }
    }
}

/// Something that wakes the loop.
enum Wake {
    /// The next round is due.
    Timer,
    Event(Event),
    /// A client of the control socket has a question.
    Question(Question),
    Signal(Signal),
}

/// Sleeps until this time. Returns at once if the time is past, without waiting for a tick of the
/// clock.
async fn sleep_until(until: Instant) {
    if until > Instant::now() {
        tokio::time::sleep_until(until.into()).await;
    }
}
