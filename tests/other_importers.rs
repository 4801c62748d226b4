//! Another importer takes bundles from the same folder into the same containerd, like k0s and k3s.
//! Nothing is sent twice, its incomplete work is completed, its labels stay, and airgapd's labels
//! are restored.

use std::fs;
use std::ops::ControlFlow::{Break, Continue};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bundle::fixtures::Archive;
use fake_containerd::{GoImporter, ImportFailed, K0S_SOURCES, K3S_PINNED, Step};

use crate::support::bundles::{self, image};
use crate::support::node::Answer;
use crate::support::target::{BUNDLE, OUR_PIN, PINNED};
use crate::support::{Node, Target, on_each_containerd, on_the_fake, unique, wait_for, wait_until};

const ONE: &str = "registry.test/one:1";
const TWO: &str = "registry.test/two:1";

fn other(target: &Target) -> GoImporter {
    target.block_on(GoImporter::connect(target.socket(), target.namespace()))
}

/// Imports one bundle like k0s.
fn k0s_imports(target: &Target, bundle: &Path) {
    let imported = target.block_on(other(target).import_as_k0s(bundle, async |_| Continue(())));
    imported.expect("k0s accepts the archive");
}

fn k0s_unpins(target: &Target) {
    let unpinned = target.block_on(other(target).unpin_as_k0s(async |_| Continue(())));
    unpinned.expect("containerd answers");
}

fn k3s_imports(target: &Target, bundle: &Path) {
    let imported = target.block_on(other(target).import_as_k3s(bundle, async |_| Continue(())));
    imported.expect("k3s accepts the archive");
}

/// Puts a bundle into the images folder with one image. Its layer is large enough to count, and no
/// namespace has it yet.
fn put_bundle(node: &Node, file: &str, name: &str) -> (PathBuf, Archive) {
    let path = node.images().join(file);
    let mut layer = unique().into_bytes();
    layer.resize(200_000, 7);
    let archive = bundles::write(&path, [image(name).layer(layer)]);
    (path, archive)
}

fn sources(target: &Target, name: &str) -> usize {
    let labels = target
        .record(name)
        .map(|record| record.labels)
        .unwrap_or_default();
    labels.keys().filter(|key| key.starts_with(BUNDLE)).count()
}

fn has(target: &Target, name: &str, key: &str) -> bool {
    target
        .record(name)
        .is_some_and(|record| record.labels.contains_key(key))
}

/// Returns true if every record of the bundle's image has one bundle's label and a pin of any
/// importer.
fn is_settled(target: &Target, name: &str, archive: &Archive) -> bool {
    let records = bundles::records_of(name, &archive.images[0]);
    records
        .iter()
        .all(|record| sources(target, record) == 1 && has(target, record, PINNED))
}

/// Checks the number of bytes that the stand-in received from the daemon.
fn assert_sent(target: &Target, bytes: u64) {
    if let Some(fake) = target.as_fake() {
        assert_eq!(fake.received_bytes(), bytes, "{:?}", fake.received());
    }
}

fn size_of_layers(archive: &Archive) -> u64 {
    let layers = &archive.images[0].manifests[0].layers;
    let sizes = layers
        .iter()
        .map(|layer| archive.bytes_of(&archive.name_of(layer)).len());
    sizes.sum::<usize>() as u64
}

fn what_k0s_has_imported_is_checked_and_completed_without_sending_a_byte(target: &Target) {
    let node = Node::on(target);
    let (path, archive) = put_bundle(&node, "a.tar", ONE);
    k0s_imports(target, &path);
    let daemon = node.start();
    daemon.wait_until("a bundle vouches for the image", || {
        is_settled(target, ONE, &archive)
    });
    assert!(
        has(target, ONE, K0S_SOURCES) && !has(target, ONE, OUR_PIN),
        "the pin is k0s's"
    );
    let by_digest = &bundles::records_of(ONE, &archive.images[0])[1];
    assert!(target.is_pinned(by_digest), "k0s makes no record for the digest");
    let log = daemon.finish(target);
    assert!(log.contains("0 B sent"), "{log}");
    assert_sent(target, 0);
    target.collect_garbage();
    let there = target.digests();
    assert!(bundles::needed_here(&archive.images).is_subset(&there));
}

