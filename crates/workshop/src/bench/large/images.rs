//! Bundles of many bytes, many images and many layers.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context, Result, bail};
use bundle::fixtures::{Layer, LayerFile, Layout};
use rustix::fs::{Advice, fadvise};
use serde_json::{Value, json};

use super::super::bundles::{Noise, image};
use super::super::{Arguments, Bench, Contender, contender};
use super::{bench, rounds, table};

const MIB: usize = 1 << 20;
const MB: f64 = 1e6;

/// Largest share of the disk in percent that a case may fill.
const FULLEST: u64 = 88;

/// Size in bytes of the small bundle.
const SMALL: usize = 600 * 1_000_000;

/// Size in bytes of containerd's own disk, an ext4 with a journal.
const DISK: u64 = 5 << 30;

/// Imports a hundred images and six images of the same layers. Both bundles and containerd are on
/// the disk, and none of the bundle is in memory.
pub(super) fn of_the_disk(arguments: &Arguments, program: &Path) -> Result<String> {
    let bench = bench(arguments, program, false, None)?;
    let size = arguments.gigabytes * 1_000_000_000;
    let (large, small) = (
        bench.folder.path().join("large.tar"),
        bench.folder.path().join("small.tar"),
    );
    must_fit(bench.folder.path(), 2 * size as u64)?;
    write_on_the_disk(&small, 6, SMALL)?;
    write_on_the_disk(&large, 100, size)?;
    let contenders = [
        (Contender::Airgapd, &*small),
        (Contender::Airgapd, &*large),
        (Contender::CtrLocal, &*small),
        (Contender::CtrLocal, &*large),
        (Contender::Copy, &*small),
        (Contender::Copy, &*large),
    ];
    let samples = rounds(&bench, &contenders, |bundle| {
        rustix::fs::sync();
        Ok(fadvise(File::open(bundle)?, 0, None, Advice::DontNeed)?)
    })?;
    let speeds: Vec<Vec<f64>> = contenders
        .iter()
        .zip(&samples)
        .map(|((_, bundle), samples)| {
            let bytes = fs::metadata(bundle)?.len();
            #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
            let megabytes = bytes as f64 / MB;
            Ok(samples.iter().map(|sample| megabytes / sample.wall).collect())
        })
        .collect::<Result<_>>()?;
    let rows: Vec<_> = contenders
        .iter()
        .enumerate()
        .map(|(at, (contender, bundle))| {
            let small = &speeds[at / 2 * 2];
            let ratio = table::median(speeds[at].iter().zip(small).map(|(one, other)| one / other));
            let images = if *bundle == large {
                format!("{} GB", arguments.gigabytes)
            } else {
                "600 MB".to_owned()
            };
            let mut row = vec![format!("{images}, {}", contender.name())];
            row.push(format!("{:.0}", table::median(speeds[at].iter().copied())));
            row.push(format!("{ratio:.2}"));
            row.extend(table::usual(&samples[at]));
            row
        })
        .collect();
    Ok(table::table(
        &[&["", "MB/s", "against 600 MB"][..], &table::USUAL].concat(),
        &rows,
    ))
}

/// Imports a thousand small images.
pub(super) fn many(arguments: &Arguments, program: &Path) -> Result<String> {
    let bench = bench(arguments, program, false, Some(DISK))?;
    let path = bench.folder.path().join("many.tar");
    (0..1000)
        .fold(Layout::new(), |layout, number| {
            let name = format!("registry.example/thousand/app{number}:1");
            let file = LayerFile::new("file", Noise::of(&name).bytes(40 << 10));
            layout.image(image(&name, &[Layer::files([file])]))
        })
        .write_to(&path);
    against_ctr(
        &bench,
        &path,
        &[Contender::Airgapd, Contender::CtrLocal, Contender::Ctr],
    )
}

/// Imports an image of many layers.
pub(super) fn layers(arguments: &Arguments, program: &Path) -> Result<String> {
    let bench = bench(arguments, program, false, Some(DISK))?;
    let path = bench.folder.path().join("layers.tar");
    let name = "registry.example/deep/app:1";
    let layers: Vec<_> = (0..300)
        .map(|number| {
            let path = format!("file{number}");
            Layer::files([LayerFile::new(&path, Noise::of(&path).bytes(16 << 10))])
        })
        .collect();
    Layout::new().image(image(name, &layers)).write_to(&path);
    against_ctr(
        &bench,
        &path,
        &[
            Contender::Airgapd,
            Contender::CtrLocal,
            Contender::AirgapdUnpacking,
            Contender::CtrLocalUnpacking,
            Contender::Ctr,
        ],
    )
}

