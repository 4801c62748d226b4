use std::os::unix::fs::PermissionsExt;

use admission::HEADER;
use proptest::prelude::*;

use super::*;
use crate::images::keys::tests::{signature, trusted};

/// A change of the folder, and a part of the reason that follows.
type Case<'a> = (&'a str, &'a dyn Fn(&Path), &'a str);

fn digest(number: u32) -> Digest {
    format!("sha256:{number:064x}").parse().unwrap()
}

fn at() -> Timestamp {
    "2026-11-30T12:00:00Z".parse().unwrap()
}

/// Returns a list of these catalogs with a signature by the key of a seed.
fn list_of(catalogs: &[u32], seed: u8) -> Proof {
    let lines = catalogs.iter().map(|number| format!("{}\n", digest(*number)));
    let text = format!("{HEADER}\n{}", lines.collect::<String>()).into_bytes();
    let bytes = signature(seed, &text);
    let list = Arc::new(SignedList::new("release.digest", text));
    Proof::new(
        "release.digest.sig",
        Form::Plain,
        bytes,
        Some(list),
        Reach::Bundle,
    )
}

fn admitted(proofs: &[Proof], keys: &Keys, catalog: u32, bytes: Bytes<'_>) -> Evidence {
    let judgement = judge(&Question {
        policy: Policy::Require,
        keys,
        revocations: &Revocations::default(),
        proofs,
        catalog: &digest(catalog),
        bytes,
    });
    let Judgement::Admitted(admission) = judgement else {
        panic!("{judgement:?}")
    };
    let images = [(format!("r.test/a:{catalog}"), digest(catalog + 1000))];
    Evidence::of(&admission, proofs, bytes, at()).with_landed(images)
}

fn revoked(line: &str) -> Revocations {
    let mut revocations = Revocations::default();
    revocations.add("2026", line.as_bytes());
    revocations
}

