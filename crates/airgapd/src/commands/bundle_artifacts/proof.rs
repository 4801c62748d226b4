//! The proof that nodes take the images of the bundle: by the plan before the first layer is
//! fetched, and by the finished file.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Context as _;
use bundle::write::DraftImage;
use bundle::{Bundle, Limits, Store};
use import::select::Skip;
use import::{Judgement, Policy};
use oci_spec::image::Digest;
use platforms::Rules;
use registry::Resolved;

use crate::commands::inspect::Inspection;
use crate::commands::{Refusal, making};

/// Checks that nodes of the requested platforms take every image of the bundle.
pub(super) struct BundleProof {
    pub(super) policy: Policy,
    pub(super) limits: Limits,
    /// Requested artifacts: digest and kind. The bundle carries them, and nodes make no record of
    /// them.
    pub(super) artifacts: HashMap<Digest, String>,
}

/// The verdict of a node on an image.
enum Prospect {
    Taken(DraftImage),
    /// Not a container image, but an artifact that newer containerds mount as a volume.
    Volume(DraftImage, String),
    /// Not a container image, but an artifact of this kind.
    Artifact(String),
    Refused(String),
}

impl BundleProof {
    /// Checks the documents before the first layer is fetched. It warns of artifacts, and returns
    /// the images for the bundle.
    ///
    /// # Errors
    ///
    /// Returns every image that no such node would take, with the reason. If there are only
    /// artifacts, it returns all of them.
    pub(super) fn of_plan(&mut self, images: &[Resolved]) -> Result<Vec<DraftImage>, Refusal> {
        let (mut refused, mut artifacts, mut drafts) = (Vec::new(), Vec::new(), Vec::new());
        for image in images {
            match self.prospect(image) {
                Prospect::Taken(draft) => drafts.push(draft),
                Prospect::Refused(reason) => refused.push(format!("{}: {reason}", image.reference)),
                Prospect::Volume(draft, what) => {
                    tracing::warn!("{}: {what}", image.reference);
                    self.artifacts.insert(image.draft.target.digest().clone(), what);
                    drafts.push(draft);
                }
                Prospect::Artifact(what) => {
                    artifacts.push(format!("{}: {what}", image.reference));
                    self.artifacts.insert(image.draft.target.digest().clone(), what);
                    drafts.push(image.draft.clone());
                }
            }
        }
        if !images.is_empty() && artifacts.len() == images.len() {
            refused.append(&mut artifacts);
        }
        if !refused.is_empty() {
            return Err(making::not_made(refused));
        }
        for artifact in artifacts {
            tracing::warn!("{artifact}");
        }
        Ok(drafts)
    }

    fn prospect(&self, image: &Resolved) -> Prospect {
        let mut inventory = Planned::of(image);
        let root = match bundle::resolve(&image.draft.target, &mut inventory, &self.limits) {
            Ok(root) => root,
            Err(fault) => return Prospect::Refused(fault.to_string()),
        };
        let newest = self.policy.wanted.by(&[Rules::Rc3]);
        let no_image = |skip: Skip| Prospect::Artifact(format!("no node makes an image of it: {skip}"));
        match import::judge(&root, &self.policy.wanted, "the bundle") {
            Judgement::Whole(_) => {
                let mut draft = image.draft.clone();
                draft.find_images(&root);
                Prospect::Taken(draft)
            }
            Judgement::Broken(problems) => Prospect::Refused(import::select::in_words(&problems)),
            Judgement::Artifact(kind)
                if matches!(import::judge(&root, &newest, "the bundle"), Judgement::Whole(_)) =>
            {
                Prospect::Volume(image.draft.clone(), Skip::Artifact(kind).to_string())
            }
            Judgement::Artifact(kind) => no_image(Skip::Artifact(kind)),
            Judgement::Foreign(offered) if offered.is_empty() => no_image(Skip::Foreign { offered }),
            Judgement::Foreign(offered) => Prospect::Refused(Skip::Foreign { offered }.to_string()),
        }
    }

    /// Checks the finished file as `airgapd inspect` does.
    ///
    /// # Errors
    ///
    /// Returns an error if the file is not a bundle. Otherwise it returns every image that no such
    /// node would take.
    pub(super) fn of_file(&self, path: &Path) -> Result<(), Refusal> {
        let bundle = Bundle::open(path, &self.limits).context("the new bundle cannot be read")?;
        let inspection = Inspection::of(&bundle, &self.policy);
        let refused =
            inspection.refused(|digest| self.artifacts.keys().any(|known| known.as_ref() == digest));
        if !refused.is_empty() || !inspection.is_complete() {
            return Err(making::not_made(refused));
        }
        Ok(())
    }
}

/// The blobs that a bundle of this image will have.
struct Planned<'a> {
    documents: HashMap<&'a Digest, &'a [u8]>,
    layers: HashMap<&'a Digest, u64>,
}

impl<'a> Planned<'a> {
    fn of(image: &'a Resolved) -> Planned<'a> {
        let documents = image.documents().map(|(blob, bytes)| (&blob.digest, bytes));
        let layers = image.draft.layers.iter().map(|blob| (&blob.digest, blob.size));
        Planned {
            documents: documents.collect(),
            layers: layers.collect(),
        }
    }
}

impl Store for Planned<'_> {
    fn size(&self, digest: &Digest) -> Option<u64> {
        let document = self.documents.get(digest).map(|bytes| bytes.len() as u64);
        document.or_else(|| self.layers.get(digest).copied())
    }

    fn read(&mut self, digest: &Digest) -> Result<Vec<u8>, String> {
        let document = self.documents.get(digest).map(|bytes| bytes.to_vec());
        document.ok_or_else(|| format!("{digest} is not a document"))
    }
}
