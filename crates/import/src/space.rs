//! The forecast whether an import fits: the missing bytes and files, and the free space on the file
//! system of containerd's content store.
//!
//! The decisions on the figures are pure. Only [`Space`] looks at a disk, and only if the store is
//! visible. A daemon that has nothing but containerd's socket imports without a forecast.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use basics::{bytes, counted};
use containerd::{Client, INGEST_PREFIX, ingest_ref};
use oci_spec::image::Digest;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

/// Disk usage in percent above which kubelet removes unused images (`imageGCHighThresholdPercent`).
/// If less than the rest is free, kubelet evicts pods (`imagefs.available<15%`). Both are kubelet's
/// defaults.
const KUBELET_USED_PERCENT: u64 = 85;
/// Distance in percent of the disk that unpacking ahead keeps from kubelet's threshold. Unpacked
/// layers are a convenience, and must not make kubelet remove images.
const AHEAD_DISTANCE_PERCENT: u64 = 10;
/// Share of free inodes in percent below which kubelet evicts pods (`imagefs.inodesFree<5%` by
/// default).
const KUBELET_INODES_PERCENT: u64 = 5;
/// Number of files of an ingest under way: its folder, the data, and containerd's notes on it.
const INGEST_FILES: u64 = 6;
/// Number of ingests under way at a time.
const INGESTS: u64 = 4;

/// The space that always stays free on containerd's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinFree {
    /// A number of bytes.
    Bytes(u64),
    /// A share of the disk in percent, 100 at most.
    Percent(u8),
}

impl Default for MinFree {
    fn default() -> MinFree {
        MinFree::Bytes(0)
    }
}

impl MinFree {
    /// Returns the number of bytes on this disk.
    #[must_use]
    pub fn bytes_of(self, disk: &Disk) -> u64 {
        match self {
            MinFree::Bytes(bytes) => bytes,
            MinFree::Percent(percent) => share(disk.size, u64::from(percent)),
        }
    }
}

/// Returns `percent` hundredths of a number, rounded up.
fn share(of: u64, percent: u64) -> u64 {
    let share = (u128::from(of) * u128::from(percent)).div_ceil(100);
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// A file system, as statvfs(3) shows it to processes without privileges (and to kubelet).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Total number of bytes.
    pub size: u64,
    /// Free bytes.
    pub free: u64,
    /// Total number of inodes. 0 if the file system makes inodes on demand.
    pub inodes: u64,
    /// Free inodes.
    pub free_inodes: u64,
    /// Block size in bytes. A file takes a whole number of blocks.
    pub block: u64,
}

impl Disk {
    /// Looks at the file system that holds, or is going to hold, `path`. Does not see the quota of
    /// a user or group.
    ///
    /// # Errors
    ///
    /// Returns the error of statvfs(3), for instance if neither `path` nor its parent exists.
    pub fn of(path: &Path) -> io::Result<Disk> {
        let stat = match (rustix::fs::statvfs(path), path.parent()) {
            (Err(rustix::io::Errno::NOENT), Some(parent)) => rustix::fs::statvfs(parent),
            (stat, _) => stat,
        }?;
        let block = stat.f_frsize.max(1);
        Ok(Disk {
            size: stat.f_blocks.saturating_mul(block),
            free: stat.f_bavail.saturating_mul(block),
            inodes: stat.f_files,
            free_inodes: stat.f_favail,
            block,
        })
    }

    /// Returns true if kubelet acts on a shortage of this, with its default thresholds.
    #[must_use]
    pub fn is_scarce(&self, what: Scarce) -> bool {
        match what {
            Scarce::Bytes => self.used_percent() > KUBELET_USED_PERCENT,
            Scarce::Inodes => {
                self.inodes > 0 && self.free_inodes < share(self.inodes, KUBELET_INODES_PERCENT)
            }
        }
    }

    fn used_percent(&self) -> u64 {
        percent(self.size.saturating_sub(self.free), self.size)
    }
}

/// A resource of a disk that kubelet watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scarce {
    /// Free bytes.
    Bytes,
    /// Free inodes.
    Inodes,
}

impl Disk {
    /// Returns true if this many further bytes leave the disk well below kubelet's thresholds.
    #[must_use]
    pub(crate) fn has_room_ahead(&self, bytes: u64) -> bool {
        let used = (self.size - self.free.min(self.size)).saturating_add(bytes);
        let most = share(self.size, KUBELET_USED_PERCENT - AHEAD_DISTANCE_PERCENT);
        let fewest_inodes = share(self.inodes, KUBELET_INODES_PERCENT + AHEAD_DISTANCE_PERCENT);
        used <= most && self.free_inodes >= fewest_inodes
    }
}

