//! Images that are removed while pods run from them.

use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::{ImageSpec, RemoveImageRequest};
use tonic::transport::Endpoint;

use super::{Machine, as_usual, on_a_real_kubelet};

const APP: &str = "registry.test/shop/db:1";

fn an_image_that_is_removed_under_a_running_pod_comes_back_and_the_next_pod_runs(machine: &mut Machine<'_>) {
    machine.bundle("db.tar", APP);
    machine.bring("db.tar", APP);
    machine.pod("first", APP);
    machine.event("first", "Started");

    let changes = machine.target().watch();
    remove(machine, APP);
    machine.wait("containerd has removed the record", || {
        changes
            .so_far()
            .iter()
            .any(|(kind, name)| *kind == containerd::ImageChange::Deleted && name == APP)
    });
    machine.wait("the daemon has brought the image back", || {
        machine
            .target()
            .image_status(APP)
            .is_some_and(|image| image.pinned)
    });
    drop(changes);
    let before = machine.so_far();
    machine.pod("second", APP);
    let line = machine.event_since(before, "second", "Pulled");
    assert!(line.contains("already present on machine"), "{line}");
    machine.event_since(before, "second", "Started");
    assert_eq!(
        machine.count(&["\"Event occurred\"", "first-node", "reason=\"Killing\""]),
        0
    );
}

/// Does the same as `crictl rmi`.
fn remove(machine: &Machine<'_>, name: &str) {
    let socket = format!("unix://{}", machine.target().socket().display());
    let request = RemoveImageRequest {
        image: Some(ImageSpec {
            image: name.to_owned(),
            ..Default::default()
        }),
    };
    machine.target().block_on(async {
        let channel = Endpoint::from_shared(socket).expect("an address").connect().await;
        let mut images = ImageServiceClient::new(channel.expect("containerd is there"));
        images.remove_image(request).await.expect("the image is removed");
    });
}

on_a_real_kubelet!(
    as_usual, "";
    an_image_that_is_removed_under_a_running_pod_comes_back_and_the_next_pod_runs,
);
