//! The images folder: what lies in it, what of that may be a bundle, and when a file is finished.
//!
//! Listing and opening touch the disk and never block on anything odd that somebody may have put
//! there. What the facts mean (`classify`, `settle`, `judge_folder`) is decided by pure
//! functions, so that every way of placing a file is a row of a table. Nothing here reads a bundle
//! beyond its first and last kilobyte.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use bundle::Identity;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::sys::{self, Probe};

fn identity_of(stat: &Stat) -> Identity {
    Identity {
        device: stat.st_dev,
        inode: stat.st_ino,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mtime_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
        ctime_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
    }
}

/// 64 bits of nanoseconds last from 1677 to 2262; beyond, time stands still.
fn nanoseconds(seconds: i64, part: impl TryInto<i64>) -> i64 {
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(part.try_into().unwrap_or(0))
}

/// The documents of an OCI image layout; one of them makes a folder one (image-spec, image-layout).
const LAYOUT_FILES: [&str; 2] = ["index.json", "oci-layout"];
/// Where its blobs are.
const LAYOUT_FOLDERS: [&str; 3] = ["blobs", "blobs/sha256", "blobs/sha512"];

/// Mixes one identity into another, so that the result changes with each of them, in any order.
fn fold(whole: &mut Identity, part: &Identity) {
    // Multiplying by a large odd number spreads every bit; the sum does not depend on the order (splitmix64).
    let spread = |value: u64| {
        let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
    };
    let times = spread(part.mtime_ns.cast_unsigned() ^ part.inode.rotate_left(32));
    let changes = spread(part.ctime_ns.cast_unsigned() ^ part.size.rotate_left(32));
    whole.size = whole.size.wrapping_add(part.size);
    whole.mtime_ns = whole.mtime_ns.wrapping_add(times.cast_signed());
    whole.ctime_ns = whole.ctime_ns.wrapping_add(changes.cast_signed());
}

/// What an entry of the folder is, before anything is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Class {
    /// It may be a bundle; its content will tell.
    Candidate,
    /// It is a folder that looks like an unpacked OCI image layout.
    Layout,
    /// It is none, or not yet.
    Ignored(Reason),
}

/// Why an entry of the folder is not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Its name begins with a dot.
    Hidden,
    /// A name that an upload in progress, an editor or a browser gives.
    TemporaryName,
    /// `<bundle>.sha256`, which belongs to the bundle beside it.
    Checksum,
    /// By its name it belongs to bundles and is none, and its content does not say otherwise.
    Companion,
    /// It is empty, and its name is not that of a bundle.
    Empty,
    /// A folder that is no layout, where sub-folders are not looked into.
    Directory,
    /// A sub-folder that others than root can write.
    OpenFolder,
    /// A sub-folder more than 8 levels deep, or beyond the first 256 of a listing.
    TooManyFolders,
    /// A list of images to pull, which nobody asked for.
    List,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character or block device.
    Device,
    /// A kind of entry that the file system does not name.
    Unknown,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Hidden => "its name begins with a dot",
            Reason::TemporaryName => "its name is that of an unfinished upload",
            Reason::Checksum => "it is the checksum of a bundle that is not there",
            Reason::Companion => "by its name and content it is no bundle",
            Reason::Empty => "it is empty, and its name is not that of a bundle",
            Reason::Directory => {
                "it is a folder and no OCI image layout (`recursive: true` looks for bundles in it)"
            }
            Reason::OpenFolder => "it is a folder that everybody can write",
            Reason::TooManyFolders => "it is a folder too deep, or one too many, to be looked into",
            Reason::List => "by its name it is a text or a list of images to pull, and `pullLists` is off",
            Reason::Fifo => "it is a FIFO",
            Reason::Socket => "it is a socket",
            Reason::Device => "it is a device",
            Reason::Unknown => "it is no regular file",
        })
    }
}

/// Judges an entry by its name and type. Symbolic links are candidates: whether their target may be
/// followed is decided when it is opened ([`Folder::open`]).
pub(crate) fn classify(name: &OsStr, file_type: FileType) -> Class {
    match file_type {
        FileType::RegularFile | FileType::Symlink => classify_name(name.as_bytes()),
        FileType::Directory if name.as_bytes().starts_with(b".") => Class::Ignored(Reason::Hidden),
        FileType::Directory => Class::Ignored(Reason::Directory),
        FileType::Fifo => Class::Ignored(Reason::Fifo),
        FileType::Socket => Class::Ignored(Reason::Socket),
        FileType::CharacterDevice | FileType::BlockDevice => Class::Ignored(Reason::Device),
        _ => Class::Ignored(Reason::Unknown),
    }
}

/// Endings of files that are still being written: vim and emacs, downloaders, WinSCP and FileZilla,
/// Firefox and Chromium. rsync, k0sctl and k0s's own updater use names that begin with a dot.
const UNFINISHED: [&[u8]; 6] = [b"~", b".tmp", b".part", b".partial", b".filepart", b".crdownload"];

fn classify_name(name: &[u8]) -> Class {
    if name.starts_with(b".") {
        Class::Ignored(Reason::Hidden)
    } else if name.starts_with(b"#") || UNFINISHED.iter().any(|ending| name.ends_with(ending)) {
        // A leading # is an editor's autosave, or a file that has no name yet (O_TMPFILE).
        Class::Ignored(Reason::TemporaryName)
    } else {
        Class::Candidate
    }
}

/// How the names end of what belongs to bundles and is none: texts, checksums, signatures, documents. `.txt` and
/// `.sha256` are told apart from these, since they have a meaning of their own.
const COMPANIONS: [&str; 8] = [
    ".md",
    ".asc",
    ".sig",
    ".minisig",
    ".sigstore.json",
    ".digest",
    ".json",
    ".md5",
];

/// Endings of the names that bundles have, and archives that are taken for some.
const BUNDLES: [&str; 17] = [
    ".tar", ".tgz", ".tzst", ".tzstd", ".txz", ".tlz4", ".tbz", ".tbz2", ".gz", ".zst", ".zstd", ".xz",
    ".lz4", ".bz2", ".lzma", ".zip", ".oci",
];

/// The meaning of a file's name where its content means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    /// It is called as bundles are.
    Bundle,
    /// It is called as what belongs to bundles is.
    Companion(Reason),
    /// Any other name, which bundles may have as well.
    Any,
}

impl Name {
    fn of(name: &OsStr) -> Name {
        let name = Path::new(name).file_name().unwrap_or(name);
        let name = name.to_string_lossy().to_ascii_lowercase();
        let ends = |ending: &&str| name.ends_with(*ending);
        // The ending comes first: a bundle may be called after its digest, or be about a README.
        if BUNDLES.iter().any(ends) {
            return Name::Bundle;
        }
        if name.ends_with(".sha256") {
            return Name::Companion(Reason::Checksum);
        }
        let is_of_checksums = name.contains(".sha256") || name.contains(".sha512");
        let is_sums = name == "sha256sums" || name.starts_with("sha256sum") && name.ends_with(".txt");
        if name.starts_with("readme") || is_of_checksums || is_sums || COMPANIONS.iter().any(ends) {
            return Name::Companion(Reason::Companion);
        }
        if name.ends_with(".txt") {
            return Name::Companion(Reason::List);
        }
        // k0s and others give bundles no ending, but call them by what they are.
        match name.contains("bundle") || name.contains("airgap") {
            true => Name::Bundle,
            false => Name::Any,
        }
    }
}

/// Why a file is no bundle and never was meant to be one; `None` for whatever may be one or become one.
///
/// The content decides first: a file that begins as an archive, or as compressed data, is a bundle under any name. For
/// all other files a closed list of names decides.
pub(crate) fn why_ignored(name: &OsStr, ending: Ending, size: u64) -> Option<Reason> {
    let is_archive = match ending {
        Ending::Marker | Ending::Reserved | Ending::NoMarker | Ending::Compressed => true,
        Ending::Beginning | Ending::Foreign => false,
    };
    match Name::of(name) {
        _ if is_archive => None,
        Name::Companion(reason) => Some(reason),
        Name::Any if size == 0 => Some(Reason::Empty),
        Name::Bundle | Name::Any => None,
    }
}

