//! Faults that make a whole bundle unusable, and warnings about bundles that work.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::archive::strangers;
use crate::{Compression, Truncation};
use basics::counted;
use basics::foreign;

/// The error for a file that cannot be read, or is refused as a whole.
///
/// A fault of a single image is not an error: the nodes of the catalog have it. The text names the
/// file and the entry, escaped. The words of the operating system are in the source.
#[derive(Debug)]
pub struct Error {
    /// Path of the bundle.
    pub path: PathBuf,
    /// The fault.
    pub fault: Fault,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", foreign::path(&self.path), self.fault)?;
        let is_part = matches!(
            self.fault,
            Fault::Truncated(_)
                | Fault::CompressedCut { .. }
                | Fault::CompressedDamage { .. }
                | Fault::Damaged { .. }
                | Fault::Unrecognised(_)
        );
        match is_part && strangers::is_piece(&self.path) {
            true => write!(
                f,
                ". By its name, the file is one piece of several: {}",
                strangers::JOIN
            ),
            false => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    /// Returns the cause of the fault. The text of this error contains the fault itself.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.fault.source()
    }
}

/// A reason to refuse a whole file.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The file cannot be opened or read.
    #[error("cannot {action}")]
    Io {
        /// The call that failed.
        action: &'static str,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The path is a folder, a named pipe or a device, which is never a bundle. The noun has its
    /// article.
    #[error("not a regular file but {0}")]
    NotAFile(&'static str),
    /// The file has no bytes, as at the start of most copies.
    #[error("empty file")]
    Empty,
    /// The file ends in the middle of compressed data.
    #[error("cut off: the {codec} data is incomplete at offset {length}, where the file ends")]
    CompressedCut {
        /// Compression of the file.
        codec: Compression,
        /// Length of the file in bytes.
        length: u64,
    },
    /// The compressed data is damaged.
    #[error("the {codec} data is damaged near offset {offset}: {reason}")]
    CompressedDamage {
        /// Compression of the file.
        codec: Compression,
        /// Offset in the file, in bytes, that the decompressor had reached.
        offset: u64,
        /// The damage in the decompressor's words.
        reason: String,
    },
    /// The file is not an image bundle. The text says what is missing, and what may help.
    #[error("not an image bundle: {0}")]
    Unrecognised(String),
    /// The archive is cut off before its list of images.
    #[error("{0}")]
    Truncated(Truncation),
    /// The chain of headers is damaged.
    #[error("damaged at offset {offset}{}: {reason}", of_entry(.entry.as_deref()))]
    Damaged {
        /// Offset of the header in bytes.
        offset: u64,
        /// The entry that the header belongs to, escaped, if its name is known.
        entry: Option<String>,
        /// The fault of the header.
        reason: String,
    },
    /// The bundle exceeds one of the reader's [`Limits`](crate::Limits).
    #[error("more than {limit} {what}{}", in_brackets(.set))]
    Limit {
        /// The quantity that is too large, with its unit and place.
        what: String,
        /// The largest amount that is allowed.
        limit: u64,
        /// The configuration key behind the limit and its value. `None` if no key changes the
        /// limit.
        set: Option<String>,
    },
    /// `oci-layout` names an unknown version of the layout. The version is escaped.
    #[error("OCI layout version {0} is not supported, only 1.0.0")]
    UnsupportedLayout(String),
    /// One of the documents that list the images is unusable.
    #[error("{entry}: {reason}")]
    Document {
        /// `index.json`, `manifest.json` or `oci-layout`.
        entry: &'static str,
        /// The fault of the document.
        reason: String,
    },
    /// The bundle comes through a pipe, and needs a file. The text says why.
    #[error("it cannot be read from a pipe: {0}. Copy the file to the node and import the file")]
    Piped(String),
    /// Another program wrote to the file while the reader read it.
    #[error("changed while it was being read")]
    Changed,
}

fn in_brackets(set: &Option<String>) -> String {
    set.as_ref().map(|set| format!(" ({set})")).unwrap_or_default()
}

fn of_entry(entry: Option<&str>) -> String {
    entry.map(|entry| format!(", entry {entry}")).unwrap_or_default()
}

fn in_bytes(count: u64) -> String {
    counted(count, "byte")
}

fn in_images(count: usize) -> String {
    counted(count as u64, "image")
}

impl Fault {
    /// Returns a function that makes a fault of an error of the operating system.
    pub(crate) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }

    pub(crate) fn in_file(self, path: &Path) -> Error {
        Error {
            path: path.to_owned(),
            fault: self,
        }
    }
}

