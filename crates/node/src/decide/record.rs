//! Decides what the end of a job changes: the log line, the ledger, and whether and when the daemon
//! retries the file.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};

use bundle::{Identity, Release};
use import::Outcome;
use import::result::ImageOutcome;
use import::space::{Forecast, Shortage};
use oci_spec::image::Digest;

use super::compare::BURST;
use super::lanes::{Job, Stage};
use super::line::Line;
use super::{Action, Turn};
use crate::admit::Verdict;
use crate::images::{pull_list, sidecar};
use crate::outcome::Outcome as Said;
use crate::state::State;
use crate::state::ledger::{
    self, Carried, Crash, Crashes, Entry, ErrorClass, ImageEntry, Imported, LastError, RefusedBy, StandsFor,
};
use crate::state::roster::{Lack, Phase};

/// The result of a job, or a question that it waits with.
#[derive(Debug)]
pub(crate) enum Came {
    /// Another program is writing the checksum file at this moment.
    NotNow,
    /// The checksum does not allow an import of the file.
    Unverified(sidecar::Failure),
    /// The file was admitted, and the evidence for that cannot be written.
    NotKept(String),
    /// The file is a bundle, and its catalog was read. The job waits for an answer.
    Found(Box<Found>),
    /// The file is no bundle, or a damaged one.
    Bad(Bad),
    /// The file is a list of images to pull. The job waits for an answer.
    List {
        catalog: Digest,
        /// The reason for a refusal by the operator's trusted digests.
        distrust: Option<String>,
    },
    /// The file is a list of images but cannot be read.
    BadList(String),
    /// The import was carried out, in whole or in part.
    Imported(Box<Landed>),
    /// No part of the import was carried out.
    Untried(Stop),
    /// The images of a list were pulled, except those with a problem.
    Pulled {
        images: Vec<ImageEntry>,
        problems: Vec<String>,
    },
    /// The job panicked, with this cause and in this program. The daemon survives: a job shares
    /// nothing that it could leave half done.
    Panicked { cause: String, program: Option<String> },
    /// The work of the job was dropped.
    Dropped,
}

/// A bundle whose catalog was read.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// The records that the import will write, with their targets.
    pub(crate) records: BTreeMap<String, Digest>,
    /// The problem of the first image that is not whole.
    pub(crate) broken: Option<String>,
    /// The sign that the archive is an upload that was cut off.
    pub(crate) unfinished: Option<String>,
    /// True if an upload may still continue the file: it is cut off, or ends in room for more.
    pub(crate) may_go_on: bool,
    /// Digest of the bundle's catalog.
    pub(crate) catalog: Digest,
    /// The bundle that the file stands for, if it is a receipt.
    pub(crate) stands_for: Option<StandsFor>,
    /// The word of the node's rules on the bundle.
    pub(crate) verdict: Verdict,
}

/// A file that could not be read as a bundle.
#[derive(Clone, Debug)]
pub(crate) struct Bad {
    pub(crate) text: String,
    pub(crate) class: ErrorClass,
    /// True if an upload may still continue the file.
    pub(crate) may_go_on: bool,
    /// True if a limit was exceeded. The light lane has lower limits.
    pub(crate) is_beyond_limits: bool,
}

/// The result of an import.
#[derive(Clone, Debug)]
pub(crate) struct Landed {
    /// The file that was read.
    pub(crate) identity: Identity,
    pub(crate) catalog: Digest,
    /// The reason why there is no receipt, although the settings ask for one.
    pub(crate) kept: Option<String>,
    /// True if every blob of its images was read back from containerd, and a receipt was made.
    pub(crate) is_read_back: bool,
    /// True if the file lacks blobs of its images, as a delta or a receipt does.
    pub(crate) is_delta: bool,
    pub(crate) outcome: Outcome,
    /// True if any of its images is in containerd.
    pub(crate) has_landed: bool,
    pub(crate) images: Vec<LandedImage>,
    /// The digests that each target needs, including the target.
    pub(crate) closures: Vec<(Digest, Vec<Digest>)>,
    pub(crate) duration_ms: u64,
    /// Bytes sent to containerd.
    pub(crate) sent_bytes: u64,
    /// True if the bundle is at fault for the images that did not land.
    pub(crate) is_bundles_fault: bool,
    /// The reason for an early stop, if the import stopped early.
    pub(crate) stopped: Option<Stop>,
    /// Forecast for containerd's disk. `None` if nothing was missing, or the disk is invisible.
    pub(crate) forecast: Option<Forecast>,
    /// The release that the bundle carries.
    pub(crate) release: Option<Release>,
    /// The members of that release of which the bundle has nothing for this node.
    pub(crate) skipped: Vec<ImageEntry>,
}

