//! `airgapd scrub`: flipped bits in containerd's store are found, and replaced from a bundle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

use bundle::fixtures::{Archive, Image, Layer, LayerFile};
use containerd::ImageRecord;
use fake_containerd::Fault;
use oci_spec::image::Digest;
use serde_json::{Value, json};
use tonic::Code;

use crate::merge_split_diff::delta;
use crate::support::bundles::{self, native};
use crate::support::node::Answer;
use crate::support::{
    Node, Target, on_each_containerd, on_each_real_containerd, on_the_fake, unique, wait_until,
};

const NAME: &str = "registry.test/app:1";
const BUNDLE: &str = "app.tar";

/// Returns an image in an index, with two layers that can be unpacked.
fn app(name: &str) -> Image {
    let layer = || Layer::files([LayerFile::new("file", unique())]);
    Image::new(name)
        .platform(native())
        .with_layer(layer())
        .with_layer(layer())
        .in_an_index()
}

/// Imports a bundle of an image by a daemon, and stops the daemon.
fn imported(node: &Node, target: &Target) -> Archive {
    let archive = bundles::write(&node.path(BUNDLE), [app(NAME)]);
    node.import_and_stop(target, &node.path(BUNDLE), 2);
    archive
}

/// Returns the parts of the first image: index, manifest, config, and layers.
fn parts(archive: &Archive) -> Vec<Digest> {
    let (root, manifest) = (&archive.images[0].root, &archive.images[0].manifests[0]);
    let first = [root, &manifest.digest, &manifest.config].into_iter();
    first.chain(&manifest.layers).cloned().collect()
}

fn layer(archive: &Archive) -> Digest {
    archive.images[0].manifests[0].layers[0].clone()
}

fn scrub(node: &Node, code: i32) -> Value {
    node.airgapd(["scrub", "-o", "json"]).exits(code).json()
}

/// Returns the only wrong blob.
#[track_caller]
fn wrong(report: &Value) -> &Value {
    let wrong = report["wrong"].as_array().expect("a list");
    assert_eq!(wrong.len(), 1, "{report:#}");
    &wrong[0]
}

/// Everything about the images that must stand.
#[derive(Debug, PartialEq)]
struct Standing {
    records: BTreeMap<String, ImageRecord>,
    blobs: BTreeMap<String, BTreeMap<String, String>>,
}

fn standing(target: &Target) -> Standing {
    Standing {
        records: target.records(),
        blobs: target.blobs(),
    }
}

fn a_flipped_bit_is_replaced_from_the_bundle_and_all_else_stands(target: &Target) {
    let node = Node::on(target);
    let archive = imported(&node, target);
    let before = standing(target);
    for digest in parts(&archive) {
        target.flip_bit(&digest);
        assert!(!target.is_right(&digest), "{digest}");
        let report = scrub(&node, 0);
        assert_eq!(report["read"], 5, "{report:#}");
        let blob = wrong(&report);
        assert_eq!(blob["digest"], digest.to_string(), "{blob:#}");
        assert_eq!(
            (&blob["state"], &blob["from"]),
            (&json!("replaced"), &json!(BUNDLE))
        );
        assert!(target.is_right(&digest), "{digest}");
        target.collect_garbage();
        assert_eq!(standing(target), before, "{digest}");
        assert!(target.is_pinned(NAME) && target.leases().is_empty());
    }
    let answer = node.airgapd(["scrub"]).exits(0);
    assert!(answer.stdout.contains("read 5 of 5 blobs"), "{answer:?}");
    assert!(answer.stdout.contains(": all right"), "{answer:?}");
}

fn the_document_has_stable_keys(target: &Target) {
    let node = Node::on(target);
    let archive = imported(&node, target);
    let digest = layer(&archive);
    target.flip_bit(&digest);
    let mut bytes = archive.bytes_of(&archive.name_of(&digest));
    let whole: usize = parts(&archive)
        .iter()
        .map(|part| archive.bytes_of(&archive.name_of(part)).len())
        .sum();
    let at = 1001 / 8 % bytes.len();
    bytes[at] ^= 1 << (1001 % 8);
    let expected = json!({
        "blobs": 5,
        "read": 5,
        "read_bytes": whole - bytes.len(),
        "absent": 0,
        "remaining": 0,
        "wrong": [{
            "digest": digest.to_string(),
            "images": bundles::records_of(NAME, &archive.images[0]),
            "bundles": [BUNDLE],
            "state": "replaced",
            "found": format!("its bytes hash to {}", fake_containerd::sha256(&bytes)),
            "from": BUNDLE,
            "reasons": [],
            "remedy": null,
        }],
    });
    assert_eq!(scrub(&node, 0), expected);
}

