//! `airgapd import`: its effects, its output and its limits.

use std::fs;
use std::time::{Duration, Instant};

use bundle::fixtures::{Image, Manifest, Node as Tree};

use crate::support::bundles::{
    self, PLATFORMS, all_records, image, multi_platform, native, needed, needed_here, records_of, text,
};
use crate::support::node::outcomes;
use crate::support::target::{BUNDLE, BY_HAND, MANAGED, PINNED};
use crate::support::{Node, Target, on_each_containerd, on_the_fake};

/// Statement 38: nothing is sent and no record changes. containerd's events prove it.
fn the_same_bundle_again_moves_nothing(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("bundle.tar"));
    let names = ["registry.test/again/a:1", "registry.test/again/b:1"];
    bundles::write(file.as_ref(), names.map(|name| multi_platform(name, &PLATFORMS)));
    let first = node.import([&file]).exits(0).bundle();
    assert_eq!(first["outcome"], "imported");
    assert!(first["blobs"]["sent_bytes"].as_u64().unwrap() > 0, "{first:#}");
    assert!(
        outcomes(&first).iter().all(|(_, outcome)| outcome == "created"),
        "{first:#}"
    );

    let changes = target.watch();
    if let Some(fake) = target.as_fake() {
        fake.reset_log();
    }
    let again = node.import([&file]).exits(0).bundle();
    assert_eq!(again["outcome"], "unchanged");
    assert_eq!(again["blobs"]["sent"], 0, "{again:#}");
    assert_eq!(again["blobs"]["sent_bytes"], 0, "{again:#}");
    assert_eq!(again["blobs"]["present"], first["blobs"]["sent"], "{again:#}");
    assert_eq!(outcomes(&again).len(), 4);
    assert!(
        outcomes(&again).iter().all(|(_, outcome)| outcome == "unchanged"),
        "{again:#}"
    );
    if let Some(fake) = target.as_fake() {
        assert_eq!(fake.mutations(), [], "nothing is written, and nothing leased");
    }
    assert_eq!(changes.so_far(), []);
}

/// Statement 21: the better match wins, in any order.
fn one_name_for_two_platforms_goes_to_the_one_that_runs_here(target: &Target) {
    let foreign = if native() == "linux/amd64" {
        "linux/arm64/v8"
    } else {
        "linux/amd64"
    };
    for (number, order) in [[native(), foreign], [foreign, native()]].into_iter().enumerate() {
        let node = Node::on(target);
        let file = text(&node.path("flat.tar"));
        let name = format!("registry.test/flat:{number}");
        let archive = bundles::write(
            file.as_ref(),
            order.map(|platform| multi_platform(&name, &[platform])),
        );
        node.import([&file]);
        let ours = order.iter().position(|platform| *platform == native()).unwrap();
        assert_eq!(
            *target.expect_record(&name).target.digest(),
            archive.images[ours].root,
            "{order:?}"
        );
    }
}

/// Statement 28: containerd itself would create a record for this image.
fn an_image_whose_config_says_another_architecture_is_refused(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("foreign.tar"));
    let manifest = Manifest::new("linux/s390x")
        .layer("foreign")
        .platform_in_config_only();
    bundles::write(
        file.as_ref(),
        [Image::new("registry.test/foreign:1").manifest(manifest)],
    );
    let answer = node.import([&file]).exits(1);
    assert!(target.record("registry.test/foreign:1").is_none());
    assert!(
        answer.said().contains("s390x") && answer.said().contains("--platform"),
        "{answer:?}"
    );
}

/// Statement 29.
fn a_nested_index_of_foreign_platforms_gets_no_record_and_the_platforms_are_said(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("nested.tar"));
    let foreign = ["linux/s390x", "linux/ppc64le"].map(|p| Tree::from(Manifest::new(p).layer(p)));
    let tree = Tree::Index(vec![Tree::Index(foreign.into())]);
    bundles::write(
        file.as_ref(),
        [
            Image::new("registry.test/nested:1").root(tree),
            image("registry.test/beside:1"),
        ],
    );
    let answer = node.import([&file]).exits(0);
    assert!(target.record("registry.test/nested:1").is_none());
    assert!(target.record("registry.test/beside:1").is_some());
    assert!(answer.said().contains("s390x"), "{answer:?}");
}

/// Statement 30: `docker save` with containerd's store and partial pulls write such archives.
fn an_index_with_only_this_nodes_platform_in_the_archive_is_taken_as_the_index(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("partial.tar"));
    let name = "registry.test/partial:1";
    let mut archive = bundles::layout([multi_platform(name, &PLATFORMS)]).build();
    let needed = needed_here(&archive.images);
    for manifest in archive.images[0].manifests.clone() {
        if !needed.contains(&manifest.digest.to_string()) {
            for digest in bundles::closure(&manifest) {
                archive.remove_blob(&digest.parse().unwrap());
            }
        }
    }
    archive.write_to(file.as_ref());
    node.import([&file]).exits(0);
    assert_eq!(
        *target.expect_record(name).target.digest(),
        archive.images[0].root
    );
    target.collect_garbage();
    assert_eq!(target.digests(), needed);
}

