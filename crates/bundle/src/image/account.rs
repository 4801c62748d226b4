//! The cost of a catalog: descriptors, bytes read, and bytes of memory.
//!
//! A document of a few bytes may take a hundred times as many in memory. A small file may refer to
//! it again and again. So the catalog charges everything that it keeps before it allocates it, in
//! bytes of memory.

use oci_spec::image::Digest;
use platforms::Platform;

use crate::archive::Place;
use crate::{Fault, Limits, Node};

/// Bytes that a text or a list costs besides its own bytes: the allocator's share, and a slot in a
/// list.
pub(crate) const TEXT: u64 = 64;

/// Bytes that two texts in a map cost. The map may have twice the slots it needs, and so may the
/// map that the document was parsed into.
pub(crate) const PAIR: u64 = 4 * TEXT;

/// Bytes that a descriptor costs. They are for its node with its digest, and for the place of its
/// blob in a map. The map may have twice the slots it needs.
const DESCRIPTOR: u64 = (size_of::<Node>() + 2 * size_of::<(Digest, Place)>()) as u64 + 4 * TEXT;

// `Limits::memory` allows this much for each descriptor, so the largest allowed number of them
// fits.
const _: () = assert!(DESCRIPTOR <= 1 << 10);

/// The cost of a catalog so far.
#[derive(Clone, Copy, Default)]
pub(crate) struct Account {
    pub(crate) descriptors: usize,
    /// Bytes of annotations and embedded data that the catalog keeps.
    pub(crate) kept: u64,
    /// Bytes of memory that the catalog takes.
    pub(crate) held: u64,
    /// Bytes of documents that were read.
    pub(crate) read: u64,
}

impl Account {
    /// Charges descriptors, and the bytes that they keep.
    pub(crate) fn charge(&mut self, limits: &Limits, descriptors: usize, kept: u64) -> Result<(), Fault> {
        self.descriptors += descriptors;
        self.kept += kept;
        if self.descriptors > limits.descriptors {
            return Err(Fault::Limit {
                what: "descriptors in all images together".to_owned(),
                limit: limits.descriptors as u64,
                set: Some(crate::limits::set("descriptors", limits.descriptors)),
            });
        }
        if self.kept > limits.json_document {
            let what = "bytes of annotations and embedded data in all images together".to_owned();
            return Err(Fault::Limit {
                what,
                limit: limits.json_document,
                set: Some(crate::limits::set_bytes("jsonDocument", limits.json_document)),
            });
        }
        self.hold(limits, kept.saturating_add(DESCRIPTOR * descriptors as u64))
    }

    /// Charges memory in bytes that the catalog takes besides descriptors and their texts.
    pub(crate) fn hold(&mut self, limits: &Limits, bytes: u64) -> Result<(), Fault> {
        self.held = self.held.saturating_add(bytes);
        let limit = limits.memory();
        if self.held > limit {
            let what = "bytes of memory for what the documents of all images say, 1 KiB for each descriptor"
                .to_owned();
            let set = Some(crate::limits::set("descriptors", limits.descriptors));
            return Err(Fault::Limit { what, limit, set });
        }
        Ok(())
    }
}

/// Returns the bytes of memory that a platform takes besides its own struct.
pub(crate) fn of_platform(platform: &Platform) -> u64 {
    of_texts(platform.words())
}

/// Returns the bytes of memory that texts take.
pub(crate) fn of_texts<'a>(texts: impl IntoIterator<Item = &'a String>) -> u64 {
    texts.into_iter().map(|text| text.len() as u64 + TEXT).sum()
}
