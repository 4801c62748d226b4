//! Codecs that turn input bytes into output bytes, behind one small interface.

use std::io;

use flate2::{Decompress, FlushDecompress};
use liblzma::stream::Action;
use zstd::stream::raw::{DParameter, Operation as _};
use zstd::zstd_safe::zstd_sys::ZSTD_ErrorCode;

use super::LARGEST_WINDOW_LOG;

/// Memory that liblzma needs beside the dictionary, in bytes.
const LZMA_OVERHEAD: u64 = 1 << 20;

/// The result of a codec for one piece of input.
pub(super) struct Step {
    pub(super) taken: usize,
    pub(super) made: usize,
    /// True if the member, frame or stream ends here.
    pub(super) ends: bool,
}

/// The reason why a codec stopped.
pub(super) enum Failure {
    /// The bytes are damaged. The text is the library's.
    Damage(String),
    /// Decompression needs more memory than the limit allows.
    Window,
}

/// A codec that decompresses one frame at a time.
pub(super) trait Codec: Send {
    /// Starts a frame.
    fn begin(&mut self) -> Result<(), Failure>;
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Failure>;
}

#[expect(clippy::needless_pass_by_value, reason = "goes to map_err as it is")]
pub(super) fn damage(error: impl ToString) -> Failure {
    Failure::Damage(error.to_string())
}

/// Returns the progress of a counter, which is at most the length of the caller's buffer.
fn advance(before: u64, after: u64) -> usize {
    usize::try_from(after - before).expect("a step takes and makes what fits into memory")
}

pub(super) struct Gzip(Decompress);

/// The largest window of RFC 1951.
const DEFLATE_WINDOW_BITS: u8 = 15;

impl Gzip {
    pub(super) fn new() -> Self {
        Self(Decompress::new_gzip(DEFLATE_WINDOW_BITS))
    }
}

impl Codec for Gzip {
    fn begin(&mut self) -> Result<(), Failure> {
        *self = Self::new();
        Ok(())
    }

    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Failure> {
        let before = (self.0.total_in(), self.0.total_out());
        let status = self
            .0
            .decompress(input, output, FlushDecompress::None)
            .map_err(damage)?;
        Ok(Step {
            taken: advance(before.0, self.0.total_in()),
            made: advance(before.1, self.0.total_out()),
            ends: status == flate2::Status::StreamEnd,
        })
    }
}

pub(super) struct Zstd(zstd::stream::raw::Decoder<'static>);

impl Zstd {
    /// Accepts windows of up to two to the power of `window_log` bytes.
    pub(super) fn new(window_log: u32) -> io::Result<Self> {
        let mut decoder = zstd::stream::raw::Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(window_log.clamp(10, LARGEST_WINDOW_LOG)))?;
        Ok(Self(decoder))
    }
}

impl Codec for Zstd {
    /// Does nothing: the context goes from frame to frame by itself.
    fn begin(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Failure> {
        let status = self.0.run_on_buffers(input, output).map_err(|error| {
            match error.get_ref().and_then(|e| e.downcast_ref()) {
                Some(error) if is_window(error) => Failure::Window,
                _ => damage(error),
            }
        })?;
        Ok(Step {
            taken: status.bytes_read,
            made: status.bytes_written,
            ends: status.remaining == 0,
        })
    }
}

fn is_window(error: &zstd::Error) -> bool {
    error.is(ZSTD_ErrorCode::ZSTD_error_frameParameter_windowTooLarge)
}

pub(super) struct Xz {
    stream: Option<liblzma::stream::Stream>,
    memory: u64,
}

impl Xz {
    /// Accepts dictionaries of up to `window` bytes.
    pub(super) fn new(window: u64) -> Self {
        Self {
            stream: None,
            memory: window.saturating_add(LZMA_OVERHEAD),
        }
    }
}

impl Codec for Xz {
    fn begin(&mut self) -> Result<(), Failure> {
        // The old stream is dropped first, so that only one dictionary takes memory.
        self.stream = None;
        let stream = liblzma::stream::Stream::new_stream_decoder(self.memory, 0).map_err(damage)?;
        self.stream = Some(stream);
        Ok(())
    }

    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Failure> {
        let stream = self.stream.as_mut().expect("a frame was begun");
        let before = (stream.total_in(), stream.total_out());
        let status = stream
            .process(input, output, Action::Run)
            .map_err(|error| match error {
                liblzma::stream::Error::MemLimit => Failure::Window,
                error => damage(error),
            })?;
        Ok(Step {
            taken: advance(before.0, stream.total_in()),
            made: advance(before.1, stream.total_out()),
            ends: status == liblzma::stream::Status::StreamEnd,
        })
    }
}

pub(super) struct Bzip2(bzip2::Decompress);

impl Bzip2 {
    pub(super) fn new() -> Self {
        Self(bzip2::Decompress::new(false))
    }
}

impl Codec for Bzip2 {
    fn begin(&mut self) -> Result<(), Failure> {
        *self = Self::new();
        Ok(())
    }

    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Failure> {
        let before = (self.0.total_in(), self.0.total_out());
        let status = self.0.decompress(input, output).map_err(damage)?;
        if status == bzip2::Status::MemNeeded {
            return Err(damage("there is not enough memory"));
        }
        Ok(Step {
            taken: advance(before.0, self.0.total_in()),
            made: advance(before.1, self.0.total_out()),
            ends: status == bzip2::Status::StreamEnd,
        })
    }
}
