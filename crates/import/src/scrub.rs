//! Scrub: reads blobs in containerd again, and replaces wrong ones with bytes of a bundle.
//!
//! containerd hashes a blob once, when it is written. It never notices a bit that flips on the disk
//! afterwards. A write of the blob gets the answer that it exists. After a deletion alone,
//! containerd takes the file over as it is, until a garbage collection has removed it. So
//! [`replace`] deletes, collects once for all blobs, writes, and reads back. The caller decides
//! which blobs are replaced.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use basics::chain;
use basics::digest::{self, Hasher};
use containerd::{BlobInfo, BlobSource, BlobSpec, Client, Error, Recovery, is_disk_failure};
use oci_spec::image::Digest;
use rustix::fs::{Advice, OFlags, fadvise};

use crate::ingest::FromBundle;
use crate::labels::Labels;
use crate::lease::{self, Lease};
use crate::pace::{Pace, paced};
use crate::plan::references;
use crate::space::blob_file;
use crate::survey::forget;

/// Id of the lease of [`replace`], and its mark in containerd. No bundle has such an id, so the
/// daemon leaves the lease alone.
const LEASE: &str = "scrub";
/// Number of attempts at blobs that another importer writes again before the collection.
const ROUNDS: usize = 3;

/// The state of a blob's bytes in containerd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The bytes have the digest.
    Right {
        /// Number of bytes.
        bytes: u64,
    },
    /// The bytes were wrong at first, and right at a second reading past the page cache. The disk
    /// is right, so the memory of the machine, or the way to it, was wrong.
    RightOnDisk {
        /// The first finding.
        first: String,
    },
    /// The bytes do not have the digest, or cannot be read.
    Wrong {
        /// The finding, for the operator.
        why: String,
    },
    /// containerd does not list the blob.
    Absent,
}

/// Reads a blob and hashes it. Reads a wrong blob a second time, through containerd and past the
/// page cache.
///
/// If `store`, the folder of containerd's content store, is visible, the first reading is one of
/// the blob's file: at the I/O priority of this process, and past the page cache. containerd reads
/// at its own priority, and each byte costs two programs. If the store is not visible, containerd
/// reads both times.
///
/// # Errors
///
/// Returns the client's error if a reading has no result, as while containerd stops. That says
/// nothing about the bytes.
pub async fn read(
    client: &Client,
    digest: &Digest,
    store: Option<&Path>,
    pace: &Arc<Pace>,
) -> Result<Reading, Error> {
    let Some(BlobInfo { size, .. }) = client.blob(digest).await? else {
        return Ok(Reading::Absent);
    };
    let file = store.map(|store| blob_file(store, digest));
    let first = match &file {
        Some(file) => from_disk(file.clone(), digest, pace).await,
        None => None,
    };
    let first = match first {
        Some(reading) => reading,
        None => from_containerd(client, (digest, size), pace).await?,
    };
    let Reading::Wrong { why: first } = first else {
        return Ok(first);
    };
    if let Some(file) = file {
        // Without the file there are no pages.
        let _ = File::open(file).map(|file| fadvise(file, 0, None, Advice::DontNeed));
    }
    Ok(match from_containerd(client, (digest, size), pace).await? {
        Reading::Right { .. } => Reading::RightOnDisk { first },
        reading => reading,
    })
}

/// Hashes the file of a blob. Returns `None` if this process cannot read it there. The folder may
/// belong to another containerd, and a lack of rights or descriptors is no fault of the disk.
async fn from_disk(file: PathBuf, digest: &Digest, pace: &Arc<Pace>) -> Option<Reading> {
    let (source, _wanted) = paced(Arc::new(OnDisk(file)), pace);
    let hasher = Hasher::of(digest);
    let reading = tokio::task::spawn_blocking(move || {
        let mut counted = Counted(source.open(0)?, 0);
        let found = digest::of(&mut counted, hasher)?;
        Ok::<_, io::Error>((found, counted.1))
    });
    match reading.await.expect("reading a file never panics") {
        Ok((found, bytes)) => Some(judged(digest, &found, bytes)),
        Err(error) if is_disk_failure(&error) => Some(Reading::Wrong {
            why: format!("its file cannot be read: {error}"),
        }),
        Err(_) => None,
    }
}

