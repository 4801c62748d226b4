//! Sends the leaves of all images, several at a time, and finishes each image once its leaves are
//! there.
//!
//! Images do not wait for each other. While one image gets its manifests and records, layers of the
//! next images are under way. A bundle that can be read at any place is sent image by image. A
//! sequential bundle is sent in one [`Pass`]. Blobs that had to be started over, or that vanished
//! from containerd meanwhile, are sent afterwards, image by image.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use oci_spec::image::Digest;
use tokio::task::{JoinError, JoinSet};

use super::blobs::{BlobTask, Moved};
use super::closing::{Closed, Closing};
use super::pass::{OnceSource, Pass, Passing};
use super::unpacking::Early;
use super::{Fault, PARALLEL_BLOBS, PARALLEL_CLOSINGS, RecordOutcome, Run, check_bundle};
use crate::Error;
use crate::plan::{BlobAction, BlobStep, ImagePlan, RecordStep};

impl<'a> Run<'a> {
    /// Sends leaves, and finishes every image whose leaves are there.
    pub(super) async fn all_leaves(&mut self) -> Result<(), Fault> {
        let Some(bundle) = self.job.bundle.as_ref() else {
            return Ok(());
        };
        let mut lacking = Lacking::default();
        for image in &self.job.plan.images {
            if !self.finished.contains(&image.index) && !lacking.add(image, self) {
                lacking.ready.push_back(image);
            }
        }
        let mut coming = match bundle.is_sequential() {
            true => Coming::Passing(Pass::begin(bundle, lacking.blobs.keys().cloned().collect())),
            false => Coming::Anywhere(Order::of(&mut lacking)),
        };
        let mut tasks = JoinSet::new();
        let ended = self.take_all(&mut coming, &mut lacking, &mut tasks).await;
        if let Err(Fault::LeaseLost) = &ended {
            drop(coming);
            // The remaining tasks fail as well, or they finish and then count.
            while let Some(Ok(moved)) = tasks.join_next().await {
                let _ = self.moved(moved);
            }
        } else if let Err(Fault::Stop(error)) = &ended {
            drop(coming);
            tasks.shutdown().await;
            if error.is_space() {
                for image in &self.job.plan.images {
                    self.clear_away(image).await;
                }
            }
        }
        ended
    }

    async fn take_all(
        &mut self,
        coming: &mut Coming,
        lacking: &mut Lacking<'a>,
        tasks: &mut JoinSet<Moved>,
    ) -> Result<(), Fault> {
        let mut sources = HashMap::new();
        let mut closings = FuturesUnordered::new();
        let mut early = Early::default();
        let mut unpackings = FuturesUnordered::new();
        let mut is_over = false;
        let mut full = Full::default();
        let is_piped = self.job.bundle.as_ref().is_some_and(|bundle| bundle.is_piped());
        loop {
            // Only the end of a pipe shows that it was not cut off, and no image appears before.
            while (is_over || !is_piped)
                && closings.len() < PARALLEL_CLOSINGS
                && let Some(image) = lacking.ready.pop_front()
            {
                match self.begin_to_close(image).await {
                    Ok(closing) => closings.extend(closing.map(Closing::close)),
                    Err(fault) => full.note(Err(fault))?,
                }
            }
            let is_sending = !(is_over && tasks.is_empty());
            while let Some(unpacking) = early.next(unpackings.len(), is_sending, self).await? {
                unpackings.push(unpacking.early());
            }
            tokio::select! {
                leaf = coming.next(tasks.len() + 1 == PARALLEL_BLOBS), if !is_over && !full.is_full() && tasks.len() < PARALLEL_BLOBS => match leaf {
                    Some(Ok((digest, _))) if !lacking.is_awaited(&digest, self) => coming.ended(&digest),
                    Some(Ok((digest, source))) => {
                        let lease = self.lease().await?;
                        let mut task = BlobTask::new(self.job, &lease, lacking.blobs[&digest].step, &self.turns);
                        if let Some(source) = source {
                            task = task.from(Arc::clone(&source) as _);
                            sources.insert(digest, source);
                        }
                        tasks.spawn(task.run());
                    }
                    Some(Err(error)) => return Err(self.unreadable(error)),
                    None => is_over = true,
                },
                Some(joined) = tasks.join_next() => {
                    let moved = joined.map_err(|error: JoinError| Fault::Stop(Error::Task(error)))?;
                    let source = sources.remove(&moved.digest);
                    coming.ended(&moved.digest);
                    full.note(self.passed(moved, source.as_deref(), lacking))?;
                }
                Some(closed) = closings.next() => {
                    let image = closed.image;
                    full.note(self.end(closed))?;
                    early.add(image, self);
                }
                Some(unpacked) = unpackings.next() => self.result.unpacked.extend(unpacked),
                else => return full.into_result(),
            }
        }
    }

