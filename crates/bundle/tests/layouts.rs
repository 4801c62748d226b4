//! OCI image layouts: the catalogs of good, odd and broken layouts.

use crate::common::*;
use airgapd_bundle::fixtures::{Archive, EntryKind, Image, Layer, Layout, Manifest, Node};
use airgapd_bundle::{Content, Ending, Format, Kind, PartState, RawName, Warning};
use serde_json::json;

fn three_platforms() -> Archive {
    let image = Image::new("docker.io/library/a:1")
        .platform("linux/amd64")
        .layer(b"x")
        .platform("linux/arm64")
        .layer(b"y")
        .layer(b"z")
        .platform("linux/arm/v7")
        .layer(b"z");
    Layout::new().image(image).build()
}

#[test]
fn a_layout_is_read_as_it_was_built() {
    let archive = three_platforms();
    let bundle = good(&archive);
    let catalog = bundle.catalog();
    assert_eq!(catalog.format, Format::OciLayout);
    assert_eq!(catalog.ending, Ending::Marker);
    assert_eq!(catalog.warnings, []);
    let image = only_image(&bundle);
    assert_eq!(
        image.names,
        [RawName::RefName("docker.io/library/a:1".to_owned())]
    );
    assert_eq!(image.root.descriptor.digest(), &archive.images[0].root);
    assert!(is_whole(&image.root));
    assert_blobs_are_right(&bundle, &image.root);
    let found: Vec<_> = children(&image.root)
        .iter()
        .map(|node| {
            (
                node.platform.clone().unwrap().to_string(),
                node.descriptor.digest().clone(),
            )
        })
        .collect();
    let built: Vec<_> = archive.images[0]
        .manifests
        .iter()
        .map(|manifest| {
            (
                manifest.platform.clone().unwrap().to_string(),
                manifest.digest.clone(),
            )
        })
        .collect();
    assert_eq!(found, built);
    for (node, built) in children(&image.root).iter().zip(&archive.images[0].manifests) {
        let manifest = manifest(node);
        assert_eq!(manifest.kind, Kind::Image);
        assert_eq!(manifest.config.descriptor.digest(), &built.config);
        assert_eq!(manifest.config_platform, built.platform);
        let layers: Vec<_> = manifest
            .layers
            .iter()
            .map(|layer| layer.descriptor.digest())
            .collect();
        assert_eq!(layers, built.layers.iter().collect::<Vec<_>>());
    }
}

#[test]
fn the_order_and_the_spelling_of_entries_do_not_matter() {
    let reference = three_platforms();
    let expected = good(&reference).catalog().clone();
    let mut documents_first = reference.clone();
    documents_first.move_first("oci-layout").move_first("index.json");
    let mut reversed = reference.clone();
    reversed.entries.reverse();
    let mut rows = vec![documents_first, reversed];
    for prefix in ["./", "/", "x/..//./"] {
        let mut prefixed = reference.clone();
        prefixed.prefix(prefix);
        rows.push(prefixed);
    }
    for archive in rows {
        assert_eq!(
            good(&archive).catalog(),
            &expected,
            "{:?}",
            archive.entries[0].name
        );
    }
}

#[test]
fn linked_blobs_are_the_blobs_they_link_to() {
    type Target = fn(&str) -> EntryKind;
    let rows: [(&str, Target); 4] = [
        ("store/x", |_| EntryKind::HardLink("store/x".to_owned())),
        ("store/x", |_| EntryKind::Symlink("../../store/x".to_owned())),
        ("blobs/sha256/x", |_| EntryKind::Symlink("x".to_owned())),
        ("blobs/x", |_| EntryKind::Symlink("./../x".to_owned())),
    ];
    for prefix in ["", "./"] {
        for (stored_as, target) in rows {
            let mut archive = one_image();
            let built = archive.images[0].clone();
            for digest in [
                &built.root,
                &built.manifests[0].config,
                &built.manifests[0].layers[0],
            ] {
                archive.link(digest, stored_as, target);
                archive.prefix(prefix);
                let bundle = good(&archive);
                assert!(is_whole(&only_image(&bundle).root), "{prefix}{stored_as}");
                assert_blobs_are_right(&bundle, &only_image(&bundle).root);
                archive = one_image();
            }
        }
    }
}

