//! The examples of README.md and docs/*.md. The test types the commands of each `console` block on
//! a node, in the order of the document. It checks their exit codes. If the document shows output,
//! the test compares it.
//!
//! `cargo xtask recording` writes the output into the documents instead.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use lab::{Generation, Options, on_path, workspace};
use regex::Regex;
use workshop::demo_bundle;

use crate::support::bundles::{self, PLATFORMS, image, multi_platform};
use crate::support::registry::Registry;
use crate::support::{Stage, run_on_own, unique};

/// Variable that `cargo xtask recording` sets.
const RECORD: &str = "AIRGAPD_TEST_RECORD";

/// Programs that cannot run in this test, and the tests that cover those commands.
const ELSEWHERE: [(&str, &str); 6] = [
    (
        "apt",
        "`cargo xtask packaged` installs and purges the package on a fresh Debian",
    ),
    (
        "rpm",
        "`cargo xtask dist` reads the package that it makes; there is no machine with rpm here",
    ),
    (
        "cargo",
        "builds; a test of xtask reads the command line of each task that a document names",
    ),
    (
        "kubectl",
        "needs a cluster; tests/fleet_config.rs runs what it would apply",
    ),
    (
        "ansible-playbook",
        "needs hosts; tests/ansible.rs runs the playbook on two nodes",
    ),
    (
        "k0sctl",
        "needs hosts; tests/fleet_config.rs reads its configuration and runs its hooks",
    ),
];

/// Commands that exit with another code than 0, by their first words.
const ENDS: [(&str, i32); 1] = [("airgapd verify --bundle", 4)];

/// A command of a document, and the output that the document shows.
#[derive(Debug)]
struct Step {
    /// Line of the command, from 0.
    at: usize,
    command: String,
    screen: Vec<String>,
}

impl Step {
    /// Returns the test that covers this command, if it cannot run here.
    fn elsewhere(&self) -> Option<&'static str> {
        let mut words = self.command.split_whitespace();
        let program = words.find(|word| !word.contains('='))?;
        // The output of a command may be assigned to a variable.
        let is = |name: &str| program == name || self.command.contains(&format!("$({name} "));
        let mut elsewhere = ELSEWHERE.iter().map(|(name, _)| *name);
        // A plain Debian has no curl. tests/status.rs speaks the protocol itself.
        let is_absent = |name: &&str| is(name) && on_path(name).is_none();
        elsewhere.find(|name| is(name)).or(Some("curl").filter(is_absent))
    }

    fn exit(&self) -> i32 {
        let mut ends = ENDS.iter();
        let end = ends.find(|(begin, _)| self.command.starts_with(begin));
        end.map_or(0, |(_, code)| *code)
    }
}

/// Returns the commands of a document: lines of its `console` blocks that start with root's prompt.
fn steps(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut is_inside = false;
    for (at, line) in text.lines().enumerate() {
        match line.strip_prefix("# ") {
            _ if line.starts_with("```") => is_inside = line == "```console",
            _ if !is_inside => {}
            Some(command) => steps.push(Step {
                at,
                command: command.to_owned(),
                screen: Vec::new(),
            }),
            None => {
                let step = steps.last_mut().expect("a block begins with a command");
                step.screen.push(line.to_owned());
            }
        }
    }
    steps
}

/// Returns the paths of README.md and the documents.
fn documents() -> Vec<PathBuf> {
    let folder = fs::read_dir(workspace().join("docs")).expect("there are documents");
    let paths = folder.map(|entry| entry.expect("the folder can be listed").path());
    let mut paths: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    paths.sort();
    paths.insert(0, workspace().join("README.md"));
    paths
}

/// Returns the output without values that differ between runs and machines. Progress lines are left
/// out because they depend on the speed.
fn normalised(screen: &[String]) -> Vec<String> {
    const CHANGING: [(&str, &str); 7] = [
        (r"linux/(amd64|arm64(/v8)?)", "<platform>"),
        (r"sha256:[0-9a-f]+", "<digest>"),
        (r"[0-9-]{10}[T ][0-9:.]{5,}Z?", "<time>"),
        (
            r"[0-9]+(\.[0-9]+)? ?(ms|s|min|h|[kMG]i?B|B|bytes)(/s)?(?-u:\b)",
            "<amount>",
        ),
        (r"pid [0-9]+", "pid <number>"),
        (r"[0-9]+\.[0-9]+\.[0-9]+([+~-][a-z0-9+.]+)?", "<version>"),
        (r" +", " "),
    ];
    let changing = CHANGING.map(|(pattern, text)| (Regex::new(pattern).expect("a pattern"), text));
    let line = |line: &String| {
        let text = changing.iter().fold(line.clone(), |line, (pattern, text)| {
            pattern.replace_all(&line, *text).into_owned()
        });
        text.trim_end().to_owned()
    };
    let lines = screen.iter().map(line);
    lines.filter(|line| !line.starts_with("<time> INFO")).collect()
}

