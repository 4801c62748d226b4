//! `cargo xtask kubernetes`: shows what a real kubelet does with images that the daemon imports.
//!
//! The tests (`tests/kubernetes`) belong to the program's own suite, which skips them by default.
//! The first run builds kubelet from its source, which takes minutes.

use anyhow::{Result, bail};
use clap::Args;
use lab::kubelet::Release;
use lab::{Generation, containerd_parts, is_root, parts};

use crate::{checks, endurance};

/// The containerds that new clusters run. The tests exist for these.
const GENERATIONS: [Generation; 2] = [Generation::V1_7, Generation::V2_3];

/// The kubelet and the containerd to use.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Version of kubelet: 1.34, 1.35, 1.36 or 1.37.
    #[arg(long, default_value_t = Release::USUAL)]
    kubelet: Release,
    /// Generation of containerd: 1.7 or 2.3. By default the task uses both.
    #[arg(long, value_parser = generation)]
    containerd: Option<Generation>,
}

fn generation(text: &str) -> Result<Generation> {
    let generation = text.parse()?;
    if !GENERATIONS.contains(&generation) {
        bail!("use 1.7 or 2.3: the Kubernetes tests exist for these only");
    }
    Ok(generation)
}

/// Builds the missing programs and runs the tests.
///
/// # Errors
///
/// Returns an error without root, if a fetch or a build fails, or if a test fails. The test has
/// printed the reason.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !is_root() {
        bail!("this task starts kubelet and containerd, which only root can do");
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
        // The names of the tests end like this: `…::containerd_2_3`.
        let name = format!("containerd_{}", generation.to_string().replace('.', "_"));
        cargo.args(["--skip", &name]);
    }
    checks::run(&mut cargo)
}
