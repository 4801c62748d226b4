//! Receipts: the images of a bundle outlive its file, and come back without it.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bundle::fixtures::{Archive, Image};
use containerd::Resource;
use oci_spec::image::Digest;
use serde_json::{Value, json};

use crate::merge_split_diff::delta;
use crate::support::bundles::{self, documents_first, image, native, text};
use crate::support::node::bundle;
use crate::support::target::{BUNDLE, BY_HAND};
use crate::support::{Node, Target, on_each_containerd, on_the_fake, unique, wait_until};

const ONE: &str = "registry.test/one:1";
const TWO: &str = "registry.test/two:1";

/// Returns the path of the only receipt of a bundle that was imported by hand.
fn receipt_by_hand(node: &Node, bundle: &str) -> PathBuf {
    let receipts = receipts_by_hand(node, bundle);
    assert_eq!(receipts.len(), 1, "{receipts:?}");
    receipts.into_iter().next().unwrap()
}

/// Returns the paths of the receipts of bundles with this name that were imported by hand.
fn receipts_by_hand(node: &Node, bundle: &str) -> Vec<PathBuf> {
    let folder = node.state().join("receipts");
    let is_of = |name: &String| name.starts_with("by-hand-") && name.ends_with(&format!("-{bundle}"));
    let names = names_in(&folder).into_iter().filter(is_of);
    names.map(|name| folder.join(name)).collect()
}

/// Returns the path of a receipt.
fn receipt(node: &Node, bundle: &str) -> PathBuf {
    node.state().join("receipts").join(bundle)
}

/// Returns true if a record is pinned, and the receipt alone vouches for it.
fn is_held_by(target: &Target, name: &str, receipt: &Path) -> bool {
    let record = target.record(name);
    let path = text(receipt);
    record.is_some_and(|record| {
        let bundles = record.labels.iter().filter(|(key, _)| key.starts_with(BUNDLE));
        let bundles: Vec<&String> = bundles.map(|(_, file)| file).collect();
        bundles == [&path] && record.labels.get(BY_HAND) == Some(&path) && target.is_pinned(name)
    })
}

/// Returns true if a record is there without any mark of airgapd.
fn is_let_go(target: &Target, name: &str) -> bool {
    let record = target.record(name);
    record.is_some_and(|record| record.labels.keys().all(|key| !key.contains("airgapd")))
}

/// Gives a receipt back, so that a scenario leaves no lease.
fn give_back(node: &Node, target: &Target) {
    node.airgapd(["release", "shop.tar"]).exits(0);
    assert!(target.leases().is_empty(), "{:?}", target.leases());
}

/// Waits until the only lease is that of a receipt. It never expires, and protects its blobs only.
fn assert_lease(target: &Target) {
    wait_until("the lease of the receipt is the only one", || {
        let leases = target.leases();
        leases.len() == 1 && leases.iter().all(|id| id.starts_with("airgapd-receipt-"))
    });
    let leases = target.block_on(target.client().leases()).unwrap();
    let ours = leases
        .iter()
        .find(|lease| lease.id.starts_with("airgapd-receipt-"))
        .unwrap();
    assert_eq!(ours.expires, None);
    assert_eq!(ours.labels["containerd.io/gc.flat"], "true");
    // 0.1.0 deletes leases with a mark of bundles only.
    assert!(ours.labels["io.airgapd.lease"].starts_with("receipt "));
}

/// Removes the records of an image, and lets containerd collect what nothing holds.
fn wipe(target: &Target, names: &[String]) {
    for name in names {
        target.remove_record(name);
    }
    target.collect_garbage();
}

fn state(node: &Node, name: &Path) -> Value {
    let shown = node.airgapd(["status", "-o", "json"]).json();
    bundle(&shown, &text(name)).clone()
}

