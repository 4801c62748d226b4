//! The report of a new bundle.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bundle::write::{Draft, Written};
use oci_spec::image::Digest;
use registry::Resolved;
use serde::Serialize;

use super::Job;
use crate::commands::making::{self, Made, MadeOf, Render, compression};
use crate::output::{self, Page};

/// The document of `airgapd bundle-artifacts -o json`.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    made: Made,
    compression: &'static str,
    /// Name of the base that a delta relies on.
    base: Option<String>,
    /// Name of the release that the bundle is.
    release: Option<String>,
    images: Vec<ImageReport>,
    blobs: BlobReport,
    duration_ms: u64,
}

#[derive(Debug, Serialize)]
struct ImageReport {
    name: String,
    names: Vec<String>,
    digest: String,
    media_type: String,
    platforms: Vec<String>,
    /// Requested platforms that the image does not offer.
    missing_platforms: Vec<String>,
    /// Reason why nodes make no image of it, if it is not an image.
    no_image: Option<String>,
    /// Bytes of all its blobs, including blobs that it shares with other images.
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct BlobReport {
    #[serde(flatten)]
    of: MadeOf,
    fetched_bytes: u64,
    cached_bytes: u64,
    /// Number of blobs that are left out because the base of a delta has them.
    left_out: usize,
    left_out_bytes: u64,
}

impl Report {
    pub(super) fn new(
        job: &Job<'_>,
        draft: &Draft,
        artifacts: &HashMap<Digest, String>,
        written: Written,
        total: u64,
        took: Duration,
    ) -> Self {
        let told = |image| ImageReport::new(image, artifacts);
        let of = MadeOf::of(job.layout);
        Self {
            made: Made::of(job.target, job.layout, &written),
            compression: compression(job.args.compress).as_str(),
            base: draft.relies_on.as_ref().map(|reliance| reliance.base.clone()),
            release: making::release_of(draft),
            images: job.images.iter().map(told).collect(),
            blobs: BlobReport {
                left_out_bytes: total - of.written_bytes,
                of,
                fetched_bytes: job.counters.fetched.load(Ordering::Relaxed),
                cached_bytes: job.counters.cached.load(Ordering::Relaxed),
                left_out: draft
                    .relies_on
                    .as_ref()
                    .map_or(0, |reliance| reliance.blobs.len()),
            },
            duration_ms: basics::milliseconds(took),
        }
    }
}

impl Render for Report {
    fn text(&self) -> Page {
        let mut text = Page::new();
        for image in &self.images {
            let platforms = image.platforms.join(", ");
            output::line!(
                text,
                "  {:>9}  {} ({platforms})",
                output::bytes(image.bytes),
                image.name
            );
            for missing in &image.missing_platforms {
                output::line!(text, "             has nothing for {missing}");
            }
            if let Some(reason) = &image.no_image {
                output::line!(text, "             {reason}");
            }
        }
        let blobs = &self.blobs;
        output::line!(
            text,
            "{}: {}, {} in {} ({} fetched, {} from the cache)",
            self.made.path,
            basics::counted(self.images.len(), "image"),
            output::bytes(self.made.bytes),
            basics::counted(blobs.of.written, "blob"),
            output::bytes(blobs.fetched_bytes),
            output::bytes(blobs.cached_bytes),
        );
        if let Some(base) = &self.base {
            let bytes = output::bytes(blobs.left_out_bytes);
            output::line!(
                text,
                "a delta on {base}, without {} ({bytes})",
                basics::counted(blobs.left_out, "layer")
            );
        }
        if let Some(release) = &self.release {
            output::line!(text, "release {release}");
        }
        text
    }
}

impl ImageReport {
    fn new(image: &Resolved, artifacts: &HashMap<Digest, String>) -> Self {
        Self {
            name: image.reference.to_string(),
            names: image.draft.names.clone(),
            digest: image.draft.target.digest().to_string(),
            media_type: image.draft.target.media_type().to_string(),
            platforms: image.platforms.clone(),
            missing_platforms: image.missing.clone(),
            no_image: artifacts.get(image.draft.target.digest()).cloned(),
            bytes: making::bytes_of(&image.draft),
        }
    }
}
