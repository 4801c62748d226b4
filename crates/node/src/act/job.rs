//! The work of a job: it brings one file from an open descriptor into containerd.
//!
//! A job owns all that it needs and returns a value. It decides nothing that concerns another
//! bundle, and knows neither the roster nor the ledger: the loop gives the orders and records the
//! results. Dropping a job at any await loses nothing, because the bundle's lease keeps the blobs
//! that it has moved.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bundle::{Bundle, Identity};
use import::plan::UnpackWhen;
use import::result::ImageResult;
use import::unpack::Unpack;
use import::{BundleResult, Intent, Policy, Reference, Selection, Source, Verdict, bundle_id};
use oci_spec::image::Digest;
use tokio::task::JoinError;
use tracing::{error, info};

use super::journal::tell;
use crate::decide::lanes::Lane;
use crate::decide::line::shown;
use crate::decide::record::{Bad, Found, Landed, LandedImage, Stop};
use crate::images::folder::{self, Ending, Folder, Observation, Refused, Writer};
use crate::images::pull_list;
use crate::images::sidecar::{self, sidecar_of};
use crate::images::trusted_digests;
use crate::progress::{Counters, Doing, Reporter};
use crate::runtime::{self, Containerd};
use crate::settings::{Checksums, Settings};
use crate::state::ledger::{self, ErrorClass, ImageEntry};
use crate::state::roster::Version;

/// The order for a job: which file, and all that is needed for it.
#[derive(Debug)]
pub(super) struct Order {
    /// The file's name in the images folder.
    pub(super) name: OsString,
    /// The file as the listing has it.
    pub(super) version: Version,
    pub(super) images_dir: PathBuf,
    /// The settings at the start of the job.
    pub(super) settings: Arc<Settings>,
    pub(super) runtime: Containerd,
    pub(super) policy: Policy,
    pub(super) started: Instant,
    /// True if the log reports the start of the file at the usual level.
    pub(super) is_told: bool,
    /// In the light lane, another bundle may be read at the same time, with all that the limits
    /// allow.
    pub(super) lane: Lane,
}

/// The result of opening a file.
pub(super) enum Opened {
    /// The file with its checksum is still being written.
    NotNow,
    /// Its checksum prevents the import.
    Unverified(sidecar::Failure),
    /// It was read: it is a bundle, no bundle at all, or a broken bundle.
    Read {
        found: Result<Box<Read>, bundle::Error>,
        /// True if it ends in zeros that may be room for the rest of it.
        is_reserved: bool,
    },
    /// A list of images to pull, or why it cannot be read.
    List(std::io::Result<String>),
}

/// A bundle whose catalog was read.
pub(super) struct Read {
    pub(super) bundle: Arc<Bundle>,
    /// The records that it will write, with the digests of their targets.
    pub(super) records: BTreeMap<String, Digest>,
    /// The reason why the first incomplete image is not whole.
    pub(super) broken: Option<String>,
}

/// The result of pulling a list.
#[derive(Debug, Default)]
pub(super) struct Pulled {
    pub(super) images: Vec<ImageEntry>,
    pub(super) problems: Vec<String>,
}

impl Order {
    pub(super) fn path(&self) -> PathBuf {
        self.images_dir.join(&self.name)
    }

