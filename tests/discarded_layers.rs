//! Nodes whose containerd lets go of an image's layers once they are unpacked
//! (`discard_unpacked_layers`, as on EKS and GKE), beside bundles that vouch for whole images.
//!
//! containerd discards by not naming the layers in the labels of a manifest that it pulls. The
//! daemon's labels name those of a bundle, so containerd throws nothing away that the daemon would
//! have to send again and again.

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

/// An image of two layers that a container can be started from.
fn two_layers(name: &str) -> Image {
    let busybox = fs::read(lab::parts::busybox().expect("a busybox")).expect("it can be read");
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

/// Has CRI pull an image, and garbage collected, as both happens on nodes.
fn pull(target: &Target, name: &str) {
    target.pull(name);
    target.collect_garbage();
}

fn runs(own: &Own, name: &str) {
    let said = own.containerd.run(name, &["/bin/busybox", "echo", "hello"]);
    assert_eq!(said.expect("it runs").trim(), "hello");
    wait_until("the container has let go of the snapshot", || {
        !own.target
            .ctr(&["containers", "list", "--quiet"])
            .contains("airgapd")
    });
}

/// How many of the layers are in the store.
fn there(target: &Target, layers: &[Digest]) -> usize {
    let there = target.digests();
    layers
        .iter()
        .filter(|layer| there.contains(layer.as_ref()))
        .count()
}

/// Has the daemon compare everything with containerd once more.
fn compare(target: &Target, daemon: &Daemon, marker: &str) {
    target.remove_record(marker);
    daemon.wait_until("a comparison", || target.record(marker).is_some());
    daemon.wait_until("it is quiet", || target.leases().is_empty());
}

/// The label by which a config says that its image is unpacked, and with which snapshotter: the
/// snapshotter, and the last snapshot.
fn unpacked(target: &Target, config: &Digest) -> (String, String) {
    let labels = target
        .blobs()
        .remove(config.as_ref())
        .expect("the config is there");
    let mut labels = labels.into_iter().filter_map(|(key, top)| {
        let snapshotter = key.strip_prefix("containerd.io/gc.ref.snapshot.")?;
        Some((snapshotter.to_owned(), top))
    });
    labels.next().expect("it is unpacked")
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

    // Before there is a bundle: containerd throws the layers away, and the images run.
    for (name, manifest) in [(ours, &manifest), (others, &manifest_of_others)] {
        pull(target, name);
        assert_eq!(
            there(target, &manifest.layers),
            0,
            "this containerd discards nothing"
        );
        runs(own, name);
    }

    // The bundle that vouches for one of them brings its layers, once.
    let daemon = node.start();
    let (bundle, marker) = bundles::marker(node.path("marker.tar"));
    node.drop_in(&bundle);
    node.drop_in(&node.path("ours.tar"));
    daemon.wait_until("the bundles", || {
        target.is_pinned(ours) && target.record(&marker).is_some() && target.leases().is_empty()
    });
    assert_eq!(there(target, &manifest.layers), 2);

    // Nothing that containerd does takes them away again.
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
        "containerd threw away what a bundle vouches for"
    );
    compare(target, &daemon, &marker);
    let log = daemon.log();
    let imports = log
        .lines()
        .filter(|line| line.contains("bundle imported") && line.contains("ours.tar"));
    // CRI writes the labels of a record anew when it pulls; those come back without a byte.
    assert!(imports.skip(1).all(|line| line.contains(" 0 B sent")), "{log}");

    // Layers that are deleted by hand come back, the image unpacked or not.
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

    // For an image of others nothing is sent: there is no bundle to send it from, and it runs.
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
