//! `airgapd config`: the effective configuration.

use super::{Call, Exit, Refusal};
use crate::cli::{ConfigArgs, OutputFormat};
use crate::config::Config;
use crate::output::{self, Page};
use node::place::{Ambiguous, Place};
use node::settings::Settings;

/// Prints every key with its value and origin. For people it adds the consequences for this node.
/// With `--check` it only checks the configuration.
pub(super) fn run(args: &ConfigArgs, config: &Config, call: &Call) -> Result<Exit, Refusal> {
    let file = config
        .file
        .as_ref()
        .map_or_else(|| "no file".to_owned(), |file| file.display().to_string());
    if let Some(mistake) = args.check.then(|| missing(&config.settings)).flatten() {
        return Err(Refusal::usage(mistake));
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

/// Returns the consequences of the configuration and the evidence on this node, as comments.
fn consequences(node: Result<Place, Ambiguous>) -> String {
    match node {
        Ok(node) => {
            let because = if node.because.is_empty() {
                "by default".to_owned()
            } else {
                node.because.join(", ")
            };
            let (images, socket) = (node.images_dir.display(), node.socket.display());
            format!(
                "# this node: {} ({because})\n# bundles from {images}\n# images to the containerd on {socket}\n",
                node.distribution
            )
        }
        Err(ambiguous) => format!("# this node: {ambiguous}\n"),
    }
}
