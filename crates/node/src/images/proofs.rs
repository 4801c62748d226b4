//! The proofs for a bundle: signatures and signed lists beside it, and those that root has placed
//! in the folder of trusted digests.
//!
//! This module reads files and judges nothing. It asks for fixed names only, so an uploader cannot
//! make it read more than the bounds of `admission` allow.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use admission::{Form, LARGEST_LIST, LARGEST_SIGNATURE, Proof, Reach, SignedList};
use basics::Foreign;
use bundle::Identity;

use super::folder::{Folder, Listed, Refused};
use crate::sys::{Probe, probe_writers};

/// Endings of lists for one bundle: its catalog, and its checksum.
const OWN_LISTS: [&str; 2] = [".digest", ".sha256"];

/// Names of lists for all files of a folder, as k0s and others publish them.
const FOLDER_LISTS: [&str; 2] = ["SHA256SUMS", "sha256sums.txt"];

/// Architectures in the names of lists that k3s and RKE2 publish: `sha256sum-<arch>.txt`.
const ARCHITECTURES: [&str; 7] = ["amd64", "arm64", "arm", "386", "ppc64le", "riscv64", "s390x"];

/// Most bytes of all signed lists for one bundle together. Any user who may place bundles may place
/// lists, and each job has those of its bundle in memory.
const MOST_TEXT: u64 = 2 * LARGEST_LIST;

/// The proofs that were found for a bundle.
#[derive(Debug, Default)]
pub struct Found {
    /// The proofs, lists of catalogs first.
    pub proofs: Vec<Proof>,
    /// Reasons why further proofs are not whole yet: the list of a signature is absent.
    pub unfinished: Vec<String>,
    /// Name of a file that a program writes at this moment.
    pub growing: Option<String>,
}

/// Reads the proofs beside a bundle. `bundle` is the bundle's path below `folder`.
///
/// The names are `<bundle>.digest`, `<bundle>.sha256`, `SHA256SUMS`, `sha256sums.txt` and
/// `sha256sum-<arch>.txt`, each with a signature `.sig`, `.sigstore.json` or `.minisig`, and
/// signatures of the bundle itself.
pub fn beside(folder: &Folder, bundle: &OsStr) -> Found {
    let mut found = Found::default();
    let open = |name: &OsStr| folder.open(name);
    for (list, reach) in lists_of(bundle) {
        found.add_signatures(&list, Some(reach), open);
    }
    found.add_signatures(bundle, None, open);
    found
}

/// Returns the names of the lists that may speak of a bundle, and the reach of each.
fn lists_of(bundle: &OsStr) -> Vec<(OsString, Reach)> {
    let own = OWN_LISTS
        .iter()
        .map(|ending| (with(bundle, ending), Reach::Bundle));
    let architectures = ARCHITECTURES
        .iter()
        .map(|architecture| format!("sha256sum-{architecture}.txt"));
    let folders = FOLDER_LISTS.iter().map(ToString::to_string).chain(architectures);
    let beside = |name: String| Path::new(bundle).with_file_name(name).into_os_string();
    own.chain(folders.map(|name| (beside(name), Reach::All)))
        .collect()
}

/// Returns a name with an ending added.
pub(super) fn with(name: &OsStr, ending: &str) -> OsString {
    let mut name = name.to_owned();
    name.push(ending);
    name
}

/// Returns true if a file of this name may belong to a proof.
fn is_of_a_proof(name: &OsStr) -> bool {
    let name = Path::new(name).file_name().unwrap_or(name).to_string_lossy();
    let is_list = |name: &str| {
        let is_sums = name.starts_with("sha256sum-") && name.ends_with(".txt");
        is_sums || FOLDER_LISTS.contains(&name) || OWN_LISTS.iter().any(|ending| name.ends_with(ending))
    };
    is_list(&name) || Form::ALL.iter().any(|form| name.ends_with(form.ending()))
}

/// Returns true if a file of this name may belong to a proof for this bundle. Some lists are for
/// all bundles of their folder.
pub(crate) fn may_speak_of(proof: &OsStr, bundle: &OsStr) -> bool {
    let of_the_bundle = proof.as_bytes().starts_with(bundle.as_bytes());
    let (proof, bundle) = (Path::new(proof), Path::new(bundle));
    let name = proof.file_name().unwrap_or_default().as_bytes();
    let mut lists = FOLDER_LISTS.iter().chain(&["sha256sum-"]);
    let is_for_all = lists.any(|list| name.starts_with(list.as_bytes()));
    of_the_bundle || is_for_all && proof.parent() == bundle.parent()
}

