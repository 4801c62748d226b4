//! Runs the calls to containerd that the loop waits for. Its only decision: a list of calls ends at
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
use crate::admit;
use crate::decide::coexistence::Sight;
use crate::decide::compare::Facts;
use crate::decide::desired;
use crate::decide::withdraw::{Withdrawing, left_over};
use crate::decide::{Errand, Event, Failed, Unreached};
use crate::place;
use crate::receipts;
use crate::runtime::{self, Containerd, Unusable};
use crate::settings::Settings;
use crate::state::State;
use crate::uses::Uses;

/// Labels or targets of one walk over all records. A walk for this many costs little more than a
/// walk for one.
const AT_ONCE: usize = 50;

impl Hands {
    /// Runs an errand. Returns its result, and the connection if it made one. Safe to cancel: each
    /// call is complete in itself, and the next comparison finds the rest.
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
                    text: format!("containerd {} on {socket}, platform {platform}", version.text),
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
        // Subscribe before the comparison, so that no change in between is lost.
        let events = runtime.client.image_events().await?;
        let policy = runtime::policy(settings, Some(&runtime));
        Ok(Live {
            runtime,
            events,
            policy,
        })
    }

    /// Returns true if the folder or the socket differ from those at the start: k0s was installed
    /// after airgapd, or its unit has changed.
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
        Errand::Survey {
            labels,
            is_new_boot,
            unread,
        } => {
            let mut survey = runtime::survey(runtime, &state.ledger, is_new_boot).await?;
            if state
                .ledger
                .entries()
                .iter()
                .any(|entry| entry.stands_for.is_some())
            {
                let mut needed = desired::held_by_leases(&state.ledger);
                needed.retain(|lease, _| unread.contains(*lease));
                survey = survey.with_receipts(client).await?;
                survey = survey.with_whole_receipts(client, &needed).await?;
            }
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
        Errand::Sweep { kept, ended } => {
            let unknown = sweep(client, &kept, &ended).await?;
            end_evidence(client, state).await;
            Ok(Event::Swept(unknown))
        }
        Errand::Sight => {
            let began = Instant::now();
            let sight = Sight::look(client, Timestamp::now()).await?;
            Ok(Event::Sighted(Box::new(sight), began.elapsed()))
        }
    }
}

/// Removes labels and pins. Returns the records that stay as they are, because another program
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
        // Delete these before another call can fail: no later comparison finds them.
        delete_left_over(client, &deleted).await?;
    }
    Ok(untouched)
}

/// Returns which containers were made from which images, or `None` if containerd does not say.
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

/// Deletes the records that CRI keeps of images whose names were all deleted.
async fn delete_left_over(client: &Client, deleted: &[&ImageRecord]) -> Result<(), containerd::Error> {
    let targets: HashSet<&Digest> = deleted.iter().map(|record| record.target.digest()).collect();
    let targets: Vec<&Digest> = targets.into_iter().collect();
    for record in left_over(&client.images_targeting(&targets).await?, deleted) {
        client.delete_image(&record.name, false).await?;
    }
    Ok(())
}

/// Returns true if one of these leases belongs to the receipt with this path.
fn has_another(kept: &[String], path: &str) -> bool {
    let start = lease::of_receipts_at(path);
    kept.iter().any(|id| id.starts_with(&start))
}

/// Ends the evidence of admissions that neither a bundle of the ledger nor a record needs.
async fn end_evidence(client: &Client, state: &State) {
    if receipts::is_any_unread(&state.settings, &state.ledger) {
        return;
    }
    let state_dir = &state.settings.state_dir;
    if let Err(why) =
        admit::end_evidence(state_dir, client, |catalog| state.ledger.has_imported(catalog)).await
    {
        debug!("{why}");
    }
}

/// Deletes the leases of bundles and receipts, except those whose ids begin with one of `kept`. The
/// lease of a receipt goes in two cases: another receipt has its path, or it is `ended` and has no
/// file. Returns the paths of the others without a file.
async fn sweep(
    client: &Client,
    kept: &[String],
    ended: &BTreeSet<String>,
) -> Result<BTreeSet<String>, containerd::Error> {
    let mut unknown = BTreeSet::new();
    for lease in client.leases_beginning(lease::PREFIX).await? {
        if kept.iter().any(|id| lease.id.starts_with(id.as_str())) {
            continue;
        }
        let mark = lease.labels.get(labels::LEASE_MARK).map_or("", String::as_str);
        let is_over = match mark.strip_prefix(labels::LEASE_OF_RECEIPT) {
            Some(path) if has_another(kept, path) => true,
            // A command may have made a receipt that the daemon has not seen yet.
            // An error of the disk tells nothing about the receipt.
            Some(path) => match Path::new(path).try_exists() {
                Ok(false) if ended.contains(path) => true,
                Ok(false) => {
                    unknown.insert(path.to_owned());
                    false
                }
                Ok(true) | Err(_) => false,
            },
            None => mark.starts_with(labels::LEASE_OF_BUNDLE),
        };
        if is_over {
            debug!(lease = lease.id, "deleting a lease that was left behind");
            client.delete_lease(&lease.id, false).await?;
        }
    }
    Ok(unknown)
}
