//! Decides whether a file is finished, which file is next, and which names a bundle leaves to
//! others.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

use oci_spec::image::Digest;

use super::desired;
use super::lanes::{Job, Leaving, Load, Stage};
use super::line::Line;
use super::record::{Bad, Found};
use super::{Action, Look, Opening, Start, Turn};
use crate::admit::{Forbidden, Verdict};
use crate::images::folder::{self, Ending, Observation, Reason, Refused, Settle};
use crate::images::pull_list;
use crate::outcome::Outcome;
use crate::settings::{Checksums, Signatures};
use crate::state::State;
use crate::state::ledger::{self, Entry, ErrorClass, LastError, RefusedBy, SignerEntry};
use crate::state::roster::{self, Lack, Phase, Version};

/// Delay before the next look at a file that changed during a look.
const AGAIN: Duration = Duration::from_millis(500);

/// Reasons for leaving a name of a bundle as it is.
const LATER: &str = "a bundle that arrived later has this name";
const BEFORE: &str = "a bundle of an images folder before this one has this name";
const MOVED: &str = "another program moved the record since the bundle was imported";
const UNADMITTED: &str = "the bundle was imported before signatures were required, and without this name";

/// The daemon's word on a bundle that was read.
enum Word {
    /// The bundle is imported. These keys have signed it.
    Admitted(Vec<SignerEntry>),
    /// The bundle waits for a signature.
    Missing(String),
    /// The archive was cut off.
    Damaged(String),
    /// The rules forbid the bundle. The part of the rule for signatures, if that forbids it.
    Refused(String, Option<RefusedBy>),
}

impl State {
    /// Takes on files that are due: examines those that may be finished, or starts one import.
    /// Returns true if any file was due.
    pub(super) fn take_on(&self, turn: &mut Turn) -> bool {
        let may_start = |name: &OsStr, version: &Version| self.may_start(name, version);
        // Sound files go first. A crash over a suspect then affects no other file, and a suspect
        // delays none.
        let is_sound =
            |name: &OsStr, version: &Version| !self.ledger.is_suspect(name) && self.may_start(name, version);
        let mut due = self.roster.due(turn.now, is_sound);
        if due.is_empty() {
            due = self.roster.due(turn.now, may_start);
        }
        let is_look = |name: &OsString| matches!(self.roster.phase(name), Some(Phase::Settling { .. }));
        let with_version = |name: &OsString| Some((name.clone(), self.roster.version(name)?));
        let looks: Vec<_> = due
            .iter()
            .take_while(|name| is_look(name))
            .filter_map(with_version)
            .collect();
        if !looks.is_empty() {
            turn.act(Action::Look(looks));
        } else if let Some((name, version)) = due.first().and_then(with_version) {
            turn.act(Action::Open(name, version));
        }
        !due.is_empty()
    }

    fn may_start(&self, name: &OsStr, version: &Version) -> bool {
        self.takes_on() && self.lanes.lane_for(self.load(name, version)).is_some()
    }

    /// Returns true if the daemon takes on files at all.
    fn takes_on(&self) -> bool {
        self.connection.is_up() && !self.room.is_below() && !self.is_draining
    }

    fn load<'a>(&self, name: &'a OsStr, version: &'a Version) -> Load<'a> {
        let is_suspect = |name: &OsStr| self.ledger.is_suspect(name);
        Load {
            name,
            identity: &version.identity,
            size: match version.is_layout {
                // The size of its content is unknown.
                true => u64::MAX,
                false => version.identity.size,
            },
            is_repair: version.is_known(&self.ledger, name),
            is_alone: is_suspect(name) || self.lanes.all().any(|job| is_suspect(&job.name)),
        }
    }

    /// Makes an idle job give its lane to a file that is due, if there are both. Returns the time
    /// of the next check for idle jobs.
    pub(super) fn yield_lane(&mut self, turn: &mut Turn) -> Option<Instant> {
        let now = turn.now;
        let next = self.lanes.idle_due(now);
        let idle = |name: &OsStr, version: &Version| self.lanes.idle_before(self.load(name, version), now);
        let gains = |name: &OsStr, version: &Version| self.takes_on() && idle(name, version).is_some();
        let gaining = self.roster.due(now, gains).into_iter().next();
        let giving = gaining.and_then(|name| {
            let version = self.roster.version(&name)?;
            Some(idle(&name, &version)?.name.clone())
        });
        if let Some(name) = giving {
            self.give_way(&name, turn);
        }
        next
    }

