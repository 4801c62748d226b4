//! What the end of a job changes: the line about it, the ledger, and whether and when the file is tried again.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};

use bundle::Identity;
use import::Outcome;
use import::result::ImageOutcome;
use import::space::{Forecast, Shortage};
use oci_spec::image::Digest;

use super::compare::BURST;
use super::lanes::{Job, Stage};
use super::line::Line;
use super::{Action, Turn};
use crate::images::sidecar;
use crate::outcome::Outcome as Said;
use crate::state::State;
use crate::state::ledger::{self, Crash, Crashes, ErrorClass, ImageEntry, Imported, LastError};
use crate::state::roster::Phase;

/// What a job came back with.
#[derive(Debug)]
pub(crate) enum Came {
    /// The checksum file is being written at this moment.
    NotNow,
    /// The checksum keeps the file from being imported.
    Unverified(sidecar::Failure),
    /// The file is a bundle, and its catalog was read. The job waits for an answer.
    Found(Box<Found>),
    /// The file is no bundle, or a broken one.
    Bad(Bad),
    /// The file is a list of images to pull. The job waits for an answer.
    List {
        catalog: Digest,
        /// Why the operator's list of digests does not allow it, where that is so.
        distrust: Option<String>,
    },
    /// The file is a list of images, and cannot be read.
    BadList(String),
    /// The import was carried out, as a whole or in part.
    Imported(Box<Landed>),
    /// Nothing of the import was carried out.
    Untried(Stop),
    /// The images of a list were pulled, but for those with a problem.
    Pulled {
        images: Vec<ImageEntry>,
        problems: Vec<String>,
    },
    /// It panicked, for this cause; the program that did. The daemon goes on: a job shares nothing that it could leave half done.
    Panicked { cause: String, program: Option<String> },
    /// Its work was dropped.
    Dropped,
}

/// A bundle whose catalog was read.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// The records it is going to write, and what they are to point at.
    pub(crate) records: BTreeMap<String, Digest>,
    /// The problem of the first image that is not whole.
    pub(crate) broken: Option<String>,
    /// Why the archive is taken for an upload that was cut off.
    pub(crate) unfinished: Option<String>,
    /// Whether it may be an upload that goes on later: it is cut off, or ends in room for more.
    pub(crate) may_go_on: bool,
    /// Why the operator's list of digests does not allow it, where that is so.
    pub(crate) distrust: Option<String>,
}

/// A file that could not be read as a bundle.
#[derive(Clone, Debug)]
pub(crate) struct Bad {
    pub(crate) text: String,
    pub(crate) class: ErrorClass,
    /// Whether it may be an upload that goes on later.
    pub(crate) may_go_on: bool,
    /// Whether a limit was exceeded: in the light lane these are lower.
    pub(crate) is_beyond_limits: bool,
}

/// What an import came to.
#[derive(Clone, Debug)]
pub(crate) struct Landed {
    /// The file as it was read.
    pub(crate) identity: Identity,
    pub(crate) catalog: Digest,
    pub(crate) outcome: Outcome,
    /// Whether anything of it is in containerd.
    pub(crate) has_landed: bool,
    pub(crate) images: Vec<LandedImage>,
    /// The digests that a target needs, target included.
    pub(crate) closures: Vec<(Digest, Vec<Digest>)>,
    pub(crate) duration_ms: u64,
    /// Bytes that were sent to containerd.
    pub(crate) sent_bytes: u64,
    /// Whether the bundle is at fault for what did not land.
    pub(crate) is_bundles_fault: bool,
    /// Why it stopped before its end, where it did.
    pub(crate) stopped: Option<Stop>,
    /// What was foreseen for containerd's disk, where anything was to be sent and that disk can be seen.
    pub(crate) forecast: Option<Forecast>,
}

/// One image of an import.
#[derive(Clone, Debug)]
pub(crate) struct LandedImage {
    pub(crate) name: String,
    pub(crate) target: Digest,
    pub(crate) outcome: ImageOutcome,
    pub(crate) reason: Option<String>,
}

