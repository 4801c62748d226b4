//! The control socket: how other commands ask the daemon how it stands.
//!
//! HTTP/1.1 on a Unix socket in the runtime folder, so that `curl --unix-socket` can ask, too:
//!
//! * `GET /v1/status`: a [`Status`] as JSON,
//! * `POST /v1/list`: the same, after the images folder was listed anew, so that a file counts that
//!   was copied a moment ago,
//! * `POST /v1/check`: the same, and what `require` asks for is looked at anew; a status whose
//!   `required.current` is true has the outcome,
//! * `GET /metrics`: the metrics, as Prometheus reads them; the only one on `metricsAddress`.
//!
//! A status comes with an `ETag`. Whoever sends that back as `If-None-Match`, with `Prefer:
//! wait=SECONDS` (RFC 7240, 4.3), is answered when there is news, or when the time is over; so
//! waiting needs no asking again and again.
//!
//! The socket belongs to root (0600), and whoever else gets at it is turned away by the kernel's
//! word for who asks (unix(7), `SO_PEERCRED`). Nothing can be changed through it. Answers are made
//! by the daemon's one loop, when it comes to it.

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

/// How many ask at a time; others wait.
const MOST_CLIENTS: usize = 32;
/// How long the daemon has to answer: it may be connecting to a containerd that does not answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a client has to say what it wants.
const HEADERS: Duration = Duration::from_secs(5);
/// More than a status of ten thousand bundles.
const LARGEST: usize = 64 << 20;

/// How long our own commands wait for news before they have the folder listed again: on a file
/// system without events the daemon itself only looks now and then.
pub const NEWS: Duration = Duration::from_secs(5);
/// How long somebody may wait for news: within the patience of both sides.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// What somebody wants of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The status, as the daemon knows it now.
    Status,
    /// The status after a new listing of the folder.
    Listed,
    /// The same, and what the configuration requires is looked at anew; that takes a moment longer
    /// than the answer.
    Checked,
    /// The metrics, in Prometheus' text format.
    Metrics,
}

/// A question to the daemon.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) want: Want,
    /// What whoever asks knows already, where he wants to hear of news only.
    pub(crate) known: Option<Known>,
    pub(crate) answer: oneshot::Sender<Answer>,
}

/// A status that somebody has, and until when he waits for another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// Its [`Status::tag`].
    pub(crate) tag: String,
    pub(crate) until: Instant,
}

/// What the daemon says.
#[derive(Debug)]
pub(crate) enum Answer {
    Status(Box<Status>),
    Metrics(String),
}

/// Where the socket is, in the daemon's runtime folder.
pub fn socket_in(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("control.sock")
}

/// Listens on the socket in the runtime folder, and gives back what is asked there.
///
/// # Errors
///
/// When the socket cannot be made, or another daemon answers on it.
pub(crate) fn listen(runtime_dir: &Path) -> io::Result<(mpsc::Sender<Question>, mpsc::Receiver<Question>)> {
    let (sender, questions) = mpsc::channel(MOST_CLIENTS);
    let listener = bind(runtime_dir)?;
    tokio::spawn(serve_unix(listener, sender.clone()));
    Ok((sender, questions))
}

/// Serves the metrics, and nothing else, on an address of this machine.
///
/// # Errors
///
/// When the address cannot be listened on.
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
    // Under another name first: it is never there with other permissions, and replaces what a crash
    // left.
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
            Ok(_) => debug!("somebody who may not asked on the control socket"),
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

/// Without open files left, accepting fails at once and again.
async fn wait_after(error: &io::Error) {
    debug!("cannot accept on the control socket: {error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Root, and whoever runs this program.
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
        _ => return plain(StatusCode::NOT_FOUND, "there is no such thing here\n"),
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

/// What a client has, if it wants to wait for news. What is not understood is not waited for, as
/// RFC 7240 wants it.
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

/// Why the daemon did not answer.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// Nobody listens.
    #[error("no daemon answers on {}: is airgapd.service running?", .0.display())]
    NoDaemon(PathBuf),
    /// We may not ask.
    #[error("the control socket {} is root's", .0.display())]
    Denied(PathBuf),
    /// It answers, but not with what was asked for.
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
    /// How the node stands.
    pub status: Status,
    /// Its tag, to wait for the next one.
    pub tag: Option<String>,
}

/// Asks the daemon how it stands, after what `want` has it do first. With the tag of a status that
/// is known, the answer waits for news, for some seconds at most. Safe to cancel.
///
/// # Errors
///
/// [`Unanswered`].
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
