//! Releases: sets of bundles that carry one list of members.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use bundle::Compression;
use bundle::fixtures::{Archive, Image, digest_of};
use oci_spec::image::Digest;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::signatures::Guarded;
use crate::support::bundles::{self, assert_listed, image, layout, native, text};
use crate::support::node::{Answer, Daemon};
use crate::support::{Node, Target, on_each_containerd, on_the_fake, unique};

const ONE: &str = "registry.test/one:1";
const TWO: &str = "registry.test/two:1";
const THREE: &str = "registry.test/three:1";
/// A platform that no test machine runs.
const FOREIGN: &str = "linux/s390x";

/// Makes a release of bundles in the node's folder. They get into a new folder.
fn release(node: &Node, name: &str, files: &[&str], out: &str) -> Answer {
    let out = text(&node.path(out));
    let head = ["bundle", "release", "-o", "json", "-o", &out, name].map(str::to_owned);
    let files = files.iter().map(|file| text(&node.path(file)));
    node.airgapd(head.into_iter().chain(files))
}

/// Returns a release in the status of the node.
fn shown(node: &Node, name: &str) -> Value {
    let status = node.airgapd(["status", "-o", "json"]).json();
    let releases = status["releases"].as_array().cloned().unwrap_or_default();
    let found = releases
        .into_iter()
        .find(|release| release["name"] == json!(name));
    found.unwrap_or(Value::Null)
}

/// Waits until the daemon shows a release as the scenario expects it.
fn wait_until_shown(node: &Node, daemon: &Daemon, name: &str, holds: impl Fn(&Value) -> bool) -> Value {
    daemon.wait_until(&format!("release {name}"), || holds(&shown(node, name)));
    shown(node, name)
}

fn problem(release: &Value) -> String {
    release["problem"].as_str().unwrap_or_default().to_owned()
}

fn wait_briefly(node: &Node, name: &str) -> Answer {
    node.airgapd(["wait", "--release", name, "--timeout", "1s"])
}

/// Writes a copy of a bundle with another list of members, and with the digest of that list.
fn forge(from: &Path, to: &Path, change: impl Fn(&mut Value)) {
    let mut entries = Vec::new();
    let bytes = fs::read(from).unwrap();
    for entry in tar::Archive::new(&*bytes).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_string_lossy().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        entries.push((name, bytes));
    }
    let index = entries.iter().position(|(name, _)| name == "index.json").unwrap();
    let mut document: Value = serde_json::from_slice(&entries[index].1).unwrap();
    let annotations = &mut document["annotations"];
    let list = annotations["io.airgapd.release.members"].as_str().unwrap();
    let blob = format!("blobs/sha256/{}", list.strip_prefix("sha256:").unwrap());
    let at = entries.iter().position(|(name, _)| *name == blob).unwrap();
    let mut list: Value = serde_json::from_slice(&entries[at].1).unwrap();
    change(&mut list);
    let list = list.to_string().into_bytes();
    let digest = digest_of(&list);
    annotations["io.airgapd.release.members"] = json!(digest);
    entries[at] = (format!("blobs/sha256/{}", digest.digest()), list);
    entries[index].1 = document.to_string().into_bytes();
    let mut forged = tar::Builder::new(Vec::new());
    for (name, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        forged.append_data(&mut header, name, &*bytes).unwrap();
    }
    fs::write(to, forged.into_inner().unwrap()).unwrap();
}

