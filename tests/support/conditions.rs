//! Waiting for conditions, and texts that nobody else uses.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// Whatever is waited for comes within this time, or never.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for a condition, which is checked again and again.
///
/// # Panics
/// If it does not hold within [`PATIENCE`].
pub fn wait_until(what: &str, holds: impl FnMut() -> bool) {
    wait_for(PATIENCE, what, holds);
}

/// Waits for a condition that may take as long as that.
///
/// # Panics
/// If it does not hold by then.
pub fn wait_for(patience: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !holds() {
        assert!(Instant::now() < deadline, "waited {patience:?} in vain: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A text that no other test of any process uses: containerd shares content between namespaces.
pub fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::UNIX_EPOCH
        .elapsed()
        .expect("now is after 1970")
        .as_nanos();
    format!(
        "{}-{now}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}
