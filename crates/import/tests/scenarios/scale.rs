//! Large numbers: an import's calls are counted, and their number grows only with its work.

use std::collections::BTreeMap;

use airgapd_import::{Outcome, labels};
use bundle::fixtures::{Image, Layout};
use containerd::{Client, ImageUpdate};
use fake_containerd::{Fake, FakeConfig, GcPolicy};
use harness::Stage;

use crate::support::{Stock, amd64, collecting, everywhere, import_all, noise, whole_records};

everywhere! {
    an_image_with_hundreds_of_names_among_records_with_huge_labels_is_imported
}

async fn an_image_with_hundreds_of_names_among_records_with_huge_labels_is_imported(stage: &Stage) {
    // Each record is a transaction on the disk of a real containerd, and a garbage collection on
    // the stand-in.
    let names = if stage.as_fake().is_some() { 100 } else { 700 };
    many_names(&stage.client().await, names, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_with_three_thousand_names_is_imported() {
    let stage = Stage::fake(collecting(GcPolicy::OnRequest));
    many_names(&stage.client().await, 3000, 1).await;
    stage.assert_no_violations();
}

/// containerd accepts labels of 4096 bytes (key and value), and sends 16 MiB in one message.
/// tonic's default limit is 4 MiB.
async fn many_names(client: &Client, names: usize, huge_labels: usize) {
    let image = (0..names).fold(amd64("r.test/a:first", &[&noise(100)]), |image: Image, name| {
        image.repo_tag(&format!("r.test/a:{name}"))
    });
    let stock = Stock::of(Layout::docker().image(image).build());
    import_all(client, &stock).await;
    let label = |number| (format!("theirs.{number}"), Some("x".repeat(4000)));
    let huge = ImageUpdate {
        target: None,
        labels: (0..huge_labels).map(label).collect(),
    };
    for record in client.images().await.unwrap() {
        client.update_image(&record.name, &huge).await.unwrap();
    }
    assert_eq!(
        whole_records(client, &stock).await.len(),
        names + 2,
        "the digest's name, too"
    );
    let lost = ImageUpdate {
        target: None,
        labels: BTreeMap::from([(labels::PINNED.to_owned(), None)]),
    };
    client.update_image("r.test/a:1", &lost).await.unwrap();
    let again = import_all(client, &stock).await;
    let changed = again
        .result
        .images
        .iter()
        .filter(|image| image.outcome.as_str() != "unchanged");
    assert_eq!(
        changed.map(|image| image.name.as_str()).collect::<Vec<_>>(),
        ["r.test/a:1"]
    );
    whole_records(client, &stock).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_calls_for_a_thousand_images_grow_with_blobs_and_records_alone() {
    let fake = Fake::start(FakeConfig::default()).await;
    let client = crate::support::connect(fake.socket(), "many", containerd::Options::default()).await;
    let shared = noise(1000);
    let stock = Stock::images((0..1000).map(|number| {
        amd64(
            &format!("r.test/a{number}:1"),
            &[&shared, number.to_string().as_bytes()],
        )
    }));
    fake.reset_log();
    let imported = import_all(&client, &stock).await;
    assert_eq!(imported.result.images.len(), 2000);
    let (images, blobs) = (1000, stock.needed().len() as u64);
    assert_eq!(blobs, 3 * images + 1);
    let mut calls = fake.counters();
    // The import lists leases to find its lease, to see it made, and to delete it. In between,
    // it checks that the lease has held everything: once for all images that wait, and once at the
    // end.
    let leases = calls.remove("Leases.List").unwrap_or_default();
    assert!((5..=4 + images).contains(&leases), "{leases} listings of leases");
    let wanted = [
        // The survey.
        ("Images.List", 1),
        ("Content.List", 1),
        // The folder of the blobs, and the space there.
        ("Introspection.Plugins", 1),
        ("Leases.Create", 1),
        ("Leases.Delete", 1),
        // Each blob once.
        ("Content.Write", blobs),
        ("Images.Create", 2 * images),
    ];
    assert_eq!(calls, BTreeMap::from(wanted));
    fake.reset_log();
    let again = import_all(&client, &stock).await;
    assert_eq!(again.result.outcome, Outcome::Unchanged);
    let reads = [("Images.List", 1), ("Content.List", 1), ("Leases.List", 1)];
    assert_eq!(fake.counters(), BTreeMap::from(reads));
    assert_eq!(fake.check_done(), Vec::<String>::new());
}
