//! The content store: blobs, their labels, and ingests (blobs being written). The module `write`
//! writes blobs.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use basics::digest::Hasher;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, ListContentRequest, ListStatusesRequest,
    ReadContentRequest, ReadContentResponse, Status as IngestStatus, UpdateRequest,
};
use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use oci_spec::image::Digest;
use prost_types::FieldMask;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

use crate::connect::MAX_MESSAGE;
use crate::error::{Error, Failure};
use crate::parts;
use crate::wire::{self, Labels, check_digest, digest_from_wire, label_path, size_from_wire, time_from_wire};
use crate::{Client, LOOKUPS, MOST_LISTED, NAMESPACE_HEADER, namespace_header, within};

/// Largest number of empty pieces in a stream. A blob with more makes no progress.
const MOST_EMPTY: usize = 1000;

/// Cost of one look-up, in blobs that containerd walks over in a list (measured).
const LOOKUP_COSTS: usize = 32;

/// A committed blob as this namespace sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    /// The digest under which the blob was committed.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// The blob's labels in this namespace.
    pub labels: Labels,
}

/// A write that was started and neither committed nor aborted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingest {
    /// The ingest's name. [`ingest_ref`] gives those of this client.
    pub reference: String,
    /// Bytes written so far.
    pub offset: u64,
    /// Bytes expected in the end. 0 if the writer did not say.
    pub total: u64,
    /// Time of the start, if containerd gives it.
    pub started_at: Option<Timestamp>,
    /// Time of the last write, if containerd gives it.
    pub updated_at: Option<Timestamp>,
}

/// A blob that is being read.
pub struct BlobReader {
    client: Client,
    digest: Digest,
    stream: Streaming<ReadContentResponse>,
    /// Number of empty pieces so far.
    empty: usize,
}

impl std::fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobReader")
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl BlobReader {
    /// Returns the next bytes, about 1 MiB, or `None` at the end. Cancelling the call loses a
    /// piece.
    ///
    /// # Errors
    /// Returns [`Error::Gone`] if the blob was deleted. Returns [`Error::Content`] if containerd
    /// reports a loss of its bytes. Otherwise returns an error if the call fails.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        match self.client.next(&mut self.stream).await {
            Ok(Some(piece)) if piece.data.is_empty() && self.empty == MOST_EMPTY => {
                Err(self.client.endless(&format!("read blob {}", self.digest)))
            }
            Ok(Some(piece)) => {
                self.empty += usize::from(piece.data.is_empty());
                Ok(Some(piece.data))
            }
            Ok(None) => Ok(None),
            Err(failure) => Err(self.client.unreadable(failure, &self.digest)),
        }
    }
}

impl BlobReader {
    /// Returns the error for a stream that ended before the last byte of its blob. A connection
    /// that breaks may look like the end of the stream.
    #[must_use]
    pub fn ended_early(&self) -> Error {
        let attempt = format!("read blob {}", self.digest);
        self.client.fail(Failure::Ended, attempt)
    }
}

/// Prefix of the names of this client's ingests.
pub const INGEST_PREFIX: &str = "airgapd-";

/// Returns the name of this client's ingest of a blob. The name follows from the digest, so the
/// next run finds an interrupted write again. Two clients with the same blob wait for each other
/// instead of writing it twice.
pub fn ingest_ref(digest: &Digest) -> String {
    format!("{INGEST_PREFIX}{digest}")
}

impl Client {
    /// Looks up one blob. A blob that exists may still be collected as garbage: see
    /// [`Client::hold_blob`].
    ///
    /// # Errors
    /// Returns an error if the call fails. An absent blob is not an error.
    pub async fn blob(&self, digest: &Digest) -> Result<Option<BlobInfo>, Error> {
        check_digest(digest)?;
        let request = self.request(InfoRequest {
            digest: digest.to_string(),
        });
        match self.unary(self.content().info(request)).await {
            Ok(answer) => self.info_of(digest, answer.info),
            Err(failure) if failure.is_not_found() => Ok(None),
            Err(failure) => Err(self.fail(failure, format!("look up blob {digest}"))),
        }
    }

