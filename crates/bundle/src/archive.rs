//! The bytes of a bundle: a tar archive, plain or compressed, or a folder. The module maps names to
//! the places of their bytes.
//!
//! It never parses a document, knows what an image is, unpacks anything, or makes a path of an
//! entry's name.
//!
//! The modules, from the lowest layer up:
//!
//! - `decode` decompresses a file from its beginning to its end.
//! - `frames` reads at any offset of a compressed file that has a seek table.
//! - `file` reads the file of an archive, and compares its bytes with the hash of the file.
//! - `tar` walks the headers of an archive and is strict about them.
//! - `table` maps the names of an archive to places, with links resolved. `entries` keeps the map
//!   small.
//! - `place` is where the bytes behind a name are.
//! - `packed` keeps the results of one pass over a compressed archive.
//! - `tape` winds a stream back to its beginning.
//! - `passage` reads an archive from a stream, entry by entry.
//! - `folder` stands in for an archive that was extracted.
//! - `recognise` tells archives from other files, and `strangers` names those files.
//! - `sniff` tells how a file begins and ends, before it is opened.

mod compression;
mod decode;
mod ending;
mod entries;
mod extent;
mod file;
mod folder;
mod frames;
mod identity;
mod packed;
mod passage;
mod place;
mod recognise;
pub mod sniff;
pub(crate) mod strangers;
mod table;
mod tape;
mod tar;

pub use compression::Compression;
pub use ending::{Ending, Truncation};
pub use file::Hashed;
pub use identity::Identity;

pub(crate) use extent::Extent;
pub(crate) use file::ArchiveFile;
pub(crate) use folder::Folder;
pub(crate) use frames::{Frames, SeekTable, ballast};
pub(crate) use packed::{Packed, Pass};
pub(crate) use passage::Passage;
pub(crate) use place::{BlobsFolder, Found, Place};
pub(crate) use recognise::{recognise, recognise_packed};
pub(crate) use table::Archive;
#[cfg(test)]
pub(crate) use tar::{FileInput, Step, Walk};
pub(crate) use tar::{fill, read_error};
