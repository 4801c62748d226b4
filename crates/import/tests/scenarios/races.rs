//! Changes that other clients make to containerd during an import: between its survey and its
//! writes, and at the same time.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use airgapd_import::ingest::{Ingested, RecordOutcome};
use airgapd_import::plan::OnConflict;
use airgapd_import::{Observer, Outcome, bundle_id, labels};
use containerd::{BlobSource, BlobSpec, Client, ImageRecord, ImageUpdate, Options};
use fake_containerd::Fault;
use harness::{Stage, collect_garbage, eventually, unique};
use oci_spec::image::Digest;

use crate::proxy::Proxy;
use crate::support::{
    BUNDLE, Planned, Stock, amd64, assert_converged, assert_nothing_left, connect, everywhere, fake, has,
    hold_everything, import_all, intent, intent_with, noise, policy_for, put_record, try_import, wipe,
};

everywhere! {
    a_blob_that_is_collected_between_the_look_and_the_hold_is_sent_after_all
    a_lease_that_is_deleted_during_the_import_is_made_again
    a_lease_past_half_its_life_is_replaced_with_all_it_holds
    what_an_interrupted_replacement_left_on_the_older_lease_is_kept
    a_record_that_somebody_creates_meanwhile_follows_the_rule
    a_record_that_somebody_moves_meanwhile_is_moved_back
    a_pin_that_somebody_sets_meanwhile_is_not_claimed
    an_image_whose_names_all_stay_with_others_is_not_sent
    two_imports_of_the_same_bundle_send_each_blob_once
    a_second_import_waits_for_a_blob_as_long_as_the_first_makes_progress
}

fn outcomes(ingested: &Ingested) -> Vec<(String, RecordOutcome)> {
    let images = ingested.images.iter();
    images
        .flat_map(|image| image.records.as_ref().expect("a sound image"))
        .map(|(step, outcome)| (step.name.clone(), outcome.clone()))
        .collect()
}

fn labels_of(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

async fn record(client: &Client, name: &str) -> ImageRecord {
    let record = client.image(name).await.expect("containerd answers");
    record.unwrap_or_else(|| panic!("there is no record {name}"))
}

async fn a_blob_that_is_collected_between_the_look_and_the_hold_is_sent_after_all(stage: &Stage) {
    let (client, stock) = (stage.client().await, Stock::usual());
    import_all(&client, &stock).await;
    let lease = format!("test-{}", unique());
    hold_everything(&client, &lease, &stock).await;
    for record in client.images().await.unwrap() {
        client.delete_image(&record.name, false).await.unwrap();
    }
    let planned = Planned::new(&client, &stock, intent()).await;
    assert_eq!(
        planned.plan.bytes_to_send(),
        0,
        "all blobs were there when it looked"
    );
    client.delete_lease(&lease, true).await.unwrap();
    collect_garbage(&client).await;
    assert_eq!(client.blobs().await.unwrap(), []);
    let ingested = planned.carry_out().await;
    assert!(ingested.stopped.is_none(), "{:?}", ingested.stopped);
    assert_eq!(ingested.sent.len(), stock.needed().len());
    assert_converged(&client, &stock).await;
}

/// Does something once, when the first blob is done.
struct AtFirstBlob<F>(Mutex<Option<F>>);

impl<F: Future<Output = ()> + Send> AtFirstBlob<F> {
    fn new(deed: F) -> AtFirstBlob<F> {
        AtFirstBlob(Mutex::new(Some(deed)))
    }
}

impl<F: Future<Output = ()> + Send> Observer for AtFirstBlob<F> {
    fn blob(&self, _digest: &Digest, _sent: Option<u64>) {
        let deed = self.0.lock().unwrap().take();
        if let Some(deed) = deed {
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(deed));
        }
    }
}

/// Statement 44.
async fn a_lease_that_is_deleted_during_the_import_is_made_again(stage: &Stage) {
    let (client, stock) = (stage.client().await, Stock::usual());
    let planned = Planned::new(&client, &stock, intent()).await;
    let vandal = client.clone();
    let observer = AtFirstBlob::new(async move {
        for lease in vandal.leases().await.unwrap() {
            vandal.delete_lease(&lease.id, true).await.unwrap();
        }
    });
    let ingested = planned.carry_out_watched_by(&observer).await;
    assert!(ingested.stopped.is_none(), "{:?}", ingested.stopped);
    assert_converged(&client, &stock).await;
}

async fn lease_ending_in(client: &Client, id: &str, hours: i64) {
    let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours);
    client
        .create_lease(id, expires, &BTreeMap::new())
        .await
        .expect("a lease");
}

