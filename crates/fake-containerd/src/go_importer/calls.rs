//! The importer's calls: requests with its header, and the few answers that are not errors for it.

use std::path::Path;
use std::time::Duration;

use basics::Backoff;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use prost_types::FieldMask;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use crate::service::FOREIGN_HEADER;
use crate::wire;

/// Pauses between attempts to open a locked ingest.
const LOCK_PAUSES: Backoff = Backoff {
    first: Duration::from_millis(16),
    longest: Duration::from_secs(2),
};

/// A connection to one namespace of a containerd.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    channel: Channel,
    namespace: String,
}

/// A write stream: the sender of messages, the receiver of answers, and the offset of the ingest.
pub(super) struct Opened {
    pub(super) requests: mpsc::Sender<wire::WriteContentRequest>,
    pub(super) answers: Streaming<wire::WriteContentResponse>,
    pub(super) offset: usize,
}

impl Calls {
    /// Connects.
    ///
    /// # Panics
    /// Panics if no process listens on the socket.
    pub(super) async fn connect(socket: &Path, namespace: &str) -> Calls {
        Calls {
            channel: containerd_client::connect(socket)
                .await
                .expect("containerd listens"),
            namespace: namespace.to_owned(),
        }
    }

    fn request<T>(&self, message: T, lease: Option<&str>) -> Request<T> {
        let mut request = Request::new(message);
        let mut header = |key: &'static str, value: &str| {
            let value = AsciiMetadataValue::try_from(value).expect("plain text");
            request.metadata_mut().insert(key, value);
        };
        header("containerd-namespace", &self.namespace);
        header(FOREIGN_HEADER, "true");
        if let Some(lease) = lease {
            header("containerd-lease", lease);
        }
        request
    }

    fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone())
    }

    fn leases(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel.clone())
    }

    fn records(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone())
    }

    /// Returns all records.
    pub(super) async fn images(&self) -> Result<Vec<wire::Image>, Status> {
        let request = self.request(wire::ListImagesRequest::default(), None);
        Ok(self.records().list(request).await?.into_inner().images)
    }

    /// Updates a record. Without paths there is no mask, and everything is replaced.
    pub(super) async fn update(&self, image: wire::Image, paths: &[String]) -> Result<wire::Image, Status> {
        let paths = paths.to_vec();
        let request = wire::UpdateImageRequest {
            image: Some(image),
            update_mask: (!paths.is_empty()).then_some(FieldMask { paths }),
            ..Default::default()
        };
        let answer = self.records().update(self.request(request, None)).await?;
        Ok(answer.into_inner().image.unwrap_or_default())
    }

    /// Creates a record. Returns `None` if it exists.
    pub(super) async fn create(&self, image: wire::Image) -> Result<Option<wire::Image>, Status> {
        let request = wire::CreateImageRequest {
            image: Some(image),
            ..Default::default()
        };
        match self.records().create(self.request(request, None)).await {
            Ok(answer) => Ok(answer.into_inner().image),
            Err(status) if status.code() == Code::AlreadyExists => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// Deletes a record.
    pub(super) async fn delete(&self, name: &str) -> Result<(), Status> {
        let request = wire::DeleteImageRequest {
            name: name.to_owned(),
            ..Default::default()
        };
        self.records().delete(self.request(request, None)).await.map(drop)
    }

    /// Deletes a lease.
    pub(super) async fn give_back(&self, lease: &str) -> Result<(), Status> {
        let request = wire::DeleteRequest {
            id: lease.to_owned(),
            sync: false,
        };
        self.leases().delete(self.request(request, None)).await.map(drop)
    }
    /// Creates a lease.
    pub(super) async fn lease(&self, request: wire::CreateRequest) -> Result<(), Status> {
        self.leases().create(self.request(request, None)).await.map(drop)
    }

    /// Returns all leases.
    pub(super) async fn all_leases(&self) -> Result<Vec<wire::Lease>, Status> {
        let request = self.request(wire::ListRequest::default(), None);
        Ok(self.leases().list(request).await?.into_inner().leases)
    }

    /// Sets these labels of a blob. Its other labels stay.
    pub(super) async fn label(&self, info: wire::Info) -> Result<(), Status> {
        let paths = info.labels.keys().map(|key| label_path(key)).collect();
        let request = wire::UpdateRequest {
            info: Some(info),
            update_mask: Some(FieldMask { paths }),
        };
        self.content().update(self.request(request, None)).await.map(drop)
    }

    /// Opens an ingest under a lease. Waits if the ingest is locked.
    pub(super) async fn open(
        &self,
        lease: &str,
        opening: &wire::WriteContentRequest,
    ) -> Result<Opened, Status> {
        let mut failures = 0;
        loop {
            let (requests, queue) = mpsc::channel(4);
            requests.send(opening.clone()).await.expect("there is room");
            let request = self.request(ReceiverStream::new(queue), Some(lease));
            let opened = async {
                let mut answers = self.content().write(request).await?.into_inner();
                let first = answers.message().await?;
                Ok((answers, first))
            };
            match opened.await {
                Ok((answers, first)) => {
                    let offset = first.map_or(0, |answer| answer.offset);
                    return Ok(Opened {
                        requests,
                        answers,
                        offset: usize::try_from(offset).unwrap_or(0),
                    });
                }
                Err(status) if Status::code(&status) == Code::Unavailable => {
                    tokio::time::sleep(LOCK_PAUSES.whole(failures)).await;
                    failures += 1;
                }
                Err(status) => return Err(status),
            }
        }
    }
}

/// Returns the path of a label in the mask of an update.
pub(super) fn label_path(key: &str) -> String {
    format!("labels.{key}")
}
