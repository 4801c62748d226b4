//! An archive that is read from a stream, once and from its beginning to its end.
//!
//! Entries that look like documents are kept in memory, as for a compressed file. All other entries
//! are payloads. The passage stops at each of them, and the caller reads their bytes or not.

use std::io::{self, Read};

use super::decode::Decoder;
use super::packed::{Digested, PIECE};
use super::recognise::{recognise_decoded, recognise_start};
use super::strangers;
use super::table::{Duplicates, check_offset, clean};
use super::tape::Tape;
use super::tar::{Entry, EntryKind, Input as _, Step, StreamInput, Walk, fill, read_error};
use super::{Archive, Compression};
use crate::{Ending, Fault, Limits, Warning};

/// An archive on its way through a stream.
pub(crate) struct Passage {
    archive: Archive,
    /// `None` after the end.
    walk: Option<Walk<StreamInput<Flow>>>,
    /// The stream after its end, as far as it is recorded.
    ended: Option<Tape>,
    pub(crate) compression: Compression,
    limits: Limits,
    payload: Option<Payload>,
    duplicates: Duplicates,
    /// The fault of the stream, after a reader of a payload met it.
    fault: Option<Fault>,
    /// True once the catalog is made. Then nothing is kept any more.
    is_settled: bool,
}

/// The bytes of the archive.
enum Flow {
    Plain(Tape),
    Packed(Box<Decoder>),
}

impl Flow {
    fn tape(&mut self) -> &mut Tape {
        match self {
            Self::Plain(tape) => tape,
            Self::Packed(decoder) => decoder.tape(),
        }
    }

    fn into_tape(self) -> Tape {
        match self {
            Self::Plain(tape) => tape,
            Self::Packed(decoder) => decoder.into_tape(),
        }
    }
}

impl Read for Flow {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tape) => tape.read(buffer),
            Self::Packed(decoder) => decoder.read(buffer),
        }
    }
}

/// An entry whose bytes the caller may read now.
pub(crate) struct Payload {
    /// The name in the form in which names are looked up. `None` if the name leads out of the
    /// archive.
    pub(crate) name: Option<Vec<u8>>,
    /// Number of bytes that the header gives.
    pub(crate) size: u64,
    entry: Entry,
    /// The first bytes, which were read to recognise a document.
    start: io::Cursor<Vec<u8>>,
    read: u64,
    /// `None` once the catalog is made.
    digested: Option<Digested>,
}

impl Passage {
    /// Recognises the archive by its first bytes.
    pub(crate) fn begin(source: Box<dyn Read + Send>, limits: &Limits) -> Result<Self, Fault> {
        let mut tape = Tape::new(source);
        let mut start = vec![0; strangers::PEEK];
        let n = fill(&mut tape, &mut start).map_err(read_error)?;
        start.truncate(n);
        tape.rewind();
        let compression = recognise_start(&start)?;
        let flow = match compression {
            Compression::None => Flow::Plain(tape),
            codec => {
                let mut decoder = Decoder::of_stream(tape, codec, limits)?;
                recognise_decoded(&mut decoder, codec)?;
                let mut tape = decoder.into_tape();
                if !tape.rewind() {
                    let reason = "it begins with more empty data than any bundle";
                    return Err(Fault::Piped(reason.to_owned()));
                }
                Flow::Packed(Box::new(Decoder::of_stream(tape, codec, limits)?))
            }
        };
        Ok(Self {
            archive: Archive::piped(),
            walk: Some(Walk::new(StreamInput::new(flow), limits)),
            ended: None,
            compression,
            limits: limits.clone(),
            payload: None,
            duplicates: Duplicates::default(),
            fault: None,
            is_settled: false,
        })
    }

    /// Returns the table of the entries so far.
    pub(crate) fn archive(&mut self) -> &mut Archive {
        &mut self.archive
    }

    /// Returns the way in which the archive ended. `None` before its end.
    pub(crate) fn ending(&self) -> Option<&Ending> {
        self.walk.is_none().then_some(&self.archive.ending)
    }

    /// Returns the bytes of the archive, as far as they are known.
    pub(crate) fn length(&self) -> u64 {
        self.archive.length
    }

    /// Returns the payload that is being read.
    pub(crate) fn payload(&self) -> Option<&Payload> {
        self.payload.as_ref()
    }

    /// Keeps nothing of the entries from here on, because the catalog is made.
    pub(crate) fn settle(&mut self) {
        self.is_settled = true;
        self.archive = Archive::piped();
        if let Some(payload) = &mut self.payload {
            payload.digested = None;
        }
        self.stop_recording();
    }

    /// Records no more of the stream. It cannot be wound back any more.
    pub(crate) fn stop_recording(&mut self) {
        self.ended = None;
        if let Some(walk) = &mut self.walk {
            walk.input().get_mut().tape().stop();
        }
    }

