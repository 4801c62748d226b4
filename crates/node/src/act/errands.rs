//! What the loop asks containerd and waits for. It decides nothing but how a list of calls ends at
//! the first that fails.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::time::Instant;

use containerd::{Client, ImageRecord, ImageUpdate};
use import::{labels, lease};
use jiff::Timestamp;
use oci_spec::image::Digest;
use tracing::{debug, warn};

use super::hands::{Hands, Live};
use super::journal;
use crate::decide::coexistence::Sight;
use crate::decide::compare::Facts;
use crate::decide::withdraw::{Withdrawing, left_over};
use crate::decide::{Errand, Event, Failed, Unreached};
use crate::place;
use crate::runtime::{self, Containerd, Unusable};
use crate::settings::Settings;
use crate::state::State;
use crate::uses::Uses;

/// For so many labels or targets one walk over all records costs hardly more than for one.
const AT_ONCE: usize = 50;

impl Hands {
    /// Runs an errand. Gives what came of it, and the connection where it made one. Safe to cancel:
    /// each call is whole by itself, and the next comparison finds out what is left to do.
    pub(super) async fn run(&self, errand: Errand, state: &State) -> (Event, Option<Live>) {
        if let Errand::Connect = errand {
            return self.connect(&state.settings).await;
        }
        let Some(live) = &self.containerd else {
            return (Event::Ended, None);
        };
        let event = match run_connected(errand, state, &live.runtime).await {
            Ok(event) => event,
            Err(error) => Event::Lost(Failed {
                is_too_large: matches!(error, containerd::Error::TooLarge { .. }),
                text: basics::chain(&error),
            }),
        };
        (event, None)
    }

    async fn connect(&self, settings: &Settings) -> (Event, Option<Live>) {
        match self.reach(settings).await {
            Ok(live) => {
                let Containerd {
                    version,
                    platform,
                    uuid,
                    store,
                    ..
                } = &live.runtime;
                let socket = self.place.socket.display();
                let facts = Facts {
                    text: format!("containerd {} on {socket}; this node is {platform}", version.text),
                    uuid: uuid.clone(),
                    fingerprint: runtime::fingerprint(settings, &live.runtime),
                    has_store: store.is_some(),
                };
                (Event::Connected(Box::new(facts)), Some(live))
            }
            Err(error) => {
                let (text, cause) = match &error {
                    Unusable::Containerd(containerd::Error::Unreachable { source, .. }) => {
                        let socket = self.place.socket.display();
                        (format!("no containerd on {socket}"), Some(basics::chain(source)))
                    }
                    error => (basics::chain(error), None),
                };
                let unreached = Unreached {
                    text,
                    cause,
                    is_elsewhere: self.is_elsewhere(settings),
                };
                (Event::Unreached(unreached), None)
            }
        }
    }

    async fn reach(&self, settings: &Settings) -> Result<Live, Unusable> {
        let runtime = runtime::connect(&self.place.socket, settings).await?;
        runtime.warning.iter().for_each(|warning| warn!("{warning}"));
        // First the subscription, then the comparison: what happens in between is then not lost.
        let events = runtime.client.image_events().await?;
        let policy = runtime::policy(settings, Some(&runtime));
        Ok(Live {
            runtime,
            events,
            policy,
        })
    }

    /// Whether folder or socket are others than when this began: k0s was installed after us, or its
    /// unit has changed.
    fn is_elsewhere(&self, settings: &Settings) -> bool {
        let found = place::decide(&place::probe(Path::new("/")), settings);
        found.is_ok_and(|found| !found.is_same_place(&self.place))
    }
}

