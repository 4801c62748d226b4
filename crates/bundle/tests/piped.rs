//! Bundles from a pipe: the same catalog and the same blobs as from a file. A stream that fails or
//! is cut off is an error.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read};
use std::path::Path;

use crate::common::*;
use airgapd_bundle::fixtures::{Archive, EntryKind, Image, Layer, Layout, digest_of};
use airgapd_bundle::{Bundle, Catalog, Compression, Ending, Error, Fault, Limits, PartState, Pipe};
use oci_spec::image::Digest;

const CODECS: [Compression; 6] = [
    Compression::None,
    Compression::Gzip,
    Compression::Zstd,
    Compression::Xz,
    Compression::Lz4,
    Compression::Bzip2,
];

/// A stream that gives few bytes at a time, of odd numbers.
struct Trickle(io::Cursor<Vec<u8>>, usize);

impl Read for Trickle {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 = (self.1 * 7 + 3) % 4099 + 1;
        let n = buffer.len().min(self.1);
        self.0.read(&mut buffer[..n])
    }
}

fn pipe(bytes: Vec<u8>) -> Result<Pipe, Error> {
    let trickle = Trickle(io::Cursor::new(bytes), 1);
    Pipe::open(trickle, Path::new("test.tar"), &Limits::default())
}

fn packed(archive: &Archive, codec: Compression) -> Vec<u8> {
    match codec {
        Compression::None => archive.to_bytes(),
        codec => archive.to_compressed(codec),
    }
}

