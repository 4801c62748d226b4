//! Where a bundle and a containerd meet.
//!
//! One direction: [`select`] (pure) decides which images of a catalog this node takes, [`Survey`] reads what containerd
//! has, [`plan`] (pure) decides every step, [`carry_out`] takes them and decides nothing, [`BundleReport`] says how it
//! went. The daemon, `airgapd import` and its dry run all go this way.
//!
//! This crate never reads an archive's bytes for itself and never sees a gRPC type.

mod content;
mod ingest;
pub mod labels;
mod lease;
mod names;
mod pace;
mod pattern;
mod plan;
mod release;
mod report;
mod select;
mod space;
mod survey;
mod unpack;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use basics::chain;
use bundle::{BlobRef, Bundle};
use containerd::{Client, Recovery, Version, is_disk_failure};
use oci_spec::image::Digest;
use tokio::task::JoinError;

pub use content::{CONTAINERD, ContentStore};
use ingest::not_begun;
pub use ingest::{Failure, ImageResult, Ingested, Job, Observer, RecordOutcome, Silent, carry_out};
pub use labels::{Source, bundle_id, short_hash};
pub use lease::{Lease, PREFIX as LEASE_PREFIX};
pub use names::{Alias, DigestReferences, InvalidReference, Naming, Reference};
pub use pace::{Gentleness, Pace};
pub use pattern::{InvalidPattern, Pattern};
pub use plan::{
    BlobAction, BlobStep, ImagePlan, Intent, MOST_RECORDS, OnConflict, Plan, RecordAction, RecordStep,
    UnpackWhen, missing_gc_labels, plan, plan_record,
};
pub use release::{Release, Released, release, release_of};
pub use report::{
    BlobCounts, BundleReport, Cause, ImageOutcome, ImageReport, Outcome, UnpackFailure, UnpackReport,
    in_short,
};
pub use select::{
    Child, ChildKind, Choice, Closure, Judgement, Member, NamedTarget, Policy, Selection, Skip, Taken,
    Verdict, Wanted, hidden_image, images_for_plugins, judge, platform_text, problems, problems_in, select,
};
pub use space::{Demand, Disk, Forecast, MinFree, Shortage, Space};
use survey::forget_lost;
pub use survey::{Census, Survey, any_without_file, digests_of, lost, names_of};
pub use unpack::{Ahead, AheadObserver, Unpack, UnpackError, Unpacked, Unpacker, as_unpacked, unpack_ahead};

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
    /// The namespace would have more records than it may (see [`Census::has_no_room`]). Nothing was written.
    #[error("{}: that is more than {most} (limits.records)", counted_text(*.census, *.new, *.most))]
    TooManyRecords {
        /// The records of the namespace.
        census: Census,
        /// Those that the bundle would add.
        new: usize,
        /// How many there may be.
        most: usize,
    },
    /// The bundle by itself asks for more records than the namespace may have. Nothing was written.
    #[error(
        "the bundle asks for {asked} image records, those of digests and aliases included: that is more than {most} \
         (limits.records)"
    )]
    TooManyNames {
        /// The records that it asks for.
        asked: usize,
        /// How many there may be.
        most: usize,
    },
    /// The bundle is a delta, and what it is a delta on is not here. Its images that need none of that are in place.
    #[error(
        "{} is a delta on {base}, which is not all here: import {base} first. {}", path.display(), missing_text(.missing)
    )]
    BaseMissing {
        /// The bundle.
        path: PathBuf,
        /// What the base is called, fit to print.
        base: String,
        /// The blobs that are not there.
        missing: Vec<BlobRef>,
    },
    /// An image could not be unpacked for a reason that is not its own.
    #[error(transparent)]
    Unpack(UnpackError),
    /// A task of ours failed.
    #[error("a task of the import failed")]
    Task(#[source] tokio::task::JoinError),
}

impl From<UnpackError> for Error {
    fn from(error: UnpackError) -> Error {
        match error {
            UnpackError::Containerd(error) => Error::Containerd(error),
            error => Error::Unpack(error),
        }
    }
}

