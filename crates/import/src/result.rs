//! The result of a bundle, image by image, as values. The ledger keeps the values, and the report
//! is made from them.
//!
//! This file has the values and derives each from a selection and the ingested images. No other
//! module makes an outcome.

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

/// The result of a whole bundle, in the words of reports and of `state.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Everything this node can run is in place, and something was written for it.
    Imported,
    /// Everything was in place already.
    Unchanged,
    /// Some images are in place, others failed.
    Partial,
    /// The bundle is sound, and nothing in it is for this node.
    Skipped,
    /// No image is in place.
    Failed,
}

/// The cause of a failure, in the terms that matter to a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The bundle itself is bad.
    Bundle,
    /// The file could not be read, or changed while it was read.
    File,
    /// containerd could not be reached.
    Unreachable,
    /// Something else: a refused name, no space, an error inside containerd.
    Other,
}

impl Cause {
    /// Returns the cause of a bundle that could not be opened: the bundle itself, or its file.
    pub fn of(error: &bundle::Error) -> Cause {
        match error.fault {
            bundle::Fault::Io { .. } | bundle::Fault::NotAFile(_) | bundle::Fault::Changed => Cause::File,
            // The bundle is sound, and its file can be imported.
            bundle::Fault::Piped(_) => Cause::Other,
            _ => Cause::Bundle,
        }
    }
}

/// The result of a bundle, as values.
#[derive(Clone, Debug)]
pub struct BundleResult {
    /// The bundle's file.
    pub path: PathBuf,
    /// The layout of the archive. `None` if the file could not be read.
    pub format: Option<String>,
    /// The compression of the archive. `None` if the file could not be read.
    pub compression: Option<String>,
    /// The result as a whole.
    pub outcome: Outcome,
    /// The reason why the import stopped, in one line.
    pub error: Option<String>,
    /// One entry for each record, and one for each image without records.
    pub images: Vec<ImageResult>,
    /// Numbers of sent and present blobs.
    pub blobs: BlobCounts,
    /// The result of unpacking in advance. `None` if no image was to be unpacked.
    pub unpacked: Option<UnpackCounts>,
    /// The forecast for containerd's disk, made before the import. `None` if nothing was to be
    /// sent, or if the disk is not visible.
    pub space: Option<Forecast>,
    /// Duration of the import in milliseconds.
    pub duration_ms: u64,
    /// Remarks on the archive that the operator should know, although they stop nothing.
    pub warnings: Vec<String>,
    /// The cause of the failure.
    pub cause: Option<Cause>,
    /// True if a retry with the same file may help.
    pub retry: bool,
}

/// The result of unpacking images.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UnpackCounts {
    /// Number of images that are unpacked now.
    pub images: u64,
    /// Number of layers that this import unpacked. Layers unpacked earlier do not count.
    pub layers: u64,
    /// The images that could not be unpacked.
    pub failed: Vec<UnpackFailure>,
}

/// An image that could not be unpacked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnpackFailure {
    /// The image's first name.
    pub name: String,
    /// The reason, which names the layer.
    pub reason: String,
}

/// The result of a record, or of an image without a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageResult {
    /// Index of the record's image, counted from 0 in the order of the bundle.
    pub image: usize,
    /// The record's name. Without a record, the archive's name of the image.
    pub name: String,
    /// The digest of the record's target.
    pub target: Digest,
    /// The media type of the record's target.
    pub media_type: MediaType,
    /// The platforms that are in place, best first.
    pub platforms: Vec<String>,
    /// The result.
    pub outcome: ImageOutcome,
    /// The reason, if the result needs one.
    pub reason: Option<String>,
    /// The former target of a moved record.
    pub previous: Option<Digest>,
}

/// The result of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageOutcome {
    /// The record is new.
    Created,
    /// The record now points to the image, and pointed to another image before.
    Retargeted,
    /// The record's pin or source label was missing.
    Relabelled,
    /// The record was in place.
    Unchanged,
    /// The image is sound and has no record. The reason says why.
    Skipped,
    /// The image could not be recorded. The reason says why.
    Failed,
}

impl ImageResult {
    /// Returns name and reason in one line. The name appears once.
    #[must_use]
    pub fn in_words(&self) -> String {
        named(&self.name, self.reason.as_deref().unwrap_or_default())
    }
}

/// Returns a reason with the name of its image. A reason that already names the image stays
/// unchanged.
#[must_use]
pub fn named(image: &str, reason: &str) -> String {
    match reason {
        "" => image.to_owned(),
        _ if reason.contains(image) => reason.to_owned(),
        _ => format!("{image}: {reason}"),
    }
}

impl ImageOutcome {
    /// Returns the outcome's word in documents and logs.
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

    /// Returns true if the image can be used under this name.
    #[must_use]
    pub fn is_in_place(self) -> bool {
        !matches!(self, ImageOutcome::Skipped | ImageOutcome::Failed)
    }
}