fn an_import_with_keep_leaves_a_receipt_from_which_a_daemon_restores_records_without_a_byte(target: &Target) {
    let node = Node::on(target);
    let file = node.path("shop.tar");
    let archive = bundles::write(&file, [image(ONE)]);
    let inspected = node.airgapd(["inspect", "-o", "json", &text(&file)]).json();
    let answer = node.import(["--keep", &text(&file)]).exits(0);
    assert_eq!(answer.bundle()["outcome"], "imported");
    let kept = receipt_by_hand(&node, "shop.tar");
    assert!(kept.is_file() && file.is_file());
    assert!(is_held_by(target, ONE, &kept), "{:?}", target.labels(ONE));
    assert_lease(target);
    let blobs = bundles::needed_here(&archive.images);

    fs::remove_file(&file).unwrap();
    let records = bundles::records_of(ONE, &archive.images[0]);
    wipe(target, &records);
    assert!(blobs.is_subset(&target.digests()), "the lease holds every blob");
    let daemon = node.start();
    daemon.wait_until("the records are back", || {
        records.iter().all(|name| is_held_by(target, name, &kept))
    });
    wipe(target, &records);
    daemon.wait_until("the records are back once more", || {
        records.iter().all(|name| is_held_by(target, name, &kept))
    });
    daemon.wait_until("the receipt is in place", || {
        state(&node, &kept)["state"] == "done"
    });
    node.airgapd(["wait"]).exits(0);
    assert_lease(target);
    let shown = state(&node, &kept);
    let of = json!({
        "bundle": "shop.tar",
        "size": archive.to_bytes().len(),
        "by_hand": true,
        "catalog": inspected["digest"],
    });
    assert_eq!(shown["receipt_of"], of, "{shown:#}");
    assert!(shown["disk_use"]["store_bytes"].as_u64() > Some(0), "{shown:#}");
    let page = node.airgapd(["status", "-v"]).exits(0).stdout;
    assert!(page.contains("receipt of shop.tar, which had"), "{page}");
    let report = node.airgapd(["report", "-o", "json"]).exits(0).stdout;
    assert!(report.contains(&text(&kept)), "{report}");
    let findings = node.airgapd(["doctor"]).said();
    let held = "1 receipt: kubelet's garbage collection does not get";
    assert!(findings.contains(held), "{findings}");
    daemon.stop();
    give_back(&node, target);
}

fn with_after_import_a_receipt_takes_the_place_of_the_file(target: &Target) {
    for on_removal in ["unpin", "delete"] {
        let target = &target.elsewhere();
        let node = Node::on(target);
        node.configure_also(&format!("afterImport: receipt\nonRemoval: {on_removal}"));
        let file = node.path("shop.tar");
        let archive = bundles::write(&file, [image(ONE), image(TWO)]);
        let daemon = node.start();
        let placed = node.drop_in(&file);
        daemon.wait_until("the file goes", || !placed.exists());
        let kept = receipt(&node, "shop.tar");
        daemon.wait_until("the receipt holds both images", || {
            is_held_by(target, ONE, &kept) && is_held_by(target, TWO, &kept)
        });
        daemon.wait_for_line("shop.tar", "its receipt takes its place");
        assert!(!daemon.log().contains("the bundle is gone"), "{}", daemon.log());
        assert_lease(target);
        let names = fs::read_dir(node.images()).unwrap().count();
        assert_eq!(names, 0, "no part of the file stays");
        daemon.stop();

        // Another daemon, a removed record, and nothing to read it from but containerd.
        let records = bundles::records_of(ONE, &archive.images[0]);
        wipe(target, &records);
        let daemon = node.start();
        daemon.wait_until("the records are back", || {
            records.iter().all(|name| is_held_by(target, name, &kept))
        });
        node.airgapd(["wait"]).exits(0);

        // The same bundle lands without a byte, and goes again.
        node.drop_in(&file);
        daemon.wait_until("the file goes again", || {
            daemon.count("its receipt takes its place") == 1 && !placed.exists()
        });
        daemon.wait_until("the receipt holds both images again", || {
            is_held_by(target, ONE, &kept) && is_held_by(target, TWO, &kept)
        });
        assert_lease(target);
        daemon.stop();
        give_back(&node, target);
    }
}

fn a_bundle_whose_receipt_took_its_place_is_waited_for_by_its_name_and_its_path(target: &Target) {
    let node = Node::on(target);
    node.configure_also("afterImport: receipt");
    let file = node.path("shop.tar");
    bundles::write(&file, [image(ONE)]);
    let daemon = node.start();
    let placed = node.drop_in(&file);
    daemon.wait_until("the file goes", || !placed.exists());
    let kept = receipt(&node, "shop.tar");
    daemon.wait_until("the receipt is in place", || {
        state(&node, &kept)["state"] == "done"
    });
    let waits = |options: &[&str], name: &str, exit| {
        let arguments = [options, &["--bundle", name]].concat();
        node.airgapd([&["wait"], arguments.as_slice()].concat())
            .exits(exit)
    };
    for name in ["shop.tar", &text(&placed), &text(&kept)] {
        waits(&["--timeout", "20s"], name, 0);
        waits(&["--now"], name, 0);
    }
    // The second copy is the bundle of that name as long as it is there.
    node.drop_in(&file);
    waits(&["--timeout", "20s"], "shop.tar", 0);
    daemon.wait_until("the second copy goes", || !placed.exists());
    waits(&["--timeout", "20s"], "shop.tar", 0);
    waits(&["--now"], "shop.tar", 0);
    daemon.stop();
    give_back(&node, target);
}

