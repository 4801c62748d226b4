//! `airgapd bundle merge`, `split`, `release` and `diff`: bundles from bundles.
//!
//! All of them see a bundle as a list of images, each with its full names and its complete platforms.
//! They refuse an image that is complete for no platform.

mod diff;
mod release;
mod source;
mod volumes;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bundle::Compression;
use bundle::write::{Draft, FromBundles, Layout, Written};
use serde::Serialize;

use self::source::Sources;
pub(super) use self::source::blobs_of;
use super::making::{self, Made, Render, Target};
use super::{Call, Exit, Refusal};
use crate::cli::{BundleArgs, BundleVerb, DiffArgs, MergeArgs, SplitArgs};
use crate::output::{self, Page};

/// Runs a verb. An interrupted run leaves no partial file.
pub(super) async fn run(args: BundleArgs, call: &Call) -> Result<Exit, Refusal> {
    let verb = async {
        match args.verb {
            BundleVerb::Merge(args) => merge(args, call).await,
            BundleVerb::Split(args) => split(args, call).await,
            BundleVerb::Diff(args) => compare(args, call).await,
            BundleVerb::Release(args) => release::make(args, call).await,
        }
    };
    tokio::select! {
        exit = verb => exit,
        () = making::interrupted() => {
            Err(Refusal::new(Exit::Failed, "interrupted: no partial bundle is left"))
        }
    }
}

async fn merge(args: MergeArgs, call: &Call) -> Result<Exit, Refusal> {
    let started = Instant::now();
    let target = Target::of(call)?;
    let mut sources = Sources::open(&args.bundles, &call.settings).await?;
    sources.settle_names();
    let draft = sources.draft(&sources.items);
    sources.note_release(&draft);
    let layout = Layout::of(&draft)?;
    let feed = feed(&sources, &layout, &target).await?;
    let written = write(&target, &layout, making::compression(args.compress), feed).await?;
    let report = MergeReport {
        bundle: FileReport::new(&target, &layout, &draft, written),
        warnings: sources.warnings,
        duration_ms: basics::milliseconds(started.elapsed()),
    };
    target.tell(call.format, &report)?;
    Ok(Exit::Done)
}

async fn split(args: SplitArgs, call: &Call) -> Result<Exit, Refusal> {
    let started = Instant::now();
    let Some(path) = call.file.as_ref().filter(|file| file.as_os_str() != "-") else {
        return Err(Refusal::usage(
            "--output FILE is required: it names the volumes FILE-1, FILE-2 and so on",
        ));
    };
    let mut sources = Sources::open(std::slice::from_ref(&args.bundle), &call.settings).await?;
    let volumes = volumes::pack(&sources, args.max_size.0)?;
    let drafts: Vec<Draft> = volumes.iter().map(|items| sources.draft(items)).collect();
    let layouts = drafts.iter().map(Layout::of).collect::<Result<Vec<_>, _>>()?;
    let whole = sources.draft(&sources.items);
    sources.note_release(&whole);
    let all = Layout::of(&whole)?;
    let targets: Vec<Target> = (1..=layouts.len())
        .map(|number| Target::File(volumes::path(path, number, layouts.len())))
        .collect();
    let feed = feed(&sources, &all, &targets[0]).await?;
    let mut reports = Vec::new();
    for ((target, layout), draft) in targets.iter().zip(&layouts).zip(&drafts) {
        let written = write(target, layout, making::compression(args.compress), feed.clone()).await?;
        reports.push(FileReport::new(target, layout, draft, written));
    }
    let report = SplitReport {
        volumes: reports,
        warnings: sources.warnings,
        duration_ms: basics::milliseconds(started.elapsed()),
    };
    targets[0].tell(call.format, &report)?;
    Ok(Exit::Done)
}

