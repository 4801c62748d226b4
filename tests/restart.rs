//! What a new start of the daemon finds, reads, restores and leaves alone.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use bundle::fixtures::{Image, Layer};
use fake_containerd::{FakeConfig, Fault};
use lab::Generation;
use rustix::fs::inotify;
use rustix::process::Signal;

use crate::support::bundles::{
    self, PLATFORMS, closure, image, marker, multi_platform, native, records_of, text,
};
use crate::support::node::Daemon;
use crate::support::{Node, Place, Target, on_each_containerd, on_the_fake, unique, wait_for, wait_until};

/// Sees whether a file is opened or read.
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

/// Drops a bundle and waits for its image: by then the daemon has compared everything that was there before.
fn until_settled(node: &Node, target: &Target, daemon: &Daemon) -> String {
    let (bundle, name) = marker(node.path(&format!("marker-{}.tar", daemon.pid())));
    node.drop_in(&bundle);
    daemon.wait_until("a file that came later", || {
        target.record(&name).is_some() && target.leases().is_empty()
    });
    name
}

/// Imports a bundle with a daemon that then ends.
fn imported_earlier(node: &Node, target: &Target, bundle: &Path, names: usize) {
    let daemon = node.start();
    node.drop_in(bundle);
    daemon.wait_until("the images", || {
        target.names().len() == names && target.leases().is_empty()
    });
    daemon.wait_until("the ledger", || {
        fs::read_to_string(node.ledger()).is_ok_and(|text| text.contains("bundle.tar"))
    });
    daemon.stop();
}

/// What a power cut leaves: containerd lists blobs whose files have lost their end.
fn after_a_restart_of_the_machine_blobs_are_looked_at_and_what_is_lost_is_brought_back(target: &Target) {
    let fake = target.as_fake().unwrap();
    let node = Node::on(target);
    let name = "registry.test/cut:1";
    let archive = bundles::write(&node.path("bundle.tar"), [image(name)]);
    imported_earlier(&node, target, &node.path("bundle.tar"), 2);
    let layer = archive.images[0].manifests[0].layers[0].to_string();
    let whole = fake.blob_bytes(target.namespace(), &layer).unwrap();
    let reads = fake.calls("Content.Read");
    let daemon = node.start();
    until_settled(&node, target, &daemon);
    daemon.stop();
    assert_eq!(fake.calls("Content.Read"), reads, "the machine was not restarted");

    assert!(fake.corrupt_blob(&layer, &whole[..whole.len() / 2]));
    let mut ledger: serde_json::Value = serde_json::from_slice(&fs::read(node.ledger()).unwrap()).unwrap();
    assert!(ledger["context"]["boot"].is_string());
    ledger["context"]["boot"] = "an earlier one".into();
    fs::write(node.ledger(), ledger.to_string()).unwrap();
    let daemon = node.start();
    daemon.wait_for_log("1 are lost");
    daemon.wait_until("it is whole again", || {
        fake.blob_bytes(target.namespace(), &layer).as_ref() == Some(&whole)
    });
    daemon.finish(target);
    let ledger = fs::read_to_string(node.ledger()).unwrap();
    assert!(!ledger.contains("an earlier one"), "this boot is known now");
}

/// A file that was bad is bad still: it is told of and not read again, until the rules change.
fn a_bad_file_is_told_of_at_the_next_start_and_not_opened(target: &Target) {
    let node = Node::on(target);
    let bad = node.images().join("bad.tar");
    let mut archive = bundles::layout([image("registry.test/bad:1")]).build();
    let manifest = archive.images[0].manifests[0].digest.clone();
    archive.corrupt(&manifest).write_to(&bad);
    fs::write(node.images().join("other"), "no archive\n").unwrap();
    let daemon = node.start();
    daemon.wait_for_log("ERROR");
    until_settled(&node, target, &daemon);
    daemon.wait_until("the ledger", || {
        fs::read_to_string(node.ledger()).is_ok_and(|text| text.contains("bad.tar") && text.contains("other"))
    });
    daemon.stop();

    let reads = Reads::of(&bad);
    let daemon = node.start();
    until_settled(&node, target, &daemon);
    assert_eq!(daemon.count("not imported, as before"), 2, "{}", daemon.log());
    assert!(!reads.any(), "the bad file was opened");
    daemon.stop();

    node.configure_also("platforms: [linux/amd64, linux/arm64]");
    let daemon = node.start();
    daemon.wait_until("it is looked at under the new rules", || reads.any());
    daemon.wait_until("and still refused", || daemon.count("ERROR") >= 3);
    daemon.finish(target);
}

