//! Whether the images are there that the configuration requires: when it is looked, and what is said of it.
//!
//! Looking goes on beside the loop, as jobs do. A change in containerd, a comparison or somebody who asks makes the last
//! answer doubtful, and it is looked again: at once while nothing is imported, now and then while something is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::Daemon;
use crate::decide::compare::BURST;
use crate::outcome::Outcome;
use crate::required;
use crate::settings::Settings;
use crate::state::crash;
use crate::state::roster::Phase;
use crate::status::RequiredStatus;

/// How often it is looked while imports run, each of which changes what there is.
const PACE: Duration = Duration::from_secs(10);
/// Looking takes no more than this part of the time, however often something changes.
const SHARE: u32 = 10;
/// How many images a line of the log names; the others are counted.
const MOST_NAMED: usize = 5;

/// What looking came to; `None` where it was ended.
pub(super) type Checked = Option<Result<RequiredStatus, containerd::Error>>;

/// What is known, and what was said.
#[derive(Default)]
pub(super) struct Requiring {
    /// It is being looked, since then.
    task: Option<(JoinHandle<Result<RequiredStatus, containerd::Error>>, Instant)>,
    /// Whether the last answer is as new as what has happened.
    is_current: bool,
    last: Option<RequiredStatus>,
    /// It is not looked again before.
    earliest: Option<Instant>,
    /// When it was looked last.
    looked: Option<Instant>,
    /// What was said last, and the images it was about.
    said: Option<(String, Vec<String>)>,
}

impl Requiring {
    /// Something happened that may have changed the answer.
    pub(super) fn doubt(&mut self) {
        self.is_current = false;
    }

    /// Other things may be required now.
    pub(super) fn forget(&mut self) {
        let said = self.said.take();
        *self = Requiring::default();
        self.said = said;
    }

    /// Waits until it was looked; for ever while it is not. Safe to cancel.
    pub(super) async fn next(&mut self) -> Checked {
        match &mut self.task {
            Some((task, _)) => match task.await {
                Ok(checked) => Some(checked),
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => Some(Ok(RequiredStatus {
                        checked_at: Some(Timestamp::now()),
                        problem: Some(crash::panic_text(&*panic)),
                        ..RequiredStatus::default()
                    })),
                    Err(_) => None,
                },
            },
            None => std::future::pending().await,
        }
    }

    /// What the daemon answers; `None` where nothing is required.
    pub(super) fn status(&self, settings: &Settings, is_connected: bool) -> Option<RequiredStatus> {
        if settings.require.is_empty() {
            return None;
        }
        let is_current = self.is_current && self.task.is_none() && is_connected && self.last.is_some();
        Some(RequiredStatus {
            is_current,
            ..self.last.clone().unwrap_or_default()
        })
    }
}

impl Drop for Requiring {
    fn drop(&mut self) {
        if let Some((task, _)) = &self.task {
            task.abort();
        }
    }
}

impl Daemon {
    /// Has it looked in the next turn, whatever was found before.
    pub(super) fn require_soon(&mut self) {
        self.requiring.doubt();
        self.requiring.earliest = None;
    }

    /// When it is looked next, if that is to be at all.
    pub(super) fn require_due(&self, now: Instant) -> Option<Instant> {
        let requiring = &self.requiring;
        let is_wanted = !self.state.settings.require.is_empty() && self.hands.containerd.is_some();
        if !is_wanted || requiring.is_current || requiring.task.is_some() {
            return None;
        }
        let paced = requiring.looked.filter(|_| !self.state.lanes.is_empty());
        let paced = paced.map_or(now, |looked| looked + PACE);
        Some(requiring.earliest.unwrap_or(now).max(paced))
    }

    /// Begins to look if that is due.
    pub(super) fn require_if_due(&mut self) {
        if self.state.settings.require.is_empty() {
            return;
        }
        let now = Instant::now();
        if self.require_due(now).is_some_and(|due| due <= now)
            && let Some(live) = &self.hands.containerd
        {
            let (settings, runtime) = (Arc::clone(&self.state.settings), live.runtime.clone());
            let look = async move { required::check(&settings, &runtime).await };
            self.requiring.task = Some((tokio::spawn(look), now));
            // What happens from now on makes it doubtful again.
            self.requiring.is_current = true;
        }
        self.tell_required();
    }

