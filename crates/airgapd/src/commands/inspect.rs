//! `airgapd inspect`: shows the content of a bundle, the images that this node would take, and if
//! the bundle is whole.
//!
//! It works without containerd: the node's platform is detected from the machine.

mod verify;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bundle::{
    BlobRef, Bundle, Catalog, Content, Ending, Kind, Manifest, Member, Node, Part, PartState, RawName,
    Release, Reliance,
};
use import::select::Choice;
use import::{Policy, Selection, Verdict, select};
use oci_spec::image::Digest;
use serde::Serialize;

use self::verify::{Damage, Verification};
use super::{Call, Exit, Refusal, digests};
use crate::cli::{InspectArgs, OutputFormat};
use crate::output::{self, Page, paragraph};
use crate::progress::Progress;
use node::progress::Doing;

/// The document that `airgapd inspect -o json` prints for one bundle.
#[derive(Debug, Serialize)]
pub(crate) struct Inspection {
    path: PathBuf,
    format: String,
    compression: String,
    /// Digest that identifies the content.
    digest: String,
    size: u64,
    /// True if all images that this node could run are whole. A delta counts with its base.
    complete: bool,
    /// Base that a delta needs for its import.
    relies_on: Option<InspectedBase>,
    /// Release that the bundle belongs to.
    release: Option<InspectedRelease>,
    /// Result of `--verify`.
    verified: Option<Verification>,
    /// Reasons why it is not complete, and other notes.
    warnings: Vec<String>,
    images: Vec<InspectedImage>,
    /// Always `None`: an unreadable file has its own document.
    error: Option<String>,
}

/// The base of a delta.
#[derive(Debug, Serialize)]
struct InspectedBase {
    /// Name of the base: a bundle's file name, or a node.
    base: String,
    /// Layers that are not in the bundle.
    blobs: Vec<BlobRef>,
    /// Bytes of all these layers.
    bytes: u64,
}

/// The release of a bundle.
#[derive(Debug, Serialize)]
struct InspectedRelease {
    name: String,
    /// Digest of the list of members. `None` if the list is unusable.
    list: Option<String>,
    /// The members, sorted by name. Empty if the list is unusable.
    members: Vec<Member>,
    /// Reason why the list is unusable.
    problem: Option<String>,
}

/// The document for an unreadable file, with the reason.
#[derive(Debug, Serialize)]
struct Unreadable<'a> {
    path: &'a Path,
    complete: bool,
    error: String,
}

#[derive(Debug, Serialize)]
struct InspectedImage {
    /// Names as the archive has them.
    names: Vec<String>,
    digest: String,
    media_type: String,
    /// Records that this node would have.
    records: Vec<String>,
    /// `take`, `skip` or `broken`.
    verdict: &'static str,
    reason: Option<String>,
    notes: Vec<String>,
    platforms: Vec<InspectedPlatform>,
}

#[derive(Debug, Serialize)]
struct InspectedPlatform {
    platform: String,
    digest: String,
    /// True if this node takes it.
    taken: bool,
    /// Reason if this node does not take it.
    reason: Option<&'static str>,
    /// `whole`, `absent`, `broken`, or the type of an artifact.
    state: String,
    problems: Vec<String>,
    /// Platform in the config, if it differs from the descriptor.
    config_platform: Option<String>,
    layers: usize,
    /// Bytes of manifest, config and layers.
    size: u64,
    /// The config, then the layers from the lowest.
    blobs: Vec<InspectedBlob>,
}

#[derive(Debug, Serialize)]
struct InspectedBlob {
    digest: String,
    media_type: String,
    size: u64,
    /// `present`, `absent`, `broken`, or `relied-on` (left out of a delta).
    state: &'static str,
}

