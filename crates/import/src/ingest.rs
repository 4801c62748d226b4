//! Carries a plan out: blobs under one lease, children before parents, then the image records.
//!
//! There is nothing to decide here. An image whose blob turns out to be damaged fails alone; a containerd that cannot be
//! reached stops the run, and what was committed by then is found in place by the next one.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::sync::Arc;

use bundle::Bundle;
use containerd::{BlobSource, BlobSpec, Client, Creation, Held, ImageUpdate, NewImage, Recovery, Written};
use oci_spec::image::Digest;
use tokio::task::JoinSet;

use crate::Error;
use crate::lease::Lease;
use crate::plan::{BlobAction, BlobStep, ImagePlan, Intent, Plan, RecordAction, RecordStep, plan_record};
use crate::select::RecordName;

/// Blobs sent at the same time, each over a connection of its own. containerd gains nothing from more.
const PARALLEL_BLOBS: usize = 4;
/// How often a record is decided about again when somebody else changes it under our hands.
const RECORD_ROUNDS: usize = 5;
/// How often an image is started over when the lease vanishes.
const LEASE_ROUNDS: usize = 3;

/// Hears what happens during an import, as it happens. All methods may be called from any thread.
pub trait Observer: Send + Sync {
    /// A blob was sent, or found in place.
    fn blob(&self, digest: &Digest, sent_bytes: Option<u64>) {
        let _ = (digest, sent_bytes);
    }
    /// An image is done.
    fn image(&self, outcome: &ImageResult) {
        let _ = outcome;
    }
    /// A counter to which acknowledged bytes are added while blobs are on their way.
    fn bytes(&self) -> Option<Arc<std::sync::atomic::AtomicU64>> {
        None
    }
}

/// Hears nothing.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Observer for Silent {}

/// What became of an image of the plan.
#[derive(Clone, Debug)]
pub struct ImageResult {
    /// Where the image stands in the list that was planned.
    pub index: usize,
    /// Its records, or why there are none.
    pub records: Result<Vec<(RecordStep, RecordOutcome)>, Failure>,
}

/// Why an image has no record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// In one line, naming the blob or record.
    pub reason: String,
    /// Whether the bundle is to blame.
    pub is_content: bool,
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordOutcome {
    /// It is new.
    Created,
    /// It points at the image now, and at something else before.
    Retargeted,
    /// Only its labels changed.
    Relabelled,
    /// Nothing was written.
    Unchanged,
    /// It belongs to somebody else and stays; whether that counts as a failure.
    Left {
        /// By the rule `refuse`.
        refused: bool,
    },
}

/// What became of a plan.
#[derive(Debug, Default)]
pub struct Ingested {
    /// The images that were gone through, in the order of the plan.
    pub images: Vec<ImageResult>,
    /// Blobs that were sent, with the bytes that went over the wire.
    pub sent: HashMap<Digest, u64>,
    /// Why the run stopped before its end.
    pub stopped: Option<Error>,
}

/// A job for [`carry_out`].
pub struct Job<'a> {
    /// Where the images go.
    pub client: &'a Client,
    /// Where the bytes come from; `None` when every blob is in place and only records are written.
    pub bundle: Option<Arc<Bundle>>,
    /// The steps.
    pub plan: &'a Plan,
    /// Under whose name.
    pub intent: &'a Intent,
    /// Names the bundle in the lease's id.
    pub lease_id: &'a str,
    /// Hears about it.
    pub observer: &'a dyn Observer,
}

/// Carries out a plan.
///
/// Never fails as a whole: what went wrong is in the result, beside what went right. When the plan is done already,
/// nothing is leased and nothing is written. Safe to cancel at any time: what is committed stays under the lease, which
/// is found again by the next run or ends by itself.
pub async fn carry_out(job: &Job<'_>) -> Ingested {
    let mut run = Run {
        job,
        done: HashSet::new(),
        bad: HashMap::new(),
        result: Ingested::default(),
        lease: None,
    };
    let stopped = run.all().await.err();
    // A run that was stopped is taken up again: its lease keeps what has been moved.
    if let (None, Some(lease)) = (&stopped, run.lease.take()) {
        if let Err(error) = lease.release(job.client).await {
            tracing::debug!(%error, "the lease was not given back and ends by itself");
        }
    }
    run.result.stopped = stopped;
    run.result
}

