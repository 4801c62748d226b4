//! A containerd that is absent, dies, hangs, or has no space. Each scenario has its own containerd.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bundle::Compression;
use bundle::fixtures::{Layer, compress};
use containerd::{Client, Error, Options, Recovery, Written};
use harness::{Own, PATIENCE, eventually, unique};
use lab::Generation;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixListener;

use crate::content::{arrived, assert_nothing_of, interrupted};
use crate::leased;
use crate::snapshots::{Chain, listed};
use crate::support::{Blob, CHUNK, Paused, raw_write};

harness::on_each_generation! {
    super::on_own;
    a_killed_containerd_is_unreachable_and_a_write_resumes_after_its_return
    a_hanging_containerd_is_noticed
    a_containerd_that_is_killed_while_it_unpacks_does_so_when_it_is_back
    a_full_disk_is_told_and_nothing_stays
    an_ingest_of_a_deleted_blob_is_no_obstacle
    a_disk_that_fills_while_a_layer_is_unpacked_is_told_and_nothing_stays
    a_containerd_without_cri_says_so
}

fn on_own(generation: Generation, scenario: impl AsyncFnOnce(&mut Own)) {
    let options = lab::Options {
        cri: false,
        ..lab::Options::default()
    };
    harness::play_on_own(generation, &options, scenario);
}

async fn a_containerd_without_cri_says_so(own: &mut Own) {
    let client = own.stage.client().await;
    assert!(!client.has_cri().await.expect("an answer"));
}

async fn a_killed_containerd_is_unreachable_and_a_write_resumes_after_its_return(own: &mut Own) {
    let (client, lease) = leased(&own.stage).await;
    let mut events = client.image_events().await.expect("subscribed");
    let blob = Blob::sized(8 * CHUNK);
    let source = Paused::new(&blob, 5 * CHUNK);
    let spec = blob.spec();
    let writing = client.write_blob(&lease, &spec, Arc::clone(&source) as _);
    let killing = async {
        arrived(&client, &blob, 5 * CHUNK).await;
        tokio::task::block_in_place(|| own.containerd.kill()).expect("killed");
    };
    let (error, ()) = tokio::join!(writing, killing);
    let error = error.expect_err("it was killed");
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert_eq!(error.recovery(), Recovery::Transient);
    source.release();
    let ended = tokio::time::timeout(PATIENCE, events.next()).await;
    assert_eq!(ended.expect("the end is told"), None);
    assert!(matches!(client.images().await, Err(Error::Unreachable { .. })));

    tokio::task::block_in_place(|| own.containerd.restart()).expect("restarted");
    let written = client
        .write_blob(&lease, &spec, blob.source())
        .await
        .expect("written");
    assert!(
        matches!(written, Written::Committed { sent_bytes } if sent_bytes < blob.size()),
        "{written:?}"
    );
    assert_eq!(
        client
            .read_blob(&blob.digest, blob.size())
            .await
            .expect("readable"),
        *blob.bytes
    );
}

async fn a_hanging_containerd_is_noticed(own: &mut Own) {
    let soon = Duration::from_millis(500);
    let options = Options {
        deadline: soon,
        stall: soon,
        ..Options::default()
    };
    let client = own.stage.client_with(options).await;
    let (_, lease) = leased(&own.stage).await;
    let blob = Blob::sized(40 * CHUNK);
    let source = Paused::new(&blob, 2 * CHUNK);
    let spec = blob.spec();
    let writing = client.write_blob(&lease, &spec, Arc::clone(&source) as _);
    let pid = own.containerd.pid().expect("it runs");
    let freezing = async {
        arrived(&client, &blob, 2 * CHUNK).await;
        signal(pid, Signal::STOP);
        source.release();
    };
    let (error, ()) = tokio::join!(writing, freezing);
    let errors = [
        error.expect_err("containerd hangs"),
        client.images().await.expect_err("containerd hangs"),
        client.blobs().await.expect_err("containerd hangs"),
        client
            .write_blob(&lease, &spec, blob.source())
            .await
            .expect_err("containerd hangs"),
    ];
    signal(pid, Signal::CONT);
    for error in errors {
        assert!(matches!(error, Error::Stalled { .. }), "{error:?}");
        assert_eq!(error.recovery(), Recovery::Transient);
    }
    eventually("the reader is dropped", async || source.readers() == 0).await;
    let client = own.stage.client().await;
    let written = client
        .write_blob(&lease, &spec, blob.source())
        .await
        .expect("written");
    assert!(matches!(written, Written::Committed { .. }), "{written:?}");
}

