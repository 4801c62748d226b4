//! Scenarios in raw calls that every containerd must pass, the stand-in and real ones alike.
//! Importers rely on them. Each runs in its own namespace.

use std::time::Duration;

use containerd_client::services::v1::*;
use fake_containerd::sha256;
use tonic::Code;

use crate::raw::*;

pub(crate) async fn opening_a_present_blob_says_so_and_leases_it(raw: Raw) {
    let bytes = raw.bytes("layer");
    raw.lease("first").await;
    let digest = raw.put("first", &bytes, &[]).await;
    raw.lease("second").await;
    let answer = raw.open("second", stat(&bytes)).await.map(drop);
    assert_refused(
        answer,
        Code::AlreadyExists,
        &format!("content {digest}: already exists"),
    );
    assert_eq!(raw.resources("second").await, [format!("content/{digest}")]);
    assert_eq!(raw.ingests().await, [""; 0]);
}

pub(crate) async fn a_commit_is_answered_twice(raw: Raw) {
    let bytes = raw.bytes("layer");
    raw.lease("lease").await;
    let (mut stream, opened) = raw.open("lease", stat(&bytes)).await.unwrap();
    assert_eq!((opened.offset, opened.total), (0, length(&bytes)));
    let written = stream.send(write(0, &bytes)).await.unwrap().unwrap();
    assert_eq!((written.offset, written.digest), (length(&bytes), sha256(&bytes)));
    let committed = stream.send(commit(bytes.len(), &bytes)).await.unwrap().unwrap();
    assert_eq!(committed.action, WriteAction::Commit as i32);
    assert_eq!(committed.offset, length(&bytes));
    assert_eq!(stream.finish().await.unwrap(), [committed]);
    assert_eq!(raw.info(&sha256(&bytes)).await.unwrap().size, length(&bytes));
}

pub(crate) async fn a_half_close_repeats_the_last_answer(raw: Raw) {
    let bytes = raw.bytes("layer");
    raw.lease("lease").await;
    let (mut stream, opened) = raw.open("lease", stat(&bytes)).await.unwrap();
    assert_eq!(stream.finish().await.unwrap(), [opened]);
}

pub(crate) async fn a_commit_with_offset_zero_throws_everything_away(raw: Raw) {
    let bytes = raw.bytes("layer");
    raw.lease("lease").await;
    let (mut stream, _) = raw.open("lease", stat(&bytes)).await.unwrap();
    stream.send(write(0, &bytes)).await.unwrap();
    let answer = stream.send(commit(0, &bytes)).await;
    let text = format!(
        "failed size validation: 0 != {}: failed precondition",
        bytes.len()
    );
    assert_refused(answer, Code::FailedPrecondition, &text);
    drop(stream);
    let (_, opened) = reopened(&raw, &bytes).await;
    assert_eq!(opened.offset, 0);
}

pub(crate) async fn a_commit_without_any_promise_stores_the_empty_blob(raw: Raw) {
    let bytes = raw.bytes("layer");
    raw.lease("lease").await;
    let first = WriteContentRequest {
        total: 0,
        expected: String::new(),
        ..stat(&bytes)
    };
    let (mut stream, _) = raw.open("lease", first).await.unwrap();
    stream.send(write(0, &bytes)).await.unwrap();
    let bare = WriteContentRequest {
        action: WriteAction::Commit as i32,
        ..Default::default()
    };
    let committed = stream.send(bare).await.unwrap().unwrap();
    assert_eq!((committed.offset, committed.digest), (0, sha256(b"")));
    assert!(!raw.has(&sha256(&bytes)).await);
}

pub(crate) async fn an_empty_blob_needs_no_data(raw: Raw) {
    raw.lease("lease").await;
    let digest = raw.put("lease", b"", &[]).await;
    assert_eq!(raw.info(&digest).await.unwrap().size, 0);
}

pub(crate) async fn a_small_blob_fits_into_one_message(raw: Raw) {
    let bytes = raw.bytes("config");
    raw.lease("lease").await;
    let digest = raw.put("lease", &bytes, &[("some", "label")]).await;
    let info = raw.info(&digest).await.unwrap();
    assert_eq!(info.labels, labels_of(&[("some", "label")]));
    assert_eq!(raw.resources("lease").await, [format!("content/{digest}")]);
    assert_eq!(raw.ingests().await, [""; 0]);
}

pub(crate) async fn a_digest_mismatch_keeps_the_ingest_until_it_is_aborted(raw: Raw) {
    let bytes = raw.bytes("layer");
    let bad: Vec<u8> = bytes.iter().map(|byte| byte ^ 1).collect();
    raw.lease("lease").await;
    let (mut stream, _) = raw.open("lease", stat(&bytes)).await.unwrap();
    stream.send(write(0, &bad)).await.unwrap();
    let answer = stream.send(commit(bytes.len(), &bytes)).await;
    let text = format!(
        "unexpected commit digest {}, expected {}",
        sha256(&bad),
        sha256(&bytes)
    );
    assert_refused(answer, Code::FailedPrecondition, &text);
    drop(stream);
    let (mut stream, opened) = reopened(&raw, &bytes).await;
    assert_eq!((opened.offset, opened.digest), (length(&bytes), sha256(&bad)));
    stream.finish().await.unwrap();
    let reference = ref_of(&sha256(&bytes));
    raw.abort(&reference).await.unwrap();
    assert_refused(raw.abort(&reference).await, Code::NotFound, "");
    assert_eq!(raw.ingests().await, [""; 0]);
    let (_, opened) = reopened(&raw, &bytes).await;
    assert_eq!(opened.offset, 0);
}

