//! The blobs of an image, children before parents, with the references that containerd's garbage
//! collector must know.

use std::collections::HashSet;

use bundle::{Content, Kind, Manifest, Node};
use oci_spec::image::{Descriptor, Digest, DigestAlgorithm};
use serde::{Deserialize, Serialize};

use super::answer::MOST_PLATFORMS;
use super::node::{is_runnable, platform_text};

/// The blobs that an image needs on this node, children before parents, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closure {
    /// The blobs.
    pub blobs: Vec<Member>,
    /// The platforms of the manifests among the blobs, best first.
    pub platforms: Vec<String>,
}

impl Closure {
    /// Returns the size of all blobs in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.size).sum()
    }

    /// Returns the role of a blob in its image, such as `layer 2 of 5`, `config` or `manifest`. A
    /// repeated layer counts by its first place.
    #[must_use]
    pub fn part(&self, digest: &Digest) -> String {
        let refers = |blob: &&Member| blob.children.iter().any(|child| child.digest == *digest);
        let Some(parent) = self.blobs.iter().find(refers) else {
            // No blob refers to the root. An index refers to manifests.
            let own = self.blobs.iter().find(|blob| blob.digest == *digest);
            let mut children = own.iter().flat_map(|blob| &blob.children);
            let is_index = children.any(|child| child.kind == ChildKind::Manifest);
            return if is_index { "index" } else { "manifest" }.to_owned();
        };
        let is_it = |child: &&Child| child.digest == *digest;
        match parent.children.iter().find(is_it).map(|child| child.kind) {
            Some(ChildKind::Config) => "config".to_owned(),
            Some(ChildKind::Manifest) => "manifest".to_owned(),
            Some(ChildKind::Layer) => {
                let layers = parent
                    .children
                    .iter()
                    .filter(|child| child.kind == ChildKind::Layer);
                let place = layers.clone().take_while(|child| child.digest != *digest).count() + 1;
                format!("layer {place} of {}", layers.count())
            }
            Some(ChildKind::Other) | None => format!("blob {digest}"),
        }
    }

    /// Returns a blob with a sha512 digest, which no containerd before 2.3 accepts.
    #[must_use]
    pub fn sha512(&self) -> Option<&Digest> {
        let mut digests = self.blobs.iter().map(|blob| &blob.digest);
        digests.find(|digest| *digest.algorithm() == DigestAlgorithm::Sha512)
    }
}

/// One blob of a closure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The blob's digest.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// The blobs that this blob refers to, for containerd's garbage collector. Empty for layers and
    /// configs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<Child>,
}

/// A reference from a manifest or index to a blob that must live as long as it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Child {
    /// The kind of child, as in containerd's label keys.
    pub kind: ChildKind,
    /// The child.
    pub digest: Digest,
}

/// The kinds of children that containerd's gc labels tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChildKind {
    /// An image manifest: `containerd.io/gc.ref.content.m.<n>`.
    Manifest,
    /// A layer: `containerd.io/gc.ref.content.l.<n>`.
    Layer,
    /// An image config: `containerd.io/gc.ref.content.config`.
    Config,
    /// Any other child, including nested indexes: `containerd.io/gc.ref.content.<n>`.
    Other,
}

/// Collects a closure: children before parents, each blob once.
#[derive(Default)]
pub(super) struct Builder {
    closure: Closure,
    seen: HashSet<Digest>,
    extra_platforms: Vec<String>,
}

impl Builder {
    pub(super) fn manifest(mut self, node: &Node, manifest: &Manifest) -> Self {
        self.add_manifest(node, manifest);
        self
    }

    pub(super) fn finish(mut self, platforms: Vec<String>) -> Closure {
        self.closure.platforms = platforms;
        self.closure
    }

    /// Returns the required platforms in order of preference, and then the other platforms of the
    /// closure.
    pub(super) fn platforms(&mut self, best: &[&Node]) -> Vec<String> {
        let mut platforms: Vec<String> = best
            .iter()
            .filter(|n| is_runnable(n))
            .map(|n| platform_text(n))
            .collect();
        let mut seen: HashSet<String> = platforms.iter().cloned().collect();
        for platform in std::mem::take(&mut self.extra_platforms) {
            if platforms.len() < MOST_PLATFORMS && seen.insert(platform.clone()) {
                platforms.push(platform);
            }
        }
        platforms
    }