fn a_release_is_in_place_when_every_member_of_all_its_bundles_is(target: &Target) {
    let node = Node::on(target);
    bundles::write(&node.path("base.tar"), [image(ONE), image(TWO)]);
    bundles::write(&node.path("shop.tar"), [image(THREE)]);
    let made = release(&node, "shop-1", &["base.tar", "shop.tar"], "out")
        .exits(0)
        .json();
    assert_eq!(made["release"], json!("shop-1"));
    let names: BTreeSet<&str> = made["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| member["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, [ONE, TWO, THREE].into());
    assert_eq!(
        made["bundles"][0]["path"],
        json!(text(&node.path("out/base.tar")))
    );
    let inspected = node
        .airgapd(["inspect", "-o", "json", &text(&node.path("out/shop.tar"))])
        .exits(0)
        .json();
    assert_eq!(inspected["release"]["name"], json!("shop-1"));
    assert_eq!(inspected["release"]["members"], made["members"]);
    assert_eq!(inspected["release"]["list"], made["list"]);
    let daemon = node.start();
    let answer = wait_briefly(&node, "shop-1").exits(6);
    assert!(answer.stderr.contains("names the release shop-1"), "{answer:?}");
    node.drop_in(&node.path("out/base.tar"));
    node.airgapd(["wait"]).exits(0);
    let answer = wait_briefly(&node, "shop-1").exits(6);
    assert!(
        answer.stderr.contains("1 of 3 members are not in place"),
        "{answer:?}"
    );
    let part = shown(&node, "shop-1");
    assert_eq!((&part["in_place"], &part["missing"]), (&json!(false), &json!(1)));
    assert_eq!(part["missing_names"], json!([THREE]));
    let page = node.airgapd(["status"]).stdout;
    assert!(page.contains("not in place      2 of 3  shop-1"), "{page}");
    let metrics = node.ask("/metrics", &[]).1;
    assert!(
        metrics.contains("airgapd_release_in_place{release=\"shop-1\"} 0"),
        "{metrics}"
    );

    let shop = node.drop_in(&node.path("out/shop.tar"));
    let done = node
        .airgapd(["wait", "--release", "shop-1", "-o", "json"])
        .exits(0)
        .json();
    assert_eq!(done["releases"][0]["in_place"], json!(true), "{done:#}");
    let page = node.airgapd(["status"]).stdout;
    assert!(page.contains("in place          3 of 3  shop-1"), "{page}");
    let metrics = node.ask("/metrics", &[]).1;
    assert!(
        metrics.contains("airgapd_release_in_place{release=\"shop-1\"} 1"),
        "{metrics}"
    );
    let report = node.airgapd(["report", "-o", "json"]).exits(0).json();
    assert_eq!(report["releases"][0]["members"], json!(3));

    // A new daemon knows it by the ledger.
    daemon.stop();
    let daemon = node.start();
    node.airgapd(["wait", "--release", "shop-1"]).exits(0);
    // A record that disappears is a member that is not in place, until the daemon restores it.
    target.remove_record(THREE);
    daemon.wait_until("the restored record", || target.record(THREE).is_some());
    node.airgapd(["wait", "--release", "shop-1"]).exits(0);
    fs::remove_file(shop).unwrap();
    wait_until_shown(&node, &daemon, "shop-1", |release| {
        release["in_place"] == json!(false)
    });
    daemon.finish(target);
}

fn a_node_rolls_forward_to_a_release_that_shares_members(target: &Target) {
    let node = Node::on(target);
    bundles::write(&node.path("base.tar"), [image(ONE)]);
    bundles::write(&node.path("shop.tar"), [image(TWO)]);
    bundles::write(&node.path("shop-2.tar"), [image(TWO), image(THREE)]);
    release(&node, "shop-1", &["base.tar", "shop.tar"], "old").exits(0);
    release(&node, "shop-2", &["base.tar", "shop-2.tar"], "new").exits(0);
    let daemon = node.start();
    for file in ["old/base.tar", "old/shop.tar"] {
        node.drop_in(&node.path(file));
    }
    node.airgapd(["wait", "--release", "shop-1"]).exits(0);
    node.drop_in(&node.path("new/shop-2.tar"));
    node.airgapd(["wait"]).exits(0);
    let part = shown(&node, "shop-2");
    assert!(
        problem(&part).contains(ONE),
        "the list counts, not the image alone: {part:#}"
    );
    let old = shown(&node, "shop-1");
    assert!(problem(&old).contains("of shop-2.tar"), "{old:#}");
    node.drop_in(&node.path("new/base.tar"));
    node.airgapd(["wait", "--release", "shop-2"]).exits(0);
    // Of the old release, its second bundle is left.
    let old = shown(&node, "shop-1");
    assert_eq!((&old["in_place"], &old["missing"]), (&json!(false), &json!(2)));
    assert_eq!(old["bundles"], json!(["shop.tar"]), "{old:#}");
    daemon.finish(target);
}

