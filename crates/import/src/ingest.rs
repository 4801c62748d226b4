//! Carries a plan out: blobs under one lease, children before parents, then the image records.
//!
//! There is nothing to decide here. An image whose blob turns out to be damaged fails alone; a
//! containerd that cannot be reached stops the run, and what was committed by then is found in
//! place by the next one.

mod assurance;
mod blobs;
mod closing;
mod leaves;
mod pass;
mod unpacking;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use basics::chain;
use bundle::Bundle;
use containerd::{Client, Recovery};
use oci_spec::image::Digest;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use self::assurance::Assurance;
use self::blobs::{BlobTask, Moved, Turns};
use self::closing::{Closed, Closing};

use crate::Error;
use crate::lease::{self, Lease};
use crate::plan::{BlobAction, ImagePlan, Intent, Plan, RecordAction, RecordStep};
use crate::unpack::Unpacked;

/// Layers and configs sent at the same time, each over a connection of its own. containerd gains
/// nothing from more. The client has more connections than that, so that images get their manifests
/// while layers of the next are on their way.
const PARALLEL_BLOBS: usize = 4;
/// Images that get their manifests and records at the same time: each of these steps is a short
/// write to containerd's database, which takes one after the other and is not to wait for the next.
const PARALLEL_CLOSINGS: usize = 4;
/// How often a record is decided about again when somebody else changes it under our hands.
const RECORD_ROUNDS: usize = 5;
/// How often an image is started over when the lease vanishes.
const LEASE_ROUNDS: usize = 3;

/// Hears what happens during an import, as it happens. All methods may be called from any thread.
pub trait Observer: Send + Sync {
    /// So many bytes are missing in containerd and will be sent. Comes first, if the import begins
    /// at all.
    fn planned(&self, bytes: u64) {
        let _ = bytes;
    }
    /// So many images will be gone through. Comes with [`Observer::planned`].
    fn images(&self, count: usize) {
        let _ = count;
    }
    /// A blob was sent, or found in place.
    fn blob(&self, digest: &Digest, sent_bytes: Option<u64>) {
        let _ = (digest, sent_bytes);
    }
    /// An image is done.
    fn image(&self, outcome: &IngestedImage) {
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
pub struct IngestedImage {
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
    /// The blob whose bytes are not what they should be, where that is the failure. The reason does
    /// not name it.
    pub damaged: Option<Digest>,
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
    pub images: Vec<IngestedImage>,
    /// Blobs that were sent, with the bytes that went over the wire.
    pub sent: HashMap<Digest, u64>,
    /// Blobs that are in place without a byte having been sent.
    pub present: HashSet<Digest>,
    /// What became of the images that were to be unpacked, by their index in the list that was
    /// planned.
    pub unpacked: Vec<(usize, Result<Unpacked, String>)>,
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
/// Never fails as a whole: what went wrong is in the result, beside what went right. When the plan
/// is done already, nothing is leased and nothing is written; only a lease that an interrupted run
/// left behind is given back.
///
/// # Cancel safety
///
/// May be dropped at any await: what is committed stays under the lease, which is found again by
/// the next run or ends by itself, and a record is written whole or not at all.
pub async fn carry_out(job: &Job<'_>) -> Ingested {
    let mut run = Run {
        job,
        done: HashSet::new(),
        bad: HashMap::new(),
        finished: HashSet::new(),
        result: Ingested::default(),
        lease: None,
        assurance: Arc::default(),
        turns: Arc::default(),
        unpacking: Arc::default(),
    };
    let stopped = run.all().await.err();
    // A run that was stopped is taken up again: its lease keeps what has been moved. But a full
    // disk hurts everybody on the node, for as long as the lease would live.
    let is_over = stopped.as_ref().is_none_or(Error::is_space);
    if is_over && let Err(error) = lease::give_back(job.client, job.lease_id).await {
        tracing::debug!(%error, "the lease was not given back and ends by itself");
    }
    run.result.stopped = stopped;
    run.result
}

/// The result of a plan that is not begun for want of space: only what was in place is.
pub(crate) fn not_begun(job: &Job<'_>, obstacle: Error) -> Ingested {
    let mut result = Ingested {
        stopped: Some(obstacle),
        ..Ingested::default()
    };
    for image in job.plan.images.iter().filter(|image| image.is_done()) {
        let in_place = image.blobs.iter().map(|step| step.digest.clone());
        result.present.extend(in_place);
        result.images.push(IngestedImage {
            index: image.index,
            records: Ok(in_place_records(image)),
        });
    }
    result
}

/// The result of a plan that is not carried out: every record as it would become.
#[must_use]
pub fn foreseen(plan: &Plan) -> Ingested {
    let images = plan.images.iter().map(|image| IngestedImage {
        index: image.index,
        records: Ok(image
            .records
            .iter()
            .map(|step| (step.clone(), planned(&step.action)))
            .collect()),
    });
    let steps = plan.images.iter().flat_map(|image| &image.blobs);
    let (sent, present): (Vec<_>, Vec<_>) = steps.partition(|step| step.action == BlobAction::Send);
    Ingested {
        images: images.collect(),
        sent: sent
            .into_iter()
            .map(|step| (step.digest.clone(), step.size))
            .collect(),
        present: present.into_iter().map(|step| step.digest.clone()).collect(),
        ..Ingested::default()
    }
}

fn planned(action: &RecordAction) -> RecordOutcome {
    match action {
        RecordAction::Create(_) => RecordOutcome::Created,
        RecordAction::Retarget { .. } => RecordOutcome::Retargeted,
        RecordAction::Relabel(_) => RecordOutcome::Relabelled,
        RecordAction::Unchanged => RecordOutcome::Unchanged,
        RecordAction::Conflict { refuse, .. } => RecordOutcome::Left { refused: *refuse },
        RecordAction::Leave(_) => RecordOutcome::Left { refused: false },
    }
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
    assurance: Arc<Assurance>,
    turns: Arc<Turns>,
    /// Held by the image that is being unpacked: one at a time.
    unpacking: Arc<Mutex<()>>,
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
                damaged: None,
                is_content: true,
            }),
            Recovery::Permanent => Fault::Image(Failure {
                reason: chain(&error),
                damaged: None,
                is_content: false,
            }),
            Recovery::Transient | Recovery::Space | Recovery::Disk => Fault::Stop(Error::Containerd(error)),
        }
    }
}