/// Why a file that cannot be opened is none either, by its name alone.
pub(crate) fn why_ignored_by_name(name: &OsStr) -> Option<Reason> {
    why_ignored(name, Ending::Foreign, 1)
}

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Relative to the folder that was listed; in a sub-folder, with a slash.
    pub name: OsString,
    /// What the entry is, by its name and type.
    pub class: Class,
    /// For a symbolic link, of what it points to, where that can be told. For a layout, of everything in it together.
    pub(crate) identity: Identity,
}

/// How far a listing goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Depth {
    /// Looks for bundles in sub-folders too.
    pub recursive: bool,
    /// Even in those that everybody can write.
    pub allow_insecure: bool,
}

/// What lies in a folder.
#[derive(Debug, Default)]
pub struct Listing {
    /// Sorted by name.
    pub entries: Vec<Listed>,
    /// The folders that matter too, relative to the one that was listed: those that were looked into, and those that
    /// may become layouts.
    pub(crate) folders: Vec<PathBuf>,
}

/// How many folders deep a listing goes.
const DEEPEST: usize = 8;
/// How many folders a listing looks into. Each is watched, and the kernel's watches are few.
const MOST_FOLDERS: usize = 256;
/// A layout of more blobs than a bundle may have is not looked through to its end.
const MOST_BLOBS: usize = 20_000;

/// The open images folder. What it gives belongs to the folder that was opened, even if another one
/// has taken its place meanwhile.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
    stat: Stat,
}

impl Folder {
    /// Opens the folder; the path itself may be a symbolic link.
    ///
    /// # Errors
    ///
    /// As open(2): not found, not a folder, no permission.
    pub fn open_dir(path: &Path) -> io::Result<Folder> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Folder { fd, stat })
    }

    /// Which folder it is: device and inode.
    pub(crate) fn place(&self) -> (u64, u64) {
        (self.stat.st_dev, self.stat.st_ino)
    }

    /// Lists all entries, sorted by name. Entries that vanish meanwhile are left out, and links to folders are not
    /// followed.
    ///
    /// # Errors
    ///
    /// Only when the folder itself cannot be read. A listing that failed half way is no listing:
    /// nothing may be concluded from a name that is missing in it.
    pub fn list(&self, depth: Depth) -> io::Result<Listing> {
        let mut listing = Listing::default();
        self.list_into(Path::new(""), depth, &mut listing)?;
        listing.entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listing)
    }

    fn list_into(&self, prefix: &Path, depth: Depth, listing: &mut Listing) -> io::Result<()> {
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let Some(mut listed) = self.stat_entry(name) else {
                continue;
            };
            let path = prefix.join(name);
            listed.name = path.clone().into_os_string();
            if listed.class == Class::Ignored(Reason::Directory) {
                match self.look_into(name, &path, depth, listing)? {
                    Some((class, identity)) => {
                        let identity = identity.unwrap_or(listed.identity);
                        listed = Listed {
                            class,
                            identity,
                            ..listed
                        };
                    }
                    None => continue,
                }
            }
            listing.entries.push(listed);
        }
        Ok(())
    }

    /// Looks into a sub-folder: a layout is an entry of its own, and so is one that is left alone. `None` where its
    /// entries are in the listing instead.
    fn look_into(
        &self,
        name: &OsStr,
        path: &Path,
        depth: Depth,
        listing: &mut Listing,
    ) -> io::Result<Option<(Class, Option<Identity>)>> {
        let ignored = |reason| Ok(Some((Class::Ignored(reason), None)));
        let Ok(folder) = self.sub_folder(name) else {
            return ignored(Reason::Directory);
        };
        let is_layout = folder.is_layout();
        if !is_layout && !depth.recursive {
            // A copy may be about to make it a layout, and only the folder itself tells when.
            if listing.folders.len() < MOST_FOLDERS {
                listing.folders.push(path.to_owned());
            }
            return ignored(Reason::Directory);
        }
        let trust = judge_folder(
            folder.stat.st_mode,
            folder.stat.st_uid,
            us(),
            depth.allow_insecure,
        );
        if matches!(trust, FolderTrust::Refused(_)) {
            return ignored(Reason::OpenFolder);
        }
        if listing.folders.len() >= MOST_FOLDERS || path.components().count() > DEEPEST {
            return ignored(Reason::TooManyFolders);
        }
        listing.folders.push(path.to_owned());
        if is_layout {
            let blobs = LAYOUT_FOLDERS
                .iter()
                .filter(|name| folder.sub_folder(OsStr::new(name)).is_ok());
            listing.folders.extend(blobs.map(|name| path.join(name)));
            return Ok(Some((Class::Layout, Some(folder.layout_identity()))));
        }
        // One that cannot be read makes the whole listing fail: nothing may be concluded from it.
        folder.list_into(path, depth, listing)?;
        Ok(None)
    }

    /// Opens a folder below, through no link.
    fn sub_folder(&self, name: &OsStr) -> io::Result<Folder> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut fd: Option<OwnedFd> = None;
        for part in Path::new(name) {
            let above = fd.as_ref().unwrap_or(&self.fd);
            fd = Some(rustix::fs::openat(above, part, flags, Mode::empty())?);
        }
        let fd = match fd {
            Some(fd) => fd,
            None => self.fd.try_clone()?,
        };
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Folder { fd, stat })
    }

    fn is_layout(&self) -> bool {
        LAYOUT_FILES.iter().any(|name| {
            let stat = rustix::fs::statat(&self.fd, *name, AtFlags::SYMLINK_NOFOLLOW);
            stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
        })
    }

    /// Everything that changes when a layout is written to, in one value: its documents, and name, size and times of
    /// each of its blobs.
    fn layout_identity(&self) -> Identity {
        let mut whole = identity_of(&self.stat);
        for name in LAYOUT_FILES {
            if let Ok(stat) = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                fold(&mut whole, &identity_of(&stat));
            }
        }
        for name in LAYOUT_FOLDERS {
            if let Ok(folder) = self.sub_folder(OsStr::new(name)) {
                fold(&mut whole, &identity_of(&folder.stat));
                folder.fold_entries(&mut whole);
            }
        }
        whole
    }

    fn fold_entries(&self, whole: &mut Identity) {
        let Ok(entries) = rustix::fs::Dir::read_from(&self.fd) else {
            return;
        };
        for entry in entries.flatten().take(MOST_BLOBS) {
            if let Ok(stat) = rustix::fs::statat(&self.fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
                && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            {
                fold(whole, &identity_of(&stat));
            }
        }
    }

    fn stat_entry(&self, name: &OsStr) -> Option<Listed> {
        let stat = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let file_type = FileType::from_raw_mode(stat.st_mode);
        let target = match file_type {
            // A dangling link keeps its own identity; opening it tells what is wrong.
            FileType::Symlink => rustix::fs::statat(&self.fd, name, AtFlags::empty()).ok(),
            _ => None,
        };
        Some(Listed {
            name: name.to_owned(),
            class: classify(name, file_type),
            identity: identity_of(&target.unwrap_or(stat)),
        })
    }

    /// Opens a layout below the folder, through no link, and tells what it is now.
    ///
    /// # Errors
    ///
    /// [`Refused`], which says why in the operator's words.
    pub(crate) fn open_layout(&self, name: &OsStr) -> Result<(File, Identity), Refused> {
        match self.sub_folder(name) {
            Ok(folder) if folder.is_layout() => {
                let identity = folder.layout_identity();
                Ok((File::from(folder.fd), identity))
            }
            Ok(_) => Err(Refused::Gone),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Refused::Gone),
            Err(error) => Err(Refused::Unreadable(error)),
        }
    }

    /// Opens a candidate for reading, without ever blocking and without following a link to where
    /// its owner is not trusted.
    ///
    /// # Errors
    ///
    /// [`Refused`], which says why in the operator's words.
    pub fn open(&self, name: &OsStr) -> Result<File, Refused> {
        let path = Path::new(name);
        if let (Some(above), Some(name)) = (path.parent(), path.file_name())
            && !above.as_os_str().is_empty()
        {
            return match self.sub_folder(above.as_os_str()) {
                Ok(folder) => folder.open(name),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Refused::Gone),
                Err(error) => Err(Refused::Unreadable(error)),
            };
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        match rustix::fs::openat(&self.fd, name, flags | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(fd) => regular(File::from(fd)),
            Err(Errno::LOOP) => self.open_link(name, flags),
            // No file has a name that is too long for one, such as a checksum of a bundle whose name is just short enough.
            Err(Errno::NOENT | Errno::NAMETOOLONG) => Err(Refused::Gone),
            // open(2) of a socket, or of a device that does not exist
            Err(Errno::NXIO | Errno::NODEV) => Err(Refused::NotRegular),
            Err(error) => Err(Refused::Unreadable(error.into())),
        }
    }

    fn open_link(&self, name: &OsStr, flags: OFlags) -> Result<File, Refused> {
        let opened = rustix::fs::openat2(&self.fd, name, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
        let file = match opened {
            Ok(fd) => regular(File::from(fd))?,
            Err(Errno::NOENT) => return Err(Refused::DanglingLink),
            Err(Errno::LOOP) => return Err(Refused::LinkLoop),
            Err(Errno::NXIO | Errno::NODEV) => return Err(Refused::NotRegular),
            Err(error) => return Err(Refused::Unreadable(error.into())),
        };
        let metadata = file.metadata().map_err(Refused::Unreadable)?;
        match is_roots_alone(metadata.mode(), metadata.uid()) {
            true => Ok(file),
            false => Err(Refused::UntrustedTarget),
        }
    }
}

