//! Faults of the folder and its files that no other scenario plays, and the list of all faults with what holds them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use import::bundle_id;

use crate::support::bundles::{self, image, marker};
use crate::support::target::BUNDLE;
use crate::support::{Node, Target, on_each_containerd, on_the_fake};

/// Waits until a bundle that comes after everything else is imported.
fn pass(node: &Node, target: &Target, file: &str) {
    let (bundle, name) = marker(node.path(file));
    node.drop_in(&bundle);
    crate::support::wait_until("a bundle that comes later", || target.record(&name).is_some());
}

fn source_files(target: &Target, name: &str) -> Vec<String> {
    let labels: BTreeMap<String, String> = target.labels(name);
    labels
        .into_iter()
        .filter(|(key, _)| key.starts_with(BUNDLE))
        .map(|(_, file)| file)
        .collect()
}

/// Only the label that says who vouches changes, and no byte moves.
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
    daemon.wait_until("the other name vouches", || {
        source_files(target, name) == ["after.tar"]
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

/// `cp -p`, or a clock that was put back: nothing but the inode's change time tells.
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
    daemon.wait_until("it is looked at", || daemon.count("bundle unchanged") > 0);
    pass(&node, target, "marker.tar");
    let of_it = changes
        .so_far()
        .into_iter()
        .filter(|(_, changed)| changed == name);
    assert_eq!(of_it.count(), 0);
    daemon.wait_until("the marker is told of", || daemon.count("bundle imported") > 1);
    assert_eq!(
        daemon.count("bundle imported"),
        2,
        "it and the marker: {}",
        daemon.log()
    );
    daemon.finish(target);
}

/// Names are bytes (path_resolution(7)), and labels and logs are text.
fn names_that_are_no_text_are_imported_and_shown_escaped(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let bidi = "\u{202e}rat.\u{2066}tar".as_bytes();
    let names: [&[u8]; 5] = [
        b"\xff\xfe.tar",
        b"new\nline.tar",
        b"\x1b[31mred.tar",
        bidi,
        "c1\u{9b}31m.tar".as_bytes(),
    ];
    for (number, file) in names.iter().enumerate() {
        let bundle = node.path(&format!("odd-{number}.tar"));
        bundles::write(&bundle, [image(&format!("registry.test/odd-{number}:1"))]);
        fs::rename(bundle, node.images().join(OsStr::from_bytes(file))).unwrap();
    }
    for number in 0..names.len() {
        let name = format!("registry.test/odd-{number}:1");
        daemon.wait_until("its image", || {
            target.record(&name).is_some() && target.is_pinned(&name)
        });
    }
    node.airgapd(["wait"]).exits(0);
    let told = [
        node.airgapd(["status"]).exits(0).stdout,
        node.airgapd(["status", "-o", "json"]).exits(0).stdout,
        node.airgapd(["inspect", &bundles::text(&node.images().join("new\nline.tar"))])
            .exits(0)
            .stdout,
    ];
    for told in &told {
        let is_shown = |c: char| c == '\n' || basics::is_visible(c);
        assert!(told.chars().all(is_shown), "{told:?}");
        assert!(told.contains("new\\nline.tar"), "{told}");
    }
    let rows = told[0].lines().filter(|line| line.starts_with("done "));
    assert_eq!(rows.count(), names.len(), "{}", told[0]);
    let answered: serde_json::Value = serde_json::from_str(&told[1]).unwrap();
    let bundles = answered["bundles"].as_array().unwrap();
    assert!(
        bundles.iter().any(|bundle| bundle["name"] == "new\nline.tar"),
        "{answered}"
    );
    fs::remove_file(node.images().join(OsStr::from_bytes(names[0]))).unwrap();
    daemon.wait_until("what leaves lets go", || {
        source_files(target, "registry.test/odd-0:1").is_empty()
    });
    let log = daemon.finish(target);
    assert!(!log.contains('\x1b') && log.contains("red.tar"), "{log}");
    assert!(
        log.lines().all(|line| line.starts_with("20")),
        "no name breaks a line: {log}"
    );
}

on_each_containerd!(a_bundle_that_gets_another_name_keeps_its_pins_and_moves_no_byte);
on_the_fake!(
    files_from_the_future_and_from_before_1970_are_imported_once_and_known_at_the_next_start,
    other_content_of_the_same_size_and_time_is_imported,
    a_touched_bundle_changes_no_record_and_moves_no_byte,
    names_that_are_no_text_are_imported_and_shown_escaped,
);

/// Times are compared for being equal and for nothing else: a clock that jumped, or `touch -d`, changes nothing.
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
    daemon.wait_until("they are known", || {
        daemon.notified().contains("3 bundles in place")
    });
    let log = daemon.finish(target);
    assert!(!log.contains("importing"), "{log}");
}

/// `docs/faults.md` names a test for each fault, as `path/of/file.rs::name`.
#[test]
fn the_tests_that_the_documentation_names_are_there() {
    let workspace: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let document = include_str!("../docs/faults.md");
    let rows = document
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| fault"));
    let mut count = 0;
    for row in rows {
        let held_by = row
            .trim_end_matches('|')
            .rsplit('|')
            .next()
            .expect("a row has cells");
        let tests: Vec<&str> = held_by.split('`').filter(|text| text.contains("::")).collect();
        assert!(!tests.is_empty(), "nothing holds this: {row}");
        for test in tests {
            let (file, name) = test.split_once("::").expect("it was looked for");
            let source =
                fs::read_to_string(workspace.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert!(source.contains(&format!("fn {name}(")), "{file} has no {name}");
            count += 1;
        }
    }
    assert!(count > 40, "the table is read: {count}");
}