struct Run<'a> {
    job: &'a Job<'a>,
    /// Blobs this run has made sure of.
    done: HashSet<Digest>,
    /// Blobs that are damaged, with the reason.
    bad: HashMap<Digest, Failure>,
    result: Ingested,
    lease: Option<Lease>,
}

/// Why an image is not recorded.
enum Fault {
    /// Another image may fare better.
    Image(Failure),
    /// The lease is gone, and what it held may be, too.
    LeaseLost,
    /// Not the image's fault: nothing further can be done now.
    Stop(Error),
}

impl From<containerd::Error> for Fault {
    fn from(error: containerd::Error) -> Self {
        match error.recovery() {
            Recovery::LeaseLost => Fault::LeaseLost,
            Recovery::Content => Fault::Image(Failure {
                reason: chain(&error),
                is_content: true,
            }),
            Recovery::Permanent => Fault::Image(Failure {
                reason: chain(&error),
                is_content: false,
            }),
            Recovery::Transient | Recovery::Space => Fault::Stop(Error::Containerd(error)),
        }
    }
}

/// An error with its causes, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

impl Run<'_> {
    async fn all(&mut self) -> Result<(), Error> {
        for image in &self.job.plan.images {
            let records = self.image_with_lease(image).await?;
            let outcome = ImageResult {
                index: image.index,
                records,
            };
            self.job.observer.image(&outcome);
            self.result.images.push(outcome);
        }
        Ok(())
    }

    async fn image_with_lease(
        &mut self,
        image: &ImagePlan,
    ) -> Result<Result<Vec<(RecordStep, RecordOutcome)>, Failure>, Error> {
        for _ in 0..LEASE_ROUNDS {
            match self.image(image).await {
                Ok(records) => return Ok(Ok(records)),
                Err(Fault::Image(failure)) => return Ok(Err(failure)),
                Err(Fault::Stop(error)) => return Err(error),
                Err(Fault::LeaseLost) => {
                    self.lease = None;
                    self.done.clear();
                }
            }
        }
        Err(Error::LeaseKeepsVanishing)
    }

    async fn image(&mut self, image: &ImagePlan) -> Result<Vec<(RecordStep, RecordOutcome)>, Fault> {
        if image.is_done() {
            return Ok(image
                .records
                .iter()
                .map(|step| (step.clone(), unwritten(&step.action)))
                .collect());
        }
        self.leaves(image).await?;
        for step in image.blobs.iter().filter(|step| !step.children.is_empty()) {
            self.parent(step).await?;
        }
        self.check_bundle()?;
        self.check_lease(image).await?;
        let mut outcomes = Vec::new();
        for step in &image.records {
            outcomes.push(self.record(step).await?);
        }
        Ok(outcomes)
    }

    /// Layers and configs, several at a time.
    async fn leaves(&mut self, image: &ImagePlan) -> Result<(), Fault> {
        let lease = self.lease().await?;
        let mut tasks = JoinSet::new();
        for step in image.blobs.iter().filter(|step| step.children.is_empty()) {
            if self.done.contains(&step.digest) {
                continue;
            }
            self.check_known_bad(&step.digest)?;
            if tasks.len() >= PARALLEL_BLOBS {
                self.joined(tasks.join_next().await)?;
            }
            tasks.spawn(self.task(&lease, step).run());
        }
        while !tasks.is_empty() {
            self.joined(tasks.join_next().await)?;
        }
        Ok(())
    }

    async fn parent(&mut self, step: &BlobStep) -> Result<(), Fault> {
        if self.done.contains(&step.digest) {
            return Ok(());
        }
        self.check_known_bad(&step.digest)?;
        let lease = self.lease().await?;
        let moved = self.task(&lease, step).run().await;
        self.moved(moved)
    }

    fn joined(&mut self, joined: Option<Result<Moved, tokio::task::JoinError>>) -> Result<(), Fault> {
        match joined {
            None => Ok(()),
            Some(Ok(moved)) => self.moved(moved),
            Some(Err(error)) => Err(Fault::Stop(Error::Task(error))),
        }
    }

    fn moved(&mut self, moved: Moved) -> Result<(), Fault> {
        match moved.result {
            Ok(sent) => {
                self.job.observer.blob(&moved.digest, sent);
                if let Some(bytes) = sent {
                    self.result.sent.insert(moved.digest.clone(), bytes);
                }
                self.done.insert(moved.digest);
                Ok(())
            }
            Err(error) => {
                let fault = Fault::from(error);
                if let Fault::Image(failure) = &fault {
                    self.bad.insert(moved.digest, failure.clone());
                }
                Err(fault)
            }
        }
    }

    fn check_known_bad(&self, digest: &Digest) -> Result<(), Fault> {
        self.bad
            .get(digest)
            .map_or(Ok(()), |failure| Err(Fault::Image(failure.clone())))
    }

    /// The lease, fresh enough for what comes next.
    async fn lease(&mut self) -> Result<String, Fault> {
        let Job {
            client,
            lease_id,
            intent,
            ..
        } = self.job;
        let mark = intent.source.lease_mark();
        match &mut self.lease {
            Some(lease) => lease.replace_if_old(client, &mark).await?,
            None => self.lease = Some(Lease::acquire(client, lease_id, &mark).await?),
        }
        Ok(self
            .lease
            .as_ref()
            .expect("a lease was just acquired")
            .id()
            .to_owned())
    }

    fn task(&self, lease: &str, step: &BlobStep) -> BlobTask {
        BlobTask {
            client: self.job.client.clone(),
            lease: lease.to_owned(),
            step: step.clone(),
            source: self
                .job
                .bundle
                .as_ref()
                .and_then(|bundle| bundle.blob(&step.digest)),
            progress: self.job.observer.bytes(),
        }
    }

    /// A bundle that somebody writes into while it is read is not trusted to the end, although no blob of it can be wrong.
    fn check_bundle(&self) -> Result<(), Fault> {
        let Some(bundle) = &self.job.bundle else {
            return Ok(());
        };
        match bundle.is_unchanged() {
            Ok(true) => Ok(()),
            Ok(false) => Err(Fault::Stop(Error::Changed {
                path: bundle.path().to_owned(),
            })),
            Err(source) => Err(Fault::Stop(Error::Read {
                path: bundle.path().to_owned(),
                source,
            })),
        }
    }

    /// Writing under a lease that is gone fails: asking for the root blob again proves that everything is still held.
    async fn check_lease(&mut self, image: &ImagePlan) -> Result<(), Fault> {
        let Some(root) = image.blobs.last() else {
            return Ok(());
        };
        let lease = self.lease().await?;
        match self.job.client.hold_blob(&lease, &root.digest, root.size).await? {
            Held::Held => Ok(()),
            Held::Absent => Err(Fault::LeaseLost),
        }
    }

    async fn record(&self, step: &RecordStep) -> Result<(RecordStep, RecordOutcome), Fault> {
        let wanted = RecordName {
            name: step.name.clone(),
            target: step.target.clone(),
        };
        let mut step = step.clone();
        for _ in 0..RECORD_ROUNDS {
            if let Some(outcome) = self.write_record(&step).await? {
                return Ok((step, outcome));
            }
            let there = self.job.client.image(&wanted.name).await?;
            step = plan_record(&wanted, there.as_ref(), self.job.intent);
        }
        let reason = format!(
            "the record {} is changed by somebody else all the time",
            wanted.name
        );
        Err(Fault::Image(Failure {
            reason,
            is_content: false,
        }))
    }

    /// Writes a record as planned; `None` when it is not as the plan thought.
    async fn write_record(&self, step: &RecordStep) -> Result<Option<RecordOutcome>, Fault> {
        let client = self.job.client;
        Ok(match &step.action {
            RecordAction::Create(labels) => {
                let image = NewImage {
                    name: step.name.clone(),
                    target: step.target.clone(),
                    labels: labels.clone(),
                };
                match client.create_image(&image).await? {
                    Creation::Created => Some(RecordOutcome::Created),
                    Creation::Exists => None,
                }
            }
            RecordAction::Retarget { labels, .. } => {
                let update = ImageUpdate {
                    target: Some(step.target.clone()),
                    labels: labels.clone(),
                };
                client
                    .update_image(&step.name, &update)
                    .await?
                    .map(|_| RecordOutcome::Retargeted)
            }
            RecordAction::Relabel(labels) => {
                let update = ImageUpdate {
                    target: None,
                    labels: labels.clone(),
                };
                client
                    .update_image(&step.name, &update)
                    .await?
                    .map(|_| RecordOutcome::Relabelled)
            }
            action @ (RecordAction::Unchanged | RecordAction::Conflict { .. }) => Some(unwritten(action)),
        })
    }
}

