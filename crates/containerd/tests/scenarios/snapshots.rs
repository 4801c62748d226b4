//! Unpacking in advance: a layer becomes a snapshot, or leaves nothing behind.

use std::future::poll_fn;
use std::path::PathBuf;
use std::pin::pin;
use std::task::Poll;

use bundle::Compression;
use bundle::fixtures::{Layer, LayerFile, compress};
use containerd::{Applied, Base, Client, Error, Held, LayerSpec, NewImage, Recovery, Resource};
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    ListSnapshotsRequest, RemoveSnapshotRequest, ViewSnapshotRequest,
};
use harness::{Place, Stage, collect_garbage, eventually, unique};
use lab::Generation;
use oci_spec::image::{Descriptor, Digest, MediaType};
use tonic::transport::Channel;

use crate::support::{Blob, channel, leased_request, request};
use crate::{labels, leased};

everywhere! {
    unpacked_layers_live_as_long_as_the_record_of_their_image
    unpacked_layers_go_with_their_lease
    unfinished_snapshots_are_removed_and_unpacked_layers_stay
    what_is_unpacked_is_held_and_not_unpacked_again
    a_layer_that_is_not_what_its_image_promises_is_named_and_removed
    layers_that_are_none_are_named_and_removed
    a_blob_or_a_parent_that_is_gone_begins_the_chain_again
    two_that_unpack_the_same_layer_both_have_it
    a_snapshot_that_vanishes_before_its_commit_is_gone
    a_snapshot_is_held_if_it_is_there
    layers_are_applied_in_any_order_if_the_snapshotter_rebases
    an_unpacking_that_is_dropped_at_any_await_leaves_nothing_behind_its_lease
}

const OCI: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// Layers in containerd, from the lowest to the uppermost, and a working snapshotter to unpack them
/// with.
pub(crate) struct Chain {
    client: Client,
    lease: String,
    snapshotter: String,
    layers: Vec<LayerSpec>,
}

impl Chain {
    /// Returns a chain without layers.
    pub(crate) async fn none(stage: &Stage) -> Chain {
        let (client, lease) = leased(stage).await;
        let snapshotter = client.snapshotter(false).await.expect("an answer").expect("one");
        Chain {
            client,
            lease,
            snapshotter: snapshotter.name,
            layers: Vec::new(),
        }
    }

    async fn of(stage: &Stage, layers: &[Layer]) -> Chain {
        let mut chain = Chain::none(stage).await;
        for layer in layers {
            chain.push(layer, OCI, layer.to_bytes()).await;
        }
        chain
    }

    /// Adds a layer whose blob has these bytes.
    pub(crate) async fn push(&mut self, plain: &Layer, media_type: &str, bytes: Vec<u8>) {
        let blob = Blob::of(bytes);
        self.client
            .write_blob(&self.lease, &blob.spec(), blob.source())
            .await
            .expect("written");
        let diff_id = plain.digest().clone();
        let parent = self.layers.last().map(|layer| layer.chain.clone());
        let chain = match &parent {
            None => diff_id.clone(),
            Some(parent) => Blob::of(format!("{parent} {diff_id}").into_bytes()).digest,
        };
        let media_type = MediaType::Other(media_type.to_owned());
        let blob = Descriptor::new(media_type, blob.size(), blob.digest);
        self.layers.push(LayerSpec {
            blob,
            diff_id,
            chain,
            parent,
        });
    }

    /// Applies one layer, counted from 0.
    pub(crate) async fn apply(&self, layer: usize) -> Result<Option<Applied>, Error> {
        let layer = &self.layers[layer];
        let prepared = self
            .client
            .prepare_layer(&self.lease, &self.snapshotter, layer, Base::Now);
        match prepared.await? {
            Some(prepared) => prepared.apply(true).await,
            None => Ok(None),
        }
    }

    /// Unpacks the whole chain. Returns the number of unpacked layers.
    pub(crate) async fn unpack(&self) -> Result<usize, Error> {
        let mut unpacked = 0;
        for layer in 0..self.layers.len() {
            if let Some(applied) = self.apply(layer).await? {
                applied.commit().await?;
                unpacked += 1;
            }
        }
        Ok(unpacked)
    }

    /// Applies the whole chain from the uppermost layer down, and commits it.
    async fn unpack_from_above(&self) {
        let mut applied = Vec::new();
        for layer in self.layers.iter().rev() {
            let (lease, snapshotter) = (&self.lease, &self.snapshotter);
            let prepared = self.client.prepare_layer(lease, snapshotter, layer, Base::Later);
            let prepared = prepared.await.expect("an answer").expect("it was not there");
            applied.extend(prepared.apply(true).await.expect("an answer"));
        }
        while let Some(lowest) = applied.pop() {
            lowest.commit().await.expect("committed");
        }
    }

