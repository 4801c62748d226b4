//! Pods that exist before their images.

use super::{Machine, as_usual, on_a_real_kubelet};

const APP: &str = "registry.test/shop/web:2.1";
const REPOSITORY: &str = "registry.test/shop/web";

fn a_pod_that_waits_with_err_image_never_pull_runs_as_soon_as_its_bundle_is_dropped(
    machine: &mut Machine<'_>,
) {
    let archive = machine.bundle("web.tar", APP);
    let root = &archive.images[0].root;
    let pods = [
        ("by-tag", APP.to_owned()),
        ("by-digest", format!("{REPOSITORY}@{root}")),
        ("by-both", format!("{APP}@{root}")),
    ];
    for (pod, image) in &pods {
        machine.pod(pod, image);
    }
    for (pod, image) in &pods {
        let line = machine.event(pod, "ErrImageNeverPull");
        assert!(line.contains(image.as_str()), "{line}");
    }
    let before = machine.so_far();
    machine.node.drop_in(&machine.node.path("web.tar"));
    for (pod, _) in &pods {
        let line = machine.event_since(before, pod, "Pulled");
        assert!(line.contains("already present on machine"), "{line}");
        machine.event_since(before, pod, "Started");
    }
    assert_eq!(machine.count(&["\"Event occurred\"", "reason=\"Pulling\""]), 0);
}

on_a_real_kubelet!(
    as_usual, "";
    a_pod_that_waits_with_err_image_never_pull_runs_as_soon_as_its_bundle_is_dropped,
);
