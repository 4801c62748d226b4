//! `airgapd list-images`: the images that a cluster will need, before it exists. It needs no
//! containerd.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::json;

use crate::support::Node;
use crate::support::node::{Answer, program};

const NEWEST: &str = "v1.36.3+k0s.2";

/// The image list of k0s for its defaults. The crate `requirements` has the same list and names its
/// source.
const DEFAULTS: &str = "quay.io/k0sproject/pause:3.10.2-0
quay.io/k0sproject/apiserver-network-proxy-agent:v0.36.0-k0s.0
quay.io/k0sproject/kube-proxy:v1.36.3-1
quay.io/k0sproject/coredns:1.14.6-k0s.0
quay.io/k0sproject/metrics-server:v0.9.0-k0s.0
quay.io/k0sproject/cni-node:v1.9.1-k0s.1
quay.io/k0sproject/kube-router:v2.10.0-iptables1.8.13-k0s.1
";

fn node() -> Node {
    Node::at(Path::new("/nonexistent/containerd.sock"), "k8s.io")
}

/// Runs the command without an installed k0s, unless the caller passes the folder of one.
fn list(node: &Node, arguments: &[&str], bin: Option<&Path>, input: &str) -> Answer {
    let mut command = node.command(["list-images"].iter().chain(arguments));
    command.env("PATH", bin.unwrap_or(Path::new("/nonexistent")));
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program runs");
    let mut stdin = child.stdin.take().expect("the stream is piped");
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("the process ends").into()
}

