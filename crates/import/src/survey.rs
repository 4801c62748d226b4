//! The survey: the content that containerd already has. It only reads.
//!
//! If containerd has few records, the survey lists them, and the number of calls does not depend on
//! the selection. If containerd has very many records, no list is cheap. Then the survey looks up
//! each name and digest of the selection.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use containerd::{BlobInfo, Client, Error, ImageRecord, Resource};
use jiff::{SignedDuration, Timestamp};
use oci_spec::image::Digest;

use crate::labels;
use crate::lease;
use crate::select::Taken;
use crate::space::stored_bytes;

/// Largest number of names or digests that are looked up one by one without a list. So many
/// look-ups take less than a tenth of a second.
const FEW: usize = 512;

/// The records and blobs of a containerd namespace that matter to a selection.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// The existing image records of the selection, by name. If all records were listed, other
    /// records of airgapd are here, too.
    pub records: BTreeMap<String, ImageRecord>,
    /// Number of records. `None` if their list is too long for one message. Then only records of
    /// the selection were looked up.
    pub census: Option<Census>,
    /// The blobs of the selection that are in the content store, with their labels.
    pub blobs: HashMap<Digest, BlobInfo>,
    /// Blobs that containerd lists, but whose files are gone (see [`Survey::checked`]).
    pub lost: Vec<BlobInfo>,
    /// The names of committed snapshots, if the caller asked for them.
    pub snapshots: HashSet<String>,
    /// The ids of the leases of receipts ([`Survey::with_receipts`]). `None` if the caller did not
    /// ask for them.
    pub receipts: Option<HashSet<String>>,
}

/// Number of image records in a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Records that a bundle or an import by hand vouches for.
    pub ours: usize,
    /// All other records.
    pub others: usize,
}

impl Census {
    fn count(&mut self, record: &ImageRecord) {
        match labels::is_vouched_for(&record.labels) {
            true => self.ours += 1,
            false => self.others += 1,
        }
    }

    /// Counts records if their list is too long for one message.
    ///
    /// Each part of such a list costs containerd a walk over all records. So records of other
    /// programs are counted only up to `most`. They are not counted at all if the last hour showed
    /// more than `most`.
    ///
    /// # Errors
    ///
    /// Returns the client's error, unchanged.
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

    /// Returns true if `new` records of airgapd would be too many, that is, more than `most` in the
    /// namespace.
    ///
    /// If other programs alone have more than `most`, the list is too long without airgapd. Then
    /// only airgapd's own records count.
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
    /// Asks containerd for its records and blobs.
    ///
    /// Records take one `Images.List` if its answer fits into one message, and otherwise one
    /// `Images.Get` for each name. Blobs take one `Content.List`, or one `Content.Info` for each
    /// digest if that is less work.
    ///
    /// Keeps only records of `names` or of airgapd, and blobs of `digests`. Safe to cancel.
    ///
    /// # Errors
    ///
    /// Returns the client's error, unchanged.
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

    /// Asks for the records of these names and for these blobs. Lists neither if they are few. Safe
    /// to cancel.
    ///
    /// # Errors
    ///
    /// Returns the client's error, unchanged.
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

    /// Adds the records that have one of these labels, if not all records were listed. Takes one
    /// `Images.List` with a filter.
    ///
    /// # Errors
    ///
    /// Returns the client's error, unchanged.
    pub async fn with_labelled(mut self, client: &Client, keys: &[&str]) -> Result<Survey, Error> {
        if self.census.is_none() {
            let found = client.images_labelled(keys).await?;
            self.records
                .extend(found.into_iter().map(|record| (record.name.clone(), record)));
        }
        Ok(self)
    }

    /// Adds the leases of receipts. Takes one `Leases.List` with a filter.
    ///
    /// # Errors
    ///
    /// Returns the client's error, unchanged.
    pub async fn with_receipts(mut self, client: &Client) -> Result<Survey, Error> {
        let leases = client.leases_beginning(lease::RECEIPT_PREFIX).await?;
        self.receipts = Some(leases.into_iter().map(|lease| lease.id).collect());
        Ok(self)
    }

    /// Leaves out the leases of receipts that lack one of these blobs. `needed` has the blobs of
    /// each lease that is to be read, by its id. Takes one `Leases.ListResources` for each.
    ///
    /// # Errors
    ///
    /// Returns the client's error, unchanged. Safe to cancel.
    pub async fn with_whole_receipts(
        mut self,
        client: &Client,
        needed: &BTreeMap<&str, HashSet<&Digest>>,
    ) -> Result<Survey, Error> {
        let Some(receipts) = &mut self.receipts else {
            return Ok(self);
        };
        for (id, blobs) in needed {
            if !receipts.contains(*id) {
                continue;
            }
            let held = match client.lease_resources(id).await {
                Ok(held) => held,
                // It was deleted meanwhile.
                Err(Error::LeaseLost { .. }) => Vec::new(),
                Err(error) => return Err(error),
            };
            let held: HashSet<&Digest> = held
                .iter()
                .filter_map(|resource| match resource {
                    Resource::Blob(digest) => Some(digest),
                    _ => None,
                })
                .collect();
            if !blobs.is_subset(&held) {
                receipts.remove(*id);
            }
        }
        Ok(self)
    }

