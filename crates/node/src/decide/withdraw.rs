//! Who no longer vouches for what: which source labels go, and our pin with the last of them. Pure.
//!
//! A label goes only when it is certain that its bundle is gone, or that the bundle as it is now was imported without the
//! image. Whatever is not known (the bundle is being replaced, or broken, or the folder itself has vanished) leaves
//! everything as it is: an image too many costs space, one too few costs a node.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use containerd::ImageRecord;
use import::labels::{self, BUNDLE_PREFIX, CRI_MANAGED, LabelChanges, Labels, OUR_PIN, PINNED};
use jiff::Timestamp;
use oci_spec::image::Digest;

use crate::settings::OnRemoval;

/// Whether a bundle vouches for an image record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vouch {
    /// It does.
    Yes,
    /// It is gone for good, or holds the image no more.
    No,
    /// Nobody can tell at the moment.
    Unknown,
}

/// A record that loses labels of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Withdrawal {
    /// The record.
    pub(crate) name: String,
    /// The bundles that vouch for it no more, by file name.
    pub(crate) bundles: BTreeSet<String>,
    /// Whether the pin goes.
    pub(crate) unpins: bool,
    /// Whether the record may go as a whole, if no container was made from it.
    pub(crate) deletes: bool,
    /// The labels that go.
    pub(crate) changes: LabelChanges,
}

/// Decides which labels go. `vouch` is asked with a bundle's file name and a record.
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
    let is_gone = |key: &str, file: &str| key.starts_with(BUNDLE_PREFIX) && vouch(file, record) == Vouch::No;
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

/// Whether nothing is left on a record after `changes` but CRI's note that it has seen it.
fn is_nobodys(labels: &Labels, changes: &LabelChanges) -> bool {
    labels
        .keys()
        .all(|key| changes.contains_key(key) || key == CRI_MANAGED)
}

/// The records that CRI keeps by image id (`sha256:…`) of images whose names were all deleted: nothing but those would hold
/// their blobs. `there` are the records that are left of the targets of those that were `deleted`.
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

/// How much is left of the time that a pin outlives its last bundle.
///
/// A clock that was set back since makes the grace longer, never shorter: [`crate::state::ledger::Ledger::mark_gone`] lets it
/// begin anew then.
pub(crate) fn grace_left(gone: Timestamp, now: Timestamp, grace: Duration) -> Duration {
    match u64::try_from(now.duration_since(gone).as_millis()) {
        Ok(past) => grace.saturating_sub(Duration::from_millis(past)),
        Err(_) => grace,
    }
}

/// Whether a listing that lacks `gone` of `known` bundles is rather a fault of the folder than somebody's wish: most of
/// them at once. One or two are taken for a wish however few there are.
pub(crate) fn is_mass_loss(gone: usize, known: usize) -> bool {
    gone >= 3 && gone * 2 > known
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
                "a pin of somebody else stays",
                &[A, PIN, ("io.k0sproject.ocibundle-paths", "{}")],
                &[A.0],
            ),
            (
                "a pin that k0s wants too stays, and is its own",
                &[A, PIN, OURS, ("io.k0sproject.ocibundle-paths", "{}")],
                &[A.0, OURS.0],
            ),
            ("what still vouches stays", &[B, PIN, OURS], &[]),
            (
                "what is not ours is not looked at",
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
            ("the pin is somebody else's", &[A, PIN, CRI], false),
            (
                "k0s has it",
                &[A, PIN, OURS, ("io.k0sproject.ocibundle-paths", "{}")],
                false,
            ),
            (
                "somebody has put a label on it",
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

    #[test]
    fn most_bundles_at_once_are_a_fault_and_one_or_two_are_a_wish() {
        let table = [
            (0, 0, false),
            (1, 1, false),
            (2, 2, false),
            (3, 3, true),
            (3, 6, false),
            (4, 6, true),
            (999, 1000, true),
        ];
        for (gone, known, fault) in table {
            assert_eq!(is_mass_loss(gone, known), fault, "{gone} of {known}");
        }
    }
}
