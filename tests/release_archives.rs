//! Archives as the releases of k3s and RKE2 have them, and hauls of hauler. The tests build
//! archives of the same shape, because the real archives have gigabytes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use bundle::Compression;
use bundle::fixtures::{Archive, EntryKind, Image, Layer, Layout, Manifest, compress};
use lab::Generation;
use oci_spec::image::Digest;
use serde_json::{Value, json};

use crate::support::bundles::{self, PLATFORMS, multi_platform, native, records_of, text};
use crate::support::node::outcomes;
use crate::support::target::BUNDLE;
use crate::support::{Node, Place, Target, on_each_real_containerd, on_the_fake, unique};

/// Returns an image of one platform with a layer as registries have it: compressed with gzip.
fn from_a_registry(name: &str) -> Image {
    Image::new(name).platform(native()).with_layer(gzip_layer())
}

fn gzip_layer() -> Layer {
    let plain = Layer::new(unique());
    let mut packed = Vec::new();
    compress(Compression::Gzip, &mut packed, |target| {
        target.write_all(&plain.to_bytes())
    })
    .unwrap();
    Layer::compressed(&plain, packed, "application/vnd.oci.image.layer.v1.tar+gzip")
}

/// Writes an archive as the releases have it: compressed with zstd, with these documents first.
fn write(archive: &mut Archive, first: &[&str], path: &Path) {
    for name in first.iter().rev() {
        archive.move_first(name);
    }
    fs::write(path, archive.to_compressed(Compression::Zstd)).unwrap();
}

/// Returns what `docker image save` writes since version 25.
fn docker_save(images: impl IntoIterator<Item = Image>) -> Archive {
    let mut archive = images.into_iter().fold(Layout::hybrid(), Layout::image).build();
    archive.add("repositories", "{}".to_owned());
    archive
}

/// Returns what `crane pull` writes: a Docker archive with compressed layers and names of its own.
fn crane_pull(images: impl IntoIterator<Item = Image>) -> Archive {
    let mut archive = bundles::docker(images).build();
    let mut list = String::from_utf8(archive.bytes_of("manifest.json")).unwrap();
    for entry in &mut archive.entries {
        let old = entry.name.clone();
        if let Some(hex) = old.strip_suffix("/layer.tar") {
            entry.name = format!("{hex}.tar.gz");
        } else if let Some(hex) = old.strip_suffix(".json").filter(|hex| hex.len() == 64) {
            entry.name = format!("sha256:{hex}");
        }
        list = list.replace(&old, &entry.name);
    }
    archive.set("manifest.json", list);
    archive
}

/// The list of an archive's images, as releases have it beside the archive.
fn list(path: &Path, names: &[&str]) {
    fs::write(path, names.join("\n") + "\n").unwrap();
}

/// RKE2 makes its archives of `docker image save` and of `crane pull`, and moves the documents to
/// the front.
fn archives_of_rke2_are_imported_and_have_the_images_of_their_lists(target: &Target) {
    let node = Node::on(target);
    let core = ["docker.io/rancher/rke2-runtime:v1", "docker.io/rancher/pause:1"];
    let canal = [
        "docker.io/rancher/hardened-calico:v3",
        "docker.io/rancher/hardened-flannel:v0",
    ];
    let of_docker = node.path("rke2-images-core.linux-amd64.tar.zst");
    let of_crane = node.path("rke2-images-canal.linux-amd64.tar.zst");
    let mut saved = docker_save(core.map(from_a_registry));
    let mut pulled = crane_pull(canal.map(from_a_registry));
    write(&mut saved, &["manifest.json", "repositories"], &of_docker);
    write(&mut pulled, &["manifest.json"], &of_crane);
    let all = node.path("rke2-images-all.linux-amd64.txt");
    list(&all, &[core, canal].concat());

    let required = ["verify", "--images", &text(&all), "--bundle", &text(&of_docker)];
    node.airgapd(required).exits(4);
    let expanded = node
        .airgapd([&required[..], &[&text(&of_crane)]].concat())
        .exits(2);
    assert!(
        expanded.said().contains("give each file as --bundle FILE"),
        "{}",
        expanded.said()
    );
    node.airgapd([&required[..], &["--bundle", &text(&of_crane)]].concat())
        .exits(0);

    let report = node.import([&of_docker]).exits(0).bundle();
    assert_eq!(report["format"], "oci-layout+docker-archive");
    let report = node.import([&of_crane]).exits(0).bundle();
    assert_eq!(report["format"], "docker-archive");
    node.airgapd(["verify", "--images", &text(&all)]).exits(0);
    for (name, image) in core.iter().zip(&saved.images) {
        assert_eq!(*target.expect_record(name).target.digest(), image.root, "{name}");
    }
    for (name, image) in canal.iter().zip(&pulled.images) {
        let digest = &image.manifests[0].docker_digest;
        assert_eq!(target.expect_record(name).target.digest(), digest, "{name}");
    }
}