impl Inspection {
    /// Inspects a bundle by the policy of a node.
    pub(crate) fn of(bundle: &Bundle, policy: &Policy) -> Inspection {
        let catalog = &bundle.catalog().with_its_base();
        let selection = select(catalog, policy);
        let mut warnings: Vec<String> = catalog.warnings.iter().map(ToString::to_string).collect();
        match &catalog.ending {
            Ending::Marker => {}
            Ending::NoMarker => {
                warnings.push("the archive has no end marker: it may have been cut off".to_owned());
            }
            Ending::Truncated(cut) => warnings.push(cut.to_string()),
        }
        let images: Vec<_> = selection
            .choices
            .iter()
            .map(|choice| inspect_image(choice, catalog))
            .collect();
        Inspection {
            path: bundle.path().to_owned(),
            format: catalog.format.to_string(),
            compression: catalog.compression.to_string(),
            digest: catalog.digest.to_string(),
            size: bundle.identity().size,
            complete: is_complete(&selection) && !matches!(catalog.ending, Ending::Truncated(_)),
            relies_on: catalog.relies_on.as_ref().map(InspectedBase::of),
            release: catalog.release.as_ref().map(InspectedRelease::of),
            verified: None,
            warnings,
            images,
            error: None,
        }
        .with_marks()
    }

    /// Marks the layers that a delta leaves to its base.
    fn with_marks(mut self) -> Inspection {
        let relied_on = self.relies_on.iter().flat_map(|base| &base.blobs);
        let relied_on: HashSet<&str> = relied_on.map(|blob| blob.digest.as_ref()).collect();
        let platforms = self.images.iter_mut().flat_map(|image| &mut image.platforms);
        for blob in platforms.flat_map(|platform| &mut platform.blobs) {
            if relied_on.contains(blob.digest.as_str()) {
                blob.state = "relied-on";
            }
        }
        self
    }

    /// Adds the result of the verification.
    fn with_verification(mut self, verified: Verification) -> Inspection {
        self.complete &= verified.is_good();
        for damage in &verified.damaged {
            self.images.iter_mut().for_each(|image| image.lose(damage));
        }
        self.verified = Some(verified);
        self
    }

    /// Returns true if all images for the node are whole.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Returns the images that a node would not take, by name or digest, each with the reason.
    /// Images for which `is_excepted` is true are left out.
    pub(crate) fn refused(&self, is_excepted: impl Fn(&str) -> bool) -> Vec<String> {
        let images = self.images.iter().filter(|image| !is_excepted(&image.digest));
        let refused = images.filter(|image| image.verdict != "take");
        let told = refused.map(|image| {
            let name = image.names.first().unwrap_or(&image.digest);
            format!("{name}: {}", image.reason.as_deref().unwrap_or(image.verdict))
        });
        told.collect()
    }

    /// Returns the inspection as text for people, at most 100 characters wide.
    pub(crate) fn text(&self) -> Page {
        let mut text = Page::new();
        let out = &mut text;
        let whole = if self.complete { "whole" } else { "NOT WHOLE" };
        let packed = match self.compression.as_str() {
            "none" => String::new(),
            codec => format!(", {codec}"),
        };
        let path = basics::Foreign::file_name(self.path.as_os_str());
        let size = crate::output::bytes(self.size);
        let title = format!("{path}: {}{packed}, {size}, {whole}", self.format);
        paragraph(out, "", &title);
        paragraph(out, "  content  ", &self.digest);
        if let Some(base) = &self.relies_on {
            paragraph(out, "  delta on ", &base.text());
        }
        if let Some(release) = &self.release {
            paragraph(out, "  release  ", &release.text());
        }
        if let Some(verified) = &self.verified {
            write_verification(out, verified);
        }
        for warning in &self.warnings {
            paragraph(out, "  warning  ", warning);
        }
        for image in &self.images {
            image.write_text(out);
        }
        text
    }
}

impl InspectedBase {
    fn of(reliance: &Reliance) -> InspectedBase {
        InspectedBase {
            base: basics::foreign::shown(&reliance.base),
            blobs: reliance.blobs.clone(),
            bytes: reliance.blobs.iter().map(|blob| blob.size).sum(),
        }
    }

    fn text(&self) -> String {
        let (count, bytes) = (self.blobs.len(), crate::output::bytes(self.bytes));
        format!("{}, which has {count} of its layers ({bytes})", self.base)
    }
}

