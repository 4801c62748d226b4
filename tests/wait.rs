//! `airgapd wait`: until everything in the folder is in place, and the exit codes of what is not.

use std::fs::{self, File};
use std::io::Write;

use crate::support::node::bundle;
use crate::support::{Node, Target, on_each_containerd, on_the_fake};

const ONE: &str = "registry.test/one:1";

fn a_bundle_copied_a_moment_ago_is_waited_for(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    for round in 0..5 {
        let name = format!("registry.test/round:{round}");
        node.put(&format!("{round}.tar"), &name);
        let document = node.airgapd(["wait", "-o", "json"]).exits(0).json();
        assert_eq!(document["outcome"], "converged");
        assert!(target.is_pinned(&name), "round {round}");
    }
    daemon.finish(target);
}

fn failed_late_and_absent_are_told_apart(target: &Target) {
    let node = Node::on(target);
    node.airgapd(["wait"]).exits(7);
    let daemon = node.start();
    node.airgapd(["wait", "--allow-empty"]).exits(0);
    let answer = node.airgapd(["wait", "--timeout", "1s"]).exits(6);
    assert!(answer.stderr.contains("there is no bundle in"), "{answer:?}");
    node.put("good.tar", ONE);
    node.put_broken("bad.tar");
    let answer = node.airgapd(["wait"]).exits(1);
    assert!(answer.stderr.contains("bad.tar"), "{answer:?}");
    node.airgapd(["wait", "--bundle", "good.tar"]).exits(0);
    let answer = node.airgapd(["wait", "--bundle", "bad.tar"]).exits(1);
    assert!(answer.stderr.contains("not an image bundle"), "{answer:?}");
    let answer = node.airgapd(["wait", "--bundle", "godo.tar"]).exits(1);
    assert!(
        answer.stderr.contains("there is no bundle godo.tar"),
        "{answer:?}"
    );
    let answer = node.airgapd(["status"]).exits(1);
    assert!(answer.stdout.contains("failed"), "{answer:?}");
    fs::remove_file(node.images().join("bad.tar")).unwrap();
    node.airgapd(["wait"]).exits(0);

    // An upload that goes on, or does not, is waited for.
    let mut upload = File::create(node.images().join("slow.tar")).unwrap();
    upload.write_all(&[7; 1000]).unwrap();
    let answer = node.airgapd(["wait", "--timeout", "1s", "-o", "json"]).exits(6);
    let document = answer.json();
    assert_eq!(document["outcome"], "timed-out");
    assert!(
        document["error"].as_str().unwrap().contains("slow.tar is"),
        "{document:#}"
    );
    assert_eq!(bundle(&document, "slow.tar")["state"], "settling");
    drop(upload);
    daemon.finish(target);
    node.airgapd(["wait"]).exits(7);
}

on_each_containerd! {
    a_bundle_copied_a_moment_ago_is_waited_for,
}
on_the_fake! {
    failed_late_and_absent_are_told_apart,
}