fn what_k0s_imports_afterwards_and_again_costs_us_nothing(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let (path, archive) = put_bundle(&node, "a.tar", ONE);
    daemon.wait_until("the image is imported", || is_settled(target, ONE, &archive));
    daemon.wait_until("all leases are returned", || target.leases().is_empty());
    let ours = target.labels(ONE);
    for _ in 0..2 {
        k0s_imports(target, &path);
        k0s_unpins(target);
    }
    let labels = target.labels(ONE);
    assert!(labels.contains_key(K0S_SOURCES));
    assert!(
        ours.iter().all(|(key, value)| labels.get(key) == Some(value)),
        "{labels:?}"
    );
    let (_, marker) = bundles::marker(node.images().join("z.tar"));
    daemon.wait_until("the daemon has got so far", || sources(target, &marker) == 1);
    let log = daemon.finish(target);
    assert!(!log.contains("restoring"), "{log}");
}

/// Runs an importer in its own thread. It stops before the second piece of the first layer until
/// `go`. Returns the results of the work in between and of the importer.
fn k0s_at_work<T>(
    target: &Target,
    bundle: &Path,
    meanwhile: impl FnOnce(&AtomicBool) -> T,
) -> (T, Result<Vec<String>, ImportFailed>) {
    let (go, is_there) = (AtomicBool::new(false), AtomicBool::new(false));
    let (socket, namespace) = (target.socket().to_owned(), target.namespace().to_owned());
    let gate = async |step: Step| {
        if matches!(step, Step::Piece { offset, .. } if offset > 0) {
            is_there.store(true, Ordering::SeqCst);
            while !go.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Continue(())
    };
    thread::scope(|threads| {
        let importer = threads.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("threads").block_on(async {
                let importer = GoImporter::connect(&socket, &namespace).await;
                importer.import_as_k0s(bundle, gate).await
            })
        });
        wait_until("k0s is in the middle of a layer", || {
            is_there.load(Ordering::SeqCst)
        });
        let result = meanwhile(&go);
        go.store(true, Ordering::SeqCst);
        (result, importer.join().expect("the thread ends"))
    })
}

fn a_bundle_that_k0s_is_at_is_left_to_it_first(target: &Target) {
    let node = Node::on(target);
    let (path, archive) = put_bundle(&node, "a.tar", ONE);
    let (daemon, imported) = k0s_at_work(target, &path, |_| {
        let daemon = node.start();
        daemon.wait_for_log("imports this folder, too");
        assert!(target.record(ONE).is_none(), "the record is not written yet");
        daemon
    });
    imported.expect("nothing hinders the importer");
    daemon.wait_until("a bundle vouches for the image", || {
        is_settled(target, ONE, &archive)
    });
    let log = daemon.finish(target);
    assert!(log.contains("0 B sent"), "{log}");
    assert_sent(target, 0);
    assert!(has(target, ONE, K0S_SOURCES));
}

fn a_layer_that_k0s_is_sending_is_waited_for_and_not_sent(target: &Target) {
    let node = Node::on(target);
    let (path, archive) = put_bundle(&node, "a.tar", ONE);
    let (answer, imported) = k0s_at_work(target, &path, |go| {
        let mut importing = node.command(["import", "-o", "json"]);
        importing.arg(&path).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut importing = importing.spawn().expect("the program runs");
        // An importer that sends the layer itself would finish at once.
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut is_over = false;
        while !is_over && Instant::now() < deadline {
            is_over = importing
                .try_wait()
                .expect("waiting for the child works")
                .is_some();
            thread::sleep(Duration::from_millis(10));
        }
        go.store(true, Ordering::SeqCst);
        let answer = Answer::from(importing.wait_with_output().expect("the process ends"));
        assert!(!is_over, "airgapd did not wait for k0s: {answer:?}");
        answer
    });
    let blobs = answer.exits(0).bundle()["blobs"].clone();
    let sent = blobs["sent_bytes"].as_u64().expect("a number");
    assert!(sent < 200_000, "the layer was sent once more: {blobs}");
    assert!(size_of_layers(&archive) > 200_000);
    if imported.is_err() {
        // The record appeared after k0s had checked for it and before k0s created it. At its next
        // check k0s finds it.
        k0s_imports(target, &path);
    }
    wait_until("both are done", || target.leases().is_empty());
    assert!(sources(target, ONE) + usize::from(has(target, ONE, "io.airgapd.import")) > 0);
    assert!(has(target, ONE, K0S_SOURCES));
}

