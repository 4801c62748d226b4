//! The file for Node Feature Discovery's local source.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use lab::Options;

use crate::support::bundles::{self, image, text};
use crate::support::node::Daemon;
use crate::support::{Node, Own, Target, on_each_containerd, on_its_own_containerd, on_the_fake, wait_for};

const ONE: &str = "registry.test/one:1";
const TWO: &str = "registry.test/two:1";

/// Writes the list of required images.
fn require(node: &Node, images: &[&str]) {
    fs::write(node.path("images.txt"), images.join("\n")).expect("a file");
}

/// Returns a node with the key, a list of required images and a folder for the file.
fn node_with_features(target: &Target) -> Node {
    let node = Node::on(target);
    fs::create_dir(node.path("features.d")).expect("a folder");
    require(&node, &[ONE]);
    node.configure_also(&format!(
        "nodeFeatureFile: {}\nrequire: {{images: [{}]}}",
        node.path("features.d/airgapd").display(),
        node.path("images.txt").display()
    ));
    node
}

fn lines(node: &Node) -> Vec<String> {
    let text = fs::read_to_string(node.path("features.d/airgapd")).unwrap_or_default();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

#[track_caller]
fn wait_for_lines(node: &Node, daemon: &Daemon, expected: &[&str]) {
    daemon.wait_until(&format!("the lines are {expected:?}"), || lines(node) == expected);
}

fn the_file_follows_the_state_of_the_node_and_ends_with_the_daemon(target: &Target) {
    let node = node_with_features(target);
    let daemon = node.start();
    wait_for_lines(
        &node,
        &daemon,
        &["airgapd.required=false", "airgapd.state=failed"],
    );
    bundles::write(&node.path("one.tar"), [image(ONE)]);
    let [file, out] = ["one.tar", "release"].map(|name| text(&node.path(name)));
    node.airgapd(["bundle", "release", "v1+a", &file, "-o", &out])
        .exits(0);
    node.drop_in(&node.path("release/one.tar"));
    let whole = [
        "airgapd.release.v1_a=true",
        "airgapd.required=true",
        "airgapd.state=healthy",
    ];
    wait_for_lines(&node, &daemon, &whole);

    // Each write makes a new file. The metrics are written every 3 s.
    let file = || {
        fs::metadata(node.path("features.d/airgapd"))
            .expect("the file")
            .ino()
    };
    let metrics = || {
        fs::metadata(node.path("run/airgapd.prom"))
            .expect("the file")
            .ino()
    };
    let (before, mut seen) = (file(), vec![metrics()]);
    daemon.wait_until("the metrics were written twice", || {
        if seen.last() != Some(&metrics()) {
            seen.push(metrics());
        }
        seen.len() > 2
    });
    assert_eq!(file(), before, "no line changed");
    let hidden = fs::read_dir(node.path("features.d")).expect("a folder").count();
    assert_eq!(hidden, 1, "the unfinished file is gone");

    // The daemon reads the list again with the next check.
    require(&node, &[ONE, TWO]);
    node.airgapd(["wait", "--required"]).exits(4);
    let lacks_two = [whole[0], "airgapd.required=false", "airgapd.state=failed"];
    wait_for_lines(&node, &daemon, &lacks_two);
    daemon.stop();
    assert_eq!(lines(&node), Vec::<String>::new());
}

on_each_containerd!(the_file_follows_the_state_of_the_node_and_ends_with_the_daemon);

fn as_usual() -> Options {
    Options::default()
}

fn a_restart_of_containerd_takes_no_label_off(own: &mut Own) {
    let node = node_with_features(&own.target);
    // containerd 1 tells its sandbox image, which would be required, too.
    let before = fs::read_to_string(node.path("config.yaml")).expect("there is a configuration");
    node.configure(&before.replace("require: {", &format!("require: {{sandboxImage: '{ONE}', ")));
    bundles::write(&node.path("one.tar"), [image(ONE)]);
    let [file, out] = ["one.tar", "release"].map(|name| text(&node.path(name)));
    node.airgapd(["bundle", "release", "v1", &file, "-o", &out])
        .exits(0);
    node.drop_in(&node.path("release/one.tar"));
    let daemon = node.start();
    let kept = ["airgapd.release.v1=true", "airgapd.required=true"];
    let whole = [kept[0], kept[1], "airgapd.state=healthy"];
    wait_for_lines(&node, &daemon, &whole);
    own.containerd.stop().expect("containerd runs");
    daemon.wait_until("the file shows the loss", || {
        let lines = lines(&node);
        assert!(
            kept.iter().all(|line| lines.iter().any(|other| other == line)),
            "{lines:?}"
        );
        lines != whole
    });
    own.containerd.restart().expect("containerd starts");
    daemon.wait_until("the file shows the return", || {
        let lines = lines(&node);
        assert!(
            kept.iter().all(|line| lines.iter().any(|other| other == line)),
            "{lines:?}"
        );
        lines == whole
    });
    daemon.finish(&own.target);
}

on_its_own_containerd!(as_usual; a_restart_of_containerd_takes_no_label_off,);

fn a_file_that_cannot_be_written_degrades_the_node_until_it_can(target: &Target) {
    let node = node_with_features(target);
    fs::remove_dir(node.path("features.d")).expect("an empty folder");
    node.put("one.tar", ONE);
    let daemon = node.start();
    daemon.wait_for_log("no node features in");
    node.airgapd(["wait", "--bundle", "one.tar"]).exits(0);
    let status = || node.airgapd(["status", "-o", "json"]).json();
    let document = status();
    let problem = document["node_feature_file_problem"].as_str().expect("a problem");
    assert!(problem.contains("features.d/airgapd: No such file"), "{problem}");
    daemon.wait_until("the verdict", || status()["verdict"]["health"] == "degraded");
    fs::create_dir(node.path("features.d")).expect("a folder");
    wait_for(Duration::from_secs(10), "the file is written", || {
        !lines(&node).is_empty()
    });
    daemon.wait_until("the verdict", || status()["verdict"]["health"] == "healthy");
    assert!(status()["node_feature_file_problem"].is_null());
    assert_eq!(daemon.count("no node features in"), 1, "{}", daemon.log());
    daemon.finish(target);
}

on_the_fake!(a_file_that_cannot_be_written_degrades_the_node_until_it_can);