fn another_nodes_platform_is_taken_as_containerd_there_would(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("seven.tar"));
    let name = "registry.test/seven:1";
    let platforms = [
        "linux/amd64",
        "linux/arm64/v8",
        "linux/arm/v7",
        "linux/arm/v6",
        "linux/arm/v5",
        "linux/s390x",
        "linux/ppc64le",
    ];
    let archive = bundles::write(file.as_ref(), [multi_platform(name, &platforms)]);
    let answer = node.import(["--platform", "linux/arm64", &file]).exits(0);
    assert_eq!(target.names(), records_of(name, &archive.images[0]).into());
    target.collect_garbage();
    assert_eq!(
        target.digests(),
        needed(&archive.images, |platform| platform.starts_with("linux/arm"))
    );
    let platforms = &answer.bundle()["images"][0]["platforms"];
    assert_eq!(platforms.as_array().unwrap().len(), 4, "{platforms}");
    assert!(
        platforms[0].as_str().unwrap().starts_with("linux/arm64"),
        "best first: {platforms}"
    );
}

fn a_platform_that_the_bundle_has_not_gets_no_record_and_is_told_what_there_is(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("bundle.tar"));
    bundles::write(file.as_ref(), [multi_platform("registry.test/app:1", &PLATFORMS)]);
    let answer = node.import(["--platform", "linux/riscv64", &file]).exits(1);
    assert_eq!(answer.bundle()["outcome"], "skipped");
    for platform in ["linux/amd64", "linux/arm64", "linux/arm/v7"] {
        assert!(answer.said().contains(platform), "{platform}: {answer:?}");
    }
    assert!(target.names().is_empty() && target.blobs().is_empty());
}

fn a_dry_run_prints_the_plan_and_writes_nothing(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("bundle.tar"));
    let name = "registry.test/app:1";
    let archive = bundles::write(file.as_ref(), [multi_platform(name, &PLATFORMS)]);
    let plan = node.airgapd(["import", "--dry-run", &file]).exits(0);
    let layer = &archive.images[0].manifests[0].layers[0].to_string();
    assert!(
        plan.stdout.contains(name) && plan.stdout.contains(layer),
        "{plan:?}"
    );
    let planned = node.import(["--dry-run", &file]).exits(0).bundle();
    assert!(target.names().is_empty() && target.blobs().is_empty() && target.leases().is_empty());
    if let Some(fake) = target.as_fake() {
        assert_eq!(fake.mutations(), []);
    }

    let done = node.import([&file]).exits(0).bundle();
    for document in ["images", "blobs"] {
        assert_eq!(planned[document], done[document], "the import matches the plan");
    }
}

/// The importer owns a file outside the folder, and the daemon owns a file inside.
fn the_place_of_a_file_says_who_vouches_for_its_images(target: &Target) {
    let node = Node::on(target);
    let (outside, inside) = (node.path("outside.tar"), node.images().join("inside.tar"));
    bundles::write(&outside, [image("registry.test/outside:1")]);
    bundles::write(&inside, [image("registry.test/inside:1")]);
    node.import([&outside, &inside]).exits(0);

    let by_hand = target.labels("registry.test/outside:1");
    assert_eq!(by_hand.get(BY_HAND).map(String::as_str), Some("outside.tar"));
    assert!(!by_hand.keys().any(|key| key.starts_with(BUNDLE)), "{by_hand:?}");
    let by_bundle = target.labels("registry.test/inside:1");
    assert!(
        by_bundle
            .iter()
            .any(|(key, value)| key.starts_with(BUNDLE) && value == "inside.tar"),
        "{by_bundle:?}"
    );
    assert!(!by_bundle.contains_key(BY_HAND), "{by_bundle:?}");
    for name in ["registry.test/outside:1", "registry.test/inside:1"] {
        assert!(target.is_pinned(name), "{name}");
    }
}

fn an_import_beside_a_running_daemon_and_the_daemon_leave_each_other_alone(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let (outside, inside) = (node.path("outside.tar"), node.path("inside.tar"));
    let images = |prefix: &str| ["a", "b"].map(|tag| image(&format!("registry.test/{prefix}:{tag}")));
    let by_hand = bundles::write(&outside, images("outside"));
    let by_daemon = bundles::write(&inside, images("inside"));
    let dropped = node.drop_in(&inside);
    node.import([&outside]).exits(0);
    // The daemon may be importing the same file now, or may have just finished it.
    node.import([&dropped]).exits(0);
    let names = [
        "registry.test/outside:a",
        "registry.test/outside:b",
        "registry.test/inside:a",
        "registry.test/inside:b",
    ];
    let expected = all_records(
        names
            .into_iter()
            .zip(by_hand.images.iter().chain(&by_daemon.images)),
    );
    daemon.wait_until("all of it", || {
        target.names() == expected && target.leases().is_empty()
    });
    target.collect_garbage();
    for name in names {
        assert!(target.is_pinned(name), "{name}");
    }
    let log = daemon.finish(target);
    assert!(!log.contains("ERROR"), "{log}");
}

