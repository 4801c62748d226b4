//! Checks the code without running it: formatting, lints, documentation, dependencies.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use lab::{on_path, workspace};

use crate::prose;

/// Release of cargo-deny that can read this `deny.toml`.
const CARGO_DENY: &str = "0.20.2";

/// Checks formatting, lints, documentation, prose, licences, bans and sources.
///
/// # Errors
///
/// Returns an error if a check fails. The check has printed the reason.
pub fn run_all() -> Result<()> {
    step("formatting");
    run(cargo().args(["fmt", "--all", "--check"]))?;
    step("lints");
    run(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]))?;
    step("documentation");
    run(cargo()
        .args(["doc", "--workspace", "--no-deps", "--locked"])
        .env("RUSTDOCFLAGS", "-D warnings"))?;
    step("prose");
    prose::run(&[])?;
    step("licences, bans and sources of the dependencies");
    deny(&["licenses", "bans", "sources"])
}

/// Looks up the dependencies in the database of vulnerabilities.
///
/// # Errors
///
/// Returns an error if a dependency has a vulnerability, or without the network.
pub fn advisories() -> Result<()> {
    step("advisories");
    deny(&["advisories"])
}

fn deny(what: &[&str]) -> Result<()> {
    run(Command::new(cargo_tool("cargo-deny", CARGO_DENY)?)
        .current_dir(workspace())
        .args(["--locked", "check"])
        .args(what))
}

/// Returns a program that cargo installs. If it is not on the `PATH`, it is built once into
/// target/tools.
///
/// # Errors
///
/// Returns an error if the build fails.
pub fn cargo_tool(name: &str, version: &str) -> Result<PathBuf> {
    if let Some(program) = on_path(name) {
        return Ok(program);
    }
    let tools = workspace().join("target/tools");
    let program = tools.join("bin").join(name);
    if !program.is_file() {
        step(&format!("building {name}, once"));
        let mut cargo = cargo();
        run(cargo
            .args(["install", "--locked", "--version", version, name, "--root"])
            .arg(&tools))?;
    }
    Ok(program)
}

/// Returns a cargo command in the workspace, whose `.cargo/config.toml` names the protobuf
/// compiler.
///
/// `cargo xtask` sets variables that describe the package xtask. The build script of ring depends
/// on these variables. So cargo would rebuild ring and its dependents with them, and again in a
/// shell without them.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    for (name, _) in std::env::vars_os() {
        if describes_a_package(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    command
}

/// Returns true for a variable in which cargo describes a package to a program.
fn describes_a_package(name: &str) -> bool {
    name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
}

/// Runs a command that prints to the screen.
///
/// # Errors
///
/// Returns an error if the command fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !status.success() {
        let words: Vec<_> = command
            .get_args()
            .map(|argument| argument.to_string_lossy())
            .collect();
        bail!(
            "`{} {}` failed ({status})",
            command.get_program().display(),
            words.join(" ")
        );
    }
    Ok(())
}

/// Prints the name of the next step.
pub fn step(what: &str) {
    println!("==> {what}");
}

#[cfg(test)]
mod tests {
    use super::{cargo, describes_a_package};

    #[test]
    fn the_checks_build_what_a_shell_builds() {
        // cargo describes the package to a test, as to `cargo xtask`.
        assert!(std::env::var_os("CARGO_PKG_NAME").is_some());
        let cargo = cargo();
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            let removed = cargo
                .get_envs()
                .any(|(key, value)| key == name.as_ref() && value.is_none());
            assert_eq!(removed, describes_a_package(&name), "{name}");
        }
        assert!(!describes_a_package("CARGO_HOME"));
    }
}
