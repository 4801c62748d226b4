//! The client against containerd: the same scenarios on the stand-in and on the real generations.

use std::collections::BTreeMap;
use std::sync::Arc;

use containerd::Client;
use support::{Place, Stage, tomorrow, unique};

type Labels = BTreeMap<String, String>;

/// Runs each scenario in each place, as a test of its own.
macro_rules! everywhere {
    ($($scenario:ident)*) => {
        mod on_the_stand_in { $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $scenario() { crate::on_shared(crate::Place::Fake, super::$scenario).await; })* }
        everywhere!(@real on_containerd_1_6 V1_6 $($scenario)*);
        everywhere!(@real on_containerd_1_7 V1_7 $($scenario)*);
        everywhere!(@real on_containerd_2_1 V2_1 $($scenario)*);
        everywhere!(@real on_containerd_2_3 V2_3 $($scenario)*);
    };
    (@real $place:ident $generation:ident $($scenario:ident)*) => {
        mod $place { $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $scenario() {
                crate::on_shared(crate::Place::Real(lab::Generation::$generation), super::$scenario).await;
            })* }
    };
}

mod content;
mod faults;
mod hostile;
mod records;
mod snapshots;
mod stand_in;
mod support;

async fn on_shared<F: Future<Output = ()>>(place: Place, scenario: impl FnOnce(Arc<Stage>) -> F) {
    let Some(stage) = Stage::shared(place).await else {
        return;
    };
    let stage = Arc::new(stage);
    scenario(Arc::clone(&stage)).await;
    assert!(stage.is_alive().await, "the server did not survive");
    stage.assert_no_violations();
}

/// A client and a lease to write under.
async fn leased(stage: &Stage) -> (Client, String) {
    let client = stage.client().await;
    let lease = format!("lease-{}", unique());
    client
        .create_lease(&lease, tomorrow(), &Labels::new())
        .await
        .expect("a lease");
    (client, lease)
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}
