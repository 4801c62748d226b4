//! Snapshots: unpacking layers in advance, so that the first pod does not wait for it.
//!
//! containerd does all the work, mounts included. This module has the order of calls that every
//! version accepts. It prepares a layer under a unique key and applies it. Only then does the
//! snapshot get its name, the chain ID, which tells every client that the layer's files exist. If
//! two clients unpack the same layer, the second finds the name taken and uses that snapshot.
//!
//! Everything is under a lease from its first call on. An unfinished snapshot has no name, so no
//! client finds it, and it is removed with the lease.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    Info, Kind, ListSnapshotsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::services::v1::{ApplyRequest, ApplyResponse};
use containerd_client::types::Mount;
use oci_spec::image::{Descriptor, Digest};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::connect::MAX_MESSAGE;
use crate::error::{Error, Failure};
use crate::introspection::Plugin;
use crate::leases::Resource;
use crate::wire::{check_digest, descriptor_to_wire};
use crate::write::Held;
use crate::{Client, MOST_LISTED, within};

/// The type of the plugins that keep snapshots.
const SNAPSHOTTER_PLUGIN: &str = "io.containerd.snapshotter.v1";
/// The snapshotters to use without CRI: CRI's own default, and then the snapshotter that works
/// everywhere.
const USUAL_SNAPSHOTTERS: [&str; 2] = ["overlayfs", "native"];
/// Label with the future name of a snapshot. containerd reads it and reports at once if a snapshot
/// of that name exists.
const TARGET_LABEL: &str = "containerd.io/snapshot.ref";
/// Prefix of this client's keys. containerd's own client uses the same.
const KEY_PREFIX: &str = "extract-";
/// The snapshotter whose layers can be applied without the layers below. The mounts of other
/// snapshotters do not show how they keep whiteouts.
const OVERLAYFS: &str = "overlayfs";
/// Capability of a snapshotter that gives a snapshot its parent at the commit.
const REBASE: &str = "rebase";
/// Path of the call that commits.
const COMMIT: &str = "/containerd.services.snapshots.v1.Snapshots/Commit";
/// Folder of the layers below, for a layer that is applied without them.
///
/// containerd looks there for the mode and the owner of a folder that the layer does not list. This
/// is no folder, so containerd refuses the layer instead of making the folder up.
const NO_FOLDER: &str = "/dev/null";
/// Number of attempts to prepare a snapshot that other clients create and remove at the same time.
const TRIES: usize = 3;

/// A snapshotter of this containerd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshotter {
    /// The snapshotter's name, for instance `overlayfs`.
    pub name: String,
    /// Folder of its files, as containerd sees the file system, if the snapshotter or CRI gives it.
    pub root: Option<PathBuf>,
    /// True if [`Base::Later`] works. From containerd 2.2 on, it does for overlayfs.
    pub rebases: bool,
}

/// A layer to unpack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    /// The layer's blob. Its media type gives the compression.
    pub blob: Descriptor,
    /// The digest of the uncompressed tar, from the image's config.
    pub diff_id: Digest,
    /// The chain ID of all layers up to this one. It is the snapshot's name.
    pub chain: Digest,
    /// The chain ID of the layers below. `None` for the lowest layer.
    pub parent: Option<Digest>,
}

/// The time at which a layer's snapshot gets its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// With the first call. The parent must exist by then.
    Now,
    /// With the commit. The parent must exist by then, and layers can be applied in any order.
    Later,
}

/// A snapshot for a layer: empty, and without a name.
///
/// Dropping it leaves a snapshot that is removed with the lease.
#[derive(Debug)]
#[must_use = "a snapshot that gets no layer is removed with the lease"]
pub struct Prepared {
    draft: Draft,
    mounts: Vec<Mount>,
    layer: LayerSpec,
}

/// A layer that is applied and not committed. Its files exist, and no other client sees them yet.
///
/// Dropping it leaves a snapshot without a name, which is removed with the lease.
#[derive(Debug)]
#[must_use = "a layer that is not committed is removed with the lease"]
pub struct Applied {
    draft: Draft,
}

