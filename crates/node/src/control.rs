//! The control socket: other commands ask the daemon for the state of the node.
//!
//! HTTP/1.1 on a Unix socket in the runtime folder, so `curl --unix-socket` can ask, too:
//!
//! * `GET /v1/status`: a [`Status`] as JSON,
//! * `POST /v1/list`: the status after a new listing of the images folder. It includes a file that
//!   was copied a moment ago,
//! * `POST /v1/check`: the status after a new listing, and a new check of the images that `require`
//!   names. A status whose `required.current` is true has the result of the check,
//! * `GET /metrics`: the metrics, in Prometheus' text format. `metricsAddress` serves only these.
//!
//! A status comes with an `ETag`. A client may send the tag back as `If-None-Match`, with `Prefer:
//! wait=SECONDS` (RFC 7240, 4.3). The answer then comes when there is news, or when the time is
//! over. So a client that waits need not ask again and again.
//!
//! The socket belongs to root (0600). The daemon asks the kernel for the user of each client
//! (unix(7), `SO_PEERCRED`) and rejects other users. Nothing can be changed through the socket. The
//! daemon's one loop makes the answers, between its other work.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::ser::CompactFormatter;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tracing::debug;

use crate::json;
use crate::status::Status;

/// Most clients at a time. Further clients wait.
const MOST_CLIENTS: usize = 32;
/// Time within which the daemon has to answer: it may be connecting to a containerd that does not
/// answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time within which a client has to send its request.
const HEADERS: Duration = Duration::from_secs(5);
/// Largest answer that a command reads, in bytes: more than a status of ten thousand bundles.
const LARGEST: usize = 64 << 20;

/// Time for which airgapd's own commands wait for news before they request a new listing. On a file
/// system without events, the daemon itself looks at the folder only now and then.
pub const NEWS: Duration = Duration::from_secs(5);
/// Longest time that a client may wait for news: shorter than [`PATIENCE`], which both sides have.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// A request to the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The status, as the daemon knows it now.
    Status,
    /// The status after a new listing of the folder.
    Listed,
    /// The status after a new listing, and the start of a new check of the images that the
    /// configuration requires. The check takes a moment longer than the answer.
    Checked,
    /// The metrics, in Prometheus' text format.
    Metrics,
}

/// A question to the daemon.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) want: Want,
    /// The status that the client has already, if it wants news only.
    pub(crate) known: Option<Known>,
    pub(crate) answer: oneshot::Sender<Answer>,
}

/// A status that a client has, and the time until which it waits for another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// Its [`Status::tag`].
    pub(crate) tag: String,
    pub(crate) until: Instant,
}

/// An answer of the daemon.
#[derive(Debug)]
pub(crate) enum Answer {
    Status(Box<Status>),
    Metrics(String),
}

/// Returns the path of the socket in the daemon's runtime folder.
pub fn socket_in(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("control.sock")
}

/// Listens on the socket in the runtime folder, and returns the questions that come there.
///
/// # Errors
///
/// Returns an error if the socket cannot be created, or if another daemon answers on it.
pub(crate) fn listen(runtime_dir: &Path) -> io::Result<(mpsc::Sender<Question>, mpsc::Receiver<Question>)> {
    let (sender, questions) = mpsc::channel(MOST_CLIENTS);
    let listener = bind(runtime_dir)?;
    tokio::spawn(serve_unix(listener, sender.clone()));
    Ok((sender, questions))
}

/// Serves only the metrics, on an address of this machine.
///
/// # Errors
///
/// Returns an error if the daemon cannot listen on the address.
pub(crate) fn listen_for_metrics(address: SocketAddr, questions: mpsc::Sender<Question>) -> io::Result<()> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    tokio::spawn(serve_tcp(TcpListener::from_std(listener)?, questions));
    Ok(())
}

fn bind(runtime_dir: &Path) -> io::Result<UnixListener> {
    std::fs::create_dir_all(runtime_dir)?;
    let socket = socket_in(runtime_dir);
    if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
        let text = format!("another airgapd answers on {}", socket.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    }
    // Bind under another name first. The socket then never has other permissions, and replaces a
    // socket that a crash left.
    let new = runtime_dir.join(".control.sock.new");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&new)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&new, &socket)?;
    Ok(listener)
}

async fn serve_unix(listener: UnixListener, questions: mpsc::Sender<Question>) {
    let places = Arc::new(Semaphore::new(MOST_CLIENTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) if is_trusted(&stream) => {
                let questions = questions.clone();
                tokio::spawn(async move {
                    serve(stream, questions, true).await;
                    drop(place);
                });
            }
            Ok(_) => debug!("rejected a client of the control socket: it is neither root nor airgapd's user"),
            Err(error) => wait_after(&error).await,
        }
    }
}

async fn serve_tcp(listener: TcpListener, questions: mpsc::Sender<Question>) {
    let places = Arc::new(Semaphore::new(MOST_CLIENTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let questions = questions.clone();
                tokio::spawn(async move {
                    serve(stream, questions, false).await;
                    drop(place);
                });
            }
            Err(error) => wait_after(&error).await,
        }
    }
}

