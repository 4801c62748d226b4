//! `airgapd verify`: compares the images that a node will need with those that it has.

use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use bundle::fixtures::{Archive, Image, Layer, LayerFile};
use oci_spec::image::{Descriptor, MediaType};
use serde_json::{Value, json};

use crate::support::bundles::{self, image, multi_platform, native, text};
use crate::support::{
    Node, Own, Place, Target, on_each_containerd, on_its_own_containerd, on_the_fake, unique, wait_until,
};
use lab::{Generation, Options};

/// A platform that no test machine runs.
const FOREIGN: &str = "linux/s390x";

/// Returns a repository that no other test uses.
fn repository() -> String {
    format!("registry.test/verify-{}", unique())
}

fn verify(node: &Node, arguments: &[&str]) -> crate::support::node::Answer {
    node.airgapd(["verify", "-o", "json"].iter().chain(arguments))
}

fn list(node: &Node, references: &[&str]) -> String {
    let path = node.path("list.txt");
    fs::write(&path, references.join("\n")).unwrap();
    text(&path)
}

fn of<'d>(document: &'d Value, reference: &str) -> &'d Value {
    let images = document["images"].as_array().unwrap();
    let found = images.iter().find(|image| image["reference"] == reference);
    found.unwrap_or_else(|| panic!("{reference} is not in {document:#}"))
}

fn import(node: &Node, file: &str, images: impl IntoIterator<Item = Image>) -> Archive {
    let archive = bundles::write(&node.path(file), images);
    node.import([&node.path(file)]).exits(0);
    archive
}

/// Creates an image without its layer, like an importer that checks nothing.
fn put_broken(target: &Target, name: &str) -> [oci_spec::image::Digest; 2] {
    let archive = bundles::layout([image(name)]).build();
    let built = &archive.images[0].manifests[0];
    let bytes = |digest| archive.bytes_of(&archive.name_of(digest));
    let config = target.put_blob(&bytes(&built.config), &[]);
    let manifest = bytes(&built.digest);
    let digest = target.put_blob(
        &manifest,
        &[("containerd.io/gc.ref.content.config", config.as_ref())],
    );
    let descriptor = Descriptor::new(MediaType::ImageManifest, manifest.len() as u64, digest.clone());
    target.put_record(name, &descriptor, &[]);
    [config, digest]
}

/// Images on the command line are sources like those of a list.
fn images_on_the_command_line_are_verified(target: &Target) {
    let target = &target.in_kubernetes();
    let node = Node::on(target);
    let at = repository();
    let (present, absent) = (format!("{at}/present:1"), format!("{at}/absent:1"));
    import(&node, "all.tar", [image(&present)]);
    verify(&node, &[&present, "--sandbox-image", &present]).exits(0);
    let document = verify(&node, &[&present, &absent]).exits(4).json();
    assert_eq!(of(&document, &present)["status"], "present", "{document:#}");
    let missing = of(&document, &absent);
    assert_eq!(missing["status"], "absent", "{document:#}");
    assert_eq!(missing["sources"][0]["kind"], "list", "{document:#}");
    let said = node.airgapd(["verify", &absent]).exits(4);
    assert!(said.said().contains("the command line"), "{}", said.said());
}

