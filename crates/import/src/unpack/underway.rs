//! The layers that are being unpacked at the moment, of all images.
//!
//! Images share layers, and cores are few. So each layer is unpacked once, and as many layers at a
//! time as there are cores. One sync of the disk serves all layers that were applied before it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use containerd::{Client, Held, LayerSpec};
use oci_spec::image::Digest;
use tokio::sync::{Semaphore, watch};

use super::UnpackError;
use crate::rounds::Rounds;
use crate::space::Disk;

/// Most layers that are applied at a time. containerd decompresses each on one core, and more
/// layers than cores only compete for them. More than eight layers would wait for the disk.
const MOST_LAYERS: usize = 8;

/// The work that the images have in common.
#[derive(Debug)]
pub(super) struct Underway {
    /// One permit for each layer that may be applied now.
    room: Semaphore,
    at_a_time: usize,
    /// The layers under way by chain ID. A receiver ends when the layer's turn ends.
    claimed: Mutex<HashMap<Digest, watch::Receiver<()>>>,
    /// The chain IDs that containerd had when they were last listed, and those committed since.
    /// `None` before the first list.
    known: tokio::sync::Mutex<Option<HashSet<String>>>,
    /// Bytes that the layers under way may still write.
    reserved: AtomicU64,
    syncs: Rounds,
}

impl Default for Underway {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let at_a_time = cores.min(MOST_LAYERS);
        Self {
            room: Semaphore::new(at_a_time),
            at_a_time,
            claimed: Mutex::default(),
            known: tokio::sync::Mutex::default(),
            reserved: AtomicU64::new(0),
            syncs: Rounds::default(),
        }
    }
}

/// The turn of a layer. Dropping it lets other images look for the layer.
pub(super) struct Turn<'a> {
    of: &'a Underway,
    chain: Digest,
    /// Its end wakes the images that wait for the layer.
    _ended: watch::Sender<()>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.of.claimed().remove(&self.chain);
    }
}

