//! Compressed bundles: the same catalog as the plain bundles, in constant memory, and errors that
//! name the codec.

use std::collections::HashSet;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use crate::common::*;
use airgapd_bundle::fixtures::{Archive, EntryKind, Image, Layer, Layout, Manifest, digest_of};
use airgapd_bundle::{Bundle, Catalog, Compression, Content, Fault, Limits, PartState, Warning};
use oci_spec::image::Digest;
use serde_json::json;

const CODECS: [Compression; 5] = [
    Compression::Gzip,
    Compression::Zstd,
    Compression::Xz,
    Compression::Lz4,
    Compression::Bzip2,
];

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    airgapd_bundle::fixtures::compress(Compression::Gzip, &mut packed, |target| target.write_all(bytes))
        .unwrap();
    packed
}

/// Two platforms with three layers: shared, compressed, and of JSON.
fn image() -> Image {
    let shared = Layer::new(vec![b's'; 100_000]);
    let plain = Layer::new(b"packed".to_vec());
    let tar = gzip(b"not looked into");
    Image::new("docker.io/library/a:1")
        .platform("linux/amd64")
        .with_layer(shared.clone())
        .with_layer(Layer::compressed(
            &plain,
            tar,
            "application/vnd.oci.image.layer.v1.tar+gzip",
        ))
        .platform("linux/arm64/v8")
        .with_layer(shared)
        .layer(b"{\"json\": true}")
}

fn layouts() -> Vec<Archive> {
    let other = Image::new("r.test/b:2").platform("linux/amd64").layer(b"other");
    [Layout::new(), Layout::docker(), Layout::hybrid()]
        .map(|layout| layout.image(image()).image(other.clone()).build())
        .to_vec()
}

/// The same tree in the order and with the names of other programs.
fn variants(archive: &Archive) -> Vec<Archive> {
    let mut prefixed = archive.clone();
    prefixed.prefix("./");
    let mut reversed = archive.clone();
    reversed.entries.reverse();
    let mut linked = archive.clone();
    let layer = linked.images[0].manifests[0].layers[0].clone();
    linked.link(&layer, "store/x", |stored| EntryKind::HardLink(stored.to_owned()));
    vec![archive.clone(), prefixed, reversed, linked]
}

fn without_compression(catalog: &Catalog) -> Catalog {
    Catalog {
        compression: Compression::None,
        ..catalog.clone()
    }
}

/// Every blob that a stream returns: its digest and its bytes.
fn streamed(bundle: &Bundle, wanted: &HashSet<Digest>) -> Vec<(Digest, Vec<u8>)> {
    let mut stream = bundle.stream(wanted).unwrap();
    let mut blobs = Vec::new();
    while let Some(mut blob) = stream.next_blob().unwrap() {
        let mut bytes = Vec::new();
        blob.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, blob.size());
        blobs.push((blob.digest().clone(), bytes));
    }
    blobs
}

fn layers(archive: &Archive) -> HashSet<Digest> {
    let manifests = archive.images.iter().flat_map(|image| &image.manifests);
    manifests.flat_map(|manifest| manifest.layers.clone()).collect()
}

#[test]
fn the_same_tree_packed_in_any_way_gives_the_same_catalog_and_blobs() {
    for archive in layouts() {
        let expected = good(&archive).catalog().clone();
        for variant in variants(&archive) {
            assert_eq!(good(&variant).catalog(), &expected);
            for codec in CODECS {
                let bundle = open(&variant.to_compressed(codec)).unwrap();
                assert_eq!(bundle.catalog().compression, codec);
                assert_eq!(without_compression(bundle.catalog()), expected, "{codec}");
                assert!(bundle.is_sequential());
                for image in &bundle.catalog().images {
                    assert_blobs_are_right(&bundle, &image.root);
                }
            }
        }
    }
}

#[test]
fn a_stream_hands_out_what_is_wanted_in_the_order_of_the_archive() {
    let archive = layouts().remove(0);
    let wanted = layers(&archive);
    let mut orders = Vec::new();
    for bytes in [archive.to_bytes(), archive.to_compressed(Compression::Zstd)] {
        let bundle = open(&bytes).unwrap();
        let blobs = streamed(&bundle, &wanted);
        assert!(blobs.iter().all(|(digest, bytes)| digest_of(bytes) == *digest));
        let found: HashSet<_> = blobs.iter().map(|(digest, _)| digest.clone()).collect();
        assert_eq!(found, wanted);
        orders.push(blobs);
    }
    assert_eq!(orders[0], orders[1]);
    let in_order: Vec<_> = orders[0]
        .iter()
        .map(|(digest, _)| archive.name_of(digest))
        .collect();
    assert!(in_order.is_sorted(), "{in_order:?}");
}

