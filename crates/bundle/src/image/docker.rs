//! Images of a Docker archive: `manifest.json`, configs and layers under any name.
//!
//! Such an archive has no manifest that containerd could keep, so the reader makes one. Its bytes
//! are those that containerd's own importer writes on a node that has none of the layers. (On a
//! node with a compressed copy of a layer, containerd uses that copy. Then the same archive gets
//! another digest. This reader does not do that.)

use std::collections::HashMap;
use std::sync::Arc;

use basics::{counted, digest, foreign};
use oci_spec::image::{Descriptor, Digest, MediaType};
use serde::Serialize;
use serde_json::value::RawValue;

use super::account::TEXT;
use super::documents::{self, Config, DockerImage};
use super::reader::{Blobs as _, DOCKER_MANIFEST, Reader, stand_in};
use crate::archive::{Found, Place};
use crate::{Compression, Content, Fault, Image, Kind, Manifest, Node, Part, PartState, RawName};

const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Also for zstd, because containerd recognises the compression from the bytes. containerd before
/// 2.0 cannot read the media type for zstd.
const DOCKER_LAYER_COMPRESSED: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// Makes images from the elements of a `manifest.json`.
pub(crate) struct Docker<'r, 'a> {
    reader: &'r mut Reader<'a>,
    /// Digests of layers that had to be read, by offset and size, because images share layers.
    hashed: HashMap<(u64, u64), Digest>,
}

/// The reason why an image cannot be made: a fault of the image, or of the whole bundle.
enum Trouble {
    Image(String),
    Bundle(Fault),
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        Self::Bundle(fault)
    }
}

impl<'r, 'a> Docker<'r, 'a> {
    pub(crate) fn new(reader: &'r mut Reader<'a>) -> Self {
        Self {
            reader,
            hashed: HashMap::new(),
        }
    }

    /// Makes the image of one element.
    pub(crate) fn image(&mut self, element: &RawValue) -> Result<Image, Fault> {
        let bytes = element.get().as_bytes();
        let given: DockerImage = match documents::parse(element.get().as_bytes()) {
            Ok(given) => given,
            Err(error) => {
                let reason =
                    foreign::reason(format_args!("its element of manifest.json is not valid: {error}"));
                self.reader.charge(1, 0)?;
                self.reader.hold(reason.len() as u64)?;
                return Ok(Image {
                    names: Vec::new(),
                    root: stand_in(bytes, None, reason),
                });
            }
        };
        let kept = given.repo_tags.iter().map(|tag| tag.len() as u64).sum();
        // Each name costs as much as an entry of an OCI layout.
        self.reader
            .charge(2 + given.layers.len() + given.repo_tags.len(), kept)?;
        self.reader.hold(given.repo_tags.len() as u64 * TEXT)?;
        let root = match self.root(&given, bytes) {
            Ok(root) => root,
            Err(Trouble::Image(reason)) => stand_in(bytes, None, reason),
            Err(Trouble::Bundle(fault)) => return Err(fault),
        };
        Ok(Image {
            names: given.repo_tags.into_iter().map(RawName::RepoTag).collect(),
            root,
        })
    }

    fn root(&mut self, given: &DockerImage, element: &[u8]) -> Result<Node, Trouble> {
        let config_place = self.find("config", &given.config)?;
        let limit = self.reader.limits.json_document;
        if config_place.size() > limit {
            let (name, size) = (foreign::text(&given.config), config_place.size());
            return Err(Trouble::Image(format!(
                "config {name} has {size} bytes, more than {limit}"
            )));
        }
        let bytes = self
            .reader
            .read(&config_place)?
            .map_err(|flaw| Trouble::Image(flaw.to_string()))?;
        let (config, mut problems) = match Config::read(&bytes) {
            Ok(config) => (config, Vec::new()),
            Err(error) => {
                let name = foreign::text(&given.config);
                (
                    Config::default(),
                    vec![format!("config {name} is not valid: {error}")],
                )
            }
        };
        // The platform is kept twice.
        self.reader.hold(config.held_bytes().saturating_mul(2))?;
        let layers = match self.layers(given, &config, &mut problems) {
            Ok(layers) => layers,
            // The platform tells whether the fault matters to this node.
            Err(Trouble::Image(reason)) => {
                self.reader.hold(reason.len() as u64)?;
                return Ok(stand_in(element, config.platform(), reason));
            }
            Err(trouble) => return Err(trouble),
        };
        let config_digest = digest::sha256(&bytes);
        let config_part = self.part(DOCKER_CONFIG, config_digest, config_place);
        let manifest = manifest_bytes(&config_part, &layers);
        let texts: usize = problems.iter().map(String::len).sum();
        self.reader
            .hold((manifest.len() + texts) as u64 + problems.len() as u64 * TEXT)?;
        let digest = digest::sha256(&manifest);
        let descriptor = Descriptor::new(
            MediaType::from(DOCKER_MANIFEST),
            manifest.len() as u64,
            digest.clone(),
        );
        self.reader
            .places
            .insert(digest, Place::Memory(Arc::from(manifest)));
        Ok(Node {
            descriptor,
            platform: config.platform(),
            content: Content::Manifest(Arc::new(Manifest {
                config: config_part,
                layers,
                config_platform: config.platform(),
                diff_ids: config.parsed_diff_ids(),
                kind: Kind::Image,
                is_volume: false,
                subject: None,
                problems,
            })),
        })
    }

