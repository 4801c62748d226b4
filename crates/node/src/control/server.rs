//! The connections to the daemon: a thread of its own serves them.
//!
//! The daemon's loop may stand still for seconds, for example while a disk syncs the ledger. The
//! thread answers meanwhile, from the last facts that the loop posted. Connections are bounded: if
//! there are many, the one that was idle longest is closed for a new one. A client that sends
//! nothing or half a request therefore keeps no other client away.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tracing::debug;

use super::{Desk, Question, bind, respond};

/// Most idle connections to an address. A further client takes the place of the one that was idle
/// longest.
const MOST_IDLE: usize = 64;
/// Most connections to an address, requests that wait for an answer included. Further clients wait.
const MOST_CLIENTS: usize = 256;
/// Questions to the loop that wait for it. Further clients wait.
const MOST_QUESTIONS: usize = 32;
/// Time within which a client has to send the head of its request.
const HEADERS: Duration = Duration::from_secs(5);
/// Largest head of a request, in bytes. All connections together take at most 8 MiB for heads.
const LARGEST_HEAD: usize = 16 << 10;
/// Pause before another look for a place, or after a failed accept.
const PAUSE: Duration = Duration::from_millis(100);

/// The thread that serves the control socket and the metrics address. Dropping it closes all
/// connections.
#[derive(Debug)]
pub(crate) struct Server {
    runtime: runtime::Handle,
    desk: Desk,
    _stop: oneshot::Sender<()>,
}

impl Server {
    /// Listens on the socket in the runtime folder, and returns the questions that come there.
    ///
    /// # Errors
    ///
    /// Returns an error if the socket or the thread cannot be created, or if another daemon answers
    /// on the socket.
    pub(crate) fn start(runtime_dir: &Path) -> io::Result<(Server, mpsc::Receiver<Question>)> {
        let listener = bind(runtime_dir)?;
        let (sender, questions) = mpsc::channel(MOST_QUESTIONS);
        let (stop, stopped) = oneshot::channel();
        let server = Server {
            runtime: spawn(stopped)?,
            desk: Desk::new(sender),
            _stop: stop,
        };
        let _inside = server.runtime.enter();
        let listener = UnixListener::from_std(listener)?;
        server.runtime.spawn(serve_unix(listener, server.desk.clone()));
        drop(_inside);
        Ok((server, questions))
    }

    /// Serves what every user of this machine may know, on an address of the machine.
    ///
    /// # Errors
    ///
    /// Returns an error if the daemon cannot listen on the address.
    pub(crate) fn listen_on(&self, address: SocketAddr) -> io::Result<()> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let _inside = self.runtime.enter();
        let listener = TcpListener::from_std(listener)?;
        self.runtime.spawn(serve_tcp(listener, self.desk.clone()));
        Ok(())
    }

    /// Returns the place where the loop posts its facts.
    pub(crate) fn desk(&self) -> &Desk {
        &self.desk
    }
}

/// Starts the thread, which runs until it is told to stop.
fn spawn(stopped: oneshot::Receiver<()>) -> io::Result<runtime::Handle> {
    let (started, handle) = std::sync::mpsc::sync_channel(1);
    let serve = move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => {
                if started.send(Ok(runtime.handle().clone())).is_ok() {
                    let _ = runtime.block_on(stopped);
                }
            }
            Err(error) => drop(started.send(Err(error))),
        }
    };
    thread::Builder::new().name("control".to_owned()).spawn(serve)?;
    handle.recv().map_err(io::Error::other)?
}

async fn serve_unix(listener: UnixListener, desk: Desk) {
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) if is_trusted(&stream) => connections.serve(stream, &desk, true).await,
            Ok(_) => debug!("rejected a client of the control socket: it is neither root nor airgapd's user"),
            Err(error) => wait_after(&error).await,
        }
    }
}

async fn serve_tcp(listener: TcpListener, desk: Desk) {
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connections.serve(stream, &desk, false).await,
            Err(error) => wait_after(&error).await,
        }
    }
}

/// Waits a little: without free file descriptors, accepting fails again at once.
async fn wait_after(error: &io::Error) {
    debug!("cannot accept on the control socket: {error}");
    tokio::time::sleep(PAUSE).await;
}

/// Returns true if the client is root, or the user that runs this program.
fn is_trusted(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

/// The open connections to an address.
#[derive(Default)]
struct Connections(Vec<Connection>);

struct Connection {
    task: AbortHandle,
    idle: Idle,
}

impl Connections {
    /// Serves a new connection. Waits first if too many requests are being answered.
    async fn serve(
        &mut self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        desk: &Desk,
        is_control: bool,
    ) {
        self.make_place().await;
        let idle = Idle::default();
        let task = tokio::spawn(serve(stream, desk.clone(), is_control, idle.clone()));
        let task = task.abort_handle();
        self.0.push(Connection { task, idle });
    }

    async fn make_place(&mut self) {
        loop {
            self.0.retain(|connection| !connection.task.is_finished());
            if self.0.len() < MOST_IDLE {
                return;
            }
            let idle = self.0.iter().enumerate();
            let idle = idle.filter_map(|(at, connection)| Some((connection.idle.since()?, at)));
            match idle.min() {
                Some((_, at)) => self.0.swap_remove(at).task.abort(),
                None if self.0.len() < MOST_CLIENTS => return,
                None => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

/// The time since which a connection waits for a request.
#[derive(Clone)]
struct Idle {
    opened: Instant,
    /// Milliseconds after `opened`, or [`BUSY`].
    since: Arc<AtomicU64>,
}

/// The value of a connection whose request is being answered.
const BUSY: u64 = u64::MAX;

impl Default for Idle {
    fn default() -> Idle {
        Idle {
            opened: Instant::now(),
            since: Arc::default(),
        }
    }
}

impl Idle {
    fn since(&self) -> Option<Instant> {
        let after = Some(self.since.load(Ordering::Relaxed)).filter(|after| *after != BUSY)?;
        Some(self.opened + Duration::from_millis(after))
    }

    fn begins(&self) {
        let after = basics::milliseconds(self.opened.elapsed());
        self.since.store(after, Ordering::Relaxed);
    }

    fn ends(&self) {
        self.since.store(BUSY, Ordering::Relaxed);
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, desk: Desk, is_control: bool, idle: Idle) {
    let service = service_fn(|request| {
        let (desk, idle) = (desk.clone(), idle.clone());
        async move {
            idle.ends();
            let response = respond(&request, &desk, is_control).await;
            idle.begins();
            Ok::<_, Infallible>(response)
        }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(LARGEST_HEAD);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        debug!("on the control socket: {error}");
    }
}