/// The space that an import needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Bytes, in whole blocks.
    pub bytes: u64,
    /// Number of files.
    pub inodes: u64,
}

impl Demand {
    /// Returns the demand of blobs. `missing` has the number of missing bytes of each.
    fn of(missing: &[u64], block: u64) -> Demand {
        let block = block.max(1);
        let in_blocks = |bytes: &u64| bytes.div_ceil(block).saturating_mul(block);
        let count = missing.len() as u64;
        Demand {
            bytes: missing.iter().map(in_blocks).fold(0, u64::saturating_add),
            inodes: count + count.min(INGESTS) * INGEST_FILES,
        }
    }
}

/// The state of the disk after an import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// Folder of containerd's content store.
    pub store: PathBuf,
    /// The store's file system now.
    pub disk: Disk,
    /// The space that the import needs.
    pub demand: Demand,
    /// Bytes that must stay free.
    pub min_free: u64,
    /// Bytes of the disk that become free after the import ([`Space::going`]).
    pub going: u64,
}

impl Forecast {
    /// Compares the demand with the disk.
    #[must_use]
    pub fn new(store: &Path, disk: Disk, demand: Demand, min_free: MinFree) -> Forecast {
        Forecast {
            store: store.to_owned(),
            min_free: min_free.bytes_of(&disk),
            disk,
            demand,
            going: 0,
        }
    }

    /// Returns the shortage, if there is one.
    #[must_use]
    pub fn shortage(&self) -> Option<Shortage> {
        let is_short = self.lacking_bytes() > 0 || self.lacks_inodes();
        is_short.then(|| Shortage(self.clone()))
    }

    fn lacking_bytes(&self) -> u64 {
        let wanted = self.demand.bytes.saturating_add(self.min_free);
        wanted.saturating_sub(self.disk.free)
    }

    fn lacks_inodes(&self) -> bool {
        self.disk.inodes > 0 && self.demand.inodes > self.disk.free_inodes
    }

    /// Returns warnings about kubelet's reactions to the disk after the import.
    #[must_use]
    pub fn warnings(&self) -> Vec<(Scarce, String)> {
        let Forecast {
            disk, demand, store, ..
        } = self;
        let mut warnings = Vec::new();
        let free = disk.free.saturating_sub(demand.bytes);
        let then = Disk {
            free: free.saturating_add(self.going).min(disk.size),
            free_inodes: disk.free_inodes.saturating_sub(demand.inodes),
            ..*disk
        };
        if demand.bytes > 0 && then.is_scarce(Scarce::Bytes) {
            let text = format!(
                "the disk of {} will be {} % full: above {KUBELET_USED_PERCENT} % kubelet removes unused images, and with less than {} % free it evicts pods",
                store.display(),
                then.used_percent(),
                100 - KUBELET_USED_PERCENT
            );
            warnings.push((Scarce::Bytes, text));
        }
        if demand.inodes > 0 && then.is_scarce(Scarce::Inodes) {
            let text = format!(
                "the disk of {} will have {} of {} inodes free: below {KUBELET_INODES_PERCENT} % kubelet evicts pods",
                store.display(),
                then.free_inodes,
                disk.inodes
            );
            warnings.push((Scarce::Inodes, text));
        }
        warnings
    }
}

/// Returns a share in percent, rounded up.
fn percent(part: u64, whole: u64) -> u64 {
    let percent = (u128::from(part) * 100).div_ceil(u128::from(whole.max(1)));
    u64::try_from(percent).unwrap_or(u64::MAX)
}

/// For documents. `docs/json.md` describes the keys.
impl Serialize for Forecast {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut space = serializer.serialize_struct("Forecast", 10)?;
        space.serialize_field("path", &self.store)?;
        space.serialize_field("size_bytes", &self.disk.size)?;
        space.serialize_field("free_bytes", &self.disk.free)?;
        space.serialize_field("wanted_bytes", &self.demand.bytes)?;
        space.serialize_field("min_free_bytes", &self.min_free)?;
        space.serialize_field("going_bytes", &self.going)?;
        space.serialize_field("inodes", &self.disk.inodes)?;
        space.serialize_field("free_inodes", &self.disk.free_inodes)?;
        space.serialize_field("wanted_inodes", &self.demand.inodes)?;
        space.serialize_field("fits", &self.shortage().is_none())?;
        space.end()
    }
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Forecast {
            store,
            disk,
            demand,
            min_free,
            going,
        } = self;
        write!(
            f,
            "{} wanted, {} of {} free in {}",
            bytes(demand.bytes),
            bytes(disk.free),
            bytes(disk.size),
            store.display()
        )?;
        if *min_free > 0 {
            write!(f, ", {} to stay free (minFree)", bytes(*min_free))?;
        }
        if *going > 0 {
            write!(
                f,
                ", {} free again with the bundle's file (afterImport)",
                bytes(*going)
            )?;
        }
        Ok(())
    }
}

