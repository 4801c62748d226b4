//! Damaged bundles: a broken image gets no record, the other images are imported, and the message
//! names the blob.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use bundle::Compression;
use bundle::fixtures::{Archive, BuiltManifest};
use oci_spec::image::Digest;

use crate::support::bundles::{self, image, text};
use crate::support::{Node, Target, on_each_containerd, on_the_fake};

const GOOD: &str = "registry.test/good:1";
const BAD: &str = "registry.test/bad:1";

/// Selects a part of an image.
type Part = fn(&BuiltManifest) -> &Digest;

const PARTS: [(&str, Part); 3] = [
    ("layer", |manifest| &manifest.layers[0]),
    ("config", |manifest| &manifest.config),
    ("manifest", |manifest| &manifest.digest),
];

/// Damages a part.
type Harm = fn(&mut Archive, &Digest);

const HARMS: [(&str, Harm); 2] = [
    ("absent", |archive, digest| {
        archive.remove_blob(digest);
    }),
    ("corrupt", |archive, digest| {
        archive.corrupt(digest);
    }),
];

/// Statement 13.
fn an_image_with_an_absent_or_corrupt_part_gets_no_record_and_its_neighbour_does(target: &Target) {
    for (harm, damage) in HARMS {
        for (part, part_of) in PARTS {
            let target = target.elsewhere();
            let node = Node::on(&target);
            let file = text(&node.path("bundle.tar"));
            let mut archive = bundles::layout([image(BAD), image(GOOD)]).build();
            let broken = part_of(&archive.images[0].manifests[0]).clone();
            damage(&mut archive, &broken);
            archive.write_to(file.as_ref());

            let answer = node.import([&file]).exits(1);
            assert!(target.record(GOOD).is_some(), "{harm} {part}: {answer:?}");
            assert!(
                target
                    .names()
                    .iter()
                    .all(|name| !name.starts_with("registry.test/bad")),
                "{harm} {part}"
            );
            assert_eq!(answer.bundle()["outcome"], "partial", "{harm} {part}");
            let said = answer.said();
            assert!(said.contains(BAD), "{harm} {part}: the image is named: {said}");
            assert!(
                said.contains(broken.digest()),
                "{harm} {part}: the blob is named: {said}"
            );
            target.assert_tidy();
        }
    }
}

/// Wrong bytes in a layer are reported once in each output: in the text, for the image in the
/// document, and in the log with the remedy. The same holds for wrong bytes in a document of the
/// image.
fn damaged_bytes_are_told_once_with_both_digests_and_what_to_do(target: &Target) {
    for (part, part_of) in PARTS {
        let target = target.elsewhere();
        let node = Node::on(&target);
        let file = text(&node.path("bundle.tar"));
        let mut archive = bundles::layout([image(BAD).layer("upper"), image(GOOD)]).build();
        let broken = part_of(&archive.images[0].manifests[0]).clone();
        archive.corrupt(&broken);
        let found = basics::digest::sha256(&archive.bytes_of(&archive.name_of(&broken)));
        archive.write_to(file.as_ref());
        let part = if part == "layer" { "layer 1 of 2" } else { part };
        let told = format!(
            "{part} of {BAD} is damaged in bundle.tar (its bytes hash to {found}, not {broken}): copy it again, compare \
             sha256sum"
        );

        let answer = node.airgapd(["import", &file]).exits(1);
        assert_eq!(answer.said().matches(&told).count(), 1, "{answer:?}");
        assert_eq!(answer.said().matches(broken.digest()).count(), 1, "{answer:?}");
        let document = node.import([&file]).exits(1).bundle();
        let images = document["images"].as_array().expect("a list");
        let failed = Vec::from_iter(images.iter().filter(|image| image["outcome"] == "failed"));
        assert_eq!(failed.len(), 1, "{document:#}");
        assert_eq!(failed[0]["reason"], *told, "{document:#}");

        let daemon = node.start();
        node.drop_in(file.as_ref());
        daemon.wait_for_log(&told);
        daemon.wait_until("the whole image", || target.leases().is_empty());
        assert_eq!(daemon.count(&told), 1, "{}", daemon.log());
        let status = node.airgapd(["status"]).exits(1);
        let screen = status.stdout.split_whitespace().collect::<String>();
        let sought = told.split_whitespace().collect::<String>();
        assert!(screen.contains(&sought), "{status:?}");
        daemon.finish(&target);
    }
}

