//! The ledger: the daemon's record of its imports. With it, a restart opens no unchanged bundle.
//!
//! The ledger is a cache. The truth lies in the bundles and in containerd. A lost ledger costs time
//! and nothing else, and the ledger never decides to remove a pin. It is a value without a disk:
//! `store` keeps it in `state.json`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use bundle::Identity;
pub use import::Outcome;
use jiff::Timestamp;
use oci_spec::image::Digest;
use serde::{Deserialize, Serialize};

pub use super::entry::{Entry, ErrorClass, LastTry, RefusedBy, SignerEntry, label_name, signers};
pub use super::store::{LockError, read, read_or_empty};

use super::carried::Lists;
pub(crate) use super::carried::{Carried, CarriedRelease};
pub(crate) use super::crash::boot_id;
pub(crate) use super::entry::{BundleId, ImageEntry, Imported, LastError, StandsFor};
pub(crate) use super::store::{Saved, Store, stamp};
pub(crate) use super::suspects::{Crash, Crashes};
use crate::place::folder_of;

/// The version of `state.json` that this program reads and writes.
pub(crate) const VERSION: u32 = 1;

/// The daemon's memory between runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    version: u32,
    /// The circumstances in which the rest is true.
    #[serde(default)]
    pub(crate) context: Context,
    /// Arrival number of the next new bundle. No number is used twice.
    next_arrival: u64,
    /// The bundles of the first images folder.
    #[serde(default)]
    bundles: BTreeMap<BundleId, Entry>,
    /// The bundles of all other images folders. 0.1.0 has one folder and would call these bundles
    /// gone, so they have a key that it does not read.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    more_bundles: BTreeMap<BundleId, Entry>,
    /// The images folders after the first one. An earlier folder comes before a later one if both
    /// have an image of a name.
    #[serde(skip)]
    more_dirs: Vec<PathBuf>,
    /// Every digest that a target needs on this node, including the target. Each target has one
    /// entry, no matter how many names and bundles share it.
    #[serde(default, with = "closures")]
    closures: BTreeMap<String, Vec<Digest>>,
    /// The lists of members of the releases that bundles carry. Versions that do not know the key
    /// read the rest.
    #[serde(default, skip_serializing_if = "Lists::is_empty")]
    pub(super) lists: Lists,
}

/// The circumstances in which a ledger was written. If one differs, the daemon checks the ledger's
/// claims again before it relies on them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Context {
    /// containerd's own uuid. It changes if containerd is wiped or replaced.
    pub(crate) containerd: Option<String>,
    /// The kernel's boot id. After a power cut, blobs may be gone.
    pub(crate) boot: Option<String>,
    /// The settings that decide what an import yields (platforms, aliases, names, …). Any form will
    /// do in which equal settings give equal text.
    pub(crate) selection: Option<String>,
    /// Device and inode of the images folder. The ledger knows the bundles of the folder with these
    /// numbers only.
    #[serde(default)]
    pub(crate) folder: Option<(u64, u64)>,
    /// The same for all other images folders. Versions that do not know the key read the rest.
    /// The keys are paths in the form of [`label_name`], since a key of JSON is text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) more_folders: BTreeMap<String, (u64, u64)>,
    /// The version of the program. Another version may read a file that this one refused.
    #[serde(default)]
    pub(crate) program: Option<String>,
}

/// The version of this program.
pub(crate) const PROGRAM: &str = env!("CARGO_PKG_VERSION");

impl Default for Ledger {
    fn default() -> Ledger {
        Ledger {
            version: VERSION,
            context: Context::default(),
            next_arrival: 1,
            bundles: BTreeMap::new(),
            more_bundles: BTreeMap::new(),
            more_dirs: Vec::new(),
            closures: BTreeMap::new(),
            lists: Lists::default(),
        }
    }
}

impl Ledger {
    /// Returns the entry of a file, by its name.
    pub fn get(&self, file: &OsStr) -> Option<&Entry> {
        let bundles = match Path::new(file).is_absolute() {
            true => &self.more_bundles,
            false => &self.bundles,
        };
        bundles
            .get(&BundleId::of(file))
            .filter(|entry| entry.file == file)
    }

    /// Returns the bundles of the folders that this file belongs to: the first one, or all others.
    fn shelf(&mut self, file: &OsStr) -> &mut BTreeMap<BundleId, Entry> {
        match Path::new(file).is_absolute() {
            true => &mut self.more_bundles,
            false => &mut self.bundles,
        }
    }

