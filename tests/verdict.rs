//! One verdict: `status`, `doctor`, `wait`, the metrics, systemd's status line and the log agree in
//! each state of the node.

use std::fs;
use std::time::Duration;

use fake_containerd::Fault;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::bundles::{self, image};
use crate::support::node::Daemon;
use crate::support::{Node, Target, on_each_containerd, on_the_fake, wait_for};

const ONE: &str = "registry.test/one:1";
/// A verdict changes within 5 s of its cause. A machine that runs many tests at once gets more
/// time.
const SOON: Duration = Duration::from_secs(20);

/// The verdict of a state, and the exit codes of the commands.
struct Said {
    health: &'static str,
    /// A short form for people.
    short: &'static str,
    /// Subject of the first reason and a part of its text, or `None` for a healthy node.
    because: Option<(&'static str, &'static str)>,
    status: i32,
    /// Exit code of a `wait` with a timeout of a second.
    wait: i32,
}

const HEALTHY: Said = Said {
    health: "healthy",
    short: "healthy",
    because: None,
    status: 0,
    wait: 0,
};

/// A node with a fault. `wait` ends with it.
const fn wrong(health: &'static str, subject: &'static str, text: &'static str) -> Said {
    Said {
        health,
        short: health,
        because: Some((subject, text)),
        status: 1,
        wait: 1,
    }
}

/// A node that waits.
const fn waiting(short: &'static str, subject: &'static str, text: &'static str) -> Said {
    Said {
        health: "waiting",
        short,
        because: Some((subject, text)),
        status: 1,
        wait: 1,
    }
}

/// Compares every output with the verdict.
#[track_caller]
fn all_say(node: &Node, daemon: &Daemon, said: &Said) {
    let mut document = Value::Null;
    wait_for(SOON, said.short, || {
        document = node.airgapd(["status", "-o", "json"]).json();
        let is_because = said.because.is_none_or(|(subject, text)| {
            let first = &document["verdict"]["reasons"][0];
            first["subject"] == subject && first["text"].as_str().is_some_and(|is| is.contains(text))
        });
        document["verdict"]["health"] == said.health && is_because
    });
    let is_well = said.status == 0;
    assert_eq!(document["problems"] == json!([]), is_well, "{document:#}");
    let text = node.airgapd(["status"]).exits(said.status).stdout;
    assert!(
        text.starts_with(&format!("verdict     {}\n", said.short)),
        "{text}"
    );

    let doctor = node
        .airgapd(["doctor", "-o", "json"])
        .exits(i32::from(!is_well))
        .json();
    assert_eq!(doctor["healthy"], is_well, "{doctor:#}");
    let answer = node
        .airgapd(["wait", "--timeout", "1s", "-o", "json"])
        .exits(said.wait);
    assert_eq!(answer.json()["verdict"]["health"], said.health, "{answer:?}");
    if let Some((_, part)) = said.because.filter(|_| !is_well) {
        assert!(text.contains(part), "{text}");
        let talk = node.airgapd(["wait", "--timeout", "1s"]).said();
        assert!(talk.contains(part), "{talk}");
    }

    let metric = format!("\nairgapd_verdict{{state=\"{}\"}} 1\n", said.health);
    assert!(node.ask("/metrics", &[]).1.contains(&metric), "{metric}");
    wait_for(SOON, &format!("in the file: {metric}"), || {
        fs::read_to_string(node.path("run/airgapd.prom")).is_ok_and(|text| text.contains(&metric))
    });

    let is_told = || {
        daemon
            .notified()
            .lines()
            .rfind(|line| line.starts_with("STATUS="))
            .map(str::to_owned)
    };
    let wanted = format!("STATUS={}", said.short);
    wait_for(SOON, &wanted, || {
        is_told().is_some_and(|line| line.starts_with(&wanted))
    });
    let line = match is_well {
        true => "the node is healthy".to_owned(),
        false => format!("the node is {} (`airgapd status` says why)", said.short),
    };
    if said.health != "working" {
        daemon.wait_for_log(&line);
    }
}

