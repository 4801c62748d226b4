//! Snapshots: unpacking layers ahead, so that the first pod does not have to wait for it.
//!
//! containerd does all the work, mounts included; what is here is the order of calls that every
//! version takes. A layer is prepared under a key that nobody else uses, applied, and only then
//! given its name, the chain ID, which says to every client that its files are there. Whoever comes
//! second finds the name taken and that is that.
//!
//! Everything is under a lease from its first call on. What was begun and not committed has no
//! name, is found by nobody, and goes with the lease.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, Info, Kind, ListSnapshotsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
    StatSnapshotRequest,
};
use containerd_client::services::v1::{ApplyRequest, ApplyResponse};
use containerd_client::types::Mount;
use oci_spec::image::{Descriptor, Digest};
use tonic::Response;
use tonic::transport::Channel;

use crate::connect::MAX_MESSAGE;
use crate::error::{Error, Failure};
use crate::introspection::Plugin;
use crate::leases::Resource;
use crate::wire::{check_digest, descriptor_to_wire};
use crate::write::Held;
use crate::{Client, MOST_LISTED, within};

/// The plugins that keep snapshots.
const SNAPSHOTTER_PLUGIN: &str = "io.containerd.snapshotter.v1";
/// What CRI unpacks with unless it is told otherwise, and what works everywhere.
const USUAL_SNAPSHOTTERS: [&str; 2] = ["overlayfs", "native"];
/// Says what a snapshot is going to be named, so that containerd can say at once that it is there.
const TARGET_LABEL: &str = "containerd.io/snapshot.ref";
/// How our keys begin, as those of containerd's own client do.
const KEY_PREFIX: &str = "extract-";
/// Tries to prepare a snapshot that others take and remove at the same time.
const TRIES: usize = 3;

/// A snapshotter of this containerd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshotter {
    /// Its name, for instance `overlayfs`.
    pub name: String,
    /// Where it keeps its files, in containerd's view of the file system, where it or CRI says so.
    pub root: Option<PathBuf>,
}

/// A layer to be unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    /// The layer's blob, with the media type that says how it is compressed.
    pub blob: Descriptor,
    /// The digest of its uncompressed tar, as the image's config has it.
    pub diff_id: Digest,
    /// The chain ID of everything up to this layer: the snapshot's name.
    pub chain: Digest,
    /// The chain ID of everything below; `None` for the lowest layer.
    pub parent: Option<Digest>,
}

/// A layer that is applied and not committed: its files are there, and nobody sees them yet.
///
/// Dropping it leaves a snapshot without a name, which goes with the lease.
#[derive(Debug)]
#[must_use = "a layer that is not committed is thrown away with the lease"]
pub struct Applied {
    draft: Draft,
}

/// What [`Client::prepare`] came to.
enum Prepared {
    Draft(Draft, Vec<Mount>),
    /// A snapshot of that name is there, and on the lease.
    Present,
}

/// A snapshot that is ours alone, under a key that nobody else uses.
#[derive(Debug)]
struct Draft {
    client: Client,
    lease: String,
    snapshotter: String,
    key: String,
    /// The blob of the layer, which errors name.
    blob: Digest,
    chain: Digest,
}

impl Client {
    /// The snapshotter that images are unpacked with: CRI's where `cri`, otherwise overlayfs where
    /// it works, else native. `None` when there is none, or CRI does not tell its own: then nobody
    /// knows where unpacking is of use.
    ///
    /// # Errors
    /// Those of any call. CRI refuses to answer until it is initialised.
    pub async fn snapshotter(&self, cri: bool) -> Result<Option<Snapshotter>, Error> {
        let plugins = self.plugins().await?;
        if !cri {
            return Ok(usual_snapshotter(&plugins));
        }
        let filesystem = self.cri().image_filesystem().await?;
        Ok(filesystem.and_then(|filesystem| {
            let name = filesystem.snapshotter;
            snapshotter_of_cri(&plugins, name.as_deref(), Path::new(&filesystem.mountpoint))
        }))
    }

    /// Lists the names of all committed snapshots of the namespace.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such snapshotter, otherwise those of any call.
    pub async fn snapshots(&self, snapshotter: &str) -> Result<HashSet<String>, Error> {
        let fail = |failure| self.fail(failure, format!("list the snapshots of {snapshotter}"));
        let request = self.request(ListSnapshotsRequest {
            snapshotter: snapshotter.to_owned(),
            filters: Vec::new(),
        });
        let mut client = self.snapshots_client();
        let opened = within(self.options().stall, client.list(request)).await;
        let mut stream = opened.map_err(fail)?.into_inner();
        let (mut names, mut there) = (HashSet::new(), 0);
        while let Some(page) = self.next(&mut stream).await.map_err(fail)? {
            there += page.info.len().max(1);
            if there > MOST_LISTED {
                return Err(self.endless("list snapshots"));
            }
            let committed = page.info.into_iter().filter(is_committed);
            names.extend(committed.map(|info| info.name));
        }
        Ok(names)
    }

