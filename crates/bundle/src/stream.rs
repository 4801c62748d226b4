//! Blobs in the order of the archive.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::Digest;

use crate::archive::{Packed, Pass, Place, read_error};
use crate::bundle::Blob;
use crate::{Error, Fault};

/// How often a stream begins again. That takes two digests of the same bytes: sha256 and sha512.
const MOST_PASSES: u32 = 8;

/// Blobs of a bundle, one after the other: see [`Bundle::stream`](crate::Bundle::stream). Blocking.
pub struct BlobStream {
    path: PathBuf,
    /// In the order in which they are handed out.
    queue: VecDeque<Queued>,
    packed: Option<Arc<Packed>>,
    pass: Option<Pass>,
    passes: u32,
}

struct Queued {
    digest: Digest,
    /// Where in the archive; none for what is in memory.
    offset: Option<u64>,
    blob: Blob,
}

impl BlobStream {
    pub(crate) fn new<'p>(
        path: &Path,
        blobs: impl Iterator<Item = (Digest, &'p Place, Blob)>,
        packed: Option<&Arc<Packed>>,
    ) -> Result<Self, Fault> {
        let mut queue: Vec<_> = blobs
            .map(|(digest, place, blob)| Queued {
                digest,
                offset: place.offset(),
                blob,
            })
            .collect();
        queue.sort_by_key(|queued| queued.offset);
        let mut stream = Self {
            path: path.to_owned(),
            queue: queue.into(),
            packed: packed.cloned(),
            pass: None,
            passes: 0,
        };
        if stream.queue.iter().any(|queued| queued.offset.is_some()) {
            stream.begin_pass()?;
        }
        Ok(stream)
    }

    fn begin_pass(&mut self) -> Result<(), Fault> {
        let Some(packed) = &self.packed else {
            return Ok(());
        };
        self.passes += 1;
        if self.passes > MOST_PASSES {
            return Err(Fault::Limit {
                what: "passes over a compressed bundle for blobs that are the same bytes".to_owned(),
                limit: u64::from(MOST_PASSES),
                set: None,
            });
        }
        self.pass = Some(Pass::new(packed).map_err(read_error)?);
        Ok(())
    }

    /// Goes to the next blob, passing over what is left of the one before and what lies between;
    /// none at the end.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or decompressed, or has changed. There is no going on after that.
    pub fn next_blob(&mut self) -> Result<Option<StreamedBlob<'_>>, Error> {
        let Some(queued) = self.queue.pop_front() else {
            return Ok(None);
        };
        let path = self.path.clone();
        let reader = self.open(&queued).map_err(|fault| fault.in_file(&path))?;
        Ok(Some(StreamedBlob {
            digest: queued.digest,
            size: queued.blob.size(),
            reader,
        }))
    }

    fn open(&mut self, queued: &Queued) -> Result<Box<dyn Read + Send + '_>, Fault> {
        let (Some(offset), Some(_)) = (queued.offset, &self.packed) else {
            return queued
                .blob
                .open(0)
                .map(|reader| reader as Box<dyn Read + Send>)
                .map_err(read_error);
        };
        if self.pass.as_ref().is_none_or(|pass| pass.position() > offset) {
            self.begin_pass()?;
        }
        let pass = self.pass.as_mut().expect("a pass was begun");
        pass.go_to(offset).map_err(read_error)?;
        Ok(Box::new(pass.take(queued.blob.size())))
    }
}

/// A blob on its way: reads its bytes, of which any rest is passed over.
pub struct StreamedBlob<'s> {
    digest: Digest,
    size: u64,
    reader: Box<dyn Read + Send + 's>,
}

impl StreamedBlob<'_> {
    /// The digest that it should have; its bytes were not checked.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Read for StreamedBlob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}
