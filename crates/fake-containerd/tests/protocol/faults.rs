//! Faults strike where the test says, and leave what a real failure leaves.

use std::time::Duration;

use fake_containerd::{Code, Fake, FakeConfig, Fault, GcPolicy, sha256};

use crate::raw::*;

const NAMESPACE: &str = "k8s.io";
const BYTES: &[u8] = b"0123456789";

async fn started(config: FakeConfig) -> (Fake, Raw) {
    let fake = Fake::start(config).await;
    let raw = Raw::connect(fake.socket(), NAMESPACE).await;
    raw.lease("lease").await;
    (fake, raw)
}

#[tokio::test]
async fn a_failing_call_does_nothing_and_one_that_loses_its_answer_does() {
    let (fake, raw) = started(FakeConfig::default()).await;
    let digest = fake.put_blob(NAMESPACE, b"{}", &[]);
    fake.inject(Fault::Fail {
        rpc: "Images.Create",
        nth: 1,
        code: Code::Unknown,
        message: "disk I/O error".into(),
    });
    assert_refused(
        raw.create_image("x", &digest, &[]).await,
        Code::Unknown,
        "disk I/O error",
    );
    assert!(fake.images(NAMESPACE).is_empty());
    fake.inject(Fault::LoseAnswer {
        rpc: "Images.Create",
        nth: 1,
    });
    assert_refused(raw.create_image("x", &digest, &[]).await, Code::Unavailable, "");
    assert!(fake.images(NAMESPACE).contains_key("x"));
    assert_refused(raw.create_image("x", &digest, &[]).await, Code::AlreadyExists, "");
    assert_eq!(fake.calls("Images.Create"), 3);
}

#[tokio::test]
async fn a_cut_stream_leaves_what_it_took() {
    let (fake, raw) = started(FakeConfig::default()).await;
    fake.inject(Fault::CutStream { after: 4 });
    let (mut stream, _) = raw.open("lease", stat(BYTES)).await.unwrap();
    assert_refused(stream.send(write(0, BYTES)).await, Code::Unavailable, "");
    let (mut stream, opened) = raw.open("lease", stat(BYTES)).await.unwrap();
    assert_eq!((opened.offset, opened.digest), (4, sha256(&BYTES[..4])));
    stream.send(write(4, &BYTES[4..])).await.unwrap();
    stream.send(commit(10, BYTES)).await.unwrap();
    assert_eq!(fake.blob_bytes(NAMESPACE, &sha256(BYTES)).unwrap(), BYTES);
    assert_eq!(fake.received_bytes(), 10);
}

#[tokio::test]
async fn cut_connections_are_made_anew_and_the_state_is_kept() {
    let (fake, raw) = started(FakeConfig::default()).await;
    fake.inject(Fault::CutConnections { after: 4 });
    let (mut stream, _) = raw.open("lease", stat(BYTES)).await.unwrap();
    stream.send(write(0, BYTES)).await.unwrap_err();
    fake.wait_until("the lock to go", |fake| {
        fake.ingests(NAMESPACE).values().all(|ingest| !ingest.locked)
    })
    .await;
    let raw = Raw::connect(fake.socket(), NAMESPACE).await;
    let (_, opened) = raw.open("lease", stat(BYTES)).await.unwrap();
    assert_eq!(opened.offset, 4);
}

#[tokio::test]
async fn a_killed_stand_in_refuses_until_it_listens_again() {
    let (fake, raw) = started(FakeConfig::default()).await;
    let (mut stream, _) = raw.open("lease", stat(BYTES)).await.unwrap();
    fake.kill();
    stream.send(write(0, BYTES)).await.unwrap_err();
    assert!(fake.socket().exists(), "SIGKILL leaves the socket file");
    assert!(tokio::net::UnixStream::connect(fake.socket()).await.is_err());
    fake.listen();
    let raw = Raw::connect(fake.socket(), NAMESPACE).await;
    assert_eq!(
        raw.resources("lease").await,
        [format!("ingests/{}", ref_of(&sha256(BYTES)))]
    );
}

#[tokio::test]
async fn a_stand_in_may_appear_late() {
    let fake = Fake::stopped(FakeConfig::default());
    assert!(!fake.socket().exists());
    fake.listen();
    Raw::connect(fake.socket(), NAMESPACE).await;
}

#[tokio::test]
async fn a_full_disk_stays_full_until_the_ingest_is_aborted() {
    let (fake, raw) = started(FakeConfig::default()).await;
    fake.inject(Fault::DiskFull { free: 4 });
    for _ in 0..2 {
        let (mut stream, opened) = raw.open("lease", stat(BYTES)).await.unwrap();
        let at = usize::try_from(opened.offset).unwrap();
        let answer = stream.send(write(at, &BYTES[at..])).await;
        assert_refused(answer, Code::Unknown, "no space left on device");
        assert_eq!(fake.ingests(NAMESPACE).len(), 1);
    }
    raw.abort(&ref_of(&sha256(BYTES))).await.unwrap();
    raw.put("lease", b"0123", &[]).await;
}