async fn from_containerd(client: &Client, blob: (&Digest, u64), pace: &Pace) -> Result<Reading, Error> {
    let (digest, size) = blob;
    match hash(client, digest, size, pace).await {
        Ok((found, bytes)) => Ok(judged(digest, &found, bytes)),
        Err(Error::Gone { .. }) => Ok(match client.blob(digest).await? {
            None => Reading::Absent,
            Some(_) => Reading::Wrong {
                why: "its file is gone".to_owned(),
            },
        }),
        Err(error @ (Error::Content { .. } | Error::Disk { .. })) => {
            Ok(Reading::Wrong { why: chain(&error) })
        }
        Err(error) => Err(error),
    }
}

/// Returns true for a request that has no answer, or none that lasts: containerd is away, hangs, or
/// fails for a reason of its own.
#[must_use]
pub fn is_unanswered(error: &Error) -> bool {
    match error {
        Error::Unreachable { .. } | Error::Stalled { .. } | Error::Failed { .. } => true,
        Error::Locked { .. }
        | Error::Space { .. }
        | Error::Disk { .. }
        | Error::LeaseLost { .. }
        | Error::Gone { .. }
        | Error::Content { .. }
        | Error::Source { .. }
        | Error::Invalid { .. }
        | Error::Refused { .. }
        | Error::TooLarge { .. } => false,
    }
}

/// Hashes a blob of this size. Fewer bytes are a result only if containerd lacks the end.
async fn hash(client: &Client, digest: &Digest, size: u64, pace: &Pace) -> Result<(Digest, u64), Error> {
    let (mut hasher, mut bytes) = (Hasher::of(digest), 0);
    let mut reader = client.open_blob(digest, 0).await?;
    while let Some(piece) = reader.next().await? {
        hasher.update(&piece);
        bytes += piece.len() as u64;
        pace.turn(piece.len() as u64).await;
    }
    if bytes < size && client.has_end(digest, size).await? {
        return Err(reader.ended_early());
    }
    Ok((hasher.finish(), bytes))
}

fn judged(digest: &Digest, found: &Digest, bytes: u64) -> Reading {
    match found == digest {
        true => Reading::Right { bytes },
        false => Reading::Wrong {
            why: format!("its bytes hash to {found}"),
        },
    }
}

/// A file that is read past the page cache. So the bytes are those of the disk, and a scrub takes
/// no pages from other programs.
#[derive(Clone)]
struct OnDisk(PathBuf);

impl BlobSource for OnDisk {
    fn open(&self, _: u64) -> io::Result<Box<dyn Read + Send>> {
        match Direct::open(&self.0) {
            Ok(direct) => Ok(Box::new(direct)),
            // tmpfs and some others have no direct reading.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                let file = File::open(&self.0)?;
                let _ = fadvise(&file, 0, None, Advice::DontNeed);
                Ok(Box::new(file))
            }
            Err(error) => Err(error),
        }
    }
}

/// A file that is read without the page cache (open(2), `O_DIRECT`). The disk writes to memory at
/// an address that is a multiple of [`Direct::ALIGNMENT`].
struct Direct {
    file: File,
    buffer: Vec<u8>,
    /// Offset of the aligned part of the buffer.
    start: usize,
    /// The bytes that the caller has not read yet, in the aligned part.
    unread: Range<usize>,
    /// Bytes of the file behind these. A direct reading behind the end fails on some file systems.
    behind: u64,
}

