//! The document of `GET /ready`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::query::BadQuery;
use basics::counted;

/// Version of the document. Within it, keys may be added, and none is renamed or removed.
pub const VERSION: u32 = 1;
/// Most names in each list of the document.
const MOST_NAMES: usize = 50;
/// Most names in the reason.
const MOST_TOLD: usize = 5;

/// The answer of `GET /ready`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// The version of the document.
    pub version: u32,
    /// True if everything that was asked for is in place.
    pub ready: bool,
    /// The reason for that, in a line.
    pub reason: String,
    /// The kind of the reason. Absent if the node is ready.
    #[serde(default)]
    pub cause: Option<Cause>,
    /// Age in seconds of the result, if the daemon cannot confirm it now. Absent otherwise.
    #[serde(default)]
    pub held_seconds: Option<u64>,
    /// The required images. Absent if none are required.
    #[serde(default)]
    pub required: Option<RequiredCount>,
    /// The bundles of the images folders. Absent if the daemon gave no facts.
    #[serde(default)]
    pub bundles: Option<BundleCount>,
    /// The releases. Absent if the daemon gave no facts.
    #[serde(default)]
    pub releases: Option<ReleaseCount>,
    /// The missing things. Absent for a caller without privileges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<Names>,
    /// The reason without names.
    #[serde(skip)]
    pub(super) plain: String,
}

/// The kind of a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Something is under way, and nothing is wrong.
    Working,
    /// No bundle of the node has a requested content or release in place.
    Absent,
    /// The daemon needs something before it goes on, such as space.
    Waiting,
    /// containerd does not answer.
    Containerd,
    /// A required image is missing.
    Missing,
    /// The configuration requires nothing, and the query names nothing.
    NothingRequired,
    /// The query is malformed, or asks for something unknown.
    Query,
    /// The daemon listens and has no answer yet.
    Daemon,
    /// No daemon answers.
    NoDaemon,
    /// A requested bundle failed or does not exist, or the required images cannot be checked.
    #[serde(other)]
    Failed,
}

/// Numbers of required images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequiredCount {
    /// Images that the configuration requires, as of the last check.
    pub images: usize,
    /// Those of them that are missing or not whole.
    pub missing: usize,
}

/// Numbers of bundles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleCount {
    /// Bundles of the images folders.
    pub all: usize,
    /// Bundles in place.
    pub in_place: usize,
    /// Bundles that have nothing for this node.
    pub skipped: usize,
}

/// Numbers of releases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseCount {
    /// Releases that bundles of the node carry.
    pub all: usize,
    /// Releases in place.
    pub in_place: usize,
}

/// The missing things, at most 50 of each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// Required images.
    pub images: Vec<String>,
    /// Requested bundles, each with the reason.
    pub bundles: Vec<String>,
    /// Requested releases, each with the reason.
    pub releases: Vec<String>,
}

impl Readiness {
    /// Returns the answer of a node that is not ready, without numbers. `text` has no names.
    pub fn not(cause: Cause, text: impl Into<String>) -> Readiness {
        Readiness::default().because(cause, text.into(), &[])
    }

    /// Returns the answer to a query that is not understood.
    pub fn of_bad_query(bad: &BadQuery) -> Readiness {
        Readiness::not(Cause::Query, bad.to_string())
    }

    /// Returns the document for a caller without privileges: no names of images, bundles, releases
    /// or paths.
    #[must_use]
    pub fn without_names(self) -> Readiness {
        Readiness {
            reason: self.plain.clone(),
            missing: None,
            ..self
        }
    }

    /// Returns this answer as that of a node that is not ready.
    pub(super) fn because(mut self, cause: Cause, text: String, detail: &[String]) -> Readiness {
        self.reason = match detail {
            [] => text.clone(),
            detail => {
                let told = detail.iter().take(MOST_TOLD).map(String::as_str);
                let told = told.collect::<Vec<_>>().join(", ");
                match detail.len().saturating_sub(MOST_TOLD) {
                    0 => format!("{text}: {told}"),
                    more => format!("{text}: {told} and {more} more"),
                }
            }
        };
        self.cause = Some(cause);
        self.finished(text)
    }

    /// Returns this answer as that of a node that is ready. `asked` has the number of things of
    /// each kind that were asked for.
    pub(super) fn ready(mut self, held: Option<u64>, asked: &BTreeMap<&'static str, usize>) -> Readiness {
        let required = asked.get("required").map(|_| {
            let images = self.required.map_or(0, |required| required.images);
            match self.required.filter(|_| images > 0) {
                Some(_) => format!("{} there", counted(images, "required image")),
                None => "the required images are there".to_owned(),
            }
        });
        let of = |kind: &str, thing: &str| {
            let count = asked.get(kind)?;
            Some(format!("{} in place", counted(*count, thing)))
        };
        let all = asked
            .get("bundles")
            .map(|_| "every bundle in place or skipped".to_owned());
        let parts = [required, of("release", "release"), of("bundle", "bundle"), all];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        let mut text = parts.join(", ");
        if let Some(seconds) = held {
            text = format!("{text}, as of {seconds} s ago");
        }
        self.ready = true;
        self.held_seconds = held;
        self.reason.clone_from(&text);
        self.finished(text)
    }

    fn finished(mut self, plain: String) -> Readiness {
        self.version = VERSION;
        self.plain = plain;
        self.missing.get_or_insert_default();
        self
    }

    /// Adds names to the list of their kind, up to its limit.
    pub(super) fn name(&mut self, kind: &str, names: &[String]) {
        let missing = self.missing.get_or_insert_default();
        let list = match kind {
            "required" => &mut missing.images,
            "release" => &mut missing.releases,
            _ => &mut missing.bundles,
        };
        let left = MOST_NAMES.saturating_sub(list.len());
        list.extend(names.iter().take(left).cloned());
    }
}
