//! Which images a cluster will ask for.
//!
//! Text in, references out: [`k0s`] knows what k0s brings up by itself and how its configuration
//! changes that, [`manifests`] finds the images in any Kubernetes YAML or JSON, [`lists`] reads
//! plain lists, and [`kubelet`] says which settings of a kubelet get in the way of images that
//! nobody pulled. References come out as they stand there; whoever looks them up normalises them.
//!
//! It reads no file, starts no program, and knows neither bundles nor containerd. What it is given
//! may be hostile: [`Limits`] bound what a text may cost, YAML aliases included.

pub mod k0s;
pub mod kubelet;
pub mod lists;
pub mod manifests;
mod reader;
mod tree;

use std::fmt;

use basics::Foreign;

/// What a text may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The longest text as a whole, in bytes.
    pub text: usize,
    /// The longest single YAML document, in bytes: the parser holds about thirty times as much.
    /// JSON is bounded by `text` alone.
    pub document: usize,
    /// The most bytes that one document may take when aliases are followed, with 32 for each value.
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

/// Something that is wrong with a text, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1 on, where it is known.
    pub line: Option<usize>,
    /// The way to the value: `Deployment shop/web: spec.template.spec.containers[0].image`; empty
    /// where there is none.
    pub at: String,
    /// What is wrong, and what to do about it.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        // Both quote the text: a parser says which key it stumbled over.
        if !self.at.is_empty() {
            write!(f, "{} ", Foreign::new(&self.at))?;
        }
        write!(f, "{}", Foreign::new(&self.reason))
    }
}

/// Everything that is wrong with a text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Problems(pub Vec<Problem>);
