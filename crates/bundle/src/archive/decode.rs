//! Decompresses a file from its beginning to its end.
//!
//! The codecs are libraries. This module does what they leave to their callers: files of several
//! members or frames, data after the last frame, offsets of faults, and limits on the result. A
//! [`Decoder`] holds one window and one piece of the file, whatever the size of the file.
//!
//! Sources: RFC 1952 (gzip), RFC 8878 (zstd), the .xz file format 1.2.1, the LZ4 frame format
//! 1.6.4.

mod codecs;

use std::io::{self, Read};

use lz4_flex::frame::FrameDecoder;

use super::file::ArchiveFile;
use super::tape::Tape;
use crate::{Compression, Fault, Limits};
use codecs::{Bzip2, Codec, Failure, Gzip, Xz, Zstd, damage};

/// Bytes read from the file at a time.
const PIECE: usize = 128 << 10;

/// Frames that every file may have, and bytes for each further frame. Starting a frame takes some
/// codecs a hundred microseconds. Parallel compressors make frames of 64 KiB and more.
const FEW_FRAMES: u64 = 10_000;
const SMALL_FRAME: u64 = 256;

/// Binary logarithm, in bytes, of the largest zstd window on this architecture.
pub(crate) const LARGEST_WINDOW_LOG: u32 = if usize::BITS == 32 { 30 } else { 31 };

/// Returns the number of frames that a file of this length may have.
pub(crate) fn most_frames(length: u64, limits: &Limits) -> u64 {
    (FEW_FRAMES + length / SMALL_FRAME).min(limits.entries)
}

/// Bytes of a magic number. For bzip2 and xz, [`magic`] has only the first bytes, which never vary.
const MAGIC: usize = 4;

/// Returns true for a skippable frame of zstd and LZ4: `0x184D2A50` to `0x184D2A5F`, little-endian.
fn is_skippable(start: &[u8]) -> bool {
    matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// Returns the magic number that begins each member, frame or stream. It is shorter than [`MAGIC`]
/// if fewer bytes are fixed.
fn magic(codec: Compression) -> &'static [u8] {
    match codec {
        Compression::None => b"",
        Compression::Gzip => b"\x1f\x8b\x08",
        Compression::Zstd => b"\x28\xb5\x2f\xfd",
        Compression::Xz => b"\xfd7zX",
        Compression::Lz4 => b"\x04\x22\x4d\x18",
        Compression::Bzip2 => b"BZh",
    }
}

/// Decompressed bytes by which a stream may be ahead of the bytes that justify them. The padding of
/// a bundle with layers of zeros comes after these layers.
const AHEAD: u64 = 4 << 30;

/// The origin of compressed bytes.
enum Origin {
    File(ArchiveFile),
    Stream(Tape),
}

/// Reads compressed bytes piece by piece.
struct Source {
    origin: Origin,
    /// Length of the file or stream. The length of a stream is unknown until its end, and is the
    /// largest number until then.
    length: u64,
    /// Offset of the next byte that will be read from the file.
    position: u64,
    buffer: Vec<u8>,
    /// Number of bytes of `buffer` that the codec has taken.
    taken: usize,
    /// True if a read asked for more bytes than the file has.
    ran_dry: bool,
}

impl Source {
    /// Returns the offset of the next byte that the codec has not taken.
    fn offset(&self) -> u64 {
        self.position - self.rest().len() as u64
    }

    fn rest(&self) -> &[u8] {
        &self.buffer[self.taken..]
    }

    /// Returns the buffered bytes: at least `at_least` of them, unless the file ends before.
    fn peek(&mut self, at_least: usize) -> Result<&[u8], Fault> {
        while self.rest().len() < at_least && self.position < self.length {
            self.read_on()?;
        }
        Ok(self.rest())
    }

