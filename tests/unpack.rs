//! `unpack`: layers become snapshots before the first container needs them, and failures are
//! reported.

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZero;
use std::thread;

use bundle::fixtures::{Archive, Image, Layer, LayerFile};
use fake_containerd::{FakeConfig, Fault, SeedContainer};
use lab::parts::busybox;
use lab::{Generation, Options};
use serde_json::{Value, json};
use tonic::Code;

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

/// Returns a layer that has the right digest and is no tar.
fn no_tar() -> Layer {
    Layer::plain(unique().repeat(64).into())
}

/// Returns an image with a layer that cannot be unpacked.
fn bad() -> Image {
    Image::new(BAD).platform(native()).with_layer(no_tar())
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

/// containerd would unpack all of these layers. The kernel then refuses to mount them for a
/// container.
fn an_image_of_more_layers_than_overlayfs_mounts_is_not_unpacked(target: &Target) {
    let node = Node::on(target);
    let of_layers = |name: &str, layers: usize| {
        let image = Image::new(name).platform(native());
        (0..layers).fold(image, |image, _| image.with_layer(layer()))
    };
    write(&node, [of_layers(BAD, 501), of_layers(GOOD, 500)]);
    let report = node.import(import(&node, "before-record")).exits(1).bundle();
    assert_eq!(
        report["unpacked"],
        json!({"images": 1, "layers": 500, "failed": []}),
        "{report:#}"
    );
    let reason = report["images"][0]["reason"].as_str().expect("a reason");
    assert!(
        reason.contains("it has 501 layers, and overlayfs mounts at most 500"),
        "{reason}"
    );
    node.import(import(&node, "none")).exits(0);
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

/// Makes the stand-in hold layers until two are applied at the same time. On one core there is one.
fn expect_two_at_a_time(target: &Target) {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let calls = if cores > 1 { 2 } else { 1 };
    let fake = target.as_fake().expect("the stand-in");
    fake.inject(Fault::Gather {
        rpc: "Diff.Apply",
        calls,
    });
}

fn layers_of_different_images_are_applied_at_the_same_time(target: &Target) {
    let node = Node::on(target);
    for when in ["before-record", "background"] {
        write(&node, [good(GOOD), good(OTHER)]);
        expect_two_at_a_time(target);
        let report = node.import(import(&node, when)).exits(0).bundle();
        assert_eq!(report["unpacked"]["layers"], 6, "{when}: {report:#}");
    }
}

/// The daemon unpacks images that are in place when it starts.
fn the_daemon_applies_layers_of_different_images_at_the_same_time(target: &Target) {
    let node = Node::on(target);
    let archive = drop_in(&node, [good(GOOD), good(OTHER)]);
    let daemon = node.start();
    daemon.wait_until("the records", || target.names().len() == 4);
    daemon.finish(target);
    node.configure_also("unpack: background");
    expect_two_at_a_time(target);
    let daemon = node.start();
    daemon.wait_until("snapshots", || target.snapshots().len() == 6);
    daemon.wait_until("the end", || unpacked(&node)["running"] == false);
    assert_eq!(unpacked(&node)["failed"], json!([]));
    assert!(kept_by(target, &archive, 0).is_some() && kept_by(target, &archive, 1).is_some());
    daemon.finish(target);
}

/// Returns a stand-in whose snapshots get their parents at the commit.
fn rebasing() -> Target {
    Target::fake(FakeConfig {
        version: "2.3.7".to_owned(),
        ..FakeConfig::default()
    })
}

fn layers_of_an_image_are_applied_at_the_same_time(_: &Target) {
    let target = rebasing();
    let node = Node::on(&target);
    for when in ["before-record", "background"] {
        let archive = write(&node, [good(GOOD)]);
        expect_two_at_a_time(&target);
        let report = node.import(import(&node, when)).exits(0).bundle();
        assert_eq!(
            report["unpacked"],
            json!({"images": 1, "layers": 3, "failed": []}),
            "{when}: {report:#}"
        );
        assert!(kept_by(&target, &archive, 0).is_some(), "{when}");
    }
    // The layers of a second image begin above those that it shares.
    let shared = [layer(), layer(), layer()];
    for (name, layers) in [(GOOD, 2), (OTHER, 3)] {
        let image = Image::new(name).platform(native());
        let image = shared[..layers]
            .iter()
            .fold(image, |image, layer| image.with_layer(layer.clone()));
        write(&node, [image]);
        let report = node.import(import(&node, "before-record")).exits(0).bundle();
        assert_eq!(report["unpacked"]["layers"], [2, 1][layers - 2], "{report:#}");
    }
    target.assert_tidy();
}

/// Only the layers below have the mode and the owner of such a folder.
fn a_layer_with_a_folder_that_it_does_not_list_is_applied_after_those_below(_: &Target) {
    let target = rebasing();
    let node = Node::on(&target);
    let image = Image::new(GOOD)
        .platform(native())
        .with_layer(Layer::files([LayerFile::folder("private").mode(0o700)]))
        .with_layer(Layer::files([LayerFile::new("private/file", unique())]))
        .with_layer(layer());
    write(&node, [image]);
    let report = node.import(import(&node, "before-record")).exits(0).bundle();
    assert_eq!(report["unpacked"]["layers"], 3, "{report:#}");
    let fake = target.as_fake().expect("the stand-in");
    assert_eq!(fake.calls("Diff.Apply"), 4, "one layer is applied again");
    target.assert_tidy();
}

/// Such a layer is applied once if the layers below are unpacked, and the lowest always is.
fn the_lowest_layer_that_is_not_unpacked_is_applied_on_those_below(_: &Target) {
    let target = rebasing();
    let node = Node::on(&target);
    let below = Layer::files([LayerFile::folder("private").mode(0o700)]);
    let above = Layer::files([LayerFile::new("private/file", unique())]);
    for (name, layers) in [(GOOD, &[&below][..]), (OTHER, &[&below, &above])] {
        let image = Image::new(name).platform(native());
        let image = layers
            .iter()
            .fold(image, |image, layer| image.with_layer((*layer).clone()));
        write(&node, [image]);
        let report = node.import(import(&node, "before-record")).exits(0).bundle();
        assert_eq!(report["unpacked"]["layers"], 1, "{report:#}");
    }
    let fake = target.as_fake().expect("the stand-in");
    assert_eq!(fake.calls("Diff.Apply"), 2, "each layer once");
    target.assert_tidy();
}

/// Returns the keys of all snapshots without a name.
fn unnamed(target: &Target) -> BTreeSet<String> {
    let fake = target.as_fake().expect("the stand-in");
    let mut all: BTreeSet<String> = fake
        .snapshots(target.namespace(), "overlayfs")
        .into_keys()
        .collect();
    all.retain(|key| key.starts_with("extract-"));
    all
}

/// Imports images of two names each. The next daemon unpacks them.
fn import_and_unpack_later<const N: usize>(node: &Node, target: &Target, images: [Image; N]) {
    let daemon = node.start();
    drop_in(node, images);
    daemon.wait_until("the records", || target.names().len() == 2 * N);
    daemon.finish(target);
    node.configure_also("unpack: background");
}

/// The layer of an image fails while that of another image is applied.
fn an_unpacking_that_fails_leaves_no_unfinished_layers(_: &Target) {
    let target = rebasing();
    let node = Node::on(&target);
    let of_one_layer = |name| Image::new(name).platform(native()).with_layer(layer());
    import_and_unpack_later(&node, &target, [of_one_layer(GOOD), of_one_layer(OTHER)]);
    let fake = target.as_fake().expect("the stand-in");
    let rpc = "Diff.Apply";
    fake.inject(Fault::Stall { rpc, after: 0 });
    fake.inject(Fault::Fail {
        rpc,
        nth: 2,
        code: Code::Unavailable,
        message: "away".to_owned(),
    });
    let daemon = node.start();
    daemon.wait_for_log("images are not unpacked, retrying");
    assert_eq!(unnamed(&target), BTreeSet::new());
    fake.clear_faults();
    daemon.wait_until("snapshots", || target.snapshots().len() == 2);
    daemon.wait_until("the end", || target.leases().is_empty());
    daemon.finish(&target);
}

/// The lower layers have their names by then.
fn on_a_full_disk_layers_of_no_whole_image_stay(_: &Target) {
    let target = rebasing();
    let node = Node::on(&target);
    import_and_unpack_later(&node, &target, [good(GOOD)]);
    let fake = target.as_fake().expect("the stand-in");
    fake.inject(Fault::Fail {
        rpc: "Diff.Apply",
        nth: 3,
        code: Code::Unknown,
        message: "write /fs/file: no space left on device".to_owned(),
    });
    let daemon = node.start();
    daemon.wait_for_log("images are not unpacked, retrying");
    assert_eq!(target.leases(), BTreeSet::new());
    target.collect_garbage();
    assert_eq!(fake.snapshots(target.namespace(), "overlayfs").len(), 0);
    daemon.wait_until("snapshots", || target.snapshots().len() == 3);
    daemon.wait_until("the end", || target.leases().is_empty());
    daemon.finish(&target);
}

/// Several layers of an image may be applied and have no name when the daemon dies.
fn applied_layers_of_a_daemon_that_died_are_removed_before_others_are_applied(_: &Target) {
    let target = rebasing();
    let node = Node::on(&target);
    import_and_unpack_later(&node, &target, [good(GOOD)]);
    let fake = target.as_fake().expect("the stand-in");
    let stall = Fault::Stall {
        rpc: "Diff.Apply",
        after: 0,
    };
    fake.inject(stall.clone());
    let daemon = node.start();
    daemon.wait_until("a layer that is begun", || !unnamed(&target).is_empty());
    daemon.kill();
    let left = unnamed(&target);
    assert!(!left.is_empty(), "they are under the lease");
    fake.clear_faults();
    fake.inject(stall);
    let daemon = node.start();
    let are_gone = || unnamed(&target).is_disjoint(&left);
    daemon.wait_until("they are gone while others are applied", are_gone);
    assert!(!target.leases().is_empty(), "the unpacking has not ended");
    daemon.kill();
    fake.clear_faults();
    let daemon = node.start();
    daemon.wait_until("snapshots", || target.snapshots().len() == 3);
    daemon.wait_until("the end", || target.leases().is_empty());
    daemon.finish(&target);
}

fn a_bad_layer_among_others_leaves_no_snapshots_above_it(_: &Target) {
    let target = rebasing();
    let node = Node::on(&target);
    let image = Image::new(BAD).platform(native());
    let image = [layer(), no_tar(), layer()]
        .into_iter()
        .fold(image, Image::with_layer);
    let archive = write(&node, [image]);
    let report = node.import(import(&node, "before-record")).exits(5).bundle();
    let reason = report["images"][0]["reason"].as_str().expect("a reason");
    let layer = archive.images[0].manifests[0].layers[1].to_string();
    assert!(reason.contains(&layer), "{reason}");
    target.assert_tidy();
    target.collect_garbage();
    assert_eq!(target.snapshots(), BTreeSet::new());
}

/// A new version of an image that ran here comes before images that never ran here.
fn images_of_repositories_that_ran_here_are_unpacked_first(target: &Target) {
    let name = |number: usize| format!("registry.test/unpacked/image-{number}:2");
    let node = Node::on(target);
    let daemon = node.start();
    drop_in(&node, (0..8).map(|number| good(&name(number))));
    daemon.wait_until("the records", || target.record(&name(7)).is_some());
    daemon.finish(target);
    let fake = target.as_fake().expect("the stand-in");
    let container = SeedContainer {
        id: "c".to_owned(),
        image: name(7).replace(":2", ":1"),
        ..SeedContainer::default()
    };
    fake.put_container(target.namespace(), container);
    node.configure_also("unpack: background");
    let daemon = node.start();
    daemon.wait_until("snapshots", || target.snapshots().len() == 24);
    daemon.wait_until("the end", || unpacked(&node)["running"] == false);
    let log = daemon.finish(target);
    let mut lines = log.lines().filter(|line| line.contains("image unpacked"));
    // As many images at a time as there are cores, and one more.
    let at_a_time = std::thread::available_parallelism()
        .expect("the number of cores")
        .get()
        + 1;
    let at = lines.position(|line| line.contains(&name(7)));
    assert!(at.is_some_and(|at| at <= at_a_time.min(6)), "{log}");
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
on_the_fake!(
    a_start_with_everything_unpacked_applies_nothing,
    layers_of_different_images_are_applied_at_the_same_time,
    the_daemon_applies_layers_of_different_images_at_the_same_time,
    layers_of_an_image_are_applied_at_the_same_time,
    a_layer_with_a_folder_that_it_does_not_list_is_applied_after_those_below,
    the_lowest_layer_that_is_not_unpacked_is_applied_on_those_below,
    an_unpacking_that_fails_leaves_no_unfinished_layers,
    on_a_full_disk_layers_of_no_whole_image_stay,
    applied_layers_of_a_daemon_that_died_are_removed_before_others_are_applied,
    a_bad_layer_among_others_leaves_no_snapshots_above_it,
    images_of_repositories_that_ran_here_are_unpacked_first,
    an_image_of_more_layers_than_overlayfs_mounts_is_not_unpacked,
);
on_its_own_containerd!(small_disk; unpacking_ahead_keeps_away_from_kubelets_threshold);
on_its_own_containerd!(usual; what_is_unpacked_runs_and_outlives_the_death_of_both_sides);
