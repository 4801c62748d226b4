//! The Debian package as an operator meets it: on a fresh system that systemd has booted, in a container of its own.
//!
//! What happens inside is a script (`packaged.sh`), so that it can be read like a session at a terminal.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use xtask::{demo_bundle, on_path, parts, workspace};

use crate::checks::{run, step};

/// The suite that the unit's restrictions were written for.
const SUITE: &str = "bookworm";
const PACKAGES: &str = "systemd,systemd-sysv,dbus,containerd,runc,util-linux,ca-certificates";
const SCRIPT: &str = include_str!("packaged.sh");

/// Runs the script when the system is up, and switches it off.
const UNIT: &str = "\
[Unit]
After=basic.target dbus.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'sh /root/try.sh > /root/output 2>&1; systemctl poweroff --no-block'
TimeoutStartSec=15min
[Install]
WantedBy=multi-user.target
";

/// Installs the package of `cargo xtask dist` on a fresh Debian, uses it and purges it.
pub(crate) fn run_task() -> Result<()> {
    let package = package()?;
    let tool = |name: &str, package: &str| {
        on_path(name).with_context(|| format!("this needs {name}: apt-get install {package}"))
    };
    let (debootstrap, nspawn) = (
        tool("debootstrap", "debootstrap")?,
        tool("systemd-nspawn", "systemd-container")?,
    );
    let folder = tempfile::Builder::new().prefix("airgapd-packaged-").tempdir()?;
    let root = folder.path().join("root");
    step("a fresh Debian");
    run(Command::new(debootstrap)
        .args(["--variant=minbase", "--include", PACKAGES, SUITE])
        .arg(&root))?;
    furnish(&root, &package)?;
    step("booted, the package installed, used and purged");
    run(Command::new(nspawn)
        .args([
            "--boot",
            "--register=no",
            "--keep-unit",
            "--quiet",
            "--console=pipe",
            "-D",
        ])
        .arg(&root)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null()))?;
    let output = fs::read_to_string(root.join("root/output")).context("the script was not run")?;
    print!("{output}");
    match output.trim_end().ends_with("PASSED") {
        true => Ok(()),
        false => bail!("the last step above failed"),
    }
}

fn package() -> Result<PathBuf> {
    let dist = workspace().join("target/dist");
    let found = fs::read_dir(&dist).into_iter().flatten().flatten();
    let mut packages = found
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().ends_with("_amd64.deb"));
    packages
        .next()
        .with_context(|| format!("there is no package in {}: run cargo xtask dist", dist.display()))
}

fn furnish(root: &Path, package: &Path) -> Result<()> {
    fs::copy(package, root.join("root/airgapd.deb"))?;
    demo_bundle::write(&root.join("root/demo.tar"), &parts::busybox()?)?;
    fs::write(root.join("root/try.sh"), SCRIPT)?;
    let units = root.join("etc/systemd/system");
    fs::write(units.join("try.service"), UNIT)?;
    // containerd starts when the script says so; minimal images keep nothing that a package manager would fetch.
    run(Command::new("chroot")
        .arg(root)
        .args(["systemctl", "disable", "containerd.service"]))?;
    run(Command::new("chroot")
        .arg(root)
        .args(["systemctl", "enable", "try.service"]))
}
