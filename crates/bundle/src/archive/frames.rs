//! Random access to compressed archives: zstd in many frames, with a table of the frames at the
//! end.
//!
//! The format is zstd's seekable format (contrib/seekable_format in zstd's sources, version 0.1.0).
//! The table is a skippable frame, which other readers skip. Its content may be wrong, so it is
//! checked against the file:
//!
//! - Its sizes must add up.
//! - The header of each frame must state the size in its row.
//! - A frame that is read must end where its row ends, in both sizes.
//!
//! A table is not used in three cases:
//!
//! - It fails a check.
//! - Its frames are so large that random access costs more than passes over the file.
//! - Its windows are so large that a few of them at a time take more memory than one pass.
//!
//! Then the file is read from beginning to end like any other.

use std::io::{self, BufRead as _, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use zstd::stream::read::Decoder;

use super::decode::{LARGEST_WINDOW_LOG, most_frames};
use super::file::ArchiveFile;
use super::tar::{Input, fill};
use crate::{Compression, Fault, Limits};

const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
const TABLE_MAGIC: u32 = 0x8F92_EAB1;
/// Number of frames, descriptor, magic number.
const FOOTER: usize = 9;
/// Magic number and length of a skippable frame.
const SKIPPABLE_HEADER: usize = 8;
/// In the descriptor: rows have a checksum. No other bit has a meaning yet.
const HAS_CHECKSUMS: u8 = 0x80;
/// The largest size of a decompressed block, in bytes (RFC 8878, 3.1.1.2). A decoder decompresses
/// at least one block.
const BLOCK: u64 = 128 << 10;
/// Most decompressed bytes for opening a bundle, in multiples of the content of all frames. Headers
/// take one pass, and so do layers that must be hashed. The same again is for bytes of a frame that
/// precede a document.
const MOST_TO_OPEN: u64 = 4;
/// Most bytes decompressed in vain while each blob is read once, in multiples of the content.
const MOST_IN_VAIN: u64 = 2;
/// Bytes that may be decompressed of any file, however small its content is.
const ALWAYS_ALLOWED: u64 = 64 << 20;
/// The longest header of a frame (RFC 8878, 3.1.1.1, with the magic number).
const FRAME_HEADER: usize = 18;

/// The seek table as it is written.
#[derive(Debug, Default)]
pub(crate) struct SeekTable(Vec<u8>);

impl SeekTable {
    /// Adds a frame by its sizes in bytes: in the file, and decompressed.
    pub(crate) fn push(&mut self, packed: u64, contained: u64) -> io::Result<()> {
        for size in [packed, contained] {
            let size =
                u32::try_from(size).map_err(|_| io::Error::other("a frame is too large for its table"))?;
            self.0.extend_from_slice(&size.to_le_bytes());
        }
        Ok(())
    }

    /// Returns the skippable frame that ends the file.
    pub(crate) fn to_frame(&self) -> Vec<u8> {
        let number = |n: usize| {
            u32::try_from(n)
                .expect("a table of less than 4 GiB")
                .to_le_bytes()
        };
        let mut frame = SKIPPABLE_MAGIC.to_le_bytes().to_vec();
        frame.extend_from_slice(&number(self.0.len() + FOOTER));
        frame.extend_from_slice(&self.0);
        frame.extend_from_slice(&number(self.0.len() / 8));
        frame.push(0);
        frame.extend_from_slice(&TABLE_MAGIC.to_le_bytes());
        frame
    }
}

/// A file of frames whose table has passed the checks.
#[derive(Clone, Debug)]
pub(crate) struct Frames {
    file: ArchiveFile,
    rows: Vec<Row>,
    /// Number of decompressed bytes of all frames.
    pub(crate) length: u64,
    window_log: u32,
}

/// The place of a frame.
#[derive(Clone, Copy, Debug)]
struct Row {
    /// Offset in the file.
    packed_start: u64,
    packed: u64,
    /// Offset in the decompressed content.
    start: u64,
    contained: u64,
}

impl Frames {
    /// Reads the seek table of a zstd file of this length. Returns `None` without a table, or if
    /// the table fails a check.
    pub(crate) fn find(file: &ArchiveFile, length: u64, limits: &Limits) -> io::Result<Option<Self>> {
        let Some(rows) = read_table(file, length, limits)? else {
            return Ok(None);
        };
        for row in &rows {
            if !says_its_size(file, row)? {
                return Ok(None);
            }
        }
        let contained: u64 = rows.iter().map(|row| row.contained).sum();
        let frames = Self {
            file: file.clone(),
            rows,
            length: contained,
            window_log: limits.zstd_window_log.clamp(10, LARGEST_WINDOW_LOG),
        };
        Ok((contained <= limits.expanded(length)).then_some(frames))
    }

    /// Returns the same archive for reading blobs, which need no proof of the file.
    pub(crate) fn without_proof(mut self) -> Self {
        self.file = self.file.without_proof();
        self
    }

    /// Reads the decompressed content from an offset on.
    pub(crate) fn reader_at(self: &Arc<Self>, position: u64) -> FrameReader {
        FrameReader {
            frames: Arc::clone(self),
            position,
            open: None,
            allowance: None,
        }
    }

    /// Returns the number of bytes that may be decompressed to open the bundle. Beyond that, one
    /// pass over the file costs less.
    pub(crate) fn allowance(&self) -> Allowance {
        let bytes = self.length.saturating_mul(MOST_TO_OPEN);
        Allowance(Arc::new(AtomicU64::new(bytes.saturating_add(ALWAYS_ALLOWED))))
    }

    /// Returns true if reading a blob at each of these offsets costs less than a few passes over
    /// the file.
    pub(crate) fn are_within_reach(&self, offsets: impl Iterator<Item = u64>) -> bool {
        let in_vain = offsets
            .filter_map(|offset| Some(offset - self.row_at(offset)?.start))
            .fold(0, u64::saturating_add);
        in_vain
            <= self
                .length
                .saturating_mul(MOST_IN_VAIN)
                .saturating_add(ALWAYS_ALLOWED)
    }

    fn row_at(&self, position: u64) -> Option<&Row> {
        let after = self.rows.partition_point(|row| row.start <= position);
        self.rows[..after]
            .last()
            .filter(|row| position < row.start + row.contained)
    }

    fn open(&self, row: Row) -> io::Result<Open> {
        let packed = FrameBytes {
            file: self.file.clone(),
            position: row.packed_start,
            left: row.packed,
        };
        let mut decoder = Decoder::with_buffer(BufReader::with_capacity(128 << 10, packed))?.single_frame();
        decoder.window_log_max(self.window_log)?;
        Ok(Open {
            decoder,
            row,
            read: 0,
        })
    }
}

fn read_table(file: &ArchiveFile, length: u64, limits: &Limits) -> io::Result<Option<Vec<Row>>> {
    let mut footer = [0; FOOTER];
    let Some(footer_at) = length.checked_sub(FOOTER as u64) else {
        return Ok(None);
    };
    file.read_exact_at(&mut footer, footer_at)?;
    let (count, descriptor) = (number(&footer[..4]), footer[4]);
    if number(&footer[5..]) != TABLE_MAGIC || descriptor & !HAS_CHECKSUMS != 0 {
        return Ok(None);
    }
    if u64::from(count) > most_frames(length, limits) {
        return Ok(None);
    }
    let width = if descriptor & HAS_CHECKSUMS == 0 { 8 } else { 12 };
    let table = usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(width);
    let Some(start) = footer_at.checked_sub((table + SKIPPABLE_HEADER) as u64) else {
        return Ok(None);
    };
    let mut bytes = vec![0; table + SKIPPABLE_HEADER];
    file.read_exact_at(&mut bytes, start)?;
    let (header, table) = bytes.split_at(SKIPPABLE_HEADER);
    let is_whole = number(&header[..4]) == SKIPPABLE_MAGIC
        && u64::from(number(&header[4..])) == (table.len() + FOOTER) as u64;
    Ok(is_whole.then(|| rows(table, width)).flatten().filter(|rows| {
        let packed: u64 = rows.iter().map(|row| row.packed).sum();
        packed == start
    }))
}

/// Returns the rows of a table. Returns `None` if the file size of a row is zero.
fn rows(table: &[u8], width: usize) -> Option<Vec<Row>> {
    let (mut packed_start, mut start) = (0, 0);
    let row = |bytes: &[u8]| {
        let row = Row {
            packed_start,
            packed: number(&bytes[..4]).into(),
            start,
            contained: number(&bytes[4..8]).into(),
        };
        packed_start += row.packed;
        start += row.contained;
        (row.packed > 0).then_some(row)
    };
    table.chunks_exact(width).map(row).collect()
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("four bytes"))
}

