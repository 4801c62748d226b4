//! Sparse entries, in every form that tar writes. They are refused by name if something needs them,
//! and skipped otherwise.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::Command;

use crate::common::*;
use airgapd_bundle::fixtures::{Archive, Image, Layout};
use airgapd_bundle::{Bundle, Compression, Fault, Limits};
use tar::{EntryType, Header};

/// The forms of a sparse entry, as options of GNU tar: the old form, and the three of PAX headers.
const FORMS: [&[&str]; 5] = [
    &["--format=oldgnu"],
    &["--format=gnu"],
    &["--format=posix", "--sparse-version=0.0"],
    &["--format=posix", "--sparse-version=0.1"],
    &["--format=posix", "--sparse-version=1.0"],
];

/// tar looks for holes in units of 512 bytes. File systems make holes of 4096 bytes, so files of
/// this size have some.
const UNIT: usize = 1 << 16;

/// Returns `count` islands of bytes with holes before, between and after them. Four islands fit
/// into an old header, 21 into each further block.
fn islands(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; UNIT];
    for n in 0..count {
        bytes.extend_from_slice(&[u8::try_from(n % 251 + 1).unwrap(); 4096]);
        bytes.resize(bytes.len() + UNIT, 0);
    }
    // The end is not at a whole block.
    bytes.resize(bytes.len() + 77, 0);
    bytes
}

fn image(name: &str, layer: &[u8]) -> Image {
    Image::new(name).platform("linux/amd64").layer(layer)
}

