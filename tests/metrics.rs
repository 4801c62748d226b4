//! Metrics: their values and where they are served. Prometheus' own tools check the metrics, the
//! alerts and the dashboard.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use prometheus_parse::{Scrape, Value as Sample};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::dashboard;
use crate::support::node::bundle;
use crate::support::prometheus::{Prometheus, free_port, get};
use crate::support::tools::promtool;
use crate::support::{Node, Target, bundles, on_a_real_containerd, on_the_fake, wait_for, wait_until};

/// Returns the sample with this name and these labels.
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
/// Names the file for the picture of the dashboard, relative to the workspace.
const PICTURE: &str = "AIRGAPD_DASHBOARD";

fn in_workspace(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

#[track_caller]
fn assert_well(output: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}\n{error}");
}

/// Returns all possible metrics: of good and bad bundles, with requirements, and without a
/// containerd.
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
    node.airgapd(["scrub"]).exits(0);
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
        let mut input = check.stdin.take().expect("the stream is piped");
        input.write_all(metrics.as_bytes()).expect("the other side reads");
        drop(input);
        let output = check.wait_with_output().expect("the process ends");
        assert_well(&output);
        // promtool succeeds even if it prints hints, so the output must be empty.
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
    let (_, tests) = tested.split_once("tests:\n").unwrap();
    let healthy = tests.split("\n\n").next().unwrap();
    assert!(healthy.contains("a healthy node raises no alert"), "{healthy}");
    let alerts = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    for alert in alerts {
        let is_raised = tested.contains(&format!("alertname: {alert}\n        exp_alerts"));
        assert!(is_raised, "no test raises {alert}");
        let is_silent = healthy.contains(&format!("alertname: {alert}}}"));
        assert!(is_silent, "no test shows {alert} silent on a healthy node");
    }
    // No rule may be silent because its series is missing: the healthy node has each series.
    let expressions = rules
        .split("- alert: ")
        .map(|rule| rule.split("for:").next().unwrap());
    let asked = metrics_in(&expressions.collect::<String>());
    let had = metrics_in(healthy);
    assert!(asked.is_subset(&had), "{asked:?} {had:?}");
}

/// Returns the expressions of a dashboard with its variables filled in.
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

/// Returns every metric name of airgapd in a text.
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
    // Prometheus accepts the expressions too.
    let Some(promtool) = promtool() else { return };
    let rule = |(at, expr): (usize, &String)| json!({"record": format!("panel:{at}"), "expr": expr});
    let rules: Vec<_> = expressions.iter().enumerate().map(rule).collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dashboard.json");
    // JSON is valid YAML.
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

