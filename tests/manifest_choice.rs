//! The manifest of an index that containerd uses. It must be whole and an image, or else the image
//! gets no record.

use std::fs;

use bundle::fixtures::{Archive, EntryKind, Image, Layer, LayerFile, Layout, Manifest, Node as Tree};
use lab::{Generation, Options};
use oci_spec::image::{Descriptor, MediaType};
use serde_json::json;

use crate::support::bundles::{native, text};
use crate::support::{
    Node, Own, Place, Target, on_each_containerd, on_each_real_containerd, on_its_own_containerd, unique,
};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn name() -> String {
    format!("registry.test/choosing-{}:1", unique())
}

fn listed(name: &str, manifests: impl IntoIterator<Item = Manifest>) -> Archive {
    let nodes = manifests.into_iter().map(Tree::from).collect();
    Layout::new()
        .image(Image::new(name).root(Tree::Index(nodes)))
        .build()
}

fn image() -> Manifest {
    Manifest::new(native()).layer(unique())
}

/// Returns a software bill of materials for a platform.
fn sbom(platform: &str) -> Manifest {
    Manifest::new(platform)
        .layer(unique())
        .config_bytes("{}")
        .config_media_type("application/spdx+json")
}

/// Returns a manifest as the converter of nydus makes it: for nodes with the feature, with layers
/// that containerd alone cannot unpack.
fn nydus(config: &str) -> Manifest {
    let blob = Layer::plain(unique().repeat(20).into_bytes().into());
    let (os, architecture) = native().split_once('/').expect("a platform");
    let platform = json!({"os": os, "architecture": architecture, "os.features": ["nydus.remoteimage.v1"]});
    Manifest::new(native())
        .with_layer(blob.media_type("application/vnd.oci.image.layer.nydus.blob.v1"))
        .config_media_type(config)
        .descriptor_member("platform", platform)
}

fn write(node: &Node, archive: &Archive) -> String {
    let file = node.path("b.tar");
    archive.write_to(&file);
    text(&file)
}

/// Creates everything of an archive in containerd, like an importer that checks nothing.
fn put(target: &Target, name: &str, archive: &Archive) {
    for entry in archive
        .entries
        .iter()
        .filter(|entry| entry.name.starts_with("blobs/"))
    {
        if let EntryKind::File(data) = &entry.kind {
            target.put_blob(&data.to_bytes(), &[]);
        }
    }
    let root = &archive.images[0].root;
    let size = archive.bytes_of(&archive.name_of(root)).len() as u64;
    target.put_record(
        name,
        &Descriptor::new(MediaType::from(INDEX), size, root.clone()),
        &[],
    );
}

/// bazel-contrib/rules_img#742, opencontainers/image-spec#862
fn an_image_behind_an_artifact_gets_no_record(target: &Target) {
    let node = Node::on(target);
    let name = name();
    let mut archive = listed(&name, [sbom(native()), image()]);
    let [used, meant] = [0, 1].map(|at| archive.images[0].manifests[at].clone());
    let file = write(&node, &archive);
    let answer = node.import([&file]).exits(5);
    let reason = answer.bundle()["images"][0]["reason"].to_string();
    for part in [
        "application/spdx+json",
        used.digest.as_ref(),
        meant.digest.as_ref(),
    ] {
        assert!(reason.contains(part), "{reason}");
    }
    archive.remove_blob(&used.layers[0]);
    let file = write(&node, &archive);
    let answer = node.import([&file]).exits(5);
    let reason = answer.bundle()["images"][0]["reason"].to_string();
    assert!(reason.contains(used.layers[0].as_ref()), "{reason}");
    node.airgapd(["inspect", &file]).exits(5);
    assert!(target.record(&name).is_none());
}

fn artifacts_that_containerd_passes_over_change_nothing(target: &Target) {
    let node = Node::on(target);
    let name = name();
    let archive = listed(
        &name,
        [
            sbom("unknown/unknown"),
            sbom(native()).platform_in_config_only(),
            image(),
            sbom(native()),
        ],
    );
    let file = write(&node, &archive);
    node.airgapd(["inspect", &file]).exits(0);
    node.import([&file]).exits(0);
    assert_eq!(
        target.expect_record(&name).target.digest(),
        &archive.images[0].root
    );
}

