//! `airgapd wait`: waits until everything in the folder is in place, and reports failures by its
//! exit code.

use std::fs::{self, File};
use std::io::Write;

use lab::Options;
use serde_json::json;

use crate::support::bundles;
use crate::support::node::bundle;
use crate::support::{Node, Own, Target, on_each_containerd, on_its_own_containerd, on_the_fake};

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

    // The command waits for an upload, whether it continues or not.
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

/// A rollout brings new content under the name of the old.
fn content_is_waited_for_by_its_digest_whatever_its_name(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    node.put("one.tar", ONE);
    node.airgapd(["wait"]).exits(0);
    let old = target.expect_record(ONE).target.digest().to_string();
    bundles::write(&node.path("one.tar"), [bundles::image(ONE)]);
    let file = bundles::text(&node.path("one.tar"));
    let inspected = node.airgapd(["inspect", "-o", "json", &file]).exits(0).json();
    let content = inspected["digest"].as_str().expect("a digest").to_owned();
    let new = inspected["images"][0]["digest"]
        .as_str()
        .expect("a digest")
        .to_owned();

    let wait = |arguments: &[&str], exit: i32| {
        let arguments = ["wait", "--timeout", "0s"].iter().chain(arguments);
        node.airgapd(arguments).exits(exit)
    };
    wait(&["--digest", &old], 0);
    for digest in [&new, &content] {
        let answer = wait(&["--digest", digest], 6);
        assert!(
            answer.stderr.contains(&format!("has {digest} in place")),
            "{answer:?}"
        );
    }
    wait(&["--digest", "sha256:abc"], 2);
    wait(&["--all", "--digest", &new], 2);

    let both = ["wait", "--digest", &new, "--digest", &content, "-o", "json"];
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| node.airgapd(both).exits(0).json());
        fs::rename(&file, node.images().join("one.tar")).expect("both paths are on one file system");
        let document = waiting.join().expect("the thread ends");
        assert_eq!(document["outcome"], "converged");
        assert_eq!(
            bundle(&document, "one.tar")["catalog"],
            json!(content),
            "{document:#}"
        );
    });
    assert_eq!(target.expect_record(ONE).target.digest().to_string(), new);
    wait(&["--digest", &old], 6);
    wait(&["--digest", &new, "--digest", &old], 6);
    wait(&["--bundle", "one.tar", "--digest", &new], 0);
    wait(&["--bundle", "other.tar", "--digest", &new], 1);

    // A bad file does not delay a wait for content that is in place. It does not end a wait for
    // content that may come.
    node.put_broken("bad.tar");
    node.airgapd(["wait"]).exits(1);
    wait(&["--digest", &new], 0);
    wait(&["--digest", &old], 6);
    wait(&["--bundle", "bad.tar", "--digest", &old], 1);
    daemon.finish(target);
}

fn a_containerd_that_is_away_is_what_is_waited_for(target: &Target) {
    let nowhere = Node::at("/nonexistent/containerd.sock".as_ref(), target.namespace());
    let daemon = nowhere.start_unready();
    nowhere.put("one.tar", ONE);
    daemon.wait_until("the daemon answers", || nowhere.path("run/control.sock").exists());
    for arguments in [&["wait"][..], &["wait", "--bundle", "one.tar"]] {
        let arguments = arguments.iter().chain(&["--timeout", "1s"]);
        let answer = nowhere.airgapd(arguments).exits(3);
        assert!(answer.stderr.contains("waiting for containerd: "), "{answer:?}");
        assert!(
            answer.stderr.contains("/nonexistent/containerd.sock"),
            "{answer:?}"
        );
    }
    let digest = format!("sha256:{}", "d".repeat(64));
    let answer = nowhere
        .airgapd(["wait", "--timeout", "1s", "--digest", &digest])
        .exits(3);
    for part in [&*format!("has {digest} in place"), "waiting for containerd: "] {
        assert!(answer.stderr.contains(part), "{answer:?}");
    }
    daemon.stop();
}

fn as_usual() -> Options {
    Options::default()
}

fn a_containerd_that_stops_is_what_is_waited_for(own: &mut Own) {
    let node = Node::on(&own.target);
    let daemon = node.start();
    node.put("one.tar", ONE);
    node.airgapd(["wait"]).exits(0);
    own.containerd.stop().unwrap();
    let status = || node.airgapd(["status", "-o", "json"]).json();
    daemon.wait_until("the daemon has noticed", || {
        status()["verdict"]["health"] == "waiting"
    });
    let answer = node.airgapd(["wait", "--timeout", "0s"]).exits(3);
    assert!(answer.stderr.contains("waiting for containerd: "), "{answer:?}");
    own.containerd.restart().unwrap();
    node.airgapd(["wait"]).exits(0);
    daemon.stop();
}

on_its_own_containerd!(as_usual; a_containerd_that_stops_is_what_is_waited_for,);
on_each_containerd! {
    content_is_waited_for_by_its_digest_whatever_its_name,
    a_bundle_copied_a_moment_ago_is_waited_for,
}
on_the_fake! {
    a_containerd_that_is_away_is_what_is_waited_for,
    failed_late_and_absent_are_told_apart,
}
