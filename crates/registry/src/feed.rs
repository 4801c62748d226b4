//! Fetches several layers at a time from the registries, and writes them one after the other into
//! the bundle.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bundle::BlobRef;
use bundle::write::BlobFeed;
use bytes::{Bytes, BytesMut};
use oci_spec::image::Digest;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::cache::Keeping;
use crate::{Cache, Client, Error, Resolved};

/// Bytes that are handed over at a time.
const PIECE: usize = 256 << 10;

/// Pieces that are buffered for each layer: 8 MiB. So a small layer is complete when its turn
/// comes.
const WAITING: usize = 32;

/// Returns the blobs of images in the announced order. Documents are in memory. Layers are fetched
/// in the same order, the next ones while the first is written. Reading blocks, so do not read in
/// async code.
pub struct Feed {
    documents: HashMap<Digest, Vec<u8>>,
    coming: mpsc::UnboundedReceiver<Coming>,
    cache: Option<Cache>,
    /// The last blob that was returned. It is kept in the cache once its digest was verified.
    keeping: Option<Keeping>,
    /// Dropping this ends all transfers.
    _fetching: JoinSet<()>,
}

struct Coming {
    digest: Digest,
    pieces: mpsc::Receiver<Result<Bytes, Error>>,
    from_cache: Arc<AtomicU64>,
}

/// Progress of the transfers in bytes. The values only grow.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Bytes from registries.
    pub fetched: Arc<AtomicU64>,
    /// Bytes from the cache.
    pub cached: Arc<AtomicU64>,
}

impl Feed {
    /// Starts to fetch `blobs`, which belong to `images`, `concurrency` at a time.
    ///
    /// # Panics
    ///
    /// Panics outside of a runtime.
    pub fn begin(
        client: &Arc<Client>,
        images: &[Resolved],
        blobs: &[BlobRef],
        concurrency: usize,
        cache: Option<&Cache>,
        counters: &Counters,
    ) -> Self {
        let mut documents = HashMap::new();
        let mut repositories: HashMap<&Digest, Vec<String>> = HashMap::new();
        for image in images {
            for (blob, bytes) in &image.documents {
                documents.insert(blob.digest.clone(), bytes.clone());
            }
            for layer in &image.draft.layers {
                let known = repositories.entry(&layer.digest).or_default();
                if !known.contains(&image.repository) {
                    known.push(image.repository.clone());
                }
            }
        }
        let layers: Vec<Layer> = blobs
            .iter()
            .filter(|blob| !documents.contains_key(&blob.digest))
            .map(|blob| Layer {
                blob: blob.clone(),
                repositories: repositories.get(&blob.digest).cloned().unwrap_or_default(),
            })
            .collect();
        let (sender, coming) = mpsc::unbounded_channel();
        let mut fetching = JoinSet::new();
        let fetcher = Fetcher {
            client: Arc::clone(client),
            cache: cache.cloned(),
            counters: counters.clone(),
        };
        fetching.spawn(fetch_all(fetcher, layers, concurrency.max(1), sender));
        Self {
            documents,
            coming,
            cache: cache.cloned(),
            keeping: None,
            _fetching: fetching,
        }
    }

    /// Reports that the bundle was written, so the digest of the last blob was verified too.
    pub fn finish(mut self) {
        self.commit();
    }

    fn commit(&mut self) {
        if let Some(Err(error)) = self.keeping.take().map(Keeping::commit) {
            tracing::warn!(%error, "cannot keep a blob in the cache");
        }
    }
}

impl BlobFeed for Feed {
    fn open(&mut self, blob: &BlobRef) -> io::Result<Box<dyn Read + '_>> {
        self.commit();
        if let Some(bytes) = self.documents.get(&blob.digest) {
            return Ok(Box::new(bytes.as_slice()));
        }
        let coming = self.coming.blocking_recv();
        let coming = coming.filter(|coming| coming.digest == blob.digest);
        let Some(Coming {
            pieces, from_cache, ..
        }) = coming
        else {
            return Err(io::Error::other(
                "layers were requested in another order than announced",
            ));
        };
        Ok(Box::new(Pieces {
            pieces,
            piece: Bytes::new(),
            cache: self.cache.as_ref(),
            blob: blob.clone(),
            from_cache,
            keeping: &mut self.keeping,
        }))
    }
}

/// Reads the pieces of one layer, and stores a layer from a registry in the cache.
struct Pieces<'f> {
    pieces: mpsc::Receiver<Result<Bytes, Error>>,
    piece: Bytes,
    cache: Option<&'f Cache>,
    blob: BlobRef,
    from_cache: Arc<AtomicU64>,
    keeping: &'f mut Option<Keeping>,
}

impl Pieces<'_> {
    /// Stores a piece in the cache. If the cache cannot be written, only the next run takes longer.
    fn keep(&mut self) {
        if self.from_cache.load(Ordering::Relaxed) > 0 {
            return;
        }
        let Some(cache) = self.cache else { return };
        let kept = match self.keeping.take() {
            Some(keeping) => Ok(keeping),
            None => cache.keep(&self.blob),
        };
        match kept.and_then(|mut keeping| keeping.write(&self.piece).map(|()| keeping)) {
            Ok(keeping) => *self.keeping = Some(keeping),
            Err(error) => {
                tracing::warn!(%error, "cannot write to the cache");
                self.cache = None;
            }
        }
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                None => return Ok(0),
                Some(Err(error)) => {
                    *self.keeping = None;
                    return Err(io::Error::other(error));
                }
                Some(Ok(piece)) => {
                    self.piece = piece;
                    self.keep();
                }
            }
        }
        let n = self.piece.len().min(buffer.len());
        buffer[..n].copy_from_slice(&self.piece.split_to(n));
        Ok(n)
    }
}