/// One image of an import.
#[derive(Clone, Debug)]
pub(crate) struct LandedImage {
    pub(crate) name: String,
    pub(crate) target: Digest,
    pub(crate) outcome: ImageOutcome,
    pub(crate) reason: Option<String>,
}

/// The reason for a stop of an import.
#[derive(Clone, Debug)]
pub(crate) struct Stop {
    pub(crate) text: String,
    pub(crate) class: ErrorClass,
    /// True if another try may succeed.
    pub(crate) retry: bool,
    /// The shortage on containerd's disk, if there was one.
    pub(crate) shortage: Option<Shortage>,
    /// The error of the connection to containerd, if that was the cause.
    pub(crate) unreachable: Option<String>,
    /// The blobs that a receipt misses in containerd.
    pub(crate) lost: Vec<Digest>,
}

impl State {
    /// Applies the result of a job.
    pub(super) fn on_job(&mut self, name: &OsStr, came: Came, turn: &mut Turn) {
        if matches!(came, Came::Imported(_) | Came::Untried(_) | Came::Pulled { .. }) {
            // containerd's events about the import may arrive after a client's question about the
            // required images.
            self.required.doubt(turn.now);
        }
        match came {
            Came::NotNow => {
                if self.end_current(name).is_some() {
                    self.look_again(name, turn.now);
                }
            }
            Came::Unverified(failure) => {
                if let Some(job) = self.end_current(name) {
                    self.on_unverified(&job, &failure, turn);
                }
            }
            Came::NotKept(error) => {
                if let Some(job) = self.end_current(name) {
                    let text = format!("the evidence of its signature cannot be written: {error}");
                    self.fail(&job, &text, ErrorClass::Transient, true, turn);
                }
            }
            Came::Found(found) => self.on_found(name, *found, turn),
            Came::Bad(bad) => self.on_bad(name, &bad, turn),
            Came::List { catalog, distrust } => self.on_list(name, catalog, distrust, turn),
            Came::BadList(error) => {
                if let Some(job) = self.end_current(name) {
                    let text = format!("the list cannot be read: {error}");
                    self.fail(&job, &text, ErrorClass::Bundle, false, turn);
                }
            }
            Came::Imported(landed) => self.on_landed(name, *landed, turn),
            Came::Untried(stop) => self.on_untried(name, &stop, turn),
            Came::Pulled { images, problems } => self.on_pulled(name, images, &problems, turn),
            Came::Panicked { cause, program } => self.on_panic(name, &cause, program, turn),
            Came::Dropped => self.on_dropped(name, turn),
        }
        self.start_unblocked(turn);
    }

    /// Ends a job. Returns it if its file and the rules have not changed since its start.
    pub(super) fn end_current(&mut self, name: &OsStr) -> Option<Job> {
        let job = self.lanes.end(name)?;
        self.is_current(&job).then_some(job)
    }

    fn on_unverified(&mut self, job: &Job, failure: &sidecar::Failure, turn: &mut Turn) {
        use sidecar::Failure;
        match failure {
            Failure::Missing { .. } | Failure::NoFile => {
                self.await_file(job, Lack::Checksum, &failure.to_string(), turn);
            }
            Failure::Unusable { .. } | Failure::Mismatch { .. } => {
                self.refuse(job, &failure.to_string(), None, turn);
            }
            Failure::Changed | Failure::Read(_) => {
                self.fail(job, &failure.to_string(), ErrorClass::Transient, true, turn);
            }
        }
        turn.act(Action::Save);
    }

