//! Decides by name, type and first bytes which entries of the images folder the daemon ignores, and
//! for which reason.
//!
//! Pure: this module never opens a file.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bundle::sniff::Ending;
use rustix::fs::FileType;

/// The class of an entry of the folder, before it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Class {
    /// It may be a bundle. Its content decides.
    Candidate,
    /// It is a folder that looks like an unpacked OCI image layout.
    Layout,
    /// It is no bundle, or not yet.
    Ignored(Reason),
}

/// The reason why an entry of the folder is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Its name begins with a dot.
    Hidden,
    /// Its name is typical of an upload in progress, an editor or a browser.
    TemporaryName,
    /// `<bundle>.sha256`, which belongs to the bundle beside it.
    Checksum,
    /// Its name is typical of files beside bundles, and its content is no archive.
    Companion,
    /// It is empty, and does not have the name of a bundle.
    Empty,
    /// A folder that is no layout, while `recursive` is off.
    Directory,
    /// A sub-folder that every user can write.
    OpenFolder,
    /// A sub-folder more than 8 levels deep, or beyond the first 256 of a listing.
    TooManyFolders,
    /// A list of images to pull, while `pullLists` is off.
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
            Reason::OpenFolder => "it is a folder that every user can write",
            Reason::TooManyFolders => "it is nested too deeply, or there are too many folders",
            Reason::List => "by its name it is a text or a list of images to pull, and `pullLists` is off",
            Reason::Fifo => "it is a FIFO",
            Reason::Socket => "it is a socket",
            Reason::Device => "it is a device",
            Reason::Unknown => "it is no regular file",
        })
    }
}

/// Judges an entry by its name and type. Symbolic links are candidates: `Folder::open` decides
/// whether their target is trusted.
pub(super) fn classify(name: &OsStr, file_type: FileType) -> Class {
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

/// Endings of unfinished files: of vim and emacs, downloaders, WinSCP and FileZilla, Firefox and
/// Chromium. rsync, k0sctl and k0s's own updater use names that begin with a dot.
const UNFINISHED: [&[u8]; 6] = [b"~", b".tmp", b".part", b".partial", b".filepart", b".crdownload"];

/// Returns true if no part of a file's name speaks against a bundle.
pub(crate) fn is_candidate(name: &OsStr) -> bool {
    classify_name(name.as_bytes()) == Class::Candidate && why_ignored_by_name(name).is_none()
}

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

/// Endings of files that lie beside bundles and are no bundles: texts, checksums, signatures,
/// documents. `.txt` and `.sha256` are not among them, because they have meanings of their own.
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

/// Endings of bundles, and of archives that could be bundles.
const BUNDLES: [&str; 17] = [
    ".tar", ".tgz", ".tzst", ".tzstd", ".txz", ".tlz4", ".tbz", ".tbz2", ".gz", ".zst", ".zstd", ".xz",
    ".lz4", ".bz2", ".lzma", ".zip", ".oci",
];

/// The meaning of a file's name, for files whose content decides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    /// It is a name of a bundle.
    Bundle,
    /// It is a name of a file beside bundles.
    Companion(Reason),
    /// It is any other name, which a bundle may have as well.
    Any,
}

impl Name {
    fn of(name: &OsStr) -> Name {
        let name = Path::new(name).file_name().unwrap_or(name);
        let name = name.to_string_lossy().to_ascii_lowercase();
        let ends = |ending: &&str| name.ends_with(*ending);
        // The ending is checked first: the name of a bundle may contain its digest or the word
        // README.
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
        // k0s and others give bundles no ending, but a telling name.
        match name.contains("bundle") || name.contains("airgap") {
            true => Name::Bundle,
            false => Name::Any,
        }
    }
}

/// Returns why a file is no bundle and never was meant as one. Returns `None` if it may be a bundle
/// or become one.
///
/// The content decides first: a file that begins like an archive, or like compressed data, is a
/// bundle under any name. For all other files a closed list of names decides.
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

/// Returns why a file that cannot be opened is no bundle, by its name alone.
pub(crate) fn why_ignored_by_name(name: &OsStr) -> Option<Reason> {
    why_ignored(name, Ending::Foreign, 1)
}

#[cfg(test)]
mod tests {
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
}
