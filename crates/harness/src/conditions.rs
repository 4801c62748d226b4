//! Waits for conditions, and makes texts that no other test uses.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use containerd::Client;
use jiff::{SignedDuration, Timestamp};

/// Longest wait for a condition. A condition that does not hold by then never will.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Polls a condition until it holds.
///
/// # Panics
///
/// Panics if the condition does not hold within [`PATIENCE`].
pub fn wait_until(what: &str, holds: impl FnMut() -> bool) {
    wait_for(PATIENCE, what, holds);
}

/// Polls a condition until it holds, at most for `patience`.
///
/// # Panics
///
/// Panics if the condition does not hold in time.
pub fn wait_for(patience: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !holds() {
        assert!(Instant::now() < deadline, "waited {patience:?} in vain: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Polls a condition until it holds, in an asynchronous scenario.
///
/// # Panics
///
/// Panics if the condition does not hold within [`PATIENCE`].
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Returns a text that no other test of any process uses, since containerd shares content between
/// namespaces.
///
/// # Panics
///
/// Panics if the clock shows a time before 1970.
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

/// Makes containerd collect its garbage, the way every client can, and waits for the end.
///
/// # Panics
///
/// Panics if containerd does not answer.
pub async fn collect_garbage(client: &Client) {
    let lease = format!("collection-{}", unique());
    let expires = Timestamp::now() + SignedDuration::from_hours(1);
    let created = client.create_lease(&lease, expires, &BTreeMap::new()).await;
    created.expect("a lease");
    let deleted = client.delete_lease(&lease, true).await;
    assert!(deleted.expect("containerd answers"));
}