    /// Returns the entry of a file for changes. The file must be in the ledger.
    pub(super) fn get_mut(&mut self, file: &OsStr) -> Option<&mut Entry> {
        self.shelf(file).get_mut(&BundleId::of(file))
    }

    fn put(&mut self, entry: Entry) {
        let id = BundleId::of(&entry.file);
        self.shelf(&entry.file).insert(id, entry);
    }

    /// Returns all entries in no useful order.
    pub(super) fn all(&self) -> impl Iterator<Item = &Entry> {
        self.bundles.values().chain(self.more_bundles.values())
    }

    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.bundles.values_mut().chain(self.more_bundles.values_mut())
    }

    /// Sets the images folders after the first one, in their order.
    pub(crate) fn set_folders(&mut self, more_dirs: &[PathBuf]) {
        self.more_dirs = more_dirs.to_vec();
    }

    /// Returns the place of a file among all files that have images of the same name. The file with
    /// the largest place has the name. Bundles of an earlier folder come before those of a later
    /// folder. In a folder, the bundle that arrived last comes first. A file without an entry comes
    /// before all others.
    pub(crate) fn rank(&self, file: &OsStr) -> (Reverse<usize>, u64, Option<i64>) {
        match self.get(file) {
            Some(entry) => self.rank_of(entry),
            None => (Reverse(0), u64::MAX, None),
        }
    }

    fn rank_of(&self, entry: &Entry) -> (Reverse<usize>, u64, Option<i64>) {
        // A receipt has the folder and the arrival of its bundle. An import by hand counts as a
        // bundle of the first folder.
        let folder = match &entry.stands_for {
            Some(of) if of.by_hand => Some(0),
            Some(of) => folder_of(OsStr::new(&of.bundle), &self.more_dirs),
            None => folder_of(&entry.file, &self.more_dirs),
        };
        let folder = folder.unwrap_or(usize::MAX);
        // Two receipts may have one place if the ledger was lost. Their times differ.
        let since = entry.stands_for.as_ref().map(StandsFor::since);
        (Reverse(folder), entry.arrival, since)
    }

    /// Returns all entries, those that come before others last ([`Ledger::rank`]). In one folder
    /// this is the order in which the bundles arrived.
    pub(crate) fn entries(&self) -> Vec<&Entry> {
        let mut entries: Vec<_> = self.all().collect();
        entries.sort_by_cached_key(|entry| self.rank_of(entry));
        entries
    }

    /// Makes the daemon read bundles of a read-only later folder again: those whose file has no
    /// time of change of its own. Such a file is on the file system of an OS image, such as
    /// squashfs, erofs or ISO 9660. Another image may have another file of the same size there,
    /// with the same device, inode and times.
    ///
    /// The files keep their arrival and their crashes.
    pub(crate) fn doubt_unchanging(&mut self, folder: &Path) {
        for entry in self.more_bundles.values_mut() {
            let is_unchanging = entry.identity.mtime_ns == entry.identity.ctime_ns;
            if !is_unchanging || !Path::new(&entry.file).starts_with(folder) {
                continue;
            }
            if let Some(imported) = &mut entry.imported {
                // No file system has this inode.
                imported.identity.inode = 0;
            }
            // Perhaps another file was damaged.
            if entry.last_error.as_ref().map(|error| error.class) == Some(ErrorClass::Bundle) {
                entry.last_error = None;
                entry.outcome = LastTry::Pending;
            }
        }
    }

    /// Gives a finished file its place in the order of arrival, before any of its images is
    /// imported. Returns true if the ledger changed.
    pub(crate) fn arrive(&mut self, file: &OsStr, identity: &Identity) -> bool {
        let before = self.get(file);
        if before.is_some_and(|entry| entry.identity == *identity && entry.gone.is_none()) {
            return false;
        }
        let entry = Entry {
            file: file.to_owned(),
            arrival: 0,
            identity: identity.clone(),
            outcome: LastTry::Pending,
            attempts: 0,
            // A new file under the name of a refused one counts as refused until the daemon has
            // examined it.
            last_error: before
                .filter(|entry| entry.is_refused())
                .and_then(|entry| entry.last_error.clone()),
            imported: before.and_then(|entry| entry.imported.clone()),
            first: before.and_then(|entry| entry.first),
            gone: None,
            stands_for: before.and_then(|entry| entry.stands_for.clone()),
            // A new file under the name of a suspect is a suspect, too.
            crashes: before
                .and_then(|entry| entry.crashes.clone())
                .map(|crashes| Crashes { times: 0, ..crashes }),
        };
        let arrival = self.arrival(file, identity);
        self.put(Entry { arrival, ..entry });
        true
    }

    /// Returns the receipts that vouch for images, by file name.
    pub fn receipts(&self) -> impl Iterator<Item = &OsStr> {
        let receipts = self
            .all()
            .filter(|entry| entry.stands_for.is_some() && entry.is_vouching());
        receipts.map(|entry| entry.file.as_os_str())
    }

    /// Returns the name of the bundle whose receipt brought a record of this name and target. The
    /// rules of today count for nothing.
    pub fn stood_for_with(&self, record: &str, target: &Digest) -> Option<&str> {
        let has_it = |image: &ImageEntry| image.name == record && image.target == *target;
        self.entries().into_iter().find_map(|entry| {
            let of = entry.stands_for.as_ref()?;
            let images = &entry.imported.as_ref()?.images;
            images.iter().any(has_it).then_some(of.bundle.as_str())
        })
    }

    /// Returns true if a file of the folder of receipts was read before: a receipt, or a file that
    /// is none.
    pub(crate) fn knows_receipt(&self, file: &OsStr) -> bool {
        self.get(file).is_some_and(|entry| {
            let error = entry.last_error.as_ref();
            entry.stands_for.is_some() || error.is_some_and(|error| error.class == ErrorClass::Bundle)
        })
    }

    /// Returns the bytes of the imported files in the first images folder. Receipts could stand for
    /// these files.
    pub fn bytes_of_files(&self) -> u64 {
        let files = self.bundles.values().filter(|entry| entry.is_vouching());
        let imported = files.filter_map(|entry| entry.imported.as_ref());
        imported.map(|imported| imported.identity.size).sum()
    }

    /// Notes the bundle that a receipt stands for. The receipt gets the place of that bundle in the
    /// order of arrival. If the ledger lacks the bundle, the time of the receipt tells the place.
    /// Bundles that were imported later then come after it. A roll back to its release moves the
    /// receipt behind its bundle.
    pub(crate) fn stand_for(&mut self, receipt: &OsStr, of: StandsFor) {
        let bundle = self.get(OsStr::new(&of.bundle));
        let is_in_its_place = !of.by_hand && of.rolled_back_at.is_none();
        let bundle = bundle.filter(|entry| is_in_its_place && entry.identity == of.identity);
        let others = self.all().filter(|entry| entry.file != receipt);
        let later = others.filter(|entry| entry.since().is_some_and(|since| since > of.since()));
        let next = later.map(|entry| entry.arrival).min();
        let arrival = bundle
            .map(|entry| entry.arrival)
            .or(next.map(|next| next.saturating_sub(1)));
        if let Some(entry) = self.get_mut(receipt)
            && entry.stands_for.as_ref() != Some(&of)
        {
            entry.arrival = arrival.unwrap_or(entry.arrival);
            entry.stands_for = Some(of);
        }
    }

    /// Returns the receipt that stands for a bundle: its file as it is in the ledger.
    pub(crate) fn receipt_of(&self, bundle: &Entry) -> Option<&Entry> {
        let name = label_name(&bundle.file);
        let imported = bundle.imported.as_ref()?;
        self.all().find(|entry| {
            let is_of = |of: &StandsFor| !of.by_hand && of.bundle == name && of.identity == imported.identity;
            entry.stands_for.as_ref().is_some_and(is_of)
        })
    }

    /// Returns the names that bundles before this one vouch for ([`Ledger::rank`]). Each name has
    /// the target that the first of these bundles wants, and the entry of that bundle.
    pub(crate) fn later_claims(&self, file: &OsStr) -> BTreeMap<&str, (&Digest, &Entry)> {
        let rank = self.rank(file);
        let later = self.entries().into_iter();
        let later =
            later.filter(|entry| self.rank_of(entry) > rank && !entry.is_refused() && entry.gone.is_none());
        let images = later.flat_map(|entry| {
            let imported = entry.imported.iter();
            imported.flat_map(move |imported| imported.images.iter().map(move |image| (image, entry)))
        });
        images
            .map(|(image, entry)| (image.name.as_str(), (&image.target, entry)))
            .collect()
    }

    /// Records a try that put images into containerd, with the closure of each target.
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
        let stands_for = self.get(file).and_then(|before| before.stands_for.clone());
        let same = self.get(file).filter(|before| {
            let before = before.imported.as_ref();
            before.is_some_and(|before| before.catalog == imported.catalog)
        });
        let entry = Entry {
            file: file.to_owned(),
            arrival,
            identity: imported.identity.clone(),
            outcome: LastTry::Ended(outcome),
            attempts: 0,
            last_error: None,
            first: same.and_then(Entry::first_imported),
            imported: Some(imported),
            gone: None,
            stands_for,
            crashes: None,
        };
        self.put(entry);
        self.drop_unused_closures();
        self.drop_unused_lists();
    }

    /// Records an error beside the last outcome: why a try failed, or why a partial one is not
    /// whole. The ledger keeps the earlier import.
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
        // An error such as a lost containerd does not clear a suspect.
        let may_pass = error.class.may_pass();
        let crashes = before.and_then(|entry| entry.crashes.clone());
        let entry = Entry {
            file: file.to_owned(),
            arrival,
            identity,
            outcome: LastTry::Ended(outcome),
            attempts: attempts.saturating_add(1),
            last_error: Some(error),
            imported: before.and_then(|entry| entry.imported.clone()),
            first: before.and_then(|entry| entry.first),
            gone: None,
            stands_for: before.and_then(|entry| entry.stands_for.clone()),
            crashes: crashes.filter(|_| may_pass),
        };
        self.put(entry);
    }

    /// Records the time since which files are gone, and clears it for files that are back. A file
    /// for which `is_there` has no answer keeps its time.
    pub(crate) fn mark_gone(&mut self, is_there: impl Fn(&OsStr) -> Option<bool>, now: Timestamp) {
        for entry in self.all_mut() {
            match (is_there(&entry.file), entry.gone) {
                (None, _) => {}
                (Some(true), _) => entry.gone = None,
                (Some(false), None) => entry.gone = Some(now),
                // The clock was set back. A file cannot disappear in the future.
                (Some(false), Some(gone)) => entry.gone = Some(gone.min(now)),
            }
        }
    }

    /// Forgets a file and every closure that only this file needed. Returns its last entry.
    pub(crate) fn forget(&mut self, file: &OsStr) -> Option<Entry> {
        let entry = self.shelf(file).remove(&BundleId::of(file))?;
        self.drop_unused_closures();
        self.drop_unused_lists();
        Some(entry)
    }

    /// Returns true if a bundle with this catalog has been imported, and its file is not forgotten.
    /// A receipt counts before its import, too.
    pub fn has_imported(&self, catalog: &Digest) -> bool {
        let imported = |entry: &Entry| entry.imported.as_ref().map(|imported| imported.catalog.clone());
        let stood_for = |entry: &Entry| entry.stands_for.as_ref()?.catalog.clone();
        self.all()
            .any(|entry| [imported(entry), stood_for(entry)].contains(&Some(catalog.clone())))
    }

    /// Returns true if an image of a bundle needs this blob.
    pub(crate) fn needs(&self, digest: &Digest) -> bool {
        self.closures.values().any(|closure| closure.contains(digest))
    }

    /// Returns true if [`Ledger::desired_images`] has a record of this name.
    pub(crate) fn vouches_for(&self, name: &str) -> bool {
        let vouching = self.all().filter(|entry| entry.is_vouching());
        let mut images = vouching
            .flat_map(|entry| &entry.imported)
            .flat_map(|imported| &imported.images);
        images.any(|image| image.name == name)
    }

    /// Returns the bundles that vouch for an image with this target, by the names that labels have
    /// for their files.
    pub fn bundles_with(&self, target: &Digest) -> BTreeSet<String> {
        let vouching = self.all().filter(|entry| entry.is_vouching());
        let has = |entry: &&Entry| {
            let mut images = entry.imported.iter().flat_map(|imported| &imported.images);
            images.any(|image| image.target == *target)
        };
        vouching
            .filter(has)
            .map(|entry| label_name(&entry.file))
            .collect()
    }

    /// Returns the number of these blobs that a bundle's images need.
    pub(crate) fn blobs_among(&self, bundle: &Entry, blobs: &[Digest]) -> usize {
        let images = bundle.imported.iter().flat_map(|imported| &imported.images);
        let targets: HashSet<&Digest> = images.map(|image| &image.target).collect();
        let closures: Vec<&[Digest]> = targets
            .into_iter()
            .filter_map(|target| self.closure(target))
            .collect();
        let is_needed = |blob: &&Digest| {
            // A closure is sorted.
            let has = |closure: &&[Digest]| {
                closure
                    .binary_search_by(|other| other.as_ref().cmp(blob.as_ref()))
                    .is_ok()
            };
            closures.iter().any(has)
        };
        blobs.iter().filter(is_needed).count()
    }

    /// Returns the receipts that have lost a blob, each with the error.
    pub fn degraded_receipts(&self) -> impl Iterator<Item = (&OsStr, &str)> {
        let receipts = self
            .all()
            .filter(|entry| entry.stands_for.is_some() && entry.gone.is_none());
        receipts.filter_map(|entry| {
            let error = entry.last_error.as_ref()?;
            let is_degraded = error.class == ErrorClass::Degraded;
            is_degraded.then_some((entry.file.as_os_str(), error.text.as_str()))
        })
    }

    /// Returns the digests that a target needs on this node, including the target.
    pub(crate) fn closure(&self, target: &Digest) -> Option<&[Digest]> {
        self.closures.get(target.as_ref()).map(Vec::as_slice)
    }

    /// Returns the images that bundles vouch for, by name. Refused bundles do not count. If two
    /// bundles disagree, [`Ledger::rank`] decides: the earlier folder, then the later arrival.
    pub(crate) fn desired_images(&self) -> BTreeMap<&str, (&Digest, &Entry)> {
        self.images_of(Entry::is_vouching)
    }

    /// Returns the images of the bundles that `is_counted` selects, by name, in the order of
    /// [`Ledger::desired_images`].
    pub(crate) fn images_of(&self, is_counted: impl Fn(&Entry) -> bool) -> BTreeMap<&str, (&Digest, &Entry)> {
        let mut images = BTreeMap::new();
        for entry in self.entries().into_iter().filter(|entry| is_counted(entry)) {
            for image in entry.imported.iter().flat_map(|imported| &imported.images) {
                images.insert(image.name.as_str(), (&image.target, entry));
            }
        }
        images
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

    /// Makes sure that a ledger that was edited by hand does not assign the same arrival number
    /// twice.
    pub(super) fn go_on_counting(&mut self) {
        let last = self.all().map(|entry| entry.arrival).max();
        self.next_arrival = self.next_arrival.max(last.unwrap_or(0).saturating_add(1));
    }

    fn drop_unused_closures(&mut self) {
        let bundles = self.bundles.values().chain(self.more_bundles.values());
        let used: HashSet<&str> = bundles
            .flat_map(|entry| &entry.imported)
            .flat_map(|imported| &imported.images)
            .map(|image| image.target.as_ref())
            .collect();
        self.closures.retain(|target, _| used.contains(target.as_str()));
    }
}

