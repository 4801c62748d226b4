//! Metrics: what they say and where they are served; they, the alerts and the dashboard held against Prometheus' own tools.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use prometheus_parse::{Scrape, Value as Sample};
use serde_json::{Value, json};

use crate::support::node::bundle;
use crate::support::tools::promtool;
use crate::support::{Node, Target, on_the_fake, wait_until};

/// The sample of this name that has these labels.
fn sample(scrape: &Scrape, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let fits = |sample: &&prometheus_parse::Sample| {
        sample.metric == name
            && labels
                .iter()
                .all(|(key, value)| sample.labels.get(key) == Some(value))
    };
    scrape.samples.iter().find(fits).map(|sample| match sample.value {
        Sample::Counter(value) | Sample::Gauge(value) | Sample::Untyped(value) => value,
        Sample::Histogram(_) | Sample::Summary(_) => f64::NAN,
    })
}

fn parsed(text: &str) -> Scrape {
    let lines = text.lines().map(|line| Ok(line.to_owned()));
    Scrape::parse(lines).expect("Prometheus can read it")
}

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
    node.put("one.tar", ONE);
    node.airgapd(["wait", "--required"]).exits(0);
    node.put_broken("bad.tar");
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

fn metrics_say_what_a_fleet_asks(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    node.put("one.tar", ONE);
    node.put_broken("bad.tar");
    node.airgapd(["wait"]).exits(1);
    let (head, body) = node.ask("/metrics", &[]);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("version=0.0.4"), "{head}");
    let scrape = parsed(&body);
    let catalog = node.airgapd(["status", "-o", "json"]).json();
    let digest = bundle(&catalog, "one.tar")["catalog"]
        .as_str()
        .unwrap()
        .to_owned();
    type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], f64);
    let rows: [Row<'_>; 8] = [
        ("airgapd_containerd_up", &[], 1.0),
        ("airgapd_folder_up", &[], 1.0),
        ("airgapd_bundles", &[("state", "done")], 1.0),
        ("airgapd_bundles", &[("state", "failed")], 1.0),
        ("airgapd_bundles", &[("state", "stalled")], 0.0),
        (
            "airgapd_bundle_info",
            &[("bundle", "one.tar"), ("digest", &digest), ("state", "done")],
            1.0,
        ),
        ("airgapd_imports_total", &[("outcome", "imported")], 1.0),
        ("airgapd_imports_total", &[("outcome", "failed")], 1.0),
    ];
    for (name, labels, wanted) in rows {
        assert_eq!(
            sample(&scrape, name, labels),
            Some(wanted),
            "{name} {labels:?}\n{body}"
        );
    }
    assert!(sample(&scrape, "airgapd_sent_bytes_total", &[]) > Some(0.0));
    // Every metric says what it is, begins alike, and is named after its unit.
    for sample in &scrape.samples {
        let name = sample.metric.trim_end_matches("_sum").trim_end_matches("_count");
        assert!(name.starts_with("airgapd_"), "{sample:?}");
        assert!(body.contains(&format!("# TYPE {name} ")), "{sample:?}");
        assert!(body.contains(&format!("# HELP {name} ")), "{sample:?}");
        let is_counter = matches!(sample.value, Sample::Counter(_));
        assert_eq!(is_counter, name.ends_with("_total"), "{sample:?}");
    }

    let file = node.path("run/airgapd.prom");
    let read = || fs::read_to_string(&file).unwrap_or_default();
    wait_until("the metrics in their file", || read().contains("one.tar"));
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o644);
    assert!(!parsed(&read()).samples.is_empty());
    daemon.finish(target);
}

fn metrics_are_served_on_loopback_and_nothing_else_is(target: &Target) {
    let node = Node::on(target);
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    node.configure_also(&format!("metricsAddress: 127.0.0.1:{port}"));
    let daemon = node.start();
    let get = |path: &str| {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(get("/metrics").contains("airgapd_build_info"));
    assert!(get("/v1/status").starts_with("HTTP/1.1 404"));
    daemon.finish(target);

    node.configure(
        &fs::read_to_string(node.path("config.yaml"))
            .unwrap()
            .replace("127.0.0.1", "192.0.2.1"),
    );
    let answer = node.airgapd(["config"]).exits(2);
    assert!(answer.stderr.contains("an address of this machine"), "{answer:?}");
}

fn what_was_imported_before_a_restart_counts_as_the_last_success(target: &Target) {
    let node = Node::on(target);
    let last = || {
        let (_, body) = node.ask("/metrics", &[]);
        sample(&parsed(&body), "airgapd_last_success_timestamp_seconds", &[]).expect("it is there")
    };
    let daemon = node.start();
    assert!(last().abs() < 1.0, "nothing was ever imported");
    node.put_broken("bad.tar");
    node.airgapd(["wait"]).exits(1);
    assert!(last().abs() < 1.0, "and that is no success");
    node.put("one.tar", ONE);
    node.airgapd(["wait", "--bundle", "one.tar"]).exits(0);
    let before = last();
    assert!(before > 0.0);
    daemon.finish(target);
    let daemon = node.start();
    node.airgapd(["wait", "--bundle", "one.tar"]).exits(0);
    assert!((last() - before).abs() <= 1.0, "{} {before}", last());
    daemon.finish(target);
}

on_the_fake!(
    metrics_are_what_prometheus_conventions_ask_for,
    alerts_and_dashboard_ask_for_metrics_that_there_are,
    metrics_say_what_a_fleet_asks,
    metrics_are_served_on_loopback_and_nothing_else_is,
    what_was_imported_before_a_restart_counts_as_the_last_success,
);
