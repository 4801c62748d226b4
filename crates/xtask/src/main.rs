//! The program behind `cargo xtask`.

// A task prints its errors.
#![allow(clippy::print_stderr)]

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;
use lab::parts;
use xtask::{
    Arguments, Task, bare, checks, endurance, k0s_releases, kubernetes, mutants, prose, reference, suite,
    workshop,
};

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
        Task::Demo(flags) => workshop::demo(&flags.arguments),
        Task::Test { arguments } => suite::run(&arguments),
        Task::Check => checks::run_all(),
        Task::Prose { paths } => prose::run(&paths),
        Task::Bare { suite, command } => bare::run(&suite, &command),
        Task::Bench(flags) => workshop::run("bench", &flags.arguments),
        Task::Restart(flags) => workshop::run("restart", &flags.arguments),
        Task::Fuzz(flags) => workshop::run("fuzz", &flags.arguments),
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
        Task::Flips { bits, extent } => {
            endurance::run("endurance::flips::as_many_flips_as_asked_for", bits, &extent)
        }
        Task::Standstill { seconds, extent } => endurance::run(
            "endurance::standstill::a_disk_that_stands_still_while_a_blob_is_committed_is_waited_for",
            seconds,
            &extent,
        ),
        Task::Mutants { shard } => mutants::run(&shard),
        Task::Kubernetes(arguments) => kubernetes::run(&arguments),
        Task::Many => endurance::run(
            "endurance::many::a_thousand_bundles_of_the_same_images_are_looked_after",
            1,
            &endurance::Extent::default(),
        ),
        Task::Crowd { records, extent } => endurance::run(
            "endurance::crowd::beside_as_many_records_of_others_as_asked_for_the_daemon_does_its_work",
            records,
            &extent,
        ),
        Task::Fleet { nodes, extent } => endurance::run(
            "endurance::fleet::each_failing_node_of_a_fleet_as_large_as_asked_for_is_named_with_its_cause",
            nodes,
            &extent,
        ),
        Task::Uploads => endurance::run("uploads::prints_the_table", 1, &endurance::Extent::default()),
        Task::Reference => reference::write(),
        Task::K0sReleases { source } => k0s_releases::run(&source),
        Task::Recording => endurance::record(),
        Task::Advisories => checks::advisories(),
        Task::Dist(flags) => workshop::run("dist", &flags.arguments),
        Task::Packaged(flags) => workshop::run("packaged", &flags.arguments),
        Task::Openrc(flags) => workshop::run("openrc", &flags.arguments),
        Task::Setup => parts::provide_all(),
    }
}
