//! The whole state of the stand-in: one value behind one lock. So every RPC is a transaction, as in
//! containerd's own metadata database. The state knows nothing about sockets or streams.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use basics::digest::Hasher;
use jiff::Timestamp;
use prost_types::Any;
use tokio::sync::broadcast;
use tonic::Status;

use crate::cri::Cri;
use crate::fake::FakeConfig;
use crate::faults::Faults;
use crate::inspect::{Event, Mutation};
use crate::snapshots::Snapshot;
use crate::version::Version;
use crate::wire::{self, Descriptor, Envelope};

/// Lifetime of an ingest without a lease (containerd's own constant).
const INGEST_LIFE: Duration = Duration::from_secs(24 * 3600);

/// containerd's limit for one label: bytes of key plus value.
const LABEL_LIMIT: usize = 4096;

/// Labels of a blob, a lease, a snapshot or an image record.
pub(crate) type Labels = BTreeMap<String, String>;

/// Everything that survives a restart of the stand-in, and the log of its changes.
pub(crate) struct State {
    pub(crate) config: FakeConfig,
    pub(crate) version: Version,
    pub(crate) namespaces: BTreeMap<String, Namespace>,
    /// The namespace that readers see if theirs does not exist.
    nothing: Namespace,
    /// The files on containerd's disk, which all namespaces share.
    pub(crate) files: BTreeMap<String, File>,
    pub(crate) faults: Faults,
    pub(crate) log: Log,
    pub(crate) cri: Cri,
    pub(crate) events: broadcast::Sender<Envelope>,
    /// Added to the wall clock, in nanoseconds.
    pub(crate) clock_skew: jiff::SignedDuration,
    /// True if something was deleted since the last collection.
    pub(crate) dirty: bool,
    /// True if something changed since the last collection.
    pub(crate) mutated: bool,
    /// True while a call of another importer runs, whose violations do not count.
    pub(crate) lenient: bool,
    sequence: u64,
}

/// The records that tests read afterwards.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) violations: Vec<String>,
    pub(crate) calls: BTreeMap<&'static str, u64>,
    pub(crate) received: BTreeMap<String, u64>,
    pub(crate) events: Vec<Event>,
    pub(crate) mutations: Vec<Mutation>,
}

/// One containerd namespace.
#[derive(Default)]
pub(crate) struct Namespace {
    pub(crate) labels: Labels,
    pub(crate) blobs: BTreeMap<String, Blob>,
    pub(crate) ingests: BTreeMap<String, Ingest>,
    pub(crate) images: BTreeMap<String, Image>,
    pub(crate) leases: BTreeMap<String, Lease>,
    /// By snapshotter and by name. Snapshots without a name are listed by key.
    pub(crate) snapshots: BTreeMap<String, BTreeMap<String, Snapshot>>,
    pub(crate) containers: Vec<wire::Container>,
}

/// A blob in one namespace.
#[derive(Clone)]
pub(crate) struct Blob {
    pub(crate) size: u64,
    pub(crate) labels: Labels,
    pub(crate) created: Timestamp,
    pub(crate) updated: Timestamp,
}

/// The bytes of a blob, or only their number if they were discarded.
#[derive(Clone)]
pub(crate) struct File {
    pub(crate) size: u64,
    pub(crate) bytes: Option<Arc<Vec<u8>>>,
}

/// A write in progress, or an abandoned one.
pub(crate) struct Ingest {
    /// Distinguishes this ingest from a later one under the same ref.
    pub(crate) id: u64,
    pub(crate) started: Timestamp,
    pub(crate) updated: Timestamp,
    pub(crate) total: i64,
    /// Set if the content is adopted from another namespace.
    pub(crate) expected: Option<String>,
    /// Expiry of an ingest without a lease. An ingest with a lease ends with the lease.
    pub(crate) expires: Option<Timestamp>,
    /// The time at which a stream locked the ref.
    pub(crate) locked: Option<Timestamp>,
    pub(crate) partial: Arc<Mutex<Partial>>,
    pub(crate) seeded: bool,
}

