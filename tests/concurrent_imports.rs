//! The daemon stays alive beside a long import: it lists, heals, imports others, and stops when it is told to.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use bundle::fixtures::{Data, Image};
use fake_containerd::Fault;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::bundles::{self, image};
use crate::support::node::Daemon;
use crate::support::{Node, Target, on_the_fake, unique};

const KNOWN: &str = "registry.test/known:1";
const SLOW: &str = "registry.test/slow:1";
const SHARED: &str = "registry.test/shared:1";

/// From now on every blob takes so long to be committed.
fn slow_commits(target: &Target, by: Duration) {
    let fake = target.as_fake().expect("it is the stand-in");
    fake.inject(Fault::SlowCommit { by });
}

fn importing(daemon: &Daemon, bundle: &str) {
    daemon.wait_until("the import runs", || {
        let log = daemon.log();
        log.lines()
            .any(|line| line.contains(bundle) && line.contains("importing"))
    });
}

/// Writes a bundle that only the lane of large bundles takes. It is hardly any work for all that.
fn write_large(path: &Path, image: Image) {
    let mut archive = bundles::layout([image]).build();
    archive
        .add("padding", Data::zeros(65 << 20))
        .move_first("padding");
    archive.write_to(path);
}

fn while_an_import_takes_long_others_are_imported_and_what_is_missing_comes_back(target: &Target) {
    let node = Node::on(target);
    bundles::write(&node.images().join("known.tar"), [image(KNOWN)]);
    let daemon = node.start();
    daemon.wait_until("it is imported", || target.record(KNOWN).is_some());
    daemon.wait_until("it is quiet", || target.leases().is_empty());
    slow_commits(target, Duration::from_secs(8));
    write_large(&node.images().join("slow.tar"), image(SLOW));
    importing(&daemon, "slow.tar");

    target.remove_record(KNOWN);
    daemon.wait_until("the record is back", || target.record(KNOWN).is_some());
    fs::write(node.images().join(".hidden"), "").expect("a file");
    daemon.wait_for_log(".hidden");
    assert!(
        target.record(SLOW).is_none(),
        "the import is over, so nothing was shown"
    );
    target.as_fake().expect("it is the stand-in").clear_faults();
    daemon.wait_until("it comes to its end", || target.record(SLOW).is_some());
    daemon.finish(target);
}

fn a_bundle_that_is_replaced_while_it_is_imported_is_not_imported_to_its_end(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    slow_commits(target, Duration::from_secs(5));
    let place = node.images().join("a.tar");
    bundles::write(&place, [image(SLOW)]);
    importing(&daemon, "a.tar");
    let next = node.path("next.tar");
    bundles::write(&next, [image(KNOWN)]);
    fs::rename(&next, &place).expect("it can be replaced");
    daemon.wait_for_log("it was replaced or removed");
    target.as_fake().expect("it is the stand-in").clear_faults();
    daemon.wait_until("the new one is imported", || target.record(KNOWN).is_some());
    assert!(target.record(SLOW).is_none());
    daemon.finish(target);
}

fn a_bundle_that_is_removed_while_it_is_imported_leaves_nothing_behind(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    slow_commits(target, Duration::from_secs(5));
    let place = node.images().join("a.tar");
    bundles::write(&place, [image(SLOW)]);
    importing(&daemon, "a.tar");
    daemon.wait_until("something is held", || !target.leases().is_empty());
    fs::remove_file(&place).expect("it can be removed");
    daemon.wait_for_log("it was replaced or removed");
    target.as_fake().expect("it is the stand-in").clear_faults();
    daemon.wait_until("its lease is given back", || target.leases().is_empty());
    assert!(target.record(SLOW).is_none());
    let log = daemon.stop();
    assert!(!log.contains("ERROR"), "{log}");
}

