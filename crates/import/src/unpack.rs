//! Unpack-ahead: the layers of an image become snapshots before its first container wants them.
//!
//! containerd unpacks an image when CRI first makes a container of it, within kubelet's deadline
//! for that. Done ahead, the first pod starts as fast as the second, and a layer that cannot be
//! unpacked is found before a pod needs it. Everything happens inside containerd, with the
//! snapshotter that CRI uses and by its rules: names are chain IDs (image-spec, "Layer ChainID"),
//! and a label of the image's config keeps the uppermost snapshot for as long as the image is
//! there.
//!
//! Nothing counts as unpacked before it lasts: containerd is asked to sync each layer (`sync_fs`,
//! from 1.7 on), and where its disk can be seen from here it is synced once more before a snapshot
//! gets its name. A snapshot that a power cut left empty would be believed for ever.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use basics::chain;
use bundle::{Content, Limits, Manifest, Node, Part, PartState, resolve};
use containerd::{BlobInfo, Client, Held, LayerSpec, Snapshotter};
use oci_spec::image::{Descriptor, Digest};
use platforms::Matcher;
use tokio_util::sync::CancellationToken;

use crate::Survey;
use crate::content::{CONTAINERD, ContentStore};
use crate::lease::{self, Lease};
use crate::select::{Closure, chosen_for, in_words, is_layer, problems_in};

/// The label of a config that keeps the snapshots of its image, by snapshotter.
const SNAPSHOT_REF: &str = "containerd.io/gc.ref.snapshot.";
/// The label of a layer that says what it unpacks to.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// How often an image is begun anew whose snapshots are collected under our hands.
const ROUNDS: usize = 3;
/// Names the lease of [`unpack_ahead`]; no bundle has such an id.
const LEASE: &str = "unpack";

/// When images are unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unpack {
    /// When the first container of an image is made, by CRI.
    #[default]
    None,
    /// After all names of the bundle are there. What goes wrong is reported and withdraws nothing.
    Background,
    /// Each image before its records are written; one that cannot be unpacked gets none.
    BeforeRecord,
}

/// What images are unpacked with, and for which platform.
#[derive(Clone, Debug)]
pub struct Unpacker {
    snapshotter: Snapshotter,
    matcher: Matcher,
}

/// What became of an image that was to be unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Layers that were unpacked now.
    pub layers: u64,
    /// Layers that had been before.
    pub present: u64,
}

/// Why an image could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// containerd could not do it; whether the layer is to blame, the error knows.
    #[error(transparent)]
    Containerd(#[from] containerd::Error),
    /// It is not an image that could be unpacked; why.
    #[error("{0}")]
    Unfit(String),
    /// What was unpacked could not be made to last.
    #[error("cannot sync {}, where containerd unpacks layers", path.display())]
    Sync {
        /// The folder of the snapshotter.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It was told to stop. What is unpacked stays for as long as the lease does.
    #[error("unpacking was interrupted")]
    Stopped,
}

impl UnpackError {
    /// Whether the image itself is to blame, so that trying again is pointless.
    #[must_use]
    pub fn is_content(&self) -> bool {
        match self {
            UnpackError::Containerd(error) => error.recovery() == containerd::Recovery::Content,
            UnpackError::Unfit(_) => true,
            UnpackError::Sync { .. } | UnpackError::Stopped => false,
        }
    }
}

/// An image in containerd that is to be unpacked.
#[derive(Clone, Debug)]
pub struct Ahead {
    /// A name that its record has.
    pub name: String,
    /// What the record points at.
    pub target: Digest,
    /// Every blob it needs on this node.
    pub closure: Vec<Digest>,
}

impl Unpacker {
    /// Unpacks with a snapshotter what containerd would run on the node that `matcher` is of.
    #[must_use]
    pub fn new(snapshotter: Snapshotter, matcher: Matcher) -> Unpacker {
        Unpacker { snapshotter, matcher }
    }

    /// The name of the snapshotter.
    #[must_use]
    pub fn snapshotter(&self) -> &str {
        &self.snapshotter.name
    }

    /// Whether an image is unpacked already, by the labels of its blobs and the names of all
    /// snapshots.
    pub(crate) fn is_unpacked<'b>(
        &self,
        mut closure: impl Iterator<Item = &'b BlobInfo>,
        snapshots: &HashSet<String>,
    ) -> bool {
        let key = self.label();
        closure.any(|blob| {
            blob.labels
                .get(&key)
                .is_some_and(|chain| snapshots.contains(chain))
        })
    }

    /// The key of the label that keeps snapshots.
    fn label(&self) -> String {
        format!("{SNAPSHOT_REF}{}", self.snapshotter.name)
    }

    /// Unpacks what this node would run of an image whose blobs are in containerd, one layer after
    /// the other.
    ///
    /// `blobs` are those of the image, with their sizes in bytes.
    ///
    /// # Errors
    ///
    /// [`UnpackError`]. Layers below the one that failed stay unpacked under the lease.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any await: what is unpacked by then is under the lease and goes with it.
    pub async fn unpack(
        &self,
        client: &Client,
        lease: &str,
        target: &Descriptor,
        blobs: impl IntoIterator<Item = (Digest, u64)>,
        stop: &CancellationToken,
    ) -> Result<Unpacked, UnpackError> {
        let rootfs = self.rootfs(client, target, blobs).await?;
        let Some((rootfs, top)) = rootfs
            .as_ref()
            .and_then(|rootfs| Some((rootfs, rootfs.layers.last()?)))
        else {
            return Ok(Unpacked::default());
        };
        let job = Job {
            client,
            lease,
            snapshotter: &self.snapshotter,
            stop,
        };
        let unpacked = job.layers(&rootfs.layers).await?;
        let kept = BTreeMap::from([(self.label(), top.chain.to_string())]);
        client.set_blob_labels(&rootfs.config, &kept).await?;
        Ok(unpacked)
    }

    /// Reads manifest and config of what this node would run, if there is anything.
    async fn rootfs(
        &self,
        client: &Client,
        target: &Descriptor,
        blobs: impl IntoIterator<Item = (Digest, u64)>,
    ) -> Result<Option<RootFs>, UnpackError> {
        let mut store = ContentStore::of(client, blobs);
        let (target, matcher) = (target.clone(), self.matcher.clone());
        let read = move || {
            let node = resolve(&target, &mut store, &Limits::default());
            if let Some(error) = store.take_failure() {
                return Err(UnpackError::Containerd(error));
            }
            let node = node.map_err(|fault| UnpackError::Unfit(chain(&fault)))?;
            RootFs::of(&node, &matcher).map_err(UnpackError::Unfit)
        };
        // Each document is waited for, so this has a thread of its own.
        let read = tokio::task::spawn_blocking(read).await;
        read.expect("reading never panics")
    }
}

