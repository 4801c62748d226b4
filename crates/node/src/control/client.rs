//! The commands' side of the control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{ETAG, HeaderMap, IF_NONE_MATCH};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::{NEWS, PATIENCE, PREFER, Want, socket_in};
use crate::ready::{Query, Readiness};
use crate::status::Status;

/// Largest answer that a command reads, in bytes: more than a status of ten thousand bundles.
const LARGEST: usize = 64 << 20;
/// Time within which the daemon has to answer a probe. It answers within a second.
const PROBED: Duration = Duration::from_secs(5);

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
    let (method, path) = match want {
        Want::Status => (Method::GET, "/v1/status"),
        Want::Listed => (Method::POST, "/v1/list"),
        Want::Checked => (Method::POST, "/v1/check"),
    };
    let asked = async |stream| {
        let (code, headers, body) = fetch(stream, method, path, known).await?;
        let tag = headers.get(ETAG).and_then(|tag| tag.to_str().ok());
        let tag = tag.map(|tag| tag.trim_matches('"').to_owned());
        match code {
            StatusCode::OK => {
                let status = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
                Ok(StatusReply { status, tag })
            }
            _ => Err(text_of(&body)),
        }
    };
    talk(runtime_dir, PATIENCE, asked).await
}

/// Asks the daemon if the node is ready. The daemon lists nothing and checks nothing for it. Safe
/// to cancel.
///
/// # Errors
///
/// Returns an [`Unanswered`] if no daemon listens, the socket is root's, or the answer is no
/// readiness: that of an older daemon.
pub async fn ask_ready(runtime_dir: &Path, query: &Query) -> Result<Readiness, Unanswered> {
    let asked = async |stream| {
        let (_, _, body) = fetch(stream, Method::GET, &query.path(), None).await?;
        serde_json::from_slice(&body).map_err(|_| text_of(&body))
    };
    talk(runtime_dir, PROBED, asked).await
}

/// Connects to the socket in the runtime folder, and asks there.
async fn talk<T>(
    runtime_dir: &Path,
    patience: Duration,
    ask: impl AsyncFnOnce(UnixStream) -> Result<T, String>,
) -> Result<T, Unanswered> {
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
    let answer = tokio::time::timeout(patience, ask(stream)).await;
    let answer = answer.unwrap_or_else(|_| Err(format!("not within {patience:?}")));
    answer.map_err(|why| Unanswered::NoAnswer { socket, why })
}

/// Sends a request and reads the answer.
async fn fetch(
    stream: UnixStream,
    method: Method,
    path: &str,
    known: Option<&str>,
) -> Result<(StatusCode, HeaderMap, Bytes), String> {
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(text)?;
    tokio::spawn(connection);
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
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(text)?;
    let (code, headers) = (response.status(), response.headers().clone());
    let body = Limited::new(response.into_body(), LARGEST).collect().await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    Ok((code, headers, body))
}

fn text_of(body: &Bytes) -> String {
    String::from_utf8_lossy(body).trim().to_owned()
}
