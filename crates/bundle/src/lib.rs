//! Reads image bundles into a checked catalog, and writes bundles: see [`mod@write`].
//!
//! A bundle is an archive of container images: an OCI image layout, a Docker archive, or both in one. This
//! crate finds out what is in it and whether it is whole, and hands out blobs. It trusts nothing: every
//! document is verified by its digest, what is not there or does not fit is said so in the catalog, and no
//! archive, however made, costs more memory or time than [`Limits`] and its size allow. Nothing is ever
//! unpacked: names of entries are keys of a table and never become paths.
//!
//! It never talks to containerd, never chooses a platform and never judges a name; it does not print, log or
//! read the environment. All calls block.
//!
//! ```no_run
//! use airgapd_bundle::{Bundle, Limits};
//!
//! let bundle = Bundle::open("images.tar".as_ref(), &Limits::default())?;
//! for image in &bundle.catalog().images {
//!     println!("{:?} is {}", image.names, image.root.descriptor.digest());
//! }
//! # Ok::<(), airgapd_bundle::Error>(())
//! ```
//!
//! The inside, from below: `decode` decompresses a file from its beginning to its end, and `frames` goes into one that has a table of its frames; `tar` walks the headers of
//! an archive, in a file or in a stream, and is strict about them; `table` turns them into a table of names with
//! links resolved (`entries`), each standing for a place where bytes are, some of them `sparse`, and `packed` keeps what one pass over a compressed
//! archive has seen; `folder` is what stands in for an archive that was extracted; `documents` has the lenient
//! models of foreign JSON and `members` reads their keys as Go does; `reader` finds and verifies blobs and keeps
//! account of what that costs; `layout` and `docker` make images of the two formats; `read` chooses between them;
//! `stream` hands out blobs in the archive's order. What is above `table` does not know where bytes are.

mod account;
mod bundle;
mod catalog;
mod compression;
mod decode;
mod docker;
mod documents;
mod entries;
mod error;
mod extent;
#[cfg(feature = "fixtures")]
pub mod fixtures;
mod folder;
mod frames;
mod graph;
mod layout;
mod limits;
mod members;
mod packed;
mod places;
mod read;
mod reader;
mod reliance;
pub mod sniff;
mod sparse;
mod strangers;
mod stream;
mod table;
mod tar;
pub mod write;

pub use bundle::{Blob, Bundle, Identity};
pub use catalog::{
    Catalog, Content, Ending, Format, Image, Kind, Manifest, Node, Part, PartState, RawName, Truncation,
};
pub use compression::Compression;
pub use error::{Error, Fault, Warning};
pub use graph::{Store, resolve};
pub use limits::Limits;
pub use reliance::{BlobRef, Inventory, InventoryImage, Reliance};
pub use stream::{BlobStream, StreamedBlob};
