//! Writes airgapd's own container image as a bundle. For each processor it has a program and no
//! other file.
//!
//! Nodes that run a DaemonSet instead of a package use it. The bundle is a plain tar with
//! compressed layers, which every importer reads: the first node has to import it without airgapd.
//! The code is in the library because a test makes and runs such an image.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bundle::fixtures::digest_of;
use bundle::write::{Draft, DraftImage, Layout, Output, write as write_bundle};
use bundle::{BlobRef, Compression};
use flate2::GzBuilder;
use oci_spec::image::Digest;
use serde_json::{Value, json};

/// The repository of the image.
pub const REPOSITORY: &str = "ghcr.io/airgapd/airgapd";

/// Path of the program in the image. A container of the image runs it.
pub const PROGRAM: &str = "usr/bin/airgapd";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The files of the image for one platform.
#[derive(Clone, Debug)]
pub struct Variant {
    /// Go's name of the processor, as in `linux/arm64`.
    pub architecture: &'static str,
    /// Variant of the processor if it has variants, for example `v8`.
    pub variant: Option<&'static str>,
    /// Files as pairs of the path in the image, without a leading slash, and the source. Every user
    /// can read and run them.
    pub files: Vec<(String, PathBuf)>,
}

/// Writes the bundle of one image for these platforms and returns the image's name. The same files
/// make the same bytes.
///
/// # Errors
///
/// Returns an error if a file cannot be read or the bundle cannot be written.
pub fn write(path: &Path, version: &str, variants: &[Variant]) -> Result<String> {
    let mut blobs = Blobs::default();
    let manifests = variants
        .iter()
        .map(|variant| blobs.manifest(variant, version))
        .collect::<Result<Vec<_>>>()?;
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    let target = blobs.document(INDEX, &index)?;
    let name = format!("{REPOSITORY}:{version}");
    let draft = Draft {
        images: vec![DraftImage {
            names: vec![name.clone()],
            target: serde_json::from_value(target)?,
            platform: None,
            documents: blobs.documents.clone(),
            layers: blobs.layers.clone(),
            images: Vec::new(),
        }],
        ..Draft::default()
    };
    let mut output = BufWriter::new(Output::create(path)?);
    let mut feed = |blob: &BlobRef| -> io::Result<Box<dyn Read>> {
        let bytes = blobs.bytes.get(&blob.digest).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(io::Cursor::new(bytes.clone())))
    };
    write_bundle(&Layout::of(&draft)?, Compression::None, &mut output, &mut feed)?;
    output
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?
        .commit()?;
    Ok(name)
}

/// The blobs so far, in memory. They take some megabytes for each platform.
#[derive(Default)]
struct Blobs {
    documents: Vec<BlobRef>,
    layers: Vec<BlobRef>,
    bytes: HashMap<Digest, Vec<u8>>,
}

impl Blobs {
    /// Makes the layer, config and manifest of one platform. Returns the manifest's descriptor for
    /// the index.
    fn manifest(&mut self, variant: &Variant, version: &str) -> Result<Value> {
        let files = layer(&variant.files)?;
        let diff_id = digest_of(&files).to_string();
        let mut packed = GzBuilder::new().write(Vec::new(), flate2::Compression::default());
        packed.write_all(&files)?;
        let (layer, blob) = self.add(LAYER, packed.finish()?)?;
        self.layers.push(blob);
        let mut platform = json!({"architecture": variant.architecture, "os": "linux"});
        if let Some(level) = variant.variant {
            platform["variant"] = level.into();
        }
        let mut config = platform.clone();
        config["config"] = json!({
            "Entrypoint": [format!("/{PROGRAM}")],
            "Cmd": ["run"],
            "Labels": {"org.opencontainers.image.title": "airgapd", "org.opencontainers.image.version": version},
        });
        config["rootfs"] = json!({"type": "layers", "diff_ids": [diff_id]});
        let config = self.document(CONFIG, &config)?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer],
        });
        let mut descriptor = self.document(MANIFEST, &manifest)?;
        descriptor["platform"] = platform;
        Ok(descriptor)
    }

    fn document(&mut self, media_type: &str, document: &Value) -> Result<Value> {
        let (descriptor, blob) = self.add(media_type, serde_json::to_vec(document)?)?;
        self.documents.push(blob);
        Ok(descriptor)
    }

    fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Result<(Value, BlobRef)> {
        let digest = digest_of(&bytes);
        let blob = BlobRef {
            digest: digest.clone(),
            size: bytes.len() as u64,
        };
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": blob.size});
        self.bytes.insert(digest, bytes);
        Ok((descriptor, blob))
    }
}

/// Returns a tar of the files and their folders, without owners and times.
fn layer(files: &[(String, PathBuf)]) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut folders: Vec<&Path> = files
        .iter()
        .flat_map(|(place, _)| Path::new(place).ancestors().skip(1))
        .filter(|folder| !folder.as_os_str().is_empty())
        .collect();
    folders.sort();
    folders.dedup();
    for folder in folders {
        let mut header = header(tar::EntryType::Directory, 0);
        archive.append_data(&mut header, folder, io::empty())?;
    }
    for (place, file) in files {
        let unreadable = || format!("cannot read {}", file.display());
        let size = fs::metadata(file).with_context(unreadable)?.len();
        let mut header = header(tar::EntryType::Regular, size);
        let opened = File::open(file).with_context(unreadable)?;
        archive.append_data(&mut header, place, opened)?;
    }
    Ok(archive.into_inner()?)
}

fn header(kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variant(architecture: &'static str, level: Option<&'static str>, program: &Path) -> Variant {
        Variant {
            architecture,
            variant: level,
            files: vec![(PROGRAM.to_owned(), program.to_owned())],
        }
    }

    #[test]
    fn the_bundle_has_one_whole_image_for_every_platform_and_is_the_same_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let (program, path) = (folder.path().join("program"), folder.path().join("image.tar"));
        fs::write(&program, "not really").unwrap();
        let variants = [
            variant("amd64", None, &program),
            variant("arm", Some("v7"), &program),
        ];
        let name = write(&path, "1.2.3", &variants).unwrap();
        let bundle = bundle::Bundle::open(&path, &bundle::Limits::default()).unwrap();
        let images = &bundle.catalog().images;
        assert_eq!(images.len(), 1);
        assert_eq!(images[0].names[0].as_str(), name);
        let bundle::Content::Index(children) = &images[0].root.content else {
            panic!("{:?}", images[0].root);
        };
        let platforms: Vec<_> = children
            .iter()
            .map(|child| child.platform.as_ref().unwrap().to_string())
            .collect();
        assert_eq!(platforms, ["linux/amd64", "linux/arm/v7"]);
        assert!(bundle.catalog().warnings.is_empty());

        let again = folder.path().join("again.tar");
        write(&again, "1.2.3", &variants).unwrap();
        assert!(fs::read(&path).unwrap() == fs::read(&again).unwrap());
    }

    #[test]
    fn a_layer_has_the_folders_of_its_files_before_them() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "x").unwrap();
        let files = ["usr/bin/airgapd", "lib64/ld.so"].map(|place| (place.to_owned(), file.clone()));
        let bytes = layer(&files).unwrap();
        let mut archive = tar::Archive::new(&*bytes);
        let names: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(
            names,
            ["lib64", "usr", "usr/bin", "usr/bin/airgapd", "lib64/ld.so"]
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let variants = [variant("amd64", None, Path::new("/nowhere/airgapd"))];
        let error = write(&folder.path().join("image.tar"), "1", &variants).unwrap_err();
        assert!(format!("{error:#}").contains("/nowhere/airgapd"), "{error:#}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
