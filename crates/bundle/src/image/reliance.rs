//! Lists of blobs outside a bundle: the blobs that a delta relies on, and the blobs that a node
//! has.

use std::collections::{BTreeMap, HashSet};

use basics::{digest, foreign};
use oci_spec::image::{Descriptor, Digest};
use serde::{Deserialize, Serialize};

use super::account::TEXT;
use crate::Identity;

/// Annotation of `index.json`: the digest of the blob that lists the blobs a delta relies on.
const DOCUMENT: &str = "io.airgapd.delta.relies-on";
/// Annotation of `index.json`: the name of the base, for people.
const BASE: &str = "io.airgapd.delta.base";

/// The version of both documents. Readers accept only this version.
const VERSION: u32 = 1;

/// A blob by digest and size.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlobRef {
    /// Digest of the blob.
    pub digest: Digest,
    /// Size of the blob in bytes.
    pub size: u64,
}

impl BlobRef {
    /// Returns the digest and size of a descriptor's blob.
    pub fn of(descriptor: &Descriptor) -> Self {
        Self {
            digest: descriptor.digest().clone(),
            size: descriptor.size(),
        }
    }
}

/// The blobs that a delta bundle relies on. Its images need them, the bundle lacks them, and the
/// destination had them when the bundle was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reliance {
    /// Name of the base: the file name of a bundle, or the name of a node.
    pub base: String,
    /// The blobs, sorted by digest.
    pub blobs: Vec<BlobRef>,
    /// The bundle that this file stands for. `None` unless the file is a receipt.
    pub receipt: Option<Receipt>,
}

/// The bundle that a receipt stands for. A receipt is a delta without layers: it describes images
/// that are in containerd, so that they outlive the file of their bundle there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Content digest of the bundle.
    pub catalog: Digest,
    /// Name of the bundle, in the form that labels have.
    pub bundle: String,
    /// The bundle's file as it was read.
    pub identity: Identity,
    /// Time of the receipt, in seconds since 1970.
    pub made_at: i64,
    /// Time of the last roll back to its release, in seconds since 1970. Versions that do not know
    /// the key read the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back_at: Option<i64>,
    /// True if the bundle lay outside the images folders. Its name then is no name there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_hand: bool,
    /// The layers that the bundle itself lacked, if it was a delta. Each base occurs once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bases: Vec<DeltaBase>,
    /// The images of which the bundle had nothing for the node, if it belongs to a release. The
    /// receipt does not describe them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<SkippedMembers>,
}

/// Members of a release of which a bundle has nothing for a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedMembers {
    /// The platforms that the node took, as text. Other platforms may want other members.
    pub platforms: String,
    /// The names of the members.
    pub names: Vec<String>,
}

/// The layers that a delta lacked, and that one of its bases has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaBase {
    /// Name of the base: the file name of a bundle, or the name of a node.
    pub name: String,
    /// The layers.
    pub blobs: Vec<Digest>,
}

impl Receipt {
    /// Returns the name of the base that has a layer. `None` if the bundle had it itself.
    pub fn base_of(&self, layer: &Digest) -> Option<&str> {
        let base = self.bases.iter().find(|base| base.blobs.contains(layer));
        base.map(|base| base.name.as_str())
    }

    /// Returns true if the bundle came from a pipe or from standard input. Its name then is no name
    /// of a file, and only its content digest tells which bundle it was.
    pub fn is_nameless(&self) -> bool {
        (self.identity.device, self.identity.inode) == (0, 0)
    }

    /// Returns the bytes of memory that it takes.
    fn held_bytes(&self) -> u64 {
        let base = |base: &DeltaBase| {
            base.name.len() as u64 + TEXT + base.blobs.len() as u64 * (size_of::<Digest>() as u64 + TEXT)
        };
        let skipped = self.skipped.iter().flat_map(|skipped| &skipped.names);
        let skipped: u64 = skipped.map(|name| name.len() as u64 + TEXT).sum();
        self.bundle.len() as u64 + TEXT + skipped + self.bases.iter().map(base).sum::<u64>()
    }
}

/// Bytes of memory for a blob in the list, and in the sets that are made of the list.
const RELIED_ON: u64 = 2 * (size_of::<BlobRef>() + size_of::<Digest>()) as u64 + 4 * TEXT;

