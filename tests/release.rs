//! `airgapd release`: removes airgapd's own pins and labels, and no others.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use fake_containerd::Fault;
use lab::workspace;
use serde_json::json;

use crate::support::bundles::{self, image, text};
use crate::support::node::Answer;
use crate::support::target::{BUNDLE, BY_HAND, OUR_PIN, PINNED};
use crate::support::{Node, Target, on_each_containerd, on_the_fake};

const BY_FOLDER: &str = "registry.test/by-folder:1";
const IN_HAND: &str = "registry.test/by-hand:1";

/// Returns a node with an image from its folder and an image that was imported by hand.
fn node_with_both(target: &Target) -> Node {
    let node = Node::on(target);
    bundles::write(&node.images().join("folder.tar"), [image(BY_FOLDER)]);
    bundles::write(&node.path("hand.tar"), [image(IN_HAND)]);
    node.import([node.images().join("folder.tar"), node.path("hand.tar")])
        .exits(0);
    node
}

fn has_ours(target: &Target, name: &str) -> bool {
    target
        .labels(name)
        .keys()
        .any(|key| key == BY_HAND || key == OUR_PIN || key.starts_with(BUNDLE))
}

fn everything_of_ours_is_taken_back_and_the_records_stay(target: &Target) {
    let node = node_with_both(target);
    target.set_labels(BY_FOLDER, &[("example.test/note", Some("mine"))]);
    let before = target.records();

    let dry = node
        .airgapd(["release", "--all", "--dry-run", "-o", "json"])
        .exits(0);
    assert!(
        dry.stdout.contains(BY_FOLDER) && dry.stdout.contains(IN_HAND),
        "{dry:?}"
    );
    assert_eq!(target.records(), before, "a dry run changes nothing");

    node.airgapd(["release", "--all"]).exits(0);
    assert_eq!(target.names(), before.keys().cloned().collect(), "records stay");
    for name in target.names() {
        assert!(
            !has_ours(target, &name) && !target.labels(&name).contains_key(PINNED),
            "{name}"
        );
    }
    assert_eq!(
        target
            .labels(BY_FOLDER)
            .get("example.test/note")
            .map(String::as_str),
        Some("mine")
    );
    node.airgapd(["release", "--all"]).exits(0);
}

fn a_name_or_a_bundle_takes_back_just_that(target: &Target) {
    let node = node_with_both(target);
    node.airgapd(["release", IN_HAND]).exits(0);
    assert!(!has_ours(target, IN_HAND) && target.is_pinned(BY_FOLDER));
    node.airgapd(["release", "folder.tar"]).exits(0);
    assert!(!has_ours(target, BY_FOLDER));
    let unknown = node.airgapd(["release", "registry.test/unknown:1"]).exits(1);
    assert!(
        unknown.said().contains("registry.test/unknown:1") || unknown.said().contains("nothing"),
        "{unknown:?}"
    );
    node.airgapd(["release"]).exits(2);
}

/// A pin without airgapd's mark belongs to another program, before and after.
fn a_pin_that_was_there_before_ours_stays(target: &Target) {
    let node = Node::on(target);
    let file = text(&node.path("bundle.tar"));
    let name = "registry.test/pinned:1";
    bundles::write(file.as_ref(), [image(name)]);
    node.import([&file]).exits(0);
    node.airgapd(["release", "--all"]).exits(0);
    target.set_labels(name, &[(PINNED, Some("pinned"))]);

    node.import([&file]).exits(0);
    let labels = target.labels(name);
    assert!(
        labels.contains_key(BY_HAND) && !labels.contains_key(OUR_PIN),
        "{labels:?}"
    );
    node.airgapd(["release", "--all"]).exits(0);
    assert_eq!(
        target.labels(name).get(PINNED).map(String::as_str),
        Some("pinned")
    );
}

fn a_release_touches_no_record_of_others(target: &Target) {
    let node = node_with_both(target);
    let record = target.expect_record(BY_FOLDER);
    target.put_record(
        "registry.test/theirs:1",
        &record.target,
        &[(PINNED, "pinned"), ("example.test/a", "b")],
    );
    let theirs = target.expect_record("registry.test/theirs:1");
    let changes = target.watch();
    node.airgapd(["release", "--all"]).exits(0);
    assert_eq!(target.expect_record("registry.test/theirs:1"), theirs);
    assert!(
        changes
            .so_far()
            .iter()
            .all(|(_, name)| name != "registry.test/theirs:1")
    );
}

