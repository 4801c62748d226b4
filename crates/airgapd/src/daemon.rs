//! The daemon: one loop that owns the work list.
//!
//! A watch is a listing followed by changes, and a lost change is a new listing. So every turn of the loop is the same:
//! list the folder if something hints at a change, connect to containerd if there is none, compare what the ledger
//! knows with what containerd has if that is due, and take on a file. What takes long (reading bundles and importing
//! them) happens in jobs beside the loop: the loop gives orders, a job comes back with a value, and only the loop
//! writes roster and ledger. Dropping any of it at any await loses nothing: what matters is in containerd under a lease
//! and in the ledger.

mod answering;
mod comparing;
mod crashes;
mod disk;
mod following;
mod job;
mod jobs;
mod leaving;
mod link;
mod listing;
mod reloading;
mod requiring;
mod results;
mod taking;
mod telling;
mod unpacking;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bundle::Identity;
use containerd::{ImageChange, ImageEvents};
use futures_util::FutureExt as _;
use import::{Pace, Policy};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use self::answering::Asked;
use self::following::Following;
use self::jobs::{Came, Jobs};
use self::link::Link;
pub(crate) use self::reloading::Read as ReadConfiguration;
use self::requiring::Requiring;
use self::telling::Rows;
use self::unpacking::Unpacking;
use crate::config::Settings;
use crate::control::Question;
use crate::crash::{self, Marker};
use crate::healing::Healing;
use crate::ledger::{Ledger, Saved, Store};
use crate::metrics::Metrics;
use crate::roster::{Phase, Roster};
use crate::runtime::Runtime;
use crate::systemd::Systemd;
use crate::watch::Watch;

/// Events of containerd come in bursts; the comparison they ask for waits this long for the rest.
const BURST: Duration = Duration::from_millis(200);
/// How many times as long as a comparison took the loop does other things before changes of records are a reason for the
/// next one. An import makes thousands of changes, and beside thousands of records a comparison takes seconds.
const REST: u32 = 4;
/// How often systemd hears how it goes: its socket takes few messages at a time.
const STATUS_PACE: Duration = Duration::from_secs(1);
/// How long the loop sleeps at most when nothing is due.
const IDLE: Duration = Duration::from_secs(3600);
/// How long a turn may wait for containerd and still count as alive. Each call has a deadline of its own, and a turn makes a
/// handful of them and one for each record that it takes a pin from.
const LONGEST_TURN: Duration = Duration::from_secs(600);
/// What ending takes beside the grace: the ledger is written and synced.
const FAREWELL: Duration = Duration::from_secs(10);

/// What the daemon is told from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// End: the first time when what runs is done or the grace is over, the second time at once.
    Stop,
    /// Read the configuration again.
    Reload,
}

/// Why the daemon came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was told to.
    Stopped,
    /// It waits for a containerd that is not this node's any more, or not yet was when it began.
    Misplaced,
}

/// Runs until it is told to stop, or finds out that it has to be begun anew elsewhere.
///
/// # Errors
///
/// What keeps the daemon from starting: another daemon has the state folder, the folder cannot be watched at all.
/// Everything that comes later is logged and waited out.
pub(crate) async fn run(
    settings: Settings,
    node: crate::node::Runtime,
    mut signals: mpsc::UnboundedReceiver<Signal>,
    configuration: reloading::Read,
) -> anyhow::Result<Ended> {
    let mut daemon = Daemon::start(settings, node, configuration)?;
    let ended = std::panic::AssertUnwindSafe(daemon.live(&mut signals))
        .catch_unwind()
        .await;
    match ended {
        Ok(ended) => {
            daemon.marker.clear();
            Ok(ended)
        }
        Err(panic) => {
            daemon.marker.dies_of(&crash::panic_text(&*panic));
            std::panic::resume_unwind(panic)
        }
    }
}

