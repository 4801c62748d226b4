//! A stream that is recorded from its beginning, and can be wound back to it.
//!
//! A pipe is read once. Its kind shows only after some of its bytes were read and decompressed. A
//! reader that needs all bytes from the first one on then winds the tape back.

use std::io::{self, Read};

/// Most bytes that a tape records. The documents of five thousand images take less.
const MOST: usize = 16 << 20;

/// A stream with a record of its first bytes.
pub(crate) struct Tape {
    source: Box<dyn Read + Send>,
    /// The first bytes of the stream, as far as they are recorded.
    recorded: Vec<u8>,
    /// Number of recorded bytes that were given out since the last rewind.
    played: usize,
    state: State,
}

#[derive(PartialEq, Eq)]
enum State {
    Recording,
    /// The rest of the record is still given out. Nothing is added to it.
    Stopped,
    /// The stream went on for longer than the record holds.
    Overrun,
}

impl Tape {
    pub(crate) fn new(source: Box<dyn Read + Send>) -> Self {
        Self {
            source,
            recorded: Vec::new(),
            played: 0,
            state: State::Recording,
        }
    }

    /// Goes back to the first byte. Returns false if that byte is no longer recorded.
    pub(crate) fn rewind(&mut self) -> bool {
        let is_there = self.state == State::Recording;
        if is_there {
            self.played = 0;
        }
        is_there
    }

    /// Records no more bytes. The tape cannot be wound back any more.
    pub(crate) fn stop(&mut self) {
        self.state = State::Stopped;
        self.forget_if_played();
    }

    fn record(&mut self, bytes: &[u8]) {
        let length = self.recorded.len() + bytes.len();
        if length > self.recorded.capacity() {
            let grown = (2 * self.recorded.capacity()).clamp(length, MOST);
            self.recorded.reserve_exact(grown - self.recorded.len());
        }
        self.recorded.extend_from_slice(bytes);
        self.played += bytes.len();
    }

    fn forget_if_played(&mut self) {
        if self.played == self.recorded.len() {
            (self.recorded, self.played) = (Vec::new(), 0);
        }
    }
}

impl Read for Tape {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = &self.recorded[self.played..];
        if !rest.is_empty() {
            let n = rest.len().min(buffer.len());
            buffer[..n].copy_from_slice(&rest[..n]);
            self.played += n;
            if self.state != State::Recording {
                self.forget_if_played();
            }
            return Ok(n);
        }
        let n = self.source.read(buffer)?;
        if self.state == State::Recording {
            if self.recorded.len() + n > MOST {
                self.state = State::Overrun;
                (self.recorded, self.played) = (Vec::new(), 0);
            } else {
                self.record(&buffer[..n]);
            }
        }
        Ok(n)
    }
}

impl std::fmt::Debug for Tape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tape")
            .field("played", &self.played)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tape(bytes: &'static [u8]) -> Tape {
        Tape::new(Box::new(bytes))
    }

    fn rest(tape: &mut Tape) -> Vec<u8> {
        let mut bytes = Vec::new();
        tape.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_tape_goes_back_to_its_first_byte_until_it_is_stopped() {
        let mut tape = tape(b"hello world");
        let mut five = [0; 5];
        tape.read_exact(&mut five).unwrap();
        assert!(tape.rewind());
        assert!(tape.rewind());
        assert_eq!(rest(&mut tape), b"hello world");
        assert!(tape.rewind());
        tape.read_exact(&mut five).unwrap();
        assert_eq!(&five, b"hello");
        tape.stop();
        assert_eq!(rest(&mut tape), b" world");
        assert!(!tape.rewind());
        assert!(tape.recorded.is_empty());
    }

    #[test]
    fn a_record_has_a_bound_and_the_stream_has_none() {
        let length = MOST as u64 * 3;
        let mut tape = Tape::new(Box::new(io::repeat(7).take(length)));
        // Doubling this length does not lead to the bound.
        let mut piece = vec![0; 40_000];
        let (mut read, mut largest) = (0, 0);
        loop {
            match tape.read(&mut piece).unwrap() {
                0 => break,
                n => read += n as u64,
            }
            largest = largest.max(tape.recorded.capacity());
        }
        assert_eq!(read, length);
        assert!(largest > MOST / 2 && largest <= MOST, "{largest}");
        assert!(tape.recorded.is_empty() && !tape.rewind());
    }
}
