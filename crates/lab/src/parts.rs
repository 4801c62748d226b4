//! The foreign programs: four generations of containerd, runc and tools, kept under `target/parts`.
//!
//! Each part is made in a folder of its own and moved into place whole, under a lock, so any number
//! of test processes may ask for the same part at once. Nothing is installed on the machine and
//! nothing of it is changed.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use crate::debian::{self, Archive};
use crate::{Heartbeat, golang, is_root, note, on_path, output_of, workspace};

/// The environment variable that makes a missing containerd a failure instead of something left
/// out.
pub const REQUIRE_CONTAINERD: &str = "AIRGAPD_REQUIRE_CONTAINERD";

/// The suite whose runc and busybox run on every Debian from its release on.
const OLDEST_SUITE: &str = "bookworm";

/// The environment variable that puts another generation in the place of 2.3 while tests run:
/// `2.4`.
///
/// The tests keep their names, so all that is said to be of 2.3 is of that generation then.
const TEST_CONTAINERD: &str = "AIRGAPD_TEST_CONTAINERD";

/// A generation of containerd that clusters run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Generation {
    /// 1.6, Debian bookworm's.
    V1_6,
    /// 1.7, Debian trixie's.
    V1_7,
    /// 2.0 to 2.2; Debian forky has 2.1.
    V2_1,
    /// 2.3, supported for longer than others, built from its source.
    V2_3,
    /// 2.4 and what comes after it, built from its source. Tested only where
    /// `AIRGAPD_TEST_CONTAINERD` asks for it.
    V2_4,
}

/// Where the programs of a generation come from.
enum Origin {
    /// The package of this Debian suite.
    Debian(&'static str),
    /// This release of the Go module.
    Module(&'static str),
}

impl Generation {
    /// The generations that every test runs on, oldest first.
    pub const ALL: [Self; 4] = [Self::V1_6, Self::V1_7, Self::V2_1, Self::V2_3];

    fn origin(self) -> Origin {
        match self {
            Self::V1_6 => Origin::Debian("bookworm"),
            Self::V1_7 => Origin::Debian("trixie"),
            Self::V2_1 => Origin::Debian("forky"),
            Self::V2_3 => Origin::Module(golang::CONTAINERD_2_3),
            Self::V2_4 => Origin::Module(golang::CONTAINERD_2_4),
        }
    }

    /// The generation of a version such as `1.7.24`, if it is one we know.
    pub fn of_version(version: &str) -> Option<Self> {
        let mut numbers = version
            .trim_start_matches('v')
            .split(|separator: char| !separator.is_ascii_digit());
        let (major, minor) = (numbers.next()?, numbers.next()?);
        match (major, minor.parse::<u32>().ok()?) {
            ("1", 6) => Some(Self::V1_6),
            ("1", 7) => Some(Self::V1_7),
            ("2", 0..=2) => Some(Self::V2_1),
            ("2", 3) => Some(Self::V2_3),
            ("2", _) => Some(Self::V2_4),
            _ => None,
        }
    }

    /// The generation that runs where tests ask for this one: itself, or what [`TEST_CONTAINERD`]
    /// puts in the place of 2.3.
    fn in_tests(self) -> Result<Self> {
        match std::env::var(TEST_CONTAINERD) {
            Ok(asked) if self == Self::V2_3 => asked
                .parse()
                .with_context(|| format!("{TEST_CONTAINERD} cannot be followed")),
            _ => Ok(self),
        }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1_6 => "1.6",
            Self::V1_7 => "1.7",
            Self::V2_1 => "2.1",
            Self::V2_3 => "2.3",
            Self::V2_4 => "2.4",
        })
    }
}

impl FromStr for Generation {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .chain([Self::V2_4])
            .find(|generation| generation.to_string() == text)
            .with_context(|| {
                format!("`{text}` is no generation of containerd: it is one of 1.6, 1.7, 2.1, 2.3 and 2.4")
            })
    }
}

/// Where the programs of one containerd are.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Which generation this is.
    pub generation: Generation,
    /// The version as the program gives it, `2.1.9+unknown` for instance.
    pub version: String,
    /// The daemon.
    pub containerd: PathBuf,
    /// Its command line client, of the same version.
    pub ctr: PathBuf,
    /// The folder with `containerd-shim-runc-v2`.
    pub(crate) shims: PathBuf,
    /// The container runtime, shared by all generations.
    pub runc: PathBuf,
}