struct Daemon {
    settings: Arc<Settings>,
    configuration: reloading::Read,
    /// What was found on the node when this began.
    node: crate::node::Runtime,
    images_dir: PathBuf,
    socket: PathBuf,
    watch: Watch,
    store: Store,
    /// The files under way, for the daemon after this one.
    marker: Marker,
    ledger: Ledger,
    roster: Roster,
    jobs: Jobs,
    /// How fast jobs send, all of them together.
    pace: Arc<Pace>,
    /// Why nothing can be imported from the folder at the moment, when that is so; said once for each reason.
    trouble: Option<String>,
    /// Why bundles that are not in the folder are not taken for gone, when that is so.
    vanished: Option<String>,
    /// Which folder this is; once it was there, another one in its place is not created by us.
    place: Option<(u64, u64)>,
    /// What was said about the folder's permissions.
    warned: Option<String>,
    /// What is told by name, and what only counted.
    rows: Rows,
    /// How the folder of trusted digests looked when the bundles were last held against it.
    trusted: Option<Vec<(OsString, Identity)>>,
    relist: bool,
    /// The ledger has news that can wait until there is nothing else to do.
    unsaved: bool,
    /// When systemd was told last how it goes.
    status_said: Instant,
    connection: Connection,
    /// How it goes with the connection.
    link: Link,
    systemd: Rc<Systemd>,
    healing: Healing,
    following: Following,
    asked: Asked,
    requiring: Requiring,
    unpacking: Unpacking,
    metrics: Metrics,
    /// containerd's disk.
    disk: disk::Watched,
    /// Records that others moved, and where to, as far as it was said.
    moved: HashSet<(String, String)>,
    /// The same by bundle, as of the last comparison.
    elsewhere: HashMap<OsString, BTreeSet<String>>,
    /// Bundles that were imported with other images than before, until a comparison has judged their labels.
    reworded: HashSet<OsString>,
    /// Bundles whose jobs were dropped: their leases are still there, for the next job.
    abandoned: HashSet<OsString>,
    /// A stop has begun: nothing new is taken on.
    is_draining: bool,
    /// What is found on the node now is something else.
    is_misplaced: bool,
}

enum Connection {
    /// Nothing was heard of it yet, or it went away; tried again then.
    Down {
        next: Instant,
    },
    Up(Box<Up>),
}

struct Up {
    runtime: Runtime,
    events: ImageEvents,
    policy: Policy,
    /// When the ledger is to be compared with containerd.
    compare: Instant,
    /// All records with pins of ours were looked through, and judged, since the connection was made and the configuration
    /// read.
    ours_listed: bool,
    /// Until then, changes of records are no reason to compare: the last comparison took long.
    rest: Instant,
    /// Leases of bundles that are done or gone are given back after the first comparison.
    leases_swept: bool,
}

impl Daemon {
    fn start(
        settings: Settings,
        node: crate::node::Runtime,
        configuration: reloading::Read,
    ) -> anyhow::Result<Daemon> {
        let (mut store, mut ledger, notices) = Store::open(&settings.state_dir)?;
        for notice in notices {
            warn!("{notice}");
        }
        let (mut marker, left) = Marker::open(&settings.state_dir);
        if crashes::inherit(&left, &mut ledger, &node.images_dir) {
            // Before anything that could crash again, and before the marker forgets it.
            if let Saved::NotSaved(Some(notice)) = store.save(&ledger) {
                warn!("{notice}");
            }
        }
        marker.clear();
        let watch = Watch::start(&node.images_dir).context("cannot watch the images folder")?;
        let now = Instant::now();
        Ok(Daemon {
            following: Following::new(&node),
            images_dir: node.images_dir.clone(),
            socket: node.socket.clone(),
            node,
            watch,
            store,
            marker,
            ledger,
            roster: Roster::default(),
            jobs: Jobs::default(),
            pace: Arc::new(Pace::new(settings.rate_limit)),
            configuration,
            trouble: None,
            vanished: None,
            place: None,
            warned: None,
            rows: Rows::default(),
            link: Link::default(),
            trusted: None,
            relist: false,
            unsaved: false,
            status_said: now.checked_sub(STATUS_PACE).unwrap_or(now),
            connection: Connection::Down { next: now },
            systemd: Rc::new(Systemd::from_environment()),
            healing: Healing::default(),
            asked: Asked::start(&settings),
            requiring: Requiring::default(),
            unpacking: Unpacking::default(),
            metrics: Metrics::new(),
            disk: disk::Watched::new(now),
            moved: HashSet::new(),
            elsewhere: HashMap::new(),
            reworded: HashSet::new(),
            abandoned: HashSet::new(),
            is_draining: false,
            is_misplaced: false,
            settings: Arc::new(settings),
        })
    }

    /// Works, and ends in order.
    async fn live(&mut self, signals: &mut Signals) -> Ended {
        self.work(signals).await;
        if !self.is_draining {
            self.rows.end();
            self.save();
            return Ended::Misplaced;
        }
        self.drain(signals).await;
        self.save();
        info!("stopped");
        Ended::Stopped
    }

    /// Works until it is told to stop, or is misplaced.
    async fn work(&mut self, signals: &mut Signals) {
        self.list();
        self.systemd.ready();
        while !self.is_draining && !self.is_misplaced {
            if std::mem::take(&mut self.relist) {
                self.list();
                self.drop_outdated_jobs();
            }
            let systemd = Rc::clone(&self.systemd);
            if let Some(signal) = attended(&systemd, signals, self.consult()).await {
                self.on(Happened::Signal(signal));
                continue;
            }
            let worked = self.take_on_due();
            self.note_jobs();
            self.rows.sum_up(Instant::now());
            if !worked && self.jobs.is_empty() && std::mem::take(&mut self.unsaved) {
                self.save();
            }
            let still_due = if worked { None } else { self.yield_lane() };
            let told_due = self.tell_systemd();
            let now = Instant::now();
            let news_due = self.tell_news(now).unwrap_or(now + IDLE);
            let until = match worked {
                true => now,
                false => [still_due.unwrap_or(now + IDLE), told_due, news_due]
                    .into_iter()
                    .fold(self.next_due(), Instant::min),
            };
            let happened = self.happens(signals, until).await;
            self.on(happened);
        }
    }

