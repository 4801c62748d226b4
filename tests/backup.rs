//! `k0s backup` and `k0s restore` of the images folder.
//!
//! `k0s backup` puts the files of `<data-dir>/images` into its archive. `k0s restore` makes the
//! folder anew (`pkg/backup` and `internal/pkg/archive` of k0s). It writes each file under its
//! final name, with its mode. The time of the restore is the time of the file's last change.

use std::ffi::OsString;
use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::support::bundles::{self, image};
use crate::support::{Node, Target, on_each_containerd, on_the_fake};

const ONE: &str = "registry.test/one:1";
const TWO: &str = "registry.test/two:1";

/// The files of a backup: name, mode and bytes.
struct Backup(Vec<(OsString, u32, Vec<u8>)>);

impl Backup {
    fn of(folder: &Path) -> Backup {
        let entries = fs::read_dir(folder).expect("the folder is there");
        let mut files: Vec<_> = entries
            .map(|entry| {
                let entry = entry.expect("an entry");
                let mode = entry.metadata().expect("a file").mode() & 0o777;
                let bytes = fs::read(entry.path()).expect("a file");
                (entry.file_name(), mode, bytes)
            })
            .collect();
        files.sort();
        Backup(files)
    }

    /// Restores the folder. Calls `between` after each piece of a file.
    fn restore(&self, folder: &Path, mut between: impl FnMut()) {
        fs::create_dir(folder).expect("there is no such folder");
        fs::set_permissions(folder, Permissions::from_mode(0o755)).expect("the test owns it");
        for (name, mode, bytes) in &self.0 {
            let path = folder.join(name);
            let opened = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&path);
            let mut file = opened.expect("a file");
            for piece in bytes.chunks(bytes.len().div_ceil(2)) {
                file.write_all(piece).expect("there is space");
                between();
            }
            drop(file);
            fs::set_permissions(&path, Permissions::from_mode(*mode)).expect("the test owns it");
        }
    }
}

/// Returns a node with two bundles in place, and their backup. The daemon is stopped.
fn imported(target: &Target) -> (Node, Backup) {
    let node = Node::on(target);
    let daemon = node.start();
    for (file, name) in [("a.tar", ONE), ("b.tar", TWO)] {
        bundles::write(&node.images().join(file), [image(name)]);
        daemon.wait_for_line(file, "bundle imported");
    }
    daemon.finish(target);
    assert!(target.is_pinned(ONE) && target.is_pinned(TWO));
    let backup = Backup::of(&node.images());
    (node, backup)
}

/// Moves the folder away, so that the restored folder has another inode.
fn lose(node: &Node) {
    fs::rename(node.images(), node.path("lost")).expect("both paths are on one file system");
}

fn received(target: &Target) -> u64 {
    target.as_fake().map_or(0, fake_containerd::Fake::received_bytes)
}

fn a_folder_that_k0s_restored_has_the_bundles_of_before(target: &Target) {
    let (node, backup) = imported(target);
    let before = received(target);
    let changes = target.watch();
    lose(&node);
    backup.restore(&node.images(), || {});
    let daemon = node.start();
    node.airgapd(["wait", "--timeout", "60s"]).exits(0);
    assert_eq!(received(target), before, "no byte is sent");
    let changed = changes.so_far();
    assert!(changed.is_empty(), "no record is touched: {changed:?}");
    let status = node.airgapd(["status"]).exits(0);
    assert!(status.said().contains("healthy"), "{status:?}");
    let log = daemon.finish(target);
    assert!(!log.contains("another folder than before"), "{log}");
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    assert!(target.is_pinned(ONE) && target.is_pinned(TWO));

    // The restored folder is now the known one: a file that leaves it was removed.
    fs::remove_file(node.images().join("a.tar")).expect("the file is there");
    let daemon = node.start();
    daemon.wait_until("its pin goes", || !target.is_pinned(ONE));
    assert!(target.is_pinned(TWO));
    daemon.finish(target);
}

