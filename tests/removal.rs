//! Bundles that leave the folder: airgapd's labels and pins are removed, records never, and nothing
//! is removed by mistake.

use std::fs;
use std::time::Duration;

use bundle::fixtures::Image;
use fake_containerd::{Fault, SeedContainer};
use oci_spec::image::Digest;

use crate::support::bundles::{self, image};
use crate::support::target::BUNDLE;
use crate::support::wait_until;
use crate::support::{Node, Target, on_each_containerd, on_the_fake, unique};

const SLOW: &str = "registry.test/slow:1";

const ONE: &str = "registry.test/one:1";
const TWO: &str = "registry.test/two:1";

/// Returns the number of bundles that vouch for a record, or zero without a record.
fn sources(target: &Target, name: &str) -> usize {
    let labels = target
        .record(name)
        .map(|record| record.labels)
        .unwrap_or_default();
    labels.keys().filter(|key| key.starts_with(BUNDLE)).count()
}

fn is_ours(target: &Target, name: &str) -> bool {
    sources(target, name) > 0 && target.is_pinned(name)
}

fn is_let_go(target: &Target, name: &str) -> bool {
    target.record(name).is_some() && sources(target, name) == 0 && !target.is_pinned(name)
}

/// Statement 55.
fn a_bundle_that_is_removed_takes_its_pins_along_and_leaves_the_records(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let layer = unique();
    let shared = || Image::new(TWO).platform(bundles::native()).layer(layer.as_str());
    bundles::write(&node.images().join("a.tar"), [image(ONE), shared()]);
    bundles::write(&node.images().join("b.tar"), [shared()]);
    daemon.wait_until("both bundles vouch", || {
        is_ours(target, ONE) && sources(target, TWO) == 2
    });
    fs::remove_file(node.images().join("a.tar")).unwrap();
    daemon.wait_until("its own image is released", || is_let_go(target, ONE));
    daemon.wait_until("the other bundle keeps the shared image", || {
        sources(target, TWO) == 1
    });
    assert!(target.is_pinned(TWO));
    fs::remove_file(node.images().join("b.tar")).unwrap();
    daemon.wait_until("the last bundle releases its records too", || {
        is_let_go(target, TWO)
    });
    daemon.finish(target);
}

fn what_was_removed_while_nobody_watched_is_withdrawn_at_the_next_start(target: &Target) {
    let node = Node::on(target);
    bundles::write(&node.images().join("a.tar"), [image(ONE)]);
    let daemon = node.start();
    daemon.wait_until("the image is imported", || is_ours(target, ONE));
    daemon.finish(target);
    fs::remove_file(node.images().join("a.tar")).unwrap();
    let daemon = node.start();
    daemon.wait_until("the record is released", || is_let_go(target, ONE));
    daemon.finish(target);
}

fn a_bundle_replaced_by_one_without_an_image_lets_that_image_go(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    bundles::write(&node.images().join("a.tar"), [image(ONE), image(TWO)]);
    daemon.wait_until("both are imported", || {
        is_ours(target, ONE) && is_ours(target, TWO)
    });
    let next = node.path("next.tar");
    bundles::write(&next, [image(TWO)]);
    fs::rename(&next, node.images().join("a.tar")).unwrap();
    daemon.wait_until("the missing image is released", || is_let_go(target, ONE));
    assert!(is_ours(target, TWO));
    daemon.finish(target);
}

/// Statement 56.
fn a_bundle_replaced_by_a_broken_one_unpins_nothing(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    bundles::write(&node.images().join("a.tar"), [image(ONE)]);
    daemon.wait_until("the image is imported", || is_ours(target, ONE));
    let mut broken = bundles::layout([image(TWO)]).build();
    let layer = broken.images[0].manifests[0].layers[0].clone();
    broken.remove_blob(&layer);
    let next = node.path("next.tar");
    broken.write_to(&next);
    fs::rename(&next, node.images().join("a.tar")).unwrap();
    daemon.wait_for_log("is not in the bundle");
    assert!(is_ours(target, ONE));
    daemon.finish(target);
    assert!(is_ours(target, ONE));
}

