//! The content of a bundle as plain values.
//!
//! The catalog says what a bundle has and lacks. It does not know which images a node needs. Names,
//! media types and annotations come from the archive unchanged, so code that prints them must
//! escape them. [`RawName`] and the reasons of faults escape their text when they are printed.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use oci_spec::image::{Descriptor, Digest};
use platforms::{Behind, Platform};

use crate::{Compression, Ending, Receipt, Release, Reliance, Warning};

/// The result of [`Bundle::open`](crate::Bundle::open).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalog {
    /// The layout of the archive.
    pub format: Format,
    /// The compression of the archive as a whole.
    pub compression: Compression,
    /// Identity of the content: two bundles with the same digest offer the same images.
    ///
    /// The digest is the sha256 of `index.json` if all images come from it. `manifest.json` does
    /// not pin the bytes of its layers. So if an image comes from `manifest.json`, the digest
    /// covers that document's bytes and the digest of every image's root. In a hybrid, the digest
    /// covers `manifest.json` only if that file has an effect: a name, an image or a warning comes
    /// from it.
    ///
    /// So the digest pins every name, and by their digests every document and layer behind the
    /// names. `relies_on` and
    /// `release` are pinned too, by annotations of `index.json`. The digest does not pin
    /// which blobs are present, the ending, the compression, or warnings about the archive. These
    /// decide if an image is whole, and never what it is. Damage can therefore prevent an import,
    /// and cannot change its result.
    pub digest: Digest,
    /// One image per entry of `index.json` or element of `manifest.json`, in the document's order.
    pub images: Vec<Image>,
    /// Blobs that a delta bundle lacks because its destination has them. `None` if the bundle is
    /// not a delta.
    pub relies_on: Option<Reliance>,
    /// The release that the bundle belongs to. `None` if it belongs to none.
    pub release: Option<Release>,
    /// Remarks for the operator that do not stop an import.
    pub warnings: Vec<Warning>,
    /// The way in which the archive ends.
    pub ending: Ending,
}

impl Catalog {
    /// Returns true if the bundle lacks a blob that its list of images needs, of any platform. The
    /// blobs that a delta relies on do not count. An image that is broken otherwise than by wrong
    /// bytes counts: it may come from a Docker archive, and lack a layer.
    pub fn lacks_blobs(&self) -> bool {
        let relied_on = self.relies_on.iter().flat_map(|reliance| &reliance.blobs);
        let relied_on: HashSet<&Digest> = relied_on.map(|blob| &blob.digest).collect();
        self.images
            .iter()
            .any(|image| lacks_blobs(&image.root, &relied_on))
    }

    /// Returns the bundle that this file stands for, if it is a receipt.
    pub fn receipt(&self) -> Option<&Receipt> {
        self.relies_on.as_ref()?.receipt.as_ref()
    }

    /// Returns the digest that rules and admissions know the content by: that of the bundle that a
    /// receipt stands for, and otherwise [`Catalog::digest`].
    pub fn stood_for(&self) -> &Digest {
        self.receipt().map_or(&self.digest, |receipt| &receipt.catalog)
    }

    /// Returns the catalog as if all blobs that a delta relies on were present.
    #[must_use]
    pub fn with_its_base(&self) -> Cow<'_, Catalog> {
        let relied_on = self.relies_on.iter().flat_map(|reliance| &reliance.blobs);
        self.completed_by(&relied_on.map(|blob| blob.digest.clone()).collect())
    }

    /// Returns the catalog as if these blobs were present, if a delta relies on them. The result
    /// helps to choose images, but the bundle still lacks the blobs. Shared documents stay shared,
    /// and unchanged documents are shared with this catalog.
    #[must_use]
    pub fn completed_by(&self, elsewhere: &HashSet<Digest>) -> Cow<'_, Catalog> {
        let relied_on = self.relies_on.iter().flat_map(|reliance| &reliance.blobs);
        let there: HashSet<&Digest> = relied_on
            .map(|blob| &blob.digest)
            .filter(|digest| elsewhere.contains(digest))
            .collect();
        if there.is_empty() {
            return Cow::Borrowed(self);
        }
        let mut completion = Completion {
            there,
            indexes: HashMap::new(),
            manifests: HashMap::new(),
        };
        let mut completed = self.clone();
        for image in &mut completed.images {
            image.root.content = completion.content(&image.root.content);
        }
        Cow::Owned(completed)
    }
}

/// A copy of a catalog for a destination that has blobs which the bundle lacks.
struct Completion<'a> {
    there: HashSet<&'a Digest>,
    /// Results for indexes and manifests, by their address, because thousands of images may share
    /// one.
    indexes: HashMap<*const Node, Arc<[Node]>>,
    manifests: HashMap<*const Manifest, Arc<Manifest>>,
}

