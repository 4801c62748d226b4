//! Bundles in sub-folders, and folders that are bundles.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use import::bundle_id;

use crate::support::bundles::{self, PLATFORMS, all_records, image, marker, multi_platform, needed_here};
use crate::support::target::BUNDLE;
use crate::support::{Node, Target, on_each_containerd, on_the_fake, wait_for};

/// k3s searches sub-folders; the name of such a bundle is its path in the folder.
fn bundles_in_sub_folders_are_imported_when_asked(target: &Target) {
    let node = Node::on(target);
    node.configure_also("recursive: true");
    let daemon = node.start();
    let deep = node.images().join("site/a");
    fs::create_dir_all(&deep).unwrap();
    bundles::write(&deep.join("deep.tar"), [image("registry.test/deep:1")]);
    daemon.wait_until("the image", || target.record("registry.test/deep:1").is_some());
    let label = format!("{BUNDLE}{}", bundle_id("site/a/deep.tar"));
    assert_eq!(
        target
            .labels("registry.test/deep:1")
            .get(&label)
            .map(String::as_str),
        Some("site/a/deep.tar")
    );

    // The new folder is watched too by now.
    bundles::write(&deep.join("next.tar"), [image("registry.test/next:1")]);
    daemon.wait_until("a second one", || target.record("registry.test/next:1").is_some());
    fs::create_dir(node.images().join("site/.hidden")).unwrap();
    bundles::write(
        &node.images().join("site/.hidden/x.tar"),
        [image("registry.test/hidden:1")],
    );
    let log = daemon.finish(target);
    assert!(!log.contains("ERROR"), "{log}");

    let daemon = node.start();
    let (bundle, name) = marker(node.path("marker.tar"));
    node.drop_in(&bundle);
    daemon.wait_until("a restart knows them", || target.record(&name).is_some());
    assert!(target.record("registry.test/hidden:1").is_none());
    let log = daemon.finish(target);
    assert!(!log.contains("deep.tar"), "{log}");
}

fn an_import_of_a_file_in_a_sub_folder_belongs_to_the_daemon_only_if_it_looks_there(target: &Target) {
    let node = Node::on(target);
    fs::create_dir(node.images().join("sub")).unwrap();
    let file = node.images().join("sub/b.tar");
    bundles::write(&file, [image("registry.test/sub:1")]);
    node.import([&file]).exits(0);
    let by_bundle = |labels: &std::collections::BTreeMap<String, String>| {
        labels.keys().any(|key| key.starts_with(BUNDLE))
    };
    assert!(!by_bundle(&target.labels("registry.test/sub:1")));
    node.configure_also("recursive: true");
    node.import([&file]).exits(0);
    assert_eq!(
        target
            .labels("registry.test/sub:1")
            .get(&format!("{BUNDLE}{}", bundle_id("sub/b.tar")))
            .map(String::as_str),
        Some("sub/b.tar")
    );
}

fn sub_folders_that_are_not_looked_into_are_said_once(target: &Target) {
    let node = Node::on(target);
    fs::create_dir(node.images().join("sub")).unwrap();
    bundles::write(&node.images().join("sub/b.tar"), [image("registry.test/sub:1")]);
    let daemon = node.start();
    for number in 0..2 {
        let (bundle, name) = marker(node.path(&format!("marker-{number}.tar")));
        node.drop_in(&bundle);
        daemon.wait_until("a bundle beside it", || target.record(&name).is_some());
    }
    assert_eq!(daemon.count("file=sub"), 1, "{}", daemon.log());
    assert!(daemon.log().contains("recursive: true"), "{}", daemon.log());
    assert!(target.record("registry.test/sub:1").is_none());
    daemon.finish(target);
}

fn a_sub_folder_that_everybody_can_write_is_left_alone(target: &Target) {
    let node = Node::on(target);
    node.configure_also("recursive: true");
    let open = node.images().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    bundles::write(&open.join("b.tar"), [image("registry.test/open:1")]);
    let daemon = node.start();
    let (bundle, name) = marker(node.path("marker.tar"));
    node.drop_in(&bundle);
    daemon.wait_until("a bundle beside it", || target.record(&name).is_some());
    daemon.wait_for_log("everybody can write");
    assert!(target.record("registry.test/open:1").is_none());
    daemon.finish(target);
}

/// Extracts an archive as an operator does.
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

/// Users extract bundles where they should have copied them.
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
    daemon.wait_until("what is removed comes back", || target.record(names[1]).is_some());
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

/// A folder that a copy has just begun is like any other; once its documents are there it is a bundle at once.
fn a_folder_becomes_a_layout_as_soon_as_its_documents_are_there(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let name = "registry.test/late:1";
    bundles::write(&node.path("bundle.tar"), [image(name)]);
    fs::create_dir(node.images().join("layout")).unwrap();
    daemon.wait_for_log("no OCI image layout");
    extract(&node.path("bundle.tar"), &node.images().join("layout"));
    // Well before the folder is listed for other reasons.
    wait_for(Duration::from_secs(15), "the image", || {
        target.record(name).is_some()
    });
    daemon.finish(target);
}

/// A copy in progress has no record; the rest of it makes the image.
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

on_each_containerd!(
    an_extracted_layout_is_a_bundle_like_the_archive_it_came_from,
    a_layout_is_imported_when_its_last_blob_is_there,
    bundles_in_sub_folders_are_imported_when_asked,
);
on_the_fake!(
    a_folder_becomes_a_layout_as_soon_as_its_documents_are_there,
    an_import_of_a_file_in_a_sub_folder_belongs_to_the_daemon_only_if_it_looks_there,
    sub_folders_that_are_not_looked_into_are_said_once,
    a_sub_folder_that_everybody_can_write_is_left_alone,
);
