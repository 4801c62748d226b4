//! The containerd of one scenario: the stand-in or a real one, behind one interface.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use containerd::{BlobSource, BlobSpec, Client, CriImage, ImageChange, ImageRecord, ImageUpdate, NewImage};
use fake_containerd::{Fake, FakeConfig, Fault};
use harness::{Place, Stage, unique, wait_until};
use lab::{Containerd, Generation, Options};
use oci_spec::image::{Descriptor, Digest};
use tokio::runtime::Runtime;

/// Namespace of kubelet's images.
pub const KUBERNETES: &str = "k8s.io";

/// A containerd, and a namespace in it that no other test uses meanwhile.
pub struct Target {
    stage: Stage,
    client: Client,
    runtime: Arc<Runtime>,
    _kubernetes: Option<MutexGuard<'static, ()>>,
}

/// A real containerd that only this scenario uses, to stop, kill, replace or fill it.
pub struct Own {
    pub containerd: Containerd,
    pub target: Target,
}

/// Plays a scenario on its own containerd.
pub fn run_on_own(generation: Generation, options: &Options, scenario: impl FnOnce(&mut Own)) {
    let Some(harness::Own { containerd, stage }) = harness::Own::start(generation, options) else {
        return;
    };
    let target = Target::new(stage.in_namespace(KUBERNETES), None);
    scenario(&mut Own { containerd, target });
}

/// Plays a scenario. Afterwards the stand-in must not have seen a violation.
pub fn run_on(place: impl Into<Place>, scenario: impl FnOnce(&Target)) {
    let Some(stage) = Stage::at(place.into(), FakeConfig::default()) else {
        return;
    };
    let target = Target::new(stage, None);
    scenario(&target);
    target.assert_tidy();
}

impl Target {
    /// Starts a stand-in with this configuration.
    pub fn fake(config: FakeConfig) -> Target {
        Target::new(Stage::fake(config), None)
    }

    /// Returns the same containerd in the namespace of CRI. No other test is in it until this is
    /// dropped.
    pub fn in_kubernetes(&self) -> Target {
        let kubernetes = self.stage.hold_kubernetes();
        Target::new(self.stage.in_namespace(KUBERNETES), kubernetes)
    }

    /// Returns the same containerd in another namespace that no other test uses.
    pub fn elsewhere(&self) -> Target {
        Target::new(self.stage.elsewhere(), None)
    }

    fn new(stage: Stage, kubernetes: Option<MutexGuard<'static, ()>>) -> Target {
        let runtime = Arc::new(Runtime::new().expect("threads for a client"));
        let client = runtime.block_on(stage.client());
        Target {
            stage,
            client,
            runtime,
            _kubernetes: kubernetes,
        }
    }

    /// Returns the kind of the containerd.
    pub fn place(&self) -> Place {
        self.stage.place()
    }

    pub fn socket(&self) -> &Path {
        self.client.socket()
    }

    pub fn namespace(&self) -> &str {
        self.stage.namespace()
    }

    /// Returns the client of this target, for requests that few scenarios need.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Returns the stand-in, if this is one.
    pub fn as_fake(&self) -> Option<&Fake> {
        self.stage.as_fake()
    }

    /// From now on the stand-in takes this long to commit a blob.
    pub fn slow_commits(&self, by: Duration) {
        let fake = self.as_fake().expect("the target is the stand-in");
        fake.inject(Fault::SlowCommit { by });
    }

    /// Checks that the stand-in has seen no violation, and that all leases and ingests were
    /// returned.
    pub fn assert_tidy(&self) {
        if let Some(fake) = self.as_fake() {
            assert_eq!(
                fake.check_done(),
                Vec::<String>::new(),
                "violations that the stand-in reports"
            );
        }
    }

    fn wait_for<T>(&self, call: impl Future<Output = Result<T, containerd::Error>>) -> T {
        self.runtime.block_on(call).expect("containerd answers")
    }

    // Image records.

    /// Returns all image records by name, without CRI's own.
    pub fn records(&self) -> BTreeMap<String, ImageRecord> {
        let records = self.wait_for(self.client.images()).into_iter();
        records
            .filter(|r| !r.name.starts_with("sha256:"))
            .map(|r| (r.name.clone(), r))
            .collect()
    }

    pub fn names(&self) -> BTreeSet<String> {
        self.records().into_keys().collect()
    }

    pub fn record(&self, name: &str) -> Option<ImageRecord> {
        self.wait_for(self.client.image(name))
    }