/// Thirty references of every kind. Five of them fail for five different reasons.
fn of_thirty_references_the_five_that_fail_are_named_with_what_to_do(target: &Target) {
    let target = &target.in_kubernetes();
    let node = Node::on(target);
    let at = repository();
    let hub = format!("verify-{}", unique());
    let name = |image: &str| format!("{at}/{image}:1");
    let archive = import(
        &node,
        "all.tar",
        [
            image(&name("web")),
            image(&name("init")),
            image(&name("debug")),
            image(&name("volume")),
            image(&name("pinned")),
            multi_platform(&name("multi"), &[native(), FOREIGN]),
            image(&format!("docker.io/library/{hub}:latest")),
            image(&format!("docker.io/{hub}/deep:1")),
        ],
    );
    let digest = |number: usize| archive.images[number].root.to_string();
    let id = archive.images[0].manifests[0].config.to_string();
    // The five: only in a bundle of the folder, another tag, another platform, another digest, a
    // missing layer.
    fs::copy(
        bundles_file(&node, "waiting.tar", &name("waiting")),
        node.images().join("waiting.tar"),
    )
    .unwrap();
    let foreign = node.path("foreign.tar");
    bundles::write(
        &foreign,
        [multi_platform(&name("foreign"), &[FOREIGN, "linux/ppc64le"])],
    );
    let foreign = [text(&foreign), "--platform".to_owned(), FOREIGN.to_owned()];
    node.import(foreign.iter()).exits(0);
    let multi = archive.images[5].manifests.iter().find(|manifest| {
        manifest
            .platform
            .as_ref()
            .is_some_and(|platform| platform.to_string() == native())
    });
    let other_digest = format!("{at}/multi@{}", multi.unwrap().digest);
    let broken = put_broken(target, &name("broken"));

    let manifests = node.path("manifests");
    write_manifests(&manifests, &at, &hub, &id, &digest, &other_digest);
    wait_until("CRI has taken everything in", || {
        target.image_status(&id).is_some() && target.image_status(&name("pinned")).is_some()
    });
    let arguments = ["--manifests", &text(&manifests), "--sandbox-image", &name("web")];
    let document = verify(&node, &arguments).exits(4).json();
    let sources = document["images"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|image| image["sources"].as_array().unwrap());
    let asked = sources.filter(|source| source["kind"] == "manifest").count();
    assert_eq!(asked, 30, "{document:#}");
    let status = |image: &Value| image["status"].as_str().unwrap().to_owned();
    let missing: Vec<_> = document["images"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|image| status(image) != "present")
        .collect();
    let rows = [
        (name("waiting"), "absent", "airgapd import"),
        (name("web").replace(":1", ":2"), "absent", &*name("web")),
        (name("foreign"), "wrong_platform", "platform"),
        (
            other_digest.clone(),
            "absent",
            &*format!("{at}/multi@{}", digest(5)),
        ),
        (name("broken"), "incomplete", "import a bundle"),
    ];
    assert_eq!(missing.len(), rows.len(), "{missing:#?}");
    for (reference, expected, remedy) in &rows {
        let image = of(&document, reference);
        assert_eq!(status(image), *expected, "{image:#}");
        assert!(image["remedy"].as_str().unwrap().contains(remedy), "{image:#}");
    }
    let differs = |reference: &str| of(&document, reference)["near_miss"]["differs_in"].clone();
    assert_eq!(differs(&rows[1].0), "tag");
    assert_eq!(differs(&rows[2].0), "platform");
    assert_eq!(differs(&rows[3].0), "digest");
    assert!(
        of(&document, &rows[0].0)["found_in"]
            .as_str()
            .unwrap()
            .ends_with("waiting.tar")
    );
    assert!(
        of(&document, &rows[4].0)["problems"][0]
            .as_str()
            .unwrap()
            .contains("layer 1 of 1")
    );
    assert_eq!(of(&document, &name("pinned"))["pinned"], true);
    assert_eq!(of(&document, &name("pinned"))["bundles"], json!(["all.tar"]));

    says_it_on_a_screen(&node, &arguments, &rows.map(|(reference, ..)| reference));
    target.remove_record(&name("broken"));
    broken.iter().for_each(|digest| target.let_go(digest));
}

fn bundles_file(node: &Node, file: &str, name: &str) -> std::path::PathBuf {
    let path = node.path(file);
    bundles::write(&path, [image(name)]);
    path
}

/// The output for people has a line for each present image, five blocks, and no line wider than a
/// screen.
fn says_it_on_a_screen(node: &Node, arguments: &[&str], missing: &[String]) {
    let answer = node.airgapd(["verify"].iter().chain(arguments)).exits(4);
    assert!(
        answer.stdout.lines().all(|line| line.chars().count() <= 100),
        "{}",
        answer.stdout
    );
    let marks = ["MISSING", "BROKEN", "INVALID"];
    let begins = |line: &&str| marks.iter().any(|mark| line.starts_with(mark));
    assert_eq!(
        answer.stdout.lines().filter(begins).count(),
        missing.len(),
        "{}",
        answer.stdout
    );
    assert_eq!(
        answer.stdout.matches("\n  remedy ").count(),
        missing.len(),
        "{}",
        answer.stdout
    );
    assert!(answer.stdout.contains("5 missing"), "{}", answer.stdout);
}

