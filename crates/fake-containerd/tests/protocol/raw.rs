//! A thin layer over the raw protocol: containerd-client's own clients, plus headers. It retries,
//! tolerates and hides nothing, so that a scenario shows the real answers of a containerd.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::version_client::VersionClient;
use containerd_client::services::v1::*;
use containerd_client::types::{Descriptor, Envelope};
use fake_containerd::sha256;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use prost_types::FieldMask;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A connection with its own namespace.
#[derive(Clone)]
pub(crate) struct Raw {
    channel: Channel,
    pub(crate) namespace: String,
    /// Major and minor version of the server.
    pub(crate) version: (u64, u64),
}

/// An open write stream.
pub(crate) struct Write {
    requests: Option<mpsc::Sender<WriteContentRequest>>,
    answers: Streaming<WriteContentResponse>,
}

impl Raw {
    /// Connects. Waits up to ten seconds for the socket.
    pub(crate) async fn connect(socket: &Path, namespace: &str) -> Raw {
        let deadline = Instant::now() + Duration::from_secs(10);
        let channel = loop {
            match containerd_client::connect(socket).await {
                Ok(channel) => break channel,
                Err(error) => assert!(Instant::now() < deadline, "{}: {error}", socket.display()),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let version = VersionClient::new(channel.clone())
            .version(())
            .await
            .unwrap()
            .into_inner()
            .version;
        let mut numbers = version
            .trim_start_matches('v')
            .split(['.', '~', '+', '-'])
            .map(|part| part.parse().unwrap());
        let version = (numbers.next().unwrap(), numbers.next().unwrap());
        Raw {
            channel,
            namespace: namespace.to_owned(),
            version,
        }
    }

    /// Returns the same connection in another namespace.
    pub(crate) fn in_namespace(&self, namespace: &str) -> Raw {
        Raw {
            namespace: namespace.to_owned(),
            ..self.clone()
        }
    }

    /// Returns bytes that no other scenario uses, because containerd shares content between
    /// namespaces.
    pub(crate) fn bytes(&self, what: &str) -> Vec<u8> {
        static RUN: AtomicU64 = AtomicU64::new(0);
        format!(
            "{what} {} {}",
            self.namespace,
            RUN.fetch_add(1, Ordering::Relaxed)
        )
        .into_bytes()
    }

    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("containerd-namespace", self.namespace.parse().unwrap());
        request
    }

    pub(crate) fn leased<T>(&self, lease: &str, message: T) -> Request<T> {
        let mut request = self.request(message);
        request
            .metadata_mut()
            .insert("containerd-lease", lease.parse().unwrap());
        request
    }

    pub(crate) fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone()).max_encoding_message_size(usize::MAX)
    }

    pub(crate) fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone())
    }

    pub(crate) fn diff(&self) -> DiffClient<Channel> {
        DiffClient::new(self.channel.clone())
    }

    pub(crate) fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone())
    }

    pub(crate) fn leases(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel.clone())
    }

    pub(crate) fn namespaces(&self) -> NamespacesClient<Channel> {
        NamespacesClient::new(self.channel.clone())
    }

    pub(crate) fn events(&self) -> EventsClient<Channel> {
        EventsClient::new(self.channel.clone())
    }

    /// Subscribes to the events of this namespace. A filter may restrict them. No answer shows when
    /// a subscription is active. So `happen` is called with increasing numbers until its event
    /// arrives.
    pub(crate) async fn subscribe(&self, filter: &str, happen: impl AsyncFn(usize)) -> Streaming<Envelope> {
        let request = SubscribeRequest {
            filters: vec![format!("namespace=={}{filter}", self.namespace)],
        };
        let mut client = self.events();
        let subscribed = tokio::spawn(async move { client.subscribe(request).await.unwrap().into_inner() });
        let mut count = 0;
        while !subscribed.is_finished() {
            count += 1;
            happen(count).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(count < 500, "the subscription was never answered");
        }
        subscribed.await.unwrap()
    }

    pub(crate) fn cri(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone())
    }

    // Leases.

    pub(crate) async fn lease(&self, id: &str) -> String {
        self.lease_with(id, &[]).await
    }

    pub(crate) async fn lease_with(&self, id: &str, labels: &[(&str, &str)]) -> String {
        let request = CreateRequest {
            id: id.to_owned(),
            labels: labels_of(labels),
        };
        self.leases()
            .create(self.request(request))
            .await
            .unwrap()
            .into_inner()
            .lease
            .unwrap()
            .id
    }

    pub(crate) async fn delete_lease(&self, id: &str) {
        let request = DeleteRequest {
            id: id.to_owned(),
            sync: true,
        };
        self.leases().delete(self.request(request)).await.unwrap();
    }

    /// Makes containerd collect garbage now, by deleting a lease with `sync`.
    pub(crate) async fn collect_garbage(&self) {
        self.lease("dummy").await;
        self.delete_lease("dummy").await;
    }

    /// Adds a resource of this kind to a lease.
    pub(crate) async fn hold(&self, lease: &str, kind: &str, id: &str) -> Result<(), Status> {
        let resource = Resource {
            id: id.to_owned(),
            r#type: kind.to_owned(),
        };
        let request = AddResourceRequest {
            id: lease.to_owned(),
            resource: Some(resource),
        };
        self.leases().add_resource(self.request(request)).await.map(drop)
    }

    /// Returns the resources of a lease, as `type/id`, sorted.
    pub(crate) async fn resources(&self, lease: &str) -> Vec<String> {
        let request = ListResourcesRequest { id: lease.to_owned() };
        let answer = self
            .leases()
            .list_resources(self.request(request))
            .await
            .unwrap()
            .into_inner();
        let mut resources: Vec<String> = answer
            .resources
            .into_iter()
            .map(|resource| format!("{}/{}", resource.r#type, resource.id))
            .collect();
        resources.sort();
        resources
    }

    // Content.

    /// Opens a write stream with its first message, and returns the answer to it too.
    pub(crate) async fn open(
        &self,
        lease: &str,
        first: WriteContentRequest,
    ) -> Result<(Write, WriteContentResponse), Status> {
        let (requests, queue) = mpsc::channel(64);
        requests.send(first).await.unwrap();
        let stream = ReceiverStream::new(queue);
        let request = if lease.is_empty() {
            self.request(stream)
        } else {
            self.leased(lease, stream)
        };
        let mut answers = self.content().write(request).await?.into_inner();
        let answer = answers.message().await?.expect("an answer to the first message");
        Ok((
            Write {
                requests: Some(requests),
                answers,
            },
            answer,
        ))
    }

    /// Writes a whole blob in one message under a lease.
    pub(crate) async fn put(&self, lease: &str, bytes: &[u8], labels: &[(&str, &str)]) -> String {
        let digest = sha256(bytes);
        let message = WriteContentRequest {
            labels: labels_of(labels),
            ..whole(bytes)
        };
        self.open(lease, message).await.unwrap();
        digest
    }

    pub(crate) async fn info(&self, digest: &str) -> Result<Info, Status> {
        let request = InfoRequest {
            digest: digest.to_owned(),
        };
        self.content()
            .info(self.request(request))
            .await
            .map(|answer| answer.into_inner().info.unwrap())
    }

    pub(crate) async fn has(&self, digest: &str) -> bool {
        match self.info(digest).await {
            Ok(_) => true,
            Err(status) => {
                assert_eq!(status.code(), Code::NotFound, "{status}");
                false
            }
        }
    }

    pub(crate) async fn label_blob(
        &self,
        digest: &str,
        labels: &[(&str, &str)],
        paths: &[&str],
    ) -> Result<Info, Status> {
        let info = Info {
            digest: digest.to_owned(),
            labels: labels_of(labels),
            ..Default::default()
        };
        let request = UpdateRequest {
            info: Some(info),
            update_mask: mask(paths),
        };
        self.content()
            .update(self.request(request))
            .await
            .map(|answer| answer.into_inner().info.unwrap())
    }

    pub(crate) async fn ingests(&self) -> Vec<String> {
        let answer = self
            .content()
            .list_statuses(self.request(ListStatusesRequest::default()))
            .await
            .unwrap();
        answer
            .into_inner()
            .statuses
            .into_iter()
            .map(|status| status.r#ref)
            .collect()
    }

    pub(crate) async fn abort(&self, reference: &str) -> Result<(), Status> {
        let request = AbortRequest {
            r#ref: reference.to_owned(),
        };
        self.content().abort(self.request(request)).await.map(drop)
    }

    // Images.

    pub(crate) async fn create_image(
        &self,
        name: &str,
        digest: &str,
        labels: &[(&str, &str)],
    ) -> Result<Image, Status> {
        let request = CreateImageRequest {
            image: Some(image(name, digest, labels)),
            source_date_epoch: None,
        };
        self.images()
            .create(self.request(request))
            .await
            .map(|answer| answer.into_inner().image.unwrap())
    }

    pub(crate) async fn update_image(&self, image: Image, paths: &[&str]) -> Result<Image, Status> {
        let request = UpdateImageRequest {
            image: Some(image),
            update_mask: mask(paths),
            source_date_epoch: None,
        };
        self.images()
            .update(self.request(request))
            .await
            .map(|answer| answer.into_inner().image.unwrap())
    }

    pub(crate) async fn image(&self, name: &str) -> Result<Image, Status> {
        let request = GetImageRequest {
            name: name.to_owned(),
        };
        self.images()
            .get(self.request(request))
            .await
            .map(|answer| answer.into_inner().image.unwrap())
    }

    pub(crate) async fn image_names(&self, filters: &[&str]) -> Result<Vec<String>, Status> {
        let request = ListImagesRequest {
            filters: filters.iter().map(|&text| text.to_owned()).collect(),
        };
        let images = self
            .images()
            .list(self.request(request))
            .await?
            .into_inner()
            .images;
        Ok(images.into_iter().map(|image| image.name).collect())
    }

    pub(crate) async fn delete_image(&self, name: &str) -> Result<(), Status> {
        let request = DeleteImageRequest {
            name: name.to_owned(),
            sync: true,
            target: None,
        };
        self.images().delete(self.request(request)).await.map(drop)
    }

    // CRI.

    pub(crate) async fn image_status(&self, reference: &str) -> Option<k8s_cri::v1::Image> {
        let spec = k8s_cri::v1::ImageSpec {
            image: reference.to_owned(),
            ..Default::default()
        };
        let request = k8s_cri::v1::ImageStatusRequest {
            image: Some(spec),
            verbose: false,
        };
        self.cri().image_status(request).await.unwrap().into_inner().image
    }
}

impl Write {
    /// Sends a message and returns the next answer, or `None` at the end of the stream.
    pub(crate) async fn send(
        &mut self,
        message: WriteContentRequest,
    ) -> Result<Option<WriteContentResponse>, Status> {
        let requests = self.requests.as_ref().expect("the stream was not finished yet");
        // If the stream has ended, its answers give the reason.
        let _ = requests.send(message).await;
        self.answers.message().await
    }

    /// Half-closes and returns the remaining answers.
    pub(crate) async fn finish(&mut self) -> Result<Vec<WriteContentResponse>, Status> {
        self.requests = None;
        let mut answers = Vec::new();
        while let Some(answer) = self.answers.message().await? {
            answers.push(answer);
        }
        Ok(answers)
    }
}

/// Returns the ref that an importer should use.
pub(crate) fn ref_of(digest: &str) -> String {
    format!("test-{digest}")
}

/// Returns a STAT that opens the ref of these bytes.
pub(crate) fn stat(bytes: &[u8]) -> WriteContentRequest {
    let digest = sha256(bytes);
    WriteContentRequest {
        action: WriteAction::Stat as i32,
        r#ref: ref_of(&digest),
        total: length(bytes),
        expected: digest,
        ..Default::default()
    }
}

/// Returns a message with a whole blob.
pub(crate) fn whole(bytes: &[u8]) -> WriteContentRequest {
    WriteContentRequest {
        action: WriteAction::Commit as i32,
        data: bytes.to_vec(),
        ..stat(bytes)
    }
}

/// Returns a WRITE at an offset.
pub(crate) fn write(offset: usize, data: &[u8]) -> WriteContentRequest {
    let offset = i64::try_from(offset).unwrap();
    WriteContentRequest {
        action: WriteAction::Write as i32,
        offset,
        data: data.to_vec(),
        ..Default::default()
    }
}

/// Returns the COMMIT of these bytes at an offset.
pub(crate) fn commit(offset: usize, bytes: &[u8]) -> WriteContentRequest {
    WriteContentRequest {
        action: WriteAction::Commit as i32,
        offset: i64::try_from(offset).unwrap(),
        total: length(bytes),
        expected: sha256(bytes),
        ..Default::default()
    }
}

pub(crate) fn length(bytes: &[u8]) -> i64 {
    i64::try_from(bytes.len()).unwrap()
}

pub(crate) fn image(name: &str, digest: &str, labels: &[(&str, &str)]) -> Image {
    let target = Descriptor {
        media_type: MANIFEST.to_owned(),
        digest: digest.to_owned(),
        size: 2,
        annotations: Default::default(),
    };
    Image {
        name: name.to_owned(),
        labels: labels_of(labels),
        target: Some(target),
        ..Default::default()
    }
}

pub(crate) fn mask(paths: &[&str]) -> Option<FieldMask> {
    Some(FieldMask {
        paths: paths.iter().map(|&path| path.to_owned()).collect(),
    })
}

pub(crate) fn labels_of(labels: &[(&str, &str)]) -> std::collections::HashMap<String, String> {
    labels
        .iter()
        .map(|&(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Asserts the code of a refusal, and a part of its text.
#[track_caller]
pub(crate) fn assert_refused<T>(answer: Result<T, Status>, code: Code, text: &str) {
    let status = answer.err().expect("a refusal");
    assert_eq!(status.code(), code, "{status}");
    assert!(
        status.message().contains(text),
        "{:?} does not contain {text:?}",
        status.message()
    );
}
