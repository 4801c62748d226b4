//! One pass over a bundle that is read from its beginning to its end.
//!
//! A thread reads the wanted blobs in the order of the archive and hands each over in pieces. The
//! sender takes the pieces as they come. Nothing is read twice. The pass skips the rest of a blob
//! that is already in containerd, or that fails. A blob that must be started over is read on its
//! own afterwards.

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bundle::{Bundle, Pipe, StreamedBlob};
use containerd::BlobSource;
use oci_spec::image::Digest;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

/// Size of a piece in bytes.
const PIECE: usize = 256 << 10;
/// Bytes at the beginning of a blob that can be read again. A blob of this size may be sent twice:
/// in one message, and then piece by piece.
const KEPT: usize = 64 << 10;
/// Number of pieces read ahead of the sender.
const READ_AHEAD: usize = 4;

/// A pass under way. Dropping it ends the pass at the next blob.
pub(crate) struct Pass(mpsc::Receiver<Result<Passing, bundle::Error>>);

/// The blob that the pass is reading.
pub(crate) struct Passing {
    pub(crate) digest: Digest,
    /// Size of the blob in bytes.
    pub(crate) size: u64,
    pub(crate) source: Arc<OnceSource>,
}

impl Pass {
    /// Starts a pass over these blobs.
    pub(super) fn begin(bundle: &Arc<Bundle>, wanted: HashSet<Digest>) -> Pass {
        let bundle = Arc::clone(bundle);
        // The next blob is announced only when the blob before it is finished.
        let (blobs, passing) = mpsc::channel(1);
        spawn_blocking(move || {
            if let Err(error) = read_through(&bundle, &wanted, &blobs) {
                // If the send fails, there is no receiver any more.
                let _ = blobs.blocking_send(Err(error));
            }
        });
        Pass(passing)
    }

    /// Starts a pass over all blobs of a pipe. Also returns the thread, which ends with the bundle.
    /// An end of the pass before the end of the pipe is an error there.
    pub(crate) fn through(mut pipe: Pipe) -> (Pass, JoinHandle<Result<Bundle, bundle::Error>>) {
        let (blobs, passing) = mpsc::channel(1);
        let path = pipe.path().to_owned();
        let thread = spawn_blocking(move || {
            while let Some(blob) = pipe.next_blob()? {
                if !announce(blob, &blobs) {
                    return Err(abandoned(&path));
                }
            }
            drop(blobs);
            pipe.into_bundle()
        });
        (Pass(passing), thread)
    }

    /// Returns the next blob, or `None` at the end. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Option<Result<Passing, bundle::Error>> {
        self.0.recv().await
    }
}

fn read_through(
    bundle: &Bundle,
    wanted: &HashSet<Digest>,
    blobs: &mpsc::Sender<Result<Passing, bundle::Error>>,
) -> Result<(), bundle::Error> {
    let mut stream = bundle.stream(wanted)?;
    while let Some(blob) = stream.next_blob()? {
        if !announce(blob, blobs) {
            return Ok(());
        }
    }
    Ok(())
}

fn abandoned(path: &Path) -> bundle::Error {
    bundle::Error {
        path: path.to_owned(),
        fault: bundle::Fault::Io {
            action: "read the pipe",
            source: io::Error::other("the import has stopped"),
        },
    }
}

/// Announces a blob, and hands it over. Returns false if there is no receiver any more.
fn announce(blob: StreamedBlob<'_>, blobs: &mpsc::Sender<Result<Passing, bundle::Error>>) -> bool {
    let (pieces, taken) = mpsc::channel(READ_AHEAD);
    let passing = Passing {
        digest: blob.digest().clone(),
        size: blob.size(),
        source: Arc::new(OnceSource::new(taken)),
    };
    let is_awaited = blobs.blocking_send(Ok(passing)).is_ok();
    if is_awaited {
        hand_over(blob, &pieces);
    }
    is_awaited
}

/// A part of a blob, or its end. A closed channel alone does not mean the end of a blob.
enum Piece {
    Bytes(Vec<u8>),
    End,
    Failed(io::Error),
}

/// Hands a blob over until the receiver stops.
fn hand_over(mut blob: StreamedBlob<'_>, pieces: &mpsc::Sender<Piece>) {
    loop {
        let mut bytes = Vec::with_capacity(PIECE);
        let piece = match (&mut blob).take(PIECE as u64).read_to_end(&mut bytes) {
            Ok(0) => Piece::End,
            Ok(_) => Piece::Bytes(bytes),
            Err(error) => Piece::Failed(error),
        };
        let is_last = !matches!(piece, Piece::Bytes(_));
        if pieces.blocking_send(piece).is_err() || is_last {
            return;
        }
    }
}

/// A blob that can be read once. It may be opened again at the place where the last reader stopped,
/// or further on. A blob may be opened anywhere as long as no more than [`KEPT`] bytes were read.
pub(crate) struct OnceSource {
    passing: Arc<Mutex<Bytes>>,
    missed: AtomicBool,
}

struct Bytes {
    pieces: mpsc::Receiver<Piece>,
    /// The rest of the last piece.
    rest: io::Cursor<Vec<u8>>,
    /// The first bytes, as long as they are all that was read.
    kept: Vec<u8>,
    position: u64,
    is_at_end: bool,
}

