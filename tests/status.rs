//! `airgapd status`: the state of bundles and images, with and without the daemon.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use fake_containerd::{Code, Fault};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::bundles;
use crate::support::node::Daemon;
use crate::support::node::bundle;
use crate::support::terminal::OnTerminal;
use crate::support::{Node, Target, on_each_containerd, on_the_fake, wait_for, wait_until};

const ONE: &str = "registry.test/one:1";
const TWO: &str = "registry.test/two:1";

/// A comparison of tens of thousands of records takes seconds.
fn status_is_answered_while_a_comparison_waits_for_containerd(target: &Target) {
    let fake = target.as_fake().unwrap();
    let node = Node::on(target);
    node.configure_also("resync: 1s");
    let daemon = node.start();
    node.put("one.tar", ONE);
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

/// A look at tens of thousands of records takes seconds. The daemon has compared them.
fn status_takes_the_word_of_a_daemon_that_has_every_image_in_place(target: &Target) {
    let fake = target.as_fake().unwrap();
    let node = Node::on(target);
    let daemon = node.start();
    node.put("one.tar", ONE);
    node.put("two.tar", TWO);
    node.airgapd(["wait"]).exits(0);
    daemon.wait_until("it is quiet", || target.leases().is_empty());
    let shown = |text: &str| text.replace(char::is_numeric, "");
    // With `-v` each image is looked at, and only lines are added.
    let asked = node.airgapd(["status", "-v"]).exits(0).stdout;
    for rpc in ["Images.List", "Images.Get", "Content.List", "Content.Info"] {
        fake.inject(Fault::Stall { rpc, after: 0 });
    }
    let told = node.airgapd(["status"]).exits(0).stdout;
    assert!(told.contains("\n2 of 2 images in place\n"), "{told}");
    let added = ["disk  ", "receipts  ", "    in containerd "];
    let mut asked = asked
        .lines()
        .filter(|line| !added.iter().any(|begin| line.starts_with(begin)));
    for line in told.lines() {
        assert_eq!(asked.next().map(shown), Some(shown(line)), "{told}");
    }
    assert_eq!(asked.next(), None, "{told}");
    fake.clear_faults();

    // An image that is not in place is still named.
    let elsewhere = target.expect_record(ONE).target;
    target.move_record(TWO, &elsewhere);
    // A comparison that began before the faults ended waits for its deadline, which is a minute.
    wait_for(Duration::from_secs(120), "the daemon has seen it", || {
        node.airgapd(["status"]).status.code() == Some(1)
    });
    let text = node.airgapd(["status"]).exits(1).stdout;
    assert!(text.contains("1 of 2 images in place"), "{text}");
    assert!(text.contains("its record points at another image"), "{text}");
    daemon.finish(target);
}

fn status_shows_bundles_and_images_with_the_daemon_and_without(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    node.put("one.tar", ONE);
    node.put("two.tar", TWO);
    node.airgapd(["wait", "--all"]).exits(0);
    let document = node.airgapd(["status", "-o", "json"]).exits(0).json();
    assert_eq!(document["daemon"]["pid"], daemon.pid());
    assert_eq!(document["containerd"]["reachable"], true);
    assert_eq!(document["problems"], json!([]));
    let one = bundle(&document, "one.tar");
    assert_eq!(
        (&one["state"], &one["outcome"], &one["images"], &one["records"]),
        (&json!("done"), &json!("imported"), &json!(1), &json!(2))
    );
    let images = document["images"].as_array().expect("containerd was asked");
    assert_eq!(images.len(), 4);
    assert!(
        images
            .iter()
            .all(|image| image["record"] == "in-place" && image["pinned"] == true)
    );
    let text = node.airgapd(["status"]).exits(0).stdout;
    assert!(text.contains("2 of 2 images in place"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    daemon.finish(target);

    let document = node.airgapd(["status", "-o", "json"]).exits(1).json();
    assert_eq!(document["daemon"], Value::Null);
    assert_eq!(document["verdict"]["reasons"][0]["subject"], "daemon");
    assert_eq!(bundle(&document, "two.tar")["outcome"], "imported");
    target.remove_record(TWO);
    target.set_labels(ONE, &[("io.cri-containerd.pinned", None)]);
    let answer = node.airgapd(["status"]).exits(1);
    assert!(answer.stdout.contains("0 of 2 images in place"), "{answer:?}");
    assert!(answer.stdout.contains("its record is missing"), "{answer:?}");
    assert!(answer.stdout.contains("it is not pinned"), "{answer:?}");
    assert!(answer.stdout.contains("not running"), "{answer:?}");
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
    let mut lines = BufReader::new(watching.stdout.take().expect("the stream is piped")).lines();
    let mut next = || -> Value {
        let line = lines.find(|line| line.as_ref().is_ok_and(|line| !line.is_empty()));
        serde_json::from_str(&line.expect("a line").expect("text")).expect("JSON")
    };
    assert_eq!(next()["bundles"], json!([]));
    node.put("one.tar", ONE);
    while next()["bundles"].as_array().is_none_or(Vec::is_empty) {}
    watching.kill().expect("the process runs");
    watching.wait().expect("waiting for the child works");
    daemon.finish(target);
}

/// The reader has closed the pipe. The command notices it although there is no change to print.
fn watching_ends_with_whoever_reads_it(target: &Target) {
    let node = Node::on(target);
    let mut watching = node
        .command(["status", "--watch", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let mut line = String::new();
    let mut out = BufReader::new(watching.stdout.take().expect("the stream is piped"));
    out.read_line(&mut line).expect("text");
    drop(out);
    let mut ended = None;
    wait_until("the command ends", || {
        ended = watching.try_wait().expect("waiting for the child works");
        ended.is_some()
    });
    assert_eq!(ended.and_then(|status| status.code()), Some(1), "no daemon runs");
}

/// The last failure, the time of the next try, and images that are not for this node.
fn status_says_what_failed_and_when_it_is_tried_again(target: &Target) {
    let node = Node::on(target);
    let fake = target.as_fake().expect("this is for the stand-in");
    fake.inject(Fault::FailAll {
        rpc: "Images.Create",
        code: Code::Unavailable,
        message: "come back later".to_owned(),
    });
    let daemon = node.start();
    node.put("one.tar", ONE);
    let status = || node.airgapd(["status", "-o", "json"]).json();
    daemon.wait_until("the daemon retries", || {
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
        text.contains("retrying") && text.contains("come back later") && text.contains("retry in"),
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
    assert!(line.is_some_and(|line| line.starts_with("skipped")), "{text}");
    daemon.finish(target);
}

/// Returns a node with one bad bundle and many bundles in place.
fn node_of_many(target: &Target) -> (Node, Daemon) {
    let node = Node::on(target);
    let daemon = node.start();
    for at in 0..20 {
        node.put(&format!("good-{at:02}.tar"), &format!("registry.test/good:{at}"));
    }
    node.put_broken("zz-bad.tar");
    node.airgapd(["wait"]).exits(1);
    (node, daemon)
}

/// Runs a command on a terminal that shows colours, with any terminal outside.
fn on_terminal(mut command: Command, columns: u16, lines: u16, environment: &[(&str, &str)]) -> OnTerminal {
    command
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .envs(environment.iter().copied());
    OnTerminal::start(command, columns, lines)
}

/// Returns the text without colours.
fn plain(text: &str) -> String {
    let colour = regex::Regex::new("\u{1b}\\[[0-9]*m").expect("a pattern");
    colour.replace_all(text, "").into_owned()
}

/// Returns the screens that replaced each other, each as lines.
fn screens(shown: &str) -> Vec<Vec<String>> {
    let screens = shown.split("\u{1b}[H").skip(1);
    let whole = screens.filter_map(|screen| screen.split_once("\u{1b}[J"));
    let lines = |screen: &str| {
        let lines = plain(screen);
        lines
            .lines()
            .map(|line| line.trim_end_matches("\u{1b}[K").to_owned())
            .collect()
    };
    whole.map(|(screen, _)| lines(screen)).collect()
}

const TAKE_SCREEN: &str = "\u{1b}[?1049h";
const GIVE_SCREEN_BACK: &str = "\u{1b}[?1049l";

fn watching_fills_the_screen_with_what_matters_and_gives_it_back(target: &Target) {
    let (node, daemon) = node_of_many(target);
    let watching = on_terminal(node.command(["status", "--watch"]), 80, 20, &[]);
    let is_first = |line: &&String| line.ends_with(" zz-bad.tar") || line.ends_with(" good-00.tar");
    watching.wait_until("a screen", |shown| !screens(shown).is_empty());
    let screen = screens(&watching.shown()).remove(0);
    assert!(screen.len() < 20, "{screen:#?}");
    assert!(screen.iter().all(|line| line.chars().count() < 80), "{screen:#?}");
    assert!(
        screen
            .iter()
            .find(is_first)
            .is_some_and(|line| line.starts_with("failed ")),
        "{screen:#?}"
    );
    let counted = |screen: &[String]| -> Option<usize> {
        let mut lines = screen.iter();
        lines.find_map(|line| line.strip_prefix("and ")?.strip_suffix(" done")?.parse().ok())
    };
    let shown = screen.iter().filter(|line| line.contains(" good-")).count();
    assert_eq!(counted(&screen).map(|left| left + shown), Some(20), "{screen:#?}");
    assert!(
        screen
            .iter()
            .any(|line| line.starts_with("20 of 20 images in place")),
        "{screen:#?}"
    );

    watching.resize(80, 60);
    watching.wait_until("a screen of the new size", |shown| {
        screens(shown)
            .last()
            .is_some_and(|screen| screen.iter().any(|line| line.ends_with(" good-19.tar")))
    });
    watching.signal(Signal::INT);
    let (code, shown) = watching.end();
    assert_eq!(code, Some(1), "a bundle failed");
    assert!(
        shown.starts_with(TAKE_SCREEN) && shown.ends_with(GIVE_SCREEN_BACK),
        "{shown:?}"
    );
    assert_eq!(shown.matches(TAKE_SCREEN).count(), 1);

    // A terminal that cannot restore its former content, and a terminal without a reader.
    let dumb = on_terminal(node.command(["status", "--watch"]), 80, 20, &[("TERM", "dumb")]);
    dumb.wait_until("it is shown", |shown| shown.contains("zz-bad.tar"));
    assert!(!dumb.shown().contains('\u{1b}'), "{:?}", dumb.shown());
    drop(dumb);
    daemon.finish(target);
}

fn a_stop_from_the_terminal_gives_the_screen_back_until_the_command_continues(target: &Target) {
    let (node, daemon) = node_of_many(target);
    let watching = on_terminal(node.command(["status", "--watch"]), 80, 20, &[]);
    let taken = |shown: &str| shown.matches(TAKE_SCREEN).count();
    for round in 1..=2 {
        watching.wait_until("a screen", |shown| {
            let last = shown.rsplit(TAKE_SCREEN).next();
            taken(shown) == round && last.is_some_and(|last| !screens(last).is_empty())
        });
        watching.signal(Signal::TSTP);
        watching.wait_until("the screen is back", |shown| shown.ends_with(GIVE_SCREEN_BACK));
        wait_until("it is stopped", || watching.is_stopped());
        watching.signal(Signal::CONT);
    }
    watching.wait_until("the screen is taken again", |shown| taken(shown) == 3);
    watching.signal(Signal::INT);
    let (code, shown) = watching.end();
    assert_eq!(code, Some(1), "a bundle failed");
    assert!(shown.ends_with(GIVE_SCREEN_BACK), "{shown:?}");
    daemon.finish(target);
}

fn a_terminal_is_as_wide_as_it_is_and_has_colours_where_they_are_wanted(target: &Target) {
    let (node, daemon) = node_of_many(target);
    let show = |columns, environment: &[(&str, &str)]| {
        let (code, shown) = on_terminal(node.command(["status"]), columns, 24, environment).end();
        assert_eq!(code, Some(1), "{shown}");
        shown
    };
    let coloured = show(80, &[]);
    assert!(coloured.contains("\u{1b}[31mfailed\u{1b}[0m "), "{coloured:?}");
    assert!(coloured.contains("\u{1b}[32mdone\u{1b}[0m "), "{coloured:?}");
    for columns in [40, 80, 160] {
        let shown = plain(&show(columns, &[]));
        let is_too_wide = |line: &&str| line.chars().count() >= usize::from(columns);
        // The columns of the table alone are wider than the narrowest terminal.
        let found = shown
            .lines()
            .skip_while(|line| !line.starts_with("STATE"))
            .find(is_too_wide);
        assert!(found.is_none() || columns == 40, "{columns}: {found:?}");
        let found = shown
            .lines()
            .take_while(|line| !line.starts_with("STATE"))
            .find(is_too_wide);
        assert_eq!(found, None, "{columns}");
    }
    let longest = plain(&show(300, &[]))
        .lines()
        .map(|line| line.chars().count())
        .max();
    assert!(
        longest > Some(100),
        "the socket and the reasons are longer than the line"
    );
    for variable in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let shown = show(80, &[variable]);
        assert!(!shown.contains('\u{1b}'), "{variable:?}: {shown:?}");
    }
    let piped = node.airgapd(["status"]).exits(1).stdout;
    assert!(!piped.contains('\u{1b}'), "{piped:?}");
    let at = |text: &str| {
        piped
            .lines()
            .position(|line| line.ends_with(text))
            .expect("a row")
    };
    assert!(at(" zz-bad.tar") < at(" good-00.tar"), "{piped}");
    daemon.finish(target);
}

/// The layer of `both` is in two bundles, and that of `alone` is in one.
fn the_disk_use_of_a_bundle_is_what_its_removal_frees(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    node.put("both.tar", ONE);
    fs::copy(node.images().join("both.tar"), node.path("copy.tar")).unwrap();
    fs::rename(node.path("copy.tar"), node.images().join("copy.tar")).unwrap();
    node.put("alone.tar", TWO);
    node.airgapd(["wait"]).exits(0);
    let document = node.airgapd(["status", "-o", "json"]).exits(0).json();
    let used = |name: &str, key: &str| bundle(&document, name)["disk_use"][key].as_u64().expect("bytes");
    for name in ["both.tar", "copy.tar", "alone.tar"] {
        assert!(used(name, "store_bytes") > 0, "{document:#}");
        let alone = match name {
            "alone.tar" => used(name, "store_bytes"),
            _ => 0,
        };
        assert_eq!(
            (used(name, "only_bytes"), used(name, "freed_bytes")),
            (alone, alone),
            "{name}"
        );
    }
    let text = node.airgapd(["status", "-v"]).exits(0).stdout;
    let freed = format!(
        "its removal frees {}",
        basics_bytes(used("alone.tar", "freed_bytes"))
    );
    assert!(
        text.contains(&freed) && text.contains("its removal frees 0 B"),
        "{freed}: {text}"
    );
    assert!(
        !node
            .airgapd(["status"])
            .exits(0)
            .stdout
            .contains("its removal frees")
    );
    // A pin of another program outlives the bundle.
    target.set_labels(TWO, &[("io.cattle.k3s.pinned", Some("pinned"))]);
    let document = node.airgapd(["status", "-o", "json"]).exits(0).json();
    let disk_use = &bundle(&document, "alone.tar")["disk_use"];
    assert_eq!(disk_use["freed_bytes"], 0, "{disk_use:#}");
    assert!(disk_use["only_bytes"].as_u64() > Some(0), "{disk_use:#}");
    daemon.finish(target);
}

/// Returns a size below a megabyte in the form that `airgapd` prints.
fn basics_bytes(count: u64) -> String {
    match count {
        ..1000 => format!("{count} B"),
        _ => format!("{}.{} kB", count / 1000, count % 1000 / 100),
    }
}

on_each_containerd!(status_shows_bundles_and_images_with_the_daemon_and_without,);
on_each_containerd!(the_disk_use_of_a_bundle_is_what_its_removal_frees,);
on_the_fake!(
    watching_fills_the_screen_with_what_matters_and_gives_it_back,
    a_stop_from_the_terminal_gives_the_screen_back_until_the_command_continues,
    a_terminal_is_as_wide_as_it_is_and_has_colours_where_they_are_wanted,
    status_is_answered_while_a_comparison_waits_for_containerd,
    status_takes_the_word_of_a_daemon_that_has_every_image_in_place,
    status_goes_on_when_it_is_asked_to,
    watching_ends_with_whoever_reads_it,
    status_says_what_failed_and_when_it_is_tried_again,
);
