//! Writing blobs: containerd's `Content.Write` protocol, pass by pass.
//!
//! A small blob goes in one message that opens, fills and commits its ingest. Of any other, and where that does not do, a
//! pass opens the blob's ingest and sees what it finds ([`Standing`]): nothing, the beginning of the blob from
//! an interrupted write, all of it, or something unusable. A usable beginning is kept after our source has been
//! hashed that far; the rest is streamed without waiting for acknowledgements, which are drained as they come;
//! and COMMIT, with the digest, has containerd check what it got. Whatever ends a pass badly is judged by
//! [`verdict`]: sometimes it is worth another pass from a clean slate, never more than [`PASSES`] in all.
//!
//! Before anything is sent, a look at the other ingests tells whether another importer is at the same blob
//! ([`crate::others`]); then its end is waited for, and mostly the blob is there.
//!
//! Nothing is committed unless the source had exactly the declared length, and nothing stays behind after a
//! commit that failed or on a full disk; after a broken connection the ingest stays, to be resumed.

use std::future::Future;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use basics::backoff;
use basics::digest::{self, Hasher};
use containerd_client::services::v1::{WriteAction, WriteContentRequest, WriteContentResponse};
use jiff::Timestamp;
use oci_spec::image::Digest;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::Client;
use crate::content::{content_client, ingest_ref};
use crate::error::{Error, Failure};
use crate::feed::{Fed, Feed, hash_beginning, read_whole};
use crate::others::Others;
use crate::wire::{Labels, check_digest, labels_to_wire, size_from_wire, size_to_wire};

/// Messages read ahead of the connection. More gain no speed and cost memory: half a MiB each, for each blob under way.
const READ_AHEAD: usize = 1;
/// Passes of one `write_blob`; two would do, the third is for a race with another client.
const PASSES: usize = 3;
/// For containerd to finish a stream that has nothing left to do.
const GOODBYE: Duration = Duration::from_secs(2);
/// Up to so many bytes a blob is sent sooner than it is found out whether another importer is just sending it.
const WORTH_A_LOOK: u64 = 64 << 10;
/// First and longest pause between tries to open a locked ingest.
const LOCK_PAUSE: (Duration, Duration) = (Duration::from_millis(16), Duration::from_secs(2));

/// Where the bytes of a blob come from.
///
/// Reading may block: it happens on a thread of its own, in pieces. A source is opened again for another pass.
pub trait BlobSource: Send + Sync {
    /// Opens the bytes from `offset` on.
    ///
    /// # Errors
    /// Those of the medium. They end up in [`Error::Source`].
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>>;
}

/// A blob to be written.
#[derive(Clone, Debug)]
pub struct BlobSpec {
    /// The digest that containerd shall check.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Labels of the committed blob. One that turns out to be there keeps its own.
    pub labels: Labels,
    /// Grows by the bytes that containerd acknowledges, as it does. Several blobs may share one.
    pub progress: Option<Arc<AtomicU64>>,
}

impl BlobSpec {
    /// A blob without labels, its progress not followed.
    pub fn new(digest: Digest, size: u64) -> BlobSpec {
        BlobSpec {
            digest,
            size,
            labels: Labels::new(),
            progress: None,
        }
    }

    /// The same blob with these labels.
    pub fn with_labels(self, labels: Labels) -> BlobSpec {
        BlobSpec { labels, ..self }
    }

    /// The same blob with its progress counted in `acknowledged`.
    pub fn with_progress(self, acknowledged: Arc<AtomicU64>) -> BlobSpec {
        BlobSpec {
            progress: Some(acknowledged),
            ..self
        }
    }
}

/// How a blob came to be in the namespace and on the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Bytes were sent, and committed.
    Committed {
        /// How many; less than the blob's size when an interrupted write was resumed.
        sent_bytes: u64,
    },
    /// The namespace had it already, with labels of its own; now it is on the lease.
    Present,
    /// containerd had all bytes already, from another namespace or a write that lacked only its commit; none
    /// was sent.
    Adopted,
}

