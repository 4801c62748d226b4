//! How far an import has come: a line in the log now and then, for bundles that take long.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use import::Observer;
use tokio::task::JoinHandle;
use tracing::info;

/// A big bundle is reported at most this often.
const EVERY: Duration = Duration::from_secs(10);

/// Watches one import and reports it until it is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    bytes: Arc<AtomicU64>,
    reporter: JoinHandle<()>,
}

impl Progress {
    /// Starts to report the import of a bundle.
    pub(crate) fn start(bundle: String) -> Progress {
        Progress::counting(bundle, Arc::default())
    }

    /// The same, with a counter of acknowledged bytes that others read too.
    pub(crate) fn counting(bundle: String, bytes: Arc<AtomicU64>) -> Progress {
        let reporter = tokio::spawn(report(bundle, Arc::clone(&bytes)));
        Progress { bytes, reporter }
    }
}

impl Observer for Progress {
    fn bytes(&self) -> Option<Arc<AtomicU64>> {
        Some(Arc::clone(&self.bytes))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.reporter.abort();
    }
}

async fn report(bundle: String, bytes: Arc<AtomicU64>) {
    let started = Instant::now();
    loop {
        tokio::time::sleep(EVERY).await;
        let sent = bytes.load(Ordering::Relaxed);
        let rate = sent / started.elapsed().as_secs().max(1);
        info!(
            bundle,
            bytes = sent,
            "{} sent so far, {}/s",
            crate::output::bytes(sent),
            crate::output::bytes(rate)
        );
    }
}
