//! Checks if containerd unpacks gzip layers with one of the faster programs that it looks for.
//!
//! If its `PATH` has one, containerd runs it instead of its own Go decoder. It looks once, before
//! the first gzip layer (`pkg/archive/compression` in the source of containerd 2).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use containerd::Version;
use import::unpack::Unpack;
use node::place::Place;
use node::settings::Settings;
use tokio::net::UnixStream;

use super::{Finding, note, ok};

/// A program that containerd looks for.
struct Decoder {
    name: &'static str,
    /// Packages that have the program.
    packages: &'static str,
    /// First major version of containerd that looks for the program.
    since: u64,
    /// Variable that keeps containerd from the program if it is true.
    switch: &'static str,
    /// Effect on unpacking. docs/performance-details.md has the measurement.
    gain: &'static str,
}

/// The programs in containerd's order.
const DECODERS: [Decoder; 2] = [
    Decoder {
        name: "igzip",
        packages: "isal (Debian, Ubuntu) or isa-l-tools (Fedora)",
        since: 2,
        switch: "CONTAINERD_DISABLE_IGZIP",
        gain: "20 to 50 % less time and a fifth less CPU",
    },
    Decoder {
        name: "unpigz",
        packages: "pigz",
        since: 1,
        switch: "CONTAINERD_DISABLE_PIGZ",
        gain: "10 to 50 % less time and a fifth more CPU",
    },
];

/// Checks the process of containerd. Returns `None` if the node does not unpack ahead, or if the
/// process is not visible from here.
pub(super) async fn of_gzip(node: &Place, settings: &Settings, version: &Version) -> Option<Finding> {
    if settings.unpack == Unpack::None {
        return None;
    }
    let stream = UnixStream::connect(&node.socket).await.ok()?;
    let process = PathBuf::from(format!("/proc/{}", stream.peer_cred().ok()?.pid()?));
    // Another program may listen in place of containerd, for instance systemd or a proxy.
    if std::fs::read(process.join("comm")).ok()? != b"containerd\n" {
        return None;
    }
    let environment = std::fs::read(process.join("environ")).ok()?;
    // The process may have another root folder, for instance if airgapd runs in a container.
    let root = process.join("root");
    judge(version, &environment, |file| {
        is_program(&root.join(file.strip_prefix("/").unwrap_or(file)))
    })
}

fn is_program(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Decides by containerd's version and environment, in the form of proc_pid_environ(5). Returns
/// `None` if the operator keeps containerd from a program that it lacks.
fn judge(version: &Version, environment: &[u8], is_program: impl Fn(&Path) -> bool) -> Option<Finding> {
    // A containerd without a number counts as a new one.
    let is_known = |decoder: &&Decoder| !version.is_known() || version.major >= decoder.since;
    let is_off = |decoder: &&Decoder| is_true(variable(environment, decoder.switch));
    let known = || DECODERS.iter().filter(is_known);
    // containerd uses no program that a relative entry leads to (`exec.LookPath` of Go).
    let folders = || {
        std::env::split_paths(OsStr::from_bytes(variable(environment, "PATH")))
            .filter(|folder| folder.is_absolute())
    };
    let mut files = known()
        .filter(|decoder| !is_off(decoder))
        .flat_map(|decoder| folders().map(|folder| folder.join(decoder.name)));
    if let Some(file) = files.find(|file| is_program(file)) {
        let file = file.display();
        return Some(ok(
            "unpack",
            format!("containerd unpacks gzip layers with {file}"),
        ));
    }
    let best = known().next()?;
    let finding = note(
        "unpack",
        format!(
            "containerd's PATH lacks {}. With it, unpacking gzip layers takes {}",
            best.name, best.gain
        ),
        format!("install {}, and restart containerd", best.packages),
    );
    (!known().any(|decoder| is_off(&decoder))).then_some(finding)
}

/// Returns the value of a variable. It is empty if the variable is missing. The first of several
/// counts, as in Go.
fn variable<'a>(environment: &'a [u8], name: &str) -> &'a [u8] {
    let value = |entry: &'a [u8]| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=");
    environment
        .split(|byte| *byte == 0)
        .find_map(value)
        .unwrap_or_default()
}

/// Returns true for the texts that Go's `strconv.ParseBool` takes for true.
fn is_true(value: &[u8]) -> bool {
    matches!(value, b"1" | b"t" | b"T" | b"true" | b"TRUE" | b"True")
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn the_program_is_found_where_containerd_looks_for_it() {
        let ok = |text| Some((Verdict::Ok, text));
        let note = |text| Some((Verdict::Note, text));
        for (version, environment, expected) in [
            ("2.0.0", "HOME=/\0PATH=/usr/bin:/opt/bin\0", ok("/opt/bin/igzip")),
            ("v2.1.9-k3s1", "PATH=/opt/bin", ok("/opt/bin/igzip")),
            ("unknown", "PATH=/opt/bin", ok("/opt/bin/igzip")),
            ("2.1.9", "PATH=/opt/pigz:/opt/bin", ok("/opt/bin/igzip")),
            ("2.1.9", "PATH=/opt/pigz", ok("/opt/pigz/unpigz")),
            ("1.7.24~ds1", "PATH=/opt/bin:/opt/pigz\0", ok("/opt/pigz/unpigz")),
            ("2.1.9", "PATH=/usr/bin:/bin\0", note("lacks igzip")),
            ("2.1.9", "PATH=\0", note("lacks igzip")),
            ("2.1.9", "XPATH=/opt/bin\0", note("lacks igzip")),
            ("1.7.24~ds1", "PATH=/opt/bin\0", note("lacks unpigz")),
            // Go takes the first of two, and no program below a relative folder.
            ("2.1.9", "PATH=/usr/bin\0PATH=/opt/bin\0", note("lacks igzip")),
            ("2.1.9", "PATH=opt/bin::.\0", note("lacks igzip")),
            // The operator keeps containerd from it.
            ("2.1.9", "PATH=/opt/bin\0CONTAINERD_DISABLE_IGZIP=1\0", None),
            ("2.1.9", "CONTAINERD_DISABLE_IGZIP=True\0PATH=/usr/bin", None),
            ("1.6.20", "CONTAINERD_DISABLE_PIGZ=t\0PATH=/opt/pigz", None),
            (
                "2.1.9",
                "CONTAINERD_DISABLE_IGZIP=true\0PATH=/opt/bin:/opt/pigz",
                ok("/opt/pigz/unpigz"),
            ),
            (
                "2.1.9",
                "CONTAINERD_DISABLE_IGZIP=0\0PATH=/opt/bin\0",
                ok("/opt/bin/igzip"),
            ),
            (
                "2.1.9",
                "CONTAINERD_DISABLE_IGZIP=yes\0PATH=/opt/bin\0",
                ok("/opt/bin/igzip"),
            ),
        ] {
            let present = ["/opt/bin/igzip", "opt/bin/igzip", "/opt/pigz/unpigz"].map(Path::new);
            let is_there = |file: &Path| present.contains(&file);
            let finding = judge(&Version::parse(version), environment.as_bytes(), is_there);
            let found = finding.as_ref().map(|finding| (finding.verdict, &finding.text));
            let case = format!("{version} {environment:?}: {found:?}");
            assert_eq!(found.is_some(), expected.is_some(), "{case}");
            if let (Some((verdict, text)), Some((is, words))) = (found, expected) {
                assert!(verdict == is && text.contains(words), "{case}");
            }
        }
    }
}
