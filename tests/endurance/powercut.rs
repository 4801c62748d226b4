//! Cuts the power during imports, and starts containerd on the data that the disk had. A record
//! must imply whole blobs.
//!
//! containerd's root is an ext4 file system in a file. A cut is a copy of that file. containerd is
//! stopped between two system calls. Data that it and the kernel had not written by then is lost.
//! The test mounts the copy, which replays the journal, and starts another containerd on it. Then
//! it hashes every blob of every record. It also hashes the file of every snapshot: images are
//! unpacked before their records, so a named snapshot must have its files.

mod receipts;

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use bundle::fixtures::{Image, Layout};
use containerd::Client;
use fake_containerd::sha256;
use lab::{Containerd, Generation, Options};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::audit::Audit;
use super::dice::Dice;
use super::{Asked, say};
use crate::support::bundles::native;
use crate::support::mount::loop_device;
use crate::support::node::{Daemon, Node};
use crate::support::target::{KUBERNETES, PINNED};

/// Size of the disk in bytes. It is a sparse file in memory.
const DISK: u64 = 384 << 20;
/// Most bundles in the folder. The oldest is removed, so that the disk never fills up.
const MOST_BUNDLES: usize = 5;

/// The results of a series of cuts.
#[derive(Default)]
struct Figures {
    cuts: usize,
    with_journal: usize,
    in_mid_import: usize,
    records: usize,
    blobs: usize,
    snapshots: usize,
}

/// Settings that prevent every garbage collection, at the start and after changes.
const COLLECTS_NOTHING: &str = r#"[plugins."io.containerd.gc.v1.scheduler"]
startup_delay = "1h"
mutation_threshold = 1000000
"#;

/// Starts a containerd without CRI. Its root will be a disk.
fn containerd(generation: Generation, extra_config: &str) -> Option<Containerd> {
    let options = Options {
        cri: false,
        extra_config: extra_config.to_owned(),
        ..Options::default()
    };
    lab::shared::own(generation, &options)
}

/// The node whose power is cut, and the containerd that examines its disk.
struct Cuts {
    // Dropped in this order.
    daemon: Daemon,
    node: Node,
    client: Client,
    runtime: Runtime,
    node_containerd: Containerd,
    bench: Containerd,
    folder: TempDir,
    dice: Dice,
    dropped: VecDeque<(PathBuf, String)>,
    /// Content of the only file of each layer, by the name of the snapshot.
    files: HashMap<String, String>,
    serial: usize,
    figures: Figures,
}

impl Cuts {
    /// Prepares a series of cuts. `unpack` is the key of the configuration. To sync snapshots,
    /// containerd syncs the whole disk, which hides a missing sync of the blobs. So the test runs
    /// with and without `unpack`.
    fn new(mut node_containerd: Containerd, mut bench: Containerd, seed: u64, unpack: &str) -> Cuts {
        let folder = folder_in_memory();
        let disk = folder.path().join("disk.img");
        make_disk(&disk);
        node_containerd.stop().expect("containerd stops");
        bench.stop().expect("containerd stops");
        mount(&disk, &node_containerd.root());
        node_containerd.restart().expect("containerd starts on the disk");
        let runtime = Runtime::new().expect("threads for a client");
        let socket = node_containerd.socket();
        let node = Node::at(&socket, KUBERNETES);
        node.configure_also(&format!("cri: false\nunpack: {unpack}"));
        Cuts {
            daemon: node.start(),
            client: runtime
                .block_on(Client::connect(&socket, KUBERNETES))
                .expect("containerd is there"),
            node,
            runtime,
            node_containerd,
            bench,
            folder,
            dice: Dice::new(seed),
            dropped: VecDeque::new(),
            files: HashMap::new(),
            serial: 0,
            figures: Figures::default(),
        }
    }

