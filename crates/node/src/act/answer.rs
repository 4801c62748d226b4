//! Answers questions: on the control socket, and in the metrics file.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::Daemon;
use super::hands::Hands;
use super::ready::Remembered;
use crate::control::{self, Answer, Question, Server, Topic, Want};
use crate::decide::listing::FolderState;
use crate::decide::{Event, room};
use crate::features::FeatureFile;
use crate::metrics;
use crate::releases;
use crate::settings::Settings;
use crate::state::State;
use crate::status::{self, ContainerdStatus, DaemonStatus, Live, Status};
use crate::verdict::Health;

/// Time between two writes of the metrics file. A file that cannot be written changes the verdict
/// within 5 seconds. The looks at the disk have the same pace, so that a wake-up serves both.
const METRICS_PACE: Duration = room::LOOK;
/// Longest time by which the metrics file is written early, in a round that has another reason.
const EARLY: Duration = Duration::from_millis(500);

/// Shortest time between two checks for news: a thousand bundles are a thousand turns of the loop.
const NEWS_PACE: Duration = Duration::from_millis(50);
/// Most clients that may wait for news. Further clients get the current status at once, so that no
/// question is blocked.
const MOST_KEPT: usize = 16;

/// The clients that ask, and the metrics that are published unasked.
pub(super) struct Asked {
    /// None if the socket could not be created.
    served: Option<Served>,
    remembered: Remembered,
    /// The questions of clients that wait for news.
    kept: Vec<Question>,
    /// Questions that came during an errand and that the state alone cannot answer.
    put_off: VecDeque<Question>,
    /// Time of the last check for news.
    news_looked: Instant,
    started_at: Timestamp,
    /// None if no file is configured.
    metrics: Option<MetricsFile>,
    /// None if no file is configured.
    features: Option<FeatureFile>,
    /// The address of the metrics while they cannot be served there.
    unserved: Option<Unserved>,
}

/// The clients.
struct Served {
    server: Server,
    questions: mpsc::Receiver<Question>,
}

/// The metrics file that node_exporter reads.
struct MetricsFile {
    path: PathBuf,
    due: Instant,
    /// Error of the last write, if it failed.
    problem: Option<String>,
    /// The verdict in the file.
    health: Option<Health>,
}

/// An address on which the daemon should serve its metrics and cannot.
struct Unserved {
    address: SocketAddr,
    due: Instant,
    problem: String,
}

impl Unserved {
    /// Serves the metrics. If that fails, returns what is needed for a retry.
    fn serve(address: SocketAddr, server: &Server) -> Option<Unserved> {
        let error = server.listen_on(address).err()?;
        Some(Unserved {
            address,
            due: Instant::now() + METRICS_PACE,
            problem: format!("no metrics on {address}: {error}"),
        })
    }
}

impl Asked {
    /// Opens the control socket. Without it the daemon still imports.
    pub(super) fn start(settings: &Settings) -> Asked {
        let folder = &settings.runtime_dir;
        let (served, unserved) = match Server::start(folder) {
            Ok((server, questions)) => {
                let serve = |address| Unserved::serve(address, &server);
                let unserved = settings.metrics_address.and_then(serve);
                (Some(Served { server, questions }), unserved)
            }
            Err(error) => {
                warn!("no control socket in {}: {error}", folder.display());
                (None, None)
            }
        };
        if let Some(unserved) = &unserved {
            warn!("{}", unserved.problem);
        }
        // Without a runtime folder there is no default file.
        let by_default = || served.is_some().then(|| folder.join("airgapd.prom"));
        let file = settings.metrics_file.clone().or_else(by_default);
        Asked {
            served,
            remembered: Remembered::open(folder),
            kept: Vec::new(),
            put_off: VecDeque::new(),
            news_looked: Instant::now(),
            started_at: Timestamp::now(),
            metrics: file.map(|path| MetricsFile {
                path,
                due: Instant::now(),
                problem: None,
                health: None,
            }),
            features: settings.node_feature_file.clone().map(FeatureFile::at),
            unserved,
        }
    }

    /// Waits for the next question. Safe to cancel.
    pub(super) async fn next(&mut self) -> Question {
        match self.put_off.pop_front() {
            Some(question) => question,
            None => self.receive().await,
        }
    }

    /// Waits for the next question that the state alone can answer. Other questions are kept for
    /// [`Asked::next`]. Safe to cancel.
    pub(super) async fn next_reading(&mut self) -> Question {
        loop {
            let question = self.receive().await;
            if !question.topic.needs_listing() {
                return question;
            }
            self.put_off.push_back(question);
        }
    }

    async fn receive(&mut self) -> Question {
        let Some(served) = &mut self.served else {
            return std::future::pending().await;
        };
        loop {
            match served.questions.recv().await {
                // The client has gone, or has an answer from earlier facts.
                Some(question) if question.answer.is_closed() => {}
                Some(question) => return question,
                None => return std::future::pending().await,
            }
        }
    }

