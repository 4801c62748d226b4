//! `airgapd status`: how bundles and images stand, with the daemon and without.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use fake_containerd::{Code, Fault};
use serde_json::{Value, json};

use crate::support::bundles;
use crate::support::node::bundle;
use crate::support::{Node, Target, on_each_containerd, on_the_fake, wait_until};

const ONE: &str = "registry.test/one:1";
const TWO: &str = "registry.test/two:1";

/// A comparison of tens of thousands of records takes seconds.
fn status_is_answered_while_a_comparison_waits_for_containerd(target: &Target) {
    let fake = target.as_fake().unwrap();
    let node = Node::on(target);
    node.configure_also("resync: 1s");
    let daemon = node.start();
    node.put("one.tar", ONE);
    node.airgapd(["wait"]).exits(0);
    let before = fake.calls("Images.List");
    fake.inject(Fault::Stall {
        rpc: "Images.List",
        after: 0,
    });
    daemon.wait_until("a comparison", || fake.calls("Images.List") > before);
    let document = node.airgapd(["status", "-o", "json"]).exits(0).json();
    assert_eq!(document["daemon"]["pid"], daemon.pid());
    assert_eq!(document["containerd"]["reachable"], true);
    fake.clear_faults();
    daemon.finish(target);
}

fn status_shows_bundles_and_images_with_the_daemon_and_without(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    node.put("one.tar", ONE);
    node.put("two.tar", TWO);
    node.airgapd(["wait", "--all"]).exits(0);
    let document = node.airgapd(["status", "-o", "json"]).exits(0).json();
    assert_eq!(document["daemon"]["pid"], daemon.pid());
    assert_eq!(document["containerd"]["reachable"], true);
    assert_eq!(document["problems"], json!([]));
    let one = bundle(&document, "one.tar");
    assert_eq!(
        (&one["state"], &one["outcome"], &one["images"], &one["records"]),
        (&json!("done"), &json!("imported"), &json!(1), &json!(2))
    );
    let images = document["images"].as_array().expect("containerd was asked");
    assert_eq!(images.len(), 4);
    assert!(
        images
            .iter()
            .all(|image| image["record"] == "in-place" && image["pinned"] == true)
    );
    let text = node.airgapd(["status"]).exits(0).stdout;
    assert!(text.contains("2 of 2 images in place"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    daemon.finish(target);

    let document = node.airgapd(["status", "-o", "json"]).exits(1).json();
    assert_eq!(document["daemon"], Value::Null);
    assert_eq!(document["verdict"]["reasons"][0]["subject"], "daemon");
    assert_eq!(bundle(&document, "two.tar")["outcome"], "imported");
    target.remove_record(TWO);
    target.set_labels(ONE, &[("io.cri-containerd.pinned", None)]);
    let answer = node.airgapd(["status"]).exits(1);
    assert!(answer.stdout.contains("0 of 2 images in place"), "{answer:?}");
    assert!(answer.stdout.contains("its record is missing"), "{answer:?}");
    assert!(answer.stdout.contains("it is not pinned"), "{answer:?}");
    assert!(answer.stdout.contains("not running"), "{answer:?}");
}

fn status_goes_on_when_it_is_asked_to(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let mut watching = node
        .command(["status", "--watch", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let mut lines = BufReader::new(watching.stdout.take().expect("it is piped")).lines();
    let mut next = || -> Value {
        let line = lines.find(|line| line.as_ref().is_ok_and(|line| !line.is_empty()));
        serde_json::from_str(&line.expect("a line").expect("text")).expect("JSON")
    };
    assert_eq!(next()["bundles"], json!([]));
    node.put("one.tar", ONE);
    while next()["bundles"].as_array().is_none_or(Vec::is_empty) {}
    watching.kill().expect("it runs");
    watching.wait().expect("it is our child");
    daemon.finish(target);
}

/// Nobody reads on: it is noticed although nothing changes that could be written.
fn watching_ends_with_whoever_reads_it(target: &Target) {
    let node = Node::on(target);
    let mut watching = node
        .command(["status", "--watch", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let mut line = String::new();
    let mut out = BufReader::new(watching.stdout.take().expect("it is piped"));
    out.read_line(&mut line).expect("text");
    drop(out);
    let mut ended = None;
    wait_until("it ends", || {
        ended = watching.try_wait().expect("it is our child");
        ended.is_some()
    });
    assert_eq!(ended.and_then(|status| status.code()), Some(1), "no daemon runs");
}

/// What went wrong last, when it is tried again, and what is not for this node.
fn status_says_what_failed_and_when_it_is_tried_again(target: &Target) {
    let node = Node::on(target);
    let fake = target.as_fake().expect("this is for the stand-in");
    fake.inject(Fault::FailAll {
        rpc: "Images.Create",
        code: Code::Unavailable,
        message: "come back later".to_owned(),
    });
    let daemon = node.start();
    node.put("one.tar", ONE);
    let status = || node.airgapd(["status", "-o", "json"]).json();
    daemon.wait_until("it is tried again", || {
        status()["bundles"][0]["state"] == "retrying"
    });
    let document = status();
    let one = bundle(&document, "one.tar");
    let error = one["error"]["text"].as_str().expect("an error");
    assert!(error.contains("come back later"), "{one:#}");
    assert_eq!(one["error"]["class"], "transient");
    assert!(one["retry_in_ms"].is_u64(), "{one:#}");
    let text = node.airgapd(["status"]).stdout;
    assert!(
        text.contains("retrying") && text.contains("come back later") && text.contains("tried again in"),
        "{text}"
    );
    fake.clear_faults();
    node.airgapd(["wait"]).exits(0);

    bundles::write(
        &node.path("foreign.tar"),
        [bundles::multi_platform(
            "registry.test/foreign:1",
            &["linux/s390x"],
        )],
    );
    fs::rename(node.path("foreign.tar"), node.images().join("foreign.tar")).unwrap();
    node.airgapd(["wait"]).exits(0);
    let text = node.airgapd(["status"]).exits(0).stdout;
    let line = text.lines().find(|line| line.ends_with(" foreign.tar"));
    assert!(line.is_some_and(|line| line.starts_with("skipped")), "{text}");
    daemon.finish(target);
}

on_each_containerd!(status_shows_bundles_and_images_with_the_daemon_and_without,);
on_the_fake!(
    status_is_answered_while_a_comparison_waits_for_containerd,
    status_goes_on_when_it_is_asked_to,
    watching_ends_with_whoever_reads_it,
    status_says_what_failed_and_when_it_is_tried_again,
);