fn the_receipt_of_an_import_by_hand_stands_for_no_bundle_of_the_folder(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let file = node.path("shop.tar");
    bundles::write(&file, [image(ONE)]);
    node.import(["--keep", &text(&file)]).exits(0);
    let kept = receipt_by_hand(&node, "shop.tar");
    daemon.wait_until("the receipt is in place", || {
        state(&node, &kept)["state"] == "done"
    });
    let placed = text(&node.images().join("shop.tar"));
    for name in ["shop.tar", &placed] {
        let answer = node.airgapd(["wait", "--now", "--bundle", name]).exits(1);
        assert!(answer.stderr.contains("does not exist"), "{answer:?}");
        let answer = node.airgapd(["wait", "--bundle", name]).exits(1);
        assert!(answer.stderr.contains("there is no bundle"), "{answer:?}");
    }
    node.airgapd(["wait", "--now", "--bundle", &text(&kept)]).exits(0);
    daemon.stop();
    give_back(&node, target);
}

fn a_released_receipt_gives_back_its_file_its_lease_and_its_marks(target: &Target) {
    let node = Node::on(target);
    node.configure_also("afterImport: receipt");
    let file = node.path("shop.tar");
    bundles::write(&file, [image(ONE)]);
    let daemon = node.start();
    let placed = node.drop_in(&file);
    let kept = receipt(&node, "shop.tar");
    daemon.wait_until("the receipt holds the image", || {
        !placed.exists() && is_held_by(target, ONE, &kept)
    });
    node.airgapd(["release", "shop.tar"]).exits(0);
    daemon.wait_until("nothing holds the image", || {
        is_let_go(target, ONE) && target.leases().is_empty()
    });
    assert!(!kept.exists());
    node.airgapd(["wait", "--allow-empty"]).exits(0);
    assert!(is_let_go(target, ONE));
    daemon.finish(target);
}

fn a_receipt_that_lost_a_layer_names_the_bundle_to_bring_and_any_bundle_with_the_layer_heals_it(
    target: &Target,
) {
    let node = Node::on(target);
    let file = node.path("shop.tar");
    let archive = bundles::write(&file, [image(ONE), image(TWO)]);
    node.import(["--keep", &text(&file)]).exits(0);
    let kept = receipt_by_hand(&node, "shop.tar");
    let lost: Digest = archive.images[0].manifests[0].layers[0].clone();
    let daemon = node.start();
    daemon.wait_until("the receipt is in place", || {
        state(&node, &kept)["state"] == "done"
    });
    target.block_on(target.client().delete_blob(&lost)).unwrap();
    daemon.wait_for_log("degraded");
    let shown = state(&node, &kept);
    let problem = shown.to_string();
    for word in [lost.as_ref(), ONE, "shop.tar", "and the receipt has no layers"] {
        assert!(problem.contains(word), "{word}: {shown:#}");
    }
    assert!(target.is_pinned(TWO));
    // Another bundle has the image under another name.
    let other = node.path("other.tar");
    fs::copy(&file, &other).unwrap();
    node.drop_in(&other);
    daemon.wait_until("the layer is back", || target.digests().contains(lost.as_ref()));
    // All names of the receipt belong to the later bundle now.
    daemon.wait_until("the receipt is released", || !kept.exists());
    daemon.wait_until("its lease and its marks go", || {
        target.leases().is_empty() && !target.labels(ONE).contains_key(BY_HAND)
    });
    assert!(target.is_pinned(ONE) && target.is_pinned(TWO));
    daemon.finish(target);
}

/// Returns the names in a folder.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn killed_at_any_moment_the_daemon_has_the_file_or_its_receipt_and_ends_with_the_receipt(target: &Target) {
    let node = Node::on(target);
    node.configure_also("afterImport: receipt");
    let file = node.path("shop.tar");
    let archive = bundles::write(&file, [image(ONE), image(TWO)]);
    let kept = receipt(&node, "shop.tar");
    let going = node.images().join(".airgapd-going-shop.tar");
    let placed = node.images().join("shop.tar");
    for after in 0..20_u64 {
        if !placed.exists() && !going.exists() {
            node.drop_in(&file);
        }
        let daemon = node.start_unready();
        let until = Instant::now() + Duration::from_millis(after * 30);
        wait_until("the moment of the kill", || Instant::now() >= until);
        daemon.kill();
        assert!(
            placed.exists() || going.exists() || kept.exists(),
            "neither file nor receipt after {} ms",
            after * 30
        );
    }
    let daemon = node.start();
    daemon.wait_until("the receipt alone is left", || {
        names_in(&node.images()).is_empty()
            && is_held_by(target, ONE, &kept)
            && is_held_by(target, TWO, &kept)
    });
    assert_lease(target);
    let names: Vec<String> = [(ONE, 0), (TWO, 1)]
        .into_iter()
        .flat_map(|(name, at)| bundles::records_of(name, &archive.images[at]))
        .collect();
    wipe(target, &names);
    daemon.wait_until("all records are back", || {
        names.iter().all(|name| is_held_by(target, name, &kept))
    });
    daemon.stop();
    give_back(&node, target);
}

