//! Files in the images folder of a running daemon, writable or read-only.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use bundle::Compression;
use import::bundle_id;

use crate::support::bundles::{
    self, PLATFORMS, all_records, image, marker, multi_platform, needed_here, records_of,
};
use crate::support::mount::Mount;
use crate::support::target::{BUNDLE, OUR_PIN, PINNED};
use crate::support::{Node, Target, on_each_containerd, on_the_fake, unique};

const A: &str = "registry.test/a:1";
const B: &str = "registry.test/b:1";
const SLOW: &str = "registry.test/slow:1";
const KNOWN: &str = "registry.test/known:1";

const NAMES: [&str; 3] = [
    "registry.test/one:1",
    "registry.test/two:1",
    "registry.test/sub/three:3",
];

/// Statements 30 and 40, and the main job.
fn a_bundle_becomes_pinned_records_and_nothing_but_what_the_node_runs(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let archive = bundles::write(
        &node.path("bundle.tar"),
        NAMES.map(|name| multi_platform(name, &PLATFORMS)),
    );
    let expected = all_records(NAMES.into_iter().zip(&archive.images));

    node.drop_in(&node.path("bundle.tar"));
    daemon.wait_until("three names, three digests", || target.names() == expected);
    daemon.wait_until("the lease is returned", || target.leases().is_empty());

    for (name, image) in NAMES.iter().zip(&archive.images) {
        for record in records_of(name, image) {
            let found = target.expect_record(&record);
            assert_eq!(*found.target.digest(), image.root, "{record}");
            assert_eq!(
                found.target.media_type().to_string(),
                "application/vnd.oci.image.index.v1+json"
            );
            assert_eq!(
                found.labels.get(PINNED).map(String::as_str),
                Some("pinned"),
                "{record}"
            );
            assert_eq!(
                found.labels.get(OUR_PIN).map(String::as_str),
                Some("true"),
                "{record}"
            );
            let vouches = format!("{BUNDLE}{}", bundle_id("bundle.tar"));
            assert_eq!(
                found.labels.get(&vouches).map(String::as_str),
                Some("bundle.tar"),
                "{record}"
            );
        }
    }
    target.collect_garbage();
    let needed = needed_here(&archive.images);
    assert_eq!(target.digests(), needed);
    if let Some(fake) = target.as_fake() {
        let received: Vec<_> = fake
            .received()
            .into_keys()
            .filter(|digest| !needed.contains(digest))
            .collect();
        assert_eq!(
            received,
            Vec::<String>::new(),
            "the blob was sent, but no platform of this node needs it"
        );
    }
    daemon.finish(target);
}

fn a_file_moved_into_the_folder_is_imported(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    bundles::write(&node.path("moved.tar"), [image("registry.test/moved:1")]);
    fs::rename(node.path("moved.tar"), node.images().join("moved.tar")).unwrap();
    daemon.wait_until("the image", || target.record("registry.test/moved:1").is_some());
    daemon.finish(target);
}

/// Earlier files are imported at the start. The daemon creates a missing folder with mode 0755.
fn what_lies_in_the_folder_at_the_start_is_imported(target: &Target) {
    let node = Node::on(target);
    bundles::write(&node.images().join("early.tar"), [image("registry.test/early:1")]);
    let daemon = node.start();
    daemon.wait_until("the image", || target.record("registry.test/early:1").is_some());
    daemon.finish(target);
}

fn a_folder_that_is_not_there_is_made(target: &Target) {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::on(target);
    fs::remove_dir(node.images()).unwrap();
    let daemon = node.start();
    daemon.wait_until("the folder", || node.images().is_dir());
    assert_eq!(
        fs::metadata(node.images()).unwrap().permissions().mode() & 0o7777,
        0o755
    );
    let (bundle, name) = marker(node.path("marker.tar"));
    node.drop_in(&bundle);
    daemon.wait_until("the image", || target.record(&name).is_some());
    daemon.finish(target);
}

