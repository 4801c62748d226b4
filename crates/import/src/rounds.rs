//! Rounds of slow work, such as a sync: each round serves all that wait for it.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

/// Rounds of a check. Each round serves all callers that asked before it started.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    /// Number of calls so far.
    asked: AtomicU64,
    /// Number of calls that a round has answered with yes. Locked during a round.
    answered: Mutex<u64>,
}

impl Rounds {
    /// Waits for a round that starts after this call and succeeds. The first caller in the queue
    /// runs the round for all that wait. If its round fails or says no, the other callers run their
    /// own. Safe to cancel.
    pub(crate) async fn join<E>(&self, round: impl AsyncFnOnce() -> Result<bool, E>) -> Result<bool, E> {
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
