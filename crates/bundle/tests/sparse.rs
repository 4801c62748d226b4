//! Files with holes: those of GNU's old encoding are read, all others are refused by name.

mod common;

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::process::Command;

use airgapd_bundle::fixtures::{Archive, Image, Layout};
use airgapd_bundle::{Bundle, Compression, Fault, Limits};
use common::*;
use oci_spec::image::Digest;
use tar::{EntryType, Header};

/// Tar finds holes in units of 512 bytes at least; file systems make them of 4096.
const UNIT: usize = 1 << 16;

/// Bytes with holes before, between and after so many islands.
fn islands(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; UNIT];
    for n in 0..count {
        bytes.extend_from_slice(&[u8::try_from(n % 251 + 1).unwrap(); 4096]);
        bytes.resize(bytes.len() + UNIT, 0);
    }
    // An end that is no whole block.
    bytes.resize(bytes.len() + 77, 0);
    bytes
}

fn image(file: &[u8]) -> Archive {
    let image = Image::new("a:1").platform("linux/amd64").layer(file);
    Layout::new().image(image).build()
}

/// The digest and the bytes of the only layer.
fn layer_of(archive: &Archive) -> (Digest, Vec<u8>) {
    let digest = archive.images[0].manifests[0].layers[0].clone();
    let bytes = archive.bytes_of(&archive.name_of(&digest));
    (digest, bytes)
}

/// Packs an archive with tar, its largest files with holes.
fn packed_by_tar(archive: &Archive, options: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    archive.extract_to(folder.path());
    for entry in &archive.entries {
        let bytes = archive.bytes_of(&entry.name);
        if bytes.len() >= UNIT {
            write_with_holes(&File::create(folder.path().join(&entry.name)).unwrap(), &bytes);
        }
    }
    let output = Command::new("tar")
        .args(["--create", "--sparse"])
        .args(options)
        .arg("--directory")
        .arg(folder.path())
        .arg(".")
        .output()
        .expect("tar is part of every Debian");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

fn write_with_holes(file: &File, bytes: &[u8]) {
    file.set_len(bytes.len() as u64).unwrap();
    for (n, block) in bytes.chunks(4096).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, 4096 * n as u64).unwrap();
        }
    }
}

fn read_from(bundle: &Bundle, digest: &Digest, offset: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let blob = bundle.blob(digest).unwrap();
    blob.open(offset as u64).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn what_tar_packs_with_holes_is_read_with_zeros() {
    // Four parts fit into a header and 21 into each further block.
    for count in [0, 1, 4, 5, 60] {
        let archive = image(&islands(count));
        let (digest, layer) = layer_of(&archive);
        for format in ["--format=gnu", "--format=oldgnu"] {
            let bytes = packed_by_tar(&archive, &[format]);
            assert!(bytes.len() < layer.len() || count == 0, "tar made holes");
            let bundle = open(&bytes).unwrap();
            assert!(is_whole(&only_image(&bundle).root), "{count} islands, {format}");
            for offset in [0, 1, UNIT, UNIT + 1, layer.len() / 2, layer.len()] {
                let read = read_from(&bundle, &digest, offset);
                assert!(read == layer[offset..], "{count} islands from {offset}");
            }
        }
    }
}

#[test]
fn holes_in_a_compressed_archive_are_read_with_zeros_too() {
    let archive = image(&islands(30));
    let (digest, layer) = layer_of(&archive);
    let bytes = packed_by_tar(&archive, &["--format=oldgnu", "--gzip"]);
    let bundle = open(&bytes).unwrap();
    assert_eq!(bundle.catalog().compression, Compression::Gzip);
    assert!(is_whole(&only_image(&bundle).root));
    assert!(read_from(&bundle, &digest, UNIT + 9) == layer[UNIT + 9..]);
    let manifest = &archive.images[0].manifests[0];
    let wanted = [digest.clone(), manifest.config.clone()].into();
    let mut stream = bundle.stream(&wanted).unwrap();
    let mut sizes = 0;
    while let Some(mut blob) = stream.next_blob().unwrap() {
        let mut read = Vec::new();
        blob.read_to_end(&mut read).unwrap();
        assert_eq!(read.len() as u64, blob.size());
        if *blob.digest() == digest {
            assert!(read == layer);
        }
        sizes += 1;
    }
    assert_eq!(sizes, 2);
}

#[test]
fn a_layer_of_a_docker_archive_may_have_holes() {
    let image = Image::new("a:1").platform("linux/amd64").layer(islands(3));
    let archive = Layout::docker().image(image).build();
    let bundle = open(&packed_by_tar(&archive, &["--format=gnu"])).unwrap();
    assert!(is_whole(&only_image(&bundle).root));
    let (digest, layer) = layer_of(&archive);
    assert!(read_from(&bundle, &digest, 0) == layer);
}

#[test]
fn holes_in_pax_format_are_refused_by_name() {
    let archive = image(&islands(3));
    for version in ["0.0", "0.1", "1.0"] {
        let version = format!("--sparse-version={version}");
        let bytes = packed_by_tar(&archive, &["--format=posix", &version]);
        let bundle = open(&bytes).unwrap();
        let layer = &manifest(&only_image(&bundle).root).layers[0];
        let state = format!("{:?}", layer.state);
        assert!(state.contains("sparse file in PAX format"), "{version}: {state}");
    }
}

/// The header of a sparse file with this map and these further blocks.
fn header(name: &str, stored: u64, size: u64, map: &[(u64, u64)], more: bool) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_path(name).unwrap();
    header.set_size(stored);
    header.set_entry_type(EntryType::GNUSparse);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(size);
    gnu.set_is_extended(more);
    for (field, (offset, length)) in gnu.sparse.iter_mut().zip(map) {
        field.set_offset(*offset);
        field.set_length(*length);
    }
    header.set_cksum();
    header.as_bytes().to_vec()
}

