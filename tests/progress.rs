//! The progress of a long command: on a terminal, in a log, with `-q`, and for clients of the
//! daemon.

use std::process::{Command, Stdio};
use std::time::Duration;

use bundle::fixtures::{Image, Layer};
use fake_containerd::{Fake, Fault};
use serde_json::Value;

use crate::support::bundles::{self, native, text};
use crate::support::node;
use crate::support::{Node, Target, on_the_fake, unique};

const MIB: u64 = 1 << 20;

fn fake(target: &Target) -> &Fake {
    target.as_fake().expect("these scenarios run on the stand-in")
}

/// Writes a bundle of three images. A layer of one image has several pieces.
fn write_bundle(node: &Node) -> String {
    let image = |name: &str| Image::new(name).platform(native()).layer(unique());
    let path = node.path("bundle.tar");
    let big = image("registry.test/big:1").with_layer(Layer::zeros(8 * MIB));
    bundles::write(
        &path,
        [image("registry.test/a:1"), image("registry.test/b:1"), big],
    );
    text(&path)
}

/// Returns the output of a command on a terminal without a known size.
fn on_a_terminal(node: &Node, arguments: &str, environment: &[(&str, &str)]) -> String {
    let line = format!(
        "'{}' {arguments} --config '{}'",
        env!("CARGO_BIN_EXE_airgapd"),
        text(&node.path("config.yaml"))
    );
    let mut script = Command::new("script");
    // script must not pass on variables that the program should not see.
    for (variable, _) in node::program().get_envs().filter(|(_, value)| value.is_none()) {
        script.env_remove(variable);
    }
    let output = script
        .args(["-qec", &line, "/dev/null"])
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("script is in bsdutils, which every Debian has");
    String::from_utf8(output.stdout).expect("the program prints text")
}

/// Returns the texts that replaced each other on one line.
fn frames(screen: &str) -> Vec<&str> {
    let frames = screen.split("\r\u{1b}[K");
    frames.filter(|frame| frame.contains(" %  ")).collect()
}

fn a_terminal_shows_a_bar_that_fits_and_leaves_nothing(target: &Target) {
    let node = Node::on(target);
    let bundle = write_bundle(&node);
    fake(target).inject(Fault::Delay {
        rpc: "Content.Write",
        by: Duration::from_millis(40),
    });
    let screen = on_a_terminal(&node, &format!("import '{bundle}'"), &[]);
    let frames = frames(&screen);
    assert!(frames.len() > 1, "{screen:?}");
    for part in ["[#", " of 8.", "/s, ", " left", "/3 images"] {
        assert!(
            frames.iter().any(|frame| frame.contains(part)),
            "{part}: {screen:?}"
        );
    }
    let is_too_wide = |frame: &&&str| frame.lines().any(|line| line.chars().count() > 79);
    assert_eq!(frames.iter().find(is_too_wide), None);
    let (_, report) = screen.rsplit_once("\r\u{1b}[K").expect("a bar");
    assert!(
        report.contains("bundle.tar: oci-layout, imported in") && !report.contains(" %  "),
        "{report:?}"
    );
}

fn nothing_is_shown_with_q_and_on_a_terminal_that_cannot_take_it_back(target: &Target) {
    let node = Node::on(target);
    let bundle = write_bundle(&node);
    fake(target).inject(Fault::Delay {
        rpc: "Content.Write",
        by: Duration::from_millis(30),
    });
    for (arguments, environment) in [("-q import", None), ("import", Some(("TERM", "dumb")))] {
        let arguments = format!("{arguments} '{bundle}'");
        let screen = on_a_terminal(&node, &arguments, environment.as_slice());
        match environment {
            None => assert_eq!(screen, "", "the command succeeded"),
            Some(_) => assert!(
                screen.contains("bundle.tar: oci-layout, imported in"),
                "{screen:?}"
            ),
        }
        assert!(
            !screen.contains('\u{1b}') && !screen.contains(" %  "),
            "{screen:?}"
        );
        target.names().iter().for_each(|name| target.remove_record(name));
        target.collect_garbage();
    }
}

fn colours_are_for_terminals_and_not_for_those_who_say_so(target: &Target) {
    let nowhere = Node::at("/nonexistent/containerd.sock".as_ref(), target.namespace());
    let command = "import /nonexistent.tar";
    let coloured = on_a_terminal(&nowhere, command, &[]);
    assert!(coloured.contains("\u{1b}[1;31merror: \u{1b}[0m"), "{coloured:?}");
    for variable in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let plain = on_a_terminal(&nowhere, command, &[variable]);
        assert!(
            plain.contains("error: ") && !plain.contains('\u{1b}'),
            "{plain:?}"
        );
    }
    let elsewhere = nowhere.airgapd(["import", "/nonexistent.tar"]).exits(3);
    assert!(!elsewhere.said().contains('\u{1b}'), "{elsewhere:?}");
}

/// A log gets a line every ten seconds. These commands take between ten and twenty.
fn a_log_is_told_now_and_then_and_with_q_nothing(target: &Target) {
    let node = Node::on(target);
    fake(target).inject(Fault::SlowCommit {
        by: Duration::from_millis(5500),
    });
    let import = |file: &str, quiet: &[&str]| {
        let name = format!("registry.test/{file}:1");
        bundles::write(&node.path(file), [bundles::image(&name)]);
        let file = text(&node.path(file));
        let arguments = ["import", &file].into_iter().chain(quiet.iter().copied());
        node.airgapd(arguments).exits(0)
    };
    std::thread::scope(|scope| {
        let quiet = scope.spawn(|| import("quiet", &["-q"]));
        let told = import("told", &[]);
        assert_eq!(told.stderr.matches("0 of 1 image").count(), 1, "{told:?}");
        let quiet = quiet.join().expect("the thread ends");
        assert_eq!(quiet.stderr, "", "{quiet:?}");
    });
}

fn the_daemon_tells_rate_and_rest_of_an_import_that_runs(target: &Target) {
    let node = Node::on(target);
    let bundle = write_bundle(&node);
    let daemon = node.start();
    fake(target).inject(Fault::Delay {
        rpc: "Content.Write",
        by: Duration::from_millis(100),
    });
    std::fs::rename(bundle, node.images().join("bundle.tar")).expect("both paths are on one file system");
    let progress = || -> Value {
        let document = node.airgapd(["status", "-o", "json"]).json();
        document["bundles"][0]["progress"].clone()
    };
    let mut seen = Value::Null;
    daemon.wait_until("some of it is sent", || {
        seen = progress();
        seen["sent_bytes"].as_u64() > Some(MIB)
    });
    assert_eq!(seen["images"], 3, "{seen:#}");
    assert!(seen["total_bytes"].as_u64() > Some(8 * MIB), "{seen:#}");
    assert!(seen["bytes_per_second"].as_u64() > Some(0), "{seen:#}");
    assert!(seen["remaining_ms"].as_u64() > Some(0), "{seen:#}");
    let screen = node.airgapd(["status"]).stdout;
    assert!(screen.contains("] ") && screen.contains("/3 images"), "{screen}");
    fake(target).clear_faults();
    node.airgapd(["wait"]).exits(0);
    assert_eq!(progress(), Value::Null);
    daemon.finish(target);
}

on_the_fake!(
    a_terminal_shows_a_bar_that_fits_and_leaves_nothing,
    nothing_is_shown_with_q_and_on_a_terminal_that_cannot_take_it_back,
    colours_are_for_terminals_and_not_for_those_who_say_so,
    a_log_is_told_now_and_then_and_with_q_nothing,
    the_daemon_tells_rate_and_rest_of_an_import_that_runs,
);
