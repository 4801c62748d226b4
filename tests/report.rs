//! `airgapd report`: the images of this node, the files that they come from, the times, and the
//! owners of the files.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::{Value, json};

use crate::support::bundles::{self, image, text};
use crate::support::node::bundle;
use crate::support::{Node, Target, on_the_fake};

const SHARED: &str = "registry.test/shared:1";
const NAME: &str = "registry.test/app:1";

fn report(node: &Node, exit: i32) -> Value {
    node.airgapd(["report", "-o", "json"]).exits(exit).json()
}

fn named<'a>(document: &'a Value, name: &str) -> &'a Value {
    let mut images = document["images"].as_array().unwrap().iter();
    images
        .find(|image| image["name"] == name)
        .unwrap_or_else(|| panic!("{name} is not in {document:#}"))
}

/// `a.tar` and `b.tar` share an image. `b.tar` has another image under a name of `a.tar`.
fn the_report_has_files_with_their_owner_and_images_with_every_bundle_that_vouches(target: &Target) {
    let node = Node::on(target);
    let shared = image(SHARED);
    let (old, new) = (image(NAME), image(NAME));
    let first = bundles::write(&node.path("a.tar"), [shared.clone(), old]);
    let second = bundles::write(&node.path("b.tar"), [shared, new]);
    let daemon = node.start();
    for file in ["a.tar", "b.tar"] {
        fs::rename(node.path(file), node.images().join(file)).unwrap();
        node.airgapd(["wait", "--bundle", file]).exits(0);
    }
    let live = report(&node, 0);
    daemon.finish(target);

    let metadata = fs::metadata(node.images().join("a.tar")).unwrap();
    let file = &bundle(&live, "a.tar")["file"];
    assert_eq!(
        (&file["size"], &file["uid"], &file["gid"], &file["as_imported"]),
        (
            &json!(metadata.len()),
            &json!(metadata.uid()),
            &json!(metadata.gid()),
            &json!(true)
        )
    );
    let names = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let id = format!(":{}:", metadata.uid());
    let is_named = names.lines().any(|line| line.contains(&id));
    assert_eq!(file["user"].is_string(), is_named, "{file:#}");
    let of_a = bundle(&live, "a.tar");
    let index = bundle::fixtures::digest_of(&first.bytes_of("index.json")).to_string();
    assert_eq!(
        (&of_a["catalog"], &of_a["state"]),
        (&json!(index), &json!("done"))
    );
    assert!(
        of_a["first_imported_at"].is_string() && of_a["imported_at"].is_string(),
        "{of_a:#}"
    );
    assert_eq!(live["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(live["daemon"]["version"], env!("CARGO_PKG_VERSION"));
    assert!(live["containerd"]["version"].is_string(), "{live:#}");
    let root = |archive: &bundle::fixtures::Archive, index: usize| archive.images[index].root.to_string();
    let expected = json!({
        "name": SHARED, "digest": root(&first, 0), "bundles": ["a.tar", "b.tar"], "overridden": [],
        "record": "in-place", "pinned": true, "missing_blobs": [],
    });
    assert_eq!(*named(&live, SHARED), expected);
    let expected = json!({
        "name": NAME, "digest": root(&second, 1), "bundles": ["b.tar"],
        "overridden": [{"bundle": "a.tar", "digest": root(&first, 1)}],
        "record": "in-place", "pinned": true, "missing_blobs": [],
    });
    assert_eq!(*named(&live, NAME), expected);

    // The report is the same without the daemon. Another mode makes it another file.
    fs::set_permissions(node.images().join("a.tar"), fs::Permissions::from_mode(0o640)).unwrap();
    let still = report(&node, 0);
    assert_eq!(still["images"], live["images"]);
    assert_eq!(still["daemon"], Value::Null);
    assert_eq!(bundle(&still, "a.tar")["file"]["as_imported"], false);
    assert_eq!(bundle(&still, "b.tar")["file"]["as_imported"], true);
    for key in ["catalog", "first_imported_at", "imported_at", "outcome"] {
        assert_eq!(bundle(&still, "b.tar")[key], bundle(&live, "b.tar")[key], "{key}");
    }
    let shown = node.airgapd(["report"]).exits(0).stdout;
    for part in [
        "bundle a.tar",
        "changed since its last import",
        "owner     ",
        "bundles   a.tar, b.tar",
        &format!("image {NAME}"),
        &format!("a.tar has {}", root(&first, 1)),
        "its record is in place, pinned",
    ] {
        assert!(shown.contains(part), "{part}\n{shown}");
    }
    // A name by digest is shown if the image has no other name.
    assert!(!shown.contains("image registry.test/shared@sha256"), "{shown}");
    assert!(
        shown.contains(&format!("image registry.test/app@{}", root(&first, 1))),
        "{shown}"
    );
}

/// The first import belongs to the content. The daemon checks a touched file again, and imports a
/// replaced file as a new one.
fn the_first_import_stays_with_the_content_of_a_file(target: &Target) {
    let node = Node::on(target);
    let place = node.images().join("a.tar");
    bundles::write(&place, [image(NAME)]);
    let daemon = node.start();
    node.airgapd(["wait"]).exits(0);
    let times = || {
        let document = report(&node, 0);
        let bundle = bundle(&document, "a.tar").clone();
        (bundle["first_imported_at"].clone(), bundle["imported_at"].clone())
    };
    let first = times();
    assert_eq!(first.0, first.1);
    let now = fs::metadata(&place).unwrap().modified().unwrap();
    let touched = fs::File::options().write(true).open(&place).unwrap();
    touched
        .set_modified(now + std::time::Duration::from_secs(1))
        .unwrap();
    drop(touched);
    daemon.wait_until("the touched file is looked at again", || times().1 != first.1);
    assert_eq!(times().0, first.0);

    bundles::write(&node.path("a.tar"), [image(NAME)]);
    fs::rename(node.path("a.tar"), &place).unwrap();
    daemon.wait_until("the new content is imported", || times().0 != first.0);
    daemon.finish(target);
}

fn without_a_ledger_or_a_containerd_the_report_names_what_it_lacks(target: &Target) {
    let node = Node::on(target);
    let document = report(&node, 1);
    assert_eq!(
        (&document["bundles"], &document["images"]),
        (&json!([]), &json!([]))
    );
    let problem = document["problems"][0].as_str().unwrap();
    assert!(problem.contains(&text(&node.state())), "{problem}");

    bundles::write(&node.path("a.tar"), [image(NAME)]);
    node.import_and_stop(target, &node.path("a.tar"), 2);
    let config = fs::read_to_string(node.path("config.yaml")).unwrap();
    node.configure(&config.replace(&text(target.socket()), "/nonexistent/containerd.sock"));
    let document = report(&node, 3);
    let image = named(&document, NAME);
    assert_eq!(
        (&image["record"], &image["pinned"], &image["missing_blobs"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    assert_eq!(image["bundles"], json!(["a.tar"]));
    assert!(document["problems"][0].as_str().unwrap().contains("containerd"));
}

on_the_fake! {
    the_report_has_files_with_their_owner_and_images_with_every_bundle_that_vouches,
    the_first_import_stays_with_the_content_of_a_file,
    without_a_ledger_or_a_containerd_the_report_names_what_it_lacks,
}