pub(crate) async fn a_total_that_is_not_reached_fails_the_commit(raw: Raw) {
    let bytes = raw.bytes("layer");
    raw.lease("lease").await;
    let (mut stream, _) = raw.open("lease", stat(&bytes)).await.unwrap();
    stream.send(write(0, &bytes[..4])).await.unwrap();
    let text = format!("failed size validation: 4 != {}", bytes.len());
    assert_refused(
        stream.send(commit(4, &bytes)).await,
        Code::FailedPrecondition,
        &text,
    );
}

pub(crate) async fn a_write_goes_on_where_the_last_one_ended_or_starts_again(raw: Raw) {
    let bytes = raw.bytes("layer");
    raw.lease("lease").await;
    let (mut stream, _) = raw.open("lease", stat(&bytes)).await.unwrap();
    stream.send(write(0, b"0123456789")).await.unwrap();
    let answer = stream.send(write(5, b"x")).await;
    assert_refused(
        answer,
        Code::OutOfRange,
        "write @5 must occur at current offset 10",
    );
    drop(stream);
    let (mut stream, opened) = reopened(&raw, &bytes).await;
    assert_eq!(opened.offset, 10);
    let restarted = stream.send(write(0, &bytes)).await.unwrap().unwrap();
    assert_eq!(
        (restarted.offset, restarted.digest),
        (length(&bytes), sha256(&bytes))
    );
    stream.send(commit(bytes.len(), &bytes)).await.unwrap();
    assert!(raw.has(&sha256(&bytes)).await);
}

pub(crate) async fn an_interrupted_write_resumes_with_the_digest_of_what_is_there(raw: Raw) {
    let bytes = raw.bytes("layer");
    raw.lease("lease").await;
    let (mut stream, _) = raw.open("lease", stat(&bytes)).await.unwrap();
    stream.send(write(0, &bytes[..6])).await.unwrap();
    drop(stream);
    let (mut stream, opened) = reopened(&raw, &bytes).await;
    assert_eq!(
        (opened.offset, opened.total, opened.digest),
        (6, length(&bytes), sha256(&bytes[..6]))
    );
    stream.send(write(6, &bytes[6..])).await.unwrap();
    stream.send(commit(bytes.len(), &bytes)).await.unwrap();
    assert!(raw.has(&sha256(&bytes)).await);
}

pub(crate) async fn another_total_starts_again_without_truncating(raw: Raw) {
    let short = raw.bytes("short");
    raw.lease("lease").await;
    let first = WriteContentRequest {
        total: 90,
        ..stat(&short)
    };
    let (mut stream, _) = raw.open("lease", first).await.unwrap();
    stream.send(write(0, &[b'x'; 90])).await.unwrap();
    drop(stream);
    let (mut stream, opened) = reopened(&raw, &short).await;
    assert_eq!(opened.offset, 0);
    stream.send(write(0, &short)).await.unwrap();
    let answer = stream.send(commit(short.len(), &short)).await;
    let text = format!("unexpected commit size 90, expected {}", short.len());
    assert_refused(answer, Code::FailedPrecondition, &text);
}

pub(crate) async fn a_ref_belongs_to_one_stream(raw: Raw) {
    let bytes = raw.bytes("layer");
    raw.lease("lease").await;
    let (stream, _) = raw.open("lease", stat(&bytes)).await.unwrap();
    let answer = raw.open("lease", stat(&bytes)).await.map(drop);
    assert_refused(answer, Code::Unavailable, " locked for ");
    drop(stream);
    reopened(&raw, &bytes).await;
}

pub(crate) async fn the_first_message_names_a_ref(raw: Raw) {
    raw.lease("lease").await;
    let answer = raw.open("lease", WriteContentRequest::default()).await.map(drop);
    assert_refused(
        answer,
        Code::InvalidArgument,
        "first message must have a reference",
    );
}

pub(crate) async fn content_of_another_namespace_is_adopted_without_a_byte(raw: Raw) {
    let bytes = raw.bytes("layer");
    let other = raw.in_namespace(&format!("{}-other", raw.namespace));
    other.lease("lease").await;
    let digest = other.put("lease", &bytes, &[("only", "there")]).await;
    assert!(!raw.has(&digest).await);
    raw.lease("lease").await;
    let (mut stream, opened) = raw.open("lease", stat(&bytes)).await.unwrap();
    assert_eq!((opened.offset, opened.total), (length(&bytes), length(&bytes)));
    let committed = stream.send(commit(bytes.len(), &bytes)).await.unwrap().unwrap();
    assert_eq!(
        (committed.offset, committed.digest),
        (length(&bytes), digest.clone())
    );
    assert_eq!(raw.info(&digest).await.unwrap().labels, labels_of(&[]));
    assert_eq!(raw.resources("lease").await, [format!("content/{digest}")]);
}