fn a_name_returns_to_the_older_bundle_when_the_newer_one_leaves(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let older = bundles::write(&node.images().join("old.tar"), [image(ONE)]);
    daemon.wait_until("the older bundle is imported", || is_ours(target, ONE));
    let other = image(ONE).layer(b"something else on top");
    let newer = bundles::write(&node.images().join("new.tar"), [other]);
    let points_at = |digest: &Digest| {
        target
            .record(ONE)
            .is_some_and(|record| record.target.digest() == digest)
    };
    daemon.wait_until("the newer bundle has taken the name", || {
        points_at(&newer.images[0].root)
    });
    daemon.wait_until("only the newer vouches for it", || sources(target, ONE) == 1);
    fs::remove_file(node.images().join("new.tar")).unwrap();
    daemon.wait_until("the older bundle has the name again", || {
        points_at(&older.images[0].root)
    });
    daemon.wait_until("only the older bundle vouches", || {
        sources(target, ONE) == 1 && target.is_pinned(ONE)
    });
    let log = daemon.finish(target);
    assert!(!log.contains("another program"), "{log}");
}

fn with_delete_images_go_that_nobody_else_wants_and_the_others_are_let_go(target: &Target) {
    const NOTED: &str = "registry.test/noted:1";
    let node = Node::on(target);
    node.configure_also("onRemoval: delete\n");
    let daemon = node.start();
    let (layer, own) = (unique(), unique());
    let shared = || Image::new(TWO).platform(bundles::native()).layer(layer.as_str());
    let one = || Image::new(ONE).platform(bundles::native()).layer(own.as_str());
    let archive = bundles::write(&node.images().join("a.tar"), [one(), shared(), image(NOTED)]);
    bundles::write(&node.images().join("b.tar"), [shared()]);
    daemon.wait_until("both bundles vouch", || {
        is_ours(target, ONE) && sources(target, TWO) == 2 && is_ours(target, NOTED)
    });
    target.set_labels(NOTED, &[("note.test/keep", Some("please"))]);
    fs::remove_file(node.images().join("a.tar")).unwrap();
    daemon.wait_until("its own image is gone", || target.record(ONE).is_none());
    let by_digest = format!("registry.test/one@{}", archive.images[0].root);
    daemon.wait_until("under its other name, too", || {
        target.record(&by_digest).is_none()
    });
    daemon.wait_until("a record with another program's mark is released", || {
        is_let_go(target, NOTED)
    });
    daemon.wait_until("the other bundle keeps the shared image", || {
        sources(target, TWO) == 1
    });
    assert!(target.is_pinned(TWO));
    let layer = archive.images[0].manifests[0].layers[0].to_string();
    // After the file has left during its job, the lease of that job is removed last.
    daemon.wait_until("its space is free again", || {
        target.collect_garbage();
        !target.digests().contains(&layer)
    });
    let log = daemon.finish(target);
    assert!(!log.contains("restor"), "nothing of it was missed: {log}");
}

fn a_bundle_that_is_removed_while_it_is_imported_leaves_nothing_behind(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    target.slow_commits(Duration::from_secs(5));
    let place = node.images().join("a.tar");
    bundles::write(&place, [image(SLOW)]);
    daemon.wait_for_line("a.tar", "importing");
    daemon.wait_until("something is held", || !target.leases().is_empty());
    fs::remove_file(&place).expect("the file can be removed");
    daemon.wait_for_log("the file was replaced or removed");
    target
        .as_fake()
        .expect("the target is the stand-in")
        .clear_faults();
    daemon.wait_until("its lease is returned", || target.leases().is_empty());
    assert!(target.record(SLOW).is_none());
    let log = daemon.stop();
    assert!(!log.contains("ERROR"), "{log}");
}

on_each_containerd! {
    with_delete_images_go_that_nobody_else_wants_and_the_others_are_let_go,
    a_name_returns_to_the_older_bundle_when_the_newer_one_leaves,
    a_bundle_that_is_removed_takes_its_pins_along_and_leaves_the_records,
    what_was_removed_while_nobody_watched_is_withdrawn_at_the_next_start,
    a_bundle_replaced_by_one_without_an_image_lets_that_image_go,
    a_bundle_replaced_by_a_broken_one_unpins_nothing,
}

