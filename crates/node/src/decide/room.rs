//! containerd's disk, as far as it can be seen from here: which bundles that waited for room fit by now, and whether blobs have
//! gone from the store without a word.
//!
//! No event tells of either, so both are looked at on a timer: one statvfs(2) and one stat(2).

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

/// How often the disk is looked at.
const LOOK: Duration = Duration::from_secs(4);
/// A bundle that waits for room is tried again after this long although nothing has changed that we know of.
const INSURANCE: Duration = Duration::from_secs(3600);

/// A folder changes its looks when a file comes or goes in it: device, inode, seconds and nanoseconds of its last change.
pub(crate) type Stamp = (u64, u64, i64, i64);

/// containerd's disk as it is.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    /// Less is free than `minFree`: nothing is imported or healed.
    pub(crate) below: Option<Shortage>,
    /// `None` where it cannot be told.
    pub(crate) disk: Option<Disk>,
    /// How the folder of the blobs looks; `None` where it is not there: nothing was ever committed, or everything was wiped.
    pub(crate) stamp: Option<Stamp>,
}

/// What was seen of the disk last.
#[derive(Debug)]
pub(crate) struct RoomState {
    next: Instant,
    /// Bundles that did not fit, with what they lacked.
    waiting: BTreeMap<OsString, Shortage>,
    below: Option<Shortage>,
    /// The disk as it was looked at last; `None` where it cannot be told.
    disk: Option<Disk>,
    stamp: Option<Stamp>,
    /// What the log says that kubelet finds scarce on the disk.
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

    /// Whether so little is free that nothing new is taken on.
    pub(crate) fn is_below(&self) -> bool {
        self.below.is_some()
    }

    /// How the disk is, for those who ask.
    pub(crate) fn status(&self, min_free: MinFree) -> Option<DiskStatus> {
        Some(DiskStatus::of(self.disk?, min_free, self.below.as_ref()))
    }

    /// Whether a bundle waits for space.
    pub(super) fn keeps_waiting(&self, name: &OsStr) -> bool {
        self.is_below() || self.waiting.contains_key(name)
    }
}

impl State {
    /// When the disk is to be looked at, where it can be seen.
    pub(super) fn room_due(&self) -> Option<Instant> {
        match &self.connection {
            Connection::Up(up) if up.has_store => Some(self.room.next),
            _ => None,
        }
    }

    /// Takes over how the disk is: whether anything may be imported each time, the rest when that is due.
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
        // Our own imports change the folder all the time; blobs that are lost meanwhile are noticed after them.
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
                let line = Line::warn(format!("nothing is imported or healed: {shortage}"));
                turn.say(line.outcome(Outcome::Full));
            }
            None if was_below => {
                turn.say(Line::info("there is enough space on containerd's disk again"));
            }
            Some(_) | None => {}
        }
    }

    /// Says what kubelet will find scarce on the disk once this bundle is there. Bundles that come while it is scarce have no
    /// word of it.
    pub(super) fn tell_scarce(&mut self, name: &OsStr, forecast: &Forecast, turn: &mut Turn) {
        for (what, warning) in forecast.warnings() {
            if self.room.scarce.insert(what) {
                turn.say(Line::warn(warning).bundle(name));
            }
        }
    }

    /// Has bundles tried again that fit by now.
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

    /// Another containerd may have another disk.
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
