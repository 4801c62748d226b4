//! Tells how a file begins and ends, without reading it through. That shows whether the file may be
//! an archive and whether it may be whole.
//!
//! It reads the first block of a file, and up to a mebibyte at its end. It parses no entry and
//! decompresses nothing. Faults inside an archive show when it is opened.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::{Compression, tar};

/// The beginning and the end of a file, as far as they show without reading the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// A plain tar with its two blocks of zeros (POSIX pax: "end-of-archive").
    Marker,
    /// A plain tar with far more zeros at its end than any tar writes. They are reserved space for
    /// the rest of the file, unless the last file in the archive ends in zeros.
    Reserved,
    /// A plain tar without these blocks: cut off, still growing, or made by a careless program.
    NoMarker,
    /// Too little to tell, so the file may become an archive. It is empty, or has a part of a
    /// header or of a magic number. Or it starts with zeros, as fallocate(1) leaves them.
    Beginning,
    /// Compressed. Only decompressing the file tells more.
    Compressed,
    /// Not an archive of any kind. More bytes will not make it an archive.
    Foreign,
}

/// Size of a tar block in bytes.
const BLOCK: usize = 512;

impl Ending {
    /// Checks the first and the last blocks of an open file of `size` bytes.
    ///
    /// # Errors
    ///
    /// Returns the errors of pread(2).
    pub fn of(file: &File, size: u64) -> io::Result<Ending> {
        let mut head = [0; BLOCK];
        let read = read_some_at(file, &mut head, 0)?;
        let mut tail = [0xff; 2 * BLOCK];
        if let Some(offset) = size.checked_sub(tail.len() as u64) {
            read_some_at(file, &mut tail, offset)?;
        }
        let ending = Self::from_blocks(&head[..read], &tail, size);
        if ending == Ending::Marker && zeros_at_end(file, size)? > LONGEST_PADDING {
            return Ok(Ending::Reserved);
        }
        Ok(ending)
    }

