//! Lists of images to pull, as in k3s: `*.txt` in the images folder, one reference on each line.
//!
//! They are for nodes that have a registry. CRI pulls the images with its own credentials and
//! mirrors, and airgapd pins them like images of a bundle. Name and content together decide that a
//! file is a list, because a bundle may have any name.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;

use containerd::{Client, ImageUpdate};
use import::names::DigestReferences;
use import::{Naming, Reference, Source, labels};
use oci_spec::image::Digest;

use crate::images::folder::{self, Ending, Reason};
use crate::state::ledger::ImageEntry;

/// Longest list, in bytes.
const LARGEST: u64 = 1 << 20;

/// The namespace that CRI pulls into.
const KUBERNETES: &str = "k8s.io";

/// Returns true if a file of this size is a list: its name says so, and its first bytes are not
/// those of an archive. Lists of checksums and other known texts are none. A file that is shorter
/// than a tar header is no archive.
pub(crate) fn is_list(name: &OsStr, head: Ending, size: u64) -> bool {
    let is_text = match head {
        Ending::Foreign => true,
        Ending::Beginning => (1..512).contains(&size),
        Ending::Marker | Ending::Reserved | Ending::NoMarker | Ending::Compressed => false,
    };
    let is_called_so = || folder::why_ignored(name, head, size) == Some(Reason::List);
    is_text && name.as_bytes().ends_with(b".txt") && is_called_so()
}

/// Returns true if a file may be a list, by its name and size.
pub(crate) fn may_be_list(name: &OsStr, size: u64) -> bool {
    size <= LARGEST && name.as_bytes().ends_with(b".txt")
}

/// Reads a list.
///
/// # Errors
///
/// Returns an error if the list cannot be read, is too long or is no text.
pub(crate) fn read(file: File) -> io::Result<String> {
    let mut text = String::new();
    file.take(LARGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST {
        return Err(io::Error::other(format!(
            "it is a list of more than {LARGEST} bytes"
        )));
    }
    Ok(text)
}

/// Returns the references of a list, each once, or what is wrong with a line.
pub(crate) fn parse(text: &str, naming: &Naming) -> Vec<Result<Reference, String>> {
    let mut references = Vec::new();
    let mut seen = HashSet::new();
    let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let reference = match line.parse::<Reference>() {
            Ok(reference) if naming.allows(&reference) => Ok(reference),
            Ok(reference) => Err(format!(
                "{reference} is not among the names that allowedNames allows"
            )),
            Err(error) => Err(error.to_string()),
        };
        let shown = reference.as_ref().map_or_else(Clone::clone, ToString::to_string);
        if seen.insert(shown) {
            references.push(reference);
        }
    }
    references
}

/// Makes an image of a list present: lets CRI pull it if it is missing, and vouches for its
/// records.
///
/// Cancelling leaves the image either missing, or present and not pinned. The next try continues
/// from there.
///
/// # Errors
///
/// Returns the reason why the image is missing or not pinned.
pub(crate) async fn provide(
    client: &Client,
    reference: &Reference,
    naming: &Naming,
    source: &Source,
) -> Result<Vec<ImageEntry>, Unprovided> {
    if client.namespace() != KUBERNETES {
        return Err(Unprovided::Elsewhere);
    }
    let name = reference.to_string();
    let cri = client.cri();
    let is_there = client.image(&name).await?.is_some() && cri.image_status(&name).await?.is_some();
    if !is_there {
        cri.pull_image(&name).await?;
    }
    let target = vouch(client, &name, source).await?.ok_or(Unprovided::NoRecord)?;
    let mut entries = vec![ImageEntry {
        name,
        target: target.clone(),
    }];
    let by_digest = reference.by_digest(&target).to_string();
    if naming.digest_references != DigestReferences::None
        && entries[0].name != by_digest
        && let Some(found) = vouch(client, &by_digest, source).await?
        && found == target
    {
        entries.push(ImageEntry {
            name: by_digest,
            target,
        });
    }
    Ok(entries)
}

/// Puts airgapd's labels on a record, and returns its target. Returns `None` if there is no record.
async fn vouch(client: &Client, name: &str, source: &Source) -> Result<Option<Digest>, containerd::Error> {
    let Some(record) = client.image(name).await? else {
        return Ok(None);
    };
    let labels = labels::vouch(&record.labels, source);
    if !labels.is_empty() {
        let update = ImageUpdate { target: None, labels };
        client.update_image(name, &update).await?;
        labels::tell_of_expiry(name, &update.labels);
    }
    Ok(Some(record.target.digest().clone()))
}

/// The reason why an image of a list is not in place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unprovided {
    /// containerd, CRI or the registry has refused or failed.
    #[error(transparent)]
    Containerd(#[from] containerd::Error),
    /// CRI works in one namespace only.
    #[error("CRI pulls only into the namespace {KUBERNETES}, and another namespace is configured")]
    Elsewhere,
    /// CRI reports that it has pulled the image, and containerd has no record of that name.
    #[error("CRI has pulled the image, but containerd has no image record of that name")]
    NoRecord,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_reference_except_blank_ones_and_comments() {
        let text =
            "\u{feff}# of k3s\r\ndocker.io/rancher/pause:3.6\r\n\n  busybox \nbusybox:latest\nNot A Name\n";
        let naming = Naming::default();
        let parsed = parse(text, &naming);
        let good: Vec<_> = parsed.iter().flatten().map(ToString::to_string).collect();
        assert_eq!(
            good,
            ["docker.io/rancher/pause:3.6", "docker.io/library/busybox:latest"]
        );
        let bad: Vec<_> = parsed.iter().filter_map(|parsed| parsed.as_ref().err()).collect();
        assert!(bad.len() == 1 && bad[0].contains("Not A Name"), "{bad:?}");
    }

    #[test]
    fn names_that_are_not_allowed_are_not_pulled() {
        let naming = Naming {
            allowed: vec!["docker.io/rancher/*".parse().unwrap()],
            ..Naming::default()
        };
        let parsed = parse("rancher/pause:3.6\nevil.test/pause:3.6\n", &naming);
        assert!(parsed[0].is_ok());
        assert!(parsed[1].as_ref().unwrap_err().contains("allowedNames"));
    }

    #[test]
    fn a_list_has_the_name_of_one_and_is_no_archive() {
        for (name, head, size, expected) in [
            ("images.txt", Ending::Foreign, 4096, true),
            ("images.txt", Ending::Beginning, 20, true),
            ("images.txt", Ending::Beginning, 0, false),
            ("images.txt", Ending::Beginning, 4096, false),
            ("images.txt", Ending::NoMarker, 4096, false),
            ("sha256sum.txt", Ending::Foreign, 4096, false),
            ("sha256sum-amd64.txt", Ending::Foreign, 4096, false),
            ("sha256sum-amd64.txt", Ending::Beginning, 100, false),
            ("k3s-images.txt", Ending::Foreign, 4096, true),
            ("rke2-images-all.linux-amd64.txt", Ending::Beginning, 100, true),
            ("README.txt", Ending::Foreign, 4096, false),
            ("images.txt", Ending::Marker, 4096, false),
            ("images.txt", Ending::Compressed, 20, false),
            ("images.tar", Ending::Foreign, 4096, false),
            ("images.TXT", Ending::Foreign, 4096, false),
        ] {
            assert_eq!(
                is_list(OsStr::new(name), head, size),
                expected,
                "{name} {head:?} {size}"
            );
        }
    }
}
