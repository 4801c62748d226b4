//! A namespace with very many image records, most of them of other importers: the features that
//! still work, and the limit for bundles.

use std::fs;
use std::time::{Duration, Instant};

use bundle::fixtures::{Image, Layer, Layout};
use containerd::ImageRecord;
use fake_containerd::{Code, Fault};
use lab::Generation;
use oci_spec::image::{Descriptor, MediaType};
use serde_json::{Value, json};

use crate::removal;
use crate::support::bundles::{self, image, native, text};
use crate::support::target::PINNED;
use crate::support::{Node, Place, Target, on_the_fake, run_on};

const OURS: &str = "registry.test/ours:1";

/// Largest message of containerd, in bytes.
const MESSAGE: usize = 16 << 20;

/// Creates records of other importers, each with `labels` labels of 4 KiB.
fn crowd(target: &Target, records: usize, labels: usize) {
    let document = br#"{"schemaVersion":2,"layers":[]}"#;
    let digest = target.put_blob(document, &[]);
    let descriptor = Descriptor::new(MediaType::ImageManifest, document.len() as u64, digest);
    let value = "v".repeat(4080);
    let keys: Vec<String> = (0..labels).map(|number| format!("theirs.{number}")).collect();
    let labels: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), value.as_str())).collect();
    for number in 0..records {
        target.put_record(&format!("registry.test/theirs:{number}"), &descriptor, &labels);
    }
}

/// If other importers alone exceed the bound, it applies only to airgapd's own records.
fn where_others_alone_have_more_records_than_the_bound_it_holds_for_ours(target: &Target) {
    let node = Node::on(target);
    for name in ["first", "second"] {
        bundles::write(
            &node.path(&format!("{name}.tar")),
            [image(&format!("registry.test/{name}:1"))],
        );
    }
    node.configure_also("limits: {records: 3}");
    // A list that fits into a message, and a list that does not.
    for (records, labels, ours) in [(4, 0, 0), (70, 70, 2)] {
        crowd(target, records, labels);
        let file = if ours == 0 { "first.tar" } else { "second.tar" };
        let before = target.names();
        let answer = node.import([node.path(file)]);
        if ours == 0 {
            answer.exits(0);
            assert_eq!(target.names().len(), records + 2);
            continue;
        }
        let said = answer.said();
        let reason = "too many image records: other programs already have more than 3, so only airgapd's 2 count, and the \
                      bundle adds 2, but `limits.records` is 3";
        assert!(said.contains(reason), "{said}");
        assert_eq!(target.names(), before);
        // Records that exist are restored, no matter how many there are.
        node.import([node.path("first.tar")]).exits(0);
    }
}

fn length(record: &ImageRecord) -> usize {
    let labels = record.labels.iter().map(|(key, value)| key.len() + value.len());
    record.name.len() + labels.sum::<usize>()
}

/// `ctr images ls` fails here: message larger than max.
fn beside_more_records_than_containerd_can_list_images_are_imported_healed_and_released(target: &Target) {
    crowd(target, 70, 70);
    let theirs = target.records();
    assert!(theirs.values().map(length).sum::<usize>() > MESSAGE);
    let node = Node::on(target);
    bundles::write(&node.images().join("a.tar"), [image(OURS)]);
    let daemon = node.start();
    let is_in_place = || {
        let record = target.record(OURS);
        record.is_some_and(|record| record.labels.contains_key(PINNED))
    };
    daemon.wait_until("the image", is_in_place);
    daemon.wait_until("all leases are returned", || target.leases().is_empty());
    target.remove_record(OURS);
    daemon.wait_until("the record is back", is_in_place);

    node.airgapd(["wait", "--timeout", "60s"]).exits(0);
    let status = node.airgapd(["status", "-o", "json"]).exits(0).json();
    assert_eq!(status["bundles"][0]["state"], "done", "{status:#}");
    let list = node.path("list.txt");
    fs::write(&list, OURS).unwrap();
    node.airgapd(["verify", "--images", &text(&list)]).exits(0);
    let doctor = node.airgapd(["doctor"]).said();
    assert!(doctor.contains("no other importer uses this folder"), "{doctor}");

    let log = daemon.finish(target);
    assert!(!log.contains("went away"), "{log}");
    node.airgapd(["release", "--all"]).exits(0);
    assert!(!is_in_place());
    let mut left = target.records();
    left.retain(|name, _| theirs.contains_key(name));
    assert_eq!(left, theirs, "the records of other importers are unchanged");
}

