//! Builds the workshop, which has the tasks that need the project's own crates, and hands a task
//! over to it.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, bail};
use lab::{Generation, containerd_parts, is_root, parts, place, workspace};

use crate::checks::{cargo, run as run_command, step};

/// Shows the demonstration, having built the daemon together with it: crates that both need are
/// built once.
///
/// # Errors
///
/// When this is no place for containers, and when the build or the demonstration fails.
pub fn demo(arguments: &[String]) -> Result<()> {
    let asks_for_help = arguments
        .iter()
        .any(|argument| argument == "--help" || argument == "-h");
    if !asks_for_help {
        if !is_root() {
            bail!("the demo starts a containerd and a container, which only root can do");
        }
        place::must_allow_containers()?;
    }
    if arguments.is_empty() {
        // What the demonstration needs comes while the compiler is at work. A failure is the
        // demonstration's to tell.
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
/// When the build fails. The task's own errors are its program's.
pub fn run(task: &str, arguments: &[String]) -> Result<()> {
    build(&[])?;
    hand_over(task, arguments)
}

fn build(further: &[&str]) -> Result<()> {
    step("building (some minutes at first)");
    run_command(
        cargo()
            .args(["build", "--locked", "--package", "airgapd-workshop"])
            .args(further),
    )
}

/// Goes on as the workshop's program, which gets signals and the screen to itself.
fn hand_over(task: &str, arguments: &[String]) -> Result<()> {
    let program = target_folder().join("debug/workshop");
    let error = Command::new(&program).arg(task).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

/// The folder that cargo builds into.
pub fn target_folder() -> PathBuf {
    workspace().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}