impl Error {
    /// Whether trying again later, with the same file, may go better.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Containerd(error) => matches!(
                error.recovery(),
                Recovery::Transient | Recovery::Space | Recovery::Disk | Recovery::LeaseLost
            ),
            Error::Changed { .. }
            | Error::LeaseKeepsVanishing
            | Error::NoSpace(_)
            | Error::TooManyRecords { .. }
            | Error::BaseMissing { .. }
            | Error::Unpack(_) => true,
            Error::TooManyNames { .. } => false,
            Error::Read { .. } | Error::Bundle(_) | Error::Task(_) => self.is_disk(),
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

    /// Whether a disk fails: containerd's, or the one that the bundle is on.
    #[must_use]
    pub fn is_disk(&self) -> bool {
        match self {
            Error::Containerd(error) => error.recovery() == Recovery::Disk,
            Error::Read { source, .. } | Error::Unpack(UnpackError::Sync { source, .. }) => {
                is_disk_failure(source)
            }
            Error::Bundle(error) => {
                matches!(&error.fault, bundle::Fault::Io { source, .. } if is_disk_failure(source))
            }
            _ => false,
        }
    }
}

/// The records that are held against the bound.
fn counted_text(census: Census, new: usize, most: usize) -> String {
    let Census { ours, others } = census;
    match others > most {
        false => format!(
            "the namespace has {} image records, those of others included, and the bundle adds {new}",
            ours + others
        ),
        true => format!(
            "of others the namespace has more than {most} image records already, so that ours alone count: they are {ours}, and \
             the bundle adds {new}"
        ),
    }
}

/// Names the first few blobs that are missing, and counts them all.
fn missing_text(missing: &[BlobRef]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<_> = missing
        .iter()
        .take(SHOWN)
        .map(|blob| format!("{} ({} bytes)", blob.digest, blob.size))
        .collect();
    let more = match missing.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("Missing: {}{more}", shown.join(", "))
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

/// Whether blobs may be named by their sha512. A containerd without a number is taken for a new one.
#[must_use]
pub fn takes_sha512(version: &Version) -> bool {
    !version.is_known() || (version.major, version.minor) >= SHA512_SINCE
}

/// Imports a bundle, or plans to.
///
/// `dry_run` stops before the first write. So does an import that would not fit on containerd's disk, where that can be
/// known (see [`Space`]): it is [`Imported::stopped`] with [`Error::NoSpace`], and one that would make more records than
/// [`Intent::most_records`] with [`Error::TooManyRecords`]. What is decided in between takes time in the number of images,
/// names and blobs, and happens on a thread of its own. The survey is the only thing that can fail as a whole; what goes wrong
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
    let elsewhere = relied_on_and_there(client, bundle).await?;
    let (mut selection, missing) = aside({
        let (bundle, policy) = (Arc::clone(bundle), policy.clone());
        move || {
            let selection = select(&bundle.catalog().completed_by(&elsewhere), &policy);
            let missing = missing_base(&bundle, &selection, &elsewhere);
            (selection, missing)
        }
    })
    .await?;
    if selection.needs_sha512() {
        let version = client.version().await?;
        if !takes_sha512(&version) {
            selection.refuse_sha512(&version.text);
        }
    }
    let store = intent.space.store.as_deref();
    let names = names_of(selection.taken());
    let survey = Survey::of(client, &names, &digests_of(selection.taken())).await?;
    let mut survey = survey.checked(client, store).await?;
    if let Some((unpacker, _)) = &intent.unpack {
        survey = survey.with_snapshots(client, unpacker.snapshotter()).await?;
    }
    let (selection, survey, plan) = aside({
        let intent = intent.clone();
        move || {
            let taken: Vec<&Taken> = selection.taken().collect();
            let plan = plan(&taken, &survey, &intent);
            (selection, survey, plan)
        }
    })
    .await?;
    let forecast = match plan.is_done() {
        true => None,
        false => intent.space.forecast(client, &plan.blobs_to_send()).await?,
    };
    let shortage = forecast.as_ref().and_then(Forecast::shortage);
    let obstacle = shortage.map(|shortage| Error::NoSpace(Box::new(shortage)));
    let obstacle = match too_many_names(&selection, policy) {
        Some(error) => Some(error),
        None => too_many(client, &plan, &survey, intent).await?.or(obstacle),
    };
    if dry_run && obstacle.is_none() {
        let mut report = BundleReport::of_plan(bundle, &selection, &plan, started.elapsed());
        report.error = missing.as_ref().map(|error| chain(error)).or(report.error);
        return Ok(Imported {
            report: report.with_forecast(forecast),
            selection,
            plan,
            stopped: missing,
        });
    }
    if let (Some(store), None) = (store, &obstacle) {
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
    let mut ingested = match obstacle {
        Some(obstacle) => not_begun(&job, obstacle),
        None => {
            observer.planned(plan.bytes_to_send());
            observer.images(plan.images.len());
            carry_out(&job).await
        }
    };
    ingested.stopped = ingested.stopped.or(missing);
    let (report, selection, stopped) = aside({
        let bundle = Arc::clone(bundle);
        move || {
            let report = BundleReport::of(&bundle, &selection, &ingested, started.elapsed());
            (report, selection, ingested.stopped)
        }
    })
    .await?;
    Ok(Imported {
        report: report.with_forecast(forecast),
        selection,
        plan,
        stopped,
    })
}

/// Decides something on a thread where it may take its time.
async fn aside<T: Send + 'static>(decide: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(decide)
        .await
        .map_err(JoinError::try_into_panic)
    {
        Ok(decided) => Ok(decided),
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(error)) => Err(Error::Task(error)),
    }
}

