//! Recognises compressed data by its first bytes, never by a file's name.

use std::fmt;

/// Compression of a stream of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not compressed.
    None,
    /// RFC 1952, one or more members.
    Gzip,
    /// RFC 8878, one or more frames, including skippable frames.
    Zstd,
    /// The .xz format.
    Xz,
    /// The LZ4 frame format.
    Lz4,
    /// The .bz2 format.
    Bzip2,
}

impl Compression {
    /// Bytes that [`Compression::detect`] needs. A shorter file gives fewer.
    pub(crate) const PEEK: usize = 16;

    /// Recognises compressed data by its magic number. All other data counts as not compressed.
    pub(crate) fn detect(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame (RFC 8878, 3.1.2): type and length, 4 bytes each. LZ4 has the same
            // frames, but no program starts a file with them.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, _, _, _, _, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x04, 0x22, 0x4d, 0x18, ..] => Self::Lz4,
            // The 48-bit magic number of a block follows, so this is not a text that starts with
            // "BZh".
            [
                b'B',
                b'Z',
                b'h',
                b'1'..=b'9',
                0x31,
                0x41,
                0x59,
                0x26,
                0x53,
                0x59,
                ..,
            ] => Self::Bzip2,
            _ => Self::None,
        }
    }

    /// Returns the name in reports: `none`, `gzip`, `zstd`, `xz`, `lz4`, `bzip2`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Lz4 => "lz4",
            Self::Bzip2 => "bzip2",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compression_is_told_by_the_first_bytes() {
        let rows: [(&[u8], Compression); 12] = [
            (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", Compression::Gzip),
            (b"\x1f\x8b\x07", Compression::None),
            (b"\x28\xb5\x2f\xfd\x04", Compression::Zstd),
            (b"\x50\x2a\x4d\x18\x04\0\0\0abcd", Compression::Zstd),
            (b"\x5f\x2a\x4d\x18\x04\0\0\0", Compression::Zstd),
            (b"\x5f\x2a\x4d\x18\x04", Compression::None),
            (b"\xfd7zXZ\0\0\x04", Compression::Xz),
            (b"\x04\x22\x4d\x18\x64", Compression::Lz4),
            (b"BZh91AY&SY\x01", Compression::Bzip2),
            (b"BZh9 is a line of text", Compression::None),
            (b"", Compression::None),
            (b"{\"schemaVersion\":2}", Compression::None),
        ];
        for (start, expected) in rows {
            assert_eq!(Compression::detect(start), expected, "{start:?}");
        }
    }
}
