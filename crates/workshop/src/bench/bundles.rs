//! The bundles for the measurements. They are made once and kept in `target/bench`.
//!
//! Their layers are tars of files with two thirds of noise and one third of text. Except in the
//! compressed bundles, each layer is compressed with gzip, like the layers of registries.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Result;
use bundle::Compression;
use bundle::fixtures::{Image, Layer, LayerFile, Layout, compress};
use workshop::demo_bundle;

use super::trees;

/// Name of the folder. It changes with this code, so that the bench does not use old bundles.
const VERSION: &str = "bundles-2";

/// Name of the image of [`Bundles::runnable`].
pub(super) const RUNNABLE: &str = "registry.example/run/app:1";

/// Number of images in the bundle of small images.
pub(super) const SMALL_IMAGES: usize = 200;

const MIB: usize = 1 << 20;
const GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A folder of bundles.
pub(super) struct Bundles {
    folder: PathBuf,
}

/// A bundle on the disk.
#[derive(Clone)]
pub(super) struct Bundle {
    pub(super) path: PathBuf,
    /// Number of image records that an import of it makes: a name and a digest for each image.
    pub(super) records: usize,
}

impl Bundle {
    /// Returns the number of its images, each with one name.
    pub(super) fn images(&self) -> usize {
        self.records / 2
    }
}