/// The lane of small bundles overtakes; the order in which bundles arrived still decides.
fn of_two_bundles_with_one_name_the_later_wins_whichever_is_imported_first(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    slow_commits(target, Duration::from_secs(1));
    write_large(&node.images().join("first.tar"), image(SLOW));
    importing(&daemon, "first.tar");
    write_large(&node.images().join("older.tar"), image(SHARED));
    // It arrives when nobody has it open for writing any more, and a process that is just being started beside us may
    // have it open for a moment after we have closed it.
    daemon.wait_until("it has arrived", || {
        let status = node.airgapd(["status", "-o", "json"]).json();
        let bundles = status["bundles"].as_array().expect("a list");
        bundles
            .iter()
            .any(|bundle| bundle["name"] == "older.tar" && bundle["state"] == "queued")
    });
    let newer = bundles::write(&node.images().join("small.tar"), [image(SHARED)]);
    let wanted = &newer.images[0].root;
    daemon.wait_until("the small one is imported", || {
        target
            .record(SHARED)
            .is_some_and(|record| record.target.digest() == wanted)
    });
    daemon.wait_for_log("a bundle that arrived later has this name");
    daemon.wait_until("the older one is done", || target.leases().is_empty());
    assert_eq!(target.expect_record(SHARED).target.digest(), wanted);

    // With the newer one gone, the name returns to the older.
    fs::remove_file(node.images().join("small.tar")).expect("it can be removed");
    daemon.wait_until("the name returns", || {
        target
            .record(SHARED)
            .is_some_and(|record| record.target.digest() != wanted)
    });
    daemon.finish(target);
}

/// The light lane is for small bundles. One of them waits until the name is free that the bundle in the main lane writes.
fn a_bundle_that_waits_for_a_name_lets_others_go_first(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    slow_commits(target, Duration::from_secs(8));
    write_large(&node.images().join("large.tar"), image(SHARED));
    importing(&daemon, "large.tar");
    let waiting = bundles::write(&node.images().join("waiting.tar"), [image(SHARED)]);
    importing(&daemon, "waiting.tar");
    bundles::write(&node.images().join("third.tar"), [image(KNOWN)]);
    daemon.wait_for_log("others go first, and it goes on after them");
    importing(&daemon, "third.tar");
    assert_eq!(state_of(&node, "waiting.tar"), "queued");
    assert!(
        target.record(SHARED).is_none(),
        "it is over, so nothing was shown"
    );
    target.as_fake().expect("it is the stand-in").clear_faults();
    daemon.wait_until("the third is imported", || target.record(KNOWN).is_some());
    daemon.wait_until("the one that waited is imported", || {
        let record = target.record(SHARED);
        record.is_some_and(|record| *record.target.digest() == waiting.images[0].root)
    });
    daemon.finish(target);
}

fn state_of(node: &Node, name: &str) -> String {
    let status = node.airgapd(["status", "-o", "json"]).json();
    let bundles = status["bundles"].as_array().expect("a list");
    let bundle = bundles.iter().find(|bundle| bundle["name"] == name);
    let state = bundle.and_then(|bundle| bundle["state"].as_str());
    state.unwrap_or_default().to_owned()
}

/// Beside another bundle an eighth of the descriptors may be read. A bundle of more waits for the main lane, and is what it
/// is within the whole limits.
fn a_small_bundle_that_takes_much_memory_waits_until_no_other_does(target: &Target) {
    let node = Node::on(target);
    node.configure_also("limits: {descriptors: 40}");
    let daemon = node.start();
    let heavy = |name: &str| (0..6).fold(image(name), |image, _| image.layer(unique()));
    bundles::write(&node.images().join("alone.tar"), [heavy(KNOWN)]);
    daemon.wait_until("it is imported", || target.record(KNOWN).is_some());
    slow_commits(target, Duration::from_secs(8));
    write_large(&node.images().join("slow.tar"), image(SLOW));
    importing(&daemon, "slow.tar");
    bundles::write(&node.images().join("heavy.tar"), [heavy(SHARED)]);
    importing(&daemon, "heavy.tar");
    bundles::write(&node.images().join("light.tar"), [image("registry.test/light:1")]);
    importing(&daemon, "light.tar");
    assert_eq!(state_of(&node, "heavy.tar"), "queued");
    assert!(target.record(SLOW).is_none(), "it is over, so nothing was shown");
    target.as_fake().expect("it is the stand-in").clear_faults();
    daemon.wait_until("both are imported", || {
        target.record(SLOW).is_some() && target.record(SHARED).is_some()
    });
    let too_heavy = |name: &str| (0..40).fold(image(name), |image, _| image.layer(unique()));
    bundles::write(
        &node.images().join("refused.tar"),
        [too_heavy("registry.test/refused:1")],
    );
    daemon.wait_for_log("limits.descriptors");
    assert_eq!(state_of(&node, "refused.tar"), "failed");
    daemon.finish(target);
}

fn signal(daemon: &Daemon, signal: Signal) {
    let pid = i32::try_from(daemon.pid()).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("it runs"), signal).expect("it runs");
}

