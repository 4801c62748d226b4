//! Damaged and hostile bundles. For any bytes, the reader gives a right answer at little cost.

mod common;

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use airgapd_bundle::fixtures::{Archive, Image, Layer, Layout, Manifest, digest_of};
use airgapd_bundle::{Bundle, Content, Fault, Kind, Limits, Node, PartState};
use common::*;
use proptest::prelude::*;
use serde_json::json;

/// Longest time that any archive of this file may take. The slowest takes a hundredth of it in a
/// debug build.
const PATIENCE: Duration = Duration::from_secs(20);

static ARCHIVES: LazyLock<[Archive; 3]> = LazyLock::new(|| {
    let image = || {
        Image::new("docker.io/library/a:1")
            .platform("linux/amd64")
            .layer(b"x")
            .layer(b"y")
            .platform("linux/arm64")
            .layer(b"z")
    };
    let other = Image::new("b:1").platform("linux/amd64").layer(b"x");
    [Layout::new(), Layout::docker(), Layout::hybrid()]
        .map(|layout| layout.image(image()).image(other.clone()).build())
});

/// Asserts that every document that the catalog calls good matches its digest.
fn assert_documents_are_verified(bundle: &Bundle, node: &Node) {
    match &node.content {
        Content::Index(children) => {
            assert_eq!(
                digest_of(&blob(bundle, node.descriptor.digest())),
                *node.descriptor.digest()
            );
            children
                .iter()
                .for_each(|child| assert_documents_are_verified(bundle, child));
        }
        Content::Manifest(manifest) => {
            assert_eq!(
                digest_of(&blob(bundle, node.descriptor.digest())),
                *node.descriptor.digest()
            );
            if manifest.config.state == PartState::Present {
                let digest = manifest.config.descriptor.digest();
                assert_eq!(digest_of(&blob(bundle, digest)), *digest);
            }
        }
        Content::Other | Content::Absent | Content::Broken(_) => {}
    }
}

fn assert_answer_is_right(bytes: &[u8]) -> Option<Bundle> {
    let started = Instant::now();
    let bundle = open(bytes).ok()?;
    for image in &bundle.catalog().images {
        assert_documents_are_verified(&bundle, &image.root);
    }
    assert!(started.elapsed() < PATIENCE);
    Some(bundle)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bits_never_make_a_document_that_is_not_verified(
        which in 0_usize..3,
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..8), 1..4),
    ) {
        let mut bytes = ARCHIVES[which].to_bytes();
        for (at, bit) in flips {
            *at.get_mut(&mut bytes) ^= 1 << bit;
        }
        assert_answer_is_right(&bytes);
    }

    #[test]
    fn blocks_that_are_lost_repeated_or_swapped_never_make_a_wrong_image(
        which in 0_usize..3,
        from in any::<prop::sample::Index>(),
        to in any::<prop::sample::Index>(),
        what in 0_u8..4,
    ) {
        let bytes = ARCHIVES[which].to_bytes();
        let mut blocks: Vec<_> = bytes.chunks(512).collect();
        let (from, to) = (from.index(blocks.len()), to.index(blocks.len()));
        match what {
            0 => drop(blocks.remove(from)),
            1 => blocks.insert(to, blocks[from]),
            2 => blocks.swap(from, to),
            _ => blocks.truncate(from),
        }
        assert_answer_is_right(&blocks.concat());
    }

    #[test]
    fn a_cut_archive_never_has_more_whole_images_than_it_carries(
        which in 0_usize..3,
        at in any::<prop::sample::Index>(),
    ) {
        let archive = &ARCHIVES[which];
        let bytes = archive.to_bytes();
        let expected = good(archive);
        let cut = at.index(bytes.len());
        let Some(bundle) = assert_answer_is_right(&bytes[..cut]) else { return Ok(()) };
        for (image, expected) in bundle.catalog().images.iter().zip(&expected.catalog().images) {
            prop_assert_eq!(&image.names, &expected.names);
            if is_whole(&image.root) {
                prop_assert_eq!(&image.root, &expected.root);
                assert_blobs_are_right(&bundle, &image.root);
            }
        }
    }

    #[test]
    fn any_bytes_have_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        assert_answer_is_right(&bytes);
    }

    #[test]
    fn any_json_as_a_document_has_an_answer(
        which in 0_usize..3,
        document in prop::sample::select(vec!["index.json", "manifest.json", "oci-layout"]),
        json in "[\\[\\]{}\":,0-9a-z ]{0,80}",
    ) {
        let mut archive = ARCHIVES[which].clone();
        archive.add(document, json);
        assert_answer_is_right(&archive.to_bytes());
    }
}

