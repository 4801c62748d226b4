//! The file for Node Feature Discovery, which turns its lines into labels of the node.
//!
//! Its local source reads `key=value` lines from `features.d`, and gives a key without a prefix the
//! prefix `feature.node.kubernetes.io/`. A label has at most 63 characters after the prefix and in
//! its value: letters, digits, `-`, `_` and `.`, with a letter or digit at both ends. The source
//! refuses a file of more than 64 KiB. It ignores hidden files, so it never sees half a file.
//!
//! The daemon writes the file only if a line changes, since each write is a request to the API
//! server. docs/fleets.md describes the lines.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::metrics;
use crate::ready::Standing;
use crate::status::{ReleaseStatus, Status};

/// Shortest time between two writes, in seconds. Each may change labels in the API server.
const PACE: Duration = Duration::from_secs(3);

/// Most characters of a label after its prefix.
const LONGEST_LABEL: usize = 63;

/// Most releases with a label. With the longest names the file then has less than 8 KiB.
const MOST_RELEASES: usize = 50;

/// Prefix of the label of a release.
const RELEASE: &str = "airgapd.release.";

/// The file, and its content as far as this daemon has written it.
#[derive(Debug)]
pub(crate) struct FeatureFile {
    path: PathBuf,
    due: Instant,
    written: Option<String>,
    problem: Option<String>,
}

impl FeatureFile {
    /// Returns a file that is due at once.
    pub(crate) fn at(path: PathBuf) -> FeatureFile {
        FeatureFile {
            path,
            due: Instant::now(),
            written: None,
            problem: None,
        }
    }

    /// Returns the time of the next look.
    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    /// Returns the error of the last write, if it failed.
    pub(crate) fn problem(&self) -> Option<&String> {
        self.problem.as_ref()
    }

    /// Writes the file if it is not there or if the status has changed a line. A failure is logged
    /// once, and the next look retries.
    pub(crate) fn write(&mut self, status: &Status, standing: &Standing<'_>, now: Instant) {
        self.due = now + PACE;
        let text = text(status, standing);
        if self.written.as_ref() == Some(&text) && self.path.exists() {
            return;
        }
        let error = metrics::write(&self.path, &text).err();
        let problem = error.map(|error| format!("no node features in {}: {error}", self.path.display()));
        if let Some(problem) = problem.as_ref().filter(|_| self.problem != problem) {
            warn!("{problem}");
        }
        self.written = problem.is_none().then_some(text);
        self.problem = problem;
    }

