//! Folders that are bundles: OCI layouts that were extracted, or are being copied, into the images
//! folder.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use import::bundle_id;

use crate::support::bundles::{self, PLATFORMS, all_records, image, marker, multi_platform, needed_here};
use crate::support::target::BUNDLE;
use crate::support::{Node, Target, on_each_containerd, on_the_fake, wait_for};

/// Extracts an archive the way an operator does.
fn extract(archive: &Path, into: &Path) {
    fs::create_dir_all(into).unwrap();
    let status = Command::new("tar")
        .arg("-xf")
        .arg(archive)
        .arg("-C")
        .arg(into)
        .status()
        .unwrap();
    assert!(status.success());
}

/// Users extract bundles that they should have copied.
fn an_extracted_layout_is_a_bundle_like_the_archive_it_came_from(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let names = ["registry.test/one:1", "registry.test/two:1"];
    let archive = bundles::write(
        &node.path("bundle.tar"),
        names.map(|name| multi_platform(name, &PLATFORMS)),
    );
    extract(&node.path("bundle.tar"), &node.images().join("layout"));
    let expected = all_records(names.into_iter().zip(&archive.images));
    daemon.wait_until("all of it", || {
        target.names() == expected && target.leases().is_empty()
    });
    target.collect_garbage();
    assert_eq!(target.digests(), needed_here(&archive.images));
    let label = format!("{BUNDLE}{}", bundle_id("layout"));
    assert_eq!(
        target.labels(names[0]).get(&label).map(String::as_str),
        Some("layout")
    );
    daemon.wait_for_log("bundle imported");

    target.remove_record(names[1]);
    daemon.wait_until("the removed record is restored", || {
        target.record(names[1]).is_some()
    });
    daemon.finish(target);
    let daemon = node.start();
    let (bundle, name) = marker(node.path("marker.tar"));
    node.drop_in(&bundle);
    daemon.wait_until("a bundle after the restart", || target.record(&name).is_some());
    let log = daemon.finish(target);
    assert!(!log.contains("bundle=layout"), "nobody opens it again: {log}");
    let report = node.import([&node.images().join("layout")]).exits(0).bundle();
    assert_eq!(
        (report["outcome"].as_str(), report["format"].as_str()),
        (Some("unchanged"), Some("oci-layout"))
    );
}

/// A folder that is still being copied is an ordinary folder. It becomes a bundle as soon as its
/// documents are there.
fn a_folder_becomes_a_layout_as_soon_as_its_documents_are_there(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let name = "registry.test/late:1";
    bundles::write(&node.path("bundle.tar"), [image(name)]);
    fs::create_dir(node.images().join("layout")).unwrap();
    daemon.wait_for_log("no OCI image layout");
    extract(&node.path("bundle.tar"), &node.images().join("layout"));
    // This is well before the next regular listing.
    wait_for(Duration::from_secs(15), "the image", || {
        target.record(name).is_some()
    });
    daemon.finish(target);
}

/// An incomplete copy has no record. The last blob completes the image.
fn a_layout_is_imported_when_its_last_blob_is_there(target: &Target) {
    let node = Node::on(target);
    let name = "registry.test/growing:1";
    let archive = bundles::write(&node.path("bundle.tar"), [image(name)]);
    let layer = archive.images[0].manifests[0].layers[0]
        .to_string()
        .replace(':', "/");
    extract(&node.path("bundle.tar"), &node.path("layout"));
    let blob = fs::read(node.path("layout/blobs").join(&layer)).unwrap();
    fs::write(node.path("layout/blobs").join(&layer), &blob[..100]).unwrap();
    fs::rename(node.path("layout"), node.images().join("layout")).unwrap();
    let daemon = node.start();
    let (bundle, marker) = marker(node.path("marker.tar"));
    node.drop_in(&bundle);
    daemon.wait_until("a bundle beside it", || target.record(&marker).is_some());
    assert!(target.record(name).is_none());
    fs::write(node.images().join("layout/blobs").join(&layer), &blob).unwrap();
    daemon.wait_until("the image", || target.record(name).is_some());
    let log = daemon.finish(target);
    assert!(!log.contains("ERROR"), "{log}");
}

on_each_containerd! {
    an_extracted_layout_is_a_bundle_like_the_archive_it_came_from,
    a_layout_is_imported_when_its_last_blob_is_there,
}
on_the_fake! {
    a_folder_becomes_a_layout_as_soon_as_its_documents_are_there,
}
