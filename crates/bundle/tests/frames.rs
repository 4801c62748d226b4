//! zstd bundles with a seek table, which is used if it is right and saves work.

use std::io::Read;

use crate::common::*;
use crate::written::{draft, images, source, written};
use airgapd_bundle::Compression;
use airgapd_bundle::fixtures::{Image, Layer, Layout as Fixture, digest_of};
use airgapd_bundle::write::Layout;

#[test]
fn a_zstd_bundle_can_be_gone_into() {
    let source = source();
    let bytes = written(&draft(&source), &source, Compression::Zstd);
    let plain = zstd::decode_all(bytes.as_slice()).unwrap();
    assert_eq!(plain, written(&draft(&source), &source, Compression::None));
    let bundle = open(&bytes).unwrap();
    assert!(!bundle.is_sequential());
    for blob in Layout::of(&draft(&source)).unwrap().blobs() {
        let blob = bundle.blob(&blob.digest).unwrap();
        let mut whole = Vec::new();
        blob.open(0).unwrap().read_to_end(&mut whole).unwrap();
        for offset in [1, blob.size() / 2, blob.size()] {
            let mut rest = Vec::new();
            blob.open(offset).unwrap().read_to_end(&mut rest).unwrap();
            assert_eq!(rest, whole[usize::try_from(offset).unwrap()..]);
        }
    }
}

#[test]
fn a_blob_of_several_frames_is_one_blob() {
    // Two frames, of 32 and 8 MiB. Their zeros compress quickly.
    let image = Image::new("docker.io/library/a:1").platform("linux/amd64");
    let source = good(
        &Fixture::new()
            .image(image.with_layer(Layer::zeros(40 << 20)))
            .build(),
    );
    let bytes = written(&draft(&source), &source, Compression::Zstd);
    let bundle = open(&bytes).unwrap();
    assert!(!bundle.is_sequential());
    let image = only_image(&bundle);
    assert_blobs_are_right(&bundle, &image.root);
    let layer = &manifest(&image.root).layers[0].descriptor;
    let mut end = Vec::new();
    let blob = bundle.blob(layer.digest()).unwrap();
    blob.open(blob.size() - 5).unwrap().read_to_end(&mut end).unwrap();
    assert_eq!(end, [0; 5]);
}

#[test]
fn what_compresses_beyond_belief_is_no_bomb_when_it_is_ours() {
    // More bytes than the limit for small files allows.
    let image = Image::new("docker.io/library/a:1").platform("linux/amd64");
    let source = good(
        &Fixture::new()
            .image(image.with_layer(Layer::zeros(80 << 20)))
            .build(),
    );
    for compression in [Compression::Gzip, Compression::Zstd] {
        let bytes = written(&draft(&source), &source, compression);
        assert!(bytes.len() < 100_000, "{compression}: {}", bytes.len());
        let bundle = open(&bytes).unwrap();
        assert_eq!(
            bundle.is_sequential(),
            compression == Compression::Gzip,
            "{compression}"
        );
        let image = only_image(&bundle);
        assert_blobs_are_right(&bundle, &image.root);
        // A reader that ignores the table accepts the bundle too.
        let mut unsought = bytes.clone();
        let last = unsought.len() - 1;
        unsought[last] ^= u8::from(compression == Compression::Zstd);
        assert!(open(&unsought).unwrap().is_sequential(), "{compression}");
    }
}

#[test]
fn a_table_that_lies_is_not_believed() {
    let source = source();
    let bytes = written(&draft(&source), &source, Compression::Zstd);
    let expected = images(open(&bytes).unwrap().catalog());
    let length = bytes.len();
    let count = u32::from_le_bytes(bytes[length - 9..length - 5].try_into().unwrap());
    let table = 9 + 8 + 8 * usize::try_from(count).unwrap();
    let mut believed = 0;
    for at in length - table..length {
        for flip in [0x01, 0x80] {
            let mut lying = bytes.clone();
            lying[at] ^= flip;
            // Every reader checks the magic number and length of the skippable frame.
            let Ok(bundle) = open(&lying) else {
                assert!(at < length - table + 8, "byte {at} of {length}");
                continue;
            };
            believed += u32::from(!bundle.is_sequential());
            assert_eq!(images(bundle.catalog()), expected, "byte {at} of {length}");
        }
    }
    assert_eq!(believed, 0);
}

/// Frames with `contained` bytes in all, and a table that describes them as one frame.
fn with_one_row(mut frames: Vec<u8>, contained: usize) -> Vec<u8> {
    let row = [frames.len(), contained].map(|n| u32::try_from(n).unwrap().to_le_bytes());
    frames.extend(0x184D_2A5E_u32.to_le_bytes());
    frames.extend(17_u32.to_le_bytes());
    frames.extend(row.concat());
    frames.extend(1_u32.to_le_bytes());
    frames.push(0);
    frames.extend(0x8F92_EAB1_u32.to_le_bytes());
    frames
}

/// Each document or layer costs the bytes before it in its frame. So a table is used while that
/// costs about as much as a few passes over the bundle. Otherwise the bundle is read in order.
#[test]
fn a_frame_is_gone_into_while_that_costs_less_than_reading_it_in_order() {
    let image = |name: usize, layers: usize| {
        let image = Image::new(&format!("r.test/a:{name}")).platform("linux/amd64");
        (0..layers).fold(image, |image, layer| {
            image.layer(format!("{name} {layer}").as_bytes())
        })
    };
    for (count, layers, is_sequential) in [(2, 1, false), (20, 1, true), (1, 30, true)] {
        let fixture = (0..count).fold(Fixture::new(), |fixture, name| fixture.image(image(name, layers)));
        let mut archive = fixture.build();
        archive.add("filler", vec![0; 8 << 20]).move_first("filler");
        let plain = archive.to_bytes();
        let bytes = with_one_row(zstd::bulk::compress(&plain, 1).unwrap(), plain.len());
        let bundle = open(&bytes).unwrap();
        assert_eq!(bundle.is_sequential(), is_sequential, "{count} of {layers}");
        assert_eq!(images(bundle.catalog()), images(open(&plain).unwrap().catalog()));
    }
}

#[test]
fn a_table_of_frames_that_hide_others_is_not_believed() {
    // Two frames in one row. A reader of all bytes sees the frame that the table hides.
    let source = source();
    let plain = written(&draft(&source), &source, Compression::None);
    let frame = |bytes: &[u8]| zstd::bulk::compress(bytes, 1).unwrap();
    let (first, hidden) = (frame(&plain), frame(b"hidden"));
    let bytes = with_one_row([first.as_slice(), &hidden].concat(), plain.len());
    let bundle = open(&bytes).unwrap();
    let image = &bundle.catalog().images[1];
    let layer = manifest(&image.root)
        .layers
        .last()
        .unwrap()
        .descriptor
        .digest()
        .clone();
    let mut read = Vec::new();
    let blob = bundle.blob(&layer).unwrap();
    // Either the table is not used, or the end of the frame shows the hidden frame.
    match blob.open(0).and_then(|mut reader| reader.read_to_end(&mut read)) {
        Ok(_) => assert_eq!(digest_of(&read), layer),
        Err(error) => assert!(error.to_string().contains("larger than the table"), "{error}"),
    }
}
