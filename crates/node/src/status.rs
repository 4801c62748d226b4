//! The state of the node as a value. The daemon answers with it on its control socket, and `airgapd
//! status` prints it.
//!
//! Pure: the roster and the ledger go in, a document comes out. The daemon makes the document from
//! its memory, and a command makes it from the disk if no daemon runs. Both documents have one
//! form, which docs/json.md describes. The file is long because most of it consists of the types of
//! that document.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::fmt;
use std::time::{Duration, Instant};

use basics::{Foreign, counted};
use import::space::{Disk, MinFree, Shortage};
use jiff::Timestamp;
use oci_spec::image::Digest;
use serde::{Deserialize, Serialize};

use crate::state::ledger::{
    self, Entry, ErrorClass, Imported, LastTry, Ledger, Outcome, RefusedBy, SignerEntry,
};
use crate::state::roster::{Lack, Phase, Roster};
use crate::verdict::Verdict;

/// The state of the node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The verdict on the node, with each thing that is wrong.
    #[serde(default)]
    pub verdict: Verdict,
    /// The daemon that answered. Absent if no daemon was asked.
    pub daemon: Option<DaemonStatus>,
    /// The containerd that images go to.
    pub containerd: ContainerdStatus,
    /// The folder that bundles come from, and the first one if there are several.
    pub folder: FolderStatus,
    /// The further images folders in their order. Then come folders that the configuration lacks
    /// and whose bundles keep images pinned.
    #[serde(default)]
    pub more_folders: Vec<FolderStatus>,
    /// The images that the configuration requires. Absent if it requires none.
    #[serde(default)]
    pub required: Option<RequiredStatus>,
    /// The state of unpacking ahead. Absent if it is off, or if no daemon was asked.
    #[serde(default)]
    pub unpack: Option<UnpackStatus>,
    /// The mistakes that keep the daemon from the configuration on disk. Absent if there are none.
    #[serde(default)]
    pub configuration_problem: Option<String>,
    /// The reason why the keys or revocations of this node admit no new bundle. Absent if there is
    /// none, or if no signatures are asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys_problem: Option<String>,
    /// The files in the folder of trusted keys that are no usable key, each with the reason. Absent
    /// if there are none, or if no signatures are asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unusable_keys: Vec<String>,
    /// The error that keeps the metrics from their file. Absent if there is none.
    #[serde(default)]
    pub metrics_file_problem: Option<String>,
    /// The error that keeps the node features from their file. Absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_feature_file_problem: Option<String>,
    /// The error that keeps the metrics from their address. Absent if there is none, or if no
    /// address is configured.
    #[serde(default)]
    pub metrics_address_problem: Option<String>,
    /// The disk of containerd's content store. Absent if it is not visible, or if no daemon was
    /// asked.
    #[serde(default)]
    pub disk: Option<DiskStatus>,
    /// The last scrub of this node. Absent if none has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrub: Option<ScrubStatus>,
    /// Number of images that the bundles bring.
    #[serde(default)]
    pub image_count: ImageCount,
    /// The releases that bundles of this node name, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub releases: Vec<ReleaseStatus>,
    /// The bundles, by file name.
    pub bundles: Vec<BundleStatus>,
    /// The ignored entries of the folder, by file name.
    #[serde(default)]
    pub ignored: Vec<IgnoredStatus>,
}

impl Status {
    /// Returns all images folders, the first one first.
    pub fn folders(&self) -> impl Iterator<Item = &FolderStatus> + Clone {
        std::iter::once(&self.folder).chain(&self.more_folders)
    }

    /// Returns the paths of all images folders, the first one first.
    pub fn folder_paths(&self) -> Vec<&str> {
        self.folders().map(|folder| folder.path.as_str()).collect()
    }
}

/// A release: a set of bundles that carry the same list of members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseStatus {
    /// Its name.
    pub name: String,
    /// True if every member is in place.
    pub in_place: bool,
    /// True if the node has every member, and later bundles have names of them. A roll back takes
    /// no bytes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kept: bool,
    /// Number of members.
    pub members: usize,
    /// Number of members that are not in place.
    pub missing: usize,
    /// The first members that are not in place, by image name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing_names: Vec<Foreign>,
    /// The reason why the release is not in place, in a line. Absent if it is in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// The bundles that carry it.
    pub bundles: Vec<Foreign>,
}

impl ReleaseStatus {
    /// Returns its state in words.
    pub fn state(&self) -> &'static str {
        match (self.in_place, self.kept) {
            (true, _) => "in place",
            (false, true) => "kept",
            (false, false) => "not in place",
        }
    }
}

/// An entry of an images folder that is no bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IgnoredStatus {
    /// Its name: the path in the first images folder, or the whole path.
    pub name: Foreign,
    /// The reason why it is left alone.
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