/// A snapshot under a unique key, which no other client uses.
#[derive(Debug)]
struct Draft {
    client: Client,
    lease: String,
    snapshotter: String,
    key: String,
    /// The layer's blob, which errors name.
    blob: Digest,
    chain: Digest,
    /// The parent to give at the commit.
    parent: Option<Digest>,
}

/// The message of [`COMMIT`] since containerd 2.2. Earlier versions skip the parent.
#[derive(Clone, PartialEq, prost::Message)]
struct CommitRequest {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    key: String,
    #[prost(map = "string, string", tag = "4")]
    labels: HashMap<String, String>,
    #[prost(string, tag = "5")]
    parent: String,
}

impl Client {
    /// Returns the snapshotter for unpacking images. With `cri`, that is CRI's snapshotter.
    /// Otherwise it is overlayfs if it works, and else native.
    ///
    /// Returns `None` if there is none, or if CRI does not give its own. Without CRI's answer, the
    /// client cannot know where unpacking helps.
    ///
    /// # Errors
    /// Returns an error if the call fails. CRI refuses to answer until it is initialised.
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
    /// Returns [`Error::Refused`] if there is no such snapshotter, and otherwise an error if the
    /// call fails.
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

    /// Puts a committed snapshot and those below it under a lease.
    ///
    /// The call adds the snapshot first and looks it up afterwards, so that no garbage collection
    /// can come in between. If the snapshot is absent, the lease keeps naming it. That does no
    /// harm, and protects the snapshot if it is created later.
    ///
    /// # Errors
    /// Returns [`Error::LeaseLost`] if there is no such lease, and [`Error::Refused`] if there is
    /// no such snapshotter. Otherwise returns an error if the call fails.
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

