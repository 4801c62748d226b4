//! How it goes with the connection to containerd: when to try again, and what of it is news. Pure.
//!
//! A containerd that is away for an hour is told of once. One that answers and then fails, or
//! starts and dies again and again, is not run against without a pause: only a connection that has
//! lasted makes the next wait short again.

use std::time::{Duration, Instant};

use basics::backoff::Backoff;

/// The waits for a containerd that is not there.
const WAIT: Backoff = Backoff {
    first: Duration::from_millis(100),
    longest: Duration::from_secs(5),
};

/// A connection that was there for so long was a good one.
const LASTING: Duration = Duration::from_secs(30);

/// What has become of the tries so far.
#[derive(Debug, Default)]
pub(crate) struct Link {
    /// Tries in a row of which no lasting connection came.
    failures: u32,
    /// Since when there is a connection.
    up: Option<Instant>,
    /// Why the last try came to nothing.
    why: Option<String>,
}

impl Link {
    /// A connection has come about.
    pub(crate) fn connected(&mut self, now: Instant) {
        self.up = Some(now);
        self.why = None;
    }

    /// None has come about. Gives when to try again, and whether the reason is another than before.
    pub(crate) fn failed(&mut self, why: &str, now: Instant, chance: u64) -> (Instant, bool) {
        let is_news = self.why.as_deref() != Some(why);
        self.why = Some(why.to_owned());
        (self.again(now, chance), is_news)
    }

    /// The connection is gone. Gives when to try again.
    pub(crate) fn lost(&mut self, now: Instant, chance: u64) -> Instant {
        let lasted = self.up.take().map(|since| now.saturating_duration_since(since));
        if lasted.is_some_and(|lasted| lasted >= LASTING) {
            self.failures = 0;
        }
        self.again(now, chance)
    }

    /// Why there is no connection, where a try has told.
    pub(crate) fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }

    fn again(&mut self, now: Instant, chance: u64) -> Instant {
        let wait = WAIT.wait(self.failures, chance);
        self.failures = self.failures.saturating_add(1);
        now + wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Tries for an hour, as the daemon does, and gives how often and how often that was news.
    fn for_an_hour(mut attempt: impl FnMut(&mut Link, Instant) -> (Instant, bool)) -> (u32, u32) {
        let begin = Instant::now();
        let (mut link, mut now) = (Link::default(), begin);
        let (mut tries, mut news) = (0, 0);
        while now < begin + HOUR {
            let (next, is_news) = attempt(&mut link, now);
            tries += 1;
            news += u32::from(is_news);
            now = next;
        }
        (tries, news)
    }

    #[test]
    fn a_containerd_that_is_away_for_an_hour_is_told_of_once() {
        let (tries, news) = for_an_hour(|link, now| link.failed("no containerd on x", now, 0));
        assert_eq!(news, 1);
        // Every five seconds, after the first few.
        assert!((720..735).contains(&tries), "{tries}");
    }

    #[test]
    fn another_reason_is_news_and_so_is_the_first_one_after_a_connection() {
        let now = Instant::now();
        let mut link = Link::default();
        assert!(link.failed("a", now, 0).1);
        assert!(!link.failed("a", now, 0).1);
        assert!(link.failed("b", now, 0).1);
        assert_eq!(link.why(), Some("b"));
        link.connected(now);
        assert_eq!(link.why(), None);
        link.lost(now, 0);
        assert!(link.failed("b", now, 0).1);
    }

    /// It answers, and fails at the first thing it is asked for.
    #[test]
    fn a_containerd_that_is_lost_at_once_is_not_run_against() {
        let (tries, _) = for_an_hour(|link, now| {
            link.connected(now);
            (link.lost(now, 0), true)
        });
        assert!((720..735).contains(&tries), "{tries}");
    }

    #[test]
    fn after_a_connection_that_lasted_the_next_try_comes_soon() {
        let now = Instant::now();
        let mut link = Link::default();
        for _ in 0..20 {
            link.failed("a", now, 0);
        }
        link.connected(now);
        let later = now + LASTING;
        assert_eq!(link.lost(later, 0), later + WAIT.first);
    }
}
