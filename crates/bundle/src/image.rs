//! The images of a bundle: its documents read, verified by their digests and drawn up as a catalog.
//!
//! It never decompresses or unpacks anything, chooses a platform, or judges a name.
//!
//! From below: `documents` has the lenient models of foreign JSON, and `members` reads their keys
//! as Go does. `reader` finds and verifies blobs, and `account` is what that may cost. `layout` and
//! `docker` make images of the two formats, `hybrid` of archives that have both, and `read` chooses
//! between them. `catalog` is the result. `graph` does the same for an image in another store, and
//! `reliance` is what a delta leaves out.

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
pub(crate) mod reliance;

pub use catalog::{Catalog, Content, Flaw, Format, Image, Kind, Manifest, Node, Part, PartState, RawName};
pub use graph::{Store, resolve};
pub use reliance::{BlobRef, Inventory, InventoryImage, Reliance};

/// Whether a media type is that of an image index, by OCI's or Docker's name.
#[must_use]
pub fn is_index(media_type: &oci_spec::image::MediaType) -> bool {
    documents::is_index(media_type.as_ref())
}

pub(crate) use layout::blob_name;
pub(crate) use read::{Access, read, read_folder};
pub(crate) use reader::Places;