/// Makes an archive with this `index.json` and these blobs.
fn by_hand(index: String, blobs: &[Vec<u8>]) -> Archive {
    let mut archive = Layout::new().build();
    archive.set("index.json", index);
    for bytes in blobs {
        archive.add(
            &format!("blobs/sha256/{}", digest_of(bytes).digest()),
            bytes.clone(),
        );
    }
    archive
}

fn index_entry(bytes: &[u8]) -> serde_json::Value {
    json!({
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": digest_of(bytes),
        "size": bytes.len(),
    })
}

#[test]
fn an_index_that_refers_to_itself_many_times_over_is_cut_short() {
    // Thirty equal children in each of eight levels: 30^8 descriptors in a few KiB.
    let mut blobs = vec![br#"{"manifests":[]}"#.to_vec()];
    for _ in 0..7 {
        let child = index_entry(blobs.last().unwrap());
        blobs.push(json!({ "manifests": vec![child; 30] }).to_string().into_bytes());
    }
    let index = json!({ "manifests": [index_entry(blobs.last().unwrap())] }).to_string();
    let started = Instant::now();
    let fault = refused(&by_hand(index, &blobs));
    assert!(
        matches!(&fault, Fault::Limit { what, .. } if what.contains("descriptors")),
        "{fault}"
    );
    assert!(started.elapsed() < PATIENCE);
}

#[test]
fn a_shared_sub_tree_is_the_same_wherever_it_is_met() {
    let image = |name: &str| {
        Image::new(name)
            .platform("linux/amd64")
            .layer(b"x")
            .platform("linux/arm64")
            .layer(b"y")
    };
    let bundle = good(&Layout::new().image(image("a:1")).image(image("b:1")).build());
    let [a, b] = bundle.catalog().images.as_slice() else {
        panic!("two images")
    };
    assert!(is_whole(&a.root));
    assert_eq!(a.root.content, b.root.content);
}

#[test]
fn documents_that_take_more_memory_than_bytes_are_refused() {
    let many = |element: &str, count: usize| vec![element; count].join(",");
    let rows = [
        format!(r#"{{"manifests":[{}]}}"#, many("0", 2_000_000)),
        format!(r#"{{"manifests":[{}]}}"#, many("{}", 2_000_000)),
        format!(r#"{{"x":{}{}}}"#, "[".repeat(200_000), "]".repeat(200_000)),
    ];
    for index in rows {
        let started = Instant::now();
        let fault = refused(&by_hand(index, &[]));
        assert!(
            matches!(
                fault,
                Fault::Document {
                    entry: "index.json",
                    ..
                }
            ),
            "{fault}"
        );
        assert!(started.elapsed() < PATIENCE);
    }
    let manifest = Manifest::new("linux/amd64").member("layers", json!(vec![json!({}); 20_000]));
    let bundle = good(&Layout::new().image(Image::new("a").manifest(manifest)).build());
    assert!(broken(&only_image(&bundle).root).contains("a list of more than 10000 elements"));
}

#[test]
fn annotations_beyond_the_limit_are_refused() {
    let large = "x".repeat(100_000);
    let image = |i: usize| Image::new(&format!("a:{i}")).layer(b"x").annotation("k", &large);
    let layout = (0..90).fold(Layout::new(), |layout, i| layout.image(image(i)));
    let limits = Limits {
        json_document: 10 << 20,
        ..Limits::default()
    };
    open_within(&layout.build().to_bytes(), &limits).unwrap();
    let fault = refused(&layout.build());
    assert!(matches!(fault, Fault::Limit { .. }), "{fault}");
}

/// Many different manifests with this config, in one index.
fn that_share_a_config(count: usize, member: &str, value: &serde_json::Value) -> Archive {
    let manifest = |n: usize| {
        Manifest::new("linux/amd64")
            .config(member, value.clone())
            .member("annotations", json!({"n": n.to_string()}))
    };
    let image = (0..count).fold(Image::new("a"), |image, n| image.manifest(manifest(n)));
    Layout::new().image(image.in_an_index()).build()
}

#[test]
fn a_config_that_many_manifests_share_is_there_once() {
    let diff_ids = vec![format!("sha256:{}", "a".repeat(64)); 10_000];
    let bundle = good(&that_share_a_config(
        100,
        "rootfs",
        &json!({"type": "layers", "diff_ids": diff_ids}),
    ));
    let [first, .., last] = children(&only_image(&bundle).root) else {
        panic!("there are many");
    };
    let (first, last) = (manifest(first), manifest(last));
    assert_eq!(first.diff_ids.len(), 10_000);
    assert!(Arc::ptr_eq(&first.diff_ids, &last.diff_ids));
}

/// Messages name each image, and each of its layers, by its platform.
#[test]
fn a_platform_that_is_none_breaks_its_images_and_is_told_in_short() {
    let rows = [
        ("os.version", json!("x".repeat(1 << 20)), "1048576 bytes"),
        ("variant", json!("x".repeat(256)), "256 bytes"),
        ("os.features", json!(vec!["x"; 101]), "101 os.features"),
    ];
    for (member, value, reason) in rows {
        let bundle = good(&that_share_a_config(100, member, &value));
        for node in children(&only_image(&bundle).root) {
            let problem = &manifest(node).problems[0];
            assert!(problem.contains(reason) && problem.len() < 300, "{problem}");
        }
    }
    good(&that_share_a_config(1, "os.features", &json!(vec!["x"; 100])));
    // The descriptor's own platform, with as many features as fit into a document.
    let mut entry = index_entry(b"x");
    entry["platform"] = json!({"os": "linux", "architecture": "amd64", "os.features": vec![""; 2_000_000]});
    let bundle = good(&by_hand(json!({"manifests": [entry]}).to_string(), &[]));
    let reason = broken(&only_image(&bundle).root);
    assert!(reason.contains("more than 100 os.features"), "{reason}");
}

/// The errors of parsers quote the text that they read.
#[test]
fn whatever_is_said_of_an_image_is_short() {
    let long = "x".repeat(1 << 20);
    let mut of_long_type = index_entry(b"x");
    of_long_type["mediaType"] = json!(&long);
    let mut of_long_digest = index_entry(b"x");
    of_long_digest["digest"] = json!(&long);
    let mut of_text_for_size = index_entry(b"x");
    of_text_for_size["size"] = json!(&long);
    for entry in [of_long_type, of_long_digest, of_text_for_size] {
        let bundle = good(&by_hand(json!({"manifests": [entry]}).to_string(), &[]));
        let reason = broken(&only_image(&bundle).root);
        assert!(reason.len() < 1_000, "{} bytes: {reason:.1000}", reason.len());
    }
    let artifact = Manifest::new("linux/amd64")
        .member("artifactType", json!(&long))
        .member(
            "layers",
            json!([{"mediaType": "text/plain", "digest": digest_of(b"x"), "size": 1}]),
        );
    let bundle = good(&Layout::new().image(Image::new("a").manifest(artifact)).build());
    let Kind::Artifact { artifact_type } = &manifest(&only_image(&bundle).root).kind else {
        panic!("an artifact")
    };
    assert!(artifact_type.len() < 1_000);
    for document in [json!({"manifests": long}), json!(long)] {
        let fault = refused(&by_hand(document.to_string(), &[])).to_string();
        assert!(fault.len() < 1_000, "{} bytes", fault.len());
    }
}

#[test]
fn the_names_of_a_docker_archive_count_as_the_entries_of_a_layout_do() {
    let tags = |count: usize| (0..count).map(|n| format!("r.test/a:{n}")).collect::<Vec<_>>();
    let archive = |images: usize, names: usize| {
        let mut archive = Layout::docker().build();
        let element = json!({"Config": "config.json", "RepoTags": tags(names), "Layers": []});
        archive.set("manifest.json", json!(vec![element; images]).to_string());
        archive.add(
            "config.json",
            br#"{"os":"linux","architecture":"amd64"}"#.to_vec(),
        );
        archive
    };
    let limits = Limits {
        descriptors: 1_000,
        names: 100_000,
        ..Limits::default()
    };
    open_within(&archive(9, 100).to_bytes(), &limits).unwrap();
    let fault = open_within(&archive(10, 100).to_bytes(), &limits)
        .unwrap_err()
        .fault;
    assert!(
        matches!(&fault, Fault::Limit { what, .. } if what.contains("descriptors")),
        "{fault}"
    );
}

/// A delta that relies on these blobs. All its images have the same manifest.
fn delta(relied_on: &[Vec<u8>], images: usize, layers: &[serde_json::Value]) -> Archive {
    let blob = |bytes: &Vec<u8>| json!({"digest": digest_of(bytes), "size": bytes.len()});
    let list: Vec<_> = relied_on.iter().map(blob).collect();
    let list = json!({"version": 1, "base": "base.tar", "blobs": list})
        .to_string()
        .into_bytes();
    let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": []}});
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest_of(&config),
            "size": config.len(),
        },
        "layers": layers,
    });
    let manifest = manifest.to_string().into_bytes();
    let entry = |n: usize| {
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest_of(&manifest),
            "size": manifest.len(),
            "annotations": {"n": n.to_string()},
        })
    };
    let index = json!({
        "manifests": (0..images).map(entry).collect::<Vec<_>>(),
        "annotations": {"io.airgapd.delta.relies-on": digest_of(&list), "io.airgapd.delta.base": "base.tar"},
    });
    by_hand(index.to_string(), &[list, config, manifest])
}

