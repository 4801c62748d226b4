//! The containerd that this node's images go to: connects to it, asks it for its properties, and
//! rejects it if it cannot be kubelet's.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bundle::Identity;
use containerd::{Client, Version};
use import::unpack::UnpackError;
use import::{Policy, Space, Survey, Unpacker};
use platforms::{Matcher, Platform, Rules};
use tracing::warn;
use verify::Snapshots;

use crate::decide::desired;
use crate::receipts;
use crate::settings::{AfterImport, PlatformChoice, Settings};
use crate::state::ledger::Ledger;

/// The namespace of kubelet's images.
pub const KUBERNETES: &str = "k8s.io";

/// A containerd that answers and that this node uses.
#[derive(Clone, Debug)]
pub struct Containerd {
    /// The client, bound to the configured namespace.
    pub client: Client,
    /// containerd's version, as it reports it.
    pub version: Version,
    /// The node's platform by containerd's word, or the machine's if containerd does not say.
    pub platform: Platform,
    /// containerd's identity. Another value means another containerd, or a wiped one. `None` if
    /// containerd cannot tell.
    pub(crate) uuid: Option<String>,
    /// containerd's content store, if its file system is visible from here.
    pub store: Option<PathBuf>,
    /// True if kubelet uses this containerd, since it serves CRI.
    pub is_of_kubelet: bool,
    /// A warning for the operator about a containerd that is used nevertheless.
    pub warning: Option<String>,
}

/// The reason why a socket is not used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// containerd does not answer as it should.
    #[error(transparent)]
    Containerd(#[from] containerd::Error),
    /// containerd answers, and kubelet does not use it.
    #[error(
        "the containerd on {socket} has no CRI service, so kubelet does not use it: set `address:` to the socket of kubelet's \
         containerd, or `cri: false` to use this one"
    )]
    NoCri {
        /// The path of the socket.
        socket: String,
    },
}

impl Unusable {
    /// Returns true if no containerd answers at all.
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Unusable::Containerd(containerd::Error::Unreachable { .. } | containerd::Error::Stalled { .. })
        )
    }
}

/// Connects to containerd and checks that it is the right one. Safe to cancel.
///
/// # Errors
///
/// Returns [`Unusable`] if containerd does not answer or kubelet does not use it. The caller
/// decides whether to wait.
pub async fn connect(socket: &Path, settings: &Settings) -> Result<Containerd, Unusable> {
    let client = Client::connect(socket, &settings.namespace).await?;
    let version = client.version().await?;
    let has_cri = wants_cri(settings) && client.has_cri().await?;
    let warning = match wants_cri(settings) && !has_cri {
        true => Some(without_cri(socket, settings)?),
        false => None,
    };
    let platform = client.node_platform().await?.unwrap_or_else(platforms::host);
    let uuid = identity(&client).await?;
    let store = visible_store(&client).await?;
    Ok(Containerd {
        client,
        version,
        platform,
        uuid,
        store,
        is_of_kubelet: has_cri,
        warning,
    })
}

/// Returns true if the containerd must be kubelet's, which serves CRI.
fn wants_cri(settings: &Settings) -> bool {
    settings.cri != Some(false) && settings.namespace == KUBERNETES
}

/// Decides on a containerd without CRI. A configured address is the operator's word. A containerd
/// that airgapd found by itself may be Docker's. Returns the warning if it is used.
fn without_cri(socket: &Path, settings: &Settings) -> Result<String, Unusable> {
    let socket = socket.display().to_string();
    match settings.address.is_some() && settings.cri != Some(true) {
        true => Ok(format!(
            "the containerd on {socket} has no CRI service: it is used because its address was given. kubelet does \
             not see the images if it uses another containerd"
        )),
        false => Err(Unusable::NoCri { socket }),
    }
}

/// Returns containerd's identity. containerd keeps it in a file that it never syncs, so the file
/// may be empty after a power cut. containerd 1.6 then answers everything but this call. Later
/// versions create a new identity.
async fn identity(client: &Client) -> Result<Option<String>, containerd::Error> {
    match client.server_uuid().await {
        Ok(uuid) => Ok(Some(uuid)),
        Err(error @ (containerd::Error::Unreachable { .. } | containerd::Error::Stalled { .. })) => {
            Err(error)
        }
        Err(error) => {
            warn!(
                "{}: airgapd works without containerd's identity. To get a new one, remove the file `uuid` in a folder \
                 `io.containerd.*.introspection` of containerd's root folder, and restart containerd",
                basics::chain(&error)
            );
            Ok(None)
        }
    }
}

/// Returns containerd's store, if it is visible. containerd reports the path in its own view of the
/// file system. airgapd's view may differ: it may run in a container that was given the socket, or
/// in a chroot. containerd creates the store with the first blob. The database beside it is older.
async fn visible_store(client: &Client) -> Result<Option<PathBuf>, containerd::Error> {
    let is_visible = |store: &PathBuf| {
        let database = store.with_file_name("io.containerd.metadata.v1.bolt");
        store.is_dir() || database.is_dir()
    };
    Ok(client.content_root().await?.filter(is_visible))
}

