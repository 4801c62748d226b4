//! The corpus with which a fuzzer starts: good bundles of every form, and known attacks.
//!
//! The builders of the tests make the corpus, so that the repository needs no binary files. Keys
//! and signatures are fixtures of the tests, since only their programs can make them.

use std::fs;

use bundle::Compression;
use bundle::fixtures::{Archive, EntryKind, Image, Layout, Manifest, Node};
use lab::workspace;
use serde_json::json;
use tar::{EntryType, Header};

/// An input of a target.
pub(super) struct Seed {
    pub(super) target: &'static str,
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

/// Returns the inputs of all targets.
pub(super) fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut add = |target, name: String, bytes: Vec<u8>| seeds.push(Seed { target, name, bytes });
    for (name, archive) in archives() {
        let plain = archive.to_bytes();
        for codec in CODECS {
            add("reader", format!("{name}-{codec}"), archive.to_compressed(codec));
        }
        for form in FORMS {
            add(
                "archives",
                format!("{name}-{}-{}", form[0], form[1]),
                [&form, plain.as_slice()].concat(),
            );
        }
        add("reader", name.to_owned(), plain);
    }
    for (name, tar) in tars() {
        add("archives", name.to_owned(), [&[0, 0], tar.as_slice()].concat());
        add("reader", name.to_owned(), tar);
    }
    for (name, start) in STRANGERS {
        add("reader", name.to_owned(), start.to_vec());
    }
    for (name, document) in documents() {
        add("documents", name.to_owned(), document);
    }
    for (at, (reader, text)) in TEXTS.iter().enumerate() {
        add("texts", at.to_string(), [&[*reader], text.as_bytes()].concat());
    }
    for (at, name) in NAMES.iter().enumerate() {
        for target in ["references", "platforms"] {
            add(target, at.to_string(), name.as_bytes().to_vec());
        }
    }
    for (name, proof) in proofs() {
        add("proofs", name, proof);
    }
    seeds
}

/// Returns the keys, signatures and lists of the fixtures. The first byte names the reader. For the
/// verdict, a signature and its list follow, with a zero between them.
fn proofs() -> Vec<(String, Vec<u8>)> {
    let folder = workspace().join("crates/admission/tests/fixtures");
    let read = |name: &str| fs::read(folder.join(name)).expect("a fixture can be read");
    let mut proofs = Vec::new();
    for entry in fs::read_dir(&folder).expect("the fixtures are there") {
        let name = entry.expect("a folder can be read").file_name();
        let name = name.to_string_lossy().into_owned();
        let readers: &[u8] = match name.rsplit_once('.').map_or(name.as_str(), |(_, ending)| ending) {
            "pub" => &[0],
            "sig" => &[1, 6],
            "json" => &[2, 14],
            "minisig" => &[3, 22],
            "catalogs" | "files" => &[4, 5],
            _ => continue,
        };
        let list = if name.starts_with("files.") {
            "files"
        } else {
            "catalogs"
        };
        for reader in readers {
            let mut bytes = [&[*reader], read(&name).as_slice()].concat();
            if *reader > 5 {
                bytes.push(0);
                bytes.extend_from_slice(&read(list));
            }
            proofs.push((format!("{name}-{reader}"), bytes));
        }
    }
    proofs
}

const CODECS: [Compression; 5] = [
    Compression::Gzip,
    Compression::Zstd,
    Compression::Xz,
    Compression::Lz4,
    Compression::Bzip2,
];

/// The forms that the target `archives` makes of a tar. In this order: unchanged, compressed with
/// zstd, cut in half, in frames of a block, in a huge frame, with a wrong table.
const FORMS: [[u8; 2]; 6] = [[0, 0], [2, 0], [6, 128], [7, 0], [7, 15], [7, 140]];

