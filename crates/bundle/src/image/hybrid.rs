//! Archives with both documents: additions of `manifest.json` to the images of `index.json`. The
//! images of `index.json` count.

use std::collections::{HashMap, HashSet};

use basics::digest;
use oci_spec::image::Digest;
use serde_json::value::RawValue;

use super::account::TEXT;
use super::docker::Docker;
use super::documents::{self, DockerImage};
use super::layout;
use super::read::{DOCKER, Images, check_count, content_digest, elements};
use super::reader::{Blobs as _, Reader};
use crate::{Content, Fault, Image, Manifest, Node, Part, PartState, RawName, Warning};

/// Adds names from `manifest.json` to images without a name. Also replaces images whose OCI side
/// cannot run by those of `manifest.json`. Docker 25.0 wrote such images: with an empty list of
/// layers (moby#47065) or with layers in the wrong order (moby#47150).
pub(super) fn compare_sides(
    reader: &mut Reader<'_>,
    images: &mut Images,
    index: &[u8],
    docker: &[u8],
) -> Result<(), Fault> {
    // The OCI side counts. An unusable manifest.json beside it does no harm.
    let Ok(elements) = elements(docker) else {
        return Ok(());
    };
    let left_out = images_left_out(&images.images, &elements);
    let mut has_effect = left_out.is_some();
    images.warnings.extend(left_out);
    has_effect |= add_names(reader, &mut images.images, &elements)?;
    let mut others = Vec::new();
    if images.images.iter().any(|image| broken_manifest(image).is_some()) {
        check_count(elements.len(), DOCKER, reader.limits)?;
        let mut docker = Docker::new(reader);
        let made: Result<Vec<_>, _> = elements.iter().map(|element| docker.image(element)).collect();
        others = made?;
        for image in &mut images.images {
            if let Some(warning) = replace(image, &others) {
                images.warnings.push(warning);
                has_effect = true;
            }
        }
    }
    if has_effect {
        images.digest = both_digest(index, docker, &others, &images.images);
    }
    Ok(())
}

/// Returns the identity of content that comes from both documents.
///
/// The documents and the manifests below them decide which image gets a name of `manifest.json`. If
/// some of these manifests are missing or damaged, a bundle that has them may decide otherwise.
/// Only then the digest covers the decision itself.
fn both_digest(index: &[u8], docker: &[u8], others: &[Image], images: &[Image]) -> Digest {
    let docker = content_digest(docker, others);
    let mut hasher = digest::Hasher::sha256();
    hasher.update(index);
    hasher.update(docker.as_ref().as_bytes());
    if images.iter().all(|image| is_known(&image.root)) && !others.iter().any(has_damage) {
        return hasher.finish();
    }
    for image in images {
        hasher.update(format!("\nimage {}", image.root.descriptor.digest()).as_bytes());
        for name in &image.names {
            let name = digest::sha256(name.as_str().as_bytes());
            hasher.update(format!("\nname {name}").as_bytes());
        }
    }
    hasher.finish()
}

/// Returns true if every manifest and config below a node was read. Then no other blobs in the
/// bundle could tell more about the image.
fn is_known(node: &Node) -> bool {
    match &node.content {
        Content::Index(children) => children.iter().all(is_known),
        Content::Manifest(manifest) => manifest.config.state == PartState::Present,
        Content::Other => true,
        Content::Absent | Content::Broken(_) => false,
    }
}

/// Returns true if a blob of an image of `manifest.json` is damaged, so that [`replace`] passes
/// over the image.
fn has_damage(image: &Image) -> bool {
    let is_damaged = |part: &Part| matches!(part.state, PartState::Broken(_));
    matches!(&image.root.content, Content::Manifest(manifest) if manifest.parts().any(is_damaged))
}

