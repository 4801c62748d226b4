//! The decisions of a scrub: which blobs it reads, in which order, and when it ends. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use oci_spec::image::Digest;

use super::memory::Memory;
use crate::state::ledger::Ledger;

/// Wrong blobs that end a run. One or two flipped bits come with age. More are the sign of a disk
/// or a memory that fails, where every further write is in danger too.
pub const MOST_WRONG: usize = 3;

/// A blob that bundles vouch for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Needed {
    pub(super) digest: Digest,
    /// Names of the images that need it.
    pub(super) images: BTreeSet<String>,
    /// The bundles that vouch for these images, by their names in the ledger.
    pub(super) bundles: BTreeSet<OsString>,
}

/// Returns the blobs that bundles vouch for, by digest.
pub(super) fn needed(ledger: &Ledger) -> BTreeMap<String, Needed> {
    let mut needed = BTreeMap::<String, Needed>::new();
    for entry in ledger.entries().into_iter().filter(|entry| entry.is_vouching()) {
        for image in entry.imported.iter().flat_map(|imported| &imported.images) {
            for digest in ledger.closure(&image.target).unwrap_or_default() {
                let blob = needed.entry(digest.to_string()).or_insert_with(|| Needed {
                    digest: digest.clone(),
                    images: BTreeSet::new(),
                    bundles: BTreeSet::new(),
                });
                blob.images.insert(image.name.clone());
                blob.bundles.insert(entry.file.clone());
            }
        }
    }
    needed
}

/// The blobs that a run reads.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pass<'n> {
    /// Blobs that an earlier run found wrong, or was about to replace. They come first, and are
    /// replaced as soon as a bundle has them.
    pub(super) known: Vec<&'n Needed>,
    /// All others from the place on where the last run ended, in the order of their digests.
    pub(super) rest: Vec<&'n Needed>,
}

impl<'n> Pass<'n> {
    /// Decides what a run reads. Behind the last blob, a new pass starts.
    pub(super) fn of(needed: &'n BTreeMap<String, Needed>, memory: &Memory) -> Pass<'n> {
        let is_known = |(digest, _): &(&String, &Needed)| memory.wrong.contains_key(*digest);
        let (known, others): (Vec<_>, Vec<_>) = needed.iter().partition(is_known);
        let is_read = |(digest, _): &(&String, &Needed)| memory.after.as_ref() >= Some(*digest);
        let read = others.iter().take_while(|blob| is_read(blob)).count();
        let blobs = |of: &[(&'n String, &'n Needed)]| of.iter().map(|(_, blob)| *blob).collect();
        Pass {
            known: blobs(&known),
            rest: blobs(&others[read % others.len().max(1)..]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::Wrong;
    use super::*;

    fn needed(fills: &str) -> BTreeMap<String, Needed> {
        let blob = |fill: char| {
            let digest = format!("sha256:{}", fill.to_string().repeat(64));
            let needed = Needed {
                digest: digest.parse().unwrap(),
                images: BTreeSet::new(),
                bundles: BTreeSet::new(),
            };
            (digest, needed)
        };
        fills.chars().map(blob).collect()
    }

    #[test]
    fn a_run_reads_known_wrong_blobs_first_and_goes_on_where_the_last_one_ended() {
        let table = [
            // Known wrong blobs, the last blob that was read, what comes first, the rest.
            ("", "", "", "abcd"),
            ("", "b", "", "cd"),
            ("b", "", "b", "acd"),
            ("ad", "b", "ad", "c"),
            ("abd", "c", "abd", "c"),
            ("abcd", "c", "abcd", ""),
            // The last run was killed at its end.
            ("", "d", "", "abcd"),
            // A blob that no bundle needs any more.
            ("f", "e", "", "abcd"),
        ];
        let blobs = needed("abcd");
        let digest = |fill: char| format!("sha256:{}", fill.to_string().repeat(64));
        let fills = |blobs: &[&Needed]| -> String {
            let fill = |blob: &&Needed| blob.digest.digest().chars().next().unwrap();
            blobs.iter().map(fill).collect()
        };
        for (wrong, after, known, rest) in table {
            let memory = Memory {
                after: after.chars().next().map(digest),
                wrong: wrong
                    .chars()
                    .map(|fill| (digest(fill), Wrong::default()))
                    .collect(),
                ..Memory::default()
            };
            let pass = Pass::of(&blobs, &memory);
            assert_eq!(
                (fills(&pass.known), fills(&pass.rest)),
                (known.into(), rest.into())
            );
        }
    }
}
