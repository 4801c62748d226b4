//! How it stands, for those who ask: `status`, `wait`, the control socket, the metrics.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

use prometheus_parse::{Scrape, Value as Sample};
use serde_json::{Value, json};

use crate::support::bundles::{self, image};
use crate::support::{Node, Target, on_each_containerd, on_the_fake, wait_until};

const ONE: &str = "registry.test/one:1";
const TWO: &str = "registry.test/two:1";

/// Puts a bundle into the folder at once.
fn put(node: &Node, file: &str, name: &str) {
    bundles::write(&node.path(file), [image(name)]);
    fs::rename(node.path(file), node.images().join(file)).expect("it is one file system");
}

fn put_broken(node: &Node, file: &str) {
    fs::write(node.path(file), "no bundle\n".repeat(200)).expect("it can be written");
    fs::rename(node.path(file), node.images().join(file)).expect("it is one file system");
}

/// Has the node require these images.
fn requiring(node: &Node, images: &[&str]) {
    let list = node.path("list.txt");
    fs::write(&list, images.join("\n")).expect("it can be written");
    node.configure_also(&format!("require: {{images: [{}]}}", list.display()));
}

fn bundle<'a>(document: &'a Value, name: &str) -> &'a Value {
    let bundles = document["bundles"].as_array().expect("a list");
    let found = bundles.iter().find(|bundle| bundle["name"] == name);
    found.unwrap_or_else(|| panic!("{name} is not in {document:#}"))
}

fn a_bundle_copied_a_moment_ago_is_waited_for(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    for round in 0..5 {
        let name = format!("registry.test/round:{round}");
        put(&node, &format!("{round}.tar"), &name);
        let document = node.airgapd(["wait", "-o", "json"]).exits(0).json();
        assert_eq!(document["outcome"], "converged");
        assert!(target.is_pinned(&name), "round {round}");
    }
    daemon.finish(target);
}