    /// Lets a bundle wait for a file beside it.
    pub(super) fn await_file(&mut self, job: &Job, lack: Lack, why: &str, turn: &mut Turn) {
        if self.roster.await_file(&job.name, lack) {
            let is_told = self.rows.delayed.admits(turn.now);
            let line = Line::warn(format!("waiting: {why}")).bundle(&job.name);
            turn.say(line.told(is_told));
        }
    }

    /// Leaves a bundle alone until it, its checksum or the rules change. The images of an earlier
    /// import stay, but the daemon no longer restores them. `by` is the part of the rule for
    /// signatures, if that rule refuses the bundle.
    pub(super) fn refuse(&mut self, job: &Job, why: &str, by: Option<RefusedBy>, turn: &mut Turn) {
        let before = self.ledger.get(&job.name);
        let text = match before.and_then(|entry| entry.imported.as_ref()) {
            Some(_) => {
                format!(
                    "{why} (the images of its earlier import stay, but the daemon no longer restores them)"
                )
            }
            None => why.to_owned(),
        };
        self.fail_by(job, &text, (ErrorClass::Refused, by), false, turn);
        turn.act(Action::Save);
    }

    /// Records the failure of a file. The ledger is not saved here: a later run finds a forgotten
    /// refusal again, and a thousand refusals are saved together.
    pub(super) fn fail(&mut self, job: &Job, text: &str, class: ErrorClass, retry: bool, turn: &mut Turn) {
        self.fail_by(job, text, (class, None), retry, turn);
    }

    fn fail_by(
        &mut self,
        job: &Job,
        text: &str,
        class: (ErrorClass, Option<RefusedBy>),
        retry: bool,
        turn: &mut Turn,
    ) {
        let is_told = self.rows.refused.admits(turn.now);
        let line = match class.1 {
            Some(_) => Line::error(format!("not imported: {text}")).outcome(Said::Refused),
            None => Line::error(format!("not imported: {text}")).outcome(Said::Failed),
        };
        turn.say(line.bundle(&job.name).told(is_told));
        self.record_failure(job, ledger::Outcome::Failed, (text, 0), class, turn);
        let chance = retry.then(|| turn.chance());
        self.roster.fail(&job.name, turn.now, chance);
        if !retry && self.abandoned.remove(&job.name) {
            self.sweep_soon(turn.now);
        }
    }

    fn record_failure(
        &mut self,
        job: &Job,
        outcome: ledger::Outcome,
        (text, images): (&str, usize),
        (class, refused_by): (ErrorClass, Option<RefusedBy>),
        turn: &Turn,
    ) {
        let error = LastError {
            text: text.to_owned(),
            class,
            at: turn.at,
            images,
            refused_by,
        };
        let identity = job.version.identity.clone();
        self.ledger.record_failure(&job.name, identity, outcome, error);
        self.unsaved = true;
    }

    fn on_stop(&mut self, job: &Job, stop: &Stop, turn: &mut Turn) {
        let text = match self.files_with(&job.name, &stop.lost) {
            Some(files) => format!("{}. {files}", stop.text),
            None => stop.text.clone(),
        };
        self.fail(job, &text, stop.class, stop.retry, turn);
        if let Some(shortage) = &stop.shortage {
            self.wait_for_room(&job.name, shortage, turn.now);
        }
        if let Some(why) = &stop.unreachable {
            self.go_away(&format!("containerd went away: {why}"), turn);
        }
    }

    fn on_untried(&mut self, name: &OsStr, stop: &Stop, turn: &mut Turn) {
        let Some(job) = self.lanes.end(name) else {
            return;
        };
        if self.is_current(&job) {
            turn.act(Action::Count(name.to_owned()));
            self.on_stop(&job, stop, turn);
        } else {
            self.start_over(name);
        }
        self.end_import(&job, turn);
    }

    /// Finishes an import that succeeded or failed.
    fn end_import(&mut self, job: &Job, turn: &mut Turn) {
        self.unpack.doubt();
        if job.disturbed || self.reworded.contains(&job.name) {
            self.compare_within(BURST, turn.now);
        }
        if self.roster.phase(&job.name) == Some(Phase::Done) {
            turn.act(Action::Save);
        }
    }

