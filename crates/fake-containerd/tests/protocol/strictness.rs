//! The checks in which the stand-in is stricter than containerd. Each violation is a sentence, and
//! a clean import has none.

use containerd_client::services::v1::*;
use fake_containerd::{Fake, FakeConfig, SnapshotKind, sha256};
use serde_json::json;
use tonic::Code;

use crate::raw::*;

const NAMESPACE: &str = "k8s.io";
const CONFIG: &str = "containerd.io/gc.ref.content.config";
const LAYER: &str = "containerd.io/gc.ref.content.l.0";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

async fn started() -> (Fake, Raw) {
    let fake = Fake::start(FakeConfig::default()).await;
    let raw = Raw::connect(fake.socket(), NAMESPACE).await;
    raw.lease_with("lease", &[("containerd.io/gc.expire", "2100-01-01T00:00:00Z")])
        .await;
    (fake, raw)
}

/// Returns a manifest of one config and one layer.
fn manifest(config: &str, layer: &str) -> String {
    json!({"schemaVersion": 2, "config": {"digest": config, "size": 2}, "layers": [{"digest": layer, "size": 2}]})
        .to_string()
}

fn index(manifest: &str) -> String {
    json!({"schemaVersion": 2, "manifests": [{"digest": manifest, "size": 2}]}).to_string()
}

/// Asserts exactly one violation, with these parts in its text.
#[track_caller]
fn assert_violation(fake: &Fake, parts: &[&str]) {
    let violations = fake.violations();
    assert_eq!(violations.len(), 1, "{violations:#?}");
    for part in parts {
        assert!(
            violations[0].contains(part),
            "{:?} does not contain {part:?}",
            violations[0]
        );
    }
}

#[tokio::test]
async fn a_clean_import_has_no_violations_and_a_readable_order() {
    let (fake, raw) = started().await;
    let layer = raw.put("lease", b"layer", &[]).await;
    let config = raw.put("lease", b"{}", &[]).await;
    let labels = [(CONFIG, config.as_str()), (LAYER, layer.as_str())];
    let manifest = raw
        .put("lease", manifest(&config, &layer).as_bytes(), &labels)
        .await;
    let index = raw
        .put(
            "lease",
            index(&manifest).as_bytes(),
            &[("containerd.io/gc.ref.content.m.0", &manifest)],
        )
        .await;
    raw.create_image("x", &index, &[]).await.unwrap();
    raw.delete_lease("lease").await;
    assert_eq!(fake.check_done(), [""; 0]);
    let order: Vec<(&str, String)> = fake
        .mutations()
        .into_iter()
        .map(|done| (done.rpc, done.subject))
        .collect();
    let expected = [
        ("Leases.Create", "lease"),
        ("Content.Write", &layer),
        ("Content.Write", &config),
        ("Content.Write", &manifest),
        ("Content.Write", &index),
        ("Images.Create", "x"),
        ("Leases.Delete", "lease"),
    ];
    assert_eq!(order, expected.map(|(rpc, subject)| (rpc, subject.to_owned())));
    assert_eq!(fake.blobs(NAMESPACE).len(), 4);
    assert_eq!(fake.received()[&layer], 5);
}

#[tokio::test]
async fn a_record_with_an_absent_layer_is_found() {
    let (fake, raw) = started().await;
    let (config, layer) = (raw.put("lease", b"{}", &[]).await, sha256(b"absent"));
    let labels = [(CONFIG, config.as_str()), (LAYER, layer.as_str())];
    let manifest = raw
        .put("lease", manifest(&config, &layer).as_bytes(), &labels)
        .await;
    raw.create_image("x", &manifest, &[]).await.unwrap();
    assert_violation(&fake, &["record x", &layer, "not in the store"]);
}

#[tokio::test]
async fn a_record_without_content_is_found() {
    let (fake, raw) = started().await;
    raw.create_image("x", &sha256(b"absent"), &[]).await.unwrap();
    assert_violation(&fake, &["record x", &sha256(b"absent"), "not in the store"]);
}

