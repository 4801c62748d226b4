//! What keeps an image from running: its parts that are absent or damaged.

use std::fmt;

use bundle::{Content, Manifest, Node, Part, PartState};
use oci_spec::image::{Descriptor, Digest};

use super::BUNDLE;
use super::node::platform_text;

/// What keeps an image from running.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// The blob that is absent or damaged, where it is one.
    pub blob: Option<Digest>,
    /// The problem in one line, which names the platform and the blob.
    pub what: String,
}

impl Problem {
    /// A problem that is not one blob's.
    #[must_use]
    pub fn of_image(what: String) -> Problem {
        Problem { blob: None, what }
    }

    /// A problem of a blob, which `what` does not name yet.
    fn of_blob(descriptor: &Descriptor, what: &str) -> Problem {
        let digest = descriptor.digest();
        Problem {
            blob: Some(digest.clone()),
            what: format!("{digest}{what}"),
        }
    }

    /// The same with words before it.
    pub(super) fn after(self, words: &str) -> Problem {
        Problem {
            what: format!("{words}{}", self.what),
            ..self
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// All problems in one line.
#[must_use]
pub fn in_words(problems: &[Problem]) -> String {
    let texts: Vec<&str> = problems.iter().map(|problem| problem.what.as_str()).collect();
    texts.join("; ")
}

/// Everything that keeps a manifest of a bundle from running: absent or damaged parts, each named.
#[must_use]
pub fn problems(node: &Node, manifest: &Manifest) -> Vec<Problem> {
    problems_in(BUNDLE, node, manifest)
}

/// The same of a manifest in the store called `place` (as in "is not in containerd").
#[must_use]
pub fn problems_in(place: &str, node: &Node, manifest: &Manifest) -> Vec<Problem> {
    let platform = platform_text(node);
    let count = manifest.layers.len();
    let config =
        part_problem(&manifest.config, place).map(|problem| problem.after(&format!("{platform}: config ")));
    let layers = manifest.layers.iter().enumerate().filter_map(|(at, layer)| {
        let problem = part_problem(layer, place)?;
        Some(problem.after(&format!("{platform}: layer {} of {count} ", at + 1)))
    });
    let others = manifest
        .problems
        .iter()
        .map(|problem| Problem::of_image(format!("{platform}: {problem}")));
    config.into_iter().chain(layers).chain(others).collect()
}

/// The same of the content behind an entry of an index.
pub(super) fn node_problems(node: &Node, place: &str) -> Vec<Problem> {
    let platform = platform_text(node);
    match &node.content {
        Content::Manifest(manifest) => problems_in(place, node, manifest),
        Content::Absent => vec![absent(&node.descriptor, place).after(&format!("{platform}: "))],
        Content::Broken(reason) => vec![broken(node, format!("{platform}: {reason}"))],
        Content::Index(_) | Content::Other => Vec::new(),
    }
}

fn part_problem(part: &Part, place: &str) -> Option<Problem> {
    match &part.state {
        PartState::Present => None,
        PartState::Absent => Some(absent(&part.descriptor, place)),
        PartState::Broken(reason) => Some(Problem::of_blob(&part.descriptor, &format!(": {reason}"))),
    }
}

/// A document that is there and cannot be used, and why.
pub(super) fn broken(node: &Node, what: String) -> Problem {
    Problem {
        blob: Some(node.descriptor.digest().clone()),
        what,
    }
}

pub(super) fn absent(descriptor: &Descriptor, place: &str) -> Problem {
    Problem::of_blob(descriptor, &format!(" is not in {place}"))
}