fn signers(standing: &Standing) -> Vec<&str> {
    match standing {
        Standing::Admitted(admission) => admission
            .signers
            .iter()
            .map(|signer| signer.key.as_str())
            .collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn evidence_is_read_back_and_its_standing_follows_keys_and_revocations_of_today() {
    let state = tempfile::tempdir().unwrap();
    let keys = trusted(&[("lab", 2), ("release", 1)]);
    let proofs = [list_of(&[7, 8], 1), list_of(&[7], 2)];
    keep(state.path(), admitted(&proofs, &keys, 7, Bytes::Unhashed), |_| {
        false
    })
    .unwrap();
    keep(
        state.path(),
        admitted(&proofs[..1], &keys, 8, Bytes::Unhashed),
        |_| false,
    )
    .unwrap();

    let read = Admissions::read(state.path());
    assert_eq!(read.problems, [""; 0]);
    let none = Revocations::default();
    let standing = |catalog: u32, keys: &Keys, revocations: &Revocations| {
        read.evidence[digest(catalog).as_ref()].standing(keys, revocations, Bytes::Unhashed)
    };
    let seven = &read.evidence[digest(7).as_ref()];
    assert_eq!((seven.catalog(), seven.at()), (&digest(7), at()));
    assert!(seven.has("r.test/a:7", &digest(1007)));
    assert!(!seven.has("r.test/a:7", &digest(1008)) && !seven.has("r.test/a:8", &digest(1007)));
    assert_eq!(signers(&standing(7, &keys, &none)), ["lab", "release"]);
    assert_eq!(signers(&standing(8, &keys, &none)), ["release"]);

    // One of two keys is withdrawn, or all. A key under another name is the same key.
    let lab = trusted(&[("lab", 2)]);
    assert_eq!(signers(&standing(7, &lab, &none)), ["lab"]);
    let Standing::Withdrawn(why) = standing(8, &lab, &none) else {
        panic!("the key is gone")
    };
    assert!(
        why.contains("release.digest.sig: no trusted key makes it valid"),
        "{why}"
    );
    assert_eq!(
        signers(&standing(8, &trusted(&[("renamed", 1)]), &none)),
        ["renamed"]
    );
    assert!(matches!(
        standing(7, &Keys::default(), &none),
        Standing::Withdrawn(_)
    ));

    let of_catalog = revoked(digest(7).as_ref());
    let Standing::Revoked(why) = standing(7, &keys, &of_catalog) else {
        panic!("the catalog is revoked")
    };
    assert!(why.contains("is revoked by 2026"), "{why}");
    assert_eq!(signers(&standing(8, &keys, &of_catalog)), ["release"]);
    let of_a_file = revoked(&format!("{:064x}  b.tar", 9));
    assert_eq!(standing(7, &keys, &of_a_file), Standing::NeedsFileDigest);
    let with_sum = |sum: u32| seven.standing(&keys, &of_a_file, Bytes::Hashed(&digest(sum)));
    assert_eq!(signers(&with_sum(8)), ["lab", "release"]);
    assert!(matches!(with_sum(9), Standing::Revoked(_)));
    let unusable = Revocations::unusable("others can write it".to_owned());
    assert!(matches!(standing(7, &keys, &unusable), Standing::Withdrawn(_)));
}

#[test]
fn a_signature_over_the_file_and_the_sum_of_the_file_are_kept() {
    let state = tempfile::tempdir().unwrap();
    let keys = trusted(&[("release", 1)]);
    let bytes = b"the bytes of a bundle";
    let file = basics::digest::sha256(bytes);
    let proof = Proof::new("b.tar.sig", Form::Plain, signature(1, bytes), None, Reach::Bundle);
    let hashed = Bytes::Hashed(&file);
    keep(state.path(), admitted(&[proof], &keys, 1, hashed), |_| false).unwrap();
    keep(
        state.path(),
        admitted(&[list_of(&[2], 1)], &keys, 2, Bytes::Folder),
        |_| false,
    )
    .unwrap();
    let read = Admissions::read(state.path());
    let standing = |catalog: u32, revocations: &Revocations| {
        read.evidence[digest(catalog).as_ref()].standing(&keys, revocations, Bytes::Unhashed)
    };
    let other = revoked(&format!("{:064x}  other.tar", 9));
    assert_eq!(signers(&standing(1, &other)), ["release"]);
    assert_eq!(signers(&standing(2, &other)), ["release"], "a folder has no sum");
    let same = revoked(&format!("{}  b.tar", file.digest()));
    assert!(matches!(standing(1, &same), Standing::Revoked(_)));
}

#[test]
fn a_key_under_many_names_makes_one_proof() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
    let keys = trusted(&names.map(|name| (name, 1)));
    let evidence = admitted(&[list_of(&[7], 1)], &keys, 7, Bytes::Unhashed);
    assert_eq!(evidence.document.proofs.len(), 1);
    let standing = evidence.standing(&keys, &Revocations::default(), Bytes::Unhashed);
    assert_eq!(signers(&standing), names);
}

/// The daemon and `airgapd import` keep evidence for the same content.
#[test]
fn evidence_for_the_same_catalog_adds_images_and_keys() {
    let state = tempfile::tempdir().unwrap();
    let keys = trusted(&[("lab", 2), ("release", 1)]);
    let revocations = Revocations::default();
    let landed = |names: &[&str], proofs: &[Proof]| {
        let images = names.iter().map(|name| ((*name).to_owned(), digest(1)));
        admitted(proofs, &keys, 7, Bytes::Unhashed).with_landed(images)
    };
    let read = || Evidence::read(state.path(), &digest(7)).unwrap();
    let none = |_: &str| false;
    keep(state.path(), landed(&["a", "b"], &[list_of(&[7], 1)]), none).unwrap();
    keep(state.path(), landed(&["c"], &[list_of(&[7, 8], 2)]), none).unwrap();
    let names = || read().document.names().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(names(), ["c", "a", "b"]);
    let standing = read().standing(&keys, &revocations, Bytes::Unhashed);
    assert_eq!(signers(&standing), ["lab", "release"]);

    // Before its import, a bundle adds no image. A name of another key leaves the evidence.
    keep(state.path(), landed(&[], &[list_of(&[7], 1)]), none).unwrap();
    assert_eq!(names(), ["c", "a", "b"]);
    let is_withheld = |name: &str| name == "a";
    keep(state.path(), landed(&["d"], &[list_of(&[7], 1)]), is_withheld).unwrap();
    assert_eq!(names(), ["d", "c", "b"]);
    let standing = read().standing(&keys, &revocations, Bytes::Unhashed);
    assert_eq!(signers(&standing), ["lab", "release"]);

    // A name has one target.
    let moved = [("c".to_owned(), digest(2))];
    let again = read().again(Bytes::Unhashed, at()).with_landed(moved);
    keep(state.path(), again, none).unwrap();
    assert_eq!(read().target_of("c"), Some(&digest(2)));
    assert!(!read().has("c", &digest(1)) && read().has("d", &digest(1)));

    // The signatures over another file do not speak of this one.
    let bytes = b"the bytes of a bundle";
    let file = basics::digest::sha256(bytes);
    let proof = Proof::new("b.tar.sig", Form::Plain, signature(2, bytes), None, Reach::Bundle);
    let of_file = admitted(&[proof], &keys, 7, Bytes::Hashed(&file)).with_landed([]);
    keep(state.path(), of_file, none).unwrap();
    let standing = read().standing(&keys, &revocations, Bytes::Unhashed);
    assert_eq!(signers(&standing), ["lab"]);
    assert!(read().has("d", &digest(1)));
}

#[test]
fn programs_that_keep_and_prune_at_the_same_time_lose_nothing() {
    const ROUNDS: u32 = 20;
    let state = tempfile::tempdir().unwrap();
    let keys = trusted(&[("release", 1)]);
    let is_old = |document: &Document| *document.catalog() == digest(0);
    let work = |catalog: u32| {
        for round in 0..ROUNDS {
            let name = format!("{catalog}-{round}");
            let evidence = admitted(&[list_of(&[7], 1)], &keys, 7, Bytes::Unhashed);
            keep(state.path(), evidence.with_landed([(name, digest(1))]), |_| false).unwrap();
            prune(state.path(), |document| !is_old(document)).unwrap();
        }
    };
    std::thread::scope(|scope| {
        for catalog in 0..3 {
            scope.spawn(move || work(catalog));
        }
    });
    let read = Evidence::read(state.path(), &digest(7)).unwrap();
    assert_eq!(read.document.names().count(), 3 * ROUNDS as usize);
}

#[test]
fn the_store_is_private_and_texts_are_shared() {
    let state = tempfile::tempdir().unwrap();
    let folder = state.path().join(FOLDER);
    let keys = trusted(&[("release", 1)]);
    let proofs = [list_of(&[1, 2, 3], 1)];
    for catalog in 1..=3 {
        keep(
            state.path(),
            admitted(&proofs, &keys, catalog, Bytes::Unhashed),
            |_| false,
        )
        .unwrap();
    }
    let names = names_in(&folder).unwrap();
    assert_eq!(
        names.iter().filter(|name| name.ends_with(TEXT)).count(),
        1,
        "{names:?}"
    );
    assert_eq!(names.len(), 4, "{names:?}");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&folder), 0o700);
    for name in &names {
        assert_eq!(mode(&folder.join(name)), 0o600, "{name}");
    }

    prune(state.path(), |document| *document.catalog() == digest(2)).unwrap();
    let read = Admissions::read(state.path());
    assert_eq!(read.evidence.keys().collect::<Vec<_>>(), [digest(2).as_ref()]);
    assert_eq!(names_in(&folder).unwrap().len(), 2);
    prune(state.path(), |_| false).unwrap();
    assert!(names_in(&folder).unwrap().is_empty());
    assert!(Admissions::read(&state.path().join("none")).evidence.is_empty());
}

