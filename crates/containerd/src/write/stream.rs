//! The messages of `Content.Write`: the stream that opens an ingest, and containerd's answers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use containerd_client::services::v1::{WriteAction, WriteContentRequest, WriteContentResponse};
use oci_spec::image::Digest;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::BlobSpec;
use crate::Client;
use crate::content::{content_client, ingest_ref};
use crate::error::{Error, Failure};
use crate::wire::{labels_to_wire, size_from_wire, size_to_wire};

/// Number of messages read ahead of the connection. More messages gain no speed and cost memory:
/// half a MiB each, for each blob under way.
const READ_AHEAD: usize = 1;
/// Time for containerd to finish a stream that has nothing left to do.
const GOODBYE: Duration = Duration::from_secs(2);

/// Returns the message that opens an ingest, or finds its blob committed already.
pub(super) fn stat(digest: &Digest, size: u64) -> Result<WriteContentRequest, Error> {
    Ok(WriteContentRequest {
        action: WriteAction::Stat.into(),
        r#ref: ingest_ref(digest),
        total: size_to_wire(size)?,
        expected: digest.to_string(),
        ..WriteContentRequest::default()
    })
}

/// Returns the message that commits the ingest of a blob.
pub(super) fn commit(spec: &BlobSpec) -> Result<WriteContentRequest, Error> {
    let BlobSpec {
        digest, size, labels, ..
    } = spec;
    Ok(WriteContentRequest {
        action: WriteAction::Commit.into(),
        total: size_to_wire(*size)?,
        expected: digest.to_string(),
        // COMMIT is placed like a write: the default of 0 would truncate everything written.
        offset: size_to_wire(*size)?,
        labels: labels_to_wire(labels),
        ..WriteContentRequest::default()
    })
}

/// Returns the message that opens, fills and commits the ingest of a small blob at once.
pub(super) fn whole(spec: &BlobSpec, data: Vec<u8>) -> Result<WriteContentRequest, Error> {
    Ok(WriteContentRequest {
        r#ref: ingest_ref(&spec.digest),
        offset: 0,
        // The digest is enough. For a total, containerd writes a separate file, and all other calls
        // wait for its database.
        total: 0,
        data,
        ..commit(spec)?
    })
}

/// An open ingest. Dropping it releases the ingest's lock and keeps its bytes.
pub(super) struct WriteStream {
    pub(super) requests: mpsc::Sender<WriteContentRequest>,
    pub(super) answers: Answers,
    /// The first answer, with the length of the ingest.
    pub(super) standing: WriteContentResponse,
}

impl WriteStream {
    /// Opens a stream. The outer error comes from this client, the inner error from containerd.
    ///
    /// The first message must be queued before the call is awaited. containerd sends no headers
    /// before it has answered a message.
    pub(super) async fn open(
        client: &Client,
        channel: Channel,
        lease: &str,
        opening: &WriteContentRequest,
    ) -> Result<Result<WriteStream, Failure>, Error> {
        let (requests, queue) = mpsc::channel(READ_AHEAD);
        requests
            .try_send(opening.clone())
            .expect("an empty queue has room");
        let request = client.leased_request(lease, ReceiverStream::new(queue))?;
        let mut content = content_client(channel);
        // containerd hashes a partial ingest when it opens it, which takes long for a large ingest.
        let answered = async {
            let mut responses = content.write(request).await?.into_inner();
            let standing = responses.message().await?;
            Ok(standing.map(|standing| (responses, standing)))
        };
        Ok(match client.patiently(answered).await {
            Ok(Some((responses, standing))) => Ok(WriteStream {
                requests,
                answers: Answers(responses),
                standing,
            }),
            Ok(None) => Err(Failure::Ended),
            Err(failure) => Err(failure),
        })
    }

    /// Closes the stream in order, so that the lock is free when this returns.
    pub(super) async fn finish(self) {
        drop(self.requests);
        self.answers.finish().await;
    }
}

/// containerd's answers to an open stream. Dropping them drops the stream.
pub(super) struct Answers(Streaming<WriteContentResponse>);

impl Answers {
    /// Waits for the server to end the stream. Some servers repeat their last answer first.
    pub(super) async fn finish(mut self) {
        let _ = timeout(GOODBYE, async {
            while let Ok(Some(_)) = self.0.message().await {}
        })
        .await;
    }

    /// Reads and counts acknowledgements until containerd answers COMMIT. They start at `offset`.
    /// `queued` is the offset that messages have reached.
    ///
    /// While bytes are under way, acknowledgements must keep coming. While none are, containerd
    /// only has to answer other calls: the source may be slow, or containerd syncs its disk for
    /// COMMIT, which may take minutes. Bytes may be queued a moment before the limit. containerd
    /// had no time to acknowledge them, so the wait starts again.
    pub(super) async fn until_commit(
        &mut self,
        client: &Client,
        spec: &BlobSpec,
        offset: u64,
        queued: &AtomicU64,
    ) -> Result<(), Failure> {
        let limit = client.options().stall;
        let mut acknowledged = offset;
        loop {
            let under_way = queued.load(Ordering::Relaxed) > acknowledged;
            match timeout(limit, self.0.message()).await {
                Ok(Ok(Some(answer))) => {
                    let reached = size_from_wire(answer.offset);
                    spec.acknowledge(reached.saturating_sub(acknowledged));
                    acknowledged = acknowledged.max(reached);
                    if answer.action() == WriteAction::Commit {
                        return Ok(());
                    }
                }
                Ok(Ok(None)) => return Err(Failure::Ended),
                Ok(Err(status)) => return Err(Failure::from(status)),
                Err(_) if under_way => return Err(Failure::Deadline(limit)),
                Err(_) if client.version().await.is_ok() => {}
                Err(_) => return Err(Failure::Deadline(limit)),
            }
        }
    }
}
