//! The file of an archive, read at offsets, with or without a proof of its bytes.
//!
//! A signature or a checksum speaks of the bytes that were hashed. Another program can change the
//! file after that. A write through a shared mapping does not even change the file's times at once.
//! So a file that was hashed is read in chunks, and each read compares the chunk with the hash.
//!
//! The hash of the file itself is the table for that comparison. [`Hashed`] keeps the state of the
//! hash before each chunk. The state and the chunk must lead to the next state. Other bytes that do
//! so would be a collision of sha256. So the first pass hashes every byte only once.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use basics::digest;
use oci_spec::image::Digest;
use sha2::{Digest as _, Sha256};

use crate::{Fault, Identity};

/// Most chunks of a file, as long as [`LARGEST_CHUNK`] allows. The states of their hashes take less
/// than a mebibyte.
const MOST_CHUNKS: u64 = 8192;

/// Smallest and largest chunk in bytes. A read of one header costs the hash of its chunk, and one
/// chunk is in memory. Only files of more than 512 GiB have more than [`MOST_CHUNKS`].
const SMALLEST_CHUNK: u64 = 64 << 10;
const LARGEST_CHUNK: u64 = 64 << 20;

/// Bytes of one read while the file is hashed, if chunks are not larger: enough to keep a disk
/// busy.
const PIECE: u64 = 1 << 20;

/// An open file that was hashed from its beginning to its end.
///
/// [`Bundle::from_hashed`](crate::Bundle::from_hashed) makes a catalog of the very bytes that were
/// hashed.
#[derive(Debug)]
pub struct Hashed {
    file: Arc<File>,
    identity: Identity,
    digest: Digest,
    proof: Proof,
}

impl Hashed {
    /// Reads the whole file once, without moving its position. The call blocks, and ends early once
    /// `is_cancelled` is true.
    ///
    /// The value takes less than a mebibyte of memory, unless the file has more than 512 GiB.
    ///
    /// # Errors
    ///
    /// Returns [`Fault::Changed`] if another program wrote to the file meanwhile. Returns
    /// [`Fault::Io`] if the file cannot be read, or if the call was cancelled.
    pub fn of(file: File, is_cancelled: &AtomicBool) -> Result<Self, Fault> {
        let chunk = chunk_for(identity_of(&file)?.size);
        Self::in_chunks(file, chunk, is_cancelled)
    }

    /// Reads the file in chunks of this size, a power of two.
    pub(crate) fn in_chunks(file: File, chunk: u64, is_cancelled: &AtomicBool) -> Result<Self, Fault> {
        let identity = identity_of(&file)?;
        let mut proof = Proof {
            chunk,
            length: 0,
            before: Vec::new(),
            whole: [0; 32],
            checked: Mutex::default(),
        };
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; size(chunk.max(PIECE))];
        loop {
            if is_cancelled.load(Ordering::Relaxed) {
                return Err(Fault::io("hash the file")(io::Error::other("it was cancelled")));
            }
            let n = fill_at(&file, &mut buffer, proof.length).map_err(Fault::io("read the file"))?;
            for chunk in buffer[..n].chunks(size(chunk)) {
                proof.before.push(hasher.clone());
                hasher.update(chunk);
            }
            proof.length += n as u64;
            if n < buffer.len() {
                break;
            }
        }
        if identity_of(&file)? != identity || proof.length != identity.size {
            return Err(Fault::Changed);
        }
        proof.whole = hasher.finalize().into();
        Ok(Self {
            file: Arc::new(file),
            identity,
            digest: digest::of_sha256(&proof.whole),
            proof,
        })
    }

    /// Returns the sha256 of the file.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Returns the identity of the file, which was the same before and after the pass.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns the file for reading, and the sha256 of its bytes.
    pub(crate) fn into_file(self) -> (ArchiveFile, Digest) {
        let file = ArchiveFile {
            file: self.file,
            proof: Some(Arc::new(self.proof)),
        };
        (file, self.digest)
    }
}

/// The file of an archive. It is cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ArchiveFile {
    file: Arc<File>,
    /// The hash that every byte must fit. `None` if nothing speaks of the bytes.
    proof: Option<Arc<Proof>>,
}

impl ArchiveFile {
    /// Takes a file whose bytes were not hashed.
    pub(crate) fn new(file: File) -> Self {
        Self {
            file: Arc::new(file),
            proof: None,
        }
    }

