//! The file for Node Feature Discovery, which turns its lines into labels of the node.
//!
//! Its local source reads `key=value` lines from `features.d`, and gives a key without a prefix the
//! prefix `feature.node.kubernetes.io/`. A label has at most 63 characters after the prefix and in
//! its value: letters, digits, `-`, `_` and `.`, with a letter or digit at both ends. The source
//! refuses a file of more than 64 KiB. It ignores hidden files, so it never sees half a file.
//!
//! The daemon writes the file only if a line changes, since each write is a request to the API
//! server. docs/fleets.md describes the lines.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::metrics;
use crate::status::Status;

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
    pub(crate) fn write(&mut self, status: &Status, now: Instant) {
        self.due = now + PACE;
        let text = text(status);
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

/// Returns the lines of the file.
///
/// `airgapd.required` is absent while no check of the required images has a result. Only releases
/// that are in place have a line.
fn text(status: &Status) -> String {
    let mut lines = BTreeMap::from([(
        "airgapd.state".to_owned(),
        status.verdict.health.as_str().to_owned(),
    )]);
    if let Some(required) = &status.required
        && required.checked_at.is_some()
        && required.problem.is_none()
    {
        let is_whole = required.missing.is_empty();
        lines.insert("airgapd.required".to_owned(), is_whole.to_string());
    }
    let in_place = status.releases.iter().filter(|release| release.in_place);
    for release in in_place.take(MOST_RELEASES) {
        let name = label(&release.name, LONGEST_LABEL - RELEASE.len());
        lines.insert(format!("{RELEASE}{name}"), "true".to_owned());
    }
    let mut text = String::from("# Written by airgapd.\n");
    for (key, value) in lines {
        text += &format!("{key}={value}\n");
    }
    text
}

/// Returns a name as the end of a label with at most `longest` characters.
///
/// Other characters become `_`, such as the `+` in `v1.36.3+k0s.2`. An operator can write such a
/// label down. A name that is too long is cut and ends with eight digits of its hash. The same
/// holds for a name that does not end with a letter or digit.
fn label(name: &str, longest: usize) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let plain: String = name.chars().map(|c| if fits(c) { c } else { '_' }).collect();
    if plain.len() <= longest && plain.ends_with(|c: char| c.is_ascii_alphanumeric()) {
        return plain;
    }
    let hash = &basics::digest::short(name.as_bytes())[..8];
    let kept = plain.len().min(longest - hash.len() - 1);
    format!("{}-{hash}", &plain[..kept])
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::status::{MissingStatus, ReleaseStatus, RequiredStatus};

    fn release(name: &str, in_place: bool) -> ReleaseStatus {
        ReleaseStatus {
            name: name.to_owned(),
            in_place,
            ..ReleaseStatus::default()
        }
    }

    #[test]
    fn the_file_has_the_state_the_required_images_and_the_releases_in_place() {
        let unknown = Status {
            required: Some(RequiredStatus::default()),
            ..Status::default()
        };
        assert_eq!(text(&unknown), "# Written by airgapd.\nairgapd.state=healthy\n");
        let mut status = Status {
            required: Some(RequiredStatus {
                checked_at: Some(Timestamp::UNIX_EPOCH),
                ..RequiredStatus::default()
            }),
            releases: vec![release("v1.36.3+k0s.2", true), release("next", false)],
            ..Status::default()
        };
        assert_eq!(
            text(&status),
            "# Written by airgapd.\nairgapd.release.v1.36.3_k0s.2=true\nairgapd.required=true\n\
             airgapd.state=healthy\n"
        );
        let required = status.required.as_mut().unwrap();
        required.missing.push(MissingStatus::default());
        assert!(text(&status).contains("airgapd.required=false\n"));
        status.required.as_mut().unwrap().problem = Some("no list".to_owned());
        assert!(!text(&status).contains("airgapd.required"));
    }

    #[test]
    fn every_name_becomes_a_label_and_names_that_were_cut_stay_apart() {
        let longest = LONGEST_LABEL - RELEASE.len();
        let (long, longer) = ("r".repeat(longest + 1), "r".repeat(longest + 2));
        let hostile = ["a\nb=c", "a-", "é", "", "+", &long, &longer, "a b/c"];
        let labels: Vec<_> = hostile.iter().map(|name| label(name, longest)).collect();
        for label in &labels {
            assert!(label.len() <= longest, "{label}");
            let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            assert!(label.chars().all(fits) && label.ends_with(|c: char| c.is_ascii_alphanumeric()));
        }
        assert_ne!(labels[5], labels[6]);
        assert_eq!(label("v1.2-3_x", longest), "v1.2-3_x");
        assert_eq!(label(&long[1..], longest), long[1..]);
    }

    #[test]
    fn a_thousand_releases_do_not_fill_the_file() {
        let names = (0..1000).map(|number| release(&format!("{number}{}", "r".repeat(128)), true));
        let status = Status {
            releases: names.collect(),
            ..Status::default()
        };
        let text = text(&status);
        assert_eq!(text.lines().count(), MOST_RELEASES + 2);
        assert!(text.len() < 8 << 10);
    }
}