    /// Returns the stream, wound back to its first byte. `None` if that byte is no longer recorded.
    pub(crate) fn rewound(self) -> Option<Tape> {
        let mut tape = match self.walk {
            Some(walk) => walk.into_input().into_inner().into_tape(),
            None => self.ended?,
        };
        tape.rewind().then_some(tape)
    }

    /// Goes to the next payload, and skips the rest of the payload before. Returns false at the end
    /// of the stream, which was then read completely.
    pub(crate) fn advance(&mut self) -> Result<bool, Fault> {
        self.pass_over_payload()?;
        loop {
            let Some(walk) = &mut self.walk else {
                return Ok(false);
            };
            match walk.next()? {
                Step::Entry(entry) => {
                    check_offset(&entry)?;
                    if self.take(entry)? {
                        return Ok(true);
                    }
                }
                Step::End { ending, trailing } => return self.end(ending, trailing).map(|()| false),
            }
        }
    }

    /// Takes an entry that is no payload, or stops at a payload.
    fn take(&mut self, mut entry: Entry) -> Result<bool, Fault> {
        if entry.kind != EntryKind::File {
            if !self.is_settled {
                self.archive.add_counted(entry, &mut self.duplicates);
            }
            return Ok(false);
        }
        let Some(walk) = &mut self.walk else {
            return Ok(false);
        };
        let mut start = vec![0; PIECE.min(usize::try_from(entry.size).unwrap_or(PIECE))];
        let n = walk.read(&mut start)?;
        start.truncate(n);
        let mut digested = None;
        if !self.is_settled {
            self.archive.length = entry.offset;
            let mut document = self.archive.kept().begin(entry.size, &self.limits);
            if !start.is_empty() {
                document.take(&start);
            }
            if document.is_document() {
                entry.present = n as u64;
                let mut piece = vec![0; PIECE];
                loop {
                    match walk.read(&mut piece)? {
                        0 => break,
                        n => {
                            document.take(&piece[..n]);
                            entry.present += n as u64;
                        }
                    }
                }
                self.archive.kept().keep(entry.offset, document, &self.limits);
                self.archive.add_counted(entry, &mut self.duplicates);
                return Ok(false);
            }
            digested = Some(document);
        }
        self.payload = Some(Payload {
            name: clean(&entry.name),
            size: entry.size,
            entry,
            start: io::Cursor::new(start),
            read: 0,
            digested,
        });
        Ok(true)
    }

    /// Reads the rest of a payload, and notes its digest as long as there is no catalog.
    fn pass_over_payload(&mut self) -> Result<(), Fault> {
        let is_kept = self
            .payload
            .as_ref()
            .is_some_and(|payload| payload.digested.is_some());
        let mut piece = vec![0; if is_kept { PIECE } else { 0 }];
        while is_kept && self.fault.is_none() && matches!(self.read(&mut piece), Ok(1..)) {}
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        if let Some(mut payload) = self.payload.take()
            && let Some(digested) = payload.digested
        {
            payload.entry.present = payload.read;
            self.archive
                .kept()
                .keep(payload.entry.offset, digested, &self.limits);
            self.archive.add_counted(payload.entry, &mut self.duplicates);
        }
        Ok(())
    }

    /// Reads the stream to its end, to verify the checksums of compressed data.
    fn end(&mut self, ending: Ending, trailing: Option<(u64, u64)>) -> Result<(), Fault> {
        let duplicates = std::mem::take(&mut self.duplicates);
        self.archive.end(ending, trailing, duplicates);
        let Some(walk) = self.walk.take() else {
            return Ok(());
        };
        let mut input = walk.into_input();
        input.skip(u64::MAX).map_err(read_error)?;
        self.archive.length = input.position();
        let flow = input.into_inner();
        if let Flow::Packed(decoder) = &flow
            && let Some((offset, bytes)) = decoder.trailing()
        {
            let codec = self.compression;
            let warning = Warning::TrailingGarbage { codec, offset, bytes };
            self.archive.warnings.push(warning);
        }
        self.ended = Some(flow.into_tape());
        Ok(())
    }
}

impl Read for Passage {
    /// Reads the next bytes of the payload. The end of the stream within the payload is an error.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (Some(payload), Some(walk)) = (&mut self.payload, &mut self.walk) else {
            return Ok(0);
        };
        let n = match payload.start.read(buffer)? {
            0 => match walk.read(buffer) {
                Ok(n) => n,
                Err(fault) => {
                    // The blob is unusable. The next call reports the fault of the stream.
                    let error = io::Error::new(io::ErrorKind::InvalidData, fault.to_string());
                    self.fault = Some(fault);
                    return Err(error);
                }
            },
            n => n,
        };
        payload.read += n as u64;
        if n == 0 && payload.read < payload.size && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(digested) = payload
            .digested
            .as_mut()
            .filter(|_| payload.read > payload.start.get_ref().len() as u64)
        {
            digested.take(&buffer[..n]);
        }
        Ok(n)
    }
}

impl std::fmt::Debug for Passage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut passage = f.debug_struct("Passage");
        passage
            .field("is_settled", &self.is_settled)
            .finish_non_exhaustive()
    }
}