async fn run_connected(
    errand: Errand,
    state: &State,
    runtime: &Containerd,
) -> Result<Event, containerd::Error> {
    let client = &runtime.client;
    match errand {
        Errand::Connect => Ok(Event::Ended),
        Errand::Survey { labels, is_new_boot } => {
            let mut survey = runtime::survey(runtime, &state.ledger, is_new_boot).await?;
            for keys in labels.chunks(AT_ONCE) {
                let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                survey = survey.with_labelled(client, &keys).await?;
            }
            Ok(Event::Surveyed(Box::new(survey), labels))
        }
        Errand::Withdraw(withdrawing) => {
            let untouched = withdraw(client, &withdrawing).await?;
            Ok(Event::Withdrawn(withdrawing, untouched))
        }
        Errand::Sweep(kept) => {
            sweep(client, &kept).await?;
            Ok(Event::Swept)
        }
        Errand::Sight => {
            let began = Instant::now();
            let sight = Sight::look(client, Timestamp::now()).await?;
            Ok(Event::Sighted(Box::new(sight), began.elapsed()))
        }
    }
}

/// Takes labels and pins back. Gives the records that were left alone, since another program
/// changed them meanwhile.
async fn withdraw(client: &Client, withdrawing: &Withdrawing) -> Result<Vec<String>, containerd::Error> {
    let Withdrawing { plan, survey, .. } = withdrawing;
    let uses = match plan.iter().any(|withdrawal| withdrawal.unpins) {
        true => uses(client).await?,
        false => Some(Uses::default()),
    };
    let mut untouched = Vec::new();
    for part in plan.chunks(AT_ONCE) {
        let mut deleted = Vec::new();
        for withdrawal in part {
            let Some(record) = survey.records.get(&withdrawal.name) else {
                continue;
            };
            let users = uses.as_ref().map(|uses| uses.users(record));
            let deletes = withdrawal.deletes && users.as_ref().is_some_and(BTreeSet::is_empty);
            if deletes {
                if client.image(&record.name).await?.as_ref() != Some(record) {
                    untouched.push(record.name.clone());
                    continue;
                }
                client.delete_image(&record.name, false).await?;
                deleted.push(record);
            } else {
                let labels = withdrawal.changes.clone();
                let update = ImageUpdate { target: None, labels };
                client.update_image(&record.name, &update).await?;
            }
            journal::withdrawal(withdrawal, deletes, &users.unwrap_or_default());
        }
        // Before anything else can go wrong: nothing tells of them later.
        delete_left_over(client, &deleted).await?;
    }
    Ok(untouched)
}

/// Which containers were made from which images; `None` where containerd does not tell.
async fn uses(client: &Client) -> Result<Option<Uses>, containerd::Error> {
    let containers = match client.containers().await {
        Ok(containers) => containers,
        Err(error @ containerd::Error::Refused { .. }) => {
            debug!(
                "containerd does not tell which images are used: {}",
                basics::chain(&error)
            );
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let records = client.images_named(Uses::names(&containers)).await?.into_iter();
    let records = records.map(|record| (record.name.clone(), record)).collect();
    Ok(Some(Uses::of(&containers, &records)))
}

/// Deletes what CRI keeps of images whose names were all deleted.
async fn delete_left_over(client: &Client, deleted: &[&ImageRecord]) -> Result<(), containerd::Error> {
    let targets: HashSet<&Digest> = deleted.iter().map(|record| record.target.digest()).collect();
    let targets: Vec<&Digest> = targets.into_iter().collect();
    for record in left_over(&client.images_targeting(&targets).await?, deleted) {
        client.delete_image(&record.name, false).await?;
    }
    Ok(())
}

/// Gives the leases of bundles back, but for those whose ids begin so.
async fn sweep(client: &Client, kept: &[String]) -> Result<(), containerd::Error> {
    for lease in client.leases_beginning(lease::PREFIX).await? {
        let mark = lease.labels.get(labels::LEASE_MARK);
        let is_of_bundle = mark.is_some_and(|mark| mark.starts_with(labels::LEASE_OF_BUNDLE));
        if is_of_bundle && !kept.iter().any(|id| lease.id.starts_with(id.as_str())) {
            debug!(lease = lease.id, "giving back a lease that was left behind");
            client.delete_lease(&lease.id, false).await?;
        }
    }
    Ok(())
}
