//! What tests see of the stand-in's state: plain values, copied out of it.

use std::collections::{BTreeMap, BTreeSet};

/// An image record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRecord {
    /// Name of the record.
    pub name: String,
    /// What it points at.
    pub target: Target,
    /// Its labels.
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
    /// Bytes.
    pub size: u64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What it protects, as (type, id): `("content", "sha256:…")`, `("ingests", ref)`,
    /// `("snapshots/overlayfs", key)`.
    pub resources: BTreeSet<(String, String)>,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// The name of the snapshot it stands on; none for the lowest.
    pub parent: Option<String>,
    /// How far it has come.
    pub kind: SnapshotKind,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// How far a snapshot has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotKind {
    /// It was prepared, and goes by a key.
    Active,
    /// It is finished, and has a name.
    Committed,
}

/// A write in progress, or one that was left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestRecord {
    /// Bytes ingested.
    pub offset: u64,
    /// Bytes expected, 0 if nobody said.
    pub total: i64,
    /// Whether a stream holds the ref now.
    pub locked: bool,
}

/// An event that was published, whoever caused it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The namespace it happened in.
    pub namespace: String,
    /// For example `/images/create`.
    pub topic: String,
    /// Name of the image record, digest, or the snapshot's key.
    pub subject: String,
}

/// One entry of the order log: an RPC that changed something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutation {
    /// `Service.Method`; a committed blob is `Content.Write`.
    pub rpc: &'static str,
    /// The namespace of the call.
    pub namespace: String,
    /// Digest, name of the record, id of the lease, ingest ref, or the snapshot's key (when it is
    /// committed, its name).
    pub subject: String,
    /// The lease header of the call.
    pub lease: Option<String>,
}
