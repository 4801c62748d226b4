//! The bundle of the demonstration: three images for three platforms that share a base, like the
//! images of a cluster.
//!
//! It is in the library because tests that run containers use its images too.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use bundle::fixtures::{Image, Layer, LayerFile, Layout};
use sha2::{Digest, Sha256};

/// Bytes of filler in each platform's base layer. They make a bundle of 10 MB, whose import takes
/// long enough to be timed.
const BASE_FILLER: usize = 2 << 20;

/// Bytes of filler in each image's own layer.
const OWN_FILLER: usize = 256 << 10;

/// The platforms of every image.
pub const PLATFORMS: [&str; 3] = ["linux/amd64", "linux/arm64/v8", "linux/arm/v7"];

/// The image that prints a greeting and exits.
pub const HELLO: &str = "registry.example/demo/hello:1.0";

/// The image that waits until it is stopped. CRI can start pods with it as their sandbox image.
pub const PAUSE: &str = "registry.example/demo/pause:1.0";

/// The names of the images.
pub const IMAGES: [&str; 3] = [HELLO, "registry.example/demo/clock:1.0", PAUSE];

/// The sound image of the bundle with a damaged one.
pub const SOUND: &str = "registry.example/update/sound:2.0";

/// The image with a damaged layer.
pub const DAMAGED: &str = "registry.example/update/damaged:2.0";

/// Writes the bundle, an OCI image layout in a plain tar, and returns the digests of its blobs.
///
/// Its images run on this machine with the given statically linked busybox.
///
/// # Errors
///
/// Returns an error if busybox cannot be read.
///
/// # Panics
///
/// Panics if the bundle cannot be written.
pub fn write(path: &Path, busybox: &Path) -> Result<Vec<String>> {
    let busybox = fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    let bases = PLATFORMS.map(|platform| base_layer(platform, &busybox));
    let layout = IMAGES
        .iter()
        .fold(Layout::new(), |layout, name| layout.image(image(name, &bases)));
    let archive = layout.write_to(path);
    let blobs = archive
        .entries
        .iter()
        .filter_map(|entry| entry.name.strip_prefix("blobs/"));
    Ok(blobs.map(|name| name.replace('/', ":")).collect())
}

/// Writes a bundle of two images for this machine. A layer of the second image has a flipped bit,
/// so that its digest is wrong.
///
/// # Errors
///
/// Returns an error if busybox cannot be read.
///
/// # Panics
///
/// Panics if the bundle cannot be written, or if the demonstration has no images for this
/// processor.
pub fn write_damaged(path: &Path, busybox: &Path) -> Result<()> {
    let busybox = fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    let platform = PLATFORMS
        .into_iter()
        .find(|platform| is_native(platform))
        .expect("the demonstration has images for this processor");
    let base = base_layer(platform, &busybox);
    let native = |name: &str| {
        Image::new(name)
            .platform(platform)
            .entrypoint(&["/bin/sh", "-c", script(name)])
            .with_layer(base.clone())
            .with_layer(own_layer(name, platform))
    };
    let mut archive = Layout::new().image(native(SOUND)).image(native(DAMAGED)).build();
    archive.corrupt(own_layer(DAMAGED, platform).digest());
    archive.write_to(path);
    Ok(())
}

fn image(name: &str, bases: &[Layer; 3]) -> Image {
    let tag = name.rsplit(':').next().unwrap_or_default();
    PLATFORMS.iter().zip(bases).fold(
        Image::unnamed().containerd_name(name).ref_name(tag),
        |image, (platform, base)| {
            image
                .platform(platform)
                .entrypoint(&["/bin/sh", "-c", script(name)])
                .with_layer(base.clone())
                .with_layer(own_layer(name, platform))
        },
    )
}

/// Returns the script that the container runs.
fn script(name: &str) -> &'static str {
    match name {
        HELLO => "cat /etc/hello\necho \"I run on $(uname -m), kernel $(uname -r).\"",
        PAUSE => "trap exit TERM INT\nwhile true\ndo sleep 3600 & wait\ndone",
        _ => "cat /etc/hello; date",
    }
}

/// Returns a layer with filler and busybox under its usual names. For a foreign platform a text
/// file replaces busybox.
fn base_layer(platform: &str, busybox: &[u8]) -> Layer {
    let mut files = vec![LayerFile::folder("bin/")];
    if is_native(platform) {
        files.push(LayerFile::executable("bin/busybox", busybox));
        let applets = ["sh", "cat", "date", "uname", "echo", "ls", "sleep"];
        files.extend(applets.map(|applet| LayerFile::symlink(&format!("bin/{applet}"), "busybox")));
    } else {
        files.push(LayerFile::executable(
            "bin/busybox",
            format!("a busybox for {platform}\n"),
        ));
    }
    files.push(LayerFile::new("filler", filler(platform, BASE_FILLER)));
    Layer::files(files)
}

fn own_layer(name: &str, platform: &str) -> Layer {
    Layer::files([
        LayerFile::folder("etc/"),
        LayerFile::new("etc/hello", format!("Hello from {name}, without any registry.\n")),
        LayerFile::new("own-filler", filler(&format!("{name} {platform}"), OWN_FILLER)),
    ])
}

fn is_native(platform: &str) -> bool {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    platform.split('/').nth(1) == Some(architecture)
}

/// Returns bytes that look like compressed data and depend only on the seed.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_layer_of_the_damaged_image_is_not_what_its_digest_says() {
        let folder = tempfile::tempdir().unwrap();
        let (busybox, path) = (folder.path().join("busybox"), folder.path().join("bundle.tar"));
        fs::write(&busybox, "not really").unwrap();
        write_damaged(&path, &busybox).unwrap();
        let mut damaged = 0;
        for entry in tar::Archive::new(fs::File::open(&path).unwrap())
            .entries()
            .unwrap()
        {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
            if let Some(digest) = name.strip_prefix("blobs/sha256/") {
                damaged += usize::from(bundle::fixtures::digest_of(&bytes).digest() != digest);
            }
        }
        assert_eq!(damaged, 1);
    }

    #[test]
    fn three_images_share_the_base_of_each_platform() {
        let folder = tempfile::tempdir().unwrap();
        let (busybox, path) = (folder.path().join("busybox"), folder.path().join("bundle.tar"));
        fs::write(&busybox, "not really").unwrap();
        let blobs = write(&path, &busybox).unwrap();
        // Three bases, and an index for each image. Each platform of an image has a manifest, a
        // config and a layer.
        assert_eq!(blobs.len(), 3 + 3 * (1 + 3 * 3));
        assert!(blobs.iter().all(|blob| blob.starts_with("sha256:")));
        assert!(fs::metadata(&path).unwrap().len() > 7 << 20);
    }
}
