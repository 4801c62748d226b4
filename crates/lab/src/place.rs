//! Checks that containers and tests can run in this environment.
//!
//! The check takes milliseconds, so that it can precede minutes of fetching and building.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

/// Checks that containerd's CRI can start here. It cannot in a plain chroot, whose `/` is no mount
/// point.
///
/// runc mounts a container's root below a mount point that it looks up in mountinfo. CRI exits at
/// its start if the same look-up for its own folder fails.
///
/// # Errors
///
/// Returns an error that says what the environment lacks and how to get it.
pub fn must_allow_containers() -> Result<()> {
    let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else {
        bail!("containers need /proc, which is not mounted here: run mount -t proc proc /proc");
    };
    if !has_root_mount(&mounts) {
        bail!(
            "this is a plain chroot: its / is no mount point, so containerd cannot start containers in it. \
             Enter the folder with pivot_root(8) instead, as `cargo xtask bare` does"
        );
    }
    Ok(())
}

/// Checks that all tests can run here. A chroot with a mount point is not enough, since it has no
/// user namespaces.
///
/// # Errors
///
/// Returns an error that says what the environment lacks and how to get it.
pub fn must_allow_tests() -> Result<()> {
    must_allow_containers()?;
    let namespaces = Command::new("unshare")
        .args(["--user", "true"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match namespaces {
        Ok(status) if !status.success() => bail!(
            "some tests need user namespaces, which the kernel refuses in a chroot. \
             Enter the folder with pivot_root(8) instead, as `cargo xtask bare` does"
        ),
        _ => Ok(()),
    }
}

/// Returns true if a mountinfo (proc(5)) names the root. The fifth field is the mount point.
fn has_root_mount(mountinfo: &str) -> bool {
    mountinfo.lines().any(|line| line.split(' ').nth(4) == Some("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chroot_has_no_mount_at_its_root() {
        let table = [
            ("22 1 259:1 / / rw,relatime - ext4 /dev/vda rw\n", true),
            (
                "30 22 0:21 / /proc rw - proc proc rw\n22 1 259:1 /srv / rw - ext4 /dev/vda rw\n",
                true,
            ),
            ("30 22 0:21 / /proc rw - proc proc rw\n", false),
            ("", false),
        ];
        for (mounts, expected) in table {
            assert_eq!(has_root_mount(mounts), expected, "{mounts}");
        }
    }
}
