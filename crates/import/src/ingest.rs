//! Carries a plan out: blobs under one lease, children before parents, then the image records.
//!
//! There is nothing to decide here. An image whose blob turns out to be damaged fails alone; a containerd that cannot be
//! reached stops the run, and what was committed by then is found in place by the next one.

mod leaves;
mod on_disk;
mod pass;

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::sync::Arc;

use bundle::Bundle;
use containerd::{BlobSource, BlobSpec, Client, Creation, Held, ImageUpdate, NewImage, Recovery, Written};
use oci_spec::image::{Descriptor, Digest};
use tokio::task::JoinSet;

use self::on_disk::OnDisk;

use crate::Error;
use crate::labels::{LabelChanges, Labels};
use crate::lease::{self, Lease};
use crate::plan::{
    BlobAction, BlobStep, ImagePlan, Intent, Plan, RecordAction, RecordStep, missing_gc_labels, plan_record,
};
use crate::select::NamedTarget;
use crate::space::Shortage;

/// Layers and configs sent at the same time, each over a connection of its own. containerd gains nothing from more. The
/// client has a connection more than that, so that an image gets its manifest while layers of the next are on their way.
const PARALLEL_BLOBS: usize = 4;
/// How often a record is decided about again when somebody else changes it under our hands.
const RECORD_ROUNDS: usize = 5;
/// How often an image is started over when the lease vanishes.
const LEASE_ROUNDS: usize = 3;

/// Hears what happens during an import, as it happens. All methods may be called from any thread.
pub trait Observer: Send + Sync {
    /// So many bytes are missing in containerd and will be sent. Comes first, if the import begins at all.
    fn planned(&self, bytes: u64) {
        let _ = bytes;
    }
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
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// containerd does not take it; why, in one line.
    Rejected(String),
}

