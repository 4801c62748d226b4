//! The ledger: what the daemon did, so that a restart with unchanged bundles opens none of them.
//!
//! `state.json` is a cache of the truth, which lies in the bundles and in containerd. Losing it costs
//! time and nothing else; it never decides that a pin goes. The first half of this module is the
//! value, the second (`Store`) keeps it on disk: replaced atomically, locked against a second
//! daemon, set aside when it is broken and left alone when a newer version wrote it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use basics::Foreign;
use bundle::Identity;
use jiff::Timestamp;
use oci_spec::image::Digest;
use serde::{Deserialize, Serialize};

/// The version of `state.json` that this program reads and writes.
pub(crate) const VERSION: u32 = 1;

/// A ledger of a thousand bundles is a few MiB; anything beyond this is not ours.
const LARGEST: u64 = 64 << 20;

/// `<id>` in the labels on image records: the first 16 hex digits of the sha256 of a bundle's file
/// name in the images folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct BundleId(String);

impl BundleId {
    /// The id of the bundle with this file name.
    pub(crate) fn of(file: &OsStr) -> BundleId {
        BundleId(import::bundle_id(&label_name(file)))
    }
}

/// A file's name as labels and leases have it. Names are bytes and labels are text (protobuf has no other strings), so
/// bytes that are no UTF-8 are written as `\xff`: two files that differ in them only are two bundles.
pub fn label_name(file: &OsStr) -> String {
    Foreign::file_name(file).raw().to_owned()
}

impl fmt::Display for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is remembered between runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    version: u32,
    /// Under which circumstances the rest is true.
    #[serde(default)]
    pub(crate) context: Context,
    /// The arrival number that the next new bundle gets; never given out twice.
    next_arrival: u64,
    #[serde(default)]
    bundles: BTreeMap<BundleId, Entry>,
    /// Every digest that a target needs on this node, target included: once per target, however many
    /// names and bundles share it.
    #[serde(default, with = "closures")]
    closures: BTreeMap<String, Vec<Digest>>,
}

/// The circumstances in which a ledger was written. When one differs, what the ledger says must be
/// checked again before it is believed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Context {
    /// containerd's own uuid: a wiped or another containerd has another one.
    pub(crate) containerd: Option<String>,
    /// The kernel's boot id: after a power cut, blobs may be gone.
    pub(crate) boot: Option<String>,
    /// The settings that decide what an import yields (platforms, aliases, names, …), in any form
    /// that is equal when they are equal.
    pub(crate) selection: Option<String>,
    /// Device and inode of the images folder: another one is not the folder whose bundles are known.
    #[serde(default)]
    pub(crate) folder: Option<(u64, u64)>,
    /// The version of the program: another one may read what this one refused.
    #[serde(default)]
    pub(crate) program: Option<String>,
}

/// The version of this program.
pub(crate) const PROGRAM: &str = env!("CARGO_PKG_VERSION");

/// What is known of one file in the images folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The file's name in the folder. Names are bytes; one that is not UTF-8 is kept as hex.
    #[serde(with = "file_name")]
    pub(crate) file: OsString,
    /// Position in the order in which bundles arrived; a file that was replaced arrives anew.
    pub(crate) arrival: u64,
    /// The file as it was when it was last tried.
    pub(crate) identity: Identity,
    /// How that try ended.
    pub(crate) outcome: Outcome,
    /// How often this very file was tried without success; 0 after one.
    #[serde(default)]
    pub(crate) attempts: u32,
    #[serde(default)]
    pub(crate) last_error: Option<LastError>,
    /// What the bundle last put into containerd. It outlives a failed try with a newer file, since a
    /// bundle that was replaced by a broken file unpins nothing.
    #[serde(default)]
    pub(crate) imported: Option<Imported>,
    /// Since when the file is gone. What it vouched for is withdrawn, and then the entry goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gone: Option<Timestamp>,
    /// That the daemon crashed while it worked on this file. Versions that do not know the key read the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) crashes: Option<Crashes>,
}

/// Crashes of the daemon, or of a job in it, in a row and in one boot, while it worked on a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Crashes {
    /// How many. With [`Crashes::MOST`] the file is set aside. With fewer it is a suspect and tried alone, with 0 because
    /// the file or the program changed since.
    pub(crate) times: u32,
    /// The boot in which they happened.
    pub(crate) boot: Option<String>,
    /// The program that crashed ([`crate::state::crash::program`]).
    pub(crate) program: Option<String>,
}

impl Crashes {
    /// So many in a row set a file aside.
    pub(crate) const MOST: u32 = 3;
}

/// A crash while the daemon worked on a file.
#[derive(Clone, Debug)]
pub(crate) struct Crash {
    /// The cause of the crash, for messages.
    pub(crate) cause: String,
    pub(crate) boot: Option<String>,
    pub(crate) program: Option<String>,
    pub(crate) at: Timestamp,
}

/// How the last try with a bundle ended, in the words of `airgapd import -o json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is finished, and its first import is still to come or was interrupted.
    Pending,
    /// Every image of it was imported.
    Imported,
    /// Everything was in place already.
    Unchanged,
    /// Some images landed, others could not.
    Partial,
    /// Sound, but nothing in it is for this node.
    Skipped,
    /// Nothing of it could be imported.
    Failed,
}

