//! The log under a flood of bad files, with an unstable containerd, and without a writable output.
//!
//! The number of lines stays small, and the daemon works on if it cannot write its log.
//!
//! The journal drops lines of a service that writes too many (the unit allows 10,000 in 30 s).
//! Those lines may be important. Pure functions limit the lines, and their tests simulate an hour
//! (`decide::line`, `decide::link` of the crate node). These tests check that the limits are in
//! force.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

use fake_containerd::Fault;
use rustix::process::{Pid, Signal, kill_process};
use tonic::Code;

use crate::support::bundles::{self, image, marker};
use crate::support::node::Daemon;
use crate::support::{Node, Target, on_the_fake, wait_for, wait_until};

/// Number of files, too many to name each.
const FILES: usize = 1000;

/// Most lines of a whole run. For each kind of line, at most twenty a minute name a file, and a
/// count follows. The kinds are: started, deferred, refused, ignored. A refused bundle that was
/// read also has a line for its image.
const MOST: usize = 200;

/// Number of ways in which a file can be bad.
const WAYS: usize = 8;

fn put_bad_file(node: &Node, number: usize) {
    let path = |end: &str| node.images().join(format!("file-{number}{end}"));
    let name = format!("registry.test/flood-{number}:1");
    let archive = || bundles::layout([image(&name)]).build();
    let whole = || archive().to_bytes();
    match number % WAYS {
        0 => fs::write(path(".jpg"), "no bundle at all\n".repeat(100)).unwrap(),
        1 => symlink("nowhere", path(".tar")).unwrap(),
        2 => fs::write(path(".tar"), "").unwrap(),
        3 => fs::write(path(".tar"), &whole()[..2000]).unwrap(),
        4 => {
            let mut archive = archive();
            let layer = archive.images[0].manifests[0].layers[0].clone();
            archive.corrupt(&layer);
            fs::write(path(".tar"), archive.to_bytes()).unwrap();
        }
        5 => {
            fs::write(
                path(".tar.sha256"),
                format!("{}  file-{number}.tar\n", "0".repeat(64)),
            )
            .unwrap();
            fs::write(path(".tar"), whole()).unwrap();
        }
        6 => fs::write(path(".tar.gz"), b"\x1f\x8b\x08\0\0\0\0\0\0\x03and nothing more").unwrap(),
        _ => fs::write(path(".partial.tmp"), whole()).unwrap(),
    }
}

/// Removes each bundle before its checksum, since the bundle would be good without one.
fn remove_bad_files(node: &Node) {
    let files = fs::read_dir(node.images()).unwrap();
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.retain(|path| path.file_name() != Some("good.tar".as_ref()));
    paths.sort();
    for path in paths {
        fs::remove_file(path).unwrap();
    }
}

/// This takes half a minute, because the daemon waits that long for the rest of an empty or cut
/// file.
fn a_thousand_files_that_are_bad_in_every_way_are_told_of_in_few_lines(target: &Target) {
    let node = Node::on(target);
    for number in 0..FILES {
        put_bad_file(&node, number);
    }
    let daemon = node.start();
    let (good, name) = marker(node.path("good.tar"));
    node.drop_in(&good);
    daemon.wait_until("the good bundle", || target.record(&name).is_some());
    // Two of the ways have no verdict yet, and the daemon never reads a third.
    let failed = format!("{} failed", FILES / WAYS * (WAYS - 3));
    wait_for(Duration::from_secs(240), "a verdict on the others", || {
        daemon.notified().contains(&failed) && daemon.count("are not imported yet") > 0
    });
    let status = node.airgapd(["status", "-o", "json"]).json();
    let listed = status["bundles"].as_array().expect("a list").len();
    assert!(listed > FILES / 2, "status has each of them: {listed}");

    // Their removal is no fault of the folder, because nothing was imported from them.
    remove_bad_files(&node);
    node.airgapd(["wait", "--timeout", "60s"]).exits(0);
    let log = daemon.finish(target);
    let lines = log.lines().count();
    assert!(lines < MOST, "{lines} lines:\n{log}");
    for told in [
        "link to nothing",
        "more files were not imported",
        "more imports were started",
        "more bundles are gone",
    ] {
        assert!(log.contains(told), "{told}:\n{log}");
    }
}

/// journald drops lines beyond the unit's burst. The lines of a thousand bundles are computed from
/// fewer bundles, since each bundle has the same lines.
fn the_lines_of_a_thousand_bundles_that_are_imported_at_once_are_within_the_units_burst(target: &Target) {
    const SOME: usize = 50;
    let node = Node::on(target);
    for number in 0..SOME {
        let name = |image| format!("registry.test/flood-{number}/{image}:1");
        let images = (0..3).map(|image| bundles::image(&name(image)));
        bundles::write(&node.images().join(format!("{number}.tar")), images);
    }
    let daemon = node.start();
    node.airgapd(["wait", "--timeout", "120s"]).exits(0);
    let log = daemon.finish(target);
    let of_bundles = log.lines().filter(|line| line.contains(".tar")).count();
    assert!(
        of_bundles >= SOME * 4,
        "a line for each image and one for the bundle: {log}"
    );
    let unit = fs::read_to_string(lab::workspace().join("systemd/airgapd.service")).expect("a unit");
    let burst = unit
        .lines()
        .find_map(|line| line.strip_prefix("LogRateLimitBurst="));
    let burst: usize = burst.expect("the unit has a burst").parse().expect("a number");
    let flood = of_bundles * 1000 / SOME;
    assert!(
        flood <= burst,
        "{flood} lines of a thousand bundles, {burst} are written"
    );
}

