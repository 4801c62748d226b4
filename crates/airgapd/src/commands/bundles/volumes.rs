//! The distribution of images over volumes. Pure.

use std::path::{Path, PathBuf};

use anyhow::bail;
use bundle::write::Layout;

use super::source::{Item, Sources};
use crate::commands::making::bytes_of;
use crate::output;

/// Endings of the names of bundles. The number of a volume comes before the ending.
const ENDINGS: [&str; 4] = [".tar", ".tar.gz", ".tgz", ".tar.zst"];

/// Puts images into few volumes: the largest image first, each into the first volume with enough
/// room. A volume has each shared layer once.
///
/// # Errors
///
/// Returns an error for an image that is too large for any volume.
pub(super) fn pack(sources: &Sources, max_size: u64) -> anyhow::Result<Vec<Vec<Item>>> {
    let mut items: Vec<&Item> = sources.items.iter().collect();
    let key = |item: &&Item| {
        let name = item.names.iter().next().cloned();
        (
            std::cmp::Reverse(bytes_of(&item.draft)),
            name,
            item.draft.target.digest().to_string(),
        )
    };
    items.sort_by_cached_key(key);
    let mut volumes: Vec<Vec<Item>> = Vec::new();
    for item in items {
        let fits = |volume: &&mut Vec<Item>| {
            let with: Vec<Item> = volume.iter().chain([item]).cloned().collect();
            size(sources, &with).is_some_and(|size| size <= max_size)
        };
        if let Some(volume) = volumes.iter_mut().find(fits) {
            volume.push(item.clone());
            continue;
        }
        let alone = vec![item.clone()];
        match size(sources, &alone) {
            Some(size) if size > max_size => {
                let name = item.names.iter().next().cloned();
                let name = name.unwrap_or_else(|| item.draft.target.digest().to_string());
                let [size, most] = [size, max_size].map(output::bytes);
                bail!("{name} alone makes a bundle of {size}, more than {most}: an image cannot be split");
            }
            _ => volumes.push(alone),
        }
    }
    if volumes.is_empty() {
        bail!("the bundle has no images");
    }
    Ok(volumes)
}

/// Returns the size of a volume before compression, `None` if it would have more images than a
/// bundle may have.
fn size(sources: &Sources, items: &[Item]) -> Option<u64> {
    Layout::of(&sources.draft(items))
        .ok()
        .map(|layout| layout.archive_size())
}

/// Returns the path of a volume: `images-1.tar` for `images.tar`, or `images-01.tar` for more than
/// nine volumes.
pub(super) fn path(path: &Path, number: usize, count: usize) -> PathBuf {
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let ending = ENDINGS
        .iter()
        .filter(|ending| name.ends_with(**ending))
        .max_by_key(|ending| ending.len());
    let ending = ending.copied().unwrap_or_default();
    let stem = &name[..name.len() - ending.len()];
    let width = count.to_string().len();
    path.with_file_name(format!("{stem}-{number:0width$}{ending}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_volume_stands_before_the_ending() {
        let rows = [
            ("a/images.tar", 1, 9, "a/images-1.tar"),
            ("images.tar.zst", 2, 10, "images-02.tar.zst"),
            ("k0s-v1.31.14+k0s.0-amd64", 3, 3, "k0s-v1.31.14+k0s.0-amd64-3"),
        ];
        for (given, number, count, wanted) in rows {
            assert_eq!(path(Path::new(given), number, count), Path::new(wanted));
        }
    }
}
