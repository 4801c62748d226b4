//! The labels that airgapd writes on image records, and their meaning.
//!
//! Labels are changed one key at a time: CRI, k0s and k3s keep their labels on the same records.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use basics::digest;

/// CRI's pin. kubelet's image garbage collector keeps pinned images.
pub const PINNED: &str = "io.cri-containerd.pinned";
/// The value that CRI expects under [`PINNED`].
pub const PINNED_VALUE: &str = "pinned";
/// Marks the pin as airgapd's. A pin without this mark belongs to another program and is never
/// removed.
pub const OUR_PIN: &str = "io.airgapd.pinned";
/// Prefix of the labels of bundles that vouch for the image, one for each. The value is the
/// bundle's file name.
pub const BUNDLE_PREFIX: &str = "io.airgapd.bundle.";
/// Marks an image that was imported by hand. The value is the file name. Only `airgapd release`
/// removes the label. A receipt sets it too, with the receipt's path as the value: 0.1.0 then keeps
/// the pin of an image whose bundle is gone. See [`is_mark_of_receipt`].
pub const IMPORTED: &str = "io.airgapd.import";
/// The keys that have signed the bundle of the image, for people. It decides nothing, since every
/// client of containerd can write labels.
pub const SIGNER: &str = "io.airgapd.signer";
/// Label in which k0s's importer keeps the bundles of a record: a JSON object of paths and their
/// times of change.
pub const K0S_SOURCES: &str = "io.k0sproject.ocibundle-paths";
/// Label of k3s's importer on records that it pinned.
pub const K3S_PINNED: &str = "io.cattle.k3s.pinned";
/// Label of RKE2's importer on records that it pinned.
pub const RKE2_PINNED: &str = "io.cattle.rke2.pinned";
/// CRI's mark on the records that it knows. airgapd removes the mark when a record changes its
/// target, so that CRI looks at the record again.
pub const CRI_MANAGED: &str = "io.cri-containerd.image";

/// Time after which the garbage collector of containerd 2.0 and later may delete the record, pinned
/// or not. airgapd never sets it on records.
pub const EXPIRES: &str = "containerd.io/gc.expire";

/// Prefix of labels on blobs, followed by a registry's host. The value lists the repositories there
/// that have the blob, separated by commas. containerd's own pulls set these labels, and mirrors
/// among nodes (Spegel) use them.
pub const DISTRIBUTION_SOURCE: &str = "containerd.io/distribution.source.";
/// Longest label, in bytes of key and value together. containerd refuses longer labels
/// (labels.Validate).
const LONGEST: usize = 4096;

/// Label on a lease that names its owner.
pub const LEASE_MARK: &str = "io.airgapd.lease";
/// Prefix of the mark of a lease that belongs to a bundle in the images folder.
pub const LEASE_OF_BUNDLE: &str = "bundle ";
/// Prefix of the mark of the lasting lease of a receipt. 0.1.0 leaves leases with other marks than
/// [`LEASE_OF_BUNDLE`] alone.
pub const LEASE_OF_RECEIPT: &str = "receipt ";

/// The labels of an image record.
pub type Labels = BTreeMap<String, String>;
/// Changes to labels by key. `None` removes the key.
pub type LabelChanges = BTreeMap<String, Option<String>>;

/// The source that vouches for an image: a bundle in the folder, or a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A bundle in the images folder, by file name.
    Bundle(String),
    /// A file imported by hand from elsewhere, by file name.
    Hand(String),
    /// A receipt, by its path.
    Receipt(String),
}

impl Source {
    /// Returns the label of this source: key and value.
    #[must_use]
    pub fn label(&self) -> (String, String) {
        match self {
            Source::Bundle(name) | Source::Receipt(name) => {
                (format!("{BUNDLE_PREFIX}{}", bundle_id(name)), name.clone())
            }
            Source::Hand(name) => (IMPORTED.to_owned(), name.clone()),
        }
    }

    /// Returns the mark that names this source as the owner of the lease of an import.
    #[must_use]
    pub fn lease_mark(&self) -> String {
        match self {
            Source::Bundle(name) | Source::Receipt(name) => format!("{LEASE_OF_BUNDLE}{name}"),
            Source::Hand(name) => format!("import {name}"),
        }
    }
}

