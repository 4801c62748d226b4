//! Metrics, alerts and the dashboard, held against Prometheus' own tools.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::bundles::{self, image};
use crate::support::tools::promtool;
use crate::support::{Node, Target, on_the_fake};

const ONE: &str = "registry.test/one:1";

fn in_workspace(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

#[track_caller]
fn assert_well(output: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}\n{error}");
}

/// All the metrics that there can be: of bundles that went well and badly, with requirements and without a containerd.
fn every_metric(target: &Target) -> Vec<String> {
    let node = Node::on(target);
    let list = node.path("list.txt");
    fs::write(&list, ONE).unwrap();
    node.configure_also(&format!("require: {{images: [{}]}}", list.display()));
    let daemon = node.start();
    bundles::write(&node.path("one.tar"), [image(ONE)]);
    fs::rename(node.path("one.tar"), node.images().join("one.tar")).unwrap();
    node.airgapd(["wait", "--required"]).exits(0);
    fs::write(node.path("bad.tar"), "no bundle\n".repeat(200)).unwrap();
    fs::rename(node.path("bad.tar"), node.images().join("bad.tar")).unwrap();
    node.airgapd(["wait"]).exits(1);
    let (_, body) = node.ask("/metrics", &[]);
    daemon.finish(target);
    let nowhere = Node::at("/nonexistent/containerd.sock".as_ref(), target.namespace());
    let daemon = nowhere.start();
    let (_, of_nowhere) = nowhere.ask("/metrics", &[]);
    daemon.finish(target);
    assert!(of_nowhere.contains("\nairgapd_containerd_up 0\n"), "{of_nowhere}");
    vec![body, of_nowhere]
}

fn metrics_are_what_prometheus_conventions_ask_for(target: &Target) {
    let Some(promtool) = promtool() else { return };
    for metrics in every_metric(target) {
        let mut check = Command::new(&promtool)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("promtool starts");
        let mut input = check.stdin.take().expect("it is piped");
        input.write_all(metrics.as_bytes()).expect("it reads");
        drop(input);
        let output = check.wait_with_output().expect("it ends");
        assert_well(&output);
        // What it would rather have otherwise is no failure to it.
        assert!(output.stderr.is_empty() && output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn alerts_come_when_they_should_and_not_otherwise() {
    let Some(promtool) = promtool() else { return };
    let rules = in_workspace("config/prometheus-rules.yaml");
    let check = Command::new(&promtool)
        .args(["check", "rules"])
        .arg(&rules)
        .output();
    assert_well(&check.unwrap());
    let tests = in_workspace("tests/alerts.yaml");
    let test = Command::new(&promtool)
        .args(["test", "rules"])
        .arg(&tests)
        .output();
    assert_well(&test.unwrap());
    let tested = fs::read_to_string(tests).unwrap();
    let rules = fs::read_to_string(rules).unwrap();
    let alerts = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    for alert in alerts {
        let is_raised = tested.contains(&format!("alertname: {alert}\n        exp_alerts"));
        assert!(is_raised, "no test has {alert} raised");
    }
}

/// The expressions of a dashboard, with its variables filled in.
fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let text = |target: &Value| target["expr"].as_str().expect("an expression").to_owned();
    targets
        .map(|target| text(target).replace("$instance", ".*"))
        .collect()
}

/// Every name of ours in some text.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("airgapd_"));
    ours.map(|word| word.trim_end_matches("_bucket").to_owned())
        .collect()
}

fn alerts_and_dashboard_ask_for_metrics_that_there_are(target: &Target) {
    let metrics = every_metric(target).concat();
    let read = |path: &str| fs::read_to_string(in_workspace(path)).unwrap();
    let rules = read("config/prometheus-rules.yaml");
    let dashboard: Value = serde_json::from_str(&read("config/grafana-dashboard.json")).unwrap();
    let variables = dashboard["templating"].to_string();
    let expressions = expressions(&dashboard);
    let asked = metrics_in(&format!("{rules}{variables}{}", expressions.join("\n")));
    assert!(asked.len() >= 9, "{asked:?}");
    for metric in &asked {
        assert!(metrics.contains(&format!("# TYPE {metric} ")), "{metric}");
    }
    // Prometheus understands the expressions, too.
    let Some(promtool) = promtool() else { return };
    let rule = |(at, expr): (usize, &String)| json!({"record": format!("panel:{at}"), "expr": expr});
    let rules: Vec<_> = expressions.iter().enumerate().map(rule).collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dashboard.json");
    // JSON is YAML.
    let groups = json!({"groups": [{"name": "dashboard", "rules": rules}]});
    fs::write(&file, groups.to_string()).unwrap();
    assert_well(
        &Command::new(promtool)
            .args(["check", "rules"])
            .arg(&file)
            .output()
            .unwrap(),
    );
}

/// docs/metrics.md has every metric and no other.
#[test]
fn every_metric_is_described() {
    let read = |path: &str| fs::read_to_string(in_workspace(path)).unwrap();
    let text = read("docs/metrics.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let described: BTreeSet<_> = rows.filter_map(|row| row.split('`').next()).collect();
    let source = read("crates/node/src/metrics.rs");
    let named: BTreeSet<_> = source
        .split('"')
        .filter(|text| text.starts_with("airgapd_"))
        .collect();
    assert_eq!(described, named);
}

on_the_fake!(
    metrics_are_what_prometheus_conventions_ask_for,
    alerts_and_dashboard_ask_for_metrics_that_there_are,
);
