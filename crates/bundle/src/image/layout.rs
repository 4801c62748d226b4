//! Images of an OCI image layout: `index.json` and the documents below it. Source: OCI image-spec
//! 1.1, "Image Layout", "Image Index", "Image Manifest".

use std::collections::HashMap;
use std::sync::Arc;

use basics::{counted, foreign};
use oci_spec::image::{Descriptor, Digest};
use serde_json::value::RawValue;

use super::account::{self, TEXT};
use super::documents::{self, Annotated, Config, Index, RawDescriptor};
use super::reader::{Blobs, stand_in};
use crate::limits::set;
use crate::{Content, Fault, Flaw, Image, Kind, Manifest, Node, Part, PartState, RawName};

/// Makes images from the entries of an `index.json`.
pub(crate) struct Layout<'r, B> {
    reader: &'r mut B,
    /// Results for indexes, by digest and depth. A shared subtree is read once and charged each
    /// time.
    walked: HashMap<(Digest, u32), Walked>,
    /// Results for manifests, by digest. A shared manifest is read once and charged each time.
    manifests: HashMap<Digest, Walked>,
    /// Results for configs, by digest, because many manifests may share one.
    configs: HashMap<Digest, ReadConfig>,
    /// The reason for an index of the current image that is nested too deeply.
    too_deep: Option<String>,
}

struct Walked {
    content: Content,
    too_deep: Option<String>,
    descriptors: usize,
    kept: u64,
}

/// The result of reading a config.
#[derive(Clone)]
enum ReadConfig {
    /// The config was understood. These are its values, and its `diff_ids` as digests.
    Good(Arc<Config>, Arc<[Digest]>),
    /// The blob is not an image config, for this reason.
    Invalid(String),
    /// The blob is unusable, for this reason.
    Broken(Flaw),
}

impl<'r, B: Blobs> Layout<'r, B> {
    pub(crate) fn new(reader: &'r mut B) -> Self {
        Self {
            reader,
            walked: HashMap::new(),
            manifests: HashMap::new(),
            configs: HashMap::new(),
            too_deep: None,
        }
    }

    /// Makes the image of one entry.
    pub(crate) fn image(&mut self, entry: &RawValue) -> Result<Image, Fault> {
        let mut root = self.outline(entry)?;
        self.resolve(&mut root)?;
        let names = names(entry);
        let texts: u64 = names.iter().map(|name| name.as_str().len() as u64 + TEXT).sum();
        self.reader.hold(texts)?;
        Ok(Image { names, root })
    }

    /// Finds all content behind a node that counts as absent so far.
    pub(crate) fn resolve(&mut self, root: &mut Node) -> Result<(), Fault> {
        self.fill(root, 0)?;
        // Images below the limit may be for this node, but the reader knows nothing about them.
        if let Some(reason) = self.too_deep.take() {
            root.content = Content::Broken(reason.into());
        }
        Ok(())
    }

    /// Makes a node of an entry without its content. The content counts as absent until
    /// [`Self::fill`] finds it.
    fn outline(&mut self, entry: &RawValue) -> Result<Node, Fault> {
        let bytes = entry.get().as_bytes();
        let mut given: RawDescriptor = match documents::parse(bytes) {
            Ok(given) => given,
            Err(error) => {
                let reason = foreign::reason(format_args!("its descriptor is not valid: {error}"));
                self.reader.charge(1, 0)?;
                self.reader.hold(reason.len() as u64)?;
                return Ok(stand_in(bytes, None, reason));
            }
        };
        self.reader.charge(1, given.kept_bytes())?;
        self.reader.hold(given.held_bytes())?;
        let descriptor = match given.take_descriptor() {
            Ok(descriptor) => descriptor,
            Err(reason) => {
                self.reader.hold(reason.len() as u64)?;
                return Ok(stand_in(bytes, given.usable_platform(), reason));
            }
        };
        self.reader.take_embedded(&given, &descriptor);
        Ok(Node {
            descriptor,
            platform: given.platform,
            content: Content::Absent,
        })
    }

