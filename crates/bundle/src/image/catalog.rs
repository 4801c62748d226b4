//! What a bundle holds, as plain values.
//!
//! The catalog says what is there and what is not; whether a node wants it is somebody else's
//! question. Names, media types and annotations are the archive's own words: whoever prints them
//! escapes them ([`RawName`] and the reasons in here do so themselves).

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use oci_spec::image::{Descriptor, Digest};
use platforms::{Behind, Platform};

use crate::{Compression, Ending, Reliance, Warning};

/// Everything [`Bundle::open`](crate::Bundle::open) found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalog {
    /// How the archive is laid out.
    pub format: Format,
    /// How the archive as a whole is compressed.
    pub compression: Compression,
    /// Identity of the content: two bundles with the same digest offer the same images.
    ///
    /// It is the sha256 of `index.json` where everything comes from there. `manifest.json` does not
    /// pin the bytes of its layers, so once an image comes from it, the digest covers the
    /// document's bytes followed by the digest of every image's root. Of a hybrid it covers
    /// `manifest.json` as soon as that has any effect: a name or an image that comes from there, or
    /// a warning.
    pub digest: Digest,
    /// One per entry of `index.json` or element of `manifest.json`, in the document's order.
    pub images: Vec<Image>,
    /// The blobs that a delta bundle counts on its destination to have; they are absent here. None
    /// if the bundle is no delta.
    pub relies_on: Option<Reliance>,
    /// What an operator should hear about although it stops nothing.
    pub warnings: Vec<Warning>,
    /// How the archive ends.
    pub ending: Ending,
}

impl Catalog {
    /// The catalog as it is where everything is that a delta relies on.
    #[must_use]
    pub fn with_its_base(&self) -> Cow<'_, Catalog> {
        let relied_on = self.relies_on.iter().flat_map(|reliance| &reliance.blobs);
        self.completed_by(&relied_on.map(|blob| blob.digest.clone()).collect())
    }

    /// The catalog as it is where these blobs are: of those that a delta relies on, they count as
    /// present. For choosing what to take; the bundle still does not have them. Shared documents
    /// stay shared, and unchanged ones are shared with this catalog.
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

/// A catalog in the making, for a place that has blobs which the bundle lacks.
struct Completion<'a> {
    there: HashSet<&'a Digest>,
    /// The results for indexes and manifests, by where they are: thousands of images may share one.
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

/// An index with other contents, or the same one where they are no others.
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

/// A manifest whose absent parts are present where they are among these, or the same one.
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
    /// What `docker save` wrote up to version 24, and many tools still do: `manifest.json`.
    DockerArchive,
    /// Both in one: Docker 25 and later, `ctr images export`. The OCI side counts where it is
    /// sound.
    Hybrid,
}

impl Format {
    /// The name used in reports: `oci-layout`, `docker-archive`, `oci-layout+docker-archive`.
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

/// One entry of the bundle's list of images: names for a piece of content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its names as the archive gives them: at most one from an OCI layout, any number from a
    /// Docker archive or the `manifest.json` of a hybrid. Neither normalised nor checked.
    pub names: Vec<RawName>,
    /// What the names stand for.
    pub root: Node,
}

/// A name as the archive gives it. Prints escaped, so that no control byte reaches a terminal or a
/// log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RawName {
    /// Annotation `io.containerd.image.name`; takes precedence over the next.
    ContainerdName(String),
    /// Annotation `org.opencontainers.image.ref.name`: a full reference, a plain tag, or anything.
    RefName(String),
    /// An element of `RepoTags` in a Docker archive.
    RepoTag(String),
}

