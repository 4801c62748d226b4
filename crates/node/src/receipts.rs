//! Receipts: the folder `receipts` in the state folder.
//!
//! A receipt stands for a bundle whose file may go. It is a delta without layers: the documents of
//! the images that this node took, and the bundle that they came from. A lasting lease holds the
//! layers in containerd, so a removed record comes back without a byte. The daemon reads the folder
//! like an images folder that comes after all others.
//!
//! This module makes receipts, and removes the files that they stand for. It decides neither.

mod removal;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File};
use std::io::{self, BufWriter, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use basics::digest;
use bundle::write::{Draft, DraftImage, Layout, Output, WriteError, write};
use bundle::{
    BlobRef, Bundle, Catalog, Compression, DeltaBase, Identity, Image, Limits, Receipt, SkippedMembers,
};
use containerd::{Client, ImageUpdate};
use import::content::digest_in_containerd;
use import::names::DigestReferences;
use import::select::{NamedTarget, Taken};
use import::{Intent, Naming, Pace, Policy, Silent, Verdict, labels, lease};
use jiff::Timestamp;
use oci_spec::image::Digest;
use tracing::debug;

pub(crate) use self::removal::{is_of_removal, may_remove, remove, undo_removals, why_folder_keeps};
use crate::images::folder::{Listed, is_candidate};
use crate::releases;
use crate::settings::Settings;
use crate::state::ledger::{Ledger, label_name};

/// Name of the folder in the state folder.
const FOLDER: &str = "receipts";

/// Longest name of a receipt's file in bytes, without the id of the content. Its removal needs a
/// longer name.
const LONGEST_NAME: usize = 200;

/// Most receipts of one name that are read for the base of a delta. Each has the documents of a
/// bundle.
const MOST_BASES: usize = 16;

/// Age from which an unfinished receipt counts as left by a program that was killed. A receipt has
/// documents only, and is written in seconds.
const LEFT_AFTER: Duration = Duration::from_secs(3600);

/// Returns the folder of receipts.
pub fn folder(settings: &Settings) -> PathBuf {
    settings.state_dir.join(FOLDER)
}

/// Start of the name of a receipt whose bundle lay outside the images folders. A short id of the
/// content follows, and then the name of the bundle.
const BY_HAND: &str = "by-hand-";

/// Start of the name of a receipt whose bundle belongs to a release, in the same form. Two releases
/// may have bundles of one name, and `keepReleases` keeps the receipts of both.
const OF_RELEASE: &str = "of-release-";

/// Returns the name of the receipt of a bundle of an images folder, by its name in labels. A path
/// becomes one name. Two bundles with the same name have the same receipt: the later one replaces
/// the earlier one.
fn file_name(bundle: &str) -> String {
    let name = bundle.replace('%', "%25").replace('/', "%2F");
    match name.len() <= LONGEST_NAME && is_candidate(OsStr::new(&name)) {
        true => name,
        false => format!("{}.tar", digest::short(bundle.as_bytes())),
    }
}

/// Returns a name of a receipt with an id of the bundle's content. So each of several bundles with
/// one name has a receipt.
fn file_name_with_content(start: &str, bundle: &str, content: &Digest) -> String {
    let id = digest::short(content.as_ref().as_bytes());
    format!("{start}{id}-{}", file_name(bundle))
}

/// Returns the name of the bundle in the name of a receipt that has an id of the content.
fn after_id(receipt: &str) -> Option<&str> {
    let mut starts = [BY_HAND, OF_RELEASE].into_iter();
    let rest = starts.find_map(|start| receipt.strip_prefix(start))?;
    let (id, name) = rest.split_once('-')?;
    let is_id = id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then_some(name)
}

/// Returns true if a receipt with this file name is that of a bundle with this name in labels.
/// Bundles from elsewhere count by their file names.
pub fn is_of(receipt: &OsStr, bundle: &str) -> bool {
    let Some(receipt) = receipt.to_str() else {
        return false;
    };
    let name = file_name(bundle);
    receipt == name || after_id(receipt) == Some(&name)
}

/// Returns the paths of all receipts, sorted. A folder that does not exist has none.
///
/// # Errors
///
/// Returns the error of the folder.
pub fn all_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
    // A receipt that is being written has a hidden name.
    let is_whole = |name: &io::Result<OsString>| {
        let name = name.as_ref();
        name.map_or(true, |name| !name.as_bytes().starts_with(b"."))
    };
    let paths: io::Result<Vec<PathBuf>> = names
        .filter(is_whole)
        .map(|name| Ok(folder.join(name?)))
        .collect();
    let mut paths = paths?;
    paths.sort();
    Ok(paths)
}

