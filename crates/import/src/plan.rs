//! The plan: every step of an import, decided before the first step is taken.
//!
//! Pure: the selection and the survey go in, and a printable value comes out. Code that carries the
//! plan out has nothing left to decide. The same function serves the daemon, `import`, `import
//! --dry-run`, and the comparison of an unchanged bundle with containerd at a restart.

mod gc;
mod intent;
mod record;
mod sources;
#[cfg(test)]
mod tests;
mod text;

use std::collections::HashSet;
use std::sync::Arc;

use containerd::BlobInfo;
use oci_spec::image::{Descriptor, Digest};

pub use self::gc::missing_gc_labels;
pub(crate) use self::gc::references;
pub use self::intent::{Intent, MOST_RECORDS, OnConflict, UnpackWhen};
pub use self::record::plan_record;
use self::sources::Sources;
use crate::labels::{self, LabelChanges, Labels};
use crate::pattern::Pattern;
use crate::select::{Child, Member, NamedTarget, Taken};
use crate::survey::Survey;

/// Every step of an import, in order.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The images in order of priority. Images of equal priority are sorted by the bytes to send,
    /// fewest first.
    pub images: Vec<ImagePlan>,
}

/// The steps for one image.
#[derive(Clone, Debug)]
pub struct ImagePlan {
    /// Index of the image in the planned list.
    pub index: usize,
    /// The image's blobs, children before parents. Empty if the bundle gets none of its names.
    pub blobs: Vec<BlobStep>,
    /// The image's records, written after all blobs.
    pub records: Vec<RecordStep>,
    /// The image's platforms, best first.
    pub platforms: Vec<String>,
    /// True if the image is to be unpacked and is not unpacked yet.
    pub unpack: bool,
}

/// The step for one blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobStep {
    /// The blob.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// The action on the blob.
    pub action: BlobAction,
    /// Number of labels that the blob lacks, for the gc and for `sources`. A blob that is sent gets
    /// them with its commit. The import computes the labels only when it writes them. The plan
    /// cannot hold them, since the product of an image's names and layers has no bound.
    pub lacking: usize,
    /// The labels that give the blob's origin, from the names of all images that have it. Blobs
    /// with equal labels share them.
    pub sources: Arc<Labels>,
    /// The blobs that this blob refers to.
    pub children: Vec<Child>,
}

/// The action on a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobAction {
    /// The blob is missing, and its bytes are sent.
    Send,
    /// The blob exists, but its image is not complete yet. The lease protects the blob.
    Hold,
    /// The blob exists and is safe.
    Leave,
}

/// The step for one image record.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordStep {
    /// The record's name.
    pub name: String,
    /// The record's target after the step.
    pub target: Arc<Descriptor>,
    /// The action on the record.
    pub action: RecordAction,
}

/// The action on a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordAction {
    /// The record does not exist. It is created with target, pin and source.
    Create(Labels),
    /// The record points to another image. It is moved, with its labels, in one call.
    Retarget {
        /// The record's target now.
        from: Digest,
        /// The labels that change with it.
        labels: LabelChanges,
    },
    /// The record only lacks labels.
    Relabel(LabelChanges),
    /// The record stays unchanged.
    Unchanged,
    /// The name belongs to another program, and the record stays.
    Conflict {
        /// The record's target.
        with: Digest,
        /// True if the image counts as failed.
        refuse: bool,
    },
    /// The bundle leaves this name alone, for this reason.
    Leave(String),
}

impl RecordAction {
    /// Returns true if the record is written.
    #[must_use]
    pub fn writes(&self) -> bool {
        matches!(
            self,
            RecordAction::Create(_) | RecordAction::Retarget { .. } | RecordAction::Relabel(_)
        )
    }

    /// Returns true if the bundle does not get the name.
    fn leaves(&self) -> bool {
        matches!(self, RecordAction::Conflict { .. } | RecordAction::Leave(_))
    }
}

impl Plan {
    /// Returns true if everything is in place. Then the import takes no lease and writes nothing.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.images.iter().all(ImagePlan::is_done)
    }

    /// Returns true if the bundle does not get all its names.
    #[must_use]
    pub fn leaves_names(&self) -> bool {
        let mut steps = self.images.iter().flat_map(|image| &image.records);
        steps.any(|step| step.action.leaves())
    }

    /// Returns the number of new records.
    #[must_use]
    pub fn new_records(&self) -> usize {
        let steps = self.images.iter().flat_map(|image| &image.records);
        let new = steps.filter(|step| matches!(step.action, RecordAction::Create(_)));
        new.map(|step| &step.name).collect::<HashSet<_>>().len()
    }

    /// Returns the number of bytes to send. Each blob counts once.
    #[must_use]
    pub fn bytes_to_send(&self) -> u64 {
        self.blobs_to_send().iter().map(|(_, size)| size).sum()
    }

    /// Returns the blobs to send, each once, with their sizes in bytes.
    pub(crate) fn blobs_to_send(&self) -> Vec<(&Digest, u64)> {
        let mut seen = HashSet::new();
        let steps = self.images.iter().flat_map(|image| &image.blobs);
        steps
            .filter(|step| step.action == BlobAction::Send && seen.insert(&step.digest))
            .map(|step| (&step.digest, step.size))
            .collect()
    }
}