/// Writes manifests with every workload kind, every kind of container, lists, JSON and several
/// documents. References are by tag, by digest, by both, and by id.
fn write_manifests(
    folder: &std::path::Path,
    at: &str,
    hub: &str,
    id: &str,
    digest: &dyn Fn(usize) -> String,
    other_digest: &str,
) {
    let deep = folder.join("deep");
    fs::create_dir_all(&deep).unwrap();
    let spec = |images: &[&str]| {
        let containers: Vec<_> = images
            .iter()
            .map(|image| format!("{{name: a, image: '{image}'}}"))
            .collect();
        format!("{{containers: [{}]}}", containers.join(", "))
    };
    let workload = |version: &str, kind: &str, spec: &str| {
        format!(
            "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: n}}\nspec: {{template: {{spec: {spec}}}}}\n"
        )
    };
    let web = format!("{at}/web:1");
    let first = [
        // 4: all kinds of containers and a volume.
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {{initContainers: [{{image: '{at}/init:1'}}], \
             containers: [{{image: '{web}'}}], ephemeralContainers: [{{image: '{at}/debug:1'}}], \
             volumes: [{{name: v, image: {{reference: '{at}/volume:1'}}}}]}}\n"
        ),
        // 3: the short names of docker.io.
        workload(
            "apps/v1",
            "Deployment",
            &spec(&[hub, &format!("{hub}:latest"), &format!("{hub}/deep:1")]),
        ),
        // 3: by digest, by both, by id.
        workload(
            "apps/v1",
            "DaemonSet",
            &spec(&[
                &format!("{at}/web@{}", digest(0)),
                &format!("{at}/web:1@{}", digest(0)),
                id,
            ]),
        ),
        // 2: the long names of docker.io.
        workload(
            "apps/v1",
            "StatefulSet",
            &spec(&[
                &format!("docker.io/library/{hub}"),
                &format!("index.docker.io/{hub}/deep:1"),
            ]),
        ),
        // 1 + 1 + 1.
        workload("apps/v1", "ReplicaSet", &spec(&[&format!("{at}/pinned:1")])),
        workload("v1", "ReplicationController", &spec(&[&format!("{at}/multi:1")])),
        workload("batch/v1", "Job", &spec(&[&format!("{at}/multi@{}", digest(5))])),
        // 1.
        format!(
            "apiVersion: batch/v1\nkind: CronJob\nmetadata: {{name: c}}\nspec: {{jobTemplate: {{spec: {{template: {{spec: {}}}}}}}}}\n",
            spec(&[&web])
        ),
        // 1.
        format!(
            "apiVersion: v1\nkind: PodTemplate\ntemplate: {{spec: {}}}\n",
            spec(&[&web])
        ),
    ];
    fs::write(folder.join("all.yaml"), first.join("---\n")).unwrap();
    // 2 in a custom resource, 3 in a list, 3 in JSON.
    fs::write(
        folder.join("rollout.yml"),
        workload(
            "argoproj.io/v1alpha1",
            "Rollout",
            &spec(&[&web, &format!("{at}/init:1")]),
        ),
    )
    .unwrap();
    let pod =
        |image: &str| json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"image": image}]}});
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [pod(&web), pod(&format!("{at}/volume:1")), pod(&format!("{at}/debug:1"))]});
    fs::write(deep.join("list.json"), list.to_string()).unwrap();
    let pods = [
        pod(&web),
        pod(&format!("{at}/pinned@{}", digest(4))),
        pod(&format!("{at}/multi:1")),
    ];
    fs::write(deep.join("pods.json"), pods.map(|pod| pod.to_string()).join("\n")).unwrap();
    // The five.
    let bad = [
        format!("{at}/waiting:1"),
        format!("{at}/web:2"),
        format!("{at}/foreign:1"),
        other_digest.to_owned(),
        format!("{at}/broken:1"),
    ];
    let bad: Vec<_> = bad.iter().map(String::as_str).collect();
    fs::write(
        deep.join("bad.yaml"),
        workload("apps/v1", "Deployment", &spec(&bad)),
    )
    .unwrap();
    fs::write(
        folder.join("values.yaml"),
        "image: {repository: none, tag: none}\n",
    )
    .unwrap();
}