/// Why the last try failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LastError {
    pub(crate) text: String,
    pub(crate) class: ErrorClass,
    pub(crate) at: Timestamp,
}

/// What has to happen before another try makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorClass {
    /// Time: containerd was away, a lock was held.
    Transient,
    /// Space on containerd's disk.
    Space,
    /// A disk that works: containerd's, or the one that the bundle is on.
    Disk,
    /// Another file: this one is bad.
    Bundle,
    /// Somebody who changes the configuration or the permissions.
    Permanent,
    /// Another file, checksum or rule: the node must not take this one. What it imported is not wanted any more.
    Refused,
    /// Another file, or another version of this program, which crashed over this one again and again. Only in documents:
    /// the ledger counts the crashes of an entry instead, so that earlier versions can read it.
    Crash,
}

impl ErrorClass {
    /// Whether time may help without a change of the file or the rules.
    fn may_pass(self) -> bool {
        match self {
            ErrorClass::Transient | ErrorClass::Space | ErrorClass::Disk => true,
            ErrorClass::Bundle | ErrorClass::Permanent | ErrorClass::Refused | ErrorClass::Crash => false,
        }
    }
}

impl Entry {
    /// What was found wrong with this very file, where only another file could help.
    pub(crate) fn damage(&self, identity: &Identity) -> Option<&str> {
        let error = self.last_error.as_ref()?;
        let is_bad = error.class == ErrorClass::Bundle && self.identity == *identity;
        is_bad.then_some(error.text.as_str())
    }

    /// Whether what it has imported is wanted.
    fn is_vouching(&self) -> bool {
        !self.is_refused() && self.gone.is_none()
    }

    /// Whether the node's rules are against this file, whatever it has imported.
    pub(crate) fn is_refused(&self) -> bool {
        let class = self.last_error.as_ref().map(|error| error.class);
        class == Some(ErrorClass::Refused)
    }

    /// Whether the daemon crashed over this very file until it was left alone.
    pub fn is_set_aside(&self, identity: &Identity) -> bool {
        let is_worn = |crashes: &Crashes| crashes.times >= Crashes::MOST;
        self.identity == *identity && self.crashes.as_ref().is_some_and(is_worn)
    }
}

impl From<import::Outcome> for Outcome {
    fn from(outcome: import::Outcome) -> Outcome {
        match outcome {
            import::Outcome::Imported => Outcome::Imported,
            import::Outcome::Unchanged => Outcome::Unchanged,
            import::Outcome::Partial => Outcome::Partial,
            import::Outcome::Skipped => Outcome::Skipped,
            import::Outcome::Failed => Outcome::Failed,
        }
    }
}

/// A successful import, whole or in part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Imported {
    /// The file as it was read.
    pub(crate) identity: Identity,
    /// The checksum file that it was found to match.
    #[serde(default)]
    pub(crate) sidecar: Option<Identity>,
    /// Digest of the catalog (`index.json` or `manifest.json`): the identity of the content.
    pub(crate) catalog: Digest,
    pub(crate) images: Vec<ImageEntry>,
    pub(crate) at: Timestamp,
    pub(crate) duration_ms: u64,
    /// Bytes that were sent to containerd.
    pub(crate) sent_bytes: u64,
}

/// An image record that a bundle vouches for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageEntry {
    pub(crate) name: String,
    pub(crate) target: Digest,
}

impl Default for Ledger {
    fn default() -> Ledger {
        Ledger {
            version: VERSION,
            context: Context::default(),
            next_arrival: 1,
            bundles: BTreeMap::new(),
            closures: BTreeMap::new(),
        }
    }
}

impl Ledger {
    /// The entry of a file, by its name in the folder.
    pub fn get(&self, file: &OsStr) -> Option<&Entry> {
        self.bundles
            .get(&BundleId::of(file))
            .filter(|entry| entry.file == file)
    }

    /// All entries, in the order in which the bundles arrived.
    pub(crate) fn entries(&self) -> Vec<&Entry> {
        let mut entries: Vec<_> = self.bundles.values().collect();
        entries.sort_by_key(|entry| entry.arrival);
        entries
    }

    /// Gives a finished file its place in the order of arrival, before anything of it is imported. Whether it is news.
    pub(crate) fn arrive(&mut self, file: &OsStr, identity: &Identity) -> bool {
        let before = self.get(file);
        if before.is_some_and(|entry| entry.identity == *identity && entry.gone.is_none()) {
            return false;
        }
        let entry = Entry {
            file: file.to_owned(),
            arrival: 0,
            identity: identity.clone(),
            outcome: Outcome::Pending,
            attempts: 0,
            // A rule against the file before it holds until this one was looked at.
            last_error: before
                .filter(|entry| entry.is_refused())
                .and_then(|entry| entry.last_error.clone()),
            imported: before.and_then(|entry| entry.imported.clone()),
            gone: None,
            // Another file by the name of a suspect is a suspect, too.
            crashes: before
                .and_then(|entry| entry.crashes.clone())
                .map(|crashes| Crashes { times: 0, ..crashes }),
        };
        let arrival = self.arrival(file, identity);
        self.bundles
            .insert(BundleId::of(file), Entry { arrival, ..entry });
        true
    }