    /// Returns how long the job has run.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Checks a file against its checksum, unless `is_checked` says that this was done before. Then
/// reads the file's content.
pub(super) async fn open(order: Arc<Order>, file: File, is_checked: bool) -> Opened {
    if !is_checked {
        match verify(&order, &file).await {
            Ok(Verified::Yes) => {}
            Ok(Verified::NotNow) => return Opened::NotNow,
            Err(failure) => return Opened::Unverified(failure),
        }
    }
    let (name, is_layout) = (&order.name, order.version.is_layout);
    let size = order.version.identity.size;
    match Ending::of(&file, size) {
        _ if is_layout => {}
        Ok(ending) if order.settings.pull_lists && pull_list::is_list(name, ending, size) => {
            return Opened::List(pull_list::read(file));
        }
        Ok(_) | Err(_) => tell!(order.is_told, info, bundle = %shown(name), "importing"),
    }
    let limits = match order.lane {
        Lane::Light => order.settings.limits.beside_another(),
        Lane::Main => order.settings.limits.clone(),
    };
    let same_file = file.try_clone();
    let found = read_bundle(file, &order, limits, is_layout).await;
    Opened::Read {
        found,
        is_reserved: !is_layout && same_file.is_ok_and(|file| folder::may_be_reserved(&file)),
    }
}

impl Read {
    fn of(bundle: Bundle, policy: &Policy) -> Read {
        // The base of a delta is looked up at the import, so it counts as present here.
        let selection = import::select(&bundle.catalog().with_its_base(), policy);
        let records = selection.taken().flat_map(|taken| &taken.records);
        Read {
            records: records
                .map(|record| (record.name.clone(), record.target.digest().clone()))
                .collect(),
            broken: broken(&selection),
            bundle: Arc::new(bundle),
        }
    }