/// A name that only `manifest.json` has is the image's name for every command.
fn a_name_of_manifest_json_alone_is_imported_shown_and_merged(target: &Target) {
    let node = Node::on(target);
    let tag = format!("multi-{}:1", unique().to_lowercase());
    let full = format!("docker.io/library/{tag}");
    let foreign = Manifest::new("linux/s390x").layer(unique());
    let root = Tree::Index(vec![foreign.into(), image().into()]);
    let archive = Layout::hybrid()
        .image(Image::unnamed().repo_tag(&tag).root(root))
        .build();
    let file = write(&node, &archive);
    let shown = node.airgapd(["inspect", "-o", "json", &file]).exits(0).json();
    assert_eq!(shown["images"][0]["names"], json!([tag]), "{shown:#}");
    assert_eq!(shown["images"][0]["records"][0], json!(full), "{shown:#}");
    let merged = text(&node.path("merged.tar"));
    node.airgapd(["bundle", "merge", &file, "-o", &merged]).exits(0);
    let shown = node.airgapd(["inspect", "-o", "json", &merged]).exits(0).json();
    assert_eq!(shown["images"][0]["names"], json!([full]), "{shown:#}");
    node.import([&file]).exits(0);
    assert_eq!(
        target.expect_record(&full).target.digest(),
        &archive.images[0].root
    );
}

on_each_containerd!(
    an_image_behind_an_artifact_gets_no_record,
    artifacts_that_containerd_passes_over_change_nothing,
    a_name_of_manifest_json_alone_is_imported_shown_and_merged,
);

/// Other importers record the image nevertheless, and `verify` reports that it cannot start.
fn verify_says_that_an_image_behind_an_artifact_cannot_start(target: &Target) {
    let node = Node::on(target);
    let name = name();
    put(target, &name, &listed(&name, [sbom(native()), image()]));
    let list = node.path("list.txt");
    fs::write(&list, &name).unwrap();
    let found = node
        .airgapd(["verify", "-o", "json", "--images", &text(&list)])
        .exits(4)
        .json();
    let told = found["images"][0].to_string();
    assert!(
        told.contains("not a container image but application/spdx+json"),
        "{found:#}"
    );
}

/// The remedy of `verify` works: not a bundle of the same index, but the image by its digest.
fn an_image_behind_an_artifact_runs_when_it_is_asked_for_by_its_digest(own: &mut Own) {
    let (target, node) = (&own.target, Node::on(&own.target));
    let name = name();
    let repository = name.strip_suffix(":1").unwrap();
    let busybox = fs::read(lab::parts::busybox().expect("a busybox")).expect("the file can be read");
    let files = [
        LayerFile::folder("bin/"),
        LayerFile::executable("bin/busybox", busybox),
        LayerFile::new("own", unique()),
    ];
    let meant = || Manifest::new(native()).with_layer(Layer::files(files.clone()));
    let archive = listed(&name, [sbom(native()), meant()]);
    let image = archive.images[0].manifests[1].digest.clone();
    put(target, &name, &archive);
    let list = node.path("list.txt");
    fs::write(&list, &name).unwrap();
    let verify = |bundles: &[&str]| {
        let asked = text(&list);
        let fixed = ["verify", "-o", "json", "--images", &asked];
        let found = node.airgapd(fixed.iter().chain(bundles)).json();
        let images = found["images"].as_array().expect("a list").clone();
        // CRI of 1.6 and 1.7 also reports its sandbox image.
        let is_asked = |image: &serde_json::Value| image["sources"].to_string().contains(&asked);
        images
            .into_iter()
            .find(is_asked)
            .expect("the request is answered")
    };
    let remedy = |answer: &serde_json::Value| answer["remedy"].as_str().unwrap().to_owned();
    let by_digest = format!("{repository}@{image}");
    let answer = verify(&[]);
    assert_eq!(answer["status"], "incomplete", "{answer:#}");
    for words in [
        "no bundle of this index helps",
        &format!("bundle {by_digest} by itself"),
    ] {
        assert!(remedy(&answer).contains(words), "{answer:#}");
    }
    // A bundle of the same index does not help.
    let same = node.path("same.tar");
    archive.write_to(&same);
    node.import([text(&same)]).exits(5);
    assert_eq!(verify(&[])["status"], "incomplete");
    target.remove_record(&name);
    let of_bundle = verify(&["--bundle", &text(&same)]);
    node.drop_in(&same);
    for answer in [of_bundle, verify(&[])] {
        assert!(
            remedy(&answer).contains("no bundle of this index helps"),
            "{answer:#}"
        );
    }

    let alone = Layout::new().image(Image::new(&by_digest).manifest(meant()));
    alone.write_to(&node.path("alone.tar"));
    node.import([text(&node.path("alone.tar"))]).exits(0);
    fs::write(&list, &by_digest).unwrap();
    let answer = verify(&[]);
    assert_eq!(answer["status"], "present", "{answer:#}");
    let known = target
        .image_status(&by_digest)
        .expect("CRI knows it by that name");
    assert!(known.id.starts_with("sha256:"), "{known:?}");
    let said = own.containerd.run(&by_digest, &["/bin/busybox", "echo", "hello"]);
    assert_eq!(said.expect("the container runs").trim(), "hello");
}