    /// Puts a committed snapshot under a lease, and with it those below.
    ///
    /// It is added first and looked at afterwards, so that no garbage collection can come in
    /// between. When it is absent the lease goes on naming it, which does no harm and holds it
    /// should it come.
    ///
    /// # Errors
    /// [`Error::LeaseLost`] when there is no such lease, [`Error::Refused`] when there is no such
    /// snapshotter, otherwise those of any call.
    pub async fn hold_snapshot(&self, lease: &str, snapshotter: &str, chain: &Digest) -> Result<Held, Error> {
        check_digest(chain)?;
        let resource = Resource::Snapshot {
            snapshotter: snapshotter.to_owned(),
            key: chain.to_string(),
        };
        self.add_to_lease(lease, &resource).await?;
        let request = self.request(StatSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: chain.to_string(),
        });
        match self.unary(self.snapshots_client().stat(request)).await {
            Ok(answer) if answer.info.as_ref().is_some_and(is_committed) => Ok(Held::Held),
            Ok(_) => Ok(Held::Absent),
            Err(failure) if failure.is_not_found() => Ok(Held::Absent),
            Err(failure) => Err(self.fail(failure, format!("look up snapshot {chain}"))),
        }
    }

    /// Prepares a snapshot on top of the layer's parent and has containerd apply the layer to it.
    /// `None` when the snapshot is there already; then it is on the lease.
    ///
    /// Waits for as long as containerd takes, which on a slow disk is minutes, if it answers other
    /// calls meanwhile. From 1.7 on it syncs what it has unpacked before it answers; where that
    /// matters (a commit outlives a power cut that the files do not), sync the snapshotter's folder
    /// before [`Applied::commit`] all the same.
    ///
    /// # Errors
    /// [`Error::Content`], naming the blob, when containerd cannot make files of it or they are not
    /// what the diff ID promises. [`Error::Gone`] when the blob or the parent is not there (any
    /// more): begin with the lowest layer again. [`Error::Space`] and [`Error::Disk`] for the disk,
    /// [`Error::LeaseLost`] when there is no such lease, [`Error::Failed`] when containerd cannot
    /// mount. What was unpacked is removed, as far as containerd can be asked.
    ///
    /// # Cancel safety
    /// May be dropped at any await: containerd stops unpacking, and what it has unpacked goes with
    /// the lease.
    pub async fn apply_layer(
        &self,
        lease: &str,
        snapshotter: &str,
        layer: &LayerSpec,
    ) -> Result<Option<Applied>, Error> {
        let LayerSpec {
            blob,
            diff_id,
            chain,
            parent,
        } = layer;
        for digest in [diff_id, chain].into_iter().chain(parent) {
            check_digest(digest)?;
        }
        let blob = descriptor_to_wire(blob)?;
        let (draft, mounts) = match self.prepare(lease, snapshotter, layer).await? {
            Prepared::Draft(draft, mounts) => (draft, mounts),
            Prepared::Present => return Ok(None),
        };
        let request = self.leased_request(
            lease,
            ApplyRequest {
                diff: Some(blob),
                mounts,
                sync_fs: true,
                ..ApplyRequest::default()
            },
        )?;
        let mut client = DiffClient::new(self.channel());
        let applied = self.patiently(client.apply(request)).await;
        match applied.map(digest_of) {
            Ok(found) if found == *diff_id.as_ref() => Ok(Some(Applied { draft })),
            Ok(found) => {
                draft.discard().await;
                Err(Error::content(
                    layer.blob.digest(),
                    format!("it unpacks to {found}, and its image promises {diff_id}"),
                ))
            }
            Err(failure) => Err(draft.explain(failure).await),
        }
    }

    /// Prepares a snapshot for a layer, unless it is there.
    async fn prepare(&self, lease: &str, snapshotter: &str, layer: &LayerSpec) -> Result<Prepared, Error> {
        let digest = layer.blob.digest();
        let attempt = || format!("unpack layer {digest}");
        for _ in 0..TRIES {
            let draft = Draft {
                client: self.clone(),
                lease: lease.to_owned(),
                snapshotter: snapshotter.to_owned(),
                key: unique_key(&layer.chain),
                blob: digest.clone(),
                chain: layer.chain.clone(),
            };
            let message = PrepareSnapshotRequest {
                snapshotter: snapshotter.to_owned(),
                key: draft.key.clone(),
                parent: layer.parent.as_ref().map(Digest::to_string).unwrap_or_default(),
                labels: draft.labels(),
            };
            let request = self.leased_request(lease, message)?;
            match self.patiently(self.snapshots_client().prepare(request)).await {
                Ok(answer) => return Ok(Prepared::Draft(draft, answer.into_inner().mounts)),
                Err(failure) if failure.is_already_exists() && failure.message().contains(KEY_PREFIX) => {}
                Err(failure) if failure.is_already_exists() => {
                    if self.hold_snapshot(lease, snapshotter, &layer.chain).await? == Held::Held {
                        return Ok(Prepared::Present);
                    }
                }
                Err(failure) => {
                    return Err(match &layer.parent {
                        Some(parent) if failure.is_not_found() => {
                            Error::gone(format!("snapshot {parent}"), attempt())
                        }
                        _ => self.fail_leased(failure, lease, attempt()),
                    });
                }
            }
        }
        Err(self.fail(Failure::Contended, attempt()))
    }

    fn snapshots_client(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE)
    }
}