/// Removes the receipts that killed programs have left unfinished in the folder of receipts.
/// `entries` are those of its listing.
pub(crate) fn remove_unfinished(folder: &Path, entries: &[Listed]) {
    let now = SystemTime::now();
    for entry in entries
        .iter()
        .filter(|entry| is_left(&entry.name, &entry.identity, now))
    {
        let path = folder.join(&entry.name);
        match std::fs::remove_file(&path) {
            Ok(()) => debug!("removed {}, which a killed program has left", path.display()),
            Err(error) => debug!("cannot remove {}: {error}", path.display()),
        }
    }
}

/// Returns true if a file has the name of an unfinished receipt ([`Output`]), and did not change
/// for long.
fn is_left(name: &OsStr, identity: &Identity, now: SystemTime) -> bool {
    let bytes = name.as_bytes();
    let is_unfinished = bytes.starts_with(b".") && bytes.ends_with(b".tmp") && !is_of_removal(name);
    let changed = u64::try_from(identity.ctime_ns).map(Duration::from_nanos);
    let age = changed.ok().and_then(|changed| {
        now.duration_since(SystemTime::UNIX_EPOCH)
            .ok()?
            .checked_sub(changed)
    });
    is_unfinished && age.is_some_and(|age| age >= LEFT_AFTER)
}

/// Returns the bundle that a receipt stands for. `None` if the file is no receipt that this version
/// can read. The call blocks.
pub fn stood_for(receipt: &Path, limits: &Limits) -> Option<Receipt> {
    let receipt = Bundle::open(receipt, limits).ok()?;
    receipt.catalog().receipt().cloned()
}

/// Returns true if the folder may have a receipt that no daemon has read yet. Its images may need
/// evidence that no entry of the ledger names.
pub fn is_any_unread(settings: &Settings, ledger: &Ledger) -> bool {
    let entries = match std::fs::read_dir(folder(settings)) {
        Ok(entries) => entries,
        Err(error) => return error.kind() != ErrorKind::NotFound,
    };
    entries.into_iter().any(|entry| {
        let Ok(entry) = entry else { return true };
        let is_hidden = entry.file_name().as_bytes().starts_with(b".");
        !is_hidden && !ledger.knows_receipt(entry.path().as_os_str())
    })
}

/// The reason why a bundle has no receipt.
#[derive(Debug, thiserror::Error)]
pub enum Unmade {
    /// An image of the bundle is not whole in containerd, or cannot be read there.
    #[error("{0}")]
    NotWhole(String),
    /// No image of the bundle is in containerd under a name of its own.
    #[error("this node has taken no image of the bundle")]
    Nothing,
    /// containerd does not answer.
    #[error(transparent)]
    Containerd(#[from] containerd::Error),
    /// The receipt cannot be written.
    #[error("cannot write the receipt {}", path.display())]
    Write {
        /// Path of the receipt.
        path: PathBuf,
        /// The cause.
        source: WriteError,
    },
}

/// The bundle that a receipt is made of.
#[derive(Clone, Debug)]
pub struct Of<'a> {
    /// The bundle.
    pub bundle: &'a Arc<Bundle>,
    /// The names and targets of the records that are in place by its import. The receipt has no
    /// other image and no other name.
    pub records: &'a BTreeMap<String, Digest>,
    /// Its name in labels, or its file name if it lies outside the images folders.
    pub name: &'a str,
    /// True if it lies outside the images folders.
    pub by_hand: bool,
    /// Size in bytes of a bundle that came from a pipe or from standard input.
    pub nameless: Option<u64>,
    /// The rules by which its images were selected.
    pub policy: &'a Policy,
}