    /// Notes the result of a leaf, and finds the images that waited only for this leaf.
    fn passed(
        &mut self,
        moved: Moved,
        source: Option<&OnceSource>,
        lacking: &mut Lacking<'a>,
    ) -> Result<(), Fault> {
        let digest = moved.digest.clone();
        if moved.result.is_err() && source.is_some_and(OnceSource::was_missed) {
            tracing::debug!(%digest, "the blob has to be started over and is read by itself later");
            return Ok(());
        }
        let is_there = match self.moved(moved) {
            Ok(()) => true,
            // The images with this blob report the fault.
            Err(Fault::Image(_)) => false,
            Err(fault) => return Err(fault),
        };
        lacking.take(&digest, is_there);
        Ok(())
    }

    /// Returns the remaining work on an image that waits for no more leaves. Returns `None` if
    /// there is none.
    async fn begin_to_close(&mut self, image: &'a ImagePlan) -> Result<Option<Closing<'a>>, Fault> {
        if self.finished.contains(&image.index) {
            return Ok(None);
        }
        if image.is_done() || self.check_known_bad(image).is_err() {
            self.finish_now(image).await?;
            return Ok(None);
        }
        self.closing(image).await.map(Some)
    }

    fn end(&mut self, closed: Closed<'_>) -> Result<(), Fault> {
        let image = closed.image;
        let records = self.closed(closed);
        self.finish_with(image, records)
    }

    async fn finish_now(&mut self, image: &'a ImagePlan) -> Result<(), Fault> {
        let records = self.image(image).await;
        self.finish_with(image, records)
    }

    fn finish_with(
        &mut self,
        image: &ImagePlan,
        records: Result<Vec<(RecordStep, RecordOutcome)>, Fault>,
    ) -> Result<(), Fault> {
        match records {
            Ok(records) => self.finish(image, Ok(records)),
            Err(Fault::Image(failure)) => self.finish(image, Err(failure)),
            Err(fault) => return Err(fault),
        }
        Ok(())
    }

    /// Makes the fault for a bundle whose rest cannot be read.
    fn unreadable(&self, error: bundle::Error) -> Fault {
        match check_bundle(self.job) {
            Err(fault) => fault,
            Ok(()) => Fault::Stop(Error::Bundle(error)),
        }
    }
}

/// Set when the disk is full. Then no new blob is started, and the blobs under way end first. Small
/// images that need little more get into place that way.
#[derive(Default)]
struct Full(Option<Error>);

impl Full {
    fn is_full(&self) -> bool {
        self.0.is_some()
    }

    /// Remembers a full disk, and passes every other fault on.
    fn note(&mut self, ended: Result<(), Fault>) -> Result<(), Fault> {
        match ended {
            Err(Fault::Stop(error)) if error.is_space() => {
                self.0.get_or_insert(error);
                Ok(())
            }
            ended => ended,
        }
    }

    fn into_result(self) -> Result<(), Fault> {
        self.0.map_or(Ok(()), |error| Err(Fault::Stop(error)))
    }
}

/// The source of the next leaf.
enum Coming {
    /// The leaves of a pass over the bundle.
    Passing(Pass),
    /// Leaves from any place in the bundle.
    Anywhere(Order),
}

impl Coming {
    /// Returns the next leaf, with its bytes if a pass reads them now. Returns `None` at the end.
    /// Safe to cancel.
    async fn next(
        &mut self,
        is_last_place: bool,
    ) -> Option<Result<(Digest, Option<Arc<OnceSource>>), bundle::Error>> {
        match self {
            Coming::Passing(pass) => Some(
                pass.next()
                    .await?
                    .map(|Passing { digest, source, .. }| (digest, Some(source))),
            ),
            Coming::Anywhere(order) => order.next(is_last_place).map(|digest| Ok((digest, None))),
        }
    }

    /// Notes that a leaf is no longer under way.
    fn ended(&mut self, digest: &Digest) {
        if let Coming::Anywhere(order) = self {
            order.long.take_if(|long| long == digest);
        }
    }
}

/// The order in which leaves are sent: image by image. One of the parallel places is kept for the
/// largest leaf of all. In its turn, that leaf would finish last and alone.
#[derive(Default)]
struct Order {
    in_turn: VecDeque<Digest>,
    /// The leaves that take long, the largest last.
    largest: Vec<Digest>,
    begun: HashSet<Digest>,
    /// The long leaf that is under way.
    long: Option<Digest>,
}

impl Order {
    /// Smallest leaf, in bytes, that is sent before its turn.
    const LONG: u64 = 16 << 20;

