//! Under whose name and by which rules images are recorded.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::labels::Source;
use crate::pace::Pace;
use crate::pattern::Pattern;
use crate::space::Space;
use crate::unpack::Unpacker;

/// What to do about a record that has our name and another target, and is not ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnConflict {
    /// The record moves to our target.
    #[default]
    Replace,
    /// The record stays as it is, and that is said.
    Keep,
    /// The record stays as it is, and the image counts as failed.
    Refuse,
}

/// Under whose name and by which rules images are recorded.
#[derive(Clone, Debug)]
pub struct Intent {
    /// Who vouches for the images.
    pub source: Source,
    /// What to do about names that are taken.
    pub on_conflict: OnConflict,
    /// Names that are left as they are whatever the bundle says, each with the reason.
    pub leave: BTreeMap<String, String>,
    /// Where the blobs go, and what stays free there.
    pub space: Space,
    /// Which images come first, by their names: those of the first pattern, then those of the
    /// second, then the others.
    pub priority: Vec<Pattern>,
    /// How fast blobs are sent.
    pub pace: Arc<Pace>,
    /// What the images are unpacked with, if they are, and when.
    pub unpack: Option<(Unpacker, UnpackWhen)>,
    /// How many records the namespace may have, those of others counted, once a bundle has added
    /// its own. Default [`MOST_RECORDS`].
    pub most_records: usize,
}

/// A record with a short name and few labels takes some 300 bytes in containerd's answer to a list,
/// and this is about as many as there is room for in one message of 16 MiB.
pub const MOST_RECORDS: usize = 50_000;

/// When an import unpacks images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnpackWhen {
    /// Each image before its records: one that cannot be unpacked gets none.
    BeforeRecord,
    /// After all records. What cannot be unpacked is told and keeps its records.
    AfterRecords,
}

impl Intent {
    /// To record every image of a source, and to move names of others by a rule.
    #[must_use]
    pub fn new(source: Source, on_conflict: OnConflict) -> Intent {
        Intent {
            source,
            on_conflict,
            leave: BTreeMap::new(),
            space: Space::default(),
            priority: Vec::new(),
            pace: Arc::default(),
            unpack: None,
            most_records: MOST_RECORDS,
        }
    }
}