/// Statement 57: seen with inotify on the file, and in containerd's events.
fn an_unchanged_bundle_is_not_opened_and_nothing_is_written(target: &Target) {
    let node = Node::on(target);
    let names = ["registry.test/a:1", "registry.test/b:1"];
    bundles::write(
        &node.path("bundle.tar"),
        names.map(|name| multi_platform(name, &PLATFORMS)),
    );
    imported_earlier(&node, target, &node.path("bundle.tar"), 4);

    let reads = Reads::of(&node.images().join("bundle.tar"));
    let changes = target.watch();
    if let Some(fake) = target.as_fake() {
        fake.reset_log();
    }
    let daemon = node.start();
    daemon.wait_until("the daemon is connected", || daemon.log().contains("connected"));
    let marker = until_settled(&node, target, &daemon);

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

/// Statement 52, over a restart: what is gone is restored, and nothing else is touched or sent.
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
    imported_earlier(&node, target, &node.path("bundle.tar"), 4);

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

/// The ledger is a cache of the truth: without it no pin and no label changes.
fn a_lost_ledger_changes_no_record_and_is_written_anew(target: &Target) {
    for harm in [
        |ledger: &Path| fs::remove_file(ledger).unwrap(),
        |ledger: &Path| fs::write(ledger, "{\"ver").unwrap(),
    ] {
        let target = target.elsewhere();
        let node = Node::on(&target);
        bundles::write(
            &node.path("bundle.tar"),
            [image("registry.test/a:1"), image("registry.test/b:1")],
        );
        imported_earlier(&node, &target, &node.path("bundle.tar"), 4);
        let before = target.records();
        let changes = target.watch();
        harm(&node.ledger());

        let daemon = node.start();
        daemon.wait_until("the ledger is back", || {
            fs::read_to_string(node.ledger()).is_ok_and(|text| text.contains("bundle.tar"))
        });
        assert_eq!(changes.so_far(), []);
        assert_eq!(target.records(), before);
        daemon.stop();
        target.assert_tidy();
    }
}

fn a_broken_ledger_is_set_aside_and_said(target: &Target) {
    let node = Node::on(target);
    fs::write(node.ledger(), "no ledger\n").unwrap();
    let daemon = node.start();
    until_settled(&node, target, &daemon);
    let log = daemon.stop();
    assert!(
        log.lines()
            .any(|line| line.contains("state.json") && line.contains("WARN")),
        "{log}"
    );
    let aside = fs::read_dir(node.state())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let aside: Vec<_> = aside
        .filter(|path| fs::read(path).is_ok_and(|bytes| bytes == b"no ledger\n"))
        .collect();
    assert_eq!(aside.len(), 1, "what it said is kept for whoever wants to know");
    assert_ne!(aside[0], node.ledger());
}

/// Statement 43: a crash between the first byte and the record leaves nothing that the next start does not clear up.
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
    // A fast disk may be done with it first; then this is a restart like others.
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

/// Statement 36: containerd dies and comes back, the import goes on.
fn a_containerd_that_restarts_meanwhile_is_waited_for(target: &Target) {
    let fake = target.as_fake().unwrap();
    let node = Node::on(target);
    let daemon = node.start();
    until_settled(&node, target, &daemon);
    fake.kill();
    let name = "registry.test/later:1";
    bundles::write(&node.images().join("later.tar"), [image(name)]);
    daemon.wait_for_log("waiting");
    fake.listen();
    wait_until("the image", || fake.images(target.namespace()).contains_key(name));
    daemon.wait_until("the lease is given back", || {
        fake.leases(target.namespace()).is_empty()
    });
    daemon.stop();
}

/// Two daemons on one state folder would undo each other's work.
fn a_second_daemon_is_refused_and_told_of_the_first(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let answer = node.airgapd(["run"]);
    assert!(!answer.status.success());
    assert!(answer.stderr.contains(&daemon.pid().to_string()), "{answer:?}");
    daemon.stop();
    node.start().stop();
}

fn signals_end_the_daemon_cleanly(target: &Target) {
    let node = Node::on(target);
    for signal in [Signal::TERM, Signal::INT] {
        let daemon = node.start();
        let log = daemon.stop_with(signal);
        assert!(!log.contains("ERROR"), "{log}");
    }
}

/// A stop in mid import ends soon, and the next start has the rest.
fn a_stop_in_mid_import_is_clean_and_the_next_start_finishes(target: &Target) {
    let fake = target.as_fake().unwrap();
    let node = Node::on(target);
    node.configure_also("grace: 100ms");
    let name = "registry.test/stopped:1";
    bundles::write(&node.images().join("bundle.tar"), [image(name)]);
    fake.inject(Fault::Stall {
        rpc: "Content.Write",
        after: 0,
    });
    let daemon = node.start();
    daemon.wait_until("the import is under way", || fake.calls("Content.Write") > 0);
    daemon.stop();
    fake.clear_faults();
    let daemon = node.start();
    daemon.wait_until("the image", || target.record(name).is_some());
    daemon.wait_until("nothing is left", || {
        target.leases().is_empty() && target.ingests().is_empty()
    });
    daemon.stop();
}

/// Nothing waits for containerd that systemd waits for.
fn the_daemon_is_ready_before_containerd_is_there(target: &Target) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("late.sock");
    let node = Node::at(&socket, target.namespace());
    let daemon = node.start();
    assert!(!socket.exists());
    daemon.wait_for_log(&text(&socket));
    daemon.stop();
}