/// Returns small bundles: one of every format, and attacks.
fn archives() -> Vec<(&'static str, Archive)> {
    let image = || {
        Image::new("r.test/a:1")
            .platform("linux/amd64")
            .layer(b"amd64")
            .platform("linux/arm64/v8")
            .layer(b"arm64")
    };
    let nested = |levels: usize| {
        let manifest = Node::from(Manifest::new("linux/amd64").layer(b"x".to_vec()));
        (0..levels).fold(manifest, |node, _| Node::Index(vec![node]))
    };
    let of = |image: Image| Layout::new().image(image).build();
    let mut prefixed = of(image());
    prefixed.prefix("./");
    let mut torn = of(image());
    let lost = torn.images[0].manifests[0].layers[0].clone();
    torn.remove_blob(&lost).without_end_marker();
    vec![
        ("layout", of(image())),
        ("docker", Layout::docker().image(image()).build()),
        ("hybrid", Layout::hybrid().image(image()).build()),
        ("prefixed", prefixed),
        ("torn", torn),
        ("nested", of(Image::new("r.test/nested:1").root(nested(2)))),
        ("deep", of(Image::new("r.test/deep:1").root(nested(12)))),
        ("artifact-first", artifact_first()),
        ("os-features", with_os_features()),
        (
            "name-in-manifest-json",
            Layout::hybrid()
                .image(Image::unnamed().repo_tag("multi:1").layer(b"x"))
                .build(),
        ),
        ("names", of_many_names()),
        ("shared-config", that_share_a_config()),
        ("lying-names", with_names_that_lie()),
        ("links", with_links_in_circles()),
    ]
}

/// Returns a bundle with an artifact first. containerd uses the first manifest of the platform,
/// even if it is no image.
fn artifact_first() -> Archive {
    let sbom = Manifest::new("linux/amd64")
        .config_bytes("{}")
        .config_media_type("application/spdx+json");
    let image = Manifest::new("linux/amd64").layer(b"x".to_vec());
    let root = Node::Index(vec![sbom.into(), image.into()]);
    Layout::new()
        .image(Image::new("r.test/sbom:1").root(root))
        .build()
}

fn with_os_features() -> Archive {
    let platform = json!({"os": "linux", "architecture": "amd64", "os.features": ["nydus.remoteimage.v1"]});
    let converted = Manifest::new("linux/amd64").descriptor_member("platform", platform);
    let root = Node::Index(vec![converted.into(), Manifest::new("linux/amd64").into()]);
    Layout::new()
        .image(Image::new("r.test/nydus:1").root(root))
        .build()
}

/// Returns a bundle with more names than an image may have.
fn of_many_names() -> Archive {
    let image = Image::new("r.test/a:0").layer(b"x");
    let image = (1..300).fold(image, |image, n| image.repo_tag(&format!("r.test/a:{n}")));
    Layout::docker().image(image).build()
}

fn that_share_a_config() -> Archive {
    let diff_ids = vec![format!("sha256:{}", "a".repeat(64)); 100];
    let manifest = |n: usize| {
        Manifest::new("linux/amd64")
            .config("rootfs", json!({"type": "layers", "diff_ids": diff_ids}))
            .member("annotations", json!({"n": n.to_string()}))
    };
    let image = (0..10).fold(Image::new("a"), |image, n| image.manifest(manifest(n)));
    Layout::new().image(image.in_an_index()).build()
}

/// Returns a bundle with line feeds, bidirectional and C1 control characters in every text.
fn with_names_that_lie() -> Archive {
    const LIE: &str = "r.test/a\n\u{202e}\u{9b}1m\u{2028}\u{feff}:1";
    let manifest = Manifest::new("linux/amd64")
        .config("os.version", json!(LIE))
        .config_media_type(LIE)
        .descriptor_member("annotations", json!({"org.opencontainers.image.ref.name": LIE}));
    let image = Image::new(LIE).repo_tag(LIE).manifest(manifest);
    let mut archive = Layout::hybrid().image(image).build();
    archive.add(LIE, LIE.to_owned());
    archive
}

fn with_links_in_circles() -> Archive {
    let mut archive = Layout::docker()
        .image(Image::new("r.test/a:1").layer(b"x"))
        .build();
    let layer = archive.name_of(&archive.images[0].manifests[0].layers[0]);
    archive
        .replace(&layer, EntryKind::Symlink("../a".to_owned()))
        .push("a", EntryKind::Symlink("b".to_owned()))
        .push("b", EntryKind::HardLink("a".to_owned()))
        .push("c", EntryKind::HardLink("../../etc/passwd".to_owned()));
    archive
}

