//! Archives that real tools write, and the digests that containerd gives them.

use std::path::Path;
use std::process::Command;

use bundle::fixtures::{Image, Layout};
use lab::Generation;

use crate::support::bundles::{self, docker, image, native, needed_here, records_of, text};
use crate::support::tools::{run, tool};
use crate::support::{Node, Place, Target, on_each_containerd, on_each_real_containerd, unique};

/// Returns a Docker archive with two plain layers, one of them used twice.
fn docker_image(name: &str) -> Image {
    Image::new(name)
        .platform(native())
        .layer(unique())
        .layer(unique())
}

/// Runs `ctr images import`. Since 2.0 the client itself imports only with `--local`.
fn ctr_import(target: &Target, archive: &Path) {
    let mut arguments = vec!["images", "import", "--no-unpack"];
    if !matches!(target.place(), Place::Real(Generation::V1_6 | Generation::V1_7)) {
        arguments.push("--local");
    }
    let archive = text(archive);
    arguments.push(&archive);
    target.ctr(&arguments);
}

/// Statement 8.
fn a_docker_archive_gets_the_digest_that_containerd_gives_it(target: &Target) {
    let node = Node::on(target);
    let file = node.path("docker.tar");
    let name = "registry.test/docker:1";
    docker([docker_image(name)]).write_to(&file);
    node.import([&file]).exits(0);
    let theirs = target.elsewhere();
    ctr_import(&theirs, &file);
    assert_eq!(
        target.expect_record(name).target.digest(),
        theirs.expect_record(name).target.digest()
    );
}

/// Statements 1 and 2, for an archive of Docker 25 and newer: names and digests are those of the
/// layout.
fn a_hybrid_archive_is_taken_by_its_layout_side(target: &Target) {
    let node = Node::on(target);
    let file = node.path("hybrid.tar");
    let name = "registry.test/hybrid:1";
    let image = docker_image(name).repo_tag("registry.test/only-in-manifest-json:1");
    let archive = Layout::hybrid().image(image).write_to(&file);
    let report = node.import([&file]).exits(0).bundle();
    assert_eq!(report["format"], "oci-layout+docker-archive");
    assert_eq!(target.names(), records_of(name, &archive.images[0]).into());
    let theirs = target.elsewhere();
    ctr_import(&theirs, &file);
    assert_eq!(
        target.expect_record(name).target.digest(),
        theirs.expect_record(name).target.digest()
    );
}

/// Statement 9: containerd would put the compressed copy into the manifest and get another digest.
fn a_compressed_copy_in_the_store_changes_no_digest(target: &Target) {
    let node = Node::on(target);
    let file = node.path("docker.tar");
    let name = "registry.test/docker:1";
    let archive = docker([docker_image(name)]).write_to(&file);
    let manifest = &archive.images[0].manifests[0];
    let layer = manifest.layers[0].to_string();
    let copy = format!("a compressed copy of {layer}");
    let copy = target.put_blob(copy.as_bytes(), &[("containerd.io/uncompressed", &layer)]);
    node.import([&file]).exits(0);
    assert_eq!(
        *target.expect_record(name).target.digest(),
        manifest.docker_digest
    );
    target.let_go(&copy);
}

/// An export of any version of containerd is a bundle.
fn what_ctr_exports_is_imported(target: &Target) {
    let (node, source) = (Node::on(target), target.elsewhere());
    let name = "registry.test/exported:1";
    let archive = bundles::write(&node.path("made.tar"), [image(name)]);
    Node::on(&source).import([node.path("made.tar")]).exits(0);
    let exported = text(&node.path("exported.tar"));
    // Through the transfer service, `ctr` may end before it has written the whole archive.
    let is_local = source.ctr(&["images", "export", "--help"]).contains("--local");
    let locally = is_local.then_some("--local");
    let export: Vec<&str> = ["images", "export"]
        .into_iter()
        .chain(locally)
        .chain([exported.as_str(), name])
        .collect();
    source.ctr(&export);
    node.import([&exported]).exits(0);
    assert_eq!(target.names(), records_of(name, &archive.images[0]).into());
    target.collect_garbage();
    assert_eq!(target.digests(), needed_here(&archive.images));
}

/// skopeo's two archive formats, with the same image in both.
#[test]
fn what_skopeo_writes_is_imported() {
    crate::support::run_on(Place::Fake, |target| {
        let Some(skopeo) = tool("skopeo") else { return };
        let name = "registry.test/skopeo:1";
        for format in ["oci-archive", "docker-archive"] {
            let target = target.elsewhere();
            let node = Node::on(&target);
            bundles::write(&node.path("made.tar"), [image(name)]);
            let written = text(&node.path("written.tar"));
            let mut copy = Command::new(&skopeo);
            copy.args(["--insecure-policy", "copy", "--quiet"]);
            copy.arg(format!("oci-archive:{}:{name}", text(&node.path("made.tar"))));
            run(copy.arg(format!("{format}:{written}:{name}")));
            let report = node.import([&written]).exits(0).bundle();
            assert_eq!(
                report["format"],
                if format == "oci-archive" {
                    "oci-layout"
                } else {
                    "docker-archive"
                }
            );
            assert!(target.is_pinned(name), "{format}");
            target.assert_tidy();
        }
    });
}

/// umoci makes layout folders with plain tags. In a tar they are bundles, with a base name for the
/// tags.
#[test]
fn a_layout_that_umoci_made_is_imported_with_a_base_name() {
    crate::support::run_on(Place::Fake, |target| {
        let Some(umoci) = tool("umoci") else { return };
        let node = Node::on(target);
        let layout = text(&node.path("layout"));
        run(Command::new(&umoci).args(["init", "--layout", &layout]));
        run(Command::new(&umoci).args(["new", "--image", &format!("{layout}:3.1")]));
        let packed = text(&node.path("packed.tar"));
        run(Command::new("tar").args(["-C", &layout, "-cf", &packed, "."]));
        node.import([&packed]).exits(1);
        assert!(target.names().is_empty());
        node.configure_also("baseName: registry.test/umoci");
        node.import([&packed]).exits(0);
        assert!(target.is_pinned("registry.test/umoci:3.1"));
    });
}

on_each_containerd!(a_compressed_copy_in_the_store_changes_no_digest);
on_each_real_containerd!(
    a_docker_archive_gets_the_digest_that_containerd_gives_it,
    a_hybrid_archive_is_taken_by_its_layout_side,
    what_ctr_exports_is_imported,
);
