//! Kills the daemon and a real containerd at random times while bundles are added, changed and
//! removed.
//!
//! The checks follow each kill, and again when everything has come to rest:
//!
//! * A record implies whole blobs.
//! * The images of present bundles are in place and pinned. Images of other bundles have no labels
//!   of airgapd.
//! * Labels, pins, leases and ingests of other programs are unchanged.
//! * airgapd has left no lease or ingest, and the ledger can be read.
//!
//! With receipts, the files of bundles go at random rounds. At every look, a bundle has its file or
//! its receipt. Each receipt has one lease. Lost layers are named and come back with their bundle.

mod receipts;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bundle::fixtures::{Archive, BuiltImage, Image, Layer, Layout};
use containerd::{Client, ImageRecord, ImageUpdate};
use import::bundle_id;
use import::lease::RECEIPT_PREFIX;
use lab::{Containerd, Generation, Options};
use oci_spec::image::Digest;
use rustix::fs::{Timespec, Timestamps, futimens};
use tokio::runtime::Runtime;

use self::receipts::Receipts;
use super::audit::Audit;
use super::dice::Dice;
use super::{Asked, say};
use crate::support::bundles::{native, records_of};
use crate::support::node::{Daemon, Node};
use crate::support::target::{BUNDLE, BY_HAND, KUBERNETES, OUR_PIN, PINNED};
use crate::support::wait_until;

/// Longest time until everything comes to rest after a kill, on a busy machine.
const REST_WITHIN: Duration = Duration::from_secs(60);
/// Most bundles in the folder.
const MOST_BUNDLES: usize = 8;
/// An image that another program has pinned, and that bundles have as well.
const SHARED: &str = "registry.test/shared:1";
/// The label that another program puts on airgapd's records.
const NOTE: &str = "note.test/by-another-program";
const LEASE_OF_OTHERS: &str = "lease-of-others";
const INGEST_OF_OTHERS: &str = "ingest-of-others";

/// The target of a kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Daemon,
    Containerd,
    Both,
}

/// A bundle in the folder: its records, and the targets of the records.
#[derive(Clone, Debug, Default)]
struct Shelved {
    targets: BTreeMap<String, String>,
    /// A layer that no other bundle has, with the name of its image.
    layer: Option<(String, Digest)>,
    bytes: Arc<[u8]>,
}

