//! [`Fake`]: one running stand-in, with its socket, its faults and its inspection.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use crate::faults::Fault;
use crate::gc::GcPolicy;
use crate::inspect::{
    BlobRecord, Event, ImageRecord, IngestRecord, LeaseRecord, Mutation, SnapshotRecord, Target,
};
use crate::platform::NodePlatform;
use crate::server::{Connections, Listening};
use crate::service::Service;
use crate::state::State;

/// Settings of a stand-in.
#[derive(Clone, Debug)]
pub struct FakeConfig {
    /// The answer of `Version.Version`, which also selects the emulated behaviour. Default `2.1.9`.
    pub version: String,
    /// The node's platform. Default linux/amd64.
    pub platform: NodePlatform,
    /// True if the socket has the CRI services. Default true.
    pub cri: bool,
    /// Times of garbage collection. Default: after deletions.
    pub gc: GcPolicy,
    /// Largest blob in bytes whose content is kept. Larger blobs are only hashed and measured, and
    /// cannot be read. Default: all are kept.
    pub discard_data_above: Option<u64>,
    /// Path of the socket. Default: `containerd.sock` in its own temporary folder.
    pub socket: Option<PathBuf>,
    /// The server's id in introspection.
    pub uuid: String,
    /// The folder of content in introspection. Nothing is written there. Default: not reported.
    pub content_root: Option<PathBuf>,
    /// Deprecations in introspection: ids and messages. Default: none.
    pub deprecations: Vec<(String, String)>,
    /// The folder of overlayfs snapshots in introspection. Nothing is written there. Default: not
    /// reported.
    pub snapshots_root: Option<PathBuf>,
}

impl Default for FakeConfig {
    fn default() -> Self {
        FakeConfig {
            version: "2.1.9".to_owned(),
            platform: NodePlatform::default(),
            cri: true,
            gc: GcPolicy::default(),
            discard_data_above: None,
            socket: None,
            uuid: "a1b2c3d4-0000-4000-8000-00000000fa6e".to_owned(),
            content_root: None,
            deprecations: Vec::new(),
            snapshots_root: None,
        }
    }
}

/// A running stand-in. It has its own threads, so tests may block. Dropping it stops it and breaks
/// its connections.
pub struct Fake {
    state: Arc<Mutex<State>>,
    service: Service,
    listening: Mutex<Option<Listening>>,
    runtime: Option<Runtime>,
    socket: PathBuf,
    _folder: Option<TempDir>,
}

impl Fake {
    /// Starts a stand-in, which listens when this returns.
    ///
    /// # Panics
    /// Panics if the socket cannot be bound.
    #[allow(clippy::unused_async)] // The callers are asynchronous, and starting may one day be.
    pub async fn start(config: FakeConfig) -> Fake {
        Fake::start_blocking(config)
    }

    /// Starts a stand-in from a test that is not asynchronous.
    ///
    /// # Panics
    /// Panics if the socket cannot be bound.
    pub fn start_blocking(config: FakeConfig) -> Fake {
        let fake = Fake::stopped(config);
        fake.listen();
        fake
    }

    /// Prepares a stand-in without its socket. [`Fake::listen`] creates the socket.
    ///
    /// # Panics
    /// Panics if a temporary folder or a thread cannot be created.
    pub fn stopped(config: FakeConfig) -> Fake {
        let (folder, socket) = match &config.socket {
            Some(socket) => (None, socket.clone()),
            None => {
                let folder = tempfile::Builder::new()
                    .prefix("fake-containerd-")
                    .tempdir()
                    .expect("a temporary folder");
                let socket = folder.path().join("containerd.sock");
                (Some(folder), socket)
            }
        };
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("fake-containerd")
            .enable_all()
            .build()
            .expect("threads for the stand-in");
        let state = Arc::new(Mutex::new(State::new(config)));
        let service = Service::new(Arc::clone(&state), Arc::new(Connections::default()));
        Fake {
            state,
            service,
            listening: Mutex::default(),
            runtime: Some(runtime),
            socket,
            _folder: folder,
        }
    }

    /// Listens, with the state unchanged. Does nothing if the stand-in already listens.
    ///
    /// # Panics
    /// Panics if the socket cannot be bound.
    pub fn listen(&self) {
        let mut listening = self.listening.lock().expect("no holder of this lock panics");
        if listening.is_none() {
            let _inside = self
                .runtime
                .as_ref()
                .expect("only Drop takes the runtime")
                .enter();
            let cri = self.with(|state| state.config.cri);
            *listening =
                Some(Listening::start(&self.socket, &self.service, cri).expect("the socket can be bound"));
        }
    }

