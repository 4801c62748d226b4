//! The blocking half of writing a blob: it reads the source piece by piece into messages.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use basics::counted;
use basics::digest::Hasher;
use containerd_client::services::v1::{WriteAction, WriteContentRequest};
use oci_spec::image::Digest;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::BlobSource;
use crate::error::Error;
use crate::wire::size_to_wire;

/// Bytes per message. Larger messages cost memory and gain no speed.
const CHUNK: usize = 512 << 10;

/// The thread of one transfer, which fills the queue of messages from the source.
pub(super) struct Feed {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) source: Arc<dyn BlobSource>,
    pub(super) requests: mpsc::Sender<WriteContentRequest>,
    /// The offset that queued messages have reached.
    pub(super) queued: Arc<AtomicU64>,
    pub(super) stop: CancellationToken,
    /// The last message, sent if all bytes were as declared.
    pub(super) commit: WriteContentRequest,
}

/// Result of a thread.
pub(super) enum Fed {
    /// The thread queued every message, COMMIT included.
    Whole,
    /// The queue is closed: its writer has given up.
    HungUp,
    /// The source does not match its declaration. Nothing was committed.
    Unfit(Error),
}

impl Feed {
    /// Feeds the bytes from `offset` on. Blocks.
    pub(super) fn run(self, offset: u64) -> Fed {
        match self.send_data(offset) {
            // If the writer has given up, the blob is left for another pass, even if only the
            // commit is missing.
            Ok(true) if !self.stop.is_cancelled() && self.requests.blocking_send(self.commit).is_ok() => {
                Fed::Whole
            }
            Ok(_) => Fed::HungUp,
            Err(error) => Fed::Unfit(error),
        }
    }

    /// Queues the bytes from `offset` on. Returns true if all are queued. Fails unless the source
    /// has exactly the declared length.
    fn send_data(&self, mut offset: u64) -> Result<bool, Error> {
        let Feed { digest, size, .. } = self;
        let failed = |error| Error::source(digest, error);
        let mut reader = self.source.open(offset).map_err(failed)?;
        while offset < *size {
            let data = read_chunk(&mut *reader, size - offset).map_err(failed)?;
            if self.stop.is_cancelled() {
                return Ok(false);
            }
            if data.is_empty() {
                return Err(too_short(digest, *size, offset));
            }
            let length = data.len() as u64;
            let message = WriteContentRequest {
                action: WriteAction::Write.into(),
                offset: size_to_wire(offset)?,
                data,
                ..WriteContentRequest::default()
            };
            if self.requests.blocking_send(message).is_err() {
                return Ok(false);
            }
            offset += length;
            self.queued.store(offset, Ordering::Relaxed);
        }
        ends(&mut *reader, digest, *size).map(|()| true)
    }
}

/// Reads a small source that must have exactly as many bytes as declared. Blocks.
pub(super) fn read_whole(source: &dyn BlobSource, digest: &Digest, size: u64) -> Result<Vec<u8>, Error> {
    let failed = |error| Error::source(digest, error);
    let mut reader = source.open(0).map_err(failed)?;
    let data = read_chunk(&mut *reader, size).map_err(failed)?;
    let length = data.len() as u64;
    if length < size {
        return Err(too_short(digest, size, length));
    }
    ends(&mut *reader, digest, size).map(|()| data)
}

/// Fails unless a reader is at its end.
fn ends(reader: &mut dyn Read, digest: &Digest, size: u64) -> Result<(), Error> {
    match read_chunk(reader, 1)
        .map_err(|error| Error::source(digest, error))?
        .len()
    {
        0 => Ok(()),
        _ => Err(Error::content(
            digest,
            format!(
                "declared with {}, but has at least {}",
                counted(size, "byte"),
                size + 1
            ),
        )),
    }
}

fn too_short(digest: &Digest, size: u64, length: u64) -> Error {
    Error::content(
        digest,
        format!("declared with {}, but ends after {length}", counted(size, "byte")),
    )
}

/// Hashes the first `length` bytes of a source. Hashes fewer if the source ends before or its
/// writer has given up. Blocks.
pub(super) fn hash_beginning(
    source: &dyn BlobSource,
    length: u64,
    mut hasher: Hasher,
    stop: &CancellationToken,
) -> io::Result<Digest> {
    let mut reader = source.open(0)?.take(length);
    loop {
        let chunk = read_chunk(&mut reader, CHUNK as u64)?;
        if chunk.is_empty() || stop.is_cancelled() {
            return Ok(hasher.finish());
        }
        hasher.update(&chunk);
    }
}

/// Reads a chunk. It is shorter only at the end of the source or of `remains`.
fn read_chunk(reader: &mut dyn Read, remains: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(remains).map_or(CHUNK, |remains| remains.min(CHUNK));
    let mut chunk = Vec::with_capacity(length);
    reader.take(length as u64).read_to_end(&mut chunk)?;
    Ok(chunk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_full_until_the_end_even_if_the_source_gives_little_at_a_time() {
        struct Dribble(usize);
        impl Read for Dribble {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let length = self.0.min(buffer.len()).min(1000);
                self.0 -= length;
                Ok(length)
            }
        }
        let mut source = Dribble(CHUNK + 10);
        let lengths: Vec<_> = (0..3)
            .map(|_| read_chunk(&mut source, u64::MAX).expect("readable").len())
            .collect();
        assert_eq!(lengths, [CHUNK, 10, 0]);
        assert_eq!(read_chunk(&mut Dribble(100), 7).expect("readable").len(), 7);
    }
}
