//! A bundle that is open for reading.

use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::Digest;
use rustix::fs::{Mode, OFlags};

use crate::archive::{Extent, Folder, Frames, Packed, Place};
use crate::image::{self, Access, Places};
use crate::{BlobStream, Catalog, Error, Fault, Identity, Limits};

/// An open bundle: its [`Catalog`] and access to its blobs.
///
/// All reading goes through the one descriptor that was opened, so a file that is renamed, replaced
/// or deleted meanwhile stays the same bundle. `Send` and `Sync`; share it in an `Arc`.
#[derive(Debug)]
pub struct Bundle {
    path: PathBuf,
    source: Source,
    identity: Identity,
    catalog: Catalog,
    places: Places,
}

/// Where the bytes come from.
#[derive(Debug)]
enum Source {
    Plain(Arc<File>),
    Packed(Arc<File>, Arc<Packed>),
    Framed(Arc<File>, Arc<Frames>),
    Folder(Arc<Folder>),
}

impl Source {
    fn identity(&self) -> io::Result<Identity> {
        match self {
            Self::Plain(file) | Self::Packed(file, _) | Self::Framed(file, _) => {
                Ok(Identity::of(&file.metadata()?))
            }
            Self::Folder(folder) => folder.identity(),
        }
    }
}

impl Bundle {
    /// Opens a file, reads its headers and documents, and draws up the catalog.
    ///
    /// Blobs that are not documents are not read, except compressed layers of Docker archives,
    /// whose digest is nowhere else. A compressed file is read and decompressed from beginning to
    /// end, unless it has a table that allows to go into it. Blocking; memory is bounded by
    /// `limits` and not by the file.
    ///
    /// Sparse entries of tar (`--sparse`) are not read. One on which nothing relies is passed over
    /// by the size in its header. A blob that is one breaks its images, and a document that lists
    /// images refuses the file; the reason names the entry and the remedy.
    ///
    /// # Errors
    ///
    /// When nothing can be said about the file's images, or a limit on the whole is exceeded.
    /// Anything about a single image is in the catalog instead.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self, Error> {
        // O_NONBLOCK: opening a named pipe would wait for a writer for ever.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|errno| Fault::io("open the file")(errno.into()).in_file(path))?;
        Self::from_file(File::from(file), path, limits)
    }

    /// Like [`Bundle::open`] for a file that is open already; `path` only tells what to call it.
    pub fn from_file(file: File, path: &Path, limits: &Limits) -> Result<Self, Error> {
        Self::of_file(file, path, limits).map_err(|fault| fault.in_file(path))
    }

    fn of_file(file: File, path: &Path, limits: &Limits) -> Result<Self, Fault> {
        let stat = |file: &File| file.metadata().map_err(Fault::io("stat the file"));
        let metadata = stat(&file)?;
        if !metadata.is_file() {
            return Err(Fault::NotAFile(kind_of(&metadata)));
        }
        let file = Arc::new(file);
        let identity = Identity::of(&metadata);
        let read = image::read(&file, &identity, limits);
        // A writer explains any error, and a catalog of two half files would be worse than none.
        if Identity::of(&stat(&file)?) != identity {
            return Err(Fault::Changed);
        }
        let (catalog, places, access) = read?;
        Ok(Self {
            path: path.to_owned(),
            source: match access {
                Access::Plain => Source::Plain(file),
                Access::Packed(packed) => Source::Packed(file, packed),
                Access::Framed(frames) => Source::Framed(file, frames),
            },
            identity,
            catalog,
            places,
        })
    }

    /// Opens a folder into which an image layout was extracted.
    ///
    /// Names are looked up below the folder only, links that lead out of it are followed nowhere,
    /// and a file that changes after it was found is no part of the bundle any more.
    ///
    /// # Errors
    ///
    /// As [`Bundle::open`].
    pub fn open_dir(path: &Path, limits: &Limits) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|errno| Fault::io("open the folder")(errno.into()).in_file(path))?;
        Self::from_dir(File::from(folder), path, limits)
    }

    /// Like [`Bundle::open_dir`] for a folder that is open already; `path` only tells what to call
    /// it.
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
            catalog,
            places,
        })
    }

    /// The name that the bundle was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the bundle holds.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Which file this is, as it was when it was opened. That of a folder changes when an entry is
    /// added or removed, or one of the documents is written to.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether the open file is still what it was when the catalog was drawn up.
    ///
    /// # Errors
    ///
    /// If the open file cannot be examined.
    pub fn is_unchanged(&self) -> io::Result<bool> {
        Ok(self.source.identity()? == self.identity)
    }

    /// A blob that the catalog mentions and that is there, manifests made up for Docker archives
    /// included.
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
            _ => unreachable!("a bundle has places of its own kind only"),
        };
        Some(Blob(bytes))
    }

    /// Whether blobs are best taken in the order of the archive: see [`Bundle::stream`]. Of a
    /// compressed bundle without a table of its frames, reading a single blob means decompressing
    /// everything before it.
    pub fn is_sequential(&self) -> bool {
        matches!(self.source, Source::Packed(..))
    }

    /// Hands out these blobs one after the other, in the order of the archive, in one pass over it.
    ///
    /// Those that the catalog does not call present are left out.
    ///
    /// # Errors
    ///
    /// If the file has changed since the catalog was drawn up.
    pub fn stream(&self, wanted: &HashSet<Digest>) -> Result<BlobStream, Error> {
        let blobs = wanted
            .iter()
            .filter_map(|digest| Some((digest.clone(), self.places.get(digest)?, self.blob(digest)?)));
        let packed = match &self.source {
            Source::Packed(_, packed) => Some(packed),
            Source::Plain(_) | Source::Framed(..) | Source::Folder(_) => None,
        };
        BlobStream::new(&self.path, blobs, packed).map_err(|fault| fault.in_file(&self.path))
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

/// The bytes of a blob; independent of the [`Bundle`] it came from. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Blob(Bytes);

#[derive(Clone, Debug)]
enum Bytes {
    InFile {
        file: Arc<File>,
        offset: u64,
        size: u64,
    },
    /// In a compressed archive; the offset counts decompressed bytes.
    Packed {
        packed: Arc<Packed>,
        offset: u64,
        size: u64,
    },
    /// The same where frames can be gone into.
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
}

impl Blob {
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        match &self.0 {
            Bytes::InFile { size, .. } | Bytes::Packed { size, .. } | Bytes::InFrames { size, .. } => *size,
            Bytes::InFolder { identity, .. } => identity.size,
            Bytes::InMemory(bytes) => bytes.len() as u64,
        }
    }

    /// Whether its file is still what it was when the catalog was drawn up, where it has one of its
    /// own: in a layout folder. Of an archive, [`Bundle::is_unchanged`] tells.
    pub fn is_unchanged(&self) -> bool {
        match &self.0 {
            Bytes::InFolder {
                folder,
                name,
                identity,
            } => !matches!(folder.open(name, identity), Err(Fault::Changed)),
            Bytes::InFile { .. } | Bytes::Packed { .. } | Bytes::InFrames { .. } | Bytes::InMemory(_) => true,
        }
    }

    /// Opens the blob for reading from `offset`; readers do not disturb each other. Blocking; of a
    /// bundle that [is sequential](Bundle::is_sequential), everything before is decompressed first
    /// unless it is a document that was kept.
    ///
    /// The reader gives [`io::ErrorKind::UnexpectedEof`] if the file was cut short after it was
    /// opened.
    ///
    /// # Errors
    ///
    /// If `offset` lies behind the end; also if the file cannot be read any more, or has changed
    /// since and has to be opened again or decompressed for this.
    pub fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        if offset > self.size() {
            let message = format!("offset {offset} in a blob of {} bytes", self.size());
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
            Bytes::InMemory(bytes) => {
                let mut cursor = io::Cursor::new(Arc::clone(bytes));
                cursor.set_position(offset);
                Box::new(cursor)
            }
        })
    }
}
