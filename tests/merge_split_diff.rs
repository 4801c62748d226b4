//! `airgapd bundle`: bundles that are made from bundles, and compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use bundle::fixtures::{Image, Layout as Archive};
use bundle::write::{Draft, DraftImage, FromBundles, Layout};
use bundle::{Bundle, Compression, Limits};
use oci_spec::image::Digest;
use serde_json::{Value, json};

use crate::support::bundles::{
    self, docker, image, layout, multi_platform, native, needed_here, records_of, text,
};
use crate::support::node::Answer;
use crate::support::tools::tool;
use crate::support::{Node, Target, on_each_containerd, on_the_fake, unique};

const ONE: &str = "registry.test/one:1";
const TWO: &str = "registry.test/two:1";
const THREE: &str = "registry.test/three:1";
/// A platform that no test machine runs.
const FOREIGN: &str = "linux/s390x";

fn verb(node: &Node, verb: &str, out: &str, files: &[&str]) -> Answer {
    let (out, files) = (
        text(&node.path(out)),
        files.iter().map(|file| text(&node.path(file))),
    );
    let head = ["bundle", verb, "-o", "json", "-o", &out].map(str::to_owned);
    node.airgapd(head.into_iter().chain(files))
}

fn bytes(node: &Node, file: &str) -> Vec<u8> {
    fs::read(node.path(file)).unwrap()
}

/// Returns the names of the images in a bundle's report.
fn names(report: &Value) -> BTreeSet<String> {
    let images = report["images"].as_array().unwrap().iter();
    images
        .flat_map(|image| image["names"].as_array().unwrap())
        .map(|name| name.as_str().unwrap().to_owned())
        .collect()
}

fn bundles_of_any_form_become_one_in_whatever_order_they_come(target: &Target) {
    let node = Node::on(target);
    let one = layout([image(ONE)]).build();
    one.write_to(&node.path("one.tar"));
    fs::write(node.path("one.tar.gz"), one.to_compressed(Compression::Gzip)).unwrap();
    one.extract_to(&node.path("one"));
    let two = docker([image(TWO), image(THREE)]).build();
    two.write_to(&node.path("two.tar"));
    fs::write(node.path("two.tar.xz"), two.to_compressed(Compression::Xz)).unwrap();
    let report = verb(&node, "merge", "a.tar", &["one.tar", "two.tar"])
        .exits(0)
        .json();
    assert_eq!(names(&report), [ONE, TWO, THREE].map(str::to_owned).into());
    assert_eq!(report["warnings"], json!([]));
    for (out, files) in [
        ("b.tar", ["two.tar", "one.tar"]),
        ("c.tar", ["one.tar.gz", "two.tar.xz"]),
        ("d.tar", ["two.tar.xz", "one"]),
    ] {
        verb(&node, "merge", out, &files).exits(0);
        assert!(bytes(&node, out) == bytes(&node, "a.tar"), "{files:?}");
    }
    node.import([node.path("a.tar")]).exits(0);
    let kept: BTreeSet<_> = target
        .names()
        .into_iter()
        .filter(|name| !name.contains('@'))
        .collect();
    assert_eq!(kept, [ONE, TWO, THREE].map(str::to_owned).into());
    // The folder has only the bundles.
    let hidden = fs::read_dir(node.path("")).unwrap().filter(|entry| {
        entry
            .as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with('.')
    });
    assert_eq!(hidden.count(), 0);
}

fn platforms_that_are_in_different_bundles_come_together(target: &Target) {
    let node = Node::on(target);
    let whole = layout([multi_platform(ONE, &[native(), FOREIGN])]).build();
    whole.write_to(&node.path("whole.tar"));
    for (at, file) in ["second.tar", "first.tar"].into_iter().enumerate() {
        let mut part = whole.clone();
        for digest in bundles::closure(&whole.images[0].manifests[at]) {
            part.remove_blob(&digest.parse().unwrap());
        }
        part.write_to(&node.path(file));
    }
    verb(&node, "merge", "a.tar", &["whole.tar"]).exits(0);
    verb(&node, "merge", "b.tar", &["first.tar", "second.tar"]).exits(0);
    assert!(bytes(&node, "a.tar") == bytes(&node, "b.tar"));
    let same = verb(&node, "diff", "json", &["whole.tar", "b.tar"]).exits(2);
    assert!(same.said().contains("answers as text or json"), "{same:?}");
    let [from, to] = ["first.tar", "b.tar"].map(|file| text(&node.path(file)));
    let report = node
        .airgapd(["bundle", "diff", "-o", "json", &from, &to])
        .exits(0)
        .json();
    assert_eq!(report["images"][0]["change"], json!("changed"));
    let mut platforms = [FOREIGN, native()];
    platforms.sort_unstable();
    assert_eq!(
        report["images"][0]["to"]["platforms"],
        json!(platforms),
        "{report:#}"
    );
}

