//! `airgapd list-images`: the images that a cluster needs, before there is a cluster.

use serde::Serialize;

use super::Exit;
use crate::cli::ListImagesArgs;
use crate::config::OutputFormat;
use crate::output::{self, Page};
use verify::{K0sAnswer, Kind, Need, Needs};

/// The document of `airgapd list-images -o json`.
#[derive(Debug, Serialize)]
struct Document<'a> {
    /// Where the list of k0s comes from; `null` where it was not asked for.
    k0s: Option<&'a K0sAnswer>,
    images: Vec<Need>,
    notes: &'a [String],
}

/// Prints one reference on each line. The list of k0s alone is as k0s prints it; with manifests, all references are
/// normalised, sorted, and there once.
pub(crate) async fn run(args: &ListImagesArgs, format: OutputFormat) -> anyhow::Result<Exit> {
    let platform = match args.platform.as_deref().map(str::parse).transpose() {
        Ok(platform) => platform,
        Err(error) => {
            let text = format!("--platform: {error}");
            tracing::error!("{text}");
            output::failure(format, &text)?;
            return Ok(Exit::Usage);
        }
    };
    let mut needs = Needs::default();
    if !args.no_k0s {
        needs.add_k0s(&args.k0s.question(), platform.as_ref()).await;
    }
    needs.add_manifests(&args.manifests.manifests, Kind::Manifest);
    for note in &needs.notes {
        tracing::warn!("{note}");
    }
    if !needs.mistakes.is_empty() {
        for mistake in needs.mistakes.iter().flat_map(|mistake| mistake.lines()) {
            tracing::error!("{mistake}");
        }
        output::failure(format, &needs.mistakes.join("\n"))?;
        return Ok(Exit::Usage);
    }
    let images = if args.manifests.manifests.is_empty() {
        needs.as_given()
    } else {
        needs.merged()
    };
    if let Some(k0s) = &needs.k0s {
        tracing::info!("{}", k0s.text());
    }
    match format {
        OutputFormat::Json => output::json(&Document {
            k0s: needs.k0s.as_ref(),
            images,
            notes: &needs.notes,
        })?,
        OutputFormat::Text => {
            let mut lines = Page::new();
            images
                .iter()
                .for_each(|need| output::line!(lines, "{}", need.reference));
            output::text(&lines)?;
        }
    }
    Ok(Exit::Done)
}
