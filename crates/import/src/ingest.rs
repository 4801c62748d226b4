//! Carries a plan out: blobs under one lease, children before parents, then the image records.
//!
//! This module decides nothing. An image with a damaged blob fails alone. If containerd cannot be
//! reached, the run stops. The next run finds the committed blobs in place.

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
use tokio::task::JoinSet;

use self::assurance::Assurance;
pub(crate) use self::blobs::FromBundle;
use self::blobs::{BlobTask, Moved, Turns};
use self::closing::{Closed, Closing};
pub(crate) use self::pass::{Pass, Passing};

use crate::Error;
use crate::lease::{self, Lease};
use crate::plan::{BlobAction, ImagePlan, Intent, Plan, RecordAction, RecordStep};
use crate::unpack::Unpacked;

/// Number of layers and configs sent at the same time, each over its own connection. containerd
/// gains nothing from more. The client has spare connections, so that images get their manifests
/// while layers of the next images are under way.
pub(crate) const PARALLEL_BLOBS: usize = 4;
/// Number of images that get their manifests and records at the same time. Each of these steps is a
/// short write to containerd's database, which takes one write after the other. The next write
/// should always be ready.
const PARALLEL_CLOSINGS: usize = 4;
/// Number of attempts at a record that another program keeps changing.
const RECORD_ROUNDS: usize = 5;
/// Number of attempts at an image whose lease vanishes.
const LEASE_ROUNDS: usize = 3;

/// Receives the events of an import as they happen. Any thread may call any method.
pub trait Observer: Send + Sync {
    /// Gets the number of bytes that containerd lacks and that will be sent. This call comes first.
    /// It does not come if the import does not start.
    fn planned(&self, bytes: u64) {
        let _ = bytes;
    }
    /// Gets the number of images to process. Comes with [`Observer::planned`].
    fn images(&self, count: usize) {
        let _ = count;
    }
    /// Gets a blob that was sent, or that was found in place.
    fn blob(&self, digest: &Digest, sent_bytes: Option<u64>) {
        let _ = (digest, sent_bytes);
    }
    /// Gets the result of a finished image.
    fn image(&self, outcome: &IngestedImage) {
        let _ = outcome;
    }
    /// Returns a counter to which the import adds acknowledged bytes while blobs are under way.
    fn bytes(&self) -> Option<Arc<std::sync::atomic::AtomicU64>> {
        None
    }
}

/// Ignores all events.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Observer for Silent {}

/// The result of an image of the plan.
#[derive(Clone, Debug)]
pub struct IngestedImage {
    /// Index of the image in the planned list.
    pub index: usize,
    /// The image's records, or the reason why it has none.
    pub records: Result<Vec<(RecordStep, RecordOutcome)>, Failure>,
}

/// The reason why an image has no record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The reason in one line. It names the blob or record.
    pub reason: String,
    /// The damaged blob, if damage is the failure. The reason does not name the blob.
    pub damaged: Option<Digest>,
    /// True if the bundle is to blame.
    pub is_content: bool,
}

/// The result of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordOutcome {
    /// The record is new.
    Created,
    /// The record now points to the image, and pointed to another image before.
    Retargeted,
    /// Only the record's labels changed.
    Relabelled,
    /// Nothing was written.
    Unchanged,
    /// The bundle does not get the name, and its record stays.
    Left {
        /// True if the rule `refuse` applies, so that the record counts as a failure.
        refused: bool,
    },
    /// containerd rejected the record. The text is the reason in one line.
    Rejected(String),
}

/// The result of a plan.
#[derive(Debug, Default)]
pub struct Ingested {
    /// The processed images, in the order of the plan.
    pub images: Vec<IngestedImage>,
    /// The blobs that were sent, with the number of bytes sent for each.
    pub sent: HashMap<Digest, u64>,
    /// The blobs that are in place without a sent byte.
    pub present: HashSet<Digest>,
    /// The results of the images to unpack, each with its index in the planned list.
    pub unpacked: Vec<(usize, Result<Unpacked, String>)>,
    /// The error that stopped the run before its end.
    pub stopped: Option<Error>,
}

/// A job for [`carry_out`].
pub struct Job<'a> {
    /// The containerd that gets the images.
    pub client: &'a Client,
    /// The source of the bytes. `None` if every blob is in place and only records are written.
    pub bundle: Option<Arc<Bundle>>,
    /// The steps.
    pub plan: &'a Plan,
    /// The source in whose name records are written, and the rules for writing them.
    pub intent: &'a Intent,
    /// The part of the lease's id that names the bundle.
    pub lease_id: &'a str,
    /// Receives the events of the run.
    pub observer: &'a dyn Observer,
}

/// Carries out a plan.
///
/// The run never fails as a whole: the result has failures beside successes. If the plan is already
/// done, the run takes no lease and writes nothing. It only deletes a lease that an interrupted
/// run left behind.
///
/// # Cancel safety
///
/// May be dropped at any await. Committed blobs stay under the lease. The next run finds the lease
/// again, or it expires. A record is written whole or not at all.
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
    };
    let stopped = run.all().await.err();
    // The next run continues a stopped run, and the lease keeps the sent blobs for it. But a full
    // disk hurts every program on the node as long as the lease lives.
    // A pipe is read once, so no next run continues it.
    let is_piped = job.bundle.as_ref().is_some_and(|bundle| bundle.is_piped());
    let is_over = is_piped || stopped.as_ref().is_none_or(Error::is_space);
    if is_over && let Err(error) = lease::give_back(job.client, job.lease_id).await {
        tracing::debug!(%error, "cannot delete the lease, which will expire");
    }
    run.result.stopped = stopped;
    run.result
}

