//! A socket in front of containerd's. It breaks all connections after a number of bytes to
//! containerd, or carries bytes slowly.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Largest number of bytes carried at a time.
const PIECE: usize = 16 << 10;
/// The number of bytes of a proxy that never cuts.
const NEVER: u64 = u64::MAX;

/// A listening proxy. It accepts new connections after a cut.
pub(crate) struct Proxy {
    socket: PathBuf,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
    _folder: TempDir,
}

struct Shared {
    /// Number of bytes until the cut.
    left: AtomicU64,
    /// Number of bytes that went to containerd.
    carried: AtomicU64,
    /// Time that each piece of at most `PIECE` bytes takes.
    pace: Duration,
    /// Number of cuts so far.
    cuts: watch::Sender<u64>,
}

impl Proxy {
    pub(crate) fn before(socket: &Path) -> Proxy {
        Proxy::narrow(socket, Duration::ZERO)
    }

    /// Makes a proxy that takes this long for every 16 KiB.
    pub(crate) fn narrow(socket: &Path, pace: Duration) -> Proxy {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let own = folder.path().join("proxy.sock");
        let listener = UnixListener::bind(&own).expect("a socket");
        let shared = Arc::new(Shared {
            left: AtomicU64::new(NEVER),
            carried: AtomicU64::new(0),
            pace,
            cuts: watch::Sender::new(0),
        });
        Proxy {
            socket: own,
            accepting: tokio::spawn(accept(listener, socket.to_owned(), Arc::clone(&shared))),
            shared,
            _folder: folder,
        }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Breaks all connections, once, after so many more bytes.
    pub(crate) fn cut_after(&self, bytes: u64) {
        self.shared.left.store(bytes, Ordering::SeqCst);
    }

    /// Lets everything through from now on. Returns true if the proxy has cut connections.
    pub(crate) fn heal(&self) -> bool {
        self.shared.left.store(NEVER, Ordering::SeqCst);
        *self.shared.cuts.borrow() > 0
    }

    /// Returns the number of bytes that went to containerd so far.
    pub(crate) fn carried(&self) -> u64 {
        self.shared.carried.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Shared {
    /// Returns the number of bytes, out of `length`, that may pass, and whether they are the last.
    fn admit(&self, length: usize) -> (usize, bool) {
        let length = length as u64;
        let take = |left| (left != NEVER).then(|| u64::saturating_sub(left, length));
        let before = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        let admitted = before.map_or(length, |left| left.min(length));
        self.carried.fetch_add(admitted, Ordering::SeqCst);
        (
            usize::try_from(admitted).expect("at most what was asked for"),
            before.is_ok_and(|left| left <= length),
        )
    }
}

async fn accept(listener: UnixListener, to: PathBuf, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        if let Ok(server) = UnixStream::connect(&to).await {
            tokio::spawn(carry(client, server, Arc::clone(&shared)));
        }
    }
}

/// Carries a connection until it ends or is cut. Both sockets close at the end.
async fn carry(client: UnixStream, server: UnixStream, shared: Arc<Shared>) {
    let mut cuts = shared.cuts.subscribe();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let forth = async {
        let mut buffer = vec![0; PIECE];
        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
            let (admitted, is_last) = shared.admit(length);
            tokio::time::sleep(shared.pace).await;
            if to_server.write_all(&buffer[..admitted]).await.is_err() {
                return;
            }
            if is_last {
                shared.left.store(NEVER, Ordering::SeqCst);
                shared.cuts.send_modify(|cuts| *cuts += 1);
                return;
            }
        }
    };
    let back = tokio::io::copy(&mut from_server, &mut to_client);
    tokio::select! {
        _ = cuts.changed() => {}
        () = forth => {}
        _ = back => {}
    }
}
