//! What containerd already has: reads only. Where containerd has few records, the number of calls
//! does not depend on how much is asked about; where it has very many, what is asked about is
//! looked up one by one, since no list of them is cheap.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use containerd::{BlobInfo, Client, Error, ImageRecord};
use jiff::{SignedDuration, Timestamp};
use oci_spec::image::Digest;

use crate::labels;
use crate::select::Taken;
use crate::space::stored_bytes;

/// So many names or digests are looked up one by one without a list: that takes less than a tenth
/// of a second.
const FEW: usize = 512;

/// The records and blobs of a containerd namespace that matter to a selection.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// The image records that were asked for and are there, by name, and others of ours as far as
    /// they were listed.
    pub records: BTreeMap<String, ImageRecord>,
    /// How many records there are; `None` where their list is too long for one message, and only
    /// those that were asked for were looked up.
    pub census: Option<Census>,
    /// The blobs of the selection that are in the content store, with their labels.
    pub blobs: HashMap<Digest, BlobInfo>,
    /// Blobs that containerd lists and has not got any more, see [`Survey::checked`].
    pub lost: Vec<BlobInfo>,
    /// The names of committed snapshots, where they were asked for.
    pub snapshots: HashSet<String>,
}

/// How many image records there are in a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Those that a bundle or an import by hand vouches for.
    pub ours: usize,
    /// The others.
    pub others: usize,
}

impl Census {
    fn count(&mut self, record: &ImageRecord) {
        match labels::is_vouched_for(&record.labels) {
            true => self.ours += 1,
            false => self.others += 1,
        }
    }

