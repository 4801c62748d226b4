//! `cargo xtask chaos`, `powercut`, `churn`, `flips` and `recording`: longer runs of some tests.
//!
//! These tests belong to the program's own suite, which skips them by default. So one piece of code
//! serves both.

use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;
use lab::{Generation, containerd_parts, is_root, parts};

use crate::checks;

/// The length of a run and its seed.
#[derive(Args, Debug, Default)]
pub struct Extent {
    /// Seed of all random decisions. The same seed makes the same decisions.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Generation of containerd: 1.6, 1.7, 2.1, 2.3 or 2.4. By default the task runs on both 1.7
    /// and 2.3.
    #[arg(long)]
    containerd: Option<Generation>,
}

/// Runs a test that the suite skips by default, for a number of rounds.
///
/// # Errors
///
/// Returns an error without root, or if the test fails. The test has printed the reason.
pub fn run(test: &str, rounds: usize, extent: &Extent) -> Result<()> {
    if !is_root() {
        bail!("this task starts private containerds, which only root can do");
    }
    let generations = match extent.containerd {
        Some(one) => vec![one],
        None => vec![Generation::V1_7, Generation::V2_3],
    };
    for generation in generations {
        containerd_parts(generation)?;
    }
    let mut cargo = scenarios();
    cargo
        .args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env("AIRGAPD_TEST_ROUNDS", rounds.to_string())
        .env("AIRGAPD_TEST_SEED", extent.seed.to_string());
    if let Some(generation) = extent.containerd {
        cargo.env("AIRGAPD_TEST_GENERATION", generation.to_string());
    }
    checks::run(&mut cargo)
}

/// Updates the output of the examples in the documents.
///
/// # Errors
///
/// Returns an error without root, or if an example does not end as expected. The test has printed
/// the example.
pub fn record() -> Result<()> {
    if !is_root() {
        bail!("the examples run on a private containerd, which only root can start");
    }
    let test = "examples::each_command_in_the_documents_does_what_they_say";
    let mut cargo = scenarios();
    cargo
        .args([test, "--exact"])
        .env("AIRGAPD_TEST_RECORD", "1")
        .env(parts::REQUIRE_CONTAINERD, "1");
    checks::run(&mut cargo)
}

/// Returns the command for the program's suite. The caller adds a test and flags.
pub(crate) fn scenarios() -> Command {
    let mut cargo = checks::cargo();
    cargo.args([
        "test",
        "--locked",
        "--package",
        "airgapd",
        "--test",
        "scenarios",
        "--",
    ]);
    cargo
}