#[test]
fn links_that_lead_nowhere_break_what_needs_them_and_nothing_else() {
    let rows = [
        ("nowhere", "a link to a missing file"),
        ("../../../etc/passwd", "a link that leads out of the archive"),
        ("/etc/passwd", "a link that leads out of the archive"),
    ];
    for (target, reason) in rows {
        let mut archive = one_image();
        archive.push("needed-by-nobody", EntryKind::Symlink(target.to_owned()));
        assert!(is_whole(&only_image(&good(&archive)).root));
        let layer = archive.images[0].manifests[0].layers[0].clone();
        let name = archive.name_of(&layer);
        archive.replace(&name, EntryKind::Symlink(target.to_owned()));
        let bundle = good(&archive);
        let PartState::Broken(found) = &manifest(&only_image(&bundle).root).layers[0].state else {
            panic!("a link to {target} is not broken")
        };
        assert_eq!(**found, format!("blob {layer} is {reason}"));
    }
}

#[test]
fn links_in_a_circle_come_to_an_end() {
    let mut archive = one_image();
    let name = archive.name_of(&archive.images[0].root);
    let file = name.rsplit('/').next().unwrap().to_owned();
    archive.replace(&name, EntryKind::Symlink("b".to_owned()));
    archive.push("blobs/sha256/b", EntryKind::Symlink(file));
    let bundle = good(&archive);
    assert!(broken(&only_image(&bundle).root).ends_with("is a link that leads back to itself"));
}

#[test]
fn the_last_of_several_entries_of_one_name_counts() {
    let mut archive = one_image();
    let index = archive.bytes_of("index.json");
    archive.set("index.json", "{}".to_owned());
    archive.add("./index.json", index);
    let bundle = good(&archive);
    assert!(is_whole(&only_image(&bundle).root));
    let expected = Warning::DuplicateEntries {
        count: 1,
        first: "index.json".to_owned(),
    };
    assert_eq!(bundle.catalog().warnings, [expected]);
}

#[test]
fn the_names_of_an_entry_follow_containerds_precedence() {
    let containerd = |name: &str| vec![RawName::ContainerdName(name.to_owned())];
    let reference = |name: &str| vec![RawName::RefName(name.to_owned())];
    let rows = [
        (Image::unnamed(), vec![]),
        (Image::unnamed().ref_name("b"), reference("b")),
        (Image::unnamed().containerd_name("a"), containerd("a")),
        (
            Image::unnamed().containerd_name("a").ref_name("b"),
            containerd("a"),
        ),
        (Image::unnamed().containerd_name("").ref_name("b"), reference("b")),
        (Image::unnamed().ref_name(""), vec![]),
        (
            Image::unnamed().annotation("org.opencontainers.image.title", "t"),
            vec![],
        ),
        (
            Image::unnamed().descriptor_member("annotations", json!(null)),
            vec![],
        ),
    ];
    for (image, names) in rows {
        let bundle = good(&Layout::new().image(image.layer(b"x")).build());
        assert_eq!(only_image(&bundle).names, names);
    }
}

#[test]
fn annotations_inside_nested_indexes_name_nothing_but_top_level_ones_are_kept() {
    let inner = Manifest::new("linux/amd64").layer(b"x").descriptor_member(
        "annotations",
        json!({ "org.opencontainers.image.ref.name": "inner:1" }),
    );
    let image = Image::unnamed()
        .annotation("k", "v")
        .root(Node::Index(vec![inner.into()]));
    let bundle = good(&Layout::new().image(image).build());
    let image = only_image(&bundle);
    assert_eq!(image.names, []);
    assert_eq!(image.root.descriptor.annotations().as_ref().unwrap()["k"], "v");
}

#[test]
fn nested_indexes_are_walked_to_the_limit() {
    let nest = |levels| {
        (0..levels).fold(Node::from(Manifest::new("linux/amd64").layer(b"x")), |node, _| {
            Node::Index(vec![node])
        })
    };
    for (levels, whole) in [(1, true), (2, true), (8, true), (9, false), (40, false)] {
        let bundle = good(&Layout::new().image(Image::new("a").root(nest(levels))).build());
        let root = &only_image(&bundle).root;
        assert_eq!(is_whole(root), whole, "{levels} levels");
        if !whole {
            assert!(
                broken(root).contains("nested deeper than 8 levels"),
                "{levels} levels"
            );
        }
    }
}

