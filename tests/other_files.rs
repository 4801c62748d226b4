//! Files beside the bundles: which are ignored, which count as bundles, and where this is reported.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::bundles::{self, image, text};
use crate::support::node::peak_memory;
use crate::support::{Node, Target, on_the_fake};

const A: &str = "registry.test/a:1";
const B: &str = "registry.test/b:1";

/// Files that releases and people leave beside bundles.
const STRAYS: [(&str, &str); 19] = [
    ("README.md", "# Images\n\nCopy them.\n"),
    ("LICENSE.txt", "free\n"),
    ("SHA256SUMS", "0a9d  good.tar\n"),
    ("sha256sum-amd64.txt", "0a9d  good.tar\n"),
    ("other.tar.sha256", "0a9d  other.tar\n"),
    ("good.tar.sha256sum", "0a9d  good.tar\n"),
    ("good.tar.sha512", "0a9d  good.tar\n"),
    ("good.tar.md5", "0a9d  good.tar\n"),
    ("good.tar.asc", "-----BEGIN PGP SIGNATURE-----\n"),
    ("good.tar.sig", "\u{1}\u{2}"),
    ("good.tar.minisig", "untrusted comment: x\n"),
    ("good.tar.sigstore.json", "{}\n"),
    ("good.tar.digest", "airgapd-catalogs 1\nsha256:0a9d  good.tar\n"),
    ("good.tar.digest.sig", "MEUCIQ==\n"),
    ("SHA256SUMS.minisig", "untrusted comment: x\n"),
    ("sha256sum-amd64.txt.sigstore.json", "{}\n"),
    ("good.tar.sha256.sig", "MEUCIQ==\n"),
    ("images.json", "[1, 2, 3]\n"),
    ("empty", ""),
];

fn names(list: &Value) -> Vec<&str> {
    let entries = list.as_array().unwrap().iter();
    entries.filter_map(|entry| entry["name"].as_str()).collect()
}

fn texts_checksums_and_signatures_beside_bundles_are_left_alone_and_told_of(target: &Target) {
    let node = Node::on(target);
    bundles::write(&node.images().join("good.tar"), [image("registry.test/good:1")]);
    for (name, content) in STRAYS {
        fs::write(node.images().join(name), content).unwrap();
    }
    let daemon = node.start();
    let answer = node.airgapd(["wait", "--timeout", "20s"]).exits(0);
    let said = format!(
        "1 bundle in place, {} files ignored (`airgapd status` says why)\n",
        STRAYS.len()
    );
    assert_eq!(answer.stdout, said);
    assert!(target.record("registry.test/good:1").is_some());

    let status = node.airgapd(["status", "-o", "json"]).exits(0).json();
    let mut wanted = STRAYS.map(|(name, _)| name);
    wanted.sort_unstable();
    assert_eq!(names(&status["ignored"]), wanted);
    assert_eq!(names(&status["bundles"]), ["good.tar"]);
    let shown = node.airgapd(["status"]).exits(0).stdout;
    assert!(
        shown.contains("ignored: 19 files\n  LICENSE.txt: by its name"),
        "{shown}"
    );
    let (_, metrics) = node.ask("/metrics", &[]);
    assert!(metrics.contains("\nairgapd_ignored_files 19\n"), "{metrics}");

    let answer = node.airgapd(["wait", "--bundle", "README.md"]).exits(1);
    assert!(
        answer.stderr.contains("README.md is ignored: by its name"),
        "{answer:?}"
    );
    let by_hand = node
        .airgapd(["import", &text(&node.images().join("README.md"))])
        .exits(5);
    assert!(
        by_hand.said().contains("this is not a tar archive"),
        "{by_hand:?}"
    );
    daemon.finish(target);

    // The same result without a daemon.
    let status = node.airgapd(["status", "-o", "json"]).exits(1).json();
    assert_eq!(names(&status["ignored"]), wanted);
}

fn bytes_of_an_archive_are_a_bundle_under_any_name(target: &Target) {
    let node = Node::on(target);
    let names = [
        "README.md",
        "SHA256SUMS",
        "alone.tar.sha256",
        "images.json",
        "images.txt",
        "empty",
    ];
    let daemon = node.start();
    for name in names {
        fs::write(node.images().join(name), "").unwrap();
    }
    let answer = node
        .airgapd(["wait", "--allow-empty", "--timeout", "20s"])
        .exits(0);
    assert!(
        answer.stdout.starts_with("no bundle in place, 6 files ignored"),
        "{answer:?}"
    );
    for name in names {
        let image = image(&format!("registry.test/{}:1", name.to_lowercase()));
        bundles::write(&node.images().join(name), [image]);
    }
    let answer = node.airgapd(["wait", "--timeout", "20s"]).exits(0);
    assert_eq!(answer.stdout, "6 bundles in place\n");
    for name in names {
        let name = format!("registry.test/{}:1", name.to_lowercase());
        assert!(target.record(&name).is_some(), "{name}");
    }
    daemon.finish(target);
}

