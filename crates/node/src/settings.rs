//! All settings of the operator, checked and typed, with the defaults. The program reads them from
//! the file, variables and flags.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use admission::Policy as Signatures;
use import::names::{Alias, DigestReferences};
use import::plan::OnConflict;
use import::space::MinFree;
use import::unpack::Unpack;
use import::{Naming, Pattern, Reference};
pub use platforms::PlatformChoice;
use verify::{K0sQuestion, Sources};

use crate::place::Distribution;

/// The configuration, checked and typed.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The distribution. `None` is `auto`: by evidence.
    pub distribution: Option<Distribution>,
    /// The data folder. `None` is the distribution's own.
    pub data_dir: Option<PathBuf>,
    /// The images folder. `None` is the distribution's folder below the data folder.
    pub images_dir: Option<PathBuf>,
    /// All images folders, if there is more than one: absolute, different and not nested, at most
    /// [`MOST_IMAGES_DIRS`]. The first stands in the place of `images_dir`. Without any folder,
    /// `images_dir` counts.
    pub images_dirs: Vec<PathBuf>,
    /// True if sub-folders of the images folders are searched for bundles, too. `None`: as the
    /// distribution's own importer does
    /// ([`Place::searches_sub_folders`](crate::place::Place::searches_sub_folders)).
    pub recursive: Option<bool>,
    /// The folder of `state.json` and the files beside it.
    pub state_dir: PathBuf,
    /// The folder of the control socket, and of the metrics file by default.
    pub runtime_dir: PathBuf,
    /// The file that node_exporter reads. `None` is a file in the runtime folder.
    pub metrics_file: Option<PathBuf>,
    /// The file for Node Feature Discovery's local source. `None` writes no such file.
    pub node_feature_file: Option<PathBuf>,
    /// Address on which metrics are also served, by HTTP.
    pub metrics_address: Option<SocketAddr>,
    /// containerd's socket. `None` is the distribution's own.
    pub address: Option<PathBuf>,
    /// containerd's namespace for the images.
    pub namespace: String,
    /// True if a CRI service must be on containerd's socket. `None`: it must unless the operator
    /// gave the socket.
    pub cri: Option<bool>,
    /// The platforms whose images are imported.
    pub platforms: PlatformChoice,
    /// Time between two comparisons of everything with containerd when no event comes.
    pub resync: Duration,
    /// Longest time that a stop waits for running imports.
    pub grace: Duration,
    /// Space that has to stay free on the disk of containerd's content store.
    pub min_free: MinFree,
    /// Most bytes that all imports together send in a second.
    pub rate_limit: Option<u64>,
    /// Time for which airgapd's pin stays after the last bundle that vouches for an image is gone.
    pub unpin_grace: Duration,
    /// The treatment of an image when the last bundle that vouches for it is gone.
    pub on_removal: OnRemoval,
    /// The treatment of a bundle's file when all its images are in place.
    pub after_import: AfterImport,
    /// Number of former releases whose receipts stay for a roll back.
    pub keep_releases: usize,
    /// The treatment of a name that another image has already.
    pub on_conflict: OnConflict,
    /// The behaviour beside another importer of the same folder.
    pub coexistence: Coexistence,
    /// Further names for images whose names match.
    pub aliases: Vec<Alias>,
    /// Names for images that the archive leaves without one, by the digest of their target.
    pub names: BTreeMap<String, Reference>,
    /// The repository for archives that have only tags.
    pub base_name: Option<String>,
    /// The images that also get a record by their digest.
    pub digest_references: DigestReferences,
    /// The names that bundles may use. Empty allows every name.
    pub allowed_names: Vec<Pattern>,
    /// Images that are neither imported nor restored, by name.
    pub exclude: Vec<Pattern>,
    /// The images of a bundle that come first.
    pub priority: Vec<Pattern>,
    /// The time at which images are unpacked.
    pub unpack: Unpack,
    /// The rule for checking bundles against checksum files.
    pub checksums: Checksums,
    /// Folder of files with the catalog digests of bundles that may be imported. `None` allows all.
    pub trusted_digests: Option<PathBuf>,
    /// The rule for checking signatures. `None`: signatures and keys are not even opened.
    pub signatures: Option<Signatures>,
    /// Folder of the keys that sign bundles. The revoked digests are in `revoked.d` beside it.
    pub trusted_keys: PathBuf,
    /// True if CRI pulls the images that `.txt` files in the folder list.
    pub pull_lists: bool,
    /// True if bundles are imported from a folder that every user can write.
    pub allow_insecure_dir: bool,
    /// The images that this node will need. The daemon checks again and again whether they are
    /// there.
    pub require: Sources,
    /// The limits for reading bundles.
    pub limits: bundle::Limits,
    /// Number of image records in the namespace up to which a bundle may add records. Records of
    /// other programs count, too.
    pub most_records: usize,
    /// The log lines that are written, and their form.
    pub log: LogSettings,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            distribution: None,
            data_dir: None,
            images_dir: None,
            images_dirs: Vec::new(),
            recursive: None,
            state_dir: PathBuf::from("/var/lib/airgapd"),
            runtime_dir: PathBuf::from("/run/airgapd"),
            metrics_file: None,
            node_feature_file: None,
            metrics_address: None,
            address: None,
            namespace: "k8s.io".to_owned(),
            cri: None,
            platforms: PlatformChoice::Node,
            resync: Duration::from_secs(600),
            grace: Duration::from_secs(20),
            min_free: MinFree::default(),
            rate_limit: None,
            unpin_grace: Duration::ZERO,
            on_removal: OnRemoval::Unpin,
            after_import: AfterImport::Keep,
            keep_releases: 0,
            on_conflict: OnConflict::Replace,
            coexistence: Coexistence::Auto,
            aliases: Vec::new(),
            names: BTreeMap::new(),
            base_name: None,
            digest_references: DigestReferences::Target,
            allowed_names: Vec::new(),
            exclude: Vec::new(),
            priority: PRIORITY
                .iter()
                .map(|text| text.parse().expect("a pattern"))
                .collect(),
            unpack: Unpack::None,
            checksums: Checksums::IfPresent,
            trusted_digests: None,
            signatures: None,
            trusted_keys: PathBuf::from("/etc/airgapd/keys.d"),
            pull_lists: false,
            allow_insecure_dir: false,
            require: Sources {
                k0s: K0sQuestion {
                    is_release_wanted: true,
                    ..K0sQuestion::default()
                },
                ..Sources::default()
            },
            limits: bundle::Limits::default(),
            most_records: import::plan::MOST_RECORDS,
            log: LogSettings {
                level: LogLevel::Info,
                format: LogFormat::Auto,
            },
        }
    }
}

