//! The plan: every step of an import, decided before the first one is taken.
//!
//! Pure: what is selected and what is there go in, a printable value comes out, and whoever carries
//! it out has nothing left to decide. The same function serves the daemon, `import`, `import
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
    /// The images: those that come first, and among equals those with the fewest bytes to send.
    pub images: Vec<ImagePlan>,
}

/// The steps for one image.
#[derive(Clone, Debug)]
pub struct ImagePlan {
    /// Where the image stands in the list that was planned.
    pub index: usize,
    /// Its blobs, children before parents; none when all its names stay with others.
    pub blobs: Vec<BlobStep>,
    /// Its records, after all blobs.
    pub records: Vec<RecordStep>,
    /// Its platforms, best first.
    pub platforms: Vec<String>,
    /// Whether it is to be unpacked: that is wanted and has not been done.
    pub unpack: bool,
}

/// What happens to one blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobStep {
    /// The blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Whether it is sent.
    pub action: BlobAction,
    /// How many labels it lacks, for the gc and for `sources`; given with the commit when it is
    /// sent. Which they are is asked when they are written: names and layers of an image are a
    /// product that nothing bounds.
    pub lacking: usize,
    /// The labels that say where it is from, by the names of all images that have it; shared by
    /// blobs that have the same.
    pub sources: Arc<Labels>,
    /// What it refers to.
    pub children: Vec<Child>,
}

/// Whether and how a blob is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobAction {
    /// It is missing: its bytes are sent.
    Send,
    /// It is there, but its image is not complete yet: the lease keeps it.
    Hold,
    /// It is there and safe.
    Leave,
}

/// What happens to one image record.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordStep {
    /// Its name.
    pub name: String,
    /// What it points at afterwards.
    pub target: Arc<Descriptor>,
    /// What is done.
    pub action: RecordAction,
}

/// What is done to a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordAction {
    /// It does not exist: it is created with target, pin and source.
    Create(Labels),
    /// It points elsewhere: it is moved, with its labels, in one call.
    Retarget {
        /// What it points at now.
        from: Digest,
        /// The labels that change with it.
        labels: LabelChanges,
    },
    /// Only its labels lack something.
    Relabel(LabelChanges),
    /// Nothing.
    Unchanged,
    /// The name is taken by something else, and stays.
    Conflict {
        /// What it points at.
        with: Digest,
        /// Whether that makes the image a failed one.
        refuse: bool,
    },
    /// The name is not this bundle's to decide about; why.
    Leave(String),
}

impl RecordAction {
    /// Whether the record is written.
    #[must_use]
    pub fn writes(&self) -> bool {
        matches!(
            self,
            RecordAction::Create(_) | RecordAction::Retarget { .. } | RecordAction::Relabel(_)
        )
    }
}

impl Plan {
    /// Whether everything is in place: nothing is leased and nothing is written.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.images.iter().all(ImagePlan::is_done)
    }

    /// How many records are made that are not there.
    #[must_use]
    pub fn new_records(&self) -> usize {
        let steps = self.images.iter().flat_map(|image| &image.records);
        let new = steps.filter(|step| matches!(step.action, RecordAction::Create(_)));
        new.map(|step| &step.name).collect::<HashSet<_>>().len()
    }

    /// How many bytes have to be sent, each blob counted once.
    #[must_use]
    pub fn bytes_to_send(&self) -> u64 {
        self.blobs_to_send().iter().map(|(_, size)| size).sum()
    }

    /// The blobs that have to be sent, each once, with their sizes in bytes.
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
    /// Whether its blobs, their labels and its records are all as they should be.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.blobs.iter().all(BlobStep::is_done) && !self.records.iter().any(|record| record.action.writes())
    }

    /// Whether all its names belong to others and stay with them: blobs that no record of ours
    /// keeps are not sent.
    fn is_unwanted(&self) -> bool {
        self.records.iter().all(|record| {
            matches!(
                record.action,
                RecordAction::Conflict { .. } | RecordAction::Leave(_)
            )
        })
    }

    /// The first pattern that one of its names matches, by position.
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

/// Decides every step for `images`, given what is there.
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
        // The record and the labels keep the blobs: there is nothing to protect them from.
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
    // A blob of another size under this digest is not the blob: sending it makes containerd say so.
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

/// The labels that a blob with the labels `there` lacks: of its children, for the gc, and of where
/// it is from, for mirrors.
pub(crate) fn missing_labels(children: &[Child], sources: &Labels, there: &Labels) -> Labels {
    let mut missing = missing_gc_labels(children, there);
    missing.extend(labels::missing_sources(sources, there));
    missing
}