    /// Returns the same layers for another client, under another lease.
    async fn again(&self, stage: &Stage) -> Chain {
        let (client, lease) = leased(stage).await;
        Chain {
            client,
            lease,
            snapshotter: self.snapshotter.clone(),
            layers: self.layers.clone(),
        }
    }

    pub(crate) fn snapshotter(&self) -> &str {
        &self.snapshotter
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.layers.iter().map(|layer| layer.chain.to_string()).collect();
        names.sort();
        names
    }

    async fn committed(&self) -> Vec<String> {
        let names = self.client.snapshots(&self.snapshotter).await.expect("an answer");
        let mut names: Vec<_> = names.into_iter().collect();
        names.sort();
        names
    }

    /// Returns the keys of all snapshots on the lease, committed or not.
    pub(crate) async fn on_lease(&self) -> Vec<String> {
        let resources = self.client.lease_resources(&self.lease).await.expect("an answer");
        let key = |resource| match resource {
            Resource::Snapshot { key, .. } => Some(key),
            _ => None,
        };
        let mut keys: Vec<_> = resources.into_iter().filter_map(key).collect();
        keys.sort();
        keys
    }

    /// Deletes the lease and waits for the garbage collection.
    pub(crate) async fn give_back(&self) {
        assert!(
            self.client
                .delete_lease(&self.lease, true)
                .await
                .expect("deleted")
        );
    }
}

/// Returns a layer that is unique to this test, with a file of that name.
pub(crate) fn layer(file: &str) -> Layer {
    Layer::files([LayerFile::new(file, unique())])
}

fn compressed(codec: Compression, layer: &Layer) -> Vec<u8> {
    let mut bytes = Vec::new();
    compress(codec, &mut bytes, |target| target.write_all(&layer.to_bytes()))
        .expect("memory takes any bytes");
    bytes
}

async fn unpacked_layers_live_as_long_as_the_record_of_their_image(stage: &Stage) {
    let mut chain = Chain::none(stage).await;
    let [plain, gzip, zstd] = ["plain", "gzip", "zstd"].map(layer);
    chain.push(&plain, OCI, plain.to_bytes()).await;
    let bytes = compressed(Compression::Gzip, &gzip);
    chain.push(&gzip, &format!("{OCI}+gzip"), bytes).await;
    let bytes = compressed(Compression::Zstd, &zstd);
    chain.push(&zstd, &format!("{OCI}+zstd"), bytes).await;
    assert_eq!(chain.unpack().await.expect("unpacked"), 3);
    assert_eq!(
        (chain.committed().await, chain.on_lease().await),
        (chain.names(), chain.names())
    );
    assert_files(stage, &chain, &["gzip", "plain", "zstd"]).await;

    let (client, config) = (&chain.client, Blob::sized(100));
    client
        .write_blob(&chain.lease, &config.spec(), config.source())
        .await
        .expect("written");
    let top = chain.layers[2].chain.to_string();
    let reference = format!("containerd.io/gc.ref.snapshot.{}", chain.snapshotter);
    client
        .set_blob_labels(&config.digest, &labels(&[(&reference, &top)]))
        .await
        .expect("labelled");
    let image = NewImage {
        name: "unpacked:1".to_owned(),
        target: Descriptor::new(MediaType::ImageConfig, config.size(), config.digest.clone()),
        labels: labels(&[]),
    };
    client.create_image(&image).await.expect("created");
    chain.give_back().await;
    assert_eq!(chain.committed().await, chain.names());
    client.delete_image("unpacked:1", true).await.expect("deleted");
    assert_eq!(chain.committed().await, [""; 0]);
}

