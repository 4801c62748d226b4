//! How far a long command has come: a bar for whoever sits at a terminal, otherwise a line in the log now and then, for
//! bundles that take long. With `-q` neither.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use import::Observer;
use tokio::task::JoinHandle;
use tracing::{Level, info};

use crate::output::{self, bytes};
use crate::status::{ProgressStatus, millis};

/// A big bundle is reported at most this often.
const EVERY: Duration = Duration::from_secs(10);
/// How often a bar moves.
const MOVES: Duration = Duration::from_millis(200);
/// How long a bar is, in characters.
const BAR: u64 = 30;

/// What is done with the bytes that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    Sending,
    Writing,
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

    /// What is waited for when there is nothing left. A slow disk may take minutes for it.
    fn last(self) -> &'static str {
        match self {
            Doing::Sending => "containerd commits it",
            Doing::Writing => "the file is being finished",
            Doing::Reading => "coming to an end",
        }
    }
}

/// Watches one bundle on its way and reports it until it is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    bytes: Arc<AtomicU64>,
    planned: Arc<AtomicU64>,
    reporter: JoinHandle<()>,
    on_terminal: bool,
}

impl Progress {
    /// Starts to report what becomes of a bundle to whoever typed the command.
    pub(crate) fn start(bundle: String, doing: Doing) -> Progress {
        let (bytes, planned) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let on_terminal = has_bar();
        let counters = (Arc::clone(&bytes), Arc::clone(&planned));
        let reporter = match on_terminal {
            true => tokio::spawn(draw(doing, counters)),
            false => tokio::spawn(report(bundle, doing, counters)),
        };
        Progress {
            bytes,
            planned,
            reporter,
            on_terminal,
        }
    }

    /// The import of a bundle, for the log, with counters that others read too: of acknowledged bytes, and of those that are to be sent
    /// in all.
    pub(crate) fn counting(bundle: String, bytes: Arc<AtomicU64>, planned: Arc<AtomicU64>) -> Progress {
        let counters = (Arc::clone(&bytes), Arc::clone(&planned));
        Progress {
            bytes,
            planned,
            reporter: tokio::spawn(report(bundle, Doing::Sending, counters)),
            on_terminal: false,
        }
    }
}

impl Observer for Progress {
    fn planned(&self, bytes: u64) {
        self.planned.store(bytes, Ordering::Relaxed);
    }

    fn bytes(&self) -> Option<Arc<AtomicU64>> {
        Some(Arc::clone(&self.bytes))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.reporter.abort();
        if self.on_terminal {
            let _ = output::progress("");
        }
    }
}

/// Whether somebody watches.
pub(crate) fn has_bar() -> bool {
    io::stderr().is_terminal() && tracing::enabled!(Level::INFO)
}

async fn report(bundle: String, doing: Doing, (sent, planned): (Arc<AtomicU64>, Arc<AtomicU64>)) {
    let started = Instant::now();
    loop {
        tokio::time::sleep(EVERY).await;
        let so_far = so_far(&sent, &planned, started);
        info!(bundle, bytes = so_far.sent_bytes, "{}", line(doing, &so_far));
    }
}

async fn draw(doing: Doing, (sent, planned): (Arc<AtomicU64>, Arc<AtomicU64>)) {
    let started = Instant::now();
    loop {
        tokio::time::sleep(MOVES).await;
        let _ = output::progress(&bar(doing, &so_far(&sent, &planned, started)));
    }
}

fn so_far(sent: &AtomicU64, planned: &AtomicU64, started: Instant) -> ProgressStatus {
    let (sent, planned) = (sent.load(Ordering::Relaxed), planned.load(Ordering::Relaxed));
    ProgressStatus::new(sent, planned, millis(started.elapsed()))
}

/// How far it has come, in words.
pub(crate) fn line(doing: Doing, progress: &ProgressStatus) -> String {
    let of = progress.total_bytes.map(|total| format!(" of {}", bytes(total)));
    if progress
        .total_bytes
        .is_some_and(|total| total > 0 && progress.sent_bytes >= total)
    {
        return format!(
            "{}{} {}, {}",
            bytes(progress.sent_bytes),
            of.unwrap_or_default(),
            doing.done(),
            doing.last()
        );
    }
    let rest = progress
        .remaining_ms
        .map(|ms| format!(", {} s left", ms.div_ceil(1000)));
    format!(
        "{}{} {}, {}/s{}",
        bytes(progress.sent_bytes),
        of.unwrap_or_default(),
        doing.done(),
        bytes(progress.bytes_per_second),
        rest.unwrap_or_default()
    )
}

/// The same behind a bar; without one as long as nobody knows how much it will be.
pub(crate) fn bar(doing: Doing, progress: &ProgressStatus) -> String {
    let line = line(doing, progress);
    match progress.total_bytes {
        Some(total) if total > 0 => {
            let part = u128::from(progress.sent_bytes.min(total)) * 100 / u128::from(total);
            let full = usize::try_from(part * u128::from(BAR) / 100).unwrap_or(0);
            let empty = usize::try_from(BAR).unwrap_or(0).saturating_sub(full);
            format!("[{}{}] {part:>3} %  {line}", "#".repeat(full), ".".repeat(empty))
        }
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_whatever_it_shows_and_fits_a_screen() {
        let table = [
            (
                (0, 1000, 1000),
                "[..............................]   0 %  0 B of 1.0 kB sent, 0 B/s",
            ),
            (
                (500, 1000, 1000),
                "[###############...............]  50 %  500 B of 1.0 kB sent, 500 B/s, 1 s left",
            ),
            (
                (1000, 1000, 500),
                "[##############################] 100 %  1.0 kB of 1.0 kB sent, containerd commits it",
            ),
            ((700, 0, 1000), "700 B sent, 700 B/s"),
        ];
        for ((sent, total, ms), wanted) in table {
            let drawn = bar(Doing::Sending, &ProgressStatus::new(sent, total, ms));
            assert_eq!(drawn, wanted);
            assert!(drawn.chars().count() <= 100, "{drawn}");
        }
        for (doing, word) in [(Doing::Writing, "written"), (Doing::Reading, "read")] {
            for sent in [1, 1000] {
                assert!(bar(doing, &ProgressStatus::new(sent, 1000, 1000)).contains(word));
            }
        }
        let most = bar(Doing::Sending, &ProgressStatus::new(u64::MAX, u64::MAX, 1));
        assert!(most.starts_with("[######"), "{most}");
    }
}