#[test]
fn what_a_delta_relies_on_is_charged() {
    let blobs = |count: usize| (0..count).map(|n| n.to_string().into_bytes()).collect::<Vec<_>>();
    let layer = |n: usize| {
        json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": digest_of(n.to_string().as_bytes()),
            "size": n.to_string().len(),
        })
    };
    let limits = |memory: usize| Limits {
        descriptors: memory >> 10,
        json_document: 8 << 20,
        ..Limits::default()
    };
    let open = |count: usize, layers: usize, limits: &Limits| {
        let layers: Vec<_> = (0..layers).map(layer).collect();
        open_within(&delta(&blobs(count), 1, &layers).to_bytes(), limits)
    };
    let relies_on = |bundle: &Bundle| bundle.catalog().relies_on.as_ref().unwrap().blobs.len();
    assert_eq!(relies_on(&open(20_000, 1, &limits(1 << 20)).unwrap()), 20_000);
    // Two of the largest documents and a mebibyte are 17 MiB.
    let fault = open(60_000, 1, &limits(1 << 20)).unwrap_err().fault;
    assert!(
        matches!(&fault, Fault::Limit { what, .. } if what.contains("memory")),
        "{fault}"
    );
    assert_eq!(relies_on(&open(60_000, 1, &Limits::default()).unwrap()), 60_000);
    // The catalog counts twice: as it is, and completed by the base.
    let small = Limits {
        json_document: 1 << 20,
        descriptors: 3_000,
        ..Limits::default()
    };
    open(1, 2_500, &small).unwrap();
    let smaller = Limits {
        json_document: 1 << 19,
        ..small
    };
    let fault = open(1, 2_900, &smaller).unwrap_err().fault;
    assert!(matches!(&fault, Fault::Limit { .. }), "{fault}");
}

