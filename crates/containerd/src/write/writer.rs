//! One write of a blob, as passes over its ingest. Each pass ends in a blob, an error or another
//! pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use basics::backoff::{self, chance};
use basics::counted;
use basics::digest::{self, Hasher};
use containerd_client::services::v1::{WriteAction, WriteContentRequest};
use jiff::Timestamp;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::feed::{Fed, Feed, hash_beginning, read_whole};
use super::lock::Lock;
use super::others::Others;
use super::stream::{self, WriteStream};
use super::verdict::{Proof, Standing, Verdict, verdict};
use super::{BlobSource, BlobSpec, Held, Written};
use crate::Client;
use crate::content::ingest_ref;
use crate::error::{Error, Failure};

/// Passes of one `write_blob`. Two would do. The third is for a race with another client.
const PASSES: usize = 3;
/// Largest blob, in bytes, that is sent without a look for another importer of the same blob.
/// Sending so few bytes takes less time than the look.
const WORTH_A_LOOK: u64 = 64 << 10;

/// One call of `write_blob`.
pub(super) struct Writer<'a> {
    client: &'a Client,
    channel: Channel,
    lease: &'a str,
    spec: &'a BlobSpec,
    source: Arc<dyn BlobSource>,
    /// Bytes sent so far, over all passes.
    sent: u64,
    /// True after one wait for other importers of the same blob. Others may come again and again,
    /// so the client waits for them only once.
    has_outwaited: bool,
}

