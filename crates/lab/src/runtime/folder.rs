//! The folder of one containerd. It holds all files that containerd makes and is removed with it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cleanup;
use crate::parts::Generation;

/// Longest path of a socket, in bytes. A socket address has at most 108 (unix(7)), and containerd
/// appends `.ttrpc`.
const LONGEST_SOCKET_PATH: usize = 100;

/// The folder of one containerd, locked while its owner lives.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Removes the folders of dead processes and makes a new one.
    pub(super) fn create(generation: Generation) -> Result<Self> {
        cleanup::remove_abandoned();
        let base = base_folder();
        let path = tempfile::Builder::new()
            .prefix(&format!("{}{generation}-", cleanup::PREFIX))
            .tempdir_in(base)
            .with_context(|| format!("cannot make a folder below {}", base.display()))?
            .keep();
        let lock = cleanup::lock(&path)?;
        for part in ["cni", "cni-bin", "registries", "opt", "fifo", "runc"] {
            fs::create_dir(path.join(part))?;
        }
        Ok(Self { path, _lock: lock })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        cleanup::remove(&self.path);
    }
}

/// Returns the temporary folder, or `/tmp` if its path is too long for the address of a socket.
pub(super) fn base_folder() -> &'static Path {
    use std::sync::OnceLock;
    static BASE: OnceLock<PathBuf> = OnceLock::new();
    BASE.get_or_init(|| {
        let configured = std::env::temp_dir();
        let longest = configured.as_os_str().len() + "/airgapd-containerd-1.7-XXXXXX/c.sock".len();
        if longest < LONGEST_SOCKET_PATH {
            configured
        } else {
            PathBuf::from("/tmp")
        }
    })
}