fn a_forged_an_empty_or_another_list_is_not_in_place_and_its_images_are(target: &Target) {
    let node = Node::on(target);
    bundles::write(&node.path("one.tar"), [image(ONE)]);
    bundles::write(&node.path("two.tar"), [image(TWO)]);
    release(&node, "r1", &["one.tar"], "r1").exits(0);
    release(&node, "r1", &["two.tar"], "again").exits(0);
    let daemon = node.start();
    let place = node.images().join("shop.tar");
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 5] = [
        ("its list has sha256:", |list| {
            list["members"][0]["digest"] = json!(digest_of(b"forged"));
        }),
        ("its list has no members", |list| list["members"] = json!([])),
        ("its list lacks registry.test/one:1", |list| {
            list["members"][0]["name"] = json!("registry.test/other:1");
        }),
        ("its list is of release r2", |list| list["release"] = json!("r2")),
        ("version 2", |list| list["version"] = json!(2)),
    ];
    for (expected, change) in cases {
        forge(&node.path("r1/one.tar"), &node.path("forged.tar"), change);
        fs::rename(node.path("forged.tar"), &place).unwrap();
        let found = wait_until_shown(&node, &daemon, "r1", |release| {
            problem(release).contains(expected)
        });
        assert_eq!(found["in_place"], json!(false));
        node.airgapd(["wait", "--bundle", "shop.tar"]).exits(0);
        assert!(target.is_pinned(ONE), "{expected}");
        wait_briefly(&node, "r1").exits(6);
        let inspected = node.airgapd(["inspect", &text(&place)]).exits(0).stdout;
        assert!(inspected.contains("r1, with an unusable list"), "{inspected}");
    }
    fs::copy(node.path("r1/one.tar"), node.path("whole.tar")).unwrap();
    fs::rename(node.path("whole.tar"), &place).unwrap();
    node.airgapd(["wait", "--release", "r1"]).exits(0);
    node.drop_in(&node.path("again/two.tar"));
    let found = wait_until_shown(&node, &daemon, "r1", |release| {
        problem(release).contains("carry different lists")
    });
    assert_eq!(found["bundles"], json!(["shop.tar", "two.tar"]));
    daemon.finish(target);
}

fn a_member_for_another_platform_counts_with_its_bundle_only(target: &Target) {
    let node = Node::on(target);
    let foreign = Image::new(TWO).platform(FOREIGN).layer(unique());
    bundles::write(&node.path("one.tar"), [image(ONE)]);
    bundles::write(&node.path("two.tar"), [foreign]);
    release(&node, "r1", &["one.tar", "two.tar"], "out").exits(0);
    let daemon = node.start();
    node.drop_in(&node.path("out/one.tar"));
    node.airgapd(["wait"]).exits(0);
    wait_briefly(&node, "r1").exits(6);
    node.drop_in(&node.path("out/two.tar"));
    node.airgapd(["wait", "--release", "r1"]).exits(0);
    assert!(target.record(TWO).is_none());
    daemon.finish(target);
}

fn a_receipt_stands_for_a_bundle_of_a_release(target: &Target) {
    let node = Node::on(target);
    node.configure_also("afterImport: receipt");
    bundles::write(&node.path("one.tar"), [image(ONE)]);
    bundles::write(&node.path("two.tar"), [image(TWO)]);
    release(&node, "r1", &["one.tar", "two.tar"], "out").exits(0);
    let daemon = node.start();
    let places = ["out/one.tar", "out/two.tar"].map(|file| node.drop_in(&node.path(file)));
    daemon.wait_until("the files to go", || places.iter().all(|file| !file.exists()));
    let held = wait_until_shown(&node, &daemon, "r1", |release| {
        release["in_place"] == json!(true) && release["bundles"].to_string().contains("-two.tar")
    });
    assert_eq!(held["members"], json!(2), "{held:#}");
    daemon.stop();
    let daemon = node.start();
    node.airgapd(["wait", "--release", "r1"]).exits(0);
    node.airgapd(["release", "one.tar", "two.tar"]).exits(0);
    daemon.finish(target);
}

