//! What containerd already has: reads only, and a number of calls that does not depend on how much is asked about.

use std::collections::{BTreeMap, HashMap, HashSet};

use containerd::{BlobInfo, Client, Error, ImageRecord};
use oci_spec::image::Digest;

use crate::select::Taken;

/// The records and blobs of a containerd namespace that matter to a selection.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Every image record, by name.
    pub records: BTreeMap<String, ImageRecord>,
    /// The blobs of the selection that are in the content store, with their labels.
    pub blobs: HashMap<Digest, BlobInfo>,
}

impl Survey {
    /// Asks containerd for its records and blobs: one `Images.List` and one `Content.List`.
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
        })
    }
}

/// Every blob that `images` need.
pub fn digests_of<'a>(images: impl IntoIterator<Item = &'a Taken>) -> HashSet<Digest> {
    images
        .into_iter()
        .flat_map(|image| &image.closure.blobs)
        .map(|blob| blob.digest.clone())
        .collect()
}
