//! The bundle of the demonstration: three images for three platforms that share a base, as a cluster's would.
//!
//! It is written from scratch and not with the project's own bundle code, so that what the demonstration imports owes
//! nothing to what imports it. An OCI image layout in a plain tar, about 10 MiB.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// Bytes of filler in each platform's base layer, so that the bundle as a whole has a size worth timing.
const BASE_FILLER: usize = 2 << 20;

/// Bytes of filler in each image's own layer.
const OWN_FILLER: usize = 128 << 10;

/// The platforms of every image: architecture and variant of Linux.
pub const PLATFORMS: [(&str, Option<&str>); 3] =
    [("amd64", None), ("arm64", Some("v8")), ("arm", Some("v7"))];

/// The image that says hello and ends.
pub const HELLO: &str = "registry.example/demo/hello:1.0";

/// The image that waits until it is stopped; it can be the sandbox image that CRI starts pods with.
pub const PAUSE: &str = "registry.example/demo/pause:1.0";

/// The names of the images.
pub const IMAGES: [&str; 3] = [HELLO, "registry.example/demo/clock:1.0", PAUSE];

/// What was written.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The bundle's size in bytes.
    pub size: u64,
    /// The digests of those blobs.
    pub digests: Vec<String>,
}

/// Writes the bundle. Its images run on this machine with the given statically linked busybox.
///
/// # Errors
///
/// When busybox cannot be read or the bundle cannot be written.
pub fn write(path: &Path, busybox: &Path) -> Result<Summary> {
    let busybox = fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    let mut layout = Layout::default();
    let bases: Vec<_> = PLATFORMS
        .iter()
        .map(|platform| base_layer(platform.0, &busybox))
        .collect();
    let entries: Vec<_> = IMAGES
        .iter()
        .map(|name| image(&mut layout, name, &bases))
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let file = layout.write_tar(file, &index)?;
    Ok(Summary {
        size: file.metadata()?.len(),
        digests: layout.blobs.into_iter().map(|(digest, _)| digest).collect(),
    })
}

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// One image: its platforms' manifests below an index. Gives the entry for `index.json`.
fn image(layout: &mut Layout, name: &str, bases: &[Vec<u8>]) -> Value {
    let manifests: Vec<_> = PLATFORMS
        .iter()
        .zip(bases)
        .map(|(platform, base)| manifest(layout, name, *platform, base))
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    let mut entry = layout.add_document(INDEX, &index);
    entry["annotations"] = json!({
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rsplit(':').next(),
    });
    entry
}

fn manifest(layout: &mut Layout, name: &str, platform: (&str, Option<&str>), base: &[u8]) -> Value {
    let (architecture, variant) = platform;
    let own = own_layer(name, architecture);
    let mut platform = json!({"os": "linux", "architecture": architecture});
    if let Some(variant) = variant {
        platform["variant"] = variant.into();
    }
    let mut config = platform.clone();
    config["config"] = json!({
        "Entrypoint": ["/bin/sh", "-c", script(name)],
        "Env": ["PATH=/bin"],
    });
    config["rootfs"] = json!({"type": "layers", "diff_ids": [digest_of(base), digest_of(&own)]});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": layout.add_document(CONFIG, &config),
        "layers": [layout.add(LAYER, base.to_vec()), layout.add(LAYER, own)],
    });
    let mut descriptor = layout.add_document(MANIFEST, &manifest);
    descriptor["platform"] = platform;
    descriptor
}

/// What the container does.
fn script(name: &str) -> &'static str {
    match name {
        HELLO => "cat /etc/hello; echo \"I run on $(uname -m), kernel $(uname -r).\"",
        PAUSE => "trap exit TERM INT; while true; do sleep 3600 & wait; done",
        _ => "cat /etc/hello; date",
    }
}

/// busybox with its usual names where it runs, a stand-in for it elsewhere; and filler.
fn base_layer(architecture: &str, busybox: &[u8]) -> Vec<u8> {
    let mut layer = LayerTar::new();
    layer.folder("bin/");
    if architecture == native_architecture() {
        layer.file("bin/busybox", busybox, 0o755);
        for applet in ["sh", "cat", "date", "uname", "echo", "ls", "sleep"] {
            layer.link(&format!("bin/{applet}"), "busybox");
        }
    } else {
        layer.file(
            "bin/busybox",
            format!("a busybox for {architecture}\n").as_bytes(),
            0o755,
        );
    }
    layer.file("filler", &filler(architecture, BASE_FILLER), 0o644);
    layer.finish()
}