/// Whether a blob, or a snapshot, is there to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// It is, and the lease now protects it.
    Held,
    /// The namespace has nothing of the kind.
    Absent,
}

impl Client {
    /// Puts a blob that is already there under a lease, in one call that finds and protects it at once.
    ///
    /// Looking first and adding to the lease afterwards would leave a gap for the garbage collector. A blob that
    /// only another namespace has, or that is half written, is absent, and [`Client::write_blob`] knows how to
    /// make use of what there is.
    ///
    /// # Errors
    /// [`Error::LeaseLost`] when there is no such lease, otherwise those of any call.
    pub async fn hold_blob(&self, lease: &str, digest: &Digest, size: u64) -> Result<Held, Error> {
        check_digest(digest)?;
        let attempt = || format!("hold blob {digest}");
        let opening = stat(digest, size)?;
        match self.open(self.channel(), lease, &opening).await? {
            Ok(stream) => {
                let is_empty = size_from_wire(stream.standing.offset) == 0;
                stream.finish().await;
                if is_empty {
                    self.clean_up(digest).await;
                }
                Ok(Held::Absent)
            }
            Err(failure) if failure.is_already_exists() => Ok(Held::Held),
            // Somebody writes it, so it is not there yet.
            Err(failure) if failure.is_locked() => Ok(Held::Absent),
            Err(failure) => Err(self.fail_leased(failure, lease, attempt())),
        }
    }

    /// Writes a blob under a lease, sending only what containerd lacks of it.
    ///
    /// At most [`crate::Options::write_connections`] blobs are under way at a time, each on its own connection;
    /// further calls wait their turn.
    ///
    /// # Errors
    /// [`Error::Content`] when the source is shorter or longer than declared or its bytes have another digest,
    /// [`Error::Source`] when it cannot be read, [`Error::Space`] when containerd's disk is full: in these cases
    /// nothing is left behind. [`Error::Locked`], [`Error::Stalled`] and [`Error::Unreachable`] leave an ingest
    /// that the next call resumes. [`Error::LeaseLost`] when there is no such lease.
    ///
    /// # Cancel safety
    /// May be dropped at any await. The thread that reads the source stops at its next chunk, an unfinished
    /// ingest stays to be resumed, and what was committed stays under the lease.
    pub async fn write_blob(
        &self,
        lease: &str,
        spec: &BlobSpec,
        source: Arc<dyn BlobSource>,
    ) -> Result<Written, Error> {
        check_digest(&spec.digest)?;
        let connection = self.shared.writes.take().await;
        let channel = connection.channel();
        let written = Writer {
            client: self,
            channel,
            lease,
            spec,
            source,
            sent: 0,
            has_outwaited: false,
        }
        .write()
        .await;
        if let Err(Error::Stalled { .. }) = written {
            connection.discard();
        }
        written
    }

    /// Opens a stream of `Content.Write`. The outer error is ours, the inner one containerd's answer.
    ///
    /// The first message has to be queued before the call is awaited: containerd sends no headers before it has
    /// answered a message.
    async fn open(
        &self,
        channel: Channel,
        lease: &str,
        opening: &WriteContentRequest,
    ) -> Result<Result<WriteStream, Failure>, Error> {
        let (requests, queue) = mpsc::channel(READ_AHEAD);
        requests
            .try_send(opening.clone())
            .expect("an empty queue has room");
        let request = self.leased_request(lease, ReceiverStream::new(queue))?;
        let mut client = content_client(channel);
        // Opening a large partial ingest takes as long as hashing it does.
        let answered = async {
            let mut responses = client.write(request).await?.into_inner();
            let standing = responses.message().await?;
            Ok(standing.map(|standing| (responses, standing)))
        };
        Ok(match self.patiently(answered).await {
            Ok(Some((responses, standing))) => Ok(WriteStream {
                requests,
                responses,
                standing,
            }),
            Ok(None) => Err(Failure::Ended),
            Err(failure) => Err(failure),
        })
    }

