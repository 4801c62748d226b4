//! `GET /ready`, `GET /healthz` and `wait --now`: the answers on which rollouts rely, and how fast
//! they come.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use fake_containerd::{Code, Fault};
use lab::Options;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::bundles::{self, image, text};
use crate::support::node::Daemon;
use crate::support::prometheus::{free_port, get};
use crate::support::{Node, Own, Target, on_each_containerd, on_its_own_containerd, on_the_fake};

const ONE: &str = "registry.test/ready/one:1";
const TWO: &str = "registry.test/ready/two:1";
const SLOW: &str = "registry.test/ready/slow:1";

/// Makes the node require these images. Returns the port of its metrics.
fn require(node: &Node, names: &[&str]) -> u16 {
    let (list, port) = (node.path("list.txt"), free_port());
    fs::write(&list, names.join("\n")).expect("the file can be written");
    let list = text(&list);
    node.configure_also(&format!(
        "resync: 1s\nmetricsAddress: 127.0.0.1:{port}\nrequire: {{images: [{list}]}}"
    ));
    port
}

/// Returns the status code and the document of `/ready` on the control socket.
fn ready(node: &Node, query: &str) -> (u16, Value) {
    let (head, body) = node.ask(&format!("/ready{query}"), &[]);
    assert!(head.to_lowercase().contains("cache-control: no-store"), "{head}");
    (
        code(&head),
        serde_json::from_str(&body).expect("the body is JSON"),
    )
}

fn code(head: &str) -> u16 {
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    code.unwrap_or_else(|| panic!("no status code in {head}"))
}

fn is_ready(node: &Node, query: &str) -> bool {
    let (code, document) = ready(node, query);
    assert_eq!(code == 200, document["ready"] == true, "{document:#}");
    code == 200
}

/// Waits until the node is ready, and returns the content digest of a bundle.
fn until_ready(node: &Node, daemon: &Daemon, file: &str) -> String {
    daemon.wait_until("the node is ready", || is_ready(node, ""));
    let document = node
        .airgapd(["wait", "--bundle", file, "-o", "json"])
        .exits(0)
        .json();
    document["bundles"][0]["catalog"]
        .as_str()
        .expect("a digest")
        .to_owned()
}

fn what_is_required_decides_and_a_bad_file_or_an_import_beside_it_does_not(target: &Target) {
    let node = Node::on(target);
    let port = require(&node, &[ONE]);
    let daemon = node.start();
    daemon.wait_until("the image is missed", || ready(&node, "").1["cause"] == "missing");
    let (_, document) = ready(&node, "");
    assert_eq!(
        document["reason"],
        format!("the required image is missing: {ONE}")
    );
    node.airgapd(["wait", "--now"]).exits(4);
    node.put("one.tar", ONE);
    let content = until_ready(&node, &daemon, "one.tar");

    node.put_broken("bad.tar");
    daemon.wait_for_line("bad.tar", "not an image bundle");
    assert!(is_ready(&node, ""));
    for query in ["?bundle=one.tar", &format!("?bundle={content}")] {
        assert!(is_ready(&node, query), "{query}");
    }
    for (query, cause, exit) in [
        ("?bundle=bad.tar", "failed", 1),
        ("?bundles=all", "failed", 1),
        ("?bundle=godo.tar", "failed", 1),
        (&format!("?bundle=sha256:{}", "d".repeat(64)), "absent", 6),
    ] {
        let (code, document) = ready(&node, query);
        assert_eq!(
            (code, document["cause"].as_str()),
            (503, Some(cause)),
            "{document:#}"
        );
        let arguments = match query.split_once("bundle=") {
            Some((_, name)) => vec!["wait", "--now", "--bundle", name],
            None => vec!["wait", "--now", "--all"],
        };
        let answer = node.airgapd(&arguments).exits(exit);
        assert!(
            answer.stderr.contains(document["reason"].as_str().expect("text")),
            "{answer:?}"
        );
    }
    let answer = node.airgapd(["wait", "--now", "--required"]).exits(0);
    assert_eq!(answer.stdout, "1 required image there\n");
    let document = node
        .airgapd(["wait", "--now", "--bundle", &content, "-o", "json"])
        .exits(0)
        .json();
    assert_eq!(
        (&document["version"], &document["ready"]),
        (&1.into(), &true.into())
    );

    // Every user may ask the port, so it has no names.
    for (path, wanted) in [
        ("/ready", "200"),
        ("/ready?bundles=all", "503"),
        ("/healthz", "200"),
    ] {
        let answer = get(port, path).expect("the port answers");
        assert!(answer.starts_with(&format!("HTTP/1.0 {wanted}")), "{answer}");
        assert!(
            !answer.contains("bad.tar") && !answer.contains("\"missing\":{\"images\""),
            "{answer}"
        );
    }

    // The result of the last check holds while an import changes containerd.
    node.configure_also("rateLimit: 1MiB");
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("rateLimit changed");
    bundles::write(&node.path("slow.tar"), [bundles::large(SLOW, 4 << 20)]);
    fs::rename(node.path("slow.tar"), node.images().join("slow.tar"))
        .expect("both paths are on one file system");
    let state = || {
        let status = node.airgapd(["status", "-o", "json"]).json();
        let bundles = status["bundles"].as_array().expect("a list").clone();
        let slow = bundles.into_iter().find(|bundle| bundle["name"] == "slow.tar");
        slow.and_then(|slow| slow["state"].as_str().map(str::to_owned))
            .unwrap_or_default()
    };
    daemon.wait_until("the import runs", || state() == "importing");
    let mut asked = 0;
    while state() == "importing" {
        assert!(is_ready(&node, ""), "{:#}", ready(&node, "").1);
        asked += 1;
    }
    assert!(asked > 0);
    daemon.wait_until("the import has ended", || is_ready(&node, "?bundle=slow.tar"));
    daemon.finish(target);
    node.airgapd(["wait", "--now"]).exits(7);
}

