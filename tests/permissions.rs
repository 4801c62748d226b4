//! The permissions of the images folder: airgapd takes nothing from a folder that every user can
//! write.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::bundles::{self, image, marker};
use crate::support::{Node, Target, on_the_fake, wait_until};

fn a_folder_that_everybody_can_write_is_refused(target: &Target) {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::on(target);
    bundles::write(&node.images().join("bundle.tar"), [image("registry.test/a:1")]);
    fs::set_permissions(node.images(), fs::Permissions::from_mode(0o777)).unwrap();
    let daemon = node.start();
    daemon.wait_for_log("every user can write");
    assert!(target.names().is_empty());
    fs::set_permissions(node.images(), fs::Permissions::from_mode(0o755)).unwrap();
    wait_until("the image, once the folder is in order", || {
        target.record("registry.test/a:1").is_some()
    });
    daemon.wait_until("the lease is returned", || target.leases().is_empty());
    daemon.stop();
}

fn nothing_is_taken_from_below_a_folder_that_everybody_can_write(target: &Target) {
    let node = Node::on(target);
    let open = node.path("");
    let mode = |mode| fs::set_permissions(&open, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o777);
    let (file, name) = marker(node.path("careful.tar"));
    node.drop_in(&file);
    let daemon = node.start();
    daemon.wait_for_log("which is above it: every user can write it");
    assert!(target.record(&name).is_none());
    mode(0o755);
    daemon.wait_until("the image", || target.record(&name).is_some());
    daemon.finish(target);
}

fn a_sub_folder_that_everybody_can_write_is_left_alone(target: &Target) {
    let node = Node::on(target);
    node.configure_also("recursive: true");
    let open = node.images().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    bundles::write(&open.join("b.tar"), [image("registry.test/open:1")]);
    let daemon = node.start();
    let (bundle, name) = marker(node.path("marker.tar"));
    node.drop_in(&bundle);
    daemon.wait_until("a bundle beside it", || target.record(&name).is_some());
    daemon.wait_for_log("every user can write");
    assert!(target.record("registry.test/open:1").is_none());
    daemon.finish(target);
}

on_the_fake! {
    a_folder_that_everybody_can_write_is_refused,
    nothing_is_taken_from_below_a_folder_that_everybody_can_write,
    a_sub_folder_that_everybody_can_write_is_left_alone,
}
