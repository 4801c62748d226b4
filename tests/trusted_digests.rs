//! `trustedDigests`: airgapd imports only bundles whose digest is in a file of that folder.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::bundles::{marker, text};
use crate::support::{Node, Target, on_each_containerd};

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

on_each_containerd!(only_trusted_digests_are_imported_and_the_one_to_add_is_named,);
