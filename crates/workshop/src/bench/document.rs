//! Makes `docs/performance.md` from the results of the bench.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result, bail};
use lab::workspace;

use super::measure::Sample;
use super::results::{Measured, Outcome};
use super::scenario;

/// The meaning of the figures, and where the time goes. This text is written by hand.
const FINDINGS: &str = include_str!("findings.md");

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
    let mut text = "# Performance\n\n`cargo xtask bench` makes this page. Its text is in `crates/workshop/src/bench/findings.md`.\n\n".to_owned();
    text += FINDINGS;
    text += "\n## The machine\n\n";
    let mut machines: Vec<_> = outcomes
        .iter()
        .map(|outcome| outcome.machine.in_words())
        .collect();
    machines.dedup();
    for machine in machines {
        let _ = writeln!(text, "{machine}.");
    }
    text += "\n## Targets and results\n\n";
    text +=
        "| scenario | containerd | measure | measured | target, at most | |\n|---|---|---|---:|---:|---|\n";
    for outcome in outcomes {
        promises(&mut text, outcome);
    }
    text += "\n## All results\n";
    for outcome in outcomes {
        figures(&mut text, outcome);
    }
    text
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