fn own_layer(name: &str, architecture: &str) -> Vec<u8> {
    let mut layer = LayerTar::new();
    layer.folder("etc/");
    layer.file(
        "etc/hello",
        format!("Hello from {name}, without any registry.\n").as_bytes(),
        0o644,
    );
    layer.file(
        "own-filler",
        &filler(&format!("{name}/{architecture}"), OWN_FILLER),
        0o644,
    );
    layer.finish()
}

/// This machine's architecture as the OCI image specification spells it.
fn native_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Bytes that look like compressed data and depend on the seed only.
fn filler(seed: &str, length: usize) -> Vec<u8> {
    let mut block = Sha256::digest(seed);
    let mut bytes = Vec::with_capacity(length + block.len());
    while bytes.len() < length {
        bytes.extend_from_slice(&block);
        block = Sha256::digest(block);
    }
    bytes.truncate(length);
    bytes
}

fn digest_of(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// The blobs of an OCI image layout, each once, in the order in which they were added.
#[derive(Default)]
struct Layout {
    blobs: Vec<(String, Vec<u8>)>,
}

impl Layout {
    fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = digest_of(&bytes);
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        if !self.blobs.iter().any(|(known, _)| *known == digest) {
            self.blobs.push((digest, bytes));
        }
        descriptor
    }

    fn add_document(&mut self, media_type: &str, document: &Value) -> Value {
        self.add(media_type, document.to_string().into_bytes())
    }

    fn write_tar(&self, file: File, index: &Value) -> io::Result<File> {
        let mut tar = Builder::new(io::BufWriter::new(file));
        append(
            &mut tar,
            "oci-layout",
            br#"{"imageLayoutVersion":"1.0.0"}"#,
            0o644,
        )?;
        for (digest, bytes) in &self.blobs {
            append(
                &mut tar,
                &format!("blobs/{}", digest.replace(':', "/")),
                bytes,
                0o644,
            )?;
        }
        append(&mut tar, "index.json", index.to_string().as_bytes(), 0o644)?;
        tar.into_inner()?
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
    }
}

/// A layer's tar in memory.
struct LayerTar(Builder<Vec<u8>>);

impl LayerTar {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn folder(&mut self, path: &str) {
        let mut header = header(EntryType::Directory, 0, 0o755);
        self.0
            .append_data(&mut header, path, io::empty())
            .expect("memory takes every write");
    }

    fn file(&mut self, path: &str, bytes: &[u8], mode: u32) {
        append(&mut self.0, path, bytes, mode).expect("memory takes every write");
    }

    fn link(&mut self, path: &str, target: &str) {
        let mut header = header(EntryType::Symlink, 0, 0o777);
        self.0
            .append_link(&mut header, path, target)
            .expect("memory takes every write");
    }

    fn finish(self) -> Vec<u8> {
        self.0.into_inner().expect("memory takes every write")
    }
}

fn append(tar: &mut Builder<impl Write>, path: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut header = header(EntryType::Regular, bytes.len() as u64, mode);
    tar.append_data(&mut header, path, bytes)
}

fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Read;

    use super::*;

    #[test]
    fn every_blob_is_written_once_under_its_digest() {
        let folder = tempfile::tempdir().unwrap();
        let (busybox, path) = (folder.path().join("busybox"), folder.path().join("bundle.tar"));
        fs::write(&busybox, "not really").unwrap();
        let summary = write(&path, &busybox).unwrap();
        let mut blobs = BTreeSet::new();
        for entry in tar::Archive::new(File::open(&path).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            if let Some(digest) = name.strip_prefix("blobs/sha256/") {
                assert_eq!(digest_of(&bytes), format!("sha256:{digest}"));
                assert!(blobs.insert(format!("sha256:{digest}")), "{digest} twice");
            }
        }
        assert_eq!(blobs, summary.digests.into_iter().collect());
        // Three bases, and of each image an index and per platform a manifest, a config and a layer.
        assert_eq!(blobs.len(), 3 + 3 * (1 + 3 * 3));
    }
}