/// Most images folders. Each of them is opened and listed in every round of the daemon.
pub const MOST_IMAGES_DIRS: usize = 16;

/// The images without which a node can run nothing else: the sandbox, the network, name resolution.
const PRIORITY: [&str; 8] = [
    "*/pause:*",
    "*cni*",
    "*/kube-router:*",
    "*/calico*",
    "*/cilium*",
    "*/flannel*",
    "*/kube-proxy:*",
    "*/coredns*",
];

impl Settings {
    /// Returns the rules for the names of images.
    pub fn naming(&self) -> Naming {
        Naming {
            aliases: self.aliases.clone(),
            names: self.names.clone(),
            base_name: self.base_name.clone(),
            digest_references: self.digest_references,
            allowed: self.allowed_names.clone(),
            scopes: None,
        }
    }

    /// Returns a short form of everything in the configuration that names the required images and
    /// their platform. Equal forms require the same.
    pub(crate) fn requirement(&self) -> String {
        let decisive = (&self.require, &self.platforms, &self.namespace);
        basics::digest::short(format!("{decisive:?}").as_bytes())
    }
}

/// A configuration that was read again, compared with the earlier configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Reloaded {
    /// The settings that apply from now on.
    pub settings: Settings,
    /// The keys with a new value.
    pub applied: Vec<&'static str>,
    /// The keys that keep their old value until a restart.
    pub postponed: Vec<&'static str>,
}

/// The treatment of airgapd's pin, and of the record, when the last bundle that vouches for an
/// image is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnRemoval {
    /// The pin goes. The record stays, and kubelet's garbage collector may remove it.
    Unpin,
    /// Pin and record stay.
    Keep,
    /// The record goes, too, unless another program has a label on it or a container was made from
    /// it.
    Delete,
}

/// The treatment of a bundle's file when all its images are in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterImport {
    /// The file stays.
    Keep,
    /// A receipt takes the place of the file ([`crate::receipts`]).
    Receipt,
}

/// The rule for checking a bundle against the `<bundle>.sha256` beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// Never check. Checksum files are not even opened.
    Off,
    /// Check if there is such a file.
    IfPresent,
    /// Always check. A bundle without such a file is not imported.
    Require,
}

/// The log lines that are written, and their form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// The least important level that is written.
    pub level: LogLevel,
    /// The form of a line.
    pub format: LogFormat,
}

/// The least important level that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Failures only.
    Error,
    /// Failures, and conditions that the operator should look at.
    Warn,
    /// Also events that an operator cares about, such as an import.
    Info,
    /// Also single blobs and decisions.
    Debug,
    /// Also the requests to containerd.
    Trace,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Entries of the journal if systemd connected the output to it, otherwise lines for people.
    Auto,
    /// Lines for people.
    Human,
    /// One JSON document a line.
    Json,
    /// Entries of systemd's journal, with fields.
    Journal,
}

/// The behaviour beside another importer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coexistence {
    /// Follow the other importer if there is one.
    Auto,
    /// Leave a new bundle to the other importer first.
    Follow,
    /// Import bundles at once, also beside another importer.
    Exclusive,
}
