//! Content in containerd: gc labels, sent bytes, earlier content, and leases.

use std::collections::BTreeMap;

use bundle::fixtures::{Image, Layer};
use fake_containerd::{Code, Fault};

use crate::support::bundles::{self, PLATFORMS, image, multi_platform, native, needed_here, text};
use crate::support::{Node, Target, on_each_containerd, on_the_fake, unique};

/// Returns the gc labels of a blob: the text after `containerd.io/gc.ref.content.`, and the digest.
fn references(target: &Target, digest: &str) -> BTreeMap<String, String> {
    let labels = target
        .blobs()
        .remove(digest)
        .unwrap_or_else(|| panic!("no blob {digest}"));
    let reference = |(key, value): (String, String)| {
        Some((
            key.strip_prefix("containerd.io/gc.ref.content.")?.to_owned(),
            value,
        ))
    };
    labels.into_iter().filter_map(reference).collect()
}

/// Statements 40 and 41.
fn parents_carry_the_labels_that_hold_their_children(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("bundle.tar"));
    let layers = |image: Image| (0..3).fold(image, |image, _| image.layer(unique()));
    let name = "registry.test/layers:1";
    let archive = bundles::write(
        file.as_ref(),
        [layers(Image::new(name).platform(native())).in_an_index()],
    );
    node.import([&file]).exits(0);

    let image = &archive.images[0];
    let manifest = &image.manifests[0];
    let of_index = BTreeMap::from([("m.0".to_owned(), manifest.digest.to_string())]);
    assert_eq!(references(target, image.root.as_ref()), of_index);
    let mut of_manifest = BTreeMap::from([("config".to_owned(), manifest.config.to_string())]);
    of_manifest.extend(
        manifest
            .layers
            .iter()
            .enumerate()
            .map(|(n, layer)| (format!("l.{n}"), layer.to_string())),
    );
    assert_eq!(references(target, manifest.digest.as_ref()), of_manifest);
    assert!(target.leases().is_empty() && target.ingests().is_empty());
    target.collect_garbage();
    assert_eq!(
        target.digests(),
        needed_here(&archive.images),
        "and the bundle's own index.json is not in the store"
    );
}

/// Returns the repositories in a blob's labels, by host.
fn sources(target: &Target, digest: &str) -> BTreeMap<String, String> {
    let labels = target.blobs().remove(digest).expect("the blob is there");
    let sources = labels.into_iter().filter_map(|(key, value)| {
        let host = key.strip_prefix("containerd.io/distribution.source.")?;
        Some((host.to_owned(), value))
    });
    sources.collect()
}

/// Mirrors among nodes, such as Spegel, share only blobs whose labels name their repository.
fn blobs_say_in_which_repositories_they_are(target: &Target) {
    let node = Node::on(target);
    let shared = unique();
    let app = |name: &str| image(name).layer(shared.as_str());
    let archive = bundles::write(
        &node.path("bundle.tar"),
        [
            app("registry.test/team/one:1"),
            app("registry.test/two:1"),
            app("other.test:5000/one:2"),
        ],
    );
    node.import([node.path("bundle.tar")]).exits(0);
    let sources = |digest: &str| sources(target, digest);
    let manifest = &archive.images[0].manifests[0];
    let of_one = BTreeMap::from([("registry.test".to_owned(), "team/one".to_owned())]);
    assert_eq!(sources(manifest.digest.as_ref()), of_one);
    let of_all = [("other.test:5000", "one"), ("registry.test", "team/one,two")];
    assert_eq!(
        sources(manifest.layers.last().unwrap().as_ref()),
        of_all
            .map(|(host, paths)| (host.to_owned(), paths.to_owned()))
            .into()
    );
}

