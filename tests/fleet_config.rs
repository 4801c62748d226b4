//! The files for many nodes in `config/fleet`: the DaemonSet, run the way kubelet runs it, and the
//! configuration of k0sctl.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bundle::fixtures::{Image, Layer, LayerFile};
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    self as cri, ContainerConfig, ContainerMetadata, ContainerStatusRequest, CreateContainerRequest,
    ExecSyncRequest, ImageSpec, ImageStatusRequest, KeyValue, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata, RunPodSandboxRequest, SecurityProfile,
    StartContainerRequest, StopContainerRequest, StopPodSandboxRequest,
};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, Namespace, PodSpec};
use lab::{Generation, Options, workspace};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};
use workshop::own_image;

use crate::support::bundles::{self, image, marker, native, text};
use crate::support::{Node, Own, Stage, Target, on_its_own_containerd, run_on_own, unique, wait_until};

/// Image with which the private containerds start pods.
const SANDBOX_IMAGE: &str = "airgapd.test/pause:latest";

/// Returns the text of a file in `config/fleet`.
pub(crate) fn file(name: &str) -> String {
    let path = workspace().join("config/fleet").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the documents of a YAML file.
pub(crate) fn documents(text: &str) -> Vec<Value> {
    serde_yaml::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).expect("the document is YAML"))
        .collect()
}

/// Parses an object as its type. Fails on a key that the type lacks, since the API server would
/// drop it or warn about it.
pub(crate) fn typed<T: DeserializeOwned + serde::Serialize>(document: &Value) -> T {
    let object: T = serde_json::from_value(document.clone()).expect("the object has the fields of its kind");
    let again = serde_json::to_value(&object).expect("the file can be written");
    assert_eq!(&again, document, "the object has unknown keys");
    object
}

/// Returns the only DaemonSet. Its pods have a single container.
fn daemon_set() -> (Namespace, DaemonSet) {
    let documents = documents(&file("daemonset.yaml"));
    let [namespace, daemon_set] = documents.as_slice() else {
        panic!("there are {} objects", documents.len());
    };
    (typed(namespace), typed(daemon_set))
}

fn pod_spec(daemon_set: &DaemonSet) -> (PodSpec, Container) {
    let spec = daemon_set.spec.clone().expect("there is a spec");
    let pod = spec.template.spec.expect("there is a pod");
    let [container] = pod.containers.as_slice() else {
        panic!("there are {} containers", pod.containers.len());
    };
    (pod.clone(), container.clone())
}

#[test]
fn the_daemon_set_is_what_its_types_say_and_consistent() {
    let (namespace, daemon_set) = daemon_set();
    let (pod, container) = pod_spec(&daemon_set);
    assert_eq!(daemon_set.metadata.namespace, namespace.metadata.name);
    let spec = daemon_set.spec.unwrap();
    assert_eq!(spec.selector.match_labels, spec.template.metadata.unwrap().labels);
    let image = format!("{}:{}", own_image::REPOSITORY, env!("CARGO_PKG_VERSION"));
    assert_eq!(container.image, Some(image), "the image is the released one");
    assert_eq!(container.image_pull_policy.as_deref(), Some("Never"));
    let volumes: Vec<_> = pod
        .volumes
        .unwrap()
        .into_iter()
        .map(|volume| volume.name)
        .collect();
    let mounts: Vec<_> = container
        .volume_mounts
        .unwrap()
        .into_iter()
        .map(|mount| mount.name)
        .collect();
    assert_eq!(volumes, mounts);
    // A node that is not ready, or has any taint, gets its images too.
    let tolerations = pod.tolerations.unwrap();
    assert!(
        tolerations
            .iter()
            .any(|t| t.operator.as_deref() == Some("Exists") && t.key.is_none() && t.effect.is_none())
    );
}

#[test]
fn a_misspelt_key_of_a_manifest_is_noticed() {
    let misspelt = file("daemonset.yaml").replace("imagePullPolicy", "imagePulPolicy");
    let document = documents(&misspelt).remove(1);
    let read = std::panic::catch_unwind(|| typed::<DaemonSet>(&document));
    assert!(read.is_err());
}

/// The manifest's container in a pod on the host's network, as kubelet would run it. The host's
/// folders are below a folder of the test.
struct Pod<'t> {
    target: &'t Target,
    runtime: RuntimeServiceClient<Channel>,
    sandbox: String,
    container: String,
    logs: PathBuf,
}