    /// Adds the snapshots of a snapshotter. Takes one `Snapshots.List`.
    ///
    /// # Errors
    ///
    /// Returns the client's error, unchanged.
    pub async fn with_snapshots(mut self, client: &Client, snapshotter: &str) -> Result<Survey, Error> {
        self.snapshots = client.snapshots(snapshotter).await?;
        Ok(self)
    }

    /// Compares the blobs with the files of containerd's store, if the store is visible.
    ///
    /// containerd lists the blobs of its database and never looks at its files. It keeps listing
    /// blobs whose files were deleted, or that a power cut left empty. A write of such a blob gets
    /// the answer ALREADY_EXISTS. Safe to cancel.
    ///
    /// # Errors
    ///
    /// Returns the client's error if containerd cannot be asked about a missing blob.
    pub async fn checked(mut self, client: &Client, store: Option<&Path>) -> Result<Survey, Error> {
        let lost = lost(client, self.blobs.values(), store).await?;
        for blob in &lost {
            self.blobs.remove(&blob.digest);
        }
        self.lost = lost;
        Ok(self)
    }
}

/// Returns the blobs whose files are missing in the store or have another length. Returns none if
/// the store is not visible. Safe to cancel.
///
/// # Errors
///
/// Returns the client's error if containerd cannot be asked about a missing blob.
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
    /// Lets containerd read the end of each blob, and makes it forget the blobs whose end is
    /// missing. After a power cut, a listed blob may be lost. Takes one call for each blob.
    ///
    /// # Errors
    ///
    /// Returns the client's error. Safe to cancel: a forgotten blob is missing like any deleted
    /// blob.
    pub async fn proven(mut self, client: &Client) -> Result<Survey, Error> {
        let mut lost = Vec::new();
        for blob in self.blobs.values() {
            if !client.has_end(&blob.digest, blob.size).await? {
                lost.push(blob.clone());
            }
        }
        if !lost.is_empty() {
            // A damaged file may still exist, and this process cannot see that.
            forget(client, lost.iter().map(|blob| &blob.digest), true).await?;
            self.blobs
                .retain(|digest, _| lost.iter().all(|blob| blob.digest != *digest));
            self.lost.extend(lost);
        }
        Ok(self)
    }
}

/// Returns true if a blob has no file, or a file of another length. A file that cannot be looked at
/// is not lost.
pub(crate) fn is_lost(store: &Path, blob: &BlobInfo) -> bool {
    match stored_bytes(store, &blob.digest) {
        Ok(length) => length != blob.size,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Returns true if any of `digests`, which a containerd once had, has no file in its store. The
/// daemon calls this often.
#[must_use]
pub fn any_without_file<'d>(store: &Path, digests: impl IntoIterator<Item = &'d Digest>) -> bool {
    let is_absent = |digest: &&Digest| {
        stored_bytes(store, digest).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    };
    digests.into_iter().any(|digest| is_absent(&digest))
}

/// Returns true if containerd can read a blob, even if its file is not visible here.
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

/// Makes containerd forget blobs that it lists and has lost, so that they can be written again.
///
/// Damaged files must be collected first. Otherwise containerd would take them over as they are.
///
/// # Errors
///
/// Returns the client's error. Safe to cancel: a forgotten blob is missing like any deleted blob.
pub(crate) async fn forget_lost(client: &Client, lost: &[BlobInfo], store: &Path) -> Result<(), Error> {
    let is_damaged = lost.iter().any(|blob| stored_bytes(store, &blob.digest).is_ok());
    forget(client, lost.iter().map(|blob| &blob.digest), is_damaged).await
}

/// Makes containerd forget blobs, and their files too if these are damaged.
pub(crate) async fn forget(
    client: &Client,
    lost: impl Iterator<Item = &Digest>,
    is_damaged: bool,
) -> Result<(), Error> {
    for digest in lost {
        client.delete_blob(digest).await?;
    }
    if is_damaged {
        // The only way to ask for a collection is to delete a lease and wait.
        let soon = Timestamp::now() + SignedDuration::from_mins(10);
        client.create_lease(COLLECT, soon, &BTreeMap::new()).await?;
        client.delete_lease(COLLECT, true).await?;
    }
    Ok(())
}

/// The lease that is created only to be deleted.
const COLLECT: &str = "airgapd-collect";

/// Returns every blob that `images` need.
pub fn digests_of<'a>(images: impl IntoIterator<Item = &'a Taken>) -> HashSet<Digest> {
    images
        .into_iter()
        .flat_map(|image| &image.closure.blobs)
        .map(|blob| blob.digest.clone())
        .collect()
}

/// Returns the name of every record of `images`.
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
            // Records of airgapd, records of others, new records, the bound. Last: true if there is
            // no room.
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
