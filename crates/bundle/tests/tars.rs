//! Tar archives: their ends, their headers, and their cost.

use crate::common::*;
use airgapd_bundle::fixtures::{Archive, Data, EntryKind, Image, Layout};
use airgapd_bundle::{Bundle, Ending, Fault, Limits, Warning};
use tar::{EntryType, Header};

/// Returns an archive with one image, the documents first.
pub(crate) fn documents_first() -> Archive {
    let image = Image::new("a:1").platform("linux/amd64").layer(vec![b'x'; 3000]);
    let mut archive = Layout::new().image(image).build();
    archive.move_first("oci-layout").move_first("index.json");
    archive
}

/// Returns the bytes of one entry with a custom header.
fn entry(change: impl FnOnce(&mut Header), data: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_path("odd").unwrap();
    header.set_mode(0o644);
    header.set_size(data.len() as u64);
    header.set_entry_type(EntryType::Regular);
    change(&mut header);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// A PAX header with these records.
fn pax(flag: u8, records: &[(&str, &str)]) -> Vec<u8> {
    let record = |(key, value): &(&str, &str)| {
        let rest = format!(" {key}={value}\n");
        let mut length = rest.len() + 1;
        while length != length.to_string().len() + rest.len() {
            length = length.to_string().len() + rest.len();
        }
        format!("{length}{rest}")
    };
    let payload: String = records.iter().map(record).collect();
    entry(
        |header| header.set_entry_type(EntryType::new(flag)),
        payload.as_bytes(),
    )
}

/// Returns the archive's bytes after the bytes in `start`.
fn after(start: &[u8], archive: &Archive) -> Vec<u8> {
    [start, &archive.to_bytes()].concat()
}

#[test]
fn an_archive_ends_with_its_mark_or_without() {
    let archive = documents_first();
    let whole = archive.to_bytes();
    let end = usize::try_from(*archive.boundaries().last().unwrap()).unwrap();
    let padded = [whole.as_slice(), &[0; 10240]].concat();
    let rows: [(&[u8], Ending); 4] = [
        (&whole, Ending::Marker),
        (&padded, Ending::Marker),
        (&whole[..end], Ending::NoMarker),
        (&whole[..end + 512], Ending::NoMarker),
    ];
    for (bytes, ending) in rows {
        let bundle = open(bytes).unwrap();
        assert_eq!(bundle.catalog().ending, ending);
        assert_eq!(bundle.catalog().warnings, []);
        assert!(is_whole(&only_image(&bundle).root));
    }
}

#[test]
fn padding_that_is_missing_after_the_last_byte_is_no_cut() {
    let mut archive = documents_first();
    archive.add("README", "five.".to_owned()).without_end_marker();
    let bytes = archive.to_bytes();
    let bundle = open(&bytes[..bytes.len() - 507]).unwrap();
    assert_eq!(bundle.catalog().ending, Ending::NoMarker);
}

#[test]
fn a_cut_is_found_wherever_it_is() {
    let archive = documents_first();
    let bytes = archive.to_bytes();
    let boundaries = archive.boundaries();
    let index = 512 + archive.bytes_of("index.json").len() as u64;
    // The first bytes are a name and look like any text.
    for cut in (64..*boundaries.last().unwrap()).step_by(64) {
        let at_boundary = boundaries.contains(&cut);
        let result = open(&bytes[..usize::try_from(cut).unwrap()]);
        match result {
            Ok(bundle) => {
                assert!(cut >= index, "cut at {cut}: a catalog without a list of images");
                assert!(
                    !is_whole(&only_image(&bundle).root),
                    "cut at {cut}: nothing is missed"
                );
                let truncated = matches!(bundle.catalog().ending, Ending::Truncated(_));
                let only_padding = bundle.catalog().ending == Ending::NoMarker;
                assert!(truncated || only_padding || at_boundary, "cut at {cut}");
            }
            Err(error) => {
                let in_oci_layout = cut > boundaries[1] && cut < boundaries[2];
                assert!(cut < index || in_oci_layout, "cut at {cut}: {error}");
                assert!(looks_unfinished(&error) || at_boundary, "cut at {cut}: {error}");
            }
        }
    }
}

#[test]
fn a_cut_names_its_place_and_the_blob() {
    let archive = documents_first();
    let bytes = archive.to_bytes();
    let layer = &archive.images[0].manifests[0].layers[0];
    let name = archive.name_of(layer);
    let at = archive
        .entries
        .iter()
        .position(|entry| entry.name == name)
        .unwrap();
    let header = archive.boundaries()[at];
    let cut = usize::try_from(header + 512 + 1000).unwrap();
    let bundle = open(&bytes[..cut]).unwrap();
    let Ending::Truncated(truncation) = &bundle.catalog().ending else {
        panic!("a cut archive is whole")
    };
    let expected = format!(
        "cut off inside entry {name}: 1000 of its 4608 bytes are there, from offset {}",
        header + 512
    );
    assert_eq!(truncation.to_string(), expected);
    let airgapd_bundle::PartState::Broken(reason) = &manifest(&only_image(&bundle).root).layers[0].state
    else {
        panic!("a cut layer is not broken")
    };
    assert_eq!(
        **reason,
        format!("blob {layer} is cut off: 1000 of its 4608 bytes are in the archive")
    );

    let mut documents_last = archive.clone();
    documents_last.entries.rotate_left(2);
    let error = open(&documents_last.to_bytes()[..cut]).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("test.tar: cut off inside entry blobs/sha256/"),
        "{error}"
    );
    assert!(looks_unfinished(&error));

    let error = open(&bytes[..100]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "test.tar: cut off inside a header: 100 of its 512 bytes are there, from offset 0"
    );
}

