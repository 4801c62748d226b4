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

/// Tells of something by name where `$is_told`, and otherwise only to those who want to know everything.
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

/// How many images of a bundle that came to something are told of by name. Few bundles have more; those of thousands of
/// images are counted.
const MOST_IMAGES: usize = 200;

/// One line for each image that changed or failed, and one for the bundle. With all of it held back where `is_told` says
/// so, and at most [`Row::MOST`] warnings, as many failures and [`MOST_IMAGES`] others in any case.
pub(super) fn log_report(name: &OsStr, report: &BundleResult, is_told: bool) {
    let (bundle, now) = (shown(name), Instant::now());
    let mut row = Row::default();
    for warning in &report.warnings {
        tell!(is_told && row.admits(now), warn, bundle, "{warning}");
    }
    match row.rest() {
        None => {}
        Some(1) => tell!(is_told, warn, bundle, "1 more warning like these"),
        Some(count) => tell!(is_told, warn, bundle, "{count} more warnings like these"),
    }
    if report.retry {
        // It stopped in the middle and goes on soon: one line says why, elsewhere.
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
        info!(bundle, "{more} more of its images came to something like these");
    }
    match row.rest() {
        None => {}
        Some(1) => tell!(is_told, error, bundle, "1 more of its images was not imported"),
        Some(count) => tell!(
            is_told,
            error,
            bundle,
            "{count} more of its images were not imported"
        ),
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

/// One line for each image that others had recorded before it was whole.
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

/// Whether an image that did not fail is worth a line at the usual level: it was skipped, or its record changed. Its
/// `name@digest` record goes without saying.
fn is_told_by_name(image: &ImageResult) -> bool {
    match image.outcome {
        ImageOutcome::Skipped => true,
        ImageOutcome::Created | ImageOutcome::Retargeted | ImageOutcome::Relabelled => {
            !image.name.contains('@')
        }
        ImageOutcome::Unchanged | ImageOutcome::Failed => false,
    }
}

/// One line for each image, at the usual level where `is_told` says so.
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

/// One line for a record that lost labels of ours, and one for the containers that were made from it where it lost its pin.
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
        (false, false) => "still vouched for by others, or kept",
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
            "lost its pin, and containers were made from it: {users}; once they are gone kubelet may collect it"
        );
    }
}
