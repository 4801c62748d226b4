//! Decides which bundle labels leave which records, and when the pin goes with the last of them.
//! Pure.
//!
//! A label goes only in two cases: its bundle is certainly gone, or its present bundle was
//! certainly imported without the image. In doubt everything stays as it is: the bundle may be
//! about to be replaced, or broken, or the folder itself may have vanished. An image too many costs
//! space, but an image too few costs a node.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

use containerd::ImageRecord;
use import::labels::{self, BUNDLE_PREFIX, CRI_MANAGED, LabelChanges, Labels, OUR_PIN, PINNED};
use import::{Pattern, Survey};
use jiff::Timestamp;
use oci_spec::image::Digest;

use super::compare::{BURST, Connection};
use super::desired::ByName;
use super::{Errand, Turn};
use crate::settings::OnRemoval;
use crate::state::State;
use crate::state::ledger::{BundleId, Entry, Imported, label_name};
use crate::state::roster::Phase;

/// A bundle's answer to whether it vouches for an image record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vouch {
    /// The bundle vouches for the record.
    Yes,
    /// The bundle is gone and its grace is over, or it no longer has the image.
    No,
    /// The answer is unknown at the moment.
    Unknown,
}

/// A bundle's answer for all records.
enum Word<'s> {
    /// The same answer for each record.
    All(Vouch),
    /// An answer by the images of its last import.
    ByImage {
        /// The bundle's name in labels.
        file: String,
        by_name: &'s ByName<'s>,
        exclude: &'s [Pattern],
    },
}

impl Word<'_> {
    fn on(&self, record: &ImageRecord) -> Vouch {
        let (file, by_name, exclude) = match self {
            Word::All(vouch) => return *vouch,
            Word::ByImage {
                file,
                by_name,
                exclude,
            } => (file, by_name, exclude),
        };
        let (name, there) = (record.name.as_str(), record.target.digest());
        match by_name.image(file, name) {
            // An existing record of an excluded name stays as it is.
            None if exclude.iter().any(|pattern| pattern.matches(name)) => Vouch::Unknown,
            None => Vouch::No,
            Some(target) if target == there => Vouch::Yes,
            // Another bundle has the name by now. Otherwise another program moved the record: the
            // log says so, and the daemon leaves it alone.
            Some(_) if by_name.desired(name) == Some(there) => Vouch::No,
            Some(_) => Vouch::Unknown,
        }
    }
}

/// A record that loses labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Withdrawal {
    /// Name of the record.
    pub(crate) name: String,
    /// The bundles that no longer vouch for it, by file name.
    pub(crate) bundles: BTreeSet<String>,
    /// True if the pin goes.
    pub(crate) unpins: bool,
    /// True if the whole record may go, provided that no container was made from it.
    pub(crate) deletes: bool,
    /// The labels that go.
    pub(crate) changes: LabelChanges,
}

/// Decides which labels go. `vouch` takes a bundle's file name and a record.
pub(crate) fn withdrawals(
    records: &[&ImageRecord],
    vouch: impl Fn(&str, &ImageRecord) -> Vouch,
    on_removal: OnRemoval,
) -> Vec<Withdrawal> {
    records
        .iter()
        .filter_map(|record| withdrawal(record, &vouch, on_removal))
        .collect()
}

fn withdrawal(
    record: &ImageRecord,
    vouch: impl Fn(&str, &ImageRecord) -> Vouch,
    on_removal: OnRemoval,
) -> Option<Withdrawal> {
    let is_of_file =
        |key: &str, file: &str| key.starts_with(BUNDLE_PREFIX) || labels::is_mark_of_receipt(key, file);
    let is_gone = |key: &str, file: &str| is_of_file(key, file) && vouch(file, record) == Vouch::No;
    let sources = record.labels.iter().filter(|(key, file)| is_gone(key, file));
    let bundles: BTreeSet<String> = sources.map(|(_, file)| file.clone()).collect();
    if bundles.is_empty() {
        return None;
    }
    let mut changes = labels::disown(&record.labels, is_gone);
    if on_removal == OnRemoval::Keep {
        changes.retain(|key, _| key != PINNED && key != OUR_PIN);
    }
    let unpins = changes.contains_key(PINNED);
    let deletes = on_removal == OnRemoval::Delete && unpins && is_nobodys(&record.labels, &changes);
    Some(Withdrawal {
        name: record.name.clone(),
        bundles,
        unpins,
        deletes,
        changes,
    })
}