/// Returns the labels that give a blob's origin, from repositories such as
/// `quay.io/k0sproject/coredns`. Leaves out repositories for which a label has no room.
#[must_use]
pub fn distribution_sources<'a>(repositories: impl IntoIterator<Item = &'a str>) -> Labels {
    let mut labels = Labels::new();
    let repositories: BTreeSet<&str> = repositories.into_iter().collect();
    for (host, path) in repositories.into_iter().filter_map(|name| name.split_once('/')) {
        let key = format!("{DISTRIBUTION_SOURCE}{host}");
        let mut value = labels.remove(&key).unwrap_or_default();
        add_source(&key, &mut value, path);
        if !value.is_empty() {
            labels.insert(key, value);
        }
    }
    labels
}

/// Returns the labels of `sources` that a blob with the labels `there` lacks. Each label has its
/// full value, with the repositories of other programs first.
#[must_use]
pub fn missing_sources(sources: &Labels, there: &Labels) -> Labels {
    let mut missing = Labels::new();
    for (key, paths) in sources {
        let theirs = there.get(key).map_or("", String::as_str);
        // This is the usual case, and a label may have hundreds of paths.
        if theirs == paths {
            continue;
        }
        let known: HashSet<&str> = theirs.split(',').collect();
        let mut value = theirs.to_owned();
        for path in paths.split(',').filter(|path| !known.contains(path)) {
            add_source(key, &mut value, path);
        }
        if value != theirs {
            missing.insert(key.clone(), value);
        }
    }
    missing
}

/// Adds a path if there is room.
fn add_source(key: &str, value: &mut String, path: &str) {
    let comma = if value.is_empty() { "" } else { "," };
    if key.len() + value.len() + comma.len() + path.len() <= LONGEST {
        value.push_str(comma);
        value.push_str(path);
    }
}

/// Returns the name of a bundle in labels and leases: the first 16 hexadecimal digits of the sha256
/// of its file name.
#[must_use]
pub fn bundle_id(file_name: &str) -> String {
    digest::short(file_name.as_bytes())
}

/// Returns true if the record has a source label of airgapd.
#[must_use]
pub fn is_vouched_for(labels: &Labels) -> bool {
    labels.keys().any(|key| is_source(key))
}

/// Returns true if the record has any label of airgapd.
#[must_use]
pub fn is_any_of_ours(labels: &Labels) -> bool {
    labels.contains_key(OUR_PIN) || is_vouched_for(labels)
}

/// Returns true if `key` is a source label of airgapd.
#[must_use]
pub fn is_source(key: &str) -> bool {
    key.starts_with(BUNDLE_PREFIX) || key == IMPORTED
}

/// Returns true if a label is the mark by hand that a receipt has set. The receipt takes it off
/// with its own label. The mark of another file has a name without a folder.
#[must_use]
pub fn is_mark_of_receipt(key: &str, value: &str) -> bool {
    key == IMPORTED && value.starts_with('/')
}

/// Returns true if another importer wants the record pinned. All importers share one label for the
/// pin, so it is that importer's pin, too.
#[must_use]
pub fn is_pinned_by_others(labels: &Labels) -> bool {
    [K0S_SOURCES, K3S_PINNED, RKE2_PINNED]
        .iter()
        .any(|key| labels.contains_key(*key))
}

/// Returns the programs that keep the record from kubelet's image garbage collector. Importers are
/// recognised by their marks. `another` stands for a pin without any mark. The list is empty for a
/// record without the pin, even if it has marks.
#[must_use]
pub fn pinned_by(labels: &Labels) -> Vec<&'static str> {
    const IMPORTERS: [(&str, &str); 4] = [
        (OUR_PIN, "airgapd"),
        (K0S_SOURCES, "k0s"),
        (K3S_PINNED, "k3s"),
        (RKE2_PINNED, "rke2"),
    ];
    if labels.get(PINNED).is_none_or(|value| value != PINNED_VALUE) {
        return Vec::new();
    }
    let marks = IMPORTERS.iter().filter(|(mark, _)| labels.contains_key(*mark));
    let names: Vec<&str> = marks.map(|(_, name)| *name).collect();
    match names.is_empty() {
        true => vec!["another"],
        false => names,
    }
}