/// Returns a skippable frame with `bytes` bytes of padding.
pub(crate) fn ballast(bytes: u32) -> Vec<u8> {
    let mut frame = SKIPPABLE_MAGIC.to_le_bytes().to_vec();
    frame.extend_from_slice(&bytes.to_le_bytes());
    frame.resize(frame.len() + bytes as usize, 0);
    frame
}

/// The largest window, in bytes, of frames with random access. Several blobs are read at a time,
/// each with its own window. The frames that `write` makes have smaller windows.
const LARGEST_WINDOW: u64 = 8 << 20;

/// Returns the window of a frame in bytes, from its header (RFC 8878, section 3.1.1.1). Returns
/// `None` if there is no header.
fn window(header: &[u8], contained: u64) -> Option<u64> {
    let [_, _, _, _, descriptor, window, ..] = header else {
        return None;
    };
    let is_single_segment = descriptor & 0x20 != 0;
    let (exponent, mantissa) = (u32::from(window >> 3), u64::from(window & 7));
    let base = 1_u64 << (10 + exponent);
    Some(match is_single_segment {
        true => contained,
        false => base + base / 8 * mantissa,
    })
}

/// Returns true if a frame begins where its row says and has the size of its row. Its window must
/// be within the limit.
fn says_its_size(file: &ArchiveFile, row: &Row) -> io::Result<bool> {
    let mut header = [0; FRAME_HEADER];
    let n = usize::try_from(row.packed)
        .unwrap_or(FRAME_HEADER)
        .min(FRAME_HEADER);
    file.read_exact_at(&mut header[..n], row.packed_start)?;
    if row.contained == 0 {
        let is_skippable = n >= SKIPPABLE_HEADER && number(&header[..4]) == SKIPPABLE_MAGIC;
        return Ok(is_skippable && u64::from(number(&header[4..8])) == row.packed - SKIPPABLE_HEADER as u64);
    }
    let is_frame = header.starts_with(&zstd::zstd_safe::MAGICNUMBER.to_le_bytes());
    let size = zstd::zstd_safe::get_frame_content_size(&header[..n]);
    let is_small = window(&header[..n], row.contained).is_some_and(|window| window <= LARGEST_WINDOW);
    Ok(is_frame && is_small && matches!(size, Ok(Some(size)) if size == row.contained))
}