async fn a_containerd_that_is_killed_while_it_unpacks_does_so_when_it_is_back(own: &mut Own) {
    // Large enough for the kill to come before its end.
    let large = Layer::zeros(256 << 20);
    let mut bytes = Vec::new();
    compress(Compression::Gzip, &mut bytes, |target| {
        target.write_all(&large.to_bytes())
    })
    .expect("memory takes any bytes");
    let mut chain = Chain::none(&own.stage).await;
    chain
        .push(&large, "application/vnd.oci.image.layer.v1.tar+gzip", bytes)
        .await;
    let killing = async {
        eventually("it has begun", async || chain.on_lease().await.len() == 1).await;
        tokio::task::block_in_place(|| own.containerd.kill()).expect("killed");
    };
    let (applied, ()) = tokio::join!(chain.apply(0), killing);
    let error = applied.expect_err("it was killed");
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    tokio::task::block_in_place(|| own.containerd.restart()).expect("restarted");
    assert_eq!(chain.on_lease().await.len(), 1, "what was begun is on the lease");
    assert_eq!(chain.unpack().await.expect("unpacked"), 1);
    chain.give_back().await;
    assert_eq!(listed(&own.stage, &chain).await, [""; 0]);
}

fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("it is a process"), signal).expect("it runs");
}

async fn a_full_disk_is_told_and_nothing_stays(own: &mut Own) {
    let (client, lease) = leased(&own.stage).await;
    let store = own.containerd.root().join("io.containerd.content.v1.content");
    let small = SmallDisk::mount(&store.join("ingest"));
    let blob = Blob::sized(16 * CHUNK);
    let error = client
        .write_blob(&lease, &blob.spec(), blob.source())
        .await
        .expect_err("the disk is full");
    assert_eq!(error.recovery(), Recovery::Space, "{error:?}");
    assert!(error.to_string().contains(blob.digest.as_ref()), "{error}");
    assert_nothing_of(&client, &blob).await;
    drop(small);
    let written = client
        .write_blob(&lease, &blob.spec(), blob.source())
        .await
        .expect("written");
    assert_eq!(
        written,
        Written::Committed {
            sent_bytes: blob.size()
        }
    );
}

async fn a_disk_that_fills_while_a_layer_is_unpacked_is_told_and_nothing_stays(own: &mut Own) {
    let mut chain = Chain::none(&own.stage).await;
    let large = Layer::zeros(8 << 20);
    chain
        .push(&large, "application/vnd.oci.image.layer.v1.tar", large.to_bytes())
        .await;
    let folder = format!("io.containerd.snapshotter.v1.{}/snapshots", chain.snapshotter());
    let small = SmallDisk::mount(&own.containerd.root().join(folder));
    let error = chain.apply(0).await.expect_err("the disk is full");
    assert_eq!(error.recovery(), Recovery::Space, "{error:?}");
    assert!(error.to_string().contains(large.digest().as_ref()), "{error}");
    assert_eq!(listed(&own.stage, &chain).await, [""; 0]);
    drop(small);
    assert_eq!(chain.unpack().await.expect("unpacked"), 1);
}

