//! Unpack-ahead: when the daemon unpacks images of finished bundles, which images it unpacks, and
//! what it does after a failure.
//!
//! An import unpacks its images while it sends others (`UnpackWhen::Meanwhile`). This module
//! decides about the rest. That work runs outside the loop and never during an import, because
//! names come first: an import that starts stops it after the current layers. containerd knows
//! everything that was unpacked, so the daemon remembers none of it. After a restart, one listing
//! shows what is left. With `unpack: before-record`, an import unpacks all of its images, and this
//! module only handles images that were there before.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use basics::backoff::Backoff;
use basics::counted;
use import::Pattern;
use import::unpack::{Ahead, Unpack};
use oci_spec::image::Digest;

use super::line::Line;
use super::{Action, Turn};
use crate::outcome::Outcome;
use crate::state::State;
use crate::state::ledger::Ledger;
use crate::status::{UnpackFailureStatus, UnpackStatus};

/// The delays after a failure that no image is to blame for: a full disk, a lost containerd.
const AGAIN: Backoff = Backoff {
    first: Duration::from_secs(5),
    longest: Duration::from_secs(600),
};

/// A report from unpacking.
#[derive(Debug)]
pub(crate) enum UnpackProgress {
    /// Number of images that are not unpacked yet. This report comes first.
    Found(usize),
    /// An image was unpacked.
    Unpacked {
        name: String,
        target: Digest,
        /// Number of its layers that were unpacked now.
        layers: u64,
    },
    /// An image could not be unpacked.
    Failed {
        name: String,
        target: Digest,
        reason: String,
        /// True if the image itself is to blame, which makes a retry pointless.
        is_content: bool,
    },
    /// Unpacking ended.
    Ended(UnpackEnd),
}

/// The end of unpacking.
#[derive(Debug)]
pub(crate) enum UnpackEnd {
    /// Nothing is left to do.
    Done,
    /// It was interrupted before its end.
    Stopped,
    /// No further image could be unpacked, for this reason.
    Failed(String),
}

/// The daemon's knowledge of unpacking.
#[derive(Debug, Default)]
pub(crate) struct UnpackState {
    is_running: bool,
    /// True if nothing has happened since unpacking began that could leave more to do.
    is_current: bool,
    /// Unpacking does not begin before this time.
    earliest: Option<Instant>,
    /// Number of failures in a row.
    failures: u32,
    /// Number of images that still need unpacking, as far as the daemon knows.
    pending: usize,
    /// Images that cannot be unpacked. This run of the daemon does not retry them.
    bad: HashMap<Digest, UnpackFailureStatus>,
    /// The last failure in the log.
    said: Option<String>,
}

impl UnpackState {
    /// Notes that there may be more to unpack.
    pub(super) fn doubt(&mut self) {
        self.is_current = false;
    }

    /// Postpones unpacking, longer after each failure.
    fn put_off(&mut self, why: String, turn: &mut Turn) {
        let wait = AGAIN.wait(self.failures, turn.chance());
        self.failures = self.failures.saturating_add(1);
        self.is_current = false;
        self.earliest = Some(turn.now + wait);
        if self.said.as_ref() != Some(&why) {
            let text = format!("images are not unpacked, retrying in {wait:?}: {why}");
            turn.say(Line::warn(text));
            self.said = Some(why);
        }
    }
}

impl State {
    /// Returns the time at which unpacking is due, or `None` if it is not due.
    pub(super) fn unpack_due(&self, now: Instant) -> Option<Instant> {
        let is_wanted = self.settings.unpack != Unpack::None && self.connection.is_up();
        let is_time = self.lanes.is_empty() && !self.is_draining && !self.room.is_below();
        let is_due = is_wanted && is_time && !self.unpack.is_current && !self.unpack.is_running;
        is_due.then(|| self.unpack.earliest.unwrap_or(now))
    }

    /// Starts unpacking if it is due and there are images to unpack.
    pub(super) fn unpack_if_due(&mut self, turn: &mut Turn) {
        if self.unpack_due(turn.now).is_none_or(|due| due > turn.now) {
            return;
        }
        let desired = self.ledger.desired_images();
        let desired: HashSet<&Digest> = desired.values().map(|(wanted, _)| *wanted).collect();
        self.unpack.bad.retain(|target, _| desired.contains(target));
        let images = wanted(&self.ledger, &self.order_of_images(), &self.unpack.bad);
        self.unpack.is_current = true;
        if images.is_empty() {
            self.unpack.pending = 0;
            (self.unpack.failures, self.unpack.said) = (0, None);
            return;
        }
        self.unpack.is_running = true;
        turn.act(Action::Unpack(images));
    }