/// The upper layer removes a file of the lowest. The middle one is in a folder that it does not
/// list.
async fn layers_are_applied_in_any_order_if_the_snapshotter_rebases(stage: &Stage) {
    let client = stage.client().await;
    let snapshotter = client.snapshotter(false).await.expect("an answer").expect("one");
    let is_new = matches!(stage.place(), Place::Real(Generation::V2_3));
    assert_eq!(snapshotter.rebases, is_new && snapshotter.name == "overlayfs");
    if !snapshotter.rebases {
        return;
    }
    let lowest = Layer::files([LayerFile::new("old", unique()), LayerFile::folder("folder")]);
    let middle = Layer::files([LayerFile::new("folder/file", unique())]);
    let upper = Layer::files([LayerFile::new(".wh.old", ""), LayerFile::new("new", unique())]);
    let chain = Chain::of(stage, &[lowest, middle, upper]).await;
    let on = async |layer: usize, base| {
        let prepared = client.prepare_layer(&chain.lease, &chain.snapshotter, &chain.layers[layer], base);
        let prepared = prepared.await.expect("an answer").expect("it was not there");
        prepared.apply(true).await.expect("an answer")
    };
    let upper = on(2, Base::Later).await.expect("applied");
    assert!(on(1, Base::Later).await.is_none(), "its folder is below");
    let lowest = on(0, Base::Later).await.expect("applied");
    let error = on(2, Base::Later).await.expect("applied").commit().await;
    assert!(matches!(error, Err(Error::Gone { .. })), "{error:?}");
    lowest.commit().await.expect("committed");
    let middle = on(1, Base::Now).await.expect("applied");
    middle.commit().await.expect("committed");
    upper.commit().await.expect("committed");
    assert_eq!(listed(stage, &chain).await.len(), 3);
    assert_eq!(chain.on_lease().await, chain.names());
    assert_files(stage, &chain, &["folder", "folder", "new", "old", "old"]).await;
}

/// Checks the files of the uppermost snapshot, if the containerd has files.
async fn assert_files(stage: &Stage, chain: &Chain, expected: &[&str]) {
    if stage.place() == Place::Fake {
        return;
    }
    let view = ViewSnapshotRequest {
        snapshotter: chain.snapshotter.clone(),
        key: "view".to_owned(),
        parent: chain.layers.last().expect("a layer").chain.to_string(),
        ..ViewSnapshotRequest::default()
    };
    let view = leased_request(stage, &chain.lease, view);
    let answer = raw(stage).view(view).await.expect("a view");
    let [mount] = answer.into_inner().mounts.try_into().expect("one mount");
    let lower = mount
        .options
        .iter()
        .find_map(|option| option.strip_prefix("lowerdir="));
    let folders = lower.unwrap_or(&mount.source).split(':').map(PathBuf::from);
    let mut files: Vec<String> = folders
        .flat_map(|folder| folder.read_dir().expect("a folder"))
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect();
    files.sort();
    assert_eq!(files, expected);
    remove(stage, chain, "view").await;
}

fn raw(stage: &Stage) -> SnapshotsClient<Channel> {
    SnapshotsClient::new(channel(stage))
}

async fn remove(stage: &Stage, chain: &Chain, key: &str) {
    let message = RemoveSnapshotRequest {
        snapshotter: chain.snapshotter.clone(),
        key: key.to_owned(),
    };
    raw(stage).remove(request(stage, message)).await.expect("removed");
}

async fn unpacked_layers_go_with_their_lease(stage: &Stage) {
    let chain = Chain::of(stage, &["lower", "upper"].map(layer)).await;
    assert_eq!(chain.unpack().await.expect("unpacked"), 2);
    let begun = Chain::of(stage, &[layer("begun")]).await;
    drop(begun.apply(0).await.expect("applied").expect("it was not there"));
    assert_eq!(begun.on_lease().await.len(), 1);
    assert_eq!(chain.committed().await, chain.names());
    chain.give_back().await;
    begun.give_back().await;
    assert_eq!(listed(stage, &chain).await, [""; 0]);
}

async fn unfinished_snapshots_are_removed_and_unpacked_layers_stay(stage: &Stage) {
    let chain = Chain::of(stage, &["unpacked", "begun"].map(layer)).await;
    let applied = chain.apply(0).await.expect("applied").expect("it was not there");
    applied.commit().await.expect("committed");
    drop(chain.apply(1).await.expect("applied").expect("it was not there"));
    assert_eq!(chain.on_lease().await.len(), 2);
    let unpacked = [chain.layers[0].chain.to_string()];
    // A second call finds nothing to do.
    for _ in 0..2 {
        let removed = chain.client.remove_unfinished_snapshots(&chain.lease).await;
        removed.expect("removed");
        assert_eq!(chain.on_lease().await, unpacked);
        assert_eq!(listed(stage, &chain).await, unpacked);
    }
    chain.give_back().await;
}

/// Lists all snapshots of the namespace, committed or not.
pub(crate) async fn listed(stage: &Stage, chain: &Chain) -> Vec<String> {
    let list = ListSnapshotsRequest {
        snapshotter: chain.snapshotter.clone(),
        filters: Vec::new(),
    };
    let answer = raw(stage).list(request(stage, list)).await.expect("a list");
    let (mut pages, mut names) = (answer.into_inner(), Vec::new());
    while let Some(page) = pages.message().await.expect("a page") {
        names.extend(page.info.into_iter().map(|info| info.name));
    }
    names
}

