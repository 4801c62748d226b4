//! The part of containerd's CRI plugin that matters to an importer. It adopts image records of
//! namespace `k8s.io`, keeps their facts in memory, and answers `ImageStatus` from there.
//!
//! Records are adopted within the call that wrote them. The real plugin takes some milliseconds.

use std::collections::BTreeMap;

use serde_json::Value;
use tonic::{Request, Response, Status};

use crate::images;
use crate::service::{Service, missing};
use crate::state::{Image, Labels, State};
use crate::wire::generated::{image_service_server::ImageService, runtime_service_server::RuntimeService};
use crate::wire::{Descriptor, cri};

/// The only namespace that CRI reads.
pub(crate) const NAMESPACE: &str = "k8s.io";
/// The label of records that CRI has adopted.
pub(crate) const MANAGED: &str = "io.cri-containerd.image";
const PINNED: &str = "io.cri-containerd.pinned";
/// Most levels of nested indexes that are followed.
const DEPTH: usize = 8;

/// The plugin's memory.
#[derive(Default)]
pub(crate) struct Cri {
    /// By name of the record.
    known: BTreeMap<String, Known>,
    /// Records whose manifest or config was unreadable. They are tried again later. The real plugin
    /// does that with back-off.
    pending: Vec<String>,
    /// The content of a registry: targets by normalised name.
    pub(crate) offers: BTreeMap<String, Descriptor>,
}

struct Known {
    /// Digest of the config.
    id: String,
    size: u64,
    pinned: bool,
}

/// Handles a record that was created or updated.
pub(crate) fn observe(state: &mut State, namespace: &str, name: &str) {
    if namespace != NAMESPACE || !state.config.cri {
        return;
    }
    retry(state);
    if !adopt(state, name) {
        state.cri.pending.push(name.to_owned());
    }
}

/// Handles a record that was deleted.
pub(crate) fn forget(state: &mut State, namespace: &str, name: &str) {
    if namespace == NAMESPACE {
        state.cri.known.remove(name);
        state.cri.pending.retain(|pending| pending != name);
    }
}

fn retry(state: &mut State) {
    for name in std::mem::take(&mut state.cri.pending) {
        if !adopt(state, &name) {
            state.cri.pending.push(name);
        }
    }
}

/// Adopts a record. Returns false if its config cannot be found yet.
fn adopt(state: &mut State, name: &str) -> bool {
    let Some(image) = state.image(NAMESPACE, name).cloned() else {
        return true;
    };
    let Some((id, size)) = config_of(state, &image.target.digest, DEPTH) else {
        return false;
    };
    if image.labels.get(MANAGED).map(String::as_str) != Some("managed") {
        manage(state, name, &image, &id);
    }
    let pinned = image.labels.get(PINNED).map(String::as_str) == Some("pinned");
    state
        .cri
        .known
        .insert(name.to_owned(), Known { id, size, pinned });
    true
}

/// Writes the record named by the image id, and marks the original as managed.
fn manage(state: &mut State, name: &str, image: &Image, id: &str) {
    let now = state.now();
    let managed = [(MANAGED.to_owned(), "managed".to_owned())];
    if let Some(mut record) = state.image(NAMESPACE, id).cloned() {
        record.labels.extend(managed.clone());
        record.target = image.target.clone();
        record.updated = now;
        images::store(state, NAMESPACE, id, record, "/images/update");
    } else {
        let target = image.target.clone();
        let record = Image {
            labels: managed.clone().into(),
            target,
            created: now,
            updated: now,
        };
        images::store(state, NAMESPACE, id, record, "/images/create");
    }
    adopt(state, id);
    if name != id {
        let mut original = image.clone();
        original.labels.extend(managed);
        original.updated = now;
        images::store(state, NAMESPACE, name, original, "/images/update");
    }
}