fn us() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whether a file belongs to root, or to us, and nobody else can write it.
pub(crate) fn is_roots_alone(mode: u32, owner: u32) -> bool {
    is_trusted_target(mode, owner, us())
}

/// Opens whatever lies at a path for reading, without ever blocking. Links are followed: the path was typed by whoever
/// runs the command.
pub fn open_path(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

fn regular(file: File) -> Result<File, Refused> {
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(file),
        Ok(_) => Err(Refused::NotRegular),
        Err(error) => Err(Refused::Unreadable(error)),
    }
}

/// Whoever can write the target of a link can put images on the node, so it has to be as safe as the
/// folder: owned by root (or us) and writable by nobody else.
fn is_trusted_target(mode: u32, owner: u32, us: u32) -> bool {
    (owner == 0 || owner == us) && mode & 0o022 == 0
}

/// Why a candidate was not opened.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// No entry has the name any more.
    #[error("it is gone")]
    Gone,
    /// The entry, or the target of the link, is a folder, a pipe, a socket or a device.
    #[error("it is no regular file")]
    NotRegular,
    /// The target of the link does not exist.
    #[error("it is a symbolic link to nothing")]
    DanglingLink,
    /// The chain of links has no end.
    #[error("it is a symbolic link that leads back to itself")]
    LinkLoop,
    /// Users other than root and the daemon's own can write the target of the link.
    #[error("it is a symbolic link to a file that others than root can write")]
    UntrustedTarget,
    /// The error of open(2) or fstat(2).
    #[error("it cannot be opened: {0}")]
    Unreadable(#[source] io::Error),
}

/// How the bytes of a file end, as far as that can be told without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// A plain tar with its two blocks of zeros (POSIX pax: "end-of-archive").
    Marker,
    /// A plain tar with far more zeros at its end than any tar writes: room that was reserved for what is still to come,
    /// unless its last file is of zeros.
    Reserved,
    /// A plain tar without them: cut off, still growing, or made by a careless program.
    NoMarker,
    /// Nothing yet, or so little of something, that it may become an archive: no bytes, a part of a header or of a magic
    /// number, zeros at the start as fallocate(1) leaves them.
    Beginning,
    /// Compressed; only decompressing tells.
    Compressed,
    /// No archive of any kind; waiting will not make it one.
    Foreign,
}

/// Size of a tar block in bytes.
const BLOCK: usize = 512;

impl Ending {
    /// Looks at the first and the last blocks of an open file of this size.
    pub fn of(file: &File, size: u64) -> io::Result<Ending> {
        let mut head = [0; BLOCK];
        let read = read_some_at(file, &mut head, 0)?;
        let mut tail = [0xff; 2 * BLOCK];
        if let Some(offset) = size.checked_sub(tail.len() as u64) {
            read_some_at(file, &mut tail, offset)?;
        }
        let ending = Self::from_blocks(&head[..read], &tail, size);
        if ending == Ending::Marker && zeros_at_end(file, size)? > LONGEST_PADDING {
            return Ok(Ending::Reserved);
        }
        Ok(ending)
    }