/// Statement 54.
fn hidden_and_temporary_files_are_left_alone_with_a_reason_said_once(target: &Target) {
    let node = Node::on(target);
    let ignored = [".hidden.tar", "upload.tar.part", "copy.tar~"];
    for name in ignored {
        bundles::write(
            &node.images().join(name),
            [image(&format!("registry.test/ignored:{}", name.len()))],
        );
    }
    fs::create_dir(node.images().join("folder")).unwrap();
    let daemon = node.start();
    let expected: Vec<_> = ["first", "second"]
        .map(|file| {
            let (bundle, name) = marker(node.path(&format!("{file}.tar")));
            node.drop_in(&bundle);
            daemon.wait_until("a file beside them", || target.record(&name).is_some());
            name
        })
        .into_iter()
        .collect();

    for name in ignored.into_iter().chain(["folder"]) {
        assert_eq!(
            daemon.count(name),
            1,
            "{name} is mentioned once:\n{}",
            daemon.log()
        );
    }
    let names = target.names();
    assert!(names.iter().all(|name| !name.contains("ignored")), "{names:?}");
    assert!(expected.iter().all(|name| names.contains(name)), "{names:?}");
    daemon.finish(target);
}

/// Statement 53.
fn a_file_that_somebody_writes_is_imported_when_it_is_closed_and_not_before(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let bytes = bundles::layout([image("registry.test/slow:1")])
        .build()
        .to_bytes();
    let mut slow = File::create(node.images().join("slow.tar")).unwrap();
    slow.write_all(&bytes).unwrap();

    let (bundle, name) = marker(node.path("marker.tar"));
    node.drop_in(&bundle);
    daemon.wait_until("a file beside it", || target.record(&name).is_some());
    assert!(
        target.record("registry.test/slow:1").is_none(),
        "a program still has it open for writing"
    );

    drop(slow);
    daemon.wait_until("the closed file", || {
        target.record("registry.test/slow:1").is_some()
    });
    daemon.finish(target);
}

/// Programs that upload in pieces reopen the file for each piece. Between the pieces no program has
/// it open, and a piece may end where an archive could end.
fn an_upload_in_pieces_is_no_bad_bundle_in_between(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let archive = |name| {
        // Zeros are at the end of the first half and not near the end of the file.
        let mut file = vec![0; 64 << 10];
        file.extend(unique().repeat(4096).into_bytes());
        bundles::layout([image(name).layer(file)]).build()
    };
    let inside_zeros = archive("registry.test/zeros:1");
    let (at, layer) = (inside_zeros.entries.iter().enumerate())
        .max_by_key(|(_, entry)| inside_zeros.bytes_of(&entry.name).len())
        .unwrap();
    assert!(inside_zeros.bytes_of(&layer.name).len() > 64 << 10);
    let cut = usize::try_from(inside_zeros.boundaries()[at]).unwrap() + 512 + (16 << 10);
    let compressed = archive("registry.test/compressed:1").to_compressed(Compression::Gzip);
    let reserved = archive("registry.test/reserved:1").to_bytes();
    let uploads = [
        ("zeros.tar", inside_zeros.to_bytes(), cut),
        ("compressed.tar.gz", compressed.clone(), compressed.len() / 2),
        ("reserved.tar", reserved.clone(), reserved.len() / 2),
    ];
    for (name, bytes, half) in &uploads {
        let mut file = File::create(node.images().join(name)).unwrap();
        if *name == "reserved.tar" {
            file.set_len(bytes.len() as u64).unwrap();
        }
        file.write_all(&bytes[..*half]).unwrap();
    }
    for (name, ..) in &uploads {
        daemon.wait_until(name, || {
            daemon
                .log()
                .lines()
                .any(|line| line.contains(name) && line.contains("not whole yet"))
        });
    }
    for (name, bytes, half) in &uploads {
        let file = File::options()
            .write(true)
            .open(node.images().join(name))
            .unwrap();
        file.write_all_at(&bytes[*half..], *half as u64).unwrap();
    }
    for name in ["zeros", "compressed", "reserved"] {
        daemon.wait_until(name, || {
            target.record(&format!("registry.test/{name}:1")).is_some()
        });
    }
    let log = daemon.finish(target);
    assert!(!log.contains("ERROR") && !log.contains("WARN"), "{log}");
}