impl Completion<'_> {
    fn content(&mut self, content: &Content) -> Content {
        match content {
            Content::Index(children) => {
                if let Some(completed) = self.indexes.get(&children.as_ptr()) {
                    return Content::Index(Arc::clone(completed));
                }
                let contents: Vec<Content> = children
                    .iter()
                    .map(|child| self.content(&child.content))
                    .collect();
                let completed = with_contents(children, contents);
                self.indexes.insert(children.as_ptr(), Arc::clone(&completed));
                Content::Index(completed)
            }
            Content::Manifest(manifest) => {
                let there = &self.there;
                let completed = self
                    .manifests
                    .entry(Arc::as_ptr(manifest))
                    .or_insert_with(|| complete(manifest, there));
                Content::Manifest(Arc::clone(completed))
            }
            Content::Other | Content::Absent | Content::Broken(_) => content.clone(),
        }
    }
}

/// Returns an index with these contents. Returns the same index if the contents are the same.
fn with_contents(children: &Arc<[Node]>, contents: Vec<Content>) -> Arc<[Node]> {
    let is_same = |(child, content): (&Node, &Content)| match (&child.content, content) {
        (Content::Index(old), Content::Index(new)) => Arc::ptr_eq(old, new),
        (Content::Manifest(old), Content::Manifest(new)) => Arc::ptr_eq(old, new),
        _ => true,
    };
    if children.iter().zip(&contents).all(is_same) {
        return Arc::clone(children);
    }
    let nodes = children.iter().zip(contents).map(|(child, content)| Node {
        content,
        ..child.clone()
    });
    nodes.collect()
}

/// Returns a manifest whose absent parts in `there` count as present. Returns the same manifest if
/// none changes.
fn complete(manifest: &Arc<Manifest>, there: &HashSet<&Digest>) -> Arc<Manifest> {
    let lacks = |part: &Part| part.state == PartState::Absent && there.contains(part.descriptor.digest());
    if !manifest.parts().any(lacks) {
        return Arc::clone(manifest);
    }
    let mut completed = Manifest::clone(manifest);
    for part in std::iter::once(&mut completed.config).chain(&mut completed.layers) {
        if lacks(part) {
            part.state = PartState::Present;
        }
    }
    Arc::new(completed)
}

/// The layout of a bundle, recognised by content and never by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// An OCI image layout: `oci-layout`, `index.json`, `blobs/`.
    OciLayout,
    /// The format of `docker save` up to version 24, and of many tools today: `manifest.json`.
    DockerArchive,
    /// Both in one archive: Docker 25 and later, `ctr images export`. The OCI side counts if it is
    /// sound.
    Hybrid,
}

impl Format {
    /// Returns the name in reports: `oci-layout`, `docker-archive`, `oci-layout+docker-archive`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OciLayout => "oci-layout",
            Self::DockerArchive => "docker-archive",
            Self::Hybrid => "oci-layout+docker-archive",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One entry of the bundle's list of images: names for a root node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Names as the archive gives them, neither normalised nor checked. An OCI layout gives at most
    /// one name. A Docker archive or the `manifest.json` of a hybrid gives any number.
    pub names: Vec<RawName>,
    /// The content behind the names.
    pub root: Node,
}

/// A name as the archive gives it. It is escaped when it is printed, so that no control byte
/// reaches a terminal or a log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RawName {
    /// Annotation `io.containerd.image.name`, which takes precedence over `RefName`.
    ContainerdName(String),
    /// Annotation `org.opencontainers.image.ref.name`: a full reference, a plain tag, or any other
    /// text.
    RefName(String),
    /// An element of `RepoTags` in a Docker archive.
    RepoTag(String),
}

impl RawName {
    /// Returns the name itself, unescaped.
    pub fn as_str(&self) -> &str {
        match self {
            Self::ContainerdName(name) | Self::RefName(name) | Self::RepoTag(name) => name,
        }
    }
}

impl fmt::Display for RawName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", basics::foreign::text(self.as_str()))
    }
}

/// A descriptor and the content behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The descriptor with its annotations. It lacks two members:
    ///
    /// - The platform, because the type of this field would lose `os.version`: see `platform`.
    /// - The embedded `data`, because its bytes are a blob like any other.
    ///
    /// If the archive gives no usable descriptor, this is a stand-in, made from the bytes of the
    /// archive's entry. Examples are an invalid digest, or a Docker image that lacks a layer. Then
    /// `content` is [`Content::Broken`] and has the reason.
    pub descriptor: Descriptor,
    /// The descriptor's own platform, as given. `None` if the descriptor has none, which is not the
    /// same as an empty platform. Images of a Docker archive have the platform of their config, as
    /// in containerd 2.x.
    pub platform: Option<Platform>,
    /// The content behind the descriptor.
    pub content: Content,
}

impl platforms::Entry for Node {
    fn platform(&self) -> Option<&Platform> {
        self.platform.as_ref()
    }

