//! What scenarios need: a containerd with a namespace of their own, bundles with bytes of their own, a proxy that breaks
//! connections, and the question whether what is recorded is whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use airgapd_import::ingest::Job;
use airgapd_import::plan::{OnConflict, missing_gc_labels, plan};
use airgapd_import::select::Taken;
use airgapd_import::survey::{digests_of, names_of};
use airgapd_import::{
    Imported, Intent, Naming, Observer, Plan, Policy, Selection, Silent, Source, Survey, bundle_id, import,
    labels, select,
};
use bundle::fixtures::{Archive, Image, Layout};
use bundle::{Bundle, Limits};
use containerd::{Client, ImageRecord, Options};
use fake_containerd::{Fake, FakeConfig, GcPolicy};
use lab::{Containerd, Generation};
use oci_spec::image::Digest;
use platforms::Wanted;
use platforms::{Matcher, Platform, Rules};
use tempfile::TempDir;

/// Whatever is waited for comes within this time, or never.
const PATIENCE: Duration = Duration::from_secs(30);
/// The name of the bundle that scenarios import.
pub(crate) const BUNDLE: &str = "bundle.tar";

/// Runs each scenario in each place, as a test of its own.
macro_rules! everywhere {
    ($($scenario:ident)*) => {
        everywhere!(@in on_the_stand_in (crate::support::Place::Fake) $($scenario)*);
        everywhere!(@in on_containerd_1_6 (crate::support::Place::Real(lab::Generation::V1_6)) $($scenario)*);
        everywhere!(@in on_containerd_1_7 (crate::support::Place::Real(lab::Generation::V1_7)) $($scenario)*);
        everywhere!(@in on_containerd_2_1 (crate::support::Place::Real(lab::Generation::V2_1)) $($scenario)*);
        everywhere!(@in on_containerd_2_3 (crate::support::Place::Real(lab::Generation::V2_3)) $($scenario)*);
    };
    (@in $module:ident ($place:expr) $($scenario:ident)*) => {
        mod $module {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $scenario() {
                if let Some(stage) = crate::support::Stage::at($place).await {
                    super::$scenario(&stage).await;
                    stage.assert_no_violations();
                }
            })*
        }
    };
}
pub(crate) use everywhere;

/// Where a scenario runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    Fake,
    Real(Generation),
}

/// A containerd with a namespace for one scenario.
pub(crate) struct Stage {
    server: Server,
    socket: PathBuf,
    namespace: String,
}

enum Server {
    Fake(Box<Fake>),
    /// Held so that it keeps running.
    Real(#[expect(dead_code)] Arc<Containerd>),
}

impl Stage {
    /// `None` when there is no such containerd here and none is demanded.
    pub(crate) async fn at(place: Place) -> Option<Stage> {
        match place {
            Place::Fake => Some(Stage::fake().await),
            Place::Real(generation) => {
                let server = tokio::task::spawn_blocking(move || shared_containerd(generation));
                let server = server.await.expect("starting does not panic")?;
                Some(Stage::new(server.socket(), Server::Real(server)))
            }
        }
    }

    /// A containerd of its own that has CRI. `None` as above.
    pub(crate) async fn with_cri(generation: Generation) -> Option<Stage> {
        let start = move || {
            demanded(
                generation,
                Containerd::start(generation, &lab::Options::default()),
            )
        };
        let server = tokio::task::spawn_blocking(start);
        let server = server.await.expect("starting does not panic")?;
        Some(Stage::new(server.socket(), Server::Real(Arc::new(server))))
    }

    /// A stand-in that collects garbage after every change: what is unprotected for a moment is gone.
    pub(crate) async fn fake() -> Stage {
        Stage::fake_with(GcPolicy::AfterEveryMutation).await
    }

    pub(crate) async fn fake_with(gc: GcPolicy) -> Stage {
        let config = FakeConfig {
            gc,
            ..FakeConfig::default()
        };
        let fake = Fake::start(config).await;
        Stage::new(fake.socket().to_owned(), Server::Fake(Box::new(fake)))
    }

