//! Looks up the entries of an archive by name, with links resolved.
//!
//! A name in an archive never becomes a path of this machine. Names are cleaned as Go's
//! `path.Clean` does it, and looked up in the table. A name that leads out of the archive counts as
//! missing.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io::Read;
use std::sync::Arc;

use basics::foreign;
use oci_spec::image::Digest;

use super::decode::Decoder;
use super::entries::{Entries, Fingerprint, Item, LARGEST_OFFSET};
use super::file::ArchiveFile;
use super::folder::Folder;
use super::frames::{Allowance, Frames};
use super::packed::{Facts, Kept, Packed};
use super::place::{BlobsFolder, Found, Place};
use super::strangers::{self, Telltale};
use super::tar::{Entry, EntryKind, FileInput, Input, Step, StreamInput, Walk, read_error};
use crate::{Compression, Ending, Fault, Limits, Warning};
use basics::digest::{self, Hasher};

/// Most links that may lead from one to the next. Linux allows 40.
const LONGEST_CHAIN: usize = 40;

/// The reason why a file with holes is not read. Only a lookup by name gives this reason. An entry
/// that nothing needs is skipped, whatever its kind.
const SPARSE: &str = "stored as a sparse file, which airgapd does not read. Make the archive again without `tar \
                      --sparse` (`-S`) or with `bsdtar --no-read-sparse`, or save the images again";

/// Bytes of one read of a blob whose digest is computed.
const PIECE: usize = 256 << 10;

/// An archive whose headers have been read.
pub(crate) struct Archive {
    store: Store,
    /// Bytes of the archive.
    pub(crate) length: u64,
    entries: Entries,
    /// The way in which the archive ends.
    pub(crate) ending: Ending,
    /// Remarks about its headers.
    pub(crate) warnings: Vec<Warning>,
    /// A folder with an `index.json` or a `manifest.json`, escaped. Packing the folder itself is a
    /// frequent mistake.
    pub(crate) nested_in: Option<String>,
    /// An entry that is not part of an image and shows the kind of the archive. Its name is
    /// escaped.
    pub(crate) telltale: Option<(Telltale, String)>,
    /// True if there is an entry below `blobs/`.
    has_blobs: bool,
}

/// The source of the archive's bytes.
enum Store {
    /// A plain archive, read from its file.
    Plain(ArchiveFile),
    /// A compressed archive, with the results of its passes.
    Packed { packed: Arc<Packed>, kept: Kept },
    /// A compressed archive with a seek table, and the bytes that may still be decompressed.
    Framed(Arc<Frames>, Allowance),
    /// A folder, which is not an archive. Its entries are looked up when they are needed.
    Folder(Arc<Folder>),
    /// An archive from a pipe, as far as it was read.
    Piped { kept: Kept, outlook: Outlook },
}

/// The blobs that a pipe may still bring.
#[derive(Default)]
pub(crate) struct Outlook {
    /// True before the end of the archive.
    has_more: bool,
    /// Blobs that count as absent, although there is more to come.
    absent: HashSet<Digest>,
    /// Documents that are needed and were not seen.
    unseen: RefCell<HashSet<Digest>>,
}

/// Most bytes of the documents of a folder, which has no length of its own.
const MOST_OF_A_FOLDER: u64 = 1 << 30;

impl Archive {
    /// Reads all headers of a tar archive in a file.
    pub(crate) fn scan(file: &ArchiveFile, length: u64, limits: &Limits) -> Result<Self, Fault> {
        let mut archive = Self::new(Store::Plain(file.clone()));
        let mut walk = Walk::new(FileInput::new(file, length), limits);
        archive.add_all(&mut walk, |_, _, entry| Ok(entry.present))?;
        archive.length = length;
        Ok(archive)
    }

    /// Reads all headers of a compressed tar archive that has a seek table.
    pub(crate) fn scan_frames(frames: &Arc<Frames>, limits: &Limits) -> Result<Self, Fault> {
        let allowance = frames.allowance();
        let mut walk = Walk::new(frames.reader_at(0).within(&allowance), limits);
        let mut archive = Self::new(Store::Framed(Arc::clone(frames), allowance));
        archive.add_all(&mut walk, |_, _, entry| Ok(entry.present))?;
        archive.length = frames.length;
        Ok(archive)
    }

