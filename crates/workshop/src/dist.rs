//! Builds the release: a statically linked program for each architecture, packages, a tarball, a
//! bill of materials.
//!
//! Every file is reproducible: paths of this machine are mapped away, times are that of the last
//! commit, archives are sorted. Rust's musl targets include the C library. The C code among the
//! dependencies (zstd, xz) is compiled against musl's headers from Debian. So nothing has to be
//! installed.
//!
//! rustup has no musl library for armv7, and Debian's Rust has none for riscv64. Those programs
//! link Debian's glibc statically. A static glibc cannot use name services, but only the commands
//! that fetch from registries need those.

mod sums;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use lab::{on_path, parts, workspace};
use workshop::own_image::{self, PROGRAM, Variant};

use crate::contents;
use crate::tried;
use xtask::checks::{cargo, cargo_tool, run, step};

const CARGO_DEB: &str = "3.8.0";
const CARGO_GENERATE_RPM: &str = "0.21.1";
const CARGO_CYCLONEDX: &str = "0.5.9";

/// A processor of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Architecture {
    #[value(name = "x86_64")]
    X86_64,
    Aarch64,
    Armv7,
    Riscv64,
}

impl Architecture {
    /// Returns Rust's name of the target.
    fn target(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-musl",
            Self::Aarch64 => "aarch64-unknown-linux-musl",
            Self::Armv7 => "armv7-unknown-linux-gnueabihf",
            Self::Riscv64 => "riscv64gc-unknown-linux-gnu",
        }
    }

    /// Returns dpkg's name.
    fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
            Self::Armv7 => "armhf",
            Self::Riscv64 => "riscv64",
        }
    }

    /// Returns the name in the files of a release.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
            Self::Armv7 => "armv7",
            Self::Riscv64 => "riscv64",
        }
    }

    /// Returns Debian's name of the emulator that runs a program for this processor. `None` if this
    /// machine can run it.
    pub(crate) fn emulator(self) -> Option<&'static str> {
        match self {
            _ if std::env::consts::ARCH == self.rust() => None,
            Self::X86_64 => Some("qemu-x86_64-static"),
            Self::Aarch64 => Some("qemu-aarch64-static"),
            Self::Armv7 => Some("qemu-arm-static"),
            Self::Riscv64 => Some("qemu-riscv64-static"),
        }
    }

    /// Returns Rust's name of the processor.
    fn rust(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
            Self::Armv7 => "arm",
            Self::Riscv64 => "riscv64",
        }
    }

    /// Returns this platform's part of airgapd's own image, with the program.
    fn variant(self, program: &Path) -> Variant {
        let (architecture, variant) = match self {
            Self::X86_64 => ("amd64", None),
            Self::Aarch64 => ("arm64", Some("v8")),
            Self::Armv7 => ("arm", Some("v7")),
            Self::Riscv64 => ("riscv64", None),
        };
        Variant {
            architecture,
            variant,
            files: vec![(PROGRAM.to_owned(), program.to_owned())],
        }
    }

    fn c_compiler(self) -> Result<PathBuf> {
        match self {
            Self::X86_64 => on_path("cc").context("this machine has no C compiler (cc)"),
            Self::Aarch64 => parts::cross_compiler("aarch64-linux-gnu", self.debian()),
            Self::Armv7 => parts::cross_compiler("arm-linux-gnueabihf", self.debian()),
            Self::Riscv64 => parts::cross_compiler("riscv64-linux-gnu", self.debian()),
        }
    }
}

/// Builds everything into `target/dist`. With `twice`, builds it again in another folder and
/// compares. With a key, signs the checksums.
pub(crate) fn run_task(architectures: &[Architecture], twice: bool, key: Option<&Path>) -> Result<()> {
    let target = workspace().join("target");
    let out = target.join("dist");
    make(architectures, &out, &target.join("dist-build"))?;
    if twice {
        step("a second build, from an empty folder");
        let again = tempfile::Builder::new()
            .prefix("airgapd-dist-")
            .tempdir_in(&target)?;
        let second = again.path().join("dist");
        make(architectures, &second, &again.path().join("build"))?;
        compare(&out, &second)?;
    }
    if let Some(key) = key {
        step("the signature over the checksums");
        sums::sign(&out, key)?;
    }
    step(&format!("done: {}", out.display()));
    print!("{}", fs::read_to_string(out.join(sums::SUMS))?);
    Ok(())
}