fn sample(name: &str) -> String {
    format!("{}/../../config/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Writes a program that answers like k0s: it prints its version, and its arguments and input as
/// images.
fn k0s(node: &Node, release: &str, body: &str) -> PathBuf {
    let bin = node.path("bin");
    fs::create_dir_all(&bin).unwrap();
    let program = bin.join("k0s");
    let script = format!("#!/bin/sh\nif [ \"$1\" = version ]; then echo {release}; exit; fi\n{body}\n");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    bin
}

#[test]
fn the_defaults_of_k0s_are_listed_without_any_file() {
    let node = node();
    let answer = list(
        &node,
        &["--platform", "linux/amd64", "--k0s-version", "1.36"],
        None,
        "",
    )
    .exits(0);
    assert_eq!(answer.stdout, DEFAULTS);
    assert!(answer.stderr.contains(NEWEST), "{}", answer.stderr);
    let guessed = list(&node, &["--platform", "linux/amd64"], None, "").exits(0);
    assert_eq!(guessed.stdout, DEFAULTS);
    assert!(guessed.stderr.contains("--k0s-version"), "{}", guessed.stderr);
}

#[test]
fn a_configuration_comes_from_a_file_or_from_standard_input() {
    let node = node();
    let config = "kind: ClusterConfig\nspec: {images: {pause: {image: a.test/p, version: '1'}}, network: {provider: custom}}\n";
    let file = node.path("k0s.yaml");
    fs::write(&file, config).unwrap();
    let arguments = [
        "--k0s-version",
        NEWEST,
        "--platform",
        "linux/amd64",
        "--k0s-config",
    ];
    let from_file = list(
        &node,
        &[&arguments[..], &[file.to_str().unwrap()]].concat(),
        None,
        "",
    )
    .exits(0);
    let from_input = list(&node, &[&arguments[..], &["-"]].concat(), None, config).exits(0);
    assert_eq!(from_file.stdout, from_input.stdout);
    assert!(
        from_file.stdout.starts_with("a.test/p:1\n"),
        "{}",
        from_file.stdout
    );
    assert!(!from_file.stdout.contains("kube-router"));
}

#[test]
fn the_samples_never_pull_and_have_the_defaults() {
    let node = node();
    for name in ["k0s.yaml", "fleet/k0sctl.yaml"] {
        let arguments = [
            "-o",
            "json",
            "--platform",
            "linux/amd64",
            "--k0s-config",
            &sample(name),
        ];
        let document = list(&node, &arguments, None, "").exits(0).json();
        assert_eq!(document["k0s"]["release"], NEWEST, "{name}");
        let images = document["images"].as_array().unwrap();
        let listed: String = images
            .iter()
            .map(|image| format!("{}\n", image["reference"].as_str().unwrap()))
            .collect();
        assert_eq!(listed, DEFAULTS, "{name}");
        assert!(
            images
                .iter()
                .all(|image| image["sources"][0]["pull_policy"] == "Never"),
            "{document:#}"
        );
    }
}

#[test]
fn manifests_are_added_normalised_sorted_and_once() {
    let node = node();
    let folder = node.path("manifests/deep");
    fs::create_dir_all(&folder).unwrap();
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{image: busybox, imagePullPolicy: Never}, \
        {image: 'quay.io/k0sproject/pause:3.10.2-0'}, {image: 'docker.io/library/busybox:latest'}]}\n";
    fs::write(folder.join("pod.yaml"), pod).unwrap();
    let manifests = node.path("manifests");
    let manifests = manifests.to_str().unwrap();
    let alone = list(&node, &["--no-k0s", "--manifests", manifests], None, "").exits(0);
    assert_eq!(
        alone.stdout,
        "docker.io/library/busybox:latest\nquay.io/k0sproject/pause:3.10.2-0\n"
    );
    let piped = list(&node, &["--no-k0s", "--manifests", "-"], None, pod).exits(0);
    assert_eq!(piped.stdout, alone.stdout);

    let arguments = [
        "-o",
        "json",
        "--k0s-version",
        NEWEST,
        "--platform",
        "linux/amd64",
        "--manifests",
        manifests,
    ];
    let document = list(&node, &arguments, None, "").exits(0).json();
    let images = document["images"].as_array().unwrap();
    assert_eq!(images.len(), 8, "{document:#}");
    let path = format!("{manifests}/deep/pod.yaml");
    let source = |at: usize, given: &str, policy: &str| {
        json!({"kind": "manifest", "path": path, "object": "Pod p", "field": format!("spec.containers[{at}].image"),
            "given": given, "pull_policy": policy})
    };
    assert_eq!(
        images[0],
        json!({"reference": "docker.io/library/busybox:latest", "sources": [
            source(0, "busybox", "Never"), source(2, "docker.io/library/busybox:latest", "Always")]})
    );
    let pause = images
        .iter()
        .find(|image| image["reference"] == "quay.io/k0sproject/pause:3.10.2-0")
        .unwrap();
    assert_eq!(
        pause["sources"],
        json!([
            {"kind": "k0s", "path": null, "object": null, "field": "spec.images.pause",
                "given": "quay.io/k0sproject/pause:3.10.2-0", "pull_policy": "IfNotPresent"},
            source(1, "quay.io/k0sproject/pause:3.10.2-0", "IfNotPresent")
        ])
    );
    assert_eq!(
        document["k0s"],
        json!({"release": NEWEST, "source": "built-in", "path": null, "platform": "linux/amd64", "all": false,
            "default_pull_policy": "IfNotPresent"})
    );
}

#[test]
fn every_mistake_is_named_at_once_and_nothing_is_listed() {
    let node = node();
    let chart = node.path("chart");
    fs::create_dir(&chart).unwrap();
    fs::write(
        chart.join("a.yaml"),
        "apiVersion: v1\nkind: Pod\nspec:\n  {{- toYaml .Values.spec | nindent 2 }}\n",
    )
    .unwrap();
    fs::write(
        chart.join("b.yaml"),
        "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: 1.5}]}\n",
    )
    .unwrap();
    let config = node.path("k0s.yaml");
    fs::write(
        &config,
        "kind: ClusterConfig\nspec: {images: {pause: {version: 3.9}}, network: []}\n",
    )
    .unwrap();
    let (config, chart) = (config.to_str().unwrap(), chart.to_str().unwrap());
    let answer = list(&node, &["--k0s-config", config, "--manifests", chart], None, "").exits(2);
    assert_eq!(answer.stdout, "");
    for part in [
        "k0s.yaml: spec.images.pause.version must be text",
        "spec.network must be a mapping",
        "a.yaml: line 4: not YAML but a template",
        "b.yaml: line 1: Pod: spec.containers[0].image must be text",
    ] {
        assert!(answer.stderr.contains(part), "{part}\n{}", answer.stderr);
    }
    let unknown = list(&node, &["--k0s-version", "v1.36.99"], None, "").exits(2);
    assert!(
        unknown.stderr.contains(NEWEST) && unknown.stderr.contains("--image-set"),
        "{}",
        unknown.stderr
    );
    list(&node, &["--platform", "a b"], None, "").exits(2);
    let twice = list(
        &node,
        &["--k0s-config", "-", "--manifests", "-"],
        None,
        "spec: {}",
    )
    .exits(2);
    assert!(twice.stderr.contains("twice"), "{}", twice.stderr);
}

