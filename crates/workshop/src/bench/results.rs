//! The results of a scenario: medians, ratios, and kept or broken promises.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use lab::Containerd;
use serde::{Deserialize, Serialize};

use super::contender::Contender;
use super::machine::{self, Machine};
use super::measure::Sample;
use super::scenario::{Measure, Scenario, Target};

/// The results of a scenario on one containerd.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Outcome {
    pub(super) scenario: String,
    pub(super) title: String,
    /// For example `2.1.9+unknown`.
    pub(super) containerd: String,
    /// For example `2`.
    pub(super) generation: String,
    pub(super) machine: Machine,
    /// Load of the machine before and after, with the load of other programs.
    pub(super) load: [f64; 2],
    /// Fewest write transactions for the blobs and records that airgapd writes.
    pub(super) fewest_writes: Option<usize>,
    pub(super) contenders: Vec<Measured>,
    pub(super) promises: Vec<Promise>,
}

/// The cost of a contender.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Measured {
    pub(super) name: String,
    pub(super) runs: usize,
    /// The median of each figure.
    pub(super) median: Sample,
    /// Wall times in the order of the runs.
    pub(super) walls: Vec<f64>,
}

/// A promise and its result.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Promise {
    /// Subject of the promise, in words.
    pub(super) measure: String,
    pub(super) measured: f64,
    pub(super) at_most: f64,
}

impl Outcome {
    pub(super) fn of(
        scenario: Scenario,
        containerd: &Containerd,
        load_before: f64,
        measured: &[(Contender, Vec<Sample>)],
    ) -> Self {
        let contenders = measured.iter().map(|(contender, samples)| Measured {
            name: contender.name().to_owned(),
            runs: samples.len(),
            median: median_of(samples),
            walls: samples.iter().map(|sample| sample.wall).collect(),
        });
        let promises = scenario
            .targets()
            .iter()
            .filter_map(|target| promise(target, measured));
        Self {
            scenario: scenario.name().to_owned(),
            title: scenario.title().to_owned(),
            containerd: containerd.version_text().to_owned(),
            generation: containerd.generation().to_string(),
            machine: Machine::this(&containerd.root()),
            load: [load_before, machine::load()],
            fewest_writes: scenario.fewest_writes(),
            contenders: contenders.collect(),
            promises: promises.collect(),
        }
    }

    /// Returns a table for the screen, ratios first.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        for promise in &self.promises {
            let _ = writeln!(text, "  {}", promise.in_words());
        }
        let _ = writeln!(
            text,
            "  {:<46} {:>7} {:>8} {:>7} {:>8} {:>10} {:>11} {:>6}",
            "", "ratio", "wall s", "CPU s", "MiB", "server CPU", "server MiB", "writes"
        );
        for row in &self.contenders {
            let Sample {
                wall,
                cpu,
                peak,
                server_cpu,
                server_peak,
                transactions,
            } = row.median;
            let _ = writeln!(
                text,
                "  {:<46} {:>7.3} {wall:>8.3} {cpu:>7.2} {peak:>8.1} {server_cpu:>10.2} {server_peak:>11.1} {transactions:>6.0}",
                row.name,
                self.ratio_to(row),
            );
        }
        text
    }

    /// Returns airgapd's wall time as a share of the time of `other`.
    pub(super) fn ratio_to(&self, other: &Measured) -> f64 {
        let ours = self.contenders.first().map_or(0.0, |first| first.median.wall);
        ours / other.median.wall
    }

    /// Returns airgapd's wall time as a share of the sum of the times of `others`. `None` if one of
    /// them did not take part.
    pub(super) fn share_of_time(&self, others: &[Contender]) -> Option<f64> {
        let of = |wanted: &Contender| {
            let mut all = self.contenders.iter();
            all.find(|measured| measured.name == wanted.name())
        };
        let times: Option<Vec<_>> = others.iter().map(|other| Some(of(other)?.median.wall)).collect();
        Some(of(&Contender::Airgapd)?.median.wall / times?.iter().sum::<f64>())
    }

    pub(super) fn save(&self) -> Result<()> {
        let folder = folder();
        fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{}-{}.json", self.generation, self.scenario));
        fs::write(&path, serde_json::to_string_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Returns all results that this machine has.
    pub(super) fn all_saved() -> Result<Vec<Self>> {
        let mut outcomes = Vec::new();
        for entry in fs::read_dir(folder()).into_iter().flatten() {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let text = fs::read_to_string(&path)?;
                let outcome = serde_json::from_str(&text).with_context(|| {
                    format!("{} is from another version: remove the file", path.display())
                })?;
                outcomes.push(outcome);
            }
        }
        Ok(outcomes)
    }
}