fn an_interrupted_removal_is_undone_at_the_next_start_and_then_made_whole(target: &Target) {
    let node = Node::on(target);
    let file = node.path("shop.tar");
    bundles::write(&file, [image(ONE)]);
    let placed = node.drop_in(&file);
    node.import(["--keep", &text(&placed)]).exits(0);
    let kept = receipt(&node, "shop.tar");
    let daemon = node.start();
    daemon.wait_until("both vouch", || {
        state(&node, &kept)["state"] == "done" && state(&node, Path::new("shop.tar"))["state"] == "done"
    });
    let page = node.airgapd(["status", "-v"]).exits(0).stdout;
    assert!(page.contains("receipts    would free"), "{page}");
    // The file has another name, so it must stay.
    fs::hard_link(&placed, node.path("link.tar")).unwrap();
    node.configure_also("afterImport: receipt");
    daemon.signal(rustix::process::Signal::HUP);
    daemon.wait_for_line("shop.tar", "hard links");
    assert!(placed.exists());
    daemon.stop();
    fs::remove_file(node.path("link.tar")).unwrap();
    // A power cut between the two steps of a removal. It may have cost containerd bytes, so the
    // file may be the last copy.
    let going = node.images().join(".airgapd-going-shop.tar");
    fs::rename(&placed, &going).unwrap();
    let settings = fs::read_to_string(node.path("config.yaml")).unwrap();
    node.configure(&settings.replace("afterImport: receipt", "afterImport: keep"));
    let (other, named) = (node.images().join("other"), ".airgapd-replaced-other");
    fs::write(&other, "").unwrap();
    fs::write(node.images().join(".airgapd-going-other"), "").unwrap();
    let daemon = node.start();
    assert!(placed.exists() && !going.exists(), "it has its name back");
    daemon.wait_for_line(named, "a removal cannot be undone");
    daemon.stop();
    fs::remove_file(other).unwrap();
    fs::remove_file(node.images().join(named)).unwrap();
    node.configure(&settings);
    let daemon = node.start();
    daemon.wait_until("the receipt is all that is left", || {
        names_in(&node.images()).is_empty() && is_held_by(target, ONE, &kept)
    });
    assert_lease(target);
    daemon.stop();
    give_back(&node, target);
}

fn an_interrupted_removal_on_a_disk_that_is_mounted_late_is_undone_by_the_running_daemon(target: &Target) {
    let node = Node::on(target);
    node.configure_also("recursive: true");
    let daemon = node.start();
    let disk = node.path("disk");
    fs::create_dir(&disk).unwrap();
    bundles::write(&disk.join(".airgapd-going-shop.tar"), [image(ONE)]);
    bundles::write(&disk.join("other.tar"), [image(TWO)]);
    fs::write(disk.join(".airgapd-going-other.tar"), "").unwrap();
    let mounted = node.images().join("disk");
    fs::rename(&disk, &mounted).unwrap();
    daemon.wait_until("both bundles are in place", || {
        target.names().len() == 4 && target.leases().is_empty()
    });
    let replaced = ".airgapd-replaced-other.tar";
    assert_eq!(names_in(&mounted), [replaced, "other.tar", "shop.tar"]);
    daemon.wait_for_line(
        replaced,
        "a removal cannot be undone: another file has its own name",
    );
    // Another listing says nothing more about it.
    node.drop_marker(target, &daemon);
    assert_eq!(daemon.count("a removal cannot be undone"), 1);
    daemon.finish(target);
}

/// Returns a node whose daemon has taken a receipt by hand and has stopped, with the bundle and the
/// receipt.
fn node_with_a_receipt(target: &Target) -> (Node, Archive, PathBuf) {
    let node = Node::on(target);
    let file = node.path("shop.tar");
    let archive = bundles::write(&file, [image(ONE)]);
    node.import(["--keep", &text(&file)]).exits(0);
    let kept = receipt_by_hand(&node, "shop.tar");
    let daemon = node.start();
    daemon.wait_until("the receipt is in place", || {
        state(&node, &kept)["state"] == "done"
    });
    daemon.stop();
    (node, archive, kept)
}

