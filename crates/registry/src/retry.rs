//! Retries: decides which failures are worth a retry, how many there are, and the wait before each.
//!
//! [`Tries`] only decides. It neither reads a clock nor waits. The sender of the requests waits.

use std::time::Duration;

use basics::Backoff;

use crate::Error;

/// Longest `Retry-After` of a registry that the client accepts.
const LONGEST_ASKED: Duration = Duration::from_secs(60);

/// Longest pause between retries, apart from waits that a registry requests.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The number of retries and the pause before them.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// Number of retries without any progress.
    pub times: u32,
    /// Pause before the first retry. Each pause is twice the previous one, at most ten seconds.
    pub pause: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            times: 5,
            pause: Duration::from_millis(500),
        }
    }
}

/// The tries of one request or transfer.
#[derive(Debug)]
pub(crate) struct Tries {
    retry: Retry,
    /// Number of failures in a row without progress.
    failures: u32,
}

impl Tries {
    pub(crate) fn new(retry: Retry) -> Self {
        Self { retry, failures: 0 }
    }

    /// Counts a failure. Returns the wait before the next try, or `None` if a retry is pointless or
    /// the last try has failed.
    ///
    /// A failure after progress counts as the first one. If a registry requests a wait, the wait is
    /// that time plus the pause.
    pub(crate) fn wait_after(&mut self, error: &Error, has_moved: bool) -> Option<Duration> {
        // A drip is not progress, or it would go on forever.
        let has_moved = has_moved && !matches!(error, Error::TooSlow { .. });
        self.failures = if has_moved {
            1
        } else {
            self.failures.saturating_add(1)
        };
        if !error.is_transient() || self.failures > self.retry.times {
            return None;
        }
        let backoff = Backoff {
            first: self.retry.pause,
            longest: LONGEST_PAUSE,
        };
        let asked = error.retry_after().unwrap_or_default().min(LONGEST_ASKED);
        Some(asked + backoff.whole(self.failures - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16, retry_after: Option<u64>) -> Error {
        Error::Status {
            what: "an image".to_owned(),
            host: "registry.test".to_owned(),
            status,
            message: String::new(),
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    fn short() -> Error {
        Error::Short {
            what: "a blob".to_owned(),
            host: "registry.test".to_owned(),
            got: 1,
            expected: 2,
        }
    }

    fn drip() -> Error {
        Error::TooSlow {
            what: "a blob".to_owned(),
            host: "registry.test".to_owned(),
        }
    }

    fn not_found() -> Error {
        Error::NotFound {
            what: "a blob".to_owned(),
            host: "registry.test".to_owned(),
            message: String::new(),
        }
    }

    const STAYED: bool = false;
    const MOVED: bool = true;

    /// Returns the waits after these failures, in milliseconds.
    fn waits(retry: Retry, failures: &[(Error, bool)]) -> Vec<Option<u128>> {
        let mut tries = Tries::new(retry);
        failures
            .iter()
            .map(|(error, has_moved)| tries.wait_after(error, *has_moved))
            .map(|wait| wait.map(|wait| wait.as_millis()))
            .collect()
    }

    #[test]
    fn a_failure_is_followed_by_a_wait_or_by_none() {
        let tries = |times| Retry {
            times,
            pause: Duration::from_millis(500),
        };
        let stays = |failures: Vec<Error>| failures.into_iter().map(|error| (error, STAYED)).collect();
        let rows: [(_, _, Vec<(Error, bool)>, &[_]); 12] = [
            (
                "pauses double, and the last failure ends it",
                3,
                stays(vec![status(503, None), short(), status(500, None), short()]),
                &[Some(500), Some(1000), Some(2000), None],
            ),
            (
                "pauses end at ten seconds",
                7,
                stays((0..7).map(|_| short()).collect()),
                &[500, 1000, 2000, 4000, 8000, 10_000, 10_000].map(Some),
            ),
            ("no retries", 0, stays(vec![short()]), &[None]),
            ("no retries, with progress", 0, vec![(short(), MOVED)], &[None]),
            (
                "progress resets the count",
                2,
                vec![
                    (short(), STAYED),
                    (short(), STAYED),
                    (short(), MOVED),
                    (short(), STAYED),
                ],
                &[Some(500), Some(1000), Some(500), Some(1000)],
            ),
            (
                "a drip is no progress",
                2,
                vec![(drip(), MOVED), (drip(), MOVED), (drip(), MOVED)],
                &[Some(500), Some(1000), None],
            ),
            (
                "the registry's wait comes before the pause",
                2,
                stays(vec![status(429, Some(7)), status(429, Some(7))]),
                &[Some(7500), Some(8000)],
            ),
            (
                "the registry asks for too long a wait",
                2,
                stays(vec![status(429, Some(u64::MAX))]),
                &[Some(60_500)],
            ),
            (
                "the registry asks for no wait",
                2,
                stays(vec![status(429, None)]),
                &[Some(500)],
            ),
            (
                "the last failure waits for nothing",
                0,
                stays(vec![status(429, Some(60))]),
                &[None],
            ),
            (
                "an absent blob stays absent",
                2,
                stays(vec![not_found()]),
                &[None],
            ),
            (
                "an error of the request stays one",
                2,
                stays(vec![status(400, None)]),
                &[None],
            ),
        ];
        for (name, times, failures, expected) in rows {
            assert_eq!(waits(tries(times), &failures), expected, "{name}");
        }
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let is_tried_again = |error: &Error| Tries::new(Retry::default()).wait_after(error, false).is_some();
        for code in [408, 425, 429, 500, 502, 503, 504] {
            assert!(is_tried_again(&status(code, None)), "{code}");
        }
        for code in [400, 405, 410, 416, 418, 501, 505] {
            assert!(!is_tried_again(&status(code, None)), "{code}");
        }
    }
}
