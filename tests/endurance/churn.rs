//! Plays the changes of a day in a minute. The open files, memory and threads of the daemon must
//! not grow.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use fake_containerd::{Fake, FakeConfig};

use super::dice::Dice;
use super::{Asked, say};
use crate::support::bundles::{self, image};
use crate::support::node::{Daemon, Node};
use crate::support::target::PINNED;
use crate::support::{Target, wait_for};

/// Number of changes in a cycle. With a change every half minute, 144 cycles are a day.
const ACTS: usize = 20;
/// Most bundles in the folder.
const MOST_BUNDLES: usize = 30;
/// Allowed growth of the daemon after its warm-up, in bytes. Allocators keep this much in reserve.
const SLACK: u64 = 6 << 20;
/// Longest time until a cycle comes to rest, on a busy machine.
const REST_WITHIN: Duration = Duration::from_secs(60);

/// The resources of a process (proc_pid_status(5)).
#[derive(Clone, Copy, Debug)]
struct Holdings {
    files: u64,
    threads: u64,
    memory: u64,
}

impl Holdings {
    fn of(pid: u32) -> Holdings {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
        let number = |key: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(key))
                .expect("the kernel reports it");
            let number = line.trim_start_matches(':').trim().trim_end_matches(" kB");
            number.parse::<u64>().expect("a number")
        };
        Holdings {
            files: fs::read_dir(format!("/proc/{pid}/fd"))
                .expect("the process runs")
                .count() as u64,
            threads: number("Threads"),
            memory: number("VmRSS") * 1024,
        }
    }
}

struct Churn<'t> {
    target: &'t Target,
    fake: &'t Fake,
    node: Node,
    daemon: Daemon,
    dice: Dice,
    /// The digest of each bundle's image, by file name. The image is named after the file.
    there: BTreeMap<String, String>,
    serial: usize,
}

fn name_of(file: &str) -> String {
    format!("registry.test/{}:1", file.trim_end_matches(".tar"))
}

impl Churn<'_> {
    fn cycle(&mut self) {
        let mut removed = 0;
        let mut deleted = Vec::new();
        for _ in 0..ACTS {
            let files: Vec<String> = self.there.keys().cloned().collect();
            let one = self.dice.pick(&files).cloned();
            match (self.dice.within(0..10), one) {
                // If three bundles, and more than half of all, left at once, the daemon would
                // suspect the folder.
                (0..=3, Some(file)) if removed < 2 && files.len() > 6 => {
                    removed += 1;
                    self.there.remove(&file);
                    fs::remove_file(self.node.images().join(&file)).expect("the file exists");
                }
                (4..=5, Some(file)) => self.place(&file),
                (6..=7, Some(file)) => deleted.push(file),
                _ if files.len() < MOST_BUNDLES => {
                    self.serial += 1;
                    // Names come back after a while.
                    self.place(&format!("churn-{}.tar", self.serial % 50));
                }
                _ => {}
            }
        }
        self.rest();
        deleted.retain(|file| self.there.contains_key(file));
        deleted.dedup();
        for file in deleted.iter().take(2) {
            // A new file each time. The daemon restores the same image more and more slowly if
            // another program keeps removing it.
            self.place(file);
            self.rest();
            self.target.remove_record(&name_of(file));
        }
        self.rest();
        self.collect();
    }

    fn place(&mut self, file: &str) {
        let built = bundles::write(&self.node.path(file), [image(&name_of(file))]);
        fs::rename(self.node.path(file), self.node.images().join(file)).expect("the file can be moved");
        self.there
            .insert(file.to_owned(), built.images[0].root.to_string());
    }

    fn rest(&self) {
        wait_for(
            REST_WITHIN,
            "everything is in place, and no lease or ingest is left",
            || {
                let images = self.fake.images(self.target.namespace());
                let in_place = self.there.iter().all(|(file, digest)| {
                    images.get(&name_of(file)).is_some_and(|record| {
                        record.target.digest == *digest && record.labels.contains_key(PINNED)
                    })
                });
                in_place && self.fake.leases(self.target.namespace()).is_empty()
            },
        );
    }

    /// Removes unpinned records, like kubelet.
    fn collect(&self) {
        let images = self.fake.images(self.target.namespace());
        for name in images
            .into_iter()
            .filter(|(_, record)| !record.labels.contains_key(PINNED))
            .map(|(name, _)| name)
        {
            self.target.remove_record(&name);
        }
    }
}

/// Plays cycles, and compares the daemon's resources after a fifth of them with those at the end.
fn outlast(cycles: usize, seed: u64) {
    let target = Target::fake(FakeConfig::default());
    let node = Node::on(&target);
    node.configure_also("resync: 1s");
    let mut churn = Churn {
        daemon: node.start(),
        node,
        fake: target.as_fake().expect("the target is the stand-in"),
        target: &target,
        dice: Dice::new(seed),
        there: BTreeMap::new(),
        serial: 0,
    };
    let started = Instant::now();
    let (warm_up, pid) = (cycles.div_ceil(5), churn.daemon.pid());
    let mut warm = Holdings {
        files: 0,
        threads: 0,
        memory: 0,
    };
    let mut last = warm;
    for cycle in 0..cycles {
        churn.cycle();
        last = Holdings::of(pid);
        if cycle < warm_up {
            // The largest value of each counts, since the thread pool grows and shrinks.
            warm.files = warm.files.max(last.files);
            warm.threads = warm.threads.max(last.threads);
            warm.memory = warm.memory.max(last.memory);
        }
    }
    say(&format!(
        "{cycles} cycles ({} hours) in {} s: open files {} then {}, threads {} then {}, memory {} KiB then {} KiB",
        cycles * ACTS * 30 / 3600,
        started.elapsed().as_secs(),
        warm.files,
        last.files,
        warm.threads,
        last.threads,
        warm.memory >> 10,
        last.memory >> 10,
    ));
    let Churn { daemon, .. } = churn;
    assert!(last.files <= warm.files + 2, "open files: {warm:?} then {last:?}");
    assert!(
        last.threads <= warm.threads + 2,
        "threads: {warm:?} then {last:?}"
    );
    assert!(
        last.memory <= warm.memory + SLACK,
        "memory: {warm:?} then {last:?}"
    );
    // The pool releases its threads when there is no work.
    thread::yield_now();
    daemon.finish(&target);
    target.assert_tidy();
}

#[test]
fn an_hour_of_coming_and_going_leaves_nothing_behind_in_the_daemon() {
    outlast(8, 8);
}

/// Runs for `cargo xtask churn`.
#[test]
#[ignore = "takes long: `cargo xtask churn` runs it"]
fn as_much_churn_as_asked_for() {
    let Asked { rounds, seed } = Asked::or(144);
    outlast(rounds, seed);
}
