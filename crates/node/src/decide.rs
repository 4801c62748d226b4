//! Decides what to do next. Nothing here opens a file, talks to containerd, reads a clock or writes
//! to the log.
//!
//! `State` is everything the daemon knows. An `Event` changes it, and a `Turn` collects what
//! follows: `Action`s, which the loop carries out at once, and `Errand`s, for which it waits. Time
//! and chance come with the turn, so that the same state, event and turn have the same result.
//!
//! | module | what it decides |
//! |---|---|
//! | `listing` | what a listing of the folder changes; which bundles are gone |
//! | `admit` | whether a file is finished, whose turn it is, which names it leaves to others |
//! | `lanes` | which job runs in which lane, and which gives way |
//! | `record` | what the end of a job changes: phase, ledger, next try |
//! | `compare` | what is missing in containerd, and how soon it is restored; when to connect |
//! | `withdraw` | whose labels and pins go |
//! | `follow` | which bundles are left to another importer first (`coexistence`) |
//! | `room` | which bundles fit on containerd's disk by now |
//! | `require` | when the daemon checks the required images, and what it says of them |
//! | `unpack` | which images are unpacked ahead, and when |

pub(crate) mod admit;
#[cfg(test)]
mod claims;
pub mod coexistence;
pub(crate) mod compare;
pub mod desired;
pub(crate) mod follow;
pub(crate) mod healing;
pub(crate) mod lanes;
pub(crate) mod line;
pub(crate) mod link;
pub(crate) mod listing;
#[cfg(test)]
mod model;
pub(crate) mod record;
pub(crate) mod reload;
pub(crate) mod require;
pub(crate) mod room;
pub(crate) mod unpack;
pub(crate) mod withdraw;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use containerd::ImageEvent;
use import::Survey;
use import::unpack::Ahead;
use jiff::Timestamp;

use self::coexistence::Sight;
use self::compare::{Connection, Facts};
use self::lanes::Lane;
use self::line::Line;
use self::listing::Seen;
use self::record::Came;
use self::require::Checked;
use self::room::Room;
use self::unpack::UnpackProgress;
use self::withdraw::Withdrawing;
use crate::images::folder::{Ending, Observation, Refused};
use crate::progress::Mark;
use crate::settings::Reloaded;
use crate::state::State;
use crate::state::roster::Version;

/// Something that happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// The folder may have changed.
    Hinted,
    /// The folder was listed, or cannot be: why, with the way out.
    Listed(Result<Box<Seen>, String>),
    /// A file was looked at that may be finished.
    Looked(OsString, Version, Look),
    /// A file was opened that is to be imported.
    Opened(OsString, Version, Opening),
    /// A job came to an end, or to a point where it needs an answer.
    Job(OsString, Box<Came>),
    /// There is a connection to containerd.
    Connected(Box<Facts>),
    /// There is none.
    Unreached(Unreached),
    /// A call failed.
    Lost(Failed),
    /// The stream of containerd's events has ended.
    Ended,
    /// A record or a blob changed.
    Changed(ImageEvent),
    /// Records and blobs were read for a comparison, with all records of these labels.
    Surveyed(Box<Survey>, Vec<String>),
    /// Labels and pins were taken back, but for these records: another program changed them at that
    /// moment.
    Withdrawn(Box<Withdrawing>, Vec<String>),
    /// Leases that nobody needs were given back.
    Swept,
    /// The signs of other importers were read, which took so long.
    Sighted(Box<Sight>, Duration),
    /// Files are missing in containerd's store, although it lists them.
    FilesLost,
    /// A client wants the required images checked once more.
    CheckWanted,
    /// The check of the required images has ended.
    Checked(Checked),
    /// Unpacking ahead has come further.
    Unpacking(UnpackProgress),
    /// The configuration was read again. With a connection: what now decides over imports.
    Reloaded(Box<Reloaded>, Option<String>),
    /// The configuration was read again and has these mistakes.
    Misread(String),
}

/// What a look at a file shows.
#[derive(Debug)]
pub(crate) enum Look {
    /// It has another identity than it was listed with.
    Replaced,
    Refused(Refused),
    /// Why it cannot be read.
    Unreadable(String),
    /// It changed so lately that a further change may not show for this long.
    Indistinct(Duration),
    Seen(Observation),
    /// It is a folder, which is known to be whole only after it was read.
    Layout,
}

