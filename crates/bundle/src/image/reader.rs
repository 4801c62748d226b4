//! The parts that both formats need: finds blobs, reads and verifies documents, and charges their
//! cost.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use basics::{counted, digest};
use oci_spec::image::{Descriptor, Digest, MediaType};
use platforms::Platform;

use super::account::Account;
use super::documents::RawDescriptor;
use super::layout::blob_name;
use crate::archive::{Archive, Found, Place};
use crate::limits::set_bytes;
use crate::{Content, Fault, Flaw, Limits, Node, PartState};

/// Media type of the manifests that the reader makes for Docker archives.
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// The places of the blobs that the catalog mentions and the archive has.
pub(crate) type Places = HashMap<Digest, Place>;

/// Reads the blobs of an archive for its catalog.
pub(crate) struct Reader<'a> {
    pub(crate) archive: &'a Archive,
    pub(crate) limits: &'a Limits,
    /// Places of the blobs found so far.
    pub(crate) places: Places,
    spent: Account,
    /// Most bytes of documents to read: the length of the archive, and some more.
    readable: u64,
}

/// A source of the blobs of images: an archive, or another store.
pub(crate) trait Blobs {
    /// Returns the limits on the cost.
    fn limits(&self) -> &Limits;

    /// Returns the cost so far.
    fn spent(&self) -> Account;

    /// Charges descriptors, and the bytes that they keep.
    fn charge(&mut self, descriptors: usize, kept: u64) -> Result<(), Fault>;

    /// Charges other memory that the catalog takes, in bytes.
    fn hold(&mut self, bytes: u64) -> Result<(), Fault>;

    /// Keeps the bytes that a descriptor embeds, if they are correct and there is no such blob.
    fn take_embedded(&mut self, given: &RawDescriptor, descriptor: &Descriptor);

    /// Returns the state of a blob.
    fn state(&mut self, descriptor: &Descriptor) -> PartState;

    /// Reads and verifies a document that is present. The inner error says why it is unusable.
    fn contents(&mut self, descriptor: &Descriptor) -> Result<Result<Vec<u8>, Flaw>, Fault>;
}

impl Blobs for Reader<'_> {
    fn limits(&self) -> &Limits {
        self.limits
    }

    fn spent(&self) -> Account {
        self.spent
    }

    fn charge(&mut self, descriptors: usize, kept: u64) -> Result<(), Fault> {
        self.spent.charge(self.limits, descriptors, kept)
    }

    fn hold(&mut self, bytes: u64) -> Result<(), Fault> {
        self.spent.hold(self.limits, bytes)
    }

    fn take_embedded(&mut self, given: &RawDescriptor, descriptor: &Descriptor) {
        if given.data.is_empty() {
            return;
        }
        match self.locate(descriptor) {
            // Bytes at hand are better than bytes that a pipe may bring.
            Located::Present(Place::ToCome { .. }) | Located::Absent | Located::Broken(_) => {}
            Located::Present(_) => return,
        }
        let Ok(bytes) = base64::engine::general_purpose::STANDARD.decode(&given.data) else {
            return;
        };
        if bytes.len() as u64 == descriptor.size() && digest::fits(&bytes, descriptor.digest()) {
            self.places
                .insert(descriptor.digest().clone(), Place::Memory(Arc::from(bytes)));
        }
    }

    fn state(&mut self, descriptor: &Descriptor) -> PartState {
        self.locate(descriptor).into()
    }

    fn contents(&mut self, descriptor: &Descriptor) -> Result<Result<Vec<u8>, Flaw>, Fault> {
        match self.locate(descriptor) {
            Located::Present(place) => self.document(&place, descriptor.digest()),
            Located::Absent => Ok(Err(format!("blob {} is missing", descriptor.digest()).into())),
            Located::Broken(reason) => Ok(Err(reason)),
        }
    }
}

/// The result of looking for the blob of a descriptor.
pub(crate) enum Located {
    Present(Place),
    Absent,
    Broken(Flaw),
}

impl From<Located> for PartState {
    fn from(located: Located) -> Self {
        match located {
            Located::Present(_) => Self::Present,
            Located::Absent => Self::Absent,
            Located::Broken(reason) => Self::Broken(reason),
        }
    }
}

