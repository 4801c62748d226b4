//! The work of a job: it brings one file from an open descriptor into containerd.
//!
//! A job owns all that it needs and returns a value. It decides nothing that concerns another
//! bundle, and knows neither the roster nor the ledger: the loop gives the orders and records the
//! results. Dropping a job at any await loses nothing, because the bundle's lease keeps the blobs
//! that it has moved.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bundle::{Bundle, Catalog, Identity};
use import::plan::UnpackWhen;
use import::result::ImageResult;
use import::unpack::Unpack;
use import::{BundleResult, Intent, Pace, Policy, Reference, Selection, Source, bundle_id, lease};
use jiff::Timestamp;
use oci_spec::image::Digest;
use tokio::task::JoinError;
use tracing::{error, info};

use super::journal::tell;
use crate::admit::{self, Verdict};
use crate::decide::lanes::Lane;
use crate::decide::line::shown;
use crate::decide::record::{Bad, Found, Landed, LandedImage, Stop};
use crate::images::folder::{self, Ending, Folder, Observation, Refused, Writer};
use crate::images::pull_list;
use crate::images::sidecar::{self, sidecar_of};
use crate::images::trusted_digests;
use crate::progress::{Counters, Doing, Reporter};
use crate::receipts;
use crate::releases;
use crate::runtime::{self, Containerd};
use crate::settings::{Checksums, Settings, Signatures};
use crate::state::admitted::{self, Evidence};
use crate::state::ledger::{self, ErrorClass, ImageEntry, StandsFor};
use crate::state::roster::Version;

/// The order for a job: which file, and all that is needed for it.
#[derive(Debug)]
pub(super) struct Order {
    /// The file's name.
    pub(super) name: OsString,
    /// The file as the listing has it.
    pub(super) version: Version,
    /// The images folder of the file.
    pub(super) images_dir: PathBuf,
    /// The settings at the start of the job.
    pub(super) settings: Arc<Settings>,
    pub(super) runtime: Containerd,
    pub(super) policy: Policy,
    /// True if the file is a receipt.
    pub(super) is_receipt: bool,
    /// True if a receipt is to take the place of the file.
    pub(super) makes_receipt: bool,
    /// The rate limit of all jobs together.
    pub(super) pace: Arc<Pace>,
    /// Evidence of the admission of this very file, if it was imported before.
    pub(super) evidence: Option<Evidence>,
    pub(super) started: Instant,
    /// True if the log reports the start of the file at the usual level.
    pub(super) is_told: bool,
    /// In the light lane, another bundle may be read at the same time, with all that the limits
    /// allow.
    pub(super) lane: Lane,
}

/// Returns the source that vouches for the images of a file, by its name.
pub(super) fn source_of(name: &OsStr, is_receipt: bool) -> Source {
    let name = ledger::label_name(name);
    match is_receipt {
        true => Source::Receipt(name),
        false => Source::Bundle(name),
    }
}

/// The result of opening a file.
pub(super) enum Opened {
    /// The file with its checksum is still being written.
    NotNow,
    /// Its checksum prevents the import.
    Unverified(sidecar::Failure),
    /// It was admitted, and the evidence cannot be written.
    NotKept(std::io::Error),
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
    /// The rules of the import, with the names that the signers may give.
    pub(super) policy: Policy,
    /// The word of the rules on the bundle.
    pub(super) verdict: Verdict,
    /// The evidence of its admission, if a signature admits it.
    pub(super) evidence: Option<Evidence>,
}

/// A bundle that a job imports.
#[derive(Clone)]
pub(super) struct Ready {
    pub(super) bundle: Arc<Bundle>,
    /// The rules of the import, with the names that the signers may give.
    pub(super) policy: Policy,
    /// The evidence of its admission, if a signature admits it.
    pub(super) evidence: Option<Evidence>,
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

    /// Returns the file's path below its images folder.
    fn in_folder(&self) -> &OsStr {
        let in_folder = Path::new(&self.name).strip_prefix(&self.images_dir);
        in_folder.map_or(self.name.as_os_str(), Path::as_os_str)
    }

    fn base_name(&self) -> &OsStr {
        Path::new(&self.name).file_name().unwrap_or(&self.name)
    }