/// No bundle brings the image, so the daemon does not restore it.
fn an_image_that_is_found_missing_ends_readiness_until_it_is_back(target: &Target) {
    let node = Node::on(target);
    require(&node, &[ONE, TWO]);
    let by_hand = node.path("by-hand.tar");
    bundles::write(&by_hand, [image(TWO)]);
    node.import([&by_hand]).exits(0);
    let daemon = node.start();
    node.put("one.tar", ONE);
    daemon.wait_until("the node is ready", || is_ready(&node, ""));
    target.remove_record(TWO);
    daemon.wait_until("the image is missed", || !is_ready(&node, ""));
    let (_, document) = ready(&node, "");
    assert_eq!(document["missing"]["images"][0], TWO, "{document:#}");
    assert_eq!(document["required"]["missing"], 1, "{document:#}");
    // A restart of the daemon does not forget that.
    daemon.finish(target);
    let daemon = node.start();
    assert!(!is_ready(&node, ""));
    node.import([&by_hand]).exits(0);
    daemon.wait_until("the node is ready again", || is_ready(&node, ""));
    daemon.finish(target);
}

fn a_restart_of_the_daemon_changes_no_answer(target: &Target) {
    let node = Node::on(target);
    require(&node, &[ONE]);
    let mut daemon = node.start();
    node.put("one.tar", ONE);
    let content = until_ready(&node, &daemon, "one.tar");
    let queries = [
        "".to_owned(),
        "?bundles=all".to_owned(),
        format!("?bundle=one.tar&bundle={content}"),
    ];
    for round in 0..4 {
        // The daemon keeps its answer for a crash, too.
        daemon.wait_until("the answer is kept", || {
            fs::read_to_string(node.path("run/ready.json")).is_ok_and(|text| text.contains("required\":["))
        });
        match round % 2 {
            0 => drop(daemon.finish(target)),
            _ => drop(daemon.kill()),
        }
        let kept = fs::read_to_string(node.path("run/ready.json")).expect("the last answer is kept");
        assert!(!kept.contains("one"), "{kept}");
        daemon = node.start_unready();
        daemon.wait_until("the socket is there", || {
            UnixStream::connect(node.path("run/control.sock")).is_ok()
        });
        for query in &queries {
            let (code, document) = ready(&node, query);
            assert_eq!(code, 200, "round {round}, {query}: {document:#}");
        }
        daemon.wait_until_ready();
        daemon.wait_until("it is confirmed", || ready(&node, "").1["held_seconds"].is_null());
        assert!(queries.iter().all(|query| is_ready(&node, query)));
    }
    daemon.finish(target);
}