async fn compare(args: DiffArgs, call: &Call) -> Result<Exit, Refusal> {
    let from = Sources::open(&[args.from], &call.settings).await?;
    let to = Sources::open(&[args.to], &call.settings).await?;
    let report = diff::Report::of(&from, &to);
    call.answer(&report, || report.text())?;
    Ok(Exit::Done)
}

/// Opens the blobs of the sources. A blob that needs a temporary copy gets it in the folder of the
/// new bundle.
async fn feed(sources: &Sources, layout: &Layout, target: &Target) -> anyhow::Result<FromBundles> {
    let folder = match target {
        Target::File(path) => path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .map(Path::to_owned),
        Target::Stdout => Some(std::env::temp_dir()),
    };
    let folder = folder.unwrap_or_else(|| PathBuf::from("."));
    let (bundles, blobs) = (Arc::clone(&sources.bundles), layout.blobs().to_vec());
    let found = tokio::task::spawn_blocking(move || FromBundles::new(&bundles, &blobs, &folder)).await?;
    Ok(found?)
}

async fn write(
    target: &Target,
    layout: &Layout,
    compression: Compression,
    feed: FromBundles,
) -> Result<Written, Refusal> {
    let counted = feed.clone();
    let done = move || counted.read();
    let written = making::write(target, layout, compression, feed, done, None).await?;
    Ok(written.0)
}

/// The report of a new bundle file.
#[derive(Debug, Serialize)]
struct FileReport {
    #[serde(flatten)]
    made: Made,
    /// Name of the base that a delta relies on.
    base: Option<String>,
    /// Name of the release that the bundle belongs to.
    release: Option<String>,
    images: Vec<ImageReport>,
}

#[derive(Debug, Serialize)]
struct ImageReport {
    names: Vec<String>,
    digest: String,
    bytes: u64,
}

impl FileReport {
    fn new(target: &Target, layout: &Layout, draft: &Draft, written: Written) -> FileReport {
        let images = draft.images.iter().map(|image| ImageReport {
            names: image.names.clone(),
            digest: image.target.digest().to_string(),
            bytes: making::bytes_of(image),
        });
        FileReport {
            made: Made::of(target, layout, &written),
            base: draft.relies_on.as_ref().map(|reliance| reliance.base.clone()),
            release: making::release_of(draft),
            images: images.collect(),
        }
    }

    fn write_text(&self, text: &mut Page) {
        let (images, bytes) = (
            basics::counted(self.images.len(), "image"),
            output::bytes(self.made.bytes),
        );
        output::line!(text, "{}: {images}, {bytes}", self.made.path);
        if let Some(base) = &self.base {
            output::line!(text, "  a delta on {base}");
        }
        if let Some(release) = &self.release {
            output::line!(text, "  of release {release}");
        }
        for image in &self.images {
            let name = image.names.first().unwrap_or(&image.digest);
            output::line!(text, "  {:>9}  {name}", output::bytes(image.bytes));
        }
    }
}

/// The document of `airgapd bundle merge -o json`.
#[derive(Debug, Serialize)]
struct MergeReport {
    #[serde(flatten)]
    bundle: FileReport,
    warnings: Vec<String>,
    duration_ms: u64,
}

impl Render for MergeReport {
    fn text(&self) -> Page {
        let mut text = Page::new();
        self.bundle.write_text(&mut text);
        write_warnings(&mut text, &self.warnings);
        text
    }
}

/// The document of `airgapd bundle split -o json`.
#[derive(Debug, Serialize)]
struct SplitReport {
    volumes: Vec<FileReport>,
    warnings: Vec<String>,
    duration_ms: u64,
}

impl Render for SplitReport {
    fn text(&self) -> Page {
        let mut text = Page::new();
        for volume in &self.volumes {
            volume.write_text(&mut text);
        }
        write_warnings(&mut text, &self.warnings);
        text
    }
}

fn write_warnings(text: &mut Page, warnings: &[String]) {
    for warning in warnings {
        output::paragraph(text, "warning  ", warning);
    }
}
