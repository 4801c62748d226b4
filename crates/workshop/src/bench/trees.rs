//! Images of file trees, like those of applications: many small files, some large ones, and upper
//! layers that remove files of lower layers.
//!
//! gzip leaves some 30 % of their bytes. Everything follows from the names of the layers, so every
//! machine makes the same bundle.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail};
use bundle::fixtures::{Layer, LayerFile, digest_of};
use bundle::{Content, Limits};

use super::bundles::Noise;

/// The images: a name, and the layers from the lowest to the uppermost, each with the size of its
/// files in MiB. Layers of one name are one layer.
///
/// Three images share a base and the layer above it. The other two share a second base.
pub(super) const IMAGES: [(&str, &[(&str, usize)]); 5] = [
    (
        "registry.example/trees/shop:1",
        &[
            ("base", 110),
            ("runtime", 160),
            ("shop", 150),
            ("shop-data", 60),
            ("shop-patch", 5),
        ],
    ),
    (
        "registry.example/trees/search:1",
        &[
            ("base", 110),
            ("runtime", 160),
            ("search", 130),
            ("search-data", 40),
            ("search-patch", 3),
        ],
    ),
    (
        "registry.example/trees/mail:1",
        &[
            ("base", 110),
            ("runtime", 160),
            ("mail", 110),
            ("mail-data", 20),
            ("mail-patch", 2),
        ],
    ),
    (
        "registry.example/trees/store:1",
        &[
            ("small-base", 60),
            ("store", 170),
            ("store-data", 30),
            ("store-patch", 5),
        ],
    ),
    (
        "registry.example/trees/proxy:1",
        &[
            ("small-base", 60),
            ("proxy", 120),
            ("proxy-data", 30),
            ("proxy-patch", 15),
        ],
    ),
];

/// Every so many files of the lower layers, the uppermost layer removes one.
const REMOVED: usize = 40;

/// Every so many folders of the lower layers, the uppermost layer replaces one.
const REPLACED: usize = 25;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Returns the images with their layers. `pack` compresses a layer.
pub(super) fn images(busybox: &[u8], pack: impl Fn(&Layer) -> Layer) -> Vec<(&'static str, Vec<Layer>)> {
    let mut made: BTreeMap<&str, (Layer, Places)> = BTreeMap::new();
    let images = IMAGES.iter().map(|(name, plan)| {
        let mut below: Vec<Places> = Vec::new();
        for (at, (seed, mib)) in plan.iter().enumerate() {
            let (_, places) = made.entry(seed).or_insert_with(|| {
                let mut tree = grow(seed, mib * MIB);
                if at == 0 {
                    tree.files.push(LayerFile::folder("bin/"));
                    tree.files.push(LayerFile::executable("bin/busybox", busybox));
                }
                if at + 1 == plan.len() {
                    tree.files.extend(removals(&below));
                }
                (pack(&Layer::files(tree.files)), tree.places)
            });
            below.push(places.clone());
        }
        let layers = plan.iter().map(|(seed, _)| made[seed].0.clone());
        (*name, layers.collect())
    });
    images.collect()
}

/// A folder of files for a layer.
struct Tree {
    files: Vec<LayerFile>,
    places: Places,
}

/// The paths of a tree.
#[derive(Clone, Default)]
struct Places {
    files: Vec<String>,
    folders: Vec<String>,
}

/// Makes a tree of `size` bytes. Half of them are in files below 128 KiB.
fn grow(seed: &str, size: usize) -> Tree {
    let (mut noise, words) = (Noise::of(seed), Words::new());
    let top = format!("opt/{seed}");
    let mut files = vec![LayerFile::folder("opt/"), LayerFile::folder(&format!("{top}/"))];
    let mut places = Places::default();
    let mut left = size;
    for package in 0.. {
        let home = format!("{top}/package{package}");
        files.push(LayerFile::folder(&format!("{home}/")));
        for part in 0..=noise.below(4) {
            let folder = format!("{home}/part{part}");
            files.push(LayerFile::folder(&format!("{folder}/")));
            for number in 0..4 + noise.below(24) {
                // As many files of each power of two from 512 bytes to 64 KiB.
                let least = 512 << noise.below(8);
                let length = (least + noise.below(least)).min(left);
                left -= length;
                let path = format!("{folder}/file{number}.txt");
                files.push(LayerFile::new(&path, words.text(&mut noise, length)));
                places.files.push(path);
                if left == 0 {
                    places.folders.push(folder);
                    return Tree { files, places };
                }
            }
            places.folders.push(folder);
        }
        if package % 16 == 5 {
            let length = (8 * MIB + noise.below(16 * MIB)).min(left / 2);
            left -= length;
            let path = format!("{home}/program");
            files.push(LayerFile::executable(&path, program(&mut noise, &words, length)));
            places.files.push(path);
        }
    }
    unreachable!("a tree ends when its bytes are used up")
}

