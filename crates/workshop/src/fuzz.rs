//! `cargo xtask fuzz`: the fuzz targets, on a seed corpus made by code.
//!
//! They need a nightly compiler and cargo-fuzz, so they are a workspace of their own and no part of the tests; the
//! properties that run with the tests cover the same ground on the stable toolchain, less deeply.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bundle::Compression;
use bundle::fixtures::{Archive, Image, Layout, Manifest, Node};
use lab::workspace;

use xtask::checks::{cargo_tool, step};

/// The targets in `fuzz/fuzz_targets`, and how long their inputs may grow, in bytes.
const TARGETS: [(&str, u32); 4] = [
    ("reader", 64 << 10),
    ("documents", 8 << 10),
    ("references", 512),
    ("platforms", 256),
];

/// Runs every target for its share of `minutes`, or one of them for all of it.
///
/// # Errors
///
/// A crash, a leak, a timeout or too much memory: libFuzzer has said where the input lies.
pub(crate) fn run(minutes: u64, only: Option<&str>) -> Result<()> {
    let targets: Vec<_> = TARGETS
        .iter()
        .filter(|(name, _)| only.is_none_or(|only| only == *name))
        .collect();
    if targets.is_empty() {
        bail!(
            "there is no such target; there are {}",
            TARGETS.map(|(name, _)| name).join(", ")
        );
    }
    let cargo_fuzz = cargo_tool("cargo-fuzz", CARGO_FUZZ)?;
    seed(&workspace().join("fuzz/corpus"))?;
    let seconds = minutes * 60 / targets.len() as u64;
    for (name, longest) in targets {
        step(&format!("fuzzing {name} for {seconds} s"));
        let status = std::process::Command::new(&cargo_fuzz)
            .current_dir(workspace())
            .env("RUSTUP_TOOLCHAIN", "nightly")
            .args(["run", name, "--"])
            .args([
                format!("-max_total_time={seconds}"),
                format!("-max_len={longest}"),
            ])
            .args(["-timeout=10", "-rss_limit_mb=512", "-print_final_stats=1"])
            .status()
            .with_context(|| format!("cannot run {}", cargo_fuzz.display()))?;
        if !status.success() {
            bail!("target {name} found something; its input lies in fuzz/artifacts/{name}");
        }
    }
    Ok(())
}

const CARGO_FUZZ: &str = "0.13.2";

/// Writes a small corpus for each target, so that the fuzzer starts behind the first checks.
fn seed(corpus: &Path) -> Result<()> {
    for (at, archive) in archives().into_iter().enumerate() {
        write(corpus, "reader", &format!("plain-{at}"), &archive.to_bytes())?;
        for codec in CODECS {
            write(
                corpus,
                "reader",
                &format!("{codec}-{at}"),
                &archive.to_compressed(codec),
            )?;
        }
        write(
            corpus,
            "reader",
            &format!("sparse-{at}"),
            &with_a_sparse_file(&archive),
        )?;
    }
    for (at, (kind, document)) in documents().into_iter().enumerate() {
        write(
            corpus,
            "documents",
            &at.to_string(),
            &[&[kind], document.as_slice()].concat(),
        )?;
    }
    for (at, name) in NAMES.iter().enumerate() {
        for target in ["references", "platforms"] {
            write(corpus, target, &at.to_string(), name.as_bytes())?;
        }
    }
    Ok(())
}

fn write(corpus: &Path, target: &str, name: &str, bytes: &[u8]) -> Result<()> {
    let folder: PathBuf = corpus.join(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(format!("seed-{name}")), bytes)
        .with_context(|| format!("cannot write a seed of {target}"))
}

const CODECS: [Compression; 5] = [
    Compression::Gzip,
    Compression::Zstd,
    Compression::Xz,
    Compression::Lz4,
    Compression::Bzip2,
];

/// Bundles of every format, small.
fn archives() -> Vec<Archive> {
    let image = || {
        Image::new("r.test/a:1")
            .platform("linux/amd64")
            .layer(b"amd64")
            .platform("linux/arm64/v8")
            .layer(b"arm64")
    };
    let nested = Node::Index(vec![Node::Index(vec![
        Manifest::new("linux/amd64").layer(b"x".to_vec()).into(),
    ])]);
    let layouts = [
        Layout::new().image(image()),
        Layout::docker().image(image()),
        Layout::hybrid().image(image()),
        Layout::new().image(Image::new("r.test/nested:1").root(nested)),
    ];
    let mut archives: Vec<_> = layouts.iter().map(Layout::build).collect();
    let mut prefixed = Layout::new().image(image()).build();
    prefixed.prefix("./");
    archives.push(prefixed);
    archives
}

/// The archive with its first file as a sparse one without holes (GNU tar manual, old GNU format).
fn with_a_sparse_file(archive: &Archive) -> Vec<u8> {
    let mut bytes = archive.to_bytes();
    let size = archive.bytes_of(&archive.entries[0].name).len();
    let header = &mut bytes[..512];
    header[156] = b'S';
    header[386..410].copy_from_slice(format!("{:011o}\0{size:011o}\0", 0).as_bytes());
    header[483..495].copy_from_slice(format!("{size:011o}\0").as_bytes());
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes
}

/// Documents of good bundles, each with the number that says in whose place it stands.
fn documents() -> Vec<(u8, Vec<u8>)> {
    let image = Image::new("r.test/a:1").platform("linux/amd64").layer(b"x");
    let archive = Layout::hybrid().image(image).build();
    let manifest = archive.name_of(&archive.images[0].manifests[0].digest);
    let place = |kind: u8, name: &str| (kind, archive.bytes_of(name));
    let shouted = archive.bytes_of("index.json").to_ascii_uppercase();
    vec![
        (0, shouted),
        place(0, "index.json"),
        place(1, "manifest.json"),
        place(2, "index.json"),
        place(3, &manifest),
    ]
}

const NAMES: [&str; 10] = [
    "busybox",
    "r.test:5000/a/b:1.0",
    "[::1]:5000/a:1",
    "docker.io/library/a@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "a:1@sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
    "linux/amd64",
    "linux/arm64/v8",
    "arm/v7",
    "windows(10.0.17763)/amd64",
    "linux",
];

#[cfg(test)]
mod tests {
    use bundle::{Bundle, Limits};

    use super::*;

    #[test]
    fn the_seeds_with_sparse_files_are_good_bundles() {
        let folder = tempfile::tempdir().unwrap();
        for archive in archives() {
            let path = folder.path().join("seed.tar");
            fs::write(&path, with_a_sparse_file(&archive)).unwrap();
            let bundle = Bundle::open(&path, &Limits::default()).unwrap();
            assert_eq!(bundle.catalog().warnings, []);
            assert_eq!(bundle.catalog().images.len(), 1);
        }
    }
}
