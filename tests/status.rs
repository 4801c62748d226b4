//! How it stands, for those who ask: `status`, `wait`, the control socket, the metrics.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fake_containerd::{Code, Fault};
use prometheus_parse::{Scrape, Value as Sample};
use serde_json::{Value, json};

use crate::support::bundles::{self, image};
use crate::support::node::program;
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

/// A comparison of tens of thousands of records takes seconds.
fn status_is_answered_while_a_comparison_waits_for_containerd(target: &Target) {
    let fake = target.as_fake().unwrap();
    let node = Node::on(target);
    node.configure_also("resync: 1s");
    let daemon = node.start();
    put(&node, "one.tar", ONE);
    node.airgapd(["wait"]).exits(0);
    let before = fake.calls("Images.List");
    fake.inject(Fault::Stall {
        rpc: "Images.List",
        after: 0,
    });
    daemon.wait_until("a comparison", || fake.calls("Images.List") > before);
    let document = node.airgapd(["status", "-o", "json"]).exits(0).json();
    assert_eq!(document["daemon"]["pid"], daemon.pid());
    assert_eq!(document["containerd"]["reachable"], true);
    fake.clear_faults();
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
    node.airgapd(["wait", "--allow-empty"]).exits(0);
    let answer = node.airgapd(["wait", "--timeout", "1s"]).exits(6);
    assert!(answer.stderr.contains("there is no bundle in"), "{answer:?}");
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

/// With the tag of what is known, the answer waits for news (RFC 7240): not longer than was asked for, and not when there
/// are some.
fn whoever_waits_is_told_at_once_and_hears_nothing_twice(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    node.airgapd(["wait", "--allow-empty"]).exits(0);
    let tag_of = |head: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix("etag: "));
        line.unwrap_or_else(|| panic!("no tag in {head}")).to_owned()
    };
    let ask = |tag: &str, wait: &str| {
        let began = Instant::now();
        let (head, body) = node.ask("/v1/status", &[("If-None-Match", tag), ("Prefer", wait)]);
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        (tag_of(&head), body, began.elapsed())
    };
    let known = tag_of(&node.ask("/v1/status", &[]).0);
    let (same, _, waited) = ask(&known, "wait=1");
    assert_eq!(same, known);
    assert!(waited >= Duration::from_secs(1), "{waited:?}");
    // Another status than the one that is there is news already, and so it is to whoever does not say how long he waits.
    for (tag, wait) in [("\"other\"", "wait=20"), (&*known, "respond-async")] {
        let (same, _, waited) = ask(tag, wait);
        assert_eq!(same, known);
        assert!(waited < Duration::from_secs(10), "{waited:?}");
    }
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask(&known, "respond-async, wait=20"));
        put(&node, "one.tar", ONE);
        let (news, body, waited) = asking.join().expect("it is answered");
        assert_ne!(news, known);
        assert!(body.contains("one.tar"), "{body}");
        assert!(waited < Duration::from_secs(15), "{waited:?}");
    });

    // Somebody who waits keeps nobody from asking, however many they are.
    node.airgapd(["wait"]).exits(0);
    let known = tag_of(&node.ask("/v1/status", &[]).0);
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..16).map(|_| scope.spawn(|| ask(&known, "wait=20"))).collect();
        let status = node.airgapd(["status", "-o", "json"]).exits(0).json();
        assert_eq!(bundle(&status, "one.tar")["state"], "done");
        put(&node, "two.tar", TWO);
        for waiting in waiting {
            let (news, ..) = waiting.join().expect("it is answered");
            assert_ne!(news, known);
        }
    });
    daemon.finish(target);
}

