//! The flow of an import, from a bundle and a containerd to what became of every image.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use bundle::{BlobRef, Bundle};
use containerd::Client;
use oci_spec::image::Digest;
use tokio::task::JoinError;

use crate::Error;
use crate::ingest::{Ingested, Job, Observer, carry_out, foreseen, not_begun};
use crate::plan::{Intent, Plan, plan};
use crate::result::BundleResult;
use crate::select::{Policy, Selection, Taken, Verdict, select, takes_sha512};
use crate::space::Forecast;
use crate::survey::{Census, Survey, digests_of, forget_lost, names_of};

/// What an import did, as values.
#[derive(Debug)]
pub struct Imported {
    /// What became of the bundle.
    pub result: BundleResult,
    /// What was selected, in the order of the bundle.
    pub selection: Selection,
    /// The steps.
    pub plan: Plan,
    /// Why the run stopped before its end.
    pub stopped: Option<Error>,
}

/// Imports a bundle, or plans to.
///
/// `dry_run` stops before the first write. So does an import that would not fit on containerd's
/// disk, where that can be known (see [`Space`](crate::Space)): it is [`Imported::stopped`] with
/// [`Error::NoSpace`], and one that would make more records than [`Intent::most_records`] with
/// [`Error::TooManyRecords`]. What is decided in between takes time in the number of images, names
/// and blobs, and happens on a thread of its own. The survey is the only thing that can fail as a
/// whole; what goes wrong afterwards is in the report. Safe to cancel at any time (see
/// [`carry_out`]).
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
}

/// Decides which images are taken. Of a delta, those for which it lacks its base are not, and that
/// is an error that stops none of the others.
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

/// Asks containerd, and its disk where that can be seen, for what there is of these images.
async fn look_around(client: &Client, selection: &Selection, intent: &Intent) -> Result<Survey, Error> {
    let names = names_of(selection.taken());
    let survey = Survey::of(client, &names, &digests_of(selection.taken())).await?;
    let survey = survey.checked(client, intent.space.store.as_deref()).await?;
    match &intent.unpack {
        Some((unpacker, _)) => Ok(survey.with_snapshots(client, unpacker.snapshotter()).await?),
        None => Ok(survey),
    }
}

/// A plan, and what it follows from.
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

/// What the plan means for containerd's disk, where anything is to be sent and that disk can be
/// seen.
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

/// Makes containerd forget the blobs that it lists and has not got, and says how much is to come.
async fn begin(job: &Job<'_>, survey: &Survey) -> Result<(), Error> {
    if let Some(store) = &job.intent.space.store {
        forget_lost(job.client, &survey.lost, store).await?;
    }
    job.observer.planned(job.plan.bytes_to_send());
    job.observer.images(job.plan.images.len());
    Ok(())
}

/// Holds what was selected against what was carried out.
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

/// Whether the bundle asks for more records than it may, or would make more of them in the
/// namespace than there may be.
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

/// Whether there would be more records in the namespace than there may be. A bundle that adds none
/// is not kept from looking after those that are there.
///
/// The bound keeps the list of records from growing too long by our doing. Where others alone have
/// made more than that, there is nothing left to keep, and our own are held against the bound.
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

/// Of the blobs that a delta relies on, those that containerd has. A bundle that is no delta costs
/// no request.
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
    // What other platforms would need is not missed here.
    let named: HashSet<&Digest> = problems.filter_map(|problem| problem.blob.as_ref()).collect();
    let is_missed = |blob: &&BlobRef| !elsewhere.contains(&blob.digest) && named.contains(&blob.digest);
    let missing: Vec<BlobRef> = reliance.blobs.iter().filter(is_missed).cloned().collect();
    (!missing.is_empty()).then(|| Error::BaseMissing {
        path: bundle.path().to_owned(),
        base: basics::foreign::shown(&reliance.base),
        missing,
    })
}