    /// Prepares a snapshot for a layer. Returns `None` if the layer's own snapshot exists already.
    /// It is then under the lease.
    ///
    /// Use [`Base::Later`] only if the snapshotter [rebases](Snapshotter::rebases).
    ///
    /// # Errors
    /// - [`Error::Gone`]: the parent is missing. Start with the lowest layer again.
    /// - [`Error::Space`] and [`Error::Disk`]: the disk is full or fails.
    /// - [`Error::LeaseLost`]: there is no such lease.
    /// - [`Error::Failed`]: the call fails, or other clients keep creating and removing the
    ///   snapshot.
    ///
    /// # Cancel safety
    /// May be dropped at any await. A prepared snapshot is removed with the lease.
    pub async fn prepare_layer(
        &self,
        lease: &str,
        snapshotter: &str,
        layer: &LayerSpec,
        base: Base,
    ) -> Result<Option<Prepared>, Error> {
        for digest in [&layer.diff_id, &layer.chain].into_iter().chain(&layer.parent) {
            check_digest(digest)?;
        }
        let digest = layer.blob.digest();
        let attempt = || format!("unpack layer {digest}");
        let (parent, later) = match base {
            Base::Now => (&layer.parent, None),
            Base::Later => (&None, layer.parent.clone()),
        };
        for _ in 0..TRIES {
            let draft = Draft {
                client: self.clone(),
                lease: lease.to_owned(),
                snapshotter: snapshotter.to_owned(),
                key: unique_key(&layer.chain),
                blob: digest.clone(),
                chain: layer.chain.clone(),
                parent: later.clone(),
            };
            let message = PrepareSnapshotRequest {
                snapshotter: snapshotter.to_owned(),
                key: draft.key.clone(),
                parent: parent.as_ref().map(Digest::to_string).unwrap_or_default(),
                labels: draft.labels(),
            };
            let request = self.leased_request(lease, message)?;
            match self.patiently(self.snapshots_client().prepare(request)).await {
                Ok(answer) => {
                    return Ok(Some(Prepared {
                        draft,
                        mounts: answer.into_inner().mounts,
                        layer: layer.clone(),
                    }));
                }
                Err(failure) if failure.is_already_exists() && failure.message().contains(KEY_PREFIX) => {}
                Err(failure) if failure.is_already_exists() => {
                    if self.hold_snapshot(lease, snapshotter, &layer.chain).await? == Held::Held {
                        return Ok(None);
                    }
                }
                Err(failure) => {
                    return Err(match parent {
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

    /// Removes the snapshots without a name that a lease protects: those of a process that died, or
    /// of dropped calls. Use it only if no other call unpacks layers under this lease.
    ///
    /// A snapshot that cannot be removed stays, and is removed with the lease.
    ///
    /// # Errors
    /// Returns [`Error::LeaseLost`] if there is no such lease, and otherwise an error if the list
    /// fails.
    pub async fn remove_unfinished_snapshots(&self, lease: &str) -> Result<(), Error> {
        for resource in self.lease_resources(lease).await? {
            if let Resource::Snapshot { snapshotter, key } = resource
                && key.starts_with(KEY_PREFIX)
            {
                self.discard_snapshot(lease, &snapshotter, &key).await;
            }
        }
        Ok(())
    }

    /// Removes an unfinished snapshot if containerd answers.
    async fn discard_snapshot(&self, lease: &str, snapshotter: &str, key: &str) {
        if let Err(failure) = self.remove_snapshot(lease, snapshotter, key).await {
            tracing::debug!(
                key,
                reason = failure.message(),
                "an unfinished snapshot is left behind"
            );
        }
    }

    /// Removes a snapshot. Returns true if it existed.
    async fn remove_snapshot(&self, lease: &str, snapshotter: &str, key: &str) -> Result<bool, Failure> {
        let message = RemoveSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        };
        let request = self
            .leased_request(lease, message)
            .expect("the lease's id has been a header before");
        match self.unary(self.snapshots_client().remove(request)).await {
            Ok(()) => Ok(true),
            Err(failure) if failure.is_not_found() => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    async fn commit_snapshot(&self, request: Request<CommitRequest>) -> Result<Response<()>, Status> {
        let mut client = Grpc::new(self.channel());
        let ready = client.ready().await;
        ready.map_err(|error| Status::from_error(Box::new(error)))?;
        let path = PathAndQuery::from_static(COMMIT);
        client.unary(request, path, ProstCodec::default()).await
    }

    fn snapshots_client(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE)
    }
}

impl Prepared {
    /// Returns the folder that will have the layer's files, as containerd sees the file system.
    /// Returns `None` if the snapshotter's mounts name no folder.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        // The files go to the last mount (containerd's mount.All).
        let mount = self.mounts.last()?;
        let mut options = mount.options.iter();
        match mount.r#type.as_str() {
            "bind" => Some(Path::new(&mount.source)),
            "overlay" => options.find_map(|option| option.strip_prefix("upperdir=").map(Path::new)),
            _ => None,
        }
    }

    /// Lets containerd apply the layer to the snapshot. Returns `None` if the layer needs the
    /// layers below: prepare it again with [`Base::Now`]. This never happens after [`Base::Now`].
    ///
    /// The call waits as long as containerd takes (minutes on a slow disk), if containerd answers
    /// other calls meanwhile. After a power cut, a commit may survive while the files do not. With
    /// `sync`, containerd 1.7 and later syncs the file system before it answers. Without it, and on
    /// 1.6, the caller syncs the [`folder`](Prepared::folder) before [`Applied::commit`].
    ///
    /// # Errors
    /// - [`Error::Content`] names the blob if containerd cannot unpack it, or if the files do not
    ///   match the diff ID.
    /// - [`Error::Gone`]: the blob is missing. Start with the lowest layer again.
    /// - [`Error::Space`] and [`Error::Disk`]: the disk is full or fails.
    /// - [`Error::LeaseLost`]: there is no such lease.
    /// - [`Error::Failed`]: containerd cannot mount.
    ///
    /// After an error, the call removes the unpacked files if containerd still answers.
    ///
    /// # Cancel safety
    /// May be dropped at any await. containerd stops unpacking, and the unpacked files are removed
    /// with the lease.
    pub async fn apply(self, sync: bool) -> Result<Option<Applied>, Error> {
        let Prepared {
            draft,
            mut mounts,
            layer,
        } = self;
        let client = draft.client.clone();
        let is_alone = draft.parent.is_some();
        if is_alone {
            match overlay_of(&mounts) {
                Some(overlay) => mounts = vec![overlay],
                None => {
                    draft.discard().await;
                    return Ok(None);
                }
            }
        }
        let message = ApplyRequest {
            diff: Some(descriptor_to_wire(&layer.blob)?),
            mounts,
            sync_fs: sync,
            ..ApplyRequest::default()
        };
        let request = client.leased_request(&draft.lease, message)?;
        let mut diffs = DiffClient::new(client.channel());
        let applied = client.patiently(diffs.apply(request)).await;
        match applied.map(digest_of) {
            Ok(found) if found == *layer.diff_id.as_ref() => Ok(Some(Applied { draft })),
            Ok(found) => {
                draft.discard().await;
                Err(Error::content(
                    layer.blob.digest(),
                    format!("it unpacks to {found}, but its image names {}", layer.diff_id),
                ))
            }
            // The layers below decide whether the layer is to blame.
            Err(failure) if is_alone && failure.is_refusal() => {
                draft.discard().await;
                Ok(None)
            }
            Err(failure) => Err(draft.explain(failure).await),
        }
    }

    /// Removes the snapshot. A failure is ignored, since the snapshot is removed with the lease.
    pub async fn discard(self) {
        self.draft.discard().await;
    }
}

impl Applied {
    /// Gives the snapshot its name, the chain ID, under the lease. Another client may have unpacked
    /// the same layer meanwhile. Its snapshot then comes under the lease, and this one is removed.
    ///
    /// # Errors
    /// Returns [`Error::Gone`] if the snapshot vanished, or the snapshot that took its name: start
    /// with the lowest layer again. It also returns it if containerd skipped the parent. Otherwise
    /// returns an error if the call or the disk fails. After an error, the call removes the
    /// snapshot if containerd still answers.
    ///
    /// # Cancel safety
    /// May be dropped at any await. The snapshot then has its name, or is removed with the lease.
    pub async fn commit(self) -> Result<(), Error> {
        let Draft {
            client,
            lease,
            snapshotter,
            key,
            chain,
            blob,
            parent,
        } = &self.draft;
        let attempt = || format!("keep unpacked layer {blob}");
        let message = CommitRequest {
            snapshotter: snapshotter.clone(),
            name: chain.to_string(),
            key: key.clone(),
            labels: self.draft.labels(),
            parent: parent.as_ref().map(Digest::to_string).unwrap_or_default(),
        };
        let request = client.leased_request(lease, message)?;
        let failure = match client.patiently(client.commit_snapshot(request)).await {
            Ok(_) => return self.draft.check_parent().await,
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

    /// Removes the snapshot. A failure is ignored, since the snapshot is removed with the lease.
    pub async fn discard(self) {
        self.draft.discard().await;
    }
}

impl Draft {
    /// Returns the labels of the prepared and of the committed snapshot.
    fn labels(&self) -> HashMap<String, String> {
        HashMap::from([(TARGET_LABEL.to_owned(), self.chain.to_string())])
    }

    /// Finds out why the layer could not be applied, and removes its snapshot.
    ///
    /// containerd's own trouble can look like a broken layer: a closed database, or a snapshot that
    /// is collected during the call. So the layer is blamed only if containerd can still remove the
    /// snapshot.
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

    /// Checks that the committed snapshot has its parent, and removes it otherwise.
    ///
    /// The client reconnects to a containerd that was downgraded to a version before 2.2. That
    /// version skips the parent, and the snapshot would count as all layers.
    async fn check_parent(&self) -> Result<(), Error> {
        let Some(parent) = &self.parent else {
            return Ok(());
        };
        let (client, name) = (&self.client, self.chain.to_string());
        let request = client.request(StatSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: name.clone(),
        });
        let attempt = || format!("keep unpacked layer {}", self.blob);
        match client.unary(client.snapshots_client().stat(request)).await {
            Ok(answer)
                if answer
                    .info
                    .as_ref()
                    .is_some_and(|info| info.parent == parent.as_ref()) =>
            {
                Ok(())
            }
            Ok(_) => {
                client
                    .discard_snapshot(&self.lease, &self.snapshotter, &name)
                    .await;
                Err(Error::gone(format!("parent of snapshot {name}"), attempt()))
            }
            Err(failure) if failure.is_not_found() => Err(Error::gone(format!("snapshot {name}"), attempt())),
            Err(failure) => Err(client.fail_leased(failure, &self.lease, attempt())),
        }
    }

    /// Removes the snapshot if containerd answers.
    async fn discard(&self) {
        let (client, lease) = (&self.client, &self.lease);
        client.discard_snapshot(lease, &self.snapshotter, &self.key).await;
    }

    /// Removes the snapshot. Returns true if it existed.
    async fn remove(&self) -> Result<bool, Failure> {
        let (client, lease) = (&self.client, &self.lease);
        client.remove_snapshot(lease, &self.snapshotter, &self.key).await
    }
}

/// Returns the mount by which containerd applies a layer without the layers below. `mounts` are
/// those of a snapshot without a parent.
///
/// Such a snapshot of overlayfs is a plain folder. containerd would remove the files of the layer's
/// whiteouts there, and keep no whiteouts (containerd issue 13030). In the upper folder of an
/// overlay it keeps them. containerd only reads the options and mounts nothing.
fn overlay_of(mounts: &[Mount]) -> Option<Mount> {
    let [mount] = mounts else { return None };
    (mount.r#type == "bind").then(|| Mount {
        r#type: "overlay".to_owned(),
        source: "overlay".to_owned(),
        target: String::new(),
        options: vec![
            format!("upperdir={}", mount.source),
            format!("lowerdir={NO_FOLDER}"),
        ],
    })
}

fn is_committed(info: &Info) -> bool {
    info.kind() == Kind::Committed
}

/// Returns the digest of the uncompressed layer. Without one in the answer, returns an empty text,
/// which matches no digest.
fn digest_of(answer: Response<ApplyResponse>) -> String {
    answer
        .into_inner()
        .applied
        .map(|applied| applied.digest)
        .unwrap_or_default()
}

/// Returns a unique key, in the form that containerd's own client uses.
fn unique_key(chain: &Digest) -> String {
    let nanos = SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap_or(Duration::ZERO)
        .as_nanos();
    let chance = basics::backoff::chance();
    format!("{KEY_PREFIX}{nanos}-{chance:016x} {chain}")
}

/// Returns true if a snapshotter can give a snapshot its parent at the commit.
fn rebases(plugin: &Plugin) -> bool {
    plugin.id == OVERLAYFS && plugin.capabilities.iter().any(|capability| capability == REBASE)
}

fn usual_snapshotter(plugins: &[Plugin]) -> Option<Snapshotter> {
    USUAL_SNAPSHOTTERS.iter().find_map(|name| {
        let plugin = plugins
            .iter()
            .find(|plugin| plugin.is(SNAPSHOTTER_PLUGIN, name))?;
        plugin.healthy.then(|| Snapshotter {
            name: plugin.id.clone(),
            root: plugin.root.clone(),
            rebases: rebases(plugin),
        })
    })
}

/// Returns the snapshotter whose folder CRI names.
///
/// The folder's name gives the snapshotter, unless the snapshotter keeps its files elsewhere. A
/// snapshotter that does not give its own folder (native on 1.6) uses the folder of CRI.
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
        rebases: plugin.is_some_and(rebases),
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
            capabilities: vec![REBASE.to_owned()],
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
