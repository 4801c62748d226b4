//! Files that crash the daemon, and kills from outside that are no file's fault.
//!
//! The program has no switch that makes it crash. So the daemon runs in a cell that is too small
//! for a bundle. A limit on its data segment makes an allocation fail, and the daemon aborts. In a
//! memory group of its own, the kernel kills it.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use bundle::fixtures::{Image, Layer, digest_of};
use fake_containerd::Fault;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::bundles::{self, image, native};
use crate::support::node::Daemon;
use crate::support::{Node, Place, Target, run_on, unique};

/// Memory of a cell beyond that of an idle daemon, in bytes. A usual bundle needs less, and a
/// bundle of [`write_heavy`] needs more.
const ROOM: u64 = 24 << 20;

/// Writes a sound bundle of a few MiB whose reading takes many times as much memory. Each of its
/// images has an index with manifests for other platforms, and a bundle may lack their content.
fn write_heavy(path: &Path, name: &str) {
    const OTHERS: usize = 9_500;
    let images = (0..5).map(|n| match n {
        0 => name.to_owned(),
        n => format!("{name}-{n}"),
    });
    let mut archive = bundles::layout(images.map(|name| image(&name).in_an_index())).build();
    let mut listing = archive.bytes_of("index.json");
    for (at, root) in archive
        .images
        .iter()
        .map(|image| image.root.clone())
        .enumerate()
        .collect::<Vec<_>>()
    {
        let file = archive.name_of(&root);
        let mut index: Value = serde_json::from_slice(&archive.bytes_of(&file)).unwrap();
        let other = |n: usize| {
            json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": format!("sha256:{:064x}", at * OTHERS + n),
                "size": 1,
                "platform": {"os": "linux", "architecture": "s390x"},
            })
        };
        index["manifests"]
            .as_array_mut()
            .unwrap()
            .extend((0..OTHERS).map(other));
        let bytes = serde_json::to_vec(&index).unwrap();
        let digest = digest_of(&bytes);
        archive.remove_blob(&root);
        let mut all: Value = serde_json::from_slice(&listing).unwrap();
        for descriptor in all["manifests"].as_array_mut().unwrap() {
            if descriptor["digest"] == root.to_string() {
                descriptor["digest"] = digest.to_string().into();
                descriptor["size"] = bytes.len().into();
            }
        }
        listing = serde_json::to_vec(&all).unwrap();
        archive.add(&file.replace(root.digest(), digest.digest()), bytes);
    }
    archive.set("index.json", listing);
    archive.write_to(path);
}

/// A cell in which a bundle kills the daemon.
enum Cell {
    /// A limit on data, in KiB.
    Data(u64),
    /// A memory group.
    Group(PathBuf),
}

impl Cell {
    /// Returns a cell with a limit on the data segment. An idle daemon has `used` bytes.
    fn of_data(used: u64) -> Cell {
        Cell::Data((used + ROOM) >> 10)
    }

    /// Returns a cell with a memory group, or `None` if this process may not make one.
    fn of_group(used: u64) -> Option<Cell> {
        let (root, limit) = [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", "memory.max"),
        ]
        .into_iter()
        .find(|(root, _)| Path::new(root).join("cgroup.procs").exists())?;
        let group = Path::new(root).join(format!("airgapd-test-{}", unique()));
        let made = fs::create_dir(&group).and_then(|()| {
            fs::write(group.join(limit), (used + ROOM).to_string())?;
            // Without swap, the memory cannot be moved elsewhere.
            let _ = fs::write(group.join("memory.swap.max"), "0");
            Ok(())
        });
        match made {
            Ok(()) => Some(Cell::Group(group)),
            Err(error) => {
                lab::left_out::record(&format!("no memory group: {error}"));
                None
            }
        }
    }

    fn start(&self, node: &Node) -> Daemon {
        let (script, argument) = match self {
            Cell::Data(limit) => ("ulimit -d \"$1\"; shift; exec \"$@\"", limit.to_string()),
            Cell::Group(group) => (
                "echo $$ > \"$1/cgroup.procs\"; shift; exec \"$@\"",
                group.display().to_string(),
            ),
        };
        let run = node.command(["run"]);
        let mut command = Command::new("sh");
        command
            .args(["-c", script, "sh", &argument])
            .arg(run.get_program());
        Daemon::start(like(&run, command), &node.path("notify.sock"))
    }
}