fn what_is_in_no_list_and_what_is_called_as_a_bundle_is_an_upload(target: &Target) {
    let node = Node::on(target);
    fs::write(node.images().join("install.sh"), "#!/bin/sh\nexit 0\n").unwrap();
    let daemon = node.start();
    let answer = node.airgapd(["wait", "--timeout", "20s"]).exits(1);
    assert!(answer.stderr.contains("this is a script"), "{answer:?}");
    fs::remove_file(node.images().join("install.sh")).unwrap();
    for (name, content) in [
        ("empty.tar", ""),
        ("k0s-airgap-bundle-v1", ""),
        ("tiny.tar.zst", "("),
    ] {
        let path = node.images().join(name);
        fs::write(&path, content).unwrap();
        let answer = node.airgapd(["wait", "--timeout", "1s"]).exits(6);
        assert!(
            answer.stderr.contains(&format!("{name} is settling")),
            "{answer:?}"
        );
        fs::remove_file(path).unwrap();
    }
    daemon.finish(target);
}

/// A folder into which an operator unpacked something else by mistake.
fn twenty_thousand_junk_files_cost_little_and_hide_no_bundle(target: &Target) {
    const FILES: usize = 20_000;
    let node = Node::on(target);
    for number in 0..FILES {
        let (name, content) = match number % 4 {
            0 => (format!("{number}.md"), "# text\n"),
            1 => (format!("{number}.json"), "{}\n"),
            2 => (format!(".{number}"), ""),
            _ => (format!("{number}"), ""),
        };
        fs::write(node.images().join(name), content).expect("a file");
    }
    bundles::write(&node.images().join("zzz.tar"), [image(A)]);
    let started = Instant::now();
    let daemon = node.start();
    daemon.wait_until("the image", || target.record(A).is_some());
    let took = started.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    let answer = node.airgapd(["wait", "--timeout", "20s"]).exits(0);
    assert!(
        answer
            .stdout
            .starts_with("1 bundle in place, 20000 files ignored"),
        "{answer:?}"
    );
    let status = node.airgapd(["status", "-o", "json"]).json();
    assert_eq!(
        status["ignored"].as_array().map(Vec::len),
        Some(FILES),
        "all of them by name"
    );
    let shown = node.airgapd(["status"]).stdout;
    assert!(shown.contains("ignored: 20000 files"), "{shown:.2000}");
    assert!(
        daemon.log().lines().count() < 120,
        "{} lines",
        daemon.log().lines().count()
    );
    // These are more events at once than the kernel's queue holds.
    for number in 0..FILES {
        fs::remove_file(node.images().join(match number % 4 {
            0 => format!("{number}.md"),
            1 => format!("{number}.json"),
            2 => format!(".{number}"),
            _ => format!("{number}"),
        }))
        .expect("the file exists");
    }
    bundles::write(&node.images().join("b.tar"), [image(B)]);
    daemon.wait_until("the other image", || target.record(B).is_some());
    let peak = peak_memory(daemon.pid()).expect("the process runs");
    assert!(peak < 64 << 20, "{peak} bytes");
    daemon.finish(target);
}

/// Each file is refused with its own reason. None is opened in a way that blocks. A bundle beside
/// them is imported.
fn odd_things_in_the_folder_are_refused_each_with_its_reason(target: &Target) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let node = Node::on(target);
    let path = |name: &str| node.images().join(name);
    mknodat(CWD, path("fifo.tar"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path("socket.tar")).unwrap();
    let is_root = rustix::process::geteuid().is_root();
    let null = rustix::fs::makedev(1, 3);
    let device = mknodat(
        CWD,
        path("device.tar"),
        FileType::CharacterDevice,
        Mode::RUSR,
        null,
    )
    .is_ok();
    symlink("/etc/shadow", path("shadow.tar")).unwrap();
    symlink("nowhere", path("dangling.tar")).unwrap();
    symlink("loop.tar", path("loop.tar")).unwrap();
    symlink("fifo.tar", path("to-fifo.tar")).unwrap();
    symlink("/dev/zero", path("to-zero.tar")).unwrap();
    symlink("/proc/self/fd/0", path("magic.tar")).unwrap();
    fs::create_dir(path("folder.tar")).unwrap();
    fs::write(path("secret.tar"), "x".repeat(4096)).unwrap();
    fs::set_permissions(path("secret.tar"), fs::Permissions::from_mode(0o000)).unwrap();
    let daemon = node.start();
    node.drop_marker(target, &daemon);

    for (name, reason) in [
        ("fifo.tar", "FIFO"),
        ("socket.tar", "socket"),
        ("shadow.tar", "not an image bundle"),
        ("dangling.tar", "link to nothing"),
        ("loop.tar", "leads back to itself"),
        ("to-fifo.tar", "no regular file"),
        ("to-zero.tar", "no regular file"),
        ("magic.tar", "leads back to itself"),
        ("folder.tar", "folder"),
    ] {
        daemon.wait_for_line(name, reason);
    }
    if device {
        daemon.wait_for_line("device.tar", "device");
    }
    daemon.wait_for_line(
        "secret.tar",
        if is_root { "not an image bundle" } else { "denied" },
    );
    let shadow = fs::read_to_string("/etc/shadow").unwrap_or_default();
    let log = daemon.finish(target);
    for line in shadow.lines().filter(|line| line.len() > 20) {
        assert!(!log.contains(line), "the content of /etc/shadow is not shown");
    }
}

on_the_fake!(
    texts_checksums_and_signatures_beside_bundles_are_left_alone_and_told_of,
    bytes_of_an_archive_are_a_bundle_under_any_name,
    what_is_in_no_list_and_what_is_called_as_a_bundle_is_an_upload,
    twenty_thousand_junk_files_cost_little_and_hide_no_bundle,
    odd_things_in_the_folder_are_refused_each_with_its_reason,
);
