//! Power cuts with receipts. Bundles, the state folder and containerd's root are on one disk. The
//! daemon and containerd go on with the disk as it was at the cut.
//!
//! Each bundle was synced before the cut. So its images must come back whole from file or receipt.
//! Otherwise the receipt is degraded and names them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use bundle::fixtures::{Image, Layout};
use containerd::{Client, ImageRecord};
use lab::{Containerd, Generation};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::super::audit::Audit;
use super::super::dice::Dice;
use super::super::{blames_no_file, say};
use super::{can_mount, folder_in_memory, has_journal_to_replay, make_disk, mount, run, send, writes};
use crate::support::bundles::native;
use crate::support::mount::loop_device;
use crate::support::node::{Daemon, Node};
use crate::support::target::{KUBERNETES, PINNED};

/// Longest time until all images are back after a cut, on a busy machine.
const BACK_WITHIN: Duration = Duration::from_secs(60);
/// Said by the daemon after it has removed a file.
const TAKEN: &str = "its receipt takes its place";

/// The results of a series of cuts.
#[derive(Debug, Default)]
struct Figures {
    cuts: usize,
    with_journal: usize,
    /// Bundles after the cuts: those with a file only, with both, with a receipt only, and those
    /// whose removal the cut has interrupted.
    files: usize,
    both: usize,
    receipts: usize,
    going: usize,
    /// Images without a record after the cuts.
    without_record: usize,
    degraded: usize,
    blobs: usize,
}

/// A node whose disk goes through power cuts.
struct Reboots {
    // Dropped in this order.
    daemon: Option<Daemon>,
    node: Node,
    runtime: Runtime,
    containerd: Containerd,
    disk: PathBuf,
    folder: TempDir,
    dice: Dice,
    /// Name and target of the image of each bundle, by file name.
    shelf: BTreeMap<String, (String, String)>,
    figures: Figures,
}

impl Reboots {
    fn new(mut containerd: Containerd, seed: u64) -> Reboots {
        let folder = folder_in_memory();
        let disk = folder.path().join("disk-0.img");
        make_disk(&disk);
        containerd.stop().expect("containerd stops");
        mount(&disk, &containerd.root());
        for name in ["images", "state"] {
            fs::create_dir_all(containerd.root().join("node").join(name)).expect("a folder");
        }
        containerd.restart().expect("containerd starts on the disk");
        let node = Node::at(&containerd.socket(), KUBERNETES);
        node.configure_also("cri: false\nunpack: none\nafterImport: receipt");
        let mut reboots = Reboots {
            daemon: None,
            node,
            runtime: Runtime::new().expect("threads for a client"),
            containerd,
            disk,
            folder,
            dice: Dice::new(seed),
            shelf: BTreeMap::new(),
            figures: Figures::default(),
        };
        reboots.bind();
        reboots.daemon = Some(reboots.node.start());
        reboots
    }

    /// Shows the folders of the disk under the names that the daemon knows.
    fn bind(&self) {
        let on_disk = self.containerd.root().join("node");
        for (name, folder) in [("images", self.node.images()), ("state", self.node.state())] {
            run(Command::new("mount")
                .arg("--bind")
                .arg(on_disk.join(name))
                .arg(folder));
        }
    }

    fn unmount(&self) {
        for folder in [self.node.images(), self.node.state(), self.containerd.root()] {
            run(Command::new("umount").arg(folder));
        }
    }

    /// Places a bundle that survives any cut: its bytes and its name are synced.
    fn drop_a_bundle(&mut self) {
        let serial = self.shelf.len() + 1;
        let name = format!("registry.test/receipt-{serial}:1");
        let mut image = Image::new(&name).platform(native());
        for _ in 0..self.dice.within(2..6) {
            let size = self.dice.within(10_000..400_000);
            image = image.layer(self.dice.bytes(size));
        }
        let (file, placed) = (format!("cut-{serial}.tar"), self.node.images().join(".placing"));
        let archive = Layout::new().image(image).write_to(&placed);
        let sync = |path: &Path| File::open(path).and_then(|file| file.sync_all());
        sync(&placed).expect("the bundle can be synced");
        fs::rename(&placed, self.node.images().join(&file)).expect("the file can be moved");
        sync(&self.node.images()).expect("the folder can be synced");
        let target = archive.images[0].root.to_string();
        self.shelf.insert(file, (name, target));
    }