    /// What a turn asks containerd, which may take its time.
    async fn consult(&mut self) {
        self.connect_if_due().await;
        self.look_at_disk();
        self.write_metrics_if_due();
        self.compare_if_due().await;
        self.follow_if_due().await;
        self.require_if_due();
        self.unpack_if_due();
    }

    /// When something is due although nothing happens.
    fn next_due(&self) -> Instant {
        let now = Instant::now();
        let connected = matches!(self.connection, Connection::Up(_));
        let wake = self.roster.next_due(now, connected).unwrap_or(now + IDLE);
        let wake = wake.min(match &self.connection {
            Connection::Down { next } => *next,
            Connection::Up(up) => up.compare,
        });
        let look = self.following.next_look().filter(|_| connected);
        [
            self.disk_due(),
            look,
            self.asked.metrics_due(),
            self.require_due(now),
            self.unpack_due(now),
            self.rows.due(),
        ]
        .into_iter()
        .flatten()
        .fold(wake, Instant::min)
    }

    /// Tells systemd that the loop goes round, and how it goes if that is news and it was not told something else a moment
    /// ago. Gives when to do so again.
    fn tell_systemd(&mut self) -> Instant {
        let (now, status) = (Instant::now(), self.status());
        let alive_due = self.systemd.alive().unwrap_or(now + IDLE);
        alive_due.min(self.tell_status(now, &status))
    }

    fn tell_status(&mut self, now: Instant, status: &str) -> Instant {
        let due = self.status_said + STATUS_PACE;
        if !self.systemd.is_news(status) {
            return now + IDLE;
        }
        if due <= now {
            self.systemd.status(status);
            self.status_said = now;
        }
        if due > now { due } else { now + STATUS_PACE }
    }

    /// Waits for the next thing that happens. Safe to cancel.
    async fn happens(&mut self, signals: &mut Signals, until: Instant) -> Happened {
        tokio::select! {
            biased;
            Some(signal) = signals.recv() => Happened::Signal(signal),
            (name, came) = self.jobs.next() => Happened::Job(name, Box::new(came)),
            () = self.watch.changed() => Happened::Hint,
            checked = self.requiring.next() => Happened::Required(checked),
            heard = self.unpacking.next() => Happened::Unpacking(heard),
            // Before the changes: an import makes thousands of them, and a caller should not wait for the last.
            question = self.asked.next() => Happened::Question(question),
            change = next_event(&mut self.connection) => Happened::Change(change),
            () = sleep_until(until) => Happened::Nothing,
        }
    }

    fn on(&mut self, happened: Happened) {
        match happened {
            Happened::Nothing => {}
            Happened::Hint => self.relist = true,
            Happened::Change(change) => self.on_event(change),
            Happened::Job(name, came) => self.on_job(&name, *came),
            Happened::Question(question) => self.answer(question),
            Happened::Required(checked) => self.on_required(checked),
            Happened::Unpacking(heard) => self.on_unpacking(heard),
            Happened::Signal(Signal::Stop) => self.is_draining = true,
            Happened::Signal(Signal::Reload) => self.reload(),
        }
        self.note_jobs();
    }

    /// Lets what runs come to its end: until the grace is over, or somebody tells us a second time.
    async fn drain(&mut self, signals: &mut Signals) {
        let grace = self.settings.grace;
        self.systemd.stopping(grace + FAREWELL);
        self.is_draining = true;
        if !self.jobs.is_empty() {
            let text = format!("stopping: waiting up to {grace:?} for the imports that run");
            info!("{text}");
            self.systemd.status(&text);
        }
        self.jobs.drop_waiting();
        self.unpacking.interrupt();
        let deadline = Instant::now() + grace;
        while !self.jobs.is_empty() {
            let until = self.systemd.alive().map_or(deadline, |due| due.min(deadline));
            match self.happens(signals, until).await {
                Happened::Job(name, came) => {
                    self.on_job(&name, *came);
                    self.note_jobs();
                }
                Happened::Question(question) => self.answer(question),
                Happened::Signal(Signal::Stop) => break,
                _ if Instant::now() >= deadline => break,
                _ => {}
            }
        }
        for job in self.jobs.all() {
            let bundle = telling::shown(&job.order.name);
            info!(bundle, "its import is interrupted, and goes on at the next start");
        }
        self.rows.end();
    }

