//! The content of registries: every form of image arrives with the registry's digest.

use std::path::Path;

use bundle::fixtures::{Image, Layer, LayerFile, Layout, Manifest, Node as Tree};
use lab::Options;
use oci_spec::image::Digest;
use serde_json::{Value, json};

use super::{answer, blobs_in, bundle, files_in};
use crate::support::bundles::{PLATFORMS, native, text};
use crate::support::node::program;
use crate::support::registry::Registry;
use crate::support::target::Own;
use crate::support::{Node, on_its_own_containerd, unique};

/// Returns an image for three platforms. The image for this machine prints a greeting.
fn hello() -> Image {
    let busybox = std::fs::read(lab::parts::busybox().expect("a busybox")).expect("the file can be read");
    let files = |platform: &str| {
        let busybox = if platform == native() {
            busybox.clone()
        } else {
            b"another".to_vec()
        };
        [
            LayerFile::folder("bin/"),
            LayerFile::executable("bin/busybox", busybox),
            LayerFile::symlink("bin/sh", "busybox"),
            LayerFile::new("own", unique()),
        ]
    };
    PLATFORMS.iter().fold(Image::new(MADE), |image, platform| {
        image.platform(platform).with_layer(Layer::files(files(platform)))
    })
}

/// Name of the image in the archive from which skopeo copies.
const MADE: &str = "made.test/hello:1";

fn manifest(platform: &str) -> Manifest {
    Manifest::new(platform).layer(unique())
}

fn digest_of(manifest: &Manifest) -> Digest {
    let archive = Layout::new()
        .image(Image::unnamed().manifest(manifest.clone()))
        .build();
    archive.images[0].manifests[0].digest.clone()
}

/// Returns an attestation as BuildKit adds it to an index: a manifest without a platform, with the
/// digest of its subject.
fn attestation(about: &Digest) -> Manifest {
    let annotations = json!({
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": about.to_string(),
    });
    Manifest::new("unknown/unknown")
        .with_layer(
            Layer::plain(format!("{{\"about\":\"{about}\"}}").into_bytes().into())
                .media_type("application/vnd.in-toto+json"),
        )
        .descriptor_member("annotations", annotations)
}

/// Returns an index with a manifest for each platform, each with an attestation.
fn attested() -> (Image, Vec<(Digest, Digest)>) {
    let pairs = PLATFORMS.map(|platform| {
        let manifest = manifest(platform);
        let attestation = attestation(&digest_of(&manifest));
        (manifest, attestation)
    });
    let digests = pairs
        .iter()
        .map(|(manifest, about)| (digest_of(manifest), digest_of(about)));
    let digests = digests.collect();
    let children = pairs
        .into_iter()
        .flat_map(|(manifest, about)| [manifest.into(), about.into()]);
    (Image::unnamed().root(Tree::Index(children.collect())), digests)
}

fn artifact() -> Manifest {
    Manifest::new(native())
        .no_platform()
        .config_media_type("application/vnd.oci.empty.v1+json")
        .config_bytes("{}")
        .member("artifactType", json!("application/vnd.test.thing"))
        .with_layer(Layer::plain(unique().into_bytes().into()).media_type("text/plain"))
}

/// Fills a registry with one image of each form. Returns the repositories.
fn fill(registry: &Registry, made: &Path) -> Vec<&'static str> {
    Layout::new().image(hello()).write_to(made);
    let skopeo = |place: &str, flags: &[&str]| registry.fill_with_skopeo(made, MADE, place, flags);
    skopeo("form/multi:1", &["--all"]);
    skopeo("form/zstd:1", &["--all", "--dest-compress-format", "zstd"]);
    skopeo("form/docker:1", &["--all", "--format", "v2s2"]);
    skopeo("form/single:1", &[]);
    registry.push("form/attested", "1", attested().0);
    let inner = Tree::Index(PLATFORMS.map(|platform| manifest(platform).into()).into());
    registry.push(
        "form/nested",
        "1",
        Image::unnamed().root(Tree::Index(vec![inner])),
    );
    vec![
        "form/multi",
        "form/zstd",
        "form/docker",
        "form/single",
        "form/attested",
        "form/nested",
    ]
}