    fn cut(&mut self) -> Result<(), String> {
        if self.dice.one_in(3) {
            return self.cut_at_a_record();
        }
        let importing = self.daemon.count("importing");
        self.drop_a_bundle();
        // Two of three cuts hit an import that has started. The others come at a random time.
        let at_import = !self.dice.one_in(3);
        let deadline = Instant::now() + Duration::from_millis(if at_import { 3000 } else { 0 });
        while Instant::now() < deadline && self.daemon.count("importing") == importing {
            thread::sleep(Duration::from_millis(2));
        }
        thread::sleep(self.dice.milliseconds(0..200));
        self.power_goes()
    }

    /// Cuts the power right after a record appears. Everything that the record needs must survive.
    fn cut_at_a_record(&mut self) -> Result<(), String> {
        self.drop_a_bundle();
        let (_, name) = self.dropped.back().expect("a bundle was copied");
        let deadline = Instant::now() + Duration::from_secs(60);
        let is_recorded = |image: &containerd::ImageRecord| image.name == *name;
        while !self.images().iter().any(is_recorded) {
            assert!(Instant::now() < deadline, "{name} is not imported");
            thread::sleep(Duration::from_millis(2));
        }
        self.power_goes()
    }

    fn power_goes(&mut self) -> Result<(), String> {
        let copy = self.copy_the_disk();
        self.look_at(&copy)?;
        self.figures.cuts += 1;
        Ok(())
    }

    fn images(&self) -> Vec<containerd::ImageRecord> {
        let images = self.runtime.block_on(self.client.images());
        images.expect("containerd answers")
    }

    fn drop_a_bundle(&mut self) {
        self.serial += 1;
        let name = format!("registry.test/cut-{}:1", self.serial);
        let mut image = Image::new(&name).platform(native());
        let mut contents = Vec::new();
        for _ in 0..self.dice.within(2..7) {
            let size = self.dice.within(10_000..900_000);
            let bytes = self.dice.bytes(size);
            contents.push(sha256(&bytes));
            image = image.layer(bytes);
        }
        let file = format!("cut-{}.tar", self.serial);
        let placed = self.node.path(&file);
        let archive = Layout::new().image(image).write_to(&placed);
        // The layers are not compressed, so their digests are also those in the config.
        let mut chain = String::new();
        for (layer, content) in archive.images[0].manifests[0].layers.iter().zip(contents) {
            chain = match chain.as_str() {
                "" => layer.to_string(),
                below => sha256(format!("{below} {layer}").as_bytes()),
            };
            self.files.insert(chain.clone(), content);
        }
        let place = self.node.images().join(&file);
        fs::rename(placed, &place).expect("the file can be moved");
        self.dropped.push_back((place, name));
        if self.dropped.len() > MOST_BUNDLES {
            let (oldest, _) = self.dropped.pop_front().expect("there are several");
            fs::remove_file(oldest).expect("the file exists");
            self.collect();
        }
    }

    /// Removes unpinned records, like kubelet.
    fn collect(&self) {
        for record in self
            .images()
            .iter()
            .filter(|record| !record.labels.contains_key(PINNED))
        {
            self.runtime
                .block_on(self.client.delete_image(&record.name, false))
                .expect("containerd answers");
        }
    }

    /// Copies the disk at one instant. No write may happen during the copy.
    fn copy_the_disk(&mut self) -> PathBuf {
        let pid = self.node_containerd.pid().expect("the process runs");
        send(pid, Signal::STOP);
        let disk = self.folder.path().join("disk.img");
        // Processes of other tests with mounts of their own can hold an earlier copy. A file that
        // is mounted already would show its old content, so each copy is another file.
        let copy = self.folder.path().join(format!("copy-{}.img", self.serial));
        let device = loop_device(&disk).expect("the file backs a loop device");
        loop {
            let before = writes(&device);
            run(Command::new("cp").arg("--sparse=always").args([&disk, &copy]));
            if before == writes(&device) {
                break;
            }
        }
        send(pid, Signal::CONT);
        copy
    }