impl Of<'_> {
    /// Returns the name of the receipt.
    fn file_name(&self) -> String {
        let catalog = self.bundle.catalog();
        let with_content = |start| file_name_with_content(start, self.name, &catalog.digest);
        match (self.by_hand, &catalog.release) {
            (true, _) => with_content(BY_HAND),
            // No images folder has two bundles of one name at a time.
            (false, None) => file_name(self.name),
            (false, Some(_)) => with_content(OF_RELEASE),
        }
    }

    /// Returns the receipt without the bases of a delta.
    fn receipt(&self) -> Receipt {
        Receipt {
            // A bundle may claim to be a receipt. Only files of the folder of receipts are
            // believed.
            catalog: self.bundle.catalog().digest.clone(),
            bundle: self.name.to_owned(),
            identity: self.identity(),
            made_at: Timestamp::now().as_second(),
            rolled_back_at: None,
            by_hand: self.by_hand,
            bases: Vec::new(),
            skipped: None,
        }
    }

    /// Returns the identity of the bundle's file. Without a file it has the size only.
    fn identity(&self) -> Identity {
        match self.nameless {
            None => self.bundle.identity().clone(),
            Some(size) => Identity {
                device: 0,
                inode: 0,
                size,
                mtime_ns: 0,
                ctime_ns: 0,
            },
        }
    }
}

/// Makes the receipt of a bundle, in the place of an earlier receipt of the same name. Every blob
/// that an image needs is first read back from containerd, at a pace, and compared with its digest.
/// `note` hears of each blob that was right. The receipt is on the disk when the call returns.
///
/// Safe to cancel: without the whole receipt there is none.
///
/// # Errors
///
/// Returns the reason. Nothing was written then.
pub async fn make(
    client: &Client,
    of: Of<'_>,
    settings: &Settings,
    pace: &Pace,
    note: impl Fn(u64),
) -> Result<PathBuf, Unmade> {
    let drawn = drawn(&of, settings).await?;
    for (digest, size) in &drawn.blobs {
        read_back(client, digest, pace).await?;
        note(*size);
    }
    let path = folder(settings).join(of.file_name());
    let state = settings.state_dir.clone();
    let (client, runtime) = (client.clone(), tokio::runtime::Handle::current());
    let target = path.clone();
    let writing = tokio::task::spawn_blocking(move || {
        let read = |digest: &Digest, size| runtime.block_on(client.read_blob(digest, size));
        put(&drawn.draft, &state, &target, read)
    });
    let written = writing.await;
    written
        .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
        .map_err(|source| Unmade::Write {
            path: path.clone(),
            source,
        })?;
    Ok(path)
}

/// Puts the blobs of a receipt under its lease, and then marks the records of its images. This is
/// what the daemon does with a receipt that it finds. An import by hand has left `mark` on the
/// records, which then is the mark of the receipt.
///
/// # Errors
///
/// Returns the reason in words. The daemon tries it again.
pub async fn take(
    client: &Client,
    path: &Path,
    policy: &Policy,
    intent: &Intent,
    mark: Option<&str>,
    limits: &Limits,
) -> Result<(), String> {
    let (file, limits) = (path.to_owned(), limits.clone());
    let opening = tokio::task::spawn_blocking(move || Bundle::open(&file, &limits));
    let opened = opening.await;
    let opened = opened.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    let receipt = Arc::new(opened.map_err(|error| basics::chain(&error))?);
    let name = label_name(path.as_os_str());
    let text = |error: import::Error| basics::chain(&error);
    hold(client, &receipt, &name, policy).await.map_err(text)?;
    let id = import::bundle_id(&name);
    let imported = import::import(client, &receipt, policy, intent, &id, false, &Silent).await;
    let imported = imported.map_err(text)?;
    if let Some(error) = imported.stopped {
        return Err(text(error));
    }
    if let Some(mark) = mark {
        let records = imported.result.landed_records();
        let names: BTreeSet<String> = records.map(|(name, _)| name).collect();
        let changed = replace_mark(client, names, (mark, &name)).await;
        changed.map_err(|error| basics::chain(&error))?;
    }
    Ok(())
}