    /// The names that bundles vouch for which arrived after this one, with what they want them to point at.
    pub(crate) fn later_claims(&self, file: &OsStr) -> BTreeMap<&str, &Digest> {
        let arrival = self.get(file).map_or(u64::MAX, |entry| entry.arrival);
        let later = self
            .entries()
            .into_iter()
            .filter(|entry| entry.arrival > arrival && !entry.is_refused() && entry.gone.is_none());
        later
            .flat_map(|entry| &entry.imported)
            .flat_map(|imported| &imported.images)
            .map(|image| (image.name.as_str(), &image.target))
            .collect()
    }

    /// Writes down a try that put images into containerd, with the closure of each target.
    pub(crate) fn record_import(
        &mut self,
        file: &OsStr,
        outcome: Outcome,
        imported: Imported,
        closures: impl IntoIterator<Item = (Digest, Vec<Digest>)>,
    ) {
        let arrival = self.arrival(file, &imported.identity);
        for (target, mut needed) in closures {
            needed.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
            needed.dedup();
            self.closures.insert(target.to_string(), needed);
        }
        let entry = Entry {
            file: file.to_owned(),
            arrival,
            identity: imported.identity.clone(),
            outcome,
            attempts: 0,
            last_error: None,
            imported: Some(imported),
            gone: None,
            crashes: None,
        };
        self.bundles.insert(BundleId::of(file), entry);
        self.drop_unused_closures();
    }

    /// Writes down an error beside the last outcome: the reason of a failed try, or what kept a
    /// partial one from being whole. What was imported before stays remembered.
    pub(crate) fn record_failure(
        &mut self,
        file: &OsStr,
        identity: Identity,
        outcome: Outcome,
        error: LastError,
    ) {
        let arrival = self.arrival(file, &identity);
        let before = self.get(file);
        let attempts = before
            .filter(|entry| entry.identity == identity)
            .map_or(0, |entry| entry.attempts);
        // A containerd that went away says nothing of a suspect.
        let may_pass = error.class.may_pass();
        let crashes = before.and_then(|entry| entry.crashes.clone());
        let entry = Entry {
            file: file.to_owned(),
            arrival,
            identity,
            outcome,
            attempts: attempts.saturating_add(1),
            last_error: Some(error),
            imported: before.and_then(|entry| entry.imported.clone()),
            gone: None,
            crashes: crashes.filter(|_| may_pass),
        };
        self.bundles.insert(BundleId::of(file), entry);
    }

    /// Writes down a crash over a file: the last of [`Crashes::MOST`] in a row and in one boot sets it aside, with `way_out`
    /// for those who read of it. How many there are now.
    pub(crate) fn record_crash(
        &mut self,
        file: &OsStr,
        identity: &Identity,
        crash: Crash,
        way_out: &str,
    ) -> u32 {
        self.arrive(file, identity);
        let entry = self.bundles.get_mut(&BundleId::of(file));
        let entry = entry.expect("a file that has arrived has an entry");
        let before = entry.crashes.take().filter(|before| before.boot == crash.boot);
        let times = before.map_or(0, |before| before.times).saturating_add(1);
        if times >= Crashes::MOST {
            entry.outcome = Outcome::Failed;
            entry.last_error = Some(LastError {
                text: format!(
                    "set aside: the daemon crashed over it {times} times in one boot, the last time by {}; {way_out}",
                    crash.cause
                ),
                class: ErrorClass::Permanent,
                at: crash.at,
            });
        }
        entry.attempts = entry.attempts.saturating_add(1);
        entry.crashes = Some(Crashes {
            times,
            boot: crash.boot,
            program: crash.program,
        });
        times
    }

    /// Whether the daemon crashed over a file by this name, so that the daemon tries it alone.
    pub(crate) fn is_suspect(&self, file: &OsStr) -> bool {
        self.get(file).is_some_and(|entry| entry.crashes.is_some())
    }

    /// Whether any file is a suspect or set aside.
    pub(crate) fn has_crashes(&self) -> bool {
        self.bundles.values().any(|entry| entry.crashes.is_some())
    }

    /// Lets the daemon try files again that another program crashed over.
    pub(crate) fn acquit_of_others(&mut self, program: &str) {
        for entry in self.bundles.values_mut() {
            let Some(crashes) = &mut entry.crashes else {
                continue;
            };
            if crashes.program.as_deref() == Some(program) {
                continue;
            }
            if crashes.times >= Crashes::MOST {
                entry.last_error = None;
                entry.outcome = Outcome::Pending;
            }
            crashes.times = 0;
        }
    }

    /// The entry of a file by its name as labels have it.
    pub(crate) fn get_by_label(&self, file: &str) -> Option<&Entry> {
        self.bundles.get(&BundleId::of(OsStr::new(file)))
    }

    /// Writes down since when files are gone, and that those which are back are not.
    pub(crate) fn mark_gone(&mut self, is_there: impl Fn(&OsStr) -> bool, now: Timestamp) {
        for entry in self.bundles.values_mut() {
            match (is_there(&entry.file), entry.gone) {
                (true, _) => entry.gone = None,
                (false, None) => entry.gone = Some(now),
                // The clock was set back: it cannot have gone in the future.
                (false, Some(gone)) => entry.gone = Some(gone.min(now)),
            }
        }
    }

    /// Forgets a file and every closure that only it needed; tells what was known of it.
    pub(crate) fn forget(&mut self, file: &OsStr) -> Option<Entry> {
        let entry = self.bundles.remove(&BundleId::of(file))?;
        self.drop_unused_closures();
        Some(entry)
    }

