//! `airgapd verify`: checks that every image that this node needs is complete without a registry.
//!
//! It checks the containerd of this node, or with `--bundle` bundles before their transport.
//! [`kubelet`] has kubelet's objections to images that are present, and [`signed`] those of the
//! evidence.

mod kubelet;
mod signed;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bundle::{Bundle, Limits};
use import::Policy;
use oci_spec::image::Digest;
use serde::Serialize;

use self::kubelet::{Opinion, Refused, View};
use self::signed::{Unsigned, Word};

use super::bundles::blobs_of;
use super::{Call, Exit, Refusal};
use crate::cli::{OutputFormat, VerifyArgs};
use crate::output::{Page, paragraph};
use node::images::folder::{Class, Depth, Folder};
use node::place::Place;
use node::runtime::{self, Containerd};
use node::settings::Settings;
use verify::{Answer, Inventory, Sought, Status, answer};
use verify::{K0sAnswer, Kind, Need, Needs, Source};

/// The document of `airgapd verify -o json`.
#[derive(Debug, Serialize)]
struct Document {
    /// True if no image is missing, kubelet refuses none and, with `--require-never`, none may be
    /// pulled. With `--require-signed`, signed bundles have brought all images.
    complete: bool,
    /// The checked containerd, `null` for bundles.
    containerd: Option<Asked>,
    /// The bundles that were checked instead.
    bundles: Vec<String>,
    k0s: Option<K0sAnswer>,
    images: Vec<Answer>,
    /// With `--require-never`: the sources that may pull.
    pulls: Vec<Pull>,
    /// With `--kubelet-root`: images that are present and that kubelet lets no pod use.
    refused: Vec<Refused>,
    /// With `--require-signed`: images that are present and that no signed bundle brought.
    unsigned: Vec<Unsigned>,
    warnings: Vec<String>,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Asked {
    socket: String,
    version: String,
    namespace: String,
    platform: String,
}

/// A container whose pull policy is not `Never`.
#[derive(Debug, Serialize)]
struct Pull {
    reference: String,
    source: Source,
    /// Remedy.
    remedy: &'static str,
}

/// The place where the images must be.
enum Where {
    Containerd(Box<Containerd>),
    Bundles,
}

/// Collects the needs, checks them, and prints the answer. The exit status is 4 if an image is
/// missing.
pub(super) async fn run(args: &VerifyArgs, call: &Call) -> Result<Exit, Refusal> {
    let settings = &call.settings;
    let mut home = None;
    let place = if args.bundles.is_empty() {
        let node = call.node()?;
        call.allowed("verify", Exit::Unreachable, &[&node.socket])?;
        let runtime = call.connect(&node).await?;
        home = Some(node);
        Where::Containerd(Box::new(runtime))
    } else {
        Where::Bundles
    };
    let runtime = match &place {
        Where::Containerd(runtime) => Some(&**runtime),
        Where::Bundles => None,
    };
    let mut needs = Needs::default();
    let view = gather(args, settings, runtime, &mut needs).await?;
    if needs.mistakes.is_empty() && needs.sources().is_empty() {
        needs.mistakes.push(
            "there is nothing to verify: name images, or give --images, --k0s-config, --manifests or --static-pods"
                .to_owned(),
        );
    }
    if !args.bundles.is_empty() {
        // A shell expands `--bundle *.tar` to one flag and further arguments.
        let files = args.references.iter().filter(|name| Path::new(name).is_file());
        let mistake = |name| format!("{name} is a file and no image: give each file as --bundle FILE");
        needs.mistakes.extend(files.map(mistake));
    }
    if !needs.mistakes.is_empty() {
        return Err(super::mistakes(&needs));
    }
    let policy = runtime::policy(settings, runtime);
    let mut images = match &place {
        Where::Containerd(runtime) => {
            in_containerd(runtime, &policy, settings, &needs.merged(), home.as_ref())
                .await
                .map_err(unreachable)?
        }
        Where::Bundles => in_bundles(&args.bundles, &policy, &settings.limits, &needs.merged())
            .await
            .map_err(|mistakes| Refusal::of_many(Exit::BadBundle, mistakes))?,
    };
    let of_kubelet = runtime.filter(|runtime| runtime.is_of_kubelet);
    let opinion = opinion(view.as_ref(), of_kubelet, &mut images).await;
    let opinion = opinion.map_err(unreachable)?;
    let pulls = if args.require_never {
        pulls(needs.sources())
    } else {
        Vec::new()
    };
    let word = match args.require_signed {
        true => signed::word(settings, &images),
        false => Word::default(),
    };
    let is_allowed = pulls.is_empty() && opinion.refused.is_empty() && word.unsigned.is_empty();
    let document = Document {
        complete: is_allowed && !images.iter().any(Answer::is_missing),
        containerd: runtime.map(asked),
        bundles: args
            .bundles
            .iter()
            .map(|path| path.display().to_string())
            .collect(),
        refused: opinion.refused,
        unsigned: word.unsigned,
        warnings: opinion.warnings.into_iter().chain(word.warnings).collect(),
        k0s: needs.k0s,
        images,
        pulls,
        notes: needs.notes,
    };
    tell(&document, call)
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
fn unreachable(error: containerd::Error) -> Refusal {
    Refusal::new(Exit::Unreachable, basics::chain(&error))
}

fn asked(runtime: &Containerd) -> Asked {
    Asked {
        socket: runtime.client.socket().display().to_string(),
        version: runtime.version.text.clone(),
        namespace: runtime.client.namespace().to_owned(),
        platform: runtime.platform.to_string(),
    }
}

/// Collects the images from the operator's sources, and the image that containerd itself needs.
async fn gather(
    args: &VerifyArgs,
    settings: &Settings,
    runtime: Option<&Containerd>,
    needs: &mut Needs,
) -> anyhow::Result<Option<View>> {
    let platform = runtime::asked_platform(settings, runtime);
    needs.add(&args.sources(), platform.as_ref()).await;
    if let (None, Some(runtime)) = (&args.sandbox_image, runtime)
        && runtime.is_of_kubelet
    {
        match runtime.client.cri().sandbox_image().await? {
            Some(image) => needs.add_sandbox(image),
            None => needs.notes.push(
                "containerd does not report the image that it starts every pod with: give it with --sandbox-image".to_owned(),
            ),
        }
    }
    if args.kubelet_root.is_some() && runtime.is_some_and(|runtime| !runtime.is_of_kubelet) {
        needs.notes.push(
            "kubelet's records are not checked: they apply only to images in the namespace k8s.io, with CRI"
                .to_owned(),
        );
    }
    Ok(kubelet::view(args, needs))
}

/// Returns the objections of kubelet to the images, if the command line names its folder or
/// configuration.
async fn opinion(
    view: Option<&View>,
    runtime: Option<&Containerd>,
    images: &mut [Answer],
) -> Result<Opinion, containerd::Error> {
    let ids = kubelet::ids(view, runtime, images).await?;
    Ok(view.map(|view| view.opinion(images, &ids)).unwrap_or_default())
}

async fn in_containerd(
    runtime: &Containerd,
    policy: &Policy,
    settings: &Settings,
    needs: &[Need],
    home: Option<&Place>,
) -> Result<Vec<Answer>, containerd::Error> {
    let inventory = Inventory::of_containerd(
        &runtime.client,
        runtime.store.as_deref(),
        &policy.wanted,
        &settings.limits,
        runtime::snapshots(runtime),
        &Sought::with_near_misses(needs),
    )
    .await?;
    let all = |bundles: &Inventory| {
        needs
            .iter()
            .map(|need| answer(need, &inventory, bundles))
            .collect::<Vec<_>>()
    };
    let mut answers = all(&Inventory::default());
    if let Some(home) = home
        && answers.iter().any(Answer::is_missing)
    {
        // The bundles are searched for missing images only now, since they can be large. A delta
        // counts if its base is present.
        let there = runtime.client.blobs().await?.into_iter().map(|blob| blob.digest);
        let (bundles, _) = open_all(&bundles_in(home, settings), &settings.limits).await;
        answers = all(&shelf_of(&bundles, policy, &there.collect()));
    }
    if runtime.is_of_kubelet {
        ask_cri(runtime, &mut answers).await?;
    }
    Ok(answers)
}

/// Warns of images that CRI has not read yet. CRI reads an image a moment after containerd has it,
/// and until then kubelet does not see it.
async fn ask_cri(runtime: &Containerd, answers: &mut [Answer]) -> Result<(), containerd::Error> {
    let cri = runtime.client.cri();
    for answer in answers.iter_mut().filter(|answer| !answer.is_missing()) {
        if cri.image_status(&answer.reference).await?.is_none() {
            answer
                .warnings
                .push("CRI has not read it yet: kubelet does not see it".to_owned());
        }
    }
    Ok(())
}

/// Checks bundles. Together they may be complete: the layers that a delta relies on may be in
/// another bundle.
async fn in_bundles(
    paths: &[PathBuf],
    policy: &Policy,
    limits: &Limits,
    needs: &[Need],
) -> Result<Vec<Answer>, Vec<String>> {
    let (bundles, mistakes) = open_all(paths, limits).await;
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let inventory = shelf_of(&bundles, policy, &blobs_of(&bundles));
    let nothing = Inventory::default();
    Ok(needs
        .iter()
        .map(|need| answer(need, &inventory, &nothing))
        .collect())
}

/// Opens bundles. Returns the open bundles, and the reasons for the others.
async fn open_all(paths: &[PathBuf], limits: &Limits) -> (Vec<Bundle>, Vec<String>) {
    let mut bundles = Vec::new();
    let mut mistakes = Vec::new();
    for path in paths {
        match super::import::open(path, limits).await {
            Ok(bundle) => bundles.push(bundle),
            Err(error) => mistakes.push(basics::chain(&error)),
        }
    }
    (bundles, mistakes)
}

/// Returns the images of several bundles. The blobs in `there` need not be in them.
fn shelf_of(bundles: &[Bundle], policy: &Policy, there: &HashSet<Digest>) -> Inventory {
    let mut inventory = Inventory::default();
    for bundle in bundles {
        inventory.join(Inventory::of_bundle(
            &bundle.catalog().completed_by(there),
            bundle.path(),
            policy,
        ));
    }
    inventory
}

/// Returns the files of the images folders that may be bundles, in all places that the daemon
/// reads.
fn bundles_in(home: &Place, settings: &Settings) -> Vec<PathBuf> {
    let depth = Depth {
        recursive: home.searches_sub_folders(settings),
        allow_insecure: settings.allow_insecure_dir,
        ..Depth::default()
    };
    let list = |path: &PathBuf| {
        let listing = Folder::open_dir(path).and_then(|folder| folder.list(depth));
        listing.unwrap_or_default().with_paths(path).entries
    };
    let folders = home.images_dirs();
    let entries = folders.iter().flat_map(list);
    entries
        .filter(|entry| matches!(entry.class, Class::Candidate | Class::Layout))
        .map(|entry| entry.name.into())
        .collect()
}

/// Returns every source that may pull.
fn pulls(sources: &[Source]) -> Vec<Pull> {
    let may_pull = |source: &&Source| {
        source
            .pull_policy
            .as_deref()
            .is_some_and(|policy| policy != "Never")
    };
    let pull = |source: &Source| Pull {
        reference: source.given.clone(),
        source: source.clone(),
        remedy: match source.kind {
            Kind::K0s => "set spec.images.default_pull_policy: Never in the configuration of k0s",
            Kind::Manifest | Kind::StaticPod | Kind::List | Kind::Sandbox => "set its pull policy to Never",
        },
    };
    sources.iter().filter(may_pull).map(pull).collect()
}

fn tell(document: &Document, call: &Call) -> Result<Exit, Refusal> {
    if call.format == OutputFormat::Text {
        for note in &document.notes {
            tracing::warn!("{note}");
        }
        if let Some(k0s) = &document.k0s {
            tracing::info!("{}", k0s.text());
        }
    }
    call.answer(document, || text(document))?;
    Ok(if document.complete {
        Exit::Done
    } else {
        Exit::Missing
    })
}

fn text(document: &Document) -> Page {
    let mut out = Page::new();
    let (missing, present): (Vec<_>, Vec<_>) = document.images.iter().partition(|image| image.is_missing());
    for image in &present {
        write_present(&mut out, image);
    }
    for image in &missing {
        write_missing(&mut out, image);
    }
    for image in &document.refused {
        write_refused(&mut out, image);
    }
    for image in &document.unsigned {
        write_unsigned(&mut out, image);
    }
    write_pulls(&mut out, &document.pulls);
    for warning in &document.warnings {
        paragraph(&mut out, "warning  ", warning);
    }
    let place = match &document.containerd {
        Some(asked) => format!("in containerd {} for {}", asked.version, asked.platform),
        None => format!("in {}", document.bundles.join(", ")),
    };
    let mut summary = format!(
        "{} of {} complete {place}",
        present.len(),
        basics::counted(document.images.len(), "reference")
    );
    if !missing.is_empty() {
        let _ = write!(summary, ", {} missing", missing.len());
    }
    if !document.refused.is_empty() {
        let _ = write!(summary, ", kubelet refuses {}", document.refused.len());
    }
    if !document.unsigned.is_empty() {
        let _ = write!(summary, ", {} unsigned", document.unsigned.len());
    }
    if !document.pulls.is_empty() {
        let _ = write!(summary, ", {} may be pulled", document.pulls.len());
    }
    paragraph(&mut out, "", &summary);
    out
}

/// Writes each source that may pull. The images of k0s share one entry, since one setting changes
/// all of them.
fn write_pulls(out: &mut Page, pulls: &[Pull]) {
    let (of_k0s, others): (Vec<_>, Vec<_>) = pulls.iter().partition(|pull| pull.source.kind == Kind::K0s);
    if let [first, ..] = of_k0s[..] {
        paragraph(
            out,
            "PULLS    ",
            &format!("{} of k0s", basics::counted(of_k0s.len(), "image")),
        );
        paragraph(out, "  remedy ", first.remedy);
    }
    for pull in others {
        let policy = pull.source.pull_policy.as_deref().unwrap_or_default();
        paragraph(out, "PULLS    ", &format!("{}, with {policy}", pull.reference));
        paragraph(out, "  remedy ", pull.remedy);
        paragraph(out, "  asked  ", &pull.source.to_string());
    }
}

fn write_present(out: &mut Page, image: &Answer) {
    let mut told = image.platforms.clone();
    if image.pinned == Some(true) {
        told.push("pinned".to_owned());
    }
    told.extend(image.bundles.iter().cloned());
    paragraph(
        out,
        "ok       ",
        &format!("{}  {}", image.reference, told.join(", ")),
    );
    for warning in &image.warnings {
        paragraph(out, "  warning ", warning);
    }
}

fn write_refused(out: &mut Page, image: &Refused) {
    paragraph(out, "REFUSED  ", &image.reference);
    paragraph(out, "  why    ", &image.problem);
    paragraph(out, "  record ", &image.record);
    paragraph(out, "  remedy ", image.remedy);
    for source in &image.sources {
        paragraph(out, "  asked  ", &source.to_string());
    }
}

fn write_unsigned(out: &mut Page, image: &Unsigned) {
    paragraph(out, "UNSIGNED ", &image.reference);
    paragraph(out, "  why    ", &image.problem);
    paragraph(out, "  record ", &format!("{} at {}", image.record, image.digest));
    paragraph(out, "  remedy ", &image.remedy);
    for source in &image.sources {
        paragraph(out, "  asked  ", &source.to_string());
    }
}

fn write_missing(out: &mut Page, image: &Answer) {
    let label = match image.status {
        Status::Incomplete => "BROKEN   ",
        Status::InvalidReference => "INVALID  ",
        Status::Absent | Status::WrongPlatform | Status::NotAnImage | Status::Present => "MISSING  ",
    };
    paragraph(out, label, &image.reference);
    for problem in &image.problems {
        paragraph(out, "  why    ", problem);
    }
    if let Some(near) = &image.near_miss {
        paragraph(out, "  near   ", &format!("{} in {}", near.reference, near.place));
    }
    if let Some(bundle) = &image.found_in {
        paragraph(out, "  found  ", bundle);
    }
    if let Some(remedy) = &image.remedy {
        paragraph(out, "  remedy ", remedy);
    }
    for source in &image.sources {
        paragraph(out, "  asked  ", &source.to_string());
    }
}
