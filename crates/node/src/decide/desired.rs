//! Compares the ledger's images of a bundle with containerd's content. Pure, and without opening a
//! bundle.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;

use basics::Foreign;
use containerd::ImageRecord;
use import::{Pattern, Source, Survey, labels};
use oci_spec::image::Digest;

use crate::state::ledger::{self, Entry, ImageEntry, Ledger, SignerEntry};
use crate::status::{DiskUse, ImageStatus, RecordStatus};

/// The state of an imported bundle in containerd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Every record, label and blob is in place.
    InPlace,
    /// Something is missing. The text names the first missing part, for the log.
    Missing(String),
}

/// A record that another program moved to another image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) name: String,
    pub(crate) from: Digest,
    pub(crate) to: Digest,
}

/// The images of the ledger by name. A comparison asks for each record, and the cost of an answer
/// does not depend on their number.
pub(crate) struct ByName<'l> {
    /// See [`Ledger::desired_images`].
    desired: BTreeMap<&'l str, (&'l Digest, &'l Entry)>,
    /// The images of each bundle's last import, by the name that labels have for its file.
    imported: HashMap<String, (&'l Entry, HashMap<&'l str, &'l Digest>)>,
    /// The images that gone bundles wanted.
    gone: HashSet<(&'l str, &'l Digest)>,
}

impl<'l> ByName<'l> {
    pub(crate) fn of(ledger: &'l Ledger) -> ByName<'l> {
        let (mut imported, mut gone) = (HashMap::new(), HashSet::new());
        for entry in ledger.entries() {
            let Some(last) = &entry.imported else {
                continue;
            };
            let images = last
                .images
                .iter()
                .map(|image| (image.name.as_str(), &image.target));
            if entry.gone.is_some() {
                gone.extend(images.clone());
            }
            imported.insert(ledger::label_name(&entry.file), (entry, images.collect()));
        }
        ByName {
            desired: ledger.desired_images(),
            imported,
            gone,
        }
    }

    /// Returns the target of the last bundle that vouches for a name.
    pub(crate) fn desired(&self, name: &str) -> Option<&'l Digest> {
        self.desired.get(name).map(|(target, _)| *target)
    }

    /// Returns the target that a bundle's last import had under a name. `file` is the bundle's name
    /// in labels.
    pub(crate) fn image(&self, file: &str, name: &str) -> Option<&'l Digest> {
        let (_, images) = self.imported.get(file)?;
        images.get(name).copied()
    }

    /// Returns true if a record points where a bundle wanted it that no longer wants it. Then no
    /// other program moved it. The ledger knows the bundles that are gone. Other bundles were
    /// imported again as a whole, without the image. Their label is still on the record.
    fn is_left_behind(&self, record: &ImageRecord) -> bool {
        let name = record.name.as_str();
        let labels = record.labels.iter();
        let mut bundles = labels
            .filter(|(key, _)| key.starts_with(labels::BUNDLE_PREFIX))
            .filter_map(|(_, file)| self.imported.get(file));
        self.gone.contains(&(name, record.target.digest()))
            || bundles.any(|(entry, images)| entry.last_error.is_none() && !images.contains_key(name))
    }
}

/// Returns every blob that the ledger's images need.
pub(crate) fn digests(ledger: &Ledger) -> HashSet<Digest> {
    let imported = ledger
        .entries()
        .into_iter()
        .filter_map(|entry| entry.imported.as_ref());
    let targets = imported
        .flat_map(|imported| &imported.images)
        .map(|image| &image.target);
    targets
        .filter_map(|target| ledger.closure(target))
        .flatten()
        .cloned()
        .collect()
}

/// Returns the blobs that each lease of a receipt must hold, by its id.
pub(crate) fn held_by_leases(ledger: &Ledger) -> BTreeMap<&str, HashSet<&Digest>> {
    let receipts = ledger.entries().into_iter();
    let held = receipts.filter_map(|entry| {
        let lease = entry.stands_for.as_ref()?.lease.as_str();
        let images = entry.imported.iter().flat_map(|imported| &imported.images);
        let closures = images.filter_map(|image| ledger.closure(&image.target));
        Some((lease, closures.flatten().collect()))
    });
    held.collect()
}