/// Returns the path of a host folder in the test.
fn on_host(node: &Node, path: &str) -> PathBuf {
    node.path("host").join(path.trim_start_matches('/'))
}

impl Pod<'_> {
    fn start<'t>(target: &'t Target, node: &Node, content: &Path, metrics: &str) -> Pod<'t> {
        let (pod, container) = pod_spec(&daemon_set().1);
        assert_eq!(pod.host_network, Some(true));
        let logs = node.path("logs");
        let sandbox = sandbox_config(&logs);
        let config = |image: ImageSpec| container_config(&pod, &container, node, content, metrics, image);
        target.block_on(async {
            let channel = channel(target).await;
            let image = image_spec(
                channel.clone(),
                container.image.as_deref().expect("the container has an image"),
            )
            .await;
            let mut runtime = RuntimeServiceClient::new(channel);
            let request = RunPodSandboxRequest {
                config: Some(sandbox.clone()),
                ..Default::default()
            };
            let pod_sandbox_id = runtime
                .run_pod_sandbox(request)
                .await
                .unwrap()
                .into_inner()
                .pod_sandbox_id;
            let request = CreateContainerRequest {
                pod_sandbox_id: pod_sandbox_id.clone(),
                config: Some(config(image)),
                sandbox_config: Some(sandbox),
            };
            let created = runtime.create_container(request).await.unwrap().into_inner();
            let request = StartContainerRequest {
                container_id: created.container_id.clone(),
            };
            runtime.start_container(request).await.unwrap();
            Pod {
                target,
                runtime,
                sandbox: pod_sandbox_id,
                container: created.container_id,
                logs,
            }
        })
    }

    /// Runs a command in the container like a probe. Returns its exit code and its output.
    fn exec(&mut self, command: &[String]) -> (i32, String) {
        let request = ExecSyncRequest {
            container_id: self.container.clone(),
            cmd: command.to_vec(),
            timeout: 60,
        };
        let answer = self
            .target
            .block_on(self.runtime.exec_sync(request))
            .unwrap()
            .into_inner();
        let said = [answer.stdout, answer.stderr].concat();
        (answer.exit_code, String::from_utf8_lossy(&said).into_owned())
    }

    /// Stops the container like kubelet, and returns its exit code.
    fn stop(&mut self, seconds: i64) -> i32 {
        let (container_id, pod_sandbox_id) = (self.container.clone(), self.sandbox.clone());
        let runtime = &mut self.runtime;
        self.target.block_on(async {
            let request = StopContainerRequest {
                container_id: container_id.clone(),
                timeout: seconds,
            };
            runtime.stop_container(request).await.unwrap();
            let request = ContainerStatusRequest {
                container_id,
                verbose: false,
            };
            let status = runtime
                .container_status(request)
                .await
                .unwrap()
                .into_inner()
                .status;
            let request = StopPodSandboxRequest { pod_sandbox_id };
            runtime.stop_pod_sandbox(request).await.unwrap();
            status.expect("the answer has a status").exit_code
        })
    }

    fn log(&self) -> String {
        fs::read_to_string(self.logs.join("airgapd.log")).unwrap_or_default()
    }
}

async fn channel(target: &Target) -> Channel {
    let socket = format!("unix://{}", target.socket().display());
    Endpoint::from_shared(socket).unwrap().connect().await.unwrap()
}

/// Returns the image as kubelet passes it with policy Never: by the id from CRI.
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
    spec(status.image.unwrap_or_else(|| panic!("CRI has no {name}")).id)
}

fn host_network() -> NamespaceOption {
    NamespaceOption {
        network: NamespaceMode::Node.into(),
        ..Default::default()
    }
}

