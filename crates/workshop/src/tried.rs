//! Tries the built programs on this machine, or under qemu's user-mode emulation for another
//! processor.
//!
//! Only the program for a processor can answer which image of a bundle its node would take.

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

/// The platforms of an image, and those of them that a node takes, in the same order.
type Choice = (&'static [&'static str], &'static [&'static str]);

/// Returns the test cases. A node takes every platform that it can run: arm64 also takes arm, and
/// amd64 also takes 386.
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
        Architecture::Riscv64 => &[
            (
                &["linux/amd64", "linux/riscv64", "linux/arm64/v8"],
                &["linux/riscv64"],
            ),
            (&["linux/amd64", "linux/arm64/v8"], &[]),
        ],
    }
}

/// Runs a program, and checks its version and the platforms that it takes from each bundle.
pub(crate) fn run(architecture: Architecture, program: &Path) -> Result<()> {
    let runner = Runner::of(architecture, program)?;
    step(&format!(
        "trying the program for {} {}",
        architecture.name(),
        runner.how()
    ));
    let version = said(runner.command().arg("--version"))?;
    if version.trim() != format!("airgapd {}", env!("CARGO_PKG_VERSION")) {
        bail!("the program reports the version `{}`", version.trim());
    }
    let folder = tempfile::tempdir()?;
    for (platforms, expected) in choices(architecture) {
        let path = folder.path().join("bundle.tar");
        let image = platforms.iter().fold(Image::new(NAME), |image, platform| {
            image.platform(platform).layer(*platform)
        });
        Layout::new().image(image).write_to(&path);
        let mut inspect = runner.command();
        // The answer must not depend on this machine's configuration and containerd.
        inspect.args(["inspect", "-o", "json", "--config", "/dev/null"]);
        let taken = taken(&said(inspect.args(["--address", "/nowhere"]).arg(&path))?)?;
        if taken != *expected {
            bail!(
                "from {} the program takes {taken:?}, expected {expected:?}",
                platforms.join(", ")
            );
        }
        println!("    from {} it takes {taken:?}", platforms.join(", "));
    }
    Ok(())
}

/// Returns the platforms that `airgapd inspect -o json` reports as taken.
fn taken(document: &str) -> Result<Vec<String>> {
    let document: Value = serde_json::from_str(document).context("the program printed no JSON document")?;
    let platforms = document["images"][0]["platforms"]
        .as_array()
        .with_context(|| format!("the document has no platforms: {document:#}"))?;
    let taken = platforms.iter().filter(|platform| platform["taken"] == true);
    Ok(taken
        .filter_map(|platform| platform["platform"].as_str().map(str::to_owned))
        .collect())
}

/// A program and the emulator that runs it.
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

    /// Returns the program without the settings of this machine or of a test run.
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
            "the program failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}