    /// Places a bundle, and cuts the power at a random instant: during its import, its receipt, or
    /// the removal of its file.
    fn cut(&mut self) -> Result<(), String> {
        let daemon = self.daemon.as_ref().expect("the daemon runs");
        let (importing, taken) = (daemon.count("importing"), daemon.count(TAKEN));
        let changed = self.changed();
        self.drop_a_bundle();
        let sign = self.dice.within(0..4);
        let (soon, late) = (self.dice.milliseconds(0..25), self.dice.milliseconds(0..250));
        let daemon = self.daemon.as_ref().expect("the daemon runs");
        let is_there = || match sign {
            0 => daemon.count("importing") > importing,
            1 | 2 => self.changed() != changed,
            _ => daemon.count(TAKEN) > taken,
        };
        let deadline = Instant::now() + BACK_WITHIN;
        while !is_there() {
            if Instant::now() > deadline {
                return Err("the bundle is not imported".to_owned());
            }
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(if sign == 0 { late } else { soon });
        self.power_goes_and_comes_back()?;
        self.figures.cuts += 1;
        Ok(())
    }

    /// Returns the time of the last change of the folder of receipts.
    fn changed(&self) -> Option<SystemTime> {
        let folder = fs::metadata(self.node.state().join("receipts"));
        folder.and_then(|folder| folder.modified()).ok()
    }

    fn power_goes_and_comes_back(&mut self) -> Result<(), String> {
        let daemon = self.daemon.take().expect("the daemon runs");
        let pids = [daemon.pid(), self.containerd.pid().expect("the process runs")];
        pids.iter().for_each(|pid| send(*pid, Signal::STOP));
        let copy = self
            .folder
            .path()
            .join(format!("disk-{}.img", self.figures.cuts + 1));
        let device = loop_device(&self.disk).expect("the file backs a loop device");
        loop {
            let before = writes(&device);
            run(Command::new("cp")
                .arg("--sparse=always")
                .args([&self.disk, &copy]));
            if before == writes(&device) {
                break;
            }
        }
        daemon.kill();
        self.containerd.kill().map_err(|error| error.to_string())?;
        self.unmount();
        fs::remove_file(&self.disk).map_err(|error| error.to_string())?;
        self.disk = copy;
        self.figures.with_journal += usize::from(has_journal_to_replay(&self.disk));
        mount(&self.disk, &self.containerd.root());
        self.bind();
        self.look_at_files()?;
        self.look_at_the_ledger()?;
        self.containerd
            .restart()
            .map_err(|error| format!("containerd does not start on the disk: {error:#}"))?;
        let missing = self.audit()?;
        self.figures.without_record += missing.len();
        self.daemon = Some(self.node.start());
        self.wait_until_all_are_back()
    }

    /// Checks that each bundle has its file or its receipt.
    fn look_at_files(&mut self) -> Result<(), String> {
        for file in self.shelf.keys() {
            let placed = self.node.images().join(file).exists();
            let going = self.node.images().join(format!(".airgapd-going-{file}")).exists();
            let figures = &mut self.figures;
            match (
                placed,
                going,
                self.node.state().join("receipts").join(file).exists(),
            ) {
                (_, true, true) => figures.going += 1,
                (true, _, true) => figures.both += 1,
                (true, _, false) => figures.files += 1,
                (false, false, true) => figures.receipts += 1,
                (false, true, false) => return Err(format!("{file} was on its way out without a receipt")),
                (false, false, false) => return Err(format!("{file} has neither its file nor its receipt")),
            }
        }
        Ok(())
    }

    /// Checks the ledger, if the disk has one, and makes it one of an earlier boot. This machine
    /// has not rebooted.
    fn look_at_the_ledger(&self) -> Result<(), String> {
        let Ok(bytes) = fs::read(self.node.ledger()) else {
            return Ok(());
        };
        let ledger = serde_json::from_slice(&bytes);
        let mut ledger: serde_json::Value =
            ledger.map_err(|error| format!("the ledger is broken: {error}"))?;
        blames_no_file(&ledger)?;
        ledger["context"]["boot"] = "the boot before the cut".into();
        fs::write(self.node.ledger(), ledger.to_string()).map_err(|error| error.to_string())
    }

    /// Checks that a record implies whole blobs. Returns the images that lack their record.
    fn audit(&mut self) -> Result<Vec<String>, String> {
        let lists = async {
            let client = Client::connect(&self.containerd.socket(), KUBERNETES).await?;
            Ok::<_, containerd::Error>((client.images().await?, client.blobs().await?))
        };
        let (images, blobs) = self.runtime.block_on(lists).map_err(|error| error.to_string())?;
        let mut audit = Audit::of(&self.containerd.root());
        if let Some(fault) = audit.broken(&images, &blobs).first() {
            return Err(format!("a record without its closure: {fault}"));
        }
        self.figures.blobs += audit.hashed();
        let wanted = self.shelf.values();
        let missing = wanted.filter(|(name, target)| !is_in_place(&images, name, target));
        Ok(missing.map(|(name, _)| name.clone()).collect())
    }

    /// Waits until each image is in place, or the status says that its receipt is degraded.
    fn wait_until_all_are_back(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + BACK_WITHIN;
        loop {
            let missing = self.audit()?;
            if missing.is_empty() {
                return Ok(());
            }
            let named = self.degraded();
            if missing.iter().all(|name| named.contains(name)) {
                self.figures.degraded += missing.len();
                return Ok(());
            }
            if Instant::now() > deadline {
                let log = self.daemon.take().map(Daemon::kill).unwrap_or_default();
                return Err(format!("{missing:?} do not come back, and are not named\n{log}"));
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Returns the errors of degraded receipts.
    fn degraded(&self) -> String {
        let shown = self.node.airgapd(["status", "-o", "json"]).stdout;
        let status: serde_json::Value = serde_json::from_str(&shown).unwrap_or_default();
        let bundles = status["bundles"].as_array().into_iter().flatten();
        let errors = bundles.filter_map(|bundle| bundle["error"]["text"].as_str());
        errors.filter(|text| text.starts_with("degraded")).collect()
    }
}

impl Drop for Reboots {
    fn drop(&mut self) {
        drop(self.daemon.take());
        for folder in [self.node.images(), self.node.state()] {
            let _ = Command::new("umount").arg("--lazy").arg(folder).status();
        }
    }
}

/// Returns true if a record with this name and target is there and pinned.
fn is_in_place(images: &[ImageRecord], name: &str, target: &str) -> bool {
    images.iter().any(|record| {
        record.name == name && record.target.digest().as_ref() == target && record.labels.contains_key(PINNED)
    })
}

/// Plays cuts until one breaks a promise.
pub(super) fn survive(generation: Generation, cuts: usize, seed: u64) {
    if !can_mount() {
        return lab::left_out::record("no loop devices or no ext4 here");
    }
    let Some(containerd) = super::containerd(generation, "") else {
        return;
    };
    let started = Instant::now();
    let mut series = Reboots::new(containerd, seed);
    if let Err(why) = (0..cuts).try_for_each(|_| series.cut()) {
        let before = series.figures.cuts;
        panic!("containerd {generation}, receipts, seed {seed}, after {before} cuts: {why}");
    }
    let Figures {
        cuts,
        with_journal,
        files,
        both,
        receipts,
        going,
        without_record,
        degraded,
        blobs,
    } = series.figures;
    say(&format!(
        "containerd {generation}, receipts, seed {seed}: {cuts} power cuts in {} s, {with_journal} with a journal to replay; bundles \
         with a file {files}, with file and receipt {both}, with a receipt {receipts}, on the way out {going}; {without_record} \
         records made again, {degraded} degraded; {blobs} blobs hashed, 0 broken",
        started.elapsed().as_secs(),
    ));
    assert!(blobs > 0, "no record was examined");
}

#[test]
fn after_a_power_cut_each_image_comes_back_from_its_file_or_its_receipt_on_containerd_1_7() {
    survive(Generation::V1_7, 3, 5);
}

#[test]
fn after_a_power_cut_each_image_comes_back_from_its_file_or_its_receipt_on_containerd_2_3() {
    survive(Generation::V2_3, 3, 6);
}
