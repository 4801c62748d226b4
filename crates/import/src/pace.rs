//! How fast blobs are sent: no faster than the operator allows, and slower while the node is short of something.
//!
//! It stands between a bundle and containerd, decides nothing about an import, and lets bytes through when it is their
//! turn. All imports of a process share one [`Pace`], so what is allowed holds for all of them together. Whatever the
//! pressure is, some bytes go through: an import always comes to its end.

mod pressure;

use std::convert::Infallible;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use containerd::BlobSource;
use tracing::{debug, info, warn};

use self::pressure::{Reading, Resource};
use basics::bytes as in_words;

/// What may go through at once after a quiet time, as time at the full rate.
const BURST: Duration = Duration::from_millis(100);
/// Shorter waits add up before anybody waits: a thread that sleeps for less wakes too late anyway.
const GRAIN: Duration = Duration::from_millis(5);
/// How often pressure is looked at; the kernel works its averages out as often.
const LOOK: Duration = Duration::from_secs(2);
/// After so long without a byte, what held back the one before says nothing about the next.
const FORGOTTEN: Duration = Duration::from_secs(30);
/// That sending slows down is told once in this time, however often pressure comes and goes.
const TOLD: Duration = Duration::from_secs(600);

/// How much of the node imports may take. By default: whatever there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gentleness {
    /// The most bytes that are sent in a second. Below 1 MiB, other importers may take a blob that is waited for to be
    /// given up.
    pub rate: Option<u64>,
    /// Up to which part of the time, in hundredths, tasks of the node may wait for its disks.
    pub io: Option<u8>,
    /// The same for memory.
    pub memory: Option<u8>,
}

/// Lets bytes through when it is their turn; shared by whoever sends.
#[derive(Debug)]
pub struct Pace {
    /// Where the kernel tells of pressure.
    folder: PathBuf,
    state: Mutex<State>,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace::new(Gentleness::default())
    }
}

impl Pace {
    /// A pace for this machine.
    #[must_use]
    pub fn new(gentleness: Gentleness) -> Pace {
        Pace::by(gentleness, "/proc/pressure")
    }

    /// A pace by the pressure that files in a folder tell, in the form of Linux' `/proc/pressure`.
    pub fn by(gentleness: Gentleness, folder: impl Into<PathBuf>) -> Pace {
        Pace {
            folder: folder.into(),
            state: Mutex::new(State::new(gentleness, Instant::now())),
        }
    }

    /// Changes what is allowed, from the next bytes on.
    pub fn set(&self, gentleness: Gentleness) {
        let mut state = self.state();
        if state.gentleness != gentleness {
            *state = State::new(gentleness, Instant::now());
        }
    }

    /// How fast is sent at most, and why, in a few words; `None` while nothing holds back.
    #[must_use]
    pub fn held_back(&self) -> Option<String> {
        self.state().in_words()
    }

    /// Waits until it is the bytes' turn. `false`, and at once, when nobody wants them any more.
    fn let_through(&self, bytes: u64, unwanted: &Receiver<Infallible>) -> bool {
        let wait = self.book(bytes, Instant::now());
        wait.is_zero() || unwanted.recv_timeout(wait) == Err(RecvTimeoutError::Timeout)
    }

    /// Books bytes, and says how long they have to wait.
    fn book(&self, bytes: u64, now: Instant) -> Duration {
        let mut state = self.state();
        if state.is_look_due(now) {
            let readings = self.readings(&mut state);
            state.look(readings, now);
        }
        state.book(bytes, now)
    }

