//! The tests' view of the stand-in's state: plain values that are copied out of it.

use std::collections::{BTreeMap, BTreeSet};

/// An image record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRecord {
    /// Name of the record.
    pub name: String,
    /// The target of the record.
    pub target: Target,
    /// Labels of the record.
    pub labels: BTreeMap<String, String>,
}

/// The target of an image record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Media type of the target blob.
    pub media_type: String,
    /// Digest of the target blob.
    pub digest: String,
    /// Bytes of the target blob.
    pub size: i64,
    /// Annotations stored with the record.
    pub annotations: BTreeMap<String, String>,
}

/// A blob as a namespace sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobRecord {
    /// Size in bytes.
    pub size: u64,
    /// Labels of the blob.
    pub labels: BTreeMap<String, String>,
}

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Labels of the lease.
    pub labels: BTreeMap<String, String>,
    /// The resources that the lease protects, as (type, id): `("content", "sha256:…")`,
    /// `("ingests", ref)`, `("snapshots/overlayfs", key)`.
    pub resources: BTreeSet<(String, String)>,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Name of the parent snapshot. `None` for the lowest.
    pub parent: Option<String>,
    /// State of the snapshot.
    pub kind: SnapshotKind,
    /// Labels of the snapshot.
    pub labels: BTreeMap<String, String>,
}

/// The state of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotKind {
    /// Prepared. The snapshot has a key.
    Active,
    /// Finished. The snapshot has a name.
    Committed,
}

/// A write in progress, or an abandoned one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestRecord {
    /// Number of bytes ingested.
    pub offset: u64,
    /// Number of bytes expected. 0 if the writer gave none.
    pub total: i64,
    /// True if a stream holds the ref now.
    pub locked: bool,
}

/// An event that was published, from any cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Namespace of the event.
    pub namespace: String,
    /// Topic, for example `/images/create`.
    pub topic: String,
    /// Name of the image record, digest, or the snapshot's key.
    pub subject: String,
}

/// One entry of the order log: an RPC that changed something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutation {
    /// Name as `Service.Method`. A committed blob is `Content.Write`.
    pub rpc: &'static str,
    /// Namespace of the call.
    pub namespace: String,
    /// Digest, name of the record, id of the lease, ingest ref, or the snapshot's key. For a
    /// committed snapshot, its name.
    pub subject: String,
    /// The lease header of the call.
    pub lease: Option<String>,
}