/// Returns the digest of the config that this node would run, and the size of the image. Returns
/// `None` while a document is missing.
fn config_of(state: &State, digest: &str, depth: usize) -> Option<(String, u64)> {
    let bytes = state.blob_bytes(NAMESPACE, digest)?;
    let document: Value = serde_json::from_slice(&bytes).ok()?;
    if let Some(manifests) = document["manifests"].as_array() {
        let mut ranked: Vec<(usize, &str)> = manifests
            .iter()
            .filter_map(|manifest| {
                Some((
                    state.config.platform.rank(manifest)?,
                    manifest["digest"].as_str()?,
                ))
            })
            .collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        let depth = depth.checked_sub(1)?;
        return ranked
            .first()
            .and_then(|(_, child)| config_of(state, child, depth));
    }
    let config = document["config"]["digest"].as_str()?;
    state.blob(NAMESPACE, config)?;
    let layers = document["layers"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let size = layers
        .iter()
        .filter_map(|layer| layer["size"].as_u64())
        .sum::<u64>();
    Some((
        config.to_owned(),
        size + document["config"]["size"].as_u64().unwrap_or(0),
    ))
}

/// Returns the image for an id, a unique prefix of an id, or a reference.
fn resolve(state: &State, wanted: &str) -> Option<String> {
    if let Some(known) = state.cri.known.get(&normalised(wanted)) {
        return Some(known.id.clone());
    }
    let prefix = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    if prefix.is_empty() || !prefix.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let matches = |id: &str| {
        id.strip_prefix("sha256:")
            .is_some_and(|hex| hex.starts_with(prefix))
    };
    let mut ids: Vec<&String> = state
        .cri
        .known
        .values()
        .map(|known| &known.id)
        .filter(|id| matches(id))
        .collect();
    ids.sort();
    ids.dedup();
    match ids[..] {
        [id] => Some(id.clone()),
        _ => None,
    }
}

/// Returns a reference in CRI's spelling. The registry and `library/` are added, and `:latest` if
/// there is neither tag nor digest. A tag before a digest is removed.
fn normalised(reference: &str) -> String {
    if reference.starts_with("sha256:") {
        return reference.to_owned();
    }
    let (name, digest) = match reference.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (reference, None),
    };
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (name, None),
    };
    let is_registry = |first: &str| first.contains(['.', ':']) || first == "localhost";
    let path = match path.split_once('/') {
        Some((first, _)) if is_registry(first) => path.to_owned(),
        Some(_) => format!("docker.io/{path}"),
        None => format!("docker.io/library/{path}"),
    };
    match (tag, digest) {
        (_, Some(digest)) => format!("{path}@{digest}"),
        (tag, None) => format!("{path}:{}", tag.unwrap_or("latest")),
    }
}

fn image(state: &State, id: &str) -> cri::Image {
    let records: Vec<(&String, &Known)> = state
        .cri
        .known
        .iter()
        .filter(|(_, known)| known.id == id)
        .collect();
    let names = || {
        records
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| !name.starts_with("sha256:"))
    };
    cri::Image {
        id: id.to_owned(),
        repo_tags: names()
            .filter(|name| !name.contains('@'))
            .map(normalised)
            .collect(),
        repo_digests: names()
            .filter(|name| name.contains('@'))
            .map(normalised)
            .collect(),
        size: records.first().map_or(0, |(_, known)| known.size),
        pinned: state.version.honours_pins() && records.iter().any(|(_, known)| known.pinned),
        ..Default::default()
    }
}

