//! Help for scenarios: unique blobs, sources that can be stopped half-way, and a raw client that
//! plays another tool.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use basics::digest;
use containerd::{BlobSource, BlobSpec};
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::{WriteAction, WriteContentRequest, WriteContentResponse};
use harness::{PATIENCE, Stage, unique};
use oci_spec::image::Digest;

/// Size in bytes of the pieces in which the client sends blobs.
pub(crate) const CHUNK: usize = 512 << 10;

/// Returns an expiry of a lease that no test outlives.
pub(crate) fn tomorrow() -> jiff::Timestamp {
    jiff::Timestamp::now() + jiff::Span::new().hours(24)
}

/// Bytes with their digest.
#[derive(Clone)]
pub(crate) struct Blob {
    pub(crate) bytes: Arc<Vec<u8>>,
    pub(crate) digest: Digest,
}

impl Blob {
    pub(crate) fn of(bytes: Vec<u8>) -> Blob {
        let digest = digest::sha256(&bytes);
        Blob {
            bytes: Arc::new(bytes),
            digest,
        }
    }

    /// Returns a blob with bytes that are unique to this test.
    pub(crate) fn sized(size: usize) -> Blob {
        let mut seed = digest::sha256(unique().as_bytes());
        let mut bytes = Vec::with_capacity(size + seed.digest().len());
        while bytes.len() < size {
            bytes.extend_from_slice(seed.digest().as_bytes());
            seed = digest::sha256(seed.digest().as_bytes());
        }
        bytes.truncate(size);
        Blob::of(bytes)
    }

    /// Returns the same bytes under their sha512 digest.
    pub(crate) fn named_by_sha512(&self) -> Blob {
        Blob {
            bytes: Arc::clone(&self.bytes),
            digest: digest::sha512(&self.bytes),
        }
    }

    /// Returns the same bytes with a wrong first byte, still under the digest of the right bytes.
    pub(crate) fn corrupted(&self) -> Blob {
        let mut bytes = self.bytes.to_vec();
        bytes[0] ^= 1;
        Blob {
            bytes: Arc::new(bytes),
            digest: self.digest.clone(),
        }
    }

    pub(crate) fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(crate) fn spec(&self) -> BlobSpec {
        BlobSpec::new(self.digest.clone(), self.size())
    }

    pub(crate) fn source(&self) -> Arc<Counted> {
        Arc::new(Counted {
            bytes: Arc::clone(&self.bytes),
            read: Arc::default(),
            opened: AtomicU64::new(0),
        })
    }
}

/// A source that counts its reads.
pub(crate) struct Counted {
    bytes: Arc<Vec<u8>>,
    read: Arc<AtomicU64>,
    opened: AtomicU64,
}

impl Counted {
    pub(crate) fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }
}

impl BlobSource for Counted {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Gated::new(
            Arc::clone(&self.bytes),
            offset,
            Arc::clone(&self.read),
            None,
        )))
    }
}

/// A source that pauses before the byte at `pause_at`, once, until released.
pub(crate) struct Paused {
    bytes: Arc<Vec<u8>>,
    gate: Arc<Gate>,
}

impl Paused {
    pub(crate) fn new(blob: &Blob, pause_at: usize) -> Arc<Paused> {
        let gate = Gate {
            pause_at,
            ..Gate::default()
        };
        Arc::new(Paused {
            bytes: Arc::clone(&blob.bytes),
            gate: Arc::new(gate),
        })
    }

    pub(crate) fn release(&self) {
        self.gate.state().released = true;
        self.gate.changed.notify_all();
    }

    /// Readers that have been opened and not dropped yet.
    pub(crate) fn readers(&self) -> usize {
        self.gate.state().readers
    }
}

impl BlobSource for Paused {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let gate = Some(Arc::clone(&self.gate));
        Ok(Box::new(Gated::new(
            Arc::clone(&self.bytes),
            offset,
            Arc::default(),
            gate,
        )))
    }
}

