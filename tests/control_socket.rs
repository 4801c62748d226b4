//! The control socket: the users that may connect, and the tools that work without it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::bundles::{self, image};
use crate::support::mount::Mount;
use crate::support::node::{bundle, program};
use crate::support::{Node, Target, on_the_fake};

const ONE: &str = "registry.test/one:1";
const TWO: &str = "registry.test/two:1";

fn the_control_socket_is_roots_alone(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let socket = node.path("run/control.sock");
    assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o777, 0o600);
    let (head, _) = node.ask("/v1/other", &[]);
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    // Another user cannot connect even after the mode of the socket was changed.
    let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let copy = node.program_for_all();
    open(&socket, 0o666);
    let as_another_user = |arguments: &[&str]| {
        let mut command = Command::new(&copy);
        for (name, _) in program().get_envs() {
            command.env_remove(name);
        }
        command
            .args(arguments)
            .arg("--config")
            .arg(node.path("config.yaml"))
            .uid(65534)
            .gid(65534)
            .output()
            .unwrap()
    };
    let nobody = as_another_user(&["wait", "--timeout", "0s"]);
    assert_eq!(nobody.status.code(), Some(6), "{nobody:?}");
    open(&socket, 0o600);
    let nobody = as_another_user(&["wait"]);
    assert_eq!(nobody.status.code(), Some(7), "{nobody:?}");
    assert!(
        String::from_utf8_lossy(&nobody.stderr).contains("sudo airgapd wait"),
        "{nobody:?}"
    );
    daemon.finish(target);
}

/// A request with the tag of the known status waits for a change (RFC 7240). It waits at most for
/// the requested time, and not at all if the status has changed.
fn whoever_waits_is_told_at_once_and_hears_nothing_twice(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    node.airgapd(["wait", "--allow-empty"]).exits(0);
    let tag_of = |head: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix("etag: "));
        line.unwrap_or_else(|| panic!("no tag in {head}")).to_owned()
    };
    let ask = |tag: &str, wait: &str| {
        let began = Instant::now();
        let (head, body) = node.ask("/v1/status", &[("If-None-Match", tag), ("Prefer", wait)]);
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        (tag_of(&head), body, began.elapsed())
    };
    let known = tag_of(&node.ask("/v1/status", &[]).0);
    let (same, _, waited) = ask(&known, "wait=1");
    assert_eq!(same, known);
    assert!(waited >= Duration::from_secs(1), "{waited:?}");
    // An unknown tag is answered at once, and so is a request without a time limit.
    for (tag, wait) in [("\"other\"", "wait=20"), (&*known, "respond-async")] {
        let (same, _, waited) = ask(tag, wait);
        assert_eq!(same, known);
        assert!(waited < Duration::from_secs(10), "{waited:?}");
    }
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask(&known, "respond-async, wait=20"));
        node.put("one.tar", ONE);
        let (news, body, waited) = asking.join().expect("the request is answered");
        assert_ne!(news, known);
        assert!(body.contains("one.tar"), "{body}");
        assert!(waited < Duration::from_secs(15), "{waited:?}");
    });

    // Waiting clients, however many, keep no other client from an answer.
    node.airgapd(["wait"]).exits(0);
    let known = tag_of(&node.ask("/v1/status", &[]).0);
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..16).map(|_| scope.spawn(|| ask(&known, "wait=20"))).collect();
        let status = node.airgapd(["status", "-o", "json"]).exits(0).json();
        assert_eq!(bundle(&status, "one.tar")["state"], "done");
        node.put("two.tar", TWO);
        for waiting in waiting {
            let (news, ..) = waiting.join().expect("the request is answered");
            assert_ne!(news, known);
        }
    });
    daemon.finish(target);
}

fn what_a_killed_daemon_left_is_replaced_and_a_second_one_keeps_away(target: &Target) {
    let node = Node::on(target);
    node.start().kill();
    assert!(node.path("run/control.sock").exists());
    node.airgapd(["wait"]).exits(7);
    let daemon = node.start();
    node.airgapd(["wait", "--allow-empty"]).exits(0);
    let second = Node::on(target);
    let text = fs::read_to_string(second.path("config.yaml")).unwrap();
    let run = |node: &Node| format!("runtimeDir: {}", node.path("run").display());
    second.configure(&text.replace(&run(&second), &run(&node)));
    let other = second.start();
    other.wait_for_log("another airgapd answers");
    other.finish(target);
    let status = node.airgapd(["status", "-o", "json"]).exits(0).json();
    assert_eq!(status["daemon"]["pid"], daemon.pid());
    daemon.finish(target);
}

/// Without a place for the control socket no client can connect, but everything else works.
fn a_runtime_folder_that_cannot_be_had_is_told_of_and_nothing_else_lacks(target: &Target) {
    // Only root may mount.
    for number in 0..=u8::from(lab::is_root()) {
        let node = Node::on(target);
        let name = format!("registry.test/runtime{number}:1");
        let folder = node.path("run");
        let mount = match number {
            // A file is in the place of the folder.
            0 => {
                fs::write(&folder, "").expect("a file");
                None
            }
            _ => {
                fs::create_dir(&folder).expect("a folder");
                Some(Mount::read_only(&folder))
            }
        };
        bundles::write(&node.images().join("a.tar"), [image(&name)]);
        let daemon = node.start();
        daemon.wait_until("the image", || target.record(&name).is_some());
        assert_eq!(daemon.count("no control socket in"), 1, "{}", daemon.log());
        let answer = node.airgapd(["wait", "--timeout", "1s"]);
        assert!(!answer.status.success(), "{answer:?}");
        assert!(answer.stderr.contains("airgapd.service"), "{answer:?}");
        let log = daemon.finish(target);
        assert!(log.lines().count() < 20, "{log}");
        drop(mount);
    }
}

on_the_fake! {
    the_control_socket_is_roots_alone,
    whoever_waits_is_told_at_once_and_hears_nothing_twice,
    what_a_killed_daemon_left_is_replaced_and_a_second_one_keeps_away,
    a_runtime_folder_that_cannot_be_had_is_told_of_and_nothing_else_lacks,
}