/// Returns the names and identities of the files that may belong to proofs. If the stamp of a
/// folder changes, bundles may have other proofs.
pub fn stamp(entries: &[Listed]) -> Vec<(OsString, Identity)> {
    let proofs = entries.iter().filter(|entry| is_of_a_proof(&entry.name));
    proofs
        .map(|entry| (entry.name.clone(), entry.identity.clone()))
        .collect()
}

impl Found {
    /// Adds the signatures over a file. `list` has the reach of the file if it is a list: the file
    /// is read then, if it has a signature. Otherwise the file is the bundle itself.
    pub(crate) fn add_signatures(
        &mut self,
        signed: &OsStr,
        list: Option<Reach>,
        open: impl Fn(&OsStr) -> Result<File, Refused>,
    ) {
        let reach = list.unwrap_or(Reach::Bundle);
        let mut signatures = Vec::new();
        for form in Form::ALL {
            let name = with(signed, form.ending());
            match read(open(&name), LARGEST_SIGNATURE) {
                Contents::Absent => {}
                Contents::Growing => self.growing(&name),
                Contents::Whole(bytes) => signatures.push((raw(&name), form, Ok(bytes))),
                Contents::Unreadable(why) => signatures.push((raw(&name), form, Err(why))),
            }
        }
        if signatures.is_empty() {
            return;
        }
        let list = match list.map(|_| read(open(signed), LARGEST_LIST)) {
            None => None,
            Some(Contents::Absent) => {
                let text = format!("{} has a signature and is missing: copy it", shown(signed));
                return self.unfinished.push(text);
            }
            Some(Contents::Growing) => return self.growing(signed),
            Some(Contents::Whole(text)) if self.text_bytes() + text.len() as u64 > MOST_TEXT => {
                let why = format!("all lists for the bundle have more than {MOST_TEXT} bytes: remove some");
                Some(SignedList::unreadable(&raw(signed), why))
            }
            Some(Contents::Whole(text)) => Some(SignedList::new(&raw(signed), text)),
            Some(Contents::Unreadable(why)) => Some(SignedList::unreadable(&raw(signed), why)),
        };
        let list = list.map(Arc::new);
        self.proofs
            .extend(signatures.into_iter().map(|(name, form, bytes)| match bytes {
                Ok(bytes) => Proof::new(&name, form, bytes, list.clone(), reach),
                Err(why) => Proof::unreadable(&name, form, why, list.clone(), reach),
            }));
    }

    /// Returns the size of all lists. The signatures of a list stand together.
    fn text_bytes(&self) -> u64 {
        let lists = self
            .proofs
            .chunk_by(|one, other| match (one.list(), other.list()) {
                (Some(one), Some(other)) => Arc::ptr_eq(one, other),
                _ => false,
            });
        let sizes = lists.filter_map(|proofs| proofs[0].list().map(|list| list.text().len() as u64));
        sizes.sum()
    }

    fn growing(&mut self, name: &OsStr) {
        self.growing.get_or_insert_with(|| shown(name));
    }
}

/// Returns a file's name as text that tells different names apart.
fn raw(name: &OsStr) -> String {
    Foreign::file_name(name).raw().to_owned()
}

fn shown(name: &OsStr) -> String {
    format!("{:.200}", Foreign::file_name(name))
}

/// The content of a small file.
enum Contents {
    Absent,
    /// A process has the file open for writing.
    Growing,
    /// All bytes, or one more than the bound.
    Whole(Vec<u8>),
    Unreadable(String),
}

