//! Everything the operator may choose, checked and typed, with the defaults. How it is written in a
//! file, a variable or a flag is the business of the program.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

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
    /// `None` is `auto`: by evidence.
    pub distribution: Option<Distribution>,
    /// `None` is the distribution's own.
    pub data_dir: Option<PathBuf>,
    /// `None` is the distribution's folder below the data folder.
    pub images_dir: Option<PathBuf>,
    /// Whether bundles are looked for in sub-folders of the images folder too.
    pub recursive: bool,
    /// The folder of `state.json` and the files beside it.
    pub state_dir: PathBuf,
    /// Where the control socket is, and the metrics if nothing else is said.
    pub runtime_dir: PathBuf,
    /// The file that node_exporter reads; `None` is one in the runtime folder.
    pub metrics_file: Option<PathBuf>,
    /// Where metrics are served by HTTP, too.
    pub metrics_address: Option<SocketAddr>,
    /// containerd's socket; `None` is the distribution's own.
    pub address: Option<PathBuf>,
    /// The namespace of containerd that images go to.
    pub namespace: String,
    /// Whether a CRI service must be on containerd's socket. `None`: it must where nobody has given
    /// the socket.
    pub cri: Option<bool>,
    /// The platforms whose images are taken from bundles.
    pub platforms: PlatformChoice,
    /// How often everything is compared with containerd although nothing has happened.
    pub resync: Duration,
    /// How long a stop waits for the blob in flight.
    pub grace: Duration,
    /// What has to stay free on the disk of containerd's content store.
    pub min_free: MinFree,
    /// The most bytes that all imports together send in a second.
    pub rate_limit: Option<u64>,
    /// How long our pin stays after the last bundle that vouches for an image is gone.
    pub unpin_grace: Duration,
    /// The treatment of an image when the last bundle that vouches for it is gone.
    pub on_removal: OnRemoval,
    /// The treatment of a name that another image has already.
    pub on_conflict: OnConflict,
    /// The behaviour beside another importer of the same folder.
    pub coexistence: Coexistence,
    /// Further names for images whose name matches.
    pub aliases: Vec<Alias>,
    /// Names for images that the archive leaves without one, by the digest of their target.
    pub names: BTreeMap<String, Reference>,
    /// The repository for archives that give tags only.
    pub base_name: Option<String>,
    /// Which images get a record by their digest as well.
    pub digest_references: DigestReferences,
    /// What bundles may call their images; empty allows every name.
    pub allowed_names: Vec<Pattern>,
    /// Images that are neither imported nor restored, by name.
    pub exclude: Vec<Pattern>,
    /// Which images of a bundle come first.
    pub priority: Vec<Pattern>,
    /// When images are unpacked.
    pub unpack: Unpack,
    /// Whether bundles are checked against checksum files.
    pub checksums: Checksums,
    /// A folder of files that list the catalog digests of bundles that may be imported; `None`
    /// allows all.
    pub trusted_digests: Option<PathBuf>,
    /// Whether the images that `.txt` files in the folder list are pulled through CRI.
    pub pull_lists: bool,
    /// Whether bundles are imported from a folder that everybody can write.
    pub allow_insecure_dir: bool,
    /// What this node will be asked for; the daemon goes on looking whether it is there.
    pub require: Sources,
    /// The bounds for reading bundles.
    pub limits: bundle::Limits,
    /// How many image records the namespace may have, those of others counted, for a bundle to add
    /// to them.
    pub most_records: usize,
    /// Which log lines are written, and in which form.
    pub log: LogSettings,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            distribution: None,
            data_dir: None,
            images_dir: None,
            recursive: false,
            state_dir: PathBuf::from("/var/lib/airgapd"),
            runtime_dir: PathBuf::from("/run/airgapd"),
            metrics_file: None,
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

/// What a node needs before it can run anything else: the sandbox, the network, name resolution.
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
    /// What decides over the names of images.
    pub fn naming(&self) -> Naming {
        Naming {
            aliases: self.aliases.clone(),
            names: self.names.clone(),
            base_name: self.base_name.clone(),
            digest_references: self.digest_references,
            allowed: self.allowed_names.clone(),
        }
    }
}

/// A configuration that was read again, held against the one before.
#[derive(Clone, Debug, PartialEq)]
pub struct Reloaded {
    /// The settings that hold from now on.
    pub settings: Settings,
    /// The keys that have another value now.
    pub applied: Vec<&'static str>,
    /// The keys that keep their old value until a restart.
    pub postponed: Vec<&'static str>,
}

/// What becomes of our pin, and of the record, when the last bundle that vouches for an image is
/// gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnRemoval {
    /// Our pin goes; the record stays, and kubelet's garbage collector may remove it.
    Unpin,
    /// Pin and record stay.
    Keep,
    /// The record goes, too, where nobody else wants it.
    Delete,
}

/// Whether a bundle is checked against the `<bundle>.sha256` beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// Never; such files are not even looked at.
    Off,
    /// Where there is such a file.
    IfPresent,
    /// Always: a bundle without such a file is not imported.
    Require,
}

/// Which log lines are written, and in which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// The least important lines that are written.
    pub level: LogLevel,
    /// The form of a line.
    pub format: LogFormat,
}

/// The least important lines that are written.
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
    /// The journal where systemd has connected us to it, otherwise lines for people.
    Auto,
    /// Lines for people.
    Human,
    /// One JSON document a line.
    Json,
    /// Entries of systemd's journal, with fields.
    Journal,
}

/// What is done beside another importer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coexistence {
    /// Follow where there is one.
    Auto,
    /// A new bundle is left to the other importer first.
    Follow,
    /// Bundles are imported at once, whoever else does.
    Exclusive,
}
