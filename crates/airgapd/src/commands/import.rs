//! `airgapd import`: imports bundles now, beside the daemon or without one.
//!
//! A file in the images folder is imported as the daemon would do it and belongs to the daemon afterwards. A file from
//! anywhere else is marked as imported by hand, and stays until `airgapd release`.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bundle::Bundle;
use import::{BundleReport, Cause, Intent, Outcome, Policy, Source, bundle_id, short_hash};

use super::Exit;
use crate::cli::ImportArgs;
use crate::config::{OutputFormat, Settings};
use crate::node::Runtime as Node;
use crate::output::{self, ImportDocument};
use crate::progress::Progress;
use crate::runtime::{self, Runtime, Unusable};

/// Imports every file, one after the other; one bad file spares the others.
pub(crate) async fn run(
    args: &ImportArgs,
    settings: &Settings,
    node: &Node,
    format: OutputFormat,
) -> anyhow::Result<Exit> {
    let runtime = match runtime::connect(&node.socket, settings).await {
        Ok(runtime) => runtime,
        Err(error) => return unusable(&error, node, format),
    };
    let policy = runtime::policy(settings, Some(&runtime));
    let import = Import {
        settings,
        node,
        runtime: &runtime,
        policy: &policy,
        dry_run: args.dry_run,
    };
    let mut reports = Vec::new();
    for file in &args.files {
        let (report, plan) = import.one(file).await;
        if format == OutputFormat::Text {
            output::text(&output::import_text(&report, args.dry_run))?;
            if args.dry_run {
                output::text(&plan)?;
            }
        }
        reports.push(report);
    }
    if format == OutputFormat::Json {
        output::json(&ImportDocument { bundles: &reports })?;
    }
    Ok(exit(&reports))
}

fn unusable(error: &Unusable, node: &Node, format: OutputFormat) -> anyhow::Result<Exit> {
    let why = node.because.join(", ");
    let text = import::chain(error);
    tracing::error!("{text} (tried {}: {why})", node.socket.display());
    if format == OutputFormat::Json {
        output::json(&ImportDocument { bundles: &[] })?;
    }
    Ok(if error.is_unreachable() {
        Exit::Unreachable
    } else {
        Exit::Failed
    })
}

struct Import<'a> {
    settings: &'a Settings,
    node: &'a Node,
    runtime: &'a Runtime,
    policy: &'a Policy,
    dry_run: bool,
}

impl Import<'_> {
    /// Imports one file; the plan as text comes along.
    async fn one(&self, path: &Path) -> (BundleReport, String) {
        let started = Instant::now();
        let bundle = match open(path, &self.settings.limits).await {
            Ok(bundle) => Arc::new(bundle),
            Err(error) => {
                return (
                    BundleReport::unreadable(path, &error, started.elapsed()),
                    String::new(),
                );
            }
        };
        let (source, lease_id) = whose(path, &self.node.images_dir);
        let intent = Intent {
            source,
            on_conflict: self.settings.on_conflict,
        };
        let client = &self.runtime.client;
        let progress = Progress::start(path.display().to_string());
        match import::import(
            client,
            &bundle,
            self.policy,
            &intent,
            &lease_id,
            self.dry_run,
            &progress,
        )
        .await
        {
            Ok(imported) => (imported.report, imported.plan.to_string()),
            Err(error) => (
                BundleReport::untried(path, &error, started.elapsed()),
                String::new(),
            ),
        }
    }
}

/// Opens a bundle; reading blocks, so it happens off the runtime's threads.
pub(super) async fn open(path: &Path, limits: &bundle::Limits) -> Result<Bundle, bundle::Error> {
    let (path, limits) = (path.to_owned(), limits.clone());
    let opened = tokio::task::spawn_blocking(move || Bundle::open(&path, &limits)).await;
    opened.expect("reading a bundle never panics")
}

/// Who vouches for the images of a file, and the id of the lease: by its place in the images folder or outside of it.
fn whose(path: &Path, images_dir: &Path) -> (Source, String) {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let parent = path.parent().and_then(|parent| parent.canonicalize().ok());
    if parent.is_some() && parent == images_dir.canonicalize().ok() {
        let id = bundle_id(&name);
        return (Source::Bundle(name), id);
    }
    let id = short_hash(path.as_os_str().as_encoded_bytes());
    (Source::Hand(name), id)
}

/// One exit status for all bundles: an unreachable containerd first, then whether anything landed, then whose fault it is.
fn exit(reports: &[BundleReport]) -> Exit {
    let causes: Vec<Cause> = reports.iter().filter_map(failure).collect();
    let landed = reports.iter().any(BundleReport::landed);
    match causes.as_slice() {
        [] => Exit::Done,
        causes if causes.contains(&Cause::Unreachable) => Exit::Unreachable,
        causes if !landed && causes.iter().all(|cause| *cause == Cause::Bundle) => Exit::BadBundle,
        _ => Exit::Failed,
    }
}

fn failure(report: &BundleReport) -> Option<Cause> {
    match report.outcome {
        Outcome::Imported | Outcome::Unchanged => None,
        // Sound, and yet nothing of it is in place.
        Outcome::Skipped => Some(Cause::Other),
        Outcome::Partial | Outcome::Failed => Some(report.cause.unwrap_or(Cause::Other)),
    }
}
