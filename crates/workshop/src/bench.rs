//! `cargo xtask bench`: compares airgapd's speed with other importers and with the limits of the
//! machine.
//!
//! All contenders of a scenario run on the same private containerd, one after the other. Each round
//! has a different order. The result is the ratio of their medians, since absolute times depend on
//! the machine. `bench/figures.json` keeps the results. `docs/performance.md` and
//! `docs/performance-details.md` are made from it.

mod bundles;
mod contender;
mod daemon;
mod document;
mod events;
mod large;
mod machine;
mod measure;
mod quick;
mod results;
mod runnable;
mod scenario;
mod trees;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum as _};
use lab::{Containerd, Generation, Options, is_root};

use self::bundles::Bundles;
use self::contender::Contender;
use self::measure::Sample;
use self::results::Outcome;
use self::scenario::Scenario;
use xtask::checks;
use xtask::workshop::target_folder;

/// The scenarios to measure, and the number of runs.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Measure only these scenarios.
    #[arg(long, value_enum, value_delimiter = ',')]
    scenario: Vec<Scenario>,
    /// Generation of containerd: 1.6, 1.7, 2.1, 2.3 or 2.4.
    #[arg(long, default_value_t = Generation::V2_1)]
    containerd: Generation,
    /// Runs of each contender. The result is their median.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Measure this airgapd instead of a new build of this source.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Only write docs/performance.md and docs/performance-details.md from earlier measurements.
    #[arg(long)]
    document: bool,
    /// Measure a few scenarios in some minutes and compare them with the saved figures. Fail if one
    /// is worse by more than a quarter. This writes nothing.
    #[arg(long, conflicts_with_all = ["scenario", "runs", "document"])]
    quick: bool,
    /// Measure these cases of large, many and compressed bundles, and print their tables. This
    /// writes nothing.
    #[arg(long, value_enum, value_delimiter = ',', conflicts_with_all = ["scenario", "quick", "document"])]
    large: Vec<large::Case>,
    /// Size of the large bundle of `--large images`, in GB. The disk needs twice that.
    #[arg(long, default_value_t = 10)]
    gigabytes: usize,
}

/// Measures the selected scenarios, or writes the document.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.document {
        return document::write();
    }
    if !is_root() {
        bail!("only root can start the containerd for the measurements");
    }
    let program = match &arguments.program {
        Some(program) => std::path::absolute(program)?,
        None => build()?,
    };
    if !arguments.large.is_empty() {
        return large::run(arguments, &program);
    }
    if arguments.quick {
        return compare(arguments, &program);
    }
    let scenarios = match arguments.scenario.as_slice() {
        [] => Scenario::value_variants(),
        some => some,
    };
    for scenario in scenarios {
        measure(arguments, &program, *scenario)?.save()?;
    }
    document::write()
}

/// Measures the scenarios of a quick bench and compares them with the saved results.
fn compare(arguments: &Arguments, program: &Path) -> Result<()> {
    let saved = Outcome::all_saved()?;
    let mut worse = Vec::new();
    let mut told = String::new();
    for scenario in quick::SCENARIOS {
        let outcome = measure(arguments, program, scenario)?;
        for comparison in quick::compare(&outcome, &saved) {
            let _ = writeln!(told, "{}", comparison.in_words());
            if comparison.is_worse() {
                worse.push(comparison.name().to_owned());
            }
        }
        for remark in quick::remarks(&outcome, &saved) {
            let _ = writeln!(told, "  {remark}");
        }
    }
    checks::step("compared with the saved figures");
    print!("{told}");
    if !worse.is_empty() {
        bail!(
            "worse than the saved figures by more than a quarter: {}",
            worse.join(", ")
        );
    }
    Ok(())
}

/// Measures a scenario and shows the results.
fn measure(arguments: &Arguments, program: &Path, scenario: Scenario) -> Result<Outcome> {
    checks::step(&format!(
        "{}: {}, containerd {}",
        scenario.name(),
        scenario.title(),
        arguments.containerd
    ));
    let outcome = Bench::start(arguments, program, scenario)?.measure()?;
    print!("{}", outcome.table());
    Ok(outcome)
}

/// Builds the program the way it is shipped.
fn build() -> Result<PathBuf> {
    checks::step("building airgapd for release");
    checks::run(checks::cargo().args(["build", "--release", "--locked", "--package", "airgapd"]))?;
    Ok(target_folder().join("release/airgapd"))
}

/// Everything that a scenario needs.
struct Bench {
    scenario: Scenario,
    contenders: Vec<Contender>,
    runs: usize,
    containerd: Containerd,
    program: PathBuf,
    bundles: Bundles,
    /// Folder for configuration and copies. Dropping the bench removes it.
    folder: tempfile::TempDir,
}

