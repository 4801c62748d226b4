//! `airgapd export`: writes the images of a containerd as a bundle that is the same everywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bundle::fixtures::{Archive, Image};
use fake_containerd::{Code, FakeConfig, Fault};
use oci_spec::image::{Descriptor, MediaType};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::bundles::{self, closure, image, multi_platform, native, text};
use crate::support::node::{self, Answer};
use crate::support::tools::{run, tool};
use crate::support::{
    Node, Place, Target, on_each_containerd, on_each_real_containerd, on_the_fake, unique, wait_until,
};

const ONE: &str = "registry.test/one:1";
const TWO: &str = "registry.test/two:1";
/// A platform that no test machine runs.
const FOREIGN: &str = "linux/s390x";

fn import(node: &Node, file: &str, images: impl IntoIterator<Item = Image>) -> Archive {
    let archive = bundles::write(&node.path(file), images);
    node.import([&node.path(file)]).exits(0);
    archive
}

fn export(node: &Node, file: &str, arguments: &[&str]) -> Answer {
    let file = text(&node.path(file));
    let all = ["export", "-o", "json", "-o", &file]
        .into_iter()
        .chain(arguments.iter().copied());
    node.airgapd(all)
}

/// Returns the targets of the records by name.
fn targets(target: &Target) -> BTreeMap<String, String> {
    let records = target.records().into_iter();
    records
        .map(|(name, record)| (name, record.target.digest().to_string()))
        .collect()
}

