//! `airgapd import`: imports bundles now, with or without a running daemon.
//!
//! A file in the images folder is imported as the daemon would import it, and the daemon manages it
//! afterwards. Images of any other file are marked as imported by hand, and stay until `airgapd
//! release`.

mod answer;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bundle::Bundle;
use import::plan::UnpackWhen;
use import::unpack::Unpack;
use import::{BundleReport, BundleResult, Cause, Intent, Outcome, Pace, Policy, Source, Unpacker, bundle_id};

use self::answer::Document;
use super::{Call, Exit, Refusal};
use crate::cli::{ImportArgs, OutputFormat};
use crate::output::{self, Page};
use crate::progress::Progress;
use node::decide::desired;
use node::images::folder::{self, Folder, Refused};
use node::images::sidecar::{self, Failure, sidecar_of};
use node::images::trusted_digests;
use node::place::Place;
use node::progress::Doing;
use node::runtime::{self, Containerd};
use node::settings::{Checksums, Settings};

/// Imports all files, one after the other. A bad file does not stop the others.
pub(super) async fn run(args: &ImportArgs, call: &Call) -> Result<Exit, Refusal> {
    let (settings, node) = (&call.settings, call.node()?);
    let allowed = call.allowed("import", Exit::Unreachable, &[&node.socket]);
    let connected = match allowed {
        Ok(()) => call.connect(&node).await,
        Err(refusal) => Err(refusal),
    };
    let runtime = connected.map_err(|refusal| {
        refusal.with_document(|error| Document {
            bundles: &[],
            error: Some(error),
        })
    })?;
    let policy = runtime::policy(settings, Some(&runtime));
    let import = Import {
        settings,
        node: &node,
        runtime: &runtime,
        policy: &policy,
        pace: Arc::new(Pace::new(settings.rate_limit)),
        dry_run: args.dry_run,
    };
    let mut results = Vec::new();
    for file in &args.files {
        let (result, plan) = import.one(file).await;
        // With `-q`, text reports only failures.
        if call.format == OutputFormat::Text && (!call.is_quiet || failure(&result).is_some()) {
            output::text(&answer::text(&result, args.dry_run))?;
            if args.dry_run {
                output::text(&Page::of_lines(&plan))?;
            }
        }
        results.push(result);
    }
    let exit = exit(&results);
    if call.format == OutputFormat::Json {
        let reports: Vec<BundleReport> = results.into_iter().map(BundleReport::from).collect();
        output::json(&Document {
            bundles: &reports,
            error: None,
        })?;
    }
    Ok(exit)
}

struct Import<'a> {
    settings: &'a Settings,
    node: &'a Place,
    runtime: &'a Containerd,
    policy: &'a Policy,
    /// Rate limit for all files together.
    pace: Arc<Pace>,
    dry_run: bool,
}

impl Import<'_> {
    /// Imports one file. Returns the result, and the plan as text.
    async fn one(&self, path: &Path) -> (BundleResult, String) {
        let started = Instant::now();
        let bundle = match self.open(path, started).await {
            Ok(bundle) => Arc::new(bundle),
            Err(result) => return (*result, String::new()),
        };
        let unpack = match self.unpack().await {
            Ok(unpack) => unpack,
            Err(error) => {
                return (
                    BundleResult::untried(path, &error, started.elapsed()),
                    String::new(),
                );
            }
        };
        let (source, lease_id) = whose(path, &self.node.images_dir, self.settings.recursive);
        let intent = Intent {
            leave: self.excluded(&bundle),
            priority: self.settings.priority.clone(),
            space: runtime::space(self.settings, self.runtime),
            pace: Arc::clone(&self.pace),
            unpack,
            most_records: self.settings.most_records,
            ..Intent::new(source, self.settings.on_conflict)
        };
        let client = &self.runtime.client;
        let progress = Progress::start(path.display().to_string(), Doing::Sending);
        match import::import(
            client,
            &bundle,
            self.policy,
            &intent,
            &lease_id,
            self.dry_run,
            progress.observer(),
        )
        .await
        {
            Ok(imported) => (imported.result, imported.plan.to_string()),
            Err(error) => (
                BundleResult::untried(path, &error, started.elapsed()),
                String::new(),
            ),
        }
    }
}

impl Import<'_> {
    /// Returns the unpacker and the time to unpack. A command has no background, so it unpacks
    /// after the records instead.
    async fn unpack(&self) -> Result<Option<(Unpacker, UnpackWhen)>, import::Error> {
        let when = match self.settings.unpack {
            Unpack::None => return Ok(None),
            Unpack::Background => UnpackWhen::AfterRecords,
            Unpack::BeforeRecord => UnpackWhen::BeforeRecord,
        };
        let unpacker = runtime::unpacker(self.settings, self.runtime).await?;
        Ok(Some((unpacker, when)))
    }

    /// Returns the names that `exclude` keeps out of a bundle. A delta counts with its base.
    fn excluded(&self, bundle: &Bundle) -> BTreeMap<String, String> {
        let selection = import::select(&bundle.catalog().with_its_base(), self.policy);
        let records = selection.taken().flat_map(|taken| &taken.records);
        let names: Vec<&str> = records.map(|record| record.name.as_str()).collect();
        desired::left_out(names.iter().copied(), &self.settings.exclude)
    }

    /// Opens a bundle and checks it against its checksum and the trusted digests.
    async fn open(&self, path: &Path, started: Instant) -> Result<Bundle, Box<BundleResult>> {
        let unreadable =
            |error: bundle::Error| Box::new(BundleResult::unreadable(path, &error, started.elapsed()));
        let refused =
            |why: String, cause| Box::new(BundleResult::refused(path, why, cause, started.elapsed()));
        let file = open_file(path).map_err(unreadable)?;
        if let Err(failure) = verify(&file, path, self.settings.checksums).await {
            let cause = match failure {
                Failure::Mismatch { .. } => Cause::Bundle,
                Failure::Changed | Failure::Read(_) => Cause::File,
                Failure::Missing { .. } | Failure::NoFile | Failure::Unusable { .. } => Cause::Other,
            };
            return Err(refused(failure.to_string(), cause));
        }
        let bundle = read(file, path, &self.settings.limits)
            .await
            .map_err(unreadable)?;
        match &self.settings.trusted_digests {
            Some(trusted) => match trusted_digests::check(trusted, &bundle.catalog().digest) {
                Ok(()) => Ok(bundle),
                Err(why) => Err(refused(why, Cause::Other)),
            },
            None => Ok(bundle),
        }
    }
}