    /// Removes the file, so that no label outlives the daemon that vouches for it.
    pub(crate) fn end(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Returns the lines of the file. `/ready` has the same findings.
///
/// `airgapd.required` is absent while the state of the required images is not known. Only releases
/// that are in place have a line.
fn text(status: &Status, standing: &Standing<'_>) -> String {
    let mut lines = BTreeMap::from([(
        "airgapd.state".to_owned(),
        status.verdict.health.as_str().to_owned(),
    )]);
    if let Some(is_whole) = standing.required {
        lines.insert("airgapd.required".to_owned(), is_whole.to_string());
    }
    let in_place = labels(&status.releases)
        .into_iter()
        .filter(|(_, names)| names.iter().all(|name| standing.releases.contains(name)));
    for (label, _) in in_place.take(MOST_RELEASES) {
        lines.insert(format!("{RELEASE}{label}"), "true".to_owned());
    }
    let mut text = String::from("# Written by airgapd.\n");
    for (key, value) in lines {
        text += &format!("{key}={value}\n");
    }
    text
}

/// Returns the ends of the labels of releases, each with the names that it stands for. Nearly
/// always that is one name ([`label`]). But a hostile name may be that of another release with its
/// hash.
fn labels(releases: &[ReleaseStatus]) -> BTreeMap<String, Vec<&str>> {
    let longest = LONGEST_LABEL - RELEASE.len();
    let names = || releases.iter().map(|release| release.name.as_str());
    let mut plain: HashMap<String, usize> = HashMap::new();
    for name in names() {
        *plain.entry(plain_label(name)).or_default() += 1;
    }
    let mut labels: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for name in names() {
        let is_shared = plain.get(&plain_label(name)).is_some_and(|count| *count > 1);
        labels
            .entry(label(name, longest, is_shared))
            .or_default()
            .push(name);
    }
    labels
}

/// Returns a name whose characters all fit into a label. Others become `_`, such as the `+` in
/// `v1.36.3+k0s.2`. An operator can write such a label down.
fn plain_label(name: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.chars().map(|c| if fits(c) { c } else { '_' }).collect()
}

/// Returns a name as the end of a label with at most `longest` characters.
///
/// A name that is too long is cut and ends with eight digits of its hash. The same holds for a name
/// that does not end with a letter or digit. It also holds for a changed name if another release
/// has the result (`is_shared`).
fn label(name: &str, longest: usize, is_shared: bool) -> String {
    let plain = plain_label(name);
    let is_unique = plain == name || !is_shared;
    if is_unique && plain.len() <= longest && plain.ends_with(|c: char| c.is_ascii_alphanumeric()) {
        return plain;
    }
    let hash = &basics::digest::short(name.as_bytes())[..8];
    let kept = plain.len().min(longest - hash.len() - 1);
    format!("{}-{hash}", &plain[..kept])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;

    use super::*;
    use crate::ready::{Circumstances, Facts, Memory};
    use crate::status::{BundleStatus, ContainerdStatus, MissingStatus, RequiredStatus, State};
    use basics::Foreign;

    fn release(name: &str, in_place: bool) -> ReleaseStatus {
        ReleaseStatus {
            name: name.to_owned(),
            in_place,
            ..ReleaseStatus::default()
        }
    }

    /// Returns the status of a node with these releases, and with a containerd.
    fn with(releases: Vec<ReleaseStatus>) -> Status {
        Status {
            containerd: ContainerdStatus {
                reachable: true,
                ..ContainerdStatus::default()
            },
            releases,
            ..Status::default()
        }
    }

    /// Returns the file, a number of seconds after the boot.
    fn text_at(seconds: u64, status: &Status, memory: &mut Memory) -> String {
        let at = Duration::from_secs(seconds);
        let circumstances = Circumstances {
            at,
            key: Some("key".to_owned()),
            ..Circumstances::default()
        };
        let facts = Facts::of(status, circumstances).noted_in(memory);
        text(status, &facts.standing(at))
    }

    fn text_of(status: &Status) -> String {
        text_at(0, status, &mut Memory::default())
    }

    fn whole() -> Status {
        Status {
            required: Some(RequiredStatus {
                checked_at: Some(Timestamp::UNIX_EPOCH),
                ..RequiredStatus::default()
            }),
            ..with(vec![release("v1.36.3+k0s.2", true), release("next", false)])
        }
    }

    const WHOLE: &str = "# Written by airgapd.\nairgapd.release.v1.36.3_k0s.2=true\nairgapd.required=true\n\
         airgapd.state=healthy\n";

    #[test]
    fn the_file_has_the_state_the_required_images_and_the_releases_in_place() {
        let unknown = Status {
            required: Some(RequiredStatus::default()),
            ..with(Vec::new())
        };
        assert_eq!(
            text_of(&unknown),
            "# Written by airgapd.\nairgapd.state=healthy\n"
        );
        let mut status = whole();
        assert_eq!(text_of(&status), WHOLE);
        let required = status.required.as_mut().unwrap();
        required.missing.push(MissingStatus::default());
        assert!(text_of(&status).contains("airgapd.required=false\n"));
        status.required.as_mut().unwrap().problem = Some("no list".to_owned());
        assert!(!text_of(&status).contains("airgapd.required"));
    }

    /// The labels have the answers of `/ready`.
    #[test]
    fn in_doubt_the_labels_of_images_and_releases_hold_for_a_minute_and_end() {
        let bare = "# Written by airgapd.\nairgapd.state=healthy\n";
        let mut away = whole();
        away.containerd.reachable = false;
        away.required.as_mut().unwrap().is_unsure = true;
        let mut unchecked = whole();
        unchecked.required.as_mut().unwrap().is_unsure = true;
        let mut compared = whole();
        compared.bundles = vec![BundleStatus::named("a.tar".as_ref(), State::Checking)];
        compared.releases[0].bundles = vec![Foreign::new("a.tar".to_owned())];
        for (case, status, ended) in [
            ("containerd is away", &away, bare.to_owned()),
            (
                "checks fail",
                &unchecked,
                WHOLE.replace("airgapd.required=true\n", ""),
            ),
        ] {
            let mut memory = Memory::default();
            assert_eq!(text_at(1000, &whole(), &mut memory), WHOLE);
            assert_eq!(text_at(1060, status, &mut memory), WHOLE, "{case}");
            assert_eq!(text_at(1061, status, &mut memory), ended, "{case}");
        }
        let mut memory = Memory::default();
        let without = WHOLE.replace("airgapd.release.v1.36.3_k0s.2=true\n", "");
        assert_eq!(text_at(1000, &compared, &mut memory), without, "never compared");
        let mut doubted = whole();
        let without = WHOLE.replace("airgapd.required=true\n", "");
        for (seconds, wanted) in [(60, WHOLE), (61, &without)] {
            doubted.required.as_mut().unwrap().doubted_for = Some(Duration::from_secs(seconds));
            let text = text_at(1000, &doubted, &mut Memory::default());
            assert_eq!(text, wanted, "no check has followed a change for {seconds} s");
        }
    }

    #[test]
    fn every_name_becomes_a_label_and_names_that_were_cut_stay_apart() {
        let longest = LONGEST_LABEL - RELEASE.len();
        let (long, longer) = ("r".repeat(longest + 1), "r".repeat(longest + 2));
        let hostile = ["a\nb=c", "a-", "é", "", "+", &long, &longer, "a b/c"];
        for is_shared in [false, true] {
            let labels: Vec<_> = hostile
                .iter()
                .map(|name| label(name, longest, is_shared))
                .collect();
            for label in &labels {
                assert!(label.len() <= longest, "{label}");
                let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
                assert!(label.chars().all(fits) && label.ends_with(|c: char| c.is_ascii_alphanumeric()));
            }
            assert_ne!(labels[5], labels[6]);
            assert_eq!(label("v1.2-3_x", longest, is_shared), "v1.2-3_x");
            assert_eq!(label(&long[1..], longest, is_shared), long[1..]);
        }
    }

    #[test]
    fn releases_whose_names_differ_in_replaced_characters_have_different_labels() {
        let labels = |releases: &[(&str, bool)]| -> String {
            let releases = releases.iter().map(|(name, in_place)| release(name, *in_place));
            let text = text_of(&with(releases.collect()));
            let lines = text.lines();
            let labels = lines.filter_map(|line| line.strip_prefix("airgapd.release."));
            labels.collect::<Vec<_>>().join(" ")
        };
        let hashed = |name: &str| label(name, LONGEST_LABEL - RELEASE.len(), true);
        let [plus, space] = ["v1+a", "v1 a"].map(|name| format!("{}=true", hashed(name)));
        assert_eq!(labels(&[("v1+a", true)]), "v1_a=true");
        assert_eq!(labels(&[("v1+a", true), ("v1_a", false)]), plus);
        assert_eq!(labels(&[("v1+a", false), ("v1_a", true)]), "v1_a=true");
        assert_eq!(labels(&[("v1+a", true), ("v1 a", false)]), plus);
        let both = labels(&[("v1+a", true), ("v1 a", true)]);
        assert!(both.contains(&plus) && both.contains(&space), "{both}");
        // A release may take the very name that another release got.
        let taken = hashed("v1+a");
        let with_taken = |in_place| labels(&[("v1+a", true), ("v1_a", false), (&taken, in_place)]);
        assert_eq!(with_taken(false), "");
        assert_eq!(with_taken(true), plus);
    }

    #[test]
    fn a_thousand_releases_do_not_fill_the_file() {
        let names = (0..1000).map(|number| release(&format!("{number}{}", "r".repeat(128)), true));
        let text = text_of(&with(names.collect()));
        assert_eq!(text.lines().count(), MOST_RELEASES + 2);
        assert!(text.len() < 8 << 10);
    }
}