/// The layers of an image, lowest first, and the config that keeps them.
#[derive(Debug, PartialEq, Eq)]
struct RootFs {
    config: Digest,
    layers: Vec<LayerSpec>,
}

impl RootFs {
    /// Of what `matcher` chooses below `root`, if it does; why that cannot be unpacked, otherwise.
    fn of(root: &Node, matcher: &Matcher) -> Result<Option<RootFs>, String> {
        let Some(node) = chosen_for(root, matcher) else {
            return Ok(None);
        };
        match &node.content {
            Content::Manifest(manifest) => match problems_in(CONTAINERD, node, manifest) {
                problems if problems.is_empty() => Ok(Some(RootFs::of_manifest(manifest))),
                problems => Err(in_words(&problems)),
            },
            Content::Broken(flaw) => Err(flaw.to_string()),
            Content::Absent | Content::Index(_) | Content::Other => {
                let digest = node.descriptor.digest();
                Err(format!("the manifest {digest} is not in {CONTAINERD}"))
            }
        }
    }

    fn of_manifest(manifest: &Manifest) -> RootFs {
        let layers = manifest.layers.iter().map(|part| &part.descriptor);
        let layers = layers.filter(|blob| is_layer(blob)).zip(manifest.diff_ids.iter());
        let mut parent: Option<Digest> = None;
        let specs = layers.map(|(blob, diff_id)| {
            let chain = chain_id(parent.as_ref(), diff_id);
            LayerSpec {
                blob: blob.clone(),
                diff_id: diff_id.clone(),
                parent: parent.replace(chain.clone()),
                chain,
            }
        });
        RootFs {
            layers: specs.collect(),
            config: manifest.config.descriptor.digest().clone(),
        }
    }
}

/// The image as it counts where these snapshots are committed: the layers of a manifest that is
/// unpacked as a whole are needed no more, so those that are absent count as present. `None` where
/// there is nothing of the kind.
///
/// containerd looks for the snapshots first, and fetches or applies layers only where one of them
/// is absent. So an image runs whose layers were thrown away after unpacking
/// (`discard_unpacked_layers` in containerd's configuration).
#[must_use]
pub fn as_unpacked(image: &Node, snapshots: &HashSet<String>) -> Option<Node> {
    let mut image = image.clone();
    count_unpacked(&mut image, snapshots).then_some(image)
}