fn files_in(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn the_round_trip_gives_the_same_records_and_digests_and_the_same_bundle_again(target: &Target) {
    let node = Node::on(target);
    let layer = unique();
    let shared = |name: &str| Image::new(name).platform(native()).layer(layer.as_str());
    import(
        &node,
        "in.tar",
        [
            multi_platform(ONE, &[native(), FOREIGN]),
            shared(TWO),
            shared("registry.test/three:1").layer("more"),
        ],
    );
    let before = targets(target);
    let report = export(&node, "out.tar", &["--all"]).exits(0).json();
    assert_eq!(report["images"].as_array().unwrap().len(), 3, "{report:#}");
    assert_eq!(report["skipped"], json!([]));
    assert!(target.leases().is_empty());

    // Generations share no content with the stand-in or with each other.
    let other = match target.place() {
        Place::Fake => target.elsewhere(),
        Place::Real(_) => Target::fake(FakeConfig::default()),
    };
    let there = Node::on(&other);
    there.import([node.path("out.tar")]).exits(0);
    assert_eq!(targets(&other), before);
    assert_eq!(other.digests(), target.digests());
    export(&there, "again.tar", &["--all"]).exits(0);
    let bytes = |node: &Node, file| fs::read(node.path(file)).unwrap();
    assert!(
        bytes(&node, "out.tar") == bytes(&there, "again.tar"),
        "the same images are the same bytes"
    );
    other.assert_tidy();
}

fn an_image_of_which_one_platform_is_there_keeps_the_digest_of_its_index(target: &Target) {
    let node = Node::on(target);
    let archive = import(&node, "in.tar", [multi_platform(ONE, &[native(), FOREIGN])]);
    let [ours, theirs] = &archive.images[0].manifests[..] else {
        panic!("two platforms")
    };
    let root = archive.images[0].root.to_string();
    for (file, platforms) in [("a.tar", &[][..]), ("b.tar", &["--platform", "all"])] {
        let arguments: Vec<&str> = [ONE].iter().chain(platforms).copied().collect();
        let report = export(&node, file, &arguments).exits(0).json();
        let image = &report["images"][0];
        assert_eq!(image["digest"], json!(root));
        assert_eq!(image["platforms"], json!([native()]), "{report:#}");
        assert_eq!(image["names"], json!([ONE, format!("registry.test/one@{root}")]));
        let absent = format!("{FOREIGN}: {} is not in containerd", theirs.digest);
        let left_out = json!([{"platform": FOREIGN, "digest": theirs.digest.to_string(), "reason": absent}]);
        assert_eq!(image["left_out"], left_out);
        let blobs = u64::try_from(closure(ours).len()).unwrap() + 1;
        assert_eq!(report["blobs"]["written"], json!(blobs));
    }
    assert_eq!(
        fs::read(node.path("a.tar")).unwrap(),
        fs::read(node.path("b.tar")).unwrap()
    );
    let inspected = node
        .airgapd(["inspect", "--verify", "-o", "json", &text(&node.path("a.tar"))])
        .exits(0)
        .json();
    assert_eq!(inspected["verified"]["damaged"], json!([]));

    let answer = export(&node, "c.tar", &[ONE, "--platform", FOREIGN]).exits(1);
    assert!(
        answer.json()["error"]
            .as_str()
            .unwrap()
            .contains(theirs.digest.as_ref()),
        "{answer:?}"
    );
    let both = export(
        &node,
        "d.tar",
        &[ONE, "--platform", native(), "--platform", FOREIGN],
    )
    .exits(0);
    assert!(
        both.json()["images"][0]["absent"][0]
            .as_str()
            .unwrap()
            .contains(FOREIGN),
        "{both:?}"
    );
    assert!(both.stderr.contains(theirs.digest.as_ref()), "{both:?}");
    assert_eq!(
        files_in(&node.path(""))
            .iter()
            .filter(|file| file.contains("c.tar"))
            .count(),
        0
    );
}

fn what_is_not_there_is_named_with_what_comes_closest_and_nothing_is_written(target: &Target) {
    let node = Node::on(target);
    let empty = export(&node, "out.tar", &["--all"]).exits(1);
    assert!(
        empty.json()["error"]
            .as_str()
            .unwrap()
            .contains("there are no images"),
        "{empty:?}"
    );
    import(&node, "in.tar", [image(ONE)]);
    let list = node.path("list.txt");
    fs::write(
        &list,
        "# ours\nregistry.test/one:2\n\nno/Reference\nregistry.test/nothing/like:it\n",
    )
    .unwrap();
    let before = files_in(&node.path(""));
    let answer = export(&node, "out.tar", &[ONE, "--images", &text(&list)]).exits(1);
    let error = answer.json()["error"].as_str().unwrap().to_owned();
    for said in [
        "registry.test/one:2: containerd has no image of this name (the closest is registry.test/one:1)",
        "\"no/Reference\"",
        "registry.test/nothing/like:it: containerd has no image of this name",
    ] {
        assert!(error.contains(said), "{error}");
    }
    // In the log each of them has its own line.
    let lines = answer.stderr.lines();
    let of_images = lines.filter(|line| line.contains("containerd has no image of this name"));
    assert_eq!(of_images.count(), 2, "{answer:?}");
    assert_eq!(files_in(&node.path("")), before);
    assert!(target.leases().is_empty());
}

fn of_everything_what_is_whole_is_taken_and_what_lost_its_layers_is_told(target: &Target) {
    let node = Node::on(target);
    import(&node, "in.tar", [image(ONE)]);
    let broken = bundles::layout([image(TWO)]).build();
    let built = &broken.images[0].manifests[0];
    let bytes = |digest| broken.bytes_of(&broken.name_of(digest));
    // containerd leaves an image in this state after it discards the layers: only the label of the
    // config shows that the image is unpacked.
    let config = target.put_blob(
        &bytes(&built.config),
        &[("containerd.io/gc.ref.snapshot.overlayfs", "sha256:aa")],
    );
    let manifest = bytes(&built.digest);
    let labels = [("containerd.io/gc.ref.content.config", config.as_ref())];
    let digest = target.put_blob(&manifest, &labels);
    let descriptor = Descriptor::new(MediaType::ImageManifest, manifest.len() as u64, digest.clone());
    target.put_record(TWO, &descriptor, &[]);

    let report = export(&node, "out.tar", &["--all"]).exits(0).json();
    assert_eq!(report["images"].as_array().unwrap().len(), 1, "{report:#}");
    let skipped = &report["skipped"][0];
    assert_eq!(skipped["name"], json!(TWO));
    let reason = skipped["reason"].as_str().unwrap();
    assert!(
        reason.contains("discard_unpacked_layers") && reason.contains(built.layers[0].as_ref()),
        "{reason}"
    );
    let answer = export(&node, "two.tar", &[ONE, TWO]).exits(1);
    assert!(
        answer.json()["error"]
            .as_str()
            .unwrap()
            .contains("discard_unpacked_layers"),
        "{answer:?}"
    );
    assert!(!node.path("two.tar").exists());
    target.remove_record(TWO);
    target.let_go(&config);
    target.let_go(&digest);
}

fn references_come_from_a_pipe_and_the_bundle_goes_into_one(target: &Target) {
    let node = Node::on(target);
    import(&node, "in.tar", [image(ONE), image(TWO)]);
    fs::write(node.path("list"), format!("{ONE}\n# nothing\n{TWO}\n")).unwrap();
    let piped = |form: &str| {
        let mut command = node.command(["export", "-o", "-", "--compress", form]);
        command.stdin(fs::File::open(node.path("list")).unwrap());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("2 images"), "{said}");
        output.stdout
    };
    export(&node, "out.tar", &["--all"]).exits(0);
    assert!(piped("none") == fs::read(node.path("out.tar")).unwrap());
    fs::write(node.path("out.zst"), piped("zstd")).unwrap();
    let elsewhere = Node::on(&target.elsewhere());
    elsewhere.import([node.path("out.zst")]).exits(0);
}