impl Bench {
    fn start(arguments: &Arguments, program: &Path, scenario: Scenario) -> Result<Self> {
        let options = Options {
            cri: scenario.needs_cri(),
            disk: scenario.disk(arguments.quick),
            ..Options::default()
        };
        let containerd = Containerd::start(arguments.containerd, &options)?;
        Self::on(containerd, arguments, program, scenario)
    }

    /// Returns a bench on this containerd.
    fn on(containerd: Containerd, arguments: &Arguments, program: &Path, scenario: Scenario) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("airgapd-bench-").tempdir()?;
        let cri = scenario.needs_cri();
        std::fs::write(folder.path().join("config.yaml"), format!("cri: {cri}\n"))?;
        Ok(Self {
            scenario,
            contenders: scenario
                .contenders(arguments.containerd)
                .into_iter()
                .filter(|contender| !arguments.quick || quick::takes_part(scenario, *contender))
                .collect(),
            runs: match arguments.quick {
                true => quick::RUNS,
                false => arguments.runs.max(1),
            },
            bundles: Bundles::in_target(&target_folder())?,
            program: program.to_owned(),
            containerd,
            folder,
        })
    }

    /// Runs every contender several times and records what each run cost.
    fn measure(&self) -> Result<Outcome> {
        let contenders = &self.contenders;
        let load = machine::load();
        let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); contenders.len()];
        for round in 0..self.runs {
            for at in order(round, contenders.len()) {
                let sample = self
                    .run_once(contenders[at])
                    .with_context(|| format!("measuring {}", contenders[at].name()))?;
                samples[at].push(sample);
            }
        }
        let measured: Vec<_> = contenders.iter().copied().zip(samples).collect();
        Ok(Outcome::of(self.scenario, &self.containerd, load, &measured))
    }

    fn run_once(&self, contender: Contender) -> Result<Sample> {
        match self.scenario {
            Scenario::Restart => daemon::restart(self),
            Scenario::Drop | Scenario::DropRenamed => daemon::drop_in(self, contender),
            Scenario::Running | Scenario::First => daemon::run_first(self, contender),
            Scenario::Runnable | Scenario::RunnableZstd => runnable::run(self, contender),
            _ => contender::run(self, contender),
        }
    }

    /// Removes all images, content and snapshots from containerd.
    fn empty(&self) -> Result<()> {
        let listed = |what: &str| -> Result<Vec<String>> {
            let lines = self.containerd.ctr(&[what, "ls", "-q"])?;
            Ok(lines.lines().map(str::to_owned).collect())
        };
        let images = listed("images")?;
        if !images.is_empty() {
            let names = images.iter().map(String::as_str);
            let arguments: Vec<_> = ["images", "rm"].into_iter().chain(names).collect();
            self.containerd.ctr(&arguments)?;
        }
        for lease in listed("leases")? {
            self.containerd.ctr(&["leases", "rm", &lease])?;
        }
        self.containerd.force_gc()?;
        let left = listed("content")?.len();
        if left > 0 {
            bail!("containerd still has blobs after all images were removed: {left}");
        }
        let snapshotter = self.containerd.snapshotter();
        let snapshots = self
            .containerd
            .ctr(&["snapshots", "--snapshotter", snapshotter, "ls"])?;
        // The first line is the heading.
        match snapshots.lines().skip(1).count() {
            0 => Ok(()),
            left => bail!("containerd still has snapshots after all images were removed: {left}"),
        }
    }
}

/// Returns the order of the contenders in a round. A different contender starts each round. With
/// more than two, every second round runs backwards. So no contender always runs after the same
/// other.
fn order(round: usize, contenders: usize) -> Vec<usize> {
    let mut order: Vec<_> = (0..contenders).map(|turn| (turn + round) % contenders).collect();
    if round % 2 == 1 && contenders > 2 {
        order.reverse();
    }
    order
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn nobody_always_runs_after_the_same_one() {
        for contenders in 3..=7 {
            let turns: Vec<_> = (0..5).flat_map(|round| order(round, contenders)).collect();
            let mut before: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
            for pair in turns.windows(2) {
                before.entry(pair[1]).or_default().insert(pair[0]);
            }
            for round in turns.chunks(contenders) {
                assert_eq!(
                    BTreeSet::from_iter(round),
                    BTreeSet::from_iter(&(0..contenders).collect::<Vec<_>>())
                );
            }
            assert!(before.values().all(|others| others.len() > 1), "{before:?}");
        }
        assert_eq!([order(0, 2), order(1, 2)], [[0, 1], [1, 0]]);
    }
}
