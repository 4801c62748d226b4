//! The checks before a record is written: the names of its blobs are durable, and the lease has
//! held the blobs all the time.
//!
//! containerd syncs the bytes of a blob and then renames the file into place. Before 2.2, it does
//! not sync the rename. The record in its database, however, is durable at once. So a power cut in
//! the next seconds leaves a record whose blob has no file. containerd still lists such a blob.
//!
//! A deleted lease protects nothing: its blobs may have been collected.
//!
//! One round serves every image that waits when the round starts.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use containerd::Client;
use tokio::sync::OnceCell;

use crate::lease::Lease;
use crate::rounds::Rounds;

/// The state of the checks for one lease.
#[derive(Debug, Default)]
pub(super) struct Assurance {
    /// Folder of the content store, as containerd gives it.
    store: OnceCell<Option<PathBuf>>,
    rounds: Rounds,
}

impl Assurance {
    /// Secures everything that was put under the lease before. Returns true if the lease still
    /// exists. Safe to cancel.
    ///
    /// If containerd's files are not visible, their names cannot be synced. The image is recorded
    /// all the same, as every other importer does.
    ///
    /// # Errors
    ///
    /// Returns an error if containerd does not list its leases.
    pub(super) async fn make_sure(&self, client: &Client, lease: &Lease) -> Result<bool, containerd::Error> {
        let round = async || {
            self.make_names_last(client).await;
            lease.is_alive(client).await
        };
        self.rounds.join(round).await
    }

    async fn make_names_last(&self, client: &Client) {
        // After an error, the next round asks again.
        let store = self.store.get_or_try_init(|| client.content_root()).await;
        let Ok(Some(store)) = store else { return };
        let blobs = store.join("blobs");
        match tokio::task::spawn_blocking(move || sync_below(&blobs)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "cannot sync the names of blobs"),
            Err(error) => tracing::debug!(%error, "cannot sync the names of blobs"),
        }
    }
}

/// Syncs the folders' entries (fsync(2)). There is one folder for each digest algorithm.
fn sync_below(blobs: &Path) -> io::Result<()> {
    for kind in blobs.read_dir()? {
        File::open(kind?.path())?.sync_all()?;
    }
    Ok(())
}
