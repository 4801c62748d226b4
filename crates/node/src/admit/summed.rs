//! The sha256 of a stream that is read once. A receipt outlives the bytes of its bundle, and a
//! later list may revoke the sum of these bytes.

use std::fmt;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use admission::Bytes;
use basics::digest::Hasher;
use oci_spec::image::Digest;

use crate::state::admitted::Evidence;

/// Most bytes that are read behind the end of an archive. Programs that write tars pad them to
/// 10 KiB, or to a multiple that the caller gives.
const LONGEST_TAIL: u64 = 16 << 20;

/// The stream, and the hash of all bytes that were read of it.
struct Shared {
    source: Box<dyn Read + Send>,
    hasher: Hasher,
}

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        self.hasher.update(&buffer[..length]);
        Ok(length)
    }
}

/// A stream that hashes each byte that is read of it.
pub(super) struct Summed(Arc<Mutex<Shared>>);

impl Summed {
    /// Returns the stream, and the handle that tells its sum at the end.
    pub(super) fn new(source: impl Read + Send + 'static) -> (Summed, Sum) {
        let shared = Shared {
            source: Box::new(source),
            hasher: Hasher::sha256(),
        };
        let shared = Arc::new(Mutex::new(shared));
        (Summed(Arc::clone(&shared)), Sum(shared))
    }
}

impl Read for Summed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(buffer)
    }
}

/// The sum of a stream whose reader may be gone.
pub struct Sum(Arc<Mutex<Shared>>);

impl fmt::Debug for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sum").finish_non_exhaustive()
    }
}

impl Sum {
    /// Reads the stream to its end, and adds the sha256 of all its bytes to the evidence of its
    /// admission. A stream that fails, or goes on for more than 16 MiB, adds none. The call waits
    /// as long as the stream does. Safe to cancel: the evidence is dropped then.
    pub async fn add_to(self, evidence: Evidence) -> Evidence {
        let at = evidence.at();
        match super::aside(|| self.finish()).await {
            Some(sum) => evidence.again(Bytes::Hashed(&sum), at),
            None => evidence,
        }
    }

    fn finish(self) -> Option<Digest> {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tail = (&mut *shared).take(LONGEST_TAIL + 1);
        let length = io::copy(&mut tail, &mut io::sink()).ok()?;
        (length <= LONGEST_TAIL).then(|| shared.hasher.clone().finish())
    }
}

#[cfg(test)]
mod tests {
    use basics::digest;

    use super::*;

    #[test]
    fn the_sum_is_that_of_all_bytes_also_of_those_that_no_reader_asked_for() {
        let bytes: Vec<u8> = (0..251).cycle().take(100_000).collect();
        for read in [0, 1, 50_000, 100_000] {
            let (mut stream, sum) = Summed::new(io::Cursor::new(bytes.clone()));
            let mut part = vec![0; read];
            stream.read_exact(&mut part).unwrap();
            drop(stream);
            assert_eq!(sum.finish(), Some(digest::sha256(&bytes)), "{read}");
        }
    }

    #[test]
    fn a_stream_without_an_end_has_no_sum() {
        let (_stream, sum) = Summed::new(io::repeat(0));
        assert_eq!(sum.finish(), None);
        let (_stream, sum) = Summed::new(io::repeat(0).take(LONGEST_TAIL));
        assert!(sum.finish().is_some());
    }
}