/// Reads an opened file up to a bound in bytes.
fn read(opened: Result<File, Refused>, largest: u64) -> Contents {
    let file = match opened {
        Ok(file) => file,
        Err(Refused::Gone) => return Contents::Absent,
        Err(refused) => return Contents::Unreadable(refused.to_string()),
    };
    if matches!(probe_writers(file.as_fd()), Probe::Busy) {
        return Contents::Growing;
    }
    let mut bytes = Vec::new();
    match file.take(largest + 1).read_to_end(&mut bytes) {
        Ok(_) => Contents::Whole(bytes),
        Err(error) => Contents::Unreadable(format!("it cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use admission::{Bytes, HEADER, Judgement, Policy, Question, Revocations, judge};
    use oci_spec::image::Digest;
    use rustix::fs::{FileType, Mode};
    use tempfile::TempDir;

    use super::*;
    use crate::images::folder::Depth;
    use crate::images::keys::tests::{signature, trusted};

    /// A name, a change of the folder, and a part of the reason that follows.
    type Case<'a> = (&'a str, &'a dyn Fn(&Path), &'a str);

    fn digest(letter: &str) -> Digest {
        format!("sha256:{}", letter.repeat(64)).parse().unwrap()
    }

    /// Returns a list of catalogs.
    fn catalogs(letter: &str) -> String {
        format!("{HEADER}\n{}  b.tar\n", digest(letter))
    }

    fn folder_with(files: &[(&str, &[u8])]) -> TempDir {
        let temporary = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = temporary.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        temporary
    }

    fn found(folder: &TempDir, bundle: &str) -> Found {
        beside(&Folder::open_dir(folder.path()).unwrap(), OsStr::new(bundle))
    }

    fn judged(proofs: &[Proof], catalog: &str, bytes: Bytes<'_>) -> Judgement {
        judge(&Question {
            policy: Policy::Require,
            keys: &trusted(&[("release", 1)]),
            revocations: &Revocations::default(),
            proofs,
            catalog: &digest(catalog),
            bytes,
        })
    }

    #[test]
    fn lists_and_signatures_are_found_by_their_names_beside_the_bundle_only() {
        let _no_forks = crate::sys::forks::none();
        let table: [(&str, &[&str], &[&str]); 9] = [
            (
                "b.tar",
                &["b.tar.digest", "b.tar.digest.sig"],
                &["b.tar.digest.sig over b.tar.digest Bundle"],
            ),
            (
                "b.tar",
                &[
                    "b.tar.digest",
                    "b.tar.digest.minisig",
                    "b.tar.digest.sigstore.json",
                    "b.tar.digest.asc",
                ],
                &[
                    "b.tar.digest.sigstore.json over b.tar.digest Bundle",
                    "b.tar.digest.minisig over b.tar.digest Bundle",
                ],
            ),
            (
                "b.tar",
                &["b.tar.sha256", "b.tar.sha256.sig"],
                &["b.tar.sha256.sig over b.tar.sha256 Bundle"],
            ),
            (
                "b.tar",
                &["b.tar.sig", "b.tar.sigstore.json"],
                &["b.tar.sig Bundle", "b.tar.sigstore.json Bundle"],
            ),
            (
                "b.tar",
                &[
                    "SHA256SUMS",
                    "SHA256SUMS.sig",
                    "sha256sum-amd64.txt",
                    "sha256sum-amd64.txt.minisig",
                ],
                &[
                    "SHA256SUMS.sig over SHA256SUMS All",
                    "sha256sum-amd64.txt.minisig over sha256sum-amd64.txt All",
                ],
            ),
            ("sub/b.tar", &["SHA256SUMS", "SHA256SUMS.sig", "b.tar.sig"], &[]),
            (
                "sub/b.tar",
                &["sub/sha256sums.txt", "sub/sha256sums.txt.sig", "sub/b.tar.sig"],
                &[
                    "sub/sha256sums.txt.sig over sub/sha256sums.txt All",
                    "sub/b.tar.sig Bundle",
                ],
            ),
            (
                "b.tar",
                &["b.tar.digest", "b.tar.sha256", "SHA256SUMS", "c.tar.sig"],
                &[],
            ),
            ("none", &[], &[]),
        ];
        for (bundle, files, expected) in table {
            let files: Vec<(&str, &[u8])> = files.iter().map(|name| (*name, &b"x"[..])).collect();
            let folder = folder_with(&files);
            let found = found(&folder, bundle);
            let told = found.proofs.iter().map(|proof| {
                let list = proof.list().map(|list| format!(" over {}", list.name()));
                format!("{}{} {:?}", proof.name(), list.unwrap_or_default(), proof.reach())
            });
            assert_eq!(told.collect::<Vec<_>>(), expected, "{files:?}");
            assert_eq!(found.unfinished, [""; 0], "{files:?}");
        }
    }

    #[test]
    fn a_proof_wakes_its_bundle_and_a_list_wakes_the_bundles_of_its_folder() {
        let table = [
            ("b.tar.sig", "b.tar", true),
            ("b.tar.digest.minisig", "b.tar", true),
            ("b.tar.digest", "c.tar", false),
            ("sub/b.tar.sig", "b.tar", false),
            ("SHA256SUMS.sig", "b.tar", true),
            ("sha256sum-amd64.txt", "c.tar", true),
            ("sub/SHA256SUMS", "b.tar", false),
            ("sub/SHA256SUMS", "sub/b.tar", true),
            ("/more/sha256sums.txt.sig", "/more/b.tar", true),
        ];
        for (proof, bundle, wakes) in table {
            let may = may_speak_of(OsStr::new(proof), OsStr::new(bundle));
            assert_eq!(may, wakes, "{proof} {bundle}");
        }
    }

    #[test]
    fn the_proofs_of_a_bundle_can_never_be_more_than_are_read() {
        let _no_forks = crate::sys::forks::none();
        let mut files = Vec::new();
        let lists = lists_of(OsStr::new("b.tar")).into_iter().map(|(name, _)| name);
        for signed in lists.chain(["b.tar".into()]) {
            files.push(signed.to_str().unwrap().to_owned());
            files.extend(Form::ALL.map(|form| format!("{}{}", signed.display(), form.ending())));
        }
        let files: Vec<(&str, &[u8])> = files.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
        let found = found(&folder_with(&files), "b.tar");
        assert_eq!(found.proofs.len(), 12 * 3);
        let own = found.proofs.iter().filter(|proof| proof.reach() == Reach::Bundle);
        assert_eq!(
            own.count(),
            9,
            "one of them is over the bundle by minisign, which says so"
        );
    }

    #[test]
    fn all_lists_together_have_a_bound() {
        let _no_forks = crate::sys::forks::none();
        let list = format!("{}\n{}", catalogs("a"), "# long\n".repeat(500_000)).into_bytes();
        let good = signature(1, &list);
        let mut files: Vec<(&str, &[u8])> = Vec::new();
        for (name, sidecar) in [
            ("b.tar.digest", "b.tar.digest.sig"),
            ("SHA256SUMS", "SHA256SUMS.sig"),
            ("sha256sums.txt", "sha256sums.txt.sig"),
            ("sha256sum-arm.txt", "sha256sum-arm.txt.sig"),
        ] {
            files.extend([(name, list.as_slice()), (sidecar, good.as_slice())]);
        }
        files.push(("b.tar.digest.minisig", b"x"));
        let proofs = found(&folder_with(&files), "b.tar").proofs;
        let sizes: Vec<usize> = proofs
            .iter()
            .map(|proof| proof.list().unwrap().text().len())
            .collect();
        assert_eq!(sizes, [list.len(), list.len(), list.len(), 0, 0]);
        let Judgement::Admitted(admission) = judged(&proofs, "a", Bytes::Unhashed) else {
            panic!("the lists within the bound count")
        };
        let remarks: Vec<String> = admission.remarks.iter().map(ToString::to_string).collect();
        assert!(
            remarks.join("\n").contains("more than 8388608 bytes"),
            "{remarks:?}"
        );
    }

    #[test]
    fn a_signed_list_admits_the_catalog_or_the_file_that_it_has() {
        let _no_forks = crate::sys::forks::none();
        let list = catalogs("a");
        let sums = format!("{}  other-name.tar\n", "f".repeat(64));
        let file = digest("f");
        let signed = |text: &str| signature(1, text.as_bytes());
        let admitted = |judgement: Judgement| matches!(judgement, Judgement::Admitted(_));

        let folder = folder_with(&[
            ("b.tar.digest", list.as_bytes()),
            ("b.tar.digest.sig", &signed(&list)),
        ]);
        let proofs = found(&folder, "b.tar").proofs;
        assert!(admitted(judged(&proofs, "a", Bytes::Unhashed)));
        assert!(matches!(
            judged(&proofs, "b", Bytes::Unhashed),
            Judgement::Refused(_)
        ));

        let folder = folder_with(&[
            ("SHA256SUMS", sums.as_bytes()),
            ("SHA256SUMS.sig", &signed(&sums)),
        ]);
        let proofs = found(&folder, "b.tar").proofs;
        assert_eq!(judged(&proofs, "a", Bytes::Unhashed), Judgement::NeedsFileDigest);
        assert!(admitted(judged(&proofs, "a", Bytes::Hashed(&file))));
        assert!(matches!(
            judged(&proofs, "f", Bytes::Hashed(&digest("a"))),
            Judgement::Unsigned { .. }
        ));
    }

    #[test]
    fn odd_files_do_not_block_and_do_not_count() {
        let _no_forks = crate::sys::forks::none();
        let list = catalogs("a");
        let good = signature(1, list.as_bytes());
        let setups: [Case<'_>; 6] = [
            (
                "a FIFO",
                &|folder| {
                    fs::remove_file(folder.join("b.tar.digest.sig")).unwrap();
                    let path = folder.join("b.tar.digest.sig");
                    rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, Mode::RUSR, 0).unwrap();
                },
                "b.tar.digest.sig: it is no regular file",
            ),
            (
                "a folder",
                &|folder| {
                    fs::remove_file(folder.join("b.tar.digest.sig")).unwrap();
                    fs::create_dir(folder.join("b.tar.digest.sig")).unwrap();
                },
                "b.tar.digest.sig: it is no regular file",
            ),
            (
                "a link to nothing",
                &|folder| {
                    fs::remove_file(folder.join("b.tar.digest.sig")).unwrap();
                    std::os::unix::fs::symlink("none", folder.join("b.tar.digest.sig")).unwrap();
                },
                "symbolic link to nothing",
            ),
            (
                "a large signature",
                &|folder| {
                    fs::write(folder.join("b.tar.digest.sig"), "A".repeat(70_000)).unwrap();
                },
                "larger than 65536 bytes",
            ),
            (
                "a cut signature",
                &|folder| {
                    fs::write(folder.join("b.tar.digest.sig"), &good[..40]).unwrap();
                },
                "no whole signature",
            ),
            (
                "a changed list",
                &|folder| {
                    fs::write(folder.join("b.tar.digest"), catalogs("a") + "\n").unwrap();
                },
                "no trusted key makes it valid",
            ),
        ];
        for (case, make, why) in setups {
            let folder = folder_with(&[("b.tar.digest", list.as_bytes()), ("b.tar.digest.sig", &good)]);
            make(folder.path());
            let Judgement::Refused(refusal) = judged(&found(&folder, "b.tar").proofs, "a", Bytes::Unhashed)
            else {
                panic!("{case}")
            };
            let told = refusal.to_string();
            assert!(told.contains(why), "{case}: {told}");
        }
    }

    #[test]
    fn a_proof_that_is_still_being_copied_is_no_proof_yet() {
        let _no_forks = crate::sys::forks::none();
        let list = catalogs("a");
        let good = signature(1, list.as_bytes());
        let folder = folder_with(&[("b.tar.digest.sig", &good)]);
        let before = found(&folder, "b.tar");
        assert!(before.proofs.is_empty());
        assert_eq!(
            before.unfinished,
            ["b.tar.digest has a signature and is missing: copy it"]
        );

        for open in ["b.tar.digest", "b.tar.digest.sig"] {
            let folder = folder_with(&[("b.tar.digest", list.as_bytes()), ("b.tar.digest.sig", &good)]);
            let writer = fs::OpenOptions::new()
                .append(true)
                .open(folder.path().join(open))
                .unwrap();
            let meanwhile = found(&folder, "b.tar");
            assert_eq!(meanwhile.growing.as_deref(), Some(open));
            assert!(meanwhile.proofs.is_empty());
            drop(writer);
            assert_eq!(found(&folder, "b.tar").proofs.len(), 1);
        }
    }

    #[test]
    fn the_stamp_changes_with_files_of_proofs_and_with_no_others() {
        let folder = folder_with(&[("b.tar", b"x"), ("README.txt", b"x")]);
        let stamp = || {
            let listing = Folder::open_dir(folder.path()).unwrap().list(Depth::default());
            stamp(&listing.unwrap().entries)
        };
        let first = stamp();
        assert!(first.is_empty());
        for other in ["c.tar", "images.txt", "b.json"] {
            fs::write(folder.path().join(other), "x").unwrap();
            assert_eq!(stamp(), first, "{other}");
        }
        let mut seen = vec![first];
        for name in lists_of(OsStr::new("b.tar")).into_iter().map(|(name, _)| name) {
            for name in [name.clone(), with(&name, ".sig"), with(&name, ".minisig")] {
                fs::write(folder.path().join(&name), "x").unwrap();
                let now = stamp();
                assert!(!seen.contains(&now), "{name:?}");
                seen.push(now);
            }
        }
    }
}
