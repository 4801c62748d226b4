//! `--quick`: a few scenarios with few runs, compared with the results in `figures.json`.

use std::fmt::Write as _;

use super::contender::Contender;
use super::results::Outcome;
use super::scenario::Scenario;

/// The scenarios of a quick bench.
pub(super) const SCENARIOS: [Scenario; 5] = [
    Scenario::Cold,
    Scenario::Warm,
    Scenario::Small,
    Scenario::Runnable,
    Scenario::Drop,
];

/// Runs of each contender.
pub(super) const RUNS: usize = 3;

/// A figure may be worse than the saved figure by this share of it. Medians of three runs differ by
/// up to a fifth on a machine with other work.
const MARGIN: f64 = 0.25;

/// Returns true if a contender takes part: airgapd, and the importer whose ratio tells most.
pub(super) fn takes_part(scenario: Scenario, contender: Contender) -> bool {
    match contender {
        Contender::Airgapd | Contender::CtrLocal => scenario != Scenario::Runnable,
        Contender::AirgapdUnpacking | Contender::Ctr => scenario == Scenario::Runnable,
        _ => false,
    }
}

/// A figure beside the saved figure of the same name.
#[derive(Debug, PartialEq)]
pub(super) struct Comparison {
    name: String,
    now: f64,
    /// `None` if there is no saved figure.
    saved: Option<f64>,
}

impl Comparison {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_worse(&self) -> bool {
        self.saved.is_some_and(|saved| self.now > saved * (1.0 + MARGIN))
    }

    pub(super) fn in_words(&self) -> String {
        let mut text = format!("  {:<72} {:>7.3}", self.name, self.now);
        match self.saved {
            Some(saved) => {
                let difference = (self.now / saved - 1.0) * 100.0;
                let _ = write!(text, "  saved {saved:>7.3}  {difference:>+5.0} %");
            }
            None => text += "  no saved figure",
        }
        if self.is_worse() {
            text += "  worse";
        }
        text
    }
}

/// Compares airgapd's share of the time of every other contender with the saved share. If airgapd
/// is alone, its seconds are compared.
pub(super) fn compare(now: &Outcome, saved: &[Outcome]) -> Vec<Comparison> {
    let saved = saved
        .iter()
        .find(|saved| saved.is_of(&now.scenario, &now.generation));
    let figure = |outcome: &Outcome, name: &str| {
        let measured = outcome.contenders.iter().find(|other| other.name == name)?;
        Some(match now.contenders.len() {
            1 => measured.median.wall,
            _ => outcome.ratio_to(measured)?,
        })
    };
    let others = match now.contenders.as_slice() {
        [alone] => std::slice::from_ref(alone),
        [_, others @ ..] => others,
        [] => &[],
    };
    let compared = others.iter().filter_map(|other| {
        let scenario = &now.scenario;
        Some(Comparison {
            name: match now.contenders.len() {
                1 => format!("{scenario}: seconds"),
                _ => format!("{scenario}: time against {}", other.name),
            },
            now: figure(now, &other.name)?,
            saved: saved.and_then(|saved| figure(saved, &other.name)),
        })
    });
    compared.collect()
}

/// Returns the reasons why figures may differ although airgapd is the same: another kind of disk,
/// or other work on the machine.
pub(super) fn remarks(now: &Outcome, saved: &[Outcome]) -> Vec<String> {
    let saved = saved
        .iter()
        .find(|saved| saved.is_of(&now.scenario, &now.generation));
    let disk = saved.and_then(|saved| {
        let (now, saved) = (&now.machine.filesystem, &saved.machine.filesystem);
        (now != saved).then(|| format!("The saved figures are from {saved}, these from {now}."))
    });
    // The contenders themselves keep up to two cores busy.
    let (load, cores) = (now.load[1], now.machine.cores.max(2));
    #[allow(clippy::cast_precision_loss, reason = "a few cores")]
    let is_busy = load > 2.0 * cores as f64;
    let busy =
        is_busy.then(|| format!("The machine had other work (load {load:.1}). Repeat this when it rests."));
    disk.into_iter().chain(busy).collect()
}

