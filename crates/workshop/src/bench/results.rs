//! The results of a scenario: medians, ratios, and kept or broken promises.

use std::cmp::Reverse;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use lab::{Containerd, Generation, workspace};
use serde::{Deserialize, Serialize};

use super::contender::Contender;
use super::machine::{self, Machine};
use super::measure::Sample;
use super::scenario::{Measure, Scenario, Target};

/// The results of a scenario on one containerd.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Outcome {
    pub(super) scenario: String,
    pub(super) title: String,
    /// For example `2.1.9+unknown`.
    pub(super) containerd: String,
    /// For example `2.1`.
    pub(super) generation: String,
    pub(super) machine: Machine,
    /// Load of the machine before and after, with the load of other programs.
    pub(super) load: [f64; 2],
    /// Fewest write transactions for the blobs and records that airgapd writes.
    pub(super) fewest_writes: Option<usize>,
    /// Names of the contenders whose times all times are compared with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) yardsticks: Vec<String>,
    pub(super) contenders: Vec<Measured>,
}

/// The cost of a contender.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Measured {
    pub(super) name: String,
    pub(super) runs: usize,
    /// The median of each figure.
    pub(super) median: Sample,
    /// Wall times in the order of the runs. Their spread shows the noise of the machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) walls: Vec<f64>,
}

/// Takes a figure out of a sample.
type Figure = fn(&Sample) -> f64;

/// One figure of every contender as a share of another.
pub(super) struct Shares {
    pub(super) heading: String,
    /// In the order of the contenders. Zero if a contender has no such figure.
    pub(super) of_each: Vec<f64>,
}

