//! The Ansible role in `config/fleet/ansible`, run by Ansible on two nodes.
//!
//! Ansible's own ssh plugin starts a stand-in for ssh, which enters the mount namespace of a node.
//! Each node has its own containerd, folders and service ([`Stage`]).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lab::{Generation, Options, workspace};
use regex::Regex;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fleet_config::documents;
use crate::support::bundles::{self, image, text};
use crate::support::node::{Answer, program};
use crate::support::{Own, Stage, run_on_own, tools, unique, wait_until};

/// The images folder of the nodes.
const IMAGES: &str = "/var/lib/k0s/images";

/// Stands in for ssh. Its last words are the host and the command.
const SSH: &str = "#!/bin/sh\n\
    while [ $# -gt 2 ]; do shift; done\n\
    exec nsenter --target \"$(cat \"$NODES/$1\")\" --mount \
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 sh -c \"$2\"\n";

/// The control node.
struct Control {
    folder: TempDir,
    ansible: lab::ansible::Ansible,
}

impl Control {
    /// Returns a control node that reaches these nodes by name.
    fn of(nodes: &[(&str, &Stage)]) -> Option<Control> {
        let ansible = tools::ansible()?;
        let folder = tempfile::tempdir().expect("a folder");
        let control = Control { folder, ansible };
        fs::create_dir(control.at("nodes")).expect("a folder");
        for (name, stage) in nodes {
            fs::write(control.at("nodes").join(name), stage.pid().to_string()).expect("a file");
        }
        fs::write(control.at("ssh"), SSH).expect("a file");
        fs::set_permissions(control.at("ssh"), fs::Permissions::from_mode(0o755)).expect("our file");
        let hosts: serde_json::Map<_, _> = nodes
            .iter()
            .map(|(name, _)| ((*name).to_owned(), json!({})))
            .collect();
        let inventory = json!({"airgapd": {"hosts": hosts, "vars": {
            "ansible_connection": "ssh",
            // The nodes are reached as root, and lack sudo.
            "ansible_become": false,
            "ansible_ssh_executable": text(&control.at("ssh")),
            "ansible_ssh_transfer_method": "piped",
            "ansible_python_interpreter": text(&control.ansible.python),
            "ansible_remote_tmp": "/run/ansible",
            "airgapd_program": env!("CARGO_BIN_EXE_airgapd"),
        }}});
        fs::write(control.at("hosts.json"), inventory.to_string()).expect("a file");
        Some(control)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes a bundle of one image with the list of its digest.
    fn bundle(&self, file: &str, image_name: &str) -> String {
        let path = self.at(file);
        bundles::write(&path, [image(image_name)]);
        let inspected = program().args(["inspect", "--digest"]).arg(&path).output();
        let digest = inspected.expect("the program runs").stdout;
        fs::write(self.at(&format!("{file}.digest")), digest).expect("a file");
        text(&path)
    }

    /// Runs the playbook with these variables.
    fn play(&self, variables: &Value) -> Play {
        let output = Command::new(&self.ansible.playbook)
            .arg("-i")
            .arg(self.at("hosts.json"))
            .args(["--extra-vars", &variables.to_string()])
            .arg(workspace().join("config/fleet/ansible/site.yml"))
            .env("HOME", self.folder.path())
            .env("NODES", self.at("nodes"))
            .envs([
                ("ANSIBLE_NOCOLOR", "1"),
                ("ANSIBLE_PIPELINING", "1"),
                ("LC_ALL", "C.UTF-8"),
            ])
            .stdin(Stdio::null())
            .output()
            .expect("Ansible runs");
        Play(Answer::from(output))
    }
}

/// A run of the playbook.
struct Play(Answer);

impl Play {
    /// Returns a number of the recap, such as `changed`, if the run reached the node.
    #[track_caller]
    fn count(&self, node: &str, what: &str) -> Option<u32> {
        let (_, recap) = self.0.stdout.split_once("PLAY RECAP").expect("there is a recap");
        let line = recap.lines().find(|line| line.starts_with(node))?;
        let words = line.split_whitespace();
        let number = words
            .filter_map(|word| word.split_once('='))
            .find(|(key, _)| *key == what);
        Some(
            number
                .expect("the recap has the number")
                .1
                .parse()
                .expect("a number"),
        )
    }

