//! The control socket: other commands ask the daemon for the state of the node.
//!
//! HTTP/1.1 on a Unix socket in the runtime folder, so `curl --unix-socket` can ask, too:
//!
//! * `GET /v1/status`: a [`Status`] as JSON,
//! * `POST /v1/list`: the status after a new listing of the images folder. It includes a file that
//!   was copied a moment ago,
//! * `POST /v1/check`: the status after a new listing, and a new check of the images that `require`
//!   names. A status whose `required.current` is true has the result of the check,
//! * `GET /metrics`: the metrics, in Prometheus' text format,
//! * `GET /ready`: a [`Readiness`] as JSON, with the status 200 if the node is ready,
//! * `GET /healthz`: the daemon itself.
//!
//! `metricsAddress` serves the last three. Every user can ask there, so `/ready` then has no names.
//!
//! A status comes with an `ETag`. A client may send the tag back as `If-None-Match`, with `Prefer:
//! wait=SECONDS` (RFC 7240, 4.3). The answer then comes when there is news, or when the time is
//! over. So a client that waits need not ask again and again.
//!
//! The socket belongs to root (0600). The daemon asks the kernel for the user of each client
//! (unix(7), `SO_PEERCRED`) and rejects other users. Nothing can be changed through the socket. The
//! daemon's one loop makes the answers, between its other work. A thread of its own serves the
//! connections. So `/ready` and `/healthz` answer within a second, whatever the loop does.

mod client;
mod server;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::ser::CompactFormatter;
use tokio::sync::{mpsc, oneshot};

pub use self::client::{StatusReply, Unanswered, ask, ask_ready};
pub(crate) use self::server::Server;
use crate::json;
use crate::ready::{self, BadQuery, Cause, Facts, Query, Readiness};
use crate::status::Status;
use crate::sys;

/// Time within which the daemon has to answer: it may be connecting to a containerd that does not
/// answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time within which the loop has to answer a probe. Probes give up after a second by default, and
/// the answer has to arrive before that.
const PROBED: Duration = Duration::from_millis(700);
/// Time for which airgapd's own commands wait for news before they request a new listing. On a file
/// system without events, the daemon itself looks at the folder only now and then.
pub const NEWS: Duration = Duration::from_secs(5);
/// Longest time that a client may wait for news: shorter than [`PATIENCE`], which both sides have.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// A request for the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The status, as the daemon knows it now.
    Status,
    /// The status after a new listing of the folder.
    Listed,
    /// The status after a new listing, and the start of a new check of the images that the
    /// configuration requires. The check takes a moment longer than the answer.
    Checked,
}

/// The subject of a question to the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topic {
    Status(Want),
    /// The metrics, in Prometheus' text format.
    Metrics,
    /// The facts that decide if the node is ready.
    Facts,
    /// A sign of life.
    Life,
}

impl Topic {
    /// Returns true if the loop has to look at the folder before it answers.
    pub(crate) fn needs_listing(self) -> bool {
        matches!(self, Topic::Status(Want::Listed | Want::Checked))
    }
}

/// A question to the daemon.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) topic: Topic,
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
    Facts(Arc<Facts>),
    Alive,
}

/// The way from the connections to the daemon's loop, and the last facts that the loop posted.
#[derive(Clone, Debug)]
pub(crate) struct Desk {
    questions: mpsc::Sender<Question>,
    facts: Arc<Mutex<Option<Arc<Facts>>>>,
}

impl Desk {
    fn new(questions: mpsc::Sender<Question>) -> Desk {
        Desk {
            questions,
            facts: Arc::default(),
        }
    }

    /// Posts facts, for the time in which the loop does not answer.
    pub(crate) fn post(&self, facts: Arc<Facts>) {
        *self.facts.lock().unwrap_or_else(PoisonError::into_inner) = Some(facts);
    }

