//! Configuration: what the operator typed, and what the program needs.
//!
//! The file, the environment and the flags all become the same thing, a list of [`Given`] values; one
//! pure function, [`resolve`], turns it into [`Settings`] and reports every mistake at once. All
//! knowledge about a key (how it is read, how it is shown) is one row of [`KEYS`]. Nothing here looks
//! at the node: what follows from a distribution is decided in [`node::place`].

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use basics::digest;
use clap::{Args, ValueEnum};
use import::names::{Alias, DigestReferences};
use import::plan::OnConflict;
use import::space::MinFree;
use import::unpack::Unpack;
use import::{Pattern, Reference};
use platforms::InvalidChoice;
use serde::Serialize;
use serde_yaml::Value;

use node::place::Distribution;
use node::settings::{
    Checksums, Coexistence, LogFormat, LogLevel, OnRemoval, PlatformChoice, Reloaded, Settings,
};

/// Where the configuration file is unless `--config` or `AIRGAPD_CONFIG` say otherwise. It may be
/// missing there.
pub(crate) const DEFAULT_FILE: &str = "/etc/airgapd/config.yaml";

/// The words of keys that take one of a few.
type Words<T> = &'static [(&'static str, T)];

const DISTRIBUTIONS: Words<Option<Distribution>> = &[
    ("auto", None),
    ("k0s", Some(Distribution::K0s)),
    ("k3s", Some(Distribution::K3s)),
    ("rke2", Some(Distribution::Rke2)),
    ("containerd", Some(Distribution::Containerd)),
];
const COEXISTENCE: Words<Coexistence> = &[
    ("auto", Coexistence::Auto),
    ("follow", Coexistence::Follow),
    ("exclusive", Coexistence::Exclusive),
];
const UNPACK: Words<Unpack> = &[
    ("none", Unpack::None),
    ("background", Unpack::Background),
    ("before-record", Unpack::BeforeRecord),
];
const ON_REMOVAL: Words<OnRemoval> = &[
    ("unpin", OnRemoval::Unpin),
    ("keep", OnRemoval::Keep),
    ("delete", OnRemoval::Delete),
];
const ON_CONFLICT: Words<OnConflict> = &[
    ("replace", OnConflict::Replace),
    ("keep", OnConflict::Keep),
    ("refuse", OnConflict::Refuse),
];
const DIGEST_REFERENCES: Words<DigestReferences> = &[
    ("none", DigestReferences::None),
    ("target", DigestReferences::Target),
    ("all", DigestReferences::All),
];
const SWITCH: Words<bool> = &[("off", false), ("on", true)];
const CHECKSUMS: Words<Checksums> = &[
    ("off", Checksums::Off),
    ("if-present", Checksums::IfPresent),
    ("require", Checksums::Require),
];
const LEVELS: Words<LogLevel> = &[
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];
const FORMATS: Words<LogFormat> = &[
    ("auto", LogFormat::Auto),
    ("human", LogFormat::Human),
    ("json", LogFormat::Json),
    ("journal", LogFormat::Journal),
];

/// One key of the configuration.
struct Key {
    /// As in the file; members of a group are written `group.key`.
    name: &'static str,
    /// Reads a value into the settings, or says what is wrong with it.
    set: fn(&mut Settings, &Value) -> Result<(), String>,
    /// The value in the settings, as the file would have it.
    show: fn(&Settings) -> Value,
}