fn make(architectures: &[Architecture], out: &Path, build: &Path) -> Result<()> {
    let epoch = commit_time()?;
    let mut programs = Vec::new();
    for architecture in architectures {
        let program = compile(*architecture, build)?;
        tried::run(*architecture, &program)?;
        programs.push((*architecture, program));
    }
    let share = build.join("share");
    documentation(&share)?;
    // The files of an earlier run stay until the new programs are built.
    if out.exists() {
        fs::remove_dir_all(out)?;
    }
    fs::create_dir_all(out)?;
    for (architecture, program) in &programs {
        let release = Release {
            architecture: *architecture,
            program,
            share: &share,
            out,
            epoch: &epoch,
        };
        release.tarball(build)?;
        let (deb, rpm) = (release.deb(build)?, release.rpm(build)?);
        contents::compare(&deb, &rpm)?;
    }
    image(out, &programs)?;
    bill_of_materials(out)?;
    sums::write(out)
}

/// Writes the bundle with airgapd's own image, for a node that gets airgapd as a DaemonSet.
fn image(out: &Path, programs: &[(Architecture, PathBuf)]) -> Result<()> {
    let name = format!("airgapd-{}-image.tar", version());
    step(&name);
    let variants: Vec<_> = programs
        .iter()
        .map(|(architecture, program)| architecture.variant(program))
        .collect();
    own_image::write(&out.join(name), version(), &variants).map(drop)
}

/// Returns the time of the last commit in seconds since 1970. Every file of a release has this
/// time.
fn commit_time() -> Result<String> {
    let output = Command::new("git")
        .args(["log", "-1", "--format=%ct"])
        .current_dir(workspace())
        .output()
        .context("cannot run git")?;
    let time = String::from_utf8(output.stdout)?.trim().to_owned();
    if time.is_empty() {
        bail!("git gave no time of the last commit, which every file of a release must have");
    }
    Ok(time)
}

/// Builds the static program for one architecture.
fn compile(architecture: Architecture, build: &Path) -> Result<PathBuf> {
    let target = architecture.target();
    step(&format!("the program for {target}"));
    provide_target(target)?;
    let compiler = architecture.c_compiler()?;
    let underscored = target.replace('-', "_");
    let mut cargo = cargo();
    cargo
        .args([
            "build",
            "--locked",
            "--release",
            "--package",
            "airgapd",
            "--target",
            target,
        ])
        .arg("--target-dir")
        .arg(build)
        .env("SOURCE_DATE_EPOCH", commit_time()?)
        .env(format!("CC_{underscored}"), &compiler)
        .env(format!("CFLAGS_{underscored}"), c_flags(architecture, &compiler)?)
        .env(
            format!("CARGO_TARGET_{}_LINKER", underscored.to_uppercase()),
            &compiler,
        )
        .env("RUSTFLAGS", rust_flags(build));
    run(&mut cargo)?;
    let program = build.join(target).join("release/airgapd");
    let bytes = fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
    refuse_dynamic(&program, &bytes)?;
    refuse_places(&program, &bytes, build)?;
    Ok(program)
}

/// Installs the target's standard library with rustup, if the compiler lacks the library. A
/// toolchain without rustup, such as Debian's, must have it. `RUSTC` names another compiler.
fn provide_target(target: &str) -> Result<()> {
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(&compiler)
        .current_dir(workspace())
        .args(["--print=target-libdir", "--target", target])
        .output()
        .with_context(|| format!("cannot run {}", compiler.display()))?;
    let library = PathBuf::from(String::from_utf8(output.stdout)?.trim());
    if library.is_dir() {
        return Ok(());
    }
    if on_path("rustup").is_none() {
        bail!("{} has no standard library for {target}", compiler.display());
    }
    run(Command::new("rustup")
        .current_dir(workspace())
        .args(["target", "add", target]))
    .with_context(|| format!("rustup cannot provide Rust's standard library for {target}"))
}

