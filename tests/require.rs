//! `require`: the images that the node will need. The daemon keeps checking for them.

use std::fs;

use serde_json::{Value, json};

use crate::support::bundles::{self, image, text};
use crate::support::{Node, Target, on_each_containerd, on_the_fake};

const ONE: &str = "registry.test/required/one:1";
const TWO: &str = "registry.test/required/two:1";
const BY_HAND: &str = "registry.test/required/by-hand:1";

/// Makes the node require the images of a list and of a manifest.
fn require(node: &Node, listed: &[&str], of_a_pod: &str) {
    let (list, manifests) = (node.path("list.txt"), node.path("manifests"));
    fs::write(&list, listed.join("\n")).expect("the file can be written");
    fs::create_dir(&manifests).expect("a folder");
    fs::write(manifests.join("pod.json"), pod(of_a_pod)).expect("the file can be written");
    let (list, manifests) = (text(&list), text(&manifests));
    node.configure_also(&format!(
        "resync: 1s\nrequire:\n  images: [{list}]\n  manifests: [{manifests}]"
    ));
}

/// Returns the manifest of a pod with this image.
fn pod(image: &str) -> String {
    let spec = json!({"containers": [{"image": image}]});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}).to_string()
}

fn required(node: &Node) -> Value {
    node.airgapd(["status", "-o", "json"]).json()["required"].clone()
}

fn missing(node: &Node) -> Vec<String> {
    let required = required(node);
    let missing = required["missing"].as_array().expect("a list");
    let name = |image: &Value| image["reference"].as_str().expect("text").to_owned();
    missing.iter().map(name).collect()
}

fn what_is_required_is_said_once_for_each_change_and_waited_for(target: &Target) {
    let node = Node::on(target);
    require(&node, &[ONE, BY_HAND], TWO);
    node.put("one.tar", ONE);
    let by_hand = node.path("by-hand.tar");
    bundles::write(&by_hand, [image(BY_HAND)]);
    node.import([&by_hand]).exits(0);
    let daemon = node.start();
    let answer = node.airgapd(["wait", "--required", "--timeout", "20s"]).exits(4);
    assert!(
        answer
            .stderr
            .contains(&format!("1 of 3 required images is missing: {TWO}")),
        "{answer:?}"
    );
    daemon.wait_for_log("1 of 3 required images is missing");
    let answer = node.airgapd(["status"]).exits(1);
    assert!(
        answer.stdout.contains("Pod p: spec.containers[0].image"),
        "{answer:?}"
    );

    node.put("two.tar", TWO);
    let answer = node.airgapd(["wait", "--required", "--timeout", "20s"]).exits(0);
    assert!(
        answer
            .stdout
            .contains("2 bundles in place, all 3 required images are there"),
        "{answer:?}"
    );
    node.airgapd(["status"]).exits(0);
    daemon.wait_for_log("all 3 required images are there");

    // No bundle vouches for this image, so it is not restored. The daemon notices the removal by
    // itself.
    target.remove_record(BY_HAND);
    daemon.wait_until("the daemon misses the image", || missing(&node) == [BY_HAND]);
    daemon.wait_for_log(&format!("1 of 3 required images is missing: {BY_HAND}"));
    node.import([&by_hand]).exits(0);
    daemon.wait_until("the image is back", || missing(&node).is_empty());
    // The daemon compares and checks every second, but logs a change only once.
    daemon.wait_until("there were more comparisons", || {
        daemon.count("all 3 required images are there") == 2
    });
    let checked_at = || required(&node)["checked_at"].as_str().map(str::to_owned);
    let before = checked_at();
    daemon.wait_until("another check has ended", || checked_at() != before);
    let log = daemon.finish(target);
    assert_eq!(log.matches("required images").count(), 4, "{log}");
}

/// Without a daemon, the command itself finds the answer.
fn what_is_required_is_known_without_a_daemon(target: &Target) {
    let node = Node::on(target);
    require(&node, &[ONE], TWO);
    let answer = node.airgapd(["status"]).exits(1);
    assert!(
        answer.stdout.contains("2 of 2 required images are missing"),
        "{answer:?}"
    );
    for name in [ONE, TWO] {
        let file = node.path("bundle.tar");
        bundles::write(&file, [image(name)]);
        node.import([&file]).exits(0);
    }
    // Without a daemon the node is never healthy.
    let answer = node.airgapd(["status"]).exits(1);
    assert!(
        answer.stdout.contains("all 2 required images are there"),
        "{answer:?}"
    );
}

