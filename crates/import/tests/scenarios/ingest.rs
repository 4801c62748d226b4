//! A whole import and a second one: the order, the protection, and the blobs that are sent.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use airgapd_import::ingest::IngestedImage;
use airgapd_import::result::ImageOutcome;
use airgapd_import::{Observer, Outcome, labels};
use bundle::Compression;
use bundle::fixtures::{Image, Manifest};
use containerd::Client;
use fake_containerd::{Fake, FakeConfig, Fault};
use harness::{Stage, collect_garbage, eventually, unique};
use oci_spec::image::Digest;

use crate::support::{
    Stock, amd64, assert_converged, everywhere, fake, has, import_all, intent, noise, observed_import,
    try_import,
};

everywhere! {
    a_whole_import_leaves_whole_pinned_records_and_nothing_else
    what_is_recorded_outlives_a_collection_and_other_platforms_never_came
    a_second_import_writes_nothing
    a_parent_without_gc_labels_gets_them_although_everything_is_there
    large_blobs_of_another_namespace_are_adopted_without_sending
    a_corrupt_layer_fails_its_images_by_name_and_no_others
    a_blob_of_sha512_is_imported_from_2_3_on_and_refused_before_with_the_way_out
}

async fn a_whole_import_leaves_whole_pinned_records_and_nothing_else(stage: &Stage) {
    let (client, stock) = (stage.client().await, Stock::usual());
    let imported = import_all(&client, &stock).await;
    assert_eq!(imported.result.outcome, Outcome::Imported);
    assert_eq!(imported.result.images.len(), 4, "two names and two digest names");
    assert!(
        imported
            .result
            .images
            .iter()
            .all(|image| image.outcome == ImageOutcome::Created)
    );
    let needed = stock.needed();
    let sent = imported.result.blobs;
    assert_eq!(
        (sent.sent, sent.sent_bytes),
        (needed.len() as u64, needed.values().sum())
    );
    assert_eq!((sent.present, sent.not_needed), (0, 3));
    assert_converged(&client, &stock).await;
}

/// Statement 40.
async fn what_is_recorded_outlives_a_collection_and_other_platforms_never_came(stage: &Stage) {
    let (client, stock) = (stage.client().await, Stock::usual());
    import_all(&client, &stock).await;
    collect_garbage(&client).await;
    assert_converged(&client, &stock).await;
    let there: BTreeSet<String> = client
        .blobs()
        .await
        .unwrap()
        .iter()
        .map(|blob| blob.digest.to_string())
        .collect();
    assert_eq!(there, stock.needed().into_keys().collect());
    for foreign in &stock.archive.images[1].manifests[2].layers {
        assert!(!has(&client, foreign).await);
    }
}

/// Statement 38.
async fn a_second_import_writes_nothing(stage: &Stage) {
    let (client, stock) = (stage.client().await, Stock::usual());
    import_all(&client, &stock).await;
    if let Some(fake) = stage.as_fake() {
        fake.reset_log();
    }
    let mut events = client.image_events().await.unwrap();
    let again = import_all(&client, &stock).await;
    assert_eq!(again.result.outcome, Outcome::Unchanged);
    assert!(again.plan.is_done());
    assert_eq!((again.result.blobs.sent, again.result.blobs.sent_bytes), (0, 0));
    assert_eq!(again.result.blobs.present, stock.needed().len() as u64);
    assert_converged(&client, &stock).await;
    // Events come in order. If the first event belongs to a later record, the import caused none.
    let marker = format!("r.test/marker:{}", unique());
    crate::support::put_record(&client, &marker, &stock.select(), BTreeMap::new()).await;
    assert_eq!(events.next().await.expect("an event").name, marker);
    if let Some(fake) = stage.as_fake() {
        let written: Vec<_> = fake
            .mutations()
            .into_iter()
            .map(|change| change.subject)
            .collect();
        assert_eq!(written, [marker]);
        assert_eq!(fake.calls("Leases.Create"), 0);
        assert_eq!(fake.calls("Content.Write"), 0);
    }
}

