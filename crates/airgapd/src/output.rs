//! Answers go to standard output, and only from here; talk goes to standard error through the log.

use std::fmt::Write as _;
use std::io::{self, Write};

use import::{BundleReport, ImageOutcome, ImageReport, Outcome};
use serde::Serialize;

/// Prints text as it is. A reader that went away (a closed pipe) is no error.
pub(crate) fn text(text: &str) -> io::Result<()> {
    forgive_closed_pipe(io::stdout().lock().write_all(text.as_bytes()))
}

/// Says what is wrong before there is a log.
pub(crate) fn complain(text: &str) -> io::Result<()> {
    forgive_closed_pipe(writeln!(io::stderr().lock(), "airgapd: {text}"))
}

/// Prints one JSON document.
pub(crate) fn json(document: &impl Serialize) -> io::Result<()> {
    let mut out = serde_json::to_string_pretty(document)?;
    out.push('\n');
    text(&out)
}

fn forgive_closed_pipe(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// `12 B`, `3.4 MB`: powers of 1000, as disks and networks count.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut scaled = count;
    let mut unit = 0;
    while scaled >= 1_000_000 && unit + 1 < UNITS.len() {
        scaled /= 1000;
        unit += 1;
    }
    format!("{}.{} {}", scaled / 1000, scaled % 1000 / 100, UNITS[unit])
}

/// The document of `airgapd import -o json`.
#[derive(Debug, Serialize)]
pub(crate) struct ImportDocument<'a> {
    /// One entry for each file, in the order given.
    pub(crate) bundles: &'a [BundleReport],
}

/// What `airgapd import` says to people about one bundle.
pub(crate) fn import_text(report: &BundleReport, dry_run: bool) -> String {
    let mut text = String::new();
    let path = import::printable(&report.path.to_string_lossy());
    let format = report.format.as_deref().unwrap_or("unreadable");
    let outcome = outcome_text(report.outcome, dry_run);
    let _ = writeln!(
        text,
        "{}: {format}, {outcome} in {}",
        path.trim_matches('"'),
        seconds(report.duration_ms)
    );
    if let Some(error) = &report.error {
        let _ = writeln!(text, "  error: {error}");
    }
    for warning in &report.warnings {
        let _ = writeln!(text, "  warning: {warning}");
    }
    for image in &report.images {
        let _ = writeln!(text, "  {}", image_line(image));
    }
    let blobs = &report.blobs;
    let verb = if dry_run { "to send" } else { "sent" };
    let _ = writeln!(
        text,
        "  blobs: {} {verb} ({}), {} present ({}), {} not needed ({})",
        blobs.sent,
        bytes(blobs.sent_bytes),
        blobs.present,
        bytes(blobs.present_bytes),
        blobs.not_needed,
        bytes(blobs.not_needed_bytes)
    );
    text
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

fn image_line(image: &ImageReport) -> String {
    let outcome = match image.outcome {
        ImageOutcome::Created => "created",
        ImageOutcome::Retargeted => "moved",
        ImageOutcome::Relabelled => "labelled",
        ImageOutcome::Unchanged => "unchanged",
        ImageOutcome::Skipped => "skipped",
        ImageOutcome::Failed => "FAILED",
    };
    match &image.reason {
        Some(reason) => format!("{outcome:<9}  {}: {reason}", image.name),
        None if image.platforms.is_empty() => format!("{outcome:<9}  {}", image.name),
        None => format!("{outcome:<9}  {} ({})", image.name, image.platforms.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_in_the_largest_unit_below_a_thousand() {
        let rows = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (1_540, "1.5 kB"),
            (999_999, "999.9 kB"),
            (1_000_000, "1.0 MB"),
            (2_147_483_648, "2.1 GB"),
            (u64::MAX, "18446.7 PB"),
        ];
        for (count, wanted) in rows {
            assert_eq!(bytes(count), wanted, "{count}");
        }
    }
}