    fn new(socket: PathBuf, server: Server) -> Stage {
        Stage {
            server,
            socket,
            namespace: format!("import-{}", unique()),
        }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(crate) async fn client(&self) -> Client {
        self.client_in(&self.namespace).await
    }

    pub(crate) async fn client_in(&self, namespace: &str) -> Client {
        connect(&self.socket, namespace, Options::default()).await
    }

    /// The stand-in, where it is one: for claims that a real one cannot be asked about.
    pub(crate) fn stand_in(&self) -> Option<&Fake> {
        match &self.server {
            Server::Fake(fake) => Some(fake),
            Server::Real(_) => None,
        }
    }

    pub(crate) fn the_fake(&self) -> &Fake {
        self.stand_in().expect("this scenario runs on the stand-in")
    }

    /// Takes everything out of the stand-in, as if it had just been started.
    pub(crate) async fn wipe(&self) {
        let fake = self.the_fake();
        fake.clear_faults();
        for name in fake.images(&self.namespace).into_keys() {
            fake.remove_image(&self.namespace, &name);
        }
        fake.collect_garbage().await;
        assert!(fake.blobs(&self.namespace).is_empty());
        fake.reset_log();
    }

    pub(crate) fn assert_no_violations(&self) {
        if let Some(fake) = self.stand_in() {
            assert_eq!(fake.violations(), Vec::<String>::new());
        }
    }
}

pub(crate) async fn connect(socket: &Path, namespace: &str, options: Options) -> Client {
    Client::connect_with(socket, namespace, options)
        .await
        .expect("containerd is there")
}

/// One containerd per generation for all scenarios that run at the same time; the last one out stops it.
fn shared_containerd(generation: Generation) -> Option<Arc<Containerd>> {
    static RUNNING: Mutex<BTreeMap<Generation, Weak<Containerd>>> = Mutex::new(BTreeMap::new());
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(server) = running.get(&generation).and_then(Weak::upgrade) {
        return Some(server);
    }
    let options = lab::Options {
        cri: false,
        ..lab::Options::default()
    };
    let server = Arc::new(demanded(generation, Containerd::start(generation, &options))?);
    running.insert(generation, Arc::downgrade(&server));
    Some(server)
}

/// Where containerd cannot be had, scenarios are left out, unless that would hide them where they must run.
#[allow(
    clippy::print_stderr,
    reason = "a test run has no other place to say what it leaves out"
)]
fn demanded<E: std::fmt::Display>(
    generation: Generation,
    started: Result<Containerd, E>,
) -> Option<Containerd> {
    match started {
        Ok(containerd) => Some(containerd),
        Err(error) if std::env::var_os(lab::parts::REQUIRE_CONTAINERD).is_some_and(|value| value == "1") => {
            panic!("containerd {generation} is required: {error:#}")
        }
        Err(error) => {
            eprintln!("skipped, no containerd {generation}: {error:#}");
            None
        }
    }
}

