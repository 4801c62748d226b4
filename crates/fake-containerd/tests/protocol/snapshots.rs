//! Unpacking in raw calls: prepare, apply and commit, and the refusals on the way. Real containerds
//! unpack to disk.

use std::io::Write as _;

use bundle::fixtures::{Layer, LayerFile};
use containerd_client::events::SnapshotRemove;
use containerd_client::services::v1::snapshots::*;
use containerd_client::services::v1::{ApplyRequest, ApplyResponse};
use containerd_client::types::{Descriptor, Mount};
use fake_containerd::sha256;
use tonic::{Code, Status};

use crate::raw::*;

/// Works on every file system.
const SNAPSHOTTER: &str = "native";
const TARGET: &str = "containerd.io/snapshot.ref";
const REFERENCE: &str = "containerd.io/gc.ref.snapshot.native";

const OCI: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER: &str = "application/vnd.docker.image.rootfs.diff.tar";

impl Raw {
    /// Returns a layer that no other scenario uses, uncompressed.
    fn layer(&self, what: &str) -> Vec<u8> {
        Layer::files([LayerFile::new("file", self.bytes(what))]).to_bytes()
    }

    /// Prepares a snapshot. `lease`, `parent` and `target` may be empty.
    pub(crate) async fn prepare(
        &self,
        lease: &str,
        key: &str,
        parent: &str,
        target: &str,
    ) -> Result<Vec<Mount>, Status> {
        let labels = [(TARGET, target)];
        let request = PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: labels_of(if target.is_empty() { &[] } else { &labels }),
        };
        let request = if lease.is_empty() {
            self.request(request)
        } else {
            self.leased(lease, request)
        };
        let answer = self.snapshots().prepare(request).await?;
        Ok(answer.into_inner().mounts)
    }

    /// Applies a layer of these bytes. Returns the digest of the uncompressed layer.
    pub(crate) async fn apply(
        &self,
        media_type: &str,
        bytes: &[u8],
        mounts: Vec<Mount>,
    ) -> Result<String, Status> {
        let diff = Descriptor {
            media_type: media_type.to_owned(),
            digest: sha256(bytes),
            size: length(bytes),
            annotations: Default::default(),
        };
        let request = ApplyRequest {
            diff: Some(diff),
            mounts,
            sync_fs: true,
            ..Default::default()
        };
        let answer = self.diff().apply(self.request(request)).await;
        let applied = |answer: ApplyResponse| answer.applied.unwrap();
        answer.map(|answer| applied(answer.into_inner()).digest)
    }

    /// Commits a snapshot.
    pub(crate) async fn keep(&self, lease: &str, key: &str, name: &str) -> Result<(), Status> {
        let request = CommitSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels: labels_of(&[(TARGET, name)]),
        };
        self.snapshots()
            .commit(self.leased(lease, request))
            .await
            .map(drop)
    }

    /// Unpacks a layer from beginning to end. Returns its name.
    async fn unpack(&self, lease: &str, bytes: &[u8], parent: &str) -> String {
        let diff_id = self.put(lease, bytes, &[]).await;
        let name = match parent {
            "" => diff_id,
            parent => sha256(format!("{parent} {diff_id}").as_bytes()),
        };
        let key = format!("key {name}");
        let mounts = self.prepare(lease, &key, parent, &name).await.unwrap();
        self.apply(OCI, bytes, mounts).await.unwrap();
        self.keep(lease, &key, &name).await.unwrap();
        name
    }

    async fn take_away(&self, key: &str) -> Result<(), Status> {
        let request = RemoveSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: key.to_owned(),
        };
        self.snapshots().remove(self.request(request)).await.map(drop)
    }

    async fn snapshot(&self, key: &str) -> Result<Info, Status> {
        let request = StatSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: key.to_owned(),
        };
        let answer = self.snapshots().stat(self.request(request)).await;
        answer.map(|answer| answer.into_inner().info.unwrap())
    }

    /// Returns the names (or keys) of all snapshots.
    async fn listed(&self, snapshotter: &str) -> Result<Vec<String>, Status> {
        let request = ListSnapshotsRequest {
            snapshotter: snapshotter.to_owned(),
            filters: Vec::new(),
        };
        let mut answers = self.snapshots().list(self.request(request)).await?.into_inner();
        let mut names = Vec::new();
        while let Some(answer) = answers.message().await? {
            names.extend(answer.info.into_iter().map(|info| info.name));
        }
        names.sort();
        Ok(names)
    }
}