/// Returns the name of every record that the ledger knows, including those of gone bundles.
pub(crate) fn names(ledger: &Ledger) -> HashSet<&str> {
    let imported = ledger
        .entries()
        .into_iter()
        .filter_map(|entry| entry.imported.as_ref());
    imported
        .flat_map(|imported| &imported.images)
        .map(|image| image.name.as_str())
        .collect()
}

/// Compares one bundle. Names that a later bundle took over, or that the operator excludes, do not
/// count.
pub(crate) fn standing(
    entry: &Entry,
    ledger: &Ledger,
    by_name: &ByName<'_>,
    survey: &Survey,
    exclude: &[Pattern],
) -> (Standing, Vec<Moved>) {
    let name = ledger::label_name(&entry.file);
    let source = match &entry.stands_for {
        Some(_) => Source::Receipt(name),
        None => Source::Bundle(name),
    };
    let images: Vec<&ImageEntry> = entry
        .imported
        .iter()
        .flat_map(|imported| &imported.images)
        .collect();
    let excluded = excluded(images.iter().map(|image| image.name.as_str()), exclude);
    let is_ours = |image: &&&ImageEntry| {
        let wanted = by_name.desired(&image.name);
        wanted.is_none_or(|target| *target == image.target) && !excluded.contains(image.name.as_str())
    };
    let (mut missing, mut moved) = (None, Vec::new());
    for image in images.iter().filter(is_ours) {
        match finding(image, ledger, by_name, survey, &source) {
            Finding::InPlace => {}
            Finding::Moved(to) => moved.push(Moved {
                name: image.name.clone(),
                from: image.target.clone(),
                to,
            }),
            Finding::Missing(what) => {
                missing.get_or_insert(what);
            }
        }
    }
    let lease = entry.stands_for.as_ref().map(|of| &of.lease);
    let is_lost = |lease: &&String| {
        survey
            .receipts
            .as_ref()
            .is_some_and(|there| !there.contains(*lease))
    };
    let lost = lease
        .filter(is_lost)
        .map(|_| "the lease of the receipt".to_owned());
    (
        missing.or(lost).map_or(Standing::InPlace, Standing::Missing),
        moved,
    )
}

/// Returns every image that bundles vouch for, with its missing parts. Images that the operator
/// excludes are not among them.
pub fn images(ledger: &Ledger, survey: &Survey, exclude: &[Pattern]) -> Vec<ImageStatus> {
    let mut desired = ledger.desired_images();
    let left_out: BTreeSet<String> = excluded(desired.keys().copied(), exclude)
        .into_iter()
        .map(str::to_owned)
        .collect();
    desired.retain(|name, _| !left_out.contains(*name));
    let image = |(name, (target, entry)): (&&str, &(&Digest, &Entry))| {
        let record = survey.records.get(*name);
        let closure = ledger.closure(target).unwrap_or_default();
        let missing = closure
            .iter()
            .filter(|digest| !survey.blobs.contains_key(*digest));
        ImageStatus {
            name: (*name).to_owned(),
            digest: target.to_string(),
            bundle: ledger::label_name(&entry.file),
            record: match record {
                None => RecordStatus::Missing,
                Some(record) if record.target.digest() == *target => RecordStatus::InPlace,
                Some(_) => RecordStatus::Elsewhere,
            },
            missing_blobs: missing.map(ToString::to_string).collect(),
            pinned: record.is_some_and(|record| record.labels.contains_key(labels::PINNED)),
        }
    };
    desired.iter().map(image).collect()
}

