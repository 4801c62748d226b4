//! Decides when to reconnect to containerd, and which news about it to log. Pure.
//!
//! The log has a containerd that is away for an hour once. A containerd may also answer and then
//! fail, or start and die, again and again. The daemon then pauses between attempts, too: only a
//! connection that lasted makes the delay short again.

use std::time::{Duration, Instant};

use basics::backoff::Backoff;

/// The delays between attempts to connect.
const WAIT: Backoff = Backoff {
    first: Duration::from_millis(100),
    longest: Duration::from_secs(5),
};

/// Time after which a connection counts as good.
const LASTING: Duration = Duration::from_secs(30);

/// The attempts so far.
#[derive(Debug, Default)]
pub(crate) struct Link {
    /// Number of attempts in a row without a lasting connection.
    failures: u32,
    /// Time since which the connection exists.
    up: Option<Instant>,
    /// The error of the last attempt.
    why: Option<String>,
}

impl Link {
    /// Notes a new connection.
    pub(crate) fn connected(&mut self, now: Instant) {
        self.up = Some(now);
        self.why = None;
    }

    /// Notes a failed attempt. Returns the time of the next one, and true if the reason is new.
    pub(crate) fn failed(&mut self, why: &str, now: Instant, chance: u64) -> (Instant, bool) {
        let is_news = self.why.as_deref() != Some(why);
        self.why = Some(why.to_owned());
        (self.again(now, chance), is_news)
    }

    /// Notes a lost connection. Returns the time of the next attempt.
    pub(crate) fn lost(&mut self, now: Instant, chance: u64) -> Instant {
        let lasted = self.up.take().map(|since| now.saturating_duration_since(since));
        if lasted.is_some_and(|lasted| lasted >= LASTING) {
            self.failures = 0;
        }
        self.again(now, chance)
    }

    /// Returns why there is no connection, if an attempt has failed.
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

    /// Tries for an hour, as the daemon does. Returns the number of attempts, and how many were
    /// news.
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
        // One attempt every five seconds, after the first few.
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

    /// The containerd answers, and fails at the first request.
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