    /// Starts over with the file as it is now. The ledger knows what the job wrote as its bundle's.
    pub(super) fn start_over(&mut self, name: &OsStr) {
        self.relist = true;
        self.roster.stop_running(name);
    }

    /// Records the result of an import.
    fn on_landed(&mut self, name: &OsStr, mut landed: Landed, turn: &mut Turn) {
        let Some(job) = self.lanes.end(name) else {
            return;
        };
        let is_bad = matches!(landed.outcome, Outcome::Failed | Outcome::Partial);
        let is_told = !is_bad || self.rows.refused.admits(turn.now);
        turn.act(Action::Report(name.to_owned(), is_told));
        turn.act(Action::Count(name.to_owned()));
        if let Some(forecast) = landed.forecast.as_ref().filter(|_| landed.stopped.is_none()) {
            self.tell_scarce(name, forecast, turn);
        }
        // A degraded receipt keeps its images in the ledger, since they come back with their
        // blobs. So does a receipt with nothing for this node, since the settings may change back.
        let is_degraded = (landed.stopped.is_some() || landed.outcome == Outcome::Skipped)
            && self.is_receipt(name)
            && self
                .ledger
                .get(name)
                .is_some_and(|entry| entry.imported.is_some());
        let is_written = !is_degraded && (landed.has_landed || landed.outcome == Outcome::Skipped);
        if is_written {
            let closures = std::mem::take(&mut landed.closures);
            self.write_down(&job, &landed, closures, turn);
        }
        match &landed.stopped {
            _ if !self.is_current(&job) => self.start_over(name),
            Some(stop) => self.on_stop(&job, stop, turn),
            None if is_bad => self.on_incomplete(&job, &landed, turn),
            // A later bundle that had a name has lost it meanwhile.
            None if self.may_write_more(&job) => self.roster.queue(name),
            None => {
                self.roster.finish(name);
                // If nothing was imported, another program put back what was missing.
                if self.healing.end(name) && landed.outcome == Outcome::Imported {
                    turn.act(Action::CountRestored);
                }
            }
        }
        if is_written {
            // It may have given up a name.
            self.queue_withheld();
            self.note_receipt(&job, &landed, turn);
        }
        self.end_import(&job, turn);
    }

    /// Records the error of a bundle that landed only in part. The daemon retries it when the file
    /// changes.
    fn on_incomplete(&mut self, job: &Job, landed: &Landed, turn: &mut Turn) {
        let failed = landed.images.iter();
        let mut failed = failed.filter(|image| image.outcome == ImageOutcome::Failed);
        let reason = |image: &LandedImage| {
            import::result::named(&image.name, image.reason.as_deref().unwrap_or("failed"))
        };
        let text = failed.next().map(reason).unwrap_or_default();
        let class = match landed.is_bundles_fault {
            true => ErrorClass::Bundle,
            false => ErrorClass::Permanent,
        };
        let failed = landed.images.iter();
        let failed = failed.filter(|image| image.outcome == ImageOutcome::Failed);
        let targets: HashSet<&Digest> = failed.map(|image| &image.target).collect();
        self.record_failure(job, landed.outcome, (&text, targets.len()), (class, None), turn);
        self.roster.fail(&job.name, turn.now, None);
    }