#[derive(Default)]
struct Gate {
    pause_at: usize,
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    released: bool,
    readers: usize,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) {
        let waited = self
            .changed
            .wait_timeout_while(self.state(), 2 * PATIENCE, |state| !state.released);
        assert!(
            !waited.expect("no reader panics").1.timed_out(),
            "the source was never released"
        );
    }
}

struct Gated {
    bytes: Arc<Vec<u8>>,
    offset: usize,
    read: Arc<AtomicU64>,
    gate: Option<Arc<Gate>>,
}

impl Gated {
    fn new(bytes: Arc<Vec<u8>>, offset: u64, read: Arc<AtomicU64>, gate: Option<Arc<Gate>>) -> Gated {
        if let Some(gate) = &gate {
            gate.state().readers += 1;
        }
        Gated {
            bytes,
            offset: usize::try_from(offset).expect("fits"),
            read,
            gate,
        }
    }
}

impl Drop for Gated {
    fn drop(&mut self) {
        if let Some(gate) = &self.gate {
            gate.state().readers -= 1;
        }
    }
}

impl Read for Gated {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut end = self.bytes.len();
        if let Some(gate) = &self.gate {
            if self.offset < gate.pause_at {
                end = end.min(gate.pause_at);
            } else {
                gate.wait();
            }
        }
        let rest = &self.bytes[self.offset.min(end)..end];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.offset += length;
        self.read.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

/// A source that fails at the byte at `fail_at`.
pub(crate) struct Failing {
    good: Vec<u8>,
}

impl Failing {
    pub(crate) fn new(blob: &Blob, fail_at: usize) -> Failing {
        Failing {
            good: blob.bytes[..fail_at].to_vec(),
        }
    }
}

impl BlobSource for Failing {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("the medium is gone"))
            }
        }
        let rest = self.good[usize::try_from(offset).expect("fits")..].to_vec();
        Ok(Box::new(io::Cursor::new(rest).chain(Broken)))
    }
}

/// Makes a connection for another tool.
pub(crate) fn channel(stage: &Stage) -> tonic::transport::Channel {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("unix://{}", stage.socket().display()));
    endpoint.expect("a socket path").connect_lazy()
}

/// Returns a message of another tool to the stage's namespace.
pub(crate) fn request<T>(stage: &Stage, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let namespace = stage.namespace().parse().expect("ascii");
    request.metadata_mut().insert("containerd-namespace", namespace);
    request
}

/// Returns a message like [`request`] that puts its effects under a lease.
pub(crate) fn leased_request<T>(stage: &Stage, lease: &str, message: T) -> tonic::Request<T> {
    let mut request = request(stage, message);
    let lease = lease.parse().expect("ascii");
    request.metadata_mut().insert("containerd-lease", lease);
    request
}

/// Writes a blob in one message under the given ref, as another tool would. Without `commit` the
/// bytes stay an ingest declared with `total` bytes.
pub(crate) async fn raw_write(
    stage: &Stage,
    lease: &str,
    reference: &str,
    blob: &Blob,
    total: u64,
    commit: bool,
) {
    let action = if commit {
        WriteAction::Commit
    } else {
        WriteAction::Write
    };
    let message = WriteContentRequest {
        action: action.into(),
        r#ref: reference.to_owned(),
        total: i64::try_from(total).expect("fits"),
        expected: blob.digest.to_string(),
        data: blob.bytes.to_vec(),
        ..WriteContentRequest::default()
    };
    let request = leased_request(stage, lease, tokio_stream::iter([message]));
    let answer = ContentClient::new(channel(stage))
        .write(request)
        .await
        .expect("the write is taken");
    let mut stream = answer.into_inner();
    let mut last: Option<WriteContentResponse> = None;
    while let Some(answer) = stream.message().await.expect("the write goes on") {
        last = Some(answer);
    }
    assert_eq!(
        last.expect("an answer").offset,
        i64::try_from(blob.size()).expect("fits")
    );
}
