//! The view of kubelet through CRI, in the namespace `k8s.io`, and pods that start without a
//! registry.

use std::fs;
use std::path::Path;
use std::time::Duration;

use bundle::fixtures::{Archive, Image, Layer, LayerFile, Manifest};
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStatusRequest, CreateContainerRequest,
    ImageSpec, ImageStatusRequest, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata, RemovePodSandboxRequest, RunPodSandboxRequest,
    StartContainerRequest, StopPodSandboxRequest,
};
use lab::Generation;
use oci_spec::image::{Descriptor, Digest, MediaType};
use serde_json::json;
use tonic::transport::{Channel, Endpoint};

use crate::support::bundles::{self, image, text};
use crate::support::target::MANAGED;
use crate::support::{Node, Place, Target, on_each_containerd, on_each_real_containerd, unique, wait_until};

/// Image with which the private containerds start pods.
const SANDBOX_IMAGE: &str = "airgapd.test/pause:latest";

/// Returns true if CRI of this containerd honours the pin label (from 1.6.22 and 1.7.3 on).
fn honours_pins(target: &Target) -> bool {
    target.place() != Place::Real(Generation::V1_6)
}

/// Returns a name in a new repository, since all tests share this namespace.
fn app() -> String {
    format!("registry.test/app-{}:1", unique())
}

fn import(node: &Node, name: &str, file: &str) -> Archive {
    let archive = bundles::write(&node.path(file), [image(name)]);
    node.import([&node.path(file)]).exits(0);
    archive
}

/// Returns the config's digest, which CRI uses as the image's id.
fn id_of(archive: &Archive) -> String {
    archive.images[0].manifests[0].config.to_string()
}

/// Statements 45, 48 and 49.
fn cri_knows_the_image_by_tag_by_digest_and_by_both(target: &Target) {
    let target = target.in_kubernetes();
    let node = Node::on(&target);
    let name = app();
    let archive = import(&node, &name, "app.tar");
    let repository = name.rsplit_once(':').unwrap().0;
    let root = &archive.images[0].root;

    for reference in [
        name.clone(),
        format!("{repository}@{root}"),
        format!("{name}@{root}"),
        id_of(&archive),
    ] {
        // CRI adds each record itself, a moment after its event.
        wait_until(&format!("CRI knows {reference} by all its names"), || {
            target.image_status(&reference).is_some_and(|status| {
                status.id == id_of(&archive)
                    && status.repo_tags.contains(&name)
                    && status.repo_digests.contains(&format!("{repository}@{root}"))
            })
        });
    }
    let id_record = || {
        target
            .record(&id_of(&archive))
            .filter(|record| record.labels.contains_key(MANAGED))
    };
    wait_until("CRI's own record", || id_record().is_some());

    let is_pinned = || target.image_status(&name).unwrap().pinned;
    if honours_pins(&target) {
        wait_until("CRI sees the pin", is_pinned);
    }
    node.airgapd(["release", &name, &format!("{repository}@{root}")])
        .exits(0);
    wait_until("CRI sees that the pin is gone", || !is_pinned());
    wait_until("the label is still there", || {
        target.labels(&name).contains_key(MANAGED)
    });
}

/// Statement 47: the new image gets a record named after its config, and the old image keeps its
/// own for running containers.
fn a_name_that_moves_gives_cri_the_new_image_and_leaves_the_old(target: &Target) {
    let target = target.in_kubernetes();
    let node = Node::on(&target);
    let name = app();
    let before = import(&node, &name, "before.tar");
    wait_until("CRI has taken it in", || {
        target
            .labels(&name)
            .get(MANAGED)
            .is_some_and(|value| value == "managed")
    });
    let after = import(&node, &name, "after.tar");
    for archive in [&before, &after] {
        wait_until("the record by config", || {
            target.record(&id_of(archive)).is_some()
        });
    }
    wait_until("CRI follows", || {
        target
            .image_status(&name)
            .is_some_and(|status| status.id == id_of(&after))
    });
    assert!(
        target.image_status(&id_of(&before)).is_some(),
        "containers may still run from it"
    );
    wait_until("managed again", || {
        target
            .labels(&name)
            .get(MANAGED)
            .is_some_and(|value| value == "managed")
    });
}