    /// Waits without a limit, as long as containerd answers other calls meanwhile.
    pub(crate) async fn patiently<T>(
        &self,
        work: impl Future<Output = Result<T, tonic::Status>>,
    ) -> Result<T, Failure> {
        let mut work = std::pin::pin!(work);
        loop {
            match timeout(self.options().stall, work.as_mut()).await {
                Ok(answer) => return answer.map_err(Failure::from),
                Err(_) if self.version().await.is_ok() => {}
                Err(_) => return Err(Failure::Deadline(self.options().stall)),
            }
        }
    }

    /// Throws our ingest of a blob away. Failing at that is no reason to fail: it expires with the lease.
    async fn clean_up(&self, digest: &Digest) {
        if let Err(error) = self.abort_ingest(&ingest_ref(digest)).await {
            tracing::debug!(%digest, %error, "an unusable ingest stays behind");
        }
    }
}

/// The message that opens an ingest, or finds its blob committed already.
fn stat(digest: &Digest, size: u64) -> Result<WriteContentRequest, Error> {
    Ok(WriteContentRequest {
        action: WriteAction::Stat.into(),
        r#ref: ingest_ref(digest),
        total: size_to_wire(size)?,
        expected: digest.to_string(),
        ..WriteContentRequest::default()
    })
}

/// An open ingest. Dropping it drops the lock on it and keeps its bytes.
struct WriteStream {
    requests: mpsc::Sender<WriteContentRequest>,
    responses: Streaming<WriteContentResponse>,
    standing: WriteContentResponse,
}

impl WriteStream {
    /// Hangs up in order, so that the lock is free when this returns.
    async fn finish(self) {
        drop(self.requests);
        say_goodbye(self.responses).await;
    }
}

/// Waits for the server to end a stream. Some repeat their last answer first.
async fn say_goodbye(mut responses: Streaming<WriteContentResponse>) {
    let _ = timeout(GOODBYE, async {
        while let Ok(Some(_)) = responses.message().await {}
    })
    .await;
}

/// What an opened ingest has of its blob.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// Nothing.
    Empty,
    /// As many bytes as the blob has; whether the right ones, COMMIT will tell.
    Whole,
    /// A beginning. Nobody has compared it with our source yet.
    Beginning { offset: u64, digest: String },
    /// More than the blob has.
    TooMuch { offset: u64 },
}

impl Standing {
    fn of(answer: &WriteContentResponse, size: u64) -> Standing {
        let offset = size_from_wire(answer.offset);
        match offset {
            _ if offset > size => Standing::TooMuch { offset },
            _ if offset == size && size > 0 => Standing::Whole,
            0 => Standing::Empty,
            _ => Standing::Beginning {
                offset,
                digest: answer.digest.clone(),
            },
        }
    }
}

/// One call of `write_blob`.
struct Writer<'a> {
    client: &'a Client,
    channel: Channel,
    lease: &'a str,
    spec: &'a BlobSpec,
    source: Arc<dyn BlobSource>,
    /// Bytes sent so far, over all passes.
    sent: u64,
    /// Whether others that were at the same blob have been waited for. Once is enough: they may come again and again.
    has_outwaited: bool,
}

enum Pass {
    Done(Written),
    Again(&'static str),
}

impl Writer<'_> {
    async fn write(mut self) -> Result<Written, Error> {
        if let Some(written) = self.at_once().await? {
            return Ok(written);
        }
        for pass in 1..=PASSES {
            match self.pass(pass == PASSES).await? {
                Pass::Done(written) => return Ok(written),
                Pass::Again(reason) => {
                    tracing::debug!(digest = %self.spec.digest, pass, reason, "writing again");
                }
            }
        }
        Err(self.fail(Failure::Contended))
    }