fn a_stop_lets_an_import_come_to_its_end_and_takes_on_nothing_new(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    slow_commits(target, Duration::from_millis(700));
    bundles::write(&node.images().join("a.tar"), [image(SLOW)]);
    daemon.wait_until("something is held", || !target.leases().is_empty());
    signal(&daemon, Signal::TERM);
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
    slow_commits(target, Duration::from_secs(60));
    bundles::write(&node.images().join("a.tar"), [image(SLOW)]);
    daemon.wait_until("something is held", || !target.leases().is_empty());
    let told = Instant::now();
    signal(&daemon, Signal::TERM);
    assert!(daemon.wait().success());
    assert!(told.elapsed() >= Duration::from_secs(1), "it did not wait");
    assert!(
        daemon.log().contains("goes on at the next start"),
        "{}",
        daemon.log()
    );
    target.as_fake().expect("it is the stand-in").clear_faults();
    let daemon = node.start();
    daemon.wait_until("it is imported", || target.record(SLOW).is_some());
    daemon.finish(target);
}

fn a_second_signal_ends_it_at_once(target: &Target) {
    let node = Node::on(target);
    node.configure_also("grace: 10m");
    let mut daemon = node.start();
    slow_commits(target, Duration::from_secs(600));
    bundles::write(&node.images().join("a.tar"), [image(SLOW)]);
    daemon.wait_until("something is held", || !target.leases().is_empty());
    signal(&daemon, Signal::TERM);
    daemon.wait_for_log("stopping: waiting");
    signal(&daemon, Signal::INT);
    assert!(daemon.wait().success());
    target.as_fake().expect("it is the stand-in").clear_faults();
    node.start().finish(target);
}

/// 100 s of it are left.
fn an_import_that_is_held_back_holds_up_neither_a_stop_nor_a_removal(target: &Target) {
    let node = Node::on(target);
    node.configure_also("grace: 0s\nrateLimit: 1MiB");
    bundles::write(&node.path("large.tar"), [bundles::large(SLOW, 100 << 20)]);
    fs::rename(node.path("large.tar"), node.images().join("large.tar")).expect("it is one file system");
    let mut daemon = node.start();
    daemon.wait_until("bytes are under way", || !target.ingests().is_empty());
    signal(&daemon, Signal::TERM);
    assert!(daemon.wait().success());

    let daemon = node.start();
    daemon.wait_until("bytes are under way again", || {
        daemon.notified().contains("1 importing (at most")
    });
    fs::remove_file(node.images().join("large.tar")).expect("it is there");
    daemon.finish(target);
    assert!(target.record(SLOW).is_none());
}

/// The loop itself says that it goes round (`WATCHDOG_USEC`), whatever it waits for, and a stop need not wait for that.
fn while_containerd_does_not_answer_systemd_hears_that_the_daemon_is_alive_and_a_stop_is_quick(
    target: &Target,
) {
    let fake = target.as_fake().expect("it is the stand-in");
    let node = Node::on(target);
    bundles::write(&node.images().join("a.tar"), [image(KNOWN)]);
    let daemon = node.start();
    daemon.wait_until("it is imported", || target.record(KNOWN).is_some());
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
    daemon.wait_until("it says several times that it is alive", || {
        alive(&daemon) >= before + 5
    });
    assert!(
        since.elapsed() >= Duration::from_millis(600),
        "that was too often"
    );
    assert_eq!(
        fake.calls("Images.List"),
        asked + 1,
        "it still waits for the first"
    );

    let told = Instant::now();
    signal(&daemon, Signal::TERM);
    assert!(daemon.wait().success());
    assert!(told.elapsed() < Duration::from_secs(10), "the stop waited, too");
    let notified = daemon.notified();
    assert!(notified.contains("EXTEND_TIMEOUT_USEC=30000000"), "{notified}");
    fake.clear_faults();
}

on_the_fake! {
    while_containerd_does_not_answer_systemd_hears_that_the_daemon_is_alive_and_a_stop_is_quick,
    while_an_import_takes_long_others_are_imported_and_what_is_missing_comes_back,
    a_bundle_that_is_replaced_while_it_is_imported_is_not_imported_to_its_end,
    a_bundle_that_is_removed_while_it_is_imported_leaves_nothing_behind,
    of_two_bundles_with_one_name_the_later_wins_whichever_is_imported_first,
    a_bundle_that_waits_for_a_name_lets_others_go_first,
    a_small_bundle_that_takes_much_memory_waits_until_no_other_does,
    a_stop_lets_an_import_come_to_its_end_and_takes_on_nothing_new,
    a_stop_waits_for_the_grace_and_no_longer_and_the_next_start_goes_on,
    a_second_signal_ends_it_at_once,
    an_import_that_is_held_back_holds_up_neither_a_stop_nor_a_removal,
}
