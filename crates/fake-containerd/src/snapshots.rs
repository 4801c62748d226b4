//! `containerd.services.snapshots.v1`: snapshots without files. A snapshot has a parent, a state,
//! and the layer that was applied to it.
//!
//! The snapshotters are those that introspection lists as healthy. Each has its own snapshots.

use std::collections::BTreeMap;
use std::pin::Pin;

use containerd_client::events::{SnapshotCommit, SnapshotPrepare, SnapshotRemove};
use futures_util::{Stream, stream};
use jiff::Timestamp;
use tonic::{Request, Response, Status};

use crate::digest::sha256;
use crate::filters::Filters;
use crate::inspect::SnapshotKind;
use crate::service::{Call, Service};
use crate::state::{Labels, Namespace, State, check_labels, timestamp, without_empty};
use crate::wire;
use crate::wire::generated::snapshots_server::Snapshots;
use crate::wire::snapshots as messages;

/// The snapshotters that exist.
const SNAPSHOTTERS: [&str; 2] = ["native", "overlayfs"];

/// Label with the future name of a snapshot.
const TARGET_LABEL: &str = "containerd.io/snapshot.ref";

/// Snapshots in one answer of containerd's list.
const LIST_CHUNK: usize = 100;

/// A snapshot, prepared or committed.
#[derive(Clone)]
pub(crate) struct Snapshot {
    /// Number in the path of its mounts.
    pub(crate) number: u64,
    pub(crate) parent: Option<String>,
    pub(crate) kind: SnapshotKind,
    pub(crate) labels: Labels,
    pub(crate) created: Timestamp,
    pub(crate) updated: Timestamp,
    /// Digest of the uncompressed layer that was applied to it.
    pub(crate) applied: Option<String>,
    /// True if the layer was applied to a mount that keeps its whiteouts for the layers below.
    pub(crate) keeps_whiteouts: bool,
    /// True if another importer prepared it. Its leftovers do not count.
    pub(crate) foreign: bool,
}

#[tonic::async_trait]
impl Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<messages::PrepareSnapshotRequest>,
    ) -> Result<Response<messages::PrepareSnapshotResponse>, Status> {
        self.unary("Snapshots.Prepare", request, prepare).await
    }

    async fn commit(&self, request: Request<wire::CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        self.unary("Snapshots.Commit", request, commit).await
    }

    async fn remove(
        &self,
        request: Request<messages::RemoveSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        self.unary("Snapshots.Remove", request, remove).await
    }

    async fn stat(
        &self,
        request: Request<messages::StatSnapshotRequest>,
    ) -> Result<Response<messages::StatSnapshotResponse>, Status> {
        self.unary("Snapshots.Stat", request, |state, call, request| {
            loaded(&request.snapshotter)?;
            let snapshot = state
                .snapshot(&call.namespace, &request.snapshotter, &request.key)
                .ok_or_else(|| unknown(&request.key))?;
            Ok(messages::StatSnapshotResponse {
                info: Some(info(&request.key, snapshot)),
            })
        })
        .await
    }

    type ListStream = Pin<Box<dyn Stream<Item = Result<messages::ListSnapshotsResponse, Status>> + Send>>;

    async fn list(
        &self,
        request: Request<messages::ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        self.unary("Snapshots.List", request, |state, call, request| {
            loaded(&request.snapshotter)?;
            let filters = Filters::parse(&request.filters)?;
            let snapshots = state
                .namespace(&call.namespace)
                .snapshots
                .get(&request.snapshotter);
            let found: Vec<messages::Info> = snapshots
                .into_iter()
                .flatten()
                .filter(|(name, snapshot)| {
                    filters.accept(|path| match path {
                        ["name"] => Some(name.as_str()),
                        ["parent"] => snapshot.parent.as_deref(),
                        ["labels", key @ ..] => snapshot.labels.get(&key.join(".")).map(String::as_str),
                        _ => None,
                    })
                })
                .map(|(name, snapshot)| info(name, snapshot))
                .collect();
            let answers: Vec<_> = found
                .chunks(LIST_CHUNK)
                .map(|infos| Ok(messages::ListSnapshotsResponse { info: infos.to_vec() }))
                .collect();
            Ok(Box::pin(stream::iter(answers)) as Self::ListStream)
        })
        .await
    }
}