/// Every key that works.
const KEYS: &[Key] = &[
    Key {
        name: "distribution",
        set: |s, v| store(&mut s.distribution, word(v, DISTRIBUTIONS)),
        show: |s| shown_word(s.distribution, DISTRIBUTIONS),
    },
    Key {
        name: "dataDir",
        set: |s, v| store(&mut s.data_dir, optional(v, absolute_path)),
        show: |s| shown_path(s.data_dir.as_deref()),
    },
    Key {
        name: "imagesDir",
        set: |s, v| store(&mut s.images_dir, optional(v, absolute_path)),
        show: |s| shown_path(s.images_dir.as_deref()),
    },
    Key {
        name: "recursive",
        set: |s, v| store(&mut s.recursive, truth(v)),
        show: |s| s.recursive.into(),
    },
    Key {
        name: "stateDir",
        set: |s, v| store(&mut s.state_dir, absolute_path(v)),
        show: |s| shown_path(Some(&s.state_dir)),
    },
    Key {
        name: "runtimeDir",
        set: |s, v| store(&mut s.runtime_dir, absolute_path(v)),
        show: |s| shown_path(Some(&s.runtime_dir)),
    },
    Key {
        name: "metricsFile",
        set: |s, v| store(&mut s.metrics_file, optional(v, absolute_path)),
        show: |s| shown_path(s.metrics_file.as_deref()),
    },
    Key {
        name: "metricsAddress",
        set: |s, v| store(&mut s.metrics_address, optional(v, loopback)),
        show: |s| {
            s.metrics_address
                .map_or(Value::Null, |address| address.to_string().into())
        },
    },
    Key {
        name: "address",
        set: |s, v| store(&mut s.address, optional(v, socket)),
        show: |s| shown_path(s.address.as_deref()),
    },
    Key {
        name: "namespace",
        set: |s, v| store(&mut s.namespace, namespace(v)),
        show: |s| s.namespace.clone().into(),
    },
    Key {
        name: "cri",
        set: |s, v| store(&mut s.cri, truth(v)),
        show: |s| s.cri.into(),
    },
    Key {
        name: "platforms",
        set: |s, v| store(&mut s.platforms, platform_choice(v)),
        show: |s| shown_platforms(&s.platforms),
    },
    Key {
        name: "resync",
        set: |s, v| store(&mut s.resync, at_least(Duration::from_secs(1), v)),
        show: |s| shown_duration(s.resync),
    },
    Key {
        name: "grace",
        set: |s, v| store(&mut s.grace, duration(v)),
        show: |s| shown_duration(s.grace),
    },
    Key {
        name: "minFree",
        set: |s, v| store(&mut s.min_free, min_free(v)),
        show: |s| shown_min_free(s.min_free),
    },
    Key {
        name: "rateLimit",
        set: |s, v| store(&mut s.rate_limit, rate(v)),
        show: |s| s.rate_limit.map_or(Value::Null, shown_size),
    },
    Key {
        name: "unpinGrace",
        set: |s, v| store(&mut s.unpin_grace, duration(v)),
        show: |s| shown_duration(s.unpin_grace),
    },
    Key {
        name: "onRemoval",
        set: |s, v| store(&mut s.on_removal, on_removal(v)),
        show: |s| shown_word(s.on_removal, ON_REMOVAL),
    },
    Key {
        name: "onConflict",
        set: |s, v| store(&mut s.on_conflict, word(v, ON_CONFLICT)),
        show: |s| shown_word(s.on_conflict, ON_CONFLICT),
    },
    Key {
        name: "coexistence",
        set: |s, v| store(&mut s.coexistence, word(v, COEXISTENCE)),
        show: |s| shown_word(s.coexistence, COEXISTENCE),
    },
    Key {
        name: "aliases",
        set: |s, v| store(&mut s.aliases, aliases(v)),
        show: |s| {
            s.aliases
                .iter()
                .map(|alias| format!("{}={}", alias.from, alias.to))
                .collect()
        },
    },
    Key {
        name: "names",
        set: |s, v| store(&mut s.names, names(v)),
        show: |s| shown_names(&s.names),
    },
    Key {
        name: "baseName",
        set: |s, v| store(&mut s.base_name, optional(v, base_name)),
        show: |s| s.base_name.clone().map_or(Value::Null, Value::from),
    },
    Key {
        name: "digestReferences",
        set: |s, v| store(&mut s.digest_references, word(v, DIGEST_REFERENCES)),
        show: |s| shown_word(s.digest_references, DIGEST_REFERENCES),
    },
    Key {
        name: "allowedNames",
        set: |s, v| store(&mut s.allowed_names, patterns(v)),
        show: |s| s.allowed_names.iter().map(ToString::to_string).collect(),
    },
    Key {
        name: "exclude",
        set: |s, v| store(&mut s.exclude, patterns(v)),
        show: |s| s.exclude.iter().map(ToString::to_string).collect(),
    },
    Key {
        name: "priority",
        set: |s, v| store(&mut s.priority, patterns(v)),
        show: |s| s.priority.iter().map(ToString::to_string).collect(),
    },
    Key {
        name: "unpack",
        set: |s, v| store(&mut s.unpack, word(v, UNPACK)),
        show: |s| shown_word(s.unpack, UNPACK),
    },
    Key {
        name: "checksums",
        set: |s, v| store(&mut s.checksums, word(v, CHECKSUMS)),
        show: |s| shown_word(s.checksums, CHECKSUMS),
    },
    Key {
        name: "trustedDigests",
        set: |s, v| store(&mut s.trusted_digests, optional(v, absolute_path)),
        show: |s| shown_path(s.trusted_digests.as_deref()),
    },
    Key {
        name: "pullLists",
        set: |s, v| store(&mut s.pull_lists, word(v, SWITCH)),
        show: |s| shown_word(s.pull_lists, SWITCH),
    },
    Key {
        name: "allowInsecureDir",
        set: |s, v| store(&mut s.allow_insecure_dir, truth(v)),
        show: |s| s.allow_insecure_dir.into(),
    },
    Key {
        name: "require.images",
        set: |s, v| store(&mut s.require.images, absolute_paths(v)),
        show: |s| shown_paths(&s.require.images),
    },
    Key {
        name: "require.k0sConfig",
        set: |s, v| store(&mut s.require.k0s.k0s_config, optional(v, absolute_path)),
        show: |s| shown_path(s.require.k0s.k0s_config.as_deref()),
    },
    Key {
        name: "require.k0sVersion",
        set: |s, v| store(&mut s.require.k0s.k0s_version, optional(v, release)),
        show: |s| s.require.k0s.k0s_version.clone().map_or(Value::Null, Value::from),
    },
    Key {
        name: "require.imageSet",
        set: |s, v| store(&mut s.require.k0s.image_set, optional(v, absolute_path)),
        show: |s| shown_path(s.require.k0s.image_set.as_deref()),
    },
    Key {
        name: "require.manifests",
        set: |s, v| store(&mut s.require.manifests, absolute_paths(v)),
        show: |s| shown_paths(&s.require.manifests),
    },
    Key {
        name: "require.staticPods",
        set: |s, v| store(&mut s.require.static_pods, optional(v, absolute_path)),
        show: |s| shown_path(s.require.static_pods.as_deref()),
    },
    Key {
        name: "require.sandboxImage",
        set: |s, v| store(&mut s.require.sandbox_image, optional(v, sandbox_image)),
        show: |s| s.require.sandbox_image.clone().map_or(Value::Null, Value::from),
    },
    Key {
        name: "limits.jsonDocument",
        set: |s, v| store(&mut s.limits.json_document, size(v)),
        show: |s| shown_size(s.limits.json_document),
    },
    Key {
        name: "limits.indexDepth",
        set: |s, v| store(&mut s.limits.index_depth, count(v)),
        show: |s| s.limits.index_depth.into(),
    },
    Key {
        name: "limits.entries",
        set: |s, v| store(&mut s.limits.entries, count(v)),
        show: |s| s.limits.entries.into(),
    },
    Key {
        name: "limits.descriptors",
        set: |s, v| store(&mut s.limits.descriptors, count(v)),
        show: |s| (s.limits.descriptors as u64).into(),
    },
    Key {
        name: "limits.images",
        set: |s, v| store(&mut s.limits.images, count(v)),
        show: |s| (s.limits.images as u64).into(),
    },
    Key {
        name: "limits.names",
        set: |s, v| store(&mut s.limits.names, count(v)),
        show: |s| (s.limits.names as u64).into(),
    },
    Key {
        name: "limits.records",
        set: |s, v| store(&mut s.most_records, count(v)),
        show: |s| (s.most_records as u64).into(),
    },
    Key {
        name: "limits.extendedHeader",
        set: |s, v| store(&mut s.limits.extended_header, size(v)),
        show: |s| shown_size(s.limits.extended_header),
    },
    Key {
        name: "limits.zstdWindow",
        set: |s, v| store(&mut s.limits.zstd_window_log, window(v)),
        show: |s| shown_size(1 << s.limits.zstd_window_log),
    },
    Key {
        name: "limits.expansion",
        set: |s, v| store(&mut s.limits.expansion, count(v)),
        show: |s| s.limits.expansion.into(),
    },
    Key {
        name: "log.level",
        set: |s, v| store(&mut s.log.level, word(v, LEVELS)),
        show: |s| shown_word(s.log.level, LEVELS),
    },
    Key {
        name: "log.format",
        set: |s, v| store(&mut s.log.format, word(v, FORMATS)),
        show: |s| shown_word(s.log.format, FORMATS),
    },
];

/// Keys that hold keys.
const GROUPS: [&str; 3] = ["require", "limits", "log"];

/// A key that earlier versions had, alone or as a group. A value of it is told of and changes nothing.
struct Removed {
    name: &'static str,
    /// What does its work now.
    instead: &'static str,
}

/// Keys that are gone: a configuration that still has one stays usable.
const REMOVED: &[Removed] = &[Removed {
    name: "pressure",
    instead: "`CPUWeight=` and `IOWeight=` of the unit let other programs go first, and `rateLimit` bounds what imports send",
}];

impl Removed {
    /// The removed key that a key or a variable stands for.
    fn of(typed: &str) -> Option<&'static Removed> {
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

/// Keys that say what the daemon is bound to while it runs.
const UNTIL_RESTART: [&str; 10] = [
    "distribution",
    "dataDir",
    "imagesDir",
    "stateDir",
    "runtimeDir",
    "metricsAddress",
    "address",
    "namespace",
    "log.level",
    "log.format",
];

/// Puts new settings in the place of old ones, as far as that goes without a restart.
pub(crate) fn reload(old: &Settings, new: Settings) -> Reloaded {
    let differs = |key: &&Key| (key.show)(old) != (key.show)(&new);
    let changed: Vec<&'static Key> = KEYS.iter().filter(differs).collect();
    let (postponed, applied): (Vec<_>, Vec<_>) = changed
        .into_iter()
        .partition(|key| UNTIL_RESTART.contains(&key.name));
    let mut settings = new;
    for key in &postponed {
        (key.set)(&mut settings, &(key.show)(old)).expect("what is shown can be read again");
    }
    let names = |keys: Vec<&'static Key>| keys.into_iter().map(|key| key.name).collect();
    Reloaded {
        settings,
        applied: names(applied),
        postponed: names(postponed),
    }
}

/// Where a value comes from; the later ones win.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Origin {
    Default,
    File,
    Environment,
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Default => "default",
            Origin::File => "file",
            Origin::Environment => "environment",
            Origin::Flag => "flag",
        })
    }
}

/// The exact place of a value, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    File { path: PathBuf, line: Option<usize> },
    Variable(String),
    Flag(&'static str),
}

impl Place {
    fn origin(&self) -> Origin {
        match self {
            Place::File { .. } => Origin::File,
            Place::Variable(_) => Origin::Environment,
            Place::Flag(_) => Origin::Flag,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File {
                path,
                line: Some(line),
            } => write!(f, "{}:{line}", path.display()),
            Place::File { path, line: None } => write!(f, "{}", path.display()),
            Place::Variable(name) => write!(f, "environment variable {name}"),
            Place::Flag(name) => f.write_str(name),
        }
    }
}

/// One value that somebody typed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Given {
    pub(crate) key: String,
    pub(crate) value: Value,
    pub(crate) place: Place,
}

