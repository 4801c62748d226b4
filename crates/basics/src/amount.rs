//! Amounts: bytes in words, durations in milliseconds.

use std::fmt::Display;
use std::time::Duration;

/// Writes a size as `12 B` or `3.4 MB`: in powers of 1000, as disks and networks count.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut scaled = count;
    let mut unit = 0;
    while scaled >= 1_000_000 && unit + 1 < UNITS.len() {
        scaled /= 1000;
        unit += 1;
    }
    format!("{}.{} {}", scaled / 1000, scaled % 1000 / 100, UNITS[unit])
}

/// Writes a number of things whose plural takes an `s`: `1 image`, `2 images`.
#[must_use]
pub fn counted<N: Copy + Display + PartialEq + From<u8>>(count: N, thing: &str) -> String {
    let plural = if count == N::from(1) { "" } else { "s" };
    format!("{count} {thing}{plural}")
}

/// Returns the whole milliseconds of a duration, `u64::MAX` for more than 584 million years.
#[must_use]
pub fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_no_plural() {
        for (count, said) in [(0_u32, "0 images"), (1, "1 image"), (2, "2 images")] {
            assert_eq!(counted(count, "image"), said);
            assert_eq!(counted(u64::from(count), "image"), said);
        }
    }

    #[test]
    fn bytes_are_said_in_the_unit_that_leaves_few_digits() {
        for (count, said) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (3_456_789, "3.4 MB"),
            (999_999_999, "999.9 MB"),
            (u64::MAX, "18446.7 PB"),
        ] {
            assert_eq!(bytes(count), said, "{count}");
        }
    }

    #[test]
    fn a_duration_beyond_every_number_of_milliseconds_is_the_largest_one() {
        for (duration, expected) in [
            (Duration::ZERO, 0),
            (Duration::from_micros(1999), 1),
            (Duration::from_millis(u64::MAX), u64::MAX),
            (Duration::MAX, u64::MAX),
        ] {
            assert_eq!(milliseconds(duration), expected, "{duration:?}");
        }
    }
}
