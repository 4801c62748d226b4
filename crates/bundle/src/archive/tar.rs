//! A strict walk over the headers of a tar archive.
//!
//! The `tar` crate decodes a header, and this module walks from one header to the next. The usual
//! readers are too lenient for that:
//!
//! - They take a cut archive for a whole archive.
//! - They hold extended headers of any size in memory.
//! - They read an absurd size as zero.
//!
//! Sources: POSIX.1-2017 `pax` (ustar and extended headers), the GNU tar manual (long names,
//! base-256 numbers, the headers of sparse files).

mod extension;
mod input;

use std::io;

use ::tar::Header;
use basics::foreign;

use super::decode::fault_in;
use crate::{Ending, Fault, Limits, Truncation};
use extension::Extension;
pub(crate) use input::{FileInput, Input, StreamInput, fill};

/// Size of a header in bytes. Entry data is padded to multiples of it.
pub(crate) const BLOCK: u64 = 512;
const BLOCK_BYTES: usize = 512;

/// Longest padding in bytes after the end-of-archive mark. The padding is at most one record, and
/// no tar writes larger records than this.
const LONGEST_PADDING: u64 = 1 << 20;

/// An entry that may belong to an image.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Name of the entry, as the archive gives it.
    pub(crate) name: Vec<u8>,
    pub(crate) kind: EntryKind,
    /// Offset of the entry's bytes.
    pub(crate) offset: u64,
    /// Number of bytes that the header gives.
    pub(crate) size: u64,
    /// Number of those bytes that the archive has, if that is known in advance. It is less in a cut
    /// archive.
    pub(crate) present: u64,
}

/// Kind of an entry. Folders, devices and the like are skipped.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File,
    HardLink(Vec<u8>),
    SymbolicLink(Vec<u8>),
    /// A file with holes. The archive has only some of its bytes, and the reader does not read
    /// them.
    Sparse,
}

/// One step of the walk.
#[derive(Debug)]
pub(crate) enum Step {
    Entry(Entry),
    End {
        ending: Ending,
        /// Offset and length of the data after the end-of-archive mark, if it is more than padding.
        trailing: Option<(u64, u64)>,
    },
}

/// Returns true if these bytes are a header with a correct checksum.
pub(crate) fn is_header(block: &[u8]) -> bool {
    block.len() == BLOCK_BYTES && !is_zero(block) && checksum_fits(Header::from_byte_slice(block))
}

/// The walk. It takes the memory of one header, and of an extension within `limits`.
pub(crate) struct Walk<I> {
    input: I,
    limits: Limits,
    entries: u64,
    /// The last entry, whose bytes have not been skipped yet.
    last: Option<Pending>,
}

struct Pending {
    name: Vec<u8>,
    size: u64,
    /// Number of its bytes that have been read.
    read: u64,
}

impl<I: Input> Walk<I> {
    pub(crate) fn new(input: I, limits: &Limits) -> Self {
        Self {
            input,
            limits: limits.clone(),
            entries: 0,
            last: None,
        }
    }

    /// Goes to the next entry that may belong to an image. Must not be called after the end.
    pub(crate) fn next(&mut self) -> Result<Step, Fault> {
        let mut extension = Extension::default();
        loop {
            if let Some(ending) = self.pass_over_data()? {
                return Ok(Step::End {
                    ending,
                    trailing: None,
                });
            }
            let offset = self.input.position();
            let mut block = [0; BLOCK_BYTES];
            let n = self.input.fill(&mut block).map_err(read_error)?;
            if n < BLOCK_BYTES {
                return Ok(cut_in_header(offset, BLOCK, n as u64, &extension));
            }
            if is_zero(&block) {
                return self.end_mark(offset, &extension);
            }
            self.count()?;
            let header = Header::from_byte_slice(&block);
            if !checksum_fits(header) {
                return Err(self.damaged(offset, "the header's checksum is wrong"));
            }
            let size = number(&header.as_old().size).map_err(|why| self.damaged(offset, why))?;
            let kind @ (b'x' | b'X' | b'g' | b'L' | b'K') = type_flag(header) else {
                if !self.pass_over_map(header)? {
                    let present = self.input.position() - offset;
                    extension.offset.get_or_insert(offset);
                    return Ok(cut_in_header(offset, present + BLOCK, present, &extension));
                }
                match self.entry(header, size, &extension, offset)? {
                    Some(entry) => return Ok(Step::Entry(entry)),
                    None => extension = Extension::default(),
                }
                continue;
            };
            let Some(payload) = self.payload(size)? else {
                let present = self.input.position() - offset;
                return Ok(cut_in_header(offset, BLOCK + size, present, &extension));
            };
            if kind != b'g' {
                extension.offset.get_or_insert(offset);
            }
            extension
                .take(kind, &payload)
                .map_err(|why| self.damaged(offset, why))?;
        }
    }

