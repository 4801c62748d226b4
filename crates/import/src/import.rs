//! The flow of an import, from a bundle and a containerd to the result of every image.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use bundle::{BlobRef, Bundle};
use containerd::Client;
use futures_util::future::BoxFuture;
use oci_spec::image::Digest;
use tokio::task::JoinError;

use crate::Error;
use crate::error::Degradation;
use crate::ingest::{Ingested, Job, Observer, carry_out, foreseen, not_begun};
use crate::plan::{Intent, Plan, plan};
use crate::result::BundleResult;
use crate::select::{Choice, Policy, Problem, Selection, Taken, Verdict, select, takes_sha512};
use crate::space::Forecast;
use crate::survey::{Census, Survey, digests_of, forget_lost, names_of};

/// The result of an import, as values.
#[derive(Debug)]
pub struct Imported {
    /// The result of the bundle.
    pub result: BundleResult,
    /// The selected images, in the order of the bundle.
    pub selection: Selection,
    /// The steps.
    pub plan: Plan,
    /// The error that stopped the run before its end.
    pub stopped: Option<Error>,
}

/// Imports a bundle, or plans its import.
///
/// With `dry_run`, the import stops before its first write. It also stops there in two other cases,
/// which [`Imported::stopped`] reports:
///
/// - [`Error::NoSpace`]: the import would not fit on containerd's disk, as far as the disk is
///   visible (see [`Space`](crate::Space)).
/// - [`Error::TooManyRecords`]: it would make more records than [`Intent::most_records`].
///
/// The decisions in between run on their own thread: their time grows with the number of images,
/// names and blobs. Only the survey can fail as a whole. Later failures are in the report. Safe to
/// cancel at any time (see [`carry_out`]).
///
/// The future is in a box, so that this crate compiles its code, once and for speed. Each crate
/// that awaits an `async fn` of another crate compiles that code again.
///
/// # Errors
///
/// Returns [`Error::Containerd`] if containerd could not say which content it has.
pub fn import<'a>(
    client: &'a Client,
    bundle: &'a Arc<Bundle>,
    policy: &'a Policy,
    intent: &'a Intent,
    lease_id: &'a str,
    dry_run: bool,
    observer: &'a dyn Observer,
) -> BoxFuture<'a, Result<Imported, Error>> {
    Box::pin(async move {
        let started = Instant::now();
        let (selection, missing_base) = select_images(client, bundle, policy).await?;
        let survey = look_around(client, &selection, intent).await?;
        let Decided {
            selection,
            survey,
            plan,
        } = decide(selection, survey, intent).await?;
        let forecast = foresee(client, &plan, intent).await?;
        let obstacle = match obstacle_to_records(client, &selection, policy, &plan, &survey, intent).await? {
            Some(obstacle) => Some(obstacle),
            None => no_space(forecast.as_ref()),
        };
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
            None if dry_run => foreseen(&plan),
            None => {
                begin(&job, &survey).await?;
                carry_out(&job).await
            }
        };
        ingested.stopped = ingested.stopped.or(missing_base);
        let (result, selection, stopped) = conclude(bundle, selection, ingested, started).await?;
        Ok(Imported {
            result: result.with_forecast(forecast),
            selection,
            plan,
            stopped,
        })
    })
}

/// Selects the images to import. A delta's images that lack blobs of the base are not selected. The
/// returned error reports them and does not stop the other images.
async fn select_images(
    client: &Client,
    bundle: &Arc<Bundle>,
    policy: &Policy,
) -> Result<(Selection, Option<Error>), Error> {
    let elsewhere = relied_on_and_there(client, bundle).await?;
    let (bundle, policy) = (Arc::clone(bundle), policy.clone());
    let (mut selection, missing) = aside(move || {
        let selection = select(&bundle.catalog().completed_by(&elsewhere), &policy);
        let missing = missing_base(&bundle, &selection, &elsewhere);
        (selection, missing)
    })
    .await?;
    if selection.needs_sha512() {
        let version = client.version().await?;
        if !takes_sha512(&version) {
            selection.refuse_sha512(&version.text);
        }
    }
    Ok((selection, missing))
}

/// Asks containerd which records, blobs and snapshots of these images it has. Checks blobs on the
/// disk if it is visible.
async fn look_around(client: &Client, selection: &Selection, intent: &Intent) -> Result<Survey, Error> {
    let names = names_of(selection.taken());
    let survey = Survey::of(client, &names, &digests_of(selection.taken())).await?;
    let survey = survey.checked(client, intent.space.store.as_deref()).await?;
    match &intent.unpack {
        Some((unpacker, _)) => Ok(survey.with_snapshots(client, unpacker.snapshotter()).await?),
        None => Ok(survey),
    }
}

/// A plan, with the selection and the survey behind it.
struct Decided {
    selection: Selection,
    survey: Survey,
    plan: Plan,
}

async fn decide(selection: Selection, survey: Survey, intent: &Intent) -> Result<Decided, Error> {
    let intent = intent.clone();
    aside(move || {
        let taken: Vec<&Taken> = selection.taken().collect();
        let plan = plan(&taken, &survey, &intent);
        Decided {
            selection,
            survey,
            plan,
        }
    })
    .await
}

