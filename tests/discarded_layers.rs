//! Bundles on nodes whose containerd discards an image's layers after unpacking them
//! (`discard_unpacked_layers`, as on EKS and GKE).
//!
//! When containerd pulls such an image, the labels of its manifest do not name the layers, so they
//! are collected. The daemon's labels name the layers of a bundle. So containerd discards nothing
//! that the daemon would have to send again and again.

use std::fs;

use bundle::fixtures::{Image, Layer, LayerFile};
use lab::{Generation, Options};
use oci_spec::image::Digest;

use crate::support::bundles::{self, native, text};
use crate::support::node::Daemon;
use crate::support::registry::Registry;
use crate::support::{Node, Own, Target, on_its_own_containerd, unique, wait_until};

fn discarding() -> Options {
    Options {
        discard_unpacked_layers: true,
        ..Options::default()
    }
}

/// Returns an image of two layers from which a container can start.
fn two_layers(name: &str) -> Image {
    let busybox = fs::read(lab::parts::busybox().expect("a busybox")).expect("the file can be read");
    let lower = Layer::files([
        LayerFile::folder("bin/"),
        LayerFile::executable("bin/busybox", busybox),
        LayerFile::new("unique", unique()),
    ]);
    let upper = Layer::files([LayerFile::new("own", unique())]);
    Image::new(name)
        .platform(native())
        .with_layer(lower)
        .with_layer(upper)
}

/// Makes CRI pull an image and collects garbage. Both happen on nodes.
fn pull(target: &Target, name: &str) {
    target.pull(name);
    target.collect_garbage();
}

fn runs(own: &Own, name: &str) {
    let said = own.containerd.run(name, &["/bin/busybox", "echo", "hello"]);
    assert_eq!(said.expect("the container runs").trim(), "hello");
    wait_until("the container has let go of the snapshot", || {
        !own.target
            .ctr(&["containers", "list", "--quiet"])
            .contains("airgapd")
    });
}

/// Returns the number of these layers in the store.
fn there(target: &Target, layers: &[Digest]) -> usize {
    let there = target.digests();
    layers
        .iter()
        .filter(|layer| there.contains(layer.as_ref()))
        .count()
}

/// Makes the daemon compare everything with containerd once more.
fn compare(target: &Target, daemon: &Daemon, marker: &str) {
    target.remove_record(marker);
    daemon.wait_until("a comparison", || target.record(marker).is_some());
    daemon.wait_until("all leases are returned", || target.leases().is_empty());
}

/// Returns the label of a config that marks its image as unpacked: the snapshotter and the last
/// snapshot.
fn unpacked(target: &Target, config: &Digest) -> (String, String) {
    let labels = target
        .blobs()
        .remove(config.as_ref())
        .expect("the config is there");
    let mut labels = labels.into_iter().filter_map(|(key, top)| {
        let snapshotter = key.strip_prefix("containerd.io/gc.ref.snapshot.")?;
        Some((snapshotter.to_owned(), top))
    });
    labels.next().expect("the image is unpacked")
}

