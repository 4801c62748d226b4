//! A picture of the dashboard in `config/`, drawn from the answers of a Prometheus.
//!
//! The picture has the dashboard's own layout, titles, units and legends. It is SVG, since no
//! Grafana runs where the tests run.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::Value;

use super::prometheus::Prometheus;

/// Pixels of a column and of a row of the layout, which has 24 columns.
const CELL: (f64, f64) = (52.0, 32.0);
/// Pixels between two panels.
const GAP: f64 = 6.0;
/// Pixels of a line of text, and of a character on average.
const LINE: f64 = 17.0;
const LETTER: f64 = 5.9;
const COLOURS: [&str; 6] = ["#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9"];
const HEAD: &str = "<style>text{font:10px sans-serif;fill:#ccccdc}\
     .title{fill:#fff}.number{font-size:30px;text-anchor:middle}.axis{fill:#8e8ea0;font-size:9px}\
     .panel{fill:#181b1f;stroke:#2c3235}.grid{stroke:#2c3235}.line{fill:none;stroke-width:1.5}</style>";

/// Draws every panel of a dashboard. `seconds` is the time that the graphs show.
///
/// # Panics
/// If a panel has no answer, or a type that is not known here.
pub fn picture(dashboard: &Value, prometheus: &Prometheus, seconds: u32) -> String {
    let panels = dashboard["panels"].as_array().expect("panels");
    let bottom = |panel: &Value| at(panel, "y") + at(panel, "h");
    let height = panels.iter().map(bottom).fold(0.0, f64::max) * CELL.1;
    let width = 24.0 * CELL.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\">{HEAD}\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#111217\"/>\n"
    );
    for panel in panels {
        let (x, y) = (at(panel, "x") * CELL.0, at(panel, "y") * CELL.1);
        let area = Area {
            width: at(panel, "w") * CELL.0 - GAP,
            height: at(panel, "h") * CELL.1 - GAP,
        };
        let inside = match panel["type"].as_str() {
            Some("stat") => number(panel, prometheus, &area),
            Some("table") => table(panel, prometheus, &area),
            Some("timeseries") => graph(panel, prometheus, &area, seconds),
            other => panic!("a panel of type {other:?}"),
        };
        let title = fitted(panel["title"].as_str().expect("a title"), area.width - 10.0);
        let _ = writeln!(
            svg,
            "<g transform=\"translate({x} {y})\"><rect class=\"panel\" width=\"{}\" height=\"{}\" rx=\"2\"/>\
             <text class=\"title\" x=\"8\" y=\"16\">{title}</text>{inside}</g>",
            area.width, area.height
        );
    }
    svg + "</svg>\n"
}

/// Pixels of a panel.
struct Area {
    width: f64,
    height: f64,
}

fn at(panel: &Value, key: &str) -> f64 {
    panel["gridPos"][key].as_f64().expect("a place in the layout")
}

fn queries(panel: &Value) -> impl Iterator<Item = (String, &str)> {
    let targets = panel["targets"].as_array().expect("targets").iter();
    targets.map(|target| {
        let query = target["expr"].as_str().expect("an expression");
        let legend = target["legendFormat"].as_str().unwrap_or_default();
        (query.replace("$instance", ".*"), legend)
    })
}

