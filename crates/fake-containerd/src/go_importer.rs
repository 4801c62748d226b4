//! Another importer beside ours, for tests: containerd's Go import as k0s and k3s call it, spoken over gRPC.
//!
//! It does what that import was seen and read to do, with all its habits. Every file of the archive becomes a blob under
//! what its bytes hash to, in the order of the archive, for whatever platform, through an ingest that is called after the
//! path (`tar-blobs/sha256/…`) and says its size but not its digest, so nothing that is there is ever skipped. Then the
//! index is walked for this node's platform: parents get their gc labels, what is missing is passed over. Then the names
//! of the index become records (their target updated, or created without labels), and only then, outside the lease, the
//! caller's labels are set. Archives of OCI image layouts only.
//!
//! The stand-in does not judge its manners: a header on each call tells it whose they are.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use jiff::{SignedDuration, Timestamp};
use prost_types::FieldMask;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use crate::digest::sha256;
use crate::service::FOREIGN_HEADER;
use crate::wire;

/// The label in which k0s keeps the bundles of a record: a JSON object of paths and their times of change.
pub const K0S_SOURCES: &str = "io.k0sproject.ocibundle-paths";
/// The label by which k3s knows the records that it pinned.
pub const K3S_PINNED: &str = "io.cattle.k3s.pinned";
/// CRI's pin.
const PINNED: &str = "io.cri-containerd.pinned";

/// Bytes sent between two steps. The original sends more at once; small pieces let tests stop in the middle of small blobs.
const PIECE: usize = 32 << 10;
/// Pauses between tries to open a locked ingest: doubled from the first to the longest.
const LOCK_PAUSE: (Duration, Duration) = (Duration::from_millis(16), Duration::from_secs(2));

/// Where the importer is, just before it does something. Whoever is asked may keep it waiting, or let it die there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is about to send a piece of a file of the archive.
    Piece {
        /// The file, by its path in the archive.
        path: String,
        /// Bytes of it that are sent.
        offset: u64,
    },
    /// It is about to commit a file.
    Commit {
        /// The file, by its path in the archive.
        path: String,
    },
    /// It is about to write an image record.
    Record {
        /// The record's name.
        name: String,
    },
    /// It is about to label an image record.
    Label {
        /// The record's name.
        name: String,
    },
}

/// Why an import came to nothing.
#[derive(Debug)]
pub enum ImportFailed {
    /// It was let die: its lease, its ingests and what it did so far stay behind.
    Died,
    /// The archive or containerd was not to its liking; its lease was given back.
    Refused(String),
}

impl From<Status> for ImportFailed {
    fn from(status: Status) -> Self {
        ImportFailed::Refused(status.to_string())
    }
}

impl From<std::io::Error> for ImportFailed {
    fn from(error: std::io::Error) -> Self {
        ImportFailed::Refused(error.to_string())
    }
}

fn refused(why: impl Into<String>) -> ImportFailed {
    ImportFailed::Refused(why.into())
}

/// An importer, bound to one namespace of a containerd. It remembers nothing but what is in containerd.
#[derive(Clone, Debug)]
pub struct GoImporter {
    channel: Channel,
    namespace: String,
}

impl GoImporter {
    /// Connects.
    ///
    /// # Panics
    /// If nobody listens on the socket.
    pub async fn connect(socket: &Path, namespace: &str) -> GoImporter {
        GoImporter {
            channel: containerd_client::connect(socket)
                .await
                .expect("containerd is there"),
            namespace: namespace.to_owned(),
        }
    }

    /// Imports a bundle as k0s does, and labels its records with the bundle's path and time of change.
    ///
    /// # Errors
    /// As the original; and [`ImportFailed::Died`] where `gate` breaks.
    pub async fn import_as_k0s(
        &self,
        bundle: &Path,
        mut gate: impl AsyncFnMut(Step) -> ControlFlow<()>,
    ) -> Result<Vec<String>, ImportFailed> {
        let changed = fs::metadata(bundle)?.modified()?;
        let images = self.import(bundle, &mut gate).await?;
        for image in &images {
            pass(
                &mut gate,
                Step::Label {
                    name: image.name.clone(),
                },
            )
            .await?;
            let mut sources = present(sources(&image.labels));
            sources.insert(bundle.to_owned(), changed);
            let labels = [(PINNED, "pinned".to_owned()), (K0S_SOURCES, json(&sources))];
            self.update(relabelled(image, labels), &[PINNED, K0S_SOURCES].map(label_path))
                .await?;
        }
        Ok(images.into_iter().map(|image| image.name).collect())
    }

