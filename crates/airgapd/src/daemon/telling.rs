//! What the daemon says of bundles and images in its log.

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use import::{BundleReport, ImageOutcome, ImageReport};
use tracing::{debug, error, info, warn};

use crate::coexistence::Repaired;

/// A file name for people and logs: control bytes escaped.
pub(super) fn shown(name: &OsStr) -> String {
    import::printable(&name.to_string_lossy())
        .trim_matches('"')
        .to_owned()
}

/// How many refused files are told of by name in a row, and after what quiet time a new row begins. A folder that
/// somebody filled with a thousand files of another kind is one mistake.
const MOST_REFUSALS: u32 = 20;
const QUIET: Duration = Duration::from_secs(60);

/// Keeps refusals from flooding the log.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    last: Option<Instant>,
    told: u32,
    held_back: u32,
}

impl Refusals {
    /// Whether one more is to be told by name.
    pub(super) fn admit(&mut self) -> bool {
        self.admit_at(Instant::now())
    }

    fn admit_at(&mut self, now: Instant) -> bool {
        if self
            .last
            .is_none_or(|last| now.saturating_duration_since(last) >= QUIET)
        {
            self.told = 0;
        }
        self.last = Some(now);
        let is_told = self.told < MOST_REFUSALS;
        if is_told {
            self.told += 1;
        } else {
            self.held_back += 1;
        }
        is_told
    }

    /// Tells how many were held back since the last time.
    pub(super) fn sum_up(&mut self) {
        let count = std::mem::take(&mut self.held_back);
        if count > 0 {
            warn!("{count} more files were not imported (`log.level: debug` names them)");
        }
    }
}

/// One line for each image that changed or failed, and one for the bundle.
pub(super) fn log_report(name: &OsStr, report: &BundleReport) {
    let bundle = shown(name);
    for warning in &report.warnings {
        warn!(bundle, "{warning}");
    }
    if report.retry {
        // It stopped in the middle and goes on soon: one line says why, elsewhere.
        return;
    }
    for image in &report.images {
        log_image(&bundle, image);
    }
    let (outcome, bytes, milliseconds) = (
        report.outcome.as_str(),
        report.blobs.sent_bytes,
        report.duration_ms,
    );
    info!(
        bundle,
        outcome,
        bytes,
        milliseconds,
        "bundle {outcome}: {} sent in {milliseconds} ms",
        crate::output::bytes(bytes)
    );
}

/// One line for each image that others had recorded before it was whole.
pub(super) fn log_repairs(name: &OsStr, repaired: &[Repaired]) {
    for Repaired { image, blobs, bytes } in repaired {
        warn!(
            bundle = %shown(name),
            image,
            outcome = "repaired",
            "its record was there without {blobs} of its blobs ({}): repaired",
            crate::output::bytes(*bytes)
        );
    }
}

/// One line for each image. Its `name@digest` record goes without saying.
fn log_image(bundle: &str, image: &ImageReport) {
    let reason = image.reason.as_deref().unwrap_or_default();
    let (name, digest, outcome) = (&image.name, &image.digest, image.outcome.as_str());
    match image.outcome {
        ImageOutcome::Failed => error!(
            bundle,
            image = name,
            digest,
            outcome,
            "image not imported: {reason}"
        ),
        ImageOutcome::Skipped => info!(bundle, image = name, digest, outcome, "image skipped: {reason}"),
        _ if name.contains('@') => debug!(bundle, image = name, digest, outcome, "image {outcome}"),
        ImageOutcome::Unchanged => debug!(bundle, image = name, digest, outcome, "image in place"),
        ImageOutcome::Created | ImageOutcome::Retargeted | ImageOutcome::Relabelled => {
            info!(bundle, image = name, digest, outcome, "image {outcome}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_refusals_is_cut_short_and_a_later_one_is_told_again() {
        let now = Instant::now();
        let mut refusals = Refusals::default();
        let told = (0..1000).filter(|_| refusals.admit_at(now)).count();
        assert_eq!((told, refusals.held_back), (20, 980));
        refusals.sum_up();
        assert_eq!(refusals.held_back, 0);
        assert!(!refusals.admit_at(now + QUIET / 2));
        assert!(refusals.admit_at(now + QUIET / 2 + QUIET));
    }
}
