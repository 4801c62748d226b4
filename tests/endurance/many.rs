//! Many bundles with the same images: no label overflows, a start without work is quick, and memory
//! stays small.

use std::fs;
use std::time::{Duration, Instant};

use super::say;
use crate::support::bundles::{self, image};
use crate::support::node::{Daemon, Node, peak_memory};
use crate::support::target::BUNDLE;
use crate::support::{Target, on_the_fake, wait_for};

/// Most memory of the daemon, in bytes.
const MEMORY: u64 = 64 << 20;
/// Longest time for all imports, for a program without optimisation on a busy machine.
const IMPORTED_WITHIN: Duration = Duration::from_secs(300);
/// Longest time for a start without work, in the same conditions. An optimised program takes less
/// than 2 s.
const STARTED_WITHIN: Duration = Duration::from_secs(20);

/// More names than fit into one label (containerd allows 4096 bytes).
fn many_bundles_of_the_same_images_are_looked_after(target: &Target) {
    look_after(150, target);
}

/// Runs for `cargo xtask many`, for a minute.
#[test]
#[ignore = "takes long: `cargo xtask many` runs it"]
fn a_thousand_bundles_of_the_same_images_are_looked_after() {
    crate::support::run_on(crate::support::Place::Fake, |target| look_after(1000, target));
}

fn look_after(count: usize, target: &Target) {
    let all_in_place = |daemon: &Daemon| {
        daemon
            .notified()
            .contains(&format!("healthy; 2 of 2 images in place, {count} bundles"))
    };
    let node = Node::on(target);
    let names = ["registry.test/shared-a:1", "registry.test/shared-b:1"];
    bundles::write(&node.path("bundle.tar"), names.map(image));
    for number in 0..count {
        fs::copy(
            node.path("bundle.tar"),
            node.images().join(format!("bundle-{number}.tar")),
        )
        .unwrap();
    }
    let started = Instant::now();
    let daemon = node.start();
    wait_for(IMPORTED_WITHIN, "all of them", || all_in_place(&daemon));
    let imported = started.elapsed();
    let first_peak = peak_memory(daemon.pid()).unwrap();
    for name in names {
        let sources = target
            .labels(name)
            .keys()
            .filter(|key| key.starts_with(BUNDLE))
            .count();
        assert_eq!(sources, count, "{name} has a label for each");
    }
    let log = daemon.finish(target);
    assert!(!log.contains("ERROR"), "{log}");

    let changes = target.watch();
    let started = Instant::now();
    let daemon = node.start();
    wait_for(STARTED_WITHIN, "the daemon knows all bundles", || {
        all_in_place(&daemon)
    });
    let restarted = started.elapsed();
    let second_peak = peak_memory(daemon.pid()).unwrap();
    assert_eq!(changes.so_far(), [], "nothing was to be done");
    let log = daemon.finish(target);
    assert!(!log.contains("importing"), "no bundle is opened: {log}");
    say(&format!(
        "{count} bundles: imported in {:.1} s with {} MiB, started again in {} ms with {} MiB",
        imported.as_secs_f32(),
        first_peak >> 20,
        restarted.as_millis(),
        second_peak >> 20,
    ));
    assert!(
        first_peak < MEMORY && second_peak < MEMORY,
        "{first_peak} and {second_peak} bytes"
    );
}

on_the_fake!(many_bundles_of_the_same_images_are_looked_after);