    /// Reads all bytes of a compressed tar archive.
    pub(crate) fn unpack(packed: &Arc<Packed>, limits: &Limits) -> Result<Self, Fault> {
        let mut archive = Self::new(Store::Packed {
            packed: Arc::clone(packed),
            kept: Kept::default(),
        });
        let mut walk = Walk::new(StreamInput::new(packed.decoder()?), limits);
        archive.add_all(&mut walk, |archive, walk, entry| match &mut archive.store {
            Store::Packed { kept, .. } => kept.take(entry, walk, limits),
            Store::Plain(_) | Store::Framed(..) | Store::Folder(_) | Store::Piped { .. } => {
                unreachable!("this archive is compressed and has no table")
            }
        })?;
        archive.finish(walk.into_input(), packed.compression)
    }

    /// Begins the table of an archive from a pipe.
    pub(super) fn piped() -> Self {
        Self::new(Store::Piped {
            kept: Kept::default(),
            outlook: Outlook::default(),
        })
    }

    /// Returns the results about the entries of a pipe.
    pub(super) fn kept(&mut self) -> &mut Kept {
        match &mut self.store {
            Store::Piped { kept, .. } => kept,
            _ => unreachable!("only an archive from a pipe is read step by step"),
        }
    }

    /// Decides that all blobs which a pipe has not brought may still come, except these.
    pub(crate) fn expect_all_but(&mut self, absent: HashSet<Digest>) {
        if let Store::Piped { outlook, .. } = &mut self.store {
            *outlook = Outlook {
                has_more: true,
                absent,
                unseen: RefCell::default(),
            };
        }
    }

    /// Decides that a pipe brings no more blobs.
    pub(crate) fn expect_nothing(&mut self) {
        if let Store::Piped { outlook, .. } = &mut self.store {
            *outlook = Outlook::default();
        }
    }

    /// Returns true if a pipe may still bring a blob.
    pub(crate) fn may_come(&self, digest: &Digest) -> bool {
        match &self.store {
            Store::Piped { outlook, .. } => outlook.has_more && !outlook.absent.contains(digest),
            _ => false,
        }
    }

    /// Records that a document is needed, and that the pipe has not brought it.
    pub(crate) fn note_unseen(&self, digest: &Digest) {
        if let Store::Piped { outlook, .. } = &self.store {
            outlook.unseen.borrow_mut().insert(digest.clone());
        }
    }

    /// Returns the documents that were needed since the last decision, and were not seen.
    pub(crate) fn unseen(&self) -> HashSet<Digest> {
        match &self.store {
            Store::Piped { outlook, .. } => outlook.unseen.borrow().clone(),
            _ => HashSet::new(),
        }
    }

    /// Treats a folder as an archive that was extracted.
    pub(crate) fn extracted(folder: Arc<Folder>) -> Self {
        Self {
            length: MOST_OF_A_FOLDER,
            // In a folder, nothing can be cut off after the last entry.
            ending: Ending::Marker,
            ..Self::new(Store::Folder(folder))
        }
    }

