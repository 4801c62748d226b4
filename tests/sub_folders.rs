//! Bundles in sub-folders of the images folder (`recursive`).

use std::fs;

use import::bundle_id;

use crate::support::bundles::{self, image, marker};
use crate::support::target::BUNDLE;
use crate::support::{Node, Target, on_each_containerd, on_the_fake};

/// k3s searches sub-folders. The name of such a bundle is its path in the folder.
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

    // By now the daemon watches the new folder too.
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

on_each_containerd!(bundles_in_sub_folders_are_imported_when_asked,);
on_the_fake!(
    an_import_of_a_file_in_a_sub_folder_belongs_to_the_daemon_only_if_it_looks_there,
    sub_folders_that_are_not_looked_into_are_said_once,
);
