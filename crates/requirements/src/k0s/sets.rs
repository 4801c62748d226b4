//! Image sets: the default images of each release of k0s.
//!
//! There is one data file for each minor version. Its facts come from k0s's source code at the tag
//! of each release. `listing` tells how that generation lists its images. `releases` has the images
//! of each release by component. For other releases the operator gives a file of the same form, or
//! the release's own k0s program.

use std::collections::BTreeMap;
use std::fmt;

use crate::tree::{self, Tree};
use crate::{Limits, Problem, Problems};

use super::Component;

/// The data files, oldest first.
const FILES: [&str; 8] = [
    include_str!("../../data/k0s-v1.29.yaml"),
    include_str!("../../data/k0s-v1.30.yaml"),
    include_str!("../../data/k0s-v1.31.yaml"),
    include_str!("../../data/k0s-v1.32.yaml"),
    include_str!("../../data/k0s-v1.33.yaml"),
    include_str!("../../data/k0s-v1.34.yaml"),
    include_str!("../../data/k0s-v1.35.yaml"),
    include_str!("../../data/k0s-v1.36.yaml"),
];

/// The way in which a generation of k0s lists its images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// `fixed`, up to 1.35: the same list for Linux with any network, and the load balancer if it
    /// is enabled.
    Fixed,
    /// `by-platform`, from 1.36: the images that the configuration uses on the platform.
    ByPlatform,
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

/// Returns the set of the newest release that is built in.
///
/// # Panics
///
/// Never, since a set is built in and a test checks that.
#[must_use]
pub fn newest() -> ImageSet {
    all().pop().expect("sets come with the program")
}

/// Returns the built-in set of a release: of `v1.34.10+k0s.0`, or of the newest release of `1.34`
/// or `1.34.10`.
///
/// # Errors
///
/// Returns [`UnknownRelease`] with the releases of the same minor version, or else the newest
/// release of each.
pub fn builtin(release: &str) -> Result<ImageSet, UnknownRelease> {
    choose(&all(), release)
}

/// Returns the set of a release among several.
///
/// # Errors
/// Returns the same error as [`builtin`].
pub(super) fn choose(sets: &[ImageSet], release: &str) -> Result<ImageSet, UnknownRelease> {
    let wanted = release.strip_prefix('v').unwrap_or(release);
    let is_wanted = |set: &ImageSet| {
        let own = set.release.strip_prefix('v').unwrap_or(&set.release);
        let rest = own.strip_prefix(wanted);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '+']))
    };
    if let Some(found) = sets.iter().rev().find(|set| !wanted.is_empty() && is_wanted(set)) {
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
    let listing = match root.text("listing") {
        Some("fixed") => Listing::Fixed,
        Some("by-platform") => Listing::ByPlatform,
        _ => return Err(one("listing", "must be `fixed` or `by-platform`".to_owned())),
    };
    let Some(Tree::Map(releases)) = root.get("releases") else {
        return Err(one(
            "releases",
            "must be a mapping from releases to their images".to_owned(),
        ));
    };
    let sets = releases.iter().map(|(release, images)| {
        Ok(ImageSet {
            release: release.clone(),
            listing,
            origin,
            images: images_of(release, images)?,
        })
    });
    sets.collect()
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
    members.iter().map(image).collect()
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
    fn releases_are_found_in_full_and_by_version() {
        for (wanted, found) in [
            ("v1.34.10+k0s.0", "v1.34.10+k0s.0"),
            ("1.34.1+k0s.0", "v1.34.1+k0s.0"),
            ("v1.34.1", "v1.34.1+k0s.1"),
            ("1.34", "v1.34.10+k0s.0"),
            ("v1.29", "v1.29.15+k0s.0"),
        ] {
            assert_eq!(builtin(wanted).unwrap().release, found, "{wanted}");
        }
        assert_eq!(newest().release, all().last().unwrap().release);
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