/// Returns the room that each bundle takes in containerd's content store, by the name that labels
/// have for its file. Only images whose record points at them count: containerd collects the blobs
/// of others.
pub fn disk_use(ledger: &Ledger, survey: &Survey) -> BTreeMap<String, DiskUse> {
    let mut needed: BTreeMap<String, HashSet<&Digest>> = BTreeMap::new();
    // Number of bundles that need a blob, and the blobs that others keep as well.
    let (mut needs, mut kept) = (HashMap::<&Digest, usize>::new(), HashSet::new());
    for entry in ledger.entries() {
        let Some(imported) = &entry.imported else {
            continue;
        };
        let mut blobs = HashSet::new();
        for image in &imported.images {
            let record = survey.records.get(&image.name);
            let Some(record) = record.filter(|record| *record.target.digest() == image.target) else {
                continue;
            };
            let closure = ledger.closure(&image.target).unwrap_or_default();
            blobs.extend(closure);
            if labels::is_kept_by_others(&record.labels) {
                kept.extend(closure);
            }
        }
        blobs.iter().for_each(|blob| *needs.entry(blob).or_default() += 1);
        needed.insert(ledger::label_name(&entry.file), blobs);
    }
    let size_of = |blobs: &HashSet<&Digest>, counts: &dyn Fn(&Digest) -> bool| {
        let there = blobs.iter().filter(|blob| counts(blob));
        there
            .filter_map(|blob| survey.blobs.get(*blob))
            .map(|blob| blob.size)
            .sum()
    };
    let is_only = |blob: &Digest| needs.get(blob) == Some(&1);
    let use_of = |blobs: &HashSet<&Digest>| DiskUse {
        store_bytes: size_of(blobs, &|_| true),
        only_bytes: size_of(blobs, &is_only),
        freed_bytes: size_of(blobs, &|blob| is_only(blob) && !kept.contains(blob)),
    };
    needed
        .iter()
        .map(|(bundle, blobs)| (bundle.clone(), use_of(blobs)))
        .collect()
}

/// The state of a record.
enum Finding {
    InPlace,
    Missing(String),
    /// Another program moved it there.
    Moved(Digest),
}

fn finding(
    image: &ImageEntry,
    ledger: &Ledger,
    by_name: &ByName<'_>,
    survey: &Survey,
    source: &Source,
) -> Finding {
    let ImageEntry { name, target } = image;
    let Some(record) = survey.records.get(name) else {
        return Finding::Missing(format!("the record {name}"));
    };
    let to = record.target.digest();
    if to != target {
        return match by_name.is_left_behind(record) {
            true => Finding::Missing(format!(
                "the record {name} (taken over by a bundle that is gone or has changed)"
            )),
            false => Finding::Moved(to.clone()),
        };
    }
    if !labels::vouch(&record.labels, source).is_empty() {
        return Finding::Missing(format!("a label of {name}"));
    }
    let closure = ledger.closure(target).unwrap_or_default();
    match closure.iter().find(|digest| !survey.blobs.contains_key(*digest)) {
        Some(digest) => Finding::Missing(format!("blob {digest} of {name}")),
        None if closure.is_empty() => Finding::Missing(format!("the list of blobs of {name}")),
        None => Finding::InPlace,
    }
}

/// Returns the records of a bundle that the operator excludes: names that match, and names by
/// digest if all tags of their repository match.
pub(crate) fn excluded<'a>(
    names: impl Iterator<Item = &'a str> + Clone,
    exclude: &[Pattern],
) -> BTreeSet<&'a str> {
    if exclude.is_empty() {
        return BTreeSet::new();
    }
    let matches = |name: &str| exclude.iter().any(|pattern| pattern.matches(name));
    // For each repository: true if all its tags are excluded.
    let mut repositories: BTreeMap<&str, bool> = BTreeMap::new();
    for name in names.clone().filter(|name| !name.contains('@')) {
        let all = repositories.entry(repository(name)).or_insert(true);
        *all &= matches(name);
    }
    let follows = |name: &str| name.contains('@') && repositories.get(repository(name)) == Some(&true);
    names.filter(|name| matches(name) || follows(name)).collect()
}

/// Returns the names that an import leaves as they are because they are excluded, each with the
/// reason.
pub fn left_out<'a>(
    names: impl Iterator<Item = &'a str> + Clone,
    exclude: &[Pattern],
) -> BTreeMap<String, String> {
    let names = excluded(names, exclude).into_iter();
    names
        .map(|name| (name.to_owned(), "`exclude` names it".to_owned()))
        .collect()
}

