//! Opens folders and files that decide whom the daemon trusts. No user but root can have changed
//! them, or put others in their place.
//!
//! This module follows no link, and no odd entry makes it block.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::folder::Folder;
use super::permissions::is_roots_alone;

/// The reason why a folder or a file of root's cannot be used, with the path that is at fault.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    /// Nothing has this name.
    #[error("{} does not exist", .0.display())]
    Absent(PathBuf),
    /// Only absolute paths without `..` lead to a folder whose parents can be checked.
    #[error("{} is no absolute path", .0.display())]
    Path(PathBuf),
    /// Another user may change the target of a link.
    #[error("{} is a symbolic link: give the path without links", .0.display())]
    Link(PathBuf),
    /// A part of the path is a file.
    #[error("{} is no folder", .0.display())]
    NotFolder(PathBuf),
    /// A folder, a pipe, a socket or a device has the name of a file.
    #[error("{} is no regular file", .0.display())]
    NotRegular(PathBuf),
    /// Its owner can change it.
    #[error("{} belongs to user {owner} and not to root: run chown root on it", path.display())]
    Foreign {
        /// The folder or file.
        path: PathBuf,
        /// The user id of its owner.
        owner: u32,
    },
    /// Its group or every user can change it. A sticky folder such as `/tmp` is not safe either:
    /// any user can create what is absent there.
    #[error("others than root can write {} (mode {mode:04o}): run chmod go-w on it", path.display())]
    Writable {
        /// The folder or file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It has more bytes than the reader takes.
    #[error("{} is larger than {largest} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound, in bytes.
        largest: u64,
    },
    /// The system refused to open or read it.
    #[error("{} cannot be read: {error}", path.display())]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// The error of the system.
        #[source]
        error: io::Error,
    },
}

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

impl Folder {
    /// Opens a folder component by component, through no link. Each component belongs to root or
    /// the daemon's user, and no other user can write it.
    ///
    /// # Errors
    ///
    /// Returns the first component that is absent or that another user may have changed.
    pub(crate) fn open_roots(path: &Path) -> Result<Folder, Unusable> {
        let mut components = path.components();
        if components.next() != Some(Component::RootDir) {
            return Err(Unusable::Path(path.to_owned()));
        }
        let mut at = PathBuf::from("/");
        let root = rustix::fs::open(&at, FOLDER, Mode::empty()).map_err(|error| io_at(&at, error))?;
        let mut folder = checked(root, &at)?;
        for component in components {
            let Component::Normal(name) = component else {
                return Err(Unusable::Path(path.to_owned()));
            };
            at.push(name);
            let fd = rustix::fs::openat(&folder.fd, name, FOLDER, Mode::empty());
            folder = checked(fd.map_err(|error| folder.why_not(name, &at, error))?, &at)?;
        }
        Ok(folder)
    }

    /// Reads a file of this folder, which [`Folder::open_roots`] has opened at `path`. The file is
    /// no link, belongs to root or the daemon's user, and no other user can write it.
    ///
    /// # Errors
    ///
    /// Returns why the file cannot be used. A file larger than `largest` bytes is an error.
    pub(crate) fn read_roots(&self, path: &Path, name: &OsStr, largest: u64) -> Result<Vec<u8>, Unusable> {
        let path = path.join(name);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
        let fd = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::LOOP) => return Err(Unusable::Link(path)),
            Err(Errno::NXIO | Errno::NODEV) => return Err(Unusable::NotRegular(path)),
            Err(error) => return Err(io_at(&path, error)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(|error| io_at(&path, error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Unusable::NotRegular(path));
        }
        check(&stat, &path)?;
        let mut bytes = Vec::new();
        match File::from(fd).take(largest + 1).read_to_end(&mut bytes) {
            Ok(_) if bytes.len() as u64 > largest => Err(Unusable::TooLarge { path, largest }),
            Ok(_) => Ok(bytes),
            Err(error) => Err(Unusable::Io { path, error }),
        }
    }

    /// Returns why a component cannot be opened as a folder.
    fn why_not(&self, name: &OsStr, path: &Path, error: Errno) -> Unusable {
        // open(2) has ENOTDIR for a link, too, if the flags ask for a folder.
        let kind = match error {
            Errno::NOTDIR | Errno::LOOP => rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW),
            error => return io_at(path, error),
        };
        match kind.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Ok(FileType::Symlink) => Unusable::Link(path.to_owned()),
            _ => Unusable::NotFolder(path.to_owned()),
        }
    }
}

fn io_at(path: &Path, error: Errno) -> Unusable {
    let path = path.to_owned();
    match error {
        Errno::NOENT => Unusable::Absent(path),
        error => Unusable::Io {
            path,
            error: error.into(),
        },
    }
}

fn checked(fd: OwnedFd, path: &Path) -> Result<Folder, Unusable> {
    let stat = rustix::fs::fstat(&fd).map_err(|error| io_at(path, error))?;
    check(&stat, path)?;
    Ok(Folder { fd, stat })
}