/// What became of a plan.
#[derive(Debug, Default)]
pub struct Ingested {
    /// The images that were gone through, in the order of the plan.
    pub images: Vec<ImageResult>,
    /// Blobs that were sent, with the bytes that went over the wire.
    pub sent: HashMap<Digest, u64>,
    /// Blobs that are in place without a byte having been sent.
    pub present: HashSet<Digest>,
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
/// nothing is leased and nothing is written; only a lease that an interrupted run left behind is given back.
///
/// # Cancel safety
///
/// May be dropped at any await: what is committed stays under the lease, which is found again by the next run or ends
/// by itself, and a record is written whole or not at all.
pub async fn carry_out(job: &Job<'_>) -> Ingested {
    let mut run = Run {
        job,
        done: HashSet::new(),
        bad: HashMap::new(),
        finished: HashSet::new(),
        result: Ingested::default(),
        lease: None,
        on_disk: OnDisk::default(),
    };
    let stopped = run.all().await.err();
    // A run that was stopped is taken up again: its lease keeps what has been moved. But a full disk hurts everybody on
    // the node, for as long as the lease would live.
    let is_over = stopped.as_ref().is_none_or(Error::is_space);
    if is_over && let Err(error) = lease::give_back(job.client, job.lease_id).await {
        tracing::debug!(%error, "the lease was not given back and ends by itself");
    }
    run.result.stopped = stopped;
    run.result
}

/// The result of a plan that is not begun for want of space: only what was in place is.
pub(crate) fn not_begun(job: &Job<'_>, shortage: Shortage) -> Ingested {
    let mut result = Ingested {
        stopped: Some(Error::NoSpace(Box::new(shortage))),
        ..Ingested::default()
    };
    for image in job.plan.images.iter().filter(|image| image.is_done()) {
        let in_place = image.blobs.iter().map(|step| step.digest.clone());
        result.present.extend(in_place);
        result.images.push(ImageResult {
            index: image.index,
            records: Ok(in_place_records(image)),
        });
    }
    result
}

/// The records of an image for which nothing is written.
fn in_place_records(image: &ImagePlan) -> Vec<(RecordStep, RecordOutcome)> {
    let records = image.records.iter();
    records
        .map(|step| (step.clone(), unwritten(&step.action)))
        .collect()
}

struct Run<'a> {
    job: &'a Job<'a>,
    /// Blobs this run has made sure of.
    done: HashSet<Digest>,
    /// Blobs that are damaged, with the reason.
    bad: HashMap<Digest, Failure>,
    /// Images that need nothing further, by their index.
    finished: HashSet<usize>,
    result: Ingested,
    lease: Option<Lease>,
    on_disk: OnDisk,
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
            // What the lease held cannot go away while it is there.
            Recovery::Transient if matches!(error, containerd::Error::Gone { .. }) => Fault::LeaseLost,
            Recovery::Content => Fault::Image(Failure {
                reason: chain(&error),
                is_content: true,
            }),
            Recovery::Permanent => Fault::Image(Failure {
                reason: chain(&error),
                is_content: false,
            }),
            Recovery::Transient | Recovery::Space | Recovery::Disk => Fault::Stop(Error::Containerd(error)),
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
        let ended = self.all_images().await;
        // In order of the bundle they were finished, in order of the plan they are told.
        let order = self
            .job
            .plan
            .images
            .iter()
            .map(|image| image.index)
            .zip(0_usize..);
        let order: HashMap<_, _> = order.collect();
        self.result
            .images
            .sort_by_key(|result| order.get(&result.index).copied());
        ended
    }

    async fn all_images(&mut self) -> Result<(), Error> {
        for _ in 0..LEASE_ROUNDS {
            match self.all_leaves().await {
                Err(Fault::LeaseLost) => self.forget_lease(),
                Err(Fault::Stop(error)) => return Err(error),
                Ok(()) | Err(Fault::Image(_)) => break,
            }
        }
        for image in &self.job.plan.images {
            if !self.finished.contains(&image.index) {
                let records = self.image_with_lease(image).await?;
                self.finish(image, records);
            }
        }
        Ok(())
    }

    fn finish(&mut self, image: &ImagePlan, records: Result<Vec<(RecordStep, RecordOutcome)>, Failure>) {
        let outcome = ImageResult {
            index: image.index,
            records,
        };
        self.job.observer.image(&outcome);
        self.result.images.push(outcome);
        self.finished.insert(image.index);
    }

    /// What was held may be gone with the lease.
    fn forget_lease(&mut self) {
        self.lease = None;
        self.done.clear();
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
                Err(Fault::LeaseLost) => self.forget_lease(),
            }
        }
        Err(Error::LeaseKeepsVanishing)
    }

    async fn image(&mut self, image: &ImagePlan) -> Result<Vec<(RecordStep, RecordOutcome)>, Fault> {
        if image.is_done() {
            let in_place = image.blobs.iter().map(|step| step.digest.clone());
            self.result.present.extend(in_place);
            return Ok(in_place_records(image));
        }
        self.check_known_bad(image)?;
        self.leaves(image).await?;
        for step in image.blobs.iter().filter(|step| !step.children.is_empty()) {
            self.parent(step).await?;
        }
        self.check_bundle()?;
        self.check_lease(image).await?;
        self.make_names_last(image).await;
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
        let ended = self.spread(image, &lease, &mut tasks).await;
        if let Err(Fault::Stop(error)) = &ended {
            tasks.shutdown().await;
            if error.is_space() {
                self.clear_away(image).await;
            }
        }
        ended
    }

    async fn spread(
        &mut self,
        image: &ImagePlan,
        lease: &str,
        tasks: &mut JoinSet<Moved>,
    ) -> Result<(), Fault> {
        for step in image.blobs.iter().filter(|step| step.children.is_empty()) {
            if self.done.contains(&step.digest) {
                continue;
            }
            if tasks.len() >= PARALLEL_BLOBS {
                self.joined(tasks.join_next().await)?;
            }
            tasks.spawn(self.task(lease, step).run());
        }
        while !tasks.is_empty() {
            self.joined(tasks.join_next().await)?;
        }
        Ok(())
    }

    /// Throws away what is half written of an image: a full disk stays full until somebody does.
    async fn clear_away(&self, image: &ImagePlan) {
        for step in image
            .blobs
            .iter()
            .filter(|step| !self.done.contains(&step.digest))
        {
            let reference = containerd::ingest_ref(&step.digest);
            if let Err(error) = self.job.client.abort_ingest(&reference).await {
                tracing::debug!(%error, reference, "a half written blob stays until the lease ends");
            }
        }
    }

    async fn parent(&mut self, step: &BlobStep) -> Result<(), Fault> {
        if self.done.contains(&step.digest) {
            return Ok(());
        }
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
        let Moved { digest, result } = moved;
        match result {
            Ok(sent) => {
                self.job.observer.blob(&digest, sent);
                match sent {
                    Some(bytes) => *self.result.sent.entry(digest.clone()).or_default() += bytes,
                    None => drop(self.result.present.insert(digest.clone())),
                }
                self.done.insert(digest);
                Ok(())
            }
            Err(error) => {
                let fault = Fault::from(error);
                if let Fault::Image(failure) = &fault {
                    // Bytes that somebody is just changing say nothing about the bundle that comes of it.
                    self.check_bundle()?;
                    self.bad.insert(digest, failure.clone());
                }
                Err(fault)
            }
        }
    }

    /// An image with a blob that failed another one fails at once, before anything is sent for it.
    fn check_known_bad(&self, image: &ImagePlan) -> Result<(), Fault> {
        match image.blobs.iter().find_map(|step| self.bad.get(&step.digest)) {
            Some(failure) => Err(Fault::Image(failure.clone())),
            None => Ok(()),
        }
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
                .and_then(|bundle| bundle.blob(&step.digest))
                .map(|blob| Arc::new(FromBundle(blob)) as Arc<dyn BlobSource>),
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

    /// Brings one record about.
    ///
    /// The plan may be an hour old by now. What it says about a record that was there is looked up again, so that what
    /// somebody else did to it meanwhile is not overlooked.
    async fn record(&self, step: &RecordStep) -> Result<(RecordStep, RecordOutcome), Fault> {
        let mut step = match &step.action {
            RecordAction::Create(_) => step.clone(),
            _ => self.planned_again(step).await?,
        };
        for _ in 0..RECORD_ROUNDS {
            match self.write_record(&step).await {
                Ok(Some(outcome)) => return Ok((step, outcome)),
                Ok(None) => step = self.planned_again(&step).await?,
                Err(error) => match Fault::from(error) {
                    Fault::Image(failure) => return Ok((step, RecordOutcome::Rejected(failure.reason))),
                    fault => return Err(fault),
                },
            }
        }
        let reason = "somebody else changes the record all the time".to_owned();
        Ok((step, RecordOutcome::Rejected(reason)))
    }

    async fn planned_again(&self, step: &RecordStep) -> Result<RecordStep, Fault> {
        let there = self.job.client.image(&step.name).await?;
        let wanted = NamedTarget {
            name: step.name.clone(),
            target: step.target.clone(),
        };
        Ok(plan_record(&wanted, there.as_ref(), self.job.intent))
    }

    /// Writes a record as planned; `None` when it is not as the plan thought.
    async fn write_record(&self, step: &RecordStep) -> Result<Option<RecordOutcome>, containerd::Error> {
        match &step.action {
            RecordAction::Create(labels) => {
                let image = NewImage {
                    name: step.name.clone(),
                    target: step.target.clone(),
                    labels: labels.clone(),
                };
                let creation = self.job.client.create_image(&image).await?;
                Ok((creation == Creation::Created).then_some(RecordOutcome::Created))
            }
            RecordAction::Retarget { labels, .. } => {
                let updated = self
                    .update_record(step, Some(step.target.clone()), labels)
                    .await?;
                Ok(updated.then_some(RecordOutcome::Retargeted))
            }
            RecordAction::Relabel(labels) => {
                let updated = self.update_record(step, None, labels).await?;
                Ok(updated.then_some(RecordOutcome::Relabelled))
            }
            action @ (RecordAction::Unchanged | RecordAction::Conflict { .. } | RecordAction::Leave(_)) => {
                Ok(Some(unwritten(action)))
            }
        }
    }

    /// Changes a record; says whether it is there and points where it should.
    async fn update_record(
        &self,
        step: &RecordStep,
        target: Option<Descriptor>,
        labels: &LabelChanges,
    ) -> Result<bool, containerd::Error> {
        let update = ImageUpdate {
            target,
            labels: labels.clone(),
        };
        let updated = self.job.client.update_image(&step.name, &update).await?;
        Ok(updated.is_some_and(|record| record.target.digest() == step.target.digest()))
    }
}

