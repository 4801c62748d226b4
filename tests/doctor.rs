//! `airgapd doctor`: each test causes a fault, and the doctor finds it and names the remedy.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use fake_containerd::{Fake, FakeConfig};
use import::labels::K0S_SOURCES;
use lab::{Generation, Options};
use serde_json::{Value, json};

use crate::support::bundles::{self, image, text};
use crate::support::node::{Answer, program};
use crate::support::{Node, Target, on_each_containerd, on_the_fake, run_on_own};

const ONE: &str = "registry.test/one:1";

/// Returns the findings about a subject: the verdict, and the text with the remedy.
fn found(answer: &Answer, subject: &str) -> Vec<(String, String)> {
    let document = answer.json();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let findings = document["findings"]
        .as_array()
        .unwrap_or_else(|| panic!("{document:#}"));
    let keys = |value: &Value| {
        Vec::from_iter(
            value
                .as_object()
                .into_iter()
                .flat_map(|object| object.keys().cloned()),
        )
    };
    assert_eq!(keys(&document), ["findings", "healthy"]);
    for finding in findings {
        assert_eq!(keys(finding), ["remedy", "subject", "text", "verdict"]);
        assert_eq!(
            finding["remedy"].is_null(),
            finding["verdict"] == "ok",
            "{finding:#}"
        );
    }
    let of_subject = findings.iter().filter(|finding| finding["subject"] == subject);
    of_subject
        .map(|finding| {
            let (what, remedy) = (text(&finding["text"]), text(&finding["remedy"]));
            (text(&finding["verdict"]), format!("{what} -> {remedy}"))
        })
        .collect()
}

/// Checks that the doctor has a finding with this verdict and these words in text and remedy.
#[track_caller]
fn assert_found(answer: &Answer, subject: &str, verdict: &str, words: &[&str]) {
    let all = found(answer, subject);
    let fits = |(is, said): &(String, String)| is == verdict && words.iter().all(|word| said.contains(word));
    assert!(all.iter().any(fits), "{subject} {verdict} {words:?}: {all:?}");
}

fn doctor(node: &Node) -> Answer {
    node.airgapd(["doctor", "-o", "json"])
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn what_is_wrong_with_the_folder_is_found(target: &Target) {
    let node = Node::on(target);
    let images = node.images();
    assert_found(&doctor(&node), "folder", "ok", &[&text(&images)]);

    mode(&images, 0o777);
    assert_found(
        &doctor(&node),
        "folder",
        "problem",
        &["every user can write it", "chmod o-w"],
    );
    mode(&images, 0o775);
    assert_found(&doctor(&node), "folder", "note", &["go-w"]);
    mode(&images, 0o755);
    if lab::is_root() {
        chown(&images, Some(65534), None).unwrap();
        assert_found(&doctor(&node), "folder", "note", &["chown root:"]);
        chown(&images, Some(0), None).unwrap();
    }
    fs::remove_dir(&images).unwrap();
    assert_found(
        &doctor(&node),
        "folder",
        "note",
        &["does not exist yet", "install -d -m 0755"],
    );
    fs::write(&images, "a file").unwrap();
    assert_found(&doctor(&node), "folder", "problem", &["make it a folder"]);
}

/// From a missing socket to a containerd that is not kubelet's.
fn what_is_wrong_with_the_socket_is_found(_: &Target) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("containerd.sock");
    let node = Node::at(&socket, "k8s.io");
    let words = ["nothing answers on", &text(&socket), "`address:`"];
    assert_found(&doctor(&node), "containerd", "problem", &words);

    let listener = UnixListener::bind(&socket).unwrap();
    let hangs_up = std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut first = [0];
            if stream.read(&mut first).is_ok_and(|read| read == 0) {
                return;
            }
        }
    });
    assert_found(&doctor(&node), "containerd", "problem", &words);
    // A client that sends nothing ends the thread.
    let _ = std::os::unix::net::UnixStream::connect(&socket);
    hangs_up.join().unwrap();
    fs::remove_file(&socket).unwrap();
    drop(UnixListener::bind(&socket).unwrap());
    assert_found(&doctor(&node), "containerd", "problem", &words);
    fs::remove_file(&socket).unwrap();

    let _docker = Fake::start_blocking(FakeConfig {
        cri: false,
        socket: Some(socket),
        ..FakeConfig::default()
    });
    let words = ["no CRI service", "its address was given", "`cri: true`"];
    assert_found(&doctor(&node), "containerd", "note", &words);
    node.configure_also("cri: true");
    assert_found(
        &doctor(&node),
        "containerd",
        "problem",
        &["no CRI service", "enable its CRI plugin"],
    );
}