    /// What k0s does after each look into its folder: records none of whose bundles is as it was lose pin and sources, in an
    /// update without a mask that replaces the whole record by what was listed; of the others the stale sources go.
    ///
    /// `gate` is asked between the listing and each such record.
    ///
    /// # Errors
    /// As the original; and [`ImportFailed::Died`] where `gate` breaks.
    pub async fn unpin_as_k0s(
        &self,
        mut gate: impl AsyncFnMut(Step) -> ControlFlow<()>,
    ) -> Result<(), ImportFailed> {
        for mut image in self.images().await? {
            let sources = sources(&image.labels);
            if image.labels.get(PINNED).is_none_or(|value| value != "pinned") || sources.is_empty() {
                continue;
            }
            pass(
                &mut gate,
                Step::Label {
                    name: image.name.clone(),
                },
            )
            .await?;
            let left = present(sources);
            if left.is_empty() {
                image.labels.remove(PINNED);
                image.labels.remove(K0S_SOURCES);
                self.update(image, &[]).await?;
            } else {
                let labels = [(K0S_SOURCES, json(&left))];
                self.update(relabelled(&image, labels), &[label_path(K0S_SOURCES)])
                    .await?;
            }
        }
        Ok(())
    }

    /// What k3s does first at its start: every record that it pinned loses its pin and k3s's mark, whoever else wants it.
    ///
    /// # Errors
    /// What containerd says.
    pub async fn clear_as_k3s(&self) -> Result<(), ImportFailed> {
        for mut image in self.images().await? {
            if image.labels.remove(K3S_PINNED).is_some() {
                image.labels.remove(PINNED);
                self.update(image, &["labels".to_owned()]).await?;
            }
        }
        Ok(())
    }

    /// Imports a bundle as k3s does: labels as a whole map, and a `name@digest` that is deleted and made anew where it exists.
    ///
    /// # Errors
    /// As the original; and [`ImportFailed::Died`] where `gate` breaks.
    pub async fn import_as_k3s(
        &self,
        bundle: &Path,
        mut gate: impl AsyncFnMut(Step) -> ControlFlow<()>,
    ) -> Result<Vec<String>, ImportFailed> {
        let images = self.import(bundle, &mut gate).await?;
        for image in &images {
            pass(
                &mut gate,
                Step::Label {
                    name: image.name.clone(),
                },
            )
            .await?;
            let pins = [(PINNED, "pinned".to_owned()), (K3S_PINNED, "pinned".to_owned())];
            let pinned = relabelled(image, pins);
            self.update(pinned.clone(), &["labels".to_owned()]).await?;
            let repository = image.name.rsplit_once(':').map_or(&*image.name, |(name, _)| name);
            let digest = &target(image)?.digest;
            let by_digest = wire::Image {
                name: format!("{repository}@{digest}"),
                ..pinned
            };
            if self.create(by_digest.clone()).await?.is_none() {
                self.delete(&by_digest.name).await?;
                self.create(by_digest).await?;
            }
        }
        Ok(images.into_iter().map(|image| image.name).collect())
    }

    /// Takes away what importers that died have left: their leases, and with them their ingests.
    ///
    /// # Errors
    /// What containerd says.
    pub async fn clear_up(&self) -> Result<(), ImportFailed> {
        let request = self.request(wire::ListRequest::default(), None);
        let leases = self.leases().list(request).await?.into_inner().leases;
        for lease in leases.into_iter().filter(|lease| lease.id.starts_with(LEASE)) {
            self.give_back(&lease.id).await?;
        }
        Ok(())
    }
}

/// What the ids of its leases begin with. The original's are random.
const LEASE: &str = "go-importer-";

