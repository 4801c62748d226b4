//! `cargo xtask fuzz`: runs the fuzz targets on a seed corpus that code makes.
//!
//! The targets need a nightly compiler and cargo-fuzz, so they are a separate workspace outside the
//! tests. Property tests cover the same ground on the stable toolchain, less deeply.

mod seeds;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use lab::workspace;
use xtask::checks::{cargo_tool, step};

use seeds::Seed;

/// The targets in `fuzz/fuzz_targets`, with the longest input in bytes.
const TARGETS: [(&str, u32); 7] = [
    ("reader", 64 << 10),
    ("archives", 32 << 10),
    ("documents", 8 << 10),
    ("texts", 4 << 10),
    ("references", 512),
    ("platforms", 256),
    ("proofs", 4 << 10),
];

/// Runs every target for its share of `minutes`, or only one target for all of them.
///
/// # Errors
///
/// Returns an error after a crash, a leak, a timeout or too much memory. libFuzzer has printed the
/// path of the input.
pub(crate) fn run(minutes: u64, only: Option<&str>) -> Result<()> {
    let targets: Vec<_> = TARGETS
        .iter()
        .filter(|(name, _)| only.is_none_or(|only| only == *name))
        .collect();
    if targets.is_empty() {
        bail!(
            "unknown target. The targets are {}",
            TARGETS.map(|(name, _)| name).join(", ")
        );
    }
    let cargo_fuzz = cargo_tool("cargo-fuzz", CARGO_FUZZ)?;
    seed(&workspace().join("fuzz/corpus"))?;
    let seconds = minutes * 60 / targets.len() as u64;
    for (name, longest) in targets {
        step(&format!("fuzzing {name} for {seconds} s"));
        let status = std::process::Command::new(&cargo_fuzz)
            .current_dir(workspace())
            .env("RUSTUP_TOOLCHAIN", "nightly")
            .args(["run", name, "--"])
            .args([
                format!("-max_total_time={seconds}"),
                format!("-max_len={longest}"),
            ])
            .args(["-timeout=10", "-rss_limit_mb=512", "-print_final_stats=1"])
            .status()
            .with_context(|| format!("cannot run {}", cargo_fuzz.display()))?;
        if !status.success() {
            bail!("target {name} found a fault. Its input is in fuzz/artifacts/{name}");
        }
    }
    Ok(())
}

const CARGO_FUZZ: &str = "0.13.2";

/// Writes a small corpus for each target, so that the fuzzer gets past the first checks at once.
fn seed(corpus: &Path) -> Result<()> {
    for Seed { target, name, bytes } in seeds::all() {
        let folder = corpus.join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("seed-{name}")), bytes)
            .with_context(|| format!("cannot write a seed of {target}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_target_has_seeds_that_fit_and_differ() {
        let mut there = HashSet::new();
        for Seed { target, name, bytes } in seeds::all() {
            let longest = TARGETS.iter().find(|(known, _)| *known == target).unwrap().1;
            assert!(
                bytes.len() <= longest as usize,
                "{target} {name}: {} bytes",
                bytes.len()
            );
            assert!(
                there.insert((target, name.clone())),
                "{target} {name} is there twice"
            );
        }
        for (target, _) in TARGETS {
            assert!(
                there.iter().any(|(there, _)| *there == target),
                "{target} has no seed"
            );
        }
    }

    #[test]
    fn each_target_is_a_program_of_the_fuzz_workspace() {
        let manifest = fs::read_to_string(workspace().join("fuzz/Cargo.toml")).unwrap();
        for (target, _) in TARGETS {
            assert!(
                manifest.contains(&format!("fuzz_targets/{target}.rs")),
                "{target}"
            );
        }
    }

    /// The targets include sources of other crates. No build of the workspace checks those paths.
    #[test]
    fn each_source_that_a_target_takes_in_is_there() {
        let folder = workspace().join("fuzz/fuzz_targets");
        let mut count = 0;
        for (target, _) in TARGETS {
            let source = fs::read_to_string(folder.join(format!("{target}.rs"))).unwrap();
            let paths = source
                .lines()
                .filter_map(|line| line.strip_prefix("#[path = \"")?.strip_suffix("\"]"));
            for path in paths {
                assert!(folder.join(path).is_file(), "{target}: {path}");
                count += 1;
            }
        }
        assert!(count > 0, "no target takes in a source");
    }
}