    /// Whether an image of a bundle needs this blob.
    pub(crate) fn needs(&self, digest: &Digest) -> bool {
        self.closures.values().any(|closure| closure.contains(digest))
    }

    /// Whether a bundle vouches for a record of this name, as [`Ledger::desired_images`] has it.
    pub(crate) fn vouches_for(&self, name: &str) -> bool {
        let vouching = self.bundles.values().filter(|entry| entry.is_vouching());
        let mut images = vouching
            .flat_map(|entry| &entry.imported)
            .flat_map(|imported| &imported.images);
        images.any(|image| image.name == name)
    }

    /// What a target needs on this node, the target itself included.
    pub(crate) fn closure(&self, target: &Digest) -> Option<&[Digest]> {
        self.closures.get(target.as_ref()).map(Vec::as_slice)
    }

    /// Which images the bundles vouch for, by name, without those that are refused. Where two disagree,
    /// the one that arrived last counts.
    pub(crate) fn desired_images(&self) -> BTreeMap<&str, (&Digest, &Entry)> {
        let mut desired = BTreeMap::new();
        for entry in self.entries().into_iter().filter(|entry| entry.is_vouching()) {
            for image in entry.imported.iter().flat_map(|imported| &imported.images) {
                desired.insert(image.name.as_str(), (&image.target, entry));
            }
        }
        desired
    }

    fn arrival(&mut self, file: &OsStr, identity: &Identity) -> u64 {
        match self.get(file) {
            Some(entry) if entry.identity == *identity => entry.arrival,
            _ => {
                let arrival = self.next_arrival;
                self.next_arrival += 1;
                arrival
            }
        }
    }

    fn drop_unused_closures(&mut self) {
        let used: std::collections::HashSet<&str> = self
            .bundles
            .values()
            .flat_map(|entry| &entry.imported)
            .flat_map(|imported| &imported.images)
            .map(|image| image.target.as_ref())
            .collect();
        self.closures.retain(|target, _| used.contains(target.as_str()));
    }
}

/// File names as text where they are UTF-8, as `{"hex": "…"}` where they are not.
pub(crate) mod file_name {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::{OsStrExt, OsStringExt};

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Written {
        Text(String),
        Bytes { hex: String },
    }

    pub(crate) fn serialize<S: Serializer>(name: &OsStr, serializer: S) -> Result<S::Ok, S::Error> {
        let written = match name.to_str() {
            Some(text) => Written::Text(text.to_owned()),
            None => {
                let hex = basics::digest::hex(name.as_bytes());
                Written::Bytes { hex }
            }
        };
        written.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OsString, D::Error> {
        match Written::deserialize(deserializer)? {
            Written::Text(text) => Ok(text.into()),
            Written::Bytes { hex } => {
                let pairs = hex.as_bytes().chunks(2);
                let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
                let bytes: Option<Vec<u8>> = pairs.map(byte).collect();
                bytes
                    .map(OsString::from_vec)
                    .ok_or_else(|| D::Error::custom("a file name with broken hex"))
            }
        }
    }
}

/// Closures by target. `Digest` has no order and a file should always look the same, so the key is
/// its text; both are checked as digests when they are read.
mod closures {
    use std::collections::{BTreeMap, HashMap};

    use oci_spec::image::Digest;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        closures: &BTreeMap<String, Vec<Digest>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        closures.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<String, Vec<Digest>>, D::Error> {
        let closures = HashMap::<Digest, Vec<Digest>>::deserialize(deserializer)?;
        Ok(closures
            .into_iter()
            .map(|(target, needed)| (target.to_string(), needed))
            .collect())
    }
}

/// The kernel's id of this boot, where /proc tells it.
pub(crate) fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

/// What the daemon last wrote down, for commands beside it. `None` where there is nothing to be read.
pub fn read(folder: &Path) -> Option<Ledger> {
    match load(&folder.join(FILE)) {
        Loaded::Ledger(ledger, _) => Some(*ledger),
        Loaded::Nothing | Loaded::Newer(_) | Loaded::Broken(_) | Loaded::Unreadable(_) => None,
    }
}

const FILE: &str = "state.json";
const ASIDE: &str = "state.json.bad";
const LOCK: &str = "lock";
/// One fixed name rather than a random one: it is written under the lock only, and a kill in the
/// middle of a save cannot leave more than one behind.
const TEMPORARY: &str = ".state.json.new";

/// Why a state folder cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon has it.
    #[error("another airgapd{} already uses the state folder {}", owner(*pid), folder.display())]
    Taken {
        /// The state folder.
        folder: PathBuf,
        /// Its process id, where the lock file has it.
        pid: Option<u32>,
    },
}