fn sandbox_config(logs: &Path) -> PodSandboxConfig {
    let name = unique();
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.clone(),
            uid: name,
            namespace: "airgapd".to_owned(),
            attempt: 0,
        }),
        log_directory: text(logs),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(host_network()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Returns the container as kubelet requests it from CRI (pkg/kubelet/kuberuntime). The probe uses
/// a free port, and the content is in the folder of the test's containerd.
fn container_config(
    pod: &PodSpec,
    container: &Container,
    node: &Node,
    content: &Path,
    metrics: &str,
    image: ImageSpec,
) -> ContainerConfig {
    let volumes = pod.volumes.clone().unwrap_or_default();
    let mount = |mount: &k8s_openapi::api::core::v1::VolumeMount| {
        let volume = volumes
            .iter()
            .find(|volume| volume.name == mount.name)
            .expect("the mount has a volume");
        let path = &volume
            .host_path
            .as_ref()
            .expect("the volume is a host folder")
            .path;
        let (container_path, host_path) = match volume.name.as_str() {
            "content" => (text(content), text(content)),
            _ => (mount.mount_path.clone(), text(&on_host(node, path))),
        };
        cri::Mount {
            container_path,
            host_path,
            readonly: mount.read_only.unwrap_or_default(),
            ..Default::default()
        }
    };
    let env = container.env.iter().flatten().map(|variable| KeyValue {
        key: variable.name.clone(),
        value: match variable.name.as_str() {
            "AIRGAPD_METRICS_ADDRESS" => metrics.to_owned(),
            _ => variable.value.clone().expect("the manifest has the value"),
        },
    });
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: container.name.clone(),
            attempt: 0,
        }),
        image: Some(image),
        command: container.command.clone().unwrap_or_default(),
        args: container.args.clone().unwrap_or_default(),
        envs: env.collect(),
        mounts: container.volume_mounts.iter().flatten().map(mount).collect(),
        log_path: "airgapd.log".to_owned(),
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources::default()),
            security_context: Some(security_context(container)),
        }),
        ..Default::default()
    }
}

fn security_context(container: &Container) -> LinuxContainerSecurityContext {
    let wanted = container
        .security_context
        .clone()
        .expect("the container is restricted");
    let capabilities = wanted.capabilities.expect("the capabilities are restricted");
    let profile = wanted.seccomp_profile.expect("there is one");
    assert_eq!(profile.type_, "RuntimeDefault");
    LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: capabilities.add.unwrap_or_default(),
            drop_capabilities: capabilities.drop.unwrap_or_default(),
            ..Default::default()
        }),
        namespace_options: Some(host_network()),
        run_as_user: wanted.run_as_user.map(|value| cri::Int64Value { value }),
        readonly_rootfs: wanted.read_only_root_filesystem.unwrap_or_default(),
        no_new_privs: wanted.allow_privilege_escalation == Some(false),
        seccomp: Some(SecurityProfile::default()),
        ..Default::default()
    }
}

/// Options of the containerd.
fn usual() -> Options {
    Options::default()
}

/// Only kubelet starts programs on this node. The image is there, and the manifest's pod does the
/// rest.
fn a_pod_of_the_daemon_set_imports_what_is_dropped(own: &mut Own) {
    let target = &own.target;
    let node = Node::on(target);
    let container = pod_spec(&daemon_set().1).1;
    bring(own, &node);
    // The host's folders, with containerd in the place that k0s uses.
    for volume in pod_spec(&daemon_set().1).0.volumes.unwrap() {
        fs::create_dir_all(on_host(&node, &volume.host_path.unwrap().path)).unwrap();
    }
    let socket = on_host(&node, "/run/k0s/containerd.sock");
    fs::hard_link(target.socket(), &socket).unwrap();

    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let content = own.containerd.root().join("io.containerd.content.v1.content");
    let mut pod = Pod::start(target, &node, &content, &format!("127.0.0.1:{port}"));
    let ready = container.readiness_probe.unwrap().exec.unwrap().command.unwrap();
    let mut said = String::new();
    wait_until("the pod is ready, with no bundles", || {
        let (code, text) = pod.exec(&ready);
        said = format!("{code}: {text}\n{}", pod.log());
        code == 0
    });

    let images = on_host(&node, "/var/lib/k0s/images");
    let (bundle, name) = marker(images.join(".marker.tar"));
    // The file belongs to another user and only that user can read it.
    chown_to_nobody(&bundle);
    // The readiness of an empty folder is no answer about the content.
    let inspected = node.airgapd(["inspect", "-o", "json", &text(&bundle)]).json();
    let content = inspected["digest"].as_str().expect("a digest");
    let gate = ["airgapd", "wait", "--timeout", "1s", "--digest", content].map(str::to_owned);
    assert_eq!((pod.exec(&ready).0, pod.exec(&gate).0), (0, 6), "{}", pod.log());
    fs::rename(&bundle, images.join("marker.tar")).unwrap();
    let mut answer = (1, String::new());
    wait_until("the pod is ready again", || {
        answer = pod.exec(&ready);
        answer.0 == 0
    });
    assert!(
        answer.1.contains("1 bundle in place"),
        "{answer:?}\n{}",
        pod.log()
    );
    assert!(target.is_pinned(&name));
    assert_eq!(pod.exec(&gate).0, 0, "{}", pod.log());
    let live = container.liveness_probe.unwrap().http_get.unwrap();
    http_get(port, live.path.as_deref().unwrap());
    let metrics = http_get(port, "/metrics");
    assert!(metrics.contains("airgapd_bundles{state=\"done\"} 1"), "{metrics}");
    let (code, inside) = pod.exec(&["/usr/bin/airgapd", "status"].map(str::to_owned));
    assert_eq!(code, 0, "{inside}");

    let of_metrics = on_host(&node, "/run/airgapd/airgapd.prom");
    assert!(of_metrics.is_file());

    let grace = pod_spec(&daemon_set().1)
        .0
        .termination_grace_period_seconds
        .unwrap();
    assert_eq!(pod.stop(grace), 0, "{}", pod.log());
    assert!(on_host(&node, "/var/lib/airgapd/state.json").is_file());
    assert!(
        !of_metrics.exists(),
        "the file would still report the node as healthy"
    );
}