fn a_lease_that_a_killed_daemon_has_filled_in_part_is_filled_by_the_next_one(target: &Target) {
    let (node, archive, kept) = node_with_a_receipt(target);
    let client = target.client();
    let leases = target.block_on(client.leases()).unwrap();
    let [lease] = leases.as_slice() else {
        panic!("{leases:?}")
    };
    let held = || -> HashSet<Resource> {
        let held = target.block_on(client.lease_resources(&lease.id));
        held.unwrap_or_default().into_iter().collect()
    };
    let whole = held();
    assert!(whole.len() > 2, "{whole:?}");
    target.block_on(async {
        client.delete_lease(&lease.id, false).await.unwrap();
        client
            .create_lasting_lease(&lease.id, &lease.labels)
            .await
            .unwrap();
        let some = whole.iter().next().unwrap();
        client.add_to_lease(&lease.id, some).await.unwrap();
    });
    assert_eq!(held().len(), 1);
    let daemon = node.start();
    daemon.wait_until("the lease holds every blob", || held() == whole);
    daemon.wait_for_log("the lease of the receipt is missing in containerd");
    daemon.wait_until("the receipt is in place again", || {
        state(&node, &kept)["state"] == "done"
    });
    daemon.stop();
    wipe(target, &bundles::records_of(ONE, &archive.images[0]));
    assert!(bundles::needed_here(&archive.images).is_subset(&target.digests()));
    give_back(&node, target);
}

fn without_its_state_folder_a_daemon_leaves_the_leases_of_receipts(target: &Target) {
    let (node, archive, kept) = node_with_a_receipt(target);
    let leases = target.leases();
    // The disk of the state folder is not mounted, and daemons make the folder anew.
    let aside = node.path("aside");
    fs::rename(node.state(), &aside).unwrap();
    for _ in 0..2 {
        let daemon = node.start();
        daemon.wait_for_line(&text(&kept), "1 receipt without a file, such as");
        daemon.stop();
        assert_eq!(target.leases(), leases);
    }
    let records = bundles::records_of(ONE, &archive.images[0]);
    wipe(target, &records);
    assert!(bundles::needed_here(&archive.images).is_subset(&target.digests()));
    fs::remove_dir_all(node.state()).unwrap();
    fs::rename(&aside, node.state()).unwrap();
    let daemon = node.start();
    daemon.wait_until("the records are back", || {
        records.iter().all(|name| is_held_by(target, name, &kept))
    });
    assert!(!daemon.log().contains("without a file"), "{}", daemon.log());
    // A receipt that the daemon knew is gone, and so is the use of its lease.
    fs::remove_file(&kept).unwrap();
    daemon.finish(target);
}

fn bundles_of_one_name_from_elsewhere_have_receipts_of_their_own(target: &Target) {
    let node = Node::on(target);
    let sticks = [node.path("one"), node.path("two")];
    for (stick, name) in sticks.iter().zip([ONE, TWO]) {
        fs::create_dir(stick).unwrap();
        let file = stick.join("shop.tar");
        bundles::write(&file, [image(name)]);
        node.import(["--keep", &text(&file)]).exits(0);
    }
    let receipts = receipts_by_hand(&node, "shop.tar");
    assert_eq!(receipts.len(), 2, "{receipts:?}");
    // The folder has a bundle of the same name, which has nothing to do with them.
    let placed = node.path("shop.tar");
    bundles::write(&placed, [image("registry.test/three:1")]);
    node.drop_in(&placed);
    let daemon = node.start();
    daemon.wait_until("all are in place", || {
        let is_done = |path: &Path| state(&node, path)["state"] == "done";
        receipts.iter().all(|path| is_done(path)) && is_done(Path::new("shop.tar"))
    });
    node.airgapd(["wait"]).exits(0);
    for name in [ONE, TWO] {
        let is_held = receipts.iter().any(|path| is_held_by(target, name, path));
        assert!(is_held, "{name}: {:?}", target.labels(name));
    }
    daemon.stop();
    fs::remove_file(node.images().join("shop.tar")).unwrap();
    node.airgapd(["release", "shop.tar"]).exits(0);
    assert!(receipts_by_hand(&node, "shop.tar").is_empty());
    assert!(is_let_go(target, ONE) && is_let_go(target, TWO) && target.leases().is_empty());
}