fn sources_that_cannot_be_read_are_a_problem_and_no_answer(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let answer = node.airgapd(["wait", "--required", "--timeout", "20s"]).exits(1);
    assert!(answer.stderr.contains("requires no images"), "{answer:?}");
    assert_eq!(required(&node), Value::Null);
    daemon.finish(target);

    require(&node, &[ONE], ONE);
    fs::write(node.path("manifests/pod.json"), "{").expect("the file can be written");
    let daemon = node.start();
    let answer = node.airgapd(["wait", "--required", "--timeout", "20s"]).exits(1);
    assert!(answer.stderr.contains("pod.json"), "{answer:?}");
    daemon.wait_for_log("cannot check the required images");
    let metrics = || fs::read_to_string(node.path("run/airgapd.prom")).unwrap_or_default();
    daemon.wait_until("the metrics are there", || {
        metrics().contains("airgapd_required_up 0")
    });
    assert!(!metrics().contains("airgapd_required_missing"), "{}", metrics());
    // A request of a client starts a new check, so that a correction counts at once.
    fs::write(node.path("manifests/pod.json"), pod(ONE)).expect("the file can be written");
    node.airgapd(["wait", "--required", "--timeout", "20s"]).exits(4);
    daemon.finish(target);
}

/// A copy that was cut off is a shorter list, and often an empty one.
fn a_source_without_images_is_a_problem_of_the_node_and_of_verify(target: &Target) {
    let node = Node::on(target);
    let [list, empty, pods, pipe] = ["list.txt", "empty.txt", "pods", "pipe"].map(|name| node.path(name));
    fs::write(&list, ONE).expect("the file can be written");
    fs::write(&empty, "").expect("the file can be written");
    fs::create_dir(&pods).expect("a folder");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("coreutils are there").success());
    let [list, empty, pods, pipe] = [list, empty, pods, pipe].map(|path| text(&path));
    let by_hand = node.path("by-hand.tar");
    bundles::write(&by_hand, [image(ONE)]);
    node.import([&by_hand]).exits(0);
    let before = fs::read_to_string(node.path("config.yaml")).expect("there is a configuration");
    let daemon = node.start();
    for (require, problem) in [
        (
            format!("images: [{empty}]"),
            Some(format!("{empty} names no image")),
        ),
        (
            format!("images: [{list}, {empty}]"),
            Some(format!("{empty} names no image")),
        ),
        (
            format!("images: [{list}], manifests: [{pods}]"),
            Some(format!("{pods} names no image")),
        ),
        (
            format!("staticPods: {pods}"),
            Some(format!("{pods}: no static pod names an image")),
        ),
        // Many nodes have no static pods.
        (format!("images: [{list}], staticPods: {pods}"), None),
        (format!("images: [{pipe}]"), Some(format!("{pipe} is a pipe"))),
    ] {
        node.configure(&format!("{before}\nrequire: {{{require}}}"));
        let reloads = daemon.count("require changed") + daemon.count("read again: require");
        daemon.signal(rustix::process::Signal::HUP);
        daemon.wait_until("it was read", || {
            daemon.count("require changed") + daemon.count("read again: require") > reloads
        });
        let answer = node.airgapd(["wait", "--required", "--timeout", "20s"]);
        let (now, code) = (
            node.airgapd(["wait", "--now", "--required"]),
            problem.as_ref().map_or(0, |_| 1),
        );
        for answer in [answer.exits(code), now.exits(code)] {
            let problem = problem.as_deref().unwrap_or_default();
            assert!(answer.stderr.contains(problem), "{require}: {answer:?}");
        }
    }
    daemon.finish(target);
    for (arguments, code) in [
        (vec!["--images", &empty], 2),
        (vec!["--images", &list, "--images", &empty], 2),
        (vec!["--images", &list, "--manifests", &pods], 2),
        (vec!["--static-pods", &pods], 2),
        (vec!["--images", &list, "--static-pods", &pods], 0),
    ] {
        let arguments = [vec!["verify"], arguments].concat();
        let answer = node.airgapd(&arguments).exits(code);
        assert_eq!(answer.stderr.contains("image"), code == 2, "{answer:?}");
    }
}

/// The images of a k0s configuration depend on the release of k0s.
fn a_configuration_of_k0s_wants_its_release(target: &Target) {
    let node = Node::on(target);
    let k0s = node.path("k0s.yaml");
    fs::write(
        &k0s,
        "apiVersion: k0s.k0sproject.io/v1beta1\nkind: ClusterConfig\n",
    )
    .expect("the file can be written");
    let k0s = text(&k0s);
    node.configure_also(&format!("require: {{k0sConfig: {k0s}}}"));
    assert!(
        required(&node)["problem"]
            .as_str()
            .is_some_and(|why| why.contains("require.k0sVersion")),
        "{}",
        required(&node)
    );
    let before = fs::read_to_string(node.path("config.yaml")).expect("there is a configuration");
    node.configure(&before.replace("}", ", k0sVersion: v1.36.3+k0s.2}"));
    assert!(
        missing(&node)
            .iter()
            .any(|name| name.contains("k0sproject/coredns"))
    );
}

on_each_containerd!(what_is_required_is_said_once_for_each_change_and_waited_for);
on_the_fake!(
    what_is_required_is_known_without_a_daemon,
    sources_that_cannot_be_read_are_a_problem_and_no_answer,
    a_source_without_images_is_a_problem_of_the_node_and_of_verify,
    a_configuration_of_k0s_wants_its_release,
);