    fn layers(
        &mut self,
        given: &DockerImage,
        config: &Config,
        problems: &mut Vec<String>,
    ) -> Result<Vec<Part>, Trouble> {
        let (layers, diff_ids) = (given.layers.len(), config.diff_ids());
        if layers != diff_ids.len() && problems.is_empty() {
            problems.push(format!(
                "manifest.json lists {}, but the config has {}",
                counted(layers, "layer"),
                counted(diff_ids.len(), "diff_id")
            ));
        }
        // If the numbers differ, a diff_id says nothing about the layer at its index.
        let diff_ids = if layers == diff_ids.len() { diff_ids } else { &[] };
        let diff_id = |i: usize| diff_ids.get(i).and_then(|text| digest::parse_sha256(text).ok());
        let parts = given.layers.iter().enumerate();
        parts
            .map(|(i, name)| self.layer(name, diff_id(i), problems))
            .collect()
    }

    fn layer(
        &mut self,
        name: &str,
        diff_id: Option<Digest>,
        problems: &mut Vec<String>,
    ) -> Result<Part, Trouble> {
        let place = self.find("layer", name)?;
        let compression = self.reader.archive.compression(&place)?;
        let media_type = match compression {
            Compression::Gzip | Compression::Zstd => DOCKER_LAYER_COMPRESSED,
            Compression::None | Compression::Xz | Compression::Lz4 | Compression::Bzip2 => DOCKER_LAYER,
        };
        if matches!(
            compression,
            Compression::Xz | Compression::Lz4 | Compression::Bzip2
        ) {
            let name = foreign::text(name);
            problems.push(format!(
                "layer {name} is compressed with {compression}, which containerd cannot unpack"
            ));
        }
        // The digest of a plain layer is its diff_id. Using the diff_id saves reading the layer. If
        // the bytes differ, no runtime could use them, and the import finds the mismatch.
        let digest = match diff_id {
            Some(diff_id) if compression == Compression::None => diff_id,
            _ => self.hash(&place)?,
        };
        Ok(self.part(media_type, digest, place))
    }

    fn find(&self, what: &str, name: &str) -> Result<Place, Trouble> {
        let shown = foreign::text(name);
        match self.reader.archive.find(name) {
            Found::File(place) => Ok(place),
            Found::Nothing => Err(Trouble::Image(format!("{what} {shown} is not in the archive"))),
            Found::Unusable(reason) => Err(Trouble::Image(format!("{what} {shown} is {reason}"))),
        }
    }

    fn hash(&mut self, place: &Place) -> Result<Digest, Fault> {
        let Some(offset) = place.offset() else {
            return self.reader.archive.sha256(place);
        };
        let size = place.size();
        if let Some(digest) = self.hashed.get(&(offset, size)) {
            return Ok(digest.clone());
        }
        let digest = self.reader.archive.sha256(place)?;
        self.hashed.insert((offset, size), digest.clone());
        Ok(digest)
    }

    fn part(&mut self, media_type: &str, digest: Digest, place: Place) -> Part {
        let descriptor = Descriptor::new(MediaType::from(media_type), place.size(), digest.clone());
        if let Some(corrupt) = self.reader.is_corrupt(&place, &digest) {
            return Part {
                descriptor,
                state: PartState::Broken(corrupt),
            };
        }
        // Two layers that claim one digest cannot both be right. The import of the first finds a
        // mismatch.
        self.reader.places.entry(digest).or_insert(place);
        Part {
            descriptor,
            state: PartState::Present,
        }
    }
}

/// Returns the manifest as containerd's importer writes it: compact, with these members in this
/// order. Any other byte would change the digest.
fn manifest_bytes(config: &Part, layers: &[Part]) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Bytes<'a> {
        schema_version: u8,
        media_type: &'a str,
        config: Blob<'a>,
        layers: Vec<Blob<'a>>,
    }

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Blob<'a> {
        media_type: &'a str,
        digest: &'a str,
        size: u64,
    }

    fn blob(part: &Part) -> Blob<'_> {
        Blob {
            media_type: part.descriptor.media_type().as_ref(),
            digest: part.descriptor.digest().as_ref(),
            size: part.descriptor.size(),
        }
    }

    let manifest = Bytes {
        schema_version: 2,
        media_type: DOCKER_MANIFEST,
        config: blob(config),
        layers: layers.iter().map(blob).collect(),
    };
    serde_json::to_vec(&manifest).expect("text and numbers are JSON")
}
