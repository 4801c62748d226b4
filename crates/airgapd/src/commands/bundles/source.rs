//! Bundles as sources of images for other bundles.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bundle::write::{Draft, DraftImage};
use bundle::{Bundle, Catalog, Image, Release, Reliance};
use import::names::DigestReferences;
use import::{Judgement, Naming};
use oci_spec::image::Digest;

use crate::commands::export::choice::{judge_whole, left_out};
use crate::exit::{Exit, Refusal};
use node::settings::Settings;

const BUNDLE: &str = "the bundle";

/// An image of a bundle, with its complete platforms.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) names: BTreeSet<String>,
    pub(super) draft: DraftImage,
    pub(super) platforms: Vec<String>,
    /// Index of its bundle.
    from: usize,
}

impl Item {
    /// Returns the names by digest that follow from its tags.
    fn names_by_digest(&self) -> impl Iterator<Item = String> {
        let references = self
            .names
            .iter()
            .filter_map(|name| name.parse::<import::Reference>().ok());
        let tagged = references.filter(|reference| reference.tag().is_some());
        tagged.map(|reference| reference.by_digest(self.draft.target.digest()).to_string())
    }
}

/// Open bundles and their images.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) bundles: Arc<[Bundle]>,
    pub(super) items: Vec<Item>,
    /// Base that deltas rely on and that is not among the bundles.
    relies_on: Option<Reliance>,
    /// The release that all bundles carry with one list.
    release: Option<Release>,
    pub(super) warnings: Vec<String>,
}

impl Sources {
    /// Opens bundles and checks all their images.
    ///
    /// # Errors
    ///
    /// Returns a refusal for a file that cannot be read or an image that is not whole.
    pub(super) async fn open(paths: &[PathBuf], settings: &Settings) -> Result<Sources, Refusal> {
        let mut bundles = Vec::new();
        for path in paths {
            let opened = crate::commands::import::open(path, &settings.limits).await;
            bundles.push(opened.map_err(|error| Refusal::of_bundle(&error))?);
        }
        let naming = Naming {
            base_name: settings.base_name.clone(),
            digest_references: DigestReferences::None,
            ..Naming::default()
        };
        let mut sources = Sources {
            relies_on: relies_on(&bundles),
            release: release_of_all(&bundles),
            bundles: bundles.into(),
            items: Vec::new(),
            warnings: Vec::new(),
        };
        let there = sources.there();
        let mut problems = Vec::new();
        for (from, bundle) in sources.bundles.iter().enumerate() {
            let catalog = bundle.catalog().completed_by(&there);
            let (items, refused) = items_of(from, bundle.path(), &catalog, &naming, &mut problems);
            sources.items.extend(items);
            sources.warnings.extend(refused);
        }
        if problems.is_empty() {
            Ok(sources)
        } else {
            Err(Refusal::of_many(Exit::BadBundle, problems))
        }
    }

    /// Returns the blobs that count as present: those of any of the bundles, and those that deltas
    /// rely on.
    fn there(&self) -> HashSet<Digest> {
        let relied_on = self.relies_on.iter().flat_map(|reliance| &reliance.blobs);
        blobs_of(&self.bundles)
            .into_iter()
            .chain(relied_on.map(|blob| blob.digest.clone()))
            .collect()
    }

    /// Gives each name to one image. If bundles differ, the image of the last bundle gets it.
    pub(super) fn settle_names(&mut self) {
        let mut holders: HashMap<String, (usize, Digest)> = HashMap::new();
        for item in &self.items {
            for name in &item.names {
                holders.insert(name.clone(), (item.from, item.draft.target.digest().clone()));
            }
        }
        let (bundles, warnings) = (&self.bundles, &mut self.warnings);
        self.items.retain_mut(|item| {
            let (digest, from) = (item.draft.target.digest().clone(), item.from);
            let had_names = !item.names.is_empty();
            item.names.retain(|name| {
                let (winner, held) = &holders[name];
                // If a bundle has a name twice, the images are for two platforms, and the node's
                // import chooses.
                let keeps = *winner == from || *held == digest;
                if !keeps {
                    let (loser, winner) = (bundles[from].path(), bundles[*winner].path());
                    warnings.push(format!(
                        "{name} is {held} of {}, not {digest} of {}",
                        winner.display(),
                        loser.display()
                    ));
                }
                keeps
            });
            item.draft.names = item.names.iter().cloned().collect();
            !had_names || !item.names.is_empty()
        });
    }

    /// Returns the draft of a bundle with these images. It is a delta if they need blobs that none
    /// of the bundles has.
    pub(super) fn draft(&self, items: &[Item]) -> Draft {
        let images: Vec<DraftImage> = items.iter().map(|item| item.draft.clone()).collect();
        let needed: HashSet<&Digest> = images
            .iter()
            .flat_map(DraftImage::blobs)
            .map(|blob| &blob.digest)
            .collect();
        let relies_on = self.relies_on.as_ref().and_then(|reliance| {
            let blobs: Vec<_> = reliance
                .blobs
                .iter()
                .filter(|blob| needed.contains(&blob.digest))
                .cloned()
                .collect();
            (!blobs.is_empty()).then(|| Reliance::new(reliance.base.clone(), blobs))
        });
        let mut draft = Draft {
            images,
            relies_on,
            release: None,
        };
        if let Some(release) = &self.release {
            draft.stay_in(release);
        }
        draft
    }

