//! Whole images from which some nodes cannot make containers.

use std::collections::HashSet;

use basics::foreign;
use bundle::{Content, Kind, Manifest, Node};
use oci_spec::image::Digest;

use super::Closure;
use super::node::{manifests_below, platform_text};

/// Describes the images among these blobs that not every pod can use as a container's image, one
/// sentence each. They are artifacts, and images that containerd unpacks only with a plugin.
///
/// A node may have a suitable snapshotter (nydus) or stream processor (encrypted layers), and
/// airgapd cannot see that from outside. So such an image is not broken.
#[must_use]
pub fn images_for_plugins(root: &Node, closure: &Closure) -> Vec<String> {
    let taken: HashSet<&Digest> = closure.blobs.iter().map(|blob| &blob.digest).collect();
    let mut images = manifests_below(root);
    images.push(root);
    let mut found = Vec::new();
    for node in images {
        let Content::Manifest(manifest) = &node.content else {
            continue;
        };
        if matches!(manifest.kind, Kind::Artifact { .. }) && std::ptr::eq(node, root) {
            found.push(
                "an artifact: pods mount it as an image volume, and no container starts from it".to_owned(),
            );
        }
        if !taken.contains(node.descriptor.digest()) {
            continue;
        }
        for need in [unusual_layers(manifest), features(manifest)]
            .into_iter()
            .flatten()
        {
            let platform = platform_text(node);
            let note = format!("{platform}: {need}: no container starts on a node without it");
            if !found.contains(&note) {
                found.push(note);
            }
        }
    }
    found
}

fn unusual_layers(manifest: &Manifest) -> Option<String> {
    let types = manifest.layers.iter().map(|layer| layer.descriptor.media_type());
    let kind = types
        .map(ToString::to_string)
        .find(|kind| !is_unpacked_by_all(kind))?;
    Some(format!(
        "containerd unpacks layers of type {kind} with a plugin only (a snapshotter or a stream processor)"
    ))
}

/// Describes the features that an image needs from the snapshotter. From 2.3 on, containerd checks
/// the features in the config, even if the index has none. Source: containerd's client/image.go,
/// `checkSnapshotterSupport`.
fn features(manifest: &Manifest) -> Option<String> {
    let platform = manifest.config_platform.as_ref()?;
    let features = &platform.os_features;
    (!features.is_empty() && platform.os != "windows").then(|| {
        let features: Vec<_> = features.iter().map(|feature| foreign::shown(feature)).collect();
        format!(
            "containerd 2.3 and later need a snapshotter with os.features {}, which the config asks for",
            features.join(", ")
        )
    })
}

/// Returns true for the layer types that every containerd unpacks without a plugin.
fn is_unpacked_by_all(media_type: &str) -> bool {
    let ends = ["", ".gzip", ".zstd", "+gzip", "+zstd"];
    let archives = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    archives
        .iter()
        .filter_map(|archive| media_type.strip_prefix(archive))
        .any(|end| ends.contains(&end))
}
