//! Decides when the daemon checks the required images, and how it reports the result.
//!
//! A check runs outside the loop, as jobs do. A change in containerd, a comparison and a client's
//! question make the last result doubtful. Then the daemon checks again: at once if no import runs,
//! and every [`PACE`] while one runs.

use std::time::{Duration, Instant};

use import::Pattern;

use super::compare::BURST;
use super::line::Line;
use super::{Action, Turn};
use crate::outcome::Outcome;
use crate::state::State;
use crate::state::roster::Phase;
use crate::status::RequiredStatus;

/// Time between two checks during imports, each of which changes containerd's content.
const PACE: Duration = Duration::from_secs(10);
/// Length of the pause after a check, as a multiple of the check's own length. It keeps the share
/// of checks in the daemon's time small.
const SHARE: u32 = 10;
/// Longest pause after a check. With checks of up to 15 s, a new result then comes before readiness
/// ends with a doubtful one ([`crate::ready::TRUST`]).
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Time between two checks if the sources cannot be read. No event tells that a mount is back.
const AGAIN: Duration = Duration::from_secs(60);
/// Number of images that a log line names. The line counts the others.
const MOST_NAMED: usize = 5;

/// The end of a check.
#[derive(Debug)]
pub(crate) enum Checked {
    /// The check has a result.
    Found(RequiredStatus),
    /// The check has no result, because containerd failed with this error.
    Failed(String),
    /// The check panicked with this text.
    Panicked(String),
}

/// The daemon's knowledge of the required images, and what the log has of it.
#[derive(Debug, Default)]
pub(crate) struct RequiredState {
    /// Start of the running check, if there is one.
    begun: Option<Instant>,
    /// True if nothing has happened since the last check began that could change its result.
    is_current: bool,
    /// Time of the first event that may have changed the result and that no ended check covers.
    doubted: Option<Instant>,
    /// Time of the first such event since the running check began.
    doubted_later: Option<Instant>,
    last: Option<RequiredStatus>,
    /// Stamps of the files under `require`, as the last check or the last look at them found them.
    stamp: Option<String>,
    /// No check begins before this time.
    earliest: Option<Instant>,
    /// Start of the last check that has ended.
    checked: Option<Instant>,
    /// True if containerd was lost, or a check failed, and no check that began later has ended.
    is_unsure: bool,
    /// True if the running check began after that.
    is_later: bool,
    /// The last log line about the result, and the images that were missing then.
    said: Option<(String, Vec<String>)>,
}

impl RequiredState {
    /// Notes an event that may change the result.
    pub(super) fn doubt(&mut self, now: Instant) {
        self.is_current = false;
        let doubted = match self.begun {
            Some(_) => &mut self.doubted_later,
            None => &mut self.doubted,
        };
        doubted.get_or_insert(now);
    }

    /// Notes that containerd did not answer.
    pub(super) fn lose(&mut self, now: Instant) {
        self.doubt(now);
        (self.is_unsure, self.is_later) = (true, false);
    }

    /// Returns true if the files under `require` are not those that the last check has read.
    fn is_of_other_files(&self) -> bool {
        self.last.as_ref().is_some_and(|last| last.stamp != self.stamp)
    }
}

impl State {
    /// Schedules a check for the next step, even if the last result is current.
    pub(super) fn require_soon(&mut self, now: Instant) {
        self.required.doubt(now);
        self.required.earliest = None;
    }

    /// Forgets the last result, since the configuration may require other images now.
    pub(super) fn forget_required(&mut self, turn: &mut Turn) {
        let before = std::mem::take(&mut self.required);
        if before.begun.is_some() {
            turn.act(Action::AbortCheck);
        }
        (self.required.said, self.required.stamp) = (before.said, before.stamp);
    }

    /// Applies a look at the files under `require`. `None`: a file system does not answer.
    pub(super) fn on_stamped(&mut self, stamp: Option<String>) {
        self.required.stamp = stamp;
    }

    /// Checks the required images again after the configuration was read without a change. A list
    /// under `require` may have changed instead, and then the last result counts no more. Returns
    /// true if so.
    pub(super) fn require_anew(&mut self, turn: &mut Turn) -> bool {
        let is_other = self.required.is_of_other_files();
        match is_other {
            true => self.forget_required(turn),
            false => self.require_soon(turn.now),
        }
        is_other
    }

