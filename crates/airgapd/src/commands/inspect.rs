//! `airgapd inspect`: what is inside a bundle, what this node would take of it, and whether it is whole.
//!
//! Works without a containerd: the node's platform is then detected from the machine.

use std::fmt::Write as _;
use std::path::PathBuf;

use bundle::{Bundle, Content, Ending, Kind, Manifest, Node, RawName};
use import::{Choice, Policy, Selection, Verdict, select};
use serde::Serialize;

/// The document that `airgapd inspect -o json` prints for one bundle.
#[derive(Debug, Serialize)]
pub(crate) struct Inspection {
    path: PathBuf,
    format: String,
    compression: String,
    /// The identity of the content.
    digest: String,
    size: u64,
    /// Everything that the bundle holds and this node could be asked to run is whole.
    complete: bool,
    /// Why not, or what the reader should know.
    warnings: Vec<String>,
    images: Vec<InspectedImage>,
}

#[derive(Debug, Serialize)]
struct InspectedImage {
    /// As the archive gives them.
    names: Vec<String>,
    digest: String,
    media_type: String,
    /// The records that this node would have.
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
    /// Whether this node takes it.
    taken: bool,
    /// `whole`, `absent`, `broken`, or the type of an artifact.
    state: String,
    problems: Vec<String>,
    /// What the config says, where that differs from the descriptor.
    config_platform: Option<String>,
    layers: usize,
    /// Bytes of manifest, config and layers.
    size: u64,
}

impl Inspection {
    /// Looks at a bundle with the eyes of a node.
    pub(crate) fn of(bundle: &Bundle, policy: &Policy) -> Inspection {
        let catalog = bundle.catalog();
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
            .map(|choice| inspect_image(choice, bundle))
            .collect();
        Inspection {
            path: bundle.path().to_owned(),
            format: catalog.format.to_string(),
            compression: catalog.compression.to_string(),
            digest: catalog.digest.to_string(),
            size: bundle.identity().size,
            complete: is_complete(&selection) && !matches!(catalog.ending, Ending::Truncated(_)),
            warnings,
            images,
        }
    }

    /// Whether everything in it can be used.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// The same for people.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        let whole = if self.complete { "whole" } else { "NOT WHOLE" };
        let Self {
            format,
            compression,
            size,
            digest,
            ..
        } = self;
        let packed = if compression == "none" {
            String::new()
        } else {
            format!(", {compression}")
        };
        let path = import::printable(&self.path.to_string_lossy());
        let _ = writeln!(
            text,
            "{}: {format}{packed}, {}, {whole}",
            path.trim_matches('"'),
            crate::output::bytes(*size)
        );
        let _ = writeln!(text, "  content {digest}");
        for warning in &self.warnings {
            let _ = writeln!(text, "  warning: {warning}");
        }
        for image in &self.images {
            image.write_text(&mut text);
        }
        text
    }
}

/// Broken images make a bundle incomplete; images for other machines do not.
fn is_complete(selection: &Selection) -> bool {
    !selection
        .choices
        .iter()
        .any(|choice| matches!(choice.verdict, Verdict::Broken(_)))
}

fn inspect_image(choice: &Choice, bundle: &Bundle) -> InspectedImage {
    let root = &choice.target;
    let images = bundle
        .catalog()
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
        Verdict::Forbidden => (
            "forbidden",
            Some("allowedNames allows none of its names".to_owned()),
            Vec::new(),
        ),
        Verdict::Broken(problems) => ("broken", Some(problems.join("; ")), Vec::new()),
    };
    let mut platforms = Vec::new();
    if let Some(image) = images.clone().next() {
        inspect_node(&image.root, choice, &mut platforms);
    }
    InspectedImage {
        names,
        digest: root.digest().to_string(),
        media_type: root.media_type().to_string(),
        records,
        verdict,
        reason,
        notes: choice.notes.clone(),
        platforms,
    }
}

fn raw_name(name: &RawName) -> String {
    name.to_string()
}

