//! Faults that no test can provoke in a real containerd.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use containerd::{Base, Client, Error, Held, LayerSpec, Options, Recovery, Written};
use fake_containerd::{Code, Fake, FakeConfig, Fault};
use oci_spec::image::{Descriptor, MediaType};

use crate::content::{assert_nothing_of, interrupted};
use crate::support::{Blob, CHUNK, tomorrow};
use crate::{Labels, labels};

const LEASE: &str = "lease";

async fn stand_in() -> (Fake, Client) {
    stand_in_for(Options::default()).await
}

/// Starts a stand-in with a client that gives up soon.
async fn hasty() -> (Fake, Client) {
    let second = Duration::from_secs(1);
    stand_in_for(Options {
        deadline: second,
        stall: second,
        ..Options::default()
    })
    .await
}

async fn stand_in_for(options: Options) -> (Fake, Client) {
    let fake = Fake::start(FakeConfig::default()).await;
    let client = Client::connect_with(fake.socket(), "k8s.io", options)
        .await
        .expect("it listens");
    client
        .create_lease(LEASE, tomorrow(), &Labels::new())
        .await
        .expect("a lease");
    (fake, client)
}

async fn write(client: &Client, blob: &Blob) -> Result<Written, Error> {
    client.write_blob(LEASE, &blob.spec(), blob.source()).await
}

async fn assert_resumes(client: &Client, blob: &Blob) {
    let written = write(client, blob).await.expect("written");
    assert!(
        matches!(written, Written::Committed { sent_bytes } if sent_bytes < blob.size()),
        "{written:?}"
    );
}

#[tokio::test]
async fn a_commit_may_take_longer_than_data_may_stall() {
    let (fake, client) = hasty().await;
    fake.inject(Fault::SlowCommit {
        by: Duration::from_millis(2500),
    });
    for blob in [Blob::sized(100), Blob::sized(3 * CHUNK)] {
        let written = write(&client, &blob).await.expect("written");
        assert_eq!(
            written,
            Written::Committed {
                sent_bytes: blob.size()
            }
        );
    }
}

#[tokio::test]
async fn a_stream_that_stops_acknowledging_is_given_up_and_resumed() {
    let (fake, client) = hasty().await;
    fake.inject(Fault::Stall {
        rpc: "Content.Write",
        after: 3,
    });
    let blob = Blob::sized(9 * CHUNK);
    let error = write(&client, &blob).await.expect_err("it stalls");
    assert!(matches!(error, Error::Stalled { .. }), "{error:?}");
    assert_eq!(error.recovery(), Recovery::Transient);
    // The server's end of the stream hangs, and holds the ingest's lock, until something wakes it.
    fake.drop_connections();
    assert_resumes(&client, &blob).await;
}

#[tokio::test]
async fn a_call_that_is_never_answered_ends_with_its_deadline() {
    let (fake, client) = hasty().await;
    fake.inject(Fault::Stall {
        rpc: "Images.List",
        after: 0,
    });
    let error = client.images().await.expect_err("no answer");
    assert!(matches!(error, Error::Stalled { .. }), "{error:?}");
    assert_eq!(client.images().await.expect("an answer"), []);
}

#[tokio::test]
async fn a_cut_write_is_transient_and_resumed() {
    for fault in [
        Fault::CutStream {
            after: 4 * CHUNK as u64,
        },
        Fault::CutConnections {
            after: 4 * CHUNK as u64,
        },
    ] {
        let (fake, client) = stand_in().await;
        fake.inject(fault.clone());
        let blob = Blob::sized(9 * CHUNK);
        let error = write(&client, &blob).await.expect_err("it was cut");
        assert_eq!(error.recovery(), Recovery::Transient, "{fault:?}: {error:?}");
        assert_resumes(&client, &blob).await;
        assert_eq!(fake.violations(), [] as [&str; 0]);
    }
}

#[tokio::test]
async fn a_full_disk_gets_back_what_was_written() {
    let (fake, client) = stand_in().await;
    fake.inject(Fault::DiskFull {
        free: 2 * CHUNK as u64,
    });
    let blob = Blob::sized(9 * CHUNK);
    let error = write(&client, &blob).await.expect_err("the disk is full");
    assert_eq!(error.recovery(), Recovery::Space, "{error:?}");
    assert_nothing_of(&client, &blob).await;
    let small = Blob::sized(2 * CHUNK);
    write(&client, &small).await.expect("what fits is taken");
}

