//! Reads image bundles into a checked catalog, and writes bundles: see [`mod@write`].
//!
//! A bundle is an archive of container images: an OCI image layout, a Docker archive, or both in
//! one. This crate finds out what is in it and whether it is whole, and hands out blobs. It trusts
//! nothing: every document is verified by its digest, what is not there or does not fit is said so
//! in the catalog, and no archive, however made, costs more memory or time than [`Limits`] and its
//! size allow. Nothing is ever unpacked: names of entries are keys of a table and never become
//! paths.
//!
//! It never talks to containerd, never chooses a platform and never judges a name; it does not
//! print, log or read the environment. All calls block.
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
//! Inside there are three rooms: `archive` has the bytes, `image` makes a catalog of them, and
//! [`mod@write`] writes bundles. `Bundle` and `BlobStream` are the door to the first two.

mod archive;
mod bundle;
mod error;
#[cfg(feature = "fixtures")]
pub mod fixtures;
mod image;
mod limits;
mod stream;
pub mod write;

pub use archive::{Compression, Ending, Identity, Truncation, sniff};
pub use bundle::{Blob, Bundle};
pub use error::{Error, Fault, Warning};
pub use image::{BlobRef, Inventory, InventoryImage, Reliance, Store, is_index, resolve};
pub use image::{Catalog, Content, Flaw, Format, Image, Kind, Manifest, Node, Part, PartState, RawName};
pub use limits::Limits;
pub use stream::{BlobStream, StreamedBlob};
