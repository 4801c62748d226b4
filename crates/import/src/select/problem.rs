//! Sentences about the parts of an image that are absent or damaged.

use bundle::{Content, Manifest, Node, Part, PartState};
use oci_spec::image::Descriptor;

use super::BUNDLE;
use super::node::platform_text;

/// Everything that keeps a manifest of a bundle from running: absent or damaged parts, each named.
#[must_use]
pub fn problems(node: &Node, manifest: &Manifest) -> Vec<String> {
    problems_in(BUNDLE, node, manifest)
}

/// The same of a manifest in the store called `place` (as in "is not in containerd").
#[must_use]
pub fn problems_in(place: &str, node: &Node, manifest: &Manifest) -> Vec<String> {
    let platform = platform_text(node);
    let count = manifest.layers.len();
    let config = part_problem(&manifest.config, place).map(|problem| format!("{platform}: config {problem}"));
    let layers = manifest.layers.iter().enumerate().filter_map(|(at, layer)| {
        let problem = part_problem(layer, place)?;
        Some(format!("{platform}: layer {} of {count} {problem}", at + 1))
    });
    let others = manifest
        .problems
        .iter()
        .map(|problem| format!("{platform}: {problem}"));
    config.into_iter().chain(layers).chain(others).collect()
}

/// The same of whatever is behind an entry of an index.
pub(super) fn node_problems(node: &Node, place: &str) -> Vec<String> {
    match &node.content {
        Content::Manifest(manifest) => problems_in(place, node, manifest),
        Content::Absent => vec![format!(
            "{}: {}",
            platform_text(node),
            absent(&node.descriptor, place)
        )],
        Content::Broken(reason) => vec![format!("{}: {reason}", platform_text(node))],
        Content::Index(_) | Content::Other => Vec::new(),
    }
}

fn part_problem(part: &Part, place: &str) -> Option<String> {
    match &part.state {
        PartState::Present => None,
        PartState::Absent => Some(absent(&part.descriptor, place)),
        PartState::Broken(reason) => Some(format!("{}: {reason}", part.descriptor.digest())),
    }
}

pub(super) fn absent(descriptor: &Descriptor, place: &str) -> String {
    format!("{} is not in {place}", descriptor.digest())
}
