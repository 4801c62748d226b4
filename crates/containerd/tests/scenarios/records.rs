//! Leases, labels, image records, events, introspection.

use containerd::{
    Client, Created, Creation, Error, ImageChange, ImageEvent, ImageEvents, ImageUpdate, NewImage, Recovery,
    Resource,
};
use harness::{PATIENCE, Stage, unique};
use oci_spec::image::{Descriptor, MediaType};

use crate::support::{Blob, tomorrow};
use crate::{Labels, labels, leased};

everywhere! {
    leases_are_found_again_and_hold_what_was_added
    lists_beyond_four_mebibytes_and_a_hundred_blobs_arrive_whole
    lists_beyond_what_containerd_sends_in_one_message_arrive_whole
    labels_are_changed_one_by_one
    a_retarget_and_a_removed_label_are_one_update
    a_record_is_created_once
    names_beyond_sixteen_kibibytes_are_no_broken_connection
    image_events_tell_of_this_namespace_only
    identity_version_and_platform_are_told
}

/// The stand-in objects to records without an existing target. These operations make such records.
mod regardless_of_sense {
    use super::a_thousand_random_operations_leave_containerd_alive;

    harness::on_each_generation! { crate::play; a_thousand_random_operations_leave_containerd_alive }
}

async fn leases_are_found_again_and_hold_what_was_added(stage: &Stage) {
    let client = stage.client().await;
    let (id, expires) = (format!("lease-{}", unique()), tomorrow());
    let marker = labels(&[("io.airgapd.test", "yes")]);
    assert_eq!(
        client.create_lease(&id, expires, &marker).await.expect("created"),
        Created::New
    );
    assert_eq!(
        client.create_lease(&id, expires, &marker).await.expect("there"),
        Created::Existed
    );
    let leases = client.leases().await.expect("an answer");
    let lease = leases.iter().find(|lease| lease.id == id).expect("it is there");
    assert_eq!(lease.expires, Some(expires));
    assert_eq!(
        lease.labels.get("io.airgapd.test").map(String::as_str),
        Some("yes")
    );
    let blob = Resource::Blob(Blob::sized(1).digest);
    client.add_to_lease(&id, &blob).await.expect("added");
    client.add_to_lease(&id, &blob).await.expect("added again");
    assert_eq!(client.lease_resources(&id).await.expect("an answer"), [blob]);
    assert!(client.delete_lease(&id, true).await.expect("deleted"));
    assert!(!client.delete_lease(&id, true).await.expect("gone"));
}

async fn lists_beyond_four_mebibytes_and_a_hundred_blobs_arrive_whole(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    let target = an_image(&client, &lease).await;
    // A label may have 4096 bytes with its key: 20 labels on each of 60 records are 4.6 MiB.
    let labels: Labels = (0..20)
        .map(|number| (format!("k{number}"), "v".repeat(4000)))
        .collect();
    for number in 0..60 {
        let image = NewImage {
            name: format!("large:{number}"),
            target: target.clone(),
            labels: labels.clone(),
        };
        client.create_image(&image).await.expect("created");
    }
    for _ in 0..130 {
        let blob = Blob::sized(64);
        client
            .write_blob(&lease, &blob.spec(), blob.source())
            .await
            .expect("written");
    }
    assert_eq!(client.images().await.expect("an answer").len(), 60);
    assert_eq!(client.blobs().await.expect("an answer").len(), 131);
}

/// 66 records of 320 KiB are 21 MiB. containerd sends at most 16 MiB in one message.
async fn lists_beyond_what_containerd_sends_in_one_message_arrive_whole(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    let target = an_image(&client, &lease).await;
    let labels: Labels = (0..80)
        .map(|number| (format!("k{number}"), "v".repeat(4080)))
        .collect();
    let numbered = (0..60).map(|number| format!("registry.test/app:{number}"));
    let odd = ["1", "x\n", "x\"$", "a\\1", "ü:ü", "\u{10ffff}"].map(str::to_owned);
    let mut names: Vec<String> = numbered.chain(odd).collect();
    for name in &names {
        let image = NewImage {
            name: name.clone(),
            target: target.clone(),
            labels: labels.clone(),
        };
        client.create_image(&image).await.expect("created");
    }
    names.sort();
    let listed = client.images().await.expect("an answer");
    let found: Vec<String> = listed.into_iter().map(|image| image.name).collect();
    assert_eq!(found, names);
}

