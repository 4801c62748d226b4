//! Output files and folders that are either complete or absent.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::WriteError;

/// A file in progress. It is written beside its destination under a temporary name, and
/// [`Output::commit`] renames it. The temporary name begins with a dot, so that the daemon does not
/// take the file for a bundle. If the value is dropped before, the file is removed.
#[derive(Debug)]
pub struct Output {
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Output {
    /// Starts a file that will be at `path`. The call blocks.
    ///
    /// # Errors
    ///
    /// Returns [`WriteError::Target`] if `path` has no file name or is a folder. Also if no file
    /// can be created beside it.
    pub fn create(path: &Path) -> Result<Self, WriteError> {
        let failed = |action, source| WriteError::Target { action, source };
        let Some(name) = path.file_name() else {
            return Err(failed("name the output", io::ErrorKind::InvalidInput.into()));
        };
        if path.is_dir() {
            let source = io::Error::new(io::ErrorKind::IsADirectory, "it is a folder");
            return Err(failed("write to the output", source));
        }
        let folder = folder_of(path);
        let mut prefix = std::ffi::OsString::from(".");
        // Names have at most 255 bytes, and the random part needs some of them.
        let name = &name.to_string_lossy();
        prefix.push(name.chars().take(60).collect::<String>());
        prefix.push(".");
        let file = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(".tmp")
            .permissions(std::fs::Permissions::from_mode(0o644))
            .tempfile_in(folder)
            .map_err(|source| failed("create a file beside the output", source))?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// Syncs the file and moves it to its path, where it replaces an existing file. The call
    /// blocks.
    ///
    /// # Errors
    ///
    /// Returns [`WriteError::Target`] if the file cannot be synced or renamed. The file is removed
    /// then.
    pub fn commit(self) -> Result<(), WriteError> {
        let failed = |action, source| WriteError::Target { action, source };
        self.file
            .as_file()
            .sync_all()
            .map_err(|source| failed("sync the output", source))?;
        self.file
            .persist(&self.path)
            .map_err(|error| failed("rename the output to its place", error.error))?;
        sync_folder_of(&self.path)
    }

    /// Returns the temporary path, for programs that exit without dropping the value.
    pub fn temporary(&self) -> &Path {
        self.file.path()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_file_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_file_mut().flush()
    }
}

/// A new folder in progress. Its files are written below a temporary folder beside its destination,
/// and [`OutputFolder::commit`] renames that folder. The temporary name begins with a dot, so that
/// the daemon does not look into it. If the value is dropped before, the folder is removed.
#[derive(Debug)]
pub struct OutputFolder {
    folder: tempfile::TempDir,
    path: PathBuf,
}

impl OutputFolder {
    /// Starts a folder that will be at `path`. An empty folder may be there already. The call
    /// blocks.
    ///
    /// # Errors
    ///
    /// Returns [`WriteError::Target`] if there is something else at `path`. Also if no folder can
    /// be created beside it.
    pub fn create(path: &Path) -> Result<Self, WriteError> {
        let failed = |action, source| WriteError::Target { action, source };
        match fs::read_dir(path).map(|mut entries| entries.next().is_some()) {
            Ok(true) => {
                let source = io::Error::new(io::ErrorKind::DirectoryNotEmpty, "it is not empty");
                return Err(failed("replace the output folder", source));
            }
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("make the output folder", error)),
        }
        // A link to nothing is not there for `read_dir`.
        if fs::symlink_metadata(path).is_ok_and(|there| !there.is_dir()) {
            let source = io::Error::new(io::ErrorKind::AlreadyExists, "a link or a file has this name");
            return Err(failed("make the output folder", source));
        }
        let folder = tempfile::Builder::new()
            .prefix(".release.")
            .suffix(".tmp")
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in(folder_of(path))
            .map_err(|source| failed("create a folder beside the output", source))?;
        Ok(Self {
            folder,
            path: path.to_owned(),
        })
    }

    /// Returns the path of the temporary folder, for the files.
    pub fn temporary(&self) -> &Path {
        self.folder.path()
    }

    /// Moves the folder to its path. The call blocks. Files of [`Output`] are synced already.
    ///
    /// # Errors
    ///
    /// Returns [`WriteError::Target`] if the folder cannot be renamed, as when another program has
    /// put files there. The temporary folder is removed then.
    pub fn commit(self) -> Result<(), WriteError> {
        fs::rename(self.folder.path(), &self.path).map_err(|source| WriteError::Target {
            action: "rename the output folder to its place",
            source,
        })?;
        // Its files have another path now.
        let _ = self.folder.keep();
        sync_folder_of(&self.path)
    }
}

fn sync_folder_of(path: &Path) -> Result<(), WriteError> {
    File::open(folder_of(path))
        .and_then(|folder| folder.sync_all())
        .map_err(|source| WriteError::Target {
            action: "sync the folder of the output",
            source,
        })
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
