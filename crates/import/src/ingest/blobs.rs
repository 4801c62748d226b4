//! One blob on its way: held if it exists, sent if it does not, and labelled for its children.

use std::collections::HashMap;
use std::io::Read;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError};

use containerd::{BlobSource, BlobSpec, Client, Held, Written};
use oci_spec::image::Digest;
use tokio::sync::Mutex;

use super::Job;
use crate::labels::Labels;
use crate::lease::Lease;
use crate::pace::{Pace, paced};
use crate::plan::{BlobAction, BlobStep, missing_labels};

/// The result of one blob. `Ok` has the number of bytes sent, or `None` if no byte was sent.
pub(super) struct Moved {
    pub(super) digest: Digest,
    pub(super) result: Result<Option<u64>, containerd::Error>,
}

/// One blob on its way.
pub(super) struct BlobTask {
    client: Client,
    lease: String,
    step: BlobStep,
    source: Option<Arc<dyn BlobSource>>,
    progress: Option<Arc<AtomicU64>>,
    pace: Arc<Pace>,
    turns: Arc<Turns>,
}

/// One task at a time for each blob: images share blobs, and every writer of a blob uses the same
/// ingest.
#[derive(Debug, Default)]
pub(super) struct Turns(std::sync::Mutex<HashMap<Digest, Arc<Mutex<()>>>>);

impl Turns {
    fn of(&self, digest: &Digest) -> Arc<Mutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(turns.entry(digest.clone()).or_default())
    }
}

impl BlobTask {
    /// Makes a task that takes the blob's bytes from the job's bundle, if the bundle has them.
    pub(super) fn new(job: &Job<'_>, lease: &Lease, step: &BlobStep, turns: &Arc<Turns>) -> BlobTask {
        let blob = job.bundle.as_ref().and_then(|bundle| bundle.blob(&step.digest));
        BlobTask {
            client: job.client.clone(),
            lease: lease.id().to_owned(),
            step: step.clone(),
            source: blob.map(|blob| Arc::new(FromBundle(blob)) as Arc<dyn BlobSource>),
            progress: job.observer.bytes(),
            pace: Arc::clone(&job.intent.pace),
            turns: Arc::clone(turns),
        }
    }

    /// Returns the same task with another source of bytes.
    pub(super) fn from(self, source: Arc<dyn BlobSource>) -> Self {
        Self {
            source: Some(source),
            ..self
        }
    }

    pub(super) async fn run(self) -> Moved {
        let digest = self.step.digest.clone();
        let turn = self.turns.of(&digest);
        let _turn = turn.lock().await;
        Moved {
            digest,
            result: self.make_sure().await,
        }
    }

    async fn make_sure(self) -> Result<Option<u64>, containerd::Error> {
        if self.step.action != BlobAction::Send && self.hold().await? {
            return self.label().await.map(|()| None);
        }
        Ok(match self.send().await? {
            Written::Committed { sent_bytes } => Some(sent_bytes),
            Written::Adopted => None,
            // Another importer has sent the blob since the plan was made, perhaps with labels for
            // other children.
            Written::Present => self.label().await.map(|()| None)?,
        })
    }

    async fn hold(&self) -> Result<bool, containerd::Error> {
        let BlobStep { digest, size, .. } = &self.step;
        let held = self.client.hold_blob(&self.lease, digest, *size).await?;
        Ok(held == Held::Held)
    }

    async fn send(&self) -> Result<Written, containerd::Error> {
        let step = &self.step;
        // All labels: the plan has only those that the blob lacked.
        let labels = missing_labels(&step.children, &step.sources, &Labels::new());
        let spec = BlobSpec {
            digest: step.digest.clone(),
            size: step.size,
            labels,
            progress: self.progress.clone(),
        };
        let source: Arc<dyn BlobSource> = match &self.source {
            Some(source) => Arc::clone(source),
            None => Arc::new(Gone),
        };
        let (source, _wanted) = paced(source, &self.pace);
        self.client.write_blob(&self.lease, &spec, source).await
    }

    /// Adds missing labels to an existing blob. The call looks at the blob's current labels,
    /// because other importers label blobs, too.
    async fn label(&self) -> Result<(), containerd::Error> {
        let BlobStep {
            digest,
            children,
            lacking,
            sources,
            ..
        } = &self.step;
        if children.is_empty() && *lacking == 0 {
            return Ok(());
        }
        let there = self.client.blob(digest).await?.map(|blob| blob.labels);
        let missing = missing_labels(children, sources, &there.unwrap_or_default());
        if !missing.is_empty() {
            self.client.set_blob_labels(digest, &missing).await?;
        }
        Ok(())
    }
}

/// The source of a blob in a bundle.
pub(crate) struct FromBundle(pub(crate) bundle::Blob);

impl BlobSource for FromBundle {
    fn open(&self, offset: u64) -> std::io::Result<Box<dyn Read + Send>> {
        self.0.open(offset)
    }
}

/// The source of a blob that was in containerd when the plan was made and has vanished since. The
/// bundle does not have it either.
struct Gone;

impl BlobSource for Gone {
    fn open(&self, _offset: u64) -> std::io::Result<Box<dyn Read + Send>> {
        Err(std::io::Error::new(
            std::io::ErrorKind::NotFound,
            "it vanished from containerd and is not in the bundle",
        ))
    }
}