impl Applied {
    /// Gives the snapshot its name, the chain ID, under the lease. That somebody else has unpacked
    /// the same layer meanwhile is as good: theirs is put on the lease, and ours is removed.
    ///
    /// # Errors
    /// [`Error::Gone`] when the snapshot, or the one that took its name, vanished: begin with the
    /// lowest layer again. Otherwise those of any call, and of the disk; the snapshot is removed,
    /// as far as containerd can be asked.
    ///
    /// # Cancel safety
    /// May be dropped at any await. The snapshot then has its name, or goes with the lease.
    pub async fn commit(self) -> Result<(), Error> {
        let Draft {
            client,
            lease,
            snapshotter,
            key,
            chain,
            blob,
        } = &self.draft;
        let attempt = || format!("keep unpacked layer {blob}");
        let message = CommitSnapshotRequest {
            snapshotter: snapshotter.clone(),
            name: chain.to_string(),
            key: key.clone(),
            labels: self.draft.labels(),
        };
        let request = client.leased_request(lease, message)?;
        let failure = match client.patiently(client.snapshots_client().commit(request)).await {
            Ok(_) => return Ok(()),
            Err(failure) => failure,
        };
        if failure.is_answer() {
            self.draft.discard().await;
        }
        if failure.is_already_exists() && client.hold_snapshot(lease, snapshotter, chain).await? == Held::Held
        {
            return Ok(());
        }
        if failure.is_already_exists() || failure.is_not_found() {
            return Err(Error::gone(format!("snapshot {chain}"), attempt()));
        }
        Err(client.fail_leased(failure, lease, attempt()))
    }

    /// Removes the snapshot. Failing at that is no reason to fail: it goes with the lease.
    pub async fn discard(self) {
        self.draft.discard().await;
    }
}

impl Draft {
    /// Labels of the prepared snapshot and of the committed one.
    fn labels(&self) -> HashMap<String, String> {
        HashMap::from([(TARGET_LABEL.to_owned(), self.chain.to_string())])
    }

    /// Finds out why the layer could not be applied, and removes what there is of it.
    ///
    /// Trouble of containerd's own, such as a database that is closed or a snapshot that is
    /// collected under its hands, can look like a layer that is broken. So a layer is blamed only
    /// by a containerd that can still remove the snapshot it was to go into.
    async fn explain(&self, failure: Failure) -> Error {
        let attempt = format!("unpack layer {}", self.blob);
        if !failure.is_answer() {
            return self.client.fail_leased(failure, &self.lease, attempt);
        }
        let removed = self.remove().await;
        if failure.is_not_found() {
            return Error::gone(format!("blob {}", self.blob), attempt);
        }
        match removed {
            Ok(true) if failure.blames_the_layer() => Error::content(
                &self.blob,
                format!("containerd cannot unpack it: {}", failure.reason_of_unpacking()),
            ),
            Ok(false) if matches!(self.client.has_lease(&self.lease).await, Ok(false)) => {
                failure.into_lease_lost(&self.lease, attempt)
            }
            Ok(_) | Err(_) => self.client.fail_leased(failure, &self.lease, attempt),
        }
    }

    /// Removes the snapshot, as far as containerd can be asked.
    async fn discard(&self) {
        if let Err(failure) = self.remove().await {
            let key = &self.key;
            tracing::debug!(
                key,
                reason = failure.message(),
                "an unfinished snapshot stays behind"
            );
        }
    }

    /// Removes the snapshot; says whether it was there.
    async fn remove(&self) -> Result<bool, Failure> {
        let message = RemoveSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: self.key.clone(),
        };
        let request = self
            .client
            .leased_request(&self.lease, message)
            .expect("the lease's id has been a header before");
        match self
            .client
            .unary(self.client.snapshots_client().remove(request))
            .await
        {
            Ok(()) => Ok(true),
            Err(failure) if failure.is_not_found() => Ok(false),
            Err(failure) => Err(failure),
        }
    }
}

