//! The labels that tell containerd's garbage collector which blobs a blob refers to.

use std::collections::{HashMap, HashSet};

use crate::labels::Labels;
use crate::select::{Child, ChildKind};

const GC_REF: &str = "containerd.io/gc.ref.content";

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
