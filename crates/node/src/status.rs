//! How the node stands, as a value: what the daemon answers on its control socket and what `airgapd status` prints.
//!
//! Pure: the work list and the ledger go in, a document comes out. The same two make it in the daemon and, from what
//! is on disk, without one, so both answers have one form. It is described in docs/json.md. The file is long since most of it are the types of that document.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::time::Instant;

use basics::{Foreign, counted};
use import::space::{Disk, MinFree, Shortage};
use jiff::Timestamp;
use oci_spec::image::Digest;
use serde::{Deserialize, Serialize};

use crate::state::ledger::{self, Entry, ErrorClass, Imported, LastTry, Ledger, Outcome};
use crate::state::roster::{Phase, Roster};
use crate::verdict::Verdict;

/// How the node stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Whether all is well, and what is not.
    #[serde(default)]
    pub verdict: Verdict,
    /// The daemon that answered; absent when it was not asked.
    pub daemon: Option<DaemonStatus>,
    /// The containerd that images go to.
    pub containerd: ContainerdStatus,
    /// The folder that bundles come from.
    pub folder: FolderStatus,
    /// What the configuration requires; absent where it requires nothing.
    #[serde(default)]
    pub required: Option<RequiredStatus>,
    /// What is unpacked ahead; absent where nothing is, or no daemon was asked.
    #[serde(default)]
    pub unpack: Option<UnpackStatus>,
    /// Why the configuration on disk is not the one that the daemon runs with; absent where it is.
    #[serde(default)]
    pub configuration_problem: Option<String>,
    /// Why there are no metrics in their file; absent where there are.
    #[serde(default)]
    pub metrics_file_problem: Option<String>,
    /// Why there are no metrics on their address; absent where there are, and where none is configured.
    #[serde(default)]
    pub metrics_address_problem: Option<String>,
    /// The disk of containerd's content store; absent where it cannot be seen, or no daemon was asked.
    #[serde(default)]
    pub disk: Option<DiskStatus>,
    /// How many images the bundles bring.
    #[serde(default)]
    pub image_count: ImageCount,
    /// By file name.
    pub bundles: Vec<BundleStatus>,
    /// The ignored entries of the folder, by file name.
    #[serde(default)]
    pub ignored: Vec<IgnoredStatus>,
}

/// An entry of the images folder that is no bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IgnoredStatus {
    /// Its name, relative to the images folder.
    pub name: Foreign,
    /// Why it is left alone.
    pub reason: String,
}

/// The daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// The version of the program.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Time at which the process started.
    pub started_at: Timestamp,
}

/// containerd, as whoever answers sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerdStatus {
    /// The path of its socket.
    pub socket: String,
    /// The namespace that images go to.
    pub namespace: String,
    /// Whether it answers and is the right one.
    pub reachable: bool,
    /// Its version; absent while it is not reachable.
    pub version: Option<String>,
    /// The node's platform, such as `linux/amd64`; absent while it is not known.
    pub platform: Option<String>,
    /// Why it is not used.
    pub problem: Option<String>,
}

/// The images folder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FolderStatus {
    /// Its path.
    pub path: String,
    /// Why nothing is imported from it.
    pub problem: Option<String>,
    /// The bundles that went with their folder and keep their images pinned; absent where there are none.
    #[serde(default)]
    pub vanished: Option<VanishedStatus>,
}

/// Bundles that are missing in a folder that looks like a lost mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VanishedStatus {
    /// How many there are.
    pub bundles: usize,
    /// The sign of a lost mount, in a sentence.
    pub problem: String,
}

/// The disk of containerd's content store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Its size, in bytes.
    pub size_bytes: u64,
    /// What is free for programs without privileges, in bytes.
    pub free_bytes: u64,
    /// What has to stay free, in bytes (`minFree`).
    pub min_free_bytes: u64,
    /// Why nothing is imported: less is free than has to be.
    pub problem: Option<String>,
}

impl DiskStatus {
    /// The disk as it is, and what is lacking of `min_free` there.
    pub fn of(disk: Disk, min_free: MinFree, below: Option<&Shortage>) -> DiskStatus {
        DiskStatus {
            size_bytes: disk.size,
            free_bytes: disk.free,
            min_free_bytes: min_free.bytes_of(&disk),
            problem: below.map(ToString::to_string),
        }
    }
}

