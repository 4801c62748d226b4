//! The largest amounts that a bundle may demand of its reader.

/// Bounds that keep hostile or damaged archives from costing memory or time.
///
/// A bundle that exceeds a bound is refused, even if containerd would accept it. The error names
/// the bound. The defaults are far above the needs of real bundles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one JSON document (index, manifest, config). containerd's importer stops at 20 MiB
    /// for some documents and has no limit for others.
    pub json_document: u64,
    /// Levels of indexes below `index.json`. The entries of `index.json` are the first level.
    /// containerd has no such limit.
    pub index_depth: u32,
    /// Entries of the archive, extended headers included. The limit also bounds the frames of a
    /// compressed archive, and a small file may have fewer.
    pub entries: u64,
    /// Descriptors that the walk through all images meets. A shared subtree counts each time.
    pub descriptors: usize,
    /// Entries of `index.json`, or elements of `manifest.json`.
    pub images: usize,
    /// Names of one image, from all its entries. Each becomes one or two records in containerd, and
    /// containerd's list of records must fit into one message.
    pub names: usize,
    /// Bytes of one PAX or GNU extended header.
    pub extended_header: u64,
    /// Binary logarithm, in bytes, of the largest window of a zstd bundle and the largest
    /// dictionary of an xz bundle. Decompression takes that much memory. zstd itself stops at 27
    /// without `--long=27` or more.
    pub zstd_window_log: u32,
    /// Largest ratio of decompressed to compressed bytes. Every bundle may decompress to 64 MiB, at
    /// any ratio.
    pub expansion: u64,
}

impl Limits {
    /// Returns the limits for a bundle that is read while another one is being read. Both together
    /// take little more memory than the other alone. The limits on single images stay the same. So
    /// a bundle is either read as within the whole limits, or refused with
    /// [`Fault::Limit`](crate::Fault::Limit).
    #[must_use]
    pub fn beside_another(&self) -> Limits {
        Limits {
            descriptors: self.descriptors / SHARE_BESIDE,
            entries: self.entries / SHARE_BESIDE as u64,
            zstd_window_log: self.zstd_window_log.min(WINDOW_LOG_BESIDE),
            ..self.clone()
        }
    }

    /// Returns the number of bytes that a file of `length` bytes may decompress to.
    pub(crate) fn expanded(&self, length: u64) -> u64 {
        length.saturating_mul(self.expansion).max(EXPANSION_ALLOWED)
    }

    /// Returns the memory in bytes that the catalog of a bundle may take: two of the largest
    /// documents, and 1 KiB for each descriptor.
    pub(crate) fn memory(&self) -> u64 {
        let descriptors = (self.descriptors as u64).saturating_mul(1 << 10);
        descriptors.saturating_add(self.json_document.saturating_mul(2))
    }

    /// Returns the least length of a file that decompresses to `expanded` bytes. 0 if any length is
    /// enough.
    pub(crate) fn least_file(&self, expanded: u64) -> u64 {
        if expanded <= EXPANSION_ALLOWED {
            0
        } else {
            expanded.div_ceil(self.expansion)
        }
    }
}

/// Names the configuration key behind a limit, with its value, for messages.
pub(crate) fn set(key: &str, value: impl std::fmt::Display) -> String {
    format!("`limits.{key}` is {value}")
}

/// Does the same for a limit in bytes, in the notation of the configuration.
pub(crate) fn set_bytes(key: &str, bytes: u64) -> String {
    match bytes {
        _ if bytes > 0 && bytes.is_multiple_of(1 << 20) => set(key, format_args!("{}MiB", bytes >> 20)),
        _ if bytes > 0 && bytes.is_multiple_of(1 << 10) => set(key, format_args!("{}KiB", bytes >> 10)),
        _ => set(key, bytes),
    }
}

/// The divisor of the limits on descriptors and entries for a bundle that is read beside another
/// one. With the defaults, there is room for 600 images.
const SHARE_BESIDE: usize = 8;

/// Binary logarithm of the largest window for such a bundle: 32 MiB, which the bundles of k3s and
/// RKE2 need (`zstd --long=25`).
const WINDOW_LOG_BESIDE: u32 = 25;

/// Bytes that every file may decompress to, however small it is. A few empty layers compress better
/// than any limit on the ratio allows.
const EXPANSION_ALLOWED: u64 = 64 << 20;

impl Default for Limits {
    fn default() -> Self {
        Self {
            json_document: 8 << 20,
            index_depth: 8,
            entries: 1_000_000,
            // Ten for each image: its index, manifest and config, and seven layers.
            descriptors: 50_000,
            images: 5_000,
            names: 256,
            extended_header: 64 << 10,
            zstd_window_log: 27,
            // gzip makes at most 1032 bytes of one. `ballast` keeps the zstd bundles of `write`
            // below 1100.
            expansion: 1_100,
        }
    }
}