#[tokio::test]
async fn a_stalled_stream_stays_mute_and_the_next_one_does_not() {
    let (fake, raw) = started(FakeConfig::default()).await;
    fake.inject(Fault::Stall {
        rpc: "Content.Write",
        after: 1,
    });
    let (mut stream, _) = raw.open("lease", stat(BYTES)).await.unwrap();
    let answer = tokio::time::timeout(Duration::from_millis(100), stream.send(write(0, BYTES))).await;
    assert!(answer.is_err(), "an answer came");
    drop(stream);
    fake.wait_until("the lock to go", |fake| {
        fake.ingests(NAMESPACE).values().all(|ingest| !ingest.locked)
    })
    .await;
    raw.put("lease", BYTES, &[]).await;
}

#[tokio::test]
async fn delays_hold_up_unary_calls_and_stream_messages() {
    let (fake, raw) = started(FakeConfig::default()).await;
    for rpc in ["Images.List", "Content.Write"] {
        fake.inject(Fault::Delay {
            rpc,
            by: Duration::from_millis(50),
        });
    }
    fake.inject(Fault::SlowCommit {
        by: Duration::from_millis(50),
    });
    let before = std::time::Instant::now();
    raw.image_names(&[]).await.unwrap();
    raw.put("lease", BYTES, &[]).await;
    assert!(before.elapsed() >= Duration::from_millis(150));
    fake.clear_faults();
}

#[tokio::test]
async fn a_locked_ref_opens_after_so_many_tries() {
    let (fake, raw) = started(FakeConfig::default()).await;
    fake.inject(Fault::RefLocked { opens: 2 });
    for _ in 0..2 {
        assert_refused(
            raw.open("lease", stat(BYTES)).await.map(drop),
            Code::Unavailable,
            " locked for ",
        );
    }
    raw.open("lease", stat(BYTES)).await.unwrap();
}

#[tokio::test]
async fn a_lease_that_vanishes_takes_everything_with_it() {
    let (fake, raw) = started(FakeConfig::default()).await;
    let held = raw.put("lease", b"held", &[]).await;
    fake.inject(Fault::LeaseVanishes { writes: 1 });
    let (mut stream, _) = raw.open("lease", stat(BYTES)).await.unwrap();
    stream.send(write(0, BYTES)).await.unwrap();
    stream.send(commit(10, BYTES)).await.unwrap_err();
    assert!(fake.leases(NAMESPACE).is_empty() && fake.ingests(NAMESPACE).is_empty());
    assert!(!raw.has(&held).await);
    assert_refused(
        raw.open("lease", stat(BYTES)).await.map(drop),
        Code::NotFound,
        "lease does not exist",
    );
}

#[tokio::test]
async fn a_refused_commit_keeps_the_ingest() {
    let (fake, raw) = started(FakeConfig::default()).await;
    fake.inject(Fault::RefuseCommit { commits: 1 });
    assert_refused(
        raw.open("lease", whole(BYTES)).await.map(drop),
        Code::FailedPrecondition,
        "unexpected commit digest",
    );
    assert_eq!(fake.ingests(NAMESPACE)[&ref_of(&sha256(BYTES))].offset, 10);
    raw.put("lease", BYTES, &[]).await;
}

#[tokio::test]
async fn in_a_gc_storm_only_what_is_held_at_every_moment_survives() {
    let (_fake, raw) = started(FakeConfig {
        gc: GcPolicy::AfterEveryMutation,
        ..Default::default()
    })
    .await;
    let held = raw.put("lease", b"held", &[]).await;
    let loose = raw.put("", b"loose", &[]).await;
    assert!(raw.has(&held).await && !raw.has(&loose).await);
}

#[tokio::test]
async fn a_lease_ends_when_the_clock_passes_its_expiry() {
    let (fake, raw) = started(FakeConfig::default()).await;
    fake.set_clock("2026-01-01T00:00:00Z".parse().unwrap());
    raw.lease_with("day", &[("containerd.io/gc.expire", "2026-01-02T00:00:00Z")])
        .await;
    let digest = raw.put("day", BYTES, &[]).await;
    for (hours, held) in [(23, true), (2, false)] {
        fake.advance_clock(Duration::from_secs(hours * 3600));
        fake.collect_garbage().await;
        assert_eq!(raw.has(&digest).await, held);
    }
}

