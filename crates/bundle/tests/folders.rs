//! Image layouts that were extracted into a folder.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::common::*;
use airgapd_bundle::fixtures::{Archive, Image, Layout, digest_of};
use airgapd_bundle::{Bundle, Content, Ending, Error, Fault, Limits, PartState};
use tempfile::TempDir;

fn archives() -> [Archive; 3] {
    let image = Image::new("docker.io/library/a:1")
        .platform("linux/amd64")
        .layer(vec![b'x'; 10_000])
        .platform("linux/arm64")
        .layer(b"y");
    [Layout::new(), Layout::docker(), Layout::hybrid()].map(|layout| layout.image(image.clone()).build())
}

fn extracted(archive: &Archive) -> TempDir {
    let folder = TempDir::new().unwrap();
    archive.extract_to(folder.path());
    folder
}

fn open_dir(path: &Path) -> Result<Bundle, Error> {
    Bundle::open_dir(path, &Limits::default())
}

/// Returns the state of the first layer of the only image, from its first manifest.
fn first_layer(bundle: &Bundle) -> &PartState {
    let root = &only_image(bundle).root;
    let node = match &root.content {
        Content::Index(children) => &children[0],
        _ => root,
    };
    &manifest(node).layers[0].state
}

#[test]
fn a_folder_is_what_its_archive_is() {
    for archive in archives() {
        let folder = extracted(&archive);
        let bundle = open_dir(folder.path()).unwrap();
        assert_eq!(bundle.catalog(), good(&archive).catalog());
        assert_eq!(bundle.catalog().ending, Ending::Marker);
        assert!(!bundle.is_sequential());
        assert_blobs_are_right(&bundle, &only_image(&bundle).root);
    }
}

#[test]
fn a_layout_whose_blobs_are_elsewhere_is_said_to_be_one() {
    let [archive, ..] = archives();
    let shared = extracted(&archive);
    let app = shared.path().join("app");
    fs::create_dir(&app).unwrap();
    for file in ["index.json", "oci-layout"] {
        fs::rename(shared.path().join(file), app.join(file)).unwrap();
    }
    let said = || match open_dir(&app).unwrap_err().fault {
        Fault::Unrecognised(reason) => reason,
        fault => panic!("{fault}"),
    };
    let elsewhere = said();
    assert!(
        elsewhere.contains("the blobs are elsewhere") && elsewhere.contains("--src-shared-blob-dir"),
        "{elsewhere}"
    );
    symlink("../blobs", app.join("blobs")).unwrap();
    let linked = said();
    assert!(
        linked.contains("`blobs` is a symbolic link") && linked.contains("--src-shared-blob-dir"),
        "{linked}"
    );
    fs::remove_file(app.join("blobs")).unwrap();
    fs::create_dir_all(app.join("blobs/sha256")).unwrap();
    assert_eq!(said(), elsewhere);
}

#[test]
fn blobs_of_a_folder_are_streamed_and_read_from_any_offset() {
    use std::io::Read as _;
    let [archive, ..] = archives();
    let folder = extracted(&archive);
    let bundle = open_dir(folder.path()).unwrap();
    let layer = archive.images[0].manifests[0].layers[0].clone();
    let mut stream = bundle.stream(&[layer.clone()].into()).unwrap();
    let mut whole = Vec::new();
    stream
        .next_blob()
        .unwrap()
        .unwrap()
        .read_to_end(&mut whole)
        .unwrap();
    assert!(stream.next_blob().unwrap().is_none());
    assert_eq!(digest_of(&whole), layer);
    let mut rest = Vec::new();
    bundle
        .blob(&layer)
        .unwrap()
        .open(700)
        .unwrap()
        .read_to_end(&mut rest)
        .unwrap();
    assert_eq!(rest, whole[700..]);
    assert!(bundle.blob(&layer).unwrap().open(whole.len() as u64 + 1).is_err());
}

#[test]
fn links_are_followed_inside_the_folder_and_nowhere_else() {
    let [archive, ..] = archives();
    let layer = archive.name_of(&archive.images[0].manifests[0].layers[0]);
    let outside = TempDir::new().unwrap();
    let target = outside.path().join("layer");
    fs::write(&target, archive.bytes_of(&layer)).unwrap();
    let relative = format!("../../../{}/layer", outside.path().file_name().unwrap().display());
    let rows = [
        ("../../stored", true),
        (target.to_str().unwrap(), false),
        (relative.as_str(), false),
        ("/proc/self/exe", false),
    ];
    for (link, is_followed) in rows {
        let folder = extracted(&archive);
        fs::rename(folder.path().join(&layer), folder.path().join("stored")).unwrap();
        symlink(link, folder.path().join(&layer)).unwrap();
        let bundle = open_dir(folder.path()).unwrap();
        let state = first_layer(&bundle);
        match is_followed {
            true => assert_eq!(state, &PartState::Present, "{link}"),
            false => assert!(
                matches!(state, PartState::Broken(reason) if reason.contains("leads out of the folder")),
                "{link}: {state:?}"
            ),
        }
    }
}