#[test]
fn changed_or_forged_files_admit_nothing_and_say_why() {
    let keys = trusted(&[("release", 1)]);
    let name = document_name(&digest(7));
    let proof = list_of(&[7], 1);
    let text = text_name(&basics::digest::sha256(proof.list().unwrap().text()));
    let edit = |path: &Path, from: &str, to: &str| {
        let before = std::fs::read_to_string(path).unwrap();
        assert!(before.contains(from), "{before}");
        std::fs::write(path, before.replace(from, to)).unwrap();
    };
    let seven = digest(7).to_string();
    let table: [Case<'_>; 9] = [
        (
            "the text is gone",
            &|folder| std::fs::remove_file(folder.join(&text)).unwrap(),
            "does not exist",
        ),
        (
            "the text has another catalog",
            &|folder| edit(&folder.join(&text), &seven, digest(8).as_ref()),
            "its content is not that of its name",
        ),
        (
            "the document has another catalog",
            &|folder| edit(&folder.join(&name), &seven, digest(8).as_ref()),
            "it is about the catalog",
        ),
        (
            "the document has the name of another catalog",
            &|folder| {
                let other = folder.join(document_name(&digest(8)));
                std::fs::rename(folder.join(&name), &other).unwrap();
                edit(&other, &seven, digest(8).as_ref());
            },
            "the signed list lacks the content",
        ),
        (
            "the document is cut",
            &|folder| {
                let bytes = std::fs::read(folder.join(&name)).unwrap();
                std::fs::write(folder.join(&name), &bytes[..bytes.len() / 2]).unwrap();
            },
            "EOF",
        ),
        (
            "the document is newer",
            &|folder| edit(&folder.join(&name), "\"version\":1", "\"version\":2"),
            "it has version 2",
        ),
        (
            "the signature is another key's",
            &|folder| {
                let other = STANDARD.encode(list_of(&[7], 2).bytes());
                edit(&folder.join(&name), &STANDARD.encode(proof.bytes()), &other);
            },
            "no trusted key makes it valid",
        ),
        (
            "the document is open to others",
            &|folder| {
                let mode = std::fs::Permissions::from_mode(0o666);
                std::fs::set_permissions(folder.join(&name), mode).unwrap();
            },
            "others than root can write",
        ),
        (
            "the folder is open to others",
            &|folder| {
                let mode = std::fs::Permissions::from_mode(0o777);
                std::fs::set_permissions(folder, mode).unwrap();
            },
            "others than root can write",
        ),
    ];
    for (case, change, why) in table {
        let state = tempfile::tempdir().unwrap();
        keep(
            state.path(),
            admitted(&[list_of(&[7], 1)], &keys, 7, Bytes::Unhashed),
            |_| false,
        )
        .unwrap();
        change(&state.path().join(FOLDER));
        let read = Admissions::read(state.path());
        let standings = read.evidence.values();
        let told = standings.map(|evidence| {
            match evidence.standing(&keys, &Revocations::default(), Bytes::Unhashed) {
                Standing::Withdrawn(why) => why,
                other => panic!("{case}: {other:?}"),
            }
        });
        let told = read
            .problems
            .iter()
            .cloned()
            .chain(told)
            .collect::<Vec<_>>()
            .join("\n");
        assert!(told.contains(why), "{case}: {told}");
    }
}

