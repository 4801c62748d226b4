//! containerd's content store as a place that images are looked up in, as they are in bundles:
//! asked from a thread that may wait.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use basics::chain;
use containerd::{Client, Error};
use oci_spec::image::Digest;
use tokio::runtime::Handle;

use crate::survey::is_lost;

/// What containerd is called in messages.
pub const CONTAINERD: &str = "containerd";

/// Blobs that containerd has, their documents read one by one.
#[derive(Debug)]
pub struct ContentStore {
    client: Client,
    sizes: RefCell<HashMap<Digest, Option<u64>>>,
    /// Of blobs that are not among the sizes containerd is asked, and they count where this store
    /// has them, if it is there.
    asks: Option<Option<PathBuf>>,
    runtime: Handle,
    /// Why containerd does not answer any more.
    failure: RefCell<Option<Error>>,
}

impl ContentStore {
    /// The store of a client, with these blobs and their sizes in bytes. To be called in a runtime,
    /// and used outside of its threads.
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

    /// The same with all blobs that the client's namespace has, each asked for when it is needed:
    /// for a namespace with so many that they are not listed. A blob whose file is not in `store`,
    /// if that is given, and whose end containerd cannot read, is not there.
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

    /// Why containerd did not answer, if it did not: what was found since is worth nothing.
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