/// containerd up to 1.7 reports its sandbox image. Later versions report it when pods exist.
fn the_sandbox_image_is_asked_for_where_containerd_tells_it(target: &Target) {
    let target = &target.in_kubernetes();
    let node = Node::on(target);
    let name = format!("{}:1", repository());
    import(&node, "app.tar", [image(&name)]);
    let answer = verify(&node, &["--images", &list(&node, &[&name])]);
    let document = answer.json();
    assert_eq!(of(&document, &name)["status"], "present", "{document:#}");
    let images = document["images"].as_array().unwrap();
    let sandbox = images
        .iter()
        .find(|image| image["sources"][0]["kind"] == "sandbox");
    match target.place() {
        Place::Real(Generation::V1_6 | Generation::V1_7) => {
            assert_eq!(
                sandbox.unwrap()["reference"],
                "airgapd.test/pause:latest",
                "{document:#}"
            );
        }
        Place::Real(_) | Place::Fake => {
            let notes = document["notes"].to_string();
            assert!(
                sandbox.is_some() || notes.contains("--sandbox-image"),
                "{document:#}"
            );
        }
    }
}

/// Registries under another name, bundles without a similar image, bad references, ids, and bundles
/// in the folder.
fn every_miss_says_what_comes_closest(target: &Target) {
    let node = Node::on(target);
    let at = repository();
    let app = format!("{at}/app:1");
    let other = format!("{at}/app:2-alpine");
    let archive = import(&node, "app.tar", [image(&app), image(&other)]);
    let root = archive.images[0].root.to_string();
    let path = at.split_once('/').unwrap().1;
    let zeros = "0".repeat(64);
    let mirrored = format!("mirror.test:5000/{path}/app:1");
    let moved = format!("elsewhere.test/x/{path}/y/app:1");
    let by_digest = format!("mirror.test:5000/{path}/app@{root}");
    let other_build = format!("{at}/app@sha256:{zeros}");
    let near_tag = format!("{at}/app:2-alpine3");
    // The bundle is in the folder too, but an image in containerd is closer.
    fs::copy(node.path("app.tar"), node.images().join("app.tar")).unwrap();
    let nothing = format!("nowhere.test/{}:1", unique());
    let references = [
        &*mirrored,
        &moved,
        &by_digest,
        &other_build,
        &near_tag,
        &nothing,
        "Not-A-Name",
        &format!("sha256:{zeros}"),
    ];
    let document = verify(&node, &["--images", &list(&node, &references)])
        .exits(4)
        .json();
    for (reference, status, differs_in, remedy) in [
        (
            &*mirrored,
            "absent",
            json!("registry"),
            "the alias registry.test=mirror.test:5000",
        ),
        (
            &moved,
            "absent",
            json!("registry"),
            &*format!("{at}/app=elsewhere.test"),
        ),
        (&by_digest, "absent", json!("registry"), "alias"),
        (&other_build, "absent", json!("digest"), "another build"),
        (&near_tag, "absent", json!("tag"), &*other),
        (&nothing, "absent", Value::Null, "add it to a bundle"),
        (
            "Not-A-Name",
            "invalid_reference",
            Value::Null,
            "correct the reference",
        ),
    ] {
        let image = of(&document, reference);
        assert_eq!(image["status"], status, "{image:#}");
        let near = &image["near_miss"];
        assert_eq!(
            if near.is_null() {
                &Value::Null
            } else {
                &near["differs_in"]
            },
            &differs_in,
            "{image:#}"
        );
        assert!(near.is_null() || near["place"] == "containerd", "{image:#}");
        assert!(image["remedy"].as_str().unwrap().contains(remedy), "{image:#}");
    }
}

