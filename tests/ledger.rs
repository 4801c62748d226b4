//! A ledger (`state.json`) that is lost, broken or from another machine. containerd and the folder
//! are the truth.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::bundles::{self, image};
use crate::support::{Node, Target, on_each_containerd, on_the_fake};

const A: &str = "registry.test/a:1";

/// The ledger is only a cache. Without it no pin and no label changes.
fn a_lost_ledger_changes_no_record_and_is_written_anew(target: &Target) {
    for harm in [
        |ledger: &Path| fs::remove_file(ledger).unwrap(),
        |ledger: &Path| fs::write(ledger, "{\"ver").unwrap(),
    ] {
        let target = target.elsewhere();
        let node = Node::on(&target);
        bundles::write(
            &node.path("bundle.tar"),
            [image("registry.test/a:1"), image("registry.test/b:1")],
        );
        node.import_and_stop(&target, &node.path("bundle.tar"), 4);
        let before = target.records();
        let changes = target.watch();
        harm(&node.ledger());

        let daemon = node.start();
        daemon.wait_until("the ledger is back", || {
            fs::read_to_string(node.ledger()).is_ok_and(|text| text.contains("bundle.tar"))
        });
        assert_eq!(changes.so_far(), []);
        assert_eq!(target.records(), before);
        daemon.stop();
        target.assert_tidy();
    }
}

fn a_broken_ledger_is_set_aside_and_said(target: &Target) {
    let node = Node::on(target);
    fs::write(node.ledger(), "no ledger\n").unwrap();
    let daemon = node.start();
    node.drop_marker(target, &daemon);
    let log = daemon.stop();
    assert!(
        log.lines()
            .any(|line| line.contains("state.json") && line.contains("WARN")),
        "{log}"
    );
    let aside = fs::read_dir(node.state())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let aside: Vec<_> = aside
        .filter(|path| fs::read(path).is_ok_and(|bytes| bytes == b"no ledger\n"))
        .collect();
    assert_eq!(aside.len(), 1, "the broken ledger is kept for the operator");
    assert_ne!(aside[0], node.ledger());
}

/// A cloned machine, or one restored from a backup, has a state that lists absent images.
fn a_daemon_with_the_state_of_another_brings_its_own_containerd_up_to_it(target: &Target) {
    let first = Node::on(target);
    let elsewhere = target.elsewhere();
    let second = Node::on(&elsewhere);
    bundles::write(&first.images().join("a.tar"), [image(A)]);
    let daemon = first.start();
    daemon.wait_until("the image", || target.record(A).is_some());
    daemon.wait_until("the result is in the ledger", || first.ledger().exists());
    fs::copy(first.images().join("a.tar"), second.images().join("a.tar")).expect("the file can be copied");
    daemon.wait_until("its lease is returned", || target.leases().is_empty());
    fs::copy(first.ledger(), second.ledger()).expect("the file can be copied");
    let copy = second.start();
    copy.wait_until("the image", || elsewhere.record(A).is_some());
    fs::remove_file(second.images().join("a.tar")).expect("the file exists");
    copy.wait_until("its pin goes", || !elsewhere.is_pinned(A));
    assert!(target.is_pinned(A), "the other namespace is another daemon's");
    copy.finish(&elsewhere);
    daemon.finish(target);
}

/// Rewrites the ledger into the form of 0.1.0. The node's files and containerd stay as they are.
fn as_of_0_1_0(node: &Node, selection: Option<&str>) {
    let mut ledger: Value = serde_json::from_slice(&fs::read(node.ledger()).unwrap()).unwrap();
    ledger["context"]["program"] = "0.1.0".into();
    if let Some(selection) = selection {
        ledger["context"]["selection"] = selection.into();
    }
    for (_, entry) in ledger["bundles"].as_object_mut().unwrap() {
        let entry = entry.as_object_mut().unwrap();
        const KEYS: [&str; 8] = [
            "file",
            "arrival",
            "identity",
            "outcome",
            "attempts",
            "last_error",
            "imported",
            "gone",
        ];
        entry.retain(|key, _| KEYS.contains(&key.as_str()));
    }
    fs::write(node.ledger(), ledger.to_string()).unwrap();
}

/// The new version may have other defaults (another selection). If it has, it reads every bundle
/// again.
fn an_upgrade_of_a_converged_node_writes_nothing_into_containerd_and_wait_is_satisfied(target: &Target) {
    for selection in [None, Some("0123456789abcdef")] {
        let target = target.elsewhere();
        let node = Node::on(&target);
        let shared = image(A);
        for file in ["a.tar", "b.tar"] {
            let own = image(&format!("registry.test/{file}:1"));
            bundles::write(&node.images().join(file), [own, shared.clone()]);
        }
        let daemon = node.start();
        node.airgapd(["wait"]).exits(0);
        daemon.finish(&target);
        as_of_0_1_0(&node, selection);
        let (records, changes) = (target.records(), target.watch());
        if let Some(fake) = target.as_fake() {
            fake.reset_log();
        }

        let daemon = node.start();
        if selection.is_some() {
            daemon.wait_for_log("the daemon checks every bundle again");
        }
        let waited = node.airgapd(["wait", "-o", "json"]).exits(0).json();
        assert_eq!(waited["verdict"]["health"], "healthy", "{waited:#}");
        node.airgapd(["status"]).exits(0);
        let log = daemon.finish(&target);
        let again = log
            .lines()
            .filter(|line| line.contains("outcome=unchanged"))
            .count();
        assert_eq!(again, if selection.is_some() { 2 } else { 0 }, "{log}");
        if let Some(fake) = target.as_fake() {
            assert_eq!(fake.mutations(), [], "{log}");
        }
        assert_eq!(changes.so_far(), [], "{log}");
        assert_eq!(target.records(), records, "{log}");
    }
}

on_each_containerd! {
    an_upgrade_of_a_converged_node_writes_nothing_into_containerd_and_wait_is_satisfied,
    a_lost_ledger_changes_no_record_and_is_written_anew,
}
on_the_fake! {
    a_broken_ledger_is_set_aside_and_said,
    a_daemon_with_the_state_of_another_brings_its_own_containerd_up_to_it,
}