/// A change in the images folder.
enum Act {
    Copy {
        to: PathBuf,
        bytes: Vec<u8>,
        pause: Duration,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Link {
        from: PathBuf,
        to: PathBuf,
    },
    Begin {
        to: PathBuf,
        bytes: Vec<u8>,
    },
    Finish {
        to: PathBuf,
        bytes: Vec<u8>,
    },
    /// Removes the file of a bundle and its receipt.
    Remove([PathBuf; 2]),
    Touch(PathBuf),
}

/// Ignores that a file has gone: its receipt may have taken its place.
fn gone(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

impl Act {
    fn perform(self) -> std::io::Result<()> {
        match self {
            Act::Copy { to, bytes, pause } => {
                let mut file = File::create(to)?;
                for piece in bytes.chunks(bytes.len() / 4 + 1) {
                    file.write_all(piece)?;
                    thread::sleep(pause);
                }
                Ok(())
            }
            Act::Rename { from, to } => fs::rename(from, to),
            Act::Link { from, to } => {
                let _ = fs::remove_file(&to);
                fs::hard_link(&from, to)?;
                fs::remove_file(from)
            }
            Act::Begin { to, bytes } => fs::write(to, &bytes[..bytes.len() * 2 / 3]),
            Act::Finish { to, bytes } => {
                let mut file = File::options().append(true).open(to)?;
                file.write_all(&bytes[bytes.len() * 2 / 3..])
            }
            Act::Remove(files) => files.iter().try_for_each(|file| gone(fs::remove_file(file))),
            Act::Touch(file) => {
                let past = Timespec {
                    tv_sec: 1_700_000_000,
                    tv_nsec: 0,
                };
                let times = Timestamps {
                    last_access: past,
                    last_modification: past,
                };
                gone(File::open(file).and_then(|file| Ok(futimens(file, &times)?)))
            }
        }
    }
}

/// The results of a run.
#[derive(Default)]
struct Figures {
    rounds: usize,
    daemons: usize,
    containerds: usize,
    in_mid_import: usize,
    rests: Vec<Duration>,
    dropped: usize,
    dropped_bytes: usize,
    sent_bytes: u64,
    errors: usize,
    receipts: receipts::Figures,
}

struct Chaos {
    // Dropped in this order: the daemon before the containerd that it uses.
    daemon: Option<Daemon>,
    node: Node,
    client: Client,
    runtime: Runtime,
    containerd: Containerd,
    dice: Dice,
    audit: Audit,
    bases: Vec<Layer>,
    shared: Image,
    shelf: BTreeMap<String, Shelved>,
    unfinished: Option<(String, Vec<u8>, Shelved)>,
    /// Records of other programs before the run.
    others: BTreeMap<String, ImageRecord>,
    /// Records of airgapd on which another program has put a label.
    notes: BTreeMap<String, String>,
    serial: usize,
    /// The receipts, in a run with receipts.
    receipts: Option<Receipts>,
    figures: Figures,
}

impl Chaos {
    fn new(containerd: Containerd, seed: u64, has_receipts: bool) -> Chaos {
        let runtime = Runtime::new().expect("threads for a client");
        let client = runtime
            .block_on(Client::connect(&containerd.socket(), KUBERNETES))
            .expect("containerd is there");
        let mut dice = Dice::new(seed);
        let bases = (0..3).map(|_| Layer::new(dice.bytes(1 << 20))).collect();
        let shared = Image::new(SHARED).platform(native()).layer(dice.bytes(256 << 10));
        let mut chaos = Chaos {
            daemon: None,
            node: Node::at(&containerd.socket(), KUBERNETES),
            audit: Audit::of(&containerd.root()),
            client,
            runtime,
            containerd,
            dice,
            bases,
            shared,
            shelf: BTreeMap::new(),
            unfinished: None,
            others: BTreeMap::new(),
            notes: BTreeMap::new(),
            serial: 0,
            receipts: None,
            figures: Figures::default(),
        };
        if has_receipts {
            chaos.receipts = Some(Receipts::on(&chaos.node));
        }
        chaos.move_others_in();
        chaos.daemon = Some(chaos.node.start());
        chaos
    }

    /// Creates images, a pin, a lease and a running write of another program.
    fn move_others_in(&mut self) {
        let archive = self.node.path("others.tar");
        let own = ["other.test/a:1", "other.test/b:1"];
        let images = own.map(|name| {
            Image::new(name)
                .platform(native())
                .layer(self.dice.bytes(100_000))
        });
        let layout = images
            .into_iter()
            .fold(Layout::new().image(self.shared.clone()), Layout::image);
        layout.write_to(&archive);
        let archive = archive.to_str().expect("a plain name");
        let ctr = |arguments: &[&str]| self.containerd.ctr(arguments).expect("ctr runs");
        ctr(&["images", "import", "--no-unpack", archive]);
        ctr(&[
            "images",
            "label",
            own[0],
            "other.test/label=kept",
            "io.cri-containerd.pinned=pinned",
        ]);
        ctr(&["images", "label", SHARED, "io.cri-containerd.pinned=pinned"]);
        ctr(&["leases", "create", "--id", LEASE_OF_OTHERS]);
        self.begin_ingest_of_others();
        let names = [own[0], own[1], SHARED];
        wait_until("CRI has taken the images of others in", || {
            let found = self.images().into_iter().filter(|record| {
                names.contains(&record.name.as_str()) && record.labels.contains_key("io.cri-containerd.image")
            });
            found.count() == names.len()
        });
        let found = self.images().into_iter();
        self.others = found
            .filter(|record| names.contains(&record.name.as_str()))
            .map(|record| (record.name.clone(), record))
            .collect();
    }

    fn begin_ingest_of_others(&self) {
        let mut ctr = self.containerd.ctr_in(KUBERNETES);
        ctr.args(["content", "ingest", "--expected-size", "1000", INGEST_OF_OTHERS]);
        let mut child = ctr.stdin(Stdio::piped()).spawn().expect("ctr starts");
        let mut input = child.stdin.take().expect("the stream is piped");
        input.write_all(&[0; 100]).expect("ctr reads");
        wait_until("the write of the other program has started", || {
            let ingests = self
                .runtime
                .block_on(self.client.ingests())
                .expect("containerd answers");
            ingests.iter().any(|ingest| ingest.reference == INGEST_OF_OTHERS)
        });
        child.kill().expect("the process runs");
        child.wait().expect("waiting for the child works");
    }

    fn images(&self) -> Vec<ImageRecord> {
        self.runtime
            .block_on(self.client.images())
            .expect("containerd answers")
    }

    /// Plays one round: files change, a process is killed and restarted, and everything comes to
    /// rest.
    fn round(&mut self) -> Result<(), String> {
        let before: BTreeMap<String, Shelved> = self.shelf.clone();
        let acts = self.draw();
        let untouched = self.untouched(&before);
        let victim = match self.dice.within(0..10) {
            0..=4 => Victim::Daemon,
            5..=8 => Victim::Containerd,
            _ => Victim::Both,
        };
        let begun = self.daemon.as_ref().map_or(0, |daemon| daemon.count("importing"));
        // Two of three kills hit an import that has started. The others come at a random time.
        let (at_import, instant) = (!self.dice.one_in(3), self.dice.milliseconds(0..250));
        let sign = self.draw_sign();
        thread::scope(|scope| {
            let placing = scope.spawn(|| acts.into_iter().try_for_each(Act::perform));
            let deadline = Instant::now() + Duration::from_millis(if at_import { 1000 } else { 0 });
            let is_waiting = || {
                self.daemon
                    .as_ref()
                    .is_some_and(|daemon| daemon.count("importing") == begun)
            };
            let mut held = Ok(());
            while Instant::now() < deadline && is_waiting() {
                held = held.and_then(|()| self.are_held(&untouched));
                thread::sleep(Duration::from_millis(2));
            }
            match sign {
                Some(sign) => held = held.and_then(|()| self.wait_for(&sign, &untouched)),
                None => thread::sleep(instant),
            }
            let killed = self.kill(victim, &untouched);
            let placed = placing.join().expect("placing files does not panic");
            placed
                .map_err(|error| format!("cannot place a file: {error}"))
                .and(held)
                .and(killed)
        })?;
        let started = Instant::now();
        self.come_to_rest(&untouched)?;
        self.figures.rests.push(started.elapsed());
        self.figures.rounds += 1;
        self.look_at_everything()?;
        self.lose_a_layer()?;
        self.act_as_others();
        self.change_settings();
        Ok(())
    }

    fn kill(&mut self, victim: Victim, untouched: &[String]) -> Result<(), String> {
        if victim != Victim::Containerd {
            self.figures.daemons += 1;
            self.end_daemon();
            self.are_held(untouched)?;
        }
        if victim == Victim::Daemon {
            self.count_mid_import();
            self.audit()?;
        } else {
            self.figures.containerds += 1;
            self.containerd.kill().map_err(|error| error.to_string())?;
        }
        thread::sleep(self.dice.milliseconds(0..200));
        let daemon_first = self.dice.one_in(2);
        if victim == Victim::Both && daemon_first {
            self.daemon = Some(self.node.start());
        }
        if victim != Victim::Daemon {
            self.containerd.restart().map_err(|error| format!("{error:#}"))?;
            self.count_mid_import();
            self.audit()?;
        }
        if self.daemon.is_none() {
            self.daemon = Some(self.node.start());
        }
        Ok(())
    }

    fn end_daemon(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            let log = daemon.kill();
            self.figures.note(&log);
        }
    }

    /// A lease of airgapd means that an import was running.
    fn count_mid_import(&mut self) {
        let leases = self.runtime.block_on(self.client.leases());
        if leases.is_ok_and(|leases| leases.iter().any(|lease| is_of_import(&lease.id))) {
            self.figures.in_mid_import += 1;
        }
    }

    // Changes in the folder.

    fn draw(&mut self) -> Vec<Act> {
        let mut acts = Vec::new();
        if let Some((file, bytes, bundle)) = self.unfinished.take() {
            acts.push(Act::Finish {
                to: self.place(&file),
                bytes,
            });
            self.shelf.insert(file, bundle);
        }
        for _ in 0..self.dice.within(1..4) {
            let present: Vec<String> = self.shelf.keys().cloned().collect();
            let one = self.dice.pick(&present).cloned();
            let act = match (self.dice.within(0..10), one) {
                (0..=1, Some(file)) if present.len() >= 4 => self.remove(&file),
                (2..=4, Some(file)) => self.replace(&file),
                (5, Some(file)) => Act::Touch(self.place(&file)),
                (6, _) if self.unfinished.is_none() => self.begin(),
                (_, Some(file)) if present.len() >= MOST_BUNDLES => self.remove(&file),
                _ => self.add(),
            };
            acts.push(act);
            if acts.iter().any(|act| matches!(act, Act::Remove(_))) {
                // One removal at a time: the daemon suspects the folder when many bundles disappear
                // together.
                break;
            }
        }
        acts
    }

    fn place(&self, file: &str) -> PathBuf {
        self.node.images().join(file)
    }

    fn new_name(&mut self) -> String {
        self.serial += 1;
        format!("bundle-{}.tar", self.serial)
    }

    fn add(&mut self) -> Act {
        let file = self.new_name();
        self.bring(&file)
    }

    fn replace(&mut self, file: &str) -> Act {
        self.bring(file)
    }

    fn remove(&mut self, file: &str) -> Act {
        self.shelf.remove(file);
        Act::Remove([self.place(file), receipts::of(&self.node, file)])
    }

    fn begin(&mut self) -> Act {
        let file = self.new_name();
        let (bytes, bundle) = self.bundle(&file);
        self.unfinished = Some((file.clone(), bytes.clone(), bundle));
        Act::Begin {
            to: self.place(&file),
            bytes,
        }
    }

    fn bring(&mut self, file: &str) -> Act {
        let (bytes, bundle) = self.bundle(file);
        self.shelf.insert(file.to_owned(), bundle);
        self.serial += 1;
        let (to, from) = (
            self.place(file),
            self.node.path(&format!("placing-{}", self.serial)),
        );
        if self.dice.one_in(2) {
            let pause = self.dice.milliseconds(0..20);
            return Act::Copy { to, bytes, pause };
        }
        fs::write(&from, bytes).expect("the bundle can be written");
        match self.dice.one_in(3) {
            true => Act::Link { from, to },
            false => Act::Rename { from, to },
        }
    }

    /// Returns a bundle of some MB with new images, and sometimes with the image that another
    /// program has pinned.
    fn bundle(&mut self, file: &str) -> (Vec<u8>, Shelved) {
        let own = self.dice.within(1..4);
        let mut names: Vec<String> = (0..own)
            .map(|number| format!("registry.test/{}/{number}:1", file.trim_end_matches(".tar")))
            .collect();
        let mut images: Vec<Image> = names.iter().map(|name| self.image(name)).collect();
        if self.dice.one_in(3) {
            names.push(SHARED.to_owned());
            images.push(self.shared.clone());
        }
        let archive = images.into_iter().fold(Layout::new(), Layout::image).build();
        let targets = targets(&names, &archive);
        let bytes = archive.to_bytes();
        self.figures.dropped += 1;
        self.figures.dropped_bytes += bytes.len();
        let manifest = &archive.images[0].manifests[0];
        let layer = manifest
            .layers
            .last()
            .map(|layer| (names[0].clone(), layer.clone()));
        let shelved = Shelved {
            targets,
            layer,
            bytes: bytes.clone().into(),
        };
        (bytes, shelved)
    }

    fn image(&mut self, name: &str) -> Image {
        let base = self.dice.within(0..self.bases.len());
        let mut image = Image::new(name)
            .platform(native())
            .with_layer(self.bases[base].clone());
        for _ in 0..self.dice.within(1..4) {
            let size = self.dice.within(10_000..700_000);
            image = image.layer(self.dice.bytes(size));
        }
        if self.dice.one_in(3) {
            image = image.platform("linux/riscv64").layer(self.dice.bytes(1000));
        }
        image
    }

    /// Plays another program. It labels airgapd's records, removes a record of a bundle, and
    /// collects unpinned records.
    fn act_as_others(&mut self) {
        let ours: Vec<String> = self
            .shelf
            .values()
            .flat_map(|bundle| bundle.targets.keys().cloned())
            .collect();
        if let Some(name) = self.dice.pick(&ours).filter(|name| *name != SHARED).cloned() {
            if self.dice.one_in(4) {
                self.serial += 1;
                let note = self.serial.to_string();
                let update = ImageUpdate {
                    target: None,
                    labels: BTreeMap::from([(NOTE.to_owned(), Some(note.clone()))]),
                };
                self.runtime
                    .block_on(self.client.update_image(&name, &update))
                    .expect("the record is there");
                self.notes.insert(name, note);
            } else if self.dice.one_in(6) {
                self.delete(&name);
            }
        }
        let pinned = |record: &ImageRecord| record.labels.contains_key(PINNED);
        let images = self.images();
        let named: Vec<_> = images
            .iter()
            .filter(|record| !record.name.starts_with("sha256:"))
            .collect();
        for record in &named {
            if !pinned(record) && !self.others.contains_key(&record.name) {
                self.delete(&record.name);
            }
        }
        // CRI's own records, which have image ids as names.
        for record in images.iter().filter(|record| record.name.starts_with("sha256:")) {
            let is_used =
                |other: &&&ImageRecord| other.target.digest() == record.target.digest() && pinned(other);
            if !named
                .iter()
                .any(|other| is_used(&other) || self.others.contains_key(&other.name))
            {
                self.delete(&record.name);
            }
        }
    }

    fn delete(&mut self, name: &str) {
        self.runtime
            .block_on(self.client.delete_image(name, false))
            .expect("containerd answers");
        self.notes.remove(name);
    }

    // The invariants.

    fn come_to_rest(&self, untouched: &[String]) -> Result<(), String> {
        let deadline = Instant::now() + REST_WITHIN;
        loop {
            self.are_held(untouched)?;
            match self.is_at_rest() {
                Ok(()) => return Ok(()),
                Err(why) if Instant::now() > deadline => {
                    return Err(format!("no rest within {REST_WITHIN:?}: {why}"));
                }
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn is_at_rest(&self) -> Result<(), String> {
        let lists = async {
            Ok::<_, containerd::Error>((
                self.client.images().await?,
                self.client.leases().await?,
                self.client.ingests().await?,
            ))
        };
        let (images, leases, ingests) = self.runtime.block_on(lists).map_err(|error| error.to_string())?;
        if let Some(lease) = leases.iter().find(|lease| is_of_import(&lease.id)) {
            return Err(format!("lease {} is left", lease.id));
        }
        if let Some(ingest) = ingests
            .iter()
            .find(|ingest| ingest.reference.starts_with("airgapd-"))
        {
            return Err(format!("ingest {} is left", ingest.reference));
        }
        let records: BTreeMap<&str, &ImageRecord> = images
            .iter()
            .map(|record| (record.name.as_str(), record))
            .collect();
        for (file, bundle) in &self.shelf {
            let sources = [file.clone(), receipts::label_of(&self.node, file)];
            bundle.is_in_place(file, &records, &sources)?;
        }
        self.have_leases(&leases)?;
        images.iter().try_for_each(|record| self.is_let_go(record))
    }

    /// Checks that a record has the labels of present bundles only, and airgapd's pin only with
    /// such a label.
    fn is_let_go(&self, record: &ImageRecord) -> Result<(), String> {
        let name = &record.name;
        let sources: Vec<&String> = record
            .labels
            .iter()
            .filter(|(key, _)| key.starts_with(BUNDLE))
            .map(|(_, file)| file)
            .collect();
        for file in &sources {
            let bundle = receipts::bundle_of(&self.node, file);
            let is_held = self
                .shelf
                .get(bundle)
                .is_some_and(|bundle| bundle.targets.contains_key(name));
            if !is_held {
                return Err(format!("{name} still has the label of {file}"));
            }
        }
        if let Some(mark) = record.labels.get(BY_HAND)
            && !sources.contains(&mark)
        {
            return Err(format!("{name} still has the mark of {mark}"));
        }
        let is_ours = record.labels.contains_key(OUR_PIN);
        if is_ours && sources.is_empty() {
            return Err(format!("{name} still has airgapd's pin"));
        }
        if is_ours && self.others.contains_key(name) {
            return Err(format!("{name} has another program's pin with airgapd's mark"));
        }
        Ok(())
    }

    fn look_at_everything(&mut self) -> Result<(), String> {
        self.audit()?;
        let shelf: Vec<String> = self.shelf.keys().cloned().collect();
        self.are_held(&shelf)?;
        let images = self.images();
        if let Some((file, _, bundle)) = &self.unfinished {
            // Other bundles may have the shared image.
            let is_its_own = |name: &str| bundle.targets.contains_key(name) && !name.contains("/shared");
            if let Some(record) = images.iter().find(|record| is_its_own(&record.name)) {
                return Err(format!("{} of the unfinished {file} has a record", record.name));
            }
        }
        self.look_at_the_ledger()
    }

    /// Checks the invariants that hold whenever containerd runs.
    fn audit(&mut self) -> Result<(), String> {
        let lists = async {
            let client = &self.client;
            Ok::<_, containerd::Error>((
                client.images().await?,
                client.blobs().await?,
                client.leases().await?,
                client.ingests().await?,
            ))
        };
        let (images, blobs, leases, ingests) =
            self.runtime.block_on(lists).map_err(|error| error.to_string())?;
        if let Some(fault) = self.audit.broken(&images, &blobs).first() {
            return Err(format!("a record without its closure: {fault}"));
        }
        self.are_others_well(&images)?;
        if !leases.iter().any(|lease| lease.id == LEASE_OF_OTHERS) {
            return Err("the lease of others is gone".to_owned());
        }
        match ingests.iter().any(|ingest| ingest.reference == INGEST_OF_OTHERS) {
            true => Ok(()),
            false => Err("the write of others is gone".to_owned()),
        }
    }

    fn are_others_well(&self, images: &[ImageRecord]) -> Result<(), String> {
        let find = |name: &str| images.iter().find(|record| record.name == name);
        for (name, before) in &self.others {
            let now = find(name).ok_or_else(|| format!("{name} of others is gone"))?;
            if now.target != before.target {
                return Err(format!("{name} of others moved"));
            }
            let ours = |key: &&String| key.starts_with("io.airgapd.");
            if *name != SHARED && now.labels.keys().any(|key| ours(&key)) {
                return Err(format!("{name} of others has labels of airgapd"));
            }
            let lost = before
                .labels
                .iter()
                .find(|(key, value)| now.labels.get(*key) != Some(*value));
            if let Some((key, _)) = lost {
                return Err(format!("{name} of others lost its label {key}"));
            }
        }
        for (name, note) in &self.notes {
            let labels = find(name).map(|record| &record.labels);
            if labels.is_some_and(|labels| labels.get(NOTE) != Some(note)) {
                return Err(format!("{name} lost the label of another program"));
            }
        }
        Ok(())
    }

    fn look_at_the_ledger(&mut self) -> Result<(), String> {
        let bytes = fs::read(self.node.ledger()).map_err(|error| format!("no ledger: {error}"))?;
        let ledger: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|error| format!("the ledger is broken: {error}"))?;
        if !ledger["version"].is_u64() {
            return Err("the ledger has no version".to_owned());
        }
        super::blames_no_file(&ledger)?;
        let state = fs::read_dir(self.node.state()).map_err(|error| error.to_string())?;
        let aside = state
            .flatten()
            .find(|entry| entry.file_name().to_string_lossy().contains(".bad"));
        match aside {
            Some(entry) => Err(format!("a ledger was set aside: {:?}", entry.file_name())),
            None => Ok(()),
        }
    }
}

impl Shelved {
    /// Checks that the records are in place. One of `sources` must vouch for each of them: the file
    /// or its receipt.
    fn is_in_place(
        &self,
        file: &str,
        records: &BTreeMap<&str, &ImageRecord>,
        sources: &[String],
    ) -> Result<(), String> {
        for (name, target) in &self.targets {
            let record = records
                .get(name.as_str())
                .ok_or_else(|| format!("{name} of {file} is missing"))?;
            if record.target.digest().to_string() != *target {
                return Err(format!(
                    "{name} of {file} is {} and not {target}",
                    record.target.digest()
                ));
            }
            if record.labels.get(PINNED).is_none_or(|pin| pin != "pinned") {
                return Err(format!("{name} of {file} is not pinned"));
            }
            let has_label = |source: &String| {
                let label = format!("{BUNDLE}{}", bundle_id(source));
                record.labels.get(&label) == Some(source)
            };
            if !sources.iter().any(has_label) {
                return Err(format!("{name} lacks the label of {file}"));
            }
        }
        Ok(())
    }
}

fn targets(names: &[String], archive: &Archive) -> BTreeMap<String, String> {
    let records = |(name, image): (&String, &BuiltImage)| {
        records_of(name, image).map(|record| (record, image.root.to_string()))
    };
    names.iter().zip(&archive.images).flat_map(records).collect()
}

/// Plays rounds until one fails.
fn play(containerd: Containerd, rounds: usize, seed: u64, has_receipts: bool) -> Result<Figures, String> {
    let generation = containerd.generation();
    let mut chaos = Chaos::new(containerd, seed, has_receipts);
    for round in 0..rounds {
        chaos.round().map_err(|why| {
            let log = chaos.daemon.take().map(Daemon::kill).unwrap_or_default();
            let folder = listing(&chaos.node.images());
            let receipts = listing(&chaos.node.state().join("receipts"));
            format!(
                "containerd {generation}, seed {seed}, round {round}: {why}\nfolder: {folder}\nreceipts: {receipts}\n\
                 the daemon said:\n{log}"
            )
        })?;
        if (round + 1) % 25 == 0 {
            say(&format!(
                "  {} rounds, {} blobs hashed",
                round + 1,
                chaos.audit.hashed()
            ));
        }
    }
    if let Some(daemon) = chaos.daemon.take() {
        let log = daemon.stop();
        chaos.figures.note(&log);
    }
    Ok(std::mem::take(&mut chaos.figures))
}

fn listing(folder: &Path) -> String {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names: Vec<_> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.join(" ")
}

impl Figures {
    /// Counts the errors and the bytes of finished imports in the log of a daemon.
    fn note(&mut self, log: &str) {
        self.errors += log.lines().filter(|line| line.contains("ERROR")).count();
        self.receipts.note(log);
        let bytes = |line: &str| {
            line.split_once("bytes=")?
                .1
                .split(' ')
                .next()?
                .parse::<u64>()
                .ok()
        };
        self.sent_bytes += log.lines().filter_map(bytes).sum::<u64>();
    }

    fn tell(&mut self, generation: Generation, seed: u64, took: Duration) {
        self.rests.sort();
        let at = |part: usize| self.rests.get(part).copied().unwrap_or_default().as_millis();
        let (median, longest) = (at(self.rests.len() / 2), at(self.rests.len().saturating_sub(1)));
        say(&format!(
            "containerd {generation}, seed {seed}: {} rounds in {} s, {} kills ({} of the daemon, {} of containerd, {} with an \
             import under way), at rest again after {median} ms (median), {longest} ms (longest); {} bundles dropped with {} MB, \
             {} MB sent by imports that ended; {} errors in the log; 0 violations",
            self.rounds,
            took.as_secs(),
            self.daemons + self.containerds,
            self.daemons,
            self.containerds,
            self.in_mid_import,
            self.dropped,
            self.dropped_bytes / 1_000_000,
            self.sent_bytes / 1_000_000,
            self.errors,
        ));
        self.receipts.tell();
    }
}

/// Returns true if a lease of airgapd is that of an import. Receipts have lasting leases.
fn is_of_import(id: &str) -> bool {
    id.starts_with("airgapd-") && !id.starts_with(RECEIPT_PREFIX)
}

fn survive(generation: Generation, rounds: usize, seed: u64, has_receipts: bool) {
    let Some(containerd) = lab::shared::own(generation, &Options::default()) else {
        return;
    };
    let started = Instant::now();
    match play(containerd, rounds, seed, has_receipts) {
        Ok(mut figures) => figures.tell(generation, seed, started.elapsed()),
        Err(why) => panic!("{why}"),
    }
}

#[test]
fn crashes_at_random_instants_lose_nothing_on_containerd_1_7() {
    survive(Generation::V1_7, 6, 17, false);
}

#[test]
fn crashes_at_random_instants_lose_nothing_on_containerd_2_3() {
    survive(Generation::V2_3, 6, 2, false);
}

#[test]
fn crashes_between_import_receipt_and_removal_lose_nothing_on_containerd_1_7() {
    survive(Generation::V1_7, 6, 4, true);
}

#[test]
fn crashes_between_import_receipt_and_removal_lose_nothing_on_containerd_2_3() {
    survive(Generation::V2_3, 6, 3, true);
}

/// Runs for `cargo xtask chaos`.
#[test]
#[ignore = "takes long: `cargo xtask chaos` runs it"]
fn as_many_crashes_as_asked_for() {
    let Asked { rounds, seed } = Asked::or(10);
    for generation in super::generations_asked_for() {
        // Half of the rounds are played with receipts.
        survive(generation, rounds.div_ceil(2), seed, false);
        survive(generation, rounds / 2, seed, true);
    }
}
