//! A restart of the daemon: what it finds, reads, restores and leaves alone.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use bundle::fixtures::{Image, Layer};
use fake_containerd::Fault;
use rustix::fs::inotify;

use crate::support::bundles::{self, PLATFORMS, closure, image, multi_platform, native, records_of};
use crate::support::{Node, Target, on_each_containerd, on_the_fake, unique};

/// Notices if a file is opened or read.
struct Reads(std::os::fd::OwnedFd);

impl Reads {
    fn of(path: &Path) -> Reads {
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&fd, path, inotify::WatchFlags::OPEN | inotify::WatchFlags::ACCESS).unwrap();
        Reads(fd)
    }

    fn any(&self) -> bool {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        inotify::Reader::new(&self.0, &mut buffer).next().is_ok()
    }
}

/// After a power cut, containerd lists blobs whose files have lost their end.
fn after_a_restart_of_the_machine_blobs_are_looked_at_and_what_is_lost_is_brought_back(target: &Target) {
    let fake = target.as_fake().unwrap();
    let node = Node::on(target);
    let name = "registry.test/cut:1";
    let archive = bundles::write(&node.path("bundle.tar"), [image(name)]);
    node.import_and_stop(target, &node.path("bundle.tar"), 2);
    let layer = archive.images[0].manifests[0].layers[0].to_string();
    let whole = fake.blob_bytes(target.namespace(), &layer).unwrap();
    let reads = fake.calls("Content.Read");
    let daemon = node.start();
    node.drop_marker(target, &daemon);
    daemon.stop();
    assert_eq!(fake.calls("Content.Read"), reads, "the machine was not restarted");

    assert!(fake.corrupt_blob(&layer, &whole[..whole.len() / 2]));
    let mut ledger: serde_json::Value = serde_json::from_slice(&fs::read(node.ledger()).unwrap()).unwrap();
    assert!(ledger["context"]["boot"].is_string());
    ledger["context"]["boot"] = "an earlier one".into();
    fs::write(node.ledger(), ledger.to_string()).unwrap();
    let daemon = node.start();
    daemon.wait_for_log("present, 1 lost");
    daemon.wait_until("the blob is whole again", || {
        fake.blob_bytes(target.namespace(), &layer).as_ref() == Some(&whole)
    });
    daemon.finish(target);
    let ledger = fs::read_to_string(node.ledger()).unwrap();
    assert!(!ledger.contains("an earlier one"), "this boot is known now");
}

/// A bad file stays bad. The daemon reports it and does not read it again until the rules change.
fn a_bad_file_is_told_of_at_the_next_start_and_not_opened(target: &Target) {
    let node = Node::on(target);
    let bad = node.images().join("bad.tar");
    let mut archive = bundles::layout([image("registry.test/bad:1")]).build();
    let manifest = archive.images[0].manifests[0].digest.clone();
    archive.corrupt(&manifest).write_to(&bad);
    fs::write(node.images().join("other"), "no archive\n").unwrap();
    let daemon = node.start();
    daemon.wait_for_log("ERROR");
    node.drop_marker(target, &daemon);
    daemon.wait_until("the ledger", || {
        fs::read_to_string(node.ledger()).is_ok_and(|text| text.contains("bad.tar") && text.contains("other"))
    });
    daemon.stop();

    let reads = Reads::of(&bad);
    let daemon = node.start();
    node.drop_marker(target, &daemon);
    assert_eq!(daemon.count("not imported, as before"), 2, "{}", daemon.log());
    assert!(!reads.any(), "the bad file was opened");
    daemon.stop();

    node.configure_also("platforms: [linux/amd64, linux/arm64]");
    let daemon = node.start();
    daemon.wait_until("the file is read under the new rules", || reads.any());
    daemon.wait_until("and still refused", || daemon.count("ERROR") >= 3);
    daemon.finish(target);
}