/// Images, each target counted once, however many names and records it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageCount {
    /// Those that bundles bring, the failed ones included.
    pub all: usize,
    /// Those of bundles that are in place.
    pub in_place: usize,
    /// Those that failed with their bundle.
    pub failed: usize,
}

impl ImageCount {
    /// The same after a look at containerd itself, where more may be in place by now than when it was counted.
    #[must_use]
    pub fn with_in_place(self, in_place: usize) -> ImageCount {
        ImageCount {
            all: self.all.max(in_place + self.failed),
            in_place,
            ..self
        }
    }
}

impl std::fmt::Display for ImageCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ImageCount {
            all,
            in_place,
            failed,
        } = self;
        write!(f, "{in_place} of {} in place", counted(*all, "image"))?;
        match failed {
            0 => Ok(()),
            failed => write!(f, ", {failed} failed"),
        }
    }
}

/// How unpacking ahead gets on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackStatus {
    /// Whether images are being unpacked.
    pub running: bool,
    /// Images that are still to be, as far as is known.
    pub pending: usize,
    /// What keeps it from going on for a while.
    pub problem: Option<String>,
    /// Images that cannot be unpacked.
    pub failed: Vec<UnpackFailureStatus>,
}

/// An image that cannot be unpacked: no container of it will start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackFailureStatus {
    /// The name of the image record.
    pub name: String,
    /// The digest that the record points at.
    pub digest: String,
    /// Why, naming the layer.
    pub reason: String,
}

/// Whether every image is there that the configuration requires.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequiredStatus {
    /// Whether nothing has happened since that could change the answer.
    #[serde(rename = "current")]
    pub is_current: bool,
    /// When it was looked at; absent before the first time.
    pub checked_at: Option<Timestamp>,
    /// Why it is not known, where that is so.
    pub problem: Option<String>,
    /// How many images are asked for, each counted once.
    pub references: usize,
    /// Those that are not there, or not whole.
    pub missing: Vec<MissingStatus>,
}

/// An image that is required and not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingStatus {
    /// The reference, as its source writes it.
    pub reference: String,
    /// What is wrong.
    pub why: String,
    /// The places that ask for it.
    pub asked_by: Vec<String>,
}

impl Status {
    /// The same with the verdict on it.
    #[must_use]
    pub fn judged(self) -> Status {
        Status {
            verdict: Verdict::of(&self),
            ..self
        }
    }

    /// Names what somebody who waits wants to hear of: two statuses with the same tag differ in nothing but how far
    /// imports have come and when things are looked at.
    pub fn tag(&self) -> String {
        let mut standing = self.clone();
        standing.verdict = Verdict::default();
        for bundle in &mut standing.bundles {
            bundle.progress = None;
            bundle.retry_in_ms = None;
        }
        if let Some(required) = &mut standing.required {
            required.checked_at = None;
        }
        if let Some(disk) = &mut standing.disk {
            (disk.free_bytes, disk.size_bytes) = (0, 0);
        }
        let text = serde_json::to_vec(&standing).expect("a status is plain data");
        basics::digest::short(&text)
    }
}

impl RequiredStatus {
    /// How many are there, in a few words; `None` where that is not known.
    pub fn summary(&self) -> Option<String> {
        if self.problem.is_some() || self.checked_at.is_none() {
            return None;
        }
        let (missing, all) = (self.missing.len(), self.references);
        Some(match (missing, all) {
            (0, 1) => "the required image is there".to_owned(),
            (1, 1) => String::from("the required image is missing"),
            (0, _) => format!("all {all} required images are there"),
            (1, _) => format!("1 of {all} required images is missing"),
            (_, _) => format!("{missing} of {all} required images are missing"),
        })
    }
}

/// One image that bundles vouch for, as containerd has it at this moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageStatus {
    /// The name of the image record.
    pub name: String,
    /// The digest that the bundle wants the name to point at.
    pub digest: String,
    /// The file that vouches for it; where several do, the one that arrived last.
    pub bundle: String,
    /// How the record stands.
    pub record: RecordStatus,
    /// What the node needs of it and containerd has not.
    pub missing_blobs: Vec<String>,
    /// Whether our pin is on the record.
    pub pinned: bool,
}

/// How an image record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecordStatus {
    /// It is there and points at the digest.
    InPlace,
    /// There is no record of the name.
    Missing,
    /// It is there and points at another image.
    Elsewhere,
}

