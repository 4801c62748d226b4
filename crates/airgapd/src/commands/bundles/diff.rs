//! The changes from one bundle to another: names, their images, and blobs. Pure.

use std::collections::{BTreeMap, HashMap};

use bundle::write::DraftImage;
use oci_spec::image::Digest;
use serde::Serialize;

use super::source::{Item, Sources};
use crate::output::{self, Page};

/// The document of `airgapd bundle diff -o json`.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// True if both offer the same images for the same platforms.
    same: bool,
    from: Side,
    to: Side,
    images: Vec<Change>,
    unchanged: usize,
    blobs: Blobs,
}

#[derive(Debug, Serialize)]
struct Side {
    path: String,
    digest: String,
}

/// A name that differs, with its image on each side.
#[derive(Debug, Serialize)]
struct Change {
    name: String,
    change: Kind,
    from: Option<Offer>,
    to: Option<Offer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Added,
    Removed,
    Changed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Offer {
    digest: String,
    platforms: Vec<String>,
}

/// Blobs that are only in the second bundle, only in the first, and in both.
#[derive(Debug, Default, Serialize)]
struct Blobs {
    added: usize,
    added_bytes: u64,
    removed: usize,
    removed_bytes: u64,
    common: usize,
    common_bytes: u64,
}

impl Report {
    pub(super) fn of(from: &Sources, to: &Sources) -> Report {
        let (before, after) = (offers(from), offers(to));
        let names = before
            .keys()
            .chain(after.keys())
            .collect::<std::collections::BTreeSet<_>>();
        let (mut images, mut unchanged) = (Vec::new(), 0);
        for name in names {
            let (from, to) = (before.get(name), after.get(name));
            let change = match (from, to) {
                (None, _) => Kind::Added,
                (_, None) => Kind::Removed,
                (from, to) if from == to => {
                    unchanged += 1;
                    continue;
                }
                _ => Kind::Changed,
            };
            images.push(Change {
                name: name.clone(),
                change,
                from: from.cloned(),
                to: to.cloned(),
            });
        }
        Report {
            same: images.is_empty(),
            from: side(from),
            to: side(to),
            images,
            unchanged,
            blobs: blobs(from, to),
        }
    }

    pub(super) fn text(&self) -> Page {
        let mut text = Page::new();
        for image in &self.images {
            let sign = match image.change {
                Kind::Added => '+',
                Kind::Removed => '-',
                Kind::Changed => '~',
            };
            output::line!(text, "{sign} {}", image.name);
            for (label, offer) in [("from", &image.from), ("to  ", &image.to)] {
                if let Some(offer) = offer.as_ref().filter(|_| image.change == Kind::Changed) {
                    output::line!(
                        text,
                        "    {label} {} ({})",
                        offer.digest,
                        offer.platforms.join(", ")
                    );
                }
            }
        }
        let blobs = &self.blobs;
        let [added, removed, common] =
            [blobs.added_bytes, blobs.removed_bytes, blobs.common_bytes].map(output::bytes);
        output::line!(
            text,
            "names that differ: {} of {}, blobs: {} added ({added}), {} removed ({removed}), {} in both ({common})",
            self.images.len(),
            self.images.len() + self.unchanged,
            blobs.added,
            blobs.removed,
            blobs.common
        );
        text
    }
}

fn side(sources: &Sources) -> Side {
    let bundle = &sources.bundles[0];
    Side {
        path: bundle.path().display().to_string(),
        digest: bundle.catalog().digest.to_string(),
    }
}

/// Returns the image of each name. An image without a name counts under its digest.
fn offers(sources: &Sources) -> BTreeMap<String, Offer> {
    let unnamed = sources.items.iter().filter(|item| item.names.is_empty());
    let unnamed = unnamed.map(|item| (item.draft.target.digest().to_string(), offer(item)));
    let named = sources
        .by_name()
        .into_iter()
        .map(|(name, item)| (name.to_owned(), offer(item)));
    named.chain(unnamed).collect()
}

fn offer(item: &Item) -> Offer {
    let mut platforms = item.platforms.clone();
    platforms.sort();
    Offer {
        digest: item.draft.target.digest().to_string(),
        platforms,
    }
}

fn blobs(from: &Sources, to: &Sources) -> Blobs {
    let (before, after) = (sizes(from), sizes(to));
    let mut blobs = Blobs::default();
    for (digest, size) in &before {
        if after.contains_key(digest) {
            blobs.common += 1;
            blobs.common_bytes += size;
        } else {
            blobs.removed += 1;
            blobs.removed_bytes += size;
        }
    }
    for (_, size) in after.iter().filter(|(digest, _)| !before.contains_key(*digest)) {
        blobs.added += 1;
        blobs.added_bytes += size;
    }
    blobs
}

/// Returns the blobs of all images and their sizes, including blobs that a delta relies on.
fn sizes(sources: &Sources) -> HashMap<&Digest, u64> {
    let images = sources.items.iter().map(|item| &item.draft);
    images
        .flat_map(DraftImage::blobs)
        .map(|blob| (&blob.digest, blob.size))
        .collect()
}
