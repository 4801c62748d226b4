//! A day's coming and going in a minute: open files, memory and threads of the daemon do not grow
//! with it.

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

/// How many things happen in one cycle; at one in half a minute, 144 cycles are a day.
const ACTS: usize = 20;
/// How many bundles lie in the folder at most.
const MOST_BUNDLES: usize = 30;
/// How much larger the daemon may be at the end than when it had warmed up, in bytes: what
/// allocators keep in reserve.
const SLACK: u64 = 6 << 20;
/// For a cycle to come to rest on a busy machine.
const REST_WITHIN: Duration = Duration::from_secs(60);

/// What a process holds (proc_pid_status(5)).
#[derive(Clone, Copy, Debug)]
struct Holdings {
    files: u64,
    threads: u64,
    memory: u64,
}

impl Holdings {
    fn of(pid: u32) -> Holdings {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let number = |key: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(key))
                .expect("the kernel says so");
            let number = line.trim_start_matches(':').trim().trim_end_matches(" kB");
            number.parse::<u64>().expect("a number")
        };
        Holdings {
            files: fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count() as u64,
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
    /// Which digest the image of each bundle has, by file name; the image is named after the file.
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
                // Three at once and more than half of them would be a fault of the folder's.
                (0..=3, Some(file)) if removed < 2 && files.len() > 6 => {
                    removed += 1;
                    self.there.remove(&file);
                    fs::remove_file(self.node.images().join(&file)).expect("it is there");
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
            // A new file each time: who removes an image again and again is taken at his word.
            self.place(file);
            self.rest();
            self.target.remove_record(&name_of(file));
        }
        self.rest();
        self.collect();
    }

    fn place(&mut self, file: &str) {
        let built = bundles::write(&self.node.path(file), [image(&name_of(file))]);
        fs::rename(self.node.path(file), self.node.images().join(file)).expect("it can be moved");
        self.there
            .insert(file.to_owned(), built.images[0].root.to_string());
    }

    fn rest(&self) {
        wait_for(REST_WITHIN, "everything is in place and nothing is held", || {
            let images = self.fake.images(self.target.namespace());
            let in_place = self.there.iter().all(|(file, digest)| {
                images.get(&name_of(file)).is_some_and(|record| {
                    record.target.digest == *digest && record.labels.contains_key(PINNED)
                })
            });
            in_place && self.fake.leases(self.target.namespace()).is_empty()
        });
    }

    /// Removes what nobody pins any more, as kubelet does.
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

/// Plays cycles, and compares what the daemon holds after a fifth of them with what it holds at the
/// end.
fn outlast(cycles: usize, seed: u64) {
    let target = Target::fake(FakeConfig::default());
    let node = Node::on(&target);
    node.configure_also("resync: 1s");
    let mut churn = Churn {
        daemon: node.start(),
        node,
        fake: target.as_fake().expect("it is one"),
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
            // The most of each: the pool of threads breathes.
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
    // The pool gives its threads back when nothing is to be done.
    thread::yield_now();
    daemon.finish(&target);
    target.assert_tidy();
}

#[test]
fn an_hour_of_coming_and_going_leaves_nothing_behind_in_the_daemon() {
    outlast(8, 8);
}

/// `cargo xtask churn`.
#[test]
#[ignore = "takes as long as asked for; `cargo xtask churn` runs it"]
fn as_much_churn_as_asked_for() {
    let Asked { rounds, seed } = Asked::or(144);
    outlast(rounds, seed);
}