    fn from_blocks(head: &[u8], tail: &[u8], size: u64) -> Ending {
        if is_compressed(head) {
            return Ending::Compressed;
        }
        if is_zero(head) {
            return Ending::Beginning;
        }
        if head.len() < BLOCK {
            return match may_grow_into_archive(head) {
                true => Ending::Beginning,
                false => Ending::Foreign,
            };
        }
        let blocks = size / BLOCK as u64;
        let ends_in_marker = size.is_multiple_of(BLOCK as u64) && blocks >= 3 && is_zero(tail);
        match (is_tar_header(head), ends_in_marker) {
            (false, _) => Ending::Foreign,
            (true, true) => Ending::Marker,
            (true, false) => Ending::NoMarker,
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// Whether a file of less than a header may become an archive: it begins like a compressed one, or with a name and,
/// behind the name's field, with the digits of a mode (POSIX ustar).
fn may_grow_into_archive(head: &[u8]) -> bool {
    const NAME: usize = 100;
    const MODE_END: usize = 108;
    let (name, rest) = head.split_at(head.len().min(NAME));
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    let (name, padding) = name.split_at(end);
    let mode = &rest[..rest.len().min(MODE_END - NAME)];
    let is_header = !name.iter().any(u8::is_ascii_control)
        && is_zero(padding)
        && mode.iter().all(|byte| matches!(byte, b'0'..=b'7' | b' ' | 0));
    is_header || MAGICS.iter().any(|magic| magic.starts_with(head))
}

/// Padding behind the end marker is at most one record, and no tar writes larger ones than this, in bytes.
const LONGEST_PADDING: u64 = 1 << 20;

/// How many bytes at the end of a file are zero; no further than it takes to be more than [`LONGEST_PADDING`].
fn zeros_at_end(file: &File, size: u64) -> io::Result<u64> {
    let mut piece = vec![0; 64 << 10];
    let mut zeros = 0;
    while zeros < size && zeros <= LONGEST_PADDING {
        let n = piece
            .len()
            .min(usize::try_from(size - zeros).unwrap_or(usize::MAX));
        let piece = &mut piece[..n];
        read_some_at(file, piece, size - zeros - n as u64)?;
        match piece.iter().rposition(|byte| *byte != 0) {
            Some(last) => return Ok(zeros + (n - 1 - last) as u64),
            None => zeros += n as u64,
        }
    }
    Ok(zeros)
}

/// Zeros at the end of most tars, in bytes: the marker, and padding to a record of twenty blocks at most.
const USUAL_ZEROS: u64 = 11 << 10;

/// Whether a file ends in more zeros than usual, which may be room for the rest of an upload.
pub(crate) fn may_be_reserved(file: &File) -> bool {
    let size = file.metadata().map(|metadata| metadata.len());
    size.and_then(|size| zeros_at_end(file, size))
        .is_ok_and(|zeros| zeros > USUAL_ZEROS)
}

/// Until when a file that looks cut off may be an upload that goes on; `None` when nothing has happened for so long that
/// it is to be taken for what it is.
pub(crate) fn may_go_on_until(changed: Instant, now: Instant) -> Option<Instant> {
    let until = changed + STALLED;
    (now < until).then_some(until)
}

/// gzip (RFC 1952), zstd (RFC 8878), xz, lz4 frame, bzip2.
const MAGICS: [&[u8]; 5] = [
    &[0x1f, 0x8b],
    &[0x28, 0xb5, 0x2f, 0xfd],
    &[0xfd, b'7', b'z', b'X', b'Z', 0],
    &[4, 0x22, 0x4d, 0x18],
    b"BZh",
];

/// The bytes behind the magic number of bzip2: the size of blocks as a digit, and the mark of a first block.
const BZIP2_BLOCK: &[u8] = b"1AY&SY";

/// Whether bytes are those of compressed data. A text may begin with "BZh", so of bzip2 as much more is asked for as there
/// is.
fn is_compressed(head: &[u8]) -> bool {
    let of_bzip2 = |rest: &[u8]| match rest {
        [] => true,
        [b'1'..=b'9', rest @ ..] => rest.iter().zip(BZIP2_BLOCK).all(|(byte, wanted)| byte == wanted),
        _ => false,
    };
    MAGICS.iter().any(|magic| match head.strip_prefix(*magic) {
        Some(rest) if *magic == b"BZh" => of_bzip2(rest),
        rest => rest.is_some(),
    }) || is_skippable_zstd(head)
}

/// A skippable frame, which may precede the data (RFC 8878, section 3.1.2).
fn is_skippable_zstd(head: &[u8]) -> bool {
    matches!(head, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// Whether a block's checksum field is right: the sum of all bytes with the field itself taken as
/// spaces (POSIX ustar).
fn is_tar_header(block: &[u8]) -> bool {
    let Some(field) = block.get(148..156) else {
        return false;
    };
    let digits: Vec<u8> = field
        .iter()
        .copied()
        .filter(|byte| !matches!(byte, 0 | b' '))
        .collect();
    let stated = std::str::from_utf8(&digits)
        .ok()
        .and_then(|text| u32::from_str_radix(text, 8).ok());
    let sum = |signed: bool| -> i64 {
        let value = |byte: u8| {
            if signed {
                i64::from(byte.cast_signed())
            } else {
                i64::from(byte)
            }
        };
        let outside = block
            .iter()
            .enumerate()
            .filter(|(at, _)| !(148..156).contains(at));
        outside.map(|(_, byte)| value(*byte)).sum::<i64>() + 8 * i64::from(b' ')
    };
    // Old Sun tars sum signed bytes.
    stated.is_some_and(|stated| i64::from(stated) == sum(false) || i64::from(stated) == sum(true))
}

fn read_some_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Whether somebody may still be writing a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writer {
    /// Nobody is.
    None,
    /// Somebody is.
    Present,
    /// This file system, or our privileges, cannot tell.
    Unknown,
}

/// Everything [`settle`] goes by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observation {
    /// In bytes.
    pub(crate) size: u64,
    pub(crate) writer: Writer,
    pub(crate) ending: Ending,
    /// When the last change was noticed: an event on the name, or another identity than before.
    pub(crate) changed: Instant,
}

impl Observation {
    /// Looks at an open file. `changed` is the caller's, who sees events and earlier identities.
    pub(crate) fn of(file: &File, changed: Instant) -> io::Result<Observation> {
        let size = file.metadata()?.len();
        let writer = match sys::probe_writers(file.as_fd()) {
            Probe::NoWriter => Writer::None,
            Probe::Busy => Writer::Present,
            Probe::Unsupported => Writer::Unknown,
        };
        Ok(Observation {
            size,
            writer,
            ending: Ending::of(file, size)?,
            changed,
        })
    }
}

/// Whether a file is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settle {
    /// It may be read now.
    Settled,
    /// Look again then, or when something changes.
    Wait { until: Instant, why: Why },
    /// Nothing has happened for [`STALLED`]: tell the operator, once, and look again then.
    Stalled { until: Instant, why: Why },
}

/// What an unfinished file waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Why {
    Changing,
    Empty,
    Written,
    NoEndMarker,
    /// It ends in more zeros than a tar does.
    Reserved,
    QuietTime,
    /// A layout folder lacks something that it refers to.
    Incomplete,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::Changing => "it has just changed",
            Why::Empty => "it is empty",
            Why::Written => "a program still has it open for writing",
            Why::NoEndMarker => "it has no end-of-archive marker, so the upload may have been cut off",
            Why::Reserved => "it ends in zeros only, so the rest of it may still be to come",
            Why::Incomplete => "it is a layout folder and lacks something that it refers to, so the copy may have been cut off",
            Why::QuietTime => {
                "this file system cannot tell whether it is being written, so quiet time decides"
            }
        })
    }
}

/// How long a finished file must have been still: enough for programs that write in several goes
/// (open, write, close, open again), and longer than any kernel's time stamps are coarse.
const STILL: Duration = Duration::from_millis(500);
/// The same for an archive whose end has been seen and that nobody writes.
const STILL_WHOLE: Duration = Duration::from_millis(200);
/// The coarsest time stamps there are: FAT counts two seconds, ext3 and some servers one.
const COARSEST: Duration = Duration::from_secs(2);
/// How soon to ask again whether the writer is gone. Its close(2) is an event too; this is for file
/// systems without events.
const AGAIN: Duration = Duration::from_secs(1);
/// When an upload without progress is reported.
const STALLED: Duration = Duration::from_secs(30);
/// When a tar without end marker is taken all the same; its graph then tells whether it is whole.
const WITHOUT_MARKER: Duration = Duration::from_secs(60);
/// Quiet time where writers cannot be seen.
const QUIET: Duration = Duration::from_secs(10);

/// Decides whether a file may be read. A wrong "settled" costs a failed try and never makes a wrong
/// image, since every blob is checked; a wrong "wait" costs time.
pub(crate) fn settle(seen: &Observation, now: Instant) -> Settle {
    let quiet = now.saturating_duration_since(seen.changed);
    let until_quiet_for = |wanted: Duration, why| Settle::Wait {
        until: seen.changed + wanted,
        why,
    };
    let unfinished = |why, again: Duration| match quiet < STALLED {
        true => Settle::Wait {
            until: (now + again).min(seen.changed + STALLED),
            why,
        },
        false => Settle::Stalled {
            until: now + again,
            why,
        },
    };
    match (seen.writer, seen.ending) {
        (Writer::Present, _) => unfinished(Why::Written, AGAIN),
        _ if seen.size == 0 => unfinished(Why::Empty, STALLED),
        (_, Ending::NoMarker | Ending::Beginning) if quiet >= WITHOUT_MARKER => Settle::Settled,
        (_, Ending::NoMarker | Ending::Beginning) if quiet >= STALLED => Settle::Stalled {
            until: seen.changed + WITHOUT_MARKER,
            why: Why::NoEndMarker,
        },
        (_, Ending::NoMarker | Ending::Beginning) => until_quiet_for(STALLED, Why::NoEndMarker),
        (_, Ending::Reserved) if quiet < STALLED => until_quiet_for(STALLED, Why::Reserved),
        (Writer::Unknown, _) if quiet < QUIET => until_quiet_for(QUIET, Why::QuietTime),
        (Writer::None, Ending::Marker) if quiet < STILL_WHOLE => until_quiet_for(STILL_WHOLE, Why::Changing),
        (Writer::None, Ending::Compressed | Ending::Foreign) if quiet < STILL => {
            until_quiet_for(STILL, Why::Changing)
        }
        (
            Writer::None | Writer::Unknown,
            Ending::Marker | Ending::Reserved | Ending::Compressed | Ending::Foreign,
        ) => Settle::Settled,
    }
}

/// How much longer a file can change without its identity showing it, by the wall clock `now` that was read before the
/// file was looked at; `None` when any change shows.
///
/// A write in the same tick of the clock leaves a file of the same size with the same times. What is finished has been
/// still for longer than the ticks of kernels that have fine ones ([`STILL_WHOLE`]); this is for file systems that keep
/// whole seconds. A time in the future, where the clock was set back, is not that of the next write either.
pub(crate) fn indistinct_for(identity: &Identity, now: SystemTime) -> Option<Duration> {
    let is_coarse = identity.ctime_ns % 1_000_000_000 == 0;
    let changed = u64::try_from(identity.ctime_ns).ok().filter(|_| is_coarse)?;
    let changed = SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(changed))?;
    let age = now.duration_since(changed).ok()?;
    COARSEST.checked_sub(age).filter(|left| !left.is_zero())
}