    /// Sends a small blob in one message, which opens its ingest, fills and commits it: asking first whether another
    /// namespace has it would take longer. `None` where that does not do: the blob is not small, somebody else has the
    /// ingest, or it holds what a pass has to clear away.
    async fn at_once(&mut self) -> Result<Option<Written>, Error> {
        let BlobSpec { digest, size, .. } = self.spec;
        if *size > WORTH_A_LOOK {
            return Ok(None);
        }
        let (source, spec) = (Arc::clone(&self.source), (digest.clone(), *size));
        let data = join(spawn_blocking(move || read_whole(&*source, &spec.0, spec.1))).await?;
        let message = WriteContentRequest {
            r#ref: ingest_ref(digest),
            offset: 0,
            // The digest says it all. For a total, containerd makes a file of its own while everybody else waits for its database.
            total: 0,
            data,
            ..self.commit_message()?
        };
        let failure = match self
            .client
            .open(self.channel.clone(), self.lease, &message)
            .await?
        {
            Ok(stream) => {
                let is_committed = stream.standing.action() == WriteAction::Commit;
                stream.finish().await;
                self.sent += size;
                self.count(*size);
                return Ok(is_committed.then_some(Written::Committed {
                    sent_bytes: self.sent,
                }));
            }
            Err(failure) if failure.is_locked() => return Ok(None),
            Err(failure) => failure,
        };
        // Either our bytes are the wrong ones, or what an interrupted write left was in the way of them.
        let ours = Hasher::of(digest).digest_of(&message.data);
        let proof = match ours == *digest {
            true => Proof::Foreign,
            false => Proof::Ours,
        };
        match self.settle(failure, proof, false).await? {
            Pass::Done(written) => Ok(Some(written)),
            Pass::Again(reason) => {
                tracing::debug!(%digest, reason, "writing again");
                Ok(None)
            }
        }
    }

    async fn pass(&mut self, last: bool) -> Result<Pass, Error> {
        let Some(stream) = self.open_alone().await? else {
            return self.take_present().await;
        };
        match Standing::of(&stream.standing, self.spec.size) {
            Standing::Empty => self.transfer(stream, 0, last).await,
            Standing::Whole => self.commit(stream, last).await,
            Standing::Beginning { offset, digest } => match self.begins_with(offset, digest).await {
                Ok(true) => self.transfer(stream, offset, last).await,
                Ok(false) => {
                    self.restart(stream, "the ingest does not begin like the blob")
                        .await
                }
                Err(error) => self.restart(stream, "the source failed").await.and(Err(error)),
            },
            Standing::TooMuch { offset } if last => {
                stream.finish().await;
                Err(self.wrong_size(&format!("containerd has {offset} bytes of it")))
            }
            Standing::TooMuch { .. } => self.restart(stream, "the ingest is longer than the blob").await,
        }
    }

    /// Opens the ingest like [`Writer::open`], but not while another importer sends the same blob under another name.
    async fn open_alone(&mut self) -> Result<Option<WriteStream>, Error> {
        let Some(stream) = self.open().await? else {
            return Ok(None);
        };
        let standing = Standing::of(&stream.standing, self.spec.size);
        let BlobSpec { digest, size, .. } = self.spec;
        let is_to_be_sent = standing != Standing::Whole && *size > WORTH_A_LOOK;
        if !is_to_be_sent || std::mem::replace(&mut self.has_outwaited, true) {
            return Ok(Some(stream));
        }
        let mut others = Others::of(digest, *size, self.client.options());
        let mut next = others.look(
            &self.client.ingests_of(digest).await?,
            Instant::now(),
            Timestamp::now(),
        );
        if next.is_none() {
            return Ok(Some(stream));
        }
        // Another of us may wait for our ingest meanwhile, or it would be left behind when the blob is there at last.
        stream.finish().await;
        if standing == Standing::Empty {
            self.client.clean_up(digest).await;
        }
        tracing::debug!(%digest, "another importer is sending the blob: waiting for it");
        while let Some(pause) = next {
            sleep(jittered(pause)).await;
            next = others.look(
                &self.client.ingests_of(digest).await?,
                Instant::now(),
                Timestamp::now(),
            );
        }
        self.open().await
    }

