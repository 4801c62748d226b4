//! The removal of the files that receipts stand for. It never removes another file than the bundle
//! that was imported.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use bundle::Identity;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};

use crate::sys::{self, Probe};

/// Start of the name that a bundle has while it is removed. Its own name follows.
const GOING: &str = ".airgapd-going-";

/// Start of the name of a bundle whose removal was interrupted, and whose name a later file has.
const REPLACED: &str = ".airgapd-replaced-";

/// Returns why the daemon must not remove files of an images folder, if it must not.
pub(crate) fn why_folder_keeps(owner: u32, is_read_only: bool) -> Option<&'static str> {
    match (is_read_only, owner) {
        (true, _) => Some("the folder is read-only"),
        (false, 0) => None,
        (false, _) => Some("root does not own the folder"),
    }
}

/// Returns why a file must not be removed, if it must not.
///
/// # Errors
///
/// Returns the reason.
pub(crate) fn may_remove(folder: &Path, name: &OsStr, identity: &Identity) -> Result<(), String> {
    let (folder, name) = parent_of(folder, name).map_err(|error| error.to_string())?;
    may_remove_in(&folder, &name, identity).map(drop)
}

/// Opens the folder that a file lies in. Returns it with the file's name there.
fn parent_of(folder: &Path, name: &OsStr) -> io::Result<(File, OsString)> {
    let path = folder.join(name);
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?.to_owned();
    let parent = path.parent().ok_or(ErrorKind::InvalidInput)?;
    Ok((File::open(parent)?, name))
}

fn may_remove_in(folder: &File, name: &OsStr, identity: &Identity) -> Result<File, String> {
    let owner = folder.metadata().map_err(|error| error.to_string())?.uid();
    if let Some(why) = why_folder_keeps(owner, false) {
        return Err(why.to_owned());
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, name, flags, Mode::empty());
    let file = File::from(file.map_err(|errno| match errno {
        rustix::io::Errno::LOOP => "it is a symbolic link".to_owned(),
        errno => io::Error::from(errno).to_string(),
    })?);
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is no regular file".to_owned());
    }
    if metadata.nlink() != 1 {
        return Err("it has other names (hard links), so its removal frees no space".to_owned());
    }
    match Identity::of(&metadata) == *identity {
        true => Ok(file),
        false => Err("it has changed since its import".to_owned()),
    }
}

/// Returns why an open file that was renamed must stay, if it must. The new name keeps later
/// writers out. An earlier writer may have changed the file, or still have it open.
fn is_still(folder: &File, going: &OsStr, file: &File, identity: &Identity) -> Result<(), String> {
    let text = |errno: rustix::io::Errno| io::Error::from(errno).to_string();
    let renamed = rustix::fs::statat(folder, going, AtFlags::SYMLINK_NOFOLLOW).map_err(text)?;
    let now = Identity::of(&file.metadata().map_err(|error| error.to_string())?);
    if (renamed.st_dev, renamed.st_ino, renamed.st_nlink) != (now.device, now.inode, 1) {
        return Err("another file took its place".to_owned());
    }
    // The other time changes with the name.
    if (now.size, now.mtime_ns) != (identity.size, identity.mtime_ns) {
        return Err("it has changed since its import".to_owned());
    }
    match sys::probe_writers(file.as_fd()) {
        Probe::Busy => Err("another program has it open for writing".to_owned()),
        // A file system that cannot tell has the size and the time only.
        Probe::NoWriter | Probe::Unsupported => Ok(()),
    }
}

/// Removes the file of a bundle that a receipt stands for. The file is first renamed. Another file
/// that was placed under its name at that moment comes back. So does a file with a writer.
///
/// A crash between the two steps leaves a file with a name that begins with a dot.
/// [`undo_removals`] gives it its name back.
///
/// # Errors
///
/// Returns the reason why the file stays.
pub(crate) fn remove(folder: &Path, name: &OsStr, identity: &Identity) -> Result<(), String> {
    let (folder, name) = parent_of(folder, name).map_err(|error| error.to_string())?;
    let file = may_remove_in(&folder, &name, identity)?;
    let mut going = OsString::from(GOING);
    going.push(&name);
    let text = |errno: rustix::io::Errno| io::Error::from(errno).to_string();
    rustix::fs::renameat_with(&folder, &name, &folder, &going, RenameFlags::NOREPLACE).map_err(text)?;
    if let Err(why) = is_still(&folder, &going, &file, identity) {
        give_back(&folder, &going, &name).map_err(|(_, error)| error.to_string())?;
        return Err(why);
    }
    rustix::fs::unlinkat(&folder, &going, AtFlags::empty()).map_err(text)?;
    folder.sync_all().map_err(|error| error.to_string())
}

/// Gives a file its name back. If a later file has the name, the file gets a name under which it
/// never comes back: the later file has replaced it.
///
/// # Errors
///
/// Returns the name that the file has now, and the reason.
fn give_back(folder: &File, going: &OsStr, name: &OsStr) -> Result<(), (OsString, io::Error)> {
    match rustix::fs::renameat_with(folder, going, folder, name, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::EXIST) => {
            let mut replaced = OsString::from(REPLACED);
            replaced.push(name);
            match rustix::fs::renameat(folder, going, folder, &replaced) {
                Ok(()) => Err((replaced, ErrorKind::AlreadyExists.into())),
                Err(errno) => Err((going.to_owned(), errno.into())),
            }
        }
        Err(errno) => Err((going.to_owned(), errno.into())),
    }
}