fn removing_most_bundles_or_the_last_is_a_wish_whether_the_daemon_runs_or_not(target: &Target) {
    let node = Node::on(target);
    let names: Vec<String> = (0..5).map(|at| format!("registry.test/image{at}:1")).collect();
    for (at, name) in names.iter().enumerate() {
        bundles::write(&node.images().join(format!("{at}.tar")), [image(name)]);
    }
    let daemon = node.start();
    daemon.wait_until("all are imported", || {
        names.iter().all(|name| is_ours(target, name))
    });
    daemon.finish(target);
    let remove = |at: usize| fs::remove_file(node.images().join(format!("{at}.tar"))).unwrap();
    (0..3).for_each(remove);
    let daemon = node.start();
    daemon.wait_until("three of five", || {
        names[..3].iter().all(|name| is_let_go(target, name))
    });
    assert!(names[3..].iter().all(|name| is_ours(target, name)));
    (3..5).for_each(remove);
    daemon.wait_until("the last two", || {
        names[3..].iter().all(|name| is_let_go(target, name))
    });
    let log = daemon.finish(target);
    assert!(!log.contains("pins of their images stay"), "{log}");
}

pub(crate) fn another_folder_in_its_place_unpins_nothing_until_the_operator_says_so(target: &Target) {
    let node = Node::on(target);
    bundles::write(&node.images().join("a.tar"), [image(ONE)]);
    let daemon = node.start();
    daemon.wait_until("the image is imported", || is_ours(target, ONE));
    fs::rename(node.images(), node.path("aside")).unwrap();
    daemon.wait_for_log("cannot open the images folder");
    fs::create_dir(node.images()).unwrap();
    daemon.wait_for_log("another folder than before");
    assert!(is_ours(target, ONE));
    node.airgapd(["release", "--vanished"]).exits(0);
    assert!(is_let_go(target, ONE));
    daemon.wait_for_log("no bundle is missing any more");
    daemon.finish(target);
    assert!(is_let_go(target, ONE));
}

fn the_grace_keeps_the_pin_for_a_while(target: &Target) {
    let node = Node::on(target);
    node.configure_also("unpinGrace: 1h\n");
    bundles::write(&node.images().join("a.tar"), [image(ONE)]);
    let daemon = node.start();
    daemon.wait_until("the image is imported", || is_ours(target, ONE));
    fs::remove_file(node.images().join("a.tar")).unwrap();
    daemon.wait_for_log("the bundle is gone");
    daemon.finish(target);
    assert!(is_ours(target, ONE));
    let text = fs::read_to_string(node.path("config.yaml")).unwrap();
    node.configure(&text.replace("unpinGrace: 1h", "unpinGrace: 0s"));
    let daemon = node.start();
    daemon.wait_until("the grace is over", || is_let_go(target, ONE));
    daemon.finish(target);
}

fn with_keep_the_pin_outlives_the_bundle(target: &Target) {
    let node = Node::on(target);
    node.configure_also("onRemoval: keep\n");
    bundles::write(&node.images().join("a.tar"), [image(ONE)]);
    let daemon = node.start();
    daemon.wait_until("the image is imported", || is_ours(target, ONE));
    fs::remove_file(node.images().join("a.tar")).unwrap();
    wait_until("its word is withdrawn", || sources(target, ONE) == 0);
    assert!(target.is_pinned(ONE));
    node.airgapd(["release", ONE]).exits(0);
    assert!(!target.is_pinned(ONE));
    daemon.finish(target);
}

/// Creates a container like CRI, from an image that CRI knows.
fn run_container(target: &Target, id: &str, image_id: &str) {
    let fake = target.as_fake().expect("the target is the stand-in");
    let labels = [
        ("io.kubernetes.pod.namespace", "default"),
        ("io.kubernetes.pod.name", id),
        ("io.kubernetes.container.name", "app"),
    ];
    let container = SeedContainer {
        id: id.to_owned(),
        image: image_id.to_owned(),
        image_id: image_id.to_owned(),
        labels: labels
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
    };
    fake.put_container(target.namespace(), container);
}