/// Imports the images of the pod without airgapd, like k0s's importer or an operator with `ctr`.
fn bring(own: &Own, node: &Node) {
    let platform = native().trim_start_matches("linux/");
    let (architecture, variant) = platform
        .split_once('/')
        .map_or((platform, None), |(a, v)| (a, Some(v)));
    let bundle = node.path("airgapd-image.tar");
    let variant = own_image::Variant {
        architecture,
        variant,
        files: crate::own_image::files(node),
    };
    own_image::write(&bundle, env!("CARGO_PKG_VERSION"), &[variant]).unwrap();
    let busybox = fs::read(lab::parts::busybox().unwrap()).unwrap();
    let pause = Image::new(SANDBOX_IMAGE)
        .platform(native())
        .entrypoint(&["/bin/busybox", "sleep", "3600"])
        .with_layer(Layer::files([
            LayerFile::folder("bin/"),
            LayerFile::executable("bin/busybox", busybox),
        ]));
    bundles::write(&node.path("pause.tar"), [pause]);
    for file in ["airgapd-image.tar", "pause.tar"] {
        own.target.ctr(&["images", "import", &text(&node.path(file))]);
    }
    let name = format!("{}:{}", own_image::REPOSITORY, env!("CARGO_PKG_VERSION"));
    wait_until("CRI has the image", || own.target.image_status(&name).is_some());
}