    /// Finds the content of a node.
    fn fill(&mut self, node: &mut Node, depth: u32) -> Result<(), Fault> {
        if node.content == Content::Absent {
            node.content = self.content(&node.descriptor, depth)?;
            if let Content::Broken(reason) = &node.content {
                self.reader.hold(reason.len() as u64)?;
            }
        }
        Ok(())
    }

    fn content(&mut self, descriptor: &Descriptor, depth: u32) -> Result<Content, Fault> {
        let digest = descriptor.digest();
        let media_type = descriptor.media_type().as_ref();
        match self.reader.state(descriptor) {
            PartState::Present => {}
            PartState::Absent => return Ok(Content::Absent),
            PartState::Broken(reason) => return Ok(Content::Broken(reason)),
        }
        if documents::is_schema_1(media_type) {
            let reason = format!("{digest} is a Docker schema 1 manifest, which is not supported");
            return Ok(Content::Broken(reason.into()));
        }
        let is_index = documents::is_index(media_type);
        if !is_index && !documents::is_manifest(media_type) {
            return Ok(Content::Other);
        }
        if is_index && depth >= self.reader.limits().index_depth {
            let limit = self.reader.limits().index_depth;
            let set = set("indexDepth", limit);
            let reason = format!("index {digest} is nested deeper than {limit} levels ({set})");
            self.too_deep = Some(reason.clone());
            return Ok(Content::Broken(reason.into()));
        }
        let walked = match is_index {
            true => self.walked.get(&(digest.clone(), depth)),
            false => self.manifests.get(digest),
        };
        if let Some(walked) = walked {
            self.reader.charge(walked.descriptors, walked.kept)?;
            self.too_deep = walked.too_deep.clone().or(self.too_deep.take());
            return Ok(walked.content.clone());
        }
        let bytes = match self.reader.contents(descriptor)? {
            Ok(bytes) => bytes,
            Err(reason) => return Ok(Content::Broken(reason)),
        };
        if is_index {
            self.index(digest, bytes, depth)
        } else {
            let before = self.reader.spent();
            let content = self.manifest(digest, &bytes)?;
            let after = self.reader.spent();
            let walked = Walked {
                content: content.clone(),
                too_deep: None,
                descriptors: after.descriptors - before.descriptors,
                kept: after.kept - before.kept,
            };
            self.manifests.insert(digest.clone(), walked);
            Ok(content)
        }
    }