#[test]
fn what_is_no_regular_file_is_never_waited_for() {
    let [archive, ..] = archives();
    let layer = archive.name_of(&archive.images[0].manifests[0].layers[0]);
    let make: [fn(&Path); 3] = [
        |path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
        |path| fs::create_dir(path).unwrap(),
        |path| drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
    ];
    for make in make {
        let folder = extracted(&archive);
        let path = folder.path().join(&layer);
        fs::remove_file(&path).unwrap();
        make(&path);
        let bundle = open_dir(folder.path()).unwrap();
        let state = first_layer(&bundle);
        assert!(
            matches!(state, PartState::Broken(reason) if reason.contains("not a regular file")),
            "{state:?}"
        );
    }
}

#[test]
fn a_folder_that_is_written_to_is_another_one() {
    let [archive, ..] = archives();
    let layer = archive.images[0].manifests[0].layers[0].clone();
    let name = archive.name_of(&layer);
    let changes: [fn(&Path, &str); 4] = [
        |folder, _| fs::write(folder.join("index.json"), "{}").unwrap(),
        |folder, _| fs::write(folder.join("blobs/sha256/new"), "").unwrap(),
        |folder, name| fs::remove_file(folder.join(name)).unwrap(),
        |folder, _| fs::remove_file(folder.join("oci-layout")).unwrap(),
    ];
    for change in changes {
        let folder = extracted(&archive);
        let bundle = open_dir(folder.path()).unwrap();
        assert!(bundle.is_unchanged().unwrap());
        assert_eq!(
            open_dir(folder.path()).unwrap().identity(),
            bundle.identity(),
            "opening changes nothing"
        );
        change(folder.path(), &name);
        assert!(!bundle.is_unchanged().unwrap());
    }
}

#[test]
fn a_blob_that_is_replaced_is_no_blob_of_the_bundle_any_more() {
    let [archive, ..] = archives();
    let layer = archive.images[0].manifests[0].layers[0].clone();
    let folder = extracted(&archive);
    let bundle = open_dir(folder.path()).unwrap();
    let blob = bundle.blob(&layer).unwrap();
    assert!(blob.open(0).is_ok());
    let path = folder.path().join(archive.name_of(&layer));
    let other = folder.path().join("other");
    fs::copy(&path, &other).unwrap();
    fs::rename(&other, &path).unwrap();
    let error = blob.open(0).map(drop).unwrap_err();
    assert!(error.to_string().contains("changed"), "{error}");
    fs::remove_file(&path).unwrap();
    assert!(blob.open(0).is_err());
}

#[test]
fn what_is_missing_or_damaged_in_a_folder_is_told_as_in_an_archive() {
    let [mut archive, ..] = archives();
    let built = archive.images[0].manifests[0].clone();
    archive.remove_blob(&built.layers[0]);
    let bundle_of =
        |archive: &Archive| open_dir(extracted(archive).path()).map(|bundle| bundle.catalog().clone());
    assert_eq!(bundle_of(&archive).unwrap(), *good(&archive).catalog());
    archive.corrupt(&built.config);
    assert_eq!(bundle_of(&archive).unwrap(), *good(&archive).catalog());
    archive.remove("index.json").remove("oci-layout");
    let fault = bundle_of(&archive).unwrap_err().fault;
    assert!(
        matches!(&fault, Fault::Unrecognised(reason) if reason.starts_with("the folder has neither")),
        "{fault}"
    );
}

#[test]
fn a_folder_that_is_not_there_or_no_folder_is_an_error() {
    let folder = TempDir::new().unwrap();
    assert!(matches!(
        open_dir(&folder.path().join("x")).unwrap_err().fault,
        Fault::Io { .. }
    ));
    fs::write(folder.path().join("file"), "").unwrap();
    assert!(matches!(
        open_dir(&folder.path().join("file")).unwrap_err().fault,
        Fault::Io { .. }
    ));
}