#[tokio::test]
async fn a_record_whose_parents_lack_gc_labels_is_found() {
    let (fake, raw) = started().await;
    let (layer, config) = (
        raw.put("lease", b"layer", &[]).await,
        raw.put("lease", b"{}", &[]).await,
    );
    let manifest = fake.put_blob(
        NAMESPACE,
        manifest(&config, &layer).as_bytes(),
        &[(CONFIG, &config)],
    );
    raw.create_image("x", &manifest, &[]).await.unwrap();
    assert_violation(&fake, &["record x", &manifest, "no gc label", &layer]);
    let index = fake.put_blob(NAMESPACE, index(&manifest).as_bytes(), &[]);
    fake.reset_log();
    raw.create_image("y", &index, &[]).await.unwrap();
    assert_violation(&fake, &["record y", &index, "no gc label"]);
}

#[tokio::test]
async fn taking_labels_off_a_broken_record_is_fine_and_adding_some_is_not() {
    let (fake, raw) = started().await;
    let absent = sha256(b"absent");
    let seed = fake_containerd::SeedImage {
        name: "x".into(),
        media_type: MANIFEST.into(),
        digest: absent.clone(),
        size: 2,
        ..Default::default()
    };
    fake.put_image(NAMESPACE, seed);
    raw.update_image(image("x", &absent, &[]), &["labels.pin"])
        .await
        .unwrap();
    assert_eq!(fake.violations(), [""; 0]);
    raw.update_image(image("x", &absent, &[("pin", "yes")]), &["labels.pin"])
        .await
        .unwrap();
    assert_violation(&fake, &["record x"]);
}

#[tokio::test]
async fn a_parent_committed_without_gc_labels_is_found() {
    for document in [
        manifest(&sha256(b"config"), &sha256(b"layer")),
        index(&sha256(b"manifest")),
    ] {
        let (fake, raw) = started().await;
        let digest = raw.put("lease", document.as_bytes(), &[]).await;
        assert_violation(&fake, &[&digest, "committed without a gc label"]);
    }
}

#[tokio::test]
async fn a_write_without_lease_is_found() {
    let (fake, raw) = started().await;
    raw.put("", b"layer", &[]).await;
    assert_violation(&fake, &["without a lease"]);
}

#[tokio::test]
async fn a_commit_with_offset_zero_is_found() {
    let (fake, raw) = started().await;
    let (mut stream, _) = raw.open("lease", stat(b"layer")).await.unwrap();
    stream.send(write(0, b"layer")).await.unwrap();
    stream.send(commit(0, b"layer")).await.unwrap_err();
    assert_violation(&fake, &["offset 0 after 5 bytes"]);
}

#[tokio::test]
async fn a_ref_that_names_no_digest_or_another_is_found() {
    for (reference, text) in [
        ("tar-layer", "not derived from a digest"),
        (&ref_of(&sha256(b"other")), "another blob"),
    ] {
        let (fake, raw) = started().await;
        raw.open(
            "lease",
            WriteContentRequest {
                r#ref: reference.to_owned(),
                ..whole(b"layer")
            },
        )
        .await
        .unwrap();
        assert_violation(&fake, &[reference, text]);
    }
}

#[tokio::test]
async fn sending_what_could_be_adopted_is_found() {
    let (fake, raw) = started().await;
    fake.put_blob("moby", b"layer", &[]);
    let (mut stream, opened) = raw.open("lease", stat(b"layer")).await.unwrap();
    assert_eq!(opened.offset, 5);
    stream.send(write(0, b"layer")).await.unwrap();
    stream.send(commit(5, b"layer")).await.unwrap();
    assert_violation(&fake, &[&sha256(b"layer"), "could be adopted"]);
}

