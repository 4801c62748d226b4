//! `airgapd config`: the effective configuration.

use std::io::ErrorKind;
use std::path::PathBuf;

use super::{Call, Exit, Refusal};
use crate::cli::{ConfigArgs, OutputFormat};
use crate::config::Config;
use crate::output::{self, Page};
use node::admit::beforehand::{self, Fate, Foreseen};
use node::images::keys::TrustedKeys;
use node::place::{Ambiguous, Place};
use node::settings::{Settings, Signatures};
use serde::Serialize;

/// Prints every key with its value and origin. For people it adds the consequences for this node.
/// With `--check` it only checks the configuration, and with `--signatures` the bundles, too.
pub(super) async fn run(args: &ConfigArgs, config: &Config, call: &Call) -> Result<Exit, Refusal> {
    let file = config
        .file
        .as_ref()
        .map_or_else(|| "no file".to_owned(), |file| file.display().to_string());
    if args.check {
        let mistakes = missing(&config.settings).into_iter();
        let mistakes = mistakes.chain(no_key(&config.settings));
        let mistakes = mistakes.chain(no_folder(&config.settings.images_dirs));
        if let Some(mistake) = mistakes.into_iter().next() {
            return Err(Refusal::usage(mistake));
        }
        if args.signatures.is_some() {
            return bundles(call).await;
        }
    }
    match (args.check, call.format) {
        (true, OutputFormat::Text) => {
            output::text(&Page::of_lines(&format!("the configuration is usable ({file})")))?;
        }
        (false, OutputFormat::Text) => {
            let mut text = Page::new();
            output::line!(text, "# {file}");
            for row in config.rows() {
                output::line!(text, "{row}");
            }
            text.add(&Page::of_lines(&consequences(call.node())));
            output::text(&text)?;
        }
        (_, OutputFormat::Json) => output::json(&config.rows())?,
    }
    Ok(Exit::Done)
}

/// The document of `airgapd config --check --signatures RULE -o json`.
#[derive(Serialize)]
struct Document<'a> {
    bundles: &'a [Foreseen],
    /// The reason why the bundles could not be checked.
    error: Option<String>,
}

/// Lists the bundles in the folders with their fate under the rule for signatures. The exit status
/// is 1 if the rule keeps one out.
async fn bundles(call: &Call) -> Result<Exit, Refusal> {
    let place = call
        .node()
        .map_err(|ambiguous| Refusal::usage(ambiguous.to_string()))?;
    let foreseen = beforehand::foresee(&place, &call.settings).await;
    let foreseen = foreseen.map_err(|(folder, error)| {
        let text = format!("cannot list {}: {error}", folder.display());
        Refusal::new(Exit::Failed, text).with_document(|error| Document {
            bundles: &[],
            error: Some(error),
        })
    })?;
    let document = Document {
        bundles: &foreseen,
        error: None,
    };
    call.answer(&document, || list(&foreseen))?;
    let is_kept_out = foreseen.iter().any(|bundle| bundle.fate.is_kept_out());
    Ok(if is_kept_out { Exit::Failed } else { Exit::Done })
}

fn list(foreseen: &[Foreseen]) -> Page {
    let mut text = Page::new();
    let told = foreseen.iter().filter(|bundle| bundle.fate != Fate::Accepted);
    for Foreseen { path, fate, reason } in told {
        let reason = reason.as_deref().unwrap_or_default();
        output::paragraph(&mut text, &format!("{fate:<9}"), &format!("{path}: {reason}"));
    }
    let kept_out = foreseen.iter().filter(|bundle| bundle.fate.is_kept_out());
    let (kept_out, all) = (kept_out.count(), foreseen.len());
    match kept_out {
        0 => output::line!(text, "the rule keeps out no bundle of {all}"),
        kept_out => output::line!(
            text,
            "the rule keeps out {kept_out} of {all} bundles, or a part of them"
        ),
    }
    text
}

/// Returns a mistake if `trustedDigests` names a folder that this node lacks, since no bundle could
/// be imported then.
fn missing(settings: &Settings) -> Option<String> {
    let folder = settings.trusted_digests.as_ref()?;
    let shown = folder.display();
    match std::fs::metadata(folder) {
        Ok(metadata) if metadata.is_dir() => None,
        Ok(_) => Some(format!("trustedDigests: {shown} is not a folder")),
        Err(error) => Some(format!("trustedDigests: {shown}: {error}")),
    }
}

/// Returns a mistake if signatures are required and no key can be used, since no bundle could be
/// imported then.
fn no_key(settings: &Settings) -> Option<String> {
    if settings.signatures != Some(Signatures::Require) {
        return None;
    }
    let folder = &settings.trusted_keys;
    let trusted = TrustedKeys::read(folder);
    let keys = trusted.keys();
    if !keys.usable().is_empty() {
        return None;
    }
    let problems = match keys.problems() {
        [] => "it has no key".to_owned(),
        problems => problems.join("; "),
    };
    Some(format!(
        "signatures: require needs a key in {}: {problems}",
        folder.display()
    ))
}

/// Returns a mistake if an images folder is no folder, or the same folder as another one. A folder
/// that does not exist is no mistake, since it may be on a mount that comes later.
fn no_folder(images_dirs: &[PathBuf]) -> Option<String> {
    let mut seen: Vec<(&PathBuf, PathBuf)> = Vec::new();
    for folder in images_dirs {
        let shown = folder.display();
        match std::fs::metadata(folder) {
            Ok(metadata) if !metadata.is_dir() => {
                return Some(format!("imagesDirs: {shown} is not a folder"));
            }
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Some(format!("imagesDirs: {shown}: {error}"));
            }
            Ok(_) | Err(_) => {}
        }
        let Ok(real) = folder.canonicalize() else { continue };
        let is_with = |other: &&(&PathBuf, PathBuf)| real.starts_with(&other.1) || other.1.starts_with(&real);
        if let Some((other, _)) = seen.iter().find(is_with) {
            let other = other.display();
            return Some(format!("imagesDirs: {shown} and {other} have files in common"));
        }
        seen.push((folder, real));
    }
    None
}

/// Returns the consequences of the configuration and the evidence on this node, as comments.
fn consequences(node: Result<Place, Ambiguous>) -> String {
    match node {
        Ok(node) => {
            let because = if node.because.is_empty() {
                "by default".to_owned()
            } else {
                node.because.join(", ")
            };
            let images = node
                .images_dirs()
                .iter()
                .map(|folder| folder.display().to_string())
                .collect::<Vec<_>>();
            let (images, socket) = (images.join(" and "), node.socket.display());
            format!(
                "# this node: {} ({because})\n# bundles from {images}\n# images to the containerd on {socket}\n",
                node.distribution
            )
        }
        Err(ambiguous) => format!("# this node: {ambiguous}\n"),
    }
}