fn what_a_bundle_vouches_for_is_kept_whole_and_what_none_does_is_left_as_it_is(own: &mut Own) {
    let Some(registry) = Registry::start() else { return };
    let (target, node) = (&own.target, Node::on(&own.target));
    let names = ["ours", "others"].map(|name| format!("{}/{name}-{}:1", registry.host(), unique()));
    let [ours, others] = &names;
    let images = names.each_ref().map(|name| two_layers(name));
    for (name, image) in names.iter().zip(&images) {
        let (_, path) = name.split_once('/').unwrap();
        let (repository, tag) = path.split_once(':').unwrap();
        registry.push(repository, tag, image.clone());
    }
    let [image, image_of_others] = images;
    let built = |archive: &bundle::fixtures::Archive| archive.images[0].manifests[0].clone();
    let archive = bundles::write(&node.path("ours.tar"), [image]);
    let (manifest, manifest_of_others) = (
        built(&archive),
        built(&bundles::layout([image_of_others]).build()),
    );

    // Without a bundle, containerd discards the layers, and the images run.
    for (name, manifest) in [(ours, &manifest), (others, &manifest_of_others)] {
        pull(target, name);
        assert_eq!(
            there(target, &manifest.layers),
            0,
            "this containerd discards nothing"
        );
        runs(own, name);
    }

    // The bundle for one of the images brings its layers, once.
    let daemon = node.start();
    let (bundle, marker) = bundles::marker(node.path("marker.tar"));
    node.drop_in(&bundle);
    node.drop_in(&node.path("ours.tar"));
    daemon.wait_until("the bundles", || {
        target.is_pinned(ours) && target.record(&marker).is_some() && target.leases().is_empty()
    });
    assert_eq!(there(target, &manifest.layers), 2);

    // No action of containerd removes them again.
    runs(own, ours);
    pull(target, ours);
    if own.containerd.generation() != Generation::V1_6 {
        let import = ["images", "import", "--discard-unpacked-layers"];
        let local = (own.containerd.generation() != Generation::V1_7).then_some("--local");
        let file = text(&node.path("ours.tar"));
        let arguments: Vec<&str> = import.into_iter().chain(local).chain([file.as_str()]).collect();
        target.ctr(&arguments);
        target.collect_garbage();
    }
    assert_eq!(
        there(target, &manifest.layers),
        2,
        "containerd discarded layers that a bundle vouches for"
    );
    compare(target, &daemon, &marker);
    let log = daemon.log();
    let imports = log
        .lines()
        .filter(|line| line.contains("bundle imported") && line.contains("ours.tar"));
    // CRI rewrites the labels of a record when it pulls. The daemon restores them without sending a
    // byte.
    assert!(imports.skip(1).all(|line| line.contains(" 0 B sent")), "{log}");

    // Layers that are deleted by hand are restored, whether the image is unpacked or not.
    let (snapshotter, top) = unpacked(target, &manifest.config);
    target.ctr(&["content", "rm", manifest.layers[0].as_ref()]);
    compare(target, &daemon, &marker);
    daemon.wait_until("the layer", || there(target, &manifest.layers) == 2);
    runs(own, ours);
    for layer in &manifest.layers {
        target.ctr(&["content", "rm", layer.as_ref()]);
    }
    target.ctr(&["snapshots", "--snapshotter", &snapshotter, "rm", &top]);
    compare(target, &daemon, &marker);
    daemon.wait_until("the layers", || there(target, &manifest.layers) == 2);
    runs(own, ours);

    // Nothing is sent for another importer's image: no bundle has it, and it runs.
    assert_eq!(there(target, &manifest_of_others.layers), 0);
    runs(own, others);
    assert!(!daemon.log().contains(others), "{}", daemon.log());
    let asked = node.path("asked.txt");
    fs::write(&asked, format!("{ours}\n{others}\n")).unwrap();
    let asked = text(&asked);
    let found = node.airgapd(["verify", "-o", "json", "--images", &asked]).json();
    let answer = |name: &str| {
        let images = found["images"].as_array().expect("a list");
        let of = images.iter().find(|answer| answer["reference"] == name);
        of.unwrap_or_else(|| panic!("{found:#}")).clone()
    };
    for name in &names {
        assert_eq!(answer(name)["status"], "present", "{found:#}");
    }
    let is_unpacked_only = |name: &str| {
        answer(name)["warnings"]
            .to_string()
            .contains("its layers are not in the store")
    };
    assert!(is_unpacked_only(others) && !is_unpacked_only(ours), "{found:#}");
    daemon.finish(target);
}

on_its_own_containerd!(discarding; what_a_bundle_vouches_for_is_kept_whole_and_what_none_does_is_left_as_it_is);
