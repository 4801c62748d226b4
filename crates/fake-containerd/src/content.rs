//! `containerd.services.content.v1`: blobs, and all calls about them except the write stream.

use futures_util::Stream;
use futures_util::stream;
use prost_types::FieldMask;
use std::pin::Pin;
use tonic::{Request, Response, Status, Streaming};

use crate::digest;
use crate::filters::Filters;
use crate::service::{Service, missing};
use crate::state::{Blob, Ingest, Labels, State, check_labels, timestamp, without_empty};
use crate::wire;
use crate::wire::generated::content_server::Content;

/// Bytes that containerd sends in one answer to a read.
const READ_CHUNK: usize = 1 << 20;
/// Blobs in one answer of containerd to a list.
const LIST_CHUNK: usize = 100;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Content for Service {
    async fn info(
        &self,
        request: Request<wire::InfoRequest>,
    ) -> Result<Response<wire::InfoResponse>, Status> {
        self.unary("Content.Info", request, |state, call, request| {
            validated(&request.digest)?;
            let blob = state
                .blob(&call.namespace, &request.digest)
                .ok_or_else(|| absent(&request.digest))?;
            Ok(wire::InfoResponse {
                info: Some(info(&request.digest, blob)),
            })
        })
        .await
    }

    async fn update(
        &self,
        request: Request<wire::UpdateRequest>,
    ) -> Result<Response<wire::UpdateResponse>, Status> {
        self.unary("Content.Update", request, |state, call, request| {
            let Some(wanted) = request.info else {
                return Err(missing(state, call.rpc, "info"));
            };
            validated(&wanted.digest)?;
            let now = state.now();
            let paths = mask_paths(state, call.rpc, request.update_mask);
            let given: Labels = wanted.labels.into_iter().collect();
            let blob = state
                .blob_mut(&call.namespace, &wanted.digest)
                .ok_or_else(|| absent(&wanted.digest))?;
            blob.labels = relabelled(&blob.labels, &given, &paths)?;
            blob.updated = now;
            let answer = info(&wanted.digest, blob);
            state.check_snapshot_labels(&call.namespace, &wanted.digest, &given);
            state.changed(call.rpc, &call.namespace, &wanted.digest, call.lease.as_deref());
            Ok(wire::UpdateResponse { info: Some(answer) })
        })
        .await
    }

    type ListStream = Answers<wire::ListContentResponse>;

    async fn list(
        &self,
        request: Request<wire::ListContentRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        self.unary("Content.List", request, |state, call, request| {
            let filters = Filters::parse(&request.filters)?;
            let found: Vec<wire::Info> = state
                .namespace(&call.namespace)
                .blobs
                .iter()
                .filter(|(digest, blob)| {
                    let size = blob.size.to_string();
                    filters.accept(|path| match path {
                        ["digest"] => Some(digest.as_str()),
                        ["size"] => Some(&size),
                        ["labels", key @ ..] => blob.labels.get(&key.join(".")).map(String::as_str),
                        _ => None,
                    })
                })
                .map(|(digest, blob)| info(digest, blob))
                .collect();
            let answers: Vec<_> = found
                .chunks(LIST_CHUNK)
                .map(|infos| Ok(wire::ListContentResponse { info: infos.to_vec() }))
                .collect();
            Ok(Box::pin(stream::iter(answers)) as Self::ListStream)
        })
        .await
    }

    async fn delete(&self, request: Request<wire::DeleteContentRequest>) -> Result<Response<()>, Status> {
        self.unary("Content.Delete", request, |state, call, request| {
            validated(&request.digest)?;
            state
                .blob(&call.namespace, &request.digest)
                .ok_or_else(|| absent(&request.digest))?;
            state.namespace_mut(&call.namespace).blobs.remove(&request.digest);
            let lease = call
                .lease
                .as_ref()
                .and_then(|id| state.lease_mut(&call.namespace, id));
            if let Some(lease) = lease {
                lease
                    .resources
                    .remove(&("content".to_owned(), request.digest.clone()));
            }
            state.dirty = true;
            state.changed(call.rpc, &call.namespace, &request.digest, call.lease.as_deref());
            let event = containerd_client::events::ContentDelete {
                digest: request.digest.clone(),
            };
            state.publish(&call.namespace, "/content/delete", &request.digest, &event);
            Ok(())
        })
        .await
    }

    type ReadStream = Answers<wire::ReadContentResponse>;

    async fn read(
        &self,
        request: Request<wire::ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        self.unary("Content.Read", request, |state, call, request| {
            validated(&request.digest)?;
            state
                .blob(&call.namespace, &request.digest)
                .ok_or_else(|| absent(&request.digest))?;
            let bytes = state
                .blob_bytes(&call.namespace, &request.digest)
                .ok_or_else(|| {
                    Status::data_loss(format!("the stand-in kept no bytes of {}", request.digest))
                })?;
            let (start, end) = range(&request, bytes.len())?;
            let end = end.min(state.faults.short_read().unwrap_or(end));
            let start = start.min(end);
            let pieces: Vec<_> = bytes[start..end]
                .chunks(READ_CHUNK)
                .scan(start, |offset, piece| {
                    let answer = wire::ReadContentResponse {
                        offset: signed(*offset),
                        data: piece.to_vec(),
                    };
                    *offset += piece.len();
                    Some(Ok(answer))
                })
                .collect();
            Ok(Box::pin(stream::iter(pieces)) as Self::ReadStream)
        })
        .await
    }

    async fn status(
        &self,
        request: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusResponse>, Status> {
        self.unary("Content.Status", request, |state, call, request| {
            let ingest = state.namespace(&call.namespace).ingests.get(&request.r#ref);
            let ingest = ingest.ok_or_else(|| unknown_ref(&request.r#ref))?;
            Ok(wire::StatusResponse {
                status: Some(status(&request.r#ref, ingest)),
            })
        })
        .await
    }

    async fn list_statuses(
        &self,
        request: Request<wire::ListStatusesRequest>,
    ) -> Result<Response<wire::ListStatusesResponse>, Status> {
        self.unary("Content.ListStatuses", request, |state, call, request| {
            let filters = Filters::parse(&request.filters)?;
            let statuses = state
                .namespace(&call.namespace)
                .ingests
                .iter()
                .filter(|(reference, _)| {
                    filters.accept(|path| (path == ["ref"]).then_some(reference.as_str()))
                })
                .map(|(reference, ingest)| status(reference, ingest))
                .collect();
            Ok(wire::ListStatusesResponse { statuses })
        })
        .await
    }

    type WriteStream = Answers<wire::WriteContentResponse>;

    async fn write(
        &self,
        request: Request<Streaming<wire::WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let call = self.enter("Content.Write", request.metadata()).await?;
        let (first, session) = crate::write::begin(self, call, request.into_inner()).await?;
        Ok(Response::new(Box::pin(session.answers(first))))
    }

    async fn abort(&self, request: Request<wire::AbortRequest>) -> Result<Response<()>, Status> {
        self.unary("Content.Abort", request, |state, call, request| {
            if !state.drop_ingest(&call.namespace, &request.r#ref) {
                return Err(unknown_ref(&request.r#ref));
            }
            state.changed(call.rpc, &call.namespace, &request.r#ref, call.lease.as_deref());
            Ok(())
        })
        .await
    }
}

/// Returns the paths of a mask. An empty mask, or a path for all labels, also wipes the labels of
/// other writers.
pub(crate) fn mask_paths(state: &mut State, rpc: &str, mask: Option<FieldMask>) -> Vec<String> {
    let paths = mask.unwrap_or_default().paths;
    if paths.is_empty() {
        state.violation(format!(
            "{rpc} was called without a field mask, which replaces everything"
        ));
    }
    if paths.iter().any(|path| path == "labels") {
        state.violation(format!(
            "{rpc} was called with the mask \"labels\", which replaces the labels of others"
        ));
    }
    paths
}

/// Returns the labels after an update by field mask. `labels.<key>` sets one label. `labels`, or an
/// empty mask, replaces all labels.
fn relabelled(old: &Labels, wanted: &Labels, paths: &[String]) -> Result<Labels, Status> {
    let mut labels = old.clone();
    if paths.is_empty() {
        labels.clone_from(wanted);
    }
    for path in paths {
        if let Some(key) = path.strip_prefix("labels.") {
            labels.insert(key.to_owned(), wanted.get(key).cloned().unwrap_or_default());
        } else if path == "labels" {
            labels.clone_from(wanted);
        } else {
            let text = format!("cannot update {path:?} field on content info: invalid argument");
            return Err(Status::invalid_argument(text));
        }
    }
    check_labels(&labels)?;
    Ok(without_empty(labels))
}

/// Returns the range of a read. A start past the end is refused, an end past it is not.
fn range(request: &wire::ReadContentRequest, length: usize) -> Result<(usize, usize), Status> {
    let start = usize::try_from(request.offset)
        .map_err(|_| Status::invalid_argument("offset must be non-negative: invalid argument"))?;
    let left = length
        .checked_sub(start)
        .ok_or_else(|| Status::out_of_range(format!("read past object length {length} bytes")))?;
    let size = usize::try_from(request.size)
        .ok()
        .filter(|size| (1..=left).contains(size));
    Ok((start, start + size.unwrap_or(left)))
}

fn info(digest: &str, blob: &Blob) -> wire::Info {
    wire::Info {
        digest: digest.to_owned(),
        size: i64::try_from(blob.size).unwrap_or(i64::MAX),
        created_at: Some(timestamp(blob.created)),
        updated_at: Some(timestamp(blob.updated)),
        labels: blob.labels.clone().into_iter().collect(),
    }
}

fn status(reference: &str, ingest: &Ingest) -> wire::Status {
    let offset = ingest
        .partial
        .lock()
        .expect("no holder of this lock panics")
        .offset;
    wire::Status {
        started_at: Some(timestamp(ingest.started)),
        updated_at: Some(timestamp(ingest.updated)),
        r#ref: reference.to_owned(),
        offset: i64::try_from(offset).unwrap_or(i64::MAX),
        total: ingest.total,
        expected: ingest.expected.clone().unwrap_or_default(),
    }
}

fn signed(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

fn validated(digest: &str) -> Result<(), Status> {
    if digest::is_valid(digest) {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "{digest:?} failed validation: invalid checksum digest format"
    )))
}

fn absent(digest: &str) -> Status {
    Status::not_found(format!("content digest {digest}: not found"))
}

fn unknown_ref(reference: &str) -> Status {
    Status::not_found(format!("ingest ref {reference:?}: not found"))
}
