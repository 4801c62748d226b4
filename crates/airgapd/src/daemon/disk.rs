//! containerd's disk, as far as it can be seen from here: whether there is room for what waits for room, and whether
//! blobs have gone from the store without a word.
//!
//! Nobody tells of either, so both are looked at on a timer: one statvfs(2) and one stat(2).

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use import::space::{Disk, Shortage};
use import::survey::any_without_file;
use tracing::{info, warn};

use super::{Connection, Daemon};
use crate::desired;
use crate::roster::Phase;
use crate::runtime;

/// How often the disk is looked at.
const LOOK: Duration = Duration::from_secs(4);
/// A bundle that waits for room is tried again after this long although nothing has changed that we know of.
const INSURANCE: Duration = Duration::from_secs(3600);

/// What was seen of the disk last.
pub(super) struct Watched {
    next: Instant,
    /// Bundles that did not fit, with what they lacked.
    waiting: BTreeMap<OsString, Shortage>,
    /// Less is free than `minFree`: nothing is imported or healed.
    is_below: bool,
    /// How the folder of the blobs looked.
    stamp: Option<Stamp>,
}

/// A folder changes its looks when a file comes or goes in it: device, inode, seconds and nanoseconds of its last change.
type Stamp = (u64, u64, i64, i64);

impl Watched {
    pub(super) fn new(now: Instant) -> Watched {
        Watched {
            next: now,
            waiting: BTreeMap::new(),
            is_below: false,
            stamp: None,
        }
    }

    /// Whether so little is free that nothing new is taken on.
    pub(super) fn is_below(&self) -> bool {
        self.is_below
    }
}

impl Daemon {
    /// When the disk is to be looked at, where it can be seen.
    pub(super) fn disk_due(&self) -> Option<Instant> {
        match &self.connection {
            Connection::Up(up) if up.runtime.store.is_some() => Some(self.disk.next),
            Connection::Up(_) | Connection::Down { .. } => None,
        }
    }

    /// Looks at the disk: at whether anything may be imported each time, at the rest when that is due.
    pub(super) fn look_at_disk(&mut self) {
        let Connection::Up(up) = &self.connection else {
            return;
        };
        let space = runtime::space(&self.settings, &up.runtime);
        self.take_over_minimum(space.below_minimum());
        let now = Instant::now();
        let Some(store) = space.store.filter(|_| self.disk.next <= now) else {
            return;
        };
        self.disk.next = now + LOOK;
        if !self.disk.is_below {
            self.wake_what_fits(&store);
        }
        self.look_for_losses(&store);
    }

    fn take_over_minimum(&mut self, shortage: Option<Shortage>) {
        let was_below = std::mem::replace(&mut self.disk.is_below, shortage.is_some());
        match shortage {
            Some(shortage) if !was_below => {
                warn!(outcome = "full", "nothing is imported or healed: {shortage}");
            }
            None if was_below => info!("there is enough space on containerd's disk again"),
            Some(_) | None => {}
        }
    }

    /// Has bundles tried again that fit by now.
    fn wake_what_fits(&mut self, store: &Path) {
        let (roster, waiting) = (&mut self.roster, &mut self.disk.waiting);
        if waiting.is_empty() {
            return;
        }
        let Ok(disk) = Disk::of(store) else { return };
        waiting.retain(|name, shortage| {
            let is_waiting = matches!(roster.phase(name), Some(Phase::Failed { retry: Some(_) }));
            let fits = shortage.is_over(disk);
            if is_waiting && fits {
                roster.set(name, Phase::Ready);
            }
            is_waiting && !fits
        });
    }

    /// Compares what the ledger knows with the files of the store when some of those have come or gone. Our own imports
    /// change the folder all the time; what is lost meanwhile is noticed after them.
    fn look_for_losses(&mut self, store: &Path) {
        let stamp = stamp_of(&store.join("blobs/sha256"));
        if !self.jobs.is_empty() || stamp == self.disk.stamp {
            return;
        }
        self.disk.stamp = stamp;
        if any_without_file(store, &desired::digests(&self.ledger)) {
            self.compare_soon();
        }
    }

    /// Lets a bundle wait until there is room for it.
    pub(super) fn wait_for_room(&mut self, name: &OsStr, shortage: &Shortage) {
        self.disk.waiting.insert(name.to_owned(), shortage.clone());
        self.roster.postpone(name, Instant::now() + INSURANCE);
    }

    /// Another containerd may have another disk.
    pub(super) fn forget_disk(&mut self) {
        for (name, _) in std::mem::take(&mut self.disk.waiting) {
            if matches!(self.roster.phase(&name), Some(Phase::Failed { retry: Some(_) })) {
                self.roster.set(&name, Phase::Ready);
            }
        }
        self.disk.stamp = None;
        self.disk.next = Instant::now();
    }
}

/// `None` where the folder is not there: nothing was ever committed, or everything was wiped.
fn stamp_of(folder: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(folder).ok()?;
    Some((
        metadata.dev(),
        metadata.ino(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    ))
}
