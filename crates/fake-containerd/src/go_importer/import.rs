//! The import that k0s, k3s and `ctr` share: an archive's files become blobs, and its index becomes
//! labels and records.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read as _;
use std::ops::ControlFlow;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tonic::Code;

use super::calls::{Calls, Opened};
use super::{ImportFailed, LEASE, Step, pass, refused};
use crate::digest::sha256;
use crate::wire;

/// Bytes sent between two steps. The original sends more at once. With small pieces, tests can stop
/// in the middle of small blobs.
const PIECE: usize = 32 << 10;

/// Imports a bundle under its own lease. Returns the records that it wrote.
pub(super) async fn import(
    calls: &Calls,
    bundle: &Path,
    gate: &mut impl AsyncFnMut(Step) -> ControlFlow<()>,
) -> Result<Vec<wire::Image>, ImportFailed> {
    let lease = format!("{LEASE}{}", Timestamp::now().as_nanosecond());
    let expires = Timestamp::now() + SignedDuration::from_hours(24);
    let request = wire::CreateRequest {
        id: lease.clone(),
        labels: HashMap::from([("containerd.io/gc.expire".to_owned(), expires.to_string())]),
    };
    calls.lease(request).await?;
    let import = Import { calls, lease: &lease };
    let images = import.run(bundle, gate).await;
    if !matches!(images, Err(ImportFailed::Died)) {
        calls.give_back(&lease).await?;
    }
    images
}

/// One import, under its lease.
struct Import<'a> {
    calls: &'a Calls,
    lease: &'a str,
}

impl Import<'_> {
    async fn run(
        &self,
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
            // The original parses these two files and does not store them.
            if path != "oci-layout" && path != "manifest.json" {
                self.store(&path, &bytes, gate).await?;
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

    /// Writes one file of the archive. It continues an existing ingest under the same ref without
    /// checking its bytes.
    async fn store(
        &self,
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
        let Opened {
            requests,
            mut answers,
            mut offset,
        } = self.calls.open(self.lease, &opening).await?;
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

    /// Labels a document with its children of this node's platform, and the children likewise.
    /// Missing documents are skipped.
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
        self.calls
            .label(wire::Info {
                digest: digest.to_owned(),
                labels,
                ..Default::default()
            })
            .await?;
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

    /// Moves a record's target, or creates a record without labels.
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
        match self.calls.update(image.clone(), &["target".to_owned()]).await {
            Ok(image) => Ok(image),
            Err(status) if status.code() == Code::NotFound => {
                let created = self.calls.create(image).await?;
                created.ok_or_else(|| refused(format!("image {name:?}: already exists")))
            }
            Err(status) => Err(status.into()),
        }
    }
}

fn members<'v>(document: &'v Value, key: &str) -> impl Iterator<Item = &'v Value> {
    document[key].as_array().into_iter().flatten()
}

/// Returns the children that get a label: the kind of the label, its number, the descriptor.
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

/// The original's rule is looser: on arm64 it also accepts arm, and on amd64 it accepts 386.
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

fn signed(length: usize) -> i64 {
    i64::try_from(length).expect("tests have small bundles")
}
