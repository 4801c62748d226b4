//! Where bytes are, and what a name is found to stand for.

use std::sync::Arc;

use crate::Identity;

/// Where the bytes of a blob or an entry are.
///
/// Everything above the archive speaks of places only, so that another kind of bundle (compressed,
/// or a folder) adds a place and not a second reader.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// A part of the archive, in bytes; of a compressed one, in those that it decompresses to.
    Extent { offset: u64, size: u64 },
    /// A file of a folder, as it was when it was found.
    InFolder { name: Arc<str>, identity: Arc<Identity> },
    /// Made up or embedded in a descriptor.
    Memory(Arc<[u8]>),
}

impl Place {
    /// Where its bytes begin in the archive, if that is where they are.
    pub(crate) fn offset(&self) -> Option<u64> {
        match self {
            Self::Extent { offset, .. } => Some(*offset),
            Self::InFolder { .. } | Self::Memory(_) => None,
        }
    }

    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Extent { size, .. } => *size,
            Self::InFolder { identity, .. } => identity.size,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }
}

/// The entry that a name stands for.
pub(crate) enum Found {
    File(Place),
    /// No such entry.
    Nothing,
    /// There is one, but its bytes cannot be had, for this reason.
    Unusable(String),
}

/// The state of the place where the blobs of a layout should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlobsFolder {
    /// A link, which is not followed out of the bundle.
    Link,
    /// Nothing, or an empty folder.
    Nothing,
    /// Files, whichever.
    Something,
}