    /// Returns the order to open the file and to hold it against the rules.
    fn admission(&self, checksum: Option<Digest>) -> admit::Order {
        admit::Order {
            path: self.path(),
            folder: Some(self.images_dir.clone()),
            name: self.in_folder().to_owned(),
            limits: match self.lane {
                Lane::Light => self.settings.limits.beside_another(),
                Lane::Main => self.settings.limits.clone(),
            },
            checksum,
            rules: admit::Rules::of(&self.settings),
            more: Vec::new(),
            evidence: self.evidence.clone(),
            receipt: self.is_receipt.then(|| self.settings.state_dir.clone()),
            leaves_receipt: self.makes_receipt,
        }
    }

    /// Returns the source that vouches for the images of the file.
    fn source(&self) -> Source {
        source_of(&self.name, self.is_receipt)
    }

    /// Returns how long the job has run.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Opens a file, and holds it against the rules of this node. `is_checked` says that its checksum
/// was checked before. The evidence of an admission is on the disk before anything is imported.
pub(super) async fn open(order: Arc<Order>, file: File, is_checked: bool) -> Opened {
    let checksum = match is_checked || order.is_receipt {
        true => None,
        false => match checksum(&order) {
            Ok(Expected::Sum(checksum)) => Some(checksum),
            Ok(Expected::Nothing) => None,
            Ok(Expected::NotNow) => return Opened::NotNow,
            Err(failure) => return Opened::Unverified(failure),
        },
    };
    let (name, is_layout) = (&order.name, order.version.is_layout);
    let size = order.version.identity.size;
    match Ending::of(&file, size) {
        _ if is_layout => {}
        Ok(ending) if order.settings.pull_lists && pull_list::is_list(name, ending, size) => {
            return list(&order, file, checksum);
        }
        // A bundle that has to be proven first may have to wait for a file.
        Ok(_) | Err(_) if order.settings.signatures.is_some() => {}
        Ok(_) | Err(_) => tell!(order.is_told, info, bundle = %shown(name), "importing"),
    }
    let same_file = file.try_clone();
    let found = match admit::open(file, order.admission(checksum.clone())).await {
        Ok(opened) => Ok(opened),
        Err(admit::Failure::Bundle(error)) => Err(error),
        Err(admit::Failure::Checksum(failure)) => return Opened::Unverified(failure),
        // The daemon names no further proofs.
        Err(admit::Failure::Growing(_) | admit::Failure::Proof(_) | admit::Failure::Spool(_)) => {
            return Opened::NotNow;
        }
    };
    let found = match found {
        // Another file may have been opened than the file with this checksum.
        Ok(opened) if checksum.is_some() && *opened.bundle.identity() != order.version.identity => {
            return Opened::Unverified(sidecar::Failure::Changed);
        }
        Ok(opened) if order.is_receipt && opened.bundle.catalog().receipt().is_none() => {
            let why = admit::NO_RECEIPT;
            Err(bundle::Error {
                path: order.path(),
                fault: bundle::Fault::Unrecognised(why.to_owned()),
            })
        }
        Ok(opened) => match Read::of(opened, &order).await {
            Ok(read) => Ok(Box::new(read)),
            Err(failure) => return failure,
        },
        Err(error) => Err(error),
    };
    if checksum.is_some() {
        info!(bundle = %shown(name), "its checksum is right");
    }
    Opened::Read {
        found,
        is_reserved: !is_layout && same_file.is_ok_and(|file| folder::may_be_reserved(&file)),
    }
}

/// Reads a list of images, and checks it against its checksum.
fn list(order: &Order, file: File, checksum: Option<Digest>) -> Opened {
    let text = pull_list::read(file);
    if let (Ok(text), Some(expected)) = (&text, checksum) {
        let found = list_digest(text);
        if found != expected {
            return Opened::Unverified(sidecar::mismatch(order.base_name(), &expected, &found));
        }
        info!(bundle = %shown(&order.name), "its checksum is right");
    }
    Opened::List(text)
}

impl Read {
    /// Selects the records of a bundle, and keeps the evidence of its admission.
    async fn of(opened: admit::Opened, order: &Arc<Order>) -> Result<Read, Opened> {
        let order = Arc::clone(order);
        let select = move || Read::select(opened, &order);
        joined(tokio::task::spawn_blocking(select).await).map_err(Opened::NotKept)
    }