impl<'a> Reader<'a> {
    pub(crate) fn new(archive: &'a Archive, limits: &'a Limits) -> Self {
        // Images that share a document read it once each. An allowance of 64 of the largest
        // documents is enough.
        let readable = archive
            .length
            .saturating_add(limits.json_document.saturating_mul(64));
        Self {
            archive,
            limits,
            places: Places::new(),
            spent: Account::default(),
            readable,
        }
    }

    /// Charges the memory so far a second time, because there will be two copies.
    pub(crate) fn hold_again(&mut self) -> Result<(), Fault> {
        self.hold(self.spent.held)
    }

    /// Finds the blob of a descriptor. Remembers its place if the size is right.
    pub(crate) fn locate(&mut self, descriptor: &Descriptor) -> Located {
        let digest = descriptor.digest();
        let place = match self.places.get(digest) {
            Some(place) => place.clone(),
            None => match self.archive.find(&blob_name(digest)) {
                Found::File(place) => place,
                Found::Nothing if self.archive.may_come(digest) => Place::ToCome {
                    size: descriptor.size(),
                },
                Found::Nothing => return Located::Absent,
                Found::Unusable(reason) => {
                    return Located::Broken(format!("blob {digest} is {reason}").into());
                }
            },
        };
        if place.size() != descriptor.size() {
            let reason = format!(
                "blob {digest} has {}, but its descriptor says {}",
                counted(place.size(), "byte"),
                descriptor.size()
            );
            return Located::Broken(reason.into());
        }
        if let Some(corrupt) = self.is_corrupt(&place, digest) {
            return Located::Broken(corrupt);
        }
        self.places.insert(digest.clone(), place.clone());
        Located::Present(place)
    }

    /// Returns the flaw of a place whose bytes have another digest. The bytes must have been read
    /// before.
    pub(crate) fn is_corrupt(&self, place: &Place, digest: &Digest) -> Option<Flaw> {
        let known = self.archive.known_sha256(place)?;
        let differs = digest.algorithm() == known.algorithm() && *digest != known;
        differs.then(|| Flaw::damage(digest, &known))
    }

    /// Reads a document and verifies it. The inner error says why it is unusable.
    pub(crate) fn document(
        &mut self,
        place: &Place,
        digest: &Digest,
    ) -> Result<Result<Vec<u8>, Flaw>, Fault> {
        let limit = self.limits.json_document;
        if place.size() > limit {
            let reason = format!(
                "document {digest} has {} bytes, more than {limit} ({})",
                place.size(),
                set_bytes("jsonDocument", limit)
            );
            return Ok(Err(reason.into()));
        }
        if let Place::ToCome { .. } = place {
            self.archive.note_unseen(digest);
            return Ok(Err(format!("document {digest} was not seen yet").into()));
        }
        let bytes = match self.read(place)? {
            Ok(bytes) => bytes,
            Err(reason) => return Ok(Err(reason)),
        };
        let found = digest::like(digest, &bytes);
        if found != *digest {
            self.places.remove(digest);
            return Ok(Err(Flaw::damage(digest, &found)));
        }
        Ok(Ok(bytes))
    }

    /// Reads all bytes of a place. The caller must have checked its size. In a compressed archive
    /// the bytes may need another pass. Then the inner error takes their place, and the catalog is
    /// made again later.
    pub(crate) fn read(&mut self, place: &Place) -> Result<Result<Vec<u8>, Flaw>, Fault> {
        self.spent.read = self.spent.read.saturating_add(place.size());
        if self.spent.read > self.readable {
            let what = "bytes of documents in all images together".to_owned();
            return Err(Fault::Limit {
                what,
                limit: self.readable,
                set: Some(set_bytes("jsonDocument", self.limits.json_document)),
            });
        }
        let bytes = self.archive.read(place)?;
        Ok(bytes.ok_or_else(|| "it was not fetched yet".to_owned().into()))
    }
}

/// Makes a node for an entry without a usable descriptor, from the entry's own bytes.
pub(crate) fn stand_in(entry: &[u8], platform: Option<Platform>, reason: String) -> Node {
    let size = entry.len() as u64;
    Node {
        descriptor: Descriptor::new(MediaType::from(DOCKER_MANIFEST), size, digest::sha256(entry)),
        platform,
        content: Content::Broken(reason.into()),
    }
}
