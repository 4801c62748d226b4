//! Several images folders: the first takes new bundles, and the daemon only reads the others.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bundle::fixtures::Image;
use import::bundle_id;
use serde_json::Value;

use crate::support::bundles::{self, image, text};
use crate::support::mount::Mount;
use crate::support::node::bundle;
use crate::support::target::BUNDLE;
use crate::support::{Node, Target, on_each_containerd, on_the_fake, unique};

const ONE: &str = "registry.test/one:1";
const TWO: &str = "registry.test/two:1";

/// Returns a node with these images folders after its first one. They need not exist.
fn node_with(target: &Target, more: &[&str]) -> Node {
    let node = Node::on(target);
    set_folders(&node, &["images"], more);
    node
}

/// Sets the images folders of a node.
fn set_folders(node: &Node, first: &[&str], more: &[&str]) {
    let before = fs::read_to_string(node.path("config.yaml")).unwrap();
    let kept = before.lines().filter(|line| !line.starts_with("imagesDir"));
    let kept: Vec<&str> = kept.collect();
    let folders = first.iter().chain(more).map(|folder| text(&node.path(folder)));
    let folders: Vec<String> = folders.collect();
    node.configure(&format!(
        "{}\nimagesDirs: [{}]\n",
        kept.join("\n"),
        folders.join(", ")
    ));
}

