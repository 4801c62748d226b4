//! CRI's handling of image records, on every containerd with CRI on its socket. All of this happens
//! in namespace `k8s.io`.

use std::time::{Duration, Instant};

use containerd_client::services::v1::Image;
use fake_containerd::sha256;
use serde_json::json;

use crate::raw::*;

const MANAGED: &str = "io.cri-containerd.image";
const PINNED: &str = "io.cri-containerd.pinned";

/// A tiny complete image in the store, under a lease of the same name.
struct Stored {
    manifest: String,
    size: i64,
    config: String,
}

pub(crate) async fn cri_adopts_a_record_under_its_id(raw: Raw) {
    let name = "docker.io/library/adopted:1";
    let stored = store(&raw, "adopted").await;
    create(&raw, name, &stored, &[("mine", "yes")]).await;
    let status = known(&raw, "adopted:1").await;
    assert_eq!(
        (status.id.as_str(), status.repo_tags.as_slice()),
        (stored.config.as_str(), &[name.to_owned()][..])
    );
    let hex = stored.config.strip_prefix("sha256:").unwrap();
    for reference in [name, &stored.config, &hex[..16]] {
        assert!(raw.image_status(reference).await.is_some(), "{reference}");
    }
    let by_id = until("the id record", async || raw.image(&stored.config).await.ok()).await;
    assert_eq!(by_id.labels, labels_of(&[(MANAGED, "managed")]));
    let managed =
        async || Some(raw.image(name).await.unwrap().labels).filter(|labels| labels.contains_key(MANAGED));
    let labels = until("the managed label", managed).await;
    assert_eq!(labels, labels_of(&[(MANAGED, "managed"), ("mine", "yes")]));
}

pub(crate) async fn cri_finds_a_digest_only_under_its_own_record(raw: Raw) {
    let stored = store(&raw, "digested").await;
    let by_digest = format!("docker.io/library/digested@{}", stored.manifest);
    create(&raw, "docker.io/library/digested:1", &stored, &[]).await;
    known(&raw, "digested:1").await;
    assert!(raw.image_status(&by_digest).await.is_none());
    create(&raw, &by_digest, &stored, &[]).await;
    for reference in [
        format!("digested@{}", stored.manifest),
        format!("digested:1@{}", stored.manifest),
    ] {
        let status = known(&raw, &reference).await;
        assert_eq!(status.repo_digests, [by_digest.as_str()]);
    }
}

pub(crate) async fn cri_does_not_find_names_that_are_not_normalised(raw: Raw) {
    let stored = store(&raw, "plain").await;
    create(&raw, "plain:1", &stored, &[]).await;
    // CRI knows the id a moment before the name.
    let named = async || {
        raw.image_status(&stored.config)
            .await
            .filter(|status| !status.repo_tags.is_empty())
    };
    let status = until("the image with its name", named).await;
    assert_eq!(status.repo_tags, ["docker.io/library/plain:1"]);
    assert!(raw.image_status("plain:1").await.is_none());
}

pub(crate) async fn cri_reports_pins_where_it_honours_them(raw: Raw) {
    let honoured = raw.version >= (1, 7);
    let stored = store(&raw, "pinned").await;
    let name = "docker.io/library/pinned:1";
    create(&raw, name, &stored, &[(PINNED, "pinned")]).await;
    assert_eq!(known(&raw, name).await.pinned, honoured);
    raw.update_image(record(name, &stored, &[]), &[&format!("labels.{PINNED}")])
        .await
        .unwrap();
    let unpinned = async || raw.image_status(name).await.filter(|status| !status.pinned);
    until("the pin to go", unpinned).await;
}

pub(crate) async fn cri_adopts_a_moved_record_only_when_its_label_is_cleared(raw: Raw) {
    let name = "docker.io/library/moved:1";
    let (first, second, third) = (
        store(&raw, "moved-1").await,
        store(&raw, "moved-2").await,
        store(&raw, "moved-3").await,
    );
    create(&raw, name, &first, &[]).await;
    let managed = async || {
        raw.image(name)
            .await
            .ok()
            .filter(|image| image.labels.contains_key(MANAGED))
    };
    until("the managed label", managed).await;
    raw.update_image(record(name, &second, &[]), &["target"])
        .await
        .unwrap();
    let moved = async |id: &str| raw.image_status(name).await.filter(|status| status.id == id);
    until("the second image", async || moved(&second.config).await).await;
    assert!(
        raw.image(&second.config).await.is_err(),
        "no id record without adoption"
    );
    let paths = ["target", &format!("labels.{MANAGED}")];
    raw.update_image(record(name, &third, &[]), &paths).await.unwrap();
    until("the third image", async || moved(&third.config).await).await;
    until("its id record", async || raw.image(&third.config).await.ok()).await;
    assert!(raw.image(&first.config).await.is_ok(), "the old id record stays");
}