const APP: &str = "registry.test/shop/app:1";
const TOOL: &str = "docker.io/library/tool:1";

/// An artifact of a haul.
fn artifact(config: &str, layer: &str) -> Manifest {
    let layer = Layer::new(unique()).media_type(layer);
    Manifest::new("/")
        .no_platform()
        .config_media_type(config)
        .with_layer(layer)
}

/// hauler's entry of an image. The name of a registry is as its library writes it.
fn hauled(image: Image, registry: &str, path: &str, kind: &str) -> Image {
    image
        .ref_name(path)
        .containerd_name(&format!("{registry}/{path}"))
        .annotation("kind", kind)
        .annotation("hauler.dev/original-ref", &format!("{registry}/{path}"))
}

/// Returns what `hauler store save` packs: two images, and the signature, the attestation and the
/// referrer of one of them, all under the same name. A chart and a file have no name of containerd.
fn haul() -> Archive {
    const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    let app = hauled(
        multi_platform(APP, &PLATFORMS),
        "registry.test",
        "shop/app:1",
        "dev.hauler/imageIndex",
    );
    let hub = |image, kind: &str| hauled(image, "index.docker.io", "library/tool:1", kind);
    let tool = hub(from_a_registry("tool:1"), "dev.hauler/image");
    let beside = |path: &str, manifest| {
        let image = Image::unnamed()
            .ref_name(path)
            .annotation("kind", "dev.hauler/image");
        image.manifest(manifest)
    };
    let chart = artifact(
        "application/vnd.cncf.helm.config.v1+json",
        "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
    );
    let file = artifact(
        "application/vnd.content.hauler.file.local.config.v1+json",
        "application/vnd.content.hauler.file.layer.v1",
    );
    let signature = artifact(CONFIG, "application/vnd.dev.cosign.simplesigning.v1+json");
    let attestation = artifact(CONFIG, "application/vnd.dsse.envelope.v1+json");
    let bundle = "application/vnd.dev.sigstore.bundle.v0.3+json";
    let referrer =
        artifact("application/vnd.oci.empty.v1+json", bundle).member("artifactType", json!(bundle));
    let images = [
        app,
        tool,
        beside("hauler/podinfo:6.0.0", chart),
        beside("hauler/install.sh:latest", file),
        hub(Image::unnamed().manifest(signature), "dev.hauler/sigs"),
        hub(Image::unnamed().manifest(attestation), "dev.hauler/atts"),
        hub(Image::unnamed().manifest(referrer), "dev.hauler/referrers/0a9d"),
    ];
    let mut archive = images.into_iter().fold(Layout::hybrid(), Layout::image).build();
    archive.set("manifest.json", list_of_images(&archive).to_string());
    archive.add("store.json", r#"{"storeId":"0a9d"}"#.to_owned());
    archive.push("blobs/sha256/", EntryKind::Folder);
    archive.move_first("blobs/sha256/");
    archive.push("blobs/", EntryKind::Folder);
    archive.move_first("blobs/");
    archive
}

/// Returns a haul's `manifest.json`: each platform of the images, with the short name of Docker.
fn list_of_images(archive: &Archive) -> Value {
    let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.digest());
    let names = [APP, "tool:1"].iter().zip(&archive.images);
    let platforms = names.flat_map(|(name, image)| image.manifests.iter().map(move |one| (name, one)));
    platforms
        .map(|(name, one)| {
            let layers: Vec<_> = one.layers.iter().map(blob).collect();
            json!({ "Config": blob(&one.config), "RepoTags": [name], "Layers": layers })
        })
        .collect()
}

