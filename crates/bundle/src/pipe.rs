//! A bundle that comes through a pipe: read once, from its beginning to its end, and never whole in
//! memory.

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use basics::digest;
use oci_spec::image::Digest;

use crate::archive::{Passage, Truncation};
use crate::image::{self, Places, blob_name};
use crate::stream::StreamedBlob;
use crate::{Bundle, Catalog, Ending, Error, Fault, Limits};

/// The documents that list the images of a bundle.
const LISTS: [&str; 3] = ["oci-layout", "index.json", "manifest.json"];

/// Bytes of a header, the least that is missing in an archive without a mark at its end.
const HEADER: u64 = 512;

/// A bundle on its way through a pipe, after its first entries.
///
/// The first entries of most bundles are documents. They decide how the rest can be read:
///
/// - The documents of all images came first. Then there is a [catalog](Pipe::catalog) at once, and
///   [`Pipe::into_bundle`] makes a bundle whose blobs are still to come.
/// - Blobs named by their digests came first. Then [`Pipe::next_blob`] hands them over one by one,
///   and [`Pipe::into_bundle`] makes the bundle at the end.
/// - Other entries came first. Only a file helps: [`Pipe::into_stream`] gives all its bytes.
#[derive(Debug)]
pub struct Pipe {
    path: PathBuf,
    limits: Limits,
    passage: Passage,
    head: Option<(Catalog, Places, HashSet<Digest>)>,
    /// True while the payload of the passage was not handed over yet.
    is_fresh: bool,
    /// Number of blobs that were handed over.
    handed: usize,
}

impl Pipe {
    /// Reads the first entries of a stream, up to an entry that is no document. The call blocks as
    /// the stream does. `path` is the name in messages.
    ///
    /// # Errors
    ///
    /// Returns an error for a stream that is no bundle, or that ends or fails within these entries.
    pub fn open(source: impl Read + Send + 'static, path: &Path, limits: &Limits) -> Result<Pipe, Error> {
        let read = || {
            let mut passage = Passage::begin(Box::new(source), limits)?;
            let has_more = passage.advance()?;
            let codec = passage.compression;
            check_ending(passage.ending())?;
            let head = match passage.ending() {
                Some(Ending::Marker) => {
                    let (catalog, places) = image::read_piped(passage.archive(), codec, limits)?;
                    Some((catalog, places, HashSet::new()))
                }
                // Without a mark at the end, missing blobs mean a cut.
                Some(_) => match image::read_head(passage.archive(), codec, limits)? {
                    None => return Err(cut_at(passage.length())),
                    head => head,
                },
                None => image::read_head(passage.archive(), codec, limits)?,
            };
            Ok(Pipe {
                path: path.to_owned(),
                limits: limits.clone(),
                passage,
                head,
                is_fresh: has_more,
                handed: 0,
            })
        };
        read().map_err(|fault: Fault| fault.in_file(path))
    }

    /// Returns the name in messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the catalog, if the documents of all images came first. Blobs that are still to come
    /// count as present.
    pub fn catalog(&self) -> Option<&Catalog> {
        self.head.as_ref().map(|(catalog, ..)| catalog)
    }

    /// Returns true if the first blob is named by its digest, as in an image layout.
    pub fn has_named_blobs(&self) -> bool {
        self.passage
            .payload()
            .is_some_and(|payload| digest_in(payload.name.as_deref()).is_some())
    }

    /// Goes to the next blob that is named by its digest, and skips the rest of the blob before.
    /// Documents are kept in memory and are not handed over. Returns `None` at the end of the
    /// stream.
    ///
    /// # Errors
    ///
    /// Returns an error if the stream fails, is damaged, or is cut off. Also if it has more blobs
    /// than a bundle can name ([`Limits::descriptors`]).
    pub fn next_blob(&mut self) -> Result<Option<StreamedBlob<'_>>, Error> {
        match self.next_named() {
            Ok(Some((digest, size))) => {
                Ok(Some(StreamedBlob::new(digest, size, Box::new(&mut self.passage))))
            }
            Ok(None) => Ok(None),
            Err(fault) => Err(fault.in_file(&self.path)),
        }
    }

    fn next_named(&mut self) -> Result<Option<(Digest, u64)>, Fault> {
        self.passage.stop_recording();
        loop {
            if !std::mem::take(&mut self.is_fresh) && !self.passage.advance()? {
                check_ending(self.passage.ending())?;
                return Ok(None);
            }
            let payload = self.passage.payload();
            let named = payload.and_then(|payload| Some((digest_in(payload.name.as_deref())?, payload.size)));
            if named.is_some() {
                return self.count().map(|()| named);
            }
        }
    }

    /// Counts a blob. No bundle can name more blobs than descriptors.
    fn count(&mut self) -> Result<(), Fault> {
        let most = self.limits.descriptors;
        self.handed += 1;
        match self.handed > most {
            true => Err(Fault::Limit {
                what: "blobs before the list of images".to_owned(),
                limit: most as u64,
                set: Some(crate::limits::set("descriptors", most)),
            }),
            false => Ok(()),
        }
    }

    /// Makes the bundle. Its blobs are still to come if there is a [catalog](Pipe::catalog), and
    /// have gone by otherwise. Then the call reads the stream to its end.
    ///
    /// # Errors
    ///
    /// Fails like [`Bundle::open`], and if the stream fails, is damaged, or is cut off.
    pub fn into_bundle(mut self) -> Result<Bundle, Error> {
        let path = self.path.clone();
        if self.head.is_none() {
            while self.next_blob()?.is_some() {}
        }
        let read = || {
            let (catalog, places, absent) = match self.head.take() {
                Some(head) => head,
                None => {
                    let codec = self.passage.compression;
                    let (catalog, places) = image::read_piped(self.passage.archive(), codec, &self.limits)?;
                    check_whole(&catalog, self.passage.length())?;
                    (catalog, places, HashSet::new())
                }
            };
            self.passage.settle();
            let missing = Arc::default();
            let rest = Rest {
                passage: self.passage,
                is_fresh: self.is_fresh,
                absent,
                came: HashSet::new(),
                missing: Arc::clone(&missing),
            };
            let rest = Arc::new(Remains {
                rest: Mutex::new(Some(rest)),
                missing,
            });
            Ok(Bundle::of_pipe(path.clone(), catalog, places, rest))
        };
        read().map_err(|fault: Fault| fault.in_file(&path))
    }

    /// Returns the stream from its first byte on. Nothing of it may have been handed over.
    ///
    /// # Errors
    ///
    /// Returns [`Fault::Piped`] if the documents at the beginning are too large to be kept.
    pub fn into_stream(self) -> Result<impl Read + Send, Error> {
        let path = self.path;
        let too_long = || Fault::Piped("its first documents take more than 16 MiB".to_owned());
        self.passage.rewound().ok_or_else(|| too_long().in_file(&path))
    }
}