/// Returns `snapshots/native/<key>`, as resources of leases are listed.
fn resource(key: &str) -> String {
    format!("snapshots/{SNAPSHOTTER}/{key}")
}

pub(crate) async fn a_layer_is_prepared_applied_and_named(raw: Raw) {
    let layer = raw.layer("layer");
    raw.lease("lease").await;
    let digest = raw.put("lease", &layer, &[]).await;
    let mounts = raw.prepare("lease", "key", "", &digest).await.unwrap();
    assert_eq!(mounts.len(), 1);
    let draft = raw.snapshot("key").await.unwrap();
    assert_eq!((draft.kind(), draft.parent.as_str()), (Kind::Active, ""));
    assert_eq!(draft.labels, labels_of(&[(TARGET, &digest)]));
    assert_eq!(
        raw.resources("lease").await,
        [format!("content/{digest}"), resource("key")]
    );
    assert_eq!(raw.apply(OCI, &layer, mounts).await.unwrap(), digest);
    raw.keep("lease", "key", &digest).await.unwrap();
    let named = raw.snapshot(&digest).await.unwrap();
    assert_eq!(
        (named.kind(), named.name.as_str()),
        (Kind::Committed, digest.as_str())
    );
    assert_eq!(named.labels, labels_of(&[(TARGET, &digest)]));
    assert_eq!(raw.listed(SNAPSHOTTER).await.unwrap(), [digest.as_str()]);
    assert_eq!(
        raw.resources("lease").await,
        [format!("content/{digest}"), resource(&digest)]
    );
    assert_refused(
        raw.snapshot("key").await,
        Code::NotFound,
        "snapshot key does not exist: not found",
    );
}

pub(crate) async fn a_target_that_is_there_is_leased_and_not_prepared(raw: Raw) {
    raw.lease("first").await;
    let name = raw.unpack("first", &raw.layer("layer"), "").await;
    raw.lease("second").await;
    assert_refused(
        raw.prepare("second", "key", "", &name).await,
        Code::AlreadyExists,
        &format!("target snapshot {name:?}: already exists"),
    );
    // 1.6 leaves that to the client.
    let held = if raw.version >= (1, 7) {
        vec![resource(&name)]
    } else {
        Vec::new()
    };
    assert_eq!(raw.resources("second").await, held);
    assert_eq!(raw.listed(SNAPSHOTTER).await.unwrap(), [name]);
}

pub(crate) async fn a_key_is_used_once(raw: Raw) {
    raw.lease("lease").await;
    raw.prepare("lease", "key", "", "one").await.unwrap();
    assert_refused(
        raw.prepare("lease", "key", "", "two").await,
        Code::AlreadyExists,
        "snapshot \"key\": already exists",
    );
}

pub(crate) async fn a_parent_is_a_committed_snapshot(raw: Raw) {
    raw.lease("lease").await;
    assert_refused(
        raw.prepare("lease", "above", "below", "").await,
        Code::NotFound,
        "parent snapshot below does not exist: not found",
    );
    raw.prepare("lease", "below", "", "").await.unwrap();
    assert_refused(
        raw.prepare("lease", "above", "below", "").await,
        Code::InvalidArgument,
        "is not committed snapshot: invalid argument",
    );
    assert_eq!(raw.listed(SNAPSHOTTER).await.unwrap(), ["below"]);
    let name = raw.unpack("lease", &raw.layer("lower"), "").await;
    let upper = raw.unpack("lease", &raw.layer("upper"), &name).await;
    assert_eq!(raw.snapshot(&upper).await.unwrap().parent, name);
}