    fn read_on(&mut self) -> Result<(), Fault> {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        let left = usize::try_from(self.length - self.position).unwrap_or(PIECE);
        let kept = self.buffer.len();
        self.buffer.resize(kept + left.min(PIECE), 0);
        let piece = &mut self.buffer[kept..];
        let read = match &mut self.origin {
            Origin::File(file) => file.read_at(piece, self.position),
            Origin::Stream(tape) => tape.read(piece),
        };
        self.buffer.truncate(kept + read.as_ref().map_or(0, |n| *n));
        match read {
            Ok(0) if self.is_stream() => {
                self.length = self.position;
                Ok(())
            }
            // The length was known, so another program has truncated the file since.
            Ok(0) => Err(Fault::Changed),
            Ok(n) => {
                self.position += n as u64;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(fault_in(error).unwrap_or_else(Fault::io("read the file"))),
        }
    }

    fn take(&mut self, bytes: usize) {
        self.taken += bytes;
    }

    fn is_stream(&self) -> bool {
        matches!(self.origin, Origin::Stream(_))
    }

    /// Returns the number of bytes that decompressed bytes are measured against: the length of a
    /// file, or the bytes of a stream so far.
    fn measure(&self) -> u64 {
        match self.is_stream() {
            true => self.position,
            false => self.length,
        }
    }

    /// Skips bytes. Returns true if there were so many. Bytes of a file are not read.
    fn skip(&mut self, mut bytes: u64) -> Result<bool, Fault> {
        if self.is_stream() {
            while bytes > 0 {
                let at_hand = self.peek(1)?.len() as u64;
                if at_hand == 0 {
                    return Ok(false);
                }
                let n = at_hand.min(bytes);
                self.take(usize::try_from(n).expect("bytes in memory"));
                bytes -= n;
            }
            return Ok(true);
        }
        Ok(self.pass_over(bytes))
    }

    fn pass_over(&mut self, bytes: u64) -> bool {
        let at_hand = self.rest().len();
        match usize::try_from(bytes) {
            Ok(bytes) if bytes <= at_hand => self.take(bytes),
            _ => {
                self.take(at_hand);
                self.position = self.position.saturating_add(bytes - at_hand as u64);
            }
        }
        let is_enough = self.position <= self.length;
        self.position = self.position.min(self.length);
        is_enough
    }

    /// Returns true if only zeros are left, and takes them.
    fn only_zeros_follow(&mut self) -> Result<bool, Fault> {
        loop {
            let rest = self.peek(1)?;
            let n = rest.len();
            if n == 0 {
                return Ok(true);
            }
            if rest.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            self.take(n);
        }
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = self.peek(1)?;
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        self.take(n);
        self.ran_dry |= n == 0 && !buffer.is_empty();
        Ok(n)
    }
}

/// A codec with its source. The library for LZ4 reads from its source itself.
enum Engine {
    Pushed { codec: Box<dyn Codec>, source: Source },
    Lz4(Option<Box<FrameDecoder<Source>>>),
}

impl Engine {
    fn new(source: Source, compression: Compression, limits: &Limits) -> Result<Self, Fault> {
        let codec: Box<dyn Codec> = match compression {
            Compression::None => unreachable!("a plain archive is not decompressed"),
            Compression::Gzip => Box::new(Gzip::new()),
            Compression::Zstd => {
                Box::new(Zstd::new(limits.zstd_window_log).map_err(Fault::io("prepare to decompress"))?)
            }
            Compression::Xz => Box::new(Xz::new(window(limits.zstd_window_log))),
            Compression::Bzip2 => Box::new(Bzip2::new()),
            Compression::Lz4 => return Ok(Self::Lz4(Some(Box::new(FrameDecoder::new(source))))),
        };
        Ok(Self::Pushed { codec, source })
    }

    fn source(&mut self) -> &mut Source {
        match self {
            Self::Pushed { source, .. } => source,
            Self::Lz4(decoder) => decoder
                .as_mut()
                .expect("the decoder is always put back")
                .get_mut(),
        }
    }

    fn begin(&mut self) -> Result<(), Failure> {
        match self {
            Self::Pushed { codec, .. } => codec.begin(),
            // The decoder's buffers fit its first frame. A frame with another block size would
            // confuse it.
            Self::Lz4(decoder) => {
                let source = decoder
                    .take()
                    .expect("the decoder is always put back")
                    .into_inner();
                *decoder = Some(Box::new(FrameDecoder::new(source)));
                Ok(())
            }
        }
    }
}

enum State {
    /// Before the first frame, or after a frame.
    Between,
    Inside,
    End,
}

/// Decompresses a file from beginning to end. Its calls block.
pub(crate) struct Decoder {
    compression: Compression,
    engine: Engine,
    state: State,
    /// Frames so far.
    frames: u64,
    /// Decompressed bytes so far.
    made: u64,
    limits: Limits,
    trailing: Option<(u64, u64)>,
}

impl Decoder {
    /// Starts with a file of `length` bytes and this compression.
    pub(crate) fn new(
        file: ArchiveFile,
        length: u64,
        compression: Compression,
        limits: &Limits,
    ) -> Result<Self, Fault> {
        Self::of(Origin::File(file), length, compression, limits)
    }

