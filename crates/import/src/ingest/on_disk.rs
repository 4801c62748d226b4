//! Before a record is written, the names of its blobs are made to last.
//!
//! containerd makes the bytes of a blob last and then renames the file into place; before 2.2 it does not make the
//! rename last. Its database, though, lasts from the moment the record is written, so a power cut in the seconds after
//! that leaves a record whose blob has no file, which containerd lists all the same.
//!
//! One sync serves every image whose blobs were committed before it began.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use containerd::Client;
use tokio::sync::{Mutex, OnceCell};

/// What is known of containerd's disk.
#[derive(Debug, Default)]
pub(super) struct OnDisk {
    /// Where the content store is, as containerd says.
    store: OnceCell<Option<PathBuf>>,
    /// Blobs that were made sure of.
    committed: AtomicU64,
    /// How many of them there were when their names were last made to last. Held while they are.
    lasting: Mutex<u64>,
}

impl OnDisk {
    /// Takes note of a blob whose name may not last yet.
    pub(super) fn note_committed(&self) {
        self.committed.fetch_add(1, Ordering::Release);
    }

    /// Makes the names of all blobs last that were noted. Where that is not possible (containerd runs on what we cannot
    /// see), the image is recorded all the same, as every other importer does.
    pub(super) async fn make_names_last(&self, client: &Client) {
        let wanted = self.committed.load(Ordering::Acquire);
        // Who cannot be asked is asked again with the next image.
        let store = self.store.get_or_try_init(|| client.content_root()).await;
        let Ok(Some(store)) = store else { return };
        let mut lasting = self.lasting.lock().await;
        if *lasting >= wanted {
            return;
        }
        let committed = self.committed.load(Ordering::Acquire);
        let blobs = store.join("blobs");
        match tokio::task::spawn_blocking(move || sync_below(&blobs)).await {
            Ok(Ok(())) => *lasting = committed,
            Ok(Err(error)) => tracing::debug!(%error, "the names of blobs are not known to last"),
            Err(error) => tracing::debug!(%error, "nobody made the names of blobs last"),
        }
    }
}

/// Makes the entries of the folders last (fsync(2)), one of which there is for each kind of digest.
fn sync_below(blobs: &Path) -> io::Result<()> {
    for kind in blobs.read_dir()? {
        File::open(kind?.path())?.sync_all()?;
    }
    Ok(())
}