#[tokio::test]
async fn a_locked_ingest_is_tried_again_until_it_is_free() {
    let (fake, client) = stand_in().await;
    fake.inject(Fault::RefLocked { opens: 4 });
    let blob = Blob::sized(100);
    let written = write(&client, &blob).await.expect("written");
    assert_eq!(written, Written::Committed { sent_bytes: 100 });
    assert_eq!(fake.calls("Content.Write"), 5);
}

#[tokio::test]
async fn a_lease_that_vanishes_during_a_write_is_told_as_such() {
    let (fake, client) = stand_in().await;
    fake.inject(Fault::LeaseVanishes { writes: 2 });
    let error = write(&client, &Blob::sized(9 * CHUNK))
        .await
        .expect_err("the lease is gone");
    assert_eq!(error.recovery(), Recovery::LeaseLost, "{error:?}");
}

#[tokio::test]
async fn bytes_that_were_all_ours_are_not_sent_twice_after_a_mismatch() {
    let (fake, client) = stand_in().await;
    fake.inject(Fault::RefuseCommit { commits: 1 });
    let blob = Blob::sized(3 * CHUNK);
    let error = write(&client, &blob).await.expect_err("refused");
    assert_eq!(error.recovery(), Recovery::Content, "{error:?}");
    assert_eq!(
        (fake.received_bytes(), fake.calls("Content.Abort")),
        (blob.size(), 1)
    );
    assert_nothing_of(&client, &blob).await;
    assert_eq!(
        write(&client, &blob).await.expect("written"),
        Written::Committed {
            sent_bytes: blob.size()
        }
    );
}

#[tokio::test]
async fn bytes_nobody_vouched_for_are_written_anew_after_a_mismatch() {
    let (fake, client) = stand_in().await;
    let blob = Blob::sized(3 * CHUNK);
    interrupted(&client, LEASE, &blob, 3 * CHUNK).await;
    fake.inject(Fault::RefuseCommit { commits: 1 });
    assert_eq!(
        write(&client, &blob).await.expect("written"),
        Written::Committed {
            sent_bytes: blob.size()
        }
    );
}

#[tokio::test]
async fn progress_grows_by_what_is_acknowledged_and_no_more() {
    let (fake, client) = stand_in().await;
    fake.inject(Fault::CutStream {
        after: 4 * CHUNK as u64,
    });
    let (blob, progress) = (Blob::sized(9 * CHUNK), Arc::new(AtomicU64::new(0)));
    let spec = blob.spec().with_progress(Arc::clone(&progress));
    client
        .write_blob(LEASE, &spec, blob.source())
        .await
        .expect_err("it was cut");
    assert!(progress.load(Ordering::Relaxed) <= 4 * CHUNK as u64);
    client
        .write_blob(LEASE, &spec, blob.source())
        .await
        .expect("written");
    assert!((5 * CHUNK as u64..=blob.size()).contains(&progress.load(Ordering::Relaxed)));
}

#[tokio::test]
async fn recovery_follows_from_the_code_and_the_text() {
    for (code, message, recovery) in [
        (Code::Unavailable, "transport is closing", Recovery::Transient),
        (
            Code::DeadlineExceeded,
            "context deadline exceeded",
            Recovery::Transient,
        ),
        (Code::Aborted, "aborted", Recovery::Transient),
        (Code::Unknown, "database not open", Recovery::Transient),
        (
            Code::Unknown,
            "write /x/db: no space left on device",
            Recovery::Space,
        ),
        (Code::ResourceExhausted, "disk quota exceeded", Recovery::Space),
        (Code::Unknown, "write /x/data: input/output error", Recovery::Disk),
        (Code::Unknown, "open /x: read-only file system", Recovery::Disk),
        (
            Code::Internal,
            "fsync /x: structure needs cleaning",
            Recovery::Disk,
        ),
        (
            Code::ResourceExhausted,
            "grpc: received message larger than max",
            Recovery::Permanent,
        ),
        (Code::PermissionDenied, "permission denied", Recovery::Permanent),
        (Code::Unimplemented, "unknown service", Recovery::Permanent),
        (Code::InvalidArgument, "label too long", Recovery::Permanent),
        (
            Code::FailedPrecondition,
            "namespace is required",
            Recovery::Permanent,
        ),
    ] {
        let (fake, client) = stand_in().await;
        for rpc in ["Images.List", "Content.Update"] {
            fake.inject(Fault::FailAll {
                rpc,
                code,
                message: message.to_owned(),
            });
        }
        let errors = [
            client.images().await.expect_err("injected"),
            client
                .set_blob_labels(&Blob::sized(1).digest, &labels(&[("k", "v")]))
                .await
                .expect_err("injected"),
        ];
        for error in errors {
            assert_eq!(error.recovery(), recovery, "{code:?} {message}: {error:?}");
            let cause = std::error::Error::source(&error).expect("containerd's words");
            // The client has its own words for a text that only repeats its code.
            let told = match message {
                "permission denied" => "it does not allow this",
                "context deadline exceeded" => "it took too long",
                "aborted" => "another request interfered",
                message => message,
            };
            assert!(cause.to_string().contains(told), "{cause}");
        }
    }
}