/// Statement 42.
async fn a_parent_without_gc_labels_gets_them_although_everything_is_there(stage: &Stage) {
    let (client, stock) = (stage.client().await, Stock::usual());
    import_all(&client, &stock).await;
    let lease = format!("test-{}", unique());
    crate::support::hold_everything(&client, &lease, &stock).await;
    let index = &stock.archive.images[1].root;
    let labels = client.blob(index).await.unwrap().expect("the index").labels;
    let cleared = labels.into_keys().map(|key| (key, String::new())).collect();
    client.set_blob_labels(index, &cleared).await.unwrap();
    let again = import_all(&client, &stock).await;
    assert_eq!(again.result.outcome, Outcome::Unchanged, "no record was touched");
    client.delete_lease(&lease, true).await.unwrap();
    assert_converged(&client, &stock).await;
}

/// Pitfall P33.
async fn large_blobs_of_another_namespace_are_adopted_without_sending(stage: &Stage) {
    let stock = Stock::usual();
    let elsewhere = stage
        .in_namespace(&format!("elsewhere-{}", unique()))
        .client()
        .await;
    import_all(&elsewhere, &stock).await;
    let before = stage.as_fake().map(fake_containerd::Fake::received_bytes);
    let client = stage.client().await;
    let adopted = import_all(&client, &stock).await;
    assert_eq!(adopted.result.outcome, Outcome::Imported);
    // The import sends a small blob without asking whether another namespace has it.
    let needed = stock.needed();
    let small: u64 = needed.values().filter(|size| **size <= 64 << 10).sum();
    assert!(small < needed.values().sum(), "something is large");
    assert_eq!(adopted.result.blobs.sent_bytes, small);
    assert_eq!(
        stage.as_fake().map(fake_containerd::Fake::received_bytes),
        before.map(|before| before + small)
    );
    assert_converged(&client, &stock).await;
}

/// Notes the events of an import in order: blobs by digest, images by their first record.
#[derive(Default)]
struct Story(Mutex<Vec<String>>);

impl Observer for Story {
    fn blob(&self, digest: &Digest, _sent: Option<u64>) {
        self.0.lock().unwrap().push(digest.to_string());
    }
    fn image(&self, outcome: &IngestedImage) {
        let records = outcome.records.as_ref().expect("a sound image");
        self.0.lock().unwrap().push(records[0].0.name.clone());
    }
}

/// Each message takes a while here, and the layer of the large image has many messages. So both
/// images are under way at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_image_has_its_record_before_the_blobs_of_a_large_one_are_done() {
    let stage = fake();
    stage.the_fake().inject(Fault::Delay {
        rpc: "Content.Write",
        by: Duration::from_millis(20),
    });
    let client = stage.client().await;
    let large = noise(64 << 20);
    // The large image comes first in the bundle.
    let stock = Stock::images([
        amd64("r.test/large:1", &[&large]),
        amd64("r.test/pause:1", &[b"pause"]),
    ]);
    let story = Story::default();
    observed_import(&client, &stock, &story).await.unwrap();
    let large_layer = stock.archive.images[0].manifests[0].layers[0].to_string();
    let story = story.0.into_inner().unwrap();
    let position = |what: &str| story.iter().position(|told| told == what).expect("it was told");
    assert!(position("r.test/pause:1") < position(&large_layer), "{story:?}");
    stage.the_fake().clear_faults();
    assert_converged(&client, &stock).await;
    stage.assert_no_violations();
}

/// Statements 13 and 33.
async fn a_corrupt_layer_fails_its_images_by_name_and_no_others(stage: &Stage) {
    let client = stage.client().await;
    let bad = noise(70_000);
    let stock = Stock::images([
        amd64("r.test/bad:1", &[&bad]),
        amd64("r.test/good:1", &[&noise(100)]),
        amd64("r.test/also-bad:1", &[b"another layer", &bad]),
    ]);
    let layer = stock.archive.images[0].manifests[0].layers[0].clone();
    let mut archive = stock.archive.clone();
    archive.corrupt(&layer);
    let stock = Stock::of(archive);
    let imported = import_all(&client, &stock).await;
    assert_eq!(imported.result.outcome, Outcome::Partial);
    assert_eq!(imported.result.cause, Some(airgapd_import::Cause::Bundle));
    for image in &imported.result.images {
        let is_good = image.name.starts_with("r.test/good");
        assert_eq!(image.outcome.is_in_place(), is_good, "{image:?}");
        let names_it = image
            .reason
            .as_ref()
            .is_some_and(|reason| reason.contains(layer.as_ref()));
        assert_eq!(names_it, !is_good, "{image:?}");
    }
    let records = client.images().await.unwrap();
    assert!(
        records
            .iter()
            .all(|record| record.name.starts_with("r.test/good")),
        "{records:?}"
    );
    assert!(!has(&client, &layer).await);
    // Blobs that were under way for a failed image are removed with the lease, when containerd next
    // collects.
    eventually("nothing is left behind", async || {
        client.leases().await.unwrap().is_empty() && client.ingests().await.unwrap().is_empty()
    })
    .await;
    if let Some(fake) = stage.as_fake() {
        let size = 70_000_u64.next_multiple_of(512) + 512 + 1024;
        assert_eq!(
            fake.received().get(layer.as_ref()),
            Some(&size),
            "the bad blob is sent once"
        );
    }
}

