//! Checksums beside bundles: a `bundle.tar.sha256` that is right, wrong, late or required.

use std::fs;
use std::path::Path;

use bundle::fixtures::digest_of;

use crate::support::bundles::{self, image, marker};
use crate::support::{Node, Target, on_each_containerd, on_the_fake};

const WRONG: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Returns the sha256 of a file as hex digits.
fn sha256(path: &Path) -> String {
    let digest = digest_of(&fs::read(path).unwrap()).to_string();
    digest.strip_prefix("sha256:").unwrap().to_owned()
}

/// Returns the line that sha256sum writes about a file.
fn line(hex: &str, bundle: &Path) -> String {
    format!("{hex}  {}\n", bundle.file_name().unwrap().to_str().unwrap())
}

fn import_holds_a_bundle_against_the_checksum_beside_it(target: &Target) {
    let node = Node::on(target);
    let file = node.path("bundle.tar");
    bundles::write(&file, [image("registry.test/summed:1")]);
    let sidecar = node.path("bundle.tar.sha256");
    let right = sha256(&file);

    fs::write(&sidecar, line(WRONG, &file)).unwrap();
    let report = node.import([&file]).exits(5).bundle();
    let error = report["error"].as_str().unwrap();
    assert!(
        error.contains(WRONG) && error.contains(&right),
        "both digests: {error}"
    );
    fs::write(&sidecar, "rubbish").unwrap();
    let report = node.import([&file]).exits(1).bundle();
    assert!(
        report["error"].as_str().unwrap().contains("bundle.tar.sha256"),
        "{report:#}"
    );
    assert!(target.names().is_empty());

    node.configure_also("checksums: off");
    node.import([&file]).exits(0);
}

fn every_usual_form_of_a_checksum_is_good(target: &Target) {
    let node = Node::on(target);
    node.configure_also("checksums: require");
    let file = node.path("bundle.tar");
    bundles::write(&file, [image("registry.test/summed:1")]);
    let missing = node.import([&file]).exits(1).bundle();
    assert!(
        missing["error"]
            .as_str()
            .unwrap()
            .contains("there is no bundle.tar.sha256"),
        "{missing:#}"
    );
    let right = sha256(&file);
    for good in [
        line(&right, &file),
        format!("{right}\n"),
        format!("{} *./bundle.tar\r\n", right.to_uppercase()),
        format!("{WRONG}  other.tar\n{right}  bundle.tar\n"),
        format!("SHA256 (bundle.tar) = {right}\n"),
    ] {
        fs::write(node.path("bundle.tar.sha256"), &good).unwrap();
        node.import([&file]).exits(0);
    }
}

fn a_bundle_with_a_wrong_checksum_is_imported_once_the_checksum_is_right(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let (file, name) = marker(node.path("summed.tar"));
    let sidecar = node.images().join("summed.tar.sha256");
    fs::write(&sidecar, line(WRONG, &file)).unwrap();
    let dropped = node.drop_in(&file);
    daemon.wait_for_line("summed.tar", WRONG);
    daemon.wait_for_line("summed.tar", &sha256(&dropped));
    node.drop_marker(target, &daemon);
    assert!(target.record(&name).is_none());

    fs::write(&sidecar, line(&sha256(&dropped), &file)).unwrap();
    daemon.wait_until("the image", || target.record(&name).is_some());
    daemon.finish(target);
}

fn a_required_checksum_is_waited_for_and_that_is_said_once(target: &Target) {
    let node = Node::on(target);
    node.configure_also("checksums: require");
    let daemon = node.start();
    let (file, name) = marker(node.path("lonely.tar"));
    let dropped = node.drop_in(&file);
    daemon.wait_for_line("lonely.tar", "waiting");
    let (other, other_name) = marker(node.path("other.tar"));
    fs::write(
        node.images().join("other.tar.sha256"),
        line(&sha256(&other), &other),
    )
    .unwrap();
    node.drop_in(&other);
    daemon.wait_until("a bundle with its checksum", || {
        target.record(&other_name).is_some()
    });
    assert!(target.record(&name).is_none());
    assert_eq!(
        daemon.count("waiting: there is no lonely.tar.sha256"),
        1,
        "{}",
        daemon.log()
    );

    fs::write(
        node.images().join("lonely.tar.sha256"),
        line(&sha256(&dropped), &file),
    )
    .unwrap();
    daemon.wait_until("the checksum was enough", || target.record(&name).is_some());
    let log = daemon.finish(target);
    assert!(!log.contains("ERROR"), "{log}");
}