#[cfg(test)]
mod tests {
    use super::super::results::Measured;
    use super::*;

    const LOCAL: &str = "ctr import --local --no-unpack";
    const HASH: &str = "openssl dgst -sha256";

    fn outcome(scenario: &str, walls: &[(&str, f64)]) -> Outcome {
        let contenders = walls.iter().map(|(name, wall)| Measured::fixture(name, *wall));
        Outcome {
            scenario: scenario.to_owned(),
            generation: "2.1".to_owned(),
            contenders: contenders.collect(),
            ..Outcome::default()
        }
    }

    #[test]
    fn ratios_are_compared_by_the_name_of_the_other_contender() {
        let saved = [
            outcome("small", &[("airgapd", 9.0), (LOCAL, 1.0)]),
            outcome("cold", &[("airgapd", 1.0), ("cp and fsync", 4.0), (LOCAL, 2.0)]),
        ];
        let now = outcome("cold", &[("airgapd", 3.0), (LOCAL, 5.0), (HASH, 6.0)]);
        let compared = compare(&now, &saved);
        let expected = [
            (
                "cold: time against ctr import --local --no-unpack",
                0.6,
                Some(0.5),
            ),
            ("cold: time against openssl dgst -sha256", 0.5, None),
        ];
        assert_eq!(
            compared,
            expected.map(|(name, now, saved)| Comparison {
                name: name.to_owned(),
                now,
                saved
            })
        );
    }

    #[test]
    fn seconds_are_compared_if_airgapd_is_alone() {
        let (saved, now) = (
            outcome("restart", &[("airgapd", 0.2)]),
            outcome("restart", &[("airgapd", 0.3)]),
        );
        let compared = compare(&now, &[saved]);
        assert_eq!(compared.len(), 1);
        assert!(compared[0].is_worse());
        assert_eq!(compared[0].name, "restart: seconds");
        assert!(
            compared[0].in_words().ends_with("+50 %  worse"),
            "{}",
            compared[0].in_words()
        );
    }

    #[test]
    fn only_a_figure_beyond_the_margin_is_worse() {
        for (now, saved, worse) in [
            (1.24, Some(1.0), false),
            (1.26, Some(1.0), true),
            (0.5, Some(1.0), false),
            (9.0, None, false),
        ] {
            let name = String::new();
            assert_eq!(
                Comparison { name, now, saved }.is_worse(),
                worse,
                "{now} {saved:?}"
            );
        }
    }

    #[test]
    fn another_disk_is_remarked() {
        let (mut saved, now) = (outcome("small", &[]), outcome("small", &[]));
        assert!(remarks(&now, std::slice::from_ref(&saved)).is_empty());
        saved.machine.filesystem = "xfs".to_owned();
        assert!(remarks(&now, &[saved])[0].contains("from xfs"));
        assert!(remarks(&now, &[]).is_empty());
    }

    #[test]
    fn other_work_on_the_machine_is_remarked() {
        let mut now = outcome("cold", &[]);
        for (cores, load, is_busy) in [(2, 3.9, false), (2, 4.1, true), (8, 15.0, false), (8, 17.0, true)] {
            now.machine.cores = cores;
            now.load = [0.0, load];
            assert_eq!(!remarks(&now, &[]).is_empty(), is_busy, "{cores} {load}");
        }
    }

    #[test]
    fn each_scenario_of_a_quick_bench_keeps_airgapd_first() {
        for scenario in SCENARIOS {
            for generation in lab::Generation::ALL {
                let all = scenario.contenders(generation);
                let some = all
                    .iter()
                    .copied()
                    .filter(|contender| takes_part(scenario, *contender));
                assert_eq!(some.clone().next(), all.first().copied(), "{scenario:?}");
                assert!(some.clone().count() > 1, "{scenario:?}");
                for contender in some.clone() {
                    let ours = scenario.ours(contender);
                    assert!(
                        some.clone().any(|other| other == ours),
                        "{scenario:?} {contender:?}"
                    );
                }
            }
        }
    }
}