    /// Returns a short form of the requirement: of the configuration, and of the files that it
    /// names. Returns `None` if the files are not known.
    pub(crate) fn requirement(&self) -> Option<String> {
        let stamp = self.required.stamp.as_ref()?;
        Some(format!("{}-{stamp}", self.settings.requirement()))
    }

    /// Returns the time of the next check, or `None` if none is due.
    pub(super) fn require_due(&self, now: Instant) -> Option<Instant> {
        let required = &self.required;
        let is_wanted = !self.settings.require.is_empty() && self.connection.is_up();
        if !is_wanted || required.begun.is_some() {
            return None;
        }
        if required.is_current {
            let is_unread = required.last.as_ref().is_some_and(|last| last.problem.is_some());
            return required
                .checked
                .filter(|_| is_unread)
                .map(|checked| checked + AGAIN);
        }
        let paced = required.checked.filter(|_| !self.lanes.is_empty());
        let paced = paced.map_or(now, |checked| checked + PACE);
        Some(required.earliest.unwrap_or(now).max(paced))
    }

    /// Starts a check if one is due, and logs a changed result.
    pub(super) fn require_if_due(&mut self, turn: &mut Turn) {
        if self.require_due(turn.now).is_some_and(|due| due <= turn.now) {
            self.required.begun = Some(turn.now);
            // Every event from now on makes the result doubtful again.
            (self.required.is_current, self.required.is_later) = (true, true);
            self.required.doubted_later = None;
            turn.act(Action::Check);
        }
        self.say_required(turn);
    }

    /// Applies the result of a check.
    pub(super) fn on_checked(&mut self, checked: Checked, turn: &mut Turn) {
        let required = &mut self.required;
        let Some(begun) = required.begun.take() else {
            return;
        };
        let took = turn.now.saturating_duration_since(begun);
        required.checked = Some(begun);
        required.is_unsure &= !required.is_later;
        required.earliest = Some(turn.now + (took * SHARE).clamp(BURST, LONGEST_PAUSE));
        let later = required.doubted_later.take();
        match checked {
            Checked::Found(found) => {
                required.doubted = later;
                required.stamp.clone_from(&found.stamp);
                required.last = Some(found);
            }
            Checked::Panicked(text) => {
                required.doubted = later;
                required.last = Some(RequiredStatus {
                    checked_at: Some(turn.at),
                    problem: Some(text),
                    stamp: required.stamp.clone(),
                    ..RequiredStatus::default()
                });
            }
            // Other decisions find out whether containerd is away, and log that.
            Checked::Failed(why) => {
                turn.say(Line::debug(format!("cannot check the required images: {why}")));
                required.doubted = required.doubted.or(later);
                required.lose(turn.now);
                required.earliest = Some(turn.now + PACE);
            }
        }
        self.say_required(turn);
    }

    /// Returns the order in which images are imported and unpacked: first those that match
    /// `priority`, then the required images, as far as they are known.
    pub(crate) fn order_of_images(&self) -> Vec<Pattern> {
        let required = self.required.last.iter().flat_map(|last| &last.names);
        let required = required.filter_map(|name| name.parse().ok());
        self.settings.priority.iter().cloned().chain(required).collect()
    }

    /// Returns the daemon's answer to a client, or `None` if the configuration requires nothing.
    pub(crate) fn required_status(&self, now: Instant) -> Option<RequiredStatus> {
        if self.settings.require.is_empty() {
            return None;
        }
        let doubted = self.required.doubted.or(self.required.doubted_later);
        Some(RequiredStatus {
            is_current: self.current_result().is_some(),
            is_unsure: self.required.is_unsure,
            doubted_for: doubted.map(|doubted| now.saturating_duration_since(doubted)),
            ..self.required.last.clone().unwrap_or_default()
        })
    }

    /// Returns the last result, unless something makes it doubtful.
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

    /// Logs the missing images, once for each change. Bundles that are still on their way may bring
    /// them, so the line waits for these.
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
        Phase::Waiting(_) | Phase::Done | Phase::Ignored(_) | Phase::Failed { .. } => false,
    }
}