fn prepare(
    state: &mut State,
    call: &Call,
    request: messages::PrepareSnapshotRequest,
) -> Result<messages::PrepareSnapshotResponse, Status> {
    let messages::PrepareSnapshotRequest {
        snapshotter,
        key,
        parent,
        labels,
    } = request;
    loaded(&snapshotter)?;
    let labels: Labels = labels.into_iter().collect();
    check_labels(&labels)?;
    state.check_leased_snapshot(call, &key);
    if let Some(target) = labels.get(TARGET_LABEL)
        && state.snapshot(&call.namespace, &snapshotter, target).is_some()
    {
        if state.version.leases_targets() {
            protect(state, call, &snapshotter, target)?;
        }
        return Err(Status::already_exists(format!(
            "target snapshot {target:?}: already exists"
        )));
    }
    if state.snapshot(&call.namespace, &snapshotter, &key).is_some() {
        return Err(exists(&key));
    }
    let parent = Some(parent).filter(|parent| !parent.is_empty());
    if let Some(parent) = &parent {
        let below = state.snapshot(&call.namespace, &snapshotter, parent);
        let Some(below) = below else {
            return Err(Status::not_found(format!(
                "parent snapshot {parent} does not exist: not found"
            )));
        };
        if below.kind != SnapshotKind::Committed {
            return Err(Status::invalid_argument(format!(
                "parent {parent:?} is not committed snapshot: invalid argument"
            )));
        }
    }
    protect(state, call, &snapshotter, &key)?;
    let now = state.now();
    let snapshot = Snapshot {
        number: state.next_number(),
        parent: parent.clone(),
        kind: SnapshotKind::Active,
        labels: without_empty(labels),
        created: now,
        updated: now,
        applied: None,
        keeps_whiteouts: false,
        foreign: call.foreign,
    };
    let mounts = vec![mount(snapshot.number)];
    let event = SnapshotPrepare {
        key: key.clone(),
        parent: parent.unwrap_or_default(),
        snapshotter: snapshotter.clone(),
    };
    all_mut(state, call, &snapshotter).insert(key.clone(), snapshot);
    state.changed(call.rpc, &call.namespace, &key, call.lease.as_deref());
    state.publish(&call.namespace, "/snapshot/prepare", &key, &event);
    Ok(messages::PrepareSnapshotResponse { mounts })
}

fn commit(state: &mut State, call: &Call, request: wire::CommitSnapshotRequest) -> Result<(), Status> {
    let wire::CommitSnapshotRequest {
        snapshotter,
        name,
        key,
        labels,
        parent,
    } = request;
    loaded(&snapshotter)?;
    let labels: Labels = labels.into_iter().collect();
    check_labels(&labels)?;
    state.check_leased_snapshot(call, &key);
    if state.snapshot(&call.namespace, &snapshotter, &name).is_some() {
        return Err(exists(&name));
    }
    let mut draft = state
        .snapshot(&call.namespace, &snapshotter, &key)
        .cloned()
        .ok_or_else(|| unknown(&key))?;
    if draft.kind != SnapshotKind::Active {
        return Err(Status::failed_precondition(format!(
            "snapshot {key:?} is not active: failed precondition"
        )));
    }
    let skips_parents = state.faults.skips_parents();
    if !parent.is_empty() && state.version.rebases() && !skips_parents {
        rebase(state, call, &snapshotter, &mut draft, parent)?;
    }
    protect(state, call, &snapshotter, &name)?;
    if !skips_parents {
        state.check_committed_snapshot(&name, &draft);
    }
    let committed = Snapshot {
        kind: SnapshotKind::Committed,
        labels: without_empty(labels),
        updated: state.now(),
        ..draft
    };
    let event = SnapshotCommit {
        key: key.clone(),
        name: name.clone(),
        snapshotter: snapshotter.clone(),
    };
    forget(state, &call.namespace, &snapshotter, &key);
    all_mut(state, call, &snapshotter).insert(name.clone(), committed);
    state.changed(call.rpc, &call.namespace, &name, call.lease.as_deref());
    state.publish(&call.namespace, "/snapshot/commit", &key, &event);
    Ok(())
}