/// Closures by target. `Digest` has no order, so the key is its text and a file always looks the
/// same. Both are checked as digests when they are read.
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::state) fn digest(fill: char) -> Digest {
        format!("sha256:{}", fill.to_string().repeat(64)).parse().unwrap()
    }

    pub(in crate::state) fn identity(size: u64) -> Identity {
        Identity {
            device: 1,
            inode: 2,
            size,
            mtime_ns: 3,
            ctime_ns: -4,
        }
    }

    pub(in crate::state) fn imported(size: u64, images: &[(&str, char)]) -> Imported {
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
            signers: Vec::new(),
            withheld: Vec::new(),
            is_delta: false,
            release: Carried::default(),
        }
    }

    pub(in crate::state) fn failure(text: &str) -> LastError {
        LastError {
            text: text.to_owned(),
            class: ErrorClass::Bundle,
            at: Timestamp::UNIX_EPOCH,
            images: 0,
            refused_by: None,
        }
    }

    pub(in crate::state) fn name(text: &str) -> &OsStr {
        OsStr::new(text)
    }

    pub(in crate::state) fn sample() -> Ledger {
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

    #[test]
    fn a_try_has_the_words_of_state_json_and_of_the_report() {
        let words = ["pending", "imported", "unchanged", "partial", "skipped", "failed"];
        for word in words {
            let json = format!("\"{word}\"");
            let last: LastTry = serde_json::from_str(&json).unwrap();
            match last {
                LastTry::Pending => assert_eq!(word, "pending"),
                LastTry::Ended(outcome) => assert_eq!(word, outcome.as_str()),
            }
            assert_eq!(serde_json::to_string(&last).unwrap(), json);
        }
        assert!(serde_json::from_str::<LastTry>("\"done\"").is_err());
    }

    #[test]
    fn an_import_is_remembered_with_closures_sorted_and_once() {
        let ledger = sample();
        let entry = ledger.get(name("a.tar")).unwrap();
        assert_eq!(
            (entry.outcome, entry.attempts, entry.arrival),
            (LastTry::Ended(Outcome::Imported), 0, 1)
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
        assert_eq!(
            (entry.attempts, entry.outcome),
            (2, LastTry::Ended(Outcome::Failed))
        );
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
    fn the_first_import_of_a_catalog_is_remembered_until_the_file_has_another() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let import = |ledger: &mut Ledger, fill: char, second: i64| {
            let imported = Imported {
                catalog: digest(fill),
                at: at(second),
                ..imported(1, &[])
            };
            ledger.record_import(name("a.tar"), Outcome::Imported, imported, []);
            ledger.get(name("a.tar")).unwrap().first_imported()
        };
        let mut ledger = Ledger::default();
        assert_eq!(import(&mut ledger, 'c', 10), Some(at(10)));
        assert_eq!(import(&mut ledger, 'c', 20), Some(at(10)));
        ledger.record_failure(name("a.tar"), identity(1), Outcome::Failed, failure("bad"));
        ledger.arrive(name("a.tar"), &identity(2));
        assert_eq!(import(&mut ledger, 'c', 30), Some(at(10)));
        assert_eq!(import(&mut ledger, 'd', 40), Some(at(40)));
        ledger.forget(name("a.tar"));
        assert_eq!(import(&mut ledger, 'd', 50), Some(at(50)));
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
    fn an_earlier_folder_decides_about_a_name_and_then_the_later_arrival() {
        let mut ledger = Ledger::default();
        ledger.set_folders(&["/os".into(), "/more".into()]);
        let files = [
            "/more/c.tar",
            "a.tar",
            "/os/b.tar",
            "/os/a.tar",
            "/gone/d.tar",
            "/more/a.tar",
        ];
        for (file, target) in files.into_iter().zip('1'..) {
            ledger.record_import(name(file), Outcome::Imported, imported(1, &[("x", target)]), []);
        }
        let order = [
            ("a.tar", '2'),
            ("/os/a.tar", '4'),
            ("/os/b.tar", '3'),
            ("/more/a.tar", '6'),
            ("/more/c.tar", '1'),
            ("/gone/d.tar", '5'),
        ];
        let entries: Vec<_> = ledger
            .entries()
            .iter()
            .rev()
            .map(|entry| entry.file.clone())
            .collect();
        assert_eq!(entries, order.map(|(file, _)| file));
        assert_eq!(ledger.later_claims(name("a.tar")), BTreeMap::new());
        let (wanted, by) = ledger.later_claims(name("/os/b.tar"))["x"];
        assert_eq!((wanted, by.file.as_os_str()), (&digest('2'), name("a.tar")));
        for (file, target) in order {
            assert_eq!(ledger.desired_images()["x"].0, &digest(target), "{file}");
            ledger.forget(name(file));
        }
    }

    #[test]
    fn a_receipt_has_the_place_of_its_bundle_in_the_order_of_names() {
        let receipt = |file: &str| format!("/state/receipts/{file}");
        let import = |ledger: &mut Ledger, file: &str, target: char, at: i64| {
            let imported = Imported {
                at: Timestamp::from_second(at).unwrap(),
                ..imported(1, &[("x", target)])
            };
            ledger.record_import(name(file), Outcome::Imported, imported, []);
        };
        let stand_for = |ledger: &mut Ledger, file: &str, target: char, made_at: i64| {
            let path = receipt(file);
            let of = StandsFor {
                bundle: file.to_owned(),
                identity: identity(1),
                made_at,
                rolled_back_at: None,
                lease: "a".to_owned(),
                by_hand: false,
                catalog: None,
            };
            ledger.arrive(name(&path), &identity(1));
            ledger.stand_for(name(&path), of);
            import(ledger, &path, target, 1000);
        };
        let folders = ["/more".into(), "/state/receipts".into()];
        let owner = |ledger: &Ledger| ledger.desired_images()["x"].1.file.clone();

        let mut ledger = Ledger::default();
        ledger.set_folders(&folders);
        import(&mut ledger, "/more/c.tar", '3', 5);
        import(&mut ledger, "a.tar", '1', 10);
        import(&mut ledger, "b.tar", '2', 20);
        stand_for(&mut ledger, "a.tar", '1', 11);
        assert_eq!(
            owner(&ledger),
            "b.tar",
            "it arrived after the bundle of the receipt"
        );
        assert_eq!(
            ledger
                .receipt_of(ledger.get(name("a.tar")).unwrap())
                .unwrap()
                .file,
            *receipt("a.tar")
        );
        ledger.forget(name("b.tar"));
        ledger.forget(name("a.tar"));
        assert_eq!(
            owner(&ledger),
            *receipt("a.tar"),
            "a further folder comes after it"
        );

        // The ledger was lost, or 0.1.0 ran meanwhile. The times of the receipts remain.
        let mut ledger = Ledger::default();
        ledger.set_folders(&folders);
        stand_for(&mut ledger, "b.tar", '2', 20);
        stand_for(&mut ledger, "a.tar", '1', 11);
        assert_eq!(owner(&ledger), *receipt("b.tar"), "the later receipt");
        import(&mut ledger, "c.tar", '3', 30);
        assert_eq!(owner(&ledger), "c.tar");
        stand_for(&mut ledger, "d.tar", '4', 25);
        assert_eq!(
            owner(&ledger),
            "c.tar",
            "it was imported after the receipt was made"
        );
        // Three receipts, the latest first: the last two get the same place.
        let mut ledger = Ledger::default();
        ledger.set_folders(&folders);
        for (file, target, made_at) in [("1.tar", '1', 20), ("2.tar", '2', 11), ("3.tar", '3', 5)] {
            stand_for(&mut ledger, file, target, made_at);
        }
        ledger.forget(name(&receipt("1.tar")));
        assert_eq!(owner(&ledger), *receipt("2.tar"));
        // An import by hand of this moment.
        stand_for(&mut ledger, "e.tar", '5', 2000);
        assert_eq!(owner(&ledger), *receipt("e.tar"));
    }

    #[test]
    fn only_files_without_a_time_of_change_in_that_further_folder_are_doubted() {
        let with = |mtime_ns, ctime_ns| Imported {
            identity: Identity {
                mtime_ns,
                ctime_ns,
                ..identity(1)
            },
            ..imported(1, &[])
        };
        let table = [
            ("a.tar", with(0, 0), false),
            ("/os/a.tar", with(0, 0), true),
            ("/os/b.tar", with(0, 7), false),
            ("/more/a.tar", with(0, 0), false),
        ];
        for (file, imported, is_doubted) in table {
            let mut ledger = Ledger::default();
            let before = imported.identity.clone();
            ledger.record_import(name(file), Outcome::Imported, imported, []);
            ledger.doubt_unchanging(Path::new("/os"));
            let entry = ledger.get(name(file)).unwrap();
            let of_import = &entry.imported.as_ref().unwrap().identity;
            assert_eq!(*of_import != before, is_doubted, "{file}");
            assert!(entry.is_vouching(), "{file}");
            // It is still the file that arrived.
            assert!(!ledger.arrive(name(file), &before), "{file}");
        }
    }

    #[test]
    fn a_receipt_is_degraded_by_the_class_of_its_error_and_not_by_its_words() {
        let mut ledger = Ledger::default();
        let table = [
            ("lost.tar", ErrorClass::Degraded, "a layer is lost", true),
            (
                "away.tar",
                ErrorClass::Transient,
                "degraded: the words of another error",
                false,
            ),
        ];
        for (file, class, text, _) in table {
            ledger.record_import(name(file), Outcome::Imported, imported(1, &[]), []);
            let of = StandsFor {
                bundle: file.to_owned(),
                identity: identity(1),
                made_at: 1,
                rolled_back_at: None,
                lease: "a".to_owned(),
                by_hand: false,
                catalog: None,
            };
            ledger.stand_for(name(file), of);
            let error = LastError {
                class,
                ..failure(text)
            };
            ledger.record_failure(name(file), identity(1), Outcome::Failed, error);
        }
        let found: Vec<_> = ledger.degraded_receipts().collect();
        let expected = table.iter().filter(|(.., is_degraded)| *is_degraded);
        let expected: Vec<_> = expected.map(|(file, _, text, _)| (name(file), *text)).collect();
        assert_eq!(found, expected);
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
}
