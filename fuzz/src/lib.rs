//! The common parts of the fuzz targets: a bundle from bytes, and the properties of every bundle
//! that opens and of every error.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use basics::is_visible;
use bundle::{Bundle, Catalog, Content, Error, Limits, Node, PartState};
use import::{Naming, Policy, Verdict, select};
use platforms::Wanted;
use oci_spec::image::Digest;
use platforms::{Platform, Rules};

/// Opens bytes as a bundle, in memory.
pub fn open(bytes: &[u8]) -> Result<Bundle, Error> {
    let memory =
        rustix::fs::memfd_create("bundle", rustix::fs::MemfdFlags::CLOEXEC).expect("memory for a file");
    let mut file = File::from(memory);
    file.write_all(bytes).expect("a file in memory takes everything");
    let opened = Bundle::from_file(file, Path::new("fuzz"), &limits());
    if let Err(error) = &opened {
        assert_printable(&basics::chain(error));
    }
    opened
}

/// Checks that a text about a bundle neither controls a terminal nor forges a line.
pub fn assert_printable(text: &str) {
    assert!(text.chars().all(is_visible), "{text:?} would be printed");
}

/// Expands the abbreviations in a fuzzer's document:
///
/// * `$a` is the digest of the first document before it, and `$b` that of the second.
/// * `#a` is the length of the first document in bytes.
/// * A text between the bytes 1, n and 2 is repeated n * n times with commas between. `%` in it is
///   the number of each.
///
/// The result has a few hundred KiB at most.
pub fn expand(text: &[u8], known: &[(String, usize)]) -> Vec<u8> {
    const MOST: usize = 128 << 10;
    let mut expanded = Vec::new();
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let of_known = || known.get(usize::from(after.first()?.checked_sub(b'a')?));
        match byte {
            b'$' if let Some((digest, _)) = of_known() => expanded.extend_from_slice(digest.as_bytes()),
            b'#' if let Some((_, size)) = of_known() => {
                expanded.extend_from_slice(size.to_string().as_bytes())
            }
            1 if let Some((&times, body)) = after.split_first() => {
                let end = body.iter().position(|byte| *byte == 2).unwrap_or(body.len());
                let body_text = expand(
                    &body[..end]
                        .iter()
                        .copied()
                        .filter(|byte| *byte != 1)
                        .collect::<Vec<_>>(),
                    known,
                );
                repeat(&mut expanded, &body_text, usize::from(times).pow(2), MOST);
                rest = body.get(end + 1..).unwrap_or_default();
                continue;
            }
            byte => {
                expanded.push(byte);
                continue;
            }
        }
        rest = &after[1..];
    }
    expanded
}

fn repeat(expanded: &mut Vec<u8>, body: &[u8], times: usize, most: usize) {
    for number in 0..times {
        if expanded.len() + body.len() > most {
            return;
        }
        if number > 0 {
            expanded.push(b',');
        }
        for &byte in body {
            match byte {
                b'%' => expanded.extend_from_slice(number.to_string().as_bytes()),
                byte => expanded.push(byte),
            }
        }
    }
}

/// Limits that are small enough to read everything, and to reach the limits.
fn limits() -> Limits {
    Limits {
        entries: 10_000,
        descriptors: 1_000,
        images: 100,
        ..Limits::default()
    }
}

/// Checks that every blob that a catalog calls present can be read to its size. It is read alone
/// and in the order of the archive.
pub fn check(bundle: &Bundle) {
    check_selection(bundle.catalog());
    let digests = present(bundle.catalog());
    check_stream(bundle, digests.iter().cloned().collect());
    for digest in digests
        .into_iter()
        .take(if bundle.is_sequential() { 4 } else { usize::MAX })
    {
        let blob = bundle
            .blob(&digest)
            .expect("a blob that is present can be opened");
        let size = blob.size();
        let Ok(reader) = blob.open(0) else { continue };
        let read = std::io::copy(&mut reader.take(size + 1), &mut std::io::sink());
        assert!(
            read.is_err() || read.is_ok_and(|read| read == size),
            "{digest} is longer or shorter than it says"
        );
    }
}

/// Checks that the selected content is printable, is in the bundle, and has valid references as
/// names.
fn check_selection(catalog: &Catalog) {
    let amd64: Platform = "linux/amd64".parse().expect("a platform");
    let rules = [Rules::V0_2, Rules::Rc3];
    let all = Wanted::All {
        rules: rules.to_vec(),
    };
    for wanted in [Wanted::of(&[amd64], &rules), all] {
        let policy = Policy {
            wanted,
            naming: Naming::default(),
            most_records: import::plan::MOST_RECORDS,
        };
        for choice in select(catalog, &policy).choices {
            assert_printable(&choice.label);
            choice.notes.iter().for_each(|note| assert_printable(note));
            match choice.verdict {
                Verdict::Take(taken) => taken.records.iter().for_each(|record| {
                    assert!(
                        record.name.parse::<import::Reference>().is_ok(),
                        "{:?}",
                        record.name
                    );
                }),
                Verdict::Broken(problems) => problems
                    .iter()
                    .for_each(|problem| assert_printable(&problem.what)),
                Verdict::Forbidden(reason) => assert_printable(&reason),
                Verdict::Skip(_) => {}
            }
        }
    }
    catalog
        .warnings
        .iter()
        .for_each(|warning| assert_printable(&warning.to_string()));
}

fn check_stream(bundle: &Bundle, wanted: HashSet<Digest>) {
    let Ok(mut stream) = bundle.stream(&wanted) else {
        return;
    };
    while let Ok(Some(mut blob)) = stream.next_blob() {
        let size = blob.size();
        let read = std::io::copy(&mut blob, &mut std::io::sink());
        assert!(
            read.is_err() || read.is_ok_and(|read| read == size),
            "{} is longer or shorter",
            blob.digest()
        );
    }
}

fn present(catalog: &Catalog) -> Vec<Digest> {
    let mut digests = Vec::new();
    catalog
        .images
        .iter()
        .for_each(|image| collect(&image.root, &mut digests));
    digests
}

fn collect(node: &Node, digests: &mut Vec<Digest>) {
    match &node.content {
        Content::Absent | Content::Broken(_) => return,
        Content::Other => {}
        Content::Index(children) => children.iter().for_each(|child| collect(child, digests)),
        Content::Manifest(manifest) => {
            let parts = manifest
                .parts()
                .filter(|part| matches!(part.state, PartState::Present));
            digests.extend(parts.map(|part| part.descriptor.digest().clone()));
        }
    }
    digests.push(node.descriptor.digest().clone());
}
