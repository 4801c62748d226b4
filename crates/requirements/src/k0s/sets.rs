//! Image sets: the default images of each release of k0s.
//!
//! There is one data file for each minor version. `cargo xtask k0s-releases` writes it, from k0s's
//! source code at the tag of each release or from a k0s program. `releases` has the images of each
//! release by component. `listing` tells how these releases list their images. A release may have
//! another `listing` of its own. For other releases the operator gives a file of the same form, or
//! the release's own k0s program.

use std::collections::BTreeMap;
use std::fmt;

use crate::tree::{self, Tree};
use crate::{Limits, Problem, Problems};

use super::Component;

/// The data files, oldest first.
const FILES: [&str; 9] = [
    include_str!("../../data/k0s-v1.29.yaml"),
    include_str!("../../data/k0s-v1.30.yaml"),
    include_str!("../../data/k0s-v1.31.yaml"),
    include_str!("../../data/k0s-v1.32.yaml"),
    include_str!("../../data/k0s-v1.33.yaml"),
    include_str!("../../data/k0s-v1.34.yaml"),
    include_str!("../../data/k0s-v1.35.yaml"),
    include_str!("../../data/k0s-v1.36.yaml"),
    include_str!("../../data/k0s-v1.37.yaml"),
];

/// The way in which a generation of k0s lists its images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// `early`, the first releases of 1.29 to 1.32: as `fixed`, but without the push gateway. The
    /// pause image is that of the release, whatever the configuration says.
    Early,
    /// `fixed`, up to 1.35: the same list for Linux with any network, and the load balancer if it
    /// is enabled.
    Fixed,
    /// `by-platform`, from 1.36: the images that the configuration uses on the platform.
    ByPlatform,
}

impl Listing {
    /// Returns the listing of a name in a file.
    fn of(name: &str) -> Option<Listing> {
        match name {
            "early" => Some(Listing::Early),
            "fixed" => Some(Listing::Fixed),
            "by-platform" => Some(Listing::ByPlatform),
            _ => None,
        }
    }
}

/// Origin of an image set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Built into this program.
    BuiltIn,
    /// A file of the operator.
    File,
}

/// The images of one release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSet {
    /// Release, such as `v1.34.10+k0s.0`.
    pub release: String,
    /// The way in which the release lists its images.
    pub listing: Listing,
    /// Origin of the set.
    pub origin: Origin,
    images: BTreeMap<Component, Image>,
}

/// Name and version of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Image {
    pub(super) name: String,
    pub(super) version: String,
}

impl ImageSet {
    pub(super) fn image(&self, component: Component) -> Option<&Image> {
        self.images.get(&component)
    }
}

/// A release without an image set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct UnknownRelease {
    wanted: String,
    known: Vec<String>,
}

impl fmt::Display for UnknownRelease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "there is no image set for k0s {}, only for {}: give the k0s program with --k0s, or a set with --image-set",
            self.wanted,
            self.known.join(", ")
        )
    }
}

/// Returns the set of the newest final release that is built in.
///
/// # Panics
///
/// Never, since a set is built in and a test checks that.
#[must_use]
pub fn newest() -> ImageSet {
    let mut finals = all().into_iter().rev().filter(|set| !is_preview(&set.release));
    finals.next().expect("sets come with the program")
}

/// Returns true for an alpha, beta or release candidate.
fn is_preview(release: &str) -> bool {
    release.split('+').next().unwrap_or_default().contains('-')
}

/// Returns the built-in set of a release: of `v1.34.10+k0s.0`, or of the newest release of `1.34`
/// or `1.34.10`. A preview needs its full version: `1.37.0-alpha.1`.
///
/// # Errors
///
/// Returns [`UnknownRelease`] with the releases of the same minor version, or else the newest
/// release of each.
pub fn builtin(release: &str) -> Result<ImageSet, UnknownRelease> {
    choose(&all(), release)
}

/// Returns the newest built-in preview of a minor version without a built-in final release, such as
/// `1.37`.
#[must_use]
pub fn preview(wanted: &str) -> Option<ImageSet> {
    let sets = all().into_iter().rev();
    let mut of_minor = sets.filter(|set| is_of_release(&set.release, wanted));
    of_minor.next().filter(|set| is_preview(&set.release))
}

/// Returns true if `release` is the wanted one in full, or of the wanted version, such as `1.34` or
/// `1.34.10`.
#[must_use]
pub fn is_of_release(release: &str, wanted: &str) -> bool {
    let own = release.strip_prefix('v').unwrap_or(release);
    let wanted = wanted.strip_prefix('v').unwrap_or(wanted);
    let rest = own.strip_prefix(wanted).filter(|_| !wanted.is_empty());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '+']))
}