/// Returns C flags for musl's headers where the C library is musl. They also keep this machine's
/// folders out of the result.
fn c_flags(architecture: Architecture, compiler: &Path) -> Result<String> {
    let reproducible = format!("-ffile-prefix-map={}=/cargo", cargo_home().display());
    // With outlined atomics, gcc calls helpers of its own runtime library.
    let outline = match architecture {
        Architecture::X86_64 => "",
        Architecture::Aarch64 => " -mno-outline-atomics",
        Architecture::Armv7 | Architecture::Riscv64 => return Ok(reproducible),
    };
    let output = Command::new(compiler).arg("-print-file-name=include").output()?;
    let own = String::from_utf8(output.stdout)?.trim().to_owned();
    let musl = parts::musl_headers(architecture.debian())?;
    Ok(format!(
        "-nostdinc -isystem {own} -isystem {} -U_FORTIFY_SOURCE -fno-stack-protector {reproducible}{outline}",
        musl.display(),
    ))
}

/// Returns flags that hide the folders of the sources and of generated code. rustc uses the last of
/// several matching prefixes, and `build` is usually below the workspace.
fn rust_flags(build: &Path) -> String {
    format!(
        "--remap-path-prefix={}=/airgapd --remap-path-prefix={}=/cargo --remap-path-prefix={}=/build -C target-feature=+crt-static",
        workspace().display(),
        cargo_home().display(),
        build.display(),
    )
}

fn cargo_home() -> PathBuf {
    std::env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        PathBuf::from,
    )
}

/// Refuses a program that needs an interpreter. It would not start on a node with another C
/// library, or under the unit.
fn refuse_dynamic(program: &Path, bytes: &[u8]) -> Result<()> {
    match wants_interpreter(bytes) {
        Some(false) => Ok(()),
        Some(true) => bail!("{} is not linked statically", program.display()),
        None => bail!("{} is no ELF program", program.display()),
    }
}

/// Refuses a program that contains its build folder. A build in another folder would then differ.
fn refuse_places(program: &Path, bytes: &[u8], build: &Path) -> Result<()> {
    let name = build.strip_prefix(workspace()).unwrap_or(build);
    for place in [workspace(), &cargo_home(), name] {
        let place = place.as_os_str().as_encoded_bytes();
        if bytes.windows(place.len()).any(|window| window == place) {
            bail!(
                "{} contains the build path {}",
                program.display(),
                String::from_utf8_lossy(place)
            );
        }
    }
    Ok(())
}

/// Returns true if a little-endian ELF file has a segment of the type `PT_INTERP` (elf(5)), or
/// `None` for another file.
fn wants_interpreter(elf: &[u8]) -> Option<bool> {
    const INTERPRETER: u64 = 3;
    let number = |at: usize, bytes: usize| {
        let bytes = elf.get(at..at.checked_add(bytes)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        )
    };
    // Program header table of files with 32 and 64 bits: offset, bytes of an entry, number of
    // entries.
    let (table, entry, entries) = match elf.get(..6)? {
        [0x7f, b'E', b'L', b'F', 1, 1] => (number(28, 4)?, number(42, 2)?, number(44, 2)?),
        [0x7f, b'E', b'L', b'F', 2, 1] => (number(32, 8)?, number(54, 2)?, number(56, 2)?),
        _ => return None,
    };
    let types = (0..entries).map(|index| number(usize::try_from(table + index * entry).ok()?, 4));
    let types: Vec<_> = types.collect::<Option<_>>()?;
    Some(types.contains(&INTERPRETER))
}

/// Writes manual pages and completions with a program that is built for this machine. All
/// architectures have the same ones.
fn documentation(share: &Path) -> Result<()> {
    step("manual pages and completions");
    if share.exists() {
        fs::remove_dir_all(share)?;
    }
    let man = share.join("man");
    fs::create_dir_all(&man)?;
    let airgapd = |arguments: &[&std::ffi::OsStr]| -> Result<Vec<u8>> {
        let output = cargo()
            .args(["run", "--quiet", "--locked", "--package", "airgapd", "--"])
            .args(arguments)
            .output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(output.stdout)
    };
    airgapd(&["man".as_ref(), man.as_os_str()])?;
    for page in fs::read_dir(&man)? {
        run(Command::new("gzip").args(["-n", "-9"]).arg(page?.path()))?;
    }
    for (shell, file) in [("bash", "airgapd"), ("zsh", "_airgapd"), ("fish", "airgapd.fish")] {
        fs::write(
            share.join(file),
            airgapd(&["completions".as_ref(), shell.as_ref()])?,
        )?;
    }
    Ok(())
}