    pub(super) fn index(
        &mut self,
        node: &Node,
        children: &[Node],
        keep: &dyn Fn(&Node) -> bool,
        notes: &mut Vec<String>,
    ) {
        let mut edges = Vec::new();
        for child in children {
            if !keep(child) {
                note_left_out(child, notes);
                continue;
            }
            edges.push(Child {
                kind: child_kind(child),
                digest: child.descriptor.digest().clone(),
            });
            match &child.content {
                Content::Index(below) => self.index(child, below, keep, notes),
                Content::Manifest(manifest) => {
                    if manifest.kind == Kind::Image {
                        self.extra_platforms.push(platform_text(child));
                    }
                    self.add_manifest(child, manifest);
                }
                Content::Other => self.add(&child.descriptor, Vec::new()),
                Content::Absent | Content::Broken(_) => {}
            }
        }
        self.add(&node.descriptor, edges);
    }

    fn add_manifest(&mut self, node: &Node, manifest: &Manifest) {
        let mut edges = Vec::new();
        for layer in &manifest.layers {
            self.add(&layer.descriptor, Vec::new());
            let kind = if is_layer(&layer.descriptor) {
                ChildKind::Layer
            } else {
                ChildKind::Other
            };
            edges.push(Child {
                kind,
                digest: layer.descriptor.digest().clone(),
            });
        }
        self.add(&manifest.config.descriptor, Vec::new());
        let kind = if is_config(&manifest.config.descriptor) {
            ChildKind::Config
        } else {
            ChildKind::Other
        };
        edges.push(Child {
            kind,
            digest: manifest.config.descriptor.digest().clone(),
        });
        self.add(&node.descriptor, edges);
    }

    fn add(&mut self, descriptor: &Descriptor, children: Vec<Child>) {
        if self.seen.insert(descriptor.digest().clone()) {
            let member = Member {
                digest: descriptor.digest().clone(),
                size: descriptor.size(),
                children,
            };
            self.closure.blobs.push(member);
        }
    }
}

/// Notes a suitable part of an index that was left out because it is not whole.
fn note_left_out(child: &Node, notes: &mut Vec<String>) {
    if let Content::Broken(reason) = &child.content {
        notes.push(format!("{} left out: {reason}", platform_text(child)));
    }
}

fn child_kind(node: &Node) -> ChildKind {
    match &node.content {
        Content::Manifest(_) => ChildKind::Manifest,
        _ => ChildKind::Other,
    }
}

/// Returns true for the media types that containerd's labels file under `l.<n>`.
pub(crate) fn is_layer(descriptor: &Descriptor) -> bool {
    let media_type = descriptor.media_type().to_string();
    media_type.starts_with("application/vnd.oci.image.layer.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.")
        || media_type == "application/vnd.erofs.layer.v1"
}

/// Returns true for the media types that containerd's labels file under `config`.
fn is_config(descriptor: &Descriptor) -> bool {
    matches!(
        descriptor.media_type().as_ref(),
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_called_by_its_place_in_its_image() {
        let digest = |name: &str| basics::digest::sha256(name.as_bytes());
        let member = |name: &str, children: &[(ChildKind, &str)]| Member {
            digest: digest(name),
            size: 1,
            children: Vec::from_iter(children.iter().map(|(kind, child)| Child {
                kind: *kind,
                digest: digest(child),
            })),
        };
        use ChildKind::{Config, Layer, Manifest, Other};
        let parts = [
            (Layer, "lower"),
            (Layer, "upper"),
            (Layer, "lower"),
            (Other, "odd"),
            (Config, "config"),
        ];
        let leaves = ["lower", "upper", "odd", "config"].map(|leaf| member(leaf, &[]));
        let mut closure = Closure {
            blobs: leaves.into(),
            platforms: Vec::new(),
        };
        closure.blobs.push(member("manifest", &parts));
        let root_is = |closure: &Closure, name: &str| closure.part(&digest(name));
        assert_eq!(root_is(&closure, "manifest"), "manifest");
        closure.blobs.push(member("index", &[(Manifest, "manifest")]));
        for (name, expected) in [
            ("lower", "layer 1 of 3".to_owned()),
            ("upper", "layer 2 of 3".to_owned()),
            ("config", "config".to_owned()),
            ("odd", format!("blob {}", digest("odd"))),
            ("manifest", "manifest".to_owned()),
            ("index", "index".to_owned()),
        ] {
            assert_eq!(root_is(&closure, name), expected, "{name}");
        }
    }
}
