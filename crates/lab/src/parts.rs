//! The foreign programs: four generations of containerd, runc and tools, kept in `target/parts`.
//!
//! Each part is made in its own folder under a lock and then moved into place. So any number of
//! test processes can ask for the same part at once. The code installs nothing on the machine and
//! changes nothing on it.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use crate::debian::{self, Archive};
use crate::{Heartbeat, ansible, golang, is_root, note, on_path, output_of, workspace};

/// Environment variable that makes a missing containerd a failure. Without it, the tests that need
/// it are left out.
pub const REQUIRE_CONTAINERD: &str = "AIRGAPD_REQUIRE_CONTAINERD";

/// Oldest suite in use. Its programs also run on every later Debian.
pub(crate) const OLDEST_SUITE: &str = "bookworm";

/// Environment variable that replaces generation 2.3 in tests by another one: `2.4`.
///
/// The tests keep their names, so a test named after 2.3 then runs on that generation.
const TEST_CONTAINERD: &str = "AIRGAPD_TEST_CONTAINERD";

/// A generation of containerd that clusters run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Generation {
    /// 1.6, Debian bookworm's.
    V1_6,
    /// 1.7, Debian trixie's.
    V1_7,
    /// 2.0 to 2.2. Debian forky has 2.1.
    V2_1,
    /// 2.3, built from its source. Upstream supports it longer than other releases.
    V2_3,
    /// 2.4 and later, built from its source. Tests use it only if `AIRGAPD_TEST_CONTAINERD` names
    /// it.
    V2_4,
}

/// The source of a generation's programs.
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

    /// Returns the generation of a version such as `1.7.24`, if it is a known one.
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

    /// Returns the generation that tests run in place of this one. It is the same unless
    /// [`TEST_CONTAINERD`] replaces 2.3.
    fn in_tests(self) -> Result<Self> {
        match std::env::var(TEST_CONTAINERD) {
            Ok(asked) if self == Self::V2_3 => asked
                .parse()
                .with_context(|| format!("cannot use the value of {TEST_CONTAINERD}")),
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
            .with_context(|| format!("unknown containerd generation `{text}`: use 1.6, 1.7, 2.1, 2.3 or 2.4"))
    }
}

/// The paths of one containerd's programs.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The generation of the containerd.
    pub generation: Generation,
    /// The version as the program prints it, for example `2.1.9+unknown`.
    pub version: String,
    /// The daemon.
    pub containerd: PathBuf,
    /// The command line client of the same version.
    pub ctr: PathBuf,
    /// The folder with `containerd-shim-runc-v2`.
    pub(crate) shims: PathBuf,
    /// The container runtime, shared by all generations.
    pub runc: PathBuf,
}

/// Returns the generations that tests can run on this machine, oldest first.
///
/// As root on Debian, or if `AIRGAPD_REQUIRE_CONTAINERD` is set, these are all generations. A
/// missing one then fails the test that uses it. On another machine, root gets the generation on
/// the `PATH` and those that the machine's Go can build. Other users get none. Generations that are
/// left out are reported on standard error.
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
            "left out: tests on containerd {}: this machine is not Debian and has none on its PATH{}",
            list(&left_out),
            if left_out.contains(&Generation::V2_3) {
                " and no Go to build 2.3 with"
            } else {
                ""
            }
        ));
    }
    found
}

/// Returns true if a machine other than Debian has a generation or can build it.
fn can_be_had(generation: Generation) -> bool {
    // A wrong value of the variable is reported where the generation is used.
    let generation = generation.in_tests().unwrap_or(generation);
    installed(generation).is_some()
        || (matches!(generation.origin(), Origin::Module(_)) && golang::installed().is_some())
}