impl Direct {
    /// Bytes that are read at a time.
    const PIECE: usize = 1 << 20;
    /// The largest block of a disk in use.
    const ALIGNMENT: usize = 4096;

    /// Opens a file and reads its first piece. So a file system without direct reading fails here.
    fn open(path: &Path) -> io::Result<Direct> {
        let flags = OFlags::DIRECT.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let buffer = vec![0; Direct::PIECE + Direct::ALIGNMENT];
        let start = buffer.as_ptr().align_offset(Direct::ALIGNMENT);
        let mut direct = Direct {
            behind: file.metadata()?.len(),
            file,
            buffer,
            start,
            unread: 0..0,
        };
        direct.fill()?;
        Ok(direct)
    }

    fn fill(&mut self) -> io::Result<()> {
        let piece = &mut self.buffer[self.start..self.start + Direct::PIECE];
        let length = match self.behind {
            0 => 0,
            _ => self.file.read(piece)?,
        };
        self.behind = self.behind.saturating_sub(length as u64);
        self.unread = 0..length;
        Ok(())
    }
}

impl Read for Direct {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.unread.is_empty() {
            self.fill()?;
        }
        let length = to.len().min(self.unread.len());
        let from = self.start + self.unread.start;
        to[..length].copy_from_slice(&self.buffer[from..from + length]);
        self.unread.start += length;
        Ok(length)
    }
}

/// Counts the bytes of a source.
struct Counted<R>(R, u64);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let length = self.0.read(to)?;
        self.1 += length as u64;
        Ok(length)
    }
}

/// A blob to be replaced.
#[derive(Clone, Debug)]
pub struct Replacement {
    /// The digest.
    pub digest: Digest,
    /// The labels that the blob had in containerd.
    pub labels: Labels,
    /// The right bytes.
    pub blob: bundle::Blob,
}

/// Reads a blob of a bundle and hashes it. Blocks.
///
/// # Errors
///
/// Returns the reason why the bytes are no replacement.
pub fn prove(blob: &bundle::Blob, digest: &Digest, pace: &Arc<Pace>) -> Result<(), String> {
    let (source, _wanted) = paced(Arc::new(FromBundle(blob.clone())), pace);
    let found = source
        .open(0)
        .and_then(|mut reader| digest::of(&mut reader, Hasher::of(digest)))
        .map_err(|error| chain(&error))?;
    match found == *digest {
        true => Ok(()),
        false => Err(digest::mismatch(digest, &found)),
    }
}

/// Replaces blobs: deletes all, lets containerd collect garbage once, writes and reads back each.
/// Returns the blobs that are still wrong, each with the reason.
///
/// The labels of a blob come back with it. Until then a lease holds the blobs and snapshots that
/// these labels refer to. The records of images do not change.
///
/// Other importers may run at the same time. If one of them writes a blob again before the
/// collection, containerd takes the wrong file over. The reading finds that, and another round
/// follows.
///
/// # Errors
///
/// Returns the client's error if containerd does not answer ([`is_unanswered`]), or if another
/// program deletes the lease. Safe to cancel: a call with the same blobs continues. The lease stays
/// until [`end`], for at most a day.
pub async fn replace(
    client: &Client,
    store: Option<&Path>,
    blobs: &[Replacement],
    pace: &Arc<Pace>,
) -> Result<Vec<(Digest, String)>, Error> {
    let lease = Lease::acquire(client, LEASE, LEASE).await?;
    for held in blobs.iter().flat_map(|blob| references(&blob.labels)) {
        client.add_to_lease(lease.id(), &held).await?;
    }
    let mut left: Vec<(&Replacement, String)> = blobs.iter().map(|blob| (blob, String::new())).collect();
    for _ in 0..ROUNDS {
        forget(client, left.iter().map(|(blob, _)| &blob.digest), true).await?;
        let mut wrong = Vec::new();
        for (blob, _) in left {
            match put(client, &lease, store, blob, pace).await {
                Ok(Reading::Right { .. } | Reading::RightOnDisk { .. }) => {}
                Ok(Reading::Wrong { why }) => wrong.push((blob, why)),
                Ok(Reading::Absent) => wrong.push((blob, "another program deletes it".to_owned())),
                Err(error) if error.recovery() == Recovery::LeaseLost => return Err(error),
                Err(error) if is_unanswered(&error) => return Err(error),
                Err(error) => wrong.push((blob, chain(&error))),
            }
        }
        left = wrong;
        if left.is_empty() {
            break;
        }
    }
    Ok(left
        .into_iter()
        .map(|(blob, why)| (blob.digest.clone(), why))
        .collect())
}

