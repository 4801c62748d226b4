//! `airgapd list-images`: lists the images that a cluster needs, before the cluster exists.

use platforms::Platform;
use serde::Serialize;

use super::{Call, Exit, Refusal};
use crate::cli::ListImagesArgs;
use crate::output::{self, Page};
use verify::{K0sAnswer, Kind, Need, Needs};

/// The document of `airgapd list-images -o json`.
#[derive(Debug, Serialize)]
struct Document<'a> {
    /// Origin of the list of k0s, `null` if it was not requested.
    k0s: Option<&'a K0sAnswer>,
    images: Vec<Need>,
    notes: &'a [String],
}

/// Prints one reference per line. The list of k0s alone is as k0s prints it. With manifests, all
/// references are normalised, sorted and listed once.
pub(super) async fn run(args: &ListImagesArgs, call: &Call) -> Result<Exit, Refusal> {
    let platform = args.platform.as_deref().map(str::parse::<Platform>).transpose();
    let platform = platform.map_err(|error| Refusal::usage(format!("--platform: {error}")))?;
    let mut needs = Needs::default();
    if !args.no_k0s {
        needs.add_k0s(&args.k0s.question(), platform.as_ref()).await;
    }
    needs.add_manifests(&args.manifests.manifests, Kind::Manifest);
    for note in &needs.notes {
        tracing::warn!("{note}");
    }
    if !needs.mistakes.is_empty() {
        return Err(super::mistakes(&needs));
    }
    let images = if args.manifests.manifests.is_empty() {
        needs.as_given()
    } else {
        needs.merged()
    };
    if let Some(k0s) = &needs.k0s {
        tracing::info!("{}", k0s.text());
    }
    let document = Document {
        k0s: needs.k0s.as_ref(),
        images,
        notes: &needs.notes,
    };
    call.answer(&document, || {
        let mut lines = Page::new();
        let images = document.images.iter();
        images.for_each(|need| output::line!(lines, "{}", need.reference));
        lines
    })?;
    Ok(Exit::Done)
}
