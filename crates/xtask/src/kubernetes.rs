//! `cargo xtask kubernetes`: what a real kubelet does with images that the daemon brings.
//!
//! The claims are tests of the program's own suite (`tests/kubernetes`) that are left out
//! otherwise. Kubelet is built from its source first, which takes minutes once.

use anyhow::{Result, bail};
use clap::Args;
use lab::kubelet::Release;
use lab::{Generation, containerd_parts, is_root, parts};

use crate::{checks, endurance};

/// The containerds that new clusters run, which the claims are made for.
const GENERATIONS: [Generation; 2] = [Generation::V1_7, Generation::V2_3];

/// Which kubelet, on which containerd.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Which kubelet: 1.34, 1.35, 1.36 or 1.37.
    #[arg(long, default_value_t = Release::USUAL)]
    kubelet: Release,
    /// Which containerd: 1.7 or 2.3. Left out, both of them.
    #[arg(long, value_parser = generation)]
    containerd: Option<Generation>,
}

fn generation(text: &str) -> Result<Generation> {
    let generation = text.parse()?;
    if !GENERATIONS.contains(&generation) {
        bail!("the claims are made for containerd 1.7 and 2.3");
    }
    Ok(generation)
}

/// Builds what is missing and runs the claims.
///
/// # Errors
///
/// When a claim does not hold, having said why, without root, or when something cannot be fetched
/// or built.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !is_root() {
        bail!("this runs kubelet and containerd, which only root can start");
    }
    let asked: Vec<_> = GENERATIONS
        .into_iter()
        .filter(|generation| arguments.containerd.is_none_or(|one| one == *generation))
        .collect();
    checks::step(&format!(
        "kubelet {} and its containerds",
        arguments.kubelet.version()
    ));
    arguments.kubelet.program()?;
    for generation in &asked {
        containerd_parts(*generation)?;
    }
    parts::busybox()?;
    checks::step("claims");
    let mut cargo = endurance::scenarios();
    cargo
        .args(["kubernetes::", "--ignored", "--nocapture", "--test-threads=1"])
        .env("AIRGAPD_TEST_KUBELET", arguments.kubelet.to_string())
        .env(parts::REQUIRE_CONTAINERD, "1");
    for generation in GENERATIONS
        .iter()
        .filter(|generation| !asked.contains(generation))
    {
        // As the tests are called: `…::containerd_2_3`.
        let name = format!("containerd_{}", generation.to_string().replace('.', "_"));
        cargo.args(["--skip", &name]);
    }
    checks::run(&mut cargo)
}