/// A forecast of an import that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage(Forecast);

impl Shortage {
    /// Returns true if a disk in this state has enough space.
    #[must_use]
    pub fn is_over(&self, disk: Disk) -> bool {
        let Shortage(forecast) = self;
        let now = Forecast {
            disk,
            ..forecast.clone()
        };
        now.shortage().is_none()
    }

    /// Returns the folder with too little space.
    #[must_use]
    pub fn store(&self) -> &Path {
        &self.0.store
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shortage(forecast) = self;
        let Forecast { disk, demand, .. } = forecast;
        write!(f, "no space for it on containerd's disk: {forecast}; ")?;
        match forecast.lacking_bytes() {
            0 => write!(
                f,
                "{} wanted, {} of {} free: free {} there",
                counted(demand.inodes, "file"),
                disk.free_inodes,
                counted(disk.inodes, "inode"),
                counted(demand.inodes.saturating_sub(disk.free_inodes), "inode")
            ),
            lacking if forecast.min_free > 0 => write!(f, "free {} there, or lower minFree", bytes(lacking)),
            lacking => write!(f, "free {} there", bytes(lacking)),
        }
    }
}

impl std::error::Error for Shortage {}

/// The content store, and the space that must stay free there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Folder of containerd's content store, if it is visible.
    pub store: Option<PathBuf>,
    /// The space that must stay free.
    pub min_free: MinFree,
    /// Bytes on the store's disk that become free after the import, with the bundle's file. A
    /// receipt takes its place. During the import both need their space.
    pub going: u64,
}

impl Space {
    /// Returns the forecast for blobs of these sizes. Returns `None` if they need no space, or if
    /// the disk is not visible.
    ///
    /// Safe to cancel.
    ///
    /// # Errors
    ///
    /// Returns the client's error if it cannot list half-written blobs.
    pub(crate) async fn forecast(
        &self,
        client: &Client,
        blobs: &[(&Digest, u64)],
    ) -> Result<Option<Forecast>, containerd::Error> {
        let Some(store) = self.store.as_deref() else {
            return Ok(None);
        };
        let Ok(disk) = Disk::of(store) else {
            return Ok(None);
        };
        let sends = blobs.iter().any(|(_, size)| *size > 0);
        if !sends && self.min_free == MinFree::default() {
            return Ok(None);
        }
        let begun: HashMap<String, u64> = match sends {
            true => client.ingests_beginning(INGEST_PREFIX).await?.into_iter(),
            false => Vec::new().into_iter(),
        }
        .map(|ingest| (ingest.reference, ingest.offset))
        .collect();
        let there = |digest: &Digest| match begun.get(&ingest_ref(digest)) {
            Some(offset) => *offset,
            // Another namespace may have the blob, or its record is gone and its file is left.
            // containerd takes over the file and does not store it twice.
            None => stored_bytes(store, digest).unwrap_or_default(),
        };
        let demand = Demand::of(&missing(blobs, there), disk.block);
        Ok(Some(Forecast {
            going: self.going,
            ..Forecast::new(store, disk, demand, self.min_free)
        }))
    }

    /// Returns the shortage if the disk has less than `minFree` now. Then no bundle may be
    /// imported, however small.
    #[must_use]
    pub fn below_minimum(&self) -> Option<Shortage> {
        if self.min_free == MinFree::default() {
            return None;
        }
        let store = self.store.as_deref()?;
        let disk = Disk::of(store).ok()?;
        Forecast::new(store, disk, Demand::default(), self.min_free).shortage()
    }
}

/// Returns the number of missing bytes of each blob. `there` gives the bytes that exist.
fn missing(blobs: &[(&Digest, u64)], there: impl Fn(&Digest) -> u64) -> Vec<u64> {
    blobs
        .iter()
        .map(|(digest, size)| size.saturating_sub(there(digest)))
        .collect()
}