/// The import that k0s, k3s and `ctr` share.
impl GoImporter {
    async fn import(
        &self,
        bundle: &Path,
        gate: &mut impl AsyncFnMut(Step) -> ControlFlow<()>,
    ) -> Result<Vec<wire::Image>, ImportFailed> {
        let lease = format!("{LEASE}{}", Timestamp::now().as_nanosecond());
        let expires = Timestamp::now() + SignedDuration::from_hours(24);
        let request = wire::CreateRequest {
            id: lease.clone(),
            labels: HashMap::from([("containerd.io/gc.expire".to_owned(), expires.to_string())]),
        };
        self.leases().create(self.request(request, None)).await?;
        let images = self.import_under(&lease, bundle, gate).await;
        if !matches!(images, Err(ImportFailed::Died)) {
            self.give_back(&lease).await?;
        }
        images
    }

    async fn import_under(
        &self,
        lease: &str,
        bundle: &Path,
        gate: &mut impl AsyncFnMut(Step) -> ControlFlow<()>,
    ) -> Result<Vec<wire::Image>, ImportFailed> {
        let mut files = BTreeMap::new();
        let mut archive = tar::Archive::new(File::open(bundle)?);
        for entry in archive.entries()? {
            let mut entry = entry?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let path = entry
                .path()?
                .to_string_lossy()
                .trim_start_matches("./")
                .to_owned();
            let (mut bytes, size) = (Vec::new(), entry.size());
            entry.read_to_end(&mut bytes)?;
            if bytes.len() as u64 != size {
                return Err(refused(format!("failed to ingest {path:?}: unexpected EOF")));
            }
            // These two it parses and does not store.
            if path != "oci-layout" && path != "manifest.json" {
                self.store(lease, &path, &bytes, gate).await?;
            }
            files.insert(path, bytes);
        }
        let index = files
            .get("index.json")
            .filter(|_| files.contains_key("oci-layout"));
        let index = index.ok_or_else(|| refused("unrecognized image format"))?;
        let index: Value = serde_json::from_slice(index).map_err(|error| refused(error.to_string()))?;
        let by_digest: BTreeMap<String, &Vec<u8>> =
            files.values().map(|bytes| (sha256(bytes), bytes)).collect();
        let root = sha256(&files["index.json"]);
        self.label_children(&root, &index, &by_digest).await?;
        let mut images = Vec::new();
        for manifest in members(&index, "manifests") {
            if let Some(name) = name_of(manifest) {
                pass(
                    gate,
                    Step::Record {
                        name: name.to_owned(),
                    },
                )
                .await?;
                images.push(self.record(name, manifest).await?);
            }
        }
        Ok(images)
    }

    /// Writes one file of the archive. What a predecessor left under the same ref is continued, unproven.
    async fn store(
        &self,
        lease: &str,
        path: &str,
        bytes: &[u8],
        gate: &mut impl AsyncFnMut(Step) -> ControlFlow<()>,
    ) -> Result<(), ImportFailed> {
        let opening = wire::WriteContentRequest {
            action: wire::WriteAction::Stat.into(),
            r#ref: format!("tar-{path}"),
            total: signed(bytes.len()),
            ..Default::default()
        };
        let (requests, mut answers, mut offset) = self.open(lease, &opening).await?;
        while offset < bytes.len() {
            let step = Step::Piece {
                path: path.to_owned(),
                offset: offset as u64,
            };
            pass(gate, step).await?;
            let end = bytes.len().min(offset + PIECE);
            let message = wire::WriteContentRequest {
                action: wire::WriteAction::Write.into(),
                offset: signed(offset),
                data: bytes[offset..end].to_vec(),
                ..Default::default()
            };
            let _ = requests.send(message).await;
            answers.message().await?;
            offset = end;
        }
        pass(
            gate,
            Step::Commit {
                path: path.to_owned(),
            },
        )
        .await?;
        let message = wire::WriteContentRequest {
            action: wire::WriteAction::Commit.into(),
            offset: signed(offset),
            total: signed(bytes.len()),
            ..Default::default()
        };
        let _ = requests.send(message).await;
        match answers.message().await {
            Err(status) if status.code() != Code::AlreadyExists => Err(status.into()),
            _ => Ok(()),
        }
    }