/// Statement 13, for a bundle whose only image is broken.
fn a_bundle_of_one_broken_image_ends_with_5(target: &Target) {
    for (harm, damage) in HARMS {
        for (part, part_of) in PARTS {
            let target = target.elsewhere();
            let node = Node::on(&target);
            let file = text(&node.path("bundle.tar"));
            let mut archive = bundles::layout([image(BAD)]).build();
            let broken = part_of(&archive.images[0].manifests[0]).clone();
            damage(&mut archive, &broken);
            archive.write_to(file.as_ref());

            let answer = node.import([&file]).exits(5);
            assert!(target.names().is_empty(), "{harm} {part}");
            assert_eq!(answer.bundle()["outcome"], "failed", "{harm} {part}");
            assert!(
                answer.said().contains(broken.digest()),
                "{harm} {part}: {answer:?}"
            );
            target.assert_tidy();
        }
    }
}

/// The place where an archive is cut.
enum Cut {
    Boundary,
    Header,
    Data,
    Zeros,
}

const CUTS: [Cut; 4] = [Cut::Boundary, Cut::Header, Cut::Data, Cut::Zeros];

impl Cut {
    fn name(&self) -> &'static str {
        match self {
            Cut::Boundary => "at an entry boundary",
            Cut::Header => "inside a header",
            Cut::Data => "inside data",
            Cut::Zeros => "with a zero-filled tail",
        }
    }

    /// Removes everything from the header at `boundary` on.
    fn apply(&self, bytes: &mut Vec<u8>, boundary: usize) {
        match self {
            Cut::Boundary => bytes.truncate(boundary),
            Cut::Header => bytes.truncate(boundary + 100),
            Cut::Data => bytes.truncate(boundary + 512 + 3),
            Cut::Zeros => bytes[boundary..].fill(0),
        }
    }
}

/// Returns an archive of two images, with the documents first and a layer of the bad image last.
/// Also returns the offset of that layer's entry and its digest.
fn two_images_with_the_bad_ones_layer_last() -> (Archive, usize, Digest) {
    let mut archive = bundles::layout([image(BAD), image(GOOD)]).build();
    let lost = archive.images[0].manifests[0].layers[0].clone();
    let name = archive.name_of(&lost);
    let at = archive
        .entries
        .iter()
        .position(|entry| entry.name == name)
        .unwrap();
    let entry = archive.entries.remove(at);
    archive.entries.push(entry);
    let boundaries = archive.boundaries();
    let boundary = usize::try_from(boundaries[boundaries.len() - 2]).unwrap();
    (archive, boundary, lost)
}

/// Statement 12: a cut loses one image, and the other is imported.
fn a_cut_bundle_gives_its_whole_images_and_no_other(target: &Target) {
    for cut in CUTS {
        let target = target.elsewhere();
        let node = Node::on(&target);
        let file = text(&node.path("cut.tar"));
        let (archive, boundary, lost) = two_images_with_the_bad_ones_layer_last();
        let mut bytes = archive.to_bytes();
        cut.apply(&mut bytes, boundary);
        fs::write(&file, bytes).unwrap();

        let answer = node.import([&file]).exits(1);
        assert!(target.record(GOOD).is_some(), "cut {}: {answer:?}", cut.name());
        assert!(target.record(BAD).is_none(), "cut {}", cut.name());
        let said = answer.said();
        assert!(
            said.contains(BAD) && said.contains(lost.digest()),
            "cut {}: {said}",
            cut.name()
        );
    }
}

/// Statement 12, for a cut that loses the index: nothing is imported, and earlier records stay.
fn a_bundle_cut_before_its_index_changes_nothing(target: &Target) {
    for cut in CUTS {
        let target = target.elsewhere();
        let node = Node::on(&target);
        let file = text(&node.path("cut.tar"));
        let archive = bundles::layout([image(GOOD)]).build();
        let mut bytes = archive.to_bytes();
        let index = archive
            .entries
            .iter()
            .position(|entry| entry.name == "index.json")
            .unwrap();
        cut.apply(&mut bytes, usize::try_from(archive.boundaries()[index]).unwrap());
        fs::write(&file, bytes).unwrap();

        let answer = node.import([&file]).exits(5);
        assert!(
            target.names().is_empty() && target.blobs().is_empty(),
            "cut {}",
            cut.name()
        );
        assert!(
            answer.said().contains("cut.tar"),
            "cut {}: {answer:?}",
            cut.name()
        );
    }
}

