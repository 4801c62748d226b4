//! The answer of `airgapd import`, for programs and for people.

use basics::{Foreign, bytes, counted};
use import::result::{ImageOutcome, ImageResult};
use import::space::Forecast;
use import::{BundleReport, BundleResult, Outcome};
use serde::Serialize;

use crate::output::{Page, line};

/// The document of `airgapd import -o json`.
#[derive(Debug, Serialize)]
pub(super) struct Document<'a> {
    /// One entry per file, in the given order.
    pub(super) bundles: &'a [BundleReport],
    /// Reason why no file was tried.
    pub(super) error: Option<String>,
}

/// Returns the answer for people about one bundle.
pub(super) fn text(report: &BundleResult, dry_run: bool) -> Page {
    let mut text = Page::new();
    let path = Foreign::file_name(report.path.as_os_str());
    let format = report.format.as_deref().unwrap_or("unreadable");
    let outcome = outcome_text(report.outcome, dry_run);
    line!(
        text,
        "{}: {format}, {outcome} in {}",
        path,
        seconds(report.duration_ms)
    );
    if let Some(error) = &report.error {
        line!(text, "  error: {error}");
    }
    for warning in report.all_warnings() {
        line!(text, "  warning: {warning}");
    }
    let is_the_error = |image: &&ImageResult| {
        let error = report.error.as_ref();
        image.outcome == ImageOutcome::Failed
            && error.is_some_and(|error| image.reason.as_ref() == Some(error) || image.in_words() == *error)
    };
    for image in images(report.images.iter().filter(|image| !is_the_error(image))) {
        line!(text, "  {}", image.line());
    }
    match images(report.images.iter().filter(is_the_error)).len() {
        0 => {}
        1 => line!(text, "  FAILED     1 image, for that reason"),
        count => line!(text, "  FAILED     {count} images, for that reason"),
    }
    let blobs = &report.blobs;
    let verb = if dry_run { "to send" } else { "sent" };
    line!(
        text,
        "  blobs: {} {verb} ({}), {} present ({}), {} not needed ({})",
        blobs.sent,
        bytes(blobs.sent_bytes),
        blobs.present,
        bytes(blobs.present_bytes),
        blobs.not_needed,
        bytes(blobs.not_needed_bytes)
    );
    if let Some(unpacked) = &report.unpacked {
        line!(
            text,
            "  unpacked: {}, {} now",
            counted(unpacked.images, "image"),
            counted(unpacked.layers, "layer")
        );
        for image in &unpacked.failed {
            line!(text, "  NOT UNPACKED: {}: {}", image.name, image.reason);
        }
    }
    if let Some(space) = report.space.as_ref().filter(|_| dry_run) {
        line!(text, "  space: {}", space_text(space));
    }
    text
}

fn space_text(space: &Forecast) -> String {
    let verdict = if space.shortage().is_some() {
        "does not fit"
    } else {
        "fits"
    };
    format!("{verdict}: {space}")
}

fn seconds(milliseconds: u64) -> String {
    format!("{}.{:03} s", milliseconds / 1000, milliseconds % 1000)
}

fn outcome_text(outcome: Outcome, dry_run: bool) -> &'static str {
    match outcome {
        Outcome::Imported if dry_run => "would be imported, planned",
        Outcome::Imported => "imported",
        Outcome::Unchanged => "unchanged, checked",
        Outcome::Partial => "imported in part",
        Outcome::Skipped => "nothing for this node, read",
        Outcome::Failed => "FAILED",
    }
}

/// The outcome of an image, with all names of the same outcome.
struct Line<'a> {
    /// One of the results, which differ only in their names.
    image: &'a ImageResult,
    names: Vec<&'a str>,
}

/// Groups records by image: records of one target with the same outcome are one line. A name by
/// digest is left out if there are other names.
fn images<'r>(results: impl Iterator<Item = &'r ImageResult>) -> Vec<Line<'r>> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    for result in results {
        let fared_alike = |line: &&mut Line<'_>| {
            let Line { image, .. } = line;
            image.target == result.target && image.outcome == result.outcome && image.reason == result.reason
        };
        match lines.iter_mut().find(fared_alike) {
            Some(line) => line.names.push(&result.name),
            None => lines.push(Line {
                image: result,
                names: vec![&result.name],
            }),
        }
    }
    for line in &mut lines {
        if line.names.iter().any(|name| !name.contains('@')) {
            line.names.retain(|name| !name.contains('@'));
        }
    }
    lines
}

impl Line<'_> {
    fn line(&self) -> String {
        let outcome = match self.image.outcome {
            ImageOutcome::Created => "created",
            ImageOutcome::Retargeted => "moved",
            ImageOutcome::Relabelled => "labelled",
            ImageOutcome::Unchanged => "unchanged",
            ImageOutcome::Skipped => "skipped",
            ImageOutcome::Failed => "FAILED",
        };
        let names = self.names.join(", ");
        match &self.image.reason {
            Some(reason) if self.names.iter().any(|name| reason.contains(name)) => {
                format!("{outcome:<9}  {reason}")
            }
            Some(reason) => format!("{outcome:<9}  {names}: {reason}"),
            None if self.image.platforms.is_empty() => format!("{outcome:<9}  {names}"),
            None => format!("{outcome:<9}  {names} ({})", self.image.platforms.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::MediaType;

    use super::*;

    #[test]
    fn names_of_an_image_that_fared_alike_are_one_line_and_a_reason_names_it_once() {
        let result = |name: &str, fill: &str, outcome, reason: Option<&str>| ImageResult {
            image: 0,
            name: name.to_owned(),
            target: format!("sha256:{}", fill.repeat(64)).parse().unwrap(),
            media_type: MediaType::ImageManifest,
            platforms: Vec::new(),
            outcome,
            reason: reason.map(str::to_owned),
            previous: None,
        };
        use ImageOutcome::{Created, Failed, Unchanged};
        let results = [
            result("r.test/a:1", "a", Created, None),
            result("r.test/a:2", "a", Unchanged, None),
            result("r.test/a:3", "a", Created, None),
            result("r.test/a@sha256:aa", "a", Created, None),
            result("r.test/b@sha256:bb", "b", Failed, Some("no room")),
            result(
                "r.test/c:1",
                "c",
                Failed,
                Some("layer 1 of 1 of r.test/c:1 is damaged"),
            ),
        ];
        let lines: Vec<_> = images(results.iter()).iter().map(Line::line).collect();
        let expected = [
            "created    r.test/a:1, r.test/a:3",
            "unchanged  r.test/a:2",
            "FAILED     r.test/b@sha256:bb: no room",
            "FAILED     layer 1 of 1 of r.test/c:1 is damaged",
        ];
        assert_eq!(lines, expected);
    }
}
