//! Lists of references (`*.txt`, as in k3s), which are pulled through CRI if `pullLists` is on.

use std::fs;

use bundle::fixtures::Image;
use fake_containerd::SeedImage;
use oci_spec::image::Digest;

use crate::support::bundles::{self, image, marker};
use crate::support::{Node, Target, on_the_fake};

/// Puts an image into the registry of the stand-in's CRI.
fn offer(target: &Target, name: &str, image: Image) {
    let fake = target.as_fake().expect("only the stand-in has a registry");
    let archive = bundles::layout([image]).build();
    let built = &archive.images[0];
    let bytes = |digest: &Digest| archive.bytes_of(&archive.name_of(digest));
    let parts = [&built.manifests[0].config]
        .into_iter()
        .chain(&built.manifests[0].layers);
    // The labels keep the content like the labels of a pull.
    let mut labels = vec![("containerd.io/gc.root".to_owned(), "a pull".to_owned())];
    for (number, digest) in parts.enumerate() {
        fake.put_blob("k8s.io", &bytes(digest), &[]);
        labels.push((
            format!("containerd.io/gc.ref.content.{number}"),
            digest.to_string(),
        ));
    }
    let labels: Vec<_> = labels
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    let root = bytes(&built.root);
    fake.put_blob("k8s.io", &root, &labels);
    fake.offer(SeedImage {
        name: name.to_owned(),
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        digest: built.root.to_string(),
        size: root.len() as u64,
        ..SeedImage::default()
    });
}

fn a_list_is_ignored_with_the_reason_unless_it_is_asked_for(target: &Target) {
    let target = &target.in_kubernetes();
    let node = Node::on(target);
    offer(target, "registry.test/listed:1", image("registry.test/listed:1"));
    fs::write(node.images().join("images.txt"), "registry.test/listed:1\n").unwrap();
    let daemon = node.start();
    daemon.wait_for_log("pullLists");
    let (bundle, name) = marker(node.path("marker.tar"));
    node.drop_in(&bundle);
    daemon.wait_until("a bundle beside it", || target.record(&name).is_some());
    assert!(target.record("registry.test/listed:1").is_none());
    assert_eq!(daemon.count("images.txt"), 1, "{}", daemon.log());
    daemon.finish(target);
}

/// The available images are pulled and pinned. The log names the others, and the daemon retries
/// them.
fn a_list_that_is_asked_for_is_pulled_and_pinned(target: &Target) {
    let target = &target.in_kubernetes();
    let node = Node::on(target);
    node.configure_also("pullLists: on");
    let (first, late) = ("registry.test/listed:1", "registry.test/late:1");
    offer(target, first, image(first));
    let list = "# two images\n\nregistry.test/listed:1\nregistry.test/late:1\nNot A Name\n";
    fs::write(node.images().join("images.txt"), list).unwrap();
    let daemon = node.start();
    daemon.wait_until("the image", || target.record(first).is_some());
    for part in [late, "it does not have this", "Not A Name"] {
        daemon.wait_for_log(part);
    }
    daemon.wait_until("its pin", || target.is_pinned(first));

    offer(target, late, image(late));
    daemon.wait_until("the second try", || {
        target.record(late).is_some() && target.is_pinned(late)
    });
    target.remove_record(first);
    daemon.wait_until("the image comes back", || {
        target.record(first).is_some() && target.is_pinned(first)
    });
    let by_digest = target
        .names()
        .into_iter()
        .find(|name| name.starts_with("registry.test/listed@"))
        .unwrap();
    daemon.wait_until("the record by digest is pinned", || target.is_pinned(&by_digest));
    daemon.finish(target);
}

/// A name is never a reason to mistake a bundle for something else.
fn a_bundle_may_be_called_txt(target: &Target) {
    let node = Node::on(target);
    bundles::write(&node.images().join("bundle.txt"), [image("registry.test/txt:1")]);
    let daemon = node.start();
    daemon.wait_until("the image", || target.record("registry.test/txt:1").is_some());
    daemon.finish(target);
}

on_the_fake!(
    a_list_is_ignored_with_the_reason_unless_it_is_asked_for,
    a_list_that_is_asked_for_is_pulled_and_pinned,
    a_bundle_may_be_called_txt,
);