/// Runs the script that both packages run before they remove the program. It uses this node's
/// program, and a systemctl that only records its calls.
fn removal(node: &Node, word: &str) -> Answer {
    let bin = node.path("bin");
    fs::create_dir_all(&bin).unwrap();
    let (program, config) = (env!("CARGO_BIN_EXE_airgapd"), node.path("config.yaml"));
    let calls = node.path("systemctl");
    let programs = [
        (
            "airgapd",
            format!("exec {program} \"$@\" --config {}", config.display()),
        ),
        ("systemctl", format!("echo \"$@\" >> {}; exit 1", calls.display())),
    ];
    for (name, line) in programs {
        fs::write(bin.join(name), format!("#!/bin/sh\n{line}\n")).unwrap();
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let output = Command::new("sh")
        .arg(workspace().join("packaging/debian/prerm"))
        .arg(word)
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .output()
        .unwrap();
    Answer::from(output)
}

/// The removal deletes the program that could remove the pins.
fn a_removal_of_the_package_says_how_many_records_stay_ours_and_neither_fails_nor_waits_long(
    target: &Target,
) {
    let fake = target.as_fake().expect("the target is the stand-in");
    let node = node_with_both(target);
    let before = target.records();
    let ours = target
        .names()
        .into_iter()
        .filter(|name| has_ours(target, name))
        .count();
    assert!(ours > 1, "{before:?}");

    let removed = removal(&node, "remove").exits(0);
    let counted = format!("keep airgapd's labels and pins: {ours}.");
    assert!(removed.stderr.contains(&counted), "{removed:?}");
    assert!(removed.stderr.contains("airgapd release --all"), "{removed:?}");
    assert_eq!(target.records(), before, "the script only counts");
    for word in ["upgrade", "1"] {
        assert_eq!(removal(&node, word).exits(0).said().trim(), "", "{word}");
    }
    // dpkg's own lines end the daemon. rpm has no such lines. A systemd that refuses does not make
    // the removal fail.
    let calls = || fs::read_to_string(node.path("systemctl")).unwrap_or_default();
    assert_eq!(calls(), "");
    let erased = removal(&node, "0").exits(0);
    assert!(erased.stderr.contains(&counted), "{erased:?}");
    assert_eq!(calls(), "disable --now airgapd.service\n");

    // A containerd that does not answer delays nothing.
    fake.inject(Fault::Delay {
        rpc: "Images.List",
        by: Duration::from_secs(60),
    });
    let since = Instant::now();
    let removed = removal(&node, "remove").exits(0);
    assert!(removed.stderr.contains("could not be counted"), "{removed:?}");
    assert!(removed.stderr.contains("airgapd release --all"), "{removed:?}");
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
    fake.clear_faults();

    node.airgapd(["release", "--all"]).exits(0);
    assert_eq!(
        removal(&node, "remove").exits(0).said().trim(),
        "",
        "nothing stays"
    );
    fs::remove_file(node.path("config.yaml")).unwrap();
    let removed = removal(&node, "remove").exits(0);
    assert!(removed.stderr.contains("could not be counted"), "{removed:?}");
}

/// Imports a bundle whose receipt stays, and removes the bundle.
fn keep_only_its_receipt(node: &Node, folder: &Path) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    let file = folder.join("shop.tar");
    bundles::write(&file, [image(BY_FOLDER)]);
    node.import(["--keep", &text(&file)]).exits(0);
    fs::remove_file(&file).unwrap();
    file
}