    /// Opens the ingest, waiting for somebody else to let go of it for as long as they get on with it. `None` means
    /// that the blob is there, and on the lease.
    async fn open(&self) -> Result<Option<WriteStream>, Error> {
        let Writer {
            client, lease, spec, ..
        } = self;
        let opening = stat(&spec.digest, spec.size)?;
        let limit = client.options().lock_wait;
        let (mut reached, mut since) = (None, Instant::now());
        let mut pause = LOCK_PAUSE.0;
        loop {
            let failure = match client.open(self.channel.clone(), lease, &opening).await? {
                Ok(stream) => return Ok(Some(stream)),
                Err(failure) if failure.is_already_exists() => return Ok(None),
                Err(failure) if failure.is_locked() => failure,
                Err(failure) => return Err(self.fail(failure)),
            };
            let now = self.progress_of_others().await?;
            if reached.replace(now) != Some(now) {
                since = Instant::now();
            } else if since.elapsed() >= limit {
                return Err(failure.into_locked(&spec.digest, since.elapsed()));
            }
            sleep(jittered(pause)).await;
            pause = (pause * 2).min(LOCK_PAUSE.1);
        }
    }

    /// How many bytes the ingest has by now, whoever writes it; `None` when it has just ended.
    async fn progress_of_others(&self) -> Result<Option<u64>, Error> {
        let reference = ingest_ref(&self.spec.digest);
        let ingests = self.client.ingests_beginning(&reference).await?;
        let ours = ingests.iter().find(|ingest| ingest.reference == reference);
        Ok(ours.map(|ingest| ingest.offset))
    }

    /// The blob was there, and opening its ingest has put it on the lease. Its labels are still somebody else's.
    async fn take_present(&self) -> Result<Pass, Error> {
        let BlobSpec { digest, size, .. } = self.spec;
        match self.client.blob(digest).await? {
            Some(info) if info.size != *size => {
                Err(self.wrong_size(&format!("containerd has it with {} bytes", info.size)))
            }
            Some(_) => Ok(Pass::Done(Written::Present)),
            None => Ok(Pass::Again("the blob was there and is gone")),
        }
    }

    /// Whether the source begins with the bytes of the ingest.
    async fn begins_with(&self, length: u64, found: String) -> Result<bool, Error> {
        let Ok(found) = digest::parse(&found) else {
            return Ok(false);
        };
        let hasher = Hasher::of(&found);
        let source = Arc::clone(&self.source);
        let stop = CancellationToken::new();
        let _stop_when_dropped = stop.clone().drop_guard();
        let hashed = spawn_blocking(move || hash_beginning(&*source, length, hasher, &stop));
        let digest = join(hashed)
            .await
            .map_err(|error| Error::source(&self.spec.digest, error))?;
        Ok(digest == found)
    }

    /// Sends the blob from `offset` on and commits it.
    async fn transfer(&mut self, stream: WriteStream, offset: u64, last: bool) -> Result<Pass, Error> {
        let WriteStream {
            requests,
            mut responses,
            ..
        } = stream;
        let queued = Arc::new(AtomicU64::new(offset));
        let stop = CancellationToken::new();
        let _stop_when_dropped = stop.clone().drop_guard();
        let feed = Feed {
            digest: self.spec.digest.clone(),
            size: self.spec.size,
            source: Arc::clone(&self.source),
            requests,
            queued: Arc::clone(&queued),
            stop,
            commit: self.commit_message()?,
        };
        let feeding = spawn_blocking(move || feed.run(offset));
        let committed = self.drain(&mut responses, offset, &queued).await;
        self.sent += queued.load(Ordering::Relaxed) - offset;
        match committed {
            Ok(()) => {
                say_goodbye(responses).await;
                Ok(Pass::Done(Written::Committed {
                    sent_bytes: self.sent,
                }))
            }
            // Our side hung up without COMMIT, and knows why.
            Err(Failure::Ended) => match join(feeding).await {
                Fed::Whole | Fed::HungUp => Err(self.fail(Failure::Ended)),
                Fed::Unfit(error) => {
                    drop(responses);
                    self.client.clean_up(&self.spec.digest).await;
                    Err(error)
                }
            },
            Err(failure) if failure.is_locked() => {
                drop(responses);
                self.outwait(failure).await
            }
            Err(failure) => {
                drop(responses);
                self.settle(failure, Proof::Ours, last).await
            }
        }
    }

