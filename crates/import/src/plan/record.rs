//! The step for one image record.

use std::sync::Arc;

use containerd::ImageRecord;
use oci_spec::image::Descriptor;

use super::{Intent, OnConflict, RecordAction, RecordStep};
use crate::labels::{self, CRI_MANAGED, Labels};
use crate::select::NamedTarget;

/// Decides the step for one record, given the existing record of that name.
#[must_use]
pub fn plan_record(wanted: &NamedTarget, there: Option<&ImageRecord>, intent: &Intent) -> RecordStep {
    let left = intent.leave.get(&wanted.name);
    let action = match (left, there) {
        (Some(why), _) => RecordAction::Leave(why.clone()),
        (None, None) => RecordAction::Create(created_labels(intent)),
        (None, Some(record)) if is_same_target(&record.target, &wanted.target) => relabel(record, intent),
        (None, Some(record)) => move_or_leave(record, intent),
    };
    RecordStep {
        name: wanted.name.clone(),
        target: Arc::clone(&wanted.target),
        action,
    }
}

pub(super) fn created_labels(intent: &Intent) -> Labels {
    let mut changes = labels::vouch(&Labels::new(), &intent.source);
    labels::sign(&mut changes, &Labels::new(), intent.signer.as_deref(), false);
    changes
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .collect()
}

fn is_same_target(there: &Descriptor, wanted: &Descriptor) -> bool {
    there.digest() == wanted.digest()
        && there.media_type() == wanted.media_type()
        && there.size() == wanted.size()
}

fn relabel(record: &ImageRecord, intent: &Intent) -> RecordAction {
    let mut changes = labels::vouch(&record.labels, &intent.source);
    labels::sign(&mut changes, &record.labels, intent.signer.as_deref(), false);
    if changes.is_empty() {
        RecordAction::Unchanged
    } else {
        RecordAction::Relabel(changes)
    }
}

fn move_or_leave(record: &ImageRecord, intent: &Intent) -> RecordAction {
    let ours = labels::is_vouched_for(&record.labels);
    if !ours && intent.on_conflict != OnConflict::Replace {
        let refuse = intent.on_conflict == OnConflict::Refuse;
        return RecordAction::Conflict {
            with: record.target.digest().clone(),
            refuse,
        };
    }
    let mut labels = labels::vouch(&record.labels, &intent.source);
    labels::sign(&mut labels, &record.labels, intent.signer.as_deref(), true);
    // If the mark stays, CRI takes the record for known and never learns the new image's ID. CRI
    // may set the mark at this moment, so the mark is always removed.
    labels.insert(CRI_MANAGED.to_owned(), None);
    RecordAction::Retarget {
        from: record.target.digest().clone(),
        labels,
    }
}