/// Sends the blobs of the bundle's largest image under a lease, like an interrupted import.
async fn half_an_import(client: &Client, lease: &str, stock: &Stock) -> u64 {
    struct FromBundle(bundle::Blob);
    impl BlobSource for FromBundle {
        fn open(&self, offset: u64) -> std::io::Result<Box<dyn std::io::Read + Send>> {
            self.0.open(offset)
        }
    }
    let layers = &stock.archive.images[1].manifests[0].layers;
    let mut sent = 0;
    for digest in layers {
        let blob = stock.bundle.blob(digest).expect("it is in the bundle");
        let spec = BlobSpec::new(digest.clone(), blob.size());
        sent += blob.size();
        let source = std::sync::Arc::new(FromBundle(blob));
        client
            .write_blob(lease, &spec, source)
            .await
            .expect("it is written");
    }
    sent
}

async fn a_lease_past_half_its_life_is_replaced_with_all_it_holds(stage: &Stage) {
    let (client, stock) = (stage.client().await, Stock::usual());
    let id = format!("airgapd-{}", bundle_id(BUNDLE));
    lease_ending_in(&client, &id, 11).await;
    let there = half_an_import(&client, &id, &stock).await;
    let imported = import_all(&client, &stock).await;
    let all: u64 = stock.needed().values().sum();
    assert_eq!(
        imported.result.blobs.sent_bytes,
        all - there,
        "nothing is sent again"
    );
    assert_converged(&client, &stock).await;
    if let Some(fake) = stage.as_fake() {
        let leases = |rpc: &str| -> Vec<String> {
            let of = fake.mutations().into_iter().filter(|change| change.rpc == rpc);
            of.map(|change| change.subject).collect()
        };
        let made = leases("Leases.Create");
        assert_eq!(made.len(), 2, "{made:?}");
        assert_eq!(
            leases("Leases.Delete"),
            made,
            "the old one goes before the new one"
        );
    }
}

async fn what_an_interrupted_replacement_left_on_the_older_lease_is_kept(stage: &Stage) {
    let (client, stock) = (stage.client().await, Stock::usual());
    let id = format!("airgapd-{}", bundle_id(BUNDLE));
    lease_ending_in(&client, &id, 11).await;
    let there = half_an_import(&client, &id, &stock).await;
    lease_ending_in(&client, &format!("{id}-1"), 24).await;
    let imported = import_all(&client, &stock).await;
    let all: u64 = stock.needed().values().sum();
    assert_eq!(
        imported.result.blobs.sent_bytes,
        all - there,
        "nothing is sent again"
    );
    assert_converged(&client, &stock).await;
}

async fn a_record_that_somebody_creates_meanwhile_follows_the_rule(stage: &Stage) {
    let foreign = Stock::images([amd64("r.test/other:1", &[&noise(50)])]);
    let rows = [
        (OnConflict::Replace, RecordOutcome::Retargeted),
        (OnConflict::Keep, RecordOutcome::Left { refused: false }),
        (OnConflict::Refuse, RecordOutcome::Left { refused: true }),
    ];
    for (rule, wanted) in rows {
        let client = stage
            .in_namespace(&format!("{}-{rule:?}", stage.namespace()))
            .client()
            .await;
        let stock = Stock::images([amd64("r.test/a:1", &[&noise(100)])]);
        import_all(&client, &foreign).await;
        let planned = Planned::new(&client, &stock, intent_with(rule)).await;
        let theirs = labels_of(&[("theirs", "x"), ("io.cri-containerd.image", "managed")]);
        put_record(&client, "r.test/a:1", &foreign.select(), theirs).await;
        let ingested = planned.carry_out().await;
        assert!(ingested.stopped.is_none());
        assert_eq!(
            outcomes(&ingested)[0],
            ("r.test/a:1".to_owned(), wanted.clone()),
            "{rule:?}"
        );
        let record = record(&client, "r.test/a:1").await;
        let moved = record.target.digest() == &stock.archive.images[0].root;
        assert_eq!(moved, wanted == RecordOutcome::Retargeted, "{rule:?}");
        assert_eq!(labels::is_vouched_for(&record.labels), moved, "{rule:?}");
        assert_eq!(
            record.labels.get("theirs").map(String::as_str),
            Some("x"),
            "{rule:?}"
        );
        // CRI must look at a moved record again, and should have no work with any other record.
        assert_eq!(
            record.labels.contains_key("io.cri-containerd.image"),
            !moved,
            "{rule:?}"
        );
        assert_nothing_left(&client).await;
    }
}