async fn labels_are_changed_one_by_one(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    let target = an_image(&client, &lease).await;
    let before = labels(&[("theirs", "1"), ("a.b/c.d", "2"), ("gone", "3")]);
    let after = labels(&[("theirs", "1"), ("a.b/c.d", "new")]);
    let image = NewImage {
        name: "labels:1".to_owned(),
        target: target.clone(),
        labels: before.clone(),
    };
    client.create_image(&image).await.expect("created");
    let changes = [
        ("a.b/c.d".to_owned(), Some("new".to_owned())),
        ("gone".to_owned(), None),
    ];
    let update = ImageUpdate {
        target: None,
        labels: changes.into(),
    };
    let record = client
        .update_image("labels:1", &update)
        .await
        .expect("updated")
        .expect("it is there");
    assert_eq!((record.labels, record.target), (after.clone(), target.clone()));
    let same = client
        .update_image("labels:1", &ImageUpdate::default())
        .await
        .expect("an answer");
    assert_eq!(same.expect("it is there").labels, after);
    assert_eq!(
        client.update_image("labels:2", &update).await.expect("an answer"),
        None
    );

    let blob = target.digest();
    client.set_blob_labels(blob, &before).await.expect("labelled");
    let info = client
        .set_blob_labels(blob, &labels(&[("a.b/c.d", "new"), ("gone", "")]))
        .await;
    assert_eq!(info.expect("labelled").labels, after);
    assert_eq!(
        client
            .set_blob_labels(blob, &Labels::new())
            .await
            .expect("an answer")
            .labels,
        after
    );
    let gone = client
        .set_blob_labels(&Blob::sized(1).digest, &before)
        .await
        .expect_err("no such blob");
    assert!(matches!(gone, Error::Gone { .. }), "{gone:?}");
    let long = labels(&[("k", &"v".repeat(4096))]);
    let refused = client.set_blob_labels(blob, &long).await.expect_err("too long");
    assert_eq!(refused.recovery(), Recovery::Permanent, "{refused:?}");
}

async fn a_retarget_and_a_removed_label_are_one_update(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    let (old, mut new) = (an_image(&client, &lease).await, an_image(&client, &lease).await);
    new.set_annotations(Some([("k".to_owned(), "v".to_owned())].into()));
    let before = labels(&[("stale", "1"), ("theirs", "1")]);
    client
        .create_image(&NewImage {
            name: "moving:1".to_owned(),
            target: old,
            labels: before,
        })
        .await
        .expect("created");
    let mut events = client.image_events().await.expect("subscribed");
    let removed = [("stale".to_owned(), None)];
    let update = ImageUpdate {
        target: Some(new.clone()),
        labels: removed.into(),
    };
    client.update_image("moving:1", &update).await.expect("updated");
    let record = client
        .image("moving:1")
        .await
        .expect("an answer")
        .expect("it is there");
    assert_eq!((record.target, record.labels), (new, labels(&[("theirs", "1")])));
    client.delete_image("moving:1", false).await.expect("deleted");
    let kinds = [next(&mut events).await.kind, next(&mut events).await.kind];
    assert_eq!(kinds, [ImageChange::Updated, ImageChange::Deleted]);
}

async fn a_record_is_created_once(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    let target = an_image(&client, &lease).await;
    let image = NewImage {
        name: "once:1".to_owned(),
        target,
        labels: Labels::new(),
    };
    assert_eq!(client.image("once:1").await.expect("an answer"), None);
    assert_eq!(
        client.create_image(&image).await.expect("created"),
        Creation::Created
    );
    let other = NewImage {
        labels: labels(&[("k", "v")]),
        ..image.clone()
    };
    assert_eq!(
        client.create_image(&other).await.expect("there"),
        Creation::Exists
    );
    let record = client
        .image("once:1")
        .await
        .expect("an answer")
        .expect("it is there");
    assert_eq!((record.target, record.labels), (image.target, Labels::new()));
    assert!(
        client
            .namespaces()
            .await
            .expect("an answer")
            .iter()
            .any(|name| name == stage.namespace())
    );
    assert!(client.delete_image("once:1", true).await.expect("deleted"));
    assert!(!client.delete_image("once:1", true).await.expect("gone"));
}

/// The error text contains the name and travels in a header.
async fn names_beyond_sixteen_kibibytes_are_no_broken_connection(stage: &Stage) {
    let client = stage.client().await;
    let name = "n".repeat(20_000);
    assert_eq!(client.image(&name).await.expect("an answer"), None);
    assert!(!client.delete_image(&name, false).await.expect("an answer"));
}

