//! Unpack-ahead: the layers of an image become snapshots before its first container needs them.
//!
//! Without it, containerd unpacks an image when CRI first makes a container from it, and kubelet's
//! deadline runs meanwhile. With it, the first pod starts as fast as the second. A layer that
//! cannot be unpacked is found before a pod needs it.
//!
//! Everything happens inside containerd, with the snapshotter that CRI uses and by its rules. Names
//! are chain IDs (image-spec, "Layer ChainID"). A label of the image's config keeps the uppermost
//! snapshot as long as the image exists.
//!
//! A layer counts as unpacked only when it is durable. If airgapd sees the files of the snapshot,
//! it syncs their disk before the snapshot gets its name. Otherwise it has containerd sync them
//! (`sync_fs`, from 1.7 on). Without a sync, a snapshot that a power cut left empty would count as
//! good for ever.
//!
//! Layers of different images are unpacked at the same time (`underway`). The layers of an image
//! follow each other, since a snapshot needs the snapshot below. If the snapshotter can add that
//! later, the layers of an image are unpacked at the same time, too. Only their commits follow each
//! other. A layer with a folder that only the layers below list is then unpacked after them.

mod underway;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use basics::chain;
use bundle::{Content, Limits, Manifest, Node, Part, PartState, resolve};
use containerd::{Applied, Base, BlobInfo, Client, LayerSpec, Snapshotter};
use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};
use oci_spec::image::{Descriptor, Digest, MediaType};
use platforms::Matcher;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use self::underway::{Folder, Reserved, Underway};
use crate::Survey;
use crate::content::{CONTAINERD, ContentStore};
use crate::lease::{self, Lease};
use crate::names::Reference;
use crate::select::{Closure, chosen_for, in_words, is_layer, problems_in};

/// Prefix of a config's label that keeps the snapshots of its image, followed by the snapshotter.
const SNAPSHOT_REF: &str = "containerd.io/gc.ref.snapshot.";
/// Label of a layer with the digest of its uncompressed tar.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// Number of attempts at an image whose snapshots are collected meanwhile.
const ROUNDS: usize = 3;
/// The snapshotter whose mounts have at most [`MOST_LAYERS`] layers.
const OVERLAYFS: &str = "overlayfs";
/// Most layers of an image that overlayfs mounts for a container (`OVL_MAX_STACK` in Linux,
/// fs/overlayfs/params.h). containerd unpacks more, since it mounts nothing for that.
const MOST_LAYERS: usize = 500;
/// Id of the lease of [`unpack_ahead`]. No bundle has such an id.
const LEASE: &str = "unpack";

/// The time at which images are unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unpack {
    /// CRI unpacks an image when it makes the image's first container.
    #[default]
    None,
    /// After all records of the bundle. A failure is reported and removes no record.
    Background,
    /// Before each image's records. An image that cannot be unpacked gets no records.
    BeforeRecord,
}

/// The snapshotter and the platform for unpacking.
#[derive(Clone, Debug)]
pub struct Unpacker {
    snapshotter: Snapshotter,
    matcher: Matcher,
    underway: Arc<Underway>,
}

/// The result of unpacking an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Number of layers that this call unpacked.
    pub layers: u64,
    /// Number of layers that were already unpacked.
    pub present: u64,
}

/// The reason why an image could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// containerd failed. The error says whether the layer is to blame.
    #[error(transparent)]
    Containerd(#[from] containerd::Error),
    /// The content is no image that can be unpacked. The text is the reason.
    #[error("{0}")]
    Unfit(String),
    /// The unpacked files could not be synced.
    #[error("cannot sync {}, where containerd unpacks layers", path.display())]
    Sync {
        /// The folder of the snapshotter.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The disk would come near kubelet's thresholds.
    #[error(
        "unpacking ahead would fill the disk of {} nearly to the point at which kubelet removes images",
        path.display()
    )]
    NoRoom {
        /// Folder of the snapshotter.
        path: PathBuf,
    },
    /// The caller asked to stop. Unpacked layers stay as long as the lease.
    #[error("unpacking was interrupted")]
    Stopped,
}