    /// Counts where the list of records is too long for one message. Each part of such a list costs
    /// containerd a walk over all records, so those of others are not counted beyond `most`, and
    /// not again where there were more in the last hour.
    ///
    /// # Errors
    ///
    /// The error of the client, unchanged.
    pub(crate) async fn take(client: &Client, most: usize) -> Result<Census, Error> {
        let ours = client
            .images_labelled(&[labels::OUR_PIN, labels::IMPORTED])
            .await?
            .len();
        let seen = client.images_seen().saturating_sub(ours);
        if seen > most {
            return Ok(Census { ours, others: seen });
        }
        let mut census = Census::default();
        let look = |record: ImageRecord| {
            census.count(&record);
            match census.others > most {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        client.each_image(look).await?;
        Ok(Census {
            ours: census.ours.max(ours),
            ..census
        })
    }

    /// Whether so many records more of ours are too many: more than `most` in all; where there are
    /// more of others alone already, the list is as long as it is not by our doing, and ours alone
    /// are held against `most`.
    #[must_use]
    pub fn has_no_room(&self, new: usize, most: usize) -> bool {
        let counted = match self.others > most {
            true => self.ours,
            false => self.ours + self.others,
        };
        new > 0 && counted.saturating_add(new) > most
    }
}

impl Survey {
    /// Asks containerd for its records and blobs: one `Images.List` where its answer fits into one
    /// message, otherwise one `Images.Get` for each name; and one `Content.List`, or one
    /// `Content.Info` for each digest where that is less work.
    ///
    /// Only records of `names` or of ours, and blobs of `digests` are kept. Safe to cancel.
    ///
    /// # Errors
    ///
    /// The error of the client, unchanged.
    pub async fn of(
        client: &Client,
        names: &HashSet<&str>,
        digests: &HashSet<Digest>,
    ) -> Result<Survey, Error> {
        let (mut census, mut records) = (Census::default(), Vec::new());
        let look = |record: ImageRecord| {
            census.count(&record);
            if names.contains(record.name.as_str()) || labels::is_any_of_ours(&record.labels) {
                records.push(record);
            }
        };
        let census = match client.each_image_if_few(look).await? {
            true => Some(census),
            false => {
                records = client.images_named(names.iter().copied()).await?;
                None
            }
        };
        let blobs = client.blobs_of(digests).await?;
        let survey = Survey {
            census,
            ..Survey::default()
        };
        Ok(survey.with(records, blobs))
    }

    /// Asks for the records of these names and for these blobs, and lists neither where they are
    /// few. Safe to cancel.
    ///
    /// # Errors
    ///
    /// The error of the client, unchanged.
    pub async fn of_few(
        client: &Client,
        names: &HashSet<&str>,
        digests: &HashSet<Digest>,
    ) -> Result<Survey, Error> {
        if names.len().max(digests.len()) > FEW {
            return Survey::of(client, names, digests).await;
        }
        let records = client.images_named(names.iter().copied()).await?;
        let blobs = client.blobs_one_by_one(digests).await?;
        Ok(Survey::default().with(records, blobs))
    }

    fn with(self, records: impl IntoIterator<Item = ImageRecord>, blobs: Vec<BlobInfo>) -> Survey {
        let records = records.into_iter();
        Survey {
            records: records.map(|record| (record.name.clone(), record)).collect(),
            blobs: blobs
                .into_iter()
                .map(|blob| (blob.digest.clone(), blob))
                .collect(),
            ..self
        }
    }

    /// Adds the records that have one of these labels, where not all of ours were listed: one
    /// `Images.List` with a filter.
    ///
    /// # Errors
    ///
    /// The error of the client, unchanged.
    pub async fn with_labelled(mut self, client: &Client, keys: &[&str]) -> Result<Survey, Error> {
        if self.census.is_none() {
            let found = client.images_labelled(keys).await?;
            self.records
                .extend(found.into_iter().map(|record| (record.name.clone(), record)));
        }
        Ok(self)
    }

    /// Asks for the snapshots of a snapshotter, too: one `Snapshots.List`.
    ///
    /// # Errors
    ///
    /// The error of the client, unchanged.
    pub async fn with_snapshots(mut self, client: &Client, snapshotter: &str) -> Result<Survey, Error> {
        self.snapshots = client.snapshots(snapshotter).await?;
        Ok(self)
    }

    /// Holds the blobs against the files of containerd's store, where those can be seen.
    ///
    /// containerd lists what its database knows and never looks at its files: blobs that somebody
    /// wiped, or that a power cut left empty, are listed for ever, and writing them is answered
    /// with ALREADY_EXISTS. Safe to cancel.
    ///
    /// # Errors
    ///
    /// The error of the client when asked whether it can read what is not there.
    pub async fn checked(mut self, client: &Client, store: Option<&Path>) -> Result<Survey, Error> {
        let lost = lost(client, self.blobs.values(), store).await?;
        for blob in &lost {
            self.blobs.remove(&blob.digest);
        }
        self.lost = lost;
        Ok(self)
    }
}

/// Those of the blobs that containerd lists of which its store has no file, or one of another
/// length, where the store can be seen. Safe to cancel.
///
/// # Errors
///
/// The error of the client when asked whether it can read what is not there.
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
    /// Has containerd read the end of each blob, and forget those whose end it has not got: after
    /// the power went, what is listed need not be there. One call for each blob.
    ///
    /// # Errors
    ///
    /// The error of the client. Safe to cancel: what is forgotten is missing like anything that was
    /// deleted.
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
pub(crate) fn is_lost(store: &Path, blob: &BlobInfo) -> bool {
    match stored_bytes(store, &blob.digest) {
        Ok(length) => length != blob.size,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Whether any of `digests`, which a containerd had, has no file in its store (any more). The
/// daemon asks this often.
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
/// Files that are there and damaged have to be collected first, or they would be taken over as they
/// are.
///
/// # Errors
///
/// The error of the client. Safe to cancel: what is forgotten is missing like anything that was
/// deleted.
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

/// The name of every record that `images` are to have.
pub fn names_of<'a>(images: impl IntoIterator<Item = &'a Taken>) -> HashSet<&'a str> {
    let records = images.into_iter().flat_map(|image| &image.records);
    records.map(|record| record.name.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_others_alone_have_too_many_records_ours_alone_are_held_against_the_bound() {
        let table = [
            // Of ours, of others, new, the bound; whether that is too many.
            ((0, 10), 0, 10, false),
            ((0, 9), 1, 10, false),
            ((0, 10), 1, 10, true),
            ((5, 5), 1, 10, true),
            ((0, 11), 1, 10, false),
            ((0, 200_000), 10, 10, false),
            ((1, 200_000), 10, 10, true),
            ((11, 200_000), 0, 10, false),
            ((11, 0), 1, 10, true),
            ((usize::MAX / 2, 0), usize::MAX, 10, true),
        ];
        for ((ours, others), new, most, expected) in table {
            let census = Census { ours, others };
            assert_eq!(
                census.has_no_room(new, most),
                expected,
                "{census:?} and {new} of {most}"
            );
        }
    }
}
