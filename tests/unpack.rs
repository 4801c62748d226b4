//! `unpack`: layers become snapshots before the first container needs them, and failures are
//! reported.

use std::collections::BTreeSet;
use std::fs;

use bundle::fixtures::{Archive, Image, Layer, LayerFile};
use lab::parts::busybox;
use lab::{Generation, Options};
use serde_json::{Value, json};

use crate::support::bundles::{self, native, records_of};
use crate::support::{Node, Own, Target, on_its_own_containerd, on_the_fake, run_on_own, unique};

const GOOD: &str = "registry.test/unpacked/good:1";
const OTHER: &str = "registry.test/unpacked/other:1";
const BAD: &str = "registry.test/unpacked/bad:1";

fn layer() -> Layer {
    Layer::files([LayerFile::new("file", unique())])
}

/// Returns an image of three layers that can be unpacked, for this machine and another one.
fn good(name: &str) -> Image {
    let image = Image::new(name).platform(native());
    let image = (0..3).fold(image, |image, _| image.with_layer(layer()));
    image.platform("linux/s390x").with_layer(layer())
}

/// Returns an image with a layer that has the right digest and is no tar.
fn bad() -> Image {
    let no_tar = unique().repeat(64);
    Image::new(BAD)
        .platform(native())
        .with_layer(Layer::plain(no_tar.into()))
}

fn write(node: &Node, images: impl IntoIterator<Item = Image>) -> Archive {
    bundles::write(&node.path("b.tar"), images)
}

fn drop_in(node: &Node, images: impl IntoIterator<Item = Image>) -> Archive {
    let archive = write(node, images);
    fs::rename(node.path("b.tar"), node.images().join("b.tar")).expect("both paths are on one file system");
    archive
}

fn import(node: &Node, when: &str) -> Vec<String> {
    let file = node.path("b.tar");
    vec![bundles::text(&file), "--unpack".to_owned(), when.to_owned()]
}

/// Returns the label of a config that keeps the snapshots of its image.
fn kept_by(target: &Target, archive: &Archive, at: usize) -> Option<String> {
    let config = archive.images[at].manifests[0].config.to_string();
    let labels = target.blobs().remove(&config)?;
    labels.get("containerd.io/gc.ref.snapshot.overlayfs").cloned()
}

fn unpacked(node: &Node) -> Value {
    node.airgapd(["status", "-o", "json"]).json()["unpack"].clone()
}

fn an_import_unpacks_what_this_node_runs_and_nothing_twice(target: &Target) {
    let node = Node::on(target);
    let archive = write(&node, [good(GOOD)]);
    let plan = node.airgapd([
        "import",
        "--dry-run",
        "--unpack",
        "background",
        &bundles::text(&node.path("b.tar")),
    ]);
    assert!(plan.stdout.contains("unpack  its layers"), "{plan:?}");
    let report = node.import(import(&node, "background")).exits(0).bundle();
    assert_eq!(
        report["unpacked"],
        json!({"images": 1, "layers": 3, "failed": []}),
        "{report:#}"
    );
    let top = kept_by(target, &archive, 0).expect("its config keeps the snapshots");
    assert!(target.snapshots().contains(&top));
    target.collect_garbage();
    assert_eq!(
        target.snapshots().len(),
        3,
        "the records keep exactly these snapshots"
    );
    let again = node.import(import(&node, "background")).exits(0).bundle();
    assert_eq!(
        (&again["outcome"], &again["unpacked"]),
        (&json!("unchanged"), &Value::Null)
    );
    // The snapshots disappear with the image.
    for name in records_of(GOOD, &archive.images[0]) {
        target.remove_record(&name);
    }
    target.collect_garbage();
    assert_eq!(target.snapshots(), BTreeSet::new());
}

/// Images are unpacked at the same time, and share their lower layers.
fn layers_that_images_share_are_unpacked_once(target: &Target) {
    let node = Node::on(target);
    let below = [layer(), layer()];
    let names: Vec<_> = (0..6)
        .map(|at| format!("registry.test/unpacked/shared-{at}:1"))
        .collect();
    let images = names.iter().map(|name| {
        let image = Image::new(name).platform(native());
        let image = below
            .iter()
            .fold(image, |image, layer| image.with_layer(layer.clone()));
        image.with_layer(layer())
    });
    let archive = write(&node, images);
    for when in ["before-record", "background"] {
        let report = node.import(import(&node, when)).exits(0).bundle();
        assert_eq!(
            report["unpacked"],
            json!({"images": 6, "layers": 8, "failed": []}),
            "{when}: {report:#}"
        );
        target.collect_garbage();
        assert_eq!(target.snapshots().len(), 8, "{when}");
        for (at, image) in archive.images.iter().enumerate() {
            assert!(kept_by(target, &archive, at).is_some(), "{when}: {at}");
            for name in records_of(&names[at], image) {
                target.remove_record(&name);
            }
        }
        target.collect_garbage();
        assert_eq!(target.snapshots(), BTreeSet::new(), "{when}");
    }
    assert!(target.leases().is_empty());
}