    fn select(mut opened: admit::Opened, order: &Order) -> std::io::Result<Read> {
        let mut policy = order.policy.clone();
        policy.naming.scopes = opened.scopes.take();
        // The base of a delta is looked up at the import, so it counts as present here.
        let selection = import::select(&opened.bundle.catalog().with_its_base(), &policy);
        let records = selection.taken().flat_map(|taken| &taken.records);
        let records: BTreeMap<String, Digest> = records
            .map(|record| (record.name.clone(), record.target.digest().clone()))
            .collect();
        let evidence = opened.evidence(Timestamp::now());
        if let Some(evidence) = evidence.clone().filter(|_| !opened.is_kept()) {
            admitted::keep(&order.settings.state_dir, evidence, |_| false)?;
        }
        Ok(Read {
            evidence,
            records,
            broken: broken(&selection),
            policy,
            verdict: opened.verdict,
            bundle: Arc::new(opened.bundle),
        })
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
pub(super) fn found(read: &Read, order: &Order, is_reserved: bool) -> Found {
    let catalog = read.bundle.catalog();
    let stands_for = catalog.receipt().filter(|_| order.is_receipt);
    let is_cut = matches!(catalog.ending, bundle::Ending::Truncated(_));
    Found {
        records: read.records.clone(),
        unfinished: read.unfinished(),
        // A program that writes with pauses leaves such files in between, and no process has them
        // open then.
        may_go_on: is_cut || read.broken.is_some() && is_reserved,
        broken: read.broken.clone(),
        catalog: content(catalog, order.is_receipt),
        stands_for: stands_for.map(|of| StandsFor {
            bundle: of.bundle.clone(),
            identity: of.identity.clone(),
            made_at: of.made_at,
            rolled_back_at: of.rolled_back_at,
            by_hand: of.by_hand,
            catalog: Some(of.catalog.clone()),
            lease: lease::of_receipt(&ledger::label_name(&order.name), &catalog.digest),
        }),
        verdict: read.verdict.clone(),
    }
}

/// Returns the digest by which the rules and the ledger know the content of a file.
fn content(catalog: &Catalog, is_receipt: bool) -> Digest {
    match is_receipt {
        true => catalog.stood_for().clone(),
        false => catalog.digest.clone(),
    }
}

/// Returns why the rules do not allow a list of images with this digest, or `None` if they do.
pub(super) fn distrust(order: &Order, catalog: &Digest) -> Option<String> {
    if order.settings.signatures == Some(Signatures::Require) {
        return Some(admit::NO_LISTS.to_owned());
    }
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
        import::Error::Degraded(_) => (ErrorClass::Degraded, true),
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
        lost: match error {
            import::Error::Degraded(loss) => {
                loss.missing.iter().map(|(blob, _)| blob.digest.clone()).collect()
            }
            _ => Vec::new(),
        },
        unreachable: (report.cause == Some(import::Cause::Unreachable)).then(|| basics::chain(error)),
    }
}

/// Returns the result of an import, for decisions about the bundle.
pub(super) fn landed(
    imported: &import::Imported,
    bundle: Option<&Bundle>,
    order: &Order,
    kept: Option<String>,
) -> Option<Landed> {
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
        catalog: content(bundle.catalog(), order.is_receipt),
        is_read_back: order.makes_receipt && kept.is_none() && is_whole(imported),
        kept,
        is_delta: bundle.catalog().relies_on.is_some(),
        outcome: report.outcome,
        has_landed: report.landed(),
        images: report.images.iter().map(image).collect(),
        closures: closures.collect(),
        duration_ms: report.duration_ms,
        sent_bytes: report.blobs.sent_bytes,
        is_bundles_fault: report.cause == Some(import::Cause::Bundle),
        stopped: stopped.as_ref().map(|error| stop(error, report)),
        forecast: report.space.clone(),
        skipped: match order.is_receipt {
            true => releases::skipped_by_receipt(bundle.catalog(), &order.policy.wanted),
            false => releases::skipped(bundle.catalog(), selection),
        },
        release: bundle.catalog().release.clone(),
    })
}

fn broken(selection: &Selection) -> Option<String> {
    selection.choices.iter().find_map(|choice| match &choice.verdict {
        import::Verdict::Broken(problems) => Some(format!(
            "{}: {}",
            choice.label,
            import::result::in_short(problems)
        )),
        import::Verdict::Take(_) | import::Verdict::Skip(_) | import::Verdict::Forbidden(_) => None,
    })
}

/// An import that was carried out.
pub(super) struct Ended {
    pub(super) imported: import::Imported,
    /// The reason why there is no receipt, although the settings ask for one.
    pub(super) kept: Option<String>,
}