    /// Waits for another write of the same ingest to come to its end. containerd opens an ingest of a blob that another
    /// namespace has for anybody who asks, and notices with the first byte only that it is taken.
    async fn outwait(&self, failure: Failure) -> Result<Pass, Error> {
        let limit = self.client.options().lock_wait;
        let (mut reached, mut since) = (None, Instant::now());
        let mut pause = LOCK_PAUSE.0;
        loop {
            sleep(jittered(pause)).await;
            pause = (pause * 2).min(LOCK_PAUSE.1);
            let now = self.progress_of_others().await?;
            if now.is_none() {
                return Ok(Pass::Again("another write of the blob has ended"));
            }
            if reached.replace(now) != Some(now) {
                since = Instant::now();
            } else if since.elapsed() >= limit {
                return Err(failure.into_locked(&self.spec.digest, since.elapsed()));
            }
        }
    }

    /// Commits an ingest that has all bytes without our having sent one in this pass.
    async fn commit(&mut self, stream: WriteStream, last: bool) -> Result<Pass, Error> {
        let WriteStream {
            requests,
            mut responses,
            ..
        } = stream;
        // A full or closed queue is impossible with an answered STAT in it, or told by the answer.
        let _ = requests.send(self.commit_message()?).await;
        drop(requests);
        let size = self.spec.size;
        match self.drain(&mut responses, size, &AtomicU64::new(size)).await {
            Ok(()) => {
                say_goodbye(responses).await;
                let sent_bytes = self.sent;
                let written = if sent_bytes == 0 {
                    Written::Adopted
                } else {
                    Written::Committed { sent_bytes }
                };
                Ok(Pass::Done(written))
            }
            Err(failure) => {
                drop(responses);
                self.settle(failure, Proof::Foreign, last).await
            }
        }
    }