    /// Returns when the next write is due: the metrics file, the node features, or the next try to
    /// serve the metrics on their address.
    pub(super) fn metrics_due(&self) -> Option<Instant> {
        let features = self.features.as_ref().map(FeatureFile::due);
        let file = self.metrics.as_ref().map(|file| file.due);
        let address = self.unserved.as_ref().map(|unserved| unserved.due);
        file.into_iter().chain(address).chain(features).min()
    }

    /// Makes the metrics file due at once if it shows another verdict than this.
    pub(super) fn note_health(&mut self, health: Health, now: Instant) {
        let is_other = |file: &&mut MetricsFile| file.health.is_some_and(|written| written != health);
        if let Some(file) = self.metrics.as_mut().filter(is_other) {
            file.due = now;
        }
    }

    /// Notes what the status says about readiness, and posts it for the connections.
    pub(super) fn note_ready(&mut self, status: &Status, state: &State, now: Instant) {
        let facts = self.remembered.note(status, state);
        if let Some(served) = &self.served {
            served.server.desk().post(facts);
            self.remembered.save_if_due(now);
        }
    }

    /// Removes the metrics file and the node features. Otherwise they would call the node healthy
    /// after the daemon's end. Leaves the memory of readiness to the next daemon.
    pub(super) fn end(&mut self, status: &Status, state: &State) {
        self.remembered.note(status, state);
        if self.served.is_some() {
            self.remembered.save(Instant::now());
        }
        self.features.iter().for_each(FeatureFile::end);
        if let Some(file) = &self.metrics {
            let _ = std::fs::remove_file(&file.path);
        }
    }

    /// Tries again to serve the metrics on their address, if that is due.
    fn serve_metrics_if_due(&mut self, now: Instant) {
        let is_due = |unserved: &mut Unserved| unserved.due <= now;
        if let Some(unserved) = self.unserved.take_if(is_due) {
            let Unserved { address, .. } = unserved;
            self.unserved = self
                .served
                .as_ref()
                .and_then(|served| Unserved::serve(address, &served.server));
            if self.unserved.is_none() {
                info!("metrics are served on {address}");
            }
        }
    }

    /// Answers the clients to whom this status is news, or whose time to wait is over.
    fn tell(&mut self, status: &Status, now: Instant) {
        let tag = status.tag();
        let is_due = |question: &mut Question| {
            let waits = |known: &control::Known| known.tag == tag && known.until > now;
            question.answer.is_closed() || !question.known.as_ref().is_some_and(waits)
        };
        for question in self.kept.extract_if(.., is_due) {
            let _ = question.answer.send(Answer::Status(Box::new(status.clone())));
        }
    }

    /// Returns the earliest deadline of the clients that wait for news.
    fn next_deadline(&self) -> Option<Instant> {
        let known = self.kept.iter().filter_map(|question| question.known.as_ref());
        known.map(|known| known.until).min()
    }

    /// Answers a question. If the client already has this status, keeps the question until there is
    /// news. The client may have gone meanwhile.
    pub(super) fn reply(&mut self, question: Question, view: &View<'_>) {
        if question.topic == Topic::Life {
            let _ = question.answer.send(Answer::Alive);
            return;
        }
        let status = view.status(self);
        match question.topic {
            Topic::Metrics => {
                let facts = self.remembered.note(&status, view.state);
                let text = view.hands.metrics.text(&status, &facts.standing(facts.at));
                let _ = question.answer.send(Answer::Metrics(text));
            }
            Topic::Facts => {
                let facts = self.remembered.note(&status, view.state);
                if let Some(served) = &self.served {
                    served.server.desk().post(Arc::clone(&facts));
                }
                let _ = question.answer.send(Answer::Facts(facts));
            }
            _ if self.waits_for_news(&question, &status) => self.kept.push(question),
            _ => {
                let _ = question.answer.send(Answer::Status(Box::new(status)));
            }
        }
    }

    fn waits_for_news(&self, question: &Question, status: &Status) -> bool {
        let has_all = |known: &control::Known| known.tag == status.tag();
        self.kept.len() < MOST_KEPT && question.known.as_ref().is_some_and(has_all)
    }
}

impl Daemon {
    /// Answers a question. Lists the folder or checks the required images first, if the question
    /// wants that.
    pub(super) fn answer(&mut self, question: Question) {
        if question.topic.needs_listing() {
            self.list();
        }
        if question.topic == Topic::Status(Want::Checked) {
            self.take(Event::CheckWanted);
        }
        let Daemon {
            state, hands, asked, ..
        } = self;
        let view = View { state, hands };
        asked.reply(question, &view);
    }