fn a_running_daemon_does_not_disturb_it(target: &Target) {
    let node = Node::on(target);
    let archive = bundles::write(&node.images().join(BUNDLE), [app(NAME)]);
    let daemon = node.start();
    let root = archive.images[0].root.digest();
    daemon.wait_until("the ledger", || {
        fs::read_to_string(node.ledger()).is_ok_and(|text| text.contains(root))
    });
    daemon.wait_until("all leases are returned", || target.leases().is_empty());
    let before = standing(target);
    for digest in parts(&archive) {
        target.flip_bit(&digest);
        let report = scrub(&node, 0);
        assert_eq!(wrong(&report)["state"], "replaced", "{report:#}");
        daemon.wait_until("all leases are returned", || target.leases().is_empty());
        assert!(target.is_right(&digest), "{digest}");
    }
    daemon.finish(target);
    target.collect_garbage();
    assert_eq!(standing(target), before);
    let report = scrub(&node, 0);
    assert_eq!(report["wrong"], json!([]), "{report:#}");
}

fn without_a_bundle_on_this_node_a_blob_stays_and_is_named(target: &Target) {
    let node = Node::on(target);
    let archive = imported(&node, target);
    let digest = layer(&archive);
    target.flip_bit(&digest);
    fs::remove_file(node.images().join(BUNDLE)).unwrap();
    let before = standing(target);

    let report = scrub(&node, 1);
    let blob = wrong(&report);
    assert_eq!(blob["state"], "degraded", "{blob:#}");
    assert_eq!(blob["bundles"], json!([BUNDLE]), "{blob:#}");
    let images = blob["images"].as_array().unwrap();
    assert!(images.contains(&json!(NAME)), "{blob:#}");
    assert!(!target.is_right(&digest));
    assert_eq!(standing(target), before);

    let answer = node.airgapd(["scrub"]).exits(1);
    let line = answer.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    let remedy = format!("do copy {BUNDLE} to this node again");
    for part in ["DEGRADED", digest.as_ref(), NAME, remedy.as_str()] {
        assert!(line.contains(part), "{part}: {line}");
    }

    let doctor = node.airgapd(["doctor"]).stdout;
    assert!(
        doctor.contains("1 blob wrong in containerd after the last scrub"),
        "{doctor}"
    );

    // The next run replaces it as soon as the bundle is back.
    node.drop_in(&node.path(BUNDLE));
    assert_eq!(wrong(&scrub(&node, 0))["from"], BUNDLE);
    assert!(target.is_right(&digest));
    assert_eq!(standing(target), before);
    let doctor = node.airgapd(["doctor"]).stdout;
    assert!(!doctor.contains("after the last scrub"), "{doctor}");
}

fn a_wrong_copy_in_the_bundle_is_not_used_and_another_bundle_is(target: &Target) {
    let node = Node::on(target);
    let mut archive = imported(&node, target);
    let digest = layer(&archive);
    target.flip_bit(&digest);
    archive.corrupt(&digest).write_to(&node.images().join(BUNDLE));
    let report = scrub(&node, 1);
    let blob = wrong(&report);
    assert_eq!(blob["state"], "degraded", "{blob:#}");
    let reason = blob["reasons"][0].as_str().unwrap();
    assert!(reason.contains("the copy in app.tar is wrong, too"), "{reason}");
    assert!(!target.is_right(&digest));

    // Another bundle with the same image heals it, under whatever name it comes.
    let daemon = node.start();
    fs::copy(node.path(BUNDLE), node.images().join("again.tar")).unwrap();
    daemon.wait_for_line("again.tar", "bundle imported");
    daemon.finish(target);
    assert_eq!(wrong(&scrub(&node, 0))["from"], "again.tar");
    assert!(target.is_right(&digest));
}

