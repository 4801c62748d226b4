//! The blob to write, the source of its bytes, and the ways in which a write succeeds.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use oci_spec::image::Digest;

use crate::wire::Labels;

/// The source of a blob's bytes.
///
/// Reading may block: it happens on its own thread, in pieces. Another pass opens the source again.
pub trait BlobSource: Send + Sync {
    /// Opens the bytes from `offset` on.
    ///
    /// # Errors
    /// Returns the errors of the medium. The client wraps them in [`crate::Error::Source`].
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>>;
}

/// A blob to write.
#[derive(Clone, Debug)]
pub struct BlobSpec {
    /// The digest that containerd checks.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// Labels of the committed blob. If the blob exists already, it keeps its own labels.
    pub labels: Labels,
    /// Counter of the bytes that containerd acknowledges. Several blobs may share a counter.
    pub progress: Option<Arc<AtomicU64>>,
}

impl BlobSpec {
    /// Returns a blob without labels and without a counter.
    pub fn new(digest: Digest, size: u64) -> BlobSpec {
        BlobSpec {
            digest,
            size,
            labels: Labels::new(),
            progress: None,
        }
    }

    /// Returns the same blob with these labels.
    pub fn with_labels(self, labels: Labels) -> BlobSpec {
        BlobSpec { labels, ..self }
    }

    /// Returns the same blob. `acknowledged` counts its progress.
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

/// The way in which a blob came into the namespace and under the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// The client sent bytes, and containerd committed them.
    Committed {
        /// Number of bytes sent. It is less than the blob's size if the client resumed an
        /// interrupted write.
        sent_bytes: u64,
    },
    /// The namespace already had the blob, with its own labels. Now the blob is under the lease.
    Present,
    /// containerd already had all bytes, from another namespace or from a write that lacked only
    /// its commit. The client sent none.
    Adopted,
}

/// Result of putting a blob or a snapshot under a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// The blob or snapshot exists, and the lease now protects it.
    Held,
    /// The namespace has no such blob or snapshot.
    Absent,
}
