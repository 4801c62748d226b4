//! What a real kubelet does with images that the daemon brings: static pods, no API server, no
//! registry.
//!
//! Each claim prints the words of kubelet that show it. Kubelet looks at things every ten seconds
//! and the program takes minutes to build, so these are left out by default; `cargo xtask
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

/// Makes tests of a claim: one on each containerd that new clusters run.
macro_rules! on_a_real_kubelet {
    ($options:ident, $settings:expr; $($claim:ident),+ $(,)?) => {$(
        mod $claim {
            #[test]
            #[ignore = "takes a minute and a kubelet; `cargo xtask kubernetes` runs it"]
            fn containerd_1_7() {
                crate::kubernetes::run(lab::Generation::V1_7, &super::$options(), $settings, super::$claim);
            }

            #[test]
            #[ignore = "takes a minute and a kubelet; `cargo xtask kubernetes` runs it"]
            fn containerd_2_3() {
                crate::kubernetes::run(lab::Generation::V2_3, &super::$options(), $settings, super::$claim);
            }
        }
    )+};
}
use on_a_real_kubelet;

/// Kubelet retries and looks around every ten seconds or so; what takes longer than several of
/// these does not come.
const PATIENCE: Duration = Duration::from_secs(120);

/// The image that the private containerds start pods with.
const SANDBOX_IMAGE: &str = "airgapd.test/pause:latest";

/// A node with its containerd, its kubelet and the daemon.
struct Machine<'o> {
    /// Dropped first: its folder lies in that of containerd.
    kubelet: Kubelet,
    daemon: Daemon,
    node: Node,
    own: &'o mut Own,
}

/// Starts everything, has the daemon bring the sandbox image, and plays a claim.
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

    /// Makes a bundle of an image that runs until it is stopped, outside of the images folder.
    fn bundle(&self, file: &str, name: &str) -> Archive {
        let app = bundles::runnable(name, &["/bin/busybox", "sleep", "86400"]);
        bundles::write(&self.node.path(file), [app])
    }

    /// Drops a bundle, and waits until CRI knows its image.
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

    /// Gives kubelet a pod of one container with that pull policy.
    fn pod_with(&self, name: &str, image: &str, policy: &str) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "hostNetwork": true, "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "app", "image": image, "imagePullPolicy": policy}],
            },
        });
        // Files whose names begin with a dot are none to kubelet.
        let unfinished = self.kubelet.static_pods().join(format!(".{name}.json"));
        fs::write(&unfinished, pod.to_string()).expect("a file");
        fs::rename(unfinished, self.pod_file(name)).expect("a file");
    }

    fn pod_file(&self, name: &str) -> std::path::PathBuf {
        self.kubelet.static_pods().join(format!("{name}.json"))
    }

    /// How much kubelet has logged so far, for [`Machine::said_since`].
    fn so_far(&self) -> usize {
        self.kubelet.log().len()
    }

    /// Waits for a line of kubelet's log with all these words, and shows it.
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
        let line = found.expect("it was waited for");
        self.show(&line);
        line
    }

    /// Waits for an event of a pod, and shows it.
    fn event_since(&self, before: usize, pod: &str, reason: &str) -> String {
        let object = format!("object=\"default/{pod}-{NODE}\"");
        self.said_since(
            before,
            &["\"Event occurred\"", &object, &format!("reason=\"{reason}\"")],
        )
    }

    /// The same for one that is on since the beginning.
    fn event(&self, pod: &str, reason: &str) -> String {
        self.event_since(0, pod, reason)
    }

    /// How many lines of kubelet's log have all these words.
    fn count(&self, words: &[&str]) -> usize {
        let log = self.kubelet.log();
        let has = |line: &&str| words.iter().all(|word| line.contains(word));
        log.lines().filter(has).count()
    }

    fn wait(&self, what: &str, holds: impl FnMut() -> bool) {
        wait_for(PATIENCE, what, holds);
    }

    #[allow(clippy::print_stdout, reason = "the words of kubelet are what it is for")]
    fn show(&self, line: &str) {
        println!("containerd {}: {line}", self.own.containerd.version_text());
    }
}

impl Drop for Machine<'_> {
    #[allow(
        clippy::print_stderr,
        reason = "a failed test is explained by what kubelet said"
    )]
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

/// The id that CRI gives an image of a bundle.
fn id_of(image: &BuiltImage) -> String {
    image.manifests[0].config.to_string()
}