fn without_its_receipt_an_import_with_keep_leaves_what_any_import_by_hand_leaves(target: &Target) {
    let node = Node::on(target);
    let file = node.path("shop.tar");
    bundles::write(&file, [image(ONE)]);
    // A file where the folder of receipts would be.
    fs::create_dir_all(node.state()).unwrap();
    fs::write(node.state().join("receipts"), "").unwrap();
    let answer = node.import(["--keep", &text(&file)]);
    assert_ne!(answer.bundle()["outcome"], "imported");
    let labels = target.labels(ONE);
    assert_eq!(labels.get(BY_HAND).map(String::as_str), Some("shop.tar"));
    assert!(labels.keys().all(|key| !key.starts_with(BUNDLE)), "{labels:?}");
    node.airgapd(["release", "--vanished"]).exits(0);
    assert!(target.is_pinned(ONE), "no receipt has vanished");
    node.airgapd(["release", "shop.tar"]).exits(0);
    assert!(is_let_go(target, ONE) && target.leases().is_empty());
}

fn a_bundle_from_a_pipe_leaves_a_receipt_too(target: &Target) {
    let node = Node::on(target);
    let archive = bundles::write(&node.path("shop.tar"), [image(ONE)]);
    let answer = node.pipe_in(&["--keep", "-"], &archive.to_bytes());
    assert_eq!(answer.exits(0).bundle()["outcome"], "imported");
    let kept = receipt_by_hand(&node, "stdin");
    wipe(target, &bundles::records_of(ONE, &archive.images[0]));
    let daemon = node.start();
    daemon.wait_until("the record is back", || is_held_by(target, ONE, &kept));
    node.airgapd(["wait"]).exits(0);
    daemon.stop();
    node.airgapd(["release", "stdin"]).exits(0);
    assert!(is_let_go(target, ONE) && target.leases().is_empty());
}

fn a_receipt_of_a_pipe_has_the_size_of_the_stream_and_is_known_by_its_content_digest(target: &Target) {
    let node = Node::on(target);
    for form in [|archive| archive, documents_first] {
        let archive = form(bundles::layout([image(ONE)]).build());
        let bytes = archive.to_bytes();
        // The second time, the node needs nothing of it.
        for _ in 0..2 {
            node.pipe_in(&["--keep", "-"], &bytes).exits(0);
        }
        let kept = receipt_by_hand(&node, "stdin");
        let daemon = node.start();
        daemon.wait_until("the receipt is in place", || {
            state(&node, &kept)["state"] == "done"
        });
        let shown = state(&node, &kept);
        assert_eq!(
            shown["receipt_of"],
            json!({"bundle": "stdin", "size": bytes.len(), "by_hand": true, "catalog": shown["catalog"]}),
            "{shown:#}"
        );
        let content = shown["catalog"].as_str().unwrap().to_owned();
        let page = node.airgapd(["status", "-v"]).exits(0).stdout.replace("\n", " ");
        let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(page.contains(&format!("content digest {content}")), "{page}");
        let lost = &archive.images[0].manifests[0].layers[0];
        target.block_on(target.client().delete_blob(lost)).unwrap();
        daemon.wait_until("the degraded receipt names the content", || {
            let error = state(&node, &kept)["error"]["text"].to_string();
            let words = format!("Bring the bundle with content digest {content} (");
            error.contains(&words) && error.contains("it came from stdin") && !error.contains("Place stdin")
        });
        daemon.stop();
        node.airgapd(["release", &content]).exits(0);
        assert!(is_let_go(target, ONE) && target.leases().is_empty() && !kept.exists());
        target.remove_record(ONE);
        target.collect_garbage();
    }
}

fn a_receipt_has_the_images_that_this_node_took_and_no_other(target: &Target) {
    const FREE: &str = "registry.test/free:1";
    let node = Node::on(target);
    node.configure_also("exclude: [\"registry.test/two:*\"]\nonConflict: keep");
    let file = node.path("shop.tar");
    let archive = bundles::write(&file, [image(ONE), image(TWO), image(FREE)]);
    // Another program has the third name.
    let theirs = node.path("theirs.tar");
    bundles::write(&theirs, [image("registry.test/theirs:1")]);
    node.import([&theirs]).exits(0);
    let other = target.expect_record("registry.test/theirs:1").target;
    target.put_record(FREE, &other, &[]);
    node.import(["--keep", &text(&file)]).exits(0);
    let kept = receipt_by_hand(&node, "shop.tar");
    assert!(is_held_by(target, ONE, &kept), "{:?}", target.labels(ONE));
    let inside = bundle::Bundle::open(&kept, &bundle::Limits::default()).unwrap();
    let names = inside.catalog().images.iter().flat_map(|image| &image.names);
    let names = names
        .map(|name| format!("{name:?}"))
        .collect::<Vec<_>>()
        .join(" ");
    assert!(names.contains(ONE), "{names}");
    assert!(!names.contains(TWO) && !names.contains(FREE), "{names}");
    let daemon = node.start();
    daemon.wait_until("the receipt is in place", || {
        state(&node, &kept)["state"] == "done"
    });
    node.airgapd(["wait"]).exits(0);
    let blobs = bundles::needed_here(&archive.images[..1]);
    assert!(blobs.is_subset(&target.digests()));
    assert!(target.record(TWO).is_none());
    assert_eq!(target.expect_record(FREE).target.digest(), other.digest());
    daemon.stop();
    give_back(&node, target);
}

