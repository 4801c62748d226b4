//! `airgapd release`: releases airgapd's labels and pins.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use basics::counted;
use containerd::ImageRecord;
use import::labels::BUNDLE_PREFIX;
use import::lease;
use import::release::{Release, Released, release};
use serde::Serialize;

use super::{Call, Exit, Refusal};
use crate::cli::ReleaseArgs;
use crate::output::{self, Page};
use node::control::{self, Want};
use node::images::folder::Folder;
use node::place::{self, Place};
use node::receipts;
use node::runtime::Containerd;
use node::state::ledger;

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
    let mut waiting = BTreeMap::new();
    let what = if args.all {
        Release::All
    } else if args.vanished {
        let vanished = vanished(named_bundles(&runtime).await?, &node);
        waiting = vanished.waiting;
        Release::Bundles(vanished.gone)
    } else {
        Release::Names(meant(&args.names, &node, &runtime).await?)
    };
    let given_back = give_receipts_back(&what, &node, &runtime, args.dry_run).await?;
    let released = release(&runtime.client, &what, args.dry_run).await?;
    if args.vanished && !args.dry_run {
        until_accounted_for(&call.settings.runtime_dir).await;
    }
    call.answer(&document(&released, None), || text(&released, args.dry_run))?;
    for (folder, bundles) in waiting {
        output::complain(&format!(
            "the pins of {} in {} stay, because the folder cannot be opened and may come back. To release them, take the folder out of `imagesDirs`",
            counted(bundles, "bundle"),
            folder.display()
        ))?;
    }
    Ok(
        if released.is_empty() && given_back == 0 && !args.names.is_empty() {
            Exit::Failed
        } else {
            Exit::Done
        },
    )
}

/// Removes the receipts among the released names: the file first, so that no daemon restores what
/// is released, and then the lease. Returns their number.
async fn give_receipts_back(
    what: &Release,
    node: &Place,
    runtime: &Containerd,
    dry_run: bool,
) -> anyhow::Result<usize> {
    let Release::Names(names) = what else {
        return Ok(0);
    };
    let receipts: Vec<&String> = names
        .iter()
        .filter(|name| node.is_receipt(OsStr::new(name)))
        .collect();
    for name in receipts.iter().filter(|_| !dry_run) {
        match std::fs::remove_file(name) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).context((*name).clone()),
            Ok(()) | Err(_) => {}
        }
        for lease in runtime
            .client
            .leases_beginning(&lease::of_receipts_at(name))
            .await?
        {
            runtime.client.delete_lease(&lease.id, false).await?;
        }
    }
    Ok(receipts.len())
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
        && reply.status.folders().any(|folder| folder.vanished.is_some())
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

/// Returns the names of records and bundles that the command line means. A bundle may be given by
/// its path, or by its name in any of the images folders.
async fn meant(names: &[String], node: &Place, runtime: &Containerd) -> Result<Vec<String>, Refusal> {
    let known = named_bundles(runtime).await?;
    let folders = node.images_dirs();
    let named = |name: &String| {
        place::bundle_named(name, &folders, |bundle| known.contains(bundle)).map_err(|several| {
            Refusal::usage(format!(
                "{name} is the name of several bundles: {}. Give the path",
                several.join(", ")
            ))
        })
    };
    let mut meant = Vec::new();
    for name in names {
        meant.push(named(name)?);
        // A bundle that is gone has its name in its receipts only.
        let receipts = receipts::paths_of(&node.receipts, name).into_iter();
        meant.extend(receipts.map(|path| ledger::label_name(path.as_os_str())));
        let label = ledger::label_name(node.receipts.join(name).as_os_str());
        meant.extend((!name.contains('/') && known.contains(&label)).then_some(label));
    }
    Ok(meant)
}

/// The bundles that the node's folders lack.
#[derive(Debug, Default)]
struct Vanished {
    /// The bundles that `release --vanished` means.
    gone: Vec<String>,
    /// The number of bundles in each images folder that the daemon waits for.
    waiting: BTreeMap<PathBuf, usize>,
}

/// Returns the bundles that their images folder lacks, and those of a folder that is no images
/// folder. An entry that cannot be read counts as present. A folder after the first one may be
/// absent for a while, for instance before a late mount. Its bundles then count as present.
fn vanished(bundles: BTreeSet<String>, node: &Place) -> Vanished {
    let is_closed = |folder: &PathBuf| Folder::open_dir(folder).is_err();
    let later = node.later_dirs();
    let closed: Vec<bool> = later.iter().map(is_closed).collect();
    let mut vanished = Vanished::default();
    for file in bundles {
        let folder = place::folder_of(OsStr::new(&file), &later);
        if let Some(at) = folder.and_then(|at| at.checked_sub(1))
            && closed[at]
        {
            *vanished.waiting.entry(later[at].clone()).or_default() += 1;
            continue;
        }
        let found = node.images_dir.join(&file).symlink_metadata();
        let is_absent =
            found.is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory));
        if is_absent || folder.is_none() {
            vanished.gone.push(file);
        }
    }
    vanished
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
