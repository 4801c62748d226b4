//! An image layout that was extracted into a folder.
//!
//! Names are looked up below the folder and nowhere else. Links are followed if they stay inside,
//! and only regular files are read. A folder can change while it is read, so the identity of each
//! file is remembered. A file with another identity is no longer a blob of this bundle.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::place::{BlobsFolder, Found, Place};
use crate::{Fault, Identity};

/// Paths whose change shows that a program wrote to the layout: its documents, and its folders,
/// which change with their entries.
const WATCHED: [&str; 6] = [
    "index.json",
    "oci-layout",
    "manifest.json",
    "blobs",
    "blobs/sha256",
    "blobs/sha512",
];

/// An open folder.
#[derive(Debug)]
pub(crate) struct Folder(File);

impl Folder {
    pub(crate) fn new(folder: File) -> Self {
        Self(folder)
    }

    /// Returns the folder's identity, with times and size computed from all its parts.
    pub(crate) fn identity(&self) -> std::io::Result<Identity> {
        let own = Identity::of(&self.0.metadata()?);
        let mut hasher = Sha256::new();
        let mut size = 0_u64;
        fold(&mut hasher, Some(&own));
        for name in WATCHED {
            let part = rustix::fs::openat(&self.0, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
            let part = part
                .ok()
                .and_then(|fd| File::from(fd).metadata().ok())
                .map(|metadata| Identity::of(&metadata));
            fold(&mut hasher, part.as_ref());
            size = size.saturating_add(part.map_or(0, |part| part.size));
        }
        let hash = hasher.finalize();
        let number = |at: usize| i64::from_le_bytes(hash[at..at + 8].try_into().expect("eight bytes"));
        Ok(Identity {
            size,
            mtime_ns: number(0),
            ctime_ns: number(8),
            ..own
        })
    }

    /// Returns the state of the folder where the blobs should be.
    pub(crate) fn blobs(&self) -> BlobsFolder {
        let is_link = |name: &str| {
            let stat = rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW);
            stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
        };
        if is_link("blobs") || is_link("blobs/sha256") {
            return BlobsFolder::Link;
        }
        let has_entries = |name: &str| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let folder = rustix::fs::openat(&self.0, name, flags, Mode::empty());
            let entries = folder.and_then(rustix::fs::Dir::read_from);
            let is_own = |entry: &rustix::fs::DirEntry| !matches!(entry.file_name().to_bytes(), b"." | b"..");
            entries.is_ok_and(|entries| entries.flatten().any(|entry| is_own(&entry)))
        };
        match ["blobs/sha256", "blobs/sha512"].into_iter().any(has_entries) {
            true => BlobsFolder::Something,
            false => BlobsFolder::Nothing,
        }
    }

    /// Looks up a clean name.
    pub(crate) fn find(&self, name: &str) -> Found {
        match self.open_file(name) {
            Ok((_, identity)) => Found::File(Place::InFolder {
                name: Arc::from(name),
                identity: Arc::new(identity),
            }),
            Err(Errno::NOENT | Errno::NOTDIR) => Found::Nothing,
            Err(Errno::XDEV) => Found::Unusable("a link that leads out of the folder".to_owned()),
            Err(Errno::LOOP) => Found::Unusable("a link that leads back to itself".to_owned()),
            // A socket cannot be opened. Other special files can, and their type identifies them.
            Err(Errno::NXIO | Errno::NODEV | Errno::INVAL) => {
                Found::Unusable("not a regular file".to_owned())
            }
            Err(error) => Found::Unusable(format!("a file that cannot be opened: {error}")),
        }
    }

    /// Opens a file that was found before.
    pub(crate) fn open(&self, name: &str, identity: &Identity) -> Result<File, Fault> {
        match self.open_file(name) {
            Ok((file, found)) if found == *identity => Ok(file),
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::XDEV | Errno::LOOP) => Err(Fault::Changed),
            Err(error) => Err(Fault::io("open a file of the folder")(error.into())),
        }
    }

    fn open_file(&self, name: &str) -> Result<(File, Identity), Errno> {
        // Without O_NONBLOCK, opening a named pipe would wait for a writer for ever.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let file = match rustix::fs::openat2(&self.0, name, flags, Mode::empty(), resolve) {
            // Linux before 5.6 lacks this call.
            Err(Errno::NOSYS) => self.open_step_by_step(name, flags)?,
            opened => opened?,
        };
        let file = File::from(file);
        let metadata = file
            .metadata()
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        if metadata.is_file() {
            Ok((file, Identity::of(&metadata)))
        } else {
            Err(Errno::INVAL)
        }
    }

    /// Opens a file without following any link.
    fn open_step_by_step(&self, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let (folders, file) = match name.rsplit_once('/') {
            Some((folders, file)) => (Some(folders), file),
            None => (None, name),
        };
        let mut fd = self.0.as_fd().try_clone_to_owned().map_err(|_| Errno::MFILE)?;
        for folder in folders.into_iter().flat_map(|folders| folders.split('/')) {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            fd = rustix::fs::openat(&fd, folder, flags, Mode::empty())?;
        }
        rustix::fs::openat(&fd, file, flags | OFlags::NOFOLLOW, Mode::empty())
    }
}

fn fold(hasher: &mut Sha256, part: Option<&Identity>) {
    let Some(part) = part else {
        return hasher.update([0]);
    };
    hasher.update([1]);
    hasher.update(part.device.to_le_bytes());
    hasher.update(part.inode.to_le_bytes());
    hasher.update(part.size.to_le_bytes());
    hasher.update(part.mtime_ns.to_le_bytes());
    hasher.update(part.ctime_ns.to_le_bytes());
}