    /// Stops like containerd under SIGKILL. Connections break, and the socket file stays but
    /// refuses connections. The state is kept.
    pub fn kill(&self) {
        if let Some(listening) = self
            .listening
            .lock()
            .expect("no holder of this lock panics")
            .take()
        {
            listening.die();
        }
    }

    /// Stops and starts again with its state.
    pub fn restart(&self) {
        self.kill();
        self.listen();
    }

    /// Breaks all connections. New connections are accepted.
    pub fn drop_connections(&self) {
        self.service.connections.break_all();
    }

    /// Returns the path of the socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Arms a fault.
    ///
    /// # Panics
    /// Panics if the fault names an RPC that is not in [`RPCS`](crate::RPCS).
    pub fn inject(&self, fault: Fault) {
        self.with(|state| state.faults.arm(fault));
    }

    /// Runs `act` before each call, and before each message of a write stream, until
    /// [`Fake::clear_faults`]. The caller waits meanwhile. `act` must not use the stand-in.
    pub fn at_each_step(&self, act: impl FnMut() + Send + 'static) {
        self.with(|state| state.faults.at_each_step(act));
    }

    /// Disarms all faults. A full disk has room again.
    pub fn clear_faults(&self) {
        self.with(|state| state.faults.clear());
    }

    /// Returns all violations in order, one sentence each. containerd accepts them, but an importer
    /// must avoid them.
    pub fn violations(&self) -> Vec<String> {
        self.with(|state| state.log.violations.clone())
    }

    /// Returns violations, and all leases, ingests and unfinished snapshots that were not released.
    /// For the moment when the importer has finished.
    pub fn check_done(&self) -> Vec<String> {
        self.with(|state| {
            let mut found = state.log.violations.clone();
            found.extend(state.leftovers());
            found
        })
    }

    /// Clears violations, counters, events and the order log, but not the store. For a test's
    /// second part.
    pub fn reset_log(&self) {
        self.with(|state| state.log = Default::default());
    }

    /// Collects garbage now.
    #[allow(clippy::unused_async)] // The real one takes its time, and callers treat both alike.
    pub async fn collect_garbage(&self) {
        self.with(State::collect);
    }

    /// Sets the clock that decides about expiries. The clock runs on from there.
    pub fn set_clock(&self, now: Timestamp) {
        self.with(|state| state.clock_skew = now.duration_since(Timestamp::now()));
    }

    /// Advances that clock.
    pub fn advance_clock(&self, by: Duration) {
        let by = SignedDuration::try_from(by).expect("a test's duration fits");
        self.with(|state| state.clock_skew += by);
    }

    /// Returns the number of calls of an RPC, as `Service.Method`. A refused or failed call counts
    /// too.
    ///
    /// # Panics
    /// Panics if the RPC is not in [`RPCS`](crate::RPCS).
    pub fn calls(&self, rpc: &str) -> u64 {
        assert!(crate::RPCS.contains(&rpc), "no RPC is called {rpc:?}: see RPCS");
        self.with(|state| state.log.calls.get(rpc).copied().unwrap_or_default())
    }