fn image_of<'r>(report: &'r Value, name: &str) -> &'r Value {
    let images = report["images"].as_array().expect("there are images");
    images
        .iter()
        .find(|image| image["name"] == name)
        .unwrap_or_else(|| panic!("no {name} in {report:#}"))
}

fn defaults() -> Options {
    Options::default()
}

fn every_form_of_image_arrives_with_the_digest_of_the_registry_and_runs(own: &mut Own) {
    let Some(registry) = Registry::start() else { return };
    let (target, node) = (&own.target, Node::on(&own.target));
    let repositories = fill(&registry, &node.path("made.tar"));
    let (name, host) = (
        |repository: &str| format!("{}/{repository}:1", registry.host()),
        registry.host(),
    );
    let file = text(&node.path("bundle.tar"));
    let references = repositories.iter().map(|repository| name(repository));
    let arguments = references.chain(["-o", &file, "-o", "json"].map(str::to_owned));
    let report = bundle(arguments).exits(0).json();
    node.import([&file]).exits(0);
    for repository in &repositories {
        let digest = registry.digest(repository, "1");
        assert_eq!(
            image_of(&report, &name(repository))["digest"],
            digest,
            "{repository}"
        );
        let record = target.expect_record(&name(repository));
        assert_eq!(record.target.digest().to_string(), digest, "{repository}");
        assert!(target.record(&format!("{host}/{repository}@{digest}")).is_some());
    }
    let kind = |repository: &str| image_of(&report, &name(repository))["media_type"].clone();
    assert_eq!(
        kind("form/docker"),
        "application/vnd.docker.distribution.manifest.list.v2+json"
    );
    assert_eq!(kind("form/multi"), "application/vnd.oci.image.index.v1+json");
    for repository in ["form/multi", "form/zstd", "form/docker", "form/single"] {
        let said = own
            .containerd
            .run(&name(repository), &["/bin/sh", "-c", "echo hello"]);
        assert_eq!(said.expect("the container runs").trim(), "hello", "{repository}");
    }
}

#[test]
fn only_the_best_platform_and_what_is_about_it_travels() {
    let Some(registry) = Registry::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (image, pairs) = attested();
    let (name, root) = registry.push("some/attested", "1", image);
    let file = folder.path().join("bundle.tar");
    let output = text(&file);
    let manifests_with = |platforms: &[&str]| {
        let platforms = platforms.iter().flat_map(|platform| ["--platform", platform]);
        let report = bundle(
            [name.as_str(), "-o", &output, "-o", "json"]
                .into_iter()
                .chain(platforms),
        );
        let report = report.exits(0).json();
        let blobs = blobs_in(&file);
        assert!(blobs.contains(root.as_ref()), "the index stays as it is");
        let there = |digest: &Digest| blobs.contains(digest.as_ref());
        let there = pairs
            .iter()
            .map(|(manifest, about)| [there(manifest), there(about)])
            .collect::<Vec<_>>();
        (there, report)
    };
    let (none, both) = ([false; 2], [true; 2]);
    assert_eq!(manifests_with(&["linux/arm/v7"]).0, [none, none, both]);
    assert_eq!(
        manifests_with(&["linux/arm64", "linux/amd64"]).0,
        [both, both, none]
    );
    assert_eq!(manifests_with(&["all"]).0, [both; 3]);
    let (there, report) = manifests_with(&["linux/amd64", "linux/s390x"]);
    assert_eq!(there, [both, none, none]);
    assert_eq!(report["images"][0]["missing_platforms"], json!(["linux/s390x"]));
    let answer = bundle([&name, "--platform", "linux/s390x", "-o", &text(&file)]).exits(1);
    assert!(
        answer
            .stderr
            .contains("nothing for linux/s390x. It offers linux/amd64, linux/arm/v7"),
        "{answer:?}"
    );
}