/// Returns true if `changes` leave only CRI's note that it has seen the record.
fn is_nobodys(labels: &Labels, changes: &LabelChanges) -> bool {
    labels
        .keys()
        .all(|key| changes.contains_key(key) || key == CRI_MANAGED)
}

/// Returns the records that CRI keeps by image id (`sha256:…`) of images whose names were all
/// deleted. Only these records would still keep the blobs. `there` are the remaining records with
/// the targets of those that were `deleted`.
pub(crate) fn left_over<'r>(there: &'r [ImageRecord], deleted: &[&ImageRecord]) -> Vec<&'r ImageRecord> {
    let is_of_cri = |record: &ImageRecord| {
        record.name.starts_with("sha256:") && record.labels.keys().all(|key| key == CRI_MANAGED)
    };
    let gone: HashSet<&Digest> = deleted.iter().map(|record| record.target.digest()).collect();
    let named = there.iter().filter(|record| !is_of_cri(record));
    let named: HashSet<&Digest> = named.map(|record| record.target.digest()).collect();
    let is_left = |record: &&ImageRecord| {
        let target = record.target.digest();
        is_of_cri(record) && gone.contains(target) && !named.contains(target)
    };
    there.iter().filter(is_left).collect()
}

/// Returns the rest of the time for which a pin outlives its last bundle.
///
/// A clock that was set back makes the grace longer, never shorter:
/// [`crate::state::ledger::Ledger::mark_gone`] then starts it again.
pub(crate) fn grace_left(gone: Timestamp, now: Timestamp, grace: Duration) -> Duration {
    match u64::try_from(now.duration_since(gone).as_millis()) {
        Ok(past) => grace.saturating_sub(Duration::from_millis(past)),
        Err(_) => grace,
    }
}

/// Labels and pins to remove, and the survey that the decision used.
#[derive(Debug)]
pub(crate) struct Withdrawing {
    pub(crate) plan: Vec<Withdrawal>,
    /// Bundles whose labels stay until a job has ended, by file name.
    withheld: BTreeSet<String>,
    pub(crate) survey: Survey,
    /// Labels of which the survey has all records.
    labels: Vec<String>,
}

/// Returns the label key of a bundle.
pub(crate) fn label_of(file: &OsStr) -> String {
    format!("{BUNDLE_PREFIX}{}", BundleId::of(file))
}

impl State {
    /// Removes labels and pins for which no bundle vouches any more, and deletes records if the
    /// settings ask for that. The survey has all records with these `labels`.
    pub(super) fn withdraw(&mut self, survey: Survey, labels: Vec<String>, turn: &mut Turn) {
        let records: Vec<&ImageRecord> = survey.records.values().collect();
        let by_name = ByName::of(&self.ledger);
        let words = self.words(&by_name, turn.at);
        let vouch =
            |file: &str, record: &ImageRecord| words.get(file).map_or(Vouch::Unknown, |word| word.on(record));
        let plan = withdrawals(&records, vouch, self.settings.on_removal);
        let (plan, withheld) = self.withhold(plan, &survey);
        let withdrawing = Withdrawing {
            plan,
            withheld,
            survey,
            labels,
        };
        match withdrawing.plan.is_empty() {
            true => self.on_withdrawn(withdrawing, &[], turn),
            false => turn.send(Errand::Withdraw(Box::new(withdrawing))),
        }
    }

    /// Applies the removal of labels and pins. It left out the `untouched` records.
    pub(super) fn on_withdrawn(&mut self, withdrawing: Withdrawing, untouched: &[String], turn: &mut Turn) {
        let Withdrawing {
            plan,
            mut withheld,
            survey,
            labels,
        } = withdrawing;
        if !untouched.is_empty() {
            let untouched: HashSet<&String> = untouched.iter().collect();
            let left = plan
                .into_iter()
                .filter(|withdrawal| untouched.contains(&withdrawal.name));
            withheld.extend(left.flat_map(|withdrawal| withdrawal.bundles));
            self.compare_within(BURST, turn.now);
        }
        let records: Vec<&ImageRecord> = survey.records.values().collect();
        let is_known = |key: &str| survey.census.is_some() || labels.iter().any(|looked| looked == key);
        self.forget_withdrawn(&records, is_known, turn);
        self.note_judged(&withheld);
        self.wake_for_grace(&withheld, turn.now, turn.at);
        self.sweep_leases(turn);
    }

