//! The memory of the program, for very large and odd bundles.
//!
//! The unit's memory limit is based on these figures. A normal test run leaves out the long
//! versions. Run them with `cargo test -p airgapd --test scenarios -- --ignored memory`.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bundle::Compression;
use bundle::fixtures::{Data, Image, Layer, Layout, digest_of};
use fake_containerd::FakeConfig;
use lab::Generation;
use serde_json::json;

use crate::support::bundles::{self, image, native};
use crate::support::node::{Answer, peak_memory};
use crate::support::tools::{run, tool};
use crate::support::{Node, Place, Target, on_the_fake, run_on, unique, wait_for};

/// Most memory of a daemon for any import, in bytes.
const MOST: u64 = 96 << 20;

const MEBIBYTE: usize = 1 << 20;

/// Returns bytes that no codec can compress (xorshift64).
fn noise(length: usize, mut state: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// Returns an image of `mebibytes` MiB: 64 of noise, and the rest zeros.
fn large(name: &str, mebibytes: usize) -> Image {
    let noise = (1..=4).map(|seed| Layer::new(noise(16 * MEBIBYTE, seed)));
    let zeros = Layer::zeros(((mebibytes - 64) * MEBIBYTE) as u64);
    let image = Image::new(name).platform(native()).layer(unique());
    noise.chain([zeros]).fold(image, Image::with_layer)
}

/// Returns the peak memory of the daemon during the import of a file, in bytes.
fn peak_of_importing(target: &Target, file: &str, name: &str, write: impl FnOnce(&Path)) -> u64 {
    let node = Node::on(target);
    write(&node.images().join(file));
    let daemon = node.start();
    wait_for(Duration::from_secs(300), "the image", || {
        target.record(name).is_some() && target.leases().is_empty()
    });
    let peak = peak_memory(daemon.pid()).unwrap();
    daemon.finish(target);
    peak
}

fn import_compressed(target: &Target, mebibytes: usize) {
    for codec in [Compression::Gzip, Compression::Zstd] {
        let target = target.elsewhere();
        let name = "registry.test/large:1";
        let peak = peak_of_importing(&target, "large", name, |path| {
            let mut file = BufWriter::new(File::create(path).unwrap());
            let archive = bundles::layout([large(name, mebibytes)]).build();
            archive.write_compressed(codec, &mut file).unwrap();
            file.flush().unwrap();
        });
        assert!(peak < MOST, "{codec}: {peak} bytes resident at the peak");
    }
}

#[test]
fn a_compressed_bundle_of_256_mebibytes_is_imported_in_less_than_96() {
    run_on(Place::Real(Generation::V2_1), |target| {
        import_compressed(target, 256);
    });
}

#[test]
fn a_compressed_bundle_of_a_gibibyte_is_imported_in_less_than_96_mebibytes() {
    run_on(Place::Real(Generation::V2_1), |target| {
        import_compressed(target, 1024);
    });
}

/// Most memory of an import through a pipe, in bytes.
const MOST_OF_A_PIPE: u64 = 64 << 20;

/// Most bytes of file systems' own blocks that count as written by an import.
///
/// The first read of a new file sets its access time. A file system without a journal counts the
/// changed block of 4 KiB to the reader. ext4 does.
const MOST_METADATA: u64 = 64 << 10;

/// Returns the bytes that a process has written into files so far (proc_pid_io(5)), with
/// [metadata](MOST_METADATA).
fn written_to_disks(pid: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes:"));
    line.unwrap().trim().parse().unwrap()
}

/// A form of a pipe, by the order of its entries.
type Form = (&'static str, bundles::Arrange);

const DOCUMENTS_FIRST: Form = ("documents first", bundles::documents_first);
const BLOBS_FIRST: Form = ("blobs first", |archive| archive);

/// Imports bundles of each form and codec. No two of them share a layer, since containerd would not
/// read the bytes of a layer that it has.
fn import_through_a_pipe(target: &Target, mebibytes: usize, forms: &[Form], codecs: &[Compression]) {
    let kinds = forms
        .iter()
        .flat_map(|form| codecs.iter().map(move |codec| (*form, *codec)));
    for (kind, ((form, make), codec)) in kinds.enumerate() {
        let kind = kind + 2 * form.len();
        let target = target.elsewhere();
        let node = Node::on(&target);
        let name = "registry.test/piped/large:1";
        let image = (0..4).fold(Image::new(name).platform(native()), |image, seed| {
            image.with_layer(Layer::new(noise(16 * MEBIBYTE, 1000 + 10 * kind as u64 + seed)))
        });
        let zeros = ((mebibytes - 64) * MEBIBYTE + 4096 * kind) as u64;
        let archive = make(bundles::layout([image.with_layer(Layer::zeros(zeros))]).build());
        // The kernel does not count files in memory as written, so the spool is forbidden, too.
        let mut child = node.begin_to_pipe(&["--spool", "0", "-"]);
        let mut stdin = BufWriter::new(child.stdin.take().unwrap());
        let written = archive.write_compressed(codec, &mut stdin);
        if let Err(error) = written.and_then(|()| stdin.flush()) {
            drop(stdin.into_parts());
            let answer: Answer = child.wait_with_output().unwrap().into();
            panic!("{form}, {codec}: the program ended early: {error}: {answer:?}");
        }
        // The program waits for the end of the pipe, and has read almost all of it.
        let (peak, written) = (peak_memory(child.id()).unwrap(), written_to_disks(child.id()));
        drop(stdin);
        let answer: Answer = child.wait_with_output().unwrap().into();
        let sent = answer.exits(0).bundle()["blobs"]["sent_bytes"].as_u64().unwrap();
        assert!(
            sent > (mebibytes * MEBIBYTE) as u64,
            "{form}, {codec}: {sent} bytes sent"
        );
        assert!(target.record(name).is_some() && target.leases().is_empty());
        assert!(
            peak < MOST_OF_A_PIPE,
            "{form}, {codec}: {peak} bytes resident at the peak"
        );
        assert!(
            written <= MOST_METADATA,
            "{form}, {codec}: {written} bytes written into files"
        );
    }
}

#[test]
fn a_bundle_of_half_a_gibibyte_goes_through_a_pipe_in_64_mebibytes_and_into_no_file() {
    run_on(Place::Real(Generation::V2_1), |target| {
        let codecs = [Compression::Gzip, Compression::Zstd];
        import_through_a_pipe(target, 512, &[DOCUMENTS_FIRST, BLOBS_FIRST], &codecs);
    });
}

/// The codec of ten gibibytes of zeros. zstd makes them so small that the program takes them for a
/// decompression bomb (`limits.expansion`).
const OF_TEN_GIBIBYTES: Compression = Compression::Gzip;

#[test]
#[ignore = "takes minutes and 11 GB of disk"]
fn ten_gibibytes_with_documents_first_go_through_a_pipe_in_64_mebibytes() {
    run_on(Place::Real(Generation::V2_1), |target| {
        import_through_a_pipe(target, 10 << 10, &[DOCUMENTS_FIRST], &[OF_TEN_GIBIBYTES]);
    });
}

#[test]
#[ignore = "takes minutes and 11 GB of disk"]
fn ten_gibibytes_with_blobs_first_go_through_a_pipe_in_64_mebibytes() {
    run_on(Place::Real(Generation::V2_1), |target| {
        import_through_a_pipe(target, 10 << 10, &[BLOBS_FIRST], &[OF_TEN_GIBIBYTES]);
    });
}

/// Returns the memory in bytes above which the kernel reclaims memory from the unit
/// (`MemoryHigh=`).
fn memory_high() -> u64 {
    let unit = include_str!("../systemd/airgapd.service");
    let value = unit.lines().find_map(|line| line.strip_prefix("MemoryHigh="));
    let mebibytes = value.and_then(|value| value.strip_suffix('M')).expect("in MiB");
    mebibytes.parse::<u64>().expect("a number") << 20
}

/// A frame with the largest accepted window, as `zstd --long=27` makes it of larger input. It takes
/// 128 MiB more than other frames. A third of the unit's memory stays free.
#[test]
fn the_largest_window_fits_into_the_memory_that_the_unit_allows() {
    let Some(zstd) = tool("zstd") else { return };
    run_on(Place::Real(Generation::V2_1), |target| {
        let name = "registry.test/wide:1";
        let folder = tempfile::tempdir().unwrap();
        let peak = peak_of_importing(target, "wide.tar.zst", name, |path| {
            let plain = folder.path().join("wide.tar");
            bundles::write(&plain, [large(name, 256)]);
            let mut compress = Command::new(zstd);
            run(compress
                .args(["-q", "-1", "--long=27"])
                .arg(&plain)
                .arg("-o")
                .arg(path));
        });
        assert!(peak > 128 << 20, "{peak} bytes: the window was not used");
        assert!(peak < memory_high() / 3 * 2, "{peak} of {} bytes", memory_high());
    });
}

/// Writes a bundle with `entries` additional entries of one byte each.
fn write_many(path: &Path, name: &str, entries: usize) {
    let mut archive = bundles::layout([image(name)]).build();
    for n in 0..entries {
        archive.add(&format!("entry-{n}"), vec![b'x']);
    }
    let mut file = BufWriter::new(File::create(path).unwrap());
    archive.write_compressed(Compression::Gzip, &mut file).unwrap();
    file.flush().unwrap();
}

fn import_with_many_entries(target: &Target, entries: usize) -> u64 {
    let name = "registry.test/many:1";
    peak_of_importing(target, "many", name, |path| write_many(path, name, entries))
}

/// Each entry costs 72 bytes: its name, its offset, its digest.
#[test]
fn an_entry_of_a_compressed_bundle_costs_less_than_a_hundred_bytes() {
    run_on(Place::Fake, |target| {
        let few = import_with_many_entries(&target.elsewhere(), 10_000);
        let many = import_with_many_entries(&target.elsewhere(), 120_000);
        let each = many.saturating_sub(few) / 110_000;
        assert!(each < 100, "{each} bytes for each entry: {few} and {many} in all");
    });
}

#[test]
fn as_many_entries_as_a_bundle_may_have_fit_into_96_mebibytes() {
    run_on(Place::Fake, |target| {
        let peak = import_with_many_entries(target, 999_000);
        assert!(peak < MOST, "{peak} bytes resident at the peak");
    });
}

/// The demands of a hostile bundle.
struct Greed {
    /// Number of entries of one block each.
    entries: usize,
    /// Number of configs of a mebibyte each.
    documents: usize,
    /// Number of layers whose descriptors have ten thousand `urls` each.
    crowded_layers: usize,
    /// Binary logarithm of the window.
    window_log: u32,
}

/// Writes a whole bundle with these demands. Its file has some MiB.
fn write_greedy(path: &Path, name: &str, greed: &Greed) {
    let descriptor = |media_type: &str, bytes: &[u8]| {
        json!({
            "mediaType": format!("application/vnd.oci.image.{media_type}"),
            "digest": digest_of(bytes),
            "size": bytes.len(),
        })
    };
    let mut archive = Layout::new().build();
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", digest_of(bytes).digest());
    let layer = unique().into_bytes();
    let mut crowded = descriptor("layer.v1.tar", &layer);
    crowded["urls"] = json!(vec!["u"; 9_999]);
    let mut entries = Vec::new();
    for n in 0..=greed.documents {
        let layers = if n == 0 { greed.crowded_layers } else { 0 };
        let config = json!({
            "os": "linux",
            "architecture": native().split('/').nth(1),
            "rootfs": {"type": "layers", "diff_ids": vec![digest_of(&layer); layers]},
            "padding": format!("{n}{}", "x".repeat(MEBIBYTE)),
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "config": descriptor("config.v1+json", &config),
            "layers": vec![&crowded; layers],
        });
        let manifest = manifest.to_string().into_bytes();
        let mut entry = descriptor("manifest.v1+json", &manifest);
        entry["annotations"] = json!({"io.containerd.image.name": format!("{name}{n}")});
        entries.push(entry);
        for bytes in [config, manifest] {
            archive.add(&blob(&bytes), bytes);
        }
    }
    archive.add(&blob(&layer), layer);
    archive.set("index.json", json!({"manifests": entries}).to_string());
    archive.add("window", Data::zeros(160 << 20));
    for n in 0..greed.entries {
        archive.add(&format!("entry-{n}"), Vec::new());
    }
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain.tar");
    archive.write_to(&plain);
    let zstd = tool("zstd").expect("zstd is available");
    let long = format!("--long={}", greed.window_log);
    run(Command::new(zstd)
        .args(["-q", "-1", &long])
        .arg(&plain)
        .arg("-o")
        .arg(path));
}

/// Returns the memory in bytes above which the kernel kills the daemon (`MemoryMax=`).
fn memory_max() -> u64 {
    let unit = include_str!("../systemd/airgapd.service");
    let value = unit.lines().find_map(|line| line.strip_prefix("MemoryMax="));
    let mebibytes = value.and_then(|value| value.strip_suffix('M')).expect("in MiB");
    mebibytes.parse::<u64>().expect("a number") << 20
}

/// The most that the limits allow for one bundle: entries, documents, their content, and the
/// window.
const ALL: Greed = Greed {
    entries: 500_000,
    documents: 26,
    crowded_layers: 85,
    window_log: 27,
};

/// The most that the limits allow beside another bundle.
const BESIDE: Greed = Greed {
    entries: 100_000,
    documents: 12,
    crowded_layers: 27,
    window_log: 25,
};

#[test]
fn the_worst_bundle_beside_the_worst_small_one_stays_within_the_units_memory() {
    if tool("zstd").is_none() {
        return;
    }
    run_on(Place::Fake, |target| {
        let node = Node::on(target);
        for (file, greed) in [("all.tar.zst", &ALL), ("beside.tar.zst", &BESIDE)] {
            write_greedy(&node.path(file), &format!("registry.test/{file}:"), greed);
        }
        let daemon = node.start();
        for file in ["all.tar.zst", "beside.tar.zst"] {
            fs::rename(node.path(file), node.images().join(file)).unwrap();
        }
        let images = ALL.documents + BESIDE.documents + 2;
        wait_for(Duration::from_secs(300), "all images", || {
            target.names().len() == 2 * images && target.leases().is_empty()
        });
        let peak = peak_memory(daemon.pid()).unwrap();
        daemon.finish(target);
        assert!(
            peak < memory_max(),
            "{} of {} MiB",
            peak >> 20,
            memory_max() >> 20
        );
    });
}

/// Measures the peak of the daemon, from the reading of the bundle to the record.
fn two_gibibytes_are_imported_in_64_mebibytes(_: &Target) {
    let target = Target::fake(FakeConfig {
        discard_data_above: Some(1 << 20),
        ..FakeConfig::default()
    });
    import_two_gibibytes(&target);
}

fn import_two_gibibytes(target: &Target) {
    let node = Node::on(target);
    let name = "registry.test/huge:1";
    let huge = Image::new(name)
        .platform(native())
        .layer(unique())
        .with_layer(Layer::zeros(2 << 30));
    let archive = bundles::write(&node.images().join("huge.tar"), [huge]);
    let daemon = node.start();
    wait_for(Duration::from_secs(300), "the image", || {
        target.record(name).is_some()
    });
    let peak = crate::support::node::peak_memory(daemon.pid()).unwrap();
    assert!(peak < 64 << 20, "{peak} bytes resident at the peak");
    let layer = archive.images[0].manifests[0].layers[1].to_string();
    assert!(target.digests().contains(&layer));
    daemon.finish(target);
    target.assert_tidy();
}

/// One run on a real containerd is enough, since the memory depends on nothing that differs between
/// them.
#[test]
fn two_gibibytes_are_imported_in_64_mebibytes_by_a_real_containerd() {
    crate::support::run_on(Place::Real(Generation::V2_1), import_two_gibibytes);
}

on_the_fake! {
    two_gibibytes_are_imported_in_64_mebibytes,
}