fn count_unpacked(node: &mut Node, snapshots: &HashSet<String>) -> bool {
    match &mut node.content {
        Content::Index(children) => {
            let mut any = false;
            for child in Arc::make_mut(children) {
                any |= count_unpacked(child, snapshots);
            }
            any
        }
        Content::Manifest(manifest) => {
            let absent = |layer: &&mut Part| layer.state == PartState::Absent && is_layer(&layer.descriptor);
            let mut any = false;
            if is_manifest_unpacked(manifest, snapshots) {
                let manifest = Arc::make_mut(manifest);
                for layer in manifest.layers.iter_mut().filter(absent) {
                    layer.state = PartState::Present;
                    any = true;
                }
            }
            any
        }
        Content::Other | Content::Absent | Content::Broken(_) => false,
    }
}

fn is_manifest_unpacked(manifest: &Manifest, snapshots: &HashSet<String>) -> bool {
    let rootfs = RootFs::of_manifest(manifest);
    let file_systems = manifest
        .layers
        .iter()
        .filter(|layer| is_layer(&layer.descriptor))
        .count();
    !rootfs.layers.is_empty()
        && rootfs.layers.len() == file_systems
        && rootfs.layers.len() == manifest.diff_ids.len()
        && rootfs
            .layers
            .iter()
            .all(|layer| snapshots.contains(layer.chain.as_ref()))
}

/// Whether a manifest of an image, one of those in `taken`, is unpacked as a whole where these
/// snapshots are committed: the first container of it need not wait for that.
#[must_use]
pub fn is_unpacked(image: &Node, taken: &Closure, snapshots: &HashSet<String>) -> bool {
    let digest = image.descriptor.digest();
    match &image.content {
        Content::Index(children) => children.iter().any(|child| is_unpacked(child, taken, snapshots)),
        Content::Manifest(manifest) => {
            taken.blobs.iter().any(|blob| blob.digest == *digest) && is_manifest_unpacked(manifest, snapshots)
        }
        Content::Other | Content::Absent | Content::Broken(_) => false,
    }
}

/// The name of everything up to a layer, by the name of what is below it (image-spec, "Layer
/// ChainID").
fn chain_id(parent: Option<&Digest>, diff_id: &Digest) -> Digest {
    let Some(parent) = parent else {
        return diff_id.clone();
    };
    basics::digest::sha256(format!("{parent} {diff_id}").as_bytes())
}

/// The unpacking of one image.
struct Job<'a> {
    client: &'a Client,
    lease: &'a str,
    snapshotter: &'a Snapshotter,
    stop: &'a CancellationToken,
}

impl Job<'_> {
    async fn layers(&self, layers: &[LayerSpec]) -> Result<Unpacked, UnpackError> {
        for _ in 1..ROUNDS {
            match self.layers_once(layers).await {
                Err(UnpackError::Containerd(containerd::Error::Gone { what, .. })) => {
                    tracing::debug!(
                        what,
                        "it was collected while an image was unpacked: beginning anew"
                    );
                }
                ended => return ended,
            }
        }
        self.layers_once(layers).await
    }

    async fn layers_once(&self, layers: &[LayerSpec]) -> Result<Unpacked, UnpackError> {
        let present = self.hold_highest(layers).await?;
        let mut unpacked = Unpacked {
            present: present as u64,
            layers: 0,
        };
        for layer in &layers[present..] {
            if self.stop.is_cancelled() {
                return Err(UnpackError::Stopped);
            }
            match self.layer(layer).await? {
                true => unpacked.layers += 1,
                false => unpacked.present += 1,
            }
        }
        Ok(unpacked)
    }

    /// How many layers are there up to the highest one that is; it is on the lease then, and keeps
    /// those below it.
    async fn hold_highest(&self, layers: &[LayerSpec]) -> Result<usize, UnpackError> {
        let (client, name) = (self.client, &self.snapshotter.name);
        let known = client.snapshots(name).await?;
        for (at, layer) in layers.iter().enumerate().rev() {
            if known.contains(layer.chain.as_ref())
                && client.hold_snapshot(self.lease, name, &layer.chain).await? == Held::Held
            {
                return Ok(at + 1);
            }
        }
        Ok(0)
    }

    /// Unpacks a layer; says whether that was left to be done.
    async fn layer(&self, layer: &LayerSpec) -> Result<bool, UnpackError> {
        let name = &self.snapshotter.name;
        let Some(applied) = self.client.apply_layer(self.lease, name, layer).await? else {
            return Ok(false);
        };
        if let Err(error) = make_last(self.snapshotter.root.as_deref()).await {
            applied.discard().await;
            return Err(error);
        }
        applied.commit().await?;
        let told = BTreeMap::from([(UNCOMPRESSED.to_owned(), layer.diff_id.to_string())]);
        self.client.set_blob_labels(layer.blob.digest(), &told).await?;
        tracing::debug!(layer = %layer.blob.digest(), "unpacked");
        Ok(true)
    }
}

