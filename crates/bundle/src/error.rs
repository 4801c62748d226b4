//! What can be wrong with a bundle as a whole, and what is merely worth a remark.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::archive::strangers;
use crate::{Compression, Truncation};
use basics::foreign;

/// Why nothing can be said about a file, or why it is refused as a whole.
///
/// What is wrong with a single image is not an error: it stands in the catalog's nodes. The text names the
/// file and the entry, escaped, and leaves the system's own words to the source.
#[derive(Debug)]
pub struct Error {
    /// The bundle.
    pub path: PathBuf,
    /// What is wrong with it.
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
            true => write!(f, "; by its name it is one piece of several: {}", strangers::JOIN),
            false => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    /// The cause of the fault: the fault itself is in this error's own words.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.fault.source()
    }
}

/// What is wrong with a file as a whole.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The file cannot be opened or read.
    #[error("cannot {action}")]
    Io {
        /// What was being attempted.
        action: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// A folder, a named pipe, a device: something that is never a bundle. With its article.
    #[error("not a regular file but {0}")]
    NotAFile(&'static str),
    /// The file has no bytes, which is how most copies begin.
    #[error("empty file")]
    Empty,
    /// The file ends in the middle of compressed data.
    #[error("cut off: the {codec} data is incomplete at offset {length}, where the file ends")]
    CompressedCut {
        /// How it is compressed.
        codec: Compression,
        /// Bytes of the file.
        length: u64,
    },
    /// The compressed data is damaged.
    #[error("the {codec} data is damaged near offset {offset}: {reason}")]
    CompressedDamage {
        /// How it is compressed.
        codec: Compression,
        /// Offset in the file, in bytes, up to which it was read.
        offset: u64,
        /// What is wrong, in the decompressor's words.
        reason: String,
    },
    /// Not an image bundle at all: what is missing, and what may help.
    #[error("not an image bundle: {0}")]
    Unrecognised(String),
    /// The archive stops in the middle of something before its list of images was seen.
    #[error("{0}")]
    Truncated(Truncation),
    /// The chain of headers is damaged.
    #[error("damaged at offset {offset}{}: {reason}", of_entry(.entry.as_deref()))]
    Damaged {
        /// Offset of the header in bytes.
        offset: u64,
        /// The entry whose header it is, where its name is known; escaped.
        entry: Option<String>,
        /// What is wrong.
        reason: String,
    },
    /// More than the reader's [`Limits`](crate::Limits) allow.
    #[error("more than {limit} {what}{}", in_brackets(.set))]
    Limit {
        /// What there is too much of, with its unit and place.
        what: String,
        /// How much is allowed.
        limit: u64,
        /// The key of the configuration that it follows from, with its value; none where no key moves it.
        set: Option<String>,
    },
    /// `oci-layout` names a version of the layout that is not known; escaped.
    #[error("OCI layout version {0} is not supported, only 1.0.0")]
    UnsupportedLayout(String),
    /// One of the documents that list the images is unusable.
    #[error("{entry}: {reason}")]
    Document {
        /// `index.json`, `manifest.json` or `oci-layout`.
        entry: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The file was written to while it was being read.
    #[error("changed while it was being read")]
    Changed,
}

fn in_brackets(set: &Option<String>) -> String {
    set.as_ref().map(|set| format!(" ({set})")).unwrap_or_default()
}

fn of_entry(entry: Option<&str>) -> String {
    entry.map(|entry| format!(", entry {entry}")).unwrap_or_default()
}

impl Fault {
    /// Makes a fault of what the system says when something cannot be done.
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
    /// For readers: the text and its causes stay the same.
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Io { source, .. } => source,
            fault => io::Error::other(fault),
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
    /// Bytes after the end of the compressed data are not read.
    TrailingGarbage {
        /// How the file is compressed.
        codec: Compression,
        /// Where the compressed data ends, in bytes of the file.
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
    /// The bundle is a delta: layers of its images are not in it, because its destination has them.
    Delta {
        /// What the base is called, escaped.
        base: String,
        /// How many layers were left out.
        count: usize,
    },
    /// The bundle says that it relies on blobs elsewhere, but the list of them is unusable: what is absent is simply
    /// absent.
    RelianceUnusable {
        /// What is wrong with the list.
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
            Self::TrailingData { offset, bytes: 1 } => {
                write!(
                    f,
                    "1 byte follows the end of the archive at offset {offset} and is ignored"
                )
            }
            Self::TrailingData { offset, bytes } => {
                write!(
                    f,
                    "{bytes} bytes follow the end of the archive at offset {offset} and are ignored"
                )
            }
            Self::TrailingGarbage {
                codec,
                offset,
                bytes: 1,
            } => {
                write!(
                    f,
                    "1 byte follows the {codec} data at offset {offset} and is ignored"
                )
            }
            Self::TrailingGarbage { codec, offset, bytes } => {
                write!(
                    f,
                    "{bytes} bytes follow the {codec} data at offset {offset} and are ignored"
                )
            }
            Self::NoLayoutFile => f.write_str("there is no oci-layout file; index.json is taken without it"),
            Self::IndexUnusable(reason) => write!(f, "index.json {reason}; manifest.json is used instead"),
            Self::OciSideBroken { image, reason } => {
                write!(f, "{image}: {reason}; manifest.json is used instead")
            }
            Self::Delta { base, count: 1 } => {
                write!(
                    f,
                    "this is a delta on {base}: 1 of its layers has to be there already"
                )
            }
            Self::Delta { base, count } => {
                write!(
                    f,
                    "this is a delta on {base}: {count} of its layers have to be there already"
                )
            }
            Self::RelianceUnusable { reason } => {
                write!(
                    f,
                    "this is a delta, but its list of what it relies on is unusable: {reason}"
                )
            }
            Self::NotInIndex { count: 1 } => {
                f.write_str("manifest.json lists 1 image that index.json does not; index.json counts")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_of_one_thing_has_no_plural() {
        let codec = Compression::Gzip;
        let (offset, base) = (512, || "base.tar".to_owned());
        let table = [
            (
                Warning::TrailingData { offset, bytes: 1 },
                "1 byte follows the end",
            ),
            (
                Warning::TrailingData { offset, bytes: 2 },
                "2 bytes follow the end",
            ),
            (
                Warning::TrailingGarbage {
                    codec,
                    offset,
                    bytes: 1,
                },
                "1 byte follows the gzip data",
            ),
            (
                Warning::TrailingGarbage {
                    codec,
                    offset,
                    bytes: 2,
                },
                "2 bytes follow the gzip data",
            ),
            (
                Warning::Delta {
                    base: base(),
                    count: 1,
                },
                "1 of its layers has",
            ),
            (
                Warning::Delta {
                    base: base(),
                    count: 2,
                },
                "2 of its layers have",
            ),
            (Warning::NotInIndex { count: 1 }, "lists 1 image that"),
            (Warning::NotInIndex { count: 2 }, "lists 2 images that"),
        ];
        for (warning, words) in table {
            assert!(warning.to_string().contains(words), "{warning}");
        }
    }
}