/// A layer and the repositories that have it.
struct Layer {
    blob: BlobRef,
    repositories: Vec<String>,
}

#[derive(Clone)]
struct Fetcher {
    client: Arc<Client>,
    cache: Option<Cache>,
    counters: Counters,
}

/// Starts layers in order. The first incomplete layer always has a permit. So the layer that the
/// reader waits for never waits for the reader.
async fn fetch_all(
    fetcher: Fetcher,
    layers: Vec<Layer>,
    concurrency: usize,
    coming: mpsc::UnboundedSender<Coming>,
) {
    let permits = Arc::new(Semaphore::new(concurrency));
    let mut tasks = JoinSet::new();
    for layer in layers {
        let permit = Arc::clone(&permits)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let (sender, pieces) = mpsc::channel(WAITING);
        let from_cache = Arc::new(AtomicU64::new(0));
        let handed_over = coming.send(Coming {
            digest: layer.blob.digest.clone(),
            pieces,
            from_cache: Arc::clone(&from_cache),
        });
        if handed_over.is_err() {
            return;
        }
        tasks.spawn(fetcher.clone().fetch(layer, sender, from_cache, permit));
    }
    while tasks.join_next().await.is_some() {}
}

type Pipe = mpsc::Sender<Result<Bytes, Error>>;

impl Fetcher {
    async fn fetch(
        self,
        layer: Layer,
        pipe: Pipe,
        from_cache: Arc<AtomicU64>,
        _permit: OwnedSemaphorePermit,
    ) {
        if let Some(file) = self.cached(&layer.blob).await {
            from_cache.store(1, Ordering::Relaxed);
            let cached = Arc::clone(&self.counters.cached);
            let _ = Handle::current()
                .spawn_blocking(move || send_file(file, &pipe, &cached))
                .await;
            return;
        }
        if let Err(error) = self.fetch_from_registry(&layer, &pipe).await {
            let _ = pipe.send(Err(error)).await;
        }
    }

    async fn cached(&self, blob: &BlobRef) -> Option<File> {
        let (cache, blob) = (self.cache.clone()?, blob.clone());
        let found = tokio::task::spawn_blocking(move || cache.find(&blob)).await;
        found.ok().flatten()
    }

    /// Tries each repository that has the layer. Each continues where the previous one stopped.
    async fn fetch_from_registry(&self, layer: &Layer, pipe: &Pipe) -> Result<(), Error> {
        let mut sent = 0;
        let mut result = Ok(());
        for repository in &layer.repositories {
            result = self.transfer(repository, &layer.blob, &mut sent, pipe).await;
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// Transfers the missing bytes. A retry continues at the byte where the last try was
    /// interrupted. The reader of all bytes verifies the digest.
    async fn transfer(
        &self,
        repository: &str,
        blob: &BlobRef,
        sent: &mut u64,
        pipe: &Pipe,
    ) -> Result<(), Error> {
        let mut tries = self.client.tries();
        loop {
            let before = *sent;
            let error = match self.run(repository, blob, sent, pipe).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let Some(wait) = tries.wait_after(&error, *sent > before) else {
                return Err(error);
            };
            tracing::warn!(error = %basics::chain(&error), at = *sent, "transfer interrupted: continuing at the same byte");
            tokio::time::sleep(wait).await;
        }
    }

    async fn run(&self, repository: &str, blob: &BlobRef, sent: &mut u64, pipe: &Pipe) -> Result<(), Error> {
        let mut body = self.client.blob(repository, blob, *sent).await?;
        let mut piece = BytesMut::with_capacity(PIECE);
        loop {
            let chunk = body.chunk().await;
            let is_over = !matches!(chunk, Ok(Some(_)));
            if let Ok(Some(chunk)) = &chunk {
                piece.extend_from_slice(chunk);
            }
            if piece.len() >= PIECE || is_over && !piece.is_empty() {
                let length = piece.len() as u64;
                let full = std::mem::replace(&mut piece, BytesMut::with_capacity(PIECE)).freeze();
                if pipe.send(Ok(full)).await.is_err() {
                    // The reader was dropped.
                    return Ok(());
                }
                *sent += length;
                self.counters.fetched.fetch_add(length, Ordering::Relaxed);
            }
            match chunk {
                Ok(Some(_)) if *sent > blob.size => return Ok(()),
                Ok(Some(_)) => {}
                Ok(None) if *sent < blob.size => return Err(body.short(*sent, blob.size)),
                Ok(None) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

fn send_file(mut file: File, pipe: &Pipe, cached: &AtomicU64) {
    loop {
        let mut piece = vec![0; PIECE];
        match file.read(&mut piece) {
            Ok(0) => return,
            Ok(n) => {
                piece.truncate(n);
                cached.fetch_add(n as u64, Ordering::Relaxed);
                if pipe.blocking_send(Ok(piece.into())).is_err() {
                    return;
                }
            }
            Err(error) => {
                let error = Error::Options(format!("cannot read the cache: {error}"));
                let _ = pipe.blocking_send(Err(error));
                return;
            }
        }
    }
}