pub(crate) async fn content_of_another_size_is_not_adopted(raw: Raw) {
    let bytes = raw.bytes("layer");
    let other = raw.in_namespace(&format!("{}-other", raw.namespace));
    other.lease("lease").await;
    other.put("lease", &bytes, &[]).await;
    raw.lease("lease").await;
    let first = WriteContentRequest {
        total: length(&bytes) + 1,
        ..stat(&bytes)
    };
    let (_, opened) = raw.open("lease", first).await.unwrap();
    assert_eq!(opened.offset, 0);
}

pub(crate) async fn a_blob_that_came_meanwhile_is_leased_only_if_the_commit_expects_nothing(raw: Raw) {
    let bytes = raw.bytes("layer");
    let digest = sha256(&bytes);
    for (lease, expects, text) in [
        ("with", true, format!("blob with expected digest {digest} exists")),
        ("without", false, format!("content {digest}: already exists")),
    ] {
        raw.lease("other").await;
        raw.lease(lease).await;
        let first = WriteContentRequest {
            expected: String::new(),
            ..stat(&bytes)
        };
        let (mut stream, _) = raw.open(lease, first).await.unwrap();
        stream.send(write(0, &bytes)).await.unwrap();
        let whole = WriteContentRequest {
            r#ref: format!("other-{digest}"),
            ..whole(&bytes)
        };
        // The blob may be present already. After this call it is present in any case.
        let _ = raw.open("other", whole).await;
        let expected = if expects { digest.clone() } else { String::new() };
        let labels = labels_of(&[("not", "applied")]);
        let message = WriteContentRequest {
            expected,
            labels,
            ..commit(bytes.len(), &bytes)
        };
        assert_refused(stream.send(message).await, Code::AlreadyExists, &text);
        drop(stream);
        let held = raw.resources(lease).await.contains(&format!("content/{digest}"));
        assert_eq!(held, !expects, "{lease}");
        assert_eq!(raw.info(&digest).await.unwrap().labels, labels_of(&[]));
        assert_eq!(raw.ingests().await, [""; 0]);
        raw.delete_lease("other").await;
    }
}

pub(crate) async fn calls_need_a_namespace(raw: Raw) {
    let nowhere = raw.in_namespace("");
    let text = "namespace is required";
    let digest = sha256(b"");
    assert_refused(nowhere.info(&digest).await, Code::FailedPrecondition, text);
    assert_refused(nowhere.image_names(&[]).await, Code::FailedPrecondition, text);
    assert_refused(
        nowhere.open("", stat(b"x")).await.map(drop),
        Code::FailedPrecondition,
        text,
    );
    nowhere
        .namespaces()
        .list(ListNamespacesRequest::default())
        .await
        .unwrap();
}

pub(crate) async fn writing_needs_the_lease_to_exist_and_reading_does_not(raw: Raw) {
    let bytes = raw.bytes("layer");
    let answer = raw.open("no-such-lease", stat(&bytes)).await.map(drop);
    assert_refused(answer, Code::NotFound, "lease does not exist: not found");
    raw.lease("lease").await;
    let digest = raw.put("lease", &bytes, &[]).await;
    let request = InfoRequest {
        digest: digest.clone(),
    };
    raw.content()
        .info(raw.leased("no-such-lease", request))
        .await
        .unwrap();
    let answer = raw.open("no-such-lease", stat(&bytes)).await.map(drop);
    assert_refused(answer, Code::NotFound, "lease does not exist: not found");
}

pub(crate) async fn a_commit_fails_when_its_lease_is_gone(raw: Raw) {
    let bytes = raw.bytes("layer");
    raw.lease("lease").await;
    let (mut stream, _) = raw.open("lease", stat(&bytes)).await.unwrap();
    stream.send(write(0, &bytes)).await.unwrap();
    raw.delete_lease("lease").await;
    let answer = stream.send(commit(bytes.len(), &bytes)).await;
    assert_refused(answer, Code::Unknown, "no such file or directory");
    assert!(!raw.has(&sha256(&bytes)).await);
}

pub(crate) async fn blob_labels_change_by_mask(raw: Raw) {
    raw.lease("lease").await;
    let digest = raw
        .put("lease", &raw.bytes("layer"), &[("keep", "1"), ("drop", "1")])
        .await;
    let key = "containerd.io/gc.ref.content.l.0";
    let path = format!("labels.{key}");
    raw.label_blob(
        &digest,
        &[(key, "sha256:x"), ("ignored", "1")],
        &[&path, "labels.drop"],
    )
    .await
    .unwrap();
    assert_eq!(
        raw.info(&digest).await.unwrap().labels,
        labels_of(&[("keep", "1"), (key, "sha256:x")])
    );
    raw.label_blob(&digest, &[("all", "new")], &["labels"])
        .await
        .unwrap();
    assert_eq!(
        raw.info(&digest).await.unwrap().labels,
        labels_of(&[("all", "new")])
    );
    raw.label_blob(&digest, &[("all", "newer")], &[]).await.unwrap();
    assert_eq!(
        raw.info(&digest).await.unwrap().labels,
        labels_of(&[("all", "newer")])
    );
    assert_refused(
        raw.label_blob(&digest, &[], &["size"]).await,
        Code::InvalidArgument,
        "size",
    );
    assert_refused(
        raw.label_blob(&sha256(b"?"), &[("a", "b")], &["labels.a"]).await,
        Code::NotFound,
        "not found",
    );
}