/// Why an import stopped.
#[derive(Clone, Debug)]
pub(crate) struct Stop {
    pub(crate) text: String,
    pub(crate) class: ErrorClass,
    /// Whether another try may go better.
    pub(crate) retry: bool,
    /// What lacked on containerd's disk.
    pub(crate) shortage: Option<Shortage>,
    /// Why containerd could not be reached, where that was the cause.
    pub(crate) unreachable: Option<String>,
}

impl State {
    /// Takes over what a job came back with.
    pub(super) fn on_job(&mut self, name: &OsStr, came: Came, turn: &mut Turn) {
        if matches!(came, Came::Imported(_) | Came::Untried(_) | Came::Pulled { .. }) {
            // The events of containerd about it may come later than a question about what is required.
            self.required.doubt();
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
            Came::Found(found) => self.on_found(name, *found, turn),
            Came::Bad(bad) => self.on_bad(name, &bad, turn),
            Came::List { catalog, distrust } => self.on_list(name, catalog, distrust, turn),
            Came::BadList(error) => {
                if let Some(job) = self.end_current(name) {
                    let text = format!("it cannot be read: {error}");
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

    /// Takes a job off the list. Gives it where it is still for the file as it is now, by the rules as they are now.
    pub(super) fn end_current(&mut self, name: &OsStr) -> Option<Job> {
        let job = self.lanes.end(name)?;
        self.is_current(&job).then_some(job)
    }

    fn on_unverified(&mut self, job: &Job, failure: &sidecar::Failure, turn: &mut Turn) {
        use sidecar::Failure;
        match failure {
            Failure::Missing { .. } | Failure::NoFile => {
                if self.roster.await_checksum(&job.name) {
                    let is_told = self.rows.delayed.admits(turn.now);
                    let line = Line::warn(format!("waiting: {failure}")).bundle(&job.name);
                    turn.say(line.told(is_told));
                }
            }
            Failure::Unusable { .. } | Failure::Mismatch { .. } => {
                self.refuse(job, &failure.to_string(), turn);
            }
            Failure::Changed | Failure::Read(_) => {
                self.fail(job, &failure.to_string(), ErrorClass::Transient, true, turn);
            }
        }
        turn.act(Action::Save);
    }

    /// Leaves a bundle alone until it, its checksum or the rules change. What was imported of it before is neither
    /// taken back nor restored any more.
    pub(super) fn refuse(&mut self, job: &Job, why: &str, turn: &mut Turn) {
        let before = self.ledger.get(&job.name);
        let text = match before.and_then(|entry| entry.imported.as_ref()) {
            Some(_) => {
                format!("{why} (what was imported of it before stays, and is not looked after any more)")
            }
            None => why.to_owned(),
        };
        self.fail(job, &text, ErrorClass::Refused, false, turn);
        turn.act(Action::Save);
    }

    /// Writes down that a file failed. A refusal that is forgotten is found again, and a thousand of them are saved
    /// together.
    pub(super) fn fail(&mut self, job: &Job, text: &str, class: ErrorClass, retry: bool, turn: &mut Turn) {
        let is_told = self.rows.refused.admits(turn.now);
        let line = Line::error(format!("not imported: {text}")).outcome(Said::Failed);
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
        class: ErrorClass,
        turn: &Turn,
    ) {
        let error = LastError {
            text: text.to_owned(),
            class,
            at: turn.at,
            images,
        };
        let identity = job.version.identity.clone();
        self.ledger.record_failure(&job.name, identity, outcome, error);
        self.unsaved = true;
    }

    fn on_stop(&mut self, job: &Job, stop: &Stop, turn: &mut Turn) {
        self.fail(job, &stop.text, stop.class, stop.retry, turn);
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

    /// The end of an import, whatever it came to.
    fn end_import(&mut self, job: &Job, turn: &mut Turn) {
        self.unpack.doubt();
        if job.disturbed || self.reworded.contains(&job.name) {
            self.compare_within(BURST, turn.now);
        }
        if self.roster.phase(&job.name) == Some(Phase::Done) {
            turn.act(Action::Save);
        }
    }

    /// What a job wrote is known to be its bundle's; the file as it is now comes next.
    fn start_over(&mut self, name: &OsStr) {
        self.relist = true;
        self.roster.stop_running(name);
    }

    /// Writes down what came of an import.
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
        if landed.has_landed || landed.outcome == Outcome::Skipped {
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
                // Another program may have put back what was missing.
                if self.healing.end(name) && landed.outcome == Outcome::Imported {
                    turn.act(Action::CountRestored);
                }
            }
        }
        self.end_import(&job, turn);
    }

    /// Writes down what is wrong with a bundle of which not everything landed. It is tried again when the file changes.
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
        self.record_failure(job, landed.outcome, (&text, targets.len()), class, turn);
        self.roster.fail(&job.name, turn.now, None);
    }

    fn write_down(&mut self, job: &Job, landed: &Landed, closures: Vec<(Digest, Vec<Digest>)>, turn: &Turn) {
        // A name that is left to another is still wanted: it comes back when the other is gone.
        let is_wanted = |image: &&LandedImage| image.outcome.is_in_place() || job.left.contains(&image.name);
        let images = landed.images.iter().filter(is_wanted).map(|image| ImageEntry {
            name: image.name.clone(),
            target: image.target.clone(),
        });
        let imported = Imported {
            identity: match job.version.is_layout {
                // A folder has no identity but that of its listing.
                true => job.version.identity.clone(),
                false => landed.identity.clone(),
            },
            sidecar: job.version.sidecar.clone(),
            catalog: landed.catalog.clone(),
            images: images.collect(),
            at: turn.at,
            duration_ms: landed.duration_ms,
            sent_bytes: landed.sent_bytes,
        };
        let freed = self.names_without(job, &imported);
        self.note_reworded(&job.name, &imported);
        self.ledger
            .record_import(&job.name, landed.outcome, imported, closures);
        self.unsaved = true;
        self.queue_owners(&freed);
    }

    /// The names that a bundle had, and has no more. A name that it wants and could not get stays its own.
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

    /// Has bundles imported again that left these names to another one.
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

    /// Keeps in mind that records may have a label of the bundle which are not among its images any more. Of what an import
    /// that was cut short has written, the ledger does not know.
    fn note_reworded(&mut self, name: &OsStr, imported: &Imported) {
        let before = self.ledger.get(name).and_then(|entry| entry.imported.as_ref());
        if before.is_none_or(|before| before.images != imported.images) {
            self.reworded.insert(name.to_owned());
        }
    }

    /// Writes down what came of a list.
    fn on_pulled(&mut self, name: &OsStr, images: Vec<ImageEntry>, problems: &[String], turn: &mut Turn) {
        let Some(job) = self.lanes.end(name) else {
            return;
        };
        let Stage::Pulling { catalog } = &job.stage else {
            return;
        };
        let targets = images.iter().map(|image| image.target.clone());
        let closures: Vec<_> = targets.map(|target| (target.clone(), vec![target])).collect();
        let outcome = match (closures.is_empty(), problems.is_empty()) {
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
                self.record_failure(&job, outcome, (text, 0), ErrorClass::Transient, turn);
                let chance = turn.chance();
                self.roster.fail(name, turn.now, Some(chance));
            }
        }
        if self.reworded.contains(name) {
            self.compare_within(BURST, turn.now);
        }
        turn.act(Action::Save);
    }

    /// Takes down that a job panicked. The daemon tries its file again, alone, and sets it aside after several times.
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
        // The blobs that it has moved are under its lease.
        self.sweep_soon(turn.now);
        turn.act(Action::Save);
    }

    /// A job was dropped because its file or the rules changed, or because it gave its lane to another.
    pub(super) fn on_dropped(&mut self, name: &OsStr, turn: &Turn) {
        let ended = self.lanes.end(name);
        if self.roster.stop_running(name)
            && ended.is_some_and(|job| job.has_yielded)
            && !self.lanes.is_behind(name)
        {
            // Nothing is known of what it waits for: those that are due go first.
            self.roster.postpone(name, turn.now + super::lanes::STILL);
        }
        // No job may need its lease any more.
        self.abandoned.insert(name.to_owned());
        self.sweep_soon(turn.now);
    }
}

/// How a file that is set aside comes to another try.
pub(crate) fn way_out(images_dir: &std::path::Path, name: &OsStr) -> String {
    let path = basics::Foreign::file_name(images_dir.join(name).as_os_str()).to_string();
    format!(
        "replace it, or install another version of airgapd, and the daemon tries it again; `airgapd import {path}` tries \
         it at once, beside the daemon"
    )
}