/// A separate copy of this manifest for each image would take gibibytes.
#[test]
fn images_of_a_delta_share_what_they_shared_before() {
    let layer = |bytes: &[u8], urls: usize| {
        json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": digest_of(bytes),
            "size": bytes.len(),
            "urls": vec![""; urls],
        })
    };
    let archive = delta(
        &[b"there".to_vec()],
        4_000,
        &[layer(b"there", 9_999), layer(b"nowhere", 0)],
    );
    let bundle = good(&archive);
    let catalog = bundle.catalog();
    let completed = catalog.with_its_base();
    let of = |image: &airgapd_bundle::Image| match &image.root.content {
        Content::Manifest(manifest) => Arc::clone(manifest),
        other => panic!("{other:?}"),
    };
    let [first, .., last] = completed.images.as_slice() else {
        panic!("there are many")
    };
    assert!(Arc::ptr_eq(&of(first), &of(last)));
    assert!(!Arc::ptr_eq(&of(first), &of(&catalog.images[0])));
    let states = |manifest: &airgapd_bundle::Manifest| {
        let layers = manifest.layers.iter();
        layers.map(|layer| layer.state.clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        states(&of(&catalog.images[0])),
        [PartState::Absent, PartState::Absent]
    );
    assert_eq!(states(&of(first)), [PartState::Present, PartState::Absent]);
}