    fn write_down(&mut self, job: &Job, landed: &Landed, closures: Vec<(Digest, Vec<Digest>)>, turn: &Turn) {
        // The bundle still wants a name that it leaves to another bundle. It gets the name when the
        // other bundle is gone.
        let is_wanted = |image: &&LandedImage| image.outcome.is_in_place() || job.left.contains(&image.name);
        let entry = |image: &LandedImage| ImageEntry {
            name: image.name.clone(),
            target: image.target.clone(),
        };
        let images = landed.images.iter().filter(is_wanted).map(entry);
        let is_withheld = |image: &&LandedImage| job.withheld.contains(&image.name);
        let withheld = landed.images.iter().filter(is_withheld).map(entry);
        let carried = self.ledger.carry(landed.release.as_ref(), landed.skipped.clone());
        let imported = Imported {
            identity: match job.version.is_layout {
                // A folder has no other identity than that of its listing.
                true => job.version.identity.clone(),
                false => landed.identity.clone(),
            },
            sidecar: job.version.sidecar.clone(),
            catalog: landed.catalog.clone(),
            images: images.collect(),
            at: turn.at,
            duration_ms: landed.duration_ms,
            sent_bytes: landed.sent_bytes,
            signers: job.signers.clone(),
            withheld: withheld.collect(),
            is_delta: landed.is_delta,
            release: carried,
        };
        if let Some(keys) = self.keys.as_mut().filter(|_| !imported.signers.is_empty()) {
            keys.withdrawn.remove(&job.name);
        }
        let freed = self.names_without(job, &imported);
        self.note_reworded(&job.name, &imported);
        self.ledger
            .record_import(&job.name, landed.outcome, imported, closures);
        self.unsaved = true;
        self.queue_owners(&freed);
        self.queue_unread(&job.name);
    }

    /// Queues the bundles that a version without releases imported, and that have a member of the
    /// release of this bundle.
    fn queue_unread(&mut self, name: &OsStr) {
        let release = self.ledger.get(name).and_then(Entry::release);
        let Some(Ok(list)) = release.map(|release| &release.list) else {
            return;
        };
        let unread = self.ledger.unread_bundles_of(list).into_iter();
        for file in unread.map(|entry| entry.file.clone()).collect::<Vec<_>>() {
            if matches!(self.roster.phase(&file), Some(Phase::Done | Phase::Known)) {
                self.roster.queue(&file);
            }
        }
    }

    /// Returns the names that a bundle had and no longer has. A name that it wants but could not
    /// get stays its own.
    fn names_without(&self, job: &Job, imported: &Imported) -> BTreeSet<String> {
        let before = self
            .ledger
            .get(&job.name)
            .and_then(|entry| entry.imported.as_ref());
        let before = before.into_iter().flat_map(|before| &before.images);
        let mut names: BTreeSet<String> = before.map(|image| image.name.clone()).collect();
        let wanted = imported.images.iter().map(|image| &image.name);
        for name in wanted.chain(job.records.keys()) {
            names.remove(name);
        }
        names
    }

    /// Queues the bundles that left these names to another bundle.
    fn queue_owners(&mut self, names: &BTreeSet<String>) {
        if names.is_empty() {
            return;
        }
        let desired = self.ledger.desired_images();
        let owners = names.iter().filter_map(|name| desired.get(name.as_str()));
        let owners: BTreeSet<OsString> = owners.map(|(_, entry)| entry.file.clone()).collect();
        for owner in owners {
            if matches!(self.roster.phase(&owner), Some(Phase::Done | Phase::Known)) {
                self.roster.queue(&owner);
            }
        }
    }

    /// Notes that records which are no longer among the bundle's images may carry its label. The
    /// ledger does not know what an interrupted import wrote.
    fn note_reworded(&mut self, name: &OsStr, imported: &Imported) {
        let before = self.ledger.get(name).and_then(|entry| entry.imported.as_ref());
        if before.is_none_or(|before| before.images != imported.images) {
            self.reworded.insert(name.to_owned());
        }
    }

    /// Records the result of a list.
    fn on_pulled(&mut self, name: &OsStr, images: Vec<ImageEntry>, problems: &[String], turn: &mut Turn) {
        let Some(job) = self.lanes.end(name) else {
            return;
        };
        let Stage::Pulling { catalog } = &job.stage else {
            return;
        };
        // A list does not tell which blobs an image has. A bundle with the image does.
        let targets = images.iter().map(|image| image.target.clone());
        let targets = targets.filter(|target| !self.is_known_whole(target, name));
        let closures: Vec<_> = targets.map(|target| (target.clone(), vec![target])).collect();
        let outcome = match (images.is_empty(), problems.is_empty()) {
            (_, true) => ledger::Outcome::Imported,
            (false, false) => ledger::Outcome::Partial,
            (true, false) => ledger::Outcome::Failed,
        };
        let imported = Imported {
            identity: job.version.identity.clone(),
            sidecar: job.version.sidecar.clone(),
            catalog: catalog.clone(),
            images,
            at: turn.at,
            duration_ms: basics::milliseconds(job.elapsed(turn.now)),
            sent_bytes: 0,
            signers: Vec::new(),
            withheld: Vec::new(),
            is_delta: true,
            // A list of images to pull belongs to none.
            release: Carried::Nothing,
        };
        self.note_reworded(name, &imported);
        self.ledger.record_import(name, outcome, imported, closures);
        match problems.first() {
            _ if !self.is_current(&job) => self.start_over(name),
            None => {
                self.roster.finish(name);
                if self.healing.end(name) {
                    turn.act(Action::CountRestored);
                }
            }
            Some(text) => {
                self.record_failure(&job, outcome, (text, 0), (ErrorClass::Transient, None), turn);
                let chance = turn.chance();
                self.roster.fail(name, turn.now, Some(chance));
            }
        }
        if self.reworded.contains(name) {
            self.compare_within(BURST, turn.now);
        }
        turn.act(Action::Save);
    }

