//! The decisions about a bundle take memory in proportion to the number of its images, names and
//! blobs. No combination of these in a hostile bundle takes more. These tests have their own
//! program, because the peak is that of the whole process.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use airgapd_import::ingest::foreseen;
use airgapd_import::names::DigestReferences;
use airgapd_import::plan::{MOST_RECORDS, OnConflict, plan};
use airgapd_import::select::Taken;
use airgapd_import::{BundleReport, BundleResult, Intent, Naming, Policy, Source, Survey, select};
use bundle::fixtures::{Layout, digest_of};
use bundle::{Bundle, Limits};
use platforms::Wanted;
use platforms::{Platform, Rules};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Largest memory for opening and deciding, in bytes: the memory that the unit allows, less the
/// largest window.
const MOST_MEMORY: u64 = 256 << 20;

/// The shape of a hostile bundle.
#[derive(Clone, Debug)]
struct Hostile {
    /// Number of entries of `index.json`, with this many manifests.
    entries: usize,
    manifests: usize,
    /// Number of layers of each manifest, and the contents of each layer's descriptor.
    layers: usize,
    urls: usize,
    annotations: usize,
    /// Number of names of each manifest by `manifest.json`, beside those of the entries. Each has
    /// its own repository.
    names: usize,
    /// Size of a platform's variant and of an artifact's type, in bytes.
    text: usize,
    /// True if the layers are absent. With `is_delta`, the bundle says that a delta's base has
    /// them.
    are_absent: bool,
    is_delta: bool,
    references: DigestReferences,
}

fn hostile() -> impl Strategy<Value = Hostile> {
    let few_or_many = |many: usize| prop_oneof![0..8_usize, 1..many];
    let sizes = (few_or_many(5_000), few_or_many(2_000), few_or_many(10_000));
    let texts = (
        few_or_many(10_000),
        few_or_many(10_000),
        few_or_many(257),
        few_or_many(4 << 20),
    );
    let references = prop_oneof![
        Just(DigestReferences::None),
        Just(DigestReferences::Target),
        Just(DigestReferences::All)
    ];
    (sizes, texts, any::<bool>(), any::<bool>(), references).prop_map(
        |(sizes, texts, are_absent, is_delta, references)| {
            let ((entries, manifests, layers), (urls, annotations, names, text)) = (sizes, texts);
            Hostile {
                entries,
                manifests,
                layers,
                urls,
                annotations,
                names,
                text,
                are_absent,
                is_delta,
                references,
            }
        },
    )
}

/// Size of all documents of a bundle, in bytes. More documents take longer to write and find no
/// other fault.
const DOCUMENTS: usize = 24 << 20;

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({
        "mediaType": format!("application/vnd.oci.image.{media_type}"),
        "digest": digest_of(bytes),
        "size": bytes.len(),
    })
}

