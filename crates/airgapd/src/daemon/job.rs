//! What a job does: one file's way from an open descriptor into containerd.
//!
//! A job owns what it needs and gives back a value. It decides nothing that concerns another bundle, and knows neither
//! the roster nor the ledger: the loop gives the orders and writes down what came of them. Dropping a job at any await
//! loses nothing, as what it has moved is kept by the bundle's lease.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bundle::{Bundle, Identity};
use import::plan::UnpackWhen;
use import::unpack::Unpack;
use import::{Intent, Policy, Reference, Selection, Source, Verdict, bundle_id};
use oci_spec::image::Digest;
use tokio::task::JoinError;
use tracing::{error, info};

use super::telling::{shown, tell};
use crate::checksum::{self, sidecar_of};
use crate::config::{Checksums, Settings};
use crate::folder::{self, Ending, Folder, Observation, Refused, Writer};
use crate::ledger::{self, ImageEntry};
use crate::lists;
use crate::progress::{Counters, Progress};
use crate::roster::Version;
use crate::runtime::{self, Runtime};

/// What a job is to do, and with what.
#[derive(Debug)]
pub(super) struct Order {
    /// The file's name in the images folder.
    pub(super) name: OsString,
    /// The file as it was listed.
    pub(super) version: Version,
    pub(super) images_dir: PathBuf,
    /// The settings as they were when the job began.
    pub(super) settings: Arc<Settings>,
    pub(super) runtime: Runtime,
    pub(super) policy: Policy,
    pub(super) started: Instant,
    /// Whether the log says at the usual level that the file is begun with.
    pub(super) is_told: bool,
    /// Whether another bundle may be read at the same time that takes all that the limits allow.
    pub(super) is_beside_another: bool,
}

/// What came of opening a file.
pub(super) enum Opened {
    /// Its checksum is just being written.
    NotNow,
    /// Its checksum keeps it from being imported.
    Unverified(checksum::Failure),
    /// It was read: a bundle, or none, or a broken one.
    Read {
        found: Result<Box<Read>, bundle::Error>,
        /// It ends in zeros that may be room for the rest of it.
        is_reserved: bool,
    },
    /// A list of images to pull, or why it cannot be read.
    List(std::io::Result<String>),
}

/// A bundle whose catalog was read.
pub(super) struct Read {
    pub(super) bundle: Arc<Bundle>,
    /// The records it is going to write, and what they are to point at.
    pub(super) records: BTreeMap<String, Digest>,
    /// What keeps the first image of it that is not whole from being so.
    pub(super) broken: Option<String>,
}

/// What came of a list.
#[derive(Debug, Default)]
pub(super) struct Pulled {
    pub(super) images: Vec<ImageEntry>,
    pub(super) problems: Vec<String>,
}

impl Order {
    pub(super) fn path(&self) -> PathBuf {
        self.images_dir.join(&self.name)
    }

    /// How long the job has been at it.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Checks a file against its checksum where `is_checked` does not say that this was done before, and reads what it holds.
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
        Ok(ending) if order.settings.pull_lists && lists::is_list(name, ending, size) => {
            return Opened::List(lists::read(file));
        }
        Ok(_) | Err(_) => tell!(order.is_told, info, bundle = %shown(name), "importing"),
    }
    let limits = match order.is_beside_another {
        true => order.settings.limits.beside_another(),
        false => order.settings.limits.clone(),
    };
    let same_file = file.try_clone();
    let found = read_bundle(file, &order, limits, is_layout).await;
    Opened::Read {
        found,
        is_reserved: !is_layout && same_file.is_ok_and(|file| folder::may_be_reserved(&file)),
    }
}

