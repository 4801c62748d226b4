//! Receipts: the folder `receipts` in the state folder.
//!
//! A receipt stands for a bundle whose file may go. It is a delta without layers: the documents of
//! the images that this node took, and the bundle that they came from. A lasting lease holds the
//! layers in containerd, so a removed record comes back without a byte. The daemon reads the folder
//! like an images folder that comes after all others.
//!
//! This module makes receipts, and removes the files that they stand for. It decides neither.

use std::collections::{BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File};
use std::io::{self, BufWriter, ErrorKind, Read};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use basics::digest;
use bundle::write::{Draft, DraftImage, Layout, Output, WriteError, write};
use bundle::{Bundle, Compression, Identity, Limits, Receipt};
use containerd::{Client, ImageUpdate};
use import::content::digest_in_containerd;
use import::names::DigestReferences;
use import::{Intent, Naming, Pace, Policy, Silent, Verdict, labels, lease};
use jiff::Timestamp;
use oci_spec::image::Digest;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};

use crate::images::folder::is_candidate;
use crate::settings::Settings;
use crate::state::ledger::{Ledger, label_name};
use crate::sys::{self, Probe};

/// Name of the folder in the state folder.
const FOLDER: &str = "receipts";

/// Longest name of a receipt's file in bytes. The temporary name of a file in progress is longer.
const LONGEST_NAME: usize = 200;

/// Start of the name that a bundle has while it is removed. Its own name follows.
const GOING: &str = ".airgapd-going-";

/// Returns the folder of receipts.
pub fn folder(settings: &Settings) -> PathBuf {
    settings.state_dir.join(FOLDER)
}

/// Start of the name of a receipt whose bundle lay outside the images folders. A short id of the
/// content follows, and then the name of the bundle.
const BY_HAND: &str = "by-hand-";

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

/// Returns the name of the receipt of a bundle from elsewhere. Bundles of one name with other
/// content have other receipts, since no folder tells which of them is wanted.
fn file_name_by_hand(bundle: &str, content: &Digest) -> String {
    let id = digest::short(content.as_ref().as_bytes());
    format!("{BY_HAND}{id}-{}", file_name(bundle))
}

