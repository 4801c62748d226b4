//! Builds programs from Go modules: the containerds that Debian does not have, and kubelet.
//!
//! This module knows Go and the module proxy, but not apt, and not how a containerd runs. Go's own
//! settings on this machine say where modules come from. Go checks what it fetches against the
//! checksum database unless those settings turn the check off.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::debian::Archive;
use crate::{note, on_path, output_of, parts};

/// Newest release of 2.3 on the module proxy when this was written.
pub(crate) const CONTAINERD_2_3: &str = "2.3.7";

/// Newest release of 2.4 on the module proxy when this was written.
pub(crate) const CONTAINERD_2_4: &str = "2.4.2";

/// Oldest Go that the `go.mod` of containerd 2.3.7 accepts. containerd 2.4.2 accepts 1.26.6.
const OLDEST_GO: (u32, u32, u32) = (1, 26, 8);

/// Debian suite whose Go is new enough.
const DEBIAN_SUITE: &str = "forky";
const DEBIAN_GO: &str = "1.26";

/// A Go compiler and the environment that it needs.
pub(crate) struct Toolchain {
    program: PathBuf,
    /// `GOROOT` of a compiler that was unpacked to another place than its package expects.
    root: Option<PathBuf>,
}

impl Toolchain {
    /// Returns the machine's own compiler if it is new enough, or else Debian's. Debian's takes
    /// some 300 MB and is kept like every other part.
    fn provide() -> Result<Self> {
        if let Some(installed) = installed() {
            return Ok(installed);
        }
        let folder = parts::provide("go", |folder| {
            note(&format!("fetching Go {DEBIAN_GO} from Debian {DEBIAN_SUITE}"));
            let archive = Archive::open(DEBIAN_SUITE)?;
            // The standard library is a package of its own. Links in the compiler's package point
            // to it.
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
        // Go would otherwise fetch a newer compiler if a module asks for it.
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

/// Returns the machine's own Go, if it is new enough.
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

/// Returns the numbers in the output of `go env GOVERSION`, for example `go1.26.3`.
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

/// Builds `containerd`, `ctr` and the runc shim of one release into a folder, statically linked.
///
/// It leaves out the snapshotters that need C libraries: btrfs, zfs and devmapper.
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
        .args(["-trimpath", "-tags", "no_btrfs,no_zfs,no_devmapper", "-ldflags"])
        .arg(format!("-s -w -X {MODULE}/version.Version={version}"))
        .args(
            ["containerd", "ctr", "containerd-shim-runc-v2"]
                .map(|program| format!("{MODULE}/cmd/{program}@v{version}")),
        )
        .env("CGO_ENABLED", "0")
        .env("GOBIN", folder)
        // The programs are for this machine, and `GOBIN` works only for its own processor.
        .env_remove("GOOS")
        .env_remove("GOARCH")
        // Inside a module, the versions of that module would count.
        .current_dir(folder);
    output_of(caches.apply(&mut install)).with_context(|| format!("cannot build containerd {version}"))?;
    caches.remove()
}

/// Builds `kubelet` of one Kubernetes release into a folder, statically linked.
///
/// The Kubernetes module replaces its staging modules with folders of its repository. No other
/// module may do that. So kubelet is built in a separate module, which replaces them with the
/// releases that belong to this version.
pub(crate) fn build_kubelet(version: &str, folder: &Path) -> Result<()> {
    const MODULE: &str = "k8s.io/kubernetes";
    let go = Toolchain::provide()?;
    note(&format!(
        "building kubelet {version} from its source, once (some minutes)"
    ));
    let caches = Caches::of(&go, folder)?;
    let module = tempfile::Builder::new().prefix("airgapd-kubelet-").tempdir()?;
    let mut list = go.command();
    list.args(["list", "-m"])
        .args(caches.flags())
        .args(["-f", "{{.GoMod}}"])
        .arg(format!("{MODULE}@v{version}"))
        .current_dir(module.path());
    let original =
        output_of(caches.apply(&mut list)).with_context(|| format!("cannot fetch {MODULE} {version}"))?;
    let original = fs::read_to_string(original.trim()).context("Go has no go.mod of Kubernetes")?;
    fs::write(
        module.path().join("go.mod"),
        module_of_kubelet(version, &original)?,
    )?;
    let mut build = go.command();
    build
        .arg("build")
        .args(caches.flags())
        .args(["-mod=mod", "-trimpath", "-ldflags"])
        .arg(format!(
            "-s -w -X k8s.io/component-base/version.gitVersion=v{version}"
        ))
        .arg("-o")
        .arg(folder.join("kubelet"))
        .arg(format!("{MODULE}/cmd/kubelet"))
        .env("CGO_ENABLED", "0")
        .env_remove("GOOS")
        .env_remove("GOARCH")
        .current_dir(module.path());
    output_of(caches.apply(&mut build)).with_context(|| format!("cannot build kubelet {version}"))?;
    caches.remove()
}

/// Returns the `go.mod` of a module that builds kubelet, made from the `go.mod` of Kubernetes.
///
/// The staging modules of 1.36.3 are released as 0.36.3.
fn module_of_kubelet(version: &str, original: &str) -> Result<String> {
    let staged = version.strip_prefix("1.").context("Kubernetes is at 1.x")?;
    let lines = || original.lines().map(str::trim);
    let settings = lines().filter(|line| line.starts_with("go ") || line.starts_with("godebug "));
    let mut module = String::from("module airgapd.test/kubelet\n\n");
    for setting in settings {
        module.push_str(&format!("{setting}\n"));
    }
    module.push_str(&format!("\nrequire k8s.io/kubernetes v{version}\n\nreplace (\n"));
    let mut replaced = 0;
    for name in lines().filter_map(|line| Some(line.split_once(" => ./staging/")?.0)) {
        replaced += 1;
        module.push_str(&format!("\t{name} => {name} v0.{staged}\n"));
    }
    if replaced == 0 {
        bail!("the go.mod of Kubernetes {version} replaces no staging module");
    }
    module.push_str(")\n");
    Ok(module)
}

/// The folder in which Go keeps its downloads and builds.
enum Caches {
    /// The machine's own Go keeps them for the next build.
    Usual,
    /// A folder that is removed after the build, for a Go that this machine does not use otherwise.
    Temporary(tempfile::TempDir),
}

impl Caches {
    /// Returns the caches for a compiler. A temporary folder is made in `beside`: /tmp may be
    /// memory, and the caches take 2 GB.
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
            // Go makes modules read-only otherwise, and only root could remove their folder.
            Self::Temporary(_) => &["-modcacherw"],
        }
    }

    fn apply<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        if let Self::Temporary(folder) = self {
            command
                .env("GOPATH", folder.path().join("path"))
                .env("GOCACHE", folder.path().join("cache"));
        }
        command
    }

    /// Frees up to 2 GB of disk.
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
    fn kubelets_module_has_the_releases_of_the_staging_modules() {
        let original = "module k8s.io/kubernetes\n\ngo 1.26.0\n\ngodebug default=go1.26\n\nrequire (\n\tgo.uber.org/zap v1.27.1\n)\n\n\
            replace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n\tk8s.io/kubelet => ./staging/src/k8s.io/kubelet\n)\n";
        assert_eq!(
            module_of_kubelet("1.36.3", original).unwrap(),
            "module airgapd.test/kubelet\n\ngo 1.26.0\ngodebug default=go1.26\n\nrequire k8s.io/kubernetes v1.36.3\n\n\
             replace (\n\tk8s.io/api => k8s.io/api v0.36.3\n\tk8s.io/kubelet => k8s.io/kubelet v0.36.3\n)\n"
        );
        assert!(module_of_kubelet("1.36.3", "module k8s.io/kubernetes\n").is_err());
        assert!(module_of_kubelet("2.0.0", original).is_err());
    }

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
