//! Decides what to do next. Nothing here opens a file, talks to containerd, reads a clock or writes
//! to the log.
//!
//! `State` is everything that the daemon knows. An `Event` changes it, and a `Turn` collects the
//! consequences: the loop carries out `Action`s at once and waits for `Errand`s. Time and random
//! numbers come with the turn, so the same state, event and turn always give the same result.
//!
//! | module | subject |
//! |---|---|
//! | `listing` | changes by a listing of the folder, bundles that are gone |
//! | `admit` | the end of an upload, the next file, the names that it leaves to others |
//! | `lanes` | the lane of each job, jobs that give their lane away |
//! | `record` | changes by the end of a job: phase, ledger, next try |
//! | `compare` | missing parts in containerd, how soon to restore them, when to connect |
//! | `withdraw` | labels and pins that leave records |
//! | `follow` | bundles that another importer may import first (`coexistence`) |
//! | `room` | bundles that now fit on containerd's disk |
//! | `receipts` | files that receipts take the place of, receipts that no image needs |
//! | `require` | checks of the required images, and reports of the result |
//! | `unpack` | images to unpack ahead, and when |

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
pub(crate) mod receipts;
pub(crate) mod record;
pub(crate) mod reload;
pub(crate) mod require;
pub(crate) mod room;
pub(crate) mod unpack;
pub(crate) mod withdraw;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use bundle::Identity;
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
    /// The folders may have changed.
    Hinted,
    /// The images folders were listed, in their order. An error says why a folder cannot be listed,
    /// with the remedy.
    Listed(Vec<Result<Box<Seen>, String>>),
    /// A file that may be finished was examined.
    Looked(OsString, Version, Look),
    /// A file that is to be imported was opened.
    Opened(OsString, Version, Opening),
    /// A job ended, or reached a point where it needs an answer.
    Job(OsString, Box<Came>),
    /// The daemon is connected to containerd.
    Connected(Box<Facts>),
    /// The daemon could not connect to containerd.
    Unreached(Unreached),
    /// A call to containerd failed.
    Lost(Failed),
    /// The stream of containerd's events ended.
    Ended,
    /// A record or a blob changed.
    Changed(ImageEvent),
    /// A comparison's records and blobs were read, together with all records that carry these
    /// labels.
    Surveyed(Box<Survey>, Vec<String>),
    /// Labels and pins were removed, except from the records named here: another program changed
    /// them at that moment.
    Withdrawn(Box<Withdrawing>, Vec<String>),
    /// A file that the daemon needs no more was removed, or has to stay for this reason.
    Removed(OsString, Identity, Result<(), String>),
    /// Leases without a use were deleted. The leases of these receipts stay, although they have no
    /// file: no ledger here knew them. Each receipt has its path in the form of labels.
    Swept(BTreeSet<String>),
    /// The daemon looked for signs of other importers. The duration is the time that this took.
    Sighted(Box<Sight>, Duration),
    /// containerd lists blobs whose files are missing in its store.
    FilesLost,
    /// A client asks for another check of the required images.
    CheckWanted,
    /// The stamps of the files under `require` were read. `None`: a file system does not answer.
    Stamped(Option<String>),
    /// The check of the required images has ended.
    Checked(Checked),
    /// Unpacking ahead made progress.
    Unpacking(UnpackProgress),
    /// The configuration was read again. With a connection, the second value is the fingerprint of
    /// the settings that decide over imports.
    Reloaded(Box<Reloaded>, Option<String>),
    /// The configuration was read again and has the mistakes in this text.
    Misread(String),
}

/// The result of examining a file.
#[derive(Debug)]
pub(crate) enum Look {
    /// It has another identity than in the listing.
    Replaced,
    Refused(Refused),
    /// The reason why it cannot be read.
    Unreadable(String),
    /// It changed so recently that its timestamps may not show another change for this long.
    Indistinct(Duration),
    Seen(Observation),
    /// It is a folder. Only reading it tells whether it is whole.
    Layout,
}

/// The result of opening a file.
#[derive(Debug)]
pub(crate) enum Opening {
    /// It has another identity than in the listing.
    Replaced,
    Refused(Refused),
    /// It is open. The value describes the end of the file: `None` for a folder and for a file
    /// whose end cannot be read.
    Open(Option<Ending>),
}

/// A failed attempt to connect to containerd.
#[derive(Debug)]
pub(crate) struct Unreached {
    /// Text for the log, which has it once for each reason.
    pub(crate) text: String,
    /// The error of the operating system, if it adds to `text`.
    pub(crate) cause: Option<String>,
    /// True if the folder or the socket of this node is another one than at the daemon's start.
    pub(crate) is_elsewhere: bool,
}

/// A call to containerd that failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) text: String,
    /// True if a single message was too large. The connection is still good then.
    pub(crate) is_too_large: bool,
}

