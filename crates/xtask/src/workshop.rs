//! Builds the workshop, which has the tasks that need the project's own crates, and starts a task
//! in it.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, bail};
use lab::{Generation, containerd_parts, is_root, parts, place, workspace};

use crate::checks::{cargo, run as run_command, step};

/// Runs the demonstration. The daemon is built in the same call of cargo, so that shared crates are
/// built once.
///
/// # Errors
///
/// Returns an error if containers cannot run here, or if the build or the demonstration fails.
pub fn demo(arguments: &[String]) -> Result<()> {
    let asks_for_help = arguments
        .iter()
        .any(|argument| argument == "--help" || argument == "-h");
    if !asks_for_help {
        if !is_root() {
            bail!("the demo starts containerd and a container, which only root can do");
        }
        place::must_allow_containers()?;
    }
    if arguments.is_empty() {
        // The programs for the demonstration are fetched while the compiler works. The
        // demonstration reports a failure.
        thread::scope(|scope| {
            scope.spawn(|| containerd_parts(Generation::V2_1).and_then(|_| parts::busybox()));
            build(&["--package", "airgapd"])
        })?;
    } else {
        build(&["--package", "airgapd"])?;
    }
    hand_over("demo", arguments)
}

/// Runs another task of the workshop.
///
/// # Errors
///
/// Returns an error if the build fails. The program of the task reports its own errors.
pub fn run(task: &str, arguments: &[String]) -> Result<()> {
    build(&[])?;
    hand_over(task, arguments)
}

fn build(further: &[&str]) -> Result<()> {
    step("building (the first build takes some minutes)");
    run_command(
        cargo()
            .args(["build", "--locked", "--package", "airgapd-workshop"])
            .args(further),
    )
}

/// Replaces this process with the workshop, which then receives signals and owns the screen.
fn hand_over(task: &str, arguments: &[String]) -> Result<()> {
    let program = target_folder().join("debug/workshop");
    let error = Command::new(&program).arg(task).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

/// Returns the folder that cargo builds into.
pub fn target_folder() -> PathBuf {
    workspace().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}
