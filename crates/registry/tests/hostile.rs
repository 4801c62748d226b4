//! Hostile registries: their redirects, their requests for credentials, and the amount that they
//! send.
//!
//! A small server plays all of them. For a registry on another machine, the server is the proxy of
//! every request. So it sees which host the client would have asked.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use airgapd_registry::{
    Client, Counters, Credentials, Error, Feed, ImageRef, Options, Proxies, Resolved, Retry, Security,
    resolve,
};
use bundle::write::BlobFeed as _;
use platforms::Wanted;

/// A received request.
#[derive(Clone, Debug)]
struct Request {
    method: String,
    /// A path, or the whole address if the server is the proxy.
    target: String,
    authorization: Option<String>,
}

/// The answer to a request.
enum Reply {
    Bytes(Vec<u8>),
    /// The same piece repeated, until the client closes the connection.
    Endless(String, Vec<u8>),
}

struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Answers each request on its own connection. The server ends with the process.
    fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (answer, all) = (Arc::new(answer), Arc::clone(&seen));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (answer, all) = (Arc::clone(&answer), Arc::clone(&all));
                thread::spawn(move || serve(stream, &*answer, &all));
            }
        });
        Server { port, seen }
    }

    fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// Returns the hosts that the client asked through the proxy.
    fn asked(&self) -> Vec<String> {
        let host = |request: Request| {
            let rest = request
                .target
                .strip_prefix("http://")
                .unwrap_or(&request.target)
                .to_owned();
            rest.split('/').next().unwrap_or_default().to_owned()
        };
        self.seen().into_iter().map(host).collect()
    }

    /// Returns a client that reaches every registry through this server.
    fn client(&self, credentials: Credentials) -> Client {
        client(Options {
            proxies: Proxies {
                http: Some(format!("http://127.0.0.1:{}", self.port)),
                ..Proxies::default()
            },
            credentials,
            ..Options::default()
        })
    }
}

fn client(options: Options) -> Client {
    Client::new(Options {
        security: Security::PlainHttp,
        retry: Retry {
            times: 1,
            pause: Duration::from_millis(1),
        },
        ..options
    })
    .unwrap()
}

fn serve(stream: TcpStream, answer: &(dyn Fn(&Request) -> Reply + Send + Sync), seen: &Mutex<Vec<Request>>) {
    let mut reader = BufReader::new(stream);
    let (mut lines, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(n) if n > 0 && !line.trim_end().is_empty() => lines.push(line.trim_end().to_owned()),
            _ => break,
        }
    }
    let mut authorization = None;
    for line in &lines {
        let Some((name, value)) = line.split_once(": ") else {
            continue;
        };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => authorization = Some(value.to_owned()),
            "content-length" => length = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    let _ = reader.read_exact(&mut body);
    let mut words = lines.first().map(String::as_str).unwrap_or_default().split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return;
    };
    let request = Request {
        method: method.to_owned(),
        target: target.to_owned(),
        authorization,
    };
    seen.lock().unwrap().push(request.clone());
    let mut stream = reader.into_inner();
    match answer(&request) {
        Reply::Bytes(bytes) => drop(stream.write_all(&bytes)),
        Reply::Endless(head, piece) => {
            if stream.write_all(head.as_bytes()).is_ok() {
                while stream.write_all(&piece).is_ok() {}
            }
        }
    }
}

fn reply(status: u16, headers: &str, body: &[u8]) -> Reply {
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
    Reply::Bytes([head.as_bytes(), body].concat())
}

fn redirect(location: &str) -> Reply {
    reply(307, &format!("Location: {location}\r\n"), b"")
}

fn digest_of(bytes: &[u8]) -> String {
    basics::digest::sha256(bytes).to_string()
}

const CONFIG: &str = r#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}"#;
const LAYER: &[u8] = b"a layer";

fn manifest() -> String {
    let part = |kind: &str, bytes: &[u8]| {
        let (digest, size) = (digest_of(bytes), bytes.len());
        format!(r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{digest}","size":{size}}}"#)
    };
    let (config, layer) = (
        part("config.v1+json", CONFIG.as_bytes()),
        part("layer.v1.tar", LAYER),
    );
    format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{config},"layers":[{layer}]}}"#
    )
}

/// Answers like a registry that behaves well.
fn honest(request: &Request) -> Reply {
    if request.target.contains("/manifests/") {
        reply(200, "", manifest().as_bytes())
    } else if request.target.contains(&digest_of(CONFIG.as_bytes())) {
        reply(200, "", CONFIG.as_bytes())
    } else {
        reply(200, "", LAYER)
    }
}

fn image(registry: &str) -> ImageRef {
    ImageRef {
        repository: format!("{registry}/some/image"),
        tag: Some("1".to_owned()),
        digest: None,
    }
}