pub(crate) async fn a_name_is_given_once_and_the_loser_is_still_there(raw: Raw) {
    let layer = raw.layer("layer");
    raw.lease("lease").await;
    let name = raw.put("lease", &layer, &[]).await;
    for key in ["one", "two"] {
        let mounts = raw.prepare("lease", key, "", &name).await.unwrap();
        raw.apply(OCI, &layer, mounts).await.unwrap();
    }
    raw.keep("lease", "one", &name).await.unwrap();
    let text = format!("snapshot {name:?}: already exists");
    assert_refused(raw.keep("lease", "two", &name).await, Code::AlreadyExists, &text);
    let mut there = ["two", &name];
    there.sort_unstable();
    assert_eq!(raw.listed(SNAPSHOTTER).await.unwrap(), there);
    raw.take_away("two").await.unwrap();
    assert_eq!(raw.listed(SNAPSHOTTER).await.unwrap(), [name]);
}

pub(crate) async fn what_is_not_there_is_not_found_and_said_in_these_words(raw: Raw) {
    raw.lease("lease").await;
    raw.prepare("lease", "there", "", "").await.unwrap();
    let text = "snapshot nowhere does not exist: not found";
    assert_refused(raw.snapshot("nowhere").await, Code::NotFound, text);
    assert_refused(raw.take_away("nowhere").await, Code::NotFound, text);
    assert_refused(
        raw.keep("lease", "nowhere", "name").await,
        Code::NotFound,
        "not found",
    );
    assert_refused(
        raw.listed("").await,
        Code::InvalidArgument,
        "snapshotter argument missing: invalid argument",
    );
    assert_refused(
        raw.listed("none").await,
        Code::InvalidArgument,
        "snapshotter not loaded: none: invalid argument",
    );
    let text = "lease does not exist: not found";
    assert_refused(raw.prepare("nowhere", "key", "", "").await, Code::NotFound, text);
    assert_refused(raw.keep("nowhere", "there", "name").await, Code::NotFound, text);
    assert_eq!(raw.listed(SNAPSHOTTER).await.unwrap(), ["there"]);
}

pub(crate) async fn what_stands_on_a_snapshot_keeps_it(raw: Raw) {
    raw.lease("lease").await;
    let lower = raw.unpack("lease", &raw.layer("lower"), "").await;
    let upper = raw.unpack("lease", &raw.layer("upper"), &lower).await;
    assert_refused(
        raw.take_away(&lower).await,
        Code::FailedPrecondition,
        "cannot remove snapshot with child: failed precondition",
    );
    raw.take_away(&upper).await.unwrap();
    raw.take_away(&lower).await.unwrap();
    assert_eq!(raw.listed(SNAPSHOTTER).await.unwrap(), [""; 0]);
}

pub(crate) async fn snapshots_live_as_long_as_a_lease_or_a_labelled_config(raw: Raw) {
    raw.lease("lease").await;
    let lower = raw.unpack("lease", &raw.layer("lower"), "").await;
    let upper = raw.unpack("lease", &raw.layer("upper"), &lower).await;
    let other = raw.unpack("lease", &raw.layer("other"), "").await;
    raw.prepare("lease", "draft", "", "").await.unwrap();
    let config = raw.put("lease", &raw.bytes("config"), &[]).await;
    raw.label_blob(&config, &[(REFERENCE, &upper)], &[&format!("labels.{REFERENCE}")])
        .await
        .unwrap();
    raw.create_image("x", &config, &[]).await.unwrap();
    raw.collect_garbage().await;
    assert_eq!(raw.listed(SNAPSHOTTER).await.unwrap().len(), 4);
    raw.delete_lease("lease").await;
    let mut held = [lower, upper];
    held.sort_unstable();
    assert_eq!(raw.listed(SNAPSHOTTER).await.unwrap(), held);
    assert_refused(raw.snapshot(&other).await, Code::NotFound, "not found");
    raw.delete_image("x").await.unwrap();
    assert_eq!(raw.listed(SNAPSHOTTER).await.unwrap(), [""; 0]);
}