fn a_namespace_and_platforms_that_kubelet_makes_nothing_of_are_found(target: &Target) {
    let node = Node::on(target);
    let answer = doctor(&node);
    assert_found(
        &answer,
        "namespace",
        "note",
        &["kubelet sees those in k8s.io only", "`namespace:`"],
    );
    assert_eq!(found(&answer, "platform"), []);

    node.configure_also("platforms: [linux/s390x, linux/amd64]");
    let answer = doctor(&node);
    assert_found(
        &answer,
        "platform",
        "note",
        &["linux/s390x", "linux/amd64", "`platforms:`"],
    );

    let fake = target.as_fake().expect("the target is the stand-in");
    let in_kubernetes = Node::at(fake.socket(), "k8s.io");
    assert_eq!(found(&doctor(&in_kubernetes), "namespace"), []);
}

/// The store is on a small file system, so that the test can fill it without harm.
fn too_little_space_on_the_disk_is_found(_: &Target) {
    if !lab::is_root() {
        return;
    }
    let store = SmallDisk::new();
    let fake = Fake::start_blocking(FakeConfig {
        content_root: Some(store.folder.path().to_owned()),
        ..FakeConfig::default()
    });
    let node = Node::at(fake.socket(), "scenario-disk");
    assert_found(&doctor(&node), "disk", "ok", &["free at"]);

    fs::write(store.folder.path().join("filling"), vec![0; 15 << 20]).unwrap();
    assert_found(
        &doctor(&node),
        "disk",
        "note",
        &["less than 15 %", "kubelet", "free space"],
    );

    node.configure_also("minFree: 4MiB");
    assert_found(&doctor(&node), "disk", "problem", &["free space", "`minFree:`"]);
}

/// A file system of 16 MiB in memory, which lives as long as this value.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    fn new() -> SmallDisk {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=16m", "none"]);
        assert!(mount.arg(folder.path()).status().unwrap().success());
        SmallDisk { folder }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.folder.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

/// k0s has its own importer. Its label names the folder that it reads.
fn a_second_importer_on_the_same_folder_is_found(target: &Target) {
    let node = Node::on(target);
    assert_found(&doctor(&node), "others", "ok", &["no other importer"]);
    let bundle = node.images().join("bundle.tar");
    let name = "registry.test/of-k0s:1";
    let archive = bundles::write(&bundle, [image(name)]);
    node.import([&bundle]).exits(0);
    let source = serde_json::json!({ text(&bundle): "2026-01-01T00:00:00Z" }).to_string();
    target.set_labels(name, &[(K0S_SOURCES, Some(&source))]);
    assert_found(
        &doctor(&node),
        "others",
        "note",
        &["k0s imports this folder, too", "docs/coexistence.md"],
    );
    drop(archive);
}

/// Runs a shell script and then the doctor, in namespaces of their own. The script changes the
/// machine for this doctor only.
fn doctor_after(node: &Node, namespaces: &[&str], script: &str) -> Answer {
    let usual = node.command(["doctor", "-o", "json"]);
    let mut command = Command::new("unshare");
    command
        .args(namespaces)
        .args(["sh", "-ec", &format!("{script}\nexec \"$@\""), "sh"])
        .arg(usual.get_program())
        .args(usual.get_args())
        .env("FOLDER", node.path(""));
    for (name, value) in usual.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Answer::from(command.output().unwrap())
}

const OWN_MOUNTS: [&str; 3] = ["--mount", "--propagation", "private"];

fn a_kernel_that_gives_no_watch_is_found(target: &Target) {
    if !lab::is_root() {
        return;
    }
    let node = Node::on(target);
    assert_found(&doctor(&node), "inotify", "ok", &["instances"]);
    let answer = doctor_after(
        &node,
        &["--user", "--map-root-user"],
        "echo 0 > /proc/sys/user/max_inotify_instances",
    );
    assert_found(
        &answer,
        "inotify",
        "note",
        &["gives no watch", "every few seconds", "sysctl -w"],
    );
}

