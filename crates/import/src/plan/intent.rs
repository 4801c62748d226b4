//! The source in whose name images are recorded, and the rules for recording them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::labels::Source;
use crate::pace::Pace;
use crate::pattern::Pattern;
use crate::space::Space;
use crate::unpack::Unpacker;

/// The rule for a record of the same name that has another target and that airgapd did not write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnConflict {
    /// The record moves to the bundle's target.
    #[default]
    Replace,
    /// The record stays unchanged, and the report says so.
    Keep,
    /// The record stays unchanged, and the image counts as failed.
    Refuse,
}

/// The source in whose name images are recorded, and the rules for recording them.
#[derive(Clone, Debug)]
pub struct Intent {
    /// The source that vouches for the images.
    pub source: Source,
    /// The keys that have signed the bundle, for people. `None` if none has.
    pub signer: Option<String>,
    /// The rule for names that are already taken.
    pub on_conflict: OnConflict,
    /// Names that the import leaves alone, each with the reason.
    pub leave: BTreeMap<String, String>,
    /// The disk for the blobs, and the space that stays free there.
    pub space: Space,
    /// Patterns of the images that come first: those of the first pattern, then those of the
    /// second, and then all others.
    pub priority: Vec<Pattern>,
    /// The speed limit for blobs.
    pub pace: Arc<Pace>,
    /// The unpacker and the time of unpacking, if images are unpacked.
    pub unpack: Option<(Unpacker, UnpackWhen)>,
    /// Largest number of records in the namespace after a bundle has added its own. Records of
    /// other programs count. Default [`MOST_RECORDS`].
    pub most_records: usize,
}

/// Default limit of records. A record with a short name and few labels takes some 300 bytes in
/// containerd's answer to a list. About this many fit into one message of 16 MiB.
pub const MOST_RECORDS: usize = 50_000;

/// The time at which an import unpacks images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnpackWhen {
    /// Before each image's records. An image that cannot be unpacked gets no records.
    BeforeRecord,
    /// After each image's records. An image that cannot be unpacked is reported and keeps its
    /// records.
    AfterRecords,
    /// After each image's records, as long as blobs of other images are still sent. The caller
    /// unpacks the other images later, and reports failures then.
    Meanwhile,
}

impl Intent {
    /// Makes an intent to record every image of a source, with a rule for names that are taken.
    #[must_use]
    pub fn new(source: Source, on_conflict: OnConflict) -> Intent {
        Intent {
            source,
            signer: None,
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
