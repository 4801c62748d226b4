//! Writes bundles: an OCI image layout in a tar archive, the same bytes for the same content.
//!
//! It never opens an archive, chooses an image or a name, or fetches a blob by itself.
//!
//! A bundle is drafted as a value ([`Draft`]: names, what they stand for, which blobs there are),
//! laid out ([`Layout`]: every entry of the archive in its order) and written ([`write()`]), each
//! blob being asked for when its turn comes. `oci-layout`, `index.json` and `manifest.json` stand
//! first, then documents, then layers, so that whoever reads the archive as a stream knows all
//! names before the first large blob. No entry tells who wrote it, when or where.
//!
//! Nothing is written that is not what its digest says: each blob is hashed on its way, and an
//! archive that cannot be finished has no end mark. Sources: OCI image-spec 1.1, "Image Layout",
//! "Annotations"; POSIX.1-2017 `pax`.

mod draft;
mod entry;
mod from_bundles;
mod layout;
mod output;
mod packer;

use std::io::{self, Read, Write};

use oci_spec::image::Digest;

pub use draft::{Draft, DraftImage, WholeImage};
pub use from_bundles::FromBundles;
pub use layout::Layout;
pub use output::Output;

use crate::archive::fill;
use crate::{BlobRef, Compression};
use basics::digest::Hasher;
use packer::{PIECE, Packer};

/// Why a bundle was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The draft contradicts itself, or holds more than any reader takes; what it is, with its way
    /// out.
    #[error("{0}")]
    Draft(String),
    /// The archive cannot be written.
    #[error("cannot {action}")]
    Target {
        /// What was being attempted.
        action: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// A blob cannot be had.
    #[error("cannot read blob {digest}")]
    Blob {
        /// The blob.
        digest: Digest,
        /// Why.
        source: io::Error,
    },
    /// A blob has another length than its descriptor says.
    #[error("blob {digest} should have {expected} bytes and has {}", how_many(*.expected, *.found))]
    Size {
        /// The blob.
        digest: Digest,
        /// Bytes that its descriptor says.
        expected: u64,
        /// Bytes that there are; one more than expected where reading stopped there.
        found: u64,
    },
    /// A blob's bytes are not what its digest says.
    #[error("blob {digest} is corrupt: its bytes have the digest {found}")]
    Digest {
        /// The blob.
        digest: Digest,
        /// What its bytes hash to.
        found: Digest,
    },
}

fn how_many(expected: u64, found: u64) -> String {
    if found > expected {
        "more".to_owned()
    } else {
        found.to_string()
    }
}

/// Gives the bytes of blobs, in the order of [`Layout::blobs`], each once.
pub trait BlobFeed {
    /// Begins a blob. Its bytes may be wrong: they are checked by whoever reads them.
    ///
    /// # Errors
    ///
    /// If the blob cannot be had.
    fn open(&mut self, blob: &BlobRef) -> io::Result<Box<dyn Read + '_>>;
}

impl<F: FnMut(&BlobRef) -> io::Result<Box<dyn Read>>> BlobFeed for F {
    fn open(&mut self, blob: &BlobRef) -> io::Result<Box<dyn Read + '_>> {
        self(blob)
    }
}

/// How much was written, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Of the archive before it was compressed.
    pub archive: u64,
    /// Of the file.
    pub file: u64,
}

/// Writes a bundle. Blocking; holds one piece of a blob, and the codec's window.
///
/// The bytes depend on the layout, the compression and the version of its library, and on nothing
/// else. Compressed with zstd it is seekable: each layer begins a frame, and a table of all frames
/// stands in a skippable one at the end (see `docs/bundles.md`). The target is flushed, not synced.
///
/// # Errors
///
/// If the target cannot be written, or a blob is not to be had or not what its digest says. What is
/// in the target by then is no bundle.
///
/// # Panics
///
/// If `compression` is one that bundles are read in only: bundles are written plain, with gzip and
/// with zstd.
pub fn write(
    layout: &Layout,
    compression: Compression,
    target: impl Write,
    feed: &mut dyn BlobFeed,
) -> Result<Written, WriteError> {
    let mut archive = Archive {
        packer: Packer::new(target, compression).map_err(target_error)?,
        piece: vec![0; PIECE],
    };
    for (name, bytes) in layout.own_documents() {
        archive.document(name, bytes)?;
    }
    for blob in layout.blobs() {
        archive.blob(blob, feed)?;
    }
    archive.small(&[0; 2 * entry::BLOCK])?;
    archive.packer.finish().map_err(target_error)
}

struct Archive<W: Write> {
    packer: Packer<W>,
    piece: Vec<u8>,
}

impl<W: Write> Archive<W> {
    fn document(&mut self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        self.small(&entry::headers(name, bytes.len() as u64))?;
        self.small(bytes)?;
        self.small(&entry::padding(bytes.len() as u64))
    }

    fn small(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.packer.small(bytes).map_err(target_error)
    }

    fn blob(&mut self, blob: &BlobRef, feed: &mut dyn BlobFeed) -> Result<(), WriteError> {
        let failed = |source| WriteError::Blob {
            digest: blob.digest.clone(),
            source,
        };
        self.small(&entry::headers(&crate::image::blob_name(&blob.digest), blob.size))?;
        let mut source = feed.open(blob).map_err(failed)?;
        let mut hasher = Hasher::of(&blob.digest);
        let mut left = blob.size;
        self.packer.begin(blob.size).map_err(target_error)?;
        while left > 0 {
            // Pieces are always full: what a codec makes may depend on them.
            let wanted = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let n = fill(&mut *source, &mut self.piece[..wanted]).map_err(failed)?;
            if n < wanted {
                return Err(wrong_size(blob, blob.size - left + n as u64));
            }
            hasher.update(&self.piece[..n]);
            self.packer.data(&self.piece[..n]).map_err(target_error)?;
            left -= n as u64;
        }
        if fill(&mut *source, &mut self.piece[..1]).map_err(failed)? > 0 {
            return Err(wrong_size(blob, blob.size + 1));
        }
        self.packer.end().map_err(target_error)?;
        let found = hasher.finish();
        if found != blob.digest {
            return Err(WriteError::Digest {
                digest: blob.digest.clone(),
                found,
            });
        }
        self.small(&entry::padding(blob.size))
    }
}

fn wrong_size(blob: &BlobRef, found: u64) -> WriteError {
    WriteError::Size {
        digest: blob.digest.clone(),
        expected: blob.size,
        found,
    }
}

fn target_error(source: io::Error) -> WriteError {
    WriteError::Target {
        action: "write the bundle",
        source,
    }
}