fn what_k0s_left_behind_when_it_died_is_not_waited_for_for_long(target: &Target) {
    let node = Node::on(target);
    node.configure_also("coexistence: exclusive");
    let (path, archive) = put_bundle(&node, "a.tar", ONE);
    let dies = async |step: Step| match step {
        Step::Piece { offset, .. } if offset > 0 => Break(()),
        _ => Continue(()),
    };
    let died = target.block_on(other(target).import_as_k0s(&path, dies));
    assert!(matches!(died, Err(ImportFailed::Died)));
    // airgapd recognises a living importer by three facts: the name of its ingest, the size, and
    // the time of the last write.
    let layer = &archive.images[0].manifests[0]
        .layers
        .last()
        .expect("a layer")
        .digest()
        .to_owned();
    let ingests = target.ingests_in_full();
    let theirs = ingests
        .iter()
        .find(|ingest| ingest.reference.contains(layer.as_str()));
    let theirs = theirs.unwrap_or_else(|| panic!("none of {ingests:?} is of {layer}"));
    assert!(theirs.reference.starts_with("tar-blobs/sha256/"), "{theirs:?}");
    assert!(0 < theirs.offset && theirs.offset < theirs.total, "{theirs:?}");
    let idle = jiff::Timestamp::now().duration_since(theirs.updated_at.expect("a time"));
    assert!(idle.unsigned_abs() < Duration::from_secs(60), "{theirs:?}");
    let daemon = node.start();
    daemon.wait_until("the image is imported", || is_settled(target, ONE, &archive));
    assert!(target.is_pinned(ONE));
    target
        .block_on(other(target).clear_up())
        .expect("containerd answers");
    daemon.finish(target);
}

fn an_image_that_k0s_recorded_without_its_layer_is_repaired(target: &Target) {
    let node = Node::on(target);
    node.configure_also("coexistence: exclusive");
    let mut archive = bundles::layout([image(ONE)]).build();
    let whole = node.path("a.tar");
    archive.write_to(&whole);
    let layer = archive.images[0].manifests[0].layers[0].clone();
    let length = archive.bytes_of(&archive.name_of(&layer)).len() as u64;
    let half = node.images().join("a.tar");
    archive.remove_blob(&layer).write_to(&half);
    k0s_imports(target, &half);
    assert!(target.record(ONE).is_some() && !target.digests().contains(layer.as_ref()));
    let daemon = node.start();
    daemon.wait_for_log("is not in the bundle");
    assert_eq!(sources(target, ONE), 0, "airgapd does not vouch for the image");
    fs::rename(&whole, &half).expect("both paths are on one file system");
    daemon.wait_until("the image is whole", || is_settled(target, ONE, &archive));
    let log = daemon.finish(target);
    assert!(log.contains("repaired"), "{log}");
    assert!(target.digests().contains(layer.as_ref()));
    assert_sent(target, length);
}

/// k0s writes the whole record without its pin when the only bundle that it knows is gone.
fn a_pin_that_k0s_takes_away_comes_back_while_another_bundle_vouches(target: &Target) {
    let node = Node::on(target);
    node.configure_also("coexistence: exclusive");
    let (first, archive) = put_bundle(&node, "a.tar", ONE);
    k0s_imports(target, &first);
    fs::copy(&first, node.images().join("b.tar")).expect("a copy");
    let daemon = node.start();
    daemon.wait_until("both vouch", || sources(target, ONE) == 2);
    daemon.wait_until("all leases are returned", || target.leases().is_empty());
    fs::remove_file(&first).expect("the file exists");
    daemon.wait_until("one bundle vouches", || sources(target, ONE) == 1);
    k0s_unpins(target);
    daemon.wait_until("the image is pinned again", || target.is_pinned(ONE));
    assert!(!has(target, ONE, K0S_SOURCES), "k0s decides about its label");
    assert!(is_settled(target, ONE, &archive));
    daemon.finish(target);
}

/// Between its check and its update, k0s does not see airgapd's labels and overwrites them.
fn labels_that_k0s_wipes_come_back_with_their_meaning(target: &Target) {
    let node = Node::on(target);
    node.configure_also("coexistence: exclusive");
    let (stray, archive) = (node.path("stray.tar"), image(ONE));
    let archive = bundles::write(&stray, [archive]);
    k0s_imports(target, &stray);
    fs::rename(&stray, node.images().join("a.tar")).expect("both paths are on one file system");
    let mut started = None;
    let after_our_import = async |_| {
        let daemon = started.get_or_insert_with(|| node.start_unready());
        while !daemon.log().contains("bundle imported") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Continue(())
    };
    let unpinned = target.block_on(other(target).unpin_as_k0s(after_our_import));
    unpinned.expect("containerd answers");
    let daemon = started.expect("k0s had something to unpin");
    daemon.wait_until("the labels are back", || {
        is_settled(target, ONE, &archive) && target.is_pinned(ONE)
    });
    assert!(!has(target, ONE, K0S_SOURCES));
    daemon.finish(target);
}