/// No containerd unpacks layers of nydus alone. `verify` does not report them if this containerd
/// skips them.
fn verify_tells_of_layers_that_only_a_plugin_unpacks(target: &Target) {
    let node = Node::on(target);
    let name = name();
    put(
        target,
        &name,
        &listed(
            &name,
            [nydus("application/vnd.oci.image.config.v1+json"), image()],
        ),
    );
    let list = node.path("list.txt");
    fs::write(&list, &name).unwrap();
    let found = node
        .airgapd(["verify", "-o", "json", "--images", &text(&list)])
        .json();
    assert_eq!(found["images"][0]["status"], "present", "{found:#}");
    let told = found["images"][0]["warnings"].to_string();
    assert_eq!(
        told.contains("nydus.blob.v1 with a plugin only"),
        !counts_features(target),
        "{told}"
    );
}

on_each_real_containerd!(
    verify_says_that_an_image_behind_an_artifact_cannot_start,
    verify_tells_of_layers_that_only_a_plugin_unpacks,
);

fn defaults() -> Options {
    Options::default()
}

fn counts_features(target: &Target) -> bool {
    match target.place() {
        Place::Real(generation) => generation != Generation::V1_6 && generation != Generation::V1_7,
        Place::Fake => false,
    }
}

/// dragonflyoss/nydus#1976: containerd skips manifests that require features from Debian's 2.1 on.
/// Earlier versions do not.
fn what_is_unpacked_and_must_be_whole_is_what_this_containerd_uses(own: &mut Own) {
    let node = Node::on(&own.target);
    let counts = counts_features(&own.target);
    let busybox = fs::read(lab::parts::busybox().expect("a busybox")).expect("the file can be read");
    let plain = || {
        let files = [
            LayerFile::folder("bin/"),
            LayerFile::executable("bin/busybox", busybox.clone()),
            LayerFile::symlink("bin/sh", "busybox"),
            LayerFile::new("own", unique()),
        ];
        Manifest::new(native()).with_layer(Layer::files(files))
    };
    for config in [
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.nydus.image.config.v1+json",
    ] {
        for lacks_blob in [false, true] {
            let name = name();
            let mut archive = listed(&name, [nydus(config), plain()]);
            if lacks_blob {
                let blob = archive.images[0].manifests[0].layers[0].clone();
                archive.remove_blob(&blob);
            }
            let file = write(&node, &archive);
            let answer = node.import([file.as_str(), "--unpack", "before-record"]);
            if counts {
                answer.exits(0);
                let said = own.containerd.run(&name, &["/bin/sh", "-c", "echo hello"]);
                assert_eq!(said.expect("the container runs").trim(), "hello");
            } else {
                answer.exits(5);
                assert!(own.target.record(&name).is_none(), "{config}");
            }
        }
    }
}

on_its_own_containerd!(
    defaults;
    what_is_unpacked_and_must_be_whole_is_what_this_containerd_uses,
    an_image_behind_an_artifact_runs_when_it_is_asked_for_by_its_digest,
);