pub(crate) async fn a_label_has_4096_bytes_at_most(raw: Raw) {
    raw.lease("lease").await;
    let digest = raw.put("lease", &raw.bytes("layer"), &[]).await;
    let fits = "v".repeat(4096 - 3);
    raw.label_blob(&digest, &[("key", &fits)], &["labels.key"])
        .await
        .unwrap();
    let long = format!("{fits}v");
    let text = "greater than maximum size (4096 bytes)";
    assert_refused(
        raw.label_blob(&digest, &[("key", &long)], &["labels.key"]).await,
        Code::InvalidArgument,
        text,
    );
    assert_refused(
        raw.create_image("x", &digest, &[("key", &long)]).await,
        Code::InvalidArgument,
        text,
    );
    let message = WriteContentRequest {
        labels: labels_of(&[("key", &long)]),
        ..whole(&raw.bytes("other"))
    };
    assert_refused(
        raw.open("lease", message).await.map(drop),
        Code::InvalidArgument,
        text,
    );
}

pub(crate) async fn a_record_is_created_once_and_needs_no_content(raw: Raw) {
    let digest = sha256(b"a missing blob");
    let created = raw.create_image("x", &digest, &[("a", "b")]).await.unwrap();
    assert_eq!(created.target.unwrap().digest, digest);
    assert_refused(
        raw.create_image("x", &digest, &[]).await,
        Code::AlreadyExists,
        "image \"x\": already exists",
    );
    let image = raw.image("x").await.unwrap();
    assert_eq!(
        (image.labels, image.target.unwrap().media_type.as_str()),
        (labels_of(&[("a", "b")]), MANIFEST)
    );
    assert_refused(raw.image("y").await, Code::NotFound, "image \"y\": not found");
}

pub(crate) async fn a_record_must_be_valid(raw: Raw) {
    let digest = sha256(b"x");
    let create = async |image: Image| {
        let request = CreateImageRequest {
            image: Some(image),
            source_date_epoch: None,
        };
        raw.images().create(raw.request(request)).await.map(drop)
    };
    let mut sizeless = image("x", &digest, &[]);
    sizeless.target.as_mut().unwrap().size = 0;
    let mut typeless = image("x", &digest, &[]);
    typeless.target.as_mut().unwrap().media_type.clear();
    // These texts begin with a lower-case letter since 2.3.
    for (image, text) in [
        (image("", &digest, &[]), "Image.Name required"),
        (image("x", "sha256:0", &[]), "invalid"),
        (sizeless, "arget.Size must be greater than zero"),
        (typeless, "arget.MediaType must be set"),
    ] {
        assert_refused(create(image).await, Code::InvalidArgument, text);
    }
}

pub(crate) async fn records_change_by_mask(raw: Raw) {
    let (old, new) = (sha256(b"old"), sha256(b"new"));
    raw.create_image("x", &old, &[("keep", "1"), ("drop", "1")])
        .await
        .unwrap();
    let update = image("x", &new, &[("set.this", "2"), ("ignored", "2")]);
    raw.update_image(update.clone(), &["target", "labels.set.this", "labels.drop"])
        .await
        .unwrap();
    let image = raw.image("x").await.unwrap();
    assert_eq!(image.labels, labels_of(&[("keep", "1"), ("set.this", "2")]));
    assert_eq!(image.target.unwrap().digest, new);
    raw.update_image(image_with(&update, "a", "1"), &["annotations.a"])
        .await
        .unwrap();
    assert_eq!(
        raw.image("x").await.unwrap().target.unwrap().annotations,
        labels_of(&[("a", "1")])
    );
    raw.update_image(update.clone(), &["target"]).await.unwrap();
    assert_eq!(
        raw.image("x").await.unwrap().target.unwrap().annotations,
        labels_of(&[])
    );
    raw.update_image(update.clone(), &[]).await.unwrap();
    assert_eq!(
        raw.image("x").await.unwrap().labels,
        labels_of(&[("set.this", "2"), ("ignored", "2")])
    );
    assert_refused(
        raw.update_image(update.clone(), &["name"]).await,
        Code::InvalidArgument,
        "name",
    );
    let unknown = Image {
        name: "y".to_owned(),
        ..update
    };
    assert_refused(
        raw.update_image(unknown, &["target"]).await,
        Code::NotFound,
        "image \"y\": not found",
    );
}

pub(crate) async fn records_are_deleted_by_name(raw: Raw) {
    raw.create_image("x", &sha256(b"x"), &[]).await.unwrap();
    raw.delete_image("x").await.unwrap();
    assert_refused(
        raw.delete_image("x").await,
        Code::NotFound,
        "image \"x\": not found",
    );
}

pub(crate) async fn records_are_filtered(raw: Raw) {
    let digest = sha256(b"x");
    raw.create_image(
        "docker.io/library/a:1",
        &digest,
        &[("io.cri-containerd.pinned", "pinned")],
    )
    .await
    .unwrap();
    raw.create_image("quay.io/b:1", &digest, &[]).await.unwrap();
    for (filters, names) in [
        (&[][..], &["docker.io/library/a:1", "quay.io/b:1"][..]),
        (&["name==quay.io/b:1"], &["quay.io/b:1"]),
        (&["name!=quay.io/b:1"], &["docker.io/library/a:1"]),
        (&["name~=^quay"], &["quay.io/b:1"]),
        (&["name~=\"^docker\""], &["docker.io/library/a:1"]),
        (
            &["labels.\"io.cri-containerd.pinned\"==pinned"],
            &["docker.io/library/a:1"],
        ),
        (
            &["name==quay.io/b:1,labels.\"io.cri-containerd.pinned\"==pinned"],
            &[],
        ),
        (
            &["name==quay.io/b:1", "name==docker.io/library/a:1"],
            &["docker.io/library/a:1", "quay.io/b:1"],
        ),
    ] {
        assert_eq!(raw.image_names(filters).await.unwrap(), names, "{filters:?}");
    }
    assert_refused(raw.image_names(&["name=x"]).await, Code::InvalidArgument, "");
}