impl InspectedRelease {
    fn of(release: &Release) -> InspectedRelease {
        let members = release.members.as_ref();
        InspectedRelease {
            name: release.name.clone(),
            list: members.map(|members| members.digest().to_string()).ok(),
            members: members.map(|members| members.all().to_vec()).unwrap_or_default(),
            problem: members.err().cloned(),
        }
    }

    fn text(&self) -> String {
        match &self.problem {
            None => format!(
                "{}, with {}",
                self.name,
                basics::counted(self.members.len(), "member")
            ),
            Some(_) => format!("{}, with an unusable list", self.name),
        }
    }
}

fn write_verification(out: &mut Page, verified: &Verification) {
    paragraph(out, "  verified ", &verified.summary());
    for damage in &verified.damaged {
        let (digest, found, image) = (&damage.digest, &damage.found, &damage.image);
        paragraph(
            out,
            "  DAMAGED  ",
            &format!("{digest} of {image}: its bytes hash to {found}"),
        );
    }
    if let Some(error) = &verified.error {
        paragraph(out, "  FAILED   ", error);
    }
}

/// Returns true if no image is broken. Images for other platforms do not make a bundle incomplete.
fn is_complete(selection: &Selection) -> bool {
    !selection
        .choices
        .iter()
        .any(|choice| matches!(choice.verdict, Verdict::Broken(_)))
}

fn inspect_image(choice: &Choice, catalog: &Catalog) -> InspectedImage {
    let root = &choice.target;
    let images = catalog
        .images
        .iter()
        .filter(|image| image.root.descriptor.digest() == root.digest());
    let names = images
        .clone()
        .flat_map(|image| &image.names)
        .map(raw_name)
        .collect();
    let (verdict, reason, records) = match &choice.verdict {
        Verdict::Take(taken) => (
            "take",
            None,
            taken.records.iter().map(|record| record.name.clone()).collect(),
        ),
        Verdict::Skip(skip) => ("skip", Some(skip.to_string()), Vec::new()),
        Verdict::Forbidden(reason) => ("forbidden", Some(reason.clone()), Vec::new()),
        Verdict::Broken(problems) => ("broken", Some(import::select::in_words(problems)), Vec::new()),
    };
    let mut platforms = Vec::new();
    if let Some(image) = images.clone().next() {
        inspect_node(&image.root, choice, &taken_blobs(choice), &mut platforms);
    }
    InspectedImage {
        names,
        digest: root.digest().to_string(),
        media_type: root.media_type().to_string(),
        records,
        verdict,
        reason,
        notes: choice.notes.iter().cloned().chain(needs_2_3(choice)).collect(),
        platforms,
    }
}

/// Returns a note for an image that needs containerd 2.3. The version of the importing containerd
/// is not known here.
fn needs_2_3(choice: &Choice) -> Option<String> {
    let Verdict::Take(taken) = &choice.verdict else {
        return None;
    };
    let digest = taken.closure.sha512()?;
    Some(format!(
        "it needs containerd 2.3 or later: blob {digest} is named by its sha512"
    ))
}

fn raw_name(name: &RawName) -> String {
    name.to_string()
}

fn inspect_node(node: &Node, choice: &Choice, taken: &HashSet<&Digest>, found: &mut Vec<InspectedPlatform>) {
    match &node.content {
        Content::Index(children) => children
            .iter()
            .for_each(|child| inspect_node(child, choice, taken, found)),
        Content::Manifest(manifest) => {
            let taken = taken.contains(node.descriptor.digest());
            found.push(inspect_manifest(node, manifest, choice, taken));
        }
        Content::Other => {
            let state = node.descriptor.media_type().to_string();
            found.push(leaf(node, state, "not a container image", Vec::new()));
        }
        Content::Absent => found.push(leaf(node, "absent".to_owned(), "not in the bundle", Vec::new())),
        Content::Broken(why) => found.push(leaf(
            node,
            "broken".to_owned(),
            "not whole",
            vec![why.to_string()],
        )),
    }
}