/// Returns the set of a release among several.
///
/// # Errors
/// Returns the same error as [`builtin`].
pub(super) fn choose(sets: &[ImageSet], release: &str) -> Result<ImageSet, UnknownRelease> {
    // A version alone stands for no preview, since the images of its releases differ.
    let may_be_preview = is_preview(release);
    let is_wanted = |set: &&ImageSet| {
        is_of_release(&set.release, release) && (may_be_preview || !is_preview(&set.release))
    };
    if let Some(found) = sets.iter().rev().find(is_wanted) {
        return Ok(found.clone());
    }
    let same_minor = |set: &&ImageSet| minor(&set.release) == minor(release);
    let mut known: Vec<String> = sets
        .iter()
        .filter(same_minor)
        .map(|set| set.release.clone())
        .collect();
    if known.is_empty() {
        let mut newest: Vec<&ImageSet> = sets.iter().rev().collect();
        newest.dedup_by_key(|set| minor(&set.release));
        known = newest.into_iter().rev().map(|set| set.release.clone()).collect();
    }
    Err(UnknownRelease {
        wanted: release.to_owned(),
        known,
    })
}

/// Returns `1.34` of `v1.34.10+k0s.0`.
fn minor(release: &str) -> String {
    let release = release.strip_prefix('v').unwrap_or(release);
    release.split('.').take(2).collect::<Vec<_>>().join(".")
}

fn all() -> Vec<ImageSet> {
    let parsed = FILES
        .iter()
        .map(|text| parse(text, Origin::BuiltIn, &Limits::default()));
    parsed
        .flat_map(|sets| sets.expect("the data files are checked by a test"))
        .collect()
}

/// Reads a file of image sets and returns the set of a release, by default the last set.
///
/// # Errors
///
/// Returns an error if the file is invalid or lacks the release.
pub fn parse_sets(text: &str, release: Option<&str>, limits: &Limits) -> Result<ImageSet, Problems> {
    let mut sets = parse(text, Origin::File, limits)?;
    match release {
        Some(release) => choose(&sets, release).map_err(|unknown| one("", unknown.to_string())),
        None => sets.pop().ok_or_else(|| one("releases", "is empty".to_owned())),
    }
}

fn parse(text: &str, origin: Origin, limits: &Limits) -> Result<Vec<ImageSet>, Problems> {
    let (documents, problems) = tree::documents(text, limits);
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    let root = documents
        .into_iter()
        .next()
        .map_or(Tree::Null, |document| document.tree);
    let listing = listing_of(&root, "listing")?;
    let Some(Tree::Map(releases)) = root.get("releases") else {
        return Err(one(
            "releases",
            "must be a mapping from releases to their images".to_owned(),
        ));
    };
    let sets = releases.iter().map(|(release, images)| {
        let own = images.get("listing").is_some();
        let path = format!("releases.{release}.listing");
        Ok(ImageSet {
            release: release.clone(),
            listing: if own { listing_of(images, &path)? } else { listing },
            origin,
            images: images_of(release, images)?,
        })
    });
    sets.collect()
}

fn listing_of(tree: &Tree, path: &str) -> Result<Listing, Problems> {
    let listing = tree.text("listing").and_then(Listing::of);
    listing.ok_or_else(|| one(path, "must be `early`, `fixed` or `by-platform`".to_owned()))
}

fn images_of(release: &str, tree: &Tree) -> Result<BTreeMap<Component, Image>, Problems> {
    let Tree::Map(members) = tree else {
        return Err(one(
            &format!("releases.{release}"),
            format!("must be a mapping, not {}", tree.kind()),
        ));
    };
    let image = |(key, value): &(String, Tree)| {
        let path = format!("releases.{release}.{key}");
        let component = Component::ALL
            .into_iter()
            .find(|component| component.key() == key);
        let component = component.ok_or_else(|| one(&path, "is not a component of k0s".to_owned()))?;
        let reference = match value {
            Tree::Text(text) => text,
            other => return Err(one(&path, format!("must be text, not {}", other.kind()))),
        };
        let (name, version) =
            split(reference).ok_or_else(|| one(&path, "must be an image name with a tag".to_owned()))?;
        Ok((component, Image { name, version }))
    };
    members
        .iter()
        .filter(|(key, _)| key != "listing")
        .map(image)
        .collect()
}

/// Splits a reference into name and tag. A digest belongs to the tag, as in k0s.
fn split(reference: &str) -> Option<(String, String)> {
    let without_digest = reference.split('@').next().unwrap_or(reference);
    let (name, tag) = without_digest.rsplit_once(':')?;
    let is_tag = !tag.is_empty() && !tag.contains('/') && !name.is_empty();
    is_tag.then(|| (name.to_owned(), reference[name.len() + 1..].to_owned()))
}