impl UnpackError {
    /// Returns true if the image itself is to blame, so that a retry is pointless.
    #[must_use]
    pub fn is_content(&self) -> bool {
        match self {
            UnpackError::Containerd(error) => error.recovery() == containerd::Recovery::Content,
            UnpackError::Unfit(_) => true,
            UnpackError::Sync { .. } | UnpackError::NoRoom { .. } | UnpackError::Stopped => false,
        }
    }
}

/// The part of the disk that unpacking may fill.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Room {
    /// The whole disk: the image gets no record without its unpacked layers.
    Any,
    /// The part well below kubelet's thresholds, less these bytes that the import will still write.
    Ahead {
        /// In bytes.
        besides: u64,
    },
}

/// An image in containerd to unpack.
#[derive(Clone, Debug)]
pub struct Ahead {
    /// Name of one of the image's records.
    pub name: String,
    /// The record's target.
    pub target: Digest,
    /// Every blob that the image needs on this node.
    pub closure: Vec<Digest>,
    /// True if the configuration puts the image before others.
    pub is_wanted: bool,
}

impl Unpacker {
    /// Makes an unpacker with this snapshotter. It unpacks the image that containerd would run on
    /// the node of `matcher`.
    #[must_use]
    pub fn new(snapshotter: Snapshotter, matcher: Matcher) -> Unpacker {
        Unpacker {
            snapshotter,
            matcher,
            underway: Arc::default(),
        }
    }

    /// Returns the name of the snapshotter.
    #[must_use]
    pub fn snapshotter(&self) -> &str {
        &self.snapshotter.name
    }

    /// Returns true if an image is already unpacked, by the labels of its blobs and the names of
    /// all snapshots.
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

    /// Number of images to unpack at a time.
    pub(crate) fn images_at_a_time(&self) -> usize {
        self.underway.images_at_a_time()
    }

    /// Returns the key of the label that keeps snapshots.
    fn label(&self) -> String {
        format!("{SNAPSHOT_REF}{}", self.snapshotter.name)
    }

    /// Unpacks the image that this node would run, one layer after the other. Its blobs must be in
    /// containerd.
    ///
    /// `blobs` are the image's blobs, with their sizes in bytes.
    ///
    /// # Errors
    ///
    /// Returns an [`UnpackError`]. Layers below the failed layer stay unpacked under the lease.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any await. Layers unpacked by then are under the lease and are removed
    /// with it.
    pub(crate) async fn unpack(
        &self,
        client: &Client,
        lease: &str,
        target: &Descriptor,
        blobs: impl IntoIterator<Item = (Digest, u64)>,
        room: Room,
        stop: &CancellationToken,
    ) -> Result<Unpacked, UnpackError> {
        let rootfs = self.rootfs(client, target, blobs).await?;
        let Some((rootfs, top)) = rootfs
            .as_ref()
            .and_then(|rootfs| Some((rootfs, rootfs.layers.last()?)))
        else {
            return Ok(Unpacked::default());
        };
        if self.snapshotter.name == OVERLAYFS && rootfs.layers.len() > MOST_LAYERS {
            return Err(UnpackError::Unfit(format!(
                "no container of it can start: it has {} layers, and overlayfs mounts at most {MOST_LAYERS}",
                rootfs.layers.len()
            )));
        }
        let job = Job {
            client,
            lease,
            snapshotter: &self.snapshotter,
            underway: &self.underway,
            room,
            stop,
        };
        let unpacked = job.layers(&rootfs.layers).await?;
        let kept = BTreeMap::from([(self.label(), top.chain.to_string())]);
        client.set_blob_labels(&rootfs.config, &kept).await?;
        Ok(unpacked)
    }

