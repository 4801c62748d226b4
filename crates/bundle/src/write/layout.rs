//! The entries of a bundle's archive in order, before the first byte is written.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use basics::digest;
use oci_spec::image::{Descriptor, Digest};
use platforms::Platform;
use serde::Serialize;

use super::{Draft, DraftImage, WholeImage, WriteError, entry};
use crate::image::{blob_name, reliance};
use crate::{BlobRef, Members};

/// Annotation with the name of an image, for containerd and the programs that are built on it.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// Annotation with the name of an image, for other tools (OCI image-spec, "Pre-Defined Annotation
/// Keys").
const REF_NAME: &str = "org.opencontainers.image.ref.name";

const LAYOUT_FILE: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// The archive of a [`Draft`]: its entries and their order.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Names and bytes of the documents that this module makes.
    own: Vec<(String, Vec<u8>)>,
    blobs: Vec<BlobRef>,
    digest: Digest,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct IndexDocument<'a> {
    schema_version: u8,
    media_type: &'static str,
    manifests: Vec<Entry<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    media_type: &'a str,
    digest: &'a Digest,
    size: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<&'a Platform>,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<&'a str>,
}

/// An element of `manifest.json`: one image, for readers of Docker archives.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Element<'a> {
    config: String,
    repo_tags: BTreeSet<&'a str>,
    layers: Vec<String>,
}

impl Layout {
    /// Lays out a draft: documents before layers, both in the order of the images' names, each blob
    /// once.
    ///
    /// # Errors
    ///
    /// Returns [`WriteError::Draft`] for a draft without images, a blob with two sizes, or an image
    /// without its own target or outside the draft's release. Also if the images, or the names of an image, exceed what readers
    /// accept.
    pub fn of(draft: &Draft) -> Result<Self, WriteError> {
        match draft.images.is_empty() {
            true => Err(WriteError::Draft("there are no images to write".to_owned())),
            false => Self::of_any(draft),
        }
    }

    /// Returns the layout of an archive without images, as k0s makes it of an empty list.
    ///
    /// # Panics
    ///
    /// Never, since nothing in it can contradict itself.
    #[must_use]
    pub fn empty() -> Self {
        Self::of_any(&Draft::default()).expect("nothing contradicts itself")
    }

    fn of_any(draft: &Draft) -> Result<Self, WriteError> {
        let mut images: Vec<&DraftImage> = draft.images.iter().collect();
        images.sort_by_key(|image| (image.names.iter().min(), image.target.digest().to_string()));
        check(&images)?;
        let relied_on: HashSet<&Digest> = draft
            .relies_on
            .iter()
            .flat_map(|reliance| reliance.blobs.iter().map(|blob| &blob.digest))
            .collect();
        let mut order = Order {
            relied_on: HashSet::new(),
            sizes: HashMap::new(),
            blobs: Vec::new(),
        };
        let documents = images.iter().flat_map(|image| &image.documents);
        for blob in documents {
            order.add(blob)?;
        }
        let docker = docker_manifest(&images, &relied_on);
        order.relied_on = relied_on;
        for blob in images.iter().flat_map(|image| &image.layers) {
            order.add(blob)?;
        }
        let mut annotations = BTreeMap::new();
        let mut lists: Vec<Vec<u8>> = Vec::new();
        if let Some(reliance) = &draft.relies_on {
            let document = reliance::document(reliance);
            annotations.extend(reliance::annotations(reliance, &document));
            lists.push(document);
        }
        if let Some(members) = &draft.release {
            check_members(members, &images)?;
            annotations.extend(members.annotations());
            lists.push(members.document());
        }
        let index = index(&images, annotations);
        let digest = digest::sha256(&index);
        let mut own = vec![
            ("oci-layout".to_owned(), LAYOUT_FILE.to_vec()),
            ("index.json".to_owned(), index),
        ];
        own.extend(docker.map(|document| ("manifest.json".to_owned(), document)));
        let name = |document: Vec<u8>| (blob_name(&digest::sha256(&document)), document);
        own.extend(lists.into_iter().map(name));
        Ok(Self {
            own,
            blobs: order.blobs,
            digest,
        })
    }

    /// Returns the blobs in the order of writing: documents, then layers.
    pub fn blobs(&self) -> &[BlobRef] {
        &self.blobs
    }

    /// Returns the digest of `index.json`, which will be the digest of the bundle's catalog.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Returns the size of the archive in bytes before compression.
    pub fn archive_size(&self) -> u64 {
        let own = self
            .own
            .iter()
            .map(|(name, bytes)| entry::length(name, bytes.len() as u64));
        let blobs = self
            .blobs
            .iter()
            .map(|blob| entry::length(&blob_name(&blob.digest), blob.size));
        own.chain(blobs).sum::<u64>() + 2 * entry::BLOCK as u64
    }

    pub(super) fn own_documents(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.own
            .iter()
            .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
    }
}

fn check(images: &[&DraftImage]) -> Result<(), WriteError> {
    let crate::Limits {
        images: limit,
        names: most_names,
        ..
    } = crate::Limits::default();
    let mut names: HashMap<&Digest, usize> = HashMap::new();
    for image in images {
        let count = names.entry(image.target.digest()).or_default();
        *count += image.names.len();
        if *count > most_names {
            return Err(WriteError::Draft(format!(
                "{} has {count} names, more than the {most_names} that one image of a bundle may have. Make several bundles",
                image.target.digest()
            )));
        }
    }
    let entries: usize = images.iter().map(|image| image.names.len().max(1)).sum();
    if entries > limit {
        return Err(WriteError::Draft(format!(
            "{entries} names of images are more than the {limit} that a bundle may have. Make several bundles"
        )));
    }
    let lacks_target =
        |image: &&&DraftImage| !image.blobs().any(|blob| blob.digest == *image.target.digest());
    match images.iter().find(lacks_target) {
        None => Ok(()),
        Some(image) => Err(WriteError::Draft(format!(
            "{} is not among the blobs of its own image",
            image.target.digest()
        ))),
    }
}

