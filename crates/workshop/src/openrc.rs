//! Tests the OpenRC service of the tarball the way an operator uses it: on a fresh Debian with
//! OpenRC, in a container without systemd.
//!
//! The steps are a script (`openrc.sh`). The container has no network.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use lab::{on_path, parts};
use workshop::demo_bundle;

use crate::packaged::{PATIENCE, in_dist};
use xtask::checks::{run, step};

/// The suite with the oldest OpenRC for which the service was written: 0.45.
pub(crate) const SUITE: &str = "bookworm";
const PACKAGES: &str = "openrc,containerd,runc,procps,logrotate";
const SCRIPT: &str = include_str!("openrc.sh");

/// Installs the tarball of `cargo xtask dist` on a fresh Debian with OpenRC, uses the service and
/// removes it.
pub(crate) fn run_task(suite: &str) -> Result<()> {
    let tarball = in_dist("-x86_64.tar.gz")?;
    let nspawn = on_path("systemd-nspawn")
        .context("systemd-nspawn is missing: run apt-get install systemd-container")?;
    step(&format!("a fresh Debian {suite} with OpenRC"));
    let fresh = parts::debian_root(suite, "openrc-logrotate", PACKAGES)?;
    let folder = tempfile::Builder::new().prefix("airgapd-openrc-").tempdir()?;
    let root = folder.path().join("root");
    run(Command::new("cp").arg("-a").arg(&fresh).arg(&root))?;
    furnish(&root, &tarball)?;
    step("installing, using and removing the service");
    // The shell is not process 1. That would have to reap the daemons that lose their parent.
    let status = Command::new("timeout")
        .args(PATIENCE)
        .arg(nspawn)
        .args([
            "--as-pid2",
            "--register=no",
            "--keep-unit",
            "--private-network",
            "--quiet",
            "--console=pipe",
            "-D",
        ])
        .arg(&root)
        .args(["/bin/sh", "-c", "sh /root/try.sh > /root/output 2>&1"])
        .stdin(Stdio::null())
        .status()?;
    let output = fs::read_to_string(root.join("root/output")).context("the script did not run")?;
    print!("{output}");
    match status.success() && output.trim_end().ends_with("PASSED") {
        true => Ok(()),
        false => bail!("the last step above failed"),
    }
}

fn furnish(root: &Path, tarball: &Path) -> Result<()> {
    let home = root.join("root");
    fs::copy(tarball, home.join("airgapd.tar.gz"))?;
    demo_bundle::write(&home.join("demo.tar"), &parts::busybox()?)?;
    fs::write(home.join("try.sh"), SCRIPT)?;
    Ok(())
}