fn bundles_are_verified_before_they_travel(target: &Target) {
    let node = Node::at("/nonexistent/containerd.sock".as_ref(), target.namespace());
    let at = repository();
    let name = |image: &str| format!("{at}/{image}:1");
    let good = bundles_file(&node, "good.tar", &name("good"));
    let mut archive = bundles::layout([
        multi_platform(&name("broken"), &[native()]),
        multi_platform(&name("foreign"), &[FOREIGN]),
    ])
    .build();
    let layer = archive.images[0].manifests[0].layers[0].clone();
    let bad = node.path("bad.tar");
    archive.remove_blob(&layer).write_to(&bad);
    let (good, bad) = (text(&good), text(&bad));
    let list = list(
        &node,
        &[&name("good"), &name("broken"), &name("foreign"), &name("absent")],
    );
    let document = verify(&node, &["--bundle", &good, "--bundle", &bad, "--images", &list])
        .exits(4)
        .json();
    assert_eq!(document["containerd"], Value::Null);
    for (image, status) in [
        ("good", "present"),
        ("broken", "incomplete"),
        ("foreign", "wrong_platform"),
        ("absent", "absent"),
    ] {
        assert_eq!(of(&document, &name(image))["status"], status, "{document:#}");
    }
    assert_eq!(of(&document, &name("good"))["place"], good);
    let other = verify(
        &node,
        &["--bundle", &bad, "--platform", FOREIGN, "--images", &list],
    )
    .exits(4)
    .json();
    assert_eq!(of(&other, &name("foreign"))["status"], "present", "{other:#}");
    fs::write(node.path("one.txt"), name("good")).unwrap();
    verify(
        &node,
        &["--bundle", &good, "--images", &text(&node.path("one.txt"))],
    )
    .exits(0);
    fs::write(node.path("text.tar"), "no bundle".repeat(100)).unwrap();
    verify(
        &node,
        &["--bundle", &text(&node.path("text.tar")), "--images", &list],
    )
    .exits(5);
}

