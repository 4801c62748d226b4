//! The containerd this node's images go to: connecting to it, asking it what it is, and refusing it
//! where it cannot be the one that kubelet uses.

use std::path::{Path, PathBuf};

use containerd::{Client, Version};
use import::unpack::UnpackError;
use import::{Policy, Space, Survey, Unpacker};
use platforms::{Matcher, Platform, Rules};
use tracing::warn;
use verify::Snapshots;

use crate::decide::desired;
use crate::settings::{PlatformChoice, Settings};
use crate::state::ledger::Ledger;

/// The namespace that kubelet's images live in.
pub const KUBERNETES: &str = "k8s.io";

/// A containerd that answers and is the right one.
#[derive(Clone, Debug)]
pub struct Containerd {
    /// The client, bound to the configured namespace.
    pub client: Client,
    /// The version that containerd says it is.
    pub version: Version,
    /// What containerd says this node is; detected from the machine where it does not say.
    pub platform: Platform,
    /// Another one means another containerd, or one that was wiped. `None` where it cannot tell.
    pub(crate) uuid: Option<String>,
    /// Its content store, where that is on a file system that can be seen from here.
    pub store: Option<PathBuf>,
    /// Whether it is the one that kubelet asks, by CRI.
    pub is_of_kubelet: bool,
    /// What the operator should know of it although it is used.
    pub warning: Option<String>,
}

/// Why a socket is not used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It does not answer as it should.
    #[error(transparent)]
    Containerd(#[from] containerd::Error),
    /// It answers, and it is not what kubelet talks to.
    #[error(
        "the containerd on {socket} has no CRI service, so it is not the one kubelet uses (`{}` takes it all the same)",
        if *.is_insisted_on { "cri: false" } else { "address:` or `cri: false" }
    )]
    NoCri {
        /// The path of the socket.
        socket: String,
        /// Whether the operator insists on CRI (`cri: true`).
        is_insisted_on: bool,
    },
}

impl Unusable {
    /// Whether nothing answers at all.
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Unusable::Containerd(containerd::Error::Unreachable { .. } | containerd::Error::Stalled { .. })
        )
    }
}

/// Connects to containerd and makes sure that it is the right one. Safe to cancel.
///
/// # Errors
///
/// [`Unusable`]; whether to wait for it is the caller's business.
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

/// Whether kubelet's containerd is looked for, which serves CRI.
fn wants_cri(settings: &Settings) -> bool {
    settings.cri != Some(false) && settings.namespace == KUBERNETES
}

/// Decides on a containerd without CRI: an address that was given is the operator's word, and one
/// that was found by looking around may be Docker's. Gives the warning where it is used.
fn without_cri(socket: &Path, settings: &Settings) -> Result<String, Unusable> {
    let is_insisted_on = settings.cri == Some(true);
    let socket = socket.display().to_string();
    match settings.address.is_some() && !is_insisted_on {
        true => Ok(format!(
            "the containerd on {socket} has no CRI service: it is used because its address was given, and kubelet does not \
             see the images if its own is another one"
        )),
        false => Err(Unusable::NoCri {
            socket,
            is_insisted_on,
        }),
    }
}

/// containerd keeps its identity in a file that it never syncs. After a power cut that may be
/// empty, and then containerd 1.6 answers everything but this; later ones make a new identity.
async fn identity(client: &Client) -> Result<Option<String>, containerd::Error> {
    match client.server_uuid().await {
        Ok(uuid) => Ok(Some(uuid)),
        Err(error @ (containerd::Error::Unreachable { .. } | containerd::Error::Stalled { .. })) => {
            Err(error)
        }
        Err(error) => {
            warn!(
                "{}: it works without; to give it a new one, remove the file `uuid` in a folder \
                 `io.containerd.*.introspection` of its root folder, and restart it",
                basics::chain(&error)
            );
            Ok(None)
        }
    }
}

/// containerd says where its store is in its own view of the file system; ours may be another (a
/// container that was given the socket, a chroot). The store itself is made with the first blob;
/// containerd's database beside it is older.
async fn visible_store(client: &Client) -> Result<Option<PathBuf>, containerd::Error> {
    let is_visible = |store: &PathBuf| {
        let database = store.with_file_name("io.containerd.metadata.v1.bolt");
        store.is_dir() || database.is_dir()
    };
    Ok(client.content_root().await?.filter(is_visible))
}

/// Reads the records and blobs that the ledger knows, and all other records of ours. Opens no
/// bundle.
///
/// After a restart of the machine (`is_new_boot`) each blob is looked at: containerd lists what it
/// had before.
///
/// # Errors
///
/// When containerd does not answer.
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

/// Reads the records and blobs that the ledger knows, and nothing else. For few names containerd
/// lists nothing, however many other records there are.
///
/// # Errors
///
/// When containerd does not answer.
pub async fn glance(runtime: &Containerd, ledger: &Ledger) -> Result<Survey, containerd::Error> {
    let client = &runtime.client;
    let survey = Survey::of_few(client, &desired::names(ledger), &desired::digests(ledger)).await?;
    survey.checked(client, runtime.store.as_deref()).await
}

/// The snapshots that decide whether the images of this node run.
pub fn snapshots(runtime: &Containerd) -> Snapshots {
    match runtime.is_of_kubelet {
        true => Snapshots::OfCri,
        false => Snapshots::Usual,
    }
}

/// The platform whose images are asked for: the first that was chosen, or the node's.
pub fn asked_platform(settings: &Settings, runtime: Option<&Containerd>) -> Option<Platform> {
    match &settings.platforms {
        PlatformChoice::These(platforms) => platforms.first().cloned(),
        PlatformChoice::Node | PlatformChoice::All => runtime.map(|runtime| runtime.platform.clone()),
    }
}

/// What images are unpacked with on this node: the snapshotter that CRI uses, for the platform that
/// it runs.
///
/// # Errors
///
/// Those of any call; [`UnpackError::Unfit`] where there is no snapshotter that works.
pub async fn unpacker(settings: &Settings, runtime: &Containerd) -> Result<Unpacker, UnpackError> {
    let snapshotter = runtime.client.snapshotter(runtime.is_of_kubelet).await?;
    let none = || UnpackError::Unfit("containerd has no snapshotter that works".to_owned());
    let platform = asked_platform(settings, Some(runtime)).unwrap_or_else(platforms::host);
    let matcher = Matcher::only(&platform, runtime.version.rules());
    Ok(Unpacker::new(snapshotter.ok_or_else(none)?, matcher))
}

/// Where the blobs of this containerd go, and what has to stay free there.
pub fn space(settings: &Settings, runtime: &Containerd) -> Space {
    Space {
        store: runtime.store.clone(),
        min_free: settings.min_free,
    }
}

/// What decides over a catalog on this node: its platforms, by containerd's rules, and the naming
/// rules.
///
/// Without a containerd the node's platform is detected, and judged by the rules of every
/// containerd there is.
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

/// Everything that decides what an import yields, in a form that is equal when it is equal.
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
    basics::digest::short(format!("{decisive:?}").as_bytes())
}