    /// Reads the next bytes of the last entry. Fewer bytes than `buffer` holds mean the end of the
    /// entry or of the archive.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Fault> {
        let Some(last) = &mut self.last else {
            return Ok(0);
        };
        let left = usize::try_from(last.size - last.read).unwrap_or(usize::MAX);
        let n = buffer.len().min(left);
        let n = self.input.fill(&mut buffer[..n]).map_err(read_error)?;
        last.read += n as u64;
        Ok(n)
    }

    pub(crate) fn input(&mut self) -> &mut I {
        &mut self.input
    }

    pub(crate) fn into_input(self) -> I {
        self.input
    }

    /// Skips the bytes of the entry before. Returns the ending if the archive lacks some of them.
    fn pass_over_data(&mut self) -> Result<Option<Ending>, Fault> {
        let Some(Pending { name, size, read }) = self.last.as_ref() else {
            return Ok(None);
        };
        let offset = self.input.position() - read;
        let padded = size.div_ceil(BLOCK).saturating_mul(BLOCK);
        let skipped = read + self.input.skip(padded - read).map_err(read_error)?;
        if skipped < *size {
            let entry = Some(foreign::bytes(name).to_string());
            return Ok(Some(Ending::Truncated(Truncation {
                offset,
                entry,
                expected: *size,
                present: skipped,
            })));
        }
        // The bytes are complete and only the padding is missing. That is as harmless as a missing
        // mark.
        let ending = (skipped < padded).then_some(Ending::NoMarker);
        if let Some(last) = self.last.as_mut() {
            (last.size, last.read) = (0, 0);
        }
        Ok(ending)
    }

    /// Counts a header, so that an archive of headers alone reaches a limit.
    fn count(&mut self) -> Result<(), Fault> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(Fault::Limit {
                what: "entries".to_owned(),
                limit: self.limits.entries,
                set: Some(crate::limits::set("entries", self.limits.entries)),
            });
        }
        Ok(())
    }

    /// Reads the payload of an extended header. Returns `None` if the archive ends before the
    /// payload.
    fn payload(&mut self, size: u64) -> Result<Option<Vec<u8>>, Fault> {
        let limit = self.limits.extended_header;
        if size > limit {
            let place = self
                .last_name()
                .map(|name| format!(", after entry {name}"))
                .unwrap_or_default();
            return Err(Fault::Limit {
                what: format!("bytes in an extended header{place}"),
                limit,
                set: Some(crate::limits::set_bytes("extendedHeader", limit)),
            });
        }
        let padded = usize::try_from(size.next_multiple_of(BLOCK)).expect("limited above");
        let mut payload = vec![0; padded];
        if self.input.fill(&mut payload).map_err(read_error)? < padded {
            return Ok(None);
        }
        payload.truncate(usize::try_from(size).expect("limited above"));
        Ok(Some(payload))
    }

    /// Makes an entry of a header and its extension. Returns `None` if the entry cannot belong to
    /// an image.
    fn entry(
        &mut self,
        header: &Header,
        ustar_size: u64,
        extension: &Extension,
        offset: u64,
    ) -> Result<Option<Entry>, Fault> {
        let name = extension.name_of(header);
        let damaged = |reason: &str| Fault::Damaged {
            offset,
            entry: Some(foreign::bytes(&name).to_string()),
            reason: reason.to_owned(),
        };
        if name.contains(&0) {
            return Err(damaged("its name contains a zero byte"));
        }
        let size = match extension.size_of(ustar_size).map_err(damaged)? {
            size if has_data(header, &name) => size,
            _ => 0,
        };
        let kind = extension.kind_of(header, &name);
        self.last = Some(Pending {
            name: name.clone(),
            size,
            read: 0,
        });
        let offset = self.input.position();
        let present = self
            .input
            .remaining()
            .map_or(size, |remaining| remaining.min(size));
        Ok(kind.map(|kind| Entry {
            name,
            kind,
            offset,
            size,
            present,
        }))
    }

    /// Skips the blocks that continue the old header of a sparse file. Then its bytes can be
    /// skipped by the size in the header. Returns false if the archive ends before the blocks do.
    fn pass_over_map(&mut self, header: &Header) -> Result<bool, Fault> {
        // Byte 482 of the header and byte 504 of each further block say whether another block
        // follows.
        let mut has_more =
            type_flag(header) == b'S' && header.as_gnu().is_some() && header.as_bytes()[482] != 0;
        let mut block = [0; BLOCK_BYTES];
        while has_more {
            if self.input.fill(&mut block).map_err(read_error)? < BLOCK_BYTES {
                return Ok(false);
            }
            self.count()?;
            has_more = block[504] != 0;
        }
        Ok(true)
    }

    /// Reads the two zero blocks that end an archive. Some old writers write only one.
    fn end_mark(&mut self, offset: u64, extension: &Extension) -> Result<Step, Fault> {
        if let Some(offset) = extension.offset {
            return Err(self.damaged(offset, "no entry follows an extended header"));
        }
        let mut block = [0; BLOCK_BYTES];
        let n = self.input.fill(&mut block).map_err(read_error)?;
        if !is_zero(&block[..n]) {
            return Err(self.damaged(offset, "a single block of zeros where a header should be"));
        }
        if n < BLOCK_BYTES {
            return Ok(Step::End {
                ending: Ending::NoMarker,
                trailing: None,
            });
        }
        let end = self.input.position();
        Ok(Step::End {
            ending: Ending::Marker,
            trailing: self.trailing_data(end)?,
        })
    }

    /// Checks the data after the end-of-archive mark. Zeros up to the length of a record are
    /// padding. All other bytes are trailing data.
    fn trailing_data(&mut self, end: u64) -> Result<Option<(u64, u64)>, Fault> {
        let mut buffer = vec![0; 64 << 10];
        let mut only_zeros = true;
        let mut bytes = 0;
        while bytes <= LONGEST_PADDING && only_zeros {
            let n = self.input.fill(&mut buffer).map_err(read_error)?;
            if n == 0 {
                return Ok(None);
            }
            only_zeros = is_zero(&buffer[..n]);
            bytes += n as u64;
        }
        bytes += self.input.skip(u64::MAX).map_err(read_error)?;
        Ok(Some((end, bytes)))
    }

    fn last_name(&self) -> Option<String> {
        self.last
            .as_ref()
            .map(|last| foreign::bytes(&last.name).to_string())
    }

    fn damaged(&self, offset: u64, reason: &str) -> Fault {
        let reason = match self.last_name() {
            Some(name) => format!("{reason} (the entry before is {name})"),
            None => reason.to_owned(),
        };
        Fault::Damaged {
            offset,
            entry: None,
            reason,
        }
    }
}