/// Returns the result of a plan that is not started because of an obstacle. It has only the images
/// that were in place.
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

/// Returns the result that a plan would have, with every record as it would become.
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

/// Returns the records of an image for which nothing is written.
fn in_place_records(image: &ImagePlan) -> Vec<(RecordStep, RecordOutcome)> {
    let records = image.records.iter();
    records
        .map(|step| (step.clone(), unwritten(&step.action)))
        .collect()
}

struct Run<'a> {
    job: &'a Job<'a>,
    /// The blobs that this run has secured.
    done: HashSet<Digest>,
    /// The damaged blobs, with the reason.
    bad: HashMap<Digest, Failure>,
    /// Indexes of the images that need nothing further.
    finished: HashSet<usize>,
    result: Ingested,
    lease: Option<Lease>,
    assurance: Arc<Assurance>,
    turns: Arc<Turns>,
}

/// The reason why an image is not recorded.
enum Fault {
    /// Other images may still succeed.
    Image(Failure),
    /// The lease is gone, and blobs that it held may be gone, too.
    LeaseLost,
    /// The failure is not the image's, and the run cannot continue.
    Stop(Error),
}

impl From<containerd::Error> for Fault {
    fn from(error: containerd::Error) -> Self {
        match error.recovery() {
            Recovery::LeaseLost => Fault::LeaseLost,
            // As long as the lease exists, its blobs cannot go away.
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
        // Images finish in the order of the bundle. The result has the order of the plan.
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

    /// Processes all images until the lease has held each from its first blob to its records.
    async fn all_held_images(&mut self) -> Result<(), Error> {
        for _ in 0..LEASE_ROUNDS {
            self.all_images().await?;
            if self.are_all_held().await? {
                return Ok(());
            }
            self.check_readable()?;
            self.forget_lease();
        }
        Err(Error::LeaseKeepsVanishing)
    }

    /// Returns an error if a lost lease held blobs of a pipe, which brings them only once.
    fn check_readable(&self) -> Result<(), Error> {
        match &self.job.bundle {
            Some(bundle) if bundle.is_piped() => Err(Error::LeaseOfPipeGone),
            _ => Ok(()),
        }
    }

    async fn all_images(&mut self) -> Result<(), Error> {
        for _ in 0..LEASE_ROUNDS {
            match self.all_leaves().await {
                Err(Fault::LeaseLost) => {
                    self.check_readable()?;
                    self.forget_lease();
                }
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
            // This was a second check. The first one reported the image's result.
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

    /// Returns true if every image is finished since the last loss of the lease. The lease, if
    /// there is one, must still exist.
    async fn are_all_held(&self) -> Result<bool, Error> {
        if self.finished.len() < self.job.plan.images.len() {
            return Ok(false);
        }
        match &self.lease {
            Some(lease) => Ok(lease.is_alive(self.job.client).await?),
            None => Ok(true),
        }
    }

    /// Starts all images again after the loss of the lease. Its blobs may be gone, even those of
    /// images with records: a record may have been written just before the loss was noticed.
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

    /// Returns the remaining work on an image whose leaves are sent.
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
        })
    }

    /// Notes the results of an image's blobs. Returns the results of its records.
    fn closed(&mut self, closed: Closed<'_>) -> Result<Vec<(RecordStep, RecordOutcome)>, Fault> {
        for moved in closed.blobs {
            self.moved(moved)?;
        }
        let unpacked = closed.unpacked.map(|unpacked| (closed.image.index, Ok(unpacked)));
        self.result.unpacked.extend(unpacked);
        closed.records
    }

    /// Sends layers and configs, several at a time.
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
        // In a sequential bundle, each blob is decompressed from the beginning and takes a window
        // of memory.
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

    /// Aborts the unfinished ingests of an image. Otherwise a full disk would stay full.
    async fn clear_away(&self, image: &ImagePlan) {
        for step in image
            .blobs
            .iter()
            .filter(|step| !self.done.contains(&step.digest))
        {
            let reference = containerd::ingest_ref(&step.digest);
            if let Err(error) = self.job.client.abort_ingest(&reference).await {
                tracing::debug!(%error, reference, "a half-written blob stays until the lease ends");
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
                    // If another program is changing the bundle, its bytes say nothing about the
                    // finished bundle.
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

    /// Fails an image at once, before anything is sent for it, if one of its blobs has failed
    /// another image.
    fn check_known_bad(&self, image: &ImagePlan) -> Result<(), Fault> {
        match image.blobs.iter().find_map(|step| self.bad.get(&step.digest)) {
            Some(failure) => Err(Fault::Image(failure.clone())),
            None => Ok(()),
        }
    }

    /// Returns the lease. Replaces it first if it is too old.
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

/// Returns the damage of a blob's bytes, if the bundle is to blame for the failure.
fn damage(error: &containerd::Error) -> Option<String> {
    match error {
        _ if error.recovery() != Recovery::Content => None,
        containerd::Error::Content { reason, .. } => Some(reason.clone()),
        containerd::Error::Source { digest, source, .. } => Some(format!("{digest}: {source}")),
        _ => None,
    }
}

/// Stops the run if the bundle changed while it was read. No blob can be wrong, but the rest of the
/// bundle is not trusted.
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

/// Stops the run if a blob's file in a layout folder changed. Writing into a file does not change
/// the folder.
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
