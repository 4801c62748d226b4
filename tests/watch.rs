//! The kernel reports too few events of the folder. No file is missed, and the cause is logged.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::bundles::marker;
use crate::support::mount::Mount;
use crate::support::node::Daemon;
use crate::support::{Node, Target, on_the_fake, wait_for};

/// This is well before a listing without an event.
const SOON: Duration = Duration::from_secs(20);

/// Starts the daemon as root of its own user namespace, where limits apply only to the daemon
/// (namespaces(7), `/proc/sys/user`). `None` if such namespaces are not allowed.
fn limited(node: &Node, limit: &str, value: u32) -> Option<Daemon> {
    let unshare = || {
        let mut command = Command::new("unshare");
        // Mounts of other tests would cause extra checks, so the daemon has its own mount
        // namespace.
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c"]);
        command
            .arg(format!("echo {value} > /proc/sys/user/{limit} && exec \"$@\""))
            .arg("sh");
        command
    };
    if !unshare()
        .arg("true")
        .status()
        .is_ok_and(|status| status.success())
    {
        return None;
    }
    let program = node.command(["run"]);
    let mut command = unshare();
    command.arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Some(Daemon::start(command, &node.path("notify.sock")))
}

/// Copies a bundle and waits for its image.
fn is_imported(node: &Node, target: &Target, file: &str) {
    let (bundle, name) = marker(node.path(file));
    node.drop_in(&bundle);
    wait_for(SOON, "the image", || target.record(&name).is_some());
}

fn without_a_watch_the_folder_is_looked_at_every_few_seconds(target: &Target) {
    for (limit, value) in [("max_inotify_instances", 0), ("max_inotify_watches", 0)] {
        let node = Node::on(target);
        let Some(daemon) = limited(&node, limit, value) else {
            return;
        };
        daemon.wait_until_ready();
        daemon.wait_for_log("cannot watch the images folder");
        daemon.wait_for_log(&limit.replace("inotify", "user"));
        // The daemon also lists the folder at its start, and while a file is new. So the first
        // bundles may be found at once, and a later one waits for the next regular check.
        let waits = (0..4).any(|number| {
            let dropped = Instant::now();
            is_imported(&node, target, &format!("{number}.tar"));
            dropped.elapsed() > Duration::from_secs(2)
        });
        assert!(waits, "the daemon only checks at intervals");
        assert_eq!(
            daemon.count("cannot watch"),
            1,
            "the log has it once:\n{}",
            daemon.log()
        );
        daemon.finish(target);
    }
}

/// The kernel's queue holds 16384 events and loses the rest (inotify(7), max_queued_events).
fn what_comes_while_the_kernels_queue_overflows_is_imported(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    is_imported(&node, target, "before.tar");
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let file = node.images().join(".flood");
    let queue = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    // Each file is created, closed and removed: three events.
    for _ in 0..queue.trim().parse::<u32>().unwrap().min(50_000) / 3 + 1000 {
        drop(File::create(&file).unwrap());
        fs::remove_file(&file).unwrap();
    }
    let (bundle, name) = marker(node.path("in-the-flood.tar"));
    node.drop_in(&bundle);
    let continued = Instant::now();
    kill_process(pid, Signal::CONT).unwrap();
    wait_for(SOON, "the image", || target.record(&name).is_some());
    assert!(continued.elapsed() < SOON);
    is_imported(&node, target, "after.tar");
    daemon.finish(target);
}

/// The folder itself is replaced, linked or mounted over. Files that are then under its path are
/// imported soon, and nothing loops in the meantime.
fn whatever_the_path_leads_to_is_the_folder(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    is_imported(&node, target, "before.tar");

    fs::remove_dir_all(node.images()).unwrap();
    daemon.wait_for_log("cannot open the images folder");
    fs::create_dir(node.images()).unwrap();
    is_imported(&node, target, "made-anew.tar");

    let elsewhere = node.path("elsewhere");
    fs::rename(node.images(), &elsewhere).unwrap();
    fs::create_dir(node.images()).unwrap();
    is_imported(&node, target, "swapped.tar");

    fs::remove_dir_all(node.images()).unwrap();
    symlink(&elsewhere, node.images()).unwrap();
    is_imported(&node, target, "by-a-link.tar");
    let third = node.path("third");
    fs::create_dir(&third).unwrap();
    symlink(&third, node.path("link")).unwrap();
    fs::rename(node.path("link"), node.images()).unwrap();
    is_imported(&node, target, "by-a-link-that-was-switched.tar");

    let lines = daemon.log().lines().count();
    assert!(lines < 60, "{lines} lines:\n{}", daemon.log());
    daemon.finish(target);
}

fn what_is_mounted_over_the_folder_is_the_folder_and_no_pin_goes(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let (bundle, below) = marker(node.path("below.tar"));
    node.drop_in(&bundle);
    wait_for(SOON, "the image", || target.record(&below).is_some());
    // A bundle whose import has not ended has nothing to lose.
    node.airgapd(["wait"]).exits(0);
    if !lab::is_root() {
        return;
    }
    // inotify reports nothing about a mount.
    let mounted = Mount::over(&node.images(), &["-t", "tmpfs", "-o", "mode=0755", "tmpfs"]);
    is_imported(&node, target, "above.tar");
    daemon.wait_for_log("another folder than before");
    assert!(target.is_pinned(&below), "an empty mountpoint is no wish");
    drop(mounted);
    is_imported(&node, target, "below-again.tar");
    assert!(target.is_pinned(&below));
    daemon.finish(target);
}

on_the_fake!(
    whatever_the_path_leads_to_is_the_folder,
    what_is_mounted_over_the_folder_is_the_folder_and_no_pin_goes,
    without_a_watch_the_folder_is_looked_at_every_few_seconds,
    what_comes_while_the_kernels_queue_overflows_is_imported,
);
