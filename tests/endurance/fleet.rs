//! A fleet of nodes, some of which fail: `config/fleet/rollout.sh` has to name each of them with
//! its cause, and the dashboard has to stay readable.
//!
//! Each node is the real program on a stand-in of its own. The nodes run in groups, as many at a
//! time as the machine bears. `cargo xtask fleet` has 500 of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bundle::fixtures::{Archive, digest_of};
use fake_containerd::{Fake, FakeConfig};
use serde_json::Value;
use tempfile::TempDir;

use super::dice::Dice;
use super::{Asked, say};
use crate::support::bundles::{self, image, multi_platform, text};
use crate::support::node::{Daemon, Node, configured_by_no_variable, program};
use crate::support::prometheus::{Pages, Prometheus};
use crate::support::{wait_for, wait_until};

/// Nodes at a time.
const GROUP: usize = 40;
/// Longest time until the nodes of a group have done all that they can, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);
/// The bundle of the rollout.
const BUNDLE: &str = "release.tar";
/// Most rows or lines of a panel of the dashboard.
const READABLE: usize = 50;

/// The ways in which a node fails, each with the word of the script for it.
const FAULTS: [(Fault, &str); 5] = [
    (Fault::Truncated, "damaged"),
    (Fault::OtherPlatform, "platform"),
    (Fault::FullDisk, "space"),
    (Fault::NoContainerd, "containerd"),
    (Fault::NoChecksum, "refused"),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The last third of the bundle is missing.
    Truncated,
    /// The bundle is for another platform.
    OtherPlatform,
    /// Less is free than `minFree`.
    FullDisk,
    NoContainerd,
    /// The node requires a checksum, and the file beside the bundle is missing.
    NoChecksum,
}

/// The faults of a fleet by node: 2 % of the nodes, and each fault at least once.
fn faults(count: usize, dice: &mut Dice) -> BTreeMap<usize, (Fault, &'static str)> {
    let failing = FAULTS.len().max(count.div_ceil(50));
    let mut faults = BTreeMap::new();
    while faults.len() < failing {
        let fault = FAULTS[faults.len() % FAULTS.len()];
        faults.entry(dice.within(0..count)).or_insert(fault);
    }
    faults
}

/// The bundles of a rollout.
struct Release {
    whole: Archive,
    foreign: Archive,
    images: Vec<String>,
}

impl Release {
    fn new() -> Release {
        let images: Vec<_> = ["shop", "till", "stock"]
            .map(|name| format!("registry.test/{name}:2"))
            .into();
        let foreign = images.iter().map(|name| multi_platform(name, &["linux/riscv64"]));
        Release {
            whole: bundles::layout(images.iter().map(|name| image(name))).build(),
            foreign: bundles::layout(foreign).build(),
            images,
        }
    }

    /// Puts the bundle with its checksum into the folder of a node.
    fn put(&self, node: &Node, fault: Option<Fault>) {
        let mut bytes = match fault {
            Some(Fault::OtherPlatform) => self.foreign.to_bytes(),
            _ => self.whole.to_bytes(),
        };
        let checksum = digest_of(&bytes).digest().to_owned();
        if fault == Some(Fault::Truncated) {
            bytes.truncate(bytes.len() / 3 * 2);
        }
        if fault != Some(Fault::NoChecksum) {
            let line = format!("{checksum}  {BUNDLE}\n");
            fs::write(node.images().join(format!("{BUNDLE}.sha256")), line).unwrap();
        }
        fs::write(node.images().join(BUNDLE), bytes).unwrap();
    }
}

/// Returns true if the configuration of a node requires the images. By default, it does not.
fn requires_images(at: usize) -> bool {
    at.is_multiple_of(2)
}

/// A running node of the fleet.
struct Member {
    name: String,
    fault: Option<Fault>,
    node: Node,
    daemon: Daemon,
    fake: Fake,
    _store: Option<TempDir>,
}

