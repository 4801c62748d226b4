//! Sending the leaves of a bundle that is best read in order.
//!
//! Image by image would mean decompressing the bundle once for each. Instead one [`Pass`] takes what all images lack,
//! and each image is recorded as soon as its leaves are there. What this leaves undone (a blob that had to be started
//! over, or that vanished from containerd meanwhile) is done afterwards, image by image, like any other.

use std::collections::HashMap;
use std::sync::Arc;

use oci_spec::image::Digest;
use tokio::task::{JoinError, JoinSet};

use super::pass::{OnceSource, Pass, Passing};
use super::{Fault, Moved, PARALLEL_BLOBS, Run};
use crate::Error;
use crate::plan::{BlobAction, BlobStep, ImagePlan};

impl<'a> Run<'a> {
    /// Sends leaves in the order of the bundle, and finishes every image whose leaves are there by then.
    pub(super) async fn in_order(&mut self) -> Result<(), Fault> {
        let Some(bundle) = self.job.bundle.as_ref().filter(|bundle| bundle.is_sequential()) else {
            return Ok(());
        };
        let mut lacking = Lacking::default();
        for image in &self.job.plan.images {
            if !self.finished.contains(&image.index) && !lacking.add(image, self) {
                self.finish_now(image).await?;
            }
        }
        if lacking.blobs.is_empty() {
            return Ok(());
        }
        let mut pass = Pass::begin(bundle, lacking.blobs.keys().cloned().collect());
        let mut tasks = JoinSet::new();
        let ended = self.take_all(&mut pass, &mut lacking, &mut tasks).await;
        if let Err(Fault::Stop(error)) = &ended {
            drop(pass);
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
        pass: &mut Pass,
        lacking: &mut Lacking<'a>,
        tasks: &mut JoinSet<Moved>,
    ) -> Result<(), Fault> {
        let mut sources = HashMap::new();
        let mut is_over = false;
        while !(is_over && tasks.is_empty()) {
            tokio::select! {
                passing = pass.next(), if !is_over && tasks.len() < PARALLEL_BLOBS => match passing {
                    Some(Ok(Passing { digest, source })) => {
                        let lease = self.lease().await?;
                        let task = self.task(&lease, lacking.blobs[&digest].step);
                        tasks.spawn(task.from(Arc::clone(&source) as _).run());
                        sources.insert(digest, source);
                    }
                    Some(Err(error)) => return Err(self.unreadable(error)),
                    None => is_over = true,
                },
                Some(joined) = tasks.join_next() => {
                    let moved = joined.map_err(|error: JoinError| Fault::Stop(Error::Task(error)))?;
                    let source = sources.remove(&moved.digest);
                    self.passed(moved, source.as_deref(), lacking).await?;
                }
            }
        }
        Ok(())
    }

    /// Notes what became of a blob that has gone by, and finishes the images that waited for it only.
    async fn passed(
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
            // Its images will say so.
            Err(Fault::Image(_)) => false,
            Err(fault) => return Err(fault),
        };
        for image in lacking.take(&digest, is_there) {
            self.finish_now(image).await?;
        }
        Ok(())
    }

    async fn finish_now(&mut self, image: &ImagePlan) -> Result<(), Fault> {
        if self.finished.contains(&image.index) {
            return Ok(());
        }
        match self.image(image).await {
            Ok(records) => self.finish(image, Ok(records)),
            Err(Fault::Image(failure)) => self.finish(image, Err(failure)),
            Err(fault) => return Err(fault),
        }
        Ok(())
    }

    /// The bundle cannot be read on.
    fn unreadable(&self, error: bundle::Error) -> Fault {
        match self.check_bundle() {
            Err(fault) => fault,
            Ok(()) => Fault::Stop(Error::Bundle(error)),
        }
    }
}

/// The leaves that are to come, and the images that wait for them.
#[derive(Default)]
struct Lacking<'a> {
    blobs: HashMap<Digest, Awaited<'a>>,
    /// How many leaves an image waits for, by its index.
    counts: HashMap<usize, usize>,
}

struct Awaited<'a> {
    step: &'a BlobStep,
    images: Vec<&'a ImagePlan>,
}

impl<'a> Lacking<'a> {
    /// Adds what an image lacks; says whether there is anything.
    fn add(&mut self, image: &'a ImagePlan, run: &Run<'_>) -> bool {
        let is_known_bad = image.blobs.iter().any(|step| run.bad.contains_key(&step.digest));
        let mut count = 0;
        for step in image
            .blobs
            .iter()
            .filter(|step| !is_known_bad && is_leaf_to_send(step))
        {
            if run.done.contains(&step.digest) {
                continue;
            }
            let awaited = self.blobs.entry(step.digest.clone());
            awaited
                .or_insert_with(|| Awaited {
                    step,
                    images: Vec::new(),
                })
                .images
                .push(image);
            count += 1;
        }
        self.counts.insert(image.index, count);
        count > 0
    }

    /// Takes a blob off the list; gives the images that wait no longer: for want of others, or in vain.
    fn take(&mut self, digest: &Digest, is_there: bool) -> Vec<&'a ImagePlan> {
        let images = self.blobs.get(digest).map(|awaited| awaited.images.clone());
        let mut ready = images.unwrap_or_default();
        ready.retain(|image| {
            let count = self.counts.entry(image.index).or_default();
            *count = count.saturating_sub(1);
            *count == 0 || !is_there
        });
        ready
    }
}

fn is_leaf_to_send(step: &BlobStep) -> bool {
    step.children.is_empty() && step.action == BlobAction::Send
}