pub(crate) async fn a_lease_holds_a_snapshot_and_those_below(raw: Raw) {
    raw.lease("first").await;
    let lower = raw.unpack("first", &raw.layer("lower"), "").await;
    let upper = raw.unpack("first", &raw.layer("upper"), &lower).await;
    raw.lease("second").await;
    raw.hold("second", &format!("snapshots/{SNAPSHOTTER}"), &upper)
        .await
        .unwrap();
    raw.delete_lease("first").await;
    let mut held = [lower, upper];
    held.sort_unstable();
    assert_eq!(raw.listed(SNAPSHOTTER).await.unwrap(), held);
    raw.delete_lease("second").await;
    assert_eq!(raw.listed(SNAPSHOTTER).await.unwrap(), [""; 0]);
}

pub(crate) async fn what_becomes_of_snapshots_is_told(raw: Raw) {
    raw.lease("lease").await;
    let happen = async |count| {
        let probe = format!("probe-{count}");
        raw.prepare("lease", &probe, "", "").await.unwrap();
    };
    let mut stream = raw.subscribe(",topic~=\"/snapshot/\"", happen).await;
    let layer = raw.layer("layer");
    let name = raw.put("lease", &layer, &[]).await;
    let mounts = raw.prepare("lease", "key", "", &name).await.unwrap();
    raw.apply(OCI, &layer, mounts).await.unwrap();
    raw.keep("lease", "key", &name).await.unwrap();
    raw.take_away(&name).await.unwrap();
    raw.lease("short").await;
    raw.prepare("short", "collected", "", "").await.unwrap();
    raw.delete_lease("short").await;
    raw.prepare("lease", "last", "", "").await.unwrap();
    let told = |kind: &str, key: &str| (format!("containerd.events.Snapshot{kind}"), key.to_owned());
    let collected = told("Remove", "collected");
    let mut seen = Vec::new();
    // 1.6 publishes no event for a collection.
    let is_over = |seen: &[(String, String)]| {
        seen.contains(&told("Prepare", "last")) && (raw.version < (1, 7) || seen.contains(&collected))
    };
    while !is_over(&seen) {
        let event = stream.message().await.unwrap().unwrap().event.unwrap();
        // All three begin with the key.
        let key = <SnapshotRemove as prost::Message>::decode(event.value.as_slice())
            .unwrap()
            .key;
        if !key.starts_with("probe-") {
            seen.push((event.type_url, key));
        }
    }
    seen.retain(|event| *event != collected);
    let expected = [
        ("Prepare", "key"),
        ("Commit", "key"),
        ("Remove", &name),
        ("Prepare", "collected"),
        ("Prepare", "last"),
    ];
    assert_eq!(seen, expected.map(|(kind, key)| told(kind, key)));
}

/// Applies bytes to a new snapshot.
async fn applied(raw: &Raw, media_type: &str, bytes: &[u8]) -> Result<String, Status> {
    // Some of the layers are the same bytes under other types.
    if !raw.has(&sha256(bytes)).await {
        raw.put("lease", bytes, &[]).await;
    }
    let key = String::from_utf8(raw.bytes("key")).unwrap();
    let mounts = raw.prepare("lease", &key, "", "").await.unwrap();
    raw.apply(media_type, bytes, mounts).await
}