    /// Returns the noun for messages.
    pub(crate) fn noun(&self) -> &'static str {
        match self.store {
            Store::Plain(_) | Store::Framed(..) | Store::Packed { .. } | Store::Piped { .. } => "archive",
            Store::Folder(_) => "folder",
        }
    }

    fn new(store: Store) -> Self {
        Self {
            store,
            length: 0,
            entries: Entries::default(),
            ending: Ending::NoMarker,
            warnings: Vec::new(),
            nested_in: None,
            telltale: None,
            has_blobs: false,
        }
    }

    /// Adds an entry, and counts the entries that it replaces.
    pub(super) fn add_counted(&mut self, entry: Entry, duplicates: &mut Duplicates) {
        if let Some(name) = self.add(entry) {
            duplicates.count += 1;
            duplicates.first.get_or_insert(name);
        }
    }

    /// Notes the end of the headers.
    pub(super) fn end(&mut self, ending: Ending, trailing: Option<(u64, u64)>, duplicates: Duplicates) {
        self.ending = ending;
        let Duplicates { count, first } = duplicates;
        self.warnings
            .extend(first.map(|first| Warning::DuplicateEntries { count, first }));
        self.warnings
            .extend(trailing.map(|(offset, bytes)| Warning::TrailingData { offset, bytes }));
    }

    /// Walks to the end. `present` reads the bytes of a file and returns how many of them exist.
    fn add_all<I: Input>(
        &mut self,
        walk: &mut Walk<I>,
        present: impl Fn(&mut Self, &mut Walk<I>, &Entry) -> Result<u64, Fault>,
    ) -> Result<(), Fault> {
        let mut duplicates = Duplicates::default();
        loop {
            match walk.next()? {
                Step::Entry(mut entry) => {
                    check_offset(&entry)?;
                    if entry.kind == EntryKind::File {
                        entry.present = present(self, walk, &entry)?;
                    }
                    self.add_counted(entry, &mut duplicates);
                }
                Step::End { ending, trailing } => {
                    self.end(ending, trailing, duplicates);
                    return Ok(());
                }
            }
        }
    }

    /// Reads compressed data to its end, to verify checksums and to find bytes after it.
    fn finish(mut self, mut input: StreamInput<Decoder>, codec: Compression) -> Result<Self, Fault> {
        input.skip(u64::MAX).map_err(read_error)?;
        self.length = input.position();
        let trailing = input.into_inner().trailing();
        self.warnings
            .extend(trailing.map(|(offset, bytes)| Warning::TrailingGarbage { codec, offset, bytes }));
        Ok(self)
    }

    /// Adds an entry. Returns its name if there was already an entry with that name.
    fn add(&mut self, entry: Entry) -> Option<String> {
        let name = clean(&entry.name)?;
        let Entry {
            kind,
            offset,
            size,
            present,
            ..
        } = entry;
        let item = match kind {
            EntryKind::File if present < size => Item::Cut { size, present },
            EntryKind::File => Item::File { offset, size },
            EntryKind::Sparse => Item::Sparse,
            EntryKind::SymbolicLink(target) => link(clean(&target_from(&name, &target))),
            EntryKind::HardLink(target) => self.hard_link(clean(&target)),
        };
        self.note_nesting(&name);
        let replaced = self.entries.insert(Fingerprint::of(&name), item);
        replaced.then(|| foreign::bytes(&name).to_string())
    }

    /// Returns the file that the target of a hard link is at this point of the archive. A later
    /// entry with the target's name does not change the link.
    fn hard_link(&self, target: Option<Vec<u8>>) -> Item {
        let item = target
            .as_deref()
            .and_then(|target| self.entries.get(Fingerprint::of(target)));
        match item {
            Some(item @ (Item::File { .. } | Item::Sparse)) => item,
            _ => link(target),
        }
    }

    fn note_nesting(&mut self, name: &[u8]) {
        let folder = name
            .strip_suffix(b"/index.json")
            .or_else(|| name.strip_suffix(b"/manifest.json"));
        self.has_blobs |= name.starts_with(b"blobs/");
        if self.telltale.is_none() {
            let told = strangers::telltale(name);
            self.telltale = told.map(|telltale| (telltale, foreign::bytes(name).to_string()));
        }
        if self.nested_in.is_none() {
            self.nested_in = folder.map(|folder| foreign::bytes(folder).to_string());
        }
    }

    /// Returns the state of the folder where the blobs of a layout should be.
    pub(crate) fn blobs(&self) -> BlobsFolder {
        if let Store::Folder(folder) = &self.store {
            return folder.blobs();
        }
        match self.entries.get(Fingerprint::of(b"blobs")) {
            _ if self.has_blobs => BlobsFolder::Something,
            Some(Item::Link(_) | Item::LinkOutside) => BlobsFolder::Link,
            _ => BlobsFolder::Nothing,
        }
    }

    /// Looks up a name and follows links inside the archive.
    pub(crate) fn find(&self, name: &str) -> Found {
        let Some(name) = clean(name.as_bytes()) else {
            return Found::Nothing;
        };
        if let Store::Folder(folder) = &self.store {
            return folder.find(&String::from_utf8_lossy(&name));
        }
        let Some(mut item) = self.entries.get(Fingerprint::of(&name)) else {
            return Found::Nothing;
        };
        for _ in 0..LONGEST_CHAIN {
            let reason = match item {
                Item::File { offset, size } => {
                    return Found::File(self.place(Place::Extent { offset, size }));
                }
                Item::Link(target) => match self.entries.get(target) {
                    Some(target) => {
                        item = target;
                        continue;
                    }
                    None => "a link to a missing file".to_owned(),
                },
                Item::Cut { size, present } => {
                    format!("cut off: {present} of its {size} bytes are in the archive")
                }
                Item::LinkOutside => "a link that leads out of the archive".to_owned(),
                Item::Sparse => SPARSE.to_owned(),
            };
            return Found::Unusable(reason);
        }
        Found::Unusable("a link that leads back to itself".to_owned())
    }

    fn place(&self, place: Place) -> Place {
        match &self.store {
            Store::Packed { kept, .. } | Store::Piped { kept, .. } => kept.place(place),
            Store::Plain(_) | Store::Framed(..) | Store::Folder(_) => place,
        }
    }

    /// Reads all bytes of a place. The caller has checked its size against a limit. Returns `None`
    /// if only another pass over the archive can read them: see [`Archive::fetch`].
    pub(crate) fn read(&self, place: &Place) -> Result<Option<Vec<u8>>, Fault> {
        if let (Store::Packed { kept, .. } | Store::Piped { kept, .. }, Some(offset)) =
            (&self.store, place.offset())
        {
            kept.want(offset, place.clone());
            return Ok(None);
        }
        let mut bytes = Vec::new();
        self.read_pieces(place, u64::MAX, |piece| bytes.extend_from_slice(piece))?;
        Ok(Some(bytes))
    }

    /// Returns true if a read failed because it needs another pass.
    pub(crate) fn wants(&self) -> bool {
        match &self.store {
            Store::Plain(_) | Store::Framed(..) | Store::Folder(_) => false,
            Store::Packed { kept, .. } | Store::Piped { kept, .. } => kept.wants(),
        }
    }

    /// Reads all documents that need another pass. Returns false if there are none.
    pub(crate) fn fetch(&mut self) -> Result<bool, Fault> {
        match &mut self.store {
            Store::Plain(_) | Store::Framed(..) | Store::Folder(_) | Store::Piped { .. } => Ok(false),
            Store::Packed { packed, kept } => kept.fetch(packed),
        }
    }

    /// Recognises the compression of the bytes at a place.
    pub(crate) fn compression(&self, place: &Place) -> Result<Compression, Fault> {
        if let Some(facts) = self.facts(place) {
            return Ok(facts.compression);
        }
        let mut start = Vec::new();
        self.read_pieces(place, Compression::PEEK as u64, |piece| {
            start.extend_from_slice(piece);
        })?;
        Ok(Compression::detect(&start))
    }

    /// Returns the sha256 of all bytes of a place. Reads them unless the digest is known.
    pub(crate) fn sha256(&self, place: &Place) -> Result<Digest, Fault> {
        if let Some(digest) = self.known_sha256(place) {
            return Ok(digest);
        }
        let mut hasher = Hasher::sha256();
        self.read_pieces(place, u64::MAX, |piece| hasher.update(piece))?;
        Ok(hasher.finish())
    }

    /// Returns the sha256 of a place, if its bytes have been read.
    pub(crate) fn known_sha256(&self, place: &Place) -> Option<Digest> {
        self.facts(place).map(|facts| digest::of_sha256(&facts.sha256))
    }

    fn facts(&self, place: &Place) -> Option<Facts> {
        match &self.store {
            Store::Packed { kept, .. } | Store::Piped { kept, .. } => kept.facts(place.offset()?),
            Store::Plain(_) | Store::Framed(..) | Store::Folder(_) => None,
        }
    }

    fn read_pieces(&self, place: &Place, at_most: u64, mut take: impl FnMut(&[u8])) -> Result<(), Fault> {
        let opened;
        let (file, offset, size) = match (place, &self.store) {
            (Place::Memory(bytes), _) => {
                let end = bytes.len().min(usize::try_from(at_most).unwrap_or(usize::MAX));
                take(&bytes[..end]);
                return Ok(());
            }
            (Place::Extent { offset, size }, Store::Framed(frames, allowance)) => {
                let wanted = (*size).min(at_most);
                let reader = frames.reader_at(*offset).within(allowance);
                return take_pieces(reader.take(wanted), take);
            }
            (Place::Extent { offset, size }, Store::Plain(file)) => (file, *offset, size.min(&at_most)),
            (Place::InFolder { name, identity }, Store::Folder(folder)) => {
                opened = ArchiveFile::new(folder.open(name, identity)?);
                (&opened, 0, (&identity.size).min(&at_most))
            }
            _ => unreachable!("bytes of a compressed archive come from memory or from a pass"),
        };
        let (mut position, end) = (offset, offset + size);
        let longest = usize::try_from(*size).unwrap_or(PIECE).min(PIECE);
        let mut buffer = vec![0; longest];
        while position < end {
            let piece = usize::try_from(end - position).unwrap_or(PIECE).min(PIECE);
            file.read_exact_at(&mut buffer[..piece], position)
                .map_err(read_error)?;
            take(&buffer[..piece]);
            position += piece as u64;
        }
        Ok(())
    }
}