fn images() -> [Image; 2] {
    let shared = Layer::new(noise(100_000));
    let two = Image::new("docker.io/library/a:1")
        .platform("linux/amd64")
        .with_layer(shared.clone())
        .layer(b"\x01 no document")
        .platform("linux/arm64/v8")
        .with_layer(shared)
        .layer(b"{\"json\": true}");
    let one = Image::new("r.test/b:2")
        .platform("linux/amd64")
        .layer(b"\x02 other");
    [two, one]
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// A layout as the program writes it: lists, documents, layers.
fn documents_first(mut archive: Archive) -> Archive {
    let is_document = |kind: &EntryKind| match kind {
        EntryKind::File(data) => data.to_bytes().first() == Some(&b'{') || data.size() == 0,
        _ => true,
    };
    let (mut first, last): (Vec<_>, Vec<_>) = archive
        .entries
        .drain(..)
        .partition(|entry| is_document(&entry.kind) || entry.name == "manifest.json");
    first.extend(last);
    archive.entries = first;
    archive
}

/// A layout whose list comes first, and whose layers lie between the documents of the images.
fn list_first(mut archive: Archive) -> Archive {
    archive
        .entries
        .sort_by_key(|entry| entry.name.starts_with("blobs/"));
    archive
}

fn layout() -> Archive {
    images().into_iter().fold(Layout::new(), Layout::image).build()
}

fn forms() -> Vec<(&'static str, Archive)> {
    let of = |layout: Layout| images().into_iter().fold(layout, Layout::image).build();
    vec![
        ("documents first", documents_first(layout())),
        ("hybrid, documents first", documents_first(of(Layout::hybrid()))),
        ("blobs first", layout()),
        ("list first", list_first(layout())),
        ("docker", of(Layout::docker())),
        ("hybrid", of(Layout::hybrid())),
    ]
}

/// Reads a stream as far as its form allows, as an import does. Returns the catalog and all blobs.
fn through(bytes: Vec<u8>) -> Result<(Catalog, BTreeMap<String, Vec<u8>>), Error> {
    let mut pipe = pipe(bytes)?;
    let mut blobs = BTreeMap::new();
    if pipe.catalog().is_none() && pipe.has_named_blobs() {
        while let Some(mut blob) = pipe.next_blob()? {
            let mut bytes = Vec::new();
            // The next call reports a cut.
            if blob.read_to_end(&mut bytes).is_ok() {
                assert_eq!(bytes.len() as u64, blob.size());
                blobs.insert(blob.digest().to_string(), bytes);
            }
        }
    } else if pipe.catalog().is_none() {
        let mut bytes = Vec::new();
        pipe.into_stream()?.read_to_end(&mut bytes).unwrap();
        let bundle = open(&bytes)?;
        if let Ending::Truncated(truncation) = &bundle.catalog().ending {
            let fault = Fault::Truncated(truncation.clone());
            return Err(Error {
                path: "test.tar".into(),
                fault,
            });
        }
        let wanted = present(bundle.catalog());
        blobs.extend(
            wanted
                .iter()
                .map(|digest| (digest.to_string(), blob(&bundle, digest))),
        );
        return Ok((bundle.catalog().clone(), blobs));
    }
    let bundle = pipe.into_bundle()?;
    assert!(bundle.is_piped() && bundle.is_sequential() && bundle.is_unchanged().unwrap());
    let mut stream = bundle.stream(&present(bundle.catalog()))?;
    while let Some(mut blob) = stream.next_blob()? {
        let mut bytes = Vec::new();
        if blob.read_to_end(&mut bytes).is_ok() {
            blobs.insert(blob.digest().to_string(), bytes);
        }
    }
    assert!(matches!(
        bundle.stream(&HashSet::new()).map(drop),
        Err(Error {
            fault: Fault::Piped(_),
            ..
        })
    ));
    Ok((bundle.catalog().clone(), blobs))
}

/// Every blob that a catalog calls present.
fn present(catalog: &Catalog) -> HashSet<Digest> {
    fn add(node: &airgapd_bundle::Node, found: &mut HashSet<Digest>) {
        found.insert(node.descriptor.digest().clone());
        match &node.content {
            airgapd_bundle::Content::Index(children) => children.iter().for_each(|child| add(child, found)),
            airgapd_bundle::Content::Manifest(manifest) => {
                let parts = manifest.parts().filter(|part| part.state == PartState::Present);
                found.extend(parts.map(|part| part.descriptor.digest().clone()));
            }
            _ => {}
        }
    }
    let mut found = HashSet::new();
    catalog
        .images
        .iter()
        .for_each(|image| add(&image.root, &mut found));
    found
}

#[test]
fn a_pipe_gives_the_catalog_and_the_blobs_of_the_file() {
    for (form, archive) in forms() {
        for codec in CODECS {
            let bytes = packed(&archive, codec);
            let file = open(&bytes).unwrap();
            let (catalog, blobs) = through(bytes).unwrap_or_else(|error| panic!("{form}, {codec}: {error}"));
            assert_eq!(&catalog, file.catalog(), "{form}, {codec}");
            for digest in present(&catalog) {
                let bytes = blobs
                    .get(digest.as_ref())
                    .unwrap_or_else(|| panic!("{form}, {codec}: {digest}"));
                assert_eq!(digest_of(bytes), digest);
            }
        }
    }
}

#[test]
fn the_documents_at_the_beginning_make_the_catalog_before_the_first_layer_is_read() {
    let archive = documents_first(layout());
    let bytes = archive.to_bytes();
    let is_layer =
        |kind: &EntryKind| matches!(kind, EntryKind::File(data) if data.to_bytes().first() != Some(&b'{'));
    let is_first_layer = |name: &str, kind| name.starts_with("blobs/") && is_layer(kind);
    let first_layer = archive
        .entries
        .iter()
        .position(|entry| is_first_layer(&entry.name, &entry.kind))
        .unwrap();
    let header = usize::try_from(archive.boundaries()[first_layer]).unwrap();
    // The header of the first layer, and one byte of it.
    let first = pipe(bytes[..=header + 512].to_vec()).unwrap();
    let digest = open(&bytes).unwrap().catalog().digest.clone();
    assert_eq!(
        first.catalog().map(|catalog| catalog.digest.clone()),
        Some(digest)
    );
    assert!(pipe(layout().to_bytes()).unwrap().catalog().is_none());
}

#[test]
fn a_stream_that_is_cut_anywhere_is_an_error_and_never_a_smaller_bundle() {
    for (form, archive) in forms() {
        for codec in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let whole = packed(&archive, codec);
            let (catalog, _) = through(whole.clone()).unwrap();
            let boundaries = archive.boundaries();
            let cuts: Vec<usize> = match codec {
                Compression::None => boundaries
                    .iter()
                    .map(|at| usize::try_from(*at).unwrap())
                    .collect(),
                _ => (0..whole.len()).step_by(whole.len() / 40).collect(),
            };
            let odd = (0..whole.len()).step_by(whole.len() / 61).map(|at| at + 1);
            for cut in cuts.into_iter().chain(odd).filter(|cut| *cut < whole.len()) {
                match through(whole[..cut].to_vec()) {
                    Err(_) => {}
                    // Only the mark at the end is missing, or a last entry that nothing needs.
                    Ok((cut_catalog, blobs)) => {
                        assert_eq!(
                            cut_catalog.images, catalog.images,
                            "{form}, {codec}, cut at {cut}"
                        );
                        assert!(
                            present(&catalog)
                                .iter()
                                .all(|digest| blobs.contains_key(digest.as_ref()))
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_damaged_layer_is_broken_in_the_catalog_or_has_the_wrong_bytes() {
    for (form, mut archive) in forms().into_iter().filter(|(form, _)| *form != "docker") {
        let layer = archive.images[1].manifests[0].layers[0].clone();
        archive.corrupt(&layer);
        let (catalog, blobs) = through(archive.to_bytes()).unwrap();
        let is_right = blobs
            .get(layer.as_ref())
            .is_some_and(|bytes| digest_of(bytes) == layer);
        assert!(!is_right, "{form}");
        let broken = !present(&catalog).contains(&layer);
        let is_read_first = ["blobs first", "list first", "hybrid"].contains(&form);
        assert_eq!(broken, is_read_first, "{form}");
    }
}

#[test]
fn a_manifest_that_is_left_out_does_no_harm_unless_it_comes_after_the_layers() {
    let mut archive = documents_first(layout());
    let manifest = archive.images[0].manifests[1].digest.clone();
    let name = archive.name_of(&manifest);
    let bytes = archive.bytes_of(&name);
    archive.remove(&name);
    let (catalog, _) = through(archive.to_bytes()).unwrap();
    assert_eq!(&catalog, open(&archive.to_bytes()).unwrap().catalog());
    archive.add(&name, bytes);
    let error = through(archive.to_bytes()).unwrap_err().to_string();
    assert!(
        error.contains("comes after the first layer") && error.contains("Copy the file"),
        "{error}"
    );
    archive.remove(&name);
    archive.add("index.json", "{}".to_owned());
    assert!(
        through(archive.to_bytes()).is_err(),
        "another list of images after the layers"
    );
}

#[test]
fn a_root_that_comes_after_the_layers_is_awaited() {
    let mut archive = documents_first(layout());
    let root = archive.images[1].root.clone();
    let name = archive.name_of(&root);
    let bytes = archive.bytes_of(&name);
    archive.remove(&name);
    archive.add(&name, bytes);
    assert!(pipe(archive.to_bytes()).unwrap().catalog().is_none());
    let (catalog, _) = through(archive.to_bytes()).unwrap();
    assert_eq!(&catalog, open(&archive.to_bytes()).unwrap().catalog());
}

#[test]
fn a_missing_layer_is_no_cut_if_the_archive_has_its_mark() {
    let mut archive = documents_first(layout());
    let layer = archive.images[1].manifests[0].layers[0].clone();
    archive.remove_blob(&layer);
    let (_, blobs) = through(archive.to_bytes()).unwrap();
    assert!(!blobs.contains_key(layer.as_ref()));
    archive.without_end_marker();
    assert!(matches!(
        through(archive.to_bytes()),
        Err(Error {
            fault: Fault::Truncated(_),
            ..
        })
    ));
}

#[test]
fn a_blob_that_went_by_cannot_be_opened_and_says_why() {
    let bundle: Bundle = pipe(documents_first(layout()).to_bytes())
        .unwrap()
        .into_bundle()
        .unwrap();
    let layer = layout().images[0].manifests[0].layers[0].clone();
    let error = bundle.blob(&layer).unwrap().open(0).err().unwrap();
    assert!(error.to_string().contains("pipe"), "{error}");
    let root = layout().images[0].root.clone();
    assert_eq!(digest_of(&blob(&bundle, &root)), root);
}

#[test]
fn a_blob_that_never_came_is_told_from_a_blob_that_went_by() {
    let mut archive = documents_first(layout());
    let layers = archive.images[0].manifests[0].layers.clone();
    archive.remove_blob(&layers[1]);
    let bundle = pipe(archive.to_bytes()).unwrap().into_bundle().unwrap();
    let mut stream = bundle.stream(&layers.iter().cloned().collect()).unwrap();
    while stream.next_blob().unwrap().is_some() {}
    let [went_by, absent] = [0, 1].map(|n| bundle.blob(&layers[n]).unwrap().open(0).err().unwrap());
    assert_eq!(absent.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(absent.to_string(), "the pipe did not bring it");
    assert_eq!(went_by.kind(), io::ErrorKind::NotSeekable);
    assert!(went_by.to_string().contains("import the file"), "{went_by}");
}

#[test]
fn documents_alone_can_be_wound_back_to_their_first_byte() {
    let mut archive = documents_first(layout());
    let is_document = |bytes: &[u8]| bytes.is_empty() || matches!(bytes[0], b'{' | b'[');
    archive.entries.retain(|entry| match &entry.kind {
        EntryKind::File(data) => is_document(&data.to_bytes()),
        _ => true,
    });
    for codec in CODECS {
        let bytes = packed(&archive, codec);
        let mut again = Vec::new();
        let stream = pipe(bytes.clone()).unwrap().into_stream();
        stream.unwrap().read_to_end(&mut again).unwrap();
        assert!(again == bytes, "{codec}");
    }
}

#[test]
fn a_pipe_hands_over_no_more_blobs_than_a_bundle_can_name() {
    const MOST: usize = 3;
    let limits = Limits {
        descriptors: MOST,
        ..Limits::default()
    };
    let mut archive = layout();
    archive.entries.clear();
    for n in 0..=u8::try_from(MOST).unwrap() {
        let bytes = vec![n; 1024];
        let name = format!("blobs/sha256/{}", digest_of(&bytes).digest());
        archive.add(&name, bytes);
    }
    let source = io::Cursor::new(archive.to_bytes());
    let mut pipe = Pipe::open(source, Path::new("test.tar"), &limits).unwrap();
    for _ in 0..MOST {
        assert!(pipe.next_blob().unwrap().is_some());
    }
    let error = pipe.next_blob().err().unwrap();
    assert!(matches!(error.fault, Fault::Limit { limit: 3, .. }), "{error}");
    assert!(error.to_string().contains("descriptors"), "{error}");
}

#[test]
fn other_streams_are_named_as_other_files_are() {
    for bytes in [
        Vec::new(),
        b"hello\n".repeat(200),
        vec![0; 4096],
        b"PK\x03\x04 and so on".repeat(99),
        layout().to_bytes()[..300].to_vec(),
    ] {
        let of_file = open(&bytes).unwrap_err().to_string();
        assert_eq!(pipe(bytes).unwrap_err().to_string(), of_file);
    }
    let mut bytes = Vec::new();
    let inner = layout().to_compressed(Compression::Gzip);
    airgapd_bundle::fixtures::compress(Compression::Zstd, &mut bytes, |target| target.write_all(&inner))
        .unwrap();
    assert_eq!(
        pipe(bytes.clone()).unwrap_err().to_string(),
        open(&bytes).unwrap_err().to_string()
    );
}

/// The length of a file bounds its content. A stream is refused at its end at the latest.
#[test]
fn a_stream_that_decompresses_to_too_much_is_refused_like_the_file() {
    let zeros = Image::new("r.test/zeros:1")
        .platform("linux/amd64")
        .with_layer(Layer::zeros(200 << 20));
    for make in [documents_first, |archive| archive] {
        let archive = make(Layout::new().image(zeros.clone()).build());
        let bytes = archive.to_compressed(Compression::Zstd);
        let of_file = open(&bytes).unwrap_err().to_string();
        assert!(of_file.contains("decompression bomb"), "{of_file}");
        assert_eq!(through(bytes).unwrap_err().to_string(), of_file);
    }
}
