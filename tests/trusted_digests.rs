//! Which bundles and names a node takes: checksums beside bundles, trusted digests, allowed names, and whose folder it is.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use bundle::fixtures::{Image, digest_of};

use crate::support::bundles::{self, image, marker, native, text};
use crate::support::node::{Daemon, outcomes};
use crate::support::{Node, Target, on_each_containerd, on_the_fake};

/// The sha256 of a file as hex digits.
fn sha256(path: &Path) -> String {
    let digest = digest_of(&fs::read(path).unwrap()).to_string();
    digest.strip_prefix("sha256:").unwrap().to_owned()
}

/// What sha256sum writes about a file.
fn line(hex: &str, bundle: &Path) -> String {
    format!("{hex}  {}\n", bundle.file_name().unwrap().to_str().unwrap())
}

const WRONG: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Waits until the daemon has said so on a line of the log that names the bundle.
fn wait_for_word(daemon: &Daemon, bundle: &str, word: &str) {
    daemon.wait_until(&format!("{word:?} about {bundle}"), || {
        daemon
            .log()
            .lines()
            .any(|line| line.contains(bundle) && line.contains(word))
    });
}

/// A bundle that is imported and a bundle that is dropped after it: once the second is there, the first was looked at.
fn pass(node: &Node, daemon: &Daemon, target: &Target) {
    let (bundle, name) = marker(node.path("marker.tar"));
    if fs::read_dir(node.images())
        .unwrap()
        .flatten()
        .any(|entry| entry.file_name() == "marker.tar")
    {
        fs::rename(&bundle, node.images().join("marker.tar")).unwrap();
    } else {
        node.drop_in(&bundle);
    }
    daemon.wait_until("a bundle dropped later", || target.record(&name).is_some());
}

fn names_that_are_not_allowed_are_refused_and_the_others_land(target: &Target) {
    let node = Node::on(target);
    node.configure_also("allowedNames: ['registry.test/ok/*', 'docker.io/library/pause:3.?']");
    let file = text(&node.path("bundle.tar"));
    bundles::write(
        file.as_ref(),
        [
            image("registry.test/ok/a:1"),
            image("registry.test/evil/coredns:1"),
            image("docker.io/library/pause:3.9"),
        ],
    );
    let answer = node.import([&file]).exits(1);
    let report = answer.bundle();
    assert_eq!(report["outcome"], "partial");
    let outcomes = outcomes(&report);
    assert!(
        outcomes.contains(&("registry.test/evil/coredns:1".into(), "failed".into())),
        "{outcomes:?}"
    );
    assert!(answer.said().contains("allowedNames"), "{answer:?}");
    let names = target.names();
    assert!(names.contains("registry.test/ok/a:1") && names.contains("docker.io/library/pause:3.9"));
    assert!(names.iter().all(|name| !name.contains("evil")), "{names:?}");

    let alone = text(&node.path("alone.tar"));
    bundles::write(alone.as_ref(), [image("registry.test/evil/alone:1")]);
    let report = node.import([&alone]).exits(1).bundle();
    assert_eq!(report["outcome"], "failed");
    let inspected = node.airgapd(["inspect", "-o", "json", &alone]).exits(0).json();
    assert_eq!(inspected["images"][0]["verdict"], "forbidden");
}

fn an_image_with_an_allowed_and_a_forbidden_name_gets_the_allowed_one_and_a_warning(target: &Target) {
    let node = Node::on(target);
    node.configure_also("allowedNames: ['registry.test/*']");
    let file = text(&node.path("bundle.tar"));
    let two = Image::new("registry.test/two:1")
        .repo_tag("evil.test/two:1")
        .platform(native())
        .layer("two names");
    bundles::docker([two]).write_to(file.as_ref());
    let report = node.import([&file]).exits(0).bundle();
    assert!(target.record("registry.test/two:1").is_some());
    assert!(target.record("evil.test/two:1").is_none());
    assert!(
        report["warnings"].to_string().contains("evil.test/two:1"),
        "{report:#}"
    );
}

