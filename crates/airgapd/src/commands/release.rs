//! `airgapd release`: takes back what is ours.

use std::io::ErrorKind;
use std::path::Path;

use containerd::ImageRecord;
use import::labels::BUNDLE_PREFIX;
use import::{Release, Released, release};
use serde::Serialize;

use super::Exit;
use crate::cli::ReleaseArgs;
use crate::config::{OutputFormat, Settings};
use crate::node::Runtime as Node;
use crate::output::{self, Page};

/// The document of `airgapd release -o json`.
#[derive(Debug, Serialize)]
struct Document<'a> {
    dry_run: bool,
    released: &'a [Released],
    /// Why nothing was even tried.
    error: Option<String>,
}

/// Takes labels and pins back. Exit status 1 when a name is known to nothing.
pub(crate) async fn run(
    args: &ReleaseArgs,
    settings: &Settings,
    node: &Node,
    format: OutputFormat,
) -> anyhow::Result<Exit> {
    let runtime = match super::connect(node, settings).await {
        Ok(runtime) => runtime,
        Err((exit, text)) => {
            tracing::error!("{text}");
            if format == OutputFormat::Json {
                output::json(&Document {
                    dry_run: args.dry_run,
                    released: &[],
                    error: Some(text),
                })?;
            }
            return Ok(exit);
        }
    };
    let what = if args.all {
        Release::All
    } else if args.vanished {
        Release::Bundles(vanished(&runtime.client.images().await?, &node.images_dir))
    } else {
        Release::Names(args.names.clone())
    };
    let released = release(&runtime.client, &what, args.dry_run).await?;
    match format {
        OutputFormat::Json => output::json(&Document {
            dry_run: args.dry_run,
            released: &released,
            error: None,
        })?,
        OutputFormat::Text => output::text(&text(&released, args.dry_run))?,
    }
    Ok(if released.is_empty() && !args.names.is_empty() {
        Exit::Failed
    } else {
        Exit::Done
    })
}

/// The bundles that records name and the images folder lacks. What cannot be looked at has not vanished.
fn vanished(records: &[ImageRecord], images_dir: &Path) -> Vec<String> {
    let labels = records.iter().flat_map(|record| &record.labels);
    let bundles = labels
        .filter(|(key, _)| key.starts_with(BUNDLE_PREFIX))
        .map(|(_, file)| file);
    let mut gone: Vec<String> = bundles
        .filter(|file| {
            let found = images_dir.join(file).symlink_metadata();
            found.is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory))
        })
        .cloned()
        .collect();
    gone.sort();
    gone.dedup();
    gone
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
        output::line!(text, "nothing of ours is there");
    }
    text
}
