//! Archives with `index.json` and `manifest.json`: the use of each document.

use crate::common::*;
use crate::docker_archives::two_layers;
use airgapd_bundle::fixtures::{Archive, Image, Layer, Layout, Manifest, Node};
use airgapd_bundle::{Format, RawName, Warning};
use oci_spec::image::Digest;
use serde_json::json;

#[test]
fn of_a_hybrid_the_oci_side_counts() {
    let archive = Layout::hybrid().image(two_layers()).build();
    let bundle = good(&archive);
    assert_eq!(bundle.catalog().format, Format::Hybrid);
    assert_eq!(bundle.catalog().warnings, []);
    let image = only_image(&bundle);
    assert_eq!(image.names, [RawName::RefName("a:1".to_owned())]);
    assert_eq!(image.root.descriptor.digest(), &archive.images[0].root);
    assert_blobs_are_right(&bundle, &image.root);
}

#[test]
fn without_oci_layout_a_hybrid_is_a_docker_archive() {
    let mut archive = Layout::hybrid().image(two_layers()).build();
    archive.remove("oci-layout");
    let bundle = good(&archive);
    assert_eq!(bundle.catalog().format, Format::DockerArchive);
    assert_eq!(
        only_image(&bundle).root.descriptor.digest(),
        &archive.images[0].manifests[0].docker_digest
    );
}

#[test]
fn images_that_only_manifest_json_lists_are_left_out_with_a_warning() {
    let mut archive = Layout::hybrid().image(two_layers()).build();
    let document = format!(
        r#"[{{"Config":"blobs/sha256/{}","RepoTags":["b:1"],"Layers":[]}}]"#,
        "ab".repeat(32)
    );
    archive.set("manifest.json", document);
    let bundle = good(&archive);
    assert_eq!(only_image(&bundle).names, [RawName::RefName("a:1".to_owned())]);
    assert_eq!(bundle.catalog().warnings, [Warning::NotInIndex { count: 1 }]);
}

/// Docker 25.0 wrote such archives: https://github.com/moby/moby/issues/47065 and 47150.
#[test]
fn manifest_json_stands_in_for_a_broken_oci_side() {
    let rows = [
        (
            Manifest::new("linux/amd64")
                .layer(b"one")
                .layer(b"two")
                .member("layers", json!([])),
            "has 0 layers",
        ),
        {
            let (one, two) = (Layer::new(b"one".to_vec()), Layer::new(b"two".to_vec()));
            let of = |layer: &Layer| {
                let media_type = "application/vnd.oci.image.layer.v1.tar";
                json!({ "mediaType": media_type, "digest": layer.digest(), "size": 2048 })
            };
            let wrong_order = json!([of(&two), of(&one)]);
            let manifest = Manifest::new("linux/amd64").with_layer(one).with_layer(two);
            (manifest.member("layers", wrong_order), "should be")
        },
    ];
    for (broken, expected) in rows {
        let image = Image::new("a:1").annotation("k", "v").manifest(broken);
        let archive = Layout::hybrid()
            .image(image)
            .image(Image::new("b:1").layer(b"good"))
            .build();
        let bundle = good(&archive);
        let [rescued, other] = bundle.catalog().images.as_slice() else {
            panic!("two images")
        };
        assert_eq!(
            rescued.root.descriptor.digest(),
            &archive.images[0].manifests[0].docker_digest
        );
        assert_eq!(rescued.root.descriptor.annotations().as_ref().unwrap()["k"], "v");
        assert_eq!(rescued.names, [RawName::RefName("a:1".to_owned())]);
        assert!(is_whole(&rescued.root));
        assert_blobs_are_right(&bundle, &rescued.root);
        assert_eq!(other.root.descriptor.digest(), &archive.images[1].root);
        let [Warning::OciSideBroken { image, reason }] = bundle.catalog().warnings.as_slice() else {
            panic!("{:?}", bundle.catalog().warnings)
        };
        assert_eq!(image, "a:1");
        assert!(reason.contains(expected), "{reason}");
    }
}

