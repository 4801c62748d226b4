//! Lenient models of the JSON documents in a bundle.
//!
//! Real archives have `null` instead of a list, configs without a platform, and unknown members.
//! The stock types refuse some of these, and lose `os.version`. The models here accept what
//! containerd accepts, including keys in another case and keys given twice. A document keeps its
//! bytes, because no model is written back.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use basics::{digest, foreign};
use oci_spec::image::{Descriptor, Digest, MediaType};
use platforms::Platform;
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::account;
use super::members::Members;

/// `oci-layout`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LayoutFile {
    #[serde(default, deserialize_with = "nullable")]
    pub(crate) image_layout_version: String,
}

/// `index.json` and image indexes. The entries stay raw, so that a bad entry affects only its
/// image.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index<'a> {
    #[serde(default, deserialize_with = "nullable")]
    pub(crate) media_type: String,
    #[serde(default, borrow, deserialize_with = "list")]
    pub(crate) manifests: Vec<&'a RawValue>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
}

impl Index<'_> {
    /// Returns the reason why the body cannot be an index (CVE-2021-41190). Two readers would see
    /// two images in such a document.
    pub(crate) fn contradiction(&self) -> Option<&'static str> {
        match self {
            Self {
                fs_layers: Some(_), ..
            } => Some("is a Docker schema 1 manifest, which is not supported"),
            Self { config: Some(_), .. } | Self { layers: Some(_), .. } => {
                Some("is described as an index but has the members of a manifest")
            }
            Self { media_type, .. } if is_manifest(media_type) => {
                Some("is described as an index but calls itself a manifest")
            }
            _ => None,
        }
    }
}

/// An image manifest.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    #[serde(default, deserialize_with = "nullable")]
    pub(crate) media_type: String,
    #[serde(default, deserialize_with = "object")]
    pub(crate) config: Option<RawDescriptor>,
    #[serde(default, deserialize_with = "objects")]
    pub(crate) layers: Vec<RawDescriptor>,
    #[serde(default, deserialize_with = "nullable")]
    pub(crate) artifact_type: String,
    #[serde(default, deserialize_with = "object")]
    pub(crate) subject: Option<RawDescriptor>,
    manifests: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
}

impl Manifest {
    /// Returns the reason why the body cannot be a manifest (CVE-2021-41190).
    pub(crate) fn contradiction(&self) -> Option<&'static str> {
        match self {
            Self {
                fs_layers: Some(_), ..
            } => Some("is a Docker schema 1 manifest, which is not supported"),
            Self {
                manifests: Some(_), ..
            } => Some("is described as a manifest but has the members of an index"),
            Self { media_type, .. } if is_index(media_type) => {
                Some("is described as a manifest but calls itself an index")
            }
            _ => None,
        }
    }
}

/// A descriptor as a document gives it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RawDescriptor {
    #[serde(default, deserialize_with = "nullable")]
    media_type: String,
    #[serde(default, deserialize_with = "nullable")]
    digest: String,
    #[serde(default, deserialize_with = "nullable")]
    size: i64,
    #[serde(default, deserialize_with = "list")]
    urls: Vec<String>,
    #[serde(default, deserialize_with = "map")]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "object")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, deserialize_with = "nullable")]
    artifact_type: String,
    #[serde(default, deserialize_with = "nullable")]
    pub(crate) data: String,
}

impl RawDescriptor {
    /// Checks what every use needs: a digest, a media type and a size. Moves the texts out, because
    /// copies would double the memory of a document.
    pub(crate) fn take_descriptor(&mut self) -> Result<Descriptor, String> {
        let digest = digest::parse(&self.digest)?;
        if self.media_type.is_empty() {
            return Err(format!("the descriptor of {digest} has no media type"));
        }
        if self.media_type.len() > LONGEST_WORD {
            return Err(format!(
                "the media type of {digest} has {} bytes, more than {LONGEST_WORD}",
                self.media_type.len()
            ));
        }
        if let Some(platform) = &self.platform {
            check_platform(platform).map_err(|problem| format!("the descriptor of {digest}: {problem}"))?;
        }
        let size = u64::try_from(self.size)
            .map_err(|_| format!("the descriptor of {digest} gives its size as {}", self.size))?;
        let mut descriptor = Descriptor::new(MediaType::from(self.media_type.as_str()), size, digest);
        if !self.annotations.is_empty() {
            let annotations = std::mem::take(&mut self.annotations);
            descriptor.set_annotations(Some(annotations.into_iter().collect::<HashMap<_, _>>()));
        }
        if !self.urls.is_empty() {
            descriptor.set_urls(Some(std::mem::take(&mut self.urls)));
        }
        if !self.artifact_type.is_empty() {
            descriptor.set_artifact_type(Some(MediaType::from(self.artifact_type.as_str())));
        }
        Ok(descriptor)
    }