async fn fetch(client: &Client, registry: &str) -> Result<Resolved, Error> {
    resolve(client, None, &image(registry), &Wanted::All { rules: Vec::new() }).await
}

/// Returns credentials for these hosts. Each user has the name of the host.
fn credentials(folder: &tempfile::TempDir, hosts: &[&str]) -> Credentials {
    let auths: serde_json::Map<_, _> = hosts
        .iter()
        .map(|host| {
            (
                (*host).to_owned(),
                serde_json::json!({"username": host, "password": "secret"}),
            )
        })
        .collect();
    let path: PathBuf = folder.path().join("auth.json");
    std::fs::write(&path, serde_json::json!({ "auths": auths }).to_string()).unwrap();
    Credentials::read(&[path], &[]).unwrap()
}

fn basic(host: &str) -> String {
    use base64::Engine as _;
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{host}:secret"));
    format!("Basic {pair}")
}

#[tokio::test]
async fn no_registry_leads_to_this_machine_or_its_link() {
    for target in [
        "http://127.0.0.1:9/secret",
        "http://127.1/",
        "http://2130706433/",
        "http://0/",
        "http://[::1]/",
        "http://[::]/",
        "http://[::ffff:127.0.0.1]/",
        "http://localhost/",
        "http://LOCALHOST:8080/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:169.254.169.254]/",
        "http://[fe80::1]/",
        "http://[fd00:ec2::254]/latest/meta-data/",
        "//169.254.169.254/latest/",
        "https://127.0.0.1/",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "\u{ff}",
    ] {
        let server = Server::start(move |_| redirect(target));
        let error = fetch(&server.client(Credentials::default()), "registry.test")
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Redirect { .. }), "{target}: {error}");
        assert_eq!(server.asked(), ["registry.test"], "{target}");
        let realm = Server::start(move |_| {
            reply(
                401,
                &format!("WWW-Authenticate: Bearer realm=\"{target}\"\r\n"),
                b"",
            )
        });
        let error = fetch(&realm.client(Credentials::default()), "registry.test")
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Denied { .. }), "{target}: {error}");
        assert_eq!(realm.asked(), ["registry.test"], "{target}");
    }
}

#[tokio::test]
async fn a_coding_of_bytes_that_have_their_digest_is_no_obstacle() {
    let server = Server::start(|request| {
        if request.target.contains("/manifests/") {
            return honest(request);
        }
        let body = match request.target.contains(&digest_of(CONFIG.as_bytes())) {
            true => CONFIG.as_bytes(),
            false => LAYER,
        };
        reply(200, "Content-Encoding: aws-chunked\r\n", body)
    });
    fetch(&server.client(Credentials::default()), "registry.test")
        .await
        .unwrap();
}

#[tokio::test]
async fn a_registry_on_this_machine_may_lead_to_this_machine() {
    let second = Server::start(honest);
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
        let target = format!("http://{host}:{}", second.port);
        let first = Server::start(move |request| redirect(&format!("{target}{}", request.target)));
        let own = client(Options::default());
        fetch(&own, &format!("127.0.0.1:{}", first.port)).await.unwrap();
        fetch(&own, &format!("localhost:{}", first.port)).await.unwrap();
    }
    // The link of this machine is refused.
    let first = Server::start(|_| redirect("http://169.254.169.254/latest/"));
    let own = client(Options::default());
    let error = fetch(&own, &format!("127.0.0.1:{}", first.port))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("169.254.169.254"), "{error}");
}

#[tokio::test]
async fn credentials_go_no_further_than_their_registry() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(|request| {
        let wants = request.target.starts_with("http://registry.test/");
        match (&request.authorization, wants) {
            (None, true) => reply(401, "WWW-Authenticate: Basic realm=\"x\"\r\n", b""),
            (Some(_), true) => redirect(&request.target.replace("registry.test", "store.test")),
            _ if request.target.starts_with("http://store.test/") => {
                redirect(&request.target.replace("store.test", "registry.test:80/again"))
            }
            _ => honest(request),
        }
    });
    let own = server.client(credentials(&folder, &["registry.test", "store.test"]));
    // After a redirect back to the registry, the client does not send credentials again. The
    // registry requires them, so the request fails.
    let error = fetch(&own, "registry.test").await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
    for request in server.seen() {
        let of_store = request.target.starts_with("http://store.test/");
        assert!(!of_store || request.authorization.is_none(), "{request:?}");
    }
    assert!(server.asked().iter().any(|host| host == "store.test"));
}