/// Text for SVG that is no wider than so many pixels.
fn fitted(text: &str, width: f64) -> String {
    let short = match text.chars().count() as f64 * LETTER > width {
        true => {
            let room = (1..text.chars().count()).take_while(|count| (*count as f64 + 1.0) * LETTER <= width);
            text.chars().take(room.count()).chain(['…']).collect()
        }
        false => text.to_owned(),
    };
    short
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// A value in the unit of its panel, as Grafana writes it.
fn in_unit(value: f64, unit: &str) -> String {
    let (base, units) = match unit {
        "bytes" => (1024.0, ["B", "KiB", "MiB", "GiB", "TiB"]),
        "Bps" => (1000.0, ["B/s", "kB/s", "MB/s", "GB/s", "TB/s"]),
        "s" if value < 1.0 => return format!("{:.0} ms", value * 1000.0),
        "s" => return format!("{value:.1} s"),
        _ if value.fract().abs() < 1e-9 => return format!("{value:.0}"),
        _ => return format!("{value:.2}"),
    };
    let (mut scaled, mut at) = (value, 0);
    while scaled >= base && at + 1 < units.len() {
        scaled /= base;
        at += 1;
    }
    format!("{scaled:.1} {}", units[at])
}

fn unit(panel: &Value) -> &str {
    panel["fieldConfig"]["defaults"]["unit"]
        .as_str()
        .unwrap_or_default()
}

/// The number of a panel, in the colour of its threshold.
fn number(panel: &Value, prometheus: &Prometheus, area: &Area) -> String {
    let (query, _) = queries(panel).next().expect("a query");
    let answers = prometheus.query(&query);
    let (_, value) = answers.first().unwrap_or_else(|| panic!("no answer to {query}"));
    let steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"].as_array();
    let mut steps = steps.into_iter().flatten();
    let reached = |step: &&Value| step["value"].as_f64().is_none_or(|least| *value >= least);
    let colour = match steps.rfind(reached).and_then(|step| step["color"].as_str()) {
        Some("red") => COLOURS[4],
        Some("orange") => COLOURS[3],
        _ => COLOURS[0],
    };
    format!(
        "<text class=\"number\" x=\"{}\" y=\"{}\" style=\"fill:{colour}\">{}</text>",
        area.width / 2.0,
        area.height / 2.0 + 20.0,
        in_unit(*value, unit(panel))
    )
}

/// The rows of a panel, without the columns that it hides.
fn table(panel: &Value, prometheus: &Prometheus, area: &Area) -> String {
    let hidden = &panel["transformations"][0]["options"]["excludeByName"];
    let is_shown = |column: &str| hidden[column] != true;
    let answers = queries(panel).flat_map(|(query, _)| prometheus.query(&query));
    let answers: Vec<_> = answers.collect();
    assert!(!answers.is_empty(), "{panel:#}");
    let labels = answers
        .iter()
        .flat_map(|(metric, _)| metric.as_object().expect("labels").keys());
    let mut columns: Vec<&str> = labels
        .map(String::as_str)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    columns.push("Value");
    columns.retain(|column| is_shown(column));
    let width = (area.width - 16.0) / columns.len() as f64;
    let mut text = String::new();
    let mut cell = |row: usize, column: usize, content: &str, class: &str| {
        let (x, y) = (8.0 + width * column as f64, 38.0 + LINE * row as f64);
        let content = fitted(content, width - 8.0);
        let _ = write!(
            text,
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{content}</text>"
        );
    };
    for (at, column) in columns.iter().enumerate() {
        cell(0, at, column, "title");
    }
    let fits = |row: &usize| 44.0 + LINE * (*row as f64 + 1.0) < area.height;
    let room = (0..answers.len()).take_while(fits).count();
    for (row, (metric, value)) in answers.iter().take(room).enumerate() {
        for (at, column) in columns.iter().enumerate() {
            let content = match *column {
                "Value" => in_unit(*value, unit(panel)),
                label => metric[label].as_str().unwrap_or_default().to_owned(),
            };
            cell(row + 1, at, &content, "cell");
        }
    }
    text
}

/// The lines of a panel, with the greatest value, the times at both ends, and the legend.
fn graph(panel: &Value, prometheus: &Prometheus, area: &Area, seconds: u32) -> String {
    let lines = lines_of(panel, prometheus, seconds);
    if lines.iter().all(|(_, points)| points.is_empty()) {
        // A quantile of no imports is not a number.
        return "<text x=\"8\" y=\"40\">No data</text>".to_owned();
    }
    let points = || lines.iter().flat_map(|(_, points)| points);
    let top = points().map(|(_, value)| *value).fold(0.0, f64::max);
    let scale = if top > 0.0 { top * 1.1 } else { 1.0 };
    let begin = points().map(|(time, _)| *time).fold(f64::INFINITY, f64::min);
    let end = points().map(|(time, _)| *time).fold(0.0, f64::max);
    let (left, right, above) = (58.0, area.width - 10.0, 28.0);
    // Names are in two columns below the lines, and the rows that fit are shown.
    let named: Vec<_> = lines.iter().filter(|(name, _)| !name.is_empty()).collect();
    let rows = named.len().div_ceil(2).min(3);
    let below = area.height - 22.0 - LINE * rows as f64;
    let x = |time: f64| left + (right - left) * (time - begin) / (end - begin).max(1.0);
    let y = |value: f64| below - (below - above) * value / scale;
    let mut svg = String::new();
    for value in [0.0, scale / 2.2, scale / 1.1] {
        let (at, label) = (y(value), in_unit(value, unit(panel)));
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{left} {at:.1}H{right}\"/>\
             <text class=\"axis\" x=\"4\" y=\"{:.1}\">{label}</text>",
            at + 3.0
        );
    }
    for (time, anchor) in [(begin, "start"), (end, "end")] {
        let _ = write!(
            svg,
            "<text class=\"axis\" text-anchor=\"{anchor}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            x(time),
            below + 12.0,
            clock(time)
        );
    }
    for ((_, points), colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let steps = points
            .iter()
            .map(|(time, value)| format!("{:.1},{:.1}", x(*time), y(*value)));
        let steps: Vec<_> = steps.collect();
        let _ = write!(
            svg,
            "<polyline class=\"line\" stroke=\"{colour}\" points=\"{}\"/>",
            steps.join(" ")
        );
    }
    for (at, ((name, _), colour)) in named.iter().zip(COLOURS.iter().cycle()).take(6).enumerate() {
        let half = (area.width - 16.0) / 2.0;
        let (x, y) = (
            8.0 + half * (at % 2) as f64,
            below + 28.0 + LINE * (at / 2) as f64,
        );
        let _ = write!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"10\" height=\"3\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{y:.1}\">{}</text>",
            y - 5.0,
            x + 15.0,
            fitted(name, half - 20.0)
        );
    }
    svg
}

/// Returns the lines of a graph: their names, and their points in time.
fn lines_of(panel: &Value, prometheus: &Prometheus, seconds: u32) -> Vec<(String, Vec<(f64, f64)>)> {
    let mut lines = Vec::new();
    for (query, legend) in queries(panel) {
        for (metric, points) in prometheus.range(&query, seconds) {
            let labels = metric.as_object().expect("labels").iter();
            let name = labels.fold(legend.to_owned(), |name, (label, value)| {
                name.replace(&format!("{{{{{label}}}}}"), value.as_str().unwrap_or_default())
            });
            lines.push((name, points));
        }
    }
    lines
}

/// The time of day in UTC.
fn clock(unix: f64) -> String {
    let seconds: u64 = format!("{unix:.0}").parse().expect("a time after 1970");
    let seconds = seconds % 86_400;
    format!(
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}
