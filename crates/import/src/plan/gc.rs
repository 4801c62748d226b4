//! The labels that tell containerd's garbage collector which blobs a blob refers to.

use std::collections::{HashMap, HashSet};

use basics::digest;
use containerd::Resource;

use crate::labels::Labels;
use crate::select::{Child, ChildKind};

const GC_REF: &str = "containerd.io/gc.ref.content";
/// Prefix of the labels that keep snapshots, followed by the snapshotter.
const SNAPSHOT_REF: &str = "containerd.io/gc.ref.snapshot.";

/// Returns the labels that tell containerd's garbage collector of `children`, without those that
/// `there` has already.
///
/// Keys are numbered per kind as containerd numbers them. A key that is used for another blob stays
/// as it is, and the next free number is used. Another importer may rely on that key, for another
/// platform of the same index.
#[must_use]
pub fn missing_gc_labels(children: &[Child], there: &Labels) -> Labels {
    let mut missing = Labels::new();
    let mut next: HashMap<ChildKind, usize> = HashMap::new();
    let mut referred_to: HashSet<&str> = referred_to(there).collect();
    for child in children {
        let number = next.entry(child.kind).or_default();
        if !referred_to.insert(child.digest.as_ref()) {
            *number += 1;
            continue;
        }
        let key = loop {
            let key = gc_key(child.kind, *number);
            *number += 1;
            if !there.contains_key(&key) {
                break key;
            }
        };
        missing.insert(key, child.digest.to_string());
    }
    missing
}

/// Returns the digests that labels keep alive.
fn referred_to(labels: &Labels) -> impl Iterator<Item = &str> {
    let keeps = |(key, _): &(&String, &String)| key.strip_prefix(GC_REF).is_some_and(is_gc_suffix);
    labels.iter().filter(keeps).map(|(_, value)| value.as_str())
}

/// Returns the blobs and snapshots that labels keep alive.
pub(crate) fn references(labels: &Labels) -> Vec<Resource> {
    let blobs = referred_to(labels).filter_map(|text| digest::parse(text).ok().map(Resource::Blob));
    let snapshots = labels.iter().filter_map(|(label, key)| {
        let snapshotter = label.strip_prefix(SNAPSHOT_REF)?.split('/').next()?;
        let (snapshotter, key) = (snapshotter.to_owned(), key.clone());
        Some(Resource::Snapshot { snapshotter, key })
    });
    blobs.chain(snapshots).collect()
}

fn is_gc_suffix(suffix: &str) -> bool {
    suffix.is_empty() || suffix.starts_with(['.', '/'])
}

fn gc_key(kind: ChildKind, number: usize) -> String {
    match kind {
        ChildKind::Manifest => format!("{GC_REF}.m.{number}"),
        ChildKind::Layer => format!("{GC_REF}.l.{number}"),
        ChildKind::Config if number == 0 => format!("{GC_REF}.config"),
        ChildKind::Config => format!("{GC_REF}.config{number}"),
        ChildKind::Other => format!("{GC_REF}.{number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_keep_blobs_and_snapshots_whatever_names_follow_the_kind() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let blob = Resource::Blob(digest.parse().unwrap());
        let snapshot = Resource::Snapshot {
            snapshotter: "overlayfs".to_owned(),
            key: "sha256:top".to_owned(),
        };
        let table = [
            ("containerd.io/gc.ref.content", digest.as_str(), Some(&blob)),
            ("containerd.io/gc.ref.content.l.0", &digest, Some(&blob)),
            ("containerd.io/gc.ref.content/config", &digest, Some(&blob)),
            ("containerd.io/gc.ref.contents", &digest, None),
            ("containerd.io/gc.ref.content.1", "no digest", None),
            (
                "containerd.io/gc.ref.snapshot.overlayfs",
                "sha256:top",
                Some(&snapshot),
            ),
            (
                "containerd.io/gc.ref.snapshot.overlayfs/1",
                "sha256:top",
                Some(&snapshot),
            ),
            ("containerd.io/distribution.source.docker.io", "library/a", None),
        ];
        for (key, value, expected) in table {
            let labels = Labels::from([(key.to_owned(), value.to_owned())]);
            let expected: Vec<Resource> = expected.into_iter().cloned().collect();
            assert_eq!(references(&labels), expected, "{key}");
        }
    }
}