fn owner(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

/// Something about the state that the operator should know. None of it keeps the daemon from working.
#[derive(Debug)]
pub(crate) enum Notice {
    /// The file was broken; it is kept under another name and the ledger starts empty.
    SetAside { reason: String, kept_as: PathBuf },
    /// The file was broken and could not even be moved; the ledger starts empty and replaces it.
    Broken { reason: String },
    /// A newer airgapd wrote the file. It is left alone, and this run saves nothing.
    Newer { version: u64 },
    /// Nothing can be remembered: the folder or the file cannot be read or written.
    CannotRemember { path: PathBuf, error: io::Error },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::SetAside { reason, kept_as } => write!(
                f,
                "the state file was unreadable ({reason}); it is kept as {} and built anew from the bundles",
                kept_as.display()
            ),
            Notice::Broken { reason } => {
                write!(
                    f,
                    "the state file was unreadable ({reason}); it is built anew from the bundles"
                )
            }
            Notice::Newer { version } => write!(
                f,
                "the state file has version {version} of a newer airgapd (this one knows {VERSION}); \
                 it is left alone and nothing is remembered in this run"
            ),
            Notice::CannotRemember { path, error } => {
                write!(
                    f,
                    "cannot keep the state in {}: {error}; going on without memory",
                    path.display()
                )
            }
        }
    }
}

/// What a call to [`Store::save`] came to.
#[derive(Debug)]
#[expect(clippy::enum_variant_names, reason = "the opposite of saved is not saved")]
pub(crate) enum Saved {
    Written,
    /// The file already says the same.
    Unchanged,
    /// It could not be written; the notice comes the first time only, until a save succeeds again.
    NotSaved(Option<Notice>),
}

/// The ledger's place on disk. It holds the lock until it is dropped.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    lock: Option<File>,
    /// Cleared where a newer version owns the file.
    may_save: bool,
    told: bool,
    on_disk: Option<Vec<u8>>,
}

impl Store {
    /// Takes over the state folder, creating it (0700) where needed, and reads the ledger.
    ///
    /// # Errors
    ///
    /// Only [`LockError::Taken`]. Everything else gives an empty ledger and a notice.
    pub(crate) fn open(folder: &Path) -> Result<(Store, Ledger, Vec<Notice>), LockError> {
        let mut notices = Vec::new();
        let lock = match lock(folder) {
            Ok(Some(lock)) => Some(lock),
            Ok(None) => {
                return Err(LockError::Taken {
                    folder: folder.to_owned(),
                    pid: owner_pid(folder),
                });
            }
            Err(error) => {
                notices.push(Notice::CannotRemember {
                    path: folder.to_owned(),
                    error,
                });
                None
            }
        };
        let told = !notices.is_empty();
        let mut store = Store {
            folder: folder.to_owned(),
            lock,
            may_save: true,
            told,
            on_disk: None,
        };
        let ledger = store.load(&mut notices);
        Ok((store, ledger, notices))
    }

    fn load(&mut self, notices: &mut Vec<Notice>) -> Ledger {
        let path = self.folder.join(FILE);
        match load(&path) {
            Loaded::Nothing => Ledger::default(),
            Loaded::Ledger(ledger, bytes) => {
                self.on_disk = Some(bytes);
                *ledger
            }
            Loaded::Newer(version) => {
                self.may_save = false;
                notices.push(Notice::Newer { version });
                Ledger::default()
            }
            Loaded::Broken(reason) => {
                let kept_as = self.folder.join(ASIDE);
                notices.push(match std::fs::rename(&path, &kept_as) {
                    Ok(()) => Notice::SetAside { reason, kept_as },
                    Err(_) => Notice::Broken { reason },
                });
                Ledger::default()
            }
            Loaded::Unreadable(error) => {
                notices.push(Notice::CannotRemember { path, error });
                self.told = true;
                Ledger::default()
            }
        }
    }

    /// Replaces the file by this ledger: temporary file, fsync, rename, fsync of the folder. It
    /// blocks for as long as the disk takes, and a crash at any instant leaves the old file or the
    /// new one.
    pub(crate) fn save(&mut self, ledger: &Ledger) -> Saved {
        if !self.may_save {
            return Saved::NotSaved(None);
        }
        let bytes = serde_json::to_vec(ledger).expect("a ledger is plain data with text keys");
        if self.on_disk.as_deref() == Some(&bytes) {
            return Saved::Unchanged;
        }
        match self.replace(&bytes) {
            Ok(()) => {
                self.on_disk = Some(bytes);
                self.told = false;
                Saved::Written
            }
            Err(error) => {
                // After a failed fsync nobody knows what the disk has.
                self.on_disk = None;
                let first = !std::mem::replace(&mut self.told, true);
                let path = self.folder.join(FILE);
                Saved::NotSaved(first.then_some(Notice::CannotRemember { path, error }))
            }
        }
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.lock.is_none() {
            // The folder was not writable at start; without the lock a second daemon may be at work.
            self.lock =
                Some(lock(&self.folder)?.ok_or_else(|| io::Error::other("another airgapd has the lock"))?);
        }
        let temporary = self.folder.join(TEMPORARY);
        let written = write_synced(&temporary, bytes)
            .and_then(|()| std::fs::rename(&temporary, self.folder.join(FILE)))
            .and_then(|()| File::open(&self.folder)?.sync_all());
        if written.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        written
    }
}

enum Loaded {
    Nothing,
    Ledger(Box<Ledger>, Vec<u8>),
    Newer(u64),
    Broken(String),
    Unreadable(io::Error),
}

fn load(path: &Path) -> Loaded {
    // Should somebody have put a FIFO there, a blocking open would hang for ever.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Loaded::Nothing,
        Err(error) => return Loaded::Unreadable(error),
    };
    match file.metadata() {
        Ok(metadata) if !metadata.is_file() => return Loaded::Broken("it is not a regular file".into()),
        Ok(_) => {}
        Err(error) => return Loaded::Unreadable(error),
    }
    let mut bytes = Vec::new();
    match file.take(LARGEST + 1).read_to_end(&mut bytes) {
        Ok(_) if bytes.len() as u64 > LARGEST => {
            Loaded::Broken(format!("it is larger than {} MiB", LARGEST >> 20))
        }
        Ok(_) => parse(bytes),
        Err(error) => Loaded::Unreadable(error),
    }
}