pub(crate) async fn what_nothing_holds_is_collected(raw: Raw) {
    raw.lease("lease").await;
    let layer = raw.put("lease", &raw.bytes("layer"), &[]).await;
    raw.delete_lease("lease").await;
    assert!(!raw.has(&layer).await);
    let bare = raw.put("", &raw.bytes("bare"), &[]).await;
    raw.collect_garbage().await;
    assert!(!raw.has(&bare).await);
    let root = raw
        .put("", &raw.bytes("root"), &[("containerd.io/gc.root", "yes")])
        .await;
    raw.collect_garbage().await;
    assert!(raw.has(&root).await);
}

pub(crate) async fn a_record_holds_what_gc_labels_reach(raw: Raw) {
    raw.lease("lease").await;
    let layer = raw.put("lease", &raw.bytes("layer"), &[]).await;
    let config = raw.put("lease", &raw.bytes("config"), &[]).await;
    let manifest = raw
        .put(
            "lease",
            &raw.bytes("manifest"),
            &[("containerd.io/gc.ref.content.l.0", &layer)],
        )
        .await;
    let index = raw
        .put(
            "lease",
            &raw.bytes("index"),
            &[("containerd.io/gc.ref.content.m.0", &manifest)],
        )
        .await;
    raw.create_image("x", &index, &[]).await.unwrap();
    raw.delete_lease("lease").await;
    for (digest, held) in [
        (&index, true),
        (&manifest, true),
        (&layer, true),
        (&config, false),
    ] {
        assert_eq!(raw.has(digest).await, held);
    }
    raw.delete_image("x").await.unwrap();
    assert!(!raw.has(&index).await && !raw.has(&layer).await);
}

pub(crate) async fn a_lease_holds_what_gc_labels_reach_unless_it_is_flat(raw: Raw) {
    for (id, labels, held) in [
        ("deep", &[][..], true),
        ("flat", &[("containerd.io/gc.flat", "yes")], false),
    ] {
        raw.lease("temporary").await;
        let layer = raw.put("temporary", &raw.bytes("layer"), &[]).await;
        raw.lease_with(id, labels).await;
        let parent = raw
            .put(
                id,
                &raw.bytes("parent"),
                &[("containerd.io/gc.ref.content.l.0", &layer)],
            )
            .await;
        raw.delete_lease("temporary").await;
        assert!(raw.has(&parent).await);
        assert_eq!(raw.has(&layer).await, held, "{id}");
    }
}

pub(crate) async fn an_expired_lease_holds_nothing(raw: Raw) {
    raw.lease_with("expired", &[("containerd.io/gc.expire", "2020-01-01T00:00:00Z")])
        .await;
    let blob = raw.put("expired", &raw.bytes("layer"), &[]).await;
    assert!(raw.has(&blob).await);
    raw.lease_with("forever", &[("containerd.io/gc.expire", "not a time")])
        .await;
    let kept = raw.put("forever", &raw.bytes("layer"), &[]).await;
    raw.collect_garbage().await;
    assert!(!raw.has(&blob).await && raw.has(&kept).await);
    let answer = raw.open("expired", stat(&raw.bytes("late"))).await.map(drop);
    assert_refused(answer, Code::NotFound, "lease does not exist");
}

pub(crate) async fn ingests_live_as_long_as_their_lease(raw: Raw) {
    let (leased, free) = (raw.bytes("leased"), raw.bytes("free"));
    raw.lease("lease").await;
    for (lease, bytes) in [("lease", &leased), ("", &free)] {
        let (mut stream, _) = raw.open(lease, stat(bytes)).await.unwrap();
        stream.send(write(0, &bytes[..3])).await.unwrap();
        stream.finish().await.unwrap();
    }
    assert_eq!(
        raw.resources("lease").await,
        [format!("ingests/{}", ref_of(&sha256(&leased)))]
    );
    raw.delete_lease("lease").await;
    assert_eq!(raw.ingests().await, [ref_of(&sha256(&free))]);
}

pub(crate) async fn leases_are_listed_and_refused_like_everything_else(raw: Raw) {
    raw.lease_with("a", &[("mine", "true")]).await;
    raw.lease("b").await;
    let create = CreateRequest {
        id: "a".to_owned(),
        ..Default::default()
    };
    assert_refused(
        raw.leases().create(raw.request(create)).await,
        Code::AlreadyExists,
        "already exists",
    );
    let list = ListRequest {
        filters: vec!["labels.\"mine\"==true".to_owned()],
    };
    let found = raw
        .leases()
        .list(raw.request(list))
        .await
        .unwrap()
        .into_inner()
        .leases;
    assert_eq!(
        found.iter().map(|lease| lease.id.as_str()).collect::<Vec<_>>(),
        ["a"]
    );
    let delete = DeleteRequest {
        id: "c".to_owned(),
        sync: false,
    };
    assert_refused(
        raw.leases().delete(raw.request(delete)).await,
        Code::NotFound,
        "not found",
    );
    let list = ListResourcesRequest { id: "c".to_owned() };
    assert_refused(
        raw.leases().list_resources(raw.request(list)).await,
        Code::NotFound,
        "not found",
    );
    assert!(!raw.lease("").await.is_empty());
}