fn make(node: &Node, folder: &str) -> PathBuf {
    let folder = node.path(folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Returns the bundles in the labels of a record.
fn files(target: &Target, name: &str) -> Vec<String> {
    match target.record(name) {
        Some(_) => target.source_files(name),
        None => Vec::new(),
    }
}

fn is_pinned(target: &Target, name: &str) -> bool {
    target.record(name).is_some() && target.is_pinned(name)
}

fn is_let_go(target: &Target, name: &str) -> bool {
    target.record(name).is_some() && files(target, name).is_empty() && !is_pinned(target, name)
}

fn status(node: &Node) -> Value {
    let answer = node.airgapd(["status", "-o", "json"]);
    answer.json()
}

/// An image of its own content under this name.
fn other_image(name: &str, content: &str) -> Image {
    Image::new(name).platform(bundles::native()).layer(content)
}

fn bundles_of_every_folder_are_imported_and_an_image_in_two_keeps_its_pin_until_both_let_go(target: &Target) {
    let node = node_with(target, &["os/images"]);
    let os = make(&node, "os/images");
    let content = unique();
    let shared = || other_image(ONE, &content);
    bundles::write(&os.join("a.tar"), [shared(), image(TWO)]);
    bundles::write(&node.images().join("a.tar"), [shared()]);
    let daemon = node.start();
    let second = text(&os.join("a.tar"));
    daemon.wait_until("both bundles vouch for the image", || {
        files(target, ONE).len() == 2 && is_pinned(target, TWO)
    });
    let labels = target.labels(ONE);
    // The bundle of the first folder has the id that it had with one folder.
    assert_eq!(labels[&format!("{BUNDLE}{}", bundle_id("a.tar"))], "a.tar");
    assert_eq!(labels[&format!("{BUNDLE}{}", bundle_id(&second))], second);
    node.airgapd(["wait"]).exits(0);
    let shown = status(&node);
    assert_eq!(shown["folder"]["path"], text(&node.images()));
    assert_eq!(shown["more_folders"][0]["path"], text(&os));
    assert_eq!(bundle(&shown, "a.tar")["state"], "done");
    assert_eq!(bundle(&shown, &second)["state"], "done");
    let page = node.airgapd(["status"]).exits(0).stdout;
    assert!(page.contains(&text(&os)), "{page}");

    fs::remove_file(node.images().join("a.tar")).unwrap();
    daemon.wait_until("the first bundle lets go", || {
        files(target, ONE) == [second.clone()]
    });
    assert!(is_pinned(target, ONE));
    fs::remove_file(os.join("a.tar")).unwrap();
    daemon.wait_until("the last bundle lets go", || {
        is_let_go(target, ONE) && is_let_go(target, TWO)
    });
    daemon.finish(target);
}

fn a_name_that_bundles_of_two_folders_have_belongs_to_the_earlier_folder(target: &Target) {
    let node = node_with(target, &["os", "more"]);
    let (os, more) = (make(&node, "os"), make(&node, "more"));
    let write = |path: &Path, content: &str| {
        let archive = bundles::write(path, [other_image(ONE, content)]);
        archive.images[0].root.clone()
    };
    let in_os = write(&os.join("os.tar"), "os");
    let daemon = node.start();
    let has = |wanted: &oci_spec::image::Digest| {
        let record = target.record(ONE);
        record.is_some_and(|record| record.target.digest() == wanted)
    };
    daemon.wait_until("the only bundle has the name", || has(&in_os));
    let placed = node.path("placed.tar");
    let in_first = write(&placed, "first");
    node.drop_in(&placed);
    daemon.wait_until("the first folder has the name", || has(&in_first));
    // Bundles that arrive later, in later folders.
    write(&more.join("more.tar"), "more");
    let in_os = write(&os.join("os.tar"), "os, another time");
    daemon.wait_for_line("more.tar", "images folder before this one");
    daemon.wait_for_line("os.tar", "images folder before this one");
    node.airgapd(["wait"]).exits(0);
    assert!(has(&in_first));
    fs::remove_file(node.images().join("placed.tar")).unwrap();
    daemon.wait_until("the second folder has the name", || has(&in_os));
    daemon.finish(target);
}

fn a_folder_that_comes_late_is_waited_for_and_one_that_changes_place_with_the_same_bundles_is_no_alarm(
    target: &Target,
) {
    let node = node_with(target, &["os/images"]);
    let daemon = node.start();
    let os = node.path("os/images");
    daemon.wait_for_log("cannot open the images folder");
    assert!(!os.exists(), "the daemon creates the first folder only");
    let answer = node
        .airgapd(["wait", "--timeout", "0s", "--allow-empty"])
        .exits(1);
    assert!(answer.stderr.contains("mount the folder"), "{answer:?}");
    make(&node, "os/images");
    bundles::write(&os.join("a.tar"), [image(ONE)]);
    bundles::write(&os.join("b.tar"), [other_image(TWO, "two")]);
    daemon.wait_until("the bundles are imported", || {
        is_pinned(target, ONE) && is_pinned(target, TWO)
    });
    node.airgapd(["wait"]).exits(0);

    // Another image of the system has the same bundles in a folder with another inode.
    make(&node, "next");
    for name in ["a.tar", "b.tar"] {
        fs::copy(os.join(name), node.path("next").join(name)).unwrap();
    }
    let swap = |from: &str, aside: &str| {
        fs::rename(&os, node.path(aside)).unwrap();
        fs::rename(node.path(from), &os).unwrap();
    };
    let log = daemon.finish(target);
    swap("next", "aside");
    let daemon = node.start();
    node.airgapd(["wait"]).exits(0);
    let log = format!("{log}{}", daemon.log());
    for word in ["another folder", "is gone", "not mounted"] {
        assert!(!log.contains(word), "{log}");
    }

    // A folder without them looks like a lost mount.
    let first = "registry.test/first:1";
    node.put("first.tar", first);
    node.airgapd(["wait", "--bundle", "first.tar"]).exits(0);
    make(&node, "empty");
    swap("empty", "second");
    daemon.wait_for_log("another folder than before: 2 of 2 bundles are missing");
    assert!(is_pinned(target, ONE) && is_pinned(target, TWO));
    let shown = status(&node);
    assert_eq!(shown["folder"]["vanished"], Value::Null);
    assert_eq!(shown["more_folders"][0]["vanished"]["bundles"], 2);
    // A bundle that leaves another folder was removed all the same.
    fs::remove_file(node.images().join("first.tar")).unwrap();
    daemon.wait_until("the removed bundle lets go", || is_let_go(target, first));
    assert!(is_pinned(target, ONE) && is_pinned(target, TWO));
    fs::rename(node.path("second/a.tar"), os.join("a.tar")).unwrap();
    fs::rename(node.path("second/b.tar"), os.join("b.tar")).unwrap();
    daemon.wait_for_log("no bundle is missing any more");
    daemon.finish(target);
}

fn a_folder_that_leaves_the_configuration_unpins_nothing_until_the_operator_says_so(target: &Target) {
    let node = node_with(target, &["os"]);
    let os = make(&node, "os");
    bundles::write(&os.join("a.tar"), [image(ONE)]);
    let daemon = node.start();
    daemon.wait_until("the image is imported", || is_pinned(target, ONE));
    daemon.finish(target);
    set_folders(&node, &["images"], &[]);
    let daemon = node.start();
    daemon.wait_for_log("is no longer a folder after the first in `imagesDirs`: 1 of 1 bundle is missing");
    assert!(is_pinned(target, ONE));
    // It is back, so it was no removal.
    daemon.finish(target);
    set_folders(&node, &["images"], &["os"]);
    let daemon = node.start();
    node.airgapd(["wait"]).exits(0);
    daemon.finish(target);
    assert!(is_pinned(target, ONE));
    set_folders(&node, &["images"], &[]);
    let daemon = node.start();
    daemon.wait_for_log("is no longer a folder after the first");
    node.airgapd(["release", "--vanished"]).exits(0);
    assert!(is_let_go(target, ONE));
    daemon.wait_for_log("no bundle is missing any more");
    node.airgapd(["wait", "--allow-empty"]).exits(0);
    daemon.finish(target);
}

fn a_release_of_vanished_bundles_leaves_those_of_a_folder_that_the_daemon_waits_for(target: &Target) {
    let node = node_with(target, &["os"]);
    let os = make(&node, "os");
    bundles::write(&os.join("a.tar"), [image(ONE)]);
    node.put("b.tar", TWO);
    let daemon = node.start();
    node.airgapd(["wait"]).exits(0);
    daemon.finish(target);
    fs::rename(&os, node.path("aside")).unwrap();
    fs::remove_file(node.images().join("b.tar")).unwrap();
    for arguments in [
        &["release", "--vanished", "--dry-run"][..],
        &["release", "--vanished"],
    ] {
        let answer = node.airgapd(arguments).exits(0);
        let said = format!(
            "the pins of 1 bundle in {} stay, because the folder cannot be opened",
            os.display()
        );
        assert!(answer.stderr.contains(&said), "{answer:?}");
    }
    assert!(is_pinned(target, ONE) && is_let_go(target, TWO));
    // Without the file in a folder that is there, the bundle is gone.
    make(&node, "os");
    let answer = node.airgapd(["release", "--vanished", "--dry-run"]).exits(0);
    assert!(
        answer.stdout.contains(ONE) && answer.stderr.is_empty(),
        "{answer:?}"
    );
    fs::remove_dir(&os).unwrap();
    set_folders(&node, &["images"], &[]);
    node.airgapd(["release", "--vanished"]).exits(0);
    assert!(is_let_go(target, ONE));
}

/// The folders share one bound on sub-folders, and an earlier folder may use it up.
fn bundles_beyond_the_bound_on_sub_folders_keep_their_pins_until_their_files_go(target: &Target) {
    let node = node_with(target, &["os"]);
    node.configure_also("recursive: true");
    let os = make(&node, "os");
    make(&node, "os/sub");
    bundles::write(&os.join("sub/a.tar"), [image(ONE)]);
    let archive = node.path("layout.tar");
    bundles::write(&archive, [other_image(TWO, "two")]);
    let layout = make(&node, "os/layout");
    let mut unpack = std::process::Command::new("tar");
    let unpack = unpack.arg("-xf").arg(&archive).arg("-C").arg(&layout);
    assert!(unpack.status().unwrap().success());
    let daemon = node.start();
    node.airgapd(["wait"]).exits(0);
    assert!(is_pinned(target, ONE) && is_pinned(target, TWO));
    for number in 0..256 {
        make(&node, &format!("images/many-{number}"));
    }
    let is_left_out = |file: &str| {
        let shown = status(&node);
        let ignored = shown["ignored"].as_array().unwrap();
        ignored.iter().any(|entry| entry["name"] == text(&os.join(file)))
    };
    daemon.wait_until("the later folder is beyond the bound", || {
        is_left_out("sub") && is_left_out("layout")
    });
    node.drop_marker(target, &daemon);
    assert!(!daemon.log().contains("the bundle is gone"), "{}", daemon.log());
    assert!(is_pinned(target, ONE) && is_pinned(target, TWO));
    fs::remove_file(os.join("sub/a.tar")).unwrap();
    fs::remove_dir_all(&layout).unwrap();
    node.drop_marker(target, &daemon);
    daemon.wait_until("the removed bundles let go", || {
        is_let_go(target, ONE) && is_let_go(target, TWO)
    });
    daemon.finish(target);
}

/// The state has a folder that left the configuration by the path of its bundles, which is bytes.
fn a_sub_folder_whose_name_is_no_text_leaves_the_configuration(target: &Target) {
    let node = node_with(target, &["os"]);
    node.configure_also("recursive: true");
    let odd = node.path("os").join(OsStr::from_bytes(b"sub-\xff"));
    fs::create_dir_all(&odd).unwrap();
    bundles::write(&odd.join("a.tar"), [image(ONE)]);
    let daemon = node.start();
    node.airgapd(["wait"]).exits(0);
    daemon.finish(target);
    set_folders(&node, &["images"], &[]);
    for _ in 0..2 {
        let daemon = node.start();
        daemon
            .wait_for_log("is no longer a folder after the first in `imagesDirs`: 1 of 1 bundle is missing");
        daemon.finish(target);
        assert!(is_pinned(target, ONE));
    }
    let state = fs::read_to_string(node.ledger()).unwrap();
    assert!(state.contains("os/sub-\\\\xff\":[0,0]"), "{state}");
    node.airgapd(["release", "--vanished"]).exits(0);
    assert!(is_let_go(target, ONE));
}

fn a_bundle_is_named_by_its_path_and_a_name_of_two_bundles_is_refused(target: &Target) {
    let node = node_with(target, &["os"]);
    let os = make(&node, "os");
    bundles::write(&os.join("a.tar"), [other_image(TWO, "two")]);
    bundles::write(
        &os.join("only.tar"),
        [other_image("registry.test/three:1", "three")],
    );
    bundles::write(&node.images().join("a.tar"), [image(ONE)]);
    let daemon = node.start();
    node.airgapd(["wait"]).exits(0);
    let second = text(&os.join("a.tar"));
    let ambiguous = format!("a.tar is the name of several bundles: a.tar, {second}. Give the path");
    let answer = node
        .airgapd(["wait", "--bundle", "a.tar", "--timeout", "0s"])
        .exits(1);
    assert!(answer.stderr.contains(&ambiguous), "{answer:?}");
    let answer = node.airgapd(["release", "a.tar"]).exits(2);
    assert!(answer.stderr.contains(&ambiguous), "{answer:?}");
    let first = text(&node.images().join("a.tar"));
    for name in [&first, &second, "only.tar", &text(&os.join("only.tar"))] {
        node.airgapd(["wait", "--bundle", name, "--timeout", "0s"])
            .exits(0);
    }
    daemon.finish(target);
    node.airgapd(["release", "only.tar"]).exits(0);
    assert!(is_let_go(target, "registry.test/three:1"));
    node.airgapd(["release", &first]).exits(0);
    assert!(is_let_go(target, ONE) && is_pinned(target, TWO));
    node.airgapd(["release", &second]).exits(0);
    assert!(is_let_go(target, TWO));
    // An import by hand gives the file the same name as the daemon.
    node.import([text(&os.join("a.tar"))]).exits(0);
    assert_eq!(files(target, TWO), [second]);
}

/// As in an image of the system: nothing can be written there, the folder has its own list of
/// digests, and no event comes from it.
fn a_read_only_folder_is_read_with_the_files_beside_its_bundles(target: &Target) {
    let node = node_with(target, &["os"]);
    node.configure_also("checksums: require");
    let (os, content) = (make(&node, "os"), make(&node, "content"));
    for (name, image) in [("a.tar", image(ONE)), ("b.tar", other_image(TWO, "two"))] {
        bundles::write(&content.join(name), [image]);
        let bytes = fs::read(content.join(name)).unwrap();
        let digest = bundle::fixtures::digest_of(&bytes).to_string();
        let hex = digest.trim_start_matches("sha256:");
        fs::write(content.join(format!("{name}.sha256")), format!("{hex}  {name}\n")).unwrap();
    }
    fs::write(content.join("README.md"), "bundles").unwrap();
    let mount = Mount::bind_read_only(&content, &os);
    let daemon = node.start();
    node.airgapd(["wait"]).exits(0);
    assert!(is_pinned(target, ONE) && is_pinned(target, TWO));
    daemon.wait_for_line("a.tar", "its checksum is right");
    // It goes with its mount, and comes back with it.
    drop(mount);
    daemon.wait_for_log("2 of 2 bundles are missing");
    assert!(is_pinned(target, ONE) && is_pinned(target, TWO));
    let mount = Mount::bind_read_only(&content, &os);
    daemon.wait_for_log("no bundle is missing any more");
    // A bundle that leaves the mounted folder was removed.
    fs::remove_file(content.join("b.tar")).unwrap();
    node.airgapd(["wait", "--timeout", "1m"]).exits(0);
    daemon.wait_until("the removed bundle lets go", || is_let_go(target, TWO));
    assert!(is_pinned(target, ONE));
    daemon.finish(target);
    // After a reboot, the same numbers may be those of a folder of another OS image.
    let state = fs::read_to_string(node.ledger()).unwrap();
    let mut state: Value = serde_json::from_str(&state).unwrap();
    state["context"]["boot"] = "an earlier boot".into();
    fs::write(node.ledger(), state.to_string()).unwrap();
    fs::remove_file(content.join("a.tar")).unwrap();
    let daemon = node.start();
    daemon.wait_for_log("another folder than before: 1 of 1 bundle is missing");
    daemon.wait_for_log("after a reboot: ");
    daemon.finish(target);
    assert!(is_pinned(target, ONE));
    drop(mount);
}

fn folders_are_checked_before_the_daemon_starts_and_by_doctor(target: &Target) {
    let node = node_with(target, &["os", "link", "not-yet"]);
    let os = make(&node, "os");
    std::os::unix::fs::symlink(&os, node.path("link")).unwrap();
    let answer = node.airgapd(["config", "--check"]).exits(2);
    assert!(answer.stderr.contains("have files in common"), "{answer:?}");
    // A daemon that runs all the same reads them once.
    bundles::write(&os.join("a.tar"), [image(ONE)]);
    let daemon = node.start();
    daemon.wait_until("the image is imported", || is_pinned(target, ONE));
    daemon.wait_for_log("it is the same folder as");
    assert_eq!(files(target, ONE), [text(&os.join("a.tar"))]);
    daemon.finish(target);
    fs::remove_file(node.path("link")).unwrap();
    node.airgapd(["config", "--check"]).exits(0);
    let config = node.airgapd(["config"]).exits(0).stdout;
    assert!(config.contains(&format!(" and {}", os.display())), "{config}");
    let doctor = node.airgapd(["doctor"]).said();
    assert!(doctor.contains("not-yet does not exist"), "{doctor}");
    assert!(doctor.contains(&text(&os)), "{doctor}");
    fs::write(node.path("link"), "a file").unwrap();
    let answer = node.airgapd(["config", "--check"]).exits(2);
    assert!(answer.stderr.contains("is not a folder"), "{answer:?}");
}

on_each_containerd! {
    bundles_of_every_folder_are_imported_and_an_image_in_two_keeps_its_pin_until_both_let_go,
    a_name_that_bundles_of_two_folders_have_belongs_to_the_earlier_folder,
    a_folder_that_leaves_the_configuration_unpins_nothing_until_the_operator_says_so,
}

on_the_fake! {
    a_folder_that_comes_late_is_waited_for_and_one_that_changes_place_with_the_same_bundles_is_no_alarm,
    a_bundle_is_named_by_its_path_and_a_name_of_two_bundles_is_refused,
    a_read_only_folder_is_read_with_the_files_beside_its_bundles,
    a_release_of_vanished_bundles_leaves_those_of_a_folder_that_the_daemon_waits_for,
    bundles_beyond_the_bound_on_sub_folders_keep_their_pins_until_their_files_go,
    a_sub_folder_whose_name_is_no_text_leaves_the_configuration,
    folders_are_checked_before_the_daemon_starts_and_by_doctor,
}
