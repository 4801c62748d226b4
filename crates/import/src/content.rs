//! containerd's content store as a [`bundle::Store`], so that images in it are looked up like those
//! in bundles. A thread that may wait uses it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use basics::chain;
use basics::digest::Hasher;
use containerd::{Client, Error};
use oci_spec::image::Digest;
use tokio::runtime::Handle;

use crate::pace::Pace;
use crate::survey::is_lost;

/// Name of containerd in messages.
pub const CONTAINERD: &str = "containerd";

/// The blobs of a containerd. Their documents are read one by one.
#[derive(Debug)]
pub struct ContentStore {
    client: Client,
    sizes: RefCell<HashMap<Digest, Option<u64>>>,
    /// `None`: `sizes` has all blobs. `Some`: the store asks containerd for every other blob. With
    /// a folder inside, a lost blob does not count (see [`ContentStore::asking`]).
    asks: Option<Option<PathBuf>>,
    runtime: Handle,
    /// The error after which containerd did not answer any more.
    failure: RefCell<Option<Error>>,
}

impl ContentStore {
    /// Returns a store of these blobs, with their sizes in bytes. Call it inside a runtime, and use
    /// the store outside of the runtime's threads.
    pub fn of(client: &Client, blobs: impl IntoIterator<Item = (Digest, u64)>) -> ContentStore {
        let sizes = blobs.into_iter().map(|(digest, size)| (digest, Some(size)));
        ContentStore {
            client: client.clone(),
            sizes: RefCell::new(sizes.collect()),
            asks: None,
            runtime: Handle::current(),
            failure: RefCell::new(None),
        }
    }

    /// Returns a store of all blobs in the client's namespace. It asks for each blob when the blob
    /// is needed, for a namespace with too many blobs to list.
    ///
    /// `store` is the folder of the content store, if it is visible. A blob without a file there is
    /// absent, unless containerd can read the blob's end.
    pub fn asking(client: &Client, store: Option<PathBuf>) -> ContentStore {
        ContentStore {
            asks: Some(store),
            ..ContentStore::of(client, [])
        }
    }

    fn ask(&self, digest: &Digest, store: Option<&Path>) -> Result<Option<u64>, Error> {
        let Some(blob) = self.runtime.block_on(self.client.blob(digest))? else {
            return Ok(None);
        };
        let is_there = match store {
            Some(store) if is_lost(store, &blob) => {
                self.runtime.block_on(self.client.has_end(digest, blob.size))?
            }
            _ => true,
        };
        Ok(is_there.then_some(blob.size))
    }

    /// Returns the error if containerd did not answer. The results since then are worthless.
    pub fn take_failure(&mut self) -> Option<Error> {
        self.failure.get_mut().take()
    }
}

impl bundle::Store for ContentStore {
    fn size(&self, digest: &Digest) -> Option<u64> {
        if let Some(known) = self.sizes.borrow().get(digest) {
            return *known;
        }
        let found = match self.ask(digest, self.asks.as_ref()?.as_deref()) {
            Ok(found) => found,
            Err(error) => {
                self.failure.replace(Some(error));
                return None;
            }
        };
        self.sizes.borrow_mut().insert(digest.clone(), found);
        found
    }

    fn read(&mut self, digest: &Digest) -> Result<Vec<u8>, String> {
        let size = self.size(digest).unwrap_or_default();
        self.runtime
            .block_on(self.client.read_blob(digest, size))
            .map_err(|error| {
                let reason = chain(&error);
                if matches!(error, Error::Unreachable { .. } | Error::Stalled { .. }) {
                    self.failure.replace(Some(error));
                }
                reason
            })
    }
}

/// Returns the digest of a blob's bytes as containerd reads them, at a pace. The bytes are right if
/// it is the blob's own digest. Safe to cancel.
///
/// # Errors
///
/// Returns the client's error, unchanged. A blob that is not there is [`Error::Gone`].
pub async fn digest_in_containerd(client: &Client, digest: &Digest, pace: &Pace) -> Result<Digest, Error> {
    let mut hasher = Hasher::of(digest);
    let mut reader = client.open_blob(digest, 0).await?;
    while let Some(piece) = reader.next().await? {
        hasher.update(&piece);
        pace.turn(piece.len() as u64).await;
    }
    Ok(hasher.finish())
}