/// Number of bytes that may still be decompressed, shared by several readers.
#[derive(Clone, Debug)]
pub(crate) struct Allowance(Arc<AtomicU64>);

impl Allowance {
    fn spend(&self, bytes: u64) -> io::Result<()> {
        let spend = |left: u64| left.checked_sub(bytes);
        match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend) {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::other(
                "the frames are too large to be read at so many places",
            )),
        }
    }
}

/// Reads the decompressed content. Going forward is cheap. Going back is cheap too if the frames
/// are small: the bytes of a frame before the position are decompressed in vain.
pub(crate) struct FrameReader {
    frames: Arc<Frames>,
    position: u64,
    open: Option<Open>,
    /// The bound on decompressed bytes. `None` if there is no bound.
    allowance: Option<Allowance>,
}

impl FrameReader {
    /// Limits the bytes that the reader decompresses.
    pub(crate) fn within(self, allowance: &Allowance) -> Self {
        let allowance = Some(allowance.clone());
        Self { allowance, ..self }
    }

    fn spend(&self, bytes: u64) -> io::Result<()> {
        self.allowance
            .as_ref()
            .map_or(Ok(()), |allowance| allowance.spend(bytes))
    }
}

/// A frame during decompression.
struct Open {
    decoder: Decoder<'static, BufReader<FrameBytes>>,
    row: Row,
    read: u64,
}

impl Open {
    fn position(&self) -> u64 {
        self.row.start + self.read
    }

    fn left(&self) -> u64 {
        self.row.contained - self.read
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left()).map_or(buffer.len(), |left| left.min(buffer.len()));
        let n = self
            .decoder
            .read(&mut buffer[..wanted])
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => self.damaged("it ends early"),
                _ if error.raw_os_error().is_some() => error,
                _ => self.damaged(&error.to_string()),
            })?;
        if n == 0 && wanted > 0 {
            return Err(self.damaged("it contains less than the table says"));
        }
        self.read += n as u64;
        if self.left() == 0 {
            self.end()?;
        }
        Ok(n)
    }

    /// Checks that a frame ends, with its checksum, where its row does.
    fn end(&mut self) -> io::Result<()> {
        let after = self
            .decoder
            .read(&mut [0])
            .map_err(|error| self.damaged(&error.to_string()))?;
        let rest = self.decoder.get_mut().fill_buf()?.len();
        if after == 0 && rest == 0 {
            Ok(())
        } else {
            Err(self.damaged("it is larger than the table says"))
        }
    }

    fn damaged(&self, reason: &str) -> io::Error {
        io::Error::from(Fault::CompressedDamage {
            codec: Compression::Zstd,
            offset: self.row.packed_start,
            reason: reason.to_owned(),
        })
    }
}

impl Read for FrameReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(row) = self.frames.row_at(self.position).copied() else {
            return Ok(0);
        };
        if buffer.is_empty() {
            return Ok(0);
        }
        let position = self.position;
        let reusable = self
            .open
            .take()
            .filter(|open| open.row.start == row.start && open.position() <= position);
        let mut open = match reusable {
            Some(open) => open,
            None => {
                self.spend(row.contained.min(BLOCK))?;
                self.frames.open(row)?
            }
        };
        self.spend(position - open.position())?;
        let mut passed_over = [0; 16 << 10];
        while open.position() < position {
            let wanted = usize::try_from(position - open.position()).unwrap_or(usize::MAX);
            open.read(&mut passed_over[..wanted.min(16 << 10)])?;
        }
        let n = open.read(buffer)?;
        self.spend(n as u64)?;
        self.position += n as u64;
        self.open = (open.left() > 0).then_some(open);
        Ok(n)
    }
}

impl Input for FrameReader {
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        fill(self, buffer)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        let n = bytes.min(self.frames.length - self.position);
        self.position += n;
        Ok(n)
    }

    fn position(&self) -> u64 {
        self.position
    }

    fn remaining(&self) -> Option<u64> {
        Some(self.frames.length - self.position)
    }
}

/// Reads the bytes of one frame in the file.
struct FrameBytes {
    file: ArchiveFile,
    position: u64,
    left: u64,
}

impl Read for FrameBytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let n = self.file.read_at(&mut buffer[..wanted], self.position)?;
        self.position += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}
