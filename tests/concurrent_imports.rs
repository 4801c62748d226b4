//! Imports beside each other: a long one holds up neither small ones nor repairs, and two that want
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
    target.slow_commits(Duration::from_secs(8));
    write_large(&node.images().join("slow.tar"), image(SLOW));
    daemon.wait_for_line("slow.tar", "importing");

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

/// The lane of small bundles overtakes; the order in which bundles arrived still decides.
fn of_two_bundles_with_one_name_the_later_wins_whichever_is_imported_first(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    target.slow_commits(Duration::from_secs(1));
    write_large(&node.images().join("first.tar"), image(SLOW));
    daemon.wait_for_line("first.tar", "importing");
    write_large(&node.images().join("older.tar"), image(SHARED));
    // It arrives when nobody has it open for writing any more, and a process that is just being
    // started beside us may have it open for a moment after we have closed it.
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

/// The light lane is for small bundles. One of them waits until the name is free that the bundle in
/// the main lane writes.
fn a_bundle_that_waits_for_a_name_lets_others_go_first(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    target.slow_commits(Duration::from_secs(8));
    write_large(&node.images().join("large.tar"), image(SHARED));
    daemon.wait_for_line("large.tar", "importing");
    let waiting = bundles::write(&node.images().join("waiting.tar"), [image(SHARED)]);
    daemon.wait_for_line("waiting.tar", "importing");
    bundles::write(&node.images().join("third.tar"), [image(KNOWN)]);
    daemon.wait_for_log("others go first, and it goes on after them");
    daemon.wait_for_line("third.tar", "importing");
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

/// Beside another bundle an eighth of the descriptors may be read. A bundle of more waits for the
/// main lane, and is what it is within the whole limits.
fn a_small_bundle_that_takes_much_memory_waits_until_no_other_does(target: &Target) {
    let node = Node::on(target);
    node.configure_also("limits: {descriptors: 40}");
    let daemon = node.start();
    let heavy = |name: &str| (0..6).fold(image(name), |image, _| image.layer(unique()));
    bundles::write(&node.images().join("alone.tar"), [heavy(KNOWN)]);
    daemon.wait_until("it is imported", || target.record(KNOWN).is_some());
    target.slow_commits(Duration::from_secs(8));
    write_large(&node.images().join("slow.tar"), image(SLOW));
    daemon.wait_for_line("slow.tar", "importing");
    bundles::write(&node.images().join("heavy.tar"), [heavy(SHARED)]);
    daemon.wait_for_line("heavy.tar", "importing");
    bundles::write(&node.images().join("light.tar"), [image("registry.test/light:1")]);
    daemon.wait_for_line("light.tar", "importing");
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

on_the_fake! {
    while_an_import_takes_long_others_are_imported_and_what_is_missing_comes_back,
    of_two_bundles_with_one_name_the_later_wins_whichever_is_imported_first,
    a_bundle_that_waits_for_a_name_lets_others_go_first,
    a_small_bundle_that_takes_much_memory_waits_until_no_other_does,
}