/// Returns the ending for a cut. Unless the cut is between two entries, it is in a header.
fn cut_in_header(offset: u64, expected: u64, present: u64, extension: &Extension) -> Step {
    let ending = match extension.offset {
        None if present == 0 => Ending::NoMarker,
        _ => Ending::Truncated(Truncation {
            offset,
            entry: None,
            expected,
            present,
        }),
    };
    Step::End {
        ending,
        trailing: None,
    }
}

fn type_flag(header: &Header) -> u8 {
    header.as_old().linkflag[0]
}

/// Returns true for a folder of the oldest format: a file whose name ends in a slash.
fn is_old_folder(name: &[u8]) -> bool {
    name.ends_with(b"/")
}

/// Returns true if an entry has data. Links, devices and folders have none, whatever their size
/// says (POSIX.1-2017 pax, "typeflag").
fn has_data(header: &Header, name: &[u8]) -> bool {
    match type_flag(header) {
        b'1'..=b'6' => false,
        0 => !is_old_folder(name),
        _ => true,
    }
}

pub(crate) fn read_error(source: io::Error) -> Fault {
    let source = match fault_in(source) {
        Ok(fault) => return fault,
        Err(source) => source,
    };
    match source.kind() {
        // The length was known, so another program has truncated the file since.
        io::ErrorKind::UnexpectedEof => Fault::Changed,
        _ => Fault::io("read the file")(source),
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// Compares the checksum with the sum of all bytes, where the checksum field counts as spaces. Some
/// old writers summed signed bytes.
fn checksum_fits(header: &Header) -> bool {
    let Ok(expected) = number(&header.as_old().cksum) else {
        return false;
    };
    let mut bytes = *header.as_bytes();
    bytes[148..156].fill(b' ');
    let unsigned: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
    let signed: i64 = bytes.iter().map(|byte| i64::from(byte.cast_signed())).sum();
    expected == unsigned || i64::try_from(expected) == Ok(signed)
}

/// Reads a number of a header: octal digits between spaces and zeros, or base-256 (GNU, star).
fn number(field: &[u8]) -> Result<u64, &'static str> {
    match field {
        [0x80, rest @ ..] => base_256(rest),
        [0xff, ..] => Err("a number in the header is negative"),
        [first, ..] if first & 0x80 != 0 => Err("a number in the header is too large"),
        _ => octal(field),
    }
}

fn base_256(digits: &[u8]) -> Result<u64, &'static str> {
    const TOO_LARGE: &str = "a number in the header is too large";
    let (high, low) = digits.split_at(digits.len().saturating_sub(8));
    if !is_zero(high) {
        return Err(TOO_LARGE);
    }
    let value = low.iter().fold(0, |value, digit| value << 8 | u64::from(*digit));
    // Offsets in files are signed.
    i64::try_from(value).map(|_| value).map_err(|_| TOO_LARGE)
}

fn octal(field: &[u8]) -> Result<u64, &'static str> {
    let blank = |byte: &u8| matches!(byte, 0 | b' ');
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    if !rest.iter().all(blank) {
        return Err("a number in the header has trailing text");
    }
    digits.iter().try_fold(0, |value: u64, digit| match digit {
        // At most twelve octal digits, so the value does not overflow.
        b'0'..=b'7' => Ok(value << 3 | u64::from(digit - b'0')),
        _ => Err("a number in the header is not octal"),
    })
}