/// Returns the outcomes of a report's images, without those that were imported.
fn left_out(report: &Value) -> BTreeSet<String> {
    let images = report["images"].as_array().unwrap().iter();
    images
        .filter(|image| image["outcome"] != "created")
        .map(|image| image["reason"].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// Returns the target that containerd's importer gives to the image of Docker Hub.
fn by_containerd(target: &Target, archive: &Archive, folder: &Node) -> Digest {
    let theirs = target.elsewhere();
    let plain = folder.path("plain.tar");
    archive.write_to(&plain);
    let mut arguments = vec!["images", "import", "--no-unpack", "--all-platforms"];
    if !matches!(theirs.place(), Place::Real(Generation::V1_6 | Generation::V1_7)) {
        arguments.push("--local");
    }
    let plain = text(&plain);
    arguments.push(&plain);
    theirs.ctr(&arguments);
    let names = theirs.records();
    let (_, record) = names.iter().find(|(name, _)| name.ends_with("/tool:1")).unwrap();
    record.target.digest().clone()
}

/// containerd's importer records the last entry of a name. In a haul that is a referrer or a
/// signature.
fn of_a_haul_the_images_are_imported_and_neither_charts_nor_files_nor_signatures(target: &Target) {
    let node = Node::on(target);
    let file = node.path("haul.tar.zst");
    let mut archive = haul();
    write(&mut archive, &[], &file);
    let report = node.import([&file]).exits(0).bundle();
    let expected: BTreeSet<String> = [APP, TOOL]
        .iter()
        .zip(&archive.images)
        .flat_map(|(name, image)| records_of(name, image))
        .collect();
    assert_eq!(target.names(), expected, "{report:#}");
    assert_eq!(left_out(&report).len(), 5, "{report:#}");
    let last = &archive.images.last().unwrap().root;
    assert_eq!(by_containerd(target, &archive, &node), *last);

    // The form of `hauler store save --containerd` is a Docker archive.
    archive.remove("oci-layout");
    let other = target.elsewhere();
    let node = Node::on(&other);
    let file = node.path("haul.tar.zst");
    write(&mut archive, &[], &file);
    let report = node.import([&file]).exits(0).bundle();
    assert_eq!(report["format"], "docker-archive");
    for (name, image) in [APP, TOOL].iter().zip(&archive.images) {
        let here = |one: &&bundle::fixtures::BuiltManifest| {
            one.platform
                .as_ref()
                .is_none_or(|platform| platform.to_string() == native())
        };
        let one = image.manifests.iter().find(here).unwrap();
        let digest = &one.docker_digest;
        assert_eq!(other.expect_record(name).target.digest(), digest, "{name}");
    }
    let tool = &archive.images[1].manifests[0].docker_digest;
    assert_eq!(by_containerd(&other, &archive, &node), *tool);
    assert_eq!(
        outcomes(&report)
            .iter()
            .filter(|(_, outcome)| outcome == "created")
            .count(),
        4
    );
}

/// The files of a release in the images folder: the archives are bundles, and nothing else is.
fn beside_the_archives_of_a_release_its_lists_and_checksums_are_ignored(target: &Target) {
    let node = Node::on(target);
    let path = |name: &str| node.images().join(name);
    let named = |name: &str| docker_save([from_a_registry(name)]);
    for (file, name) in [
        ("k3s-airgap-images-amd64.tar.zst", "docker.io/rancher/k3s-image:1"),
        (
            "rke2-images.linux-amd64.tar.zst",
            "docker.io/rancher/rke2-image:1",
        ),
    ] {
        write(&mut named(name), &["manifest.json", "repositories"], &path(file));
    }
    for name in [
        "k3s-images.txt",
        "rke2-images.linux-amd64.txt",
        "rke2-images-all.linux-amd64.txt",
    ] {
        list(&path(name), &["docker.io/rancher/pause:1"]);
    }
    let sums = ["sha256sum-amd64.txt", "sha256sum-arm64.txt"];
    for name in sums {
        let line = format!("{}  k3s-airgap-images-amd64.tar.zst\n", "0a".repeat(32));
        fs::write(path(name), line).unwrap();
    }
    fs::write(path(".cache.json"), "").unwrap();
    let daemon = node.start();
    let answer = node.airgapd(["wait", "--timeout", "20s"]).exits(0);
    assert!(
        answer.stdout.starts_with("2 bundles in place, 6 files ignored"),
        "{answer:?}"
    );
    let status = node.airgapd(["status", "-o", "json"]).exits(0).json();
    let reason = |name: &str| {
        let ignored = status["ignored"].as_array().unwrap().iter();
        let mut ignored = ignored.filter(|entry| entry["name"] == name);
        ignored.next().unwrap()["reason"].as_str().unwrap().to_owned()
    };
    assert!(reason("k3s-images.txt").contains("pullLists"));
    assert!(!reason("sha256sum-amd64.txt").contains("pullLists"));
    let of = |name: &str| {
        target
            .labels(name)
            .into_keys()
            .find(|key| key.starts_with(BUNDLE))
    };
    assert!(of("docker.io/rancher/k3s-image:1").is_some());
    daemon.finish(target);
}

on_each_real_containerd!(
    archives_of_rke2_are_imported_and_have_the_images_of_their_lists,
    of_a_haul_the_images_are_imported_and_neither_charts_nor_files_nor_signatures,
);
on_the_fake!(beside_the_archives_of_a_release_its_lists_and_checksums_are_ignored);