fn parse(bytes: Vec<u8>) -> Loaded {
    #[derive(Deserialize)]
    struct Header {
        version: u64,
    }
    match serde_json::from_slice(&bytes) {
        Ok(Header { version }) if version > u64::from(VERSION) => return Loaded::Newer(version),
        Ok(Header { version: 0 }) => return Loaded::Broken("there is no version 0".into()),
        Ok(_) => {}
        Err(error) => return Loaded::Broken(error.to_string()),
    }
    match serde_json::from_slice::<Ledger>(&bytes) {
        Ok(mut ledger) => {
            // A ledger edited by hand must not give the same arrival twice.
            let last = ledger
                .bundles
                .values()
                .map(|entry| entry.arrival)
                .max()
                .unwrap_or(0);
            ledger.next_arrival = ledger.next_arrival.max(last.saturating_add(1));
            Loaded::Ledger(Box::new(ledger), bytes)
        }
        Err(error) => Loaded::Broken(error.to_string()),
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Takes the folder's lock; `None` where somebody else has it. The kernel frees it when its owner
/// dies, so a left-over file means nothing.
fn lock(folder: &Path) -> io::Result<Option<File>> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(folder.join(LOCK))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(Some(file))
}

fn owner_pid(folder: &Path) -> Option<u32> {
    std::fs::read_to_string(folder.join(LOCK))
        .ok()?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn digest(fill: char) -> Digest {
        format!("sha256:{}", fill.to_string().repeat(64)).parse().unwrap()
    }

    fn identity(size: u64) -> Identity {
        Identity {
            device: 1,
            inode: 2,
            size,
            mtime_ns: 3,
            ctime_ns: -4,
        }
    }

    fn imported(size: u64, images: &[(&str, char)]) -> Imported {
        let image = |(name, target): &(&str, char)| ImageEntry {
            name: (*name).to_owned(),
            target: digest(*target),
        };
        Imported {
            identity: identity(size),
            sidecar: None,
            catalog: digest('c'),
            images: images.iter().map(image).collect(),
            at: Timestamp::UNIX_EPOCH,
            duration_ms: 12,
            sent_bytes: 34,
        }
    }

    fn failure(text: &str) -> LastError {
        LastError {
            text: text.to_owned(),
            class: ErrorClass::Bundle,
            at: Timestamp::UNIX_EPOCH,
        }
    }

    fn name(text: &str) -> &OsStr {
        OsStr::new(text)
    }

    fn sample() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.record_import(
            name("a.tar"),
            Outcome::Imported,
            imported(1, &[("docker.io/library/x:1", '1')]),
            [(digest('1'), vec![digest('2'), digest('1'), digest('2')])],
        );
        ledger
    }

    fn knows_closure(ledger: &Ledger, target: char) -> bool {
        ledger.closure(&digest(target)).is_some()
    }

    fn crash(boot: &str, program: &str) -> Crash {
        Crash {
            cause: "SIGABRT".to_owned(),
            boot: Some(boot.to_owned()),
            program: Some(program.to_owned()),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    /// The counts after a crash in each of these boots.
    fn crashed(ledger: &mut Ledger, boots: &[&str]) -> Vec<u32> {
        let file = name("a.tar");
        let crash =
            |boot: &&str| ledger.record_crash(file, &identity(1), self::crash(boot, "1"), "change it");
        boots.iter().map(crash).collect()
    }

    #[test]
    fn three_crashes_in_a_row_and_in_one_boot_set_a_file_aside() {
        let is_set_aside = |ledger: &Ledger| ledger.get(name("a.tar")).unwrap().is_set_aside(&identity(1));
        for mut ledger in [Ledger::default(), sample()] {
            assert_eq!(crashed(&mut ledger, &["x", "x", "y", "y"]), [1, 2, 1, 2]);
            assert!(!is_set_aside(&ledger) && ledger.is_suspect(name("a.tar")));
            assert_eq!(crashed(&mut ledger, &["y"]), [3]);
            assert!(is_set_aside(&ledger));
            let entry = ledger.get(name("a.tar")).unwrap();
            assert!(!entry.is_set_aside(&identity(2)), "another file");
            let text = &entry.last_error.as_ref().unwrap().text;
            assert!(
                text.contains("3 times in one boot, the last time by SIGABRT; change it"),
                "{text}"
            );
        }
    }

    #[test]
    fn what_the_daemon_survives_clears_a_suspect_and_what_says_nothing_of_it_does_not() {
        let failure = |class| LastError {
            class,
            ..failure("no")
        };
        for (class, is_suspect) in [
            (ErrorClass::Transient, true),
            (ErrorClass::Space, true),
            (ErrorClass::Bundle, false),
            (ErrorClass::Permanent, false),
        ] {
            let mut ledger = Ledger::default();
            crashed(&mut ledger, &["x", "x"]);
            ledger.record_failure(name("a.tar"), identity(1), Outcome::Failed, failure(class));
            assert_eq!(ledger.is_suspect(name("a.tar")), is_suspect, "{class:?}");
        }
        let mut ledger = Ledger::default();
        crashed(&mut ledger, &["x", "x"]);
        ledger.record_import(name("a.tar"), Outcome::Imported, imported(1, &[]), []);
        assert!(!ledger.is_suspect(name("a.tar")));
    }

    #[test]
    fn another_file_or_program_is_tried_again_and_counted_anew() {
        let mut ledger = Ledger::default();
        crashed(&mut ledger, &["x", "x", "x"]);
        assert!(ledger.arrive(name("a.tar"), &identity(2)));
        assert!(ledger.is_suspect(name("a.tar")), "it is tried alone");
        assert_eq!(
            ledger.record_crash(name("a.tar"), &identity(2), crash("x", "1"), ""),
            1
        );

        let mut ledger = Ledger::default();
        crashed(&mut ledger, &["x", "x", "x"]);
        ledger.acquit_of_others("1");
        assert!(
            ledger.get(name("a.tar")).unwrap().is_set_aside(&identity(1)),
            "the same program"
        );
        ledger.acquit_of_others("2");
        let entry = ledger.get(name("a.tar")).unwrap();
        assert!(!entry.is_set_aside(&identity(1)) && entry.last_error.is_none());
        assert!(ledger.is_suspect(name("a.tar")), "it is tried alone");
        assert_eq!(crashed(&mut ledger, &["x"]), [1]);
    }

    /// A class that an earlier version does not know would cost it the whole ledger.
    #[test]
    fn a_ledger_with_crashes_is_written_in_words_that_earlier_versions_know() {
        let mut ledger = Ledger::default();
        crashed(&mut ledger, &["x", "x", "x"]);
        let written = serde_json::to_value(&ledger).unwrap();
        let entry = written["bundles"].as_object().unwrap().values().next().unwrap();
        assert_eq!(
            (&entry["outcome"], &entry["last_error"]["class"]),
            (&"failed".into(), &"permanent".into())
        );
        assert_eq!(entry["crashes"]["times"], 3);
        let read: Ledger = serde_json::from_value(written).unwrap();
        assert_eq!(read, ledger);
        let without = serde_json::to_string(&sample()).unwrap();
        assert!(!without.contains("crashes"), "{without}");
    }

    #[test]
    fn names_that_are_no_text_are_told_apart_in_labels() {
        let table: [(&[u8], &str); 4] = [
            (b"a.tar", "a.tar"),
            ("\u{e4}.tar".as_bytes(), "\u{e4}.tar"),
            (b"\xff.tar", "\\xff.tar"),
            (b"a\xfe\xffb", "a\\xfe\\xffb"),
        ];
        for (file, expected) in table {
            let file = OsStr::from_bytes(file);
            assert_eq!(label_name(file), expected);
            // What a label says leads back to the bundle.
            assert_eq!(BundleId::of(OsStr::new(&label_name(file))), BundleId::of(file));
        }
    }

    #[test]
    fn a_bundle_id_is_the_start_of_the_hash_of_its_file_name() {
        // printf %s bundle.tar | sha256sum
        assert_eq!(BundleId::of(name("bundle.tar")).0.len(), 16);
        assert_eq!(BundleId::of(name("")).0, "e3b0c44298fc1c14");
        assert_ne!(BundleId::of(name("a")), BundleId::of(name("b")));
    }

    #[test]
    fn an_import_is_remembered_with_closures_sorted_and_once() {
        let ledger = sample();
        let entry = ledger.get(name("a.tar")).unwrap();
        assert_eq!(
            (entry.outcome, entry.attempts, entry.arrival),
            (Outcome::Imported, 0, 1)
        );
        assert_eq!(
            ledger.closure(&digest('1')),
            Some(&[digest('1'), digest('2')][..])
        );
        assert_eq!(ledger.closure(&digest('2')), None);
    }

    #[test]
    fn a_failed_try_keeps_what_was_imported_and_counts_per_file() {
        let mut ledger = sample();
        ledger.record_failure(name("a.tar"), identity(2), Outcome::Failed, failure("bad"));
        ledger.record_failure(name("a.tar"), identity(2), Outcome::Failed, failure("still bad"));
        let entry = ledger.get(name("a.tar")).unwrap();
        assert_eq!((entry.attempts, entry.outcome), (2, Outcome::Failed));
        assert_eq!(entry.last_error.as_ref().unwrap().text, "still bad");
        assert_eq!(entry.imported.as_ref().unwrap().images.len(), 1);
        assert!(knows_closure(&ledger, '1'));

        ledger.record_failure(
            name("a.tar"),
            identity(3),
            Outcome::Failed,
            failure("another file"),
        );
        assert_eq!(ledger.get(name("a.tar")).unwrap().attempts, 1);
    }

    #[test]
    fn a_replaced_file_arrives_anew_and_an_unchanged_one_does_not() {
        let mut ledger = sample();
        ledger.record_import(name("b.tar"), Outcome::Imported, imported(1, &[]), []);
        ledger.record_import(name("a.tar"), Outcome::Imported, imported(1, &[]), []);
        assert_eq!(ledger.get(name("a.tar")).unwrap().arrival, 1);
        ledger.record_import(name("a.tar"), Outcome::Imported, imported(9, &[]), []);
        assert_eq!(ledger.get(name("a.tar")).unwrap().arrival, 3);
        let order: Vec<_> = ledger.entries().iter().map(|entry| entry.file.clone()).collect();
        assert_eq!(order, ["b.tar", "a.tar"]);
    }

    #[test]
    fn the_bundle_that_arrived_last_decides_about_a_name() {
        let mut ledger = Ledger::default();
        for (file, target) in [("z.tar", '1'), ("a.tar", '2')] {
            ledger.record_import(name(file), Outcome::Imported, imported(1, &[("x", target)]), []);
        }
        assert_eq!(ledger.desired_images()["x"].0, &digest('2'));
        ledger.forget(name("a.tar"));
        assert_eq!(ledger.desired_images()["x"].0, &digest('1'));
    }

    #[test]
    fn closures_go_with_the_last_bundle_that_needs_them() {
        let mut ledger = sample();
        ledger.record_import(name("b.tar"), Outcome::Imported, imported(1, &[("y", '1')]), []);
        ledger.forget(name("a.tar"));
        assert!(knows_closure(&ledger, '1'));
        ledger.forget(name("b.tar"));
        assert!(!knows_closure(&ledger, '1'));
        assert_eq!(ledger.forget(name("b.tar")), None);
    }

    #[test]
    fn what_is_saved_is_read_back_equal_odd_file_names_included() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _, notices) = Store::open(folder.path()).unwrap();
        assert!(notices.is_empty());
        let mut ledger = sample();
        let odd = OsStr::from_bytes(b"\xff\xfe\n.tar");
        ledger.record_import(odd, Outcome::Partial, imported(1, &[]), []);
        ledger.context.boot = boot_id();
        assert!(matches!(store.save(&ledger), Saved::Written));
        assert!(matches!(store.save(&ledger), Saved::Unchanged));
        drop(store);

        let (_, again, notices) = Store::open(folder.path()).unwrap();
        assert!(notices.is_empty());
        assert_eq!(again, ledger);
        assert!(!folder.path().join(TEMPORARY).exists());
        let mode = std::fs::metadata(folder.path().join(FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_second_daemon_is_refused_with_the_pid_of_the_first_until_that_one_ends() {
        let folder = tempfile::tempdir().unwrap();
        let first = Store::open(folder.path()).unwrap();
        let error = Store::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        drop(first);
        assert!(Store::open(folder.path()).is_ok());
    }

    #[test]
    fn broken_files_are_set_aside_and_the_ledger_starts_empty() {
        let whole = serde_json::to_vec(&sample()).unwrap();
        let cut = &whole[..whole.len() / 2];
        let bad_digest = String::from_utf8(whole.clone())
            .unwrap()
            .replace(&"1".repeat(64), "../etc");
        let table: [(&str, &[u8]); 7] = [
            ("empty", b""),
            ("no JSON", b"\0\0\0"),
            ("cut", cut),
            ("no version", b"{}"),
            ("foreign", b"[1, 2]"),
            ("version 0", br#"{"version": 0}"#),
            ("a digest that is none", bad_digest.as_bytes()),
        ];
        for (case, bytes) in table {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join(FILE), bytes).unwrap();
            let (mut store, ledger, notices) = Store::open(folder.path()).unwrap();
            assert_eq!(ledger, Ledger::default(), "{case}");
            assert!(
                matches!(notices.as_slice(), [Notice::SetAside { .. }]),
                "{case}: {notices:?}"
            );
            assert_eq!(std::fs::read(folder.path().join(ASIDE)).unwrap(), bytes, "{case}");
            assert!(matches!(store.save(&sample()), Saved::Written), "{case}");
        }
    }

    #[test]
    fn a_file_of_a_newer_version_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let newer = br#"{"version": 2, "bundles": "in a form yet unknown"}"#;
        std::fs::write(folder.path().join(FILE), newer).unwrap();
        let (mut store, ledger, notices) = Store::open(folder.path()).unwrap();
        assert_eq!(ledger, Ledger::default());
        assert!(matches!(notices.as_slice(), [Notice::Newer { version: 2 }]));
        assert!(matches!(store.save(&sample()), Saved::NotSaved(None)));
        assert_eq!(std::fs::read(folder.path().join(FILE)).unwrap(), newer);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_told_once_and_again_after_it_healed() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let (mut store, _, _) = Store::open(&state).unwrap();
        assert!(matches!(store.save(&Ledger::default()), Saved::Written));
        // A folder in the way makes the save fail for root too.
        let obstacle = state.join(TEMPORARY);
        std::fs::create_dir(&obstacle).unwrap();
        assert!(matches!(store.save(&sample()), Saved::NotSaved(Some(_))));
        assert!(matches!(store.save(&sample()), Saved::NotSaved(None)));
        std::fs::remove_dir(&obstacle).unwrap();
        assert!(matches!(store.save(&sample()), Saved::Written));
        std::fs::create_dir(&obstacle).unwrap();
        assert!(matches!(store.save(&Ledger::default()), Saved::NotSaved(Some(_))));
    }

    #[test]
    fn a_state_folder_that_cannot_exist_gives_a_notice_and_an_empty_ledger() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        let (mut store, ledger, notices) = Store::open(&folder.path().join("file/state")).unwrap();
        assert_eq!(ledger, Ledger::default());
        assert!(!notices.is_empty());
        assert!(matches!(store.save(&sample()), Saved::NotSaved(None)));
    }
}
