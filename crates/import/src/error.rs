//! Why an import stopped before its end.

use std::path::PathBuf;

use basics::counted;
use bundle::BlobRef;
use containerd::{Recovery, is_disk_failure};

use crate::result::Cause;
use crate::space::Shortage;
use crate::survey::Census;
use crate::unpack::UnpackError;

/// Why an import stopped before its end. What is wrong with a single image is in its report instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// containerd reported something that no other image would fare better with.
    #[error(transparent)]
    Containerd(#[from] containerd::Error),
    /// The bundle was written to while it was read. Nothing wrong can have been recorded: blobs are named by digest.
    #[error("{} changed while it was imported; it is imported again when it is still", path.display())]
    Changed {
        /// The bundle.
        path: PathBuf,
    },
    /// The bundle could not be looked at again.
    #[error("reading {}", path.display())]
    Read {
        /// The bundle.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The bundle cannot be read on.
    #[error(transparent)]
    Bundle(bundle::Error),
    /// The lease was deleted again and again while the import ran.
    #[error("the lease of this import is deleted by somebody else again and again")]
    LeaseKeepsVanishing,
    /// What is missing would not fit on containerd's disk, or would leave less than is to stay free. Nothing was sent.
    #[error(transparent)]
    NoSpace(Box<Shortage>),
    /// The namespace would have more records than it may (see [`Census::has_no_room`]). Nothing was written.
    #[error("{}: that is too many (`limits.records` is {most})", counted_text(*.census, *.new, *.most))]
    TooManyRecords {
        /// The records of the namespace.
        census: Census,
        /// Those that the bundle would add.
        new: usize,
        /// How many there may be.
        most: usize,
    },
    /// The bundle by itself asks for more records than the namespace may have. Nothing was written.
    #[error(
        "the bundle asks for {asked} image records, those of digests and aliases included: that is too many \
         (`limits.records` is {most})"
    )]
    TooManyNames {
        /// The records that it asks for.
        asked: usize,
        /// How many there may be.
        most: usize,
    },
    /// The bundle is a delta, and what it is a delta on is not here. Its images that need none of that are in place.
    #[error(
        "{} is a delta on {base}, which is not all here: import {base} first. {}", path.display(), missing_text(.missing)
    )]
    BaseMissing {
        /// The bundle.
        path: PathBuf,
        /// What the base is called, fit to print.
        base: String,
        /// The blobs that are not there.
        missing: Vec<BlobRef>,
    },
    /// An image could not be unpacked for a reason that is not its own.
    #[error(transparent)]
    Unpack(UnpackError),
    /// A task of ours failed.
    #[error("a task of the import failed")]
    Task(#[source] tokio::task::JoinError),
}

impl From<UnpackError> for Error {
    fn from(error: UnpackError) -> Error {
        match error {
            UnpackError::Containerd(error) => Error::Containerd(error),
            error => Error::Unpack(error),
        }
    }
}

impl Error {
    /// Whether trying again later, with the same file, may go better.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Containerd(error) => matches!(
                error.recovery(),
                Recovery::Transient | Recovery::Space | Recovery::Disk | Recovery::LeaseLost
            ),
            Error::Changed { .. }
            | Error::LeaseKeepsVanishing
            | Error::NoSpace(_)
            | Error::TooManyRecords { .. }
            | Error::BaseMissing { .. }
            | Error::Unpack(_) => true,
            Error::TooManyNames { .. } => false,
            Error::Read { .. } | Error::Bundle(_) | Error::Task(_) => self.is_disk(),
        }
    }
}

impl Error {
    /// Whether containerd's disk is, or would be, full.
    #[must_use]
    pub fn is_space(&self) -> bool {
        match self {
            Error::Containerd(error) => error.recovery() == Recovery::Space,
            Error::NoSpace(_) => true,
            _ => false,
        }
    }

    /// Why the import failed, as far as it matters to its caller.
    #[must_use]
    pub fn cause(&self) -> Cause {
        match self {
            Error::Containerd(containerd::Error::Unreachable { .. } | containerd::Error::Stalled { .. }) => {
                Cause::Unreachable
            }
            Error::Changed { .. } | Error::Read { .. } | Error::Bundle(_) => Cause::File,
            Error::Containerd(_)
            | Error::NoSpace(_)
            | Error::TooManyRecords { .. }
            | Error::TooManyNames { .. }
            | Error::Task(_)
            | Error::Unpack(_)
            | Error::LeaseKeepsVanishing
            | Error::BaseMissing { .. } => Cause::Other,
        }
    }

    /// Whether a disk fails: containerd's, or the one that the bundle is on.
    #[must_use]
    pub fn is_disk(&self) -> bool {
        match self {
            Error::Containerd(error) => error.recovery() == Recovery::Disk,
            Error::Read { source, .. } | Error::Unpack(UnpackError::Sync { source, .. }) => {
                is_disk_failure(source)
            }
            Error::Bundle(error) => {
                matches!(&error.fault, bundle::Fault::Io { source, .. } if is_disk_failure(source))
            }
            _ => false,
        }
    }
}

/// The records that are held against the bound.
fn counted_text(census: Census, new: usize, most: usize) -> String {
    let Census { ours, others } = census;
    match others > most {
        false => format!(
            "the namespace has {}, those of others included, and the bundle adds {new}",
            counted(ours + others, "image record")
        ),
        true => format!(
            "of others the namespace has more than {most} image records already, so that ours alone count: they are {ours}, and \
             the bundle adds {new}"
        ),
    }
}

/// Names the first few blobs that are missing, and counts them all.
fn missing_text(missing: &[BlobRef]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<_> = missing
        .iter()
        .take(SHOWN)
        .map(|blob| format!("{} ({})", blob.digest, counted(blob.size, "byte")))
        .collect();
    let more = match missing.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("Missing: {}{more}", shown.join(", "))
}