#[test]
fn a_document_of_a_newer_version_outlives_a_pruning_with_all_texts() {
    let state = tempfile::tempdir().unwrap();
    let keys = trusted(&[("release", 1)]);
    keep(
        state.path(),
        admitted(&[list_of(&[7], 1)], &keys, 7, Bytes::Unhashed),
        |_| false,
    )
    .unwrap();
    let folder = state.path().join(FOLDER);
    let newer = folder.join(document_name(&digest(7)));
    std::fs::write(&newer, r#"{"version": 2}"#).unwrap();
    std::fs::write(folder.join(TEMPORARY), "half").unwrap();
    prune(state.path(), |_| false).unwrap();
    assert!(newer.exists());
    assert_eq!(names_in(&folder).unwrap().len(), 2);
}

/// A folder on a disk that may lose power.
#[derive(Clone, Debug, Default)]
struct Disk {
    /// The files that programs see.
    seen: BTreeMap<String, Vec<u8>>,
    /// The files that survive a power cut for certain.
    synced: BTreeMap<String, Vec<u8>>,
    /// The changes since the last sync. Each may survive a power cut.
    pending: Vec<(String, Option<Vec<u8>>)>,
}

impl Disk {
    fn carry_out(&mut self, step: &Step) {
        let change = match step {
            Step::Put(name, bytes) => (name.clone(), Some(bytes.clone())),
            Step::Remove(name) => (name.clone(), None),
            Step::Sync => {
                self.synced = self.seen.clone();
                return self.pending.clear();
            }
        };
        apply(&mut self.seen, &change);
        self.pending.push(change);
    }

    /// Loses the pending changes that `survives` does not name, and leaves a half-written file.
    fn lose_power(&mut self, survives: impl Fn(usize) -> bool) {
        self.seen = self.synced.clone();
        for (at, change) in std::mem::take(&mut self.pending).iter().enumerate() {
            if survives(at) {
                apply(&mut self.seen, change);
            }
        }
        self.seen.insert(TEMPORARY.to_owned(), b"{\"vers".to_vec());
        self.synced = self.seen.clone();
    }

    fn document(&self, name: &str) -> Option<Document> {
        serde_json::from_slice(self.seen.get(name)?).ok()
    }

    fn catalogs(&self) -> BTreeSet<String> {
        let documents = self.seen.keys().filter(|name| name.ends_with(DOCUMENT));
        documents.cloned().collect()
    }

    fn keep(&self, evidence: &Evidence) -> Vec<Step> {
        steps_to_keep(evidence, |name, bytes| {
            self.seen.get(name).is_some_and(|there| there == bytes)
        })
    }

    fn prune(&self, needed: &BTreeSet<u32>) -> Vec<Step> {
        let names = self.seen.keys().cloned().collect();
        let is_needed = |document: &Document| needed.iter().any(|number| digest(*number) == document.catalog);
        steps_to_prune(&names, |name| self.document(name), is_needed)
    }
}

fn apply(files: &mut BTreeMap<String, Vec<u8>>, (name, bytes): &(String, Option<Vec<u8>>)) {
    match bytes {
        Some(bytes) => files.insert(name.clone(), bytes.clone()),
        None => files.remove(name),
    };
}

/// A change: evidence for a catalog from one of the releases that list it, or a pruning to some
/// catalogs.
#[derive(Clone, Debug)]
enum Change {
    Keep(u32, usize),
    Prune(BTreeSet<u32>),
}

/// The end of a change.
#[derive(Clone, Copy, Debug)]
enum End {
    Whole,
    /// The program dies after this number of steps, and starts again.
    Death(usize),
    /// The power goes after this number of steps. The bits tell which pending changes survive.
    PowerCut(usize, u64),
}

fn history() -> impl Strategy<Value = Vec<(Change, End)>> {
    let needed = proptest::collection::btree_set(0..4_u32, 0..4);
    let change = prop_oneof![
        3 => (0..4_u32, 0..3_usize).prop_map(|(catalog, release)| Change::Keep(catalog, release)),
        1 => needed.prop_map(Change::Prune),
    ];
    let end = prop_oneof![
        Just(End::Whole),
        (0..6_usize).prop_map(End::Death),
        (0..6_usize, any::<u64>()).prop_map(|(steps, luck)| End::PowerCut(steps, luck)),
    ];
    proptest::collection::vec((change, end), 1..12)
}

#[test]
fn no_power_cut_separates_a_document_from_its_texts_or_loses_what_was_kept() {
    let keys = trusted(&[("release", 1), ("lab", 2)]);
    // Each release lists all catalogs, in a text of its own. The last has two texts.
    let releases = [
        vec![list_of(&[0, 1, 2, 3], 1)],
        vec![list_of(&[0, 1, 2, 3, 4], 1)],
        vec![list_of(&[0, 1, 2, 3, 5], 1), list_of(&[0, 1, 2, 3, 6], 2)],
    ];
    let evidence: Vec<Vec<Evidence>> = (0..4)
        .map(|catalog| {
            let of = |proofs: &Vec<Proof>| admitted(proofs, &keys, catalog, Bytes::Unhashed);
            releases.iter().map(of).collect()
        })
        .collect();
    proptest!(|(history in history())| {
        let mut disk = Disk::default();
        // The documents that must be there, and those that may be.
        let (mut sure, mut possible) = (BTreeSet::new(), BTreeSet::new());
        for (change, end) in history {
            let steps = match &change {
                Change::Keep(catalog, release) => {
                    disk.keep(&evidence[usize::try_from(*catalog).unwrap()][*release])
                }
                Change::Prune(needed) => disk.prune(needed),
            };
            let done = match end {
                End::Whole => steps.len(),
                End::Death(done) | End::PowerCut(done, _) => done.min(steps.len()),
            };
            steps.iter().take(done).for_each(|step| disk.carry_out(step));
            if let End::PowerCut(_, luck) = end {
                disk.lose_power(|at| luck >> (at % 64) & 1 == 1);
            }
            let is_whole = done == steps.len();
            match change {
                Change::Keep(catalog, _) => {
                    let name = document_name(&digest(catalog));
                    sure.extend(is_whole.then(|| name.clone()));
                    possible.insert(name);
                }
                Change::Prune(needed) => {
                    let needed = needed.iter().map(|number| document_name(&digest(*number)));
                    let needed: BTreeSet<String> = needed.collect();
                    sure.retain(|name| needed.contains(name));
                    possible.retain(|name| !is_whole || needed.contains(name));
                }
            }
            let there = disk.catalogs();
            prop_assert!(sure.is_subset(&there), "{:?} of {:?}", there, sure);
            prop_assert!(there.is_subset(&possible), "{:?} of {:?}", there, possible);
            for name in &there {
                let document = disk.document(name);
                prop_assert!(document.is_some(), "{name} is whole");
                for text in texts_of(&document.unwrap()) {
                    let bytes = disk.seen.get(&text);
                    let is_right = bytes.is_some_and(|bytes| text == text_name(&basics::digest::sha256(bytes)));
                    prop_assert!(is_right, "{name} has its text {text}");
                }
            }
        }
        // The next pruning leaves the texts of the documents and nothing else.
        let needed: BTreeSet<u32> = [0, 1].into();
        for step in disk.prune(&needed) {
            disk.carry_out(&step);
        }
        let documents: Vec<Document> = disk.catalogs().iter().filter_map(|name| disk.document(name)).collect();
        let mut expected: BTreeSet<String> = documents.iter().flat_map(texts_of).collect();
        expected.extend(disk.catalogs());
        prop_assert_eq!(disk.seen.keys().cloned().collect::<BTreeSet<_>>(), expected);
        let is_needed = |document: &Document| needed.iter().any(|number| digest(*number) == document.catalog);
        prop_assert!(documents.iter().all(is_needed));
    });
}