/// Entries that a later entry replaced: their number, and the name of the first of them.
#[derive(Default)]
pub(super) struct Duplicates {
    count: u64,
    first: Option<String>,
}

/// Refuses an entry whose offset is too large for the table, before reading its bytes.
pub(super) fn check_offset(entry: &Entry) -> Result<(), Fault> {
    if entry.offset > LARGEST_OFFSET {
        return Err(Fault::Limit {
            what: "bytes before an entry".to_owned(),
            limit: LARGEST_OFFSET,
            set: None,
        });
    }
    Ok(())
}

fn take_pieces(mut source: impl Read, mut take: impl FnMut(&[u8])) -> Result<(), Fault> {
    let mut buffer = vec![0; PIECE];
    loop {
        match source.read(&mut buffer).map_err(read_error)? {
            0 => return Ok(()),
            n => take(&buffer[..n]),
        }
    }
}

fn link(target: Option<Vec<u8>>) -> Item {
    target.map_or(Item::LinkOutside, |target| Item::Link(Fingerprint::of(&target)))
}

/// Returns the name that a symbolic link leads to. An absolute target is outside the archive.
fn target_from(link: &[u8], target: &[u8]) -> Vec<u8> {
    if target.starts_with(b"/") {
        return b"..".to_vec();
    }
    let folder = link
        .iter()
        .rposition(|byte| *byte == b'/')
        .map_or(&link[..0], |slash| &link[..slash]);
    [folder, b"/", target].concat()
}

