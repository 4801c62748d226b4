//! The intended content of a bundle, before its archive is laid out.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use oci_spec::image::{Descriptor, Digest};
use platforms::Platform;

use crate::image::documents;
use crate::{
    BlobRef, Content, Image, Kind, Manifest, Members, Node, Part, PartState, Receipt, Release, Reliance,
};

/// The intended content of a bundle. The order of images and names does not matter, because they
/// are sorted.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// The images. An image that occurs twice, or under two names, is written once.
    pub images: Vec<DraftImage>,
    /// Layers that are left out because the bundle's destination has them: see
    /// [`Draft::leave_out`]. The bundle lists them. They are never requested, although images refer
    /// to them.
    pub relies_on: Option<Reliance>,
    /// The members of the release that the bundle belongs to. Each name of an image must be among
    /// them.
    pub release: Option<Arc<Members>>,
}

impl Draft {
    /// Makes the draft a delta: leaves out the layers in `present`, which the base called `base`
    /// has.
    ///
    /// Documents stay, so that the bundle describes its images completely. If no layer is left out,
    /// the draft is not a delta and relies on nothing.
    pub fn leave_out(&mut self, base: &str, present: &HashSet<Digest>) {
        let mut left_out = self.only_layers();
        left_out.retain(|blob| present.contains(&blob.digest));
        self.relies_on = (!left_out.is_empty()).then(|| Reliance::new(base, left_out));
    }

    /// Returns the layers that are no document of any image.
    fn only_layers(&self) -> Vec<BlobRef> {
        let documents: HashSet<&Digest> = self
            .images
            .iter()
            .flat_map(|image| image.documents.iter().map(|blob| &blob.digest))
            .collect();
        let layers = self.images.iter().flat_map(|image| &image.layers);
        layers
            .filter(|blob| !documents.contains(&blob.digest))
            .cloned()
            .collect()
    }

    /// Makes the draft a receipt: leaves out all layers, which containerd has.
    pub fn stand_for(&mut self, receipt: Receipt) {
        self.relies_on = Some(Reliance {
            receipt: Some(receipt.clone()),
            ..Reliance::new(receipt.bundle, self.only_layers())
        });
    }

    /// Keeps the release of another bundle with these images. Returns false, and keeps no release,
    /// if its list is unusable or an image of the draft is no member.
    pub fn stay_in(&mut self, release: &Release) -> bool {
        let members = release.members.as_ref().ok();
        self.release = members
            .filter(|members| self.images.iter().all(|image| image.stranger(members).is_none()))
            .map(Arc::clone);
        self.release.is_some()
    }

    /// Removes the name by digest of the only image, if its other name is a tag of the same
    /// repository. Readers of layouts use the only entry without a name. airgapd's import creates
    /// the name by digest for each tag.
    ///
    /// Call this for names from containerd, where airgapd has added a name by digest to each tag.
    /// Keep a name by digest that the operator gave, because other importers create none.
    pub fn leave_out_derived_name(&mut self) {
        let Some((image, others)) = self.images.split_first() else {
            return;
        };
        let is_same = |other: &DraftImage| {
            other.target.digest() == image.target.digest()
                && other.platform == image.platform
                && (&other.documents, &other.layers) == (&image.documents, &image.layers)
        };
        let names: BTreeSet<&String> = self.images.iter().flat_map(|image| &image.names).collect();
        let (by_digest, tags): (Vec<&String>, Vec<&String>) =
            names.into_iter().partition(|name| name.contains('@'));
        let ([by_digest], [tag]) = (by_digest.as_slice(), tags.as_slice()) else {
            return;
        };
        let repository = tag.rfind(':').map_or(tag.as_str(), |colon| &tag[..colon]);
        let is_derived = **by_digest == format!("{repository}@{}", image.target.digest());
        if is_derived && others.iter().all(is_same) {
            let tag = (*tag).clone();
            self.images.truncate(1);
            self.images[0].names = vec![tag];
        }
    }
}

/// An image of the bundle: its names and its blobs.
#[derive(Clone, Debug)]
pub struct DraftImage {
    /// Full references (`docker.io/library/a:1`, `quay.io/b@sha256:...`). Each gets an entry of
    /// `index.json`. Empty for an image without a name.
    pub names: Vec<String>,
    /// The index or manifest behind the names. Its annotations are kept, except those that give
    /// names.
    pub target: Descriptor,
    /// The platform of its entry, for manifests that are not in an index.
    pub platform: Option<Platform>,
    /// Its blobs that are JSON documents: indexes, manifests and configs, including the target.
    pub documents: Vec<BlobRef>,
    /// All other blobs for the bundle. Layers of platforms that are left out are not in the list.
    pub layers: Vec<BlobRef>,
    /// Its complete container images, each once, for the `manifest.json` of a Docker archive. See
    /// [`DraftImage::find_images`].
    pub images: Vec<WholeImage>,
}

