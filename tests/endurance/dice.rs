//! Repeatable chance: every random decision follows from a seed.

use std::ops::Range;
use std::time::Duration;

/// A source of numbers (SplitMix64). It is not cryptographic, and the same seed gives the same
/// numbers everywhere.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number of the range, which must not be empty.
    pub fn within(&mut self, range: Range<usize>) -> usize {
        let width = u64::try_from(range.len()).expect("the length fits");
        range.start + usize::try_from(self.roll() % width).expect("the number is smaller than the range")
    }

    /// Returns true in one of `sides` cases on average.
    pub fn one_in(&mut self, sides: usize) -> bool {
        self.within(0..sides) == 0
    }

    pub fn milliseconds(&mut self, range: Range<usize>) -> Duration {
        Duration::from_millis(self.within(range) as u64)
    }

    /// Returns an element, or `None` if there is none.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        match of.len() {
            0 => None,
            length => of.get(self.within(0..length)),
        }
    }

    /// Returns bytes that look like compressed data.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.roll()).take(length.div_ceil(8));
        let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        bytes.truncate(length);
        bytes
    }
}
