//! What became of a bundle, image by image, as values: the ledger keeps them, and the report is made of them last.
//!
//! One file has the values and how each follows from a selection and what was ingested, so that no outcome is made elsewhere.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use basics::{Foreign, chain};
use bundle::{Bundle, Catalog, Content, Node, PartState};
use oci_spec::image::{Descriptor, Digest, MediaType};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::ingest::{Failure, Ingested, IngestedImage, RecordOutcome};
use crate::plan::{RecordAction, RecordStep};
use crate::select::{Choice, Damage, Problem, Selection, Taken, Verdict};
use crate::space::Forecast;
use crate::unpack::Unpacked;

/// What became of a bundle as a whole, in the words of reports and of `state.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Everything this node can run is in place, and something was written for it.
    Imported,
    /// Everything was in place already.
    Unchanged,
    /// Some images are in place, others failed.
    Partial,
    /// Nothing is wrong with it, and nothing of it is for this node.
    Skipped,
    /// Nothing landed.
    Failed,
}

/// Why something failed, as far as it matters to whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The bundle itself is bad.
    Bundle,
    /// The file could not be read, or changed while it was.
    File,
    /// containerd could not be reached.
    Unreachable,
    /// Something else: a refused name, no space, an error inside containerd.
    Other,
}

impl Cause {
    /// Why a bundle could not be opened: its own fault, or that of the file it is in.
    pub fn of(error: &bundle::Error) -> Cause {
        match error.fault {
            bundle::Fault::Io { .. } | bundle::Fault::NotAFile(_) | bundle::Fault::Changed => Cause::File,
            _ => Cause::Bundle,
        }
    }
}

/// What became of a bundle, as values.
#[derive(Clone, Debug)]
pub struct BundleResult {
    /// The file.
    pub path: PathBuf,
    /// How the archive is laid out; absent when it could not be read.
    pub format: Option<String>,
    /// How it is compressed; absent when it could not be read.
    pub compression: Option<String>,
    /// The result as a whole.
    pub outcome: Outcome,
    /// What stopped it, in one line.
    pub error: Option<String>,
    /// One entry for each record, and one for each image that has none.
    pub images: Vec<ImageResult>,
    /// What was moved.
    pub blobs: BlobCounts,
    /// What was unpacked ahead; absent where nothing was to be.
    pub unpacked: Option<UnpackCounts>,
    /// What that meant for containerd's disk before it began; absent where nothing was to be sent or nobody can tell.
    pub space: Option<Forecast>,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// What the operator should know of the archive although it stops nothing.
    pub warnings: Vec<String>,
    /// Why it failed.
    pub cause: Option<Cause>,
    /// Whether trying again without a change of the file may help.
    pub retry: bool,
}

/// What became of the images that were to be unpacked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UnpackCounts {
    /// Images that are unpacked now.
    pub images: u64,
    /// Layers that were unpacked for that; others were before.
    pub layers: u64,
    /// Images that could not be.
    pub failed: Vec<UnpackFailure>,
}

/// An image that could not be unpacked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnpackFailure {
    /// Its first name.
    pub name: String,
    /// Why, naming the layer.
    pub reason: String,
}

/// What became of a record, or of an image without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageResult {
    /// Which image of the bundle it is of, counted from nought in the order of the bundle.
    pub image: usize,
    /// The record's name; what the archive calls the image when there is no record.
    pub name: String,
    /// The digest of its target.
    pub target: Digest,
    /// The media type of its target.
    pub media_type: MediaType,
    /// The platforms that are in place, best first.
    pub platforms: Vec<String>,
    /// What was done.
    pub outcome: ImageOutcome,
    /// Why, where that needs saying.
    pub reason: Option<String>,
    /// What a moved record pointed at before.
    pub previous: Option<Digest>,
}

/// What was done for a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageOutcome {
    /// It is new.
    Created,
    /// It points at the image now, and at something else before.
    Retargeted,
    /// Its pin or source label was missing.
    Relabelled,
    /// It was in place.
    Unchanged,
    /// It is sound and not recorded; the reason says why.
    Skipped,
    /// It could not be recorded; the reason says why.
    Failed,
}

