//! Decides from an observation whether a file or a layout folder is finished.
//!
//! An observation looks at an open file. The decisions are pure and take the time as a value.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime};

use bundle::Identity;
use bundle::sniff::Ending;

use crate::sys::{self, Probe};

/// The answer whether a program may still be writing a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writer {
    /// No program has the file open for writing.
    None,
    /// A program has the file open for writing.
    Present,
    /// The file system or the daemon's privileges do not allow the question.
    Unknown,
}

/// The facts for [`settle`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observation {
    /// Size in bytes.
    pub(crate) size: u64,
    pub(crate) writer: Writer,
    pub(crate) ending: Ending,
    /// Time of the last noticed change: an event on the name, or a new identity.
    pub(crate) changed: Instant,
    /// Time since the last change by the file's own time stamp. `None` if the stamp is later than
    /// the clock.
    pub(crate) age: Option<Duration>,
}

impl Observation {
    /// Looks at an open file. The caller gives `changed`, since it sees events and earlier
    /// identities.
    pub(crate) fn of(file: &File, changed: Instant) -> io::Result<Observation> {
        // The clock is read first. A change after the look at the file then has a later stamp.
        let now = SystemTime::now();
        let identity = Identity::of(&file.metadata()?);
        let size = identity.size;
        let writer = match sys::probe_writers(file.as_fd()) {
            Probe::NoWriter => Writer::None,
            Probe::Busy => Writer::Present,
            Probe::Unsupported => Writer::Unknown,
        };
        Ok(Observation {
            size,
            writer,
            ending: Ending::of(file, size)?,
            changed,
            age: age_of(&identity, now),
        })
    }
}

/// The verdict whether a file is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settle {
    /// The file may be read now.
    Settled,
    /// Look again at this time, or when something changes.
    Wait { until: Instant, why: Why },
    /// Nothing has happened for [`STALLED`]. Tell the operator once, and look again at this time.
    Stalled { until: Instant, why: Why },
}

/// The reason why a file is unfinished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Why {
    Changing,
    Empty,
    Written,
    NoEndMarker,
    /// The file ends in more zeros than a tar does.
    Reserved,
    QuietTime,
    /// A layout folder lacks parts that it refers to.
    Incomplete,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::Changing => "it has just changed",
            Why::Empty => "it is empty",
            Why::Written => "a program still has it open for writing",
            Why::NoEndMarker => "it has no end-of-archive marker, so the upload may have been cut off",
            Why::Reserved => "it ends in zeros only, so the rest may still be to come",
            Why::Incomplete => "it is a layout folder and lacks parts that it refers to, so the copy may have been cut off",
            Why::QuietTime => {
                "the file system does not show whether a program writes it, so the daemon waits for quiet time"
            }
        })
    }
}

/// Quiet time of a finished file. It is longer than a tick of any kernel's time stamps. It covers
/// the pauses of programs that open, write and close a file several times.
const STILL: Duration = Duration::from_millis(500);
/// Quiet time of an archive whose end was seen and that no program writes, if its time stamp tells
/// nothing.
const STILL_WHOLE: Duration = Duration::from_millis(40);
/// Age of the time stamp from which such an archive needs no quiet time. Each later change then
/// gets another stamp and shows: the coarsest tick of a kernel's stamps is 10 ms (HZ=100). Programs
/// that set mode and times after the last byte do so within this time.
const TICK: Duration = Duration::from_millis(12);
/// Coarsest time stamps of file systems: FAT counts two seconds, ext3 and some servers one.
const COARSEST: Duration = Duration::from_secs(2);
/// Time until the next check for a writer. The writer's close(2) is an event, too, but some file
/// systems have no events.
const AGAIN: Duration = Duration::from_secs(1);
/// Time without progress after which an upload is reported.
const STALLED: Duration = Duration::from_secs(30);
/// Time after which a tar without end marker is read nevertheless. Its graph then shows whether it
/// is whole.
const WITHOUT_MARKER: Duration = Duration::from_secs(60);
/// Quiet time if writers are not visible.
const QUIET: Duration = Duration::from_secs(10);

