//! The log under a flood, and without a place to go: how many lines come of very many bad files,
//! and of a containerd that is no use for long; and that the daemon works on where the log cannot
//! be written.
//!
//! The journal drops lines of a service that writes too many (the unit allows 10,000 in 30 s), and
//! those may be the ones that matter. What bounds them is pure and tested beside it
//! (`decide::line`, `decide::link` of the crate node, an hour in simulated time); here it is seen
//! to be in force.

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

/// A thousand files cannot be told of one by one.
const FILES: usize = 1000;

/// Lines that a whole run may have. Each kind of line has twenty by name and a count, at most, in a
/// minute: files begun with, put off, refused, ignored; a refused bundle that was read has a line
/// for its image, too.
const MOST: usize = 200;

/// The ways in which a file can be bad.
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

/// Each bundle before its checksum: without one it would be good.
fn remove_bad_files(node: &Node) {
    let files = fs::read_dir(node.images()).unwrap();
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.retain(|path| path.file_name() != Some("good.tar".as_ref()));
    paths.sort();
    for path in paths {
        fs::remove_file(path).unwrap();
    }
}

/// Takes half a minute: for so long a file that is empty or cut off may go on.
fn a_thousand_files_that_are_bad_in_every_way_are_told_of_in_few_lines(target: &Target) {
    let node = Node::on(target);
    for number in 0..FILES {
        put_bad_file(&node, number);
    }
    let daemon = node.start();
    let (good, name) = marker(node.path("good.tar"));
    node.drop_in(&good);
    daemon.wait_until("the good bundle", || target.record(&name).is_some());
    // Two of the ways are no verdict yet, and one is never looked at.
    let failed = format!("{} failed", FILES / WAYS * (WAYS - 3));
    wait_for(Duration::from_secs(240), "a verdict on the others", || {
        daemon.notified().contains(&failed) && daemon.count("are not imported yet") > 0
    });
    let status = node.airgapd(["status", "-o", "json"]).json();
    let listed = status["bundles"].as_array().expect("a list").len();
    assert!(listed > FILES / 2, "status has each of them: {listed}");

    // That they go is no fault of the folder's: nothing was ever imported of them.
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

/// journald drops what a service writes beyond the unit's burst. What a thousand bundles come to
/// follows from fewer: each of them has the same lines.
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
    let burst: usize = burst.expect("it has a burst").parse().expect("a number");
    let flood = of_bundles * 1000 / SOME;
    assert!(
        flood <= burst,
        "{flood} lines of a thousand bundles, {burst} are written"
    );
}

/// It answers, and then fails at the first thing that matters: a damaged database, for instance.
fn a_containerd_that_answers_and_fails_is_told_of_in_few_lines_and_not_run_against(target: &Target) {
    let fake = target.as_fake().expect("it is the stand-in");
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
    // The ninth comes after ten seconds at the soonest: 0.1 s doubled seven times, of which chance
    // takes a quarter.
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

/// A bundle may have thousands of images, and the log of a node is kept for weeks.
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

/// A full disk below the log, a reader that has gone, descriptors that were closed by whoever
/// started it.
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
        // The shell waits for all of a pipe, and its own end tells nothing.
        command.args(["-c", &format!("\"$@\" {outputs}")]).arg("sh");
        command.arg(program.get_program()).args(program.get_args());
        for (name, _) in program.get_envs() {
            command.env_remove(name);
        }
        let daemon = Daemon::start(command, &node.path("notify.sock"));
        daemon.wait_until_ready();
        daemon.wait_until("the image", || target.record(&name).is_some());
        let status = node.airgapd(["status", "-o", "json"]).json();
        let pid = status["daemon"]["pid"].as_i64().expect("it answers");
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("it runs"), Signal::TERM).expect("it runs");
        let mut daemon = daemon;
        daemon.wait();
        daemon.wait_until("its lease is given back", || target.leases().is_empty());
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

/// Each of them is wrong in its own way; a thousand of them are one mistake, and a bundle beside
/// them lands.
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