/// Checks that a release has the images, since readers take other images for a contradiction.
fn check_members(members: &Members, images: &[&DraftImage]) -> Result<(), WriteError> {
    for image in images {
        if let Some(name) = image.stranger(members) {
            return Err(WriteError::Draft(format!(
                "{name} with {} is not a member of release {}",
                image.target.digest(),
                members.release()
            )));
        }
    }
    Ok(())
}

struct Order<'a> {
    relied_on: HashSet<&'a Digest>,
    sizes: HashMap<&'a Digest, u64>,
    blobs: Vec<BlobRef>,
}

impl<'a> Order<'a> {
    fn add(&mut self, blob: &'a BlobRef) -> Result<(), WriteError> {
        match self.sizes.insert(&blob.digest, blob.size) {
            Some(size) if size != blob.size => Err(WriteError::Draft(format!(
                "blob {} has two sizes in the draft: {size} and {} bytes",
                blob.digest, blob.size
            ))),
            Some(_) => Ok(()),
            None => {
                if !self.relied_on.contains(&blob.digest) {
                    self.blobs.push(blob.clone());
                }
                Ok(())
            }
        }
    }
}

fn index(images: &[&DraftImage], annotations: BTreeMap<&'static str, String>) -> Vec<u8> {
    let mut names: Vec<(Option<&str>, &DraftImage)> = Vec::new();
    for image in images {
        if image.names.is_empty() {
            names.push((None, image));
        }
        names.extend(image.names.iter().map(|name| (Some(name.as_str()), *image)));
    }
    names.sort_by_key(|(name, image)| (*name, image.target.digest().to_string()));
    names.dedup_by(|(one, a), (other, b)| {
        one == other && a.target.digest() == b.target.digest() && a.platform == b.platform
    });
    let document = IndexDocument {
        schema_version: 2,
        media_type: "application/vnd.oci.image.index.v1+json",
        manifests: names.iter().map(|(name, image)| entry_of(*name, image)).collect(),
        annotations,
    };
    serde_json::to_vec(&document).expect("a document of texts and numbers is serialised")
}

/// Returns `manifest.json`, in which `docker load`, `podman load` and readers of Docker archives
/// find all images without a name. Readers of both formats use the layout.
///
/// The document lists every container image of the bundle, because its readers must not miss an
/// image. The document is left out in two cases:
///
/// - An image or a name has several platforms, since the document cannot say which one a reader
///   gets.
/// - A delta leaves out layers.
///
/// Such readers do not count artifacts as images. The document does not change the catalog, because
/// `index.json` has each of its names too.
fn docker_manifest(images: &[&DraftImage], relied_on: &HashSet<&Digest>) -> Option<Vec<u8>> {
    let mut elements: Vec<Element<'_>> = Vec::new();
    let mut known: HashMap<&WholeImage, usize> = HashMap::new();
    let mut of_target: HashMap<&Digest, &WholeImage> = HashMap::new();
    let mut of_tag: HashMap<&str, usize> = HashMap::new();
    for image in images {
        let whole = match image.images.as_slice() {
            [] => continue,
            [whole] => whole,
            _ => return None,
        };
        let target = of_target.entry(image.target.digest()).or_insert(whole);
        if *target != whole {
            // Platforms of one index that come from different bundles.
            return None;
        }
        let WholeImage {
            config,
            layers,
            has_tars_only,
        } = whole;
        if !has_tars_only || layers.iter().any(|layer| relied_on.contains(layer)) {
            return None;
        }
        let at = *known.entry(whole).or_insert_with(|| {
            elements.push(Element {
                config: blob_name(config),
                repo_tags: BTreeSet::new(),
                layers: layers.iter().map(blob_name).collect(),
            });
            elements.len() - 1
        });
        for tag in image.names.iter().filter(|name| has_tag(name)) {
            if *of_tag.entry(tag).or_insert(at) != at {
                // One name for two platforms, as two manifests.
                return None;
            }
            elements[at].repo_tags.insert(tag);
        }
    }
    let document = serde_json::to_vec(&elements).expect("a document of texts is serialised");
    let fits = document.len() as u64 <= crate::Limits::default().json_document;
    (!elements.is_empty() && fits).then_some(document)
}

/// Returns true for a name with a tag. All names of a Docker archive have one.
fn has_tag(name: &str) -> bool {
    let last = name.rsplit('/').next().unwrap_or_default();
    !name.contains('@') && last.contains(':')
}

/// Returns an entry of `index.json`. Both annotations have the full name. Many images of a bundle
/// may have the same tag, so a tag alone would select any of them.
fn entry_of<'a>(name: Option<&'a str>, image: &'a DraftImage) -> Entry<'a> {
    let target: &Descriptor = &image.target;
    let kept = target.annotations().iter().flatten();
    let mut annotations: BTreeMap<&str, &str> = kept
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .filter(|(key, _)| *key != CONTAINERD_NAME && *key != REF_NAME)
        .collect();
    if let Some(name) = name {
        annotations.insert(CONTAINERD_NAME, name);
        annotations.insert(REF_NAME, name);
    }
    Entry {
        media_type: target.media_type().as_ref(),
        digest: target.digest(),
        size: target.size(),
        annotations,
        platform: image.platform.as_ref(),
        artifact_type: target.artifact_type().as_ref().map(AsRef::as_ref),
    }
}
