//! `cargo xtask mutants`: mutates the pure decisions, one place at a time, and lists the mutations
//! that no test notices.

use anyhow::{Result, bail};
use lab::workspace;

use crate::checks::{cargo_tool, step};

/// Release of cargo-mutants that has these flags.
const CARGO_MUTANTS: &str = "27.1.0";

/// The files with decisions in the package import.
const IN_IMPORT: [&str; 2] = ["{labels,names,plan,select}.rs", "{names,plan,select}/*.rs"];

/// The packages, their decisions, and the tests that need no containerd.
const DECISIONS: [(&str, [&str; 2], &[&str]); 4] = [
    ("node", ["decide.rs", "decide/*.rs"], &["--lib"]),
    ("import", IN_IMPORT, &["--lib", "--test=selection"]),
    ("platforms", ["lib.rs", "*.rs"], &["--lib", "--tests"]),
    ("admission", ["judge.rs", "*.rs"], &["--lib", "--tests"]),
];

/// Tries one part of all mutations, for example `0/12`, in copies of the workspace.
///
/// # Errors
///
/// Returns an error if the tests do not build, or if they fail without a mutation.
pub fn run(shard: &str) -> Result<()> {
    let mutants = cargo_tool("cargo-mutants", CARGO_MUTANTS)?;
    let target = workspace().join("target/mutants");
    for (name, files, tests) in DECISIONS {
        step(&format!("changing {name}"));
        let status = std::process::Command::new(&mutants)
            .current_dir(workspace())
            .env("CARGO_TARGET_DIR", &target)
            .env("CARGO_INCREMENTAL", "1")
            .env("PROTOC", workspace().join("tools/protoc"))
            .env("AIRGAPD_TEST_ROUNDS", "60")
            .args([
                "mutants",
                "--no-shuffle",
                "--sharding=round-robin",
                "--shard",
                shard,
            ])
            .arg(format!("--package=airgapd-{name}"))
            .args(files.map(|file| format!("--file=crates/{name}/src/{file}")))
            .arg("--output")
            .arg(target.join(name))
            .arg("--")
            .args(tests)
            .status()?;
        // The codes 2 and 3 mean that a mutation was missed or timed out.
        if !matches!(status.code(), Some(0 | 2 | 3)) {
            bail!("cargo-mutants failed ({status})");
        }
    }
    Ok(())
}
