//! Programs of others that make what scenarios need.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A tool; `None` where there is none on this machine, which only a complete machine minds.
pub fn tool(name: &str) -> Option<PathBuf> {
    provided(name, xtask::parts::tool(name))
}

/// The same for what checks metrics and rules.
pub fn promtool() -> Option<PathBuf> {
    provided("promtool", xtask::parts::promtool())
}

#[allow(
    clippy::print_stderr,
    reason = "a test run has no other place to say what it leaves out"
)]
fn provided<E: std::fmt::Debug>(name: &str, program: Result<PathBuf, E>) -> Option<PathBuf> {
    match program {
        Ok(program) => Some(program),
        Err(error)
            if std::env::var_os(xtask::parts::REQUIRE_CONTAINERD).is_some_and(|value| value == "1") =>
        {
            panic!("{name} is required: {error:?}")
        }
        Err(error) => {
            eprintln!("left out, no {name}: {error:?}");
            None
        }
    }
}

/// Runs a command, which must go well.
pub fn run(command: &mut Command) {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
