//! Makes `docs/performance.md` from the results of the bench.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result};
use lab::workspace;

use super::measure::Sample;
use super::results::Outcome;

/// The meaning of the figures, and where the time goes. This text is written by hand.
const FINDINGS: &str = include_str!("findings.md");

/// Writes the document from all results that this machine has.
pub(super) fn write() -> Result<()> {
    let outcomes = Outcome::all_saved()?;
    let path = workspace().join("docs/performance.md");
    fs::write(&path, text(&outcomes)).with_context(|| format!("cannot write {}", path.display()))
}

fn text(outcomes: &[Outcome]) -> String {
    let mut text = "# Performance\n\n`cargo xtask bench` makes this page. Its text is in `crates/workshop/src/bench/findings.md`.\n\n".to_owned();
    text += FINDINGS;
    text += "\n## The machine\n\n";
    let mut machines: Vec<_> = outcomes
        .iter()
        .map(|outcome| outcome.machine.in_words())
        .collect();
    machines.sort();
    machines.dedup();
    text += &wrapped(&(machines.join(". ") + "."));
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
    use super::*;

    #[test]
    fn the_document_is_made_from_the_saved_results() {
        let document = fs::read_to_string(workspace().join("docs/performance.md")).unwrap();
        assert!(
            document == text(&Outcome::all_saved().unwrap()),
            "docs/performance.md differs from its parts: run `cargo xtask bench --document`"
        );
    }
}
