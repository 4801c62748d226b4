//! What containerd already has: reads only, and a number of calls that does not depend on how much is asked about.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::Path;

use containerd::{BlobInfo, Client, Error, ImageRecord};
use jiff::{SignedDuration, Timestamp};
use oci_spec::image::Digest;

use crate::select::Taken;
use crate::space::stored_bytes;

/// The records and blobs of a containerd namespace that matter to a selection.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Every image record, by name.
    pub records: BTreeMap<String, ImageRecord>,
    /// The blobs of the selection that are in the content store, with their labels.
    pub blobs: HashMap<Digest, BlobInfo>,
    /// Blobs that containerd lists and has not got any more, see [`Survey::checked`].
    pub lost: Vec<BlobInfo>,
    /// The names of committed snapshots, where they were asked for.
    pub snapshots: HashSet<String>,
}

impl Survey {
    /// Asks containerd for its records and blobs: one `Images.List`, or more where its answer is too long, and one
    /// `Content.List`.
    ///
    /// Only blobs of `digests` are kept. Safe to cancel.
    ///
    /// # Errors
    ///
    /// What the client reports, unchanged.
    pub async fn of(client: &Client, digests: &HashSet<Digest>) -> Result<Survey, Error> {
        let records = client
            .images()
            .await?
            .into_iter()
            .map(|record| (record.name.clone(), record))
            .collect();
        let blobs = client
            .blobs()
            .await?
            .into_iter()
            .filter(|blob| digests.contains(&blob.digest));
        Ok(Survey {
            records,
            blobs: blobs.map(|blob| (blob.digest.clone(), blob)).collect(),
            lost: Vec::new(),
            snapshots: HashSet::new(),
        })
    }

    /// Asks for the snapshots of a snapshotter, too: one `Snapshots.List`.
    ///
    /// # Errors
    ///
    /// What the client reports, unchanged.
    pub async fn with_snapshots(mut self, client: &Client, snapshotter: &str) -> Result<Survey, Error> {
        self.snapshots = client.snapshots(snapshotter).await?;
        Ok(self)
    }

    /// Holds the blobs against the files of containerd's store, where those can be seen.
    ///
    /// containerd lists what its database knows and never looks at its files: blobs that somebody wiped, or that a
    /// power cut left empty, are listed for ever, and writing them is answered with ALREADY_EXISTS. Safe to cancel.
    ///
    /// # Errors
    ///
    /// What the client reports when asked whether it can read what is not there.
    pub async fn checked(mut self, client: &Client, store: Option<&Path>) -> Result<Survey, Error> {
        let lost = lost(client, self.blobs.values(), store).await?;
        for blob in &lost {
            self.blobs.remove(&blob.digest);
        }
        self.lost = lost;
        Ok(self)
    }
}

/// Those of the blobs that containerd lists of which its store has no file, or one of another length, where the store can
/// be seen. Safe to cancel.
///
/// # Errors
///
/// What the client reports when asked whether it can read what is not there.
pub async fn lost(
    client: &Client,
    blobs: impl IntoIterator<Item = &BlobInfo>,
    store: Option<&Path>,
) -> Result<Vec<BlobInfo>, Error> {
    let Some(store) = store else {
        return Ok(Vec::new());
    };
    let blobs = blobs.into_iter().filter(|blob| is_lost(store, blob));
    let lost: Vec<BlobInfo> = blobs.cloned().collect();
    let Some(smallest) = lost.iter().min_by_key(|blob| blob.size) else {
        return Ok(lost);
    };
    if has_really(client, smallest).await? {
        tracing::debug!(store = %store.display(), "this is not the store of the containerd that answers");
        return Ok(Vec::new());
    }
    Ok(lost)
}

impl Survey {
    /// Has containerd read the end of each blob, and forget those whose end it has not got: after the power went, what
    /// is listed need not be there. One call for each blob.
    ///
    /// # Errors
    ///
    /// What the client reports. Safe to cancel: what is forgotten is missing like anything that was deleted.
    pub async fn proven(mut self, client: &Client) -> Result<Survey, Error> {
        let mut lost = Vec::new();
        for blob in self.blobs.values() {
            if !client.has_end(&blob.digest, blob.size).await? {
                lost.push(blob.clone());
            }
        }
        if !lost.is_empty() {
            // Where a damaged file is still there nobody can tell from here.
            forget(client, &lost, true).await?;
            self.blobs
                .retain(|digest, _| lost.iter().all(|blob| blob.digest != *digest));
            self.lost.extend(lost);
        }
        Ok(self)
    }
}

/// Whether a blob has no file, or one of another length. What cannot be looked at is not lost.
fn is_lost(store: &Path, blob: &BlobInfo) -> bool {
    match stored_bytes(store, &blob.digest) {
        Ok(length) => length != blob.size,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Whether any of `digests`, which a containerd had, has no file in its store (any more). The daemon asks this often.
#[must_use]
pub fn any_without_file<'d>(store: &Path, digests: impl IntoIterator<Item = &'d Digest>) -> bool {
    let is_absent = |digest: &&Digest| {
        stored_bytes(store, digest).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    };
    digests.into_iter().any(|digest| is_absent(&digest))
}

/// Whether containerd can read a blob, whatever we see.
async fn has_really(client: &Client, blob: &BlobInfo) -> Result<bool, Error> {
    match client.read_blob(&blob.digest, blob.size).await {
        Ok(_) => Ok(true),
        Err(Error::Unreachable { .. } | Error::Stalled { .. }) => {
            client.version().await?;
            Ok(false)
        }
        Err(_) => Ok(false),
    }
}

/// Makes containerd forget blobs that it lists and has not got, so that they can be written again.
///
/// Files that are there and damaged have to be collected first, or they would be taken over as they are.
///
/// # Errors
///
/// What the client reports. Safe to cancel: what is forgotten is missing like anything that was deleted.
pub(crate) async fn forget_lost(client: &Client, lost: &[BlobInfo], store: &Path) -> Result<(), Error> {
    let is_damaged = lost.iter().any(|blob| stored_bytes(store, &blob.digest).is_ok());
    forget(client, lost, is_damaged).await
}

async fn forget(client: &Client, lost: &[BlobInfo], is_damaged: bool) -> Result<(), Error> {
    for blob in lost {
        client.delete_blob(&blob.digest).await?;
    }
    if is_damaged {
        // Deleting a lease and waiting for it is how one asks for a collection.
        let soon = Timestamp::now() + SignedDuration::from_mins(10);
        client.create_lease(COLLECT, soon, &BTreeMap::new()).await?;
        client.delete_lease(COLLECT, true).await?;
    }
    Ok(())
}

/// The lease that is made to be deleted.
const COLLECT: &str = "airgapd-collect";

/// Every blob that `images` need.
pub fn digests_of<'a>(images: impl IntoIterator<Item = &'a Taken>) -> HashSet<Digest> {
    images
        .into_iter()
        .flat_map(|image| &image.closure.blobs)
        .map(|blob| blob.digest.clone())
        .collect()
}
