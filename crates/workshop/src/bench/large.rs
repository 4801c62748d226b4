//! `cargo xtask bench --large`: bundles that are large, many or compressed, and nodes that start.
//!
//! Each case prints tables for `anatomy.md`, which explains them. The contenders of a case
//! alternate, and the tables have the medians. A case does not save its figures: it takes minutes,
//! and gigabytes of the disk.

mod compressed;
mod folder;
mod images;
mod pods;
mod table;

use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;
use lab::{Containerd, Options};

use super::measure::{self, Sample};
use super::{Arguments, Bench, Contender, Scenario, contender, order};
use xtask::checks;

/// A case to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Case {
    /// A hundred images of many gigabytes, against 600 MB, both from the disk
    Images,
    /// A thousand images of 40 KB
    Many,
    /// An image of 300 layers
    Layers,
    /// Bundles in gzip and zstd, against the decompressors
    Compressed,
    /// A folder of 200 bundles after a reboot
    Folder,
    /// The start beside a kubelet that starts 30 pods
    Pods,
}

/// Measures cases, and prints their tables.
pub(super) fn run(arguments: &Arguments, program: &Path) -> Result<()> {
    for case in &arguments.large {
        let title = case.to_possible_value();
        let title = title.as_ref().and_then(|value| value.get_help());
        checks::step(&format!(
            "large: {}",
            title.map(ToString::to_string).unwrap_or_default()
        ));
        let table = match case {
            Case::Images => images::of_the_disk(arguments, program)?,
            Case::Many => images::many(arguments, program)?,
            Case::Layers => images::layers(arguments, program)?,
            Case::Compressed => compressed::run(arguments, program)?,
            Case::Folder => folder::run(arguments, program)?,
            Case::Pods => pods::run(arguments, program)?,
        };
        println!("{table}");
    }
    Ok(())
}

/// Returns a bench on a new containerd. Its own disk, if it has one, has `disk` bytes.
fn bench(arguments: &Arguments, program: &Path, cri: bool, disk: Option<u64>) -> Result<Bench> {
    let scenario = match cri {
        true => Scenario::Restart,
        false => Scenario::Cold,
    };
    let options = Options {
        cri,
        disk,
        ..Options::default()
    };
    let containerd = Containerd::start(arguments.containerd, &options)?;
    Bench::on(containerd, arguments, program, scenario)
}

/// Imports a bundle with each contender in each round. `before` makes the rest before a run, and
/// the runs of a contender are in its place of the result.
fn rounds(
    bench: &Bench,
    contenders: &[(Contender, &Path)],
    before: impl Fn(&Path) -> Result<()>,
) -> Result<Vec<Vec<Sample>>> {
    let mut samples = vec![Vec::new(); contenders.len()];
    for round in 0..bench.runs {
        for at in order(round, contenders.len()) {
            let (contender, bundle) = contenders[at];
            bench.empty()?;
            before(bundle)?;
            let commands = contender::commands(bench, contender, bundle)?;
            let sample = measure::pipeline(&bench.containerd, commands)
                .with_context(|| format!("measuring {} of {}", contender.name(), bundle.display()))?;
            samples[at].push(sample);
            let _ = std::fs::remove_file(contender::copied(bench));
        }
    }
    bench.empty()?;
    Ok(samples)
}