    /// Returns the blob of the answer. An answer about another blob is an error.
    fn info_of(&self, digest: &Digest, answer: Option<Info>) -> Result<Option<BlobInfo>, Error> {
        match answer {
            Some(info) if info.digest != *digest.as_ref() => {
                Err(self.answered_for(&info.digest, digest.as_ref()))
            }
            answer => Ok(answer.and_then(info_from_wire)),
        }
    }

    /// Lists all blobs of the namespace. The whole list is in memory at once. If only some blobs
    /// matter, use [`Client::blobs_of`].
    ///
    /// # Errors
    /// Returns the errors of [`Client::blobs_of`].
    pub async fn blobs(&self) -> Result<Vec<BlobInfo>, Error> {
        self.blobs_where(|_| true).await
    }

    /// Looks up these blobs and leaves out absent ones.
    ///
    /// The client looks them up one by one if that costs containerd less than a list. For a list,
    /// containerd walks over all blobs of the namespace. The size of the last list decides. Without
    /// a last list, a very long list of image records stands for very many blobs.
    ///
    /// # Errors
    /// Returns an error if the call fails, and [`Error::Invalid`] for a list that does not end.
    pub async fn blobs_of(&self, digests: &HashSet<Digest>) -> Result<Vec<BlobInfo>, Error> {
        let there = match self.shared.blobs_there.load(Ordering::Relaxed) {
            0 if self.has_long_list() => usize::MAX,
            there => there,
        };
        match digests.len().saturating_mul(LOOKUP_COSTS) < there {
            true => self.blobs_one_by_one(digests).await,
            false => self.blobs_where(|digest| digests.contains(digest)).await,
        }
    }

    /// Looks up these blobs like [`Client::blobs_of`], but never lists all blobs, however many
    /// digests are given.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub async fn blobs_one_by_one(&self, digests: &HashSet<Digest>) -> Result<Vec<BlobInfo>, Error> {
        let digests: Vec<Digest> = digests.iter().cloned().collect();
        let calls = digests
            .into_iter()
            .map(|digest| async move { self.blob(&digest).await });
        let found: Vec<_> = futures_util::stream::iter(calls)
            .buffer_unordered(LOOKUPS)
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn blobs_where(&self, is_wanted: impl Fn(&Digest) -> bool) -> Result<Vec<BlobInfo>, Error> {
        let attempt = "list blobs";
        let request = self.request(ListContentRequest::default());
        let mut client = self.content();
        let opened = within(self.options().stall, client.list(request)).await;
        let mut stream = opened
            .map_err(|failure| self.fail(failure, attempt))?
            .into_inner();
        let (mut blobs, mut there) = (Vec::new(), 0);
        while let Some(page) = self
            .next(&mut stream)
            .await
            .map_err(|failure| self.fail(failure, attempt))?
        {
            // An empty page counts too, so that a stream of empty pages ends.
            there += page.info.len().max(1);
            if there > MOST_LISTED {
                return Err(self.endless(attempt));
            }
            let found = page.info.into_iter().filter_map(info_from_wire);
            blobs.extend(found.filter(|blob| is_wanted(&blob.digest)));
        }
        self.shared.blobs_there.store(there, Ordering::Relaxed);
        Ok(blobs)
    }

    /// Sets some labels of a blob and leaves its others alone. An empty value removes the label.
    ///
    /// This is one call: containerd sets all labels or none.
    ///
    /// # Errors
    /// Returns [`Error::Gone`] if there is no such blob, and [`Error::Refused`] for a label over
    /// 4096 bytes (key and value).
    pub async fn set_blob_labels(&self, digest: &Digest, labels: &Labels) -> Result<BlobInfo, Error> {
        let attempt = || format!("label blob {digest}");
        let gone = || Error::gone(format!("blob {digest}"), attempt());
        if labels.is_empty() {
            // An empty mask would not mean "change nothing" but "replace all labels".
            return self.blob(digest).await?.ok_or_else(gone);
        }
        check_digest(digest)?;
        let info = Info {
            digest: digest.to_string(),
            labels: wire::labels_to_wire(labels),
            ..Info::default()
        };
        let mask = FieldMask {
            paths: labels.keys().map(|key| label_path(key)).collect(),
        };
        let request = self.request(UpdateRequest {
            info: Some(info),
            update_mask: Some(mask),
        });
        match self.unary(self.content().update(request)).await {
            Ok(answer) => self.info_of(digest, answer.info)?.ok_or_else(gone),
            Err(failure) if failure.is_not_found() => Err(gone()),
            Err(failure) => Err(self.fail(failure, attempt())),
        }
    }

