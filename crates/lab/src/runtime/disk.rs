//! Makes a small disk for the root of a private containerd, so that a test can fill it.
//!
//! This module cleans nothing up. The cleanup unmounts and removes the whole folder, also after a
//! killed run. A loop device disappears with its mount.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::output_of;
use crate::parts::mkfs_ext4;

/// Mounts a file system of `bytes` on a new folder.
pub(super) fn mount(image: &Path, folder: &Path, bytes: u64) -> Result<()> {
    fs::create_dir(folder)?;
    // A container uses the loop devices of its host and often cannot reach them.
    on_loop_device(image, folder, bytes)
        .or_else(|_| in_memory(folder, bytes))
        .with_context(|| format!("cannot mount a disk of {bytes} bytes on {}", folder.display()))
}

fn on_loop_device(image: &Path, folder: &Path, bytes: u64) -> Result<()> {
    File::create(image)?.set_len(bytes)?;
    // No space is reserved for root. kubelet and airgapd count only the space that other users can
    // use.
    output_of(
        Command::new(mkfs_ext4()?)
            .args(["-q", "-F", "-m", "0"])
            .arg(image),
    )?;
    output_of(Command::new("mount").args(["-o", "loop"]).arg(image).arg(folder)).map(drop)
}

fn in_memory(folder: &Path, bytes: u64) -> Result<()> {
    let size = format!("size={bytes}");
    output_of(
        Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(folder),
    )
    .map(drop)
}