impl Given {
    pub(crate) fn flag(flag: &'static str, key: &str, value: impl Into<Value>) -> Given {
        Given {
            key: key.to_owned(),
            value: value.into(),
            place: Place::Flag(flag),
        }
    }
}

/// Something that is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mistake {
    pub(crate) place: Place,
    /// The key, where one is concerned.
    pub(crate) key: Option<String>,
    pub(crate) what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if let (Some(key), Place::File { .. }) = (&self.key, &self.place) {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.what)
    }
}

/// Everything that is wrong with the configuration, in the order file, environment, flags.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mistakes(pub(crate) Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration is not usable")?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl std::error::Error for Mistakes {}

/// Settings together with where each comes from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) settings: Settings,
    origins: BTreeMap<&'static str, Origin>,
    /// The file that was read, if any was there.
    pub(crate) file: Option<PathBuf>,
    /// What was typed and has no effect any more: one for each place that has a removed key.
    pub(crate) removed: Vec<Mistake>,
}

impl Config {
    /// Every key with its effective value and origin, in the order of the documentation.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let origin = |key: &Key| self.origins.get(key.name).copied().unwrap_or(Origin::Default);
        let row = |key: &Key| Row {
            key: key.name,
            value: (key.show)(&self.settings),
            origin: origin(key),
        };
        KEYS.iter().map(row).collect()
    }

    /// Warns of each place that has a removed key.
    pub(crate) fn tell_of_removed(&self) {
        for removed in &self.removed {
            tracing::warn!("{removed}");
        }
    }
}

/// One line of `airgapd config`; in JSON `{"key": …, "value": …, "origin": …}`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    pub(crate) key: &'static str,
    /// `null` where the value follows from the distribution, or there is none.
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // JSON is YAML, and short values look the same in both.
        let value = serde_json::to_string(&self.value).unwrap_or_default();
        write!(f, "{}: {value}  # {}", self.key, self.origin)
    }
}

/// Flags that every command takes.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Common {
    /// Configuration file [default: /etc/airgapd/config.yaml, which may be missing]
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
    /// Data folder of the Kubernetes distribution; bundles lie in its images folder
    #[arg(long, value_name = "FOLDER", global = true)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Folder in which bundles lie, if it is not the one below the data folder
    #[arg(long, value_name = "FOLDER", global = true)]
    pub(crate) images_dir: Option<PathBuf>,
    /// Folder in which airgapd remembers what it did
    #[arg(long, value_name = "FOLDER", global = true)]
    pub(crate) state_dir: Option<PathBuf>,
    /// Socket of containerd
    #[arg(long, value_name = "SOCKET", global = true)]
    pub(crate) address: Option<PathBuf>,
    /// Namespace in containerd; Kubernetes uses k8s.io
    #[arg(long, value_name = "NAME", global = true)]
    pub(crate) namespace: Option<String>,
    /// Form of the answer: text or json [default: text]; of commands that make a bundle also its file, `-` for standard
    /// output
    #[arg(short, long, value_name = "text|json|FILE", value_parser = Output::parse, global = true)]
    pub(crate) output: Vec<Output>,
    /// Say more; twice for everything
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
    /// Say nothing but errors
    #[arg(short, long, conflicts_with = "verbose", global = true)]
    pub(crate) quiet: bool,
}

/// A value of `--output`: the form of the answer, or where a bundle goes. A file by the name of a form is `./json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Form(OutputFormat),
    File(PathBuf),
}

impl Output {
    #[expect(clippy::unnecessary_wraps, reason = "the command line's parsers may fail")]
    fn parse(text: &str) -> Result<Self, String> {
        Ok(match text {
            "text" => Self::Form(OutputFormat::Text),
            "json" => Self::Form(OutputFormat::Json),
            file => Self::File(file.into()),
        })
    }
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    #[default]
    Text,
    Json,
}

/// Whether a command line asks for a document, as far as that can be told of one that is not understood.
pub(crate) fn asks_for_json(arguments: impl Iterator<Item = OsString>) -> bool {
    let words: Vec<OsString> = arguments.collect();
    let in_one = ["-ojson", "-o=json", "--output=json"];
    let in_two = |pair: &[OsString]| (pair[0] == "-o" || pair[0] == "--output") && pair[1] == "json";
    words.iter().any(|word| in_one.iter().any(|form| word == form)) || words.windows(2).any(in_two)
}

/// The flag of the commands that judge platforms.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct PlatformFlag {
    /// Act as if the node were this platform, such as linux/arm64; `all` takes everything
    #[arg(long = "platform", value_name = "PLATFORM")]
    pub(crate) platforms: Vec<String>,
}

impl PlatformFlag {
    /// What was typed, for [`load`].
    pub(crate) fn given(&self) -> Vec<Given> {
        let value: Value = self.platforms.iter().cloned().collect();
        let typed = !self.platforms.is_empty();
        typed
            .then(|| Given::flag("--platform", "platforms", value))
            .into_iter()
            .collect()
    }
}

/// The flag of the commands that import.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct RateFlag {
    /// Send at most so many bytes a second, such as 50MiB; 0 for no limit
    #[arg(long, value_name = "SIZE")]
    pub(crate) rate_limit: Option<String>,
}

impl RateFlag {
    /// What was typed, for [`load`].
    pub(crate) fn given(&self) -> Option<Given> {
        let text = self.rate_limit.as_deref()?;
        Some(Given::flag("--rate-limit", "rateLimit", text))
    }
}

impl Common {
    /// The form of the answer; the last one that was typed.
    pub(crate) fn form(&self) -> OutputFormat {
        let mut forms = self.output.iter().filter_map(|output| match output {
            Output::Form(form) => Some(*form),
            Output::File(_) => None,
        });
        forms.next_back().unwrap_or_default()
    }

    /// The file that a bundle goes to; the last one that was typed.
    pub(crate) fn file(&self) -> Option<&Path> {
        let mut files = self.output.iter().filter_map(|output| match output {
            Output::Form(_) => None,
            Output::File(file) => Some(file.as_path()),
        });
        files.next_back()
    }

    /// What was typed. Relative paths are relative to the working directory, as in every program.
    fn given(&self, mistakes: &mut Vec<Mistake>) -> Vec<Given> {
        let paths = [
            ("--data-dir", "dataDir", &self.data_dir),
            ("--images-dir", "imagesDir", &self.images_dir),
            ("--state-dir", "stateDir", &self.state_dir),
            ("--address", "address", &self.address),
        ];
        let mut given = Vec::new();
        for (flag, key, path) in paths {
            let Some(path) = path else { continue };
            match flag_path(path) {
                Ok(text) => given.push(Given::flag(flag, key, text)),
                Err(what) => mistakes.push(Mistake {
                    place: Place::Flag(flag),
                    key: Some(key.into()),
                    what,
                }),
            }
        }
        given.extend(
            self.namespace
                .iter()
                .map(|name| Given::flag("--namespace", "namespace", name.as_str())),
        );
        match (self.quiet, self.verbose) {
            (true, _) => given.push(Given::flag("--quiet", "log.level", "error")),
            (false, 0) => {}
            (false, 1) => given.push(Given::flag("--verbose", "log.level", "debug")),
            (false, _) => given.push(Given::flag("--verbose", "log.level", "trace")),
        }
        given
    }
}

fn flag_path(path: &Path) -> Result<String, String> {
    if path.to_str().is_some_and(|text| text.starts_with("unix:")) {
        return Ok(path.display().to_string());
    }
    let absolute = std::path::absolute(path).map_err(|error| error.to_string())?;
    absolute
        .into_os_string()
        .into_string()
        .map_err(|path| format!("{} is not UTF-8", path.display()))
}

