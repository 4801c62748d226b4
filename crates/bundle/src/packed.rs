//! Compressed archives: what one pass from beginning to end keeps, and further passes.
//!
//! Nothing in a compressed archive can be gone back to. The first pass reads every byte, so it keeps what the
//! catalog will ask for: the digest of each entry, how it is compressed itself, and the entries that look like
//! JSON as long as there is room. A document that found no room is fetched by another pass, together with all
//! others that are wanted by then: one pass for each level of an index at most.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::decode::Decoder;
use crate::places::Place;
use crate::tar::{Entry, Input as _, StreamInput, Walk, read_error};
use crate::{Compression, Fault, Identity, Limits};

/// Room for documents that may be wanted. Real bundles have a few MiB of them.
const ROOM: u64 = 32 << 20;

/// Room for documents that are wanted.
const ROOM_FOR_WANTED: u64 = 64 << 20;

/// Pieces in which entries are read.
const PIECE: usize = 64 << 10;

/// A compressed archive in a file.
#[derive(Debug)]
pub(crate) struct Packed {
    file: Arc<File>,
    identity: Identity,
    pub(crate) compression: Compression,
    limits: Limits,
}

impl Packed {
    pub(crate) fn new(
        file: &Arc<File>,
        identity: &Identity,
        compression: Compression,
        limits: &Limits,
    ) -> Self {
        Self {
            file: Arc::clone(file),
            identity: identity.clone(),
            compression,
            limits: limits.clone(),
        }
    }

    /// Begins a pass, over the file that was there at the first one.
    pub(crate) fn decoder(&self) -> Result<Decoder, Fault> {
        let metadata = self.file.metadata().map_err(|source| Fault::Io {
            action: "stat the file",
            source,
        })?;
        if Identity::of(&metadata) != self.identity {
            return Err(Fault::Changed);
        }
        Decoder::new(
            Arc::clone(&self.file),
            self.identity.size,
            self.compression,
            &self.limits,
        )
    }

    /// Begins a pass and goes to a place.
    pub(crate) fn reader_at(&self, offset: u64) -> io::Result<Pass> {
        let mut pass = Pass::new(self)?;
        pass.go_to(offset)?;
        Ok(pass)
    }
}

/// A pass over the decompressed bytes, forward only.
pub(crate) struct Pass(StreamInput<Decoder>);

impl Pass {
    pub(crate) fn new(packed: &Packed) -> io::Result<Self> {
        Ok(Self(StreamInput::new(packed.decoder()?)))
    }

    pub(crate) fn position(&self) -> u64 {
        self.0.position()
    }

    /// Goes on to an offset, which must not lie behind.
    pub(crate) fn go_to(&mut self, offset: u64) -> io::Result<()> {
        let distance = offset - self.position();
        if self.0.skip(distance)? < distance {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

impl Read for Pass {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.fill(buffer)
    }
}

/// What was kept of the entries, by the offset of their bytes.
#[derive(Default)]
pub(crate) struct Kept {
    /// In the order of offsets.
    facts: Vec<Facts>,
    documents: HashMap<u64, Arc<[u8]>>,
    room_taken: u64,
    /// Documents that somebody found here.
    used: RefCell<HashSet<u64>>,
    /// Documents that somebody did not, with their sizes.
    wanted: RefCell<BTreeMap<u64, u64>>,
}

/// What is known of an entry's bytes.
#[derive(Clone, Copy)]
pub(crate) struct Facts {
    offset: u64,
    pub(crate) sha256: [u8; 32],
    pub(crate) compression: Compression,
}

impl Kept {
    /// Reads an entry's bytes to their end, and tells how many there are.
    pub(crate) fn take(
        &mut self,
        entry: &Entry,
        walk: &mut Walk<'_, StreamInput<Decoder>>,
        limits: &Limits,
    ) -> Result<u64, Fault> {
        let mut piece = vec![0; PIECE.min(usize::try_from(entry.size).unwrap_or(PIECE))];
        let mut hasher = Sha256::new();
        let mut document = None;
        let mut compression = Compression::None;
        let mut present = 0;
        loop {
            let n = walk.read(&mut piece)?;
            if n == 0 {
                break;
            }
            if present == 0 {
                compression = Compression::detect(&piece[..n]);
                let fits = entry.size <= limits.json_document && self.room_taken + entry.size <= ROOM;
                document = (fits && looks_like_json(&piece[..n])).then(Vec::new);
            }
            hasher.update(&piece[..n]);
            if let Some(document) = &mut document {
                document.extend_from_slice(&piece[..n]);
            }
            present += n as u64;
        }
        if let Some(document) = document {
            self.insert(entry.offset, document);
        }
        self.facts.push(Facts {
            offset: entry.offset,
            sha256: hasher.finalize().into(),
            compression,
        });
        Ok(present)
    }

    fn insert(&mut self, offset: u64, document: Vec<u8>) {
        self.room_taken += document.len() as u64;
        self.documents.insert(offset, Arc::from(document));
    }

    /// Where the bytes at this offset can be had.
    pub(crate) fn place(&self, offset: u64, size: u64) -> Place {
        match self.documents.get(&offset) {
            Some(document) => {
                self.used.borrow_mut().insert(offset);
                Place::Memory(Arc::clone(document))
            }
            None if size == 0 => Place::Memory(Arc::from([])),
            None => Place::Extent { offset, size },
        }
    }

    pub(crate) fn facts(&self, offset: u64) -> Option<&Facts> {
        let at = self
            .facts
            .binary_search_by_key(&offset, |facts| facts.offset)
            .ok()?;
        self.facts.get(at)
    }

    /// Notes that a document is needed that is not here.
    pub(crate) fn want(&self, offset: u64, size: u64) {
        self.wanted.borrow_mut().insert(offset, size);
    }

    /// Fetches what is wanted, in one pass; tells whether anything was. What nobody has asked for makes room.
    pub(crate) fn fetch(&mut self, packed: &Packed) -> Result<bool, Fault> {
        let wanted = self.wanted.take();
        if wanted.is_empty() {
            return Ok(false);
        }
        let used = self.used.take();
        self.documents.retain(|offset, _| used.contains(offset));
        let used = self.documents.values().map(|document| document.len() as u64);
        let bytes: u64 = used.chain(wanted.values().copied()).sum();
        if bytes > ROOM_FOR_WANTED {
            return Err(Fault::Limit {
                what: "bytes of documents in a compressed bundle; decompress it first".to_owned(),
                limit: ROOM_FOR_WANTED,
            });
        }
        self.room_taken = 0;
        let mut pass = Pass::new(packed).map_err(read_error)?;
        for (offset, size) in wanted {
            let mut document = Vec::new();
            let read = pass
                .go_to(offset)
                .and_then(|()| (&mut pass).take(size).read_to_end(&mut document));
            read.map_err(read_error)?;
            self.insert(offset, document);
        }
        Ok(true)
    }
}

fn looks_like_json(start: &[u8]) -> bool {
    let first = start.iter().find(|byte| !byte.is_ascii_whitespace());
    matches!(first, Some(b'{' | b'['))
}