    /// Answers clients that wait for news, if there is news or their time to wait is over. Returns
    /// when the next check is due.
    pub(super) fn tell_news(&mut self, now: Instant) -> Option<Instant> {
        if self.asked.kept.is_empty() {
            return None;
        }
        let earliest = self.asked.news_looked + NEWS_PACE;
        if now < earliest {
            return Some(earliest);
        }
        let status = self.snapshot();
        self.asked.news_looked = now;
        self.asked.tell(&status, now);
        self.asked.next_deadline()
    }

    fn write_features_if_due(&mut self, now: Instant) {
        if let Some(mut features) = self.asked.features.take_if(|features| features.due() <= now) {
            let status = self.snapshot();
            let facts = self.asked.remembered.note(&status, &self.state);
            features.write(&status, &facts.standing(facts.at), now);
            self.asked.features = Some(features);
        }
    }

    pub(super) fn write_metrics_if_due(&mut self) {
        let now = Instant::now();
        self.write_features_if_due(now);
        self.asked.serve_metrics_if_due(now);
        let due = self.asked.metrics.as_ref().map(|file| file.due);
        if due.is_none_or(|due| due > now + EARLY) {
            return;
        }
        let status = self.snapshot();
        let facts = self.asked.remembered.note(&status, &self.state);
        let text = self.hands.metrics.text(&status, &facts.standing(facts.at));
        let Some(file) = &mut self.asked.metrics else {
            return;
        };
        file.due = now + METRICS_PACE;
        let problem = metrics::write(&file.path, &text).err();
        let problem = problem.map(|error| format!("no metrics in {}: {error}", file.path.display()));
        if let Some(problem) = problem.as_ref().filter(|_| file.problem != problem) {
            warn!("{problem}");
        }
        file.health = problem.is_none().then_some(status.verdict.health);
        file.problem = problem;
    }

    pub(super) fn snapshot(&self) -> Status {
        let view = View {
            state: &self.state,
            hands: &self.hands,
        };
        view.status(&self.asked)
    }
}

/// The parts from which a status is made.
pub(super) struct View<'d> {
    pub(super) state: &'d State,
    pub(super) hands: &'d Hands,
}

impl View<'_> {
    /// Returns the status at this moment.
    fn status(&self, asked: &Asked) -> Status {
        let progress = self.hands.work.orders().map(|(order, counters)| {
            let progress = counters.so_far(order.started);
            (order.name.clone(), progress)
        });
        let live = Live {
            progress: progress.collect(),
            put_off: self.state.healing.put_off(),
            unadmitted: self.state.unadmitted(),
            moved: self.state.elsewhere.clone(),
        };
        let mut bundles = status::bundles(&self.state.roster, &self.state.ledger, &live, Instant::now());
        let held_back = self.hands.pace.held_back();
        for bundle in bundles
            .iter_mut()
            .filter(|bundle| bundle.state == status::State::Importing)
        {
            bundle.waits_for.clone_from(&held_back);
        }
        let folders = self.state.folders.iter();
        let folders = folders.filter(|folder| self.state.is_of_interest(folder));
        let mut folders = folders.map(FolderState::status);
        let status = Status {
            daemon: Some(DaemonStatus {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                started_at: asked.started_at,
            }),
            containerd: self.containerd_status(),
            folder: folders.next().unwrap_or_default(),
            more_folders: folders.collect(),
            configuration_problem: self.state.configuration_problem.clone(),
            keys_problem: self.state.keys.as_ref().and_then(|keys| keys.problem.clone()),
            unusable_keys: self
                .state
                .keys
                .as_ref()
                .map(|keys| keys.unusable.clone())
                .unwrap_or_default(),
            metrics_file_problem: asked.metrics.as_ref().and_then(|file| file.problem.clone()),
            node_feature_file_problem: asked.features.as_ref().and_then(FeatureFile::problem).cloned(),
            metrics_address_problem: asked.unserved.as_ref().map(|unserved| unserved.problem.clone()),
            disk: self.state.room.status(self.state.settings.min_free),
            scrub: crate::scrub::last(&self.state.settings.state_dir),
            image_count: status::count_images(&self.state.ledger, &bundles),
            releases: releases::releases(
                &self.state.ledger,
                &bundles,
                releases::Rules::of(&self.state.settings),
            ),
            required: self.state.required_status(Instant::now()),
            unpack: self.state.unpack_status(),
            bundles,
            ignored: status::ignored(&self.state.roster),
            ..Status::default()
        };
        status.judged()
    }

    fn containerd_status(&self) -> ContainerdStatus {
        let unreached = ContainerdStatus {
            socket: self.hands.place.socket.display().to_string(),
            namespace: self.state.settings.namespace.clone(),
            ..ContainerdStatus::default()
        };
        match &self.hands.containerd {
            Some(live) => ContainerdStatus {
                reachable: true,
                version: Some(live.runtime.version.text.clone()),
                platform: Some(live.runtime.platform.to_string()),
                ..unreached
            },
            None => ContainerdStatus {
                problem: self.state.link.why().map(str::to_owned),
                ..unreached
            },
        }
    }
}
