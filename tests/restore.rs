//! While a bundle is in the folder, its images are the desired state: a removed image is restored.

use import::labels::{BUNDLE_PREFIX, EXPIRES};

use crate::support::bundles::{self, image};
use crate::support::target::{OUR_PIN, PINNED};
use crate::support::{Node, Target, on_each_containerd, on_the_fake};

const ONE: &str = "registry.test/one:1";
const TWO: &str = "registry.test/two:1";

fn is_pinned(target: &Target, name: &str) -> bool {
    target
        .record(name)
        .is_some_and(|record| record.labels.contains_key(PINNED))
}

/// Statement 52, for the commands of a `ctr` user.
fn a_record_or_a_pin_that_is_removed_comes_back_and_no_blob_is_sent_for_it(target: &Target) {
    let node = Node::on(target);
    bundles::write(&node.images().join("a.tar"), [image(ONE), image(TWO)]);
    let daemon = node.start();
    daemon.wait_until("both are imported", || {
        is_pinned(target, ONE) && is_pinned(target, TWO)
    });
    daemon.wait_until("all leases are returned", || target.leases().is_empty());

    target.remove_record(ONE);
    daemon.wait_until("the record is back", || target.record(ONE).is_some());
    assert!(is_pinned(target, ONE));

    target.set_labels(TWO, &[(PINNED, None)]);
    daemon.wait_until("the pin is back", || is_pinned(target, TWO));

    target.set_labels(TWO, &[(PINNED, None), (OUR_PIN, None)]);
    daemon.wait_until("the whole pin is back", || {
        is_pinned(target, TWO) && target.labels(TWO).contains_key(OUR_PIN)
    });
    let log = daemon.finish(target);
    assert!(log.contains("restoring it"), "{log}");
}

/// With this label containerd 2.0 and later delete the record, pinned or not. That contradicts the
/// promise of a bundle.
fn an_expiry_that_somebody_else_sets_is_told_and_goes_when_a_bundle_vouches(target: &Target) {
    const LATER: &str = "2100-01-01T00:00:00Z";
    let node = Node::on(target);
    let expires = || target.labels(ONE).contains_key(EXPIRES);
    let file = node.images().join("a.tar");
    bundles::write(&file, [image(ONE)]);
    node.import([&file]).exits(0);
    target.set_labels(ONE, &[(EXPIRES, Some(LATER)), ("theirs", Some("1"))]);

    let list = node.path("list.txt");
    std::fs::write(&list, ONE).unwrap();
    let verified = node
        .airgapd(["verify", "--images", &bundles::text(&list)])
        .exits(0);
    let told = ["its record expires", LATER, "ctr -n k8s.io images label"];
    let is_told = |said: &str, words: &[&str]| {
        let line = said.split_whitespace().collect::<Vec<_>>().join(" ");
        words.iter().all(|words| line.contains(words))
    };
    assert!(is_told(&verified.stdout, &told), "{verified:?}");
    let doctor = node.airgapd(["doctor"]);
    assert!(
        is_told(&doctor.stdout, &["note expiry", ONE, EXPIRES]),
        "{doctor:?}"
    );

    let again = node.import([&file]).exits(0);
    assert!(is_told(&again.stderr, &["would have expired"]), "{again:?}");
    assert!(!expires() && target.labels(ONE)["theirs"] == "1");

    let daemon = node.start();
    daemon.wait_until("the bundle vouches", || {
        let labels = target.labels(ONE);
        labels.keys().any(|key| key.starts_with(BUNDLE_PREFIX)) && target.leases().is_empty()
    });
    target.set_labels(ONE, &[(EXPIRES, Some(LATER))]);
    daemon.wait_until("the expiry is gone", || !expires());
    assert!(target.is_pinned(ONE) && target.labels(ONE)["theirs"] == "1");
    let log = daemon.finish(target);
    assert!(log.contains("would have expired"), "{log}");
}

/// Statement 52.
fn an_image_that_somebody_removes_comes_back(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let name = "registry.test/wanted:1";
    bundles::write(&node.images().join("wanted.tar"), [image(name)]);
    daemon.wait_until("the image", || {
        target.record(name).is_some() && target.leases().is_empty()
    });
    target.remove_record(name);
    daemon.wait_until("the record is back", || target.record(name).is_some());
    assert!(target.is_pinned(name));
    target.set_labels(name, &[(PINNED, None)]);
    daemon.wait_until("the pin is back", || target.is_pinned(name));
    daemon.finish(target);
}

on_each_containerd! {
    a_record_or_a_pin_that_is_removed_comes_back_and_no_blob_is_sent_for_it,
    an_expiry_that_somebody_else_sets_is_told_and_goes_when_a_bundle_vouches,
    an_image_that_somebody_removes_comes_back,
}

fn who_removes_an_image_again_and_again_is_taken_at_his_word_for_a_while(target: &Target) {
    let node = Node::on(target);
    bundles::write(&node.images().join("a.tar"), [image(ONE)]);
    let daemon = node.start();
    for _ in 0..5 {
        daemon.wait_until("the image is in place", || is_pinned(target, ONE));
        target.remove_record(ONE);
    }
    daemon.wait_until("the image is in place", || is_pinned(target, ONE));
    target.remove_record(ONE);
    daemon.wait_for_log("is missing in containerd once more: another program seems to remove it on purpose");
    assert!(target.record(ONE).is_none());

    // A replaced bundle means that the images are wanted again.
    bundles::write(&node.images().join("a.tar"), [image(ONE)]);
    for _ in 0..2 {
        daemon.wait_until("the image is in place", || is_pinned(target, ONE));
        daemon.wait_until("all leases are returned", || target.leases().is_empty());
        target.remove_record(ONE);
    }
    daemon.wait_until("the image is in place", || is_pinned(target, ONE));
    daemon.finish(target);
}

fn a_record_that_somebody_else_moved_is_left_alone_and_told_once(target: &Target) {
    let node = Node::on(target);
    bundles::write(&node.images().join("a.tar"), [image(ONE), image(TWO)]);
    let daemon = node.start();
    daemon.wait_until("both are imported", || {
        is_pinned(target, ONE) && is_pinned(target, TWO)
    });
    daemon.wait_until("all leases are returned", || target.leases().is_empty());
    let elsewhere = target.expect_record(TWO).target;
    let labels = target.labels(ONE);
    let labels: Vec<(&str, &str)> = labels
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    target.put_record(ONE, &elsewhere, &labels);
    daemon.wait_for_log("left alone");
    assert_eq!(target.expect_record(ONE).target.digest(), elsewhere.digest());
    assert_eq!(daemon.count("left alone"), 1);

    target.remove_record(TWO);
    daemon.wait_until("the other one is restored", || is_pinned(target, TWO));
    daemon.wait_until("all leases are returned", || target.leases().is_empty());
    assert_eq!(
        target.expect_record(ONE).target.digest(),
        elsewhere.digest(),
        "nothing else of its bundle is touched"
    );
    daemon.finish(target);
}

on_the_fake! {
    a_record_that_somebody_else_moved_is_left_alone_and_told_once,
    who_removes_an_image_again_and_again_is_taken_at_his_word_for_a_while,
}