    fn give_way(&mut self, name: &OsStr, turn: &mut Turn) {
        turn.say(
            Line::info("the import makes no progress: other files go first, and it resumes after them")
                .bundle(name),
        );
        match self.lanes.give_way(name) {
            Some(Leaving::Over) => self.on_dropped(name, turn),
            Some(Leaving::Working) => turn.act(Action::Abort(name.to_owned())),
            None => {}
        }
    }

    /// Applies a look at a file that may be finished.
    pub(super) fn on_look(&mut self, name: &OsStr, version: &Version, look: Look, turn: &mut Turn) {
        if self.roster.version(name).as_ref() != Some(version) || !self.roster.is_settling(name) {
            return;
        }
        match look {
            Look::Replaced => self.look_again(name, turn.now),
            Look::Refused(refused) => self.turn_away(name, &refused, turn),
            Look::Unreadable(error) => {
                let is_told = self.rows.refused.admits(turn.now);
                let line = Line::warn(format!("cannot be read: {error}")).outcome(Outcome::Failed);
                turn.say(line.bundle(name).told(is_told));
                let chance = turn.chance();
                self.roster.fail(name, turn.now, Some(chance));
            }
            Look::Indistinct(left) => self.roster.look_at(name, turn.now + left),
            Look::Layout => {
                self.settle_layout(name, true, turn);
            }
            Look::Seen(seen) => self.settle(name, seen, turn),
        }
    }

    fn turn_away(&mut self, name: &OsStr, refused: &Refused, turn: &mut Turn) {
        if matches!(refused, Refused::Gone) {
            // The next listing will not have it.
            self.relist = true;
            return self.roster.finish(name);
        }
        let was_imported = self
            .ledger
            .get(name)
            .is_some_and(|entry| entry.imported.is_some());
        if let Some(reason) = folder::why_ignored_by_name(name).filter(|_| !was_imported) {
            return self.ignore(name, reason, turn);
        }
        let is_told = self.rows.refused.admits(turn.now);
        let line = Line::warn(format!("not imported: {refused}")).outcome(Outcome::Failed);
        turn.say(line.bundle(name).told(is_told));
        self.roster.refuse(name);
    }

    fn settle(&mut self, name: &OsStr, mut seen: Observation, turn: &mut Turn) {
        let (ending, size) = (seen.ending, seen.size);
        let pull_lists = self.settings.pull_lists;
        let reason = roster::why_ignored(name, ending, size, pull_lists, &self.ledger);
        if reason.is_some() || pull_lists && pull_list::is_list(name, ending, size) {
            // It will never become an archive, even if it is short.
            seen.ending = Ending::Foreign;
        }
        match reason {
            Some(reason) => self.settle_ignored(name, &seen, reason, turn),
            None => self.on_settled(name, folder::settle(&seen, turn.now), turn),
        }
    }

    /// Ignores a file that is no bundle as soon as it is finished, until it changes.
    fn settle_ignored(&mut self, name: &OsStr, seen: &Observation, reason: Reason, turn: &mut Turn) {
        // An empty file follows the rule for files that are no archives. It is finished when no
        // process has it open for writing.
        let size = seen.size.max(1);
        match folder::settle(&Observation { size, ..*seen }, turn.now) {
            Settle::Settled => self.ignore(name, reason, turn),
            settle => self.on_settled(name, settle, turn),
        }
    }

    fn ignore(&mut self, name: &OsStr, reason: Reason, turn: &mut Turn) {
        if self.roster.ignore(name, reason) {
            let is_told = self.rows.ignored.admits(turn.now);
            turn.say(Line::info(format!("ignored: {reason}")).file(name).told(is_told));
        }
    }

    /// Applies the answer to whether a layout folder is finished. Returns true if it is. `is_whole`
    /// is false if a read showed that a part is missing. Before the first read it is true.
    fn settle_layout(&mut self, name: &OsStr, is_whole: bool, turn: &mut Turn) -> bool {
        let Some(since) = self.roster.still_since(name) else {
            return false;
        };
        let settle = folder::settle_layout(is_whole, since, turn.now);
        self.on_settled(name, settle, turn);
        settle == Settle::Settled
    }