    fn behind(&self) -> Behind<'_, Self> {
        match &self.content {
            Content::Index(children) => Behind::Index(children),
            Content::Manifest(manifest) => Behind::Manifest {
                config: manifest.platform_by_config(),
            },
            Content::Other | Content::Absent | Content::Broken(_) => Behind::Nothing,
        }
    }
}

/// The platform of a config that names none.
const NO_PLATFORM: &Platform = &Platform {
    os: String::new(),
    architecture: String::new(),
    variant: None,
    os_version: None,
    os_features: Vec::new(),
};

/// The content behind a descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// An image index. The document is present and verified. Nodes of the same index share it.
    Index(Arc<[Node]>),
    /// An image manifest. The document is present and verified. Nodes of the same manifest share
    /// it.
    Manifest(Arc<Manifest>),
    /// Present, but the walk does not enter blobs of this type.
    Other,
    /// Not in the archive.
    Absent,
    /// Unusable for this reason.
    Broken(Flaw),
}

fn lacks_blobs(node: &Node, relied_on: &HashSet<&Digest>) -> bool {
    let is_lacking = |descriptor: &Descriptor| !relied_on.contains(descriptor.digest());
    match &node.content {
        Content::Absent => is_lacking(&node.descriptor),
        Content::Index(children) => children.iter().any(|child| lacks_blobs(child, relied_on)),
        Content::Manifest(manifest) => manifest
            .parts()
            .any(|part| part.state == PartState::Absent && is_lacking(&part.descriptor)),
        Content::Broken(flaw) => !flaw.is_damage(),
        Content::Other => false,
    }
}

/// The reason why a blob or document is unusable, in one line that names the blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    text: String,
    is_damage: bool,
}

impl Flaw {
    /// Makes the flaw of a blob whose bytes have another digest than expected.
    pub(crate) fn damage(digest: &Digest, found: &Digest) -> Flaw {
        Flaw {
            text: basics::digest::mismatch(digest, found),
            is_damage: true,
        }
    }

    /// Returns true if the bytes have the wrong digest. Then a copy of the bundle was damaged, and
    /// another copy may be good.
    pub fn is_damage(&self) -> bool {
        self.is_damage
    }
}

impl From<String> for Flaw {
    fn from(text: String) -> Flaw {
        Flaw {
            text,
            is_damage: false,
        }
    }
}

impl std::ops::Deref for Flaw {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// An image manifest and the state of its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The image config.
    pub config: Part,
    /// The layers in order, lowest first. A layer may occur twice.
    pub layers: Vec<Part>,
    /// The platform that the config names: os, architecture, variant, version and features as
    /// given. `None` if the config is missing, is not an image config, or names neither os nor
    /// architecture.
    pub config_platform: Option<Platform>,
    /// Digests of the uncompressed layers in the config, one for each layer that is a file system.
    /// Empty if the config is missing or is not an image config. Manifests with the same config
    /// share the list.
    pub diff_ids: Arc<[Digest]>,
    /// The kind of content that the manifest describes.
    pub kind: Kind,
    /// True if the manifest is an artifact by its `artifactType`, with a config that lists the
    /// layers like an image's. Such an artifact has a file system that can be mounted.
    pub is_volume: bool,
    /// Digest of the manifest that this manifest refers to, if any.
    pub subject: Option<Digest>,
    /// Reasons why this image cannot run, even if all its parts are present.
    pub problems: Vec<String>,
}

impl Manifest {
    /// Returns the config and the layers.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&self.config).chain(&self.layers)
    }

    /// Returns the platform that containerd reads from the config. Returns `None` if the config was
    /// not read.
    fn platform_by_config(&self) -> Option<&Platform> {
        let was_read =
            self.kind == Kind::Image && self.config.state == PartState::Present && self.problems.is_empty();
        self.config_platform.as_ref().or(was_read.then_some(NO_PLATFORM))
    }
}

/// The kind of content that a manifest describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A container image.
    Image,
    /// Other content in the shape of an image: a chart, a signature, an attestation.
    ///
    /// containerd would record an artifact without complaint. CRI would merge all artifacts with an
    /// empty config into a single image.
    Artifact {
        /// The artifact type. Without one, the media type of the config or of the first layer.
        artifact_type: String,
    },
}

/// A blob that a manifest refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The descriptor with its annotations.
    pub descriptor: Descriptor,
    /// Presence of the blob in the archive.
    pub state: PartState,
}

/// Presence of a blob in the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartState {
    /// In the archive, with the right size. Configs of images are also verified by digest. Layers
    /// are not read, and code that copies them must verify them. There is an exception: a
    /// compressed archive without a seek table is read as a whole. Then a layer with the wrong
    /// sha256 is broken.
    Present,
    /// Not in the archive.
    Absent,
    /// Unusable for this reason.
    Broken(Flaw),
}
