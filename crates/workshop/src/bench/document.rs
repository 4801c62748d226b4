//! Makes `docs/performance.md` from the results of the bench.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result, bail};
use lab::workspace;

use super::contender::Contender;
use super::measure::Sample;
use super::results::{Measured, Outcome};
use super::scenario;

/// The method and the meaning of the figures. This text is written by hand.
const METHOD: &str = include_str!("method.md");

/// The anatomy of the times. This text is written by hand.
const ANATOMY: &str = include_str!("anatomy.md");

/// Writes the document from all results that this machine has.
pub(super) fn write() -> Result<()> {
    let mut outcomes = Outcome::all_saved()?;
    if outcomes.is_empty() {
        bail!("no results yet: run `cargo xtask bench` as root");
    }
    outcomes.sort_by_key(|outcome| (scenario::position_of(&outcome.scenario), order_of(outcome)));
    let path = workspace().join("docs/performance.md");
    fs::write(&path, text(&outcomes)).with_context(|| format!("cannot write {}", path.display()))
}

/// Returns the position of a result. The newest containerd comes first.
fn order_of(outcome: &Outcome) -> usize {
    let order = ["2", "1.7", "1.6"];
    order
        .iter()
        .position(|generation| *generation == outcome.generation)
        .unwrap_or(order.len())
}

fn text(outcomes: &[Outcome]) -> String {
    let mut text = "# Performance\n\nThe figures are airgapd's time, divided by the time in the head of the column. Below 1, airgapd is\nfaster. [Method](#method) explains the columns.\n\n"
        .to_owned();
    text += "| scenario | containerd | `ctr import --local --no-unpack` | `ctr import` | floor |\n|---|---|---:|---:|---:|\n";
    for outcome in outcomes {
        ratios(&mut text, outcome);
    }
    text += "\n";
    text += METHOD;
    text += "\n## The machine\n\n";
    let mut machines: Vec<_> = outcomes.iter().map(|outcome| outcome.machine.list()).collect();
    machines.dedup();
    for machine in machines {
        text += &machine;
    }
    text += "\n## Targets and results\n\n";
    text +=
        "| scenario | containerd | measure | measured | target, at most | |\n|---|---|---|---:|---:|---|\n";
    for outcome in outcomes {
        promises(&mut text, outcome);
    }
    text += "\n## All measurements\n";
    for outcome in outcomes {
        figures(&mut text, outcome);
    }
    text += "\n";
    text += ANATOMY;
    text
}

/// Writes airgapd's shares of the times of others. A scenario without others gets no row.
fn ratios(text: &mut String, outcome: &Outcome) {
    let share = |others: &[Contender]| outcome.share_of_time(others);
    let shares = [
        share(&[Contender::CtrLocal]).or_else(|| share(&[Contender::CtrLocalPiped])),
        share(&[Contender::Ctr]).or_else(|| share(&[Contender::CtrPiped])),
        share(&[Contender::Hash, Contender::Copy]),
    ];
    if shares.iter().all(Option::is_none) {
        return;
    }
    let cells = shares.map(|share| share.map_or_else(String::new, |share| format!(" {share:.3}")));
    let _ = writeln!(
        text,
        "| `{}`: {} | {} |{} |",
        outcome.scenario,
        outcome.title,
        outcome.containerd,
        cells.join(" |")
    );
}

fn promises(text: &mut String, outcome: &Outcome) {
    for promise in &outcome.promises {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.3} | {} | {} |",
            outcome.scenario,
            outcome.containerd,
            in_a_cell(&promise.measure),
            promise.measured,
            promise.at_most,
            promise.verdict()
        );
    }
}

fn figures(text: &mut String, outcome: &Outcome) {
    let runs = outcome.contenders.first().map_or(0, |first| first.runs);
    let [before, after] = outcome.load;
    let _ = writeln!(
        text,
        "\n### `{}` on containerd {}: {}\n\nMedians of {runs} runs each. The machine's load was {before:.1} before and {after:.1} after them.",
        outcome.scenario, outcome.containerd, outcome.title
    );
    if let Some(fewest) = outcome.fewest_writes {
        let _ = writeln!(
            text,
            "airgapd's writes need at least {fewest} write transactions here: two for a blob and one for a record."
        );
    }
    *text += "\n| | airgapd's share of its time | seconds | CPU s | peak MiB | containerd CPU s | containerd peak MiB | write transactions |\n|---|---:|---:|---:|---:|---:|---:|---:|\n";
    for measured in &outcome.contenders {
        row(text, outcome, measured);
    }
}

fn row(text: &mut String, outcome: &Outcome, measured: &Measured) {
    let Sample {
        wall,
        cpu,
        peak,
        server_cpu,
        server_peak,
        transactions,
    } = measured.median;
    let _ = writeln!(
        text,
        "| {} | {:.3} | {wall:.3} | {cpu:.2} | {peak:.1} | {server_cpu:.2} | {server_peak:.1} | {transactions:.0} |",
        in_a_cell(&measured.name),
        outcome.ratio_to(measured),
    );
}

/// Returns a text for a table cell of Markdown, which ends at a bar.
fn in_a_cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::super::machine::Machine;
    use super::*;

    fn outcome(scenario: &str, times: &[(Contender, f64)]) -> Outcome {
        let contenders = times.iter().map(|(contender, wall)| Measured {
            name: contender.name().to_owned(),
            runs: 5,
            median: Sample {
                wall: *wall,
                ..Sample::default()
            },
            walls: Vec::new(),
        });
        Outcome {
            scenario: scenario.to_owned(),
            title: "an import".to_owned(),
            containerd: "2.1.9".to_owned(),
            generation: "2".to_owned(),
            machine: Machine::default(),
            load: [0.0; 2],
            fewest_writes: None,
            contenders: contenders.collect(),
            promises: Vec::new(),
        }
    }

    #[test]
    fn the_page_begins_with_the_ratios_and_ends_with_the_anatomy() {
        use Contender::{Airgapd, AirgapdUnpacking, Copy, Ctr, CtrLocal, CtrLocalPiped, CtrPiped, Hash};
        let cold = [
            (Airgapd, 1.0),
            (CtrLocal, 2.0),
            (Ctr, 8.0),
            (Hash, 0.3),
            (Copy, 0.5),
        ];
        let text = text(&[
            outcome("cold", &cold),
            outcome("zstd", &[(Airgapd, 1.0), (CtrLocalPiped, 4.0), (CtrPiped, 5.0)]),
            outcome("restart", &[(Airgapd, 1.0)]),
            outcome("first", &[(AirgapdUnpacking, 1.0), (Airgapd, 9.0)]),
        ]);
        let (ratios, rest) = text.split_once("\n## Method\n").expect("the method follows");
        let rows: Vec<_> = ratios.lines().filter(|line| line.starts_with("| `")).collect();
        assert_eq!(
            rows,
            [
                "| `cold`: an import | 2.1.9 | 0.500 | 0.125 | 1.250 |",
                "| `zstd`: an import | 2.1.9 | 0.250 | 0.200 | |",
            ]
        );
        assert!(rest.contains("### `restart` on containerd 2.1.9: an import"));
        assert!(text.ends_with(ANATOMY));
    }

    /// The texts change more often than the measurements.
    #[test]
    fn the_committed_page_has_the_present_texts() {
        let page = include_str!("../../../../docs/performance.md");
        assert!(page.contains(METHOD), "copy method.md into docs/performance.md");
        assert!(
            page.ends_with(ANATOMY),
            "copy anatomy.md into docs/performance.md"
        );
    }
}
