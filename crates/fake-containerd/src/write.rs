//! The write stream: opening an ingest ref, the three actions, and the commit, with containerd's
//! rules and texts.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_stream::try_stream;
use futures_util::Stream;
use jiff::Timestamp;
use tonic::{Status, Streaming};

use crate::digest;
use crate::faults::Barrier;
use crate::service::{Call, Service};
use crate::state::{Blob, File, Ingest, Labels, Partial, State, check_labels, timestamp, without_empty};
use crate::wire::{WriteAction, WriteContentRequest, WriteContentResponse};

/// Time for which 1.x retries a locked ref before it gives up.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// Go's zero time, which 1.6 sends for an empty field.
const GO_ZERO: prost_types::Timestamp = prost_types::Timestamp {
    seconds: -62_135_596_800,
    nanos: 0,
};

/// One open stream. It holds the ref until it is dropped.
pub(crate) struct Session {
    service: Service,
    inbound: Streaming<WriteContentRequest>,
    writer: Writer,
    answered: u64,
}

/// The state of one stream that writes an ingest.
struct Writer {
    service: Service,
    call: Call,
    reference: String,
    ingest: u64,
    partial: Arc<Mutex<Partial>>,
    /// Digest and size of content in another namespace, until a byte is written.
    adopted: Option<(String, u64)>,
    total: i64,
    expected: String,
    started: Timestamp,
    /// Times and total of the last answer to a STAT.
    stated: WriteContentResponse,
}

/// The result of opening a ref.
enum Opening {
    Opened(Box<Writer>),
    Locked(Status),
}

/// Receives the first message, opens the ref and answers. Neither containerd nor the stand-in sends
/// headers before that.
pub(crate) async fn begin(
    service: &Service,
    call: Call,
    mut inbound: Streaming<WriteContentRequest>,
) -> Result<(WriteContentResponse, Session), Status> {
    let first = inbound.message().await?.ok_or_else(|| Status::unknown("EOF"))?;
    let writer = open(service, call, &first).await?;
    let mut session = Session {
        service: service.clone(),
        inbound,
        writer,
        answered: 0,
    };
    let answer = session.answer(first).await?;
    Ok((answer, session))
}

async fn open(service: &Service, call: Call, first: &WriteContentRequest) -> Result<Writer, Status> {
    if first.r#ref.is_empty() {
        return Err(Status::invalid_argument("first message must have a reference"));
    }
    let patience = {
        let mut state = service.state_for(&call);
        state.check_opening(&call, first);
        if state.version.waits_for_ref() {
            LOCK_PATIENCE
        } else {
            Duration::ZERO
        }
    };
    let started = Instant::now();
    loop {
        let opening = service.state_for(&call).open(service, &call, first)?;
        match opening {
            Opening::Opened(writer) => return Ok(*writer),
            Opening::Locked(status) if started.elapsed() >= patience => return Err(status),
            Opening::Locked(_) => tokio::time::sleep(LOCK_RETRY).await,
        }
    }
}

impl Session {
    /// Returns the answers to all messages, and the copy of the last answer that containerd sends
    /// at the end.
    pub(crate) fn answers(
        mut self,
        first: WriteContentResponse,
    ) -> impl Stream<Item = Result<WriteContentResponse, Status>> {
        try_stream! {
            let mut last = first;
            yield last.clone();
            while last.action != WriteAction::Commit as i32 {
                let Some(message) = self.inbound.message().await? else { break };
                last = self.answer(message).await?;
                yield last.clone();
            }
            drop(self);
            yield last;
        }
    }

    async fn answer(&mut self, message: WriteContentRequest) -> Result<WriteContentResponse, Status> {
        let commit = message.action == WriteAction::Commit as i32;
        let obstacle = self.service.state().faults.on_message(self.answered, commit);
        obstacle.met().await?;
        let answer = {
            let mut state = self.service.state_for(&self.writer.call);
            let answer = self.writer.act(&mut state, message);
            state.settle();
            answer
        };
        self.answered += 1;
        answer
    }
}

