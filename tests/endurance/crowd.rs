//! A namespace with very many image records of other importers: the daemon's work, its duration,
//! its cost for containerd, and its memory.
//!
//! `cargo xtask crowd` creates 200,000 of them on real containerds. Their databases are in memory,
//! because the time to sync each record to a disk is not of interest.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use containerd::NewImage;
use lab::{Generation, Options};
use oci_spec::image::{Descriptor, Digest, MediaType};

use super::{Asked, generations_asked_for, say};
use crate::support::bundles::{self, image, text};
use crate::support::node::{Node, peak_memory};
use crate::support::target::{PINNED, run_on_own};
use crate::support::{Own, Target, on_the_fake, wait_for};

const OURS: &str = "registry.test/ours:1";
/// Most memory of the daemon, in bytes.
const MEMORY: u64 = 64 << 20;
/// Longest time for each step except filling the namespace, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// Returns records of other importers as nodes have them. Half are by digest, each of a different
/// image. Half are by tag, all of one image. Their labels have `labels` bytes.
fn records(count: usize, labels: usize) -> impl Iterator<Item = NewImage> {
    let digest = |number: usize| {
        // The first digits are spread evenly, like those of hashes.
        let spread = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        format!("sha256:{spread:016x}{number:048x}")
    };
    (0..count).map(move |number| {
        let repository = format!("registry.test/team-{}/app-{}", number % 37, number % 1009);
        let (name, target) = match number % 2 {
            0 => (format!("{repository}@{}", digest(number)), digest(number)),
            _ => (format!("{repository}:1.{number}"), digest(1)),
        };
        let target: Digest = target.parse().expect("a digest");
        NewImage {
            name,
            target: Descriptor::new(MediaType::ImageManifest, 1234, target),
            labels: BTreeMap::from([("theirs.test/note".to_owned(), "n".repeat(labels))]),
        }
    })
}

/// The list of these records has more than 16 MiB.
fn beside_thirty_thousand_records_of_others_the_daemon_does_its_work(target: &Target) {
    target.put_records(records(30_000, 450));
    look_after(target, || Duration::ZERO, Duration::ZERO);
}

#[test]
fn beside_thirty_thousand_records_of_others_the_daemon_does_its_work_on_containerd_2_3() {
    crowd_in_memory(Generation::V2_3, 30_000, 450, Duration::ZERO);
}

/// Runs for `cargo xtask crowd`, for some minutes.
#[test]
#[ignore = "takes long: `cargo xtask crowd` runs it"]
fn beside_as_many_records_of_others_as_asked_for_the_daemon_does_its_work() {
    let asked = Asked::or(200_000);
    for generation in generations_asked_for() {
        crowd_in_memory(generation, asked.rounds, 40, Duration::from_secs(10));
    }
}

/// Plays the scenario in memory. `idle` is the time to watch the daemon without work.
fn crowd_in_memory(generation: Generation, count: usize, labels: usize, idle: Duration) {
    let options = Options {
        cri: false,
        ..Options::default()
    };
    run_on_own(generation, &options, |own| {
        let Own { containerd, target } = own;
        containerd.stop().expect("the process ends");
        in_memory(&containerd.root());
        containerd.restart().expect("containerd starts");
        let began = Instant::now();
        target.put_records(records(count, labels));
        say(&format!(
            "containerd {}: {count} records made in {:.0} s",
            containerd.version_text(),
            began.elapsed().as_secs_f32()
        ));
        let pid = containerd.pid().expect("the process runs");
        look_after(target, || processor_time(pid), idle);
    });
}

/// Mounts memory on a folder. The cleanup of the private containerd unmounts it.
fn in_memory(folder: &Path) {
    let mut mount = Command::new("mount");
    let status = mount.args(["-t", "tmpfs", "tmpfs"]).arg(folder).status();
    assert!(status.expect("mount is in util-linux").success());
}

