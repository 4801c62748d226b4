//! The part of an import that unpacks images: each before its records, or all after the last
//! record.

use tokio_util::sync::CancellationToken;

use super::{Failure, Fault, Job, LEASE_ROUNDS, Run};
use crate::Error;
use crate::lease::Lease;
use crate::plan::{ImagePlan, UnpackWhen};
use crate::unpack::{UnpackError, Unpacked, Unpacker};

impl From<UnpackError> for Fault {
    fn from(error: UnpackError) -> Self {
        match error {
            UnpackError::Containerd(error) => Fault::from(error),
            UnpackError::Unfit(reason) => Fault::Image(Failure {
                reason,
                damaged: None,
                is_content: true,
            }),
            UnpackError::Sync { .. } | UnpackError::Stopped => Fault::Stop(Error::Unpack(error)),
        }
    }
}

/// Returns the unpacker if images are unpacked before their records.
pub(super) fn unpacks_before_records<'a>(job: &Job<'a>) -> Option<&'a Unpacker> {
    match &job.intent.unpack {
        Some((unpacker, UnpackWhen::BeforeRecord)) => Some(unpacker),
        Some((_, UnpackWhen::AfterRecords)) | None => None,
    }
}

/// Unpacks an image whose blobs are in place, under the import's lease.
pub(super) async fn unpack(
    unpacker: &Unpacker,
    job: &Job<'_>,
    image: &ImagePlan,
    lease: &Lease,
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
        .unpack(job.client, lease.id(), target, blobs, &stop)
        .await
}

impl<'a> Run<'a> {
    /// Unpacks the images that have records and are not unpacked yet. A failure is reported and
    /// does not remove records.
    pub(super) async fn unpack_recorded(&mut self) -> Result<(), Error> {
        let Some((unpacker, _)) = &self.job.intent.unpack else {
            return Ok(());
        };
        for image in self.job.plan.images.iter().filter(|image| image.unpack) {
            if self.is_recorded(image) && !self.is_unpacked(image) {
                let unpacked = self.unpack_one(unpacker, image).await?;
                self.result.unpacked.push((image.index, unpacked));
            }
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

    async fn unpack_one(
        &mut self,
        unpacker: &Unpacker,
        image: &ImagePlan,
    ) -> Result<Result<Unpacked, String>, Error> {
        for _ in 0..LEASE_ROUNDS {
            let unpacked = match self.lease().await {
                Ok(lease) => unpack(unpacker, self.job, image, &lease)
                    .await
                    .map_err(Fault::from),
                Err(fault) => Err(fault),
            };
            match unpacked {
                Ok(unpacked) => return Ok(Ok(unpacked)),
                Err(Fault::Image(failure)) => return Ok(Err(failure.reason)),
                Err(Fault::Stop(error)) => return Err(error),
                Err(Fault::LeaseLost) => self.forget_lease(),
            }
        }
        Err(Error::LeaseKeepsVanishing)
    }
}