impl Member {
    fn start(at: usize, fault: Option<Fault>, release: &Release, names: &Path) -> Member {
        // Only the disk of this node is visible.
        let store = (fault == Some(Fault::FullDisk)).then(|| tempfile::tempdir().unwrap());
        let fake = Fake::stopped(FakeConfig {
            content_root: store.as_ref().map(|store| store.path().to_owned()),
            ..FakeConfig::default()
        });
        if fault != Some(Fault::NoContainerd) {
            fake.listen();
        }
        let node = Node::at(fake.socket(), "k8s.io");
        node.configure_also("checksums: require");
        if requires_images(at) {
            let list = node.path("images.txt");
            fs::write(&list, release.images.join("\n")).unwrap();
            node.configure_also(&format!("require: {{images: [{}]}}", text(&list)));
        }
        if fault == Some(Fault::FullDisk) {
            node.configure_also("minFree: 900TiB");
        }
        release.put(&node, fault);
        let name = format!("node-{at:03}");
        std::os::unix::fs::symlink(node.path(""), names.join(&name)).unwrap();
        let daemon = node.start_unready();
        Member {
            name,
            fault,
            node,
            daemon,
            fake,
            _store: store,
        }
    }

    /// Returns true if the daemon has done all that it can for now.
    fn is_at_rest(&self) -> bool {
        let notified = self.daemon.notified();
        let last = notified.lines().rfind(|line| line.starts_with("STATUS="));
        match self.fault {
            None => last.is_some_and(|line| line.starts_with("STATUS=healthy; 3 of 3 images")),
            // For half a minute, the daemon waits for the rest of an upload.
            Some(_) => last.is_some_and(|line| !line.starts_with("STATUS=working")),
        }
    }

    /// Checks that the node calls itself ready if nothing is wrong with it, and not otherwise.
    fn assert_ready_or_not(&self) {
        let (head, body) = self.node.ask(&format!("/ready?bundle={BUNDLE}"), &[]);
        let is_ready = head.starts_with("HTTP/1.1 200");
        assert_eq!(is_ready, self.fault.is_none(), "{}: {body}", self.name);
        let document: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(document["ready"], is_ready, "{document:#}");
        let is_away = document["cause"] == "containerd";
        assert_eq!(is_away, self.fault == Some(Fault::NoContainerd), "{document:#}");
    }

    /// Ends the node. Returns its metrics.
    fn end(self) -> String {
        let (_, metrics) = self.node.ask("/metrics", &[]);
        self.daemon.stop();
        assert_eq!(self.fake.violations(), Vec::<String>::new(), "{}", self.name);
        metrics
    }
}

/// Writes the program by which the script reaches a node, in place of ssh. It runs in the images
/// folder of the node.
fn reach(folder: &Path) -> PathBuf {
    let reach = folder.join("reach");
    let script = format!(
        "#!/bin/sh\nnode=$1\nshift\ncd '{}'/\"$node\"/images || exit 255\nPATH='{}':\"$PATH\"\nexec \"$@\" --config ../config.yaml\n",
        text(folder),
        Path::new(program().get_program())
            .parent()
            .expect("a folder")
            .display()
    );
    fs::write(&reach, script).unwrap();
    fs::set_permissions(&reach, fs::Permissions::from_mode(0o755)).unwrap();
    reach
}

/// Runs the script for these nodes. Returns the causes by node.
fn roll_out(folder: &Path, members: &[Member]) -> BTreeMap<String, String> {
    let list = folder.join("nodes.txt");
    let names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
    fs::write(&list, names.join("\n") + "\n").unwrap();
    let output = configured_by_no_variable(Command::new("sh"))
        .arg(lab::workspace().join("config/fleet/rollout.sh"))
        .args(["-t", "5s", "-n", "8", "-r", &text(&folder.join("reach")), BUNDLE])
        .stdin(fs::File::open(list).unwrap())
        .stderr(Stdio::inherit())
        .output()
        .expect("sh is there");
    let said = String::from_utf8(output.stdout).expect("text");
    let code = if said.is_empty() { 0 } else { 1 };
    assert_eq!(output.status.code(), Some(code), "{said}");
    let row = |line: &str| {
        let mut parts = line.split('\t').map(str::to_owned);
        (parts.next().expect("a name"), parts.next().expect("a cause"))
    };
    said.lines().map(row).collect()
}