fn a_blob_that_another_namespace_has_is_named_with_it(target: &Target) {
    let (node, other) = (Node::on(target), target.elsewhere());
    let archive = imported(&node, target);
    Node::on(&other).import([node.path(BUNDLE)]).exits(0);
    let digest = layer(&archive);
    target.flip_bit(&digest);
    let (before, theirs) = (standing(target), standing(&other));
    let report = scrub(&node, 1);
    let blob = wrong(&report);
    assert_eq!(blob["state"], "degraded", "{blob:#}");
    let reason = blob["reasons"][0].as_str().unwrap();
    assert!(reason.ends_with(other.namespace()), "{reason}");
    assert_eq!((standing(target), standing(&other)), (before, theirs));

    for name in other.names() {
        other.remove_record(&name);
    }
    other.collect_garbage();
    scrub(&node, 0);
    assert!(target.is_right(&digest));
}

/// A delta leaves layers to its base. So the base is the bundle to bring.
fn the_base_of_a_delta_is_the_bundle_to_bring(target: &Target) {
    let node = Node::on(target);
    let shared = || Layer::files([LayerFile::new("shared", "of both")]);
    let one = Image::new(NAME).platform(native()).with_layer(shared());
    let two = one
        .clone()
        .with_layer(Layer::files([LayerFile::new("file", unique())]));
    let base = bundles::write(&node.path("base.tar"), [one]);
    bundles::write(&node.path("whole.tar"), [two]);
    node.import_and_stop(target, &node.path("base.tar"), 2);
    delta(
        &node.path("whole.tar"),
        &node.path("base.tar"),
        &node.path("delta.tar"),
    );
    node.import_and_stop(target, &node.path("delta.tar"), 3);
    let digest = layer(&base);
    target.flip_bit(&digest);
    fs::remove_file(node.images().join("base.tar")).unwrap();
    let report = scrub(&node, 1);
    let blob = wrong(&report);
    let reasons = blob["reasons"].as_array().unwrap();
    assert!(
        reasons.contains(&json!("delta.tar leaves the blob to base.tar")),
        "{blob:#}"
    );
    let remedy = blob["remedy"].as_str().unwrap();
    assert!(remedy.starts_with("copy base.tar to this node again"), "{blob:#}");
    node.drop_in(&node.path("base.tar"));
    assert_eq!(wrong(&scrub(&node, 0))["from"], "base.tar");
}

/// Blobs that no bundle vouches for are not read, whatever their bytes are.
fn content_of_others_is_left_alone(target: &Target) {
    let node = Node::on(target);
    let archive = imported(&node, target);
    let theirs = target.put_blob(unique().as_bytes(), &[("example.test/by", "another")]);
    target.flip_bit(&theirs);
    target.flip_bit(&layer(&archive));
    let report = scrub(&node, 0);
    assert_eq!((&report["blobs"], &report["read"]), (&json!(5), &json!(5)));
    assert!(!target.is_right(&theirs), "it is as it was");
    assert!(target.blobs()[theirs.as_ref()].contains_key("example.test/by"));
    target.let_go(&theirs);
}

fn three_wrong_blobs_end_a_run_and_the_next_one_continues(target: &Target) {
    let node = Node::on(target);
    let archive = imported(&node, target);
    let mut parts = parts(&archive);
    parts.sort_by_key(ToString::to_string);
    for digest in &parts[..4] {
        target.flip_bit(digest);
    }
    let before = standing(target);
    let answer = node.airgapd(["scrub"]).exits(1);
    assert!(
        answer.stdout.contains("3 wrong blobs ended this run"),
        "{answer:?}"
    );
    for (digest, is_right) in parts.iter().zip([true, true, true, false, true]) {
        assert_eq!(target.is_right(digest), is_right, "{digest}");
    }
    let report = scrub(&node, 0);
    assert_eq!((&report["read"], &report["remaining"]), (&json!(2), &json!(0)));
    assert_eq!(wrong(&report)["digest"], parts[3].to_string());
    assert_eq!(standing(target), before);
    let report = scrub(&node, 0);
    assert_eq!((&report["read"], &report["wrong"]), (&json!(5), &json!([])));
}

fn status(node: &Node, code: i32) -> Value {
    node.airgapd(["status", "-o", "json"]).exits(code).json()
}

/// Returns the content digest of a bundle.
fn content(node: &Node, bundle: &str) -> String {
    let document = node.airgapd(["inspect", "-o", "json", bundle]).exits(0).json();
    document["digest"].as_str().unwrap().to_owned()
}