#[tokio::test]
async fn an_error_text_beyond_sixteen_kibibytes_arrives_whole() {
    let (fake, client) = stand_in().await;
    let message = "m".repeat(200_000);
    fake.inject(Fault::FailAll {
        rpc: "Images.List",
        code: Code::InvalidArgument,
        message: message.clone(),
    });
    let error = client.images().await.expect_err("injected");
    let cause = std::error::Error::source(&error).expect("containerd's words");
    assert_eq!(cause.to_string(), format!("it does not accept this ({message})"));
}

#[tokio::test]
async fn a_subscription_ends_when_the_connection_does_and_can_be_made_again() {
    let (fake, client) = stand_in().await;
    let mut events = client.image_events().await.expect("subscribed");
    fake.wait_until("the subscription is there", |fake| fake.subscribers() == 1)
        .await;
    fake.restart();
    assert_eq!(events.next().await, None);
    let again = client.image_events().await.expect("subscribed");
    fake.wait_until("the subscription is there", |fake| fake.subscribers() == 1)
        .await;
    drop(again);
    fake.wait_until("the subscription is gone", |fake| fake.subscribers() == 0)
        .await;
}

#[tokio::test]
async fn cri_is_found_only_where_it_is() {
    for cri in [true, false] {
        let fake = Fake::start(FakeConfig {
            cri,
            ..FakeConfig::default()
        })
        .await;
        let client = Client::connect(fake.socket(), "k8s.io")
            .await
            .expect("it listens");
        assert_eq!(client.has_cri().await.expect("an answer"), cri);
    }
}

/// Returns a stand-in, a client that gives up soon, and one layer to unpack.
async fn with_a_layer() -> (Fake, Client, LayerSpec) {
    let (fake, client) = hasty().await;
    let bytes = crate::snapshots::layer("file").to_bytes();
    let blob = Blob::of(bytes);
    write(&client, &blob).await.expect("written");
    let layer = LayerSpec {
        blob: Descriptor::new(MediaType::ImageLayer, blob.size(), blob.digest.clone()),
        diff_id: blob.digest.clone(),
        chain: blob.digest.clone(),
        parent: None,
    };
    (fake, client, layer)
}

/// The daemon reconnects to a containerd that was downgraded, which skips the parent at the commit.
#[tokio::test]
async fn a_snapshot_that_was_committed_without_its_parent_does_not_keep_its_name() {
    let fake = Fake::start(FakeConfig {
        version: "2.3.7".to_owned(),
        ..FakeConfig::default()
    })
    .await;
    let client = Client::connect(fake.socket(), "k8s.io")
        .await
        .expect("it listens");
    client
        .create_lease(LEASE, tomorrow(), &Labels::new())
        .await
        .expect("a lease");
    let mut layers: Vec<LayerSpec> = Vec::new();
    for file in ["lower", "upper"] {
        let blob = Blob::of(crate::snapshots::layer(file).to_bytes());
        write(&client, &blob).await.expect("written");
        let parent = layers.last().map(|layer| layer.chain.clone());
        let chain = match &parent {
            None => blob.digest.clone(),
            Some(parent) => Blob::of(format!("{parent} {}", blob.digest).into_bytes()).digest,
        };
        layers.push(LayerSpec {
            blob: Descriptor::new(MediaType::ImageLayer, blob.size(), blob.digest.clone()),
            diff_id: blob.digest,
            chain,
            parent,
        });
    }
    let [lower, upper] = layers.as_slice() else {
        unreachable!("there are two");
    };
    assert!(unpack(&client, lower).await.expect("unpacked"));
    fake.inject(Fault::SkipParents);
    let on_none = async || {
        let prepared = client.prepare_layer(LEASE, "overlayfs", upper, Base::Later);
        let prepared = prepared.await.expect("an answer").expect("it was not there");
        let applied = prepared.apply(true).await.expect("an answer").expect("applied");
        applied.commit().await
    };
    let error = on_none().await.expect_err("it has no parent");
    assert!(matches!(error, Error::Gone { .. }), "{error:?}");
    let names = client.snapshots("overlayfs").await.expect("an answer");
    assert_eq!(names, [lower.chain.to_string()].into());
    fake.clear_faults();
    on_none().await.expect("committed");
    assert_eq!(fake.violations(), [""; 0]);
}

