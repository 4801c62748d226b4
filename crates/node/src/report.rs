//! The report for an auditor: which images bundles vouch for, from which files they came, and since
//! when.
//!
//! Pure: a function of the ledger, the bundles' status and the images in containerd. The ledger
//! remembers no owner of a file, so the caller looks at the current file.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use basics::Foreign;
use bundle::Identity;
use import::Pattern;
use jiff::Timestamp;
use oci_spec::image::Digest;
use serde::Serialize;

use crate::decide::desired;
use crate::state::ledger::{self, Entry, LastTry, Ledger, SignerEntry};
use crate::status::{BundleStatus, ImageStatus, RecordStatus, State};

/// A bundle and its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BundleReport {
    /// File name, as labels have it.
    pub name: Foreign,
    /// Current state.
    pub state: State,
    /// Result of the last try.
    pub outcome: Option<LastTry>,
    /// Digest of its `index.json` or `manifest.json` at the last import.
    pub catalog: Option<String>,
    /// The keys whose signatures admitted it. Absent without any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub signers: Vec<SignerEntry>,
    /// The reason why no signature admits its images today. Absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unadmitted: Option<String>,
    /// Time of the earliest import of this catalog from this file name that the ledger knows.
    pub first_imported_at: Option<Timestamp>,
    /// Time of the last import, including imports that found everything in place.
    pub imported_at: Option<Timestamp>,
    /// Number of its images in place, each target counted once.
    pub images: usize,
    /// The current file. Absent if there is none.
    pub file: Option<FileReport>,
}

/// The current state of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// Size in bytes, 0 for a folder.
    pub size: u64,
    /// Time of the last change of its content.
    pub modified_at: Option<Timestamp>,
    /// Id of the user who owns the file.
    pub uid: u32,
    /// Id of the file's group.
    pub gid: u32,
    /// Name of the user. Absent if `/etc/passwd` has none.
    pub user: Option<String>,
    /// Name of the group. Absent if `/etc/group` has none.
    pub group: Option<String>,
    /// True if the content, the owner and the mode are unchanged since the last import, by the
    /// change time. Absent for a folder, and before the first import.
    #[serde(rename = "as_imported")]
    pub is_as_imported: Option<bool>,
}

/// An image record that bundles vouch for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageReport {
    /// Name of the record.
    pub name: String,
    /// Digest that the name should point at.
    pub digest: String,
    /// Every bundle that vouches for this digest under this name, in the order of arrival.
    pub bundles: Vec<Foreign>,
    /// The bundles that have another image under this name, in the same order. A bundle that
    /// arrived later has the name.
    pub overridden: Vec<Overridden>,
    /// State of the record. Absent if containerd did not answer, like the next two fields.
    pub record: Option<RecordStatus>,
    /// True if the record has a pin, of airgapd or of another program.
    pub pinned: Option<bool>,
    /// Blobs of the image that the node needs and containerd does not have.
    pub missing_blobs: Option<Vec<String>>,
}

/// Another image under the same name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Overridden {
    /// The bundle that has the image.
    pub bundle: Foreign,
    /// Digest of the image.
    pub digest: String,
}

/// Returns every bundle, by name. `look` returns the current file. It gets the file's name in the
/// folder and the identity of the file that was imported.
pub fn bundles(
    standing: &[BundleStatus],
    ledger: &Ledger,
    look: impl Fn(&OsStr, Option<&Identity>) -> Option<FileReport>,
) -> Vec<BundleReport> {
    let entries: BTreeMap<String, &Entry> = ledger
        .entries()
        .into_iter()
        .map(|entry| (ledger::label_name(&entry.file), entry))
        .collect();
    let report = |bundle: &BundleStatus| {
        let entry = entries.get(bundle.name.raw());
        let file = entry.map_or(OsStr::new(bundle.name.raw()), |entry| &entry.file);
        let imported = entry.and_then(|entry| entry.imported.as_ref());
        BundleReport {
            name: bundle.name.clone(),
            state: bundle.state,
            outcome: bundle.outcome,
            catalog: bundle.catalog.clone(),
            signers: bundle.signers.clone(),
            unadmitted: bundle.unadmitted.clone(),
            first_imported_at: entry.and_then(|entry| entry.first_imported()),
            imported_at: bundle.imported_at,
            images: bundle.images,
            file: look(file, imported.map(|imported| &imported.identity)),
        }
    };
    standing.iter().map(report).collect()
}

/// Returns every image that bundles vouch for, by name, except those that the operator excludes.
/// `found` has the state of the images in containerd, if containerd answered.
pub fn images(ledger: &Ledger, exclude: &[Pattern], found: Option<&[ImageStatus]>) -> Vec<ImageReport> {
    let standing: BTreeMap<&str, &ImageStatus> = found
        .into_iter()
        .flatten()
        .map(|image| (image.name.as_str(), image))
        .collect();
    let mut claims: BTreeMap<&str, Vec<(Foreign, &Digest)>> = BTreeMap::new();
    for entry in ledger.entries().into_iter().filter(|entry| entry.is_vouching()) {
        for image in entry.imported.iter().flat_map(|imported| &imported.images) {
            let bundle = Foreign::file_name(&entry.file);
            claims
                .entry(&image.name)
                .or_default()
                .push((bundle, &image.target));
        }
    }
    for name in desired::excluded(claims.keys().copied(), exclude) {
        claims.remove(name);
    }
    let report = |(name, claims): (&&str, &Vec<(Foreign, &Digest)>)| {
        let (_, wanted) = claims.last().expect("a name is there because a bundle claims it");
        let mut report = ImageReport {
            name: (*name).to_owned(),
            digest: wanted.to_string(),
            bundles: Vec::new(),
            overridden: Vec::new(),
            record: None,
            pinned: None,
            missing_blobs: None,
        };
        for (bundle, digest) in claims {
            let bundle = bundle.clone();
            match digest == wanted {
                true => report.bundles.push(bundle),
                false => report.overridden.push(Overridden {
                    bundle,
                    digest: digest.to_string(),
                }),
            }
        }
        if let Some(image) = standing.get(name).filter(|image| image.digest == report.digest) {
            report.record = Some(image.record);
            report.pinned = Some(image.pinned);
            report.missing_blobs = Some(image.missing_blobs.clone());
        }
        report
    };
    claims.iter().map(report).collect()
}