fn who_may_pull_is_named_where_nobody_shall(target: &Target) {
    let node = Node::on(target);
    let name = format!("{}:1", repository());
    import(&node, "app.tar", [image(&name)]);
    let manifest = |policy: &str| {
        let path = node.path("pod.yaml");
        fs::write(&path, format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {{containers: [{{image: '{name}'{policy}}}]}}\n")).unwrap();
        text(&path)
    };
    let never = manifest(", imagePullPolicy: Never");
    verify(&node, &["--manifests", &never, "--require-never"]).exits(0);
    let pulling = manifest("");
    let document = verify(&node, &["--manifests", &pulling, "--require-never"])
        .exits(4)
        .json();
    assert_eq!(document["complete"], false);
    assert_eq!(
        document["pulls"][0]["source"]["pull_policy"], "IfNotPresent",
        "{document:#}"
    );
    verify(&node, &["--manifests", &pulling]).exits(0);

    // k0s's own pods, from its configuration.
    let config = node.path("k0s.yaml");
    fs::write(&config, "kind: ClusterConfig\nspec: {}\n").unwrap();
    let arguments = [
        "--k0s-config",
        &text(&config),
        "--k0s-version",
        "1.36",
        "--require-never",
    ];
    let document = verify(&node, &arguments).exits(4).json();
    assert_eq!(document["pulls"].as_array().unwrap().len(), 7, "{document:#}");
    fs::write(
        &config,
        "kind: ClusterConfig\nspec: {images: {default_pull_policy: Never}}\n",
    )
    .unwrap();
    assert_eq!(verify(&node, &arguments).exits(4).json()["pulls"], json!([]));
}

/// kubelet reads every file of its folder except hidden files and folders. Lists and manifests may
/// come from standard input.
fn static_pods_are_found_as_kubelet_finds_them_and_lists_may_be_piped(target: &Target) {
    let node = Node::on(target);
    let at = repository();
    let name = |image: &str| format!("{at}/{image}:1");
    import(&node, "app.tar", [image(&name("there"))]);
    let pods = node.path("pods");
    fs::create_dir_all(pods.join("deeper")).unwrap();
    let pod = |image: &str| {
        let spec = json!({"containers": [{"image": name(image), "imagePullPolicy": "Never"}]});
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": image}, "spec": spec}).to_string()
    };
    for (file, image) in [
        ("a", "there"),
        ("b.txt", "absent"),
        (".c.yaml", "hidden"),
        ("deeper/d.yaml", "deep"),
    ] {
        fs::write(pods.join(file), pod(image)).unwrap();
    }
    let document = verify(&node, &["--static-pods", &text(&pods), "--require-never"])
        .exits(4)
        .json();
    let images = document["images"].as_array().unwrap();
    let found: Vec<_> = images.iter().map(|image| image["reference"].clone()).collect();
    assert_eq!(
        found,
        [json!(name("absent")), json!(name("there"))],
        "{document:#}"
    );
    assert_eq!(images[0]["sources"][0]["kind"], "static-pod");
    assert_eq!(document["pulls"], json!([]));

    let piped = |flag: &str, input: &str| {
        let mut command = node.command(["verify", "-o", "json", flag, "-"]);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut running = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = running.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        drop(stdin);
        crate::support::node::Answer::from(running.wait_with_output().unwrap())
    };
    piped("--images", &format!("# ours\n{}\n", name("there"))).exits(0);
    piped("--images", &name("absent")).exits(4);
    piped("--manifests", &pod("there")).exits(0);
    piped("--manifests", &pod("absent")).exits(4);
}

/// containerd still lists a layer whose file was deleted. Only its store shows that the image is
/// incomplete.
fn a_layer_that_is_listed_and_wiped_is_missed(own: &mut Own) {
    let target = &own.target;
    let node = Node::on(target);
    let name = format!("{}/app:1", repository());
    let archive = import(&node, "app.tar", [image(&name)]);
    let one = list(&node, &[&name]);
    // Only a list is verified, so the sandbox image does not matter.
    let status = || {
        let document = verify(&node, &["--images", &one]).json();
        of(&document, &name).clone()
    };
    assert_eq!(status()["status"], "present");
    let layer = &archive.images[0].manifests[0].layers[0];
    let store = own.containerd.root().join("io.containerd.content.v1.content");
    fs::remove_file(store.join("blobs/sha256").join(layer.digest())).unwrap();
    assert!(target.digests().contains(layer.as_ref()), "it is listed");
    let missed = status();
    assert_eq!(missed["status"], "incomplete", "{missed:#}");
    assert!(
        missed["problems"].to_string().contains(layer.digest()),
        "{missed:#}"
    );
    assert!(
        missed["remedy"].as_str().unwrap().contains("import"),
        "{missed:#}"
    );
    node.import([node.path("app.tar")]).exits(0);
    assert_eq!(status()["status"], "present");
}

fn as_usual() -> Options {
    Options::default()
}

on_its_own_containerd! {
    as_usual;
    a_layer_that_is_listed_and_wiped_is_missed,
}

fn what_cannot_be_verified_is_said(target: &Target) {
    let node = Node::on(target);
    let name = format!("{}:1", repository());
    import(&node, "app.tar", [image(&name)]);
    let one = list(&node, &[&name]);
    let kubelet = node.path("kubelet.yaml");
    fs::write(
        &kubelet,
        "kind: KubeletConfiguration\nimagePullCredentialsVerificationPolicy: AlwaysVerify\n",
    )
    .unwrap();
    let document = verify(&node, &["--images", &one, "--kubelet-config", &text(&kubelet)])
        .exits(0)
        .json();
    assert!(
        document["warnings"][0].as_str().unwrap().contains("AlwaysVerify"),
        "{document:#}"
    );

    // Nothing to verify is no success, and neither is an unreadable file.
    fs::create_dir(node.path("empty")).unwrap();
    verify(&node, &["--manifests", &text(&node.path("empty"))]).exits(2);
    verify(&node, &[]).exits(2);
    let unread = verify(&node, &["--images", &one, "--images", "/nonexistent.txt"]).exits(2);
    assert!(
        unread.json()["error"]
            .as_str()
            .unwrap()
            .contains("/nonexistent.txt")
    );
    let nowhere = Node::at("/nonexistent/containerd.sock".as_ref(), target.namespace());
    verify(&nowhere, &["--images", &one]).exits(3);
}

/// Writes the record that a kubelet writes when it pulls an image, in kubelet's own folder.
fn put_kubelet_record(root: &std::path::Path, folder: &str, key: &str, record: &Value) -> String {
    let folder = root.join("image_manager").join(folder);
    fs::create_dir_all(&folder).unwrap();
    let hash = fake_containerd::sha256(key.as_bytes());
    let file = folder.join(format!("sha256-{}", hash.trim_start_matches("sha256:")));
    fs::write(&file, record.to_string()).unwrap();
    text(&file)
}

fn pulled(id: &str, mapping: &Value) -> Value {
    json!({
        "kind": "ImagePulledRecord", "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "lastUpdatedTime": "2026-11-01T12:00:00Z", "imageRef": id, "credentialMapping": mapping,
    })
}

/// `cargo xtask kubernetes` shows that a real kubelet behaves like this.
fn images_that_kubelet_refuses_for_its_records_are_named_with_the_record(target: &Target) {
    let target = target.in_kubernetes();
    let node = Node::on(&target);
    let at = repository();
    let names = ["refused", "open", "secret", "never-pulled"].map(|image| format!("{at}/{image}:1"));
    let archive = import(&node, "all.tar", names.iter().map(|name| image(name)));
    let id = |number: usize| archive.images[number].manifests[0].config.to_string();
    wait_until("CRI has taken everything in", || {
        names.iter().all(|name| target.image_status(name).is_some())
    });
    let root = node.path("kubelet");
    let every_pod = json!({"nodePodsAccessible": true});
    let secret = json!({"kubernetesSecrets": [{"uid": "u", "namespace": "shop", "name": "pull", "credentialHash": "h"}]});
    let other = format!("{at}/elsewhere");
    let records = [
        (id(0), json!({other.as_str(): every_pod})),
        (id(1), json!({format!("{at}/open"): every_pod})),
        (id(2), json!({format!("{at}/secret"): secret})),
    ];
    let files = records.map(|(id, mapping)| put_kubelet_record(&root, "pulled", &id, &pulled(&id, &mapping)));
    fs::write(root.join("image_manager/pulled/sha256-half.tmp"), "{").unwrap();
    let references: Vec<_> = names.iter().map(String::as_str).collect();
    let list = list(&node, &references);
    let arguments = ["--images", &list, "--kubelet-root", &text(&root)];
    let document = verify(&node, &arguments).exits(4).json();
    assert_eq!(document["complete"], false);
    let refused = document["refused"].as_array().unwrap();
    assert_eq!(refused.len(), 1, "{document:#}");
    assert_eq!(refused[0]["reference"], names[0]);
    assert_eq!(refused[0]["record"], files[0]);
    assert!(
        refused[0]["problem"].as_str().unwrap().contains(&other),
        "{document:#}"
    );
    assert_eq!(refused[0]["sources"][0]["kind"], "list");
    // `verify` cannot know if a pod brings the secret.
    let warnings = of(&document, &names[2])["warnings"].to_string();
    assert!(
        warnings.contains("secret shop/pull") && warnings.contains(&files[2]),
        "{warnings}"
    );
    assert_eq!(of(&document, &names[1])["warnings"], json!([]));

    let screen = node.airgapd(["verify"].iter().chain(&arguments)).exits(4).stdout;
    assert!(
        screen.contains("REFUSED  ") && screen.contains(", kubelet refuses 1"),
        "{screen}"
    );
    assert!(
        screen.contains("\n  record ") && screen.contains("\n  remedy remove"),
        "{screen}"
    );

    fs::remove_file(&files[0]).unwrap();
    verify(&node, &arguments).exits(0);
    let begun =
        json!({"kind": "ImagePullIntent", "apiVersion": "kubelet.config.k8s.io/v1beta1", "image": names[3]});
    let file = put_kubelet_record(&root, "pulling", &names[3], &begun);
    let document = verify(&node, &arguments).exits(4).json();
    assert_eq!(document["refused"][0]["record"], file, "{document:#}");
}

fn a_root_folder_of_kubelet_that_is_none_is_said(target: &Target) {
    let target = target.in_kubernetes();
    let node = Node::on(&target);
    let name = format!("{}:1", repository());
    import(&node, "app.tar", [image(&name)]);
    let list = list(&node, &[&name]);
    let with_root = |root: &str| verify(&node, &["--images", &list, "--kubelet-root", root]);
    let said = with_root("/nonexistent").exits(2).said();
    assert!(said.contains("/nonexistent"), "{said}");
    fs::create_dir(node.path("old")).unwrap();
    let document = with_root(&text(&node.path("old"))).exits(0).json();
    assert!(
        document["notes"].to_string().contains("image_manager"),
        "{document:#}"
    );
    verify(
        &node,
        &["--bundle", "a.tar", "--kubelet-root", "/", "--images", &list],
    )
    .exits(2);
}

on_each_containerd!(
    images_on_the_command_line_are_verified,
    of_thirty_references_the_five_that_fail_are_named_with_what_to_do,
    the_sandbox_image_is_asked_for_where_containerd_tells_it,
);
on_the_fake!(
    images_that_kubelet_refuses_for_its_records_are_named_with_the_record,
    a_root_folder_of_kubelet_that_is_none_is_said,
    every_miss_says_what_comes_closest,
    bundles_are_verified_before_they_travel,
    who_may_pull_is_named_where_nobody_shall,
    static_pods_are_found_as_kubelet_finds_them_and_lists_may_be_piped,
    what_cannot_be_verified_is_said,
);

/// awslabs/amazon-eks-ami#1360: nodes that discard layers after unpacking are not broken.
fn an_image_that_is_unpacked_needs_its_layers_no_more(own: &mut Own) {
    let (target, node) = (&own.target, Node::on(&own.target));
    let name = format!("{}:1", repository());
    let busybox = fs::read(lab::parts::busybox().expect("a busybox")).expect("the file can be read");
    let lower = Layer::files([
        LayerFile::folder("bin/"),
        LayerFile::executable("bin/busybox", busybox),
        LayerFile::symlink("bin/sh", "busybox"),
    ]);
    let upper = Layer::files([LayerFile::new("own", unique())]);
    let image = Image::new(&name)
        .platform(native())
        .with_layer(lower)
        .with_layer(upper);
    let archive = bundles::write(&node.path("b.tar"), [image]);
    let file = text(&node.path("b.tar"));
    node.import([file.as_str(), "--unpack", "before-record"]).exits(0);
    let layers = &archive.images[0].manifests[0].layers;
    for layer in layers {
        target.ctr(&["content", "rm", layer.as_ref()]);
    }
    let asked = list(&node, &[&name]);
    // CRI of 1.6 and 1.7 also reports its sandbox image, which is missing here. So the test checks
    // the status of its own image.
    let looked = || verify(&node, &["--images", &asked]).json();
    let found = looked();
    let answer = of(&found, &name);
    assert_eq!(answer["status"], "present", "{found:#}");
    assert!(
        answer["warnings"]
            .to_string()
            .contains("its layers are not in the store"),
        "{found:#}"
    );
    let said = own.containerd.run(&name, &["/bin/sh", "-c", "echo hello"]);
    assert_eq!(said.expect("the container runs").trim(), "hello");
    let refused = node
        .airgapd(["export", &name, "-o", &text(&node.path("out.tar"))])
        .exits(1);
    assert!(refused.stderr.contains("discard_unpacked_layers"), "{refused:?}");

    // Without one of its snapshots, the image is broken, as before it was unpacked.
    let config = archive.images[0].manifests[0].config.to_string();
    let labels = target.blobs().remove(&config).expect("the config is there");
    let (label, top) = labels
        .iter()
        .find(|(key, _)| key.starts_with("containerd.io/gc.ref.snapshot."))
        .expect("the label keeps the snapshots");
    let snapshotter = label.trim_start_matches("containerd.io/gc.ref.snapshot.");
    wait_until("the container has let go of the snapshot", || {
        !target.ctr(&["containers", "list", "--quiet"]).contains("airgapd")
    });
    target.ctr(&["snapshots", "--snapshotter", snapshotter, "rm", top]);
    let found = looked();
    let answer = of(&found, &name);
    assert_eq!(answer["status"], "incomplete", "{found:#}");
    assert!(
        layers
            .iter()
            .all(|layer| answer["problems"].to_string().contains(layer.as_ref()))
    );

    // A bundle with the image sends its layers again.
    node.import([file.as_str()]).exits(0);
    let found = looked();
    assert!(
        !of(&found, &name)["warnings"].to_string().contains("its layers"),
        "{found:#}"
    );
}

on_its_own_containerd!(as_usual; an_image_that_is_unpacked_needs_its_layers_no_more);