#[tonic::async_trait]
impl ImageService for Service {
    async fn list_images(
        &self,
        request: Request<cri::ListImagesRequest>,
    ) -> Result<Response<cri::ListImagesResponse>, Status> {
        self.global("ImageService.ListImages", request, |state, _| {
            retry(state);
            let mut ids: Vec<&String> = state.cri.known.values().map(|known| &known.id).collect();
            ids.sort();
            ids.dedup();
            Ok(cri::ListImagesResponse {
                images: ids.into_iter().map(|id| image(state, id)).collect(),
            })
        })
        .await
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Result<Response<cri::ImageStatusResponse>, Status> {
        self.global("ImageService.ImageStatus", request, |state, request| {
            let Some(wanted) = request.image else {
                return Err(missing(state, "ImageService.ImageStatus", "image"));
            };
            retry(state);
            let image = resolve(state, &wanted.image).map(|id| image(state, &id));
            Ok(cri::ImageStatusResponse {
                image,
                ..Default::default()
            })
        })
        .await
    }

    /// Creates the records of a pull: the name, and its repository with the digest. The content
    /// must be in the store already.
    async fn pull_image(
        &self,
        request: Request<cri::PullImageRequest>,
    ) -> Result<Response<cri::PullImageResponse>, Status> {
        self.global("ImageService.PullImage", request, |state, request| {
            let Some(wanted) = request.image else {
                return Err(missing(state, "ImageService.PullImage", "image"));
            };
            let name = normalised(&wanted.image);
            let Some(target) = state.cri.offers.get(&name).cloned() else {
                return Err(Status::not_found(format!(
                    "failed to pull and unpack image {name:?}: failed to resolve image: {name}: not found"
                )));
            };
            let repository = name
                .rsplit_once(':')
                .map_or(name.as_str(), |(repository, _)| repository);
            let by_digest = format!("{repository}@{}", target.digest);
            for name in [name.clone(), by_digest] {
                let now = state.now();
                let record = Image {
                    labels: Labels::new(),
                    target: target.clone(),
                    created: now,
                    updated: now,
                };
                images::store(state, NAMESPACE, &name, record, "/images/create");
                observe(state, NAMESPACE, &name);
            }
            Ok(cri::PullImageResponse {
                image_ref: resolve(state, &name).unwrap_or_default(),
            })
        })
        .await
    }

    /// Removes every record of the image, like `crictl rmi`. An unknown image is not an error.
    async fn remove_image(
        &self,
        request: Request<cri::RemoveImageRequest>,
    ) -> Result<Response<cri::RemoveImageResponse>, Status> {
        self.global("ImageService.RemoveImage", request, |state, request| {
            let id = request.image.and_then(|wanted| resolve(state, &wanted.image));
            let of_image = |known: &Known| Some(&known.id) == id.as_ref();
            let names: Vec<String> = state
                .cri
                .known
                .iter()
                .filter(|(_, known)| of_image(known))
                .map(|(name, _)| normalised(name))
                .collect();
            for name in names {
                images::remove(state, NAMESPACE, &name);
            }
            Ok(cri::RemoveImageResponse::default())
        })
        .await
    }

    async fn image_fs_info(
        &self,
        request: Request<cri::ImageFsInfoRequest>,
    ) -> Result<Response<cri::ImageFsInfoResponse>, Status> {
        self.global("ImageService.ImageFsInfo", request, |state, _| {
            let mountpoint = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs".to_owned();
            let used = state.files.values().map(|file| file.size).sum();
            let usage = cri::FilesystemUsage {
                timestamp: i64::try_from(state.now().as_nanosecond()).unwrap_or(i64::MAX),
                fs_id: Some(cri::FilesystemIdentifier { mountpoint }),
                used_bytes: Some(cri::UInt64Value { value: used }),
                inodes_used: Some(cri::UInt64Value { value: 1 }),
            };
            Ok(cri::ImageFsInfoResponse {
                image_filesystems: vec![usage],
                ..Default::default()
            })
        })
        .await
    }
}

#[tonic::async_trait]
impl RuntimeService for Service {
    async fn version(
        &self,
        request: Request<cri::VersionRequest>,
    ) -> Result<Response<cri::VersionResponse>, Status> {
        self.global("RuntimeService.Version", request, |state, _| {
            Ok(cri::VersionResponse {
                version: "0.1.0".to_owned(),
                runtime_name: "containerd".to_owned(),
                runtime_version: state.config.version.clone(),
                runtime_api_version: "v1".to_owned(),
            })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::normalised;

    #[test]
    fn references_are_normalised_as_cri_does() {
        for (given, expected) in [
            ("x", "docker.io/library/x:latest"),
            ("x:1", "docker.io/library/x:1"),
            ("a/x:1", "docker.io/a/x:1"),
            ("localhost/x:1", "localhost/x:1"),
            ("registry:5000/x", "registry:5000/x:latest"),
            ("x:1@sha256:0", "docker.io/library/x@sha256:0"),
            ("sha256:0", "sha256:0"),
        ] {
            assert_eq!(normalised(given), expected, "{given}");
        }
    }
}
