//! SIGHUP: the daemon applies excluded images and a rate limit while it works. Other keys need a
//! restart.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::bundles::{self, image};
use crate::support::node::Daemon;
use crate::support::target::PINNED;
use crate::support::{Node, Target, on_each_containerd, on_the_fake};

const ONE: &str = "registry.test/one:1";
const TWO: &str = "registry.test/two:1";

fn is_pinned(target: &Target, name: &str) -> bool {
    let record = target.record(name);
    record.is_some_and(|record| record.labels.contains_key(PINNED))
}

/// Replaces a part of the configuration and sends the signal.
fn change(node: &Node, daemon: &Daemon, from: &str, to: &str) {
    let before = fs::read_to_string(node.path("config.yaml")).expect("there is a configuration");
    assert!(before.contains(from), "{before}");
    node.configure(&before.replace(from, to));
    daemon.signal(Signal::HUP);
}

fn what_is_excluded_is_neither_imported_nor_restored_and_what_is_there_stays(target: &Target) {
    let node = Node::on(target);
    node.configure_also("exclude: [registry.test/two*]");
    bundles::write(&node.images().join("a.tar"), [image(ONE), image(TWO)]);
    let daemon = node.start();
    daemon.wait_until("the other one is imported", || is_pinned(target, ONE));
    daemon.wait_for_log("`exclude` names it");
    daemon.wait_until("all leases are returned", || target.leases().is_empty());
    assert!(!target.names().iter().any(|name| name.contains("two")));

    change(&node, &daemon, "registry.test/two*", "registry.test/one:*");
    daemon.wait_for_log("exclude changed");
    daemon.wait_until("the image that is no longer excluded is imported", || {
        is_pinned(target, TWO)
    });
    assert!(is_pinned(target, ONE), "an excluded image loses nothing");
    target.remove_record(ONE);
    target.remove_record(TWO);
    daemon.wait_until("the second image is restored", || is_pinned(target, TWO));
    daemon.wait_until("all leases are returned", || target.leases().is_empty());
    assert!(target.record(ONE).is_none(), "the first image is not restored");
    daemon.finish(target);
}

fn a_storm_of_signals_in_mid_import_is_survived_and_hardly_told_of(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    target.slow_commits(Duration::from_secs(5));
    bundles::write(&node.images().join("a.tar"), [image(ONE)]);
    daemon.wait_until("something is held", || !target.leases().is_empty());
    for _ in 0..1000 {
        daemon.signal(Signal::HUP);
        daemon.signal(Signal::PIPE);
    }
    daemon.wait_for_log("the configuration was read again");
    target
        .as_fake()
        .expect("the target is the stand-in")
        .clear_faults();
    daemon.wait_until("the image", || target.record(ONE).is_some());
    daemon.wait_until("its lease is returned", || target.leases().is_empty());
    assert!(daemon.log().lines().count() < 100, "{}", daemon.log());

    // Reloads that arrive with a stop neither undo nor delay it.
    let mut daemon = daemon;
    for signal in [Signal::HUP, Signal::TERM, Signal::HUP, Signal::INT] {
        daemon.signal(signal);
    }
    assert!(daemon.wait().success(), "{}", daemon.log());
    node.start().finish(target);
}

on_each_containerd! {
    what_is_excluded_is_neither_imported_nor_restored_and_what_is_there_stays,
}

fn a_configuration_with_mistakes_leaves_the_old_one_in_force(target: &Target) {
    let node = Node::on(target);
    node.configure_also("resync: 10m");
    let daemon = node.start();
    change(&node, &daemon, "resync: 10m", "resync: soon\nexlude: []");
    daemon.wait_for_log("the old one stays");
    let log = daemon.log();
    let line = log
        .lines()
        .find(|line| line.contains("the old one stays"))
        .expect("there is one");
    assert!(
        line.contains("resync") && line.contains("exlude"),
        "all mistakes are in one line: {line}"
    );
    assert!(!line.contains("\\n"), "{line}");
    let (_, status) = node.ask("/v1/status", &[]);
    let status: serde_json::Value = serde_json::from_str(&status).expect("a document");
    let problem = status["configuration_problem"]
        .as_str()
        .expect("the status has the problem");
    assert!(problem.contains("resync") && problem.contains("; "), "{problem}");
    assert!(!problem.contains('\n'), "{problem}");
    daemon.wait_until("systemd hears that it is over", || {
        let told = daemon.notified();
        let last = told.rfind("READY=1");
        last > told.find("RELOADING=1") && told.contains("MONOTONIC_USEC=")
    });
    bundles::write(&node.images().join("a.tar"), [image(ONE)]);
    daemon.wait_until("the daemon continues", || is_pinned(target, ONE));
    daemon.finish(target);
}

