//! The command line: each task of the project with its flags. A workshop task reads its own flags.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::endurance::Extent;
use crate::kubernetes;

/// The project's own tasks. Programs that this machine lacks are fetched into target/.
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
    /// Run all tests, as root on Debian on each generation of containerd, and print a summary.
    Test {
        /// Arguments for `cargo test`, for example the name of a test.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Check formatting, lints, documentation, prose, licences and sources.
    Check,
    /// Check the prose of documents, comments and messages against the rules of docs/style.md.
    Prose {
        /// Files or folders. Without any, the whole repository is checked.
        paths: Vec<PathBuf>,
    },
    /// Run a command in a new bare Debian with only Rust, a C compiler and git (root). The default
    /// is `cargo xtask test`.
    Bare {
        /// The release of Debian.
        #[arg(long, default_value = "bookworm")]
        suite: String,
        /// The command, after `--`, in a clone of the last commit.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Measure airgapd, containerd's own importer and the limits of this machine (root).
    #[command(disable_help_flag = true)]
    Bench(PassedOn),
    /// Measure the restart of a k0s worker with twenty bundles, until kubelet would start (root).
    #[command(disable_help_flag = true)]
    Restart(PassedOn),
    /// Fuzz the readers of foreign bytes (needs a nightly compiler).
    #[command(disable_help_flag = true)]
    Fuzz(PassedOn),
    /// Kill the daemon and containerd at random times, and check everything after each kill.
    Chaos {
        /// Number of kills on each containerd.
        #[arg(long, default_value_t = 50)]
        rounds: usize,
        /// The containerd and the seed.
        #[command(flatten)]
        extent: Extent,
    },
    /// Cut the power of a containerd during imports, and hash everything that its disk then has.
    Powercut {
        /// Number of power cuts on each containerd.
        #[arg(long, default_value_t = 20)]
        cuts: usize,
        /// The containerd and the seed.
        #[command(flatten)]
        extent: Extent,
    },
    /// Add, change and remove bundles for a simulated day, and compare the daemon's resources
    /// before and after.
    Churn {
        /// Number of cycles, each with twenty changes. 144 cycles are a day with a change every
        /// half minute.
        #[arg(long, default_value_t = 144)]
        cycles: usize,
        /// The containerd and the seed.
        #[command(flatten)]
        extent: Extent,
    },
    /// Flip random bits in containerd's store, and check that scrubs find and replace all of them.
    Flips {
        /// Number of bits on each containerd.
        #[arg(long, default_value_t = 1000)]
        bits: usize,
        /// The containerd and the seed.
        #[command(flatten)]
        extent: Extent,
    },
    /// Stop containerd's disk while a blob is committed, and check that the import waits.
    Standstill {
        /// Seconds without the disk.
        #[arg(long, default_value_t = 180)]
        seconds: usize,
        /// The containerd and the seed.
        #[command(flatten)]
        extent: Extent,
    },
    /// Mutate the pure decisions, one place at a time, and list the mutations that no test notices.
    Mutants {
        /// Part of all mutations: `0/12` is the first of twelve parts and takes half an hour on two
        /// cores.
        #[arg(long, default_value = "0/12")]
        shard: String,
    },
    /// Run a real kubelet on containerd 1.7 and 2.3, and show how it treats images that the daemon
    /// imports (root).
    Kubernetes(kubernetes::Arguments),
    /// Watch a thousand bundles of the same images, and print time and memory.
    Many,
    /// Import, restore and release beside very many image records of other programs, and print the
    /// time and memory (root).
    Crowd {
        /// Number of records.
        #[arg(long, default_value_t = 200_000)]
        records: usize,
        /// The containerd and the seed.
        #[command(flatten)]
        extent: Extent,
    },
    /// Roll out a bundle to a simulated fleet, and compare the script and the dashboard with the
    /// truth.
    Fleet {
        /// Number of nodes.
        #[arg(long, default_value_t = 500)]
        nodes: usize,
        /// The seed. All nodes have the stand-in as their containerd.
        #[command(flatten)]
        extent: Extent,
    },
    /// Put a bundle into the folder in every known way, and print the table of docs/watching.md.
    Uploads,
    /// Write docs/configuration.md from config/config.yaml, and docs/messages.md from the source.
    Reference,
    /// Write the image sets of k0s's releases from a clone of k0s, or add that of a k0s program.
    K0sReleases {
        /// The clone with its tags, or the program.
        source: PathBuf,
    },
    /// Run the examples of README.md and docs/ on a node, and write their output into the
    /// documents.
    Recording,
    /// Check the dependencies for known vulnerabilities (needs the network).
    Advisories,
    /// Build the release: static programs, packages, tarballs, airgapd's own image, a bill of
    /// materials, checksums.
    #[command(disable_help_flag = true)]
    Dist(PassedOn),
    /// Install the .deb of `dist` on a fresh Debian that systemd boots in a container, use it, and
    /// purge it.
    #[command(disable_help_flag = true)]
    Packaged(PassedOn),
    /// Install the tarball of `dist` on a fresh Debian with OpenRC in a container, and use the
    /// service.
    #[command(disable_help_flag = true)]
    Openrc(PassedOn),
    /// Only fetch the programs that other tasks need: containerds, runc, busybox, tools.
    Setup,
}

/// The flags of a workshop task. The task reads them, and its `--help` prints them.
#[derive(Args, Debug)]
pub struct PassedOn {
    /// The arguments as they were typed.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<String>,
}
