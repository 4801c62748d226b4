//! Identity of files: when a file counts as unchanged after a change of content, name or time, and
//! what is sent again.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use import::bundle_id;

use crate::support::bundles::{self, image};
use crate::support::target::BUNDLE;
use crate::support::{Node, Target, on_each_containerd, on_the_fake};

/// Only the label with the bundle's name changes, and no byte is sent.
fn a_bundle_that_gets_another_name_keeps_its_pins_and_moves_no_byte(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let name = "registry.test/renamed:1";
    bundles::write(&node.path("before.tar"), [image(name)]);
    let placed = node.drop_in(&node.path("before.tar"));
    daemon.wait_until("the image", || {
        target.record(name).is_some() && target.leases().is_empty()
    });
    fs::rename(placed, node.images().join("after.tar")).unwrap();
    daemon.wait_until("the bundle vouches under its new name", || {
        target.source_files(name) == ["after.tar"]
    });
    assert!(target.is_pinned(name));
    assert!(
        target
            .labels(name)
            .contains_key(&format!("{BUNDLE}{}", bundle_id("after.tar")))
    );
    daemon.wait_for_log("bundle imported: 0 B sent");
    daemon.finish(target);
}

/// After `cp -p`, or after a clock was set back, only the inode's change time reveals the change.
fn other_content_of_the_same_size_and_time_is_imported(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let name = "registry.test/same-size:1";
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
    let place = node.images().join("same.tar");
    let mut roots = Vec::new();
    let mut sizes = Vec::new();
    for _ in 0..2 {
        let archive = bundles::layout([image(name)]).build();
        // The same inode, rewritten.
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&place)
            .unwrap();
        file.write_all(&archive.to_bytes()).unwrap();
        file.set_modified(long_ago).unwrap();
        drop(file);
        roots.push(archive.images[0].root.clone());
        sizes.push(fs::metadata(&place).unwrap().len());
        daemon.wait_until("its content", || {
            target
                .record(name)
                .is_some_and(|record| record.target.digest() == roots.last().unwrap())
        });
    }
    assert_eq!(sizes[0], sizes[1]);
    assert_ne!(roots[0], roots[1]);
    daemon.finish(target);
}

fn a_touched_bundle_changes_no_record_and_moves_no_byte(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let name = "registry.test/touched:1";
    bundles::write(&node.path("touched.tar"), [image(name)]);
    let placed = node.drop_in(&node.path("touched.tar"));
    daemon.wait_until("the image", || {
        target.record(name).is_some() && target.leases().is_empty()
    });
    daemon.wait_for_log("bundle imported");
    let changes = target.watch();
    File::options()
        .write(true)
        .open(&placed)
        .unwrap()
        .set_modified(SystemTime::now())
        .unwrap();
    fs::set_permissions(&placed, Permissions::from_mode(0o600)).unwrap();
    daemon.wait_until("the file is checked", || daemon.count("bundle unchanged") > 0);
    node.drop_marker(target, &daemon);
    let of_it = changes
        .so_far()
        .into_iter()
        .filter(|(_, changed)| changed == name);
    assert_eq!(of_it.count(), 0);
    daemon.wait_until("the marker is told of", || daemon.count("bundle imported") > 1);
    assert_eq!(
        daemon.count("bundle imported"),
        2,
        "the bundle and the marker: {}",
        daemon.log()
    );
    daemon.finish(target);
}

on_each_containerd!(a_bundle_that_gets_another_name_keeps_its_pins_and_moves_no_byte);
on_the_fake!(
    files_from_the_future_and_from_before_1970_are_imported_once_and_known_at_the_next_start,
    other_content_of_the_same_size_and_time_is_imported,
    a_touched_bundle_changes_no_record_and_moves_no_byte,
);

/// The daemon only checks times for equality. A clock that jumped, or `touch -d`, changes nothing.
fn files_from_the_future_and_from_before_1970_are_imported_once_and_known_at_the_next_start(target: &Target) {
    let node = Node::on(target);
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let times = [
        ("future", SystemTime::now() + hours(24 * 365 * 50)),
        ("tomorrow", SystemTime::now() + hours(24)),
        ("old", SystemTime::UNIX_EPOCH - hours(24 * 365)),
    ];
    let names = times.map(|(file, _)| format!("registry.test/{file}:1"));
    for ((file, time), name) in times.iter().zip(&names) {
        let placed = node.images().join(format!("{file}.tar"));
        bundles::write(&placed, [image(name)]);
        File::options()
            .write(true)
            .open(&placed)
            .unwrap()
            .set_modified(*time)
            .unwrap();
    }
    let daemon = node.start();
    daemon.wait_until("all of them", || {
        names.iter().all(|name| target.record(name).is_some())
    });
    daemon.wait_until("they are told of", || daemon.count("bundle imported") == 3);
    daemon.finish(target);
    let daemon = node.start();
    daemon.wait_until("the files are known", || {
        daemon.notified().contains("3 of 3 images in place, 3 bundles")
    });
    let log = daemon.finish(target);
    assert!(!log.contains("importing"), "{log}");
}