/// The packages of one architecture.
struct Release<'a> {
    architecture: Architecture,
    program: &'a Path,
    share: &'a Path,
    out: &'a Path,
    epoch: &'a str,
}

impl Release<'_> {
    /// Returns the files of a node: source and place. The packages' own tables in Cargo.toml list
    /// the same.
    fn files(&self) -> Vec<(PathBuf, &'static str)> {
        let tree = workspace();
        vec![
            (self.program.to_owned(), "bin/airgapd"),
            (tree.join("systemd/airgapd.service"), "systemd/airgapd.service"),
            (tree.join("systemd/airgapd.catalog"), "systemd/airgapd.catalog"),
            (
                tree.join("systemd/airgapd-scrub.service"),
                "systemd/airgapd-scrub.service",
            ),
            (
                tree.join("systemd/airgapd-scrub.timer"),
                "systemd/airgapd-scrub.timer",
            ),
            (tree.join("openrc/airgapd.initd"), "openrc/airgapd.initd"),
            (tree.join("openrc/airgapd.confd"), "openrc/airgapd.confd"),
            (tree.join("openrc/airgapd.logrotate"), "openrc/airgapd.logrotate"),
            (tree.join("config/config.yaml"), "config/config.yaml"),
            (
                tree.join("config/prometheus-rules.yaml"),
                "config/prometheus-rules.yaml",
            ),
            (
                tree.join("config/grafana-dashboard.json"),
                "config/grafana-dashboard.json",
            ),
            (tree.join("README.md"), "README.md"),
            (tree.join("SECURITY.md"), "SECURITY.md"),
            (tree.join("CHANGELOG.md"), "CHANGELOG.md"),
            (tree.join("LICENSE"), "LICENSE"),
        ]
    }

    /// Writes `airgapd-<version>-<architecture>.tar.gz`, which has one folder of that name.
    fn tarball(&self, build: &Path) -> Result<()> {
        let name = format!("airgapd-{}-{}", version(), self.architecture.name());
        step(&format!("{name}.tar.gz"));
        let stage = build.join("stage");
        if stage.exists() {
            fs::remove_dir_all(&stage)?;
        }
        let root = stage.join(&name);
        for (from, to) in self.files() {
            let to = root.join(to);
            fs::create_dir_all(to.parent().expect("the place is below the root"))?;
            fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        }
        for folder in ["docs", "config/fleet", "systemd/drop-ins"] {
            let from = workspace().join(folder);
            if from.is_dir() {
                run(Command::new("cp").arg("-r").arg(from).arg(root.join(folder)))?;
            }
        }
        run(Command::new("cp")
            .arg("-r")
            .arg(self.share)
            .arg(root.join("share")))?;
        let tar = self.out.join(format!("{name}.tar"));
        run(Command::new("tar")
            .args([
                "--sort=name",
                "--owner=0",
                "--group=0",
                "--numeric-owner",
                "--format=gnu",
                "--mode=go+u,go-w",
            ])
            .arg(format!("--mtime=@{}", self.epoch))
            .arg("-cf")
            .arg(&tar)
            .arg("-C")
            .arg(&stage)
            .arg(&name))?;
        run(Command::new("gzip").args(["-n", "-9"]).arg(tar))
    }

    /// Writes a Debian package from the table `[package.metadata.deb]`.
    fn deb(&self, build: &Path) -> Result<PathBuf> {
        step(&format!("the Debian package for {}", self.architecture.debian()));
        let place = self.out.join(format!(
            "airgapd_{}_{}.deb",
            version(),
            self.architecture.debian()
        ));
        self.stage_for_packagers()?;
        run(cargo()
            .env("SOURCE_DATE_EPOCH", self.epoch)
            .env("CARGO_TARGET_DIR", build)
            .env("PATH", path_with(&cargo_tool("cargo-deb", CARGO_DEB)?)?)
            .args([
                "deb",
                "--no-build",
                "--no-strip",
                "--locked",
                "--package",
                "airgapd",
                "--target",
            ])
            .arg(self.architecture.target())
            .arg("--output")
            .arg(&place))?;
        Ok(place)
    }

    /// Writes an RPM package from the table `[package.metadata.generate-rpm]`.
    fn rpm(&self, build: &Path) -> Result<PathBuf> {
        step(&format!("the RPM package for {}", self.architecture.name()));
        let place = self
            .out
            .join(format!("airgapd-{}.{}.rpm", version(), self.architecture.name()));
        run(cargo()
            .env(
                "PATH",
                path_with(&cargo_tool("cargo-generate-rpm", CARGO_GENERATE_RPM)?)?,
            )
            .args([
                "generate-rpm",
                "--package",
                "crates/airgapd",
                // The program is linked statically and needs no packages.
                "--auto-req",
                "disabled",
                "--source-date",
                self.epoch,
                "--target-dir",
            ])
            .arg(build)
            .args(["--target", self.architecture.target(), "--output"])
            .arg(&place))?;
        Ok(place)
    }

    /// Copies the built files to a fixed place. The tables in Cargo.toml cannot name another.
    fn stage_for_packagers(&self) -> Result<()> {
        let stage = workspace().join("target/package");
        if stage.exists() {
            fs::remove_dir_all(&stage)?;
        }
        fs::create_dir_all(&stage)?;
        fs::copy(self.program, stage.join("airgapd"))?;
        run(Command::new("cp")
            .arg("-r")
            .arg(self.share)
            .arg(stage.join("share")))
    }
}