/// The generations that tests can run on this machine, oldest first.
///
/// All of them as root on Debian, or when `AIRGAPD_REQUIRE_CONTAINERD` is set (what is missing then
/// fails where it is used). Otherwise, if we are root, the one on the `PATH` and those that the
/// machine's Go can build, or none; what is left out is said on standard error.
pub fn generations() -> Vec<Generation> {
    if std::env::var_os(REQUIRE_CONTAINERD).is_some() || (is_root() && debian::codename().is_some()) {
        return Generation::ALL.to_vec();
    }
    if !is_root() {
        note("left out: tests on real containerds, which only root can start");
        return Vec::new();
    }
    let (found, left_out): (Vec<_>, Vec<_>) = Generation::ALL
        .into_iter()
        .partition(|generation| can_be_had(*generation));
    let list = |generations: &[Generation]| {
        let names: Vec<_> = generations.iter().map(ToString::to_string).collect();
        names.join(", ")
    };
    if !left_out.is_empty() {
        note(&format!(
            "left out: tests on containerd {}; this machine is no Debian, its PATH has no such containerd{}",
            list(&left_out),
            if left_out.contains(&Generation::V2_3) {
                ", and no Go to build 2.3 with"
            } else {
                ""
            }
        ));
    }
    found
}

/// Whether a machine that is no Debian has a generation, or what it takes to make it.
fn can_be_had(generation: Generation) -> bool {
    // What cannot be followed is told where it is used.
    let generation = generation.in_tests().unwrap_or(generation);
    installed(generation).is_some()
        || (matches!(generation.origin(), Origin::Module(_)) && golang::installed().is_some())
}

/// The programs of one generation, fetched or built if they are not here yet.
///
/// Debian's are some 30 MB and take a few seconds. Those of 2.3 and 2.4 are built from their
/// source, which takes minutes and some 2 GB in Go's own caches; without a Go of the machine's own,
/// Debian's is fetched first.
///
/// # Errors
///
/// When this machine is neither a Debian nor has what it takes, or when something cannot be fetched
/// or built.
pub fn containerd_parts(generation: Generation) -> Result<Parts> {
    let asked = generation;
    let generation = asked.in_tests()?;
    if generation != asked {
        note(&format!("containerd {generation} stands in the place of {asked}"));
    }
    if debian::codename().is_none()
        && let Some(installed) = installed(generation)
    {
        return Ok(installed);
    }
    let bin = match generation.origin() {
        Origin::Debian(_) if debian::codename().is_none() => bail!(
            "no containerd {generation}: this machine is not a Debian, and its PATH has no such containerd"
        ),
        Origin::Debian(suite) => provide(&format!("containerd-{suite}"), |folder| {
            note(&format!("fetching containerd {generation} from Debian {suite}"));
            Archive::open(suite)?.unpack("containerd", folder)
        })
        .map(|folder| folder.join("usr/bin")),
        Origin::Module(version) => provide(&format!("containerd-{version}"), |folder| {
            golang::build_containerd(version, folder)
        }),
    };
    let bin = bin.with_context(|| format!("cannot provide containerd {generation}"))?;
    parts_in(&bin, generation)
}

fn installed(generation: Generation) -> Option<Parts> {
    let containerd = on_path("containerd")?;
    let parts = parts_in(containerd.parent()?, generation).ok()?;
    (Generation::of_version(&parts.version) == Some(generation)).then_some(parts)
}

fn parts_in(bin: &Path, generation: Generation) -> Result<Parts> {
    let containerd = bin.join("containerd");
    let answer = output_of(Command::new(&containerd).arg("--version"))?;
    let version =
        version_in(&answer).with_context(|| format!("containerd's version is unreadable: {answer}"))?;
    Ok(Parts {
        generation,
        version: version.to_owned(),
        ctr: bin.join("ctr"),
        shims: bin.to_owned(),
        runc: runc()?,
        containerd,
    })
}

/// The version in what `containerd --version` prints: `containerd <module> <version> <revision>`.
fn version_in(answer: &str) -> Option<&str> {
    answer
        .split_whitespace()
        .nth(2)
        .filter(|word| word.starts_with(|first: char| first.is_ascii_digit() || first == 'v'))
}