/// Whether what was read looks like an upload that goes on later: a program that writes in several goes leaves such
/// files in between, and nobody has it open then.
pub(super) fn may_go_on(found: &Result<Box<Read>, bundle::Error>, is_reserved: bool) -> bool {
    let is_cut = match found {
        Ok(read) => matches!(read.bundle.catalog().ending, bundle::Ending::Truncated(_)),
        Err(error) => matches!(
            error.fault,
            bundle::Fault::Truncated(_) | bundle::Fault::CompressedCut { .. }
        ),
    };
    let is_whole = found.as_ref().is_ok_and(|read| read.broken.is_none());
    is_cut || !is_whole && is_reserved
}

impl Read {
    fn of(bundle: Bundle, policy: &Policy) -> Read {
        // Whether a delta's base is there is found out when it is imported.
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

    /// Why an archive without a proper end is taken for an upload that was cut off. Without the mark at its end it has
    /// to hold every blob that its images refer to.
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

/// Imports a bundle. How far it has come can be read from the counters meanwhile.
pub(super) async fn import(
    order: Arc<Order>,
    bundle: Arc<Bundle>,
    mut intent: Intent,
    counters: Arc<Counters>,
) -> Result<import::Imported, import::Error> {
    let lease_id = bundle_id(&ledger::label_name(&order.name));
    let progress = Progress::counting(shown(&order.name), counters);
    if order.settings.unpack == Unpack::BeforeRecord {
        let unpacker = runtime::unpacker(&order.settings, &order.runtime).await?;
        intent.unpack = Some((unpacker, UnpackWhen::BeforeRecord));
    }
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

/// Has the images of a list pulled, one after the other; one that cannot be had spares the others.
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
    for reference in lists::parse(&text, &naming) {
        if reference.as_ref().is_ok_and(is_excluded) {
            continue;
        }
        let provided = match reference {
            Ok(reference) => lists::provide(&order.runtime.client, &reference, &naming, &source)
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

/// The identity of a list's content.
pub(super) fn list_digest(text: &str) -> Digest {
    basics::digest::sha256(text.as_bytes())
}

/// What came of a look at a bundle's checksum.
enum Verified {
    /// It is right, or there is none to be held against.
    Yes,
    /// It is just being written.
    NotNow,
}

/// Checks a file against the checksum beside it.
async fn verify(order: &Order, file: &File) -> Result<Verified, checksum::Failure> {
    let (name, version, mode) = (&order.name, &order.version, order.settings.checksums);
    if version.is_layout {
        return match mode {
            Checksums::Require => Err(checksum::Failure::NoFile),
            Checksums::Off | Checksums::IfPresent => Ok(Verified::Yes),
        };
    }
    let folder = Folder::open_dir(&order.images_dir).map_err(checksum::Failure::Read)?;
    let sidecar = folder.open(&sidecar_of(name));
    if !is_as_listed(&sidecar, version) {
        return Ok(Verified::NotNow);
    }
    let base_name = std::path::Path::new(name).file_name().unwrap_or(name);
    let Some(expected) = checksum::expected(base_name, sidecar, mode)? else {
        return Ok(Verified::Yes);
    };
    let file = file.try_clone().map_err(checksum::Failure::Read)?;
    let identity = checksum::check(file, base_name, expected).await?;
    if identity != version.identity {
        return Err(checksum::Failure::Changed);
    }
    info!(bundle = %shown(name), "its checksum is right");
    Ok(Verified::Yes)
}

/// Whether a sidecar is what the listing says, and nobody is writing it.
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

/// Opens what was listed. `None` where it is another one by now.
pub(super) fn open_listed(folder: &Folder, name: &OsStr, version: &Version) -> Result<Option<File>, Refused> {
    if !version.is_layout {
        return folder.open(name).map(Some);
    }
    let (layout, identity) = folder.open_layout(name)?;
    Ok((identity == version.identity).then_some(layout))
}

/// Reads the catalog of an open bundle and looks at what it writes. That blocks and takes time, so it happens off the
/// loop's thread.
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

/// Gives the result of a thread. A panic in the thread is a panic of the job.
pub(super) fn joined<T>(thread: Result<T, JoinError>) -> T {
    thread.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