fn where_bundles_differ_about_a_name_the_last_one_counts_and_that_is_said(target: &Target) {
    let node = Node::on(target);
    let old = bundles::write(&node.path("old.tar"), [image(ONE), image(TWO)]);
    let new = bundles::write(&node.path("new.tar"), [image(ONE)]);
    let report = verb(&node, "merge", "out.tar", &["old.tar", "new.tar"])
        .exits(0)
        .json();
    let warning = report["warnings"][0].as_str().unwrap();
    assert!(
        warning.contains(ONE) && warning.contains("old.tar") && warning.contains("new.tar"),
        "{warning}"
    );
    let digests: BTreeMap<String, String> = report["images"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| {
            (
                image["names"][0].as_str().unwrap().to_owned(),
                image["digest"].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    let wanted = [(ONE, &new.images[0]), (TWO, &old.images[1])];
    assert_eq!(
        digests,
        wanted
            .map(|(name, image)| (name.to_owned(), image.root.to_string()))
            .into()
    );
}

/// Writes a delta like `bundle-artifacts --base`.
pub fn delta(whole: &Path, base: &Path, out: &Path) {
    let open = |path: &Path| Bundle::open(path, &Limits::default()).unwrap();
    let (whole, base) = (open(whole), open(base));
    let mut draft = Draft {
        images: whole.catalog().images.iter().map(DraftImage::of).collect(),
        ..Draft::default()
    };
    let there: Vec<DraftImage> = base.catalog().images.iter().map(DraftImage::of).collect();
    let there: std::collections::HashSet<Digest> = there
        .iter()
        .flat_map(|image| &image.layers)
        .map(|blob| blob.digest.clone())
        .collect();
    draft.leave_out("base.tar", &there);
    let layout = Layout::of(&draft).unwrap();
    let bundles: Arc<[Bundle]> = [whole].into();
    let mut feed = FromBundles::new(&bundles, layout.blobs(), out.parent().unwrap()).unwrap();
    let mut file = fs::File::create(out).unwrap();
    bundle::write::write(&layout, Compression::None, &mut file, &mut feed).unwrap();
}

fn a_delta_and_its_base_make_a_whole_one_and_without_it_a_delta(target: &Target) {
    let node = Node::on(target);
    let shared = unique();
    let base = |name: &str| Image::new(name).platform(native()).layer(shared.as_str());
    bundles::write(&node.path("base.tar"), [base(ONE)]);
    bundles::write(&node.path("whole.tar"), [base(TWO).layer(unique())]);
    delta(
        &node.path("whole.tar"),
        &node.path("base.tar"),
        &node.path("delta.tar"),
    );
    verb(&node, "merge", "a.tar", &["base.tar", "whole.tar"]).exits(0);
    let report = verb(&node, "merge", "b.tar", &["base.tar", "delta.tar"])
        .exits(0)
        .json();
    assert_eq!(report["base"], Value::Null);
    assert!(bytes(&node, "a.tar") == bytes(&node, "b.tar"));
    let report = verb(&node, "merge", "c.tar", &["delta.tar"]).exits(0).json();
    assert_eq!(report["base"], json!("base.tar"));
    assert!(bytes(&node, "c.tar") == bytes(&node, "delta.tar"));
    let plan = node
        .import(["--dry-run".into(), node.path("c.tar")])
        .exits(1)
        .bundle();
    let answer = node.import([node.path("c.tar")]).exits(1).bundle();
    assert_eq!(plan["error"], answer["error"]);
    assert!(
        answer["error"]
            .as_str()
            .unwrap()
            .contains("is a delta on base.tar"),
        "{answer:#}"
    );
    node.import([node.path("base.tar")]).exits(0);
    node.import([node.path("c.tar")]).exits(0);
}

fn what_is_not_whole_is_named_and_not_passed_on(target: &Target) {
    let node = Node::on(target);
    bundles::write(&node.path("one.tar"), [image(ONE)]);
    let mut broken = layout([image(TWO)]).build();
    let layer = broken.images[0].manifests[0].layers[0].clone();
    broken.remove_blob(&layer).write_to(&node.path("broken.tar"));
    let mut corrupt = layout([image(TWO)]).build();
    let layer_too = corrupt.images[0].manifests[0].layers[0].clone();
    corrupt.corrupt(&layer_too).write_to(&node.path("corrupt.tar"));
    let answer = verb(&node, "merge", "out.tar", &["one.tar", "broken.tar"]).exits(5);
    let error = answer.json()["error"].as_str().unwrap().to_owned();
    for said in ["broken.tar", TWO, layer.as_ref()] {
        assert!(error.contains(said), "{error}");
    }
    let answer = verb(&node, "merge", "out.tar", &["one.tar", "corrupt.tar"]).exits(1);
    assert!(
        answer.json()["error"]
            .as_str()
            .unwrap()
            .contains(layer_too.as_ref()),
        "{answer:?}"
    );
    verb(&node, "merge", "out.tar", &["one.tar", "absent.tar"]).exits(1);
    assert!(!node.path("out.tar").exists());
}

fn each_new_bundle_file_has_a_list_with_its_digest(target: &Target) {
    let node = Node::on(target);
    layout([image(ONE), multi_platform(TWO, &[native(), FOREIGN])])
        .build()
        .write_to(&node.path("in.tar"));
    node.import([node.path("in.tar")]).exits(0);
    let (all, out) = (text(&node.path("in.tar")), text(&node.path("volume.tar")));
    for compress in ["none", "gzip", "zstd"] {
        let [merged, exported] =
            ["merged", "exported"].map(|name| node.path(&format!("{name}.{compress}.tar")));
        let form = format!("--compress={compress}");
        node.airgapd(["bundle", "merge", &form, &all, "-o", &text(&merged)])
            .exits(0);
        node.airgapd(["export", "--all", &form, "-o", &text(&exported)])
            .exits(0);
        bundles::assert_listed(&node, &merged);
        bundles::assert_listed(&node, &exported);
    }
    let split = ["bundle", "split", &all, "--max-size", "15000", "-o", &out];
    node.airgapd(split).exits(0);
    for volume in ["volume-1.tar", "volume-2.tar"] {
        bundles::assert_listed(&node, &node.path(volume));
    }

    // An older list gives way, and a bundle on standard output has none.
    fs::write(node.path("merged.none.tar.digest"), "old").unwrap();
    verb(&node, "merge", "merged.none.tar", &["in.tar"]).exits(0);
    bundles::assert_listed(&node, &node.path("merged.none.tar"));
    let before = fs::read_dir(node.path("")).unwrap().count();
    let mut command = node.command(["bundle", "merge", &all]);
    assert!(command.stdout(Stdio::null()).status().unwrap().success());
    assert_eq!(fs::read_dir(node.path("")).unwrap().count(), before);

    // A bundle whose list has no place is not begun.
    fs::create_dir(node.path("new.tar.digest")).unwrap();
    let answer = verb(&node, "merge", "new.tar", &["in.tar"]).exits(1);
    assert!(answer.said().contains("it is a folder"), "{answer:?}");
    assert!(!node.path("new.tar").exists());
}

on_the_fake! {
    each_new_bundle_file_has_a_list_with_its_digest,
    bundles_of_any_form_become_one_in_whatever_order_they_come,
    platforms_that_are_in_different_bundles_come_together,
    where_bundles_differ_about_a_name_the_last_one_counts_and_that_is_said,
    a_delta_and_its_base_make_a_whole_one_and_without_it_a_delta,
    what_is_not_whole_is_named_and_not_passed_on,
}

fn volumes_are_imported_each_by_itself_and_together_are_the_whole(target: &Target) {
    let node = Node::on(target);
    let name = |number: usize| format!("registry.test/split{number}:1");
    let shared = unique().repeat(2000);
    let sized = |number: usize| {
        let image = Image::new(&name(number)).platform(native()).layer(&shared);
        image.layer(format!("{number} {}", unique()).repeat(number * 700))
    };
    let archive = bundles::write(&node.path("all.tar"), (1..=6).map(sized));
    let whole = fs::metadata(node.path("all.tar")).unwrap().len();
    let most = whole / 2;
    let all = text(&node.path("all.tar"));
    let out = text(&node.path("volume.tar"));
    let split = |size: u64| {
        let size = size.to_string();
        node.airgapd([
            "bundle",
            "split",
            &all,
            "--max-size",
            &size,
            "-o",
            "json",
            "-o",
            &out,
        ])
    };
    let report = split(most).exits(0).json();
    let volumes = report["volumes"].as_array().unwrap();
    assert!(volumes.len() > 1, "{report:#}");
    let mut seen = BTreeSet::new();
    for (at, volume) in volumes.iter().enumerate() {
        let path = node.path(&format!("volume-{}.tar", at + 1));
        assert_eq!(volume["path"], json!(text(&path)));
        let bytes = fs::metadata(&path).unwrap().len();
        assert!(bytes <= most && volume["bytes"] == json!(bytes), "{volume:#}");
        let alone = target.elsewhere();
        Node::on(&alone).import([&path]).exits(0);
        let tags: BTreeSet<_> = alone
            .names()
            .into_iter()
            .filter(|name| !name.contains('@'))
            .collect();
        assert_eq!(tags, names(volume));
        seen.extend(tags);
        node.import([&path]).exits(0);
    }
    assert_eq!(seen, (1..=6).map(name).collect());
    assert_eq!(target.digests(), needed_here(&archive.images));

    let answer = split(20_000).exits(1);
    assert!(
        answer.json()["error"]
            .as_str()
            .unwrap()
            .contains("registry.test/split6:1"),
        "{answer:?}"
    );
}

on_each_containerd!(volumes_are_imported_each_by_itself_and_together_are_the_whole);

/// The table of `docs/bundles.md`, as far as it is about skopeo. podman loads every bundle that
/// skopeo reads without a name in one of the two formats.
#[test]
fn skopeo_reads_what_is_written_as_the_documents_say() {
    let Some(skopeo) = tool("skopeo") else { return };
    let node = Node::at(Path::new("/nonexistent"), "none");
    let is_read = |form: &str, name: &str| {
        let copy = node.path("copy");
        let _ = fs::remove_dir_all(&copy);
        let mut command = Command::new(&skopeo);
        command.args(["--insecure-policy", "copy", "--quiet"]);
        let separator = if name.is_empty() { "" } else { ":" };
        command.arg(format!("{form}:{}{separator}{name}", text(&node.path("out.tar"))));
        command.arg(format!("dir:{}", text(&copy)));
        command.output().unwrap().status.success()
    };
    let (oci, docker_archive) = ("oci-archive", "docker-archive");
    let multi = || multi_platform(TWO, &[native(), FOREIGN]);
    type Row<'a> = (&'a str, Archive, &'a [(&'a str, &'a str, bool)]);
    let rows: [Row<'_>; 5] = [
        (
            "one image",
            layout([image(ONE)]),
            &[
                (oci, "", true),
                (oci, ONE, true),
                (docker_archive, "", true),
                (docker_archive, ONE, true),
            ],
        ),
        (
            "one image from a Docker archive, which has Docker's media types",
            docker([image(ONE)]),
            &[
                (oci, "", true),
                (oci, ONE, false),
                (docker_archive, "", true),
                (docker_archive, ONE, true),
            ],
        ),
        (
            "several images",
            layout([image(ONE), image(TWO)]),
            &[
                (oci, "", false),
                (oci, TWO, true),
                (docker_archive, "", false),
                (docker_archive, TWO, true),
                (docker_archive, "@1", true),
            ],
        ),
        (
            "one image for two platforms",
            layout([multi()]),
            &[(oci, "", true), (oci, TWO, true), (docker_archive, "", false)],
        ),
        (
            "several images, of which one is for two platforms",
            layout([image(ONE), multi()]),
            &[
                (oci, "", false),
                (oci, ONE, true),
                (oci, TWO, true),
                (docker_archive, ONE, false),
            ],
        ),
    ];
    for (case, bundle, expected) in rows {
        bundle.build().write_to(&node.path("in.tar"));
        verb(&node, "merge", "out.tar", &["in.tar"]).exits(0);
        for (form, name, is) in expected {
            assert_eq!(is_read(form, name), *is, "{case}: {form} {name:?}");
        }
    }
}

/// An import adds the name by digest of each tag, whether or not the bundle has it.
#[test]
fn names_that_follow_from_others_are_no_difference() {
    let node = Node::at(Path::new("/nonexistent"), "none");
    let plain = layout([image(ONE)]).build();
    plain.write_to(&node.path("plain.tar"));
    let by_digest = records_of(ONE, &plain.images[0])[1].clone();
    let bundle = Bundle::open(&node.path("plain.tar"), &Limits::default()).unwrap();
    let mut draft = Draft {
        images: bundle.catalog().images.iter().map(DraftImage::of).collect(),
        ..Draft::default()
    };
    let write = |draft: &Draft, name: &str| {
        let layout = Layout::of(draft).unwrap();
        let mut feed =
            FromBundles::new(std::slice::from_ref(&bundle), layout.blobs(), &node.path("")).unwrap();
        let mut file = fs::File::create(node.path(name)).unwrap();
        bundle::write::write(&layout, Compression::None, &mut file, &mut feed).unwrap();
    };
    // A second tag, so that the name by digest is written too.
    draft.images[0].names.push("registry.test/one:2".to_owned());
    write(&draft, "tags.tar");
    draft.images[0].names.push(by_digest);
    write(&draft, "all.tar");
    let [tags, all] = ["tags.tar", "all.tar"].map(|file| text(&node.path(file)));
    assert_ne!(fs::read(&tags).unwrap(), fs::read(&all).unwrap());
    let report = node
        .airgapd(["bundle", "diff", "-o", "json", &tags, &all])
        .exits(0)
        .json();
    assert_eq!(report["images"], json!([]), "{report:#}");
}
