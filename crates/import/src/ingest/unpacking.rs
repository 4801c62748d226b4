//! The part of an import that unpacks images, each before or after its records.

use std::collections::VecDeque;

use basics::chain;
use futures_util::{StreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use super::{Failure, Fault, Job, LEASE_ROUNDS, Run};
use crate::Error;
use crate::lease::Lease;
use crate::plan::{ImagePlan, UnpackWhen};
use crate::unpack::{Room, UnpackError, Unpacked, Unpacker};

impl From<UnpackError> for Fault {
    fn from(error: UnpackError) -> Self {
        match error {
            UnpackError::Containerd(error) => Fault::from(error),
            UnpackError::Unfit(reason) => Fault::Image(Failure {
                reason,
                damaged: None,
                is_content: true,
            }),
            UnpackError::NoRoom { .. } => Fault::Image(Failure {
                reason: error.to_string(),
                damaged: None,
                is_content: false,
            }),
            UnpackError::Sync { .. } | UnpackError::Stopped => Fault::Stop(Error::Unpack(error)),
        }
    }
}

/// Returns the unpacker if images are unpacked before their records.
pub(super) fn unpacks_before_records<'a>(job: &Job<'a>) -> Option<&'a Unpacker> {
    match &job.intent.unpack {
        Some((unpacker, UnpackWhen::BeforeRecord)) => Some(unpacker),
        Some((_, UnpackWhen::AfterRecords | UnpackWhen::Meanwhile)) | None => None,
    }
}

/// The images that have their records, and are unpacked while other images are still sent.
#[derive(Default)]
pub(super) struct Early<'a>(VecDeque<&'a ImagePlan>);

impl<'a> Early<'a> {
    /// Adds an image, if the import unpacks images after their records.
    pub(super) fn add(&mut self, image: &'a ImagePlan, run: &Run<'a>) {
        let is_wanted = image.unpack && unpacks_before_records(run.job).is_none();
        if is_wanted && run.is_recorded(image) {
            self.0.push_back(image);
        }
    }

    /// Returns the next image to unpack if this many are under way. If nothing is sent any more,
    /// images that the caller unpacks later are left to it.
    pub(super) async fn next(
        &mut self,
        under_way: usize,
        is_sending: bool,
        run: &mut Run<'a>,
    ) -> Result<Option<Unpacking<'a>>, Fault> {
        let Some((unpacker, when)) = &run.job.intent.unpack else {
            return Ok(None);
        };
        if !is_sending && *when == UnpackWhen::Meanwhile {
            self.0.clear();
        }
        if under_way >= unpacker.images_at_a_time() {
            return Ok(None);
        }
        let Some(image) = self.0.pop_front() else {
            return Ok(None);
        };
        // The blobs of other images come first on a disk that is nearly full.
        let room = Room::Ahead {
            besides: run.job.plan.bytes_to_send(),
        };
        run.unpacking(unpacker, image, room).await.map(Some)
    }
}

/// Unpacks an image whose blobs are in place, under the import's lease.
pub(super) async fn unpack(
    unpacker: &Unpacker,
    job: &Job<'_>,
    image: &ImagePlan,
    lease: &Lease,
    room: Room,
) -> Result<Unpacked, UnpackError> {
    let root = image.blobs.last().map(|root| &root.digest);
    let targets = image.records.iter().map(|record| &record.target);
    let Some(target) = targets.clone().find(|target| Some(target.digest()) == root) else {
        return Err(UnpackError::Unfit(
            "none of its records names the whole image".to_owned(),
        ));
    };
    let blobs = image.blobs.iter().map(|step| (step.digest.clone(), step.size));
    // A caller stops an import by dropping it.
    let stop = CancellationToken::new();
    unpacker
        .unpack(job.client, lease.id(), target, blobs, room, &stop)
        .await
}

/// The unpacking of an image that has its records.
pub(super) struct Unpacking<'a> {
    unpacker: &'a Unpacker,
    job: &'a Job<'a>,
    image: &'a ImagePlan,
    lease: Lease,
    room: Room,
}

impl Unpacking<'_> {
    async fn run(self) -> (usize, Result<Unpacked, UnpackError>) {
        let unpacked = unpack(self.unpacker, self.job, self.image, &self.lease, self.room).await;
        (self.image.index, unpacked)
    }

    /// Unpacks the image while other images are still sent. Returns `None` after a failure. A later
    /// attempt reports it if it persists.
    pub(super) async fn early(self) -> Option<(usize, Result<Unpacked, String>)> {
        let (index, unpacked) = self.run().await;
        match unpacked {
            Ok(unpacked) => Some((index, Ok(unpacked))),
            Err(error) => {
                tracing::debug!(error = chain(&error), "an image is unpacked later");
                None
            }
        }
    }
}

impl<'a> Run<'a> {
    async fn unpacking(
        &mut self,
        unpacker: &'a Unpacker,
        image: &'a ImagePlan,
        room: Room,
    ) -> Result<Unpacking<'a>, Fault> {
        Ok(Unpacking {
            unpacker,
            job: self.job,
            image,
            lease: self.lease().await?,
            room,
        })
    }

    /// Unpacks the images that have records and are not unpacked yet. A failure is reported and
    /// does not remove records.
    pub(super) async fn unpack_recorded(&mut self) -> Result<(), Error> {
        let unpacker = match &self.job.intent.unpack {
            Some((_, UnpackWhen::Meanwhile)) | None => return Ok(()),
            Some((unpacker, UnpackWhen::BeforeRecord | UnpackWhen::AfterRecords)) => unpacker,
        };
        for _ in 0..LEASE_ROUNDS {
            match self.unpack_others(unpacker).await {
                Ok(()) => return Ok(()),
                Err(Fault::LeaseLost) => self.forget_lease(),
                Err(Fault::Image(failure)) => return Err(Error::Unpack(UnpackError::Unfit(failure.reason))),
                Err(Fault::Stop(error)) => return Err(error),
            }
        }
        Err(Error::LeaseKeepsVanishing)
    }

    async fn unpack_others(&mut self, unpacker: &'a Unpacker) -> Result<(), Fault> {
        let mut due = Vec::new();
        for image in self.job.plan.images.iter().filter(|image| image.unpack) {
            if self.is_recorded(image) && !self.is_unpacked(image) {
                due.push(
                    self.unpacking(unpacker, image, Room::Ahead { besides: 0 })
                        .await?,
                );
            }
        }
        let jobs: Vec<_> = due.into_iter().map(Unpacking::run).collect();
        let mut jobs = stream::iter(jobs).buffer_unordered(unpacker.images_at_a_time());
        while let Some((index, unpacked)) = jobs.next().await {
            let unpacked = match unpacked.map_err(Fault::from) {
                Ok(unpacked) => Ok(unpacked),
                Err(Fault::Image(failure)) => Err(failure.reason),
                Err(fault) => return Err(fault),
            };
            self.result.unpacked.push((index, unpacked));
        }
        Ok(())
    }

    fn is_recorded(&self, image: &ImagePlan) -> bool {
        let mut results = self.result.images.iter();
        results.any(|result| result.index == image.index && result.records.is_ok())
    }

    fn is_unpacked(&self, image: &ImagePlan) -> bool {
        self.result
            .unpacked
            .iter()
            .any(|(index, _)| *index == image.index)
    }
}