#[tokio::test]
async fn data_that_is_not_kept_still_has_size_and_digest() {
    let (fake, raw) = started(FakeConfig {
        discard_data_above: Some(4),
        ..Default::default()
    })
    .await;
    let digest = raw.put("lease", BYTES, &[]).await;
    assert_eq!(raw.info(&digest).await.unwrap().size, 10);
    assert_eq!(fake.blob_bytes(NAMESPACE, &digest), None);
    let small = raw.put("lease", b"0123", &[]).await;
    assert_eq!(fake.blob_bytes(NAMESPACE, &small).unwrap(), b"0123");
}

#[tokio::test]
async fn a_stale_ingest_is_resumed_whatever_it_holds() {
    let (fake, raw) = started(FakeConfig::default()).await;
    fake.put_ingest(NAMESPACE, &ref_of(&sha256(BYTES)), b"wrong", 10);
    let (mut stream, opened) = raw.open("lease", stat(BYTES)).await.unwrap();
    assert_eq!((opened.offset, opened.digest), (5, sha256(b"wrong")));
    stream.send(write(5, &BYTES[5..])).await.unwrap();
    assert_refused(
        stream.send(commit(10, BYTES)).await,
        Code::FailedPrecondition,
        "unexpected commit digest",
    );
}

#[tokio::test]
async fn a_rotten_blob_is_repaired_only_by_deleting_collecting_and_writing() {
    let (fake, raw) = started(FakeConfig {
        gc: GcPolicy::OnRequest,
        ..Default::default()
    })
    .await;
    let digest = raw.put("lease", BYTES, &[]).await;
    assert!(fake.corrupt_blob(&digest, b"rotten"));
    let delete = containerd_client::services::v1::DeleteContentRequest {
        digest: digest.clone(),
    };
    raw.content()
        .delete(raw.leased("lease", delete.clone()))
        .await
        .unwrap();
    let (mut stream, opened) = raw.open("lease", stat(BYTES)).await.unwrap();
    assert_eq!(opened.offset, 10, "the rotten file is adopted again");
    stream.send(commit(10, BYTES)).await.unwrap();
    assert_eq!(fake.blob_bytes(NAMESPACE, &digest).unwrap(), b"rotten");
    raw.content().delete(raw.leased("lease", delete)).await.unwrap();
    fake.collect_garbage().await;
    raw.put("lease", BYTES, &[]).await;
    assert_eq!(fake.blob_bytes(NAMESPACE, &digest).unwrap(), BYTES);
}

#[tokio::test]
async fn lists_of_more_than_four_mib_arrive() {
    let (fake, raw) = started(FakeConfig {
        cri: false,
        ..Default::default()
    })
    .await;
    let digest = fake.put_blob(NAMESPACE, b"{}", &[]);
    for number in 0..1200 {
        let labels = [("note".to_owned(), "x".repeat(4000))].into();
        let name = format!("image-{number}");
        let seed = fake_containerd::SeedImage {
            name,
            media_type: MANIFEST.into(),
            digest: digest.clone(),
            size: 2,
            labels,
        };
        fake.put_image(NAMESPACE, seed);
    }
    let small = raw.image_names(&[]).await;
    assert_refused(small, Code::OutOfRange, "");
    let request = containerd_client::services::v1::ListImagesRequest::default();
    let mut client = raw.images().max_decoding_message_size(16 << 20);
    assert_eq!(
        client
            .list(raw.request(request))
            .await
            .unwrap()
            .into_inner()
            .images
            .len(),
        1200
    );
}

#[tokio::test]
async fn introspection_tells_platform_and_cri() {
    use containerd_client::services::v1::introspection_client::IntrospectionClient;
    for (cri, expected) in [(true, 1), (false, 0)] {
        let (fake, _) = started(FakeConfig {
            cri,
            ..Default::default()
        })
        .await;
        let mut client = IntrospectionClient::new(containerd_client::connect(fake.socket()).await.unwrap());
        assert!(!client.server(()).await.unwrap().into_inner().uuid.is_empty());
        let filters = vec!["type==io.containerd.grpc.v1,id==cri".to_owned()];
        let request = containerd_client::services::v1::PluginsRequest { filters };
        let plugins = client.plugins(request).await.unwrap().into_inner().plugins;
        assert_eq!(plugins.len(), expected);
        assert!(
            plugins
                .iter()
                .all(|plugin| plugin.platforms[0].architecture == "amd64")
        );
        let probe = Raw::connect(fake.socket(), NAMESPACE)
            .await
            .cri()
            .image_fs_info(k8s_cri::v1::ImageFsInfoRequest {})
            .await;
        match probe {
            Ok(answer) => assert!(cri && answer.into_inner().image_filesystems.len() == 1),
            Err(status) => assert!(!cri && status.code() == Code::Unimplemented, "{status}"),
        }
    }
}
