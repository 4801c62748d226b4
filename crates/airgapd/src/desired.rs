//! Compares what the ledger says a bundle put into containerd with what is there: pure, and without opening a bundle.

use std::collections::{BTreeMap, HashSet};

use import::{Source, Survey, labels};
use oci_spec::image::Digest;

use crate::ledger::{self, Entry, Ledger};

/// How an imported bundle stands in containerd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Every record, label and blob is in place.
    InPlace,
    /// Something is missing; the first of it, for the log.
    Missing(String),
}

/// A record that somebody else moved to another image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) name: String,
    pub(crate) from: Digest,
    pub(crate) to: Digest,
}

/// Every blob that the ledger's images need.
pub(crate) fn digests(ledger: &Ledger) -> HashSet<Digest> {
    let imported = ledger
        .entries()
        .into_iter()
        .filter_map(|entry| entry.imported.as_ref());
    let targets = imported
        .flat_map(|imported| &imported.images)
        .map(|image| &image.target);
    targets
        .filter_map(|target| ledger.closure(target))
        .flatten()
        .cloned()
        .collect()
}

/// Compares one bundle. Names that a later bundle took over are not its business any more.
pub(crate) fn standing(
    entry: &Entry,
    ledger: &Ledger,
    desired: &BTreeMap<&str, (&Digest, &Entry)>,
    survey: &Survey,
) -> (Standing, Vec<Moved>) {
    let source = Source::Bundle(ledger::label_name(&entry.file));
    let mut moved = Vec::new();
    for image in entry.imported.iter().flat_map(|imported| &imported.images) {
        let is_ours = desired
            .get(image.name.as_str())
            .is_none_or(|(target, _)| **target == image.target);
        let Some(record) = survey.records.get(&image.name).filter(|_| is_ours) else {
            if is_ours {
                return (Standing::Missing(format!("the record {}", image.name)), moved);
            }
            continue;
        };
        if *record.target.digest() != image.target {
            let to = record.target.digest().clone();
            if is_left_behind(&image.name, &to, ledger) {
                let what = format!(
                    "the record {}, which a bundle that is gone had taken over,",
                    image.name
                );
                return (Standing::Missing(what), moved);
            }
            moved.push(Moved {
                name: image.name.clone(),
                from: image.target.clone(),
                to,
            });
            continue;
        }
        if !labels::vouch(&record.labels, &source).is_empty() {
            return (Standing::Missing(format!("a label of {}", image.name)), moved);
        }
        let closure = ledger.closure(&image.target).unwrap_or_default();
        match closure.iter().find(|digest| !survey.blobs.contains_key(*digest)) {
            Some(digest) => {
                return (
                    Standing::Missing(format!("blob {digest} of {}", image.name)),
                    moved,
                );
            }
            None if closure.is_empty() => {
                return (
                    Standing::Missing(format!("the list of blobs of {}", image.name)),
                    moved,
                );
            }
            None => {}
        }
    }
    (Standing::InPlace, moved)
}

/// Whether a record points where a bundle wanted it that is gone by now: nobody else moved it.
fn is_left_behind(name: &str, to: &Digest, ledger: &Ledger) -> bool {
    let gone = ledger.entries().into_iter().filter(|entry| entry.gone.is_some());
    let mut images = gone
        .flat_map(|entry| &entry.imported)
        .flat_map(|imported| &imported.images);
    images.any(|image| image.name == name && image.target == *to)
}