/// Returns true if the record stays pinned when no bundle vouches for it any more. Either another
/// importer wants it, or it was imported by hand, or the pin is not airgapd's.
#[must_use]
pub fn is_kept_by_others(labels: &Labels) -> bool {
    let is_foreign_pin = labels.contains_key(PINNED) && !labels.contains_key(OUR_PIN);
    let is_by_hand = labels
        .get(IMPORTED)
        .is_some_and(|value| !is_mark_of_receipt(IMPORTED, value));
    is_foreign_pin || is_by_hand || is_pinned_by_others(labels)
}

/// Returns the changes to a record with `labels` after which `source` vouches for it and it is
/// pinned.
///
/// A pin without airgapd's mark belongs to another program. It stays, and airgapd does not claim
/// it. An expiry is removed, because a record cannot expire and stay as long as its bundle does.
/// The expiry is the only label of other programs that airgapd ever removes.
#[must_use]
pub fn vouch(labels: &Labels, source: &Source) -> LabelChanges {
    let (key, value) = source.label();
    let mut wanted = vec![(key, value)];
    if let Source::Receipt(path) = source
        && !labels.contains_key(IMPORTED)
    {
        // A record has one mark. Any keeps the pin.
        wanted.push((IMPORTED.to_owned(), path.clone()));
    }
    if !labels.contains_key(PINNED) || labels.contains_key(OUR_PIN) {
        wanted.push((PINNED.to_owned(), PINNED_VALUE.to_owned()));
        wanted.push((OUR_PIN.to_owned(), "true".to_owned()));
    }
    let set = wanted
        .into_iter()
        .filter(|(key, value)| labels.get(key) != Some(value))
        .map(|(key, value)| (key, Some(value)));
    let expiry = labels.contains_key(EXPIRES).then(|| (EXPIRES.to_owned(), None));
    set.chain(expiry).collect()
}

/// Adds the label of the keys that have signed a record's bundle to changes. Without such keys, a
/// record that keeps its target keeps the label, and a record that moves loses it.
pub(crate) fn sign(changes: &mut LabelChanges, there: &Labels, signer: Option<&str>, moves: bool) {
    let fits = |signer: &&str| SIGNER.len() + signer.len() <= LONGEST;
    match signer.filter(fits) {
        Some(signer) if there.get(SIGNER).map(String::as_str) != Some(signer) => {
            changes.insert(SIGNER.to_owned(), Some(signer.to_owned()));
        }
        None if moves && there.contains_key(SIGNER) => {
            changes.insert(SIGNER.to_owned(), None);
        }
        Some(_) | None => {}
    }
}

/// Logs if changes to a record's labels have removed an expiry.
pub fn tell_of_expiry(name: &str, changes: &LabelChanges) {
    if changes.get(EXPIRES).is_some_and(Option::is_none) {
        tracing::info!(
            image = name,
            "the record would have expired ({EXPIRES}): removed the expiry, which another program had set"
        );
    }
}

