//! Every call of an import fails once, in every way. After each failure, every recorded image is
//! whole, and the next run finishes the job.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll};

use airgapd_import::{Imported, Outcome};
use bundle::Compression;
use containerd::{Client, Options};
use fake_containerd::{Code, Fault};
use harness::Stage;

use crate::proxy::Proxy;
use crate::support::{
    Stock, amd64, assert_converged, connect, everywhere, fake, import_all, noise, try_import, whole_records,
    wipe,
};

everywhere! {
    a_connection_that_breaks_after_any_number_of_bytes_is_made_good_by_the_next_run
    a_write_stream_cut_anywhere_is_resumed_and_nothing_committed_is_sent_again
}

/// Returns the answers with which a call fails once.
fn answers() -> [(Code, &'static str); 4] {
    [
        (Code::Unavailable, "error reading from server: EOF"),
        (
            Code::Unknown,
            "write /var/lib/containerd/x: no space left on device",
        ),
        (Code::NotFound, "lease does not exist: not found"),
        (
            Code::Unavailable,
            "ref k8s.io/1/airgapd-x locked for 1s (since now): unavailable",
        ),
    ]
}

/// Checks the content after a disturbed run: every recorded image is whole. Then imports again
/// without a disturbance and checks that every image is in place.
async fn assert_the_next_run_converges(client: &Client, stock: &Stock, disturbance: &str) -> Imported {
    whole_records(client, stock).await;
    let imported = try_import(client, stock).await;
    let imported = imported.unwrap_or_else(|error| panic!("after {disturbance}: {error}"));
    let in_place = matches!(imported.result.outcome, Outcome::Imported | Outcome::Unchanged);
    assert!(in_place, "after {disturbance}: {:?}", imported.result);
    assert_converged(client, stock).await;
    imported
}

/// Returns the number of calls of an import, by method.
async fn calls_of_an_import(stage: &Stage, client: &Client, stock: &Stock) -> BTreeMap<&'static str, u64> {
    wipe(stage).await;
    import_all(client, stock).await;
    stage.the_fake().counters()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_of_an_import_may_fail_once() {
    every_call_may_fail_once(Stock::usual()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_of_an_import_of_a_compressed_bundle_may_fail_once() {
    every_call_may_fail_once(compressed()).await;
}

fn compressed() -> Stock {
    Stock::packed(Stock::usual().archive, Compression::Zstd)
}

async fn every_call_may_fail_once(stock: Stock) {
    let stage = fake();
    let client = stage.client().await;
    let mut points = 0;
    for (rpc, calls) in calls_of_an_import(&stage, &client, &stock).await {
        for nth in 1..=calls {
            for (code, message) in answers() {
                let fault = Fault::Fail {
                    rpc,
                    nth,
                    code,
                    message: message.to_owned(),
                };
                disturbed_by(fault, &stage, &client, &stock).await;
                points += 1;
            }
            if rpc != "Content.Write" && rpc != "Content.List" {
                disturbed_by(Fault::LoseAnswer { rpc, nth }, &stage, &client, &stock).await;
                points += 1;
            }
        }
    }
    // Survey, lease, ten blobs, two checks of the lease, four records: each in four or five ways.
    assert!(points >= 100, "only {points} points");
}

async fn disturbed_by(fault: Fault, stage: &Stage, client: &Client, stock: &Stock) {
    wipe(stage).await;
    let fake = stage.the_fake();
    let disturbance = format!("{fault:?}");
    fake.inject(fault);
    // The run may have failed or not: a retry inside the run is as good.
    let _ = try_import(client, stock).await;
    fake.clear_faults();
    assert_the_next_run_converges(client, stock, &disturbance).await;
    assert_eq!(fake.check_done(), Vec::<String>::new(), "after {disturbance}");
}

async fn a_connection_that_breaks_after_any_number_of_bytes_is_made_good_by_the_next_run(stage: &Stage) {
    let proxy = Proxy::before(stage.socket());
    // The first round measures how many bytes an import takes.
    let mut bytes = u64::MAX;
    let rounds = if stage.as_fake().is_some() { 64 } else { 8 };
    for round in 0..=rounds {
        let stock = Stock::usual();
        let namespace = format!("{}-{round}", stage.namespace());
        let client = connect(proxy.socket(), &namespace, Options::default()).await;
        if round == 0 {
            let before = proxy.carried();
            import_all(&client, &stock).await;
            bytes = proxy.carried() - before;
            continue;
        }
        proxy.cut_after(bytes * round / rounds);
        let _ = try_import(&client, &stock).await;
        let was_cut = proxy.heal();
        assert!(was_cut || round == rounds, "round {round} was not cut");
        let client = stage.in_namespace(&namespace).client().await;
        assert_the_next_run_converges(&client, &stock, &format!("a cut after {round}/{rounds}")).await;
    }
}

async fn a_write_stream_cut_anywhere_is_resumed_and_nothing_committed_is_sent_again(stage: &Stage) {
    const PIECE: u64 = 64 << 10;
    let layer = noise(1 << 20);
    let proxy = Proxy::before(stage.socket());
    for cut in 1..=16 {
        let stock = Stock::images([
            amd64("r.test/small:1", &[&noise(100)]),
            amd64("r.test/large:1", &[&noise(300), &layer, &noise(20)]),
        ]);
        let namespace = format!("{}-{cut}", stage.namespace());
        let client = connect(proxy.socket(), &namespace, Options::default()).await;
        proxy.cut_after(cut * PIECE);
        let first = try_import(&client, &stock).await.expect("the survey is small");
        assert!(proxy.heal(), "cut {cut}");
        let client = stage.in_namespace(&namespace).client().await;
        let second = assert_the_next_run_converges(&client, &stock, "a cut").await;
        let in_all = first.result.blobs.sent_bytes + second.result.blobs.sent_bytes;
        let needed: u64 = stock.needed().values().sum();
        assert!(in_all <= needed, "cut {cut}: {in_all} bytes sent for {needed}");
        if let Some(fake) = stage.as_fake() {
            let received = fake.received();
            for (digest, size) in stock.needed() {
                assert_eq!(received[&digest], size, "cut {cut}: {digest} was sent again");
            }
            fake.reset_log();
        }
        break_sharing(&client, &stock).await;
    }
}

/// Removes a scenario's content, so that the next round does not adopt it.
async fn break_sharing(client: &Client, stock: &Stock) {
    for taken in stock.select().taken() {
        for record in &taken.records {
            client
                .delete_image(&record.name, true)
                .await
                .expect("containerd answers");
        }
    }
}

/// Polls a future so many times and no more.
struct Polled<F> {
    future: Pin<Box<F>>,
    left: usize,
}

impl<F: Future> Future for Polled<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= 1;
        self.future.as_mut().poll(context).map(Some)
    }
}

#[tokio::test]
async fn an_import_dropped_at_any_await_is_finished_by_the_next_run() {
    dropped_at_any_await(Stock::usual()).await;
}

#[tokio::test]
async fn an_import_of_a_compressed_bundle_dropped_at_any_await_is_finished_by_the_next_run() {
    dropped_at_any_await(compressed()).await;
}

async fn dropped_at_any_await(stock: Stock) {
    let stage = fake();
    let client = stage.client().await;
    let mut dropped = 0;
    for left in 1.. {
        wipe(&stage).await;
        let future = Box::pin(try_import(&client, &stock));
        let ended = Polled { future, left }.await;
        assert_the_next_run_converges(&client, &stock, &format!("{left} polls")).await;
        assert_eq!(
            stage.the_fake().check_done(),
            Vec::<String>::new(),
            "after {left} polls"
        );
        if ended.is_some() {
            break;
        }
        dropped += 1;
    }
    assert!(dropped >= 15, "dropped at {dropped} awaits only");
}