/// Gives back the lease of [`replace`], of this run or of a killed run. Only blobs that are in
/// their place need no lease.
///
/// # Errors
///
/// Returns the client's error, unchanged, after a second attempt.
pub async fn end(client: &Client) -> Result<(), Error> {
    lease::give_back(client, LEASE).await
}

/// Writes a blob with its labels, and reads it back from the disk.
async fn put(
    client: &Client,
    lease: &Lease,
    store: Option<&Path>,
    blob: &Replacement,
    pace: &Arc<Pace>,
) -> Result<Reading, Error> {
    let Replacement { digest, labels, blob } = blob;
    let spec = BlobSpec::new(digest.clone(), blob.size()).with_labels(labels.clone());
    let (source, _wanted) = paced(Arc::new(FromBundle(blob.clone())), pace);
    client.write_blob(lease.id(), &spec, source).await?;
    restore_labels(client, digest, labels).await?;
    if let Some(store) = store {
        // containerd before 2.2 does not sync. A page that is not on the disk yet says nothing.
        let _ = File::open(blob_file(store, digest)).map(|file| file.sync_data());
    }
    read(client, digest, store, pace).await
}

/// Sets the labels that a blob had and lacks now. Labels that it has meanwhile stay. Returns true
/// if containerd has the blob.
///
/// # Errors
///
/// Returns the client's error, unchanged.
pub async fn restore_labels(client: &Client, digest: &Digest, labels: &Labels) -> Result<bool, Error> {
    let Some(there) = client.blob(digest).await? else {
        return Ok(false);
    };
    let lacks = |key: &String| !there.labels.contains_key(key);
    let missing: Labels = labels
        .iter()
        .filter(|(key, _)| lacks(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if !missing.is_empty() {
        client.set_blob_labels(digest, &missing).await?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_wrong_bytes_and_a_failing_disk_speak_against_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "bytes").unwrap();
        let (digest, other) = (digest::sha256(b"bytes"), digest::sha256(b"others"));
        let pace = Arc::new(Pace::new(None));
        let right = from_disk(file.clone(), &digest, &pace).await;
        assert_eq!(right, Some(Reading::Right { bytes: 5 }));
        let wrong = from_disk(file.clone(), &other, &pace).await;
        assert!(matches!(wrong, Some(Reading::Wrong { .. })), "{wrong:?}");
        // The errors are ENOENT and ENOTDIR.
        for unreadable in [folder.path().join("absent"), file.join("below")] {
            assert_eq!(from_disk(unreadable, &digest, &pace).await, None);
        }
    }

    #[test]
    fn a_file_is_read_whole_past_the_page_cache_whatever_its_length() {
        let folder = tempfile::tempdir().unwrap();
        for length in [
            0,
            1,
            4095,
            4096,
            Direct::PIECE,
            Direct::PIECE + 1,
            3 * Direct::PIECE - 7,
        ] {
            let bytes: Vec<u8> = (0..251).cycle().take(length).collect();
            let path = folder.path().join("file");
            std::fs::write(&path, &bytes).unwrap();
            let mut read = Vec::new();
            OnDisk(path).open(0).unwrap().read_to_end(&mut read).unwrap();
            assert!(read == bytes, "{length}");
        }
    }
}
