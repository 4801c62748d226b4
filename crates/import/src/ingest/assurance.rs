//! Before a record is written: that the names of its blobs last, and that the lease has held them
//! all the time.
//!
//! containerd makes the bytes of a blob last and then renames the file into place; before 2.2 it
//! does not make the rename last. Its database, though, lasts from the moment the record is
//! written, so a power cut in the seconds after that leaves a record whose blob has no file, which
//! containerd lists all the same. And a lease that somebody has deleted protects nothing: what it
//! held may have been collected.
//!
//! One round serves every image that waits for it when it begins.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use containerd::Client;
use tokio::sync::{Mutex, OnceCell};

use crate::lease::Lease;

/// What one lease is known to hold, on a disk that is known to keep it.
#[derive(Debug, Default)]
pub(super) struct Assurance {
    /// Where the content store is, as containerd says.
    store: OnceCell<Option<PathBuf>>,
    rounds: Rounds,
}

impl Assurance {
    /// Makes sure of everything that was put under the lease before; says whether the lease still
    /// holds it. Safe to cancel.
    ///
    /// Where names cannot be made to last (containerd runs on what we cannot see), the image is
    /// recorded all the same, as every other importer does.
    ///
    /// # Errors
    ///
    /// When containerd does not say which leases there are.
    pub(super) async fn make_sure(&self, client: &Client, lease: &Lease) -> Result<bool, containerd::Error> {
        let round = async || {
            self.make_names_last(client).await;
            lease.is_alive(client).await
        };
        self.rounds.join(round).await
    }

    async fn make_names_last(&self, client: &Client) {
        // Who cannot be asked is asked again in the next round.
        let store = self.store.get_or_try_init(|| client.content_root()).await;
        let Ok(Some(store)) = store else { return };
        let blobs = store.join("blobs");
        match tokio::task::spawn_blocking(move || sync_below(&blobs)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the names of blobs are not known to last"),
            Err(error) => tracing::debug!(%error, "nobody made the names of blobs last"),
        }
    }
}

/// Rounds of a check, each for all who asked before it began.
#[derive(Debug, Default)]
struct Rounds {
    /// How often a round was asked for.
    asked: AtomicU64,
    /// How many of these had an answer of yes. Held during a round.
    answered: Mutex<u64>,
}

impl Rounds {
    /// Waits for a round that begins after this call and says yes; who does not find one goes the
    /// round for all that wait. A no, like an error, is only for who went it: the others go for
    /// themselves. Safe to cancel.
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

/// Makes the entries of the folders last (fsync(2)), one of which there is for each kind of digest.
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

    /// A round that gives this answer as soon as it may, and is counted.
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
        // The first one goes a round at once, and the others ask while it is under way.
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
