//! The labels that give the origin of blobs.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use oci_spec::image::Digest;

use crate::labels::{self, Labels};
use crate::names::Reference;
use crate::select::Taken;

/// The origins of blobs, as labels. Blobs of the same images share them: an image may have
/// thousands of layers and hundreds of names, and a layer may be in thousands of images.
pub(super) struct Sources<'a>(HashMap<&'a Digest, Arc<Labels>>);

/// Largest number of repositories in a blob's labels. containerd writes each label of each blob to
/// its disk.
pub(super) const MOST_SOURCES: usize = 16;

impl<'a> Sources<'a> {
    pub(super) fn of(images: &[&'a Taken]) -> Self {
        let mut holders: HashMap<&Digest, Vec<usize>> = HashMap::new();
        for (at, image) in images.iter().enumerate() {
            for blob in &image.closure.blobs {
                let holders = holders.entry(&blob.digest).or_default();
                if holders.len() < MOST_SOURCES {
                    holders.push(at);
                }
            }
        }
        let repositories: Vec<Vec<String>> = images.iter().map(|image| repositories(image)).collect();
        let mut made: HashMap<Vec<usize>, Arc<Labels>> = HashMap::new();
        let labels = |holders: &Vec<usize>| {
            let names = holders.iter().flat_map(|at| &repositories[*at]);
            let names: BTreeSet<&str> = names.map(String::as_str).collect();
            Arc::new(labels::distribution_sources(names.into_iter().take(MOST_SOURCES)))
        };
        let of_blob = |(digest, holders): (&'a Digest, Vec<usize>)| {
            if let Some(labels) = made.get(&holders) {
                return (digest, Arc::clone(labels));
            }
            let labels = labels(&holders);
            made.insert(holders, Arc::clone(&labels));
            (digest, labels)
        };
        Sources(holders.into_iter().map(of_blob).collect())
    }

    pub(super) fn labels(&self, digest: &Digest) -> Arc<Labels> {
        self.0.get(digest).cloned().unwrap_or_default()
    }
}

/// Returns the first few repositories in an image's names, in order.
fn repositories(image: &Taken) -> Vec<String> {
    let references = image
        .records
        .iter()
        .map(|record| record.name.parse::<Reference>());
    let repositories = references
        .flatten()
        .map(|reference| reference.repository().to_owned());
    let repositories: BTreeSet<String> = repositories.collect();
    repositories.into_iter().take(MOST_SOURCES).collect()
}
