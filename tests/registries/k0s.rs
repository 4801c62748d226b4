//! The command lines of k0s, typed on a machine whose `k0s` is airgapd.
//!
//! Source: k0s, `docs/airgap-install.md` at v1.29.1+k0s.0 and v1.36.3+k0s.2, and the help of `k0s
//! airgap`. The shell has a mount namespace of its own, where `/etc/k0s` can exist.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use bundle::fixtures::{Image, Manifest};
use lab::Generation;

use super::{FOREIGN, answer, blobs_in, bundler};
use crate::support::bundles::{native, text};
use crate::support::node::{Answer, program};
use crate::support::registry::{Certificate, Manner, Registry};
use crate::support::target::{OUR_PIN, PINNED};
use crate::support::tools::run;
use crate::support::{Node, Target, on_a_real_containerd, on_each_real_containerd, unique};

fn image() -> Image {
    Image::unnamed().manifest(Manifest::new(native()).layer(unique()))
}

/// Writes a program into the folder `bin` of the node.
fn provide(node: &Node, name: &str, script: &str) {
    let bin = node.path("bin");
    fs::create_dir_all(&bin).unwrap();
    let program = bin.join(name);
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Makes airgapd the `k0s` of this node. Only `k0s ctr` is containerd's own.
fn provide_k0s(node: &Node, target: &Target) {
    let airgapd = text(Path::new(program().get_program()));
    let ctr = lab::containerd_parts(Generation::V2_1).expect("a containerd").ctr;
    let (ctr, socket) = (text(&ctr), text(target.socket()));
    let namespace = target.namespace();
    let script = format!(
        "case $1 in\nairgap) exec {airgapd} \"$@\" ;;\n\
         ctr) shift; exec {ctr} --address {socket} --namespace {namespace} \"$@\" ;;\nesac\nexit 1"
    );
    provide(node, "k0s", &script);
}

/// Makes the `/etc` of the node's shell, with a configuration of k0s.
fn provide_etc(node: &Node, config: &str) {
    let etc = node.path("etc");
    fs::create_dir(&etc).unwrap();
    run(Command::new("cp").args(["--archive", "/etc/.", &text(&etc)]));
    fs::create_dir_all(etc.join("k0s")).unwrap();
    fs::write(etc.join("k0s/k0s.yaml"), config).unwrap();
}

/// Types a line into a shell in the node's folder.
fn types(node: &Node, certificate: &Certificate, line: &str) -> Answer {
    let path = std::env::var("PATH").unwrap();
    let mut shell = Command::new("unshare");
    for (name, _) in program().get_envs() {
        shell.env_remove(name);
    }
    for name in FOREIGN {
        shell.env_remove(name);
    }
    shell
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg("mount --bind etc /etc && exec sh -c \"$LINE\"")
        .current_dir(node.path(""))
        .env("LINE", line)
        .env("PATH", format!("{}:{path}", text(&node.path("bin"))))
        .env("SSL_CERT_FILE", certificate.authority())
        .stdin(Stdio::null());
    answer(&mut shell)
}

fn lines_of(text: &str) -> Vec<&str> {
    text.lines().collect()
}

fn the_lines_of_k0s_work_as_they_are_typed(target: &Target) {
    let Some(registry) = Registry::start() else { return };
    let certificate = Certificate::new();
    let secure = registry.also(&Manner {
        tls: Some(&certificate),
        ..Manner::default()
    });
    let node = Node::on(target);
    provide_k0s(&node, target);
    provide(&node, "docker", "echo \"docker $*\" >>typed.log");
    provide(&node, "ctr", "echo \"ctr $*\" >>typed.log");
    let host = secure.host();
    provide_etc(
        &node,
        &format!(
            "apiVersion: k0s.k0sproject.io/v1beta1\nkind: ClusterConfig\nspec:\n  images: {{repository: '{host}'}}\n  \
             network: {{nodeLocalLoadBalancing: {{traefik: {{imagePullPolicy: Never}}}}}}\n"
        ),
    );
    let types = |line: &str| types(&node, &certificate, line).exits(0);
    let read = |file: &str| fs::read_to_string(node.path(file)).unwrap();

    // "Using k0s built-in tooling", and the help of `k0s airgap list-images`.
    types("k0s airgap list-images --all >airgap-images.txt");
    let all = read("airgap-images.txt");
    assert_eq!(lines_of(&all).len(), 13, "{all}");
    let answer = types("k0s airgap list-images");
    let used = answer.stdout;
    assert_eq!(lines_of(&used).len(), 7, "{used}");
    assert!(
        answer.stderr.contains("/etc/k0s/k0s.yaml, as k0s reads it"),
        "{}",
        answer.stderr
    );
    for reference in all.lines() {
        let place = reference
            .strip_prefix(&format!("{host}/"))
            .expect("the registry has it");
        let (repository, tag) = place.rsplit_once(':').unwrap();
        registry.push(repository, tag, image());
    }
    types("k0s airgap bundle-artifacts -v -o image-bundle.tar <airgap-images.txt");
    node.import([node.path("image-bundle.tar")]).exits(0);
    for reference in all.lines() {
        let record = target.expect_record(reference);
        assert_eq!(
            record.labels.get(PINNED).map(String::as_str),
            Some("pinned"),
            "{reference}"
        );
    }

    // The help of `k0s airgap`.
    types("k0s airgap list-images | k0s airgap bundle-artifacts -v -o image-bundle.tar");
    let of_used = blobs_in(&node.path("image-bundle.tar"));
    assert_eq!(of_used.len(), 3 * lines_of(&used).len());
    // The help of `k0s airgap bundle-artifacts`: standard output by default.
    types("k0s airgap bundle-artifacts $(k0s airgap list-images) >stdout.tar");
    assert_eq!(blobs_in(&node.path("stdout.tar")), of_used);
    types("k0s airgap list-images | xargs | k0s airgap bundle-artifacts --concurrency=1 >stdout.tar");
    assert_eq!(blobs_in(&node.path("stdout.tar")), of_used);

    // "From a running worker node".
    types("k0s ctr images export image-bundle.tar $(k0s airgap list-images | xargs)");
    assert!(blobs_in(&node.path("image-bundle.tar")).is_superset(&of_used));
    types(
        "ctr --namespace k8s.io \\\n    --address /run/k0s/containerd.sock \\\n    \
         images export bundle_file $(k0s airgap list-images | xargs)",
    );
    // "Docker", today's lines and those of 1.29.
    types("xargs -I{} docker pull {} <airgap-images.txt");
    types("docker image save -o image-bundle.tar $(xargs <airgap-images.txt)");
    types("k0s airgap list-images | xargs -I{} docker pull {}");
    types("docker image save $(k0s airgap list-images | xargs) -o bundle_file");
    let words = |list: &str| lines_of(list).join(" ");
    let pulls = |list: &str| {
        list.lines()
            .map(|image| format!("docker pull {image}\n"))
            .collect::<String>()
    };
    let expected = format!(
        "ctr --namespace k8s.io --address /run/k0s/containerd.sock images export bundle_file {}\n{}\
         docker image save -o image-bundle.tar {}\n{}docker image save {} -o bundle_file\n",
        words(&used),
        pulls(&all),
        words(&all),
        pulls(&used),
        words(&used),
    );
    assert_eq!(read("typed.log"), expected);

    // Flags of k0s that mean nothing here are named once.
    let answer = types(
        "k0s airgap list-images --data-dir=/var/lib/k0s -d --status-socket /run/x -c /etc/k0s/k0s.yaml",
    );
    assert_eq!(answer.stdout, used);
    for flag in ["--data-dir", "--debug", "--status-socket"] {
        let said = answer.stderr.matches(&format!("{flag} has no effect")).count();
        assert_eq!(said, 1, "{flag}: {}", answer.stderr);
    }
}

/// k0s gives an image of `name:tag@digest` three names, and its own tests look for the third.
fn tag_and_digest_give_three_names_in_containerd(target: &Target) {
    let Some(registry) = Registry::start() else { return };
    let node = Node::on(target);
    let (tagged, digest) = registry.push("some/image", "1", image());
    let repository = tagged.strip_suffix(":1").unwrap();
    let names = [
        tagged.clone(),
        format!("{tagged}@{digest}"),
        format!("{repository}@{digest}"),
    ];
    let file = text(&node.path("bundle.tar"));
    let mut command = program();
    for name in FOREIGN {
        command.env_remove(name);
    }
    command.args([
        "airgap",
        "bundle-artifacts",
        "--insecure-registries",
        "plain-http",
        "-o",
        &file,
    ]);
    answer(command.arg(&names[1])).exits(0);
    node.import([&file]).exits(0);
    assert_eq!(target.names(), names.clone().into());
    for name in &names {
        let record = target.expect_record(name);
        assert_eq!(record.target.digest(), &digest, "{name}");
        assert!(
            record.labels.contains_key(PINNED) && record.labels.contains_key(OUR_PIN),
            "{name}"
        );
    }
    // containerd's own importer, which k0s uses, gives the same names.
    let theirs = target.elsewhere();
    let local = theirs.ctr(&["images", "import", "--help"]).contains("--local");
    let mut arguments = vec!["images", "import", "--no-unpack"];
    arguments.extend(local.then_some("--local"));
    arguments.push(&file);
    theirs.ctr(&arguments);
    assert_eq!(theirs.names(), names.into());
    // The names go together.
    node.airgapd(["release", "--all"]).exits(0);
    let record = target.expect_record(&format!("{tagged}@{digest}"));
    assert!(!record.labels.contains_key(PINNED), "{record:?}");
}

#[test]
fn an_empty_list_makes_an_empty_archive_for_k0s_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("empty.tar");
    let refused = answer(bundler(["-o", &text(&file)]).stdin(Stdio::null())).exits(2);
    assert!(refused.stderr.contains("no image is named"), "{refused:?}");
    assert!(!file.exists());
    let mut command = program();
    command.args(["airgap", "bundle-artifacts", "-o", &text(&file)]);
    let made = answer(command.stdin(Stdio::null())).exits(0);
    assert!(
        made.stderr.contains("no image is named: the bundle is empty"),
        "{made:?}"
    );
    let list = Command::new("tar").arg("-tf").arg(&file).output().unwrap();
    assert_eq!(
        String::from_utf8(list.stdout).unwrap(),
        "oci-layout\nindex.json\n"
    );
    let index = Command::new("tar")
        .arg("-xOf")
        .args([&file])
        .arg("index.json")
        .output()
        .unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index.stdout).unwrap();
    assert_eq!(index["manifests"], serde_json::json!([]));
}

