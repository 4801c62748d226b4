//! `cargo xtask chaos`, `powercut`, `churn`, `uploads` and `recording`: tests that do more when
//! they are asked to.
//!
//! They are tests of the program's own suite that are left out otherwise, so that there is one
//! piece of code for both.

use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;
use lab::{Generation, containerd_parts, is_root, parts};

use crate::checks;

/// How long, and which one of all the possible runs.
#[derive(Args, Debug, Default)]
pub struct Extent {
    /// What chance follows from; the same seed makes the same decisions.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Which containerd: 1.6, 1.7, 2.1, 2.3 or 2.4. Left out, as much on 1.7 as on 2.3.
    #[arg(long)]
    containerd: Option<Generation>,
}

/// Runs a test that is left out otherwise, for so many rounds.
///
/// # Errors
///
/// When it fails, having said why, or when there is no root to start containerds with.
pub fn run(test: &str, rounds: usize, extent: &Extent) -> Result<()> {
    if !is_root() {
        bail!("this runs on private containerds, which only root can start");
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

/// Has the documents show what is on the screen after their examples.
///
/// # Errors
///
/// When a command does not end as it should, having said which, or when there is no root to start
/// containerd with.
pub fn record() -> Result<()> {
    if !is_root() {
        bail!("the examples are typed on a node with a private containerd, which only root can make");
    }
    let test = "examples::each_command_in_the_documents_does_what_they_say";
    let mut cargo = scenarios();
    cargo
        .args([test, "--exact"])
        .env("AIRGAPD_TEST_RECORD", "1")
        .env(parts::REQUIRE_CONTAINERD, "1");
    checks::run(&mut cargo)
}

/// The program's suite; a test and its flags have yet to be added.
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
