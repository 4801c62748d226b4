//! The memory of a scrub: the file `scrub.json` in the state folder. It has the place where the
//! last run ended, and the wrong blobs. A blob that a run is replacing has its labels there, in
//! case the run is killed.
//!
//! The file is a cache like the ledger. Without it, the next run starts from the first blob.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::status::ScrubStatus;

/// The version of the file that this program reads and writes.
const VERSION: u32 = 1;
const FILE: &str = "scrub.json";
const TEMPORARY: &str = ".scrub.json.new";
const LOCK: &str = "scrub.lock";
/// Bound for the file in bytes. A run adds a few wrong blobs with their labels.
const LONGEST: u64 = 16 << 20;

/// The knowledge of a scrub about the runs before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Memory {
    pub(super) version: u32,
    /// Digest of the last blob that was read. `None` at the start of a pass.
    pub(super) after: Option<String>,
    /// Time at which the last whole pass ended.
    pub(super) finished: Option<Timestamp>,
    /// Blobs that were wrong when they were read last, by digest.
    pub(super) wrong: BTreeMap<String, Wrong>,
    /// The last run that came to its end. Versions that do not know the key read the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last: Option<Run>,
}

/// A run that came to its end, also if wrong blobs ended it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Run {
    /// Time of its end.
    pub(super) at: Timestamp,
    /// Number of blobs that bundles vouched for.
    pub(super) blobs: usize,
    /// Number of blobs that it has read.
    pub(super) read: usize,
    /// Number of blobs that it left to the next run.
    pub(super) remaining: usize,
}

/// A wrong blob.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wrong {
    /// The labels that the blob had, if a run was about to replace it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) labels: Option<BTreeMap<String, String>>,
}

impl Default for Memory {
    fn default() -> Memory {
        Memory {
            version: VERSION,
            after: None,
            finished: None,
            wrong: BTreeMap::new(),
            last: None,
        }
    }
}

impl Memory {
    /// Returns the last run for documents.
    pub(super) fn status(&self) -> Option<ScrubStatus> {
        let run = self.last.as_ref()?;
        Some(ScrubStatus {
            at: run.at,
            finished_at: self.finished,
            blobs: run.blobs,
            read: run.read,
            remaining: run.remaining,
            wrong: self.wrong.len(),
        })
    }
}

/// The file of a memory. Only one scrub at a time has it.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
    _lock: File,
}

impl Store {
    /// Locks the memory and reads it. Returns `None` if another scrub is running. A file that
    /// cannot be used counts as absent.
    ///
    /// # Errors
    ///
    /// Returns the error of the lock file.
    pub(super) fn open(folder: &Path) -> io::Result<Option<(Store, Memory)>> {
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(folder.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let store = Store {
            folder: folder.to_owned(),
            _lock: lock,
        };
        Ok(Some((store, read(folder))))
    }

    /// Replaces the file: temporary file, fsync, rename, fsync of the folder.
    ///
    /// # Errors
    ///
    /// Returns the first error. The file is then the old one or the new one.
    pub(super) fn save(&self, memory: &Memory) -> io::Result<()> {
        let bytes = serde_json::to_vec(memory).expect("a memory is plain data with text keys");
        let temporary = self.folder.join(TEMPORARY);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, self.folder.join(FILE))?;
        File::open(&self.folder)?.sync_all()
    }
}

/// Reads the memory of a state folder. A file that is too long or no memory counts as absent.
pub(super) fn read(folder: &Path) -> Memory {
    let bytes = || {
        let mut bytes = Vec::new();
        let file = File::open(folder.join(FILE))?;
        file.take(LONGEST + 1).read_to_end(&mut bytes)?;
        Ok::<_, io::Error>(bytes)
    };
    let memory = bytes()
        .ok()
        .filter(|bytes| bytes.len() as u64 <= LONGEST)
        .and_then(|bytes| serde_json::from_slice::<Memory>(&bytes).ok());
    memory
        .filter(|memory| memory.version == VERSION)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_is_read_as_it_was_saved_and_a_file_that_is_none_counts_as_absent() {
        let folder = tempfile::tempdir().unwrap();
        let (store, memory) = Store::open(folder.path()).unwrap().unwrap();
        assert_eq!(memory, Memory::default());
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let memory = Memory {
            after: Some("sha256:1".to_owned()),
            wrong: BTreeMap::from([("sha256:2".to_owned(), Wrong { labels: Some(labels) })]),
            ..Memory::default()
        };
        store.save(&memory).unwrap();
        assert_eq!(read(folder.path()), memory);
        assert_eq!(memory.status(), None, "no run has ended");
        let run = Run {
            at: Timestamp::from_second(9).unwrap(),
            blobs: 7,
            read: 5,
            remaining: 2,
        };
        let ended = Memory {
            last: Some(run),
            ..memory
        };
        store.save(&ended).unwrap();
        assert_eq!(read(folder.path()), ended);
        let status = ended.status().unwrap();
        assert_eq!((status.at.as_second(), status.read, status.wrong), (9, 5, 1));
        for other in [
            "",
            "{}",
            r#"{"version":2,"after":null,"finished":null,"wrong":{}}"#,
        ] {
            std::fs::write(folder.path().join(FILE), other).unwrap();
            assert_eq!(read(folder.path()), Memory::default(), "{other}");
        }
    }

    #[test]
    fn two_scrubs_do_not_run_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let first = Store::open(folder.path()).unwrap();
        assert!(first.is_some() && Store::open(folder.path()).unwrap().is_none());
        drop(first);
        assert!(Store::open(folder.path()).unwrap().is_some());
    }
}