/// The machine's own runc, else bookworm's, whose libraries every Debian with apt has.
///
/// # Errors
///
/// When there is none and none can be fetched.
pub(crate) fn runc() -> Result<PathBuf> {
    if let Some(runc) = on_path("runc") {
        return Ok(runc);
    }
    let folder = provide("runc", |folder| {
        note("fetching runc from Debian");
        Archive::open(OLDEST_SUITE)?.unpack("runc", folder)
    })?;
    let runc = folder.join("usr/sbin/runc");
    output_of(Command::new(&runc).arg("--version"))
        .context("the unpacked runc does not run on this machine")?;
    Ok(runc)
}

/// A statically linked busybox for this machine's architecture, to put into a container image.
///
/// # Errors
///
/// When it cannot be fetched.
pub fn busybox() -> Result<PathBuf> {
    let folder = provide("busybox", |folder| {
        note("fetching busybox from Debian");
        Archive::open(OLDEST_SUITE)?.unpack("busybox-static", folder)
    })
    .context("cannot provide busybox")?;
    ["bin/busybox", "usr/bin/busybox"]
        .map(|path| folder.join(path))
        .into_iter()
        .find(|path| path.is_file())
        .context("the package has no busybox")
}

/// A program that some tests use: the one on the `PATH`, or a private one from the Debian package
/// of that name.
///
/// A private skopeo finds no policy file: give it `--insecure-policy`.
///
/// # Errors
///
/// When there is none and none can be fetched.
pub fn tool(name: &str) -> Result<PathBuf> {
    match on_path(name) {
        Some(program) => Ok(program),
        None => private_program(name, &[name]),
    }
}

/// Prometheus' own checker of metrics, rules and their tests: the one on the `PATH`, or a private
/// one.
///
/// # Errors
///
/// When there is none and none can be fetched.
pub fn promtool() -> Result<PathBuf> {
    of_prometheus("promtool")
}

/// Prometheus itself: the one on the `PATH`, or a private one (some 180 MB with its checker).
///
/// # Errors
///
/// When there is none and none can be fetched.
pub fn prometheus() -> Result<PathBuf> {
    of_prometheus("prometheus")
}

fn of_prometheus(program: &str) -> Result<PathBuf> {
    if let Some(program) = on_path(program) {
        return Ok(program);
    }
    let folder = provide("prometheus", |folder| {
        note("fetching Prometheus from Debian");
        // Without the scripts and fonts of Prometheus' pages, which the package depends on.
        Archive::open(OLDEST_SUITE)?.unpack("prometheus", folder)
    })
    .context("cannot provide Prometheus")?;
    Ok(folder.join("usr/bin").join(program))
}

/// systemd's judge of units: the machine's own, or a private one.
///
/// # Errors
///
/// When there is none and none can be fetched.
pub fn systemd_analyze() -> Result<PathBuf> {
    match on_path("systemd-analyze") {
        Some(program) => Ok(program),
        None => private_program("systemd-analyze", &["systemd"]),
    }
}

/// The program that makes ext4 file systems: the machine's own, or a private one. Debian 13's
/// minbase has none.
///
/// # Errors
///
/// When there is none and none can be fetched.
pub fn mkfs_ext4() -> Result<PathBuf> {
    match on_path("mkfs.ext4") {
        Some(program) => Ok(program),
        None => private_program("mkfs.ext4", &["e2fsprogs"]),
    }
}

/// The headers of musl for an architecture as dpkg names it, for C code in a statically linked
/// program.
///
/// # Errors
///
/// When they cannot be fetched.
pub fn musl_headers(architecture: &'static str) -> Result<PathBuf> {
    let folder = provide(&format!("musl-{architecture}"), |folder| {
        note(&format!("fetching musl's headers for {architecture} from Debian"));
        Archive::open_for(OLDEST_SUITE, Some(architecture))?.unpack("musl-dev", folder)
    })
    .with_context(|| format!("cannot provide musl's headers for {architecture}"))?;
    let include = folder.join("usr/include");
    fs::read_dir(&include)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.join("stdlib.h").is_file())
        .context("the package has no headers")
}