#[test]
fn a_tail_of_zeros_is_a_missing_tail() {
    let archive = documents_first();
    let mut bytes = archive.to_bytes();
    let from = usize::try_from(archive.boundaries()[3]).unwrap();
    bytes[from..].fill(0);
    let bundle = open(&bytes).unwrap();
    assert!(!is_whole(&only_image(&bundle).root));

    // Some copying tools allocate the file first. Then it ends in far more zeros than any padding.
    bytes.resize(from + (3 << 20), 0);
    let bundle = open(&bytes).unwrap();
    let expected = Warning::TrailingData {
        offset: from as u64 + 1024,
        bytes: (3 << 20) - 1024,
    };
    assert_eq!(bundle.catalog().warnings, [expected]);
}

#[test]
fn data_after_the_end_is_ignored_with_a_warning() {
    let archive = documents_first();
    let mut bytes = archive.to_bytes();
    let end = bytes.len() as u64;
    bytes.extend_from_slice(&archive.to_bytes());
    let bundle = open(&bytes).unwrap();
    assert!(is_whole(&only_image(&bundle).root));
    assert_eq!(
        bundle.catalog().warnings,
        [Warning::TrailingData {
            offset: end,
            bytes: end
        }]
    );
}

#[test]
fn long_names_are_read_in_every_encoding() {
    let archive = documents_first();
    let root = &archive.images[0].root;
    let name = archive.name_of(root);
    let document = archive.bytes_of(&name);
    let mut rest = archive.clone();
    rest.remove(&name);
    let long = format!("{}{name}", "./".repeat(100));

    let mut gnu = rest.clone();
    gnu.add(&long, document.clone());
    let ustar = entry(
        |header| {
            *header = Header::new_ustar();
            header.set_path(&name).unwrap();
            let ustar = header.as_ustar_mut().unwrap();
            ustar.name.fill(0);
            ustar.name[..64].copy_from_slice(root.digest().as_bytes());
            ustar.prefix[..12].copy_from_slice(b"blobs/sha256");
            header.set_size(document.len() as u64);
        },
        &document,
    );
    let path = [pax(b'x', &[("path", &long)]), entry(|_| {}, &document)].concat();
    let taken_back = [
        pax(b'x', &[("path", "elsewhere"), ("path", "")]),
        entry(|header| header.set_path(&name).unwrap(), &document),
    ]
    .concat();
    for bytes in [
        gnu.to_bytes(),
        after(&ustar, &rest),
        after(&path, &rest),
        after(&taken_back, &rest),
    ] {
        assert!(is_whole(&only_image(&open(&bytes).unwrap()).root));
    }
}

#[test]
fn long_link_targets_are_read_in_every_encoding() {
    let archive = documents_first();
    let name = archive.name_of(&archive.images[0].root);
    let target = format!("{}stored", "./".repeat(100));
    let document = archive.bytes_of(&name);
    let mut rest = archive.clone();
    rest.remove(&name).add("stored", document);
    let link = entry(
        |header| {
            header.set_path(&name).unwrap();
            header.set_entry_type(EntryType::Link);
        },
        b"",
    );
    let gnu = entry(
        |header| header.set_entry_type(EntryType::GNULongLink),
        format!("{target}\0").as_bytes(),
    );
    for extension in [gnu, pax(b'x', &[("linkpath", &target)])] {
        let bytes = after(&[extension, link.clone()].concat(), &rest);
        assert!(is_whole(&only_image(&open(&bytes).unwrap()).root));
    }
}