    /// Returns a record that must exist.
    pub fn expect_record(&self, name: &str) -> ImageRecord {
        self.record(name)
            .unwrap_or_else(|| panic!("no record {name}; there are {:?}", self.names()))
    }

    /// Returns the labels of a record that must exist.
    pub fn labels(&self, name: &str) -> BTreeMap<String, String> {
        self.expect_record(name).labels
    }

    /// Returns the files in the labels of a record: the bundles that vouch for it.
    pub fn source_files(&self, name: &str) -> Vec<String> {
        let labels = self.labels(name).into_iter();
        let of_bundles = labels.filter(|(key, _)| key.starts_with(BUNDLE));
        of_bundles.map(|(_, file)| file).collect()
    }

    /// Returns true if the record has airgapd's pin.
    pub fn is_pinned(&self, name: &str) -> bool {
        let labels = self.labels(name);
        labels.get(PINNED).is_some_and(|v| v == "pinned") && labels.get(OUR_PIN).is_some_and(|v| v == "true")
    }

    /// Removes a record, like `ctr images rm`.
    pub fn remove_record(&self, name: &str) {
        assert!(
            self.wait_for(self.client.delete_image(name, false)),
            "no record {name}"
        );
    }

    /// Creates a record like another tool. Its target must be in the store already.
    pub fn put_record(&self, name: &str, target: &Descriptor, labels: &[(&str, &str)]) {
        let labels = owned(labels);
        if let Some(fake) = self.as_fake() {
            let seed = fake_containerd::SeedImage {
                name: name.to_owned(),
                media_type: target.media_type().to_string(),
                digest: target.digest().to_string(),
                size: target.size(),
                labels,
            };
            return fake.put_image(self.namespace(), seed);
        }
        let record = NewImage {
            name: name.to_owned(),
            target: target.clone(),
            labels,
        };
        self.wait_for(self.client.create_image(&record));
    }

    /// Creates many records like another tool, several at a time.
    pub fn put_records(&self, records: impl IntoIterator<Item = NewImage>) {
        const AT_ONCE: usize = 16;
        if self.as_fake().is_some() {
            for NewImage { name, target, labels } in records {
                let labels: Vec<_> = labels.iter().map(|(key, value)| (&**key, &**value)).collect();
                self.put_record(&name, &target, &labels);
            }
            return;
        }
        let mut records = records.into_iter();
        self.runtime.block_on(async {
            let mut calls = tokio::task::JoinSet::new();
            loop {
                while calls.len() < AT_ONCE
                    && let Some(record) = records.next()
                {
                    let client = self.client.clone();
                    calls.spawn(async move { client.create_image(&record).await });
                }
                let Some(made) = calls.join_next().await else {
                    return;
                };
                made.expect("no call panics").expect("containerd answers");
            }
        });
    }

    /// Moves a record to another target like another tool, with an event. The labels stay.
    pub fn move_record(&self, name: &str, target: &Descriptor) {
        let update = ImageUpdate {
            target: Some(target.clone()),
            labels: BTreeMap::new(),
        };
        self.wait_for(self.client.update_image(name, &update))
            .expect("the record is there");
    }

