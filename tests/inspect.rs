//! `airgapd inspect`: its description of a bundle with any content.

use std::fs;
use std::process::Command;

use bundle::fixtures::{Image, Manifest};

use crate::support::bundles::{self, PLATFORMS, docker, image, multi_platform, text};
use crate::support::{Node, Target, on_the_fake, unique};

fn every_byte_is_read_when_asked(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("bundle.tar"));
    let name = "registry.test/app:1";
    let mut archive =
        bundles::layout([multi_platform(name, &PLATFORMS), image("registry.test/other:1")]).build();
    archive.write_to(file.as_ref());
    let document = node
        .airgapd(["inspect", "--verify", "-o", "json", &file])
        .exits(0)
        .json();
    assert_eq!(document["verified"]["blobs"], 13, "{document:#}");
    assert_eq!(document["verified"]["damaged"].as_array().unwrap().len(), 0);

    let layer = archive.images[0].manifests[2].layers[0].clone();
    archive.corrupt(&layer).write_to(file.as_ref());
    node.airgapd(["inspect", &file]).exits(0);
    let answer = node
        .airgapd(["inspect", "--verify", "-o", "json", &file])
        .exits(5);
    let damaged = &answer.json()["verified"]["damaged"][0];
    assert_eq!(
        (damaged["digest"].as_str(), damaged["image"].as_str()),
        (Some(layer.as_ref()), Some(name))
    );
    assert_ne!(damaged["found"], damaged["digest"]);
    let human = node.airgapd(["inspect", "--verify", &file]).exits(5);
    assert!(
        human.stdout.contains("DAMAGED") && human.stdout.contains("NOT WHOLE"),
        "{human:?}"
    );

    // An image that this node would take.
    let mut archive = bundles::layout([image("registry.test/other:1")]).build();
    let layer = archive.images[0].manifests[0].layers[0].clone();
    archive.corrupt(&layer).write_to(file.as_ref());
    let human = node.airgapd(["inspect", "--verify", &file]).exits(5).stdout;
    assert!(
        human.contains("verdict  broken: layer 1 of 1 is damaged:"),
        "{human}"
    );
    assert!(!human.contains("take") && !human.contains(" whole,"), "{human}");
    let document = node.airgapd(["inspect", "--verify", "-o", "json", &file]).json();
    let platform = &document["images"][0]["platforms"][0];
    assert_eq!(platform["state"], "broken", "{document:#}");
    assert_eq!(platform["taken"], false, "{document:#}");
    assert_eq!(platform["blobs"][1]["state"], "broken", "{document:#}");
    assert_eq!(document["images"][0]["verdict"], "broken", "{document:#}");
    assert!(
        target.names().is_empty() && target.blobs().is_empty(),
        "inspect changes nothing"
    );
}

fn an_image_with_a_blob_of_sha512_is_said_to_need_a_newer_containerd(target: &Target) {
    let node = Node::on(target);
    let file = node.path("bundle.tar");
    let bytes = unique();
    let digest = basics::digest::sha512(bytes.as_bytes());
    let layer = serde_json::json!([{
        "mediaType": "application/vnd.oci.image.layer.v1.tar",
        "digest": digest.to_string(),
        "size": bytes.len(),
    }]);
    let manifest = Manifest::new(bundles::native())
        .layer("x")
        .member("layers", layer);
    let new = Image::new("registry.test/new:1").manifest(manifest);
    let mut archive = bundles::layout([new, image("registry.test/usual:1")]).build();
    archive.add(&format!("blobs/sha512/{}", digest.digest()), bytes.into_bytes());
    archive.write_to(&file);
    let document = node
        .airgapd(["inspect", "-o", "json", &text(&file)])
        .exits(0)
        .json();
    let images = document["images"].as_array().unwrap();
    let notes = |name: &str| {
        let image = images.iter().find(|image| image["names"][0] == name);
        image.unwrap_or_else(|| panic!("{document:#}"))["notes"].to_string()
    };
    let said = notes("registry.test/new:1");
    assert!(
        said.contains("containerd 2.3 or later") && said.contains(digest.digest()),
        "{said}"
    );
    assert!(!notes("registry.test/usual:1").contains("2.3"));
}

