//! Removes airgapd's source labels, and with the last of them its pin. Records stay, and kubelet
//! decides about them.

use std::ops::ControlFlow;

use containerd::{Client, Error, ImageRecord, ImageUpdate};
use serde::Serialize;

use crate::labels::{self, LabelChanges, PINNED};
use crate::lease;

/// The labels to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Release {
    /// All labels of airgapd.
    All,
    /// The labels of these bundles (by file name) or on these image records (by name).
    Names(Vec<String>),
    /// The labels of these bundles of the images folder, by file name.
    Bundles(Vec<String>),
}

/// A record that loses labels of airgapd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Released {
    /// The record's name.
    pub name: String,
    /// True if the record loses its pin.
    pub unpinned: bool,
    /// The labels that the record loses.
    pub labels: Vec<String>,
    #[serde(skip)]
    changes: LabelChanges,
}

/// Decides which labels `record` loses.
#[must_use]
pub fn release_of(record: &ImageRecord, what: &Release) -> Option<Released> {
    let all_of_it = match what {
        Release::All => true,
        Release::Names(names) => names.contains(&record.name),
        Release::Bundles(_) => false,
    };
    let gone = |key: &str, value: &str| match what {
        Release::All => true,
        Release::Bundles(names) => {
            let is_of_file = key.starts_with(labels::BUNDLE_PREFIX) || labels::is_mark_of_receipt(key, value);
            is_of_file && names.iter().any(|name| name == value)
        }
        Release::Names(names) => all_of_it || names.iter().any(|name| name == value),
    };
    let changes = match labels::disown(&record.labels, gone) {
        changes if !all_of_it && changes.keys().all(|key| !labels::is_source(key)) => LabelChanges::new(),
        changes => changes,
    };
    let labels: Vec<String> = changes.keys().cloned().collect();
    let unpinned = changes.contains_key(PINNED);
    (!labels.is_empty()).then(|| Released {
        name: record.name.clone(),
        unpinned,
        labels,
        changes,
    })
}

/// Removes the labels that `what` names, and with [`Release::All`] also airgapd's leases. With
/// `dry_run`, nothing is written.
///
/// Labels are changed one key at a time, and labels of other programs stay. Safe to cancel: the
/// next call removes the rest.
///
/// # Errors
///
/// Returns the client's error, unchanged. Records before the failed one are already released.
pub async fn release(client: &Client, what: &Release, dry_run: bool) -> Result<Vec<Released>, Error> {
    let mut released = Vec::new();
    let look = |record: ImageRecord| {
        released.extend(release_of(&record, what));
        ControlFlow::Continue(())
    };
    client.each_image(look).await?;
    released.sort_by(|one, other| one.name.cmp(&other.name));
    if dry_run {
        return Ok(released);
    }
    for record in &released {
        let update = ImageUpdate {
            target: None,
            labels: record.changes.clone(),
        };
        client.update_image(&record.name, &update).await?;
    }
    if *what == Release::All {
        for ours in client.leases_beginning(lease::PREFIX).await? {
            client.delete_lease(&ours.id, false).await?;
        }
    }
    Ok(released)
}
