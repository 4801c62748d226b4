//! Blobs of a containerd, for the writer of a bundle.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bundle::BlobRef;
use bundle::write::BlobFeed;
use containerd::{Client, Error, Recovery};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// Number of pieces that are read ahead of the writer, about 1 MiB each.
const AHEAD: usize = 4;

/// Retries in a row without progress, and the pause before each. They cover a restart of
/// containerd.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(500);

/// Reads blobs out of containerd, one after the other.
#[derive(Debug)]
pub(super) struct Feed {
    client: Client,
    runtime: Handle,
    read: Arc<AtomicU64>,
}

impl Feed {
    /// Returns a reader of this containerd's blobs, which adds their bytes to `read`. Call it in a
    /// tokio runtime.
    pub(super) fn new(client: &Client, read: Arc<AtomicU64>) -> Feed {
        Feed {
            client: client.clone(),
            runtime: Handle::current(),
            read,
        }
    }
}

impl BlobFeed for Feed {
    fn open(&mut self, blob: &BlobRef) -> io::Result<Box<dyn Read + '_>> {
        let (sender, receiver) = mpsc::channel(AHEAD);
        let (client, blob) = (self.client.clone(), blob.clone());
        self.runtime.spawn(async move {
            if let Err(error) = send(&client, &blob, &sender).await {
                // The channel is closed if the writer has stopped.
                let _ = sender.send(Err(error)).await;
            }
        });
        Ok(Box::new(Pieces {
            receiver,
            piece: io::Cursor::default(),
            read: Arc::clone(&self.read),
        }))
    }
}

type Piece = Result<Vec<u8>, Error>;

/// Sends a blob. After a restart of containerd it continues at the same offset.
async fn send(client: &Client, blob: &BlobRef, sender: &mpsc::Sender<Piece>) -> Result<(), Error> {
    let (mut offset, mut tries) = (0, 0);
    while offset < blob.size {
        let before = offset;
        let Err(error) = send_from(client, blob, &mut offset, sender).await else {
            return Ok(());
        };
        tries = if offset > before { 0 } else { tries + 1 };
        // The lease protects the blobs. A blob that still disappears does not come back.
        let may_pass = error.recovery() == Recovery::Transient && !matches!(error, Error::Gone { .. });
        if !may_pass || tries == TRIES {
            return Err(error);
        }
        tracing::debug!(digest = %blob.digest, offset, "reading again: {}", basics::chain(&error));
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

async fn send_from(
    client: &Client,
    blob: &BlobRef,
    offset: &mut u64,
    sender: &mpsc::Sender<Piece>,
) -> Result<(), Error> {
    let mut reader = client.open_blob(&blob.digest, *offset).await?;
    while let Some(piece) = reader.next().await? {
        *offset += piece.len() as u64;
        if sender.send(Ok(piece)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// The pieces of a blob as one reader, for a thread that may block.
struct Pieces {
    receiver: mpsc::Receiver<Piece>,
    piece: io::Cursor<Vec<u8>>,
    read: Arc<AtomicU64>,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = self.piece.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                self.read.fetch_add(n as u64, Ordering::Relaxed);
                return Ok(n);
            }
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(piece) => self.piece = io::Cursor::new(piece.map_err(io::Error::other)?),
            }
        }
    }
}
