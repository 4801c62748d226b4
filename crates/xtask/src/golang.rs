//! Programs built from Go modules: the containerds that no Debian has.
//!
//! It stands apart because it knows Go and the module proxy, and neither apt nor how a containerd is run. Go's own
//! settings on this machine say where modules come from and who vouches for them; what is fetched is held against
//! the checksum database unless those settings say otherwise.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::debian::Archive;
use crate::{note, on_path, output_of, parts, tail};

/// The newest release of 2.3 that the module proxy had when this was written.
pub(crate) const CONTAINERD_2_3: &str = "2.3.7";

/// The newest release of 2.4 that the module proxy had when this was written.
pub(crate) const CONTAINERD_2_4: &str = "2.4.2";

/// What the `go.mod` of containerd 2.3.7 demands of the compiler; that of 2.4.2 is content with 1.26.6.
const OLDEST_GO: (u32, u32, u32) = (1, 26, 8);

/// The suite whose Go is new enough, and the version in the names of its packages.
const DEBIAN_SUITE: &str = "forky";
const DEBIAN_GO: &str = "1.26";

/// A compiler, and what it must be told.
pub(crate) struct Toolchain {
    program: PathBuf,
    /// For one from a package that lies elsewhere than the package thinks.
    root: Option<PathBuf>,
}

impl Toolchain {
    /// The machine's own if it is new enough, else Debian's, kept like every other part (some 300 MB).
    fn provide() -> Result<Self> {
        if let Some(installed) = installed() {
            return Ok(installed);
        }
        let folder = parts::provide("go", |folder| {
            note(&format!("fetching Go {DEBIAN_GO} from Debian {DEBIAN_SUITE}"));
            let archive = Archive::open(DEBIAN_SUITE)?;
            // The library's source is a package of its own, which the compiler's links point to.
            archive.unpack(&format!("golang-{DEBIAN_GO}-src"), folder)?;
            archive.unpack(&format!("golang-{DEBIAN_GO}-go"), folder)
        })
        .context("cannot provide Go")?;
        let root = folder.join("usr/lib").join(format!("go-{DEBIAN_GO}"));
        let fetched = Self {
            program: root.join("bin/go"),
            root: Some(root),
        };
        fetched
            .version()
            .context("the unpacked Go does not run on this machine")?;
        Ok(fetched)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        // A module that wants a newer compiler must not fetch it behind our back.
        command.env("GOTOOLCHAIN", "local");
        if let Some(root) = &self.root {
            command.env("GOROOT", root);
        }
        command
    }

    fn version(&self) -> Result<(u32, u32, u32)> {
        let answer = output_of(self.command().args(["env", "GOVERSION"]))?;
        version_in(&answer).with_context(|| format!("Go's version is unreadable: {answer}"))
    }
}

/// The machine's own Go, if it is new enough.
pub(crate) fn installed() -> Option<Toolchain> {
    let toolchain = Toolchain {
        program: on_path("go")?,
        root: None,
    };
    toolchain
        .version()
        .is_ok_and(|version| version >= OLDEST_GO)
        .then_some(toolchain)
}

/// The numbers in what `go env GOVERSION` prints, `go1.26.3` for instance.
fn version_in(answer: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = answer
        .trim()
        .strip_prefix("go")?
        .split(|separator: char| !separator.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    Some((
        numbers.next()?,
        numbers.next().unwrap_or(0),
        numbers.next().unwrap_or(0),
    ))
}

/// Builds `containerd`, `ctr` and the shim for runc of one release into a folder, statically linked.
///
/// The parts that need C libraries are left out: the snapshotters of btrfs, zfs and devmapper.
pub(crate) fn build_containerd(version: &str, folder: &Path) -> Result<()> {
    const MODULE: &str = "github.com/containerd/containerd/v2";
    let go = Toolchain::provide()?;
    note(&format!(
        "building containerd {version} from its source, once (some minutes)"
    ));
    let caches = Caches::of(&go, folder)?;
    let mut install = go.command();
    install
        .arg("install")
        .args(caches.flags())
        .args([
            "-v",
            "-trimpath",
            "-tags",
            "no_btrfs,no_zfs,no_devmapper",
            "-ldflags",
        ])
        .arg(format!("-s -w -X {MODULE}/version.Version={version}"))
        .args(
            ["containerd", "ctr", "containerd-shim-runc-v2"]
                .map(|program| format!("{MODULE}/cmd/{program}@v{version}")),
        )
        .env("CGO_ENABLED", "0")
        .env("GOBIN", folder)
        // Only `GOBIN` and the machine's own processor are meant.
        .env_remove("GOOS")
        .env_remove("GOARCH")
        // Outside of any module, whose versions would count otherwise.
        .current_dir(folder);
    if let Caches::Temporary(folder) = &caches {
        install
            .env("GOPATH", folder.path().join("path"))
            .env("GOCACHE", folder.path().join("cache"));
    }
    follow(&mut install, &format!("containerd {version}"))
        .with_context(|| format!("cannot build containerd {version}"))?;
    caches.remove()
}

/// Runs a build that names each module and package on standard error, and tells every few seconds how far it is.
fn follow(build: &mut Command, what: &str) -> Result<()> {
    const TOLD_EVERY: Duration = Duration::from_secs(5);
    let mut child = build
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run go")?;
    let stderr = child.stderr.take().expect("it is piped");
    let mut said = Vec::new();
    let mut told = Instant::now();
    for line in BufReader::new(stderr).lines() {
        said.push(line?);
        if told.elapsed() >= TOLD_EVERY {
            note(&format!(
                "building {what}: {} modules and packages so far",
                said.len()
            ));
            told = Instant::now();
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`go install` failed ({status}):\n{}", tail(&said.join("\n"), 12));
    }
    Ok(())
}

/// Where Go keeps what it fetches and builds.
enum Caches {
    /// Where the machine's own Go keeps it, for the next time.
    Usual,
    /// In a folder that goes afterwards, for a Go that this machine does not use otherwise.
    Temporary(tempfile::TempDir),
}

impl Caches {
    /// What is temporary is in `beside`: /tmp may be memory, and this is 2 GB.
    fn of(go: &Toolchain, beside: &Path) -> Result<Self> {
        if go.root.is_none() {
            return Ok(Self::Usual);
        }
        Ok(Self::Temporary(
            tempfile::Builder::new().prefix(".go-").tempdir_in(beside)?,
        ))
    }

    fn flags(&self) -> &'static [&'static str] {
        match self {
            Self::Usual => &[],
            // Modules are read-only otherwise, and only root could remove their folder.
            Self::Temporary(_) => &["-modcacherw"],
        }
    }

    /// Takes up to 2 GB from the disk again.
    fn remove(self) -> Result<()> {
        match self {
            Self::Usual => Ok(()),
            Self::Temporary(folder) => Ok(folder.close()?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_go_is_read_whatever_follows_it() {
        let table = [
            ("go1.26.8\n", Some((1, 26, 8))),
            ("go1.27", Some((1, 27, 0))),
            ("go1.27rc1", Some((1, 27, 0))),
            ("go1.26.10 X:nodwarf5", Some((1, 26, 10))),
            ("devel +abc", None),
            ("", None),
        ];
        for (answer, expected) in table {
            assert_eq!(version_in(answer), expected, "{answer}");
        }
        assert!(version_in("go1.26.10") >= Some(OLDEST_GO) && version_in("go1.26.3") < Some(OLDEST_GO));
    }
}
