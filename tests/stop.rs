//! The end of the daemon: on the first and the second signal, during an import, within the grace
//! period.

use std::fs;
use std::time::{Duration, Instant};

use fake_containerd::Fault;
use rustix::process::Signal;

use crate::support::bundles::{self, image};
use crate::support::{Node, Target, on_the_fake};

const SLOW: &str = "registry.test/slow:1";
const KNOWN: &str = "registry.test/known:1";

fn signals_end_the_daemon_cleanly(target: &Target) {
    let node = Node::on(target);
    for signal in [Signal::TERM, Signal::INT] {
        let daemon = node.start();
        let log = daemon.stop_with(signal);
        assert!(!log.contains("ERROR"), "{log}");
    }
}

fn a_stop_lets_an_import_come_to_its_end_and_takes_on_nothing_new(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    target.slow_commits(Duration::from_millis(700));
    bundles::write(&node.images().join("a.tar"), [image(SLOW)]);
    daemon.wait_until("something is held", || !target.leases().is_empty());
    daemon.signal(Signal::TERM);
    daemon.wait_until("systemd hears of it", || daemon.notified().contains("STOPPING=1"));
    bundles::write(&node.images().join("b.tar"), [image(KNOWN)]);
    let mut daemon = daemon;
    assert!(daemon.wait().success());
    assert!(target.record(SLOW).is_some(), "{}", daemon.log());
    assert!(target.record(KNOWN).is_none());
    assert!(target.leases().is_empty());
}

fn a_stop_waits_for_the_grace_and_no_longer_and_the_next_start_goes_on(target: &Target) {
    let node = Node::on(target);
    node.configure_also("grace: 1s");
    let mut daemon = node.start();
    target.slow_commits(Duration::from_secs(60));
    bundles::write(&node.images().join("a.tar"), [image(SLOW)]);
    daemon.wait_until("something is held", || !target.leases().is_empty());
    let told = Instant::now();
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());
    assert!(
        told.elapsed() >= Duration::from_secs(1),
        "the daemon did not wait"
    );
    assert!(
        daemon.log().contains("continues at the next start"),
        "{}",
        daemon.log()
    );
    target
        .as_fake()
        .expect("the target is the stand-in")
        .clear_faults();
    let daemon = node.start();
    daemon.wait_until("the image is imported", || target.record(SLOW).is_some());
    daemon.finish(target);
}

fn a_second_signal_ends_it_at_once(target: &Target) {
    let node = Node::on(target);
    node.configure_also("grace: 10m");
    let mut daemon = node.start();
    target.slow_commits(Duration::from_secs(600));
    bundles::write(&node.images().join("a.tar"), [image(SLOW)]);
    daemon.wait_until("something is held", || !target.leases().is_empty());
    daemon.signal(Signal::TERM);
    daemon.wait_for_log("stopping: waiting");
    daemon.signal(Signal::INT);
    assert!(daemon.wait().success());
    target
        .as_fake()
        .expect("the target is the stand-in")
        .clear_faults();
    node.start().finish(target);
}

/// At this rate the import would take 100 s more.
fn an_import_that_is_held_back_holds_up_neither_a_stop_nor_a_removal(target: &Target) {
    let node = Node::on(target);
    node.configure_also("grace: 0s\nrateLimit: 1MiB");
    bundles::write(&node.path("large.tar"), [bundles::large(SLOW, 100 << 20)]);
    fs::rename(node.path("large.tar"), node.images().join("large.tar"))
        .expect("both paths are on one file system");
    let mut daemon = node.start();
    daemon.wait_until("bytes are under way", || !target.ingests().is_empty());
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());

    let daemon = node.start();
    daemon.wait_until("bytes are under way again", || {
        daemon.notified().contains("1 importing (at most")
    });
    fs::remove_file(node.images().join("large.tar")).expect("the file exists");
    daemon.finish(target);
    assert!(target.record(SLOW).is_none());
}

/// A stop during an import ends soon, and the next start does the rest.
fn a_stop_in_mid_import_is_clean_and_the_next_start_finishes(target: &Target) {
    let fake = target.as_fake().unwrap();
    let node = Node::on(target);
    node.configure_also("grace: 100ms");
    let name = "registry.test/stopped:1";
    bundles::write(&node.images().join("bundle.tar"), [image(name)]);
    fake.inject(Fault::Stall {
        rpc: "Content.Write",
        after: 0,
    });
    let daemon = node.start();
    daemon.wait_until("the import is under way", || fake.calls("Content.Write") > 0);
    daemon.stop();
    fake.clear_faults();
    let daemon = node.start();
    daemon.wait_until("the image", || target.record(name).is_some());
    daemon.wait_until("nothing is left", || {
        target.leases().is_empty() && target.ingests().is_empty()
    });
    daemon.stop();
}

on_the_fake! {
    signals_end_the_daemon_cleanly,
    a_stop_lets_an_import_come_to_its_end_and_takes_on_nothing_new,
    a_stop_waits_for_the_grace_and_no_longer_and_the_next_start_goes_on,
    a_second_signal_ends_it_at_once,
    an_import_that_is_held_back_holds_up_neither_a_stop_nor_a_removal,
    a_stop_in_mid_import_is_clean_and_the_next_start_finishes,
}
