//! The files in `config/fleet` for engines inside a cluster: the Node Readiness Controller and the
//! system-upgrade-controller. Their objects have only keys of the published types, and the
//! containers that ask airgapd run.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use lab::Options;
use regex::Regex;
use serde_json::Value;
use workshop::own_image;

use crate::fleet_config::{documents, file, typed};
use crate::support::bundles::{self, image, native, text};
use crate::support::{Node, Own, Stage, on_its_own_containerd, unique};

/// The rule of the Node Readiness Controller (`api/v1alpha1` of its module, and the checks of its
/// CustomResourceDefinition).
mod readiness {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub(super) struct Rule {
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
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub(super) struct Spec {
        pub conditions: Vec<Condition>,
        pub enforcement_mode: Mode,
        pub node_selector: Selector,
        pub taint: Taint,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub(super) struct Condition {
        #[serde(rename = "type")]
        pub kind: String,
        pub required_status: Status,
    }

    #[derive(Debug, Deserialize, PartialEq, Eq)]
    pub(super) enum Status {
        True,
        False,
        Unknown,
    }

    #[derive(Debug, Deserialize, PartialEq, Eq)]
    #[serde(rename_all = "kebab-case")]
    pub(super) enum Mode {
        BootstrapOnly,
        Continuous,
    }

    /// The definition refuses an empty selector.
    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub(super) struct Selector {
        pub match_labels: BTreeMap<String, String>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Taint {
        pub key: String,
        pub effect: Effect,
    }

    #[derive(Debug, Deserialize, PartialEq, Eq)]
    pub(super) enum Effect {
        NoSchedule,
        PreferNoSchedule,
        NoExecute,
    }
}

#[test]
fn the_gate_of_the_scheduler_has_the_keys_of_its_types_and_its_parts_fit_together() {
    let text = file("node-readiness.yaml");
    let [rule, namespace, account, role, binding, reporter] = &*documents(&text) else {
        panic!("there are other objects");
    };
    let rule: readiness::Rule = serde_json::from_value(rule.clone()).expect("a rule");
    assert_eq!(rule.api_version, "readiness.node.x-k8s.io/v1alpha1");
    assert_eq!(
        (&*rule.kind, &*rule.metadata.name),
        ("NodeReadinessRule", "airgapd-images")
    );
    let readiness::Spec {
        conditions,
        enforcement_mode,
        node_selector,
        taint,
    } = rule.spec;
    let [condition] = &*conditions else {
        panic!("{conditions:?}");
    };
    assert_eq!(condition.required_status, readiness::Status::True);
    assert_eq!(enforcement_mode, readiness::Mode::BootstrapOnly);
    assert_eq!(taint.effect, readiness::Effect::NoSchedule);
    assert!(!node_selector.match_labels.is_empty());
    let name = taint
        .key
        .strip_prefix("readiness.k8s.io/")
        .expect("the prefix that the type asks for");
    assert!((1..=63).contains(&name.len()) && !name.contains('/'));
    assert!(
        text.contains(&format!("{}=:NoSchedule", taint.key)),
        "nodes register with this taint"
    );

    let namespace: Namespace = typed(namespace);
    let account: ServiceAccount = typed(account);
    let role: ClusterRole = typed(role);
    let binding: ClusterRoleBinding = typed(binding);
    let reporter: DaemonSet = typed(reporter);
    assert_eq!(binding.role_ref.name, role.metadata.name.clone().unwrap());
    let subject = &binding.subjects.unwrap()[0];
    assert_eq!(Some(&subject.name), account.metadata.name.as_ref());
    for of in [
        &subject.namespace,
        &account.metadata.namespace,
        &reporter.metadata.namespace,
    ] {
        assert_eq!(*of, namespace.metadata.name);
    }
    // The reporter reads the node, and writes its status.
    let rules: BTreeSet<_> = role
        .rules
        .unwrap()
        .into_iter()
        .map(|rule| (rule.resources, rule.verbs))
        .collect();
    let rule = |resource: &str, verb: &str| (Some(vec![resource.to_owned()]), vec![verb.to_owned()]);
    assert_eq!(
        rules,
        [rule("nodes", "get"), rule("nodes/status", "update")].into()
    );

    let pod = reporter.spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.service_account_name, account.metadata.name);
    assert_eq!(
        pod.host_network,
        Some(true),
        "airgapd listens on the node's loopback address"
    );
    assert_eq!(pod.tolerations.unwrap()[0].operator.as_deref(), Some("Exists"));
    let variables = pod.containers[0].env.clone().unwrap();
    let value = |name: &str| {
        let variable = variables.iter().find(|variable| variable.name == name).unwrap();
        variable.value.clone().unwrap_or_default()
    };
    assert_eq!(value("CONDITION_TYPE"), condition.kind);
    assert_eq!(value("CHECK_ENDPOINT"), "http://127.0.0.1:9799/ready");
    assert!(variables.iter().any(|variable| variable.name == "NODE_NAME"));
}

/// The plan of the system-upgrade-controller (`pkg/apis/upgrade.cattle.io/v1` of its module).
mod upgrade {
    use k8s_openapi::api::core::v1::SecurityContext;
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
        pub namespace: String,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub(super) struct Spec {
        pub version: String,
        pub concurrency: i64,
        pub job_active_deadline_secs: i64,
        pub node_selector: serde_json::Value,
        pub service_account_name: String,
        pub prepare: Container,
        pub cordon: bool,
        pub upgrade: Container,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub(super) struct Container {
        pub image: String,
        #[serde(default)]
        pub args: Vec<String>,
        #[serde(default)]
        pub volumes: Vec<Volume>,
        pub security_context: Option<SecurityContext>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Volume {
        pub name: String,
        pub source: String,
        pub destination: String,
    }
}

fn plan() -> upgrade::Plan {
    let document: Value = documents(&file("system-upgrade-plan.yaml")).remove(0);
    serde_json::from_value(document).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_plan_of_the_system_upgrade_controller_asks_for_the_release_that_it_installs() {
    let plan = plan();
    assert_eq!(plan.api_version, "upgrade.cattle.io/v1");
    assert_eq!(
        (&*plan.kind, &*plan.metadata.namespace),
        ("Plan", "system-upgrade")
    );
    assert!(!plan.metadata.name.is_empty());
    let upgrade::Spec {
        version,
        concurrency,
        job_active_deadline_secs,
        node_selector,
        service_account_name,
        prepare,
        cordon,
        upgrade,
    } = plan.spec;
    let image = format!("{}:{}", own_image::REPOSITORY, env!("CARGO_PKG_VERSION"));
    assert_eq!(prepare.image, image, "the image is the released one");
    assert_eq!(prepare.args, ["wait", "--release", &version, "--timeout", "30m"]);
    assert!(job_active_deadline_secs > 30 * 60, "the job outlives the wait");
    assert!(concurrency == 1 && cordon && !service_account_name.is_empty());
    assert!(node_selector["matchExpressions"].is_array(), "{node_selector}");
    // Without a tag, the controller takes the version of the plan.
    assert!(!upgrade.image.contains(':') && upgrade.args.is_empty() && upgrade.volumes.is_empty());
    assert!(upgrade.security_context.is_none());
    let misspelt =
        file("system-upgrade-plan.yaml").replace("jobActiveDeadlineSecs", "jobActiveDeadlineSeconds");
    assert!(serde_json::from_value::<upgrade::Plan>(documents(&misspelt).remove(0)).is_err());
}

/// Options of the containerd.
fn usual() -> Options {
    Options::default()
}

/// Runs the `prepare` container of the plan with these arguments, as the controller's job would.
fn prepare(own: &Own, node: &Node, image: &str, arguments: &[String]) -> Output {
    let container = plan().spec.prepare;
    let context = container.security_context.expect("the container is restricted");
    assert_eq!(context.run_as_user, Some(0));
    assert_eq!(
        context.capabilities.expect("a restriction").drop,
        Some(vec!["ALL".to_owned()])
    );
    let [volume] = &*container.volumes else {
        panic!("{:?}", container.volumes);
    };
    assert_eq!((&*volume.name, &*volume.source), ("airgapd", "/run/airgapd"));
    let mount = format!(
        "type=bind,src={},dst={},options=rbind:rw",
        text(&node.path("run")),
        volume.destination
    );
    let mut ctr = own.containerd.ctr_in(own.target.namespace());
    ctr.args(["run", "--rm", "--net-host", "--read-only", "--mount", &mount])
        .args(own.containerd.run_flags());
    for capability in DEFAULT_CAPABILITIES {
        ctr.args(["--cap-drop", capability]);
    }
    ctr.args([
        image,
        &format!("prepare-{}", unique()),
        &format!("/{}", own_image::PROGRAM),
    ])
    .args(arguments);
    ctr.output().expect("ctr runs")
}

/// Capabilities of a container of ctr.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// The container has no configuration and no state of airgapd. It has the control socket only.
fn a_prepare_container_asks_the_daemon_of_its_node_for_the_release(own: &mut Own) {
    let node = Node::on(&own.target);
    let (architecture, level) = native()["linux/".len()..]
        .split_once('/')
        .map_or((&native()["linux/".len()..], None), |(a, level)| (a, Some(level)));
    let variant = own_image::Variant {
        architecture,
        variant: level,
        files: crate::own_image::files(&node),
    };
    let bundle = node.path("airgapd-image.tar");
    let image = own_image::write(&bundle, "1.2.3", &[variant]).expect("the bundle is written");
    let version = plan().spec.version;
    let out = node.path("release");
    let made = ["bundle", "release", &version, &text(&bundle), "-o", &text(&out)];
    node.airgapd(made).exits(0);
    let daemon = node.start();
    node.drop_in(&out.join("airgapd-image.tar"));
    node.airgapd(["wait", "--release", &version]).exits(0);

    let ask = |release: &str| {
        // A test should not wait half an hour.
        let word = |word: &String| word.replace("30m", "1s").replace(&version, release);
        let arguments: Vec<_> = plan().spec.prepare.args.iter().map(word).collect();
        prepare(own, &node, &image, &arguments)
    };
    let there = ask(&version);
    assert!(there.status.success(), "{there:?}");
    let missing = ask("v9.9.9");
    assert_eq!(missing.status.code(), Some(6), "{missing:?}");
    let said = String::from_utf8_lossy(&[missing.stdout, missing.stderr].concat()).into_owned();
    assert!(said.contains("v9.9.9"), "{said}");
    daemon.stop();
    assert_eq!(
        ask(&version).status.code(),
        Some(7),
        "without a daemon the node stays as it is"
    );
}

/// Shows the path of the socket in the container.
#[test]
fn the_prepare_container_finds_the_socket_where_the_program_looks_by_default() {
    let volume = &plan().spec.prepare.volumes[0];
    let runtime = node::settings::Settings::default().runtime_dir;
    assert_eq!(Path::new(&volume.destination), runtime);
    assert_eq!(volume.source, volume.destination);
}

/// The check of the boot, as greenboot and the unit run it.
fn the_check_of_the_boot_asks_for_the_required_images_only(own: &mut Own) {
    let stage = Stage::on(&own.containerd);
    let script = file("boot-check.sh");
    // A test should not wait ten minutes.
    let impatient = script.replace("patience=600\n", "patience=0\n");
    assert_ne!(script, impatient);
    stage.write("boot-check.sh", impatient);
    stage.write(
        "/etc/airgapd/config.yaml",
        "require: {images: [/etc/airgapd/images.txt]}\n",
    );
    stage.write("/etc/airgapd/images.txt", "registry.test/one:1\n");
    let unit = lab::workspace().join("systemd/airgapd.service");
    stage
        .types(&format!(
            "install -m 0755 /run/program/airgapd /usr/bin/airgapd && cp {} /etc/systemd/system/",
            unit.display()
        ))
        .exits(0);
    stage
        .types("mkdir -p /var/lib/k0s/images && systemctl start airgapd")
        .exits(0);
    stage.types("airgapd wait --required --allow-empty").exits(4);
    let said = stage.types("sh boot-check.sh").exits(1).stdout;
    assert!(said.contains("not all required images are in place"), "{said}");
    assert!(said.contains("registry.test/one:1"), "{said}");

    // The daemon also requires the image with which this containerd starts pods.
    let sandbox = Options::default().sandbox_image;
    bundles::write(
        &stage.at("one.tar"),
        [image("registry.test/one:1"), image(&sandbox)],
    );
    stage.write("bad.tar", "no bundle\n".repeat(200));
    stage.types("cp one.tar bad.tar /var/lib/k0s/images/").exits(0);
    stage.types("airgapd wait --timeout 60s").exits(1);
    stage.types("airgapd wait --bundle one.tar --required").exits(0);
    stage.types("sh boot-check.sh").exits(0);

    stage.types("systemctl stop airgapd").exits(0);
    stage.types("sh boot-check.sh").exits(1);
}

on_its_own_containerd! {
    usual;
    a_prepare_container_asks_the_daemon_of_its_node_for_the_release,
    the_check_of_the_boot_asks_for_the_required_images_only,
}

/// A daemon that does not answer makes each try as long as the pause between two.
#[test]
fn the_check_of_the_boot_ends_in_time_if_each_question_takes_long() {
    let script = file("boot-check.sh");
    let number = |pattern: &str, text: &str| -> u64 {
        let found = Regex::new(pattern).expect("a pattern").captures(text);
        found.expect("the file has the number")[1]
            .parse()
            .expect("a number")
    };
    let patience = number(r"(?m)^patience=(\d+)$", &script);
    let minutes = number(
        r"(?m)^TimeoutStartSec=(\d+)min$",
        &file("airgapd-boot-check.service"),
    );
    assert!(patience + 60 < minutes * 60, "systemd ends the script first");

    let folder = tempfile::tempdir().expect("a folder");
    let program = |name: &str, script: &str| {
        let path = folder.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("our file");
    };
    program(
        "airgapd",
        "echo asked >> \"$0.log\"\nPATH=/usr/bin:/bin sleep 2\nexit 6",
    );
    // Only the questions take time.
    program("sleep", "exit 0");
    let script = script.replace(&format!("patience={patience}\n"), "patience=3\n");
    let output = Command::new("timeout")
        .args(["60", "sh", "-c", &script])
        .env("PATH", format!("{}:/usr/bin:/bin", folder.path().display()))
        .output()
        .expect("timeout comes with coreutils");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let asked = fs::read_to_string(folder.path().join("airgapd.log")).expect("a log");
    assert!((1..=2).contains(&asked.lines().count()), "{asked}");
}

/// A wait for everything would let one bad file hold back a fleet.
#[test]
fn no_recipe_waits_without_a_subject() {
    let mut files = vec![lab::workspace().join("docs/fleets.md")];
    let mut folders = vec![lab::workspace().join("config/fleet")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { &mut folders } else { &mut files }.push(path);
        }
    }
    let wait = Regex::new(r#"(airgapd|args:)[\s"',\[]+wait\b(?<rest>.*)"#).expect("a pattern");
    // The role adds its subjects to the list, and has no wait without one.
    let subject =
        Regex::new(r"--(required|release|digest|bundle|all)\b|\+ airgapd_wanted").expect("a pattern");
    let mut waits = 0;
    for path in files {
        let text = std::fs::read_to_string(&path).expect("a file");
        for found in wait.captures_iter(&text) {
            waits += 1;
            assert!(
                subject.is_match(&found["rest"]),
                "{}: {}",
                path.display(),
                &found[0]
            );
        }
    }
    assert!(waits > 10, "the pattern finds {waits}");
}