/// Imports a bundle, and adds the records that landed to the evidence of its admission. `withheld`
/// are the names that the bundle may not have. The outer error is that of the evidence.
pub(super) async fn import_with_evidence(
    order: Arc<Order>,
    ready: Ready,
    intent: Intent,
    withheld: BTreeSet<String>,
    counters: Arc<Counters>,
) -> std::io::Result<Result<Ended, import::Error>> {
    let evidence = ready.evidence.clone();
    let state_dir = order.settings.state_dir.clone();
    let result = import(order, ready, intent, counters).await;
    if let (Some(evidence), Ok(Ended { imported, .. })) = (evidence, &result) {
        let evidence = evidence.with_landed(imported.result.landed_records());
        let keep = move || admitted::keep(&state_dir, evidence, |name| withheld.contains(name));
        joined(tokio::task::spawn_blocking(keep).await)?;
    }
    Ok(result)
}

/// Imports a bundle, and makes its receipt if the settings ask for that. The counters show its
/// progress meanwhile.
async fn import(
    order: Arc<Order>,
    Ready { bundle, policy, .. }: Ready,
    mut intent: Intent,
    counters: Arc<Counters>,
) -> Result<Ended, import::Error> {
    let lease_id = bundle_id(&ledger::label_name(&order.name));
    let progress = Reporter::start(shown(&order.name), Doing::Sending, Arc::clone(&counters));
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
    let client = &order.runtime.client;
    if order.is_receipt {
        let name = ledger::label_name(&order.name);
        receipts::hold(client, &bundle, &name, &policy).await?;
    }
    let imported = import::import(client, &bundle, &policy, &intent, &lease_id, false, &progress).await?;
    if !order.makes_receipt || !is_whole(&imported) {
        return Ok(Ended { imported, kept: None });
    }
    let kept = keep(&order, &bundle, &policy, &imported, &counters).await.err();
    Ok(Ended { imported, kept })
}

/// Returns true if all images of a bundle are in place.
fn is_whole(imported: &import::Imported) -> bool {
    imported.stopped.is_none()
        && matches!(
            imported.result.outcome,
            import::Outcome::Imported | import::Outcome::Unchanged
        )
}

/// Makes the receipt of a bundle that is in place. Returns why there is none.
async fn keep(
    order: &Order,
    bundle: &Arc<Bundle>,
    policy: &Policy,
    imported: &import::Imported,
    counters: &Counters,
) -> Result<(), String> {
    let folder = order.images_dir.clone();
    receipts::may_remove(&folder, order.in_folder(), bundle.identity())?;
    if imported.plan.leaves_names() {
        let why = "other bundles, another program or the configuration keep some of its names from it";
        return Err(why.to_owned());
    }
    let of = receipts::Of {
        bundle,
        records: &imported.result.landed_records().collect(),
        name: &ledger::label_name(&order.name),
        by_hand: false,
        nameless: None,
        policy,
    };
    // A read blob is progress, so the job keeps its lane.
    let note = |size| counters.note_read(size);
    receipts::make(&order.runtime.client, of, &order.settings, &order.pace, note)
        .await
        .map(drop)
        .map_err(|error| basics::chain(&error))
}

/// Pulls the images of a list one by one. A failed pull does not stop the rest.
pub(super) async fn pull(order: Arc<Order>, text: String) -> Pulled {
    let name = &order.name;
    info!(bundle = %shown(name), "pulling the images of a list");
    let naming = order.settings.naming();
    let source = order.source();
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

/// The checksum that a file must have.
enum Expected {
    Sum(Digest),
    /// There is no checksum, and none is required.
    Nothing,
    /// The file with the checksum is still being written.
    NotNow,
}

/// Returns the checksum in the file beside a bundle.
fn checksum(order: &Order) -> Result<Expected, sidecar::Failure> {
    let (version, mode) = (&order.version, order.settings.checksums);
    if version.is_layout {
        return match mode {
            Checksums::Require => Err(sidecar::Failure::NoFile),
            Checksums::Off | Checksums::IfPresent => Ok(Expected::Nothing),
        };
    }
    let folder = Folder::open_dir(&order.images_dir).map_err(sidecar::Failure::Read)?;
    let sidecar = folder.open(&sidecar_of(order.in_folder()));
    if !is_as_listed(&sidecar, version) {
        return Ok(Expected::NotNow);
    }
    let expected = sidecar::expected(order.base_name(), sidecar, mode)?;
    Ok(expected.map_or(Expected::Nothing, Expected::Sum))
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

/// Returns the result of a thread. A panic in the thread becomes a panic of the job.
pub(super) fn joined<T>(thread: Result<T, JoinError>) -> T {
    thread.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