/// Statement 57. inotify on the file and containerd's events prove it.
fn an_unchanged_bundle_is_not_opened_and_nothing_is_written(target: &Target) {
    let node = Node::on(target);
    let names = ["registry.test/a:1", "registry.test/b:1"];
    bundles::write(
        &node.path("bundle.tar"),
        names.map(|name| multi_platform(name, &PLATFORMS)),
    );
    node.import_and_stop(target, &node.path("bundle.tar"), 4);

    let reads = Reads::of(&node.images().join("bundle.tar"));
    let changes = target.watch();
    if let Some(fake) = target.as_fake() {
        fake.reset_log();
    }
    let daemon = node.start();
    daemon.wait_until("the daemon is connected", || daemon.log().contains("connected"));
    let marker = node.drop_marker(target, &daemon);

    assert!(!reads.any(), "the bundle was opened:\n{}", daemon.log());
    let repository = marker.rsplit_once(':').unwrap().0.to_owned();
    let of_others: Vec<_> = changes
        .so_far()
        .into_iter()
        .filter(|(_, name)| !name.starts_with(&repository))
        .collect();
    assert_eq!(of_others, []);
    if let Some(fake) = target.as_fake() {
        let mutations = fake.mutations();
        let leases: BTreeSet<_> = mutations
            .iter()
            .filter_map(|mutation| mutation.lease.clone())
            .collect();
        assert_eq!(leases.len(), 1, "only the later file is imported: {mutations:#?}");
    }
    daemon.stop();
}

/// Statement 52, over a restart: missing content is restored, and nothing else is touched or sent.
fn an_image_removed_meanwhile_is_brought_back_and_only_that(target: &Target) {
    let node = Node::on(target);
    let (kept, lost) = ("registry.test/kept:1", "registry.test/lost:1");
    let base = Layer::new(format!("a base that both have, {}", unique()));
    let with_base = |name: &str| {
        Image::new(name)
            .platform(native())
            .with_layer(base.clone())
            .layer(name)
    };
    let archive = bundles::write(&node.path("bundle.tar"), [with_base(kept), with_base(lost)]);
    node.import_and_stop(target, &node.path("bundle.tar"), 4);

    let lost_records = records_of(lost, &archive.images[1]);
    lost_records
        .iter()
        .for_each(|record| target.remove_record(record));
    target.collect_garbage();
    let before = target.digests();
    assert!(
        !before.contains(&archive.images[1].root.to_string()),
        "its content is gone"
    );

    let changes = target.watch();
    if let Some(fake) = target.as_fake() {
        fake.reset_log();
    }
    let daemon = node.start();
    daemon.wait_until("the image is back", || {
        lost_records.iter().all(|record| target.record(record).is_some()) && target.leases().is_empty()
    });
    let changed: BTreeSet<_> = changes.so_far().into_iter().map(|(_, name)| name).collect();
    assert_eq!(changed, lost_records.into());
    if let Some(fake) = target.as_fake() {
        let missing = closure(&archive.images[1].manifests[0]);
        let missing: BTreeSet<_> = missing.difference(&before).cloned().collect();
        assert_eq!(
            fake.received().into_keys().collect::<BTreeSet<_>>(),
            missing,
            "only what was missing is sent"
        );
    }
    daemon.stop();
}

/// Statement 43: after a crash between the first byte and the record, the next start cleans
/// everything up.
fn a_daemon_killed_half_way_is_finished_by_the_next(target: &Target) {
    let node = Node::on(target);
    let name = "registry.test/crash:1";
    let big = Image::new(name)
        .platform(native())
        .layer(unique())
        .with_layer(Layer::zeros(96 << 20));
    bundles::write(&node.path("bundle.tar"), [big]);
    if let Some(fake) = target.as_fake() {
        fake.inject(Fault::Stall {
            rpc: "Content.Write",
            after: 3,
        });
    }
    let daemon = node.start();
    node.drop_in(&node.path("bundle.tar"));
    // A fast disk may finish the import first. Then this is an ordinary restart.
    daemon.wait_until("the import is under way", || {
        !target.ingests().is_empty() || !target.leases().is_empty() || target.record(name).is_some()
    });
    if target.as_fake().is_some() {
        daemon.wait_until("a blob is half there", || !target.ingests().is_empty());
        assert!(target.record(name).is_none(), "no record before the content");
    }
    daemon.kill();
    if let Some(fake) = target.as_fake() {
        fake.clear_faults();
    }

    let daemon = node.start();
    daemon.wait_until("the image", || target.record(name).is_some());
    daemon.wait_until("nothing is left", || {
        target.leases().is_empty() && target.ingests().is_empty()
    });
    assert!(target.is_pinned(name));
    daemon.stop();
}

on_each_containerd!(
    an_unchanged_bundle_is_not_opened_and_nothing_is_written,
    an_image_removed_meanwhile_is_brought_back_and_only_that,
    a_daemon_killed_half_way_is_finished_by_the_next,
);
on_the_fake!(
    after_a_restart_of_the_machine_blobs_are_looked_at_and_what_is_lost_is_brought_back,
    a_bad_file_is_told_of_at_the_next_start_and_not_opened,
);
