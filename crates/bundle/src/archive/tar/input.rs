//! Reads the bytes of an archive from a file or a stream.

use std::io::{self, Read};

use crate::archive::ArchiveFile;

/// The source of an archive's bytes: a file, which is skipped by seeking, or a stream.
pub(crate) trait Input {
    /// Fills the buffer. Fewer bytes mean the end.
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Skips bytes and returns their number. Fewer bytes mean the end.
    fn skip(&mut self, bytes: u64) -> io::Result<u64>;
    /// Returns the offset of the next byte.
    fn position(&self) -> u64;
    /// Returns the number of bytes that are left. Returns `None` for a stream.
    fn remaining(&self) -> Option<u64>;
}

/// An archive in a file, read at offsets.
pub(crate) struct FileInput<'a> {
    file: &'a ArchiveFile,
    length: u64,
    position: u64,
}

impl<'a> FileInput<'a> {
    pub(crate) fn new(file: &'a ArchiveFile, length: u64) -> Self {
        Self {
            file,
            length,
            position: 0,
        }
    }
}

impl Input for FileInput<'_> {
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = buffer
            .len()
            .min(usize::try_from(self.length - self.position).unwrap_or(usize::MAX));
        self.file.read_exact_at(&mut buffer[..n], self.position)?;
        self.position += n as u64;
        Ok(n)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        let n = bytes.min(self.length - self.position);
        self.position += n;
        Ok(n)
    }

    fn position(&self) -> u64 {
        self.position
    }

    fn remaining(&self) -> Option<u64> {
        Some(self.length - self.position)
    }
}

/// An archive that is read as a stream.
pub(crate) struct StreamInput<R> {
    source: R,
    position: u64,
    /// Buffer for bytes that are skipped, because a stream must read them.
    passed_over: Vec<u8>,
}

impl<R: Read> StreamInput<R> {
    pub(crate) fn new(source: R) -> Self {
        Self {
            source,
            position: 0,
            passed_over: vec![0; 64 << 10],
        }
    }

    pub(crate) fn get_mut(&mut self) -> &mut R {
        &mut self.source
    }

    pub(crate) fn into_inner(self) -> R {
        self.source
    }
}

impl<R: Read> Input for StreamInput<R> {
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let filled = fill(&mut self.source, buffer)?;
        self.position += filled as u64;
        Ok(filled)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        let mut buffer = std::mem::take(&mut self.passed_over);
        let mut skipped = 0;
        let result = loop {
            let wanted = buffer
                .len()
                .min(usize::try_from(bytes - skipped).unwrap_or(usize::MAX));
            match self.fill(&mut buffer[..wanted]) {
                Ok(0) => break Ok(skipped),
                Ok(n) => skipped += n as u64,
                Err(error) => break Err(error),
            }
        };
        self.passed_over = buffer;
        result
    }

    fn position(&self) -> u64 {
        self.position
    }

    fn remaining(&self) -> Option<u64> {
        None
    }
}

/// Fills a buffer from a source. Fewer bytes mean its end.
pub(crate) fn fill(source: &mut (impl Read + ?Sized), buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