fn inspect_node(node: &Node, choice: &Choice, found: &mut Vec<InspectedPlatform>) {
    match &node.content {
        Content::Index(children) => children
            .iter()
            .for_each(|child| inspect_node(child, choice, found)),
        Content::Manifest(manifest) => found.push(inspect_manifest(node, manifest, choice)),
        Content::Other => found.push(leaf(node, node.descriptor.media_type().to_string(), Vec::new())),
        Content::Absent => found.push(leaf(node, "absent".to_owned(), Vec::new())),
        Content::Broken(reason) => found.push(leaf(node, "broken".to_owned(), vec![reason.clone()])),
    }
}

fn inspect_manifest(node: &Node, manifest: &Manifest, choice: &Choice) -> InspectedPlatform {
    let problems = import::problems(node, manifest);
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
    InspectedPlatform {
        taken: is_taken(node, choice),
        layers: manifest.layers.len(),
        size: node.descriptor.size() + parts,
        config_platform: manifest
            .config_platform
            .as_ref()
            .filter(differs)
            .map(ToString::to_string),
        ..leaf(node, state, problems)
    }
}

fn is_taken(node: &Node, choice: &Choice) -> bool {
    match &choice.verdict {
        Verdict::Take(taken) => taken
            .closure
            .blobs
            .iter()
            .any(|blob| blob.digest == *node.descriptor.digest()),
        Verdict::Skip(_) | Verdict::Forbidden | Verdict::Broken(_) => false,
    }
}

fn leaf(node: &Node, state: String, problems: Vec<String>) -> InspectedPlatform {
    InspectedPlatform {
        platform: import::platform_text(node),
        digest: node.descriptor.digest().to_string(),
        taken: false,
        state,
        problems,
        config_platform: None,
        layers: 0,
        size: node.descriptor.size(),
    }
}

impl InspectedImage {
    fn write_text(&self, text: &mut String) {
        let title = self.names.first().unwrap_or(&self.digest);
        let _ = writeln!(text, "\n{title}");
        if !self.names.is_empty() {
            let _ = writeln!(text, "  digest   {}", self.digest);
        }
        for name in self.names.iter().skip(1) {
            let _ = writeln!(text, "  also     {name}");
        }
        let verdict = match &self.reason {
            Some(reason) => format!("{}: {reason}", self.verdict),
            None => format!(
                "{} as {}",
                self.verdict,
                self.records.join("\n                   ")
            ),
        };
        let _ = writeln!(text, "  verdict  {verdict}");
        for note in &self.notes {
            let _ = writeln!(text, "  note     {note}");
        }
        for platform in &self.platforms {
            platform.write_text(text);
        }
    }
}

impl InspectedPlatform {
    fn write_text(&self, text: &mut String) {
        let mark = if self.taken { '*' } else { ' ' };
        let size = crate::output::bytes(self.size);
        let _ = writeln!(
            text,
            "  {mark} {:<16} {:<8} {:>10}  {} layers",
            self.platform, self.state, size, self.layers
        );
        if let Some(config) = &self.config_platform {
            let _ = writeln!(text, "      its config says {config}");
        }
        for problem in &self.problems {
            let _ = writeln!(text, "      {problem}");
        }
    }
}

/// Looks into a bundle. Exit status 0 when it is whole, 5 when it is not or is no bundle.
pub(crate) async fn run(
    args: &crate::cli::InspectArgs,
    settings: &crate::config::Settings,
    format: crate::config::OutputFormat,
) -> anyhow::Result<super::Exit> {
    use crate::config::OutputFormat;
    let bundle = match super::import::open(&args.file, &settings.limits).await {
        Ok(bundle) => bundle,
        Err(error) => {
            tracing::error!("{}", import::chain(&error));
            return Ok(super::Exit::BadBundle);
        }
    };
    let inspection = Inspection::of(&bundle, &crate::runtime::policy(settings, None));
    match format {
        OutputFormat::Text => crate::output::text(&inspection.text())?,
        OutputFormat::Json => crate::output::json(&inspection)?,
    }
    Ok(if inspection.is_complete() {
        super::Exit::Done
    } else {
        super::Exit::BadBundle
    })
}
