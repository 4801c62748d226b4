//! Reads image bundles into a checked catalog.
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
//! The inside, from below: `tar` walks the headers of an archive and is strict about them; `table` turns them
//! into a table of names with links resolved, each standing for a place where bytes are; `documents` has the
//! lenient models of foreign JSON; `reader` finds and verifies blobs and keeps account of what that costs;
//! `layout` and `docker` make images of the two formats; `read` chooses between them. What knows that an archive
//! is a plain tar in a file is `table` and below: a compressed archive is walked by the same walk over another
//! input and has places of its own, a folder needs no walk at all.

mod bundle;
mod catalog;
mod compression;
mod digests;
mod docker;
mod documents;
mod error;
mod escape;
#[cfg(feature = "fixtures")]
pub mod fixtures;
mod layout;
mod limits;
mod places;
mod read;
mod reader;
mod table;
mod tar;

pub use bundle::{Blob, Bundle, Identity};
pub use catalog::{
    Catalog, Content, Ending, Format, Image, Kind, Manifest, Node, Part, PartState, RawName, Truncation,
};
pub use compression::Compression;
pub use error::{Error, Fault, Warning};
pub use limits::Limits;