pub(crate) async fn layers_are_uncompressed_as_their_type_says(raw: Raw) {
    raw.lease("lease").await;
    let plain = raw.layer("layer");
    let (gzip, zstd) = (gzip(&plain), zstd(&plain));
    for (media_type, bytes) in [
        (OCI.to_owned(), &plain),
        (format!("{OCI}+gzip"), &gzip),
        (format!("{OCI}+zstd"), &zstd),
        (format!("{OCI}+gzip"), &plain),
        (format!("{OCI}+gzip"), &zstd),
        (format!("{OCI}+zstd"), &gzip),
        (
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip".to_owned(),
            &gzip,
        ),
        (DOCKER.to_owned(), &plain),
        (DOCKER.to_owned(), &gzip),
        (DOCKER.to_owned(), &zstd),
        (format!("{DOCKER}.gzip"), &gzip),
        (format!("{DOCKER}.gzip"), &zstd),
        (
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".to_owned(),
            &gzip,
        ),
    ] {
        let digest = applied(&raw, &media_type, bytes).await;
        assert_eq!(digest.unwrap(), sha256(&plain), "{media_type}");
    }
    let of_docker = applied(&raw, &format!("{DOCKER}.zstd"), &zstd).await;
    if raw.version >= (2, 0) {
        assert_eq!(of_docker.unwrap(), sha256(&plain));
    } else {
        assert_refused(of_docker, Code::Unknown, "no processor for media-type");
    }
    // An empty file is a tar without files. The bytes after a tar are part of its digest.
    assert_eq!(applied(&raw, OCI, b"").await.unwrap(), sha256(b""));
    let tail = [plain.as_slice(), b"tail"].concat();
    assert_eq!(applied(&raw, OCI, &tail).await.unwrap(), sha256(&tail));
}

pub(crate) async fn layers_that_cannot_be_unpacked_are_refused_with_a_reason(raw: Raw) {
    raw.lease("lease").await;
    let plain = Layer::files([LayerFile::new("file", noise(100_000))]).to_bytes();
    let gzip = gzip(&plain);
    let mut corrupt = gzip.clone();
    corrupt[60_000] ^= 0xff;
    let mut checksum = gzip.clone();
    *checksum.iter_mut().nth_back(6).unwrap() ^= 0xff;
    let mut corrupt_zstd = zstd(&plain);
    corrupt_zstd[6..16].fill(0xff);
    let mut header = plain.clone();
    header[0] ^= 0xff;
    let compressed = format!("{OCI}+gzip");
    for (what, media_type, bytes, text) in [
        ("corrupt gzip", &*compressed, &*corrupt, "gzip: invalid checksum"),
        ("wrong checksum", &compressed, &checksum, "gzip: invalid checksum"),
        ("cut gzip", &compressed, &gzip[..50_000], "unexpected EOF"),
        ("corrupt zstd", &format!("{OCI}+zstd"), &corrupt_zstd, ""),
        ("cut zstd", &format!("{OCI}+zstd"), &zstd(&plain)[..50_000], ""),
        ("cut tar", OCI, &plain[..50_000], "unexpected EOF"),
        ("wrong header", OCI, &header, "archive/tar: invalid tar header"),
        ("no tar", OCI, &noise(5_000), "archive/tar: invalid tar header"),
        ("a few bytes", OCI, b"no tar", "unexpected EOF"),
        ("gzip as tar", OCI, &gzip, "archive/tar: invalid tar header"),
        (
            "unknown compression",
            &format!("{OCI}+xz"),
            &gzip,
            "archive/tar: invalid tar header",
        ),
        (
            "unknown type",
            "application/x-unheard-of",
            &plain,
            "no processor for media-type",
        ),
        ("no type", "", &plain, "no processor for media-type"),
    ] {
        let status = applied(&raw, media_type, bytes).await.expect_err(what);
        assert_eq!(status.code(), Code::Unknown, "{what}: {status}");
        assert!(status.message().contains(text), "{what}: {status}");
    }
    let mounts = raw.prepare("lease", "key", "", "").await.unwrap();
    let absent = raw.layer("absent");
    let refused = raw.apply(OCI, &absent, mounts).await;
    assert_refused(
        refused,
        Code::NotFound,
        &format!("content digest {}: not found", sha256(&absent)),
    );
    let layer = raw.layer("layer");
    raw.put("lease", &layer, &[]).await;
    let nowhere = Mount {
        r#type: "bind".to_owned(),
        source: "/nonexistent/x".to_owned(),
        target: String::new(),
        options: vec!["rbind".to_owned(), "rw".to_owned()],
    };
    let refused = raw.apply(OCI, &layer, vec![nowhere]).await;
    assert_refused(refused, Code::Unknown, "failed to mount");
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// Returns bytes that do not compress and are not a tar.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(size).collect()
}