fn before_its_records_an_image_is_unpacked_or_gets_none(target: &Target) {
    let node = Node::on(target);
    let archive = write(&node, [bad(), good(GOOD)]);
    let report = node.import(import(&node, "before-record")).exits(1).bundle();
    assert_eq!(report["outcome"], "partial", "{report:#}");
    assert_eq!(target.names(), records_of(GOOD, &archive.images[1]).into());
    assert!(kept_by(target, &archive, 1).is_some());
    let reason = report["images"][0]["reason"].as_str().expect("a reason");
    let layer = archive.images[0].manifests[0].layers[0].to_string();
    assert!(reason.contains(&layer), "{reason}");
    assert!(target.leases().is_empty() && target.ingests().is_empty());
}

fn after_the_records_what_cannot_be_unpacked_is_told_and_withdraws_nothing(target: &Target) {
    let node = Node::on(target);
    let archive = write(&node, [bad(), good(GOOD)]);
    let answer = node.import(import(&node, "background")).exits(1);
    let report = answer.bundle();
    assert_eq!(report["outcome"], "imported", "{report:#}");
    assert_eq!(report["unpacked"]["images"], 1);
    assert_eq!(report["unpacked"]["failed"][0]["name"], BAD);
    let wanted = [(BAD, &archive.images[0]), (GOOD, &archive.images[1])];
    assert_eq!(target.names(), bundles::all_records(wanted));
}

fn the_daemon_unpacks_when_all_names_are_there(target: &Target) {
    let node = Node::on(target);
    node.configure_also("unpack: background");
    let daemon = node.start();
    let archive = drop_in(&node, [bad(), good(GOOD), good(OTHER)]);
    daemon.wait_for_log("image cannot be unpacked");
    daemon.wait_until("snapshots", || target.snapshots().len() == 6);
    daemon.wait_until("the end", || unpacked(&node)["running"] == false);
    let status = unpacked(&node);
    assert_eq!(
        (&status["pending"], &status["problem"]),
        (&json!(0), &Value::Null)
    );
    assert_eq!(status["failed"][0]["name"], BAD, "{status:#}");
    assert_eq!(target.names().len(), 6, "the image has its records nevertheless");
    assert!(kept_by(target, &archive, 1).is_some() && kept_by(target, &archive, 2).is_some());
    let (_, metrics) = node.ask("/metrics", &[]);
    assert!(metrics.contains("airgapd_unpack_failed_images 1"), "{metrics}");
    assert_eq!(target.leases(), BTreeSet::new());
    daemon.finish(target);
}

/// An image with records need not wait for the end of its bundle.
fn the_daemon_unpacks_an_image_while_another_one_is_sent(target: &Target) {
    let node = Node::on(target);
    node.configure_also("unpack: background\nrateLimit: 1MiB");
    let large = Image::new(OTHER)
        .platform(native())
        .with_layer(Layer::zeros(8 << 20));
    let daemon = node.start();
    drop_in(&node, [good(GOOD), large]);
    daemon.wait_until("the first image is unpacked", || target.snapshots().len() == 3);
    assert!(target.record(GOOD).is_some());
    assert_eq!(target.record(OTHER), None, "its layer takes 8 s");
    daemon.wait_until("the second record", || target.record(OTHER).is_some());
    daemon.finish(target);
}

fn a_start_with_everything_unpacked_applies_nothing(target: &Target) {
    let node = Node::on(target);
    node.configure_also("unpack: background");
    let daemon = node.start();
    drop_in(&node, [good(GOOD), good(OTHER)]);
    daemon.wait_until("snapshots", || target.snapshots().len() == 6);
    daemon.wait_until("the end", || unpacked(&node)["running"] == false);
    daemon.finish(target);
    let fake = target.as_fake().expect("the stand-in");
    let before = (fake.calls("Diff.Apply"), fake.calls("Snapshots.List"));
    let daemon = node.start();
    daemon.wait_until("a look", || fake.calls("Snapshots.List") > before.1);
    daemon.wait_until("the end", || unpacked(&node)["running"] == false);
    assert_eq!(fake.calls("Diff.Apply"), before.0);
    let log = daemon.finish(target);
    assert!(!log.contains("unpacking"), "{log}");
}

