//! Docker archives and hybrids: manifests that the reader makes, links between layers, and the side
//! that counts.

use crate::common::*;
use airgapd_bundle::fixtures::{Archive, EntryKind, Image, Layer, Layout, Manifest, digest_of};
use airgapd_bundle::{Fault, Format, PartState, RawName};
use serde_json::json;

const GZIP: &[u8] = b"\x1f\x8b\x08 this only looks like gzip";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd this only looks like zstd";
const XZ: &[u8] = b"\xfd7zXZ\0 this only looks like xz";

pub(crate) fn two_layers() -> Image {
    Image::new("a:1")
        .platform("linux/arm64/v8")
        .layer(b"one")
        .layer(b"two")
}

fn docker(image: Image) -> Archive {
    Layout::docker().image(image).build()
}

fn compressed(bytes: &[u8]) -> Layer {
    Layer::compressed(&Layer::new(b"x".to_vec()), bytes, "unused")
}

#[test]
fn an_image_gets_the_manifest_that_containerd_makes_up() {
    let archive = docker(two_layers());
    let bundle = good(&archive);
    assert_eq!(bundle.catalog().format, Format::DockerArchive);
    let image = only_image(&bundle);
    let built = &archive.images[0].manifests[0];
    assert_eq!(image.names, [RawName::RepoTag("a:1".to_owned())]);
    assert_eq!(image.root.descriptor.digest(), &built.docker_digest);
    assert_eq!(
        image.root.descriptor.media_type().as_ref(),
        "application/vnd.docker.distribution.manifest.v2+json"
    );
    assert_eq!(image.root.platform, built.platform);
    assert!(is_whole(&image.root));
    assert_blobs_are_right(&bundle, &image.root);
    let layers: Vec<_> = manifest(&image.root)
        .layers
        .iter()
        .map(|layer| layer.descriptor.digest().clone())
        .collect();
    assert_eq!(layers, built.layers);
}

#[test]
fn the_manifest_is_byte_for_byte_what_containerd_writes() {
    let bundle = good(&docker(
        Image::new("a:1")
            .platform("linux/amd64")
            .layer(b"x")
            .with_layer(compressed(ZSTD)),
    ));
    let manifest = manifest(&only_image(&bundle).root);
    let [plain, packed] = manifest.layers.as_slice() else {
        panic!("two layers")
    };
    let config = &manifest.config.descriptor;
    let expected = [
        r#"{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":"#,
        &format!(
            r#"{{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"{}","size":{}}},"layers":["#,
            config.digest(),
            config.size()
        ),
        &format!(
            r#"{{"mediaType":"application/vnd.docker.image.rootfs.diff.tar","digest":"{}","size":2048}},"#,
            plain.descriptor.digest()
        ),
        &format!(
            r#"{{"mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip","digest":"{}","size":{}}}]}}"#,
            digest_of(ZSTD),
            ZSTD.len()
        ),
    ]
    .concat();
    assert_eq!(packed.descriptor.digest(), &digest_of(ZSTD));
    let bytes = blob(&bundle, only_image(&bundle).root.descriptor.digest());
    assert_eq!(String::from_utf8(bytes).unwrap(), expected);
}