fn what_a_reload_cannot_change_is_named(target: &Target) {
    let node = Node::on(target);
    node.configure_also("grace: 20s");
    let daemon = node.start();
    change(&node, &daemon, "grace: 20s", "grace: 2s\nlog: {level: debug}");
    daemon.wait_for_log("restart airgapd for the new log.level");
    assert!(daemon.log().contains("grace changed"), "{}", daemon.log());
    daemon.stop();
}

fn a_removed_key_is_one_warning_and_no_mistake(target: &Target) {
    const GONE: &str = "`pressure` was removed and has no effect";
    let node = Node::on(target);
    node.configure_also("pressure:\n  io: 40%\n  memory: 10%\nresync: 10m");
    let answer = node.airgapd(["config"]).exits(0);
    assert_eq!(answer.stderr.matches(GONE).count(), 1, "{answer:?}");
    assert!(answer.stderr.contains("config.yaml:"), "{answer:?}");
    assert!(!answer.stdout.contains("pressure"), "{answer:?}");
    node.airgapd(["config", "--check"]).exits(0);

    let daemon = node.start();
    daemon.wait_for_log(GONE);
    assert_eq!(daemon.log().matches(GONE).count(), 1, "{}", daemon.log());
    change(&node, &daemon, "resync: 10m", "resync: 5m");
    daemon.wait_for_log("resync changed");
    assert_eq!(daemon.log().matches(GONE).count(), 2, "{}", daemon.log());
    change(
        &node,
        &daemon,
        "  io: 40%\n  memory: 10%\nresync: 5m",
        "resync: 6m",
    );
    bundles::write(&node.images().join("a.tar"), [image(ONE)]);
    daemon.wait_until("the daemon imports", || is_pinned(target, ONE));
    daemon.finish(target);
}

/// Without the new limit, the import would take 100 s more.
fn a_rate_limit_is_seen_in_the_status_and_goes_while_an_import_runs(target: &Target) {
    let node = Node::on(target);
    node.configure_also("rateLimit: 1MiB");
    bundles::write(&node.path("large.tar"), [bundles::large(ONE, 100 << 20)]);
    fs::rename(node.path("large.tar"), node.images().join("large.tar"))
        .expect("both paths are on one file system");
    let daemon = node.start();
    daemon.wait_until("the status says what holds it back", || {
        let status = node.airgapd(["status", "-o", "json"]).json();
        let bundle = &status["bundles"][0];
        bundle["state"] == "importing" && bundle["waits_for"] == "at most 1.0 MB a second (rateLimit)"
    });
    daemon.wait_until("systemd hears it, too", || {
        daemon.notified().contains("1 importing (at most")
    });
    change(&node, &daemon, "rateLimit: 1MiB", "rateLimit: 0");
    daemon.wait_for_log("rateLimit changed");
    daemon.wait_until("the rest comes at once", || is_pinned(target, ONE));
    let status = node.airgapd(["status", "-o", "json"]).json();
    assert_eq!(status["bundles"][0]["waits_for"], serde_json::Value::Null);
    daemon.finish(target);
}

on_the_fake! {
    a_rate_limit_is_seen_in_the_status_and_goes_while_an_import_runs,
    a_configuration_with_mistakes_leaves_the_old_one_in_force,
    what_a_reload_cannot_change_is_named,
    a_removed_key_is_one_warning_and_no_mistake,
    a_storm_of_signals_in_mid_import_is_survived_and_hardly_told_of,
}