/// The daemon does not wait for a file that no further bytes could complete.
fn a_short_text_is_refused_at_once(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    fs::write(node.images().join("note"), "remember the milk\n").unwrap();
    daemon.wait_for_log("this is not a tar archive");
    daemon.finish(target);
}

fn a_replaced_bundle_moves_its_names_to_the_new_images(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let name = "registry.test/app:1";
    let file = node.images().join("app.tar");
    let before = bundles::write(&node.path("app.tar"), [image(name)]).images[0].clone();
    fs::rename(node.path("app.tar"), &file).unwrap();
    let old = records_of(name, &before)[1].clone();
    daemon.wait_until("the first", || {
        target.record(name).is_some() && target.record(&old).is_some()
    });

    let after = bundles::write(&node.path("app.tar"), [image(name)]).images[0].clone();
    fs::rename(node.path("app.tar"), &file).unwrap();
    daemon.wait_until("the second", || {
        *target.expect_record(name).target.digest() == after.root
    });

    assert!(target.is_pinned(name));
    let new = records_of(name, &after)[1].clone();
    daemon.wait_until("the new digest's record", || target.record(&new).is_some());
    assert!(target.is_pinned(&new));
    assert!(
        target.record(&old).is_some(),
        "containers may run from the old image: its record is kubelet's to remove"
    );
    daemon.finish(target);
}

/// Statement 58: a new inode and time, with the same content.
fn the_same_bundle_placed_anew_changes_no_record(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let archive = bundles::write(&node.path("app.tar"), [image("registry.test/app:1")]);
    node.drop_in(&node.path("app.tar"));
    let expected = all_records([("registry.test/app:1", &archive.images[0])]);
    daemon.wait_until("the image", || {
        target.names() == expected && target.leases().is_empty()
    });

    let changes = target.watch();
    fs::rename(node.path("app.tar"), node.images().join("app.tar")).unwrap();
    daemon.wait_until("the file is checked again", || daemon.count("bundle=app.tar") > 3);
    let (bundle, name) = marker(node.path("marker.tar"));
    node.drop_in(&bundle);
    daemon.wait_until("a file after it", || target.record(&name).is_some());
    let of_app: Vec<_> = changes
        .so_far()
        .into_iter()
        .filter(|(_, name)| expected.contains(name))
        .collect();
    assert_eq!(of_app, []);
    daemon.finish(target);
}

/// One bad bundle affects no other, and the log names it.
fn a_file_that_is_no_bundle_is_reported_by_name_and_the_others_proceed(target: &Target) {
    let node = Node::on(target);
    fs::write(node.images().join("readme.txt"), "read me\n".repeat(1000)).unwrap();
    let daemon = node.start();
    let (bundle, name) = marker(node.path("marker.tar"));
    node.drop_in(&bundle);
    daemon.wait_until("the good one", || target.record(&name).is_some());
    daemon.wait_for_log("readme.txt");
    daemon.finish(target);
}

/// Statement 56.
fn a_bundle_replaced_by_a_broken_file_leaves_its_images_pinned(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let name = "registry.test/kept:1";
    bundles::write(&node.images().join("kept.tar"), [image(name)]);
    daemon.wait_until("the image", || target.record(name).is_some());

    fs::write(node.path("kept.tar"), "no bundle at all\n".repeat(1000)).unwrap();
    fs::rename(node.path("kept.tar"), node.images().join("kept.tar")).unwrap();
    let errors = "kept.tar";
    daemon.wait_until("the daemon minds", || {
        daemon
            .log()
            .lines()
            .any(|line| line.contains(errors) && line.contains("ERROR"))
    });
    assert!(target.is_pinned(name));
    daemon.finish(target);
}