fn status_shows_bundles_and_images_with_the_daemon_and_without(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    put(&node, "one.tar", ONE);
    put(&node, "two.tar", TWO);
    node.airgapd(["wait", "--all"]).exits(0);
    let document = node.airgapd(["status", "-o", "json"]).exits(0).json();
    assert_eq!(document["daemon"]["pid"], daemon.pid());
    assert_eq!(document["containerd"]["reachable"], true);
    assert_eq!(document["problems"], json!([]));
    let one = bundle(&document, "one.tar");
    assert_eq!(
        (&one["state"], &one["outcome"], &one["images"]),
        (&json!("done"), &json!("imported"), &json!(2))
    );
    let images = document["images"].as_array().expect("containerd was asked");
    assert_eq!(images.len(), 4);
    assert!(
        images
            .iter()
            .all(|image| image["record"] == "in-place" && image["pinned"] == true)
    );
    let text = node.airgapd(["status"]).exits(0).stdout;
    assert!(text.contains("images: 4 of 4 in place"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    daemon.finish(target);

    let document = node.airgapd(["status", "-o", "json"]).exits(0).json();
    assert_eq!(
        (&document["daemon"], &document["problems"]),
        (&Value::Null, &json!([]))
    );
    assert_eq!(bundle(&document, "two.tar")["outcome"], "imported");
    target.remove_record(TWO);
    target.set_labels(ONE, &[("io.cri-containerd.pinned", None)]);
    let answer = node.airgapd(["status"]).exits(1);
    assert!(answer.stdout.contains("images: 2 of 4 in place"), "{answer:?}");
    assert!(answer.stdout.contains("its record is missing"), "{answer:?}");
    assert!(answer.stdout.contains("it is not pinned"), "{answer:?}");
    assert!(answer.stdout.contains("not running"), "{answer:?}");
}

fn failed_late_and_absent_are_told_apart(target: &Target) {
    let node = Node::on(target);
    node.airgapd(["wait"]).exits(7);
    let daemon = node.start();
    node.airgapd(["wait"]).exits(0);
    put(&node, "good.tar", ONE);
    put_broken(&node, "bad.tar");
    let answer = node.airgapd(["wait"]).exits(1);
    assert!(answer.stderr.contains("bad.tar"), "{answer:?}");
    node.airgapd(["wait", "--bundle", "good.tar"]).exits(0);
    let answer = node.airgapd(["wait", "--bundle", "bad.tar"]).exits(1);
    assert!(answer.stderr.contains("not an image bundle"), "{answer:?}");
    let answer = node.airgapd(["wait", "--bundle", "godo.tar"]).exits(1);
    assert!(
        answer.stderr.contains("there is no bundle godo.tar"),
        "{answer:?}"
    );
    let answer = node.airgapd(["status"]).exits(1);
    assert!(answer.stdout.contains("failed"), "{answer:?}");
    fs::remove_file(node.images().join("bad.tar")).unwrap();
    node.airgapd(["wait"]).exits(0);

    // An upload that goes on, or does not, is waited for.
    let mut upload = File::create(node.images().join("slow.tar")).unwrap();
    upload.write_all(&[7; 1000]).unwrap();
    let answer = node.airgapd(["wait", "--timeout", "1s", "-o", "json"]).exits(6);
    let document = answer.json();
    assert_eq!(document["outcome"], "timed-out");
    assert!(
        document["error"].as_str().unwrap().contains("slow.tar is"),
        "{document:#}"
    );
    assert_eq!(bundle(&document, "slow.tar")["state"], "settling");
    drop(upload);
    daemon.finish(target);
    node.airgapd(["wait"]).exits(7);
}

fn status_goes_on_when_it_is_asked_to(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let mut watching = node
        .command(["status", "--watch", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let mut lines = BufReader::new(watching.stdout.take().expect("it is piped")).lines();
    let mut next = || -> Value {
        let line = lines.find(|line| line.as_ref().is_ok_and(|line| !line.is_empty()));
        serde_json::from_str(&line.expect("a line").expect("text")).expect("JSON")
    };
    assert_eq!(next()["bundles"], json!([]));
    put(&node, "one.tar", ONE);
    while next()["bundles"].as_array().is_none_or(Vec::is_empty) {}
    watching.kill().expect("it runs");
    watching.wait().expect("it is our child");
    daemon.finish(target);
}

/// The metrics that alerts and the dashboard name are those that there are.
fn alerts_and_dashboard_ask_for_metrics_that_there_are(target: &Target) {
    let node = Node::on(target);
    requiring(&node, &[ONE]);
    let daemon = node.start();
    put(&node, "one.tar", ONE);
    node.airgapd(["wait", "--required"]).exits(0);
    let (_, body) = get(&node, "/metrics");
    daemon.finish(target);
    for (name, least) in [("prometheus-rules.yaml", 5), ("grafana-dashboard.json", 9)] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../config")
            .join(name);
        let text = fs::read_to_string(path).unwrap();
        // JSON is YAML.
        serde_yaml::from_str::<serde_yaml::Value>(&text).expect("it is well-formed");
        let expressions = text.lines().filter(|line| line.contains("expr"));
        let named: Vec<&str> = expressions
            .flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_'))
            .filter(|word| word.starts_with("airgapd_"))
            .collect();
        assert!(named.len() >= least, "{name}: {named:?}");
        for metric in named {
            let family = metric.trim_end_matches("_bucket");
            assert!(body.contains(&format!("# TYPE {family} ")), "{name}: {metric}");
        }
    }
}

/// What `curl --unix-socket` would get.
fn get(node: &Node, path: &str) -> (String, String) {
    let mut stream = UnixStream::connect(node.path("run/control.sock")).expect("it listens");
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.to_owned(), body.to_owned())
}

fn parsed(text: &str) -> Scrape {
    let lines = text.lines().map(|line| Ok(line.to_owned()));
    Scrape::parse(lines).expect("Prometheus can read it")
}

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

fn metrics_say_what_a_fleet_asks(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    put(&node, "one.tar", ONE);
    put_broken(&node, "bad.tar");
    node.airgapd(["wait"]).exits(1);
    let (head, body) = get(&node, "/metrics");
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

fn the_control_socket_is_roots_alone(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let socket = node.path("run/control.sock");
    assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o777, 0o600);
    let (head, _) = get(&node, "/v1/other");
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    // Nor does it help somebody else that its mode was changed.
    let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    open(&node.path(""), 0o755);
    open(&socket, 0o666);
    let nobody = node
        .command(["wait", "--timeout", "0s"])
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    assert_eq!(nobody.status.code(), Some(6), "{nobody:?}");
    open(&socket, 0o600);
    let nobody = node.command(["wait"]).uid(65534).gid(65534).output().unwrap();
    assert_eq!(nobody.status.code(), Some(7), "{nobody:?}");
    assert!(
        String::from_utf8_lossy(&nobody.stderr).contains("is root's"),
        "{nobody:?}"
    );
    daemon.finish(target);
}

fn what_a_killed_daemon_left_is_replaced_and_a_second_one_keeps_away(target: &Target) {
    let node = Node::on(target);
    node.start().kill();
    assert!(node.path("run/control.sock").exists());
    node.airgapd(["wait"]).exits(7);
    let daemon = node.start();
    node.airgapd(["wait"]).exits(0);
    let second = Node::on(target);
    let text = fs::read_to_string(second.path("config.yaml")).unwrap();
    let run = |node: &Node| format!("runtimeDir: {}", node.path("run").display());
    second.configure(&text.replace(&run(&second), &run(&node)));
    let other = second.start();
    other.wait_for_log("another airgapd answers");
    other.finish(target);
    let status = node.airgapd(["status", "-o", "json"]).exits(0).json();
    assert_eq!(status["daemon"]["pid"], daemon.pid());
    daemon.finish(target);
}

/// What the doctor finds of one subject: the verdict, the text and the remedy.
fn found(document: &Value, subject: &str) -> Vec<(String, String)> {
    let findings = document["findings"].as_array().expect("a list");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for finding in findings {
        assert_eq!(
            finding["remedy"].is_null(),
            finding["verdict"] == "ok",
            "{finding:#}"
        );
    }
    let of_subject = findings.iter().filter(|finding| finding["subject"] == subject);
    of_subject
        .map(|finding| (text(&finding["verdict"]), text(&finding["text"])))
        .collect()
}

fn the_doctor_names_what_is_wrong_and_what_to_do(target: &Target) {
    let node = Node::on(target);
    let verdict = |subject: &str, exit: i32| {
        let document = node.airgapd(["doctor", "-o", "json"]).exits(exit).json();
        assert_eq!(document["healthy"], json!(exit == 0), "{document:#}");
        found(&document, subject)
    };
    assert_eq!(verdict("daemon", 1)[0].0, "problem");
    let daemon = node.start();
    put(&node, "one.tar", ONE);
    node.airgapd(["wait"]).exits(0);
    assert_eq!(
        verdict("daemon", 0)[0],
        ("ok".to_owned(), "it runs; bundles: 1".to_owned())
    );
    assert_eq!(verdict("containerd", 0)[0].0, "ok");
    assert_eq!(verdict("inotify", 0)[0].0, "ok");
    put_broken(&node, "bad.tar");
    node.airgapd(["wait"]).exits(1);
    assert!(verdict("daemon", 1)[0].1.contains("1 of 2 bundles"));
    fs::remove_file(node.images().join("bad.tar")).unwrap();
    node.airgapd(["wait"]).exits(0);

    fs::set_permissions(node.images(), fs::Permissions::from_mode(0o777)).unwrap();
    let (is, why) = verdict("folder", 1).remove(0);
    assert!(
        is == "problem" && why.contains("everybody can write it"),
        "{is} {why}"
    );
    fs::set_permissions(node.images(), fs::Permissions::from_mode(0o755)).unwrap();
    let text = node.airgapd(["doctor"]).exits(0).stdout;
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    daemon.finish(target);

    let nowhere = Node::at("/nonexistent/containerd.sock".as_ref(), target.namespace());
    let document = nowhere.airgapd(["doctor", "-o", "json"]).exits(1).json();
    assert_eq!(found(&document, "containerd")[0].0, "problem");
}

on_each_containerd!(
    the_doctor_names_what_is_wrong_and_what_to_do,
    a_bundle_copied_a_moment_ago_is_waited_for,
    status_shows_bundles_and_images_with_the_daemon_and_without,
);
on_the_fake!(
    failed_late_and_absent_are_told_apart,
    status_goes_on_when_it_is_asked_to,
    metrics_say_what_a_fleet_asks,
    alerts_and_dashboard_ask_for_metrics_that_there_are,
    metrics_are_served_on_loopback_and_nothing_else_is,
    the_control_socket_is_roots_alone,
    what_a_killed_daemon_left_is_replaced_and_a_second_one_keeps_away,
);