/// Returns the names of the receipts of a node's bundles, without the ids of their contents.
fn receipts(node: &Node) -> Vec<String> {
    let folder = node.state().join("receipts");
    let names = if folder.exists() {
        names_in(&folder)
    } else {
        BTreeSet::new()
    };
    let names = names.into_iter().filter_map(|name| {
        let name = name.into_os_string().into_string().unwrap();
        let rest = name.strip_prefix("of-release-")?;
        Some(rest.split_once('-')?.1.to_owned())
    });
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Makes a release of two bundles with new content, and brings it into the folder. Returns when
/// receipts are in the places of all bundles.
fn bring(node: &Node, daemon: &Daemon, name: &str) -> Archive {
    bundles::write(&node.path("base.tar"), [image(ONE)]);
    let shop = bundles::write(&node.path("shop.tar"), [image(TWO), image(THREE)]);
    release(node, name, &["base.tar", "shop.tar"], name).exits(0);
    let files = ["base.tar", "shop.tar"].map(|file| node.drop_in(&node.path(name).join(file)));
    daemon.wait_until("the files to go", || files.iter().all(|file| !file.exists()));
    node.airgapd(["wait", "--release", name]).exits(0);
    shop
}

fn targets(target: &Target) -> Vec<Digest> {
    let digest = |name| target.record(name).unwrap().target.digest().clone();
    [ONE, TWO, THREE].map(digest).into()
}

fn a_node_rolls_back_to_a_kept_release_and_forth_again_without_a_byte(target: &Target) {
    let node = Node::on(target);
    node.configure_also("afterImport: receipt\nkeepReleases: 1");
    let daemon = node.start();
    bring(&node, &daemon, "r1");
    let first = targets(target);
    bring(&node, &daemon, "r2");
    let second = targets(target);
    wait_until_shown(&node, &daemon, "r1", |release| release["kept"] == json!(true));
    assert_eq!(receipts(&node), ["base.tar", "base.tar", "shop.tar", "shop.tar"]);
    let page = node.airgapd(["status"]).stdout;
    assert!(page.contains("kept              0 of 3  r1"), "{page}");
    let sent = |node: &Node| {
        let status = node.airgapd(["status", "-o", "json"]).json();
        let bundles = status["bundles"].as_array().unwrap().clone();
        // The entry of a file that is gone may stay for a moment.
        let receipts = bundles.iter().filter(|bundle| bundle["state"] != json!("gone"));
        let sent = receipts.map(|bundle| bundle["sent_bytes"].as_u64().unwrap());
        sent.sum::<u64>()
    };
    for (name, images, other) in [("r1", &first, "r2"), ("r2", &second, "r1"), ("r1", &first, "r2")] {
        let answer = node.airgapd(["rollback", name]).exits(0);
        assert!(answer.stdout.contains(&format!("release {name}")), "{answer:?}");
        assert_eq!(targets(target), *images, "{name}");
        assert_eq!(sent(&node), 0);
        node.airgapd(["wait", "--release", name, "--timeout", "0"])
            .exits(0);
        wait_until_shown(&node, &daemon, other, |release| release["kept"] == json!(true));
        // It is in place already.
        node.airgapd(["rollback", name]).exits(0);
    }
    // A daemon that lost its ledger knows the order by the receipts.
    daemon.stop();
    fs::remove_file(node.ledger()).unwrap();
    let daemon = node.start();
    node.airgapd(["wait", "--release", "r1"]).exits(0);
    assert_eq!(targets(target), first);
    // The third release takes the place of the first, and the second one goes.
    bring(&node, &daemon, "r3");
    daemon.wait_until("the older release is given up", || receipts(&node).len() == 4);
    wait_until_shown(&node, &daemon, "r1", |release| release["kept"] == json!(true));
    assert_eq!(shown(&node, "r2"), Value::Null);
    let answer = node.airgapd(["rollback", "r2"]).exits(1);
    assert!(answer.stderr.contains("names the release r2"), "{answer:?}");
    let settings = fs::read_to_string(node.path("config.yaml")).unwrap();
    node.configure(&settings.replace("keepReleases: 1", "keepReleases: 0"));
    daemon.signal(Signal::HUP);
    daemon.wait_until("no former release is kept", || receipts(&node).len() == 2);
    node.airgapd(["release", "base.tar", "shop.tar"]).exits(0);
    daemon.finish(target);
}

fn a_release_that_is_not_whole_does_not_come_back(target: &Target) {
    let node = Node::on(target);
    let answer = node.airgapd(["rollback", "r1"]).exits(7);
    assert!(answer.stderr.contains("no daemon answers"), "{answer:?}");
    node.configure_also("afterImport: receipt\nkeepReleases: 1");
    let daemon = node.start();
    let shop = bring(&node, &daemon, "r1");
    bring(&node, &daemon, "r2");
    let second = targets(target);
    wait_until_shown(&node, &daemon, "r1", |release| release["kept"] == json!(true));
    let layer = &shop.images[0].manifests[0].layers[0];
    target.block_on(target.client().delete_blob(layer)).unwrap();
    let answer = node.airgapd(["rollback", "r1"]).exits(1);
    assert!(
        answer.stderr.contains(&format!(
            "containerd has lost 1 blob of the release r1, first blob {layer}"
        )) && answer.stderr.contains("shop.tar"),
        "{answer:?}"
    );
    assert_eq!(targets(target), second, "no name has moved");
    // Files in the folder come back, too.
    let base = node.drop_in(&node.path("r1/base.tar"));
    let shop = node.drop_in(&node.path("r1/shop.tar"));
    daemon.wait_until("receipts again", || !base.exists() && !shop.exists());
    node.airgapd(["wait", "--release", "r1"]).exits(0);
    node.airgapd(["rollback", "r2"]).exits(0);
    assert_eq!(targets(target), second);
    node.airgapd(["release", "base.tar", "shop.tar"]).exits(0);
    daemon.finish(target);
}

fn files_and_layouts_of_a_former_release_come_back(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    for name in ["r1", "r2"] {
        let file = format!("{name}.tar");
        bundles::write(&node.path(&file), [image(ONE), image(TWO), image(THREE)]);
        release(&node, name, &[&file], name).exits(0);
    }
    node.drop_in(&node.path("r1/r1.tar"));
    node.airgapd(["wait", "--release", "r1"]).exits(0);
    let first = targets(target);
    let layout = node.images().join("r2");
    let mut archive = tar::Archive::new(fs::File::open(node.path("r2/r2.tar")).unwrap());
    archive.unpack(&layout).unwrap();
    node.airgapd(["wait", "--release", "r2"]).exits(0);
    let second = targets(target);
    assert_ne!(first, second);
    for (name, images) in [("r1", &first), ("r2", &second), ("r1", &first)] {
        node.airgapd(["rollback", name]).exits(0);
        assert_eq!(targets(target), *images, "{name}");
    }
    daemon.finish(target);
}

fn a_receipt_keeps_the_word_of_its_bundle_on_other_platforms(target: &Target) {
    let node = Node::on(target);
    let foreign = Image::new(TWO).platform(FOREIGN).layer(unique());
    bundles::write(&node.path("both.tar"), [image(ONE), foreign]);
    release(&node, "r1", &["both.tar"], "out").exits(0);
    node.import(["--keep", &text(&node.path("out/both.tar"))])
        .exits(0);
    let daemon = node.start();
    node.airgapd(["wait", "--release", "r1"]).exits(0);
    // Another rule makes the daemon read every bundle again, and a lost ledger, too.
    node.configure_also("aliases: [registry.test=mirror.test]");
    daemon.signal(Signal::HUP);
    daemon.wait_until("the alias", || target.record("mirror.test/one:1").is_some());
    node.airgapd(["wait", "--release", "r1"]).exits(0);
    daemon.stop();
    fs::remove_file(node.ledger()).unwrap();
    let daemon = node.start();
    node.airgapd(["wait", "--release", "r1"]).exits(0);
    // On other platforms the receipt has no word on the member.
    daemon.stop();
    node.configure_also("platforms: [linux/amd64, linux/s390x]");
    let daemon = node.start();
    let lacking = wait_until_shown(&node, &daemon, "r1", |release| {
        release["in_place"] == json!(false) && problem(release).contains(TWO)
    });
    assert_eq!(lacking["missing"], json!(1), "{lacking:#}");
    node.airgapd(["release", "both.tar"]).exits(0);
    daemon.finish(target);
}

fn beside_signed_bundles_unsigned_ones_have_no_word_on_a_release(target: &Target) {
    for policy in ["require", "if-present"] {
        let guarded = Guarded::on(target, policy);
        let node = &guarded.node;
        bundles::write(&node.path("one.tar"), [image(ONE)]);
        bundles::write(
            &node.path("evil.tar"),
            [image(&format!("registry.test/{policy}:1"))],
        );
        release(node, "r1", &["one.tar"], "out").exits(0);
        release(node, "r1", &["evil.tar"], "evil").exits(0);
        let (signed, place) = (node.path("out/one.tar"), node.images().join("one.tar"));
        guarded.sign(&signed, &place, 1);
        let daemon = node.start();
        node.drop_in(&node.path("evil/evil.tar"));
        node.drop_in(&signed);
        // Before it is there, the bundle without a signature may be the whole release.
        node.airgapd(["wait", "--bundle", "one.tar"]).exits(0);
        node.airgapd(["wait", "--release", "r1"]).exits(0);
        if policy == "if-present" {
            node.airgapd(["wait", "--bundle", "evil.tar"]).exits(0);
        }
        let found = shown(node, "r1");
        assert_eq!(found["bundles"], json!(["one.tar"]), "{policy}: {found:#}");
        assert_eq!(found["in_place"], json!(true), "{policy}");
        // A signature over another list does not admit the bundle.
        let forged = node.path("forged.tar");
        forge(&signed, &forged, |list| {
            list["members"] = json!([{"name": ONE, "digest": digest_of(b"forged")}]);
        });
        guarded.sign(&signed, &forged, 1);
        let answer = node.import([&forged]).exits(5);
        assert!(
            answer.said().contains("lacks the content"),
            "{policy}: {answer:?}"
        );
        daemon.stop();
        node.airgapd(["release", "--all"]).exits(0);
    }
}

fn bundles_of_a_release_keep_their_names_and_forms(target: &Target) {
    let node = Node::on(target);
    let plain = layout([image(ONE)]).build();
    plain.write_to(&node.path("plain.tar"));
    let other = layout([image(TWO)]).build();
    for (file, compression) in [("b.tar.zst", Compression::Zstd), ("c.tgz", Compression::Gzip)] {
        fs::write(node.path(file), other.to_compressed(compression)).unwrap();
    }
    other.extract_to(&node.path("folder"));
    fs::write(node.path("d.tar.xz"), other.to_compressed(Compression::Xz)).unwrap();
    let files = ["plain.tar", "b.tar.zst", "c.tgz", "folder"];
    release(&node, "r1", &files, "out").exits(0);
    let made = ["plain.tar", "b.tar.zst", "c.tgz", "folder.tar"];
    for (file, form) in made.into_iter().zip(["none", "zstd", "gzip", "none"]) {
        let path = node.path("out").join(file);
        assert_listed(&node, &path);
        let inspected = node
            .airgapd(["inspect", "-o", "json", &text(&path)])
            .exits(0)
            .json();
        assert_eq!(inspected["compression"], json!(form), "{file}");
        assert_eq!(inspected["warnings"], json!([]), "{file}");
    }
    release(&node, "r1", &files, "again").exits(0);
    for file in made {
        let [one, two] = ["out", "again"].map(|folder| fs::read(node.path(folder).join(file)).unwrap());
        assert!(one == two, "{file} has the same bytes each time");
    }
    let answer = release(&node, "r1", &["d.tar.xz"], "xz").exits(2);
    assert!(answer.stderr.contains("add --compress"), "{answer:?}");
    // A release of bundles of another release has its own list.
    release(&node, "r2", &["out/plain.tar"], "r2").exits(0);
    let inspected = node
        .airgapd(["inspect", "-o", "json", &text(&node.path("r2/plain.tar"))])
        .json();
    assert_eq!(inspected["release"]["name"], json!("r2"));
    assert_eq!(inspected["release"]["members"].as_array().unwrap().len(), 1);
    // Parts of a release stay in it, and a mixture does not.
    let verb = |verb: &[&str], files: &[&str], out: &str| {
        let files = files.iter().map(|file| text(&node.path(file)));
        let out = [
            "-o".to_owned(),
            text(&node.path(out)),
            "-o".to_owned(),
            "json".to_owned(),
        ];
        let head = ["bundle"].iter().chain(verb).map(|word| (*word).to_owned());
        node.airgapd(head.chain(out).chain(files)).exits(0).json()
    };
    let merged = verb(&["merge"], &["out/plain.tar", "out/c.tgz"], "merged.tar");
    assert_eq!(
        (&merged["release"], &merged["warnings"]),
        (&json!("r1"), &json!([]))
    );
    let split = verb(&["split", "--max-size", "1GiB"], &["merged.tar"], "split.tar");
    assert_eq!(split["volumes"][0]["release"], json!("r1"));
    for files in [["out/plain.tar", "b.tar.zst"], ["out/plain.tar", "r2/plain.tar"]] {
        let mixed = verb(&["merge"], &files, "mixed.tar");
        assert_eq!(mixed["release"], Value::Null);
        assert!(
            mixed["warnings"].to_string().contains("belongs to no release"),
            "{mixed:#}"
        );
    }
}

fn a_release_that_cannot_be_made_leaves_nothing(target: &Target) {
    let node = Node::on(target);
    bundles::write(&node.path("one.tar"), [image(ONE)]);
    fs::create_dir(node.path("other")).unwrap();
    bundles::write(&node.path("other/one.tar"), [image(ONE)]);
    bundles::write(&node.path("two.tar"), [image(ONE), image(TWO)]);
    bundles::write(
        &node.path("nameless.tar"),
        [Image::unnamed().platform(native()).layer(unique())],
    );
    fs::create_dir(node.path("full")).unwrap();
    fs::write(node.path("full/file"), "").unwrap();
    fs::write(node.path("file"), "").unwrap();
    let mut broken = layout([image(TWO)]).build();
    let layer = broken.images[0].manifests[0].layers[0].clone();
    broken.remove_blob(&layer).write_to(&node.path("broken.tar"));
    let mut corrupt = layout([image(TWO)]).build();
    let layer = corrupt.images[0].manifests[0].layers[0].clone();
    corrupt.corrupt(&layer).write_to(&node.path("corrupt.tar"));
    let before = names_in(&node.path(""));
    for (name, files, out, exit, expected) in [
        ("r1", &["one.tar", "two.tar"][..], "out", 1, "one.tar and sha256:"),
        (
            "r1",
            &["one.tar", "other/one.tar"],
            "out",
            2,
            "two bundles would have the name one.tar",
        ),
        ("r1", &["one.tar", "broken.tar"], "out", 1, "broken.tar"),
        ("r1", &["one.tar", "corrupt.tar"], "out", 1, ""),
        ("r1", &["nameless.tar"], "out", 1, "no members"),
        ("r1", &["absent.tar"], "out", 1, "absent.tar"),
        ("r1", &["one.tar"], "full", 1, "it is not empty"),
        ("r1", &["one.tar"], "file", 1, "output folder"),
        ("r/1", &["one.tar"], "out", 2, "is not the name of a release"),
    ] {
        let answer = release(&node, name, files, out);
        assert_ne!(answer.status.code(), Some(0), "{files:?}");
        let code = answer.status.code();
        assert!(code == Some(exit) || exit == 1, "{files:?} {code:?}: {answer:?}");
        assert!(answer.said().contains(expected), "{files:?}: {answer:?}");
        assert_eq!(names_in(&node.path("")), before, "{files:?}");
    }
    let answer = node
        .airgapd(["bundle", "release", "r1", &text(&node.path("one.tar"))])
        .exits(2);
    assert!(answer.stderr.contains("--output DIR is required"), "{answer:?}");
    // An empty folder is good enough.
    fs::create_dir(node.path("empty")).unwrap();
    release(&node, "r1", &["one.tar"], "empty").exits(0);
    assert_eq!(
        names_in(&node.path("empty")),
        ["one.tar", "one.tar.digest"].map(PathBuf::from).into()
    );
}

fn names_in(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into()).collect()
}

