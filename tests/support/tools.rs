//! Programs of others that make what scenarios need.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A tool; `None` where there is none on this machine, which only a complete machine minds.
pub fn tool(name: &str) -> Option<PathBuf> {
    lab::left_out::unless_had(name, lab::parts::tool(name))
}

/// The same for what checks metrics and rules.
pub fn promtool() -> Option<PathBuf> {
    lab::left_out::unless_had("promtool", lab::parts::promtool())
}

/// The same for Prometheus itself.
pub fn prometheus() -> Option<PathBuf> {
    lab::left_out::unless_had("prometheus", lab::parts::prometheus())
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
