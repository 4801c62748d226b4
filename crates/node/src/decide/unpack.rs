//! Unpack-ahead: when the daemon unpacks images of finished bundles, which of them, and what it does after a failure.
//!
//! Unpacking goes on outside the loop, one image after the other, and never while bundles are imported: names come first. An
//! import that begins has it stop after the layer under way. containerd knows everything that was unpacked, so the daemon
//! remembers none of it: after a restart one listing shows what is left. With `unpack: before-record` images come unpacked from
//! their import, and this is for those that were there before.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use basics::backoff::Backoff;
use import::Pattern;
use import::unpack::{Ahead, Unpack};
use oci_spec::image::Digest;

use super::line::Line;
use super::{Action, Turn};
use crate::outcome::Outcome;
use crate::state::State;
use crate::state::ledger::Ledger;
use crate::status::{UnpackFailureStatus, UnpackStatus};

/// The waits after a failure for which no image is to blame: a full disk, a containerd that goes away.
const AGAIN: Backoff = Backoff {
    first: Duration::from_secs(5),
    longest: Duration::from_secs(600),
};

/// How far unpacking has come.
#[derive(Debug)]
pub(crate) enum Progress {
    /// So many images are not unpacked yet. Comes first.
    Found(usize),
    /// An image is unpacked.
    Unpacked {
        name: String,
        target: Digest,
        /// How many of its layers were unpacked now.
        layers: u64,
    },
    /// An image could not be unpacked.
    Failed {
        name: String,
        target: Digest,
        reason: String,
        /// Whether the image itself is to blame, so that another try is pointless.
        is_content: bool,
    },
    /// Unpacking is over.
    Ended(End),
}

/// How unpacking ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Nothing is left to do.
    Done,
    /// It was interrupted.
    Stopped,
    /// Why no further image could be unpacked.
    Failed(String),
}

/// Unpacking as far as the daemon knows of it.
#[derive(Debug, Default)]
pub(crate) struct UnpackState {
    is_running: bool,
    /// Whether nothing has happened since unpacking began that could leave more to do.
    is_current: bool,
    /// It does not begin before.
    earliest: Option<Instant>,
    /// How many times in a row it failed.
    failures: u32,
    /// Images that are still to be unpacked, as far as is known.
    pending: usize,
    /// Images that cannot be unpacked. This run of the daemon does not try them again.
    bad: HashMap<Digest, UnpackFailureStatus>,
    /// The last line about a failure.
    said: Option<String>,
}

impl UnpackState {
    /// Something happened that may leave more to do.
    pub(super) fn doubt(&mut self) {
        self.is_current = false;
    }

    /// Has unpacking begin anew, later after each failure.
    fn put_off(&mut self, why: String, turn: &mut Turn) {
        let wait = AGAIN.wait(self.failures, turn.chance());
        self.failures = self.failures.saturating_add(1);
        self.is_current = false;
        self.earliest = Some(turn.now + wait);
        if self.said.as_ref() != Some(&why) {
            let text = format!("images are not unpacked, which is tried again in {wait:?}: {why}");
            turn.say(Line::warn(text));
            self.said = Some(why);
        }
    }
}

impl State {
    /// When unpacking is due; `None` where it is not.
    pub(super) fn unpack_due(&self, now: Instant) -> Option<Instant> {
        let is_wanted = self.settings.unpack != Unpack::None && self.connection.is_up();
        let is_time = self.lanes.is_empty() && !self.is_draining && !self.room.is_below();
        let is_due = is_wanted && is_time && !self.unpack.is_current && !self.unpack.is_running;
        is_due.then(|| self.unpack.earliest.unwrap_or(now))
    }

    /// Begins to unpack if that is due and there are images for it.
    pub(super) fn unpack_if_due(&mut self, turn: &mut Turn) {
        if self.unpack_due(turn.now).is_none_or(|due| due > turn.now) {
            return;
        }
        let desired = self.ledger.desired_images();
        let desired: HashSet<&Digest> = desired.values().map(|(wanted, _)| *wanted).collect();
        self.unpack.bad.retain(|target, _| desired.contains(target));
        let images = wanted(&self.ledger, &self.settings.priority, &self.unpack.bad);
        self.unpack.is_current = true;
        if images.is_empty() {
            self.unpack.pending = 0;
            return;
        }
        self.unpack.is_running = true;
        turn.act(Action::Unpack(images));
    }

    /// Has unpacking stop after the layer under way.
    pub(super) fn interrupt_unpacking(&self, turn: &mut Turn) {
        if self.unpack.is_running {
            turn.act(Action::InterruptUnpacking);
        }
    }

    /// Takes over how far unpacking has come.
    pub(super) fn on_unpacking(&mut self, progress: Progress, turn: &mut Turn) {
        let unpack = &mut self.unpack;
        match progress {
            Progress::Found(images) => {
                unpack.pending = images;
                if images > 0 {
                    turn.say(Line::info(format!("unpacking {images} images ahead")));
                }
            }
            Progress::Unpacked { name, target, layers } => {
                unpack.pending = unpack.pending.saturating_sub(1);
                let line = Line::info(format!("image unpacked: {layers} layers")).outcome(Outcome::Unpacked);
                turn.say(line.image(&name).digest(&target));
            }
            Progress::Failed {
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
            // The end says more.
            Progress::Failed {
                is_content: false, ..
            } => {}
            Progress::Ended(end) => self.on_unpack_end(end, turn),
        }
    }

    fn on_unpack_end(&mut self, end: End, turn: &mut Turn) {
        let unpack = &mut self.unpack;
        unpack.is_running = false;
        match end {
            End::Done => {
                unpack.failures = 0;
                unpack.said = None;
            }
            End::Stopped => unpack.is_current = false,
            End::Failed(why) => unpack.put_off(why, turn),
        }
    }

    /// The daemon's answer to a client; `None` where nothing is unpacked ahead.
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

/// The images that bundles vouch for, each target once: those of the first pattern first, then in order of arrival.
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
        };
        images.push((matching.unwrap_or(priority.len()), entry.arrival, image));
    }
    images.sort_by_key(|(rank, arrival, _)| (*rank, *arrival));
    let mut seen = HashSet::new();
    let images = images.into_iter().map(|(_, _, image)| image);
    images.filter(|image| seen.insert(image.target.clone())).collect()
}
