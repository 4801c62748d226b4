//! The bundles that the operator has allowed: a folder of files with the digests of their catalogs.
//!
//! Each check reads the folder again, so a new line is all that the operator has to add. A file
//! that others than root could have written does not count, and the message says so.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bundle::Identity;
use oci_spec::image::Digest;

use crate::images::folder::{self, Class, Depth, Folder, FolderTrust, Listed};
use crate::images::sidecar::{parse_line, text_lines};

/// Largest file of digests, in bytes.
const LARGEST: u64 = 4 << 20;

/// Checks that the folder lists the digest of a bundle's catalog.
///
/// # Errors
///
/// Returns why the bundle is not allowed, and what to do.
pub fn check(trusted: &Path, catalog: &Digest) -> Result<(), String> {
    let list = || -> Result<(Folder, Vec<Listed>), String> {
        let folder = Folder::open_dir(trusted).map_err(|error| error.to_string())?;
        match folder::judge(&folder, trusted, false) {
            FolderTrust::Trusted => {}
            FolderTrust::Warning(why) | FolderTrust::Refused(why) => return Err(why),
        }
        let listing = folder.list(Depth::default()).map_err(|error| error.to_string())?;
        Ok((folder, listing.entries))
    };
    let (folder, listed) = list().map_err(|why| {
        format!(
            "the folder {} of `trustedDigests` cannot be used: {why}",
            trusted.display()
        )
    })?;
    let mut remarks = Vec::new();
    for entry in listed.iter().filter(|entry| may_list_digests(&entry.class)) {
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
        return Err("others than root can write it".to_owned());
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
}
