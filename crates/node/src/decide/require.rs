//! When the daemon checks whether the images are there that the configuration requires, and what it says of the result.
//!
//! A check runs outside the loop, as jobs do. A change in containerd, a comparison and a client's question make the last result
//! doubtful. Then the daemon checks again: at once while no import runs, and every [`PACE`] while one does.

use std::time::{Duration, Instant};

use super::compare::BURST;
use super::line::Line;
use super::{Action, Turn};
use crate::outcome::Outcome;
use crate::state::State;
use crate::state::roster::Phase;
use crate::status::RequiredStatus;

/// The time between two checks while imports run, each of which changes what there is.
const PACE: Duration = Duration::from_secs(10);
/// A check is followed by a pause of this many times its own length, so that checks take a small part of the time.
const SHARE: u32 = 10;
/// How many images a line of the log names; the others are counted.
const MOST_NAMED: usize = 5;

/// How a check ended.
#[derive(Debug)]
pub(crate) enum Checked {
    /// It has a result.
    Found(RequiredStatus),
    /// It has none, for this reason: containerd failed.
    Failed(String),
    /// It panicked, with this text.
    Panicked(String),
}

/// The required images as far as the daemon knows of them, and what it said.
#[derive(Debug, Default)]
pub(crate) struct RequiredState {
    /// When the check under way began.
    begun: Option<Instant>,
    /// Whether nothing has happened since the last check began that could change its result.
    is_current: bool,
    last: Option<RequiredStatus>,
    /// No check begins before.
    earliest: Option<Instant>,
    /// When the last check began that has ended.
    checked: Option<Instant>,
    /// The last line about the result, and the images that were missing then.
    said: Option<(String, Vec<String>)>,
}

impl RequiredState {
    /// Something happened that may change the result.
    pub(super) fn doubt(&mut self) {
        self.is_current = false;
    }

    /// How many images are missing, for the one line of systemd's status.
    pub(crate) fn shortage(&self) -> String {
        match self.last.as_ref().map(|last| last.missing.len()) {
            None | Some(0) => String::new(),
            Some(missing) => format!(", {missing} required images missing"),
        }
    }
}

impl State {
    /// Has the daemon check in the next step, whatever the last result was.
    pub(super) fn require_soon(&mut self) {
        self.required.doubt();
        self.required.earliest = None;
    }

    /// Forgets the last result: the configuration may require other images now.
    pub(super) fn forget_required(&mut self, turn: &mut Turn) {
        let before = std::mem::take(&mut self.required);
        if before.begun.is_some() {
            turn.act(Action::AbortCheck);
        }
        self.required.said = before.said;
    }

    /// When the next check is due; `None` where none is.
    pub(super) fn require_due(&self, now: Instant) -> Option<Instant> {
        let required = &self.required;
        let is_wanted = !self.settings.require.is_empty() && self.connection.is_up();
        if !is_wanted || required.is_current || required.begun.is_some() {
            return None;
        }
        let paced = required.checked.filter(|_| !self.lanes.is_empty());
        let paced = paced.map_or(now, |checked| checked + PACE);
        Some(required.earliest.unwrap_or(now).max(paced))
    }

    /// Begins a check if that is due, and says what has changed.
    pub(super) fn require_if_due(&mut self, turn: &mut Turn) {
        if self.require_due(turn.now).is_some_and(|due| due <= turn.now) {
            self.required.begun = Some(turn.now);
            // Whatever happens from now on makes the result doubtful again.
            self.required.is_current = true;
            turn.act(Action::Check);
        }
        self.say_required(turn);
    }

    /// Takes over the result of a check.
    pub(super) fn on_checked(&mut self, checked: Checked, turn: &mut Turn) {
        let required = &mut self.required;
        let Some(begun) = required.begun.take() else {
            return;
        };
        let took = turn.now.saturating_duration_since(begun);
        required.checked = Some(begun);
        required.earliest = Some(turn.now + BURST.max(took * SHARE));
        match checked {
            Checked::Found(found) => required.last = Some(found),
            Checked::Panicked(text) => {
                required.last = Some(RequiredStatus {
                    checked_at: Some(turn.at),
                    problem: Some(text),
                    ..RequiredStatus::default()
                });
            }
            // Other decisions find out, and say, whether containerd is there at all.
            Checked::Failed(why) => {
                turn.say(Line::debug(format!(
                    "it could not be looked whether the required images are there: {why}"
                )));
                required.is_current = false;
                required.earliest = Some(turn.now + PACE);
            }
        }
        self.say_required(turn);
    }

    /// The daemon's answer to a client; `None` where the configuration requires nothing.
    pub(crate) fn required_status(&self) -> Option<RequiredStatus> {
        if self.settings.require.is_empty() {
            return None;
        }
        Some(RequiredStatus {
            is_current: self.current_result().is_some(),
            ..self.required.last.clone().unwrap_or_default()
        })
    }

    /// The last result, as long as nothing makes it doubtful.
    fn current_result(&self) -> Option<&RequiredStatus> {
        let RequiredState {
            begun,
            is_current,
            last,
            ..
        } = &self.required;
        let is_certain = *is_current && begun.is_none() && self.connection.is_up();
        last.as_ref()
            .filter(|_| is_certain && !self.settings.require.is_empty())
    }

    /// Says what is missing, once for each change. Not while bundles are on their way: they may bring it.
    fn say_required(&mut self, turn: &mut Turn) {
        let Some(found) = self.current_result() else {
            return;
        };
        if !self.lanes.is_empty() {
            return;
        }
        let on_their_way = self.roster.names(is_on_its_way);
        if on_their_way
            .iter()
            .any(|name| self.roster.stalled(name).is_none())
        {
            return;
        }
        let text = sentence(found);
        let missing = found.missing.iter().map(|image| image.reference.clone());
        let said = Some((text.clone(), missing.collect()));
        if self.required.said == said {
            return;
        }
        turn.say(match (&found.problem, found.missing.is_empty()) {
            (Some(_), _) => Line::warn(text),
            (None, true) => Line::info(text),
            (None, false) => Line::warn(text).outcome(Outcome::Missing),
        });
        self.required.said = said;
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
