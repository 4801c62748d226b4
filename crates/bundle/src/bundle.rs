//! A bundle that is open for reading.

use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::Digest;
use rustix::fs::{Mode, OFlags};

use crate::archive::{ArchiveFile, Extent, Folder, Frames, Packed, Place};
use crate::image::{self, Access, Places};
use crate::pipe::Remains;
use crate::{BlobStream, Catalog, Error, Fault, Hashed, Identity, Limits};

/// An open bundle: its [`Catalog`] and access to its blobs.
///
/// Everything is read through the descriptor that was opened. So the bundle stays the same if its
/// file is renamed, replaced or deleted. The type is `Send` and `Sync`: share it in an `Arc`.
#[derive(Debug)]
pub struct Bundle {
    path: PathBuf,
    source: Source,
    identity: Identity,
    /// sha256 of the file, if the catalog is made of the bytes that have it.
    file_digest: Option<Digest>,
    catalog: Catalog,
    places: Places,
}

/// The source of the bytes.
#[derive(Debug)]
enum Source {
    Plain(Arc<File>),
    Packed(Arc<File>, Arc<Packed>),
    Framed(Arc<File>, Arc<Frames>),
    Folder(Arc<Folder>),
    Pipe(Arc<Remains>),
}

/// The identity of a bundle from a pipe, which is no file and does not change.
const NO_FILE: Identity = Identity {
    device: 0,
    inode: 0,
    size: 0,
    mtime_ns: 0,
    ctime_ns: 0,
};

impl Source {
    fn identity(&self) -> io::Result<Identity> {
        match self {
            Self::Plain(file) | Self::Packed(file, _) | Self::Framed(file, _) => {
                Ok(Identity::of(&file.metadata()?))
            }
            Self::Folder(folder) => folder.identity(),
            Self::Pipe(_) => Ok(NO_FILE),
        }
    }
}

