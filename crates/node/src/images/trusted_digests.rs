//! The bundles that the operator has allowed: a folder of files with the digests of their catalogs.
//!
//! Each check reads the folder again, so a new line is all that the operator has to add. A file
//! that others than root could have written does not count, and the message says so.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use admission::{Bytes, Form, List, Reach};
use bundle::Identity;
use oci_spec::image::Digest;

use crate::images::folder::{self, Class, Depth, Folder, FolderTrust, Listed, Refused};
use crate::images::proofs::{Found, with};
use crate::images::sidecar::{parse_line, text_lines};

/// Largest file of digests, in bytes.
const LARGEST: u64 = 4 << 20;

/// Reason why a file in the folder does not count.
const WRITABLE: &str = "others than root can write it";

/// Checks that the folder lists the digest of a bundle's catalog.
///
/// # Errors
///
/// Returns why the bundle is not allowed, and what to do.
pub fn check(trusted: &Path, catalog: &Digest) -> Result<(), String> {
    check_in(trusted, catalog, |_| true)
}

/// Checks that an unsigned list of the folder has the digest of a bundle's catalog. A list with a
/// signature beside it does not count here: [`proofs`] returns it.
///
/// # Errors
///
/// Returns why no unsigned list allows the bundle, and what to do.
pub fn check_unsigned(trusted: &Path, catalog: &Digest) -> Result<(), String> {
    check_in(trusted, catalog, |is_signed| !is_signed)
}

fn check_in(trusted: &Path, catalog: &Digest, counts: impl Fn(bool) -> bool) -> Result<(), String> {
    let (folder, listed) = open(trusted)?;
    let names: HashSet<&OsStr> = listed.iter().map(|entry| entry.name.as_os_str()).collect();
    let is_signed = |entry: &&Listed| {
        let mut forms = Form::ALL.iter();
        forms.any(|form| names.contains(with(&entry.name, form.ending()).as_os_str()))
    };
    let mut remarks = Vec::new();
    let is_signature = |entry: &&Listed| {
        let name = entry.name.to_string_lossy();
        Form::ALL.iter().any(|form| name.ends_with(form.ending()))
    };
    let lists = listed
        .iter()
        .filter(|entry| may_list_digests(&entry.class) && !is_signature(entry));
    for entry in lists.filter(|entry| counts(is_signed(entry))) {
        match digests_in(&folder, entry) {
            Ok(digests) if digests.iter().any(|digest| digest == catalog.as_ref()) => return Ok(()),
            Ok(_) => {}
            Err(why) => remarks.push(format!(" ({} there does not count: {why})", entry.name.display())),
        }
    }
    Err(format!(
        "its content {catalog} is not among the trusted digests: if it should be, add that digest as a line to a file in {}{}",
        trusted.display(),
        remarks.concat()
    ))
}

/// Returns the signed lists of the folder that may speak of a bundle, with their signatures. Each
/// reaches all bundles. A list of files counts if it has the bundle's sum, or if that is not known
/// yet.
///
/// # Errors
///
/// Returns why the folder cannot be used.
pub fn proofs(trusted: &Path, catalog: &Digest, bytes: Bytes<'_>) -> Result<Found, String> {
    let (folder, listed) = open(trusted)?;
    let open = |name: &OsStr| {
        let file = folder.open(name)?;
        let metadata = file.metadata().map_err(Refused::Unreadable)?;
        match folder::is_roots_alone(metadata.mode(), metadata.uid()) {
            true => Ok(file),
            false => Err(Refused::Unreadable(io::Error::other(WRITABLE))),
        }
    };
    let mut found = Found::default();
    for entry in listed.iter().filter(|entry| may_list_digests(&entry.class)) {
        let known = found.proofs.len();
        found.add_signatures(&entry.name, Some(Reach::All), open);
        let text = found.proofs.get(known).and_then(|proof| proof.list());
        let is_about = text.is_none_or(|list| may_speak_of(list.text(), catalog, bytes));
        found.proofs.truncate(if is_about { usize::MAX } else { known });
    }
    Ok(found)
}