/// Returns the processor time that a process has used so far (proc_pid_stat(5)).
fn processor_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |at: usize| fields[at].parse::<u64>().expect("a number");
    // User and system time. A tick is 10 ms on every Linux that runs this test.
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// Makes the daemon do all its work for a bundle. Prints the duration of each step and its cost for
/// containerd.
fn look_after(target: &Target, cost: impl Fn() -> Duration, idle: Duration) {
    let node = Node::on(target);
    node.configure_also("cri: false\nresync: 1s");
    let timed = |what: &str, work: &mut dyn FnMut()| {
        let (began, before) = (Instant::now(), cost());
        work();
        let (took, spent) = (began.elapsed(), cost().saturating_sub(before));
        say(&format!(
            "{what}: {:.2} s, of containerd's time {:.2} s",
            took.as_secs_f32(),
            spent.as_secs_f32()
        ));
        took
    };
    let other = "registry.test/team-1/app-1:1.1";
    let before = target.expect_record(other);
    let is_in_place = || {
        let record = target.record(OURS);
        record.is_some_and(|record| record.labels.contains_key(PINNED))
    };
    let ledger = || fs::read_to_string(node.ledger()).unwrap_or_default();
    let daemon = node.start();
    bundles::write(&node.path("a.tar"), [image(OURS)]);
    timed("imported, from the start of the daemon", &mut || {
        node.drop_in(&node.path("a.tar"));
        wait_for(PATIENCE, "the image", is_in_place);
    });
    wait_for(PATIENCE, "it is written down", || ledger().contains(OURS));
    wait_for(PATIENCE, "leases are returned", || target.leases().is_empty());

    if let Some(fake) = target.as_fake() {
        // The first comparisons after an import check labels with a list.
        wait_for(PATIENCE, "comparisons that look up by name only", || {
            let (listed, looked_up) = (fake.calls("Images.List"), fake.calls("Images.Get"));
            wait_for(PATIENCE, "comparisons", || {
                fake.calls("Images.Get") >= looked_up + 6
            });
            fake.calls("Images.List") == listed
        });
    }
    if !idle.is_zero() {
        timed("nothing new, compared each second", &mut || {
            let until = Instant::now() + idle;
            wait_for(PATIENCE, "the time to pass", || Instant::now() >= until);
        });
    }

    timed("restored", &mut || {
        target.remove_record(OURS);
        wait_for(PATIENCE, "the record is back", is_in_place);
    });
    node.airgapd(["wait", "--timeout", "60s"]).exits(0);
    let status = timed("status", &mut || {
        let document = node.airgapd(["status", "-o", "json"]).exits(0).json();
        assert_eq!(document["bundles"][0]["state"], "done", "{document:#}");
    });
    assert!(status < Duration::from_secs(10), "{status:?}");
    let list = node.path("list.txt");
    fs::write(&list, OURS).unwrap();
    timed("verify", &mut || {
        node.airgapd(["verify", "--images", &text(&list)]).exits(0);
    });
    fs::write(&list, "registry.test/team-1/app-1:none").unwrap();
    timed("verify of a missing image", &mut || {
        let said = node.airgapd(["verify", "--images", &text(&list)]).exits(4).said();
        assert!(said.contains("registry.test/team-1/app-1:none"), "{said}");
    });
    timed("doctor", &mut || {
        let said = node.airgapd(["doctor"]).said();
        assert!(said.contains("no other importer uses this folder"), "{said}");
    });
    timed("the bundle leaves", &mut || {
        fs::remove_file(node.images().join("a.tar")).unwrap();
        wait_for(PATIENCE, "the pin is gone", || !is_in_place());
    });
    timed("the bundle returns", &mut || {
        node.drop_in(&node.path("a.tar"));
        wait_for(PATIENCE, "the pin is back", is_in_place);
    });
    timed("the image leaves the bundle", &mut || {
        bundles::write(&node.path("a.tar"), [image("registry.test/next:1")]);
        node.drop_in(&node.path("a.tar"));
        wait_for(PATIENCE, "the pin is gone", || !is_in_place());
    });
    let peak = peak_memory(daemon.pid()).unwrap();
    say(&format!("memory of the daemon: {} MiB at most", peak >> 20));
    let log = daemon.finish(target);
    assert!(!log.contains("went away") && !log.contains("size limit"), "{log}");
    timed("release", &mut || {
        drop(node.airgapd(["release", "--all"]).exits(0));
    });
    let next = target.labels("registry.test/next:1");
    assert!(!next.contains_key(PINNED), "{next:?}");
    assert_eq!(target.expect_record(other), before, "a record of another program");
    assert!(peak < MEMORY, "{peak} bytes");
}

on_the_fake!(beside_thirty_thousand_records_of_others_the_daemon_does_its_work);