    fn on_event(&mut self, event: Option<containerd::ImageEvent>) {
        let Some(event) = event else {
            return self.went_away("containerd went away");
        };
        let Connection::Up(up) = &mut self.connection else {
            return;
        };
        self.requiring.doubt();
        let is_deleted = event.kind == ImageChange::ContentDeleted;
        if !is_deleted && let Some(job) = self.jobs.writer_of(&event.name) {
            // Most likely by the job; what else it may be is compared when the job is done.
            job.disturbed = true;
            return;
        }
        let soon = (Instant::now() + BURST).max(up.rest);
        if up.compare <= soon {
            // Of thousands of changes, the first has everything compared.
            return;
        }
        let needs = |digest: &str| digest.parse().is_ok_and(|digest| self.ledger.needs(&digest));
        if is_deleted && needs(&event.name) {
            debug!(digest = event.name, "a blob of a managed image was deleted");
            up.compare = soon;
        } else if !is_deleted && self.ledger.vouches_for(&event.name) {
            debug!(image = event.name, "a managed record changed");
            up.compare = soon;
        }
    }

    fn save(&mut self) {
        match self.store.save(&self.ledger) {
            Saved::Written | Saved::Unchanged | Saved::NotSaved(None) => {}
            Saved::NotSaved(Some(notice)) => warn!("{notice}"),
        }
    }

    fn status(&self) -> String {
        let count = |is: fn(Phase) -> bool| self.roster.count(is);
        let containerd = match &self.connection {
            Connection::Up(up) => format!("containerd {}", up.runtime.version.text),
            Connection::Down { .. } => format!("waiting for containerd on {}", self.socket.display()),
        };
        let done = count(|phase| phase == Phase::Done);
        let failed = count(|phase| matches!(phase, Phase::Failed { .. }));
        let running = match (self.jobs.all().count(), self.pace.held_back()) {
            (0, _) => String::new(),
            (running, None) => format!("{running} importing, "),
            (running, Some(why)) => format!("{running} importing ({why}), "),
        };
        let waiting = count(|phase| {
            matches!(
                phase,
                Phase::Settling { .. } | Phase::Ready | Phase::Following | Phase::Known | Phase::Waiting
            )
        });
        let trouble = self
            .trouble
            .as_ref()
            .map(|why| format!("; {why}"))
            .unwrap_or_default();
        let required = self.requiring.shortage();
        format!(
            "{done} bundles in place, {running}{waiting} waiting, {failed} failed{required}; {containerd}{trouble}"
        )
    }
}

/// What the daemon is told from outside, as it comes.
type Signals = mpsc::UnboundedReceiver<Signal>;

/// Sees a turn of the loop through. Meanwhile systemd goes on hearing that the loop is alive, for as long as that can be
/// true, and somebody who wants the daemon to stop need not wait for a containerd that does not answer.
///
/// Gives what was heard; a turn that a stop ended is dropped.
async fn attended(
    systemd: &Systemd,
    signals: &mut Signals,
    turn: impl Future<Output = ()>,
) -> Option<Signal> {
    tokio::pin!(turn);
    let given_up = Instant::now() + LONGEST_TURN;
    let mut heard = None;
    loop {
        let now = Instant::now();
        let alive_due = (now < given_up).then(|| systemd.alive()).flatten();
        tokio::select! {
            biased;
            Some(signal) = signals.recv() => {
                heard = Some(signal);
                if signal == Signal::Stop {
                    return heard;
                }
            }
            () = &mut turn => return heard,
            () = sleep_until(alive_due.unwrap_or(given_up + IDLE)) => {}
        }
    }
}

/// Waits for ever while there is no connection: nothing happens on it.
async fn next_event(connection: &mut Connection) -> Option<containerd::ImageEvent> {
    match connection {
        Connection::Up(up) => up.events.next().await,
        Connection::Down { .. } => std::future::pending().await,
    }
}

/// Something that wakes the loop.
enum Happened {
    /// It is time.
    Nothing,
    /// The folder may have changed.
    Hint,
    /// A record changed, or the connection is gone.
    Change(Option<containerd::ImageEvent>),
    /// Somebody wants to know how it stands.
    Question(Question),
    /// It was looked whether what is required is there.
    Required(requiring::Checked),
    /// Images are unpacked.
    Unpacking(unpacking::Heard),
    /// A job came back.
    Job(OsString, Box<Option<Came>>),
    Signal(Signal),
}

/// Returns at once where the time has come, without waiting for a tick of the clock.
async fn sleep_until(until: Instant) {
    if until > Instant::now() {
        tokio::time::sleep_until(until.into()).await;
    }
}