impl From<Fault> for io::Error {
    /// Converts a fault for readers. The text and its causes stay the same.
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Io { source, .. } => source,
            fault => io::Error::other(fault),
        }
    }
}

/// A remark for the operator. The import goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// Several entries have the same name. The last entry counts, as when `tar` extracts the
    /// archive.
    DuplicateEntries {
        /// Number of entries that a later entry replaced.
        count: u64,
        /// Name of the first of them, escaped.
        first: String,
    },
    /// Bytes after the end-of-archive mark, which the reader ignores.
    TrailingData {
        /// Length of the archive in bytes.
        offset: u64,
        /// Number of bytes after it.
        bytes: u64,
    },
    /// Bytes after the end of the compressed data, which the reader ignores.
    TrailingGarbage {
        /// Compression of the file.
        codec: Compression,
        /// Offset in the file, in bytes, at which the compressed data ends.
        offset: u64,
        /// Number of bytes after it.
        bytes: u64,
    },
    /// The `oci-layout` file is missing, but `index.json` is good.
    NoLayoutFile,
    /// There is an `oci-layout` file, but `index.json` is missing or lists nothing. The reader uses
    /// `manifest.json`.
    IndexUnusable(&'static str),
    /// The OCI side of one image is broken as Docker 25.0 wrote it. The reader uses `manifest.json`
    /// for this image.
    OciSideBroken {
        /// Name or digest of the image, escaped.
        image: String,
        /// The fault of the OCI side.
        reason: String,
    },
    /// The bundle is a delta: it lacks layers of its images, because its destination has them.
    Delta {
        /// Name of the base, escaped.
        base: String,
        /// Number of layers that were left out.
        count: usize,
    },
    /// The bundle says that it relies on blobs elsewhere, but its list of them is unusable. Its
    /// absent blobs count as missing.
    RelianceUnusable {
        /// The fault of the list.
        reason: String,
    },
    /// The bundle names a release, but the list of its members is unusable. The release does not
    /// count as in place.
    ReleaseUnusable {
        /// Name of the release. `None` if the name is unusable, too.
        release: Option<String>,
        /// The fault of the list.
        reason: String,
    },
    /// `manifest.json` lists images that `index.json` lacks. Only `index.json` counts.
    NotInIndex {
        /// Number of such images.
        count: usize,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DuplicateEntries { count: 1, first } => {
                write!(f, "entry {first} occurs more than once, and the last copy counts")
            }
            Self::DuplicateEntries { count, first } => {
                write!(
                    f,
                    "{count} entries occur more than once (first: {first}), and the last copy of each counts"
                )
            }
            Self::TrailingData { offset, bytes } => {
                let bytes = in_bytes(*bytes);
                write!(
                    f,
                    "ignored {bytes} after the end of the archive at offset {offset}"
                )
            }
            Self::TrailingGarbage { codec, offset, bytes } => {
                let bytes = in_bytes(*bytes);
                write!(f, "ignored {bytes} after the {codec} data at offset {offset}")
            }
            Self::NoLayoutFile => {
                f.write_str("the oci-layout file is missing, so index.json is used without it")
            }
            Self::IndexUnusable(reason) => write!(f, "index.json {reason}, so manifest.json is used instead"),
            Self::OciSideBroken { image, reason } => {
                write!(f, "{image}: {reason}, so manifest.json is used instead")
            }
            Self::Delta { base, count } => {
                write!(
                    f,
                    "this is a delta on {base}: the node must already have {count} of its layers"
                )
            }
            Self::RelianceUnusable { reason } => {
                write!(
                    f,
                    "this is a delta, but its list of required blobs is unusable: {reason}"
                )
            }
            Self::ReleaseUnusable {
                release: Some(name),
                reason,
            } => write!(f, "release {name} cannot be in place with this bundle: {reason}"),
            Self::ReleaseUnusable {
                release: None,
                reason,
            } => {
                write!(f, "the bundle belongs to no release: {reason}")
            }
            Self::NotInIndex { count } => {
                let images = in_images(*count);
                write!(
                    f,
                    "ignored {images} of manifest.json that index.json does not list"
                )
            }
        }
    }
}