impl State {
    /// Checks an opening for violations that containerd accepts.
    fn check_opening(&mut self, call: &Call, first: &WriteContentRequest) {
        self.check_ref(&first.r#ref, &first.expected);
        if call.lease.is_none() {
            self.violation(format!(
                "the ingest ref {:?} was opened without a lease",
                first.r#ref
            ));
        }
        let named = digest::within(&first.r#ref).map(str::to_owned);
        let present = named.filter(|digest| self.blob(&call.namespace, digest).is_some());
        if let Some(digest) = present.filter(|_| first.expected.is_empty()) {
            self.violation(format!(
                "{digest} is present but was opened for writing without `expected`"
            ));
        }
    }

    fn open(
        &mut self,
        service: &Service,
        call: &Call,
        first: &WriteContentRequest,
    ) -> Result<Opening, Status> {
        if self.faults.ref_is_locked() {
            return Err(locked(call, &first.r#ref, 1, self.now(), self.now()));
        }
        if self.blob(&call.namespace, &first.expected).is_some() {
            self.protect(&call.namespace, call.lease.as_deref(), "content", &first.expected)
                .map_err(|error| {
                    Status::new(
                        error.code(),
                        format!("unable to lease content: {}", error.message()),
                    )
                })?;
            self.changed(call.rpc, &call.namespace, &first.expected, call.lease.as_deref());
            self.settle();
            return Err(Status::already_exists(format!(
                "content {}: already exists",
                first.expected
            )));
        }
        self.protect(&call.namespace, call.lease.as_deref(), "ingests", &first.r#ref)?;
        let now = self.now();
        let adopted = self.adoptable(first);
        let absent = self.version.zero_times().then_some(GO_ZERO);
        let ingest = self.ingest(call, first, adopted.as_ref());
        if let Some(since) = ingest.locked {
            return Ok(Opening::Locked(locked(call, &first.r#ref, ingest.id, since, now)));
        }
        ingest.locked = Some(now);
        let writer = Writer {
            service: service.clone(),
            call: call.clone(),
            reference: first.r#ref.clone(),
            ingest: ingest.id,
            partial: Arc::clone(&ingest.partial),
            adopted,
            total: if first.total > 0 {
                first.total
            } else {
                ingest.total
            },
            expected: String::new(),
            started: ingest.started,
            stated: WriteContentResponse {
                started_at: absent,
                updated_at: absent,
                ..Default::default()
            },
        };
        Ok(Opening::Opened(Box::new(writer)))
    }

    /// Returns content of another namespace that this namespace may adopt without receiving bytes.
    fn adoptable(&self, first: &WriteContentRequest) -> Option<(String, u64)> {
        let file = self.files.get(&first.expected)?;
        let fits = first.total == 0 || u64::try_from(first.total) == Ok(file.size);
        fits.then(|| (first.expected.clone(), file.size))
    }

    /// Returns the ingest under a ref: a new ingest, or an abandoned ingest that it resumes.
    fn ingest(
        &mut self,
        call: &Call,
        first: &WriteContentRequest,
        adopted: Option<&(String, u64)>,
    ) -> &mut Ingest {
        let (now, expires, id) = (self.now(), self.ingest_expiry(), self.next_number());
        let keep = self.keeps(first.total);
        let hasher = digest::hasher_for(&first.expected, self.version.sha512());
        let ingest = self
            .namespace_mut(&call.namespace)
            .ingests
            .entry(first.r#ref.clone())
            .or_insert_with(|| Ingest {
                id,
                started: now,
                updated: now,
                total: first.total,
                expected: None,
                expires: None,
                locked: None,
                partial: Arc::new(Mutex::new(Partial::empty(keep, hasher))),
                seeded: false,
            });
        if ingest.locked.is_some() {
            return ingest;
        }
        ingest.seeded = call.foreign;
        ingest.expected = adopted.map(|(digest, _)| digest.clone());
        if call.lease.is_none() {
            ingest.expires = Some(expires);
        }
        let mut partial = ingest.partial.lock().expect("no holder of this lock panics");
        if first.total > 0 && ingest.total > 0 && first.total != ingest.total {
            partial.rewind();
            ingest.total = first.total;
        } else {
            partial.resume();
        }
        drop(partial);
        ingest
    }

    /// Returns true if the bytes of a blob of this size are kept.
    fn keeps(&self, total: i64) -> bool {
        self.config
            .discard_data_above
            .is_none_or(|limit| u64::try_from(total).is_ok_and(|total| total <= limit))
    }
}

fn locked(call: &Call, reference: &str, id: u64, since: Timestamp, now: Timestamp) -> Status {
    let held = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    let text = format!(
        "ref {}/{id}/{reference} locked for {held:?} (since {since}): unavailable",
        call.namespace
    );
    Status::unavailable(text)
}

impl Writer {
    fn offset(&self) -> u64 {
        match &self.adopted {
            Some((_, size)) => *size,
            None => self.partial().offset,
        }
    }

    fn partial(&self) -> std::sync::MutexGuard<'_, Partial> {
        self.partial.lock().expect("no holder of this lock panics")
    }

    fn digest(&self) -> String {
        match &self.adopted {
            Some((digest, _)) => digest.clone(),
            None => self.partial().hasher.clone().finish().to_string(),
        }
    }

    /// Runs one message, with containerd's order of checks.
    fn act(
        &mut self,
        state: &mut State,
        message: WriteContentRequest,
    ) -> Result<WriteContentResponse, Status> {
        if message.total > 0 {
            self.total = message.total;
        }
        if !message.expected.is_empty() {
            self.expected.clone_from(&message.expected);
            if state.blob(&self.call.namespace, &self.expected).is_some() {
                state.drop_ingest(&self.call.namespace, &self.reference);
                let text = format!("blob with expected digest {} exists", self.expected);
                return Err(Status::already_exists(text));
            }
        }
        match message.action() {
            WriteAction::Stat => {}
            WriteAction::Write => self.take(state, &message)?,
            WriteAction::Commit => {
                self.take(state, &message)?;
                self.commit(state, message.labels.into_iter().collect())?;
            }
        }
        Ok(self.response(state, message.action))
    }

    /// Returns the answer to a message. containerd sets times and total in the answer to a STAT.
    /// All later answers of the stream repeat them.
    fn response(&mut self, state: &State, action: i32) -> WriteContentResponse {
        if action == WriteAction::Stat as i32 {
            self.stated = WriteContentResponse {
                started_at: Some(timestamp(self.started)),
                updated_at: Some(timestamp(state.now())),
                total: self.total,
                ..Default::default()
            };
        }
        WriteContentResponse {
            action,
            offset: i64::try_from(self.offset()).unwrap_or(i64::MAX),
            digest: self.digest(),
            ..self.stated.clone()
        }
    }

    /// Writes the data of a WRITE or COMMIT, after checking the offset.
    fn take(&mut self, state: &mut State, message: &WriteContentRequest) -> Result<(), Status> {
        let current = self.offset();
        if message.offset > 0 && u64::try_from(message.offset) != Ok(current) {
            let text = format!("write @{} must occur at current offset {current}", message.offset);
            return Err(Status::out_of_range(text));
        }
        if is_whole(message) {
            // Sending it is cheaper than asking for it.
            self.adopted = None;
        }
        if message.offset == 0 && current > 0 {
            if message.action() == WriteAction::Commit && !is_whole(message) {
                state.violation(format!(
                    "{} was committed with offset 0 after {current} bytes, which throws them away",
                    self.reference
                ));
            }
            self.truncate(state);
        }
        if message.data.is_empty() {
            return Ok(());
        }
        if let Some((digest, size)) = self.adopted.take() {
            state.violation(format!(
                "bytes of {digest} were sent although all {size} could be adopted"
            ));
        }
        self.store(state, &message.data)
    }

    fn truncate(&mut self, state: &mut State) {
        if let Some((digest, size)) = self.adopted.take() {
            state.violation(format!(
                "{digest} was rewritten although all {size} bytes could be adopted"
            ));
        }
        let mut partial = self.partial();
        state.faults.free(partial.length);
        partial.truncate();
    }

    fn store(&mut self, state: &mut State, data: &[u8]) -> Result<(), Status> {
        let (admitted, barrier) = state.faults.admit(data.len() as u64);
        let admitted = usize::try_from(admitted).expect("not more than the message holds");
        self.partial().write(&data[..admitted]);
        if !self.call.foreign {
            *state.log.received.entry(self.subject()).or_default() += admitted as u64;
        }
        let now = state.now();
        if let Some(ingest) = self.ingest(state) {
            ingest.updated = now;
        }
        state.mutated = true;
        if state.faults.lease_vanishes() {
            self.lose_lease(state);
        }
        match barrier {
            None => Ok(()),
            Some(Barrier::DiskFull) => Err(Status::unknown(format!(
                "failed write: write /var/lib/containerd/io.containerd.content.v1.content/ingest/{}/data: no space left on device",
                self.ingest
            ))),
            Some(Barrier::CutStream) => Err(Status::unavailable("transport is closing")),
            Some(Barrier::CutConnections) => {
                self.service.connections.break_all();
                Err(Status::unavailable("transport is closing"))
            }
        }
    }

    /// Returns the digest under which these bytes are counted.
    fn subject(&self) -> String {
        if !self.expected.is_empty() {
            return self.expected.clone();
        }
        digest::within(&self.reference)
            .unwrap_or(&self.reference)
            .to_owned()
    }

    /// Returns the ingest, unless it was aborted or collected while the stream was open.
    fn ingest<'a>(&self, state: &'a mut State) -> Option<&'a mut Ingest> {
        let ingest = state
            .namespace_mut(&self.call.namespace)
            .ingests
            .get_mut(&self.reference)?;
        (ingest.id == self.ingest).then_some(ingest)
    }

    fn lose_lease(&self, state: &mut State) {
        if let Some(lease) = &self.call.lease {
            state.namespace_mut(&self.call.namespace).leases.remove(lease);
            state.collect();
        }
    }

    fn commit(&mut self, state: &mut State, labels: Labels) -> Result<(), Status> {
        let (digest, size) = (self.digest(), self.offset());
        check_labels(&labels)?;
        self.check_commit(state, &digest, size)?;
        if self.ingest(state).is_none() {
            let text = format!("rename ingest/{}/data: no such file or directory", self.ingest);
            return Err(Status::unknown(text));
        }
        let bytes = self.store_file(state, &digest, size);
        let lease = self.call.lease.clone();
        state.protect(&self.call.namespace, lease.as_deref(), "content", &digest)?;
        state.drop_ingest(&self.call.namespace, &self.reference);
        if state.blob(&self.call.namespace, &digest).is_some() {
            return Err(Status::already_exists(format!(
                "content {digest}: already exists"
            )));
        }
        let labels = without_empty(labels);
        if let Some(bytes) = bytes {
            state.check_committed_parent(&digest, &bytes, &labels);
        }
        state.check_snapshot_labels(&self.call.namespace, &digest, &labels);
        self.enter(state, &digest, size, labels);
        if state.faults.lease_vanishes_at_commit() {
            self.lose_lease(state);
        }
        Ok(())
    }

    fn check_commit(&self, state: &mut State, digest: &str, size: u64) -> Result<(), Status> {
        let refused = |text: String| {
            Err(Status::failed_precondition(format!(
                "{text}: failed precondition"
            )))
        };
        if state.faults.refuses_commit() {
            let other = digest::sha256(digest.as_bytes());
            return refused(format!(
                "unexpected commit digest {other}, expected {}",
                self.expected
            ));
        }
        if self.total > 0 && u64::try_from(self.total) != Ok(size) {
            return refused(format!(
                "{:?} failed size validation: {size} != {}",
                self.reference, self.total
            ));
        }
        if self.adopted.is_none() {
            let length = self.partial().length;
            if length != size {
                return refused(format!("unexpected commit size {length}, expected {size}"));
            }
        }
        if !self.expected.is_empty() && self.expected != digest {
            return refused(format!(
                "unexpected commit digest {digest}, expected {}",
                self.expected
            ));
        }
        Ok(())
    }

    /// Adds the bytes to the shared store, where they stay even if the rest of the commit fails.
    fn store_file(&mut self, state: &mut State, digest: &str, size: u64) -> Option<Arc<Vec<u8>>> {
        if self.adopted.is_none() && !state.files.contains_key(digest) {
            let mut partial = self.partial();
            let bytes = partial
                .bytes
                .as_mut()
                .map(|bytes| Arc::new(std::mem::take(bytes)));
            partial.truncate();
            drop(partial);
            state.files.insert(digest.to_owned(), File { size, bytes });
        }
        self.adopted = Some((digest.to_owned(), size));
        state.files.get(digest).and_then(|file| file.bytes.clone())
    }

    fn enter(&self, state: &mut State, digest: &str, size: u64, labels: Labels) {
        let now = state.now();
        let blob = Blob {
            size,
            labels,
            created: now,
            updated: now,
        };
        state
            .namespace_mut(&self.call.namespace)
            .blobs
            .insert(digest.to_owned(), blob);
        state.changed(
            self.call.rpc,
            &self.call.namespace,
            digest,
            self.call.lease.as_deref(),
        );
        if state.version.content_create_events() {
            let size = i64::try_from(size).unwrap_or(i64::MAX);
            let event = containerd_client::events::ContentCreate {
                digest: digest.to_owned(),
                size,
            };
            state.publish(&self.call.namespace, "/content/create", digest, &event);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let service = self.service.clone();
        if let Some(ingest) = self.ingest(&mut service.state()) {
            ingest.locked = None;
        }
    }
}

/// Returns true if a message has all of a small blob and commits it. It need not give the size.
fn is_whole(message: &WriteContentRequest) -> bool {
    const SMALL: usize = 64 << 10;
    message.action() == WriteAction::Commit
        && !message.data.is_empty()
        && message.data.len() <= SMALL
        && (message.total == 0 || usize::try_from(message.total) == Ok(message.data.len()))
}
