//! Decides how soon a bundle is restored: at once for a few times, then later each time. A program
//! that removes an image again and again does so on purpose. Pure.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

use basics::Backoff;

/// Number of restorations in a row that happen at once.
const AT_ONCE: u32 = 5;
/// The delays of later restorations.
const WAIT: Backoff = Backoff {
    first: Duration::from_secs(60),
    longest: Duration::from_secs(3600),
};
/// Time without a restoration after which the count starts at zero.
const CALM: Duration = Duration::from_secs(600);

/// The consecutive restorations of each bundle.
#[derive(Debug, Default)]
pub(crate) struct Healing {
    rounds: BTreeMap<OsString, Rounds>,
}

#[derive(Debug)]
struct Rounds {
    count: u32,
    /// Time of the last restoration. It is in the future if the restoration was postponed.
    last: Instant,
    /// The missing part, if the restoration was postponed.
    put_off: Option<String>,
    /// True if a part of the bundle is still missing, as far as the daemon knows.
    is_pending: bool,
}

impl Healing {
    /// Returns the delay before a bundle is restored, or `None` if it is restored at once. `what`
    /// is the missing part.
    pub(crate) fn wait(&mut self, bundle: &OsStr, what: &str, now: Instant) -> Option<Duration> {
        let rounds = self.rounds.entry(bundle.to_owned()).or_insert(Rounds {
            count: 0,
            last: now,
            put_off: None,
            is_pending: true,
        });
        if now.saturating_duration_since(rounds.last) > CALM {
            rounds.count = 0;
        }
        rounds.count = rounds.count.saturating_add(1);
        let late = rounds.count.saturating_sub(AT_ONCE);
        let wait = (late > 0).then(|| WAIT.whole(late - 1));
        rounds.last = now + wait.unwrap_or_default();
        rounds.put_off = wait.map(|_| what.to_owned());
        rounds.is_pending = true;
        wait
    }

    /// Notes that a bundle is in place. Returns true if a part of it was missing before.
    pub(crate) fn end(&mut self, bundle: &OsStr) -> bool {
        let rounds = self.rounds.get_mut(bundle);
        rounds.is_some_and(|rounds| std::mem::take(&mut rounds.is_pending))
    }

    /// Returns why bundles are restored later, by file name.
    pub(crate) fn put_off(&self) -> BTreeMap<OsString, String> {
        let why = |(bundle, rounds): (&OsString, &Rounds)| {
            let what = rounds.put_off.as_ref()?;
            let why = format!(
                "{what} is missing in containerd once more: another program seems to remove it on purpose. The daemon restores it later"
            );
            Some((bundle.clone(), why))
        };
        self.rounds.iter().filter_map(why).collect()
    }

    /// Forgets a bundle that was replaced or is gone.
    pub(crate) fn forget(&mut self, bundle: &OsStr) {
        self.rounds.remove(bundle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rounds_are_made_at_once_and_later_ones_wait_longer_each_time() {
        let (mut healing, now) = (Healing::default(), Instant::now());
        let waits: Vec<_> = (0..14)
            .map(|_| healing.wait("a.tar".as_ref(), "a", now))
            .collect();
        assert_eq!(waits[..5], [None; 5]);
        let minutes: Vec<u64> = waits[5..]
            .iter()
            .map(|wait| wait.unwrap().as_secs() / 60)
            .collect();
        assert_eq!(minutes, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn after_a_calm_time_and_for_another_bundle_it_starts_anew() {
        let (mut healing, now) = (Healing::default(), Instant::now());
        let worn = |healing: &mut Healing| {
            (0..6)
                .filter_map(|_| healing.wait("a.tar".as_ref(), "a", now))
                .count()
        };
        assert_eq!(worn(&mut healing), 1);
        assert_eq!(healing.wait("b.tar".as_ref(), "a", now), None);
        let later = now + CALM + WAIT.first + Duration::from_secs(1);
        assert_eq!(healing.wait("a.tar".as_ref(), "a", later), None);
    }

    #[test]
    fn the_calm_time_begins_when_the_bundle_was_restored_and_not_when_it_was_found_to_lack_something() {
        let second = Duration::from_secs(1);
        for (pause, minutes) in [
            (CALM + second, Some(2)),
            (WAIT.first + CALM, Some(2)),
            (WAIT.first + CALM + second, None),
        ] {
            let (mut healing, now) = (Healing::default(), Instant::now());
            let waits = (0..6).filter_map(|_| healing.wait("a.tar".as_ref(), "a", now));
            assert_eq!(waits.collect::<Vec<_>>(), [WAIT.first]);
            let wait = healing.wait("a.tar".as_ref(), "a", now + pause);
            assert_eq!(wait.map(|wait| wait.as_secs() / 60), minutes, "{pause:?}");
        }
    }

    #[test]
    fn what_was_missing_is_restored_once() {
        let (mut healing, now, a) = (Healing::default(), Instant::now(), "a.tar".as_ref());
        assert!(!healing.end(a), "nothing was missing");
        for _ in 0..2 {
            healing.wait(a, "a", now);
            healing.wait(a, "a", now);
            assert!(healing.end(a));
            assert!(!healing.end(a));
        }
        healing.wait(a, "a", now);
        healing.forget(a);
        assert!(!healing.end(a), "another file has the name");
    }

    #[test]
    fn a_bundle_that_is_replaced_starts_anew() {
        let (mut healing, now) = (Healing::default(), Instant::now());
        let waits: Vec<_> = (0..6).map(|_| healing.wait("a.tar".as_ref(), "a", now)).collect();
        assert!(waits[5].is_some());
        healing.forget("a.tar".as_ref());
        assert_eq!(healing.wait("a.tar".as_ref(), "a", now), None);
    }
}