impl ImageStatus {
    /// What is wrong with it; `None` when it is all there.
    pub fn problem(&self) -> Option<String> {
        match (self.record, self.missing_blobs.as_slice(), self.pinned) {
            (RecordStatus::Missing, ..) => Some("its record is missing".to_owned()),
            (RecordStatus::Elsewhere, ..) => Some("its record points at another image".to_owned()),
            (RecordStatus::InPlace, [first, rest @ ..], _) => Some(match rest.len() {
                0 => format!("blob {first} is missing"),
                more => format!("blob {first} and {more} more are missing"),
            }),
            (RecordStatus::InPlace, [], false) => Some("it is not pinned".to_owned()),
            (RecordStatus::InPlace, [], true) => None,
        }
    }
}

/// One bundle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BundleStatus {
    /// Its file name, as labels have it.
    pub name: Foreign,
    /// How far it has come.
    pub state: State,
    /// Of the file, in bytes; 0 for a folder.
    pub size: u64,
    /// How the last try ended.
    pub outcome: Option<LastTry>,
    /// The digest of its `index.json` or `manifest.json`.
    pub catalog: Option<String>,
    /// How many images of it are in place, each target counted once.
    pub images: usize,
    /// How many of its images failed.
    #[serde(default)]
    pub failed_images: usize,
    /// How many records it vouches for: each name, and the name by digest.
    #[serde(default)]
    pub records: usize,
    /// Records of it that another program moved to another image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moved: Vec<Foreign>,
    /// Time of the last import; absent before the first.
    pub imported_at: Option<Timestamp>,
    /// How long the last import took, in milliseconds.
    pub duration_ms: Option<u64>,
    /// How many bytes the last import sent.
    pub sent_bytes: Option<u64>,
    /// Of the import that runs.
    pub progress: Option<ProgressStatus>,
    /// What it waits for.
    pub waits_for: Option<String>,
    /// Why the last try failed; absent after one that did not.
    pub error: Option<ErrorStatus>,
    /// When it is tried again, from now, in milliseconds.
    pub retry_in_ms: Option<u64>,
    /// What it takes in containerd's content store; absent before the first import, and where only the daemon was asked.
    #[serde(default)]
    pub disk_use: Option<DiskUse>,
}

/// What the images of a bundle take in containerd's content store, in bytes. Each blob counts once, and unpacked layers
/// (snapshots) do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUse {
    /// All blobs of its images that are there.
    pub store_bytes: u64,
    /// Those of them that no other bundle needs.
    pub only_bytes: u64,
    /// Those of them that no other record of the same images keeps either: a pin of another program, an import by hand. They
    /// are free once the bundle is removed and kubelet has collected its images. Images of others that share a blob are
    /// not known.
    pub freed_bytes: u64,
}

/// How far a bundle has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It may still be written.
    Settling,
    /// An upload that does not go on.
    Stalled,
    /// It waits for its checksum.
    AwaitingChecksum,
    /// Finished, and not begun yet.
    Queued,
    /// Its import runs.
    Importing,
    /// Left to another importer of the folder first.
    Following,
    /// Imported before; held against containerd next.
    Checking,
    /// In place.
    Done,
    /// It has nothing for this node: no image of its platforms.
    Skipped,
    /// It failed and is tried again.
    Retrying,
    /// It failed, and only another file or a change on the node helps.
    Failed,
    /// The file is gone; what it put into containerd is still vouched for.
    Gone,
}

impl State {
    /// Every state, in the order of a bundle's life.
    pub const ALL: [State; 12] = [
        State::Settling,
        State::Stalled,
        State::AwaitingChecksum,
        State::Queued,
        State::Importing,
        State::Following,
        State::Checking,
        State::Done,
        State::Skipped,
        State::Retrying,
        State::Failed,
        State::Gone,
    ];

    /// As in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Settling => "settling",
            State::Stalled => "stalled",
            State::AwaitingChecksum => "awaiting-checksum",
            State::Queued => "queued",
            State::Importing => "importing",
            State::Following => "following",
            State::Checking => "checking",
            State::Done => "done",
            State::Skipped => "skipped",
            State::Retrying => "retrying",
            State::Failed => "failed",
            State::Gone => "gone",
        }
    }
}