    fn index(&mut self, digest: &Digest, bytes: Vec<u8>, depth: u32) -> Result<Content, Fault> {
        let index: Index<'_> = match documents::parse(&bytes) {
            Ok(index) => index,
            Err(error) => {
                let reason = format_args!("index {digest} is not valid: {error}");
                return Ok(Content::Broken(foreign::reason(reason).into()));
            }
        };
        if let Some(contradiction) = index.contradiction() {
            return Ok(Content::Broken(format!("{digest} {contradiction}").into()));
        }
        let before = self.reader.spent();
        let elsewhere = self.too_deep.take();
        let children: Result<Vec<_>, _> = index.manifests.iter().map(|entry| self.outline(entry)).collect();
        let mut children = children?;
        // Drops the document now, so that only one is in memory however deeply they nest.
        drop(bytes);
        for child in &mut children {
            self.fill(child, depth + 1)?;
        }
        let after = self.reader.spent();
        let walked = Walked {
            content: Content::Index(children.into()),
            too_deep: self.too_deep.clone(),
            descriptors: after.descriptors - before.descriptors,
            kept: after.kept - before.kept,
        };
        self.too_deep = elsewhere.or(self.too_deep.take());
        let content = walked.content.clone();
        self.walked.insert((digest.clone(), depth), walked);
        Ok(content)
    }

    fn manifest(&mut self, digest: &Digest, bytes: &[u8]) -> Result<Content, Fault> {
        let mut given: documents::Manifest = match documents::parse(bytes) {
            Ok(manifest) => manifest,
            Err(error) => {
                let reason = format_args!("manifest {digest} is not valid: {error}");
                return Ok(Content::Broken(foreign::reason(reason).into()));
            }
        };
        if let Some(contradiction) = given.contradiction() {
            return Ok(Content::Broken(format!("{digest} {contradiction}").into()));
        }
        let Some(mut config) = given.config.take() else {
            let reason = format!("manifest {digest} names no config");
            return Ok(Content::Broken(reason.into()));
        };
        let parts = || given.layers.iter().chain([&config]);
        let kept = parts().map(RawDescriptor::kept_bytes).sum();
        let held: u64 = parts().map(RawDescriptor::held_bytes).sum();
        self.reader.charge(1 + given.layers.len(), kept)?;
        self.reader.hold(held + given.artifact_type.len() as u64 + TEXT)?;
        let layers: Result<Vec<_>, _> = given.layers.iter_mut().map(|layer| self.part(layer)).collect();
        let (config, layers) = match (self.part(&mut config), layers) {
            (Ok(config), Ok(layers)) => (config, layers),
            (Err(reason), _) | (_, Err(reason)) => {
                return Ok(Content::Broken(format!("manifest {digest}: {reason}").into()));
            }
        };
        let manifest = Manifest {
            kind: kind(&given.artifact_type, &config, &layers),
            is_volume: false,
            config,
            layers,
            config_platform: None,
            diff_ids: Arc::from([]),
            subject: given
                .subject
                .and_then(|mut subject| Some(subject.take_descriptor().ok()?.digest().clone())),
            problems: Vec::new(),
        };
        let manifest = match &manifest.kind {
            Kind::Image => self.with_config(manifest)?,
            Kind::Artifact { .. } if given.artifact_type.is_empty() => manifest,
            Kind::Artifact { .. } => self.with_volume(manifest)?,
        };
        Ok(Content::Manifest(Arc::new(manifest)))
    }

    fn part(&mut self, given: &mut RawDescriptor) -> Result<Part, String> {
        let descriptor = given.take_descriptor()?;
        self.reader.take_embedded(given, &descriptor);
        let state = self.reader.state(&descriptor);
        Ok(Part { descriptor, state })
    }

    /// Sets `is_volume` if an artifact has a file system: layers that its config lists. A config of
    /// another kind is ignored.
    fn with_volume(&mut self, mut manifest: Manifest) -> Result<Manifest, Fault> {
        let is_layer = |part: &Part| documents::is_layer(part.descriptor.media_type().as_ref());
        if !manifest.layers.iter().any(is_layer)
            || self.reader.state(&manifest.config.descriptor) != PartState::Present
        {
            return Ok(manifest);
        }
        if let ReadConfig::Good(config, diff_ids) = self.config(&manifest.config.descriptor)?
            && problems(&config, &manifest.layers).is_empty()
        {
            manifest.is_volume = true;
            manifest.diff_ids = diff_ids;
        }
        Ok(manifest)
    }

    /// Adds the values of the config, if it is present.
    fn with_config(&mut self, mut manifest: Manifest) -> Result<Manifest, Fault> {
        if self.reader.state(&manifest.config.descriptor) != PartState::Present {
            return Ok(manifest);
        }
        match self.config(&manifest.config.descriptor)? {
            ReadConfig::Broken(reason) => manifest.config.state = PartState::Broken(reason),
            ReadConfig::Invalid(reason) => manifest.problems.push(reason),
            ReadConfig::Good(config, diff_ids) => {
                manifest.problems = problems(&config, &manifest.layers);
                manifest.config_platform = config.platform();
                manifest.diff_ids = diff_ids;
            }
        }
        let state = match &manifest.config.state {
            PartState::Broken(reason) => reason.len() as u64 + TEXT,
            PartState::Present | PartState::Absent => 0,
        };
        let platform = manifest.config_platform.as_ref().map_or(0, account::of_platform);
        let reasons = account::of_texts(&manifest.problems);
        self.reader.hold(platform + reasons + state)?;
        Ok(manifest)
    }

    /// Reads a config that is present. Each config is read once.
    fn config(&mut self, descriptor: &Descriptor) -> Result<ReadConfig, Fault> {
        let digest = descriptor.digest();
        if let Some(read) = self.configs.get(digest) {
            return Ok(read.clone());
        }
        let read = match self.reader.contents(descriptor)? {
            Err(reason) => ReadConfig::Broken(reason),
            Ok(bytes) => match Config::read(&bytes) {
                Err(error) => ReadConfig::Invalid(format!("config {digest} is not valid: {error}")),
                Ok(config) => {
                    // The config is kept as texts and as digests, which are a little larger.
                    self.reader.hold(config.held_bytes().saturating_mul(3))?;
                    let diff_ids = config.parsed_diff_ids();
                    ReadConfig::Good(Arc::new(config), diff_ids)
                }
            },
        };
        let reason = match &read {
            ReadConfig::Good(..) => 0,
            ReadConfig::Invalid(reason) => reason.len() as u64 + TEXT,
            ReadConfig::Broken(reason) => reason.len() as u64 + TEXT,
        };
        self.reader.hold(reason)?;
        self.configs.insert(digest.clone(), read.clone());
        Ok(read)
    }
}