fn a_compressed_bundle_and_an_extracted_one_are_read_like_a_plain_one(target: &Target) {
    let node = Node::on(target);
    let (plain, packed, folder) = (node.path("plain.tar"), node.path("packed"), node.path("folder"));
    bundles::write(&plain, [multi_platform("registry.test/app:1", &PLATFORMS)]);
    let gzip = Command::new("gzip").arg("-c").arg(&plain).output().unwrap();
    fs::write(&packed, gzip.stdout).unwrap();
    fs::create_dir(&folder).unwrap();
    let tar = Command::new("tar")
        .arg("-xf")
        .arg(&plain)
        .arg("-C")
        .arg(&folder)
        .status()
        .unwrap();
    assert!(tar.success());
    let [plain, packed, folder] = [plain, packed, folder].map(|path| {
        let path = text(&path);
        node.airgapd(["inspect", "--verify", "-o", "json", &path])
            .exits(0)
            .json()
    });
    assert_eq!(packed["compression"], "gzip");
    for other in [packed, folder] {
        for key in ["images", "digest", "verified", "format"] {
            assert_eq!(other[key], plain[key], "{key}");
        }
    }
}

fn text_for_people_fits_a_screen_and_moves_no_cursor(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("bundle.tar"));
    let long = format!("registry.test/{}:1", "long/".repeat(40).trim_end_matches('/'));
    let hostile = Manifest::new("linux/amd64").layer("x").descriptor_member(
        "platform",
        serde_json::json!({"os": "li\u{1b}[2Jnux", "architecture": "\u{202e}amd64"}),
    );
    let mut archive = bundles::layout([
        multi_platform(&long, &PLATFORMS),
        Image::new("evil\u{1b}[31m\u{7}").manifest(hostile).in_an_index(),
        image("registry.test/broken:1"),
    ])
    .build();
    let layer = archive.images[2].manifests[0].layers[0].clone();
    archive.remove_blob(&layer).write_to(file.as_ref());
    for arguments in [vec!["inspect", &file], vec!["inspect", "--verify", &file]] {
        let answer = node.airgapd(arguments).exits(5);
        for line in answer.stdout.lines() {
            assert!(line.chars().count() <= 100, "{line}");
            assert!(
                !line.chars().any(|c| c.is_control() || c == '\u{202e}'),
                "{line:?}"
            );
        }
        assert!(answer.stdout.contains(layer.digest()), "{answer:?}");
    }
}

fn names_are_shown_as_they_would_be_imported(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("bundle.tar"));
    let archive = bundles::write(
        file.as_ref(),
        [
            image("registry.test/app:1"),
            Image::unnamed().platform(bundles::native()).layer("unnamed"),
            Image::unnamed()
                .ref_name("3.1")
                .platform(bundles::native())
                .layer("tag"),
        ],
    );
    let unnamed = archive.images[1].root.to_string();
    node.configure_also(
        "aliases: [registry.test=mirror.test/all]\nbaseName: registry.test/base\ndigestReferences: none",
    );
    let name = format!("{unnamed}=registry.test/given:1");
    let expected = [
        "registry.test/app:1",
        "mirror.test/all/app:1",
        "registry.test/given:1",
        "mirror.test/all/given:1",
        "registry.test/base:3.1",
        "mirror.test/all/base:3.1",
    ];
    let document = node
        .airgapd(["inspect", "-o", "json", "--name", &name, &file])
        .exits(0)
        .json();
    let records = document["images"].as_array().unwrap().iter();
    let records: Vec<_> = records
        .flat_map(|image| image["records"].as_array().unwrap().clone())
        .collect();
    assert_eq!(records, expected);
    let plan = node
        .airgapd(["import", "--dry-run", "--name", &name, &file])
        .exits(0);
    for record in expected {
        assert!(plan.stdout.contains(record), "{record}: {}", plan.stdout);
    }
    node.import(["--name", &name, &file]).exits(0);
    assert_eq!(target.names(), expected.map(str::to_owned).into());
}

fn what_is_no_bundle_ends_with_5_and_the_reason(target: &Target) {
    let node = Node::on(target);
    let (file, folder) = (text(&node.path("text")), text(&node.path("")));
    fs::write(&file, "no bundle\n".repeat(1000)).unwrap();
    for path in [&file, &folder] {
        let answer = node.airgapd(["inspect", path]).exits(5);
        assert!(answer.stderr.contains("not an image bundle"), "{answer:?}");
    }
    node.airgapd(["inspect", "/nonexistent"]).exits(1);
}

fn a_docker_archive_is_known_without_its_name(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("docker.tar"));
    docker([Image::new("busybox:1").platform(bundles::native()).layer("x")]).write_to(file.as_ref());
    let document = node.airgapd(["inspect", "-o", "json", &file]).exits(0).json();
    assert_eq!(document["format"], "docker-archive");
    assert_eq!(document["images"][0]["records"][0], "docker.io/library/busybox:1");
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