/// An import that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressStatus {
    /// Bytes that containerd has acknowledged.
    pub sent_bytes: u64,
    /// Bytes that are missing in containerd, those already sent included; absent before that is known.
    pub total_bytes: Option<u64>,
    /// Images that are done, those that failed included.
    #[serde(default)]
    pub images_done: usize,
    /// Images that there are in all; absent before that is known, and where only bytes are counted.
    #[serde(default)]
    pub images: Option<usize>,
    /// Time since the import began, in milliseconds.
    pub elapsed_ms: u64,
    /// Since the first byte could be sent.
    pub bytes_per_second: u64,
    /// How long the rest takes at this rate, in milliseconds.
    pub remaining_ms: Option<u64>,
}

impl ProgressStatus {
    /// Of bytes alone. `total` is 0 where it is not known.
    pub fn new(sent_bytes: u64, total: u64, elapsed_ms: u64) -> ProgressStatus {
        let bytes_per_second = per_second(sent_bytes, elapsed_ms);
        let total_bytes = (total > 0).then_some(total.max(sent_bytes));
        let left = total_bytes.map(|total| total - sent_bytes);
        let remaining_ms = left
            .filter(|_| bytes_per_second > 0)
            .map(|left| left.saturating_mul(1000) / bytes_per_second);
        ProgressStatus {
            sent_bytes,
            total_bytes,
            images_done: 0,
            images: None,
            elapsed_ms,
            bytes_per_second,
            remaining_ms,
        }
    }
}

fn per_second(bytes: u64, elapsed_ms: u64) -> u64 {
    bytes.saturating_mul(1000) / elapsed_ms.max(1)
}

/// Why the last try failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorStatus {
    /// The error with its causes, in one line.
    pub text: String,
    /// What has to happen before another try makes sense.
    pub class: ErrorClass,
    /// Time of the failure.
    pub at: Timestamp,
    /// How often this very file was tried in vain.
    pub attempts: u32,
}

/// What only a daemon that runs knows of bundles, by file name.
#[derive(Debug, Default)]
pub struct Live {
    /// Of the imports that run.
    pub(crate) progress: BTreeMap<OsString, ProgressStatus>,
    /// Why they are restored later.
    pub(crate) put_off: BTreeMap<OsString, String>,
    /// Records that other programs moved.
    pub(crate) moved: HashMap<OsString, BTreeSet<String>>,
}

/// Every bundle of the work list, and those that the ledger knows and the folder lacks.
pub fn bundles(roster: &Roster, ledger: &Ledger, live: &Live, now: Instant) -> Vec<BundleStatus> {
    let mut bundles = Vec::new();
    let foreign = |names: &BTreeSet<String>| names.iter().cloned().map(Foreign::new).collect();
    for name in roster.names(|phase| !matches!(phase, Phase::Ignored(_))) {
        let (Some(phase), Some(version)) = (roster.phase(&name), roster.version(&name)) else {
            continue;
        };
        let why = match phase {
            Phase::Settling { .. } => roster.stalled(&name),
            _ => None,
        };
        let retry = match phase {
            Phase::Failed { retry } => retry,
            _ => None,
        };
        let entry = ledger.get(&name);
        let current = entry.filter(|entry| entry.identity == version.identity);
        let has_failed = current.is_some_and(|entry| entry.last_error.is_some());
        let is_put_off = retry.is_some() && !has_failed;
        let put_off = |name: &OsString| live.put_off.get(name).filter(|_| is_put_off).cloned();
        bundles.push(BundleStatus {
            state: state(phase, why.is_some(), current),
            size: match version.is_layout {
                true => 0,
                false => version.identity.size,
            },
            progress: live.progress.get(&name).copied(),
            waits_for: why.map(|why| why.to_string()).or_else(|| put_off(&name)),
            moved: live.moved.get(&name).map(foreign).unwrap_or_default(),
            retry_in_ms: retry.map(|retry| basics::milliseconds(retry.saturating_duration_since(now))),
            error: current.and_then(error),
            ..of_entry(&name, entry, current.map(|entry| entry.outcome))
        });
    }
    let gone = ledger.entries().into_iter().filter(|entry| entry.gone.is_some());
    bundles.extend(gone.map(|entry| of_entry(&entry.file, Some(entry), Some(entry.outcome))));
    bundles.sort_by(|a, b| a.name.cmp(&b.name));
    bundles
}

