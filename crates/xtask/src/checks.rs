//! The tasks that judge the code without running it: formatting, lints, documentation,
//! dependencies.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use lab::{on_path, workspace};

use crate::prose;

/// The release of cargo-deny that reads our `deny.toml`.
const CARGO_DENY: &str = "0.20.2";

/// Formatting, lints, documentation, licences, bans and sources.
///
/// # Errors
///
/// When a check fails, having said why.
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

/// Looks the dependencies up in the database of vulnerabilities.
///
/// # Errors
///
/// When there is one, and without the network.
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

/// A program that cargo installs: from PATH, else built once into target/tools.
///
/// # Errors
///
/// When it cannot be built.
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

/// cargo, in the workspace, whose `.cargo/config.toml` names the protobuf compiler.
///
/// `cargo xtask` describes the package xtask to this program in its environment. The build script
/// of ring depends on these variables: with them, and then again in a shell without them, cargo
/// would build ring and all its users anew.
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

/// Returns true for a variable with which cargo tells a program about its package.
fn describes_a_package(name: &str) -> bool {
    name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
}

/// Runs a command whose output goes to the screen.
///
/// # Errors
///
/// When it fails.
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

/// Says what comes next.
pub fn step(what: &str) {
    println!("==> {what}");
}

#[cfg(test)]
mod tests {
    use super::{cargo, describes_a_package};

    #[test]
    fn the_checks_build_what_a_shell_builds() {
        // cargo tells a test about its package, like `cargo xtask`.
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
