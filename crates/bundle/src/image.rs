//! The images of a bundle: reads its documents, verifies their digests and makes a catalog of them.
//!
//! It never decompresses or unpacks anything, chooses a platform, or judges a name.
//!
//! The modules, from the lowest layer up:
//!
//! - `documents` has the lenient models of foreign JSON, and `members` reads their keys as Go does.
//! - `reader` finds and verifies blobs, and `account` bounds the cost of that.
//! - `layout` and `docker` read images of the two formats, and `hybrid` reads archives that have
//!   both.
//! - `read` chooses between the formats.
//! - `catalog` is the result.
//! - `graph` makes the same result for an image in another store.
//! - `reliance` lists the blobs that a delta leaves out.
//! - `release` lists the images of the release that a bundle belongs to.

mod account;
mod catalog;
mod docker;
pub(crate) mod documents;
mod graph;
mod hybrid;
mod layout;
mod members;
mod read;
mod reader;
pub(crate) mod release;
pub(crate) mod reliance;

pub use catalog::{Catalog, Content, Flaw, Format, Image, Kind, Manifest, Node, Part, PartState, RawName};
pub use graph::{Store, resolve};
pub use release::{Member, Members, Release, check_release_name};
pub use reliance::{BlobRef, DeltaBase, Inventory, InventoryImage, Receipt, Reliance, SkippedMembers};

/// Returns true if a media type is an image index, by OCI's or Docker's name.
#[must_use]
pub fn is_index(media_type: &oci_spec::image::MediaType) -> bool {
    documents::is_index(media_type.as_ref())
}

pub(crate) use layout::blob_name;
pub(crate) use read::{Access, read, read_folder, read_head, read_piped};
pub(crate) use reader::Places;
