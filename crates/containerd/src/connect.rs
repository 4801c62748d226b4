//! Connections: one for short calls, and a few for blobs, each blob alone on its own.
//!
//! containerd reads a connection with one thread, so parallel blobs gain nothing on a shared one.
//! HTTP/2 pings are not used: gRPC servers in Go hang up on clients that ping more often than every
//! five minutes, and the end of a local process closes its sockets anyway. A containerd that hangs
//! is noticed by deadlines.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::{Channel, Endpoint};

use crate::error::Error;

/// containerd sends at most 16 MiB per message unless configured otherwise; leave it some room.
pub(crate) const MAX_MESSAGE: usize = 32 << 20;

/// Error texts travel in headers; above this limit a text would arrive as a broken connection.
const MAX_HEADER_LIST: u32 = 1 << 20;

/// How patient a [`crate::Client`] is, and how many blobs it writes at a time.
#[derive(Clone, Debug)]
pub struct Options {
    /// For a short call from request to answer. Default 30 s.
    pub deadline: Duration,
    /// For calls that wait for a garbage collection. Default 5 min.
    pub collection_deadline: Duration,
    /// Without an acknowledged byte while bytes are under way. Default 60 s.
    pub stall: Duration,
    /// For another client that writes the same blob, since its last progress; a commit may take its
    /// time. Default 60 s.
    pub lock_wait: Duration,
    /// For another importer that writes the same blob under a name of its own, since its last
    /// progress. Longer would wait for what was left behind by one that died. Default 10 s.
    pub other_wait: Duration,
    /// Connections for writing blobs, and so blobs under way at a time; the next one waits. Default
    /// 8: four that gain from each other, and some for what is small and must not wait for them.
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

/// The connections for blobs, made when first needed and used by one blob at a time.
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

/// One connection, given back when dropped.
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

    /// Has the next blob make a new connection: on this one, something hangs.
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