/// Reads the file, the environment and the flags, and resolves them.
///
/// # Errors
///
/// Every mistake in any of them.
pub(crate) fn load(
    common: &Common,
    more_flags: Vec<Given>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Config, Mistakes> {
    let mut mistakes = Vec::new();
    let (variables, file_variable) = from_environment(environment, &mut mistakes);
    let named = match (&common.config, file_variable) {
        (Some(path), _) => Some((path.clone(), Place::Flag("--config"))),
        (None, Some(path)) => Some((path, Place::Variable("AIRGAPD_CONFIG".to_owned()))),
        (None, None) => None,
    };
    let (file, mut given) = read_file(named, &mut mistakes);
    given.extend(variables);
    given.extend(common.given(&mut mistakes));
    given.extend(more_flags);
    match resolve(given) {
        Ok(mut config) if mistakes.is_empty() => {
            config.file = file;
            Ok(config)
        }
        Ok(_) => Err(Mistakes(mistakes)),
        Err(Mistakes(more)) => Err(Mistakes(mistakes.into_iter().chain(more).collect())),
    }
}

fn read_file(named: Option<(PathBuf, Place)>, mistakes: &mut Vec<Mistake>) -> (Option<PathBuf>, Vec<Given>) {
    let path = named
        .as_ref()
        .map_or_else(|| PathBuf::from(DEFAULT_FILE), |(path, _)| path.clone());
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let given = from_yaml(&path, &text, mistakes);
            (Some(path), given)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => (None, Vec::new()),
        Err(error) => {
            let place = named.map_or(
                Place::File {
                    path: path.clone(),
                    line: None,
                },
                |(_, place)| place,
            );
            let what = format!("cannot read {}: {error}", path.display());
            mistakes.push(Mistake {
                place,
                key: None,
                what,
            });
            (None, Vec::new())
        }
    }
}

/// Takes a configuration file apart. What is no YAML at all is one mistake, with its line.
pub(crate) fn from_yaml(path: &Path, text: &str, mistakes: &mut Vec<Mistake>) -> Vec<Given> {
    let place = |line| Place::File {
        path: path.to_owned(),
        line,
    };
    let root = match serde_yaml::from_str::<Value>(text) {
        Ok(Value::Null) => return Vec::new(),
        Ok(Value::Mapping(root)) => root,
        Ok(other) => {
            let what = format!(
                "expects keys with values, such as `resync: 10m`, got {}",
                kind(&other)
            );
            mistakes.push(Mistake {
                place: place(None),
                key: None,
                what,
            });
            return Vec::new();
        }
        Err(error) => {
            let line = error.location().map(|location| location.line());
            mistakes.push(Mistake {
                place: place(line),
                key: None,
                what: error.to_string(),
            });
            return Vec::new();
        }
    };
    let mut given = Vec::new();
    for (key, value) in root {
        let key = key_text(&key);
        match value {
            Value::Mapping(members) if GROUPS.contains(&key.as_str()) => {
                for (member, value) in members {
                    let member = key_text(&member);
                    let place = place(line_of(text, &[&key, &member]));
                    given.push(Given {
                        key: format!("{key}.{member}"),
                        value,
                        place,
                    });
                }
            }
            Value::Null if GROUPS.contains(&key.as_str()) => {}
            value => given.push(Given {
                place: place(line_of(text, &[&key])),
                key,
                value,
            }),
        }
    }
    given
}

/// A key as text; one that is no text (`1: x`, `true: x`) is unknown anyway.
fn key_text(key: &Value) -> String {
    match key {
        Value::String(text) => text.clone(),
        other => serde_json::to_string(other).unwrap_or_else(|_| kind(other).to_owned()),
    }
}

/// The line (from 1) of a key given by its path, in block style; a YAML value does not know its line.
fn line_of(text: &str, path: &[&str]) -> Option<usize> {
    let [wanted, rest @ ..] = path else { return None };
    let mut lines = text.lines().enumerate();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let is_key = |line: &str, key: &str| {
        let bare = line.trim_start().trim_start_matches(['"', '\'']);
        let after = bare
            .strip_prefix(key)
            .map(|after| after.trim_start_matches(['"', '\'']).trim_start());
        after.is_some_and(|after| after.starts_with(':'))
    };
    let (number, line) = lines.find(|(_, line)| indent(line) == 0 && is_key(line, wanted))?;
    match rest {
        [] => Some(number + 1),
        [member, ..] => lines
            .take_while(|(_, line)| indent(line) > 0 || line.trim().is_empty() || line.starts_with('#'))
            .find(|(_, line)| is_key(line, member))
            .map(|(number, _)| number + 1)
            // `log: {level: debug}` has it all on one line.
            .or_else(|| line.contains(member).then_some(number + 1)),
    }
}

const PREFIX: &str = "AIRGAPD_";

/// Takes the variables that begin with `AIRGAPD_`, and the path of the configuration file from among
/// them. An empty variable is one that is not set.
fn from_environment(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    mistakes: &mut Vec<Mistake>,
) -> (Vec<Given>, Option<PathBuf>) {
    let mut given = Vec::new();
    let mut file = None;
    for (name, value) in environment {
        let Some(name) = name
            .to_str()
            .filter(|name| name.starts_with(PREFIX) && !is_service_link(name))
        else {
            continue;
        };
        let place = Place::Variable(name.to_owned());
        if name == "AIRGAPD_CONFIG" && !value.is_empty() {
            file = Some(PathBuf::from(value));
            continue;
        }
        let key = key_of_variable(name);
        match value.into_string() {
            Ok(text) if text.is_empty() => {}
            Ok(text) => given.push(Given {
                key,
                value: text.into(),
                place,
            }),
            Err(_) => mistakes.push(Mistake {
                place,
                key: Some(key),
                what: "is not UTF-8".to_owned(),
            }),
        }
    }
    given.sort_by(|a, b| a.key.cmp(&b.key));
    (given, file)
}

/// Kubernetes gives every container variables for the services of its namespace; one called
/// "airgapd" must not break us.
fn is_service_link(name: &str) -> bool {
    let rest = &name[PREFIX.len()..];
    rest.starts_with("SERVICE_") || rest == "PORT" || rest.starts_with("PORT_")
}

/// `AIRGAPD_DATA_DIR` for `dataDir`, `AIRGAPD_LIMITS_JSON_DOCUMENT` for `limits.jsonDocument`.
fn variable_of_key(key: &str) -> String {
    let mut variable = PREFIX.to_owned();
    for c in key.chars() {
        match c {
            '.' => variable.push('_'),
            upper if upper.is_ascii_uppercase() => variable.extend(['_', upper]),
            lower => variable.push(lower.to_ascii_uppercase()),
        }
    }
    variable
}

fn key_of_variable(variable: &str) -> String {
    let mut known = KEYS.iter().map(|key| key.name);
    known
        .find(|key| variable_of_key(key) == variable)
        .unwrap_or(variable)
        .to_owned()
}

/// Makes settings of what was typed; of several values for a key, the one with the strongest origin
/// counts, but all are checked.
///
/// # Errors
///
/// Every mistake, in the order of the values.
pub(crate) fn resolve(given: Vec<Given>) -> Result<Config, Mistakes> {
    let mut config = Config {
        settings: Settings::default(),
        origins: BTreeMap::new(),
        file: None,
        removed: Vec::new(),
    };
    let mut mistakes = Vec::new();
    for Given { key, value, place } in given {
        if let Some(removed) = Removed::of(&key) {
            config.removed.push(Mistake {
                place,
                what: format!(
                    "`{}` is gone and has no effect: {}",
                    removed.name, removed.instead
                ),
                key: Some(key),
            });
            continue;
        }
        let set = |known: &'static Key, settings: &mut Settings| (known.set)(settings, &value);
        let origin = place.origin();
        let result = match KEYS.iter().find(|known| known.name == key) {
            // Checked, but overruled.
            Some(known)
                if config
                    .origins
                    .get(known.name)
                    .is_some_and(|stronger| *stronger > origin) =>
            {
                set(known, &mut Settings::default())
            }
            Some(known) => {
                config.origins.insert(known.name, origin);
                set(known, &mut config.settings)
            }
            None => Err(not_a_key(&key)),
        };
        if let Err(what) = result {
            mistakes.push(Mistake {
                place,
                key: Some(key),
                what,
            });
        }
    }
    if mistakes.is_empty() {
        Ok(config)
    } else {
        Err(Mistakes(mistakes))
    }
}