/// Returns a bundle with two images: a usual one, and one with a layer named by its sha512.
fn with_sha512() -> (Stock, String) {
    let bytes = noise(100);
    let digest = basics::digest::sha512(&bytes);
    let layer = serde_json::json!([{
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
        "digest": digest.to_string(),
        "size": bytes.len(),
    }]);
    let manifest = Manifest::new("linux/amd64").layer(b"x").member("layers", layer);
    let good = amd64("r.test/good:1", &[&noise(100)]);
    let mut archive = Stock::images([Image::new("r.test/sha512:1").manifest(manifest), good]).archive;
    archive.add(&format!("blobs/sha512/{}", digest.digest()), bytes);
    (Stock::of(archive), digest.to_string())
}

async fn a_blob_of_sha512_is_imported_from_2_3_on_and_refused_before_with_the_way_out(stage: &Stage) {
    sha512_is_imported_or_refused(&stage.client().await).await;
}

async fn sha512_is_imported_or_refused(client: &Client) {
    let version = client.version().await.unwrap();
    let (stock, digest) = with_sha512();
    let imported = import_all(client, &stock).await;
    let blob = client.blob(&digest.parse().unwrap()).await.unwrap();
    let names = client.images().await.unwrap();
    let is_there = names.iter().any(|record| record.name == "r.test/sha512:1");
    assert!(names.iter().any(|record| record.name == "r.test/good:1"));
    if (version.major, version.minor) >= (2, 3) {
        assert_eq!(imported.result.outcome, Outcome::Imported);
        assert!(is_there && blob.is_some());
        return;
    }
    assert_eq!(imported.result.outcome, Outcome::Partial);
    let images = &imported.result.images;
    let refused = images.iter().find(|image| image.name.contains("sha512"));
    let reason = refused.and_then(|image| image.reason.clone()).unwrap_or_default();
    let told = [&digest, &version.text, "containerd 2.3 or later", "sha256"];
    assert!(told.iter().all(|words| reason.contains(*words)), "{reason}");
    assert!(!is_there && blob.is_none(), "nothing of it was sent");
}

#[tokio::test]
async fn a_blob_of_sha512_is_imported_or_refused_as_the_stand_in_has_its_version() {
    for version in ["1.7.24", "2.2.9", "2.3.7", "v2.4.0-k3s1"] {
        let fake = Fake::start(FakeConfig {
            version: version.to_owned(),
            ..FakeConfig::default()
        })
        .await;
        let client = Client::connect(fake.socket(), "sha512").await.unwrap();
        sha512_is_imported_or_refused(&client).await;
    }
}

#[tokio::test]
async fn children_come_before_parents_and_records_last_each_whole_in_one_call() {
    let stage = fake();
    let (client, stock) = (stage.client().await, Stock::usual());
    import_all(&client, &stock).await;
    let fake = stage.the_fake();
    let mutations = fake.mutations();
    let at = |subject: &str| {
        mutations
            .iter()
            .position(|change| change.subject == subject)
            .unwrap_or_else(|| panic!("{subject} was never written: {mutations:?}"))
    };
    for taken in stock.select().taken() {
        for blob in &taken.closure.blobs {
            for child in &blob.children {
                assert!(
                    at(child.digest.as_ref()) < at(blob.digest.as_ref()),
                    "{mutations:?}"
                );
            }
            for record in &taken.records {
                assert!(at(blob.digest.as_ref()) < at(&record.name), "{mutations:?}");
            }
        }
    }
    assert_eq!(mutations.first().map(|change| change.rpc), Some("Leases.Create"));
    assert_eq!(mutations.last().map(|change| change.rpc), Some("Leases.Delete"));
    assert_eq!(fake.calls("Images.Create"), 4);
    assert_eq!(fake.calls("Images.Update"), 0);
    assert_eq!(fake.calls("Content.Update"), 0, "labels come with the commit");
    for record in client.images().await.unwrap() {
        assert!(
            labels::vouch(&record.labels, &intent().source).is_empty(),
            "{record:?}"
        );
        assert_eq!(record.labels.len(), 3, "pin, whose pin, source: {record:?}");
    }
    assert_eq!(fake.check_done(), Vec::<String>::new());
}