#[test]
fn a_set_of_the_operators_takes_the_place_of_ours() {
    let node = node();
    let set = node.path("set.yaml");
    let images = ["pause", "konnectivity", "kubeproxy", "coredns", "metricsserver"];
    let images: String = images
        .iter()
        .map(|key| format!("    {key}: mirror.test/{key}:9\n"))
        .collect();
    fs::write(
        &set,
        format!("listing: by-platform\nreleases:\n  v9.9.9+k0s.0:\n{images}"),
    )
    .unwrap();
    let config = "kind: ClusterConfig\nspec: {network: {provider: custom}}\n";
    let arguments = [
        "-o",
        "json",
        "--image-set",
        set.to_str().unwrap(),
        "--k0s-config",
        "-",
    ];
    let document = list(&node, &arguments, None, config).exits(0).json();
    assert_eq!(document["k0s"]["source"], "file");
    assert_eq!(document["images"][0]["reference"], "mirror.test/pause:9");
}

#[test]
fn the_program_on_the_machine_is_preferred_where_it_can_answer() {
    let node = node();
    // The stand-in for k0s prints its arguments as images.
    let bin = k0s(
        &node,
        NEWEST,
        "[ \"$3 $4\" = \"--all --config=-\" ] && echo told.test/all:1; while read key image; do [ \"$key\" != pause: ] || echo told.test/$image; done",
    );
    let answer = list(
        &node,
        &["-o", "json", "--all", "--k0s-config", "-"],
        Some(&bin),
        "spec: {}\npause: mine:2\n",
    )
    .exits(0);
    let document = answer.json();
    assert_eq!(document["k0s"]["source"], "program", "{}", answer.stderr);
    assert_eq!(document["k0s"]["path"], bin.join("k0s").to_str().unwrap());
    let references: Vec<_> = document["images"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| &image["reference"])
        .collect();
    assert_eq!(references, ["told.test/all:1", "told.test/mine:2"]);

    // An older k0s knows no other platform. A k0s that fails gives no answer.
    let old = k0s(&node, "v1.34.10+k0s.0", "exit 9");
    for arguments in [&["--platform", "linux/s390x"][..], &[]] {
        let answer = list(&node, arguments, Some(&old), "").exits(0);
        assert!(
            answer.stdout.contains("quay.io/k0sproject/kube-proxy:v1.34.10\n"),
            "{}",
            answer.stdout
        );
        assert!(answer.stderr.contains("cannot be asked"), "{}", answer.stderr);
    }
    let silent = k0s(&node, NEWEST, "exit 0");
    let answer = list(&node, &["--platform", "linux/amd64"], Some(&silent), "").exits(0);
    assert_eq!(answer.stdout, DEFAULTS);
    let old = k0s(&node, "v1.34.10+k0s.0", "exit 9");
    // If the operator names the program, only its answer counts.
    let answer = list(&node, &["--k0s", old.join("k0s").to_str().unwrap()], None, "").exits(2);
    assert!(answer.stderr.contains("exit status: 9"), "{}", answer.stderr);
    let nothing = list(&node, &["--k0s", "/nonexistent/k0s"], None, "").exits(2);
    assert!(nothing.stderr.contains("/nonexistent/k0s"), "{}", nothing.stderr);
}