fn one(at: &str, reason: String) -> Problems {
    Problems(vec![Problem {
        line: None,
        at: at.to_owned(),
        reason,
    }])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every release has all its components, so that no list lacks an image unnoticed.
    #[test]
    fn the_data_files_are_whole_and_in_order() {
        let mut before: Option<Vec<u32>> = None;
        for set in all() {
            for component in &Component::ALL[..12] {
                assert!(set.image(*component).is_some(), "{} {component:?}", set.release);
            }
            let platform = set.listing == Listing::ByPlatform;
            assert_eq!(
                platform,
                set.image(Component::Traefik).is_some(),
                "{}",
                set.release
            );
            let numbers = set
                .release
                .split(|c: char| !c.is_ascii_digit())
                .filter(|part| !part.is_empty());
            let numbers: Vec<u32> = numbers.map(|part| part.parse().unwrap()).collect();
            assert!(before.is_none_or(|before| before < numbers), "{}", set.release);
            before = Some(numbers);
            let proxy = &set.image(Component::KubeProxy).unwrap().version;
            let kubernetes = set.release.split('+').next().unwrap();
            assert!(
                proxy == kubernetes || proxy.starts_with(&format!("{kubernetes}-")),
                "{} {proxy}",
                set.release
            );
        }
    }

    #[test]
    fn the_document_has_a_row_for_each_minor_version() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/preparing.md");
        let page = std::fs::read_to_string(page).unwrap();
        let mut by_minor: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for set in all() {
            by_minor.entry(minor(&set.release)).or_default().push(set.release);
        }
        for (minor, releases) in by_minor {
            let (first, last) = (&releases[0], &releases[releases.len() - 1]);
            let row = format!("| {minor} | {} | {first} | {last} |", releases.len());
            assert!(page.contains(&row), "{row}");
        }
    }

    #[test]
    fn releases_are_found_in_full_and_by_version() {
        for (wanted, found) in [
            ("v1.34.10+k0s.0", "v1.34.10+k0s.0"),
            ("1.34.1+k0s.0", "v1.34.1+k0s.0"),
            ("v1.34.1", "v1.34.1+k0s.1"),
            ("1.34", "v1.34.10+k0s.0"),
            ("v1.29", "v1.29.15+k0s.0"),
            ("v1.29.1", "v1.29.1+k0s.1"),
            ("v1.37.0-alpha.1+k0s.0", "v1.37.0-alpha.1+k0s.0"),
            ("1.37.0-alpha.1", "v1.37.0-alpha.1+k0s.0"),
        ] {
            assert_eq!(builtin(wanted).unwrap().release, found, "{wanted}");
        }
        let newest = newest().release;
        assert!(!is_preview(&newest) && minor(&newest) == "1.36", "{newest}");
        let preview = builtin("1.37").unwrap_err().to_string();
        assert!(preview.contains("only for v1.37.0-alpha.1+k0s.0"), "{preview}");
        let release = |wanted: &str| super::preview(wanted).map(|set| set.release);
        assert_eq!(release("1.37").as_deref(), Some("v1.37.0-alpha.1+k0s.0"));
        for wanted in ["1.36", "1.37.0", "1.38", ""] {
            assert_eq!(release(wanted), None, "{wanted}");
        }
        for wanted in ["", "v", "1.3", "1.34.99", "2.0", "latest"] {
            let error = builtin(wanted).unwrap_err().to_string();
            assert!(
                error.contains("--image-set") && error.contains("v1.34"),
                "{wanted}: {error}"
            );
        }
    }

    #[test]
    fn a_file_of_the_operator_takes_the_place_of_ours() {
        let text = "listing: by-platform\nreleases:\n  v9.9.9+k0s.0: {pause: 'a.b:5000/pause:1@sha256:00'}\n  v10.0.0+k0s.0: {}\n";
        let read = |release| parse_sets(text, release, &Limits::default());
        let image = read(Some("9.9"))
            .unwrap()
            .image(Component::Pause)
            .cloned()
            .unwrap();
        assert_eq!(
            (image.name.as_str(), image.version.as_str()),
            ("a.b:5000/pause", "1@sha256:00")
        );
        assert_eq!(read(None).unwrap().release, "v10.0.0+k0s.0");
        assert!(read(Some("8")).unwrap_err().to_string().contains("v9.9.9"));
        let early = format!("{text}  v10.0.1+k0s.0: {{listing: early}}\n");
        let set = parse_sets(&early, None, &Limits::default()).unwrap();
        assert_eq!((set.listing, set.images.len()), (Listing::Early, 0));
        for (text, part) in [
            ("", "listing"),
            ("listing: x", "listing"),
            ("listing: fixed", "releases"),
            ("listing: fixed\nreleases: {}", "releases"),
            (
                "listing: fixed\nreleases: {a: []}",
                "releases.a must be a mapping",
            ),
            (
                "listing: fixed\nreleases: {a: {listing: x}}",
                "releases.a.listing must be `early`",
            ),
            (
                "listing: fixed\nreleases: {a: {x: b}}",
                "releases.a.x is not a component",
            ),
            (
                "listing: fixed\nreleases: {a: {pause: 1}}",
                "releases.a.pause must be text",
            ),
            (
                "listing: fixed\nreleases: {a: {pause: b}}",
                "releases.a.pause must be an image name with a tag",
            ),
            (
                "listing: fixed\nreleases: {a: {pause: 'h:1/b'}}",
                "must be an image name with a tag",
            ),
        ] {
            let error = parse_sets(text, None, &Limits::default())
                .unwrap_err()
                .to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
