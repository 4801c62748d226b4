//! What is said about blobs that are not in a bundle: what a delta relies on, and what a node has.

use std::collections::{BTreeMap, HashSet};

use basics::{digest, foreign};
use oci_spec::image::{Descriptor, Digest};
use serde::{Deserialize, Serialize};

use super::account::TEXT;

/// Annotation of `index.json`: the digest of the blob that lists what the bundle relies on.
const DOCUMENT: &str = "io.airgapd.delta.relies-on";
/// Annotation of `index.json`: what the base is called, for people.
const BASE: &str = "io.airgapd.delta.base";

/// The version of both documents. Readers take this one only.
const VERSION: u32 = 1;

/// A blob by digest and size.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlobRef {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

impl BlobRef {
    /// The blob that a descriptor is about.
    pub fn of(descriptor: &Descriptor) -> Self {
        Self {
            digest: descriptor.digest().clone(),
            size: descriptor.size(),
        }
    }
}

/// What a delta bundle relies on: blobs that its images need, that are not in it, and that its
/// destination had when it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reliance {
    /// What the base is called: the file name of a bundle, or the name of a node.
    pub base: String,
    /// The blobs, in the order of their digests.
    pub blobs: Vec<BlobRef>,
}

/// The cost of a blob that is relied on, in bytes of memory: in the list, and in the sets that are
/// made of it.
const RELIED_ON: u64 = 2 * (size_of::<BlobRef>() + size_of::<Digest>()) as u64 + 4 * TEXT;

impl Reliance {
    /// Bytes of memory that it takes.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.base.len() as u64 + self.blobs.len() as u64 * RELIED_ON
    }

    /// Lists blobs that are relied on, each once.
    pub fn new(base: impl Into<String>, blobs: impl IntoIterator<Item = BlobRef>) -> Self {
        let mut blobs: Vec<BlobRef> = blobs.into_iter().collect();
        blobs.sort_by(|a, b| a.digest.as_ref().cmp(b.digest.as_ref()));
        blobs.dedup_by(|a, b| a.digest == b.digest);
        Self {
            base: base.into(),
            blobs,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct RelianceDocument {
    version: u32,
    base: String,
    blobs: Vec<BlobRef>,
}

/// The document that stands in the bundle as a blob.
pub(crate) fn document(reliance: &Reliance) -> Vec<u8> {
    let document = RelianceDocument {
        version: VERSION,
        base: reliance.base.clone(),
        blobs: reliance.blobs.clone(),
    };
    serde_json::to_vec(&document).expect("a document of texts and numbers is serialised")
}

/// The annotations of `index.json` that lead to the document.
pub(crate) fn annotations(reliance: &Reliance, document: &[u8]) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        (BASE, reliance.base.clone()),
        (DOCUMENT, digest::sha256(document).to_string()),
    ])
}

/// Where the annotations of an `index.json` lead.
pub(crate) fn pointer(annotations: &BTreeMap<String, String>) -> Option<Result<Digest, String>> {
    let digest = annotations.get(DOCUMENT)?;
    Some(digest::parse(digest))
}

/// Reads the document.
pub(crate) fn parse(bytes: &[u8]) -> Result<Reliance, String> {
    let document: RelianceDocument = serde_json::from_slice(bytes).map_err(foreign::reason)?;
    if document.version != VERSION {
        return Err(format!(
            "version {} is not known, only {VERSION}",
            document.version
        ));
    }
    check(&document.blobs)?;
    Ok(Reliance::new(document.base, document.blobs))
}

/// The type knows more algorithms than we take.
fn check(blobs: &[BlobRef]) -> Result<(), String> {
    blobs
        .iter()
        .try_for_each(|blob| digest::parse(blob.digest.as_ref()).map(drop))
}

/// What a node has: the answer of `airgapd inventory`, which `--have` reads. `docs/json.md`
/// describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Version of the document: 1.
    pub version: u32,
    /// What the node is called, for people.
    pub node: String,
    /// The blobs in its content store, in the order of their digests.
    pub blobs: Vec<BlobRef>,
    /// The image records of its namespace, by name.
    #[serde(default)]
    pub images: Vec<InventoryImage>,
}

/// An image record in an [`Inventory`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryImage {
    /// Its name.
    pub name: String,
    /// The digest of its target.
    pub digest: Digest,
}

impl Inventory {
    /// Lists what a node has, in order.
    pub fn new(
        node: impl Into<String>,
        blobs: impl IntoIterator<Item = BlobRef>,
        mut images: Vec<InventoryImage>,
    ) -> Self {
        let node = node.into();
        let Reliance { blobs, .. } = Reliance::new("", blobs);
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Self {
            version: VERSION,
            node,
            blobs,
            images,
        }
    }

    /// Reads an inventory.
    ///
    /// # Errors
    ///
    /// What is wrong with it, in one line.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } =
            serde_json::from_slice(bytes).map_err(|error| format!("this is no inventory: {error}"))?;
        if version != VERSION {
            return Err(format!(
                "version {version} of inventories is not known, only {VERSION}"
            ));
        }
        let inventory: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        check(&inventory.blobs)?;
        Ok(inventory)
    }

    /// The digests of its blobs.
    pub fn digests(&self) -> HashSet<&Digest> {
        self.blobs.iter().map(|blob| &blob.digest).collect()
    }
}