/// Returns the programs of one generation. The first call fetches or builds them.
///
/// Debian's programs are some 30 MB and take a few seconds. Those of 2.3 and 2.4 are built from
/// their source, in minutes and some 2 GB of Go's own caches. If the machine has no Go
/// that is new enough, Debian's is fetched first.
///
/// # Errors
///
/// Returns an error if a fetch or a build fails, or if a machine without Debian lacks the programs.
pub fn containerd_parts(generation: Generation) -> Result<Parts> {
    let asked = generation;
    let generation = asked.in_tests()?;
    if generation != asked {
        note(&format!("using containerd {generation} in place of {asked}"));
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

/// Returns the version in the output of `containerd --version`: `containerd <module> <version>
/// <revision>`.
fn version_in(answer: &str) -> Option<&str> {
    answer
        .split_whitespace()
        .nth(2)
        .filter(|word| word.starts_with(|first: char| first.is_ascii_digit() || first == 'v'))
}

/// Returns the machine's own runc, or else that of bookworm. Every Debian has the libraries for it,
/// because apt needs them.
///
/// # Errors
///
/// Returns an error if the machine has no runc and the fetch fails.
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

/// Returns a statically linked busybox for this machine's architecture, for use in a container
/// image.
///
/// # Errors
///
/// Returns an error if the fetch fails.
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

/// Returns a program that some tests use, from the `PATH` or from the Debian package of that name.
///
/// A fetched skopeo finds no policy file: give it `--insecure-policy`.
///
/// # Errors
///
/// Returns an error if the machine has no such program and the fetch fails.
pub fn tool(name: &str) -> Result<PathBuf> {
    match on_path(name) {
        Some(program) => Ok(program),
        None => private_program(name, &[name]),
    }
}

/// Returns cosign, which signs files, from the package of a Debian suite: cosign 2 in trixie,
/// cosign 3 in forky. They take other flags, so a cosign on the `PATH` does not count.
///
/// # Errors
///
/// Returns an error if the fetch fails, or if the program does not run on this machine.
pub fn cosign(suite: &str) -> Result<PathBuf> {
    let folder = provide(&format!("cosign-{suite}"), |folder| {
        note(&format!("fetching cosign from Debian {suite}"));
        Archive::open(suite)?.unpack("cosign", folder)
    })
    .context("cannot provide cosign")?;
    let cosign = folder.join("usr/bin/cosign");
    output_of(Command::new(&cosign).arg("version")).context("the unpacked cosign does not run")?;
    Ok(cosign)
}

/// Returns igzip, which decompresses gzip faster than gzip does, from the `PATH` or from Debian.
///
/// # Errors
///
/// Returns an error if the machine has no igzip and the fetch fails.
pub fn igzip() -> Result<PathBuf> {
    match on_path("igzip") {
        Some(program) => Ok(program),
        None => private_program("igzip", &["isal"]),
    }
}

/// Returns promtool, which checks metrics, rules and their tests, from the `PATH` or from Debian.
///
/// # Errors
///
/// Returns an error if the machine has no promtool and the fetch fails.
pub fn promtool() -> Result<PathBuf> {
    of_prometheus("promtool")
}

/// Returns Prometheus from the `PATH` or from Debian (some 180 MB with promtool).
///
/// # Errors
///
/// Returns an error if the machine has no Prometheus and the fetch fails.
pub fn prometheus() -> Result<PathBuf> {
    of_prometheus("prometheus")
}

fn of_prometheus(program: &str) -> Result<PathBuf> {
    if let Some(program) = on_path(program) {
        return Ok(program);
    }
    let folder = provide("prometheus", |folder| {
        note("fetching Prometheus from Debian");
        // The package depends on scripts and fonts for Prometheus' web pages. Tests do not need
        // them.
        Archive::open(OLDEST_SUITE)?.unpack("prometheus", folder)
    })
    .context("cannot provide Prometheus")?;
    Ok(folder.join("usr/bin").join(program))
}

/// Returns systemd-analyze, which checks units, from the machine or from Debian.
///
/// # Errors
///
/// Returns an error if the machine has no systemd-analyze and the fetch fails.
pub fn systemd_analyze() -> Result<PathBuf> {
    match on_path("systemd-analyze") {
        Some(program) => Ok(program),
        None => private_program("systemd-analyze", &["systemd"]),
    }
}

/// Returns the program that makes ext4 file systems, from the machine or from Debian. A minbase of
/// Debian 13 does not have it.
///
/// # Errors
///
/// Returns an error if the machine has no such program and the fetch fails.
pub fn mkfs_ext4() -> Result<PathBuf> {
    match on_path("mkfs.ext4") {
        Some(program) => Ok(program),
        None => private_program("mkfs.ext4", &["e2fsprogs"]),
    }
}

/// Returns the program that connects network namespaces, from the machine or from Debian.
///
/// # Errors
///
/// Returns an error if the machine has no such program and the fetch fails.
pub fn ip() -> Result<PathBuf> {
    match on_path("ip") {
        Some(program) => Ok(program),
        None => private_program("ip", &["iproute2"]),
    }
}

/// Returns the folder with musl's headers for an architecture as dpkg names it. C code in a
/// statically linked program needs them.
///
/// # Errors
///
/// Returns an error if the fetch fails.
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

/// Returns a C compiler for another architecture. Debian's names are, for example,
/// `aarch64-linux-gnu` and `arm64`. The C library is fetched too, since the compiler's package only
/// recommends it.
///
/// # Errors
///
/// Returns an error if the machine has no such compiler and the fetch fails.
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

/// Returns an emulator that runs programs for another processor. Debian's name is, for example,
/// `qemu-aarch64-static`.
///
/// # Errors
///
/// Returns an error if the machine has no such emulator and the fetch fails.
pub fn emulator(name: &str) -> Result<PathBuf> {
    match on_path(name) {
        Some(program) => Ok(program),
        None => private_program(name, &["qemu-user-static"]),
    }
}

/// Returns the root folder of a minimal Debian (variant minbase) with further packages. Its name
/// has the `purpose`. The first call takes a minute or two. Copy the folder, and do not change it.
///
/// # Errors
///
/// Returns an error if the process does not run as root or if the packages cannot be fetched.
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

/// Tools that make and sign real bundles for tests, and the registry that tests fetch from.
const TEST_TOOLS: [&str; 5] = ["skopeo", "umoci", "docker-registry", "zstd", "minisign"];

/// Suites whose cosign tests sign with.
pub const COSIGN_SUITES: [&str; 2] = ["trixie", "forky"];

/// Provides all programs that builds, tests and the demonstration use, so that none of them waits
/// later.
///
/// # Errors
///
/// Returns an error if a program cannot be provided.
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
        ip()?;
        TEST_TOOLS.iter().try_for_each(|name| tool(name).map(drop))?;
        COSIGN_SUITES
            .iter()
            .try_for_each(|suite| cosign(suite).map(drop))?;
        ansible::ansible()?;
    }
    Ok(())
}