/// Starts a registry that requires a token from `realm`.
fn with_tokens(realm: &'static str) -> Server {
    Server::start(move |request| {
        if request.target.contains("/token") {
            return reply(200, "", br#"{"token":"opens"}"#);
        }
        if request.authorization.as_deref() == Some("Bearer opens") {
            return honest(request);
        }
        reply(
            401,
            &format!("WWW-Authenticate: Bearer realm=\"{realm}\"\r\n"),
            b"",
        )
    })
}

#[tokio::test]
async fn passwords_go_to_token_services_of_their_registry_or_those_that_the_operator_names() {
    let folder = tempfile::tempdir().unwrap();
    let evil = "http://evil.test/token";
    /// Registry, token service, hosts with credentials, and the host whose credentials the service
    /// gets, or the reason for none.
    type Row = (
        &'static str,
        &'static str,
        &'static [&'static str],
        Result<Option<&'static str>, &'static str>,
    );
    let table: [Row; 8] = [
        (
            "registry.test",
            "http://registry.test/token",
            &["registry.test"],
            Ok(Some("registry.test")),
        ),
        (
            "registry.test",
            "http://auth.registry.test/token",
            &["registry.test"],
            Ok(Some("registry.test")),
        ),
        (
            "registry.gitlab.test",
            "http://gitlab.test/token",
            &["registry.gitlab.test"],
            Ok(Some("registry.gitlab.test")),
        ),
        (
            "docker.io",
            "http://auth.docker.io/token",
            &["docker.io"],
            Ok(Some("docker.io")),
        ),
        (
            "registry.test",
            evil,
            &["registry.test"],
            Err("evil.test is another host and gets no password of registry.test"),
        ),
        (
            "registry.test",
            evil,
            &["registry.test", "evil.test"],
            Ok(Some("evil.test")),
        ),
        ("registry.test", evil, &[], Ok(None)),
        (
            "registry.test",
            "http://auth.other.test/token",
            &["registry.test"],
            Err("an entry for auth.other.test"),
        ),
    ];
    for (registry, realm, hosts, expected) in table {
        let server = with_tokens(realm);
        let result = fetch(&server.client(credentials(&folder, hosts)), registry).await;
        let asked: Vec<_> = server
            .seen()
            .into_iter()
            .filter(|seen| seen.target.contains("/token"))
            .collect();
        match expected {
            Ok(user) => {
                result.unwrap_or_else(|error| panic!("{realm}: {error}"));
                assert_eq!(asked[0].authorization, user.map(basic), "{realm}");
            }
            Err(words) => {
                let error = result.unwrap_err().to_string();
                assert!(error.contains(words), "{realm}: {error}");
                assert!(asked.is_empty(), "{realm}");
            }
        }
    }
}

#[tokio::test]
async fn a_token_service_that_redirects_gets_no_refresh_token_anywhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("auth.json");
    let document = serde_json::json!({"auths": {"registry.test": {"identitytoken": "refresh"}}});
    std::fs::write(&path, document.to_string()).unwrap();
    let server = Server::start(|request| {
        if request.method == "POST" {
            return redirect("http://elsewhere.test/token");
        }
        reply(
            401,
            "WWW-Authenticate: Bearer realm=\"http://registry.test/token\"\r\n",
            b"",
        )
    });
    let own = server.client(Credentials::read(&[path], &[]).unwrap());
    let error = fetch(&own, "registry.test").await.unwrap_err();
    assert!(
        error.to_string().contains("a request with credentials"),
        "{error}"
    );
    assert!(!server.asked().contains(&"elsewhere.test".to_owned()));
}

#[tokio::test]
async fn redirects_end() {
    let server = Server::start(|request| redirect(&format!("{}x", request.target)));
    let error = fetch(&server.client(Credentials::default()), "registry.test")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("more than 10 times"), "{error}");
    assert_eq!(server.seen().len(), 11);
}

#[tokio::test]
async fn documents_without_end_and_codings_that_were_not_asked_for_are_refused() {
    let zeros = || vec![b' '; 64 << 10];
    let head = "HTTP/1.1 200 X\r\n";
    let table = [
        (
            format!("{head}Connection: close\r\n\r\n"),
            "sent more than 8388608 bytes",
        ),
        (
            format!("{head}Content-Length: 1000000000000\r\n\r\n"),
            "sent more than 8388608 bytes",
        ),
        (
            format!("{head}Content-Encoding: gzip\r\n\r\n"),
            "Content-Encoding gzip",
        ),
    ];
    for (head, words) in table {
        let server = Server::start(move |_| Reply::Endless(head.clone(), zeros()));
        let error = fetch(&server.client(Credentials::default()), "registry.test")
            .await
            .unwrap_err();
        assert!(error.to_string().contains(words), "{words}: {error}");
    }
    // An endless refusal still counts as a refusal.
    let head = "HTTP/1.1 404 X\r\nConnection: close\r\n\r\n";
    let server = Server::start(move |_| Reply::Endless(head.to_owned(), zeros()));
    let error = fetch(&server.client(Credentials::default()), "registry.test")
        .await
        .unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    // An endless token is refused too.
    let server = Server::start(move |request| match request.target.contains("/token") {
        true => Reply::Endless("HTTP/1.1 200 X\r\n\r\n".to_owned(), zeros()),
        false => reply(
            401,
            "WWW-Authenticate: Bearer realm=\"http://registry.test/token\"\r\n",
            b"",
        ),
    });
    let error = fetch(&server.client(Credentials::default()), "registry.test")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("more than 1048576 bytes"), "{error}");
}