async fn a_record_that_somebody_moves_meanwhile_is_moved_back(stage: &Stage) {
    let client = stage.client().await;
    let foreign = Stock::images([amd64("r.test/other:1", &[&noise(50)])]);
    let stock = Stock::images([amd64("r.test/a:1", &[&noise(100)])]);
    import_all(&client, &foreign).await;
    import_all(&client, &stock).await;
    // airgapd's pin is lost, so the record gets new labels and no other change.
    let unpinned = ImageUpdate {
        target: None,
        labels: BTreeMap::from([(labels::PINNED.to_owned(), None)]),
    };
    client.update_image("r.test/a:1", &unpinned).await.unwrap();
    let planned = Planned::new(&client, &stock, intent()).await;
    let selection = foreign.select();
    let elsewhere = &selection.taken().next().unwrap().records[0].target;
    let moved = ImageUpdate {
        target: Some(oci_spec::image::Descriptor::clone(elsewhere)),
        labels: BTreeMap::new(),
    };
    client.update_image("r.test/a:1", &moved).await.unwrap();
    let ingested = planned.carry_out().await;
    assert_eq!(outcomes(&ingested)[0].1, RecordOutcome::Retargeted);
    assert_converged(&client, &stock).await;
}

async fn a_pin_that_somebody_sets_meanwhile_is_not_claimed(stage: &Stage) {
    let client = stage.client().await;
    let foreign = Stock::images([amd64("r.test/other:1", &[&noise(50)])]);
    let stock = Stock::images([amd64("r.test/a:1", &[&noise(100)])]);
    import_all(&client, &foreign).await;
    put_record(&client, "r.test/a:1", &foreign.select(), BTreeMap::new()).await;
    let planned = Planned::new(&client, &stock, intent()).await;
    let pinned = ImageUpdate {
        target: None,
        labels: BTreeMap::from([(labels::PINNED.to_owned(), Some(labels::PINNED_VALUE.to_owned()))]),
    };
    client.update_image("r.test/a:1", &pinned).await.unwrap();
    planned.carry_out().await;
    let record = record(&client, "r.test/a:1").await;
    assert_eq!(record.target.digest(), &stock.archive.images[0].root);
    assert!(labels::is_vouched_for(&record.labels));
    assert!(!record.labels.contains_key(labels::OUR_PIN), "{record:?}");
}

async fn an_image_whose_names_all_stay_with_others_is_not_sent(stage: &Stage) {
    let client = stage.client().await;
    let foreign = Stock::images([amd64("r.test/other:1", &[&noise(50)])]);
    let stock = Stock::images([amd64("r.test/a:1", &[&noise(100)])]);
    import_all(&client, &foreign).await;
    for name in stock.select().taken().flat_map(|taken| &taken.records) {
        put_record(&client, &name.name, &foreign.select(), BTreeMap::new()).await;
    }
    let planned = Planned::new(&client, &stock, intent_with(OnConflict::Refuse)).await;
    assert!(planned.plan.is_done());
    let ingested = planned.carry_out().await;
    assert_eq!((ingested.sent.len(), ingested.present.len()), (0, 0));
    assert!(!has(&client, &stock.archive.images[0].root).await);
}

async fn two_imports_of_the_same_bundle_send_each_blob_once(stage: &Stage) {
    for round in 0..5 {
        let stock = Stock::usual();
        let namespace = format!("{}-{round}", stage.namespace());
        let (one, two) = (
            stage.in_namespace(&namespace).client().await,
            stage.in_namespace(&namespace).client().await,
        );
        let (one_done, two_done) = tokio::join!(try_import(&one, &stock), try_import(&two, &stock));
        let reports = [one_done.unwrap(), two_done.unwrap()];
        for imported in &reports {
            assert!(imported.stopped.is_none(), "{:?}", imported.stopped);
            assert_ne!(imported.result.outcome, Outcome::Failed, "{:?}", imported.result);
        }
        let sent: u64 = reports
            .iter()
            .map(|imported| imported.result.blobs.sent_bytes)
            .sum();
        assert_eq!(sent, stock.needed().values().sum::<u64>(), "round {round}");
        assert_converged(&one, &stock).await;
    }
}

