//! The containerd that the program uses, and its behaviour before containerd runs.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fake_containerd::{Fake, FakeConfig};

use crate::support::bundles::{self, image, text};
use crate::support::node::{Answer, Daemon, program};
use crate::support::{Node, Target, on_the_fake};

fn an_import_without_containerd_names_the_socket_and_ends_with_3(target: &Target) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("nobody.sock");
    let node = Node::at(&socket, target.namespace());
    bundles::write(&node.path("bundle.tar"), [image("registry.test/a:1")]);
    let answer = node.import([&node.path("bundle.tar")]).exits(3);
    let told = format!(
        "no connection to containerd on {}: No such file or directory (os error 2)",
        socket.display()
    );
    assert!(answer.stderr.trim_end().ends_with(&told), "{answer:?}");
    assert_eq!(answer.stderr.matches("connect").count(), 1, "{answer:?}");
    node.airgapd(["release", "--all"]).exits(3);

    // A socket file without a listener, as a killed containerd leaves it.
    drop(UnixListener::bind(&socket).unwrap());
    node.import([&node.path("bundle.tar")]).exits(3);
}

/// The listener counts the connections and closes each of them, so that "once" has a meaning.
fn a_daemon_waits_for_containerd_and_says_so_once(_: &Target) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("late.sock");
    let attempts = Arc::new(AtomicUsize::new(0));
    let (counted, listener) = (Arc::clone(&attempts), UnixListener::bind(&socket).unwrap());
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let counting = std::thread::spawn(move || {
        while listener.accept().is_ok() && !stopped.load(Ordering::SeqCst) {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });

    let node = Node::at(&socket, "scenario-late");
    bundles::write(&node.images().join("bundle.tar"), [image("registry.test/late:1")]);
    let daemon = node.start();
    daemon.wait_until("some attempts", || attempts.load(Ordering::SeqCst) >= 4);
    assert_eq!(
        daemon.count("no containerd on"),
        1,
        "the log has it once:\n{}",
        daemon.log()
    );

    stop.store(true, Ordering::SeqCst);
    let _ = std::os::unix::net::UnixStream::connect(&socket);
    counting.join().unwrap();
    fs::remove_file(&socket).unwrap();
    let fake = Fake::start_blocking(FakeConfig {
        socket: Some(socket),
        ..FakeConfig::default()
    });
    daemon.wait_until("the image", || {
        fake.images("scenario-late").contains_key("registry.test/late:1")
    });
    daemon.wait_until("the lease is returned", || {
        fake.leases("scenario-late").is_empty()
    });
    daemon.stop();
    assert_eq!(fake.check_done(), Vec::<String>::new());
}

/// In the Kubernetes namespace, a containerd without CRI (Docker's, for example) cannot be
/// kubelet's. The daemon still uses it at an address that the operator gave, unless the operator
/// insists on CRI.
fn a_containerd_without_cri_is_taken_at_an_address_that_was_given(_: &Target) {
    let docker = Fake::start_blocking(FakeConfig {
        cri: false,
        ..FakeConfig::default()
    });
    let node = Node::at(docker.socket(), "k8s.io");
    bundles::write(&node.path("bundle.tar"), [image("registry.test/a:1")]);
    let configured = fs::read_to_string(node.path("config.yaml")).unwrap();
    let file = text(&node.path("bundle.tar"));
    node.configure_also("cri: true");
    let answer = node.import([&file]).exits(1);
    assert!(
        answer.stderr.contains("`cri: false` to use this one"),
        "{answer:?}"
    );
    assert_eq!(answer.stderr.matches("no CRI service").count(), 1, "{answer:?}");
    assert!(!answer.stderr.contains("tried"), "{answer:?}");
    assert!(docker.images("k8s.io").is_empty() && docker.blobs("k8s.io").is_empty());

    let unaddressed = configured.replace("address:", "#");
    let socket = text(docker.socket());
    let ways: [(&str, Vec<&str>, Option<&str>); 3] = [
        (&configured, vec![], None),
        (&unaddressed, vec!["--address", &socket], None),
        (&unaddressed, vec![], Some(&socket)),
    ];
    for (configuration, flags, variable) in ways {
        node.configure(configuration);
        let mut command = node.command([&["import", &file], &*flags].concat());
        command.envs(variable.map(|socket| ("AIRGAPD_ADDRESS", socket)));
        let answer = Answer::from(command.output().unwrap()).exits(0);
        let warned = answer.stderr.matches("kubelet does not see the images").count();
        assert_eq!(warned, 1, "{flags:?} {variable:?} {answer:?}");
        assert_eq!(docker.images("k8s.io").len(), 2);
    }

    node.configure(&configured);
    let daemon = node.start();
    daemon.wait_for_log("kubelet does not see the images");
    node.airgapd(["wait", "--allow-empty"]).exits(0);
    daemon.stop();
    node.configure_also("cri: false");
    let answer = node.import([&file]).exits(0);
    assert_eq!(
        answer.stderr, "",
        "no warning after the operator has turned CRI off"
    );
}

