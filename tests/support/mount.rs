//! File systems that a test mounts as root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::bundles::text;

/// A mount. Dropping it unmounts it.
pub struct Mount(PathBuf);

impl Mount {
    /// Mounts a file system over a folder. The arguments of mount(8) come before the folder.
    pub fn over(folder: &Path, arguments: &[&str]) -> Mount {
        let mount = Mount::known(folder);
        mount.run(arguments);
        mount
    }

    /// Returns a mount that another program has made.
    pub fn known(folder: &Path) -> Mount {
        Mount(folder.to_owned())
    }

    /// Mounts an empty, read-only file system.
    pub fn read_only(folder: &Path) -> Mount {
        Mount::over(folder, &["-t", "tmpfs", "-o", "ro,size=64k", "tmpfs"])
    }

    /// Mounts another folder read-only.
    pub fn bind_read_only(from: &Path, folder: &Path) -> Mount {
        let mount = Mount::over(folder, &["--bind", &text(from)]);
        mount.change("remount,bind,ro");
        mount
    }

    /// Remounts it with other options.
    pub fn change(&self, options: &str) {
        self.run(&["-o", options]);
    }

    /// Leaves the mount to another owner.
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

/// Returns the name of the loop device of a file (sysfs).
pub fn loop_device(file: &Path) -> Option<String> {
    let devices = fs::read_dir("/sys/block").expect("there is sysfs").flatten();
    devices
        .map(|device| device.file_name().to_string_lossy().into_owned())
        .find(|name| {
            let backing = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file"));
            backing.is_ok_and(|backing| Path::new(backing.trim()) == file)
        })
}