/// Changes the bundle once its first blob has been sent.
struct Harm {
    path: PathBuf,
    harm: Harming,
}

impl Observer for Harm {
    fn blob(&self, _digest: &Digest, _sent: Option<u64>) {
        (self.harm)(&self.path);
    }
}

/// Returns the largest file: the bundle itself, or the largest blob of a layout folder.
fn largest(path: &Path) -> PathBuf {
    let blobs = path.join("blobs/sha256");
    let Ok(blobs) = fs::read_dir(blobs) else {
        return path.to_owned();
    };
    let blobs = blobs.map(|entry| entry.unwrap().path());
    blobs
        .max_by_key(|blob| fs::metadata(blob).unwrap().len())
        .unwrap()
}

type Harming = fn(&Path);

/// The changes that other programs may make to a file during an import.
const HARMS: [(&str, Harming); 5] = [
    ("extended", |path| {
        let file = File::options().append(true).open(largest(path)).unwrap();
        (&file).write_all(b"more").unwrap();
    }),
    ("cut", |path| {
        let file = File::options().write(true).open(largest(path)).unwrap();
        file.set_len(700).unwrap();
    }),
    ("emptied", |path| {
        File::create(largest(path)).unwrap();
    }),
    ("overwritten, with the times put back", |path| {
        let path = largest(path);
        let file = File::options().write(true).open(&path).unwrap();
        let before = file.metadata().unwrap();
        let size = usize::try_from(before.len()).unwrap();
        (&file).write_all(&vec![0x5a; size]).unwrap();
        file.set_modified(before.modified().unwrap()).unwrap();
    }),
    ("overwritten and put right again", |path| {
        let path = largest(path);
        let right = fs::read(&path).unwrap();
        fs::write(&path, vec![0; right.len()]).unwrap();
        fs::write(&path, right).unwrap();
    }),
];

#[tokio::test]
async fn a_bundle_that_changes_while_it_is_read_is_recorded_no_further_and_tried_again() {
    for form in ["plain", "gzip", "zstd", "folder"] {
        for (what, harm) in HARMS {
            let stage = fake();
            let (client, usual) = (stage.client().await, Stock::usual());
            let stock = match form {
                "plain" => usual,
                "gzip" => Stock::packed(usual.archive, Compression::Gzip),
                "zstd" => Stock::packed(usual.archive, Compression::Zstd),
                _ => Stock::extracted(usual.archive),
            };
            let path = stock.bundle.path().to_owned();
            let imported = match form {
                // The order of the blobs is not fixed, and each is a separate file.
                "folder" => {
                    harm(&path);
                    try_import(&client, &stock).await.unwrap()
                }
                _ => observed_import(&client, &stock, &Harm { path, harm })
                    .await
                    .unwrap(),
            };
            let case = format!("{form}, {what}: {imported:?}");
            assert!(
                matches!(imported.stopped, Some(airgapd_import::Error::Changed { .. })),
                "{case}"
            );
            assert!(imported.result.retry, "{case}");
            assert_eq!(imported.result.cause, Some(airgapd_import::Cause::File), "{case}");
            // In a folder, an image without a changed blob may have its record.
            let names = client.images().await.unwrap().into_iter().map(|image| image.name);
            let wrong = names.filter(|name| form != "folder" || name.contains("large"));
            assert_eq!(wrong.collect::<Vec<_>>(), Vec::<String>::new(), "{case}");
            stage.assert_no_violations();
        }
    }
}

#[tokio::test]
async fn a_bundle_for_another_node_touches_nothing() {
    let stage = fake();
    let client = stage.client().await;
    let stock = Stock::images([Image::new("r.test/a:1").platform("linux/s390x").layer(b"x")]);
    let imported = import_all(&client, &stock).await;
    assert_eq!(imported.result.outcome, Outcome::Skipped);
    assert_eq!(stage.the_fake().mutations(), []);
}