async fn what_is_unpacked_is_held_and_not_unpacked_again(stage: &Stage) {
    let chain = Chain::of(stage, &["lower", "upper"].map(layer)).await;
    assert_eq!(chain.unpack().await.expect("unpacked"), 2);
    let again = chain.again(stage).await;
    assert_eq!(again.unpack().await.expect("there"), 0);
    assert_eq!(again.on_lease().await, chain.names());
    chain.give_back().await;
    assert_eq!(again.committed().await, chain.names());
}

async fn a_layer_that_is_not_what_its_image_promises_is_named_and_removed(stage: &Stage) {
    let mut chain = Chain::none(stage).await;
    let [promised, other] = ["promised", "other"].map(layer);
    chain.push(&promised, OCI, other.to_bytes()).await;
    let error = chain.apply(0).await.expect_err("another layer");
    assert_eq!(error.recovery(), Recovery::Content, "{error:?}");
    for digest in [chain.layers[0].blob.digest(), promised.digest(), other.digest()] {
        assert!(error.to_string().contains(digest.as_ref()), "{error}");
    }
    assert_eq!(
        (chain.on_lease().await, chain.committed().await),
        (vec![], vec![])
    );
}

async fn layers_that_are_none_are_named_and_removed(stage: &Stage) {
    let is_old = stage.client().await.version().await.expect("an answer").major < 2;
    let large = Layer::files([LayerFile::new("file", Blob::sized(100_000).bytes.to_vec())]);
    let (plain, gzip) = (large.to_bytes(), compressed(Compression::Gzip, &large));
    let zstd = compressed(Compression::Zstd, &large);
    let with = |bytes: &[u8], place: usize| {
        let mut bytes = bytes.to_vec();
        bytes[place..place + 8].fill(0xff);
        bytes
    };
    let (of_gzip, of_zstd) = (format!("{OCI}+gzip"), format!("{OCI}+zstd"));
    let mut bad = vec![
        ("corrupt gzip", &*of_gzip, with(&gzip, gzip.len() / 2)),
        ("wrong checksum", &of_gzip, with(&gzip, gzip.len() - 8)),
        ("cut gzip", &of_gzip, gzip[..gzip.len() / 2].to_vec()),
        ("corrupt zstd", &of_zstd, with(&zstd, zstd.len() / 2)),
        ("cut zstd", &of_zstd, zstd[..zstd.len() / 2].to_vec()),
        ("cut tar", OCI, plain[..plain.len() / 2].to_vec()),
        ("wrong header", OCI, with(&plain, 0)),
        ("no tar", OCI, Blob::sized(5_000).bytes.to_vec()),
        ("a few bytes", OCI, unique().into_bytes()),
        ("gzip as tar", OCI, gzip.clone()),
        ("unknown type", "application/x-unheard-of", plain.clone()),
    ];
    let of_docker = format!("{DOCKER}.zstd");
    if is_old {
        bad.push(("zstd of Docker", &of_docker, zstd));
    }
    for (what, media_type, bytes) in bad {
        let mut chain = Chain::none(stage).await;
        chain.push(&large, media_type, bytes).await;
        let error = chain.apply(0).await.expect_err(what);
        assert_eq!(error.recovery(), Recovery::Content, "{what}: {error:?}");
        let blob = chain.layers[0].blob.digest();
        assert!(error.to_string().contains(blob.as_ref()), "{what}: {error}");
        assert_eq!(chain.on_lease().await, [""; 0], "{what}");
    }
}

async fn a_blob_or_a_parent_that_is_gone_begins_the_chain_again(stage: &Stage) {
    let chain = Chain::of(stage, &["lower", "upper"].map(layer)).await;
    let error = chain.apply(1).await.expect_err("nothing to stand on");
    assert!(matches!(error, Error::Gone { .. }), "{error:?}");
    assert!(
        error.to_string().contains(chain.layers[0].chain.as_ref()),
        "{error}"
    );
    assert_eq!(chain.unpack().await.expect("unpacked"), 2);

    let chain = Chain::of(stage, &[layer("file")]).await;
    let blob = chain.layers[0].blob.digest();
    chain.client.delete_blob(blob).await.expect("deleted");
    let error = chain.apply(0).await.expect_err("nothing to unpack");
    assert!(matches!(error, Error::Gone { .. }), "{error:?}");
    assert!(error.to_string().contains(blob.as_ref()), "{error}");
    assert_eq!(chain.on_lease().await, [""; 0]);
}