fn inspect_manifest(node: &Node, manifest: &Manifest, choice: &Choice, taken: bool) -> InspectedPlatform {
    let problems = import::select::problems(node, manifest);
    let state = match &manifest.kind {
        _ if !problems.is_empty() => "broken".to_owned(),
        Kind::Image => "whole".to_owned(),
        Kind::Artifact { artifact_type } => artifact_type.clone(),
    };
    let parts: u64 = manifest.parts().map(|part| part.descriptor.size()).sum();
    let differs = |config: &&platforms::Platform| {
        node.platform
            .as_ref()
            .is_some_and(|own| own.to_string() != config.to_string())
    };
    let reason = match (&manifest.kind, &choice.verdict) {
        _ if taken => None,
        (Kind::Artifact { .. }, _) => Some("not a container image"),
        _ if !problems.is_empty() => Some("not whole"),
        (Kind::Image, Verdict::Forbidden(_)) => Some("its names are not allowed"),
        (Kind::Image, Verdict::Take(_) | Verdict::Skip(_) | Verdict::Broken(_)) => {
            Some("not taken on this node")
        }
    };
    InspectedPlatform {
        taken,
        reason,
        blobs: manifest.parts().map(inspect_part).collect(),
        layers: manifest.layers.len(),
        size: node.descriptor.size() + parts,
        config_platform: manifest
            .config_platform
            .as_ref()
            .filter(differs)
            .map(ToString::to_string),
        ..leaf(
            node,
            state,
            "",
            problems.iter().map(ToString::to_string).collect(),
        )
    }
}

fn inspect_part(part: &Part) -> InspectedBlob {
    InspectedBlob {
        digest: part.descriptor.digest().to_string(),
        media_type: part.descriptor.media_type().to_string(),
        size: part.descriptor.size(),
        state: match part.state {
            PartState::Present => "present",
            PartState::Absent => "absent",
            PartState::Broken(_) => "broken",
        },
    }
}

/// Returns the blobs that this node takes of an image.
fn taken_blobs(choice: &Choice) -> HashSet<&Digest> {
    match &choice.verdict {
        Verdict::Take(taken) => taken.closure.blobs.iter().map(|blob| &blob.digest).collect(),
        Verdict::Skip(_) | Verdict::Forbidden(_) | Verdict::Broken(_) => HashSet::new(),
    }
}

fn leaf(node: &Node, state: String, reason: &'static str, problems: Vec<String>) -> InspectedPlatform {
    InspectedPlatform {
        platform: import::select::platform_text(node),
        digest: node.descriptor.digest().to_string(),
        taken: false,
        reason: Some(reason),
        state,
        problems,
        config_platform: None,
        layers: 0,
        size: node.descriptor.size(),
        blobs: Vec::new(),
    }
}

impl InspectedImage {
    /// Applies the damage of a blob. Each platform that needs the blob becomes broken, and this
    /// node no longer takes it.
    fn lose(&mut self, damage: &Damage) {
        let mut parts = Vec::new();
        for platform in &mut self.platforms {
            let Some(part) = platform.part(&damage.digest) else {
                continue;
            };
            platform.state = "broken".to_owned();
            platform
                .problems
                .push(format!("{part} is damaged: {}", damage.why()));
            platform.reason = Some("not whole");
            if std::mem::take(&mut platform.taken) {
                parts.push(part);
            }
        }
        let Some(part) = parts.pop().filter(|_| self.verdict == "take") else {
            return;
        };
        self.verdict = "broken";
        self.reason = Some(format!("{part} is damaged: {}", damage.why()));
        self.records.clear();
    }

    fn write_text(&self, out: &mut Page) {
        out.gap();
        paragraph(out, "", self.names.first().unwrap_or(&self.digest));
        if !self.names.is_empty() {
            paragraph(out, "  digest   ", &self.digest);
        }
        for name in self.names.iter().skip(1) {
            paragraph(out, "  also     ", name);
        }
        let verdict = match &self.reason {
            Some(reason) => format!("{}: {reason}", self.verdict),
            None => self.verdict.to_owned(),
        };
        paragraph(out, "  verdict  ", &verdict);
        for record in &self.records {
            paragraph(out, "  record   ", record);
        }
        for note in &self.notes {
            paragraph(out, "  note     ", note);
        }
        for platform in &self.platforms {
            platform.write_text(out);
        }
    }
}