/// Returns a command with the arguments and the environment of another.
fn like(other: &Command, mut command: Command) -> Command {
    command.args(other.get_args());
    for (name, value) in other.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

impl Drop for Cell {
    fn drop(&mut self) {
        if let Cell::Group(group) = self {
            let _ = fs::remove_dir(group);
        }
    }
}

/// Returns a number of KiB from `/proc/<pid>/status`, in bytes.
fn memory(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line
        .and_then(|line| line.trim().strip_suffix("kB"))
        .expect("a number");
    number.trim().parse::<u64>().expect("a number") << 10
}

/// Returns the memory of an idle daemon in bytes, from this field of its status.
fn idle(node: &Node, field: &str) -> u64 {
    let daemon = node.start();
    daemon.wait_for_log("connected to containerd");
    let used = memory(daemon.pid(), field);
    daemon.stop();
    used
}

fn status_of(node: &Node, file: &str) -> Value {
    let document = node.airgapd(["status", "-o", "json"]).json();
    let bundles = document["bundles"].as_array().expect("a list").clone();
    let found = bundles.into_iter().find(|bundle| bundle["name"] == file);
    found.unwrap_or_else(|| panic!("no {file} in {document:#}"))
}

fn set_aside_in_metrics(node: &Node) -> String {
    let (_, text) = node.ask("/metrics", &[]);
    let mut lines = text
        .lines()
        .filter_map(|line| line.strip_prefix("airgapd_set_aside_bundles "));
    lines.next().expect("the metric is there").to_owned()
}

/// Lets the daemon die of `heavy.tar` in this cell `deaths` times, until it sets the file aside.
/// Returns the daemon that survives.
fn until_set_aside(node: &Node, cell: &Cell, signal: i32, deaths: usize) -> Daemon {
    for death in 0..deaths {
        let mut daemon = cell.start(node);
        let status = daemon.wait();
        assert_eq!(status.signal(), Some(signal), "{status}\n{}", daemon.log());
        let is_told = daemon.log().contains("the daemon before this one died of");
        assert!(is_told || death == 0, "{}", daemon.log());
        assert!(!daemon.log().contains("set aside:"), "{}", daemon.log());
    }
    let daemon = cell.start(node);
    daemon.wait_for_log("set aside: the daemon crashed over it 3 times in one boot");
    daemon
}

fn dies_of_a_file_three_times_and_then_leaves_it_alone(
    target: &Target,
    cell: impl Fn(&Node) -> Option<Cell>,
    signal: i32,
    cause: &str,
) {
    let node = Node::on(target);
    let Some(cell) = cell(&node) else { return };
    let (heavy, light) = ("registry.test/heavy:1", "registry.test/light:1");
    write_heavy(&node.images().join("heavy.tar"), heavy);
    bundles::write(&node.images().join("light.tar"), [image(light)]);
    let daemon = until_set_aside(&node, &cell, signal, 3);
    daemon.wait_until("the bundle beside it", || target.record(light).is_some());
    daemon.wait_until("the result is in the ledger", || {
        status_of(&node, "light.tar")["state"] == "done"
    });

    let line = daemon
        .log()
        .lines()
        .find(|line| line.contains("set aside:"))
        .map(str::to_owned)
        .unwrap();
    for words in [
        "heavy.tar",
        cause,
        "another version of airgapd",
        "`airgapd import ",
    ] {
        assert!(line.contains(words), "{words} in {line}");
    }
    let standing = status_of(&node, "heavy.tar");
    assert_eq!(
        (&standing["state"], &standing["error"]["class"]),
        (&json!("failed"), &json!("crash")),
        "{standing:#}"
    );
    assert_eq!(set_aside_in_metrics(&node), "1");
    let waited = node.airgapd(["wait", "--timeout", "60s"]).exits(1);
    assert!(waited.said().contains("set aside"), "{waited:?}");
    daemon.stop();

    // The same program leaves the file alone at the next start too, with or without enough memory.
    let daemon = node.start();
    daemon.wait_for_log("not imported: set aside");
    daemon.wait_until("a comparison has ended", || {
        status_of(&node, "light.tar")["state"] == "done"
    });
    assert_eq!(target.record(heavy), None);
    // The daemon tries a changed file again.
    let file = fs::File::options()
        .append(true)
        .open(node.images().join("heavy.tar"))
        .unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1))
        .unwrap();
    drop(file);
    daemon.wait_until("the changed file", || target.record(heavy).is_some());
    daemon.wait_until("the file is imported", || {
        status_of(&node, "heavy.tar")["state"] == "done"
    });
    assert_eq!(set_aside_in_metrics(&node), "0");
    daemon.finish(target);
}

#[test]
fn a_file_that_aborts_the_daemon_three_times_is_set_aside() {
    run_on(Place::Fake, |target| {
        let cell = |node: &Node| Some(Cell::of_data(idle(node, "VmData:")));
        dies_of_a_file_three_times_and_then_leaves_it_alone(target, cell, 6, "SIGABRT");
    });
}

#[test]
fn a_file_that_gets_the_daemon_killed_for_memory_three_times_is_set_aside() {
    run_on(Place::Fake, |target| {
        let cell = |node: &Node| Cell::of_group(idle(node, "RssAnon:"));
        dies_of_a_file_three_times_and_then_leaves_it_alone(target, cell, 9, "a memory kill (OOM)");
    });
}