/// Things that the documents presuppose: the reader's files, and a registry on the connected side.
struct Surroundings {
    _registry: Registry,
}

fn surround(stage: &Stage, installed: bool) -> Option<Surroundings> {
    let registry = Registry::start()?;
    let home = |name: &str| stage.at(name);
    let busybox = lab::parts::busybox().expect("there is a busybox");

    stage.types("install -d -m 0755 /var/lib/k0s/images").exits(0);

    // The unpacked tarball of a release.
    for file in ["config/config.yaml", "systemd/airgapd.service"] {
        stage.write(file, fs::read(workspace().join(file)).unwrap());
    }
    fs::create_dir_all(home("bin")).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_airgapd"), home("bin/airgapd")).unwrap();
    let drop_ins = workspace().join("systemd/drop-ins");
    let doc = "/usr/share/doc/airgapd/drop-ins";
    stage
        .types(&format!(
            "install -D -m 0644 -t {doc} {}/*.conf",
            drop_ins.display()
        ))
        .exits(0);
    if installed {
        stage.types(BY_HAND).exits(0);
    }

    // The images of a cluster, in a registry and on this node.
    stage.write("k0s.yaml", fs::read(workspace().join("config/k0s.yaml")).unwrap());
    stage.write(
        "k0sctl.yaml",
        fs::read(workspace().join("config/fleet/k0sctl.yaml")).unwrap(),
    );
    let listed = stage
        .types("airgapd -q list-images --k0s-config k0s.yaml")
        .exits(0)
        .stdout;
    for reference in listed.lines() {
        let (host, rest) = reference.split_once('/').expect("references are whole");
        let (path, tag) = rest.rsplit_once(':').expect("the names have tags");
        registry.push(&format!("{host}/{path}"), tag, image(reference));
    }
    let of_apps = ["registry.example/shop/web:2.1", "registry.example/shop/db:1.0"];
    bundles::write(&home("images.tar"), listed.lines().chain(of_apps).map(image));
    stage.types("airgapd import images.tar").exits(0);
    stage.write("images.txt", listed);
    let mirrors = ["quay.io", "registry.k8s.io", "docker.io", "ghcr.io"]
        .map(|host| format!("--mirror {host}={}/{host}", registry.host()))
        .join(" ");
    // The test's registry takes the place of the public ones.
    stage.write(
        "with-mirrors",
        format!(
            "#!/bin/sh\nif [ \"$1\" = bundle-artifacts ]; then set -- \"$@\" --insecure-registries plain-http {mirrors}; fi\n\
             exec {} \"$@\"\n",
            env!("CARGO_BIN_EXE_airgapd")
        ),
    );
    stage
        .types("rm /run/program/airgapd && install -m 0755 with-mirrors /run/program/airgapd")
        .exits(0);

    // Bundles that the examples use.
    demo_bundle::write(&home("app-bundle.tar"), &busybox).unwrap();
    stage.types("cp app-bundle.tar /mnt/usb/").exits(0);
    stage.write("apps/web.yaml", WEB);
    let shared = unique();
    let web = |version: &str| {
        let name = format!("registry.example/shop/web:{version}");
        multi_platform(&name, &PLATFORMS).layer(shared.as_str())
    };
    for (file, version) in [("base.tar", "2.0"), ("old.tar", "2.0"), ("new.tar", "2.1")] {
        bundles::write(
            &home(file),
            [
                web(version),
                multi_platform("registry.example/shop/db:1.0", &PLATFORMS),
            ],
        );
    }
    bundles::docker([image("registry.example/shop/web:1.0")]).write_to(&home("docker-save.tar"));
    stage.types("gzip docker-save.tar").exits(0);
    Some(Surroundings { _registry: registry })
}

/// Commands that install and start the daemon without a package, as in README.md.
const BY_HAND: &str = "\
install -m 0755 bin/airgapd /usr/bin/airgapd && install -m 0644 systemd/airgapd.service /etc/systemd/system/ && \
systemctl daemon-reload && systemctl enable --now airgapd";