#[test]
fn a_sub_tree_that_is_too_deep_refuses_every_image_that_has_it_and_no_other() {
    let deep = || {
        (0..12).fold(Node::from(Manifest::new("linux/amd64").layer(b"x")), |node, _| {
            Node::Index(vec![node])
        })
    };
    let shallow = Node::Index(vec![Manifest::new("linux/amd64").layer(b"y").into()]);
    let beside = Node::Index(vec![shallow.clone(), deep()]);
    let layout = Layout::new()
        .image(Image::new("a").root(deep()))
        .image(Image::new("b").root(shallow))
        .image(Image::new("c").root(deep()))
        .image(Image::new("d").root(beside));
    let bundle = good(&layout.build());
    let whole: Vec<_> = bundle
        .catalog()
        .images
        .iter()
        .map(|image| is_whole(&image.root))
        .collect();
    assert_eq!(whole, [false, true, false, false]);
}

#[test]
fn a_platform_is_what_the_descriptor_says_or_nothing() {
    let manifest = || Manifest::new("linux/amd64").layer(b"x");
    let windows =
        json!({ "os": "windows", "architecture": "amd64", "os.version": "10.0.1", "os.features": ["f"] });
    let rows = [
        (
            manifest(),
            Some(json!({ "os": "linux", "architecture": "amd64" })),
        ),
        (manifest().platform_in_config_only(), None),
        (manifest().descriptor_member("platform", json!(null)), None),
        (
            manifest().descriptor_member("platform", json!({})),
            Some(json!({ "os": "", "architecture": "" })),
        ),
        (
            manifest().descriptor_member("platform", windows.clone()),
            Some(windows),
        ),
    ];
    for (built, platform) in rows {
        let bundle = good(&Layout::new().image(Image::new("a").manifest(built)).build());
        let root = &only_image(&bundle).root;
        assert_eq!(root.platform.as_ref().map(|platform| json!(platform)), platform);
        let of_config = crate::common::manifest(root).config_platform.as_ref();
        assert_eq!(of_config.map(ToString::to_string).as_deref(), Some("linux/amd64"));
    }
}

#[test]
fn a_config_without_a_platform_has_none() {
    let manifest = Manifest::new("linux/amd64").layer(b"x").no_platform();
    let bundle = good(&Layout::new().image(Image::new("a").manifest(manifest)).build());
    let root = &only_image(&bundle).root;
    assert_eq!(
        (&root.platform, &crate::common::manifest(root).config_platform),
        (&None, &None)
    );
    assert!(is_whole(root));
}

#[test]
fn missing_and_corrupt_blobs_are_told_apart_and_named() {
    let archive = three_platforms();
    let image = &archive.images[0];
    let arm64 = &image.manifests[1];
    let find = |archive: &Archive| only_image(&good(archive)).root.clone();

    let mut missing = archive.clone();
    missing.remove_blob(&arm64.layers[0]).remove_blob(&arm64.config);
    let root = find(&missing);
    let parts = manifest(&children(&root)[1]);
    assert_eq!(parts.config.state, PartState::Absent);
    assert_eq!(parts.layers[0].state, PartState::Absent);
    assert_eq!(parts.layers[1].state, PartState::Present);
    assert!(is_whole(&children(&root)[0]) && is_whole(&children(&root)[2]));

    let mut corrupt = archive.clone();
    corrupt.corrupt(&arm64.config);
    let root = find(&corrupt);
    let PartState::Broken(flaw) = &manifest(&children(&root)[1]).config.state else {
        panic!("{root:?}")
    };
    assert!(flaw.is_damage());
    assert!(flaw.starts_with("its bytes hash to sha256:"), "{flaw}");
    assert!(flaw.ends_with(&format!(", not {}", arm64.config)), "{flaw}");

    let mut no_manifest = archive.clone();
    no_manifest.remove_blob(&arm64.digest);
    assert_eq!(children(&find(&no_manifest))[1].content, Content::Absent);

    let mut corrupt_manifest = archive.clone();
    corrupt_manifest.corrupt(&arm64.digest);
    let root = find(&corrupt_manifest);
    assert!(broken(&children(&root)[1]).contains(arm64.digest.as_ref()));
    assert!(
        good(&corrupt_manifest).blob(&arm64.digest).is_none(),
        "corrupt bytes are handed out"
    );

    let mut corrupt_index = archive.clone();
    corrupt_index.corrupt(&image.root);
    assert!(broken(&find(&corrupt_index)).contains("its bytes hash to sha256:"));

    let mut longer = archive.clone();
    let name = longer.name_of(&arm64.layers[0]);
    longer.set(&name, "other".to_owned());
    let root = find(&longer);
    let PartState::Broken(reason) = &manifest(&children(&root)[1]).layers[0].state else {
        panic!("a layer of another size passes")
    };
    assert!(
        reason.contains("has 5 bytes, but its descriptor says 2048"),
        "{reason}"
    );
}

