//! The errors that stop an import before its end.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use basics::counted;
use bundle::BlobRef;
use containerd::{Recovery, is_disk_failure};
use oci_spec::image::Digest;

use crate::result::Cause;
use crate::space::Shortage;
use crate::survey::Census;
use crate::unpack::UnpackError;

/// An error that stopped an import before its end. A fault of a single image is in that image's
/// report instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A failure of containerd that would hit every other image as well.
    #[error(transparent)]
    Containerd(#[from] containerd::Error),
    /// The bundle changed while it was read. No wrong blob can have been recorded, since digests
    /// name blobs.
    #[error("{} changed during its import: the daemon imports it again once it no longer changes", path.display())]
    Changed {
        /// The bundle.
        path: PathBuf,
    },
    /// The bundle could not be checked for changes.
    #[error("cannot read {}", path.display())]
    Read {
        /// The bundle.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// The rest of the bundle cannot be read.
    #[error(transparent)]
    Bundle(bundle::Error),
    /// Another program deleted the lease several times during the import.
    #[error("another program keeps deleting the lease of this import")]
    LeaseKeepsVanishing,
    /// Another program deleted the lease, and a pipe brings the lost blobs only once.
    #[error(
        "another program has deleted the lease of this import, so send the bundle through the pipe again"
    )]
    LeaseOfPipeGone,
    /// The missing blobs would not fit on containerd's disk, or would leave less space than
    /// `minFree`. Nothing was sent.
    #[error(transparent)]
    NoSpace(Box<Shortage>),
    /// The namespace would have more records than allowed (see [`Census::has_no_room`]). Nothing
    /// was written.
    #[error("too many image records: {}, but `limits.records` is {most}", counted_text(*.census, *.new, *.most))]
    TooManyRecords {
        /// The records of the namespace.
        census: Census,
        /// Number of records that the bundle would add.
        new: usize,
        /// Largest allowed number of records.
        most: usize,
    },
    /// The bundle alone asks for more records than the namespace may have. Nothing was written.
    #[error(
        "too many image records: the bundle asks for {asked}, including digests and aliases, but `limits.records` is {most}"
    )]
    TooManyNames {
        /// Number of records that the bundle asks for.
        asked: usize,
        /// Largest allowed number of records.
        most: usize,
    },
    /// The bundle is a delta, and containerd lacks blobs of its base. Images of the bundle that
    /// need none of these blobs are in place.
    #[error(
        "{} is a delta on {base}, and blobs of {base} are missing: import {base} first. {}",
        path.display(),
        missing_text(.missing.iter().map(|blob| (blob, None)))
    )]
    BaseMissing {
        /// The bundle.
        path: PathBuf,
        /// Name of the base, fit to print.
        base: String,
        /// The missing blobs.
        missing: Vec<BlobRef>,
    },
    /// The file is a receipt, and containerd has lost blobs that it relies on. The other images of
    /// the receipt are in place.
    #[error("degraded: {0}")]
    Degraded(Box<Degradation>),
    /// An image could not be unpacked, for a reason that lies outside the image.
    #[error(transparent)]
    Unpack(UnpackError),
    /// A task of the import failed.
    #[error("a task of the import failed")]
    Task(#[source] tokio::task::JoinError),
}

/// The loss of a receipt: its images without a blob, and the bundle that brings them back.
#[derive(Debug)]
pub struct Degradation {
    /// Name of the bundle that the receipt stands for, fit to print.
    pub bundle: String,
    /// True if that bundle came from a pipe, so that its name finds no file.
    pub is_nameless: bool,
    /// Size of that bundle in bytes.
    pub size: u64,
    /// Content digest of that bundle.
    pub catalog: Digest,
    /// The images that lack a blob, fit to print.
    pub images: Vec<String>,
    /// The missing blobs. A blob that the bundle, a delta, lacked comes with the name of its base,
    /// fit to print.
    pub missing: Vec<(BlobRef, Option<String>)>,
}

impl Degradation {
    /// Returns the bundle to bring, by its name or by its content digest.
    fn bundle_to_bring(&self) -> String {
        let (bundle, size, catalog) = (&self.bundle, basics::bytes(self.size), &self.catalog);
        match self.is_nameless {
            false => format!("Place {bundle} ({size}, content {catalog})"),
            true => format!("Bring the bundle with content digest {catalog} ({size}, it came from {bundle})"),
        }
    }