/// Makes the fault of a stream that was cut off between two entries.
fn cut_at(offset: u64) -> Fault {
    Fault::Truncated(Truncation {
        offset,
        entry: None,
        expected: HEADER,
        present: 0,
    })
}

/// Returns an error if a stream was cut off.
fn check_ending(ending: Option<&Ending>) -> Result<(), Fault> {
    match ending {
        Some(Ending::Truncated(truncation)) => Err(Fault::Truncated(truncation.clone())),
        Some(Ending::Marker | Ending::NoMarker) | None => Ok(()),
    }
}

/// Returns an error if a stream was cut off. Without the mark at its end, missing blobs mean a cut.
pub(crate) fn check_whole(catalog: &Catalog, length: u64) -> Result<(), Fault> {
    check_ending(Some(&catalog.ending))?;
    match catalog.ending == Ending::NoMarker && catalog.lacks_blobs() {
        true => Err(cut_at(length)),
        false => Ok(()),
    }
}

/// Returns the digest in the name of a layout's blob.
fn digest_in(name: Option<&[u8]>) -> Option<Digest> {
    let name = std::str::from_utf8(name?).ok()?;
    let (algorithm, hex) = name.strip_prefix("blobs/")?.split_once('/')?;
    let digest = digest::parse(&format!("{algorithm}:{hex}")).ok()?;
    (blob_name(&digest) == name).then_some(digest)
}

/// The rest of a stream whose catalog is made. It can be read once.
#[derive(Debug)]
pub(crate) struct Rest {
    passage: Passage,
    is_fresh: bool,
    /// Documents that count as missing.
    absent: HashSet<Digest>,
    came: HashSet<Digest>,
    missing: Missing,
}

/// The wanted blobs that the stream did not bring. They are known at its end.
type Missing = Arc<Mutex<HashSet<Digest>>>;

impl Rest {
    /// Goes to the next of these blobs. Returns `None` at the end of the stream.
    pub(crate) fn next(&mut self, wanted: &HashSet<Digest>) -> Result<Option<(Digest, u64)>, Fault> {
        loop {
            if !std::mem::take(&mut self.is_fresh) && !self.passage.advance()? {
                return self.end(wanted).map(|()| None);
            }
            let Some(payload) = self.passage.payload() else {
                continue;
            };
            let name = payload.name.as_deref();
            let list = LISTS.iter().find(|list| name == Some(list.as_bytes()));
            let digest = digest_in(name);
            let late = match (list, &digest) {
                (Some(list), _) => Some(format!("document {list}")),
                (None, Some(digest)) if self.absent.contains(digest) => Some(format!("blob {digest}")),
                _ => None,
            };
            if let Some(late) = late {
                let reason = format!("{late} comes after the first layer");
                return Err(Fault::Piped(reason));
            }
            if let Some(digest) = digest.filter(|digest| wanted.contains(digest)) {
                let size = payload.size;
                // Of two entries with one name, the first has been handed over.
                if self.came.insert(digest.clone()) {
                    return Ok(Some((digest, size)));
                }
            }
        }
    }

    /// Checks the end of the stream. Without the mark at its end, missing blobs mean a cut.
    fn end(&self, wanted: &HashSet<Digest>) -> Result<(), Fault> {
        check_ending(self.passage.ending())?;
        let is_marked = self.passage.ending() == Some(&Ending::Marker);
        let missing: HashSet<_> = wanted.difference(&self.came).cloned().collect();
        if !missing.is_empty() && !is_marked {
            return Err(cut_at(self.passage.length()));
        }
        *self.missing.lock().unwrap_or_else(PoisonError::into_inner) = missing;
        Ok(())
    }
}

impl Read for Rest {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.passage.read(buffer)
    }
}

/// The rest of a stream, until a reader takes it.
#[derive(Debug)]
pub(crate) struct Remains {
    rest: Mutex<Option<Rest>>,
    missing: Missing,
}

impl Remains {
    /// Takes the rest of the stream. It can be taken once.
    pub(crate) fn take(&self) -> Result<Rest, Fault> {
        let rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner).take();
        rest.ok_or_else(|| Fault::Piped("its blobs have to be read a second time".to_owned()))
    }

    /// Returns true if the stream has ended without a blob that was wanted of it.
    pub(crate) fn lacks(&self, digest: &Digest) -> bool {
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing.contains(digest)
    }
}