pub(crate) async fn resources_are_added_before_they_exist_if_their_type_is_known(raw: Raw) {
    raw.lease("lease").await;
    let add = async |kind: &str, id: &str| {
        let resource = Resource {
            r#type: kind.to_owned(),
            id: id.to_owned(),
        };
        let request = AddResourceRequest {
            id: "lease".to_owned(),
            resource: Some(resource),
        };
        raw.leases().add_resource(raw.request(request)).await.map(drop)
    };
    let digest = sha256(b"a missing blob");
    add("content", &digest).await.unwrap();
    add("snapshots/overlayfs", "chain").await.unwrap();
    assert_refused(add("bogus", "x").await, Code::Unimplemented, "");
    let images = add("images", "x").await;
    if raw.version >= (2, 0) {
        images.unwrap();
    } else {
        assert_refused(images, Code::Unimplemented, "");
    }
    assert!(
        raw.resources("lease")
            .await
            .contains(&format!("content/{digest}"))
    );
}

pub(crate) async fn messages_have_16_mib_at_most(raw: Raw) {
    raw.lease("lease").await;
    let bytes = vec![b'z'; 16 << 20];
    let mut first = stat(&bytes);
    first.r#ref.push_str(&raw.namespace);
    let (mut stream, _) = raw.open("lease", first.clone()).await.unwrap();
    let fits = stream
        .send(write(0, &bytes[..16_777_152]))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(fits.offset, 16_777_152);
    let answer = stream.send(write(0, &bytes)).await;
    let text = "grpc: received message larger than max (16777223 vs. 16777216)";
    assert_refused(answer, Code::ResourceExhausted, text);
}

pub(crate) async fn blobs_are_read_in_ranges_and_pieces(raw: Raw) {
    raw.lease("lease").await;
    let mut bytes = raw.bytes("layer");
    bytes.resize((1 << 20) + 10, b'x');
    let digest = raw.put("lease", &bytes, &[]).await;
    let read = async |offset: i64, size: i64| {
        let request = ReadContentRequest {
            digest: digest.clone(),
            offset,
            size,
        };
        let mut stream = raw.content().read(raw.request(request)).await?.into_inner();
        let mut data = Vec::new();
        while let Some(piece) = stream.message().await? {
            assert!(piece.data.len() <= 1 << 20);
            data.extend(piece.data);
        }
        Ok(data)
    };
    assert!(read(0, 0).await.unwrap() == bytes);
    assert_eq!(read(5, 3).await.unwrap(), bytes[5..8]);
    assert_refused(
        read(length(&bytes) + 1, 0).await,
        Code::OutOfRange,
        "read past object length",
    );
    assert!(read(5, length(&bytes)).await.unwrap() == bytes[5..]);
}

pub(crate) async fn blobs_are_listed_whole(raw: Raw) {
    raw.lease("lease").await;
    let mut digests = Vec::new();
    for number in 0..101 {
        digests.push(raw.put("lease", &raw.bytes(&number.to_string()), &[]).await);
    }
    digests.sort();
    let mut stream = raw
        .content()
        .list(raw.request(ListContentRequest::default()))
        .await
        .unwrap()
        .into_inner();
    let mut found = Vec::new();
    while let Some(answer) = stream.message().await.unwrap() {
        assert!(answer.info.len() <= 100);
        found.extend(answer.info.into_iter().map(|info| info.digest));
    }
    found.sort();
    assert_eq!(found, digests);
}

pub(crate) async fn a_deleted_blob_is_adopted_again_until_it_is_collected(raw: Raw) {
    let bytes = raw.bytes("layer");
    raw.lease("lease").await;
    let digest = raw.put("lease", &bytes, &[]).await;
    let delete = DeleteContentRequest {
        digest: digest.clone(),
    };
    raw.content().delete(raw.request(delete.clone())).await.unwrap();
    assert_refused(
        raw.content().delete(raw.request(delete)).await,
        Code::NotFound,
        "not found",
    );
    raw.collect_garbage().await;
    let (_, opened) = raw.open("lease", stat(&bytes)).await.unwrap();
    assert_eq!(opened.offset, 0);
}

pub(crate) async fn malformed_digests_are_refused(raw: Raw) {
    assert_refused(raw.info("sha256:0").await, Code::InvalidArgument, "");
    let bytes = raw.bytes("layer");
    raw.lease("lease").await;
    let message = WriteContentRequest {
        expected: "sha256:0".to_owned(),
        ..whole(&bytes)
    };
    let answer = raw.open("lease", message).await.map(drop);
    assert_refused(answer, Code::FailedPrecondition, "unexpected commit digest");
}