/// Returns the entries of an uppermost layer that remove files and replace folders of the layers
/// below (image-spec, "Whiteouts").
fn removals(below: &[Places]) -> Vec<LayerFile> {
    let files = below.iter().flat_map(|places| &places.files);
    let whiteouts = files.step_by(REMOVED).map(|path| {
        let (folder, name) = path.rsplit_once('/').expect("a file is in a folder");
        LayerFile::new(&format!("{folder}/.wh.{name}"), [])
    });
    let folders = below.iter().flat_map(|places| &places.folders);
    let opaque = folders.step_by(REPLACED).flat_map(|folder| {
        [
            LayerFile::folder(&format!("{folder}/")),
            LayerFile::new(&format!("{folder}/.wh..wh..opq"), []),
            LayerFile::new(&format!("{folder}/replaced.txt"), "These files were replaced.\n"),
        ]
    });
    whiteouts.chain(opaque).collect()
}

/// Returns bytes like those of a program: words between random bytes, and some text.
fn program(noise: &mut Noise, words: &Words, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 16 * KIB);
    while bytes.len() < length {
        for _ in 0..KIB {
            bytes.extend_from_slice(words.skewed(noise));
            bytes.extend_from_slice(&noise.next().to_le_bytes()[..2]);
        }
        bytes.extend(words.text(noise, 8 * KIB));
    }
    bytes.truncate(length);
    bytes
}

/// The words of all texts.
struct Words(Vec<Vec<u8>>);

impl Words {
    const NUMBER: usize = 512;

    fn new() -> Self {
        const SYLLABLES: [&str; 16] = [
            "ba", "con", "de", "fi", "get", "in", "ko", "lis", "me", "no", "pre", "ra", "set", "ti", "ur",
            "ve",
        ];
        let mut noise = Noise::of("words");
        let word = |_| {
            let syllables = 1 + noise.below(4);
            let word = (0..syllables).map(|_| SYLLABLES[noise.below(SYLLABLES.len())]);
            word.collect::<String>().into_bytes()
        };
        Self((0..Self::NUMBER).map(word).collect())
    }

    /// Returns a word. The first words are the most frequent.
    fn skewed(&self, noise: &mut Noise) -> &[u8] {
        let at = (0..3).fold(Self::NUMBER, |end, _| noise.below(end) + 1) - 1;
        &self.0[at]
    }

    /// Returns lines of words. Two of three lines repeat earlier ones.
    fn text(&self, noise: &mut Noise, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 200);
        let mut lines: Vec<Range<usize>> = Vec::new();
        while bytes.len() < length {
            let start = bytes.len();
            if !lines.is_empty() && noise.below(3) > 0 {
                bytes.extend_from_within(lines[noise.below(lines.len())].clone());
            } else {
                for _ in 0..4 + noise.below(8) {
                    bytes.extend_from_slice(self.skewed(noise));
                    bytes.push(b' ');
                }
                bytes.push(b'\n');
            }
            lines.push(start..bytes.len());
        }
        bytes.truncate(length);
        bytes
    }
}

/// The images and layers of a bundle.
pub(super) struct Contents {
    pub(super) images: Vec<Runnable>,
    /// Names of the entries with the layers, each layer once, the largest first.
    pub(super) layers: Vec<String>,
}

/// An image and the snapshot that its containers start from.
pub(super) struct Runnable {
    /// Name of its record.
    pub(super) name: String,
    /// Name of its uppermost snapshot: the chain ID of all its layers (image-spec, "Layer
    /// ChainID").
    pub(super) snapshot: String,
}