    /// Starts with a stream of this compression, whose length is unknown.
    pub(crate) fn of_stream(tape: Tape, compression: Compression, limits: &Limits) -> Result<Self, Fault> {
        Self::of(Origin::Stream(tape), u64::MAX, compression, limits)
    }

    fn of(origin: Origin, length: u64, compression: Compression, limits: &Limits) -> Result<Self, Fault> {
        let source = Source {
            origin,
            length,
            position: 0,
            buffer: Vec::new(),
            taken: 0,
            ran_dry: false,
        };
        Ok(Self {
            compression,
            engine: Engine::new(source, compression, limits)?,
            state: State::Between,
            frames: 0,
            made: 0,
            limits: limits.clone(),
            trailing: None,
        })
    }

    /// Returns the tape that a stream is read from.
    pub(crate) fn tape(&mut self) -> &mut Tape {
        match &mut self.engine.source().origin {
            Origin::Stream(tape) => tape,
            Origin::File(_) => unreachable!("only a stream has a tape"),
        }
    }

    /// Ends the decompression of a stream, and returns its tape.
    pub(crate) fn into_tape(self) -> Tape {
        let source = match self.engine {
            Engine::Pushed { source, .. } => source,
            Engine::Lz4(decoder) => decoder.expect("the decoder is always put back").into_inner(),
        };
        match source.origin {
            Origin::Stream(tape) => tape,
            Origin::File(_) => unreachable!("only a stream has a tape"),
        }
    }

    /// Returns the offset and length of the data after the last frame, unless it is all zeros. The
    /// result is final at the end of the file.
    pub(crate) fn trailing(&self) -> Option<(u64, u64)> {
        self.trailing
    }

