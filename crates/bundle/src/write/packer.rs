//! Writes the archive's bytes to the file: plain, or compressed with random access.
//!
//! Sources: RFC 1952 (gzip), RFC 8878 (zstd), and the seekable format of zstd's contrib folder,
//! version 0.1.0.

use std::io::{self, Write};

use flate2::GzBuilder;
use flate2::write::GzEncoder;

use super::Written;
use crate::archive::{SeekTable, ballast};
use crate::{Compression, Limits};

/// Bytes of a blob that are compressed at a time.
pub(super) const PIECE: usize = 128 << 10;

/// Bytes of a layer in one frame. A reader decompresses at most this many bytes in vain to reach a
/// byte. Both sizes of a frame fit the 32 bits of the table.
const FRAME: u64 = 32 << 20;

/// Bytes of headers and small blobs that may share a frame.
const SHARED_FRAME: usize = 256 << 10;

/// Bytes of the smallest blob that has its own frame.
const SMALL_BLOB: u64 = 64 << 10;

/// zstd's default level.
const ZSTD_LEVEL: i32 = 3;

/// "Unknown", so that the file does not show where it was made (RFC 1952, 2.3.1).
const NO_OPERATING_SYSTEM: u8 = 255;

/// Accepts the archive's bytes in order. Each blob has a call at its start and at its end. All
/// other bytes are small.
pub(super) struct Packer<W: Write> {
    codec: Codec<Counted<W>>,
    archive: u64,
}

enum Codec<W: Write> {
    Plain(W),
    Gzip(Box<GzEncoder<W>>),
    Zstd(Box<Frames<W>>),
}

impl<W: Write> Packer<W> {
    pub(super) fn new(target: W, compression: Compression) -> io::Result<Self> {
        let target = Counted { target, count: 0 };
        let codec = match compression {
            Compression::None => Codec::Plain(target),
            Compression::Gzip => {
                let builder = GzBuilder::new().mtime(0).operating_system(NO_OPERATING_SYSTEM);
                Codec::Gzip(Box::new(builder.write(target, flate2::Compression::default())))
            }
            Compression::Zstd => Codec::Zstd(Box::new(Frames::new(target))),
            Compression::Xz | Compression::Lz4 | Compression::Bzip2 => {
                panic!("bundles are not written in {compression}")
            }
        };
        Ok(Self { codec, archive: 0 })
    }

    pub(super) fn small(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.archive += bytes.len() as u64;
        match &mut self.codec {
            Codec::Plain(target) => target.write_all(bytes),
            Codec::Gzip(encoder) => encoder.write_all(bytes),
            Codec::Zstd(frames) => frames.small(bytes),
        }
    }

    /// Starts a blob of `size` bytes.
    pub(super) fn begin(&mut self, size: u64) -> io::Result<()> {
        match &mut self.codec {
            Codec::Plain(_) | Codec::Gzip(_) => Ok(()),
            Codec::Zstd(frames) => frames.begin(size),
        }
    }

    pub(super) fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.codec {
            Codec::Zstd(frames) => {
                self.archive += bytes.len() as u64;
                frames.data(bytes)
            }
            Codec::Plain(_) | Codec::Gzip(_) => self.small(bytes),
        }
    }

    pub(super) fn end(&mut self) -> io::Result<()> {
        match &mut self.codec {
            Codec::Plain(_) | Codec::Gzip(_) => Ok(()),
            Codec::Zstd(frames) => {
                frames.blob_left = None;
                Ok(())
            }
        }
    }

    pub(super) fn finish(self) -> io::Result<Written> {
        let mut target = match self.codec {
            Codec::Plain(target) => target,
            Codec::Gzip(encoder) => encoder.finish()?,
            Codec::Zstd(frames) => frames.finish(self.archive)?,
        };
        target.flush()?;
        Ok(Written {
            archive: self.archive,
            file: target.count,
        })
    }
}

struct Counted<W> {
    target: W,
    count: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.target.write(bytes)?;
        self.count += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.target.flush()
    }
}