    /// Reads manifest and config of the image that this node would run, if there is one.
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
        // Reading waits for each document, so it runs on its own thread.
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
    /// Returns the layers of the image that `matcher` chooses below `root`, if it chooses one. The
    /// error is the reason why the image cannot be unpacked.
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

/// Returns the image as containerd sees it with these snapshots. If a manifest is completely
/// unpacked, its layers are no longer needed, so absent layers count as present. Returns `None` if
/// that changes nothing.
///
/// containerd looks for the snapshots first, and fetches or applies layers only if one of them is
/// absent. So an image runs even if its layers were discarded after unpacking
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

/// Returns true if one of the image's manifests in `taken` is completely unpacked into these
/// snapshots. Then the first container need not wait for unpacking.
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

/// Returns the chain ID of a layer, from the chain ID of the layer below (image-spec, "Layer
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
    underway: &'a Underway,
    room: Room,
    stop: &'a CancellationToken,
}

impl Job<'_> {
    async fn layers(&self, layers: &[LayerSpec]) -> Result<Unpacked, UnpackError> {
        for _ in 1..ROUNDS {
            match self.layers_once(layers).await {
                Err(UnpackError::Containerd(containerd::Error::Gone { what, .. })) => {
                    tracing::debug!(what, "containerd collected it during unpacking: starting again");
                    self.underway.forget().await;
                }
                ended => return ended,
            }
        }
        self.layers_once(layers).await
    }

    async fn layers_once(&self, layers: &[LayerSpec]) -> Result<Unpacked, UnpackError> {
        let name = &self.snapshotter.name;
        let highest = self.underway.hold_highest(self.client, self.lease, name, layers);
        let present = highest.await?;
        let mut unpacked = Unpacked {
            present: present as u64,
            layers: 0,
        };
        let mut count = |is_new| match is_new {
            true => unpacked.layers += 1,
            false => unpacked.present += 1,
        };
        match self.snapshotter.rebases {
            true => self
                .at_once(&layers[present..])
                .await?
                .into_iter()
                .for_each(count),
            false => {
                for layer in &layers[present..] {
                    count(self.layer(layer).await?);
                }
            }
        }
        Ok(unpacked)
    }

    /// Unpacks layers at the same time, and names their snapshots in order. A failure ends the
    /// layers above it. Returns true for each layer that was not already unpacked.
    async fn at_once(&self, layers: &[LayerSpec]) -> Result<Vec<bool>, UnpackError> {
        let lowest_failed = &AtomicUsize::new(usize::MAX);
        let mut below = None;
        let jobs = layers.iter().enumerate().map(|(at, layer)| {
            let (named, is_named) = oneshot::channel();
            let is_named_below = below.replace(is_named);
            async move {
                let ended = self.layer_at_once(at, layer, is_named_below, lowest_failed).await;
                match &ended {
                    // The layer above may have failed.
                    Ok(_) => drop(named.send(())),
                    Err(_) => drop(lowest_failed.fetch_min(at, Ordering::AcqRel)),
                }
                ended
            }
        });
        // The first error is that of the lowest layer, which ended the others.
        join_all(jobs).await.into_iter().collect()
    }

    /// Unpacks a layer while the layers below are unpacked. Without a receiver, those are unpacked
    /// already.
    async fn layer_at_once(
        &self,
        at: usize,
        layer: &LayerSpec,
        is_named_below: Option<oneshot::Receiver<()>>,
        lowest_failed: &AtomicUsize,
    ) -> Result<bool, UnpackError> {
        let _turn = self.underway.turn(&layer.chain).await;
        let Some(is_named_below) = is_named_below else {
            return self.in_order(layer).await;
        };
        let is_futile = || lowest_failed.load(Ordering::Acquire) < at;
        let applied = self.apply(layer, Base::Later, is_futile).await?;
        if is_named_below.await.is_err() {
            if let Attempt::Applied(applied) = applied {
                applied.discard().await;
            }
            return Err(UnpackError::Stopped);
        }
        match applied {
            Attempt::Present => Ok(false),
            Attempt::Applied(applied) => self.name(layer, *applied).await,
            Attempt::NeedsBelow => self.in_order(layer).await,
        }
    }

    /// Reserves the bytes that a layer may unpack to, if room is limited.
    fn reserve(&self, layer: &LayerSpec) -> Result<Option<Reserved<'_>>, UnpackError> {
        match (self.room, &self.snapshotter.root) {
            (Room::Ahead { besides }, Some(root)) => {
                let bytes = may_unpack_to(&layer.blob);
                self.underway.reserve(root, bytes, besides).map(Some)
            }
            (Room::Ahead { .. }, None) | (Room::Any, _) => Ok(None),
        }
    }

    /// Unpacks a layer whose layers below are unpacked. Returns false if it was already unpacked.
    async fn layer(&self, layer: &LayerSpec) -> Result<bool, UnpackError> {
        let _turn = self.underway.turn(&layer.chain).await;
        self.in_order(layer).await
    }

    /// Unpacks a layer during its turn. Returns false if it was already unpacked.
    async fn in_order(&self, layer: &LayerSpec) -> Result<bool, UnpackError> {
        match self.apply(layer, Base::Now, || false).await? {
            Attempt::Applied(applied) => self.name(layer, *applied).await,
            Attempt::Present | Attempt::NeedsBelow => Ok(false),
        }
    }

    /// Applies a layer and syncs its files, unless that became futile.
    async fn apply(
        &self,
        layer: &LayerSpec,
        base: Base,
        is_futile: impl Fn() -> bool,
    ) -> Result<Attempt, UnpackError> {
        let (client, underway) = (self.client, self.underway);
        let place = underway.place().await;
        if self.stop.is_cancelled() || is_futile() {
            return Err(UnpackError::Stopped);
        }
        let name = &self.snapshotter.name;
        let Some(prepared) = client.prepare_layer(self.lease, name, layer, base).await? else {
            return Ok(Attempt::Present);
        };
        let _reserved = match self.reserve(layer) {
            Ok(reserved) => reserved,
            Err(error) => {
                prepared.discard().await;
                return Err(error);
            }
        };
        let folder = Folder::open(prepared.folder()).await;
        let Some(applied) = prepared.apply(folder.is_none()).await? else {
            return Ok(Attempt::NeedsBelow);
        };
        drop(place);
        if let Some(folder) = folder
            && let Err(error) = underway.sync(&folder).await
        {
            applied.discard().await;
            return Err(error);
        }
        Ok(Attempt::Applied(Box::new(applied)))
    }

    /// Names the snapshot of an applied layer.
    async fn name(&self, layer: &LayerSpec, applied: Applied) -> Result<bool, UnpackError> {
        applied.commit().await?;
        self.underway.committed(&layer.chain).await;
        let told = BTreeMap::from([(UNCOMPRESSED.to_owned(), layer.diff_id.to_string())]);
        self.client.set_blob_labels(layer.blob.digest(), &told).await?;
        tracing::debug!(layer = %layer.blob.digest(), "unpacked");
        Ok(true)
    }
}