fn a_bundle_of_which_this_node_took_nothing_leaves_no_receipt_and_says_so(target: &Target) {
    let node = Node::on(target);
    node.configure_also("exclude: [\"registry.test/*\"]");
    let file = node.path("shop.tar");
    bundles::write(&file, [image(ONE)]);
    let plain = node.import([&file]);
    let kept = node.import(["--keep", &text(&file)]);
    let warned = kept.bundle()["warnings"].to_string();
    assert!(warned.contains("no receipt"), "{kept:?}");
    assert_eq!(kept.bundle()["outcome"], plain.bundle()["outcome"]);
    assert_eq!(kept.bundle()["error"], plain.bundle()["error"]);
    assert_eq!(kept.status.code(), plain.status.code());
    assert!(!node.state().join("receipts").exists() && target.leases().is_empty());
}

fn a_degraded_receipt_of_a_delta_names_the_bundle_that_had_the_lost_layer(target: &Target) {
    let node = Node::on(target);
    let shared = unique();
    let on_base = |name: &str| Image::new(name).platform(native()).layer(shared.as_str());
    let [base, whole, file] = ["base.tar", "whole.tar", "shop.tar"].map(|name| node.path(name));
    bundles::write(&base, [on_base(ONE)]);
    let archive = bundles::write(&whole, [on_base(TWO).layer(unique())]);
    delta(&whole, &base, &file);
    node.import([&base]).exits(0);
    node.import(["--keep", &text(&file)]).exits(0);
    let kept = receipt_by_hand(&node, "shop.tar");
    let daemon = node.start();
    daemon.wait_until("the receipt is in place", || {
        state(&node, &kept)["state"] == "done"
    });
    let [of_base, own] = [0, 1].map(|at| archive.images[0].manifests[0].layers[at].clone());
    let lose = |blob: &Digest| target.block_on(target.client().delete_blob(blob)).unwrap();
    let error = || {
        state(&node, &kept)["error"]["text"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    lose(&of_base);
    daemon.wait_until("the base is named", || error().contains("Place base.tar"));
    let text = error();
    assert!(
        text.contains("the base of shop.tar") && !text.contains("Place shop.tar"),
        "{text}"
    );
    lose(&own);
    daemon.wait_until("both are named", || error().contains(own.as_ref()));
    let text = error();
    for word in ["Place shop.tar (", "and its base base.tar", of_base.as_ref()] {
        assert!(text.contains(word), "{word}: {text}");
    }
    node.drop_in(&base);
    daemon.wait_until("the base is no longer named", || !error().contains("base.tar"));
    assert!(error().contains("Place shop.tar ("), "{}", error());
    daemon.stop();
    fs::remove_file(node.images().join("base.tar")).unwrap();
    give_back(&node, target);
}

fn a_degraded_receipt_names_another_file_on_this_node_that_has_the_lost_layer(target: &Target) {
    let node = Node::on(target);
    node.configure_also("exclude: [\"registry.test/two:*\"]");
    let layer = unique();
    let with_layer = |name: &str| Image::new(name).platform(native()).layer(layer.as_str());
    let [file, other] = ["shop.tar", "other.tar"].map(|name| node.path(name));
    let archive = bundles::write(&file, [with_layer(ONE)]);
    node.import(["--keep", &text(&file)]).exits(0);
    let kept = receipt_by_hand(&node, "shop.tar");
    // Its only image is excluded, so it heals nothing by itself.
    bundles::write(
        &other,
        [with_layer(TWO).layer(unique()), image("registry.test/three:1")],
    );
    node.drop_in(&other);
    let daemon = node.start();
    daemon.wait_until("both are in place", || {
        state(&node, &kept)["state"] == "done" && state(&node, Path::new("other.tar"))["state"] == "done"
    });
    let lost = &archive.images[0].manifests[0].layers[0];
    target.block_on(target.client().delete_blob(lost)).unwrap();
    let error = || {
        state(&node, &kept)["error"]["text"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    daemon.wait_until("it is degraded", || error().contains("degraded"));
    assert!(error().contains("other.tar on this node has"), "{}", error());
    let found = node.airgapd(["doctor"]).exits(1).said();
    assert!(found.contains("other.tar on this node has"), "{found}");
    daemon.stop();
    fs::remove_file(node.images().join("other.tar")).unwrap();
    give_back(&node, target);
}

fn releasing_everything_leaves_no_lease_of_a_receipt(target: &Target) {
    let node = Node::on(target);
    let file = node.path("shop.tar");
    bundles::write(&file, [image(ONE)]);
    node.import(["--keep", &text(&file)]).exits(0);
    assert_lease(target);
    node.airgapd(["release", "--all"]).exits(0);
    assert!(is_let_go(target, ONE) && target.leases().is_empty());
}

fn a_file_in_the_folder_of_receipts_that_is_none_stays_and_is_named(target: &Target) {
    let node = Node::on(target);
    let file = node.path("shop.tar");
    bundles::write(&file, [image(ONE)]);
    node.import(["--keep", &text(&file)]).exits(0);
    let (odd, damaged) = (receipt(&node, "odd.tar"), receipt(&node, "damaged.tar"));
    fs::copy(&file, &odd).unwrap();
    fs::write(&damaged, "no bundle\n".repeat(200)).unwrap();
    let daemon = node.start();
    for odd in [&odd, &damaged] {
        daemon.wait_until("the file is named", || state(&node, odd)["state"] == "failed");
        assert!(odd.exists());
    }
    assert!(
        state(&node, &odd)["error"]["text"]
            .as_str()
            .unwrap()
            .contains("it is no receipt that this version can read")
    );
    assert!(is_held_by(target, ONE, &receipt_by_hand(&node, "shop.tar")));
    daemon.stop();
    give_back(&node, target);
}

fn where_a_file_must_stay_the_daemon_says_so_at_start(target: &Target) {
    let node = Node::on(target);
    node.configure_also("afterImport: receipt");
    std::os::unix::fs::chown(node.images(), Some(1), None).unwrap();
    let file = node.path("shop.tar");
    bundles::write(&file, [image(ONE)]);
    let placed = node.drop_in(&file);
    let daemon = node.start();
    daemon.wait_for_log("its bundles stay, although `afterImport` is receipt: root does not own the folder");
    daemon.wait_until("the image is in place", || {
        target.record(ONE).is_some() && target.leases().is_empty()
    });
    node.airgapd(["wait"]).exits(0);
    assert!(placed.exists() && names_in(&node.state().join("receipts")).is_empty());
    daemon.finish(target);
}

on_the_fake!(
    a_bundle_whose_receipt_took_its_place_is_waited_for_by_its_name_and_its_path,
    the_receipt_of_an_import_by_hand_stands_for_no_bundle_of_the_folder,
    bundles_of_one_name_from_elsewhere_have_receipts_of_their_own,
    without_its_receipt_an_import_with_keep_leaves_what_any_import_by_hand_leaves,
    a_bundle_from_a_pipe_leaves_a_receipt_too,
    a_receipt_of_a_pipe_has_the_size_of_the_stream_and_is_known_by_its_content_digest,
    a_receipt_has_the_images_that_this_node_took_and_no_other,
    a_bundle_of_which_this_node_took_nothing_leaves_no_receipt_and_says_so,
    a_degraded_receipt_of_a_delta_names_the_bundle_that_had_the_lost_layer,
    a_degraded_receipt_names_another_file_on_this_node_that_has_the_lost_layer,
    releasing_everything_leaves_no_lease_of_a_receipt,
    an_interrupted_removal_is_undone_at_the_next_start_and_then_made_whole,
    an_interrupted_removal_on_a_disk_that_is_mounted_late_is_undone_by_the_running_daemon,
    without_its_state_folder_a_daemon_leaves_the_leases_of_receipts,
    a_file_in_the_folder_of_receipts_that_is_none_stays_and_is_named,
    where_a_file_must_stay_the_daemon_says_so_at_start,
);

on_each_containerd!(
    a_lease_that_a_killed_daemon_has_filled_in_part_is_filled_by_the_next_one,
    killed_at_any_moment_the_daemon_has_the_file_or_its_receipt_and_ends_with_the_receipt,
    an_import_with_keep_leaves_a_receipt_from_which_a_daemon_restores_records_without_a_byte,
    with_after_import_a_receipt_takes_the_place_of_the_file,
    a_released_receipt_gives_back_its_file_its_lease_and_its_marks,
    a_receipt_that_lost_a_layer_names_the_bundle_to_bring_and_any_bundle_with_the_layer_heals_it,
);
