//! Imports that `rateLimit` slows down.

use std::sync::Arc;
use std::time::{Duration, Instant};

use airgapd_import::{Imported, Intent, Outcome, Pace, Silent, bundle_id, import};
use bundle::Compression;
use containerd::{Client, Options};
use harness::{Stage, eventually};

use crate::support::{
    BUNDLE, Stock, amd64, assert_converged, connect, everywhere, import_all, intent, noise, policy,
};

everywhere! {
    a_rate_limit_holds_for_all_blobs_together
    a_rate_limit_holds_for_what_comes_out_of_a_compressed_bundle
    bytes_that_wait_for_their_turn_longer_than_containerd_may_stall_are_no_stall
    an_import_that_is_held_back_ends_as_soon_as_nobody_wants_it
}

const RATE: u64 = 2 << 20;

/// Returns two images with twice as many bytes as [`RATE`] lets through in a second.
fn stock() -> Stock {
    let images = ["r.test/a:1", "r.test/b:1"];
    Stock::images(images.map(|name| amd64(name, &[&noise(2 << 20)])))
}

async fn import_at(client: &Client, stock: &Stock, pace: &Arc<Pace>) -> Imported {
    let intent = Intent {
        pace: Arc::clone(pace),
        ..intent()
    };
    let lease = bundle_id(BUNDLE);
    let imported = import(client, &stock.bundle, &policy(), &intent, &lease, false, &Silent).await;
    imported.expect("containerd answers")
}

/// Imports at this pace and checks the time. The first tenth of a second's bytes goes through at
/// once.
async fn takes_two_seconds(stage: &Stage, stock: &Stock, pace: &Arc<Pace>) {
    let client = stage.client().await;
    let begun = Instant::now();
    let imported = import_at(&client, stock, pace).await;
    let taken = begun.elapsed();
    assert_eq!(imported.result.outcome, Outcome::Imported);
    assert!(taken >= Duration::from_millis(1850), "{taken:?}");
    assert_converged(&client, stock).await;
}

async fn a_rate_limit_holds_for_all_blobs_together(stage: &Stage) {
    takes_two_seconds(stage, &stock(), &Arc::new(Pace::new(Some(RATE)))).await;
}

async fn a_rate_limit_holds_for_what_comes_out_of_a_compressed_bundle(stage: &Stage) {
    let packed = Stock::packed(stock().archive, Compression::Zstd);
    takes_two_seconds(stage, &packed, &Arc::new(Pace::new(Some(RATE)))).await;
}

/// Each message waits for two seconds, and the client's stall limit is one second.
async fn bytes_that_wait_for_their_turn_longer_than_containerd_may_stall_are_no_stall(stage: &Stage) {
    let options = Options {
        stall: Duration::from_secs(1),
        ..Options::default()
    };
    let client = connect(stage.socket(), stage.namespace(), options).await;
    let stock = Stock::images([amd64("r.test/a:1", &[&noise(1 << 20)])]);
    let pace = Arc::new(Pace::new(Some(256 << 10)));
    let imported = import_at(&client, &stock, &pace).await;
    assert_eq!(imported.result.outcome, Outcome::Imported);
    assert_converged(&client, &stock).await;
}

async fn an_import_that_is_held_back_ends_as_soon_as_nobody_wants_it(stage: &Stage) {
    let (client, stock) = (stage.client().await, stock());
    // At this rate, the import would take weeks.
    let pace = Arc::new(Pace::new(Some(1)));
    let mut import = Box::pin(import_at(&client, &stock, &pace));
    let is_under_way = eventually("blobs are under way", async || {
        !client.ingests().await.expect("containerd answers").is_empty()
    });
    tokio::select! {
        _ = &mut import => panic!("nothing held it back"),
        () = is_under_way => {}
    }
    drop(import);
    eventually("no thread waits", async || {
        tokio::task::yield_now().await;
        Arc::strong_count(&pace) == 1
    })
    .await;
    let imported = import_all(&client, &stock).await;
    assert_eq!(imported.result.outcome, Outcome::Imported);
    assert_converged(&client, &stock).await;
}
