//! Gives a former release its names back: its files count as files that came now.
//!
//! The last file with a name has it. So a roll back changes no record and moves no byte. It gives
//! each file of the release a new time, and the daemon does the rest, as after an upload.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::path::Path;

use bundle::{Bundle, Limits};
use jiff::Timestamp;
use oci_spec::image::Digest;
use rustix::fs::{AtFlags, Timespec, Timestamps, futimens, utimensat};
use rustix::io::Errno;

use crate::images::folder::{Folder, Refused};
use crate::place::Place;
use crate::receipts::{self, NotRolledBack};

/// The reason why a file keeps its time.
#[derive(Debug, thiserror::Error)]
pub enum NotRenewed {
    /// The receipt cannot be read or written.
    #[error(transparent)]
    Receipt(#[from] NotRolledBack),
    /// The file is not in its folder, or is no file that the daemon reads.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The file system does not take the time.
    #[error("its time cannot be changed: {0}")]
    Time(#[source] io::Error),
}

/// Returns the time of a roll back that happens now, in seconds since 1970: later than that of
/// every receipt, also if the clock went back. The call blocks.
pub fn time(node: &Place, limits: &Limits) -> i64 {
    let receipts = receipts::all_in(&node.receipts).unwrap_or_default();
    let times = receipts.iter().filter_map(|path| {
        let receipt = receipts::stood_for(path, limits)?;
        Some(receipt.rolled_back_at.unwrap_or(receipt.made_at))
    });
    let next = times.max().map_or(i64::MIN, |last| last.saturating_add(1));
    Timestamp::now().as_second().max(next)
}

/// Gives a file of this node the time `now`, in seconds since 1970: an archive, a layout or a
/// receipt, by its name in labels. The call blocks. It is safe to repeat.
///
/// # Errors
///
/// Returns the reason. The file is unchanged then.
pub fn renew(node: &Place, name: &OsStr, now: i64, limits: &Limits) -> Result<(), NotRenewed> {
    if node.is_receipt(name) {
        return Ok(receipts::roll_back(Path::new(name), now, limits)?);
    }
    let time = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        },
    };
    let (folder, inside) = node.locate(name).ok_or(Refused::Gone)?;
    let folder = Folder::open_dir(folder).map_err(Refused::Unreadable)?;
    let renewed = match folder.open_layout(inside) {
        // The daemon knows a layout by its documents.
        Ok((layout, _)) => utimensat(&layout, "index.json", &time, AtFlags::SYMLINK_NOFOLLOW),
        Err(_) => futimens(folder.open(inside)?, &time),
    };
    renewed.map_err(|error: Errno| NotRenewed::Time(error.into()))
}

/// Returns the blobs that containerd must have for a file: those of a receipt. An archive brings
/// its own. The call blocks.
///
/// # Errors
///
/// Returns why the receipt cannot be read.
pub fn needed(node: &Place, name: &OsStr, limits: &Limits) -> Result<HashSet<Digest>, Box<bundle::Error>> {
    if !node.is_receipt(name) {
        return Ok(HashSet::new());
    }
    let receipt = Bundle::open(Path::new(name), limits)?;
    let reliance = receipt.catalog().relies_on.iter();
    let blobs = reliance.flat_map(|reliance| &reliance.blobs);
    Ok(blobs.map(|blob| blob.digest.clone()).collect())
}