/// Gives a snapshot its parent. containerd skips the parent of a snapshot that has one.
fn rebase(
    state: &mut State,
    call: &Call,
    snapshotter: &str,
    draft: &mut Snapshot,
    parent: String,
) -> Result<(), Status> {
    if let Some(own) = &draft.parent {
        if *own != parent {
            state.violation(format!("a snapshot on {own} was committed on {parent}"));
        }
        return Ok(());
    }
    let Some(below) = state.snapshot(&call.namespace, snapshotter, &parent) else {
        return Err(Status::not_found(format!(
            "parent snapshot {parent} does not exist: not found"
        )));
    };
    if below.kind != SnapshotKind::Committed {
        return Err(Status::failed_precondition(format!(
            "parent {parent:?} is not committed: failed precondition"
        )));
    }
    if !draft.keeps_whiteouts {
        state.violation(format!(
            "a snapshot was committed on {parent}, and its layer was applied without keeping whiteouts"
        ));
    }
    draft.parent = Some(parent);
    Ok(())
}

fn remove(state: &mut State, call: &Call, request: messages::RemoveSnapshotRequest) -> Result<(), Status> {
    let messages::RemoveSnapshotRequest { snapshotter, key } = request;
    loaded(&snapshotter)?;
    if state.snapshot(&call.namespace, &snapshotter, &key).is_none() {
        return Err(unknown(&key));
    }
    let snapshots = all_mut(state, call, &snapshotter);
    if snapshots
        .values()
        .any(|above| above.parent.as_ref() == Some(&key))
    {
        return Err(Status::failed_precondition(
            "cannot remove snapshot with child: failed precondition",
        ));
    }
    forget(state, &call.namespace, &snapshotter, &key);
    state.dirty = true;
    state.changed(call.rpc, &call.namespace, &key, call.lease.as_deref());
    let event = SnapshotRemove {
        key: key.clone(),
        snapshotter,
    };
    state.publish(&call.namespace, "/snapshot/remove", &key, &event);
    Ok(())
}

impl State {
    pub(crate) fn snapshot(&self, namespace: &str, snapshotter: &str, name: &str) -> Option<&Snapshot> {
        self.namespace(namespace).snapshots.get(snapshotter)?.get(name)
    }

    /// Returns the prepared snapshot behind these mounts.
    pub(crate) fn snapshot_at(&mut self, namespace: &str, mounts: &[wire::Mount]) -> Option<&mut Snapshot> {
        let [given] = mounts else { return None };
        let snapshots = &mut self.namespaces.get_mut(namespace)?.snapshots;
        let mut drafts = snapshots
            .values_mut()
            .flat_map(BTreeMap::values_mut)
            .filter(|snapshot| snapshot.kind == SnapshotKind::Active);
        drafts.find(|snapshot| {
            let own = mount(snapshot.number);
            own == *given || upper_folder(given) == Some(&own.source)
        })
    }
}

/// Returns the folder into which containerd applies a layer, of an overlay mount.
pub(crate) fn upper_folder(mount: &wire::Mount) -> Option<&str> {
    option(mount, "upperdir=")
}

/// Returns the folders of the layers below, of an overlay mount.
pub(crate) fn lower_folders(mount: &wire::Mount) -> Option<&str> {
    option(mount, "lowerdir=")
}

fn option<'a>(mount: &'a wire::Mount, name: &str) -> Option<&'a str> {
    let mut options = mount.options.iter();
    let value = options.find_map(|option| option.strip_prefix(name));
    value.filter(|_| mount.r#type == "overlay")
}

/// Returns the name of a snapshot with this chain of layers.
pub(crate) fn chain_id(parent: Option<&str>, diff_id: &str) -> String {
    match parent {
        None => diff_id.to_owned(),
        Some(parent) => sha256(format!("{parent} {diff_id}").as_bytes()),
    }
}

/// Returns a text that identifies a snapshot in a namespace.
pub(crate) fn id(snapshotter: &str, key: &str) -> String {
    format!("{snapshotter}/{key}")
}

/// Returns the snapshot with such a text from [`id`], and its snapshotter.
pub(crate) fn by_id<'a>(namespace: &'a Namespace, id: &'a str) -> Option<(&'a str, &'a Snapshot)> {
    let (snapshotter, key) = id.split_once('/')?;
    let snapshot = namespace.snapshots.get(snapshotter)?.get(key)?;
    Some((snapshotter, snapshot))
}

