//! Symptoms of docs/runbook.md that no other test quotes. Each test causes one, and checks that the
//! program reports it in the words of the runbook.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use fake_containerd::{Fake, FakeConfig};

use crate::support::bundles::{self, image};
use crate::support::{Node, Target, on_the_fake, wait_for};

const ONE: &str = "registry.test/one:1";

fn an_upload_that_came_to_a_halt_says_why(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    bundles::write(&node.path("whole.tar"), [image(ONE)]);
    let bytes = fs::read(node.path("whole.tar")).unwrap();
    fs::write(node.images().join("cut.tar"), &bytes[..bytes.len() / 2]).unwrap();
    let mut open = File::create(node.images().join("open.tar")).unwrap();
    open.write_all(&bytes).unwrap();
    for (file, words) in [
        (
            "cut.tar",
            "nothing has happened for a while: it has no end-of-archive marker",
        ),
        (
            "open.tar",
            "nothing has happened for a while: a program still has it open for writing",
        ),
    ] {
        // The daemon reports a stalled upload after half a minute.
        wait_for(Duration::from_secs(60), words, || {
            daemon
                .log()
                .lines()
                .any(|line| line.contains(file) && line.contains(words))
        });
    }
    let text = node.airgapd(["status"]).exits(1).stdout;
    assert!(text.contains("waiting for the end of an upload"), "{text}");
    drop(open);
    daemon.wait_until("the closed file is imported", || target.record(ONE).is_some());
    daemon.stop();
}

fn a_damaged_layer_is_told_of_with_the_remedy(target: &Target) {
    let node = Node::on(target);
    let mut archive = bundles::layout([image(ONE)]).build();
    let layer = archive.images[0].manifests[0].layers[0].clone();
    archive.corrupt(&layer);
    archive.write_to(&node.images().join("bad.tar"));
    let daemon = node.start();
    daemon.wait_for_log("image not imported: ");
    let text = node.airgapd(["status"]).exits(1).stdout;
    assert!(
        text.contains("copy the bundle again and compare its sha256sum"),
        "{text}"
    );
    daemon.finish(target);
}

fn what_follows_an_archive_is_told_of_and_does_no_harm(target: &Target) {
    let node = Node::on(target);
    bundles::write(&node.path("long.tar"), [image(ONE)]);
    let mut file = File::options().append(true).open(node.path("long.tar")).unwrap();
    file.write_all(&[b'x'; 4096]).unwrap();
    drop(file);
    let answer = node.import([&node.path("long.tar")]).exits(0);
    assert!(
        answer
            .said()
            .contains("ignored 4096 bytes after the end of the archive"),
        "{answer:?}"
    );
}

fn a_layout_without_its_blobs_is_told_of(target: &Target) {
    let node = Node::on(target);
    let folder = node.path("layout");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": format!("sha256:{}", "0".repeat(64)),
        "size": 2,
    }]});
    fs::write(folder.join("index.json"), index.to_string()).unwrap();
    let answer = node.import([&folder]).exits(5);
    assert!(
        answer.said().contains("is an image layout without blobs"),
        "{answer:?}"
    );
}

fn a_checksum_of_something_else_is_told_of(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    bundles::write(&node.path("one.tar"), [image(ONE)]);
    fs::write(
        node.images().join("one.tar.sha256"),
        format!("{}  one.tar\n", "0".repeat(64)),
    )
    .unwrap();
    node.drop_in(&node.path("one.tar"));
    daemon.wait_for_line("one.tar", "not imported: its sha256 is");
    let text = node.airgapd(["status"]).exits(1).stdout;
    assert!(text.contains("but one.tar.sha256 says"), "{text}");
    daemon.finish(target);
}

fn an_image_of_a_list_that_cannot_be_had_is_told_of(target: &Target) {
    let target = &target.in_kubernetes();
    let node = Node::on(target);
    node.configure_also("pullLists: on");
    fs::write(node.images().join("images.txt"), "registry.test/nowhere:1\n").unwrap();
    let daemon = node.start();
    daemon.wait_for_line("images.txt", "image not pulled: registry.test/nowhere:1");
    daemon.finish(target);
}