#[test]
fn artifacts_travel_and_make_no_image_records() {
    let Some(registry) = Registry::start() else { return };
    crate::support::run_on(crate::support::Place::Fake, |target| {
        let node = Node::on(target);
        let (image, _) = registry.push("some/image", "1", Image::unnamed().manifest(manifest(native())));
        let (artifact, root) = registry.push("some/thing", "1", Image::unnamed().manifest(artifact()));
        // An artifact that refers to the image. Older registries list it under a tag made from the
        // digest.
        let subject = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": root.to_string(), "size": 1});
        let signature = self::artifact().member("subject", subject);
        let tag = root.to_string().replace(':', "-");
        let (signature, _) = registry.push(
            "some/thing",
            &tag,
            Image::unnamed().root(Tree::Index(vec![signature.into()])),
        );
        let file = text(&node.path("bundle.tar"));
        bundle([&image, &artifact, &signature, "--platform", "all", "-o", &file]).exits(0);
        node.import([&file]).exits(0);
        assert!(target.record(&image).is_some());
        assert!(target.record(&artifact).is_none() && target.record(&signature).is_none());
        assert!(blobs_in(file.as_ref()).contains(root.as_ref()));
    });
}

/// An artifact is a member of which a node has nothing, and other platforms of an image are none.
#[test]
fn a_bundle_of_a_registry_is_a_release_by_itself() {
    let Some(registry) = Registry::start() else { return };
    crate::support::run_on(crate::support::Place::Fake, |target| {
        let node = Node::on(target);
        let (image, root) = registry.push("some/attested", "1", attested().0);
        let (thing, _) = registry.push("some/thing", "1", Image::unnamed().manifest(artifact()));
        let file = node.path("shop.tar");
        let arguments = [&image, &thing, "--release", "shop-1", "-o", &text(&file)];
        bundle(arguments).exits(0);
        let inspected = node
            .airgapd(["inspect", "-o", "json", &text(&file)])
            .exits(0)
            .json();
        let release = &inspected["release"];
        assert_eq!(release["name"], "shop-1");
        let members = release["members"].as_array().unwrap();
        assert_eq!(members.len(), 2, "{release:#}");
        assert!(
            members.contains(&json!({"name": image, "digest": root})),
            "{release:#}"
        );
        let daemon = node.start();
        node.drop_in(&file);
        node.airgapd(["wait", "--release", "shop-1", "--timeout", "60s"])
            .exits(0);
        assert!(target.record(&image).is_some() && target.record(&thing).is_none());
        daemon.finish(target);
    });
}

/// Pushes an artifact with a platform before the image of that platform.
fn hidden_image(registry: &Registry) -> (String, Manifest) {
    let parts = Manifest::new("linux/amd64")
        .layer(unique())
        .config_bytes("{}")
        .config_media_type("application/spdx+json");
    let image = manifest("linux/amd64");
    let root = Tree::Index(vec![
        parts.into(),
        image.clone().into(),
        manifest("linux/arm64").into(),
    ]);
    let (name, _) = registry.push("some/hidden", "1", Image::unnamed().root(root));
    (name, image)
}

/// bazel-contrib/rules_img#742
#[test]
fn an_image_behind_an_artifact_is_refused_before_anything_is_written() {
    let Some(registry) = Registry::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (name, image) = hidden_image(&registry);
    let file = text(&folder.path().join("bundle.tar"));
    for platform in ["linux/amd64", "all"] {
        let answer = bundle([&name, "--platform", platform, "-o", &file]).exits(1);
        assert!(
            answer.stderr.contains("containerd uses")
                && answer.stderr.contains("application/spdx+json")
                && answer.stderr.contains(digest_of(&image).as_ref()),
            "{answer:?}"
        );
        let answer = bundle([&name, "--platform", platform, "-o", "-"]).exits(1);
        assert!(answer.stdout.is_empty());
    }
    assert!(files_in(folder.path()).is_empty());
    // A node of another platform never uses the artifact.
    bundle([&name, "--platform", "linux/arm64", "-o", &file]).exits(0);
}