/// The file of an ingest. `offset` and `length` differ after a ref is reopened with another total.
/// Then containerd starts at offset 0 without truncating the file.
pub(crate) struct Partial {
    pub(crate) bytes: Option<Vec<u8>>,
    pub(crate) length: u64,
    pub(crate) offset: u64,
    pub(crate) hasher: Hasher,
}

/// An image record.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) labels: Labels,
    pub(crate) target: Descriptor,
    pub(crate) created: Timestamp,
    pub(crate) updated: Timestamp,
}

/// A lease and the resources that it protects, as (type, id).
#[derive(Clone)]
pub(crate) struct Lease {
    pub(crate) labels: Labels,
    pub(crate) created: Timestamp,
    pub(crate) resources: BTreeSet<(String, String)>,
    pub(crate) seeded: bool,
}

impl Partial {
    /// Makes an empty file. If `keep` is false, it remembers only length and digest.
    pub(crate) fn empty(keep: bool, hasher: Hasher) -> Self {
        Partial {
            bytes: keep.then(Vec::new),
            length: 0,
            offset: 0,
            hasher,
        }
    }

    pub(crate) fn write(&mut self, data: &[u8]) {
        self.hasher.update(data);
        let end = self.offset + data.len() as u64;
        if let Some(bytes) = &mut self.bytes {
            let start = usize::try_from(self.offset).expect("a kept blob fits in memory");
            let overlap = data.len().min(bytes.len() - start);
            bytes[start..start + overlap].copy_from_slice(&data[..overlap]);
            bytes.extend_from_slice(&data[overlap..]);
        }
        self.offset = end;
        self.length = self.length.max(end);
    }

    pub(crate) fn truncate(&mut self) {
        self.rewind();
        self.length = 0;
        if let Some(bytes) = &mut self.bytes {
            bytes.clear();
        }
    }

    /// Starts again at offset 0 and leaves the file as it is.
    pub(crate) fn rewind(&mut self) {
        self.offset = 0;
        self.hasher = self.hasher.fresh();
    }

    /// Continues at the end of the file, as containerd does for an ingest that it can resume.
    pub(crate) fn resume(&mut self) {
        if let Some(bytes) = self.bytes.as_ref().filter(|_| self.offset != self.length) {
            self.hasher = self.hasher.fresh();
            self.hasher.update(bytes);
            self.offset = self.length;
        }
    }
}

