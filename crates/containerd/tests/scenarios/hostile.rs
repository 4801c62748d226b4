//! Servers that are no containerd, and containerds that answer with garbage. The client does not
//! panic, loop for ever or use memory without bound. Its error names the socket or the request.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use containerd::{Client, Error, Options};
use containerd_client::services::v1::{
    GetImageResponse, Image, Info, InfoResponse, ListContentResponse, ListImagesResponse,
    ListStatusesResponse, ReadContentResponse, Status as IngestStatus, VersionResponse,
};
use containerd_client::types::Descriptor;
use prost::Message;
use prost::bytes::Bytes;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tonic::codegen::http::{HeaderMap, Response};

const SECOND: Duration = Duration::from_secs(1);
/// Longest time for a call of a client that gives up after a second. The machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// The answer to every call.
#[derive(Clone)]
enum Reply {
    /// These bytes as the only message.
    Message(Vec<u8>),
    /// This message again and again, until the client gives up.
    Endless(Vec<u8>),
    /// This message, and then silence on an open stream.
    Silent(Vec<u8>),
    /// This message, and then the stream breaks.
    Half(Vec<u8>),
    /// The beginning of a message that announces so many bytes.
    Announced(u32),
    /// A web page.
    Page,
}

fn message(message: &impl Message) -> Reply {
    Reply::Message(message.encode_to_vec())
}

/// A socket in its own folder.
struct Place {
    socket: PathBuf,
    calls: Arc<AtomicUsize>,
    _folder: TempDir,
}

impl Place {
    fn new() -> (Place, UnixListener) {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("odd.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let place = Place {
            socket,
            calls: Arc::default(),
            _folder: folder,
        };
        (place, listener)
    }

    /// Listens and answers calls of this path with the reply. Calls for the version get a
    /// containerd's answer.
    fn answering(path: &'static str, reply: Reply) -> Place {
        let (place, listener) = Place::new();
        let calls = Arc::clone(&place.calls);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, path, reply.clone(), Arc::clone(&calls)));
            }
        });
        place
    }

    async fn client(&self) -> Result<Client, Error> {
        let options = Options {
            deadline: SECOND,
            stall: SECOND,
            ..Options::default()
        };
        let connecting = Client::connect_with(&self.socket, "k8s.io", options);
        tokio::time::timeout(PATIENCE, connecting).await.expect("it ends")
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

async fn serve(stream: UnixStream, path: &'static str, reply: Reply, calls: Arc<AtomicUsize>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let called = request.uri().path().to_owned();
        let version = VersionResponse {
            version: "2.1.0".to_owned(),
            revision: String::new(),
        };
        let reply = match called == path {
            true => reply.clone(),
            false if called.ends_with("/Version") => message(&version),
            false => Reply::Message(Vec::new()),
        };
        calls.fetch_add(usize::from(called == path), Ordering::Relaxed);
        tokio::spawn(answer(respond, reply));
    }
}

async fn answer(mut respond: h2::server::SendResponse<Bytes>, reply: Reply) {
    let content = match reply {
        Reply::Page => "text/html",
        _ => "application/grpc",
    };
    let head = Response::builder().header("content-type", content).body(());
    let Ok(mut stream) = respond.send_response(head.expect("a head"), false) else {
        return;
    };
    match reply {
        Reply::Message(bytes) => {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().expect("a number"));
            let _ = stream.send_data(framed(&bytes), false);
            let _ = stream.send_trailers(trailers);
        }
        Reply::Endless(bytes) => {
            let frame = framed(&bytes);
            loop {
                stream.reserve_capacity(frame.len());
                // Only as much as the client takes.
                while stream.capacity() < frame.len() {
                    match std::future::poll_fn(|context| stream.poll_capacity(context)).await {
                        Some(Ok(_)) => {}
                        _ => return,
                    }
                }
                if stream.send_data(frame.clone(), false).is_err() {
                    return;
                }
            }
        }
        Reply::Silent(bytes) => {
            let _ = stream.send_data(framed(&bytes), false);
            let _ = std::future::poll_fn(|context| stream.poll_reset(context)).await;
        }
        Reply::Half(bytes) => {
            let _ = stream.send_data(framed(&bytes), false);
            stream.send_reset(h2::Reason::INTERNAL_ERROR);
        }
        Reply::Announced(length) => {
            let mut frame = vec![0];
            frame.extend(length.to_be_bytes());
            let _ = stream.send_data(frame.into(), false);
            let _ = std::future::poll_fn(|context| stream.poll_reset(context)).await;
        }
        Reply::Page => {
            let _ = stream.send_data("<html>It works!</html>".into(), true);
        }
    }
}