/// moby/moby#48361
#[test]
fn what_no_node_makes_an_image_of_is_said_where_the_bundle_is_made() {
    let Some(registry) = Registry::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let old = manifest(native()).config_media_type("application/octet-stream");
    let (old, _) = registry.push("some/old", "1", Image::unnamed().manifest(old));
    let (thing, _) = registry.push("some/thing", "1", Image::unnamed().manifest(artifact()));
    let (image, _) = registry.push("some/image", "1", Image::unnamed().manifest(manifest(native())));
    let file = text(&folder.path().join("bundle.tar"));
    for (name, kind) in [
        (&old, "application/octet-stream"),
        (&thing, "application/vnd.test.thing"),
    ] {
        let alone = bundle([name, "-o", &file]).exits(1);
        assert!(
            alone
                .stderr
                .contains(&format!("{name}: no node makes an image of it")),
            "{alone:?}"
        );
        assert!(files_in(folder.path()).is_empty());
        let answer = bundle([name, &image, "-o", &file]).exits(0);
        let said = format!("no node makes an image of it: not a container image but {kind}");
        assert!(
            answer.stderr.contains(&said) && answer.stdout.contains(&said),
            "{answer:?}"
        );
        for file in [file.clone(), format!("{file}.digest")] {
            std::fs::remove_file(file).unwrap();
        }
    }
}

/// dragonflyoss/nydus#1976
#[test]
fn what_any_containerd_would_use_travels() {
    let Some(registry) = Registry::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let platform = json!({"os": "linux", "architecture": "amd64", "os.features": ["nydus.remoteimage.v1"]});
    let featured = manifest("linux/amd64");
    let plain = manifest("linux/amd64");
    let digests = [&featured, &plain].map(digest_of);
    let featured = featured.descriptor_member("platform", platform);
    let root = Tree::Index(vec![
        featured.into(),
        plain.into(),
        manifest("linux/amd64").into(),
    ]);
    let (name, _) = registry.push("some/featured", "1", Image::unnamed().root(root));
    let path = folder.path().join("bundle.tar");
    let file = text(&path);
    bundle([&name, "--platform", "linux/amd64", "-o", &file]).exits(0);
    let blobs = blobs_in(&path);
    assert!(
        digests.iter().all(|digest| blobs.contains(digest.as_ref())),
        "{blobs:?}"
    );
    assert_eq!(blobs.len(), 7, "no containerd uses the third manifest");
    let shown = answer(program().args(["inspect", "--platform", "linux/amd64", &file])).exits(0);
    assert!(
        shown.stdout.contains("on containerd 1.6 and 1.7") && shown.stdout.contains("on containerd 2.3"),
        "{shown:?}"
    );
}

#[test]
fn schema_1_is_refused_with_what_to_do() {
    let Some(registry) = Registry::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let made = folder.path().join("made.tar");
    // skopeo only converts an image with a history.
    let history = json!([{"created": "2020-01-01T00:00:00Z", "created_by": "a test"}]);
    let image = Image::new(MADE).manifest(manifest(native()).config("history", history));
    Layout::new().image(image).write_to(&made);
    registry.fill_with_skopeo(&made, MADE, "old/image:1", &["--format", "v2s1"]);
    std::fs::remove_file(&made).unwrap();
    let file = text(&folder.path().join("bundle.tar"));
    let name = format!("{}/old/image:1", registry.host());
    let answer = bundle([&name, "-o", &file]).exits(1);
    assert!(
        answer.stderr.contains(&name) && answer.stderr.contains("schema 1"),
        "{answer:?}"
    );
    assert!(answer.stderr.contains("push it again"), "{answer:?}");
    assert!(files_in(folder.path()).is_empty());
}

on_its_own_containerd!(
    defaults;
    every_form_of_image_arrives_with_the_digest_of_the_registry_and_runs,
);