/// Nobody reads on: it is noticed although nothing changes that could be written.
fn watching_ends_with_whoever_reads_it(target: &Target) {
    let node = Node::on(target);
    let mut watching = node
        .command(["status", "--watch", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let mut line = String::new();
    let mut out = BufReader::new(watching.stdout.take().expect("it is piped"));
    out.read_line(&mut line).expect("text");
    drop(out);
    let mut ended = None;
    wait_until("it ends", || {
        ended = watching.try_wait().expect("it is our child");
        ended.is_some()
    });
    assert_eq!(ended.and_then(|status| status.code()), Some(0));
}

fn what_was_imported_before_a_restart_counts_as_the_last_success(target: &Target) {
    let node = Node::on(target);
    let last = || {
        let (_, body) = node.ask("/metrics", &[]);
        sample(&parsed(&body), "airgapd_last_success_timestamp_seconds", &[]).expect("it is there")
    };
    let daemon = node.start();
    assert!(last().abs() < 1.0, "nothing was ever imported");
    put_broken(&node, "bad.tar");
    node.airgapd(["wait"]).exits(1);
    assert!(last().abs() < 1.0, "and that is no success");
    put(&node, "one.tar", ONE);
    node.airgapd(["wait", "--bundle", "one.tar"]).exits(0);
    let before = last();
    assert!(before > 0.0);
    daemon.finish(target);
    let daemon = node.start();
    node.airgapd(["wait", "--bundle", "one.tar"]).exits(0);
    assert!((last() - before).abs() <= 1.0, "{} {before}", last());
    daemon.finish(target);
}

fn parsed(text: &str) -> Scrape {
    let lines = text.lines().map(|line| Ok(line.to_owned()));
    Scrape::parse(lines).expect("Prometheus can read it")
}

/// What went wrong last, when it is tried again, and what is not for this node.
fn status_says_what_failed_and_when_it_is_tried_again(target: &Target) {
    let node = Node::on(target);
    let fake = target.as_fake().expect("this is for the stand-in");
    fake.inject(Fault::FailAll {
        rpc: "Images.Create",
        code: Code::Unavailable,
        message: "come back later".to_owned(),
    });
    let daemon = node.start();
    put(&node, "one.tar", ONE);
    let status = || node.airgapd(["status", "-o", "json"]).json();
    daemon.wait_until("it is tried again", || {
        status()["bundles"][0]["state"] == "retrying"
    });
    let document = status();
    let one = bundle(&document, "one.tar");
    let error = one["error"]["text"].as_str().expect("an error");
    assert!(error.contains("come back later"), "{one:#}");
    assert_eq!(one["error"]["class"], "transient");
    assert!(one["retry_in_ms"].is_u64(), "{one:#}");
    let text = node.airgapd(["status"]).stdout;
    assert!(
        text.contains("retrying") && text.contains("come back later") && text.contains("tried again in"),
        "{text}"
    );
    fake.clear_faults();
    node.airgapd(["wait"]).exits(0);

    bundles::write(
        &node.path("foreign.tar"),
        [bundles::multi_platform(
            "registry.test/foreign:1",
            &["linux/s390x"],
        )],
    );
    fs::rename(node.path("foreign.tar"), node.images().join("foreign.tar")).unwrap();
    node.airgapd(["wait"]).exits(0);
    let text = node.airgapd(["status"]).exits(0).stdout;
    let line = text.lines().find(|line| line.ends_with(" foreign.tar"));
    assert!(
        line.is_some_and(|line| line.starts_with("nothing for us")),
        "{text}"
    );
    daemon.finish(target);
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

fn the_control_socket_is_roots_alone(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let socket = node.path("run/control.sock");
    assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o777, 0o600);
    let (head, _) = node.ask("/v1/other", &[]);
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    // Nor does it help somebody else that its mode was changed.
    let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let copy = node.program_for_all();
    open(&socket, 0o666);
    let as_another_user = |arguments: &[&str]| {
        let mut command = Command::new(&copy);
        for (name, _) in program().get_envs() {
            command.env_remove(name);
        }
        command
            .args(arguments)
            .arg("--config")
            .arg(node.path("config.yaml"))
            .uid(65534)
            .gid(65534)
            .output()
            .unwrap()
    };
    let nobody = as_another_user(&["wait", "--timeout", "0s"]);
    assert_eq!(nobody.status.code(), Some(6), "{nobody:?}");
    open(&socket, 0o600);
    let nobody = as_another_user(&["wait"]);
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
    node.airgapd(["wait", "--allow-empty"]).exits(0);
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
    assert_eq!(
        document
            .as_object()
            .expect("a document")
            .keys()
            .collect::<Vec<_>>(),
        ["findings", "healthy"]
    );
    for finding in findings {
        let keys: Vec<_> = finding.as_object().expect("a finding").keys().collect();
        assert_eq!(keys, ["remedy", "subject", "text", "verdict"]);
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
    status_is_answered_while_a_comparison_waits_for_containerd,
    failed_late_and_absent_are_told_apart,
    status_goes_on_when_it_is_asked_to,
    metrics_say_what_a_fleet_asks,
    whoever_waits_is_told_at_once_and_hears_nothing_twice,
    what_was_imported_before_a_restart_counts_as_the_last_success,
    watching_ends_with_whoever_reads_it,
    status_says_what_failed_and_when_it_is_tried_again,
    metrics_are_served_on_loopback_and_nothing_else_is,
    the_control_socket_is_roots_alone,
    what_a_killed_daemon_left_is_replaced_and_a_second_one_keeps_away,
);