async fn two_that_unpack_the_same_layer_both_have_it(stage: &Stage) {
    let one = Chain::of(stage, &[layer("file")]).await;
    let other = one.again(stage).await;
    let (first, second) = tokio::join!(one.apply(0), other.apply(0));
    let first = first.expect("applied").expect("it was not there");
    let second = second.expect("applied").expect("it was not there");
    let (first, second) = tokio::join!(first.commit(), second.commit());
    first.expect("it is there");
    second.expect("it is there");
    assert_eq!(listed(stage, &one).await, one.names());
    assert_eq!(
        (one.on_lease().await, other.on_lease().await),
        (one.names(), one.names())
    );
}

async fn a_snapshot_that_vanishes_before_its_commit_is_gone(stage: &Stage) {
    let chain = Chain::of(stage, &[layer("file")]).await;
    let applied = chain.apply(0).await.expect("applied").expect("it was not there");
    let [key] = chain.on_lease().await.try_into().expect("one");
    remove(stage, &chain, &key).await;
    let error = applied.commit().await.expect_err("it is not there");
    assert!(matches!(error, Error::Gone { .. }), "{error:?}");
    assert!(
        error.to_string().contains(chain.layers[0].chain.as_ref()),
        "{error}"
    );
    let again = chain.apply(0).await.expect("applied").expect("it was not there");
    again.discard().await;
    assert_eq!(listed(stage, &chain).await, [""; 0]);
    assert_eq!(chain.unpack().await.expect("unpacked"), 1);
}

async fn a_snapshot_is_held_if_it_is_there(stage: &Stage) {
    let chain = Chain::of(stage, &["lower", "upper"].map(layer)).await;
    let again = chain.again(stage).await;
    let upper = &chain.layers[1].chain;
    let hold = async |lease: &str, snapshotter: &str, name: &Digest| {
        again.client.hold_snapshot(lease, snapshotter, name).await
    };
    assert_eq!(
        hold(&again.lease, &again.snapshotter, upper)
            .await
            .expect("an answer"),
        Held::Absent
    );
    assert_eq!(chain.unpack().await.expect("unpacked"), 2);
    assert_eq!(
        hold(&again.lease, &again.snapshotter, upper)
            .await
            .expect("an answer"),
        Held::Held
    );
    chain.give_back().await;
    assert_eq!(again.committed().await, chain.names());
    let error = hold("nowhere", &again.snapshotter, upper)
        .await
        .expect_err("no lease");
    assert_eq!(error.recovery(), Recovery::LeaseLost, "{error:?}");
    let error = hold(&again.lease, "none", upper)
        .await
        .expect_err("no snapshotter");
    assert_eq!(error.recovery(), Recovery::Permanent, "{error:?}");
    let error = again.client.snapshots("none").await.expect_err("no snapshotter");
    assert_eq!(error.recovery(), Recovery::Permanent, "{error:?}");
    let lost = Chain {
        lease: "nowhere".to_owned(),
        ..chain.again(stage).await
    };
    let error = lost.apply(0).await.expect_err("no lease");
    assert_eq!(error.recovery(), Recovery::LeaseLost, "{error:?}");
}

async fn an_unpacking_that_is_dropped_at_any_await_leaves_nothing_behind_its_lease(stage: &Stage) {
    let chain = Chain::none(stage).await;
    let snapshotter = chain
        .client
        .snapshotter(false)
        .await
        .expect("an answer")
        .expect("one");
    drop_at_any_await(stage, Base::Now).await;
    if snapshotter.rebases {
        drop_at_any_await(stage, Base::Later).await;
    }
}

async fn drop_at_any_await(stage: &Stage, base: Base) {
    for polls in 1.. {
        let chain = Chain::of(stage, &["lower", "upper"].map(layer)).await;
        let ended = match base {
            Base::Now => polled(chain.unpack(), polls).await.map(drop),
            Base::Later => polled(chain.unpack_from_above(), polls).await,
        };
        chain.give_back().await;
        eventually("nothing is left", async || {
            collect_garbage(&stage.client().await).await;
            listed(stage, &chain).await.is_empty()
        })
        .await;
        if ended.is_some() {
            assert!(polls > 4, "four calls are awaited, and there were {polls} polls");
            return;
        }
    }
}

/// Polls a future a number of times, and drops it if it has not ended by then.
async fn polled<F: Future>(future: F, mut polls: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|context| {
        let poll = future.as_mut().poll(context).map(Some);
        polls -= 1;
        if polls == 0 && poll.is_pending() {
            return Poll::Ready(None);
        }
        poll
    })
    .await
}