    async fn open(
        &self,
        lease: &str,
        opening: &wire::WriteContentRequest,
    ) -> Result<
        (
            mpsc::Sender<wire::WriteContentRequest>,
            Streaming<wire::WriteContentResponse>,
            usize,
        ),
        ImportFailed,
    > {
        let mut pause = LOCK_PAUSE.0;
        loop {
            let (requests, queue) = mpsc::channel(4);
            requests.send(opening.clone()).await.expect("there is room");
            let request = self.request(ReceiverStream::new(queue), Some(lease));
            let opened = async {
                let mut answers = self.content().write(request).await?.into_inner();
                let first = answers.message().await?;
                Ok((answers, first))
            };
            match opened.await {
                Ok((answers, first)) => {
                    let offset = first.map_or(0, |answer| answer.offset);
                    return Ok((requests, answers, usize::try_from(offset).unwrap_or(0)));
                }
                Err(status) if Status::code(&status) == Code::Unavailable => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LOCK_PAUSE.1);
                }
                Err(status) => return Err(status.into()),
            }
        }
    }

    /// Labels a document for its children of this node's platform, and those in turn. What is missing is passed over.
    async fn label_children(
        &self,
        digest: &str,
        document: &Value,
        blobs: &BTreeMap<String, &Vec<u8>>,
    ) -> Result<(), ImportFailed> {
        let mut labels = HashMap::new();
        for (kind, at, child) in children(document) {
            labels.insert(
                gc_label(kind, at),
                child["digest"].as_str().unwrap_or_default().to_owned(),
            );
        }
        let paths = labels.keys().map(|key| label_path(key)).collect();
        let info = wire::Info {
            digest: digest.to_owned(),
            labels,
            ..Default::default()
        };
        let request = wire::UpdateRequest {
            info: Some(info),
            update_mask: Some(FieldMask { paths }),
        };
        self.content().update(self.request(request, None)).await?;
        for (_, _, child) in children(document).into_iter().filter(|(kind, ..)| *kind == "m") {
            let child = child["digest"].as_str().unwrap_or_default();
            let document = blobs
                .get(child)
                .and_then(|bytes| serde_json::from_slice(bytes).ok());
            if let Some(document) = document {
                Box::pin(self.label_children(child, &document, blobs)).await?;
            }
        }
        Ok(())
    }

    /// Moves a record's target, or makes a record without labels.
    async fn record(&self, name: &str, manifest: &Value) -> Result<wire::Image, ImportFailed> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let annotations = manifest["annotations"].as_object().into_iter().flatten();
        let target = wire::Descriptor {
            media_type: text(&manifest["mediaType"]),
            digest: text(&manifest["digest"]),
            size: manifest["size"].as_i64().unwrap_or_default(),
            annotations: annotations
                .map(|(key, value)| (key.clone(), text(value)))
                .collect(),
        };
        let image = wire::Image {
            name: name.to_owned(),
            target: Some(target),
            ..Default::default()
        };
        match self.update(image.clone(), &["target".to_owned()]).await {
            Ok(image) => Ok(image),
            Err(status) if status.code() == Code::NotFound => {
                let created = self.create(image).await?;
                created.ok_or_else(|| refused(format!("image {name:?}: already exists")))
            }
            Err(status) => Err(status.into()),
        }
    }
}

/// Calls.
impl GoImporter {
    fn request<T>(&self, message: T, lease: Option<&str>) -> Request<T> {
        let mut request = Request::new(message);
        let mut header = |key: &'static str, value: &str| {
            let value = AsciiMetadataValue::try_from(value).expect("plain text");
            request.metadata_mut().insert(key, value);
        };
        header("containerd-namespace", &self.namespace);
        header(FOREIGN_HEADER, "true");
        if let Some(lease) = lease {
            header("containerd-lease", lease);
        }
        request
    }

    fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone())
    }

    fn leases(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel.clone())
    }

    fn records(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone())
    }

    async fn images(&self) -> Result<Vec<wire::Image>, Status> {
        let request = self.request(wire::ListImagesRequest::default(), None);
        Ok(self.records().list(request).await?.into_inner().images)
    }

    /// Updates a record; without paths there is no mask, and everything is replaced.
    async fn update(&self, image: wire::Image, paths: &[String]) -> Result<wire::Image, Status> {
        let paths = paths.to_vec();
        let request = wire::UpdateImageRequest {
            image: Some(image),
            update_mask: (!paths.is_empty()).then_some(FieldMask { paths }),
            ..Default::default()
        };
        let answer = self.records().update(self.request(request, None)).await?;
        Ok(answer.into_inner().image.unwrap_or_default())
    }

    /// Makes a record; `None` where there is one.
    async fn create(&self, image: wire::Image) -> Result<Option<wire::Image>, Status> {
        let request = wire::CreateImageRequest {
            image: Some(image),
            ..Default::default()
        };
        match self.records().create(self.request(request, None)).await {
            Ok(answer) => Ok(answer.into_inner().image),
            Err(status) if status.code() == Code::AlreadyExists => Ok(None),
            Err(status) => Err(status),
        }
    }

    async fn delete(&self, name: &str) -> Result<(), Status> {
        let request = wire::DeleteImageRequest {
            name: name.to_owned(),
            ..Default::default()
        };
        self.records().delete(self.request(request, None)).await.map(drop)
    }

    async fn give_back(&self, lease: &str) -> Result<(), Status> {
        let request = wire::DeleteRequest {
            id: lease.to_owned(),
            sync: false,
        };
        self.leases().delete(self.request(request, None)).await.map(drop)
    }
}