/// Returns the plan's effect on containerd's disk. `None` if nothing will be sent, or if the disk
/// is not visible.
async fn foresee(client: &Client, plan: &Plan, intent: &Intent) -> Result<Option<Forecast>, Error> {
    match plan.is_done() {
        true => Ok(None),
        false => Ok(intent.space.forecast(client, &plan.blobs_to_send()).await?),
    }
}

fn no_space(forecast: Option<&Forecast>) -> Option<Error> {
    let shortage = forecast.and_then(Forecast::shortage)?;
    Some(Error::NoSpace(Box::new(shortage)))
}

/// Makes containerd forget lost blobs, and announces the number of bytes and images to come.
async fn begin(job: &Job<'_>, survey: &Survey) -> Result<(), Error> {
    if let Some(store) = &job.intent.space.store {
        forget_lost(job.client, &survey.lost, store).await?;
    }
    job.observer.planned(job.plan.bytes_to_send());
    job.observer.images(job.plan.images.len());
    Ok(())
}

/// Makes the result from the selection and the finished work.
async fn conclude(
    bundle: &Arc<Bundle>,
    selection: Selection,
    ingested: Ingested,
    started: Instant,
) -> Result<(BundleResult, Selection, Option<Error>), Error> {
    let bundle = Arc::clone(bundle);
    aside(move || {
        let result = BundleResult::of(&bundle, &selection, &ingested, started.elapsed());
        (result, selection, ingested.stopped)
    })
    .await
}

/// Runs a decision on a thread that it may block.
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

/// Returns an obstacle if the bundle asks for too many records, or would make too many in the
/// namespace.
async fn obstacle_to_records(
    client: &Client,
    selection: &Selection,
    policy: &Policy,
    plan: &Plan,
    survey: &Survey,
    intent: &Intent,
) -> Result<Option<Error>, Error> {
    match too_many_names(selection, policy) {
        Some(obstacle) => Ok(Some(obstacle)),
        None => too_many(client, plan, survey, intent).await,
    }
}

fn too_many_names(selection: &Selection, policy: &Policy) -> Option<Error> {
    let (asked, most) = (selection.asked_records, policy.most_records);
    (asked > most).then_some(Error::TooManyNames { asked, most })
}

/// Returns an obstacle if the namespace would have too many records. A bundle that adds none may
/// still repair its records.
///
/// The bound keeps airgapd from making the list of records too long. If the records of other
/// programs alone exceed the bound, it can no longer do that. Then only airgapd's own records
/// count.
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

/// Returns the blobs of a delta's base that containerd has. A bundle that is no delta costs no
/// request.
async fn relied_on_and_there(client: &Client, bundle: &Bundle) -> Result<HashSet<Digest>, Error> {
    let Some(reliance) = &bundle.catalog().relies_on else {
        return Ok(HashSet::new());
    };
    let wanted: HashSet<Digest> = reliance.blobs.iter().map(|blob| blob.digest.clone()).collect();
    let there = client.blobs_of(&wanted).await?;
    Ok(there.into_iter().map(|blob| blob.digest).collect())
}

/// Makes the error for images that lack blobs of a delta's base.
fn missing_base(bundle: &Bundle, selection: &Selection, elsewhere: &HashSet<Digest>) -> Option<Error> {
    let reliance = bundle.catalog().relies_on.as_ref()?;
    let problems = selection.choices.iter().flat_map(|choice| match &choice.verdict {
        Verdict::Broken(problems) => problems.as_slice(),
        Verdict::Take(_) | Verdict::Skip(_) | Verdict::Forbidden(_) => &[],
    });
    // Blobs that only other platforms need are not missing here.
    let named: HashSet<&Digest> = problems.filter_map(|problem| problem.blob.as_ref()).collect();
    let is_missed = |blob: &&BlobRef| !elsewhere.contains(&blob.digest) && named.contains(&blob.digest);
    let missing: Vec<BlobRef> = reliance.blobs.iter().filter(is_missed).cloned().collect();
    if let Some(receipt) = reliance.receipt.as_ref().filter(|_| !missing.is_empty()) {
        let lacks = |problem: &Problem| {
            let blob = problem.blob.as_ref();
            blob.is_some_and(|blob| missing.iter().any(|missing| missing.digest == *blob))
        };
        let is_hit = |choice: &&Choice| match &choice.verdict {
            Verdict::Broken(problems) => problems.iter().any(lacks),
            Verdict::Take(_) | Verdict::Skip(_) | Verdict::Forbidden(_) => false,
        };
        let images = selection.choices.iter().filter(is_hit);
        return Some(Error::Degraded(Box::new(Degradation {
            bundle: basics::foreign::shown(&receipt.bundle),
            is_nameless: receipt.is_nameless(),
            size: receipt.identity.size,
            catalog: receipt.catalog.clone(),
            images: images
                .map(|choice| basics::foreign::shown(&choice.label))
                .collect(),
            missing: missing
                .into_iter()
                .map(|blob| {
                    let base = receipt.base_of(&blob.digest).map(basics::foreign::shown);
                    (blob, base)
                })
                .collect(),
        })));
    }
    (!missing.is_empty()).then(|| Error::BaseMissing {
        path: bundle.path().to_owned(),
        base: basics::foreign::shown(&reliance.base),
        missing,
    })
}
