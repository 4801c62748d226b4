//! An open bundle and its blobs, which are read from one descriptor and from any offset.

use std::fs::File;

use crate::common::*;
use crate::tars::documents_first;
use airgapd_bundle::fixtures::{Image, Layout};
use airgapd_bundle::{Bundle, Limits};

#[test]
fn a_bundle_reads_from_its_descriptor_whatever_becomes_of_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    let archive = documents_first();
    archive.write_to(&path);
    let bundle = Bundle::open(&path, &Limits::default()).unwrap();
    assert!(bundle.is_unchanged().unwrap());
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "something else").unwrap();
    assert_blobs_are_right(&bundle, &only_image(&bundle).root);
    assert_eq!(bundle.path(), path);
}

#[test]
fn a_bundle_notices_that_its_file_was_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    let archive = documents_first();
    archive.write_to(&path);
    let bundle = Bundle::open(&path, &Limits::default()).unwrap();
    let layer = bundle.blob(&archive.images[0].manifests[0].layers[0]).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(600).unwrap();
    assert!(!bundle.is_unchanged().unwrap());
    let error = std::io::read_to_string(layer.open(0).unwrap()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_blob_can_be_read_from_any_offset() {
    let archive = documents_first();
    let bundle = good(&archive);
    let docker = Layout::docker().image(Image::new("a").layer(b"x")).build();
    let docker_bundle = good(&docker);
    let in_file = (&bundle, archive.images[0].manifests[0].layers[0].clone());
    let in_memory = (
        &docker_bundle,
        docker.images[0].manifests[0].docker_digest.clone(),
    );
    for (bundle, digest) in [in_file, in_memory] {
        let whole = blob(bundle, &digest);
        let blob = bundle.blob(&digest).unwrap();
        for offset in [0, 1, 100, blob.size() - 1, blob.size()] {
            let mut rest = Vec::new();
            std::io::Read::read_to_end(&mut blob.open(offset).unwrap(), &mut rest).unwrap();
            assert_eq!(rest, &whole[usize::try_from(offset).unwrap()..]);
        }
        assert!(blob.open(blob.size() + 1).is_err());
    }
    assert!(
        bundle
            .blob(&airgapd_bundle::fixtures::digest_of(b"unknown"))
            .is_none()
    );
}