    /// Returns the facts from the loop, or the last ones that it posted if it does not answer in
    /// time.
    async fn facts(&self) -> Option<Arc<Facts>> {
        match self.ask(Topic::Facts, None, PROBED).await {
            Some(Answer::Facts(facts)) => Some(facts),
            _ => self.facts.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Asks the loop. Returns `None` if it does not answer within this time.
    async fn ask(&self, topic: Topic, known: Option<Known>, patience: Duration) -> Option<Answer> {
        let (answer, answered) = oneshot::channel();
        let question = Question { topic, known, answer };
        let asked = async {
            self.questions.send(question).await.ok()?;
            answered.await.ok()
        };
        tokio::time::timeout(patience, asked).await.ok().flatten()
    }
}

/// Returns the path of the socket in the daemon's runtime folder.
pub fn socket_in(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("control.sock")
}

/// Returns a listener on the socket in the runtime folder.
fn bind(runtime_dir: &Path) -> io::Result<std::os::unix::net::UnixListener> {
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
    let listener = std::os::unix::net::UnixListener::bind(&new)?;
    listener.set_nonblocking(true)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&new, &socket)?;
    Ok(listener)
}

async fn respond(request: &Request<Incoming>, desk: &Desk, is_control: bool) -> Response<Full<Bytes>> {
    // hyper leaves out the body of an answer to HEAD.
    let is_probe = matches!(*request.method(), Method::GET | Method::HEAD);
    let topic = match (request.method(), request.uri().path()) {
        (_, "/ready") if is_probe => return ready(request.uri().query(), desk, is_control).await,
        (_, "/healthz") if is_probe => return healthz(desk).await,
        (&Method::GET, "/metrics") => Topic::Metrics,
        (&Method::GET, "/v1/status") if is_control => Topic::Status(Want::Status),
        (&Method::POST, "/v1/list") if is_control => Topic::Status(Want::Listed),
        (&Method::POST, "/v1/check") if is_control => Topic::Status(Want::Checked),
        _ => return plain(StatusCode::NOT_FOUND, "there is no such path here\n"),
    };
    match desk.ask(topic, known(request.headers()), PATIENCE).await {
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
        Some(Answer::Facts(_) | Answer::Alive) | None => plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "the daemon is stopping or busy\n",
        ),
    }
}

/// Answers `GET /ready`. Only root, on the control socket, gets names.
async fn ready(query: Option<&str>, desk: &Desk, is_control: bool) -> Response<Full<Bytes>> {
    let query = Query::parse(query.unwrap_or_default());
    let readiness = match &query {
        Ok(query) => match desk.facts().await {
            Some(facts) => ready::judge(&facts, query, sys::since_boot()),
            None => Readiness::not(Cause::Daemon, "the daemon is starting or stopping"),
        },
        Err(bad) => Readiness::of_bad_query(bad),
    };
    let status = match &query {
        Err(BadQuery::Malformed(_)) => StatusCode::BAD_REQUEST,
        _ if readiness.ready => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let readiness = match is_control {
        true => readiness,
        false => readiness.without_names(),
    };
    let json = json::to_json(&readiness, CompactFormatter).expect("a readiness is plain data");
    uncached(whole(status, "application/json", json.into()))
}

/// Answers `GET /healthz`, which is about the daemon alone.
async fn healthz(desk: &Desk) -> Response<Full<Bytes>> {
    uncached(match desk.ask(Topic::Life, None, PROBED).await {
        Some(_) => plain(StatusCode::OK, "ok\n"),
        None => plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "the daemon's loop does not answer\n",
        ),
    })
}

/// Returns an answer that no cache may keep.
fn uncached(mut response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    let value = HeaderValue::from_static("no-store");
    response.headers_mut().insert(CACHE_CONTROL, value);
    response
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ready::Required;
    use crate::status::RequiredStatus;

    /// The loop stands still while a disk syncs, for example.
    #[tokio::test]
    async fn while_the_loop_stands_still_the_last_facts_are_the_answer_and_the_daemon_is_not_well() {
        let folder = tempfile::tempdir().expect("a folder");
        let (server, mut questions) = Server::start(folder.path()).expect("the socket is free");
        let ask = async || {
            let asked = Instant::now();
            let answer = ask_ready(folder.path(), &Query::default())
                .await
                .expect("an answer");
            assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
            answer
        };
        let answer = ask().await;
        assert_eq!((answer.ready, answer.cause), (false, Some(Cause::Daemon)));
        let facts = Facts {
            at: sys::since_boot(),
            is_reachable: true,
            required: Some(Required {
                key: None,
                last: RequiredStatus {
                    checked_at: Some(jiff::Timestamp::UNIX_EPOCH),
                    references: 1,
                    ..RequiredStatus::default()
                },
            }),
            ..Facts::default()
        };
        server.desk().post(Arc::new(facts));
        assert!(ask().await.ready);
        let asked = Instant::now();
        let response = healthz(server.desk()).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
        // More questions than the channel takes do not delay the answer, and the clients have gone.
        let waiting: Vec<_> = (0..40)
            .map(|_| server.desk().ask(Topic::Life, None, PROBED))
            .collect();
        let (ready, _) = tokio::join!(ask(), futures_util::future::join_all(waiting));
        assert!(ready.ready);
        while let Ok(question) = questions.try_recv() {
            assert!(question.answer.is_closed());
        }
    }
}