fn a_state_folder_that_cannot_be_written_is_found(target: &Target) {
    if !lab::is_root() {
        return;
    }
    let node = Node::on(target);
    assert_found(&doctor(&node), "state", "ok", &[&text(&node.state())]);
    let answer = doctor_after(
        &node,
        &OWN_MOUNTS,
        "mount --bind \"$FOLDER/state\" \"$FOLDER/state\" && mount -o remount,bind,ro \"$FOLDER/state\"",
    );
    assert_found(
        &answer,
        "state",
        "note",
        &["cannot be written", "mount it writable", "`stateDir:`"],
    );
    fs::remove_dir(node.state()).unwrap();
    assert_found(&doctor(&node), "state", "note", &["does not exist yet"]);
}

/// systemctl is a script that answers like systemd.
fn what_is_wrong_with_the_unit_is_found(target: &Target) {
    if !lab::is_root() {
        return;
    }
    let node = Node::on(target);
    let with = |properties: &str| {
        let script = format!(
            "mount -t tmpfs none /run; mkdir -p /run/systemd/system /run/bin\n\
             printf '#!/bin/sh\\nprintf \"{properties}\"\\n' > /run/bin/systemctl; chmod 755 /run/bin/systemctl\n\
             PATH=/run/bin:$PATH"
        );
        doctor_after(&node, &OWN_MOUNTS, &script)
    };
    let table: [(&str, &str, &[&str]); 5] = [
        (
            "LoadState=not-found\\\\n",
            "note",
            &["no airgapd.service", "install the package"],
        ),
        (
            "LoadState=loaded\\\\nActiveState=failed\\\\nResult=exit-code\\\\n",
            "problem",
            &[
                "failed (exit-code)",
                "journalctl -u airgapd",
                "airgapd config --check",
            ],
        ),
        (
            "LoadState=loaded\\\\nActiveState=active\\\\nUnitFileState=disabled\\\\n",
            "note",
            &["does not start with the node", "systemctl enable"],
        ),
        (
            "LoadState=loaded\\\\nActiveState=active\\\\nUnitFileState=enabled\\\\nNRestarts=7\\\\n",
            "note",
            &["restarted 7 times", "journalctl"],
        ),
        (
            "LoadState=loaded\\\\nActiveState=active\\\\nUnitFileState=enabled\\\\nPrivateTmp=yes\\\\n",
            "problem",
            &["PrivateTmp=", "`imagesDir:`"],
        ),
    ];
    for (properties, verdict, words) in table {
        assert_found(&with(properties), "unit", verdict, words);
    }
}

/// An operator should know containerd's deprecation warnings before an upgrade. They prevent no
/// import.
fn what_containerd_says_is_deprecated_is_told(target: &Target) {
    assert_eq!(found(&doctor(&Node::on(target)), "deprecated"), []);
    let message = "The `mirrors` property of the registry will be removed in containerd v2.7. Use `config_path` instead.";
    let warnings = [("io.containerd.deprecation/cri-registry-mirrors", message)];
    let fake = Fake::start_blocking(FakeConfig {
        version: "2.3.7".to_owned(),
        deprecations: warnings
            .map(|(id, message)| (id.to_owned(), message.to_owned()))
            .into(),
        ..FakeConfig::default()
    });
    let node = Node::at(fake.socket(), "k8s.io");
    let words = [
        "cri-registry-mirrors: The `mirrors` property",
        "`config_path`",
        "before the next upgrade",
    ];
    assert_found(&doctor(&node), "deprecated", "note", &words);
}

/// The doctor finds the program by its name on the `PATH` of containerd's process, and does not run
/// it.
#[test]
fn a_faster_gzip_decoder_is_recommended_until_containerds_path_has_it() {
    for (generation, name, package) in [
        (Generation::V1_7, "unpigz", "install pigz"),
        (Generation::V2_1, "igzip", "install isal"),
        (Generation::V2_3, "igzip", "install isal"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            programs: Some(folder.path().to_owned()),
            ..Options::default()
        };
        run_on_own(generation, &options, |own| {
            let node = Node::on(&own.target);
            assert_eq!(found(&doctor(&node), "unpack"), [], "nothing is unpacked ahead");
            node.configure_also("unpack: background");
            let lacks = format!("containerd's PATH lacks {name}");
            assert_found(&doctor(&node), "unpack", "note", &[&lacks, package]);
            let program = folder.path().join(name);
            fs::write(&program, "").unwrap();
            mode(&program, 0o644);
            assert_found(&doctor(&node), "unpack", "note", &[&lacks]);
            mode(&program, 0o755);
            assert_found(&doctor(&node), "unpack", "ok", &[&text(&program)]);
        });
    }
}

