//! The ledger (`state.json`) that is lost, broken or of another machine: containerd and the folder are the truth.

use std::fs;
use std::path::Path;

use crate::support::bundles::{self, image};
use crate::support::{Node, Target, on_each_containerd, on_the_fake};

const A: &str = "registry.test/a:1";

/// The ledger is a cache of the truth: without it no pin and no label changes.
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
    assert_eq!(aside.len(), 1, "what it said is kept for whoever wants to know");
    assert_ne!(aside[0], node.ledger());
}

/// As a cloned machine has it, or one that was restored from a backup: the state tells of images that are not there.
fn a_daemon_with_the_state_of_another_brings_its_own_containerd_up_to_it(target: &Target) {
    let first = Node::on(target);
    let elsewhere = target.elsewhere();
    let second = Node::on(&elsewhere);
    bundles::write(&first.images().join("a.tar"), [image(A)]);
    let daemon = first.start();
    daemon.wait_until("the image", || target.record(A).is_some());
    daemon.wait_until("it is written down", || first.ledger().exists());
    fs::copy(first.images().join("a.tar"), second.images().join("a.tar")).expect("it can be copied");
    daemon.wait_until("its lease is given back", || target.leases().is_empty());
    fs::copy(first.ledger(), second.ledger()).expect("it can be copied");
    let copy = second.start();
    copy.wait_until("the image", || elsewhere.record(A).is_some());
    fs::remove_file(second.images().join("a.tar")).expect("it is there");
    copy.wait_until("its pin goes", || !elsewhere.is_pinned(A));
    assert!(target.is_pinned(A), "the other namespace is another daemon's");
    copy.finish(&elsewhere);
    daemon.finish(target);
}

on_each_containerd! {
    a_lost_ledger_changes_no_record_and_is_written_anew,
}
on_the_fake! {
    a_broken_ledger_is_set_aside_and_said,
    a_daemon_with_the_state_of_another_brings_its_own_containerd_up_to_it,
}