    fn on_settled(&mut self, name: &OsStr, settle: Settle, turn: &mut Turn) {
        if let Some(why) = self.roster.settle(name, settle) {
            let is_told = self.rows.delayed.admits(turn.now);
            let text = format!("not imported, and nothing has happened for a while: {why}");
            turn.say(
                Line::warn(text)
                    .outcome(Outcome::Stalled)
                    .bundle(name)
                    .told(is_told),
            );
        }
        // The order of arrival is the order in which bundles were finished. The daemon's time for
        // them does not matter.
        if let (Some(Phase::Ready), Some(identity)) = (self.roster.phase(name), self.roster.identity(name)) {
            self.unsaved |= self.ledger.arrive(name, &identity);
        }
    }

    pub(super) fn look_again(&mut self, name: &OsStr, now: Instant) {
        self.relist = true;
        self.roster.look_at(name, now + AGAIN);
    }

    /// Applies the opening of a file that is to be imported.
    pub(super) fn on_opened(&mut self, name: &OsStr, version: Version, opening: Opening, turn: &mut Turn) {
        if self.roster.version(name).as_ref() != Some(&version) {
            return;
        }
        let unguarded = self.unguarded(self.folder_of(name));
        match opening {
            Opening::Replaced => self.look_again(name, turn.now),
            Opening::Refused(refused) => self.turn_away(name, &refused, turn),
            Opening::Open(_) if unguarded.is_some() => {
                // The reason is the folder's, so the log has it once.
                if !version.is_known(&self.ledger, name) {
                    let error = LastError {
                        text: unguarded.unwrap_or_default(),
                        class: ErrorClass::Refused,
                        at: turn.at,
                        images: 0,
                        refused_by: None,
                    };
                    let outcome = ledger::Outcome::Failed;
                    self.ledger.record_failure(name, version.identity, outcome, error);
                    self.unsaved = true;
                }
                self.roster.refuse(name);
            }
            Opening::Open(ending) if self.is_left_to_others(name, ending, &version, turn.now) => {}
            Opening::Open(ending) => self.start(name, ending, version, turn),
        }
    }

    fn start(&mut self, name: &OsStr, ending: Option<Ending>, version: Version, turn: &mut Turn) {
        let Some(lane) = self.lanes.lane_for(self.load(name, &version)) else {
            return;
        };
        let is_repair = version.is_known(&self.ledger, name);
        let mode = self.settings.checksums;
        // A known bundle may have been imported without a checksum. That is not enough if a
        // checksum is required.
        let is_needed = mode == Checksums::Require && version.sidecar.is_none();
        let is_checked = mode == Checksums::Off || is_repair && !is_needed;
        // The refusal of a file that is no archive is line enough. A folder gets its line when a
        // job has found it whole, and a heavy bundle already had one.
        let is_archive = !version.is_layout && ending != Some(Ending::Foreign);
        let is_begun = self.lanes.is_heavy(name, &version.identity);
        let is_told = is_archive && !is_begun && self.rows.begun.admits(turn.now);
        self.roster.begin(name);
        self.lanes.start(name, version.clone(), lane, turn.now);
        self.interrupt_unpacking(turn);
        turn.act(Action::Start(Start {
            name: name.to_owned(),
            version,
            lane,
            is_checked,
            is_told,
        }));
    }

    /// Schedules another read of the bundle in the main lane, where the whole limits apply.
    fn wait_for_main_lane(&mut self, name: &OsStr, why: &str, turn: &mut Turn) {
        let text = format!("too heavy to read beside another bundle: {why}");
        turn.say(Line::debug(text).bundle(name));
        let Some(job) = self.lanes.end(name) else {
            return;
        };
        let roster = &self.roster;
        let is_there = |name: &OsStr| roster.phase(name).is_some();
        self.lanes.note_heavy(name, &job.version.identity, is_there);
        self.roster.stop_running(name);
    }

    /// Postpones an upload that may resume, for as long as that is possible. Returns true if it
    /// did.
    fn puts_off(&mut self, name: &OsStr, may_go_on: bool, turn: &mut Turn) -> bool {
        let Some(job) = self.lanes.get(name).filter(|job| self.is_current(job)) else {
            return false;
        };
        let is_layout = job.version.is_layout;
        let since = self.roster.still_since(name).filter(|_| !is_layout);
        let until = since.and_then(|since| folder::may_go_on_until(since, turn.now));
        let Some(look) = until.filter(|_| may_go_on) else {
            return false;
        };
        let is_told = self.rows.delayed.admits(turn.now);
        let text =
            "not whole yet. The daemon reads it again when it has changed, or has not changed for a while";
        turn.say(Line::info(text).bundle(name).told(is_told));
        self.roster.look_at(name, look);
        self.lanes.end(name);
        true
    }