impl ImageResult {
    /// Its name and why, in one line; the name stands there once.
    #[must_use]
    pub fn in_words(&self) -> String {
        named(&self.name, self.reason.as_deref().unwrap_or_default())
    }
}

/// A reason with the image that it is of. A reason that names the image itself stays as it is.
#[must_use]
pub fn named(image: &str, reason: &str) -> String {
    match reason {
        "" => image.to_owned(),
        _ if reason.contains(image) => reason.to_owned(),
        _ => format!("{image}: {reason}"),
    }
}

impl ImageOutcome {
    /// The word for it in documents and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ImageOutcome::Created => "created",
            ImageOutcome::Retargeted => "retargeted",
            ImageOutcome::Relabelled => "relabelled",
            ImageOutcome::Unchanged => "unchanged",
            ImageOutcome::Skipped => "skipped",
            ImageOutcome::Failed => "failed",
        }
    }

    /// Whether the image can be used under this name.
    #[must_use]
    pub fn is_in_place(self) -> bool {
        !matches!(self, ImageOutcome::Skipped | ImageOutcome::Failed)
    }
}

/// Blobs of a bundle, each counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlobCounts {
    /// Sent to containerd.
    pub sent: u64,
    /// Bytes that went over the wire.
    pub sent_bytes: u64,
    /// Needed and there already.
    pub present: u64,
    /// Their bytes.
    pub present_bytes: u64,
    /// In the bundle and not needed on this node.
    pub not_needed: u64,
    /// Their bytes.
    pub not_needed_bytes: u64,
}

impl Outcome {
    /// The word for it in documents and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Imported => "imported",
            Outcome::Unchanged => "unchanged",
            Outcome::Partial => "partial",
            Outcome::Skipped => "skipped",
            Outcome::Failed => "failed",
        }
    }
}

impl BundleResult {
    /// The result of a file that is no readable bundle.
    #[must_use]
    pub fn unreadable(path: &Path, error: &bundle::Error, took: Duration) -> BundleResult {
        BundleResult {
            error: Some(chain(error)),
            cause: Some(Cause::of(error)),
            ..BundleResult::empty(path, Outcome::Failed, took)
        }
    }

    /// The result of a bundle that is not imported although it may be sound: a rule of the node is against it, or its
    /// bytes are not those it should have.
    #[must_use]
    pub fn refused(path: &Path, reason: String, cause: Cause, took: Duration) -> BundleResult {
        BundleResult {
            error: Some(reason),
            cause: Some(cause),
            ..BundleResult::empty(path, Outcome::Failed, took)
        }
    }

    /// The result of a bundle that was not tried, because of `error`.
    #[must_use]
    pub fn untried(path: &Path, error: &Error, took: Duration) -> BundleResult {
        let cause = Some(error.cause());
        BundleResult {
            error: Some(chain(error)),
            cause,
            retry: error.is_transient(),
            ..BundleResult::empty(path, Outcome::Failed, took)
        }
    }

    fn empty(path: &Path, outcome: Outcome, took: Duration) -> BundleResult {
        BundleResult {
            path: path.to_owned(),
            format: None,
            compression: None,
            outcome,
            error: None,
            images: Vec::new(),
            blobs: BlobCounts::default(),
            unpacked: None,
            space: None,
            duration_ms: basics::milliseconds(took),
            warnings: Vec::new(),
            cause: None,
            retry: false,
        }
    }

    /// The same with what was foreseen for containerd's disk.
    #[must_use]
    pub fn with_forecast(mut self, forecast: Option<Forecast>) -> BundleResult {
        self.space = forecast;
        self
    }

    /// Everything that the operator should know although it stops nothing: of the archive, and of how full the disk gets.
    #[must_use]
    pub fn all_warnings(&self) -> Vec<String> {
        let foreseen = self.space.iter().flat_map(Forecast::warnings);
        let foreseen = foreseen.map(|(_, warning)| warning);
        self.warnings.iter().cloned().chain(foreseen).collect()
    }

