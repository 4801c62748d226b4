//! The problems that keep an image from running: absent or damaged parts.

use std::fmt;

use bundle::{Content, Flaw, Manifest, Node, Part, PartState};
use oci_spec::image::{Descriptor, Digest};

use super::BUNDLE;
use super::node::platform_text;

/// A problem that keeps an image from running.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// The absent or damaged blob, if the problem has one.
    pub blob: Option<Digest>,
    /// The problem in one line, which names the platform and the blob.
    pub what: String,
    /// The damage, if the blob's bytes do not match its digest.
    pub damage: Option<Damage>,
}

/// A blob of an image whose bytes do not match its digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Damage {
    /// The blob's role in its image, such as `layer 2 of 5`.
    pub part: String,
    /// The fault of the bytes.
    pub why: String,
}

impl Damage {
    /// Returns a sentence about the damage, with the remedy. `file` is the bundle's name, fit to
    /// print.
    #[must_use]
    pub fn told(&self, image: &str, file: &str) -> String {
        let Damage { part, why } = self;
        format!("{part} of {image} is damaged in {file} ({why}): copy it again, compare sha256sum")
    }
}

impl Problem {
    /// Makes a problem that belongs to no single blob.
    #[must_use]
    pub fn of_image(what: String) -> Problem {
        Problem {
            blob: None,
            what,
            damage: None,
        }
    }

    /// Makes a problem of a blob. `what` does not name the blob yet.
    fn of_blob(descriptor: &Descriptor, what: &str) -> Problem {
        let digest = descriptor.digest();
        Problem {
            blob: Some(digest.clone()),
            what: format!("{digest}{what}"),
            damage: None,
        }
    }

    /// Makes a problem of a blob that exists and cannot be used. `part` is the blob's role in its
    /// image.
    fn of_flaw(descriptor: &Descriptor, part: &str, flaw: &Flaw) -> Problem {
        if !flaw.is_damage() {
            return Problem::of_blob(descriptor, &format!(": {flaw}")).after(&format!("{part} "));
        }
        Problem {
            blob: Some(descriptor.digest().clone()),
            what: format!("{part} is damaged: {flaw}"),
            damage: Some(Damage {
                part: part.to_owned(),
                why: flaw.to_string(),
            }),
        }
    }

    /// Returns the same problem with words before it.
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

/// Returns all problems in one line.
#[must_use]
pub fn in_words(problems: &[Problem]) -> String {
    let texts: Vec<&str> = problems.iter().map(|problem| problem.what.as_str()).collect();
    texts.join("; ")
}

/// Returns all problems that keep a manifest of a bundle from running: its absent or damaged parts,
/// each named.
#[must_use]
pub fn problems(node: &Node, manifest: &Manifest) -> Vec<Problem> {
    problems_in(BUNDLE, node, manifest)
}

/// Returns the same for a manifest in the store called `place`, as in "is not in containerd".
#[must_use]
pub fn problems_in(place: &str, node: &Node, manifest: &Manifest) -> Vec<Problem> {
    let platform = platform_text(node);
    let count = manifest.layers.len();
    let of_platform = |problem: Problem| problem.after(&format!("{platform}: "));
    let config = part_problem(&manifest.config, "config", place).map(of_platform);
    let layers = manifest.layers.iter().enumerate().filter_map(|(at, layer)| {
        let called = format!("layer {} of {count}", at + 1);
        part_problem(layer, &called, place).map(of_platform)
    });
    let others = manifest
        .problems
        .iter()
        .map(|problem| Problem::of_image(format!("{platform}: {problem}")));
    config.into_iter().chain(layers).chain(others).collect()
}

/// Returns the same for the content of an entry of an index.
pub(super) fn node_problems(node: &Node, place: &str) -> Vec<Problem> {
    let platform = platform_text(node);
    match &node.content {
        Content::Manifest(manifest) => problems_in(place, node, manifest),
        Content::Absent => vec![absent(&node.descriptor, place).after(&format!("{platform}: "))],
        Content::Broken(flaw) => vec![broken(node, flaw).after(&format!("{platform}: "))],
        Content::Index(_) | Content::Other => Vec::new(),
    }
}

fn part_problem(part: &Part, called: &str, place: &str) -> Option<Problem> {
    match &part.state {
        PartState::Present => None,
        PartState::Absent => Some(absent(&part.descriptor, place).after(&format!("{called} "))),
        PartState::Broken(flaw) => Some(Problem::of_flaw(&part.descriptor, called, flaw)),
    }
}

/// Makes the problem of a document that exists and cannot be used.
pub(super) fn broken(node: &Node, flaw: &Flaw) -> Problem {
    let is_index = bundle::is_index(node.descriptor.media_type());
    let called = if is_index { "index" } else { "manifest" };
    match flaw.is_damage() {
        true => Problem::of_flaw(&node.descriptor, called, flaw),
        false => Problem {
            blob: Some(node.descriptor.digest().clone()),
            what: flaw.to_string(),
            damage: None,
        },
    }
}

pub(super) fn absent(descriptor: &Descriptor, place: &str) -> Problem {
    Problem::of_blob(descriptor, &format!(" is not in {place}"))
}