/// The list takes three bytes in a document. In memory, it takes a text and a slot in a list.
#[test]
fn lists_of_nothing_are_charged_as_what_they_take() {
    let layer = |n: usize| {
        json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": digest_of(&n.to_le_bytes()),
            "size": 8,
            "urls": vec![""; 10_000],
        })
    };
    let archive = |count: usize| {
        let layers: Vec<_> = (0..count).map(layer).collect();
        let manifest = Manifest::new("linux/amd64").member("layers", json!(layers));
        Layout::new().image(Image::new("a").manifest(manifest)).build()
    };
    good(&archive(10));
    let fault = refused(&archive(200));
    assert!(
        matches!(&fault, Fault::Limit { what, .. } if what.contains("memory")),
        "{fault}"
    );
}

#[test]
fn a_document_beyond_the_limit_breaks_its_image_only() {
    let mut manifest = Manifest::new("linux/amd64").layer(b"x");
    manifest = manifest.member("padding", json!("x".repeat(9 << 20)));
    let archive = Layout::new()
        .image(Image::new("large").manifest(manifest))
        .image(Image::new("good").layer(b"y"))
        .build();
    let bundle = good(&archive);
    let [large, other] = bundle.catalog().images.as_slice() else {
        panic!("two images")
    };
    assert!(
        broken(&large.root).contains("more than 8388608"),
        "{}",
        broken(&large.root)
    );
    assert!(is_whole(&other.root));
}

#[test]
fn nothing_but_headers_comes_to_an_end() {
    let mut archive = Layout::new().build();
    archive.set("index.json", r#"{"manifests":[]}"#.to_owned());
    let headers = archive.to_bytes();
    let limits = Limits {
        entries: 5_000,
        ..Limits::default()
    };
    let header = &headers[..512 * 2];
    let error = open_within(&header.repeat(20_000), &limits).unwrap_err();
    assert!(
        matches!(error.fault, Fault::Limit { limit: 5_000, .. }),
        "{error}"
    );
    // Extended headers count as well: this archive has GNU long names and nothing else.
    let mut long = Layout::new().build();
    long.entries.clear();
    long.add(&"x".repeat(200), "x".to_owned());
    let extension = &long.to_bytes()[..1024];
    let error = open_within(&extension.repeat(10_000), &limits).unwrap_err();
    assert!(
        matches!(error.fault, Fault::Limit { limit: 5_000, .. }),
        "{error}"
    );
}

#[test]
fn a_layer_of_gigabytes_is_not_read_at_open() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    // The digest is invented, so that the test does not have to hash the layer either.
    let size = 64_u64 << 30;
    let mut archive = Layout::new().image(Image::new("a:1").layer(b"x")).build();
    archive
        .add("large", airgapd_bundle::fixtures::Data::zeros(size))
        .move_first("large");
    archive.write_to(&path);
    let started = Instant::now();
    let bundle = Bundle::open(&path, &Limits::default()).unwrap();
    assert!(started.elapsed() < PATIENCE);
    assert!(is_whole(&only_image(&bundle).root));
}

#[test]
fn two_layers_that_claim_one_digest_are_no_way_to_smuggle_bytes() {
    // The second layer claims to be the first. The import of its digest gets the bytes of the
    // first.
    let first = Layer::new(b"first".to_vec());
    let second = Layer::new(b"other".to_vec()).diff_id(first.digest().clone());
    let image = Image::new("a:1")
        .platform("linux/amd64")
        .with_layer(first.clone())
        .with_layer(second);
    let bundle = good(&Layout::docker().image(image).build());
    assert_eq!(digest_of(&blob(&bundle, first.digest())), *first.digest());
}
