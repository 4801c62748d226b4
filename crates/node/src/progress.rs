//! The progress of a long command or an import: as counters, in words, and as an occasional line of
//! the log.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use basics::{bytes, counted};
use import::Observer;
use import::ingest::IngestedImage;
use tokio::task::JoinHandle;
use tracing::info;

use crate::status::ProgressStatus;

/// Shortest time between two lines about the progress of a bundle.
const EVERY: Duration = Duration::from_secs(10);
/// Longest and shortest bar, in characters. A shorter bar would not look like a bar.
const BAR: usize = 30;
const SHORTEST_BAR: usize = 10;

/// The work that moves the counted bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Bytes go to containerd.
    Sending,
    /// Bytes go into a file.
    Writing,
    /// Bytes come from a file.
    Reading,
}

impl Doing {
    fn done(self) -> &'static str {
        match self {
            Doing::Sending => "sent",
            Doing::Writing => "written",
            Doing::Reading => "read",
        }
    }

    /// Returns what the work waits for when all bytes are through. A slow disk may take minutes for
    /// this.
    fn last(self) -> &'static str {
        match self {
            Doing::Sending => "containerd commits it",
            Doing::Writing => "finishing the file",
            Doing::Reading => "finishing",
        }
    }
}

/// The progress of one bundle. The task that moves the bytes counts, and other tasks read.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes that the receiver has acknowledged.
    bytes: Arc<AtomicU64>,
    /// Bytes that were read back from the receiver.
    read: AtomicU64,
    /// All bytes to move, or 0 until their number is known.
    planned: AtomicU64,
    /// Images that are finished, and all images.
    done: AtomicUsize,
    images: AtomicUsize,
    /// The image that was finished last.
    last: Mutex<Option<String>>,
    /// Time at which the first byte could move. The time before says nothing about the rate.
    moving: OnceLock<Instant>,
}

/// The progress as bytes that were acknowledged or read back, and images. Two marks are only
/// compared for equality.
pub type Mark = (u64, usize);

impl Counters {
    /// Returns the current mark.
    pub fn mark(&self) -> Mark {
        (
            self.bytes.load(Ordering::Relaxed) + self.read.load(Ordering::Relaxed),
            self.done.load(Ordering::Relaxed),
        )
    }

    /// Counts bytes that were read back from the receiver. They are no bytes to move.
    pub fn note_read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns the progress of work that began at `started`.
    pub fn so_far(&self, started: Instant) -> ProgressStatus {
        let moving = self.moving.get().copied().unwrap_or(started);
        let (bytes, planned) = (&self.bytes, &self.planned);
        let so_far = ProgressStatus::new(
            bytes.load(Ordering::Relaxed),
            planned.load(Ordering::Relaxed),
            basics::milliseconds(moving.elapsed()),
        );
        ProgressStatus {
            elapsed_ms: basics::milliseconds(started.elapsed()),
            images_done: self.done.load(Ordering::Relaxed),
            images: Some(self.images.load(Ordering::Relaxed)).filter(|images| *images > 0),
            ..so_far
        }
    }

    /// Returns the image that was finished last.
    pub fn last(&self) -> Option<String> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone()
    }
}

impl Observer for Counters {
    fn planned(&self, bytes: u64) {
        self.planned.store(bytes, Ordering::Relaxed);
        self.moving.get_or_init(Instant::now);
    }

    fn images(&self, count: usize) {
        self.images.store(count, Ordering::Relaxed);
    }

    fn image(&self, outcome: &IngestedImage) {
        self.done.fetch_add(1, Ordering::Relaxed);
        let records = outcome.records.as_deref().unwrap_or_default();
        if let Some((step, _)) = records.first() {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            *last = Some(step.name.clone());
        }
    }

    fn bytes(&self) -> Option<Arc<AtomicU64>> {
        Some(Arc::clone(&self.bytes))
    }
}

/// Logs the progress of a bundle every 10 s, until it is dropped.
#[derive(Debug)]
pub struct Reporter {
    counters: Arc<Counters>,
    task: JoinHandle<()>,
}

