//! `airgapd release`: releases airgapd's labels and pins, and receipts.

mod receipts;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use basics::{Foreign, counted};
use containerd::ImageRecord;
use import::labels::BUNDLE_PREFIX;
use import::release::{Release, Released, release};
use serde::Serialize;

use self::receipts::{Held, Receipts};
use super::{Call, Exit, Refusal};
use crate::cli::ReleaseArgs;
use crate::output::{self, Page};
use node::control::{self, Want};
use node::images::folder::Folder;
use node::place::{self, Place};
use node::runtime::Containerd;

/// The document of `airgapd release -o json`.
#[derive(Debug, Serialize)]
struct Document<'a> {
    dry_run: bool,
    released: &'a [Released],
    /// The receipts that are released with them.
    receipts: &'a [Held],
    /// Reason why no record was tried.
    error: Option<String>,
}

/// Releases labels, pins and receipts. The exit status is 1 if the given names have none of them.
pub(super) async fn run(args: &ReleaseArgs, call: &Call) -> Result<Exit, Refusal> {
    let document = |released, receipts, error| Document {
        dry_run: args.dry_run,
        released,
        receipts,
        error,
    };
    let node = call.node()?;
    let runtime = call.connect(&node).await;
    let runtime =
        runtime.map_err(|refusal| refusal.with_document(|error| document(&[], &[], Some(error))))?;
    let known = named_bundles(&runtime).await?;
    let receipts = Receipts::find(&runtime.client, &node, &known).await?;
    let (mut waiting, mut unreadable) = (BTreeMap::new(), 0);
    let (what, held) = if args.all {
        (Release::All, receipts.leases())
    } else if args.vanished {
        let vanished = vanished(known, &node, &receipts);
        (waiting, unreadable) = (vanished.waiting, vanished.unreadable);
        (Release::Bundles(vanished.gone), vanished.receipts)
    } else {
        let held = receipts.meant(&args.names, &call.settings.limits).await;
        let names = meant(&args.names, &node, &known, &receipts)?;
        let held = receipts.with_those_of(held, &names);
        let names = names
            .into_iter()
            .chain(held.iter().map(|held| held.receipt.clone()));
        (Release::Names(names.collect()), held)
    };
    if !args.dry_run && !args.all {
        receipts::give_back(&runtime.client, &held).await?;
    }
    let released = release(&runtime.client, &what, args.dry_run).await?;
    if args.vanished && !args.dry_run {
        until_accounted_for(&call.settings.runtime_dir).await;
    }
    call.answer(&document(&released, &held, None), || {
        text(&released, &held, args.dry_run)
    })?;
    for (folder, bundles) in waiting {
        output::complain(&format!(
            "the pins of {} in {} stay, because the folder cannot be opened and may come back. To release them, take the folder out of `imagesDirs`",
            counted(bundles, "bundle"),
            folder.display()
        ))?;
    }
    if unreadable > 0 {
        output::complain(&format!(
            "the pins and leases of {} in {} stay, because the folder cannot be read and may have their files. To release one, give its path",
            counted(unreadable, "receipt"),
            node.receipts.display()
        ))?;
    }
    Ok(
        if released.is_empty() && held.is_empty() && !args.names.is_empty() {
            Exit::Failed
        } else {
            Exit::Done
        },
    )
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
/// its path, or by its name in any of the images folders. Its receipt may have its name alone.
fn meant(
    names: &[String],
    node: &Place,
    known: &BTreeSet<String>,
    receipts: &Receipts,
) -> Result<Vec<String>, Refusal> {
    let folders = node.images_dirs();
    let named = |name: &String| {
        let is_known = |bundle: &str| known.contains(bundle) || receipts.has_one_of(bundle);
        place::bundle_named(&path_of(name), &folders, is_known).map_err(|several| {
            Refusal::usage(format!(
                "{name} is the name of several bundles: {}. Give the path",
                several.join(", ")
            ))
        })
    };
    names.iter().map(named).collect()
}

/// Returns the whole path of a name that begins as a path relative to the working folder.
fn path_of(name: &str) -> String {
    let is_relative = ["./", "../"].iter().any(|start| name.starts_with(start));
    let whole = std::path::absolute(name).ok().filter(|_| is_relative);
    let whole = whole.and_then(|path| path.into_os_string().into_string().ok());
    whole.unwrap_or_else(|| name.to_owned())
}

/// The bundles and receipts that the node's folders lack.
#[derive(Debug, Default)]
struct Vanished {
    /// The bundles and receipts that `release --vanished` means.
    gone: Vec<String>,
    /// The receipts among them. Some may have no record any more.
    receipts: Vec<Held>,
    /// The number of bundles in each images folder that the daemon waits for.
    waiting: BTreeMap<PathBuf, usize>,
    /// The number of receipts that may be there.
    unreadable: usize,
}

/// Returns the bundles that their images folder lacks, and those of a folder that is no images
/// folder. An entry that cannot be read counts as present. A folder after the first one may be
/// absent for a while, for instance before a late mount. Its bundles then count as present.
///
/// A receipt without its file is gone, also if the whole state folder is. Its lease has no other
/// use then: a receipt of the same path has a file.
fn vanished(bundles: BTreeSet<String>, node: &Place, receipts: &Receipts) -> Vanished {
    let is_closed = |folder: &PathBuf| Folder::open_dir(folder).is_err();
    let closed: Vec<bool> = node.more_dirs.iter().map(is_closed).collect();
    let mut vanished = Vanished::default();
    for held in receipts.all() {
        match held.is_there() {
            Ok(true) => {}
            Ok(false) => {
                vanished.gone.push(held.receipt.clone());
                vanished.receipts.push(held.clone());
            }
            Err(_) => vanished.unreadable += 1,
        }
    }
    for file in bundles.into_iter().filter(|file| !receipts.has(file)) {
        let folder = place::folder_of(OsStr::new(&file), &node.more_dirs);
        if let Some(at) = folder.and_then(|at| at.checked_sub(1))
            && closed[at]
        {
            *vanished.waiting.entry(node.more_dirs[at].clone()).or_default() += 1;
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

fn text(released: &[Released], held: &[Held], dry_run: bool) -> Page {
    let mut text = Page::new();
    let verb = if dry_run { "would release" } else { "released" };
    for record in released {
        let pin = if record.unpinned { "label and pin" } else { "label" };
        output::line!(text, "{verb}  {}: {pin}", record.name);
    }
    for held in held {
        let parts = match (held.file, held.leases.is_empty()) {
            (true, true) => "file",
            (true, false) => "file and lease",
            (false, true) => continue,
            (false, false) => "lease",
        };
        output::line!(
            text,
            "{verb}  receipt {}: {parts}",
            Foreign::new(held.receipt.as_str())
        );
    }
    if released.is_empty() && held.is_empty() {
        output::line!(text, "there is nothing to release");
    }
    text
}