/// Decides whether a file may be read. A wrong "settled" costs a failed try. It never makes a wrong
/// image, since every blob is checked. A wrong "wait" costs time.
pub(crate) fn settle(seen: &Observation, now: Instant) -> Settle {
    let quiet = now.saturating_duration_since(seen.changed);
    let until_quiet_for = |wanted: Duration, why| Settle::Wait {
        until: seen.changed + wanted,
        why,
    };
    let unfinished = |why, again: Duration| match quiet < STALLED {
        true => Settle::Wait {
            until: (now + again).min(seen.changed + STALLED),
            why,
        },
        false => Settle::Stalled {
            until: now + again,
            why,
        },
    };
    match (seen.writer, seen.ending) {
        (Writer::Present, _) => unfinished(Why::Written, AGAIN),
        _ if seen.size == 0 => unfinished(Why::Empty, STALLED),
        (_, Ending::NoMarker | Ending::Beginning) if quiet >= WITHOUT_MARKER => Settle::Settled,
        (_, Ending::NoMarker | Ending::Beginning) if quiet >= STALLED => Settle::Stalled {
            until: seen.changed + WITHOUT_MARKER,
            why: Why::NoEndMarker,
        },
        (_, Ending::NoMarker | Ending::Beginning) => until_quiet_for(STALLED, Why::NoEndMarker),
        (_, Ending::Reserved) if quiet < STALLED => until_quiet_for(STALLED, Why::Reserved),
        (Writer::Unknown, _) if quiet < QUIET => until_quiet_for(QUIET, Why::QuietTime),
        (Writer::None, Ending::Marker) if quiet < STILL_WHOLE => match seen.age {
            Some(age) if age >= TICK => Settle::Settled,
            Some(age) => Settle::Wait {
                until: (now + (TICK - age)).min(seen.changed + STILL_WHOLE),
                why: Why::Changing,
            },
            None => until_quiet_for(STILL_WHOLE, Why::Changing),
        },
        (Writer::None, Ending::Compressed | Ending::Foreign) if quiet < STILL => {
            until_quiet_for(STILL, Why::Changing)
        }
        (
            Writer::None | Writer::Unknown,
            Ending::Marker | Ending::Reserved | Ending::Compressed | Ending::Foreign,
        ) => Settle::Settled,
    }
}

/// Returns the time until which a file that looks cut off may be an upload that continues. Returns
/// `None` if nothing has happened for so long that the file counts as it is.
pub(crate) fn may_go_on_until(changed: Instant, now: Instant) -> Option<Instant> {
    let until = changed + STALLED;
    (now < until).then_some(until)
}

/// Returns how much longer a file can change without a change of its identity. `now` is the wall
/// clock before the look at the file. Returns `None` if any change shows.
///
/// A write in the same tick of the clock leaves a file of the same size with the same times. On
/// kernels with fine ticks, [`TICK`] is longer than a tick. This function is for file systems that
/// keep whole seconds. If the clock was set back, the file's time may be in the future. The next
/// write then gets another time.
pub(crate) fn indistinct_for(identity: &Identity, now: SystemTime) -> Option<Duration> {
    let is_coarse = identity.ctime_ns % 1_000_000_000 == 0;
    let age = age_of(identity, now).filter(|_| is_coarse)?;
    COARSEST.checked_sub(age).filter(|left| !left.is_zero())
}

/// Returns the time since the last change by the file's time stamp. `None` if that time is before
/// 1970 or in the future.
fn age_of(identity: &Identity, now: SystemTime) -> Option<Duration> {
    let changed = u64::try_from(identity.ctime_ns).ok()?;
    let changed = SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(changed))?;
    now.duration_since(changed).ok()
}

/// Quiet time of a layout folder: no kernel tells who is about to write into a folder.
const STILL_LAYOUT: Duration = Duration::from_secs(2);