/// How long a layout folder must have been still: nobody can ask who is about to write to a folder.
const STILL_LAYOUT: Duration = Duration::from_secs(2);

/// Decides whether a layout folder may be read, as [`settle`] does for a file. `is_whole` says whether everything that
/// it refers to is there, where that is known.
pub(crate) fn settle_layout(is_whole: bool, changed: Instant, now: Instant) -> Settle {
    let quiet = now.saturating_duration_since(changed);
    let until = |wanted: Duration| changed + wanted;
    let why = Why::Incomplete;
    match is_whole {
        _ if quiet < STILL_LAYOUT => Settle::Wait {
            until: until(STILL_LAYOUT),
            why: Why::Changing,
        },
        false if quiet < STALLED => Settle::Wait {
            until: until(STALLED),
            why,
        },
        false if quiet < WITHOUT_MARKER => Settle::Stalled {
            until: until(WITHOUT_MARKER),
            why,
        },
        true | false => Settle::Settled,
    }
}

/// Whether the images folder's permissions may be trusted. Who can write it can give any image any
/// name on the node, which is as good as root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FolderTrust {
    /// Only root, or the daemon's own user, can write it.
    Trusted,
    /// Good enough to go on, but the operator should know.
    Warning(String),
    /// Nothing is imported from it.
    Refused(String),
}

impl FolderTrust {
    /// The worse of two verdicts; of two equally bad ones, this.
    fn or_worse(self, other: FolderTrust) -> FolderTrust {
        match (&self, &other) {
            (FolderTrust::Refused(_), _) | (_, FolderTrust::Trusted) => self,
            (FolderTrust::Warning(_), FolderTrust::Warning(_)) => self,
            (_, FolderTrust::Refused(_)) | (FolderTrust::Trusted, FolderTrust::Warning(_)) => other,
        }
    }
}

/// Judges an open folder and every folder above it, by the path as it is given and as it is without links: whoever can
/// rename a folder above can put another one in its place.
pub fn judge(folder: &Folder, path: &Path, allow_insecure: bool) -> FolderTrust {
    let own = judge_folder(folder.stat.st_mode, folder.stat.st_uid, us(), allow_insecure);
    let resolved = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let above = resolved.ancestors().skip(1).chain(path.ancestors().skip(1));
    above.fold(own, |worst, ancestor| {
        worst.or_worse(judge_above(ancestor, allow_insecure))
    })
}

fn judge_above(ancestor: &Path, allow_insecure: bool) -> FolderTrust {
    let Ok(metadata) = std::fs::metadata(ancestor) else {
        return FolderTrust::Trusted;
    };
    let name = |why: String| format!("{}, which is above it: {why}", ancestor.display());
    match judge_ancestor(metadata.mode(), metadata.uid(), us(), allow_insecure) {
        FolderTrust::Trusted => FolderTrust::Trusted,
        FolderTrust::Warning(why) => FolderTrust::Warning(name(why)),
        FolderTrust::Refused(why) => FolderTrust::Refused(name(why)),
    }
}

/// Judges a folder above by its mode and owner. In one with the sticky bit (`/tmp`) nobody can rename what is root's,
/// so it does no harm that everybody can write it (inode(7)).
fn judge_ancestor(mode: u32, owner: u32, us: u32, allow_insecure: bool) -> FolderTrust {
    const STICKY: u32 = 0o1000;
    let mode = if mode & STICKY == 0 { mode } else { mode & !0o022 };
    judge_folder(mode, owner, us, allow_insecure)
}

/// Judges a folder by its mode and owner; `us` is the effective user id of the daemon.
pub(crate) fn judge_folder(mode: u32, owner: u32, us: u32, allow_insecure: bool) -> FolderTrust {
    let mode = mode & 0o7777;
    if mode & 0o002 != 0 {
        let what = format!("everybody can write it (mode {mode:04o}), and with it give any image any name");
        return match allow_insecure {
            true => FolderTrust::Warning(what),
            false => FolderTrust::Refused(format!(
                "{what}; run chmod o-w on it, or set `allowInsecureDir: true`"
            )),
        };
    }
    if owner != 0 && owner != us {
        return FolderTrust::Warning(format!("it belongs to user {owner} and not to root"));
    }
    if mode & 0o020 != 0 {
        return FolderTrust::Warning(format!("its group can write it (mode {mode:04o})"));
    }
    FolderTrust::Trusted
}