    /// Returns why an archive without a proper end counts as an upload that was cut off. An archive
    /// without an end marker must contain every blob that its images refer to.
    pub(super) fn unfinished(&self) -> Option<String> {
        match (&self.bundle.catalog().ending, &self.broken) {
            (bundle::Ending::Marker, _) | (bundle::Ending::NoMarker, None) => None,
            (bundle::Ending::Truncated(cut), _) => Some(format!("{cut}: finish the upload")),
            (bundle::Ending::NoMarker, Some(problem)) => Some(format!(
                "the archive has no end marker and is not whole, finish the upload: {problem}"
            )),
        }
    }
}

/// A bundle that was read, for decisions about it.
pub(super) fn found(read: &Read, is_reserved: bool, order: &Order) -> Found {
    let catalog = read.bundle.catalog();
    let is_cut = matches!(catalog.ending, bundle::Ending::Truncated(_));
    Found {
        records: read.records.clone(),
        unfinished: read.unfinished(),
        // A program that writes with pauses leaves such files in between, and no process has them
        // open then.
        may_go_on: is_cut || read.broken.is_some() && is_reserved,
        broken: read.broken.clone(),
        distrust: distrust(order, &catalog.digest),
    }
}

/// Returns why the operator's list of digests does not allow a catalog, or `None` if it does.
pub(super) fn distrust(order: &Order, catalog: &Digest) -> Option<String> {
    let trusted = order.settings.trusted_digests.as_ref()?;
    trusted_digests::check(trusted, catalog).err()
}

/// Returns the facts about a file that could not be read, for decisions about it.
pub(super) fn bad(error: &bundle::Error, is_reserved: bool, report: &BundleResult) -> Bad {
    let is_cut = matches!(
        error.fault,
        bundle::Fault::Truncated(_) | bundle::Fault::CompressedCut { .. }
    );
    Bad {
        text: report.error.clone().unwrap_or_default(),
        class: match &error.fault {
            bundle::Fault::Io { source, .. } if containerd::is_disk_failure(source) => ErrorClass::Disk,
            bundle::Fault::Changed | bundle::Fault::Io { .. } => ErrorClass::Transient,
            _ => ErrorClass::Bundle,
        },
        may_go_on: is_cut || is_reserved,
        is_beyond_limits: matches!(error.fault, bundle::Fault::Limit { .. }),
    }
}

/// Returns why an import stopped, for decisions about it.
pub(super) fn stop(error: &import::Error, report: &BundleResult) -> Stop {
    let (class, retry) = match error {
        error if error.is_space() => (ErrorClass::Space, true),
        error if error.is_disk() => (ErrorClass::Disk, true),
        import::Error::Containerd(inner) => match inner.recovery() {
            containerd::Recovery::Permanent => (ErrorClass::Permanent, true),
            _ => (ErrorClass::Transient, true),
        },
        import::Error::TooManyRecords { .. } => (ErrorClass::Permanent, true),
        import::Error::TooManyNames { .. } => (ErrorClass::Permanent, false),
        _ => (ErrorClass::Transient, error.is_transient()),
    };
    Stop {
        text: report.error.clone().unwrap_or_default(),
        class,
        retry,
        shortage: match error {
            import::Error::NoSpace(shortage) => Some((**shortage).clone()),
            _ => None,
        },
        unreachable: (report.cause == Some(import::Cause::Unreachable)).then(|| basics::chain(error)),
    }
}

/// Returns the result of an import, for decisions about the bundle.
pub(super) fn landed(imported: &import::Imported, bundle: Option<&Bundle>) -> Option<Landed> {
    let import::Imported {
        result: report,
        selection,
        stopped,
        ..
    } = imported;
    let bundle = bundle?;
    let image = |image: &ImageResult| LandedImage {
        name: image.name.clone(),
        target: image.target.clone(),
        outcome: image.outcome,
        reason: image.reason.clone(),
    };
    // Many names may share one closure: the digests of a target are collected once.
    let mut seen = HashSet::new();
    let closures = selection.taken().flat_map(|taken| {
        let blobs = taken.closure.blobs.iter();
        let digests: Vec<_> = blobs.map(|blob| blob.digest.clone()).collect();
        let targets: Vec<_> = taken
            .records
            .iter()
            .map(|record| record.target.digest())
            .filter(|target| seen.insert(*target))
            .cloned()
            .collect();
        targets.into_iter().map(move |target| (target, digests.clone()))
    });
    Some(Landed {
        identity: bundle.identity().clone(),
        catalog: bundle.catalog().digest.clone(),
        outcome: report.outcome,
        has_landed: report.landed(),
        images: report.images.iter().map(image).collect(),
        closures: closures.collect(),
        duration_ms: report.duration_ms,
        sent_bytes: report.blobs.sent_bytes,
        is_bundles_fault: report.cause == Some(import::Cause::Bundle),
        stopped: stopped.as_ref().map(|error| stop(error, report)),
        forecast: report.space.clone(),
    })
}

fn broken(selection: &Selection) -> Option<String> {
    selection.choices.iter().find_map(|choice| match &choice.verdict {
        Verdict::Broken(problems) => Some(format!(
            "{}: {}",
            choice.label,
            import::result::in_short(problems)
        )),
        Verdict::Take(_) | Verdict::Skip(_) | Verdict::Forbidden => None,
    })
}

/// Imports a bundle. The counters show its progress meanwhile.
pub(super) async fn import(
    order: Arc<Order>,
    bundle: Arc<Bundle>,
    mut intent: Intent,
    counters: Arc<Counters>,
) -> Result<import::Imported, import::Error> {
    let lease_id = bundle_id(&ledger::label_name(&order.name));
    let progress = Reporter::start(shown(&order.name), Doing::Sending, counters);
    let unpacker = async || runtime::unpacker(&order.settings, &order.runtime).await;
    intent.unpack = match order.settings.unpack {
        Unpack::None => None,
        // The daemon unpacks the other images when it imports nothing, and reports failures then.
        Unpack::Background => unpacker()
            .await
            .ok()
            .map(|unpacker| (unpacker, UnpackWhen::Meanwhile)),
        Unpack::BeforeRecord => Some((unpacker().await?, UnpackWhen::BeforeRecord)),
    };
    import::import(
        &order.runtime.client,
        &bundle,
        &order.policy,
        &intent,
        &lease_id,
        false,
        &progress,
    )
    .await
}

/// Pulls the images of a list one by one. A failed pull does not stop the rest.
pub(super) async fn pull(order: Arc<Order>, text: String) -> Pulled {
    let name = &order.name;
    info!(bundle = %shown(name), "pulling the images of a list");
    let naming = order.settings.naming();
    let source = Source::Bundle(ledger::label_name(name));
    let mut pulled = Pulled::default();
    let is_excluded = |reference: &Reference| {
        let name = reference.to_string();
        order
            .settings
            .exclude
            .iter()
            .any(|pattern| pattern.matches(&name))
    };
    for reference in pull_list::parse(&text, &naming) {
        if reference.as_ref().is_ok_and(is_excluded) {
            continue;
        }
        let provided = match reference {
            Ok(reference) => pull_list::provide(&order.runtime.client, &reference, &naming, &source)
                .await
                .map_err(|error| format!("{reference}: {}", basics::chain(&error))),
            Err(problem) => Err(problem),
        };
        match provided {
            Ok(entries) => {
                let image = &entries[0].name;
                info!(bundle = %shown(name), image, "image in place");
                pulled.images.extend(entries);
            }
            Err(problem) => {
                error!(bundle = %shown(name), "image not pulled: {problem}");
                pulled.problems.push(problem);
            }
        }
    }
    pulled
}

/// Returns the digest of a list's text, which identifies its content.
pub(super) fn list_digest(text: &str) -> Digest {
    basics::digest::sha256(text.as_bytes())
}

/// The result of the check of a bundle against its checksum.
enum Verified {
    /// The checksum matches, or there is none.
    Yes,
    /// The file with the checksum is still being written.
    NotNow,
}

/// Checks a file against the checksum in the file beside it.
async fn verify(order: &Order, file: &File) -> Result<Verified, sidecar::Failure> {
    let (name, version, mode) = (&order.name, &order.version, order.settings.checksums);
    if version.is_layout {
        return match mode {
            Checksums::Require => Err(sidecar::Failure::NoFile),
            Checksums::Off | Checksums::IfPresent => Ok(Verified::Yes),
        };
    }
    let folder = Folder::open_dir(&order.images_dir).map_err(sidecar::Failure::Read)?;
    let sidecar = folder.open(&sidecar_of(name));
    if !is_as_listed(&sidecar, version) {
        return Ok(Verified::NotNow);
    }
    let base_name = std::path::Path::new(name).file_name().unwrap_or(name);
    let Some(expected) = sidecar::expected(base_name, sidecar, mode)? else {
        return Ok(Verified::Yes);
    };
    let file = file.try_clone().map_err(sidecar::Failure::Read)?;
    let identity = sidecar::check(file, base_name, expected).await?;
    if identity != version.identity {
        return Err(sidecar::Failure::Changed);
    }
    info!(bundle = %shown(name), "its checksum is right");
    Ok(Verified::Yes)
}

/// Returns true if a sidecar is as the listing has it and no process is writing it.
fn is_as_listed(sidecar: &Result<File, Refused>, version: &Version) -> bool {
    let seen = Instant::now();
    match sidecar {
        Ok(file) => {
            let identity = file.metadata().ok().map(|metadata| Identity::of(&metadata));
            let writer = Observation::of(file, seen).map_or(Writer::Unknown, |seen| seen.writer);
            identity == version.sidecar && writer != Writer::Present
        }
        Err(Refused::Gone) => version.sidecar.is_none(),
        Err(_) => true,
    }
}

/// Opens a listed file. Returns `None` if another file has its name by now.
pub(super) fn open_listed(folder: &Folder, name: &OsStr, version: &Version) -> Result<Option<File>, Refused> {
    if !version.is_layout {
        return folder.open(name).map(Some);
    }
    let (layout, identity) = folder.open_layout(name)?;
    Ok((identity == version.identity).then_some(layout))
}

/// Reads the catalog of an open bundle and selects its records. The work blocks and takes time, so
/// it runs outside the loop's thread.
async fn read_bundle(
    file: File,
    order: &Order,
    limits: bundle::Limits,
    is_layout: bool,
) -> Result<Box<Read>, bundle::Error> {
    let (path, policy) = (order.path(), order.policy.clone());
    let read = move || {
        let bundle = match is_layout {
            true => Bundle::from_dir(file, &path, &limits),
            false => Bundle::from_file(file, &path, &limits),
        };
        bundle.map(|bundle| Box::new(Read::of(bundle, &policy)))
    };
    joined(tokio::task::spawn_blocking(read).await)
}

/// Returns the result of a thread. A panic in the thread becomes a panic of the job.
pub(super) fn joined<T>(thread: Result<T, JoinError>) -> T {
    thread.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