/// Returns the largest number of rows or lines of a panel, and the time of its slowest query.
fn ask_the_dashboard(prometheus: &Prometheus, dashboard: &Value) -> (usize, Duration) {
    let (mut most, mut slowest) = (0, Duration::ZERO);
    for panel in dashboard["panels"].as_array().expect("panels") {
        let mut rows = 0;
        for target in panel["targets"].as_array().expect("targets") {
            let query = target["expr"].as_str().expect("an expression");
            let query = query.replace("$instance", ".*");
            let began = Instant::now();
            rows += prometheus.query(&query).len();
            slowest = slowest.max(began.elapsed());
        }
        assert!(rows <= READABLE, "{rows} rows in {}", panel["title"]);
        most = most.max(rows);
    }
    (most, slowest)
}

/// Rolls out a bundle to a fleet, and compares the script and the dashboard with the truth.
fn each_failing_node_is_named_with_its_cause(count: usize, seed: u64) {
    let began = Instant::now();
    let faults = faults(count, &mut Dice::new(seed));
    let release = Release::new();
    let folder = tempfile::tempdir().unwrap();
    reach(folder.path());
    let (mut told, mut pages) = (BTreeMap::new(), Vec::new());
    for group in (0..count).collect::<Vec<_>>().chunks(GROUP) {
        let fault = |at: &usize| faults.get(at).map(|(fault, _)| *fault);
        let start = |at: &usize| Member::start(*at, fault(at), &release, folder.path());
        let members: Vec<_> = group.iter().map(start).collect();
        for member in &members {
            let rest = format!("{} with {:?} is at rest", member.name, member.fault);
            wait_for(PATIENCE, &rest, || member.is_at_rest());
        }
        told.extend(roll_out(folder.path(), &members));
        for member in members {
            member.assert_ready_or_not();
            pages.push((member.name.clone(), member.end()));
        }
    }
    let truth = faults.iter();
    let truth: BTreeMap<_, _> = truth
        .map(|(at, (_, cause))| (format!("node-{at:03}"), (*cause).to_owned()))
        .collect();
    assert_eq!(told, truth, "seed {seed}");
    say(&format!(
        "{count} nodes, {} of them failing: each was named with its cause, in {:.0} s",
        truth.len(),
        began.elapsed().as_secs_f32()
    ));
    // A node that requires nothing has no problem with a bundle for another platform.
    let is_seen = |at: &usize, fault: Fault| requires_images(*at) || fault != Fault::OtherPlatform;
    let seen = faults.iter().filter(|(at, (fault, _))| is_seen(at, *fault));
    let seen = seen.map(|(at, _)| format!("node-{at:03}")).collect();
    the_dashboard_is_readable(pages, &seen);
}