fn a_folder_that_cannot_be_made_or_that_others_can_write_is_told_of(target: &Target) {
    let node = Node::on(target);
    fs::set_permissions(node.images(), fs::Permissions::from_mode(0o775)).unwrap();
    let daemon = node.start();
    daemon.wait_for_log("its group can write it (mode 0775)");
    daemon.finish(target);
    if lab::is_root() {
        fs::set_permissions(node.images(), fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(node.images(), Some(1234), None).unwrap();
        let daemon = node.start();
        daemon.wait_for_log("it belongs to user 1234 and not to root");
        daemon.finish(target);
    }

    let node = Node::on(target);
    fs::remove_dir(node.images()).unwrap();
    fs::write(node.images(), "a file").unwrap();
    let text = fs::read_to_string(node.path("config.yaml")).unwrap();
    let below = node.images().join("below");
    node.configure(&text.replace(
        &format!("imagesDir: {}", node.images().display()),
        &format!("imagesDir: {}", below.display()),
    ));
    let daemon = node.start();
    daemon.wait_for_log("cannot create the images folder");
    daemon.finish(target);
}

fn metrics_that_cannot_be_given_are_told_of(target: &Target) {
    let node = Node::on(target);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    node.configure_also(&format!(
        "metricsFile: /nonexistent/airgapd.prom\nmetricsAddress: {address}"
    ));
    let daemon = node.start();
    daemon.wait_for_log("no metrics in /nonexistent/airgapd.prom");
    daemon.wait_for_log(&format!("no metrics on {address}"));
    daemon.finish(target);
}

fn a_state_that_is_broken_or_of_a_newer_version_is_told_of(target: &Target) {
    for (text, words) in [
        ("no ledger\n", "the state file was unreadable"),
        (
            r#"{"version": 1000, "bundles": {}}"#,
            "the state file has version 1000 of a newer airgapd",
        ),
    ] {
        let node = Node::on(target);
        fs::write(node.ledger(), text).unwrap();
        let daemon = node.start();
        daemon.wait_for_log(words);
        // The daemon works nevertheless.
        node.drop_marker(target, &daemon);
        daemon.finish(target);
    }
}

fn without_a_daemon_each_command_says_so_and_a_second_daemon_names_the_first(target: &Target) {
    let node = Node::on(target);
    let text = node.airgapd(["status"]).exits(1).stdout;
    assert!(
        text.contains("the daemon is not running: nothing is imported and nothing restored"),
        "{text}"
    );
    let answer = node.airgapd(["wait"]).exits(7);
    assert!(answer.said().contains("no daemon answers on"), "{answer:?}");
    let answer = node.airgapd(["doctor"]).exits(1);
    assert!(answer.stdout.contains("it is not running"), "{answer:?}");

    let daemon = node.start();
    let answer = node.airgapd(["run"]).exits(1);
    let words = format!(
        "another airgapd (pid {}) already uses the state folder",
        daemon.pid()
    );
    assert!(answer.said().contains(&words), "{answer:?}");
    daemon.finish(target);
}

fn a_containerd_of_docker_is_told_of(_: &Target) {
    let docker = Fake::start_blocking(FakeConfig {
        cri: false,
        ..FakeConfig::default()
    });
    let node = Node::at(docker.socket(), "k8s.io");
    let daemon = node.start();
    daemon.wait_for_log("has no CRI service");
    daemon.stop();
}

/// The test simulates a machine without journald.
fn without_a_journal_the_lines_go_to_standard_error(target: &Target) {
    if !lab::is_root() {
        return;
    }
    let node = Node::on(target);
    node.configure_also("log:\n  format: journal");
    let status = node.command(["status"]);
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg("mount -t tmpfs tmpfs /run && exec \"$@\"")
        .arg("sh")
        .arg(status.get_program())
        .args(status.get_args())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").expect("there is one"))
        .output()
        .expect("unshare comes with util-linux");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("cannot reach the journal"), "{said}");
}

on_the_fake! {
    a_checksum_of_something_else_is_told_of,
    a_containerd_of_docker_is_told_of,
    a_damaged_layer_is_told_of_with_the_remedy,
    a_folder_that_cannot_be_made_or_that_others_can_write_is_told_of,
    a_layout_without_its_blobs_is_told_of,
    a_state_that_is_broken_or_of_a_newer_version_is_told_of,
    an_image_of_a_list_that_cannot_be_had_is_told_of,
    an_upload_that_came_to_a_halt_says_why,
    metrics_that_cannot_be_given_are_told_of,
    what_follows_an_archive_is_told_of_and_does_no_harm,
    without_a_daemon_each_command_says_so_and_a_second_daemon_names_the_first,
    without_a_journal_the_lines_go_to_standard_error,
}