    /// What there is to tell, in the order of the bundle: each record, but for the same failure of an image's records
    /// only the first of them.
    pub fn told(&self) -> impl Iterator<Item = &ImageResult> {
        let mut last = None;
        self.images.iter().filter(move |image| {
            let failure = (image.outcome == ImageOutcome::Failed).then_some((image.image, &image.reason));
            let is_new = failure.is_none() || failure != last;
            last = failure;
            is_new
        })
    }

    /// Whether at least one image is in place.
    #[must_use]
    pub fn landed(&self) -> bool {
        self.images.iter().any(|image| image.outcome.is_in_place())
    }

    /// The result of a plan that was carried out.
    #[must_use]
    pub fn of(bundle: &Bundle, selection: &Selection, ingested: &Ingested, took: Duration) -> BundleResult {
        let file = bundle.path().file_name().unwrap_or(bundle.path().as_os_str());
        let images = image_results(selection, ingested, &Foreign::file_name(file).to_string());
        let stopped = ingested.stopped.as_ref();
        let failed = images.iter().any(|image| image.outcome == ImageOutcome::Failed);
        let mut report = BundleResult {
            format: Some(bundle.catalog().format.to_string()),
            compression: Some(bundle.catalog().compression.to_string()),
            outcome: outcome_of(&images, !ingested.sent.is_empty()),
            error: stopped.map(|error| chain(error)),
            blobs: count_blobs(bundle.catalog(), selection, ingested),
            unpacked: unpack_counts(selection, &ingested.unpacked),
            warnings: warnings(bundle.catalog(), selection),
            cause: stopped
                .map(Error::cause)
                .or_else(|| failed.then(|| failure_cause(selection, ingested))),
            retry: stopped.is_some_and(Error::is_transient),
            images,
            ..BundleResult::empty(bundle.path(), Outcome::Failed, took)
        };
        if report.error.is_none() && matches!(report.outcome, Outcome::Failed) {
            let reasoned = report.images.iter().find(|image| image.reason.is_some());
            report.error = reasoned.map(ImageResult::in_words);
        }
        report
    }
}

fn unpack_counts(selection: &Selection, ended: &[(usize, Result<Unpacked, String>)]) -> Option<UnpackCounts> {
    let taken: Vec<&Taken> = selection.taken().collect();
    let mut report = UnpackCounts::default();
    for (index, unpacked) in ended {
        match unpacked {
            Ok(unpacked) => {
                report.images += 1;
                report.layers += unpacked.layers;
            }
            Err(reason) => report.failed.push(UnpackFailure {
                name: taken[*index].records[0].name.clone(),
                reason: reason.clone(),
            }),
        }
    }
    (!ended.is_empty()).then_some(report)
}

/// Remarks on the archive, and on images that are taken although there is something to say.
fn warnings(catalog: &Catalog, selection: &Selection) -> Vec<String> {
    let archive = catalog.warnings.iter().map(ToString::to_string);
    let taken = selection
        .choices
        .iter()
        .filter(|choice| matches!(choice.verdict, Verdict::Take(_)));
    let images = taken.flat_map(|choice| {
        choice
            .notes
            .iter()
            .map(|note| format!("{}: {note}", choice.label))
    });
    archive.chain(images).collect()
}

/// The bundle is to blame unless every failure has another reason: a name that is taken, a refusal of containerd.
fn failure_cause(selection: &Selection, ingested: &Ingested) -> Cause {
    let broken = selection
        .choices
        .iter()
        .any(|choice| matches!(choice.verdict, Verdict::Broken(_)));
    let damaged = ingested
        .images
        .iter()
        .any(|image| image.records.as_ref().is_err_and(|failure| failure.is_content));
    if broken || damaged {
        Cause::Bundle
    } else {
        Cause::Other
    }
}