/// A container image with all its blobs, in the form of an element of a Docker archive's
/// `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WholeImage {
    /// Digest of the config.
    pub(super) config: Digest,
    /// Digests of the layers, lowest first.
    pub(super) layers: Vec<Digest>,
    /// True if each layer is a tar archive, plain or compressed, as readers of Docker archives
    /// expect.
    pub(super) has_tars_only: bool,
}

impl WholeImage {
    /// Returns the image that a manifest describes. Returns `None` for artifacts, and for images
    /// that containerd could not unpack.
    fn of(manifest: &Manifest) -> Option<Self> {
        let is_sound = manifest.kind == Kind::Image && manifest.problems.is_empty();
        is_sound.then(|| Self {
            config: manifest.config.descriptor.digest().clone(),
            layers: manifest
                .layers
                .iter()
                .map(|layer| layer.descriptor.digest().clone())
                .collect(),
            has_tars_only: manifest
                .layers
                .iter()
                .all(|layer| documents::is_tar_layer(layer.descriptor.media_type().as_ref())),
        })
    }
}

impl DraftImage {
    /// Returns an unchanged image of a bundle: its names, and every blob that is present.
    pub fn of(image: &Image) -> Self {
        let mut draft = Self {
            names: image.names.iter().map(|name| name.as_str().to_owned()).collect(),
            target: image.root.descriptor.clone(),
            platform: image.root.platform.clone(),
            documents: Vec::new(),
            layers: Vec::new(),
            images: Vec::new(),
        };
        draft.add(&image.root, &|_| true);
        draft.find_images(&image.root);
        draft
    }

    /// Returns a part of an image: its documents and layers that are in `blobs`.
    pub fn part(names: Vec<String>, root: &Node, blobs: &HashSet<Digest>) -> Self {
        let mut draft = Self {
            names,
            target: root.descriptor.clone(),
            platform: root.platform.clone(),
            documents: Vec::new(),
            layers: Vec::new(),
            images: Vec::new(),
        };
        draft.add(root, &|digest| blobs.contains(digest));
        draft.find_images(root);
        draft
    }

    /// Adds a node and the blobs below it that are present and wanted.
    fn add(&mut self, node: &Node, is_wanted: &dyn Fn(&Digest) -> bool) {
        if !is_wanted(node.descriptor.digest()) {
            return;
        }
        let blob = BlobRef::of(&node.descriptor);
        match &node.content {
            Content::Index(children) => {
                self.documents.push(blob);
                children.iter().for_each(|child| self.add(child, is_wanted));
            }
            Content::Manifest(manifest) => {
                let is_taken =
                    |part: &&Part| part.state == PartState::Present && is_wanted(part.descriptor.digest());
                let taken = |part: &Part| BlobRef::of(&part.descriptor);
                self.documents.push(blob);
                self.documents
                    .extend(Some(&manifest.config).filter(is_taken).map(taken));
                self.layers
                    .extend(manifest.layers.iter().filter(is_taken).map(taken));
            }
            Content::Other => self.layers.push(blob),
            Content::Absent | Content::Broken(_) => {}
        }
    }

    /// Finds the container images below the target `root` whose blobs are all in the draft.
    pub fn find_images(&mut self, root: &Node) {
        let own: HashSet<&Digest> = self.blobs().map(|blob| &blob.digest).collect();
        let mut found = Vec::new();
        whole_images(root, &own, &mut found);
        self.images = found;
    }

    /// Returns a name of the image that a release does not have for its target.
    pub(super) fn stranger(&self, members: &Members) -> Option<&String> {
        let is_member = |name: &String| members.get(name) == Some(self.target.digest());
        self.names.iter().find(|name| !is_member(name))
    }

    /// Returns its blobs, documents first.
    pub fn blobs(&self) -> impl Iterator<Item = &BlobRef> {
        self.documents.iter().chain(&self.layers)
    }
}

fn whole_images(node: &Node, own: &HashSet<&Digest>, found: &mut Vec<WholeImage>) {
    if !own.contains(node.descriptor.digest()) {
        return;
    }
    match &node.content {
        Content::Index(children) => children.iter().for_each(|child| whole_images(child, own, found)),
        Content::Manifest(manifest) => {
            let is_whole = |image: &WholeImage| {
                image
                    .layers
                    .iter()
                    .chain([&image.config])
                    .all(|digest| own.contains(digest))
            };
            let image = WholeImage::of(manifest).filter(is_whole);
            found.extend(image.filter(|image| !found.contains(image)));
        }
        Content::Other | Content::Absent | Content::Broken(_) => {}
    }
}