/// Makes sure that the folder is there, creating it and what is missing above it with mode 0755
/// whatever the umask says. Tells whether anything was created.
///
/// # Errors
///
/// As mkdir(2); the folder is then waited for.
pub(crate) fn ensure(path: &Path) -> io::Result<bool> {
    if path.is_dir() {
        return Ok(false);
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        ensure(parent)?;
    }
    match std::fs::DirBuilder::new().mode(0o755).create(path) {
        Ok(()) => {
            // mkdir(2) takes the umask off, and the unit's is 0077.
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    #[test]
    fn names_of_unfinished_uploads_are_ignored_and_no_other_names_are() {
        use Reason::{Hidden, TemporaryName};
        let table: [(&[u8], Option<Reason>); 27] = [
            (b"bundle.tar", None),
            (b"k0s-airgap-bundle-v1.31.14+k0s.0-amd64", None),
            (b"bundle.tar.zst", None),
            (b"-rf", None),
            (b"\xff\xfe.tar", None),
            (b"new\nline", None),
            (b"tmp", None),
            (b"a.tmp.tar", None),
            (b"part", None),
            (b"sha256", None),
            (b"a~b", None),
            (b".hidden.tar", Some(Hidden)),
            (b".upload-Xy12Zq", Some(Hidden)),
            (b".bundle.tar.a8Fh2k", Some(Hidden)),
            (b".bundle.tar.123.tmp", Some(Hidden)),
            (b"...", Some(Hidden)),
            (b"bundle.tar~", Some(TemporaryName)),
            (b"bundle.tar.tmp", Some(TemporaryName)),
            (b"bundle.tar.part", Some(TemporaryName)),
            (b"bundle.tar.partial", Some(TemporaryName)),
            (b"bundle.tar.filepart", Some(TemporaryName)),
            (b"bundle.tar.crdownload", Some(TemporaryName)),
            (b"#bundle.tar#", Some(TemporaryName)),
            (b"#12345", Some(TemporaryName)),
            (b"bundle.tar.sha256", None),
            (b"README.md", None),
            (b".sha256", Some(Hidden)),
        ];
        for (name, reason) in table {
            let expected = reason.map_or(Class::Candidate, Class::Ignored);
            let name = OsStr::from_bytes(name);
            assert_eq!(classify(name, FileType::RegularFile), expected, "{name:?}");
            assert_eq!(classify(name, FileType::Symlink), expected, "{name:?}");
        }
    }

    #[test]
    fn content_decides_first_and_only_then_a_closed_list_of_names() {
        use Ending::{Beginning, Compressed, Foreign, Marker, NoMarker, Reserved};
        use Reason::{Checksum, Companion, Empty, List};
        let companions = [
            ("README", Companion),
            ("README.first", Companion),
            ("readme.txt", Companion),
            ("notes.md", Companion),
            ("SHA256SUMS", Companion),
            ("sha256sum-amd64.txt", Companion),
            ("images.tar.sha256", Checksum),
            ("images.tar.sha256sum", Companion),
            ("images.tar.SHA512", Companion),
            ("images.tar.md5", Companion),
            ("images.tar.asc", Companion),
            ("images.tar.sig", Companion),
            ("images.tar.minisig", Companion),
            ("images.tar.sigstore.json", Companion),
            ("images.tar.digest", Companion),
            ("images.json", Companion),
            ("images.txt", List),
            ("sub/images.txt", List),
        ];
        for (name, reason) in companions {
            let why = |ending, size| why_ignored(OsStr::new(name), ending, size);
            for ending in [Marker, NoMarker, Reserved, Compressed] {
                assert_eq!(why(ending, 2048), None, "{name} is an archive: {ending:?}");
            }
            for (ending, size) in [(Foreign, 3000), (Foreign, 5), (Beginning, 5), (Beginning, 0)] {
                assert_eq!(why(ending, size), Some(reason), "{name} {ending:?} {size}");
            }
        }
        let uploads = [
            "images.tar",
            "images.tar.gz",
            "IMAGES.TGZ",
            "k0s-airgap-bundle-v1.31.14+k0s.0-amd64",
            "README.tar",
            "images.sha256-0a9d.tar.zst",
        ];
        for name in uploads {
            for (ending, size) in [(Foreign, 3000), (Beginning, 5), (Beginning, 0)] {
                assert_eq!(
                    why_ignored(OsStr::new(name), ending, size),
                    None,
                    "{name} {ending:?} {size}"
                );
            }
        }
        for name in ["install.sh", "Thumbs.db", "images", "lost", "txt", "md"] {
            let why = |ending, size| why_ignored(OsStr::new(name), ending, size);
            assert_eq!(
                (why(Beginning, 0), why(Foreign, 9), why(Beginning, 9)),
                (Some(Empty), None, None),
                "{name}"
            );
        }
    }

    #[test]
    fn a_change_within_a_coarse_tick_is_waited_out_and_a_clock_that_jumps_is_not() {
        const SECOND: u64 = 1_000_000_000;
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let identity = |ctime_ns: i64| Identity {
            device: 1,
            inode: 2,
            size: 3,
            mtime_ns: 0,
            ctime_ns,
        };
        let at = |seconds: u64, ns: u64| i64::try_from(seconds * SECOND + ns).unwrap();
        let left = Duration::from_secs;
        for (claim, ctime_ns, expected) in [
            ("a fine stamp of just now", at(999_999, 1), None),
            ("a whole second, now", at(1_000_000, 0), Some(left(2))),
            ("a whole second, a moment ago", at(999_999, 0), Some(left(1))),
            ("long enough ago", at(999_998, 0), None),
            ("the clock was set forward since", at(1000, 0), None),
            ("the clock was set back since", at(1_000_010, 0), None),
            ("far in the future", i64::MAX, None),
            ("before 1970", -5_000_000_000, None),
        ] {
            assert_eq!(indistinct_for(&identity(ctime_ns), now), expected, "{claim}");
        }
    }

    #[test]
    fn only_files_and_links_can_be_bundles() {
        let table = [
            (FileType::Directory, Reason::Directory),
            (FileType::Fifo, Reason::Fifo),
            (FileType::Socket, Reason::Socket),
            (FileType::CharacterDevice, Reason::Device),
            (FileType::BlockDevice, Reason::Device),
            (FileType::Unknown, Reason::Unknown),
        ];
        for (file_type, reason) in table {
            assert_eq!(
                classify(OsStr::new("bundle.tar"), file_type),
                Class::Ignored(reason),
                "{file_type:?}"
            );
        }
    }

    fn listed(folder: &Folder) -> Vec<(String, Class)> {
        let entries = folder.list(Depth::default()).unwrap().entries.into_iter();
        entries
            .map(|entry| (entry.name.to_string_lossy().into_owned(), entry.class))
            .collect()
    }

    #[test]
    fn a_listing_is_sorted_and_classed_and_survives_odd_things() {
        let temporary = tempfile::tempdir().unwrap();
        let path = |name: &str| temporary.path().join(name);
        fs::write(path("b.tar"), "12345").unwrap();
        fs::write(path("a.tar.part"), "").unwrap();
        fs::create_dir(path("folder")).unwrap();
        std::os::unix::fs::symlink("nowhere", path("dangling")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, path("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let folder = Folder::open_dir(temporary.path()).unwrap();
        let expected = [
            ("a.tar.part", Class::Ignored(Reason::TemporaryName)),
            ("b.tar", Class::Candidate),
            ("dangling", Class::Candidate),
            ("fifo", Class::Ignored(Reason::Fifo)),
            ("folder", Class::Ignored(Reason::Directory)),
        ];
        assert_eq!(
            listed(&folder),
            expected.map(|(name, class)| (name.to_owned(), class))
        );
        let metadata = fs::metadata(path("b.tar")).unwrap();
        let entries = || folder.list(Depth::default()).unwrap().entries;
        assert_eq!(entries()[1].identity, Identity::of(&metadata));
        assert_eq!(entries().len(), 5, "a second listing starts from the beginning");
    }

    /// Makes files, with the folders above them.
    fn write_all(root: &Path, files: &[&str]) {
        for file in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
    }

    fn everything(root: &Path, recursive: bool) -> Vec<(String, Class)> {
        let depth = Depth {
            recursive,
            allow_insecure: false,
        };
        let listing = Folder::open_dir(root).unwrap().list(depth).unwrap();
        let text = |entry: Listed| (entry.name.into_string().unwrap(), entry.class);
        listing.entries.into_iter().map(text).collect()
    }

    #[test]
    fn layouts_are_bundles_and_other_folders_are_looked_into_when_asked() {
        let temporary = tempfile::tempdir().unwrap();
        let files = [
            "b.tar",
            "layout/oci-layout",
            "layout/index.json",
            "layout/blobs/sha256/aa",
            "sub/c.tar",
            "sub/.hidden",
            "sub/deeper/index.json",
            ".hidden/d.tar",
        ];
        write_all(temporary.path(), &files);
        std::os::unix::fs::symlink("sub", temporary.path().join("to-sub")).unwrap();
        write_all(temporary.path(), &["open/e.tar"]);
        fs::set_permissions(temporary.path().join("open"), fs::Permissions::from_mode(0o777)).unwrap();
        let flat = [
            (".hidden", Class::Ignored(Reason::Hidden)),
            ("b.tar", Class::Candidate),
            ("layout", Class::Layout),
            ("open", Class::Ignored(Reason::Directory)),
            ("sub", Class::Ignored(Reason::Directory)),
            ("to-sub", Class::Candidate),
        ];
        let deep = [
            (".hidden", Class::Ignored(Reason::Hidden)),
            ("b.tar", Class::Candidate),
            ("layout", Class::Layout),
            ("open", Class::Ignored(Reason::OpenFolder)),
            ("sub/.hidden", Class::Ignored(Reason::Hidden)),
            ("sub/c.tar", Class::Candidate),
            ("sub/deeper", Class::Layout),
            ("to-sub", Class::Candidate),
        ];
        let named = |(name, class): (&str, Class)| (name.to_owned(), class);
        assert_eq!(everything(temporary.path(), false), flat.map(named));
        assert_eq!(everything(temporary.path(), true), deep.map(named));
        let folder = Folder::open_dir(temporary.path()).unwrap();
        assert!(folder.open(OsStr::new("sub/c.tar")).is_ok());
        assert!(matches!(
            folder.open(OsStr::new("sub/gone.tar")),
            Err(Refused::Gone)
        ));
        assert!(matches!(
            folder.open(OsStr::new("to-sub/c.tar")),
            Err(Refused::Unreadable(_))
        ));
        assert!(matches!(
            folder.open(OsStr::new("to-sub")),
            Err(Refused::NotRegular)
        ));
        assert!(folder.open_layout(OsStr::new("sub/deeper")).is_ok());
        assert!(matches!(
            folder.open_layout(OsStr::new("sub")),
            Err(Refused::Gone)
        ));
    }

    #[test]
    fn folders_are_looked_into_to_a_certain_depth_and_number() {
        let temporary = tempfile::tempdir().unwrap();
        let deep = format!("{}x.tar", "d/".repeat(DEEPEST + 1));
        write_all(temporary.path(), &[&deep]);
        let too_deep = [("d/".repeat(DEEPEST) + "d", Class::Ignored(Reason::TooManyFolders))];
        assert_eq!(everything(temporary.path(), true), too_deep);
        for number in 0..MOST_FOLDERS + 10 {
            fs::create_dir(temporary.path().join(format!("many-{number}"))).unwrap();
        }
        let listing = Folder::open_dir(temporary.path()).unwrap();
        let depth = Depth {
            recursive: true,
            allow_insecure: false,
        };
        assert!(listing.list(depth).unwrap().folders.len() <= MOST_FOLDERS + LAYOUT_FOLDERS.len());
    }

    #[test]
    fn the_identity_of_a_layout_changes_with_everything_in_it() {
        let temporary = tempfile::tempdir().unwrap();
        write_all(
            temporary.path(),
            &[
                "l/index.json",
                "l/oci-layout",
                "l/blobs/sha256/aa",
                "l/blobs/sha256/bb",
            ],
        );
        let folder = Folder::open_dir(temporary.path()).unwrap();
        let identity = || folder.open_layout(OsStr::new("l")).unwrap().1;
        let mut seen = vec![identity()];
        assert_eq!(identity(), seen[0]);
        let path = |name: &str| temporary.path().join("l").join(name);
        let deeds: [&dyn Fn(); 4] = [
            &|| fs::write(path("blobs/sha256/cc"), "new").unwrap(),
            &|| fs::write(path("blobs/sha256/aa"), "a blob that grows in place").unwrap(),
            &|| fs::write(path("index.json"), "another").unwrap(),
            &|| fs::remove_file(path("blobs/sha256/bb")).unwrap(),
        ];
        for (number, deed) in deeds.iter().enumerate() {
            deed();
            let now = identity();
            assert!(!seen.contains(&now), "deed {number}");
            seen.push(now);
        }
    }

    #[test]
    fn a_layout_is_settled_when_it_is_still_and_whole() {
        let changed = Instant::now();
        let table = [
            (true, 0, Some(2_000)),
            (true, 2_000, None),
            (false, 2_000, Some(30_000)),
            (false, 30_000, Some(60_000)),
            (false, 60_000, None),
        ];
        for (is_whole, quiet, expected) in table {
            let until = match settle_layout(is_whole, changed, changed + Duration::from_millis(quiet)) {
                Settle::Settled => None,
                Settle::Wait { until, .. } | Settle::Stalled { until, .. } => {
                    Some((until - changed).as_millis())
                }
            };
            assert_eq!(until, expected, "{is_whole} {quiet}");
        }
    }

    #[test]
    fn any_rewrite_or_replacement_changes_the_identity_even_with_the_times_put_back() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("b.tar");
        fs::write(&path, "old").unwrap();
        let before = Identity::of(&fs::metadata(&path).unwrap());
        let modified = fs::metadata(&path).unwrap().modified().unwrap();

        let replacement = temporary.path().join("new");
        fs::write(&replacement, "new").unwrap();
        File::options()
            .write(true)
            .open(&replacement)
            .unwrap()
            .set_modified(modified)
            .unwrap();
        fs::rename(&replacement, &path).unwrap();
        let after = Identity::of(&fs::metadata(&path).unwrap());
        assert_eq!((before.size, before.mtime_ns), (after.size, after.mtime_ns));
        assert_ne!(before, after);
    }

    #[test]
    fn opening_never_blocks_and_says_why_it_refuses() {
        let temporary = tempfile::tempdir().unwrap();
        let path = |name: &str| temporary.path().join(name);
        let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, path(name)).unwrap();
        fs::write(path("b.tar"), "x").unwrap();
        fs::create_dir(path("folder")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, path("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        fs::write(path("open"), "x").unwrap();
        fs::set_permissions(path("open"), fs::Permissions::from_mode(0o666)).unwrap();
        link("b.tar", "good-link");
        link("nowhere", "dangling");
        link("loop", "loop");
        link("fifo", "fifo-link");
        link("open", "open-link");
        link("/proc/self/fd/0", "magic");
        let folder = Folder::open_dir(temporary.path()).unwrap();
        let outcome = |name: &str| {
            folder
                .open(OsStr::new(name))
                .map(drop)
                .map_err(|error| error.to_string())
        };

        assert_eq!(outcome("b.tar"), Ok(()));
        assert_eq!(outcome("good-link"), Ok(()));
        let table = [
            ("missing", "gone"),
            ("folder", "no regular file"),
            ("fifo", "no regular file"),
            ("socket", "no regular file"),
            ("dangling", "to nothing"),
            ("loop", "back to itself"),
            ("fifo-link", "no regular file"),
            ("open-link", "others than root"),
            ("magic", "back to itself"),
        ];
        for (name, reason) in table {
            let error = outcome(name).unwrap_err();
            assert!(error.contains(reason), "{name}: {error}");
        }
    }

    #[test]
    fn a_link_is_followed_only_to_what_nobody_else_can_write() {
        let table = [
            (0o600, 0, 0, true),
            (0o644, 0, 1000, true),
            (0o600, 1000, 1000, true),
            (0o600, 1000, 0, false),
            (0o664, 0, 0, false),
            (0o646, 0, 0, false),
        ];
        for (mode, owner, us, trusted) in table {
            assert_eq!(
                is_trusted_target(mode, owner, us),
                trusted,
                "{mode:o} {owner} {us}"
            );
        }
    }

    fn header() -> [u8; 512] {
        let mut block = [0; 512];
        block[..5].copy_from_slice(b"index");
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    #[test]
    fn the_ending_tells_whole_cut_compressed_and_foreign_files_apart() {
        let mut whole = header().to_vec();
        whole.extend([0; 1024]);
        let cut = [header(), header(), header()].concat();
        let text = "x".repeat(4096);
        let mut reserved = header().to_vec();
        reserved.resize(2 << 20, 0);
        let padded = &reserved[..1 << 20];
        let long_name = "n".repeat(100);
        let (mode, no_mode) = (format!("{long_name}0000644"), format!("{long_name}rw-r--r"));
        let table: [(&str, &[u8], Ending); 26] = [
            ("whole", &whole, Ending::Marker),
            ("with the longest padding", padded, Ending::Marker),
            ("reserved, the rest not written", &reserved, Ending::Reserved),
            ("one byte of a name", b"i", Ending::Beginning),
            ("a name and its mode", mode.as_bytes(), Ending::Beginning),
            ("a name and no mode", no_mode.as_bytes(), Ending::Foreign),
            ("a name and text behind it", b"a\0b", Ending::Foreign),
            ("a line of text", b"hello\n", Ending::Foreign),
            ("a few bytes", &[0xff, 1, 2, 3], Ending::Foreign),
            ("a byte of gzip", &[0x1f], Ending::Beginning),
            ("three bytes of zstd", &[0x28, 0xb5, 0x2f], Ending::Beginning),
            ("cut between entries", &cut, Ending::NoMarker),
            ("cut in a block", &whole[..1500], Ending::NoMarker),
            ("one block of zeros", &whole[..1024], Ending::NoMarker),
            ("half a header", &whole[..100], Ending::Beginning),
            ("reserved, nothing written", &[0; 512], Ending::Beginning),
            ("gzip", &[0x1f, 0x8b, 8, 0], Ending::Compressed),
            ("zstd", &[0x28, 0xb5, 0x2f, 0xfd, 0], Ending::Compressed),
            (
                "zstd after a skippable frame",
                &[0x5a, 0x2a, 0x4d, 0x18, 0],
                Ending::Compressed,
            ),
            ("xz", b"\xfd7zXZ\0", Ending::Compressed),
            ("lz4", &[4, 0x22, 0x4d, 0x18], Ending::Compressed),
            ("bzip2", b"BZh9", Ending::Compressed),
            ("bzip2 with its first block", b"BZh91AY&SY", Ending::Compressed),
            ("a text about bzip2", b"BZh9 is how it begins\n", Ending::Foreign),
            ("text", text.as_bytes(), Ending::Foreign),
            ("reserved in full", &[0; 4096], Ending::Beginning),
        ];
        let temporary = tempfile::tempdir().unwrap();
        for (case, bytes, expected) in table {
            let path = temporary.path().join("file");
            File::create(&path).unwrap().write_all(bytes).unwrap();
            let ending = Ending::of(&File::open(&path).unwrap(), bytes.len() as u64).unwrap();
            assert_eq!(ending, expected, "{case}");
        }
    }

    #[test]
    fn a_file_is_settled_when_nobody_writes_it_and_its_end_is_there() {
        use Ending::{Beginning, Compressed, Foreign, Marker, NoMarker, Reserved};
        use Writer::{None, Present, Unknown};
        #[derive(Debug, PartialEq)]
        enum Expected {
            Settled,
            /// Milliseconds after the last change.
            Wait(u64, Why),
            Stalled(u64, Why),
        }
        use Expected::{Settled, Stalled, Wait};
        // size, writer, ending, milliseconds since the last change
        let table = [
            (9, None, Marker, 0, Wait(200, Why::Changing)),
            (9, None, Marker, 199, Wait(200, Why::Changing)),
            (9, None, Marker, 200, Settled),
            (9, None, Compressed, 200, Wait(500, Why::Changing)),
            (9, None, Compressed, 500, Settled),
            (9, None, Foreign, 499, Wait(500, Why::Changing)),
            (9, None, Foreign, 500, Settled),
            (9, None, NoMarker, 500, Wait(30_000, Why::NoEndMarker)),
            (9, None, NoMarker, 29_999, Wait(30_000, Why::NoEndMarker)),
            (9, None, NoMarker, 30_000, Stalled(60_000, Why::NoEndMarker)),
            (9, None, NoMarker, 60_000, Settled),
            (9, None, Beginning, 500, Wait(30_000, Why::NoEndMarker)),
            (9, None, Beginning, 60_000, Settled),
            (9, None, Reserved, 500, Wait(30_000, Why::Reserved)),
            (9, None, Reserved, 30_000, Settled),
            (9, Unknown, Reserved, 10_000, Wait(30_000, Why::Reserved)),
            (9, Unknown, Reserved, 30_000, Settled),
            (9, Present, Marker, 0, Wait(1_000, Why::Written)),
            (9, Present, Marker, 29_500, Wait(30_000, Why::Written)),
            (9, Present, Marker, 30_000, Stalled(31_000, Why::Written)),
            (9, Present, Marker, 9_000_000, Stalled(9_001_000, Why::Written)),
            (0, Present, Beginning, 10, Wait(1_010, Why::Written)),
            (0, None, Beginning, 10, Wait(30_000, Why::Empty)),
            (0, None, Beginning, 30_000, Stalled(60_000, Why::Empty)),
            (0, None, Beginning, 90_000, Stalled(120_000, Why::Empty)),
            (9, Unknown, Marker, 500, Wait(10_000, Why::QuietTime)),
            (9, Unknown, Marker, 10_000, Settled),
            (9, Unknown, Compressed, 9_999, Wait(10_000, Why::QuietTime)),
            (9, Unknown, Compressed, 10_000, Settled),
            (9, Unknown, NoMarker, 10_000, Wait(30_000, Why::NoEndMarker)),
            (9, Unknown, NoMarker, 60_000, Settled),
        ];
        let changed = Instant::now();
        for (size, writer, ending, quiet, expected) in table {
            let seen = Observation {
                size,
                writer,
                ending,
                changed,
            };
            let after = |until: Instant| u64::try_from((until - changed).as_millis()).unwrap();
            let got = match settle(&seen, changed + Duration::from_millis(quiet)) {
                Settle::Settled => Settled,
                Settle::Wait { until, why } => Wait(after(until), why),
                Settle::Stalled { until, why } => Stalled(after(until), why),
            };
            assert_eq!(got, expected, "{size} {writer:?} {ending:?} {quiet}");
        }
    }

    #[test]
    fn a_wait_always_ends_later_than_now() {
        let changed = Instant::now();
        for writer in [Writer::None, Writer::Present, Writer::Unknown] {
            for ending in [
                Ending::Marker,
                Ending::NoMarker,
                Ending::Beginning,
                Ending::Reserved,
                Ending::Compressed,
                Ending::Foreign,
            ] {
                for (size, quiet) in (0..100_000)
                    .step_by(250)
                    .flat_map(|quiet| [(0, quiet), (9, quiet)])
                {
                    let now = changed + Duration::from_millis(quiet);
                    match settle(
                        &Observation {
                            size,
                            writer,
                            ending,
                            changed,
                        },
                        now,
                    ) {
                        Settle::Settled => {}
                        Settle::Wait { until, .. } | Settle::Stalled { until, .. } => {
                            assert!(until > now, "{writer:?} {ending:?} {size} {quiet}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn an_open_writer_is_observed() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("b.tar");
        let writer = File::create(&path).unwrap();
        let file = File::open(&path).unwrap();
        let observe = || Observation::of(&file, Instant::now()).unwrap().writer;
        assert_eq!(observe(), Writer::Present);
        drop(writer);
        assert_eq!(observe(), Writer::None);
    }

    #[test]
    fn a_folder_that_others_can_write_is_refused_or_warned_about() {
        let trusted = |trust: &FolderTrust| matches!(trust, FolderTrust::Trusted);
        let warning = |trust: &FolderTrust| matches!(trust, FolderTrust::Warning(_));
        let refused = |trust: &FolderTrust| matches!(trust, FolderTrust::Refused(_));
        type Is = fn(&FolderTrust) -> bool;
        let table: [(u32, u32, u32, bool, Is); 10] = [
            (0o40755, 0, 0, false, trusted),
            (0o40700, 0, 0, false, trusted),
            (0o40755, 1000, 1000, false, trusted),
            (0o40775, 0, 0, false, warning),
            (0o40755, 1000, 0, false, warning),
            (0o40777, 0, 0, false, refused),
            (0o41777, 0, 0, false, refused),
            (0o40757, 0, 0, false, refused),
            (0o40777, 0, 0, true, warning),
            (0o40775, 1000, 0, true, warning),
        ];
        for (mode, owner, us, allow_insecure, expected) in table {
            let trust = judge_folder(mode, owner, us, allow_insecure);
            assert!(
                expected(&trust),
                "{mode:o} {owner} {us} {allow_insecure}: {trust:?}"
            );
        }
    }

    #[test]
    fn a_folder_above_is_judged_alike_and_a_sticky_one_is_safe() {
        let table = [
            (0o40755, 0, FolderTrust::Trusted),
            (0o41777, 0, FolderTrust::Trusted),
            (0o41775, 0, FolderTrust::Trusted),
        ];
        for (mode, owner, expected) in table {
            assert_eq!(judge_ancestor(mode, owner, 0, false), expected, "{mode:o}");
        }
        assert!(matches!(
            judge_ancestor(0o40777, 0, 0, false),
            FolderTrust::Refused(_)
        ));
        assert!(matches!(
            judge_ancestor(0o40777, 0, 0, true),
            FolderTrust::Warning(_)
        ));
        assert!(matches!(
            judge_ancestor(0o40775, 0, 0, false),
            FolderTrust::Warning(_)
        ));
        assert!(matches!(
            judge_ancestor(0o41777, 1000, 0, false),
            FolderTrust::Warning(_)
        ));
    }

    #[test]
    fn a_folder_above_that_everybody_can_write_is_named_through_links_too() {
        let temporary = tempfile::tempdir().unwrap();
        let (open, shut) = (temporary.path().join("open"), temporary.path().join("shut"));
        fs::create_dir_all(open.join("data/images")).unwrap();
        fs::create_dir(&shut).unwrap();
        std::os::unix::fs::symlink(open.join("data/images"), shut.join("images")).unwrap();
        let verdict = |path: &Path| judge(&Folder::open_dir(path).unwrap(), path, false);
        assert_eq!(verdict(&open.join("data/images")), FolderTrust::Trusted);
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        for path in [open.join("data/images"), shut.join("images")] {
            let FolderTrust::Refused(why) = verdict(&path) else {
                panic!("{}: {:?}", path.display(), verdict(&path));
            };
            assert!(
                why.contains("open, which is above it") && why.contains("chmod o-w"),
                "{why}"
            );
        }
        fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).unwrap();
        assert_eq!(verdict(&open.join("data/images")), FolderTrust::Trusted);
    }

    #[test]
    fn a_missing_folder_is_created_with_its_parents_and_0755() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("data/images");
        assert!(ensure(&path).unwrap());
        assert!(!ensure(&path).unwrap());
        for folder in [path.parent().unwrap(), &path] {
            assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o7777, 0o755);
        }
        fs::write(temporary.path().join("file"), "").unwrap();
        assert!(ensure(&temporary.path().join("file/images")).is_err());
    }
}