/// Decides whether a layout folder may be read, as [`settle`] does for a file. `is_whole` is false
/// if the folder is known to lack parts that it refers to.
pub(crate) fn settle_layout(is_whole: bool, changed: Instant, now: Instant) -> Settle {
    let quiet = now.saturating_duration_since(changed);
    let until = |wanted: Duration| changed + wanted;
    let why = Why::Incomplete;
    match is_whole {
        _ if quiet < STILL_LAYOUT => Settle::Wait {
            until: until(STILL_LAYOUT),
            why: Why::Changing,
        },
        false if quiet < STALLED => Settle::Wait {
            until: until(STALLED),
            why,
        },
        false if quiet < WITHOUT_MARKER => Settle::Stalled {
            until: until(WITHOUT_MARKER),
            why,
        },
        true | false => Settle::Settled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel with HZ=100 has this tick.
    const COARSEST_TICK: Duration = Duration::from_millis(10);

    #[test]
    fn a_change_within_a_coarse_tick_is_waited_out_and_a_clock_that_jumps_is_not() {
        const SECOND: u64 = 1_000_000_000;
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let identity = |ctime_ns: i64| Identity {
            device: 1,
            inode: 2,
            size: 3,
            mtime_ns: 0,
            ctime_ns,
        };
        let at = |seconds: u64, ns: u64| i64::try_from(seconds * SECOND + ns).unwrap();
        let left = Duration::from_secs;
        for (claim, ctime_ns, expected) in [
            ("a fine stamp of just now", at(999_999, 1), None),
            ("a whole second, now", at(1_000_000, 0), Some(left(2))),
            ("a whole second, a moment ago", at(999_999, 0), Some(left(1))),
            ("long enough ago", at(999_998, 0), None),
            ("the clock was set forward since", at(1000, 0), None),
            ("the clock was set back since", at(1_000_010, 0), None),
            ("far in the future", i64::MAX, None),
            ("before 1970", -5_000_000_000, None),
        ] {
            assert_eq!(indistinct_for(&identity(ctime_ns), now), expected, "{claim}");
        }
    }

    #[test]
    fn a_layout_is_settled_when_it_is_still_and_whole() {
        let changed = Instant::now();
        let table = [
            (true, 0, Some(2_000)),
            (true, 2_000, None),
            (false, 2_000, Some(30_000)),
            (false, 30_000, Some(60_000)),
            (false, 60_000, None),
        ];
        for (is_whole, quiet, expected) in table {
            let until = match settle_layout(is_whole, changed, changed + Duration::from_millis(quiet)) {
                Settle::Settled => None,
                Settle::Wait { until, .. } | Settle::Stalled { until, .. } => {
                    Some((until - changed).as_millis())
                }
            };
            assert_eq!(until, expected, "{is_whole} {quiet}");
        }
    }

    #[test]
    fn a_file_is_settled_when_nobody_writes_it_and_its_end_is_there() {
        use Ending::{Beginning, Compressed, Foreign, Marker, NoMarker, Reserved};
        use Writer::{None, Present, Unknown};
        #[derive(Debug, PartialEq)]
        enum Expected {
            Settled,
            /// Milliseconds after the last change.
            Wait(u64, Why),
            Stalled(u64, Why),
        }
        use Expected::{Settled, Stalled, Wait};
        // size, writer, ending, milliseconds since the last change
        let table = [
            (9, None, Marker, 0, Wait(40, Why::Changing)),
            (9, None, Marker, 39, Wait(40, Why::Changing)),
            (9, None, Marker, 40, Settled),
            (9, None, Compressed, 200, Wait(500, Why::Changing)),
            (9, None, Compressed, 500, Settled),
            (9, None, Foreign, 499, Wait(500, Why::Changing)),
            (9, None, Foreign, 500, Settled),
            (9, None, NoMarker, 500, Wait(30_000, Why::NoEndMarker)),
            (9, None, NoMarker, 29_999, Wait(30_000, Why::NoEndMarker)),
            (9, None, NoMarker, 30_000, Stalled(60_000, Why::NoEndMarker)),
            (9, None, NoMarker, 60_000, Settled),
            (9, None, Beginning, 500, Wait(30_000, Why::NoEndMarker)),
            (9, None, Beginning, 60_000, Settled),
            (9, None, Reserved, 500, Wait(30_000, Why::Reserved)),
            (9, None, Reserved, 30_000, Settled),
            (9, Unknown, Reserved, 10_000, Wait(30_000, Why::Reserved)),
            (9, Unknown, Reserved, 30_000, Settled),
            (9, Present, Marker, 0, Wait(1_000, Why::Written)),
            (9, Present, Marker, 29_500, Wait(30_000, Why::Written)),
            (9, Present, Marker, 30_000, Stalled(31_000, Why::Written)),
            (9, Present, Marker, 9_000_000, Stalled(9_001_000, Why::Written)),
            (0, Present, Beginning, 10, Wait(1_010, Why::Written)),
            (0, None, Beginning, 10, Wait(30_000, Why::Empty)),
            (0, None, Beginning, 30_000, Stalled(60_000, Why::Empty)),
            (0, None, Beginning, 90_000, Stalled(120_000, Why::Empty)),
            (9, Unknown, Marker, 500, Wait(10_000, Why::QuietTime)),
            (9, Unknown, Marker, 10_000, Settled),
            (9, Unknown, Compressed, 9_999, Wait(10_000, Why::QuietTime)),
            (9, Unknown, Compressed, 10_000, Settled),
            (9, Unknown, NoMarker, 10_000, Wait(30_000, Why::NoEndMarker)),
            (9, Unknown, NoMarker, 60_000, Settled),
        ];
        let changed = Instant::now();
        for (size, writer, ending, quiet, expected) in table {
            let seen = Observation {
                size,
                writer,
                ending,
                changed,
                age: Option::None,
            };
            let after = |until: Instant| u64::try_from((until - changed).as_millis()).unwrap();
            let got = match settle(&seen, changed + Duration::from_millis(quiet)) {
                Settle::Settled => Settled,
                Settle::Wait { until, why } => Wait(after(until), why),
                Settle::Stalled { until, why } => Stalled(after(until), why),
            };
            assert_eq!(got, expected, "{size} {writer:?} {ending:?} {quiet}");
        }
    }

    #[test]
    fn a_whole_archive_is_settled_when_a_later_change_would_show_in_its_time_stamp() {
        let ms = Duration::from_millis;
        let changed = Instant::now();
        // The age of the stamp, the milliseconds since the noticed change, and the end of the wait.
        for (age, quiet, expected) in [
            (Some(ms(12)), 0, None),
            (Some(ms(90_000)), 0, None),
            (Some(ms(2)), 0, Some(10)),
            (Some(ms(0)), 5, Some(17)),
            (Some(ms(0)), 39, Some(40)),
            (Some(ms(0)), 40, None),
            (None, 5, Some(40)),
        ] {
            let seen = Observation {
                size: 9,
                writer: Writer::None,
                ending: Ending::Marker,
                changed,
                age,
            };
            let until = match settle(&seen, changed + ms(quiet)) {
                Settle::Settled => None,
                Settle::Wait { until, .. } => Some((until - changed).as_millis()),
                stalled @ Settle::Stalled { .. } => panic!("{stalled:?}"),
            };
            assert_eq!(until, expected, "{age:?} {quiet}");
            let compressed = Observation {
                ending: Ending::Compressed,
                ..seen
            };
            assert!(
                matches!(settle(&compressed, changed + ms(quiet)), Settle::Wait { .. }),
                "compressed data has no end marker"
            );
        }
    }

    #[test]
    fn a_wait_always_ends_later_than_now() {
        let changed = Instant::now();
        for writer in [Writer::None, Writer::Present, Writer::Unknown] {
            for ending in [
                Ending::Marker,
                Ending::NoMarker,
                Ending::Beginning,
                Ending::Reserved,
                Ending::Compressed,
                Ending::Foreign,
            ] {
                for (size, quiet) in (0..100_000)
                    .step_by(250)
                    .flat_map(|quiet| [(0, quiet), (9, quiet)])
                {
                    let now = changed + Duration::from_millis(quiet);
                    match settle(
                        &Observation {
                            size,
                            writer,
                            ending,
                            changed,
                            age: None,
                        },
                        now,
                    ) {
                        Settle::Settled => {}
                        Settle::Wait { until, .. } | Settle::Stalled { until, .. } => {
                            assert!(until > now, "{writer:?} {ending:?} {size} {quiet}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn an_open_writer_is_observed() {
        let _no_forks = sys::forks::none();
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("b.tar");
        let writer = File::create(&path).unwrap();
        let file = File::open(&path).unwrap();
        let observe = || Observation::of(&file, Instant::now()).unwrap().writer;
        assert_eq!(observe(), Writer::Present);
        drop(writer);
        assert_eq!(observe(), Writer::None);
    }

    #[test]
    fn the_age_of_a_file_is_that_of_its_last_change() {
        let temporary = tempfile::tempdir().unwrap();
        let (part, path) = (temporary.path().join("part"), temporary.path().join("b.tar"));
        std::fs::write(&part, "x").unwrap();
        let age = |path| {
            Observation::of(&File::open(path).unwrap(), Instant::now())
                .unwrap()
                .age
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while age(&part) < Some(4 * COARSEST_TICK) {
            assert!(Instant::now() < deadline, "time passes");
            std::thread::yield_now();
        }
        let before = Instant::now();
        std::fs::rename(&part, &path).unwrap();
        assert!(
            age(&path) <= Some(before.elapsed() + 2 * COARSEST_TICK),
            "a rename is a change"
        );
    }
}
