//! containerd's content store as a place that images are looked up in, as they are in bundles: asked from a thread that may
//! wait.

use std::collections::HashMap;

use basics::chain;
use containerd::{Client, Error};
use oci_spec::image::Digest;
use tokio::runtime::Handle;

/// What containerd is called in messages.
pub const CONTAINERD: &str = "containerd";

/// Blobs that containerd has, their documents read one by one.
#[derive(Debug)]
pub struct ContentStore {
    client: Client,
    sizes: HashMap<Digest, u64>,
    runtime: Handle,
    /// Why containerd does not answer any more.
    failure: Option<Error>,
}

impl ContentStore {
    /// The store of a client, with these blobs and their sizes in bytes. To be called in a runtime, and used outside of
    /// its threads.
    pub fn of(client: &Client, blobs: impl IntoIterator<Item = (Digest, u64)>) -> ContentStore {
        ContentStore {
            client: client.clone(),
            sizes: blobs.into_iter().collect(),
            runtime: Handle::current(),
            failure: None,
        }
    }

    /// Why containerd did not answer, if it did not: what was found since is worth nothing.
    pub fn take_failure(&mut self) -> Option<Error> {
        self.failure.take()
    }
}

impl bundle::Store for ContentStore {
    fn size(&self, digest: &Digest) -> Option<u64> {
        self.sizes.get(digest).copied()
    }

    fn read(&mut self, digest: &Digest) -> Result<Vec<u8>, String> {
        let size = self.size(digest).unwrap_or_default();
        self.runtime
            .block_on(self.client.read_blob(digest, size))
            .map_err(|error| {
                let reason = chain(&error);
                if matches!(error, Error::Unreachable { .. } | Error::Stalled { .. }) {
                    self.failure = Some(error);
                }
                reason
            })
    }
}