    /// Returns true if a bundle or receipt besides this file has an image with this target. The
    /// ledger then has all blobs of the image.
    fn is_known_whole(&self, target: &Digest, besides: &OsStr) -> bool {
        let has_it = |entry: &&Entry| {
            entry.imported.as_ref().is_some_and(|imported| {
                let is_list =
                    imported.is_delta && pull_list::may_be_list(&entry.file, imported.identity.size);
                !is_list && imported.images.iter().any(|image| image.target == *target)
            })
        };
        let others = self.ledger.entries().into_iter();
        self.ledger.closure(target).is_some()
            && others
                .filter(|entry| entry.file != besides)
                .any(|entry| has_it(&entry))
    }

    /// Records that a job panicked. The daemon retries the file alone, and sets it aside after
    /// several panics.
    fn on_panic(&mut self, name: &OsStr, cause: &str, program: Option<String>, turn: &mut Turn) {
        let Some(job) = self.lanes.end(name) else { return };
        if !self.is_current(&job) {
            // Another file has the name by now.
            return self.start_over(name);
        }
        let crash = Crash {
            cause: cause.to_owned(),
            boot: self.boot.clone(),
            program,
            at: turn.at,
        };
        let identity = &job.version.identity;
        let way_out = way_out(&self.images_dir, name);
        let times = self.ledger.record_crash(name, identity, crash, &way_out);
        let is_set_aside = times >= Crashes::MOST;
        let line = match is_set_aside {
            true => {
                let entry = self.ledger.get(name).and_then(|entry| entry.last_error.as_ref());
                let text = entry.map(|error| error.text.as_str()).unwrap_or_default();
                Line::error(format!("not imported: {text}")).outcome(Said::Failed)
            }
            false => Line::error(format!(
                "its import ended with {cause}: the daemon tries it again, alone"
            )),
        };
        turn.say(line.bundle(name));
        let chance = (!is_set_aside).then(|| turn.chance());
        self.roster.fail(name, turn.now, chance);
        // The blobs that the job moved are under its lease.
        self.sweep_soon(turn.now);
        turn.act(Action::Save);
    }

    /// Applies the end of a dropped job: its file or the rules changed, or it gave its lane away.
    pub(super) fn on_dropped(&mut self, name: &OsStr, turn: &Turn) {
        let ended = self.lanes.end(name);
        if self.roster.stop_running(name)
            && ended.is_some_and(|job| job.has_yielded)
            && !self.lanes.is_behind(name)
        {
            // The cause of its standstill is unknown, so other files that are due go first.
            self.roster.postpone(name, turn.now + super::lanes::STILL);
        }
        // Perhaps no job needs its lease any more.
        self.abandoned.insert(name.to_owned());
        self.sweep_soon(turn.now);
    }
}

/// Returns the remedies for a file that is set aside.
pub(crate) fn way_out(images_dir: &std::path::Path, name: &OsStr) -> String {
    let path = basics::Foreign::file_name(images_dir.join(name).as_os_str()).to_string();
    format!(
        "Replace the file or install another version of airgapd, and the daemon retries it. `airgapd import {path}` \
         imports it at once, in a process of its own"
    )
}
