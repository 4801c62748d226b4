//! Two daemons at once: on one state folder, and on one images folder with one containerd.

use std::fs;
use std::time::Duration;

use crate::support::bundles::{self, image, text};
use crate::support::{Node, Target, on_the_fake, wait_for};

/// Two daemons on one state folder would undo each other's work.
fn a_second_daemon_is_refused_and_told_of_the_first(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let answer = node.airgapd(["run"]);
    assert!(!answer.status.success());
    assert!(answer.stderr.contains(&daemon.pid().to_string()), "{answer:?}");
    daemon.stop();
    node.start().stop();
}

/// Two daemons on one folder and one namespace are a mistake of the operator. They share the leases
/// of their bundles, and each may remove the other's. Both still end with everything in place.
fn two_daemons_with_states_of_their_own_end_with_everything_in_place(target: &Target) {
    let (first, second) = (Node::on(target), Node::on(target));
    second.configure(
        &fs::read_to_string(second.path("config.yaml"))
            .expect("there is a configuration")
            .replace(&text(&second.images()), &text(&first.images())),
    );
    let daemons = [first.start(), second.start()];
    let names: Vec<_> = (0..6)
        .map(|number| format!("registry.test/two{number}:1"))
        .collect();
    for (number, name) in names.iter().enumerate() {
        bundles::write(&first.images().join(format!("{number}.tar")), [image(name)]);
    }
    for node in [&first, &second] {
        let answer = node.airgapd(["wait", "--timeout", "25s"]).exits(0);
        assert!(answer.stdout.starts_with("6 bundles in place"), "{answer:?}");
    }
    for name in &names {
        assert!(target.is_pinned(name), "{name}");
    }
    // Both daemons release a bundle that leaves, and nothing is restored.
    fs::remove_file(first.images().join("0.tar")).expect("the file exists");
    wait_for(Duration::from_secs(30), "the pin goes", || {
        !target.is_pinned(&names[0])
    });
    let [one, other] = daemons;
    one.finish(target);
    other.finish(target);
    assert!(!target.is_pinned(&names[0]));
    assert!(target.is_pinned(&names[1]));
}

on_the_fake! {
    a_second_daemon_is_refused_and_told_of_the_first,
    two_daemons_with_states_of_their_own_end_with_everything_in_place,
}
