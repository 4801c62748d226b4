//! Finds everything that belongs into a bundle, from a reference: reads documents, chooses
//! platforms, lists layers.

use std::collections::{HashMap, HashSet};
use std::fmt;

use basics::digest;
use bundle::BlobRef;
use bundle::write::DraftImage;
use oci_spec::image::{Descriptor, Digest, MediaType};
use platforms::{Matcher, Platform, Wanted};
use serde_json::Value;

use crate::client::{Client, Document};
use crate::{Cache, Error};

/// Deepest nesting of indexes, and most descriptors in all of them. Readers of bundles have the
/// same limits.
const DEEPEST: usize = 8;
const MOST_DESCRIPTORS: usize = 10_000;

/// Annotations with which BuildKit and containerd mark the manifest that an attestation or
/// signature is about.
const REFERS_TO: [&str; 2] = ["vnd.docker.reference.digest", "io.containerd.manifest.subject"];

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// An image by its normalised name: the repository with its host, and a tag, a digest or both.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageRef {
    /// Host and path, for example `docker.io/library/busybox`.
    pub repository: String,
    /// The tag.
    pub tag: Option<String>,
    /// The digest in the reference.
    pub digest: Option<Digest>,
}

impl ImageRef {
    /// Returns the names of the image in a bundle: by tag, by digest, and by both, as k0s names it.
    fn names(&self) -> Vec<String> {
        let tag = self.tag.as_ref().map(|tag| format!("{}:{tag}", self.repository));
        let digest = self
            .digest
            .as_ref()
            .map(|digest| format!("{}@{digest}", self.repository));
        let both = (tag.is_some() && digest.is_some()).then(|| self.to_string());
        [tag, digest, both].into_iter().flatten().collect()
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// An image whose documents were read.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The requested reference.
    pub reference: ImageRef,
    /// The repository with its blobs.
    pub(crate) repository: String,
    /// Names, target and blobs, in the form that a bundle needs. The check whether a manifest is an
    /// image comes later.
    pub draft: DraftImage,
    /// Its documents with their bytes.
    pub(crate) documents: Vec<(BlobRef, Vec<u8>)>,
    /// Platforms of the chosen manifests, as text.
    pub platforms: Vec<String>,
    /// Number of manifests in its indexes that were left out.
    pub left_out: usize,
    /// Requested platforms that the image lacks, if it has another requested one.
    pub missing: Vec<String>,
}

/// Reads the documents of an image and chooses its platforms. Documents in the cache are not
/// fetched, but a tag is looked up each time. Cancel safe.
///
/// # Errors
///
/// Returns an error if a document is not available, does not match its digest, or has an unknown
/// type. Also returns an error if the tag and the digest of the reference differ, or if no platform
/// fits.
pub async fn resolve(
    client: &Client,
    cache: Option<&Cache>,
    reference: &ImageRef,
    wanted: &Wanted,
) -> Result<Resolved, Error> {
    let name = reference.to_string();
    let pinned = reference.digest.as_ref();
    let asked = match (&reference.tag, pinned) {
        (Some(tag), _) => tag.clone(),
        (None, Some(digest)) => digest.to_string(),
        (None, None) => "latest".to_owned(),
    };
    let document = client.manifest(&reference.repository, &asked).await?;
    let root = root(&name, &document, pinned)?;
    if let Some(pinned) = pinned
        && pinned != root.digest()
    {
        return Err(match reference.tag {
            Some(_) => Error::Disagree {
                name,
                found: root.digest().clone(),
                pinned: pinned.clone(),
            },
            None => unusable(&name, pinned, "its content does not match the digest"),
        });
    }
    let mut walk = Walk {
        client,
        cache,
        name: &name,
        repository: &reference.repository,
        wanted,
        documents: Vec::new(),
        layers: Vec::new(),
        platforms: Vec::new(),
        left_out: 0,
        missing: Vec::new(),
        descriptors: 0,
    };
    walk.document(Entry::of_root(root.clone()), Some(document.bytes), 0)
        .await?;
    let documents = walk.documents.iter().map(|(blob, _)| blob.clone()).collect();
    Ok(Resolved {
        draft: DraftImage {
            names: reference.names(),
            target: root,
            platform: None,
            documents,
            layers: walk.layers,
            images: Vec::new(),
        },
        reference: reference.clone(),
        repository: reference.repository.clone(),
        documents: walk.documents,
        platforms: walk.platforms,
        left_out: walk.left_out,
        missing: walk.missing,
    })
}

/// Returns the descriptor of the registry's answer.
fn root(name: &str, document: &Document, pinned: Option<&Digest>) -> Result<Descriptor, Error> {
    let value = parse(name, &document.bytes)?;
    let own = value["mediaType"].as_str().unwrap_or_default();
    if is_schema_1(&value)
        || document
            .content_type
            .starts_with("application/vnd.docker.distribution.manifest.v1")
    {
        return Err(Error::Document {
            what: name.to_owned(),
            reason: "it is a Docker schema 1 manifest, which containerd does not run: push it again with a current tool"
                .to_owned(),
        });
    }
    let known = [OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST];
    let by_members = if value["manifests"].is_array() {
        OCI_INDEX
    } else {
        OCI_MANIFEST
    };
    let media_type = [own, document.content_type.as_str(), by_members]
        .into_iter()
        .find(|media_type| known.contains(media_type))
        .expect("the last media type is known");
    let digest = match pinned {
        // The digest uses the algorithm of the reference.
        Some(pinned) if digest::fits(&document.bytes, pinned) => pinned.clone(),
        _ => digest::sha256(&document.bytes),
    };
    Ok(Descriptor::new(
        MediaType::from(media_type),
        document.bytes.len() as u64,
        digest,
    ))
}

fn is_schema_1(value: &Value) -> bool {
    !value["fsLayers"].is_null() || value["schemaVersion"] == 1
}

fn is_index(media_type: &str) -> bool {
    media_type == OCI_INDEX || media_type == DOCKER_INDEX
}

fn is_manifest(media_type: &str) -> bool {
    media_type == OCI_MANIFEST || media_type == DOCKER_MANIFEST
}

fn parse(what: &str, bytes: &[u8]) -> Result<Value, Error> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| Error::Document {
        what: what.to_owned(),
        reason: format!("the manifest is not valid: {error}"),
    })?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(Error::Document {
            what: what.to_owned(),
            reason: "the manifest is not a JSON object".to_owned(),
        })
    }
}

