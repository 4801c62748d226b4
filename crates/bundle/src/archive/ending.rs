//! The ways in which an archive ends.

use std::fmt;

/// The way in which an archive ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With the two blocks of zeros that mark the end of an archive. A folder counts as marked.
    Marker,
    /// At the end of an entry, without the mark. The writer was careless, or the file is still
    /// growing.
    NoMarker,
    /// In the middle of a header or of an entry's bytes. Blobs before the cut are usable. The entry
    /// with the cut counts as broken.
    Truncated(Truncation),
}

/// The place where an archive is cut off. Offsets in a compressed archive count decompressed bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truncation {
    /// Offset in bytes at which the incomplete header or entry data starts.
    pub offset: u64,
    /// Name of the entry whose bytes are cut, escaped for printing. `None` if a header is cut.
    pub entry: Option<String>,
    /// Number of bytes that should follow `offset`.
    pub expected: u64,
    /// Number of bytes that do follow.
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