impl ImagePlan {
    /// Returns true if the image's blobs, their labels and its records are all in place.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.blobs.iter().all(BlobStep::is_done) && !self.records.iter().any(|record| record.action.writes())
    }

    /// Returns true if the bundle gets none of the image's names. Blobs of an image without a
    /// record are not sent.
    fn is_unwanted(&self) -> bool {
        self.records.iter().all(|record| record.action.leaves())
    }

    /// Returns the position of the first pattern that one of the image's names matches.
    fn rank(&self, priority: &[Pattern]) -> usize {
        let is_match = |pattern: &Pattern| self.records.iter().any(|record| pattern.matches(&record.name));
        priority.iter().position(is_match).unwrap_or(priority.len())
    }

    fn bytes_to_send(&self) -> u64 {
        self.blobs
            .iter()
            .filter(|step| step.action == BlobAction::Send)
            .map(|step| step.size)
            .sum()
    }
}

impl BlobStep {
    fn is_done(&self) -> bool {
        self.action != BlobAction::Send && self.lacking == 0
    }
}

/// Decides every step for `images`, given the survey of containerd.
#[must_use]
pub fn plan(images: &[&Taken], survey: &Survey, intent: &Intent) -> Plan {
    let sources = Sources::of(images);
    let mut images: Vec<_> = images
        .iter()
        .enumerate()
        .map(|(at, image)| plan_image(at, image, &sources, survey, intent))
        .collect();
    images.sort_by_cached_key(|image| (image.rank(&intent.priority), image.bytes_to_send()));
    Plan { images }
}

fn plan_image(
    index: usize,
    image: &Taken,
    sources: &Sources<'_>,
    survey: &Survey,
    intent: &Intent,
) -> ImagePlan {
    let mut plan = ImagePlan {
        index,
        blobs: plan_blobs(image, sources, survey),
        records: plan_records(image, survey, intent),
        platforms: image.closure.platforms.clone(),
        unpack: is_to_be_unpacked(image, survey, intent),
    };
    if plan.is_unwanted() {
        plan.blobs.clear();
        plan.unpack = false;
    } else if plan.is_done() {
        // The record and the labels keep the blobs, so they need no lease.
        for step in &mut plan.blobs {
            step.action = BlobAction::Leave;
        }
    }
    plan
}

fn is_to_be_unpacked(image: &Taken, survey: &Survey, intent: &Intent) -> bool {
    let there = image
        .closure
        .blobs
        .iter()
        .filter_map(|member| survey.blobs.get(&member.digest));
    let unpacker = intent.unpack.as_ref().map(|(unpacker, _)| unpacker);
    unpacker.is_some_and(|unpacker| !unpacker.is_unpacked(there, &survey.snapshots))
}

fn plan_records(image: &Taken, survey: &Survey, intent: &Intent) -> Vec<RecordStep> {
    let plan = |wanted: &NamedTarget| plan_record(wanted, survey.records.get(&wanted.name), intent);
    image.records.iter().map(plan).collect()
}

fn plan_blobs(image: &Taken, sources: &Sources<'_>, survey: &Survey) -> Vec<BlobStep> {
    let plan = |member: &Member| {
        let sources = sources.labels(&member.digest);
        plan_blob(member, sources, survey.blobs.get(&member.digest))
    };
    image.closure.blobs.iter().map(plan).collect()
}

fn plan_blob(member: &Member, sources: Arc<Labels>, there: Option<&BlobInfo>) -> BlobStep {
    let none = Labels::new();
    let there_labels = there.map_or(&none, |blob| &blob.labels);
    // A blob of another size under this digest is not this blob. When it is sent, containerd
    // refuses it.
    let action = if there.is_some() {
        BlobAction::Hold
    } else {
        BlobAction::Send
    };
    BlobStep {
        digest: member.digest.clone(),
        size: member.size,
        action,
        lacking: missing_labels(&member.children, &sources, there_labels).len(),
        sources,
        children: member.children.clone(),
    }
}

/// Returns the labels that a blob with the labels `there` lacks: labels about its children for the
/// gc, and labels about its origin for mirrors.
pub(crate) fn missing_labels(children: &[Child], sources: &Labels, there: &Labels) -> Labels {
    let mut missing = missing_gc_labels(children, there);
    missing.extend(labels::missing_sources(sources, there));
    missing
}
