//! Nodes that serve each other: what airgapd imported on the first node, the second node pulls from
//! it by digest. A mirror such as Spegel does this in a cluster ([`crate::support::peer`]).

use bundle::fixtures::BuiltImage;
use lab::Options;

use crate::support::bundles::{self, closure, needed_here, runnable, text};
use crate::support::peer::{Peer, hosts_folder};
use crate::support::{Node, Own, Place, Target, on_each_real_containerd, run_on_own, unique};

/// Registry of the images. No host has this name.
const REGISTRY: &str = "registry.test";

/// Returns the reference by which a pod without a tag names an image.
fn by_digest(name: &str, image: &BuiltImage) -> String {
    bundles::records_of(name, image)[1].clone()
}

/// Plays a scenario on a second node, whose containerd is of the same generation.
fn beside(target: &Target, scenario: impl FnOnce(&mut Own)) {
    let Place::Real(generation) = target.place() else {
        panic!("the stand-in pulls nothing");
    };
    run_on_own(generation, &Options::default(), scenario);
}

/// Pulls with `ctr`, which reads hosts.toml below a folder.
fn try_to_pull(second: &Own, hosts: &str, reference: &str) -> std::process::Output {
    let mut ctr = second.containerd.ctr_in(second.target.namespace());
    let snapshotter = second.containerd.snapshotter();
    ctr.args([
        "images",
        "pull",
        "--hosts-dir",
        hosts,
        "--snapshotter",
        snapshotter,
        reference,
    ]);
    ctr.output().expect("ctr runs")
}

/// ctr pulls one image and kubelet another. The two share no layer.
fn a_second_node_pulls_by_digest_what_the_first_one_imported(first: &Target) {
    let node = Node::on(first);
    let file = node.path("shop.tar");
    let names = ["ctr", "kubelet"].map(|puller| format!("{REGISTRY}/team/{puller}-{}:1", unique()));
    let images = names.iter().map(|name| runnable(name, &["/bin/busybox"]));
    let archive = bundles::write(&file, images);
    node.import([&file]).exits(0);
    let peer = Peer::of(first);
    beside(first, |second| {
        assert!(second.target.digests().is_empty());
        let hosts = peer.write_hosts(hosts_folder(&second.containerd.root()), REGISTRY);

        let [of_ctr, of_kubelet] = [0, 1].map(|n| by_digest(&names[n], &archive.images[n]));
        let pulled = try_to_pull(second, &text(&hosts), &of_ctr);
        let said = String::from_utf8_lossy(&pulled.stderr);
        assert!(pulled.status.success(), "{said}\n{:#?}", peer.seen());
        let said = second
            .containerd
            .run(&of_ctr, &["/bin/busybox", "echo", "started"]);
        assert_eq!(said.expect("the container starts").trim(), "started");

        let id = second.target.pull(&of_kubelet);
        assert_eq!(id, archive.images[1].manifests[0].config.to_string());
        let needed = needed_here(&archive.images);
        assert!(needed.is_subset(&second.target.digests()), "{:#?}", peer.seen());
        let refused = peer.seen().into_iter().filter(|line| !line.starts_with("200"));
        assert_eq!(refused.collect::<Vec<_>>(), Vec::<String>::new());
    });
}

/// Another importer leaves no repository on its blobs, so a mirror cannot serve them. airgapd adds
/// the labels without a byte sent.
fn blobs_without_a_repository_are_not_served_until_airgapd_has_labelled_them(first: &Target) {
    let node = Node::on(first);
    let file = node.path("shop.tar");
    let name = format!("{REGISTRY}/team/app-{}:1", unique());
    let archive = bundles::write(&file, [runnable(&name, &["/bin/busybox"])]);
    first.ctr(&["images", "import", "--no-unpack", &text(&file)]);
    assert!(
        first
            .digests()
            .is_superset(&closure(&archive.images[0].manifests[0]))
    );
    let peer = Peer::of(first);
    beside(first, |second| {
        let hosts = peer.write_hosts(second.containerd.root().join("peers"), REGISTRY);
        let reference = by_digest(&name, &archive.images[0]);
        let refused = try_to_pull(second, &text(&hosts), &reference);
        assert!(!refused.status.success() && second.target.record(&reference).is_none());
        let seen = peer.seen();
        assert!(
            !seen.is_empty() && seen.iter().all(|line| line.starts_with("404")),
            "{seen:#?}"
        );

        let report = node.import([&file]).exits(0).bundle();
        assert_eq!(report["blobs"]["sent"], 0, "{report:#}");
        let pulled = try_to_pull(second, &text(&hosts), &reference);
        let said = String::from_utf8_lossy(&pulled.stderr);
        assert!(pulled.status.success(), "{said}\n{:#?}", peer.seen());
        assert!(needed_here(&archive.images).is_subset(&second.target.digests()));
    });
}

on_each_real_containerd! {
    a_second_node_pulls_by_digest_what_the_first_one_imported,
    blobs_without_a_repository_are_not_served_until_airgapd_has_labelled_them,
}