/// The result of applying a layer.
enum Attempt {
    /// The layer was already unpacked.
    Present,
    /// The layer's snapshot needs its name.
    Applied(Box<Applied>),
    /// The layer can be applied only after the layers below.
    NeedsBelow,
}

/// Returns the number of bytes that a layer may unpack to. Text and programs come to three times
/// the size of their compressed layer.
fn may_unpack_to(layer: &Descriptor) -> u64 {
    const COMPRESSED: u64 = 4;
    match layer.media_type() {
        MediaType::ImageLayer | MediaType::ImageLayerNonDistributable => layer.size(),
        _ => layer.size().saturating_mul(COMPRESSED),
    }
}

/// Receives the progress of [`unpack_ahead`].
pub trait AheadObserver: Send + Sync {
    /// Gets the number of images to unpack. Comes first.
    fn found(&self, images: usize);
    /// Gets the result of a finished image.
    fn image(&self, image: &Ahead, ended: &Result<Unpacked, UnpackError>);
}

/// An image to unpack, its target, and the sizes of its blobs in bytes.
type Due<'a> = (&'a Ahead, Descriptor, HashMap<Digest, u64>);

/// Unpacks the images that are in containerd and not yet unpacked. Wanted images start first, then
/// those of repositories that have containers on this node. Otherwise they start in the given
/// order, one more at a time than there are cores.
///
/// One list each of records, blobs and snapshots shows the work to do. If there is none, the call
/// takes no lease and writes nothing. A bad image does not stop the others.
///
/// # Errors
///
/// Returns an error that would hit every other image, too: containerd is away, or its disk is full.
/// Returns [`UnpackError::Stopped`] if `stop` was cancelled.
///
/// # Cancel safety
///
/// May be dropped at any await. Each image keeps its unpacked layers. Unfinished layers are under a
/// lease, which the next call finds again, or which expires. The next call removes them first.
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
    let mut due: Vec<Due<'_>> = images
        .iter()
        .filter_map(|image| {
            is_due(image, unpacker, &survey, &snapshots).map(|(target, blobs)| (image, target, blobs))
        })
        .collect();
    observer.found(due.len());
    if due.is_empty() {
        return Ok(());
    }
    let repositories = client.containers().await?;
    let repositories: HashSet<_> = repositories
        .iter()
        .filter_map(|container| repository(&container.image))
        .collect();
    let ran_here = |image: &Ahead| repository(&image.name).is_some_and(|it| repositories.contains(&it));
    due.sort_by_cached_key(|(image, ..)| (!image.is_wanted, !image.is_wanted && !ran_here(image)));
    let lease = Lease::acquire(client, LEASE, "unpacking").await?;
    // Those of a process that died take room, and have no use.
    client.remove_unfinished_snapshots(lease.id()).await?;
    let ended = carry_out(client, unpacker, lease.id(), due, stop, observer).await;
    // A full disk hurts every program on the node. Otherwise the lease keeps the unpacked layers
    // for the next call.
    match &ended {
        Ok(()) => lease::give_back(client, LEASE).await?,
        Err(UnpackError::Containerd(error)) if error.recovery() == containerd::Recovery::Space => {
            if let Err(error) = lease::give_back(client, LEASE).await {
                tracing::debug!(%error, "cannot delete the lease, which will expire");
            }
        }
        Err(_) => {
            if let Err(error) = client.remove_unfinished_snapshots(lease.id()).await {
                tracing::debug!(%error, "unfinished snapshots are left behind");
            }
        }
    }
    ended
}

