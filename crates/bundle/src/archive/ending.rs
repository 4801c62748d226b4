//! The way in which an archive ends.

use std::fmt;

/// How an archive ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With the two zero blocks that mark the end of an archive. A folder counts as having them.
    Marker,
    /// At the end of an entry, without the mark: a sloppy writer, or a file that is still growing.
    NoMarker,
    /// In the middle of a header or of an entry's bytes. Blobs before the cut are usable, the entry
    /// that is cut counts as broken.
    Truncated(Truncation),
}

/// Where an archive stops short; offsets in a compressed one count decompressed bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truncation {
    /// Offset in bytes at which the incomplete header or entry data starts.
    pub offset: u64,
    /// The entry whose bytes are cut, escaped for printing; none when the cut is in a header.
    pub entry: Option<String>,
    /// Bytes that should follow `offset`.
    pub expected: u64,
    /// Bytes that do.
    pub present: u64,
}

impl fmt::Display for Truncation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            offset,
            entry,
            expected,
            present,
        } = self;
        match entry {
            Some(entry) => write!(
                f,
                "cut off inside entry {entry}: {present} of its {expected} bytes are there, from offset {offset}"
            ),
            None => write!(
                f,
                "cut off inside a header: {present} of its {expected} bytes are there, from offset {offset}"
            ),
        }
    }
}