fn unwritten(action: &RecordAction) -> RecordOutcome {
    match action {
        RecordAction::Conflict { refuse, .. } => RecordOutcome::Left { refused: *refuse },
        _ => RecordOutcome::Unchanged,
    }
}

/// What became of one blob: the bytes sent, `None` when none were.
struct Moved {
    digest: Digest,
    result: Result<Option<u64>, containerd::Error>,
}

/// One blob on its way.
struct BlobTask {
    client: Client,
    lease: String,
    step: BlobStep,
    source: Option<bundle::Blob>,
    progress: Option<Arc<std::sync::atomic::AtomicU64>>,
}

impl BlobTask {
    async fn run(self) -> Moved {
        let digest = self.step.digest.clone();
        Moved {
            digest,
            result: self.make_sure().await,
        }
    }

    async fn make_sure(self) -> Result<Option<u64>, containerd::Error> {
        let step = &self.step;
        if step.action != BlobAction::Send {
            match self
                .client
                .hold_blob(&self.lease, &step.digest, step.size)
                .await?
            {
                Held::Held => return self.label().await.map(|()| None),
                Held::Absent => {}
            }
        }
        Ok(match self.send().await? {
            Written::Committed { sent_bytes } => Some(sent_bytes),
            Written::Present | Written::Adopted => None,
        })
    }

