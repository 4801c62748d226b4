//! Ansible and its own Python, from Debian's packages. A bare Debian has no Python.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::debian::Archive;
use crate::parts::{OLDEST_SUITE, provide};
use crate::{note, output_of};

/// Ansible, with a Python of its own.
#[derive(Clone, Debug)]
pub struct Ansible {
    /// `ansible-playbook`.
    pub playbook: PathBuf,
    /// Python, for the modules on the nodes (`ansible_python_interpreter`).
    pub python: PathBuf,
}

/// Packages of [`ansible`]: Ansible and what it imports, Python, and the libraries of both. A bare
/// Debian has none of them.
const ANSIBLE_PACKAGES: [&str; 16] = [
    "ansible-core",
    "libexpat1",
    "libffi8",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libssl3",
    "libyaml-0-2",
    "python3-cffi-backend",
    "python3-cryptography",
    "python3-jinja2",
    "python3-markupsafe",
    "python3-packaging",
    "python3-resolvelib",
    "python3-yaml",
    "python3.11-minimal",
    "zlib1g",
];

/// Returns Ansible from Debian bookworm (some 43 MB). Its folder must keep its place.
///
/// # Errors
///
/// Returns an error if the fetch fails, or if the program does not run on this machine.
pub fn ansible() -> Result<Ansible> {
    let folder = provide("ansible", |folder| {
        note("fetching Ansible from Debian");
        let archive = Archive::open(OLDEST_SUITE)?;
        for package in ANSIBLE_PACKAGES {
            archive.unpack(package, folder)?;
        }
        write_python(folder)
    })
    .context("cannot provide Ansible")?;
    let ansible = Ansible {
        playbook: folder.join("ansible-playbook"),
        python: folder.join("python3"),
    };
    output_of(Command::new(&ansible.playbook).arg("--version"))
        .context("the unpacked Ansible does not run")?;
    Ok(ansible)
}

/// Writes scripts that start Python, and Ansible with it, from their folder.
fn write_python(folder: &Path) -> Result<()> {
    for (name, program) in [
        ("python3", ""),
        ("ansible-playbook", "\"$here/usr/bin/ansible-playbook\" "),
    ] {
        let script = format!(
            "#!/bin/sh\n\
             here=$(dirname \"$(readlink -f \"$0\")\")\n\
             for folder in \"$here\"/usr/lib/*-linux-* \"$here\"/lib/*-linux-*\n\
             do\n\
             \tLD_LIBRARY_PATH=\"${{LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}}$folder\"\n\
             done\n\
             export LD_LIBRARY_PATH PYTHONHOME=\"$here/usr\" PYTHONDONTWRITEBYTECODE=1\n\
             exec \"$here/usr/bin/python3.11\" {program}\"$@\"\n"
        );
        let path = folder.join(name);
        fs::write(&path, script)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}