impl OnceSource {
    fn new(pieces: mpsc::Receiver<Piece>) -> OnceSource {
        let bytes = Bytes {
            pieces,
            rest: io::Cursor::default(),
            kept: Vec::new(),
            position: 0,
            is_at_end: false,
        };
        OnceSource {
            passing: Arc::new(Mutex::new(bytes)),
            missed: AtomicBool::new(false),
        }
    }

    /// Returns true if a reader asked for bytes that the pass had already read. The blob itself may
    /// be fine.
    pub(super) fn was_missed(&self) -> bool {
        self.missed.load(Ordering::Relaxed)
    }
}

impl BlobSource for OnceSource {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let mut bytes = self.passing.lock().unwrap_or_else(PoisonError::into_inner);
        if offset < bytes.position && !bytes.are_kept() {
            self.missed.store(true, Ordering::Relaxed);
            return Err(gone_by());
        }
        while bytes.position < offset {
            let distance = usize::try_from(offset - bytes.position)
                .unwrap_or(PIECE)
                .min(PIECE);
            if bytes.read(&mut vec![0; distance])? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(Box::new(Reader {
            passing: Arc::clone(&self.passing),
            position: offset,
        }))
    }
}

fn gone_by() -> io::Error {
    let message = "the pass over the bundle is already past these bytes";
    io::Error::new(io::ErrorKind::NotSeekable, message)
}

struct Reader {
    passing: Arc<Mutex<Bytes>>,
    position: u64,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut bytes = self.passing.lock().unwrap_or_else(PoisonError::into_inner);
        let n = match self.position < bytes.position {
            false => bytes.read(buffer)?,
            true if bytes.are_kept() => {
                let from = usize::try_from(self.position).unwrap_or(KEPT);
                (&bytes.kept[from..]).read(buffer)?
            }
            true => return Err(gone_by()),
        };
        self.position += n as u64;
        Ok(n)
    }
}

impl Bytes {
    /// Returns true if all bytes that were read are kept.
    fn are_kept(&self) -> bool {
        self.kept.len() as u64 == self.position
    }

    /// Keeps bytes that were read. Drops all of them if they are more than [`KEPT`].
    fn keep(&mut self, bytes: &[u8]) {
        if self.are_kept() {
            match self.kept.len() + bytes.len() <= KEPT {
                true => self.kept.extend_from_slice(bytes),
                false => self.kept = Vec::new(),
            }
        }
    }
}

impl Read for Bytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = self.rest.read(buffer)?;
            self.keep(&buffer[..n]);
            self.position += n as u64;
            if n > 0 || buffer.is_empty() || self.is_at_end {
                return Ok(n);
            }
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.rest = io::Cursor::new(bytes),
                Some(Piece::End) => self.is_at_end = true,
                Some(Piece::Failed(error)) => return Err(error),
                None => return Err(io::Error::other("the pass over the bundle has ended")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source_of(pieces: Vec<Piece>) -> OnceSource {
        let (sender, receiver) = mpsc::channel(16);
        for piece in pieces {
            assert!(sender.try_send(piece).is_ok(), "there is room");
        }
        OnceSource::new(receiver)
    }

    fn hello() -> OnceSource {
        source_of(vec![
            Piece::Bytes(b"hel".to_vec()),
            Piece::Bytes(b"lo world".to_vec()),
            Piece::End,
        ])
    }

    fn read(source: &OnceSource, offset: u64, most: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        source.open(offset)?.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn a_proven_beginning_is_read_once_and_the_rest_after_it() {
        let source = hello();
        assert_eq!(read(&source, 0, 4).unwrap(), b"hell");
        assert_eq!(read(&source, 4, 99).unwrap(), b"o world");
        assert_eq!(read(&source, 11, 99).unwrap(), b"");
        assert!(!source.was_missed());
    }

    #[test]
    fn what_nobody_reads_is_passed_over() {
        assert_eq!(read(&hello(), 6, 99).unwrap(), b"world");
        assert_eq!(
            read(&hello(), 12, 1).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    #[test]
    fn a_small_blob_can_be_read_again() {
        let source = hello();
        assert_eq!(read(&source, 0, 5).unwrap(), b"hello");
        assert_eq!(read(&source, 2, 99).unwrap(), b"llo world");
        assert_eq!(read(&source, 0, 99).unwrap(), b"hello world");
        assert!(!source.was_missed());
    }

    #[test]
    fn what_has_gone_by_is_missed_and_nothing_else_is() {
        let large: Vec<u8> = (0..=KEPT).map(|n| n.to_le_bytes()[0]).collect();
        let source = source_of(vec![Piece::Bytes(large.clone()), Piece::End]);
        assert_eq!(read(&source, 0, KEPT as u64).unwrap(), large[..KEPT]);
        assert_eq!(read(&source, 0, 999_999).unwrap(), large);
        assert!(!source.was_missed());
        assert!(read(&source, 0, 99).is_err());
        assert!(source.was_missed());
    }

    #[test]
    fn a_pass_that_ends_early_is_no_end_of_the_blob() {
        let source = source_of(vec![Piece::Bytes(b"hel".to_vec())]);
        assert!(read(&source, 0, 99).is_err());
        let source = source_of(vec![
            Piece::Bytes(b"hel".to_vec()),
            Piece::Failed(io::Error::other("damaged")),
        ]);
        assert_eq!(read(&source, 0, 99).unwrap_err().to_string(), "damaged");
    }
}