/// An entry of an index.
#[derive(Clone, Debug)]
struct Entry {
    descriptor: Descriptor,
    platform: Option<Platform>,
    /// Digest of the manifest that this attestation is about.
    refers_to: Option<String>,
}

impl Entry {
    fn of_root(descriptor: Descriptor) -> Self {
        Self {
            descriptor,
            platform: None,
            refers_to: None,
        }
    }

    fn digest(&self) -> &Digest {
        self.descriptor.digest()
    }

    fn media_type(&self) -> &str {
        self.descriptor.media_type().as_ref()
    }
}

struct Walk<'a> {
    client: &'a Client,
    cache: Option<&'a Cache>,
    name: &'a str,
    repository: &'a str,
    wanted: &'a Wanted,
    documents: Vec<(BlobRef, Vec<u8>)>,
    layers: Vec<BlobRef>,
    platforms: Vec<String>,
    left_out: usize,
    missing: Vec<String>,
    descriptors: usize,
}

/// Returns the requested platforms, for messages.
fn asked(wanted: &Wanted) -> Vec<String> {
    match wanted {
        Wanted::All { .. } => vec!["any platform".to_owned()],
        Wanted::Platforms(_) => wanted.asked(),
    }
}

impl Resolved {
    /// Returns its documents (indexes, manifests and configs) with their bytes.
    pub fn documents(&self) -> impl Iterator<Item = (&BlobRef, &[u8])> {
        self.documents
            .iter()
            .map(|(blob, bytes)| (blob, bytes.as_slice()))
    }
}

