//! Waits between retries. They grow longer, and a random part makes them differ between nodes.
//!
//! Without it, nodes that lose the same server at the same instant would return to it at the same
//! instant. The functions are pure: the caller brings the random number and the clock.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

/// Waits that double, from the first to the longest.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// Wait after the first failure.
    pub first: Duration,
    /// Upper limit of the waits.
    pub longest: Duration,
}

impl Backoff {
    /// Returns the wait after a failure that follows `failures` others. `chance`, a random number,
    /// takes off up to a quarter.
    #[must_use]
    pub fn wait(self, failures: u32, chance: u64) -> Duration {
        jittered(self.whole(failures), chance)
    }

    /// Returns the same wait without the random part.
    #[must_use]
    pub fn whole(self, failures: u32) -> Duration {
        self.first.saturating_mul(1 << failures.min(16)).min(self.longest)
    }
}

/// Returns the wait minus up to a quarter, by the random number `chance`.
#[must_use]
pub fn jittered(wait: Duration, chance: u64) -> Duration {
    // Counted in 65536ths, so that even the longest duration does not overflow.
    let off = u32::try_from(chance % (1 << 16)).unwrap_or_default();
    wait - (wait / 4 / (1 << 16)) * off
}

/// Returns a random number.
#[must_use]
pub fn chance() -> u64 {
    // The standard library seeds its hash tables with the system's randomness.
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn backoff(first: u64, longest: u64) -> Backoff {
        Backoff {
            first: Duration::from_millis(first),
            longest: Duration::from_millis(longest),
        }
    }

    proptest! {
        #[test]
        fn a_wait_is_within_a_quarter_of_the_doubled_one_and_never_beyond_the_longest(
            first in 1..10_000_u64, longest in 1..10_000_000_u64, failures in 0..u32::MAX, chance: u64,
        ) {
            let backoff = backoff(first, longest);
            let whole = Duration::from_millis(first)
                .saturating_mul(1 << failures.min(16))
                .min(Duration::from_millis(longest));
            let wait = backoff.wait(failures, chance);
            prop_assert!(wait <= whole && wait >= whole * 3 / 4, "{wait:?} of {whole:?}");
        }

        #[test]
        fn for_the_same_chance_a_later_wait_is_not_shorter(
            first in 1..10_000_u64, longest in 1..10_000_000_u64, failures in 0..40_u32, chance: u64,
        ) {
            let backoff = backoff(first, longest);
            prop_assert!(backoff.wait(failures, chance) <= backoff.wait(failures + 1, chance));
        }
    }

    #[test]
    fn chance_makes_use_of_the_whole_quarter() {
        let backoff = backoff(1000, 60_000);
        assert_eq!(backoff.wait(0, 0), Duration::from_secs(1));
        let least = backoff.wait(0, (1 << 16) - 1);
        assert!(least < Duration::from_millis(751), "{least:?}");
        let different: std::collections::HashSet<_> = (0..20).map(|_| backoff.wait(3, chance())).collect();
        assert!(different.len() > 10, "{different:?}");
    }
}