#[test]
fn an_unusable_entry_is_that_images_trouble_only() {
    let rows = [
        ("digest", json!("sha256:abc"), "is not a digest"),
        (
            "digest",
            json!("md5:d41d8cd98f00b204e9800998ecf8427e"),
            "neither sha256 nor sha512",
        ),
        ("digest", json!("sha256:../../etc/passwd"), "is not a digest"),
        ("digest", json!(7), "its descriptor is not valid"),
        ("size", json!("12"), "its descriptor is not valid"),
        ("size", json!(-1), "gives its size as -1"),
        ("mediaType", json!(null), "has no media type"),
        ("size", json!(1), "bytes, but its descriptor says 1"),
        (
            "mediaType",
            json!("application/vnd.docker.distribution.manifest.v1+prettyjws"),
            "schema 1",
        ),
        (
            "mediaType",
            json!("application/vnd.oci.image.index.v1+json"),
            "described as an index",
        ),
    ];
    for (key, value, reason) in rows {
        let bad = Image::new("bad:1").layer(b"x").descriptor_member(key, value);
        let bundle = good(
            &Layout::new()
                .image(bad)
                .image(Image::new("good:1").layer(b"y"))
                .build(),
        );
        let [bad, good] = bundle.catalog().images.as_slice() else {
            panic!("two images")
        };
        assert_eq!(bad.names, [RawName::RefName("bad:1".to_owned())]);
        assert!(broken(&bad.root).contains(reason), "{}", broken(&bad.root));
        assert!(is_whole(&good.root));
    }
}

#[test]
fn what_is_no_container_image_is_an_artifact() {
    let manifest = || Manifest::new("linux/amd64");
    let layer = |media_type| Layer::new(b"x".to_vec()).media_type(media_type);
    let empty = || {
        manifest()
            .config_bytes("{}")
            .config_media_type("application/vnd.oci.empty.v1+json")
    };
    let rows = [
        (manifest().layer(b"x"), None),
        (manifest(), None),
        (
            manifest()
                .layer(b"x")
                .member("artifactType", json!("application/x.wrapped")),
            None,
        ),
        (
            manifest().with_layer(layer("application/vnd.oci.image.layer.v1.tar+gzip+encrypted")),
            None,
        ),
        (
            manifest()
                .config_media_type("application/vnd.cncf.helm.config.v1+json")
                .with_layer(layer("a/b")),
            Some("application/vnd.cncf.helm.config.v1+json"),
        ),
        (
            empty()
                .member("artifactType", json!("application/x.sbom"))
                .with_layer(layer("a/b")),
            Some("application/x.sbom"),
        ),
        (empty().with_layer(layer("text/plain")), Some("text/plain")),
        (empty(), Some("application/vnd.oci.empty.v1+json")),
        (
            manifest().with_layer(layer("application/vnd.in-toto+json")),
            Some("application/vnd.in-toto+json"),
        ),
    ];
    for (built, artifact_type) in rows {
        let bundle = good(&Layout::new().image(Image::new("a").manifest(built)).build());
        let expected = artifact_type.map_or(Kind::Image, |artifact_type| Kind::Artifact {
            artifact_type: artifact_type.to_owned(),
        });
        assert_eq!(crate::common::manifest(&only_image(&bundle).root).kind, expected);
    }
}

#[test]
fn the_subject_of_a_manifest_is_kept() {
    let digest = airgapd_bundle::fixtures::digest_of(b"subject");
    let subject =
        json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 7 });
    let built = Manifest::new("linux/amd64")
        .layer(b"x")
        .member("subject", subject);
    let bundle = good(&Layout::new().image(Image::new("a").manifest(built)).build());
    assert_eq!(
        crate::common::manifest(&only_image(&bundle).root).subject,
        Some(digest)
    );
}