/// A folder may serve several architectures, so a bundle without an image for this node is no
/// error.
fn a_bundle_with_nothing_for_this_node_is_a_note_and_no_error(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let foreign = multi_platform("registry.test/foreign:1", &["linux/riscv64", "linux/s390x"]);
    bundles::write(&node.images().join("foreign.tar"), [foreign]);
    daemon.wait_for_log("foreign.tar");
    let (bundle, name) = marker(node.path("marker.tar"));
    node.drop_in(&bundle);
    daemon.wait_until("a file after it", || target.record(&name).is_some());
    assert!(target.record("registry.test/foreign:1").is_none());
    let log = daemon.finish(target);
    assert!(!log.contains("ERROR"), "{log}");
}

fn bundles_on_a_read_only_disk_are_imported_and_let_go(target: &Target) {
    if !lab::is_root() {
        return;
    }
    let node = Node::on(target);
    bundles::write(&node.images().join("a.tar"), [image(A)]);
    let elsewhere = node.path("elsewhere");
    bundles::write(&node.path("a-layout.tar"), [image(B)]);
    fs::rename(node.images(), &elsewhere).expect("both paths are on one file system");
    fs::create_dir(node.images()).expect("a folder");
    let mount = Mount::bind_read_only(&elsewhere, &node.images());
    let daemon = node.start();
    daemon.wait_until("the image", || target.record(A).is_some());
    // The file appears on the other side of the mount, like a new squashfs.
    fs::copy(node.path("a-layout.tar"), elsewhere.join("b.tar")).expect("the file can be copied");
    daemon.wait_until("the other image", || target.record(B).is_some());
    let log = daemon.finish(target);
    assert!(!log.contains("ERROR"), "{log}");
    drop(mount);
}

fn a_bundle_that_is_replaced_while_it_is_imported_is_not_imported_to_its_end(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    target.slow_commits(Duration::from_secs(5));
    let place = node.images().join("a.tar");
    bundles::write(&place, [image(SLOW)]);
    daemon.wait_for_line("a.tar", "importing");
    let next = node.path("next.tar");
    bundles::write(&next, [image(KNOWN)]);
    fs::rename(&next, &place).expect("the file can be replaced");
    daemon.wait_for_log("the file was replaced or removed");
    target
        .as_fake()
        .expect("the target is the stand-in")
        .clear_faults();
    daemon.wait_until("the new one is imported", || target.record(KNOWN).is_some());
    assert!(target.record(SLOW).is_none());
    daemon.finish(target);
}

on_each_containerd!(
    a_bundle_becomes_pinned_records_and_nothing_but_what_the_node_runs,
    a_replaced_bundle_moves_its_names_to_the_new_images,
);
on_the_fake!(
    a_file_moved_into_the_folder_is_imported,
    what_lies_in_the_folder_at_the_start_is_imported,
    a_folder_that_is_not_there_is_made,
    the_same_bundle_placed_anew_changes_no_record,
    hidden_and_temporary_files_are_left_alone_with_a_reason_said_once,
    a_file_that_somebody_writes_is_imported_when_it_is_closed_and_not_before,
    an_upload_in_pieces_is_no_bad_bundle_in_between,
    a_short_text_is_refused_at_once,
    a_file_that_is_no_bundle_is_reported_by_name_and_the_others_proceed,
    a_bundle_replaced_by_a_broken_file_leaves_its_images_pinned,
    a_bundle_with_nothing_for_this_node_is_a_note_and_no_error,
    bundles_on_a_read_only_disk_are_imported_and_let_go,
    a_bundle_that_is_replaced_while_it_is_imported_is_not_imported_to_its_end,
);