#[tokio::test]
async fn opening_a_present_blob_without_expecting_it_is_found() {
    let (fake, raw) = started().await;
    fake.put_blob(NAMESPACE, b"layer", &[]);
    raw.open(
        "lease",
        WriteContentRequest {
            expected: String::new(),
            ..stat(b"layer")
        },
    )
    .await
    .unwrap();
    assert_violation(&fake, &[&sha256(b"layer"), "without `expected`"]);
}

#[tokio::test]
async fn a_call_without_namespace_is_found() {
    let (fake, raw) = started().await;
    raw.in_namespace("").info(&sha256(b"")).await.unwrap_err();
    assert_violation(&fake, &["Content.Info", "without a namespace"]);
}

#[tokio::test]
async fn masks_that_wipe_the_labels_of_others_are_found() {
    for (paths, text) in [(&[][..], "without a field mask"), (&["labels"], "\"labels\"")] {
        let (fake, raw) = started().await;
        let digest = fake.put_blob(NAMESPACE, b"layer", &[]);
        raw.label_blob(&digest, &[("a", "b")], paths).await.unwrap();
        assert_violation(&fake, &["Content.Update", text]);
        let seed = fake_containerd::SeedImage {
            name: "x".into(),
            media_type: MANIFEST.into(),
            digest: digest.clone(),
            size: 5,
            ..Default::default()
        };
        fake.put_image(NAMESPACE, seed);
        fake.reset_log();
        raw.update_image(image("x", &digest, &[]), paths).await.unwrap();
        assert_violation(&fake, &["Images.Update", text]);
    }
}

#[tokio::test]
async fn requests_that_crash_a_real_containerd_are_internal_errors_and_found() {
    let (fake, raw) = started().await;
    let targetless = || {
        Some(Image {
            name: "x".to_owned(),
            ..Default::default()
        })
    };
    let answers = [
        raw.content()
            .update(raw.request(UpdateRequest::default()))
            .await
            .map(drop),
        raw.images()
            .create(raw.request(CreateImageRequest::default()))
            .await
            .map(drop),
        raw.images()
            .create(raw.request(CreateImageRequest {
                image: targetless(),
                ..Default::default()
            }))
            .await
            .map(drop),
        raw.images()
            .update(raw.request(UpdateImageRequest {
                image: targetless(),
                update_mask: mask(&["labels.a"]),
                ..Default::default()
            }))
            .await
            .map(drop),
        raw.leases()
            .add_resource(raw.request(AddResourceRequest {
                id: "lease".to_owned(),
                resource: None,
            }))
            .await
            .map(drop),
    ];
    for answer in answers {
        assert_refused(answer, Code::Internal, "is nil");
    }
    assert_eq!(fake.violations().len(), 5);
}

#[tokio::test]
async fn forgotten_leases_and_ingests_are_found_when_done() {
    let (fake, raw) = started().await;
    let (mut stream, _) = raw.open("lease", stat(b"layer")).await.unwrap();
    stream.finish().await.unwrap();
    let reference = ref_of(&sha256(b"layer"));
    let found = fake.check_done();
    assert!(
        found[0].contains("the lease lease") && found[1].contains(&reference),
        "{found:?}"
    );
    raw.delete_lease("lease").await;
    assert_eq!(fake.check_done(), [""; 0]);
}

#[tokio::test]
async fn a_lease_that_never_ends_is_found() {
    let (fake, raw) = started().await;
    raw.lease("for ever").await;
    assert_violation(&fake, &["for ever", "no expiry"]);
    fake.reset_log();
    raw.lease_with("garbled", &[("containerd.io/gc.expire", "tomorrow")])
        .await;
    assert_violation(&fake, &["garbled", "no expiry"]);
}

