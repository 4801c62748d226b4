//! The images that are present and that no signed bundle brought, by the evidence in the state
//! folder. Labels in containerd count for nothing, since every client of containerd can write them.
//!
//! Receipts stand for bundles whose files may be gone. So a remedy that speaks of a bundle also
//! names the receipt that holds the image.

use node::images::keys::{self, TrustedKeys};
use node::settings::Settings;
use node::state::admitted::{Admissions, Doubt};
use node::state::ledger;
use serde::Serialize;
use verify::{Answer, Source};

/// The word of the evidence on all images.
#[derive(Debug, Default)]
pub(super) struct Word {
    /// Images that are present without a signature that counts today.
    pub(super) unsigned: Vec<Unsigned>,
    /// Evidence that cannot be used.
    pub(super) warnings: Vec<String>,
}

/// An image that is present, and that no signed bundle brought.
#[derive(Debug, Serialize)]
pub(super) struct Unsigned {
    /// Reference as its source gives it, normalised.
    pub(super) reference: String,
    /// Name of the record in containerd.
    pub(super) record: String,
    /// Digest that the record points at.
    pub(super) digest: String,
    pub(super) problem: String,
    /// Remedy.
    pub(super) remedy: String,
    /// The bundle whose receipt holds the image, in the form that labels have.
    pub(super) receipt_of: Option<String>,
    pub(super) sources: Vec<Source>,
}

/// Judges the present images by the keys, the revocations and the evidence of this moment.
pub(super) fn word(settings: &Settings, images: &[Answer]) -> Word {
    let folder = &settings.trusted_keys;
    let (trusted, revocations) = (TrustedKeys::read(folder), keys::revocations(folder));
    let admissions = Admissions::read(&settings.state_dir);
    let judged = admissions.judged(&trusted, &revocations);
    let ledger = ledger::read(&settings.state_dir).unwrap_or_default();
    let unsigned = images
        .iter()
        .filter(|image| !image.is_missing())
        .filter_map(|image| {
            let (record, target) = image.record.as_ref()?;
            let Doubt { why, remedy } = judged.vouch(record, target).err()?;
            let receipt_of = ledger.stood_for_with(record, target).map(str::to_owned);
            Some(Unsigned {
                reference: image.reference.clone(),
                record: record.clone(),
                digest: target.to_string(),
                problem: why,
                remedy: with_receipt(remedy, receipt_of.as_deref()),
                receipt_of,
                sources: image.sources.clone(),
            })
        });
    Word {
        unsigned: unsigned.collect(),
        warnings: admissions
            .problems
            .iter()
            .map(|why| format!("evidence that cannot be used: {why}"))
            .collect(),
    }
}

/// Adds the receipt that holds an image to a remedy. Its bundle may be gone, and it restores a
/// record that is removed.
fn with_receipt(remedy: &str, receipt_of: Option<&str>) -> String {
    let Some(bundle) = receipt_of else {
        return remedy.to_owned();
    };
    let bundle = basics::foreign::shown(bundle);
    format!(
        "{remedy}. The image comes from the receipt of {bundle}: `airgapd release {bundle}` gives it back"
    )
}
