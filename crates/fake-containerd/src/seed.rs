//! Changes the store without the protocol, as if another program had done so before the test. These
//! changes do not count as calls, events or violations.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use basics::digest::Hasher;

use crate::cri;
use crate::digest;
use crate::fake::Fake;
use crate::state::{Blob, File, Image, Ingest, Labels, Partial, State};
use crate::wire::{self, Descriptor};

/// An image record to add to the store.
#[derive(Clone, Debug, Default)]
pub struct SeedImage {
    /// Name of the record.
    pub name: String,
    /// Media type of the target.
    pub media_type: String,
    /// Digest of the target, which may be missing in the store.
    pub digest: String,
    /// Bytes of the target.
    pub size: u64,
    /// Labels of the record.
    pub labels: BTreeMap<String, String>,
}

/// A container to add to the store, in the form that CRI creates. Nothing runs.
#[derive(Clone, Debug, Default)]
pub struct SeedContainer {
    /// Id of the container.
    pub id: String,
    /// Name of the image record that the container was created from.
    pub image: String,
    /// Image id that CRI recorded. Empty for a container that CRI did not create.
    pub image_id: String,
    /// Labels of the container.
    pub labels: BTreeMap<String, String>,
}

impl Fake {
    /// Adds a container to a namespace.
    pub fn put_container(&self, namespace: &str, container: SeedContainer) {
        let SeedContainer {
            id,
            image,
            image_id,
            labels,
        } = container;
        let metadata = prost_types::Any {
            type_url: "github.com/containerd/cri/pkg/store/container/Metadata".to_owned(),
            value: format!(r#"{{"Version":"v1","Metadata":{{"ID":"{id}","ImageRef":"{image_id}"}}}}"#)
                .into_bytes(),
        };
        let of_cri =
            (!image_id.is_empty()).then(|| ("io.cri-containerd.container.metadata".to_owned(), metadata));
        let container = wire::Container {
            id,
            image,
            labels: labels.into_iter().collect(),
            extensions: of_cri.into_iter().collect(),
            ..Default::default()
        };
        self.with(|state| state.namespace_mut(namespace).containers.push(container));
    }

    /// Adds a blob to a namespace and returns its digest. An existing blob gets exactly these
    /// labels.
    pub fn put_blob(&self, namespace: &str, bytes: &[u8], labels: &[(&str, &str)]) -> String {
        let digest = digest::sha256(bytes);
        self.with(|state| {
            let size = bytes.len() as u64;
            state.files.entry(digest.clone()).or_insert_with(|| File {
                size,
                bytes: Some(Arc::new(bytes.to_vec())),
            });
            let now = state.now();
            let blob = Blob {
                size,
                labels: owned(labels),
                created: now,
                updated: now,
            };
            state.namespace_mut(namespace).blobs.insert(digest.clone(), blob);
        });
        digest
    }

    /// Flips a bit of a file on containerd's disk, like a disk that ages. All namespaces read the
    /// damaged bytes. The bits of a short file are counted again from its start.
    ///
    /// # Panics
    ///
    /// Panics if there is no such file, or if its bytes were discarded.
    pub fn flip_bit(&self, digest: &str, bit: usize) {
        self.with(|state| {
            let file = state.files.get_mut(digest).expect("the file is there");
            let bytes = file.bytes.as_mut().expect("the stand-in kept the bytes");
            let mut damaged = bytes.to_vec();
            let at = bit / 8 % damaged.len();
            damaged[at] ^= 1 << (bit % 8);
            *bytes = Arc::new(damaged);
        });
    }

    /// Adds an image record to a namespace, or replaces a record with the same name. CRI handles
    /// the record.
    pub fn put_image(&self, namespace: &str, image: SeedImage) {
        self.with(|state| {
            let now = state.now();
            let target = Descriptor {
                media_type: image.media_type,
                digest: image.digest,
                size: i64::try_from(image.size).expect("a blob is smaller than 2^63 bytes"),
                annotations: Default::default(),
            };
            let record = Image {
                labels: image.labels,
                target,
                created: now,
                updated: now,
            };
            state
                .namespace_mut(namespace)
                .images
                .insert(image.name.clone(), record);
            unlogged(state, |state| cri::observe(state, namespace, &image.name));
        });
    }

    /// Adds an image to a registry that CRI pulls from, under a normalised name. Its content must
    /// already be in namespace `k8s.io`. Labels have no effect, because a registry has none.
    pub fn offer(&self, image: SeedImage) {
        let target = Descriptor {
            media_type: image.media_type,
            digest: image.digest,
            size: i64::try_from(image.size).expect("a blob is smaller than 2^63 bytes"),
            annotations: Default::default(),
        };
        self.with(|state| state.cri.offers.insert(image.name, target));
    }

    /// Leaves a partial ingest under a ref, like a writer that died. `total` is 0 if the writer
    /// gave no size.
    pub fn put_ingest(&self, namespace: &str, reference: &str, bytes: &[u8], total: i64) {
        self.with(|state| {
            let mut partial = Partial::empty(true, Hasher::sha256());
            partial.write(bytes);
            let (now, expires, id) = (state.now(), Some(state.ingest_expiry()), state.next_number());
            let partial = Arc::new(Mutex::new(partial));
            let ingest = Ingest {
                id,
                started: now,
                updated: now,
                total,
                expected: None,
                expires,
                locked: None,
                partial,
                seeded: true,
            };
            state
                .namespace_mut(namespace)
                .ingests
                .insert(reference.to_owned(), ingest);
        });
    }

    /// Removes an image record, with the event and the garbage collection that follow, like `ctr
    /// images rm`. Returns true if the record existed.
    pub fn remove_image(&self, namespace: &str, name: &str) -> bool {
        self.with(|state| {
            let there = state.image(namespace, name).is_some();
            if there {
                crate::images::remove(state, namespace, name);
                state.settle();
            }
            there
        })
    }

    /// Sets one label of an image record, with the event, like another client. An empty value
    /// removes the label. Returns true if the record exists.
    pub fn set_image_label(&self, namespace: &str, name: &str, key: &str, value: &str) -> bool {
        self.with(|state| {
            let Some(mut image) = state.image(namespace, name).cloned() else {
                return false;
            };
            image.labels.insert(key.to_owned(), value.to_owned());
            image.updated = state.now();
            crate::images::store(state, namespace, name, image, "/images/update");
            cri::observe(state, namespace, name);
            true
        })
    }

    /// Removes a blob from a namespace and from the disk, like damage. Returns true if the blob
    /// existed.
    pub fn remove_blob(&self, namespace: &str, digest: &str) -> bool {
        self.with(|state| {
            let there = state.namespace_mut(namespace).blobs.remove(digest).is_some();
            if !state
                .namespaces
                .values()
                .any(|namespace| namespace.blobs.contains_key(digest))
            {
                state.files.remove(digest);
            }
            there
        })
    }

    /// Replaces the bytes of a blob on the disk, like bit rot. Its digest and labels stay. Returns
    /// true if the blob exists.
    pub fn corrupt_blob(&self, digest: &str, bytes: &[u8]) -> bool {
        self.with(|state| match state.files.get_mut(digest) {
            Some(file) => {
                file.bytes = Some(Arc::new(bytes.to_vec()));
                true
            }
            None => false,
        })
    }
}

fn owned(labels: &[(&str, &str)]) -> Labels {
    labels
        .iter()
        .map(|&(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Runs `act` without adding its events to the log or sending them to subscribers.
fn unlogged(state: &mut State, act: impl FnOnce(&mut State)) {
    let logged = state.log.events.len();
    let events = std::mem::replace(&mut state.events, tokio::sync::broadcast::channel(1).0);
    act(state);
    state.events = events;
    state.log.events.truncate(logged);
    (state.dirty, state.mutated) = (false, false);
}