/// Statement 50: the daemon imports pause and an image, and a pod's container runs from it.
fn a_pod_starts_from_imported_images_without_any_registry(target: &Target) {
    let target = target.in_kubernetes();
    let node = Node::on(&target);
    let name = app();
    let daemon = node.start();
    let pause = bundles::runnable(SANDBOX_IMAGE, &["/bin/busybox", "sleep", "3600"]);
    let app = bundles::runnable(&name, &["/bin/busybox", "echo", "running without a registry"]);
    let archive = bundles::write(&node.images().join("pod.tar"), [pause, app]);
    daemon.wait_until("the images", || {
        [SANDBOX_IMAGE, &name]
            .iter()
            .all(|name| target.image_status(name).is_some())
            && target.leases().is_empty()
    });
    target.collect_garbage();

    let (said, containers) = target.block_on(run_pod(
        &target,
        &name,
        &node.path("logs"),
        app_command(&[], None),
    ));
    let said = said.unwrap();
    assert!(said.contains("running without a registry"), "{said}");
    // kubelet uses this to see which images are in use.
    let id = archive.images[1].manifests[0].config.to_string();
    let of_app = containers
        .iter()
        .filter(|made| made.image_id.as_ref() == Some(&id));
    assert_eq!(of_app.count(), 1, "{containers:?}");
    assert!(
        containers
            .iter()
            .any(|made| made.image == SANDBOX_IMAGE || made.image.contains("pause")),
        "{containers:?}"
    );
    assert_eq!(
        target.record(&id).map(|record| record.target.digest().clone()),
        Some(archive.images[1].root.clone())
    );
    daemon.stop();
}

/// Runs an image as the only container of a pod on the host's network. Returns the output and the
/// containers.
async fn run_pod(
    target: &Target,
    image: &str,
    logs: &Path,
    container: ContainerConfig,
) -> (Result<String, tonic::Status>, Vec<containerd::Container>) {
    let socket = format!("unix://{}", target.socket().display());
    let channel = Endpoint::from_shared(socket).unwrap().connect().await.unwrap();
    let mut runtime = RuntimeServiceClient::new(channel.clone());
    let image = image_spec(channel, image).await;
    let pod = pod_config(logs);
    let request = RunPodSandboxRequest {
        config: Some(pod.clone()),
        ..Default::default()
    };
    let sandbox = runtime
        .run_pod_sandbox(request)
        .await
        .unwrap()
        .into_inner()
        .pod_sandbox_id;
    // By now every containerd reports its sandbox image.
    let client = containerd::Client::connect(target.socket(), target.namespace())
        .await
        .unwrap();
    let cri = client.cri();
    assert_eq!(cri.sandbox_image().await.unwrap().as_deref(), Some(SANDBOX_IMAGE));
    let ended = async {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(ContainerConfig {
                image: Some(image),
                ..container
            }),
            sandbox_config: Some(pod),
        };
        let container_id = runtime.create_container(request).await?.into_inner().container_id;
        runtime
            .start_container(StartContainerRequest {
                container_id: container_id.clone(),
            })
            .await?;
        wait_for_exit(&mut runtime, container_id).await
    }
    .await;
    let containers = client.containers().await;
    let _ = runtime
        .stop_pod_sandbox(StopPodSandboxRequest {
            pod_sandbox_id: sandbox.clone(),
        })
        .await;
    let _ = runtime
        .remove_pod_sandbox(RemovePodSandboxRequest {
            pod_sandbox_id: sandbox,
        })
        .await;
    let said = ended.map(|()| fs::read_to_string(logs.join("app.log")).unwrap());
    (said, containers.unwrap())
}

/// Returns the container of a pod, with an image as a volume. Its command has these words, or those
/// of its image without any.
fn app_command(words: &[&str], volume: Option<&str>) -> ContainerConfig {
    let volume = volume.map(|image| Mount {
        container_path: VOLUME.to_owned(),
        readonly: true,
        image: Some(ImageSpec {
            image: image.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    });
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: "app".to_owned(),
            attempt: 0,
        }),
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        log_path: "app.log".to_owned(),
        mounts: volume.into_iter().collect(),
        ..Default::default()
    }
}

