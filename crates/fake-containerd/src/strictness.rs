//! The checks in which the stand-in is stricter than containerd. containerd accepts these calls,
//! but they leave images that cannot run, content that disappears, or leftovers. Each violation is
//! a sentence in [`Fake::violations`](crate::Fake::violations).

use serde_json::Value;

use crate::gc::referred;
use crate::inspect::SnapshotKind;
use crate::service::Call;
use crate::snapshots::Snapshot;
use crate::state::{Image, Labels, State};
use crate::{cri, digest, snapshots};

/// Largest document in bytes that is parsed.
const DOCUMENT_LIMIT: usize = 8 << 20;

/// The references of a blob, if it is a manifest or an index.
pub(crate) enum Children {
    /// Config and layers, all of which are needed.
    Manifest(Vec<String>),
    /// Manifests for several platforms. Those with a label are needed.
    Index(Vec<String>),
    None,
}

/// Reads the children of a document. Other blobs have none.
pub(crate) fn children(bytes: &[u8]) -> Children {
    if bytes.len() > DOCUMENT_LIMIT || bytes.first() != Some(&b'{') {
        return Children::None;
    }
    let Ok(document) = serde_json::from_slice::<Value>(bytes) else {
        return Children::None;
    };
    if let Some(manifests) = document["manifests"].as_array() {
        return Children::Index(digests(manifests));
    }
    let (Some(config), Some(layers)) = (
        document["config"]["digest"].as_str(),
        document["layers"].as_array(),
    ) else {
        return Children::None;
    };
    let mut parts = vec![config.to_owned()];
    parts.extend(digests(layers));
    Children::Manifest(parts)
}

fn digests(descriptors: &[Value]) -> Vec<String> {
    descriptors
        .iter()
        .filter_map(|descriptor| descriptor["digest"].as_str())
        .map(str::to_owned)
        .collect()
}

impl State {
    /// Checks a record. Everything that its target needs must be in the store and held by gc
    /// labels.
    pub(crate) fn check_record(&mut self, namespace: &str, name: &str, target: &str) {
        let mut findings = Vec::new();
        self.check_closure(namespace, target, &mut Vec::new(), &mut findings);
        for finding in findings {
            self.violation(format!("the record {name} was written although {finding}"));
        }
    }

    /// Checks CRI's label. Only CRI may set it. A moved record must lose it. Otherwise CRI creates
    /// no record under the new image id.
    pub(crate) fn check_management(&mut self, namespace: &str, name: &str, old: Option<&Image>, new: &Image) {
        let managed = |image: &Image| {
            image
                .labels
                .get(cri::MANAGED)
                .is_some_and(|value| !value.is_empty())
        };
        if namespace != cri::NAMESPACE || !managed(new) {
            return;
        }
        match old.filter(|old| managed(old)) {
            None => self.violation(format!(
                "the record {name} was given {}, which only CRI may set",
                cri::MANAGED
            )),
            Some(old) if old.target.digest != new.target.digest => self.violation(format!(
                "the record {name} was moved to {} without clearing {}, so CRI makes no record under its id",
                new.target.digest,
                cri::MANAGED
            )),
            Some(_) => {}
        }
    }

    /// Checks that a lease expires, so that it ends if its owner dies. A flat lease is meant to
    /// last.
    pub(crate) fn check_lease(&mut self, id: &str, labels: &Labels) {
        let expiry = labels.get("containerd.io/gc.expire");
        let is_flat = labels.contains_key("containerd.io/gc.flat");
        if !is_flat && expiry.is_none_or(|text| text.parse::<jiff::Timestamp>().is_err()) {
            self.violation(format!(
                "the lease {id} has no expiry in RFC 3339, so it stays for ever if its owner dies"
            ));
        }
    }