    /// Returns the same file without the proof, for blobs. A blob is bound by its own digest.
    pub(crate) fn without_proof(&self) -> Self {
        Self {
            file: Arc::clone(&self.file),
            proof: None,
        }
    }

    /// Returns the open file itself, which no proof guards.
    pub(crate) fn raw(&self) -> &Arc<File> {
        &self.file
    }

    /// Reads some bytes at an offset. Returns 0 at the end. The error is [`Fault::Changed`] if the
    /// bytes are not those that were hashed.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.proof {
            None => read_some_at(&self.file, buffer, offset),
            Some(proof) => proof.read_at(&self.file, buffer, offset),
        }
    }

    /// Fills a buffer. The error is [`io::ErrorKind::UnexpectedEof`] if the file ends before.
    pub(crate) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let filled = fill_with(buffer, offset, |buffer, offset| self.read_at(buffer, offset))?;
        match filled == buffer.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// The states of a file's hash, by which a chunk is compared with the bytes that were hashed.
#[derive(Debug)]
struct Proof {
    /// Bytes of a chunk. The last chunk may be shorter.
    chunk: u64,
    /// Bytes of the file.
    length: u64,
    /// State of the hash before each chunk.
    before: Vec<Sha256>,
    /// sha256 of the file.
    whole: [u8; 32],
    /// The chunk that was read last. Headers and documents lie side by side.
    checked: Mutex<Checked>,
}

/// A chunk with the right bytes.
#[derive(Debug, Default)]
struct Checked {
    index: Option<usize>,
    bytes: Vec<u8>,
}

impl Proof {
    fn read_at(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if offset >= self.length {
            return Ok(0);
        }
        let index = size(offset / self.chunk);
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if checked.index != Some(index) {
            checked.index = None;
            self.check(file, index, &mut checked.bytes)?;
            checked.index = Some(index);
        }
        let bytes = &checked.bytes[size(offset % self.chunk)..];
        let n = bytes.len().min(buffer.len());
        buffer[..n].copy_from_slice(&bytes[..n]);
        Ok(n)
    }

    /// Reads a chunk and compares it with the bytes that were hashed.
    fn check(&self, file: &File, index: usize, bytes: &mut Vec<u8>) -> io::Result<()> {
        let offset = index as u64 * self.chunk;
        bytes.resize(size(self.chunk.min(self.length - offset)), 0);
        let n = fill_at(file, bytes, offset)?;
        let found = self.before[index].clone().chain_update(&bytes[..n]).finalize();
        let expected = match self.before.get(index + 1) {
            Some(next) => next.clone().finalize(),
            None => self.whole.into(),
        };
        match n == bytes.len() && found == expected {
            true => Ok(()),
            false => Err(Fault::Changed.into()),
        }
    }
}

/// Returns the bytes of a chunk for a file of this length.
fn chunk_for(length: u64) -> u64 {
    let chunk = length.div_ceil(MOST_CHUNKS).next_power_of_two();
    chunk.clamp(SMALLEST_CHUNK, LARGEST_CHUNK)
}

fn identity_of(file: &File) -> Result<Identity, Fault> {
    let metadata = file.metadata().map_err(Fault::io("stat the file"))?;
    Ok(Identity::of(&metadata))
}

/// Returns a number of bytes, or of chunks, that fits into memory.
fn size(n: u64) -> usize {
    usize::try_from(n).expect("a chunk and the number of chunks fit into memory")
}

/// Fills a buffer. Fewer bytes mean the end.
fn fill_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    fill_with(buffer, offset, |buffer, offset| {
        read_some_at(file, buffer, offset)
    })
}

