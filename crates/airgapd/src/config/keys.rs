//! All keys of the configuration, one row each.

use import::names::DigestReferences;
use import::plan::OnConflict;
use import::unpack::Unpack;
use node::place::Distribution;
use node::settings::{
    AfterImport, Checksums, Coexistence, LogFormat, LogLevel, OnRemoval, Settings, Signatures,
};
use serde_yaml::Value;

use super::environment::variable_of_key;
use super::values::{
    AbsolutePath, AbsolutePaths, Aliases, BaseName, Count, ImagesDirs, Interval, Kind, Loopback, MinFree,
    Names, Namespace, OneOf, Optional, Patterns, Platforms, Rate, Release, SandboxImage, Size, Socket, Time,
    Truth, Window, Words,
};

/// One key of the configuration.
pub(super) struct Key {
    /// Name as in the file. A member of a group is `group.key`.
    pub(super) name: &'static str,
    /// Reads a value into the settings, or returns what is wrong with it.
    pub(super) read: fn(&mut Settings, &Value) -> Result<(), String>,
    /// Returns the value in the settings, as the file would have it.
    pub(super) show: fn(&Settings) -> Value,
    /// Copies the value from the second settings to the first.
    pub(super) copy: fn(&mut Settings, &Settings),
}

/// Makes a [`Key`] from its name, the kind of its values and the field of the settings.
macro_rules! key {
    ($name:literal, $kind:ty, $($field:ident).+) => {
        Key {
            name: $name,
            read: |settings, value| {
                settings.$($field).+ = <$kind as Kind>::read(value)?;
                Ok(())
            },
            show: |settings| <$kind as Kind>::show(&settings.$($field).+),
            copy: |settings, others| settings.$($field).+.clone_from(&others.$($field).+),
        }
    };
}

/// All keys, in the order of the documentation.
pub(super) const KEYS: &[Key] = &[
    key!("imagesDir", Optional<AbsolutePath>, images_dir),
    key!("address", Optional<Socket>, address),
    key!("minFree", MinFree, min_free),
    key!("onRemoval", OneOf<OnRemoval>, on_removal),
    key!("unpack", OneOf<Unpack>, unpack),
    key!("distribution", OneOf<Option<Distribution>>, distribution),
    key!("dataDir", Optional<AbsolutePath>, data_dir),
    key!("imagesDirs", ImagesDirs, images_dirs),
    key!("recursive", Optional<Truth>, recursive),
    key!("stateDir", AbsolutePath, state_dir),
    key!("runtimeDir", AbsolutePath, runtime_dir),
    key!("metricsFile", Optional<AbsolutePath>, metrics_file),
    key!("metricsAddress", Optional<Loopback>, metrics_address),
    key!("nodeFeatureFile", Optional<AbsolutePath>, node_feature_file),
    key!("namespace", Namespace, namespace),
    key!("cri", Optional<Truth>, cri),
    key!("platforms", Platforms, platforms),
    key!("resync", Interval, resync),
    key!("grace", Time, grace),
    key!("rateLimit", Rate, rate_limit),
    key!("unpinGrace", Time, unpin_grace),
    key!("afterImport", OneOf<AfterImport>, after_import),
    key!("keepReleases", Count<usize, 0>, keep_releases),
    key!("onConflict", OneOf<OnConflict>, on_conflict),
    key!("coexistence", OneOf<Coexistence>, coexistence),
    key!("aliases", Aliases, aliases),
    key!("names", Names, names),
    key!("baseName", Optional<BaseName>, base_name),
    key!("digestReferences", OneOf<DigestReferences>, digest_references),
    key!("allowedNames", Patterns, allowed_names),
    key!("exclude", Patterns, exclude),
    key!("priority", Patterns, priority),
    key!("checksums", OneOf<Checksums>, checksums),
    key!("trustedDigests", Optional<AbsolutePath>, trusted_digests),
    key!("signatures", OneOf<Option<Signatures>>, signatures),
    key!("trustedKeys", AbsolutePath, trusted_keys),
    key!("pullLists", OneOf<bool>, pull_lists),
    key!("allowInsecureDir", Truth, allow_insecure_dir),
    key!("require.images", AbsolutePaths, require.images),
    key!(
        "require.k0sConfig",
        Optional<AbsolutePath>,
        require.k0s.k0s_config
    ),
    key!("require.k0sVersion", Optional<Release>, require.k0s.k0s_version),
    key!("require.imageSet", Optional<AbsolutePath>, require.k0s.image_set),
    key!("require.manifests", AbsolutePaths, require.manifests),
    key!("require.staticPods", Optional<AbsolutePath>, require.static_pods),
    key!(
        "require.sandboxImage",
        Optional<SandboxImage>,
        require.sandbox_image
    ),
    key!("limits.jsonDocument", Size, limits.json_document),
    key!("limits.indexDepth", Count<u32>, limits.index_depth),
    key!("limits.entries", Count<u64>, limits.entries),
    key!("limits.descriptors", Count<usize>, limits.descriptors),
    key!("limits.images", Count<usize>, limits.images),
    key!("limits.names", Count<usize>, limits.names),
    key!("limits.records", Count<usize>, most_records),
    key!("limits.extendedHeader", Size, limits.extended_header),
    key!("limits.zstdWindow", Window, limits.zstd_window_log),
    key!("limits.expansion", Count<u64>, limits.expansion),
    key!("log.level", OneOf<LogLevel>, log.level),
    key!("log.format", OneOf<LogFormat>, log.format),
];

