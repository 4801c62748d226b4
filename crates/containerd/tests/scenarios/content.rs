//! Writing and holding blobs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use containerd::{BlobSpec, Client, Error, Held, Options, Recovery, Resource, Written, ingest_ref};
use harness::{Stage, eventually};

use crate::support::{Blob, CHUNK, Failing, Paused, raw_write, tomorrow};
use crate::{Labels, labels, leased};

everywhere! {
    a_new_blob_is_sent_once_and_readable
    an_empty_blob_is_a_blob
    a_present_blob_is_leased_without_sending_a_byte
    a_present_blob_keeps_its_labels
    a_present_blob_of_another_size_than_declared_is_refused
    holding_tells_the_absent_and_leaves_no_ingest
    a_blob_that_only_another_namespace_has_is_not_held
    a_dropped_write_leaves_an_ingest_and_is_resumed
    a_dropped_write_of_sha512_is_resumed_from_2_3_on
    an_ingest_with_another_beginning_is_written_anew
    a_whole_ingest_is_committed_without_sending_a_byte
    a_whole_ingest_with_bad_bytes_is_written_anew
    an_ingest_declared_with_another_size_is_written_anew
    bytes_of_another_digest_are_refused_and_nothing_stays
    a_source_shorter_than_declared_is_refused_and_nothing_stays
    a_source_longer_than_declared_is_refused_and_nothing_stays
    a_source_that_fails_is_told_and_nothing_stays
    a_blob_being_written_by_another_is_waited_for
    a_blob_being_written_for_too_long_is_a_transient_error
    a_blob_that_appears_before_the_commit_is_leased
    a_blob_of_another_namespace_is_adopted
    a_small_blob_of_another_namespace_arrives_for_all_who_write_it_at_once
    parallel_blobs_all_arrive
    a_lost_lease_is_told_as_such
    a_lease_that_ends_during_a_write_is_told_as_such
}

async fn a_new_blob_is_sent_once_and_readable(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    for size in [1, 4096, CHUNK, CHUNK + 1, 5 * CHUNK + 7] {
        let (blob, progress) = (Blob::sized(size), Arc::new(AtomicU64::new(0)));
        let spec = blob.spec().with_progress(Arc::clone(&progress));
        let written = client
            .write_blob(&lease, &spec, blob.source())
            .await
            .expect("written");
        assert_eq!(
            written,
            Written::Committed {
                sent_bytes: blob.size()
            }
        );
        assert_eq!(progress.load(Ordering::Relaxed), blob.size());
        assert_eq!(
            client
                .read_blob(&blob.digest, blob.size())
                .await
                .expect("readable"),
            *blob.bytes
        );
        let info = client
            .blob(&blob.digest)
            .await
            .expect("an answer")
            .expect("present");
        assert_eq!((info.size, info.labels), (blob.size(), Labels::new()));
        assert!(holds(&client, &lease, &blob).await);
        let too_large = client
            .read_blob(&blob.digest, blob.size() - 1)
            .await
            .expect_err("too large");
        assert_eq!(too_large.recovery(), Recovery::Permanent);
    }
    assert_eq!(client.ingests().await.expect("an answer"), []);
}

async fn an_empty_blob_is_a_blob(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    let blob = Blob::of(Vec::new());
    let written = client
        .write_blob(&lease, &blob.spec(), blob.source())
        .await
        .expect("written");
    assert_eq!(written, Written::Committed { sent_bytes: 0 });
    assert_eq!(
        client
            .blob(&blob.digest)
            .await
            .expect("an answer")
            .expect("present")
            .size,
        0
    );
    assert!(holds(&client, &lease, &blob).await);
    assert!(
        client
            .read_blob(&blob.digest, 0)
            .await
            .expect("readable")
            .is_empty()
    );
    let again = client
        .write_blob(&lease, &blob.spec(), blob.source())
        .await
        .expect("written");
    assert_eq!(again, Written::Present);
}

async fn a_present_blob_is_leased_without_sending_a_byte(stage: &Stage) {
    let (client, first) = leased(stage).await;
    let blob = Blob::sized(3 * CHUNK);
    client
        .write_blob(&first, &blob.spec(), blob.source())
        .await
        .expect("written");
    for hold in [false, true] {
        let (_, second) = leased(stage).await;
        assert!(!holds(&client, &second, &blob).await);
        if hold {
            let held = client.hold_blob(&second, &blob.digest, blob.size()).await;
            assert_eq!(held.expect("an answer"), Held::Held);
        } else {
            let source = blob.source();
            let written = client
                .write_blob(&second, &blob.spec(), Arc::clone(&source) as _)
                .await;
            assert_eq!(written.expect("written"), Written::Present);
            assert_eq!(source.opened(), 0);
        }
        assert!(holds(&client, &second, &blob).await);
    }
}