impl Reliance {
    /// Returns the bytes of memory that the list takes.
    pub(crate) fn held_bytes(&self) -> u64 {
        let receipt = self.receipt.as_ref().map_or(0, Receipt::held_bytes);
        self.base.len() as u64 + self.blobs.len() as u64 * RELIED_ON + receipt
    }

    /// Makes a list of these blobs, each once.
    pub fn new(base: impl Into<String>, blobs: impl IntoIterator<Item = BlobRef>) -> Self {
        let mut blobs: Vec<BlobRef> = blobs.into_iter().collect();
        blobs.sort_by(|a, b| a.digest.as_ref().cmp(b.digest.as_ref()));
        blobs.dedup_by(|a, b| a.digest == b.digest);
        Self {
            base: base.into(),
            blobs,
            receipt: None,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct RelianceDocument {
    version: u32,
    base: String,
    blobs: Vec<BlobRef>,
    /// Versions that do not know the key read the file as a delta.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    receipt: Option<Receipt>,
}

/// Returns the document, which is a blob of the bundle.
pub(crate) fn document(reliance: &Reliance) -> Vec<u8> {
    let document = RelianceDocument {
        version: VERSION,
        base: reliance.base.clone(),
        blobs: reliance.blobs.clone(),
        receipt: reliance.receipt.clone(),
    };
    serde_json::to_vec(&document).expect("a document of texts and numbers is serialised")
}

/// Returns the annotations of `index.json` that refer to the document.
pub(crate) fn annotations(reliance: &Reliance, document: &[u8]) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        (BASE, reliance.base.clone()),
        (DOCUMENT, digest::sha256(document).to_string()),
    ])
}

/// Returns the digest of the document from the annotations of an `index.json`.
pub(crate) fn pointer(annotations: &BTreeMap<String, String>) -> Option<Result<Digest, String>> {
    let digest = annotations.get(DOCUMENT)?;
    Some(digest::parse(digest))
}

/// Reads the document.
pub(crate) fn parse(bytes: &[u8]) -> Result<Reliance, String> {
    let document: RelianceDocument = serde_json::from_slice(bytes).map_err(foreign::reason)?;
    if document.version != VERSION {
        return Err(format!(
            "version {} is unknown, only {VERSION} is supported",
            document.version
        ));
    }
    check(&document.blobs)?;
    if let Some(receipt) = &document.receipt {
        digest::parse(receipt.catalog.as_ref())?;
        for blob in receipt.bases.iter().flat_map(|base| &base.blobs) {
            digest::parse(blob.as_ref())?;
        }
    }
    Ok(Reliance {
        receipt: document.receipt,
        ..Reliance::new(document.base, document.blobs)
    })
}

/// Checks the digests, because their type accepts more algorithms than the reader.
fn check(blobs: &[BlobRef]) -> Result<(), String> {
    blobs
        .iter()
        .try_for_each(|blob| digest::parse(blob.digest.as_ref()).map(drop))
}

/// The blobs and images of a node: the output of `airgapd inventory`, which `--have` reads.
/// `docs/json.md` describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Version of the document: 1.
    pub version: u32,
    /// Name of the node, for people.
    pub node: String,
    /// The blobs in its content store, sorted by digest.
    pub blobs: Vec<BlobRef>,
    /// The image records of its namespace, sorted by name.
    #[serde(default)]
    pub images: Vec<InventoryImage>,
}

/// An image record in an [`Inventory`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryImage {
    /// Name of the record.
    pub name: String,
    /// Digest of its target.
    pub digest: Digest,
}

impl Inventory {
    /// Makes an inventory with these blobs and images, sorted.
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
    /// Returns the reason why the inventory is unusable, in one line.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } =
            serde_json::from_slice(bytes).map_err(|error| format!("this is not an inventory: {error}"))?;
        if version != VERSION {
            return Err(format!(
                "inventory version {version} is unknown, only {VERSION} is supported"
            ));
        }
        let inventory: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        check(&inventory.blobs)?;
        Ok(inventory)
    }

    /// Returns the digests of its blobs.
    pub fn digests(&self) -> HashSet<&Digest> {
        self.blobs.iter().map(|blob| &blob.digest).collect()
    }
}