    /// Returns the platform of the descriptor, if it is valid.
    pub(crate) fn usable_platform(self) -> Option<Platform> {
        self.platform.filter(|platform| check_platform(platform).is_ok())
    }

    /// Returns the bytes of memory that the descriptor takes in the catalog, besides those of its
    /// texts.
    pub(crate) fn held_bytes(&self) -> u64 {
        let annotations = self.annotations.len() as u64 * account::PAIR;
        let urls = self.urls.len() as u64 * account::TEXT;
        annotations + urls + self.platform.as_ref().map_or(0, account::of_platform)
    }

    /// Returns the number of bytes that the catalog keeps of the descriptor's texts.
    pub(crate) fn kept_bytes(&self) -> u64 {
        let annotations = self
            .annotations
            .iter()
            .map(|(key, value)| key.len() + value.len());
        let urls = self.urls.iter().map(String::len);
        let bytes = self.media_type.len() + self.artifact_type.len() + self.data.len();
        annotations.chain(urls).map(|bytes| bytes as u64).sum::<u64>() + bytes as u64
    }
}

/// The annotations of a descriptor, even if the rest of it is unusable.
#[derive(Deserialize)]
pub(crate) struct Annotated {
    #[serde(default, deserialize_with = "map")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// An image config, with only its platform and its layers.
#[derive(Default, Deserialize)]
pub(crate) struct Config {
    #[serde(default, deserialize_with = "nullable")]
    os: String,
    #[serde(default, deserialize_with = "nullable")]
    architecture: String,
    variant: Option<String>,
    #[serde(rename = "os.version")]
    os_version: Option<String>,
    #[serde(rename = "os.features", default, deserialize_with = "list")]
    os_features: Vec<String>,
    #[serde(default, deserialize_with = "object")]
    rootfs: Option<RootFs>,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "list")]
    diff_ids: Vec<String>,
}

impl Config {
    /// Reads a config. The error says what is wrong with it.
    pub(crate) fn read(bytes: &[u8]) -> Result<Config, String> {
        let config: Config = parse(bytes).map_err(foreign::reason)?;
        if let Some(platform) = config.platform() {
            check_platform(&platform)?;
        }
        Ok(config)
    }

    /// Returns the platform, if the config names an os or an architecture.
    pub(crate) fn platform(&self) -> Option<Platform> {
        let known = !self.os.is_empty() || !self.architecture.is_empty();
        let present = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        known.then(|| Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: present(&self.variant),
            os_version: present(&self.os_version),
            os_features: self.os_features.clone(),
        })
    }

    /// Returns the bytes of memory that the config takes.
    pub(crate) fn held_bytes(&self) -> u64 {
        let optional = [&self.variant, &self.os_version].into_iter().flatten();
        let texts = [&self.os, &self.architecture].into_iter().chain(optional);
        account::of_texts(texts.chain(&self.os_features).chain(self.diff_ids()))
    }

    pub(crate) fn diff_ids(&self) -> &[String] {
        self.rootfs.as_ref().map_or(&[], |rootfs| &rootfs.diff_ids)
    }

    /// Returns the `diff_ids` as digests, up to the first invalid one.
    pub(crate) fn parsed_diff_ids(&self) -> Arc<[Digest]> {
        let texts = self.diff_ids().iter();
        texts.map_while(|text| digest::parse(text).ok()).collect()
    }
}

/// An element of a Docker archive's `manifest.json`. Old versions of jib write the keys in camel
/// case.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DockerImage {
    #[serde(default, deserialize_with = "nullable")]
    pub(crate) config: String,
    #[serde(default, deserialize_with = "list")]
    pub(crate) repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "list")]
    pub(crate) layers: Vec<String>,
}

/// The elements of a list of documents. They stay raw, like the entries of an index.
#[derive(Deserialize)]
pub(crate) struct RawList<'a>(#[serde(borrow, deserialize_with = "list")] pub(crate) Vec<&'a RawValue>);

/// Parses a document that is a JSON object and nothing else.
pub(crate) fn parse<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> serde_json::Result<T> {
    serde_json::from_slice(bytes).map(|Object(document)| document)
}

/// Parses the first JSON value of a document, which must be an object. Ignores all bytes after it.
pub(crate) fn parse_first<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> serde_json::Result<T> {
    Object::deserialize(&mut serde_json::Deserializer::from_slice(bytes)).map(|Object(document)| document)
}