/// Packs an archive with tar in the order of names, its largest files with holes.
fn packed_by_tar(archive: &Archive, form: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    archive.extract_to(folder.path());
    for entry in &archive.entries {
        let bytes = archive.bytes_of(&entry.name);
        if bytes.len() >= UNIT {
            write_with_holes(&File::create(folder.path().join(&entry.name)).unwrap(), &bytes);
        }
    }
    let output = Command::new("tar")
        .args(["--create", "--sparse", "--sort=name"])
        .args(form)
        .arg("--directory")
        .arg(folder.path())
        .arg(".")
        .output()
        .expect("tar is part of every Debian");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
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

/// The same bytes, plain and compressed.
fn plain_and_compressed(bytes: &[u8]) -> [Vec<u8>; 2] {
    let mut packed = Vec::new();
    airgapd_bundle::fixtures::compress(Compression::Gzip, &mut packed, |target| target.write_all(bytes))
        .unwrap();
    [bytes.to_vec(), packed]
}

/// Returns the reason why the image with this name is not whole: the fault of its only layer, or of
/// the whole image.
fn reason(bundle: &Bundle, name: &str) -> String {
    let images = &bundle.catalog().images;
    let is_named = |image: &&airgapd_bundle::Image| image.names.iter().any(|known| known.as_str() == name);
    let root = &images.iter().find(is_named).unwrap().root;
    match &root.content {
        airgapd_bundle::Content::Manifest(manifest) => format!("{:?}", manifest.layers[0].state),
        _ => broken(root).to_owned(),
    }
}

fn assert_names_the_remedy(text: &str, entry: &str) {
    for expected in [
        entry,
        "sparse file",
        "Make the archive again without `tar --sparse`",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
}

#[test]
fn a_layer_with_holes_breaks_its_image_by_name_and_no_other() {
    for count in [1, 60] {
        let archive = Layout::new()
            .image(image("r.test/holes:1", &islands(count)))
            .image(image("r.test/whole:1", b"x"))
            .build();
        let digest = archive.images[0].manifests[0].layers[0].clone();
        for form in FORMS {
            for bytes in plain_and_compressed(&packed_by_tar(&archive, form)) {
                let bundle = open(&bytes).unwrap();
                assert_names_the_remedy(&reason(&bundle, "r.test/holes:1"), &format!("blob {digest} is"));
                assert!(
                    bundle.blob(&digest).is_none(),
                    "{form:?}: a blob that cannot be read"
                );
                let whole = &bundle.catalog().images[1].root;
                assert!(is_whole(whole), "{form:?}, {count} islands");
                assert_blobs_are_right(&bundle, whole);
            }
        }
    }
}

#[test]
fn a_layer_of_a_docker_archive_with_holes_breaks_its_image_by_name() {
    let archive = Layout::docker().image(image("r.test/a:1", &islands(3))).build();
    let layer = archive.name_of(&archive.images[0].manifests[0].layers[0]);
    for form in FORMS {
        let bundle = open(&packed_by_tar(&archive, form)).unwrap();
        assert_names_the_remedy(&reason(&bundle, "r.test/a:1"), &format!("layer {layer} is"));
    }
}

#[test]
fn a_document_with_holes_refuses_the_bundle_and_is_named_with_its_file() {
    let mut archive = Layout::new().image(image("r.test/a:1", b"x")).build();
    archive.set("index.json", islands(1));
    for form in FORMS {
        for bytes in plain_and_compressed(&packed_by_tar(&archive, form)) {
            let error = open(&bytes).unwrap_err();
            assert!(matches!(error.fault, Fault::Document { .. }), "{form:?}: {error}");
            assert_names_the_remedy(&error.to_string(), "test.tar: index.json: it is");
        }
    }
}

#[test]
fn an_entry_with_holes_on_which_nothing_relies_is_passed_over() {
    for count in [0, 1, 4, 5, 60] {
        let mut archive = Layout::new().image(image("r.test/a:1", b"x")).build();
        // The sparse entry is first, so everything else is found only if it is skipped by the right
        // size.
        archive.add("a-disk", islands(count));
        for form in FORMS {
            let packed = packed_by_tar(&archive, form);
            assert!(
                count == 0 || packed.len() < islands(count).len(),
                "tar made holes"
            );
            for bytes in plain_and_compressed(&packed) {
                let bundle = open(&bytes).unwrap();
                assert_eq!(bundle.catalog().warnings, []);
                let root = &only_image(&bundle).root;
                assert!(is_whole(root), "{form:?}, {count} islands");
                assert_blobs_are_right(&bundle, root);
            }
        }
    }
}

/// Returns the old form of a sparse file's header, with a first region. `stored` is the size
/// without holes and `size` the size with them.
fn header(name: &str, stored: u64, size: u64, has_more: bool) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_path(name).unwrap();
    header.set_size(stored);
    header.set_entry_type(EntryType::GNUSparse);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(size);
    gnu.set_is_extended(has_more);
    gnu.sparse[0].set_offset(512);
    gnu.sparse[0].set_length(stored);
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// Returns a further block of an old header.
fn further(has_more: bool) -> [u8; 512] {
    let mut block = [b'7'; 512];
    block[504] = u8::from(has_more);
    block
}

#[test]
fn links_to_an_entry_with_holes_are_refused_as_it_is() {
    let archive = Layout::docker().image(image("r.test/a:1", b"x")).build();
    let layer = archive.name_of(&archive.images[0].manifests[0].layers[0]);
    let up = "../".repeat(layer.matches('/').count());
    for (flag, target) in [(b'1', "holes".to_owned()), (b'2', format!("{up}holes"))] {
        let mut rest = archive.clone();
        rest.remove(&layer);
        let mut link = Header::new_gnu();
        link.set_path(&layer).unwrap();
        link.set_size(0);
        link.set_entry_type(EntryType::new(flag));
        link.set_link_name(&target).unwrap();
        link.set_cksum();
        let start = [header("holes", 0, 1 << 20, false).as_slice(), link.as_bytes()].concat();
        let bundle = open(&[start, rest.to_bytes()].concat()).unwrap();
        assert_names_the_remedy(&reason(&bundle, "r.test/a:1"), &format!("layer {layer} is"));
    }
}

#[test]
fn holes_of_any_size_cost_nothing() {
    let rest = Layout::new().image(image("r.test/a:1", b"x")).build().to_bytes();
    for size in [0, 1 << 40, i64::MAX.cast_unsigned()] {
        let start = [header("odd", 600, size, false), vec![b'y'; 1024]].concat();
        let bundle = open(&[start, rest.clone()].concat()).unwrap();
        assert!(is_whole(&only_image(&bundle).root), "{size}");
    }
}

#[test]
fn a_map_of_holes_without_end_is_refused() {
    let bytes = [header("odd", 0, 1 << 20, true), further(true).repeat(5000)].concat();
    let limits = Limits {
        entries: 4000,
        ..Limits::default()
    };
    let fault = open_within(&bytes, &limits).unwrap_err().fault;
    assert!(
        matches!(&fault, Fault::Limit { what, .. } if what == "entries"),
        "{fault}"
    );
    // A file that is cut inside the map may be an upload in progress.
    assert!(looks_unfinished(&open(&bytes).unwrap_err()));
}

#[test]
fn an_archive_that_ends_in_an_entry_with_holes_is_cut_off() {
    let mut archive = Layout::new().image(image("r.test/a:1", b"x")).build();
    let documents = archive.without_end_marker().to_bytes();
    let cut = [header("odd", 5000, 1 << 20, false), vec![b'y'; 1024]].concat();
    for bytes in plain_and_compressed(&[documents, cut].concat()) {
        let bundle = open(&bytes).unwrap();
        let ending = format!("{:?}", bundle.catalog().ending);
        assert!(ending.contains("Truncated") && ending.contains("odd"), "{ending}");
        assert!(is_whole(&only_image(&bundle).root));
    }
}

#[test]
fn the_type_of_a_sparse_entry_in_an_archive_that_is_not_gnus_is_followed_by_no_map() {
    let mut header = Header::new_ustar();
    // A prefix so long that it covers a certain byte. In GNU's format, that byte says that the map
    // continues.
    header
        .set_path(format!("{}/{}", "p".repeat(150), "n".repeat(50)))
        .unwrap();
    header.set_size(600);
    header.set_entry_type(EntryType::GNUSparse);
    header.set_cksum();
    assert_ne!(header.as_bytes()[482], 0);
    let rest = Layout::new().image(image("r.test/a:1", b"x")).build().to_bytes();
    let bundle = open(&[header.as_bytes().as_slice(), &[b'y'; 1024], &rest].concat()).unwrap();
    assert!(is_whole(&only_image(&bundle).root));
}