/// Mount point of an image volume.
const VOLUME: &str = "/volume";

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const OWN_LAYER: &str = "application/vnd.test.model.layer";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const OWN_CONFIG: &str = "application/vnd.test.model.config+json";

/// Returns a layer with a file that no other test has.
fn weights() -> Layer {
    Layer::files([LayerFile::new("weights", format!("weights {}", unique()))])
}

/// Returns a config that lists this layer, like an image's config.
fn listing(layer: &Layer) -> String {
    let rootfs = json!({"type": "layers", "diff_ids": [layer.digest().to_string()]});
    json!({"rootfs": rootfs, "own": unique()}).to_string()
}

/// Returns a data-only artifact.
fn artifact(config_type: &str, config: &str, layer: Layer) -> Manifest {
    Manifest::new(bundles::native())
        .no_platform()
        .member("artifactType", json!("application/vnd.test.model"))
        .config_media_type(config_type)
        .config_bytes(config)
        .with_layer(layer)
}

/// Lets a pod read an image as a volume. Returns the content, or the reason why the pod did not
/// start.
fn read_as_volume(target: &Target, node: &Node, app: &str, volume: &str) -> Result<String, String> {
    for name in [SANDBOX_IMAGE, app, volume] {
        wait_until("CRI has taken it in", || target.image_status(name).is_some());
    }
    let words = [
        "/bin/busybox",
        "sh",
        "-c",
        "/bin/busybox cat /volume/* 2>&1 || true",
    ];
    let container = app_command(&words, Some(volume));
    let (said, _) = target.block_on(run_pod(target, app, &node.path(&unique()), container));
    said.map_err(|status| status.message().to_owned())
}

/// Creates blobs and a record like an importer that takes everything.
fn put_anyway(target: &Target, manifest: Manifest) -> String {
    let archive = bundles::layout([Image::unnamed().manifest(manifest)]).build();
    let of = |digest: &Digest| archive.bytes_of(&archive.name_of(digest));
    let built = &archive.images[0];
    for digest in bundles::closure(&built.manifests[0]) {
        target.put_blob(&of(&digest.parse().unwrap()), &[]);
    }
    let (name, size) = (app(), of(&built.root).len() as u64);
    let descriptor = Descriptor::new(MediaType::ImageManifest, size, built.root.clone());
    target.put_record(&name, &descriptor, &[]);
    name
}

/// KEP-4639. An artifact gets a record if CRI mounts it with its files, and only then.
fn images_and_artifacts_that_list_their_layers_are_mounted_as_volumes(target: &Target) {
    let target = target.in_kubernetes();
    let node = Node::on(&target);
    let (app, data, model, listed) = (app(), self::app(), self::app(), self::app());
    let pause = bundles::runnable(SANDBOX_IMAGE, &["/bin/busybox", "sleep", "3600"]);
    let in_image = weights();
    let in_artifact = weights();
    let config = listing(&in_artifact);
    let bundle = [
        pause,
        bundles::runnable(&app, &["/bin/busybox", "true"]),
        Image::new(&data).manifest(Manifest::new(bundles::native()).with_layer(in_image)),
        Image::new(&listed).manifest(artifact(OWN_CONFIG, &config, in_artifact)),
        Image::new(&model).manifest(artifact(EMPTY, "{}", weights())),
    ];
    bundles::write(&node.path("pod.tar"), bundle);
    let answer = node.import([&node.path("pod.tar")]);
    assert!(
        answer
            .said()
            .contains("not a container image but application/vnd.test.model"),
        "{answer:?}"
    );
    assert!(target.record(&model).is_none());
    let has_volumes = !matches!(target.place(), Place::Real(Generation::V1_6 | Generation::V1_7));
    assert_eq!(target.record(&listed).is_some(), has_volumes);
    let read = |volume: &str| read_as_volume(&target, &node, &app, volume);
    if !has_volumes {
        assert!(read(&data).is_err(), "containerd has no image volumes before 2.1");
        return;
    }
    for volume in [&data, &listed] {
        let said = read(volume).unwrap();
        assert!(said.contains("weights "), "{said}");
    }
}