/// Returns the paths of the receipts of all bundles with this name.
pub fn paths_of(folder: &Path, bundle: &str) -> Vec<PathBuf> {
    let name = file_name(bundle);
    let is_by_hand = |file: &OsString| {
        let rest = file.to_str().and_then(|file| file.strip_prefix(BY_HAND));
        let after_id = rest.and_then(|rest| rest.split_once('-'));
        after_id.is_some_and(|(_, after)| after == name)
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let files = entries.map(|entry| entry.file_name());
    let mut paths: Vec<PathBuf> = files
        .filter(|file| *file == *name || is_by_hand(file))
        .map(|file| folder.join(file))
        .collect();
    paths.sort();
    paths
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
    /// The bundle, all of whose images are in containerd.
    pub bundle: &'a Arc<Bundle>,
    /// Its name in labels, or its file name if it lies outside the images folders.
    pub name: &'a str,
    /// True if it lies outside the images folders.
    pub by_hand: bool,
    /// The rules by which its images were selected.
    pub policy: &'a Policy,
}

impl Of<'_> {
    /// Returns the name of the receipt.
    fn file_name(&self) -> String {
        match self.by_hand {
            true => file_name_by_hand(self.name, &self.bundle.catalog().digest),
            false => file_name(self.name),
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
    let drawn = drawn(&of).await?;
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
async fn drawn(of: &Of<'_>) -> Result<Drawn, Unmade> {
    let (bundle, name, policy) = (Arc::clone(of.bundle), of.name.to_owned(), of.policy.clone());
    let by_hand = of.by_hand;
    let drawing = tokio::task::spawn_blocking(move || draw(&bundle, (&name, by_hand), &policy));
    let drawn = drawing.await;
    drawn
        .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
        .map_err(Unmade::NotWhole)
}

fn draw(bundle: &Bundle, (name, by_hand): (&str, bool), policy: &Policy) -> Result<Drawn, String> {
    let catalog = bundle.catalog().with_its_base();
    let selection = import::select(&catalog, policy);
    let (mut taken, mut needed, mut blobs) = (HashSet::new(), HashSet::new(), Vec::new());
    for choice in &selection.choices {
        match &choice.verdict {
            Verdict::Take(image) => {
                taken.insert(choice.target.digest());
                for blob in &image.closure.blobs {
                    if needed.insert(blob.digest.clone()) {
                        blobs.push((blob.digest.clone(), blob.size));
                    }
                }
            }
            Verdict::Broken(problems) => {
                return Err(format!(
                    "{}: {}",
                    choice.label,
                    import::result::in_short(problems)
                ));
            }
            Verdict::Forbidden(why) => return Err(format!("{}: {why}", choice.label)),
            Verdict::Skip(_) => {}
        }
    }
    if taken.is_empty() {
        return Err("the bundle has no image for this node".to_owned());
    }
    // The import of the receipt adds what follows from the settings of its time.
    let naming = Naming {
        aliases: Vec::new(),
        digest_references: DigestReferences::None,
        ..policy.naming.clone()
    };
    let images = catalog.images.iter();
    let images = images.filter(|image| taken.contains(image.root.descriptor.digest()));
    let images = images.map(|image| {
        let names = naming.names_of(&image.names, image.root.descriptor.digest());
        let names = names.references.iter().map(ToString::to_string).collect();
        DraftImage::part(names, &image.root, &needed)
    });
    let mut draft = Draft {
        images: images.collect(),
        ..Draft::default()
    };
    if let Some(release) = &catalog.release {
        draft.stay_in(release);
    }
    draft.stand_for(Receipt {
        // A bundle may claim to be a receipt. Only files of the folder of receipts are believed.
        catalog: bundle.catalog().digest.clone(),
        bundle: name.to_owned(),
        identity: bundle.identity().clone(),
        made_at: Timestamp::now().as_second(),
        by_hand,
    });
    Ok(Drawn { draft, blobs })
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

/// Returns why the daemon must not remove files of an images folder, if it must not.
pub(crate) fn why_folder_keeps(owner: u32, is_read_only: bool) -> Option<&'static str> {
    match (is_read_only, owner) {
        (true, _) => Some("the folder is read-only"),
        (false, 0) => None,
        (false, _) => Some("root does not own the folder"),
    }
}

/// Returns why a file must not be removed, if it must not.
///
/// # Errors
///
/// Returns the reason.
pub(crate) fn may_remove(folder: &Path, name: &OsStr, identity: &Identity) -> Result<(), String> {
    let (folder, name) = parent_of(folder, name).map_err(|error| error.to_string())?;
    may_remove_in(&folder, &name, identity).map(drop)
}

/// Opens the folder that a file lies in. Returns it with the file's name there.
fn parent_of(folder: &Path, name: &OsStr) -> io::Result<(File, OsString)> {
    let path = folder.join(name);
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?.to_owned();
    let parent = path.parent().ok_or(ErrorKind::InvalidInput)?;
    Ok((File::open(parent)?, name))
}

fn may_remove_in(folder: &File, name: &OsStr, identity: &Identity) -> Result<File, String> {
    let owner = folder.metadata().map_err(|error| error.to_string())?.uid();
    if let Some(why) = why_folder_keeps(owner, false) {
        return Err(why.to_owned());
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, name, flags, Mode::empty());
    let file = File::from(file.map_err(|errno| match errno {
        rustix::io::Errno::LOOP => "it is a symbolic link".to_owned(),
        errno => io::Error::from(errno).to_string(),
    })?);
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is no regular file".to_owned());
    }
    if metadata.nlink() != 1 {
        return Err("it has other names (hard links), so its removal frees no space".to_owned());
    }
    match Identity::of(&metadata) == *identity {
        true => Ok(file),
        false => Err("it has changed since its import".to_owned()),
    }
}

/// Returns why an open file that was renamed must stay, if it must. The new name keeps later
/// writers out. An earlier writer may have changed the file, or still have it open.
fn is_still(folder: &File, going: &OsStr, file: &File, identity: &Identity) -> Result<(), String> {
    let text = |errno: rustix::io::Errno| io::Error::from(errno).to_string();
    let renamed = rustix::fs::statat(folder, going, AtFlags::SYMLINK_NOFOLLOW).map_err(text)?;
    let now = Identity::of(&file.metadata().map_err(|error| error.to_string())?);
    if (renamed.st_dev, renamed.st_ino, renamed.st_nlink) != (now.device, now.inode, 1) {
        return Err("another file took its place".to_owned());
    }
    // The other time changes with the name.
    if (now.size, now.mtime_ns) != (identity.size, identity.mtime_ns) {
        return Err("it has changed since its import".to_owned());
    }
    match sys::probe_writers(file.as_fd()) {
        Probe::Busy => Err("another program has it open for writing".to_owned()),
        // A file system that cannot tell has the size and the time only.
        Probe::NoWriter | Probe::Unsupported => Ok(()),
    }
}

/// Removes the file of a bundle that a receipt stands for. The file is first renamed. Another file
/// that was placed under its name at that moment comes back. So does a file with a writer.
///
/// A crash between the two steps leaves a file with a name that begins with a dot.
/// [`undo_removals`] gives it its name back.
///
/// # Errors
///
/// Returns the reason why the file stays.
pub(crate) fn remove(folder: &Path, name: &OsStr, identity: &Identity) -> Result<(), String> {
    let (folder, name) = parent_of(folder, name).map_err(|error| error.to_string())?;
    let file = may_remove_in(&folder, &name, identity)?;
    let mut going = OsString::from(GOING);
    going.push(&name);
    let text = |errno: rustix::io::Errno| io::Error::from(errno).to_string();
    rustix::fs::renameat_with(&folder, &name, &folder, &going, RenameFlags::NOREPLACE).map_err(text)?;
    if let Err(why) = is_still(&folder, &going, &file, identity) {
        rustix::fs::renameat_with(&folder, &going, &folder, &name, RenameFlags::NOREPLACE).map_err(text)?;
        return Err(why);
    }
    rustix::fs::unlinkat(&folder, &going, AtFlags::empty()).map_err(text)?;
    folder.sync_all().map_err(|error| error.to_string())
}

/// Gives the files of a folder back their names, if a crash has interrupted their removal. Such a
/// file may be the last copy, because the crash may have cost blobs of containerd or the receipt.
/// The daemon then looks at the file as at any other, and removes it once more. `complain` hears of
/// each file that stays under its other name.
///
/// # Errors
///
/// Returns the error of the folder. The next call does the rest.
pub(crate) fn undo_removals(folder: &Path, complain: impl Fn(&OsStr, io::Error)) -> io::Result<()> {
    let open = File::open(folder)?;
    let mut is_changed = false;
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let Some(before) = name.as_bytes().strip_prefix(GOING.as_bytes()) else {
            continue;
        };
        let before = OsStr::from_bytes(before);
        match rustix::fs::renameat_with(&open, &name, &open, before, RenameFlags::NOREPLACE) {
            Ok(()) => is_changed = true,
            Err(errno) => complain(&name, errno.into()),
        }
    }
    match is_changed {
        true => open.sync_all(),
        false => Ok(()),
    }
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
        let mut receipts = contents.map(|content| file_name_by_hand("shop.tar", &content));
        receipts.sort();
        assert_ne!(receipts[0], receipts[1]);
        let other = file_name_by_hand("my-shop.tar", &digest::sha256(b"1"));
        for name in [receipts[0].as_str(), &receipts[1], "shop.tar", &other] {
            assert!(is_candidate(OsStr::new(name)), "{name}");
            fs::write(folder.path().join(name), "").unwrap();
        }
        let found = paths_of(folder.path(), "shop.tar");
        let expected = [receipts[0].as_str(), &receipts[1], "shop.tar"];
        assert_eq!(found, expected.map(|name| folder.path().join(name)));
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
            by_hand: false,
        });
        let mut feed = |blob: &bundle::BlobRef| {
            let blob = source.blob(&blob.digest).expect("the source has every document");
            Ok(blob.open(0)? as Box<dyn Read>)
        };
        let layout = Layout::of(&draft).unwrap();
        let mut output = Output::create(&claim).unwrap();
        write(&layout, Compression::None, &mut output, &mut feed).unwrap();
        output.commit().unwrap();
        let bundle = Bundle::open(&claim, &Limits::default()).unwrap();
        assert_eq!(bundle.catalog().stood_for(), &claimed);
        let policy = crate::runtime::policy(&Settings::default(), None);
        let drawn = draw(&bundle, ("claim.tar", false), &policy).unwrap();
        let receipt = drawn.draft.relies_on.unwrap().receipt.unwrap();
        assert_eq!(receipt.catalog, bundle.catalog().digest);
    }

    /// A folder with a file, and the file's identity. Only root can own the folder of a removal.
    fn placed() -> Option<(tempfile::TempDir, Identity)> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.tar"), "bundle").unwrap();
        let identity = identity(folder.path(), "a.tar");
        rustix::process::geteuid().is_root().then_some((folder, identity))
    }

    fn identity(folder: &Path, name: &str) -> Identity {
        Identity::of(&fs::symlink_metadata(folder.join(name)).unwrap())
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn only_the_very_file_is_removed_and_only_if_it_has_one_name() {
        let Some((folder, as_imported)) = placed() else {
            return;
        };
        let (path, name) = (folder.path(), OsStr::new("a.tar"));
        fs::hard_link(path.join("a.tar"), path.join("b.tar")).unwrap();
        let linked = identity(path, "a.tar");
        assert!(remove(path, name, &linked).unwrap_err().contains("hard links"));
        fs::remove_file(path.join("b.tar")).unwrap();
        assert!(remove(path, name, &as_imported).unwrap_err().contains("changed"));
        std::os::unix::fs::symlink("a.tar", path.join("link.tar")).unwrap();
        let link = identity(path, "link.tar");
        let refused = remove(path, OsStr::new("link.tar"), &link).unwrap_err();
        assert!(refused.contains("symbolic link"), "{refused}");
        std::os::unix::fs::chown(path, Some(1), None).unwrap();
        let now = identity(path, "a.tar");
        assert!(
            remove(path, name, &now)
                .unwrap_err()
                .contains("root does not own")
        );
        std::os::unix::fs::chown(path, Some(0), None).unwrap();
        assert_eq!(names(path), ["a.tar", "link.tar"]);
        assert_eq!(may_remove(path, name, &now), Ok(()));
        remove(path, name, &now).unwrap();
        assert_eq!(names(path), ["link.tar"]);
    }

    #[test]
    fn a_file_that_a_program_may_still_write_stays_under_its_name() {
        let Some((folder, identity)) = placed() else {
            return;
        };
        let (path, name) = (folder.path(), OsStr::new("a.tar"));
        let writer = fs::OpenOptions::new().write(true).open(path.join("a.tar"));
        let why = remove(path, name, &identity).unwrap_err();
        assert!(why.contains("open for writing"), "{why}");
        assert_eq!(names(path), ["a.tar"]);
        drop(writer.unwrap());
        let file = File::open(path.join("a.tar")).unwrap();
        let open = File::open(path).unwrap();
        assert_eq!(is_still(&open, name, &file, &identity), Ok(()));
        fs::write(path.join("a.tar"), "bundle of another size").unwrap();
        let changed = is_still(&open, name, &file, &identity).unwrap_err();
        assert!(changed.contains("changed"), "the same inode: {changed}");
    }

    #[test]
    fn an_interrupted_removal_is_undone_file_by_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        for name in ["a.tar", "b.tar", "c.tar"] {
            fs::write(path.join(format!("{GOING}{name}")), name).unwrap();
        }
        // A later bundle has the name.
        fs::write(path.join("b.tar"), "later").unwrap();
        let complaints = std::cell::RefCell::new(Vec::new());
        let complain = |name: &OsStr, _| complaints.borrow_mut().push(name.to_owned());
        undo_removals(path, complain).unwrap();
        let going = format!("{GOING}b.tar");
        assert_eq!(names(path), [going.as_str(), "a.tar", "b.tar", "c.tar"]);
        assert_eq!(complaints.into_inner(), [OsString::from(going)]);
        assert_eq!(fs::read_to_string(path.join("b.tar")).unwrap(), "later");
    }
}
