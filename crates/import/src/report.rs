//! The document that `airgapd import -o json` prints.

use std::path::PathBuf;

use serde::Serialize;

use crate::result::{BlobCounts, BundleResult, ImageOutcome, ImageResult, Outcome, UnpackCounts};
use crate::space::Forecast;

/// The document about a bundle, made from its [`BundleResult`].
#[derive(Clone, Debug, Serialize)]
pub struct BundleReport {
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
    /// One entry for each record, and one for each skipped or failed image without records.
    pub images: Vec<ImageReport>,
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
}

/// The entry about a record, or about an image without a record.
#[derive(Clone, Debug, Serialize)]
pub struct ImageReport {
    /// The record's name. Without a record, the archive's name of the image.
    pub name: String,
    /// The digest of the record's target.
    pub digest: String,
    /// The media type of the record's target.
    pub media_type: String,
    /// The platforms that are in place, best first.
    pub platforms: Vec<String>,
    /// The result.
    pub outcome: ImageOutcome,
    /// The reason, if the result needs one.
    pub reason: Option<String>,
    /// The former target of a moved record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_digest: Option<String>,
}

impl From<BundleResult> for BundleReport {
    fn from(result: BundleResult) -> BundleReport {
        let images = result.told().cloned().map(ImageReport::from).collect();
        let warnings = result.all_warnings();
        BundleReport {
            path: result.path,
            format: result.format,
            compression: result.compression,
            outcome: result.outcome,
            error: result.error,
            images,
            blobs: result.blobs,
            unpacked: result.unpacked,
            space: result.space,
            duration_ms: result.duration_ms,
            warnings,
        }
    }
}

impl From<ImageResult> for ImageReport {
    fn from(image: ImageResult) -> ImageReport {
        ImageReport {
            name: image.name,
            digest: image.target.to_string(),
            media_type: image.media_type.to_string(),
            platforms: image.platforms,
            outcome: image.outcome,
            reason: image.reason,
            previous_digest: image.previous.map(|digest| digest.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use oci_spec::image::{Descriptor, Digest, MediaType};

    use super::*;
    use crate::ingest::foreseen;
    use crate::labels::Source;
    use crate::plan::{Intent, OnConflict, plan};
    use crate::result::image_results;
    use crate::select::{Choice, Closure, NamedTarget, Problem, Selection, Taken, Verdict};
    use crate::survey::Survey;

    const SHA256: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn choice(target: &Descriptor, verdict: Verdict) -> Choice {
        Choice {
            label: "r.test/a:1".to_owned(),
            target: target.clone(),
            verdict,
            notes: Vec::new(),
        }
    }

    fn target(digest: &str) -> Descriptor {
        Descriptor::new(MediaType::ImageManifest, 7, digest.parse::<Digest>().unwrap())
    }

    fn taken(names: &[&str], target: &Descriptor) -> Verdict {
        let target = Arc::new(target.clone());
        let record = |name: &&str| NamedTarget {
            name: (*name).to_owned(),
            target: Arc::clone(&target),
        };
        Verdict::Take(Taken {
            records: names.iter().map(record).collect(),
            closure: Closure {
                blobs: Vec::new(),
                platforms: vec!["linux/amd64".to_owned()],
            },
        })
    }

    /// Returns results of three images: one with two names, one with a sha512 digest, and a broken
    /// one.
    fn results() -> Vec<ImageResult> {
        let (one, other) = (target(SHA256), target(&format!("sha512:{}", "b".repeat(128))));
        let broken = Verdict::Broken(vec![Problem::of_image("no layers".to_owned())]);
        let selection = Selection {
            choices: vec![
                choice(&one, taken(&["r.test/a:1", "r.test/a:2"], &one)),
                choice(&other, taken(&["r.test/b:1"], &other)),
                choice(&one, broken),
            ],
            asked_records: 3,
        };
        let taken: Vec<&Taken> = selection.taken().collect();
        let intent = Intent::new(Source::Hand("a.tar".to_owned()), OnConflict::Replace);
        let plan = plan(&taken, &Survey::default(), &intent);
        image_results(&selection, &foreseen(&plan), "a.tar")
    }

    #[test]
    fn every_record_has_a_result_with_the_digest_of_its_target_itself() {
        let found: Vec<_> = results()
            .into_iter()
            .map(|image| (image.name, image.target, image.outcome.as_str()))
            .collect();
        let (one, other) = (target(SHA256), target(&format!("sha512:{}", "b".repeat(128))));
        let expected = [
            ("r.test/a:1", &one, "created"),
            ("r.test/a:2", &one, "created"),
            ("r.test/b:1", &other, "created"),
            ("r.test/a:1", &one, "failed"),
        ];
        let expected = expected.map(|(name, target, word)| (name.to_owned(), target.digest().clone(), word));
        assert_eq!(found, expected);
    }

    #[test]
    fn the_document_is_made_of_the_result_word_for_word() {
        let mut images = results();
        images.drain(1..3);
        images[0].previous = Some(SHA256.parse().unwrap());
        let result = BundleResult {
            images,
            outcome: Outcome::Partial,
            ..BundleResult::refused(
                Path::new("/a.tar"),
                "why".to_owned(),
                crate::Cause::Other,
                std::time::Duration::from_millis(5),
            )
        };
        let image = |rest: &str| {
            let media_type = "application/vnd.oci.image.manifest.v1+json";
            format!(r#"{{"name":"r.test/a:1","digest":"{SHA256}","media_type":"{media_type}",{rest}}}"#)
        };
        let created = format!(
            r#""platforms":["linux/amd64"],"outcome":"created","reason":null,"previous_digest":"{SHA256}""#
        );
        let failed = r#""platforms":[],"outcome":"failed","reason":"no layers""#;
        let blobs =
            r#"{"sent":0,"sent_bytes":0,"present":0,"present_bytes":0,"not_needed":0,"not_needed_bytes":0}"#;
        let expected = format!(
            r#"{{"path":"/a.tar","format":null,"compression":null,"outcome":"partial","error":"why","images":[{},{}],"blobs":{blobs},"unpacked":null,"space":null,"duration_ms":5,"warnings":[]}}"#,
            image(&created),
            image(failed)
        );
        assert_eq!(
            serde_json::to_string(&BundleReport::from(result)).unwrap(),
            expected
        );
    }
}
