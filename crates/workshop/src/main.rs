//! The tasks of `cargo xtask` that need the project's own crates. `cargo xtask` builds this program
//! and starts it with the task's arguments.

// A task prints its results.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod contents;
mod daemon;
mod demo;
mod dist;
mod fuzz;
mod openrc;
mod packaged;
mod restart;
mod tried;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use lab::Generation;

/// The tasks that need the project's own crates.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Show the main job and the promises on a private containerd.
    Demo {
        /// Generation of containerd: 1.6, 1.7, 2.1, 2.3 or 2.4.
        #[arg(long, default_value_t = Generation::V2_1)]
        generation: Generation,
    },
    /// Measure airgapd, containerd's own importer and the limits of this machine (root).
    Bench(bench::Arguments),
    /// Measure the restart of a k0s worker with twenty bundles, until kubelet would start (root).
    Restart(restart::Arguments),
    /// Fuzz the readers of foreign bytes (needs a nightly compiler).
    Fuzz {
        /// Minutes for all targets together.
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// Only this target.
        target: Option<String>,
    },
    /// Build the release: static programs, packages (.deb, .rpm), tarballs, a bundle with airgapd's
    /// own image, a bill of materials, checksums.
    Dist {
        /// The processors: x86_64, aarch64, armv7, riscv64.
        #[arg(long = "for", default_value = "x86_64")]
        architectures: Vec<dist::Architecture>,
        /// Build everything a second time from an empty folder and compare.
        #[arg(long)]
        twice: bool,
        /// Sign the checksums with this private key (PEM, P-256 or Ed25519).
        #[arg(long, value_name = "FILE")]
        sign_key: Option<PathBuf>,
    },
    /// Install the .deb of `dist` on a fresh Debian that systemd boots in a container, use it, and
    /// purge it.
    Packaged {
        /// The release of Debian.
        #[arg(long, default_value = packaged::SUITE)]
        suite: String,
    },
    /// Install the tarball of `dist` on a fresh Debian with OpenRC in a container, and use the
    /// service.
    Openrc {
        /// The release of Debian.
        #[arg(long, default_value = openrc::SUITE)]
        suite: String,
    },
}

fn main() -> ExitCode {
    match perform(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<()> {
    match task {
        Task::Demo { generation } => demo::run(generation),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Restart(arguments) => restart::run(&arguments),
        Task::Fuzz { minutes, target } => fuzz::run(minutes, target.as_deref()),
        Task::Dist {
            architectures,
            twice,
            sign_key,
        } => dist::run_task(&architectures, twice, sign_key.as_deref()),
        Task::Packaged { suite } => packaged::run_task(&suite),
        Task::Openrc { suite } => openrc::run_task(&suite),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::{CommandFactory as _, Parser as _};
    use lab::workspace;

    use super::Arguments;

    /// Returns the commands in a document: lines of its examples, and words between backquotes.
    fn commands(text: &str) -> impl Iterator<Item = &str> {
        let examples = text.lines().filter_map(|line| line.strip_prefix("# "));
        let quoted = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
        let tasks = examples
            .chain(quoted)
            .filter_map(|text| text.split_once("cargo xtask "));
        tasks.map(|(_, rest)| rest.split(['#', ')']).next().unwrap_or_default())
    }

    fn names(command: &clap::Command) -> Vec<String> {
        let names = command.get_subcommands().map(|task| task.get_name().to_owned());
        names.collect()
    }

    #[test]
    fn each_task_that_documents_name_exists_with_its_flags() {
        let documents = fs::read_dir(workspace().join("docs")).unwrap();
        let documents = documents.map(|entry| entry.unwrap().path());
        let ours = names(&Arguments::command());
        let mut seen = 0;
        for path in documents.chain(["README.md", "SECURITY.md"].map(|name| workspace().join(name))) {
            let text = fs::read_to_string(&path).unwrap();
            for command in commands(&text) {
                seen += 1;
                let words = ["xtask"].into_iter().chain(command.split_whitespace());
                let is_ours = words
                    .clone()
                    .nth(1)
                    .is_some_and(|name| ours.iter().any(|our| our == name));
                let parsed = xtask::Arguments::try_parse_from(words.clone()).map(drop);
                let parsed = match is_ours {
                    true => parsed.and(Arguments::try_parse_from(words).map(drop)),
                    false => parsed,
                };
                if let Err(error) = parsed {
                    panic!("{}: cargo xtask {command}: {error}", path.display());
                }
            }
        }
        assert!(seen > 10, "{seen}");
    }

    #[test]
    fn cargo_xtask_lists_each_task_of_the_workshop() {
        let listed = names(&xtask::Arguments::command());
        for name in names(&Arguments::command()) {
            assert!(listed.contains(&name), "{name} is not in {listed:?}");
        }
    }
}