/// A changed requirement is another question.
fn another_requirement_is_not_ready_before_it_was_checked_and_other_keys_change_nothing(target: &Target) {
    let node = Node::on(target);
    require(&node, &[ONE]);
    let daemon = node.start();
    node.put("one.tar", ONE);
    until_ready(&node, &daemon, "one.tar");
    node.configure_also("rateLimit: 1GiB");
    daemon.signal(Signal::HUP);
    daemon.wait_until("it was read", || {
        assert!(is_ready(&node, ""));
        daemon.log().contains("rateLimit changed")
    });
    assert!(is_ready(&node, ""));
    let (before, other) = (
        fs::read_to_string(node.path("config.yaml")).unwrap(),
        node.path("other.txt"),
    );
    fs::write(&other, TWO).expect("the file can be written");
    node.configure(&before.replace("list.txt", "other.txt"));
    daemon.signal(Signal::HUP);
    daemon.wait_until("another image is required", || !is_ready(&node, ""));
    daemon.wait_until("it is missed", || ready(&node, "").1["cause"] == "missing");
    daemon.finish(target);
}

/// A playbook copies another list over the old one, and reloads or restarts the daemon.
fn another_list_of_the_same_name_counts_from_a_reload_and_from_a_restart(target: &Target) {
    let fake = target.as_fake().expect("it is the stand-in");
    let node = Node::on(target);
    let list = node.path("list.txt");
    fs::write(&list, ONE).expect("the file can be written");
    node.configure_also(&format!("require: {{images: [{}]}}", text(&list)));
    let daemon = node.start();
    node.put("one.tar", ONE);
    until_ready(&node, &daemon, "one.tar");
    let reload = |text: &str, line: &str| {
        fs::write(&list, text).expect("the file can be written");
        let lines = daemon.count(line);
        daemon.signal(Signal::HUP);
        daemon.wait_until("it was read", || daemon.count(line) > lines);
    };
    reload(TWO, "files under `require` changed");
    assert!(!is_ready(&node, ""));
    daemon.wait_until("the other image is missed", || {
        assert!(!is_ready(&node, ""));
        ready(&node, "").1["cause"] == "missing"
    });
    reload(ONE, "files under `require` changed");
    daemon.wait_until("the node is ready again", || is_ready(&node, ""));
    // Nothing has changed, and the answer stays.
    let lines = daemon.count("nothing has changed");
    daemon.signal(Signal::HUP);
    daemon.wait_until("it was read", || {
        assert!(is_ready(&node, ""));
        daemon.count("nothing has changed") > lines
    });
    daemon.finish(target);

    // No check can end, and the last daemon knew the old list only.
    fake.inject(Fault::FailAll {
        rpc: "Images.List",
        code: Code::Unavailable,
        message: "it is away".to_owned(),
    });
    for (text, was_ready) in [(ONE, true), (TWO, false)] {
        if text != ONE {
            fs::write(&list, text).expect("the file can be written");
        }
        let daemon = node.start_unready();
        daemon.wait_until("the socket is there", || {
            UnixStream::connect(node.path("run/control.sock")).is_ok()
        });
        for _ in 0..5 {
            let (_, document) = ready(&node, "");
            assert_eq!(document["ready"], was_ready, "{text}: {document:#}");
        }
        daemon.stop();
    }
    fake.clear_faults();
    let daemon = node.start();
    daemon.wait_until("the other image is missed", || {
        assert!(!is_ready(&node, ""));
        ready(&node, "").1["cause"] == "missing"
    });
    daemon.finish(target);
}

