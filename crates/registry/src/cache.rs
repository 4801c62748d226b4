//! A local folder of blobs from earlier transfers.
//!
//! A blob is a file with its digest as the name, as in an OCI image layout. It gets that name after
//! its digest was verified. Each use verifies it again, since another program may have changed the
//! file.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;

use basics::digest::{self, Hasher};
use bundle::BlobRef;

use crate::Error;

/// A folder of blobs. Several programs may use it at the same time.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Opens a cache and creates its folder if necessary. Blocking.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Options`] if the folder cannot be created.
    pub fn open(folder: PathBuf) -> Result<Self, Error> {
        for algorithm in ["sha256", "sha512"] {
            let blobs = folder.join("blobs").join(algorithm);
            std::fs::create_dir_all(&blobs)
                .map_err(|error| Error::Options(format!("cache {}: {error}", folder.display())))?;
        }
        Ok(Self { folder })
    }

    fn path(&self, blob: &BlobRef) -> PathBuf {
        let algorithm = blob.digest.algorithm().to_string();
        self.folder
            .join("blobs")
            .join(algorithm)
            .join(blob.digest.digest())
    }

    /// Opens a blob if the cache has it and it is whole. A damaged blob is removed. Blocking: it
    /// reads the whole blob.
    pub(crate) fn find(&self, blob: &BlobRef) -> Option<File> {
        let path = self.path(blob);
        let mut file = File::open(&path).ok()?;
        let is_whole = file.metadata().is_ok_and(|metadata| metadata.len() == blob.size)
            && digest::of(&mut file, Hasher::of(&blob.digest)).is_ok_and(|found| found == blob.digest);
        if !is_whole {
            tracing::warn!(digest = %blob.digest, "a blob in the cache is damaged: fetching it again");
            let _ = std::fs::remove_file(&path);
            return None;
        }
        io::Seek::rewind(&mut file).ok()?;
        Some(file)
    }

    /// Reads a small blob if the cache has it and it is whole. Blocking.
    pub(crate) fn read(&self, blob: &BlobRef) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut file = self.find(blob)?.take(blob.size);
        file.read_to_end(&mut bytes).ok()?;
        digest::fits(&bytes, &blob.digest).then_some(bytes)
    }

    /// Stores a small blob whose digest was verified. Blocking.
    pub(crate) fn put(&self, blob: &BlobRef, bytes: &[u8]) -> io::Result<()> {
        let mut keeping = self.keep(blob)?;
        keeping.write(bytes)?;
        keeping.commit()
    }

    /// Starts to store a blob. Blocking.
    pub(crate) fn keep(&self, blob: &BlobRef) -> io::Result<Keeping> {
        let path = self.path(blob);
        let folder = path.parent().expect("a blob lies in a folder");
        let file = tempfile::Builder::new()
            .prefix(".")
            .suffix(".tmp")
            .tempfile_in(folder)?;
        Ok(Keeping { file, path })
    }
}

/// A blob on its way into the cache. If it is dropped before the commit, it leaves no file.
#[derive(Debug)]
pub(crate) struct Keeping {
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Keeping {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Gives a blob its final name. The caller has verified its digest.
    pub(crate) fn commit(self) -> io::Result<()> {
        self.file
            .persist(&self.path)
            .map(drop)
            .map_err(|error| error.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_blobs_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path().join("cache")).unwrap();
        let blob = BlobRef {
            digest: digest::sha256(b"bytes"),
            size: 5,
        };
        assert!(cache.find(&blob).is_none());
        let mut dropped = cache.keep(&blob).unwrap();
        dropped.write(b"byt").unwrap();
        drop(dropped);
        assert!(cache.find(&blob).is_none());
        let mut kept = cache.keep(&blob).unwrap();
        kept.write(b"bytes").unwrap();
        kept.commit().unwrap();
        let mut bytes = Vec::new();
        cache.find(&blob).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"bytes");
        for damage in [&b"bytez"[..], b"byte"] {
            std::fs::write(cache.path(&blob), damage).unwrap();
            assert!(cache.find(&blob).is_none());
            assert!(!cache.path(&blob).exists());
        }
    }
}