fn not_a_key(key: &str) -> String {
    let plain = |text: &str| text.replace(['_', '-', '.'], "").to_ascii_lowercase();
    let alike = KEYS
        .iter()
        .find(|known| plain(known.name) == plain(key) || plain(&variable_of_key(known.name)) == plain(key));
    let group = GROUPS
        .contains(&key)
        .then(|| format!("holds keys of its own, such as `{}`", member_of(key)));
    match (group, alike) {
        (Some(group), _) => group,
        (None, Some(known)) => format!("there is no such key; did you mean `{}`?", known.name),
        (None, None) => "there is no such key".to_owned(),
    }
}

fn member_of(group: &str) -> &'static str {
    let prefix = format!("{group}.");
    KEYS.iter()
        .find_map(|key| key.name.strip_prefix(&prefix))
        .unwrap_or_default()
}

// Readers: each takes what was typed and says in a few words what it would have liked instead.

fn store<T>(place: &mut T, value: Result<T, String>) -> Result<(), String> {
    *place = value?;
    Ok(())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Sequence(_) => "a list",
        Value::Mapping(_) => "keys with values",
        Value::Tagged(_) => "a tagged value",
    }
}

fn got(wanted: &str, value: &Value) -> String {
    match value {
        Value::String(text) => format!("expects {wanted}, got {}", basics::foreign::quoted(text)),
        Value::Number(number) => format!("expects {wanted}, got {number}"),
        Value::Bool(truth) => format!("expects {wanted}, got {truth}"),
        other => format!("expects {wanted}, got {}", kind(other)),
    }
}

fn optional<T>(value: &Value, read: fn(&Value) -> Result<T, String>) -> Result<Option<T>, String> {
    match value {
        Value::Null => Ok(None),
        value => read(value).map(Some),
    }
}

fn text<'a>(value: &'a Value, wanted: &str) -> Result<&'a str, String> {
    value
        .as_str()
        .filter(|text| !text.is_empty())
        .ok_or_else(|| got(wanted, value))
}

fn word<T: Copy>(value: &Value, words: Words<T>) -> Result<T, String> {
    let known = words.iter().find(|(name, _)| value.as_str() == Some(name));
    known.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let names: Vec<_> = words.iter().map(|(name, _)| *name).collect();
        got(&format!("one of {}", names.join(", ")), value)
    })
}

fn on_removal(value: &Value) -> Result<OnRemoval, String> {
    word(value, ON_REMOVAL)
}

fn truth(value: &Value) -> Result<bool, String> {
    match value {
        Value::Bool(truth) => Ok(*truth),
        Value::String(text) if text == "true" => Ok(true),
        Value::String(text) if text == "false" => Ok(false),
        other => Err(got("true or false", other)),
    }
}

fn absolute_path(value: &Value) -> Result<PathBuf, String> {
    let path = Path::new(text(value, "an absolute path")?);
    match path.is_absolute() && !path.as_os_str().as_encoded_bytes().contains(&0) {
        true => Ok(path.to_owned()),
        false => Err(got("an absolute path", value)),
    }
}

fn absolute_paths(value: &Value) -> Result<Vec<PathBuf>, String> {
    let paths = list(value, "absolute paths")?;
    paths
        .iter()
        .map(|path| absolute_path(&path.as_str().into()))
        .collect()
}

/// 1.34 is a number to YAML, and 1.30 the same as 1.3: so only text will do.
fn release(value: &Value) -> Result<String, String> {
    text(
        value,
        "a release of k0s as text, such as v1.34.10+k0s.0 or \"1.34\"",
    )
    .map(str::to_owned)
}

fn sandbox_image(value: &Value) -> Result<String, String> {
    let reference = text(value, "an image such as registry.k8s.io/pause:3.10")?;
    checked_reference(reference).map(|_| reference.to_owned())
}

/// An address that only this machine can reach: whoever wants more puts a proxy in front that knows who may ask.
fn loopback(value: &Value) -> Result<SocketAddr, String> {
    let wanted = "an address of this machine with a port, such as 127.0.0.1:9799";
    let address: SocketAddr = text(value, wanted)?.parse().map_err(|_| got(wanted, value))?;
    match address.ip().is_loopback() {
        true => Ok(address),
        false => Err(got(wanted, value)),
    }
}

fn socket(value: &Value) -> Result<PathBuf, String> {
    let address = text(value, "the path of a socket")?;
    let path = address
        .strip_prefix("unix://")
        .or(address.strip_prefix("unix:"))
        .unwrap_or(address);
    absolute_path(&path.into())
        .map_err(|_| got("the path of a socket, such as /run/k0s/containerd.sock", value))
}

/// As containerd checks it: letters and digits, with single `-`, `_` or `.` between, at most 76.
fn namespace(value: &Value) -> Result<String, String> {
    const WANTED: &str = "a namespace such as k8s.io";
    let name = text(value, WANTED)?;
    let parts = || name.split(['-', '_', '.']);
    let valid = name.len() <= 76
        && parts().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    if valid {
        Ok(name.to_owned())
    } else {
        Err(got(WANTED, value))
    }
}

fn duration(value: &Value) -> Result<Duration, String> {
    let read = match value {
        Value::String(text) => humantime::parse_duration(text).ok(),
        _ => None,
    };
    read.ok_or_else(|| got("a duration such as 10m or 20s", value))
}

fn at_least(least: Duration, value: &Value) -> Result<Duration, String> {
    match duration(value)? {
        given if given >= least => Ok(given),
        _ => Err(got(
            &format!("at least {}", humantime::format_duration(least)),
            value,
        )),
    }
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

/// A limit of 0 would refuse every bundle, which nobody means.
fn count<T: TryFrom<u64>>(value: &Value) -> Result<T, String> {
    let positive = number(value).filter(|number| *number > 0);
    positive
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| got("a number above 0", value))
}

const UNITS: [(&str, u32); 5] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("B", 0)];

fn size(value: &Value) -> Result<u64, String> {
    size_or_zero(value)
        .filter(|size| *size > 0)
        .ok_or_else(|| got("a size such as 8MiB", value))
}

fn size_or_zero(value: &Value) -> Option<u64> {
    let with_unit = |text: &str| {
        let (digits, shift) = UNITS
            .iter()
            .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)))?;
        digits.trim_end().parse::<u64>().ok()?.checked_mul(1 << shift)
    };
    number(value).or_else(|| with_unit(value.as_str()?))
}

fn percent(text: &str) -> Option<u8> {
    text.strip_suffix('%')?.trim_end().parse().ok()
}

/// Bytes a second. Slower than this, a large blob would outlive its lease, and other importers would take it for given up.
const SLOWEST: u64 = 1 << 20;

fn rate(value: &Value) -> Result<Option<u64>, String> {
    match (value, size_or_zero(value)) {
        (Value::Null, _) | (_, Some(0)) => Ok(None),
        (_, Some(bytes)) if bytes >= SLOWEST => Ok(Some(bytes)),
        _ => Err(got(
            "bytes a second such as 50MiB, at least 1MiB, or 0 for no limit",
            value,
        )),
    }
}

/// So many bytes, or so many hundredths of the disk.
fn min_free(value: &Value) -> Result<MinFree, String> {
    let read = match value.as_str().and_then(percent) {
        Some(percent) => Some(MinFree::Percent(percent)).filter(|_| percent <= 100),
        None => size_or_zero(value).map(MinFree::Bytes),
    };
    read.ok_or_else(|| got("a size such as 5GiB or a part of the disk such as 10%", value))
}

