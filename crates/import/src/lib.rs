//! Where a bundle and a containerd meet.
//!
//! One direction: [`select`] (pure) decides which images of a catalog this node takes, [`Survey`] reads what containerd
//! has, [`plan`] (pure) decides every step, [`carry_out`] takes them and decides nothing, [`BundleReport`] says how it
//! went. The daemon, `airgapd import` and its dry run all go this way.
//!
//! This crate never reads an archive's bytes for itself and never sees a gRPC type.

mod ingest;
pub mod labels;
mod lease;
mod names;
mod pattern;
mod plan;
mod release;
mod report;
mod select;
mod space;
mod survey;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use bundle::Bundle;
use containerd::{Client, Recovery};

use ingest::not_begun;
pub use ingest::{Failure, ImageResult, Ingested, Job, Observer, RecordOutcome, Silent, carry_out, chain};
pub use labels::{Source, bundle_id, short_hash};
pub use lease::{Lease, PREFIX as LEASE_PREFIX};
pub use names::{Alias, DigestReferences, InvalidReference, Naming, Reference, printable};
pub use pattern::{InvalidPattern, Pattern};
pub use plan::{
    BlobAction, BlobStep, ImagePlan, Intent, OnConflict, Plan, RecordAction, RecordStep, missing_gc_labels,
    plan, plan_record,
};
pub use release::{Release, Released, release, release_plan};
pub use report::{BlobCounts, BundleReport, Cause, ImageOutcome, ImageReport, Outcome};
pub use select::{
    Child, ChildKind, Choice, Closure, Judgement, Member, NamedTarget, Policy, Selection, Skip, Taken,
    Verdict, Wanted, judge, platform_text, problems, select,
};
pub use space::{Demand, Disk, Forecast, MinFree, Shortage, Space, bytes};
use survey::forget_lost;
pub use survey::{Survey, any_without_file, digests_of};

/// Why an import stopped before its end. What is wrong with a single image is in its report instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// containerd reported something that no other image would fare better with.
    #[error(transparent)]
    Containerd(#[from] containerd::Error),
    /// The bundle was written to while it was read. Nothing wrong can have been recorded: blobs are named by digest.
    #[error("{} changed while it was imported; it is imported again when it is still", path.display())]
    Changed {
        /// The bundle.
        path: PathBuf,
    },
    /// The bundle could not be looked at again.
    #[error("reading {}", path.display())]
    Read {
        /// The bundle.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The bundle cannot be read on.
    #[error(transparent)]
    Bundle(bundle::Error),
    /// The lease was deleted again and again while the import ran.
    #[error("the lease of this import is deleted by somebody else again and again")]
    LeaseKeepsVanishing,
    /// What is missing would not fit on containerd's disk, or would leave less than is to stay free. Nothing was sent.
    #[error(transparent)]
    NoSpace(Box<Shortage>),
    /// A task of ours failed.
    #[error("a task of the import failed")]
    Task(#[source] tokio::task::JoinError),
}

impl Error {
    /// Whether trying again later, with the same file, may go better.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Containerd(error) => matches!(
                error.recovery(),
                Recovery::Transient | Recovery::Space | Recovery::LeaseLost
            ),
            Error::Changed { .. } | Error::LeaseKeepsVanishing | Error::NoSpace(_) => true,
            Error::Read { .. } | Error::Bundle(_) | Error::Task(_) => false,
        }
    }
}

impl Error {
    /// Whether containerd's disk is, or would be, full.
    #[must_use]
    pub fn is_space(&self) -> bool {
        match self {
            Error::Containerd(error) => error.recovery() == Recovery::Space,
            Error::NoSpace(_) => true,
            _ => false,
        }
    }
}

/// What an import did: for people in the report, for the ledger in the images.
#[derive(Debug)]
pub struct Imported {
    /// What became of the bundle.
    pub report: BundleReport,
    /// What was selected, in the order of the bundle.
    pub selection: Selection,
    /// The steps.
    pub plan: Plan,
    /// Why the run stopped before its end.
    pub stopped: Option<Error>,
}

/// The first containerd whose content store has room for digests other than sha256.
const SHA512_SINCE: (u64, u64) = (2, 3);

/// Imports a bundle, or plans to.
///
/// `dry_run` stops before the first write. So does an import that would not fit on containerd's disk, where that can be
/// known (see [`Space`]): it is [`Imported::stopped`] with [`Error::NoSpace`]. The survey is the only thing that can fail as a whole; what goes wrong
/// afterwards is in the report. Safe to cancel at any time (see [`carry_out`]).
///
/// # Errors
///
/// [`Error::Containerd`] when containerd could not be asked what it has.
pub async fn import(
    client: &Client,
    bundle: &Arc<Bundle>,
    policy: &Policy,
    intent: &Intent,
    lease_id: &str,
    dry_run: bool,
    observer: &dyn Observer,
) -> Result<Imported, Error> {
    let started = Instant::now();
    let mut selection = select(bundle.catalog(), policy);
    if selection.needs_sha512() {
        let version = client.version().await?;
        if (version.major, version.minor) < SHA512_SINCE {
            selection.refuse_sha512(&version.text);
        }
    }
    let taken: Vec<&Taken> = selection.taken().collect();
    let store = intent.space.store.as_deref();
    let survey = Survey::of(client, &digests_of(taken.iter().copied())).await?;
    let survey = survey.checked(client, store).await?;
    let plan = plan(&taken, &survey, intent);
    let forecast = intent.space.forecast(client, &plan).await?;
    let shortage = forecast.as_ref().and_then(Forecast::shortage);
    if dry_run && shortage.is_none() {
        let report = BundleReport::of_plan(bundle, &selection, &plan, started.elapsed());
        return Ok(Imported {
            report: report.with_forecast(forecast),
            selection,
            plan,
            stopped: None,
        });
    }
    if let (Some(store), None) = (store, &shortage) {
        forget_lost(client, &survey.lost, store).await?;
    }
    let job = Job {
        client,
        bundle: Some(Arc::clone(bundle)),
        plan: &plan,
        intent,
        lease_id,
        observer,
    };
    let ingested = match shortage {
        Some(shortage) => not_begun(&job, shortage),
        None => carry_out(&job).await,
    };
    let report = BundleReport::of(bundle, &selection, &ingested, started.elapsed());
    Ok(Imported {
        report: report.with_forecast(forecast),
        selection,
        plan,
        stopped: ingested.stopped,
    })
}
