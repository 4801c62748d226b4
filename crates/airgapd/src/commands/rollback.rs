//! `airgapd rollback`: gives the names back to a former release that the node still has.

use std::collections::HashMap;
use std::ffi::OsString;
use std::time::{Duration, Instant};

use basics::{Foreign, chain};
use bundle::Limits;
use node::control::{self, Unanswered, Want};
use node::place::Place;
use node::rollback;
use node::runtime::Containerd;
use node::settings::Settings;
use node::status::{ReleaseStatus, Status};
use node::verdict::Health;
use oci_spec::image::Digest;

use super::{Call, Exit, Refusal, only_root, wait};
use crate::cli::{RollbackArgs, WaitArgs};

/// The pause between two requests for the status.
const PAUSE: Duration = Duration::from_millis(200);

/// Moves the release to the end of the order of arrival, and waits until it is in place. The exit
/// status is that of `airgapd wait --release`, and 1 if the node does not have the whole release.
pub(super) async fn run(args: &RollbackArgs, call: &Call) -> Result<Exit, Refusal> {
    let started = Instant::now();
    let node = call.node()?;
    call.allowed("rollback", Exit::Unreachable, &[&node.socket])?;
    let status = settled(&call.settings, args).await?;
    let runtime = call.connect(&node).await?;
    let release = kept(&status, &args.release)?;
    if !release.in_place {
        let names = release.bundles.iter();
        let files: Vec<OsString> = names.map(|name| OsString::from(name.raw())).collect();
        check(&node, &runtime, &args.release, &files, &call.settings.limits).await?;
        renew(node, &args.release, files, &call.settings.limits).await?;
    }
    let until = WaitArgs {
        releases: vec![args.release.clone()],
        timeout: args.timeout.saturating_sub(started.elapsed()),
        ..WaitArgs::default()
    };
    wait::run(&until, call).await
}

/// Returns the status as soon as the node has the whole release, or has no more work. The daemon
/// may have just started, and compares its bundles with containerd.
async fn settled(settings: &Settings, args: &RollbackArgs) -> Result<Status, Refusal> {
    let started = Instant::now();
    loop {
        let reply = control::ask(&settings.runtime_dir, Want::Listed, None).await;
        let status = reply.map_err(|unanswered| of_unanswered(&unanswered))?.status;
        let mut releases = status.releases.iter();
        let is_whole =
            releases.any(|release| release.name == args.release && (release.in_place || release.kept));
        let is_working = status
            .verdict
            .reasons
            .iter()
            .any(|reason| reason.health == Health::Working);
        let left = args.timeout.saturating_sub(started.elapsed());
        if is_whole || !is_working || left.is_zero() {
            return Ok(status);
        }
        tokio::time::sleep(PAUSE.min(left)).await;
    }
}

fn of_unanswered(unanswered: &Unanswered) -> Refusal {
    let text = match unanswered {
        Unanswered::Denied(socket) => only_root(socket, "rollback"),
        Unanswered::NoDaemon(_) | Unanswered::NoAnswer { .. } => unanswered.to_string(),
    };
    Refusal::new(Exit::NoDaemon, text)
}

/// Returns a release that the node has whole.
fn kept<'s>(status: &'s Status, name: &str) -> Result<&'s ReleaseStatus, Refusal> {
    let refused = |text: String| Refusal::new(Exit::Failed, text);
    let release = status.releases.iter().find(|release| release.name == name);
    let release = release.ok_or_else(|| {
        refused(format!(
            "no bundle and no receipt of this node names the release {name}: `airgapd status` lists the releases. Bring its bundles"
        ))
    })?;
    match (release.in_place || release.kept, &release.problem) {
        (true, _) => Ok(release),
        (false, problem) => Err(refused(format!(
            "this node does not have the whole release {name}: {}. Bring its bundles",
            problem.as_deref().unwrap_or("its state is not known")
        ))),
    }
}

/// Refuses a roll back if containerd has lost a blob of a receipt. The release would come back in
/// part.
async fn check(
    node: &Place,
    runtime: &Containerd,
    release: &str,
    files: &[OsString],
    limits: &Limits,
) -> Result<(), Refusal> {
    let (place, names, limits) = (node.clone(), files.to_owned(), limits.clone());
    let reading = tokio::task::spawn_blocking(move || {
        let mut needed: HashMap<Digest, OsString> = HashMap::new();
        for name in names {
            let blobs = rollback::needed(&place, &name, &limits);
            let blobs = blobs.map_err(|error| not_moved(&name, &chain(&error)))?;
            needed.extend(blobs.into_iter().map(|blob| (blob, name.clone())));
        }
        Ok(needed)
    });
    let needed: Result<_, Refusal> = reading
        .await
        .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    let mut lost = needed?;
    let there = runtime.client.blobs_of(&lost.keys().cloned().collect()).await?;
    for blob in there {
        lost.remove(&blob.digest);
    }
    match lost.iter().min_by(|(a, _), (b, _)| a.as_ref().cmp(b.as_ref())) {
        None => Ok(()),
        Some((blob, receipt)) => Err(Refusal::new(
            Exit::Failed,
            format!(
                "containerd has lost {} of the release {release}, first blob {blob} of {}. No name has moved. Bring the bundle again",
                basics::counted(lost.len(), "blob"),
                Foreign::file_name(receipt)
            ),
        )),
    }
}

/// Gives all files of the release a new time.
async fn renew(node: Place, release: &str, files: Vec<OsString>, limits: &Limits) -> Result<(), Refusal> {
    let limits = limits.clone();
    let renewing = tokio::task::spawn_blocking(move || {
        let now = rollback::time(&node, &limits);
        files.into_iter().try_for_each(|name| {
            rollback::renew(&node, &name, now, &limits).map_err(|error| (name, chain(&error)))
        })
    });
    let renewed = renewing
        .await
        .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    renewed.map_err(|(name, why)| {
        let rest =
            format!("the roll back to {release} is incomplete: mend the cause, then repeat the command");
        not_moved(&name, &why).and(Refusal::new(Exit::Failed, rest))
    })
}

fn not_moved(name: &OsString, why: &str) -> Refusal {
    Refusal::new(Exit::Failed, format!("{}: {why}", Foreign::file_name(name)))
}