/// The binary logarithm of a window, which is a power of two. zstd knows none below 1 KiB or beyond 2 GiB.
fn window(value: &Value) -> Result<u32, String> {
    let bytes = size(value)?;
    match bytes.trailing_zeros() {
        log @ 10..=31 if bytes.is_power_of_two() => Ok(log),
        _ => Err(got("a power of two between 1KiB and 2GiB, such as 128MiB", value)),
    }
}

/// A list in the file; in a variable, the items with commas between.
fn list(value: &Value, wanted: &str) -> Result<Vec<String>, String> {
    match value {
        Value::Sequence(items) => items
            .iter()
            .map(|item| text(item, wanted).map(str::to_owned))
            .collect(),
        Value::String(items) => Ok(items.split(',').map(str::trim).map(str::to_owned).collect()),
        other => Err(got(&format!("a list of {wanted}"), other)),
    }
}

fn platform_choice(value: &Value) -> Result<PlatformChoice, String> {
    let items = list(value, "platforms such as linux/arm64")?;
    PlatformChoice::of(&items).map_err(|invalid| match invalid {
        InvalidChoice::AllAndOthers => "`all` takes every platform, so no other belongs beside it".to_owned(),
        InvalidChoice::NoPlatform { error, .. } => error.to_string(),
    })
}

fn aliases(value: &Value) -> Result<Vec<Alias>, String> {
    const WANTED: &str = "aliases such as quay.io/k0sproject=registry.local/k0s";
    let alias = |item: &String| match item.split_once('=') {
        Some((from, to)) if is_prefix(from) && is_prefix(to) => Ok(Alias {
            from: from.to_owned(),
            to: to.to_owned(),
        }),
        _ => Err(got(WANTED, &item.as_str().into())),
    };
    list(value, WANTED)?.iter().map(alias).collect()
}

/// Whether a name can begin with this text.
fn is_prefix(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:[]".contains(&byte);
    !text.is_empty() && !text.starts_with('/') && text.bytes().all(allowed)
}

fn patterns(value: &Value) -> Result<Vec<Pattern>, String> {
    const WANTED: &str = "patterns of names such as quay.io/k0sproject/*";
    let pattern = |item: &String| {
        item.parse::<Pattern>()
            .map_err(|error| format!("{}: {error}", got(WANTED, &item.as_str().into())))
    };
    list(value, WANTED)?.iter().map(pattern).collect()
}

fn names(value: &Value) -> Result<BTreeMap<String, Reference>, String> {
    const WANTED: &str = "names by digest, such as `sha256:…: registry.local/app:1`";
    let pairs: Vec<(String, String)> = match value {
        Value::Mapping(names) => {
            let pair = |(digest, name): (&Value, &Value)| {
                Some((digest.as_str()?.to_owned(), name.as_str()?.to_owned()))
            };
            names
                .iter()
                .map(pair)
                .collect::<Option<_>>()
                .ok_or_else(|| got(WANTED, value))?
        }
        Value::String(_) => {
            let pair = |item: &String| {
                item.split_once('=')
                    .map(|(digest, name)| (digest.to_owned(), name.to_owned()))
            };
            list(value, WANTED)?
                .iter()
                .map(pair)
                .collect::<Option<_>>()
                .ok_or_else(|| got(WANTED, value))?
        }
        other => return Err(got(WANTED, other)),
    };
    pairs
        .into_iter()
        .map(|(digest, name)| Ok((checked_digest(&digest)?, checked_reference(&name)?)))
        .collect()
}

fn checked_digest(text: &str) -> Result<String, String> {
    let expected = "a digest such as sha256:… with 64 hexadecimal digits";
    let digest = digest::parse(text).map_err(|_| got(expected, &text.into()))?;
    Ok(digest.to_string())
}

fn checked_reference(text: &str) -> Result<Reference, String> {
    text.parse()
        .map_err(|error: import::names::InvalidReference| error.to_string())
}

fn base_name(value: &Value) -> Result<String, String> {
    const WANTED: &str = "a repository such as registry.local/app";
    let name = text(value, WANTED)?;
    match format!("{name}:tag").parse::<Reference>() {
        Ok(reference) if reference.tag() == Some("tag") => Ok(name.to_owned()),
        _ => Err(got(WANTED, &name.into())),
    }
}

// The way back, for `airgapd config`.

fn shown_word<T: Copy + PartialEq>(meaning: T, words: Words<T>) -> Value {
    let name = words
        .iter()
        .find(|(_, known)| *known == meaning)
        .map(|(name, _)| *name);
    name.expect("every meaning has its word").into()
}

fn shown_path(path: Option<&Path>) -> Value {
    path.map_or(Value::Null, |path| path.display().to_string().into())
}

fn shown_paths(paths: &[PathBuf]) -> Value {
    paths.iter().map(|path| shown_path(Some(path))).collect()
}

fn shown_duration(duration: Duration) -> Value {
    humantime::format_duration(duration).to_string().into()
}

fn shown_size(size: u64) -> Value {
    let divides = |shift: u32| size.trailing_zeros() >= shift;
    let unit = UNITS
        .iter()
        .filter(|(_, shift)| divides(*shift))
        .max_by_key(|(_, shift)| *shift);
    let (unit, shift) = unit.expect("bytes divide everything");
    format!("{}{unit}", size >> shift).into()
}

fn shown_min_free(min_free: MinFree) -> Value {
    match min_free {
        MinFree::Bytes(0) => 0.into(),
        MinFree::Bytes(bytes) => shown_size(bytes),
        MinFree::Percent(percent) => format!("{percent}%").into(),
    }
}

fn shown_platforms(platforms: &PlatformChoice) -> Value {
    match platforms {
        PlatformChoice::Node => Value::Sequence(Vec::new()),
        PlatformChoice::All => Value::Sequence(vec!["all".into()]),
        PlatformChoice::These(platforms) => platforms.iter().map(ToString::to_string).collect(),
    }
}

