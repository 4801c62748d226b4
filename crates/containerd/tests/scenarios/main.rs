//! The client against containerd: the same scenarios on the stand-in and on the real generations.

use std::collections::BTreeMap;

use containerd::Client;
use harness::{FakeConfig, Place, Stage, unique};
use support::tomorrow;

type Labels = BTreeMap<String, String>;

/// Makes tests of scenarios, on the stand-in and on each generation.
macro_rules! everywhere {
    ($($scenario:ident)*) => {
        harness::everywhere! { crate::play; $($scenario)* }
    };
}

lab::serves_a_containerd!();

mod content;
mod faults;
mod hostile;
mod records;
mod snapshots;
mod stand_in;
mod support;

fn play(place: impl Into<Place>, scenario: impl AsyncFnOnce(&Stage)) {
    harness::play(place, FakeConfig::default(), scenario);
}

/// Returns a client and a lease to write under.
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
