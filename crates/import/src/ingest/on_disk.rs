//! Before a record is written, the names of its blobs are made to last.
//!
//! containerd makes the bytes of a blob last and then renames the file into place; before 2.2 it does not make the
//! rename last. Its database, though, lasts from the moment the record is written, so a power cut in the seconds after
//! that leaves a record whose blob has no file, which containerd lists all the same.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::Run;
use crate::plan::ImagePlan;

/// What is known of containerd's disk.
#[derive(Debug, Default)]
pub(super) struct OnDisk {
    /// Where the content store is, as containerd says; `None` before it was asked.
    store: Option<Option<PathBuf>>,
    /// How many blobs had been made sure of when their names were last made to last.
    blobs: Option<usize>,
}

impl Run<'_> {
    /// Makes the names of an image's blobs last. Where that is not possible (containerd runs on what we cannot see),
    /// the image is recorded all the same, as every other importer does.
    pub(super) async fn make_names_last(&mut self, image: &ImagePlan) {
        if self.on_disk.blobs == Some(self.done.len()) {
            return;
        }
        let Some(store) = self.store().await else { return };
        let kinds: BTreeSet<String> = image
            .blobs
            .iter()
            .map(|step| step.digest.algorithm().to_string())
            .collect();
        let folders = kinds.into_iter().map(move |kind| store.join("blobs").join(kind));
        let synced =
            tokio::task::spawn_blocking(move || folders.into_iter().try_for_each(|folder| sync(&folder)));
        match synced.await {
            Ok(Ok(())) => self.on_disk.blobs = Some(self.done.len()),
            Ok(Err(error)) => tracing::debug!(%error, "the names of blobs are not known to last"),
            Err(error) => tracing::debug!(%error, "nobody made the names of blobs last"),
        }
    }

    async fn store(&mut self) -> Option<PathBuf> {
        if self.on_disk.store.is_none() {
            // Who cannot be asked is asked again with the next image.
            self.on_disk.store = Some(self.job.client.content_root().await.ok()?);
        }
        self.on_disk.store.clone().flatten()
    }
}

/// Makes the entries of a folder last (fsync(2)).
fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
