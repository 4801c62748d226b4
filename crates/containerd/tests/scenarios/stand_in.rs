//! Faults that a real containerd cannot be made to have at will.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use containerd::{Client, Error, Options, Recovery, Written};
use fake_containerd::{Code, Fake, FakeConfig, Fault};

use crate::content::{assert_nothing_of, interrupted};
use crate::support::{Blob, CHUNK, tomorrow};
use crate::{Labels, labels};

const LEASE: &str = "lease";

async fn stand_in() -> (Fake, Client) {
    stand_in_for(Options::default()).await
}

/// With a client that gives up soon.
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
            assert!(cause.to_string().contains(message), "{cause}");
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
    assert_eq!(cause.to_string(), message);
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
