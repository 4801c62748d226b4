//! How much a bundle may ask of its reader.

/// Bounds that keep hostile or damaged archives from costing memory or time.
///
/// A bundle beyond one of them is refused on purpose, with an error of its own, even where
/// containerd would take it. The defaults are far above what real bundles hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one JSON document (index, manifest, config). containerd's importer stops at 20 MiB
    /// for some of them and has no limit for others.
    pub json_document: u64,
    /// Levels of indexes below `index.json`, whose own entries are the first; containerd has no
    /// limit.
    pub index_depth: u32,
    /// Entries of the archive, extended headers included; of a compressed one also its frames, of
    /// which a small file may have fewer.
    pub entries: u64,
    /// Descriptors met on the walk through all images, a shared sub-tree each time it is met.
    pub descriptors: usize,
    /// Entries of `index.json`, or elements of `manifest.json`.
    pub images: usize,
    /// Names of one image, by whatever entries it has them. Each becomes a record or two in
    /// containerd, whose list of them has to fit into one message.
    pub names: usize,
    /// Bytes of one PAX or GNU extended header.
    pub extended_header: u64,
    /// Binary logarithm of the largest window of a zstd bundle in bytes, and of the largest
    /// dictionary of an xz one: so much memory it may take. zstd itself stops at 27 unless asked
    /// (`--long=27` and above).
    pub zstd_window_log: u32,
    /// How many bytes one compressed byte may become on average; up to 64 MiB any bundle may.
    pub expansion: u64,
}

impl Limits {
    /// The limits for a bundle that is read beside another one: both together take little more than
    /// the other alone. No limit on a single image is another one, so a bundle is either what it is
    /// within the whole limits, or refused with [`Fault::Limit`](crate::Fault::Limit).
    #[must_use]
    pub fn beside_another(&self) -> Limits {
        Limits {
            descriptors: self.descriptors / SHARE_BESIDE,
            entries: self.entries / SHARE_BESIDE as u64,
            zstd_window_log: self.zstd_window_log.min(WINDOW_LOG_BESIDE),
            ..self.clone()
        }
    }

    /// How many bytes a file of so many may become.
    pub(crate) fn expanded(&self, length: u64) -> u64 {
        length.saturating_mul(self.expansion).max(EXPANSION_ALLOWED)
    }

    /// How many bytes of memory the catalog of a bundle may take: two of the largest documents, and
    /// 1 KiB for each descriptor.
    pub(crate) fn memory(&self) -> u64 {
        let descriptors = (self.descriptors as u64).saturating_mul(1 << 10);
        descriptors.saturating_add(self.json_document.saturating_mul(2))
    }

    /// How many bytes a file must have that becomes so many; none where any may.
    pub(crate) fn least_file(&self, expanded: u64) -> u64 {
        if expanded <= EXPANSION_ALLOWED {
            0
        } else {
            expanded.div_ceil(self.expansion)
        }
    }
}

/// The key of the configuration behind a limit, with its value, in the words of messages.
pub(crate) fn set(key: &str, value: impl std::fmt::Display) -> String {
    format!("`limits.{key}` is {value}")
}

/// The same for a limit in bytes, as the configuration writes it.
pub(crate) fn set_bytes(key: &str, bytes: u64) -> String {
    match bytes {
        _ if bytes > 0 && bytes.is_multiple_of(1 << 20) => set(key, format_args!("{}MiB", bytes >> 20)),
        _ if bytes > 0 && bytes.is_multiple_of(1 << 10) => set(key, format_args!("{}KiB", bytes >> 10)),
        _ => set(key, bytes),
    }
}

/// Which part of descriptors and entries a bundle may have that is read beside another one. With
/// the default that is room for 600 images.
const SHARE_BESIDE: usize = 8;

/// The same for windows, as a binary logarithm: 32 MiB, as the bundles of k3s and RKE2 have it
/// (`zstd --long=25`).
const WINDOW_LOG_BESIDE: u32 = 25;

/// What may come of any file, however small: a few empty layers pack better than any limit on the
/// whole.
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
            // gzip makes 1032 bytes of one at most; what we write with zstd keeps to it by ballast.
            expansion: 1_100,
        }
    }
}