async fn pass(gate: &mut impl AsyncFnMut(Step) -> ControlFlow<()>, step: Step) -> Result<(), ImportFailed> {
    match gate(step).await {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ImportFailed::Died),
    }
}

fn members<'v>(document: &'v Value, key: &str) -> impl Iterator<Item = &'v Value> {
    document[key].as_array().into_iter().flatten()
}

/// The children that are labelled: the kind of the label, its number, the descriptor.
fn children(document: &Value) -> Vec<(&'static str, usize, &Value)> {
    let manifests = members(document, "manifests").filter(|child| runs_here(child));
    let config = document.get("config").map(|config| ("config", 0, config));
    manifests
        .enumerate()
        .map(|(at, child)| ("m", at, child))
        .chain(config)
        .chain(
            members(document, "layers")
                .enumerate()
                .map(|(at, child)| ("l", at, child)),
        )
        .collect()
}

fn gc_label(kind: &str, at: usize) -> String {
    match kind {
        "config" => "containerd.io/gc.ref.content.config".to_owned(),
        kind => format!("containerd.io/gc.ref.content.{kind}.{at}"),
    }
}

/// The original's rule is looser: on arm64 it takes arm too, on amd64 386.
fn runs_here(descriptor: &Value) -> bool {
    let here = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let architecture = descriptor["platform"]["architecture"].as_str();
    architecture.is_none_or(|architecture| architecture == here)
}

fn name_of(descriptor: &Value) -> Option<&str> {
    let annotation = |key: &str| descriptor["annotations"][key].as_str();
    annotation("io.containerd.image.name").or_else(|| annotation("org.opencontainers.image.ref.name"))
}

fn target(image: &wire::Image) -> Result<&wire::Descriptor, ImportFailed> {
    image
        .target
        .as_ref()
        .ok_or_else(|| refused("a record without a target"))
}

fn relabelled<'l>(image: &wire::Image, labels: impl IntoIterator<Item = (&'l str, String)>) -> wire::Image {
    let mut image = image.clone();
    image
        .labels
        .extend(labels.into_iter().map(|(key, value)| (key.to_owned(), value)));
    image
}

fn label_path(key: &str) -> String {
    format!("labels.{key}")
}

fn sources(labels: &HashMap<String, String>) -> BTreeMap<PathBuf, SystemTime> {
    let Some(text) = labels.get(K0S_SOURCES) else {
        return BTreeMap::new();
    };
    let found: BTreeMap<PathBuf, Timestamp> = serde_json::from_str(text).expect("what k0s wrote");
    found
        .into_iter()
        .map(|(path, time)| (path, time.into()))
        .collect()
}

/// The bundles that are there, changed when they were.
fn present(mut sources: BTreeMap<PathBuf, SystemTime>) -> BTreeMap<PathBuf, SystemTime> {
    sources.retain(|path, time| {
        fs::metadata(path)
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|found| found == *time)
    });
    sources
}

fn json(sources: &BTreeMap<PathBuf, SystemTime>) -> String {
    let sources: BTreeMap<&PathBuf, String> = sources
        .iter()
        .map(|(path, time)| {
            let time = Timestamp::try_from(*time).expect("a time of our days");
            // In the node's zone, as Go writes it.
            (path, time.display_with_offset(jiff::tz::offset(3)).to_string())
        })
        .collect();
    serde_json::to_string(&sources).expect("paths are text")
}

fn signed(length: usize) -> i64 {
    i64::try_from(length).expect("tests have small bundles")
}