fn too_many_names(selection: &Selection, policy: &Policy) -> Option<Error> {
    let (asked, most) = (selection.asked_records, policy.most_records);
    (asked > most).then_some(Error::TooManyNames { asked, most })
}

/// Whether there would be more records in the namespace than there may be. A bundle that adds none is not kept from
/// looking after those that are there.
///
/// The bound keeps the list of records from growing too long by our doing. Where others alone have made more than that,
/// there is nothing left to keep, and our own are held against the bound.
async fn too_many(
    client: &Client,
    plan: &Plan,
    survey: &Survey,
    intent: &Intent,
) -> Result<Option<Error>, Error> {
    let (new, most) = (plan.new_records(), intent.most_records);
    let census = match survey.census {
        Some(census) => census,
        None if new == 0 => return Ok(None),
        None => Census::take(client, most).await?,
    };
    let obstacle = Error::TooManyRecords { census, new, most };
    Ok(census.has_no_room(new, most).then_some(obstacle))
}

/// Of the blobs that a delta relies on, those that containerd has. A bundle that is no delta costs no request.
async fn relied_on_and_there(client: &Client, bundle: &Bundle) -> Result<HashSet<Digest>, Error> {
    let Some(reliance) = &bundle.catalog().relies_on else {
        return Ok(HashSet::new());
    };
    let wanted: HashSet<Digest> = reliance.blobs.iter().map(|blob| blob.digest.clone()).collect();
    let there = client.blobs_of(&wanted).await?;
    Ok(there.into_iter().map(|blob| blob.digest).collect())
}

/// What to say when images are not taken for want of a delta's base.
fn missing_base(bundle: &Bundle, selection: &Selection, elsewhere: &HashSet<Digest>) -> Option<Error> {
    let reliance = bundle.catalog().relies_on.as_ref()?;
    let problems = selection.choices.iter().flat_map(|choice| match &choice.verdict {
        Verdict::Broken(problems) => problems.as_slice(),
        Verdict::Take(_) | Verdict::Skip(_) | Verdict::Forbidden => &[],
    });
    // Each problem names its blob, as a word. What other platforms would need is nobody's problem here.
    let is_digest = |word: &&str| word.contains(':') && word.parse::<Digest>().is_ok();
    let words = problems.flat_map(|problem| problem.split(' '));
    let named: HashSet<&str> = words.filter(is_digest).collect();
    let is_missed =
        |blob: &&BlobRef| !elsewhere.contains(&blob.digest) && named.contains(blob.digest.as_ref());
    let missing: Vec<BlobRef> = reliance.blobs.iter().filter(is_missed).cloned().collect();
    (!missing.is_empty()).then(|| Error::BaseMissing {
        path: bundle.path().to_owned(),
        base: basics::foreign::shown(&reliance.base),
        missing,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_may_be_named_by_their_sha512_from_2_3_on_and_where_there_is_no_number() {
        let table = [
            ("1.7.24", false),
            ("2.2.9", false),
            ("2.3.0", true),
            ("v2.4.2-k3s1", true),
            ("", true),
        ];
        for (text, expected) in table {
            let version = Version::parse(text);
            assert_eq!(takes_sha512(&version), expected, "{text}");
        }
    }
}