impl RawName {
    /// The name itself, unescaped.
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

/// A descriptor and what was found behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The descriptor with its annotations. Its platform is left out, since the type at hand would
    /// lose `os.version`: see `platform`. Embedded `data` is left out too, its bytes are a blob
    /// like any other.
    ///
    /// Where the archive gives no usable descriptor (an invalid digest, a Docker image with a layer
    /// missing) a stand-in is made up from the bytes of the archive's own entry; `content` is then
    /// [`Content::Broken`] and says so.
    pub descriptor: Descriptor,
    /// The descriptor's own platform, as given. `None` means that it has none, which is not the
    /// same as an empty one. A Docker archive's images have the platform of their config, as
    /// containerd 2.x does it.
    pub platform: Option<Platform>,
    /// What is behind it.
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

/// What a config stands for that names no platform.
const NO_PLATFORM: &Platform = &Platform {
    os: String::new(),
    architecture: String::new(),
    variant: None,
    os_version: None,
    os_features: Vec::new(),
};

/// What is behind a descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// An image index; the document is there and verified. Shared wherever the same index is met.
    Index(Arc<[Node]>),
    /// An image manifest; the document is there and verified. Shared likewise.
    Manifest(Arc<Manifest>),
    /// Present, of a type that is not walked.
    Other,
    /// Not in the archive.
    Absent,
    /// Unusable; why.
    Broken(Flaw),
}

/// Why a blob or document cannot be used, in one line that names the blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    text: String,
    is_damage: bool,
}

impl Flaw {
    /// The bytes of a blob have another digest than they should.
    pub(crate) fn damage(digest: &Digest, found: &Digest) -> Flaw {
        Flaw {
            text: basics::digest::mismatch(digest, found),
            is_damage: true,
        }
    }

    /// Whether the bytes have another digest than they should: a copy of the bundle went wrong, and
    /// another may be right.
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
    /// The layers in order, lowest first. The same layer may occur twice.
    pub layers: Vec<Part>,
    /// The platform that the config names: os, architecture, variant, version and features as
    /// given. `None` if the config is not there, is no image config or names neither os nor
    /// architecture.
    pub config_platform: Option<Platform>,
    /// The digests of the uncompressed layers, as the config lists them: one for each layer that is
    /// a file system. Empty if the config is not there or is no image config. Manifests with the
    /// same config share them.
    pub diff_ids: Arc<[Digest]>,
    /// Whether this can be a container image at all.
    pub kind: Kind,
    /// Whether it is an artifact, and says so by its `artifactType`, whose config lists its layers
    /// as an image's does: such a one has a file system that can be mounted.
    pub is_volume: bool,
    /// The manifest that this one refers to, if any.
    pub subject: Option<Digest>,
    /// Why this image cannot run although its parts may be there.
    pub problems: Vec<String>,
}

impl Manifest {
    /// The config and the layers.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&self.config).chain(&self.layers)
    }

    /// What containerd finds where it looks for the platform in the config; none where the config
    /// was not read.
    fn platform_by_config(&self) -> Option<&Platform> {
        let was_read =
            self.kind == Kind::Image && self.config.state == PartState::Present && self.problems.is_empty();
        self.config_platform.as_ref().or(was_read.then_some(NO_PLATFORM))
    }
}

/// What a manifest describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A container image.
    Image,
    /// Something else in the shape of an image: a chart, a signature, an attestation.
    ///
    /// containerd would happily record one, and CRI would merge all artifacts with an empty config
    /// into a single image.
    Artifact {
        /// The artifact type, or what comes closest: the config's media type, or the first layer's.
        artifact_type: String,
    },
}

/// A blob that a manifest refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The descriptor with its annotations.
    pub descriptor: Descriptor,
    /// What is there.
    pub state: PartState,
}

/// What is there of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartState {
    /// In the archive, with the right size. Configs of images are also verified by digest; layers
    /// are not read, whoever moves them verifies them. Only in a compressed archive that is read as
    /// a whole, for want of a table of its frames, a layer without its sha256 is broken.
    Present,
    /// Not in the archive.
    Absent,
    /// Unusable; why.
    Broken(Flaw),
}