fn import_holds_a_bundle_against_the_checksum_beside_it(target: &Target) {
    let node = Node::on(target);
    let file = node.path("bundle.tar");
    bundles::write(&file, [image("registry.test/summed:1")]);
    let sidecar = node.path("bundle.tar.sha256");
    let right = sha256(&file);

    fs::write(&sidecar, line(WRONG, &file)).unwrap();
    let report = node.import([&file]).exits(5).bundle();
    let error = report["error"].as_str().unwrap();
    assert!(
        error.contains(WRONG) && error.contains(&right),
        "both digests: {error}"
    );
    fs::write(&sidecar, "rubbish").unwrap();
    let report = node.import([&file]).exits(1).bundle();
    assert!(
        report["error"].as_str().unwrap().contains("bundle.tar.sha256"),
        "{report:#}"
    );
    assert!(target.names().is_empty());

    node.configure_also("checksums: off");
    node.import([&file]).exits(0);
}

fn every_usual_form_of_a_checksum_is_good(target: &Target) {
    let node = Node::on(target);
    node.configure_also("checksums: require");
    let file = node.path("bundle.tar");
    bundles::write(&file, [image("registry.test/summed:1")]);
    let missing = node.import([&file]).exits(1).bundle();
    assert!(
        missing["error"]
            .as_str()
            .unwrap()
            .contains("there is no bundle.tar.sha256"),
        "{missing:#}"
    );
    let right = sha256(&file);
    for good in [
        line(&right, &file),
        format!("{right}\n"),
        format!("{} *./bundle.tar\r\n", right.to_uppercase()),
        format!("{WRONG}  other.tar\n{right}  bundle.tar\n"),
        format!("SHA256 (bundle.tar) = {right}\n"),
    ] {
        fs::write(node.path("bundle.tar.sha256"), &good).unwrap();
        node.import([&file]).exits(0);
    }
}

fn a_bundle_with_a_wrong_checksum_is_imported_once_the_checksum_is_right(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let (file, name) = marker(node.path("summed.tar"));
    let sidecar = node.images().join("summed.tar.sha256");
    fs::write(&sidecar, line(WRONG, &file)).unwrap();
    let dropped = node.drop_in(&file);
    wait_for_word(&daemon, "summed.tar", WRONG);
    wait_for_word(&daemon, "summed.tar", &sha256(&dropped));
    pass(&node, &daemon, target);
    assert!(target.record(&name).is_none());

    fs::write(&sidecar, line(&sha256(&dropped), &file)).unwrap();
    daemon.wait_until("the image", || target.record(&name).is_some());
    daemon.finish(target);
}

fn a_required_checksum_is_waited_for_and_that_is_said_once(target: &Target) {
    let node = Node::on(target);
    node.configure_also("checksums: require");
    let daemon = node.start();
    let (file, name) = marker(node.path("lonely.tar"));
    let dropped = node.drop_in(&file);
    wait_for_word(&daemon, "lonely.tar", "waiting");
    let (other, other_name) = marker(node.path("other.tar"));
    fs::write(
        node.images().join("other.tar.sha256"),
        line(&sha256(&other), &other),
    )
    .unwrap();
    node.drop_in(&other);
    daemon.wait_until("a bundle with its checksum", || {
        target.record(&other_name).is_some()
    });
    assert!(target.record(&name).is_none());
    assert_eq!(
        daemon.count("waiting: there is no lonely.tar.sha256"),
        1,
        "{}",
        daemon.log()
    );

    fs::write(
        node.images().join("lonely.tar.sha256"),
        line(&sha256(&dropped), &file),
    )
    .unwrap();
    daemon.wait_until("the checksum was enough", || target.record(&name).is_some());
    let log = daemon.finish(target);
    assert!(!log.contains("ERROR"), "{log}");
}

