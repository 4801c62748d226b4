//! The memory of a bundle's documents is bounded, whatever they contain. This is a separate
//! program, because the peak is that of the whole process.

use std::fs::{self, File};
use std::path::Path;
use std::sync::{Mutex, Once, PoisonError};

use airgapd_bundle::fixtures::{Layout, digest_of};
use airgapd_bundle::{Bundle, Compression, Limits};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Most memory in bytes that opening a bundle may take: the catalog within the limits, the largest
/// document as bytes and as parsed values, and documents of a compressed bundle.
const MOST_MEMORY: u64 = 192 << 20;

/// Content that a document repeats in thousands of places.
#[derive(Clone, Debug)]
enum Saying {
    /// Digests of layers.
    DiffIds(usize),
    Features(usize),
    Text(usize),
    Urls(usize),
    Annotations(usize),
}

impl Saying {
    fn texts(&self) -> Value {
        match self {
            Self::DiffIds(n) => json!(vec![format!("sha256:{}", "a".repeat(64)); *n]),
            Self::Features(n) | Self::Urls(n) => json!(vec![""; *n]),
            Self::Annotations(n) => (0..*n).map(|key| (format!("{key:x}"), json!(""))).collect(),
            Self::Text(n) => json!("x".repeat(*n)),
        }
    }

    fn member(&self) -> &'static str {
        match self {
            Self::DiffIds(_) => "rootfs",
            Self::Features(_) => "os.features",
            Self::Text(_) => "os.version",
            Self::Urls(_) => "urls",
            Self::Annotations(_) => "annotations",
        }
    }

    /// Adds the content to a descriptor, if it belongs there.
    fn in_descriptor(&self, mut descriptor: Value) -> Value {
        match self {
            Self::DiffIds(_) => {}
            Self::Features(_) | Self::Text(_) => {
                descriptor["platform"] =
                    json!({"os": "linux", "architecture": "amd64", self.member(): self.texts()});
            }
            Self::Urls(_) | Self::Annotations(_) => descriptor[self.member()] = self.texts(),
        }
        descriptor
    }

    fn config(&self) -> Vec<u8> {
        let said = match self {
            Self::DiffIds(_) => json!({"type": "layers", "diff_ids": self.texts()}),
            _ => self.texts(),
        };
        let config = json!({"os": "linux", "architecture": "amd64", self.member(): said});
        config.to_string().into_bytes()
    }
}

fn saying() -> impl Strategy<Value = Saying> {
    prop_oneof![
        (1..10_000_usize).prop_map(Saying::DiffIds),
        (1..10_000_usize).prop_map(Saying::Features),
        (1..6_000_000_usize).prop_map(Saying::Text),
        (1..10_000_usize).prop_map(Saying::Urls),
        (1..10_000_usize).prop_map(Saying::Annotations),
    ]
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({
        "mediaType": format!("application/vnd.oci.image.{media_type}"),
        "digest": digest_of(bytes),
        "size": bytes.len(),
    })
}

/// Writes a bundle of `manifests` manifests with `layers` layers each, and one config. The config,
/// the layers and the entries of the index have the given content.
fn write(file: &mut File, manifests: usize, layers: usize, [config, layer, entry]: &[Saying; 3]) {
    const DOCUMENT: usize = 6 << 20;
    let mut archive = Layout::new().build();
    let mut add = |bytes: Vec<u8>| {
        archive.add(&format!("blobs/sha256/{}", digest_of(&bytes).digest()), bytes);
    };
    let config = config.config();
    let entry = entry.in_descriptor(json!({}));
    let layer = layer.in_descriptor(descriptor("layer.v1.tar", b"layer"));
    let layers = layers.min(DOCUMENT / layer.to_string().len()).max(1);
    let manifests = manifests
        .min(DOCUMENT / (entry.to_string().len() + 200))
        .min(4 * DOCUMENT / (layers * layer.to_string().len()))
        .max(1);
    let mut entries = Vec::new();
    for n in 0..manifests {
        let manifest = json!({
            "schemaVersion": 2,
            "config": descriptor("config.v1+json", &config),
            "layers": vec![&layer; layers],
            "annotations": {"n": n.to_string()},
        });
        let manifest = manifest.to_string().into_bytes();
        let mut said = descriptor("manifest.v1+json", &manifest);
        said.as_object_mut()
            .unwrap()
            .extend(entry.as_object().unwrap().clone());
        entries.push(said);
        add(manifest);
    }
    add(config);
    archive.set("index.json", json!({ "manifests": entries }).to_string());
    archive.write_compressed(Compression::Zstd, file).unwrap();
}

fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Resets the peak to the memory that is taken now.
fn forget_peak() {
    fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// Runs the tests one at a time, because the peak is that of all tests of this program.
static ALONE: Mutex<()> = Mutex::new(());

fn taken_by(manifests: usize, layers: usize, sayings: &[Saying; 3]) -> u64 {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut file = tempfile::tempfile().unwrap();
    write(&mut file, manifests, layers, sayings);
    forget_peak();
    let before = peak();
    let bundle = Bundle::from_file(file, Path::new("hostile.tar.zst"), &Limits::default());
    let taken = peak();
    drop(bundle);
    taken.max(before)
}

/// Set when the fixed documents were tried. They come before all others: the allocator keeps memory
/// of earlier documents, and that memory would count.
static FIXED: Once = Once::new();

#[test]
fn a_small_file_of_documents_that_say_much_takes_little_memory() {
    FIXED.call_once(fixed_documents);
}

/// Without the account of their memory, these documents take from 270 MiB to 1.8 GiB.
fn fixed_documents() {
    let nothing = Saying::Text(1);
    let rows = [
        (715, 0, [Saying::DiffIds(9_999), nothing.clone(), nothing.clone()]),
        (
            2_000,
            0,
            [Saying::Text(1 << 20), nothing.clone(), nothing.clone()],
        ),
        (4, 200, [nothing.clone(), Saying::Urls(9_999), nothing]),
    ];
    for (manifests, layers, sayings) in rows {
        let taken = taken_by(manifests, layers, &sayings);
        assert!(
            taken < MOST_MEMORY,
            "{} MiB for {manifests} manifests",
            taken >> 20
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn whatever_documents_say_memory_is_bounded(
        manifests in prop_oneof![1_usize..10, 500_usize..5_000],
        layers in prop_oneof![0_usize..10, 500_usize..10_000],
        sayings in [saying(), saying(), saying()],
    ) {
        FIXED.call_once(fixed_documents);
        let taken = taken_by(manifests, layers, &sayings);
        prop_assert!(taken < MOST_MEMORY, "{} MiB", taken >> 20);
    }
}