/// A struct that is written as an object. `serde` alone also accepts a list of the members' values.
/// No other reader does, so two readers would see two documents.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        struct Whole<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Whole<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
                T::deserialize(Members(members))
            }
        }

        source.deserialize_map(Whole(PhantomData)).map(Object)
    }
}

/// Reads an object, or `null` for none.
fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(source: D) -> Result<Option<T>, D::Error> {
    Ok(Option::deserialize(source)?.map(|Object(value)| value))
}

/// Reads a list of objects, or `null` for an empty list.
fn objects<'de, D: Deserializer<'de>, T: Deserialize<'de>>(source: D) -> Result<Vec<T>, D::Error> {
    Ok(list(source)?.into_iter().map(|Object(value)| value).collect())
}

/// The largest length in bytes of a media type, or of a word of a platform. Media types have at
/// most 255 (RFC 6838, section 4.2). The words of platforms are names from Go, versions and
/// features.
const LONGEST_WORD: usize = 255;

/// Checks that a platform is valid. Messages name images and layers by their platform, and each
/// image's platform is compared with the node's.
fn check_platform(platform: &Platform) -> Result<(), String> {
    if let Some(word) = platform.words().find(|word| word.len() > LONGEST_WORD) {
        let bytes = word.len();
        return Err(format!(
            "a word of its platform has {bytes} bytes, more than {LONGEST_WORD}"
        ));
    }
    let (count, most) = (platform.os_features.len(), platforms::MOST_FEATURES);
    if count > most {
        return Err(format!("its platform has {count} os.features, more than {most}"));
    }
    Ok(())
}

/// The largest number of elements in a list or a map. In memory, an element takes up to a hundred
/// times its bytes in the document. So a limit on the document alone is not enough.
const LONGEST_LIST: usize = 10_000;

/// Reads a list, or `null` for an empty list.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(source: D) -> Result<Vec<T>, D::Error> {
    struct List<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut source: A) -> Result<Self::Value, A::Error> {
            let mut elements = Vec::new();
            while let Some(element) = source.next_element()? {
                if elements.len() == LONGEST_LIST {
                    return Err(A::Error::custom(format_args!(
                        "a list of more than {LONGEST_LIST} elements"
                    )));
                }
                elements.push(element);
            }
            elements.shrink_to_fit();
            Ok(elements)
        }
    }

    source.deserialize_any(List(PhantomData))
}

/// Reads a map of texts, or `null` for an empty map.
fn map<'de, D: Deserializer<'de>>(source: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct Map;

    impl<'de> Visitor<'de> for Map {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut source: A) -> Result<Self::Value, A::Error> {
            let mut members = BTreeMap::new();
            while let Some((key, value)) = source.next_entry::<String, Option<String>>()? {
                if members.len() == LONGEST_LIST {
                    return Err(A::Error::custom(format_args!(
                        "an object of more than {LONGEST_LIST} members"
                    )));
                }
                members.insert(key, value.unwrap_or_default());
            }
            Ok(members)
        }
    }

    source.deserialize_any(Map)
}

/// Reads a value as Go does, where `null` is the zero value.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(source: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(source)?.unwrap_or_default())
}

/// Returns true if a media type is an image index.
pub(crate) fn is_index(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json"
    )
}

/// Returns true if a media type is an image manifest.
pub(crate) fn is_manifest(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json"
    )
}

/// Returns true if a media type is a Docker schema 1 manifest, which no supported containerd
/// accepts.
pub(crate) fn is_schema_1(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.docker.distribution.manifest.v1+prettyjws"
            | "application/vnd.docker.distribution.manifest.v1+json"
    )
}

/// Returns true if a media type is an image config.
pub(crate) fn is_config(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
    )
}

/// Returns true if a media type is a file system layer.
pub(crate) fn is_layer(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.diff.tar")
        || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.diff.tar")
        || media_type == "application/vnd.erofs.layer.v1"
}

/// Returns true if a media type is a layer in a tar archive, plain or compressed. Encrypted layers,
/// and layers of other file systems, are not.
pub(crate) fn is_tar_layer(media_type: &str) -> bool {
    let is_tar = media_type.starts_with("application/vnd.oci.image.layer.v1.tar")
        || media_type.starts_with("application/vnd.oci.image.layer.nondistributable.v1.tar")
        || media_type.starts_with("application/vnd.docker.image.rootfs.diff.tar")
        || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.diff.tar");
    is_tar && !media_type.ends_with("+encrypted")
}

/// Returns true if, by its media type, a layer's digest is the digest of its uncompressed bytes.
/// Docker's media type does not say so, and containerd checks the bytes of such layers.
pub(crate) fn is_plain_layer(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.oci.image.layer.nondistributable.v1.tar"
    )
}