/// No file on this node has the layer, so only a bundle brings it back.
fn a_layer_that_only_a_receipt_stood_for_stays_degraded_until_a_bundle_brings_it(target: &Target) {
    let node = Node::on(target);
    let archive = bundles::write(&node.path(BUNDLE), [app(NAME)]);
    let file = bundles::text(&node.path(BUNDLE));
    node.import(["--keep", &file]).exits(0);
    let daemon = node.start();
    node.airgapd(["wait", "--timeout", "20s"]).exits(0);
    let lost = layer(&archive);
    target.block_on(target.client().delete_blob(&lost)).unwrap();
    daemon.wait_for_log("degraded: ");
    node.airgapd(["wait", "--timeout", "20s"]).exits(1);

    // The daemon retries now and then. Between the tries the state is that of the loss.
    let is_degraded = |shown: &Value| {
        let bundle = &shown["bundles"][0];
        bundle["state"] == "retrying" && bundle["error"]["class"] == "degraded"
    };
    let mut shown = Value::Null;
    daemon.wait_until("the receipt is degraded", || {
        shown = node.airgapd(["status", "-o", "json"]).json();
        is_degraded(&shown)
    });
    assert_eq!(shown["verdict"]["health"], "degraded", "{shown:#}");
    let content = content(&node, &file);
    let names_the_bundle = |remedy: &Value| {
        let remedy = remedy.as_str().unwrap();
        assert!(remedy.contains(BUNDLE) && remedy.contains(&content), "{remedy}");
    };
    names_the_bundle(&shown["verdict"]["reasons"][0]["remedy"]);
    let wanted = [
        "airgapd_receipts{state=\"degraded\"} 1",
        "airgapd_receipts{state=\"held\"} 0",
        "airgapd_bundles_failed{class=\"degraded\"} 1",
        "airgapd_verdict{state=\"degraded\"} 1",
    ];
    daemon.wait_until("the metrics show the loss", || {
        let (_, metrics) = node.ask("/metrics", &[]);
        wanted.iter().all(|line| metrics.contains(line))
    });

    let report = scrub(&node, 1);
    let blob = wrong(&report);
    assert_eq!(
        (&blob["digest"], &blob["state"], &blob["found"]),
        (&json!(lost), &json!("degraded"), &json!("containerd lacks it"))
    );
    assert_eq!((&report["absent"], &report["read"]), (&json!(0), &json!(4)));
    names_the_bundle(&blob["remedy"]);
    let answer = node.airgapd(["scrub"]).exits(1);
    assert!(!answer.stdout.contains("the daemon restores"), "{answer:?}");

    node.drop_in(&node.path(BUNDLE));
    daemon.wait_until("the layer is back", || target.digests().contains(lost.as_ref()));
    node.airgapd(["wait", "--timeout", "20s"]).exits(0);
    scrub(&node, 0);
    daemon.finish(target);
}

fn a_missing_blob_that_a_bundle_here_has_is_left_to_the_daemon(target: &Target) {
    let node = Node::on(target);
    let archive = imported(&node, target);
    let lost = layer(&archive);
    target.block_on(target.client().delete_blob(&lost)).unwrap();
    let report = scrub(&node, 0);
    assert_eq!((&report["absent"], &report["wrong"]), (&json!(1), &json!([])));
    let answer = node.airgapd(["scrub"]).exits(0);
    assert!(answer.stdout.contains("the daemon restores"), "{answer:?}");
    fs::remove_file(node.images().join(BUNDLE)).unwrap();
    let report = scrub(&node, 1);
    let blob = wrong(&report);
    assert_eq!(
        (&blob["state"], &blob["found"]),
        (&json!("degraded"), &json!("containerd lacks it"))
    );
    let remedy = blob["remedy"].as_str().unwrap();
    assert!(
        remedy.starts_with(&format!("copy {BUNDLE} to this node again")),
        "{blob:#}"
    );
}