/// Returns false if a list is sound and has other digests only. A release a week for years makes
/// more lists than a bundle may have proofs.
fn may_speak_of(text: &[u8], catalog: &Digest, bytes: Bytes<'_>) -> bool {
    match (List::parse(text), bytes) {
        (Ok(List::Catalogs(catalogs)), _) => catalogs.contains(catalog),
        (Ok(List::Files(files)), Bytes::Hashed(file)) => files.contains(file),
        (Ok(List::Files(_)), Bytes::Folder) => false,
        (Ok(List::Files(_)), Bytes::Unhashed) | (Err(_), _) => true,
    }
}

/// Opens and lists the folder, or returns why it cannot be used.
fn open(trusted: &Path) -> Result<(Folder, Vec<Listed>), String> {
    let list = || {
        let folder = Folder::open_dir(trusted).map_err(|error| error.to_string())?;
        match folder::judge(&folder, trusted, false) {
            FolderTrust::Trusted => {}
            FolderTrust::Warning(why) | FolderTrust::Refused(why) => return Err(why),
        }
        let listing = folder.list(Depth::default()).map_err(|error| error.to_string())?;
        Ok((folder, listing.entries))
    };
    list().map_err(|why| {
        format!(
            "the folder {} of `trustedDigests` cannot be used: {why}",
            trusted.display()
        )
    })
}

/// Returns the names and identities of the folder and its files. Equal stamps mean equal content.
pub(crate) fn stamp(trusted: &Path) -> Vec<(OsString, Identity)> {
    let listed = Folder::open_dir(trusted).and_then(|folder| folder.list(Depth::default()));
    let entries = listed.unwrap_or_default().entries.into_iter();
    let own = std::fs::metadata(trusted).ok();
    let own = own.map(|metadata| (OsString::new(), Identity::of(&metadata)));
    own.into_iter()
        .chain(entries.map(|entry| (entry.name, entry.identity)))
        .collect()
}

fn may_list_digests(class: &Class) -> bool {
    *class == Class::Candidate
}

fn digests_in(folder: &Folder, entry: &Listed) -> Result<Vec<String>, String> {
    let file = folder.open(&entry.name).map_err(|refused| refused.to_string())?;
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !folder::is_roots_alone(metadata.mode(), metadata.uid()) {
        return Err(WRITABLE.to_owned());
    }
    Ok(digests(&read(file)?))
}

fn read(file: File) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    file.take(LARGEST + 1)
        .read_to_end(&mut text)
        .map_err(|error| error.to_string())?;
    if text.len() as u64 > LARGEST {
        return Err(format!("it is larger than {LARGEST} bytes"));
    }
    Ok(text)
}