fn digests_are_printed_as_a_list_and_what_is_bad_is_named(target: &Target) {
    let node = Node::on(target);
    let odd = node.path("a\\b\nc.tar");
    let names = [node.path("one.tar"), odd];
    let mut expected = String::new();
    for path in &names {
        bundles::write(path, [bundles::image("registry.test/a:1")]);
        let document = node
            .airgapd(["inspect", "-o", "json", &text(path)])
            .exits(0)
            .json();
        let digest = document["digest"].as_str().unwrap();
        expected += &match path == &names[0] {
            true => format!("{digest}  one.tar\n"),
            false => format!("\\{digest}  a\\\\b\\nc.tar\n"),
        };
    }
    let [one, odd] = names.map(|path| text(&path));
    let answer = node.airgapd(["inspect", "--digest", &one, &odd]).exits(0);
    assert_eq!((answer.stdout, answer.stderr), (expected.clone(), String::new()));

    // A bad file does not stop the others.
    let mut archive = bundles::layout([bundles::image("registry.test/b:1")]).build();
    let layer = archive.images[0].manifests[0].layers[0].clone();
    archive.remove_blob(&layer);
    let (part, text_file) = (text(&node.path("part.tar")), text(&node.path("text")));
    archive.write_to(part.as_ref());
    fs::write(&text_file, "no bundle\n".repeat(1000)).unwrap();
    let answer = node
        .airgapd(["inspect", "--digest", &text_file, &one, &part, &odd])
        .exits(5);
    for said in ["text: not an image bundle", "part.tar is not whole"] {
        assert!(answer.stderr.contains(said), "{answer:?}");
    }
    assert_eq!(answer.stdout.lines().count(), 3);
    let answer = node
        .airgapd(["inspect", "--digest", &part, "/nonexistent", &one])
        .exits(1);
    assert!(answer.stderr.contains("/nonexistent: "), "{answer:?}");
    assert_eq!(answer.stdout.lines().count(), 2);

    for wrong in [
        vec!["inspect", &one, &odd],
        vec!["inspect", "--digest", "--verify", &one],
        vec!["inspect", "--digest", "-o", "json", &one],
    ] {
        let answer = node.airgapd(&wrong).exits(2);
        assert!(!answer.stdout.contains("sha256:"), "{wrong:?}");
    }
}

fn a_receipt_is_shown_as_one_with_its_bundle_and_its_time(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("shop.tar"));
    bundles::write(file.as_ref(), [image("registry.test/app:1")]);
    node.import(["--keep", &file]).exits(0);
    let inspect = |path: &str| {
        let answer = node.airgapd(["inspect", "-o", "json", path]);
        answer.exits(0).json()
    };
    let bundle = inspect(&file);
    assert_eq!(bundle["receipt"], serde_json::Value::Null, "{bundle:#}");
    let kept = fs::read_dir(node.state().join("receipts")).unwrap().next();
    let kept = text(&kept.expect("a receipt").unwrap().path());
    let document = inspect(&kept);
    let receipt = &document["receipt"];
    assert_eq!(
        (&receipt["bundle"], &receipt["digest"], &receipt["size"]),
        (&serde_json::json!("shop.tar"), &bundle["digest"], &bundle["size"])
    );
    assert!(receipt["made_at"].as_str().unwrap().ends_with('Z'), "{receipt:#}");
    let human = node.airgapd(["inspect", &kept]).exits(0).stdout;
    for part in [
        "  receipt  of shop.tar",
        bundle["digest"].as_str().unwrap(),
        "no layers",
    ] {
        assert!(human.contains(part), "{part}: {human}");
    }
    assert!(!human.contains("delta on"), "{human}");
    node.airgapd(["release", "shop.tar"]).exits(0);
}

on_the_fake!(
    digests_are_printed_as_a_list_and_what_is_bad_is_named,
    every_byte_is_read_when_asked,
    an_image_with_a_blob_of_sha512_is_said_to_need_a_newer_containerd,
    a_compressed_bundle_and_an_extracted_one_are_read_like_a_plain_one,
    text_for_people_fits_a_screen_and_moves_no_cursor,
    names_are_shown_as_they_would_be_imported,
    what_is_no_bundle_ends_with_5_and_the_reason,
    a_docker_archive_is_known_without_its_name,
    a_bundle_is_inspected_without_containerd,
    a_receipt_is_shown_as_one_with_its_bundle_and_its_time,
);
