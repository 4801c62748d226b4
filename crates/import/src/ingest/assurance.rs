//! The checks before a record is written: the names of its blobs are durable, and the lease has
//! held the blobs all the time.
//!
//! containerd syncs the bytes of a blob and then renames the file into place. Before 2.2, it does
//! not sync the rename. The record in its database, however, is durable at once. So a power cut in
//! the next seconds leaves a record whose blob has no file. containerd still lists such a blob.
//!
//! A deleted lease protects nothing: its blobs may have been collected.
//!
//! One round serves every image that waits when the round starts.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use containerd::Client;
use tokio::sync::{Mutex, OnceCell};

use crate::lease::Lease;

/// The state of the checks for one lease.
#[derive(Debug, Default)]
pub(super) struct Assurance {
    /// Folder of the content store, as containerd gives it.
    store: OnceCell<Option<PathBuf>>,
    rounds: Rounds,
}

impl Assurance {
    /// Secures everything that was put under the lease before. Returns true if the lease still
    /// exists. Safe to cancel.
    ///
    /// If containerd's files are not visible, their names cannot be synced. The image is recorded
    /// all the same, as every other importer does.
    ///
    /// # Errors
    ///
    /// Returns an error if containerd does not list its leases.
    pub(super) async fn make_sure(&self, client: &Client, lease: &Lease) -> Result<bool, containerd::Error> {
        let round = async || {
            self.make_names_last(client).await;
            lease.is_alive(client).await
        };
        self.rounds.join(round).await
    }

    async fn make_names_last(&self, client: &Client) {
        // After an error, the next round asks again.
        let store = self.store.get_or_try_init(|| client.content_root()).await;
        let Ok(Some(store)) = store else { return };
        let blobs = store.join("blobs");
        match tokio::task::spawn_blocking(move || sync_below(&blobs)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "cannot sync the names of blobs"),
            Err(error) => tracing::debug!(%error, "cannot sync the names of blobs"),
        }
    }
}

/// Rounds of a check. Each round serves all callers that asked before it started.
#[derive(Debug, Default)]
struct Rounds {
    /// Number of calls so far.
    asked: AtomicU64,
    /// Number of calls that a round has answered with yes. Locked during a round.
    answered: Mutex<u64>,
}

impl Rounds {
    /// Waits for a round that starts after this call and succeeds. The first caller in the queue
    /// runs the round for all that wait. If its round fails or says no, the other callers run their
    /// own. Safe to cancel.
    async fn join<E>(&self, round: impl AsyncFnOnce() -> Result<bool, E>) -> Result<bool, E> {
        let turn = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let mut answered = self.answered.lock().await;
        if *answered >= turn {
            return Ok(true);
        }
        let served = self.asked.load(Ordering::Acquire);
        let is_good = round().await?;
        if is_good {
            *answered = served;
        }
        Ok(is_good)
    }
}

/// Syncs the folders' entries (fsync(2)). There is one folder for each digest algorithm.
fn sync_below(blobs: &Path) -> io::Result<()> {
    for kind in blobs.read_dir()? {
        File::open(kind?.path())?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tokio::sync::Notify;

    use super::*;

    /// Joins a round that gives this answer once it may end, and counts the round.
    async fn round(rounds: &Rounds, count: &AtomicU64, may_end: &Notify, answer: bool) -> bool {
        let round = async || {
            count.fetch_add(1, Ordering::Relaxed);
            may_end.notified().await;
            Ok::<_, Infallible>(answer)
        };
        let Ok(is_good) = rounds.join(round).await;
        is_good
    }

    #[tokio::test]
    async fn who_comes_during_a_round_waits_for_the_next_and_one_is_enough_for_all_of_them() {
        let (rounds, count, may_end) = (Rounds::default(), AtomicU64::new(0), Notify::new());
        let ask = || round(&rounds, &count, &may_end, true);
        let in_order = async {
            tokio::task::yield_now().await;
            for wanted in [1, 2] {
                assert_eq!(count.load(Ordering::Relaxed), wanted);
                may_end.notify_one();
                tokio::task::yield_now().await;
            }
        };
        // The first call starts a round at once. The others ask while that round is under way.
        let (first, second, third, ()) = tokio::join!(biased; ask(), ask(), ask(), in_order);
        assert_eq!([first, second, third], [true; 3]);
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn who_asks_later_gets_a_round_of_their_own_and_a_no_serves_nobody_else() {
        let (rounds, count, may_end) = (Rounds::default(), AtomicU64::new(0), Notify::new());
        for (number, answer) in [(1, true), (2, false), (3, true)] {
            may_end.notify_one();
            assert_eq!(round(&rounds, &count, &may_end, answer).await, answer);
            assert_eq!(count.load(Ordering::Relaxed), number);
        }
        let asked = || round(&rounds, &count, &may_end, false);
        let ending = async {
            for _ in 0..2 {
                may_end.notify_one();
                tokio::task::yield_now().await;
            }
        };
        let (first, second, ()) = tokio::join!(biased; asked(), asked(), ending);
        assert_eq!(([first, second], count.load(Ordering::Relaxed)), ([false; 2], 5));
    }
}