/// The pins of its images stay, but the daemon restores nothing until the file or its checksum
/// changes.
fn a_late_checksum_that_does_not_match_takes_the_bundle_out_of_the_desired_state(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let (file, name) = marker(node.path("late.tar"));
    let dropped = node.drop_in(&file);
    daemon.wait_until("the image", || target.record(&name).is_some());
    let sidecar = node.images().join("late.tar.sha256");
    fs::write(&sidecar, line(WRONG, &file)).unwrap();
    daemon.wait_for_line("late.tar", "the daemon no longer restores them");
    assert!(target.is_pinned(&name));
    target.remove_record(&name);
    node.drop_marker(target, &daemon);
    assert!(target.record(&name).is_none(), "no bundle vouches for it now");
    daemon.stop();

    let daemon = node.start();
    daemon.wait_for_line("late.tar", WRONG);
    node.drop_marker(target, &daemon);
    assert!(target.record(&name).is_none());
    fs::write(&sidecar, line(&sha256(&dropped), &file)).unwrap();
    daemon.wait_until("the image is back", || target.record(&name).is_some());
    daemon.finish(target);
}

fn a_restart_reads_no_bundle_whose_checksum_was_checked(target: &Target) {
    let node = Node::on(target);
    let (file, name) = marker(node.path("known.tar"));
    fs::write(
        node.images().join("known.tar.sha256"),
        line(&sha256(&file), &file),
    )
    .unwrap();
    node.drop_in(&file);
    let daemon = node.start();
    // If the daemon stopped before it writes this down, it would only check the file again.
    daemon.wait_for_line("known.tar", "bundle imported");
    assert!(target.record(&name).is_some());
    let log = daemon.finish(target);
    assert!(log.contains("its checksum is right"), "{log}");

    let daemon = node.start();
    node.drop_marker(target, &daemon);
    let log = daemon.finish(target);
    assert!(!log.lines().any(|line| line.contains("known.tar")), "{log}");
}

/// Once a checksum is required, a bundle that was imported without one must have one too.
fn a_rule_that_comes_later_holds_for_known_bundles_too(target: &Target) {
    let node = Node::on(target);
    let (file, name) = marker(node.path("before.tar"));
    let dropped = node.drop_in(&file);
    let daemon = node.start();
    daemon.wait_for_line("before.tar", "bundle imported");
    daemon.finish(target);

    node.configure_also("checksums: require");
    let daemon = node.start();
    daemon.wait_for_line("before.tar", "waiting");
    assert!(target.is_pinned(&name));
    let sidecar = node.images().join("before.tar.sha256");
    fs::write(sidecar, line(&sha256(&dropped), &file)).unwrap();
    daemon.wait_for_line("before.tar", "its checksum is right");
    daemon.finish(target);

    node.configure_also("allowedNames: [elsewhere.test/*]");
    let daemon = node.start();
    daemon.wait_for_line("before.tar", "allowedNames");
    daemon.finish(target);
}

on_the_fake! {
    import_holds_a_bundle_against_the_checksum_beside_it,
    every_usual_form_of_a_checksum_is_good,
    a_required_checksum_is_waited_for_and_that_is_said_once,
    a_restart_reads_no_bundle_whose_checksum_was_checked,
    a_rule_that_comes_later_holds_for_known_bundles_too,
}
on_each_containerd! {
    a_bundle_with_a_wrong_checksum_is_imported_once_the_checksum_is_right,
    a_late_checksum_that_does_not_match_takes_the_bundle_out_of_the_desired_state,
}
