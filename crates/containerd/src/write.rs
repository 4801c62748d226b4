//! Writing blobs: containerd's `Content.Write` protocol, pass by pass.
//!
//! [`writer`] tells the story, [`stream`] has the messages, [`feed`] reads the source; [`verdict`],
//! [`lock`] and [`others`] decide and are pure.
//!
//! A small blob goes in one message that opens, fills and commits its ingest. Of any other, and
//! where that does not do, a pass opens the blob's ingest and sees what it finds
//! ([`verdict::Standing`]): nothing, the beginning of the blob from an interrupted write, all of
//! it, or something unusable. A usable beginning is kept after our source has been hashed that far;
//! the rest is streamed without waiting for acknowledgements, which are drained as they come; and
//! COMMIT, with the digest, has containerd check what it got. Whatever ends a pass badly is judged
//! by
//! [`verdict`]: another pass from a clean slate is worth it sometimes, three in all at most.
//!
//! Before anything is sent, a look at the other ingests tells whether another importer is at the
//! same blob ([`others`]); then its end is waited for, and mostly the blob is there.
//!
//! Nothing is committed unless the source had exactly the declared length, and nothing stays behind
//! after a commit that failed or on a full disk; after a broken connection the ingest stays, to be
//! resumed.

mod feed;
mod lock;
mod others;
mod spec;
mod stream;
mod verdict;
mod writer;

use std::sync::Arc;

use oci_spec::image::Digest;

use crate::Client;
use crate::content::ingest_ref;
use crate::error::Error;
use crate::wire::{check_digest, size_from_wire};

pub use spec::{BlobSource, BlobSpec, Held, Written};

use stream::WriteStream;
use writer::Writer;

impl Client {
    /// Puts a blob that is already there under a lease, in one call that finds and protects it at
    /// once.
    ///
    /// Looking first and adding to the lease afterwards would leave a gap for the garbage
    /// collector. A blob that only another namespace has, or that is half written, is absent, and
    /// [`Client::write_blob`] knows how to make use of what there is.
    ///
    /// # Errors
    /// [`Error::LeaseLost`] when there is no such lease, otherwise those of any call.
    pub async fn hold_blob(&self, lease: &str, digest: &Digest, size: u64) -> Result<Held, Error> {
        check_digest(digest)?;
        let attempt = || format!("hold blob {digest}");
        let opening = stream::stat(digest, size)?;
        match WriteStream::open(self, self.channel(), lease, &opening).await? {
            Ok(stream) => {
                let is_empty = size_from_wire(stream.standing.offset) == 0;
                stream.finish().await;
                if is_empty {
                    self.clean_up(digest).await;
                }
                Ok(Held::Absent)
            }
            Err(failure) if failure.is_already_exists() => Ok(Held::Held),
            // Another writer is at it, so it is not there yet.
            Err(failure) if failure.is_locked() => Ok(Held::Absent),
            Err(failure) => Err(self.fail_leased(failure, lease, attempt())),
        }
    }

    /// Writes a blob under a lease, sending only what containerd lacks of it.
    ///
    /// At most [`crate::Options::write_connections`] blobs are under way at a time, each on its own
    /// connection; further calls wait their turn.
    ///
    /// # Errors
    /// [`Error::Content`] when the source is shorter or longer than declared or its bytes have
    /// another digest, [`Error::Source`] when it cannot be read, [`Error::Space`] when containerd's
    /// disk is full: in these cases nothing is left behind. [`Error::Locked`], [`Error::Stalled`]
    /// and [`Error::Unreachable`] leave an ingest that the next call resumes. [`Error::LeaseLost`]
    /// when there is no such lease.
    ///
    /// # Cancel safety
    /// May be dropped at any await. The thread that reads the source stops at its next chunk, an
    /// unfinished ingest stays to be resumed, and what was committed stays under the lease.
    pub async fn write_blob(
        &self,
        lease: &str,
        spec: &BlobSpec,
        source: Arc<dyn BlobSource>,
    ) -> Result<Written, Error> {
        check_digest(&spec.digest)?;
        let connection = self.shared.writes.take().await;
        let channel = connection.channel();
        let writer = Writer::new(self, channel, lease, spec, source);
        let written = writer.write().await;
        if let Err(Error::Stalled { .. }) = written {
            connection.discard();
        }
        written
    }

    /// Throws our ingest of a blob away. Failing at that is no reason to fail: it expires with the
    /// lease.
    async fn clean_up(&self, digest: &Digest) {
        if let Err(error) = self.abort_ingest(&ingest_ref(digest)).await {
            tracing::debug!(%digest, %error, "an unusable ingest stays behind");
        }
    }
}