    fn from_blocks(head: &[u8], tail: &[u8], size: u64) -> Ending {
        if Compression::detect(head) != Compression::None {
            return Ending::Compressed;
        }
        if is_zero(head) {
            return Ending::Beginning;
        }
        if head.len() < BLOCK {
            return match may_become_header(head) || may_become_compressed(head) {
                true => Ending::Beginning,
                false => Ending::Foreign,
            };
        }
        let blocks = size / BLOCK as u64;
        let ends_in_marker = size.is_multiple_of(BLOCK as u64) && blocks >= 3 && is_zero(tail);
        match (tar::is_header(head), ends_in_marker) {
            (false, _) => Ending::Foreign,
            (true, true) => Ending::Marker,
            (true, false) => Ending::NoMarker,
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// Returns true if a file shorter than a header may become a plain archive. It must begin with a
/// name. The digits of a mode must follow the field of the name (POSIX ustar).
fn may_become_header(head: &[u8]) -> bool {
    const NAME: usize = 100;
    const MODE_END: usize = 108;
    let (name, rest) = head.split_at(head.len().min(NAME));
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    let (name, padding) = name.split_at(end);
    let mode = &rest[..rest.len().min(MODE_END - NAME)];
    !name.iter().any(u8::is_ascii_control)
        && is_zero(padding)
        && mode.iter().all(|byte| matches!(byte, b'0'..=b'7' | b' ' | 0))
}

/// The shortest start by which each kind of compressed data is recognised. [`Compression::detect`]
/// has the rules.
const SHORTEST: [&[u8]; 6] = [
    b"\x1f\x8b\x08",
    b"\x28\xb5\x2f\xfd",
    b"\x50\x2a\x4d\x18\0\0\0\0",
    b"\xfd7zXZ\0",
    b"\x04\x22\x4d\x18",
    b"BZh91AY&SY",
];

/// Returns true if a file may become compressed data, by completing one of the shortest starts.
fn may_become_compressed(head: &[u8]) -> bool {
    SHORTEST.iter().any(|shortest| {
        let rest = shortest.iter().skip(head.len());
        let whole: Vec<u8> = head.iter().chain(rest).copied().collect();
        Compression::detect(&whole) != Compression::None
    })
}

/// Longest padding in bytes after the end marker. The padding is at most one record, and no tar
/// writes larger records than this.
const LONGEST_PADDING: u64 = 1 << 20;

/// Returns the number of zero bytes at the end of a file. The count stops once it exceeds
/// [`LONGEST_PADDING`].
fn zeros_at_end(file: &File, size: u64) -> io::Result<u64> {
    let mut piece = vec![0; 64 << 10];
    let mut zeros = 0;
    while zeros < size && zeros <= LONGEST_PADDING {
        let n = piece
            .len()
            .min(usize::try_from(size - zeros).unwrap_or(usize::MAX));
        let piece = &mut piece[..n];
        read_some_at(file, piece, size - zeros - n as u64)?;
        match piece.iter().rposition(|byte| *byte != 0) {
            Some(last) => return Ok(zeros + (n - 1 - last) as u64),
            None => zeros += n as u64,
        }
    }
    Ok(zeros)
}

/// Most zeros at the end of most tars, in bytes: the marker, and padding to a record of twenty
/// blocks.
const USUAL_ZEROS: u64 = 11 << 10;

/// Returns true if a file ends in more zeros than usual. They may be space that an upload reserved.
/// Returns false if the file cannot be read.
pub fn may_be_reserved(file: &File) -> bool {
    let size = file.metadata().map(|metadata| metadata.len());
    size.and_then(|size| zeros_at_end(file, size))
        .is_ok_and(|zeros| zeros > USUAL_ZEROS)
}

fn read_some_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::io::Write as _;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn header() -> [u8; 512] {
        let mut block = [0; 512];
        block[..5].copy_from_slice(b"index");
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    #[test]
    fn the_ending_tells_whole_cut_compressed_and_foreign_files_apart() {
        let mut whole = header().to_vec();
        whole.extend([0; 1024]);
        let cut = [header(), header(), header()].concat();
        let text = "x".repeat(4096);
        let mut reserved = header().to_vec();
        reserved.resize(2 << 20, 0);
        let padded = &reserved[..1 << 20];
        let long_name = "n".repeat(100);
        let (mode, no_mode) = (format!("{long_name}0000644"), format!("{long_name}rw-r--r"));
        let table: [(&str, &[u8], Ending); 31] = [
            ("whole", &whole, Ending::Marker),
            ("with the longest padding", padded, Ending::Marker),
            ("reserved, the rest not written", &reserved, Ending::Reserved),
            ("nothing", b"", Ending::Beginning),
            ("one byte of a name", b"i", Ending::Beginning),
            ("a name and its mode", mode.as_bytes(), Ending::Beginning),
            ("a name and no mode", no_mode.as_bytes(), Ending::Foreign),
            ("a name and text behind it", b"a\0b", Ending::Foreign),
            ("a line of text", b"hello\n", Ending::Foreign),
            ("a few bytes", &[0xff, 1, 2, 3], Ending::Foreign),
            ("two bytes of gzip", &[0x1f, 0x8b], Ending::Beginning),
            ("gzip by no known method", &[0x1f, 0x8b, 7, 0], Ending::Foreign),
            ("three bytes of zstd", &[0x28, 0xb5, 0x2f], Ending::Beginning),
            (
                "a part of a skippable frame",
                &[0x5a, 0x2a, 0x4d, 0x18, 4],
                Ending::Beginning,
            ),
            ("bzip2 without its first block", b"BZh5", Ending::Beginning),
            ("cut between entries", &cut, Ending::NoMarker),
            ("cut in a block", &whole[..1500], Ending::NoMarker),
            ("one block of zeros", &whole[..1024], Ending::NoMarker),
            ("half a header", &whole[..100], Ending::Beginning),
            ("reserved, nothing written", &[0; 512], Ending::Beginning),
            ("gzip", &[0x1f, 0x8b, 8, 0], Ending::Compressed),
            ("zstd", &[0x28, 0xb5, 0x2f, 0xfd, 0], Ending::Compressed),
            (
                "zstd after a skippable frame",
                &[0x5a, 0x2a, 0x4d, 0x18, 4, 0, 0, 0],
                Ending::Compressed,
            ),
            ("xz", b"\xfd7zXZ\0", Ending::Compressed),
            ("lz4", &[4, 0x22, 0x4d, 0x18], Ending::Compressed),
            ("bzip2", b"BZh51AY&SY", Ending::Compressed),
            ("a line about bzip2", b"BZh9 is how it begins\n", Ending::Foreign),
            (
                "a text about gzip",
                &[&[0x1f, 0x8b], text.as_bytes()].concat(),
                Ending::Foreign,
            ),
            (
                "a text about bzip2",
                &[b"BZh9 ", text.as_bytes()].concat(),
                Ending::Foreign,
            ),
            ("text", text.as_bytes(), Ending::Foreign),
            ("reserved in full", &[0; 4096], Ending::Beginning),
        ];
        for (case, bytes, expected) in table {
            let ending = Ending::of(&file(bytes), bytes.len() as u64).unwrap();
            assert_eq!(ending, expected, "{case}");
        }
    }

    #[test]
    fn the_shortest_are_just_enough_for_each_kind_of_compressed_data() {
        let mut codecs = HashSet::new();
        for shortest in SHORTEST {
            let codec = Compression::detect(shortest);
            assert_ne!(codec, Compression::None, "{shortest:?}");
            codecs.insert(codec);
            let cut = &shortest[..shortest.len() - 1];
            assert_eq!(Compression::detect(cut), Compression::None, "{cut:?}");
            for length in 0..shortest.len() {
                assert!(
                    may_become_compressed(&shortest[..length]),
                    "{shortest:?} {length}"
                );
            }
        }
        assert_eq!(codecs.len(), 5, "gzip, zstd, xz, lz4 and bzip2");
    }
}
