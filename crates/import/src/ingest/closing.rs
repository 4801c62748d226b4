//! The work on an image after its leaves were sent: existing leaves are held, then come manifests
//! and indexes, and then records.
//!
//! This module does not change the run, so that several images can be closed at a time. Each step
//! waits for containerd's database, which takes one write after the other and should never wait for
//! the import.

use std::sync::Arc;

use containerd::{Creation, ImageUpdate, NewImage};
use oci_spec::image::Descriptor;

use super::assurance::Assurance;
use super::blobs::{BlobTask, Moved, Turns};
use super::unpacking::{unpack, unpacks_before_records};
use super::{Fault, Job, RECORD_ROUNDS, RecordOutcome, check_bundle, unwritten};
use crate::labels::{LabelChanges, tell_of_expiry};
use crate::lease::Lease;
use crate::plan::{BlobStep, ImagePlan, RecordAction, RecordStep, plan_record};
use crate::select::NamedTarget;
use crate::unpack::{Room, Unpacked};

/// An image whose leaves are sent.
pub(super) struct Closing<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) image: &'a ImagePlan,
    /// The image's blobs that are not secured yet, children before parents.
    pub(super) blobs: Vec<&'a BlobStep>,
    /// The lease that has held everything from the beginning.
    pub(super) lease: Lease,
    pub(super) assurance: Arc<Assurance>,
    pub(super) turns: Arc<Turns>,
}

/// A finished image.
pub(super) struct Closed<'a> {
    pub(super) image: &'a ImagePlan,
    /// The results of the blobs that were tried. The last one may have failed.
    pub(super) blobs: Vec<Moved>,
    /// The result of unpacking the image before its records.
    pub(super) unpacked: Option<Unpacked>,
    /// The results of the image's records, or the reason why there are none.
    pub(super) records: Result<Vec<(RecordStep, RecordOutcome)>, Fault>,
}

impl<'a> Closing<'a> {
    /// Does the remaining work. Safe to cancel: a record is written whole or not at all.
    pub(super) async fn close(self) -> Closed<'a> {
        let mut blobs: Vec<Moved> = Vec::new();
        for step in &self.blobs {
            blobs.push(
                BlobTask::new(self.job, &self.lease, step, &self.turns)
                    .run()
                    .await,
            );
            if blobs.last().is_some_and(|moved| moved.result.is_err()) {
                break;
            }
        }
        let mut unpacked = None;
        let records = match blobs.last().is_some_and(|moved| moved.result.is_err()) {
            // The blob's result has the reason.
            true => Ok(Vec::new()),
            false => self.records(&mut unpacked).await,
        };
        Closed {
            image: self.image,
            blobs,
            unpacked,
            records,
        }
    }

    async fn records(
        &self,
        unpacked: &mut Option<Unpacked>,
    ) -> Result<Vec<(RecordStep, RecordOutcome)>, Fault> {
        check_bundle(self.job)?;
        if let Some(unpacker) = unpacks_before_records(self.job).filter(|_| self.image.unpack) {
            *unpacked = Some(unpack(unpacker, self.job, self.image, &self.lease, Room::Any).await?);
        }
        if !self.assurance.make_sure(self.job.client, &self.lease).await? {
            // Blobs of the lease may have been collected.
            return Err(Fault::LeaseLost);
        }
        let mut outcomes = Vec::new();
        for step in &self.image.records {
            outcomes.push(self.record(step).await?);
        }
        Ok(outcomes)
    }

    /// Writes one record.
    ///
    /// The plan may be an hour old by now. So the call looks up existing records again, and does
    /// not overlook a later change by another program.
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
        let reason = "another program keeps changing the record".to_owned();
        Ok((step, RecordOutcome::Rejected(reason)))
    }

    async fn planned_again(&self, step: &RecordStep) -> Result<RecordStep, Fault> {
        let there = self.job.client.image(&step.name).await?;
        let wanted = NamedTarget {
            name: step.name.clone(),
            target: Arc::clone(&step.target),
        };
        Ok(plan_record(&wanted, there.as_ref(), self.job.intent))
    }

    /// Writes a record as planned. Returns `None` if the record differs from the plan's assumption.
    async fn write_record(&self, step: &RecordStep) -> Result<Option<RecordOutcome>, containerd::Error> {
        match &step.action {
            RecordAction::Create(labels) => {
                let image = NewImage {
                    name: step.name.clone(),
                    target: Descriptor::clone(&step.target),
                    labels: labels.clone(),
                };
                let creation = self.job.client.create_image(&image).await?;
                Ok((creation == Creation::Created).then_some(RecordOutcome::Created))
            }
            RecordAction::Retarget { labels, .. } => {
                let updated = self
                    .update_record(step, Some(Descriptor::clone(&step.target)), labels)
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

    /// Changes a record. Returns true if the record exists and points to the planned target.
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
        if updated.is_some() {
            tell_of_expiry(&step.name, labels);
        }
        Ok(updated.is_some_and(|record| record.target.digest() == step.target.digest()))
    }
}