/// A C compiler for another architecture, by the names that Debian gives it (`aarch64-linux-gnu`
/// and `arm64` for instance), and the C library for it, which the compiler only recommends.
///
/// # Errors
///
/// When there is none and none can be fetched.
pub fn cross_compiler(triplet: &str, architecture: &str) -> Result<PathBuf> {
    let program = format!("{triplet}-gcc");
    match on_path(&program) {
        Some(program) => Ok(program),
        None => private_program(
            &program,
            &[
                &format!("gcc-{triplet}"),
                &format!("libc6-dev-{architecture}-cross"),
            ],
        ),
    }
}

/// What runs a program for another processor, by the name that Debian gives it
/// (`qemu-aarch64-static` for instance).
///
/// # Errors
///
/// When there is none and none can be fetched.
pub fn emulator(name: &str) -> Result<PathBuf> {
    match on_path(name) {
        Some(program) => Ok(program),
        None => private_program(name, &["qemu-user-static"]),
    }
}

/// The root of a minimal Debian (variant minbase) with further packages, named after its purpose;
/// to be copied, not changed (a minute or two).
///
/// # Errors
///
/// Without root, and when the packages cannot be fetched.
pub fn debian_root(suite: &str, purpose: &str, packages: &str) -> Result<PathBuf> {
    let debootstrap = match on_path("debootstrap") {
        Some(debootstrap) => debootstrap,
        None => private_program("debootstrap", &["debootstrap"])?,
    };
    provide(&format!("debian-{suite}-{purpose}"), |folder| {
        note(&format!("installing a minimal Debian {suite}"));
        let mut command = Command::new(debootstrap);
        command
            .args(["--variant=minbase", "--include", packages, suite])
            .arg(folder)
            .arg(debian::mirror()?);
        output_of(&mut command).map(drop)
    })
    .with_context(|| format!("cannot provide a Debian {suite}"))
}

/// Tools that tests make real bundles with, and the registry that they fetch from.
const TEST_TOOLS: [&str; 4] = ["skopeo", "umoci", "docker-registry", "zstd"];

/// Everything that builds, tests and the demonstration may ask for, so that they need not wait for
/// it later.
///
/// # Errors
///
/// When one of them cannot be had.
pub fn provide_all() -> Result<()> {
    for generation in generations() {
        let parts = containerd_parts(generation)?;
        note(&format!(
            "containerd {} is at {}",
            parts.version,
            parts.shims.display()
        ));
    }
    if debian::codename().is_some() {
        busybox()?;
        promtool()?;
        mkfs_ext4()?;
        TEST_TOOLS.iter().try_for_each(|name| tool(name).map(drop))?;
    }
    Ok(())
}

/// Whether this machine is one on which nothing may be left out: root on Debian, or anywhere in CI.
pub fn is_complete_machine() -> bool {
    (is_root() && debian::codename().is_some()) || std::env::var_os("CI").is_some()
}

/// Unpacks packages and what they need, and puts a script before the program that lets it find its
/// libraries.
fn private_program(program: &str, packages: &[&str]) -> Result<PathBuf> {
    let folder = provide(program, |folder| {
        let codename =
            debian::codename().context("this machine is not a Debian, so it has to be installed by hand")?;
        note(&format!("fetching {} from Debian", packages.join(", ")));
        Archive::open(&codename)?.unpack_with_dependencies(packages, folder)?;
        write_wrapper(folder, program)
    })
    .with_context(|| format!("cannot provide {program}"))?;
    Ok(folder.join(program))
}