/// Returns a message as gRPC sends it: not compressed, its length, its bytes.
fn framed(bytes: &[u8]) -> Bytes {
    let length = u32::try_from(bytes.len()).expect("it is short");
    [&[0][..], &length.to_be_bytes(), bytes].concat().into()
}

/// Returns the error with its causes, as people read it.
fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_speak_http_2_is_no_containerd_and_named() {
    let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff];
    let table: [(&str, Vec<u8>, bool); 7] = [
        (
            "a web server",
            b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec(),
            false,
        ),
        ("another protocol", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), false),
        ("TLS", vec![0x15, 3, 1, 0, 2, 2, 0x46], false),
        ("zeros", vec![0; 1 << 16], false),
        ("noise without end", vec![0xa7; 1 << 16], true),
        ("settings that cannot be", settings.to_vec(), false),
        (
            "a frame of 16 MiB",
            vec![0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1, 1, 1],
            false,
        ),
    ];
    for (claim, bytes, is_endless) in table {
        let (place, listener) = Place::new();
        let speaking = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                while stream.write_all(&bytes).await.is_ok() && is_endless {}
                // Read the client's bytes, so that the client sees more than a broken pipe.
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        });
        let error = place.client().await.expect_err(claim);
        let text = told(&error);
        assert!(text.contains("odd.sock"), "{claim}: {text}");
        speaking.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_speaks_http_2_and_is_no_containerd_is_named() {
    let replies = [
        ("a page", Reply::Page),
        ("no message", Reply::Message(Vec::new())),
        ("garbage", Reply::Message(vec![0xff; 64])),
        ("a message without an end", Reply::Announced(100)),
        ("a message of 4 GiB", Reply::Announced(u32::MAX)),
        ("silence", Reply::Silent(vec![0xff; 64])),
        (
            "half an answer",
            Reply::Half(VersionResponse::default().encode_to_vec()),
        ),
    ];
    for (claim, reply) in replies {
        let place = Place::answering("/containerd.services.version.v1.Version/Version", reply);
        let error = match place.client().await {
            Err(error) => error,
            // An empty version is accepted: builds from a working tree have none.
            Ok(_) if claim == "no message" => continue,
            Ok(_) => panic!("{claim}: connected"),
        };
        let text = told(&error);
        assert!(text.contains("odd.sock"), "{claim}: {text}");
    }
}

fn image(name: &str, digest: &str, size: i64) -> Image {
    Image {
        name: name.to_owned(),
        target: Some(Descriptor {
            digest: digest.to_owned(),
            size,
            ..Descriptor::default()
        }),
        labels: [("k".repeat(1 << 16), "v".repeat(1 << 20))].into(),
        ..Image::default()
    }
}

const LIST: &str = "/containerd.services.images.v1.Images/List";
const GET: &str = "/containerd.services.images.v1.Images/Get";
const BLOBS: &str = "/containerd.services.content.v1.Content/List";
const INFO: &str = "/containerd.services.content.v1.Content/Info";
const READ: &str = "/containerd.services.content.v1.Content/Read";
const INGESTS: &str = "/containerd.services.content.v1.Content/ListStatuses";