fn a_bundle_that_an_earlier_version_imported_is_read_again_for_a_release(target: &Target) {
    let node = Node::on(target);
    bundles::write(&node.path("base.tar"), [image(ONE)]);
    bundles::write(&node.path("shop.tar"), [image(TWO)]);
    bundles::write(&node.path("other.tar"), [image(THREE)]);
    release(&node, "r1", &["base.tar", "shop.tar"], "out").exits(0);
    let daemon = node.start();
    node.drop_in(&node.path("out/base.tar"));
    node.drop_in(&node.path("other.tar"));
    node.airgapd(["wait"]).exits(0);
    daemon.stop();
    // Earlier versions write neither of the keys.
    let mut state: Value = serde_json::from_slice(&fs::read(node.ledger()).unwrap()).unwrap();
    state
        .as_object_mut()
        .unwrap()
        .remove("lists")
        .expect("the ledger has the list");
    for entry in state["bundles"].as_object_mut().unwrap().values_mut() {
        let imported = entry["imported"].as_object_mut().unwrap();
        imported.remove("release").expect("the entry knows the release");
    }
    fs::write(node.ledger(), state.to_string()).unwrap();
    let daemon = node.start();
    node.airgapd(["wait"]).exits(0);
    assert_eq!(shown(&node, "r1"), Value::Null);
    assert_eq!(daemon.count("importing"), 0, "nothing is read for nothing");
    node.drop_in(&node.path("out/shop.tar"));
    node.airgapd(["wait", "--release", "r1"]).exits(0);
    assert!(
        !daemon.log().contains("importing bundle=other.tar"),
        "{}",
        daemon.log()
    );
    daemon.finish(target);
}

on_each_containerd!(
    a_release_is_in_place_when_every_member_of_all_its_bundles_is,
    a_node_rolls_back_to_a_kept_release_and_forth_again_without_a_byte,
);
on_the_fake!(
    a_release_that_is_not_whole_does_not_come_back,
    files_and_layouts_of_a_former_release_come_back,
    a_receipt_keeps_the_word_of_its_bundle_on_other_platforms,
    a_node_rolls_forward_to_a_release_that_shares_members,
    a_forged_an_empty_or_another_list_is_not_in_place_and_its_images_are,
    a_member_for_another_platform_counts_with_its_bundle_only,
    a_receipt_stands_for_a_bundle_of_a_release,
    beside_signed_bundles_unsigned_ones_have_no_word_on_a_release,
    bundles_of_a_release_keep_their_names_and_forms,
    a_bundle_that_an_earlier_version_imported_is_read_again_for_a_release,
    a_release_that_cannot_be_made_leaves_nothing,
);