/// Returns the snapshots that gc labels refer to, each with its snapshotter.
pub(crate) fn referred(labels: &Labels) -> Vec<(String, String)> {
    const KEY: &str = "containerd.io/gc.ref.snapshot.";
    let snapshotter = |key: &str| {
        let rest = key.strip_prefix(KEY)?;
        let name = rest.split(['.', '/']).next()?;
        (!name.is_empty()).then(|| name.to_owned())
    };
    labels
        .iter()
        .filter(|(_, name)| !name.is_empty())
        .filter_map(|(key, name)| Some((snapshotter(key)?, name.clone())))
        .collect()
}

/// Removes a snapshot as garbage.
pub(crate) fn sweep(state: &mut State, namespace: &str, id: &str) {
    let Some((snapshotter, key)) = id.split_once('/') else {
        return;
    };
    forget(state, namespace, snapshotter, key);
    if state.version.tells_of_collected_snapshots() {
        let event = SnapshotRemove {
            key: key.to_owned(),
            snapshotter: snapshotter.to_owned(),
        };
        state.publish(namespace, "/snapshot/remove", key, &event);
    }
}

fn forget(state: &mut State, namespace: &str, snapshotter: &str, key: &str) {
    let namespace = state.namespace_mut(namespace);
    if let Some(snapshots) = namespace.snapshots.get_mut(snapshotter) {
        snapshots.remove(key);
    }
    let resource = (format!("snapshots/{snapshotter}"), key.to_owned());
    for lease in namespace.leases.values_mut() {
        lease.resources.remove(&resource);
    }
}

fn all_mut<'a>(state: &'a mut State, call: &Call, snapshotter: &str) -> &'a mut BTreeMap<String, Snapshot> {
    let namespace = state.namespace_mut(&call.namespace);
    namespace.snapshots.entry(snapshotter.to_owned()).or_default()
}

fn protect(state: &mut State, call: &Call, snapshotter: &str, key: &str) -> Result<(), Status> {
    let kind = format!("snapshots/{snapshotter}");
    state.protect(&call.namespace, call.lease.as_deref(), &kind, key)
}

/// Returns the mount of a prepared snapshot. Its path does not exist, and only `Diff.Apply`
/// understands it.
fn mount(number: u64) -> wire::Mount {
    wire::Mount {
        r#type: "bind".to_owned(),
        source: format!("/nonexistent/io.containerd.snapshotter.v1.fake/snapshots/{number}/fs"),
        target: String::new(),
        options: ["rw", "rbind"].map(str::to_owned).to_vec(),
    }
}

fn info(name: &str, snapshot: &Snapshot) -> messages::Info {
    let kind = match snapshot.kind {
        SnapshotKind::Active => messages::Kind::Active,
        SnapshotKind::Committed => messages::Kind::Committed,
    };
    messages::Info {
        name: name.to_owned(),
        parent: snapshot.parent.clone().unwrap_or_default(),
        kind: kind.into(),
        created_at: Some(timestamp(snapshot.created)),
        updated_at: Some(timestamp(snapshot.updated)),
        labels: snapshot.labels.clone().into_iter().collect(),
    }
}

fn loaded(snapshotter: &str) -> Result<(), Status> {
    if SNAPSHOTTERS.contains(&snapshotter) {
        return Ok(());
    }
    let text = match snapshotter {
        "" => "snapshotter argument missing: invalid argument".to_owned(),
        name => format!("snapshotter not loaded: {name}: invalid argument"),
    };
    Err(Status::invalid_argument(text))
}

fn exists(name: &str) -> Status {
    Status::already_exists(format!("snapshot {name:?}: already exists"))
}

fn unknown(name: &str) -> Status {
    Status::not_found(format!("snapshot {name} does not exist: not found"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_name_the_snapshotter_and_may_have_a_tail() {
        let labels: Labels = [
            ("containerd.io/gc.ref.snapshot.native", "a"),
            ("containerd.io/gc.ref.snapshot.overlayfs.more", "b"),
            ("containerd.io/gc.ref.snapshot.overlayfs/2", "c"),
            ("containerd.io/gc.ref.snapshot.", "no"),
            ("containerd.io/gc.ref.snapshots.overlayfs", "no"),
            ("containerd.io/gc.ref.content", "no"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        let found = referred(&labels);
        let expected = [("native", "a"), ("overlayfs", "b"), ("overlayfs", "c")];
        assert_eq!(
            found,
            expected.map(|(snapshotter, name)| (snapshotter.to_owned(), name.to_owned()))
        );
    }
}