/// containerd, as the answering process sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerdStatus {
    /// The path of its socket.
    pub socket: String,
    /// The namespace that images go to.
    pub namespace: String,
    /// True if it answers and is the right one.
    pub reachable: bool,
    /// Its version. Absent while it is not reachable.
    pub version: Option<String>,
    /// The node's platform, such as `linux/amd64`. Absent while it is unknown.
    pub platform: Option<String>,
    /// The reason why it is not used.
    pub problem: Option<String>,
}

/// An images folder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FolderStatus {
    /// Its path.
    pub path: String,
    /// The reason why nothing is imported from it.
    pub problem: Option<String>,
    /// The bundles that disappeared with their folder and keep their images pinned. Absent if there
    /// are none.
    #[serde(default)]
    pub vanished: Option<VanishedStatus>,
}

/// Bundles that are missing from a folder that looks like a lost mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VanishedStatus {
    /// Number of missing bundles.
    pub bundles: usize,
    /// The sign of a lost mount, in a sentence.
    pub problem: String,
}

/// The disk of containerd's content store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Its size, in bytes.
    pub size_bytes: u64,
    /// Space that is free for programs without privileges, in bytes.
    pub free_bytes: u64,
    /// Space that has to stay free, in bytes (`minFree`).
    pub min_free_bytes: u64,
    /// The shortage that stops all imports. Absent if enough space is free.
    pub problem: Option<String>,
}

impl DiskStatus {
    /// Returns the state of the disk. `below` is the shortage under `min_free`, if there is one.
    pub fn of(disk: Disk, min_free: MinFree, below: Option<&Shortage>) -> DiskStatus {
        DiskStatus {
            size_bytes: disk.size,
            free_bytes: disk.free,
            min_free_bytes: min_free.bytes_of(&disk),
            problem: below.map(ToString::to_string),
        }
    }
}

/// The last scrub that came to its end, and what it left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// Time of its end.
    pub at: Timestamp,
    /// Time at which the last pass over all blobs ended. Absent if there was none.
    pub finished_at: Option<Timestamp>,
    /// Number of blobs that bundles vouched for.
    pub blobs: usize,
    /// Number of blobs that it has read.
    pub read: usize,
    /// Number of blobs that it left to the next scrub. 0 after a whole pass.
    pub remaining: usize,
    /// Number of blobs that are still wrong in containerd.
    pub wrong: usize,
}

impl fmt::Display for ScrubStatus {
    /// Writes the work of the scrub and its findings: `read 5 of 5 blobs, none wrong`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wrong = match self.wrong {
            0 => "none wrong".to_owned(),
            wrong => format!("{wrong} wrong"),
        };
        write!(
            f,
            "read {} of {}, {wrong}",
            self.read,
            counted(self.blobs, "blob")
        )?;
        match self.remaining {
            0 => Ok(()),
            remaining => write!(f, ", and left {remaining} to the next run"),
        }
    }
}

/// Numbers of images. Each target counts once, even if it has several names and records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageCount {
    /// Images that bundles bring, including failed ones.
    pub all: usize,
    /// Images of bundles that are in place.
    pub in_place: usize,
    /// Images that failed in their bundle.
    pub failed: usize,
}

impl ImageCount {
    /// Returns the numbers after a look at containerd itself. More images may be in place by now
    /// than at the time of the count.
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

/// The state of unpacking ahead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackStatus {
    /// True if images are being unpacked.
    pub running: bool,
    /// Number of images that still need unpacking, as far as the daemon knows.
    pub pending: usize,
    /// The error that delays unpacking.
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
    /// The error, which names the layer.
    pub reason: String,
}

/// The result of the last check of the required images.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequiredStatus {
    /// True if nothing has happened since the check that could change its result.
    #[serde(rename = "current")]
    pub is_current: bool,
    /// Time of the check. Absent before the first one.
    pub checked_at: Option<Timestamp>,
    /// The error of a check without a result.
    pub problem: Option<String>,
    /// Number of required images, each counted once.
    pub references: usize,
    /// Images that are missing or not whole.
    pub missing: Vec<MissingStatus>,
    /// Normalised references of all required images. Only the daemon knows them.
    #[serde(skip)]
    pub names: Vec<String>,
    /// True if containerd went away, or a check failed, and no check that began later has ended.
    /// Only the daemon knows it.
    #[serde(skip)]
    pub is_unsure: bool,
    /// Time since the first event that may have changed the result and that no ended check covers.
    /// Absent without such an event. Only the daemon knows it.
    #[serde(skip)]
    pub doubted_for: Option<Duration>,
    /// Stamps of the files that the check has read. Absent if they could not be read.
    #[serde(skip)]
    pub stamp: Option<String>,
}

