//! Connections to containerd: one for short calls, and one for each blob that is being written.
//!
//! containerd reads a connection with one thread, so blobs gain nothing from sharing a connection.
//! The client sends no HTTP/2 pings: gRPC servers in Go hang up on clients that ping more often
//! than every five minutes. It needs none, because the end of a local process closes its sockets.
//! Deadlines detect a containerd that hangs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::{Channel, Endpoint};

use crate::error::Error;

/// Largest message that the client accepts, in bytes. containerd sends at most 16 MiB per message
/// unless configured otherwise. The rest is a reserve.
pub(crate) const MAX_MESSAGE: usize = 32 << 20;

/// Largest header list that the client accepts, in bytes. Error texts travel in headers. A longer
/// text would arrive as a broken connection.
const MAX_HEADER_LIST: u32 = 1 << 20;

/// Time limits of a [`crate::Client`], and the number of blobs that it writes at a time.
#[derive(Clone, Debug)]
pub struct Options {
    /// Limit for a short call, from request to answer. Default 30 s.
    pub deadline: Duration,
    /// Limit for a call that waits for a garbage collection. Default 5 min.
    pub collection_deadline: Duration,
    /// Limit without an acknowledged byte while bytes are under way. Default 60 s.
    pub stall: Duration,
    /// Limit without progress of another client that writes the same blob. A commit may take that
    /// long. Default 60 s.
    pub lock_wait: Duration,
    /// Limit without progress of another importer that writes the same blob under its own name. A
    /// longer limit would wait for the leftovers of an importer that died. Default 10 s.
    pub other_wait: Duration,
    /// Number of connections for writing, and so of blobs under way at a time. The next blob waits.
    /// Default 8: four gain from each other, and the others let small blobs pass large ones.
    pub write_connections: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            deadline: Duration::from_secs(30),
            collection_deadline: Duration::from_secs(300),
            stall: Duration::from_secs(60),
            lock_wait: Duration::from_secs(60),
            other_wait: Duration::from_secs(10),
            write_connections: 8,
        }
    }
}

/// Describes the connection to a socket without making it.
pub(crate) fn endpoint(socket: &Path) -> Result<Endpoint, Error> {
    let path = socket
        .to_str()
        .ok_or_else(|| invalid_socket(socket, "is not UTF-8"))?;
    let endpoint = Endpoint::from_shared(format!("unix://{path}"))
        .map_err(|error| invalid_socket(socket, &error.to_string()))?;
    Ok(endpoint.http2_max_header_list_size(MAX_HEADER_LIST))
}

fn invalid_socket(socket: &Path, reason: &str) -> Error {
    Error::Invalid(format!(
        "socket path {} cannot be used: {reason}",
        PathBuf::from(socket).display()
    ))
}

/// The connections for blobs, made when first needed. One blob at a time uses a connection.
pub(crate) struct WriteConnections {
    endpoint: Endpoint,
    permits: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Channel>>>,
}

impl WriteConnections {
    pub(crate) fn new(endpoint: Endpoint, limit: usize) -> WriteConnections {
        WriteConnections {
            endpoint,
            permits: Arc::new(Semaphore::new(limit.max(1))),
            idle: Arc::new(Mutex::new(Vec::new())),
        }
    }

    /// Waits for a connection to be free. Dropping the future gives up the place in the queue.
    pub(crate) async fn take(&self) -> WriteConnection {
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let idle = self.idle.lock().expect("no holder of this lock panics").pop();
        WriteConnection {
            channel: idle.unwrap_or_else(|| self.endpoint.connect_lazy()),
            idle: Arc::clone(&self.idle),
            is_usable: true,
            _permit: permit,
        }
    }
}

/// One connection. Dropping it makes the connection free for the next blob.
pub(crate) struct WriteConnection {
    channel: Channel,
    idle: Arc<Mutex<Vec<Channel>>>,
    is_usable: bool,
    _permit: OwnedSemaphorePermit,
}

impl WriteConnection {
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Drops this connection because something hangs on it. The next blob makes a new connection.
    pub(crate) fn discard(mut self) {
        self.is_usable = false;
    }
}

impl Drop for WriteConnection {
    fn drop(&mut self) {
        if !self.is_usable {
            return;
        }
        if let Ok(mut idle) = self.idle.lock() {
            idle.push(self.channel.clone());
        }
    }
}
