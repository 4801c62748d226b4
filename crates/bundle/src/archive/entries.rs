//! The names of an archive and the entry behind each name: 32 bytes per name.
//!
//! An archive may have a million entries. All that is kept of a compressed archive must fit into
//! less than a hundred mebibytes. So names are fingerprints, and the table is a sorted list. A tree
//! or a hash table would take half as much memory again. A hash table takes twice as much while it
//! grows.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

/// A key for a name: 125 bits of its sha256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fingerprint(u128);

/// Mask of a fingerprint. The other bits hold the kind of an item.
const FINGERPRINT: u128 = u128::MAX >> KIND_BITS;
const KIND_BITS: u32 = 3;

/// The largest offset that fits beside a size and a kind, in bytes: two exbibytes. No file system
/// has files that large.
pub(crate) const LARGEST_OFFSET: u64 = u64::MAX >> KIND_BITS;

impl Fingerprint {
    pub(crate) fn of(name: &[u8]) -> Self {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&Sha256::digest(name)[..16]);
        Self(u128::from_le_bytes(bytes) & FINGERPRINT)
    }
}

/// The entry that a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    File {
        /// At most [`LARGEST_OFFSET`].
        offset: u64,
        size: u64,
    },
    /// A file whose bytes are only partly in the archive.
    Cut {
        size: u64,
        /// At most [`LARGEST_OFFSET`].
        present: u64,
    },
    /// A link to another name.
    Link(Fingerprint),
    /// A link out of the archive.
    LinkOutside,
    /// A sparse file, which the reader does not support.
    Sparse,
}

/// An item in 16 bytes, with its kind in the highest bits.
#[derive(Clone, Copy)]
struct Bits(u128);

impl From<Item> for Bits {
    fn from(item: Item) -> Self {
        let two = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
        let (kind, value) = match item {
            Item::File { offset, size } => (0, two(offset, size)),
            Item::Cut { size, present } => (1, two(present, size)),
            Item::Link(Fingerprint(target)) => (2, target),
            Item::LinkOutside => (3, 0),
            Item::Sparse => (4, 0),
        };
        debug_assert!(value <= FINGERPRINT, "an offset beyond the largest");
        Self(kind << (u128::BITS - KIND_BITS) | value & FINGERPRINT)
    }
}

impl From<Bits> for Item {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "takes apart what was put together"
    )]
    fn from(Bits(bits): Bits) -> Self {
        let value = bits & FINGERPRINT;
        let (high, low) = ((value >> 64) as u64, value as u64);
        match bits >> (u128::BITS - KIND_BITS) {
            0 => Self::File {
                offset: high,
                size: low,
            },
            1 => Self::Cut {
                size: low,
                present: high,
            },
            2 => Self::Link(Fingerprint(value)),
            3 => Self::LinkOutside,
            _ => Self::Sparse,
        }
    }
}

/// Map from names to their entries.
#[derive(Default)]
pub(crate) struct Entries {
    /// Sorted by fingerprint.
    sorted: Vec<(Fingerprint, Bits)>,
    /// Names that were added since the last merge. They are at most an eighth of the sorted names,
    /// so that merging costs little.
    recent: BTreeMap<Fingerprint, Bits>,
}

/// Number of recent names that are worth a merge.
const FEW: usize = 4096;

impl Entries {
    /// Sets the entry of a name. Returns true if the name had an entry before.
    pub(crate) fn insert(&mut self, name: Fingerprint, item: Item) -> bool {
        let item = Bits::from(item);
        if let Ok(at) = self.position(name) {
            self.sorted[at].1 = item;
            return true;
        }
        let replaced = self.recent.insert(name, item).is_some();
        if self.recent.len() > FEW.max(self.sorted.len() / 8) {
            self.sort_in();
        }
        replaced
    }

    pub(crate) fn get(&self, name: Fingerprint) -> Option<Item> {
        let item = match self.position(name) {
            Ok(at) => Some(self.sorted[at].1),
            Err(_) => self.recent.get(&name).copied(),
        };
        item.map(Item::from)
    }

    fn position(&self, name: Fingerprint) -> Result<usize, usize> {
        self.sorted.binary_search_by_key(&name, |(name, _)| *name)
    }

    /// Merges from the back, so that no second list is needed. No name is in both.
    fn sort_in(&mut self) {
        let mut from = self.sorted.len();
        self.sorted.reserve_exact(self.recent.len());
        self.sorted
            .extend(self.recent.iter().map(|(name, item)| (*name, *item)));
        let mut to = self.sorted.len();
        for (name, item) in std::mem::take(&mut self.recent).into_iter().rev() {
            while from > 0 && self.sorted[from - 1].0 > name {
                (from, to) = (from - 1, to - 1);
                self.sorted[to] = self.sorted[from];
            }
            to -= 1;
            self.sorted[to] = (name, item);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn an_entry_takes_32_bytes() {
        assert_eq!(size_of::<(Fingerprint, Bits)>(), 32);
    }

    #[test]
    fn items_come_out_as_they_went_in() {
        let link = Fingerprint::of(b"name");
        let items = [
            Item::File { offset: 0, size: 0 },
            Item::File {
                offset: LARGEST_OFFSET,
                size: u64::MAX,
            },
            Item::Cut {
                size: u64::MAX,
                present: LARGEST_OFFSET,
            },
            Item::Link(link),
            Item::LinkOutside,
            Item::Sparse,
        ];
        for item in items {
            assert_eq!(Item::from(Bits::from(item)), item);
        }
    }

    #[test]
    fn every_name_is_found_and_the_last_of_two_counts() {
        let mut entries = Entries::default();
        let mut expected = HashMap::new();
        for n in 0..40_000_u64 {
            // Some names repeat, near and far apart.
            let name = n % 30_011;
            let item = Item::File {
                offset: n,
                size: name,
            };
            let replaced = entries.insert(Fingerprint::of(&name.to_le_bytes()), item);
            assert_eq!(replaced, expected.insert(name, item).is_some(), "{n}");
        }
        for (name, item) in expected {
            assert_eq!(entries.get(Fingerprint::of(&name.to_le_bytes())), Some(item));
        }
        assert_eq!(entries.get(Fingerprint::of(b"none")), None);
    }
}