impl Bundles {
    pub(super) fn in_target(target: &Path) -> Result<Self> {
        let folder = target.join("bench").join(VERSION);
        fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    /// Writes six images for one platform on a common base, some 600 MB.
    pub(super) fn single(&self) -> Result<Bundle> {
        self.layout("single.tar", 6, || single("1"))
    }

    /// Writes the same images with a tenth of the bytes changed, like the next release of one
    /// image.
    pub(super) fn single_changed(&self) -> Result<Bundle> {
        self.layout("single-changed.tar", 6, || single("2"))
    }

    /// Writes three images for four platforms each, some 600 MB.
    pub(super) fn platforms(&self) -> Result<Bundle> {
        self.layout("platforms.tar", 3, || {
            (0..3).fold(Layout::new(), |layout, number| {
                layout.image(for_platforms(&format!("registry.example/four/app{number}:1")))
            })
        })
    }

    /// Writes two hundred images of 40 KB. Each has its own layer, config and manifest.
    pub(super) fn small(&self) -> Result<Bundle> {
        self.layout("small.tar", SMALL_IMAGES, || {
            (0..SMALL_IMAGES).fold(Layout::new(), |layout, number| {
                let name = format!("registry.example/small/app{number}:1");
                layout.image(image(&name, &[gzip_layer(&name, 40 << 10)]))
            })
        })
    }

    /// Writes layers like `docker save`, without compression. The whole bundle is compressed: 600
    /// MB before.
    pub(super) fn compressed(&self, codec: Compression) -> Result<Bundle> {
        let plain = self.layout("plain-layers.tar", 4, || {
            (0..4).fold(Layout::new(), |layout, number| {
                let name = format!("registry.example/plain/app{number}:1");
                let layers = [110, 30, 10].map(|size| plain_layer(&format!("{name} {size}"), size * MIB));
                layout.image(image(&name, &layers))
            })
        })?;
        if codec == Compression::None {
            return Ok(plain);
        }
        let path = self.folder.join(format!("plain-layers.tar.{codec}"));
        if !path.exists() {
            let part = path.with_extension("part");
            let mut target = BufWriter::new(File::create(&part)?);
            compress(codec, &mut target, |encoder| {
                std::io::copy(&mut File::open(&plain.path)?, encoder).map(drop)
            })?;
            target.flush()?;
            fs::rename(part, &path)?;
        }
        Ok(Bundle {
            path,
            records: plain.records,
        })
    }

    /// Writes one of many bundles, each with ten small images.
    pub(super) fn many(&self, number: usize) -> Result<Bundle> {
        self.layout(&format!("many-{number}.tar"), 10, || {
            (0..10).fold(Layout::new(), |layout, image_number| {
                let name = format!("registry.example/many{number}/app{image_number}:1");
                layout.image(image(&name, &[gzip_layer(&name, 16 << 10)]))
            })
        })
    }

    /// Writes 10 MB for three platforms, with images that run.
    pub(super) fn demo(&self) -> Result<Bundle> {
        let path = self.folder.join("demo.tar");
        if !path.exists() {
            demo_bundle::write(&path, &lab::parts::busybox()?)?;
        }
        Ok(Bundle {
            path,
            records: 2 * demo_bundle::IMAGES.len(),
        })
    }

    /// Writes an image that runs, with 120 MB before compression.
    pub(super) fn runnable(&self) -> Result<Bundle> {
        let program = fs::read(lab::parts::busybox()?)?;
        let files = [
            LayerFile::folder("bin"),
            LayerFile::executable("bin/busybox", program),
        ];
        let base = gzip(&Layer::files(files));
        let own = [80, 30, 10].map(|size| gzip_layer(&format!("{RUNNABLE} {size}"), size * MIB));
        let layers: Vec<_> = std::iter::once(base).chain(own).collect();
        self.layout("runnable.tar", 1, || {
            Layout::new().image(image(RUNNABLE, &layers))
        })
    }

    /// Writes five images that run, with 1.2 GB of files in layers of this compression. Layers of
    /// gzip are some 360 MB.
    pub(super) fn trees(&self, codec: Compression) -> Result<Bundle> {
        let busybox = fs::read(lab::parts::busybox()?)?;
        self.layout(&format!("trees-{codec}.tar"), trees::IMAGES.len(), || {
            let images = trees::images(&busybox, |plain| packed(codec, plain));
            images.iter().fold(Layout::new(), |layout, (name, layers)| {
                layout.image(image(name, layers))
            })
        })
    }

    fn layout(&self, name: &str, images: usize, make: impl FnOnce() -> Layout) -> Result<Bundle> {
        let path = self.folder.join(name);
        if !path.exists() {
            let part = path.with_extension("part");
            make().write_to(&part);
            fs::rename(part, &path)?;
        }
        Ok(Bundle {
            path,
            records: 2 * images,
        })
    }
}

fn single(release: &str) -> Layout {
    let base = gzip_layer("base", 36 * MIB);
    (0..6).fold(Layout::new(), |layout, number| {
        let name = format!("registry.example/single/app{number}:1");
        // Releases differ only in the last image.
        let seed = if number == 5 { release } else { "1" };
        let sizes: &[usize] = match number {
            0 => &[155, 10],
            1 => &[115, 24, 3],
            5 => &[65, 5],
            _ => &[73, 16, 1],
        };
        let own = sizes
            .iter()
            .map(|size| gzip_layer(&format!("{name} {size} {seed}"), size * MIB));
        let layers: Vec<_> = std::iter::once(base.clone()).chain(own).collect();
        layout.image(image(&name, &layers))
    })
}

pub(super) fn image(name: &str, layers: &[Layer]) -> Image {
    let image = Image::unnamed()
        .containerd_name(name)
        .ref_name("1")
        .platform(PLATFORM);
    layers
        .iter()
        .fold(image, |image, layer| image.with_layer(layer.clone()))
}

/// The platform of this machine, in containerd's words.
pub(super) const PLATFORM: &str = if cfg!(target_arch = "aarch64") {
    "linux/arm64"
} else {
    "linux/amd64"
};

fn for_platforms(name: &str) -> Image {
    let foreign = if PLATFORM == "linux/amd64" {
        "linux/arm64"
    } else {
        "linux/amd64"
    };
    [PLATFORM, foreign, "linux/s390x", "linux/ppc64le"].iter().fold(
        Image::unnamed().containerd_name(name).ref_name("1"),
        |image, platform| {
            image
                .platform(platform)
                .with_layer(gzip_layer(&format!("{name} {platform}"), 52 * MIB))
                .with_layer(gzip_layer(&format!("{name} {platform} 2"), 10 * MIB))
        },
    )
}

fn gzip_layer(seed: &str, size: usize) -> Layer {
    gzip(&plain_layer(seed, size))
}

fn gzip(plain: &Layer) -> Layer {
    packed(Compression::Gzip, plain)
}

/// Returns a layer compressed with gzip or zstd.
fn packed(codec: Compression, plain: &Layer) -> Layer {
    let mut bytes = Vec::new();
    compress(codec, &mut bytes, |encoder| encoder.write_all(&plain.to_bytes()))
        .expect("memory takes any bytes");
    let media_type = match codec {
        Compression::Zstd => ZSTD_LAYER,
        _ => GZIP_LAYER,
    };
    Layer::compressed(plain, bytes, media_type)
}

/// Returns a tar of files, each at most a MiB.
fn plain_layer(seed: &str, size: usize) -> Layer {
    let mut noise = Noise::of(seed);
    let files = (0..size.div_ceil(MIB)).map(|number| {
        let length = MIB.min(size - number * MIB);
        LayerFile::new(
            &format!("{}/file{number}", seed_folder(seed)),
            noise.bytes(length),
        )
    });
    let folder = LayerFile::folder(&format!("{}/", seed_folder(seed)));
    Layer::files(std::iter::once(folder).chain(files))
}

fn seed_folder(seed: &str) -> String {
    seed.replace(['/', ':', ' '], "-")
}

/// Bytes that follow from a seed (xorshift64*), two thirds of them random.
pub(super) struct Noise(u64);

impl Noise {
    pub(super) fn of(seed: &str) -> Self {
        // FNV-1a. Any hash serves as a seed that is not zero.
        let hash = seed.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(hash | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Returns a number below `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        #[allow(clippy::cast_possible_truncation, reason = "the upper half of the bits")]
        let number = (self.next() >> 32) as usize;
        number % end
    }

    /// Returns this number of bytes.
    pub(super) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 12);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
            bytes.extend_from_slice(b"text");
        }
        bytes.truncate(length);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_follows_from_its_seed_and_does_not_repeat_itself() {
        let bytes = Noise::of("a").bytes(1000);
        assert_eq!(bytes, Noise::of("a").bytes(1000));
        assert_ne!(bytes, Noise::of("b").bytes(1000));
        assert_ne!(bytes[..12], bytes[12..24]);
    }

    #[test]
    fn a_bundle_is_made_once() {
        let target = tempfile::tempdir().unwrap();
        let bundles = Bundles::in_target(target.path()).unwrap();
        let first = bundles.many(1).unwrap();
        let modified = |bundle: &Bundle| fs::metadata(&bundle.path).unwrap().modified().unwrap();
        let before = modified(&first);
        assert_eq!(modified(&bundles.many(1).unwrap()), before);
        assert_eq!(first.records, 20);
    }
}