async fn a_second_import_waits_for_a_blob_as_long_as_the_first_makes_progress(stage: &Stage) {
    let stock = Stock::images([amd64("r.test/a:1", &[&noise(16 << 20)])]);
    // The first import goes through a narrow pipe. The second waits for a part of that time.
    let pipe = Proxy::narrow(stage.socket(), Duration::from_millis(4));
    let slow = connect(pipe.socket(), stage.namespace(), Options::default()).await;
    let hasty = Options {
        lock_wait: Duration::from_secs(1),
        ..Options::default()
    };
    let hasty = connect(stage.socket(), stage.namespace(), hasty).await;
    let large = containerd::ingest_ref(&stock.archive.images[0].manifests[0].layers[0]);
    let second = async {
        // The second import starts while the first is writing.
        eventually("the first import is writing", async || {
            let ingests = hasty.ingests().await.unwrap();
            ingests.iter().any(|ingest| ingest.reference == large)
        })
        .await;
        try_import(&hasty, &stock).await
    };
    let (first, second) = tokio::join!(try_import(&slow, &stock), second);
    let (first, second) = (first.unwrap(), second.unwrap());
    assert!(second.stopped.is_none(), "{:?}", second.stopped);
    assert!(first.stopped.is_none(), "{:?}", first.stopped);
    assert!(
        first.result.blobs.sent_bytes > 16 << 20,
        "the second one has waited"
    );
    let sent = first.result.blobs.sent_bytes + second.result.blobs.sent_bytes;
    assert_eq!(sent, stock.needed().values().sum::<u64>());
    assert_converged(&hasty, &stock).await;
}

/// The lease vanishes with all its content, once after each message with content.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_vanishes_under_any_write_is_made_again() {
    let usual = Stock::usual();
    let alone = Stock::images([amd64(
        "r.test/alone:1",
        &[&noise(100), &noise(600_000), &noise(200)],
    )]);
    // While one image is recorded, the writes of another may lose the lease. Then the record exists
    // for a moment before its blobs exist again.
    for (stock, is_strict, at_least) in [(&alone, true, 6), (&usual, false, 9)] {
        let stage = fake();
        let client = stage.client().await;
        let mut vanished = 0;
        for writes in 1.. {
            wipe(&stage).await;
            stage.the_fake().inject(Fault::LeaseVanishes { writes });
            let imported = import_all(&client, stock).await;
            assert_eq!(imported.result.outcome, Outcome::Imported);
            assert_converged(&client, stock).await;
            if is_strict {
                assert_eq!(stage.the_fake().check_done(), Vec::<String>::new());
            }
            if stage.the_fake().calls("Leases.Create") < 2 {
                break;
            }
            vanished += 1;
        }
        assert!(vanished >= at_least, "only {vanished} writes lost their lease");
    }
}

/// The last moment for a loss comes after the last blob. No later write needs the lease, but the
/// blobs of the lease are gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_record_is_written_after_its_lease_has_vanished() {
    let stock = Stock::images([amd64("r.test/alone:1", &[&noise(100), &noise(600_000)])]);
    let blobs = stock.needed().len() as u64;
    let stage = fake();
    let client = stage.client().await;
    for commits in 1..=blobs {
        wipe(&stage).await;
        stage.the_fake().inject(Fault::LeaseVanishesAtCommit { commits });
        let imported = import_all(&client, &stock).await;
        assert_eq!(imported.result.outcome, Outcome::Imported);
        assert_converged(&client, &stock).await;
        assert_eq!(
            stage.the_fake().check_done(),
            Vec::<String>::new(),
            "commit {commits}"
        );
        assert!(stage.the_fake().calls("Leases.Create") >= 2, "commit {commits}");
    }
}

/// A full disk stays full until the half-written blobs are removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_nothing_half_written_stays() {
    let stage = fake();
    let client = stage.client().await;
    let layers: Vec<Vec<u8>> = (0..4).map(|_| noise(1 << 20)).collect();
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let stock = Stock::images([amd64("r.test/a:1", &layers)]);
    stage.the_fake().inject(Fault::DiskFull { free: 2 << 20 });
    let imported = try_import(&client, &stock).await.unwrap();
    assert!(matches!(&imported.stopped, Some(error) if error.is_transient()));
    assert_eq!(client.ingests().await.unwrap(), []);
    assert_eq!(client.images().await.unwrap(), []);
    stage.the_fake().clear_faults();
    import_all(&client, &stock).await;
    assert_converged(&client, &stock).await;
}

/// Pitfall P8: two importers want different platforms of the same index.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gc_labels_of_an_index_that_somebody_sends_meanwhile_stay() {
    let stage = fake();
    let (client, stock) = (stage.client().await, Stock::usual());
    let planned = Planned::of(&client, &stock, &policy_for("linux/arm64"), intent()).await;
    import_all(&client, &stock).await;
    let ingested = planned.carry_out().await;
    assert!(ingested.stopped.is_none());
    collect_garbage(&client).await;
    assert_converged(&client, &stock).await;
    let theirs = &stock.archive.images[1].manifests[2];
    assert!(has(&client, &theirs.digest).await && has(&client, &theirs.layers[0]).await);
}