/// Blobs of another importer are shared too, and its repository stays in the label.
fn blobs_that_are_there_already_say_in_which_repositories_they_are(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("bundle.tar"));
    let archive = bundles::write(file.as_ref(), [image("registry.test/app:1")]);
    let manifest = &archive.images[0].manifests[0];
    let all = [&manifest.layers[0], &manifest.config, &manifest.digest];
    let source = "containerd.io/distribution.source.registry.test";
    for (digest, labels) in all.into_iter().zip([&[(source, "theirs")][..], &[], &[]]) {
        target.put_blob(&archive.bytes_of(&archive.name_of(digest)), labels);
    }
    let report = node.import([&file]).exits(0).bundle();
    assert_eq!(report["blobs"]["sent"], 0, "{report:#}");
    let from = |path: &str| BTreeMap::from([("registry.test".to_owned(), path.to_owned())]);
    assert_eq!(sources(target, manifest.layers[0].as_ref()), from("theirs,app"));
    for digest in &all[1..] {
        assert_eq!(sources(target, digest.as_ref()), from("app"));
    }
    let again = node.import([&file]).exits(0).bundle();
    assert_eq!(again["outcome"], "unchanged", "{again:#}");
    for digest in all {
        target.let_go(digest);
    }
}

/// Statements 31, 37 and 42: blobs that another tool left without labels and lease are kept,
/// completed and not sent again.
fn blobs_that_are_there_already_are_held_and_get_their_labels(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("bundle.tar"));
    let archive = bundles::write(file.as_ref(), [multi_platform("registry.test/app:1", &PLATFORMS)]);
    let image = &archive.images[0];
    let manifest = image
        .manifests
        .iter()
        .find(|m| needed_here(&archive.images).contains(m.digest.as_ref()))
        .unwrap();
    let there: Vec<_> = [&image.root, &manifest.digest, &manifest.layers[0]]
        .map(|digest| {
            target.put_blob(
                &archive.bytes_of(&archive.name_of(digest)),
                &[("example.test/by", "another")],
            )
        })
        .into();

    let report = node.import([&file]).exits(0).bundle();
    let needed = needed_here(&archive.images);
    assert_eq!(report["blobs"]["present"], 3, "{report:#}");
    assert_eq!(report["blobs"]["sent"], needed.len() - 3, "{report:#}");
    for digest in &there {
        target.let_go(digest);
    }
    target.collect_garbage();
    assert_eq!(target.digests(), needed);
    assert!(!references(target, image.root.as_ref()).is_empty());
    assert_eq!(references(target, manifest.digest.as_ref()).len(), 2);
    for digest in there {
        let labels = target.blobs().remove(digest.as_ref()).unwrap();
        assert_eq!(
            labels.get("example.test/by").map(String::as_str),
            Some("another"),
            "labels of others survive"
        );
    }
}

/// Blobs of another namespace are adopted. containerd shares content, so not a byte is sent
/// (pitfall 33).
fn large_blobs_of_another_namespace_are_adopted(target: &Target) {
    let (node, other) = (Node::on(target), target.elsewhere());
    let file = text(&node.path("bundle.tar"));
    let archive = bundles::write(file.as_ref(), [bundles::large("registry.test/app:1", 1 << 20)]);
    Node::on(&other).import([&file]).exits(0);
    let report = node.import([&file]).exits(0).bundle();
    // The daemon sends the manifest and config without asking first, since they are small.
    assert!(report["blobs"]["sent_bytes"].as_u64() < Some(4096), "{report:#}");
    assert!(
        report["blobs"]["present_bytes"].as_u64() > Some(1 << 20),
        "{report:#}"
    );
    target.collect_garbage();
    assert_eq!(target.digests(), needed_here(&archive.images));
}

/// Statement 44.
fn a_lease_that_vanishes_meanwhile_costs_no_image(target: &Target) {
    let fake = target.as_fake().unwrap();
    let node = Node::on(target);
    let file = text(&node.path("bundle.tar"));
    let archive = bundles::write(file.as_ref(), [image("registry.test/app:1")]);
    fake.inject(Fault::LeaseVanishes { writes: 2 });
    let answer = node.import([&file]);
    if answer.status.success() {
        assert_eq!(target.digests(), needed_here(&archive.images));
    } else {
        assert!(target.names().is_empty(), "{answer:?}");
        node.import([&file]).exits(0);
    }
}