/// Its images stay pinned as they are, but nobody restores them any more until file or checksum change.
fn a_late_checksum_that_does_not_match_takes_the_bundle_out_of_the_desired_state(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let (file, name) = marker(node.path("late.tar"));
    let dropped = node.drop_in(&file);
    daemon.wait_until("the image", || target.record(&name).is_some());
    let sidecar = node.images().join("late.tar.sha256");
    fs::write(&sidecar, line(WRONG, &file)).unwrap();
    wait_for_word(&daemon, "late.tar", "not looked after any more");
    assert!(target.is_pinned(&name));
    target.remove_record(&name);
    pass(&node, &daemon, target);
    assert!(target.record(&name).is_none(), "nobody vouches for it now");
    daemon.stop();

    let daemon = node.start();
    wait_for_word(&daemon, "late.tar", WRONG);
    pass(&node, &daemon, target);
    assert!(target.record(&name).is_none());
    fs::write(&sidecar, line(&sha256(&dropped), &file)).unwrap();
    daemon.wait_until("the image is back", || target.record(&name).is_some());
    daemon.finish(target);
}

fn a_restart_reads_no_bundle_whose_checksum_was_checked(target: &Target) {
    let node = Node::on(target);
    let (file, name) = marker(node.path("known.tar"));
    fs::write(
        node.images().join("known.tar.sha256"),
        line(&sha256(&file), &file),
    )
    .unwrap();
    node.drop_in(&file);
    let daemon = node.start();
    // A stop before it is written down would only mean that it is looked at again.
    wait_for_word(&daemon, "known.tar", "bundle imported");
    assert!(target.record(&name).is_some());
    let log = daemon.finish(target);
    assert!(log.contains("its checksum is right"), "{log}");

    let daemon = node.start();
    pass(&node, &daemon, target);
    let log = daemon.finish(target);
    assert!(!log.lines().any(|line| line.contains("known.tar")), "{log}");
}

fn only_trusted_digests_are_imported_and_the_one_to_add_is_named(target: &Target) {
    let node = Node::on(target);
    let trusted = node.path("trusted");
    fs::create_dir(&trusted).unwrap();
    fs::set_permissions(&trusted, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(
        trusted.join("release.txt"),
        format!("# nothing yet\nsha256:{WRONG}\n"),
    )
    .unwrap();
    node.configure_also(&format!("trustedDigests: {}", trusted.display()));
    let (file, name) = marker(node.path("judged.tar"));
    let digest = node.airgapd(["inspect", "-o", "json", &text(&file)]).json()["digest"]
        .as_str()
        .unwrap()
        .to_owned();

    let error = node.import([&file]).exits(1).bundle()["error"].to_string();
    assert!(
        error.contains(&digest) && error.contains(&text(&trusted)),
        "{error}"
    );
    let daemon = node.start();
    let dropped = node.drop_in(&file);
    wait_for_word(&daemon, "judged.tar", &digest);
    assert!(target.record(&name).is_none());

    fs::write(trusted.join("more"), format!("{digest}  judged.tar\n")).unwrap();
    // The folder of images is listed again at the latest after half a minute, and at once when something happens in it.
    fs::write(node.images().join(".touch"), "").unwrap();
    daemon.wait_until("the image", || target.record(&name).is_some());
    daemon.finish(target);
    node.import([&dropped]).exits(0);

    fs::set_permissions(trusted.join("more"), fs::Permissions::from_mode(0o666)).unwrap();
    let error = node.import([&file]).exits(1).bundle()["error"].to_string();
    assert!(error.contains("others than root can write it"), "{error}");
}

fn nothing_is_taken_from_below_a_folder_that_everybody_can_write(target: &Target) {
    let node = Node::on(target);
    let open = node.path("");
    let mode = |mode| fs::set_permissions(&open, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o777);
    let (file, name) = marker(node.path("careful.tar"));
    node.drop_in(&file);
    let daemon = node.start();
    daemon.wait_for_log("which is above it: everybody can write it");
    assert!(target.record(&name).is_none());
    mode(0o755);
    daemon.wait_until("the image", || target.record(&name).is_some());
    daemon.finish(target);
}

/// Each is refused with a reason of its own, none is opened in a way that blocks, and a bundle beside them lands.
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
    pass(&node, &daemon, target);

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
        wait_for_word(&daemon, name, reason);
    }
    if device {
        wait_for_word(&daemon, "device.tar", "device");
    }
    wait_for_word(
        &daemon,
        "secret.tar",
        if is_root { "not an image bundle" } else { "denied" },
    );
    let shadow = fs::read_to_string("/etc/shadow").unwrap_or_default();
    let log = daemon.finish(target);
    for line in shadow.lines().filter(|line| line.len() > 20) {
        assert!(
            !log.contains(line),
            "the content of /etc/shadow is nobody's business"
        );
    }
}