impl Contents {
    /// Reads the documents of a bundle of single manifests.
    pub(super) fn of(path: &Path) -> Result<Self> {
        let bundle = bundle::Bundle::open(path, &Limits::default())?;
        let (mut images, mut layers) = (Vec::new(), BTreeMap::new());
        for image in &bundle.catalog().images {
            let Content::Manifest(manifest) = &image.root.content else {
                bail!("{} has an image that is no manifest", path.display());
            };
            let names = image.names.iter().map(bundle::RawName::as_str);
            images.push(Runnable {
                name: names
                    .max_by_key(|name| name.len())
                    .context("an image has no name")?
                    .to_owned(),
                snapshot: chain_id(manifest.diff_ids.iter().map(AsRef::as_ref)),
            });
            for layer in &manifest.layers {
                let name = format!(
                    "blobs/{}",
                    layer.descriptor.digest().to_string().replace(':', "/")
                );
                layers.insert(name, layer.descriptor.size());
            }
        }
        let mut layers: Vec<_> = layers.into_iter().collect();
        layers.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
        Ok(Self {
            images,
            layers: layers.into_iter().map(|(name, _)| name).collect(),
        })
    }
}

/// Returns the chain ID of layers, the lowest first.
fn chain_id<'a>(diff_ids: impl Iterator<Item = &'a str>) -> String {
    let chain = diff_ids.map(str::to_owned);
    chain
        .reduce(|below, layer| digest_of(format!("{below} {layer}").as_bytes()).to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bundle::Compression;
    use bundle::fixtures::compress;

    use super::*;

    fn paths(layer: &Layer) -> BTreeSet<String> {
        let bytes = layer.to_bytes();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries = archive.entries().unwrap();
        let path = |entry: tar::Entry<'_, _>| entry.path().unwrap().to_string_lossy().into_owned();
        entries.map(|entry| path(entry.unwrap())).collect()
    }

    #[test]
    fn a_tree_has_its_size_and_shrinks_to_a_third_or_less() {
        let tree = grow("a", 12 * MIB);
        let plain = Layer::files(tree.files).to_bytes();
        let mut packed = Vec::new();
        compress(Compression::Gzip, &mut packed, |encoder| {
            encoder.write_all(&plain)
        })
        .unwrap();
        let percent = 100 * packed.len() / plain.len();
        assert!((25..35).contains(&percent), "{percent} %");
        assert!((12 * MIB..14 * MIB).contains(&plain.len()), "{}", plain.len());
        assert!(tree.places.files.len() > 200, "{}", tree.places.files.len());
        assert!(tree.places.files.iter().any(|path| path.ends_with("program")));
    }

    #[test]
    fn a_tree_follows_from_its_seed() {
        let bytes = |seed| Layer::files(grow(seed, MIB).files).to_bytes();
        assert_eq!(bytes("a"), bytes("a"));
        assert_ne!(bytes("a"), bytes("b"));
    }

    #[test]
    fn an_upper_layer_removes_files_and_replaces_folders_of_the_layers_below() {
        let below = grow("a", 4 * MIB);
        let removed = removals(std::slice::from_ref(&below.places));
        let (below, above) = (paths(&Layer::files(below.files)), paths(&Layer::files(removed)));
        let mut seen = [0, 0];
        for path in &above {
            let (folder, name) = path.rsplit_once('/').unwrap();
            match name.strip_prefix(".wh.") {
                Some(".wh..opq") => {
                    seen[0] += 1;
                    assert!(below.contains(&format!("{folder}/")), "{path}");
                    assert!(above.contains(&format!("{folder}/replaced.txt")), "{path}");
                }
                Some(hidden) => {
                    seen[1] += 1;
                    assert!(below.contains(&format!("{folder}/{hidden}")), "{path}");
                }
                None => {}
            }
        }
        assert!(seen[0] > 0 && seen[1] > 1, "{seen:?}");
    }

    #[test]
    fn images_share_their_lowest_layers() {
        let shared = |a: usize, b: usize| {
            let (a, b) = (IMAGES[a].1, IMAGES[b].1);
            a.iter().zip(b).take_while(|(a, b)| a == b).count()
        };
        assert_eq!(
            [shared(0, 1), shared(1, 2), shared(3, 4), shared(0, 3)],
            [2, 2, 1, 0]
        );
    }

    #[test]
    fn a_chain_id_is_that_of_the_specification() {
        assert_eq!(chain_id(["sha256:a"].into_iter()), "sha256:a");
        let two = digest_of(b"sha256:a sha256:b").to_string();
        assert_eq!(chain_id(["sha256:a", "sha256:b"].into_iter()), two);
        let three = digest_of(format!("{two} sha256:c").as_bytes()).to_string();
        assert_eq!(chain_id(["sha256:a", "sha256:b", "sha256:c"].into_iter()), three);
    }
}
