//! Reads image bundles into a checked catalog, and writes bundles: see [`mod@write`].
//!
//! A bundle is an archive of container images: an OCI image layout, a Docker archive, or both in
//! one. This crate finds the images in a bundle, checks that they are whole, and reads their blobs.
//! It trusts nothing in the bundle:
//!
//! - Every document is verified by its digest. The catalog names what is missing or does not fit.
//! - No archive costs more memory or time than [`Limits`] and its size allow.
//! - Nothing is unpacked. Names of entries are keys of a table and never become paths.
//!
//! The crate never talks to containerd, chooses a platform or judges a name. It does not print, log
//! or read the environment. All calls block.
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
//! The crate has three parts: `archive` reads the bytes, `image` makes a catalog of them, and
//! [`mod@write`] writes bundles. `Bundle` and `BlobStream` give access to the first two.

mod archive;
mod bundle;
mod error;
#[cfg(feature = "fixtures")]
pub mod fixtures;
mod image;
mod limits;
mod pipe;
mod stream;
pub mod write;

pub use archive::{Compression, Ending, Hashed, Identity, Truncation, sniff};
pub use bundle::{Blob, Bundle};
pub use error::{Error, Fault, Warning};
pub use image::{BlobRef, DeltaBase, Inventory, InventoryImage, Receipt, Reliance, SkippedMembers, Store};
pub use image::{Catalog, Content, Flaw, Format, Image, Kind, Manifest, Node, Part, PartState, RawName};
pub use image::{Member, Members, Release, check_release_name};
pub use image::{is_index, resolve};
pub use limits::Limits;
pub use pipe::Pipe;
pub use stream::{BlobStream, StreamedBlob};