    /// Warns if the bundles name releases, and a bundle that was made of all of them names none.
    pub(super) fn note_release(&mut self, draft: &Draft) {
        let releases = self
            .bundles
            .iter()
            .filter_map(|bundle| bundle.catalog().release.as_ref());
        let names: BTreeSet<&str> = releases.map(|release| release.name.as_str()).collect();
        if draft.release.is_none() && !names.is_empty() {
            let names: Vec<&str> = names.into_iter().collect();
            self.warnings.push(format!(
                "the result belongs to no release, since it is not made of images of one list: {}",
                names.join(", ")
            ));
        }
    }

    /// Returns the images by name. Of two images with one name, the later counts. Names by digest
    /// that each import makes from a tag are left out: they do not change the result.
    pub(super) fn by_name(&self) -> BTreeMap<&str, &Item> {
        let named = self.items.iter().flat_map(|item| {
            let made: HashSet<String> = item.names_by_digest().collect();
            let names = item.names.iter().filter(move |name| !made.contains(*name));
            names.map(move |name| (name.as_str(), item))
        });
        named.collect()
    }
}

/// Returns every blob of the bundles.
pub(in crate::commands) fn blobs_of(bundles: &[Bundle]) -> HashSet<Digest> {
    let images = bundles.iter().flat_map(|bundle| &bundle.catalog().images);
    images
        .flat_map(|image| {
            let draft = DraftImage::of(image);
            draft.blobs().map(|blob| blob.digest.clone()).collect::<Vec<_>>()
        })
        .collect()
}

/// Returns the blobs that deltas among the bundles rely on and that no other bundle has.
fn relies_on(bundles: &[Bundle]) -> Option<Reliance> {
    let there = blobs_of(bundles);
    let deltas = || {
        bundles
            .iter()
            .filter_map(|bundle| bundle.catalog().relies_on.as_ref())
    };
    let missing: Vec<_> = deltas()
        .flat_map(|reliance| &reliance.blobs)
        .filter(|blob| !there.contains(&blob.digest))
        .cloned()
        .collect();
    let mut bases: Vec<&str> = deltas().map(|reliance| reliance.base.as_str()).collect();
    bases.dedup();
    (!missing.is_empty()).then(|| Reliance::new(bases.join(", "), missing))
}

/// Returns the release of bundles that all carry the same list.
fn release_of_all(bundles: &[Bundle]) -> Option<Release> {
    let mut releases = bundles.iter().map(|bundle| bundle.catalog().release.as_ref());
    let first = releases.next()??;
    releases.all(|other| other == Some(first)).then(|| first.clone())
}

/// Returns the images of a bundle, one for each target, and warnings about names that were not
/// used.
fn items_of(
    from: usize,
    path: &Path,
    catalog: &Catalog,
    naming: &Naming,
    problems: &mut Vec<String>,
) -> (Vec<Item>, Vec<String>) {
    let mut items: Vec<Item> = Vec::new();
    let mut warnings = Vec::new();
    for image in &catalog.images {
        let names = naming.names_of(&image.names, image.root.descriptor.digest());
        warnings.extend(
            names
                .refused
                .into_iter()
                .map(|reason| format!("{}: {reason}", path.display())),
        );
        let names: BTreeSet<String> = names.references.iter().map(ToString::to_string).collect();
        let (digest, platform) = (image.root.descriptor.digest(), &image.root.platform);
        let same =
            |item: &&mut Item| item.draft.target.digest() == digest && item.draft.platform == *platform;
        if let Some(item) = items.iter_mut().find(same) {
            item.names.extend(names);
            item.draft.names = item.names.iter().cloned().collect();
            continue;
        }
        match item(from, image, names) {
            Ok(item) => items.push(item),
            Err(reason) => problems.push(format!("{}: {}: {reason}", path.display(), label(image))),
        }
    }
    (items, warnings)
}

fn label(image: &Image) -> String {
    let name = image
        .names
        .first()
        .map(|name| basics::foreign::shown(name.as_str()));
    name.unwrap_or_else(|| image.root.descriptor.digest().to_string())
}

fn item(from: usize, image: &Image, names: BTreeSet<String>) -> Result<Item, String> {
    let given: Vec<String> = names.iter().cloned().collect();
    let (draft, platforms) = match judge_whole(&image.root, BUNDLE) {
        Judgement::Whole(closure) => {
            let blobs: HashSet<Digest> = closure.blobs.iter().map(|blob| blob.digest.clone()).collect();
            (DraftImage::part(given, &image.root, &blobs), closure.platforms)
        }
        // Charts, signatures: they are passed on unchanged.
        Judgement::Artifact(_) => {
            let draft = DraftImage {
                names: given,
                ..DraftImage::of(image)
            };
            (draft, Vec::new())
        }
        Judgement::Broken(problems) => return Err(import::select::in_words(&problems)),
        Judgement::Foreign(_) => {
            let reasons = left_out(&image.root, &HashSet::new(), BUNDLE)
                .into_iter()
                .map(|left| left.reason);
            return Err(reasons.collect::<Vec<_>>().join("; "));
        }
    };
    Ok(Item {
        names,
        draft,
        platforms,
        from,
    })
}