/// Gives the files of a folder back their names, if a crash has interrupted their removal. Such a
/// file may be the last copy, because the crash may have cost blobs of containerd or the receipt.
/// The daemon then looks at the file as at any other, and removes it once more. A file whose name a
/// later file has stays away. `complain` hears of each file that stays under its other name.
///
/// # Errors
///
/// Returns the error of the folder. The next call does the rest.
pub(crate) fn undo_removals(folder: &Path, complain: impl Fn(&OsStr, io::Error)) -> io::Result<()> {
    let open = File::open(folder)?;
    let (mut is_changed, mut replaced) = (false, BTreeSet::new());
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        if name.as_bytes().starts_with(REPLACED.as_bytes()) {
            replaced.insert(name);
            continue;
        }
        let Some(before) = name.as_bytes().strip_prefix(GOING.as_bytes()) else {
            continue;
        };
        is_changed = true;
        match give_back(&open, &name, OsStr::from_bytes(before)) {
            Ok(()) => {}
            Err((now, error)) if error.kind() == ErrorKind::AlreadyExists => drop(replaced.insert(now)),
            Err((now, error)) => complain(&now, error),
        }
    }
    for name in replaced {
        complain(&name, ErrorKind::AlreadyExists.into());
    }
    match is_changed {
        true => open.sync_all(),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A folder with a file, and the file's identity. Only root can own the folder of a removal.
    fn placed() -> Option<(tempfile::TempDir, Identity)> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.tar"), "bundle").unwrap();
        let identity = identity(folder.path(), "a.tar");
        rustix::process::geteuid().is_root().then_some((folder, identity))
    }

    fn identity(folder: &Path, name: &str) -> Identity {
        Identity::of(&fs::symlink_metadata(folder.join(name)).unwrap())
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn only_the_very_file_is_removed_and_only_if_it_has_one_name() {
        let Some((folder, as_imported)) = placed() else {
            return;
        };
        let (path, name) = (folder.path(), OsStr::new("a.tar"));
        fs::hard_link(path.join("a.tar"), path.join("b.tar")).unwrap();
        let linked = identity(path, "a.tar");
        assert!(remove(path, name, &linked).unwrap_err().contains("hard links"));
        fs::remove_file(path.join("b.tar")).unwrap();
        assert!(remove(path, name, &as_imported).unwrap_err().contains("changed"));
        std::os::unix::fs::symlink("a.tar", path.join("link.tar")).unwrap();
        let link = identity(path, "link.tar");
        let refused = remove(path, OsStr::new("link.tar"), &link).unwrap_err();
        assert!(refused.contains("symbolic link"), "{refused}");
        std::os::unix::fs::chown(path, Some(1), None).unwrap();
        let now = identity(path, "a.tar");
        assert!(
            remove(path, name, &now)
                .unwrap_err()
                .contains("root does not own")
        );
        std::os::unix::fs::chown(path, Some(0), None).unwrap();
        assert_eq!(names(path), ["a.tar", "link.tar"]);
        assert_eq!(may_remove(path, name, &now), Ok(()));
        remove(path, name, &now).unwrap();
        assert_eq!(names(path), ["link.tar"]);
    }

    #[test]
    fn a_file_that_a_program_may_still_write_stays_under_its_name() {
        let Some((folder, identity)) = placed() else {
            return;
        };
        let (path, name) = (folder.path(), OsStr::new("a.tar"));
        let writer = fs::OpenOptions::new().write(true).open(path.join("a.tar"));
        let why = remove(path, name, &identity).unwrap_err();
        assert!(why.contains("open for writing"), "{why}");
        assert_eq!(names(path), ["a.tar"]);
        drop(writer.unwrap());
        let file = File::open(path.join("a.tar")).unwrap();
        let open = File::open(path).unwrap();
        assert_eq!(is_still(&open, name, &file, &identity), Ok(()));
        fs::write(path.join("a.tar"), "bundle of another size").unwrap();
        let changed = is_still(&open, name, &file, &identity).unwrap_err();
        assert!(changed.contains("changed"), "the same inode: {changed}");
    }

    #[test]
    fn an_interrupted_removal_is_undone_file_by_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        for name in ["a.tar", "b.tar", "c.tar"] {
            fs::write(path.join(format!("{GOING}{name}")), name).unwrap();
        }
        // A later bundle has the name.
        fs::write(path.join("b.tar"), "later").unwrap();
        let complaints = std::cell::RefCell::new(Vec::new());
        let complain = |name: &OsStr, _| complaints.borrow_mut().push(name.to_owned());
        undo_removals(path, complain).unwrap();
        let replaced = ".airgapd-replaced-b.tar";
        assert_eq!(names(path), [replaced, "a.tar", "b.tar", "c.tar"]);
        assert_eq!(fs::read_to_string(path.join("b.tar")).unwrap(), "later");
        // A receipt takes the place of the later bundle. The earlier one must not come back.
        fs::remove_file(path.join("b.tar")).unwrap();
        undo_removals(path, complain).unwrap();
        assert_eq!(names(path), [replaced, "a.tar", "c.tar"]);
        let told = [OsString::from(replaced), OsString::from(replaced)];
        assert_eq!(complaints.into_inner(), told, "each start names it");
    }
}