/// Makes everything last that is written to the disk of a folder (syncfs(2)), where it can be seen
/// from here.
async fn make_last(folder: Option<&Path>) -> Result<(), UnpackError> {
    let Some(path) = folder.map(Path::to_owned) else {
        return Ok(());
    };
    let sync = move || match File::open(&path) {
        Ok(folder) => rustix::fs::syncfs(folder).map_err(|errno| (path, io::Error::from(errno))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err((path, error)),
    };
    let synced = tokio::task::spawn_blocking(sync).await;
    synced
        .expect("a sync never panics")
        .map_err(|(path, source)| UnpackError::Sync { path, source })
}

/// Hears how [`unpack_ahead`] gets on.
pub trait AheadObserver: Send + Sync {
    /// So many images are to be unpacked. Comes first.
    fn found(&self, images: usize);
    /// An image is through.
    fn image(&self, image: &Ahead, ended: &Result<Unpacked, UnpackError>);
}

/// Unpacks those images that are in containerd and are not unpacked yet, one after the other, in
/// the order given.
///
/// One listing each of records, blobs and snapshots says what is to be done; if that is nothing,
/// nothing is leased and nothing written. An image that is to blame itself spares the others.
///
/// # Errors
///
/// What no other image would fare better with: containerd is away, its disk is full.
/// [`UnpackError::Stopped`] when `stop` was heard.
///
/// # Cancel safety
///
/// May be dropped at any await. What was unpacked is kept by its image, what was about to be by a
/// lease that is found again, or ends by itself.
pub async fn unpack_ahead(
    client: &Client,
    unpacker: &Unpacker,
    images: &[Ahead],
    stop: &CancellationToken,
    observer: &dyn AheadObserver,
) -> Result<(), UnpackError> {
    let digests = images
        .iter()
        .flat_map(|image| image.closure.iter().cloned())
        .collect();
    let names = images.iter().map(|image| image.name.as_str()).collect();
    let survey = Survey::of(client, &names, &digests).await?;
    let snapshots = client.snapshots(unpacker.snapshotter()).await?;
    let due: Vec<(&Ahead, Descriptor, HashMap<Digest, u64>)> = images
        .iter()
        .filter_map(|image| {
            is_due(image, unpacker, &survey, &snapshots).map(|(target, blobs)| (image, target, blobs))
        })
        .collect();
    observer.found(due.len());
    if due.is_empty() {
        return Ok(());
    }
    let lease = Lease::acquire(client, LEASE, "unpacking").await?;
    for (image, target, blobs) in due {
        if stop.is_cancelled() {
            return Err(UnpackError::Stopped);
        }
        let ended = unpacker.unpack(client, lease.id(), &target, blobs, stop).await;
        observer.image(image, &ended);
        match ended {
            Ok(_) => {}
            Err(error) if error.is_content() => {}
            Err(UnpackError::Containerd(containerd::Error::Gone { .. })) => {}
            Err(error) => return Err(error),
        }
    }
    lease::give_back(client, LEASE).await?;
    Ok(())
}

/// The target of an image that is whole in containerd and not unpacked, with the sizes of its
/// blobs.
fn is_due(
    image: &Ahead,
    unpacker: &Unpacker,
    survey: &Survey,
    snapshots: &HashSet<String>,
) -> Option<(Descriptor, HashMap<Digest, u64>)> {
    let record = survey.records.get(&image.name)?;
    let blobs: Option<Vec<&BlobInfo>> = image
        .closure
        .iter()
        .map(|digest| survey.blobs.get(digest))
        .collect();
    let blobs = blobs.filter(|_| record.target.digest() == &image.target)?;
    if unpacker.is_unpacked(blobs.iter().copied(), snapshots) {
        return None;
    }
    let sizes = blobs.iter().map(|blob| (blob.digest.clone(), blob.size));
    Some((record.target.clone(), sizes.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(fill: char) -> Digest {
        format!("sha256:{}", fill.to_string().repeat(64)).parse().unwrap()
    }

    #[test]
    fn a_chain_begins_with_the_diff_id_and_goes_on_by_hashing() {
        assert_eq!(chain_id(None, &digest('a')), digest('a'));
        // By printf and sha256sum.
        let hex = "ccd722928bd92476ba1745586fed6e45a102504185ad88cd89e01ff116fd146c";
        let two = chain_id(Some(&digest('a')), &digest('b'));
        assert_eq!(two.to_string(), format!("sha256:{hex}"));
        assert_ne!(
            chain_id(Some(&digest('b')), &digest('a')),
            two,
            "the order counts"
        );
    }
}