/// A thing to do at once, without waiting.
#[derive(Debug)]
pub(crate) enum Action {
    /// Write a line into the log.
    Say(Line),
    /// Save the ledger.
    Save,
    /// List the folders: [`Event::Listed`].
    List,
    /// Also watch these folders below the images folders.
    Watch(Vec<std::path::PathBuf>),
    /// Examine these files one by one, until an event arrives: [`Event::Looked`].
    Look(Vec<(OsString, Version)>),
    /// Open a file that is to be imported: [`Event::Opened`].
    Open(OsString, Version),
    /// Start a job for the file that was opened last. The job checks and reads the file.
    Start(Start),
    /// Remove a file that the daemon needs no more: [`Event::Removed`].
    Remove(OsString, Version),
    /// Import the bundle that the job of this file read, except for these names. Each name has its
    /// reason.
    Import(OsString, BTreeMap<String, String>),
    /// Pull the images of the list that the job of this file read.
    Pull(OsString),
    /// Drop the work of this file's job. The job ends as [`Came::Dropped`].
    Abort(OsString),
    /// Count the finished job of this file in the metrics, from its report.
    Count(OsString),
    /// Count a restored bundle in the metrics.
    CountRestored,
    /// Log the report of this file's import. If the flag is true, the file gets lines of its own.
    Report(OsString, bool),
    /// Drop the connection.
    Disconnect,
    /// Start a check of the required images: [`Event::Checked`].
    Check,
    /// Drop the running check. It sends no event.
    AbortCheck,
    /// Start unpacking these images in this order: [`Event::Unpacking`].
    Unpack(Vec<Ahead>),
    /// Stop unpacking ahead after the current layer.
    InterruptUnpacking,
    /// Check whether containerd's store lacks files of the ledger's blobs: [`Event::FilesLost`].
    CheckFiles,
    /// Use the new settings.
    Adopt,
}

/// A task in containerd that the loop waits for.
#[derive(Debug)]
pub(crate) enum Errand {
    /// Connect: [`Event::Connected`] or [`Event::Unreached`].
    Connect,
    /// Read what a comparison needs, and the records with these labels: [`Event::Surveyed`]. After
    /// a reboot of the machine, the survey checks every blob. It reads the resources of the
    /// `unread` leases of receipts, and leaves out those that lack a blob.
    Survey {
        labels: Vec<String>,
        is_new_boot: bool,
        unread: BTreeSet<String>,
    },
    /// Remove labels and pins: [`Event::Withdrawn`].
    Withdraw(Box<Withdrawing>),
    /// Delete the leases of bundles and receipts, except those whose ids begin with one of the
    /// `kept` prefixes: [`Event::Swept`]. `ended` has the paths of receipts that were gone when the
    /// ledger forgot them. Of other receipts without a file, the leases stay.
    Sweep {
        kept: Vec<String>,
        ended: BTreeSet<String>,
    },
    /// Look for signs of other importers: [`Event::Sighted`].
    Sight,
}

/// A job to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) name: OsString,
    pub(crate) version: Version,
    pub(crate) lane: Lane,
    /// True if its checksum file needs no check.
    pub(crate) is_checked: bool,
    /// True if the log announces the start at the usual level.
    pub(crate) is_told: bool,
}

/// A step in a round of the loop. The loop carries out everything that a step decided before it
/// takes the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Send the requests to containerd that are due.
    Ask,
    /// Take on files and start the work outside the loop.
    Work,
}

/// Measurements for a step that no event reports.
#[derive(Debug, Default)]
pub(crate) struct Readings {
    /// containerd's disk, if it is visible. For [`Step::Ask`].
    pub(crate) room: Option<Room>,
    /// Progress of each job's work. For [`Step::Work`].
    pub(crate) marks: Vec<(OsString, Mark)>,
}

/// One decision: its time and its consequences.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) now: Instant,
    /// The same moment as time of day.
    pub(crate) at: Timestamp,
    chance: u64,
    pub(crate) actions: Vec<Action>,
    pub(crate) errands: Vec<Errand>,
}

impl Turn {
    /// Returns an empty turn at this time. All its random numbers follow from `chance`.
    pub(crate) fn new(now: Instant, at: Timestamp, chance: u64) -> Turn {
        Turn {
            now,
            at,
            chance,
            actions: Vec::new(),
            errands: Vec::new(),
        }
    }

    /// Returns the next random number.
    pub(crate) fn chance(&mut self) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014): a counter moves on by a constant, and mixing its
        // bits makes the results look unrelated.
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
    /// Applies an event.
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
            Event::Removed(name, identity, removed) => self.on_removed(&name, &identity, removed, turn),
            Event::Swept(unknown) => self.on_swept(unknown, turn),
            Event::Sighted(sight, took) => self.on_sight(&sight, took, turn),
            Event::FilesLost => self.compare_soon(turn.now),
            Event::Misread(mistakes) => self.on_misread(mistakes, turn),
            Event::CheckWanted => self.require_soon(turn.now),
            Event::Stamped(stamp) => self.on_stamped(stamp),
            Event::Checked(checked) => self.on_checked(checked, turn),
            Event::Unpacking(progress) => self.on_unpacking(progress, turn),
            Event::Reloaded(reloaded, fingerprint) => self.on_reload(*reloaded, fingerprint, turn),
        }
    }

    /// Decides one step of a round, which begins with [`Step::Ask`]. Continues with the next step,
    /// or breaks with the time of the next round. The time is `None` if only an event starts the
    /// next round.
    pub(crate) fn step(
        &mut self,
        step: Step,
        readings: Readings,
        turn: &mut Turn,
    ) -> ControlFlow<Option<Instant>, Step> {
        match step {
            Step::Ask => {
                self.ask(readings.room, turn);
                // A new connection needs a look at the disk and the records before the daemon takes
                // on a file.
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
        self.tend_receipts(turn);
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

    /// Returns the next time at which work is due without an event, or `None` if only events can
    /// bring work.
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
