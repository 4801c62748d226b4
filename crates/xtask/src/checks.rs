//! The tasks that judge the code: tests, lints, documentation, dependencies.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use xtask::{on_path, parts, workspace};

/// The release of cargo-deny that reads our `deny.toml`.
const CARGO_DENY: &str = "0.20.2";

/// Runs the tests, after fetching everything they need.
pub(crate) fn test(arguments: &[String]) -> Result<()> {
    step("parts for the tests");
    parts::provide_all()?;
    step("tests");
    let mut cargo = cargo()?;
    cargo.args(["test", "--locked"]);
    if !names_packages(arguments) {
        cargo.arg("--workspace");
    }
    if parts::is_complete_machine() {
        cargo.env(parts::REQUIRE_CONTAINERD, "1");
    }
    run(cargo.args(arguments))
}

fn names_packages(arguments: &[String]) -> bool {
    arguments
        .iter()
        .take_while(|argument| *argument != "--")
        .any(|argument| ["-p", "--package"].iter().any(|flag| argument.starts_with(flag)))
}

/// Everything that can be said about the code without running it.
pub(crate) fn static_checks() -> Result<()> {
    step("formatting");
    run(cargo()?.args(["fmt", "--all", "--check"]))?;
    step("lints");
    run(cargo()?.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]))?;
    step("documentation");
    run(cargo()?
        .args(["doc", "--workspace", "--no-deps", "--locked"])
        .env("RUSTDOCFLAGS", "-D warnings"))?;
    step("licences, bans and sources of the dependencies");
    deny(&["licenses", "bans", "sources"])
}

/// Looks the dependencies up in the database of vulnerabilities.
pub(crate) fn advisories() -> Result<()> {
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
pub(crate) fn cargo_tool(name: &str, version: &str) -> Result<PathBuf> {
    if let Some(program) = on_path(name) {
        return Ok(program);
    }
    let tools = workspace().join("target/tools");
    let program = tools.join("bin").join(name);
    if !program.is_file() {
        step(&format!("building {name}, once"));
        let mut cargo = cargo()?;
        run(cargo
            .args(["install", "--locked", "--version", version, name, "--root"])
            .arg(&tools))?;
    }
    Ok(program)
}

/// cargo, in the workspace, with the protobuf compiler that the build needs.
pub(crate) fn cargo() -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()).env("PROTOC", parts::protoc()?);
    Ok(command)
}

/// Runs a command whose output is for whoever watches.
pub(crate) fn run(command: &mut Command) -> Result<()> {
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

pub(crate) fn step(what: &str) {
    println!("==> {what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_named_before_the_double_dash_only() {
        let table: [(&[&str], bool); 6] = [
            (&[], false),
            (&["-p", "airgapd"], true),
            (&["--release", "--package=airgapd"], true),
            (&["-pairgapd"], true),
            (&["--", "-p"], false),
            (&["some_test", "--", "--nocapture"], false),
        ];
        for (arguments, expected) in table {
            let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
            assert_eq!(names_packages(&arguments), expected, "{arguments:?}");
        }
    }
}