/// Artifacts as tools push them. This test fails as soon as a containerd mounts one with its files.
/// From then on it should get a record.
fn artifacts_that_do_not_list_their_layers_are_mounted_by_no_version(target: &Target) {
    let target = target.in_kubernetes();
    let node = Node::on(&target);
    let app = app();
    let pause = bundles::runnable(SANDBOX_IMAGE, &["/bin/busybox", "sleep", "3600"]);
    bundles::write(
        &node.path("pod.tar"),
        [pause, bundles::runnable(&app, &["/bin/busybox", "true"])],
    );
    node.import([&node.path("pod.tar")]).exits(0);
    let own = |layer: Layer| layer.media_type(OWN_LAYER);
    let in_own_type = weights();
    let config = listing(&in_own_type);
    let refused = Err("mismatched image rootfs and manifest layers");
    for (manifest, expected) in [
        (artifact(EMPTY, "{}", weights().media_type(TAR)), refused),
        (artifact(OWN_CONFIG, &config, own(in_own_type)), refused),
        // The volume is mounted without the files.
        (
            artifact(EMPTY, "{}", own(weights())),
            Ok("No such file or directory"),
        ),
    ] {
        let volume = put_anyway(&target, manifest);
        let read = read_as_volume(&target, &node, &app, &volume);
        match (&read, expected) {
            (Ok(said), Ok(words)) | (Err(said), Err(words)) => assert!(said.contains(words), "{said}"),
            _ => panic!("{expected:?} was expected: {read:?}"),
        }
    }
}

/// Returns the image as kubelet passes it with policy Never: by the id from CRI, without a pull.
async fn image_spec(channel: Channel, name: &str) -> ImageSpec {
    let spec = |image: String| ImageSpec {
        image,
        ..Default::default()
    };
    let request = ImageStatusRequest {
        image: Some(spec(name.to_owned())),
        verbose: false,
    };
    let status = ImageServiceClient::new(channel)
        .image_status(request)
        .await
        .unwrap()
        .into_inner();
    spec(status.image.expect("CRI has the image").id)
}

fn pod_config(logs: &Path) -> PodSandboxConfig {
    let host = NamespaceMode::Node.into();
    let options = NamespaceOption {
        network: host,
        ..Default::default()
    };
    let security = LinuxSandboxSecurityContext {
        namespace_options: Some(options),
        ..Default::default()
    };
    let name = unique();
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.clone(),
            uid: name,
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        log_directory: text(logs),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(security),
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn wait_for_exit(runtime: &mut RuntimeServiceClient<Channel>, id: String) -> Result<(), tonic::Status> {
    for _ in 0..3000 {
        let request = ContainerStatusRequest {
            container_id: id.clone(),
            verbose: false,
        };
        let status = runtime
            .container_status(request)
            .await?
            .into_inner()
            .status
            .expect("the answer has a status");
        if status.state == i32::from(ContainerState::ContainerExited) {
            assert_eq!(status.exit_code, 0, "{status:?}");
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the container does not end");
}

on_each_containerd!(
    cri_knows_the_image_by_tag_by_digest_and_by_both,
    a_name_that_moves_gives_cri_the_new_image_and_leaves_the_old,
);
on_each_real_containerd!(
    a_pod_starts_from_imported_images_without_any_registry,
    images_and_artifacts_that_list_their_layers_are_mounted_as_volumes,
);

/// Tests for the versions that have image volumes.
mod artifacts_that_do_not_list_their_layers_are_mounted_by_no_version {
    use crate::support::{Place, run_on};

    #[test]
    fn containerd_2_1() {
        run_on(
            Place::Real(lab::Generation::V2_1),
            super::artifacts_that_do_not_list_their_layers_are_mounted_by_no_version,
        );
    }

    #[test]
    fn containerd_2_3() {
        run_on(
            Place::Real(lab::Generation::V2_3),
            super::artifacts_that_do_not_list_their_layers_are_mounted_by_no_version,
        );
    }
}