    /// Sets labels of a record like another tool. `None` removes a label.
    pub fn set_labels(&self, name: &str, labels: &[(&str, Option<&str>)]) {
        if let Some(fake) = self.as_fake() {
            for (key, value) in labels {
                let value = value.unwrap_or_default();
                assert!(
                    fake.set_image_label(self.namespace(), name, key, value),
                    "no record {name}"
                );
            }
            return;
        }
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned)));
        let update = ImageUpdate {
            target: None,
            labels: labels.collect(),
        };
        self.wait_for(self.client.update_image(name, &update))
            .expect("the record is there");
    }

    /// Records the changes of image records from now on.
    pub fn watch(&self) -> Changes<'_> {
        let mut events = self.wait_for(self.client.image_events());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let task = self.runtime.spawn(async move {
            while let Some(event) = events.next().await {
                log.lock()
                    .expect("no holder panics")
                    .push((event.kind, event.name));
            }
        });
        Changes {
            target: self,
            seen,
            task,
        }
    }

    // Content.

    /// Returns the blobs of the namespace with their labels.
    pub fn blobs(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        let blobs = self.wait_for(self.client.blobs()).into_iter();
        blobs.map(|blob| (blob.digest.to_string(), blob.labels)).collect()
    }

    pub fn digests(&self) -> BTreeSet<String> {
        self.blobs().into_keys().collect()
    }

    /// Stores a blob like another tool. A root label keeps it until [`Target::let_go`].
    pub fn put_blob(&self, bytes: &[u8], labels: &[(&str, &str)]) -> Digest {
        let mut labels = labels.to_vec();
        labels.push((ROOT, "held by a test"));
        let digest: Digest = fake_containerd::sha256(bytes).parse().expect("a digest");
        if let Some(fake) = self.as_fake() {
            fake.put_blob(self.namespace(), bytes, &labels);
            return digest;
        }
        let lease = format!("test-{}", unique());
        let tomorrow = jiff::Timestamp::now() + jiff::Span::new().hours(24);
        self.wait_for(self.client.create_lease(&lease, tomorrow, &BTreeMap::new()));
        let spec = BlobSpec::new(digest.clone(), bytes.len() as u64).with_labels(owned(&labels));
        self.wait_for(
            self.client
                .write_blob(&lease, &spec, Arc::new(InMemory(bytes.to_vec()))),
        );
        self.wait_for(self.client.delete_lease(&lease, false));
        digest
    }

    /// Flips a bit of a blob's file on containerd's disk.
    pub fn flip_bit(&self, digest: &Digest) {
        self.flip_bit_at(digest, 1001);
    }

    /// Flips this bit of a blob's file. The bits of a short file are counted again from its start.
    pub fn flip_bit_at(&self, digest: &Digest, bit: usize) {
        if let Some(fake) = self.as_fake() {
            return fake.flip_bit(digest.as_ref(), bit);
        }
        let root = self.wait_for(self.client.content_root());
        let store = root.expect("containerd names its store");
        let path = store.join("blobs/sha256").join(digest.digest());
        let file = File::options().read(true).write(true).open(path);
        let file = file.expect("a file in the store");
        let length = file.metadata().expect("a file").len();
        let at = (bit / 8) as u64 % length;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("a byte");
        file.write_all_at(&[byte[0] ^ (1 << (bit % 8))], at)
            .expect("a byte");
    }

    /// Returns true if the bytes of a blob have its digest.
    pub fn is_right(&self, digest: &Digest) -> bool {
        let read = self.block_on(self.client.read_blob(digest, u64::MAX));
        match read {
            Ok(_) => true,
            Err(containerd::Error::Content { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// Removes the root label of [`Target::put_blob`].
    pub fn let_go(&self, digest: &Digest) {
        self.wait_for(self.client.set_blob_labels(digest, &owned(&[(ROOT, "")])));
    }

    /// Makes containerd collect its garbage and waits for the end.
    pub fn collect_garbage(&self) {
        if let Some(fake) = self.as_fake() {
            return self.runtime.block_on(fake.collect_garbage());
        }
        let lease = format!("collect-{}", unique());
        let tomorrow = jiff::Timestamp::now() + jiff::Span::new().hours(24);
        self.wait_for(self.client.create_lease(&lease, tomorrow, &BTreeMap::new()));
        self.wait_for(self.client.delete_lease(&lease, true));
    }

    /// Deletes all leases, as a careless program does.
    pub fn delete_leases(&self) {
        for lease in self.leases() {
            self.wait_for(self.client.delete_lease(&lease, true));
        }
    }

    pub fn leases(&self) -> BTreeSet<String> {
        self.wait_for(self.client.leases())
            .into_iter()
            .map(|lease| lease.id)
            .collect()
    }

    /// Returns the names of committed snapshots of the usual snapshotter.
    pub fn snapshots(&self) -> BTreeSet<String> {
        self.wait_for(self.client.snapshots("overlayfs"))
            .into_iter()
            .collect()
    }

    /// Returns the running and abandoned writes that containerd lists.
    pub fn ingests_in_full(&self) -> Vec<containerd::Ingest> {
        self.wait_for(self.client.ingests())
    }

    pub fn ingests(&self) -> BTreeSet<String> {
        self.ingests_in_full()
            .into_iter()
            .map(|ingest| ingest.reference)
            .collect()
    }

    // The views of kubelet and ctr.

    /// Returns CRI's information about an image, in the Kubernetes namespace.
    pub fn image_status(&self, reference: &str) -> Option<CriImage> {
        self.wait_for(self.client.cri().image_status(reference))
    }

    /// Makes CRI pull an image, like kubelet, and returns its id.
    pub fn pull(&self, reference: &str) -> String {
        self.wait_for(self.client.cri().pull_image(reference))
    }

    /// Runs a future on the runtime of this target's client.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Runs the `ctr` of a real containerd in this namespace and returns its output.
    pub fn ctr(&self, arguments: &[&str]) -> String {
        let parts = self.stage.parts().expect("only a real containerd has a ctr");
        let mut command = Command::new(&parts.ctr);
        command
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", self.namespace()])
            .args(arguments);
        let output = command.stdin(Stdio::null()).output().expect("ctr runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ctr {arguments:?}: {said}");
        String::from_utf8(output.stdout).expect("ctr prints text")
    }
}

/// Label by which CRI knows a pin.
pub const PINNED: &str = "io.cri-containerd.pinned";
/// Label that marks a pin as airgapd's.
pub const OUR_PIN: &str = "io.airgapd.pinned";
/// Label of an image that was imported by hand.
pub const BY_HAND: &str = "io.airgapd.import";
/// Prefix of the labels of bundles that vouch for an image.
pub const BUNDLE: &str = "io.airgapd.bundle.";
/// Label of records that CRI has taken over.
pub const MANAGED: &str = "io.cri-containerd.image";
/// Label that makes a blob a root of garbage collection.
const ROOT: &str = "containerd.io/gc.root";

fn owned(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
    labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

struct InMemory(Vec<u8>);

impl BlobSource for InMemory {
    fn open(&self, offset: u64) -> std::io::Result<Box<dyn std::io::Read + Send>> {
        let offset = usize::try_from(offset).expect("the offset fits into memory");
        Ok(Box::new(std::io::Cursor::new(self.0[offset..].to_vec())))
    }
}

/// The changes of image records since [`Target::watch`].
pub struct Changes<'t> {
    target: &'t Target,
    seen: Arc<Mutex<Vec<(ImageChange, String)>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Changes<'_> {
    /// Returns all changes up to now, without those of CRI's own records.
    pub fn so_far(&self) -> Vec<(ImageChange, String)> {
        // Events come in order. After the event of this record, all earlier ones have arrived.
        let fence = format!("fence.test/{}:1", unique());
        let blob = self.target.put_blob(fence.as_bytes(), &[]);
        let target = Descriptor::new("text/plain".into(), fence.len() as u64, blob.clone());
        self.target.wait_for(self.target.client.create_image(&NewImage {
            name: fence.clone(),
            target,
            labels: BTreeMap::new(),
        }));
        let seen = || self.seen.lock().expect("no holder panics").clone();
        wait_until("the event of our own record", || {
            seen().iter().any(|(_, name)| *name == fence)
        });
        self.target.remove_record(&fence);
        self.target.let_go(&blob);
        let ours = |name: &str| !name.starts_with("fence.test/") && !name.starts_with("sha256:");
        seen().into_iter().filter(|(_, name)| ours(name)).collect()
    }
}

impl Drop for Changes<'_> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The claims of scenarios are based on this: the harness sees the changes of other clients, and
/// does not report its own.
fn the_harness_sees_what_others_do(target: &Target) {
    let bytes = unique().into_bytes();
    let blob = target.put_blob(&bytes, &[]);
    let descriptor = Descriptor::new("text/plain".into(), bytes.len() as u64, blob.clone());
    let changes = target.watch();
    assert_eq!(changes.so_far(), []);
    target.put_record("registry.test/a:1", &descriptor, &[(PINNED, "pinned")]);
    target.set_labels("registry.test/a:1", &[(PINNED, None), (OUR_PIN, Some("true"))]);
    assert_eq!(target.labels("registry.test/a:1"), owned(&[(OUR_PIN, "true")]));
    target.let_go(&blob);
    target.collect_garbage();
    assert!(target.digests().contains(blob.as_ref()), "the record holds it");
    target.remove_record("registry.test/a:1");
    target.collect_garbage();
    assert!(target.digests().is_empty() && target.names().is_empty() && target.leases().is_empty());
    let mut kinds: Vec<_> = changes.so_far().into_iter().map(|(kind, _)| kind).collect();
    // The stand-in changes labels one by one.
    kinds.dedup();
    let expected = [ImageChange::Created, ImageChange::Updated, ImageChange::Deleted];
    // A direct change of the stand-in's state causes no event.
    assert_eq!(
        kinds,
        if target.as_fake().is_some() {
            &expected[1..]
        } else {
            &expected[..]
        }
    );
}

super::on_each_containerd!(the_harness_sees_what_others_do);