#[tokio::test]
async fn lengths_and_digests_that_lie_are_found() {
    let cut = |length: usize, body: &str| {
        Reply::Bytes(
            format!("HTTP/1.1 200 X\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}").into(),
        )
    };
    let short = Server::start(move |_| cut(manifest().len() + 10, &manifest()));
    let error = fetch(&short.client(Credentials::default()), "registry.test")
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Transfer { .. }), "{error}");
    let long = Server::start(move |_| cut(manifest().len() - 10, &manifest()));
    let error = fetch(&long.client(Credentials::default()), "registry.test")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("not valid"), "{error}");
    let other = Server::start(|request| match request.target.contains("/blobs/") {
        true => reply(200, "", CONFIG.replace("linux", "lunix").as_bytes()),
        false => honest(request),
    });
    let error = fetch(&other.client(Credentials::default()), "registry.test")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("does not match the digest"), "{error}");
    let mut pinned = image("registry.test");
    pinned.digest = Some(digest_of(b"another").parse().unwrap());
    let honest_one = Server::start(honest);
    let own = honest_one.client(Credentials::default());
    let error = resolve(&own, None, &pinned, &Wanted::All { rules: Vec::new() })
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Disagree { .. }), "{error}");
}

/// Reads the layer of the image. Returns the number of bytes that arrived, and the error.
async fn layer(server: &Server) -> (usize, Option<String>) {
    layer_by(server.client(Credentials::default())).await
}

async fn layer_by(client: Client) -> (usize, Option<String>) {
    let client = Arc::new(client);
    let resolved = fetch(&client, "registry.test").await.unwrap();
    let blobs = resolved.draft.layers.clone();
    let mut feed = Feed::begin(&client, &[resolved], &blobs, 1, None, &Counters::default());
    tokio::task::spawn_blocking(move || {
        let mut reader = feed.open(&blobs[0]).unwrap();
        let (mut piece, mut came) = ([0; 4096], 0);
        loop {
            match reader.read(&mut piece) {
                Ok(0) => return (came, None),
                Ok(n) => came += n,
                Err(error) => return (came, Some(error.to_string())),
            }
        }
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn a_layer_without_end_is_read_a_little_beyond_its_size() {
    let is_layer = |request: &Request| request.target.contains(&digest_of(LAYER));
    let endless = Server::start(move |request| match is_layer(request) {
        true => Reply::Endless("HTTP/1.1 200 X\r\n\r\n".to_owned(), vec![0; 64 << 10]),
        false => honest(request),
    });
    let (came, error) = layer(&endless).await;
    // The extra piece tells the writer of the bundle that the layer is too long.
    assert!(
        error.is_none() && came > LAYER.len() && came < 1 << 20,
        "{came}: {error:?}"
    );
    let short = Server::start(move |request| match is_layer(request) {
        true => reply(200, "", &LAYER[..3]),
        false => honest(request),
    });
    let (_, error) = layer(&short).await;
    assert!(error.unwrap().contains("ended after 3 of 7 bytes"));
    let redirected = Server::start(move |request| match is_layer(request) {
        true => redirect("http://169.254.169.254/latest"),
        false => honest(request),
    });
    let (_, error) = layer(&redirected).await;
    assert!(error.unwrap().contains("169.254.169.254"));
}

#[tokio::test]
async fn a_busy_mirror_keeps_no_layer_waiting_that_another_registry_gives() {
    let server = Server::start(|request| {
        let is_busy = request.target.contains("mirror.test") && request.target.contains(&digest_of(LAYER));
        match is_busy {
            true => reply(429, "Retry-After: 60\r\n", b""),
            false => honest(request),
        }
    });
    let client = client(Options {
        proxies: Proxies {
            http: Some(format!("http://127.0.0.1:{}", server.port)),
            ..Proxies::default()
        },
        mirrors: vec!["registry.test=mirror.test".parse().unwrap()],
        ..Options::default()
    });
    let came = tokio::time::timeout(Duration::from_secs(30), layer_by(client)).await;
    assert_eq!(came.expect("the layer comes at once"), (LAYER.len(), None));
    assert!(
        server.asked().contains(&"mirror.test".to_owned()),
        "{:?}",
        server.asked()
    );
}