fn unwritten(action: &RecordAction) -> RecordOutcome {
    match action {
        RecordAction::Conflict { refuse, .. } => RecordOutcome::Left { refused: *refuse },
        RecordAction::Leave(_) => RecordOutcome::Left { refused: false },
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
    source: Option<Arc<dyn BlobSource>>,
    progress: Option<Arc<std::sync::atomic::AtomicU64>>,
}

impl BlobTask {
    /// The same with bytes from elsewhere.
    fn from(self, source: Arc<dyn BlobSource>) -> Self {
        Self {
            source: Some(source),
            ..self
        }
    }

    async fn run(self) -> Moved {
        let digest = self.step.digest.clone();
        Moved {
            digest,
            result: self.make_sure().await,
        }
    }

    async fn make_sure(self) -> Result<Option<u64>, containerd::Error> {
        if self.may_be_there().await? && self.hold().await? {
            return self.label().await.map(|()| None);
        }
        Ok(match self.send().await? {
            Written::Committed { sent_bytes } => Some(sent_bytes),
            Written::Present | Written::Adopted => None,
        })
    }

    /// Whether it is worth asking for the blob before it is sent.
    ///
    /// A parent that somebody else has sent since the plan was made comes with labels that sending it would overwrite.
    async fn may_be_there(&self) -> Result<bool, containerd::Error> {
        match self.step.action {
            BlobAction::Hold | BlobAction::Leave => Ok(true),
            BlobAction::Send if self.step.children.is_empty() => Ok(false),
            BlobAction::Send => Ok(self.client.blob(&self.step.digest).await?.is_some()),
        }
    }

    async fn hold(&self) -> Result<bool, containerd::Error> {
        let BlobStep { digest, size, .. } = &self.step;
        let held = self.client.hold_blob(&self.lease, digest, *size).await?;
        Ok(held == Held::Held)
    }

    async fn send(&self) -> Result<Written, containerd::Error> {
        let step = &self.step;
        // All of them: the plan's are those that the blob lacked when it was there.
        let mut labels = missing_gc_labels(&step.children, &Labels::new());
        labels.extend(step.sources.clone());
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
        self.client.write_blob(&self.lease, &spec, source).await
    }

    /// Gives a parent that was there the gc labels it lacks, by what it has now: others send and label it, too.
    async fn label(&self) -> Result<(), containerd::Error> {
        let BlobStep { digest, children, .. } = &self.step;
        if children.is_empty() {
            return Ok(());
        }
        let there = self.client.blob(digest).await?.map(|blob| blob.labels);
        let missing = missing_gc_labels(children, &there.unwrap_or_default());
        if !missing.is_empty() {
            self.client.set_blob_labels(digest, &missing).await?;
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
