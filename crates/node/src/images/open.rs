//! Opens a candidate of the images folder for reading. No odd entry makes it block. It follows a
//! link only to a file that only root can write.
//!
//! This module never reads a byte.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bundle::Identity;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::folder::Folder;
use super::permissions::is_roots_alone;

impl Folder {
    /// Opens a candidate for reading. Never blocks, and rejects a link whose target another user
    /// may write.
    ///
    /// # Errors
    ///
    /// Returns [`Refused`] with the reason, in words for the operator.
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
            // No file can have a name that is too long. A bundle with a name just short enough
            // makes the name of its checksum file too long.
            Err(Errno::NOENT | Errno::NAMETOOLONG) => Err(Refused::Gone),
            // open(2) has these errors for a socket, and for a device that does not exist.
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

    /// Opens a layout below the folder, through no link. Returns it with its current identity.
    ///
    /// # Errors
    ///
    /// Returns [`Refused`] with the reason, in words for the operator.
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
}

/// Opens a file of any kind at a path for reading, and never blocks. Follows links, because the
/// path comes from the user who runs the command.
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

/// The reason why a candidate was not opened.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The entry no longer exists.
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use rustix::fs::FileType;

    use super::*;

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
}
