//! The largest speed at which blobs are sent, as the operator sets it.
//!
//! The pace lies between a bundle and containerd. It decides nothing about an import, and lets
//! bytes through when it is their turn. All imports of a process share one [`Pace`], so they share
//! the limit.

use std::convert::Infallible;
use std::io::{self, Read};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use basics::bytes as in_words;
use containerd::BlobSource;

/// Amount that may go through at once after a quiet time, as time at the full rate.
const BURST: Duration = Duration::from_millis(100);
/// Shortest wait. Shorter waits add up first, since a thread that sleeps for less wakes too late
/// anyway.
const GRAIN: Duration = Duration::from_millis(5);

/// Lets bytes through when it is their turn. All senders share it.
#[derive(Debug)]
pub struct Pace {
    state: Mutex<State>,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace::new(None)
    }
}

impl Pace {
    /// Makes a pace of at most `rate` bytes a second. `None` means no limit. Below 1 MiB a second,
    /// other importers that wait for a blob of this process may take it for abandoned.
    #[must_use]
    pub fn new(rate: Option<u64>) -> Pace {
        Pace {
            state: Mutex::new(State::new(rate, Instant::now())),
        }
    }

    /// Changes the limit, from the next bytes on.
    pub fn set(&self, rate: Option<u64>) {
        let mut state = self.state();
        if state.rate != rate {
            *state = State::new(rate, Instant::now());
        }
    }

    /// Describes the limit in a few words. Returns `None` if there is no limit.
    #[must_use]
    pub fn held_back(&self) -> Option<String> {
        let rate = self.state().rate?;
        Some(format!("at most {} a second (rateLimit)", in_words(rate)))
    }