/// Returns the digests of all lines. The rest of a line is the operator's remark.
fn digests(text: &[u8]) -> Vec<String> {
    let checksums = text_lines(text).filter_map(|line| parse_line(line.trim_ascii_start()));
    checksums.map(|(checksum, _)| checksum.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    #[test]
    fn digests_are_read_from_every_usual_form_of_a_line() {
        let hex = &A["sha256:".len()..];
        for line in [
            A.to_owned(),
            format!("  {A}"),
            format!("{A} # release 1.31"),
            format!("{hex}  bundle.tar"),
            format!("SHA256 (bundle.tar) = {hex}"),
        ] {
            let text = format!("# trusted\n\nnonsense\n{B}\n{line}\r\n");
            assert_eq!(digests(text.as_bytes()), [B, A], "{line}");
        }
        assert!(digests(format!("# {A}\nx{A}\n{A}0\n").as_bytes()).is_empty());
    }

    #[test]
    fn only_a_listed_digest_in_a_file_of_roots_is_allowed() {
        let temporary = tempfile::tempdir().unwrap();
        let trusted = temporary.path().join("trusted");
        let catalog: Digest = A.parse().unwrap();
        let refused = || check(&trusted, &catalog).unwrap_err();
        assert!(refused().contains("cannot be used"), "{}", refused());

        fs::create_dir(&trusted).unwrap();
        fs::write(trusted.join("list"), format!("{B}\n")).unwrap();
        assert!(refused().contains(A), "the digest to add: {}", refused());

        let before = stamp(&trusted);
        fs::write(trusted.join("more"), format!("{A}\n")).unwrap();
        assert_ne!(stamp(&trusted), before);
        assert_eq!(check(&trusted, &catalog), Ok(()));

        fs::set_permissions(trusted.join("more"), fs::Permissions::from_mode(0o666)).unwrap();
        assert!(refused().contains("more there does not count"), "{}", refused());
        fs::set_permissions(trusted.join("more"), fs::Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(&trusted, fs::Permissions::from_mode(0o775)).unwrap();
        assert!(refused().contains("group can write"), "{}", refused());
    }

    #[test]
    fn a_signature_is_no_list_of_roots() {
        let temporary = tempfile::tempdir().unwrap();
        let catalog: Digest = A.parse().unwrap();
        for name in ["list.sig", "list.sigstore.json", "list.minisig"] {
            fs::write(temporary.path().join(name), format!("{A}\n")).unwrap();
        }
        assert!(check(temporary.path(), &catalog).is_err());
        assert!(check_unsigned(temporary.path(), &catalog).is_err());
        fs::write(temporary.path().join("other"), format!("{A}\n")).unwrap();
        assert_eq!(check(temporary.path(), &catalog), Ok(()));
    }

    #[test]
    fn a_list_with_a_signature_is_a_proof_and_no_word_of_roots() {
        let temporary = tempfile::tempdir().unwrap();
        let trusted = temporary.path();
        let catalog: Digest = A.parse().unwrap();
        let other: Digest = B.parse().unwrap();
        let write = |name: &str, text: &str| fs::write(trusted.join(name), text).unwrap();
        let names = |digest: &Digest, bytes: Bytes<'_>| {
            let found = proofs(trusted, digest, bytes).unwrap();
            let names = found.proofs.iter().map(|proof| {
                assert_eq!(proof.reach(), Reach::All);
                format!("{}/{}", proof.list().unwrap().name(), proof.name())
            });
            names.collect::<Vec<_>>().join(" ")
        };
        write("release.digest", &format!("airgapd-catalogs 1\n{A}  a.tar\n"));
        assert_eq!(check_unsigned(trusted, &catalog), Ok(()), "root's own word");
        assert_eq!(names(&catalog, Bytes::Unhashed), "");

        write("release.digest.minisig", "x");
        assert!(check_unsigned(trusted, &catalog).is_err());
        assert_eq!(check(trusted, &catalog), Ok(()), "signatures are not asked");
        let proof = "release.digest/release.digest.minisig";
        assert_eq!(names(&catalog, Bytes::Unhashed), proof);
        assert_eq!(
            names(&other, Bytes::Unhashed),
            "",
            "a list of other bundles is left out"
        );

        // A list of files has no catalog, and only the sum of the file can tell if it counts.
        write("SUMS", &format!("{}  a.tar\n", &B["sha256:".len()..]));
        write("SUMS.sig", "x");
        assert_eq!(names(&other, Bytes::Unhashed), "SUMS/SUMS.sig");
        assert_eq!(
            names(&catalog, Bytes::Hashed(&other)),
            format!("SUMS/SUMS.sig {proof}")
        );
        assert_eq!(names(&catalog, Bytes::Hashed(&catalog)), proof);
        assert_eq!(names(&catalog, Bytes::Folder), proof);

        // A list that cannot be used stays, since its fault is worth a remark.
        write("broken", "airgapd-catalogs 2\n");
        write("broken.sig", "x");
        assert_eq!(
            names(&catalog, Bytes::Folder),
            format!("broken/broken.sig {proof}")
        );
    }
}
