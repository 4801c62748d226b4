//! Garbage collection by containerd's rules. Leases, image records, root labels and living ingests
//! are roots. Everything that gc labels reach from them stays, and everything else is removed.

use std::collections::BTreeSet;

use crate::state::{Image, Ingest, Labels, State, expired};
use crate::{images, snapshots};

/// The times of the stand-in's garbage collection. containerd may collect just after any client's
/// deletion. So content that is unprotected for even one call is not safe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GcPolicy {
    /// Only on [`Fake::collect_garbage`](crate::Fake::collect_garbage) and on deletions with
    /// `sync`.
    OnRequest,
    /// Also after every call that deleted something.
    #[default]
    AfterDeletes,
    /// After every call that changed anything, and after every message of a write stream: the "gc
    /// storm".
    AfterEveryMutation,
}

/// On a blob or a record: an image record that lives as long as the blob or record.
const IMAGE_REFERENCE: &str = "containerd.io/gc.ref.image";
/// On a blob: an image record that the blob lives as long as.
const IMAGE_BACK_REFERENCE: &str = "containerd.io/gc.bref.image";
/// On a blob: another blob that the blob lives as long as.
const CONTENT_BACK_REFERENCE: &str = "containerd.io/gc.bref.content";

/// The key of a collectable object: namespace, kind and id.
type Node = (String, Kind, String);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Blob,
    /// A blob that is held without its references.
    FlatBlob,
    Ingest,
    Image,
    /// A snapshot, held with its parents. Its id is the snapshotter, a slash, and the name or key.
    Snapshot,
}

impl State {
    /// Collects garbage if the policy requires it after the last call.
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

    /// Marks from the roots and removes everything that was not reached.
    pub(crate) fn collect(&mut self) {
        self.end_leases();
        let reached = self.mark();
        self.sweep(&reached);
        self.dirty = false;
    }

    fn end_leases(&mut self) {
        let now = self.now();
        for namespace in self.namespaces.values_mut() {
            namespace.leases.retain(|_, lease| !expired(&lease.labels, now));
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
        let images_expire = self.version.image_leases();
        let mut roots = Vec::new();
        for (name, namespace) in &self.namespaces {
            let node = |kind, id: &str| (name.clone(), kind, id.to_owned());
            for lease in namespace.leases.values() {
                let blob = if lease.labels.contains_key("containerd.io/gc.flat") {
                    Kind::FlatBlob
                } else {
                    Kind::Blob
                };
                roots.extend(lease.resources.iter().filter_map(|(kind, id)| {
                    match kind.as_str() {
                        "content" => Some(node(blob, id)),
                        "ingests" => Some(node(Kind::Ingest, id)),
                        "images" => Some(node(Kind::Image, id)),
                        _ => kind
                            .strip_prefix("snapshots/")
                            .map(|snapshotter| node(Kind::Snapshot, &snapshots::id(snapshotter, id))),
                    }
                }));
            }
            let lasting = |image: &Image| !images_expire || !expired(&image.labels, now);
            let images = namespace.images.iter().filter(|(_, image)| lasting(image));
            roots.extend(images.map(|(name, _)| node(Kind::Image, name)));
            roots.extend(
                namespace
                    .blobs
                    .iter()
                    .filter(|(_, blob)| blob.labels.contains_key("containerd.io/gc.root"))
                    .map(|(digest, _)| node(Kind::Blob, digest)),
            );
            for (snapshotter, snapshots) in &namespace.snapshots {
                roots.extend(
                    snapshots
                        .iter()
                        .filter(|(_, snapshot)| snapshot.labels.contains_key("containerd.io/gc.root"))
                        .map(|(key, _)| node(Kind::Snapshot, &snapshots::id(snapshotter, key))),
                );
            }
            let living = |ingest: &Ingest| ingest.expires.is_some_and(|expires| expires > now);
            let ingests = namespace.ingests.iter().filter(|(_, ingest)| living(ingest));
            roots.extend(ingests.map(|(reference, _)| node(Kind::Ingest, reference)));
        }
        roots
    }

    fn references(&self, (name, kind, id): &Node) -> Vec<Node> {
        let Some(namespace) = self.namespaces.get(name) else {
            return Vec::new();
        };
        let of_labels = |labels: &Labels| -> Vec<Node> {
            let blobs = referred(labels).into_iter().map(|digest| (Kind::Blob, digest));
            let snapshots = snapshots::referred(labels)
                .into_iter()
                .map(|(snapshotter, key)| (Kind::Snapshot, snapshots::id(&snapshotter, &key)));
            let images = self
                .version
                .image_leases()
                .then(|| named(labels, IMAGE_REFERENCE));
            let images = images.into_iter().flatten().map(|image| (Kind::Image, image));
            blobs
                .chain(snapshots)
                .chain(images)
                .map(|(kind, id)| (name.clone(), kind, id))
                .collect()
        };
        let back = |key: &'static str| -> Vec<Node> {
            if !self.version.back_references() {
                return Vec::new();
            }
            let attached = namespace
                .blobs
                .iter()
                .filter(|(_, blob)| named(&blob.labels, key).any(|named| named == *id));
            attached
                .map(|(digest, _)| (name.clone(), Kind::Blob, digest.clone()))
                .collect()
        };
        let blobs: Vec<String> = match kind {
            Kind::FlatBlob => Vec::new(),
            Kind::Blob => {
                let blob = namespace.blobs.get(id);
                let mut nodes = blob.map(|blob| of_labels(&blob.labels)).unwrap_or_default();
                nodes.extend(back(CONTENT_BACK_REFERENCE));
                return nodes;
            }
            Kind::Snapshot => {
                let Some((snapshotter, snapshot)) = snapshots::by_id(namespace, id) else {
                    return Vec::new();
                };
                let parent = snapshot.parent.iter();
                let parent =
                    parent.map(|parent| (name.clone(), Kind::Snapshot, snapshots::id(snapshotter, parent)));
                return parent.chain(of_labels(&snapshot.labels)).collect();
            }
            Kind::Ingest => namespace
                .ingests
                .get(id)
                .and_then(|ingest| ingest.expected.clone())
                .into_iter()
                .collect(),
            Kind::Image => {
                let Some(image) = namespace.images.get(id) else {
                    return Vec::new();
                };
                let mut nodes = of_labels(&image.labels);
                nodes.push((name.clone(), Kind::Blob, image.target.digest.clone()));
                nodes.extend(back(IMAGE_BACK_REFERENCE));
                return nodes;
            }
        };
        blobs
            .into_iter()
            .map(|digest| (name.clone(), Kind::Blob, digest))
            .collect()
    }