/// The manifests of an application.
const WEB: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - {name: web, image: 'registry.example/shop/web:2.1', imagePullPolicy: Never}
        - {name: db, image: 'registry.example/shop/db:1.0', imagePullPolicy: Never}
";

/// Types the commands of a document on a fresh node. Returns the commands whose output differs from
/// the document, with that output.
fn play<'s>(document: &str, steps: &'s [Step], stage: &Stage) -> Vec<(&'s Step, Vec<String>)> {
    let mut differing = Vec::new();
    for step in steps.iter().filter(|step| step.elsewhere().is_none()) {
        let answer = stage.types(&step.command);
        assert_eq!(
            answer.status.code(),
            Some(step.exit()),
            "{document}:{}: `{}` says:\n{}",
            step.at + 1,
            step.command,
            answer.stdout
        );
        let screen: Vec<_> = answer
            .stdout
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect();
        if !step.screen.is_empty() && normalised(&screen) != normalised(&step.screen) {
            differing.push((step, screen));
        }
    }
    differing
}

/// Returns the document with the actual output.
fn recorded(text: &str, differing: &[(&Step, Vec<String>)]) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for (step, screen) in differing.iter().rev() {
        let from = step.at + 1;
        lines.splice(from..from + step.screen.len(), screen.clone());
    }
    lines.join("\n") + "\n"
}

#[test]
fn each_command_in_the_documents_does_what_they_say() {
    run_on_own(Generation::V2_1, &Options::default(), |own| {
        for path in documents() {
            let text = fs::read_to_string(&path).unwrap();
            let steps = steps(&text);
            if steps.is_empty() {
                continue;
            }
            let stage = Stage::on(&own.containerd);
            // Most documents presuppose a running daemon.
            let installs = steps
                .iter()
                .any(|step| step.command.starts_with("install -m 0755 bin/airgapd"));
            let Some(_surroundings) = surround(&stage, !installs) else {
                return;
            };
            let document = path.display().to_string();
            let differing = play(&document, &steps, &stage);
            if std::env::var_os(RECORD).is_some() {
                fs::write(&path, recorded(&text, &differing)).unwrap();
            } else if let Some((step, screen)) = differing.first() {
                let (at, command) = (step.at + 1, &step.command);
                let (there, said) = (normalised(screen).join("\n"), normalised(&step.screen).join("\n"));
                panic!(
                    "{document}:{at}: after `{command}` there is\n{there}\n\nnot\n{said}\n\n(cargo xtask recording)"
                );
            }
        }
    });
}

/// A document with wrong output is noticed and recorded.
#[test]
fn only_what_is_on_the_screen_is_replaced() {
    let text = "# Title\n```console\n# one\nold 1 MB\nolder\n# two\n# three\nsame 2 s\n```\nend\n";
    let steps = steps(text);
    let commands: Vec<_> = steps
        .iter()
        .map(|step| (step.at, step.command.as_str()))
        .collect();
    assert_eq!(commands, [(2, "one"), (5, "two"), (6, "three")]);
    let screen = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        normalised(&screen(&["same 10.5 s"])),
        normalised(&steps[2].screen)
    );
    assert_ne!(normalised(&screen(&["other 2 s"])), normalised(&steps[2].screen));
    let differing = [(&steps[0], screen(&["new"])), (&steps[2], screen(&["a", "b"]))];
    let expected = "# Title\n```console\n# one\nnew\n# two\n# three\na\nb\n```\nend\n";
    assert_eq!(recorded(text, &differing), expected);
}

/// The list of untested commands is short, and each entry is needed.
#[test]
fn only_what_cannot_run_here_is_left_out() {
    let texts = documents()
        .into_iter()
        .map(|path| fs::read_to_string(path).unwrap());
    let steps: Vec<_> = texts.flat_map(|text| steps(&text)).collect();
    let left_out: BTreeSet<_> = steps.iter().filter_map(Step::elsewhere).collect();
    let absent = on_path("curl").is_none().then_some("curl");
    let elsewhere = ELSEWHERE.iter().map(|(name, _)| *name);
    assert_eq!(left_out, elsewhere.chain(absent).collect());
    let tried = steps.iter().filter(|step| step.elsewhere().is_none()).count();
    assert!(tried > 30, "{tried}");
}