async fn unpack(client: &Client, layer: &LayerSpec) -> Result<bool, Error> {
    let prepared = client.prepare_layer(LEASE, "overlayfs", layer, Base::Now);
    match prepared.await? {
        Some(prepared) => {
            let applied = prepared.apply(true).await?.expect("nothing is below");
            applied.commit().await.map(|()| true)
        }
        None => Ok(false),
    }
}

fn failing(rpc: &'static str, code: Code, message: &str) -> Fault {
    Fault::Fail {
        rpc,
        nth: 1,
        code,
        message: message.to_owned(),
    }
}

#[tokio::test]
async fn unpacking_may_take_longer_than_data_may_stall() {
    let (fake, client, layer) = with_a_layer().await;
    for rpc in ["Snapshots.Prepare", "Diff.Apply", "Snapshots.Commit"] {
        let by = Duration::from_millis(1500);
        fake.inject(Fault::Delay { rpc, by });
    }
    assert!(unpack(&client, &layer).await.expect("unpacked"));
    assert_eq!(fake.violations(), [""; 0]);
}

#[tokio::test]
async fn a_layer_is_blamed_only_for_what_is_its_own() {
    let unexpected = "mount callback failed on /run/mount1: unexpected EOF";
    for (code, message, recovery) in [
        (Code::Unknown, unexpected, Recovery::Content),
        (
            Code::Unknown,
            "archive/tar: invalid tar header",
            Recovery::Content,
        ),
        (Code::InvalidArgument, "invalid archive", Recovery::Content),
        (
            Code::Unknown,
            "write /x/fs/file: no space left on device",
            Recovery::Space,
        ),
        (
            Code::Unknown,
            "write /x/fs/file: input/output error",
            Recovery::Disk,
        ),
        (
            Code::Unknown,
            "failed to mount /x: no such device",
            Recovery::Transient,
        ),
        (
            Code::Unknown,
            "mknod /x/fs/null: operation not permitted",
            Recovery::Transient,
        ),
        (
            Code::Unknown,
            "fork/exec unpigz: cannot allocate memory",
            Recovery::Transient,
        ),
        (Code::Cancelled, "context canceled", Recovery::Transient),
        (Code::Unknown, "context canceled", Recovery::Transient),
        (Code::Unavailable, "transport is closing", Recovery::Transient),
        (
            Code::DeadlineExceeded,
            "context deadline exceeded",
            Recovery::Transient,
        ),
        (Code::NotFound, "content digest: not found", Recovery::Transient),
        (
            Code::NotFound,
            "lease does not exist: not found",
            Recovery::LeaseLost,
        ),
        (Code::Unimplemented, "unknown service Diff", Recovery::Permanent),
    ] {
        let (fake, client, layer) = with_a_layer().await;
        fake.inject(failing("Diff.Apply", code, message));
        let error = unpack(&client, &layer).await.expect_err("injected");
        assert_eq!(error.recovery(), recovery, "{code:?} {message}: {error:?}");
        let digest = layer.blob.digest().as_ref();
        assert!(error.to_string().contains(digest), "{error}");
        if message == unexpected {
            assert!(error.to_string().ends_with(": unexpected EOF"), "{error}");
        }
        assert_eq!(fake.snapshots("k8s.io", "overlayfs").len(), 0, "{message}");
        assert!(unpack(&client, &layer).await.expect("unpacked"), "{message}");
        assert_eq!(fake.violations(), [""; 0]);
    }
}

#[tokio::test]
async fn a_containerd_in_trouble_blames_no_layer() {
    let (fake, client, layer) = with_a_layer().await;
    fake.inject(failing("Diff.Apply", Code::Unknown, "database not open"));
    fake.inject(failing("Snapshots.Remove", Code::Unknown, "database not open"));
    let error = unpack(&client, &layer).await.expect_err("injected");
    assert_eq!(error.recovery(), Recovery::Transient, "{error:?}");
    assert!(unpack(&client, &layer).await.expect("unpacked"));
}