    /// Takes records out of a plan: those that a job is about to vouch for, and those that a bundle
    /// is about to get back. The comparison after the import removes the rest. Returns the bundles
    /// whose labels stay until then, by file name.
    fn withhold(
        &mut self,
        mut plan: Vec<Withdrawal>,
        survey: &Survey,
    ) -> (Vec<Withdrawal>, BTreeSet<String>) {
        let owed = self.owed(&plan, survey);
        let mut withheld = BTreeSet::new();
        plan.retain(|withdrawal| {
            let job = self.lanes.writer_of(&withdrawal.name);
            let stays = job.is_some() || owed.contains(&withdrawal.name);
            if let Some(job) = job {
                job.disturbed = true;
            }
            if stays {
                withheld.extend(withdrawal.bundles.iter().cloned());
            }
            !stays
        });
        (plan, withheld)
    }

    /// Returns the records of a plan that an earlier bundle is about to get back. Until then, the
    /// label of the later bundle shows that no other program moved the record. A daemon that starts
    /// meanwhile has no other way to know.
    fn owed(&self, plan: &[Withdrawal], survey: &Survey) -> BTreeSet<String> {
        if plan.is_empty() {
            return BTreeSet::new();
        }
        let desired = self.ledger.desired_images();
        let is_owed = |name: &&String| {
            let record = survey.records.get(*name);
            let wanted = desired.get(name.as_str()).zip(record);
            wanted.is_some_and(|((target, owner), record)| {
                record.target.digest() != *target && self.is_about_to_be_imported(&owner.file)
            })
        };
        let names = plan.iter().map(|withdrawal| &withdrawal.name);
        names.filter(is_owed).cloned().collect()
    }

    /// Returns true if only time keeps a bundle from its import. A bundle that waits for room does
    /// not count, since a pinned image may occupy that room.
    fn is_about_to_be_imported(&self, file: &OsStr) -> bool {
        let phase = self.roster.phase(file);
        let is_queued = matches!(
            phase,
            Some(Phase::Ready | Phase::Running | Phase::Failed { retry: Some(_) })
        );
        is_queued && !self.room.keeps_waiting(file)
    }

    /// Remembers the bundles whose labels could not be judged yet, or were judged and have to stay
    /// for now.
    fn note_judged(&mut self, withheld: &BTreeSet<String>) {
        let is_judged = |entry: &Entry| {
            self.imported_as_it_is(entry).is_some() && !withheld.contains(&label_name(&entry.file))
        };
        let is_over = |entry: &Entry| entry.gone.is_some() || entry.imported.is_none() || is_judged(entry);
        let are_all_over = self.ledger.entries().into_iter().all(is_over);
        let reworded = self.reworded.iter().filter(|file| {
            let entry = self.ledger.get(file);
            entry.is_some_and(|entry| !is_judged(entry))
        });
        self.reworded = reworded.cloned().collect();
        if let Connection::Up(up) = &mut self.connection {
            up.ours_listed |= are_all_over;
        }
    }

    /// Returns the labels that may be on records which the ledger does not know, and that may have
    /// to go. They belong to bundles whose grace is over, that vanished, or that were imported with
    /// other images than before. After a new connection or a change of the configuration, the pin
    /// itself is one of them.
    ///
    /// If containerd has few records, a survey lists them all anyway. If it has very many, these
    /// are the only lists that a survey asks for.
    pub(super) fn labels_in_doubt(&self, at: Timestamp) -> Vec<String> {
        let grace = self.settings.unpin_grace;
        let is_over = |entry: &&Entry| match entry.gone {
            Some(gone) => grace_left(gone, at, grace).is_zero(),
            // The operator may have released it by hand.
            None => self.is_vanished(&entry.file),
        };
        let gone = self.ledger.entries().into_iter().filter(is_over);
        let files = gone.map(|entry| entry.file.as_os_str());
        let files: BTreeSet<&OsStr> = files
            .chain(self.reworded.iter().map(OsString::as_os_str))
            .collect();
        let ours_listed = matches!(&self.connection, Connection::Up(up) if up.ours_listed);
        let pin = (!ours_listed).then(|| OUR_PIN.to_owned());
        let labels = files.into_iter().map(label_of);
        pin.into_iter().chain(labels).collect()
    }

