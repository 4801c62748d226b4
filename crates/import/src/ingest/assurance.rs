//! Before a record is written: that the names of its blobs last, and that the lease has held them all the time.
//!
//! containerd makes the bytes of a blob last and then renames the file into place; before 2.2 it does not make the
//! rename last. Its database, though, lasts from the moment the record is written, so a power cut in the seconds after
//! that leaves a record whose blob has no file, which containerd lists all the same. And a lease that somebody has
//! deleted protects nothing: what it held may have been collected.
//!
//! One round serves every image whose blobs were noted before it began.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use containerd::Client;
use tokio::sync::{Mutex, OnceCell};

use crate::lease::Lease;

/// What one lease is known to hold, on a disk that is known to keep it.
#[derive(Debug, Default)]
pub(super) struct Assurance {
    /// Where the content store is, as containerd says.
    store: OnceCell<Option<PathBuf>>,
    /// What was put under the lease, by number.
    noted: AtomicU64,
    /// How much of it the last good round has made sure of. Held during a round.
    assured: Mutex<u64>,
}

impl Assurance {
    /// Takes note of something that was put under the lease, a blob for instance.
    pub(super) fn note(&self) {
        self.noted.fetch_add(1, Ordering::Release);
    }

    /// Makes sure of all that was noted; says whether the lease still holds it. Safe to cancel.
    ///
    /// Where names cannot be made to last (containerd runs on what we cannot see), the image is recorded all the same,
    /// as every other importer does.
    ///
    /// # Errors
    ///
    /// When containerd does not say which leases there are.
    pub(super) async fn make_sure(&self, client: &Client, lease: &Lease) -> Result<bool, containerd::Error> {
        let wanted = self.noted.load(Ordering::Acquire);
        let mut assured = self.assured.lock().await;
        if *assured >= wanted {
            return Ok(true);
        }
        let noted = self.noted.load(Ordering::Acquire);
        self.make_names_last(client).await;
        let is_held = lease.is_alive(client).await?;
        if is_held {
            *assured = noted;
        }
        Ok(is_held)
    }

    async fn make_names_last(&self, client: &Client) {
        // Who cannot be asked is asked again in the next round.
        let store = self.store.get_or_try_init(|| client.content_root()).await;
        let Ok(Some(store)) = store else { return };
        let blobs = store.join("blobs");
        match tokio::task::spawn_blocking(move || sync_below(&blobs)).await {
            Ok(Ok(())) => {}
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