/// Imports a bundle in memory with each contender. airgapd's time is compared with each of them.
fn against_ctr(bench: &Bench, bundle: &Path, contenders: &[Contender]) -> Result<String> {
    let all: Vec<_> = contenders.iter().map(|contender| (*contender, bundle)).collect();
    let samples = rounds(bench, &all, |bundle| contender::rest(bench, bundle))?;
    let rows: Vec<_> = contenders
        .iter()
        .zip(&samples)
        .map(|(contender, theirs)| {
            let ratio = table::ratio(&samples[0], theirs, |sample| sample.wall);
            let mut row = vec![contender.name().to_owned(), format!("{ratio:.3}")];
            row.extend(table::usual(theirs));
            row
        })
        .collect();
    Ok(table::table(
        &[&["", "airgapd's share of its time"][..], &table::USUAL].concat(),
        &rows,
    ))
}

/// Returns an error if the disk of a folder would be fuller than [`FULLEST`] with these further
/// bytes.
fn must_fit(folder: &Path, bytes: u64) -> Result<()> {
    let stat = rustix::fs::statvfs(folder)?;
    let all = (stat.f_blocks - stat.f_bfree + stat.f_bavail) * stat.f_frsize;
    let used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize;
    if used + bytes > all / 100 * FULLEST {
        bail!(
            "the disk of {} would be more than {FULLEST} % full: use a smaller --gigabytes",
            folder.display()
        );
    }
    Ok(())
}

/// Writes a bundle of images with `size` bytes in all. An image has a layer of random bytes, and a
/// layer that compresses well. Images differ in size by a factor of three.
///
/// No more than one image is in memory.
fn write_on_the_disk(path: &Path, images: usize, size: usize) -> Result<()> {
    let random = Noise::of("random").bytes(MIB);
    let text = b"a line of a log that says the same as the line before\n".repeat(MIB / 54 + 1);
    let blocks = [random, text[..MIB].to_vec()];
    let mut target = BufWriter::with_capacity(MIB, File::create(path)?);
    let mut descriptors: Vec<Value> = Vec::new();
    let weight = |number: usize| 5 + number % 11;
    let weights: usize = (0..images).map(weight).sum();
    for number in 0..images {
        let share = size / weights * weight(number);
        let name = format!("registry.example/size{size}/app{number}:1");
        let layers = [share * 6 / 10, share * 4 / 10].map(|length| length.div_ceil(MIB));
        let layers: Vec<_> = layers
            .into_iter()
            .zip(&blocks)
            .map(|(length, block)| layer(&name, block, length))
            .collect();
        let mut archive = Layout::new().image(image(&name, &layers)).build();
        let index: Value = serde_json::from_slice(&archive.bytes_of("index.json"))?;
        let manifests = index["manifests"]
            .as_array()
            .context("an index lists manifests")?;
        descriptors.extend(manifests.iter().cloned());
        archive.remove("index.json").remove("oci-layout");
        archive.end_marker = false;
        archive.write(&mut target)?;
    }
    let mut rest = Layout::new().build();
    rest.set(
        "index.json",
        json!({"schemaVersion": 2, "manifests": descriptors}).to_string(),
    );
    rest.write(&mut target)?;
    let file = target.into_inner().map_err(io::Error::from)?;
    Ok(file.sync_all()?)
}

/// Returns a layer of so many files of a MiB. Each starts with its own name, so that no two layers
/// are equal.
fn layer(name: &str, block: &[u8], files: usize) -> Layer {
    Layer::files((0..files).map(|number| {
        let mut bytes = block.to_vec();
        let path = format!("file{number}");
        let mut start = &mut bytes[..];
        write!(start, "{name} {path} {}", block[0]).expect("a MiB has room for a name");
        LayerFile::new(&path, bytes)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_written_image_by_image_has_all_its_images() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.tar");
        write_on_the_disk(&path, 3, 12 * MIB).unwrap();
        let bundle = bundle::Bundle::open(&path, &bundle::Limits::default()).unwrap();
        assert_eq!(bundle.catalog().images.len(), 3);
    }

    #[test]
    fn a_bundle_for_a_full_disk_is_refused_before_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        must_fit(folder.path(), 1 << 60).unwrap_err();
    }
}