/// A build that fixes the crash may have the same version, so the daemon compares the bytes of the
/// program.
#[test]
fn another_program_tries_a_file_again_that_was_set_aside_and_so_does_import_by_hand() {
    run_on(Place::Fake, |target| {
        let node = Node::on(target);
        let cell = Cell::of_data(idle(&node, "VmData:"));
        let name = "registry.test/heavy:1";
        write_heavy(&node.images().join("heavy.tar"), name);
        until_set_aside(&node, &cell, 6, 3).stop();

        let beside = target.elsewhere();
        let other = Node::on(&beside);
        other.import([node.images().join("heavy.tar")]).exits(0);
        assert!(beside.record(name).is_some());

        let program = node.program_for_all();
        fs::File::options()
            .append(true)
            .open(&program)
            .unwrap()
            .write_all(b"\n")
            .unwrap();
        let command = like(&node.command(["run"]), Command::new(program));
        let daemon = Daemon::start(command, &node.path("notify.sock"));
        daemon.wait_until("the file is imported", || target.record(name).is_some());
        daemon.finish(target);
    });
}

/// Two files were being imported at the crash. The daemon survives one of them and clears it.
#[test]
fn a_file_that_was_under_way_beside_the_one_that_kills_is_imported_alone_and_cleared() {
    run_on(Place::Fake, |target| {
        let node = Node::on(target);
        let cell = Cell::of_data(idle(&node, "VmData:"));
        let fake = target.as_fake().unwrap();
        let name = "registry.test/slow:1";
        // The file takes the lane of small bundles and leaves the main lane to the other file.
        let slow = Image::new(name).platform(native()).layer(unique());
        bundles::write(&node.images().join("slow.tar"), [slow]);
        fake.inject(Fault::Delay {
            rpc: "Content.Write",
            by: Duration::from_secs(2),
        });
        write_heavy(&node.path("heavy.tar"), "registry.test/heavy:1");
        let mut daemon = cell.start(&node);
        daemon.wait_until("the import is running", || !target.ingests().is_empty());
        fs::rename(node.path("heavy.tar"), node.images().join("heavy.tar")).unwrap();
        assert_eq!(daemon.wait().signal(), Some(6), "{}", daemon.log());
        fake.clear_faults();

        let mut daemon = cell.start(&node);
        assert_eq!(daemon.wait().signal(), Some(6), "{}", daemon.log());
        for file in ["heavy.tar", "slow.tar"] {
            let is_suspect = |line: &&str| line.contains(file) && line.contains("1 of 3 times");
            assert!(
                daemon.log().lines().any(|line| is_suspect(&line)),
                "{file}: {}",
                daemon.log()
            );
        }
        let daemon = until_set_aside(&node, &cell, 6, 1);
        assert!(
            !daemon.log().contains("of 3 times"),
            "the file was imported alone: {}",
            daemon.log()
        );
        daemon.wait_until("the other", || target.record(name).is_some());
        daemon.wait_until("the file is imported", || {
            status_of(&node, "slow.tar")["state"] == "done"
        });
        daemon.finish(target);
        let ledger: Value = serde_json::from_slice(&fs::read(node.ledger()).unwrap()).unwrap();
        let entries = ledger["bundles"].as_object().unwrap().values();
        let blamed: Vec<&Value> = entries.filter(|entry| entry.get("crashes").is_some()).collect();
        assert_eq!(blamed.len(), 1, "{blamed:?}");
        assert_eq!(blamed[0]["file"], "heavy.tar");
    });
}

/// SIGKILL, and SIGABRT, which the watchdog of a service manager sends.
#[test]
fn kills_from_outside_blame_no_file() {
    run_on(Place::Fake, |target| {
        let node = Node::on(target);
        let name = "registry.test/killed:1";
        let big = Image::new(name)
            .platform(native())
            .layer(unique())
            .with_layer(Layer::zeros(64 << 20));
        bundles::write(&node.images().join("killed.tar"), [big]);
        let fake = target.as_fake().unwrap();
        fake.inject(Fault::Delay {
            rpc: "Content.Write",
            by: Duration::from_secs(2),
        });
        for signal in [Signal::KILL, Signal::ABORT].repeat(4) {
            let mut daemon = node.start();
            daemon.wait_until("the import is running", || {
                fs::read_to_string(node.state().join("under-way"))
                    .is_ok_and(|text| text.contains("killed.tar"))
            });
            kill_process(Pid::from_raw(daemon.pid().cast_signed()).unwrap(), signal).unwrap();
            assert_eq!(daemon.wait().signal(), Some(signal.as_raw()));
        }
        fake.clear_faults();
        let daemon = node.start();
        daemon.wait_until("the image", || target.record(name).is_some());
        let log = daemon.finish(target);
        assert!(!log.contains("died"), "{log}");
        assert_eq!(
            fs::read(node.state().join("under-way")).unwrap(),
            b"",
            "no import is running"
        );
    });
}
