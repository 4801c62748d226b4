//! The open images folder. The module also exports the modules around it: they list the folder,
//! open its files, judge its permissions and decide when a file is finished.
//!
//! Listing and opening touch the disk, and no odd entry makes them block. Pure functions decide on
//! the facts. So every way to put a file into the folder is a row of a table. Nothing here reads
//! more of a bundle than [`bundle::sniff`] does.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags, Stat, StatVfsMountFlags};

pub use super::ignored::{Class, Reason};
pub use super::listing::{Depth, Listed, Listing};
pub use super::open::{Refused, open_path};
pub use super::permissions::{FolderTrust, judge};
pub use bundle::sniff::Ending;

pub(crate) use super::ignored::{is_candidate, why_ignored, why_ignored_by_name};
pub(crate) use super::permissions::is_roots_alone;
pub(crate) use super::settle::{
    Observation, Settle, Why, Writer, indistinct_for, may_go_on_until, settle, settle_layout,
};
pub(crate) use bundle::sniff::may_be_reserved;

/// The open images folder. Its entries belong to the folder that was opened, even if another folder
/// has taken its place meanwhile.
#[derive(Debug)]
pub struct Folder {
    pub(super) fd: OwnedFd,
    pub(super) stat: Stat,
}

impl Folder {
    /// Opens the folder. The path itself may be a symbolic link.
    ///
    /// # Errors
    ///
    /// Returns the errors of open(2): not found, not a folder, no permission.
    pub fn open_dir(path: &Path) -> io::Result<Folder> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Folder { fd, stat })
    }

    /// Returns the folder's device and inode, which identify it.
    pub(crate) fn place(&self) -> (u64, u64) {
        (self.stat.st_dev, self.stat.st_ino)
    }

    /// Returns the user id of the folder's owner.
    pub(crate) fn owner(&self) -> u32 {
        self.stat.st_uid
    }

    /// Returns true if nothing can be written to the folder's file system or through its mount. If
    /// the file system does not tell, it counts as writable.
    pub(crate) fn is_read_only(&self) -> bool {
        let stat = rustix::fs::fstatvfs(&self.fd);
        stat.is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY))
    }

    /// Opens a sub-folder, through no link.
    pub(super) fn sub_folder(&self, name: &OsStr) -> io::Result<Folder> {
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
}

/// Creates the folder and its missing parents, with mode 0755 under any umask. Returns true if
/// anything was created.
///
/// # Errors
///
/// Returns the errors of mkdir(2). The daemon then waits for the folder.
pub(crate) fn ensure(path: &Path) -> io::Result<bool> {
    if path.is_dir() {
        return Ok(false);
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        ensure(parent)?;
    }
    match std::fs::DirBuilder::new().mode(0o755).create(path) {
        Ok(()) => {
            // mkdir(2) subtracts the umask, which is 0077 in the unit.
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

    use super::*;

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
