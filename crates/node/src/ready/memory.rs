//! The last certain state of a node: what was there when the daemon could look.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Bundle, Facts};
use crate::status::{ReleaseStatus, State};
use basics::digest::short;

/// The version of the document that outlives the daemon. Another version is not read.
const VERSION: u32 = 1;

/// The last certain state of a node. The daemon keeps it in its runtime folder, for its successor.
///
/// Bundles and releases are numbers, so the size is about 20 bytes for each of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    version: u32,
    /// The boot id in which it is true.
    boot: Option<String>,
    /// The uuid of the containerd of which it is true.
    containerd: Option<String>,
    /// The requirement whose images were all there, and the time in seconds since the boot.
    required: Option<(String, u64)>,
    /// Time at which the bundles below were certainly in place, in seconds since the boot.
    bundles_at: u64,
    /// Bundles that are in place or skipped.
    bundles: BTreeSet<u64>,
    /// Releases that are in place.
    releases: BTreeSet<u64>,
}

impl Memory {
    /// Reads the memory of the last daemon. Anything else than a memory of this version is none.
    pub(crate) fn read(text: &[u8]) -> Memory {
        let read = serde_json::from_slice(text).ok();
        read.filter(|memory: &Memory| memory.version == VERSION)
            .unwrap_or_default()
    }

    /// Returns the text for the next daemon.
    pub(crate) fn text(&self) -> String {
        serde_json::to_string(self).expect("a memory is plain data")
    }

    /// Returns true if both remember the same, at whatever time.
    pub(crate) fn is_like(&self, other: &Memory) -> bool {
        let timeless = |memory: &Memory| Memory {
            required: memory.required.as_ref().map(|(key, _)| (key.clone(), 0)),
            bundles_at: 0,
            ..memory.clone()
        };
        timeless(self) == timeless(other)
    }

    /// Adds facts. Each of them replaces what was known about the same thing. A thing in doubt
    /// stays as it was.
    pub(super) fn note(&mut self, facts: &Facts) {
        let is_other = |known: &Option<String>, found: &Option<String>| {
            known
                .as_ref()
                .zip(found.as_ref())
                .is_some_and(|(known, found)| known != found)
        };
        if is_other(&self.boot, &facts.boot) || is_other(&self.containerd, &facts.containerd) {
            *self = Memory::default();
        }
        self.version = VERSION;
        self.boot = facts.boot.clone().or(self.boot.take());
        self.containerd = facts.containerd.clone().or(self.containerd.take());
        self.note_required(facts);
        self.note_bundles(facts);
    }

    fn note_required(&mut self, facts: &Facts) {
        let Some(required) = &facts.required else {
            self.required = None;
            return;
        };
        let last = &required.last;
        let is_bad = last.problem.is_some() || !last.missing.is_empty();
        if is_bad
            || self
                .required
                .as_ref()
                .is_some_and(|(key, _)| Some(key) != required.key.as_ref())
        {
            self.required = None;
        }
        if !is_bad && last.checked_at.is_some() && !last.is_unsure && facts.is_reachable {
            // The result was certain until the first event that no check covers.
            let certain_at = facts.at.saturating_sub(last.doubted_for.unwrap_or_default());
            let key = required.key.clone();
            self.required = key.map(|key| (key, certain_at.as_secs()));
        }
    }

    fn note_bundles(&mut self, facts: &Facts) {
        let is_held = |bundle: &Bundle| bundle.state == State::Checking && self.has(bundle);
        let bundles_at = match facts.is_reachable && !facts.bundles.iter().any(is_held) {
            true => facts.at.as_secs(),
            false => self.bundles_at,
        };
        let by_name: HashMap<&str, &Bundle> = facts
            .bundles
            .iter()
            .map(|bundle| (bundle.name.as_str(), bundle))
            .collect();
        let stands = |release: &&ReleaseStatus| {
            let bundles = release.bundles.iter().filter_map(|name| by_name.get(name.raw()));
            let (mut in_doubt, mut all_well) = (false, true);
            for bundle in bundles {
                in_doubt |= bundle.state == State::Checking;
                all_well &= bundle.is_settled() || is_held(bundle);
            }
            match in_doubt {
                true => all_well && self.releases.contains(&number(&[&release.name])),
                false => release.in_place,
            }
        };
        let releases = facts.releases.iter().filter(stands);
        let releases = releases.map(|release| number(&[&release.name])).collect();
        let stands = |bundle: &&Bundle| bundle.is_settled() || is_held(bundle);
        let bundles = facts.bundles.iter().filter(stands).map(mark).collect();
        (self.bundles_at, self.bundles, self.releases) = (bundles_at, bundles, releases);
    }

    fn has(&self, bundle: &Bundle) -> bool {
        self.bundles.contains(&mark(bundle))
    }

    /// Returns the time since the boot at which all images of a requirement were there, if they
    /// were.
    pub(super) fn required_at(&self, key: Option<&str>) -> Option<Duration> {
        let (known, at) = self.required.as_ref()?;
        (Some(known.as_str()) == key).then_some(Duration::from_secs(*at))
    }

    /// Returns the time since the boot at which a bundle was in place or skipped, if it was.
    pub(super) fn bundle_at(&self, bundle: &Bundle) -> Option<Duration> {
        self.has(bundle).then_some(Duration::from_secs(self.bundles_at))
    }

    /// Returns the time since the boot at which a release was in place, if it was.
    pub(super) fn release_at(&self, name: &str) -> Option<Duration> {
        let is_known = self.releases.contains(&number(&[name]));
        is_known.then_some(Duration::from_secs(self.bundles_at))
    }
}

/// Returns the number of a bundle. It changes with its content.
fn mark(bundle: &Bundle) -> u64 {
    number(&[&bundle.name, bundle.content.as_deref().unwrap_or_default()])
}

fn number(texts: &[&str]) -> u64 {
    let digest = short(texts.join("\0").as_bytes());
    let digits = digest.get(..16).unwrap_or(&digest);
    u64::from_str_radix(digits, 16).expect("a digest is hexadecimal")
}
