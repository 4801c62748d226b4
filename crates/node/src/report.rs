//! What an auditor asks of a node: which images bundles vouch for, from which files they came, and
//! since when.
//!
//! Pure: the ledger, the bundles as they stand and the images in containerd go in. The ledger
//! remembers no owner of a file, so the caller looks at the file as it is now.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use basics::Foreign;
use bundle::Identity;
use import::Pattern;
use jiff::Timestamp;
use oci_spec::image::Digest;
use serde::Serialize;

use crate::decide::desired;
use crate::state::ledger::{self, Entry, LastTry, Ledger};
use crate::status::{BundleStatus, ImageStatus, RecordStatus, State};

/// A bundle and the file that it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BundleReport {
    /// Its file name, as labels have it.
    pub name: Foreign,
    /// How far it has come.
    pub state: State,
    /// How the last try ended.
    pub outcome: Option<LastTry>,
    /// The digest of its `index.json` or `manifest.json`, as it was last imported.
    pub catalog: Option<String>,
    /// Time of the earliest import of this catalog from this file name that the ledger knows.
    pub first_imported_at: Option<Timestamp>,
    /// Time of the last import, also of one that found everything in place.
    pub imported_at: Option<Timestamp>,
    /// How many images of it are in place, each target counted once.
    pub images: usize,
    /// The file as it is now; absent where there is none.
    pub file: Option<FileReport>,
}

/// A file as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// In bytes; 0 for a folder.
    pub size: u64,
    /// Time of the last change of its content.
    pub modified_at: Option<Timestamp>,
    /// The id of the user who owns it.
    pub uid: u32,
    /// The id of its group.
    pub gid: u32,
    /// The name of the user; absent where `/etc/passwd` has none.
    pub user: Option<String>,
    /// The name of the group; absent where `/etc/group` has none.
    pub group: Option<String>,
    /// Whether neither its content nor its owner and mode have changed since the last import: its
    /// change time says so. Absent for a folder, and before the first import.
    #[serde(rename = "as_imported")]
    pub is_as_imported: Option<bool>,
}

/// An image record that bundles vouch for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageReport {
    /// The name of the record.
    pub name: String,
    /// The digest that the name is to point at.
    pub digest: String,
    /// Every bundle that vouches for this digest under this name, in the order in which they
    /// arrived.
    pub bundles: Vec<Foreign>,
    /// The bundles that have another image under this name, in the same order. A bundle that
    /// arrived later has the name.
    pub overridden: Vec<Overridden>,
    /// How the record stands; absent where containerd could not be asked, like the two that follow.
    pub record: Option<RecordStatus>,
    /// Whether airgapd's pin, or that of another program, is on the record.
    pub pinned: Option<bool>,
    /// What the node needs of it and containerd has not.
    pub missing_blobs: Option<Vec<String>>,
}

/// Another image under a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Overridden {
    /// The bundle that has it.
    pub bundle: Foreign,
    /// Its digest.
    pub digest: String,
}

/// Every bundle, by name. `look` looks at a file by its name in the folder, and is given the
/// identity of the file that was imported.
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
            first_imported_at: entry.and_then(|entry| entry.first_imported()),
            imported_at: bundle.imported_at,
            images: bundle.images,
            file: look(file, imported.map(|imported| &imported.identity)),
        }
    };
    standing.iter().map(report).collect()
}

/// Every image that bundles vouch for, by name, without those that the operator excludes. `found`
/// is how the images stand in containerd, where that could be asked.
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
