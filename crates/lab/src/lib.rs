//! Provides the foreign programs that tests and the demo need, and runs private containerds with
//! them.
//!
//! This is a crate of its own because its code touches the machine: packages, mounts, processes. It
//! depends on none of the project's crates, so that `cargo xtask` builds in seconds. It talks to
//! containerd only through `ctr`.

pub mod ansible;
mod debian;
mod golang;
mod heartbeat;
pub mod kubelet;
pub mod left_out;
pub mod parts;
pub mod place;
pub mod runtime;
pub mod shared;

pub use heartbeat::Heartbeat;
pub use kubelet::Kubelet;
pub use parts::{Generation, Parts, containerd_parts, generations};
pub use runtime::{Containerd, Options, Snapshotter};

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Returns the root folder of this workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("this package lies two folders below the workspace")
}

/// Returns true if the process runs as root. Only root can start a containerd.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns the first program of that name on the `PATH`, or in the two `sbin` folders. Only root's
/// `PATH` has these.
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Runs a command to its end and returns its standard output.
///
/// # Errors
///
/// Returns an error with the end of the command's output if the command fails.
pub fn output_of(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !output.status.success() {
        let arguments: Vec<_> = command
            .get_args()
            .map(|argument| argument.to_string_lossy())
            .collect();
        let said = tail(&(text(&output.stdout) + &text(&output.stderr)), 12);
        bail!(
            "`{program} {}` failed ({}):\n{said}",
            arguments.join(" "),
            output.status
        );
    }
    Ok(text(&output.stdout))
}

/// Returns the last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Reports slow work and left-out tests to the person who watches a test run.
#[allow(clippy::print_stderr, reason = "a test run has no other place to say it")]
pub(crate) fn note(text: &str) {
    eprintln!("xtask: {text}");
}
