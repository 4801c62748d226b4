//! Writing blobs: containerd's `Content.Write` protocol, pass by pass.
//!
//! [`writer`] tells the story, [`stream`] has the messages, and [`feed`] reads the source.
//! [`verdict`], [`lock`] and [`others`] decide and are pure.
//!
//! A small blob goes in one message that opens, fills and commits its ingest. For a larger blob, or
//! if that message fails, a pass opens the blob's ingest. It finds one of these
//! ([`verdict::Standing`]): nothing, the beginning of the blob from an interrupted write, the whole
//! blob, or unusable bytes.
//!
//! The pass hashes the source up to the end of a beginning, and keeps the beginning if it matches.
//! It streams the rest without waiting for acknowledgements, which it drains as they come. COMMIT,
//! with the digest, makes containerd check the bytes. [`verdict`] judges every failure of a pass.
//! Sometimes another pass from a clean slate is worth it. There are three passes at most.
//!
//! Before the client sends bytes, it looks for an ingest of another importer with the same blob
//! ([`others`]). If there is one, the client waits for its end, and mostly finds the blob
//! committed.
//!
//! A blob is committed only if the source had exactly the declared length. After a refused commit
//! or on a full disk, the client aborts the ingest. After a broken connection, the ingest stays and
//! is resumed.

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
    /// Puts an existing blob under a lease, in one call that finds and protects the blob at once.
    ///
    /// Two calls, a look-up and then an addition to the lease, would leave a gap for the garbage
    /// collector. A blob that only another namespace has, or that is half written, is absent.
    /// [`Client::write_blob`] makes use of such a blob.
    ///
    /// # Errors
    /// Returns [`Error::LeaseLost`] if there is no such lease, and otherwise an error if the call
    /// fails.
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
            // Another client is still writing the blob, so it does not exist yet.
            Err(failure) if failure.is_locked() => Ok(Held::Absent),
            Err(failure) => Err(self.fail_leased(failure, lease, attempt())),
        }
    }

    /// Writes a blob under a lease and sends only the bytes that containerd lacks.
    ///
    /// At most [`crate::Options::write_connections`] blobs are under way at a time, each on its own
    /// connection. Further calls wait.
    ///
    /// # Errors
    /// After these errors, no ingest is left behind:
    ///
    /// - [`Error::Content`]: the source is shorter or longer than declared, or its bytes have
    ///   another digest.
    /// - [`Error::Source`]: the source cannot be read.
    /// - [`Error::Space`]: containerd's disk is full.
    ///
    /// [`Error::Locked`], [`Error::Stalled`] and [`Error::Unreachable`] leave an ingest that the
    /// next call resumes. [`Error::LeaseLost`] means that there is no such lease.
    ///
    /// # Cancel safety
    /// May be dropped at any await. The thread that reads the source stops at its next chunk. An
    /// unfinished ingest stays and can be resumed. A committed blob stays under the lease.
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

    /// Aborts this client's ingest of a blob. A failure is ignored, since the ingest expires with
    /// the lease.
    async fn clean_up(&self, digest: &Digest) {
        if let Err(error) = self.abort_ingest(&ingest_ref(digest)).await {
            tracing::debug!(%digest, %error, "an unusable ingest is left behind");
        }
    }
}