impl Walk<'_> {
    /// Reads a document and everything that it refers to. `bytes` has the root, which was fetched
    /// by name.
    async fn document(&mut self, entry: Entry, bytes: Option<Vec<u8>>, depth: usize) -> Result<(), Error> {
        let digest = entry.digest().clone();
        if self.documents.iter().any(|(blob, _)| blob.digest == digest) {
            return Ok(());
        }
        let bytes = match bytes {
            Some(bytes) => bytes,
            None => self.fetch(&entry.descriptor).await?,
        };
        let value = parse(&format!("{}: {digest}", self.name), &bytes)?;
        self.check(&entry, &value)?;
        self.documents.push((BlobRef::of(&entry.descriptor), bytes));
        if is_index(entry.media_type()) {
            Box::pin(self.index(&digest, &value, depth)).await
        } else {
            self.manifest(&entry, &value).await
        }
    }

    async fn fetch(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let blob = BlobRef::of(descriptor);
        if let Some(bytes) = self.cached(&blob).await {
            return Ok(bytes);
        }
        let digest = descriptor.digest();
        let document = self.client.manifest(self.repository, digest.as_ref()).await?;
        if document.bytes.len() as u64 != descriptor.size() || !digest::fits(&document.bytes, digest) {
            return Err(unusable(
                self.name,
                digest,
                "its content does not match the digest and size",
            ));
        }
        self.keep(&blob, &document.bytes).await;
        Ok(document.bytes)
    }

    async fn config(&self, blob: &BlobRef) -> Result<Vec<u8>, Error> {
        if let Some(bytes) = self.cached(blob).await {
            return Ok(bytes);
        }
        let bytes = self.client.document_blob(self.repository, blob).await?;
        self.keep(blob, &bytes).await;
        Ok(bytes)
    }

    async fn cached(&self, blob: &BlobRef) -> Option<Vec<u8>> {
        let (cache, blob) = (self.cache?.clone(), blob.clone());
        let read = tokio::task::spawn_blocking(move || cache.read(&blob)).await;
        read.ok().flatten()
    }

    /// Stores a document in the cache. If the cache cannot be written, only the next run takes
    /// longer.
    async fn keep(&self, blob: &BlobRef, bytes: &[u8]) {
        let Some(cache) = self.cache.cloned() else { return };
        let (blob, bytes) = (blob.clone(), bytes.to_owned());
        let kept = tokio::task::spawn_blocking(move || cache.put(&blob, &bytes)).await;
        if let Ok(Err(error)) = kept {
            tracing::warn!(%error, "cannot keep a document in the cache");
        }
    }

    /// Refuses a document whose descriptor and content have different types. Two readers would see
    /// two images (CVE-2021-41190).
    fn check(&self, entry: &Entry, value: &Value) -> Result<(), Error> {
        let has = |member: &str| !value[member].is_null();
        let own = value["mediaType"].as_str().unwrap_or_default();
        let contradiction = if is_schema_1(value) {
            Some("it is a Docker schema 1 manifest, which is not supported")
        } else if is_index(entry.media_type()) {
            (has("config") || has("layers") || is_manifest(own))
                .then_some("its descriptor says index, but it is a manifest")
        } else {
            (has("manifests") || is_index(own)).then_some("its descriptor says manifest, but it is an index")
        };
        contradiction.map_or(Ok(()), |reason| Err(unusable(self.name, entry.digest(), reason)))
    }

    async fn index(&mut self, digest: &Digest, value: &Value, depth: usize) -> Result<(), Error> {
        if depth >= DEEPEST {
            return Err(unusable(
                self.name,
                digest,
                &format!("it is nested deeper than {DEEPEST} levels"),
            ));
        }
        let entries = self.entries(digest, &value["manifests"])?;
        let taken = self.choose(&entries);
        let is_wanted = |entry: &Entry| taken.contains(entry.digest()) || is_about(entry, &taken);
        if depth == 0 {
            if taken.is_empty() {
                return Err(self.no_platform(&offered(&entries)));
            }
            self.note_missing(&entries);
        }
        for entry in entries {
            if !is_wanted(&entry) {
                self.left_out += 1;
                continue;
            }
            match entry.media_type() {
                kind if is_index(kind) || is_manifest(kind) => {
                    Box::pin(self.document(entry, None, depth + 1)).await?;
                }
                // No reader follows this type, so it is a blob like any other.
                _ => self.layers.push(BlobRef::of(&entry.descriptor)),
            }
        }
        Ok(())
    }

    fn entries(&mut self, digest: &Digest, manifests: &Value) -> Result<Vec<Entry>, Error> {
        let entries: Result<Vec<_>, _> = manifests.as_array().into_iter().flatten().map(entry).collect();
        let entries = entries.map_err(|reason| unusable(self.name, digest, &reason))?;
        self.count(digest, entries.len())?;
        Ok(entries)
    }

    fn count(&mut self, digest: &Digest, more: usize) -> Result<(), Error> {
        self.descriptors += more;
        if self.descriptors > MOST_DESCRIPTORS {
            let reason = format!("it has more than {MOST_DESCRIPTORS} descriptors");
            return Err(unusable(self.name, digest, &reason));
        }
        Ok(())
    }

    /// Returns the entries that containerd would use, for each matcher. containerd looks only at
    /// the platform. It also takes a first entry that is no image, and the check of the bundle
    /// reports that.
    fn choose(&self, entries: &[Entry]) -> HashSet<Digest> {
        match self.wanted {
            Wanted::All { .. } => entries.iter().map(|entry| entry.digest().clone()).collect(),
            Wanted::Platforms(matchers) => {
                let best = matchers.iter().filter_map(|matcher| best(entries, matcher));
                best.map(|entry| entry.digest().clone()).collect()
            }
        }
    }

    /// Records the requested platforms for which no entry exists under any rule.
    fn note_missing(&mut self, entries: &[Entry]) {
        let Wanted::Platforms(matchers) = self.wanted else {
            return;
        };
        let served = matchers.iter().filter(|matcher| best(entries, matcher).is_some());
        let served: HashSet<String> = served.filter_map(Matcher::asked).collect();
        let asked = asked(self.wanted);
        self.missing
            .extend(asked.into_iter().filter(|platform| !served.contains(platform)));
    }

    fn no_platform(&self, offered: &[String]) -> Error {
        Error::Platform {
            name: self.name.to_owned(),
            wanted: asked(self.wanted).join(" or "),
            offered: if offered.is_empty() {
                "no platform".to_owned()
            } else {
                offered.join(", ")
            },
        }
    }

    async fn manifest(&mut self, entry: &Entry, value: &Value) -> Result<(), Error> {
        let digest = entry.digest();
        let bad = |reason: String| unusable(self.name, digest, &reason);
        if value["config"].is_null() {
            return Err(bad("it names no config".to_owned()));
        }
        let config = self::entry(&value["config"]).map_err(bad)?;
        let layers = value["layers"].as_array().into_iter().flatten().map(self::entry);
        let layers = layers.collect::<Result<Vec<_>, _>>().map_err(bad)?;
        self.count(digest, layers.len() + 1)?;
        let blob = BlobRef::of(&config.descriptor);
        let bytes = self.config(&blob).await?;
        if entry.refers_to.is_none() {
            self.platforms
                .extend(platform_text(entry.platform.as_ref(), &bytes));
        }
        self.check_platform(entry, &config, &bytes)?;
        self.documents.push((blob, bytes));
        self.layers
            .extend(layers.iter().map(|layer| BlobRef::of(&layer.descriptor)));
        Ok(())
    }
}