/// Unpacks the images of [`unpack_ahead`] under its lease. An error drops the other images, whose
/// snapshots without names stay.
async fn carry_out(
    client: &Client,
    unpacker: &Unpacker,
    lease: &str,
    due: Vec<Due<'_>>,
    stop: &CancellationToken,
    observer: &dyn AheadObserver,
) -> Result<(), UnpackError> {
    let mut jobs = Vec::new();
    for (image, target, blobs) in due {
        jobs.push(async move {
            let room = Room::Ahead { besides: 0 };
            let unpacked = unpacker.unpack(client, lease, &target, blobs, room, stop).await;
            (image, unpacked)
        });
    }
    let mut jobs = stream::iter(jobs).buffer_unordered(unpacker.images_at_a_time());
    while let Some((image, ended)) = jobs.next().await {
        observer.image(image, &ended);
        match ended {
            Ok(_) => {}
            Err(error) if error.is_content() => {}
            Err(UnpackError::Containerd(containerd::Error::Gone { .. })) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Returns the repository of a record's name, if the name is a reference.
fn repository(name: &str) -> Option<String> {
    let reference: Reference = name.parse().ok()?;
    Some(reference.repository().to_owned())
}

/// Returns the target of an image that is whole in containerd and not unpacked, with the sizes of
/// its blobs.
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
        // Computed with printf and sha256sum.
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