/// A required image that is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingStatus {
    /// The reference, as its source writes it.
    pub reference: String,
    /// The problem of the image.
    pub why: String,
    /// The places that ask for it.
    pub asked_by: Vec<String>,
}

impl Status {
    /// Returns the status with the verdict on it.
    #[must_use]
    pub fn judged(self) -> Status {
        Status {
            verdict: Verdict::of(&self),
            ..self
        }
    }

    /// Returns a tag that changes with everything that a waiting client wants to hear of. Statuses
    /// with the same tag differ only in progress, in free space, and in times of tries and checks.
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
    /// Returns the number of images that are there, in a few words, or `None` if it is unknown.
    pub fn summary(&self) -> Option<String> {
        if self.problem.is_some() || self.checked_at.is_none() {
            return None;
        }
        let (missing, all) = (self.missing.len(), self.references);
        Some(match missing {
            0 if all == 1 => "the required image is there".to_owned(),
            1 if all == 1 => "the required image is missing".to_owned(),
            0 => format!("all {all} required images are there"),
            1 => format!("1 of {all} required images is missing"),
            missing => format!("{missing} of {all} required images are missing"),
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
    /// The file that vouches for it. Of several files, this is the last one to arrive.
    pub bundle: String,
    /// The state of the record.
    pub record: RecordStatus,
    /// Blobs that the node needs for the image and that containerd lacks.
    pub missing_blobs: Vec<String>,
    /// True if the record has a pin.
    pub pinned: bool,
}

/// The state of an image record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecordStatus {
    /// The record points at the digest.
    InPlace,
    /// No record has the name.
    Missing,
    /// The record points at another image.
    Elsewhere,
}

impl ImageStatus {
    /// Returns the problem of the image, or `None` if it is in place and pinned.
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
    /// Its file name, in the form that labels have.
    pub name: Foreign,
    /// Its progress on the way into containerd.
    pub state: State,
    /// Size of the file in bytes. 0 for a folder.
    pub size: u64,
    /// The result of the last try.
    pub outcome: Option<LastTry>,
    /// The digest of its `index.json` or `manifest.json`.
    pub catalog: Option<String>,
    /// Number of its images that are in place, each target counted once.
    pub images: usize,
    /// Number of its images that failed.
    #[serde(default)]
    pub failed_images: usize,
    /// Number of records that it vouches for: each name, and the name by digest.
    #[serde(default)]
    pub records: usize,
    /// Its records that another program moved to another image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moved: Vec<Foreign>,
    /// The keys whose signatures admitted it. Absent without any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signers: Vec<SignerEntry>,
    /// The reason why no signature admits its images today, although they stay in place. Absent if
    /// a signature does, or if none is required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unadmitted: Option<String>,
    /// The bundle that the file stands for. Absent unless the file is a receipt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt_of: Option<ReceiptStatus>,
    /// Time of the last import. Absent before the first one.
    pub imported_at: Option<Timestamp>,
    /// Duration of the last import in milliseconds.
    pub duration_ms: Option<u64>,
    /// Number of bytes that the last import sent.
    pub sent_bytes: Option<u64>,
    /// Progress of the running import.
    pub progress: Option<ProgressStatus>,
    /// The reason for its wait.
    pub waits_for: Option<String>,
    /// The error of the last try. Absent after a success.
    pub error: Option<ErrorStatus>,
    /// Time until the next try, in milliseconds from now.
    pub retry_in_ms: Option<u64>,
    /// The space that it takes in containerd's content store. Absent before the first import, or if
    /// only the daemon was asked.
    #[serde(default)]
    pub disk_use: Option<DiskUse>,
}

/// The bundle that a receipt stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptStatus {
    /// Its file name, in the form that labels have.
    pub bundle: Foreign,
    /// Size of its file in bytes.
    pub size: u64,
    /// True if the bundle lay outside the images folders, and `airgapd import` made the receipt.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_hand: bool,
    /// Its content digest. Absent for a receipt that no import has read since its ledger was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catalog: Option<Digest>,
}

/// The space that the images of a bundle take in containerd's content store, in bytes. Each blob
/// counts once, and unpacked layers (snapshots) do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUse {
    /// All blobs of its images that containerd has.
    pub store_bytes: u64,
    /// The blobs among them that no other bundle needs.
    pub only_bytes: u64,
    /// The blobs among those that no other record of the same images keeps either. Such a record is
    /// a pin of another program or an import by hand. The blobs become free after the removal of
    /// the bundle, when kubelet has collected its images. Images of other programs that share a
    /// blob are unknown here.
    pub freed_bytes: u64,
}