    #[track_caller]
    fn succeeds(self) -> Play {
        Play(self.0.exits(0))
    }

    /// Asserts that a task of the first node failed with these words.
    #[track_caller]
    fn fails_with(&self, words: &str) {
        // Ansible prints results as JSON.
        let said = self.0.stdout.replace("\\\"", "\"");
        assert!(!self.0.status.success() && said.contains(words), "{said}");
        assert_eq!(self.count("one", "failed"), Some(1), "{said}");
    }
}

fn exists(path: impl AsRef<Path>) -> bool {
    path.as_ref().exists()
}

/// Plays on two nodes, each with a containerd of its own.
fn on_two_nodes(scenario: impl FnOnce([&Own; 2], [&Stage; 2], &Control)) {
    run_on_own(Generation::V2_1, &Options::default(), |first| {
        run_on_own(Generation::V2_1, &Options::default(), |second| {
            let stages = [Stage::on(&first.containerd), Stage::on(&second.containerd)];
            let named = [("one", &stages[0]), ("two", &stages[1])];
            if let Some(control) = Control::of(&named) {
                scenario([first, second], stages.each_ref(), &control);
            }
        });
    });
}

/// Plays on a node with a containerd of its own.
fn on_a_node(scenario: impl FnOnce(&Own, &Stage, &Control)) {
    run_on_own(Generation::V2_1, &Options::default(), |own| {
        let stage = Stage::on(&own.containerd);
        if let Some(control) = Control::of(&[("one", &stage)]) {
            scenario(own, &stage, &control);
        }
    });
}

#[test]
fn the_role_brings_two_nodes_into_a_state_and_a_second_run_changes_nothing() {
    on_two_nodes(|owns, stages, control| {
        let name = format!("registry.test/app-{}:1", unique());
        let bundle = control.bundle("shop-1.tar", &name);
        let made = program()
            .args(["bundle", "release", "shop-1", &bundle, "-o"])
            .arg(control.at("release"))
            .output();
        assert!(made.expect("the program runs").status.success());
        let bundle = text(&control.at("release/shop-1.tar"));
        fs::write(control.at("images.txt"), format!("{name}\n")).unwrap();
        let variables = json!({
            "airgapd_bundles": [bundle],
            "airgapd_release": "shop-1",
            "airgapd_required_images": text(&control.at("images.txt")),
            "airgapd_config": {"distribution": "auto", "afterImport": "receipt"},
        });
        let first = control.play(&variables).succeeds();
        for (own, stage) in owns.iter().zip(stages) {
            assert!(own.target.is_pinned(&name), "{}", first.0.stdout);
            stage.types("systemctl is-active airgapd").exits(0);
            stage.types("systemctl is-enabled airgapd").exits(0);
            let images = stage.at("/var/lib/k0s/images/shop-1.tar");
            wait_until("the receipt stands for the file", || !exists(&images));
        }
        for node in ["one", "two"] {
            assert!(first.count(node, "changed") > Some(3), "{}", first.0.stdout);
        }

        // The file is gone, and its content is in place. No run brings it again.
        let second = control.play(&variables).succeeds();
        for node in ["one", "two"] {
            assert_eq!(second.count(node, "changed"), Some(0), "{}", second.0.stdout);
            assert_eq!(second.count(node, "failed"), Some(0), "{}", second.0.stdout);
        }

        let absent = json!({"airgapd_state": "absent"});
        let removal = control.play(&absent).succeeds();
        for (own, stage) in owns.iter().zip(stages) {
            assert!(own.target.record(&name).is_some() && !own.target.is_pinned(&name));
            stage.types("systemctl is-active airgapd").exits(3);
            let files = [
                "/etc/systemd/system/airgapd.service",
                "/etc/airgapd",
                "/var/lib/airgapd/state.json",
            ];
            assert!(
                files.iter().all(|file| !exists(stage.at(file))),
                "{}",
                removal.0.stdout
            );
            // The bundle has no file any more.
            let receipts = fs::read_dir(stage.at("/var/lib/airgapd/receipts")).unwrap();
            let mut names = receipts.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            assert!(names.any(|name| name.ends_with("shop-1.tar")));
        }
    });
}

#[test]
fn a_node_that_lacks_an_image_ends_the_rollout_before_the_next_node() {
    on_two_nodes(|owns, stages, control| {
        let [old, new] = ["old", "new"].map(|what| format!("registry.test/{what}-{}:1", unique()));
        let of_before = "/var/lib/k0s/images/shop-1.tar";
        for stage in stages {
            stage.types("install -d /var/lib/k0s/images").exits(0);
            bundles::write(&stage.at(of_before), [image(&old)]);
        }
        let required = control.at("images.txt");
        fs::write(&required, format!("{old}\n{new}\n")).unwrap();
        let variables = |bundles: &[&String]| {
            json!({
                "airgapd_bundles": bundles,
                "airgapd_old_bundles": ["shop-1.tar"],
                "airgapd_required_images": text(&required),
                "airgapd_timeout": "60s",
            })
        };
        // The release lacks a bundle.
        let failed = control.play(&variables(&[]));
        assert!(!failed.0.status.success(), "{}", failed.0.stdout);
        assert!(failed.0.stdout.contains(&new), "{}", failed.0.stdout);
        assert_eq!(failed.count("one", "failed"), Some(1), "{}", failed.0.stdout);
        assert_eq!(failed.count("two", "ok"), None, "{}", failed.0.stdout);
        assert!(owns[0].target.is_pinned(&old) && exists(stages[0].at(of_before)));
        assert!(!exists(stages[1].at("/etc/airgapd/config.yaml")));
        assert_eq!(owns[1].target.names().len(), 0);

        let next = control.bundle("shop-2.tar", &new);
        fs::write(&required, format!("{new}\n")).unwrap();
        let mended = control.play(&variables(&[&next])).succeeds();
        for (own, stage) in owns.iter().zip(stages) {
            assert!(own.target.is_pinned(&new), "{}", mended.0.stdout);
            assert!(!exists(stage.at(of_before)), "the old bundle goes last");
            stage.types("airgapd wait --bundle shop-2.tar").exits(0);
        }
    });
}

#[test]
fn an_old_bundle_with_the_same_content_goes_when_the_new_file_has_taken_its_place() {
    on_a_node(|own, stage, control| {
        // The daemon names the bundles of its first folder by their file names, and others by path.
        let further = "/var/lib/further";
        stage.types(&format!("install -d {IMAGES} {further}")).exits(0);
        for folder in [IMAGES, further] {
            let name = format!("registry.test/app-{}:1", unique());
            let new = control.bundle("shop-2.tar", &name);
            let [of_before, of_now] = ["shop-1.tar", "shop-2.tar"].map(|file| format!("{folder}/{file}"));
            let variables = |bundles: &[&str], old_bundles: &[&str]| {
                json!({
                    "airgapd_bundles": bundles,
                    "airgapd_old_bundles": old_bundles,
                    "airgapd_config": {"distribution": "auto", "imagesDirs": [IMAGES, further]},
                    "airgapd_images_dir": format!("{folder}/"),
                    "airgapd_timeout": "60s",
                })
            };
            fs::copy(&new, stage.at(&of_before)).unwrap();
            control.play(&variables(&[], &[])).succeeds();
            stage
                .types(&format!("airgapd wait --bundle {of_before}"))
                .exits(0);

            let play = control.play(&variables(&[&new], &["shop-1.tar"])).succeeds();
            assert!(!exists(stage.at(&of_before)) && exists(stage.at(&of_now)));
            stage.types(&format!("airgapd wait --bundle {of_now}")).exits(0);
            assert!(own.target.is_pinned(&name), "{}", play.0.stdout);
            let again = control.play(&variables(&[&new], &["shop-1.tar"])).succeeds();
            assert_eq!(again.count("one", "changed"), Some(0), "{}", again.0.stdout);

            // The content is in place by a file that stays, so no play brings it again.
            for file in ["shop-2.tar", "shop-2.tar.digest"] {
                fs::rename(control.at(file), control.at(&file.replace('2', "3"))).unwrap();
            }
            let third = text(&control.at("shop-3.tar"));
            let same = control.play(&variables(&[&third], &["shop-1.tar"])).succeeds();
            assert_eq!(same.count("one", "changed"), Some(0), "{}", same.0.stdout);
        }
    });
}

#[test]
fn a_wrong_name_of_an_old_bundle_ends_the_play_before_any_change() {
    on_a_node(|_, stage, control| {
        let new = control.bundle("shop-2.tar", "registry.test/new:1");
        let of_before = format!("{IMAGES}/shop-1.tar");
        stage.types(&format!("install -d {IMAGES}")).exits(0);
        bundles::write(&stage.at(&of_before), [image("registry.test/old:1")]);
        for wrong in [
            json!(""),
            json!("."),
            json!(".."),
            json!("../images"),
            json!(7),
            json!("shop-2.tar"),
        ] {
            let play = control.play(&json!({
                "airgapd_bundles": [new],
                "airgapd_old_bundles": ["shop-1.tar", wrong],
                "airgapd_timeout": "60s",
            }));
            play.fails_with(&format!("airgapd_old_bundles has {wrong}"));
        }
        // Without a subject no gate shows that the new images are in place.
        let play = control.play(&json!({"airgapd_old_bundles": ["shop-1.tar"]}));
        play.fails_with("airgapd_old_bundles needs airgapd_bundles");
        assert!(exists(stage.at(&of_before)) && !exists(stage.at("/etc/airgapd")));
    });
}

#[test]
fn the_receipt_of_an_old_bundle_goes_with_its_pins_and_its_lease() {
    on_a_node(|own, stage, control| {
        let [old, new] = ["old", "new"].map(|what| format!("registry.test/{what}-{}:1", unique()));
        let variables = |bundle: &str, old_bundles: &[&str]| {
            json!({
                "airgapd_bundles": [bundle],
                "airgapd_old_bundles": old_bundles,
                "airgapd_config": {"distribution": "auto", "afterImport": "receipt"},
                "airgapd_timeout": "60s",
            })
        };
        let receipt = |file: &str| stage.at(&format!("/var/lib/airgapd/receipts/{file}"));
        let is_receipt = |file: &str| exists(receipt(file)) && !exists(stage.at(&format!("{IMAGES}/{file}")));
        control
            .play(&variables(&control.bundle("shop-1.tar", &old), &[]))
            .succeeds();
        wait_until("a receipt has the old image", || is_receipt("shop-1.tar"));

        let next = variables(&control.bundle("shop-2.tar", &new), &["shop-1.tar"]);
        let play = control.play(&next).succeeds();
        assert!(!exists(receipt("shop-1.tar")), "{}", play.0.stdout);
        wait_until("a receipt has the new image", || is_receipt("shop-2.tar"));
        assert!(own.target.is_pinned(&new) && !own.target.is_pinned(&old));
        assert!(
            own.target.record(&old).is_some(),
            "kubelet decides about the image"
        );
        wait_until("the lease of the new receipt is the only one", || {
            own.target.leases().len() == 1
        });
        let again = control.play(&next).succeeds();
        assert_eq!(again.count("one", "changed"), Some(0), "{}", again.0.stdout);
    });
}

#[test]
fn a_release_that_goes_with_an_old_bundle_fails_the_play() {
    on_a_node(|_, stage, control| {
        let [old, new] = ["old", "new"].map(|what| format!("registry.test/{what}-{}:1", unique()));
        let made = program()
            .args(["bundle", "release", "shop-1"])
            .arg(control.bundle("shop-1.tar", &old))
            .arg("-o")
            .arg(control.at("release"))
            .output();
        assert!(made.expect("the program runs").status.success());
        let old = text(&control.at("release/shop-1.tar"));
        let new = control.bundle("shop-2.tar", &new);
        let variables = |bundle: &str, old_bundles: &[&str]| {
            json!({
                "airgapd_bundles": [bundle],
                "airgapd_old_bundles": old_bundles,
                "airgapd_release": "shop-1",
                "airgapd_timeout": "20s",
            })
        };
        control.play(&variables(&old, &[])).succeeds();
        let play = control.play(&variables(&new, &["shop-1.tar"]));
        assert!(!exists(stage.at(&format!("{IMAGES}/shop-1.tar"))));
        play.fails_with("release shop-1");
    });
}

/// Returns the conditions of a task, with those of an assertion.
fn conditions(task: &Value) -> Vec<Value> {
    let keys = ["when", "until", "failed_when", "changed_when"].map(|key| &task[key]);
    let assertion = [&task["ansible.builtin.assert"]["that"], &task["assert"]["that"]];
    let of = |value: &Value| match value {
        Value::Null => Vec::new(),
        Value::Array(values) => values.clone(),
        value => vec![value.clone()],
    };
    keys.into_iter().chain(assertion).flat_map(of).collect()
}

/// Returns true if a condition is a boolean, or an expression of a form that has a boolean result.
fn is_boolean(condition: &Value) -> bool {
    let forms = [
        // A filter binds more strongly than a comparison, and `and` gives one of its sides.
        r"^.+ (==|!=|<|<=|>|>=|in|not in) .+$",
        r"^\S+ is (not )?\w+(\(.*\))?$",
        r"^\(.+\)\.\w+ is (not )?\w+$",
        r"^\S+ \| bool$",
        r"^\w+\.stat\.exists$",
    ];
    match condition {
        Value::Bool(_) => true,
        Value::String(text) => {
            let is_compound = text.split_whitespace().any(|word| COMPOUND.contains(&word));
            let is_form = |form: &&str| Regex::new(form).expect("a pattern").is_match(text);
            !is_compound && forms.iter().any(is_form)
        }
        _ => false,
    }
}

/// Words that make the result that of a part.
const COMPOUND: [&str; 4] = ["and", "or", "if", "else"];

/// ansible-core 2.19 refuses a condition with another result. Earlier versions convert it.
#[test]
fn each_condition_of_the_role_has_a_boolean_result() {
    let role = workspace().join("config/fleet/ansible/roles/airgapd");
    let mut found = 0;
    for folder in ["tasks", "handlers"] {
        for entry in fs::read_dir(role.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let [tasks] = documents(&fs::read_to_string(&path).unwrap()).try_into().unwrap();
            let tasks: &Vec<Value> = tasks.as_array().expect("a list of tasks");
            for task in tasks {
                assert!(task["block"].is_null(), "this test does not read blocks");
                for condition in conditions(task) {
                    found += 1;
                    assert!(is_boolean(&condition), "{}: {condition}", path.display());
                }
            }
        }
    }
    assert!(found > 20, "{found}");
    for wrong in [
        "airgapd_gate | bool and wanted",
        "wanted",
        "wanted | length",
        "wanted | default([])",
        "wanted if gate > 0 else []",
        "not_here.stat",
    ] {
        assert!(!is_boolean(&json!(wrong)), "{wrong}");
    }
}