/// Everything in the folder that is left alone.
pub fn ignored(roster: &Roster) -> Vec<IgnoredStatus> {
    let status = |(name, reason): (&std::ffi::OsStr, crate::images::folder::Reason)| IgnoredStatus {
        name: Foreign::file_name(name),
        reason: reason.to_string(),
    };
    roster.ignored().into_iter().map(status).collect()
}

fn state(phase: Phase, is_stalled: bool, entry: Option<&Entry>) -> State {
    let is_skipped = entry.is_some_and(|entry| entry.outcome == LastTry::Ended(Outcome::Skipped));
    match phase {
        Phase::Settling { .. } if is_stalled => State::Stalled,
        Phase::Settling { .. } => State::Settling,
        Phase::Ready => State::Queued,
        Phase::Running => State::Importing,
        Phase::Following => State::Following,
        Phase::Known => State::Checking,
        Phase::Waiting => State::AwaitingChecksum,
        Phase::Done if is_skipped => State::Skipped,
        // The part of it that landed is looked after like anything else.
        Phase::Done if entry.is_some_and(Entry::is_incomplete) => State::Failed,
        Phase::Done | Phase::Ignored(_) => State::Done,
        Phase::Failed { retry: Some(_) } => State::Retrying,
        Phase::Failed { retry: None } => State::Failed,
    }
}

impl BundleStatus {
    /// A file of which nothing is known but its state.
    pub fn named(name: &std::ffi::OsStr, state: State) -> BundleStatus {
        BundleStatus {
            state,
            size: 1,
            ..of_entry(name, None, None)
        }
    }
}

/// What the ledger says of a bundle.
fn of_entry(name: &std::ffi::OsStr, entry: Option<&Entry>, outcome: Option<LastTry>) -> BundleStatus {
    let imported = entry.and_then(|entry| entry.imported.as_ref());
    BundleStatus {
        name: Foreign::file_name(name),
        state: State::Gone,
        size: entry.map_or(0, |entry| entry.identity.size),
        outcome,
        catalog: imported.map(|imported| imported.catalog.to_string()),
        images: imported.map_or(0, |imported| targets(imported).len()),
        failed_images: entry
            .and_then(|entry| entry.last_error.as_ref())
            .map_or(0, |error| error.images),
        records: imported.map_or(0, |imported| imported.images.len()),
        moved: Vec::new(),
        imported_at: imported.map(|imported| imported.at),
        duration_ms: imported.map(|imported| imported.duration_ms),
        sent_bytes: imported.map(|imported| imported.sent_bytes),
        progress: None,
        waits_for: None,
        error: entry.and_then(error),
        retry_in_ms: None,
        disk_use: None,
    }
}

fn targets(imported: &Imported) -> HashSet<&Digest> {
    imported.images.iter().map(|image| &image.target).collect()
}

/// How many images these bundles bring. Those of a bundle that is under way are not in place; those that a bundle brought
/// before it failed are.
pub fn count_images(ledger: &Ledger, bundles: &[BundleStatus]) -> ImageCount {
    let by_label: HashMap<&str, &BundleStatus> =
        bundles.iter().map(|bundle| (bundle.name.raw(), bundle)).collect();
    let (mut all, mut in_place) = (HashSet::new(), HashSet::new());
    for entry in ledger.entries().into_iter().filter(|entry| entry.is_vouching()) {
        let targets = entry.imported.iter().flat_map(targets);
        let state = by_label
            .get(ledger::label_name(&entry.file).as_str())
            .map(|bundle| bundle.state);
        match state {
            Some(State::Done | State::Failed | State::Gone) => in_place.extend(targets),
            _ => all.extend(targets),
        }
    }
    let failed = bundles
        .iter()
        .filter(|bundle| bundle.state == State::Failed)
        .map(|bundle| bundle.failed_images)
        .sum();
    let all = all.union(&in_place).count() + failed;
    ImageCount {
        all,
        in_place: in_place.len(),
        failed,
    }
}

fn error(entry: &Entry) -> Option<ErrorStatus> {
    let error = entry.last_error.as_ref()?;
    Some(ErrorStatus {
        text: error.text.clone(),
        class: match entry.is_set_aside(&entry.identity) {
            true => ErrorClass::Crash,
            false => error.class,
        },
        at: error.at,
        attempts: entry.attempts,
    })
}

#[cfg(test)]
mod tests;