async fn a_present_blob_keeps_its_labels(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    // Sent in one message, and in several.
    for size in [100, 3 * CHUNK] {
        let blob = Blob::sized(size);
        let first = labels(&[
            ("a", "1"),
            ("containerd.io/gc.ref.content.l.0", blob.digest.as_ref()),
        ]);
        let second = labels(&[("a", "2"), ("b", "2")]);
        for labels in [&first, &second] {
            let spec = blob.spec().with_labels(labels.clone());
            client
                .write_blob(&lease, &spec, blob.source())
                .await
                .expect("written");
        }
        let info = client
            .blob(&blob.digest)
            .await
            .expect("an answer")
            .expect("present");
        assert_eq!(info.labels, first, "{size} bytes");
    }
}

async fn a_present_blob_of_another_size_than_declared_is_refused(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    let blob = Blob::sized(100);
    client
        .write_blob(&lease, &blob.spec(), blob.source())
        .await
        .expect("written");
    let spec = BlobSpec::new(blob.digest.clone(), 99);
    let error = client
        .write_blob(&lease, &spec, blob.source())
        .await
        .expect_err("a lie");
    assert_eq!(error.recovery(), Recovery::Content, "{error:?}");
    let text = error.to_string();
    assert!(
        ["99", "100", blob.digest.as_ref()]
            .iter()
            .all(|part| text.contains(part)),
        "{text}"
    );
}

async fn holding_tells_the_absent_and_leaves_no_ingest(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    let blob = Blob::sized(100);
    let held = client
        .hold_blob(&lease, &blob.digest, blob.size())
        .await
        .expect("an answer");
    assert_eq!(held, Held::Absent);
    assert_nothing_of(&client, &blob).await;
}

async fn a_blob_that_only_another_namespace_has_is_not_held(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    let blob = Blob::sized(CHUNK);
    client
        .write_blob(&lease, &blob.spec(), blob.source())
        .await
        .expect("written");
    let elsewhere = stage.elsewhere().client().await;
    elsewhere
        .create_lease(&lease, tomorrow(), &Labels::new())
        .await
        .expect("a lease");
    let held = elsewhere.hold_blob(&lease, &blob.digest, blob.size()).await;
    assert_eq!(held.expect("an answer"), Held::Absent);
    assert_eq!(elsewhere.blob(&blob.digest).await.expect("an answer"), None);
    let written = elsewhere.write_blob(&lease, &blob.spec(), blob.source()).await;
    assert_eq!(written.expect("written"), Written::Adopted);
}

async fn a_dropped_write_leaves_an_ingest_and_is_resumed(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    let blob = Blob::sized(8 * CHUNK);
    interrupted(&client, &lease, &blob, 3 * CHUNK).await;
    assert_eq!(client.blob(&blob.digest).await.expect("an answer"), None);
    // A look-up must not harm the partial ingest.
    let held = client
        .hold_blob(&lease, &blob.digest, blob.size())
        .await
        .expect("an answer");
    assert_eq!(held, Held::Absent);
    let written = client
        .write_blob(&lease, &blob.spec(), blob.source())
        .await
        .expect("written");
    assert_eq!(
        written,
        Written::Committed {
            sent_bytes: 5 * CHUNK as u64
        }
    );
    assert_eq!(
        client
            .read_blob(&blob.digest, blob.size())
            .await
            .expect("readable"),
        *blob.bytes
    );
    assert!(holds(&client, &lease, &blob).await);
}

async fn a_dropped_write_of_sha512_is_resumed_from_2_3_on(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    let version = client.version().await.expect("an answer");
    let blob = Blob::sized(8 * CHUNK).named_by_sha512();
    if (version.major, version.minor) < (2, 3) {
        let refused = client.write_blob(&lease, &blob.spec(), blob.source()).await;
        refused.expect_err("no such digest is known");
        return;
    }
    interrupted(&client, &lease, &blob, 3 * CHUNK).await;
    let written = client
        .write_blob(&lease, &blob.spec(), blob.source())
        .await
        .expect("written");
    let sent_bytes = 5 * CHUNK as u64;
    assert_eq!(written, Written::Committed { sent_bytes });
    let read = client.read_blob(&blob.digest, blob.size()).await;
    assert_eq!(read.expect("readable"), *blob.bytes);
    assert!(holds(&client, &lease, &blob).await);
}