fn when_our_bundle_leaves_the_pin_is_left_to_k0s(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let (path, archive) = put_bundle(&node, "a.tar", ONE);
    daemon.wait_until("the image is imported", || is_settled(target, ONE, &archive));
    assert!(target.is_pinned(ONE));
    daemon.wait_until("all leases are returned", || target.leases().is_empty());
    k0s_imports(target, &path);
    fs::remove_file(&path).expect("the file exists");
    daemon.wait_until("our label goes", || sources(target, ONE) == 0);
    assert!(has(target, ONE, PINNED) && has(target, ONE, K0S_SOURCES) && !has(target, ONE, OUR_PIN));
    k0s_unpins(target);
    assert!(!has(target, ONE, PINNED));
    let (_, marker) = bundles::marker(node.images().join("z.tar"));
    daemon.wait_until("the daemon has got so far", || sources(target, &marker) == 1);
    assert!(!has(target, ONE, PINNED), "no importer pins the image any more");
    daemon.finish(target);
}

/// k3s removes its pins at each start, and makes new records by digest.
fn what_k3s_takes_away_at_its_start_comes_back(target: &Target) {
    let node = Node::on(target);
    node.configure_also("coexistence: exclusive");
    let (path, archive) = put_bundle(&node, "a.tar", ONE);
    k3s_imports(target, &path);
    let daemon = node.start();
    daemon.wait_until("a bundle vouches for the image", || {
        is_settled(target, ONE, &archive)
    });
    daemon.wait_until("all leases are returned", || target.leases().is_empty());
    target
        .block_on(other(target).clear_as_k3s())
        .expect("containerd answers");
    daemon.wait_until("the image is pinned in the meantime", || target.is_pinned(ONE));
    k3s_imports(target, &path);
    daemon.wait_until("everything is back", || {
        let records = bundles::records_of(ONE, &archive.images[0]);
        let is_theirs = records.iter().all(|record| has(target, record, K3S_PINNED));
        is_theirs && is_settled(target, ONE, &archive)
    });
    let log = daemon.finish(target);
    assert!(!log.contains("on purpose"), "{log}");
    assert_sent(target, 0);
}

on_each_containerd! {
    a_bundle_that_k0s_is_at_is_left_to_it_first,
    a_layer_that_k0s_is_sending_is_waited_for_and_not_sent,
    a_pin_that_k0s_takes_away_comes_back_while_another_bundle_vouches,
    an_image_that_k0s_recorded_without_its_layer_is_repaired,
    labels_that_k0s_wipes_come_back_with_their_meaning,
    what_k0s_has_imported_is_checked_and_completed_without_sending_a_byte,
    what_k0s_imports_afterwards_and_again_costs_us_nothing,
    what_k0s_left_behind_when_it_died_is_not_waited_for_for_long,
    what_k3s_takes_away_at_its_start_comes_back,
    when_our_bundle_leaves_the_pin_is_left_to_k0s,
}

fn an_importer_that_does_not_come_is_not_waited_for_for_ever(target: &Target) {
    let node = Node::on(target);
    node.configure_also("coexistence: follow");
    let (_, archive) = put_bundle(&node, "a.tar", ONE);
    let packed = bundles::layout([image(TWO)]).build();
    let daemon = node.start();
    daemon.wait_for_log("imports this folder, too");
    // airgapd imports a file that the other importer cannot read.
    let gzip = packed.to_compressed(bundle::Compression::Gzip);
    fs::write(node.images().join(format!("{}.tar.gz", unique())), gzip).expect("a file");
    daemon.wait_until("the compressed bundle is imported", || sources(target, TWO) == 1);
    assert!(target.record(ONE).is_none());
    wait_for(Duration::from_secs(40), "its turn comes", || {
        is_settled(target, ONE, &archive)
    });
    daemon.finish(target);
}

on_the_fake! {
    an_importer_that_does_not_come_is_not_waited_for_for_ever,
}