fn sentence(found: &RequiredStatus) -> String {
    if let Some(problem) = &found.problem {
        return format!("cannot check the required images: {problem}");
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
    use std::ffi::OsStr;

    use containerd::{ImageChange, ImageEvent};
    use jiff::Timestamp;

    use super::super::Event;
    use super::super::claims::{after, drop_in, image, said, world};
    use super::super::line::Level;
    use super::super::model::{World, digest};
    use super::*;
    use crate::images::folder::{Settle, Why};
    use crate::settings::{Reloaded, Settings};
    use crate::status::MissingStatus;

    const SECOND: Duration = Duration::from_secs(1);

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
            names: vec![super::super::claims::image(1)],
            ..RequiredStatus::default()
        }
    }

    /// Returns a world that has just begun a check.
    fn checking() -> World {
        let mut world = world();
        world.go_on();
        assert!(world.checking.is_some());
        world
    }

    fn end(world: &mut World, checked: Checked) {
        assert!(world.checking.take().is_some(), "no check runs");
        world.take(Event::Checked(checked));
    }

    /// Changes a record of another program.
    fn change(world: &mut World) {
        world.take(Event::Changed(ImageEvent {
            name: "registry.test/other:1".to_owned(),
            kind: ImageChange::Created,
        }));
    }

    /// Returns the time until the next check.
    fn wait(world: &mut World) -> Option<Duration> {
        let now = world.turn().now;
        let due = world.state.require_due(now)?;
        Some(due.saturating_duration_since(now))
    }

    /// Returns the daemon's answer to a client.
    fn status(world: &mut World) -> Option<RequiredStatus> {
        let now = world.turn().now;
        world.state.required_status(now)
    }

    /// Returns the age of the first doubt that no ended check covers.
    fn doubt(world: &mut World) -> Option<Duration> {
        status(world).and_then(|status| status.doubted_for)
    }

    fn lines(turn: &Turn) -> Vec<(Level, Option<Outcome>, &str)> {
        let lines = turn.actions.iter().filter_map(|action| match action {
            Action::Say(line) => Some((line.level, line.outcome, line.text.as_str())),
            _ => None,
        });
        lines.collect()
    }

    #[test]
    fn a_check_follows_each_change_and_no_other_time() {
        let mut world = checking();
        end(&mut world, Checked::Found(found(0)));
        world.pass(SECOND);
        world.go_on();
        assert_eq!((wait(&mut world), world.checks), (None, 1));
        change(&mut world);
        assert_eq!(wait(&mut world), Some(Duration::ZERO));
        world.go_on();
        assert_eq!(world.checks, 2);
        // The check may not know of later events.
        change(&mut world);
        assert_eq!(wait(&mut world), None, "one at a time");
        end(&mut world, Checked::Found(found(0)));
        assert_eq!(wait(&mut world), Some(BURST));
    }

    #[test]
    fn a_check_that_takes_long_is_followed_by_a_pause_ten_times_as_long_unless_a_client_asks() {
        let mut world = checking();
        world.pass(3 * SECOND);
        end(&mut world, Checked::Found(found(0)));
        change(&mut world);
        assert_eq!(wait(&mut world), Some(30 * SECOND));
        world.pass(10 * SECOND);
        assert_eq!(wait(&mut world), Some(20 * SECOND));
        world.take(Event::CheckWanted);
        assert_eq!(wait(&mut world), Some(Duration::ZERO));
    }

    #[test]
    fn while_an_import_runs_a_check_begins_every_ten_seconds() {
        let mut world = checking();
        end(&mut world, Checked::Found(found(0)));
        drop_in(&mut world, "a.tar", &image(0), digest(1));
        world.go_on();
        world.pass(2 * SECOND);
        world.go_on();
        assert!(!world.state.lanes.is_empty());
        change(&mut world);
        assert_eq!(wait(&mut world), Some(8 * SECOND));
        world.pass(8 * SECOND);
        world.go_on();
        end(&mut world, Checked::Found(found(0)));
        change(&mut world);
        assert_eq!(wait(&mut world), Some(PACE));
        // The import ends, and its records exist.
        for _ in 0..3 {
            world.end_job(OsStr::new("a.tar"));
        }
        assert!(world.state.lanes.is_empty());
        assert_eq!(wait(&mut world), Some(BURST));
    }

    #[test]
    fn nothing_is_checked_without_containerd_or_where_nothing_is_required() {
        let mut away = world();
        away.is_up = false;
        away.go_on();
        assert_eq!((wait(&mut away), away.checks), (None, 0));
        assert!(status(&mut away).is_some_and(|found| !found.is_current));
        let mut world = world();
        world.state.settings = Settings::default().into();
        world.go_on();
        assert_eq!((wait(&mut world), world.checks), (None, 0));
        assert_eq!(status(&mut world), None);
    }

    #[test]
    fn a_check_that_fails_keeps_the_last_result_and_is_made_again_after_ten_seconds() {
        let mut world = checking();
        end(&mut world, Checked::Found(found(2)));
        world.take(Event::CheckWanted);
        world.go_on();
        let failed = Checked::Failed("it is away".to_owned());
        world.checking = None;
        let turn = after(&mut world, Event::Checked(failed));
        assert!(lines(&turn).iter().all(|(level, ..)| *level == Level::Debug));
        assert_eq!(wait(&mut world), Some(PACE));
        let status = status(&mut world).unwrap();
        assert_eq!((status.missing.len(), status.is_current), (2, false));
    }

    #[test]
    fn a_check_that_panics_has_no_answer_and_its_text_is_said_once() {
        let mut world = checking();
        for _ in 0..3 {
            end(&mut world, Checked::Panicked("a panic: no way".to_owned()));
            let status = status(&mut world).unwrap();
            assert_eq!(status.problem.as_deref(), Some("a panic: no way"));
            assert!(status.is_current && status.checked_at.is_some() && status.summary().is_none());
            world.take(Event::CheckWanted);
            world.go_on();
        }
        assert_eq!(
            said(&world, "cannot check the required images: a panic: no way"),
            1
        );
    }

    #[test]
    fn a_doubt_is_as_old_as_the_first_event_that_no_ended_check_covers() {
        let mut world = checking();
        end(&mut world, Checked::Found(found(0)));
        assert_eq!(doubt(&mut world), None);
        change(&mut world);
        world.pass(2 * SECOND);
        world.go_on();
        assert!(world.checking.is_some());
        world.pass(SECOND);
        change(&mut world);
        world.pass(SECOND);
        change(&mut world);
        // The running check covers the first event, and has not ended.
        assert_eq!(doubt(&mut world), Some(4 * SECOND));
        end(&mut world, Checked::Found(found(0)));
        assert_eq!(
            doubt(&mut world),
            Some(SECOND),
            "it began before the second event"
        );
        // A check that failed covers nothing.
        world.pass(60 * SECOND);
        world.go_on();
        end(&mut world, Checked::Failed("it is away".to_owned()));
        assert_eq!(doubt(&mut world), Some(61 * SECOND));
        world.pass(PACE);
        world.go_on();
        end(&mut world, Checked::Found(found(0)));
        assert_eq!(doubt(&mut world), None);
    }

    #[test]
    fn the_pause_after_a_long_check_is_shorter_than_a_doubtful_result_holds() {
        let mut world = checking();
        world.pass(8 * SECOND);
        end(&mut world, Checked::Found(found(0)));
        change(&mut world);
        assert_eq!(wait(&mut world), Some(LONGEST_PAUSE));
        let with_checks = LONGEST_PAUSE + 2 * 15 * SECOND;
        assert!(with_checks <= crate::ready::TRUST);
    }

    #[test]
    fn sources_that_cannot_be_read_are_read_again_after_a_minute_without_an_event() {
        let mut world = checking();
        let unread = RequiredStatus {
            problem: Some("cannot read list.txt".to_owned()),
            ..found(0)
        };
        end(&mut world, Checked::Found(unread));
        assert_eq!(wait(&mut world), Some(AGAIN));
        assert!(status(&mut world).is_some_and(|status| status.is_current));
        world.pass(AGAIN);
        world.go_on();
        end(&mut world, Checked::Found(found(0)));
        assert_eq!(wait(&mut world), None);
    }

    #[test]
    fn a_reload_without_a_change_checks_again_and_drops_the_result_if_a_list_has_changed() {
        let stamped = |stamp: &str| RequiredStatus {
            stamp: Some(stamp.to_owned()),
            ..found(0)
        };
        let (same, other) = (Some("one".to_owned()), Some("two".to_owned()));
        for (stamp, is_dropped, line) in [
            (same, false, "nothing has changed"),
            (other, true, "files under `require` changed"),
            // A file system that does not answer may have other files.
            (None, true, "files under `require` changed"),
        ] {
            let mut world = checking();
            end(&mut world, Checked::Found(stamped("one")));
            let before = world.state.requirement();
            assert!(before.is_some());
            world.take(Event::Stamped(stamp.clone()));
            let reloaded = Reloaded {
                settings: (*world.state.settings).clone(),
                applied: Vec::new(),
                postponed: Vec::new(),
            };
            world.take(Event::Reloaded(Box::new(reloaded), None));
            assert_eq!(said(&world, line), 1, "{stamp:?}");
            assert_eq!(wait(&mut world), Some(Duration::ZERO), "{stamp:?}");
            let status = status(&mut world).unwrap();
            assert_eq!(status.checked_at.is_none(), is_dropped, "{stamp:?}");
            let now = world.state.requirement();
            assert_eq!(now.is_some(), stamp.is_some(), "{stamp:?}");
            assert_eq!(now == before, !is_dropped, "{stamp:?}");
        }
    }

    #[test]
    fn each_result_is_said_once_until_it_changes() {
        let mut world = checking();
        let missing = |names: &[&str]| {
            let mut found = found(names.len());
            for (image, name) in found.missing.iter_mut().zip(names) {
                (*name).clone_into(&mut image.reference);
            }
            Checked::Found(found)
        };
        let (many, others) = (["a", "b", "c", "d", "e", "f"], ["a", "b", "c", "d", "e", "g"]);
        let table: [(&[&str], usize); 8] = [
            (&["a"], 1),
            (&["a"], 0),
            (&["b"], 1),
            (&many, 1),
            // The line names five of them.
            (&others, 1),
            (&others, 0),
            (&[], 1),
            (&[], 0),
        ];
        for (names, wanted) in table {
            world.checking = None;
            let turn = after(&mut world, Event::Checked(missing(names)));
            let told = lines(&turn);
            assert_eq!(told.len(), wanted, "{names:?}: {told:?}");
            for (level, outcome, _) in told {
                let is_missing = !names.is_empty();
                let (warn, info) = ((Level::Warn, Some(Outcome::Missing)), (Level::Info, None));
                assert_eq!((level, outcome), if is_missing { warn } else { info });
            }
            world.take(Event::CheckWanted);
            world.go_on();
        }
    }

    #[test]
    fn nothing_is_said_while_a_bundle_is_on_its_way_unless_that_has_stalled() {
        let mut world = checking();
        drop_in(&mut world, "a.tar", &image(0), digest(1));
        world.go_on();
        assert!(world.state.roster.is_settling(OsStr::new("a.tar")));
        end(&mut world, Checked::Found(found(1)));
        world.go_on();
        assert_eq!(said(&world, "required images"), 0);
        let now = world.turn().now;
        let (until, why) = (now + 60 * SECOND, Why::Empty);
        let stalled = Settle::Stalled { until, why };
        world.state.roster.settle(OsStr::new("a.tar"), stalled);
        world.go_on();
        assert_eq!(said(&world, "1 of 9 required images is missing: a:0"), 1);
    }

    #[test]
    fn other_settings_drop_the_check_and_its_result_and_the_same_result_is_not_said_again() {
        let mut world = checking();
        end(&mut world, Checked::Found(found(1)));
        world.take(Event::CheckWanted);
        world.go_on();
        let reloaded = Reloaded {
            settings: (*world.state.settings).clone(),
            applied: vec!["require"],
            postponed: Vec::new(),
        };
        let turn = after(&mut world, Event::Reloaded(Box::new(reloaded), None));
        let is_aborted = |action: &&Action| matches!(action, Action::AbortCheck);
        assert_eq!(turn.actions.iter().filter(is_aborted).count(), 1);
        world.checking = None;
        let status = status(&mut world).unwrap();
        assert_eq!((status.missing.len(), status.checked_at), (0, None));
        world.go_on();
        end(&mut world, Checked::Found(found(1)));
        assert_eq!(said(&world, "required images is missing"), 1);
    }

    #[test]
    fn a_line_names_a_few_and_counts_the_others() {
        let table = [
            (0, "all 9 required images are there"),
            (1, "1 of 9 required images is missing: a:0"),
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
        assert!(sentence(&unknown).ends_with("images: x.yaml cannot be read"));
        assert_eq!(unknown.summary(), None);
    }

    #[test]
    fn required_images_come_after_those_with_priority_and_before_others() {
        let mut world = checking();
        let order = |world: &World| -> Vec<String> {
            world
                .state
                .order_of_images()
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        let before = order(&world);
        end(&mut world, Checked::Found(found(0)));
        let required = super::super::claims::image(1);
        assert_eq!(order(&world), [before, vec![required]].concat());
    }
}