/// Blobs of a bundle, each counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlobCounts {
    /// Number of blobs sent to containerd.
    pub sent: u64,
    /// Number of bytes sent.
    pub sent_bytes: u64,
    /// Number of needed blobs that were already in containerd.
    pub present: u64,
    /// Size of those blobs in bytes.
    pub present_bytes: u64,
    /// Number of blobs in the bundle that this node does not need.
    pub not_needed: u64,
    /// Size of those blobs in bytes.
    pub not_needed_bytes: u64,
}

impl Outcome {
    /// Returns the outcome's word in documents and logs.
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
    /// Gives images that lack one of these blobs the reason of that blob.
    #[must_use]
    pub fn with_reasons(mut self, left_out: &HashMap<Digest, String>) -> BundleResult {
        for reason in self.images.iter_mut().filter_map(|image| image.reason.as_mut()) {
            let mut reasons = left_out.iter();
            if let Some((_, why)) = reasons.find(|(digest, _)| reason.contains(digest.as_ref())) {
                self.error = self.error.map(|error| error.replace(&*reason, why));
                reason.clone_from(why);
            }
        }
        self
    }

    /// Returns the result of a file that is no readable bundle.
    #[must_use]
    pub fn unreadable(path: &Path, error: &bundle::Error, took: Duration) -> BundleResult {
        BundleResult {
            error: Some(chain(error)),
            cause: Some(Cause::of(error)),
            ..BundleResult::empty(path, Outcome::Failed, took)
        }
    }

    /// Returns the result of a bundle that is not imported, although it may be sound. A rule of the
    /// node forbids it, or its bytes do not match the expected digest.
    #[must_use]
    pub fn refused(path: &Path, reason: String, cause: Cause, took: Duration) -> BundleResult {
        BundleResult {
            error: Some(reason),
            cause: Some(cause),
            ..BundleResult::empty(path, Outcome::Failed, took)
        }
    }

    /// Returns the result of a bundle that was not tried, because of `error`.
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

    /// Returns the same result, where blobs that were sent before the plan count as sent. `sent`
    /// has the number of bytes for each.
    #[must_use]
    pub fn with_sent(mut self, selection: &Selection, sent: &HashMap<Digest, u64>) -> BundleResult {
        let blobs = selection.taken().flat_map(|taken| &taken.closure.blobs);
        let needed: HashMap<&Digest, u64> = blobs.map(|blob| (&blob.digest, blob.size)).collect();
        for (digest, bytes) in sent {
            if let Some(size) = needed.get(digest) {
                self.blobs.present = self.blobs.present.saturating_sub(1);
                self.blobs.present_bytes = self.blobs.present_bytes.saturating_sub(*size);
                self.blobs.sent += 1;
                self.blobs.sent_bytes += bytes;
            }
        }
        self
    }

    /// Returns the same result with the forecast for containerd's disk.
    #[must_use]
    pub fn with_forecast(mut self, forecast: Option<Forecast>) -> BundleResult {
        self.space = forecast;
        self
    }

    /// Returns the warnings about the archive and those about the disk after the import.
    #[must_use]
    pub fn all_warnings(&self) -> Vec<String> {
        let foreseen = self.space.iter().flat_map(Forecast::warnings);
        let foreseen = foreseen.map(|(_, warning)| warning);
        self.warnings.iter().cloned().chain(foreseen).collect()
    }

    /// Returns the entries to report, in the order of the bundle. If records of one image have the
    /// same failure, only the first of them is reported.
    pub fn told(&self) -> impl Iterator<Item = &ImageResult> {
        let mut last = None;
        self.images.iter().filter(move |image| {
            let failure = (image.outcome == ImageOutcome::Failed).then_some((image.image, &image.reason));
            let is_new = failure.is_none() || failure != last;
            last = failure;
            is_new
        })
    }

    /// Returns true if at least one image is in place.
    #[must_use]
    pub fn landed(&self) -> bool {
        self.images.iter().any(|image| image.outcome.is_in_place())
    }

    /// Returns the names and targets of the records that are in place.
    pub fn landed_records(&self) -> impl Iterator<Item = (String, Digest)> {
        let landed = self.images.iter().filter(|image| image.outcome.is_in_place());
        landed.map(|image| (image.name.clone(), image.target.clone()))
    }

    /// Returns the result of a plan that was carried out.
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

/// Returns the remarks on the archive, and on imported images.
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

/// Returns the cause of failed images. The bundle is to blame unless every failure has another
/// reason. Such reasons are a name that is taken and a refusal of containerd.
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

/// Returns the result of the bundle. `sent` is true if any blob was sent.
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

/// Returns the result of each record, and of each image without records. `file` is the bundle's
/// name, fit to print.
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
            Verdict::Forbidden(reason) => {
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

/// Lists the first few problems and the number of the rest. An image may have a problem for each of
/// thousands of layers.
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

/// Returns a problem of an image that cannot run, with the remedy.
fn told(problem: &Problem, choice: &Choice, file: &str) -> String {
    match &problem.damage {
        Some(damage) => damage.told(&choice.label, file),
        None => problem.to_string(),
    }
}

/// Returns the reason why an image has no record, in one line.
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
                .map_or_else(|| "the import stopped before it".to_owned(), |error| chain(error)),
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
            "another program uses the name for {with} (onConflict decides)"
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

/// Collects every blob of the bundle that the tree of an image names.
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