    /// Returns each bundle's answer for records, by the name that labels have for its file.
    fn words<'s>(&'s self, by_name: &'s ByName<'s>, at: Timestamp) -> HashMap<String, Word<'s>> {
        let word = |entry: &'s Entry| match entry.gone {
            Some(gone) if grace_left(gone, at, self.settings.unpin_grace).is_zero() => Word::All(Vouch::No),
            Some(_) => Word::All(Vouch::Unknown),
            None if self.imported_as_it_is(entry).is_none() => Word::All(Vouch::Unknown),
            None => Word::ByImage {
                file: label_name(&entry.file),
                by_name,
                exclude: &self.settings.exclude,
            },
        };
        let entries = self.ledger.entries().into_iter();
        entries
            .map(|entry| (label_name(&entry.file), word(entry)))
            .collect()
    }

    /// Returns the last import of a bundle, if the file is still the same and was imported in full.
    fn imported_as_it_is<'e>(&self, entry: &'e Entry) -> Option<&'e Imported> {
        entry.imported.as_ref().filter(|imported| {
            self.roster.phase(&entry.file) == Some(Phase::Done)
                && entry.last_error.is_none()
                && self.roster.identity(&entry.file).as_ref() == Some(&imported.identity)
        })
    }

    /// Forgets absent files if no record carries their label any more. `is_known` tells whether the
    /// survey has all records with a label.
    fn forget_withdrawn(
        &mut self,
        records: &[&ImageRecord],
        is_known: impl Fn(&str) -> bool,
        turn: &mut Turn,
    ) {
        let carried: HashSet<&str> = records
            .iter()
            .flat_map(|record| record.labels.keys())
            .map(String::as_str)
            .filter(|key| key.starts_with(BUNDLE_PREFIX))
            .collect();
        let labelled = |file: &OsStr| {
            let key = label_of(file);
            !is_known(&key) || carried.contains(key.as_str())
        };
        let entries = self
            .ledger
            .entries()
            .into_iter()
            .filter(|entry| !self.is_there(&entry.file) && !labelled(&entry.file));
        let forgotten: Vec<OsString> = entries.map(|entry| entry.file.clone()).collect();
        for name in forgotten {
            let forgotten = self.ledger.forget(&name);
            self.healing.forget(&name);
            let is_receipt = forgotten.as_ref().is_some_and(|entry| entry.stands_for.is_some());
            if is_receipt {
                self.receipts.end(label_name(&name));
            }
            if is_receipt || forgotten.is_some_and(|entry| entry.signers().next().is_some()) {
                // The evidence of its admission may cover no record any more, and a receipt has a
                // lease.
                self.sweep_soon(turn.now);
            }
            self.elsewhere.remove(&name);
        }
        if self.folders.iter().any(|folder| folder.vanished.is_some()) {
            self.notice_gone(turn);
        }
    }

    /// Schedules a comparison for the moment when the next grace of a gone bundle is over. Bundles
    /// that wait for a job do not count.
    fn wake_for_grace(&mut self, withheld: &BTreeSet<String>, now: Instant, at: Timestamp) {
        let grace = self.settings.unpin_grace;
        let left = |gone: Timestamp| grace_left(gone, at, grace);
        let next = self
            .ledger
            .entries()
            .into_iter()
            .filter(|entry| !withheld.contains(&label_name(&entry.file)))
            .filter_map(|entry| entry.gone)
            .map(left)
            .min();
        if let Some(left) = next {
            self.compare_within(left.max(BURST), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::{Descriptor, Digest, MediaType};

    use super::*;

    fn record(pairs: &[(&str, &str)]) -> ImageRecord {
        let digest: Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        let labels = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        ImageRecord {
            name: "r.test/a:1".into(),
            target: Descriptor::new(MediaType::ImageManifest, 7, digest),
            labels,
            created_at: None,
        }
    }

    const A: (&str, &str) = ("io.airgapd.bundle.aaaaaaaaaaaaaaaa", "a.tar");
    const B: (&str, &str) = ("io.airgapd.bundle.bbbbbbbbbbbbbbbb", "b.tar");
    const PIN: (&str, &str) = (PINNED, "pinned");
    const OURS: (&str, &str) = (OUR_PIN, "true");

    fn gone(file: &str, _: &ImageRecord) -> Vouch {
        if file == "a.tar" { Vouch::No } else { Vouch::Yes }
    }

    fn keys(record: &ImageRecord, on_removal: OnRemoval) -> Vec<String> {
        let found = withdrawals(&[record], gone, on_removal);
        found
            .into_iter()
            .flat_map(|withdrawal| withdrawal.changes.into_keys())
            .collect()
    }

    #[test]
    fn labels_go_as_far_as_nobody_else_vouches() {
        type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);
        let table: [Row<'_>; 7] = [
            (
                "the last of ours takes the pin along",
                &[A, PIN, OURS],
                &[A.0, PIN.0, OURS.0],
            ),
            ("another bundle keeps the pin", &[A, B, PIN, OURS], &[A.0]),
            (
                "an import by hand keeps the pin",
                &[A, ("io.airgapd.import", "a.tar"), PIN, OURS],
                &[A.0],
            ),
            (
                "a pin of another program stays",
                &[A, PIN, ("io.k0sproject.ocibundle-paths", "{}")],
                &[A.0],
            ),
            (
                "a pin that k0s wants too stays, and is its own",
                &[A, PIN, OURS, ("io.k0sproject.ocibundle-paths", "{}")],
                &[A.0, OURS.0],
            ),
            ("the label of a bundle that vouches stays", &[B, PIN, OURS], &[]),
            (
                "labels of other programs do not count",
                &[PIN, ("other", "a.tar")],
                &[],
            ),
        ];
        for (claim, labels, wanted) in table {
            let mut wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            wanted.sort();
            assert_eq!(keys(&record(labels), OnRemoval::Unpin), wanted, "{claim}");
        }
    }

    #[test]
    fn the_grace_runs_out_with_time_and_a_clock_that_is_set_back_does_not_end_it() {
        let second = |at: i64| Timestamp::from_second(at).unwrap();
        let grace = Duration::from_secs(100);
        for (gone, now, left) in [
            (0, 0, 100),
            (0, 40, 60),
            (0, 100, 0),
            (0, 1000, 0),
            (1000, 0, 100),
        ] {
            assert_eq!(
                grace_left(second(gone), second(now), grace),
                Duration::from_secs(left)
            );
        }
    }

    #[test]
    fn with_keep_only_the_source_goes() {
        assert_eq!(keys(&record(&[A, PIN, OURS]), OnRemoval::Keep), [A.0]);
    }

    #[test]
    fn with_delete_a_record_goes_that_nobody_else_has_a_label_on() {
        const CRI: (&str, &str) = (CRI_MANAGED, "managed");
        type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], bool);
        let table: [Row<'_>; 6] = [
            ("ours alone", &[A, PIN, OURS, CRI], true),
            ("another bundle has it", &[A, B, PIN, OURS, CRI], false),
            ("the pin is another program's", &[A, PIN, CRI], false),
            (
                "k0s has it",
                &[A, PIN, OURS, ("io.k0sproject.ocibundle-paths", "{}")],
                false,
            ),
            (
                "another program has put a label on it",
                &[A, PIN, OURS, ("note.test/keep", "")],
                false,
            ),
            ("it had lost its pin", &[A, CRI], false),
        ];
        for (claim, labels, deletes) in table {
            let record = record(labels);
            let found = withdrawals(&[&record], gone, OnRemoval::Delete);
            assert_eq!(found[0].deletes, deletes, "{claim}");
            for other in [OnRemoval::Unpin, OnRemoval::Keep] {
                assert!(!withdrawals(&[&record], gone, other)[0].deletes, "{claim}");
            }
        }
    }

    #[test]
    fn cris_own_record_follows_the_last_name_of_its_image() {
        let named = |name: &str, labels: &[(&str, &str)]| ImageRecord {
            name: name.to_owned(),
            ..record(labels)
        };
        let by_id = named("sha256:cc", &[(CRI_MANAGED, "managed")]);
        let (one, two) = (named("r.test/a:1", &[A]), named("r.test/a:2", &[]));
        let pinned = named("sha256:cc", &[(CRI_MANAGED, "managed"), PIN]);
        let left = |there: &[&ImageRecord], deleted: &[&ImageRecord]| {
            let there: Vec<ImageRecord> = there.iter().copied().cloned().collect();
            left_over(&there, deleted).len()
        };
        assert_eq!(left(&[&by_id], &[&one]), 1);
        assert_eq!(left(&[&by_id], &[&one, &two]), 1);
        assert_eq!(left(&[&two, &by_id], &[&one]), 0, "another name has it");
        assert_eq!(left(&[&one, &by_id], &[]), 0, "nothing was deleted");
        assert_eq!(left(&[&pinned], &[&one]), 0, "CRI has pinned it");
    }

    #[test]
    fn what_is_not_known_changes_nothing() {
        let record = record(&[A, PIN, OURS]);
        assert!(withdrawals(&[&record], |_, _| Vouch::Unknown, OnRemoval::Unpin).is_empty());
    }

    #[test]
    fn a_withdrawal_says_whose_and_whether_the_pin_goes() {
        let record = record(&[A, PIN, OURS]);
        let found = withdrawals(&[&record], gone, OnRemoval::Unpin);
        assert_eq!(found[0].bundles, BTreeSet::from(["a.tar".to_owned()]));
        assert!(found[0].unpins);
    }
}