pub(crate) async fn sha512_is_taken_from_2_3_on_and_a_mismatch_before(raw: Raw) {
    let bytes = raw.bytes("layer");
    raw.lease("lease").await;
    let message = |kind: &str, expected: &str| WriteContentRequest {
        expected: expected.to_owned(),
        r#ref: format!("test-sha512-{kind}-{}", raw.namespace),
        ..whole(&bytes)
    };
    let other = format!("sha512:{}", "0".repeat(128));
    let answer = raw.open("lease", message("other", &other)).await.map(drop);
    assert_refused(answer, Code::FailedPrecondition, "unexpected commit digest");

    let digest = basics::digest::sha512(&bytes).to_string();
    let answer = raw.open("lease", message("right", &digest)).await;
    if raw.version < (2, 3) {
        assert_refused(
            answer.map(drop),
            Code::FailedPrecondition,
            "unexpected commit digest",
        );
        return;
    }
    assert_eq!(answer.unwrap().1.digest, digest);
    assert!(raw.has(&digest).await);
    assert!(!raw.has(&sha256(&bytes)).await);
}

/// A blob's own label may tie its life to a record. The record need not refer to the blob.
pub(crate) async fn references_back_to_a_record_hold_from_2_2_on(raw: Raw) {
    raw.lease("lease").await;
    let target = raw.put("lease", &raw.bytes("target"), &[]).await;
    let back = [("containerd.io/gc.bref.image.any", "x")];
    let attached = raw.put("lease", &raw.bytes("attached"), &back).await;
    // Neither this label nor a condition is a reference to a blob.
    let conditions = [("containerd.io/gc.cond.snapshot.native", "usedat<1h|x")];
    let loose = raw.put("lease", &raw.bytes("loose"), &conditions).await;
    raw.create_image("x", &target, &[]).await.unwrap();
    raw.delete_lease("lease").await;
    assert_eq!(raw.has(&attached).await, raw.version >= (2, 2));
    assert!(raw.has(&target).await && !raw.has(&loose).await);
    raw.delete_image("x").await.unwrap();
    raw.collect_garbage().await;
    assert!(!raw.has(&attached).await);
}

pub(crate) async fn a_blob_holds_an_expired_record(raw: Raw) {
    raw.lease("lease").await;
    let target = raw.put("lease", &raw.bytes("target"), &[]).await;
    let labels = [("containerd.io/gc.ref.image.any", "expired")];
    let holder = raw.put("lease", &raw.bytes("holder"), &labels).await;
    raw.create_image("holder", &holder, &[]).await.unwrap();
    let expiry = [("containerd.io/gc.expire", "2020-01-01T00:00:00Z")];
    raw.create_image("expired", &target, &expiry).await.unwrap();
    raw.delete_lease("lease").await;
    raw.image("expired").await.unwrap();
    assert!(raw.has(&target).await);
    raw.delete_image("holder").await.unwrap();
    raw.collect_garbage().await;
    // Before 2.0, records do not expire.
    assert_eq!(raw.image("expired").await.is_ok(), raw.version < (2, 0));
    assert_eq!(raw.has(&target).await, raw.version < (2, 0));
}

pub(crate) async fn the_first_write_makes_the_namespace(raw: Raw) {
    let request = GetNamespaceRequest {
        name: raw.namespace.clone(),
    };
    let listed = async || {
        let answer = raw.namespaces().list(ListNamespacesRequest::default()).await;
        answer
            .unwrap()
            .into_inner()
            .namespaces
            .into_iter()
            .any(|namespace| namespace.name == raw.namespace)
    };
    assert!(!listed().await);
    // Reading a namespace by name does not show whether it exists.
    raw.namespaces().get(request).await.unwrap();
    assert_eq!(raw.image_names(&[]).await.unwrap(), [""; 0]);
    assert_eq!(raw.ingests().await, [""; 0]);
    raw.info(&sha256(b"")).await.unwrap_err();
    assert!(!listed().await);
    raw.lease("lease").await;
    assert!(listed().await);
    let namespace = Namespace {
        name: raw.namespace.clone(),
        ..Default::default()
    };
    let create = CreateNamespaceRequest {
        namespace: Some(namespace),
    };
    assert_refused(
        raw.namespaces().create(create).await,
        Code::AlreadyExists,
        "already exists",
    );
}

pub(crate) async fn a_deletion_may_name_the_target(raw: Raw) {
    let digest = sha256(b"x");
    raw.create_image("x", &digest, &[]).await.unwrap();
    let target = image("x", &sha256(b"other"), &[]).target;
    let request = DeleteImageRequest {
        name: "x".to_owned(),
        sync: false,
        target,
    };
    let answer = raw.images().delete(raw.request(request)).await;
    if raw.version >= (2, 0) {
        let text = format!(
            "image \"x\" has target {digest}, not {}: not found",
            sha256(b"other")
        );
        assert_refused(answer, Code::NotFound, &text);
    } else {
        answer.unwrap();
    }
}

pub(crate) async fn a_record_may_expire_from_2_0_on(raw: Raw) {
    let expiry = [("containerd.io/gc.expire", "2020-01-01T00:00:00Z")];
    raw.create_image("x", &sha256(b"x"), &expiry).await.unwrap();
    raw.collect_garbage().await;
    assert_eq!(raw.image("x").await.is_err(), raw.version >= (2, 0));
}