/// What became of the bundle, given its images and whether any blob was sent.
fn outcome_of(images: &[ImageResult], sent: bool) -> Outcome {
    let any = |wanted: fn(&ImageOutcome) -> bool| images.iter().any(|image| wanted(&image.outcome));
    let landed = any(|outcome| outcome.is_in_place());
    let failed = any(|outcome| *outcome == ImageOutcome::Failed);
    match (landed, failed) {
        (true, true) => Outcome::Partial,
        (false, true) => Outcome::Failed,
        (false, false) => Outcome::Skipped,
        (true, false) if sent || any(|o| o.is_in_place() && *o != ImageOutcome::Unchanged) => {
            Outcome::Imported
        }
        (true, false) => Outcome::Unchanged,
    }
}

/// What became of each record, and of each image without one. `file` is what the bundle is called, fit to print.
pub(crate) fn image_results(selection: &Selection, ingested: &Ingested, file: &str) -> Vec<ImageResult> {
    let by_index: HashMap<usize, &IngestedImage> =
        ingested.images.iter().map(|image| (image.index, image)).collect();
    let mut taken_index = 0..;
    let mut results = Vec::new();
    for (number, choice) in selection.choices.iter().enumerate() {
        let before = results.len();
        match &choice.verdict {
            Verdict::Skip(skip) => {
                results.push(without_record(choice, ImageOutcome::Skipped, &skip.to_string()));
            }
            Verdict::Forbidden => {
                let reason = "a bundle may not name it so";
                results.push(without_record(choice, ImageOutcome::Failed, reason));
            }
            Verdict::Broken(problems) => {
                let told: Vec<String> = problems
                    .iter()
                    .map(|problem| told(problem, choice, file))
                    .collect();
                results.push(without_record(choice, ImageOutcome::Failed, &in_short(&told)));
            }
            Verdict::Take(taken) => {
                let index = taken_index.next().expect("there are fewer images than numbers");
                results.extend(taken_results(
                    taken,
                    by_index.get(&index).copied(),
                    ingested,
                    file,
                ));
            }
        }
        results[before..]
            .iter_mut()
            .for_each(|result| result.image = number);
    }
    results
}

/// Names the first few of many problems, and counts the others: an image may have one for each of thousands of layers.
#[must_use]
pub fn in_short<T: ToString>(problems: &[T]) -> String {
    const NAMED: usize = 20;
    let named: Vec<String> = problems.iter().take(NAMED).map(ToString::to_string).collect();
    let named = named.join("; ");
    match problems.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named}; and {more} more"),
    }
}

fn without_record(choice: &Choice, outcome: ImageOutcome, reason: &str) -> ImageResult {
    let notes = match choice.notes.as_slice() {
        [] => String::new(),
        notes => format!("; {}", in_short(notes)),
    };
    entry(
        &choice.label,
        &choice.target,
        &[],
        outcome,
        Some(format!("{reason}{notes}")),
    )
}

/// A problem of an image that cannot run, with what to do about it.
fn told(problem: &Problem, choice: &Choice, file: &str) -> String {
    match &problem.damage {
        Some(damage) => damage.told(&choice.label, file),
        None => problem.to_string(),
    }
}

/// Why nothing came of an image, in one line.
fn reason_of(failure: &Failure, taken: &Taken, file: &str) -> String {
    let Some(digest) = &failure.damaged else {
        return failure.reason.clone();
    };
    let damage = Damage {
        part: taken.closure.part(digest),
        why: failure.reason.clone(),
    };
    damage.told(&taken.records[0].name, file)
}

fn taken_results(
    taken: &Taken,
    result: Option<&IngestedImage>,
    ingested: &Ingested,
    file: &str,
) -> Vec<ImageResult> {
    let failed = |reason: &str| {
        let all = taken.records.iter();
        all.map(|r| {
            entry(
                &r.name,
                &r.target,
                &[],
                ImageOutcome::Failed,
                Some(reason.to_owned()),
            )
        })
        .collect()
    };
    match result.map(|result| &result.records) {
        Some(Ok(records)) => records
            .iter()
            .map(|(step, outcome)| record_result(step, outcome, taken))
            .collect(),
        Some(Err(failure)) => failed(&reason_of(failure, taken, file)),
        None => failed(
            &ingested
                .stopped
                .as_ref()
                .map_or_else(|| "not reached".to_owned(), |error| chain(error)),
        ),
    }
}

