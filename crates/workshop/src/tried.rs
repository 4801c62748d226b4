//! What was built is tried: on this machine, or for another processor in qemu's emulation of one
//! process.
//!
//! The question that only the program for a processor can answer is which image of a bundle its
//! node would take.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use bundle::fixtures::{Image, Layout};
use lab::parts;
use serde_json::Value;

use crate::dist::Architecture;
use xtask::checks::step;

/// Name of the image in the bundles.
const NAME: &str = "registry.example/demo:1";

/// Platforms that an image has, and those of them that a node takes, in the same order.
type Choice = (&'static [&'static str], &'static [&'static str]);

/// A node takes all that it can run: one on arm64 what is for arm, too, one on amd64 what is for
/// 386.
fn choices(architecture: Architecture) -> &'static [Choice] {
    match architecture {
        Architecture::X86_64 => &[
            (
                &["linux/arm64/v8", "linux/amd64", "linux/arm/v7"],
                &["linux/amd64"],
            ),
            (&["linux/arm64/v8", "linux/386"], &["linux/386"]),
            (&["linux/arm64/v8", "linux/arm/v7"], &[]),
        ],
        Architecture::Aarch64 => &[
            (&["linux/amd64", "linux/arm64"], &["linux/arm64"]),
            (
                &["linux/amd64", "linux/arm64/v8", "linux/arm/v7"],
                &["linux/arm64", "linux/arm/v7"],
            ),
            (
                &["linux/386", "linux/arm/v7", "linux/arm/v6"],
                &["linux/arm/v7", "linux/arm/v6"],
            ),
            (&["linux/amd64", "linux/386"], &[]),
        ],
        Architecture::Armv7 => &[
            (
                &["linux/amd64", "linux/arm64/v8", "linux/arm/v7"],
                &["linux/arm/v7"],
            ),
            (
                &["linux/arm64/v8", "linux/arm/v6", "linux/arm/v5"],
                &["linux/arm/v6", "linux/arm/v5"],
            ),
            (&["linux/amd64", "linux/arm64/v8"], &[]),
        ],
    }
}

/// Runs a program where it can be run: it says its version, and picks the right image of each
/// bundle.
pub(crate) fn run(architecture: Architecture, program: &Path) -> Result<()> {
    let runner = Runner::of(architecture, program)?;
    step(&format!(
        "the program for {} is tried {}",
        architecture.name(),
        runner.how()
    ));
    let version = said(runner.command().arg("--version"))?;
    if version.trim() != format!("airgapd {}", env!("CARGO_PKG_VERSION")) {
        bail!("it says that it is `{}`", version.trim());
    }
    let folder = tempfile::tempdir()?;
    for (platforms, expected) in choices(architecture) {
        let path = folder.path().join("bundle.tar");
        let image = platforms.iter().fold(Image::new(NAME), |image, platform| {
            image.platform(platform).layer(*platform)
        });
        Layout::new().image(image).write_to(&path);
        let mut inspect = runner.command();
        // Neither this machine's configuration nor its containerd is to be gone by.
        inspect.args(["inspect", "-o", "json", "--config", "/dev/null"]);
        let taken = taken(&said(inspect.args(["--address", "/nowhere"]).arg(&path))?)?;
        if taken != *expected {
            bail!(
                "of {} it takes {taken:?} and not {expected:?}",
                platforms.join(", ")
            );
        }
        println!("    of {} it takes {taken:?}", platforms.join(", "));
    }
    Ok(())
}

/// The platforms that `airgapd inspect -o json` says are taken.
fn taken(document: &str) -> Result<Vec<String>> {
    let document: Value = serde_json::from_str(document).context("it gives no JSON document")?;
    let platforms = document["images"][0]["platforms"]
        .as_array()
        .with_context(|| format!("there are no platforms in {document:#}"))?;
    let taken = platforms.iter().filter(|platform| platform["taken"] == true);
    Ok(taken
        .filter_map(|platform| platform["platform"].as_str().map(str::to_owned))
        .collect())
}

/// A program and what runs it.
struct Runner {
    emulator: Option<PathBuf>,
    program: PathBuf,
}

impl Runner {
    fn of(architecture: Architecture, program: &Path) -> Result<Self> {
        let emulator = match architecture.emulator() {
            Some(name) => Some(parts::emulator(name)?),
            None => None,
        };
        Ok(Self {
            emulator,
            program: program.to_owned(),
        })
    }

    fn how(&self) -> String {
        match &self.emulator {
            Some(emulator) => format!("with {}", emulator.display()),
            None => "on this machine".to_owned(),
        }
    }

    /// The program with neither this machine's settings nor those of a test run in its environment.
    fn command(&self) -> Command {
        let mut command = match &self.emulator {
            Some(emulator) => {
                let mut command = Command::new(emulator);
                command.arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        let settings = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AIRGAPD_"));
        for (name, _) in settings {
            command.env_remove(name);
        }
        command
    }
}

fn said(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!(
            "it failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}