async fn an_ingest_with_another_beginning_is_written_anew(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    let blob = Blob::sized(6 * CHUNK);
    interrupted(&client, &lease, &blob.corrupted(), 3 * CHUNK).await;
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
    assert_eq!(
        client
            .read_blob(&blob.digest, blob.size())
            .await
            .expect("readable"),
        *blob.bytes
    );
}

async fn a_whole_ingest_is_committed_without_sending_a_byte(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    let blob = Blob::sized(3 * CHUNK);
    interrupted(&client, &lease, &blob, 3 * CHUNK).await;
    let source = blob.source();
    let written = client
        .write_blob(&lease, &blob.spec(), Arc::clone(&source) as _)
        .await
        .expect("written");
    assert_eq!((written, source.opened()), (Written::Adopted, 0));
    assert!(holds(&client, &lease, &blob).await);
}

async fn a_whole_ingest_with_bad_bytes_is_written_anew(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    let blob = Blob::sized(3 * CHUNK);
    interrupted(&client, &lease, &blob.corrupted(), 3 * CHUNK).await;
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

async fn an_ingest_declared_with_another_size_is_written_anew(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    for (left_behind, declared) in [(300, 400), (300, 300), (50, 400)] {
        let blob = Blob::sized(200);
        let other = Blob {
            digest: blob.digest.clone(),
            ..Blob::sized(left_behind)
        };
        raw_write(stage, &lease, &ingest_ref(&blob.digest), &other, declared, false).await;
        let written = client
            .write_blob(&lease, &blob.spec(), blob.source())
            .await
            .expect("written");
        assert!(
            matches!(written, Written::Committed { sent_bytes } if sent_bytes >= 200),
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
}

async fn bytes_of_another_digest_are_refused_and_nothing_stays(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    for size in [10, 3 * CHUNK] {
        let blob = Blob::sized(size);
        let source = blob.corrupted().source();
        let outcome = client
            .write_blob(&lease, &blob.spec(), Arc::clone(&source) as _)
            .await;
        let error = outcome.expect_err("bad bytes");
        assert_eq!(error.recovery(), Recovery::Content, "{error:?}");
        assert!(error.to_string().contains(blob.digest.as_ref()), "{error}");
        assert_eq!(
            source.opened(),
            1,
            "bytes of ours that are wrong are not sent again and again"
        );
        assert_nothing_of(&client, &blob).await;
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
}

async fn a_source_shorter_than_declared_is_refused_and_nothing_stays(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    for size in [1, 10, CHUNK, 3 * CHUNK] {
        let blob = Blob::sized(size);
        let spec = BlobSpec::new(blob.digest.clone(), blob.size() + 5);
        assert_wrong_length(&client, &lease, &spec, &blob, [blob.size(), blob.size() + 5]).await;
    }
}

async fn a_source_longer_than_declared_is_refused_and_nothing_stays(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    for size in [1, 10, CHUNK, 3 * CHUNK] {
        let blob = Blob::sized(size);
        let longer = Blob {
            digest: blob.digest.clone(),
            ..Blob::sized(size + 5)
        };
        assert_wrong_length(
            &client,
            &lease,
            &blob.spec(),
            &longer,
            [blob.size(), blob.size() + 1],
        )
        .await;
    }
}

async fn assert_wrong_length(client: &Client, lease: &str, spec: &BlobSpec, blob: &Blob, sizes: [u64; 2]) {
    let error = client
        .write_blob(lease, spec, blob.source())
        .await
        .expect_err("a wrong length");
    assert_eq!(error.recovery(), Recovery::Content, "{error:?}");
    let text = error.to_string();
    assert!(text.contains(spec.digest.as_ref()), "{text}");
    assert!(
        sizes.iter().all(|size| text.contains(&size.to_string())),
        "{sizes:?}: {text}"
    );
    assert_nothing_of(client, blob).await;
}

async fn a_source_that_fails_is_told_and_nothing_stays(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    let blob = Blob::sized(3 * CHUNK);
    let source = Arc::new(Failing::new(&blob, 2 * CHUNK));
    let error = client
        .write_blob(&lease, &blob.spec(), source)
        .await
        .expect_err("it cannot be read");
    assert!(matches!(error, Error::Source { .. }), "{error:?}");
    assert_nothing_of(&client, &blob).await;
}

async fn a_blob_being_written_by_another_is_waited_for(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    let blob = Blob::sized(4 * CHUNK);
    let source = Paused::new(&blob, 2 * CHUNK);
    let spec = blob.spec();
    let first = client.write_blob(&lease, &spec, Arc::clone(&source) as _);
    let second = async {
        arrived(&client, &blob, 2 * CHUNK).await;
        let (other, lease) = leased(stage).await;
        let unread = blob.source();
        let mut waiting = std::pin::pin!(other.write_blob(&lease, &spec, Arc::clone(&unread) as _));
        // containerd 1.6 and 1.7 wait for up to a second themselves before they say no.
        let early = tokio::time::timeout(Duration::from_millis(1500), waiting.as_mut()).await;
        assert!(
            early.is_err(),
            "it waits as long as the other one writes: {early:?}"
        );
        source.release();
        assert_eq!(
            (waiting.await.expect("written"), unread.opened()),
            (Written::Present, 0)
        );
        assert!(holds(&other, &lease, &blob).await);
    };
    let (written, ()) = tokio::join!(first, second);
    assert_eq!(
        written.expect("written"),
        Written::Committed {
            sent_bytes: blob.size()
        }
    );
}

async fn a_blob_being_written_for_too_long_is_a_transient_error(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    let options = Options {
        lock_wait: Duration::from_millis(100),
        ..Options::default()
    };
    let impatient = stage.client_with(options).await;
    let blob = Blob::sized(4 * CHUNK);
    let source = Paused::new(&blob, 2 * CHUNK);
    let spec = blob.spec();
    let first = client.write_blob(&lease, &spec, Arc::clone(&source) as _);
    let second = async {
        arrived(&client, &blob, 2 * CHUNK).await;
        let error = impatient
            .write_blob(&lease, &spec, blob.source())
            .await
            .expect_err("it is locked");
        assert!(matches!(error, Error::Locked { .. }), "{error:?}");
        assert_eq!(error.recovery(), Recovery::Transient);
        let held = impatient.hold_blob(&lease, &blob.digest, blob.size()).await;
        assert_eq!(held.expect("an answer"), Held::Absent);
        source.release();
    };
    let (written, ()) = tokio::join!(first, second);
    assert_eq!(
        written.expect("undisturbed"),
        Written::Committed {
            sent_bytes: blob.size()
        }
    );
}

async fn a_blob_that_appears_before_the_commit_is_leased(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    let (_, others) = leased(stage).await;
    let blob = Blob::sized(2 * CHUNK);
    let source = Paused::new(&blob, 2 * CHUNK);
    let spec = blob.spec().with_labels(labels(&[("ours", "yes")]));
    let writing = client.write_blob(&lease, &spec, Arc::clone(&source) as _);
    let meddling = async {
        arrived(&client, &blob, 2 * CHUNK).await;
        raw_write(
            stage,
            &others,
            &format!("another-tool-{}", blob.digest),
            &blob,
            blob.size(),
            true,
        )
        .await;
        source.release();
    };
    let (written, ()) = tokio::join!(writing, meddling);
    assert_eq!(written.expect("written"), Written::Present);
    assert!(holds(&client, &lease, &blob).await);
    let info = client
        .blob(&blob.digest)
        .await
        .expect("an answer")
        .expect("present");
    assert_eq!(info.labels, Labels::new(), "they are those of the other tool");
    assert_eq!(client.ingests().await.expect("an answer"), []);
}

async fn a_blob_of_another_namespace_is_adopted(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    let elsewhere = stage.elsewhere().client().await;
    elsewhere
        .create_lease(&lease, tomorrow(), &Labels::new())
        .await
        .expect("a lease");
    // The client sends a small blob without asking whether another namespace has it.
    let sent = |size| Written::Committed { sent_bytes: size };
    for (size, wanted, opened) in [(100, sent(100), 1), (3 * CHUNK, Written::Adopted, 0)] {
        let blob = Blob::sized(size);
        client
            .write_blob(&lease, &blob.spec(), blob.source())
            .await
            .expect("written");
        assert_eq!(elsewhere.blob(&blob.digest).await.expect("an answer"), None);
        let source = blob.source();
        let spec = blob.spec().with_labels(labels(&[("k", "v")]));
        let written = elsewhere
            .write_blob(&lease, &spec, Arc::clone(&source) as _)
            .await
            .expect("written");
        assert_eq!((written, source.opened()), (wanted, opened));
        let info = elsewhere
            .blob(&blob.digest)
            .await
            .expect("an answer")
            .expect("present");
        assert_eq!((info.size, info.labels), (blob.size(), spec.labels));
        assert!(holds(&elsewhere, &lease, &blob).await);
    }
}

/// Two bundles have the same small layer, which another namespace has too. In the middle of a
/// write, containerd may tell one client that the other holds the ingest.
async fn a_small_blob_of_another_namespace_arrives_for_all_who_write_it_at_once(stage: &Stage) {
    let elsewhere = stage.elsewhere().client().await;
    let (client, lease) = leased(stage).await;
    elsewhere
        .create_lease(&lease, tomorrow(), &Labels::new())
        .await
        .expect("a lease");
    for _ in 0..20 {
        let blob = Blob::sized(20 << 10);
        let spec = blob.spec();
        let there = elsewhere.write_blob(&lease, &spec, blob.source()).await;
        there.expect("written");
        let write = || client.write_blob(&lease, &spec, blob.source());
        let (a, b, c) = tokio::join!(write(), write(), write());
        for written in [a, b, c] {
            written.expect("it is there for each of them");
        }
        assert!(holds(&client, &lease, &blob).await);
    }
    assert_eq!(client.ingests().await.expect("an answer"), []);
}

async fn parallel_blobs_all_arrive(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    let writes: Vec<_> = (1..13)
        .map(|number| {
            let (client, lease, blob) = (client.clone(), lease.clone(), Blob::sized(number * 300_000));
            tokio::spawn(async move { client.write_blob(&lease, &blob.spec(), blob.source()).await })
        })
        .collect();
    for (number, write) in (1..).zip(writes) {
        let written = write.await.expect("no panic").expect("written");
        assert_eq!(
            written,
            Written::Committed {
                sent_bytes: number * 300_000
            }
        );
    }
}

async fn a_lost_lease_is_told_as_such(stage: &Stage) {
    let client = stage.client().await;
    let (blob, lease) = (Blob::sized(100), "never-created");
    let errors = [
        client
            .write_blob(lease, &blob.spec(), blob.source())
            .await
            .expect_err("no lease"),
        client
            .hold_blob(lease, &blob.digest, blob.size())
            .await
            .expect_err("no lease"),
        client
            .add_to_lease(lease, &Resource::Blob(blob.digest.clone()))
            .await
            .expect_err("no lease"),
        client.lease_resources(lease).await.expect_err("no lease"),
    ];
    for error in errors {
        assert_eq!(error.recovery(), Recovery::LeaseLost, "{error:?}");
        assert!(error.to_string().contains(lease), "{error}");
    }
    assert!(!client.delete_lease(lease, false).await.expect("an answer"));
    assert_nothing_of(&client, &blob).await;
}

async fn a_lease_that_ends_during_a_write_is_told_as_such(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    let blob = Blob::sized(4 * CHUNK);
    let source = Paused::new(&blob, 2 * CHUNK);
    let spec = blob.spec();
    let writing = client.write_blob(&lease, &spec, Arc::clone(&source) as _);
    let ending = async {
        arrived(&client, &blob, 2 * CHUNK).await;
        assert!(client.delete_lease(&lease, true).await.expect("deleted"));
        source.release();
    };
    let (error, ()) = tokio::join!(writing, ending);
    let error = error.expect_err("the lease is gone");
    assert_eq!(error.recovery(), Recovery::LeaseLost, "{error:?}");
    assert_eq!(client.blob(&blob.digest).await.expect("an answer"), None);
}

async fn holds(client: &Client, lease: &str, blob: &Blob) -> bool {
    let resources = client.lease_resources(lease).await.expect("the lease is there");
    resources.contains(&Resource::Blob(blob.digest.clone()))
}

pub(crate) async fn assert_nothing_of(client: &Client, blob: &Blob) {
    assert_eq!(client.blob(&blob.digest).await.expect("an answer"), None);
    assert_eq!(client.ingests().await.expect("an answer"), []);
}

/// Starts to write a blob, and drops the write when `sent` bytes have arrived.
pub(crate) async fn interrupted(client: &Client, lease: &str, blob: &Blob, sent: usize) {
    let source = Paused::new(blob, sent);
    let writing = tokio::spawn({
        let (client, lease, spec, source) =
            (client.clone(), lease.to_owned(), blob.spec(), Arc::clone(&source));
        async move { client.write_blob(&lease, &spec, source).await }
    });
    arrived(client, blob, sent).await;
    writing.abort();
    assert!(writing.await.expect_err("it was dropped").is_cancelled());
    // The thread is inside the source and ends when the source returns.
    source.release();
    eventually("the reader is dropped", async || source.readers() == 0).await;
}

pub(crate) async fn arrived(client: &Client, blob: &Blob, bytes: usize) {
    let reference = ingest_ref(&blob.digest);
    eventually("bytes arrive", async || {
        let ingests = client.ingests().await.expect("an answer");
        ingests
            .iter()
            .any(|ingest| ingest.reference == reference && ingest.offset >= bytes as u64)
    })
    .await;
}