    async fn send(&self) -> Result<Written, containerd::Error> {
        let step = &self.step;
        let (digest, labels) = (step.digest.clone(), step.labels.clone());
        let spec = BlobSpec {
            digest,
            size: step.size,
            labels,
            progress: self.progress.clone(),
        };
        let source: Arc<dyn BlobSource> = match &self.source {
            Some(blob) => Arc::new(FromBundle(blob.clone())),
            None => Arc::new(Gone),
        };
        self.client.write_blob(&self.lease, &spec, source).await
    }

    async fn label(&self) -> Result<(), containerd::Error> {
        if !self.step.labels.is_empty() {
            self.client
                .set_blob_labels(&self.step.digest, &self.step.labels)
                .await?;
        }
        Ok(())
    }
}

struct FromBundle(bundle::Blob);

impl BlobSource for FromBundle {
    fn open(&self, offset: u64) -> std::io::Result<Box<dyn Read + Send>> {
        self.0.open(offset)
    }
}

/// A blob that was in containerd when the plan was made, is not any more, and is not in the bundle either.
struct Gone;

impl BlobSource for Gone {
    fn open(&self, _offset: u64) -> std::io::Result<Box<dyn Read + Send>> {
        Err(std::io::Error::new(
            std::io::ErrorKind::NotFound,
            "it vanished from containerd and is not in the bundle",
        ))
    }
}
