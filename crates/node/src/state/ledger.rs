//! The ledger: the daemon's record of its imports. With it, a restart opens no unchanged bundle.
//!
//! The ledger is a cache. The truth lies in the bundles and in containerd. A lost ledger costs time
//! and nothing else, and the ledger never decides to remove a pin. It is a value without a disk:
//! `store` keeps it in `state.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;

use bundle::Identity;
pub use import::Outcome;
use jiff::Timestamp;
use oci_spec::image::Digest;
use serde::{Deserialize, Serialize};

pub use super::entry::{Entry, ErrorClass, LastTry, label_name};
pub use super::store::{LockError, read};

pub(crate) use super::crash::boot_id;
pub(crate) use super::entry::{BundleId, ImageEntry, Imported, LastError};
pub(crate) use super::store::{Saved, Store};
pub(crate) use super::suspects::{Crash, Crashes};

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
    #[serde(default)]
    pub(super) bundles: BTreeMap<BundleId, Entry>,
    /// Every digest that a target needs on this node, including the target. Each target has one
    /// entry, no matter how many names and bundles share it.
    #[serde(default, with = "closures")]
    closures: BTreeMap<String, Vec<Digest>>,
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
            closures: BTreeMap::new(),
        }
    }
}

impl Ledger {
    /// Returns the entry of a file, by its name in the folder.
    pub fn get(&self, file: &OsStr) -> Option<&Entry> {
        self.bundles
            .get(&BundleId::of(file))
            .filter(|entry| entry.file == file)
    }

    /// Returns all entries in the order in which the bundles arrived.
    pub(crate) fn entries(&self) -> Vec<&Entry> {
        let mut entries: Vec<_> = self.bundles.values().collect();
        entries.sort_by_key(|entry| entry.arrival);
        entries
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
            // A new file under the name of a suspect is a suspect, too.
            crashes: before
                .and_then(|entry| entry.crashes.clone())
                .map(|crashes| Crashes { times: 0, ..crashes }),
        };
        let arrival = self.arrival(file, identity);
        self.bundles
            .insert(BundleId::of(file), Entry { arrival, ..entry });
        true
    }

    /// Returns the names that later bundles vouch for, each with the target that the later bundle
    /// wants.
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
            crashes: None,
        };
        self.bundles.insert(BundleId::of(file), entry);
        self.drop_unused_closures();
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
            crashes: crashes.filter(|_| may_pass),
        };
        self.bundles.insert(BundleId::of(file), entry);
    }

    /// Records the time since which files are gone, and clears it for files that are back.
    pub(crate) fn mark_gone(&mut self, is_there: impl Fn(&OsStr) -> bool, now: Timestamp) {
        for entry in self.bundles.values_mut() {
            match (is_there(&entry.file), entry.gone) {
                (true, _) => entry.gone = None,
                (false, None) => entry.gone = Some(now),
                // The clock was set back. A file cannot disappear in the future.
                (false, Some(gone)) => entry.gone = Some(gone.min(now)),
            }
        }
    }

    /// Forgets a file and every closure that only this file needed. Returns its last entry.
    pub(crate) fn forget(&mut self, file: &OsStr) -> Option<Entry> {
        let entry = self.bundles.remove(&BundleId::of(file))?;
        self.drop_unused_closures();
        Some(entry)
    }

    /// Returns true if an image of a bundle needs this blob.
    pub(crate) fn needs(&self, digest: &Digest) -> bool {
        self.closures.values().any(|closure| closure.contains(digest))
    }

    /// Returns true if [`Ledger::desired_images`] has a record of this name.
    pub(crate) fn vouches_for(&self, name: &str) -> bool {
        let vouching = self.bundles.values().filter(|entry| entry.is_vouching());
        let mut images = vouching
            .flat_map(|entry| &entry.imported)
            .flat_map(|imported| &imported.images);
        images.any(|image| image.name == name)
    }

    /// Returns the bundles that vouch for an image with this target, by the names that labels have
    /// for their files.
    pub fn bundles_with(&self, target: &Digest) -> BTreeSet<String> {
        let vouching = self.bundles.values().filter(|entry| entry.is_vouching());
        let has = |entry: &&Entry| {
            let mut images = entry.imported.iter().flat_map(|imported| &imported.images);
            images.any(|image| image.target == *target)
        };
        vouching
            .filter(has)
            .map(|entry| label_name(&entry.file))
            .collect()
    }

    /// Returns the digests that a target needs on this node, including the target.
    pub(crate) fn closure(&self, target: &Digest) -> Option<&[Digest]> {
        self.closures.get(target.as_ref()).map(Vec::as_slice)
    }

    /// Returns the images that bundles vouch for, by name. Refused bundles do not count. If two
    /// bundles disagree, the bundle that arrived last decides.
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

    /// Makes sure that a ledger that was edited by hand does not assign the same arrival number
    /// twice.
    pub(super) fn go_on_counting(&mut self) {
        let last = self.bundles.values().map(|entry| entry.arrival).max();
        self.next_arrival = self.next_arrival.max(last.unwrap_or(0).saturating_add(1));
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
        }
    }

    pub(in crate::state) fn failure(text: &str) -> LastError {
        LastError {
            text: text.to_owned(),
            class: ErrorClass::Bundle,
            at: Timestamp::UNIX_EPOCH,
            images: 0,
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