fn chown_to_nobody(path: &Path) {
    use std::os::unix::fs::{PermissionsExt, chown};
    chown(path, Some(65534), Some(65534)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn http_get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
}

on_its_own_containerd!(usual; a_pod_of_the_daemon_set_imports_what_is_dropped);

/// The keys of k0sctl's configuration (pkg/apis/k0sctl.k0sproject.io/v1beta1) that this project
/// uses. k0sctl refuses unknown keys, and so does this type.
mod k0sctl {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub(super) struct Cluster {
        pub api_version: String,
        pub kind: String,
        pub metadata: Metadata,
        pub spec: Spec,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Metadata {
        pub name: String,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Spec {
        pub k0s: K0s,
        pub hosts: Vec<Host>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct K0s {
        pub version: String,
        /// The configuration of k0s. Another test reads it with `airgapd list-images`.
        pub config: serde_json::Value,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub(super) struct Host {
        pub role: Role,
        pub upload_binary: bool,
        pub ssh: Ssh,
        #[serde(default)]
        pub files: Vec<File>,
        #[serde(default)]
        pub hooks: BTreeMap<Action, BTreeMap<Stage, Vec<String>>>,
    }

    #[derive(Debug, Deserialize, PartialEq, Eq)]
    #[serde(rename_all = "lowercase")]
    pub(super) enum Role {
        Controller,
        Worker,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub(super) struct Ssh {
        pub address: std::net::IpAddr,
        pub user: String,
        pub key_path: String,
    }

    /// An uploaded file: `src` or `data`, to `dst` or into `dstDir`.
    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub(super) struct File {
        pub name: String,
        pub src: Option<String>,
        pub data: Option<String>,
        pub dst: Option<String>,
        pub dst_dir: Option<String>,
        pub perm: String,
    }

    /// The actions that have hooks. k0sctl silently ignores hooks for other actions.
    #[derive(Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
    #[serde(rename_all = "lowercase")]
    pub(super) enum Action {
        Connect,
        Apply,
        Install,
        Upgrade,
        Backup,
        Reset,
    }

    #[derive(Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
    #[serde(rename_all = "lowercase")]
    pub(super) enum Stage {
        Before,
        After,
    }
}

fn cluster() -> k0sctl::Cluster {
    serde_yaml::from_str(&file("k0sctl.yaml")).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_configuration_of_k0sctl_is_one_and_brings_every_worker_the_same() {
    let text = file("k0sctl.yaml");
    assert!(
        !text.contains('$'),
        "k0sctl would replace it with a variable of the caller"
    );
    assert!(serde_yaml::from_str::<k0sctl::Cluster>(&text.replace("dstDir:", "dst_dir:")).is_err());
    assert!(serde_yaml::from_str::<k0sctl::Cluster>(&text.replace("install:", "instal:")).is_err());

    let cluster = cluster();
    assert_eq!(cluster.api_version, "k0sctl.k0sproject.io/v1beta1");
    assert_eq!(cluster.kind, "Cluster");
    assert_eq!(cluster.metadata.name, "airgapped");
    assert!(cluster.spec.k0s.version.starts_with('v'));
    assert_eq!(
        cluster.spec.k0s.config["spec"]["images"]["default_pull_policy"],
        "Never"
    );
    let workers: Vec<_> = cluster
        .spec
        .hosts
        .iter()
        .filter(|host| host.role == k0sctl::Role::Worker)
        .collect();
    assert!(workers.len() > 1);
    for worker in &workers {
        assert_eq!(format!("{:?}", worker.files), format!("{:?}", workers[0].files));
        assert_eq!(worker.hooks, workers[0].hooks);
    }
    for host in &cluster.spec.hosts {
        assert!(host.upload_binary && host.ssh.user == "root" && !host.ssh.key_path.is_empty());
        assert!(!host.ssh.address.is_unspecified());
    }
    for file in &workers[0].files {
        assert!(
            !file.name.is_empty() && file.src.is_some() != file.data.is_some(),
            "{file:?}"
        );
        assert!(file.dst.is_some() != file.dst_dir.is_some(), "{file:?}");
        assert!(u32::from_str_radix(&file.perm, 8).is_ok(), "{file:?}");
    }
}

/// Runs the hooks like k0sctl. The workers are new, have all images of the next release, or lack
/// some.
#[test]
fn the_hooks_of_k0sctl_let_nothing_go_on_before_all_images_are_there() {
    use k0sctl::{Action, Stage as When};
    run_on_own(Generation::V2_1, &Options::default(), |own| {
        let stage = Stage::on(&own.containerd);
        let cluster = cluster();
        let worker = cluster
            .spec
            .hosts
            .iter()
            .find(|host| host.role == k0sctl::Role::Worker)
            .unwrap();
        let hooks = |action: Action, when: When, timeout: &str| {
            let hooks = worker.hooks[&action][&when].iter();
            // A test should not wait half an hour for a timeout.
            hooks
                .map(|hook| hook.replace("30m", timeout).replace("10m", timeout))
                .collect::<Vec<_>>()
        };
        let run = |action: Action, when: When, timeout: &str, exit: i32| {
            let command = hooks(action, when, timeout).join(" &&\n");
            stage.types(&command).exits(exit).stdout
        };
        upload(&stage, worker);
        // k0s's containerd appears when k0s starts. This test leaves out k0s's own importer.
        stage
            .types("mkdir /run/k0s && echo 'coexistence: exclusive' >> /etc/airgapd/config.yaml")
            .exits(0);

        // A new worker: first there is nothing to wait for, then everything.
        run(Action::Apply, When::Before, "5s", 0);
        run(Action::Install, When::After, "1s", 3);
        stage.types("ln -s /run/containerd/containerd.sock /run/k0s/ && touch /etc/systemd/system/k0sworker.service").exits(0);
        stage.types("echo 'ExecStart=sleep infinity' > /etc/systemd/system/k0sworker.service && systemctl start k0sworker").exits(0);
        let said = run(Action::Install, When::After, "60s", 0);
        assert!(
            said.contains("1 bundle in place, the required image is there"),
            "{said}"
        );

        // The bundle of the next release lacks an image, so the upgrade does not start.
        stage.write(
            "/etc/airgapd/images.txt",
            "registry.test/one:1\nregistry.test/two:1\n",
        );
        let said = run(Action::Apply, When::Before, "60s", 4);
        assert!(said.contains("registry.test/two:1"), "{said}");
        bundles::write(&stage.at("two.tar"), [image("registry.test/two:1")]);
        stage.types("cp two.tar /var/lib/k0s/images/").exits(0);
        run(Action::Apply, When::Before, "60s", 0);
        run(Action::Upgrade, When::After, "60s", 0);
        run(Action::Reset, When::Before, "1s", 0);
        stage.types("systemctl is-active airgapd").exits(3);
    });
}

/// Puts the files of a worker into the places that k0sctl uses.
fn upload(stage: &Stage, worker: &k0sctl::Host) {
    bundles::write(&stage.at("one.tar"), [image("registry.test/one:1")]);
    stage.write("/etc/airgapd/images.txt", "");
    stage.write("images.txt", "registry.test/one:1\n");
    for file in &worker.files {
        let source = match (file.src.as_deref(), &file.data) {
            (Some("../../bin/airgapd"), _) => env!("CARGO_BIN_EXE_airgapd").to_owned(),
            (Some("bundles/*.tar"), _) => "one.tar".to_owned(),
            (Some("images.txt"), _) => "images.txt".to_owned(),
            (Some(path), _) => text(
                &workspace()
                    .join("config/fleet")
                    .join(path)
                    .canonicalize()
                    .unwrap(),
            ),
            (None, data) => {
                stage.write("data", data.as_deref().unwrap());
                "data".to_owned()
            }
        };
        let place = match (&file.dst, &file.dst_dir) {
            (Some(file), _) => file.clone(),
            (None, folder) => format!("{}/", folder.as_deref().unwrap()),
        };
        let folder = place.rsplit_once('/').unwrap().0;
        let perm = &file.perm;
        stage
            .types(&format!(
                "mkdir -p {folder} && install -m {perm} {source} {place}"
            ))
            .exits(0);
    }
}

/// The objects of k0s' autopilot, with the keys of its types (`pkg/apis/autopilot/v1beta2`).
mod autopilot {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub(super) struct Plan {
        pub api_version: String,
        pub kind: String,
        pub metadata: Metadata,
        pub spec: Spec,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Metadata {
        pub name: String,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Spec {
        pub id: String,
        pub timestamp: String,
        pub commands: Vec<Command>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase", deny_unknown_fields)]
    pub(super) enum Command {
        AirgapUpdate {
            version: String,
            platforms: BTreeMap<String, Resource>,
            workers: Target,
        },
        K0sUpdate {
            version: String,
            platforms: BTreeMap<String, Resource>,
            targets: Targets,
        },
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Resource {
        pub url: String,
        pub sha256: String,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Targets {
        pub controllers: Target,
        pub workers: Target,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Target {
        #[serde(default)]
        pub limits: BTreeMap<String, usize>,
        pub discovery: Discovery,
    }

    /// The nodes of a target. The other kind, a list of names, would not follow the cluster.
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Discovery {
        pub selector: Selector,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Selector {
        pub labels: Option<String>,
        pub fields: Option<String>,
    }
}

/// autopilot knows a plan by its name, and reports the plan of the images as completed after the
/// download. So the upgrade has a plan of its own.
#[test]
fn the_plans_of_autopilot_bring_the_images_and_then_the_same_release_of_k0s() {
    use autopilot::{Command, Plan, Target as At};
    let parse = |text: &str| serde_json::from_value::<Plan>(documents(text).remove(0));
    let (images, k0s) = (file("autopilot-images.yaml"), file("autopilot-k0s.yaml"));
    assert!(parse(&images.replace("selector:", "selectors:")).is_err());
    assert!(parse(&k0s.replace("k0supdate:", "k0sUpdate:")).is_err());
    let is_all = |target: &At| {
        let is_known = target.limits.keys().all(|key| key == "concurrent");
        let selector = &target.discovery.selector;
        is_known && selector.labels.is_none() && selector.fields.is_none()
    };
    let [images, k0s] = [images, k0s].map(|text| parse(&text).unwrap_or_else(|error| panic!("{error}")));
    for plan in [&images, &k0s] {
        assert_eq!(plan.api_version, "autopilot.k0sproject.io/v1beta2");
        assert_eq!((&*plan.kind, &*plan.metadata.name), ("Plan", "autopilot"));
        assert!(!plan.spec.timestamp.is_empty());
    }
    assert_ne!(images.spec.id, k0s.spec.id);
    let [
        Command::AirgapUpdate {
            version,
            platforms,
            workers,
        },
    ] = &*images.spec.commands
    else {
        panic!("{images:?}");
    };
    let [
        Command::K0sUpdate {
            version: upgrade,
            platforms: programs,
            targets,
        },
    ] = &*k0s.spec.commands
    else {
        panic!("{k0s:?}");
    };
    assert_eq!([version, upgrade], [&cluster().spec.k0s.version; 2]);
    assert!(platforms.keys().eq(programs.keys()), "{platforms:?} {programs:?}");
    for resource in platforms.values().chain(programs.values()) {
        assert!(resource.url.starts_with("http"), "{resource:?}");
        assert_eq!(resource.sha256.len(), 64, "{resource:?}");
    }
    assert!(platforms.values().all(|bundle| bundle.url.ends_with(".tar")));
    assert!(is_all(workers) && is_all(&targets.controllers) && is_all(&targets.workers));
}

/// The block of the document ends at the first failure, in the shells that operators have.
#[test]
fn the_gate_between_the_plans_of_autopilot_stops_at_the_first_failure() {
    let page = fs::read_to_string(workspace().join("docs/fleets.md")).unwrap();
    let block = page.split("## k0s autopilot").nth(1).unwrap();
    let block = block
        .split("```sh\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    // kubectl and ssh write down their words. They fail at the words in $FAILS.
    let stand_in = "#!/bin/sh\nline=\"${0##*/} $*\"\necho \"$line\" >>typed\n\
        case $line in *\"$FAILS\"*) exit 1 ;; *'get nodes'*) printf '%s' \"$NODES\" ;; esac\n";
    for name in ["kubectl", "ssh"] {
        let program = folder.path().join(name);
        fs::write(&program, stand_in).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", text(folder.path()), std::env::var("PATH").unwrap());
    let typed = |shell: &str, fails: &str, nodes: &str| {
        let mut shell = Command::new(shell);
        shell
            .arg("-s")
            .current_dir(folder.path())
            .env("PATH", &path)
            .env("FAILS", fails)
            .env("NODES", nodes)
            .stdin(Stdio::piped());
        let mut child = shell.spawn().unwrap();
        child.stdin.take().unwrap().write_all(block.as_bytes()).unwrap();
        let ended = child.wait().unwrap();
        let typed = folder.path().join("typed");
        let lines = fs::read_to_string(&typed).unwrap();
        fs::remove_file(typed).unwrap();
        (ended.success(), lines)
    };
    let upgrade = "kubectl delete plan autopilot\nkubectl apply -f config/fleet/autopilot-k0s.yaml\n";
    for shell in ["bash", "dash"] {
        let (is_done, lines) = typed(shell, "nothing fails", "one two");
        assert!(is_done && lines.ends_with(upgrade), "{shell}: {lines}");
        for node in ["one", "two"] {
            let wait = format!("ssh -n root@{node} airgapd wait --digest sha256:");
            assert!(lines.contains(&wait), "{shell}: {lines}");
        }
        for (fails, nodes) in [
            ("autopilot-images.yaml", "one"),
            ("kubectl wait", "one"),
            ("get nodes", "one"),
            ("nothing fails", ""),
            ("root@one", "one two"),
            ("root@two", "one two"),
        ] {
            let (is_done, lines) = typed(shell, fails, nodes);
            assert!(!is_done, "{shell}: {fails}: {lines}");
            assert!(!lines.contains("delete plan"), "{shell}: {fails}: {lines}");
            assert!(!lines.contains("autopilot-k0s"), "{shell}: {fails}: {lines}");
        }
    }
}
