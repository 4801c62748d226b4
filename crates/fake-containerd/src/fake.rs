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

/// How a stand-in should be.
#[derive(Clone, Debug)]
pub struct FakeConfig {
    /// What `Version.Version` answers; it also decides which version's behaviour is emulated.
    /// Default `2.1.9`.
    pub version: String,
    /// The node's platform. Default linux/amd64.
    pub platform: NodePlatform,
    /// Whether the CRI services are on the socket. Default true.
    pub cri: bool,
    /// When garbage is collected. Default after deletions.
    pub gc: GcPolicy,
    /// Blobs of more bytes than this are only hashed and measured: they cannot be read back.
    /// Default: all are kept.
    pub discard_data_above: Option<u64>,
    /// Where to listen. Default: `containerd.sock` in a temporary folder of its own.
    pub socket: Option<PathBuf>,
    /// What introspection says the server is.
    pub uuid: String,
    /// Where introspection says that content is kept. Nothing is written there. Default: it does
    /// not say.
    pub content_root: Option<PathBuf>,
    /// What introspection says is in use and deprecated: ids and messages. Default: nothing.
    pub deprecations: Vec<(String, String)>,
    /// Where introspection says that overlayfs keeps its snapshots. Nothing is written there.
    /// Default: it does not say.
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

/// A running stand-in. It has threads of its own, so that tests may block; dropping it stops it and
/// breaks its connections.
pub struct Fake {
    state: Arc<Mutex<State>>,
    service: Service,
    listening: Mutex<Option<Listening>>,
    runtime: Option<Runtime>,
    socket: PathBuf,
    _folder: Option<TempDir>,
}

impl Fake {
    /// Starts a stand-in that listens when this returns.
    ///
    /// # Panics
    /// If the socket cannot be bound.
    #[allow(clippy::unused_async)] // The callers are asynchronous, and starting may one day be.
    pub async fn start(config: FakeConfig) -> Fake {
        Fake::start_blocking(config)
    }

    /// Starts a stand-in from a test that is not asynchronous.
    ///
    /// # Panics
    /// If the socket cannot be bound.
    pub fn start_blocking(config: FakeConfig) -> Fake {
        let fake = Fake::stopped(config);
        fake.listen();
        fake
    }

    /// Prepares a stand-in whose socket is not there yet; [`Fake::listen`] brings it up.
    ///
    /// # Panics
    /// If no temporary folder or thread can be made.
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

    /// Listens, with the state as it is. Does nothing if it listens already.
    ///
    /// # Panics
    /// If the socket cannot be bound.
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

    /// Dies like containerd under SIGKILL: connections break, the socket file stays and refuses,
    /// the state is kept.
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

    /// Dies and comes back with its state.
    pub fn restart(&self) {
        self.kill();
        self.listen();
    }

    /// Breaks all connections; new ones are welcome.
    pub fn drop_connections(&self) {
        self.service.connections.break_all();
    }

    /// The socket to connect to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Arms a fault.
    ///
    /// # Panics
    /// If it names an RPC that is not in [`RPCS`](crate::RPCS).
    pub fn inject(&self, fault: Fault) {
        self.with(|state| state.faults.arm(fault));
    }

    /// Disarms all faults; a full disk has room again.
    pub fn clear_faults(&self) {
        self.with(|state| state.faults.clear());
    }

    /// Everything that containerd would have let pass and should not happen, one sentence each, in
    /// order.
    pub fn violations(&self) -> Vec<String> {
        self.with(|state| state.log.violations.clone())
    }

    /// Violations, and the leases, ingests and unfinished snapshots that were not given back, for
    /// when the test says that the importer is done.
    pub fn check_done(&self) -> Vec<String> {
        self.with(|state| {
            let mut found = state.log.violations.clone();
            found.extend(state.leftovers());
            found
        })
    }

    /// Forgets violations, counters, events and the order log, but not the store: the beginning of
    /// a test's second act.
    pub fn reset_log(&self) {
        self.with(|state| state.log = Default::default());
    }

    /// Collects garbage now.
    #[allow(clippy::unused_async)] // The real one takes its time, and callers treat both alike.
    pub async fn collect_garbage(&self) {
        self.with(State::collect);
    }

    /// Sets the clock that expiries are judged by; it runs on from there.
    pub fn set_clock(&self, now: Timestamp) {
        self.with(|state| state.clock_skew = now.duration_since(Timestamp::now()));
    }

    /// Moves that clock on.
    pub fn advance_clock(&self, by: Duration) {
        let by = SignedDuration::try_from(by).expect("a test's duration fits");
        self.with(|state| state.clock_skew += by);
    }

    /// How often an RPC was called, as `Service.Method`; a refused or failed call counts too.
    ///
    /// # Panics
    /// If it is not in [`RPCS`](crate::RPCS).
    pub fn calls(&self, rpc: &str) -> u64 {
        assert!(crate::RPCS.contains(&rpc), "no RPC is called {rpc:?}; see RPCS");
        self.with(|state| state.log.calls.get(rpc).copied().unwrap_or_default())
    }

    /// All RPCs that were called, and how often.
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        self.with(|state| state.log.calls.clone())
    }

    /// Bytes of content received, by digest (or by ingest ref where that names none), whether
    /// committed or not. What [another importer](crate::GoImporter) sends is not counted.
    pub fn received(&self) -> BTreeMap<String, u64> {
        self.with(|state| state.log.received.clone())
    }

    /// Bytes of content received in all.
    pub fn received_bytes(&self) -> u64 {
        self.with(|state| state.log.received.values().sum())
    }

    /// Events that were published, whoever caused them, in order.
    pub fn events(&self) -> Vec<Event> {
        self.with(|state| state.log.events.clone())
    }

    /// How many event subscriptions are open.
    pub fn subscribers(&self) -> usize {
        self.with(|state| state.events.receiver_count())
    }

    /// RPCs that changed something, in order: to see that leaves come before parents and the record
    /// last.
    pub fn mutations(&self) -> Vec<Mutation> {
        self.with(|state| state.log.mutations.clone())
    }

    /// Names of the namespaces that exist.
    pub fn namespaces(&self) -> Vec<String> {
        self.with(|state| state.namespaces.keys().cloned().collect())
    }

    /// The image records of a namespace, by name.
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

    /// The blobs of a namespace, by digest.
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

    /// The bytes of a blob; `None` if it is not there or its bytes were not kept.
    pub fn blob_bytes(&self, namespace: &str, digest: &str) -> Option<Vec<u8>> {
        self.with(|state| state.blob_bytes(namespace, digest))
            .map(|bytes| bytes.to_vec())
    }

    /// The leases of a namespace, by id.
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

    /// The snapshots of a namespace and snapshotter, by name (or key, of those that are not
    /// committed).
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

    /// The ingests of a namespace, by ref.
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

    /// Waits until something holds, at most ten seconds.
    ///
    /// # Panics
    /// If it does not hold by then; `what` says what was waited for.
    pub async fn wait_until(&self, what: &str, holds: impl Fn(&Fake) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !holds(self) {
            assert!(
                Instant::now() < deadline,
                "waited ten seconds in vain for: {what}"
            );
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
            // Not a plain drop: that may not happen inside another runtime.
            runtime.shutdown_background();
        }
    }
}
