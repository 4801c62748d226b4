//! The cost of a catalog: descriptors, bytes read, and bytes of memory.
//!
//! A document of a few bytes may take a hundred times as many in memory, and a small file may refer
//! to it again and again. So everything that the catalog keeps is charged before it is made, at
//! what it takes in memory.

use oci_spec::image::Digest;
use platforms::Platform;

use crate::archive::Place;
use crate::{Fault, Limits, Node};

/// The cost of a text or a list beside its own bytes, in bytes: that of the allocator, and its
/// place in a list.
pub(crate) const TEXT: u64 = 64;

/// The same for two texts in a map, which has room for as many again, and in the map that it was
/// read into.
pub(crate) const PAIR: u64 = 4 * TEXT;

/// A descriptor in the catalog, with its digest; and where its blob is, in a map that has room for
/// as many again.
const DESCRIPTOR: u64 = (size_of::<Node>() + 2 * size_of::<(Digest, Place)>()) as u64 + 4 * TEXT;

// `Limits::memory` has so much for each descriptor, so that as many as the limits allow find room.
const _: () = assert!(DESCRIPTOR <= 1 << 10);

/// How much a catalog has cost.
#[derive(Clone, Copy, Default)]
pub(crate) struct Account {
    pub(crate) descriptors: usize,
    /// Bytes of annotations and the like that the catalog keeps.
    pub(crate) kept: u64,
    /// Bytes of memory that the catalog takes.
    pub(crate) held: u64,
    /// Bytes of documents that were read.
    pub(crate) read: u64,
}

impl Account {
    /// Puts descriptors, and the bytes they keep, on the account.
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

    /// Puts memory on the account, in bytes: what the catalog keeps beside descriptors and their
    /// texts.
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

/// Bytes of memory that a platform takes beside its own.
pub(crate) fn of_platform(platform: &Platform) -> u64 {
    of_texts(platform.words())
}

/// Bytes of memory that texts take.
pub(crate) fn of_texts<'a>(texts: impl IntoIterator<Item = &'a String>) -> u64 {
    texts.into_iter().map(|text| text.len() as u64 + TEXT).sum()
}