fn fill_with(
    buffer: &mut [u8],
    offset: u64,
    read_at: impl Fn(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn read_some_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    #[cfg(test)]
    tests::before_a_read();
    file.read_at(buffer, offset)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io::Write as _;
    use std::path::Path;

    use rustix::fs::MemfdFlags;

    use super::*;
    use crate::archive::{SeekTable, ballast};
    use crate::fixtures::{Image, Layer, Layout, compress, digest_of};
    use crate::{Bundle, Catalog, Compression, Error, Limits};

    /// Chunks so small that a small bundle has many.
    const CHUNK: u64 = 512;

    thread_local! {
        /// A writer that runs before each read of this thread's files.
        static WRITER: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
    }

    pub(super) fn before_a_read() {
        WRITER.with_borrow_mut(|writer| {
            if let Some(write) = writer {
                write();
            }
        });
    }

    fn hashed(file: File, chunk: u64) -> Hashed {
        Hashed::in_chunks(file, chunk, &AtomicBool::new(false)).unwrap()
    }

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn a_file_of_any_length_has_its_sha256_and_reads_back() {
        let bytes: Vec<u8> = (0..(3_u32 << 20) + 7)
            .map(|n| n.to_le_bytes()[n as usize % 3])
            .collect();
        for length in [
            0,
            1,
            63,
            511,
            512,
            513,
            1024,
            (1 << 20) - 1,
            1 << 20,
            (1 << 20) + 1,
            bytes.len(),
        ] {
            let bytes = &bytes[..length];
            let hashed = hashed(file_of(bytes), CHUNK);
            assert_eq!(hashed.digest(), &digest_of(bytes), "{length}");
            let (file, digest) = hashed.into_file();
            assert_eq!(digest, digest_of(bytes));
            let mut read = vec![0; length];
            file.read_exact_at(&mut read, 0).unwrap();
            assert!(read == bytes, "{length}");
            for offset in [length / 3, length.saturating_sub(1), length, length + 1] {
                let mut some = [0; 700];
                let n = file.read_at(&mut some, offset as u64).unwrap();
                let expected = bytes.get(offset..).unwrap_or_default();
                assert_eq!(n == 0, expected.is_empty(), "{offset} of {length}");
                assert_eq!(some[..n], expected[..n]);
            }
            let past = file.read_exact_at(&mut [0; 2], (length as u64).saturating_sub(1));
            assert_eq!(past.unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{length}");
        }
    }

    #[test]
    fn a_changed_byte_is_not_read_and_the_other_chunks_are() {
        let bytes = vec![7; 2000];
        let length = bytes.len() as u64;
        for at in [0, 511, 512, 1535, 1536, 1999] {
            let file = file_of(&bytes);
            let writer = file.try_clone().unwrap();
            let (file, _) = hashed(file, CHUNK).into_file();
            writer.write_all_at(&[8], at).unwrap();
            for start in (0..length).step_by(100) {
                let read = file.read_at(&mut [0; 1], start);
                let is_in_it = start / CHUNK == at / CHUNK;
                assert_eq!(read.is_err(), is_in_it, "{start}, changed at {at}");
                if let Err(error) = read {
                    assert!(matches!(error.downcast::<Fault>(), Ok(Fault::Changed)));
                }
            }
            // A longer file has no more bytes than those that were hashed.
            writer.set_len(5000).unwrap();
            assert_eq!(file.read_at(&mut [0; 1], length).unwrap(), 0);
            writer.set_len(100).unwrap();
            assert!(
                file.read_at(&mut [0; 1], 600).is_err(),
                "cut off, changed at {at}"
            );
        }
    }

    #[test]
    fn chunks_grow_with_the_file_so_that_the_states_stay_small() {
        assert!(MOST_CHUNKS * size_of::<Sha256>() as u64 <= 1 << 20);
        for (length, chunk) in [(0, 64 << 10), (1 << 30, 128 << 10), ((30 << 30) + 1, 4 << 20)] {
            let file = tempfile::tempfile().unwrap();
            file.set_len(length).unwrap();
            // The pass over the holes takes long, so it is cancelled.
            let cancelled = AtomicBool::new(length > 0);
            match Hashed::of(file, &cancelled) {
                Ok(hashed) => assert_eq!((hashed.proof.chunk, length), (chunk, 0)),
                Err(Fault::Io { source, .. }) => assert!(source.to_string().contains("cancelled")),
                Err(fault) => panic!("{fault}"),
            }
            assert_eq!(chunk_for(length), chunk);
            assert!(length.div_ceil(chunk) <= MOST_CHUNKS);
        }
        assert_eq!(chunk_for(u64::MAX), LARGEST_CHUNK);
    }

    /// A file in memory with a shared mapping. A write through the mapping changes none of the
    /// file's times.
    struct Shared {
        file: File,
        mapping: Arc<Mutex<memmap2::MmapMut>>,
    }

    impl Shared {
        fn new(bytes: &[u8]) -> Self {
            let file = File::from(rustix::fs::memfd_create("bundle", MemfdFlags::CLOEXEC).unwrap());
            file.set_len(bytes.len() as u64).unwrap();
            // SAFETY: the mapping covers the file, which keeps its length. Other code reads the
            // file with pread(2) only.
            #[expect(unsafe_code, reason = "only a mapping writes without a trace in the times")]
            let mapping = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
            let mapping = Arc::new(Mutex::new(mapping));
            let shared = Self { file, mapping };
            shared.write(bytes);
            shared
        }

        fn write(&self, bytes: &[u8]) {
            self.mapping.lock().unwrap().copy_from_slice(bytes);
        }

        fn clone_file(&self) -> File {
            self.file.try_clone().unwrap()
        }
    }

    /// A bundle and the same bundle with a change of the same length.
    struct Case {
        what: String,
        original: Vec<u8>,
        changed: Vec<u8>,
    }

    /// Plain archives with a change of each kind: the list of images, a document, a header, a
    /// layer.
    fn plain_cases() -> Vec<Case> {
        let packed = |text: &[u8]| {
            let mut gzip = Vec::new();
            compress(Compression::Gzip, &mut gzip, |target| target.write_all(text)).unwrap();
            gzip
        };
        let layer = Layer::new(b"a layer with text".to_vec());
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        let image = Image::new("docker.io/library/a:1")
            .platform("linux/amd64")
            .with_layer(Layer::compressed(
                &layer,
                packed(b"a layer with text"),
                media_type,
            ))
            .layer(b"plain text");
        let mut cases = Vec::new();
        for layout in [Layout::new(), Layout::docker(), Layout::hybrid()] {
            let archive = layout.image(image.clone()).build();
            let original = archive.to_bytes();
            let format = crate::Bundle::from_file(file_of(&original), Path::new("a"), &Limits::default());
            let format = format.unwrap().catalog().format;
            let config = archive.name_of(&archive.images[0].manifests[0].config);
            let changes: [(&str, &[u8], &[u8]); 4] = [
                ("the name in the list", b"library/a:1", b"library/b:1"),
                ("a document", b"\"amd64\"", b"\"arm64\""),
                ("a header", config.as_bytes(), b"x"),
                (
                    "a layer",
                    &packed(b"a layer with text"),
                    &packed(b"a layer of a foe!"),
                ),
            ];
            for (what, from, to) in changes {
                let mut changed = original.clone();
                let places: Vec<usize> = (0..original.len())
                    .filter(|at| original[*at..].starts_with(from))
                    .collect();
                assert!(!places.is_empty(), "{format}: {what}");
                for at in places {
                    // Documents quote the name of a file too. Only headers begin with it.
                    let is_header = what == "a header";
                    if is_header && !at.is_multiple_of(512) {
                        continue;
                    }
                    changed[at..at + to.len()].copy_from_slice(to);
                    if is_header {
                        let header = &mut changed[at..at + 512];
                        header[148..156].fill(b' ');
                        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
                        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                    }
                }
                assert_ne!(changed, original, "{format}: {what}");
                cases.push(Case {
                    what: format!("{what} of {format}"),
                    original: original.clone(),
                    changed,
                });
            }
        }
        cases
    }

    /// Compresses both archives of a case to files of the same length.
    fn compressed(case: &Case, codec: Compression) -> Case {
        let of = |plain: &[u8]| {
            let mut packed = Vec::new();
            compress(codec, &mut packed, |target| target.write_all(plain)).unwrap();
            packed
        };
        let (mut original, mut changed) = (of(&case.original), of(&case.changed));
        // Zeros after the last frame are padding.
        let length = original.len().max(changed.len());
        original.resize(length, 0);
        changed.resize(length, 0);
        Case {
            what: format!("{}, {codec}", case.what),
            original,
            changed,
        }
    }

    /// Compresses both archives to frames with a table. Each frame has its place in both files.
    fn framed(case: &Case) -> Case {
        const PLAIN: usize = 2048;
        const SLOT: usize = PLAIN + 64;
        let of = |plain: &[u8]| {
            let (mut file, mut table) = (Vec::new(), SeekTable::default());
            for piece in plain.chunks(PLAIN) {
                let frame = zstd::bulk::compress(piece, 1).unwrap();
                let fill = ballast(u32::try_from(SLOT - frame.len() - 8).unwrap());
                table.push(frame.len() as u64, piece.len() as u64).unwrap();
                table.push(fill.len() as u64, 0).unwrap();
                file.extend([frame, fill].concat());
            }
            file.extend(table.to_frame());
            file
        };
        Case {
            what: format!("{}, zstd with a table", case.what),
            original: of(&case.original),
            changed: of(&case.changed),
        }
    }

    fn cases() -> Vec<Case> {
        let mut cases = plain_cases();
        let packed: Vec<Case> = cases
            .iter()
            .flat_map(|case| {
                let [gzip, zstd] =
                    [Compression::Gzip, Compression::Zstd].map(|codec| compressed(case, codec));
                [gzip, zstd, framed(case)]
            })
            .collect();
        cases.extend(packed);
        cases
    }

    /// Opens a bundle while a writer changes it before read `step`. The writer takes the change
    /// back before read `back`. Returns the number of reads, too.
    fn opened(
        case: &Case,
        shared: &Shared,
        (step, back): (u32, u32),
        open: impl FnOnce() -> Result<Bundle, Error>,
    ) -> (Result<Catalog, Fault>, u32) {
        shared.write(&case.original);
        let reads = Arc::new(Mutex::new(0));
        let (count, mapping) = (Arc::clone(&reads), Arc::clone(&shared.mapping));
        let (original, changed) = (case.original.clone(), case.changed.clone());
        let writer = move || {
            let mut count = count.lock().unwrap();
            if *count == step {
                mapping.lock().unwrap().copy_from_slice(&changed);
            }
            if *count == back {
                mapping.lock().unwrap().copy_from_slice(&original);
            }
            *count += 1;
        };
        WRITER.set(Some(Box::new(writer)));
        let bundle = open();
        WRITER.set(None);
        let catalog = bundle.map(|bundle| bundle.catalog().clone());
        let reads = *reads.lock().unwrap();
        (catalog.map_err(|error| error.fault), reads)
    }

    #[test]
    fn a_writer_through_a_mapping_never_changes_a_proven_catalog() {
        let (path, limits) = (Path::new("a.tar"), Limits::default());
        let is_cancelled = AtomicBool::new(false);
        for case in cases() {
            let shared = Shared::new(&case.original);
            let expected = Bundle::from_file(shared.clone_file(), path, &limits).unwrap();
            let expected = expected.catalog();
            let times = identity_of(&shared.file).unwrap();
            let (mut step, mut refused, mut deceived) = (0, 0, 0);
            loop {
                let mut reads = 0;
                // The same writer deceives a reader without the proof.
                let (plain, _) = opened(&case, &shared, (step, u32::MAX), || {
                    Bundle::from_file(shared.clone_file(), path, &limits)
                });
                deceived += u32::from(plain.is_ok_and(|catalog| catalog != *expected));
                for back in [step + 1, u32::MAX] {
                    shared.write(&case.original);
                    let hashed = Hashed::in_chunks(shared.clone_file(), 64, &is_cancelled).unwrap();
                    assert_eq!(hashed.digest(), &digest_of(&case.original));
                    let (proven, count) = opened(&case, &shared, (step, back), || {
                        Bundle::from_hashed(hashed, path, &limits)
                    });
                    match proven {
                        Ok(catalog) => assert_eq!(&catalog, expected, "{} at read {step}", case.what),
                        Err(Fault::Changed) => refused += 1,
                        Err(fault) => panic!("{} at read {step}: {fault}", case.what),
                    }
                    reads = count;
                }
                step += 1;
                if step > reads {
                    break;
                }
            }
            assert!(step > 3, "{}: {step} reads", case.what);
            // Only a reader of every byte, or of a Docker archive, needs the bytes of a layer.
            let reads_all = [", gzip", ", zstd"]
                .iter()
                .any(|codec| case.what.ends_with(codec));
            let is_unread = case.what.starts_with("a layer of oci-layout") && !reads_all;
            assert!(is_unread || refused > 0 && deceived > 0, "{}", case.what);
            assert_eq!(
                identity_of(&shared.file).unwrap(),
                times,
                "the writer left no trace"
            );
        }
    }
}