    /// Waits until it is the bytes' turn. Safe to cancel: the bytes count as let through.
    pub async fn turn(&self, bytes: u64) {
        let wait = self.state().book(bytes, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Waits until it is the bytes' turn. Returns `false` at once if the bytes are no longer
    /// wanted.
    fn let_through(&self, bytes: u64, unwanted: &Receiver<Infallible>) -> bool {
        let wait = self.state().book(bytes, Instant::now());
        wait.is_zero() || unwanted.recv_timeout(wait) == Err(RecvTimeoutError::Timeout)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The limit, and the bytes let through so far.
#[derive(Debug)]
struct State {
    /// Bytes a second.
    rate: Option<u64>,
    /// Time at which all booked bytes have had their turn.
    free_at: Instant,
}

impl State {
    fn new(rate: Option<u64>, now: Instant) -> State {
        State { rate, free_at: now }
    }

    /// Books bytes and returns their waiting time.
    fn book(&mut self, bytes: u64, now: Instant) -> Duration {
        let Some(rate) = self.rate else {
            self.free_at = now;
            return Duration::ZERO;
        };
        let since = now.checked_sub(BURST).unwrap_or(now);
        self.free_at = self.free_at.max(since) + time_for(bytes, rate);
        let wait = self.free_at.saturating_duration_since(now);
        if wait < GRAIN { Duration::ZERO } else { wait }
    }
}

/// Returns the time that bytes take at a rate in bytes a second.
fn time_for(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Returns a source whose bytes come at a pace, for as long as they are wanted.
pub(crate) fn paced(source: Arc<dyn BlobSource>, pace: &Arc<Pace>) -> (Arc<dyn BlobSource>, Wanted) {
    let (wanted, unwanted) = mpsc::channel();
    let source = Paced {
        source,
        pace: Arc::clone(pace),
        unwanted: Arc::new(Mutex::new(unwanted)),
    };
    (Arc::new(source), Wanted(wanted))
}

/// Marks bytes as wanted until it is dropped. A reader that waits for their turn then stops at
/// once.
pub(crate) struct Wanted(#[expect(dead_code, reason = "dropping it closes the channel")] Sender<Infallible>);

#[derive(Clone)]
struct Paced<S> {
    source: S,
    pace: Arc<Pace>,
    /// Closed when [`Wanted`] is dropped. Nothing is ever sent.
    unwanted: Arc<Mutex<Receiver<Infallible>>>,
}

impl BlobSource for Paced<Arc<dyn BlobSource>> {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(Paced {
            source: self.source.open(offset)?,
            pace: Arc::clone(&self.pace),
            unwanted: Arc::clone(&self.unwanted),
        }))
    }
}

impl Read for Paced<Box<dyn Read + Send>> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.source.read(buffer)?;
        let unwanted = self.unwanted.lock().unwrap_or_else(PoisonError::into_inner);
        match n == 0 || self.pace.let_through(n as u64, &unwanted) {
            true => Ok(n),
            false => Err(io::Error::other("the blob is no longer wanted")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    const PIECE: u64 = 512 << 10;

    proptest! {
        /// Bytes that go through between two pieces stay within the rate, plus a burst or the first
        /// piece.
        #[test]
        fn over_any_time_no_more_goes_through_than_the_rate_and_a_burst(
            rate in 1_u64 << 20..1 << 30,
            pieces in prop::collection::vec((0_u64..200_000, 1_u64..PIECE), 1..60),
        ) {
            let mut now = Instant::now();
            let mut state = State::new(Some(rate), now);
            let through: Vec<(Instant, u64)> = pieces.iter().map(|(quiet, bytes)| {
                now += Duration::from_micros(*quiet);
                (now + state.book(*bytes, now), *bytes)
            }).collect();
            for (i, (begin, first)) in through.iter().enumerate() {
                let mut sum = 0;
                for (end, bytes) in &through[i..] {
                    sum += bytes;
                    let time = end.saturating_duration_since(*begin) + BURST.max(time_for(*first, rate)) + GRAIN;
                    // Each piece is rounded to a nanosecond.
                    let most = u128::from(rate) * (time.as_nanos() + 60) / 1_000_000_000 + 60;
                    prop_assert!(u128::from(sum) <= most, "{sum} of {most}");
                }
            }
        }

        /// A sender without pauses gets the full rate.
        #[test]
        fn what_is_allowed_is_used_up(rate in 1_u64 << 20..1 << 32, pieces in 10_u32..500) {
            let begin = Instant::now();
            let mut state = State::new(Some(rate), begin);
            let end = (0..pieces).fold(begin, |now, _| now + state.book(PIECE, now));
            prop_assert!(end - begin <= time_for(u64::from(pieces) * PIECE, rate));
        }
    }

    #[test]
    fn by_default_nothing_waits() {
        let pace = Pace::default();
        let now = Instant::now();
        assert!((0..1000).all(|_| pace.state().book(1 << 30, now).is_zero()));
        assert_eq!(pace.held_back(), None);
    }

    #[test]
    fn after_a_quiet_time_little_goes_through_at_once() {
        let begin = Instant::now();
        let mut state = State::new(Some(10 << 20), begin);
        let later = begin + Duration::from_secs(3600);
        assert_eq!(state.book(1 << 20, later), Duration::ZERO);
        assert_eq!(state.book(1 << 20, later), Duration::from_millis(100));
    }

    #[test]
    fn a_change_holds_from_the_next_bytes_on() {
        let pace = Pace::new(Some(1));
        let now = Instant::now();
        assert!(pace.state().book(1000, now) > Duration::from_secs(900));
        pace.set(Some(1));
        assert!(
            pace.state().book(1, now) > Duration::from_secs(900),
            "nothing has changed"
        );
        pace.set(None);
        assert_eq!(pace.state().book(1 << 40, now), Duration::ZERO);
        pace.set(Some(1000));
        let wait = pace.state().book(1000, Instant::now());
        assert!(
            wait > Duration::from_millis(800) && wait <= Duration::from_secs(1),
            "{wait:?}"
        );
    }

    #[test]
    fn whoever_waits_for_bytes_that_nobody_wants_any_more_stops() {
        struct Zeros;
        impl BlobSource for Zeros {
            fn open(&self, _offset: u64) -> io::Result<Box<dyn Read + Send>> {
                Ok(Box::new(io::repeat(0)))
            }
        }
        let (source, wanted) = paced(Arc::new(Zeros), &Arc::new(Pace::new(Some(1))));
        let mut reader = source.open(0).unwrap();
        let reading = thread::spawn(move || reader.read(&mut [0; 60]));
        drop(wanted);
        assert!(reading.join().unwrap().is_err(), "it waited to the end");
    }
}