impl Promise {
    pub(super) fn verdict(&self) -> &'static str {
        if self.measured <= self.at_most {
            "kept"
        } else {
            "missed"
        }
    }

    fn in_words(&self) -> String {
        let Self {
            measure,
            measured,
            at_most,
        } = self;
        let verdict = self.verdict();
        format!("{measure}: {measured:.3}, target at most {at_most}: {verdict}")
    }
}

fn folder() -> PathBuf {
    xtask::workshop::target_folder().join("bench")
}

/// Returns the promise, or `None` if a contender that it names did not take part.
fn promise(target: &Target, measured: &[(Contender, Vec<Sample>)]) -> Option<Promise> {
    let of = |wanted: Contender| {
        let samples = measured.iter().find(|(contender, _)| *contender == wanted);
        samples.map(|(_, samples)| median_of(samples))
    };
    let ours = of(Contender::Airgapd)?;
    let share = |figure: fn(&Sample) -> f64, others: &[Contender]| {
        let theirs: Option<Vec<_>> = others.iter().map(|other| of(*other)).collect();
        Some(figure(&ours) / theirs?.iter().map(figure).sum::<f64>())
    };
    Some(Promise {
        measure: target.measure.in_words(),
        measured: match target.measure {
            Measure::Time => ours.wall,
            Measure::Processor => ours.cpu,
            Measure::TimeAgainst(others) => share(|sample| sample.wall, others)?,
            Measure::ProcessorAgainst(other) => share(|sample| sample.cpu, &[other])?,
            Measure::MemoryAgainst(other) => share(|sample| sample.peak, &[other])?,
        },
        at_most: target.at_most,
    })
}

fn median_of(samples: &[Sample]) -> Sample {
    let by = |figure: fn(&Sample) -> f64| median(samples.iter().map(figure).collect());
    Sample {
        wall: by(|sample| sample.wall),
        cpu: by(|sample| sample.cpu),
        peak: by(|sample| sample.peak),
        server_cpu: by(|sample| sample.server_cpu),
        server_peak: by(|sample| sample.server_peak),
        transactions: by(|sample| sample.transactions),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        length if length % 2 == 1 => values[length / 2],
        length => f64::midpoint(values[length / 2 - 1], values[length / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(walls: &[f64]) -> Vec<Sample> {
        let sample = |wall: &f64| Sample {
            wall: *wall,
            ..Sample::default()
        };
        walls.iter().map(sample).collect()
    }

    #[test]
    fn the_median_is_the_middle_one_or_between_the_middle_two() {
        assert_eq!(median(vec![3.0, 1.0, 100.0]), 3.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 100.0]), 3.0);
        assert_eq!(median(Vec::new()), 0.0);
    }

    #[test]
    fn a_promise_against_several_is_against_their_sum() {
        let measured = [
            (Contender::Airgapd, samples(&[1.0, 2.0, 9.0])),
            (Contender::Hash, samples(&[1.0])),
            (Contender::Copy, samples(&[3.0])),
        ];
        let target = Target {
            measure: Measure::TimeAgainst(&[Contender::Hash, Contender::Copy]),
            at_most: 0.4,
        };
        let promise = promise(&target, &measured).unwrap();
        assert!((promise.measured - 0.5).abs() < 1e-9);
        assert_eq!(promise.verdict(), "missed");
        assert_eq!(
            promise.measure,
            "time against openssl dgst -sha256 + cp and fsync"
        );
    }

    #[test]
    fn nothing_is_promised_against_somebody_who_did_not_take_part() {
        let measured = [(Contender::Airgapd, samples(&[1.0]))];
        let target = Target {
            measure: Measure::TimeAgainst(&[Contender::Ctr]),
            at_most: 1.0,
        };
        assert!(promise(&target, &measured).is_none());
    }
}