/// Returns archives with headers that no writer produces.
fn tars() -> Vec<(&'static str, Vec<u8>)> {
    let good = Layout::new()
        .image(Image::new("r.test/a:1").layer(b"x"))
        .build()
        .to_bytes();
    let before = |header: Vec<u8>| [header, good.clone()].concat();
    vec![
        ("tar-negative", before(header(b'0', &[0xff; 12], b""))),
        ("tar-base-256", before(header(b'0', &huge(), b""))),
        ("tar-no-number", before(header(b'0', b"99999999999\0", b""))),
        (
            "tar-pax",
            before(header(b'x', b"00000000036\0", b"30 size=18446744073709551615\n")),
        ),
        (
            "tar-pax-overlong",
            before(header(b'x', b"00000000020\0", b"9999999 path=a\n")),
        ),
        (
            "tar-pax-sparse",
            before(header(
                b'x',
                b"00000000066\0",
                b"22 GNU.sparse.major=1\n30 GNU.sparse.name=index.json\n",
            )),
        ),
        (
            "tar-global",
            before(header(b'g', b"00000000026\0", b"22 comment=0123456789a\n")),
        ),
        (
            "tar-long-name",
            before(header(b'L', b"00000000014\0", b"index.json\0\0")),
        ),
        ("tar-sparse", before(sparse())),
        (
            "tar-hard-link",
            before(header(b'1', b"00000001000\0", &[b'x'; 512])),
        ),
        ("tar-headers-only", header(b'5', b"00000000000\0", b"").repeat(60)),
    ]
}

/// Returns 2^95 - 1 in base 256.
fn huge() -> [u8; 12] {
    let mut size = [0xff; 12];
    size[0] = 0x80;
    size
}

fn header(flag: u8, size: &[u8; 12], data: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.set_path("a").expect("a short name fits");
    header.set_entry_type(EntryType::new(flag));
    header.as_old_mut().size = *size;
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// Returns a sparse file in GNU's old form. A block of its map is between its header and its bytes.
fn sparse() -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_path("a").expect("a short name fits");
    header.set_entry_type(EntryType::GNUSparse);
    header.set_size(0);
    if let Some(gnu) = header.as_gnu_mut() {
        gnu.set_is_extended(true);
        gnu.set_real_size(1 << 20);
    }
    header.set_cksum();
    [header.as_bytes().as_slice(), &[0; 512]].concat()
}

/// Files of other formats that people use in place of a bundle.
const STRANGERS: [(&str, &[u8]); 6] = [
    ("zip", b"PK\x03\x04\x14\0\0\0"),
    ("lzma", b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\0\x37"),
    ("lz4-legacy", b"\x02\x21\x4c\x18\0\0\0\0"),
    ("html", b"\xef\xbb\xbf\r\n<!DOCTYPE html><p>404"),
    ("json", b"{\"schemaVersion\": 2}"),
    ("script", b"#!/bin/sh\nexit 1\n"),
];

/// Returns documents, each after the number that gives the type of the last document. The targets
/// that read them describe how the documents refer to each other.
fn documents() -> Vec<(&'static str, Vec<u8>)> {
    let image = Image::new("r.test/a:1").platform("linux/amd64").layer(b"x");
    let archive = Layout::hybrid().image(image).build();
    let manifest = archive.name_of(&archive.images[0].manifests[0].digest);
    let place = |kind: u8, name: &str| [&[kind], archive.bytes_of(name).as_slice()].concat();
    let shouted = archive.bytes_of("index.json").to_ascii_uppercase();
    let graph = |kind: u8, documents: &[&str]| [&[kind], documents.join("\0").as_bytes()].concat();
    let entry = |of: char, kind: &str| {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.{kind}.v1+json","digest":"${of}","size":#{of},"annotations":{{"io.containerd.image.name":"r.test/a:%"}}}}"#
        )
    };
    let index = |entries: &str| format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#);
    let manifest_of = |config: char| {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"${config}","size":#{config}}},"layers":[]}}"#
        )
    };
    let config = r#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let many_ids = r#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["#
        .to_owned()
        + "\u{1}d\"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"\u{2}]}}";
    let repeated = |text: &str, times: char| format!("\u{1}{times}{text}\u{2}");
    let reliance = r#"{"version":1,"base":"base.tar","blobs":[{"digest":"sha256:bb","size":1}]}"#;
    let delta = r#"{"schemaVersion":2,"manifests":[],"annotations":{"io.airgapd.delta.relies-on":"$a","io.airgapd.delta.base":"base.tar"}}"#;
    let members = r#"{"version":1,"release":"r1","members":[{"name":"a","digest":"sha256:bb"}]}"#;
    let release = r#"{"schemaVersion":2,"manifests":[],"annotations":{"io.airgapd.release":"r1","io.airgapd.release.members":"$a"}}"#;
    let names = |names: &str| format!(r#"[{{"Config":"blobs/$a","RepoTags":[{names}],"Layers":[]}}]"#);
    let (a, b) = (entry('a', "index"), entry('b', "index"));
    vec![
        ("shouted", [&[0], shouted.as_slice()].concat()),
        ("index", place(0, "index.json")),
        ("manifest-json", place(1, "manifest.json")),
        ("hybrid-index", place(2, "index.json")),
        (
            "manifest",
            graph(3, &[config, &manifest_of('a'), &index(&entry('b', "manifest"))]),
        ),
        ("manifest-as-index", place(3, &manifest)),
        (
            "shared-config",
            graph(
                3,
                &[
                    &many_ids,
                    &manifest_of('a'),
                    &index(&repeated(&entry('b', "manifest"), 'd')),
                ],
            ),
        ),
        (
            "deep",
            graph(
                3,
                &[&index(""), &index(&a), &index(&b), &index(&entry('c', "index"))],
            ),
        ),
        (
            "wide",
            graph(
                3,
                &[
                    &index(""),
                    &index(&repeated(&a, '\u{6}')),
                    &index(&repeated(&b, '\u{6}')),
                ],
            ),
        ),
        (
            "names",
            graph(1, &[config, &names(&repeated("\"r.test/a:%\"", 'd'))]),
        ),
        ("delta", graph(3, &[reliance, delta])),
        ("release", graph(3, &[members, release])),
    ]
}