/// Cleans a name: no `.`, no `..`, no empty parts, no slash at either end. Returns `None` if
/// nothing is left of the name, or if it leads out of the archive.
pub(super) fn clean(name: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop()?;
            }
            _ => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_and_never_lead_outside() {
        let rows: [(&str, Option<&str>); 12] = [
            ("index.json", Some("index.json")),
            ("./index.json", Some("index.json")),
            ("/index.json", Some("index.json")),
            ("blobs//sha256/./ab", Some("blobs/sha256/ab")),
            ("a/../index.json", Some("index.json")),
            ("blobs/", Some("blobs")),
            ("../index.json", None),
            ("a/../../index.json", None),
            ("..", None),
            (".", None),
            ("/", None),
            ("", None),
        ];
        for (name, cleaned) in rows {
            assert_eq!(
                clean(name.as_bytes()).as_deref(),
                cleaned.map(str::as_bytes),
                "{name}"
            );
        }
    }

    #[test]
    fn symbolic_links_lead_from_their_own_folder() {
        let rows: [(&str, &str, Option<&str>); 6] = [
            ("a/layer.tar", "../b/layer.tar", Some("b/layer.tar")),
            ("layer.tar", "b.tar", Some("b.tar")),
            ("a/b/c", "./d", Some("a/b/d")),
            ("a/b", "../../x", None),
            ("a/b", "/etc/passwd", None),
            ("a", "../x", None),
        ];
        for (link, target, leads_to) in rows {
            let target = target_from(link.as_bytes(), target.as_bytes());
            assert_eq!(clean(&target).as_deref(), leads_to.map(str::as_bytes), "{link}");
        }
    }
}