/// A missing answer says nothing about the bytes. Only a loss that containerd itself reports does.
fn a_containerd_that_does_not_answer_makes_no_blob_wrong(target: &Target) {
    let node = Node::on(target);
    let archive = imported(&node, target);
    target.flip_bit(&layer(&archive));
    fs::remove_file(node.images().join(BUNDLE)).unwrap();
    scrub(&node, 1);
    let memory = || {
        let text = fs::read_to_string(node.state().join("scrub.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["wrong"].clone()
    };
    let (before, known) = (standing(target), memory());
    assert_eq!(known.as_object().unwrap().len(), 1, "{known:#}");
    let fake = target.as_fake().unwrap();
    for (code, message) in [
        (Code::Unavailable, "transport is closing: unavailable"),
        (Code::Cancelled, "context canceled"),
        (Code::DeadlineExceeded, "context deadline exceeded"),
        (Code::Unknown, "database not open"),
    ] {
        fake.inject(Fault::FailAll {
            rpc: "Content.Read",
            code,
            message: message.to_owned(),
        });
        let answer = node.airgapd(["scrub"]).exits(3);
        assert!(answer.stdout.is_empty(), "{code:?}: {answer:?}");
        assert_eq!(memory(), known, "{code:?}");
        fake.clear_faults();
    }
    // A stream may end early without an error. Only a blob that has lost its end is wrong.
    fake.inject(Fault::ShortRead { bytes: 1, reads: 1 });
    node.airgapd(["scrub"]).exits(3);
    assert_eq!(memory(), known);
    fake.clear_faults();
    for loss in [
        Fault::FailAll {
            rpc: "Content.Read",
            code: Code::DataLoss,
            message: "the blob is damaged".to_owned(),
        },
        Fault::ShortRead {
            bytes: 1,
            reads: u64::MAX,
        },
    ] {
        fake.inject(loss);
        let report = scrub(&node, 1);
        assert!(report["wrong"].as_array().unwrap().len() > 1, "{report:#}");
        fake.clear_faults();
    }
    assert_eq!(standing(target), before);
}

/// A wrong blob is a fault of the node until a scrub finds it right.
fn all_outputs_show_the_last_scrub(target: &Target) {
    let (node, other) = (Node::on(target), target.elsewhere());
    let archive = bundles::write(&node.images().join(BUNDLE), [app(NAME)]);
    let daemon = node.start();
    node.airgapd(["wait", "--timeout", "20s"]).exits(0);
    assert_eq!(status(&node, 0)["scrub"], Value::Null);
    // A blob of another namespace cannot be replaced.
    Node::on(&other).import([node.images().join(BUNDLE)]).exits(0);
    target.flip_bit(&layer(&archive));
    scrub(&node, 1);
    let shown = status(&node, 1);
    let told = &shown["scrub"];
    assert_eq!(
        (&told["read"], &told["blobs"], &told["remaining"], &told["wrong"]),
        (&json!(5), &json!(5), &json!(0), &json!(1))
    );
    assert!(
        told["at"].is_string() && told["finished_at"].is_string(),
        "{told:#}"
    );
    assert_eq!(shown["verdict"]["health"], "degraded", "{shown:#}");
    let reason = &shown["verdict"]["reasons"][0];
    assert_eq!(
        reason["text"],
        "1 blob is wrong in containerd after the last scrub"
    );
    let page = node.airgapd(["status", "-v"]).exits(1).stdout;
    assert!(page.contains("read 5 of 5 blobs, 1 wrong"), "{page}");
    let doctor = node.airgapd(["doctor"]).stdout;
    assert!(
        doctor.contains("1 blob wrong in containerd after the last scrub"),
        "{doctor}"
    );
    let (_, metrics) = node.ask("/metrics", &[]);
    assert!(metrics.contains("airgapd_scrub_wrong_blobs 1"), "{metrics}");
    assert!(
        metrics.contains("airgapd_scrub_last_timestamp_seconds "),
        "{metrics}"
    );

    for name in other.names() {
        other.remove_record(&name);
    }
    other.collect_garbage();
    scrub(&node, 0);
    let shown = status(&node, 0);
    assert_eq!(shown["scrub"]["wrong"], 0, "{shown:#}");
    let doctor = node.airgapd(["doctor"]).stdout;
    assert!(doctor.contains("read 5 of 5 blobs"), "{doctor}");
    daemon.finish(target);
    // Without a daemon the state folder has the same.
    let page = node.airgapd(["status", "-v"]).stdout;
    assert!(page.contains("read 5 of 5 blobs, none wrong"), "{page}");
}

on_each_containerd! {
    a_flipped_bit_is_replaced_from_the_bundle_and_all_else_stands,
    a_running_daemon_does_not_disturb_it,
    without_a_bundle_on_this_node_a_blob_stays_and_is_named,
    a_wrong_copy_in_the_bundle_is_not_used_and_another_bundle_is,
    a_blob_that_another_namespace_has_is_named_with_it,
    content_of_others_is_left_alone,
    a_layer_that_only_a_receipt_stood_for_stays_degraded_until_a_bundle_brings_it,
    three_wrong_blobs_end_a_run_and_the_next_one_continues,
}

/// The label of a wrong config keeps the snapshots. They must survive the collection in between.
fn an_unpacked_image_stays_unpacked(target: &Target) {
    let node = Node::on(target);
    node.configure_also("unpack: before-record");
    let archive = imported(&node, target);
    let (before, snapshots) = (standing(target), target.snapshots());
    assert!(snapshots.len() >= 2, "{snapshots:?}");
    target.flip_bit(&archive.images[0].manifests[0].config);
    scrub(&node, 0);
    target.collect_garbage();
    assert_eq!(target.snapshots(), snapshots);
    assert_eq!(standing(target), before);
}

on_each_real_containerd!(an_unpacked_image_stays_unpacked);

/// Starts a scrub that containerd answers no write of, and kills it between deletion and write.
fn killed_before_the_write(node: &Node, target: &Target, digest: &Digest) {
    let fake = target.as_fake().unwrap();
    let writes = fake.calls("Content.Write");
    fake.inject(Fault::Delay {
        rpc: "Content.Write",
        by: Duration::from_secs(3600),
    });
    let mut scrub = started(node, &[]);
    wait_until("the write has begun", || fake.calls("Content.Write") > writes);
    assert!(!target.digests().contains(digest.as_ref()));
    scrub.kill().unwrap();
    scrub.wait().unwrap();
    fake.clear_faults();
}

fn started(node: &Node, arguments: &[&str]) -> Child {
    let mut command = node.command(["scrub"]);
    command.args(arguments).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("the program starts")
}

fn a_scrub_that_is_killed_before_the_write_is_finished_by_the_next(target: &Target) {
    let node = Node::on(target);
    let archive = imported(&node, target);
    let before = standing(target);
    for digest in parts(&archive) {
        target.flip_bit(&digest);
        killed_before_the_write(&node, target, &digest);
        target.collect_garbage();
        let report = scrub(&node, 0);
        let blob = wrong(&report);
        assert_eq!(
            (&blob["digest"], &blob["state"]),
            (&json!(digest), &json!("replaced"))
        );
        target.collect_garbage();
        assert_eq!(standing(target), before, "{digest}");
        assert!(target.is_right(&digest) && target.leases().is_empty());
    }
}

fn a_scrub_that_is_killed_before_the_write_is_finished_by_the_daemon(target: &Target) {
    let node = Node::on(target);
    let archive = imported(&node, target);
    let digest = archive.images[0].manifests[0].config.clone();
    let theirs = ("example.test/by".to_owned(), "another".to_owned());
    target.block_on(async {
        let client = containerd::Client::connect(target.socket(), target.namespace()).await;
        let labels = BTreeMap::from([theirs.clone()]);
        client.unwrap().set_blob_labels(&digest, &labels).await.unwrap();
    });
    let before = standing(target);
    target.flip_bit(&digest);
    killed_before_the_write(&node, target, &digest);
    let daemon = node.start();
    daemon.wait_until("the blob is back", || target.digests().contains(digest.as_ref()));
    daemon.wait_for_log("is missing in containerd: restoring it");
    assert!(target.is_right(&digest));
    daemon.wait_until("the daemon's lease is returned", || {
        target.leases() == BTreeSet::from(["airgapd-scrub".to_owned()])
    });
    daemon.stop();
    // The next run gives the labels of others back, and returns the lease.
    let report = scrub(&node, 0);
    assert_eq!(report["wrong"], json!([]), "{report:#}");
    target.collect_garbage();
    assert_eq!(standing(target), before);
    assert!(target.leases().is_empty());
}

/// With bytes that arrive wrong once, the disk is not to blame, and nothing is replaced.
fn a_blob_that_is_right_at_the_second_reading_stays(target: &Target) {
    let node = Node::on(target);
    imported(&node, target);
    let before = standing(target);
    let fake = target.as_fake().unwrap();
    fake.inject(Fault::Fail {
        rpc: "Content.Read",
        nth: 1,
        code: Code::Unknown,
        message: "read /blobs/sha256/x: input/output error".to_owned(),
    });
    let report = scrub(&node, 0);
    let blob = wrong(&report);
    assert_eq!(blob["state"], "right-on-disk", "{blob:#}");
    assert_eq!(standing(target), before);
    assert_eq!(fake.calls("Content.Delete"), 0);
}

fn an_interrupted_run_continues_where_it_was(target: &Target) {
    let node = Node::on(target);
    let images = (0..6).map(|n| bundles::large(&format!("registry.test/app{n}:1"), 2 << 20));
    bundles::write(&node.path(BUNDLE), images);
    node.import_and_stop(target, &node.path(BUNDLE), 12);
    let place = || -> Option<String> {
        let text = fs::read_to_string(node.state().join("scrub.json")).ok()?;
        let memory: Value = serde_json::from_str(&text).ok()?;
        memory["after"].as_str().map(str::to_owned)
    };
    let mut run = started(&node, &["--rate-limit", "1MiB"]);
    wait_until("a place is kept", || place().is_some());
    let busy = node.airgapd(["scrub"]).exits(1);
    assert!(
        busy.stderr.contains("another scrub uses the state folder"),
        "{busy:?}"
    );
    run.kill().unwrap();
    run.wait().unwrap();
    let report = scrub(&node, 0);
    let (blobs, read) = (
        report["blobs"].as_u64().unwrap(),
        report["read"].as_u64().unwrap(),
    );
    assert!(blobs == 18 && (1..blobs).contains(&read), "{report:#}");
    assert_eq!(place(), None);
    assert_eq!(scrub(&node, 0)["read"], 18);
}

/// With `onRemoval: delete`, the images of a bundle go with it.
fn a_bundle_that_is_removed_during_a_run_leaves_no_blob_missing(target: &Target) {
    let node = Node::on(target);
    node.configure_also("onRemoval: delete");
    let images = (0..6).map(|n| bundles::large(&format!("registry.test/app{n}:1"), 2 << 20));
    bundles::write(&node.path(BUNDLE), images);
    node.import_and_stop(target, &node.path(BUNDLE), 12);
    let daemon = node.start();
    let mut scrub = node.command(["scrub", "-o", "json", "--rate-limit", "1MiB"]);
    scrub
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let run = scrub.spawn().expect("the program starts");
    wait_until("a place is kept", || {
        let text = fs::read_to_string(node.state().join("scrub.json")).unwrap_or_default();
        serde_json::from_str(&text).is_ok_and(|memory: Value| memory["after"].is_string())
    });
    fs::remove_file(node.images().join(BUNDLE)).unwrap();
    daemon.wait_until("the records are gone", || target.names().is_empty());
    target.collect_garbage();
    let answer = Answer::from(run.wait_with_output().unwrap()).exits(0);
    let report = answer.json();
    assert_eq!((&report["wrong"], &report["remaining"]), (&json!([]), &json!(0)));
    let (blobs, read) = (report["blobs"].as_u64(), report["read"].as_u64());
    assert!(read < blobs, "blobs were gone before they were read: {report:#}");
    daemon.finish(target);
}

fn without_a_ledger_or_a_containerd_the_exit_status_says_so(target: &Target) {
    let node = Node::on(target);
    let answer = node.airgapd(["scrub"]).exits(1);
    assert!(
        answer.stderr.contains("there is no readable ledger"),
        "{answer:?}"
    );
    imported(&node, target);
    target.as_fake().unwrap().kill();
    node.airgapd(["scrub"]).exits(3);
}

on_the_fake! {
    a_missing_blob_that_a_bundle_here_has_is_left_to_the_daemon,
    a_containerd_that_does_not_answer_makes_no_blob_wrong,
    all_outputs_show_the_last_scrub,
    the_base_of_a_delta_is_the_bundle_to_bring,
    the_document_has_stable_keys,
    a_scrub_that_is_killed_before_the_write_is_finished_by_the_next,
    a_scrub_that_is_killed_before_the_write_is_finished_by_the_daemon,
    a_blob_that_is_right_at_the_second_reading_stays,
    an_interrupted_run_continues_where_it_was,
    a_bundle_that_is_removed_during_a_run_leaves_no_blob_missing,
    without_a_ledger_or_a_containerd_the_exit_status_says_so,
}