/// Bytes of the disk that belong to a layer under way. Dropping it gives them back.
pub(super) struct Reserved<'a> {
    of: &'a Underway,
    bytes: u64,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.of.reserved.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl Underway {
    /// Number of images to unpack at a time. One more than layers, so that cores stay busy while an
    /// image waits for a sync.
    pub(super) fn images_at_a_time(&self) -> usize {
        self.at_a_time + 1
    }

    fn claimed(&self) -> MutexGuard<'_, HashMap<Digest, watch::Receiver<()>>> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other image unpacks this layer. Safe to cancel.
    pub(super) async fn turn(&self, chain: &Digest) -> Turn<'_> {
        loop {
            let mut other = {
                let mut claimed = self.claimed();
                match claimed.get(chain) {
                    Some(other) => other.clone(),
                    None => {
                        let (ended, receiver) = watch::channel(());
                        claimed.insert(chain.clone(), receiver);
                        return Turn {
                            of: self,
                            chain: chain.clone(),
                            _ended: ended,
                        };
                    }
                }
            };
            // The sender sends nothing. It is dropped after its entry.
            let _ = other.changed().await;
        }
    }

    /// Waits for one of the places in which layers are applied. Safe to cancel.
    pub(super) async fn place(&self) -> tokio::sync::SemaphorePermit<'_> {
        self.room.acquire().await.expect("the semaphore is never closed")
    }

    /// Reserves bytes on the disk of a snapshotter, besides those that an import will write there.
    /// Fails if the disk would come near kubelet's thresholds. If the disk is not visible, any
    /// number is free.
    pub(super) fn reserve(&self, root: &Path, bytes: u64, besides: u64) -> Result<Reserved<'_>, UnpackError> {
        let before = self.reserved.fetch_add(bytes, Ordering::AcqRel);
        let reserved = Reserved { of: self, bytes };
        let wanted = before.saturating_add(bytes).saturating_add(besides);
        match Disk::of(root) {
            Ok(disk) if !disk.has_room_ahead(wanted) => Err(UnpackError::NoRoom {
                path: root.to_owned(),
            }),
            Ok(_) | Err(_) => Ok(reserved),
        }
    }

    /// Returns the number of layers up to the highest snapshot that exists. That snapshot is then
    /// under the lease, and keeps the snapshots below it.
    pub(super) async fn hold_highest(
        &self,
        client: &Client,
        lease: &str,
        snapshotter: &str,
        layers: &[LayerSpec],
    ) -> Result<usize, containerd::Error> {
        let likely: Vec<bool> = {
            let mut known = self.known.lock().await;
            let known = match &mut *known {
                Some(known) => known,
                empty => empty.insert(client.snapshots(snapshotter).await?),
            };
            let is_known = |layer: &LayerSpec| known.contains(layer.chain.as_ref());
            layers.iter().map(is_known).collect()
        };
        for (at, layer) in layers.iter().enumerate().rev().filter(|(at, _)| likely[*at]) {
            if client.hold_snapshot(lease, snapshotter, &layer.chain).await? == Held::Held {
                return Ok(at + 1);
            }
        }
        Ok(0)
    }

    /// Notes that a snapshot has its name.
    pub(super) async fn committed(&self, chain: &Digest) {
        if let Some(known) = &mut *self.known.lock().await {
            known.insert(chain.to_string());
        }
    }

    /// Forgets the list of snapshots, after one of them vanished.
    pub(super) async fn forget(&self) {
        *self.known.lock().await = None;
    }

    /// Makes everything durable that was written to this file system before (syncfs(2)). A sync
    /// that another image has started since then is enough. Safe to cancel.
    pub(super) async fn sync(&self, folder: &Folder) -> Result<(), UnpackError> {
        let round = async || {
            let handle = Arc::clone(&folder.handle);
            let synced = tokio::task::spawn_blocking(move || rustix::fs::syncfs(&*handle)).await;
            match synced.expect("a sync never panics") {
                Ok(()) => Ok(true),
                Err(errno) => Err(UnpackError::Sync {
                    path: folder.path.to_owned(),
                    source: io::Error::from(errno),
                }),
            }
        };
        self.syncs.join(round).await.map(drop)
    }
}

/// The folder of a snapshot, open.
pub(super) struct Folder {
    path: PathBuf,
    handle: Arc<File>,
}

impl Folder {
    /// Opens the folder of a snapshot. Returns `None` if this process does not see containerd's
    /// files: the folder was made a moment ago, so no other file system has it.
    pub(super) async fn open(path: Option<&Path>) -> Option<Folder> {
        let path = path?.to_owned();
        let opened = tokio::task::spawn_blocking(move || {
            let handle = Arc::new(File::open(&path).ok()?);
            Some(Folder { path, handle })
        });
        opened.await.expect("opening a folder never panics")
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn digest(fill: char) -> Digest {
        format!("sha256:{}", fill.to_string().repeat(64)).parse().unwrap()
    }

    #[tokio::test]
    async fn a_layer_has_one_turn_at_a_time_and_layers_do_not_wait_for_each_other() {
        let underway = Underway::default();
        let (a, b) = (digest('a'), digest('b'));
        let first = underway.turn(&a).await;
        let _other = underway.turn(&b).await;
        assert!(underway.turn(&a).now_or_never().is_none());
        let (second, ()) = tokio::join!(underway.turn(&a), async {
            tokio::task::yield_now().await;
            drop(first);
        });
        drop(second);
        assert!(!underway.claimed().contains_key(&a));
        assert!(underway.claimed().contains_key(&b));
    }

    #[tokio::test]
    async fn a_sync_of_a_folder_that_cannot_be_opened_is_left_to_containerd() {
        assert!(Folder::open(None).await.is_none());
        assert!(Folder::open(Some(Path::new("/nonexistent/fs"))).await.is_none());
        let folder = tempfile::tempdir().unwrap();
        let folder = Folder::open(Some(folder.path())).await.unwrap();
        Underway::default().sync(&folder).await.unwrap();
    }
}