/// Statement 46: labels of other importers survive every change of a record.
fn labels_of_others_survive(target: &Target) {
    let node = Node::on(target);
    let name = "registry.test/shared:1";
    let (first, second) = (node.path("first.tar"), node.path("second.tar"));
    bundles::write(&first, [image(name)]);
    let moved = bundles::write(&second, [image(name)]);
    node.import([&first]).exits(0);
    target.set_labels(name, &[("example.test/note", Some("mine")), (PINNED, None)]);

    let answer = node.import([&first]).exits(0).bundle();
    assert!(
        outcomes(&answer).contains(&(name.to_owned(), "relabelled".to_owned())),
        "{answer:#}"
    );
    let answer = node.import([&second]).exits(0).bundle();
    assert!(
        outcomes(&answer).contains(&(name.to_owned(), "retargeted".to_owned())),
        "{answer:#}"
    );

    assert_eq!(*target.expect_record(name).target.digest(), moved.images[0].root);
    assert!(target.is_pinned(name));
    assert_eq!(
        target.labels(name).get("example.test/note").map(String::as_str),
        Some("mine")
    );
}

/// Several files give one exit code. The code is 2 if any cause has it, or else 3. Otherwise it is
/// 1 if an image was imported or the causes differ, or else 5.
fn the_exit_code_of_several_bundles_says_the_worst(target: &Target) {
    let node = Node::on(target);
    let (good, bad, foreign) = (
        node.path("good.tar"),
        node.path("bad.tar"),
        node.path("foreign.tar"),
    );
    bundles::write(&good, [image("registry.test/good:1")]);
    bundles::write(
        &foreign,
        [multi_platform("registry.test/foreign:1", &["linux/s390x"])],
    );
    fs::write(&bad, "no bundle\n".repeat(200)).unwrap();
    for (files, code) in [
        (vec![&bad], 5),
        (vec![&bad, &bad], 5),
        (vec![&foreign], 1),
        (vec![&bad, &foreign], 1),
        (vec![&good, &bad], 1),
        (vec![&good, &good], 0),
    ] {
        let answer = node.import(&files).exits(code);
        assert_eq!(
            answer.json()["bundles"].as_array().unwrap().len(),
            files.len(),
            "one entry each: {files:?}"
        );
    }
    node.import([&node.path("absent.tar")]).exits(1);
    node.airgapd(["import"]).exits(2);
    node.airgapd(["import", "--platform", "no/such/thing/at/all", "x"])
        .exits(2);
}

/// Data that CRI needs on the record itself to make a record of the new image (statement 47).
fn a_record_that_moves_is_offered_to_cri_again(target: &Target) {
    let node = Node::on(target);
    let name = "registry.test/moves:1";
    let (first, second) = (node.path("first.tar"), node.path("second.tar"));
    bundles::write(&first, [image(name)]);
    bundles::write(&second, [image(name)]);
    node.import([&first]).exits(0);
    target.set_labels(name, &[(MANAGED, Some("managed"))]);
    let changes = target.watch();
    node.import([&second]).exits(0);
    let of_name: Vec<_> = changes
        .so_far()
        .into_iter()
        .filter(|(_, changed)| changed == name)
        .collect();
    assert_eq!(
        of_name.len(),
        1,
        "target and labels change in one call: {of_name:?}"
    );
    assert!(!target.labels(name).contains_key(MANAGED));
}

/// Bytes of a tenth of a second may be sent at once. The flag overrides the configuration file.
fn no_more_is_sent_in_a_second_than_the_rate_limit(target: &Target) {
    let node = Node::on(target);
    node.configure_also("rateLimit: 1GiB");
    let file = text(&node.path("bundle.tar"));
    bundles::write(file.as_ref(), [bundles::large("registry.test/gentle:1", 4 << 20)]);
    let begun = Instant::now();
    let bundle = node.import(["--rate-limit", "2MiB", &file]).exits(0).bundle();
    let taken = begun.elapsed();
    assert_eq!(bundle["outcome"], "imported");
    assert!(
        bundle["blobs"]["sent_bytes"].as_u64().unwrap() > 4 << 20,
        "{bundle:#}"
    );
    assert!(taken >= Duration::from_millis(1850), "{taken:?}");
}

on_each_containerd!(
    no_more_is_sent_in_a_second_than_the_rate_limit,
    the_same_bundle_again_moves_nothing,
    another_nodes_platform_is_taken_as_containerd_there_would,
    an_index_with_only_this_nodes_platform_in_the_archive_is_taken_as_the_index,
    labels_of_others_survive,
    an_import_beside_a_running_daemon_and_the_daemon_leave_each_other_alone,
);
on_the_fake!(
    one_name_for_two_platforms_goes_to_the_one_that_runs_here,
    an_image_whose_config_says_another_architecture_is_refused,
    a_nested_index_of_foreign_platforms_gets_no_record_and_the_platforms_are_said,
    a_platform_that_the_bundle_has_not_gets_no_record_and_is_told_what_there_is,
    a_dry_run_prints_the_plan_and_writes_nothing,
    the_place_of_a_file_says_who_vouches_for_its_images,
    the_exit_code_of_several_bundles_says_the_worst,
    a_record_that_moves_is_offered_to_cri_again,
);