/// A promise and its result.
#[derive(Debug)]
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
            walls: samples.iter().map(|sample| rounded(sample.wall)).collect(),
        });
        Self {
            scenario: scenario.name().to_owned(),
            title: scenario.title().to_owned(),
            containerd: containerd.version_text().to_owned(),
            generation: containerd.generation().to_string(),
            machine: Machine::this(&containerd.root()),
            load: [load_before, machine::load()],
            fewest_writes: scenario.fewest_writes(),
            yardsticks: scenario
                .yardsticks()
                .iter()
                .map(|yardstick| yardstick.name().to_owned())
                .collect(),
            contenders: contenders.collect(),
        }
    }

    /// Returns the promises about this scenario. Leaves out a promise that names a contender
    /// without figures.
    pub(super) fn promises(&self) -> Vec<Promise> {
        let targets = Scenario::named(&self.scenario).map_or(&[][..], Scenario::targets);
        targets.iter().filter_map(|target| self.promise(target)).collect()
    }

    fn promise(&self, target: &Target) -> Option<Promise> {
        let ours = self.median(target.of)?;
        let share = |figure: Figure, others: &[Contender]| {
            let theirs: Option<Vec<_>> = others.iter().map(|other| self.median(*other)).collect();
            Some(figure(ours) / theirs?.into_iter().map(figure).sum::<f64>())
        };
        Some(Promise {
            measure: target.in_words(),
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

    fn median(&self, of: Contender) -> Option<&Sample> {
        let mut all = self.contenders.iter();
        Some(&all.find(|measured| measured.name == of.name())?.median)
    }

    /// Returns a table for the screen, ratios first.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        for promise in &self.promises() {
            let _ = writeln!(text, "  {}", promise.in_words());
        }
        let shares = self.shares();
        let headings = [
            "wall s",
            "first s",
            "CPU s",
            "MiB",
            "server CPU",
            "server MiB",
            "writes",
        ];
        let _ = write!(text, "  {:<46}", "");
        for number in 1..=shares.len() {
            let _ = write!(text, " {:>7}", format!("ratio {number}"));
        }
        for heading in headings {
            let _ = write!(text, " {heading:>10}");
        }
        text += "\n";
        for (at, row) in self.contenders.iter().enumerate() {
            let Sample {
                wall,
                cpu,
                peak,
                server_cpu,
                server_peak,
                transactions,
                first,
            } = row.median;
            let _ = write!(text, "  {:<46}", row.name);
            for share in &shares {
                let _ = write!(text, " {:>7.3}", share.of_each[at]);
            }
            let _ = writeln!(
                text,
                " {wall:>10.3} {first:>10.3} {cpu:>10.2} {peak:>10.1} {server_cpu:>10.2} {server_peak:>10.1} {transactions:>10.0}",
            );
        }
        for (number, share) in (1..).zip(&shares) {
            let _ = writeln!(text, "  ratio {number}: {}", share.heading);
        }
        text
    }

    /// Returns the comparisons of all contenders with each yardstick. Without yardsticks, this is
    /// airgapd's share of the time of every other.
    pub(super) fn shares(&self) -> Vec<Shares> {
        if self.yardsticks.is_empty() {
            return vec![Shares {
                heading: "airgapd's share of its time".to_owned(),
                of_each: self
                    .contenders
                    .iter()
                    .map(|row| self.ratio_to(row).unwrap_or(0.0))
                    .collect(),
            }];
        }
        let figures: [(&str, Figure); 4] = [
            ("time", |sample| sample.wall),
            ("first image", |sample| sample.first),
            ("CPU of both sides", |sample| sample.cpu + sample.server_cpu),
            ("containerd's memory", |sample| sample.server_peak),
        ];
        // A limit of the machine imports no image, and containerd rests meanwhile.
        let is_limit = |row: &Measured| row.median.first == 0.0;
        let has_limit = |heading| matches!(heading, "time" | "CPU of both sides");
        let mut shares = Vec::new();
        for name in &self.yardsticks {
            let Some(yardstick) = self.contenders.iter().find(|row| row.name == *name) else {
                continue;
            };
            for (heading, figure) in figures {
                if is_limit(yardstick) && !has_limit(heading) {
                    continue;
                }
                let share = |row: &Measured| match is_limit(row) && !has_limit(heading) {
                    true => 0.0,
                    false => figure(&row.median) / figure(&yardstick.median),
                };
                shares.push(Shares {
                    heading: format!("{heading} against {name}"),
                    of_each: self.contenders.iter().map(share).collect(),
                });
            }
        }
        shares
    }

    /// Returns true if the time of the first image was measured.
    pub(super) fn has_first(&self) -> bool {
        self.contenders.iter().any(|row| row.median.first > 0.0)
    }

    /// Returns the wall time of airgapd's way to the same end, as a share of the time of `other`.
    /// `None` if that way did not take part.
    pub(super) fn ratio_to(&self, other: &Measured) -> Option<f64> {
        self.share_of_time(&[Contender::named(&other.name)?])
    }

    /// Returns the time of airgapd's way to the same end, as a share of the sum of other times.
    /// `None` if one of these contenders did not take part.
    pub(super) fn share_of_time(&self, others: &[Contender]) -> Option<f64> {
        let ours = Scenario::named(&self.scenario)?.ours(*others.first()?);
        let wall = |contender: Contender| Some(self.median(contender)?.wall);
        let times: Option<Vec<_>> = others.iter().copied().map(wall).collect();
        Some(wall(ours)? / times?.iter().sum::<f64>())
    }

    /// Puts these results in the place of earlier results of the scenario on that containerd.
    pub(super) fn save(self) -> Result<()> {
        let outcomes = self.among(Self::all_saved()?);
        let text = serde_json::to_string_pretty(&outcomes)? + "\n";
        fs::write(path(), text).with_context(|| format!("cannot write {}", path().display()))
    }

    /// Returns results with these in the place of the earlier ones. All results of other scenarios
    /// and of other generations of containerd stay as they are.
    fn among(self, mut outcomes: Vec<Self>) -> Vec<Self> {
        outcomes.retain(|other| !other.is_of(&self.scenario, &self.generation));
        outcomes.push(self);
        outcomes.sort_by_cached_key(Self::order);
        outcomes
    }

    /// Returns all results, in the order of the scenarios. The newest containerd comes first.
    pub(super) fn all_saved() -> Result<Vec<Self>> {
        let text = fs::read_to_string(path()).with_context(|| format!("cannot read {}", path().display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no list of results", path().display()))
    }

    /// Returns true if these are results of a scenario on a generation of containerd.
    pub(super) fn is_of(&self, scenario: &str, generation: &str) -> bool {
        self.scenario == scenario && self.generation == generation
    }

    fn order(&self) -> (Option<Scenario>, Reverse<Option<Generation>>) {
        let generation = self.generation.parse().ok();
        (Scenario::named(&self.scenario), Reverse(generation))
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

/// Returns the file with all results. It is part of the source, for the document and for later
/// comparisons.
fn path() -> PathBuf {
    workspace().join("crates/workshop/src/bench/figures.json")
}

fn median_of(samples: &[Sample]) -> Sample {
    let by = |figure: fn(&Sample) -> f64| rounded(median(samples.iter().map(figure).collect()));
    Sample {
        wall: by(|sample| sample.wall),
        cpu: by(|sample| sample.cpu),
        peak: by(|sample| sample.peak),
        server_cpu: by(|sample| sample.server_cpu),
        server_peak: by(|sample| sample.server_peak),
        transactions: by(|sample| sample.transactions),
        first: by(|sample| sample.first),
    }
}

/// Returns a figure to a ten-thousandth. No run is that exact.
fn rounded(figure: f64) -> f64 {
    (figure * 1e4).round() / 1e4
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
    use clap::ValueEnum as _;

    use super::*;

    impl Measured {
        /// Makes a contender whose runs took this time, in seconds.
        pub(in super::super) fn fixture(name: &str, wall: f64) -> Self {
            Self {
                name: name.to_owned(),
                runs: 1,
                median: samples(&[wall])[0],
                walls: vec![wall],
            }
        }
    }

    fn samples(walls: &[f64]) -> Vec<Sample> {
        let sample = |wall: &f64| Sample {
            wall: *wall,
            ..Sample::default()
        };
        walls.iter().map(sample).collect()
    }

    /// Makes the results of a scenario from the time of each contender, in seconds.
    fn outcome(scenario: &str, times: &[(Contender, f64)]) -> Outcome {
        let contenders = times.iter();
        Outcome {
            scenario: scenario.to_owned(),
            generation: "2.1".to_owned(),
            contenders: contenders
                .map(|(contender, wall)| Measured::fixture(contender.name(), *wall))
                .collect(),
            ..Outcome::default()
        }
    }

    #[test]
    fn only_times_to_the_same_end_are_compared() {
        use Contender::{Airgapd, AirgapdUnpacking, Ctr, CtrLocal};
        let times = [
            (Airgapd, 1.0),
            (AirgapdUnpacking, 6.0),
            (CtrLocal, 2.0),
            (Ctr, 8.0),
        ];
        let shares = |scenario, times: &[_]| outcome(scenario, times).shares()[0].of_each.clone();
        assert_eq!(shares("cold", &times), [1.0, 1.0, 0.5, 0.75]);
        assert_eq!(
            shares("cold", &[(Airgapd, 1.0), (Ctr, 8.0)]),
            [1.0, 0.0],
            "nothing of airgapd has unpacked"
        );
        assert_eq!(outcome("cold", &times).share_of_time(&[Ctr]), Some(0.75));
        assert_eq!(
            outcome("runnable", &times).share_of_time(&[CtrLocal]),
            Some(3.0),
            "containers have run"
        );
    }

    #[test]
    fn the_way_to_the_same_end_takes_part_in_each_scenario() {
        for scenario in Scenario::value_variants() {
            for generation in Generation::ALL {
                let contenders = scenario.contenders(generation);
                for contender in &contenders {
                    let ours = scenario.ours(*contender);
                    assert!(contenders.contains(&ours), "{scenario:?}: {contender:?}");
                }
            }
        }
    }

    #[test]
    fn new_results_replace_those_of_their_scenario_and_generation_only() {
        let of = |scenario, generation: &str, wall| Outcome {
            generation: generation.to_owned(),
            ..outcome(scenario, &[(Contender::Airgapd, wall)])
        };
        let saved = vec![
            of("cold", "2.1", 1.0),
            of("cold", "1.7", 2.0),
            of("warm", "2.1", 3.0),
            of("gone", "2.1", 4.0),
        ];
        let after = of("warm", "2.3", 6.0).among(of("cold", "2.1", 5.0).among(saved));
        let figures: Vec<_> = after
            .iter()
            .map(|outcome| {
                let wall = outcome.contenders[0].median.wall;
                (outcome.scenario.as_str(), outcome.generation.as_str(), wall)
            })
            .collect();
        assert_eq!(
            figures,
            [
                ("gone", "2.1", 4.0),
                ("cold", "2.1", 5.0),
                ("cold", "1.7", 2.0),
                ("warm", "2.3", 6.0),
                ("warm", "2.1", 3.0),
            ]
        );
    }

    #[test]
    fn the_median_is_the_middle_one_or_between_the_middle_two() {
        assert_eq!(median(vec![3.0, 1.0, 100.0]), 3.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 100.0]), 3.0);
        assert_eq!(median(Vec::new()), 0.0);
    }

    #[test]
    fn a_promise_against_several_is_against_their_sum() {
        let outcome = outcome(
            "cold",
            &[
                (Contender::Airgapd, 2.0),
                (Contender::Hash, 1.0),
                (Contender::Copy, 3.0),
            ],
        );
        let target = Target {
            of: Contender::Airgapd,
            measure: Measure::TimeAgainst(&[Contender::Hash, Contender::Copy]),
            at_most: 0.4,
        };
        let promise = outcome.promise(&target).unwrap();
        assert!((promise.measured - 0.5).abs() < 1e-9);
        assert_eq!(promise.verdict(), "missed");
        assert_eq!(
            promise.measure,
            "time against openssl dgst -sha256 + cp and fsync"
        );
    }

    #[test]
    fn every_contender_is_compared_with_each_yardstick() {
        let times = [
            (Contender::Airgapd, 3.0),
            (Contender::CtrLocal, 6.0),
            (Contender::Hash, 2.0),
        ];
        let Outcome { mut contenders, .. } = outcome("cold", &times);
        contenders[0].median.first = 1.0;
        contenders[1].median.first = 5.0;
        for contender in &mut contenders {
            contender.median.server_peak = 60.0;
        }
        let mut outcome = Outcome {
            contenders,
            ..outcome("cold", &[])
        };
        let alone = outcome.shares();
        assert_eq!(alone.len(), 1);
        assert_eq!(alone[0].of_each, [1.0, 0.5, 1.5]);
        outcome.yardsticks = [Contender::CtrLocal, Contender::Hash]
            .map(|yardstick| yardstick.name().to_owned())
            .to_vec();
        let shares = outcome.shares();
        let headings: Vec<_> = shares.iter().map(|share| share.heading.as_str()).collect();
        assert_eq!(
            headings,
            [
                "time against ctr import --local --no-unpack",
                "first image against ctr import --local --no-unpack",
                "CPU of both sides against ctr import --local --no-unpack",
                "containerd's memory against ctr import --local --no-unpack",
                "time against openssl dgst -sha256",
                "CPU of both sides against openssl dgst -sha256",
            ]
        );
        assert_eq!(shares[0].of_each, [0.5, 1.0, 2.0 / 6.0]);
        assert_eq!(shares[1].of_each, [0.2, 1.0, 0.0]);
        assert_eq!(shares[3].of_each, [1.0, 1.0, 0.0]);
        assert_eq!(shares[4].of_each, [1.5, 3.0, 1.0]);
    }

    #[test]
    fn nothing_is_promised_against_somebody_who_did_not_take_part() {
        let outcome = outcome("cold", &[(Contender::Airgapd, 1.0)]);
        let target = Target {
            of: Contender::Airgapd,
            measure: Measure::TimeAgainst(&[Contender::Ctr]),
            at_most: 1.0,
        };
        assert!(outcome.promise(&target).is_none());
    }
}