/// The peak is the daemon's, over everything from reading the bundle to the record.
fn two_gibibytes_are_imported_in_64_mebibytes(_: &Target) {
    let target = Target::fake(FakeConfig {
        discard_data_above: Some(1 << 20),
        ..FakeConfig::default()
    });
    import_two_gibibytes(&target);
}

fn import_two_gibibytes(target: &Target) {
    let node = Node::on(target);
    let name = "registry.test/huge:1";
    let huge = Image::new(name)
        .platform(native())
        .layer(unique())
        .with_layer(Layer::zeros(2 << 30));
    let archive = bundles::write(&node.images().join("huge.tar"), [huge]);
    let daemon = node.start();
    wait_for(Duration::from_secs(300), "the image", || {
        target.record(name).is_some()
    });
    let peak = crate::support::node::peak_memory(daemon.pid()).unwrap();
    assert!(peak < 64 << 20, "{peak} bytes resident at the peak");
    let layer = archive.images[0].manifests[0].layers[1].to_string();
    assert!(target.digests().contains(&layer));
    daemon.finish(target);
    target.assert_tidy();
}

/// Once for real; the others differ in nothing that memory depends on.
#[test]
fn two_gibibytes_are_imported_in_64_mebibytes_by_a_real_containerd() {
    crate::support::run_on(Place::Real(Generation::V2_1), import_two_gibibytes);
}

on_each_containerd!(
    an_unchanged_bundle_is_not_opened_and_nothing_is_written,
    an_image_removed_meanwhile_is_brought_back_and_only_that,
    a_lost_ledger_changes_no_record_and_is_written_anew,
    a_daemon_killed_half_way_is_finished_by_the_next,
);
on_the_fake!(
    after_a_restart_of_the_machine_blobs_are_looked_at_and_what_is_lost_is_brought_back,
    a_bad_file_is_told_of_at_the_next_start_and_not_opened,
    a_broken_ledger_is_set_aside_and_said,
    a_containerd_that_restarts_meanwhile_is_waited_for,
    a_second_daemon_is_refused_and_told_of_the_first,
    signals_end_the_daemon_cleanly,
    a_stop_in_mid_import_is_clean_and_the_next_start_finishes,
    the_daemon_is_ready_before_containerd_is_there,
    two_gibibytes_are_imported_in_64_mebibytes,
);