    fn commit_message(&self) -> Result<WriteContentRequest, Error> {
        let BlobSpec {
            digest, size, labels, ..
        } = self.spec;
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

    /// Drains acknowledgements until COMMIT is answered.
    ///
    /// As long as bytes are under way, acknowledgements have to keep coming. While none are (the source is slow,
    /// or containerd syncs its disk for COMMIT, which may take minutes), containerd only has to answer other calls.
    /// Bytes that were queued a moment before the time is up have had no time to be acknowledged: they get their own.
    async fn drain(
        &self,
        responses: &mut Streaming<WriteContentResponse>,
        offset: u64,
        queued: &AtomicU64,
    ) -> Result<(), Failure> {
        let limit = self.client.options().stall;
        let mut acknowledged = offset;
        loop {
            let under_way = queued.load(Ordering::Relaxed) > acknowledged;
            match timeout(limit, responses.message()).await {
                Ok(Ok(Some(answer))) => {
                    let reached = size_from_wire(answer.offset);
                    self.count(reached.saturating_sub(acknowledged));
                    acknowledged = acknowledged.max(reached);
                    if answer.action() == WriteAction::Commit {
                        return Ok(());
                    }
                }
                Ok(Ok(None)) => return Err(Failure::Ended),
                Ok(Err(status)) => return Err(Failure::from(status)),
                Err(_) if under_way => return Err(Failure::Deadline(limit)),
                Err(_) if self.client.version().await.is_ok() => {}
                Err(_) => return Err(Failure::Deadline(limit)),
            }
        }
    }

    fn count(&self, acknowledged: u64) {
        if let Some(progress) = &self.spec.progress {
            progress.fetch_add(acknowledged, Ordering::Relaxed);
        }
    }

    /// Does what [`verdict`] says about a transfer or commit that failed.
    async fn settle(&self, failure: Failure, proof: Proof, last: bool) -> Result<Pass, Error> {
        let digest = &self.spec.digest;
        match verdict(&failure, proof, last) {
            Verdict::Present => self.hold_present().await,
            Verdict::CleanAndRetry(reason) => {
                self.client.clean_up(digest).await;
                Ok(Pass::Again(reason))
            }
            Verdict::BadContent => {
                self.client.clean_up(digest).await;
                Err(Error::content(
                    digest,
                    format!("containerd did not accept its bytes: {}", failure.message()),
                ))
            }
            Verdict::CleanAndFail => {
                self.client.clean_up(digest).await;
                Err(self.fail(failure))
            }
            Verdict::KeepAndFail => Err(self.fail_for_lease(failure).await),
        }
    }

    /// The blob appeared while we wrote it; COMMIT said so without putting it on the lease.
    async fn hold_present(&self) -> Result<Pass, Error> {
        match self
            .client
            .hold_blob(self.lease, &self.spec.digest, self.spec.size)
            .await?
        {
            Held::Held => self.take_present().await,
            Held::Absent => Ok(Pass::Again("the blob appeared and is gone")),
        }
    }

    /// Throws the ingest away for another pass. Truncating it in place is what containerd 1.6 gets wrong.
    async fn restart(&self, stream: WriteStream, reason: &'static str) -> Result<Pass, Error> {
        stream.finish().await;
        self.client.clean_up(&self.spec.digest).await;
        Ok(Pass::Again(reason))
    }

    /// When a lease ends, its ingests are swept away under their writers, who fail in ways of their own.
    async fn fail_for_lease(&self, failure: Failure) -> Error {
        let attempt = format!("write blob {}", self.spec.digest);
        if failure.is_answer() && matches!(self.client.has_lease(self.lease).await, Ok(false)) {
            return failure.into_lease_lost(self.lease, attempt);
        }
        self.client.fail_leased(failure, self.lease, attempt)
    }

    fn wrong_size(&self, found: &str) -> Error {
        Error::content(
            &self.spec.digest,
            format!("declared with {} bytes, but {found}", self.spec.size),
        )
    }

    fn fail(&self, failure: Failure) -> Error {
        self.client
            .fail_leased(failure, self.lease, format!("write blob {}", self.spec.digest))
    }
}

/// Whose bytes an ingest had when its commit failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// All were read from our source in this pass, sent or compared.
    Ours,
    /// Nobody knows.
    Foreign,
}

/// What a transfer or commit that failed calls for.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Present,
    CleanAndRetry(&'static str),
    BadContent,
    CleanAndFail,
    /// The ingest may be resumed.
    KeepAndFail,
}

fn verdict(failure: &Failure, proof: Proof, last: bool) -> Verdict {
    if failure.is_already_exists() {
        return Verdict::Present;
    }
    if failure.is_space() {
        return Verdict::CleanAndFail;
    }
    if failure.is_failed_precondition() {
        // All bytes were ours, and they are the wrong ones: sending them again changes nothing. A wrong size
        // with bytes of ours is the tail of an earlier ingest that was declared with another size.
        let hopeless = last || (proof == Proof::Ours && failure.is_digest_mismatch());
        return if hopeless {
            Verdict::BadContent
        } else {
            Verdict::CleanAndRetry("the ingest had bad bytes")
        };
    }
    if failure.is_out_of_range() {
        // containerd 1.6 loses count of an ingest whose blob was deleted and not collected yet.
        return if last {
            Verdict::CleanAndFail
        } else {
            Verdict::CleanAndRetry("the ingest lost its place")
        };
    }
    Verdict::KeepAndFail
}