fn record_result(step: &RecordStep, outcome: &RecordOutcome, taken: &Taken) -> ImageResult {
    let (outcome, reason) = match outcome {
        RecordOutcome::Created => (ImageOutcome::Created, None),
        RecordOutcome::Retargeted => (ImageOutcome::Retargeted, None),
        RecordOutcome::Relabelled => (ImageOutcome::Relabelled, None),
        RecordOutcome::Unchanged => (ImageOutcome::Unchanged, None),
        RecordOutcome::Left { refused: true } => (ImageOutcome::Failed, taken_by(&step.action)),
        RecordOutcome::Left { refused: false } => (ImageOutcome::Skipped, taken_by(&step.action)),
        RecordOutcome::Rejected(reason) => (ImageOutcome::Failed, Some(reason.clone())),
    };
    let in_place = if outcome.is_in_place() {
        taken.closure.platforms.as_slice()
    } else {
        &[]
    };
    let mut result = entry(&step.name, &step.target, in_place, outcome, reason);
    if let RecordAction::Retarget { from, .. } = &step.action {
        result.previous = Some(from.clone());
    }
    result
}

fn taken_by(action: &RecordAction) -> Option<String> {
    match action {
        RecordAction::Conflict { with, .. } => Some(format!(
            "the name is taken by {with}, which is not ours (onConflict decides)"
        )),
        RecordAction::Leave(why) => Some(why.clone()),
        _ => None,
    }
}

fn entry(
    name: &str,
    target: &Descriptor,
    platforms: &[String],
    outcome: ImageOutcome,
    reason: Option<String>,
) -> ImageResult {
    ImageResult {
        image: 0,
        name: name.to_owned(),
        target: target.digest().clone(),
        media_type: target.media_type().clone(),
        platforms: platforms.to_vec(),
        outcome,
        reason,
        previous: None,
    }
}

fn count_blobs(catalog: &Catalog, selection: &Selection, ingested: &Ingested) -> BlobCounts {
    let mut counts = BlobCounts::default();
    let mut needed: HashSet<&Digest> = HashSet::new();
    for blob in selection.taken().flat_map(|taken| &taken.closure.blobs) {
        if !needed.insert(&blob.digest) {
            continue;
        }
        if let Some(bytes) = ingested.sent.get(&blob.digest) {
            counts.sent += 1;
            counts.sent_bytes += bytes;
        } else if ingested.present.contains(&blob.digest) {
            counts.present += 1;
            counts.present_bytes += blob.size;
        }
    }
    let mut held = HashMap::new();
    catalog
        .images
        .iter()
        .for_each(|image| blobs_below(&image.root, &mut held));
    for (_, size) in held.into_iter().filter(|(digest, _)| !needed.contains(digest)) {
        counts.not_needed += 1;
        counts.not_needed_bytes += size;
    }
    counts
}

/// Every blob of the bundle that the tree of an image names.
fn blobs_below<'n>(node: &'n Node, held: &mut HashMap<&'n Digest, u64>) {
    let mut add = |descriptor: &'n Descriptor| held.insert(descriptor.digest(), descriptor.size());
    match &node.content {
        Content::Absent | Content::Broken(_) => {}
        Content::Other => drop(add(&node.descriptor)),
        Content::Manifest(manifest) => {
            add(&node.descriptor);
            let parts = manifest.layers.iter().chain([&manifest.config]);
            for part in parts.filter(|part| matches!(part.state, PartState::Present)) {
                add(&part.descriptor);
            }
        }
        Content::Index(children) => {
            add(&node.descriptor);
            children.iter().for_each(|child| blobs_below(child, held));
        }
    }
}
