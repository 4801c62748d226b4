//! Compressed archives: one pass from beginning to end, its results, and further passes.
//!
//! A compressed archive cannot be read backwards. The first pass reads every byte, so it keeps what
//! the catalog will need:
//!
//! - the digest of each entry,
//! - the compression of each entry's bytes,
//! - the entries that look like JSON, as long as there is room.
//!
//! A document that found no room takes another pass, which also reads all other documents that are
//! needed by then. That makes at most one pass for each level of an index.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Read};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::decode::Decoder;
use super::entries::LARGEST_OFFSET;
use super::file::ArchiveFile;
use super::place::Place;
use super::tar::{Entry, Input as _, StreamInput, Walk, read_error};
use crate::{Compression, Fault, Identity, Limits};

/// Memory that an entry takes here and in the table of names, in bytes.
const ENTRY: u64 = 72;

/// Bytes of one read of an entry.
pub(super) const PIECE: usize = 64 << 10;

/// A compressed archive in a file.
#[derive(Debug)]
pub(crate) struct Packed {
    file: ArchiveFile,
    identity: Identity,
    pub(crate) compression: Compression,
    limits: Limits,
}

impl Packed {
    pub(crate) fn new(
        file: &ArchiveFile,
        identity: &Identity,
        compression: Compression,
        limits: &Limits,
    ) -> Self {
        Self {
            file: file.clone(),
            identity: identity.clone(),
            compression,
            limits: limits.clone(),
        }
    }

    /// Returns the same archive for reading blobs, which need no proof of the file.
    pub(crate) fn without_proof(&self) -> Self {
        let Self {
            file,
            identity,
            compression,
            limits,
        } = self;
        Self::new(&file.without_proof(), identity, *compression, limits)
    }

    /// Starts a pass. Returns an error if the file is not the file of the first pass.
    pub(crate) fn decoder(&self) -> Result<Decoder, Fault> {
        let metadata = self.file.raw().metadata().map_err(Fault::io("stat the file"))?;
        if Identity::of(&metadata) != self.identity {
            return Err(Fault::Changed);
        }
        Decoder::new(
            self.file.clone(),
            self.identity.size,
            self.compression,
            &self.limits,
        )
    }

    /// Starts a pass and goes to an offset.
    pub(crate) fn reader_at(&self, offset: u64) -> io::Result<Pass> {
        let mut pass = Pass::new(self)?;
        pass.go_to(offset)?;
        Ok(pass)
    }
}

/// A pass over the decompressed bytes. It goes forward only.
pub(crate) struct Pass(StreamInput<Decoder>);

impl Pass {
    pub(crate) fn new(packed: &Packed) -> io::Result<Self> {
        Ok(Self(StreamInput::new(packed.decoder()?)))
    }

    pub(crate) fn position(&self) -> u64 {
        self.0.position()
    }

    /// Goes forward to an offset, which must not be less than the position.
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

/// Results of the passes about the entries, by the offset of their bytes.
#[derive(Default)]
pub(crate) struct Kept {
    /// Sorted by offset.
    facts: Vec<PackedFacts>,
    documents: HashMap<u64, Arc<[u8]>>,
    room_taken: u64,
    /// Offsets of documents that were used from here.
    used: RefCell<HashSet<u64>>,
    /// Documents that are needed but are not here.
    wanted: RefCell<BTreeMap<u64, Place>>,
}

/// Facts about an entry's bytes.
#[derive(Clone, Copy)]
pub(crate) struct Facts {
    pub(crate) sha256: [u8; 32],
    pub(crate) compression: Compression,
}

/// Facts with their offset, in 40 bytes, because there may be a million of them.
struct PackedFacts {
    /// The offset, at most [`LARGEST_OFFSET`], and above it the index of the codec in [`CODECS`].
    offset_and_codec: u64,
    sha256: [u8; 32],
}

const CODECS: [Compression; 6] = [
    Compression::None,
    Compression::Gzip,
    Compression::Zstd,
    Compression::Xz,
    Compression::Lz4,
    Compression::Bzip2,
];

impl PackedFacts {
    fn new(offset: u64, Facts { sha256, compression }: Facts) -> Self {
        let codec = CODECS.iter().position(|codec| *codec == compression);
        let codec = codec.expect("every codec is in the list") as u64;
        Self {
            offset_and_codec: offset | codec << LARGEST_OFFSET.count_ones(),
            sha256,
        }
    }

    fn offset(&self) -> u64 {
        self.offset_and_codec & LARGEST_OFFSET
    }

    fn facts(&self) -> Facts {
        let codec = self.offset_and_codec >> LARGEST_OFFSET.count_ones();
        Facts {
            sha256: self.sha256,
            compression: CODECS[usize::try_from(codec).expect("three bits")],
        }
    }
}

impl Kept {
    /// Reads an entry's bytes to their end. Returns their number.
    pub(crate) fn take(
        &mut self,
        entry: &Entry,
        walk: &mut Walk<StreamInput<Decoder>>,
        limits: &Limits,
    ) -> Result<u64, Fault> {
        let mut digested = self.begin(entry.size, limits);
        let mut present = 0;
        let mut piece = vec![0; PIECE.min(usize::try_from(entry.size).unwrap_or(PIECE))];
        loop {
            match walk.read(&mut piece)? {
                0 => break,
                n => {
                    digested.take(&piece[..n]);
                    present += n as u64;
                }
            }
        }
        self.keep(entry.offset, digested, limits);
        Ok(present)
    }

