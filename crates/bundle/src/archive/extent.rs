//! A part of a file, read once from its beginning to its end.
//!
//! Several parts of a file are read at the same time, which looks like random access to the kernel.
//! So the reader tells the kernel which bytes come next. It also tells the kernel which bytes are
//! no longer needed. A bundle is read once, but its gigabytes in the page cache would push out the
//! node's working set.

use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use rustix::fs::{Advice, fadvise};

/// Bytes of one advice to the kernel, about the next bytes and about the bytes already read.
const WINDOW: u64 = 4 << 20;

/// Reads a part of a file without touching its position.
pub(crate) struct Extent {
    file: Arc<File>,
    position: u64,
    end: u64,
    /// Offset up to which the kernel was told to read ahead.
    announced: u64,
    /// Offset up to which the kernel was told to drop its pages.
    forgotten: u64,
    /// True if the part is longer than [`WINDOW`]. A smaller part comes in one read, and its pages
    /// do not matter.
    is_large: bool,
}

impl Extent {
    pub(crate) fn new(file: Arc<File>, offset: u64, size: u64) -> Self {
        Self {
            file,
            position: offset,
            end: offset + size,
            announced: offset,
            forgotten: offset,
            is_large: size > WINDOW,
        }
    }

    fn announce(&mut self) {
        let next = (self.position + WINDOW).min(self.end);
        if self.is_large && self.announced < next && self.announced <= self.position + WINDOW / 2 {
            self.advise(self.announced, next, Advice::WillNeed);
            self.announced = next;
        }
    }

    fn forget(&mut self, least: u64) {
        if self.is_large && self.position - self.forgotten >= least {
            self.advise(self.forgotten, self.position, Advice::DontNeed);
            self.forgotten = self.position;
        }
    }

    /// Gives advice to the kernel. The kernel may ignore it, so errors are ignored too.
    fn advise(&self, from: u64, to: u64, advice: Advice) {
        if let Some(length) = NonZeroU64::new(to - from) {
            let _ = fadvise(&self.file, from, Some(length), advice);
        }
    }
}

impl Read for Extent {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        if wanted == 0 {
            return Ok(0);
        }
        self.announce();
        let n = self.file.read_at(&mut buffer[..wanted], self.position)?;
        if n == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "another program truncated the bundle while it was being read",
            ));
        }
        self.position += n as u64;
        self.forget(WINDOW);
        Ok(n)
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        self.forget(1);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file_of(length: usize) -> (Arc<File>, Vec<u8>) {
        let bytes: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        (Arc::new(file), bytes)
    }

    #[test]
    fn a_part_of_many_windows_is_read_byte_for_byte() {
        let window = usize::try_from(WINDOW).unwrap();
        let (file, bytes) = file_of(3 * window + 5000);
        for (offset, size) in [(0, bytes.len()), (777, 2 * window + 1), (window, 10), (5, 0)] {
            let mut read = Vec::new();
            let mut extent = Extent::new(Arc::clone(&file), offset as u64, size as u64);
            extent.read_to_end(&mut read).unwrap();
            assert!(read == bytes[offset..offset + size], "{size} bytes from {offset}");
            assert_eq!(extent.position, extent.end);
        }
    }

    #[test]
    fn the_kernel_hears_of_every_byte_of_a_large_part_once() {
        let window = usize::try_from(WINDOW).unwrap();
        let (file, bytes) = file_of(2 * window + 5000);
        let mut extent = Extent::new(file, 100, (bytes.len() - 100) as u64);
        let mut piece = vec![0; 512 << 10];
        while extent.read(&mut piece).unwrap() > 0 {
            assert!(extent.announced >= extent.position && extent.announced <= extent.position + WINDOW);
            assert!(extent.position - extent.forgotten < WINDOW);
        }
        assert_eq!(extent.announced, extent.end);
    }

    #[test]
    fn a_file_that_was_cut_short_is_no_end_of_the_part() {
        let (file, _) = file_of(1000);
        let error = Extent::new(file, 500, 600)
            .read_to_end(&mut Vec::new())
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