fn write_wrapper(folder: &Path, program: &str) -> Result<()> {
    let Some(place) = ["usr/bin", "usr/sbin", "sbin"]
        .into_iter()
        .find(|place| folder.join(place).join(program).is_file())
    else {
        bail!("the packages have no {program}");
    };
    // debootstrap is a script that finds its parts by an absolute path, and calls wget; rpm reads
    // its macros by one.
    let script = format!(
        "#!/bin/sh\n\
         here=$(dirname \"$(readlink -f \"$0\")\")\n\
         for folder in \"$here\"/usr/lib/*-linux-* \"$here\"/usr/lib/*-linux-*/systemd \"$here\"/lib/*-linux-* \"$here\"/usr/lib; do\n\
         \tLD_LIBRARY_PATH=\"${{LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}}$folder\"\n\
         done\n\
         export LD_LIBRARY_PATH PATH=\"$PATH:$here/usr/bin\" DEBOOTSTRAP_DIR=\"$here/usr/share/debootstrap\" \\\n\
         \tRPM_CONFIGDIR=\"$here/usr/lib/rpm\"\n\
         exec \"$here/{place}/{program}\" \"$@\"\n"
    );
    let path = folder.join(program);
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The folder of one part: as it is, or made by `build` in an empty folder and moved into place
/// when whole.
///
/// Safe for several processes at once; one that dies leaves nothing that another would take for the
/// part.
pub(crate) fn provide(name: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    provide_in(&workspace().join("target/parts"), name, build)
}

fn provide_in(home: &Path, name: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let folder = home.join(name);
    if folder.is_dir() {
        return Ok(folder);
    }
    fs::create_dir_all(home)?;
    let lock = File::create(home.join(format!(".{name}.lock")))?;
    lock.lock()
        .with_context(|| format!("cannot lock {}", home.display()))?;
    if folder.is_dir() {
        return Ok(folder);
    }
    let unfinished = home.join(format!(".{name}.unfinished"));
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    fs::create_dir(&unfinished)?;
    let heartbeat = Heartbeat::start(&format!("still at {name}"));
    build(&unfinished)?;
    drop(heartbeat);
    fs::rename(&unfinished, &folder)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn the_version_is_the_third_word_whatever_the_module_path() {
        let table = [
            (
                "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1",
                Some("1.6.20~ds1"),
            ),
            (
                "containerd github.com/containerd/containerd/v2 2.1.9+unknown \n",
                Some("2.1.9+unknown"),
            ),
            ("containerd containerd.io v1.7.24 abc", Some("v1.7.24")),
            ("containerd: unknown flag", None),
            ("", None),
        ];
        for (answer, expected) in table {
            assert_eq!(version_in(answer), expected, "{answer}");
        }
    }

    #[test]
    fn a_version_belongs_to_the_generation_of_its_first_numbers() {
        let table = [
            ("1.6.20~ds1", Some(Generation::V1_6)),
            ("v1.7.24", Some(Generation::V1_7)),
            ("2.1.9+unknown", Some(Generation::V2_1)),
            ("2.0.0-rc.1", Some(Generation::V2_1)),
            ("2.2.1", Some(Generation::V2_1)),
            ("v2.3.7-k3s1", Some(Generation::V2_3)),
            ("2.4.0-beta.0", Some(Generation::V2_4)),
            ("2.10.1", Some(Generation::V2_4)),
            ("2.x", None),
            ("1.5.9", None),
            ("1.60.0", None),
            ("20.1", None),
            ("2", None),
            ("", None),
        ];
        for (version, expected) in table {
            assert_eq!(Generation::of_version(version), expected, "{version}");
        }
    }

    #[test]
    fn a_generation_is_read_as_it_is_written() {
        for generation in Generation::ALL.into_iter().chain([Generation::V2_4]) {
            assert_eq!(generation.to_string().parse::<Generation>().unwrap(), generation);
        }
        let error = "3".parse::<Generation>().unwrap_err().to_string();
        assert!(error.contains("`3`") && error.contains("1.7"), "{error}");
    }

    #[test]
    fn a_part_that_many_ask_for_is_made_once() {
        let home = tempfile::tempdir().unwrap();
        let made = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let folder = provide_in(home.path(), "part", |folder| {
                        made.fetch_add(1, Ordering::SeqCst);
                        Ok(fs::write(folder.join("file"), "x")?)
                    })
                    .unwrap();
                    assert!(folder.join("file").is_file());
                });
            }
        });
        assert_eq!(made.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_part_that_could_not_be_made_is_not_there_and_is_made_anew() {
        let home = tempfile::tempdir().unwrap();
        let failed = provide_in(home.path(), "part", |folder| {
            fs::write(folder.join("half"), "x")?;
            bail!("no network")
        });
        assert!(failed.is_err());
        let folder = provide_in(home.path(), "part", |folder| {
            Ok(fs::write(folder.join("whole"), "x")?)
        })
        .unwrap();
        assert!(folder.join("whole").is_file() && !folder.join("half").exists());
    }
}