fn a_thousand_odd_files_do_not_flood_the_log(target: &Target) {
    let node = Node::on(target);
    for number in 0..1000 {
        fs::write(node.images().join(format!(".hidden-{number}.tar")), "").unwrap();
    }
    let daemon = node.start();
    pass(&node, &daemon, target);
    let log = daemon.finish(target);
    let lines = log.lines().filter(|line| line.contains("ignored")).count();
    assert!((1..50).contains(&lines), "{lines} lines:\n{log}");
    assert!(log.contains("more"), "{log}");
}

/// Each of them is wrong in its own way; a thousand of them are one mistake, and a bundle beside them lands.
fn a_thousand_files_that_are_no_bundles_do_not_flood_the_log(target: &Target) {
    let node = Node::on(target);
    for number in 0..1000 {
        let path = node.images().join(format!("photo-{number}.jpg"));
        match number % 2 {
            0 => fs::write(path, "no bundle at all\n".repeat(100)).unwrap(),
            _ => symlink("nowhere", path).unwrap(),
        }
    }
    let daemon = node.start();
    daemon.wait_for_log("more files were not imported");
    pass(&node, &daemon, target);
    let log = daemon.finish(target);
    assert!(log.lines().count() < 100, "{log}");
    assert!(log.contains("link to nothing"), "{log}");
}

/// What was imported without a checksum is not enough once one is required.
fn a_rule_that_comes_later_holds_for_known_bundles_too(target: &Target) {
    let node = Node::on(target);
    let (file, name) = marker(node.path("before.tar"));
    let dropped = node.drop_in(&file);
    let daemon = node.start();
    wait_for_word(&daemon, "before.tar", "bundle imported");
    daemon.finish(target);

    node.configure_also("checksums: require");
    let daemon = node.start();
    wait_for_word(&daemon, "before.tar", "waiting");
    assert!(target.is_pinned(&name));
    let sidecar = node.images().join("before.tar.sha256");
    fs::write(sidecar, line(&sha256(&dropped), &file)).unwrap();
    wait_for_word(&daemon, "before.tar", "its checksum is right");
    daemon.finish(target);

    node.configure_also("allowedNames: [elsewhere.test/*]");
    let daemon = node.start();
    wait_for_word(&daemon, "before.tar", "allowedNames");
    daemon.finish(target);
}

on_each_containerd!(
    names_that_are_not_allowed_are_refused_and_the_others_land,
    a_bundle_with_a_wrong_checksum_is_imported_once_the_checksum_is_right,
    a_late_checksum_that_does_not_match_takes_the_bundle_out_of_the_desired_state,
    only_trusted_digests_are_imported_and_the_one_to_add_is_named,
);
on_the_fake!(
    a_thousand_files_that_are_no_bundles_do_not_flood_the_log,
    a_rule_that_comes_later_holds_for_known_bundles_too,
    an_image_with_an_allowed_and_a_forbidden_name_gets_the_allowed_one_and_a_warning,
    import_holds_a_bundle_against_the_checksum_beside_it,
    every_usual_form_of_a_checksum_is_good,
    a_required_checksum_is_waited_for_and_that_is_said_once,
    a_restart_reads_no_bundle_whose_checksum_was_checked,
    nothing_is_taken_from_below_a_folder_that_everybody_can_write,
    odd_things_in_the_folder_are_refused_each_with_its_reason,
    a_thousand_odd_files_do_not_flood_the_log,
);