    /// Begins to take an entry of this size.
    pub(super) fn begin(&self, size: u64, limits: &Limits) -> Digested {
        let fits = size <= limits.json_document && self.room_taken + size <= self.room(limits) / 2;
        Digested {
            hasher: Sha256::new(),
            compression: None,
            document: fits.then(Vec::new),
        }
    }

    /// Keeps the facts about an entry that was read to its end, and its bytes if it is a document.
    pub(super) fn keep(&mut self, offset: u64, digested: Digested, limits: &Limits) {
        if let Some(document) = digested.document.filter(|document| !document.is_empty()) {
            self.insert(offset, document);
        }
        let facts = Facts {
            sha256: digested.hasher.finalize().into(),
            compression: digested.compression.unwrap_or(Compression::None),
        };
        self.facts.push(PackedFacts::new(offset, facts));
        if self.room_taken > self.room(limits) {
            // Later entries need the room. Documents that turn out to be needed are fetched.
            self.documents.clear();
            self.room_taken = 0;
        }
    }

    /// Returns the room for documents in bytes: the memory of a catalog, less the memory of the
    /// entries. Half of the room is for documents that may be needed. Real bundles have a few MiB
    /// of them.
    fn room(&self, limits: &Limits) -> u64 {
        let entries = self.facts.len() as u64 * ENTRY;
        limits.memory().saturating_sub(entries).max(limits.json_document)
    }

    fn insert(&mut self, offset: u64, document: Vec<u8>) {
        self.room_taken += document.len() as u64;
        self.documents.insert(offset, Arc::from(document));
    }

    /// Returns the place of the bytes: in memory if they were kept, else in the archive.
    pub(crate) fn place(&self, place: Place) -> Place {
        let document = place.offset().and_then(|offset| {
            let document = self.documents.get(&offset)?;
            self.used.borrow_mut().insert(offset);
            Some(Place::Memory(Arc::clone(document)))
        });
        match document {
            Some(document) => document,
            None if place.size() == 0 => Place::Memory(Arc::from([])),
            None => place,
        }
    }

    pub(crate) fn facts(&self, offset: u64) -> Option<Facts> {
        let at = self
            .facts
            .binary_search_by_key(&offset, PackedFacts::offset)
            .ok()?;
        self.facts.get(at).map(PackedFacts::facts)
    }

    /// Records that a document is needed and is not here.
    pub(crate) fn want(&self, offset: u64, place: Place) {
        self.wanted.borrow_mut().insert(offset, place);
    }

    /// Returns true if a document is needed and is not here.
    pub(crate) fn wants(&self) -> bool {
        !self.wanted.borrow().is_empty()
    }

    /// Reads all documents that are needed in one pass. Returns false if there are none. Documents
    /// that were never used are dropped to make room.
    pub(crate) fn fetch(&mut self, packed: &Packed) -> Result<bool, Fault> {
        let wanted = self.wanted.take();
        if wanted.is_empty() {
            return Ok(false);
        }
        let used = self.used.take();
        self.documents.retain(|offset, _| used.contains(offset));
        let used = self.documents.values().map(|document| document.len() as u64);
        let bytes: u64 = used.chain(wanted.values().map(Place::size)).sum();
        let limit = self.room(&packed.limits);
        if bytes > limit {
            let what = "bytes of documents in a compressed bundle, so decompress it first".to_owned();
            let set = Some(crate::limits::set("descriptors", packed.limits.descriptors));
            return Err(Fault::Limit { what, limit, set });
        }
        self.room_taken = 0;
        let mut pass = Pass::new(packed).map_err(read_error)?;
        for (offset, place) in wanted {
            let mut document = Vec::new();
            pass.go_to(offset).map_err(read_error)?;
            let bytes = &mut (&mut pass).take(place.size());
            bytes.read_to_end(&mut document).map_err(read_error)?;
            self.insert(offset, document);
        }
        Ok(true)
    }
}

/// Computes the facts of an entry while its bytes are read.
pub(super) struct Digested {
    hasher: Sha256,
    /// `None` before the first byte.
    compression: Option<Compression>,
    /// `None` if the entry is not a document, or if there is no room.
    document: Option<Vec<u8>>,
}

impl Digested {
    /// Returns true if the bytes so far are kept, because they may be a document.
    pub(super) fn is_document(&self) -> bool {
        self.document.is_some()
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        if self.compression.is_none() {
            self.compression = Some(Compression::detect(bytes));
            self.document.take_if(|_| !looks_like_json(bytes));
        }
        self.hasher.update(bytes);
        if let Some(document) = &mut self.document {
            document.extend_from_slice(bytes);
        }
    }
}

fn looks_like_json(start: &[u8]) -> bool {
    let first = start.iter().find(|byte| !byte.is_ascii_whitespace());
    matches!(first, Some(b'{' | b'['))
}
