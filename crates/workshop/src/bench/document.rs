//! Makes `docs/performance.md` and `docs/performance-details.md` from the results of the bench.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use lab::workspace;

use super::contender::Contender;
use super::measure::Sample;
use super::results::Outcome;
use super::scenario::Scenario;

/// The method and the meaning of the figures. This text is written by hand.
const METHOD: &str = include_str!("method.md");

/// The first lines of the page with the details.
const DETAILS: &str = "# Performance in detail\n\n[performance.md](performance.md) has the ratios and the method. This page has all measurements, and\nshows where the time goes. `cargo xtask bench` makes it.\n";

/// The anatomy of the times. This text is written by hand.
const ANATOMY: &str = include_str!("anatomy.md");

/// Writes both documents from all saved results.
pub(super) fn write() -> Result<()> {
    for (path, text) in pages(&Outcome::all_saved()?) {
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Returns each document with its path.
fn pages(outcomes: &[Outcome]) -> [(PathBuf, String); 2] {
    let docs = workspace().join("docs");
    [
        (docs.join("performance.md"), summary(outcomes)),
        (docs.join("performance-details.md"), details(outcomes)),
    ]
}

/// Returns the page with the ratios, the targets and the method.
fn summary(outcomes: &[Outcome]) -> String {
    let mut text = "# Performance\n\nThe figures are airgapd's time, divided by the time in the head of the column. Below 1, airgapd is\nfaster. [Method](#method) explains the columns. An empty cell has no comparison to the same end.\n\n"
        .to_owned();
    text += "| scenario | containerd | `ctr import` | `ctr import --local --no-unpack` | k0s' way | floor |\n|---|---|---:|---:|---:|---:|\n";
    for outcome in outcomes {
        ratios(&mut text, outcome);
    }
    text += "\n## Targets and results\n\n";
    text +=
        "| scenario | containerd | measure | measured | target, at most | |\n|---|---|---|---:|---:|---|\n";
    for outcome in outcomes {
        promises(&mut text, outcome);
    }
    text += "\n";
    text += METHOD;
    text += "\n## The machine\n\n";
    let mut machines: Vec<_> = outcomes.iter().map(|outcome| outcome.machine.list()).collect();
    machines.sort();
    machines.dedup();
    text += &machines.join("\n");
    text
}

/// Returns the page with all measurements and the anatomy of the times.
fn details(outcomes: &[Outcome]) -> String {
    let mut text = DETAILS.to_owned();
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
    use Contender::{Ctr, CtrLocal, CtrLocalPiped, CtrPiped, K0s};
    let share = |others: &[Contender]| outcome.share_of_time(others);
    let scenario = Scenario::named(&outcome.scenario);
    let local = share(&[CtrLocal]).or_else(|| share(&[CtrLocalPiped]));
    // k0s leaves the layers packed, and the first containers unpack them.
    let (local, k0s) = match scenario {
        Some(Scenario::Runnable | Scenario::RunnableZstd) => (None, local),
        _ => (local, share(&[K0s])),
    };
    let shares = [
        share(&[Ctr]).or_else(|| share(&[CtrPiped])),
        local,
        k0s,
        scenario.and_then(|scenario| share(scenario.floor())),
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
    for promise in &outcome.promises() {
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
        "\n### `{}` on containerd {}: {}\n",
        outcome.scenario, outcome.containerd, outcome.title
    );
    let mut notes = format!(
        "Medians of {runs} runs each. The machine's load was {before:.1} before and {after:.1} after them."
    );
    if let Some(fewest) = outcome.fewest_writes {
        let _ = write!(
            notes,
            " airgapd's writes need at least {fewest} write transactions here: two for a blob and one for a record."
        );
    }
    *text += &wrapped(&notes);
    let names: Vec<_> = outcome
        .contenders
        .iter()
        .map(|measured| in_a_cell(&measured.name))
        .collect();
    let mut shares: Vec<Column> = outcome
        .shares()
        .into_iter()
        .map(|share| {
            (
                share.heading,
                share.of_each.into_iter().map(in_thousandths).collect(),
            )
        })
        .collect();
    let figures = columns(outcome);
    if outcome.yardsticks.is_empty() {
        shares.extend(figures);
        table(text, &names, &shares);
    } else {
        table(text, &names, &shares);
        table(text, &names, &figures);
    }
}

/// A heading and a cell for each contender.
type Column = (String, Vec<String>);

/// Returns the medians.
fn columns(outcome: &Outcome) -> Vec<Column> {
    let column = |heading: &str, cell: &dyn Fn(&Sample) -> String| {
        let rows = outcome.contenders.iter();
        (heading.to_owned(), rows.map(|row| cell(&row.median)).collect())
    };
    let mut columns = vec![column("seconds", &|sample| in_thousandths(sample.wall))];
    if outcome.has_first() {
        columns.push(column("first image after s", &|sample| {
            in_thousandths(sample.first)
        }));
    }
    columns.extend([
        column("CPU s", &|sample| format!("{:.2}", sample.cpu)),
        column("peak MiB", &|sample| format!("{:.1}", sample.peak)),
        column("containerd CPU s", &|sample| format!("{:.2}", sample.server_cpu)),
        column("containerd peak MiB", &|sample| {
            format!("{:.1}", sample.server_peak)
        }),
        column("write transactions", &|sample| {
            format!("{:.0}", sample.transactions)
        }),
    ]);
    columns
}

/// Returns a figure, or nothing if it was not measured.
fn in_thousandths(figure: f64) -> String {
    match figure {
        0.0 => String::new(),
        some => format!("{some:.3}"),
    }
}

fn table(text: &mut String, names: &[String], columns: &[Column]) {
    *text += "\n| |";
    for (heading, _) in columns {
        let _ = write!(text, " {} |", in_a_cell(heading));
    }
    let _ = writeln!(text, "\n|---|{}", "---:|".repeat(columns.len()));
    for (at, name) in names.iter().enumerate() {
        let _ = write!(text, "| {name} |");
        for (_, cells) in columns {
            let _ = write!(text, " {} |", cells[at]);
        }
        *text += "\n";
    }
}

/// Returns a paragraph whose lines end within 100 columns.
fn wrapped(paragraph: &str) -> String {
    let (mut lines, mut width) = (String::new(), 0);
    for word in paragraph.split_whitespace() {
        if width > 0 && width + 1 + word.len() > 100 {
            lines.push('\n');
            width = 0;
        } else if width > 0 {
            lines.push(' ');
            width += 1;
        }
        lines += word;
        width += word.len();
    }
    lines + "\n"
}

/// Returns a text for a table cell of Markdown, which ends at a bar.
fn in_a_cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::super::results::Measured;
    use super::*;

    fn outcome(scenario: &str, times: &[(Contender, f64)]) -> Outcome {
        let contenders = times
            .iter()
            .map(|(contender, wall)| Measured::fixture(contender.name(), *wall));
        Outcome {
            scenario: scenario.to_owned(),
            title: "an import".to_owned(),
            containerd: "2.1.9".to_owned(),
            contenders: contenders.collect(),
            ..Outcome::default()
        }
    }

    #[test]
    fn the_page_begins_with_the_ratios_and_the_details_have_the_rest() {
        use Contender::{
            Airgapd, AirgapdUnpacking, Copy, Ctr, CtrLocal, CtrLocalPiped, CtrPiped, Extract, Hash, K0s,
        };
        let cold = [
            (Airgapd, 1.0),
            (AirgapdUnpacking, 6.0),
            (CtrLocal, 2.0),
            (Ctr, 8.0),
            (Hash, 0.3),
            (Copy, 0.5),
        ];
        let outcomes = [
            outcome("cold", &cold),
            outcome("zstd", &[(Airgapd, 1.0), (CtrLocalPiped, 4.0), (CtrPiped, 5.0)]),
            outcome("restart", &[(Airgapd, 1.0)]),
            outcome("drop", &[(Airgapd, 1.0), (CtrLocal, 0.8), (K0s, 10.0)]),
            outcome(
                "runnable",
                &[
                    (AirgapdUnpacking, 3.0),
                    (Airgapd, 9.0),
                    (Ctr, 4.0),
                    (CtrLocal, 5.0),
                    (Extract, 2.0),
                ],
            ),
            outcome("first", &[(AirgapdUnpacking, 1.0), (Airgapd, 9.0)]),
        ];
        let [(_, summary), (_, details)] = pages(&outcomes);
        let (ratios, rest) = summary.split_once("\n## Targets").expect("the targets follow");
        let rows: Vec<_> = ratios.lines().filter(|line| line.starts_with("| `")).collect();
        assert_eq!(
            rows,
            [
                "| `cold`: an import | 2.1.9 | 0.750 | 0.500 | | 1.250 |",
                "| `zstd`: an import | 2.1.9 | | 0.250 | | |",
                "| `drop`: an import | 2.1.9 | | 1.250 | 0.100 | 1.250 |",
                "| `runnable`: an import | 2.1.9 | 0.750 | | 0.600 | 1.500 |",
            ]
        );
        assert!(rest.contains(METHOD));
        assert!(details.contains("### `restart` on containerd 2.1.9: an import"));
        assert!(details.ends_with(ANATOMY));
    }

    #[test]
    fn the_committed_pages_are_made_from_the_saved_results() {
        for (path, text) in pages(&Outcome::all_saved().unwrap()) {
            assert!(
                fs::read_to_string(&path).unwrap() == text,
                "{} differs from its parts: run `cargo xtask bench --document`",
                path.display()
            );
        }
    }
}