/// Half the pause for certain, the other half by chance, so that two clients do not keep meeting.
fn jittered(pause: Duration) -> Duration {
    let chance = backoff::chance() % 1024;
    let half = pause / 2;
    half + half * u32::try_from(chance).expect("below 1024") / 1024
}

/// Waits for a thread; its panic becomes ours.
async fn join<T>(thread: JoinHandle<T>) -> T {
    match thread.await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => unreachable!("a blocking thread that has begun is not cancelled"),
        },
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    fn answer(offset: i64) -> WriteContentResponse {
        WriteContentResponse {
            offset,
            digest: "sha256:d".to_owned(),
            ..WriteContentResponse::default()
        }
    }

    #[test]
    fn an_ingest_is_judged_by_its_length() {
        let beginning = Standing::Beginning {
            offset: 4,
            digest: "sha256:d".to_owned(),
        };
        for (offset, size, standing) in [
            (0, 10, Standing::Empty),
            (0, 0, Standing::Empty),
            (4, 10, beginning),
            (10, 10, Standing::Whole),
            (11, 10, Standing::TooMuch { offset: 11 }),
            (1, 0, Standing::TooMuch { offset: 1 }),
        ] {
            assert_eq!(
                Standing::of(&answer(offset), size),
                standing,
                "{offset} of {size}"
            );
        }
    }

    #[test]
    fn a_failure_is_worth_another_pass_only_when_that_can_change_something() {
        use Proof::{Foreign, Ours};
        let mismatch = || Status::failed_precondition("unexpected commit digest sha256:a, expected sha256:b");
        let size = || Status::failed_precondition("unexpected commit size 90, expected 10");
        let space = || Status::unknown("write /x: no space left on device");
        let retry = |reason| Verdict::CleanAndRetry(reason);
        for (status, proof, last, expected) in [
            (Status::already_exists("x"), Ours, true, Verdict::Present),
            (mismatch(), Ours, false, Verdict::BadContent),
            (mismatch(), Foreign, false, retry("the ingest had bad bytes")),
            (mismatch(), Foreign, true, Verdict::BadContent),
            (size(), Ours, false, retry("the ingest had bad bytes")),
            (size(), Ours, true, Verdict::BadContent),
            (
                Status::out_of_range("write @5 must occur at 9"),
                Ours,
                false,
                retry("the ingest lost its place"),
            ),
            (
                Status::out_of_range("write @5 must occur at 9"),
                Ours,
                true,
                Verdict::CleanAndFail,
            ),
            (space(), Ours, false, Verdict::CleanAndFail),
            (
                Status::not_found("lease does not exist: not found"),
                Ours,
                false,
                Verdict::KeepAndFail,
            ),
            (
                Status::unavailable("transport is closing"),
                Ours,
                false,
                Verdict::KeepAndFail,
            ),
            (
                Status::unknown("context canceled"),
                Ours,
                false,
                Verdict::KeepAndFail,
            ),
        ] {
            let text = format!("{status:?} {proof:?} {last}");
            assert_eq!(verdict(&Failure::from(status), proof, last), expected, "{text}");
        }
        assert_eq!(
            verdict(&Failure::Deadline(Duration::from_secs(1)), Ours, true),
            Verdict::KeepAndFail
        );
        assert_eq!(verdict(&Failure::Ended, Ours, true), Verdict::KeepAndFail);
    }

    #[test]
    fn a_jittered_pause_is_between_half_and_whole() {
        let pauses: Vec<_> = (0..100).map(|_| jittered(Duration::from_millis(100))).collect();
        assert!(
            pauses.iter().all(|pause| (50..=100).contains(&pause.as_millis())),
            "{pauses:?}"
        );
        assert!(pauses.iter().any(|pause| *pause != pauses[0]), "no jitter");
    }
}