    fn of(lacking: &mut Lacking<'_>) -> Order {
        let size = |digest: &Digest| lacking.blobs[digest].step.size;
        let mut largest: Vec<_> = lacking.order.clone();
        largest.retain(|digest| size(digest) >= Order::LONG);
        largest.sort_by_key(size);
        Order {
            largest,
            in_turn: std::mem::take(&mut lacking.order).into(),
            ..Order::default()
        }
    }

    fn next(&mut self, is_last_place: bool) -> Option<Digest> {
        while is_last_place && self.long.is_none() {
            let Some(digest) = self.largest.pop() else { break };
            if self.begun.insert(digest.clone()) {
                self.long = Some(digest.clone());
                return Some(digest);
            }
        }
        while let Some(digest) = self.in_turn.pop_front() {
            if self.begun.insert(digest.clone()) {
                return Some(digest);
            }
        }
        None
    }
}

/// The leaves to come, and the images that wait for them.
#[derive(Default)]
struct Lacking<'a> {
    blobs: HashMap<Digest, Awaited<'a>>,
    /// Image by image. Within an image, the largest leaf comes first, so that it does not finish
    /// alone at the end.
    order: Vec<Digest>,
    /// Number of leaves that an image waits for, by its index.
    counts: HashMap<usize, usize>,
    /// Images that wait no longer: their leaves are there, or one of them failed.
    ready: VecDeque<&'a ImagePlan>,
}

struct Awaited<'a> {
    step: &'a BlobStep,
    images: Vec<&'a ImagePlan>,
}

impl<'a> Lacking<'a> {
    /// Adds the leaves that an image lacks. Returns true if there are any.
    fn add(&mut self, image: &'a ImagePlan, run: &Run<'_>) -> bool {
        let is_known_bad = image.blobs.iter().any(|step| run.bad.contains_key(&step.digest));
        let is_lacking =
            |step: &&BlobStep| !is_known_bad && is_leaf_to_send(step) && !run.done.contains(&step.digest);
        let mut steps: Vec<_> = image.blobs.iter().filter(is_lacking).collect();
        steps.sort_by_key(|step| std::cmp::Reverse(step.size));
        self.counts.insert(image.index, steps.len());
        for step in &steps {
            let awaited = self.blobs.entry(step.digest.clone()).or_insert_with(|| {
                self.order.push(step.digest.clone());
                Awaited {
                    step,
                    images: Vec::new(),
                }
            });
            awaited.images.push(image);
        }
        !steps.is_empty()
    }

    /// Returns true if an image still needs a blob. An image that another blob has failed does not.
    fn is_awaited(&self, digest: &Digest, run: &Run<'_>) -> bool {
        let images = self
            .blobs
            .get(digest)
            .into_iter()
            .flat_map(|awaited| &awaited.images);
        images
            .into_iter()
            .any(|image| !run.finished.contains(&image.index))
    }

    /// Takes a blob off the list.
    fn take(&mut self, digest: &Digest, is_there: bool) {
        for image in self
            .blobs
            .get(digest)
            .into_iter()
            .flat_map(|awaited| &awaited.images)
        {
            let count = self.counts.entry(image.index).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 || !is_there {
                self.ready.push_back(image);
            }
        }
    }
}

fn is_leaf_to_send(step: &BlobStep) -> bool {
    step.children.is_empty() && step.action == BlobAction::Send
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(fill: char) -> Digest {
        format!("sha256:{}", fill.to_string().repeat(64)).parse().unwrap()
    }

    #[test]
    fn the_largest_is_sent_in_the_last_place_and_everything_once() {
        let mut order = Order {
            in_turn: ['a', 'b', 'c', 'd', 'e', 'f'].map(digest).into(),
            largest: ['d', 'f'].map(digest).into(),
            ..Order::default()
        };
        let firsts = [order.next(false), order.next(false), order.next(true)];
        assert_eq!(firsts, ['a', 'b', 'f'].map(|fill| Some(digest(fill))));
        // While the largest leaf is under way, the others take all places.
        assert_eq!(order.next(true), Some(digest('c')));
        let mut coming = Coming::Anywhere(order);
        coming.ended(&digest('c'));
        coming.ended(&digest('f'));
        let Coming::Anywhere(mut order) = coming else {
            unreachable!()
        };
        assert_eq!(order.next(true), Some(digest('d')));
        assert_eq!([order.next(true), order.next(false)], [Some(digest('e')), None]);
    }
}