on_each_containerd! {
    the_round_trip_gives_the_same_records_and_digests_and_the_same_bundle_again,
    an_image_of_which_one_platform_is_there_keeps_the_digest_of_its_index,
    what_is_not_there_is_named_with_what_comes_closest_and_nothing_is_written,
    of_everything_what_is_whole_is_taken_and_what_lost_its_layers_is_told,
    references_come_from_a_pipe_and_the_bundle_goes_into_one,
}

fn ctr_imports_what_was_exported(target: &Target) {
    let node = Node::on(target);
    import(
        &node,
        "in.tar",
        [multi_platform(ONE, &[native(), FOREIGN]), image(TWO)],
    );
    export(&node, "out.tar", &["--all"]).exits(0);
    let other = target.elsewhere();
    other.ctr(&["images", "import", "--no-unpack", &text(&node.path("out.tar"))]);
    assert_eq!(targets(&other), targets(target));
    // ctr stores index.json as a blob too.
    other.collect_garbage();
    assert_eq!(other.digests(), target.digests());
}

fn skopeo_and_umoci_read_what_was_exported(target: &Target) {
    let (Some(skopeo), Some(umoci)) = (tool("skopeo"), tool("umoci")) else {
        return;
    };
    let node = Node::on(target);
    let archive = import(&node, "in.tar", [image(ONE)]);
    export(&node, "out.tar", &[ONE]).exits(0);
    // containerd has a record by tag and a record by digest. Without a name, the bundle must still
    // have one entry.
    assert_eq!(target.names().len(), 2);
    let unnamed = format!("oci-archive:{}", text(&node.path("out.tar")));
    let exported = format!("{unnamed}:{ONE}");
    for form in [&unnamed, &exported] {
        let mut inspect = Command::new(&skopeo);
        let inspected = inspect
            .args(["inspect", "--format", "{{.Digest}}", form])
            .output()
            .unwrap();
        assert!(inspected.status.success(), "{inspected:?}");
        let digest = String::from_utf8(inspected.stdout).unwrap();
        assert_eq!(digest.trim(), archive.images[0].manifests[0].digest.as_ref());
    }
    let layout = text(&node.path("layout"));
    let copied = format!("oci:{layout}:copied");
    run(Command::new(&skopeo).args(["--insecure-policy", "copy", "--quiet", &exported, &copied]));
    run(Command::new(&umoci).args(["stat", "--image", &format!("{layout}:copied")]));
}

on_each_real_containerd!(
    ctr_imports_what_was_exported,
    skopeo_and_umoci_read_what_was_exported
);

/// Starts an export with slow reads, and waits until it writes.
fn begin_slowly(node: &Node, target: &Target) -> std::process::Child {
    let fake = target.as_fake().unwrap();
    fake.inject(Fault::Delay {
        rpc: "Content.Read",
        by: Duration::from_millis(150),
    });
    let file = text(&node.path("out.tar"));
    let mut command = node.command(["export", "--all", "-o", &file]);
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the export writes", || {
        files_in(&node.path(""))
            .iter()
            .any(|file| file.starts_with(".out.tar"))
    });
    child
}

fn an_image_that_is_removed_while_it_is_exported_is_exported(target: &Target) {
    let node = Node::on(target);
    let archive = import(&node, "in.tar", [image(ONE), image(TWO)]);
    let child = begin_slowly(&node, target);
    let names: Vec<String> = target.names().into_iter().collect();
    for name in &names {
        target.remove_record(name);
    }
    target.collect_garbage();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(target.leases().is_empty());
    target.as_fake().unwrap().clear_faults();
    let elsewhere = target.elsewhere();
    Node::on(&elsewhere).import([node.path("out.tar")]).exits(0);
    assert_eq!(elsewhere.digests(), bundles::needed_here(&archive.images));
}

fn an_export_that_is_interrupted_leaves_neither_a_file_nor_a_lease(target: &Target) {
    let node = Node::on(target);
    import(&node, "in.tar", [image(ONE), image(TWO)]);
    let before = files_in(&node.path(""));
    for signal in [Signal::TERM, Signal::INT] {
        let child = begin_slowly(&node, target);
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(files_in(&node.path("")), before);
        assert!(target.leases().is_empty());
    }
    target.as_fake().unwrap().clear_faults();
}

/// Number of reads before the layer is written. The manifest and its config are read once for the
/// check and once for the output.
const READS_BEFORE_THE_LAYER: u64 = 4;

