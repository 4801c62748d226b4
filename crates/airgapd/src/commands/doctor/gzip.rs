//! Checks if containerd unpacks gzip layers with the faster program that it looks for.
//!
//! containerd 2.0 and later runs `igzip`, if its `PATH` has it, instead of its own Go decoder. It
//! looks once, before the first gzip layer (`pkg/archive/compression` in its source).

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

/// The program that containerd looks for.
const PROGRAM: &str = "igzip";
/// containerd does not look for the program if this variable is true.
const DISABLED: &str = "CONTAINERD_DISABLE_IGZIP";
/// First major version of containerd that looks for the program.
const SINCE: u64 = 2;

/// Checks the process of containerd. Returns `None` if the node does not unpack ahead, or if the
/// process or its environment is not visible from here.
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
    // The process may have another root folder, for instance if this is a container.
    let root = process.join("root");
    judge(version, &environment, |file| {
        is_program(&root.join(file.strip_prefix("/").unwrap_or(file)))
    })
}

fn is_program(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Decides by containerd's version and environment, in the form of proc_pid_environ(5). Returns
/// `None` if containerd does not look for the program.
fn judge(version: &Version, environment: &[u8], is_program: impl Fn(&Path) -> bool) -> Option<Finding> {
    // A containerd without a number counts as a new one.
    let looks = (!version.is_known() || version.major >= SINCE) && !is_true(variable(environment, DISABLED));
    if !looks {
        return None;
    }
    // containerd uses no program that a relative entry leads to (`exec.LookPath` of Go).
    let found = std::env::split_paths(OsStr::from_bytes(variable(environment, "PATH")))
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(PROGRAM))
        .find(|file| is_program(file));
    Some(match found {
        Some(file) => ok(
            "unpack",
            format!("containerd unpacks gzip layers with {}", file.display()),
        ),
        None => note(
            "unpack",
            format!(
                "containerd would unpack gzip layers in about PERCENT % less time with {PROGRAM}, which its PATH lacks"
            ),
            "install isal (Debian, Ubuntu) or isa-l-tools (Fedora), and restart containerd",
        ),
    })
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
        let ok = Some((Verdict::Ok, "/opt/bin/igzip"));
        let note = Some((Verdict::Note, "PATH lacks"));
        for (version, environment, expected) in [
            ("2.0.0", "HOME=/\0PATH=/usr/bin:/opt/bin\0", ok),
            ("v2.1.9-k3s1", "PATH=/opt/bin", ok),
            ("unknown", "PATH=/opt/bin", ok),
            ("2.1.9", "PATH=/usr/bin:/bin\0", note),
            ("2.1.9", "PATH=\0", note),
            ("2.1.9", "XPATH=/opt/bin\0", note),
            // Go takes the first of two, and no program below a relative folder.
            ("2.1.9", "PATH=/usr/bin\0PATH=/opt/bin\0", note),
            ("2.1.9", "PATH=opt/bin::.\0", note),
            // The operator has switched it off.
            ("2.1.9", "PATH=/opt/bin\0CONTAINERD_DISABLE_IGZIP=1\0", None),
            ("2.1.9", "CONTAINERD_DISABLE_IGZIP=True\0PATH=/usr/bin", None),
            ("2.1.9", "CONTAINERD_DISABLE_IGZIP=0\0PATH=/opt/bin", ok),
            ("2.1.9", "CONTAINERD_DISABLE_IGZIP=yes\0PATH=/opt/bin", ok),
            // containerd 1.x looks for another program only.
            ("1.7.24~ds1", "PATH=/opt/bin\0", None),
            ("1.6.20", "PATH=/usr/bin\0", None),
        ] {
            let is_there =
                |file: &Path| [Path::new("/opt/bin/igzip"), Path::new("opt/bin/igzip")].contains(&file);
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