fn write(path: &Path, hostile: &Hostile) {
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", digest_of(bytes).digest());
    let mut archive = Layout::hybrid().build();
    let mut layer = descriptor("layer.v1.tar", b"layer");
    layer["urls"] = json!(vec![""; hostile.urls]);
    layer["annotations"] = (0..hostile.annotations)
        .map(|n| (format!("{n:x}"), json!("")))
        .collect();
    let layers = hostile.layers.min((6 << 20) / layer.to_string().len());
    let config = |n: usize| {
        json!({
            "os": "linux",
            "architecture": "amd64",
            "n": n,
            "variant": "v".repeat(hostile.text.min(1 << 20)),
            "rootfs": {"type": "layers", "diff_ids": vec![digest_of(b"layer"); layers]},
        })
    };
    let each = layers * (layer.to_string().len() + 80) + 2_000 + hostile.text.min(1 << 20);
    let manifests = hostile.manifests.min(DOCUMENTS / each).max(1);
    let mut written = Vec::new();
    let mut elements = Vec::new();
    for n in 0..manifests {
        let config = config(n).to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "config": descriptor("config.v1+json", &config),
            "layers": vec![&layer; layers],
            "artifactType": "a".repeat(hostile.text.min(1 << 10)),
        });
        let manifest = manifest.to_string().into_bytes();
        let tags: Vec<String> = (0..hostile.names)
            .map(|tag| format!("r.test/a{n}/{tag}:1"))
            .collect();
        elements.push(json!({"Config": blob(&config), "RepoTags": tags, "Layers": []}));
        written.push(descriptor("manifest.v1+json", &manifest));
        archive.add(&blob(&config), config);
        archive.add(&blob(&manifest), manifest);
    }
    if !hostile.are_absent {
        archive.add(&blob(b"layer"), b"layer".to_vec());
    }
    let list = json!({"version": 1, "base": "base", "blobs": [{"digest": digest_of(b"layer"), "size": 5}]});
    let list = list.to_string().into_bytes();
    let mut index = json!({
        "manifests": (0..hostile.entries).map(|n| &written[n % manifests]).collect::<Vec<_>>(),
    });
    if hostile.is_delta {
        index["annotations"] = json!({"io.airgapd.delta.relies-on": digest_of(&list)});
    }
    archive.add(&blob(&list), list);
    archive.set("index.json", index.to_string());
    archive.set("manifest.json", json!(elements).to_string());
    archive.write_to(path);
}

fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.unwrap().trim().trim_end_matches(" kB");
    kibibytes.parse::<u64>().unwrap() << 10
}

/// The tests of this program share the peak, so only one decides at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Opens the bundle and makes all decisions about it. Returns the peak in bytes.
fn decide(path: &Path, references: DigestReferences) -> u64 {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let Ok(bundle) = Bundle::open(path, &Limits::default()) else {
        return peak();
    };
    let node: Platform = "linux/amd64".parse().unwrap();
    let policy = Policy {
        wanted: Wanted::of(&[node], &[Rules::Rc1]),
        naming: Naming {
            digest_references: references,
            ..Naming::default()
        },
        most_records: MOST_RECORDS,
    };
    let selection = select(&bundle.catalog().with_its_base(), &policy);
    let taken: Vec<&Taken> = selection.taken().collect();
    let intent = Intent::new(Source::Bundle("hostile.tar".to_owned()), OnConflict::Replace);
    let plan = plan(&taken, &Survey::default(), &intent);
    let result = BundleResult::of(&bundle, &selection, &foreseen(&plan), Duration::ZERO);
    let report = BundleReport::from(result);
    assert!(report.images.len() <= MOST_RECORDS + Limits::default().images);
    peak()
}

/// Each case is a product: images of a delta times their manifest's contents, names times layers,
/// layers times a platform.
#[test]
fn products_of_what_a_bundle_says_take_memory_in_its_parts_only() {
    let plain = Hostile {
        entries: 1,
        manifests: 1,
        layers: 1,
        urls: 0,
        annotations: 0,
        names: 1,
        text: 1,
        are_absent: false,
        is_delta: false,
        references: DigestReferences::Target,
    };
    let rows = [
        Hostile {
            entries: 5_000,
            layers: 5,
            urls: 9_999,
            are_absent: true,
            is_delta: true,
            ..plain.clone()
        },
        Hostile {
            names: 256,
            layers: 9_999,
            ..plain.clone()
        },
        Hostile {
            layers: 9_999,
            text: 1 << 20,
            are_absent: true,
            ..plain
        },
    ];
    for hostile in rows {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hostile.tar");
        write(&path, &hostile);
        let taken = decide(&path, hostile.references);
        assert!(taken < MOST_MEMORY, "{} MiB for {hostile:?}", taken >> 20);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_bundle_says_deciding_about_it_takes_bounded_memory(hostile in hostile()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hostile.tar");
        write(&path, &hostile);
        let taken = decide(&path, hostile.references);
        prop_assert!(taken < MOST_MEMORY, "{} MiB", taken >> 20);
    }
}
