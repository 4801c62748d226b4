//! `trustedDigests`: airgapd imports only bundles whose digest is in a file of that folder.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::bundles::{marker, text};
use crate::support::{Node, Target, on_each_containerd, on_the_fake};

const WRONG: &str = "0000000000000000000000000000000000000000000000000000000000000000";

fn only_trusted_digests_are_imported_and_the_one_to_add_is_named(target: &Target) {
    let node = Node::on(target);
    let trusted = node.path("trusted");
    fs::create_dir(&trusted).unwrap();
    fs::set_permissions(&trusted, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(
        trusted.join("release.txt"),
        format!("# nothing yet\nsha256:{WRONG}\n"),
    )
    .unwrap();
    node.configure_also(&format!("trustedDigests: {}", trusted.display()));
    let (file, name) = marker(node.path("judged.tar"));
    let digest = node.airgapd(["inspect", "-o", "json", &text(&file)]).json()["digest"]
        .as_str()
        .unwrap()
        .to_owned();

    let error = node.import([&file]).exits(1).bundle()["error"].to_string();
    assert!(
        error.contains(&digest) && error.contains(&text(&trusted)),
        "{error}"
    );
    let daemon = node.start();
    let dropped = node.drop_in(&file);
    daemon.wait_for_line("judged.tar", &digest);
    assert!(target.record(&name).is_none());

    fs::write(trusted.join("more"), format!("{digest}  judged.tar\n")).unwrap();
    // The daemon lists the images folder every half minute, and at once after an event in it.
    fs::write(node.images().join(".touch"), "").unwrap();
    daemon.wait_until("the image", || target.record(&name).is_some());
    daemon.finish(target);
    node.import([&dropped]).exits(0);

    fs::set_permissions(trusted.join("more"), fs::Permissions::from_mode(0o666)).unwrap();
    let error = node.import([&file]).exits(1).bundle()["error"].to_string();
    assert!(error.contains("others than root can write it"), "{error}");
}

/// The lists beside new bundles, and a list of several bundles as `docs/bundles.md` makes it.
fn a_list_beside_a_new_bundle_is_a_file_of_trusted_digests(target: &Target) {
    let node = Node::on(target);
    let trusted = node.path("trusted");
    fs::create_dir(&trusted).unwrap();
    fs::set_permissions(&trusted, fs::Permissions::from_mode(0o755)).unwrap();
    let merge = |out: &str| {
        let (file, name) = marker(node.path("in.tar"));
        let out = node.path(out);
        node.airgapd(["bundle", "merge", &text(&file), "-o", &text(&out)])
            .exits(0);
        (out, name)
    };
    let [(one, first), (two, second), (three, third)] = ["one.tar", "two.tar", "three.tar"].map(merge);
    node.configure_also(&format!("trustedDigests: {}", trusted.display()));
    node.import([&one]).exits(1);
    fs::copy(node.path("one.tar.digest"), trusted.join("one.tar.digest")).unwrap();
    node.import([&one]).exits(0);
    assert!(target.record(&first).is_some());

    node.import([&two]).exits(1);
    let lines = node
        .airgapd(["inspect", "--digest", &text(&two), &text(&three)])
        .exits(0)
        .stdout;
    fs::write(
        trusted.join("release.digest"),
        format!("airgapd-catalogs 1\n{lines}"),
    )
    .unwrap();
    node.import([&two, &three]).exits(0);
    assert!(target.record(&second).is_some() && target.record(&third).is_some());
}

on_the_fake!(a_list_beside_a_new_bundle_is_a_file_of_trusted_digests,);
on_each_containerd!(only_trusted_digests_are_imported_and_the_one_to_add_is_named,);
