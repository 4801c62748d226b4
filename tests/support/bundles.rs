//! Bundles with unique bytes, and the content that a node should have of them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bundle::fixtures::{Archive, BuiltImage, BuiltManifest, EntryKind, Image, Layer, LayerFile, Layout};

use super::{Node, unique};

/// Returns the platform of this machine's containerd.
pub fn native() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "linux/arm64/v8",
        _ => "linux/amd64",
    }
}

/// Platforms of a multi-platform bundle.
pub const PLATFORMS: [&str; 3] = ["linux/amd64", "linux/arm64/v8", "linux/arm/v7"];

/// Asserts that a list with the content digest is beside a new bundle. `airgapd inspect --digest`
/// prints the same line.
#[track_caller]
pub fn assert_listed(node: &Node, bundle: &Path) {
    let line = node
        .airgapd(["inspect", "--digest", &text(bundle)])
        .exits(0)
        .stdout;
    let list = std::fs::read_to_string(format!("{}.digest", bundle.display()));
    assert_eq!(list.expect("a list"), format!("airgapd-catalogs 1\n{line}"));
}

/// Returns an image for this machine with a unique layer.
pub fn image(name: &str) -> Image {
    multi_platform(name, &[native()])
}

/// Returns an image for this machine with a layer of `size` bytes, most of them zeros.
pub fn large(name: &str, size: usize) -> Image {
    let mut layer = unique().into_bytes();
    layer.resize(size, 0);
    Image::new(name).platform(native()).layer(layer)
}

/// Returns an image for this machine with busybox and unique bytes. A container can start from it.
pub fn runnable(name: &str, entrypoint: &[&str]) -> Image {
    let busybox = lab::parts::busybox().expect("Debian has a busybox");
    let files = [
        LayerFile::folder("bin/"),
        LayerFile::executable("bin/busybox", std::fs::read(busybox).expect("a file")),
        LayerFile::new("unique", unique()),
    ];
    Image::new(name)
        .platform(native())
        .with_layer(Layer::files(files))
        .entrypoint(entrypoint)
}

/// Returns an image for several platforms, each with a unique layer. Several platforms make an
/// index.
pub fn multi_platform(name: &str, platforms: &[&str]) -> Image {
    platforms.iter().fold(Image::new(name), |image, platform| {
        image.platform(platform).layer(unique())
    })
}

/// Writes a bundle.
pub fn write(path: &Path, images: impl IntoIterator<Item = Image>) -> Archive {
    layout(images).write_to(path)
}

/// Returns an OCI image layout of these images.
pub fn layout(images: impl IntoIterator<Item = Image>) -> Layout {
    images.into_iter().fold(Layout::new(), Layout::image)
}

/// Returns a Docker archive of these images.
pub fn docker(images: impl IntoIterator<Item = Image>) -> Layout {
    images.into_iter().fold(Layout::docker(), Layout::image)
}

/// Returns the digests of a manifest and of everything below it.
pub fn closure(manifest: &BuiltManifest) -> BTreeSet<String> {
    let below = manifest.layers.iter().chain([&manifest.config, &manifest.digest]);
    below.map(ToString::to_string).collect()
}

/// Returns the digests that this machine needs of the images: the targets, and the closures of its
/// platforms.
pub fn needed_here(images: &[BuiltImage]) -> BTreeSet<String> {
    needed(images, runs_here)
}

/// Returns the digests that a node needs of the images, if it runs these platforms.
pub fn needed(images: &[BuiltImage], runs: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let roots = images.iter().map(|image| image.root.to_string());
    let manifests = images.iter().flat_map(|image| &image.manifests);
    let taken = manifests.filter(|manifest| manifest.platform.as_ref().is_none_or(|p| runs(&p.to_string())));
    roots.chain(taken.flat_map(closure)).collect()
}

fn runs_here(platform: &str) -> bool {
    match native() {
        "linux/amd64" => platform == "linux/amd64",
        _ => platform.starts_with("linux/arm"),
    }
}

/// Returns the two records of an image with a tag: its name, and its repository with the digest.
pub fn records_of(name: &str, image: &BuiltImage) -> [String; 2] {
    let repository = name.rsplit_once(':').expect("the name has a tag").0;
    [name.to_owned(), format!("{repository}@{}", image.root)]
}

/// Returns the names of the records of several images.
pub fn all_records<'a>(images: impl IntoIterator<Item = (&'a str, &'a BuiltImage)>) -> BTreeSet<String> {
    images
        .into_iter()
        .flat_map(|(name, image)| records_of(name, image))
        .collect()
}

/// Returns a path as text, for arguments.
pub fn text(path: &Path) -> String {
    path.to_str().expect("test folders have plain names").to_owned()
}

/// Writes a bundle of one image. Once it is imported, the daemon has handled all earlier files.
pub fn marker(path: PathBuf) -> (PathBuf, String) {
    let name = format!("registry.test/marker-{}:1", unique());
    write(&path, [image(&name)]);
    (path, name)
}

/// Changes the order of an archive's entries.
pub type Arrange = fn(Archive) -> Archive;

/// Puts lists and documents before layers, like the bundles of this program.
pub fn documents_first(mut archive: Archive) -> Archive {
    let is_document = |kind: &EntryKind| match kind {
        EntryKind::File(data) => data.size() < 1 << 16 && data.to_bytes().first() == Some(&b'{'),
        _ => false,
    };
    let entries = std::mem::take(&mut archive.entries);
    let (mut first, last): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| is_document(&entry.kind));
    first.extend(last);
    archive.entries = first;
    archive
}