#[tokio::test]
async fn a_lease_that_ends_while_a_layer_is_unpacked_is_told_as_such() {
    let (fake, client, layer) = with_a_layer().await;
    let by = Duration::from_millis(300);
    fake.inject(Fault::Delay {
        rpc: "Diff.Apply",
        by,
    });
    let ending = async {
        fake.wait_until("the snapshot is prepared", |fake| {
            fake.snapshots("k8s.io", "overlayfs").len() == 1
        })
        .await;
        client.delete_lease(LEASE, true).await.expect("deleted");
    };
    // Another lease keeps the blob, so that only the snapshot goes.
    client
        .create_lease("other", tomorrow(), &Labels::new())
        .await
        .expect("a lease");
    let held = client
        .hold_blob("other", layer.blob.digest(), layer.blob.size())
        .await;
    assert_eq!(held.expect("an answer"), Held::Held);
    let (unpacked, ()) = tokio::join!(unpack(&client, &layer), ending);
    let error = unpacked.expect_err("the lease is gone");
    assert_eq!(error.recovery(), Recovery::LeaseLost, "{error:?}");
}

#[tokio::test]
async fn another_key_is_taken_where_one_is_used_and_others_are_not_waited_for_without_end() {
    let (fake, client, layer) = with_a_layer().await;
    let used = r#"snapshot "extract-1-2 sha256:c": already exists"#;
    fake.inject(failing("Snapshots.Prepare", Code::AlreadyExists, used));
    assert!(unpack(&client, &layer).await.expect("unpacked"));
    assert_eq!(fake.calls("Snapshots.Prepare"), 2);

    let (fake, client, layer) = with_a_layer().await;
    fake.inject(Fault::FailAll {
        rpc: "Snapshots.Prepare",
        code: Code::AlreadyExists,
        message: r#"target snapshot "sha256:c": already exists"#.to_owned(),
    });
    let error = unpack(&client, &layer).await.expect_err("it never is there");
    assert_eq!(error.recovery(), Recovery::Transient, "{error:?}");
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_found_done() {
    let (fake, client, layer) = with_a_layer().await;
    fake.inject(Fault::LoseAnswer {
        rpc: "Snapshots.Commit",
        nth: 1,
    });
    let error = unpack(&client, &layer).await.expect_err("the answer is lost");
    assert_eq!(error.recovery(), Recovery::Transient, "{error:?}");
    assert!(!unpack(&client, &layer).await.expect("it is there"));
    assert_eq!(fake.snapshots("k8s.io", "overlayfs").len(), 1);
}

#[tokio::test]
async fn a_commit_that_fails_leaves_no_snapshot() {
    for (message, recovery) in [
        ("write /x/meta.db: no space left on device", Recovery::Space),
        ("database not open", Recovery::Transient),
    ] {
        let (fake, client, layer) = with_a_layer().await;
        fake.inject(failing("Snapshots.Commit", Code::Unknown, message));
        let error = unpack(&client, &layer).await.expect_err("injected");
        assert_eq!(error.recovery(), recovery, "{message}: {error:?}");
        assert_eq!(fake.snapshots("k8s.io", "overlayfs").len(), 0, "{message}");
    }
}

#[tokio::test]
async fn the_snapshotter_is_cris_and_says_where_it_is() {
    let root = std::path::PathBuf::from("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs");
    let fake = Fake::start(FakeConfig {
        snapshots_root: Some(root.clone()),
        ..FakeConfig::default()
    })
    .await;
    let client = Client::connect(fake.socket(), "k8s.io")
        .await
        .expect("it listens");
    for cri in [true, false] {
        let snapshotter = client.snapshotter(cri).await.expect("an answer").expect("one");
        assert_eq!(snapshotter.name, "overlayfs");
        assert_eq!(snapshotter.root.as_ref(), Some(&root));
        assert_eq!(fake.calls("ImageService.ImageFsInfo"), 1);
    }
}

/// The daemon took such an answer for a lost connection and reconnected for ever.
#[tokio::test]
async fn a_message_that_is_too_large_is_an_error_of_its_own_and_no_lost_connection() {
    let (fake, client) = stand_in().await;
    let message = "grpc: trying to send message larger than max (39387364 vs. 16777216)";
    for rpc in ["Images.List", "Leases.List"] {
        fake.inject(Fault::FailAll {
            rpc,
            code: Code::ResourceExhausted,
            message: message.to_owned(),
        });
    }
    for error in [
        client.leases().await.expect_err("injected"),
        // Every part of the list is too long as well, and the client stops asking.
        client.images().await.expect_err("injected"),
    ] {
        assert!(matches!(error, Error::TooLarge { .. }), "{error:?}");
        assert_eq!(error.recovery(), Recovery::Permanent);
    }
    assert!(fake.calls("Images.List") < 30, "{}", fake.calls("Images.List"));
}