pub(crate) async fn cri_removes_every_record_of_an_image(raw: Raw) {
    let stored = store(&raw, "removed").await;
    for name in ["docker.io/library/removed:1", "docker.io/library/removed:2"] {
        create(&raw, name, &stored, &[]).await;
        known(&raw, name).await;
    }
    until("the id record", async || raw.image(&stored.config).await.ok()).await;
    known(&raw, &stored.config).await;
    let image = Some(k8s_cri::v1::ImageSpec {
        image: "removed:1".to_owned(),
        ..Default::default()
    });
    raw.cri()
        .remove_image(k8s_cri::v1::RemoveImageRequest { image })
        .await
        .unwrap();
    for name in [
        "docker.io/library/removed:1",
        "docker.io/library/removed:2",
        stored.config.as_str(),
    ] {
        until("the record to go", async || raw.image(name).await.err()).await;
    }
}

pub(crate) async fn cri_picks_the_manifest_for_its_platform(raw: Raw) {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let stored = store(&raw, "indexed").await;
    let entry = |digest: &str, size: i64, architecture: &str| json!({"mediaType": MANIFEST, "digest": digest, "size": size, "platform": {"os": "linux", "architecture": architecture}});
    let foreign = entry(&sha256(b"foreign"), 7, "s390x");
    let manifests = [foreign, entry(&stored.manifest, stored.size, architecture)];
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}).to_string();
    let digest = raw
        .put(
            "indexed",
            index.as_bytes(),
            &[("containerd.io/gc.ref.content.m.0", &stored.manifest)],
        )
        .await;
    let whole = Stored {
        manifest: digest,
        size: length(index.as_bytes()),
        config: stored.config.clone(),
    };
    let mut image = record("docker.io/library/indexed:1", &whole, &[]);
    image.target.as_mut().unwrap().media_type = media_type.to_owned();
    let request = containerd_client::services::v1::CreateImageRequest {
        image: Some(image),
        source_date_epoch: None,
    };
    raw.images().create(raw.request(request)).await.unwrap();
    assert_eq!(known(&raw, "indexed:1").await.id, stored.config);
}

async fn store(raw: &Raw, what: &str) -> Stored {
    raw.lease(what).await;
    let architecture = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let layer = vec![0; 1024];
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {"Labels": {"what": what}},
        "rootfs": {"type": "layers", "diff_ids": [sha256(&layer)]},
    })
    .to_string();
    let (config_digest, layer_digest) = (sha256(config.as_bytes()), sha256(&layer));
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer_digest, "size": layer.len()}],
    })
    .to_string();
    // All images here have the same layer, so it may be present already.
    let _ = raw.open(what, whole(&layer)).await;
    raw.put(what, config.as_bytes(), &[]).await;
    let labels = [
        ("containerd.io/gc.ref.content.config", config_digest.as_str()),
        ("containerd.io/gc.ref.content.l.0", &layer_digest),
    ];
    let digest = raw.put(what, manifest.as_bytes(), &labels).await;
    Stored {
        manifest: digest,
        size: length(manifest.as_bytes()),
        config: config_digest,
    }
}

fn record(name: &str, stored: &Stored, labels: &[(&str, &str)]) -> Image {
    let mut image = image(name, &stored.manifest, labels);
    image.target.as_mut().unwrap().size = stored.size;
    image
}

async fn create(raw: &Raw, name: &str, stored: &Stored, labels: &[(&str, &str)]) {
    let image = Some(record(name, stored, labels));
    let request = containerd_client::services::v1::CreateImageRequest {
        image,
        source_date_epoch: None,
    };
    raw.images().create(raw.request(request)).await.unwrap();
}

async fn known(raw: &Raw, reference: &str) -> k8s_cri::v1::Image {
    until(reference, async || raw.image_status(reference).await).await
}

/// Waits at most ten seconds for an action of CRI in the background.
async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match look().await {
            Some(found) => return found,
            None => assert!(Instant::now() < deadline, "waited ten seconds in vain for {what}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
