//! containerd's disk, if the daemon can see it: which waiting bundles fit by now, and whether blobs
//! disappeared from the store without an event.
//!
//! No event tells of free space or lost files, so a timer checks both: one statvfs(2) and one
//! stat(2).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

use import::space::{Disk, Forecast, MinFree, Scarce, Shortage};

use super::compare::Connection;
use super::line::Line;
use super::{Action, Turn};
use crate::outcome::Outcome;
use crate::state::State;
use crate::state::roster::Phase;
use crate::status::DiskStatus;

/// Time between two looks at the disk. The metrics file has the same pace, so that a wake-up serves
/// both.
pub(crate) const LOOK: Duration = Duration::from_secs(3);
/// Time after which the daemon retries a bundle that waits for room even if no change shows.
const INSURANCE: Duration = Duration::from_secs(3600);

/// Device, inode, seconds and nanoseconds of the last change of a folder. They differ after a file
/// came or went in it.
pub(crate) type Stamp = (u64, u64, i64, i64);

/// A look at containerd's disk.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    /// The shortage, if less is free than `minFree`. Nothing is imported or restored then.
    pub(crate) below: Option<Shortage>,
    /// Size and free space of the disk. `None` if they are unknown.
    pub(crate) disk: Option<Disk>,
    /// The stamp of the folder of blobs. `None` if the folder does not exist: nothing was ever
    /// committed, or everything was wiped.
    pub(crate) stamp: Option<Stamp>,
}

/// The daemon's knowledge of the disk.
#[derive(Debug)]
pub(crate) struct RoomState {
    next: Instant,
    /// Bundles that did not fit, with their shortage.
    waiting: BTreeMap<OsString, Shortage>,
    below: Option<Shortage>,
    /// The disk at the last look. `None` if it is unknown.
    disk: Option<Disk>,
    stamp: Option<Stamp>,
    /// Resources of the disk that the log calls scarce for kubelet.
    scarce: BTreeSet<Scarce>,
}

impl RoomState {
    pub(crate) fn new(now: Instant) -> RoomState {
        RoomState {
            next: now,
            waiting: BTreeMap::new(),
            below: None,
            disk: None,
            stamp: None,
            scarce: BTreeSet::new(),
        }
    }

    /// Returns true if less is free than `minFree`, so that the daemon takes on nothing new.
    pub(crate) fn is_below(&self) -> bool {
        self.below.is_some()
    }

    /// Returns the disk for the status.
    pub(crate) fn status(&self, min_free: MinFree) -> Option<DiskStatus> {
        Some(DiskStatus::of(self.disk?, min_free, self.below.as_ref()))
    }

    /// Returns true if a bundle waits for room.
    pub(super) fn keeps_waiting(&self, name: &OsStr) -> bool {
        self.is_below() || self.waiting.contains_key(name)
    }
}

impl State {
    /// Returns the time of the next look at the disk, or `None` if the daemon cannot see it.
    pub(super) fn room_due(&self) -> Option<Instant> {
        match &self.connection {
            Connection::Up(up) if up.has_store => Some(self.room.next),
            _ => None,
        }
    }

    /// Applies a look at the disk. The minimum counts each time, the rest when it is due.
    pub(super) fn on_room(&mut self, room: Room, turn: &mut Turn) {
        self.take_over_minimum(room.below, turn);
        if self.room_due().is_none_or(|due| due > turn.now) {
            return;
        }
        self.room.next = turn.now + LOOK;
        self.room.disk = room.disk;
        if let Some(disk) = room.disk {
            self.room.scarce.retain(|what| disk.is_scarce(*what));
        }
        if let Some(disk) = room.disk.filter(|_| !self.room.is_below()) {
            self.wake_what_fits(disk);
        }
        // The daemon's own imports change the folder all the time. It notices blobs that are lost
        // meanwhile after them.
        if self.lanes.is_empty() && room.stamp != self.room.stamp {
            self.room.stamp = room.stamp;
            turn.act(Action::CheckFiles);
        }
    }

    fn take_over_minimum(&mut self, shortage: Option<Shortage>, turn: &mut Turn) {
        let was_below = self.room.is_below();
        self.room.below = shortage;
        match &self.room.below {
            Some(shortage) if !was_below => {
                let line = Line::warn(format!("nothing is imported or restored: {shortage}"));
                turn.say(line.outcome(Outcome::Full));
            }
            None if was_below => {
                turn.say(Line::info("there is enough space on containerd's disk again"));
            }
            Some(_) | None => {}
        }
    }

    /// Logs which resources of the disk this bundle makes scarce for kubelet. A resource that was
    /// scarce before has its line already.
    pub(super) fn tell_scarce(&mut self, name: &OsStr, forecast: &Forecast, turn: &mut Turn) {
        for (what, warning) in forecast.warnings() {
            if self.room.scarce.insert(what) {
                turn.say(Line::warn(warning).bundle(name));
            }
        }
    }

    /// Queues the bundles that fit by now.
    fn wake_what_fits(&mut self, disk: Disk) {
        let (roster, waiting) = (&mut self.roster, &mut self.room.waiting);
        waiting.retain(|name, shortage| {
            let is_waiting = matches!(roster.phase(name), Some(Phase::Failed { retry: Some(_) }));
            let fits = shortage.is_over(disk);
            if is_waiting && fits {
                roster.queue(name);
            }
            is_waiting && !fits
        });
    }

    /// Lets a bundle wait until there is room for it.
    pub(super) fn wait_for_room(&mut self, name: &OsStr, shortage: &Shortage, now: Instant) {
        self.room.waiting.insert(name.to_owned(), shortage.clone());
        self.roster.postpone(name, now + INSURANCE);
    }

    /// Forgets the disk, since another containerd may have another one.
    pub(super) fn forget_room(&mut self, now: Instant) {
        for (name, _) in std::mem::take(&mut self.room.waiting) {
            if matches!(self.roster.phase(&name), Some(Phase::Failed { retry: Some(_) })) {
                self.roster.queue(&name);
            }
        }
        (self.room.stamp, self.room.disk) = (None, None);
        self.room.next = now;
    }
}
