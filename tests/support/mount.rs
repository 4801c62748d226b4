//! File systems that a test mounts, for root.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::bundles::text;

/// A mount, which goes when this is dropped.
pub struct Mount(PathBuf);

impl Mount {
    /// Mounts something over a folder, with the arguments of mount(8) that come before it.
    pub fn over(folder: &Path, arguments: &[&str]) -> Mount {
        let mount = Mount::known(folder);
        mount.run(arguments);
        mount
    }

    /// A mount that another has made.
    pub fn known(folder: &Path) -> Mount {
        Mount(folder.to_owned())
    }

    /// An empty file system that nothing can be written to.
    pub fn read_only(folder: &Path) -> Mount {
        Mount::over(folder, &["-t", "tmpfs", "-o", "ro,size=64k", "tmpfs"])
    }

    /// Another folder, to be read only.
    pub fn bind_read_only(from: &Path, folder: &Path) -> Mount {
        let mount = Mount::over(folder, &["--bind", &text(from)]);
        mount.change("remount,bind,ro");
        mount
    }

    /// Mounts it anew, with other options.
    pub fn change(&self, options: &str) {
        self.run(&["-o", options]);
    }

    /// Leaves the mount to another.
    pub fn leave(self) {
        std::mem::forget(self);
    }

    fn run(&self, arguments: &[&str]) {
        let mut mount = Command::new("mount");
        let mount = mount.args(arguments).arg(&self.0);
        assert!(mount.status().expect("mount runs").success(), "{mount:?}");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
