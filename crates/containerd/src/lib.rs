//! A typed client of containerd, bound to one namespace.
//!
//! The client knows containerd's services, their traps and their error texts. It knows nothing of
//! bundles. No gRPC type and no gRPC code leaves this crate.
//!
//! Everything that the client writes is either finished or can be found again. Blobs under way are
//! ingests named after their digest, and a lease that expires protects them. So every future here
//! may be dropped at any await. Where a dropped call leaves something behind, its documentation
//! says so.
//!
//! Any call can fail because the connection breaks, containerd does not answer, or containerd
//! refuses. `# Errors` sections name the variants of [`Error`] that have a special meaning.
//!
//! ```no_run
//! # async fn example() -> Result<(), containerd::Error> {
//! let containerd = containerd::Client::connect("/run/containerd/containerd.sock".as_ref(), "k8s.io").await?;
//! for image in containerd.images().await? {
//!     tracing::info!(name = image.name, digest = %image.target.digest());
//! }
//! # Ok(()) }
//! ```

mod connect;
mod containers;
mod content;
mod cri;
mod error;
mod events;
mod images;
mod introspection;
mod leases;
mod parts;
mod snapshots;
mod wire;
mod write;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use basics::foreign;
use tokio::time::timeout;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

pub use connect::Options;
pub use containers::Container;
pub use content::{BlobInfo, BlobReader, INGEST_PREFIX, Ingest, ingest_ref};
pub use cri::{Cri, CriImage, CriVersion};
pub use error::{Cause, Error, Recovery, is_disk_failure};
pub use events::{ImageChange, ImageEvent, ImageEvents};
pub use images::{Creation, ImageRecord, ImageUpdate, NewImage};
pub use introspection::{Deprecation, Version};
pub use leases::{Created, Lease, Resource};
pub use snapshots::{Applied, Base, LayerSpec, Prepared, Snapshotter};
pub use write::{BlobSource, BlobSpec, Held, Written};

use connect::WriteConnections;
use error::{Cause as ErrorCause, Failure};
use images::LongList;

/// Header that names the namespace of a call.
const NAMESPACE_HEADER: &str = "containerd-namespace";
/// Number of records or blobs looked up at a time.
const LOOKUPS: usize = 16;
/// Longest list, in entries. A list with more counts as endless.
const MOST_LISTED: usize = 2_000_000;
/// Header that names the lease to which the call's resources are added.
const LEASE_HEADER: &str = "containerd-lease";