fn beside_very_many_records_a_folder_that_vanished_is_accounted_for_once_it_is_released(target: &Target) {
    crowd(target, 70, 70);
    removal::another_folder_in_its_place_unpins_nothing_until_the_operator_says_so(target);
}

/// Between the imports, a comparison finds an incomplete bundle and cannot decide about its pins.
fn beside_very_many_records_a_pin_goes_that_only_the_bundle_before_last_vouched_for(target: &Target) {
    crowd(target, 70, 70);
    let node = Node::on(target);
    let others = "registry.test/others:1";
    bundles::write(&node.images().join("a.tar"), [image("registry.test/old:1")]);
    bundles::write(&node.images().join("b.tar"), [image(others)]);
    let daemon = node.start();
    let is_pinned = |name: &str| {
        let record = target.record(name);
        record.is_some_and(|record| record.labels.contains_key(PINNED))
    };
    daemon.wait_until("both are imported", || {
        is_pinned("registry.test/old:1") && is_pinned(others)
    });
    let ours = image(OURS);
    let mut half = bundles::layout([ours.clone(), image("registry.test/broken:1")]).build();
    let layer = half.images[1].manifests[0].layers[0].clone();
    half.remove_blob(&layer);
    half.write_to(&node.path("a.tar"));
    node.drop_in(&node.path("a.tar"));
    daemon.wait_for_log("is not in the bundle");
    assert!(is_pinned(OURS));
    target.remove_record(others);
    daemon.wait_until("a comparison has found what is missing", || is_pinned(others));
    assert!(is_pinned("registry.test/old:1"));

    bundles::write(&node.path("a.tar"), [ours]);
    node.drop_in(&node.path("a.tar"));
    daemon.wait_until("its pin goes", || !is_pinned("registry.test/old:1"));
    assert!(is_pinned(OURS));
    daemon.finish(target);
}

#[test]
fn beside_more_records_than_containerd_2_1_can_list_images_are_imported_healed_and_released() {
    run_on(
        Place::Real(Generation::V2_1),
        beside_more_records_than_containerd_can_list_images_are_imported_healed_and_released,
    );
}

/// No known containerd does this. A record that is too large by itself would cause it.
fn a_list_of_which_no_part_fits_is_told_and_the_connection_stays(target: &Target) {
    let fake = target.as_fake().expect("the target is the stand-in");
    fake.inject(Fault::FailAll {
        rpc: "Images.List",
        code: Code::ResourceExhausted,
        message: "grpc: trying to send message larger than max (39387364 vs. 16777216)".to_owned(),
    });
    let node = Node::on(target);
    let daemon = node.start();
    daemon.wait_for_log("exceeds the size limit of containerd");
    fake.clear_faults();
    bundles::write(&node.path("a.tar"), [image(OURS)]);
    node.drop_in(&node.path("a.tar"));
    daemon.wait_until("the image", || target.record(OURS).is_some());
    let log = daemon.finish(target);
    assert!(!log.contains("went away"), "{log}");
}