    fn look_at(&mut self, copy: &Path) -> Result<(), String> {
        self.figures.with_journal += usize::from(has_journal_to_replay(copy));
        let root = self.bench.root();
        mount(copy, &root);
        self.bench
            .restart()
            .map_err(|error| format!("containerd does not start on the disk: {error:#}"))?;
        let lists = async {
            let client = Client::connect(&self.bench.socket(), KUBERNETES).await?;
            let leases = client.leases().await?.len();
            let snapshots = client.snapshots("overlayfs").await?;
            Ok::<_, containerd::Error>((client.images().await?, client.blobs().await?, leases, snapshots))
        };
        let (images, blobs, leases, snapshots) =
            self.runtime.block_on(lists).map_err(|error| error.to_string())?;
        let mut audit = Audit::of(&root);
        let broken = audit.broken(&images, &blobs);
        self.figures.in_mid_import += usize::from(leases > 0);
        self.figures.records += images.len();
        self.figures.blobs += audit.hashed();
        let damaged = snapshots.iter().find_map(|name| self.damage_of(name));
        self.figures.snapshots += snapshots.len();
        self.bench.kill().map_err(|error| error.to_string())?;
        run(Command::new("umount").arg(&root));
        fs::remove_file(copy).expect("the copy exists");
        match (broken.first(), damaged) {
            (Some(fault), _) => Err(format!("a record without its closure: {fault}")),
            (None, Some(fault)) => Err(fault),
            (None, None) => Ok(()),
        }
    }

    /// Returns the fault in the file of a snapshot's uppermost layer, on the copied disk.
    fn damage_of(&self, snapshot: &str) -> Option<String> {
        let wanted = self.files.get(snapshot).expect("no other program unpacks images");
        let folder = self.folder_of(snapshot);
        let found = fs::read(folder.join("file")).map(|bytes| sha256(&bytes));
        let is_whole = found.as_ref().is_ok_and(|found| found == wanted);
        (!is_whole).then(|| {
            format!(
                "snapshot {snapshot} in {} should have {wanted}: {found:?}",
                folder.display()
            )
        })
    }

    /// Returns the folder of a snapshot's own files. A view of the snapshot is mounted with this
    /// folder uppermost.
    fn folder_of(&self, snapshot: &str) -> PathBuf {
        let mut ctr = self.bench.ctr_in(KUBERNETES);
        let key = format!("view-{snapshot}");
        ctr.args(["snapshots", "view", "--target", "/nowhere", &key, snapshot]);
        let mut output = ctr.output().expect("ctr runs");
        if String::from_utf8_lossy(&output.stderr).contains("already exists") {
            // On a loaded machine, the client may request a view again that containerd has made
            // already.
            let mut ctr = self.bench.ctr_in(KUBERNETES);
            ctr.args(["snapshots", "mounts", "/nowhere", &key]);
            output = ctr.output().expect("ctr runs");
        }
        assert!(output.status.success(), "{output:?}");
        let mount = String::from_utf8(output.stdout).expect("a command");
        let uppermost = match mount.split_once("lowerdir=") {
            Some((_, lower)) => lower.split([':', ',', ' ', '\n']).next(),
            None => mount.split_whitespace().find(|word| word.starts_with('/')),
        };
        uppermost.unwrap_or_else(|| panic!("no folder in {mount}")).into()
    }
}

/// Returns a folder for disks, in memory if possible.
fn folder_in_memory() -> TempDir {
    let in_memory = Path::new("/dev/shm");
    let place = if in_memory.is_dir() {
        in_memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    TempDir::with_prefix_in("airgapd-disk-", place).expect("a folder")
}

/// Makes a sparse file with an empty file system.
fn make_disk(disk: &Path) {
    File::create(disk)
        .and_then(|file| file.set_len(DISK))
        .expect("a file");
    let mkfs = lab::parts::mkfs_ext4().expect("a program that makes file systems");
    run(Command::new(mkfs).args(["-q", "-F"]).arg(disk));
}

fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a process id")).expect("not zero");
    kill_process(pid, signal).expect("the process runs");
}