/// Writes frames, and records them for the table.
struct Frames<W: Write> {
    state: State<W>,
    /// Bytes for the next shared frame.
    shared: Vec<u8>,
    /// Bytes that are left of a blob with its own frames.
    blob_left: Option<u64>,
    table: SeekTable,
}

enum State<W: Write> {
    Between(W),
    Inside {
        encoder: zstd::Encoder<'static, W>,
        size: u64,
        left: u64,
        /// Bytes of the file before the frame.
        start: u64,
    },
    /// A call has failed.
    Broken,
}

impl<W: Write> Frames<Counted<W>> {
    fn new(target: Counted<W>) -> Self {
        Self {
            state: State::Between(target),
            shared: Vec::new(),
            blob_left: None,
            table: SeekTable::default(),
        }
    }

    fn small(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.shared.extend_from_slice(bytes);
        if self.shared.len() >= SHARED_FRAME {
            self.end_shared()?;
        }
        Ok(())
    }

    fn end_shared(&mut self) -> io::Result<()> {
        let shared = std::mem::take(&mut self.shared);
        if !shared.is_empty() {
            self.begin_frame(shared.len() as u64)?;
            self.write(&shared)?;
        }
        Ok(())
    }

    fn begin(&mut self, size: u64) -> io::Result<()> {
        if size >= SMALL_BLOB {
            self.end_shared()?;
            self.blob_left = Some(size);
        }
        Ok(())
    }

    fn data(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while let Some(left) = self.blob_left
            && !bytes.is_empty()
        {
            if let State::Between(_) = self.state {
                self.begin_frame(left.min(FRAME))?;
            }
            let n = self.write(bytes)?;
            bytes = &bytes[n..];
            self.blob_left = Some(left - n as u64);
        }
        if bytes.is_empty() {
            Ok(())
        } else {
            self.small(bytes)
        }
    }

    fn begin_frame(&mut self, size: u64) -> io::Result<()> {
        let State::Between(target) = std::mem::replace(&mut self.state, State::Broken) else {
            return Err(io::Error::other("a frame starts inside another"));
        };
        let start = target.count;
        let mut encoder = zstd::Encoder::new(target, ZSTD_LEVEL)?;
        // The frame itself has its size, so that a reader can compare it with the table.
        encoder.set_pledged_src_size(Some(size))?;
        encoder.include_contentsize(true)?;
        encoder.include_checksum(true)?;
        self.state = State::Inside {
            encoder,
            size,
            left: size,
            start,
        };
        Ok(())
    }

    /// Writes the bytes that fit into the frame, and ends the frame when it is full. Returns their
    /// number.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let State::Inside { encoder, left, .. } = &mut self.state else {
            return Err(io::Error::other("no frame was started"));
        };
        let n = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
        encoder.write_all(&bytes[..n])?;
        *left -= n as u64;
        if *left == 0 {
            self.end_frame()?;
        }
        Ok(n)
    }

    fn end_frame(&mut self) -> io::Result<()> {
        let State::Inside {
            encoder, size, start, ..
        } = std::mem::replace(&mut self.state, State::Broken)
        else {
            return Err(io::Error::other("no frame was started"));
        };
        let target = encoder.finish()?;
        self.table.push(target.count - start, size)?;
        self.state = State::Between(target);
        Ok(())
    }

    fn finish(mut self, archive: u64) -> io::Result<Counted<W>> {
        self.end_shared()?;
        let State::Between(mut target) = self.state else {
            return Err(io::Error::other("a frame was not ended"));
        };
        let missing = Limits::default().least_file(archive).saturating_sub(target.count);
        if missing > 0 {
            // Zeros compress thirty thousandfold, which readers rightly take for an attack.
            let bytes = u32::try_from(missing).map_err(|_| {
                io::Error::other("the layers of zeros are too large for the padding of their frames")
            })?;
            let ballast = ballast(bytes);
            target.write_all(&ballast)?;
            self.table.push(ballast.len() as u64, 0)?;
        }
        target.write_all(&self.table.to_frame())?;
        Ok(target)
    }
}