/// A connection to one containerd and one of its namespaces. Clones share the connection.
///
/// A client survives restarts of containerd. While containerd is down, calls fail with
/// [`Error::Unreachable`]. When it is back, calls connect again.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    socket: PathBuf,
    namespace: String,
    namespace_header: AsciiMetadataValue,
    options: Options,
    channel: Channel,
    writes: WriteConnections,
    /// Facts about a list of image records that is too long for one message. `None` if the list
    /// fits.
    long_list: Mutex<Option<LongList>>,
    /// Number of blobs in the last list.
    blobs_there: AtomicUsize,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shared {
            socket, namespace, ..
        } = &*self.shared;
        f.debug_struct("Client")
            .field("socket", socket)
            .field("namespace", namespace)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Connects with default [`Options`] and checks that a containerd answers.
    ///
    /// The namespace need not exist. The first write creates it.
    ///
    /// # Errors
    /// Returns [`Error::Unreachable`] if nothing listens, and [`Error::Stalled`] if nothing
    /// answers. Returns [`Error::Refused`] if the server is not a containerd, and
    /// [`Error::Invalid`] for an invalid namespace.
    pub async fn connect(socket: &Path, namespace: &str) -> Result<Client, Error> {
        Client::connect_with(socket, namespace, Options::default()).await
    }

    /// Connects like [`Client::connect`], with the given time limits.
    ///
    /// # Errors
    /// Returns the errors of [`Client::connect`].
    pub async fn connect_with(socket: &Path, namespace: &str, options: Options) -> Result<Client, Error> {
        let namespace_header = namespace_header(namespace)?;
        let endpoint = connect::endpoint(socket)?;
        let attempt = "connect";
        let unreachable = |source| Error::Unreachable {
            socket: socket.to_path_buf(),
            attempt: attempt.to_owned(),
            source: ErrorCause::from(source),
        };
        let channel = match timeout(options.deadline, endpoint.connect()).await {
            Ok(connected) => connected.map_err(unreachable)?,
            Err(_) => return Err(Failure::Deadline(options.deadline).into_error(socket, None, attempt)),
        };
        let shared = Shared {
            socket: socket.to_path_buf(),
            namespace_header,
            namespace: namespace.to_owned(),
            writes: WriteConnections::new(endpoint, options.write_connections),
            options,
            channel,
            long_list: Mutex::new(None),
            blobs_there: AtomicUsize::new(0),
        };
        let client = Client {
            shared: Arc::new(shared),
        };
        let attempt = format!("talk to containerd on {}", socket.display());
        client.version_or(&attempt).await?;
        Ok(client)
    }

    /// Returns the socket of this containerd.
    pub fn socket(&self) -> &Path {
        &self.shared.socket
    }

    /// Returns the namespace of every call.
    pub fn namespace(&self) -> &str {
        &self.shared.namespace
    }

    pub(crate) fn channel(&self) -> Channel {
        self.shared.channel.clone()
    }

    pub(crate) fn options(&self) -> &Options {
        &self.shared.options
    }

    /// Addresses a message to the client's namespace.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert(NAMESPACE_HEADER, self.shared.namespace_header.clone());
        request
    }

    /// Addresses a message to the client's namespace and puts its effects under a lease.
    pub(crate) fn leased_request<T>(&self, lease: &str, message: T) -> Result<Request<T>, Error> {
        let header = AsciiMetadataValue::try_from(lease)
            .ok()
            .filter(|_| !lease.is_empty())
            .ok_or_else(|| Error::Invalid(format!("{lease:?} cannot be the id of a lease")))?;
        let mut request = self.request(message);
        request.metadata_mut().insert(LEASE_HEADER, header);
        Ok(request)
    }

    /// Waits for the answer of a short call.
    pub(crate) async fn unary<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        within(self.options().deadline, call)
            .await
            .map(Response::into_inner)
    }

    /// Waits for an answer that containerd may hold back until it has collected garbage.
    pub(crate) async fn synchronous<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        within(self.options().collection_deadline, call)
            .await
            .map(Response::into_inner)
    }

    /// Waits for the next message of a stream from containerd.
    pub(crate) async fn next<T>(&self, stream: &mut Streaming<T>) -> Result<Option<T>, Failure> {
        within(self.options().stall, stream.message()).await
    }

    /// Waits without a limit, as long as containerd answers other calls meanwhile.
    pub(crate) async fn patiently<T>(
        &self,
        work: impl Future<Output = Result<T, Status>>,
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

    /// Makes the error for an answer about another thing than the call asked for.
    pub(crate) fn answered_for(&self, other: &str, asked: &str) -> Error {
        let socket = self.socket().display();
        let other = foreign::quoted(other);
        Error::Invalid(format!(
            "containerd on {socket} answered for {other} instead of {asked}: this containerd cannot be used"
        ))
    }

    /// Makes the error for a stream that does not end.
    pub(crate) fn endless(&self, attempt: &str) -> Error {
        let socket = self.socket().display();
        Error::Invalid(format!(
            "cannot {attempt}: the answer of containerd on {socket} has not ended after very many messages"
        ))
    }

    pub(crate) fn fail(&self, failure: Failure, attempt: impl Into<String>) -> Error {
        failure.into_error(self.socket(), None, attempt)
    }

    pub(crate) fn fail_leased(&self, failure: Failure, lease: &str, attempt: impl Into<String>) -> Error {
        failure.into_error(self.socket(), Some(lease), attempt)
    }
}

/// Waits at most `limit` for a call.
pub(crate) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Failure> {
    match timeout(limit, call).await {
        Ok(answer) => answer.map_err(Failure::from),
        Err(_) => Err(Failure::Deadline(limit)),
    }
}

/// Returns a namespace as a header. containerd's rule for namespaces: letters, digits, and single
/// `.`, `_`, `-` between them, at most 76 bytes.
fn namespace_header(namespace: &str) -> Result<AsciiMetadataValue, Error> {
    let words_are_fine = namespace
        .split(['.', '_', '-'])
        .all(|word| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    AsciiMetadataValue::try_from(namespace)
        .ok()
        .filter(|_| words_are_fine && namespace.len() <= 76)
        .ok_or_else(|| Error::Invalid(format!("{namespace:?} cannot be a containerd namespace")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_follow_containerds_rule() {
        for good in ["k8s.io", "default", "moby", "a-b_c.d1"] {
            assert!(namespace_header(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "a..b", "-a", "a/b", "a b", "ä", "a\n", &"x".repeat(77)] {
            assert!(namespace_header(bad).is_err(), "{bad:?}");
        }
    }
}
