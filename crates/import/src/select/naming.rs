//! The records of an image: its names, the names of its digests, and their targets.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use basics::counted;
use bundle::{Image, Node};
use oci_spec::image::{Descriptor, Digest};

use super::node::manifests_below;
use super::{Choice, Closure, NamedTarget, Policy, Problem, Rank, Skip, Taken, Verdict};
use crate::names::{Naming, Reference};

pub(super) fn named(
    group: &[&Image],
    closure: Closure,
    policy: &Policy,
    notes: &mut Vec<String>,
    asked: &mut usize,
) -> Verdict {
    let target = Arc::new(recorded(&group[0].root.descriptor));
    let mut records: Vec<NamedTarget> = Vec::new();
    let mut all: Vec<Reference> = Vec::new();
    let mut seen: HashSet<Reference> = HashSet::new();
    let mut forbidden = 0;
    for image in group {
        let names = policy
            .naming
            .names_of(&image.names, image.root.descriptor.digest());
        notes.extend(names.refused);
        forbidden += names.forbidden;
        for reference in names.references {
            if seen.insert(reference.clone()) {
                records.push(NamedTarget {
                    name: reference.to_string(),
                    target: Arc::clone(&target),
                });
                all.push(reference);
            }
        }
    }
    if records.is_empty() {
        return if forbidden > 0 {
            Verdict::Forbidden("allowedNames allows none of its names".to_owned())
        } else {
            Verdict::Skip(Skip::Unnamed)
        };
    }
    let manifests = taken_manifests(&group[0].root, &closure);
    let of_manifests = policy.naming.repositories(&all) * manifests.len();
    *asked += records.len() + of_manifests;
    if *asked > policy.most_records {
        let most = policy.most_records;
        return Verdict::Broken(vec![Problem::of_image(format!(
            "too many image records: with its {} and {}, the bundle asks for {asked}, but `limits.records` is {most}",
            counted(records.len(), "name"),
            counted(manifests.len(), "manifest")
        ))]);
    }
    records.extend(manifest_records(&manifests, &all, &policy.naming));
    let naming = &policy.naming;
    if let Some(reason) = records
        .iter()
        .find_map(|record| naming.out_of_scope(&record.name))
    {
        return Verdict::Forbidden(reason);
    }
    Verdict::Take(Taken { records, closure })
}

/// Largest size of a record's annotations in bytes, with [`ANNOTATION`] added for each. containerd
/// answers each list with the annotations of all records, in one message of at most 16 MiB.
const MOST_ANNOTATIONS: usize = 1 << 10;

/// Overhead of an annotation in bytes.
const ANNOTATION: usize = 64;

/// Returns a descriptor for a record: without `urls`, which no reader of records uses, and without
/// annotations if they are large.
fn recorded(descriptor: &Descriptor) -> Descriptor {
    let mut recorded = descriptor.clone();
    recorded.set_urls(None);
    let annotations = descriptor.annotations().iter().flatten();
    let bytes: usize = annotations
        .map(|(key, value)| key.len() + value.len() + ANNOTATION)
        .sum();
    if bytes > MOST_ANNOTATIONS {
        recorded.set_annotations(None);
    }
    recorded
}

/// Returns the images below an index that are taken, each once.
fn taken_manifests<'n>(root: &'n Node, closure: &Closure) -> Vec<&'n Node> {
    let taken: HashSet<&Digest> = closure.blobs.iter().map(|blob| &blob.digest).collect();
    let mut seen = HashSet::new();
    let mut manifests = manifests_below(root);
    manifests.retain(|node| {
        let digest = node.descriptor.digest();
        taken.contains(digest) && seen.insert(digest)
    });
    manifests
}

/// Returns the `name@digest` records of the manifests below an index, if the naming rules ask for
/// them.
fn manifest_records(manifests: &[&Node], names: &[Reference], naming: &Naming) -> Vec<NamedTarget> {
    let mut records = Vec::new();
    for node in manifests {
        let mut target = recorded(&node.descriptor);
        target.set_annotations(None);
        let target = Arc::new(target);
        let references = naming.manifest_references(names, node.descriptor.digest());
        records.extend(references.into_iter().map(|reference| NamedTarget {
            name: reference.to_string(),
            target: Arc::clone(&target),
        }));
    }
    records
}

/// Settles names that several images claim. The image that suits the node best gets the name, and
/// among equals the last.
pub(super) fn settle_names(choices: &mut [(Choice, Rank)]) {
    let mut winners: HashMap<String, (usize, Rank)> = HashMap::new();
    for (at, (choice, rank)) in choices.iter().enumerate() {
        for record in choice.records() {
            if winners.get(&record.name).is_none_or(|(_, held)| rank <= held) {
                winners.insert(record.name.clone(), (at, *rank));
            }
        }
    }
    for (at, (choice, _)) in choices.iter_mut().enumerate() {
        choice.give_up_names(|name| winners.get(name).is_some_and(|(winner, _)| *winner != at));
    }
}

impl Choice {
    fn records(&self) -> &[NamedTarget] {
        match &self.verdict {
            Verdict::Take(taken) => &taken.records,
            Verdict::Skip(_) | Verdict::Forbidden(_) | Verdict::Broken(_) => &[],
        }
    }

    /// Removes the names that another image of the bundle got. An image without a tag left is not
    /// taken.
    fn give_up_names(&mut self, is_lost: impl Fn(&str) -> bool) {
        let Verdict::Take(taken) = &mut self.verdict else {
            return;
        };
        let (lost, kept): (Vec<_>, Vec<_>) =
            taken.records.drain(..).partition(|record| is_lost(&record.name));
        taken.records = kept;
        if lost.is_empty() {
            return;
        }
        self.notes.extend(
            lost.iter()
                .map(|record| format!("the name {} goes to another image of the bundle", record.name)),
        );
        if taken.records.iter().all(|record| record.name.contains('@')) {
            self.verdict = Verdict::Skip(Skip::Outranked);
        }
    }
}