/// A damaged bundle is in the folder. The daemon names the image and blob, and continues.
fn the_daemon_names_what_is_broken_and_takes_the_rest(target: &Target) {
    let node = Node::on(target);
    let mut archive = bundles::layout([image(BAD), image(GOOD)]).build();
    let broken = archive.images[0].manifests[0].layers[0].clone();
    archive.remove_blob(&broken).write_to(&node.path("bundle.tar"));
    let daemon = node.start();
    node.drop_in(&node.path("bundle.tar"));
    daemon.wait_until("the whole image", || {
        target.record(GOOD).is_some() && target.leases().is_empty()
    });
    daemon.wait_for_log(broken.digest());
    assert!(daemon.log().contains(BAD), "the image is named");
    assert!(target.record(BAD).is_none());
    daemon.finish(target);
}

/// Damage during an import does not prevent a later import of the repaired file.
fn a_bundle_that_is_harmed_in_mid_import_is_imported_when_it_is_right_again(target: &Target) {
    let node = Node::on(target);
    let daemon = node.start();
    let plain = bundles::layout([image("registry.test/plain:1")]).build();
    let packed = bundles::layout([image("registry.test/packed:1")]).build();
    let folder = bundles::layout([image("registry.test/folder:1")]).build();
    let blob = folder.name_of(&folder.images[0].manifests[0].layers[0]);
    target.slow_commits(Duration::from_secs(5));
    let make = |name: &str| {
        let path = node.images().join(name);
        match name {
            "plain.tar" => plain.write_to(&path),
            "packed.tar.gz" => {
                fs::write(&path, packed.to_compressed(Compression::Gzip)).expect("the file can be written");
            }
            _ => folder.extract_to(&path),
        }
    };
    for (name, file) in [
        ("plain.tar", "plain.tar".to_owned()),
        ("packed.tar.gz", "packed.tar.gz".to_owned()),
        ("folder", format!("folder/{blob}")),
    ] {
        for harm in [cut, overwrite, extend] {
            let said = daemon.log().len();
            make(name);
            daemon.wait_until("the import runs", || {
                let log = daemon.log();
                let mut new = log[said..].lines();
                new.any(|line| line.contains("importing") && line.contains(name))
            });
            harm(&node.images().join(&file));
            make(name);
        }
    }
    target
        .as_fake()
        .expect("the target is the stand-in")
        .clear_faults();
    for name in ["plain", "packed", "folder"] {
        let name = format!("registry.test/{name}:1");
        daemon.wait_until(&name, || target.record(&name).is_some());
    }
    daemon.finish(target);
}

fn cut(path: &Path) {
    let file = File::options().write(true).open(path).expect("the file exists");
    file.set_len(file.metadata().expect("the file exists").len() / 2)
        .expect("the file can be cut");
}

fn overwrite(path: &Path) {
    let file = File::options().write(true).open(path).expect("the file exists");
    let size = file.metadata().expect("the file exists").len();
    let zeros = vec![0; usize::try_from(size).expect("the file is small")];
    file.write_all_at(&zeros, 0).expect("the file can be written");
}

fn extend(path: &Path) {
    let file = File::options().write(true).open(path).expect("the file exists");
    let size = file.metadata().expect("the file exists").len();
    file.write_all_at(b"more", size).expect("the file can be written");
}

on_each_containerd!(
    an_image_with_an_absent_or_corrupt_part_gets_no_record_and_its_neighbour_does,
    damaged_bytes_are_told_once_with_both_digests_and_what_to_do,
);
on_the_fake!(
    a_bundle_of_one_broken_image_ends_with_5,
    a_cut_bundle_gives_its_whole_images_and_no_other,
    a_bundle_cut_before_its_index_changes_nothing,
    the_daemon_names_what_is_broken_and_takes_the_rest,
    a_bundle_that_is_harmed_in_mid_import_is_imported_when_it_is_right_again,
);