    /// Returns the number of calls of every RPC that was called.
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        self.with(|state| state.log.calls.clone())
    }

    /// Returns the bytes of content received, by digest, whether committed or not. An ingest ref
    /// without a digest counts under the ref. The bytes of [another importer](crate::GoImporter) do
    /// not count.
    pub fn received(&self) -> BTreeMap<String, u64> {
        self.with(|state| state.log.received.clone())
    }

    /// Returns the total bytes of content received.
    pub fn received_bytes(&self) -> u64 {
        self.with(|state| state.log.received.values().sum())
    }

    /// Returns the events that were published, from all causes, in order.
    pub fn events(&self) -> Vec<Event> {
        self.with(|state| state.log.events.clone())
    }

    /// Returns the number of open event subscriptions.
    pub fn subscribers(&self) -> usize {
        self.with(|state| state.events.receiver_count())
    }

    /// Returns the RPCs that changed something, in order. With them, tests check that leaves come
    /// before parents and the record comes last.
    pub fn mutations(&self) -> Vec<Mutation> {
        self.with(|state| state.log.mutations.clone())
    }

    /// Returns the names of the namespaces that exist.
    pub fn namespaces(&self) -> Vec<String> {
        self.with(|state| state.namespaces.keys().cloned().collect())
    }

    /// Returns the image records of a namespace, by name.
    pub fn images(&self, namespace: &str) -> BTreeMap<String, ImageRecord> {
        self.with(|state| {
            let images = state.namespaces.get(namespace).map(|namespace| &namespace.images);
            let record = |(name, image): (&String, &crate::state::Image)| ImageRecord {
                name: name.clone(),
                target: Target {
                    media_type: image.target.media_type.clone(),
                    digest: image.target.digest.clone(),
                    size: image.target.size,
                    annotations: image.target.annotations.clone().into_iter().collect(),
                },
                labels: image.labels.clone(),
            };
            images
                .into_iter()
                .flatten()
                .map(|image| (image.0.clone(), record(image)))
                .collect()
        })
    }

    /// Returns the blobs of a namespace, by digest.
    pub fn blobs(&self, namespace: &str) -> BTreeMap<String, BlobRecord> {
        self.with(|state| {
            let blobs = state.namespaces.get(namespace).map(|namespace| &namespace.blobs);
            let record = |blob: &crate::state::Blob| BlobRecord {
                size: blob.size,
                labels: blob.labels.clone(),
            };
            blobs
                .into_iter()
                .flatten()
                .map(|(digest, blob)| (digest.clone(), record(blob)))
                .collect()
        })
    }

    /// Returns the bytes of a blob, or `None` if the blob is missing or its bytes were not kept.
    pub fn blob_bytes(&self, namespace: &str, digest: &str) -> Option<Vec<u8>> {
        self.with(|state| state.blob_bytes(namespace, digest))
            .map(|bytes| bytes.to_vec())
    }

    /// Returns the leases of a namespace, by id.
    pub fn leases(&self, namespace: &str) -> BTreeMap<String, LeaseRecord> {
        self.with(|state| {
            let leases = state.namespaces.get(namespace).map(|namespace| &namespace.leases);
            let record = |lease: &crate::state::Lease| LeaseRecord {
                labels: lease.labels.clone(),
                resources: lease.resources.clone(),
            };
            leases
                .into_iter()
                .flatten()
                .map(|(id, lease)| (id.clone(), record(lease)))
                .collect()
        })
    }

    /// Returns the snapshots of a namespace and snapshotter, by name. Snapshots that are not
    /// committed are listed by key.
    pub fn snapshots(&self, namespace: &str, snapshotter: &str) -> BTreeMap<String, SnapshotRecord> {
        self.with(|state| {
            let snapshots = state.namespace(namespace).snapshots.get(snapshotter);
            let record = |snapshot: &crate::snapshots::Snapshot| SnapshotRecord {
                parent: snapshot.parent.clone(),
                kind: snapshot.kind,
                labels: snapshot.labels.clone(),
            };
            snapshots
                .into_iter()
                .flatten()
                .map(|(name, snapshot)| (name.clone(), record(snapshot)))
                .collect()
        })
    }

    /// Returns the ingests of a namespace, by ref.
    pub fn ingests(&self, namespace: &str) -> BTreeMap<String, IngestRecord> {
        self.with(|state| {
            let ingests = state
                .namespaces
                .get(namespace)
                .map(|namespace| &namespace.ingests);
            let record = |ingest: &crate::state::Ingest| IngestRecord {
                offset: ingest
                    .partial
                    .lock()
                    .expect("no holder of this lock panics")
                    .offset,
                total: ingest.total,
                locked: ingest.locked.is_some(),
            };
            ingests
                .into_iter()
                .flatten()
                .map(|(reference, ingest)| (reference.clone(), record(ingest)))
                .collect()
        })
    }

    /// Waits until a condition holds, at most ten seconds.
    ///
    /// # Panics
    /// Panics if the condition does not hold by then. `what` names it in the message.
    pub async fn wait_until(&self, what: &str, holds: impl Fn(&Fake) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !holds(self) {
            assert!(Instant::now() < deadline, "waited ten seconds in vain for {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state: MutexGuard<'_, State> = self.state.lock().expect("no holder of this lock panics");
        act(&mut state)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.kill();
        if let Some(runtime) = self.runtime.take() {
            // A plain drop must not happen inside another runtime.
            runtime.shutdown_background();
        }
    }
}