/// Returns a `PATH` with the program's folder, since cargo finds its sub-commands there.
fn path_with(program: &Path) -> Result<std::ffi::OsString> {
    let folder = program.parent().context("a program lies in a folder")?.to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    Ok(std::env::join_paths(
        std::iter::once(folder).chain(std::env::split_paths(&path)),
    )?)
}

fn version() -> &'static str {
    // All packages of this workspace have one version.
    env!("CARGO_PKG_VERSION")
}

/// Writes the program's bill of materials in the CycloneDX format, without the lines that differ
/// from run to run.
fn bill_of_materials(out: &Path) -> Result<()> {
    step("the bill of materials");
    let tool = cargo_tool("cargo-cyclonedx", CARGO_CYCLONEDX)?;
    let name = "airgapd.cdx";
    run(cargo()
        .env("PATH", path_with(&tool)?)
        .args([
            "cyclonedx",
            "--format",
            "json",
            "--target",
            "x86_64-unknown-linux-musl",
            "--no-build-deps",
        ])
        .args([
            "--manifest-path",
            "crates/airgapd/Cargo.toml",
            "--override-filename",
            name,
        ]))?;
    let made = workspace().join("crates/airgapd").join(format!("{name}.json"));
    let text = fs::read_to_string(&made).context("cargo-cyclonedx wrote no document")?;
    fs::remove_file(&made)?;
    // These lines have a random serial number and the time of the run.
    let kept: Vec<_> = text
        .lines()
        .filter(|line| !line.contains("\"serialNumber\"") && !line.contains("\"timestamp\""))
        .map(|line| line.replace(&*workspace().to_string_lossy(), "/airgapd"))
        .collect();
    fs::write(out.join(format!("{name}.json")), kept.join("\n") + "\n")?;
    Ok(())
}

fn compare(first: &Path, second: &Path) -> Result<()> {
    let (first, second) = (sums::sums(first)?, sums::sums(second)?);
    let differing: Vec<_> = first
        .iter()
        .filter(|entry| !second.contains(entry))
        .map(|(name, _)| name.as_str())
        .collect();
    if first.len() != second.len() || !differing.is_empty() {
        bail!("two builds differ in {}", differing.join(", "));
    }
    step("both builds are the same, byte by byte");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_an_interpreter_is_told_from_others() {
        let own = fs::read("/proc/self/exe").unwrap();
        let expected = !cfg!(target_feature = "crt-static");
        assert_eq!(wants_interpreter(&own), Some(expected));
        assert_eq!(wants_interpreter(&own[..40]), None);
        assert_eq!(wants_interpreter(b"#!/bin/sh\n"), None);
        assert_eq!(wants_interpreter(b""), None);
    }

    /// cargo-deb puts the lines that enable and stop the unit in the place of this token.
    #[test]
    fn each_script_of_the_debian_package_has_the_token_that_cargo_deb_replaces() {
        for script in ["postinst", "prerm", "postrm"] {
            let path = workspace().join("packaging/debian").join(script);
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.lines().any(|line| line == "#DEBHELPER#"), "{script}");
        }
    }
}