#[test]
fn content_embedded_in_a_descriptor_counts_where_it_is_right() {
    // "{}" and "[]" in base64.
    for (data, size, state) in [
        ("e30=", 2, PartState::Present),
        ("W10=", 2, PartState::Absent),
        ("e30=", 3, PartState::Absent),
    ] {
        let digest = airgapd_bundle::fixtures::digest_of(b"{}");
        let config = json!({
            "mediaType": "application/vnd.oci.empty.v1+json", "digest": digest, "size": size, "data": data,
        });
        let built = Manifest::new("linux/amd64").layer(b"x").member("config", config);
        let bundle = good(&Layout::new().image(Image::new("a").manifest(built)).build());
        assert_eq!(
            manifest(&only_image(&bundle).root).config.state,
            state,
            "{data} {size}"
        );
        if state == PartState::Present {
            assert_eq!(blob(&bundle, &digest), b"{}");
        }
    }
}

#[test]
fn an_image_that_containerd_could_not_unpack_says_why() {
    let gzip = Layer::compressed(
        &Layer::new(b"x".to_vec()),
        b"\x1f\x8b\x08 not really".to_vec(),
        "application/vnd.oci.image.layer.v1.tar+gzip",
    );
    let other = airgapd_bundle::fixtures::digest_of(b"other");
    let manifest = || Manifest::new("linux/amd64").layer(b"x");
    // diff_ids are sha256, even if a layer's descriptor uses sha512.
    let of_sha512 = json!([{
        "mediaType": "application/vnd.oci.image.layer.v1.tar", "size": 1,
        "digest": format!("sha512:{}", "ab".repeat(64)),
    }]);
    let rows = [
        (manifest(), None),
        (manifest().member("layers", of_sha512), None),
        (Manifest::new("linux/amd64").with_layer(gzip), None),
        (
            manifest().config("rootfs", json!(null)),
            Some("the manifest has 1 layer, but the config has 0 diff_ids"),
        ),
        (
            manifest().member("layers", json!([])),
            Some("the manifest has 0 layers, but the config has 1 diff_id"),
        ),
        (
            Manifest::new("linux/amd64").with_layer(Layer::new(b"x".to_vec()).diff_id(other.clone())),
            Some("by the config's diff_ids"),
        ),
        (manifest().config_bytes("no json"), Some("is not valid")),
    ];
    for (built, problem) in rows {
        let bundle = good(&Layout::new().image(Image::new("a").manifest(built)).build());
        let problems = &crate::common::manifest(&only_image(&bundle).root).problems;
        match problem {
            None => assert!(problems.is_empty(), "{problems:?}"),
            Some(problem) => assert!(
                problems.len() == 1 && problems[0].contains(problem),
                "{problems:?}"
            ),
        }
    }
}

#[test]
fn the_digest_of_the_content_is_that_of_the_index() {
    let archive = one_image();
    let digest = airgapd_bundle::fixtures::digest_of(&archive.bytes_of("index.json"));
    assert_eq!(good(&archive).catalog().digest, digest);
}

#[test]
fn attestations_are_ordinary_nodes() {
    let attestation = Manifest::new("unknown/unknown")
        .with_layer(Layer::new(b"{}".to_vec()).media_type("application/vnd.in-toto+json"));
    let image = Image::new("a")
        .platform("linux/amd64")
        .layer(b"x")
        .manifest(attestation);
    let bundle = good(&Layout::new().image(image).build());
    let nodes = children(&only_image(&bundle).root);
    assert_eq!(nodes[1].platform.as_ref().unwrap().os, "unknown");
    assert!(matches!(manifest(&nodes[1]).kind, Kind::Artifact { .. }));
}

#[test]
fn blobs_of_sha512_are_found_and_verified() {
    let mut archive = one_image();
    // The layer under another algorithm. Only its descriptor changes, so the test builds the graph
    // itself.
    let sha512 = format!("sha512:{}", "ab".repeat(64));
    archive.add(
        &format!("blobs/sha512/{}", "ab".repeat(64)),
        "no such digest".to_owned(),
    );
    let index = json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": sha512, "size": 14,
    }] });
    archive.set("index.json", index.to_string());
    let bundle = good(&archive);
    assert!(broken(&only_image(&bundle).root).contains("its bytes hash to sha512:"));
}
