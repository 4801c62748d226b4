//! What the daemon says of bundles and images in its log.

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use basics::Foreign;
use import::BundleResult;
use import::result::{ImageOutcome, ImageResult};
use tracing::{debug, info, warn};

use crate::coexistence::Repaired;

/// A file name for people and logs.
pub(super) fn shown(name: &OsStr) -> String {
    Foreign::file_name(name).to_string()
}

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

/// Keeps lines of one kind from flooding the log: a folder that somebody filled with a thousand files of another kind is
/// one mistake, and a containerd that comes and goes all night is one trouble. Pure: the time comes in from outside.
///
/// The first of a row are told by name. The others are counted, and the count is told when the row pauses, or each minute
/// while it goes on. So a minute has no more lines of a kind than [`Row::MOST`] and one, whatever happens.
#[derive(Debug, Default)]
pub(super) struct Row {
    last: Option<Instant>,
    told: u32,
    held_back: u32,
    /// When the first of those that are held back came.
    oldest: Option<Instant>,
    /// When the last count was told.
    counted: Option<Instant>,
}

impl Row {
    /// How many are told by name.
    const MOST: u32 = 20;
    /// After so long without one the next begins another row; counts are told no more often than that.
    const QUIET: Duration = Duration::from_secs(60);
    /// After so long without one those that were held back are told of.
    const PAUSE: Duration = Duration::from_secs(2);

    /// Whether one more is to be told by name.
    pub(super) fn admits(&mut self, now: Instant) -> bool {
        let since = self
            .last
            .replace(now)
            .map(|last| now.saturating_duration_since(last));
        if since.is_none_or(|since| since >= Self::QUIET) {
            self.told = 0;
        }
        let is_told = self.told < Self::MOST;
        if is_told {
            self.told += 1;
        } else {
            self.held_back += 1;
            self.oldest.get_or_insert(now);
        }
        is_told
    }

    /// When those that were held back are to be told of.
    fn due(&self) -> Option<Instant> {
        let (last, oldest) = (self.last?, self.oldest?);
        let due = (last + Self::PAUSE).min(oldest + Self::QUIET);
        Some(self.counted.map_or(due, |counted| due.max(counted + Self::QUIET)))
    }

    /// How many were held back, once that is to be told.
    fn count(&mut self, now: Instant) -> Option<u32> {
        self.due().filter(|due| *due <= now)?;
        self.counted = Some(now);
        self.rest()
    }

    /// How many are still held back, whenever that is.
    fn rest(&mut self) -> Option<u32> {
        self.oldest.take()?;
        Some(std::mem::take(&mut self.held_back))
    }
}

/// The kinds of lines of which there may be one for each file, or without end.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// Files that are begun with.
    pub(super) begun: Row,
    /// Files that are not imported yet, for a reason that may pass.
    pub(super) delayed: Row,
    /// Files that are not imported, or not all of them.
    pub(super) refused: Row,
    /// Files that are no bundles as their content shows.
    pub(super) ignored: Row,
    /// Files that left the folder.
    pub(super) gone: Row,
    /// The connection to containerd coming and going.
    pub(super) connection: Row,
}

impl Rows {
    /// When there is something to sum up.
    pub(super) fn due(&self) -> Option<Instant> {
        let Rows {
            begun,
            delayed,
            refused,
            ignored,
            gone,
            connection,
        } = self;
        let rows = [begun, delayed, refused, ignored, gone, connection];
        rows.into_iter().filter_map(Row::due).min()
    }

    /// Tells how many were held back, of the kinds for which that is due.
    pub(super) fn sum_up(&mut self, now: Instant) {
        self.tell(|row| row.count(now));
    }

    /// Tells what was not told yet: nothing comes after.
    pub(super) fn end(&mut self) {
        self.tell(Row::rest);
    }

    fn tell(&mut self, mut count_of: impl FnMut(&mut Row) -> Option<u32>) {
        const HINT: &str = "`log.level: debug` names them";
        if let Some(count) = count_of(&mut self.begun) {
            info!("{count} more files were begun with ({HINT})");
        }
        if let Some(count) = count_of(&mut self.delayed) {
            info!("{count} more files are not whole yet, or wait for something ({HINT})");
        }
        if let Some(count) = count_of(&mut self.refused) {
            warn!("{count} more files were not imported ({HINT})");
        }
        if let Some(count) = count_of(&mut self.ignored) {
            info!("{count} more files were ignored ({HINT})");
        }
        if let Some(count) = count_of(&mut self.gone) {
            info!("{count} more bundles are gone ({HINT})");
        }
        if let Some(count) = count_of(&mut self.connection) {
            warn!("containerd goes on coming and going: {count} more changes");
        }
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
    if let Some(count) = row.rest() {
        tell!(is_told, warn, bundle, "{count} more warnings like these");
    }
    if report.retry {
        // It stopped in the middle and goes on soon: one line says why, elsewhere.
        return;
    }
    let mut row = Row::default();
    let mut others = 0_usize;
    for image in &report.images {
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
    if let Some(count) = row.rest() {
        tell!(
            is_told,
            error,
            bundle,
            "{count} more of its images were not imported"
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_row_is_cut_short_and_counted_and_a_later_one_is_told_again() {
        let now = Instant::now();
        let mut row = Row::default();
        let told = (0..1000).filter(|_| row.admits(now)).count();
        assert_eq!(told, 20);
        assert_eq!(row.count(now), None, "it may go on");
        assert_eq!(row.count(now + Row::PAUSE), Some(980));
        assert_eq!((row.due(), row.rest()), (None, None));
        assert!(!row.admits(now + Row::QUIET / 2));
        assert!(row.admits(now + Row::QUIET / 2 + Row::QUIET));
    }

    #[test]
    fn a_row_that_does_not_pause_is_counted_each_minute() {
        let now = Instant::now();
        let mut row = Row::default();
        let counts: Vec<u32> = (0..3600)
            .filter_map(|second| {
                let now = now + Duration::from_secs(second);
                row.admits(now);
                row.count(now)
            })
            .collect();
        assert!((55..=60).contains(&counts.len()), "{counts:?}");
        assert_eq!(counts.iter().sum::<u32>() + row.rest().unwrap_or(0) + 20, 3600);
    }

    proptest! {
        /// The bound that the log is promised to keep, and that nothing goes uncounted.
        #[test]
        fn a_minute_has_at_most_21_lines_of_a_kind(pauses in prop::collection::vec(0..5000_u64, 1..2000)) {
            let mut now = Instant::now();
            let (mut row, mut lines, accounted) = (Row::default(), Vec::new(), Cell::new(0));
            for pause in &pauses {
                let next = now + Duration::from_millis(*pause);
                if let Some(due) = row.due().filter(|due| *due < next) {
                    accounted.set(accounted.get() + row.count(due).unwrap());
                    lines.push(due);
                }
                now = next;
                if row.admits(now) {
                    accounted.set(accounted.get() + 1);
                    lines.push(now);
                }
            }
            let within = |start: &Instant| lines.iter().filter(|line| **line >= *start && **line < *start + Row::QUIET).count();
            prop_assert!(lines.iter().all(|start| within(start) <= 21));
            accounted.set(accounted.get() + row.rest().unwrap_or(0));
            prop_assert_eq!(accounted.get() as usize, pauses.len());
        }
    }
}