#[test]
fn a_map_that_contradicts_itself_is_damage_at_its_entry() {
    let rest = image(b"x").to_bytes();
    let rows: [(&[(u64, u64)], &str); 4] = [
        (&[(0, 512), (1, 512)], "out of order"),
        (&[(0, 512), (4096, 512)], "beyond its end"),
        (&[(0, 512)], "does not fit"),
        (&[(u64::MAX >> 1, u64::MAX >> 1)], "beyond its end"),
    ];
    for (map, expected) in rows {
        let start = [header("odd", 1024, 2048, map, false), vec![b'x'; 1024]].concat();
        match open(&[start, rest.clone()].concat()).map_err(|error| error.fault) {
            Err(Fault::Damaged { entry, reason, .. }) => {
                assert_eq!(entry.as_deref(), Some("odd"));
                assert!(reason.contains(expected), "{reason}");
            }
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[test]
fn holes_beyond_measure_are_refused_before_anybody_fills_them() {
    let rest = image(b"x").to_bytes();
    let bomb = |size| [header("blobs/sha256/bomb", 0, size, &[], false), rest.clone()].concat();
    assert!(open(&bomb(60 << 20)).is_ok());
    for size in [1 << 40, i64::MAX.cast_unsigned()] {
        match open(&bomb(size)).map_err(|error| error.fault) {
            Err(Fault::Limit { what, .. }) => {
                assert!(what.contains("holes of entry blobs/sha256/bomb"), "{what}");
            }
            other => panic!("{other:?}"),
        }
    }
    // Many small ones come to the same.
    let twice = [header("a", 0, 40 << 20, &[], false), bomb(40 << 20)].concat();
    assert!(matches!(
        open(&twice).map_err(|error| error.fault),
        Err(Fault::Limit { .. })
    ));
}

#[test]
fn a_map_without_end_is_refused() {
    let mut bytes = header("odd", 0, 1 << 20, &[], true);
    let mut block = [0; 512];
    block[504] = 1;
    for _ in 0..5000 {
        bytes.extend_from_slice(&block);
    }
    let limits = Limits {
        entries: 4000,
        ..Limits::default()
    };
    let fault = open_within(&bytes, &limits).unwrap_err().fault;
    assert!(
        matches!(&fault, Fault::Limit { what, .. } if what == "entries"),
        "{fault}"
    );
    // Cut inside the map, it is an upload in progress.
    assert!(open(&bytes).unwrap_err().looks_unfinished());
}

#[test]
fn more_parts_than_anybody_needs_are_refused() {
    let blocks = (1 << 16) / 21 + 1;
    let parts = 4 + 21 * blocks;
    let mut offsets = (0..parts).map(|n| 2 * n);
    let first: Vec<_> = offsets.by_ref().take(4).map(|offset| (offset, 1)).collect();
    let mut bytes = header("odd", parts, 1 << 24, &first, true);
    for n in 1..=blocks {
        let fields = offsets
            .by_ref()
            .take(21)
            .map(|offset| format!("{offset:011o}\0{:011o}\0", 1));
        let mut block = fields.collect::<String>().into_bytes();
        block.resize(512, 0);
        block[504] = u8::from(n < blocks);
        bytes.extend_from_slice(&block);
    }
    let fault = open(&bytes).unwrap_err().fault;
    assert!(
        matches!(&fault, Fault::Limit { what, .. } if what == "parts in sparse files"),
        "{fault}"
    );
}

#[test]
fn a_sparse_file_that_is_cut_is_told_so() {
    let archive = image(&islands(3));
    let (digest, _) = layer_of(&archive);
    let packed = packed_by_tar(&archive, &["--format=gnu"]);
    let name = format!("./{}", archive.name_of(&digest));
    let at = packed
        .windows(name.len())
        .position(|window| window == name.as_bytes())
        .unwrap();
    let mut rest = archive.clone();
    let documents = rest.remove_blob(&digest).without_end_marker().to_bytes();
    let bundle = open(&[&documents, &packed[at..at + 512 + 4096]].concat()).unwrap();
    let state = format!("{:?}", manifest(&only_image(&bundle).root).layers[0].state);
    assert!(state.contains("is cut off:"), "{state}");
}
