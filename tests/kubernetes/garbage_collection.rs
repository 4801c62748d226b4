//! Kubelet's own garbage collection of images.
//!
//! containerd has its own disk, which is smaller than the free space that kubelet wants. So every
//! ten seconds kubelet tries to remove each image that no container uses.

use lab::Options;

use super::{Machine, SANDBOX_IMAGE, id_of, on_a_real_kubelet};
use crate::support::bundles;

const OURS: &str = "registry.test/shop/ours:1";
const STRAY: &str = "registry.test/shop/stray:1";

/// More free space than containerd's disk has. An image is old enough after a second.
const ALWAYS_SHORT: &str = "evictionHard: {imagefs.available: 1Ti}\nimageMinimumGCAge: 1s\n";

/// The line that kubelet logs before it removes an image.
const REMOVING: &str = "\"Removing image to free bytes\"";

/// The line that kubelet logs when it looks for images to remove.
const LOOKING: &str = "\"Attempting to delete unused images\"";

fn on_a_small_disk() -> Options {
    Options {
        disk: Some(512 << 20),
        ..Options::default()
    }
}

fn under_disk_pressure_kubelet_takes_an_image_without_a_pin_and_leaves_ours(machine: &mut Machine<'_>) {
    let ours = machine.bundle("ours.tar", OURS);
    machine.bring("ours.tar", OURS);
    let stray = bundles::write(&machine.node.path("stray.tar"), [bundles::large(STRAY, 64 << 20)]);
    let before = machine.so_far();
    // Another tool would do the same: the image has no label of airgapd.
    machine.target().ctr(&[
        "images",
        "import",
        &bundles::text(&machine.node.path("stray.tar")),
    ]);
    machine.said_since(
        before,
        &[
            "\"Event occurred\"",
            "EvictionThresholdMet",
            "Attempting to reclaim",
        ],
    );
    let stray = id_of(&stray.images[0]);
    machine.said_since(before, &[REMOVING, &stray]);
    machine.wait("the image without a pin is gone", || {
        machine.target().image_status(STRAY).is_none()
    });
    // Two more rounds, because airgapd's images may not have been old enough in the first.
    let looked = machine.count(&[LOOKING]);
    machine.wait("kubelet looks twice more", || {
        machine.count(&[LOOKING]) >= looked + 2
    });
    for name in [OURS, SANDBOX_IMAGE] {
        let image = machine.target().image_status(name);
        assert!(image.is_some_and(|image| image.pinned), "{name}");
    }
    assert_eq!(machine.count(&[REMOVING, &id_of(&ours.images[0])]), 0);
}

fn an_image_whose_bundle_has_gone_is_unpinned_and_kubelet_takes_it(machine: &mut Machine<'_>) {
    let ours = machine.bundle("ours.tar", OURS);
    machine.bring("ours.tar", OURS);
    let looked = machine.count(&[LOOKING]);
    machine.wait("kubelet looks twice and leaves it", || {
        machine.count(&[LOOKING]) >= looked + 2
    });
    let id = id_of(&ours.images[0]);
    assert_eq!(machine.count(&[REMOVING, &id]), 0);
    let before = machine.so_far();
    std::fs::remove_file(machine.node.images().join("ours.tar")).expect("the file exists");
    machine.said_since(before, &[REMOVING, &id]);
    machine.wait("the image is gone", || {
        machine.target().image_status(OURS).is_none()
    });
    // An image of another bundle stays.
    let pause = machine.target().image_status(SANDBOX_IMAGE);
    assert!(pause.is_some_and(|image| image.pinned));
}

on_a_real_kubelet!(
    on_a_small_disk, super::ALWAYS_SHORT;
    under_disk_pressure_kubelet_takes_an_image_without_a_pin_and_leaves_ours,
    an_image_whose_bundle_has_gone_is_unpinned_and_kubelet_takes_it,
);