/// Checks the dashboard on a Prometheus with the metrics of all nodes.
fn the_dashboard_is_readable(pages: Vec<(String, String)>, failing: &BTreeSet<String>) {
    let count = pages.len();
    let pages = Pages::serve(pages);
    let rules = lab::workspace().join("config/prometheus-rules.yaml");
    let Some(prometheus) = Prometheus::of_pages(&pages, &rules) else {
        return;
    };
    let one = |query: &str| prometheus.query(query).first().map(|(_, value)| *value);
    wait_until("Prometheus has read all nodes", || {
        one("count(airgapd_build_info)") == Some(count as f64)
    });
    let text = fs::read_to_string(lab::workspace().join("config/grafana-dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let (rows, slowest) = ask_the_dashboard(&prometheus, &dashboard);
    let mut query = dashboard["panels"].as_array().expect("panels").iter();
    let query = query.find(|panel| panel["title"] == "Verdicts on nodes with problems");
    let query = query.expect("a table")["targets"][0]["expr"].as_str().unwrap();
    let named = prometheus.query(&query.replace("$instance", ".*")).into_iter();
    let named = named.map(|(metric, _)| metric["instance"].as_str().unwrap().to_owned());
    assert_eq!(named.collect::<BTreeSet<_>>(), *failing);
    say(&format!(
        "{count} nodes have {} series. A panel has at most {rows} rows, and its slowest query took {} ms",
        one("sum(scrape_samples_scraped)").unwrap_or_default(),
        slowest.as_millis()
    ));
}

#[test]
fn each_failing_node_of_a_small_fleet_is_named_with_its_cause() {
    each_failing_node_is_named_with_its_cause(12, 1);
}

#[test]
fn a_node_that_cannot_be_reached_is_named_and_a_list_without_nodes_is_a_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("nodes.txt");
    let reach = folder.path().join("reach");
    fs::write(&reach, "exit 255\n").unwrap();
    let reach = format!("sh {}", text(&reach));
    let line = |node| format!("{node}\tunreachable\tcheck the connection to the node\n");
    for (nodes, code, said) in [
        ("one\n\ntwo", 1, line("one") + &line("two")),
        ("\n", 2, String::new()),
        ("  \n \n", 2, String::new()),
        ("", 2, String::new()),
    ] {
        let printed = answer_of(&list, nodes, &reach);
        assert_eq!((printed.0, printed.1), (code, said), "{nodes:?}");
    }
}

/// TCP alone keeps the connection to a node without power for hours.
#[test]
fn without_another_command_ssh_gives_up_a_silent_node_within_two_minutes() {
    let folder = tempfile::tempdir().unwrap();
    let ssh = folder.path().join("ssh");
    fs::write(&ssh, "#!/bin/sh\nprintf '%s\\n' \"$*\" >> \"$0.log\"\n").unwrap();
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
    let list = folder.path().join("nodes.txt");
    fs::write(&list, "one\n").unwrap();
    let output = Command::new("sh")
        .arg(lab::workspace().join("config/fleet/rollout.sh"))
        .arg(BUNDLE)
        .env("PATH", format!("{}:/usr/bin:/bin", text(folder.path())))
        .stdin(fs::File::open(list).unwrap())
        .output()
        .expect("sh is there");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let log = fs::read_to_string(folder.path().join("ssh.log")).unwrap();
    assert!(log.lines().count() > 1, "{log}");
    for line in log.lines() {
        let (options, _) = line.split_once(" one ").expect("the options precede the node");
        let seconds = |name: &str| -> u64 {
            let value = options.split_whitespace().find_map(|word| {
                let (key, value) = word.split_once('=')?;
                (key == name).then(|| value.parse().expect("a number"))
            });
            value.unwrap_or_else(|| panic!("{line} has no {name}"))
        };
        let silent = seconds("ServerAliveInterval") * seconds("ServerAliveCountMax");
        assert!((1..=120).contains(&silent), "{line}");
        assert!((1..=120).contains(&seconds("ConnectTimeout")), "{line}");
    }
}

#[test]
fn a_node_whose_check_is_killed_does_not_count_as_ready() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("nodes.txt");
    let reach = folder.path().join("reach");
    // The process above runs the check of this node.
    fs::write(&reach, "[ $1 = two ] && kill -9 $PPID\nexit 0\n").unwrap();
    let reach = format!("sh {}", text(&reach));
    assert_eq!(
        answer_of(&list, "one\nthree", &reach),
        (0, String::new(), String::new())
    );
    let (code, lines, error) = answer_of(&list, "one\ntwo\nthree", &reach);
    assert_eq!((code, lines.as_str()), (1, ""));
    assert!(error.contains("2 of 3 nodes have a result"), "{error}");
}

/// Runs the script for these nodes. Returns its exit status, its lines and its errors.
fn answer_of(list: &Path, nodes: &str, reach: &str) -> (i32, String, String) {
    fs::write(list, nodes).unwrap();
    let output = Command::new("sh")
        .arg(lab::workspace().join("config/fleet/rollout.sh"))
        .args(["-n", "2", "-r", reach, BUNDLE])
        .stdin(fs::File::open(list).unwrap())
        .output()
        .expect("sh is there");
    let of = |bytes| String::from_utf8(bytes).expect("text");
    let code = output.status.code().expect("it was not killed");
    (code, of(output.stdout), of(output.stderr))
}

/// Runs for `cargo xtask fleet`, for some minutes.
#[test]
#[ignore = "takes long: `cargo xtask fleet` runs it"]
fn each_failing_node_of_a_fleet_as_large_as_asked_for_is_named_with_its_cause() {
    let asked = Asked::or(500);
    each_failing_node_is_named_with_its_cause(asked.rounds, asked.seed);
}
