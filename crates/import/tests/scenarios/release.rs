//! Releasing: airgapd's labels and pin are removed, labels of other programs and the records stay.

use std::collections::BTreeMap;

use airgapd_import::plan::OnConflict;
use airgapd_import::release::{Release, release};
use airgapd_import::{Intent, Silent, Source, bundle_id, import, labels};
use containerd::{Client, ImageRecord, ImageUpdate};
use harness::{Stage, collect_garbage};

use crate::support::{BUNDLE, Stock, amd64, assert_nothing_left, everywhere, has, import_all, noise, policy};

everywhere! {
    an_image_that_one_bundle_vouches_for_loses_label_and_pin_and_stays
    an_image_that_two_bundles_vouch_for_stays_pinned_until_the_second_goes
    a_pin_of_somebody_else_survives_import_and_release
    a_dry_run_says_the_same_and_writes_nothing
    everything_goes_by_hand_imports_and_leases_included
}

async fn records(client: &Client) -> BTreeMap<String, ImageRecord> {
    let records = client.images().await.expect("containerd answers");
    records
        .into_iter()
        .map(|record| (record.name.clone(), record))
        .collect()
}

async fn import_as(client: &Client, stock: &Stock, source: Source) {
    let intent = Intent::new(source, OnConflict::Replace);
    let (policy, lease) = (policy(), bundle_id(BUNDLE));
    let imported = import(client, &stock.bundle, &policy, &intent, &lease, false, &Silent).await;
    assert!(imported.expect("containerd answers").stopped.is_none());
}

fn bundle(name: &str) -> Release {
    Release::Names(vec![name.to_owned()])
}

async fn an_image_that_one_bundle_vouches_for_loses_label_and_pin_and_stays(stage: &Stage) {
    let (client, stock) = (stage.client().await, Stock::usual());
    import_all(&client, &stock).await;
    let released = release(&client, &bundle(BUNDLE), false).await.unwrap();
    assert_eq!(released.len(), 4);
    assert!(
        released
            .iter()
            .all(|record| record.unpinned && record.labels.len() == 3)
    );
    let records = records(&client).await;
    assert_eq!(records.len(), 4);
    assert!(
        records.values().all(|record| record.labels.is_empty()),
        "{records:?}"
    );
    collect_garbage(&client).await;
    assert!(has(&client, &stock.archive.images[1].manifests[0].layers[1]).await);
    assert_eq!(
        release(&client, &bundle(BUNDLE), false).await.unwrap(),
        [],
        "there is no more of it"
    );
}

async fn an_image_that_two_bundles_vouch_for_stays_pinned_until_the_second_goes(stage: &Stage) {
    let (client, stock) = (
        stage.client().await,
        Stock::images([amd64("r.test/a:1", &[&noise(50)])]),
    );
    import_as(&client, &stock, Source::Bundle("one.tar".into())).await;
    import_as(&client, &stock, Source::Bundle("two.tar".into())).await;
    let first = release(&client, &bundle("one.tar"), false).await.unwrap();
    assert!(first.iter().all(|record| !record.unpinned), "{first:?}");
    for record in records(&client).await.values() {
        assert!(record.labels.contains_key(labels::PINNED), "{record:?}");
        assert!(labels::vouch(&record.labels, &Source::Bundle("two.tar".into())).is_empty());
    }
    let second = release(&client, &bundle("two.tar"), false).await.unwrap();
    assert!(second.iter().all(|record| record.unpinned), "{second:?}");
    assert!(
        records(&client)
            .await
            .values()
            .all(|record| record.labels.is_empty())
    );
}

async fn a_pin_of_somebody_else_survives_import_and_release(stage: &Stage) {
    let (client, stock) = (
        stage.client().await,
        Stock::images([amd64("r.test/a:1", &[&noise(50)])]),
    );
    let theirs = BTreeMap::from([
        (labels::PINNED.to_owned(), labels::PINNED_VALUE.to_owned()),
        ("io.k0sproject.ocibundle-paths".to_owned(), "{}".to_owned()),
    ]);
    import_all(&client, &stock).await;
    client.delete_image("r.test/a:1", false).await.unwrap();
    crate::support::put_record(&client, "r.test/a:1", &stock.select(), theirs.clone()).await;
    import_all(&client, &stock).await;
    let record = records(&client).await["r.test/a:1"].clone();
    assert!(labels::is_vouched_for(&record.labels) && !record.labels.contains_key(labels::OUR_PIN));
    let released = release(&client, &Release::All, false).await.unwrap();
    let of_it = released
        .iter()
        .find(|released| released.name == "r.test/a:1")
        .unwrap();
    assert!(!of_it.unpinned);
    assert_eq!(records(&client).await["r.test/a:1"].labels, theirs);
}

async fn a_dry_run_says_the_same_and_writes_nothing(stage: &Stage) {
    let (client, stock) = (stage.client().await, Stock::usual());
    import_all(&client, &stock).await;
    let before = records(&client).await;
    let dry = release(&client, &Release::All, true).await.unwrap();
    assert_eq!(records(&client).await, before);
    assert_eq!(release(&client, &Release::All, false).await.unwrap(), dry);
}

async fn everything_goes_by_hand_imports_and_leases_included(stage: &Stage) {
    let client = stage.client().await;
    let stock = Stock::images([amd64("r.test/a:1", &[&noise(50)])]);
    import_as(&client, &stock, Source::Hand("stick.tar".into())).await;
    // The pin is lost. The other labels of airgapd are removed all the same.
    let unpinned = ImageUpdate {
        target: None,
        labels: BTreeMap::from([(labels::PINNED.to_owned(), None)]),
    };
    client.update_image("r.test/a:1", &unpinned).await.unwrap();
    let tomorrow = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24);
    let mine = format!("airgapd-{}", bundle_id(BUNDLE));
    client
        .create_lease(&mine, tomorrow, &BTreeMap::new())
        .await
        .unwrap();
    let foreign = "somebody-elses";
    client
        .create_lease(foreign, tomorrow, &BTreeMap::new())
        .await
        .unwrap();
    release(&client, &Release::All, false).await.unwrap();
    assert!(
        records(&client)
            .await
            .values()
            .all(|record| record.labels.is_empty())
    );
    let left: Vec<String> = client
        .leases()
        .await
        .unwrap()
        .into_iter()
        .map(|lease| lease.id)
        .collect();
    assert_eq!(left, [foreign]);
    client.delete_lease(foreign, true).await.unwrap();
    assert_nothing_left(&client).await;
}