    /// Decompresses the next bytes. Returns 0 only at the end.
    pub(crate) fn decode(&mut self, buffer: &mut [u8]) -> Result<usize, Fault> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match self.state {
                State::End => return Ok(0),
                State::Between => self.begin()?,
                State::Inside => {
                    let n = match self.engine {
                        Engine::Pushed { .. } => self.push(buffer)?,
                        Engine::Lz4(_) => self.pull(buffer)?,
                    };
                    if n > 0 {
                        self.account(n)?;
                        return Ok(n);
                    }
                }
            }
        }
    }

    fn account(&mut self, made: usize) -> Result<(), Fault> {
        self.made += made as u64;
        let source = self.engine.source();
        let ahead = if source.is_stream() { AHEAD } else { 0 };
        self.check_expansion(ahead)
    }

    fn check_expansion(&mut self, ahead: u64) -> Result<(), Fault> {
        let measure = self.engine.source().measure();
        if self.made > self.limits.expanded(measure).saturating_add(ahead) {
            return Err(Fault::Limit {
                what: format!(
                    "times its size when decompressed from {}, maybe a decompression bomb: decompress it first if you trust it",
                    self.compression
                ),
                limit: self.limits.expansion,
                set: Some(crate::limits::set("expansion", self.limits.expansion)),
            });
        }
        Ok(())
    }

    /// Checks what follows: another frame, or the end.
    fn begin(&mut self) -> Result<(), Fault> {
        let magic = magic(self.compression);
        let frames = self.compression == Compression::Zstd || self.compression == Compression::Lz4;
        let start = self.engine.source().peek(2 * MAGIC)?;
        let skippable = frames && is_skippable(start);
        if start.is_empty() {
            self.state = State::End;
            return self.check_expansion(0);
        }
        if start.len() < magic.len() && magic.starts_with(start) {
            return Err(self.cut());
        }
        if !start.starts_with(magic) && !skippable {
            return self.end();
        }
        self.frames += 1;
        let most = most_frames(self.engine.source().measure(), &self.limits);
        if self.frames > most {
            return Err(Fault::Limit {
                what: format!("{} frames in a file of this size", self.compression),
                limit: most,
                set: Some(crate::limits::set("entries", self.limits.entries)),
            });
        }
        if self.compression == Compression::Lz4 && skippable {
            return self.skip_frame();
        }
        self.state = State::Inside;
        self.engine.begin().map_err(|failure| self.failed(failure))
    }

    /// Skips a skippable frame: its magic number, its length, and that many bytes.
    fn skip_frame(&mut self) -> Result<(), Fault> {
        let source = self.engine.source();
        let header = source.peek(2 * MAGIC)?;
        let length = header
            .get(MAGIC..2 * MAGIC)
            .and_then(|length| length.try_into().ok());
        let whole = match length {
            Some(length) => {
                let length = u64::from(u32::from_le_bytes(length));
                source.skip(2 * MAGIC as u64 + length)?
            }
            None => false,
        };
        if whole { Ok(()) } else { Err(self.cut()) }
    }

    /// Ends after the last frame. Zeros there are padding of tapes and block devices. Any other
    /// data is reported as foreign.
    fn end(&mut self) -> Result<(), Fault> {
        self.state = State::End;
        let source = self.engine.source();
        let offset = source.offset();
        if !source.only_zeros_follow()? {
            // The end of a stream shows only when it is read.
            while source.is_stream() && !source.peek(1)?.is_empty() {
                source.take(source.rest().len());
            }
            self.trailing = Some((offset, source.length - offset));
        }
        self.check_expansion(0)
    }

    fn push(&mut self, buffer: &mut [u8]) -> Result<usize, Fault> {
        let Engine::Pushed { codec, source } = &mut self.engine else {
            unreachable!("only these codecs are pushed");
        };
        let input = source.peek(1)?;
        let is_dry = input.is_empty();
        let step = match codec.step(input, buffer) {
            Ok(step) => step,
            Err(failure) => return Err(self.failed(failure)),
        };
        source.take(step.taken);
        if step.ends {
            self.state = State::Between;
        } else if step.made == 0 && is_dry {
            return Err(self.cut());
        } else if step.made == 0 && step.taken == 0 {
            return Err(self.failed(damage("the codec makes no progress with its input")));
        }
        Ok(step.made)
    }

    fn pull(&mut self, buffer: &mut [u8]) -> Result<usize, Fault> {
        let Engine::Lz4(Some(decoder)) = &mut self.engine else {
            unreachable!("only this codec is pulled, and its decoder is always put back");
        };
        let read = decoder.read(buffer);
        // At the end of the file, the library takes a missing block for the last block.
        let ran_dry = decoder.get_ref().ran_dry;
        match read {
            Ok(0) if ran_dry => Err(self.cut()),
            Ok(0) => {
                self.state = State::Between;
                Ok(0)
            }
            Ok(n) => Ok(n),
            Err(error) => Err(match fault_in(error) {
                Ok(fault) => fault,
                Err(_) if ran_dry => self.cut(),
                Err(error) => self.failed(damage(error)),
            }),
        }
    }

    fn cut(&mut self) -> Fault {
        Fault::CompressedCut {
            codec: self.compression,
            length: self.engine.source().length,
        }
    }

    fn failed(&mut self, failure: Failure) -> Fault {
        match failure {
            Failure::Damage(reason) => Fault::CompressedDamage {
                codec: self.compression,
                offset: self.engine.source().offset(),
                reason,
            },
            Failure::Window => Fault::Limit {
                what: format!(
                    "bytes of window are needed to decompress {}: raise the limit, decompress it first, or compress \
                     it again with a smaller window (zstd: without --long and --ultra, xz: with a lower preset)",
                    self.compression
                ),
                limit: window(self.limits.zstd_window_log),
                set: Some(crate::limits::set_bytes(
                    "zstdWindow",
                    window(self.limits.zstd_window_log),
                )),
            },
        }
    }
}

fn window(log: u32) -> u64 {
    1_u64.checked_shl(log).unwrap_or(u64::MAX)
}

impl Read for Decoder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.decode(buffer).map_err(io::Error::from)
    }
}