#[test]
fn a_broken_oci_side_stays_broken_where_manifest_json_is_no_better() {
    let broken = Manifest::new("linux/amd64")
        .layer(b"one")
        .member("layers", json!([]));
    let mut archive = Layout::hybrid().image(Image::new("a:1").manifest(broken)).build();
    let layer = archive.images[0].manifests[0].layers[0].clone();
    archive.remove_blob(&layer);
    let bundle = good(&archive);
    assert_eq!(
        only_image(&bundle).root.descriptor.digest(),
        &archive.images[0].root
    );
    assert_eq!(bundle.catalog().warnings, []);
}

/// Docker 25.0 wrote such archives: https://github.com/moby/moby/issues/47210.
#[test]
fn manifest_json_is_used_where_the_index_lists_nothing() {
    for index in [r#"{"schemaVersion":2,"manifests":null}"#, r#"{"manifests":[]}"#] {
        let mut archive = Layout::hybrid().image(two_layers()).build();
        archive.set("index.json", index.to_owned());
        let bundle = good(&archive);
        assert_eq!(bundle.catalog().format, Format::Hybrid);
        assert_eq!(
            only_image(&bundle).root.descriptor.digest(),
            &archive.images[0].manifests[0].docker_digest
        );
        assert_eq!(
            bundle.catalog().warnings,
            [Warning::IndexUnusable("lists no images")]
        );
    }
}

#[test]
fn manifest_json_is_used_where_a_layout_has_no_index() {
    let mut archive = Layout::hybrid().image(two_layers()).build();
    archive.remove("index.json");
    let bundle = good(&archive);
    assert_eq!(bundle.catalog().format, Format::DockerArchive);
    assert_eq!(bundle.catalog().warnings, [Warning::IndexUnusable("is missing")]);
}

fn tags(names: &[&str]) -> Vec<RawName> {
    names
        .iter()
        .map(|name| RawName::RepoTag((*name).to_owned()))
        .collect()
}

/// https://github.com/bazel-contrib/rules_img/issues/462 and moby/moby#45416
#[test]
fn a_name_that_only_manifest_json_has_is_the_images_name() {
    let manifest = |platform: &str| Manifest::new(platform).layer(platform.as_bytes());
    let (amd64, arm64) = (|| manifest("linux/amd64"), || manifest("linux/arm64"));
    let index = |first: Manifest, second: Manifest| {
        let root = Node::Index(vec![first.into(), second.into()]);
        Image::unnamed().repo_tag("multi:1").root(root)
    };
    for image in [
        Image::unnamed().repo_tag("multi:1").manifest(amd64()),
        // manifest.json lists only the first manifest.
        index(amd64(), arm64()),
        index(arm64(), amd64()),
    ] {
        let archive = Layout::hybrid().image(image).build();
        let bundle = good(&archive);
        let image = only_image(&bundle);
        assert_eq!(image.names, tags(&["multi:1"]));
        assert_eq!(image.root.descriptor.digest(), &archive.images[0].root);
        assert_eq!(bundle.catalog().warnings, []);
    }
}

#[test]
fn an_image_that_the_index_names_has_no_other_name_and_keeps_it() {
    let image = |layer: &str| Image::unnamed().platform("linux/amd64").layer(layer);
    let archive = Layout::hybrid()
        .image(
            image("x")
                .containerd_name("docker.io/library/a:1")
                .repo_tag("a:1")
                .repo_tag("b:1"),
        )
        .image(image("y").ref_name("r.test/c:1").repo_tag("r.test/c:1"))
        .image(
            image("z")
                .repo_tag("b:1")
                .repo_tag("a:1")
                .repo_tag("docker.io/org/d:1"),
        )
        // A tag alone is not a whole name.
        .image(image("t").ref_name("2").repo_tag("r.test/t:2"))
        .build();
    let bundle = good(&archive);
    let names: Vec<_> = bundle
        .catalog()
        .images
        .iter()
        .map(|image| image.names.clone())
        .collect();
    assert_eq!(
        names,
        [
            vec![RawName::ContainerdName("docker.io/library/a:1".to_owned())],
            vec![RawName::RefName("r.test/c:1".to_owned())],
            tags(&["b:1", "docker.io/org/d:1"]),
            [vec![RawName::RefName("2".to_owned())], tags(&["r.test/t:2"])].concat(),
        ]
    );
}