    /// Stops unpacking after the current layer.
    pub(super) fn interrupt_unpacking(&self, turn: &mut Turn) {
        if self.unpack.is_running {
            turn.act(Action::InterruptUnpacking);
        }
    }

    /// Applies a report from unpacking.
    pub(super) fn on_unpacking(&mut self, progress: UnpackProgress, turn: &mut Turn) {
        let unpack = &mut self.unpack;
        match progress {
            UnpackProgress::Found(images) => {
                unpack.pending = images;
                if images > 0 {
                    turn.say(Line::info(format!(
                        "unpacking {} ahead",
                        counted(images, "image")
                    )));
                }
            }
            UnpackProgress::Unpacked { name, target, layers } => {
                unpack.pending = unpack.pending.saturating_sub(1);
                let layers = counted(layers, "layer");
                let line = Line::info(format!("image unpacked: {layers}")).outcome(Outcome::Unpacked);
                turn.say(line.image(&name).digest(&target));
            }
            UnpackProgress::Failed {
                name,
                target,
                reason,
                is_content: true,
            } => {
                unpack.pending = unpack.pending.saturating_sub(1);
                let text = format!("image cannot be unpacked, so containers of it will not start: {reason}");
                let line = Line::error(text).outcome(Outcome::NotUnpacked);
                turn.say(line.image(&name).digest(&target));
                let digest = target.to_string();
                let failure = UnpackFailureStatus { name, digest, reason };
                unpack.bad.insert(target, failure);
            }
            // The report of the end says more.
            UnpackProgress::Failed {
                is_content: false, ..
            } => {}
            UnpackProgress::Ended(end) => self.on_unpack_end(end, turn),
        }
    }

    fn on_unpack_end(&mut self, end: UnpackEnd, turn: &mut Turn) {
        let unpack = &mut self.unpack;
        unpack.is_running = false;
        match end {
            UnpackEnd::Done => {
                unpack.failures = 0;
                unpack.said = None;
                // The files of bundles may have waited for it.
                self.receipts.tend_soon();
            }
            UnpackEnd::Stopped => unpack.is_current = false,
            UnpackEnd::Failed(why) => unpack.put_off(why, turn),
        }
    }

    /// Returns true if these images are unpacked, or if nothing is to be unpacked. Unpacking has
    /// then ended after the last change.
    pub(super) fn is_unpacked<'d>(&self, mut targets: impl Iterator<Item = &'d Digest>) -> bool {
        let unpack = &self.unpack;
        let has_ended = unpack.is_current && !unpack.is_running && unpack.failures == 0;
        self.settings.unpack == Unpack::None
            || has_ended && !targets.any(|target| unpack.bad.contains_key(target))
    }

    /// Returns the daemon's answer to a client, or `None` if nothing is unpacked ahead.
    pub(crate) fn unpack_status(&self) -> Option<UnpackStatus> {
        if self.settings.unpack == Unpack::None {
            return None;
        }
        let mut failed: Vec<_> = self.unpack.bad.values().cloned().collect();
        failed.sort_by(|a, b| a.name.cmp(&b.name));
        Some(UnpackStatus {
            running: self.unpack.is_running,
            pending: self.unpack.pending,
            problem: self.unpack.said.clone(),
            failed,
        })
    }
}