fn open_file(path: &Path) -> Result<File, bundle::Error> {
    folder::open_path(path).map_err(|source| bundle::Error {
        path: path.to_owned(),
        fault: bundle::Fault::Io {
            action: "open the file",
            source,
        },
    })
}

/// Checks an open bundle against the checksum beside it. An entry that is neither file nor folder
/// passes here, and the reader refuses it.
async fn verify(file: &File, path: &Path, mode: Checksums) -> Result<(), Failure> {
    if mode == Checksums::Require && is_folder(file) {
        return Err(Failure::NoFile);
    }
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    if mode == Checksums::Off || !is_file {
        return Ok(());
    }
    let name = path.file_name().unwrap_or(OsStr::new(""));
    let beside = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let sidecar = Folder::open_dir(beside)
        .map_err(Refused::Unreadable)
        .and_then(|folder| folder.open(&sidecar_of(name)));
    if let Some(expected) = sidecar::expected(name, sidecar, mode)? {
        let file = file.try_clone().map_err(Failure::Read)?;
        sidecar::check(file, name, expected).await?;
    }
    Ok(())
}

/// Opens a bundle without a check of its checksum.
pub(super) async fn open(path: &Path, limits: &bundle::Limits) -> Result<Bundle, bundle::Error> {
    read(open_file(path)?, path, limits).await
}

/// Reads the catalog of an open bundle on a separate thread, since that blocks.
async fn read(file: File, path: &Path, limits: &bundle::Limits) -> Result<Bundle, bundle::Error> {
    let (path, limits) = (path.to_owned(), limits.clone());
    let read = move || match is_folder(&file) {
        true => Bundle::from_dir(file, &path, &limits),
        false => Bundle::from_file(file, &path, &limits),
    };
    let opened = tokio::task::spawn_blocking(read).await;
    opened.expect("reading a bundle never panics")
}

fn is_folder(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.is_dir())
}

/// Returns the source that vouches for the images of a file, and the id of the lease. Both depend
/// on the file's place: the images folder or another.
fn whose(path: &Path, images_dir: &Path, recursive: bool) -> (Source, String) {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    if let Some(name) = name_in(&path, images_dir, recursive) {
        let id = bundle_id(&name);
        return (Source::Bundle(name), id);
    }
    let name = path.file_name().unwrap_or(path.as_os_str());
    let id = basics::digest::short(path.as_os_str().as_encoded_bytes());
    (Source::Hand(name.to_string_lossy().into_owned()), id)
}

/// Returns the daemon's name of a file if the daemon would find it in the images folder. A link in
/// the folder counts as a file of the folder.
fn name_in(path: &Path, images_dir: &Path, recursive: bool) -> Option<String> {
    let parent = path.parent()?.canonicalize().ok()?;
    let below = parent.strip_prefix(images_dir.canonicalize().ok()?).ok()?;
    let is_reached = recursive || below.as_os_str().is_empty();
    let name = below.join(path.file_name()?);
    is_reached.then(|| node::state::ledger::label_name(name.as_os_str()))
}

/// Returns one exit status for all bundles. An unreachable containerd comes first. Then it matters
/// if any image was imported, and if the bundles caused all failures.
fn exit(results: &[BundleResult]) -> Exit {
    let causes: Vec<Cause> = results.iter().filter_map(failure).collect();
    let landed = results.iter().any(BundleResult::landed);
    match causes.as_slice() {
        [] => Exit::Done,
        causes if causes.contains(&Cause::Unreachable) => Exit::Unreachable,
        causes if !landed && causes.iter().all(|cause| *cause == Cause::Bundle) => Exit::BadBundle,
        _ => Exit::Failed,
    }
}

fn failure(result: &BundleResult) -> Option<Cause> {
    let is_unpacked = result
        .unpacked
        .as_ref()
        .is_none_or(|unpacked| unpacked.failed.is_empty());
    match result.outcome {
        // Its records are in place, but its containers will not start.
        Outcome::Imported | Outcome::Unchanged if !is_unpacked => Some(Cause::Other),
        Outcome::Imported | Outcome::Unchanged => None,
        // The bundle is sound, but none of its images is in place.
        Outcome::Skipped => Some(Cause::Other),
        Outcome::Partial | Outcome::Failed => Some(result.cause.unwrap_or(Cause::Other)),
    }
}