/// A file system of 4 MiB over a folder.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(folder: &Path) -> SmallDisk {
        std::fs::create_dir_all(folder).expect("a folder");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
            .arg(folder)
            .status();
        assert!(status.expect("mount runs").success());
        SmallDisk(folder.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: containerd may still have a file of the aborted ingest open.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// A blob that was deleted and not collected yet, with an older ingest. containerd 1.6 loses count
/// of such an ingest.
async fn an_ingest_of_a_deleted_blob_is_no_obstacle(own: &mut Own) {
    let (client, lease) = leased(&own.stage).await;
    let blob = Blob::sized(4 * CHUNK);
    interrupted(&client, &lease, &blob.corrupted(), 2 * CHUNK).await;
    raw_write(
        &own.stage,
        &lease,
        &format!("another-tool-{}", blob.digest),
        &blob,
        blob.size(),
        true,
    )
    .await;
    assert!(client.delete_blob(&blob.digest).await.expect("deleted"));
    client
        .write_blob(&lease, &blob.spec(), blob.source())
        .await
        .expect("written");
    assert_eq!(
        client
            .read_blob(&blob.digest, blob.size())
            .await
            .expect("readable"),
        *blob.bytes
    );
}

#[tokio::test]
async fn a_socket_without_a_listener_is_unreachable_and_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let (absent, stale) = (
        folder.path().join("absent.sock"),
        folder.path().join("stale.sock"),
    );
    drop(std::os::unix::net::UnixListener::bind(&stale).expect("a socket"));
    for (socket, reason) in [
        (absent, "No such file or directory"),
        (stale, "Connection refused"),
    ] {
        let error = Client::connect(&socket, "k8s.io")
            .await
            .expect_err("no server listens");
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        assert!(
            error.to_string().contains(socket.to_str().expect("utf-8")),
            "{error}"
        );
        let causes = causes_of(&error);
        assert!(causes.contains(reason), "{causes}");
    }
}

fn causes_of(error: &Error) -> String {
    let mut causes = Vec::new();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    causes.join(": ")
}

#[tokio::test]
async fn a_socket_that_never_answers_is_a_stall() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("mute.sock");
    let _listener = UnixListener::bind(&socket).expect("a socket");
    let options = Options {
        deadline: Duration::from_millis(200),
        ..Options::default()
    };
    let error = Client::connect_with(&socket, "k8s.io", options)
        .await
        .expect_err("no server answers");
    assert!(matches!(error, Error::Stalled { .. }), "{error:?}");
}

#[tokio::test]
async fn a_socket_that_hangs_up_is_unreachable() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("rude.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let rude = tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            drop(connection);
        }
    });
    let error = Client::connect(&socket, "k8s.io").await.expect_err("it hangs up");
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    rude.abort();
}

#[tokio::test]
async fn names_that_cannot_be_headers_are_refused_before_a_call() {
    let folder = tempfile::tempdir().expect("a folder");
    for namespace in ["", "a b", "a\nb", "../x"] {
        let error = Client::connect(&folder.path().join("s"), namespace)
            .await
            .expect_err("a bad name");
        assert_eq!(error.recovery(), Recovery::Permanent, "{namespace:?}: {error:?}");
    }
}

mod cri {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_service_is_found_where_it_is_on_containerd_1_6() {
        the_service_is_found(Generation::V1_6).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_service_is_found_where_it_is_on_containerd_1_7() {
        the_service_is_found(Generation::V1_7).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_service_is_found_where_it_is_on_containerd_2_1() {
        the_service_is_found(Generation::V2_1).await;
    }

    #[tokio::test]
    async fn the_service_is_found_where_it_is_on_containerd_2_3() {
        the_service_is_found(Generation::V2_3).await;
    }

    async fn the_service_is_found(generation: Generation) {
        let started = tokio::task::spawn_blocking(move || Own::start(generation, &lab::Options::default()));
        let Some(own) = started.await.expect("starting does not panic") else {
            return;
        };
        let client = own.stage.client().await;
        assert!(client.has_cri().await.expect("an answer"));
        let version = client.cri().version().await.expect("an answer");
        assert_eq!(version.runtime, "containerd");
        let image = client
            .cri()
            .image_status(&format!("example.org/{}:1", unique()))
            .await;
        assert_eq!(image.expect("an answer"), None);
        let snapshotter = client.snapshotter(true).await.expect("an answer").expect("one");
        assert_eq!(snapshotter.name, own.containerd.snapshotter());
        assert!(snapshotter.root.is_some_and(|root| root.is_dir()));
    }
}