/// Returns the name of an entry, even if the entry is unusable otherwise. containerd's own
/// annotation takes precedence over the standard annotation, and at most one counts.
fn names(entry: &RawValue) -> Vec<RawName> {
    let Ok(Annotated { mut annotations }) = documents::parse(entry.get().as_bytes()) else {
        return Vec::new();
    };
    let mut annotation = |key| annotations.remove(key).filter(|name: &String| !name.is_empty());
    let containerd = annotation("io.containerd.image.name").map(RawName::ContainerdName);
    let standard = annotation("org.opencontainers.image.ref.name").map(RawName::RefName);
    containerd.or(standard).into_iter().collect()
}

/// Returns the name of a digest's blob in an OCI image layout (image-spec, "Image Layout").
pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.digest())
}

/// Returns the kind of content that a manifest describes.
///
/// An image has an image config and file system layers, or no layers. Signatures and attestations
/// often have an image config too, but their layers are not file systems.
fn kind(artifact_type: &str, config: &Part, layers: &[Part]) -> Kind {
    let media_type = |part: &Part| part.descriptor.media_type().to_string();
    let config_type = media_type(config);
    let first_layer = layers.first().map(media_type);
    let no_file_system =
        !layers.is_empty() && !layers.iter().any(|part| documents::is_layer(&media_type(part)));
    if documents::is_config(&config_type) && !no_file_system {
        return Kind::Image;
    }
    let says_nothing =
        documents::is_config(&config_type) || config_type == "application/vnd.oci.empty.v1+json";
    let artifact_type = match (artifact_type, first_layer) {
        ("", Some(layer)) if says_nothing => layer,
        ("", _) => config_type,
        (artifact_type, _) => foreign::reason(artifact_type),
    };
    Kind::Artifact { artifact_type }
}

/// Returns the reasons why containerd could not unpack these layers with this config.
fn problems(config: &Config, layers: &[Part]) -> Vec<String> {
    let layers: Vec<_> = layers
        .iter()
        .filter(|part| documents::is_layer(part.descriptor.media_type().as_ref()))
        .collect();
    let diff_ids = config.diff_ids();
    if layers.len() != diff_ids.len() {
        return vec![format!(
            "the manifest has {}, but the config has {}",
            counted(layers.len(), "layer"),
            counted(diff_ids.len(), "diff_id")
        )];
    }
    // The digest of an uncompressed layer is its diff_id. A sha512 and a sha256 cannot be compared.
    let differs = |(part, diff_id): &(&&Part, &String)| {
        let digest = part.descriptor.digest().as_ref();
        let is_comparable = !(digest.starts_with("sha512:") && diff_id.starts_with("sha256:"));
        documents::is_plain_layer(part.descriptor.media_type().as_ref())
            && is_comparable
            && digest != diff_id.as_str()
    };
    let wrong = layers.iter().zip(diff_ids).find(differs);
    wrong
        .map(|(part, diff_id)| {
            let diff_id = foreign::text(diff_id);
            format!(
                "layer {} should be {diff_id} by the config's diff_ids",
                part.descriptor.digest()
            )
        })
        .into_iter()
        .collect()
}

/// Collects the config digests of all image manifests below a node.
pub(crate) fn configs<'n>(node: &'n Node, found: &mut Vec<&'n Digest>) {
    match &node.content {
        Content::Index(children) => children.iter().for_each(|child| configs(child, found)),
        Content::Manifest(manifest) => found.push(manifest.config.descriptor.digest()),
        Content::Other | Content::Absent | Content::Broken(_) => {}
    }
}
