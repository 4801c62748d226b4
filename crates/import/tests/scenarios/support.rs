//! Help for scenarios: a namespace, bundles with unique bytes, a proxy that breaks connections, and
//! a check that every recorded image is whole.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

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
use fake_containerd::GcPolicy;
use harness::{FakeConfig, Place, Stage, unique};
use oci_spec::image::Digest;
use platforms::Wanted;
use platforms::{Matcher, Platform, Rules};
use tempfile::TempDir;

/// Name of the bundle that scenarios import.
pub(crate) const BUNDLE: &str = "bundle.tar";

/// Makes tests of scenarios, on the stand-in and on each generation.
macro_rules! everywhere {
    ($($scenario:ident)*) => {
        harness::everywhere! { crate::support::play; $($scenario)* }
    };
}
pub(crate) use everywhere;

pub(crate) fn play(place: impl Into<Place>, scenario: impl AsyncFnOnce(&Stage)) {
    harness::play(place, collecting(GcPolicy::AfterEveryMutation), scenario);
}

/// Starts a stand-in that collects garbage after every change. Content that is unprotected for a
/// moment is gone.
pub(crate) fn fake() -> Stage {
    Stage::fake(collecting(GcPolicy::AfterEveryMutation))
}

/// Configures a stand-in with this policy for collecting garbage.
pub(crate) fn collecting(gc: GcPolicy) -> FakeConfig {
    FakeConfig {
        gc,
        ..FakeConfig::default()
    }
}

/// Empties the stand-in, as if it had just been started.
pub(crate) async fn wipe(stage: &Stage) {
    let fake = stage.the_fake();
    fake.clear_faults();
    for name in fake.images(stage.namespace()).into_keys() {
        fake.remove_image(stage.namespace(), &name);
    }
    fake.collect_garbage().await;
    assert!(fake.blobs(stage.namespace()).is_empty());
    fake.reset_log();
}

pub(crate) async fn connect(socket: &Path, namespace: &str, options: Options) -> Client {
    Client::connect_with(socket, namespace, options)
        .await
        .expect("containerd is there")
}

/// Returns bytes that no other test has.
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
        // An operator may allow more names: some scenarios have thousands.
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

    /// Returns a compressed bundle.
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

    /// Returns a bundle as a folder.
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

    /// Returns a bundle with two images that share a layer. The first has a single platform. The
    /// second is an index of three platforms, two of which suit the node.
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

    /// Returns every blob of the bundle that the node needs, with its size.
    pub(crate) fn needed(&self) -> BTreeMap<String, u64> {
        let selection = self.select();
        let blobs = selection.taken().flat_map(|taken| &taken.closure.blobs);
        blobs.map(|blob| (blob.digest.to_string(), blob.size)).collect()
    }
}

/// Returns an image of one amd64 manifest with these layers.
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

/// Imports a sound bundle into a sound containerd.
pub(crate) async fn import_all(client: &Client, stock: &Stock) -> Imported {
    let imported = try_import(client, stock).await.expect("containerd answers");
    if let Some(stopped) = &imported.stopped {
        panic!("{}", basics::chain(stopped));
    }
    imported
}

/// The plan of an import, not carried out yet. The scenario may act in between.
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

/// Checks that every record of the bundle exists with airgapd's label and pin, on a whole closure.
/// Also checks that nothing is left behind.
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

/// Checks that airgapd has no lease and no ingest.
pub(crate) async fn assert_nothing_left(client: &Client) {
    let leases = client.leases().await.expect("containerd answers");
    assert_eq!(leases, [], "leases are left behind");
    let ingests = client.ingests().await.expect("containerd answers");
    assert_eq!(ingests, [], "ingests are left behind");
}

/// Returns the recorded names of the bundle. Checks the target, pin, source and closure of each.
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

/// Returns true if a blob exists.
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

/// Puts every blob that the bundle needs under a separate lease.
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