impl Walk<'_> {
    /// Checks the platform of an image without an index, which is in its config: operating system,
    /// architecture and variant. containerd would run such an image on any platform.
    fn check_platform(&self, entry: &Entry, config: &Entry, bytes: &[u8]) -> Result<(), Error> {
        let Wanted::Platforms(matchers) = self.wanted else {
            return Ok(());
        };
        let is_image = config.media_type() == "application/vnd.oci.image.config.v1+json"
            || config.media_type() == "application/vnd.docker.container.image.v1+json";
        let stands_alone = self.documents.len() == 1 && entry.platform.is_none();
        match serde_json::from_slice::<Platform>(bytes) {
            Ok(found) if is_image && stands_alone && !found.architecture.is_empty() => {
                if matchers.iter().any(|matcher| matcher.accepts(&found)) {
                    Ok(())
                } else {
                    Err(self.no_platform(&[found.to_string()]))
                }
            }
            _ => Ok(()),
        }
    }
}

fn offered(entries: &[Entry]) -> Vec<String> {
    let images = entries.iter().filter(|entry| entry.refers_to.is_none());
    let mut offered: Vec<String> = images
        .filter_map(|entry| entry.platform.as_ref().map(ToString::to_string))
        .collect();
    offered.sort();
    offered.dedup();
    offered
}

/// Returns the entry that containerd would use.
fn best<'e>(entries: &'e [Entry], matcher: &Matcher) -> Option<&'e Entry> {
    matcher.best(entries, |entry: &Entry| entry.platform.as_ref())
}

fn is_about(entry: &Entry, taken: &HashSet<Digest>) -> bool {
    let subject = entry.refers_to.as_deref();
    subject.is_some_and(|subject| taken.iter().any(|digest| digest.as_ref() == subject))
}

/// Returns the platform of a manifest, from its descriptor or else from its config.
fn platform_text(platform: Option<&Platform>, config: &[u8]) -> Option<String> {
    if let Some(platform) = platform {
        return Some(platform.to_string());
    }
    let config: Platform = serde_json::from_slice(config).ok()?;
    (!config.os.is_empty() && !config.architecture.is_empty()).then(|| config.to_string())
}

/// Parses a descriptor.
fn entry(value: &Value) -> Result<Entry, String> {
    let digest = digest::parse(value["digest"].as_str().unwrap_or_default())?;
    let size = value["size"]
        .as_u64()
        .ok_or_else(|| format!("the descriptor of {digest} has no size"))?;
    let media_type = value["mediaType"].as_str().unwrap_or_default();
    if media_type.is_empty() {
        return Err(format!("the descriptor of {digest} has no media type"));
    }
    let platform = match &value["platform"] {
        Value::Null => None,
        platform => Some(
            serde_json::from_value(platform.clone())
                .map_err(|error| format!("the platform of {digest} is not valid: {error}"))?,
        ),
    };
    let annotations: HashMap<String, Value> =
        serde_json::from_value(value["annotations"].clone()).unwrap_or_default();
    Ok(Entry {
        descriptor: Descriptor::new(MediaType::from(media_type), size, digest),
        platform,
        refers_to: REFERS_TO
            .iter()
            .find_map(|mark| annotations.get(*mark)?.as_str())
            .map(ToOwned::to_owned),
    })
}

fn unusable(name: &str, digest: &Digest, reason: &str) -> Error {
    Error::Document {
        what: format!("{name}: {digest}"),
        reason: reason.to_owned(),
    }
}