/// Returns the images that bundles vouch for, each target once. Images that match the first pattern
/// come first. Otherwise the order of arrival decides.
fn wanted(ledger: &Ledger, priority: &[Pattern], bad: &HashMap<Digest, UnpackFailureStatus>) -> Vec<Ahead> {
    let mut images: Vec<(usize, u64, Ahead)> = Vec::new();
    for (name, (target, entry)) in ledger.desired_images() {
        let closure = ledger.closure(target).unwrap_or_default();
        if bad.contains_key(target) || closure.is_empty() {
            continue;
        }
        let matching = priority.iter().position(|pattern| pattern.matches(name));
        let image = Ahead {
            name: name.to_owned(),
            target: target.clone(),
            closure: closure.to_vec(),
            is_wanted: matching.is_some(),
        };
        images.push((matching.unwrap_or(priority.len()), entry.arrival, image));
    }
    images.sort_by_key(|(rank, arrival, _)| (*rank, *arrival));
    let mut seen = HashSet::new();
    let images = images.into_iter().map(|(_, _, image)| image);
    images.filter(|image| seen.insert(image.target.clone())).collect()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use import::labels;

    use super::super::Event;
    use super::super::claims::{after, drop_in, image, run, said, shortage, world};
    use super::super::line::Level;
    use super::super::model::{World, digest};
    use super::super::room::Room;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Returns a world that has just begun to unpack an image.
    fn unpacking() -> World {
        let mut world = world();
        import(&mut world, "a.tar", 0, 1);
        // A comparison follows each import.
        world.pass(SECOND);
        world.go_on();
        assert!(world.unpacking.is_some());
        world
    }

    /// Imports a bundle of one image.
    fn import(world: &mut World, name: &str, number: u64, target: u64) {
        drop_in(world, name, &image(number), digest(target));
        run(world);
        for _ in 0..3 {
            world.end_job(OsStr::new(name));
        }
    }

    fn end(world: &mut World, end: UnpackEnd) {
        world.unpacking.take().expect("images are being unpacked");
        world.take(Event::Unpacking(UnpackProgress::Ended(end)));
    }

    fn failed(number: u64, is_content: bool) -> Event {
        Event::Unpacking(UnpackProgress::Failed {
            name: image(number),
            target: digest(number + 1),
            reason: "a bad layer".to_owned(),
            is_content,
        })
    }

    /// Returns the time until unpacking is due.
    fn wait(world: &mut World) -> Option<Duration> {
        let now = world.turn().now;
        let due = world.state.unpack_due(now)?;
        Some(due.saturating_duration_since(now))
    }

    fn targets(world: &World) -> Option<Vec<Digest>> {
        let images = world.unpacking.as_ref()?.images.iter();
        Some(images.map(|image| image.target.clone()).collect())
    }

    fn status(world: &World) -> UnpackStatus {
        world.state.unpack_status().expect("images are unpacked ahead")
    }

    #[test]
    fn images_are_unpacked_after_their_import_and_again_only_when_something_has_happened() {
        let mut world = unpacking();
        assert_eq!(targets(&world), Some(vec![digest(1)]));
        world.take(Event::Unpacking(UnpackProgress::Found(1)));
        assert_eq!((status(&world).running, status(&world).pending), (true, 1));
        assert_eq!(said(&world, "unpacking 1 image ahead"), 1);
        world.go_on_unpacking();
        assert_eq!((status(&world).running, status(&world).pending), (true, 0));
        world.go_on_unpacking();
        world.pass(SECOND);
        world.go_on();
        assert_eq!((wait(&mut world), status(&world).running), (None, false));
        // A comparison finds what other programs removed.
        let now = world.turn().now;
        world.state.compare_soon(now);
        world.go_on();
        assert!(world.unpacking.is_some());
    }

    #[test]
    fn after_a_failure_images_are_unpacked_later_each_time_and_that_is_said_once_for_each_reason() {
        let mut world = unpacking();
        let mut waits = Vec::new();
        for _ in 0..10 {
            end(&mut world, UnpackEnd::Failed("a panic: no way".to_owned()));
            let wait = wait(&mut world).unwrap();
            waits.push(wait);
            world.pass(wait - Duration::from_millis(1));
            world.go_on();
            assert!(world.unpacking.is_none());
            world.pass(Duration::from_millis(1));
            world.go_on();
        }
        for (failures, wait) in (0..).zip(&waits) {
            let whole = AGAIN.whole(failures);
            assert!(*wait <= whole && *wait >= whole * 3 / 4, "{waits:?}");
        }
        assert!(waits[9] > 400 * SECOND, "{waits:?}");
        assert_eq!(said(&world, "images are not unpacked"), 1);
        assert_eq!(status(&world).problem.as_deref(), Some("a panic: no way"));
        end(&mut world, UnpackEnd::Failed("the disk is full".to_owned()));
        assert_eq!(said(&world, "images are not unpacked"), 2);
        // After a success, the next failure counts as the first one.
        world.pass(600 * SECOND);
        world.go_on();
        end(&mut world, UnpackEnd::Done);
        assert_eq!(status(&world).problem, None);
        world.state.unpack.doubt();
        world.go_on();
        end(&mut world, UnpackEnd::Failed("the disk is full".to_owned()));
        assert_eq!(said(&world, "images are not unpacked"), 3);
        assert!(wait(&mut world).unwrap() <= AGAIN.first);
    }

    #[test]
    fn an_import_that_begins_interrupts_unpacking_which_goes_on_after_it() {
        let mut world = unpacking();
        drop_in(&mut world, "b.tar", &image(7), digest(7));
        run(&mut world);
        assert!(world.unpacking.as_ref().is_some_and(|work| work.is_interrupted));
        end(&mut world, UnpackEnd::Stopped);
        world.pass(3600 * SECOND);
        world.go_on();
        assert_eq!(
            (wait(&mut world), said(&world, "images are not unpacked")),
            (None, 0)
        );
        for _ in 0..3 {
            world.end_job(OsStr::new("b.tar"));
        }
        assert_eq!(wait(&mut world), Some(Duration::ZERO));
        world.go_on();
        assert_eq!(targets(&world), Some(vec![digest(1), digest(7)]));
    }

    #[test]
    fn an_image_that_cannot_be_unpacked_is_said_and_not_tried_again_while_a_bundle_has_it() {
        let mut world = unpacking();
        world.take(Event::Unpacking(UnpackProgress::Found(1)));
        let turn = after(&mut world, failed(0, true));
        let [Action::Say(line)] = &turn.actions[..] else {
            panic!("{turn:?}")
        };
        assert_eq!(
            (line.level, line.outcome),
            (Level::Error, Some(Outcome::NotUnpacked))
        );
        assert_eq!(line.digest.as_deref(), Some(digest(1).as_ref()));
        assert_eq!((status(&world).pending, status(&world).failed.len()), (0, 1));
        end(&mut world, UnpackEnd::Done);
        world.state.unpack.doubt();
        world.go_on();
        assert!(world.unpacking.is_none());
        // A new bundle has another image under that name.
        import(&mut world, "a.tar", 0, 9);
        world.go_on();
        assert_eq!(targets(&world), Some(vec![digest(9)]));
        assert!(status(&world).failed.is_empty());
    }

    #[test]
    fn an_image_that_is_not_to_blame_is_tried_again() {
        let mut world = unpacking();
        world.take(Event::Unpacking(UnpackProgress::Found(1)));
        let turn = after(&mut world, failed(0, false));
        assert!(turn.actions.is_empty(), "the end says more: {turn:?}");
        assert_eq!((status(&world).pending, status(&world).failed.len()), (1, 0));
        end(&mut world, UnpackEnd::Failed("the disk is full".to_owned()));
        world.pass(AGAIN.first);
        world.go_on();
        assert_eq!(targets(&world), Some(vec![digest(1)]));
    }

    #[test]
    fn nothing_is_unpacked_below_the_minimum_while_the_daemon_stops_or_where_that_is_not_wanted() {
        for obstacle in ["below", "draining", "none", "away"] {
            let mut world = unpacking();
            end(&mut world, UnpackEnd::Stopped);
            assert_eq!(wait(&mut world), Some(Duration::ZERO));
            match obstacle {
                "below" => {
                    let below = shortage(1);
                    let (disk, stamp) = (None, None);
                    let mut turn = world.turn();
                    world.state.on_room(Room { below, disk, stamp }, &mut turn);
                }
                "draining" => world.state.is_draining = true,
                "none" => {
                    let settings = crate::settings::Settings {
                        unpack: Unpack::None,
                        ..(*world.state.settings).clone()
                    };
                    world.state.settings = settings.into();
                    assert_eq!(world.state.unpack_status(), None);
                }
                _ => {
                    world.is_up = false;
                    world.take(Event::Ended);
                }
            }
            assert_eq!(wait(&mut world), None, "{obstacle}");
            world.go_on();
            assert!(world.unpacking.is_none(), "{obstacle}");
        }
    }

    #[test]
    fn images_of_the_first_pattern_come_first_then_those_that_arrived_first_and_each_target_once() {
        let mut world = world();
        let images = [
            ("z.tar", 4, 4),
            ("b.tar", 2, 2),
            ("c.tar", 3, 4),
            ("a.tar", 1, 1),
            ("d.tar", 5, 5),
        ];
        for (file, name, target) in images {
            drop_in(&mut world, file, &image(name), digest(target));
            world.settle();
        }
        let priority = |patterns: &[&str]| -> Vec<u64> {
            let patterns: Vec<Pattern> = patterns.iter().map(|text| text.parse().unwrap()).collect();
            let bad = HashMap::from([(
                digest(5),
                UnpackFailureStatus {
                    name: image(5),
                    digest: digest(5).to_string(),
                    reason: String::new(),
                },
            )]);
            let images = wanted(&world.state.ledger, &patterns, &bad);
            let number = |image: &Ahead| (1..9).find(|number| digest(*number) == image.target);
            images.iter().filter_map(number).collect()
        };
        assert_eq!(priority(&[]), [4, 2, 1]);
        assert_eq!(priority(&["*app:1", "*app:2"]), [1, 2, 4]);
        assert_eq!(priority(&["*app:2"]), [2, 4, 1]);
        assert!(world.records[&image(1)].labels.contains_key(labels::PINNED));
    }
}