fn nothing_required_is_never_ready_and_a_wrong_query_neither(target: &Target) {
    let node = Node::on(target);
    let port = free_port();
    node.configure_also(&format!("metricsAddress: 127.0.0.1:{port}"));
    let daemon = node.start();
    node.put("one.tar", ONE);
    node.airgapd(["wait"]).exits(0);
    for (query, wanted, cause) in [
        ("", 503, "nothing-required"),
        ("?release=none", 503, "absent"),
        ("?relaese=none", 503, "query"),
        ("?bundles=some", 503, "query"),
        ("?bundle", 400, "query"),
        ("?bundle=%zz", 400, "query"),
        ("?bundle=", 400, "query"),
    ] {
        let (code, document) = ready(&node, query);
        assert_eq!(
            (code, document["cause"].as_str()),
            (wanted, Some(cause)),
            "{document:#}"
        );
        let public = get(port, &format!("/ready{query}")).expect("the port answers");
        assert!(public.starts_with(&format!("HTTP/1.0 {wanted}")), "{public}");
    }
    assert!(is_ready(&node, "?bundle=one.tar") && is_ready(&node, "?bundles=all"));
    node.airgapd(["wait", "--now"]).exits(1);
    node.airgapd(["wait", "--now", "--all"]).exits(0);
    let answer = node.airgapd(["wait", "--now", "--all", "--required"]).exits(1);
    assert!(answer.stderr.contains("requires no images"), "{answer:?}");
    node.airgapd(["wait", "--now", "--timeout", "1s"]).exits(2);
    // The head of an answer is the same without its body. Everything else is no path of the port.
    let head = raw(
        port,
        "HEAD /ready?bundles=all HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    let (head, body) = head.split_once("\r\n\r\n").expect("a head");
    assert_eq!((code(head), body), (200, ""), "{head}");
    for request in ["POST /ready", "GET /v1/status", "GET /ready/", "POST /v1/check"] {
        let answer = raw(
            port,
            &format!("{request} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
        );
        assert_eq!(code(&answer), 404, "{request}: {answer}");
    }
    daemon.finish(target);
}

fn raw(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the port is open");
    stream.write_all(request.as_bytes()).expect("the port is open");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the answer is text");
    answer
}

/// Returns the result of a request, which must come within a second.
fn at_once<T>(what: &str, ask: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let answer = ask();
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{what}: {:?}",
        began.elapsed()
    );
    answer
}

fn descriptors(daemon: &Daemon) -> usize {
    let folder = format!("/proc/{}/fd", daemon.pid());
    fs::read_dir(folder).expect("the daemon runs").count()
}

/// Clients that connect and send nothing, or half a request.
fn however_many_connections_hang_the_answer_comes_within_a_second(target: &Target) {
    let node = Node::on(target);
    let port = require(&node, &[ONE]);
    let daemon = node.start();
    node.put("one.tar", ONE);
    until_ready(&node, &daemon, "one.tar");
    let before = descriptors(&daemon);
    let socket = node.path("run/control.sock");
    let asks = |what: &str| {
        let answer = at_once(what, || get(port, "/ready").expect("the port answers"));
        assert!(answer.starts_with("HTTP/1.0 200"), "{what}: {answer}");
        let answer = at_once(what, || get(port, "/healthz").expect("the port answers"));
        assert!(answer.ends_with("\r\n\r\nok\n"), "{what}: {answer}");
        assert!(at_once(what, || is_ready(&node, "")), "{what}");
    };
    for (what, sent) in [
        ("idle", ""),
        ("half-sent", "GET /ready HTTP/1.1\r\nHost: a\r\nX-Half: "),
    ] {
        let tcp: Vec<_> = (0..64).map(|_| hang_tcp(port, sent)).collect();
        let unix: Vec<_> = (0..64).map(|_| hang_unix(&socket, sent)).collect();
        for _ in 0..3 {
            asks(what);
        }
        drop((tcp, unix));
    }
    // A head without an end takes no more memory than its limit.
    let long = format!("GET /ready HTTP/1.1\r\nX-Long: {}", "x".repeat(8 << 10));
    let mut hanging = Vec::new();
    for number in 0..1000 {
        hanging.push(hang_tcp(port, if number % 2 == 0 { "" } else { &long }));
        if number % 100 == 99 {
            asks("a thousand connections in turn");
            assert!(
                descriptors(&daemon) <= before + 2 * 64 + 8,
                "{} after {before}",
                descriptors(&daemon)
            );
        }
    }
    drop(hanging);
    daemon.wait_until("the connections are closed", || {
        descriptors(&daemon) <= before + 2
    });
    daemon.finish(target);
}

fn hang_tcp(port: u16, sent: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the port is open");
    // The daemon may have closed the connection for a newer one.
    let _ = stream.write_all(sent.as_bytes());
    stream
}

fn hang_unix(socket: &Path, sent: &str) -> UnixStream {
    let mut stream = UnixStream::connect(socket).expect("the socket is open");
    let _ = stream.write_all(sent.as_bytes());
    stream
}

fn while_containerd_is_silent_the_answer_comes_within_a_second(target: &Target) {
    let fake = target.as_fake().expect("it is the stand-in");
    let node = Node::on(target);
    let port = require(&node, &[ONE]);
    let daemon = node.start();
    node.put("one.tar", ONE);
    until_ready(&node, &daemon, "one.tar");
    let before = fake.calls("Images.List");
    fake.inject(Fault::Stall {
        rpc: "Images.List",
        after: 0,
    });
    daemon.wait_until("a comparison", || fake.calls("Images.List") > before);
    for _ in 0..5 {
        assert!(at_once("the control socket", || is_ready(&node, "?bundles=all")));
        let answer = at_once("the port", || get(port, "/ready").expect("the port answers"));
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
        let answer = at_once("the port", || get(port, "/healthz").expect("the port answers"));
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    }
    fake.clear_faults();
    daemon.stop();
}

fn a_daemon_that_stands_still_is_not_ready_and_waited_for_a_few_seconds_only(target: &Target) {
    let node = Node::on(target);
    require(&node, &[ONE]);
    let daemon = node.start();
    node.put("one.tar", ONE);
    until_ready(&node, &daemon, "one.tar");
    daemon.signal(Signal::STOP);
    let began = Instant::now();
    let answer = node.airgapd(["wait", "--now"]).exits(6);
    assert!(answer.stderr.contains("no answer"), "{answer:?}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    daemon.signal(Signal::CONT);
    daemon.wait_until("it is ready again", || is_ready(&node, ""));
    daemon.finish(target);
}

fn as_usual() -> Options {
    Options::default()
}

fn while_containerd_restarts_the_node_stays_ready(own: &mut Own) {
    let node = Node::on(&own.target);
    require(&node, &[ONE]);
    // containerd 1 tells its sandbox image, which would be required, too.
    let before = fs::read_to_string(node.path("config.yaml")).expect("there is a configuration");
    node.configure(&before.replace("require: {", &format!("require: {{sandboxImage: '{ONE}', ")));
    let daemon = node.start();
    node.put("one.tar", ONE);
    until_ready(&node, &daemon, "one.tar");
    own.containerd.stop().expect("containerd runs");
    daemon.wait_until("the daemon has noticed", || {
        let (code, document) = ready(&node, "?bundles=all");
        assert_eq!(code, 200, "{document:#}");
        document["held_seconds"].is_u64()
    });
    node.airgapd(["wait", "--now"]).exits(0);
    own.containerd.restart().expect("containerd starts");
    daemon.wait_until("it is confirmed", || {
        let (code, document) = ready(&node, "?bundles=all");
        assert_eq!(code, 200, "{document:#}");
        document["held_seconds"].is_null()
    });
    daemon.finish(&own.target);
}

on_its_own_containerd!(as_usual; while_containerd_restarts_the_node_stays_ready,);
on_each_containerd! {
    what_is_required_decides_and_a_bad_file_or_an_import_beside_it_does_not,
    an_image_that_is_found_missing_ends_readiness_until_it_is_back,
    a_restart_of_the_daemon_changes_no_answer,
}
on_the_fake! {
    another_requirement_is_not_ready_before_it_was_checked_and_other_keys_change_nothing,
    another_list_of_the_same_name_counts_from_a_reload_and_from_a_restart,
    nothing_required_is_never_ready_and_a_wrong_query_neither,
    however_many_connections_hang_the_answer_comes_within_a_second,
    while_containerd_is_silent_the_answer_comes_within_a_second,
    a_daemon_that_stands_still_is_not_ready_and_waited_for_a_few_seconds_only,
}