    pub(super) fn on_bad(&mut self, name: &OsStr, bad: &Bad, turn: &mut Turn) {
        let is_light = |job: &Job| job.lane == super::lanes::Lane::Light;
        if bad.is_beyond_limits && self.lanes.get(name).is_some_and(is_light) {
            return self.wait_for_main_lane(name, &bad.text, turn);
        }
        if self.puts_off(name, bad.may_go_on, turn) {
            return;
        }
        let Some(job) = self.end_current(name) else {
            return;
        };
        if !job.version.is_layout || self.settle_layout(name, false, turn) {
            turn.act(Action::Count(name.to_owned()));
            let retry = matches!(bad.class, ErrorClass::Transient | ErrorClass::Disk);
            self.fail(&job, &bad.text, bad.class, retry, turn);
        }
    }

    /// Applies the catalog that a job read: the bundle waits for its turn, or the daemon refuses
    /// it.
    pub(super) fn on_found(&mut self, name: &OsStr, found: Found, turn: &mut Turn) {
        if self.puts_off(name, found.may_go_on, turn) {
            return;
        }
        let Some(job) = self.lanes.get(name) else {
            return;
        };
        if self.is_draining || !self.is_current(job) {
            return self.on_dropped(name, turn);
        }
        if job.version.is_layout {
            if found.broken.is_some() && !self.settle_layout(name, false, turn) {
                self.lanes.end(name);
                return;
            }
            if self.settings.signatures.is_none() {
                let is_told = self.rows.begun.admits(turn.now);
                turn.say(Line::info("importing").bundle(name).told(is_told));
            }
        }
        let word = match found.unfinished {
            Some(reason) => Word::Damaged(reason),
            None => self.word_on(name, &found.catalog, found.verdict),
        };
        let word = match &word {
            Word::Admitted(signers) => self
                .why_not_replaced(name, &found.records, signers)
                .map_or(word, |why| Word::Refused(why, Some(RefusedBy::OtherKey))),
            _ => word,
        };
        if let (Word::Admitted(_), Some(of)) = (&word, found.stands_for) {
            self.ledger.stand_for(name, of);
            self.unsaved = true;
        }
        if let Word::Admitted(signers) = word {
            if self.settings.signatures.is_some() {
                let is_told = self.rows.begun.admits(turn.now);
                let with_kind = |signer: &SignerEntry| format!("{signer}, {}", signer.kind);
                let keys: Vec<String> = signers.iter().map(with_kind).collect();
                let text = match keys.is_empty() {
                    true => "importing, without a signature".to_owned(),
                    false => format!("importing, signed by {}", keys.join(" and ")),
                };
                turn.say(Line::info(text).bundle(name).told(is_told));
            }
            return self.lanes.wait(name, found.records, signers);
        }
        let Some(job) = self.lanes.end(name) else {
            return;
        };
        match word {
            Word::Admitted(_) => {}
            Word::Missing(_) | Word::Refused(..) if job.has_new_proof => self.start_over(name),
            Word::Missing(why) => {
                self.await_file(&job, Lack::Signature, &why, turn);
                turn.act(Action::Save);
            }
            Word::Damaged(reason) => self.fail(&job, &reason, ErrorClass::Bundle, false, turn),
            Word::Refused(why, by) => self.refuse(&job, &why, by, turn),
        }
    }

    /// Decides if a bundle is imported. A file that was imported before the rule for signatures
    /// keeps its images. It must have the content that was imported, and nothing may revoke it.
    fn word_on(&self, name: &OsStr, catalog: &Digest, verdict: Verdict) -> Word {
        let before = self
            .ledger
            .get(name)
            .and_then(|entry| entry.imported.as_ref())
            .filter(|imported| imported.catalog == *catalog);
        let is_older = before.is_some_and(|imported| imported.signers.is_empty());
        match verdict {
            Verdict::Admitted(admission) => {
                Word::Admitted(admission.signers.into_iter().map(SignerEntry::from).collect())
            }
            Verdict::Allowed => Word::Admitted(
                before
                    .map(|imported| imported.signers.clone())
                    .unwrap_or_default(),
            ),
            Verdict::Missing(_) if is_older => Word::Admitted(Vec::new()),
            Verdict::Missing(why) => Word::Missing(why),
            Verdict::Forbidden(Forbidden { by, .. }) if is_older && by.is_about_keys() => {
                Word::Admitted(Vec::new())
            }
            Verdict::Forbidden(Forbidden { why, by }) => Word::Refused(why, by.refusal()),
        }
    }

