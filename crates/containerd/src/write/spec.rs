//! The blob that is to be written, the source of its bytes, and the ways in which a write ends
//! well.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use oci_spec::image::Digest;

use crate::wire::Labels;

/// Where the bytes of a blob come from.
///
/// Reading may block: it happens on a thread of its own, in pieces. A source is opened again for
/// another pass.
pub trait BlobSource: Send + Sync {
    /// Opens the bytes from `offset` on.
    ///
    /// # Errors
    /// Those of the medium. They end up in [`crate::Error::Source`].
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>>;
}

/// A blob to be written.
#[derive(Clone, Debug)]
pub struct BlobSpec {
    /// The digest that containerd shall check.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Labels of the committed blob. One that turns out to be there keeps its own.
    pub labels: Labels,
    /// Grows by the bytes that containerd acknowledges, as it does. Several blobs may share one.
    pub progress: Option<Arc<AtomicU64>>,
}

impl BlobSpec {
    /// A blob without labels, its progress not followed.
    pub fn new(digest: Digest, size: u64) -> BlobSpec {
        BlobSpec {
            digest,
            size,
            labels: Labels::new(),
            progress: None,
        }
    }

    /// The same blob with these labels.
    pub fn with_labels(self, labels: Labels) -> BlobSpec {
        BlobSpec { labels, ..self }
    }

    /// The same blob with its progress counted in `acknowledged`.
    pub fn with_progress(self, acknowledged: Arc<AtomicU64>) -> BlobSpec {
        BlobSpec {
            progress: Some(acknowledged),
            ..self
        }
    }

    /// Counts bytes that containerd acknowledged.
    pub(super) fn acknowledge(&self, bytes: u64) {
        if let Some(progress) = &self.progress {
            progress.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

/// How a blob came to be in the namespace and on the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Bytes were sent, and committed.
    Committed {
        /// How many; less than the blob's size when an interrupted write was resumed.
        sent_bytes: u64,
    },
    /// The namespace had it already, with labels of its own; now it is on the lease.
    Present,
    /// containerd had all bytes already, from another namespace or a write that lacked only its
    /// commit; none was sent.
    Adopted,
}

/// Whether a blob, or a snapshot, is there to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// It is, and the lease now protects it.
    Held,
    /// The namespace has nothing of the kind.
    Absent,
}