#[test]
fn the_order_and_the_spelling_of_entries_do_not_matter() {
    let reference = docker(two_layers());
    let expected = good(&reference).catalog().clone();
    let mut first = reference.clone();
    first.move_first("manifest.json");
    let mut prefixed = reference.clone();
    prefixed.prefix("./");
    let mut dotted = reference.clone();
    let document = String::from_utf8(dotted.bytes_of("manifest.json")).unwrap();
    let document = document
        .replace("/layer.tar", "/./layer.tar")
        .replace(r#"Config":""#, r#"Config":"./"#);
    dotted.set("manifest.json", document);
    for archive in [first, prefixed, dotted] {
        let catalog = good(&archive).catalog().clone();
        assert_eq!(catalog.images, expected.images);
    }
}

#[test]
fn linked_layers_are_the_layers_they_link_to() {
    type Target = fn(&str) -> EntryKind;
    let rows: [(&str, Target); 3] = [
        ("other/layer.tar", |_| {
            EntryKind::Symlink("../other/layer.tar".to_owned())
        }),
        ("other/layer.tar", |_| {
            EntryKind::HardLink("other/layer.tar".to_owned())
        }),
        ("other.tar", |_| EntryKind::Symlink("../link".to_owned())),
    ];
    for prefix in ["", "./"] {
        for (stored_as, target) in rows {
            let mut archive = docker(two_layers());
            let built = archive.images[0].manifests[0].clone();
            archive.link(&built.layers[0], stored_as, target);
            archive.push("link", EntryKind::Symlink("./other.tar".to_owned()));
            archive.prefix(prefix);
            let bundle = good(&archive);
            let root = &only_image(&bundle).root;
            assert_eq!(
                root.descriptor.digest(),
                &built.docker_digest,
                "{prefix}{stored_as}"
            );
            assert_blobs_are_right(&bundle, root);
        }
    }
}

#[test]
fn a_layer_given_as_a_link_before_its_target_is_found() {
    let mut archive = docker(two_layers());
    let layer = archive.images[0].manifests[0].layers[0].clone();
    archive.link(&layer, "late.tar", |_| EntryKind::HardLink("late.tar".to_owned()));
    archive.entries.rotate_left(1);
    assert!(is_whole(&only_image(&good(&archive)).root));
}

#[test]
fn the_same_layer_may_be_listed_twice() {
    let archive = docker(Image::new("a:1").platform("linux/amd64").layer(b"x").layer(b"x"));
    let bundle = good(&archive);
    let root = &only_image(&bundle).root;
    assert_eq!(manifest(root).layers.len(), 2);
    assert_eq!(
        root.descriptor.digest(),
        &archive.images[0].manifests[0].docker_digest
    );
}

#[test]
fn a_config_may_have_any_name() {
    let mut archive = docker(two_layers());
    let built = archive.images[0].manifests[0].clone();
    let name = archive.name_of(&built.config);
    let config = archive.bytes_of(&name);
    archive.remove(&name);
    archive.add(built.config.as_ref(), config);
    let document = String::from_utf8(archive.bytes_of("manifest.json")).unwrap();
    archive.set("manifest.json", document.replace(&name, built.config.as_ref()));
    assert_eq!(
        only_image(&good(&archive)).root.descriptor.digest(),
        &built.docker_digest
    );
}

#[test]
fn repo_tags_are_kept_as_they_are() {
    let rows = [
        (json!(["a:1", "UPPER/x", ""]), vec!["a:1", "UPPER/x", ""]),
        (json!([]), vec![]),
        (json!(null), vec![]),
    ];
    for (tags, names) in rows {
        let mut archive = docker(two_layers());
        let document = String::from_utf8(archive.bytes_of("manifest.json")).unwrap();
        archive.set("manifest.json", document.replace(r#"["a:1"]"#, &tags.to_string()));
        let bundle = good(&archive);
        let found: Vec<_> = only_image(&bundle).names.iter().map(RawName::as_str).collect();
        assert_eq!(found, names);
    }
}

#[test]
fn keys_in_camel_case_are_taken_as_go_takes_them() {
    let mut archive = docker(two_layers());
    let document = String::from_utf8(archive.bytes_of("manifest.json")).unwrap();
    let document = document
        .replace("Config", "config")
        .replace("RepoTags", "repoTags")
        .replace("Layers", "layers");
    let expected = good(&archive).catalog().images.clone();
    archive.set("manifest.json", document);
    assert_eq!(good(&archive).catalog().images, expected);
}

#[test]
fn compressed_layers_are_hashed_and_typed_as_containerd_does() {
    let rows = [
        (GZIP, "application/vnd.docker.image.rootfs.diff.tar.gzip", true),
        (ZSTD, "application/vnd.docker.image.rootfs.diff.tar.gzip", true),
        (XZ, "application/vnd.docker.image.rootfs.diff.tar", false),
    ];
    for (bytes, media_type, runs) in rows {
        let bundle = good(&docker(
            Image::new("a:1")
                .platform("linux/amd64")
                .with_layer(compressed(bytes)),
        ));
        let root = &only_image(&bundle).root;
        let layer = &manifest(root).layers[0];
        assert_eq!(layer.descriptor.digest(), &digest_of(bytes));
        assert_eq!(layer.descriptor.media_type().as_ref(), media_type);
        assert_eq!(
            manifest(root).problems.is_empty(),
            runs,
            "{:?}",
            manifest(root).problems
        );
        assert_blobs_are_right(&bundle, root);
    }
}

#[test]
fn plain_layers_are_not_read_for_their_digest() {
    // Their bytes do not match the config. The import finds that, not the reader.
    let mut archive = docker(two_layers());
    let built = archive.images[0].manifests[0].clone();
    archive.corrupt(&built.layers[0]);
    let bundle = good(&archive);
    assert_eq!(only_image(&bundle).root.descriptor.digest(), &built.docker_digest);
    assert_ne!(digest_of(&blob(&bundle, &built.layers[0])), built.layers[0]);
}

#[test]
fn diff_ids_out_of_step_with_the_layers_are_not_believed() {
    let manifest = Manifest::new("linux/amd64").layer(b"one").layer(b"two");
    let one = json!({ "type": "layers", "diff_ids": [digest_of(b"anything")] });
    let md5 = json!({ "type": "layers", "diff_ids": ["md5:x", "sha512:y"] });
    for (rootfs, problems) in [(one, 1), (json!(null), 1), (md5, 0)] {
        let archive = docker(Image::new("a:1").manifest(manifest.clone().config("rootfs", rootfs)));
        let bundle = good(&archive);
        let root = &only_image(&bundle).root;
        assert_eq!(crate::common::manifest(root).problems.len(), problems);
        assert_eq!(
            root.descriptor.digest(),
            &archive.images[0].manifests[0].docker_digest
        );
        assert_blobs_are_right(&bundle, root);
    }
}

#[test]
fn what_is_wrong_with_one_image_does_not_touch_the_other() {
    let archive = Layout::docker()
        .image(two_layers())
        .image(Image::new("b:1").layer(b"good"))
        .build();
    let built = archive.images[0].manifests[0].clone();
    let layer = archive.name_of(&built.layers[1]);
    let config = archive.name_of(&built.config);
    let mut rows = Vec::new();

    let mut no_layer = archive.clone();
    no_layer.remove(&layer);
    rows.push((no_layer, format!("layer {layer} is not in the archive"), true));

    let mut dangling = archive.clone();
    dangling.replace(&layer, EntryKind::Symlink("nowhere".to_owned()));
    rows.push((
        dangling,
        format!("layer {layer} is a link to a missing file"),
        true,
    ));

    let mut no_config = archive.clone();
    no_config.remove(&config);
    rows.push((no_config, format!("config {config} is not in the archive"), false));

    let mut huge_config = archive.clone();
    huge_config.set(&config, vec![b' '; (8 << 20) + 1]);
    rows.push((
        huge_config,
        format!("config {config} has 8388609 bytes, more than 8388608"),
        false,
    ));

    for (archive, expected, platform_known) in rows {
        let bundle = good(&archive);
        let [bad, other] = bundle.catalog().images.as_slice() else {
            panic!("two images")
        };
        assert_eq!(broken(&bad.root), expected);
        assert_eq!(bad.names, [RawName::RepoTag("a:1".to_owned())]);
        assert_eq!(bad.root.platform.is_some(), platform_known);
        assert!(is_whole(&other.root));
    }
}

#[test]
fn a_config_that_is_no_json_is_a_problem_of_the_image() {
    let manifest = Manifest::new("linux/amd64").config_bytes("no json").layer(b"x");
    let bundle = good(&docker(Image::new("a:1").manifest(manifest)));
    let manifest = crate::common::manifest(&only_image(&bundle).root);
    assert!(
        manifest.problems[0].contains("is not valid"),
        "{:?}",
        manifest.problems
    );
    assert_eq!(manifest.config.state, PartState::Present);
}

#[test]
fn an_unusable_manifest_json_is_an_error_that_says_so() {
    for (document, expected) in [
        ("null", "lists no images"),
        ("[]", "lists no images"),
        ("{}", "a list"),
        ("", "EOF"),
    ] {
        let mut archive = docker(two_layers());
        archive.set("manifest.json", document.to_owned());
        match refused(&archive) {
            Fault::Document {
                entry: "manifest.json",
                reason,
            } => assert!(reason.contains(expected), "{reason}"),
            fault => panic!("{fault}"),
        }
    }
}

#[test]
fn an_unusable_element_is_that_images_trouble_only() {
    let mut archive = docker(two_layers());
    let good_one = String::from_utf8(archive.bytes_of("manifest.json")).unwrap();
    let document = good_one.replacen('[', r#"[7, {"Config": 7}, [], "#, 1);
    archive.set("manifest.json", document);
    let bundle = good(&archive);
    let [rest @ .., last] = bundle.catalog().images.as_slice() else {
        panic!("images")
    };
    assert_eq!(rest.len(), 3);
    for image in rest {
        assert!(broken(&image.root).contains("its element of manifest.json is not valid"));
    }
    assert!(is_whole(&last.root));
}

#[test]
fn the_digest_of_the_content_covers_layers_that_the_document_does_not_pin() {
    let archive = |bytes: &[u8]| {
        let mut archive = docker(Image::new("a:1").platform("linux/amd64").layer(bytes));
        let built = archive.images[0].manifests[0].clone();
        let (config, layer) = (archive.name_of(&built.config), archive.name_of(&built.layers[0]));
        for (name, plain) in [(config, "config.json"), (layer, "layer.tar")] {
            let bytes = archive.bytes_of(&name);
            archive.remove(&name).add(plain, bytes);
        }
        archive.set(
            "manifest.json",
            r#"[{"Config":"config.json","Layers":["layer.tar"]}]"#.to_owned(),
        );
        archive
    };
    let digest = |archive: &Archive| good(archive).catalog().digest.clone();
    assert_eq!(digest(&archive(b"x")), digest(&archive(b"x")));
    assert_ne!(digest(&archive(b"x")), digest(&archive(b"y")));
}