/// Returns the names of a bundle that are in place under trusted keys of other bundles only. Each
/// has the file of the bundle in place, and the reason. A refused bundle still has its names.
pub fn of_other_keys<'a>(
    ledger: &'a Ledger,
    records: impl IntoIterator<Item = (&'a str, &'a Digest)>,
    ours: &[SignerEntry],
    is_trusted: impl Fn(&Digest) -> bool,
) -> BTreeMap<&'a str, (&'a OsStr, String)> {
    let is_trusted = |signer: &&SignerEntry| is_trusted(&signer.fingerprint);
    let is_ours = |signer: &SignerEntry| ours.iter().any(|our| our.fingerprint == signer.fingerprint);
    let owned = ledger.images_of(|entry| entry.gone.is_none() && entry.signers().any(|key| is_trusted(&key)));
    let mut others = BTreeMap::new();
    for (name, target) in records {
        let Some((_, owner)) = owned.get(name).filter(|(wanted, _)| *wanted != target) else {
            continue;
        };
        let mut signers = owner.signers().filter(is_trusted).peekable();
        if let Some(first) = signers.peek().copied()
            && !signers.any(is_ours)
        {
            let bundle = Foreign::file_name(&owner.file);
            let why = format!("key {first} has signed the image of this name in {bundle}");
            others.insert(name, (owner.file.as_os_str(), why));
        }
    }
    others
}

