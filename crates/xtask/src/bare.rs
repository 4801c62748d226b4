//! `cargo xtask bare`: runs a command in a minimal Debian with only Rust, a C compiler and git.
//!
//! This is the machine that README.md promises. Each run makes a new root folder with debootstrap's
//! variant minbase. It clones the last commit below `/root`, which has mode 0700 in Debian. It
//! enters the root with pivot_root(8), since a chroot has no user namespaces. The host shares its
//! kernel, its network, its Rust toolchain and cargo's download cache.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use lab::{is_root, output_of, parts, workspace};

use crate::checks::{run as run_command, step};

/// Packages that README.md lists beside Rust.
const PACKAGES: &str = "ca-certificates,gcc,libc6-dev,git";

/// The command of README.md that must succeed on a bare machine.
const README_COMMAND: [&str; 3] = ["cargo", "xtask", "test"];

/// Script that runs as process 1 in new mount and process namespaces. It reads the paths of the
/// folders from its environment.
const ENTER: &str = include_str!("bare.sh");

/// Runs the command in the clone on a bare machine of this suite. Without a command it runs the
/// test command of README.md.
///
/// # Errors
///
/// Returns an error without root, if the machine cannot be made, or if the command fails.
pub fn run(suite: &str, command: &[String]) -> Result<()> {
    if !is_root() {
        bail!("only root can make a bare machine and enter it");
    }
    step(&format!("a bare Debian {suite} with Rust, a C compiler and git"));
    let machine = Machine::create(suite)?;
    let readme: Vec<_> = README_COMMAND.map(str::to_owned).into();
    let command = if command.is_empty() { &readme } else { command };
    step(&format!("in it: {}", command.join(" ")));
    machine.run(command)
}

/// The root folder below `target/bare`. Dropping it removes the folder.
struct Machine {
    root: PathBuf,
}

impl Machine {
    fn create(suite: &str) -> Result<Self> {
        let fresh = parts::debian_root(suite, "bare", PACKAGES)?;
        let home = workspace().join("target/bare");
        fs::create_dir_all(&home)?;
        let root = tempfile::Builder::new()
            .prefix(&format!("{suite}-"))
            .tempdir_in(&home)?
            .keep();
        let machine = Self { root };
        let root = &machine.root;
        run_command(Command::new("cp").args(["-a", "-T"]).arg(&fresh).arg(root))?;
        fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
        fs::set_permissions(root.join("root"), fs::Permissions::from_mode(0o700))?;
        for lent in [
            "/etc/resolv.conf",
            "/etc/hosts",
            "/etc/ssl/certs/ca-certificates.crt",
        ] {
            if Path::new(lent).exists() {
                fs::copy(lent, root.join(&lent[1..])).with_context(|| format!("cannot copy {lent}"))?;
            }
        }
        run_command(
            Command::new("git")
                .args(["clone", "--quiet"])
                .arg(workspace())
                .arg(root.join("root/airgapd")),
        )?;
        Ok(machine)
    }

    fn run(&self, command: &[String]) -> Result<()> {
        let toolchain = output_of(Command::new("rustc").args(["--print", "sysroot"]))?;
        let status = Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "--pid",
                "--fork",
                "--kill-child",
            ])
            .args(["sh", "-ec", ENTER, "bare"])
            .args(command)
            .env("ROOT", &self.root)
            .env("TOOLCHAIN", toolchain.trim())
            .env("REGISTRY", cargo_home()?.join("registry"))
            .status()
            .context("cannot run unshare")?;
        if !status.success() {
            bail!("`{}` failed on the bare machine ({status})", command.join(" "));
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The mounts disappeared with their namespace. A folder that cannot be removed stays in
        // target/, where it does no harm.
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("CARGO_HOME") {
        return Ok(home.into());
    }
    let home = std::env::var_os("HOME").context("HOME is not set")?;
    Ok(PathBuf::from(home).join(".cargo"))
}
