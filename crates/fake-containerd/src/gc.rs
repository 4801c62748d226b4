//! Garbage collection by containerd's rules: what leases, image records, root labels and living ingests reach by gc labels
//! stays, everything else goes.

use std::collections::BTreeSet;

use crate::state::{Labels, State, expired};

/// When the stand-in collects garbage. containerd may do so a moment after any client's deletion, so nothing that is
/// unprotected for even one call is safe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GcPolicy {
    /// Only on [`Fake::collect_garbage`](crate::Fake::collect_garbage) and on deletions with `sync`.
    OnRequest,
    /// Also after every call that deleted something.
    #[default]
    AfterDeletes,
    /// After every call that changed anything, and after every message of a write stream: the "gc storm".
    AfterEveryMutation,
}

/// A collectable thing: namespace, kind and id.
type Node = (String, Kind, String);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Blob,
    /// A blob held without what it refers to.
    FlatBlob,
    Ingest,
    Image,
}

impl State {
    /// Collects if the policy asks for it after what the last call did.
    pub(crate) fn settle(&mut self) {
        let due = match self.config.gc {
            GcPolicy::OnRequest => false,
            GcPolicy::AfterDeletes => self.dirty,
            GcPolicy::AfterEveryMutation => self.dirty || self.mutated,
        };
        self.mutated = false;
        if due {
            self.collect();
        }
    }

    /// Marks from the roots and sweeps what was not reached.
    pub(crate) fn collect(&mut self) {
        self.dirty = false;
        self.forget_expired();
        let reached = self.mark();
        self.sweep(&reached);
    }

    fn forget_expired(&mut self) {
        let now = self.now();
        let images_expire = self.version.image_leases();
        for namespace in self.namespaces.values_mut() {
            namespace.leases.retain(|_, lease| !expired(&lease.labels, now));
            if images_expire {
                namespace.images.retain(|_, image| !expired(&image.labels, now));
            }
        }
    }

    fn mark(&self) -> BTreeSet<Node> {
        let mut reached = BTreeSet::new();
        let mut open = self.roots();
        while let Some(node) = open.pop() {
            if reached.contains(&node) {
                continue;
            }
            open.extend(self.references(&node));
            reached.insert(node);
        }
        reached
    }

    fn roots(&self) -> Vec<Node> {
        let now = self.now();
        let mut roots = Vec::new();
        for (name, namespace) in &self.namespaces {
            let node = |kind, id: &str| (name.clone(), kind, id.to_owned());
            for lease in namespace.leases.values() {
                let blob = if lease.labels.contains_key("containerd.io/gc.flat") {
                    Kind::FlatBlob
                } else {
                    Kind::Blob
                };
                roots.extend(
                    lease
                        .resources
                        .iter()
                        .filter_map(|(kind, id)| match kind.as_str() {
                            "content" => Some(node(blob, id)),
                            "ingests" => Some(node(Kind::Ingest, id)),
                            "images" => Some(node(Kind::Image, id)),
                            _ => None,
                        }),
                );
            }
            roots.extend(namespace.images.keys().map(|image| node(Kind::Image, image)));
            roots.extend(
                namespace
                    .blobs
                    .iter()
                    .filter(|(_, blob)| blob.labels.contains_key("containerd.io/gc.root"))
                    .map(|(digest, _)| node(Kind::Blob, digest)),
            );
            let living = |ingest: &crate::state::Ingest| ingest.expires.is_some_and(|expires| expires > now);
            let ingests = namespace.ingests.iter().filter(|(_, ingest)| living(ingest));
            roots.extend(ingests.map(|(reference, _)| node(Kind::Ingest, reference)));
        }
        roots
    }

    fn references(&self, (name, kind, id): &Node) -> Vec<Node> {
        let Some(namespace) = self.namespaces.get(name) else {
            return Vec::new();
        };
        let blobs: Vec<String> = match kind {
            Kind::FlatBlob => Vec::new(),
            Kind::Blob => namespace
                .blobs
                .get(id)
                .map(|blob| referred(&blob.labels))
                .unwrap_or_default(),
            Kind::Ingest => namespace
                .ingests
                .get(id)
                .and_then(|ingest| ingest.expected.clone())
                .into_iter()
                .collect(),
            Kind::Image => namespace
                .images
                .get(id)
                .map(|image| image.target.digest.clone())
                .into_iter()
                .collect(),
        };
        blobs
            .into_iter()
            .map(|digest| (name.clone(), Kind::Blob, digest))
            .collect()
    }

    fn sweep(&mut self, reached: &BTreeSet<Node>) {
        let mut kept = BTreeSet::new();
        let mut gone = Vec::new();
        for (name, namespace) in &mut self.namespaces {
            let is = |kind, id: &str| reached.contains(&(name.clone(), kind, id.to_owned()));
            namespace
                .blobs
                .retain(|digest, _| is(Kind::Blob, digest) || is(Kind::FlatBlob, digest));
            kept.extend(namespace.blobs.keys().cloned());
            kept.extend(
                namespace
                    .ingests
                    .values()
                    .filter_map(|ingest| ingest.expected.clone()),
            );
            let dead = namespace
                .ingests
                .keys()
                .filter(|reference| !is(Kind::Ingest, reference));
            gone.extend(dead.map(|reference| (name.clone(), reference.clone())));
        }
        for (name, reference) in gone {
            self.drop_ingest(&name, &reference);
        }
        let freed: u64 = self
            .files
            .iter()
            .filter(|(digest, _)| !kept.contains(*digest))
            .map(|(_, file)| file.size)
            .sum();
        self.files.retain(|digest, _| kept.contains(digest));
        self.faults.free(freed);
    }
}

/// The digests that gc labels refer to.
pub(crate) fn referred(labels: &Labels) -> Vec<String> {
    const KEY: &str = "containerd.io/gc.ref.content";
    let is_reference = |key: &str| {
        key.strip_prefix(KEY)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '/']))
    };
    labels
        .iter()
        .filter(|(key, _)| is_reference(key))
        .map(|(_, digest)| digest.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_at_a_word_boundary_are_references() {
        let labels: Labels = [
            ("containerd.io/gc.ref.content", "a"),
            ("containerd.io/gc.ref.content.m.0", "b"),
            ("containerd.io/gc.ref.content/l.0", "c"),
            ("containerd.io/gc.ref.contents", "no"),
            ("containerd.io/gc.ref.snapshot.overlayfs", "no"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        assert_eq!(referred(&labels), ["a", "b", "c"]);
    }
}