/// Text that no other test of any process uses: containerd shares content between namespaces.
pub(crate) fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let nanos = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .expect("now is after 1970")
        .as_nanos();
    format!(
        "{}-{nanos}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Bytes that no other test has.
pub(crate) fn noise(size: usize) -> Vec<u8> {
    let mut bytes = unique().into_bytes();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// A bundle with its fixture.
pub(crate) struct Stock {
    pub(crate) archive: Archive,
    pub(crate) bundle: Arc<Bundle>,
    _folder: TempDir,
}

impl Stock {
    pub(crate) fn of(archive: Archive) -> Stock {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(BUNDLE);
        archive.write_to(&path);
        // As an operator may allow them: some scenarios have thousands of names.
        let limits = Limits {
            names: 5_000,
            ..Limits::default()
        };
        let bundle = Bundle::open(&path, &limits).expect("a readable bundle");
        Stock {
            archive,
            bundle: Arc::new(bundle),
            _folder: folder,
        }
    }

    /// The same compressed.
    pub(crate) fn packed(archive: Archive, codec: bundle::Compression) -> Stock {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(BUNDLE);
        std::fs::write(&path, archive.to_compressed(codec)).expect("room for a file");
        let bundle = Bundle::open(&path, &Limits::default()).expect("a readable bundle");
        Stock {
            archive,
            bundle: Arc::new(bundle),
            _folder: folder,
        }
    }

    /// The same as a folder.
    pub(crate) fn extracted(archive: Archive) -> Stock {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(BUNDLE);
        std::fs::create_dir(&path).expect("a new folder");
        archive.extract_to(&path);
        let bundle = Bundle::open_dir(&path, &Limits::default()).expect("a readable bundle");
        Stock {
            archive,
            bundle: Arc::new(bundle),
            _folder: folder,
        }
    }

    pub(crate) fn images(images: impl IntoIterator<Item = Image>) -> Stock {
        Stock::of(images.into_iter().fold(Layout::new(), Layout::image).build())
    }

    /// Two images that share a layer: one for a single platform, one an index of three, of which two suit the node.
    pub(crate) fn usual() -> Stock {
        let shared = noise(3000);
        let small = Image::new("r.test/small:1")
            .platform("linux/amd64")
            .layer(&shared)
            .layer(noise(100));
        let large = Image::new("r.test/large:1")
            .platform("linux/amd64")
            .layer(&shared)
            .layer(noise(600_000))
            .platform("linux/386")
            .layer(noise(2000))
            .platform("linux/arm64")
            .layer(noise(2000));
        Stock::images([small, large])
    }

    pub(crate) fn select(&self) -> Selection {
        select(self.bundle.catalog(), &policy())
    }

    /// Every blob that the node needs of it, with its size.
    pub(crate) fn needed(&self) -> BTreeMap<String, u64> {
        let selection = self.select();
        let blobs = selection.taken().flat_map(|taken| &taken.closure.blobs);
        blobs.map(|blob| (blob.digest.to_string(), blob.size)).collect()
    }
}

/// An image of one amd64 manifest with these layers.
pub(crate) fn amd64(name: &str, layers: &[&[u8]]) -> Image {
    layers
        .iter()
        .fold(Image::new(name).platform("linux/amd64"), |image, layer| {
            image.layer(layer)
        })
}

pub(crate) fn policy() -> Policy {
    policy_for("linux/amd64")
}

pub(crate) fn policy_for(platform: &str) -> Policy {
    let node: Platform = platform.parse().expect("a platform");
    Policy {
        wanted: Wanted::Platforms(vec![Matcher::only(&node, Rules::Rc1)]),
        naming: Naming::default(),
        most_records: airgapd_import::plan::MOST_RECORDS,
    }
}

pub(crate) fn intent() -> Intent {
    intent_with(OnConflict::Replace)
}

pub(crate) fn intent_with(on_conflict: OnConflict) -> Intent {
    Intent::new(Source::Bundle(BUNDLE.to_owned()), on_conflict)
}

/// Imports a bundle as the daemon would.
pub(crate) async fn try_import(client: &Client, stock: &Stock) -> Result<Imported, airgapd_import::Error> {
    observed_import(client, stock, &Silent).await
}

pub(crate) async fn observed_import(
    client: &Client,
    stock: &Stock,
    observer: &dyn Observer,
) -> Result<Imported, airgapd_import::Error> {
    import(
        client,
        &stock.bundle,
        &policy(),
        &intent(),
        &bundle_id(BUNDLE),
        false,
        observer,
    )
    .await
}

/// Imports a bundle that nothing is wrong with into a containerd that nothing is wrong with.
pub(crate) async fn import_all(client: &Client, stock: &Stock) -> Imported {
    let imported = try_import(client, stock).await.expect("containerd answers");
    if let Some(stopped) = &imported.stopped {
        panic!("{}", basics::chain(stopped));
    }
    imported
}

/// The plan of an import, made and not carried out: what happens in between is the scenario's.
pub(crate) struct Planned<'a> {
    client: &'a Client,
    stock: &'a Stock,
    pub(crate) plan: Plan,
    intent: Intent,
}

impl<'a> Planned<'a> {
    pub(crate) async fn new(client: &'a Client, stock: &'a Stock, intent: Intent) -> Planned<'a> {
        Planned::of(client, stock, &policy(), intent).await
    }

    pub(crate) async fn of(
        client: &'a Client,
        stock: &'a Stock,
        policy: &Policy,
        intent: Intent,
    ) -> Planned<'a> {
        let selection = select(stock.bundle.catalog(), policy);
        let taken: Vec<&Taken> = selection.taken().collect();
        let names = names_of(taken.iter().copied());
        let survey = Survey::of(client, &names, &digests_of(taken.iter().copied()))
            .await
            .expect("containerd answers");
        Planned {
            client,
            stock,
            plan: plan(&taken, &survey, &intent),
            intent,
        }
    }

    pub(crate) async fn carry_out(&self) -> airgapd_import::ingest::Ingested {
        self.carry_out_watched_by(&Silent).await
    }

    pub(crate) async fn carry_out_watched_by(
        &self,
        observer: &dyn Observer,
    ) -> airgapd_import::ingest::Ingested {
        airgapd_import::ingest::carry_out(&Job {
            client: self.client,
            bundle: Some(Arc::clone(&self.stock.bundle)),
            plan: &self.plan,
            intent: &self.intent,
            lease_id: &bundle_id(BUNDLE),
            observer,
        })
        .await
    }
}

