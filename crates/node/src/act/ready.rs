//! Keeps the memory of readiness, for the connections and for the next daemon.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::debug;

use crate::metrics;
use crate::ready::{Circumstances, Facts, Memory};
use crate::receipts;
use crate::state::State;
use crate::status::Status;
use crate::sys;

/// Time between two writes of an unchanged memory, whose times go on. After a crash, the memory is
/// so much older than the last certain state.
const PACE: Duration = Duration::from_secs(9);
/// Largest memory that is read, in bytes: that of 50,000 bundles.
const LARGEST: u64 = 1 << 20;

/// The memory of readiness, and its file in the runtime folder.
pub(super) struct Remembered {
    memory: Memory,
    path: PathBuf,
    /// The memory in the file, and the time of the last write.
    written: Option<(Memory, Instant)>,
}

impl Remembered {
    /// Reads the memory that the last daemon left in the runtime folder.
    pub(super) fn open(runtime_dir: &Path) -> Remembered {
        let path = runtime_dir.join("ready.json");
        let mut text = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(LARGEST).read_to_end(&mut text));
        Remembered {
            memory: match read {
                Ok(_) => Memory::read(&text),
                Err(_) => Memory::default(),
            },
            path,
            written: None,
        }
    }

    /// Notes the state of the node. Returns the facts about it.
    pub(super) fn note(&mut self, status: &Status, state: &State) -> Arc<Facts> {
        let circumstances = Circumstances {
            at: sys::since_boot(),
            boot: state.boot.clone(),
            containerd: state
                .ledger
                .context
                .containerd
                .clone()
                .filter(|_| state.connection.is_up()),
            key: state.requirement(),
            receipts: receipts::folder(&state.settings),
        };
        let facts = Facts::of(status, circumstances).noted_in(&mut self.memory);
        Arc::new(facts)
    }

    /// Writes the memory if it has changed, or if its times are old.
    pub(super) fn save_if_due(&mut self, now: Instant) {
        let is_due = self
            .written
            .as_ref()
            .is_none_or(|(memory, at)| now >= *at + PACE || !memory.is_like(&self.memory));
        if is_due {
            self.save(now);
        }
    }

    /// Writes the memory. Without it, the next daemon is ready after its first check.
    pub(super) fn save(&mut self, now: Instant) {
        if let Err(error) = metrics::write_with(&self.path, &self.memory.text(), 0o600) {
            debug!("the readiness is not kept for the next start: {error}");
        }
        self.written = Some((self.memory.clone(), now));
    }
}