/// A release that the sets do not know is that of the installed k0s, or an error.
#[test]
fn an_unknown_release_is_asked_of_an_installed_k0s_of_that_release() {
    let node = node();
    let release = "v1.99.1+k0s.0";
    let config = |release: &str| {
        format!(
            "apiVersion: k0sctl.k0sproject.io/v1beta1\nkind: Cluster\nspec:\n  hosts: []\n  k0s:\n    version: {release}\n    \
             config: {{spec: {{images: {{repository: r.test}}}}}}\n"
        )
    };
    // k0s reads the part of the file that is for it, in JSON.
    let body = r#"read -r config; [ "$config" = '{"spec":{"images":{"repository":"r.test"}}}' ] && echo told.test/own:1"#;
    let bin = k0s(&node, release, body);
    let arguments = ["-o", "json", "--k0s-config", "-"];
    let answer = list(&node, &arguments, Some(&bin), &config(release)).exits(0);
    let document = answer.json();
    assert_eq!(document["k0s"]["source"], "program", "{}", answer.stderr);
    assert_eq!(document["k0s"]["release"], release);
    assert_eq!(document["images"][0]["reference"], "told.test/own:1");
    let by_flag = list(
        &node,
        &["--k0s-version", "1.99"],
        Some(&k0s(&node, release, "echo told.test/flag:1")),
        "",
    );
    assert_eq!(by_flag.exits(0).stdout, "told.test/flag:1\n");
    // A known release needs no program, and another k0s is no answer.
    let known = list(&node, &arguments, Some(&bin), &config(NEWEST))
        .exits(0)
        .json();
    assert_eq!(known["k0s"]["source"], "built-in");
    let other = list(&node, &arguments, Some(&bin), &config("v1.98.0+k0s.0")).exits(2);
    assert!(
        other
            .stderr
            .contains("there is no image set for k0s v1.98.0+k0s.0"),
        "{}",
        other.stderr
    );
    assert!(
        other.stderr.contains(&format!("is k0s {release}, not v1.98.0")),
        "{}",
        other.stderr
    );
    list(&node, &arguments, None, &config(release)).exits(2);
}

/// A minor version that has only a preview gets its images, unless k0s itself can answer.
#[test]
fn a_version_without_a_final_release_gets_its_preview_with_a_note() {
    let node = node();
    let arguments = ["--platform", "linux/amd64", "--k0s-version", "1.37"];
    let answer = list(&node, &arguments, None, "").exits(0);
    assert!(
        answer
            .stdout
            .contains("quay.io/k0sproject/kube-proxy:v1.37.0-alpha.1"),
        "{}",
        answer.stdout
    );
    let note = "these are the images of the preview v1.37.0-alpha.1+k0s.0";
    assert!(answer.stderr.contains(note), "{}", answer.stderr);
    let bin = k0s(&node, "v1.37.0+k0s.0", "echo told.test/final:1");
    let answer = list(&node, &arguments, Some(&bin), "").exits(0);
    assert_eq!(answer.stdout, "told.test/final:1\n");
    assert!(!answer.stderr.contains("preview"), "{}", answer.stderr);
}

/// A program of this name on the path is asked unless it is airgapd, which answers lines of k0s.
#[test]
fn airgapd_in_the_place_of_k0s_is_not_asked() {
    let node = node();
    let bin = node.path("bin");
    fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(program().get_program(), bin.join("k0s")).unwrap();
    let answer = list(&node, &["--platform", "linux/amd64"], Some(&bin), "").exits(0);
    assert_eq!(answer.stdout, DEFAULTS);
    assert!(!answer.stderr.contains("k0s ended"), "{}", answer.stderr);
}

#[test]
fn a_full_disk_is_one_error() {
    let mut command = program();
    command.args([
        "airgap",
        "list-images",
        "--k0s-version",
        NEWEST,
        "--platform",
        "linux/amd64",
    ]);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let answer: Answer = command.stdout(full).output().unwrap().into();
    let answer = answer.exits(1);
    let errors = answer
        .stderr
        .lines()
        .filter(|line| line.contains("No space left"));
    assert_eq!(errors.count(), 1, "{}", answer.stderr);
}