/// docs/metrics.md describes every metric and no other.
#[test]
fn every_metric_is_described() {
    let read = |path: &str| fs::read_to_string(in_workspace(path)).unwrap();
    let text = read("docs/metrics.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let described: BTreeSet<_> = rows
        .filter_map(|row| row.split('`').next())
        .filter(|name| name.starts_with("airgapd_"))
        .collect();
    let source = read("crates/node/src/metrics.rs");
    let (source, _) = source.split_once("#[cfg(test)]").unwrap();
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
    let rows: [Row<'_>; 19] = [
        ("airgapd_containerd_up", &[], 1.0),
        ("airgapd_folder_up", &[], 1.0),
        ("airgapd_bundles", &[("state", "done")], 1.0),
        ("airgapd_bundles", &[("state", "failed")], 1.0),
        ("airgapd_bundles", &[("state", "stalled")], 0.0),
        (
            "airgapd_bundle_info",
            &[("bundle", "one.tar"), ("digest", &digest)],
            1.0,
        ),
        (
            "airgapd_bundle_not_in_place",
            &[("bundle", "bad.tar"), ("state", "failed")],
            1.0,
        ),
        ("airgapd_bundles_not_shown", &[], 0.0),
        ("airgapd_bundles_failed", &[("class", "bundle")], 1.0),
        ("airgapd_bundles_failed", &[("class", "space")], 0.0),
        ("airgapd_verdict", &[("state", "failed")], 1.0),
        ("airgapd_verdict", &[("state", "healthy")], 0.0),
        ("airgapd_images", &[("state", "in-place")], 1.0),
        ("airgapd_images", &[("state", "failed")], 0.0),
        ("airgapd_vanished_bundles", &[], 0.0),
        ("airgapd_config_last_reload_successful", &[], 1.0),
        ("airgapd_restored_bundles_total", &[], 0.0),
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
    // Every metric has a help text, the common prefix, and its unit in the name.
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
    let port = free_port();
    node.configure_also(&format!("metricsAddress: 127.0.0.1:{port}"));
    let daemon = node.start();
    let get = |path: &str| get(port, path).expect("the server listens");
    assert!(get("/metrics").contains("airgapd_build_info"));
    assert!(get("/v1/status").split(' ').nth(1) == Some("404"));
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
        sample(&parsed(&body), "airgapd_last_success_timestamp_seconds", &[]).expect("the metric exists")
    };
    let daemon = node.start();
    assert!(last().abs() < 1.0, "no import has succeeded");
    node.put_broken("bad.tar");
    node.airgapd(["wait"]).exits(1);
    assert!(last().abs() < 1.0, "a failed import is no success");
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

fn the_verdict_is_in_the_file_within_seconds(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let file = node.path("run/airgapd.prom");
    let has =
        |line: &str| fs::read_to_string(&file).is_ok_and(|text| text.lines().any(|other| other == line));
    let soon = Duration::from_secs(5);
    let is_healthy = || has("airgapd_verdict{state=\"healthy\"} 1");
    wait_for(soon, "a healthy node", is_healthy);
    node.put_broken("bad.tar");
    node.airgapd(["wait"]).exits(1);
    wait_for(soon, "a node that failed", || {
        has("airgapd_verdict{state=\"failed\"} 1")
    });
    fs::remove_file(node.images().join("bad.tar")).unwrap();
    wait_until("the metric disappears", || {
        node.ask("/metrics", &[]).1.contains("state=\"healthy\"} 1")
    });
    wait_for(soon, "a healthy node again", is_healthy);
    daemon.finish(target);
    assert!(!file.exists(), "a stopped daemon calls no node healthy");
}

fn a_bundle_that_was_restored_is_counted_and_one_that_was_imported_is_not(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let restored = || {
        let (_, body) = node.ask("/metrics", &[]);
        sample(&parsed(&body), "airgapd_restored_bundles_total", &[]).expect("the metric exists")
    };
    node.put("one.tar", ONE);
    node.airgapd(["wait"]).exits(0);
    assert!(restored().abs() < 0.1, "nothing was missing");
    for times in [1.0, 2.0] {
        wait_until("all leases are returned", || target.leases().is_empty());
        target.remove_record(ONE);
        daemon.wait_until("the image is restored", || restored() >= times);
        assert!(target.record(ONE).is_some() && restored() <= times);
    }
    daemon.finish(target);
}

fn a_configuration_that_a_reload_refused_is_a_metric(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let taken = || {
        let (_, body) = node.ask("/metrics", &[]);
        sample(&parsed(&body), "airgapd_config_last_reload_successful", &[])
    };
    assert_eq!(taken(), Some(1.0));
    let before = fs::read_to_string(node.path("config.yaml")).unwrap();
    node.configure_also("nonsense: 1");
    daemon.signal(Signal::HUP);
    daemon.wait_until("the reload is refused", || taken() == Some(0.0));
    node.configure(&before);
    daemon.signal(Signal::HUP);
    daemon.wait_until("the reload is accepted", || taken() == Some(1.0));
    daemon.finish(target);
}

fn metrics_that_do_not_arrive_degrade_the_node_until_they_do(target: &Target) {
    let node = Node::on(target);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let folder = node.path("none");
    node.configure_also(&format!(
        "metricsFile: {}/airgapd.prom\nmetricsAddress: 127.0.0.1:{port}",
        folder.display()
    ));
    let daemon = node.start();
    let status = || node.airgapd(["status", "-o", "json"]).json();
    daemon.wait_until("the file is tried", || {
        status()["metrics_file_problem"].is_string()
    });
    let status = node.airgapd(["status", "-o", "json"]).exits(1).json();
    assert_eq!(status["verdict"]["health"], "degraded", "{status:#}");
    let reasons = status["verdict"]["reasons"].as_array().unwrap();
    let told: Vec<_> = reasons
        .iter()
        .map(|reason| reason["text"].as_str().unwrap())
        .collect();
    assert!(
        reasons.iter().all(|reason| reason["subject"] == "metrics"),
        "{status:#}"
    );
    let [of_file, of_address] = &*told else {
        panic!("{status:#}")
    };
    assert!(of_file.contains("none/airgapd.prom: No such file"), "{of_file}");
    assert!(
        of_address.contains(&format!("127.0.0.1:{port}: Address already in use")),
        "{of_address}"
    );
    // Nothing prevents imports: the bundle is in place, although the node is degraded.
    node.put("one.tar", ONE);
    node.airgapd(["wait", "--bundle", "one.tar"]).exits(0);
    node.airgapd(["wait"]).exits(1);
    let doctor = node.airgapd(["doctor"]).exits(1);
    for words in ["ReadWritePaths=", "metrics.conf"] {
        assert!(doctor.stdout.contains(words), "{doctor:?}");
    }
    assert_eq!(daemon.count("no metrics in"), 1, "{}", daemon.log());
    assert_eq!(daemon.count("no metrics on"), 1, "{}", daemon.log());

    drop(taken);
    fs::create_dir(&folder).unwrap();
    daemon.wait_until("all is well", || node.airgapd(["status"]).status.success());
    assert!(get(port, "/metrics").unwrap().contains("airgapd_verdict"));
    assert!(folder.join("airgapd.prom").exists());
    daemon.finish(target);
}

fn metrics_that_cannot_be_written_any_more_degrade_the_node_within_five_seconds(target: &Target) {
    let node = Node::on(target);
    let folder = node.path("metrics");
    fs::create_dir(&folder).unwrap();
    node.configure_also(&format!("metricsFile: {}/airgapd.prom", folder.display()));
    let daemon = node.start();
    let is_written = || folder.join("airgapd.prom").exists();
    daemon.wait_until("all is well", || {
        is_written() && node.airgapd(["status"]).status.success()
    });
    for round in 1..=2 {
        fs::remove_dir_all(&folder).unwrap();
        let problem = || node.airgapd(["status", "-o", "json"]).json()["metrics_file_problem"].is_string();
        wait_for(Duration::from_secs(5), "it is noticed", problem);
        node.airgapd(["status"]).exits(1);
        assert_eq!(daemon.count("no metrics in"), round, "{}", daemon.log());
        fs::create_dir(&folder).unwrap();
        wait_for(Duration::from_secs(5), "it is written again", is_written);
        node.airgapd(["status"]).exits(0);
    }
    daemon.finish(target);
}

/// A healthy node, a node with a failed bundle, and a node without containerd.
fn every_query_of_the_dashboard_is_answered_with_data_of_three_nodes(target: &Target) {
    let second = target.elsewhere();
    let nodes = [
        Node::on(target),
        Node::on(&second),
        Node::at("/nonexistent/containerd.sock".as_ref(), target.namespace()),
    ];
    let ports = [(); 3].map(|()| free_port());
    let daemons: Vec<_> = std::iter::zip(&nodes, ports)
        .map(|(node, port)| {
            node.configure_also(&format!("metricsAddress: 127.0.0.1:{port}"));
            node.start()
        })
        .collect();
    let rules = in_workspace("config/prometheus-rules.yaml");
    let Some(prometheus) = Prometheus::start(&ports, &rules) else {
        return;
    };
    // Rates cover the changes since the first scrape.
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("one.tar");
    bundles::write(&bundle, [bundles::image(ONE)]);
    for node in &nodes {
        node.drop_in(&bundle);
    }
    nodes[1].put_broken("bad.tar");
    nodes[0].airgapd(["wait"]).exits(0);
    nodes[1].airgapd(["wait"]).exits(1);

    let text = fs::read_to_string(in_workspace("config/grafana-dashboard.json")).unwrap();
    let expressions = expressions(&serde_json::from_str(&text).unwrap());
    assert!(expressions.len() >= 25, "{expressions:?}");
    for query in &expressions {
        wait_until(&format!("an answer to {query}"), || {
            !prometheus.query(query).is_empty()
        });
    }
    let one = |query: &str| match &*prometheus.query(query) {
        [(_, value)] => Some(*value),
        _ => None,
    };
    let of_panel = |title: &str| {
        let dashboard: Value = serde_json::from_str(&text).unwrap();
        let panels = dashboard["panels"].as_array().unwrap();
        let panel = panels.iter().find(|panel| panel["title"] == title);
        let panel = panel.unwrap_or_else(|| panic!("no panel {title}"));
        let query = panel["targets"][0]["expr"].as_str().unwrap();
        query.replace("$instance", ".*")
    };
    let numbers = [
        ("Nodes with airgapd", 3.0),
        ("Nodes with problems", 2.0),
        ("Nodes without containerd", 1.0),
        ("Images in place", 2.0),
        ("Nodes with a full disk", 0.0),
        ("Bundles not named", 0.0),
    ];
    for (title, number) in numbers {
        let query = of_panel(title);
        wait_until(&format!("{title}: {number}"), || one(&query) == Some(number));
    }
    let instance = |at: usize| format!("127.0.0.1:{}", ports[at]);
    let rows = |title: &str, labels: &[&str]| -> BTreeMap<Vec<String>, f64> {
        let results = prometheus.query(&of_panel(title));
        let key = |metric: &Value| {
            let label = |name: &&str| metric[*name].as_str().unwrap_or_default().to_owned();
            labels.iter().map(label).collect()
        };
        results
            .into_iter()
            .map(|(metric, value)| (key(&metric), value))
            .collect()
    };
    let row = |texts: &[&str], value: f64| (texts.iter().map(|text| (*text).to_owned()).collect(), value);
    let [failed, waiting] = [1, 2].map(instance);
    assert_eq!(
        rows("Verdicts on nodes with problems", &["instance", "state"]),
        BTreeMap::from([row(&[&failed, "failed"], 1.0), row(&[&waiting, "waiting"], 1.0)])
    );
    assert_eq!(
        rows("Nodes with problems, by cause", &["cause"]),
        BTreeMap::from([row(&["failed: bundle"], 1.0), row(&["containerd is away"], 1.0)])
    );
    assert_eq!(
        rows("Bundles, by the number of nodes with each in place", &["bundle"]),
        BTreeMap::from([row(&["one.tar"], 2.0)])
    );
    assert_eq!(
        rows("Bundles that are not in place", &["instance", "bundle", "state"]),
        BTreeMap::from([
            row(&[&failed, "bad.tar", "failed"], 1.0),
            row(&[&waiting, "one.tar", "queued"], 1.0)
        ])
    );
    let contents = rows("Sets of bundles, by the number of nodes with each", &["content"]);
    let mut nodes_with: Vec<_> = contents.into_values().collect();
    nodes_with.sort_by(f64::total_cmp);
    assert_eq!(
        nodes_with,
        [1.0, 2.0],
        "two nodes have the same content, and one node has none"
    );

    // Prometheus evaluates the rules too, and raises the alert of the failed node.
    wait_until("the alert of the node that failed", || {
        let data = prometheus.data("/api/v1/alerts");
        let mut alerts = data["alerts"].as_array().unwrap().iter();
        alerts.any(|alert| {
            let labels = &alert["labels"];
            labels["alertname"] == "AirgapdFailed" && labels["instance"] == failed.as_str()
        })
    });
    let groups = prometheus.data("/api/v1/rules")["groups"].clone();
    let rules = groups[0]["rules"].as_array().unwrap();
    assert!(
        !rules.is_empty() && rules.iter().all(|rule| rule["health"] == "ok"),
        "{groups:#}"
    );
    let write = env::var_os(PICTURE);
    if write.is_some() {
        // Something happens in the graphs.
        for name in ["two", "three"] {
            let bundle = folder.path().join(format!("{name}.tar"));
            bundles::write(&bundle, [bundles::image(&format!("registry.test/{name}:1"))]);
            for node in &nodes[..2] {
                node.drop_in(&bundle);
                let _ = node.airgapd(["wait"]);
            }
        }
        target.remove_record(ONE);
        wait_until("the image comes back", || target.record(ONE).is_some());
        let seen = "min_over_time(timestamp(airgapd_build_info)[1h:1s]) < time() - 15";
        wait_until("some seconds of data", || prometheus.query(seen).len() == 3);
    }
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut picture = dashboard::picture(&dashboard, &prometheus, 60);
    for (at, port) in ports.iter().enumerate() {
        picture = picture.replace(&format!("127.0.0.1:{port}"), &format!("node{}:9799", at + 1));
    }
    let panels = dashboard["panels"].as_array().unwrap();
    assert_eq!(picture.matches("class=\"panel\"").count(), panels.len());
    assert!(
        picture.contains("node2:9799") && picture.contains(">bad.tar</text>"),
        "{picture}"
    );
    if let Some(path) = write {
        fs::write(in_workspace("").join(path), picture).unwrap();
    }
    let [first, other, nowhere] = <[_; 3]>::try_from(daemons).unwrap_or_else(|_| panic!("three"));
    first.finish(target);
    other.finish(&second);
    nowhere.stop();
}

// airgapd cannot see the disk of a stand-in.
on_a_real_containerd!(
    alerts_and_dashboard_ask_for_metrics_that_there_are,
    every_query_of_the_dashboard_is_answered_with_data_of_three_nodes,
);

on_the_fake!(
    metrics_are_what_prometheus_conventions_ask_for,
    metrics_say_what_a_fleet_asks,
    metrics_are_served_on_loopback_and_nothing_else_is,
    the_verdict_is_in_the_file_within_seconds,
    a_bundle_that_was_restored_is_counted_and_one_that_was_imported_is_not,
    a_configuration_that_a_reload_refused_is_a_metric,
    metrics_that_cannot_be_written_any_more_degrade_the_node_within_five_seconds,
    metrics_that_do_not_arrive_degrade_the_node_until_they_do,
    what_was_imported_before_a_restart_counts_as_the_last_success,
);
