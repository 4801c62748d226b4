//! `airgapd import`: what it does, says and leaves alone.

use std::fs;
use std::time::{Duration, Instant};

use bundle::fixtures::{Image, Manifest, Node as Tree, digest_of};

use crate::support::bundles::{
    self, PLATFORMS, all_records, image, multi_platform, native, needed, needed_here, records_of, text,
};
use crate::support::node::outcomes;
use crate::support::target::{BUNDLE, BY_HAND, MANAGED, PINNED};
use crate::support::{Node, Target, on_each_containerd, on_the_fake};

/// Statement 38: nothing is sent and no record changes, seen in containerd's events.
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

/// Statement 21: the better match wins, whatever the order.
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

/// Statement 28: containerd would create a record for it.
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

/// Statement 30: `docker save` with containerd's store, and partial pulls, write such archives.
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
        assert_eq!(
            planned[document], done[document],
            "what was planned is what is done"
        );
    }
}

/// A file outside the folder belongs to whoever imports it, a file inside to the daemon.
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
    // The same file that the daemon may be at now, or has just finished.
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

/// Statement 46: labels of others survive whatever we do to a record.
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

/// Statement 18, and 20: nothing without a name gets a record, and nothing of it stays.
fn images_without_a_usable_name_are_reported_and_leave_nothing(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("unnamed.tar"));
    let unnamed = Image::unnamed().platform(native()).layer("unnamed");
    let tag_only = Image::unnamed()
        .ref_name("latest")
        .platform(native())
        .layer("tag only");
    let archive = bundles::write(file.as_ref(), [unnamed, tag_only]);
    let answer = node.import([&file]).exits(1);
    let root = archive.images[0].root.to_string();
    assert!(
        answer.said().contains(&root) && answer.said().contains("--name"),
        "{answer:?}"
    );
    assert!(answer.said().contains("baseName"), "{answer:?}");
    assert!(target.names().is_empty(), "{:?}", target.names());
    target.collect_garbage();
    assert!(target.digests().is_empty());

    // The ways out.
    node.configure_also("baseName: registry.test/based");
    let named = format!("{root}=registry.test/named:1");
    node.import(["--name", &named, &file]).exits(0);
    assert_eq!(
        *target.expect_record("registry.test/named:1").target.digest(),
        archive.images[0].root
    );
    assert_eq!(
        *target.expect_record("registry.test/based:latest").target.digest(),
        archive.images[1].root
    );
}

/// Statements 14 to 17 and 19, as a table of what the archive says and which records there are in the end.
fn names_become_the_records_that_kubelet_asks_for(target: &Target) {
    let image = |tag: &str| Image::unnamed().platform(native()).layer(tag);
    let root = |image: &Image| bundles::layout([image.clone()]).build().images[0].root.clone();
    let elsewhere = digest_of(b"another image");
    let pinned = image("16");
    let digest = root(&pinned);
    let table = [
        (
            "containerd's name beats the other",
            image("14").containerd_name("a.test/a:1").ref_name("a.test/b:1"),
            vec!["a.test/a:1"],
        ),
        (
            "names are normalised",
            image("15").ref_name("user/app"),
            vec!["docker.io/user/app:latest"],
        ),
        (
            "tag and digest give both names",
            pinned.ref_name(&format!("x:1@{digest}")),
            vec!["docker.io/library/x:1"],
        ),
        (
            "another image's digest is refused",
            image("17").ref_name(&format!("a.test/liar@{elsewhere}")),
            vec![],
        ),
    ];
    for (claim, image, tags) in table {
        let target = target.elsewhere();
        let node = Node::on(&target);
        let file = text(&node.path("named.tar"));
        let root = root(&image);
        bundles::write(file.as_ref(), [image]);
        node.import([&file]).exits(i32::from(tags.is_empty()));
        let expected = tags.iter().flat_map(|tag| {
            let repository = tag.rsplit_once(':').unwrap().0;
            [(*tag).to_owned(), format!("{repository}@{root}")]
        });
        assert_eq!(target.names(), expected.collect(), "{claim}");
    }
}

/// Statements 15 and 19, in the format in which they arise.
/// `digestReferences: all` and `aliases:` together: every name under both prefixes.
fn an_image_is_known_by_its_aliases_and_by_its_platforms_digest_too(target: &Target) {
    let node = Node::on(target);
    node.configure_also("aliases: [registry.test/team=mirror.test/copy]\ndigestReferences: all");
    let file = text(&node.path("bundle.tar"));
    let name = "registry.test/team/app:1";
    let archive = bundles::write(file.as_ref(), [multi_platform(name, &PLATFORMS)]);
    node.import([&file]).exits(0);
    let image = &archive.images[0];
    let ours = image
        .manifests
        .iter()
        .find(|manifest| {
            manifest
                .platform
                .as_ref()
                .is_some_and(|platform| platform.to_string() == native())
        })
        .unwrap();
    let expected = ["registry.test/team", "mirror.test/copy"].map(|prefix| {
        [
            format!("{prefix}/app:1"),
            format!("{prefix}/app@{}", image.root),
            format!("{prefix}/app@{}", ours.digest),
        ]
    });
    assert_eq!(target.names(), expected.into_iter().flatten().collect());
    let by_platform = target.expect_record(&format!("mirror.test/copy/app@{}", ours.digest));
    assert_eq!(*by_platform.target.digest(), ours.digest);
    assert!(target.names().iter().all(|name| target.is_pinned(name)));
    node.import([&file]).exits(0);
    assert_eq!(target.names().len(), 6, "a second time adds nothing");
}