/// Texts, each after the number of its reader in the target.
const TEXTS: [(u8, &str); 14] = [
    // A key with a tab, which the parser quotes.
    (0, "a`\tb: \t{{x}\n"),
    (
        0,
        "apiVersion: k0s.k0sproject.io/v1beta1\nkind: ClusterConfig\nspec:\n  images:\n    pause: {image: r.test/pause, version: \"3\"}\n  network: {provider: calico}\n",
    ),
    (
        0,
        "a: &a [x,x]\nb: &b [*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b]\nd: [*c,*c,*c,*c]\n",
    ),
    (1, "release: v1.36\nimages:\n  pause: r.test/pause:3\n"),
    (
        2,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - {name: a, image: \"r.test/a:1\", imagePullPolicy: Always}\n---\nkind: List\nitems: [{kind: Pod}]\n",
    ),
    (2, "{{ .Values.image }}\n"),
    (3, "r.test/a:1 # first\n\nbusybox\n"),
    (
        4,
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nimagePullCredentialsVerificationPolicy: AlwaysVerify\npreloadedImagesVerificationAllowlist: [\"r.test/*\"]\n",
    ),
    (
        5,
        "sha256-aa\n{\"kind\":\"ImagePulledRecord\",\"apiVersion\":\"kubelet.config.k8s.io/v1alpha1\",\"imageRef\":\"sha256:aa\",\"credentialMapping\":{\"r.test/a\":{\"nodePodsAccessible\":true}}}",
    ),
    (
        5,
        "sha256-bb\n{\"kind\":\"ImagePullIntent\",\"apiVersion\":\"kubelet.config.k8s.io/v1alpha1\",\"image\":\"r.test/a:1\"}",
    ),
    (
        6,
        "Bearer realm=\"https://a.test/token\",service=\"r.test\",scope=\"repository:a:pull\", Basic realm=\"a\\\"b\"",
    ),
    (7, "a\n\u{202e}\u{9b}1m\u{2028}\u{feff}\u{0}"),
    (8, "{\"version\":1,\"next_arrival\":2,\"bundles\":{}}"),
    (8, "{\"version\":18446744073709551615}"),
];

const NAMES: [&str; 12] = [
    "busybox",
    "r.test:5000/a/b:1.0",
    "[::1]:5000/a:1",
    "docker.io/library/a@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "a:1@sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
    "linux/amd64",
    "linux/arm64/v8",
    "arm/v7",
    "windows(10.0.17763)/amd64",
    "linux(+nydus.remoteimage.v1)/amd64",
    "linux",
    "r.test/a\n\u{202e}:1",
];