fn every_output_shows_the_verdict_on_bundles(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    node.put("one.tar", ONE);
    node.airgapd(["wait"]).exits(0);
    let document = node.airgapd(["status", "-o", "json"]).exits(0).json();
    assert_eq!(document["verdict"], json!({"health": "healthy", "reasons": []}));

    node.put_broken("bad.tar");
    all_say(&node, &daemon, &wrong("failed", "bundle", "not an image bundle"));
    // A bundle that a command names is judged alone.
    node.airgapd(["wait", "--bundle", "one.tar"]).exits(0);
    fs::remove_file(node.images().join("bad.tar")).unwrap();
    all_say(&node, &daemon, &HEALTHY);

    bundles::write(
        &node.path("foreign.tar"),
        [bundles::multi_platform(
            "registry.test/foreign:1",
            &["linux/s390x"],
        )],
    );
    fs::rename(node.path("foreign.tar"), node.images().join("foreign.tar")).unwrap();
    let answer = node.airgapd(["wait", "--timeout", "20s"]).exits(0);
    assert_eq!(
        answer.stdout,
        "1 bundle in place, 1 bundle has nothing for this node\n"
    );
    let answer = node.airgapd(["wait", "--bundle", "foreign.tar"]).exits(1);
    assert!(answer.stderr.contains("has nothing for this node"), "{answer:?}");
    let (_, metrics) = node.ask("/metrics", &[]);
    for line in [
        "airgapd_bundles{state=\"done\"} 1",
        "airgapd_bundles{state=\"skipped\"} 1",
        "airgapd_bundle_not_in_place{bundle=\"foreign.tar\",state=\"skipped\"} 1",
    ] {
        assert!(metrics.lines().any(|is| is == line), "{line}\n{metrics}");
    }
    all_say(&node, &daemon, &HEALTHY);
    daemon.finish(target);
}

fn a_record_that_another_program_moved_degrades_the_node(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    node.put("one.tar", ONE);
    node.put("two.tar", "registry.test/two:1");
    node.airgapd(["wait"]).exits(0);
    all_say(&node, &daemon, &HEALTHY);
    let elsewhere = target.expect_record("registry.test/two:1").target;
    target.move_record(ONE, &elsewhere);
    let moved = wrong("degraded", "bundle", "another program moved the record");
    all_say(&node, &daemon, &moved);
    daemon.finish(target);
}

/// A part of the bundle is in place and restored. The missing part is reported as long as the file
/// exists.
fn a_bundle_of_which_a_part_failed_is_failed_after_a_restart_too(target: &Target) {
    let node = Node::on(target);
    let mut archive = bundles::layout([image("registry.test/bad:1"), image(ONE)]).build();
    let layer = archive.images[0].manifests[0].layers[0].clone();
    archive.corrupt(&layer).write_to(&node.path("half.tar"));
    node.drop_in(&node.path("half.tar"));
    for _ in 0..2 {
        let daemon = node.start();
        all_say(&node, &daemon, &wrong("failed", "bundle", "registry.test/bad:1"));
        let document = node.airgapd(["status", "-o", "json"]).exits(1).json();
        assert_eq!(
            document["image_count"],
            json!({"all": 2, "in_place": 1, "failed": 1})
        );
        assert!(target.record(ONE).is_some());
        daemon.finish(target);
    }
}

/// A running import may bring a required image, so this is no failure.
fn required_images_are_looked_for_while_a_bundle_is_under_way(target: &Target) {
    let fake = target.as_fake().expect("this is for the stand-in");
    let node = Node::on(target);
    let list = node.path("required.txt");
    fs::write(&list, format!("{ONE}\n")).unwrap();
    node.configure_also(&format!("require:\n  images: [{}]", list.display()));
    fake.inject(Fault::SlowCommit {
        by: Duration::from_secs(6),
    });
    node.put("one.tar", ONE);
    let daemon = node.start();
    daemon.wait_until("the import is under way", || fake.calls("Content.Write") > 0);
    let working = Said {
        health: "working",
        short: "working",
        because: Some(("bundle", "")),
        status: 0,
        wait: 6,
    };
    all_say(&node, &daemon, &working);
    fake.clear_faults();
    node.airgapd(["wait", "--required"]).exits(0);
    assert!(!daemon.log().contains("the node is failed"), "{}", daemon.log());
    fs::remove_file(node.images().join("one.tar")).unwrap();
    target.remove_record(ONE);
    all_say(
        &node,
        &daemon,
        &wrong("failed", "required", "the required image is missing"),
    );
    daemon.finish(target);
}

