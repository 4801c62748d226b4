//! Reads blobs in the order of the archive.

use std::collections::{HashSet, VecDeque};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::Digest;

use crate::archive::{Packed, Pass, Place, read_error};
use crate::bundle::Blob;
use crate::pipe::Rest;
use crate::{Error, Fault};

/// Most passes of a stream. A second pass is needed if blobs share bytes under two digests: sha256
/// and sha512.
const MOST_PASSES: u32 = 8;

/// Reads blobs of a bundle one by one: see [`Bundle::stream`](crate::Bundle::stream). Its calls
/// block.
pub struct BlobStream {
    path: PathBuf,
    /// The blobs that are left, in the order of the archive.
    queue: VecDeque<Queued>,
    packed: Option<Arc<Packed>>,
    pass: Option<Pass>,
    passes: u32,
    /// The rest of a pipe, and the blobs that it has to bring.
    rest: Option<(Rest, HashSet<Digest>)>,
}

struct Queued {
    digest: Digest,
    /// Offset in the archive. `None` if the blob is in memory.
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
            rest: None,
        };
        if stream.queue.iter().any(|queued| queued.offset.is_some()) {
            stream.begin_pass()?;
        }
        Ok(stream)
    }

    /// Makes a stream that ends with these blobs of a pipe.
    pub(crate) fn with_rest(mut self, rest: Rest, wanted: HashSet<Digest>) -> Self {
        self.rest = Some((rest, wanted));
        self
    }

    fn begin_pass(&mut self) -> Result<(), Fault> {
        let Some(packed) = &self.packed else {
            return Ok(());
        };
        self.passes += 1;
        if self.passes > MOST_PASSES {
            return Err(Fault::Limit {
                what: "passes over a compressed bundle, whose blobs repeat the same bytes".to_owned(),
                limit: u64::from(MOST_PASSES),
                set: None,
            });
        }
        self.pass = Some(Pass::new(packed).map_err(read_error)?);
        Ok(())
    }

    /// Advances to the next blob, and skips the rest of the blob before and the bytes between them.
    /// Returns `None` at the end.
    ///
    /// # Errors
    ///
    /// Returns an error if the file has changed, or cannot be read or decompressed. The stream is
    /// unusable after an error.
    pub fn next_blob(&mut self) -> Result<Option<StreamedBlob<'_>>, Error> {
        let path = self.path.clone();
        let Some(queued) = self.queue.pop_front() else {
            let Some((rest, wanted)) = &mut self.rest else {
                return Ok(None);
            };
            let next = rest.next(wanted).map_err(|fault| fault.in_file(&path))?;
            return Ok(next.map(|(digest, size)| StreamedBlob::new(digest, size, Box::new(rest))));
        };
        let reader = self.open(&queued).map_err(|fault| fault.in_file(&path))?;
        Ok(Some(StreamedBlob::new(queued.digest, queued.blob.size(), reader)))
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

/// Reader of one blob's bytes. The stream skips the bytes that the caller does not read.
pub struct StreamedBlob<'s> {
    digest: Digest,
    size: u64,
    reader: Box<dyn Read + Send + 's>,
}

impl<'s> StreamedBlob<'s> {
    pub(crate) fn new(digest: Digest, size: u64, reader: Box<dyn Read + Send + 's>) -> Self {
        Self { digest, size, reader }
    }

    /// Returns the digest that the catalog gives the blob. The bytes are not verified.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Read for StreamedBlob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}
