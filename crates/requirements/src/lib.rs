//! The images that a cluster requests.
//!
//! The crate takes text and returns references:
//!
//! - [`k0s`] knows the images of k0s itself and the effect of k0s's configuration on them.
//! - [`manifests`] finds the images in any Kubernetes YAML or JSON.
//! - [`lists`] reads plain lists.
//! - [`kubelet`] finds the settings of a kubelet that block imported images.
//!
//! References are returned as written, and the caller normalises them.
//!
//! The crate reads no file, starts no program, and knows neither bundles nor containerd. A text may
//! be hostile: [`Limits`] bound its cost, YAML aliases included.

pub mod k0s;
pub mod kubelet;
pub mod lists;
pub mod manifests;
mod reader;
mod tree;

use std::fmt;

use basics::Foreign;

/// Limits of the memory that a text may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest text, in bytes.
    pub text: usize,
    /// Longest single YAML document, in bytes. The parser needs about thirty times as much memory.
    /// JSON is limited by `text` alone.
    pub document: usize,
    /// Most bytes that one document may take after its aliases are expanded. Each value costs 32
    /// bytes besides its text.
    pub expanded: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            text: 64 << 20,
            document: 4 << 20,
            expanded: 256 << 20,
        }
    }
}

/// A mistake in a text, and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Number of the line, from 1, if known.
    pub line: Option<usize>,
    /// Path to the value: `Deployment shop/web: spec.template.spec.containers[0].image`. Empty if
    /// the problem concerns no single value.
    pub at: String,
    /// The mistake and its remedy.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        // Both quote the text, since a parser names the key that it rejects.
        if !self.at.is_empty() {
            write!(f, "{} ", Foreign::new(&self.at))?;
        }
        write!(f, "{}", Foreign::new(&self.reason))
    }
}

/// All mistakes in a text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Problems(pub Vec<Problem>);