/// What opening a file shows.
#[derive(Debug)]
pub(crate) enum Opening {
    /// It has another identity than it was listed with.
    Replaced,
    Refused(Refused),
    /// It is open. How it ends; `None` where that cannot be read, and for a folder.
    Open(Option<Ending>),
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) struct Unreached {
    /// For the log, once for each reason.
    pub(crate) text: String,
    /// What the system says to it, where it says more.
    pub(crate) cause: Option<String>,
    /// Whether the folder or the socket of this node are others than when the daemon began.
    pub(crate) is_elsewhere: bool,
}

/// A call to containerd that failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) text: String,
    /// Whether only one message was too large, and the connection is as good as before.
    pub(crate) is_too_large: bool,
}

/// Something to be done at once. None of it waits.
#[derive(Debug)]
pub(crate) enum Action {
    /// Write a line into the log.
    Say(Line),
    /// Write the ledger down.
    Save,
    /// List the folder: [`Event::Listed`].
    List,
    /// Watch these folders below the images folder, too.
    Watch(Vec<std::path::PathBuf>),
    /// Look at these files, one after the other, until there is something else to do:
    /// [`Event::Looked`].
    Look(Vec<(OsString, Version)>),
    /// Open a file that is to be imported: [`Event::Opened`].
    Open(OsString, Version),
    /// Start a job for the file that was opened last: it checks and reads the file.
    Start(Start),
    /// Import the bundle that the job of this file has read, but for these names, each with the
    /// reason.
    Import(OsString, BTreeMap<String, String>),
    /// Pull the images of the list that the job of this file has read.
    Pull(OsString),
    /// Drop the work of this file's job. It ends as [`Came::Dropped`].
    Abort(OsString),
    /// Count a finished job in the metrics, by its report.
    Count(OsString),
    /// Count a bundle in the metrics that was restored.
    CountRestored,
    /// Write the report of an import into the log, by name where that is so.
    Report(OsString, bool),
    /// Drop the connection.
    Disconnect,
    /// Begin to check the required images: [`Event::Checked`].
    Check,
    /// Drop the check under way. It has no end.
    AbortCheck,
    /// Begin to unpack these images, in this order: [`Event::Unpacking`].
    Unpack(Vec<Ahead>),
    /// Stop unpacking ahead after the layer under way.
    InterruptUnpacking,
    /// Find out whether files of the ledger's blobs are missing in containerd's store:
    /// [`Event::FilesLost`].
    CheckFiles,
    /// Other settings hold.
    Adopt,
}

/// Something to be done for which the loop waits.
#[derive(Debug)]
pub(crate) enum Errand {
    /// [`Event::Connected`] or [`Event::Unreached`].
    Connect,
    /// Read what a comparison needs, and records with these labels: [`Event::Surveyed`]. After a
    /// restart of the machine each blob is looked at.
    Survey { labels: Vec<String>, is_new_boot: bool },
    /// Take labels and pins back: [`Event::Withdrawn`].
    Withdraw(Box<Withdrawing>),
    /// Give the leases of bundles back, but for those whose ids begin so: [`Event::Swept`].
    Sweep(Vec<String>),
    /// Look for signs of other importers: [`Event::Sighted`].
    Sight,
}

/// A job to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) name: OsString,
    pub(crate) version: Version,
    pub(crate) lane: Lane,
    /// Whether it needs no look at its checksum file.
    pub(crate) is_checked: bool,
    /// Whether the log says at the usual level that the file is begun with.
    pub(crate) is_told: bool,
}

/// A step of a round of the loop. The loop carries out all that follows from one before the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Ask containerd whatever is due.
    Ask,
    /// Take on files, and begin the work that goes on outside the loop.
    Work,
}

/// How things are at a step, as far as no event tells.
#[derive(Debug, Default)]
pub(crate) struct Readings {
    /// containerd's disk, where it can be seen; for [`Step::Ask`].
    pub(crate) room: Option<Room>,
    /// How far the work of each job has come; for [`Step::Work`].
    pub(crate) marks: Vec<(OsString, Mark)>,
}

/// One decision: when it is made, and what follows.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) now: Instant,
    /// The same as the time of day.
    pub(crate) at: Timestamp,
    chance: u64,
    pub(crate) actions: Vec<Action>,
    pub(crate) errands: Vec<Errand>,
}