/// Returns the changes to a record with `labels` when the sources that `gone` names no longer vouch
/// for it. The labels of these sources are removed. airgapd's pin is removed with its last source.
/// If another importer wants the record pinned, the pin stays as that importer's, and only
/// airgapd's mark is removed.
#[must_use]
pub fn disown(labels: &Labels, gone: impl Fn(&str, &str) -> bool) -> LabelChanges {
    let sources = labels.iter().filter(|(key, _)| is_source(key));
    let (gone, left): (Vec<_>, Vec<_>) = sources.partition(|(key, value)| gone(key, value));
    let mut changes: LabelChanges = gone.into_iter().map(|(key, _)| (key.clone(), None)).collect();
    if left.is_empty() && labels.contains_key(SIGNER) {
        changes.insert(SIGNER.to_owned(), None);
    }
    if left.is_empty() && labels.contains_key(OUR_PIN) {
        changes.insert(OUR_PIN.to_owned(), None);
        if !is_pinned_by_others(labels) {
            changes.insert(PINNED.to_owned(), None);
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    fn keys(changes: &LabelChanges) -> Vec<(&str, bool)> {
        changes.iter().map(|(k, v)| (k.as_str(), v.is_some())).collect()
    }

    #[test]
    fn the_bundle_label_is_short_however_long_the_file_name() {
        let (key, value) = Source::Bundle("x".repeat(255)).label();
        assert_eq!(key.len(), BUNDLE_PREFIX.len() + 16);
        assert!(key.len() + value.len() < 4096);
        assert_eq!(bundle_id("a.tar"), bundle_id("a.tar"));
        assert_ne!(bundle_id("a.tar"), bundle_id("b.tar"));
    }

    #[test]
    fn the_signer_of_a_record_is_that_of_its_present_image() {
        let signed = labels(&[(SIGNER, "release (1)")]);
        let long = "x".repeat(LONGEST);
        type Row<'a> = (&'a Labels, Option<&'a str>, bool, &'a [(&'a str, bool)]);
        let table: [Row<'_>; 7] = [
            (&Labels::new(), None, true, &[]),
            (&Labels::new(), Some("release (1)"), false, &[(SIGNER, true)]),
            (&Labels::new(), Some(&long), false, &[]),
            (&signed, Some("release (1)"), true, &[]),
            (&signed, Some("other (2)"), false, &[(SIGNER, true)]),
            (&signed, None, false, &[]),
            (&signed, None, true, &[(SIGNER, false)]),
        ];
        for (there, signer, moves, expected) in table {
            let mut changes = LabelChanges::new();
            sign(&mut changes, there, signer, moves);
            assert_eq!(keys(&changes), expected, "{there:?} {signer:?} {moves}");
        }
        let there = labels(&[(SIGNER, "release (1)"), (IMPORTED, "a.tar")]);
        assert_eq!(
            keys(&disown(&there, |_, _| true)),
            [(IMPORTED, false), (SIGNER, false)]
        );
        assert_eq!(keys(&disown(&there, |_, _| false)), []);
    }

    #[test]
    fn the_marks_beside_a_pin_say_whose_it_is() {
        let pin = (PINNED, PINNED_VALUE);
        type Row<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);
        let table: [Row<'_>; 8] = [
            (&[], &[]),
            (&[(OUR_PIN, "true")], &[]),
            (&[(PINNED, "no"), (OUR_PIN, "true")], &[]),
            (&[pin], &["another"]),
            (&[pin, (IMPORTED, "a.tar")], &["another"]),
            (&[pin, (OUR_PIN, "true")], &["airgapd"]),
            (
                &[pin, (K0S_SOURCES, "{}"), (OUR_PIN, "true")],
                &["airgapd", "k0s"],
            ),
            (
                &[pin, (K3S_PINNED, "pinned"), (RKE2_PINNED, "pinned")],
                &["k3s", "rke2"],
            ),
        ];
        for (pairs, expected) in table {
            assert_eq!(pinned_by(&labels(pairs)), expected, "{pairs:?}");
        }
    }

    #[test]
    fn a_new_record_gets_source_and_our_pin() {
        let changes = vouch(&Labels::new(), &Source::Hand("a.tar".into()));
        assert_eq!(
            keys(&changes),
            [(IMPORTED, true), (OUR_PIN, true), (PINNED, true)]
        );
    }

    #[test]
    fn a_pin_of_somebody_else_is_not_claimed() {
        let changes = vouch(&labels(&[(PINNED, "pinned")]), &Source::Hand("a.tar".into()));
        assert_eq!(keys(&changes), [(IMPORTED, true)]);
    }

    #[test]
    fn nothing_changes_when_all_is_said_already() {
        let there = labels(&[
            (PINNED, "pinned"),
            (OUR_PIN, "true"),
            (IMPORTED, "a.tar"),
            ("other", "x"),
        ]);
        assert!(vouch(&there, &Source::Hand("a.tar".into())).is_empty());
    }

    #[test]
    fn a_receipt_vouches_with_a_mark_that_the_version_before_keeps_and_takes_both_off() {
        let source = Source::Receipt("/state/receipts/a.tar".into());
        let label = source.label().0;
        let mut there = Labels::new();
        for (key, value) in vouch(&there, &source) {
            there.insert(key, value.unwrap());
        }
        assert_eq!(there[IMPORTED], "/state/receipts/a.tar");
        assert_eq!(there[&label], "/state/receipts/a.tar");
        assert!(vouch(&there, &source).is_empty());
        assert!(!is_kept_by_others(&there));
        assert_eq!(source.lease_mark(), "bundle /state/receipts/a.tar");
        // 0.1.0 takes off the labels of bundles only, and then the mark by hand keeps the pin.
        let by_0_1_0 = disown(&there, |key, _| key.starts_with(BUNDLE_PREFIX));
        assert_eq!(keys(&by_0_1_0), [(label.as_str(), false)]);
        let gone = |key: &str, value: &str| key == label || is_mark_of_receipt(key, value);
        let mut wanted = [
            (label.as_str(), false),
            (IMPORTED, false),
            (OUR_PIN, false),
            (PINNED, false),
        ];
        wanted.sort_unstable();
        assert_eq!(keys(&disown(&there, gone)), wanted);

        let by_hand = labels(&[(IMPORTED, "b.tar"), (PINNED, "pinned"), (OUR_PIN, "true")]);
        assert_eq!(keys(&vouch(&by_hand, &source)), [(label.as_str(), true)]);
        assert!(is_kept_by_others(&by_hand));
    }

    #[test]
    fn an_expiry_goes_with_the_labels_that_vouch_and_is_all_that_goes() {
        let source = Source::Hand("a.tar".into());
        let theirs = [(EXPIRES, "2030-01-01T00:00:00Z"), ("other", "x")];
        assert_eq!(
            keys(&vouch(&labels(&theirs), &source)),
            [
                (EXPIRES, false),
                (IMPORTED, true),
                (OUR_PIN, true),
                (PINNED, true)
            ]
        );
        let ours = [(PINNED, "pinned"), (OUR_PIN, "true"), (IMPORTED, "a.tar")];
        let later = labels(&[&theirs[..], &ours[..]].concat());
        assert_eq!(keys(&vouch(&later, &source)), [(EXPIRES, false)]);
    }

    #[test]
    fn sources_are_gathered_by_host_each_once_and_as_far_as_there_is_room() {
        let repositories = ["a.io/x", "a.io/y/z", "b.io:5000/x", "a.io/x", "no-host"];
        let wanted = labels(&[
            ("containerd.io/distribution.source.a.io", "x,y/z"),
            ("containerd.io/distribution.source.b.io:5000", "x"),
        ]);
        assert_eq!(distribution_sources(repositories), wanted);
        let long = format!("a.io/{}", "x".repeat(LONGEST));
        assert_eq!(distribution_sources([long.as_str()]), Labels::new());
        let all = distribution_sources([long.as_str(), "a.io/short"]);
        assert_eq!(
            all,
            labels(&[("containerd.io/distribution.source.a.io", "short")])
        );
    }

    #[test]
    fn sources_that_others_wrote_stay_and_only_what_lacks_one_is_written() {
        let key = |host: &str| format!("{DISTRIBUTION_SOURCE}{host}");
        let wanted = distribution_sources(["a.io/x", "a.io/y", "b.io/x", "c.io/x"]);
        let there = labels(&[(&key("a.io"), "z,x"), (&key("b.io"), "x"), ("other", "1")]);
        let missing = labels(&[(&key("a.io"), "z,x,y"), (&key("c.io"), "x")]);
        assert_eq!(missing_sources(&wanted, &there), missing);
        assert_eq!(missing_sources(&wanted, &wanted), Labels::new());
        let full = labels(&[(&key("a.io"), &"x".repeat(LONGEST - key("a.io").len()))]);
        assert_eq!(
            missing_sources(&distribution_sources(["a.io/y"]), &full),
            Labels::new()
        );
    }

    #[test]
    fn a_label_is_filled_to_the_last_byte_that_containerd_takes() {
        let key = format!("{DISTRIBUTION_SOURCE}a.io");
        for (room, wanted) in [(4, "y,yz"), (3, "y"), (1, "y")] {
            // One path fills the label except for `room` bytes. `y` and `yz` come after its comma.
            let first = "x".repeat(LONGEST - key.len() - 1 - room);
            let names = [format!("a.io/{first}"), "a.io/y".into(), "a.io/yz".into()];
            let made = distribution_sources(names.iter().map(String::as_str));
            assert_eq!(made, labels(&[(&key, &format!("{first},{wanted}"))]), "{room}");
            let there = labels(&[(&key, &first)]);
            let added = missing_sources(&distribution_sources(["a.io/y", "a.io/yz"]), &there);
            assert_eq!(added, made, "{room}");
        }
    }

    #[test]
    fn a_lease_says_whose_it_is() {
        let marks = [Source::Bundle("a.tar".into()), Source::Hand("a.tar".into())].map(|of| of.lease_mark());
        assert_eq!(marks, ["bundle a.tar", "import a.tar"]);
    }

    #[test]
    fn a_record_is_ours_by_a_source_or_by_our_pin_and_vouched_for_by_a_source_alone() {
        let bundle = Source::Bundle("a.tar".into()).label();
        for (key, is_vouched, is_ours) in [
            (bundle.0.as_str(), true, true),
            (IMPORTED, true, true),
            (OUR_PIN, false, true),
            (PINNED, false, false),
            (K0S_SOURCES, false, false),
        ] {
            let there = labels(&[("other", "x"), (key, "x")]);
            let found = (is_vouched_for(&there), is_any_of_ours(&there));
            assert_eq!(found, (is_vouched, is_ours), "{key}");
        }
    }

    #[test]
    fn our_pin_goes_from_a_record_that_no_source_of_ours_is_on() {
        let there = labels(&[(PINNED, "pinned"), (OUR_PIN, "true"), ("other", "x")]);
        let wanted = [(PINNED.to_owned(), None), (OUR_PIN.to_owned(), None)];
        assert_eq!(disown(&there, |_, _| false), LabelChanges::from(wanted));
    }

    #[test]
    fn a_lost_pin_comes_back() {
        let there = labels(&[(OUR_PIN, "true"), (IMPORTED, "a.tar")]);
        assert_eq!(
            keys(&vouch(&there, &Source::Hand("a.tar".into()))),
            [(PINNED, true)]
        );
    }

    #[test]
    fn our_pin_goes_with_our_last_source_only() {
        let one = Source::Bundle("a.tar".into()).label();
        let two = Source::Bundle("b.tar".into()).label();
        let mut there = labels(&[
            (PINNED, "pinned"),
            (OUR_PIN, "true"),
            (&one.0, &one.1),
            (&two.0, &two.1),
        ]);
        let changes = disown(&there, |_, value| value == "a.tar");
        assert_eq!(keys(&changes), [(one.0.as_str(), false)]);
        there.remove(&one.0);
        let changes = disown(&there, |_, value| value == "b.tar");
        let wanted = [
            (two.0.clone(), None),
            (PINNED.to_owned(), None),
            (OUR_PIN.to_owned(), None),
        ];
        assert_eq!(changes, LabelChanges::from(wanted));
    }

    #[test]
    fn a_pin_that_another_importer_wants_too_is_left_to_it() {
        let one = Source::Bundle("a.tar".into()).label();
        for theirs in [K0S_SOURCES, K3S_PINNED, RKE2_PINNED] {
            let there = labels(&[
                (PINNED, "pinned"),
                (OUR_PIN, "true"),
                (&one.0, &one.1),
                (theirs, "{}"),
            ]);
            let mut wanted = vec![(one.0.as_str(), false), (OUR_PIN, false)];
            wanted.sort_unstable();
            assert_eq!(keys(&disown(&there, |_, _| true)), wanted, "{theirs}");
        }
    }

    #[test]
    fn a_pin_of_somebody_else_survives_our_leaving() {
        let one = Source::Bundle("a.tar".into()).label();
        let there = labels(&[
            (PINNED, "pinned"),
            (&one.0, &one.1),
            ("io.k0sproject.ocibundle-paths", "{}"),
        ]);
        assert_eq!(keys(&disown(&there, |_, _| true)), [(one.0.as_str(), false)]);
    }
}
