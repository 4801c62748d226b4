//! Files that people bring instead of a bundle. The error names each kind and the remedy.

use std::path::Path;

use crate::common::*;
use airgapd_bundle::fixtures::{Archive, EntryKind, Image, Layout, compress};
use airgapd_bundle::{Bundle, Compression, Fault, Limits};

#[test]
fn what_is_no_plain_tar_is_named() {
    let rows: [(&[u8], &str); 9] = [
        (b"", "empty file"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "cut off: the gzip data"),
        (b"\x28\xb5\x2f\xfd\x04\0\0\0", "cut off: the zstd data"),
        (b"\xfd7zXZ\0\0\x04", "cut off: the xz data"),
        (b"\x04\x22\x4d\x18\x64", "cut off: the lz4 data"),
        (b"BZh91AY&SY", "cut off: the bzip2 data"),
        (b"just text", "this is not a tar archive"),
        (&[b'x'; 2000], "this is not a tar archive"),
        (&[0; 4096], "the archive is empty"),
    ];
    for (bytes, expected) in rows {
        let error = open(bytes).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        let unfinished = bytes.is_empty() || expected.starts_with("cut off");
        assert_eq!(looks_unfinished(&error), unfinished, "{error}");
    }
}

#[test]
fn other_formats_are_named_with_what_helps_also_inside_compressed_data_and_in_pieces() {
    let page = b"<!DOCTYPE html><html><body>Sign in</body></html>".to_vec();
    let mut gzipped = Vec::new();
    compress(Compression::Gzip, &mut gzipped, |out| out.write_all(&page)).unwrap();
    let mut middle = vec![7; 512];
    middle.extend(
        Layout::new()
            .image(Image::new("a").layer(b"x"))
            .build()
            .to_bytes(),
    );
    let rows: [(&[u8], &str); 5] = [
        (
            b"PK\x03\x04 and so on",
            "this is a zip archive. Take the archive out of it with `unzip FILE`",
        ),
        (
            b"\x02\x21\x4c\x18 and so on",
            "this is legacy lz4 data. Decompress it with `lz4 -dc",
        ),
        (&page, "this is a web page (HTML). The download failed"),
        (&gzipped, "inside it, compressed with gzip, is a web page (HTML)"),
        (
            &middle,
            "the middle of a tar archive, one piece of several: put all pieces together",
        ),
    ];
    for (bytes, expected) in rows {
        let error = open(bytes).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(matches!(error.fault, Fault::Unrecognised(_)) && !looks_unfinished(&error));
    }
    let folder = tempfile::tempdir().unwrap();
    for name in ["images.tar.001", "images.tar.gz.ab"] {
        let path = folder.path().join(name);
        std::fs::write(&path, [0xa5; 3000]).unwrap();
        let error = Bundle::open(&path, &Limits::default()).unwrap_err();
        assert!(error.to_string().contains("one piece of several"), "{error}");
    }
}

#[test]
fn what_is_no_regular_file_is_named_and_never_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe\x1b[2J");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    let open = |path: &Path| Bundle::open(path, &Limits::default()).unwrap_err();
    let error = open(&pipe).to_string();
    assert!(
        error.ends_with("pipe\\u{1b}[2J: not a regular file but a named pipe"),
        "{error}"
    );
    assert!(matches!(open(folder.path()).fault, Fault::NotAFile("a folder")));
    let missing = open(&folder.path().join("missing"));
    assert!(
        missing.to_string().ends_with("/missing: cannot open the file"),
        "{missing}"
    );
    let cause = std::error::Error::source(&missing).expect("the system says why");
    assert!(cause.to_string().contains("No such file"), "{cause}");
}

#[test]
fn an_archive_without_a_list_of_images_is_no_bundle_and_says_what_may_help() {
    let mut nested = one_image();
    nested.prefix("images/");
    let mut no_index = one_image();
    no_index.remove("index.json");
    let mut legacy = Layout::docker().image(Image::new("a").layer(b"x")).build();
    legacy
        .remove("manifest.json")
        .add("repositories", "{}".to_owned());
    let mut other = one_image();
    other.entries.clear();
    let empty = other.clone();
    other.add("README", "hello".to_owned());
    let rows = [
        (nested, "folder images/"),
        (no_index, "neither index.json nor manifest.json"),
        (legacy, "before version 1.10"),
        (other, "neither index.json nor manifest.json"),
        (empty, "the archive is empty"),
    ];
    for (archive, expected) in rows {
        match refused(&archive) {
            Fault::Unrecognised(reason) => assert!(reason.contains(expected), "{reason}"),
            fault => panic!("{fault}"),
        }
    }
}

/// Returns an archive of files.
fn packed(files: &[(&str, &str)]) -> Archive {
    let mut archive = one_image();
    archive.entries.clear();
    for (name, text) in files {
        archive.add(name, (*text).to_owned());
    }
    archive
}

#[test]
fn archives_that_hold_no_images_are_named_with_the_command_that_makes_a_bundle() {
    let manifest = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#;
    let version = "Directory Transport Version: 1.1\n";
    let mut linked = one_image();
    linked.entries.retain(|entry| !entry.name.starts_with("blobs"));
    let mut elsewhere = linked.clone();
    elsewhere.add("README", "hello".to_owned());
    linked.push("blobs", EntryKind::Symlink("../blobs".to_owned()));
    let rows = [
        (
            packed(&[("version", version), ("manifest.json", manifest)]),
            "skopeo's dir: form",
            "oci-archive:",
        ),
        (
            packed(&[("all/version", version), ("all/manifest.json", manifest)]),
            "skopeo's dir: form",
            "oci-archive:",
        ),
        (
            packed(&[(".dockerenv", ""), ("bin/sh", "x")]),
            "docker export",
            "docker save",
        ),
        (
            packed(&[("etc/passwd", "x"), ("bin/sh", "x")]),
            "docker export",
            "docker save",
        ),
        (
            packed(&[("etc/passwd", "x"), ("bin/sh", "x"), ("app/manifest.json", "[]")]),
            "docker export",
            "docker save",
        ),
        (
            packed(&[("root/etc/passwd", "x"), ("root/bin/sh", "x")]),
            "packed with its folder",
            "docker save",
        ),
        (
            packed(&[("images.tar.zst", "x")]),
            "other archives in it",
            "tar -xf",
        ),
        (
            packed(&[("airgap/README.md", "x"), ("airgap/images.tar", "x")]),
            "(airgap/images.tar)",
            "tar -xf",
        ),
        (
            packed(&[("app/Chart.yaml", "x"), ("app/values.yaml", "x")]),
            "a Helm chart",
            "bundle-artifacts",
        ),
        (linked, "`blobs` is a symbolic link", "--src-shared-blob-dir"),
        (elsewhere, "the blobs are elsewhere", "--src-shared-blob-dir"),
    ];
    for (archive, what, remedy) in rows {
        match refused(&archive) {
            Fault::Unrecognised(reason) => {
                assert!(
                    reason.contains(what) && reason.contains(remedy),
                    "{what}: {reason}"
                );
            }
            fault => panic!("{what}: {fault}"),
        }
    }
}