/// The whole effect of the documents, and the digest that stands for it.
fn effect(archive: &Archive) -> Option<(Digest, String)> {
    let bundle = open(&archive.to_bytes()).ok()?;
    let catalog = bundle.catalog();
    let effect = format!(
        "{:?}",
        (
            &catalog.format,
            &catalog.images,
            &catalog.relies_on,
            &catalog.warnings
        )
    );
    Some((catalog.digest.clone(), effect))
}

#[test]
fn each_byte_of_both_documents_is_in_the_digest_or_has_no_effect() {
    let broken = Manifest::new("linux/amd64")
        .layer(b"one")
        .layer(b"two")
        .member("layers", json!([]));
    let mut silent = Layout::hybrid().image(two_layers()).build();
    silent.set("manifest.json", "null".to_owned());
    let mut left_out = Layout::hybrid().image(two_layers()).build();
    let other = format!(r#"[{{"Config":"{}","RepoTags":["b:1"]}}]"#, "ab".repeat(32));
    left_out.set("manifest.json", other);
    for archive in [
        Layout::hybrid().image(two_layers()).build(),
        Layout::hybrid()
            .image(
                Image::unnamed()
                    .repo_tag("a:1")
                    .platform("linux/amd64")
                    .layer(b"x"),
            )
            .build(),
        Layout::hybrid().image(Image::new("a:1").manifest(broken)).build(),
        silent,
        left_out,
    ] {
        let (digest, before) = effect(&archive).expect("it opens");
        for document in ["index.json", "manifest.json"] {
            let bytes = archive.bytes_of(document);
            for at in 0..bytes.len() {
                for change in [1, 2, 0x20] {
                    let mut changed = bytes.clone();
                    changed[at] ^= change;
                    let mut other = archive.clone();
                    other.set(document, changed);
                    let Some((found, after)) = effect(&other) else {
                        continue;
                    };
                    assert!(
                        found != digest || after == before,
                        "byte {at} of {document}:\n{before}\n{after}"
                    );
                }
            }
        }
    }
}

/// A name of `manifest.json` belongs to the first image with its config. Without some manifests,
/// that may be another image.
#[test]
fn blobs_that_are_left_out_or_added_change_no_name_under_the_same_digest() {
    let manifest = |platform: &str| Manifest::new(platform).layer(platform.as_bytes());
    let (amd64, arm64) = (|| manifest("linux/amd64"), || manifest("linux/arm64"));
    let index = Node::Index(vec![amd64().into(), arm64().into()]);
    let whole = Layout::hybrid()
        .image(Image::unnamed().repo_tag("multi:1").root(index))
        .image(Image::unnamed().repo_tag("single:1").manifest(arm64()))
        .build();
    let manifests: Vec<Digest> = whole.images[0]
        .manifests
        .iter()
        .map(|built| built.digest.clone())
        .collect();
    let configs: Vec<Digest> = whole.images[0]
        .manifests
        .iter()
        .map(|built| built.config.clone())
        .collect();
    let blobs: Vec<Digest> = manifests.into_iter().chain(configs).collect();
    let names = |archive: &Archive| {
        let (digest, _) = effect(archive).expect("it opens");
        let named = good(archive);
        let named = named.catalog().images.iter();
        (digest, named.map(|image| image.names.clone()).collect::<Vec<_>>())
    };
    let mut seen = vec![names(&whole)];
    for left_out in 1_u32..1 << blobs.len() {
        let mut archive = whole.clone();
        for (n, blob) in blobs.iter().enumerate() {
            if left_out & (1 << n) != 0 {
                archive.remove_blob(blob);
            }
        }
        seen.push(names(&archive));
    }
    for (digest, given) in &seen {
        for (other, other_given) in &seen {
            assert!(
                digest != other || given == other_given,
                "{digest}: {given:?} {other_given:?}"
            );
        }
    }
    let different: std::collections::HashSet<_> =
        seen.iter().map(|(_, names)| format!("{names:?}")).collect();
    assert!(different.len() > 2, "the blobs decide about names: {different:?}");
}