/// Returns true if no test may be left out on this machine: as root on Debian, or in CI.
pub fn is_complete_machine() -> bool {
    (is_root() && debian::codename().is_some()) || std::env::var_os("CI").is_some()
}

/// Unpacks packages and their dependencies, and writes a script that starts the program with its
/// libraries.
fn private_program(program: &str, packages: &[&str]) -> Result<PathBuf> {
    let folder = provide(program, |folder| {
        let codename =
            debian::codename().context("this machine is not a Debian: install the program by hand")?;
        note(&format!("fetching {} from Debian", packages.join(", ")));
        Archive::open(&codename)?.unpack_with_dependencies(packages, folder)?;
        write_wrapper(folder, program)
    })
    .with_context(|| format!("cannot provide {program}"))?;
    Ok(folder.join(program))
}

fn write_wrapper(folder: &Path, program: &str) -> Result<()> {
    let Some(place) = ["usr/bin", "bin", "usr/sbin", "sbin"]
        .into_iter()
        .find(|place| folder.join(place).join(program).is_file())
    else {
        bail!("the packages have no {program}");
    };
    // debootstrap is a script that calls wget and finds its parts by an absolute path. rpm finds
    // its macros by an absolute path too.
    let script = format!(
        "#!/bin/sh\n\
         here=$(dirname \"$(readlink -f \"$0\")\")\n\
         for folder in \"$here\"/usr/lib/*-linux-* \"$here\"/usr/lib/*-linux-*/systemd \"$here\"/lib/*-linux-* \"$here\"/usr/lib\n\
         do\n\
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

/// Returns the folder of one part. If it does not exist, `build` fills an empty folder, which is
/// then moved into place.
///
/// Several processes may call this at once. A process that dies leaves no folder that could be
/// mistaken for the part.
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
    let heartbeat = Heartbeat::start(&format!("still providing {name}"));
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