/// Returns the paths of all receipts.
fn receipts(node: &Node) -> Vec<PathBuf> {
    let entries = fs::read_dir(node.state().join("receipts"));
    let entries = entries.into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// These words mean a receipt: its own path, and the path, name or content digest of its bundle.
fn a_released_bundle_does_not_come_back_from_its_receipt(target: &Target) {
    let node = Node::on(target);
    let more = node.path("more");
    fs::create_dir(&more).unwrap();
    let before = fs::read_to_string(node.path("config.yaml")).unwrap();
    let folders = format!("imagesDirs: [{}, {}]", node.images().display(), more.display());
    let kept = before.lines().filter(|line| !line.starts_with("imagesDir"));
    let kept = kept.collect::<Vec<_>>().join("\n");
    node.configure(&format!("{kept}\n{folders}\n"));
    for folder in [node.images(), more.clone(), node.path("elsewhere")] {
        let ways = [
            "path of the receipt",
            "relative path",
            "file name of the receipt",
            "path",
            "name",
            "content",
        ];
        for way in ways {
            // A path elsewhere is no name of anything on this node.
            if way == "path" && folder.ends_with("elsewhere") {
                continue;
            }
            let file = keep_only_its_receipt(&node, &folder);
            let [receipt] = receipts(&node).try_into().unwrap();
            let opened = bundle::Bundle::open(&receipt, &bundle::Limits::default()).unwrap();
            let meant = match way {
                "path of the receipt" => text(&receipt),
                "relative path" => format!("./receipts/{}", text(receipt.file_name().unwrap().as_ref())),
                "file name of the receipt" => text(receipt.file_name().unwrap().as_ref()),
                "path" => text(&file),
                "name" => "shop.tar".to_owned(),
                _ => opened.catalog().stood_for().to_string(),
            };
            let release = |arguments: &[&str]| {
                let mut command = node.command([&["release", &meant], arguments].concat());
                Answer::from(command.current_dir(node.state()).output().unwrap())
            };
            let leases = target.leases();
            assert_eq!(leases.len(), 1, "{leases:?}");
            let dry = release(&["--dry-run"]).exits(0);
            assert!(dry.stdout.contains(&text(&receipt)), "{way}: {dry:?}");
            assert!(receipt.exists() && has_ours(target, BY_FOLDER) && target.leases() == leases);
            let document = release(&["-o", "json"]).exits(0).json();
            let expected = json!([{"receipt": text(&receipt), "file": true, "leases": leases}]);
            assert_eq!(document["receipts"], expected, "{way}: {document:#}");
            assert_eq!(document["released"][0]["name"], BY_FOLDER, "{way}: {document:#}");
            assert!(!receipt.exists() && target.leases().is_empty(), "{way}");
            let daemon = node.start();
            node.airgapd(["wait", "--allow-empty"]).exits(0);
            let labels = target.labels(BY_FOLDER);
            let is_of_receipt = |label: &String| *label == text(&receipt);
            assert!(!labels.values().any(is_of_receipt), "{way}: {labels:?}");
            // Of a bundle in a folder, only its own name means its labels, too.
            if ["path", "name"].contains(&way) || folder.ends_with("elsewhere") {
                assert!(!has_ours(target, BY_FOLDER), "{way}: {labels:?}");
            }
            daemon.stop();
            node.airgapd(["release", "--all"]).exits(0);
        }
    }
}

/// The state folder went with its disk. No daemon reads the receipts any more.
fn the_lease_of_a_receipt_that_vanished_with_its_state_ends(target: &Target) {
    let node = Node::on(target);
    bundles::write(&node.path("hand.tar"), [image(IN_HAND)]);
    node.import([node.path("hand.tar")]).exits(0);
    keep_only_its_receipt(&node, &node.path("elsewhere"));
    let [receipt] = receipts(&node).try_into().unwrap();
    // A record is gone too, so nothing but the lease holds its blobs.
    let lost = keep_only_its_receipt(&node, &node.path("lost"));
    assert!(!lost.exists());
    let leases = target.leases();
    assert_eq!(leases.len(), 2, "{leases:?}");
    target.remove_record(BY_FOLDER);

    // A folder that cannot be read may still have them.
    let aside = node.path("aside");
    fs::rename(node.state(), &aside).unwrap();
    fs::write(node.state(), "").unwrap();
    let answer = node.airgapd(["release", "--vanished"]).exits(0);
    assert_eq!(target.leases(), leases, "{answer:?}");
    assert!(answer.stderr.contains("2 receipts"), "{answer:?}");
    let why = "the folder cannot be read and may have their files";
    assert!(answer.stderr.contains(why), "{answer:?}");
    assert!(!answer.said().contains("imagesDirs"), "{answer:?}");
    fs::remove_file(node.state()).unwrap();

    // Receipts whose files are there stay.
    fs::rename(&aside, node.state()).unwrap();
    node.airgapd(["release", "--vanished"]).exits(0);
    assert_eq!(target.leases(), leases);

    fs::remove_dir_all(node.state()).unwrap();
    let dry = node.airgapd(["release", "--vanished", "--dry-run"]).exits(0);
    assert!(dry.stdout.contains(&text(&receipt)), "{dry:?}");
    assert_eq!(target.leases(), leases, "a dry run changes nothing");
    let answer = node.airgapd(["release", "--vanished"]).exits(0);
    assert!(target.leases().is_empty(), "{answer:?}");
    assert!(
        answer.stdout.contains(&text(&receipt)) && answer.stderr.is_empty(),
        "{answer:?}"
    );
    assert!(
        !target
            .names()
            .iter()
            .any(|name| name.contains("by-folder") && has_ours(target, name))
    );
    assert!(has_ours(target, IN_HAND), "an import by hand does not vanish");
}

on_each_containerd!(
    everything_of_ours_is_taken_back_and_the_records_stay,
    a_pin_that_was_there_before_ours_stays
);
on_the_fake!(
    a_name_or_a_bundle_takes_back_just_that,
    a_released_bundle_does_not_come_back_from_its_receipt,
    the_lease_of_a_receipt_that_vanished_with_its_state_ends,
    a_removal_of_the_package_says_how_many_records_stay_ours_and_neither_fails_nor_waits_long,
    a_release_touches_no_record_of_others
);