/// Waits a little: without free file descriptors, accepting fails again at once.
async fn wait_after(error: &io::Error) {
    debug!("cannot accept on the control socket: {error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Returns true if the client is root, or the user that runs this program.
fn is_trusted(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    questions: mpsc::Sender<Question>,
    is_control: bool,
) {
    let service = service_fn(|request| {
        let questions = questions.clone();
        async move { Ok::<_, Infallible>(respond(&request, &questions, is_control).await) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADERS);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        debug!("on the control socket: {error}");
    }
}

async fn respond(
    request: &Request<Incoming>,
    questions: &mpsc::Sender<Question>,
    is_control: bool,
) -> Response<Full<Bytes>> {
    let want = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => Want::Metrics,
        (&Method::GET, "/v1/status") if is_control => Want::Status,
        (&Method::POST, "/v1/list") if is_control => Want::Listed,
        (&Method::POST, "/v1/check") if is_control => Want::Checked,
        _ => return plain(StatusCode::NOT_FOUND, "there is no such path here\n"),
    };
    match ask_loop(questions, want, known(request.headers())).await {
        Some(Answer::Status(status)) => {
            let json = json::to_json(&status, CompactFormatter).expect("a status is plain data");
            let mut response = whole(StatusCode::OK, "application/json", json.into());
            let tag = HeaderValue::from_str(&format!("\"{}\"", status.tag()));
            response
                .headers_mut()
                .insert(ETAG, tag.expect("a tag is hexadecimal"));
            response
        }
        Some(Answer::Metrics(text)) => whole(StatusCode::OK, METRICS_TYPE, text.into()),
        None => plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "the daemon is stopping or busy\n",
        ),
    }
}

const PREFER: HeaderName = HeaderName::from_static("prefer");

/// Prometheus' text format, version 0.0.4.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Returns the status that a client has, if the client wants to wait for news. A preference that is
/// not understood is ignored, as RFC 7240 demands.
fn known(headers: &HeaderMap) -> Option<Known> {
    let text = |name| headers.get(name)?.to_str().ok();
    let tag = text(IF_NONE_MATCH)?.trim_matches('"').to_owned();
    let preferences = text(PREFER)?.split([',', ';']);
    let seconds = preferences
        .filter_map(|preference| preference.trim().strip_prefix("wait="))
        .find_map(|seconds| seconds.parse().ok())?;
    let wait = Duration::from_secs(seconds).min(LONGEST_WAIT);
    Some(Known {
        tag,
        until: Instant::now() + wait,
    })
}

async fn ask_loop(questions: &mpsc::Sender<Question>, want: Want, known: Option<Known>) -> Option<Answer> {
    let (answer, answered) = oneshot::channel();
    let question = Question { want, known, answer };
    let asked = async {
        questions.send(question).await.ok()?;
        answered.await.ok()
    };
    tokio::time::timeout(PATIENCE, asked).await.ok().flatten()
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    whole(
        status,
        "text/plain; charset=utf-8",
        Bytes::from_static(text.as_bytes()),
    )
}

fn whole(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let value = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, value);
    response
}

/// The reason why the daemon did not answer.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// No program listens on the socket.
    #[error("no daemon answers on {}: is airgapd.service running?", .0.display())]
    NoDaemon(PathBuf),
    /// This process may not use the socket.
    #[error("the control socket {} is root's", .0.display())]
    Denied(PathBuf),
    /// The daemon answers, but without a status.
    #[error("the daemon on {} gives no answer: {why}", socket.display())]
    NoAnswer {
        /// The path of the socket.
        socket: PathBuf,
        /// The reason, without the path.
        why: String,
    },
}

/// A status as the daemon gave it.
#[derive(Debug)]
pub struct StatusReply {
    /// The state of the node.
    pub status: Status,
    /// Its tag, to wait for the next one.
    pub tag: Option<String>,
}

/// Asks the daemon for the state of the node, after the work that `want` requests. If `known` has
/// the tag of a status, the answer waits for news, for at most [`NEWS`]. Safe to cancel.
///
/// # Errors
///
/// Returns an [`Unanswered`] if no daemon listens, the socket is root's, or the answer is no
/// status.
pub async fn ask(runtime_dir: &Path, want: Want, known: Option<&str>) -> Result<StatusReply, Unanswered> {
    let socket = socket_in(runtime_dir);
    let stream = UnixStream::connect(&socket)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory => {
                Unanswered::NoDaemon(socket.clone())
            }
            io::ErrorKind::PermissionDenied => Unanswered::Denied(socket.clone()),
            _ => Unanswered::NoAnswer {
                socket: socket.clone(),
                why: error.to_string(),
            },
        })?;
    let answer = tokio::time::timeout(PATIENCE, fetch(stream, want, known)).await;
    let answer = answer.unwrap_or_else(|_| Err(format!("not within {PATIENCE:?}")));
    answer.map_err(|why| Unanswered::NoAnswer { socket, why })
}

async fn fetch(stream: UnixStream, want: Want, known: Option<&str>) -> Result<StatusReply, String> {
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(text)?;
    tokio::spawn(connection);
    let (method, path) = match want {
        Want::Status => (Method::GET, "/v1/status"),
        Want::Listed => (Method::POST, "/v1/list"),
        Want::Checked => (Method::POST, "/v1/check"),
        Want::Metrics => (Method::GET, "/metrics"),
    };
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "airgapd");
    if let Some(tag) = known {
        request = request
            .header(IF_NONE_MATCH, format!("\"{tag}\""))
            .header(PREFER, format!("wait={}", NEWS.as_secs()));
    }
    let request = request
        .body(Full::<Bytes>::default())
        .expect("the request is well-formed");
    let response = sender.send_request(request).await.map_err(text)?;
    let status = response.status();
    let tag = response.headers().get(ETAG).and_then(|tag| tag.to_str().ok());
    let tag = tag.map(|tag| tag.trim_matches('"').to_owned());
    let body = Limited::new(response.into_body(), LARGEST).collect().await;
    let bytes = body.map_err(|error| error.to_string())?.to_bytes();
    match status {
        StatusCode::OK => {
            let status = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
            Ok(StatusReply { status, tag })
        }
        _ => Err(String::from_utf8_lossy(&bytes).trim().to_owned()),
    }
}