/// Every record of the bundle is there, ours and pinned, on a whole closure; nothing is left behind.
pub(crate) async fn assert_converged(client: &Client, stock: &Stock) {
    let names: Vec<String> = stock
        .select()
        .taken()
        .flat_map(|taken| &taken.records)
        .map(|record| record.name.clone())
        .collect();
    assert_eq!(whole_records(client, stock).await, names);
    assert_nothing_left(client).await;
}

/// No lease of ours and no ingest.
pub(crate) async fn assert_nothing_left(client: &Client) {
    let leases = client.leases().await.expect("containerd answers");
    assert_eq!(leases, [], "leases are left behind");
    let ingests = client.ingests().await.expect("containerd answers");
    assert_eq!(ingests, [], "ingests are left behind");
}

/// The names of the bundle that are recorded, each of them checked: its target, pin, source, and whole closure.
pub(crate) async fn whole_records(client: &Client, stock: &Stock) -> Vec<String> {
    let records = client.images().await.expect("containerd answers");
    let records: BTreeMap<&str, &ImageRecord> = records
        .iter()
        .map(|record| (record.name.as_str(), record))
        .collect();
    let blobs = client.blobs().await.expect("containerd answers");
    let blobs: BTreeMap<String, _> = blobs.iter().map(|blob| (blob.digest.to_string(), blob)).collect();
    let mut found = Vec::new();
    for taken in stock.select().taken() {
        for wanted in &taken.records {
            let Some(record) = records.get(wanted.name.as_str()) else {
                continue;
            };
            assert_eq!(record.target.digest(), wanted.target.digest(), "{}", wanted.name);
            assert!(
                labels::vouch(&record.labels, &intent().source).is_empty(),
                "{record:?}"
            );
            for member in &taken.closure.blobs {
                let blob = blobs.get(member.digest.as_ref());
                let blob =
                    blob.unwrap_or_else(|| panic!("{} is recorded without {}", wanted.name, member.digest));
                let missing = missing_gc_labels(&member.children, &blob.labels);
                assert!(
                    missing.is_empty(),
                    "{} is recorded although {missing:?}",
                    wanted.name
                );
            }
            found.push(wanted.name.clone());
        }
    }
    found
}

/// Waits for a condition, checked again and again.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
    }
}

/// Makes containerd collect its garbage, and returns when it has.
pub(crate) async fn collect_garbage(client: &Client) {
    let id = format!("force-{}", unique());
    let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    client
        .create_lease(&id, expires, &BTreeMap::new())
        .await
        .expect("a lease");
    assert!(client.delete_lease(&id, true).await.expect("containerd answers"));
}

/// Whether a blob is there.
pub(crate) async fn has(client: &Client, digest: &Digest) -> bool {
    client.blob(digest).await.expect("containerd answers").is_some()
}

/// Puts a record of another name on the first image of a selection, as another tool would.
pub(crate) async fn put_record(
    client: &Client,
    name: &str,
    selection: &Selection,
    labels: BTreeMap<String, String>,
) {
    let taken = selection.taken().next().expect("an image is taken");
    let image = containerd::NewImage {
        name: name.to_owned(),
        target: (*taken.records[0].target).clone(),
        labels,
    };
    assert_eq!(
        client.create_image(&image).await.expect("containerd answers"),
        containerd::Creation::Created
    );
}

/// Puts everything the bundle needs under a lease of the scenario's own.
pub(crate) async fn hold_everything(client: &Client, lease: &str, stock: &Stock) {
    let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    client
        .create_lease(lease, expires, &BTreeMap::new())
        .await
        .expect("a lease");
    for digest in stock.needed().into_keys() {
        let resource = containerd::Resource::Blob(digest.parse().expect("a digest"));
        client
            .add_to_lease(lease, &resource)
            .await
            .expect("containerd answers");
    }
}