impl InspectedPlatform {
    /// Returns the part of the image that a blob is, `None` if the image does not need it. The
    /// blob's state becomes `broken`.
    fn part(&mut self, digest: &str) -> Option<String> {
        let layers = self.layers;
        if self.digest == digest {
            return Some("manifest".to_owned());
        }
        let at = self.blobs.iter().position(|blob| blob.digest == digest)?;
        let damaged = self.blobs.iter_mut().filter(|blob| blob.digest == digest);
        damaged.for_each(|blob| blob.state = "broken");
        Some(match at {
            0 => "config".to_owned(),
            at => format!("layer {at} of {layers}"),
        })
    }

    fn write_text(&self, out: &mut Page) {
        let mark = if self.taken { '*' } else { ' ' };
        let size = crate::output::bytes(self.size);
        let layers = match self.layers {
            1 => "1 layer".to_owned(),
            count => format!("{count} layers"),
        };
        let mut label = String::new();
        let _ = write!(label, "  {mark} {:<16} ", self.platform);
        let reason = self
            .reason
            .map(|reason| format!(", {reason}"))
            .unwrap_or_default();
        paragraph(out, &label, &format!("{}, {size}, {layers}{reason}", self.state));
        if let Some(config) = &self.config_platform {
            paragraph(out, "      ", &format!("its config has {config}"));
        }
        for problem in &self.problems {
            paragraph(out, "      ", problem);
        }
    }
}

/// Inspects a bundle. The exit status is 0 for a whole bundle and 1 for an unreadable file. It is 5
/// if the bundle is not whole or the file is not a bundle.
pub(super) async fn run(args: &InspectArgs, call: &Call) -> Result<Exit, Refusal> {
    let file = match args.files.as_slice() {
        files if args.digest => return print_digests(files, call).await,
        [file] => file,
        _ => return Err(Refusal::usage("more than one FILE needs --digest")),
    };
    let opened = super::import::open(file, &call.settings.limits).await;
    let bundle = Arc::new(opened.map_err(|error| {
        Refusal::of_bundle(&error).with_document(|error| Unreadable {
            path: file,
            complete: false,
            error,
        })
    })?);
    let mut inspection = Inspection::of(&bundle, &node::runtime::policy(&call.settings, None));
    if args.verify {
        let progress = Progress::start(file.display().to_string(), Doing::Reading);
        let verified =
            tokio::task::spawn_blocking(move || verify::verify(&bundle, progress.observer())).await?;
        inspection = inspection.with_verification(verified);
    }
    call.answer(&inspection, || inspection.text())?;
    Ok(if inspection.is_complete() {
        Exit::Done
    } else {
        Exit::BadBundle
    })
}

/// Prints the line of a list of digests for each bundle. A bad file does not stop the others. The
/// exit status is that of the inspection of all files.
async fn print_digests(files: &[PathBuf], call: &Call) -> Result<Exit, Refusal> {
    if call.format == OutputFormat::Json {
        return Err(Refusal::usage(
            "--digest prints lines: `inspect -o json` without it has the digest of one bundle",
        ));
    }
    let policy = node::runtime::policy(&call.settings, None);
    let mut refused: Option<Refusal> = None;
    for file in files {
        let problem = match super::import::open(file, &call.settings.limits).await {
            Ok(bundle) => {
                output::raw(&digests::line(&bundle.catalog().digest, file))?;
                (!Inspection::of(&bundle, &policy).is_complete()).then(|| not_whole(file))
            }
            Err(error) => Some(Refusal::of_bundle(&error)),
        };
        refused = match (refused, problem) {
            (Some(refused), Some(problem)) => Some(refused.and(problem)),
            (refused, problem) => refused.or(problem),
        };
    }
    refused.map_or(Ok(Exit::Done), Err)
}

fn not_whole(file: &Path) -> Refusal {
    let file = basics::foreign::path(file);
    Refusal::new(
        Exit::BadBundle,
        format!("{file} is not whole: `airgapd inspect` says why"),
    )
}