/// Returns a name without its tag or digest.
fn repository(name: &str) -> &str {
    if let Some((repository, _)) = name.split_once('@') {
        return repository;
    }
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use containerd::BlobInfo;
    use jiff::Timestamp;
    use oci_spec::image::{Descriptor, MediaType};

    use super::*;
    use crate::state::ledger::Imported;

    #[test]
    fn an_excluded_tag_takes_its_digest_along_unless_another_tag_wants_that() {
        let by_digest = format!("r.test/a@sha256:{}", "a".repeat(64));
        type Row<'a> = (&'a [&'a str], &'a str, &'a [&'a str]);
        let on_port = format!("r.test:5000/a@sha256:{}", "a".repeat(64));
        let table: [Row<'_>; 7] = [
            (
                &["r.test:5000/a", &on_port],
                "r.test:5000/a",
                &["r.test:5000/a", &on_port],
            ),
            (
                &["r.test/a:1", &by_digest],
                "r.test/a:1",
                &["r.test/a:1", &by_digest],
            ),
            (
                &["r.test/a:1", "r.test/a:2", &by_digest],
                "r.test/a:1",
                &["r.test/a:1"],
            ),
            (&["r.test/a:1", &by_digest], "r.test/a@*", &[&by_digest]),
            (&["r.test/a:1", &by_digest], "r.test/b:*", &[]),
            (
                &["r.test:5000/a", "r.test:5000/b:1"],
                "r.test:5000/a",
                &["r.test:5000/a"],
            ),
            (&[&by_digest], "r.test/a:1", &[]),
        ];
        for (names, pattern, wanted) in table {
            let found = excluded(names.iter().copied(), &[pattern.parse().unwrap()]);
            let wanted: BTreeSet<&str> = wanted.iter().copied().collect();
            assert_eq!(found, wanted, "{names:?} without {pattern}");
        }
    }

    fn digest(fill: char) -> Digest {
        format!("sha256:{}", fill.to_string().repeat(64)).parse().unwrap()
    }

    /// Records that a file brought one image, made of a manifest and the layer `f`.
    fn import(ledger: &mut Ledger, file: &str, name: &str, target: char) {
        let imported = Imported {
            identity: bundle::Identity {
                device: 1,
                inode: 2,
                size: 3,
                mtime_ns: 4,
                ctime_ns: 5,
            },
            sidecar: None,
            catalog: digest('c'),
            images: vec![ImageEntry {
                name: name.to_owned(),
                target: digest(target),
            }],
            at: Timestamp::UNIX_EPOCH,
            duration_ms: 0,
            sent_bytes: 0,
            signers: Vec::new(),
            withheld: Vec::new(),
            is_delta: false,
            release: ledger::Carried::default(),
        };
        let closure = (digest(target), vec![digest(target), digest('f')]);
        ledger.record_import(OsStr::new(file), import::Outcome::Imported, imported, [closure]);
    }

    /// Returns a record that `file` vouches for.
    fn record(name: &str, target: char, file: &str) -> ImageRecord {
        let mut record = ImageRecord {
            name: name.to_owned(),
            target: Descriptor::new(MediaType::ImageManifest, 7, digest(target)),
            labels: BTreeMap::new(),
            created_at: None,
        };
        for (key, value) in labels::vouch(&record.labels, &Source::Bundle(file.to_owned())) {
            record.labels.extend(value.map(|value| (key, value)));
        }
        record
    }

    fn survey(records: impl IntoIterator<Item = ImageRecord>, blobs: &[char]) -> Survey {
        let blob = |fill: &char| BlobInfo {
            digest: digest(*fill),
            size: 1,
            labels: BTreeMap::new(),
        };
        Survey {
            records: records
                .into_iter()
                .map(|record| (record.name.clone(), record))
                .collect(),
            blobs: blobs.iter().map(|fill| (digest(*fill), blob(fill))).collect(),
            ..Survey::default()
        }
    }

    const NAME: &str = "r.test/a:1";

    #[test]
    fn names_and_blobs_are_those_of_all_bundles_also_of_such_that_are_gone() {
        let mut ledger = Ledger::default();
        import(&mut ledger, "a.tar", NAME, '1');
        import(&mut ledger, "b.tar", "r.test/b:1", '2');
        ledger.mark_gone(|file| Some(file == "b.tar"), Timestamp::UNIX_EPOCH);
        assert_eq!(names(&ledger), HashSet::from([NAME, "r.test/b:1"]));
        assert_eq!(digests(&ledger), HashSet::from(['1', '2', 'f'].map(digest)));
    }

    #[test]
    fn a_bundle_is_in_place_when_its_records_labels_and_blobs_are() {
        let whole = || survey([record(NAME, '1', "a.tar")], &['1', 'f']);
        let missing = |what: &str| (Standing::Missing(what.to_owned()), None);
        let unpinned = ImageRecord {
            labels: BTreeMap::new(),
            ..record(NAME, '1', "a.tar")
        };
        let table = [
            (whole(), (Standing::InPlace, None)),
            (survey([], &['1', 'f']), missing("the record r.test/a:1")),
            (survey([unpinned], &['1', 'f']), missing("a label of r.test/a:1")),
            (
                survey([record(NAME, '1', "a.tar")], &['1']),
                missing(&format!("blob {} of r.test/a:1", digest('f'))),
            ),
            (
                survey([record(NAME, '9', "a.tar")], &['1', 'f']),
                (Standing::InPlace, Some(digest('9'))),
            ),
            (
                survey([record(NAME, '2', "gone.tar")], &['1', 'f']),
                missing("the record r.test/a:1 (taken over by a bundle that is gone or has changed)"),
            ),
            (
                survey([record(NAME, '9', "other.tar")], &['1', 'f']),
                missing("the record r.test/a:1 (taken over by a bundle that is gone or has changed)"),
            ),
        ];
        for (survey, (standing, moved_to)) in table {
            let mut ledger = Ledger::default();
            import(&mut ledger, "a.tar", NAME, '1');
            import(&mut ledger, "gone.tar", NAME, '2');
            import(&mut ledger, "other.tar", "r.test/other:1", '3');
            ledger.mark_gone(|file| Some(file != "gone.tar"), Timestamp::UNIX_EPOCH);
            let entry = ledger.get(OsStr::new("a.tar")).unwrap();
            let by_name = ByName::of(&ledger);
            let (found, moved) = super::standing(entry, &ledger, &by_name, &survey, &[]);
            assert_eq!(found, standing, "{survey:?}");
            let moved_to = moved_to.map(|to| Moved {
                name: NAME.to_owned(),
                from: digest('1'),
                to,
            });
            assert_eq!(moved, Vec::from_iter(moved_to), "{survey:?}");
        }
        let mut ledger = Ledger::default();
        import(&mut ledger, "a.tar", NAME, '1');
        let entry = ledger.get(OsStr::new("a.tar")).unwrap();
        let nothing = survey([], &[]);
        let exclude = ["r.test/a:*".parse().unwrap()];
        for (wanted, exclude, is_in_place) in [('1', &[][..], false), ('2', &[], true), ('1', &exclude, true)]
        {
            let target = digest(wanted);
            let by_name = ByName {
                desired: BTreeMap::from([(NAME, (&target, entry))]),
                ..ByName::of(&ledger)
            };
            let (found, _) = super::standing(entry, &ledger, &by_name, &nothing, exclude);
            assert_eq!(found == Standing::InPlace, is_in_place, "{wanted} {exclude:?}");
        }
    }

    #[test]
    fn the_status_shows_of_each_image_that_is_wanted_what_is_there() {
        let (all, unpinned) = (&['1', 'f'][..], |target| ImageRecord {
            labels: BTreeMap::new(),
            ..record(NAME, target, "a.tar")
        });
        let table = [
            (
                vec![record(NAME, '1', "a.tar")],
                all,
                RecordStatus::InPlace,
                &[][..],
                true,
            ),
            (vec![unpinned('1')], all, RecordStatus::InPlace, &[], false),
            (
                vec![record(NAME, '2', "a.tar")],
                all,
                RecordStatus::Elsewhere,
                &[],
                true,
            ),
            (vec![], &['1'], RecordStatus::Missing, &['f'], false),
        ];
        let mut ledger = Ledger::default();
        import(&mut ledger, "a.tar", NAME, '1');
        for (records, blobs, status, missing, pinned) in table {
            let wanted = ImageStatus {
                name: NAME.to_owned(),
                digest: digest('1').to_string(),
                bundle: "a.tar".to_owned(),
                record: status,
                missing_blobs: missing.iter().map(|fill| digest(*fill).to_string()).collect(),
                pinned,
            };
            let survey = survey(records, blobs);
            assert_eq!(images(&ledger, &survey, &[]), [wanted]);
            assert!(images(&ledger, &survey, &["r.test/a:*".parse().unwrap()]).is_empty());
        }
    }

    #[test]
    fn a_bundle_frees_what_neither_another_bundle_nor_another_owner_keeps() {
        const OTHER: &str = "r.test/other:1";
        // The images `1` and `2` share the layer `f`. Each blob has a size of its own.
        let sizes = [('1', 1), ('2', 10), ('f', 100)];
        let by_hand = |mut record: ImageRecord| {
            record.labels.extend([Source::Hand("x.tar".to_owned()).label()]);
            record
        };
        let used = |store_bytes, only_bytes, freed_bytes| DiskUse {
            store_bytes,
            only_bytes,
            freed_bytes,
        };
        let (a, b) = (record(NAME, '1', "a.tar"), record(OTHER, '2', "b.tar"));
        type Row<'a> = (&'a [(&'a str, &'a str, char)], Vec<ImageRecord>, Vec<DiskUse>);
        let (of_a, of_b) = (("a.tar", NAME, '1'), ("b.tar", OTHER, '2'));
        let table: [Row<'_>; 6] = [
            // One bundle alone.
            (&[of_a], vec![a.clone()], vec![used(101, 101, 101)]),
            // Two that share a layer.
            (
                &[of_a, of_b],
                vec![a.clone(), b.clone()],
                vec![used(101, 1, 1), used(110, 10, 10)],
            ),
            // The same image in two bundles.
            (
                &[of_a, ("b.tar", NAME, '1')],
                vec![a.clone()],
                vec![used(101, 0, 0), used(101, 0, 0)],
            ),
            // The image was imported by hand, too.
            (&[of_a], vec![by_hand(a.clone())], vec![used(101, 101, 0)]),
            // A later bundle has the name: nothing keeps the first image.
            (
                &[of_a, ("b.tar", NAME, '2')],
                vec![record(NAME, '2', "b.tar")],
                vec![used(0, 0, 0), used(110, 110, 110)],
            ),
            // The record is gone.
            (&[of_a], vec![], vec![used(0, 0, 0)]),
        ];
        for (bundles, records, wanted) in table {
            let mut ledger = Ledger::default();
            for (file, name, target) in bundles {
                import(&mut ledger, file, name, *target);
            }
            let mut survey = survey(records, &sizes.map(|(blob, _)| blob));
            for (blob, size) in sizes {
                survey.blobs.get_mut(&digest(blob)).unwrap().size = size;
            }
            let found: Vec<_> = disk_use(&ledger, &survey).into_values().collect();
            assert_eq!(found, wanted, "{bundles:?}");
        }
    }
}