fn mount(image: &Path, folder: &Path) {
    fs::create_dir_all(folder).expect("a folder");
    run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(folder));
}

fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

/// Returns the finished writes to a device and the running ones (sysfs, block/stat: fields 5 and
/// 9).
fn writes(device: &str) -> (u64, u64) {
    let text = fs::read_to_string(format!("/sys/block/{device}/stat")).expect("there is sysfs");
    let fields: Vec<u64> = text
        .split_whitespace()
        .filter_map(|field| field.parse().ok())
        .collect();
    (fields[4], fields[8])
}

/// Returns true if ext4's journal needs a replay. The superblock is 1024 bytes into the disk,
/// `s_feature_incompat` at 96, and `RECOVER` is its third bit.
fn has_journal_to_replay(disk: &Path) -> bool {
    let mut features = [0; 4];
    File::open(disk)
        .and_then(|file| file.read_exact_at(&mut features, 1024 + 96))
        .expect("a superblock");
    u32::from_le_bytes(features) & 4 != 0
}

/// Returns true if this machine can mount files.
fn can_mount() -> bool {
    let mut modules = String::new();
    let read = File::open("/proc/filesystems").and_then(|mut file| file.read_to_string(&mut modules));
    read.is_ok() && modules.contains("ext4") && Path::new("/dev/loop-control").exists()
}

fn survive(generation: Generation, cuts: usize, seed: u64) {
    if !can_mount() {
        return lab::left_out::record("no loop devices or no ext4 here");
    }
    for unpack in ["none", "before-record"] {
        // The examined disk must be in the state of the cut.
        let (Some(node), Some(bench)) = (
            containerd(generation, ""),
            containerd(generation, COLLECTS_NOTHING),
        ) else {
            return;
        };
        let started = Instant::now();
        let mut series = Cuts::new(node, bench, seed, unpack);
        let all = (0..cuts).try_for_each(|_| series.cut());
        if let Err(why) = all.and_then(|()| series.cut_at_a_record()) {
            let before = series.figures.cuts;
            panic!("containerd {generation}, unpack {unpack}, seed {seed}, after {before} cuts: {why}");
        }
        let ledger = fs::read(series.node.ledger()).expect("the daemon has written something down");
        let ledger = serde_json::from_slice(&ledger).expect("the ledger is whole");
        super::blames_no_file(&ledger).expect("nothing is set aside");
        let Figures {
            cuts,
            with_journal,
            in_mid_import,
            records,
            blobs,
            snapshots,
        } = series.figures;
        say(&format!(
            "containerd {generation}, unpack {unpack}, seed {seed}: {cuts} power cuts in {} s, {with_journal} with a journal to \
             replay, {in_mid_import} with an import under way; {records} records looked at, {blobs} blobs hashed, {snapshots} \
             snapshots, 0 broken",
            started.elapsed().as_secs(),
        ));
        assert!(records > 0 && blobs > 0, "no record was examined");
        assert_eq!(
            snapshots > 0,
            unpack != "none",
            "snapshots are examined only with `unpack`"
        );
    }
}

#[test]
fn after_a_power_cut_records_have_whole_blobs_and_snapshots_whole_files_on_containerd_1_7() {
    survive(Generation::V1_7, 2, 17);
}

#[test]
fn after_a_power_cut_records_have_whole_blobs_and_snapshots_whole_files_on_containerd_2_3() {
    survive(Generation::V2_3, 2, 2);
}

/// Runs for `cargo xtask powercut`. Each series has as many cuts: without unpacking, with it, and
/// with receipts.
#[test]
#[ignore = "takes long: `cargo xtask powercut` runs it"]
fn as_many_power_cuts_as_asked_for() {
    let Asked { rounds, seed } = Asked::or(10);
    for generation in super::generations_asked_for() {
        survive(generation, rounds, seed);
        receipts::survive(generation, rounds, seed);
    }
}
