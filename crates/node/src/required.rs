//! The check that the images which the configuration requires are in containerd: a continuous
//! `airgapd verify`.
//!
//! The daemon checks when something may have changed. `airgapd status` checks if no daemon runs.
//! The check stays cheap, because it opens no bundle and starts no program. Only `airgapd verify`
//! finds out how to get a missing image.

use jiff::Timestamp;

use crate::runtime::{self, Containerd};
use crate::settings::Settings;
use crate::status::{MissingStatus, RequiredStatus};
use verify::{Answer, Inventory, Need, Needs, Sought, answer};

/// Checks whether every image that `require` names is in containerd, whole. Reads only. Safe to
/// cancel.
///
/// # Errors
///
/// Returns containerd's errors. Problems of the sources are in the answer, since only their owner
/// can correct them.
pub async fn check(settings: &Settings, runtime: &Containerd) -> Result<RequiredStatus, containerd::Error> {
    let checked_at = Timestamp::now();
    let needs = gather(settings, runtime).await?;
    let mut found = RequiredStatus {
        is_current: true,
        checked_at: Some(checked_at),
        problem: (!needs.mistakes.is_empty()).then(|| needs.mistakes.join("; ")),
        references: 0,
        missing: Vec::new(),
        names: Vec::new(),
        is_unsure: false,
    };
    if found.problem.is_none() {
        let all = needs.merged();
        let policy = runtime::policy(settings, Some(runtime));
        let inventory = Inventory::of_containerd(
            &runtime.client,
            runtime.store.as_deref(),
            &policy.wanted,
            &settings.limits,
            runtime::snapshots(runtime),
            &Sought::exactly(&all),
        )
        .await?;
        found.references = all.len();
        found.names = all.iter().map(|need| need.reference.clone()).collect();
        found.missing = all.iter().filter_map(|need| missing(need, &inventory)).collect();
    }
    Ok(found)
}

async fn gather(settings: &Settings, runtime: &Containerd) -> Result<Needs, containerd::Error> {
    let sources = &settings.require;
    let mut needs = Needs::default();
    let platform = runtime::asked_platform(settings, Some(runtime));
    needs.add(sources, platform.as_ref()).await;
    if sources.sandbox_image.is_none()
        && runtime.is_of_kubelet
        && let Some(image) = runtime.client.cri().sandbox_image().await?
    {
        needs.add_sandbox(image);
    }
    Ok(needs)
}

fn missing(need: &Need, inventory: &Inventory) -> Option<MissingStatus> {
    let answer = answer(need, inventory, &Inventory::default());
    answer.is_missing().then(|| MissingStatus {
        why: why(&answer),
        reference: answer.reference,
        asked_by: answer.sources.iter().map(ToString::to_string).collect(),
    })
}

fn why(answer: &Answer) -> String {
    answer.problems.join("; ")
}
