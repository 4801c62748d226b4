//! Lists the images folder and, with `recursive`, its sub-folders.
//!
//! A listing opens folders and never a file. It follows no link to a folder.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bundle::Identity;
use rustix::fs::{AtFlags, FileType};

use super::folder::Folder;
use super::identity::{LAYOUT_FOLDERS, identity_of};
use super::ignored::{Class, Reason, classify};
use super::permissions::{FolderTrust, judge_folder, us};

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The path relative to the folder that was listed, or the whole path
    /// ([`Listing::with_paths`]).
    pub name: OsString,
    /// The entry's class by its name and type.
    pub class: Class,
    /// The identity. For a symbolic link it is the target's, if the target exists. For a layout it
    /// covers everything in the layout.
    pub(crate) identity: Identity,
}

/// The depth of a listing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Depth {
    /// True if sub-folders are searched for bundles, too.
    pub recursive: bool,
    /// True if this includes sub-folders that every user can write.
    pub allow_insecure: bool,
    /// Number of sub-folders that the listings of other images folders have. They count for the
    /// bound on sub-folders.
    pub elsewhere: usize,
}

/// The entries of a folder.
#[derive(Debug, Default)]
pub struct Listing {
    /// The entries, sorted by name.
    pub entries: Vec<Listed>,
    /// The sub-folders to watch, relative to the folder that was listed: those that the listing
    /// searched, and those that may become layouts.
    pub(crate) folders: Vec<PathBuf>,
}

/// Deepest level of sub-folders that a listing reads.
const DEEPEST: usize = 8;
/// Most sub-folders that the listings of all images folders read. Each of them is watched, and the
/// kernel's watches are few.
const MOST_FOLDERS: usize = 256;

impl Listing {
    /// Returns the listing with whole paths instead of paths relative to this folder.
    pub fn with_paths(mut self, folder: &Path) -> Listing {
        for entry in &mut self.entries {
            entry.name = folder.join(&entry.name).into_os_string();
        }
        for below in &mut self.folders {
            *below = folder.join(&*below);
        }
        self
    }

    /// Returns the listing without entries whose name begins with a dot, such as a receipt that is
    /// being written.
    pub(crate) fn without_hidden(mut self) -> Listing {
        self.entries
            .retain(|entry| entry.class != Class::Ignored(Reason::Hidden));
        self
    }

    /// Returns true if the bounds on sub-folders leave this file out, or a folder above it.
    pub(crate) fn leaves_out(&self, file: &OsStr) -> bool {
        let is_left_out = |path: &Path| {
            let path = path.as_os_str();
            let at = self
                .entries
                .binary_search_by(|entry| entry.name.as_os_str().cmp(path));
            at.is_ok_and(|at| self.entries[at].class == Class::Ignored(Reason::TooManyFolders))
        };
        Path::new(file).ancestors().any(is_left_out)
    }

    /// Returns the number of sub-folders that the listing has.
    pub fn sub_folders(&self) -> usize {
        self.folders.len()
    }
}

impl Folder {
    /// Lists all entries, sorted by name. Leaves out entries that vanish meanwhile, and follows no
    /// link to a folder.
    ///
    /// # Errors
    ///
    /// Returns an error only if a folder cannot be read. A listing that failed half way counts for
    /// nothing: a name that it lacks may still exist.
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

    /// Looks into a sub-folder. Returns its class if the sub-folder is an entry itself: a layout,
    /// or a folder that is ignored. Returns `None` if the listing has its entries instead.
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
            // A copy may be about to make it a layout, and only a watch of the folder itself tells
            // when.
            if listing.folders.len() + depth.elsewhere < MOST_FOLDERS {
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
        if listing.folders.len() + depth.elsewhere >= MOST_FOLDERS || path.components().count() > DEEPEST {
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
        // If a sub-folder cannot be read, the whole listing fails: a partial listing counts for
        // nothing.
        folder.list_into(path, depth, listing)?;
        Ok(None)
    }

    fn stat_entry(&self, name: &OsStr) -> Option<Listed> {
        let stat = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let file_type = FileType::from_raw_mode(stat.st_mode);
        let target = match file_type {
            // A dangling link keeps its own identity. Opening it finds the error.
            FileType::Symlink => rustix::fs::statat(&self.fd, name, AtFlags::empty()).ok(),
            _ => None,
        };
        Some(Listed {
            name: name.to_owned(),
            class: classify(name, file_type),
            identity: identity_of(&target.unwrap_or(stat)),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use rustix::fs::Mode;

    use super::super::ignored::Reason;
    use super::super::open::Refused;
    use super::*;
    use bundle::Identity;

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

    /// Creates files and their parent folders.
    pub(in crate::images) fn write_all(root: &Path, files: &[&str]) {
        for file in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
    }

    fn everything(root: &Path, recursive: bool) -> Vec<(String, Class)> {
        let depth = Depth {
            recursive,
            ..Depth::default()
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
        let recursive = Depth {
            recursive: true,
            ..Depth::default()
        };
        let listing = Folder::open_dir(temporary.path())
            .unwrap()
            .list(recursive)
            .unwrap();
        for (file, is_left_out) in [(deep.as_str(), true), (&too_deep[0].0, true), ("d/x.tar", false)] {
            assert_eq!(listing.leaves_out(OsStr::new(file)), is_left_out, "{file}");
        }
        for number in 0..MOST_FOLDERS + 10 {
            fs::create_dir(temporary.path().join(format!("many-{number}"))).unwrap();
        }
        let listing = Folder::open_dir(temporary.path()).unwrap();
        let depth = Depth {
            recursive: true,
            ..Depth::default()
        };
        assert!(listing.list(depth).unwrap().folders.len() <= MOST_FOLDERS + LAYOUT_FOLDERS.len());
        let elsewhere = MOST_FOLDERS - 1;
        let depth = Depth { elsewhere, ..depth };
        assert_eq!(listing.list(depth).unwrap().folders.len(), 1);
    }

    #[test]
    fn a_listing_with_whole_paths_has_them_for_entries_and_sub_folders() {
        let temporary = tempfile::tempdir().unwrap();
        write_all(temporary.path(), &["a.tar", "sub/b.tar"]);
        let depth = Depth {
            recursive: true,
            ..Depth::default()
        };
        let listing = Folder::open_dir(temporary.path()).unwrap().list(depth).unwrap();
        let listing = listing.with_paths(temporary.path());
        let names: Vec<_> = listing.entries.iter().map(|entry| entry.name.clone()).collect();
        let wanted = ["a.tar", "sub/b.tar"].map(|name| temporary.path().join(name));
        assert_eq!(names, wanted.map(PathBuf::into_os_string));
        assert_eq!(listing.folders, [temporary.path().join("sub")]);
    }
}
