//! Foreign programs that scenarios use.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Returns a tool, or `None` if it is missing, which is a failure only on a complete machine.
pub fn tool(name: &str) -> Option<PathBuf> {
    lab::left_out::unless_had(name, lab::parts::tool(name))
}

/// Does the same for the cosign of a Debian suite.
pub fn cosign(suite: &str) -> Option<PathBuf> {
    lab::left_out::unless_had("cosign", lab::parts::cosign(suite))
}

/// Does the same for the program that connects network namespaces.
pub fn ip() -> Option<PathBuf> {
    lab::left_out::unless_had("ip", lab::parts::ip())
}

/// Does the same for promtool, which checks metrics and rules.
pub fn promtool() -> Option<PathBuf> {
    lab::left_out::unless_had("promtool", lab::parts::promtool())
}

/// Does the same for Prometheus.
pub fn prometheus() -> Option<PathBuf> {
    lab::left_out::unless_had("prometheus", lab::parts::prometheus())
}

/// Does the same for Ansible.
pub fn ansible() -> Option<lab::ansible::Ansible> {
    lab::left_out::unless_had("Ansible", lab::ansible::ansible())
}

/// Runs a command, which must succeed.
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