    /// Returns the way out: the bundles that had the missing blobs.
    fn remedy(&self) -> String {
        let bases: BTreeSet<&str> = self
            .missing
            .iter()
            .filter_map(|(_, base)| base.as_deref())
            .collect();
        let bases = bases.into_iter().collect::<Vec<_>>().join(" and ");
        let is_own = self.missing.iter().any(|(_, base)| base.is_none());
        match (is_own, bases.is_empty()) {
            (_, true) => format!("{} or another bundle with these blobs", self.bundle_to_bring()),
            (true, false) => format!(
                "{} and its base {bases}, or other bundles with these blobs",
                self.bundle_to_bring()
            ),
            (false, false) => format!(
                "Place {bases}, the base of {}, or another bundle with these blobs",
                self.bundle
            ),
        }
    }
}

impl fmt::Display for Degradation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "containerd has lost blobs of {}, and the receipt has no layers. {}. {}",
            self.images.join(", "),
            self.remedy(),
            missing_text(self.missing.iter().map(|(blob, base)| (blob, base.as_deref())))
        )
    }
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
    /// Returns true if a later retry with the same file may succeed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Containerd(error) => matches!(
                error.recovery(),
                Recovery::Transient | Recovery::Space | Recovery::Disk | Recovery::LeaseLost
            ),
            Error::Changed { .. }
            | Error::LeaseKeepsVanishing
            | Error::LeaseOfPipeGone
            | Error::NoSpace(_)
            | Error::TooManyRecords { .. }
            | Error::BaseMissing { .. }
            | Error::Degraded(_)
            | Error::Unpack(_) => true,
            Error::TooManyNames { .. } => false,
            Error::Read { .. } | Error::Bundle(_) | Error::Task(_) => self.is_disk(),
        }
    }
}

impl Error {
    /// Returns true if containerd's disk is full, or would be.
    #[must_use]
    pub fn is_space(&self) -> bool {
        match self {
            Error::Containerd(error) => error.recovery() == Recovery::Space,
            Error::NoSpace(_) => true,
            _ => false,
        }
    }

    /// Returns the cause of the failure, in the terms that matter to a caller.
    #[must_use]
    pub fn cause(&self) -> Cause {
        match self {
            Error::Containerd(containerd::Error::Unreachable { .. } | containerd::Error::Stalled { .. }) => {
                Cause::Unreachable
            }
            Error::Changed { .. } | Error::Read { .. } => Cause::File,
            Error::Bundle(error) => Cause::of(error),
            Error::Containerd(_)
            | Error::NoSpace(_)
            | Error::TooManyRecords { .. }
            | Error::TooManyNames { .. }
            | Error::Task(_)
            | Error::Unpack(_)
            | Error::LeaseKeepsVanishing
            | Error::LeaseOfPipeGone
            | Error::BaseMissing { .. }
            | Error::Degraded(_) => Cause::Other,
        }
    }

    /// Returns true if a disk fails: containerd's disk, or the bundle's.
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

/// Returns the records that count towards `limits.records`.
fn counted_text(census: Census, new: usize, most: usize) -> String {
    let Census { ours, others } = census;
    match others > most {
        false => format!(
            "the namespace has {} (including those of other programs) and the bundle adds {new}",
            ours + others
        ),
        true => format!(
            "other programs already have more than {most}, so only airgapd's {ours} count, and the bundle adds {new}"
        ),
    }
}

/// Lists the first few missing blobs and the number of the rest.
fn missing_text<'a>(missing: impl ExactSizeIterator<Item = (&'a BlobRef, Option<&'a str>)>) -> String {
    const SHOWN: usize = 5;
    let number = missing.len();
    let one = |(blob, base): (&BlobRef, Option<&str>)| {
        let of_base = base.map(|base| format!(", of {base}")).unwrap_or_default();
        format!("{} ({}{of_base})", blob.digest, counted(blob.size, "byte"))
    };
    let shown: Vec<_> = missing.take(SHOWN).map(one).collect();
    let more = match number.saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("Missing: {}{more}", shown.join(", "))
}