#[test]
fn what_is_not_read_of_a_streamed_blob_is_passed_over() {
    let archive = layouts().remove(0);
    let bundle = open(&archive.to_compressed(Compression::Gzip)).unwrap();
    let wanted = layers(&archive);
    let mut stream = bundle.stream(&wanted).unwrap();
    let mut seen = 0;
    while let Some(mut blob) = stream.next_blob().unwrap() {
        let mut start = [0; 100];
        blob.read_exact(&mut start[..(seen * 7)]).unwrap();
        seen += 1;
    }
    assert_eq!(seen, wanted.len());
    assert!(
        bundle
            .stream(&HashSet::new())
            .unwrap()
            .next_blob()
            .unwrap()
            .is_none()
    );
}

#[test]
fn bytes_with_two_digests_are_handed_out_under_both() {
    let bytes = vec![b'x'; 5000];
    let sha512 = basics::digest::sha512(&bytes);
    let layer = Layer::plain(bytes.clone().into());
    let sha256 = layer.digest().clone();
    let second = json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar",
        "digest": sha512.to_string(),
        "size": bytes.len(),
    });
    let first = json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar",
        "digest": sha256.to_string(),
        "size": bytes.len(),
    });
    let manifest = Manifest::new("linux/amd64").with_layer(layer);
    let manifest = manifest.member("layers", json!([first, second]));
    let mut archive = Layout::new().image(Image::new("a:1").manifest(manifest)).build();
    let stored = archive.name_of(&sha256);
    archive.push(
        &format!("blobs/sha512/{}", sha512.digest()),
        EntryKind::HardLink(stored),
    );
    let bundle = open(&archive.to_compressed(Compression::Gzip)).unwrap();
    let wanted = [sha256, sha512].into();
    let blobs = streamed(&bundle, &wanted);
    assert_eq!(blobs.len(), 2);
    assert!(blobs.iter().all(|(_, found)| *found == bytes));
}

#[test]
fn several_members_and_frames_are_one_archive() {
    let archive = layouts().remove(0);
    let bytes = archive.to_bytes();
    let expected = good(&archive).catalog().clone();
    for codec in CODECS {
        let mut packed = Vec::new();
        if codec == Compression::Zstd {
            packed.extend_from_slice(b"\x50\x2a\x4d\x18\x03\0\0\0abc");
        }
        for part in bytes.chunks(bytes.len() / 3 + 1) {
            airgapd_bundle::fixtures::compress(codec, &mut packed, |target| target.write_all(part)).unwrap();
        }
        let bundle = open(&packed).unwrap();
        assert_eq!(without_compression(bundle.catalog()), expected, "{codec}");
    }
}

#[test]
fn documents_for_which_there_was_no_room_are_fetched() {
    let nested = airgapd_bundle::fixtures::Node::Index(vec![airgapd_bundle::fixtures::Node::Index(vec![
        Manifest::new("linux/amd64").layer(b"x".to_vec()).into(),
    ])]);
    let image = Image::new("a:1").root(nested);
    let mut archive = Layout::new().image(image).image(self::image()).build();
    let expected = good(&archive).catalog().clone();
    // Five entries of eight MiB that look like documents precede the real documents.
    for i in 0..5 {
        let mut decoy = vec![b' '; 8 << 20];
        decoy[0] = b'{';
        archive.add(&format!("decoy-{i}"), decoy);
        let name = archive.entries.last().unwrap().name.clone();
        archive.move_first(&name);
    }
    let bundle = open(&archive.to_compressed(Compression::Lz4)).unwrap();
    assert_eq!(without_compression(bundle.catalog()), expected);
    for image in &bundle.catalog().images {
        assert_blobs_are_right(&bundle, &image.root);
    }
}

#[test]
fn a_damaged_layer_is_found_at_open_and_breaks_its_image_only() {
    for archive in layouts() {
        let mut archive = archive;
        let damaged = archive.images[0].manifests[0].layers[0].clone();
        archive.corrupt(&damaged);
        let bundle = open(&archive.to_compressed(Compression::Zstd)).unwrap();
        let [broken, whole] = bundle.catalog().images.as_slice() else {
            panic!("two images")
        };
        let manifest = match &broken.root.content {
            Content::Index(children) => manifest(&children[0]),
            _ => manifest(&broken.root),
        };
        let PartState::Broken(reason) = &manifest.layers[0].state else {
            panic!("{:?}", manifest.layers[0])
        };
        assert!(reason.contains(damaged.as_ref()), "{reason}");
        assert!(is_whole(&whole.root));
    }
}

#[test]
fn bytes_after_the_compressed_data_are_ignored_with_a_warning() {
    let archive = layouts().remove(0);
    for codec in CODECS {
        let mut bytes = archive.to_compressed(codec);
        let offset = bytes.len() as u64;
        bytes.extend_from_slice(&[0; 512]);
        assert_eq!(open(&bytes).unwrap().catalog().warnings, [], "{codec}");
        bytes.extend_from_slice(b"signature");
        let bundle = open(&bytes).unwrap();
        let expected = Warning::TrailingGarbage {
            codec,
            offset,
            bytes: 521,
        };
        assert_eq!(bundle.catalog().warnings, [expected]);
    }
}