fn a_read_that_fails_is_tried_again_and_a_blob_that_is_gone_ends_it(target: &Target) {
    let node = Node::on(target);
    let archive = import(&node, "in.tar", [image(ONE)]);
    let fake = target.as_fake().unwrap();
    let fail = |code| {
        fake.inject(Fault::Fail {
            rpc: "Content.Read",
            nth: READS_BEFORE_THE_LAYER + 1,
            code,
            message: "for a test".to_owned(),
        });
    };
    fail(Code::Unavailable);
    export(&node, "out.tar", &["--all"]).exits(0);
    fs::remove_file(node.path("out.tar")).unwrap();
    let before = files_in(&node.path(""));
    let layer = archive.images[0].manifests[0].layers[0].as_ref();
    fail(Code::NotFound);
    let answer = export(&node, "out.tar", &["--all"]).exits(1);
    assert!(
        answer.json()["error"].as_str().unwrap().contains(layer),
        "{answer:?}"
    );
    fake.corrupt_blob(layer, b"something else");
    let answer = export(&node, "out.tar", &["--all"]).exits(1);
    assert!(
        answer.json()["error"].as_str().unwrap().contains(layer),
        "{answer:?}"
    );
    assert_eq!(files_in(&node.path("")), before);
    assert!(target.leases().is_empty());
}

fn nothing_is_written_to_a_terminal_and_mistakes_are_told_before_anything_is_done(target: &Target) {
    let node = Node::on(target);
    import(&node, "in.tar", [image(ONE)]);
    let program = env!("CARGO_BIN_EXE_airgapd");
    let on_terminal = format!(
        "'{program}' export --all -o - --config '{}'",
        text(&node.path("config.yaml"))
    );
    let mut script = Command::new("script");
    // script must not pass on variables that the program should not see.
    for (variable, _) in node::program().get_envs().filter(|(_, value)| value.is_none()) {
        script.env_remove(variable);
    }
    let script = script
        .args(["-qec", &on_terminal, "/dev/null"])
        .stdin(Stdio::null())
        .output()
        .expect("script is in bsdutils, which every Debian has");
    assert_eq!(script.status.code(), Some(2), "{script:?}");
    assert!(
        String::from_utf8_lossy(&script.stdout).contains("refusing to write a bundle to a terminal"),
        "{script:?}"
    );
    let file = text(&node.path("out.tar"));
    let rows: [(&[&str], &str); 4] = [
        (&["export", "--all", "-o", "json"], "cannot both"),
        (&["export", "--all", "-o", "-", "-o", "json"], "cannot both"),
        (&["export", "-o", &file], "no image is named"),
        (
            &["export", "-o", &file, "--images", "/nonexistent/list"],
            "/nonexistent/list",
        ),
    ];
    for (arguments, said) in rows {
        let answer = node.airgapd(arguments).exits(2);
        assert!(answer.said().contains(said), "{answer:?}");
    }
    let nowhere = Node::at("/nonexistent/containerd.sock".as_ref(), target.namespace());
    let answer = nowhere
        .airgapd(["export", "--all", "-o", "json", "-o", &file])
        .exits(3);
    assert!(
        answer.json()["error"]
            .as_str()
            .unwrap()
            .contains("/nonexistent/containerd.sock")
    );
    let answer = node
        .airgapd(["export", "--all", "-o", "/nonexistent/folder/out.tar"])
        .exits(1);
    assert!(
        answer.stderr.contains("/nonexistent/folder/out.tar"),
        "{answer:?}"
    );
}

fn an_inventory_lists_what_records_keep_and_nothing_else(target: &Target) {
    let node = Node::on(target);
    let archive = import(&node, "in.tar", [multi_platform(ONE, &[native(), FOREIGN])]);
    let loose = target.put_blob(unique().as_bytes(), &[]);
    let document = node.airgapd(["inventory"]).exits(0).json();
    let digests: BTreeSet<String> = document["blobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(digest_of)
        .collect();
    assert_eq!(digests, bundles::needed_here(&archive.images));
    assert!(target.digests().contains(loose.as_ref()));
    let file = text(&node.path("inventory.json"));
    node.airgapd(["inventory", "-o", &file]).exits(0);
    let written: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(written, document);
    target.let_go(&loose);
}

fn digest_of(blob: &Value) -> String {
    blob["digest"].as_str().unwrap().to_owned()
}

on_the_fake! {
    an_image_that_is_removed_while_it_is_exported_is_exported,
    an_export_that_is_interrupted_leaves_neither_a_file_nor_a_lease,
    a_read_that_fails_is_tried_again_and_a_blob_that_is_gone_ends_it,
    nothing_is_written_to_a_terminal_and_mistakes_are_told_before_anything_is_done,
    an_inventory_lists_what_records_keep_and_nothing_else,
}
