//! The names of images in containerd: the tags and digests that they are made from, and the names
//! that a node refuses or leaves out.

use bundle::fixtures::{Image, digest_of};

use crate::support::bundles::{self, PLATFORMS, image, multi_platform, native, text};
use crate::support::node::outcomes;
use crate::support::target::BY_HAND;
use crate::support::{Node, Target, on_each_containerd, on_the_fake};

/// Statements 14 to 17 and 19, as a table of the archive's names and the resulting records.
fn names_become_the_records_that_kubelet_asks_for(target: &Target) {
    let image = |tag: &str| Image::unnamed().platform(native()).layer(tag);
    let root = |image: &Image| bundles::layout([image.clone()]).build().images[0].root.clone();
    let elsewhere = digest_of(b"another image");
    let pinned = image("16");
    let digest = root(&pinned);
    let with_digest = format!("docker.io/library/x:1@{digest}");
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
            "tag and digest give three names",
            pinned.ref_name(&format!("x:1@{digest}")),
            vec!["docker.io/library/x:1", &with_digest],
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
            let tagged = tag.split('@').next().unwrap();
            let repository = tagged.rsplit_once(':').unwrap().0;
            [(*tag).to_owned(), format!("{repository}@{root}")]
        });
        assert_eq!(target.names(), expected.collect(), "{claim}");
    }
}

/// `digestReferences: all` together with `aliases:` gives every name under both prefixes.
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

/// Statements 15 and 19, in the format where they occur.
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

/// Statements 18 and 20: an image without a name gets no record, and nothing of it stays.
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

    // The remedies.
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

/// A name of another importer that points to another image. The configuration decides what happens,
/// and the command reports it.
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
        let is_told = answer.said().contains("another program uses the name for");
        assert!(is_told || wish != "refuse", "{wish}: {answer:?}");
        assert_eq!(found.labels.contains_key(BY_HAND), ours, "{wish}: {answer:?}");
    }
}

fn names_that_are_not_allowed_are_refused_and_the_others_land(target: &Target) {
    let node = Node::on(target);
    node.configure_also("allowedNames: ['registry.test/ok/*', 'docker.io/library/pause:3.?']");
    let file = text(&node.path("bundle.tar"));
    bundles::write(
        file.as_ref(),
        [
            image("registry.test/ok/a:1"),
            image("registry.test/evil/coredns:1"),
            image("docker.io/library/pause:3.9"),
        ],
    );
    let answer = node.import([&file]).exits(1);
    let report = answer.bundle();
    assert_eq!(report["outcome"], "partial");
    let outcomes = outcomes(&report);
    assert!(
        outcomes.contains(&("registry.test/evil/coredns:1".into(), "failed".into())),
        "{outcomes:?}"
    );
    let words = "registry.test/evil/coredns:1 is not among the names that allowedNames allows";
    assert!(answer.said().contains(words), "{answer:?}");
    let names = target.names();
    assert!(names.contains("registry.test/ok/a:1") && names.contains("docker.io/library/pause:3.9"));
    assert!(names.iter().all(|name| !name.contains("evil")), "{names:?}");

    let alone = text(&node.path("alone.tar"));
    bundles::write(alone.as_ref(), [image("registry.test/evil/alone:1")]);
    let report = node.import([&alone]).exits(1).bundle();
    assert_eq!(report["outcome"], "failed");
    let inspected = node.airgapd(["inspect", "-o", "json", &alone]).exits(0).json();
    assert_eq!(inspected["images"][0]["verdict"], "forbidden");
}

fn an_image_with_an_allowed_and_a_forbidden_name_gets_the_allowed_one_and_a_warning(target: &Target) {
    let node = Node::on(target);
    node.configure_also("allowedNames: ['registry.test/*']");
    let file = text(&node.path("bundle.tar"));
    let two = Image::new("registry.test/two:1")
        .repo_tag("evil.test/two:1")
        .platform(native())
        .layer("two names");
    bundles::docker([two]).write_to(file.as_ref());
    let report = node.import([&file]).exits(0).bundle();
    assert!(target.record("registry.test/two:1").is_some());
    assert!(target.record("evil.test/two:1").is_none());
    assert!(
        report["warnings"].to_string().contains("evil.test/two:1"),
        "{report:#}"
    );
}

/// An image that the daemon must not import is not imported by any command. Content that other
/// images need is still imported.
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

on_each_containerd! {
    names_become_the_records_that_kubelet_asks_for,
    an_image_is_known_by_its_aliases_and_by_its_platforms_digest_too,
    one_invalid_tag_of_a_docker_archive_spares_the_others,
    images_without_a_usable_name_are_reported_and_leave_nothing,
    a_name_that_is_not_ours_is_replaced_kept_or_refused_as_configured,
    names_that_are_not_allowed_are_refused_and_the_others_land,
    what_is_excluded_is_not_imported_by_hand_either,
}
on_the_fake! {
    an_image_with_an_allowed_and_a_forbidden_name_gets_the_allowed_one_and_a_warning,
}
