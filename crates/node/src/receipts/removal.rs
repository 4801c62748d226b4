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
use rustix::io::Errno;

use crate::decide::line::shown;
use crate::sys::{self, Probe};

/// Start of the name that a bundle has while it is removed. Its own name follows.
const GOING: &str = ".airgapd-going-";

/// Start of the name of a bundle whose removal was interrupted, and whose name a later file has.
/// Its own name follows, and a number if an earlier such file has that name.
const REPLACED: &str = ".airgapd-replaced-";

/// Largest of these numbers. A file beyond it keeps the name that it has during its removal.
const LAST_NUMBER: u32 = 99;

/// Longest name of a file that may be removed, in bytes. A longer one has no room for the other
/// names: file systems have room for 255 bytes.
const LONGEST_NAME: usize = 255 - REPLACED.len() - ".99".len();

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
    if name.len() > LONGEST_NAME {
        return Err(too_long());
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, name, flags, Mode::empty());
    let file = File::from(file.map_err(|errno| match errno {
        Errno::LOOP => "it is a symbolic link".to_owned(),
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
    let text = |errno: Errno| io::Error::from(errno).to_string();
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

fn too_long() -> String {
    format!("its name is too long: the removal needs a name of at most {LONGEST_NAME} bytes")
}

/// Returns why a file cannot get the name `going` before its removal.
fn why_not_renamed(errno: Errno, going: &OsStr) -> String {
    match errno {
        // The answer of NFS, exFAT, many FUSE file systems and old ZFS to `RENAME_NOREPLACE`.
        Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP => {
            "its file system cannot rename a file without the risk that it replaces another one".to_owned()
        }
        Errno::NAMETOOLONG => too_long(),
        Errno::EXIST => format!("{} of an interrupted removal is in the way", shown(going)),
        errno => io::Error::from(errno).to_string(),
    }
}

/// Removes the file of a bundle that a receipt stands for. The file is first renamed. Another file
/// that was placed under its name at that moment comes back. So does a file with a writer, and a
/// file that the file system does not remove.
///
/// A crash between the two steps leaves a file with a name that begins with a dot.
/// [`undo_removals`] gives it its name back.
///
/// # Errors
///
/// Returns the reason why the file stays, with its new name if it could not get its name back.
pub(crate) fn remove(folder: &Path, name: &OsStr, identity: &Identity) -> Result<(), String> {
    let unlink = |folder: &File, going: &OsStr| rustix::fs::unlinkat(folder, going, AtFlags::empty());
    remove_by(folder, name, identity, unlink)
}

/// Removes a file by this call. See [`remove`].
fn remove_by(
    folder: &Path,
    name: &OsStr,
    identity: &Identity,
    unlink: impl FnOnce(&File, &OsStr) -> Result<(), Errno>,
) -> Result<(), String> {
    let (folder, name) = parent_of(folder, name).map_err(|error| error.to_string())?;
    let file = may_remove_in(&folder, &name, identity)?;
    let mut going = OsString::from(GOING);
    going.push(&name);
    rustix::fs::renameat_with(&folder, &name, &folder, &going, RenameFlags::NOREPLACE)
        .map_err(|errno| why_not_renamed(errno, &going))?;
    let removed = is_still(&folder, &going, &file, identity)
        .and_then(|()| unlink(&folder, &going).map_err(|errno| io::Error::from(errno).to_string()));
    match removed {
        Ok(()) => {
            // The file is gone from the folder. If a crash brings it back, the next daemon sees it
            // under one of its two names.
            let _ = folder.sync_all();
            Ok(())
        }
        Err(why) => match give_back(&folder, &going, &name) {
            Ok(()) => Err(why),
            Err((now, error)) => Err(format!(
                "{why}. Its name is {} now: {}",
                shown(&now),
                why_other(&error)
            )),
        },
    }
}

/// Returns why a file has another name than its own.
fn why_other(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::AlreadyExists => "another file has its own name".to_owned(),
        _ => error.to_string(),
    }
}

/// Gives a file its name back. If a later file has the name, the file gets a name under which it
/// never comes back: the later file has replaced it. No name of another file is taken for that.
///
/// # Errors
///
/// Returns the name that the file has now, and the reason.
fn give_back(folder: &File, going: &OsStr, name: &OsStr) -> Result<(), (OsString, io::Error)> {
    let rename = |to: &OsStr| rustix::fs::renameat_with(folder, going, folder, to, RenameFlags::NOREPLACE);
    match rename(name) {
        Ok(()) => return Ok(()),
        Err(Errno::EXIST) => {}
        Err(errno) => return Err((going.to_owned(), errno.into())),
    }
    for number in 1..=LAST_NUMBER {
        let mut replaced = OsString::from(REPLACED);
        replaced.push(name);
        if number > 1 {
            replaced.push(format!(".{number}"));
        }
        match rename(&replaced) {
            Ok(()) => return Err((replaced, ErrorKind::AlreadyExists.into())),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err((going.to_owned(), errno.into())),
        }
    }
    Err((going.to_owned(), ErrorKind::AlreadyExists.into()))
}

/// Returns true if a file has its name from the removal of a file.
pub(crate) fn is_of_removal(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(GOING.as_bytes()) || name.starts_with(REPLACED.as_bytes())
}

/// Gives the files of a folder back their names, if their removal was interrupted. Such a file may
/// be the last copy, because a crash may have cost blobs of containerd or the receipt. The daemon
/// then looks at the file as at any other, and removes it once more. A file whose name a later file
/// has stays away. `complain` hears of each file that stays under its other name, with the reason.
/// Returns true if a file has another name than before.
///
/// # Errors
///
/// Returns the error of the folder. The next call does the rest.
pub(crate) fn undo_removals(folder: &Path, mut complain: impl FnMut(&OsStr, &str)) -> io::Result<bool> {
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
        match give_back(&open, &name, OsStr::from_bytes(before)) {
            Ok(()) => is_changed = true,
            Err((now, error)) if now == name => complain(&now, &why_other(&error)),
            Err((now, _)) => {
                is_changed = true;
                replaced.insert(now);
            }
        }
    }
    for name in replaced {
        complain(&name, &why_other(&ErrorKind::AlreadyExists.into()));
    }
    if is_changed {
        open.sync_all()?;
    }
    Ok(is_changed)
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
        let _no_forks = crate::sys::forks::none();
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
        let _no_forks = crate::sys::forks::none();
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
    fn a_file_that_the_file_system_does_not_remove_gets_its_name_back() {
        let _no_forks = crate::sys::forks::none();
        let Some((folder, identity)) = placed() else {
            return;
        };
        let (path, name) = (folder.path(), OsStr::new("a.tar"));
        let why = remove_by(path, name, &identity, |_, _| Err(Errno::IO)).unwrap_err();
        assert_eq!(why, io::Error::from(Errno::IO).to_string());
        assert_eq!(names(path), ["a.tar"]);
    }

    #[test]
    fn a_file_that_cannot_have_its_name_back_is_named_and_replaces_no_other() {
        let _no_forks = crate::sys::forks::none();
        let Some((folder, _)) = placed() else {
            return;
        };
        let (path, name) = (folder.path(), OsStr::new("a.tar"));
        let expected = [".airgapd-replaced-a.tar", ".airgapd-replaced-a.tar.2"];
        for expected in expected {
            // The file of the round before is the later one of this round.
            let identity = identity(path, "a.tar");
            let later = |_: &File, _: &OsStr| {
                fs::write(path.join("a.tar"), expected).unwrap();
                Err(Errno::IO)
            };
            let why = remove_by(path, name, &identity, later).unwrap_err();
            let named = format!("Its name is {expected} now: another file has its own name");
            assert!(why.ends_with(&named), "{why}");
        }
        assert_eq!(names(path), [expected[0], expected[1], "a.tar"]);
        let text = |name: &str| fs::read_to_string(path.join(name)).unwrap();
        assert_eq!(expected.map(text), ["bundle", expected[0]]);
        assert_eq!(text("a.tar"), expected[1]);
    }

    #[test]
    fn a_file_whose_file_system_or_name_allows_no_removal_stays_and_says_so() {
        let _no_forks = crate::sys::forks::none();
        let table = [
            (Errno::INVAL, "its file system cannot rename"),
            (Errno::NAMETOOLONG, "its name is too long"),
            (
                Errno::EXIST,
                ".airgapd-going-a.tar of an interrupted removal is in",
            ),
            (Errno::ROFS, "Read-only"),
        ];
        for (errno, expected) in table {
            let why = why_not_renamed(errno, OsStr::new(".airgapd-going-a.tar"));
            assert!(why.contains(expected), "{why}");
        }
        let Some((folder, _)) = placed() else {
            return;
        };
        for (length, is_removed) in [(LONGEST_NAME, true), (LONGEST_NAME + 1, false)] {
            let name = "a".repeat(length);
            fs::write(folder.path().join(&name), "bundle").unwrap();
            let identity = identity(folder.path(), &name);
            let may = may_remove(folder.path(), OsStr::new(&name), &identity);
            assert_eq!(may.is_ok(), is_removed, "{may:?}");
            let removed = remove(folder.path(), OsStr::new(&name), &identity);
            assert_eq!(removed, may);
        }
        // The longest name leaves room for each name of a removal.
        assert_eq!(
            LONGEST_NAME + REPLACED.len() + format!(".{LAST_NUMBER}").len(),
            255
        );
    }

    #[test]
    fn an_interrupted_removal_is_undone_file_by_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        for name in ["a.tar", "b.tar", "c.tar"] {
            fs::write(path.join(format!("{GOING}{name}")), name).unwrap();
        }
        // A later bundle has the name, and so had another one before.
        fs::write(path.join("b.tar"), "later").unwrap();
        let replaced = [".airgapd-replaced-b.tar", ".airgapd-replaced-b.tar.2"];
        fs::write(path.join(replaced[0]), "earlier").unwrap();
        let mut complaints = Vec::new();
        let mut undo = || undo_removals(path, |name, _| complaints.push(name.to_owned())).unwrap();
        assert!(undo());
        assert_eq!(names(path), [replaced[0], replaced[1], "a.tar", "b.tar", "c.tar"]);
        let text = |name: &str| fs::read_to_string(path.join(name)).unwrap();
        assert_eq!(replaced.map(text), ["earlier", "b.tar"]);
        assert_eq!(text("b.tar"), "later");
        // A receipt takes the place of the later bundle. The earlier ones must not come back.
        fs::remove_file(path.join("b.tar")).unwrap();
        assert!(!undo());
        assert_eq!(names(path), [replaced[0], replaced[1], "a.tar", "c.tar"]);
        let told = replaced.repeat(2);
        assert_eq!(complaints, told, "each call names them");
    }
}