fn who_is_not_root_is_told_so(target: &Target) {
    if !lab::is_root() {
        return;
    }
    let node = Node::on(target);
    assert_eq!(found(&doctor(&node), "user"), []);
    let copy = node.program_for_all();
    let config = text(&node.path("config.yaml"));
    let as_nobody = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&copy)
            .args(arguments)
            .args(["--config", &config]);
        for (name, _) in program().get_envs() {
            command.env_remove(name);
        }
        Answer::from(command.output().unwrap())
    };
    mode(target.socket().parent().unwrap(), 0o755);
    mode(target.socket(), 0o600);
    let daemon = node.start();

    let answer = as_nobody(&["doctor", "-o", "json"]).exits(1);
    let words = ["this is not root", "sudo airgapd doctor"];
    assert_found(&answer, "user", "problem", &words);
    for subject in ["daemon", "containerd", "inotify", "state"] {
        assert_eq!(found(&answer, subject), [], "{answer:?}");
    }
    let (bundle, _) = bundles::marker(node.path("bundle.tar"));
    let bundle = text(&bundle);
    for (command, arguments, exit) in [
        ("status", vec!["status"], 3),
        ("wait", vec!["wait"], 7),
        ("verify", vec!["verify", "--images", "/dev/null"], 3),
        ("import", vec!["import", &bundle], 3),
    ] {
        let answer = as_nobody(&arguments).exits(exit);
        assert!(answer.stdout.is_empty(), "{answer:?}");
        assert_eq!(answer.stderr.lines().count(), 1, "{answer:?}");
        let remedy = format!("sudo airgapd {command}");
        assert!(answer.stderr.trim_end().ends_with(&remedy), "{answer:?}");
    }
    daemon.stop();
}

fn the_doctor_names_what_is_wrong_and_what_to_do(target: &Target) {
    let node = Node::on(target);
    let verdict = |subject: &str, exit: i32| {
        let answer = doctor(&node).exits(exit);
        assert_eq!(answer.json()["healthy"], json!(exit == 0), "{answer:?}");
        found(&answer, subject)
    };
    assert_eq!(verdict("daemon", 1)[0].0, "problem");
    let daemon = node.start();
    node.put("one.tar", ONE);
    node.airgapd(["wait"]).exits(0);
    let (is, said) = verdict("daemon", 0).remove(0);
    assert!(
        is == "ok" && said.starts_with("it is running with 1 bundle: the node is healthy"),
        "{is} {said}"
    );
    assert_eq!(verdict("containerd", 0)[0].0, "ok");
    assert_eq!(verdict("inotify", 0)[0].0, "ok");
    node.put_broken("bad.tar");
    node.airgapd(["wait"]).exits(1);
    let (is, said) = verdict("bundle", 1).remove(0);
    assert!(is == "problem" && said.starts_with("bad.tar: "), "{is} {said}");
    fs::remove_file(node.images().join("bad.tar")).unwrap();
    node.airgapd(["wait"]).exits(0);

    fs::set_permissions(node.images(), fs::Permissions::from_mode(0o777)).unwrap();
    let (is, why) = verdict("folder", 1).remove(0);
    assert!(
        is == "problem" && why.contains("every user can write it"),
        "{is} {why}"
    );
    fs::set_permissions(node.images(), fs::Permissions::from_mode(0o755)).unwrap();
    // Wait until the daemon has noticed it too.
    node.airgapd(["wait"]).exits(0);
    let text = node.airgapd(["doctor"]).exits(0).stdout;
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    daemon.finish(target);

    let nowhere = Node::at("/nonexistent/containerd.sock".as_ref(), target.namespace());
    assert_eq!(found(&doctor(&nowhere).exits(1), "containerd")[0].0, "problem");
}

on_the_fake!(
    what_is_wrong_with_the_folder_is_found,
    what_is_wrong_with_the_socket_is_found,
    a_namespace_and_platforms_that_kubelet_makes_nothing_of_are_found,
    too_little_space_on_the_disk_is_found,
    a_second_importer_on_the_same_folder_is_found,
    a_kernel_that_gives_no_watch_is_found,
    a_state_folder_that_cannot_be_written_is_found,
    what_is_wrong_with_the_unit_is_found,
    what_containerd_says_is_deprecated_is_told,
    who_is_not_root_is_told_so,
);
on_each_containerd! {
    the_doctor_names_what_is_wrong_and_what_to_do,
}
