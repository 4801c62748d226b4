//! The messages to systemd: the daemon is ready, alive or stopping, no matter what containerd does.

use std::time::{Duration, Instant};

use fake_containerd::Fault;
use rustix::process::Signal;

use crate::support::bundles::{self, image, text};
use crate::support::node::Daemon;
use crate::support::{Node, Target, on_the_fake};

const KNOWN: &str = "registry.test/known:1";

/// The loop itself sends the sign of life (`WATCHDOG_USEC`) while it waits. A stop need not wait
/// for containerd.
fn while_containerd_does_not_answer_systemd_hears_that_the_daemon_is_alive_and_a_stop_is_quick(
    target: &Target,
) {
    let fake = target.as_fake().expect("the target is the stand-in");
    let node = Node::on(target);
    bundles::write(&node.images().join("a.tar"), [image(KNOWN)]);
    let daemon = node.start();
    daemon.wait_until("the image is imported", || target.record(KNOWN).is_some());
    daemon.finish(target);
    fake.inject(Fault::Delay {
        rpc: "Images.List",
        by: Duration::from_secs(20),
    });
    let mut command = node.command(["run"]);
    command.env("WATCHDOG_USEC", "400000").env_remove("WATCHDOG_PID");
    let asked = fake.calls("Images.List");
    let mut daemon = Daemon::start(command, &node.path("notify.sock"));
    daemon.wait_until("the comparison waits", || fake.calls("Images.List") > asked);
    let alive = |daemon: &Daemon| daemon.notified().matches("WATCHDOG=1").count();
    let (before, since) = (alive(&daemon), Instant::now());
    daemon.wait_until("several signs of life have arrived", || {
        alive(&daemon) >= before + 5
    });
    assert!(
        since.elapsed() >= Duration::from_millis(600),
        "the signs of life are too frequent"
    );
    assert_eq!(
        fake.calls("Images.List"),
        asked + 1,
        "the daemon still waits for the first answer"
    );

    let told = Instant::now();
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());
    assert!(told.elapsed() < Duration::from_secs(10), "the stop waited, too");
    let notified = daemon.notified();
    assert!(notified.contains("EXTEND_TIMEOUT_USEC=30000000"), "{notified}");
    fake.clear_faults();
}

/// systemd waits for this message, so the daemon must not wait for containerd first.
fn the_daemon_is_ready_before_containerd_is_there(target: &Target) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("late.sock");
    let node = Node::at(&socket, target.namespace());
    let daemon = node.start();
    assert!(!socket.exists());
    daemon.wait_for_log(&text(&socket));
    daemon.stop();
}

on_the_fake! {
    while_containerd_does_not_answer_systemd_hears_that_the_daemon_is_alive_and_a_stop_is_quick,
    the_daemon_is_ready_before_containerd_is_there,
}