    /// Reads a whole blob of at most `limit` bytes into memory and checks its digest.
    ///
    /// # Errors
    /// Returns [`Error::Gone`] if there is no such blob, and [`Error::Content`] if its bytes do not
    /// match the digest. Returns [`Error::Invalid`] if the blob is larger than `limit`.
    pub async fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, Error> {
        let mut reader = self.open_blob(digest, 0).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = reader.next().await? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > limit {
                return Err(Error::Invalid(format!(
                    "blob {digest} is larger than {limit} bytes"
                )));
            }
        }
        let found = Hasher::of(digest).digest_of(&bytes);
        if found != *digest {
            return Err(Error::content(
                digest,
                format!("containerd's copy is damaged: its bytes hash to {found}"),
            ));
        }
        Ok(bytes)
    }

    /// Starts reading a blob at an offset in bytes. The client does not check the bytes.
    ///
    /// # Errors
    /// Returns [`Error::Gone`] if there is no such blob. containerd may report this only with the
    /// first piece.
    pub async fn open_blob(&self, digest: &Digest, offset: u64) -> Result<BlobReader, Error> {
        check_digest(digest)?;
        let request = self.request(ReadContentRequest {
            digest: digest.to_string(),
            offset: i64::try_from(offset)
                .map_err(|_| Error::Invalid(format!("blob {digest} has no byte {offset}")))?,
            size: 0,
        });
        let mut client = self.content();
        match within(self.options().stall, client.read(request)).await {
            Ok(answer) => Ok(BlobReader {
                client: self.clone(),
                digest: digest.clone(),
                stream: answer.into_inner(),
                empty: 0,
            }),
            Err(failure) => Err(self.unreadable(failure, digest)),
        }
    }

    fn unreadable(&self, failure: Failure, digest: &Digest) -> Error {
        let attempt = format!("read blob {digest}");
        if failure.is_not_found() {
            return Error::gone(format!("blob {digest}"), attempt);
        }
        if failure.is_data_loss() {
            let words = failure.message();
            return Error::content(digest, format!("containerd has lost its bytes: {words}"));
        }
        self.fail(failure, attempt)
    }

    /// Returns true if containerd can read the last byte of a blob of this size: its file exists
    /// and has not lost its end. If containerd cannot tell, the blob is taken to be whole.
    ///
    /// # Errors
    /// Returns [`Error::Unreachable`] and [`Error::Stalled`].
    pub async fn has_end(&self, digest: &Digest, size: u64) -> Result<bool, Error> {
        check_digest(digest)?;
        let Some(last) = size.checked_sub(1).and_then(|last| i64::try_from(last).ok()) else {
            return Ok(true);
        };
        let attempt = || format!("read the end of blob {digest}");
        let request = self.request(ReadContentRequest {
            digest: digest.to_string(),
            offset: last,
            size: 1,
        });
        let mut client = self.content();
        let read = async {
            let mut stream = within(self.options().stall, client.read(request))
                .await?
                .into_inner();
            self.next(&mut stream).await
        };
        match read.await {
            Ok(piece) => Ok(piece.is_some_and(|piece| !piece.data.is_empty())),
            Err(failure) if failure.is_not_found() || failure.is_out_of_range() => Ok(false),
            Err(failure) if failure.is_answer() => Ok(true),
            Err(failure) => Err(self.fail(failure, attempt())),
        }
    }

    /// Returns the other namespaces that list a blob, in alphabetical order. While one of them
    /// does, containerd keeps the blob's file, even if this namespace deletes the blob.
    ///
    /// # Errors
    /// Returns an error if a call fails.
    pub async fn other_namespaces_with(&self, digest: &Digest) -> Result<Vec<String>, Error> {
        check_digest(digest)?;
        let mut with = Vec::new();
        for name in self.namespaces().await? {
            if name == self.namespace() {
                continue;
            }
            let mut request = Request::new(InfoRequest {
                digest: digest.to_string(),
            });
            let header = namespace_header(&name)?;
            request.metadata_mut().insert(NAMESPACE_HEADER, header);
            match self.unary(self.content().info(request)).await {
                Ok(_) => with.push(name),
                Err(failure) if failure.is_not_found() => {}
                Err(failure) => {
                    let attempt = format!("look up blob {digest} in namespace {name}");
                    return Err(self.fail(failure, attempt));
                }
            }
        }
        with.sort();
        Ok(with)
    }

    /// Deletes a blob from the namespace. Returns true if the blob existed.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub async fn delete_blob(&self, digest: &Digest) -> Result<bool, Error> {
        check_digest(digest)?;
        let request = self.request(DeleteContentRequest {
            digest: digest.to_string(),
        });
        match self.unary(self.content().delete(request)).await {
            Ok(()) => Ok(true),
            Err(failure) if failure.is_not_found() => Ok(false),
            Err(failure) => Err(self.fail(failure, format!("delete blob {digest}"))),
        }
    }

    /// Lists the ingests of the namespace, of all clients.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub async fn ingests(&self) -> Result<Vec<Ingest>, Error> {
        self.ingests_where(Vec::new()).await
    }

    /// Lists the ingests whose names begin with a text. Other ingests do not make the answer
    /// longer.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub async fn ingests_beginning(&self, text: &str) -> Result<Vec<Ingest>, Error> {
        self.ingests_where(vec![parts::beginning("ref", text)]).await
    }

    /// Lists the ingests with a digest in their names, of all clients.
    pub(crate) async fn ingests_of(&self, digest: &Digest) -> Result<Vec<Ingest>, Error> {
        self.ingests_where(vec![parts::containing("ref", digest.digest())])
            .await
    }

    async fn ingests_where(&self, filters: Vec<String>) -> Result<Vec<Ingest>, Error> {
        let request = self.request(ListStatusesRequest { filters });
        let answer = self.unary(self.content().list_statuses(request)).await;
        let statuses = answer
            .map_err(|failure| self.fail(failure, "list ingests"))?
            .statuses;
        Ok(statuses.into_iter().map(ingest_from_wire).collect())
    }

    /// Aborts an ingest and frees its space. Returns true if the ingest existed.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub async fn abort_ingest(&self, reference: &str) -> Result<bool, Error> {
        let request = self.request(AbortRequest {
            r#ref: reference.to_owned(),
        });
        match self.unary(self.content().abort(request)).await {
            Ok(()) => Ok(true),
            Err(failure) if failure.is_not_found() => Ok(false),
            Err(failure) => Err(self.fail(failure, format!("abort ingest {reference}"))),
        }
    }

    fn content(&self) -> ContentClient<Channel> {
        content_client(self.channel())
    }
}

pub(crate) fn content_client(channel: Channel) -> ContentClient<Channel> {
    ContentClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

/// Leaves out a blob whose digest has an unknown algorithm: this client did not write it.
fn info_from_wire(info: Info) -> Option<BlobInfo> {
    let Some(digest) = digest_from_wire(&info.digest) else {
        tracing::debug!(
            digest = info.digest,
            "skipped a blob with a digest of an unknown kind"
        );
        return None;
    };
    Some(BlobInfo {
        digest,
        size: size_from_wire(info.size),
        labels: wire::labels_from_wire(info.labels),
    })
}

fn ingest_from_wire(status: IngestStatus) -> Ingest {
    Ingest {
        reference: status.r#ref,
        offset: size_from_wire(status.offset),
        total: size_from_wire(status.total),
        started_at: time_from_wire(status.started_at),
        updated_at: time_from_wire(status.updated_at),
    }
}