/// Options of the containerd.
fn usual() -> Options {
    Options::default()
}

fn what_is_unpacked_runs_and_outlives_the_death_of_both_sides(own: &mut Own) {
    let node = Node::on(&own.target);
    node.configure_also("unpack: before-record");
    let daemon = node.start();
    let program = fs::read(busybox().expect("busybox")).expect("the file can be read");
    let files = [
        LayerFile::folder("bin"),
        LayerFile::executable("bin/busybox", program),
        LayerFile::symlink("bin/sh", "busybox"),
        LayerFile::new("word", "unpacked"),
    ];
    let image = Image::new(GOOD)
        .platform(native())
        .with_layer(Layer::files(files));
    drop_in(&node, [image]);
    daemon.wait_until("the record", || own.target.record(GOOD).is_some());
    let snapshots = own.target.snapshots();
    assert_eq!(snapshots.len(), 1, "the image is already unpacked");
    daemon.kill();
    own.containerd.kill().expect("containerd can be killed");
    own.containerd.restart().expect("containerd starts again");
    own.target.collect_garbage();
    assert_eq!(own.target.snapshots(), snapshots);
    let said = own.containerd.run(GOOD, &["/bin/busybox", "cat", "/word"]);
    assert_eq!(said.expect("a container runs"), "unpacked");
}

/// A disk of its own that is far from full, however full this machine's is.
fn roomy() -> Options {
    Options {
        disk: Some(1 << 30),
        ..Options::default()
    }
}

fn in_a_roomy_place(generation: Generation, scenario: impl FnOnce(&Target)) {
    run_on_own(generation, &roomy(), |own| {
        // CRI keeps records of its own in its namespace.
        let target = own.target.elsewhere();
        scenario(&target);
        target.assert_tidy();
    });
}

macro_rules! with_room_on_each_containerd {
    ($($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            crate::support::on_the_stand_in!($scenario);
            crate::support::on_each_generation!($scenario, super::in_a_roomy_place);
        }
    )+};
}

fn small_disk() -> Options {
    Options {
        disk: Some(320 << 20),
        ..Options::default()
    }
}

/// Twelve images take 40 % of the disk packed, and as much unpacked. Unpacking ahead stops well
/// below the 85 % at which kubelet removes images. Every name is there all the same.
fn unpacking_ahead_keeps_away_from_kubelets_threshold(own: &mut Own) {
    let target = &own.target;
    let node = Node::on(target);
    let images = (0..12).map(|at| {
        let file = LayerFile::new(&format!("file-{at}"), vec![0; 10 << 20]);
        Image::new(&format!("registry.test/unpacked/large-{at}:1"))
            .platform(native())
            .with_layer(Layer::files([file]))
    });
    write(&node, images);
    let report = node.import(import(&node, "background")).exits(1).bundle();
    assert_eq!(report["outcome"], "imported", "{report:#}");
    let unpacked = report["unpacked"]["images"].as_u64().expect("a number");
    assert!((1..12).contains(&unpacked), "{report:#}");
    let reason = report["unpacked"]["failed"][0]["reason"]
        .as_str()
        .expect("a reason");
    assert!(reason.contains("at which kubelet removes images"), "{reason}");
    let disk = import::space::Disk::of(&own.containerd.root()).expect("the disk is visible");
    let used = 100 * (disk.size - disk.free) / disk.size;
    assert!((55..=76).contains(&used), "{used} %");
}

with_room_on_each_containerd!(
    layers_that_images_share_are_unpacked_once,
    an_import_unpacks_what_this_node_runs_and_nothing_twice,
    before_its_records_an_image_is_unpacked_or_gets_none,
    after_the_records_what_cannot_be_unpacked_is_told_and_withdraws_nothing,
    the_daemon_unpacks_when_all_names_are_there,
    the_daemon_unpacks_an_image_while_another_one_is_sent,
);
on_the_fake!(a_start_with_everything_unpacked_applies_nothing);
on_its_own_containerd!(small_disk; unpacking_ahead_keeps_away_from_kubelets_threshold);
on_its_own_containerd!(usual; what_is_unpacked_runs_and_outlives_the_death_of_both_sides);
