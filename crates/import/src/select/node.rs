//! Queries about a node of an image's tree: its platform, and the manifests below it.

use std::collections::HashSet;

use basics::foreign;
use bundle::{Content, Kind, Node};
use platforms::Platform;

pub(super) fn manifests_below(node: &Node) -> Vec<&Node> {
    let Content::Index(children) = &node.content else {
        return Vec::new();
    };
    let is_image = |child: &&Node| matches!(&child.content, Content::Manifest(m) if m.kind == Kind::Image);
    let mut found: Vec<&Node> = children.iter().filter(is_image).collect();
    found.extend(children.iter().flat_map(manifests_below));
    found
}

fn is_image_like(node: &Node) -> bool {
    match &node.content {
        Content::Manifest(manifest) => manifest.kind == Kind::Image,
        Content::Other => false,
        // A missing manifest counts as an image if its descriptor names a platform.
        Content::Absent | Content::Broken(_) => node.platform.is_some(),
        Content::Index(_) => true,
    }
}

pub(super) fn is_runnable(node: &Node) -> bool {
    is_image_like(node) && !matches!(node.content, Content::Index(_))
}

pub(super) fn leaves(children: &[Node]) -> Vec<&Node> {
    children
        .iter()
        .flat_map(|child| match &child.content {
            Content::Index(below) => leaves(below),
            _ => vec![child],
        })
        .collect()
}

/// Returns the platforms below an index for which the bundle has an image, without repetition.
pub(super) fn offered(children: &[Node]) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    let mut seen: HashSet<String> = HashSet::new();
    for node in leaves(children)
        .into_iter()
        .filter(|node| !matches!(node.content, Content::Absent))
    {
        let text = platform_text(node);
        if is_runnable(node) && text != "unknown/unknown" && seen.insert(text.clone()) {
            texts.push(text);
        }
    }
    texts
}

/// Returns the platform of a manifest, from its descriptor or else from its config.
pub(super) fn stated_platform(node: &Node) -> Option<&Platform> {
    let config = match &node.content {
        Content::Manifest(manifest) => manifest.config_platform.as_ref(),
        _ => None,
    };
    node.platform.as_ref().or(config)
}

/// Returns a platform such as `linux/arm64/v8`, or `unknown platform`. The text has at most 200
/// characters, since each problem of each layer starts with it.
#[must_use]
pub fn platform_text(node: &Node) -> String {
    stated_platform(node).map_or_else(
        || "unknown platform".to_owned(),
        |platform| foreign::shown(&platform.to_string()),
    )
}
