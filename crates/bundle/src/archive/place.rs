//! Places of bytes, and results of looking up a name.

use std::sync::Arc;

use crate::Identity;

/// The place of the bytes of a blob or an entry.
///
/// The modules above the archive know only places. So another kind of bundle, such as a folder,
/// adds a place and not a second reader.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// A part of the archive, in bytes. In a compressed archive, the offset counts decompressed
    /// bytes.
    Extent { offset: u64, size: u64 },
    /// A file of a folder, with its identity when it was found.
    InFolder { name: Arc<str>, identity: Arc<Identity> },
    /// Bytes in memory that the reader made, or that a descriptor embeds.
    Memory(Arc<[u8]>),
    /// Bytes that a pipe has yet to bring. The size is that of the descriptor.
    ToCome { size: u64 },
}

impl Place {
    /// Returns the offset of the bytes in the archive. Returns `None` if they are not in it.
    pub(crate) fn offset(&self) -> Option<u64> {
        match self {
            Self::Extent { offset, .. } => Some(*offset),
            Self::InFolder { .. } | Self::Memory(_) | Self::ToCome { .. } => None,
        }
    }

    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Extent { size, .. } | Self::ToCome { size } => *size,
            Self::InFolder { identity, .. } => identity.size,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }
}

/// The entry behind a name.
pub(crate) enum Found {
    File(Place),
    /// There is no such entry.
    Nothing,
    /// There is an entry, but its bytes cannot be used for this reason.
    Unusable(String),
}

/// The state of the folder where the blobs of a layout should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlobsFolder {
    /// A link, which the reader does not follow out of the bundle.
    Link,
    /// Missing, or an empty folder.
    Nothing,
    /// Any files.
    Something,
}