/// Returns the key of this name.
pub(super) fn key(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Groups of keys.
pub(super) const GROUPS: [&str; 3] = ["require", "limits", "log"];

/// Keys that the daemon applies only at its start.
pub(super) const UNTIL_RESTART: [&str; 13] = [
    "distribution",
    "dataDir",
    "imagesDir",
    "imagesDirs",
    "stateDir",
    "runtimeDir",
    "metricsFile",
    "metricsAddress",
    "nodeFeatureFile",
    "address",
    "namespace",
    "log.level",
    "log.format",
];

impl Words for Option<Distribution> {
    const WORDS: &[(&str, Self)] = &[
        ("auto", None),
        ("k0s", Some(Distribution::K0s)),
        ("k3s", Some(Distribution::K3s)),
        ("rke2", Some(Distribution::Rke2)),
        ("containerd", Some(Distribution::Containerd)),
    ];
}

impl Words for Coexistence {
    const WORDS: &[(&str, Self)] = &[
        ("auto", Coexistence::Auto),
        ("follow", Coexistence::Follow),
        ("exclusive", Coexistence::Exclusive),
    ];
}

impl Words for Unpack {
    const WORDS: &[(&str, Self)] = &[
        ("none", Unpack::None),
        ("background", Unpack::Background),
        ("before-record", Unpack::BeforeRecord),
    ];
}

impl Words for OnRemoval {
    const WORDS: &[(&str, Self)] = &[
        ("unpin", OnRemoval::Unpin),
        ("keep", OnRemoval::Keep),
        ("delete", OnRemoval::Delete),
    ];
}

impl Words for AfterImport {
    const WORDS: &[(&str, Self)] = &[("keep", AfterImport::Keep), ("receipt", AfterImport::Receipt)];
}

impl Words for OnConflict {
    const WORDS: &[(&str, Self)] = &[
        ("replace", OnConflict::Replace),
        ("keep", OnConflict::Keep),
        ("refuse", OnConflict::Refuse),
    ];
}

impl Words for DigestReferences {
    const WORDS: &[(&str, Self)] = &[
        ("none", DigestReferences::None),
        ("target", DigestReferences::Target),
        ("all", DigestReferences::All),
    ];
}

impl Words for bool {
    const WORDS: &[(&str, Self)] = &[("off", false), ("on", true)];
}

impl Words for Checksums {
    const WORDS: &[(&str, Self)] = &[
        ("off", Checksums::Off),
        ("if-present", Checksums::IfPresent),
        ("require", Checksums::Require),
    ];
}

impl Words for Option<Signatures> {
    const WORDS: &[(&str, Self)] = &[
        ("off", None),
        ("if-present", Some(Signatures::IfPresent)),
        ("require", Some(Signatures::Require)),
    ];
}

impl Words for LogLevel {
    const WORDS: &[(&str, Self)] = &[
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];
}

impl Words for LogFormat {
    const WORDS: &[(&str, Self)] = &[
        ("auto", LogFormat::Auto),
        ("human", LogFormat::Human),
        ("json", LogFormat::Json),
        ("journal", LogFormat::Journal),
    ];
}
/// A key or group of earlier versions. The program warns of its value and ignores it.
pub(super) struct Removed {
    pub(super) name: &'static str,
    /// Remedy: the settings that replace it.
    pub(super) instead: &'static str,
}

/// Removed keys. A configuration with one of them stays usable.
const REMOVED: &[Removed] = &[Removed {
    name: "pressure",
    instead: "`CPUWeight=` and `IOWeight=` of the unit let other programs go first, and `rateLimit` limits the bytes that imports send",
}];

impl Removed {
    /// Returns the removed key for a key or a variable.
    pub(super) fn of(typed: &str) -> Option<&'static Removed> {
        let is_it = |name: &str, joint| {
            typed
                .strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(joint))
        };
        REMOVED
            .iter()
            .find(|removed| is_it(removed.name, '.') || is_it(&variable_of_key(removed.name), '_'))
    }
}