fn good() -> String {
    format!("sha256:{}", "a".repeat(64))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_cannot_be_are_left_out_or_taken_as_they_are() {
    let images = vec![
        image("", &good(), -1),
        image("\0\n\u{202e}", &good(), i64::MIN),
        image("registry.test/a:1", "sha256:short", 7),
        image("registry.test/b:1", "../../etc/passwd", 7),
        Image::default(),
    ];
    let place = Place::answering(LIST, message(&ListImagesResponse { images }));
    let client = place.client().await.expect("it says its version");
    let found = client.images().await.expect("an answer");
    let found: Vec<_> = found
        .iter()
        .map(|record| (&*record.name, record.target.size()))
        .collect();
    assert_eq!(found, [("", 0), ("\0\n\u{202e}", 0)]);

    let statuses = vec![IngestStatus {
        r#ref: "airgapd-x".to_owned(),
        offset: -5,
        total: i64::MIN,
        updated_at: Some(prost_types::Timestamp {
            seconds: i64::MAX,
            nanos: -1,
        }),
        ..IngestStatus::default()
    }];
    let place = Place::answering(INGESTS, message(&ListStatusesResponse { statuses }));
    let client = place.client().await.expect("it says its version");
    let found = client.ingests().await.expect("an answer");
    assert_eq!(
        (found[0].offset, found[0].total, found[0].updated_at),
        (0, 0, None)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_about_something_else_is_not_taken() {
    let other = GetImageResponse {
        image: Some(image("registry.test/other:1\n", &good(), 7)),
    };
    let place = Place::answering(GET, message(&other));
    let client = place.client().await.expect("it says its version");
    let error = client
        .image("registry.test/asked:1")
        .await
        .expect_err("another name");
    let text = told(&error);
    for part in ["odd.sock", "registry.test/asked:1", "registry.test/other:1\\n"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(client.images_named(["registry.test/asked:1"]).await.is_err());

    let other = InfoResponse {
        info: Some(Info {
            digest: good(),
            size: 7,
            ..Info::default()
        }),
    };
    let place = Place::answering(INFO, message(&other));
    let client = place.client().await.expect("it says its version");
    let asked = format!("sha256:{}", "b".repeat(64)).parse().expect("a digest");
    let text = told(&client.blob(&asked).await.expect_err("another digest"));
    assert!(
        text.contains("odd.sock") && text.contains(asked.as_ref()),
        "{text}"
    );
    let same = good().parse().expect("a digest");
    assert_eq!(
        client.blob(&same).await.expect("an answer").map(|blob| blob.size),
        Some(7)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_that_cannot_be_read_or_do_not_end_are_errors() {
    let page = ListContentResponse {
        info: vec![Info::default(); 20_000],
    }
    .encode_to_vec();
    let replies = [
        ("garbage", Reply::Message(vec![0xff; 64])),
        ("an endless list", Reply::Endless(page.clone())),
        ("half a list", Reply::Half(page.clone())),
        ("a list that stands still", Reply::Silent(page)),
        ("a message of 4 GiB", Reply::Announced(u32::MAX)),
    ];
    for (claim, reply) in replies {
        let place = Place::answering(BLOBS, reply);
        let client = place.client().await.expect("it says its version");
        let listing = tokio::time::timeout(PATIENCE, client.blobs());
        let error = listing.await.expect("it ends").expect_err(claim);
        if claim == "an endless list" {
            let text = told(&error);
            assert!(
                text.contains("has not ended") && text.contains("odd.sock"),
                "{text}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_records_of_which_no_part_fits_or_can_be_read_ends() {
    let lists = [
        ("garbage", Reply::Message(vec![0xff; 64])),
        (
            "a record that is garbage",
            Reply::Message(vec![0x0a, 2, 0xff, 0xff]),
        ),
        (
            "half a list",
            Reply::Half(ListImagesResponse::default().encode_to_vec()),
        ),
        ("a list that stands still", Reply::Silent(Vec::new())),
        ("a message of 4 GiB", Reply::Announced(u32::MAX)),
    ];
    for (claim, reply) in lists {
        let place = Place::answering(LIST, reply);
        let client = place.client().await.expect("it says its version");
        let listing = tokio::time::timeout(PATIENCE, client.images());
        let error = listing.await.expect("it ends").expect_err(claim);
        let calls = place.calls();
        assert!(calls < 100, "{claim}: {calls} calls, {error:?}");
        if claim == "a message of 4 GiB" {
            assert!(matches!(error, Error::TooLarge { .. }), "{error:?}");
            assert!(told(&error).contains("odd.sock"), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_without_an_end_is_read_no_further_than_to_its_limit() {
    let piece = ReadContentResponse {
        offset: -1,
        data: vec![7; 1 << 16],
    };
    let place = Place::answering(READ, Reply::Endless(piece.encode_to_vec()));
    let client = place.client().await.expect("it says its version");
    let digest = good().parse().expect("a digest");
    let began = Instant::now();
    let error = client.read_blob(&digest, 1 << 20).await.expect_err("too much");
    assert!(told(&error).contains("is larger than"), "{error:?}");
    assert!(began.elapsed() < PATIENCE);
    // An endless stream of empty pieces is no blob either.
    let place = Place::answering(
        READ,
        Reply::Endless(ReadContentResponse::default().encode_to_vec()),
    );
    let client = place.client().await.expect("it says its version");
    let reading = tokio::time::timeout(PATIENCE, client.read_blob(&digest, 1 << 20));
    reading.await.expect("it ends").expect_err("nothing comes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_cri_has_more_pods_than_a_message_holds_the_sandbox_image_is_not_known() {
    let pods = "/runtime.v1.RuntimeService/ListPodSandbox";
    let place = Place::answering(pods, Reply::Announced(u32::MAX));
    let client = place.client().await.expect("it says its version");
    assert_eq!(client.cri().sandbox_image().await.expect("an answer"), None);
    assert_eq!(place.calls(), 1);
}