/// The progress of a bundle on the way into containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// An upload may still write it.
    Settling,
    /// Its upload has stopped.
    Stalled,
    /// It waits for its checksum.
    AwaitingChecksum,
    /// It waits for a signature of a trusted key.
    AwaitingSignature,
    /// Finished, and not started yet.
    Queued,
    /// Its import runs.
    Importing,
    /// Left to another importer of the folder first.
    Following,
    /// Imported before. The daemon compares it with containerd next.
    Checking,
    /// In place.
    Done,
    /// It has nothing for this node: no image of its platforms.
    Skipped,
    /// It failed, and the daemon will retry it.
    Retrying,
    /// It failed, and only another file or a change on the node helps.
    Failed,
    /// The file is gone. Its images in containerd are still pinned.
    Gone,
}

impl State {
    /// Every state, in the order of a bundle's life.
    pub const ALL: [State; 13] = [
        State::Settling,
        State::Stalled,
        State::AwaitingChecksum,
        State::AwaitingSignature,
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

    /// Returns the word for documents.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Settling => "settling",
            State::Stalled => "stalled",
            State::AwaitingChecksum => "awaiting-checksum",
            State::AwaitingSignature => "awaiting-signature",
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
    /// Bytes that containerd lacked, including those already sent. Absent before that is known.
    pub total_bytes: Option<u64>,
    /// Images that are done, including those that failed.
    #[serde(default)]
    pub images_done: usize,
    /// Images of the bundle in all. Absent before that is known, and if only bytes are counted.
    #[serde(default)]
    pub images: Option<usize>,
    /// Time since the import began, in milliseconds.
    pub elapsed_ms: u64,
    /// Rate since the first byte could be sent.
    pub bytes_per_second: u64,
    /// Time that the rest takes at this rate, in milliseconds.
    pub remaining_ms: Option<u64>,
}

impl ProgressStatus {
    /// Returns the progress of bytes alone. `total` is 0 if it is unknown.
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

/// The error of the last try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorStatus {
    /// The error with its causes, in one line.
    pub text: String,
    /// The condition for a useful retry.
    pub class: ErrorClass,
    /// Time of the failure.
    pub at: Timestamp,
    /// Number of failed tries of this very file.
    pub attempts: u32,
    /// The part of the rule for signatures that refuses the bundle. Absent if that rule does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_by: Option<RefusedBy>,
}

/// Facts about bundles that only a running daemon knows, by file name.
#[derive(Debug, Default)]
pub struct Live {
    /// Progress of the running imports.
    pub(crate) progress: BTreeMap<OsString, ProgressStatus>,
    /// Reasons for late restorations.
    pub(crate) put_off: BTreeMap<OsString, String>,
    /// Reasons why no signature admits images that are in place.
    pub(crate) unadmitted: BTreeMap<OsString, String>,
    /// Records that other programs moved.
    pub(crate) moved: HashMap<OsString, BTreeSet<String>>,
}

/// Returns every bundle on the roster, and the bundles that the ledger has but the folder lacks.
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
            unadmitted: live.unadmitted.get(&name).cloned(),
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

/// Returns the bytes of files that receipts could stand for: bundles of the first images folder
/// that are in place.
pub fn savings(bundles: &[BundleStatus]) -> u64 {
    let is_file = |bundle: &&BundleStatus| !bundle.name.raw().starts_with('/');
    let in_place = bundles.iter().filter(|bundle| bundle.state == State::Done);
    in_place.filter(is_file).map(|bundle| bundle.size).sum()
}

/// Returns everything in the folder that is left alone.
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
        Phase::Waiting(Lack::Checksum) => State::AwaitingChecksum,
        Phase::Waiting(Lack::Signature) => State::AwaitingSignature,
        Phase::Done if is_skipped => State::Skipped,
        // The daemon keeps the images of a partial import in place like any others.
        Phase::Done if entry.is_some_and(Entry::is_incomplete) => State::Failed,
        Phase::Done | Phase::Ignored(_) => State::Done,
        Phase::Failed { retry: Some(_) } => State::Retrying,
        Phase::Failed { retry: None } => State::Failed,
    }
}

impl BundleStatus {
    /// Returns a file of which only the state is known.
    pub fn named(name: &std::ffi::OsStr, state: State) -> BundleStatus {
        BundleStatus {
            state,
            size: 1,
            ..of_entry(name, None, None)
        }
    }
}

/// Returns the ledger's facts about a bundle.
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
        signers: imported
            .map(|imported| imported.signers.clone())
            .unwrap_or_default(),
        unadmitted: None,
        receipt_of: entry
            .and_then(|entry| entry.stands_for.as_ref())
            .map(|of| ReceiptStatus {
                bundle: Foreign::new(of.bundle.clone()),
                size: of.identity.size,
                by_hand: of.by_hand,
                catalog: of.catalog.clone(),
            }),
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

/// Returns the number of images that these bundles bring. Images of a bundle that is under way do
/// not count as in place. Images that a bundle brought before it failed do.
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
        refused_by: error.refused_by,
    })
}

#[cfg(test)]
mod tests;