impl Bundle {
    /// Opens a file, reads its headers and documents, and makes the catalog.
    ///
    /// The call reads no blobs except documents, and compressed layers of Docker archives, whose
    /// digest is recorded nowhere. A compressed file is decompressed from beginning to end, unless
    /// it has a seek table. The call blocks. `limits` bound its memory, whatever the size of the
    /// file.
    ///
    /// Sparse entries of tar (`--sparse`) are not read. A sparse entry that nothing needs is
    /// skipped by the size in its header. An image with a sparse blob is broken. A file is refused
    /// if a document that lists its images is sparse. The reason names the entry and the remedy.
    ///
    /// # Errors
    ///
    /// Returns an error if the file's images cannot be read, or if the bundle exceeds a limit on
    /// the whole. The catalog has the faults of single images.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self, Error> {
        // Without O_NONBLOCK, opening a named pipe would wait for a writer for ever.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|errno| Fault::io("open the file")(errno.into()).in_file(path))?;
        Self::from_file(File::from(file), path, limits)
    }

    /// Like [`Bundle::open`], for a file that is already open. `path` is its name in messages.
    pub fn from_file(file: File, path: &Path, limits: &Limits) -> Result<Self, Error> {
        Self::of_file(&ArchiveFile::new(file), path, limits).map_err(|fault| fault.in_file(path))
    }

    /// Like [`Bundle::from_file`], for a file that was hashed. The catalog is made of the very
    /// bytes that were hashed, whatever another program writes to the file meanwhile.
    ///
    /// # Errors
    ///
    /// Fails like [`Bundle::open`]. Returns [`Fault::Changed`] if a byte that the catalog needs is
    /// not the byte that was hashed.
    pub fn from_hashed(hashed: Hashed, path: &Path, limits: &Limits) -> Result<Self, Error> {
        let identity = hashed.identity().clone();
        let (file, digest) = hashed.into_file();
        let mut bundle = Self::of_file(&file, path, limits).map_err(|fault| fault.in_file(path))?;
        if bundle.identity != identity {
            return Err(Fault::Changed.in_file(path));
        }
        bundle.file_digest = Some(digest);
        Ok(bundle)
    }

    fn of_file(file: &ArchiveFile, path: &Path, limits: &Limits) -> Result<Self, Fault> {
        let stat = || file.raw().metadata().map_err(Fault::io("stat the file"));
        let metadata = stat()?;
        if !metadata.is_file() {
            return Err(Fault::NotAFile(kind_of(&metadata)));
        }
        let identity = Identity::of(&metadata);
        let read = image::read(file, &identity, limits);
        // A writer explains any error. A catalog of the halves of two files would be worse than
        // none.
        if Identity::of(&stat()?) != identity {
            return Err(Fault::Changed);
        }
        let (catalog, places, access) = read?;
        let file = Arc::clone(file.raw());
        Ok(Self {
            path: path.to_owned(),
            source: match access {
                Access::Plain => Source::Plain(file),
                Access::Packed(packed) => Source::Packed(file, Arc::new(packed.without_proof())),
                Access::Framed(frames) => {
                    let frames = Arc::unwrap_or_clone(frames).without_proof();
                    Source::Framed(file, Arc::new(frames))
                }
            },
            identity,
            file_digest: None,
            catalog,
            places,
        })
    }

    /// Opens a folder into which an image layout was extracted.
    ///
    /// Names are looked up below the folder only. A link that leads out of the folder is not
    /// followed. A file that changes after it was found is no longer part of the bundle.
    ///
    /// # Errors
    ///
    /// Fails like [`Bundle::open`].
    pub fn open_dir(path: &Path, limits: &Limits) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|errno| Fault::io("open the folder")(errno.into()).in_file(path))?;
        Self::from_dir(File::from(folder), path, limits)
    }

    /// Like [`Bundle::open_dir`], for a folder that is already open. `path` is its name in
    /// messages.
    pub fn from_dir(folder: File, path: &Path, limits: &Limits) -> Result<Self, Error> {
        Self::of_dir(folder, path, limits).map_err(|fault| fault.in_file(path))
    }

    fn of_dir(folder: File, path: &Path, limits: &Limits) -> Result<Self, Fault> {
        let folder = Arc::new(Folder::new(folder));
        let stat = || folder.identity().map_err(Fault::io("stat the folder"));
        let identity = stat()?;
        let read = image::read_folder(&folder, limits);
        if stat()? != identity {
            return Err(Fault::Changed);
        }
        let (catalog, places) = read?;
        Ok(Self {
            path: path.to_owned(),
            source: Source::Folder(folder),
            identity,
            file_digest: None,
            catalog,
            places,
        })
    }

    /// Makes a bundle of a pipe whose catalog is made.
    pub(crate) fn of_pipe(path: PathBuf, catalog: Catalog, places: Places, rest: Arc<Remains>) -> Self {
        Self {
            path,
            source: Source::Pipe(rest),
            identity: NO_FILE,
            file_digest: None,
            catalog,
            places,
        }
    }

    /// Returns the path of the bundle.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the catalog of the bundle's images.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Returns the identity of the file when it was opened. The identity of a folder changes with
    /// its entries, and with each write to one of its documents.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns the sha256 of the file, if [`Bundle::from_hashed`] opened it.
    pub fn file_digest(&self) -> Option<&Digest> {
        self.file_digest.as_ref()
    }

    /// Returns true if the open file has not changed since the catalog was made.
    ///
    /// # Errors
    ///
    /// Returns an error if the metadata of the open file cannot be read.
    pub fn is_unchanged(&self) -> io::Result<bool> {
        Ok(self.source.identity()? == self.identity)
    }

    /// Returns a blob that the catalog mentions and that is present. Manifests that were made for
    /// Docker archives count too.
    pub fn blob(&self, digest: &Digest) -> Option<Blob> {
        let bytes = match (self.places.get(digest)?, &self.source) {
            (Place::Memory(bytes), _) => Bytes::InMemory(Arc::clone(bytes)),
            (Place::Extent { offset, size }, Source::Plain(file)) => Bytes::InFile {
                file: Arc::clone(file),
                offset: *offset,
                size: *size,
            },
            (Place::Extent { offset, size }, Source::Packed(_, packed)) => Bytes::Packed {
                packed: Arc::clone(packed),
                offset: *offset,
                size: *size,
            },
            (Place::Extent { offset, size }, Source::Framed(_, frames)) => Bytes::InFrames {
                frames: Arc::clone(frames),
                offset: *offset,
                size: *size,
            },
            (Place::InFolder { name, identity }, Source::Folder(folder)) => Bytes::InFolder {
                folder: Arc::clone(folder),
                name: Arc::clone(name),
                identity: Arc::clone(identity),
            },
            (Place::Extent { size, .. } | Place::ToCome { size }, Source::Pipe(remains)) => Bytes::Passing {
                remains: Arc::clone(remains),
                digest: digest.clone(),
                size: *size,
            },
            _ => unreachable!("a bundle has places of its own kind only"),
        };
        Some(Blob(bytes))
    }

    /// Returns true if blobs should be read in the order of the archive: see [`Bundle::stream`]. In
    /// a compressed bundle without a seek table, reading one blob means decompressing everything
    /// before it.
    pub fn is_sequential(&self) -> bool {
        matches!(self.source, Source::Packed(..) | Source::Pipe(_))
    }

    /// Returns true if the blobs come through a pipe. Then one [`Bundle::stream`] gives those that
    /// are still to come, and its end shows if the bundle was cut off.
    pub fn is_piped(&self) -> bool {
        matches!(self.source, Source::Pipe(_))
    }

    /// Checks that a bundle from a stream was not cut off. Without the mark at its end, missing
    /// blobs mean a cut.
    ///
    /// # Errors
    ///
    /// Returns [`Fault::Truncated`].
    pub fn check_whole(&self) -> Result<(), Error> {
        let checked = crate::pipe::check_whole(&self.catalog, self.identity.size);
        checked.map_err(|fault| fault.in_file(&self.path))
    }

    /// Returns a stream of these blobs, in the order of the archive and in one pass over it.
    ///
    /// Blobs that the catalog does not call present are left out.
    ///
    /// # Errors
    ///
    /// Returns an error if the file has changed since the catalog was made. Also if the blobs of a
    /// pipe were streamed before.
    pub fn stream(&self, wanted: &HashSet<Digest>) -> Result<BlobStream, Error> {
        let blobs = wanted
            .iter()
            .filter_map(|digest| Some((digest.clone(), self.places.get(digest)?, self.blob(digest)?)));
        let packed = match &self.source {
            Source::Packed(_, packed) => Some(packed),
            Source::Pipe(remains) => return self.stream_pipe(remains, wanted),
            Source::Plain(_) | Source::Framed(..) | Source::Folder(_) => None,
        };
        BlobStream::new(&self.path, blobs, packed).map_err(|fault| fault.in_file(&self.path))
    }

    /// Returns a stream of the blobs in memory, and then of those that the pipe brings.
    fn stream_pipe(&self, remains: &Remains, wanted: &HashSet<Digest>) -> Result<BlobStream, Error> {
        let (mut at_hand, mut to_come) = (Vec::new(), HashSet::new());
        for digest in wanted {
            match self.places.get(digest) {
                Some(place @ Place::Memory(_)) => {
                    at_hand.extend(self.blob(digest).map(|blob| (digest.clone(), place, blob)));
                }
                Some(Place::ToCome { .. }) => drop(to_come.insert(digest.clone())),
                // A blob that went by is in containerd, or it is lost.
                _ => {}
            }
        }
        let stream = || {
            Ok(BlobStream::new(&self.path, at_hand.into_iter(), None)?.with_rest(remains.take()?, to_come))
        };
        stream().map_err(|fault: Fault| fault.in_file(&self.path))
    }
}