fn one_invalid_tag_of_a_docker_archive_spares_the_others(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("docker.tar"));
    let image = Image::unnamed()
        .repo_tag("UPPER/Case:1")
        .repo_tag("busybox")
        .platform(native())
        .layer("19");
    let archive = bundles::docker([image]).write_to(file.as_ref());
    let answer = node.import([&file]);
    let digest = &archive.images[0].manifests[0].docker_digest;
    let expected = [
        "docker.io/library/busybox:latest".to_owned(),
        format!("docker.io/library/busybox@{digest}"),
    ];
    assert_eq!(target.names(), expected.into(), "{answer:?}");
    assert!(answer.said().contains("UPPER/Case:1"), "{answer:?}");
}

/// Several files, one answer: the causes weigh 2, then 3, then 1 if any image landed or they differ, else 5.
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

/// A name that is somebody else's and means another image: what happens is configured, and said.
fn a_name_that_is_not_ours_is_replaced_kept_or_refused_as_configured(target: &Target) {
    for (wish, code, ours) in [("replace", 0, true), ("keep", 1, false), ("refuse", 1, false)] {
        let target = target.elsewhere();
        let node = Node::on(&target);
        let name = "registry.test/taken:1";
        let (theirs, file) = (node.path("theirs.tar"), node.path("ours.tar"));
        bundles::write(&theirs, [image(name)]);
        let archive = bundles::write(&file, [image(name)]);
        node.configure_also(&format!("onConflict: {wish}\ndigestReferences: none"));
        node.import([&theirs]).exits(0);
        node.airgapd(["release", "--all"]).exits(0);

        let answer = node.import([&file]).exits(code);
        let found = target.expect_record(name);
        assert_eq!(
            *found.target.digest() == archive.images[0].root,
            ours,
            "{wish}: {answer:?}"
        );
        assert_eq!(found.labels.contains_key(BY_HAND), ours, "{wish}: {answer:?}");
    }
}

/// What CRI needs to make the record of the new image (statement 47), on the record itself.
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

fn a_bundle_is_inspected_without_containerd(target: &Target) {
    let node = Node::at("/nonexistent/containerd.sock".as_ref(), target.namespace());
    let file = text(&node.path("bundle.tar"));
    let name = "registry.test/app:1";
    let archive = bundles::write(file.as_ref(), [multi_platform(name, &PLATFORMS)]);
    let answer = node
        .airgapd(["inspect", "-o", "json", "--platform", "linux/arm64", &file])
        .exits(0);
    let document = answer.json();
    assert!(
        answer.stdout.contains(&archive.images[0].root.to_string()),
        "{document:#}"
    );
    assert_eq!(document["complete"], true, "{document:#}");
    let human = node.airgapd(["inspect", &file]).exits(0);
    assert!(
        human.stdout.contains(name) && human.stdout.contains("linux/arm/v7"),
        "{human:?}"
    );
}

/// What goes through at once is a tenth of a second's; the flag counts more than the file.
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

/// What the daemon is not to import nobody imports, from wherever; what the others need is there all the same.
fn what_is_excluded_is_not_imported_by_hand_either(target: &Target) {
    let node = Node::on(target);
    node.configure_also("exclude: [registry.test/two*]");
    let (one, two) = ("registry.test/one:1", "registry.test/two:1");
    for file in [node.path("elsewhere.tar"), node.images().join("inside.tar")] {
        let archive = bundles::write(&file, [image(one), image(two)]);
        let dry = node
            .import(["--dry-run".as_ref(), file.as_os_str()])
            .exits(0)
            .bundle();
        let report = node.import([&file]).exits(0).bundle();
        for report in [&dry, &report] {
            let images = report["images"].as_array().unwrap();
            let skipped = images.iter().filter(|image| image["outcome"] == "skipped");
            let reasons: Vec<_> = skipped.map(|image| (&image["name"], &image["reason"])).collect();
            let by_digest = format!("registry.test/two@{}", archive.images[1].root);
            let reason = serde_json::json!("`exclude` names it");
            assert_eq!(
                reasons,
                [
                    (&serde_json::json!(two), &reason),
                    (&serde_json::json!(by_digest), &reason)
                ],
                "{report:#}"
            );
        }
        assert!(target.is_pinned(one));
        assert!(!target.names().iter().any(|name| name.contains("two")));
        let layer = archive.images[1].manifests[0].layers[0].to_string();
        assert!(!target.digests().contains(&layer), "its bytes are not sent");
        let only = node.path("only.tar");
        bundles::write(&only, [image(two)]);
        let report = node.import([&only]).exits(1).bundle();
        assert_eq!(report["outcome"], "skipped", "{report:#}");
    }
}

on_each_containerd!(
    no_more_is_sent_in_a_second_than_the_rate_limit,
    what_is_excluded_is_not_imported_by_hand_either,
    an_image_is_known_by_its_aliases_and_by_its_platforms_digest_too,
    names_become_the_records_that_kubelet_asks_for,
    a_name_that_is_not_ours_is_replaced_kept_or_refused_as_configured,
    one_invalid_tag_of_a_docker_archive_spares_the_others,
    the_same_bundle_again_moves_nothing,
    another_nodes_platform_is_taken_as_containerd_there_would,
    an_index_with_only_this_nodes_platform_in_the_archive_is_taken_as_the_index,
    labels_of_others_survive,
    images_without_a_usable_name_are_reported_and_leave_nothing,
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
    a_bundle_is_inspected_without_containerd,
);