    fn sweep(&mut self, reached: &BTreeSet<Node>) {
        for (namespace, kind, id) in self.unreached(reached) {
            match kind {
                Kind::Image => images::remove(self, &namespace, &id),
                Kind::Ingest => drop(self.drop_ingest(&namespace, &id)),
                Kind::Blob | Kind::FlatBlob => drop(self.namespace_mut(&namespace).blobs.remove(&id)),
                Kind::Snapshot => snapshots::sweep(self, &namespace, &id),
            }
        }
        self.sweep_files();
    }

    fn unreached(&self, reached: &BTreeSet<Node>) -> Vec<Node> {
        let mut unreached = Vec::new();
        for (name, namespace) in &self.namespaces {
            let node = |kind, id: &String| (name.clone(), kind, id.clone());
            let blobs = namespace.blobs.keys().map(|digest| node(Kind::Blob, digest));
            let held_flat = |(_, _, digest): &Node| reached.contains(&node(Kind::FlatBlob, digest));
            unreached.extend(blobs.filter(|blob| !held_flat(blob)));
            unreached.extend(namespace.images.keys().map(|image| node(Kind::Image, image)));
            unreached.extend(
                namespace
                    .ingests
                    .keys()
                    .map(|reference| node(Kind::Ingest, reference)),
            );
        }
        for (name, namespace) in &self.namespaces {
            for (snapshotter, snapshots) in &namespace.snapshots {
                let ids = snapshots.keys().map(|key| snapshots::id(snapshotter, key));
                unreached.extend(ids.map(|id| (name.clone(), Kind::Snapshot, id)));
            }
        }
        unreached.retain(|node| !reached.contains(node));
        unreached
    }

    /// Removes blobs that no namespace refers to from the shared store.
    fn sweep_files(&mut self) {
        let kept: BTreeSet<&String> = self
            .namespaces
            .values()
            .flat_map(|namespace| {
                let adopted = namespace
                    .ingests
                    .values()
                    .filter_map(|ingest| ingest.expected.as_ref());
                namespace.blobs.keys().chain(adopted)
            })
            .collect();
        let unreferred = |digest: &&String| !kept.contains(*digest);
        let gone: Vec<String> = self.files.keys().filter(unreferred).cloned().collect();
        for digest in gone {
            let file = self.files.remove(&digest);
            self.faults.free(file.map_or(0, |file| file.size));
        }
    }
}

/// Returns the digests that gc labels refer to.
pub(crate) fn referred(labels: &Labels) -> Vec<String> {
    named(labels, "containerd.io/gc.ref.content").collect()
}

/// Returns the values of labels with this key. A dot or a slash may follow the key.
fn named<'a>(labels: &'a Labels, key: &'static str) -> impl Iterator<Item = String> + 'a {
    let is_meant = move |label: &str| {
        label
            .strip_prefix(key)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '/']))
    };
    labels
        .iter()
        .filter(move |(label, _)| is_meant(label))
        .map(|(_, named)| named.clone())
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
            ("containerd.io/gc.ref.image.x", "no"),
            ("containerd.io/gc.bref.content.x", "no"),
            ("containerd.io/gc.cond.snapshot.overlayfs", "no"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        assert_eq!(referred(&labels), ["a", "b", "c"]);
    }
}