    /// Starts the imports that no longer wait for another bundle.
    pub(super) fn start_unblocked(&mut self, turn: &mut Turn) {
        while !self.is_draining {
            let ledger = &self.ledger;
            let Some(name) = self.lanes.unblocked(|name| ledger.rank(name)) else {
                return;
            };
            self.start_import(&name, turn);
        }
    }

    fn start_import(&mut self, name: &OsStr, turn: &mut Turn) {
        if std::mem::take(&mut self.unsaved) {
            // The next daemon must know whose blobs and records these are if this one crashes.
            turn.act(Action::Save);
        }
        let Some(job) = self.lanes.get(name) else {
            return;
        };
        if !job.version.is_known(&self.ledger, name) {
            // An operator who places a bundle again wants its images, regardless of what happened
            // to those of the bundle before.
            self.healing.forget(name);
        }
        let mut leave = self.names_to_leave(job);
        let withheld = self.names_withheld(name, &job.records, &job.signers);
        // The ledger keeps names that the bundle gets later. It may never get these.
        leave.retain(|name, _| !withheld.contains_key(name));
        let left = leave.keys().cloned().collect();
        let kept = withheld.keys().cloned().collect();
        leave.extend(withheld);
        if let Some(job) = self.lanes.get_mut(name) {
            (job.left, job.withheld) = (left, kept);
        }
        self.lanes.go_on(name, Stage::Importing, turn.now);
        turn.act(Action::Import(name.to_owned(), leave));
    }

    /// Returns the names that a bundle may not write by the rule for signatures, each with the
    /// reason. A name in place under a trusted key stays with that key. A bundle that no signature
    /// admits gets no new name.
    fn names_withheld(
        &self,
        file: &OsStr,
        records: &BTreeMap<String, Digest>,
        signers: &[SignerEntry],
    ) -> BTreeMap<String, String> {
        let mut withheld = BTreeMap::new();
        let entry = self.ledger.get(file);
        let imported = entry.and_then(|entry| entry.imported.as_ref());
        let is_recorded = |name: &String| {
            imported.is_some_and(|imported| imported.images.iter().any(|image| image.name == *name))
        };
        if self.settings.signatures == Some(Signatures::Require) && signers.is_empty() {
            let new = records.keys().filter(|name| !is_recorded(name));
            withheld.extend(new.map(|name| (name.clone(), UNADMITTED.to_owned())));
        }
        let of_others = self.names_of_other_keys(records, signers);
        withheld.extend(
            of_others
                .into_iter()
                .map(|(name, (_, why))| (name.to_owned(), why)),
        );
        withheld
    }

