//! A source of blobs for a new bundle: the blobs of other bundles.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use oci_spec::image::Digest;

use super::BlobFeed;
use crate::archive::Extent;
use crate::bundle::Blob;
use crate::{BlobRef, Bundle};

/// Provides the blobs of other bundles. It is cheap to clone.
///
/// Some bundles can only be read in order ([`Bundle::is_sequential`]). Their blobs are extracted in
/// one pass, into an unnamed file that lasts until this value is dropped.
#[derive(Clone, Debug)]
pub struct FromBundles {
    sources: Arc<HashMap<Digest, Source>>,
    read: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Source {
    InBundle(Blob),
    Spooled { file: Arc<File>, offset: u64, size: u64 },
}

impl FromBundles {
    /// Finds blobs in bundles. A blob comes from the first bundle that has it, but bundles with
    /// random access go first. A blob that no bundle has is an error when it is requested.
    /// Extracted blobs need room in `folder`. The call blocks.
    ///
    /// # Errors
    ///
    /// Returns an error if a bundle cannot be read, or if extracted blobs cannot be written.
    pub fn new(bundles: &[Bundle], wanted: &[BlobRef], folder: &Path) -> io::Result<Self> {
        let mut sources = HashMap::new();
        let mut left: HashSet<Digest> = wanted.iter().map(|blob| blob.digest.clone()).collect();
        for bundle in bundles.iter().filter(|bundle| !bundle.is_sequential()) {
            left.retain(|digest| match bundle.blob(digest) {
                Some(blob) => {
                    sources.insert(digest.clone(), Source::InBundle(blob));
                    false
                }
                None => true,
            });
        }
        for bundle in bundles.iter().filter(|bundle| bundle.is_sequential()) {
            let here: HashSet<Digest> = left
                .iter()
                .filter(|digest| bundle.blob(digest).is_some())
                .cloned()
                .collect();
            if !here.is_empty() {
                left.retain(|digest| !here.contains(digest));
                sources.extend(spool(bundle, &here, folder)?);
            }
        }
        Ok(Self {
            sources: Arc::new(sources),
            read: Arc::default(),
        })
    }

    /// Returns the number of bytes that this value and its clones have read so far.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

/// Extracts blobs from a bundle in one pass.
fn spool(bundle: &Bundle, wanted: &HashSet<Digest>, folder: &Path) -> io::Result<Vec<(Digest, Source)>> {
    let file = Arc::new(tempfile::tempfile_in(folder)?);
    let mut target = BufWriter::with_capacity(256 << 10, &*file);
    let mut spooled = Vec::new();
    let mut offset = 0;
    let mut stream = bundle.stream(wanted).map_err(io::Error::other)?;
    while let Some(mut blob) = stream.next_blob().map_err(io::Error::other)? {
        let digest = blob.digest().clone();
        let size = io::copy(&mut blob, &mut target)?;
        let file = Arc::clone(&file);
        spooled.push((digest, Source::Spooled { file, offset, size }));
        offset += size;
    }
    target.flush()?;
    drop(target);
    Ok(spooled)
}

impl BlobFeed for FromBundles {
    fn open(&mut self, blob: &BlobRef) -> io::Result<Box<dyn Read + '_>> {
        let reader: Box<dyn Read> = match self.sources.get(&blob.digest) {
            None => {
                let absent = "it is in none of the bundles";
                return Err(io::Error::new(io::ErrorKind::NotFound, absent));
            }
            Some(Source::InBundle(blob)) => blob.open(0)?,
            Some(Source::Spooled { file, offset, size }) => {
                Box::new(Extent::new(Arc::clone(file), *offset, *size))
            }
        };
        Ok(Box::new(Counted {
            reader,
            read: &self.read,
        }))
    }
}

struct Counted<'f> {
    reader: Box<dyn Read>,
    read: &'f AtomicU64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}