fn containers_of_an_image_that_loses_its_pin_are_named_and_nothing_is_deleted_under_them(target: &Target) {
    let target = target.in_kubernetes();
    for on_removal in ["unpin", "delete"] {
        let node = Node::on(&target);
        node.configure_also(&format!("onRemoval: {on_removal}\n"));
        let archive = bundles::write(&node.images().join("a.tar"), [image(ONE)]);
        let daemon = node.start();
        daemon.wait_until("the image is imported", || is_ours(&target, ONE));
        let id = archive.images[0].manifests[0].config.to_string();
        daemon.wait_until("CRI has taken it in", || target.record(&id).is_some());
        run_container(&target, &format!("web-{on_removal}"), &id);
        fs::remove_file(node.images().join("a.tar")).unwrap();
        daemon.wait_for_log("containers were made from it");
        daemon.wait_until("the record is released and still exists", || {
            is_let_go(&target, ONE)
        });
        let log = daemon.finish(&target);
        let pod = format!("default/web-{on_removal} (app)");
        assert!(log.contains(&pod), "{log}");
        assert!(target.record(&id).is_some());
    }
}

/// The comparison at the end of the job removes the remaining labels.
fn while_a_job_writes_a_record_the_word_of_a_bundle_that_is_gone_waits_quietly(target: &Target) {
    let fake = target.as_fake().expect("the target is the stand-in");
    let node = Node::on(target);
    bundles::write(&node.images().join("a.tar"), [image(ONE)]);
    bundles::write(&node.path("b.tar"), [image(ONE)]);
    let daemon = node.start();
    daemon.wait_until("the image is imported", || is_ours(target, ONE));
    fake.inject(Fault::Delay {
        rpc: "Content.Write",
        by: Duration::from_secs(3),
    });
    node.drop_in(&node.path("b.tar"));
    daemon.wait_until("the other import is running", || !target.ingests().is_empty());
    let before = fake.calls("Images.List");
    fs::remove_file(node.images().join("a.tar")).unwrap();
    daemon.wait_for_log("the bundle is gone");
    daemon.wait_for_log("image retargeted");
    // A comparison makes one or two lists, and there is time for a dozen comparisons.
    let lists = fake.calls("Images.List") - before;
    assert!((1..10).contains(&lists), "{lists} lists");
    daemon.wait_until("the other alone vouches", || sources(target, ONE) == 1);
    assert!(is_ours(target, ONE));
    daemon.finish(target);
}

/// CRI's own records, named after the image's id, would keep the blobs. With this many images,
/// records are deleted in several batches.
fn with_delete_cris_own_records_go_with_the_last_names(target: &Target) {
    let target = target.in_kubernetes();
    let node = Node::on(&target);
    node.configure_also("onRemoval: delete\n");
    let before = target.names();
    let images = (0..60).map(|number| image(&format!("registry.test/many:{number}")));
    let archive = bundles::write(&node.images().join("a.tar"), images);
    let ids: Vec<String> = archive
        .images
        .iter()
        .map(|image| image.manifests[0].config.to_string())
        .collect();
    let daemon = node.start();
    daemon.wait_until("CRI has taken them in", || {
        ids.iter().all(|id| target.record(id).is_some())
    });
    daemon.wait_for_log("bundle imported");
    fs::remove_file(node.images().join("a.tar")).unwrap();
    daemon.wait_until("all their records are gone", || target.names() == before);
    daemon.finish(&target);
}

/// The name of its checksum file would be too long.
fn a_bundle_with_the_longest_name_there_is_is_imported(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    bundles::write(&node.images().join("n".repeat(255)), [image(ONE)]);
    daemon.wait_until("the image is imported", || is_ours(target, ONE));
    daemon.finish(target);
}

on_the_fake! {
    while_a_job_writes_a_record_the_word_of_a_bundle_that_is_gone_waits_quietly,
    containers_of_an_image_that_loses_its_pin_are_named_and_nothing_is_deleted_under_them,
    with_delete_cris_own_records_go_with_the_last_names,
    a_bundle_with_the_longest_name_there_is_is_imported,
    removing_most_bundles_or_the_last_is_a_wish_whether_the_daemon_runs_or_not,
    another_folder_in_its_place_unpins_nothing_until_the_operator_says_so,
    the_grace_keeps_the_pin_for_a_while,
    with_keep_the_pin_outlives_the_bundle,
    a_bundle_that_is_removed_while_it_is_imported_leaves_nothing_behind,
}
