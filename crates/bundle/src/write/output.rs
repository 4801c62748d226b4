//! A file that is there whole or not at all.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::WriteError;

/// A file on its way: written beside its place under a temporary name, which begins with a dot so
/// that nobody takes it for a bundle, and put there by [`Output::commit`]. Dropped without that,
/// nothing is left of it.
#[derive(Debug)]
pub struct Output {
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Output {
    /// Begins a file that will be at `path`. Blocking.
    ///
    /// # Errors
    ///
    /// [`WriteError::Target`] when `path` has no file name or is a folder, or nothing can be
    /// written beside it.
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
        // Names have 255 bytes at most, and the random part needs some of them.
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

    /// Puts the file in its place, over what is there, when its bytes are on the disk. Blocking.
    ///
    /// # Errors
    ///
    /// [`WriteError::Target`] when it cannot be synced or renamed; nothing is left of it then.
    pub fn commit(self) -> Result<(), WriteError> {
        let failed = |action, source| WriteError::Target { action, source };
        self.file
            .as_file()
            .sync_all()
            .map_err(|source| failed("sync the output", source))?;
        self.file
            .persist(&self.path)
            .map_err(|error| failed("rename the output to its place", error.error))?;
        File::open(folder_of(&self.path))
            .and_then(|folder| folder.sync_all())
            .map_err(|source| failed("sync the folder of the output", source))
    }

    /// Where the file is until then: for those who end without dropping it.
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

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