/// Replaces the mark of an import by hand on these records. A receipt takes off its own mark only.
async fn replace_mark(
    client: &Client,
    names: BTreeSet<String>,
    (before, now): (&str, &str),
) -> Result<(), containerd::Error> {
    for record in client.images_named(names.iter().map(String::as_str)).await? {
        if record.labels.get(labels::IMPORTED).map(String::as_str) != Some(before) {
            continue;
        }
        let update = ImageUpdate {
            target: None,
            labels: [(labels::IMPORTED.to_owned(), Some(now.to_owned()))].into(),
        };
        client.update_image(&record.name, &update).await?;
    }
    Ok(())
}

/// Puts the blobs of a receipt under its lease, before any record gets its label. The lease holds
/// absent blobs too, which come back with another bundle. `name` is the receipt's name in labels.
///
/// # Errors
///
/// Returns the client's error.
pub(crate) async fn hold(
    client: &Client,
    receipt: &Arc<Bundle>,
    name: &str,
    policy: &Policy,
) -> Result<(), import::Error> {
    let (bundle, policy) = (Arc::clone(receipt), policy.clone());
    let selecting = tokio::task::spawn_blocking(move || {
        let selection = import::select(&bundle.catalog().with_its_base(), &policy);
        let blobs = selection.taken().flat_map(|taken| &taken.closure.blobs);
        blobs.map(|blob| blob.digest.clone()).collect::<HashSet<Digest>>()
    });
    let blobs = selecting.await;
    let blobs = blobs.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    let content = &receipt.catalog().digest;
    lease::hold_for_receipt(client, (name, content), blobs).await?;
    Ok(())
}

/// A receipt before it is written.
struct Drawn {
    draft: Draft,
    /// Every blob that its images need, with its size.
    blobs: Vec<(Digest, u64)>,
}