fn kind_of(metadata: &Metadata) -> &'static str {
    use std::os::unix::fs::FileTypeExt as _;
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a named pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_block_device() => "a block device",
        () if kind.is_char_device() => "a character device",
        () => "something else",
    }
}

/// The bytes of a blob. It is independent of its [`Bundle`], and cheap to clone.
#[derive(Clone, Debug)]
pub struct Blob(Bytes);

#[derive(Clone, Debug)]
enum Bytes {
    InFile {
        file: Arc<File>,
        offset: u64,
        size: u64,
    },
    /// In a compressed archive. The offset counts decompressed bytes.
    Packed {
        packed: Arc<Packed>,
        offset: u64,
        size: u64,
    },
    /// In a compressed archive with a seek table. The offset counts decompressed bytes.
    InFrames {
        frames: Arc<Frames>,
        offset: u64,
        size: u64,
    },
    InFolder {
        folder: Arc<Folder>,
        name: Arc<str>,
        identity: Arc<Identity>,
    },
    InMemory(Arc<[u8]>),
    /// In a pipe, where only [`Bundle::stream`] can read them.
    Passing {
        remains: Arc<Remains>,
        digest: Digest,
        size: u64,
    },
}

impl Blob {
    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        match &self.0 {
            Bytes::InFile { size, .. }
            | Bytes::Packed { size, .. }
            | Bytes::InFrames { size, .. }
            | Bytes::Passing { size, .. } => *size,
            Bytes::InFolder { identity, .. } => identity.size,
            Bytes::InMemory(bytes) => bytes.len() as u64,
        }
    }

    /// Returns true if the blob's own file has not changed since the catalog was made. Only blobs
    /// of a layout folder have a file of their own. For an archive, [`Bundle::is_unchanged`]
    /// checks.
    pub fn is_unchanged(&self) -> bool {
        match &self.0 {
            Bytes::InFolder {
                folder,
                name,
                identity,
            } => !matches!(folder.open(name, identity), Err(Fault::Changed)),
            Bytes::InFile { .. }
            | Bytes::Packed { .. }
            | Bytes::InFrames { .. }
            | Bytes::InMemory(_)
            | Bytes::Passing { .. } => true,
        }
    }

    /// Opens the blob for reading from `offset`. Readers are independent of each other. The call
    /// blocks. A bundle that [is sequential](Bundle::is_sequential) is decompressed up to the blob
    /// first. A document that was kept in memory does not need that.
    ///
    /// The reader returns [`io::ErrorKind::UnexpectedEof`] if the file was truncated after it was
    /// opened.
    ///
    /// # Errors
    ///
    /// Returns an error if `offset` is past the end, or if the file cannot be read. If the file
    /// must be opened again or decompressed, the call also returns an error if the file has
    /// changed.
    pub fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        if offset > self.size() {
            let message = format!(
                "offset {offset} is past the end of a blob of {} bytes",
                self.size()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Ok(match &self.0 {
            Bytes::InFile {
                file,
                offset: start,
                size,
            } => Box::new(Extent::new(Arc::clone(file), start + offset, size - offset)),
            Bytes::Packed {
                packed,
                offset: start,
                size,
            } => Box::new(packed.reader_at(start + offset)?.take(size - offset)),
            Bytes::InFrames {
                frames,
                offset: start,
                size,
            } => Box::new(frames.reader_at(start + offset).take(size - offset)),
            Bytes::InFolder {
                folder,
                name,
                identity,
            } => Box::new(Extent::new(
                Arc::new(folder.open(name, identity)?),
                offset,
                identity.size - offset,
            )),
            Bytes::Passing { remains, digest, .. } if remains.lacks(digest) => {
                let message = "the pipe did not bring it";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
            }
            Bytes::Passing { .. } => {
                let message = "the pipe can bring it only once, so import the file itself";
                return Err(io::Error::new(io::ErrorKind::NotSeekable, message));
            }
            Bytes::InMemory(bytes) => {
                let mut cursor = io::Cursor::new(Arc::clone(bytes));
                cursor.set_position(offset);
                Box::new(cursor)
            }
        })
    }
}
