//! What keeps an image from running: its parts that are absent or damaged.

use std::fmt;

use bundle::{Content, Flaw, Manifest, Node, Part, PartState};
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
    /// The same where the bytes of the blob are not those that its digest promises.
    pub damage: Option<Damage>,
}

/// A blob of an image whose bytes are not those that its digest promises.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Damage {
    /// What the blob is in its image, such as `layer 2 of 5`.
    pub part: String,
    /// What is wrong with its bytes.
    pub why: String,
}

impl Damage {
    /// The sentence about it, with what to do. The file is called by its name, fit to print.
    #[must_use]
    pub fn told(&self, image: &str, file: &str) -> String {
        let Damage { part, why } = self;
        format!("{part} of {image} is damaged in {file} ({why}): copy it again, compare sha256sum")
    }
}

impl Problem {
    /// A problem that is not one blob's.
    #[must_use]
    pub fn of_image(what: String) -> Problem {
        Problem {
            blob: None,
            what,
            damage: None,
        }
    }

    /// A problem of a blob, which `what` does not name yet.
    fn of_blob(descriptor: &Descriptor, what: &str) -> Problem {
        let digest = descriptor.digest();
        Problem {
            blob: Some(digest.clone()),
            what: format!("{digest}{what}"),
            damage: None,
        }
    }

    /// A blob that is there and cannot be used, called by what it is in its image.
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

/// The same of the content behind an entry of an index.
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

/// A document that is there and cannot be used, and why.
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