/// A lone manifest has its platform in its config, and the variant counts.
#[test]
fn a_lone_manifest_is_judged_with_its_variant() {
    let Some(registry) = Registry::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = text(&folder.path().join("bundle.tar"));
    let lone = Image::unnamed().manifest(Manifest::new("linux/arm/v7").layer(unique()));
    let (name, _) = registry.push("some/lone", "1", lone);
    for (platform, status) in [
        ("linux/arm/v6", 1),
        ("linux/arm/v7", 0),
        ("linux/arm", 0),
        ("linux/arm64", 0),
        ("linux/amd64", 1),
        ("all", 0),
    ] {
        let answer = super::bundle([&name, "--platform", platform, "-o", &file]).exits(status);
        if status != 0 {
            assert!(
                answer.stderr.contains("It offers linux/arm/v7"),
                "{platform}: {answer:?}"
            );
        }
    }
}

/// `k0s airgap list-images` reads the configuration of the node, or that of the k0s that runs.
#[test]
fn the_configuration_of_a_node_is_read_as_k0s_reads_it() {
    if !lab::is_root() {
        return;
    }
    let node = Node::at(Path::new("/nonexistent/containerd.sock"), "k8s.io");
    let certificate = Certificate::new();
    let config = |pause: &str| {
        format!(
            "kind: ClusterConfig\nspec: {{images: {{pause: {{image: {pause}, version: '1'}}}}, network: {{provider: custom}}}}\n"
        )
    };
    provide_etc(&node, &config("etc.test/p"));
    fs::write(node.path("given.yaml"), config("given.test/p")).unwrap();
    fs::write(node.path("started.yaml"), config("started.test/p")).unwrap();
    let airgapd = text(Path::new(program().get_program()));
    let first = |line: &str| {
        let answer = types(&node, &certificate, &line.replace("airgapd", &airgapd)).exits(0);
        let first = lines_of(&answer.stdout)[0].to_owned();
        (first, answer.stderr)
    };
    for (line, pause, is_said) in [
        ("airgapd airgap list-images", "etc.test/p:1", true),
        ("airgapd list-images", "etc.test/p:1", true),
        (
            "airgapd list-images --k0s-version 1.34 | tail -n 1",
            "etc.test/p:1",
            true,
        ),
        (
            "airgapd airgap list-images -c given.yaml",
            "given.test/p:1",
            false,
        ),
        (
            "airgapd list-images --k0s-config given.yaml",
            "given.test/p:1",
            false,
        ),
        (
            "airgapd airgap list-images --config - <given.yaml",
            "given.test/p:1",
            false,
        ),
    ] {
        let (found, stderr) = first(line);
        assert_eq!(found, pause, "{line}: {stderr}");
        let said = stderr.contains("the configuration of k0s is /etc/k0s/k0s.yaml, as k0s reads it");
        assert_eq!(said, is_said, "{line}: {stderr}");
    }
    // A running k0s holds the lock of its file. A killed k0s leaves both files behind.
    let runtime = "mount -t tmpfs tmpfs /run && mkdir /run/k0s && \
        printf 'kind: RuntimeConfig\\nspec: {k0sVars: {StartupConfigPath: %s}}\\n' $PWD/started.yaml >/run/k0s/k0s.yaml && \
        touch /run/k0s/k0s.yaml.lock &&";
    let killed = format!("{runtime} airgapd airgap list-images");
    let running = format!("{runtime} flock /run/k0s/k0s.yaml.lock airgapd airgap list-images");
    assert_eq!(first(&running).0, "started.test/p:1");
    assert_eq!(first(&format!("{running} -c given.yaml")).0, "given.test/p:1");
    assert_eq!(first(&format!("{running} -c ''")).0, "started.test/p:1");
    assert_eq!(first(&killed).0, "etc.test/p:1");
    // k0s fails for a missing file that its flag names, and for a file with mistakes.
    let fails = |line: &str| types(&node, &certificate, &line.replace("airgapd", &airgapd)).exits(2);
    fails("airgapd airgap list-images -c absent.yaml");
    let answer = fails(&running.replace("started.yaml", "absent.yaml"));
    assert!(answer.stderr.contains("absent.yaml"), "{answer:?}");
    fs::write(node.path("etc/k0s/k0s.yaml"), "spec: [\n").unwrap();
    let answer = fails("airgapd airgap list-images");
    assert!(answer.stderr.contains("/etc/k0s/k0s.yaml"), "{answer:?}");
    // Without the file, the defaults of k0s count.
    fs::remove_file(node.path("etc/k0s/k0s.yaml")).unwrap();
    let (pause, stderr) = first("airgapd airgap list-images --platform linux/amd64");
    assert_eq!(pause, "quay.io/k0sproject/pause:3.10.2-0");
    assert!(!stderr.contains("as k0s reads it"), "{stderr}");
}

on_a_real_containerd!(the_lines_of_k0s_work_as_they_are_typed);
on_each_real_containerd!(tag_and_digest_give_three_names_in_containerd);