#[tokio::test]
async fn meddling_with_what_cri_manages_is_found() {
    const MANAGED: &str = "io.cri-containerd.image";
    let (fake, raw) = started().await;
    let first = fake.put_blob(NAMESPACE, b"first", &[("containerd.io/gc.root", "yes")]);
    let second = fake.put_blob(NAMESPACE, b"second", &[("containerd.io/gc.root", "yes")]);
    raw.create_image("x", &first, &[(MANAGED, "managed")])
        .await
        .unwrap();
    assert_violation(&fake, &["record x", MANAGED, "only CRI may set"]);
    fake.reset_log();
    raw.update_image(image("x", &second, &[]), &["target"])
        .await
        .unwrap();
    assert_violation(&fake, &["record x", &second, "without clearing"]);
    fake.reset_log();
    raw.update_image(
        image("x", &first, &[]),
        &["target", "labels.io.cri-containerd.image"],
    )
    .await
    .unwrap();
    assert_eq!(fake.violations(), [""; 0]);
}

#[tokio::test]
async fn a_snapshot_without_a_lease_is_a_violation() {
    let (fake, raw) = started().await;
    raw.prepare("", "key", "", "").await.unwrap();
    assert_violation(&fake, &["Snapshots.Prepare", "key", "without a lease"]);
}

#[tokio::test]
async fn a_name_for_a_snapshot_that_no_layer_was_applied_to_is_a_violation() {
    let (fake, raw) = started().await;
    raw.prepare("lease", "key", "", "").await.unwrap();
    raw.keep("lease", "key", &sha256(b"layer")).await.unwrap();
    assert_violation(&fake, &[&sha256(b"layer"), "no layer was ever applied"]);
}

#[tokio::test]
async fn a_name_for_other_layers_is_a_violation() {
    let (fake, raw) = started().await;
    let layer = raw.put("lease", b"", &[]).await;
    let mounts = raw.prepare("lease", "key", "", "").await.unwrap();
    raw.apply(LAYER_TYPE, b"", mounts).await.unwrap();
    raw.keep("lease", "key", &sha256(b"other")).await.unwrap();
    assert_violation(&fake, &[&sha256(b"other"), &layer]);
}

#[tokio::test]
async fn a_layer_that_is_not_synced_is_a_violation() {
    let (fake, raw) = started().await;
    let layer = raw.put("lease", b"", &[]).await;
    let mounts = raw.prepare("lease", "key", "", "").await.unwrap();
    let diff = containerd_client::types::Descriptor {
        media_type: LAYER_TYPE.to_owned(),
        digest: layer.clone(),
        ..Default::default()
    };
    let request = ApplyRequest {
        diff: Some(diff),
        mounts,
        ..Default::default()
    };
    raw.diff().apply(raw.request(request)).await.unwrap();
    assert_violation(&fake, &[&layer, "sync_fs"]);
}

#[tokio::test]
async fn mounts_of_nothing_are_a_violation() {
    let (fake, raw) = started().await;
    let layer = raw.put("lease", b"", &[]).await;
    let refused = raw.apply(LAYER_TYPE, b"", Vec::new()).await;
    assert_refused(refused, Code::Unknown, "");
    assert_violation(&fake, &[&layer, "mounts"]);
}

#[tokio::test]
async fn a_label_for_a_snapshot_that_is_not_there_is_a_violation() {
    let (fake, raw) = started().await;
    let config = raw.put("lease", b"{}", &[]).await;
    let (key, name) = ("containerd.io/gc.ref.snapshot.overlayfs", sha256(b"layer"));
    raw.label_blob(&config, &[(key, &name)], &[&format!("labels.{key}")])
        .await
        .unwrap();
    assert_violation(&fake, &[&config, &name, "overlayfs"]);
}

#[tokio::test]
async fn a_snapshot_that_was_begun_and_left_is_a_leftover() {
    let (fake, raw) = started().await;
    raw.prepare("lease", "key", "", "").await.unwrap();
    assert_eq!(fake.violations(), [""; 0]);
    let found = fake.check_done();
    assert!(
        found.iter().any(|finding| finding.contains("the snapshot key")),
        "{found:?}"
    );
    assert_eq!(
        fake.snapshots(NAMESPACE, "native")["key"].kind,
        SnapshotKind::Active
    );
    raw.delete_lease("lease").await;
    assert_eq!(fake.check_done(), [""; 0]);
}