/// A containerd that the daemon found by itself may be Docker's, so the daemon refuses it.
fn a_containerd_without_cri_that_nobody_named_is_refused(_: &Target) {
    if !lab::is_root() {
        return;
    }
    let node = tempfile::tempdir().unwrap();
    let at = |path: &str| node.path().join(path);
    for folder in ["bin", "run/containerd", "lib", "etc"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    let docker = Fake::start_blocking(FakeConfig {
        cri: false,
        socket: Some(at("run/containerd/containerd.sock")),
        ..FakeConfig::default()
    });
    let daemon = Daemon::start(on_the_node(node.path()), &at("run/notify"));
    daemon.wait_until_ready();
    daemon.wait_for_log("has no CRI service");
    let log = daemon.log();
    let line = log
        .lines()
        .find(|line| line.contains("has no CRI service"))
        .unwrap();
    assert_eq!(line.matches("has no CRI service").count(), 1, "{line}");
    assert!(!line.contains("()"), "{line}");
    assert!(line.contains("`cri: false` to use this one"), "{line}");
    daemon.stop();
    assert!(docker.images("k8s.io").is_empty());
}

/// Docker's containerd runs, and k0s is installed and starts late. From that evidence, without any
/// configuration, the images wait for k0s. The node is this machine with other folders mounted over
/// the relevant ones.
fn a_k0s_node_imports_into_k0s_containerd_however_late_it_comes(_: &Target) {
    if !lab::is_root() {
        return;
    }
    let node = tempfile::tempdir().unwrap();
    let at = |path: &str| node.path().join(path);
    for folder in [
        "bin",
        "run/containerd",
        "run/k0s",
        "lib/k0s/images",
        "lib/k0s/bin",
        "etc",
    ] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    fs::write(at("bin/k0s"), "k0s").unwrap();
    let containerd_at = |path: &str| FakeConfig {
        socket: Some(at(path)),
        ..FakeConfig::default()
    };
    let docker = Fake::start_blocking(containerd_at("run/containerd/containerd.sock"));
    let k0s = Fake::stopped(containerd_at("run/k0s/containerd.sock"));

    let daemon = Daemon::start(on_the_node(node.path()), &at("run/notify"));
    daemon.wait_until_ready();
    bundles::write(
        &at("lib/k0s/images/bundle.tar"),
        [image("registry.test/for-k0s:1")],
    );
    daemon.wait_for_log("no containerd on /run/k0s/containerd.sock");
    assert_eq!(
        daemon.count("no containerd on /run/k0s/containerd.sock"),
        1,
        "{}",
        daemon.log()
    );
    assert!(
        docker.counters().is_empty(),
        "no request went to Docker's containerd: {:?}",
        docker.counters()
    );

    k0s.listen();
    daemon.wait_until("the image is in k0s'", || {
        k0s.images("k8s.io").contains_key("registry.test/for-k0s:1")
    });
    daemon.wait_until("the lease is returned", || k0s.leases("k8s.io").is_empty());
    daemon.stop();
    assert!(docker.counters().is_empty(), "{:?}", docker.counters());
    assert_eq!(k0s.check_done(), Vec::<String>::new());
}

/// airgapd is installed first. On a bare node it guesses which containerd to wait for. It drops the
/// guess when k0s is installed.
fn a_k0s_that_is_installed_after_airgapd_is_found_without_a_restart(_: &Target) {
    if !lab::is_root() {
        return;
    }
    let node = tempfile::tempdir().unwrap();
    let at = |path: &str| node.path().join(path);
    for folder in ["bin", "run/k0s", "lib", "etc"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    let daemon = Daemon::start(on_the_node(node.path()), &at("run/notify"));
    daemon.wait_until_ready();
    daemon.wait_for_log("no containerd on /run/containerd/containerd.sock");
    let pid = daemon.pid();

    fs::create_dir_all(at("lib/k0s/images")).unwrap();
    bundles::write(
        &at("lib/k0s/images/bundle.tar"),
        [image("registry.test/for-k0s:1")],
    );
    let k0s = Fake::start_blocking(FakeConfig {
        socket: Some(at("run/k0s/containerd.sock")),
        ..FakeConfig::default()
    });
    fs::write(at("bin/k0s"), "k0s").unwrap();
    daemon.wait_for_log("restarting the daemon");
    daemon.wait_until("the image is in k0s'", || {
        k0s.images("k8s.io").contains_key("registry.test/for-k0s:1")
    });
    daemon.wait_until("the lease is returned", || k0s.leases("k8s.io").is_empty());
    assert_eq!(daemon.pid(), pid);
    daemon.stop();
    assert_eq!(k0s.check_done(), Vec::<String>::new());
}

/// Runs the program in a mount namespace with these folders in place of the machine's.
pub(crate) fn on_the_node(node: &Path) -> Command {
    let airgapd = program();
    let binary = node.join("airgapd");
    fs::copy(airgapd.get_program(), &binary).unwrap();
    // The program and the test's socket are below /tmp, which stays unchanged.
    let script = r#"
        set -e
        mount --bind "$1/bin" /usr/local/bin
        mount --bind "$1/lib" /var/lib
        mount --bind "$1/run" /run
        if [ -d /etc/airgapd ]; then mount --bind "$1/etc" /etc/airgapd; fi
        exec "$1/airgapd" run
    "#;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
        .arg(node);
    for (name, value) in airgapd.get_envs() {
        if value.is_none() {
            command.env_remove(name);
        }
    }
    command
}

on_the_fake!(
    an_import_without_containerd_names_the_socket_and_ends_with_3,
    a_daemon_waits_for_containerd_and_says_so_once,
    a_containerd_without_cri_is_taken_at_an_address_that_was_given,
    a_containerd_without_cri_that_nobody_named_is_refused,
    a_k0s_node_imports_into_k0s_containerd_however_late_it_comes,
    a_k0s_that_is_installed_after_airgapd_is_found_without_a_restart,
);