    /// Takes down what looking came to.
    pub(super) fn on_required(&mut self, checked: Checked) {
        let requiring = &mut self.requiring;
        let Some((_, began)) = requiring.task.take() else {
            return;
        };
        let now = Instant::now();
        requiring.looked = Some(began);
        requiring.earliest = Some(now + BURST.max((now - began) * SHARE));
        match checked {
            Some(Ok(status)) => requiring.last = Some(status),
            // Whether containerd is there at all is found out, and said, elsewhere.
            other => {
                tracing::debug!("it could not be looked whether the required images are there: {other:?}");
                requiring.is_current = false;
                requiring.earliest = Some(now + PACE);
            }
        }
        self.tell_required();
    }

    /// Says what is missing, once for each change. Not while bundles are on their way: they may have it.
    fn tell_required(&mut self) {
        let is_connected = self.hands.containerd.is_some();
        let found = self.requiring.status(&self.state.settings, is_connected);
        let Some(found) = found.filter(|found| found.is_current) else {
            return;
        };
        let on_their_way = self.state.roster.names(is_on_its_way);
        if !self.state.lanes.is_empty()
            || on_their_way
                .iter()
                .any(|name| self.state.roster.stalled(name).is_none())
        {
            return;
        }
        let text = sentence(&found);
        let missing = found.missing.iter().map(|image| image.reference.clone());
        let said = Some((text.clone(), missing.collect()));
        if self.requiring.said == said {
            return;
        }
        match (&found.problem, found.missing.is_empty()) {
            (Some(_), _) => warn!("{text}"),
            (None, true) => info!("{text}"),
            (None, false) => warn!(outcome = Outcome::Missing.as_str(), "{text}"),
        }
        self.requiring.said = said;
    }
}

fn is_on_its_way(phase: Phase) -> bool {
    match phase {
        Phase::Settling { .. } | Phase::Ready | Phase::Running | Phase::Following | Phase::Known => true,
        Phase::Waiting | Phase::Done | Phase::Ignored(_) | Phase::Failed { .. } => false,
    }
}

fn sentence(found: &RequiredStatus) -> String {
    if let Some(problem) = &found.problem {
        return format!("whether the required images are there is not known: {problem}");
    }
    let mut text = found.summary().unwrap_or_default();
    let mut names = found.missing.iter().map(|image| image.reference.as_str());
    let named: Vec<_> = names.by_ref().take(MOST_NAMED).collect();
    if !named.is_empty() {
        text = format!("{text}: {}", named.join(", "));
    }
    match names.count() {
        0 => text,
        more => format!("{text} and {more} more (`airgapd status` names them)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::MissingStatus;

    #[tokio::test]
    async fn a_look_that_panics_is_one_that_does_not_know() {
        let look = tokio::spawn(async { panic!("no\nway") });
        let mut requiring = Requiring::default();
        requiring.task = Some((look, Instant::now()));
        let Some(Ok(status)) = requiring.next().await else {
            panic!("another end")
        };
        assert!(status.problem.is_some_and(|why| why.starts_with("a panic: no")));
    }

    fn found(missing: usize) -> RequiredStatus {
        let image = |number| MissingStatus {
            reference: format!("a:{number}"),
            why: String::new(),
            asked_by: Vec::new(),
        };
        RequiredStatus {
            is_current: true,
            checked_at: Some(Timestamp::UNIX_EPOCH),
            problem: None,
            references: 9,
            missing: (0..missing).map(image).collect(),
        }
    }

    #[test]
    fn a_line_names_a_few_and_counts_the_others() {
        let table = [
            (0, "all 9 required images are there"),
            (1, "1 of 9 required images are missing: a:0"),
            (
                7,
                "7 of 9 required images are missing: a:0, a:1, a:2, a:3, a:4 and 2 more (`airgapd status` names them)",
            ),
        ];
        for (missing, wanted) in table {
            assert_eq!(sentence(&found(missing)), wanted);
        }
        let unknown = RequiredStatus {
            problem: Some("x.yaml cannot be read".to_owned()),
            ..found(0)
        };
        assert!(sentence(&unknown).ends_with("not known: x.yaml cannot be read"));
        assert_eq!(unknown.summary(), None);
    }
}
