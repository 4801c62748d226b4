//! The cost of a daemon without work: its wake-ups and its memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fake_containerd::FakeConfig;
use lab::Generation;

use crate::support::bundles::{self, large, text};
use crate::support::node::{Daemon, memory_of};
use crate::support::prometheus::{free_port, get};
use crate::support::{Node, Target, on_the_fake, run_on_own, wait_for};

/// Number of bundles in the folder, each with an image of its own.
const BUNDLES: usize = 20;
/// Size of an image in bytes.
const SIZE: usize = 4 << 20;
/// Most memory of the daemon besides its code, in bytes. A test build has more code than the
/// shipped program, so the tests leave it out.
const MEMORY: u64 = 8 << 20;
/// The time to count wake-ups.
const WATCHED: Duration = Duration::from_secs(10);
/// Most wake-ups in that time. An idle daemon has some 8.
const WAKE_UPS: u64 = 15;
/// Number of times that are watched at most. On a busy machine the daemon also sleeps for
/// its own code and for the disk. The quietest time counts.
const TIMES: usize = 6;
/// Time after which the threads of the last import have ended, and the daemon is at rest.
const CALM: Duration = Duration::from_secs(15);

/// Returns how often each thread of a process went to sleep so far (proc_pid_status(5)). A thread
/// that sleeps so often is woken so often.
fn sleeps(pid: u32) -> BTreeMap<PathBuf, u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    let of = |task: PathBuf| {
        let status = fs::read_to_string(task.join("status")).ok()?;
        let mut lines = status.lines();
        let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        Some((task, count.trim().parse().ok()?))
    };
    tasks.filter_map(|task| of(task.ok()?.path())).collect()
}

/// Waits for this time to pass.
fn pass(time: Duration) {
    let until = Instant::now() + time;
    wait_for(2 * time, "the time to pass", || Instant::now() >= until);
}

/// Starts a daemon as the unit does, and waits until it has imported all bundles.
fn start(target: &Target, node: &Node, port: u16) -> Daemon {
    let list = node.path("list.txt");
    let names = (0..BUNDLES).map(|at| format!("registry.test/idle-{at}:1"));
    let names: Vec<_> = names.collect();
    fs::write(&list, names.join("\n")).unwrap();
    node.configure_also(&format!(
        "metricsAddress: 127.0.0.1:{port}\nrequire: {{images: [{}]}}",
        text(&list)
    ));
    for (at, name) in names.iter().enumerate() {
        let file = node.images().join(format!("bundle-{at}.tar"));
        bundles::write(&file, [large(name, SIZE)]);
    }
    let mut command = node.command(["run"]);
    // `WatchdogSec=` of the unit.
    command.env("WATCHDOG_USEC", "120000000");
    let daemon = Daemon::start(command, &node.path("notify.sock"));
    daemon.wait_until_ready();
    node.airgapd(["wait", "--required", "--timeout", "60s"]).exits(0);
    assert!(
        get(port, "/metrics")
            .expect("the server listens")
            .contains("airgapd_required_images 20")
    );
    daemon.wait_until("leases are returned", || target.leases().is_empty());
    pass(CALM);
    daemon
}

/// Checks a daemon with all that may wake it: metrics in a file and on an address, required images,
/// the watchdog, and a visible content store.
fn rest(target: &Target) {
    let node = Node::on(target);
    // `/run` is in memory. On a disk, the daemon would sleep in each write of the metrics file.
    let in_memory = Path::new("/dev/shm");
    let runtime = match in_memory.is_dir() {
        true => tempfile::tempdir_in(in_memory),
        false => tempfile::tempdir(),
    };
    let runtime = runtime.expect("a folder");
    node.configure(&format!(
        "imagesDir: {}\nstateDir: {}\nruntimeDir: {}\naddress: {}\nnamespace: {}\n",
        text(&node.images()),
        text(&node.state()),
        text(runtime.path()),
        text(target.socket()),
        target.namespace(),
    ));
    let daemon = start(target, &node, free_port());
    let mut counts = Vec::new();
    while counts.len() < TIMES && counts.last().is_none_or(|count| *count > WAKE_UPS) {
        let before = sleeps(daemon.pid());
        pass(WATCHED);
        let after = sleeps(daemon.pid()).into_iter();
        let since = |(task, count): (PathBuf, u64)| count - before.get(&task).copied().unwrap_or_default();
        counts.push(after.map(since).sum::<u64>());
    }
    let count = counts.iter().copied().min().unwrap_or_default();
    let memory = memory_of(daemon.pid(), "RssAnon:").expect("the process runs");
    let of_all = memory_of(daemon.pid(), "VmRSS:").expect("the process runs");
    say(&format!(
        "idle with {BUNDLES} bundles: {count} wake-ups in {} s, {} KiB of memory, {} KiB with the code",
        WATCHED.as_secs(),
        memory >> 10,
        of_all >> 10
    ));
    daemon.finish(target);
    assert!(count <= WAKE_UPS, "{count} wake-ups");
    assert!(memory <= MEMORY, "{memory} bytes");
}

#[allow(clippy::print_stdout, reason = "the figures are for docs/operating.md")]
fn say(text: &str) {
    println!("{text}");
}

fn an_idle_daemon_hardly_wakes_and_takes_less_than_8_mebibytes_besides_its_code(_: &Target) {
    let store = tempfile::tempdir().unwrap();
    let target = Target::fake(FakeConfig {
        content_root: Some(store.path().to_owned()),
        ..FakeConfig::default()
    });
    rest(&target);
}

/// Other tests on a shared containerd cause events, so the daemon has a containerd of its own.
#[test]
fn an_idle_daemon_beside_a_real_containerd_hardly_wakes_and_takes_less_than_8_mebibytes_besides_its_code() {
    run_on_own(Generation::V2_1, &lab::Options::default(), |own| {
        rest(&own.target);
    });
}

on_the_fake!(an_idle_daemon_hardly_wakes_and_takes_less_than_8_mebibytes_besides_its_code);