impl State {
    pub(crate) fn new(config: FakeConfig) -> Self {
        let version = Version::parse(&config.version);
        State {
            config,
            version,
            namespaces: BTreeMap::new(),
            nothing: Namespace::default(),
            files: BTreeMap::new(),
            faults: Faults::default(),
            log: Log::default(),
            cri: Cri::default(),
            events: broadcast::channel(4096).0,
            clock_skew: jiff::SignedDuration::ZERO,
            dirty: false,
            mutated: false,
            lenient: false,
            sequence: 0,
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::now() + self.clock_skew
    }

    pub(crate) fn next_number(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// Returns the namespace. Creates it on first use, as containerd does on the first write.
    pub(crate) fn namespace_mut(&mut self, name: &str) -> &mut Namespace {
        self.namespaces.entry(name.to_owned()).or_default()
    }

    /// Returns the namespace for reading. Reading does not create it.
    pub(crate) fn namespace(&self, name: &str) -> &Namespace {
        self.namespaces.get(name).unwrap_or(&self.nothing)
    }

    pub(crate) fn blob(&self, namespace: &str, digest: &str) -> Option<&Blob> {
        self.namespace(namespace).blobs.get(digest)
    }

    pub(crate) fn blob_mut(&mut self, namespace: &str, digest: &str) -> Option<&mut Blob> {
        self.namespaces.get_mut(namespace)?.blobs.get_mut(digest)
    }

    pub(crate) fn lease_mut(&mut self, namespace: &str, id: &str) -> Option<&mut Lease> {
        self.namespaces.get_mut(namespace)?.leases.get_mut(id)
    }

    pub(crate) fn image(&self, namespace: &str, name: &str) -> Option<&Image> {
        self.namespace(namespace).images.get(name)
    }

    /// Returns the bytes of a blob, if this namespace has it and the bytes were kept.
    pub(crate) fn blob_bytes(&self, namespace: &str, digest: &str) -> Option<Arc<Vec<u8>>> {
        self.blob(namespace, digest)?;
        self.files.get(digest)?.bytes.clone()
    }

    pub(crate) fn violation(&mut self, sentence: impl Into<String>) {
        if !self.lenient {
            self.log.violations.push(sentence.into());
        }
    }

    /// Records a change for the order log and for the collector.
    pub(crate) fn changed(&mut self, rpc: &'static str, namespace: &str, subject: &str, lease: Option<&str>) {
        self.mutated = true;
        self.log.mutations.push(Mutation {
            rpc,
            namespace: namespace.to_owned(),
            subject: subject.to_owned(),
            lease: lease.map(str::to_owned),
        });
    }

    /// Publishes an event to subscribers and to the log. The type URL is the bare full name, as
    /// containerd sends it.
    pub(crate) fn publish<E: prost::Message + prost::Name>(
        &mut self,
        namespace: &str,
        topic: &str,
        subject: &str,
        event: &E,
    ) {
        let envelope = Envelope {
            timestamp: Some(timestamp(self.now())),
            namespace: namespace.to_owned(),
            topic: topic.to_owned(),
            event: Some(Any {
                type_url: E::full_name(),
                value: event.encode_to_vec(),
            }),
        };
        self.log.events.push(Event {
            namespace: namespace.to_owned(),
            topic: topic.to_owned(),
            subject: subject.to_owned(),
        });
        // It is fine if there are no subscribers.
        let _ = self.events.send(envelope);
    }

    /// Returns the time at which a new ingest without a lease expires.
    pub(crate) fn ingest_expiry(&self) -> Timestamp {
        self.now() + INGEST_LIFE
    }

    /// Adds a resource to the lease of a call. A call without a lease is fine. A lease that does
    /// not exist is containerd's error.
    pub(crate) fn protect(
        &mut self,
        namespace: &str,
        lease: Option<&str>,
        kind: &str,
        id: &str,
    ) -> Result<(), Status> {
        let Some(lease) = lease else { return Ok(()) };
        let Some(lease) = self.lease_mut(namespace, lease) else {
            return Err(Status::not_found("lease does not exist: not found"));
        };
        lease.resources.insert((kind.to_owned(), id.to_owned()));
        Ok(())
    }

    /// Removes an ingest and frees its space.
    pub(crate) fn drop_ingest(&mut self, namespace: &str, reference: &str) -> bool {
        let Some(namespace) = self.namespaces.get_mut(namespace) else {
            return false;
        };
        let Some(ingest) = namespace.ingests.remove(reference) else {
            return false;
        };
        for lease in namespace.leases.values_mut() {
            lease
                .resources
                .remove(&("ingests".to_owned(), reference.to_owned()));
        }
        let length = ingest
            .partial
            .lock()
            .expect("no holder of this lock panics")
            .length;
        self.faults.free(length);
        true
    }
}

/// Does containerd's check of labels, which it does wherever it stores them.
pub(crate) fn check_labels(labels: &Labels) -> Result<(), Status> {
    for (key, value) in labels {
        let length = key.len() + value.len();
        if length > LABEL_LIMIT {
            let shown: String = key.chars().take(10).collect();
            return Err(Status::invalid_argument(format!(
                "label key and value length ({length} bytes) greater than maximum size ({LABEL_LIMIT} bytes), key: {shown}: invalid argument"
            )));
        }
    }
    Ok(())
}

/// Removes labels with an empty value, which deletes a label wherever labels are written.
pub(crate) fn without_empty(mut labels: Labels) -> Labels {
    labels.retain(|_, value| !value.is_empty());
    labels
}

/// Returns true if the `containerd.io/gc.expire` label names a past time. Any other text never
/// expires.
pub(crate) fn expired(labels: &Labels, now: Timestamp) -> bool {
    labels
        .get("containerd.io/gc.expire")
        .and_then(|text| text.parse::<Timestamp>().ok())
        .is_some_and(|instant| instant <= now)
}

/// Converts a time for the wire.
pub(crate) fn timestamp(instant: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: instant.as_second(),
        nanos: instant.subsec_nanosecond(),
    }
}
