//! What can be wrong with a bundle as a whole, and what is merely worth a remark.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::{Compression, Truncation, escape};

/// Why nothing can be said about a file, or why it is refused as a whole.
///
/// What is wrong with a single image is not an error: it stands in the catalog's nodes. The text names the
/// file and the entry, escaped, and leaves the system's own words to the source.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", escape::path(.path))]
pub struct Error {
    /// The bundle.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: Fault,
}

impl Error {
    /// Whether the file looks like one that somebody has not finished writing: waiting may help.
    pub fn looks_unfinished(&self) -> bool {
        matches!(self.fault, Fault::Empty | Fault::Truncated(_) | Fault::Changed)
    }
}

/// What is wrong with a file as a whole.
#[derive(Debug)]
pub enum Fault {
    /// The file cannot be opened or read.
    Io {
        /// What was being attempted.
        action: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// A folder, a named pipe, a device: something that is never a bundle. With its article.
    NotAFile(&'static str),
    /// The file has no bytes, which is how most copies begin.
    Empty,
    /// A compressed file, and how it is compressed.
    Compressed(Compression),
    /// Not an image bundle at all: what is missing, and what may help.
    Unrecognised(String),
    /// The archive stops in the middle of something before its list of images was seen.
    Truncated(Truncation),
    /// The chain of headers is damaged.
    Damaged {
        /// Offset of the header in bytes.
        offset: u64,
        /// The entry, or the last one before the damage, escaped; none at the start.
        entry: Option<String>,
        /// What is wrong.
        reason: String,
    },
    /// More than the reader's [`Limits`](crate::Limits) allow.
    Limit {
        /// What there is too much of, with its unit and place.
        what: String,
        /// How much is allowed.
        limit: u64,
    },
    /// `oci-layout` names a version of the layout that is not known; escaped.
    UnsupportedLayout(String),
    /// One of the documents that list the images is unusable.
    Document {
        /// `index.json`, `manifest.json` or `oci-layout`.
        entry: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The file was written to while it was being read.
    Changed,
}

impl Fault {
    pub(crate) fn in_file(self, path: &Path) -> Error {
        Error {
            path: path.to_owned(),
            fault: self,
        }
    }
}

impl std::error::Error for Fault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { action, .. } => write!(f, "cannot {action}"),
            Self::NotAFile(kind) => write!(f, "not a regular file but {kind}"),
            Self::Empty => f.write_str("empty file"),
            Self::Compressed(codec) => {
                write!(
                    f,
                    "compressed with {codec}, which this version does not support; decompress it first"
                )
            }
            Self::Unrecognised(reason) => write!(f, "not an image bundle: {reason}"),
            Self::Truncated(truncation) => write!(f, "{truncation}"),
            Self::Damaged {
                offset,
                entry: Some(entry),
                reason,
            } => {
                write!(f, "damaged at offset {offset}, entry {entry}: {reason}")
            }
            Self::Damaged {
                offset,
                entry: None,
                reason,
            } => write!(f, "damaged at offset {offset}: {reason}"),
            Self::Limit { what, limit } => write!(f, "more than {limit} {what}"),
            Self::UnsupportedLayout(version) => {
                write!(f, "OCI layout version {version} is not supported, only 1.0.0")
            }
            Self::Document { entry, reason } => write!(f, "{entry}: {reason}"),
            Self::Changed => f.write_str("changed while it was being read"),
        }
    }
}

/// Something that an operator should hear about although it stops nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// Entries that are there more than once; the last one counts, as when extracting.
    DuplicateEntries {
        /// How many entries were replaced by a later one.
        count: u64,
        /// The first of their names, escaped.
        first: String,
    },
    /// Bytes after the end-of-archive mark are not read.
    TrailingData {
        /// Where the archive ends, in bytes.
        offset: u64,
        /// How many bytes follow.
        bytes: u64,
    },
    /// There is no `oci-layout` file, but a good `index.json`.
    NoLayoutFile,
    /// There is an `oci-layout` file, but `index.json` is absent or lists nothing: `manifest.json` is used.
    IndexUnusable(&'static str),
    /// The OCI side of one image is broken as Docker 25.0 wrote it: `manifest.json` is used for this image.
    OciSideBroken {
        /// The image, by name or digest, escaped.
        image: String,
        /// What is wrong.
        reason: String,
    },
    /// `manifest.json` lists images that `index.json`, which counts, does not.
    NotInIndex {
        /// How many.
        count: usize,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DuplicateEntries { count: 1, first } => {
                write!(f, "entry {first} is there more than once; the last one counts")
            }
            Self::DuplicateEntries { count, first } => {
                write!(
                    f,
                    "{count} entries are there more than once (first: {first}); the last ones count"
                )
            }
            Self::TrailingData { offset, bytes } => {
                write!(
                    f,
                    "{bytes} bytes follow the end of the archive at offset {offset} and are ignored"
                )
            }
            Self::NoLayoutFile => f.write_str("there is no oci-layout file; index.json is taken without it"),
            Self::IndexUnusable(reason) => write!(f, "index.json {reason}; manifest.json is used instead"),
            Self::OciSideBroken { image, reason } => {
                write!(f, "{image}: {reason}; manifest.json is used instead")
            }
            Self::NotInIndex { count } => {
                write!(
                    f,
                    "manifest.json lists {count} images that index.json does not; index.json counts"
                )
            }
        }
    }
}
