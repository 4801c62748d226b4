//! `airgapd release`: releases airgapd's labels and pins.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use containerd::ImageRecord;
use import::labels::BUNDLE_PREFIX;
use import::release::{Release, Released, release};
use serde::Serialize;

use super::{Call, Exit, Refusal};
use crate::cli::ReleaseArgs;
use crate::output::{self, Page};
use node::control::{self, Want};
use node::runtime::Containerd;

/// The document of `airgapd release -o json`.
#[derive(Debug, Serialize)]
struct Document<'a> {
    dry_run: bool,
    released: &'a [Released],
    /// Reason why no record was tried.
    error: Option<String>,
}

/// Releases labels and pins. The exit status is 1 if the given names have neither.
pub(super) async fn run(args: &ReleaseArgs, call: &Call) -> Result<Exit, Refusal> {
    let document = |released, error| Document {
        dry_run: args.dry_run,
        released,
        error,
    };
    let node = call.node()?;
    let runtime = call.connect(&node).await;
    let runtime = runtime.map_err(|refusal| refusal.with_document(|error| document(&[], Some(error))))?;
    let what = if args.all {
        Release::All
    } else if args.vanished {
        Release::Bundles(vanished(named_bundles(&runtime).await?, &node.images_dir))
    } else {
        Release::Names(args.names.clone())
    };
    let released = release(&runtime.client, &what, args.dry_run).await?;
    if args.vanished && !args.dry_run {
        until_accounted_for(&call.settings.runtime_dir).await;
    }
    call.answer(&document(&released, None), || text(&released, args.dry_run))?;
    Ok(if released.is_empty() && !args.names.is_empty() {
        Exit::Failed
    } else {
        Exit::Done
    })
}

/// Longest wait until the daemon has noticed the release. Events of containerd come in bursts, and
/// a comparison follows.
const PATIENCE: Duration = Duration::from_secs(5);

/// Waits until a running daemon has noticed the release, so that a following `airgapd wait` does
/// not still see vanished bundles.
async fn until_accounted_for(runtime_dir: &Path) {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE
        && let Ok(reply) = control::ask(runtime_dir, Want::Status, None).await
        && reply.status.folder.vanished.is_some()
    {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Returns the bundles in the labels of records, by file name.
async fn named_bundles(runtime: &Containerd) -> Result<BTreeSet<String>, containerd::Error> {
    let mut bundles = BTreeSet::new();
    let look = |record: ImageRecord| {
        let labels = record.labels.into_iter();
        let of_bundles = labels.filter(|(key, _)| key.starts_with(BUNDLE_PREFIX));
        bundles.extend(of_bundles.map(|(_, file)| file));
        ControlFlow::Continue(())
    };
    runtime.client.each_image(look).await?;
    Ok(bundles)
}

/// Returns the bundles that the images folder lacks. An entry that cannot be read counts as
/// present.
fn vanished(bundles: BTreeSet<String>, images_dir: &Path) -> Vec<String> {
    let is_gone = |file: &String| {
        let found = images_dir.join(file).symlink_metadata();
        found.is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory))
    };
    bundles.into_iter().filter(is_gone).collect()
}

fn text(released: &[Released], dry_run: bool) -> Page {
    let mut text = Page::new();
    for record in released {
        let pin = if record.unpinned { "label and pin" } else { "label" };
        output::line!(
            text,
            "{}  {}: {}",
            if dry_run { "would release" } else { "released" },
            record.name,
            pin
        );
    }
    if released.is_empty() {
        output::line!(text, "there is nothing to release");
    }
    text
}