#[test]
fn sizes_are_read_in_every_encoding_and_absurd_ones_refused() {
    let field = |bytes: [u8; 12]| entry(move |header| header.as_old_mut().size = bytes, b"12345");
    let pax_size = |size: &str, ustar: u64| {
        [
            pax(b'x', &[("size", size)]),
            entry(move |header| header.set_size(ustar), b"12345"),
        ]
        .concat()
    };
    let rows: [(&str, Vec<u8>, Option<&str>); 13] = [
        ("octal", field(*b"00000000005\0"), None),
        ("octal with spaces", field(*b"     5 \0    "), None),
        ("base-256", field(*b"\x80\0\0\0\0\0\0\0\0\0\0\x05"), None),
        ("pax alone", pax_size("5", 0), None),
        ("pax that agrees", pax_size("5", 5), None),
        (
            "pax that disagrees",
            pax_size("5", 1024),
            Some("disagree about its size"),
        ),
        (
            "pax that is no number",
            pax_size("+5", 5),
            Some("not a number, or is too large"),
        ),
        (
            "pax beyond 63 bits",
            pax_size("18446744073709551615", 5),
            Some("not a number, or is too large"),
        ),
        ("negative", field([0xff; 12]), Some("negative")),
        ("2^87", field(*b"\x80\x80\0\0\0\0\0\0\0\0\0\0"), Some("too large")),
        ("2^63", field(*b"\x80\0\0\0\x80\0\0\0\0\0\0\0"), Some("too large")),
        ("text", field(*b"manybytes!!\0"), Some("not octal")),
        (
            "text after",
            field(*b"5 0 5\0\0\0\0\0\0\0"),
            Some("trailing text"),
        ),
    ];
    let archive = documents_first();
    for (case, start, expected) in rows {
        match (open(&after(&start, &archive)), expected) {
            (Ok(bundle), None) => assert!(is_whole(&only_image(&bundle).root), "{case}"),
            (Err(error), Some(expected)) => {
                assert!(matches!(error.fault, Fault::Damaged { .. }), "{case}: {error}");
                assert!(error.to_string().contains(expected), "{case}: {error}");
            }
            (result, _) => panic!("{case}: {result:?}"),
        }
    }
}

#[test]
fn an_entry_larger_than_the_file_is_a_cut() {
    let huge = entry(
        |header| header.as_old_mut().size = *b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"",
    );
    let error = open(&after(&huge, &documents_first())).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("of its 9223372036854775807 bytes are there"),
        "{error}"
    );
}

#[test]
fn entries_of_more_than_eight_gib_are_passed_over_in_no_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.tar");
    let mut archive = documents_first();
    archive.add("large", Data::zeros(9 << 30)).move_first("large");
    archive.write_to(&path);
    let bundle = Bundle::open(&path, &Limits::default()).unwrap();
    assert!(is_whole(&only_image(&bundle).root));
    assert_blobs_are_right(&bundle, &only_image(&bundle).root);
}

#[test]
fn extended_headers_must_make_sense() {
    let file = || entry(|_| {}, b"12345");
    let malformed = |payload: &[u8]| {
        let header = entry(|header| header.set_entry_type(EntryType::XHeader), payload);
        [header, file()].concat()
    };
    let archive = documents_first();
    let rows = [
        ("no length", malformed(b"path=x\n"), Some("malformed")),
        ("length too long", malformed(b"99 path=x\n"), Some("malformed")),
        ("length too short", malformed(b"3 path=x\n"), Some("malformed")),
        ("length zero", malformed(b"0 path=x\n"), Some("malformed")),
        ("no newline", malformed(b"10 path=xx"), Some("malformed")),
        ("no equals sign", malformed(b"9 pathxx\n"), Some("malformed")),
        (
            "name with a zero byte",
            malformed(b"11 path=x\0y\n"),
            Some("malformed"),
        ),
        (
            "global size",
            [pax(b'g', &[("size", "5")]), file()].concat(),
            Some("global extended header"),
        ),
        (
            "global name",
            [pax(b'g', &[("path", "x")]), file()].concat(),
            Some("global extended header"),
        ),
        ("global comment", pax(b'g', &[("comment", "4c6a7d")]), None),
        (
            "times",
            [
                pax(b'x', &[("mtime", "1.5"), ("SCHILY.xattr.user.a", "\0=\n")]),
                file(),
            ]
            .concat(),
            None,
        ),
    ];
    for (case, start, expected) in rows {
        match (open(&after(&start, &archive)), expected) {
            (Ok(bundle), None) => assert!(is_whole(&only_image(&bundle).root), "{case}"),
            (Err(error), Some(expected)) => assert!(error.to_string().contains(expected), "{case}: {error}"),
            (result, _) => panic!("{case}: {result:?}"),
        }
    }
}

#[test]
fn a_name_with_a_zero_byte_is_refused() {
    let start = [pax(b'x', &[("path", "index.json\0.txt")]), entry(|_| {}, b"{}")].concat();
    let error = open(&after(&start, &documents_first())).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("entry index.json\\0.txt: its name contains a zero byte"),
        "{error}"
    );
}

