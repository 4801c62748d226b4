//! Good bundles of every format and codec, cut and changed at every place of interest. The result
//! is a complete image or an error, soon and in little memory.
//!
//! Opening a plain bundle reads no layers. So an image counts as complete only after all its blobs
//! were read and matched their digests. containerd checks the same before it gets a record.

mod common;

use std::collections::{BTreeSet, HashSet};
use std::io::Read as _;
use std::time::{Duration, Instant};

use airgapd_bundle::fixtures::{Archive, Image, Layout, digest_of};
use airgapd_bundle::{Bundle, Compression, Content, Format, Manifest, Node};
use common::*;
use oci_spec::image::Digest;

/// Longest time that one opening may take, about a thousand times the usual time.
const PATIENCE: Duration = Duration::from_secs(20);

/// Peak of memory, in KiB, that all openings may reach.
const MOST_MEMORY: u64 = 256 << 10;

/// Places per bundle that are changed, besides its ends.
const POINTS: usize = 40;

const CODECS: [Compression; 6] = [
    Compression::None,
    Compression::Gzip,
    Compression::Zstd,
    Compression::Xz,
    Compression::Lz4,
    Compression::Bzip2,
];

/// A good bundle, packed in one way.
struct Subject {
    bytes: Vec<u8>,
    format: Format,
    codec: Compression,
    roots: HashSet<Digest>,
    /// Offsets of the places to change.
    places: BTreeSet<usize>,
}

fn subjects() -> Vec<Subject> {
    let image = || {
        Image::new("docker.io/library/a:1")
            .platform("linux/amd64")
            .layer((0..9000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>())
            .layer(b"y")
            .platform("linux/arm64")
            .layer(b"z")
    };
    let other = Image::new("b:1").platform("linux/amd64").layer(b"x");
    let formats = [
        (Layout::new(), Format::OciLayout),
        (Layout::docker(), Format::DockerArchive),
        (Layout::hybrid(), Format::Hybrid),
    ];
    let mut subjects = Vec::new();
    for (layout, format) in formats {
        let mut archive = layout.image(image()).image(other.clone()).build();
        if format != Format::DockerArchive {
            archive.move_first("oci-layout").move_first("index.json");
        }
        let expected = good(&archive);
        let roots = expected.catalog().images.iter();
        let roots: HashSet<_> = roots
            .map(|image| image.root.descriptor.digest().clone())
            .collect();
        for codec in CODECS {
            let bytes = match codec {
                Compression::None => archive.to_bytes(),
                codec => archive.to_compressed(codec),
            };
            subjects.push(Subject {
                places: places(&archive, codec, bytes.len()),
                bytes,
                format,
                codec,
                roots: roots.clone(),
            });
        }
    }
    subjects
}

/// Both ends, some places evenly in between, and the borders of entries if they are known.
fn places(archive: &Archive, codec: Compression, length: usize) -> BTreeSet<usize> {
    let mut places: BTreeSet<_> = (0..24).chain(length - 24..length).collect();
    places.extend((0..POINTS).map(|i| i * length / POINTS));
    if codec == Compression::None {
        for boundary in archive.boundaries() {
            let boundary = usize::try_from(boundary).unwrap();
            places.extend([
                boundary - 1.min(boundary),
                boundary,
                boundary + 1,
                boundary + 156,
                boundary + 512,
            ]);
        }
    }
    places.into_iter().filter(|place| *place < length).collect()
}

/// Collects the digests of everything below a whole node.
fn closure(node: &Node, found: &mut Vec<Digest>) {
    found.push(node.descriptor.digest().clone());
    match &node.content {
        Content::Index(children) => children.iter().for_each(|child| closure(child, found)),
        Content::Manifest(manifest) => {
            found.extend(Manifest::parts(manifest).map(|part| part.descriptor.digest().clone()));
        }
        Content::Other | Content::Absent | Content::Broken(_) => {}
    }
}

/// Returns true if all bytes below a node can be read and match their digests.
fn is_complete(bundle: &Bundle, node: &Node) -> bool {
    let mut digests = Vec::new();
    closure(node, &mut digests);
    let is_right = |digest: &Digest| {
        let mut bytes = Vec::new();
        let blob = bundle.blob(digest).expect("a present blob can be read");
        let read = blob.open(0).and_then(|mut reader| reader.read_to_end(&mut bytes));
        read.is_ok() && digest_of(&bytes) == *digest
    };
    is_whole(node) && digests.iter().all(is_right)
}

/// Opens a changed bundle. Returns the number of its complete images.
fn judge(subject: &Subject, bytes: &[u8], what: &str) -> usize {
    let started = Instant::now();
    let opened = open(bytes);
    assert!(
        started.elapsed() < PATIENCE,
        "{what} of {} took long",
        subject.format
    );
    let Ok(bundle) = opened else { return 0 };
    let complete: Vec<_> = bundle
        .catalog()
        .images
        .iter()
        .filter(|image| is_complete(&bundle, &image.root))
        .collect();
    // No digest covers the config of a Docker archive. Everything else is either unchanged or not
    // complete.
    if subject.format == Format::OciLayout {
        for image in &complete {
            let root = image.root.descriptor.digest();
            assert!(subject.roots.contains(root), "{what}: {root} was never packed");
        }
    }
    complete.len()
}

fn assert_little_memory() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < MOST_MEMORY, "the peak is {peak} KiB");
}

#[test]
fn a_cut_anywhere_leaves_complete_images_or_an_error() {
    let mut cuts = 0;
    for subject in subjects() {
        for &at in &subject.places {
            let what = format!("cut at {at} of {}, {}", subject.bytes.len(), subject.codec);
            let complete = judge(&subject, &subject.bytes[..at], &what);
            cuts += 1;
            if subject.codec != Compression::None {
                assert_eq!(complete, 0, "{what}");
            }
        }
    }
    assert!(cuts >= 1000, "only {cuts} cuts");
    assert_little_memory();
}

#[test]
fn a_change_anywhere_leaves_complete_images_or_an_error() {
    let mut changes = 0;
    for subject in subjects() {
        for &at in &subject.places {
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = subject.bytes.clone();
                bytes[at] ^= flip;
                let what = format!("{flip:#x} at {at} of {}, {}", bytes.len(), subject.codec);
                judge(&subject, &bytes, &what);
                changes += 1;
            }
        }
    }
    assert!(changes >= 1000, "only {changes} changes");
    assert_little_memory();
}

#[test]
fn bytes_lost_or_doubled_anywhere_leave_complete_images_or_an_error() {
    for subject in subjects() {
        for &at in subject.places.iter().step_by(3) {
            let what = format!("at {at} of {}, {}", subject.bytes.len(), subject.codec);
            let (before, after) = subject.bytes.split_at(at);
            let lost = [before, after.get(7..).unwrap_or_default()].concat();
            judge(&subject, &lost, &format!("bytes lost {what}"));
            let doubled = [before, &before[before.len().saturating_sub(100)..], after].concat();
            judge(&subject, &doubled, &format!("bytes doubled {what}"));
            judge(
                &subject,
                &[before, &vec![0; after.len()]].concat(),
                &format!("zeros {what}"),
            );
        }
    }
    assert_little_memory();
}