pub(crate) async fn write_answers_repeat_what_a_stat_was_told(raw: Raw) {
    let bytes = raw.bytes("layer");
    raw.lease("lease").await;
    let (mut stream, opened) = raw.open("lease", stat(&bytes)).await.unwrap();
    let written = stream.send(write(0, &bytes)).await.unwrap().unwrap();
    let committed = stream.send(commit(bytes.len(), &bytes)).await.unwrap().unwrap();
    assert!(opened.started_at.is_some() && opened.updated_at.is_some());
    for later in [written, committed] {
        assert_eq!(
            (later.started_at, later.updated_at),
            (opened.started_at, opened.updated_at)
        );
        assert_eq!(later.total, opened.total);
    }
    let bytes = raw.bytes("config");
    let (_, alone) = raw.open("lease", whole(&bytes)).await.unwrap();
    let zero = prost_types::Timestamp {
        seconds: -62_135_596_800,
        nanos: 0,
    };
    let expected = (raw.version < (1, 7)).then_some(zero);
    assert_eq!(
        (alone.started_at, alone.updated_at, alone.total),
        (expected, expected, 0)
    );
}

pub(crate) async fn a_lease_holds_records_from_2_0_on(raw: Raw) {
    if raw.version < (2, 0) {
        return;
    }
    raw.lease("temporary").await;
    let blob = raw.put("temporary", &raw.bytes("layer"), &[]).await;
    raw.lease("lease").await;
    let resource = Resource {
        r#type: "images".to_owned(),
        id: "x".to_owned(),
    };
    let add = AddResourceRequest {
        id: "lease".to_owned(),
        resource: Some(resource),
    };
    raw.leases().add_resource(raw.request(add)).await.unwrap();
    let expiry = [("containerd.io/gc.expire", "2020-01-01T00:00:00Z")];
    raw.create_image("x", &blob, &expiry).await.unwrap();
    raw.delete_lease("temporary").await;
    raw.image("x").await.unwrap();
    assert!(raw.has(&blob).await);
    raw.delete_lease("lease").await;
    raw.image("x").await.unwrap_err();
    assert!(!raw.has(&blob).await);
}

pub(crate) async fn events_of_records_reach_subscribers(raw: Raw) {
    let digest = sha256(b"x");
    let happen = async |count| {
        let probe = format!("probe-{count}");
        raw.create_image(&probe, &digest, &[]).await.unwrap();
    };
    let mut stream = raw.subscribe(",topic~=\"/images/\"", happen).await;
    raw.create_image("x", &digest, &[("a", "b")]).await.unwrap();
    raw.update_image(image("x", &digest, &[("a", "c")]), &["labels.a"])
        .await
        .unwrap();
    raw.delete_image("x").await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let event = stream.message().await.unwrap().unwrap();
        let any = event.event.unwrap();
        assert_eq!(event.namespace, raw.namespace);
        // ImageCreate, ImageUpdate and ImageDelete all begin with the name.
        let name = <ImageDelete as prost::Message>::decode(any.value.as_slice())
            .unwrap()
            .name;
        if name == "x" {
            seen.push((event.topic, any.type_url));
        }
    }
    let kinds = [
        ("create", "ImageCreate"),
        ("update", "ImageUpdate"),
        ("delete", "ImageDelete"),
    ];
    let expected = kinds.map(|(topic, kind)| {
        (
            format!("/images/{topic}"),
            format!("containerd.services.images.v1.{kind}"),
        )
    });
    assert_eq!(seen, expected);
}

fn image_with(image: &Image, key: &str, value: &str) -> Image {
    let mut image = image.clone();
    image
        .target
        .as_mut()
        .unwrap()
        .annotations
        .insert(key.to_owned(), value.to_owned());
    image
}

/// Opens the ref of these bytes again. The lock of a dropped stream may last for some milliseconds.
async fn reopened(raw: &Raw, bytes: &[u8]) -> (Write, WriteContentResponse) {
    for _ in 0..500 {
        match raw.open("lease", stat(bytes)).await {
            Err(status) if status.code() == Code::Unavailable => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            answer => return answer.unwrap(),
        }
    }
    panic!("the ref stayed locked");
}

pub(crate) async fn commits_are_events_from_2_1_on_and_deletions_everywhere(raw: Raw) {
    raw.lease("lease").await;
    let happen = async |count| {
        let probe = format!("probe-{count}");
        raw.create_image(&probe, &sha256(b"x"), &[]).await.unwrap();
    };
    let mut stream = raw.subscribe("", happen).await;
    let digest = raw.put("lease", &raw.bytes("layer"), &[]).await;
    let delete = DeleteContentRequest { digest };
    raw.content().delete(raw.leased("lease", delete)).await.unwrap();
    raw.create_image("last", &sha256(b"x"), &[]).await.unwrap();
    let mut topics = Vec::new();
    loop {
        let event = stream.message().await.unwrap().unwrap();
        let any = event.event.unwrap();
        if event.topic.starts_with("/content/") {
            topics.push(any.type_url);
        } else if <ImageDelete as prost::Message>::decode(any.value.as_slice())
            .unwrap()
            .name
            == "last"
        {
            break;
        }
    }
    let expected = [
        "containerd.events.ContentCreate",
        "containerd.events.ContentDelete",
    ];
    assert_eq!(
        topics,
        if raw.version >= (2, 1) {
            &expected[..]
        } else {
            &expected[1..]
        }
    );
}