fn is_committed(info: &Info) -> bool {
    info.kind() == Kind::Committed
}

/// The digest of what a layer was uncompressed to; nothing when containerd does not say, which is
/// no digest.
fn digest_of(answer: Response<ApplyResponse>) -> String {
    answer
        .into_inner()
        .applied
        .map(|applied| applied.digest)
        .unwrap_or_default()
}

/// A key that nobody else uses, recognisable by those who know the keys of containerd's own client.
fn unique_key(chain: &Digest) -> String {
    let nanos = SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap_or(Duration::ZERO)
        .as_nanos();
    let chance = basics::backoff::chance();
    format!("{KEY_PREFIX}{nanos}-{chance:016x} {chain}")
}

fn usual_snapshotter(plugins: &[Plugin]) -> Option<Snapshotter> {
    USUAL_SNAPSHOTTERS.iter().find_map(|name| {
        let plugin = plugins
            .iter()
            .find(|plugin| plugin.is(SNAPSHOTTER_PLUGIN, name))?;
        plugin.healthy.then(|| Snapshotter {
            name: plugin.id.clone(),
            root: plugin.root.clone(),
        })
    })
}

/// CRI names a folder, which names the snapshotter, unless the snapshotter keeps its files
/// elsewhere. Where the snapshotter does not say where that is (native on 1.6), it is the folder.
fn snapshotter_of_cri(plugins: &[Plugin], name: Option<&str>, folder: &Path) -> Option<Snapshotter> {
    let is_it = |plugin: &&Plugin| {
        plugin.r#type == SNAPSHOTTER_PLUGIN
            && match name {
                Some(name) => plugin.id == name,
                None => plugin.root.as_deref() == Some(folder),
            }
    };
    let plugin = plugins.iter().find(is_it);
    let root = plugin.and_then(|plugin| plugin.root.clone());
    Some(Snapshotter {
        name: plugin.map(|plugin| plugin.id.as_str()).or(name)?.to_owned(),
        root: root.or_else(|| Some(folder.to_owned())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(id: &str, healthy: bool, root: Option<&str>) -> Plugin {
        Plugin {
            r#type: SNAPSHOTTER_PLUGIN.to_owned(),
            id: id.to_owned(),
            platforms: Vec::new(),
            healthy,
            root: root.map(PathBuf::from),
        }
    }

    #[test]
    fn without_cri_overlayfs_is_taken_where_it_works() {
        let choice = |overlayfs, native| {
            let plugins = [
                plugin("native", native, Some("/n")),
                plugin("overlayfs", overlayfs, None),
            ];
            usual_snapshotter(&plugins).map(|snapshotter| snapshotter.name)
        };
        assert_eq!(choice(true, true).as_deref(), Some("overlayfs"));
        assert_eq!(choice(false, true).as_deref(), Some("native"));
        assert_eq!(choice(false, false), None);
        assert_eq!(usual_snapshotter(&[plugin("stargz", true, None)]), None);
    }

    #[test]
    fn cris_snapshotter_is_told_by_its_name_or_by_its_folder() {
        let plugins = [
            plugin(
                "overlayfs",
                true,
                Some("/c/io.containerd.snapshotter.v1.overlayfs"),
            ),
            plugin("stargz", true, Some("/var/lib/stargz")),
        ];
        let choice = |name, folder: &str| {
            let found = snapshotter_of_cri(&plugins, name, Path::new(folder))?;
            Some((found.name, found.root))
        };
        let overlayfs = ("overlayfs".to_owned(), plugins[0].root.clone());
        let stargz = ("stargz".to_owned(), plugins[1].root.clone());
        assert_eq!(choice(Some("overlayfs"), "/elsewhere"), Some(overlayfs));
        assert_eq!(choice(None, "/var/lib/stargz"), Some(stargz));
        let elsewhere = ("nix".to_owned(), Some(PathBuf::from("/x")));
        assert_eq!(choice(Some("nix"), "/x"), Some(elsewhere));
        assert_eq!(choice(None, "/x"), None);
    }

    #[test]
    fn no_two_keys_are_the_same() {
        let chain: Digest = format!("sha256:{}", "c".repeat(64)).parse().expect("a digest");
        let keys: HashSet<String> = (0..1000).map(|_| unique_key(&chain)).collect();
        assert_eq!(keys.len(), 1000);
        assert!(
            keys.iter()
                .all(|key| key.starts_with(KEY_PREFIX) && key.ends_with(chain.as_ref()))
        );
    }
}