    /// Returns the names in place under trusted keys that these signers may not move. Each has its
    /// bundle and the reason.
    fn names_of_other_keys<'a>(
        &'a self,
        records: &'a BTreeMap<String, Digest>,
        signers: &[SignerEntry],
    ) -> BTreeMap<&'a str, (&'a OsStr, String)> {
        if self.settings.signatures.is_none() {
            return BTreeMap::new();
        }
        // Before the first look at the keys, each of them counts.
        let keys = self.keys.as_ref().map(|keys| &keys.trusted);
        let is_trusted = |key: &Digest| keys.is_none_or(|keys| keys.contains(key));
        let records = records.iter().map(|(name, target)| (name.as_str(), target));
        desired::of_other_keys(&self.ledger, records, signers, is_trusted)
    }

    /// Returns the reason for a refusal of a file that replaces a bundle of another trusted key. It
    /// would move a name of that bundle. The ledger keeps the names of a refused file.
    fn why_not_replaced(
        &self,
        file: &OsStr,
        records: &BTreeMap<String, Digest>,
        signers: &[SignerEntry],
    ) -> Option<String> {
        let others = self.names_of_other_keys(records, signers);
        let (name, (_, why)) = others.into_iter().find(|(_, (owner, _))| *owner == file)?;
        Some(format!(
            "{name}: {why}, which this file replaced. Place a bundle of another key under another file name"
        ))
    }

    /// Queues the bundles that may by now have a name that the rule for signatures kept from them.
    pub(super) fn queue_withheld(&mut self) {
        let is_free = |entry: &&Entry| {
            let Some(imported) = &entry.imported else {
                return false;
            };
            let images = imported.withheld.iter();
            let names = images.map(|image| (image.name.clone(), image.target.clone()));
            let names: BTreeMap<String, Digest> = names.collect();
            let is_same = entry.identity == imported.identity;
            is_same
                && entry.is_vouching()
                && !names.is_empty()
                && self.names_withheld(&entry.file, &names, &imported.signers).len() < names.len()
        };
        let free = self.ledger.entries().into_iter().filter(is_free);
        for name in free.map(|entry| entry.file.clone()).collect::<Vec<_>>() {
            let phase = self.roster.phase(&name);
            let is_settled = matches!(
                phase,
                Some(Phase::Known | Phase::Done | Phase::Failed { retry: None })
            );
            if is_settled && !self.is_set_aside(&name) {
                self.roster.queue(&name);
            }
        }
    }

    /// Returns the names of a bundle that its import must not write, each with the reason.
    fn names_to_leave(&self, job: &Job) -> BTreeMap<String, String> {
        let mut leave = BTreeMap::new();
        if job.version.is_known(&self.ledger, &job.name) {
            // This import is a restore. It must not undo what other programs did on purpose since
            // the first import.
            let elsewhere = self.elsewhere.get(&job.name).into_iter().flatten();
            leave.extend(elsewhere.map(|name| (name.clone(), MOVED.to_owned())));
        }
        let later = self.ledger.later_claims(&job.name);
        let folder = self.folder_of(&job.name);
        for (name, target) in &job.records {
            if let Some((_, entry)) = later.get(name.as_str()).filter(|(wanted, _)| *wanted != target) {
                let is_beside = self.folder_of(&entry.file) == folder;
                leave.insert(name.clone(), if is_beside { LATER } else { BEFORE }.to_owned());
            }
        }
        let names = job.records.keys().map(String::as_str);
        leave.extend(desired::left_out(names, &self.settings.exclude));
        leave
    }

    /// Returns true if a job left out a name that it may write by now.
    pub(super) fn may_write_more(&self, job: &Job) -> bool {
        if job.left.is_empty() {
            return false;
        }
        let leave = self.names_to_leave(job);
        job.left.iter().any(|name| !leave.contains_key(name))
    }

    pub(super) fn on_list(
        &mut self,
        name: &OsStr,
        catalog: Digest,
        distrust: Option<String>,
        turn: &mut Turn,
    ) {
        let is_current = self.lanes.get(name).is_some_and(|job| self.is_current(job));
        if self.is_draining || !is_current {
            return self.on_dropped(name, turn);
        }
        if let Some(why) = distrust {
            if let Some(job) = self.lanes.end(name) {
                self.refuse(&job, &why, None, turn);
            }
            return;
        }
        self.lanes.go_on(name, Stage::Pulling { catalog }, turn.now);
        turn.act(Action::Pull(name.to_owned()));
    }

    /// Returns true if the job's file and the rules have not changed since the job started.
    pub(super) fn is_current(&self, job: &Job) -> bool {
        !job.is_outdated && self.roster.version(&job.name).as_ref() == Some(&job.version)
    }

    /// Drops the jobs of files that were replaced or removed. A checksum that appears during an
    /// import stops nothing: the import compares each byte with its digest, and the daemon compares
    /// the file with the checksum afterwards.
    pub(super) fn drop_outdated_jobs(&mut self, turn: &mut Turn) {
        let roster = &self.roster;
        let is_outdated = |job: &&Job| {
            let is_importing = matches!(job.stage, Stage::Importing);
            let version = roster.version(&job.name);
            version.is_none_or(|version| match is_importing {
                true => version.identity != job.version.identity,
                false => version != job.version,
            })
        };
        let outdated = self
            .lanes
            .all()
            .filter(|job| !job.is_outdated)
            .filter(is_outdated);
        let outdated: BTreeSet<OsString> = outdated.map(|job| job.name.clone()).collect();
        for name in &outdated {
            let text = "the file was replaced or removed during its import: stopping the import";
            turn.say(Line::info(text).bundle(name));
        }
        if !outdated.is_empty() {
            self.drop_jobs(|job| outdated.contains(&job.name), turn);
        }
    }

    /// Drops the jobs that `is_outdated` selects. The blobs that they moved stay under their
    /// leases.
    pub(super) fn drop_jobs(&mut self, is_outdated: impl Fn(&Job) -> bool, turn: &mut Turn) {
        let (working, over) = self.lanes.drop_if(is_outdated);
        for name in working {
            turn.act(Action::Abort(name));
        }
        if over.iter().any(|job| job.disturbed) {
            self.compare_within(super::compare::BURST, turn.now);
        }
        for job in over {
            self.roster.stop_running(&job.name);
        }
    }
}