/// Statement 33 during an import: a commit that containerd refuses leaves no ingest, and the next
/// run starts over.
fn a_refused_commit_leaves_no_ingest_and_the_next_run_is_whole(target: &Target) {
    let fake = target.as_fake().unwrap();
    let node = Node::on(target);
    let file = text(&node.path("bundle.tar"));
    let archive = bundles::write(file.as_ref(), [image("registry.test/app:1")]);
    fake.inject(Fault::RefuseCommit { commits: 1 });
    let answer = node.import([&file]);
    assert!(target.ingests().is_empty(), "{answer:?}");
    if !answer.status.success() {
        assert!(target.record("registry.test/app:1").is_none());
        node.import([&file]).exits(0);
    }
    assert_eq!(target.digests(), needed_here(&archive.images));
}

/// A broken connection costs only the transfers that were running.
fn a_connection_that_breaks_in_mid_blob_is_taken_up_again(target: &Target) {
    let fake = target.as_fake().unwrap();
    let node = Node::on(target);
    let file = text(&node.path("bundle.tar"));
    let image = Image::new("registry.test/app:1")
        .platform(native())
        .layer(unique())
        .with_layer(Layer::zeros(8 << 20));
    let archive = bundles::write(file.as_ref(), [image]);
    fake.inject(Fault::CutStream { after: 3 << 20 });
    let answer = node.import([&file]);
    if !answer.status.success() {
        assert!(target.names().is_empty(), "{answer:?}");
        node.import([&file]).exits(0);
    }
    assert_eq!(target.digests(), needed_here(&archive.images));
    assert!(target.leases().is_empty() && target.ingests().is_empty());
}

/// The command reports a full disk and leaves nothing behind. With room again, the same command
/// succeeds.
fn a_full_disk_is_said_and_gives_everything_back(target: &Target) {
    let fake = target.as_fake().unwrap();
    let node = Node::on(target);
    let file = text(&node.path("bundle.tar"));
    let image = Image::new("registry.test/app:1")
        .platform(native())
        .layer(unique())
        .with_layer(Layer::zeros(8 << 20));
    bundles::write(file.as_ref(), [image]);
    fake.inject(Fault::DiskFull { free: 1 << 20 });
    let answer = node.import([&file]).exits(1);
    assert!(answer.said().contains("space"), "{answer:?}");
    assert!(target.names().is_empty() && target.ingests().is_empty());
    fake.clear_faults();
    node.import([&file]).exits(0);
}

/// The message has containerd's own words for a refusal, and nothing is left behind.
fn a_record_that_containerd_refuses_fails_that_image(target: &Target) {
    let fake = target.as_fake().unwrap();
    let node = Node::on(target);
    let file = text(&node.path("bundle.tar"));
    bundles::write(file.as_ref(), [image("registry.test/app:1")]);
    fake.inject(Fault::FailAll {
        rpc: "Images.Create",
        code: Code::PermissionDenied,
        message: "not on my watch".to_owned(),
    });
    let answer = node.import([&file]).exits(1);
    assert!(answer.said().contains("not on my watch"), "{answer:?}");
    assert!(target.names().is_empty() && target.ingests().is_empty());
    fake.clear_faults();
    node.import([&file]).exits(0);
}

on_each_containerd!(
    parents_carry_the_labels_that_hold_their_children,
    blobs_say_in_which_repositories_they_are,
    blobs_that_are_there_already_say_in_which_repositories_they_are,
    blobs_that_are_there_already_are_held_and_get_their_labels,
    large_blobs_of_another_namespace_are_adopted,
);
on_the_fake!(
    a_lease_that_vanishes_meanwhile_costs_no_image,
    a_refused_commit_leaves_no_ingest_and_the_next_run_is_whole,
    a_connection_that_breaks_in_mid_blob_is_taken_up_again,
    a_full_disk_is_said_and_gives_everything_back,
    a_record_that_containerd_refuses_fails_that_image,
);