/// Reads the records and blobs that the ledger knows, and all other records with airgapd's labels.
/// Opens no bundle.
///
/// After a restart of the machine (`is_new_boot`) it checks each blob: containerd still lists blobs
/// that a power cut destroyed.
///
/// # Errors
///
/// Returns an error if containerd does not answer.
pub(crate) async fn survey(
    runtime: &Containerd,
    ledger: &Ledger,
    is_new_boot: bool,
) -> Result<Survey, containerd::Error> {
    let client = &runtime.client;
    let survey = Survey::of(client, &desired::names(ledger), &desired::digests(ledger)).await?;
    let survey = survey.checked(client, runtime.store.as_deref()).await?;
    match is_new_boot {
        true => survey.proven(client).await,
        false => Ok(survey),
    }
}

/// Reads only the records and blobs that the ledger knows. For few names containerd lists nothing,
/// for any number of other records.
///
/// # Errors
///
/// Returns an error if containerd does not answer.
pub async fn glance(runtime: &Containerd, ledger: &Ledger) -> Result<Survey, containerd::Error> {
    let client = &runtime.client;
    let survey = Survey::of_few(client, &desired::names(ledger), &desired::digests(ledger)).await?;
    survey.checked(client, runtime.store.as_deref()).await
}

/// Returns which snapshots decide whether the images of this node run.
pub fn snapshots(runtime: &Containerd) -> Snapshots {
    match runtime.is_of_kubelet {
        true => Snapshots::OfCri,
        false => Snapshots::Usual,
    }
}

/// Returns the platform whose images are needed: the first configured platform, or the node's.
pub fn asked_platform(settings: &Settings, runtime: Option<&Containerd>) -> Option<Platform> {
    match &settings.platforms {
        PlatformChoice::These(platforms) => platforms.first().cloned(),
        PlatformChoice::Node | PlatformChoice::All => runtime.map(|runtime| runtime.platform.clone()),
    }
}

/// Returns the unpacker of this node: it uses CRI's snapshotter, for the platform that the node
/// runs.
///
/// # Errors
///
/// Returns the errors of any call, and [`UnpackError::Unfit`] if no snapshotter works.
pub async fn unpacker(settings: &Settings, runtime: &Containerd) -> Result<Unpacker, UnpackError> {
    let snapshotter = runtime.client.snapshotter(runtime.is_of_kubelet).await?;
    let none = || UnpackError::Unfit("containerd has no snapshotter that works".to_owned());
    let platform = asked_platform(settings, Some(runtime)).unwrap_or_else(platforms::host);
    let matcher = Matcher::only(&platform, runtime.version.rules());
    Ok(Unpacker::new(snapshotter.ok_or_else(none)?, matcher))
}

/// Returns the store of this containerd, and the space that has to stay free there.
pub fn space(settings: &Settings, runtime: &Containerd) -> Space {
    Space {
        store: runtime.store.clone(),
        min_free: settings.min_free,
        going: 0,
    }
}

/// Returns the bytes on the disk of containerd's store that become free after the import of a file.
/// The file lies in an images folder, and a receipt takes its place. Returns 0 if the file stays,
/// or lies on another disk.
pub fn going(settings: &Settings, runtime: &Containerd, file: &Path, identity: &Identity) -> u64 {
    let is_receipt_wanted = settings.after_import == AfterImport::Receipt;
    let store = runtime.store.as_ref().filter(|_| is_receipt_wanted);
    let disk = store.and_then(|store| std::fs::metadata(store).ok());
    let is_same = disk.is_some_and(|disk| disk.dev() == identity.device);
    let (Some(folder), Some(name)) = (file.parent().filter(|_| is_same), file.file_name()) else {
        return 0;
    };
    match receipts::may_remove(folder, name, identity) {
        Ok(()) => identity.size,
        Err(_) => 0,
    }
}

/// Returns the policy that selects images of a catalog on this node: its platforms, by containerd's
/// rules, and the naming rules.
///
/// Without a containerd, the policy has the machine's platform and the rules of all generations of
/// containerd.
pub fn policy(settings: &Settings, runtime: Option<&Containerd>) -> Policy {
    let rules = runtime.map_or(Rules::ALL.to_vec(), |runtime| vec![runtime.version.rules()]);
    let node = || runtime.map_or_else(platforms::host, |runtime| runtime.platform.clone());
    let wanted = settings.platforms.wanted(node, &rules);
    Policy {
        wanted,
        naming: settings.naming(),
        most_records: settings.most_records,
    }
}

/// Returns a digest of everything that decides the result of an import. Equal digests mean equal
/// results.
pub(crate) fn fingerprint(settings: &Settings, runtime: &Containerd) -> String {
    let Settings {
        platforms,
        aliases,
        names,
        base_name,
        digest_references,
        allowed_names,
        checksums,
        trusted_digests,
        signatures,
        trusted_keys,
        on_conflict,
        namespace,
        limits,
        ..
    } = settings;
    let version = &runtime.version;
    let decisive = (
        platforms,
        &runtime.platform,
        (version.rules(), import::select::takes_sha512(version)),
        aliases,
        names,
        base_name,
        digest_references,
        on_conflict,
        namespace,
        (allowed_names, checksums, trusted_digests, limits),
    );
    let mut text = format!("{decisive:?}");
    if let Some(policy) = signatures {
        // Without signatures the digest is that of versions that know none.
        text += &format!("{:?}", (policy, trusted_keys));
    }
    basics::digest::short(text.as_bytes())
}