impl Turn {
    /// A turn at this time. All numbers by chance follow from `chance`.
    pub(crate) fn new(now: Instant, at: Timestamp, chance: u64) -> Turn {
        Turn {
            now,
            at,
            chance,
            actions: Vec::new(),
            errands: Vec::new(),
        }
    }

    /// A number by chance.
    pub(crate) fn chance(&mut self) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014): each step of a counter gives a number that looks
        // like none before.
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.chance;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    pub(crate) fn send(&mut self, errand: Errand) {
        self.errands.push(errand);
    }

    pub(crate) fn say(&mut self, line: Line) {
        self.actions.push(Action::Say(line));
    }
}

impl State {
    /// Takes over what happened.
    pub(crate) fn on(&mut self, event: Event, turn: &mut Turn) {
        match event {
            Event::Hinted => self.relist = true,
            Event::Listed(listed) => self.on_listed(listed, turn),
            Event::Looked(name, version, look) => self.on_look(&name, &version, look, turn),
            Event::Opened(name, version, opening) => self.on_opened(&name, version, opening, turn),
            Event::Job(name, came) => self.on_job(&name, *came, turn),
            Event::Connected(facts) => self.on_connected(*facts, turn),
            Event::Unreached(why) => self.on_unreached(&why, turn),
            Event::Lost(failed) => self.on_lost(&failed, turn),
            Event::Ended => self.go_away("containerd went away", turn),
            Event::Changed(change) => self.on_change(&change, turn),
            Event::Surveyed(survey, labels) => self.on_survey(*survey, labels, turn),
            Event::Withdrawn(withdrawing, untouched) => self.on_withdrawn(*withdrawing, &untouched, turn),
            Event::Swept => self.end_comparison(turn),
            Event::Sighted(sight, took) => self.on_sight(&sight, took, turn),
            Event::FilesLost => self.compare_soon(turn.now),
            Event::Misread(mistakes) => self.on_misread(mistakes, turn),
            Event::CheckWanted => self.require_soon(),
            Event::Checked(checked) => self.on_checked(checked, turn),
            Event::Unpacking(progress) => self.on_unpacking(progress, turn),
            Event::Reloaded(reloaded, fingerprint) => self.on_reload(*reloaded, fingerprint, turn),
        }
    }

    /// Decides one step of a round, which begins with [`Step::Ask`]. Gives the next step, or ends
    /// the round with the time of the next one: `None` where that has no time of its own and only
    /// an event brings it.
    pub(crate) fn step(
        &mut self,
        step: Step,
        readings: Readings,
        turn: &mut Turn,
    ) -> ControlFlow<Option<Instant>, Step> {
        match step {
            Step::Ask => {
                self.ask(readings.room, turn);
                // The disk and the records of a new connection are looked at before a file is taken
                // on.
                let is_connecting = matches!(self.connection, Connection::Trying);
                ControlFlow::Continue(if is_connecting { Step::Ask } else { Step::Work })
            }
            Step::Work => ControlFlow::Break(self.work(readings.marks, turn)),
        }
    }

    fn ask(&mut self, room: Option<Room>, turn: &mut Turn) {
        if std::mem::take(&mut self.relist) {
            turn.act(Action::List);
        }
        self.connect_if_due(turn);
        if let Some(room) = room {
            self.on_room(room, turn);
        }
        self.compare_if_due(turn);
        self.follow_if_due(turn);
    }

    fn work(&mut self, marks: Vec<(OsString, Mark)>, turn: &mut Turn) -> Option<Instant> {
        self.require_if_due(turn);
        self.unpack_if_due(turn);
        for line in self.rows.sum_up(turn.now) {
            turn.say(line);
        }
        if self.take_on(turn) {
            return Some(turn.now);
        }
        if self.lanes.is_empty() && std::mem::take(&mut self.unsaved) {
            turn.act(Action::Save);
        }
        self.lanes.note_progress(marks, turn.now);
        let idle_due = self.yield_lane(turn);
        idle_due.into_iter().chain(self.next_due(turn.now)).min()
    }

    /// When something is due although nothing happens; `None` where there is nothing to wait for.
    fn next_due(&self, now: Instant) -> Option<Instant> {
        let is_connected = self.connection.is_up();
        [
            self.roster.next_due(now, is_connected),
            self.connection.due(),
            self.following.next_look().filter(|_| is_connected),
            self.room_due(),
            self.rows.due(),
            self.require_due(now),
            self.unpack_due(now),
            self.relist.then_some(now),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}
