//! Writes the daemon's lines into the log.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::time::Instant;

use import::BundleResult;
use import::result::{ImageOutcome, ImageResult};
use tracing::{debug, error, info, warn};

use crate::decide::coexistence::Repaired;
use crate::decide::line::{Level, Line, Row, shown};
use crate::decide::withdraw::Withdrawal;
use crate::outcome::Outcome as Said;
use crate::uses::listed;

/// Logs a line at `$level` if `$is_told`, and otherwise at the debug level.
macro_rules! tell {
    ($is_told:expr, $level:ident, $($line:tt)+) => {
        if $is_told {
            tracing::$level!($($line)+);
        } else {
            tracing::debug!($($line)+);
        }
    };
}
pub(super) use tell;

/// Writes a line.
pub(super) fn say(line: &Line) {
    let Line {
        level,
        outcome,
        bundle,
        file,
        image,
        digest,
        text,
    } = line;
    let (bundle, file) = (bundle.as_deref(), file.as_deref());
    let (image, digest) = (image.as_deref(), digest.as_deref());
    let outcome = outcome.map(Said::as_str);
    match level {
        Level::Debug => debug!(bundle, file, image, digest, outcome, "{text}"),
        Level::Info => info!(bundle, file, image, digest, outcome, "{text}"),
        Level::Warn => warn!(bundle, file, image, digest, outcome, "{text}"),
        Level::Error => error!(bundle, file, image, digest, outcome, "{text}"),
    }
}

/// Most images of a bundle that are logged by name. Few bundles have more. Of bundles with
/// thousands of images the rest is counted.
const MOST_IMAGES: usize = 200;

/// Logs one line for each image that changed or failed, and one for the bundle. Unless `is_told`,
/// the warnings, the failures and the bundle's line have the debug level. In any case it logs at
/// most [`Row::MOST`] warnings, as many failures, and [`MOST_IMAGES`] other images by name.
pub(super) fn log_report(name: &OsStr, report: &BundleResult, is_told: bool) {
    let (bundle, now) = (shown(name), Instant::now());
    let mut row = Row::default();
    for warning in &report.warnings {
        tell!(is_told && row.admits(now), warn, bundle, "{warning}");
    }
    if let Some(count) = row.rest() {
        tell!(is_told, warn, bundle, "more warnings like these: {count}");
    }
    if report.retry {
        // The import stopped in the middle and continues soon. Another line says why.
        return;
    }
    let mut row = Row::default();
    let mut others = 0_usize;
    for image in report.told() {
        let is_told = match image.outcome {
            ImageOutcome::Failed => is_told && row.admits(now),
            _ if is_told_by_name(image) => {
                others += 1;
                others <= MOST_IMAGES
            }
            _ => false,
        };
        log_image(&bundle, image, is_told);
    }
    if let Some(more) = others.checked_sub(MOST_IMAGES).filter(|more| *more > 0) {
        info!(bundle, "more images like these: {more}");
    }
    if let Some(count) = row.rest() {
        tell!(
            is_told,
            error,
            bundle,
            "more of its images were not imported: {count}"
        );
    }
    let (outcome, bytes, milliseconds) = (
        report.outcome.as_str(),
        report.blobs.sent_bytes,
        report.duration_ms,
    );
    tell!(
        is_told,
        info,
        bundle,
        outcome,
        bytes,
        milliseconds,
        "bundle {outcome}: {} sent in {milliseconds} ms",
        basics::bytes(bytes)
    );
}

/// Logs one line for each image whose record another importer had written before it was whole.
pub(super) fn log_repairs(name: &OsStr, repaired: &[Repaired]) {
    for Repaired { image, blobs, bytes } in repaired {
        warn!(
            bundle = %shown(name),
            image,
            outcome = Said::Repaired.as_str(),
            "its record was there without {blobs} of its blobs ({}): repaired",
            basics::bytes(*bytes)
        );
    }
}

/// Returns true if an image that did not fail deserves a line at the usual level: it was skipped,
/// or its record changed. A `name@digest` record is left out, since it only accompanies the name.
fn is_told_by_name(image: &ImageResult) -> bool {
    match image.outcome {
        ImageOutcome::Skipped => true,
        ImageOutcome::Created | ImageOutcome::Retargeted | ImageOutcome::Relabelled => {
            !image.name.contains('@')
        }
        ImageOutcome::Unchanged | ImageOutcome::Failed => false,
    }
}

/// Logs one line for an image, at the usual level if `is_told`.
fn log_image(bundle: &str, image: &ImageResult, is_told: bool) {
    let reason = image.reason.as_deref().unwrap_or_default();
    let (name, digest, outcome) = (&image.name, image.target.as_ref(), image.outcome.as_str());
    match image.outcome {
        ImageOutcome::Failed => tell!(
            is_told,
            error,
            bundle,
            image = name,
            digest,
            outcome,
            "image not imported: {reason}"
        ),
        ImageOutcome::Skipped => tell!(
            is_told,
            info,
            bundle,
            image = name,
            digest,
            outcome,
            "image skipped: {reason}"
        ),
        ImageOutcome::Unchanged => debug!(bundle, image = name, digest, outcome, "image in place"),
        ImageOutcome::Created | ImageOutcome::Retargeted | ImageOutcome::Relabelled => {
            tell!(
                is_told,
                info,
                bundle,
                image = name,
                digest,
                outcome,
                "image {outcome}"
            );
        }
    }
}

/// Logs one line for a record that lost labels of airgapd. If the record lost its pin, logs another
/// line for the containers that were made from it.
pub(super) fn withdrawal(withdrawal: &Withdrawal, deleted: bool, users: &BTreeSet<&str>) {
    let Withdrawal {
        name,
        bundles,
        unpins,
        ..
    } = withdrawal;
    let bundles: Vec<String> = bundles.iter().map(|bundle| shown(OsStr::new(bundle))).collect();
    let what = match (deleted, unpins) {
        (true, _) => "deleted",
        (false, true) => "unpinned, the record stays",
        (false, false) => "the record and its pin stay, for another source or by `onRemoval`",
    };
    let bundles = bundles.join(", ");
    info!(
        bundle = bundles,
        image = name,
        outcome = Said::Removed.as_str(),
        "no longer in {bundles}: {what}"
    );
    if *unpins && !users.is_empty() {
        let users = listed(users);
        warn!(
            image = name,
            "lost its pin, and containers were made from it: {users}. When they are gone, kubelet may collect it"
        );
    }
}