/// Draws the receipt on a thread of its own, since a selection takes a while.
async fn drawn(of: &Of<'_>, settings: &Settings) -> Result<Drawn, Unmade> {
    let (bundle, policy, receipt) = (Arc::clone(of.bundle), of.policy.clone(), of.receipt());
    let (records, folder, limits) = (of.records.clone(), folder(settings), settings.limits.clone());
    let drawing = tokio::task::spawn_blocking(move || {
        let catalog = bundle.catalog().with_its_base();
        let bases = |layers: &[BlobRef]| bases(&catalog, layers, &folder, &limits);
        draw(&catalog, receipt, &records, &policy, bases)
    });
    let drawn = drawing.await;
    drawn.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Draws the receipt of a bundle, of the images that are in place under these `records`. `bases`
/// tells which of these layers the bundle itself lacks.
fn draw(
    catalog: &Catalog,
    receipt: Receipt,
    records: &BTreeMap<String, Digest>,
    policy: &Policy,
    bases: impl FnOnce(&[BlobRef]) -> Vec<DeltaBase>,
) -> Result<Drawn, Unmade> {
    let selection = import::select(catalog, policy);
    // The targets of the images that this node took, with their names.
    let mut taken: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let (mut needed, mut blobs) = (HashSet::new(), Vec::new());
    for choice in &selection.choices {
        let image = match &choice.verdict {
            Verdict::Take(image) => image,
            Verdict::Broken(problems) => {
                let why = import::result::in_short(problems);
                return Err(Unmade::NotWhole(format!("{}: {why}", choice.label)));
            }
            Verdict::Forbidden(why) => return Err(Unmade::NotWhole(format!("{}: {why}", choice.label))),
            Verdict::Skip(_) => continue,
        };
        let names = names_in_place(image, records);
        if names.is_empty() {
            continue;
        }
        taken
            .entry(choice.target.digest().as_ref())
            .or_default()
            .extend(names);
        for blob in &image.closure.blobs {
            if needed.insert(blob.digest.clone()) {
                blobs.push((blob.digest.clone(), blob.size));
            }
        }
    }
    if taken.is_empty() {
        return Err(Unmade::Nothing);
    }
    // The import of the receipt adds what follows from the settings of its time.
    let naming = Naming {
        aliases: Vec::new(),
        digest_references: DigestReferences::None,
        ..policy.naming.clone()
    };
    let mut images = Vec::new();
    for (target, in_place) in taken {
        let same = |image: &&Image| image.root.descriptor.digest().as_ref() == target;
        let mut same: Vec<(Vec<String>, &Image)> = catalog
            .images
            .iter()
            .filter(same)
            .map(|image| {
                let names = naming
                    .names_of(&image.names, image.root.descriptor.digest())
                    .references;
                let names = names.iter().map(ToString::to_string);
                (names.filter(|name| in_place.contains(name)).collect(), image)
            })
            .collect();
        // If only names that follow from the settings are in place, the image has those.
        if same.iter().all(|(names, _)| names.is_empty())
            && let Some((names, _)) = same.first_mut()
        {
            *names = in_place;
        }
        same.retain(|(names, _)| !names.is_empty());
        images.extend(
            same.into_iter()
                .map(|(names, image)| DraftImage::part(names, &image.root, &needed)),
        );
    }
    let mut draft = Draft {
        images,
        ..Draft::default()
    };
    if let Some(release) = &catalog.release {
        draft.stay_in(release);
    }
    let skipped = releases::skipped(catalog, &selection);
    draft.stand_for(Receipt {
        skipped: (!skipped.is_empty()).then(|| SkippedMembers {
            platforms: releases::platforms_of(&policy.wanted),
            names: skipped.into_iter().map(|member| member.name).collect(),
        }),
        ..receipt
    });
    if let Some(reliance) = &mut draft.relies_on
        && let Some(receipt) = &mut reliance.receipt
    {
        receipt.bases = bases(&reliance.blobs);
    }
    Ok(Drawn { draft, blobs })
}

/// Returns the names of an image's records that are in place.
fn names_in_place(image: &Taken, records: &BTreeMap<String, Digest>) -> Vec<String> {
    let is_in_place = |record: &&NamedTarget| {
        records
            .get(&record.name)
            .is_some_and(|target| target == record.target.digest())
    };
    let names = image.records.iter().filter(is_in_place);
    names.map(|record| record.name.clone()).collect()
}

/// Returns the layers that a delta lacks, by the base that has them. A base may have been a delta
/// itself. Its receipt then names the base of some layers.
fn bases(catalog: &Catalog, layers: &[BlobRef], folder: &Path, limits: &Limits) -> Vec<DeltaBase> {
    let Some(reliance) = &catalog.relies_on else {
        return Vec::new();
    };
    let lacking: HashSet<&Digest> = reliance.blobs.iter().map(|blob| &blob.digest).collect();
    let of_base: Vec<Receipt> = receipts_of(folder, &reliance.base)
        .into_iter()
        .filter_map(|path| stood_for(&path, limits))
        .collect();
    let mut bases: BTreeMap<&str, Vec<Digest>> = BTreeMap::new();
    for layer in layers.iter().map(|layer| &layer.digest) {
        if !lacking.contains(layer) {
            continue;
        }
        // The bundle may itself be a copy of a receipt.
        let mut known = reliance.receipt.iter().chain(&of_base);
        let base = known.find_map(|receipt| receipt.base_of(layer));
        bases
            .entry(base.unwrap_or(&reliance.base))
            .or_default()
            .push(layer.clone());
    }
    let base = |(name, blobs): (&str, Vec<Digest>)| DeltaBase {
        name: name.to_owned(),
        blobs,
    };
    bases.into_iter().map(base).collect()
}

/// Returns the paths of the receipts of all bundles with this name, at most [`MOST_BASES`].
fn receipts_of(folder: &Path, bundle: &str) -> Vec<PathBuf> {
    let receipts = all_in(folder).unwrap_or_default().into_iter();
    let is_of = |path: &PathBuf| path.file_name().is_some_and(|name| is_of(name, bundle));
    receipts.filter(is_of).take(MOST_BASES).collect()
}

/// Writes a receipt anew as one of a roll back at `now`, in seconds since 1970. The daemon then
/// takes it for a file that came at that time. The call blocks. The receipt is on the disk
/// when the call returns, and any error leaves it as it was.
///
/// # Errors
///
/// Returns why the file is no receipt, or cannot be written.
pub fn roll_back(path: &Path, now: i64, limits: &Limits) -> Result<(), NotRolledBack> {
    let receipt = Bundle::open(path, limits).map_err(|source| NotRolledBack::Unread(source.into()))?;
    let catalog = receipt.catalog();
    let of = catalog.receipt().ok_or(NotRolledBack::NoReceipt)?;
    let mut draft = Draft {
        images: catalog
            .with_its_base()
            .images
            .iter()
            .map(DraftImage::of)
            .collect(),
        ..Draft::default()
    };
    if let Some(release) = &catalog.release {
        draft.stay_in(release);
    }
    draft.stand_for(Receipt {
        rolled_back_at: Some(now),
        ..of.clone()
    });
    let mut feed = |blob: &BlobRef| {
        let blob = receipt.blob(&blob.digest);
        let blob = blob.ok_or_else(|| io::Error::other("the receipt lacks a document"))?;
        Ok(blob.open(0)? as Box<dyn Read>)
    };
    let layout = Layout::of(&draft)?;
    let mut output = Output::create(path)?;
    write(&layout, Compression::None, BufWriter::new(&mut output), &mut feed)?;
    Ok(output.commit()?)
}

/// The reason why a receipt does not get the time of a roll back.
#[derive(Debug, thiserror::Error)]
pub enum NotRolledBack {
    /// The file cannot be read as a bundle.
    #[error(transparent)]
    Unread(Box<bundle::Error>),
    /// The file is a bundle, and no receipt that this version can read.
    #[error("the file is no receipt")]
    NoReceipt,
    /// The new receipt cannot be written.
    #[error(transparent)]
    Unwritten(#[from] WriteError),
}

async fn read_back(client: &Client, digest: &Digest, pace: &Pace) -> Result<(), Unmade> {
    match digest_in_containerd(client, digest, pace).await {
        Ok(found) if found == *digest => Ok(()),
        Ok(found) => Err(Unmade::NotWhole(format!(
            "blob {digest} is damaged in containerd: its bytes have the digest {found}"
        ))),
        Err(containerd::Error::Gone { .. }) => {
            Err(Unmade::NotWhole(format!("blob {digest} is not in containerd")))
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes a receipt, whose documents `read` gets from containerd.
fn put(
    draft: &Draft,
    state: &Path,
    path: &Path,
    read: impl Fn(&Digest, u64) -> Result<Vec<u8>, containerd::Error>,
) -> Result<(), WriteError> {
    let layout = Layout::of(draft)?;
    let made = DirBuilder::new().mode(0o700).create(state.join(FOLDER));
    let made = match made {
        Ok(()) => File::open(state).and_then(|state| state.sync_all()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    };
    made.map_err(|source| WriteError::Target {
        action: "create the folder of receipts",
        source,
    })?;
    let mut feed = |blob: &bundle::BlobRef| {
        let bytes = read(&blob.digest, blob.size).map_err(io::Error::other)?;
        Ok(Box::new(io::Cursor::new(bytes)) as Box<dyn Read>)
    };
    let mut output = Output::create(path)?;
    write(&layout, Compression::None, BufWriter::new(&mut output), &mut feed)?;
    output.commit()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn each_bundle_has_a_receipt_of_its_own_name() {
        let long = "x".repeat(255);
        let table = [
            ("shop.tar", "shop.tar"),
            ("a/shop.tar", "a%2Fshop.tar"),
            ("a%2Fshop.tar", "a%252Fshop.tar"),
            ("/os/shop.tar", "%2Fos%2Fshop.tar"),
        ];
        for (bundle, expected) in table {
            assert_eq!(file_name(bundle), expected);
        }
        // The daemon would take some of these for unfinished uploads.
        for odd in [
            long.as_str(),
            ".hidden.tar",
            "shop.tar.part",
            "#shop.tar",
            "shop.sha256",
        ] {
            assert_eq!(file_name(odd), format!("{}.tar", digest::short(odd.as_bytes())));
        }
        let folder = tempfile::tempdir().unwrap();
        let contents = [digest::sha256(b"1"), digest::sha256(b"2")];
        let mut receipts = [(BY_HAND, &contents[0]), (OF_RELEASE, &contents[1])]
            .map(|(start, content)| file_name_with_content(start, "shop.tar", content));
        receipts.sort();
        assert_ne!(receipts[0], receipts[1]);
        let other = file_name_with_content(BY_HAND, "my-shop.tar", &contents[0]);
        assert!(!is_of(OsStr::new("of-release-2-shop.tar"), "shop.tar"));
        for name in [receipts[0].as_str(), &receipts[1], "shop.tar", &other] {
            assert!(is_candidate(OsStr::new(name)), "{name}");
            fs::write(folder.path().join(name), "").unwrap();
        }
        fs::write(folder.path().join(".unfinished"), "").unwrap();
        let found = all_in(folder.path()).unwrap();
        assert_eq!(found.len(), 4);
        let found = receipts_of(folder.path(), "shop.tar");
        let expected = [receipts[0].as_str(), &receipts[1], "shop.tar"];
        assert_eq!(found, expected.map(|name| folder.path().join(name)));
        assert!(all_in(&folder.path().join("none")).unwrap().is_empty());
    }

    #[test]
    fn a_receipt_that_a_killed_program_has_left_unfinished_goes_after_an_hour() {
        use crate::images::folder::{Depth, Folder};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        // The name that a killed program leaves is that of `Output`.
        let output = Output::create(&path.join("shop.tar")).unwrap();
        let unfinished = output.temporary().file_name().unwrap().to_owned();
        let others = [".airgapd-going-shop.tmp", ".other", "by-hand.tmp", "shop.tar"];
        for other in others {
            fs::write(path.join(other), "").unwrap();
        }
        let entries = Folder::open_dir(path)
            .unwrap()
            .list(Depth::default())
            .unwrap()
            .entries;
        assert_eq!(entries.len(), others.len() + 1);
        remove_unfinished(path, &entries);
        assert!(output.temporary().exists(), "it may be under way");
        let later = SystemTime::now() + LEFT_AFTER;
        let left = entries
            .iter()
            .filter(|entry| is_left(&entry.name, &entry.identity, later));
        let left: Vec<&OsString> = left.map(|entry| &entry.name).collect();
        assert_eq!(left, [&unfinished]);
        let old = |entry: &Listed| Listed {
            identity: Identity {
                ctime_ns: 0,
                ..entry.identity.clone()
            },
            ..entry.clone()
        };
        remove_unfinished(path, &entries.iter().map(old).collect::<Vec<_>>());
        assert!(!output.temporary().exists());
        assert!(others.iter().all(|other| path.join(other).exists()));
    }

    #[test]
    fn a_bundle_that_claims_to_be_a_receipt_has_a_receipt_of_its_own_content() {
        use bundle::fixtures::{Image, Layout as Fixture};
        let folder = tempfile::tempdir().unwrap();
        let (plain, claim) = (folder.path().join("plain.tar"), folder.path().join("claim.tar"));
        let archive = Fixture::new().image(Image::new("registry.test/one:1").layer(b"layer"));
        fs::write(&plain, archive.build().to_bytes()).unwrap();
        let source = Bundle::open(&plain, &Limits::default()).unwrap();
        let mut draft = Draft {
            images: source.catalog().images.iter().map(DraftImage::of).collect(),
            ..Draft::default()
        };
        let claimed = digest::sha256(b"the catalog of a signed bundle");
        draft.stand_for(Receipt {
            catalog: claimed.clone(),
            bundle: "signed.tar".to_owned(),
            identity: source.identity().clone(),
            made_at: 1,
            rolled_back_at: None,
            by_hand: false,
            bases: Vec::new(),
            skipped: None,
        });
        let bundle = written(&draft, &source, &claim);
        assert_eq!(bundle.catalog().stood_for(), &claimed);
        let receipt = receipt_of(bundle, folder.path());
        assert_ne!(receipt.catalog, claimed);
    }

    /// Returns the receipt of a bundle, all of whose images are in place.
    fn receipt_of(bundle: Bundle, state_dir: &Path) -> Receipt {
        let (bundle, settings) = (
            Arc::new(bundle),
            Settings {
                state_dir: state_dir.to_owned(),
                ..Settings::default()
            },
        );
        let policy = crate::runtime::policy(&settings, None);
        let selection = import::select(&bundle.catalog().with_its_base(), &policy);
        let records = selection.taken().flat_map(|taken| &taken.records);
        let of = Of {
            bundle: &bundle,
            records: &records
                .map(|record| (record.name.clone(), record.target.digest().clone()))
                .collect(),
            name: "shop.tar",
            by_hand: false,
            nameless: None,
            policy: &policy,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let Ok(drawn) = runtime.block_on(drawn(&of, &settings)) else {
            panic!("the bundle has a receipt");
        };
        drawn.draft.relies_on.unwrap().receipt.unwrap()
    }

    /// Writes a draft with the documents of a bundle.
    fn written(draft: &Draft, source: &Bundle, path: &Path) -> Bundle {
        let mut feed = |blob: &bundle::BlobRef| {
            let blob = source.blob(&blob.digest).expect("the source has every document");
            Ok(blob.open(0)? as Box<dyn Read>)
        };
        let layout = Layout::of(draft).unwrap();
        let mut output = Output::create(path).unwrap();
        write(&layout, Compression::None, &mut output, &mut feed).unwrap();
        output.commit().unwrap();
        Bundle::open(path, &Limits::default()).unwrap()
    }

    /// `shop.tar` is a delta on `base.tar`, which was a delta on `os.tar` itself.
    #[test]
    fn a_layer_that_a_delta_lacks_is_of_the_base_that_has_it() {
        use bundle::fixtures::{Image, Layout as Fixture};
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let layers = [b"of os", b"of ba", b"of sh"];
        let image = layers
            .iter()
            .fold(Image::new("registry.test/one:1"), |image, layer| {
                image.layer(layer.as_slice())
            });
        let archive = Fixture::new().image(image).build();
        fs::write(path("whole.tar"), archive.to_bytes()).unwrap();
        let whole = Bundle::open(&path("whole.tar"), &Limits::default()).unwrap();
        let [first, second, third] = archive.images[0].manifests[0].layers.as_slice() else {
            panic!("the image has three layers");
        };
        let digests = [first.clone(), second.clone(), third.clone()];
        let draft = || Draft {
            images: whole.catalog().images.iter().map(DraftImage::of).collect(),
            ..Draft::default()
        };
        let mut delta = draft();
        delta.leave_out("base.tar", &digests[..2].iter().cloned().collect());
        written(&delta, &whole, &path("shop.tar"));
        let shop = || Bundle::open(&path("shop.tar"), &Limits::default()).unwrap();
        let base_of = |receipt: &Receipt| {
            digests
                .each_ref()
                .map(|digest| receipt.base_of(digest).map(str::to_owned))
        };
        let named = |bases: [Option<&str>; 3]| bases.map(|base| base.map(str::to_owned));
        let receipt = receipt_of(shop(), folder.path());
        let expected = named([Some("base.tar"), Some("base.tar"), None]);
        assert_eq!(base_of(&receipt), expected);

        // The receipt of the base tells what the base lacked.
        fs::create_dir(path(FOLDER)).unwrap();
        let mut of_base = draft();
        of_base.stand_for(Receipt {
            bases: vec![DeltaBase {
                name: "os.tar".to_owned(),
                blobs: vec![digests[0].clone()],
            }],
            bundle: "base.tar".to_owned(),
            ..receipt
        });
        written(&of_base, &whole, &path(FOLDER).join("base.tar"));
        let expected = named([Some("os.tar"), Some("base.tar"), None]);
        assert_eq!(base_of(&receipt_of(shop(), folder.path())), expected);

        // A copy of a receipt has no layer itself.
        let copy = receipt_of(
            Bundle::open(&path(FOLDER).join("base.tar"), &Limits::default()).unwrap(),
            folder.path(),
        );
        let expected = named([Some("os.tar"), Some("base.tar"), Some("base.tar")]);
        assert_eq!(base_of(&copy), expected);
    }
}