fn every_output_shows_the_verdict_on_the_folder(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    node.put("one.tar", ONE);
    node.airgapd(["wait"]).exits(0);
    fs::rename(node.images(), node.path("aside")).unwrap();
    let gone = waiting(
        "waiting for the images folder",
        "folder",
        "cannot open the images folder",
    );
    all_say(&node, &daemon, &gone);
    fs::create_dir(node.images()).unwrap();
    node.put("two.tar", "registry.test/two:1");
    let lost = wrong("degraded", "folder", "another folder than before: 1 of");
    all_say(&node, &daemon, &lost);
    // Bundles that are in place count.
    node.airgapd(["wait", "--bundle", "two.tar"]).exits(0);
    assert!(
        node.airgapd(["wait"])
            .exits(1)
            .stderr
            .contains("airgapd release --vanished")
    );
    // The daemon knows about it when the command ends.
    node.airgapd(["release", "--vanished"]).exits(0);
    node.airgapd(["wait", "--timeout", "0s"]).exits(0);
    all_say(&node, &daemon, &HEALTHY);
    daemon.finish(target);
}

fn every_output_shows_the_verdict_on_what_is_under_way(target: &Target) {
    let fake = target.as_fake().expect("this is for the stand-in");
    let node = Node::on(target);
    node.configure_also("checksums: require");
    let daemon = node.start();
    node.put("one.tar", ONE);
    let checksum = waiting("waiting for a checksum", "bundle", "one.tar.sha256 is missing");
    all_say(&node, &daemon, &checksum);

    fake.inject(Fault::SlowCommit {
        by: Duration::from_secs(8),
    });
    let digest = bundle::fixtures::digest_of(&fs::read(node.images().join("one.tar")).unwrap()).to_string();
    let hex = digest.trim_start_matches("sha256:");
    fs::write(node.images().join("one.tar.sha256"), format!("{hex}  one.tar\n")).unwrap();
    all_say(
        &node,
        &daemon,
        &Said {
            health: "working",
            short: "working",
            because: Some(("bundle", "")),
            status: 0,
            wait: 6,
        },
    );
    fake.clear_faults();
    node.airgapd(["wait"]).exits(0);

    fake.kill();
    let away = Said {
        status: 3,
        wait: 3,
        ..waiting("waiting for containerd", "containerd", "")
    };
    all_say(&node, &daemon, &away);
    fake.listen();
    node.airgapd(["wait"]).exits(0);
    all_say(&node, &daemon, &HEALTHY);

    // A refused configuration has no effect, and the previous one stays.
    let text = fs::read_to_string(node.path("config.yaml")).unwrap();
    node.configure(&format!("{text}\nnonsense: 1\n"));
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("the new configuration was rejected");
    node.configure(&text);
    let refused = wrong(
        "degraded",
        "configuration",
        "the daemon does not use the configuration on disk",
    );
    all_say(&node, &daemon, &refused);
    daemon.signal(Signal::HUP);
    all_say(&node, &daemon, &HEALTHY);
    daemon.finish(target);

    let answer = node.airgapd(["status"]).exits(1);
    assert!(answer.stdout.starts_with("verdict     failed\n"), "{answer:?}");
    node.airgapd(["doctor"]).exits(1);
    node.airgapd(["wait"]).exits(7);
}

on_each_containerd! {
    every_output_shows_the_verdict_on_bundles,
    every_output_shows_the_verdict_on_the_folder,
    a_bundle_of_which_a_part_failed_is_failed_after_a_restart_too,
}
on_the_fake! {
    every_output_shows_the_verdict_on_what_is_under_way,
    required_images_are_looked_for_while_a_bundle_is_under_way,
    a_record_that_another_program_moved_degrades_the_node,
}