/// An image gets two records, by its name and by its digest.
fn a_bundle_that_would_add_too_many_records_is_refused_before_anything_is_written(target: &Target) {
    let node = Node::on(target);
    crowd(target, 3, 0);
    let bundle = node.path("a.tar");
    bundles::write(&bundle, [image(OURS)]);
    let (names, blobs) = (target.names(), target.digests());
    let configured = fs::read_to_string(node.path("config.yaml")).unwrap();
    let file = text(&bundle);
    let rows = [
        (
            4,
            "too many image records: the namespace has 3 (including those of other programs) and the bundle adds 2, but \
             `limits.records` is 4",
        ),
        (
            1,
            "too many image records: the bundle asks for 2, including digests and aliases, but `limits.records` is 1",
        ),
    ];
    for (most, reason) in rows {
        node.configure(&configured);
        node.configure_also(&format!("limits: {{records: {most}}}"));
        for arguments in [&[file.as_str(), "--dry-run"][..], &[file.as_str()]] {
            let said = node.import(arguments).said();
            assert!(said.contains(reason), "{said}");
            assert_eq!((target.names(), target.digests()), (names.clone(), blobs.clone()));
        }
    }
    assert!(target.leases().is_empty());

    node.configure(&configured);
    node.import([&bundle]).exits(0);
    assert_eq!(target.names().len(), 5);
}

/// Writes bundles with the largest allowed number of names and of images. No image has its layer.
/// So nothing is imported, but everything is decided.
fn write_at_the_limits(node: &Node) {
    let element = |n: usize| {
        let tags: Vec<String> = (0..256)
            .map(|tag| format!("registry.test/names{n}:{tag}"))
            .collect();
        json!({"Config": "config.json", "RepoTags": tags, "Layers": ["absent.tar"]})
    };
    let mut names = Layout::docker().build();
    names.set(
        "manifest.json",
        json!((0..190).map(element).collect::<Vec<_>>()).to_string(),
    );
    let config = json!({"os": "linux", "architecture": native().split('/').nth(1)});
    names.add("config.json", config.to_string().into_bytes());
    names.write_to(&node.path("names.tar"));

    let layers: Vec<Layer> = (0..7)
        .map(|n| Layer::new(format!("layer {n}").into_bytes()))
        .collect();
    let image = |n: usize| {
        let image = Image::new(&format!("registry.test/images:{n}")).platform(native());
        layers.iter().cloned().fold(image, Image::with_layer)
    };
    // Its entry and manifest, its config and seven layers are ten descriptors.
    let mut images = bundles::layout((0..4_900).map(image)).build();
    let layer = images.images[0].manifests[0].layers[0].clone();
    images.remove_blob(&layer);
    images.write_to(&node.path("images.tar"));
}

/// Reading and deciding take seconds here, and the daemon answers in the meantime.
fn while_bundles_at_the_limits_are_read_and_decided_about_status_is_answered(target: &Target) {
    let node = Node::on(target);
    write_at_the_limits(&node);
    let daemon = node.start();
    for file in ["names.tar", "images.tar"] {
        fs::rename(node.path(file), node.images().join(file)).expect("the file can be moved");
    }
    let mut longest = Duration::ZERO;
    daemon.wait_until("both are refused", || {
        let asked = Instant::now();
        let (_, status) = node.ask("/v1/status", &[]);
        longest = longest.max(asked.elapsed());
        let status: Value = serde_json::from_str(&status).expect("JSON");
        let bundles = status["bundles"].as_array().expect("a list");
        bundles.len() == 2 && bundles.iter().all(|bundle| bundle["state"] == "failed")
    });
    assert!(target.names().is_empty(), "no image of them is whole");
    assert!(longest < Duration::from_secs(2), "an answer took {longest:?}");
    daemon.finish(target);
}

on_the_fake! {
    while_bundles_at_the_limits_are_read_and_decided_about_status_is_answered,
    beside_very_many_records_a_folder_that_vanished_is_accounted_for_once_it_is_released,
    beside_very_many_records_a_pin_goes_that_only_the_bundle_before_last_vouched_for,
    a_list_of_which_no_part_fits_is_told_and_the_connection_stays,
    beside_more_records_than_containerd_can_list_images_are_imported_healed_and_released,
    where_others_alone_have_more_records_than_the_bound_it_holds_for_ours,
    a_bundle_that_would_add_too_many_records_is_refused_before_anything_is_written,
}
