//! The wait for an ingest that another writer has locked: the longest time without progress, and
//! the pauses between two looks. Pure.

use std::time::{Duration, Instant};

use basics::Backoff;

/// Pauses between two looks.
const PAUSES: Backoff = Backoff {
    first: Duration::from_millis(16),
    longest: Duration::from_secs(2),
};

/// The observed state of a locked ingest.
pub(super) struct Lock {
    /// Longest time without progress.
    limit: Duration,
    /// Number of bytes at the last look, and the time since when. The number is `None` if there was
    /// no ingest.
    seen: Option<(Option<u64>, Instant)>,
    pauses: u32,
}

impl Lock {
    pub(super) fn new(limit: Duration) -> Lock {
        Lock {
            limit,
            seen: None,
            pauses: 0,
        }
    }

    /// Takes the ingest's number of bytes at this look. Once the time without progress has reached
    /// the limit, returns that time.
    pub(super) fn stands_still(&mut self, reached: Option<u64>, now: Instant) -> Option<Duration> {
        match self.seen {
            Some((before, since)) if before == reached => {
                let waited = now.saturating_duration_since(since);
                (waited >= self.limit).then_some(waited)
            }
            _ => {
                self.seen = Some((reached, now));
                None
            }
        }
    }

    /// Returns the pause before the next look.
    pub(super) fn pause(&mut self, chance: u64) -> Duration {
        let pause = PAUSES.wait(self.pauses, chance);
        self.pauses = self.pauses.saturating_add(1);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks once a second. Returns the number of seconds after which the wait is over.
    fn waited(reached_at: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let (mut lock, start) = (Lock::new(Duration::from_secs(60)), Instant::now());
        (0..1000).find(|second| {
            let now = start + Duration::from_secs(*second);
            lock.stands_still(reached_at(*second), now).is_some()
        })
    }

    #[test]
    fn a_writer_that_gets_on_is_waited_for_and_a_still_one_until_the_limit() {
        assert_eq!(
            waited(|_| Some(7)),
            Some(60),
            "it stands still from the first look"
        );
        assert_eq!(waited(|_| None), Some(60), "locked, and there is no ingest");
        assert_eq!(waited(Some), None, "it gets on");
        assert_eq!(waited(|second| Some(second / 59)), None, "it gets on slowly");
        assert_eq!(waited(|second| Some(second.min(100))), Some(160), "it stops");
        assert_eq!(
            waited(|second| (second < 30).then_some(7)),
            Some(90),
            "another has begun"
        );
    }

    #[test]
    fn pauses_grow_to_two_seconds() {
        let mut lock = Lock::new(Duration::ZERO);
        let pauses: Vec<_> = (0..9).map(|_| lock.pause(0).as_millis()).collect();
        assert_eq!(pauses, [16, 32, 64, 128, 256, 512, 1024, 2000, 2000]);
    }
}