    fn check_closure(
        &self,
        namespace: &str,
        parent: &str,
        above: &mut Vec<String>,
        findings: &mut Vec<String>,
    ) {
        let Some(blob) = self.blob(namespace, parent) else {
            findings.push(format!("{parent} is not in the store"));
            return;
        };
        if above.iter().any(|digest| digest == parent) {
            return;
        }
        let Some(bytes) = self.blob_bytes(namespace, parent) else {
            return;
        };
        let labelled = referred(&blob.labels);
        above.push(parent.to_owned());
        match children(&bytes) {
            Children::None => {}
            Children::Manifest(parts) => {
                for part in parts {
                    if !labelled.contains(&part) {
                        findings.push(format!("the manifest {parent} has no gc label for {part}"));
                    }
                    if self.blob(namespace, &part).is_none() {
                        findings.push(format!("{part} of the manifest {parent} is not in the store"));
                    }
                }
            }
            Children::Index(manifests) => {
                let held: Vec<&String> = manifests
                    .iter()
                    .filter(|child| labelled.contains(child))
                    .collect();
                if held.is_empty() && !manifests.is_empty() {
                    findings.push(format!(
                        "the index {parent} has no gc label for any of its manifests"
                    ));
                }
                for child in held {
                    self.check_closure(namespace, child, above, findings);
                }
            }
        }
        above.pop();
    }

    /// Checks that a parent has its gc labels when it is committed.
    pub(crate) fn check_committed_parent(&mut self, digest: &str, bytes: &[u8], labels: &Labels) {
        let labelled = referred(labels);
        let missing = match children(bytes) {
            Children::None => None,
            Children::Manifest(parts) => parts.into_iter().find(|part| !labelled.contains(part)),
            Children::Index(manifests) if manifests.iter().any(|child| labelled.contains(child)) => None,
            Children::Index(manifests) => manifests.into_iter().next(),
        };
        if let Some(child) = missing {
            self.violation(format!(
                "{digest} was committed without a gc label for its child {child}"
            ));
        }
    }

    /// Checks for a lease, because garbage collection may remove an unprotected snapshot before the
    /// next call.
    pub(crate) fn check_leased_snapshot(&mut self, call: &Call, key: &str) {
        if call.lease.is_none() {
            self.violation(format!(
                "{} of the snapshot {key} was called without a lease",
                call.rpc
            ));
        }
    }

    /// Checks a snapshot's name. It says that the layers behind it are unpacked, and no later check
    /// exists.
    pub(crate) fn check_committed_snapshot(&mut self, name: &str, snapshot: &Snapshot) {
        match &snapshot.applied {
            None => self.violation(format!(
                "the snapshot {name} was committed and no layer was ever applied to it"
            )),
            Some(applied) => {
                let chain = snapshots::chain_id(snapshot.parent.as_deref(), applied);
                if chain != name {
                    self.violation(format!(
                        "the snapshot {name} was committed and its layers are those of {chain}"
                    ));
                }
            }
        }
    }

    /// Checks snapshot labels of a config. A label for a missing snapshot keeps nothing, and no
    /// later call corrects it.
    pub(crate) fn check_snapshot_labels(&mut self, namespace: &str, digest: &str, labels: &Labels) {
        for (snapshotter, name) in snapshots::referred(labels) {
            if self.snapshot(namespace, &snapshotter, &name).is_none() {
                self.violation(format!(
                    "{digest} was labelled with the snapshot {name}, which {snapshotter} does not have"
                ));
            }
        }
    }

    /// Checks that an ingest ref contains its digest. Then a stale ingest can only hold the same
    /// content.
    pub(crate) fn check_ref(&mut self, reference: &str, expected: &str) {
        match digest::within(reference) {
            None => self.violation(format!(
                "the ingest ref {reference:?} is not derived from a digest"
            )),
            Some(named) if !expected.is_empty() && named != expected => {
                self.violation(format!(
                    "the ingest ref {reference:?} was opened for another blob, {expected}"
                ));
            }
            Some(_) => {}
        }
    }

    /// Returns leases, ingests and unfinished snapshots that a finished caller should have
    /// released.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (name, namespace) in &self.namespaces {
            for (id, _) in namespace.leases.iter().filter(|(_, lease)| !lease.seeded) {
                found.push(format!("the lease {id} is still there in namespace {name}"));
            }
            for (reference, _) in namespace.ingests.iter().filter(|(_, ingest)| !ingest.seeded) {
                found.push(format!(
                    "the ingest {reference} is still there in namespace {name}"
                ));
            }
            for (snapshotter, snapshots) in &namespace.snapshots {
                let is_ours =
                    |snapshot: &Snapshot| snapshot.kind == SnapshotKind::Active && !snapshot.foreign;
                for (key, _) in snapshots.iter().filter(|(_, snapshot)| is_ours(snapshot)) {
                    found.push(format!(
                        "the snapshot {key} of {snapshotter} is still there and not committed in namespace {name}"
                    ));
                }
            }
        }
        found
    }
}
