//! The answer of `airgapd import`, for programs and for people.

use basics::{Foreign, bytes};
use import::result::{ImageOutcome, ImageResult};
use import::space::Forecast;
use import::{BundleReport, BundleResult, Outcome};
use serde::Serialize;

use crate::output::{Page, line};

/// The document of `airgapd import -o json`.
#[derive(Debug, Serialize)]
pub(super) struct Document<'a> {
    /// One entry for each file, in the order given.
    pub(super) bundles: &'a [BundleReport],
    /// Why none was even tried.
    pub(super) error: Option<String>,
}

/// The answer for people, about one bundle.
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
    for warning in &report.warnings {
        line!(text, "  warning: {warning}");
    }
    let is_the_error = |image: &&ImageResult| {
        let error = report.error.as_ref();
        image.outcome == ImageOutcome::Failed
            && error.is_some_and(|error| image.reason.as_ref() == Some(error) || image.in_words() == *error)
    };
    for image in report.told().filter(|image| !is_the_error(image)) {
        line!(text, "  {}", image_line(image));
    }
    match report.told().filter(is_the_error).count() {
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
            "  unpacked: {} images, {} layers now",
            unpacked.images,
            unpacked.layers
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
        Outcome::Imported if dry_run => "would be imported; planned",
        Outcome::Imported => "imported",
        Outcome::Unchanged => "unchanged; checked",
        Outcome::Partial => "imported in part",
        Outcome::Skipped => "nothing for this node; looked at",
        Outcome::Failed => "FAILED",
    }
}

fn image_line(image: &ImageResult) -> String {
    let outcome = match image.outcome {
        ImageOutcome::Created => "created",
        ImageOutcome::Retargeted => "moved",
        ImageOutcome::Relabelled => "labelled",
        ImageOutcome::Unchanged => "unchanged",
        ImageOutcome::Skipped => "skipped",
        ImageOutcome::Failed => "FAILED",
    };
    match &image.reason {
        Some(_) => format!("{outcome:<9}  {}", image.in_words()),
        None if image.platforms.is_empty() => format!("{outcome:<9}  {}", image.name),
        None => format!("{outcome:<9}  {} ({})", image.name, image.platforms.join(", ")),
    }
}
