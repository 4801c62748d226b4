//! Tables of medians in Markdown.

use std::fmt::Write as _;

use super::super::measure::Sample;

/// Returns the median of figures, or zero without any.
pub(super) fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<_> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(0.0)
}

/// Returns the median of a figure of samples.
pub(super) fn of(samples: &[Sample], figure: impl Fn(&Sample) -> f64) -> f64 {
    median(samples.iter().map(figure))
}

/// Returns the median of the ratios of two contenders, round by round. The load of the machine
/// changes between rounds.
pub(super) fn ratio(of: &[Sample], to: &[Sample], figure: impl Fn(&Sample) -> f64) -> f64 {
    median(of.iter().zip(to).map(|(one, other)| figure(one) / figure(other)))
}

/// Returns a table. The first column has the names of the rows.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = format!("\n| {} |\n|---|", headings.join(" | "));
    text += &"---:|".repeat(headings.len() - 1);
    text += "\n";
    for row in rows {
        let cells: Vec<_> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

/// Returns the usual cells of a contender: seconds, processor time and memory of both sides.
pub(super) fn usual(samples: &[Sample]) -> [String; 5] {
    [
        format!("{:.2}", of(samples, |sample| sample.wall)),
        format!("{:.2}", of(samples, |sample| sample.cpu)),
        format!("{:.1}", of(samples, |sample| sample.peak)),
        format!("{:.2}", of(samples, |sample| sample.server_cpu)),
        format!("{:.1}", of(samples, |sample| sample.server_peak)),
    ]
}

/// The headings of [`usual`].
pub(super) const USUAL: [&str; 5] = [
    "seconds",
    "CPU s",
    "peak MiB",
    "containerd CPU s",
    "containerd peak MiB",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_the_median_of_the_rounds() {
        let samples = |walls: [f64; 3]| {
            walls.map(|wall| Sample {
                wall,
                ..Sample::default()
            })
        };
        let (ours, theirs) = (samples([1.0, 4.0, 3.0]), samples([2.0, 4.0, 30.0]));
        let ratio = ratio(&ours, &theirs, |sample| sample.wall);
        assert!((ratio - 0.5).abs() < 1e-9, "{ratio}");
    }

    #[test]
    fn a_bar_in_a_name_does_not_end_its_cell() {
        let rows = [vec!["a | b".to_owned(), "1".to_owned()]];
        assert_eq!(
            table(&["", "seconds"], &rows),
            "\n|  | seconds |\n|---|---:|\n| a \\| b | 1 |\n"
        );
    }
}