/// Gives names from `manifest.json` to images without a name. Returns true if there are any. The
/// config tells which manifest an element describes. If that manifest is part of an index, the
/// index gets the name. An image that `index.json` names keeps that name alone, as in containerd's
/// importer.
///
/// bazel's `rules_img` wrote such archives (rules_img#462), and so did BuildKit (moby#45416).
fn add_names(reader: &mut Reader<'_>, images: &mut [Image], elements: &[&RawValue]) -> Result<bool, Fault> {
    if elements.len() > reader.limits.images {
        return Ok(false);
    }
    let mut by_config: HashMap<String, usize> = HashMap::new();
    let unnamed = images.iter().enumerate().filter(|(_, image)| is_unnamed(image));
    for (at, image) in unnamed {
        let mut configs = Vec::new();
        layout::configs(&image.root, &mut configs);
        for config in configs {
            by_config.entry(config.digest().to_owned()).or_insert(at);
        }
    }
    let names = images.iter().flat_map(|image| &image.names);
    let mut known: HashSet<String> = names.map(|name| familiar(name.as_str()).to_owned()).collect();
    let mut has_added = false;
    for element in elements {
        let Ok(given) = documents::parse::<DockerImage>(element.get().as_bytes()) else {
            continue;
        };
        let Some(at) = config_hex(&given).and_then(|hex| by_config.get(hex)) else {
            continue;
        };
        for tag in given.repo_tags {
            if known.insert(familiar(&tag).to_owned()) {
                reader.charge(1, tag.len() as u64)?;
                reader.hold(TEXT)?;
                images[*at].names.push(RawName::RepoTag(tag));
                has_added = true;
            }
        }
    }
    Ok(has_added)
}

/// Returns true if `index.json` gives no whole name. A tag alone names no repository.
fn is_unnamed(image: &Image) -> bool {
    let is_tag = |name: &RawName| match name {
        RawName::RefName(name) => !name.contains(['/', ':', '@']),
        RawName::ContainerdName(_) | RawName::RepoTag(_) => false,
    };
    image.names.iter().all(is_tag)
}

/// Returns a name as Docker shows it, without Docker Hub's host and folder. The result only tells
/// whether two documents mean the same name.
fn familiar(name: &str) -> &str {
    let on_hub = ["docker.io/", "index.docker.io/"];
    let Some(path) = on_hub.iter().find_map(|host| name.strip_prefix(host)) else {
        return name.strip_prefix("library/").unwrap_or(name);
    };
    path.strip_prefix("library/").unwrap_or(path)
}

/// Returns the digest of the config that an element names, without its algorithm. Beside an OCI
/// layout, the names of configs are their digests.
fn config_hex(element: &DockerImage) -> Option<&str> {
    let file = element.config.rsplit('/').next().unwrap_or_default();
    let file = file.strip_suffix(".json").unwrap_or(file);
    let hex = file.strip_prefix("sha256:").unwrap_or(file);
    (hex.len() == 64).then_some(hex)
}

/// Returns the manifest of an image that cannot run.
fn broken_manifest(image: &Image) -> Option<&Manifest> {
    match &image.root.content {
        Content::Manifest(manifest) if !manifest.problems.is_empty() => Some(manifest),
        _ => None,
    }
}

/// Replaces the root of a broken image by a sound root with the same config, if there is one.
fn replace(image: &mut Image, others: &[Image]) -> Option<Warning> {
    let broken = broken_manifest(image)?;
    let is_sound = |other: &&Image| match &other.root.content {
        Content::Manifest(manifest) => {
            manifest.config.descriptor.digest() == broken.config.descriptor.digest()
                && manifest.problems.is_empty()
                && manifest.parts().all(|part| part.state == PartState::Present)
        }
        _ => false,
    };
    let other = others.iter().find(is_sound)?;
    let name = image
        .names
        .first()
        .map_or_else(|| image.root.descriptor.digest().to_string(), ToString::to_string);
    let warning = Warning::OciSideBroken {
        image: name,
        reason: broken.problems.join("; "),
    };
    let annotations = image.root.descriptor.annotations().clone();
    let platform = image.root.platform.take();
    image.root = other.root.clone();
    image.root.descriptor.set_annotations(annotations);
    image.root.platform = platform.or(image.root.platform.take());
    Some(warning)
}

/// Warns about images that only `manifest.json` lists.
fn images_left_out(images: &[Image], elements: &[&RawValue]) -> Option<Warning> {
    let mut configs = Vec::new();
    images
        .iter()
        .for_each(|image| layout::configs(&image.root, &mut configs));
    let known: HashSet<_> = configs.into_iter().map(Digest::digest).collect();
    let is_left_out = |element: &&&RawValue| {
        let element = documents::parse::<DockerImage>(element.get().as_bytes());
        element.is_ok_and(|element| config_hex(&element).is_some_and(|hex| !known.contains(hex)))
    };
    let count = elements.iter().filter(is_left_out).count();
    (count > 0).then_some(Warning::NotInIndex { count })
}