enum Pass {
    Done(Written),
    Again(&'static str),
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        client: &'a Client,
        channel: Channel,
        lease: &'a str,
        spec: &'a BlobSpec,
        source: Arc<dyn BlobSource>,
    ) -> Writer<'a> {
        Writer {
            client,
            channel,
            lease,
            spec,
            source,
            sent: 0,
            has_outwaited: false,
        }
    }

    /// Writes the blob.
    pub(super) async fn write(mut self) -> Result<Written, Error> {
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

    /// Sends a small blob in one message that opens, fills and commits its ingest. Asking first
    /// whether another namespace has the blob would take longer.
    ///
    /// Returns `None` if a pass must write the blob: the blob is large, another writer has the
    /// ingest, or the ingest has bytes that a pass must clear.
    async fn at_once(&mut self) -> Result<Option<Written>, Error> {
        let BlobSpec { digest, size, .. } = self.spec;
        if *size > WORTH_A_LOOK {
            return Ok(None);
        }
        let (source, spec) = (Arc::clone(&self.source), (digest.clone(), *size));
        let data = join(spawn_blocking(move || read_whole(&*source, &spec.0, spec.1))).await?;
        let message = stream::whole(self.spec, data)?;
        let failure = match self.open_with(&message).await? {
            Ok(stream) => {
                let is_committed = stream.standing.action() == WriteAction::Commit;
                stream.finish().await;
                self.sent += size;
                self.spec.acknowledge(*size);
                return Ok(is_committed.then_some(Written::Committed {
                    sent_bytes: self.sent,
                }));
            }
            Err(failure) if failure.is_locked() => return Ok(None),
            Err(failure) => failure,
        };
        // Either the source has the wrong bytes, or the leftovers of an interrupted write were in
        // the way.
        let proof = match digest::fits(&message.data, digest) {
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
                Err(self.wrong_size(&format!("containerd has {} of it", counted(offset, "byte"))))
            }
            Standing::TooMuch { .. } => self.restart(stream, "the ingest is longer than the blob").await,
        }
    }

    /// Opens the ingest like [`Writer::open`], but waits while another importer sends the same blob
    /// under another name.
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
        let mut next = self.look_at(&mut others).await?;
        if next.is_none() {
            return Ok(Some(stream));
        }
        // Release the ingest: another airgapd may wait for it meanwhile. Abort an empty ingest,
        // which would be left behind once the blob is committed.
        stream.finish().await;
        if standing == Standing::Empty {
            self.client.clean_up(digest).await;
        }
        tracing::debug!(%digest, "another importer is sending the blob: waiting for it");
        while let Some(pause) = next {
            sleep(backoff::jittered(pause, chance())).await;
            next = self.look_at(&mut others).await?;
        }
        self.open().await
    }

    /// Looks at the ingests that may become the blob. Returns the pause before the next look, or
    /// `None` if there is nothing to wait for.
    async fn look_at(&self, others: &mut Others<'_>) -> Result<Option<Duration>, Error> {
        let ingests = self.client.ingests_of(&self.spec.digest).await?;
        Ok(others.look(&ingests, Instant::now(), Timestamp::now()))
    }

    async fn open_with(&self, opening: &WriteContentRequest) -> Result<Result<WriteStream, Failure>, Error> {
        WriteStream::open(self.client, self.channel.clone(), self.lease, opening).await
    }

    /// Opens the ingest, and waits while another writer has it and makes progress. Returns `None`
    /// if the blob exists. It is then under the lease.
    async fn open(&self) -> Result<Option<WriteStream>, Error> {
        let opening = stream::stat(&self.spec.digest, self.spec.size)?;
        let mut lock = Lock::new(self.client.options().lock_wait);
        loop {
            let failure = match self.open_with(&opening).await? {
                Ok(stream) => return Ok(Some(stream)),
                Err(failure) if failure.is_already_exists() => return Ok(None),
                Err(failure) if failure.is_locked() => failure,
                Err(failure) => return Err(self.fail(failure)),
            };
            let reached = self.progress_of_others().await?;
            if let Some(waited) = lock.stands_still(reached, Instant::now()) {
                return Err(failure.into_locked(&self.spec.digest, waited));
            }
            sleep(lock.pause(chance())).await;
        }
    }

    /// Returns the number of bytes in the ingest by now, from any writer, or `None` if the ingest
    /// has ended.
    async fn progress_of_others(&self) -> Result<Option<u64>, Error> {
        let reference = ingest_ref(&self.spec.digest);
        let ingests = self.client.ingests_beginning(&reference).await?;
        let ours = ingests.iter().find(|ingest| ingest.reference == reference);
        Ok(ours.map(|ingest| ingest.offset))
    }

    /// Takes a blob that existed before this write. Opening its ingest has put it under the lease.
    /// The blob keeps its labels.
    async fn take_present(&self) -> Result<Pass, Error> {
        let BlobSpec { digest, size, .. } = self.spec;
        match self.client.blob(digest).await? {
            Some(info) if info.size != *size => {
                Err(self.wrong_size(&format!("containerd has it with {}", counted(info.size, "byte"))))
            }
            Some(_) => Ok(Pass::Done(Written::Present)),
            None => Ok(Pass::Again("the blob was there and is gone")),
        }
    }

    /// Returns true if the source begins with the bytes of the ingest.
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
            mut answers,
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
            commit: stream::commit(self.spec)?,
        };
        let feeding = spawn_blocking(move || feed.run(offset));
        let committed = answers
            .until_commit(self.client, self.spec, offset, &queued)
            .await;
        self.sent += queued.load(Ordering::Relaxed) - offset;
        match committed {
            Ok(()) => {
                answers.finish().await;
                Ok(Pass::Done(Written::Committed {
                    sent_bytes: self.sent,
                }))
            }
            // The feed closed the stream without COMMIT and knows the reason.
            Err(Failure::Ended) => match join(feeding).await {
                Fed::Whole | Fed::HungUp => Err(self.fail(Failure::Ended)),
                Fed::Unfit(error) => {
                    drop(answers);
                    self.client.clean_up(&self.spec.digest).await;
                    Err(error)
                }
            },
            Err(failure) if failure.is_locked() => {
                drop(answers);
                self.outwait(failure).await
            }
            Err(failure) => {
                drop(answers);
                self.settle(failure, Proof::Ours, last).await
            }
        }
    }

    /// Waits for another write of the same ingest to end. If another namespace has the blob,
    /// containerd opens its ingest for any client that asks. It notices only at the first byte that
    /// another client has the ingest.
    async fn outwait(&self, failure: Failure) -> Result<Pass, Error> {
        let mut lock = Lock::new(self.client.options().lock_wait);
        loop {
            sleep(lock.pause(chance())).await;
            let reached = self.progress_of_others().await?;
            if reached.is_none() {
                return Ok(Pass::Again("another write of the blob has ended"));
            }
            if let Some(waited) = lock.stands_still(reached, Instant::now()) {
                return Err(failure.into_locked(&self.spec.digest, waited));
            }
        }
    }

    /// Commits an ingest that has all bytes, none of them sent in this pass.
    async fn commit(&mut self, stream: WriteStream, last: bool) -> Result<Pass, Error> {
        let WriteStream {
            requests,
            mut answers,
            ..
        } = stream;
        // The queue cannot be full after an answered STAT. If it is closed, the answer gives the
        // reason.
        let _ = requests.send(stream::commit(self.spec)?).await;
        drop(requests);
        let size = self.spec.size;
        let all_queued = AtomicU64::new(size);
        match answers
            .until_commit(self.client, self.spec, size, &all_queued)
            .await
        {
            Ok(()) => {
                answers.finish().await;
                let sent_bytes = self.sent;
                let written = if sent_bytes == 0 {
                    Written::Adopted
                } else {
                    Written::Committed { sent_bytes }
                };
                Ok(Pass::Done(written))
            }
            Err(failure) => {
                drop(answers);
                self.settle(failure, Proof::Foreign, last).await
            }
        }
    }

    /// Carries out the [`verdict`] on a failed transfer or commit.
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
                Err(Error::content(digest, failure.reason_of_bytes(digest)))
            }
            Verdict::CleanAndFail => {
                self.client.clean_up(digest).await;
                Err(self.fail(failure))
            }
            Verdict::KeepAndFail => Err(self.fail_for_lease(failure).await),
        }
    }

    /// Puts a blob under the lease that appeared during the write. COMMIT reported the blob and did
    /// not do that.
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

    /// Aborts the ingest for another pass. Truncating it in place goes wrong on containerd 1.6.
    async fn restart(&self, stream: WriteStream, reason: &'static str) -> Result<Pass, Error> {
        stream.finish().await;
        self.client.clean_up(&self.spec.digest).await;
        Ok(Pass::Again(reason))
    }

    /// Makes the error for a failure, which may come from the end of the lease. When a lease ends,
    /// containerd removes its ingests, and their writers fail in various ways.
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
            format!("declared with {}, but {found}", counted(self.spec.size, "byte")),
        )
    }

    fn fail(&self, failure: Failure) -> Error {
        self.client
            .fail_leased(failure, self.lease, format!("write blob {}", self.spec.digest))
    }
}

/// Waits for a thread and passes its panic on.
async fn join<T>(thread: JoinHandle<T>) -> T {
    match thread.await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => unreachable!("a blocking thread that has begun is not cancelled"),
        },
    }
}
