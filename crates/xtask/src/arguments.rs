//! The command line: each task of the project, with its flags or those of the workshop's task
//! behind it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::endurance::Extent;
use crate::kubernetes;

/// The project's own tasks. What they need and this machine lacks is fetched into target/.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
pub struct Arguments {
    /// The task.
    #[command(subcommand)]
    pub task: Task,
}

/// A task of the project.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Show the main job and the promises on a private containerd (root).
    #[command(disable_help_flag = true)]
    Demo(PassedOn),
    /// Run all tests, on each generation of containerd as root on Debian, and sum up.
    Test {
        /// Passed on to `cargo test`: the name of a claim, for instance.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Check formatting, lints, documentation, prose, licences and sources.
    Check,
    /// Check the prose of documents, comments and messages by the rules of docs/style.md.
    Prose {
        /// Files or folders, all of the repository if none is given.
        paths: Vec<PathBuf>,
    },
    /// Run a command, `cargo xtask test` by default, in a bare Debian that is made for it: Rust, a
    /// C compiler, git (root).
    Bare {
        /// The release of Debian.
        #[arg(long, default_value = "bookworm")]
        suite: String,
        /// The command, after `--`, in a clone of the last commit.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Measure airgapd beside containerd's own importer and the limits of this machine (root).
    #[command(disable_help_flag = true)]
    Bench(PassedOn),
    /// Fuzz the readers of foreign bytes (needs a nightly compiler).
    #[command(disable_help_flag = true)]
    Fuzz(PassedOn),
    /// Kill the daemon and containerd at random instants, and check everything after each time.
    Chaos {
        /// Kills on each containerd.
        #[arg(long, default_value_t = 50)]
        rounds: usize,
        /// The containerd and the seed.
        #[command(flatten)]
        extent: Extent,
    },
    /// Cut the power of a containerd that bundles are imported into, and hash everything that its
    /// disk then has.
    Powercut {
        /// Power cuts on each containerd.
        #[arg(long, default_value_t = 20)]
        cuts: usize,
        /// The containerd and the seed.
        #[command(flatten)]
        extent: Extent,
    },
    /// Let bundles come, change and go for a simulated day, and compare what the daemon holds
    /// before and after.
    Churn {
        /// Cycles of twenty changes each; 144 are a day at one change in half a minute.
        #[arg(long, default_value_t = 144)]
        cycles: usize,
        /// The containerd and the seed.
        #[command(flatten)]
        extent: Extent,
    },
    /// Stop containerd's disk while a blob is committed, and see the import wait for it.
    Standstill {
        /// Seconds without the disk.
        #[arg(long, default_value_t = 180)]
        seconds: usize,
        /// The containerd and the seed.
        #[command(flatten)]
        extent: Extent,
    },
    /// Change the pure decisions, one place at a time, and tell which changes no test notices.
    Mutants {
        /// Which part of all changes: `0/12` is the first of twelve, and takes half an hour on two
        /// cores.
        #[arg(long, default_value = "0/12")]
        shard: String,
    },
    /// Run a real kubelet on containerd 1.7 and 2.3, and show what it does with images that the
    /// daemon brings (root).
    Kubernetes(kubernetes::Arguments),
    /// Look after a thousand bundles of the same images, and print time and memory.
    Many,
    /// Import, restore and release beside very many image records of others, and print what it
    /// takes (root).
    Crowd {
        /// How many records.
        #[arg(long, default_value_t = 200_000)]
        records: usize,
        /// The containerd and the seed.
        #[command(flatten)]
        extent: Extent,
    },
    /// Place a bundle in every known way, and print the results as the table of docs/watching.md.
    Uploads,
    /// Write docs/configuration.md, made of config/config.yaml, and docs/messages.md, made of the
    /// source.
    Reference,
    /// Type the examples of README.md and docs/ on a node, and write the screen's text where they
    /// show it.
    Recording,
    /// Check the dependencies for known vulnerabilities (needs the network).
    Advisories,
    /// Build what is handed out: static programs, packages, tarballs, airgapd's own image, a bill
    /// of materials, checksums.
    #[command(disable_help_flag = true)]
    Dist(PassedOn),
    /// Install the .deb of `dist` on a fresh Debian that systemd boots in a container, use it,
    /// purge it.
    #[command(disable_help_flag = true)]
    Packaged(PassedOn),
    /// Only fetch what the other tasks need: containerds, runc, busybox, tools.
    Setup,
}

/// The flags of a task of the workshop, which knows them: `--help` prints them.
#[derive(Args, Debug)]
pub struct PassedOn {
    /// Passed on.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<String>,
}
