//! Concurrent imports: a long import delays neither small imports nor restores, and two imports of
//! one name take turns.

use std::fs;
use std::path::Path;
use std::time::Duration;

use bundle::fixtures::{Data, Image};

use crate::support::bundles::{self, image};
use crate::support::{Node, Target, on_the_fake, unique};

const KNOWN: &str = "registry.test/known:1";
const SLOW: &str = "registry.test/slow:1";
const SHARED: &str = "registry.test/shared:1";

/// Writes a bundle that only the lane of large bundles takes, although its import is little work.
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
    daemon.wait_until("the image is imported", || target.record(KNOWN).is_some());
    daemon.wait_until("all leases are returned", || target.leases().is_empty());
    target.slow_commits(Duration::from_secs(8));
    write_large(&node.images().join("slow.tar"), image(SLOW));
    daemon.wait_for_line("slow.tar", "importing");

    target.remove_record(KNOWN);
    daemon.wait_until("the record is back", || target.record(KNOWN).is_some());
    fs::write(node.images().join(".hidden"), "").expect("a file");
    daemon.wait_for_log(".hidden");
    assert!(
        target.record(SLOW).is_none(),
        "the import is over, so the test shows nothing"
    );
    target
        .as_fake()
        .expect("the target is the stand-in")
        .clear_faults();
    daemon.wait_until("the slow import ends", || target.record(SLOW).is_some());
    daemon.finish(target);
}

/// The lane of small bundles overtakes, but the order of arrival still decides about the name.
fn of_two_bundles_with_one_name_the_later_wins_whichever_is_imported_first(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    target.slow_commits(Duration::from_secs(1));
    write_large(&node.images().join("first.tar"), image(SLOW));
    daemon.wait_for_line("first.tar", "importing");
    write_large(&node.images().join("older.tar"), image(SHARED));
    // A file has arrived when no process has it open for writing. A process that starts at this
    // moment may have inherited the file descriptor.
    daemon.wait_until("the file has arrived", || {
        let status = node.airgapd(["status", "-o", "json"]).json();
        let bundles = status["bundles"].as_array().expect("a list");
        bundles
            .iter()
            .any(|bundle| bundle["name"] == "older.tar" && bundle["state"] == "queued")
    });
    let newer = bundles::write(&node.images().join("small.tar"), [image(SHARED)]);
    let wanted = &newer.images[0].root;
    daemon.wait_until("the small bundle is imported", || {
        target
            .record(SHARED)
            .is_some_and(|record| record.target.digest() == wanted)
    });
    daemon.wait_for_log("a bundle that arrived later has this name");
    daemon.wait_until("the older import has ended", || target.leases().is_empty());
    assert_eq!(target.expect_record(SHARED).target.digest(), wanted);

    // Without the newer bundle, the name returns to the older one.
    fs::remove_file(node.images().join("small.tar")).expect("the file can be removed");
    daemon.wait_until("the name returns", || {
        target
            .record(SHARED)
            .is_some_and(|record| record.target.digest() != wanted)
    });
    daemon.finish(target);
}

/// The light lane is for small bundles. A bundle in it waits while the bundle in the main lane
/// writes its name.
fn a_bundle_that_waits_for_a_name_lets_others_go_first(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    target.slow_commits(Duration::from_secs(8));
    write_large(&node.images().join("large.tar"), image(SHARED));
    daemon.wait_for_line("large.tar", "importing");
    let waiting = bundles::write(&node.images().join("waiting.tar"), [image(SHARED)]);
    daemon.wait_for_line("waiting.tar", "importing");
    bundles::write(&node.images().join("third.tar"), [image(KNOWN)]);
    daemon.wait_for_log("other files go first, and it resumes after them");
    daemon.wait_for_line("third.tar", "importing");
    assert_eq!(state_of(&node, "waiting.tar"), "queued");
    assert!(
        target.record(SHARED).is_none(),
        "the import is over, so the test shows nothing"
    );
    target
        .as_fake()
        .expect("the target is the stand-in")
        .clear_faults();
    daemon.wait_until("the third is imported", || target.record(KNOWN).is_some());
    daemon.wait_until("the waiting bundle is imported", || {
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

/// Beside another bundle, a bundle may have an eighth of the allowed descriptors. With more it
/// waits for the main lane, where the whole limits apply.
fn a_small_bundle_that_takes_much_memory_waits_until_no_other_does(target: &Target) {
    let node = Node::on(target);
    node.configure_also("limits: {descriptors: 40}");
    let daemon = node.start();
    let heavy = |name: &str| (0..6).fold(image(name), |image, _| image.layer(unique()));
    bundles::write(&node.images().join("alone.tar"), [heavy(KNOWN)]);
    daemon.wait_until("the image is imported", || target.record(KNOWN).is_some());
    target.slow_commits(Duration::from_secs(8));
    write_large(&node.images().join("slow.tar"), image(SLOW));
    daemon.wait_for_line("slow.tar", "importing");
    bundles::write(&node.images().join("heavy.tar"), [heavy(SHARED)]);
    daemon.wait_for_line("heavy.tar", "importing");
    bundles::write(&node.images().join("light.tar"), [image("registry.test/light:1")]);
    daemon.wait_for_line("light.tar", "importing");
    assert_eq!(state_of(&node, "heavy.tar"), "queued");
    assert!(
        target.record(SLOW).is_none(),
        "the import is over, so the test shows nothing"
    );
    target
        .as_fake()
        .expect("the target is the stand-in")
        .clear_faults();
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

on_the_fake! {
    while_an_import_takes_long_others_are_imported_and_what_is_missing_comes_back,
    of_two_bundles_with_one_name_the_later_wins_whichever_is_imported_first,
    a_bundle_that_waits_for_a_name_lets_others_go_first,
    a_small_bundle_that_takes_much_memory_waits_until_no_other_does,
}