fn shown_names(names: &BTreeMap<String, Reference>) -> Value {
    let pair = |(digest, name): (&String, &Reference)| (digest.as_str().into(), name.to_string().into());
    Value::Mapping(names.iter().map(pair).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Config, Vec<String>> {
        let mut mistakes = Vec::new();
        let given = from_yaml(Path::new("c.yaml"), text, &mut mistakes);
        let resolved = resolve(given);
        let more = resolved
            .as_ref()
            .err()
            .map(|more| more.0.clone())
            .unwrap_or_default();
        match resolved {
            Ok(config) if mistakes.is_empty() => Ok(config),
            _ => Err(mistakes.iter().chain(&more).map(ToString::to_string).collect()),
        }
    }

    fn settings(text: &str) -> Settings {
        file(text).unwrap().settings
    }

    fn value_of(config: &Config, key: &str) -> (String, Origin) {
        let row = config.rows().into_iter().find(|row| row.key == key).unwrap();
        (serde_json::to_string(&row.value).unwrap(), row.origin)
    }

    fn environment(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        pairs
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect()
    }

    /// Flags that name a file that is there, so that no test depends on this machine's /etc.
    fn common(file: &Path) -> Common {
        Common {
            config: Some(file.to_owned()),
            ..Common::default()
        }
    }

    #[test]
    fn the_annotated_file_has_every_key_with_its_default_and_no_other() {
        let text = include_str!("../../../config/config.yaml");
        let mut mistakes = Vec::new();
        let given = from_yaml(Path::new("config.yaml"), text, &mut mistakes);
        assert_eq!(mistakes, []);
        let keys: Vec<_> = given.iter().map(|given| given.key.clone()).collect();
        let known: Vec<_> = KEYS.iter().map(|key| key.name).collect();
        assert_eq!(keys, known, "the same keys in the same order");

        let written: Vec<_> = given.iter().map(|given| given.value.clone()).collect();
        let config = resolve(given).unwrap();
        assert_eq!(config.settings, Settings::default());
        let shown: Vec<_> = config.rows().into_iter().map(|row| row.value).collect();
        assert_eq!(written, shown, "values look as `airgapd config` shows them");
    }

    #[test]
    fn the_annotated_file_names_the_variable_of_every_key() {
        let text = include_str!("../../../config/config.yaml");
        assert!(text.contains("AIRGAPD_"));
        for key in KEYS {
            assert_eq!(key_of_variable(&variable_of_key(key.name)), key.name);
        }
    }

    #[test]
    fn nothing_typed_gives_the_defaults() {
        for text in ["", "# only a comment\n", "---\n", "log:\nlimits:\n"] {
            assert_eq!(settings(text), Settings::default(), "{text:?}");
        }
    }

    #[test]
    fn values_of_every_kind_are_read() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let text = format!(
            "distribution: k3s\ndataDir: /data\naddress: unix:///run/x.sock\ncri: false\n\
             platforms: [linux/arm64, linux/amd64]\nresync: 1h 30m\ngrace: 0s\nonRemoval: keep\n\
             aliases: [a.io/x=b.io/y]\nnames: {{{digest}: busybox}}\nbaseName: registry.local/app\n\
             digestReferences: none\nallowedNames: ['*/app:?']\npriority: ['*/dns:*']\nchecksums: off\ntrustedDigests: /etc/trusted\nlimits:\n  jsonDocument: 1 MiB\n  images: 7\nlog: {{level: debug}}\n"
        );
        let settings = settings(&text);
        assert_eq!(settings.distribution, Some(Distribution::K3s));
        assert_eq!(settings.data_dir, Some("/data".into()));
        assert_eq!(settings.address, Some("/run/x.sock".into()));
        assert!(!settings.cri);
        assert!(matches!(&settings.platforms, PlatformChoice::These(platforms) if platforms.len() == 2));
        assert_eq!(
            (settings.resync, settings.grace),
            (Duration::from_secs(5400), Duration::ZERO)
        );
        assert_eq!(settings.on_removal, OnRemoval::Keep);
        assert_eq!(
            (settings.aliases[0].from.as_str(), settings.aliases[0].to.as_str()),
            ("a.io/x", "b.io/y")
        );
        assert_eq!(
            settings.names[&digest].to_string(),
            "docker.io/library/busybox:latest"
        );
        assert_eq!(settings.base_name.as_deref(), Some("registry.local/app"));
        assert_eq!(settings.digest_references, DigestReferences::None);
        assert_eq!(settings.allowed_names, ["*/app:?".parse().unwrap()]);
        assert_eq!(settings.priority, ["*/dns:*".parse().unwrap()]);
        assert_eq!(settings.checksums, Checksums::Off);
        assert_eq!(settings.trusted_digests, Some("/etc/trusted".into()));
        assert_eq!(
            (settings.limits.json_document, settings.limits.images),
            (1 << 20, 7)
        );
        assert_eq!(settings.log.level, LogLevel::Debug);
    }

    #[test]
    fn a_rate_is_read_in_every_way_it_may_be_typed() {
        let table = [
            ("", None),
            ("rateLimit: ~", None),
            ("rateLimit: 0", None),
            ("rateLimit: '0'", None),
            ("rateLimit: 50MiB", Some(50 << 20)),
            ("rateLimit: 1048576", Some(1 << 20)),
            ("rateLimit: 2 GiB", Some(2 << 30)),
        ];
        for (text, rate) in table {
            assert_eq!(settings(text).rate_limit, rate, "{text}");
        }
    }

    #[test]
    fn a_removed_key_is_told_of_once_with_its_place_and_changes_nothing() {
        let removed = |config: &Config| config.removed.iter().map(ToString::to_string).collect::<Vec<_>>();
        let table = [
            (
                "resync: 10m\npressure:\n  io: 40%\n  memory: 50%\n",
                "c.yaml:2: pressure: ",
            ),
            ("pressure: {io: 400%, cpu: x}\n", "c.yaml:1: pressure: "),
            ("\npressure:\n", "c.yaml:2: pressure: "),
            ("pressure: 5\n", "c.yaml:1: pressure: "),
            ("pressure.io: 40%\n", "c.yaml:1: pressure.io: "),
        ];
        for (text, place) in table {
            let config = file(text).unwrap();
            let [told] = removed(&config).try_into().unwrap();
            assert!(told.starts_with(place), "{text}: {told}");
            for part in ["is gone", "CPUWeight=", "IOWeight=", "rateLimit"] {
                assert!(told.contains(part), "{part} in {told}");
            }
            assert_eq!(config.settings, Settings::default(), "{text}");
            assert!(config.rows().iter().all(|row| !row.key.starts_with("pressure")));
        }

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.yaml");
        std::fs::write(&path, "").unwrap();
        let variables = environment(&[("AIRGAPD_PRESSURE_IO", "40%"), ("AIRGAPD_RATE_LIMIT", "50MiB")]);
        let config = load(&common(&path), Vec::new(), variables).unwrap();
        let [told] = removed(&config).try_into().unwrap();
        assert!(
            told.starts_with("environment variable AIRGAPD_PRESSURE_IO: "),
            "{told}"
        );
        assert_eq!(config.settings.rate_limit, Some(50 << 20));
    }

    #[test]
    fn a_key_that_only_begins_like_a_removed_one_is_a_mistake_and_no_removed_key_is_a_key() {
        for text in ["pressures: 5", "pressureIo: 40%"] {
            assert_eq!(file(text).unwrap_err().len(), 1, "{text}");
        }
        for key in KEYS {
            assert!(Removed::of(key.name).is_none(), "{}", key.name);
        }
    }

    #[test]
    fn all_mistakes_are_reported_at_once_each_with_its_line() {
        let text = "data_dir: /x\nresync: soon\n\nlimits:\n  # none\n  images: -1\n  imagez: 3\nlog: 5\nunpack: soon\n\
                    onRemoval: forget\nimagesDir: images\n";
        let expected = [
            "c.yaml:1: data_dir: there is no such key; did you mean `dataDir`?",
            "c.yaml:2: resync: expects a duration such as 10m or 20s, got \"soon\"",
            "c.yaml:6: limits.images: expects a number above 0, got -1",
            "c.yaml:7: limits.imagez: there is no such key",
            "c.yaml:8: log: holds keys of its own, such as `level`",
            "c.yaml:9: unpack: expects one of none, background, before-record, got \"soon\"",
            "c.yaml:10: onRemoval: expects one of unpin, keep, delete, got \"forget\"",
            "c.yaml:11: imagesDir: expects an absolute path, got \"images\"",
        ];
        assert_eq!(file(text).unwrap_err(), expected);
    }

    #[test]
    fn what_is_no_configuration_is_one_mistake_with_its_line() {
        let table = [
            ("a: [", "c.yaml"),
            ("- a\n- b\n", "c.yaml: expects keys with values"),
            ("cri: true\ncri: false\n", "cri"),
            ("a: 1\n\tb: 2\n", "c.yaml:2"),
            ("just text", "c.yaml: expects keys with values"),
            ("a: 1\n---\nb: 2\n", "more than one document"),
        ];
        for (text, part) in table {
            let mistakes = file(text).unwrap_err();
            assert_eq!(mistakes.len(), 1, "{text:?}: {mistakes:?}");
            assert!(mistakes[0].contains(part), "{text:?}: {mistakes:?}");
        }
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        let table = [
            "distribution: kind",
            "distribution: 1",
            "stateDir: ~",
            "stateDir: ''",
            "address: tcp://1.2.3.4:5",
            "namespace: a b",
            "namespace: ''",
            "namespace: 5",
            "cri: yes please",
            "platforms: [linux/amd64, all]",
            "platforms: ['!']",
            "platforms: 5",
            "resync: 0s",
            "resync: 10",
            "aliases: [a]",
            "aliases: ['=b']",
            "aliases: [{a: b}]",
            "names: {abc: busybox}",
            "names: {'md5:d41d8cd98f00b204e9800998ecf8427e': busybox}",
            "names: [x]",
            "baseName: 'Not A Name'",
            "baseName: ''",
            "allowedNames: ['a b']",
            "allowedNames: ['']",
            "allowedNames: [5]",
            "checksums: sometimes",
            "checksums: true",
            "trustedDigests: trusted",
            "pullLists: maybe",
            "require: {manifests: apps}",
            "require: {manifests: [apps]}",
            "require: {images: ['-']}",
            "require: {k0sVersion: 1.34}",
            "require: {sandboxImage: 'Not A Name'}",
            "rateLimit: fast",
            "rateLimit: 100KiB",
            "rateLimit: -1",
            "limits: {zstdWindow: 100MiB}",
            "limits: {zstdWindow: 4GiB}",
            "limits: {expansion: 0}",
            "limits: {entries: 0}",
            "limits: {jsonDocument: 8 apples}",
            "limits: {jsonDocument: 99999999999TiB}",
            "log: {format: xml}",
        ];
        for text in table {
            assert_eq!(file(text).unwrap_err().len(), 1, "{text}");
        }
    }

    #[test]
    fn flags_beat_variables_beat_the_file_beats_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.yaml");
        std::fs::write(&path, "namespace: file\nresync: 1m\ngrace: 1s\n").unwrap();
        let variables = environment(&[("AIRGAPD_NAMESPACE", "variable"), ("AIRGAPD_RESYNC", "2m")]);
        let flags = Common {
            namespace: Some("flag".into()),
            ..common(&path)
        };
        let config = load(&flags, Vec::new(), variables).unwrap();

        assert_eq!(value_of(&config, "namespace"), ("\"flag\"".into(), Origin::Flag));
        assert_eq!(
            value_of(&config, "resync"),
            ("\"2m\"".into(), Origin::Environment)
        );
        assert_eq!(value_of(&config, "grace"), ("\"1s\"".into(), Origin::File));
        assert_eq!(value_of(&config, "cri"), ("true".into(), Origin::Default));
        assert_eq!(config.file, Some(path));
    }

    #[test]
    fn an_overruled_value_is_still_checked() {
        let flags = vec![Given::flag(
            "--platform",
            "platforms",
            vec![Value::from("linux/arm64")],
        )];
        let mut mistakes = Vec::new();
        let mut given = flags;
        given.extend(from_yaml(Path::new("c.yaml"), "platforms: ['?']", &mut mistakes));
        assert_eq!(resolve(given).unwrap_err().0.len(), 1);
    }

    #[test]
    fn lists_and_maps_fit_into_variables() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.yaml");
        std::fs::write(&path, "").unwrap();
        let names = format!("sha256:{}=busybox", "a".repeat(64));
        let variables = environment(&[
            ("AIRGAPD_PLATFORMS", "linux/arm64, linux/amd64"),
            ("AIRGAPD_ALIASES", "a=b,c=d"),
            ("AIRGAPD_NAMES", &names),
            ("AIRGAPD_CRI", "false"),
            ("AIRGAPD_LIMITS_JSON_DOCUMENT", "1KiB"),
            ("AIRGAPD_LOG_LEVEL", "warn"),
            ("AIRGAPD_ADDRESS", ""),
            ("PATH", "/bin"),
            ("AIRGAPD_SERVICE_HOST", "10.0.0.1"),
            ("AIRGAPD_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ]);
        let settings = load(&common(&path), Vec::new(), variables).unwrap().settings;
        assert!(matches!(&settings.platforms, PlatformChoice::These(platforms) if platforms.len() == 2));
        assert_eq!(
            (settings.aliases.len(), settings.names.len(), settings.cri),
            (2, 1, false)
        );
        assert_eq!(
            (settings.limits.json_document, settings.log.level),
            (1024, LogLevel::Warn)
        );
        assert_eq!(settings.address, None);
    }

    #[test]
    fn mistakes_of_all_origins_come_together() {
        use std::os::unix::ffi::OsStringExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.yaml");
        std::fs::write(&path, "resync: x\n").unwrap();
        let mut variables = environment(&[("AIRGAPD_DATADIR", "/x"), ("AIRGAPD_UNPACK", "soon")]);
        variables.push(("AIRGAPD_STATE_DIR".into(), OsString::from_vec(vec![0xff])));
        let flags = Common {
            namespace: Some("a b".into()),
            ..common(&path)
        };
        let error = load(&flags, Vec::new(), variables).unwrap_err().to_string();
        for part in [
            "c.yaml:1: resync",
            "environment variable AIRGAPD_DATADIR: there is no such key; did you mean `dataDir`?",
            "environment variable AIRGAPD_UNPACK: expects one of none, background, before-record",
            "environment variable AIRGAPD_STATE_DIR: is not UTF-8",
            "--namespace: expects a namespace",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn a_file_that_is_named_must_be_there() {
        let missing = Path::new("/nonexistent/c.yaml");
        let error = load(&common(missing), Vec::new(), []).unwrap_err().to_string();
        assert!(
            error.contains("--config: cannot read /nonexistent/c.yaml"),
            "{error}"
        );
        let variables = environment(&[("AIRGAPD_CONFIG", "/nonexistent/c.yaml")]);
        let error = load(&Common::default(), Vec::new(), variables)
            .unwrap_err()
            .to_string();
        assert!(error.contains("AIRGAPD_CONFIG"), "{error}");
    }

    #[test]
    fn flags_set_the_log_level_and_relative_paths_become_absolute() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.yaml");
        std::fs::write(&path, "").unwrap();
        let with = |change: fn(&mut Common)| {
            let mut flags = common(&path);
            change(&mut flags);
            load(&flags, Vec::new(), []).unwrap().settings
        };
        assert_eq!(with(|flags| flags.quiet = true).log.level, LogLevel::Error);
        assert_eq!(with(|flags| flags.verbose = 1).log.level, LogLevel::Debug);
        assert_eq!(with(|flags| flags.verbose = 3).log.level, LogLevel::Trace);
        let images = with(|flags| flags.images_dir = Some("images".into()))
            .images_dir
            .unwrap();
        assert_eq!(images, std::env::current_dir().unwrap().join("images"));
        assert_eq!(
            with(|flags| flags.address = Some("unix:///a".into())).address,
            Some("/a".into())
        );
    }

    #[test]
    fn every_value_reads_back_as_it_is_shown() {
        let mut config = Config {
            settings: Settings::default(),
            origins: BTreeMap::new(),
            file: None,
            removed: Vec::new(),
        };
        config.settings.limits.json_document = 1025;
        config.settings.platforms = PlatformChoice::All;
        config.settings.rate_limit = Some(50 << 20);
        for row in config.rows() {
            let key = KEYS.iter().find(|key| key.name == row.key).unwrap();
            let mut again = config.settings.clone();
            (key.set)(&mut again, &row.value).unwrap();
            assert_eq!(again, config.settings, "{}", row.key);
        }
    }

    #[test]
    fn a_reload_takes_what_it_can_and_names_what_waits_for_a_restart() {
        let old = Settings::default();
        let new = Settings {
            resync: Duration::from_secs(7),
            exclude: vec!["r.test/*".parse().unwrap()],
            namespace: "other".to_owned(),
            state_dir: "/elsewhere".into(),
            ..Settings::default()
        };
        let reloaded = reload(&old, new.clone());
        assert_eq!(reloaded.applied, ["resync", "exclude"]);
        assert_eq!(reloaded.postponed, ["stateDir", "namespace"]);
        let wanted = Settings {
            namespace: old.namespace.clone(),
            state_dir: old.state_dir.clone(),
            ..new
        };
        assert_eq!(reloaded.settings, wanted);
    }

    #[test]
    fn every_key_that_waits_for_a_restart_is_a_key() {
        for name in UNTIL_RESTART {
            assert!(KEYS.iter().any(|key| key.name == name), "{name}");
        }
    }
}