    /// What the kernel says about what is watched; what it does not tell is no pressure.
    fn readings(&self, state: &mut State) -> Vec<Reading> {
        let watched = state.gentleness.watched();
        let mut reading = |(resource, allowed): (Resource, u8)| {
            let path = self.folder.join(resource.name());
            let read = std::fs::read_to_string(&path).and_then(|text| {
                let unknown = || io::Error::new(io::ErrorKind::InvalidData, "it has no `some avg10=`");
                pressure::some_avg10(&text).ok_or_else(unknown)
            });
            match read {
                Ok(waited) => Some(Reading {
                    resource,
                    waited,
                    allowed,
                }),
                Err(error) => {
                    if !std::mem::replace(&mut state.is_untold, true) {
                        warn!(
                            "pressure.{} has no effect, since the kernel does not tell (boot it with psi=1): {}: {error}",
                            resource.name(),
                            path.display(),
                        );
                    }
                    None
                }
            }
        };
        watched.filter_map(&mut reading).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gentleness {
    fn watched(self) -> impl Iterator<Item = (Resource, u8)> {
        let (io, memory) = (self.io, self.memory);
        let io = io.map(|allowed| (Resource::Io, allowed));
        let memory = memory.map(|allowed| (Resource::Memory, allowed));
        io.into_iter().chain(memory)
    }
}

/// What was let through, and what holds back.
#[derive(Debug)]
struct State {
    gentleness: Gentleness,
    /// When everything that was booked has had its time.
    free_at: Instant,
    /// The most bytes a second that pressure leaves.
    ceiling: Option<u64>,
    /// The pressure that is to blame for it.
    worst: Option<Reading>,
    looked_at: Option<Instant>,
    /// Whether it was told that the kernel does not tell.
    is_untold: bool,
    /// When it was told last that sending slows down.
    told_at: Option<Instant>,
    /// Whether the end of it is to be told, too.
    is_told: bool,
}

impl State {
    fn new(gentleness: Gentleness, now: Instant) -> State {
        State {
            gentleness,
            free_at: now,
            ceiling: None,
            worst: None,
            looked_at: None,
            is_untold: false,
            told_at: None,
            is_told: false,
        }
    }

    fn is_look_due(&self, now: Instant) -> bool {
        let is_watching = self.gentleness.watched().next().is_some();
        is_watching && self.looked_at.is_none_or(|looked| now >= looked + LOOK)
    }

    /// Takes in what the kernel says.
    fn look(&mut self, readings: Vec<Reading>, now: Instant) {
        if self.looked_at.is_some_and(|looked| now >= looked + FORGOTTEN) {
            self.ceiling = None;
        }
        self.looked_at = Some(now);
        let before = self.ceiling;
        let worst = readings.into_iter().max_by_key(Reading::strain);
        let strain = worst.as_ref().map(Reading::strain).unwrap_or_default();
        self.ceiling = pressure::next(before, strain, self.gentleness.rate);
        self.worst = worst.filter(|_| self.ceiling.is_some());
        self.tell(before.is_some(), now);
    }

    fn tell(&mut self, was_held: bool, now: Instant) {
        match (was_held, self.in_words().filter(|_| self.ceiling.is_some())) {
            (false, Some(text)) if self.told_at.is_none_or(|told| now >= told + TOLD) => {
                info!("sending slows down: {text}");
                (self.told_at, self.is_told) = (Some(now), true);
            }
            (_, Some(text)) => debug!("sending is held back: {text}"),
            (true, None) if std::mem::take(&mut self.is_told) => info!("nothing holds sending back any more"),
            (true, None) => debug!("nothing holds sending back any more"),
            (false, None) => {}
        }
    }

    /// The most bytes that may go through in a second.
    fn rate(&self) -> Option<u64> {
        [self.gentleness.rate, self.ceiling].into_iter().flatten().min()
    }

    /// Books bytes, and says how long they have to wait.
    fn book(&mut self, bytes: u64, now: Instant) -> Duration {
        let Some(rate) = self.rate() else {
            self.free_at = now;
            return Duration::ZERO;
        };
        let since = now.checked_sub(BURST).unwrap_or(now);
        self.free_at = self.free_at.max(since) + time_for(bytes, rate);
        let wait = self.free_at.saturating_duration_since(now);
        if wait < GRAIN { Duration::ZERO } else { wait }
    }

    fn in_words(&self) -> Option<String> {
        let most = in_words(self.rate()?);
        let Some(worst) = &self.worst else {
            return Some(format!("at most {most} a second (rateLimit)"));
        };
        let Reading {
            resource,
            waited,
            allowed,
        } = worst;
        let name = resource.name();
        Some(format!(
            "at most {most} a second, as tasks of this node wait for {name} {waited:.0} % of their time (pressure.{name}: {allowed}%)"
        ))
    }
}

/// How long bytes take at a rate of bytes a second.
fn time_for(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// A source whose bytes come at a pace, for as long as they are wanted.
pub(crate) fn paced(source: Arc<dyn BlobSource>, pace: &Arc<Pace>) -> (Arc<dyn BlobSource>, Wanted) {
    let (wanted, unwanted) = mpsc::channel();
    let source = Paced {
        source,
        pace: Arc::clone(pace),
        unwanted: Arc::new(Mutex::new(unwanted)),
    };
    (Arc::new(source), Wanted(wanted))
}

/// Says that bytes are wanted until it is dropped. Whoever waits for their turn then stops at once.
pub(crate) struct Wanted(#[expect(dead_code, reason = "what counts is that it is there")] Sender<Infallible>);

#[derive(Clone)]
struct Paced<S> {
    source: S,
    pace: Arc<Pace>,
    /// Hears of the end of [`Wanted`], and of nothing else.
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
            false => Err(io::Error::other("nobody wants the blob any more")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    const PIECE: u64 = 512 << 10;

    fn at_rate(rate: u64) -> Gentleness {
        Gentleness {
            rate: Some(rate),
            ..Gentleness::default()
        }
    }

    fn by_io(allowed: u8) -> Gentleness {
        Gentleness {
            io: Some(allowed),
            ..Gentleness::default()
        }
    }

    /// A folder where the kernel would tell of this much pressure.
    fn told(io: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        tell(&folder, io);
        folder
    }

    fn tell(folder: &tempfile::TempDir, io: &str) {
        let text = format!("some avg10={io} avg60=0.00 avg300=0.00 total=7\nfull avg10=0.00 total=0\n");
        std::fs::write(folder.path().join("io"), text).unwrap();
    }

    proptest! {
        /// Of everything that goes through from one piece to a later one, all but a burst or the first piece is at the rate.
        #[test]
        fn over_any_time_no_more_goes_through_than_the_rate_and_a_burst(
            rate in 1_u64 << 20..1 << 30,
            pieces in prop::collection::vec((0_u64..200_000, 1_u64..PIECE), 1..60),
        ) {
            let mut now = Instant::now();
            let mut state = State::new(at_rate(rate), now);
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

        /// Whoever sends as fast as it goes gets the rate, and not less.
        #[test]
        fn what_is_allowed_is_used_up(rate in 1_u64 << 20..1 << 32, pieces in 10_u32..500) {
            let begin = Instant::now();
            let mut state = State::new(at_rate(rate), begin);
            let end = (0..pieces).fold(begin, |now, _| now + state.book(PIECE, now));
            prop_assert!(end - begin <= time_for(u64::from(pieces) * PIECE, rate));
        }
    }

    #[test]
    fn by_default_nothing_waits_and_nothing_is_looked_at() {
        let pace = Pace::by(Gentleness::default(), "/nonexistent");
        let now = Instant::now();
        assert!((0..1000).all(|_| pace.book(1 << 30, now).is_zero()));
        assert_eq!(pace.held_back(), None);
        assert!(pace.state().looked_at.is_none());
    }

    #[test]
    fn after_a_quiet_time_little_goes_through_at_once() {
        let begin = Instant::now();
        let mut state = State::new(at_rate(10 << 20), begin);
        let later = begin + Duration::from_secs(3600);
        assert_eq!(state.book(1 << 20, later), Duration::ZERO);
        assert_eq!(state.book(1 << 20, later), Duration::from_millis(100));
    }

    #[test]
    fn a_change_holds_from_the_next_bytes_on() {
        let pace = Pace::new(at_rate(1));
        let now = Instant::now();
        assert!(pace.book(1000, now) > Duration::from_secs(900));
        pace.set(at_rate(1));
        assert!(
            pace.book(1, now) > Duration::from_secs(900),
            "nothing has changed"
        );
        pace.set(Gentleness::default());
        assert_eq!(pace.book(1 << 40, now), Duration::ZERO);
        pace.set(at_rate(1000));
        let wait = pace.book(1000, Instant::now());
        assert!(
            wait > Duration::from_millis(800) && wait <= Duration::from_secs(1),
            "{wait:?}"
        );
    }

    #[test]
    fn pressure_slows_down_to_a_trickle_that_goes_on_and_is_forgotten_when_it_is_gone() {
        let folder = told("63.40");
        let pace = Pace::by(by_io(40), folder.path());
        let begin = Instant::now();
        let waits: Vec<_> = (0..20)
            .map(|look| pace.book(PIECE, begin + LOOK * look))
            .collect();
        assert!(waits[1..].is_sorted(), "{waits:?}");
        let trickle = time_for(PIECE, pressure::TRICKLE) - BURST;
        assert_eq!(waits[19], trickle, "and no less than that goes on");
        let text = pace.held_back().unwrap();
        assert!(
            text.contains("2.0 MB a second") && text.contains("io 63 %") && text.contains("pressure.io: 40%"),
            "{text}"
        );

        tell(&folder, "35.00");
        assert_eq!(
            pace.book(PIECE, begin + LOOK * 20),
            trickle,
            "it is still near what is allowed"
        );
        tell(&folder, "1.00");
        assert!((21..30).any(|look| {
            pace.book(PIECE, begin + LOOK * look);
            pace.held_back().is_none()
        }));
    }

    #[test]
    fn what_held_back_long_ago_is_not_believed_any_more() {
        let folder = told("99.00");
        let pace = Pace::by(by_io(40), folder.path());
        let begin = Instant::now();
        for look in 0..10 {
            pace.book(PIECE, begin + LOOK * look);
        }
        assert_eq!(pace.state().rate(), Some(pressure::TRICKLE));
        pace.book(PIECE, begin + Duration::from_secs(3600));
        assert_eq!(pace.state().rate(), Some(pressure::FULL / 2));
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_no_pressure_and_is_said_once() {
        for folder in [tempfile::tempdir().unwrap(), told("much")] {
            let pace = Pace::by(by_io(1), folder.path());
            let begin = Instant::now();
            assert!((0..9).all(|look| pace.book(PIECE, begin + LOOK * look).is_zero()));
            assert!(pace.state().is_untold);
            tell(&folder, "99.00");
            pace.book(PIECE, begin + LOOK * 9);
            assert!(pace.held_back().is_some(), "it is looked at all the same");
        }
    }

    #[test]
    fn a_limit_stays_a_limit_under_pressure() {
        let folder = told("90.00");
        let gentleness = Gentleness {
            rate: Some(1 << 20),
            memory: Some(10),
            ..by_io(40)
        };
        let pace = Pace::by(gentleness, folder.path());
        pace.book(PIECE, Instant::now());
        assert_eq!(pace.state().rate(), Some(1 << 20));
    }

    #[test]
    fn whoever_waits_for_bytes_that_nobody_wants_any_more_stops() {
        struct Zeros;
        impl BlobSource for Zeros {
            fn open(&self, _offset: u64) -> io::Result<Box<dyn Read + Send>> {
                Ok(Box::new(io::repeat(0)))
            }
        }
        let (source, wanted) = paced(Arc::new(Zeros), &Arc::new(Pace::new(at_rate(1))));
        let mut reader = source.open(0).unwrap();
        let reading = thread::spawn(move || reader.read(&mut [0; 60]));
        drop(wanted);
        assert!(reading.join().unwrap().is_err(), "it waited to the end");
    }
}