async fn image_events_tell_of_this_namespace_only(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    let target = an_image(&client, &lease).await;
    let elsewhere = stage.elsewhere().client().await;
    elsewhere
        .create_lease(&lease, tomorrow(), &Labels::new())
        .await
        .expect("a lease");
    let foreign_target = an_image(&elsewhere, &lease).await;
    let mut events = client.image_events().await.expect("subscribed");
    let image = |name: &str, target| NewImage {
        name: name.to_owned(),
        target,
        labels: Labels::new(),
    };
    elsewhere
        .create_image(&image("foreign:1", foreign_target))
        .await
        .expect("created");
    client
        .create_image(&image("ours:1", target))
        .await
        .expect("created");
    client.delete_image("ours:1", false).await.expect("deleted");
    elsewhere.delete_image("foreign:1", false).await.expect("deleted");
    let ours = |kind| ImageEvent {
        name: "ours:1".to_owned(),
        kind,
    };
    let expected = [ImageChange::Created, ImageChange::Deleted].map(ours);
    assert_eq!([next(&mut events).await, next(&mut events).await], expected);
}

/// containerd 1.7 and 2.x crash on messages without `image.target` or `info`.
async fn a_thousand_random_operations_leave_containerd_alive(stage: &Stage) {
    let (client, lease) = leased(stage).await;
    let blobs: Vec<_> = (0..4).map(|_| Blob::sized(64)).collect();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut pick = |choices: usize| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 33).expect("31 bits") % choices
    };
    for operation in 0..1000 {
        let blob = &blobs[pick(4)];
        let target = Descriptor::new(MediaType::ImageIndex, blob.size(), blob.digest.clone());
        let name = format!("random:{}", pick(4));
        let labels: Labels = (0..pick(3))
            .map(|key| (format!("k{key}"), "v".repeat(pick(2))))
            .collect();
        let changes = labels
            .iter()
            .map(|(key, value)| (key.clone(), Some(value.clone())))
            .collect();
        let resource = Resource::Blob(blob.digest.clone());
        let outcome = match pick(12) {
            0 => client
                .write_blob(&lease, &blob.spec(), blob.source())
                .await
                .map(|_| ()),
            1 => client
                .hold_blob(&lease, &blob.digest, blob.size())
                .await
                .map(|_| ()),
            2 => client.delete_blob(&blob.digest).await.map(|_| ()),
            3 => client.set_blob_labels(&blob.digest, &labels).await.map(|_| ()),
            4 => client.read_blob(&blob.digest, 64).await.map(|_| ()),
            5 | 6 if client.blob(&blob.digest).await.expect("an answer").is_some() => client
                .create_image(&NewImage { name, target, labels })
                .await
                .map(|_| ()),
            7 => client
                .update_image(
                    &name,
                    &ImageUpdate {
                        target: None,
                        labels: changes,
                    },
                )
                .await
                .map(|_| ()),
            8 => client
                .update_image(&name, &ImageUpdate::default())
                .await
                .map(|_| ()),
            9 => client.delete_image(&name, false).await.map(|_| ()),
            10 => client.add_to_lease(&lease, &resource).await,
            _ => client.images().await.map(|_| ()),
        };
        if let Err(error) = outcome {
            assert!(
                matches!(error, Error::Gone { .. }),
                "operation {operation}: {error:?}"
            );
        }
    }
}

async fn identity_version_and_platform_are_told(stage: &Stage) {
    let client = stage.client().await;
    assert!(client.version().await.expect("an answer").is_known());
    let uuid = client.server_uuid().await.expect("an answer");
    assert!(!uuid.is_empty());
    assert_eq!(client.server_uuid().await.expect("an answer"), uuid);
    let platform = client
        .node_platform()
        .await
        .expect("an answer")
        .expect("a platform");
    assert_eq!(platform.os, "linux");
}

/// Returns the descriptor of an existing blob, as a target for records.
async fn an_image(client: &Client, lease: &str) -> Descriptor {
    let blob = Blob::sized(64);
    client
        .write_blob(lease, &blob.spec(), blob.source())
        .await
        .expect("written");
    Descriptor::new(MediaType::ImageIndex, blob.size(), blob.digest)
}

async fn next(events: &mut ImageEvents) -> ImageEvent {
    let event = tokio::time::timeout(PATIENCE, events.next()).await;
    event.expect("an event in time").expect("the connection holds")
}