#[test]
fn an_extended_header_at_the_end_lacks_its_entry() {
    let mut archive = documents_first();
    archive.without_end_marker();
    let mut bytes = archive.to_bytes();
    bytes.extend_from_slice(&pax(b'x', &[("path", "x")]));
    assert!(matches!(
        open(&bytes).unwrap().catalog().ending,
        Ending::Truncated(_)
    ));
    bytes.extend_from_slice(&[0; 1024]);
    let error = open(&bytes).unwrap_err();
    assert!(
        error.to_string().contains("no entry follows an extended header"),
        "{error}"
    );
}

#[test]
fn damaged_headers_are_refused_with_their_place() {
    let archive = documents_first();
    let at = usize::try_from(archive.boundaries()[2]).unwrap();
    let mut flipped = archive.to_bytes();
    flipped[at + 3] ^= 1;
    let mut single_zeros = archive.to_bytes();
    single_zeros[at..at + 512].fill(0);
    let rows = [
        (flipped, "the header's checksum is wrong"),
        (single_zeros, "a single block of zeros"),
    ];
    for (bytes, expected) in rows {
        let error = open(&bytes).unwrap_err();
        let place = format!("damaged at offset {at}: {expected}");
        assert!(error.to_string().contains(&place), "{error}");
        assert!(
            error.to_string().contains("the entry before is oci-layout"),
            "{error}"
        );
    }
}

#[test]
fn checksums_of_signed_bytes_are_taken() {
    let archive = documents_first();
    let start = entry(
        |header| header.as_old_mut().name[..2].copy_from_slice(b"\xff\xfe"),
        b"",
    );
    let mut signed = start.clone();
    let sum: i64 = start
        .iter()
        .enumerate()
        .map(|(i, byte)| i64::from(if (148..156).contains(&i) { b' ' } else { *byte }.cast_signed()))
        .sum();
    signed[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_ne!(signed, start);
    assert!(is_whole(
        &only_image(&open(&after(&signed, &archive)).unwrap()).root
    ));
}

#[test]
fn entries_of_other_kinds_are_passed_over() {
    for flag in [b'3', b'4', b'5', b'6'] {
        // No data follows these entries, whatever their size says.
        let start = entry(
            |header| {
                header.set_entry_type(EntryType::new(flag));
                header.set_size(4096);
            },
            b"",
        );
        assert!(is_whole(
            &only_image(&open(&after(&start, &documents_first())).unwrap()).root
        ));
    }
    for flag in [b'V', b'D', b'Z'] {
        let start = entry(
            |header| header.set_entry_type(EntryType::new(flag)),
            b"some data of its own",
        );
        assert!(is_whole(
            &only_image(&open(&after(&start, &documents_first())).unwrap()).root
        ));
    }
    let old_folder = entry(
        |header| {
            *header = Header::new_old();
            header.as_old_mut().name[..6].copy_from_slice(b"blobs/");
            header.set_size(0);
        },
        b"",
    );
    assert!(is_whole(
        &only_image(&open(&after(&old_folder, &documents_first())).unwrap()).root
    ));
}

#[test]
fn contiguous_files_are_files() {
    let mut archive = documents_first();
    let name = archive.name_of(&archive.images[0].root);
    let data = Data::from(archive.bytes_of(&name));
    archive.replace(&name, EntryKind::Raw { flag: b'7', data });
    assert!(is_whole(&only_image(&good(&archive)).root));
}

#[test]
fn errors_never_carry_raw_control_bytes() {
    let evil = "\x1b]0;owned\x07\n\u{202e}";
    let mut link = Layout::docker().image(Image::new("a").layer(b"x")).build();
    let document = serde_json::json!([{ "Config": evil, "Layers": [], "RepoTags": [evil] }]);
    link.set("manifest.json", document.to_string());
    let bundle = good(&link);
    let image = only_image(&bundle);
    let mut texts = vec![broken(&image.root).to_owned(), image.names[0].to_string()];

    let cut = [entry(|header| header.set_path(evil).unwrap(), &[0; 2000])].concat();
    texts.push(open(&cut[..1000]).unwrap_err().to_string());
    let mut version = documents_first();
    version.set(
        "oci-layout",
        serde_json::json!({ "imageLayoutVersion": evil }).to_string(),
    );
    texts.push(refused(&version).to_string());
    let mut digest = documents_first();
    digest.set(
        "index.json",
        serde_json::json!({ "manifests": [{ "digest": evil, "mediaType": evil }] }).to_string(),
    );
    texts.push(broken(&only_image(&good(&digest)).root).to_owned());
    let mut twice = documents_first();
    twice.add(evil, "x".to_owned()).add(evil, "y".to_owned());
    texts.push(good(&twice).catalog().warnings[0].to_string());
    for text in texts {
        assert!(
            text.chars().all(|c| !c.is_control() && c != '\u{202e}'),
            "{text:?}"
        );
    }
}
