//! Writes bundles: an OCI image layout in a tar archive. The same content gives the same bytes.
//!
//! The module never opens an archive, chooses an image or a name, or fetches a blob by itself.
//!
//! A [`Draft`] is a value with the names, the targets behind them and the blobs. [`Layout`] puts
//! every entry of the archive in order. [`write()`] writes the entries, and requests each blob when
//! it is next. `oci-layout`, `index.json` and `manifest.json` come first, then documents, then
//! layers. So a program that reads the archive as a stream knows all names before the first large
//! blob. The entries do not show who wrote them, when or where.
//!
//! Each blob is hashed while it is written, so every blob matches its digest. An archive that
//! cannot be completed has no end mark. Sources: OCI image-spec 1.1, "Image Layout", "Annotations";
//! POSIX.1-2017 `pax`.

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
pub use output::{Output, OutputFolder};

use crate::archive::fill;
use crate::{BlobRef, Compression};
use basics::digest::Hasher;
use packer::{PIECE, Packer};

/// The reason why a bundle was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The draft contradicts itself, or exceeds what readers accept. The text says where, and the
    /// remedy.
    #[error("{0}")]
    Draft(String),
    /// The archive cannot be written.
    #[error("cannot {action}")]
    Target {
        /// The call that failed.
        action: &'static str,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A blob cannot be read.
    #[error("cannot read blob {digest}")]
    Blob {
        /// Digest of the blob.
        digest: Digest,
        /// The cause.
        source: io::Error,
    },
    /// A blob has another length than its descriptor says.
    #[error("blob {digest} should have {expected} bytes and has {}", how_many(*.expected, *.found))]
    Size {
        /// Digest of the blob.
        digest: Digest,
        /// Length in bytes that its descriptor gives.
        expected: u64,
        /// Number of bytes that were read. One more than expected if there are more, since reading
        /// stops there.
        found: u64,
    },
    /// The bytes of a blob do not match its digest.
    #[error("blob {digest} is corrupt: its bytes have the digest {found}")]
    Digest {
        /// Digest that the blob should have.
        digest: Digest,
        /// Digest of its bytes.
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

/// A source of blobs. The writer opens each blob once, in the order of [`Layout::blobs`].
pub trait BlobFeed {
    /// Opens a blob. The writer verifies its bytes.
    ///
    /// # Errors
    ///
    /// Returns an error if the blob cannot be read.
    fn open(&mut self, blob: &BlobRef) -> io::Result<Box<dyn Read + '_>>;
}

impl<F: FnMut(&BlobRef) -> io::Result<Box<dyn Read>>> BlobFeed for F {
    fn open(&mut self, blob: &BlobRef) -> io::Result<Box<dyn Read + '_>> {
        self(blob)
    }
}

/// Sizes of a written bundle in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Size of the archive before compression.
    pub archive: u64,
    /// Size of the file.
    pub file: u64,
}

/// Writes a bundle. The call blocks. It keeps one piece of a blob and the codec's window in memory.
///
/// The bytes depend only on the layout, the compression and the version of its library. A bundle
/// compressed with zstd is seekable: each layer starts a frame, and a skippable frame at the end
/// has a table of all frames (see `docs/bundles.md`). The target is flushed but not synced.
///
/// # Errors
///
/// Returns an error if the target cannot be written, or if a blob is unreadable or has another
/// digest. The target is then incomplete and not a bundle.
///
/// # Panics
///
/// Panics unless `compression` is none, gzip or zstd. Bundles with other compressions can only be
/// read.
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
            // Pieces are always full, because the output of a codec may depend on their sizes.
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