fn no_pin_goes_while_k0s_restores_the_folder_of_a_running_daemon(target: &Target) {
    let (node, backup) = imported(target);
    let before = received(target);
    let daemon = node.start();
    node.airgapd(["wait", "--timeout", "60s"]).exits(0);
    lose(&node);
    daemon.wait_for_log("cannot open the images folder");
    let changes = target.watch();
    backup.restore(&node.images(), || {
        assert!(target.is_pinned(ONE) && target.is_pinned(TWO));
    });
    node.airgapd(["wait", "--timeout", "60s"]).exits(0);
    assert_eq!(received(target), before, "no byte is sent");
    let changed = changes.so_far();
    assert!(changed.is_empty(), "no record is touched: {changed:?}");
    let status = node.airgapd(["status"]).exits(0);
    assert!(status.said().contains("healthy"), "{status:?}");
    let log = daemon.finish(target);
    assert!(target.is_pinned(ONE) && target.is_pinned(TWO), "{log}");
    assert!(log.contains("0 B sent"), "{log}");
}

/// k0s must not run during `k0s restore`, so the daemon has no containerd to compare with. A file
/// that is there under its name is not missing. The pins wait for its content.
fn restored_bundles_are_not_missing_while_k0s_is_down(target: &Target) {
    let fake = target.as_fake().expect("this is for the stand-in");
    let (node, backup) = imported(target);
    let daemon = node.start();
    node.airgapd(["wait", "--timeout", "60s"]).exits(0);
    fake.kill();
    lose(&node);
    daemon.wait_for_log("cannot open the images folder");
    let vanished = || node.airgapd(["status", "-o", "json"]).json()["folder"]["vanished"].clone();
    fs::create_dir(node.images()).expect("there is no such folder");
    daemon.wait_until("the empty folder is told of", || vanished()["bundles"] == 2);
    fs::remove_dir(node.images()).expect("the folder is empty");
    backup.restore(&node.images(), || {});
    daemon.wait_until("no bundle is missing", || vanished().is_null());

    let before = received(target);
    fake.listen();
    node.airgapd(["wait", "--timeout", "60s"]).exits(0);
    assert_eq!(received(target), before, "no byte is sent");
    assert!(target.is_pinned(ONE) && target.is_pinned(TWO));
    let log = daemon.finish(target);
    assert!(log.contains("no bundle is missing any more"), "{log}");
}

/// A bundle that came after the backup is missing. Its image stays pinned until it is back, or the
/// operator gives it up.
fn a_bundle_that_is_not_in_the_backup_keeps_its_pin_until_the_operator_gives_it_up(target: &Target) {
    let (node, mut backup) = imported(target);
    lose(&node);
    backup.0.retain(|(name, ..)| name != "b.tar");
    backup.restore(&node.images(), || {});
    let daemon = node.start();
    daemon.wait_for_log("is another folder than before: 1 of 2 bundles is missing");
    daemon.wait_until("the restored bundle is in place", || {
        let status = node.airgapd(["status", "-o", "json"]).json();
        status["bundles"][0]["name"] == "a.tar" && status["bundles"][0]["state"] == "done"
    });
    assert!(target.is_pinned(ONE) && target.is_pinned(TWO));
    node.airgapd(["release", "--vanished"]).exits(0);
    daemon.wait_until("only its pin goes", || !target.is_pinned(TWO));
    assert!(target.is_pinned(ONE));
    node.airgapd(["wait", "--timeout", "60s"]).exits(0);
    daemon.finish(target);
}

on_each_containerd! {
    a_folder_that_k0s_restored_has_the_bundles_of_before,
    no_pin_goes_while_k0s_restores_the_folder_of_a_running_daemon,
    a_bundle_that_is_not_in_the_backup_keeps_its_pin_until_the_operator_gives_it_up,
}

on_the_fake! {
    restored_bundles_are_not_missing_while_k0s_is_down,
}
