//! A real kubelet and images that the daemon imports: static pods, no API server, no registry.
//!
//! Each test prints the lines of kubelet's log that prove it. Kubelet works in intervals of ten
//! seconds, and its build takes minutes. So these tests are left out by default, and `cargo xtask
//! kubernetes` runs them.

mod credentials;
mod garbage_collection;
mod pods_before_images;
mod restore;

use std::fs;
use std::time::Duration;

use bundle::fixtures::{Archive, BuiltImage};
use lab::kubelet::{NODE, Release};
use lab::{Generation, Kubelet, Options};
use serde_json::json;

use crate::support::bundles;
use crate::support::node::Daemon;
use crate::support::target::run_on_own;
use crate::support::{Node, Own, Target, wait_for};

/// Makes tests of a claim, on each containerd that new clusters run.
macro_rules! on_a_real_kubelet {
    ($options:ident, $settings:expr; $($claim:ident),+ $(,)?) => {$(
        mod $claim {
            #[test]
            #[ignore = "takes a minute and a kubelet: `cargo xtask kubernetes` runs it"]
            fn containerd_1_7() {
                crate::kubernetes::run(lab::Generation::V1_7, &super::$options(), $settings, super::$claim);
            }

            #[test]
            #[ignore = "takes a minute and a kubelet: `cargo xtask kubernetes` runs it"]
            fn containerd_2_3() {
                crate::kubernetes::run(lab::Generation::V2_3, &super::$options(), $settings, super::$claim);
            }
        }
    )+};
}
use on_a_real_kubelet;

/// Longest wait for kubelet. It retries every ten seconds or so, so an event that takes longer than
/// several intervals will not come.
const PATIENCE: Duration = Duration::from_secs(120);

/// Image with which the private containerds start pods.
const SANDBOX_IMAGE: &str = "airgapd.test/pause:latest";

/// A node with its containerd, its kubelet and the daemon.
struct Machine<'o> {
    /// Dropped first, because its folder is in the folder of containerd.
    kubelet: Kubelet,
    daemon: Daemon,
    node: Node,
    own: &'o mut Own,
}

/// Starts everything, makes the daemon import the sandbox image, and plays a claim.
fn run(generation: Generation, options: &Options, settings: &str, claim: impl FnOnce(&mut Machine<'_>)) {
    let release = match std::env::var("AIRGAPD_TEST_KUBELET") {
        Ok(minor) => minor.parse().expect("cargo xtask passes a release"),
        Err(_) => Release::USUAL,
    };
    run_on_own(generation, options, |own| {
        let node = Node::on(&own.target);
        let pause = bundles::runnable(SANDBOX_IMAGE, &["/bin/busybox", "sleep", "86400"]);
        bundles::write(&node.images().join("base.tar"), [pause]);
        let daemon = node.start();
        let socket = own.containerd.socket();
        let kubelet = Kubelet::start(release, &socket, settings).expect("kubelet starts");
        let mut machine = Machine {
            kubelet,
            daemon,
            node,
            own,
        };
        machine.wait("the sandbox image is there", || {
            machine
                .target()
                .image_status(SANDBOX_IMAGE)
                .is_some_and(|image| image.pinned)
        });
        claim(&mut machine);
    });
}

fn as_usual() -> Options {
    Options::default()
}

impl Machine<'_> {
    fn target(&self) -> &Target {
        &self.own.target
    }

    /// Writes a bundle outside of the images folder. Its image runs until it is stopped.
    fn bundle(&self, file: &str, name: &str) -> Archive {
        let app = bundles::runnable(name, &["/bin/busybox", "sleep", "86400"]);
        bundles::write(&self.node.path(file), [app])
    }

    /// Copies a bundle into the folder, and waits until CRI knows its image.
    fn bring(&self, file: &str, name: &str) {
        self.node.drop_in(&self.node.path(file));
        self.wait("CRI knows the image", || {
            self.target().image_status(name).is_some_and(|image| image.pinned)
        });
    }

    /// Gives kubelet a pod of one container, which may not pull.
    fn pod(&self, name: &str, image: &str) {
        self.pod_with(name, image, "Never");
    }

    /// Gives kubelet a pod of one container with this pull policy.
    fn pod_with(&self, name: &str, image: &str, policy: &str) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "hostNetwork": true, "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "app", "image": image, "imagePullPolicy": policy}],
            },
        });
        // kubelet ignores files whose names start with a dot.
        let unfinished = self.kubelet.static_pods().join(format!(".{name}.json"));
        fs::write(&unfinished, pod.to_string()).expect("a file");
        fs::rename(unfinished, self.pod_file(name)).expect("a file");
    }

    fn pod_file(&self, name: &str) -> std::path::PathBuf {
        self.kubelet.static_pods().join(format!("{name}.json"))
    }

    /// Returns the length of kubelet's log, for [`Machine::said_since`].
    fn so_far(&self) -> usize {
        self.kubelet.log().len()
    }

    /// Waits for a line of kubelet's log with all these words, and prints it.
    fn said_since(&self, before: usize, words: &[&str]) -> String {
        let mut found = None;
        self.wait(&format!("kubelet says {words:?}"), || {
            let log = self.kubelet.log();
            let mut lines = log[before.min(log.len())..].lines();
            found = lines
                .find(|line| words.iter().all(|word| line.contains(word)))
                .map(str::to_owned);
            found.is_some()
        });
        let line = found.expect("the wait ended with a line");
        self.show(&line);
        line
    }

    /// Waits for an event of a pod, and prints it.
    fn event_since(&self, before: usize, pod: &str, reason: &str) -> String {
        let object = format!("object=\"default/{pod}-{NODE}\"");
        self.said_since(
            before,
            &["\"Event occurred\"", &object, &format!("reason=\"{reason}\"")],
        )
    }

    /// Does the same, from the start of the log.
    fn event(&self, pod: &str, reason: &str) -> String {
        self.event_since(0, pod, reason)
    }

    /// Returns the number of lines in kubelet's log that have all these words.
    fn count(&self, words: &[&str]) -> usize {
        let log = self.kubelet.log();
        let has = |line: &&str| words.iter().all(|word| line.contains(word));
        log.lines().filter(has).count()
    }

    fn wait(&self, what: &str, holds: impl FnMut() -> bool) {
        wait_for(PATIENCE, what, holds);
    }

    #[allow(clippy::print_stdout, reason = "kubelet's words are the result")]
    fn show(&self, line: &str) {
        println!("containerd {}: {line}", self.own.containerd.version_text());
    }
}

impl Drop for Machine<'_> {
    #[allow(clippy::print_stderr, reason = "kubelet's log explains a failed test")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.kubelet.log();
            let lines: Vec<_> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(80)..];
            eprintln!("kubelet said last:\n{}", last.join("\n"));
            eprintln!("the daemon said:\n{}", self.daemon.log());
        }
    }
}

/// Returns the id that CRI gives an image of a bundle.
fn id_of(image: &BuiltImage) -> String {
    image.manifests[0].config.to_string()
}
