//! `cargo xtask`: everything that is done to this project rather than by it, on a machine with nothing set up.

// A task runner's output is what it is for.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod checks;
mod contents;
mod demo;
mod dist;
mod endurance;
mod fuzz;
mod kubernetes;
mod packaged;
mod reference;
mod tried;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::{Generation, parts};

/// The project's own tasks. Whatever they need and this machine lacks is fetched into target/.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Show the main job on a private containerd: a bundle is dropped, its images appear, a container runs.
    Demo {
        /// Which containerd: 1.6, 1.7, 2.1, 2.3 or 2.4.
        #[arg(long, default_value_t = Generation::V2_1)]
        generation: Generation,
    },
    /// Run all tests, on four generations of containerd as root on Debian.
    Test {
        /// Passed on to `cargo test`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measure airgapd beside containerd's own importer and the limits of this machine (root).
    Bench(bench::Arguments),
    /// Check formatting, lints, documentation, licences and sources, then run all tests.
    Ci {
        /// Everything but the tests.
        #[arg(long)]
        without_tests: bool,
    },
    /// Fuzz the readers of foreign bytes (needs a nightly compiler).
    Fuzz {
        /// For how long in all.
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// Only this target.
        target: Option<String>,
    },
    /// Kill the daemon and containerd at random instants, as often as asked, and look at everything after each time.
    Chaos {
        /// How often somebody is killed on each containerd.
        #[arg(long, default_value_t = 50)]
        rounds: usize,
        #[command(flatten)]
        extent: endurance::Extent,
    },
    /// Cut the power of a containerd that bundles are imported into, and hash everything that its disk then has.
    Powercut {
        /// How often on each containerd.
        #[arg(long, default_value_t = 20)]
        cuts: usize,
        #[command(flatten)]
        extent: endurance::Extent,
    },
    /// Let bundles come, change and go for a simulated day, and compare what the daemon holds before and after.
    Churn {
        /// Cycles of twenty changes each; 144 are a day at one change in half a minute.
        #[arg(long, default_value_t = 144)]
        cycles: usize,
        #[command(flatten)]
        extent: endurance::Extent,
    },
    /// Let containerd's disk stand still while a blob is committed, and see it waited for.
    Standstill {
        /// For so long.
        #[arg(long, default_value_t = 180)]
        seconds: usize,
        #[command(flatten)]
        extent: endurance::Extent,
    },
    /// Run a real kubelet on containerd 1.7 and 2.3, and show what it does with images that the daemon brings.
    Kubernetes(kubernetes::Arguments),
    /// Look after a thousand bundles of the same images, and print time and memory.
    Many,
    /// Place a bundle in every way there is, and print what comes of it as the table of docs/watching.md.
    Placing,
    /// Write docs/configuration.md, made of config/config.yaml.
    Reference,
    /// Type the examples of README.md and docs/ on a node, and write what is then on the screen where they show it.
    Recording,
    /// Check the dependencies for known vulnerabilities (needs the network).
    Advisories,
    /// Build what is handed out: static programs, packages (.deb, .rpm), tarballs, a bundle with airgapd's own image, a bill
    /// of materials, checksums.
    Dist {
        /// For which processors: x86_64, aarch64, armv7.
        #[arg(long = "for", default_value = "x86_64")]
        architectures: Vec<dist::Architecture>,
        /// Build everything a second time from an empty folder and compare.
        #[arg(long)]
        twice: bool,
    },
    /// Install the .deb of `dist` on a fresh Debian that systemd boots in a container, use it, purge it.
    Packaged {
        /// Which Debian.
        #[arg(long, default_value = packaged::SUITE)]
        suite: String,
    },
    /// Print the path of a protobuf compiler, for `PROTOC` of one's own cargo.
    Protoc,
    /// Only fetch what the other tasks need: protoc, containerds, runc, busybox, tools.
    Setup,
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
        Task::Test { arguments } => checks::test(&arguments),
        Task::Ci { without_tests } => {
            checks::static_checks()?;
            if without_tests { Ok(()) } else { checks::test(&[]) }
        }
        Task::Fuzz { minutes, target } => fuzz::run(minutes, target.as_deref()),
        Task::Chaos { rounds, extent } => {
            endurance::run("endurance::chaos::as_many_crashes_as_asked_for", rounds, &extent)
        }
        Task::Powercut { cuts, extent } => endurance::run(
            "endurance::powercut::as_many_power_cuts_as_asked_for",
            cuts,
            &extent,
        ),
        Task::Churn { cycles, extent } => {
            endurance::run("endurance::churn::as_much_churn_as_asked_for", cycles, &extent)
        }
        Task::Standstill { seconds, extent } => endurance::run(
            "endurance::standstill::a_disk_that_stands_still_while_a_blob_is_committed_is_waited_for",
            seconds,
            &extent,
        ),
        Task::Kubernetes(arguments) => kubernetes::run(&arguments),
        Task::Many => endurance::run(
            "endurance::many::a_thousand_bundles_of_the_same_images_are_looked_after",
            1,
            &endurance::Extent::default(),
        ),
        Task::Placing => endurance::run("placing::prints_the_table", 1, &endurance::Extent::default()),
        Task::Reference => reference::write(),
        Task::Recording => endurance::record(),
        Task::Advisories => checks::advisories(),
        Task::Dist { architectures, twice } => dist::run_task(&architectures, twice),
        Task::Packaged { suite } => packaged::run_task(&suite),
        Task::Protoc => {
            println!("{}", parts::protoc()?.display());
            Ok(())
        }
        Task::Setup => parts::provide_all(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser as _;
    use xtask::workspace;

    use super::Arguments;

    /// Commands in the text of a document: lines of its examples, and what stands between backquotes.
    fn commands(text: &str) -> impl Iterator<Item = &str> {
        let examples = text.lines().filter_map(|line| line.strip_prefix("# "));
        let quoted = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
        let tasks = examples
            .chain(quoted)
            .filter_map(|text| text.split_once("cargo xtask "));
        tasks.map(|(_, rest)| rest.split(['#', ')']).next().unwrap_or_default())
    }

    #[test]
    fn each_task_that_documents_name_exists_with_its_flags() {
        let documents = fs::read_dir(workspace().join("docs")).unwrap();
        let documents = documents.map(|entry| entry.unwrap().path());
        let mut seen = 0;
        for path in documents.chain(["README.md", "SECURITY.md"].map(|name| workspace().join(name))) {
            let text = fs::read_to_string(&path).unwrap();
            for command in commands(&text) {
                seen += 1;
                let words = ["xtask"].into_iter().chain(command.split_whitespace());
                if let Err(error) = Arguments::try_parse_from(words) {
                    panic!("{}: cargo xtask {command}: {error}", path.display());
                }
            }
        }
        assert!(seen > 10, "{seen}");
    }
}