impl Reporter {
    /// Starts to log the progress in `counters`.
    pub fn start(bundle: String, doing: Doing, counters: Arc<Counters>) -> Reporter {
        Reporter {
            task: tokio::spawn(report(bundle, doing, Arc::clone(&counters))),
            counters,
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Observer for Reporter {
    fn planned(&self, bytes: u64) {
        self.counters.planned(bytes);
    }

    fn images(&self, count: usize) {
        self.counters.images(count);
    }

    fn image(&self, outcome: &IngestedImage) {
        self.counters.image(outcome);
    }

    fn bytes(&self) -> Option<Arc<AtomicU64>> {
        self.counters.bytes()
    }
}

async fn report(bundle: String, doing: Doing, counters: Arc<Counters>) {
    let started = Instant::now();
    loop {
        tokio::time::sleep(EVERY).await;
        let so_far = counters.so_far(started);
        info!(bundle, bytes = so_far.sent_bytes, "{}", line(doing, &so_far));
    }
}

/// Returns the progress in words.
pub fn line(doing: Doing, progress: &ProgressStatus) -> String {
    let (amount, pace) = (amount(progress), pace(doing, progress));
    let images = match progress.images {
        Some(images) => format!(", {} of {}", progress.images_done, counted(images, "image")),
        None => String::new(),
    };
    format!("{amount} {}, {pace}{images}", doing.done())
}

fn amount(progress: &ProgressStatus) -> String {
    let sent = bytes(progress.sent_bytes);
    match progress.total_bytes {
        Some(total) => format!("{sent} of {}", bytes(total)),
        None => sent,
    }
}

fn pace(doing: Doing, progress: &ProgressStatus) -> String {
    let is_all = |total: u64| total > 0 && progress.sent_bytes >= total;
    if progress.total_bytes.is_some_and(is_all) {
        return doing.last().to_owned();
    }
    let rate = bytes(progress.bytes_per_second);
    match progress.remaining_ms {
        Some(ms) => format!("{rate}/s, {} left", about(ms)),
        None => format!("{rate}/s"),
    }
}

/// Returns a time to wait, with the precision that a reader needs.
fn about(milliseconds: u64) -> String {
    match milliseconds.div_ceil(1000) {
        seconds @ ..100 => format!("{seconds} s"),
        seconds @ ..6000 => format!("{} min", seconds.div_ceil(60)),
        seconds => format!("{} h", seconds.div_ceil(3600)),
    }
}

/// Returns the progress in fewer words behind a bar. The bar gets the room that `width` characters
/// leave. There is no bar as long as the total is unknown.
pub fn bar(doing: Doing, progress: &ProgressStatus, width: usize) -> String {
    let Some(total) = progress.total_bytes.filter(|total| *total > 0) else {
        return line(doing, progress);
    };
    let part = u128::from(progress.sent_bytes.min(total)) * 100 / u128::from(total);
    let mut text = format!("{part:>3} %  {}, {}", amount(progress), pace(doing, progress));
    if let Some(images) = progress.images {
        let plural = if images == 1 { "" } else { "s" };
        text = format!("{text}, {}/{images} image{plural}", progress.images_done);
    }
    let room = width.saturating_sub(text.chars().count() + "[] ".len()).min(BAR);
    if room < SHORTEST_BAR {
        return text;
    }
    let full = usize::try_from(part).unwrap_or(0) * room / 100;
    format!("[{}{}] {text}", "#".repeat(full), ".".repeat(room - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_fits_the_screen_that_it_is_shown_on() {
        let table = [
            (
                (0, 1000, 1000),
                "[..............................]   0 %  0 B of 1.0 kB, 0 B/s, 1/3 images",
            ),
            (
                (500, 1000, 1000),
                "[###############...............]  50 %  500 B of 1.0 kB, 500 B/s, 1 s left, 1/3 images",
            ),
            (
                (1000, 1000, 500),
                "[##############################] 100 %  1.0 kB of 1.0 kB, containerd commits it, 1/3 images",
            ),
            ((700, 0, 1000), "700 B sent, 700 B/s, 1 of 3 images"),
        ];
        let of_three = |sent, total, ms| ProgressStatus {
            images: Some(3),
            images_done: 1,
            ..ProgressStatus::new(sent, total, ms)
        };
        for ((sent, total, ms), wanted) in table {
            let progress = of_three(sent, total, ms);
            assert_eq!(bar(Doing::Sending, &progress, 100), wanted);
            for width in [80, 70, 60] {
                let drawn = bar(Doing::Sending, &progress, width);
                assert!(drawn.chars().count() <= width, "{drawn}");
            }
        }
        let narrow = bar(Doing::Sending, &of_three(500, 1000, 1000), 50);
        assert_eq!(narrow, " 50 %  500 B of 1.0 kB, 500 B/s, 1 s left, 1/3 images");
        // The widest possible numbers leave room for a bar on an ordinary terminal.
        let wide = ProgressStatus::new(111_100_000, 999_900_000, 1_000);
        let wide = ProgressStatus {
            images: Some(200),
            images_done: 199,
            bytes_per_second: 111_100_000,
            remaining_ms: Some(99_000),
            ..wide
        };
        assert!(bar(Doing::Sending, &wide, 79).starts_with("[#"));
        for (doing, word) in [(Doing::Writing, "written"), (Doing::Reading, "read")] {
            assert!(line(doing, &ProgressStatus::new(1, 1000, 1000)).contains(word));
        }
        let most = bar(Doing::Sending, &ProgressStatus::new(u64::MAX, u64::MAX, 1), 100);
        assert!(most.starts_with("[######"), "{most}");
    }

    #[test]
    fn images_are_counted_and_the_rate_begins_with_the_first_byte() {
        let counters = Counters::default();
        let long_ago = Instant::now().checked_sub(Duration::from_secs(3600)).unwrap();
        assert_eq!(counters.so_far(long_ago).images, None);
        counters.planned(10_000_000);
        counters.images(3);
        counters.bytes.fetch_add(5_000_000, Ordering::Relaxed);
        counters.image(&IngestedImage {
            index: 0,
            records: Ok(Vec::new()),
        });
        let so_far = counters.so_far(long_ago);
        assert!(so_far.elapsed_ms >= 3_600_000, "{so_far:?}");
        // Over the whole hour the rate would be 1.4 kB/s.
        assert!(so_far.bytes_per_second > 100_000, "{so_far:?}");
        assert!(
            line(Doing::Sending, &so_far).ends_with(", 1 of 3 images"),
            "{so_far:?}"
        );
    }

    #[test]
    fn a_time_to_wait_is_told_in_one_unit() {
        let table = [
            (1, "1 s"),
            (99_000, "99 s"),
            (100_000, "2 min"),
            (7_200_000, "2 h"),
        ];
        for (ms, wanted) in table {
            assert_eq!(about(ms), wanted);
        }
    }
}
