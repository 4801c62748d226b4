//! Helpers that the tests of the reader share.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use airgapd_bundle::fixtures::{Archive, Image as Built, Layout, digest_of};
use airgapd_bundle::{Bundle, Content, Error, Fault, Hashed, Image, Limits, Manifest, Node, PartState};
use oci_spec::image::Digest;

/// A layout with one image of one layer.
pub(crate) fn one_image() -> Archive {
    Layout::new()
        .image(
            Built::new("docker.io/library/a:1")
                .platform("linux/amd64")
                .layer(b"hello"),
        )
        .build()
}

/// Opens bytes as a bundle.
pub(crate) fn open(bytes: &[u8]) -> Result<Bundle, Error> {
    open_within(bytes, &Limits::default())
}

/// Opens bytes as a bundle within limits. Every test also shows that the proof of the file's bytes
/// changes neither the catalog nor the error.
pub(crate) fn open_within(bytes: &[u8], limits: &Limits) -> Result<Bundle, Error> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let path = Path::new("test.tar");
    let hashed = Hashed::of(file.try_clone().unwrap(), &AtomicBool::new(false)).unwrap();
    let proven = Bundle::from_hashed(hashed, path, limits);
    let opened = Bundle::from_file(file, path, limits);
    match (&opened, &proven) {
        (Ok(opened), Ok(proven)) => {
            assert_eq!(opened.catalog(), proven.catalog());
            assert_eq!(opened.is_sequential(), proven.is_sequential());
            assert_eq!(opened.file_digest(), None);
            assert_eq!(proven.file_digest(), Some(&digest_of(bytes)));
        }
        (opened, proven) => {
            let error = |opened: &Result<Bundle, Error>| opened.as_ref().err().map(ToString::to_string);
            assert_eq!(error(opened), error(proven));
        }
    }
    opened
}

/// Opens an archive that must be a bundle.
pub(crate) fn good(archive: &Archive) -> Bundle {
    open(&archive.to_bytes()).unwrap_or_else(|error| panic!("{error}"))
}

/// Opens an archive that must be refused.
pub(crate) fn refused(archive: &Archive) -> Fault {
    match open(&archive.to_bytes()) {
        Err(error) => error.fault,
        Ok(bundle) => panic!("this should be refused: {:?}", bundle.catalog()),
    }
}

/// Returns true for the faults of a file that is still being written. The rest of the file may cure
/// them.
pub(crate) fn looks_unfinished(error: &Error) -> bool {
    matches!(
        error.fault,
        Fault::Empty | Fault::Truncated(_) | Fault::CompressedCut { .. } | Fault::Changed
    )
}

/// The only image of a bundle.
pub(crate) fn only_image(bundle: &Bundle) -> &Image {
    match bundle.catalog().images.as_slice() {
        [image] => image,
        images => panic!("one image was expected: {images:?}"),
    }
}

/// The manifest of a node. Panics for any other node.
pub(crate) fn manifest(node: &Node) -> &Manifest {
    match &node.content {
        Content::Manifest(manifest) => manifest,
        content => panic!("a manifest was expected: {content:?}"),
    }
}

/// The children of an index. Panics for any other node.
pub(crate) fn children(node: &Node) -> &[Node] {
    match &node.content {
        Content::Index(children) => children,
        content => panic!("an index was expected: {content:?}"),
    }
}

/// The reason why a node is broken.
pub(crate) fn broken(node: &Node) -> &str {
    match &node.content {
        Content::Broken(reason) => reason,
        content => panic!("a broken node was expected: {content:?}"),
    }
}

/// Returns true if everything below a node is present and able to run.
pub(crate) fn is_whole(node: &Node) -> bool {
    match &node.content {
        Content::Index(children) => children.iter().all(is_whole),
        Content::Manifest(manifest) => {
            manifest.problems.is_empty() && manifest.parts().all(|part| part.state == PartState::Present)
        }
        Content::Other => true,
        Content::Absent | Content::Broken(_) => false,
    }
}

/// All bytes of a blob.
pub(crate) fn blob(bundle: &Bundle, digest: &Digest) -> Vec<u8> {
    let blob = bundle
        .blob(digest)
        .unwrap_or_else(|| panic!("there is no blob {digest}"));
    let mut bytes = Vec::new();
    blob.open(0).unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, blob.size());
    bytes
}

/// Asserts that a bundle returns all blobs of a whole node with the right bytes.
pub(crate) fn assert_blobs_are_right(bundle: &Bundle, node: &Node) {
    assert_eq!(
        digest_of(&blob(bundle, node.descriptor.digest())),
        *node.descriptor.digest()
    );
    match &node.content {
        Content::Index(children) => children
            .iter()
            .for_each(|child| assert_blobs_are_right(bundle, child)),
        Content::Manifest(manifest) => {
            for part in manifest.parts() {
                let bytes = blob(bundle, part.descriptor.digest());
                assert_eq!(digest_of(&bytes), *part.descriptor.digest());
                assert_eq!(bytes.len() as u64, part.descriptor.size());
            }
        }
        content => panic!("not a node with blobs: {content:?}"),
    }
}