#[test]
fn a_window_beyond_the_limit_is_refused_with_the_way_out() {
    let archive = layouts().remove(0);
    let bytes = archive.to_bytes();
    let limits = Limits {
        zstd_window_log: 20,
        ..Limits::default()
    };
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(21).unwrap();
    encoder.write_all(&bytes).unwrap();
    let zstd = encoder.finish().unwrap();
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 6);
    encoder.write_all(&bytes).unwrap();
    let xz = encoder.finish().unwrap();
    for packed in [zstd, xz] {
        assert!(open(&packed).is_ok());
        let error = open_within(&packed, &limits).unwrap_err();
        assert!(
            matches!(error.fault, Fault::Limit { limit: 1_048_576, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("decompress it first"), "{error}");
        assert!(
            error.to_string().ends_with("(`limits.zstdWindow` is 1MiB)"),
            "{error}"
        );
    }
}

#[test]
fn a_decompression_bomb_is_refused_before_it_goes_off() {
    let image = Image::new("a:1")
        .platform("linux/amd64")
        .with_layer(Layer::zeros(300 << 20));
    let archive = Layout::new().image(image).build();
    let bytes = archive.to_compressed(Compression::Zstd);
    assert!(bytes.len() < 64 << 10);
    let fault = open(&bytes).unwrap_err().fault;
    assert!(matches!(fault, Fault::Limit { limit: 1_100, .. }), "{fault}");
    assert!(
        fault.to_string().ends_with("(`limits.expansion` is 1100)"),
        "{fault}"
    );
    let limits = Limits {
        expansion: 100_000,
        ..Limits::default()
    };
    assert!(open_within(&bytes, &limits).is_ok());
}

#[test]
fn frames_of_nothing_without_end_are_refused() {
    let archive = layouts().remove(0);
    for codec in CODECS {
        let mut bytes = archive.to_compressed(codec);
        let mut nothing = Vec::new();
        airgapd_bundle::fixtures::compress(codec, &mut nothing, |_| Ok(())).unwrap();
        bytes.extend_from_slice(&nothing.repeat(15_000));
        let fault = open(&bytes).unwrap_err().fault;
        assert!(matches!(fault, Fault::Limit { .. }), "{codec}: {fault}");
    }
}

#[test]
fn what_is_compressed_and_no_tar_is_named() {
    let tar = layouts().remove(0).to_bytes();
    let rows = [
        (gzip(b"just text"), "not a tar archive compressed with gzip"),
        (
            gzip(&gzip(&tar)),
            "compressed twice, with gzip and inside with gzip",
        ),
        (gzip(b""), "the archive is empty"),
        (gzip(&[0; 10240]), "the archive is empty"),
        (gzip(&tar[..100]), "cut off inside a header"),
    ];
    for (bytes, expected) in rows {
        let error = open(&bytes).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_tar_that_was_cut_before_it_was_compressed_is_a_cut_tar() {
    let mut archive = layouts().remove(0);
    archive.move_first("oci-layout").move_first("index.json");
    let bytes = archive.to_bytes();
    for cut in [bytes.len() - 1024, bytes.len() - 3000, bytes.len() / 2] {
        let plain = open(&bytes[..cut]).unwrap();
        let packed = open(&gzip(&bytes[..cut])).unwrap();
        assert_eq!(packed.catalog().ending, plain.catalog().ending);
        assert_eq!(without_compression(packed.catalog()), *plain.catalog());
    }
}

#[test]
fn a_file_that_changes_between_the_passes_is_noticed() {
    let archive = layouts().remove(0);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&archive.to_compressed(Compression::Gzip)).unwrap();
    let bundle = Bundle::from_file(
        file.try_clone().unwrap(),
        Path::new("test.tar"),
        &Limits::default(),
    )
    .unwrap();
    file.seek(SeekFrom::Start(5)).unwrap();
    file.write_all(b"x").unwrap();
    file.set_len(700).unwrap();
    let wanted = layers(&archive);
    let error = bundle.stream(&wanted).map(drop).unwrap_err();
    assert!(matches!(error.fault, Fault::Changed), "{error}");
    let layer = archive.images[0].manifests[0].layers[0].clone();
    let error = bundle.blob(&layer).unwrap().open(0).map(drop).unwrap_err();
    assert!(error.to_string().contains("changed"), "{error}");
    // The documents in memory are still valid, because their digests were right.
    let config = archive.images[0].manifests[0].config.clone();
    assert_eq!(digest_of(&blob(&bundle, &config)), config);
}