/// containerd answers, and then fails at the first real request, for example because of a damaged
/// database.
fn a_containerd_that_answers_and_fails_is_told_of_in_few_lines_and_not_run_against(target: &Target) {
    let fake = target.as_fake().expect("the target is the stand-in");
    fake.inject(Fault::FailAll {
        rpc: "Images.List",
        code: Code::Internal,
        message: "database is damaged".to_owned(),
    });
    let node = Node::on(target);
    let name = "registry.test/at-last:1";
    bundles::write(&node.images().join("bundle.tar"), [image(name)]);
    let daemon = node.start();
    let tries = || fake.calls("Images.List");
    daemon.wait_until("some tries", || tries() >= 8);
    // The ninth try starts after ten seconds at the earliest: 0.1 s doubled seven times, minus up
    // to a quarter at random.
    let log = daemon.log();
    assert!(
        log.contains("containerd went away") && log.contains("database is damaged"),
        "{log}"
    );
    assert!(log.lines().count() < 40, "{log}");

    fake.clear_faults();
    wait_until("the image", || target.record(name).is_some());
    daemon.finish(target);
}

/// A bundle may have thousands of images, and a node keeps its log for weeks.
fn of_a_bundle_of_many_images_the_first_are_told_of_and_the_others_counted(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let images = (0..300).map(|number| bundles::image(&format!("registry.test/many-{number}:1")));
    bundles::write(&node.path("many.tar"), images);
    node.drop_in(&node.path("many.tar"));
    daemon.wait_for_log("bundle imported");
    let log = daemon.finish(target);
    let lines = log.lines().filter(|line| line.contains("image created")).count();
    assert_eq!(lines, 200, "{log}");
    assert!(log.contains("more images like these: 100"), "{log}");
}

/// A full disk under the log, a reader that closed, or descriptors that the caller closed.
fn whatever_becomes_of_its_output_the_daemon_imports_and_answers(target: &Target) {
    for (number, outputs) in ["2>/dev/full", "2>&-", "0<&- 1>&- 2>&-", "2>&1 | head -c 1"]
        .iter()
        .enumerate()
    {
        let node = Node::on(target);
        let name = format!("registry.test/output{number}:1");
        bundles::write(&node.images().join("a.tar"), [image(&name)]);
        let program = node.command(["run"]);
        let mut command = Command::new("sh");
        // The shell waits for the whole pipe, and its exit code does not tell how the daemon ended.
        command.args(["-c", &format!("\"$@\" {outputs}")]).arg("sh");
        command.arg(program.get_program()).args(program.get_args());
        for (name, _) in program.get_envs() {
            command.env_remove(name);
        }
        let daemon = Daemon::start(command, &node.path("notify.sock"));
        daemon.wait_until_ready();
        daemon.wait_until("the image", || target.record(&name).is_some());
        let status = node.airgapd(["status", "-o", "json"]).json();
        let pid = status["daemon"]["pid"].as_i64().expect("the other side answers");
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("the process runs"), Signal::TERM).expect("the process runs");
        let mut daemon = daemon;
        daemon.wait();
        daemon.wait_until("its lease is returned", || target.leases().is_empty());
    }
}

fn a_thousand_odd_files_do_not_flood_the_log(target: &Target) {
    let node = Node::on(target);
    for number in 0..1000 {
        fs::write(node.images().join(format!(".hidden-{number}.tar")), "").unwrap();
    }
    let daemon = node.start();
    node.drop_marker(target, &daemon);
    let log = daemon.finish(target);
    let lines = log.lines().filter(|line| line.contains("ignored")).count();
    assert!((1..50).contains(&lines), "{lines} lines:\n{log}");
    assert!(log.contains("more"), "{log}");
}

/// Each file is wrong in its own way. A thousand of them are one mistake, and a bundle beside them
/// is imported.
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
    node.drop_marker(target, &daemon);
    let log = daemon.finish(target);
    assert!(log.lines().count() < 100, "{log}");
    assert!(log.contains("link to nothing"), "{log}");
}

on_the_fake!(
    of_a_bundle_of_many_images_the_first_are_told_of_and_the_others_counted,
    a_thousand_files_that_are_bad_in_every_way_are_told_of_in_few_lines,
    the_lines_of_a_thousand_bundles_that_are_imported_at_once_are_within_the_units_burst,
    a_containerd_that_answers_and_fails_is_told_of_in_few_lines_and_not_run_against,
    whatever_becomes_of_its_output_the_daemon_imports_and_answers,
    a_thousand_odd_files_do_not_flood_the_log,
    a_thousand_files_that_are_no_bundles_do_not_flood_the_log,
);
