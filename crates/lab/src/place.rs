//! Whether this is a place in which containers and the tests can run at all.
//!
//! The answer takes milliseconds, so that it comes before minutes of fetching and building.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

/// Fails where containerd's CRI would not start: in a plain chroot, whose `/` is no mount point.
///
/// runc mounts a container's root below a mount point that it looks up in mountinfo, and CRI ends
/// at its start when the look-up of its own folder fails.
///
/// # Errors
///
/// With one sentence that says what the place lacks and how to get it.
pub fn must_allow_containers() -> Result<()> {
    let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else {
        bail!("/proc is not mounted here, and containers need it: mount -t proc proc /proc");
    };
    if !has_root_mount(&mounts) {
        bail!(
            "this is a plain chroot: its / is no mount point, so no containerd can start containers in it; \
             enter the folder with pivot_root(8) instead, as `cargo xtask bare` does"
        );
    }
    Ok(())
}

/// Fails where some tests could not run: also in a chroot with a mount point, which has no user
/// namespaces.
///
/// # Errors
///
/// With one sentence that says what the place lacks and how to get it.
pub fn must_allow_tests() -> Result<()> {
    must_allow_containers()?;
    let namespaces = Command::new("unshare")
        .args(["--user", "true"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match namespaces {
        Ok(status) if !status.success() => bail!(
            "user namespaces are refused here, as in every chroot, and some tests need them; \
             enter the folder with pivot_root(8) instead, as `cargo xtask bare` does"
        ),
        _ => Ok(()),
    }
}

/// Whether a mountinfo (proc(5)) names the root: the fifth field is the mount point.
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