/// Returns the length of a blob's file in a content store.
///
/// # Errors
///
/// Returns the error of stat(2).
pub(crate) fn stored_bytes(store: &Path, digest: &Digest) -> io::Result<u64> {
    let file = blob_file(store, digest);
    std::fs::metadata(file).map(|metadata| metadata.len())
}

/// Returns the path of a blob in a content store.
pub(crate) fn blob_file(store: &Path, digest: &Digest) -> PathBuf {
    let algorithm = digest.algorithm().to_string();
    store.join("blobs").join(algorithm).join(digest.digest())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    /// Returns a disk of 1 GB with 100,000 inodes.
    fn disk(free: u64, free_inodes: u64) -> Disk {
        Disk {
            size: 1000 * MB,
            free,
            inodes: 100_000,
            free_inodes,
            block: 1000,
        }
    }

    fn forecast(wanted: u64, inodes: u64, disk: Disk, min_free: MinFree) -> Forecast {
        let demand = Demand {
            bytes: wanted,
            inodes,
        };
        Forecast::new(Path::new("/store"), disk, demand, min_free)
    }

    #[test]
    fn unpacking_ahead_keeps_ten_points_from_kubelets_thresholds() {
        let disk = |free, free_inodes| Disk {
            size: 1000,
            free,
            inodes: 100,
            free_inodes,
            block: 1,
        };
        let rows = [
            (disk(1000, 100), 750, true),
            (disk(1000, 100), 751, false),
            (disk(300, 100), 50, true),
            (disk(300, 100), 51, false),
            (disk(200, 100), 0, false),
            (disk(1000, 15), 1, true),
            (disk(1000, 14), 1, false),
            (disk(1000, 100), u64::MAX, false),
        ];
        for (disk, bytes, expected) in rows {
            assert_eq!(disk.has_room_ahead(bytes), expected, "{disk:?} {bytes}");
        }
        // This file system makes inodes on demand.
        let on_demand = Disk {
            inodes: 0,
            free_inodes: 0,
            ..disk(1000, 0)
        };
        assert!(on_demand.has_room_ahead(1));
    }

    #[test]
    fn a_file_that_goes_counts_after_the_import_and_not_during_it() {
        let demand = Demand {
            bytes: 400 * MB,
            inodes: 5,
        };
        let forecast = |free, going| Forecast {
            going,
            ..Forecast::new(Path::new("/store"), disk(free, 90_000), demand, MinFree::Bytes(0))
        };
        for (free, going, is_scarce, is_short) in [
            (500 * MB, 0, true, false),
            (500 * MB, 400 * MB, false, false),
            (500 * MB, u64::MAX, false, false),
            (500 * MB, 10 * MB, true, false),
            (399 * MB, 900 * MB, false, true),
        ] {
            let forecast = forecast(free, going);
            let found = (!forecast.warnings().is_empty(), forecast.shortage().is_some());
            assert_eq!(found, (is_scarce, is_short), "{free} {going}");
        }
        let told = forecast(500 * MB, 400 * MB).to_string();
        assert!(
            told.ends_with(", 400.0 MB free again with the bundle's file (afterImport)"),
            "{told}"
        );
    }

    #[test]
    fn what_does_not_fit_is_told_with_figures_and_the_way_out() {
        use MinFree::{Bytes, Percent};
        let none = Bytes(0);
        let cases = [
            (500 * MB, 5, disk(500 * MB, 99), none, None),
            (
                500 * MB + 1,
                5,
                disk(500 * MB, 99),
                none,
                Some("500.0 MB wanted, 500.0 MB of 1.0 GB free in /store; free 1 B there"),
            ),
            (
                500 * MB,
                5,
                disk(550 * MB, 99),
                Bytes(100 * MB),
                Some(
                    "500.0 MB wanted, 550.0 MB of 1.0 GB free in /store, 100.0 MB to stay free (minFree); free 50.0 MB there, or lower minFree",
                ),
            ),
            (500 * MB, 5, disk(600 * MB, 99), Percent(10), None),
            (
                0,
                0,
                disk(99 * MB, 99),
                Percent(10),
                Some(
                    "0 B wanted, 99.0 MB of 1.0 GB free in /store, 100.0 MB to stay free (minFree); free 1.0 MB there, or lower minFree",
                ),
            ),
            (
                1,
                100,
                disk(500 * MB, 99),
                none,
                Some(
                    "1 B wanted, 500.0 MB of 1.0 GB free in /store; 100 files wanted, 99 of 100000 inodes free: free 1 inode there",
                ),
            ),
            (u64::MAX, 0, disk(500 * MB, 99), Bytes(u64::MAX), Some("wanted")),
        ];
        for (wanted, inodes, disk, min_free, expected) in cases {
            let shortage = forecast(wanted, inodes, disk, min_free).shortage();
            let text = shortage.as_ref().map(ToString::to_string);
            match expected {
                None => assert_eq!(text, None),
                Some(expected) => {
                    let text = text.unwrap_or_default();
                    assert!(text.contains(expected), "{text}");
                    assert!(
                        text.starts_with("no space for it on containerd's disk: "),
                        "{text}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_file_system_without_inodes_of_its_own_has_as_many_as_are_wanted() {
        let unlimited = Disk {
            inodes: 0,
            free_inodes: 0,
            ..disk(900 * MB, 0)
        };
        let forecast = forecast(1, 1000, unlimited, MinFree::default());
        assert_eq!(forecast.shortage(), None);
        assert_eq!(forecast.warnings(), []);
    }

    #[test]
    fn a_shortage_is_over_when_there_is_enough_and_not_before() {
        let shortage = forecast(500 * MB, 50, disk(0, 10), MinFree::Bytes(MB))
            .shortage()
            .unwrap();
        assert!(!shortage.is_over(disk(501 * MB - 1, 50)));
        assert!(!shortage.is_over(disk(501 * MB, 49)));
        assert!(shortage.is_over(disk(501 * MB, 50)));
    }

    #[test]
    fn kubelets_thresholds_are_warned_of_only_where_the_import_passes_them() {
        for (wanted, inodes, disk, words) in [
            (100 * MB, 10, disk(250 * MB, 90_000), vec![]),
            (100 * MB + 1, 10, disk(250 * MB, 90_000), vec!["86 % full: above"]),
            (
                100 * MB,
                10,
                disk(900 * MB, 5009),
                vec!["4999 of 100000 inodes free: below"],
            ),
            (
                100 * MB,
                10,
                disk(100 * MB, 10),
                vec!["100 % full: above", "0 of 100000"],
            ),
            (0, 0, disk(0, 0), vec![]),
        ] {
            let warnings = forecast(wanted, inodes, disk, MinFree::default()).warnings();
            assert_eq!(warnings.len(), words.len(), "{warnings:?}");
            for ((_, warning), word) in warnings.iter().zip(words) {
                assert!(warning.contains(word) && warning.contains("/store"), "{warning}");
            }
        }
    }

    #[test]
    fn blobs_take_whole_blocks_and_files_of_their_own() {
        let demand = |missing: &[u64]| {
            let Demand { bytes, inodes } = Demand::of(missing, 4096);
            (bytes, inodes)
        };
        assert_eq!(demand(&[]), (0, 0));
        assert_eq!(demand(&[1]), (4096, 7));
        assert_eq!(demand(&[4096, 4097, 0]), (3 * 4096, 3 + 18));
        assert_eq!(demand(&[1; 100]), (100 * 4096, 100 + 24));
        assert_eq!(demand(&[u64::MAX, u64::MAX]).0, u64::MAX);
    }

    #[test]
    fn only_what_is_not_there_yet_is_missing() {
        let [whole, begun, more] = ['a', 'c', 'd']
            .map(|fill| -> Digest { format!("sha256:{}", fill.to_string().repeat(64)).parse().unwrap() });
        let there = |at: &Digest| match at {
            at if *at == begun => 400,
            at if *at == more => 5000,
            _ => 0,
        };
        let blobs = [(&whole, 1000), (&begun, 1000), (&more, 1000)];
        assert_eq!(missing(&blobs, there), [1000, 600, 0]);
    }

    #[test]
    fn a_disk_is_looked_at_through_any_folder_on_it() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::of(folder.path()).unwrap();
        assert!(disk.size > 0 && disk.free <= disk.size && disk.block > 0);
        assert_eq!(Disk::of(&folder.path().join("absent")).unwrap().size, disk.size);
        assert!(Disk::of(&folder.path().join("absent/absent")).is_err());
    }

    #[test]
    fn without_a_store_in_sight_nothing_is_below_the_minimum() {
        let min_free = MinFree::Percent(100);
        let hidden = Space {
            store: None,
            min_free,
            going: 0,
        };
        assert_eq!(hidden.below_minimum(), None);
        let folder = tempfile::tempdir().unwrap();
        let seen = Space {
            store: Some(folder.path().to_owned()),
            min_free,
            going: 0,
        };
        assert!(seen.below_minimum().is_some());
        let without = Space {
            min_free: MinFree::default(),
            ..seen
        };
        assert_eq!(without.below_minimum(), None);
    }
}