impl<'a> Run<'a> {
    async fn all(&mut self) -> Result<(), Error> {
        let mut ended = self.all_held_images().await;
        if ended.is_ok() {
            ended = self.unpack_recorded().await;
        }
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

    /// Goes through all images until each of them was held from its first blob to its records.
    async fn all_held_images(&mut self) -> Result<(), Error> {
        for _ in 0..LEASE_ROUNDS {
            self.all_images().await?;
            if self.are_all_held().await? {
                return Ok(());
            }
            self.forget_lease();
        }
        Err(Error::LeaseKeepsVanishing)
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
        self.finished.insert(image.index);
        let is_known = |result: &IngestedImage| result.index == image.index;
        if self.result.images.iter().any(is_known) && records.is_ok() {
            // It was only looked at once more: what became of it was said the first time.
            return;
        }
        self.result.images.retain(|result| !is_known(result));
        let outcome = IngestedImage {
            index: image.index,
            records,
        };
        self.job.observer.image(&outcome);
        self.result.images.push(outcome);
    }

    /// Whether every image is finished since the lease was last lost, and the lease, if one was
    /// needed, is still there.
    async fn are_all_held(&self) -> Result<bool, Error> {
        if self.finished.len() < self.job.plan.images.len() {
            return Ok(false);
        }
        match &self.lease {
            Some(lease) => Ok(lease.is_alive(self.job.client).await?),
            None => Ok(true),
        }
    }

    /// What was held may be gone with the lease, and that of images with records, too: one may have
    /// been written in the moment before the loss was noticed. All are gone through once more.
    fn forget_lease(&mut self) {
        self.lease = None;
        self.assurance = Arc::default();
        self.done.clear();
        self.finished.clear();
    }

    async fn image_with_lease(
        &mut self,
        image: &'a ImagePlan,
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

    async fn image(&mut self, image: &'a ImagePlan) -> Result<Vec<(RecordStep, RecordOutcome)>, Fault> {
        if image.is_done() {
            let in_place = image.blobs.iter().map(|step| step.digest.clone());
            self.result.present.extend(in_place);
            return Ok(in_place_records(image));
        }
        self.check_known_bad(image)?;
        self.leaves(image).await?;
        let closing = self.closing(image).await?;
        let closed = closing.close().await;
        self.closed(closed)
    }

    /// What is left to do of an image of which nothing big is to be sent any more.
    async fn closing(&mut self, image: &'a ImagePlan) -> Result<Closing<'a>, Fault> {
        let lease = self.lease().await?;
        let blobs = image
            .blobs
            .iter()
            .filter(|step| !self.done.contains(&step.digest));
        Ok(Closing {
            job: self.job,
            image,
            blobs: blobs.collect(),
            lease,
            assurance: Arc::clone(&self.assurance),
            turns: Arc::clone(&self.turns),
            unpacking: Arc::clone(&self.unpacking),
        })
    }

    /// Notes what became of the blobs of an image; gives what became of its records.
    fn closed(&mut self, closed: Closed<'_>) -> Result<Vec<(RecordStep, RecordOutcome)>, Fault> {
        for moved in closed.blobs {
            self.moved(moved)?;
        }
        let unpacked = closed.unpacked.map(|unpacked| (closed.image.index, Ok(unpacked)));
        self.result.unpacked.extend(unpacked);
        closed.records
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
        lease: &Lease,
        tasks: &mut JoinSet<Moved>,
    ) -> Result<(), Fault> {
        // Where each blob is decompressed from the beginning, each takes a window of memory.
        let is_sequential = self
            .job
            .bundle
            .as_ref()
            .is_some_and(|bundle| bundle.is_sequential());
        let at_a_time = if is_sequential { 1 } else { PARALLEL_BLOBS };
        for step in image.blobs.iter().filter(|step| step.children.is_empty()) {
            if self.done.contains(&step.digest) {
                continue;
            }
            if tasks.len() >= at_a_time {
                self.joined(tasks.join_next().await)?;
            }
            tasks.spawn(BlobTask::new(self.job, lease, step, &self.turns).run());
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
                let is_of_source = matches!(error, containerd::Error::Source { .. });
                let damage = damage(&error);
                let mut fault = Fault::from(error);
                if is_of_source || matches!(fault, Fault::Image(_)) {
                    // Bytes that somebody is just changing say nothing about the bundle that comes
                    // of it.
                    check_bundle(self.job)?;
                    check_blob(self.job, &digest)?;
                }
                if let Fault::Image(failure) = &mut fault {
                    if let Some(reason) = damage {
                        failure.reason = reason;
                        failure.damaged = Some(digest.clone());
                    }
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
    async fn lease(&mut self) -> Result<Lease, Fault> {
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
        Ok(self.lease.clone().expect("a lease was just acquired"))
    }
}

/// What is wrong with the bytes of a blob, where the bundle is to blame for its failure.
fn damage(error: &containerd::Error) -> Option<String> {
    match error {
        _ if error.recovery() != Recovery::Content => None,
        containerd::Error::Content { reason, .. } => Some(reason.clone()),
        containerd::Error::Source { digest, source, .. } => Some(format!("{digest}: {source}")),
        _ => None,
    }
}

/// A bundle that somebody writes into while it is read is not trusted to the end, although no blob
/// of it can be wrong.
fn check_bundle(job: &Job<'_>) -> Result<(), Fault> {
    let Some(bundle) = &job.bundle else {
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

/// The same of a blob in a layout folder: the folder does not change with what is written into one
/// of its files.
fn check_blob(job: &Job<'_>, digest: &Digest) -> Result<(), Fault> {
    let Some(bundle) = &job.bundle else {
        return Ok(());
    };
    match bundle.blob(digest) {
        Some(blob) if !blob.is_unchanged() => Err(Fault::Stop(Error::Changed {
            path: bundle.path().to_owned(),
        })),
        _ => Ok(()),
    }
}

fn unwritten(action: &RecordAction) -> RecordOutcome {
    match action {
        RecordAction::Conflict { refuse, .. } => RecordOutcome::Left { refused: *refuse },
        RecordAction::Leave(_) => RecordOutcome::Left { refused: false },
        _ => RecordOutcome::Unchanged,
    }
}