/// Checks owner and mode. A user who has access by an ACL counts as well: the mask of the ACL is
/// the group's part of the mode (acl(5)).
fn check(stat: &Stat, path: &Path) -> Result<(), Unusable> {
    let (mode, owner, path) = (stat.st_mode & 0o7777, stat.st_uid, path.to_owned());
    if is_roots_alone(mode, owner) {
        return Ok(());
    }
    Err(match mode & 0o022 {
        0 => Unusable::Foreign { path, owner },
        _ => Unusable::Writable { path, mode },
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use tempfile::TempDir;

    use super::*;

    /// Returns a temporary folder that no other user can replace. `/tmp` is none.
    pub(crate) fn folder_of_root() -> TempDir {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let candidates = [target.canonicalize().ok(), home, Some("/run".into())];
        let safe = candidates
            .into_iter()
            .flatten()
            .find(|folder| Folder::open_roots(folder).is_ok());
        let safe = safe.expect("the target folder, the home folder or /run can be written by root alone");
        let folder = tempfile::Builder::new().tempdir_in(safe).unwrap();
        set_mode(folder.path(), 0o755);
        folder
    }

    pub(crate) fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn why(path: &Path) -> Option<String> {
        Folder::open_roots(path).err().map(|error| error.to_string())
    }

    #[test]
    fn each_component_of_the_path_is_roots_and_no_link() {
        let temporary = folder_of_root();
        let at = |name: &str| temporary.path().join(name);
        fs::create_dir_all(at("above/keys")).unwrap();
        fs::write(at("file"), "").unwrap();
        symlink(at("above"), at("link")).unwrap();
        symlink(at("above/keys"), at("above/link")).unwrap();
        assert_eq!(why(&at("above/keys")), None);
        assert_eq!(why(&at("above/./keys/")), None);

        let table = [
            (at("above/none"), "above/none does not exist"),
            (at("none/keys"), "/none does not exist"),
            (at("file"), "file is no folder"),
            (at("file/keys"), "file is no folder"),
            (at("link/keys"), "/link is a symbolic link"),
            (at("above/link"), "above/link is a symbolic link"),
            (at("above/../above/keys"), "is no absolute path"),
            ("keys".into(), "keys is no absolute path"),
        ];
        for (path, reason) in table {
            let told = why(&path).unwrap_or_default();
            assert!(told.contains(reason), "{}: {told}", path.display());
        }
        for mode in [0o775, 0o757, 0o1777] {
            for folder in [at("above"), at("above/keys")] {
                set_mode(&folder, mode);
                let told = why(&at("above/keys")).unwrap_or_default();
                let expected = format!("write {} (mode {mode:04o}): run chmod", folder.display());
                assert!(told.contains(&expected), "{told}");
                set_mode(&folder, 0o755);
            }
        }
    }

    #[test]
    fn no_folder_below_a_world_writable_one_is_used_even_if_that_one_is_sticky() {
        let temporary = tempfile::tempdir_in("/tmp").unwrap();
        let told = why(temporary.path()).unwrap();
        assert!(told.contains("others than root can write /tmp"), "{told}");
    }

    #[test]
    fn owner_and_mode_decide_for_folders_and_files() {
        let us = rustix::process::geteuid().as_raw();
        let table = [
            (0o40755, 0, ""),
            (0o40755, us, ""),
            (0o100600, 0, ""),
            (0o100644, us, ""),
            (0o40755, 4242, "/x belongs to user 4242 and not to root"),
            (0o100644, 4242, "/x belongs to user 4242"),
            (0o100664, 0, "others than root can write /x (mode 0664)"),
            (0o100646, 0, "others than root can write /x (mode 0646)"),
            (0o41777, 0, "others than root can write /x (mode 1777)"),
            (0o40775, 4242, "others than root can write /x (mode 0775)"),
        ];
        for (mode, owner, expected) in table {
            let mut stat = rustix::fs::stat("/").unwrap();
            (stat.st_mode, stat.st_uid) = (mode, owner);
            let told = check(&stat, Path::new("/x")).map_or_else(|why| why.to_string(), |()| String::new());
            assert!(told.starts_with(expected), "{mode:o} {owner}: {told}");
            assert_eq!(told.is_empty(), expected.is_empty(), "{mode:o} {owner}: {told}");
        }
    }

    #[test]
    fn only_small_regular_files_that_root_alone_can_write_are_read() {
        let temporary = folder_of_root();
        let at = |name: &str| temporary.path().join(name);
        fs::write(at("good"), "12345").unwrap();
        fs::write(at("open"), "x").unwrap();
        set_mode(&at("open"), 0o664);
        fs::create_dir(at("folder")).unwrap();
        symlink(at("good"), at("link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let folder = Folder::open_roots(temporary.path()).unwrap();
        let read = |name: &str, largest| folder.read_roots(temporary.path(), OsStr::new(name), largest);
        assert_eq!(read("good", 5).unwrap(), b"12345");
        let table = [
            ("good", "good is larger than 4 bytes"),
            ("open", "others than root can write"),
            ("folder", "no regular file"),
            ("link", "is a symbolic link"),
            ("fifo", "no regular file"),
            ("socket", "no regular file"),
            ("none", "does not exist"),
        ];
        for (name, reason) in table {
            let told = read(name, 4).unwrap_err().to_string();
            assert!(told.contains(reason), "{name}: {told}");
        }
    }
}