/// Returns the fault that a reader's error carries, or else the error.
pub(crate) fn fault_in(error: io::Error) -> Result<Fault, io::Error> {
    error.downcast::<Fault>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    /// The decompressed bytes, and the offset and length of the data after them.
    type Decoded = (Vec<u8>, Option<(u64, u64)>);

    fn decoded(bytes: &[u8], compression: Compression) -> Result<Decoded, Fault> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let limits = Limits::default();
        let mut decoder = Decoder::new(ArchiveFile::new(file), bytes.len() as u64, compression, &limits)?;
        let mut made = Vec::new();
        let mut piece = [0; 777];
        loop {
            match decoder.decode(&mut piece)? {
                0 => return Ok((made, decoder.trailing())),
                n => made.extend_from_slice(&piece[..n]),
            }
        }
    }

    /// Compresses a text with every codec.
    fn packed(text: &[u8]) -> Vec<(Compression, Vec<u8>)> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(text).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 0);
        xz.write_all(text).unwrap();
        let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
        lz4.write_all(text).unwrap();
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(text).unwrap();
        vec![
            (Compression::Gzip, gzip.finish().unwrap()),
            (Compression::Zstd, zstd::encode_all(text, 1).unwrap()),
            (Compression::Xz, xz.finish().unwrap()),
            (Compression::Lz4, lz4.finish().unwrap()),
            (Compression::Bzip2, bzip2.finish().unwrap()),
        ]
    }

    fn text() -> Vec<u8> {
        (0..400_000_u32)
            .flat_map(|i| (i.wrapping_mul(i) / 7).to_le_bytes())
            .collect()
    }

    #[test]
    fn every_codec_gives_back_what_was_packed_in_one_frame_or_many() {
        let (one, two) = (text(), b"and the rest".to_vec());
        for ((codec, first), (_, second)) in packed(&one).into_iter().zip(packed(&two)) {
            assert_eq!(Compression::detect(&first), codec);
            assert_eq!(decoded(&first, codec).unwrap(), (one.clone(), None), "{codec}");
            let both = [first.as_slice(), &second].concat();
            let expected = [one.as_slice(), &two].concat();
            assert_eq!(decoded(&both, codec).unwrap(), (expected, None), "{codec}");
        }
    }

    #[test]
    fn nothing_packed_gives_nothing() {
        for (codec, bytes) in packed(b"") {
            assert_eq!(decoded(&bytes, codec).unwrap(), (Vec::new(), None), "{codec}");
        }
    }

    #[test]
    fn zeros_after_the_last_frame_are_padding_and_anything_else_is_told() {
        for (codec, bytes) in packed(b"text") {
            let padded = [bytes.as_slice(), &[0; 1000]].concat();
            assert_eq!(
                decoded(&padded, codec).unwrap(),
                (b"text".to_vec(), None),
                "{codec}"
            );
            let followed = [bytes.as_slice(), b"\0signature"].concat();
            let trailing = Some((bytes.len() as u64, 10));
            assert_eq!(
                decoded(&followed, codec).unwrap(),
                (b"text".to_vec(), trailing),
                "{codec}"
            );
        }
    }

    #[test]
    fn skippable_frames_are_skipped_wherever_they_stand() {
        let skippable = b"\x5a\x2a\x4d\x18\x05\0\0\0hello";
        for (codec, bytes) in packed(b"text") {
            if !matches!(codec, Compression::Zstd | Compression::Lz4) {
                continue;
            }
            let between = [bytes.as_slice(), skippable, skippable, &bytes].concat();
            assert_eq!(
                decoded(&between, codec).unwrap(),
                (b"texttext".to_vec(), None),
                "{codec}"
            );
            let first = [skippable, bytes.as_slice()].concat();
            assert_eq!(
                decoded(&first, codec).unwrap(),
                (b"text".to_vec(), None),
                "{codec}"
            );
            let cut = [bytes.as_slice(), &skippable[..10]].concat();
            assert!(
                matches!(decoded(&cut, codec), Err(Fault::CompressedCut { .. })),
                "{codec}"
            );
        }
    }

    #[test]
    fn a_cut_is_called_a_cut_wherever_it_is() {
        for (codec, bytes) in packed(&text()[..20_000]) {
            for at in (1..bytes.len()).step_by(97).chain(bytes.len() - 30..bytes.len()) {
                match decoded(&bytes[..at], codec) {
                    Err(Fault::CompressedCut { codec: named, length }) => {
                        assert_eq!((named, length), (codec, at as u64));
                    }
                    other => panic!("{codec} cut at {at} of {}: {other:?}", bytes.len()),
                }
            }
        }
    }

    #[test]
    fn damage_is_named_with_its_codec_and_place() {
        for (codec, mut bytes) in packed(&text()) {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x55;
            bytes[middle + 1] ^= 0x55;
            match decoded(&bytes, codec) {
                Err(Fault::CompressedDamage {
                    codec: named, offset, ..
                }) => {
                    assert_eq!(named, codec);
                    assert!(offset <= bytes.len() as u64);
                }
                // Without checksums the codec may not notice the damage. The digests do.
                Ok(_) if matches!(codec, Compression::Lz4 | Compression::Zstd) => {}
                other => panic!("{codec}: {:?}", other.map(|_| ())),
            }
        }
    }
}
