//! A real registry (Debian's docker-registry) on its own port, and the functions that fill it.
//!
//! skopeo cannot push nested indexes and artifacts. A few HTTP requests push them (OCI
//! distribution-spec 1.1, "Push").

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use bundle::fixtures::{Archive, Image, Layout};
use oci_spec::image::Digest;
use serde_json::Value;
use tempfile::TempDir;

use super::bundles;
use super::tools::{run, tool};
use super::wait_until;

/// User and password of registries that require credentials.
pub const USER: &str = "robot";
pub const PASSWORD: &str = "secret";

/// The same in the form of htpasswd: bcrypt at its lowest cost.
const USER_LINE: &str = "robot:$2b$04$FU83Sp1vUpSFtNPIMXbhkeJ5evBhBx2C0D08ouubdEkiKH1WSnkhq\n";

/// The settings of a registry.
#[derive(Default)]
pub struct Manner<'a> {
    /// TLS with this certificate and key.
    pub tls: Option<&'a Certificate>,
    /// True if only [`USER`] has access.
    pub private: bool,
}

/// A certificate for the loopback address, signed by its own authority.
pub struct Certificate {
    folder: TempDir,
}

impl Certificate {
    pub fn new() -> Certificate {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        let mut authority = CertificateParams::new([]).expect("no names");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let own = authority.self_signed(&key).expect("a certificate");
        let issuer = Issuer::new(authority, key);
        let names = ["127.0.0.1", "localhost"].map(str::to_owned);
        let params = CertificateParams::new(names).expect("two names");
        let server_key = KeyPair::generate().expect("a key");
        let server = params.signed_by(&server_key, &issuer).expect("a certificate");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, text: String| fs::write(folder.path().join(name), text).expect("a file");
        write("ca.pem", own.pem());
        write("server.pem", server.pem());
        write("server.key", server_key.serialize_pem());
        Certificate { folder }
    }

    /// Returns the path of the authority's certificate, for `--ca-file`.
    pub fn authority(&self) -> String {
        bundles::text(&self.folder.path().join("ca.pem"))
    }
}

/// A registry. Dropping it ends it.
pub struct Registry {
    program: PathBuf,
    child: Child,
    port: u16,
    folder: Arc<TempDir>,
    configuration: PathBuf,
    log: Arc<Mutex<String>>,
}

impl Registry {
    /// Starts an empty registry without TLS and credentials. `None` if the program is missing,
    /// which is a failure only on a complete machine.
    pub fn start() -> Option<Registry> {
        let program = tool("docker-registry")?;
        let folder = Arc::new(tempfile::tempdir().expect("a temporary folder"));
        Some(Registry::of(program, folder, &Manner::default()))
    }

    /// Starts a second registry with the same content.
    pub fn also(&self, manner: &Manner<'_>) -> Registry {
        Registry::of(self.program.clone(), Arc::clone(&self.folder), manner)
    }

    fn of(program: PathBuf, folder: Arc<TempDir>, manner: &Manner<'_>) -> Registry {
        let configuration = folder.path().join(format!("{}.yml", super::unique()));
        let users = folder.path().join("htpasswd");
        fs::write(&users, USER_LINE).expect("a file");
        let mut text = format!(
            "version: 0.1\nlog: {{accesslog: {{disabled: false}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\n\
             compatibility: {{schema1: {{enabled: true}}}}\n",
            folder.path().join("storage").display()
        );
        if manner.private {
            let users = users.display();
            text += &format!("auth: {{htpasswd: {{realm: test, path: {users}}}}}\n");
        }
        text += "http:\n  secret: test\n  relativeurls: true\n";
        if let Some(certificate) = manner.tls {
            let file = |name: &str| bundles::text(&certificate.folder.path().join(name));
            text += &format!(
                "  tls: {{certificate: {}, key: {}}}\n",
                file("server.pem"),
                file("server.key")
            );
        }
        fs::write(&configuration, format!("{text}  addr: 127.0.0.1:0\n")).expect("a file");
        let (child, port, log) = begin(&program, &configuration);
        fs::write(&configuration, format!("{text}  addr: 127.0.0.1:{port}\n")).expect("a file");
        Registry {
            program,
            child,
            port,
            folder,
            configuration,
            log,
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the host as references name it.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns its log: a line for each request, with the status of the answer.
    pub fn log(&self) -> String {
        self.log.lock().expect("no holder panics").clone()
    }

    /// Kills it like a crash.
    pub fn kill(&mut self) {
        self.child.kill().expect("the process runs");
        self.child.wait().expect("waiting for the child works");
    }

    /// Starts it again on the same port.
    pub fn restart(&mut self) {
        let (child, port, log) = begin(&self.program, &self.configuration);
        assert_eq!(port, self.port);
        (self.child, self.log) = (child, log);
    }

    /// Pushes an image with everything below it. Returns its reference by tag and its digest.
    pub fn push(&self, repository: &str, tag: &str, image: Image) -> (String, Digest) {
        let archive = Layout::new().image(image).build();
        let root = archive.images[0].root.clone();
        self.push_tree(repository, &archive, &root);
        self.put_manifest(repository, tag, &archive.bytes_of(&archive.name_of(&root)));
        (format!("{}/{repository}:{tag}", self.host()), root)
    }

    fn push_tree(&self, repository: &str, archive: &Archive, digest: &Digest) {
        let bytes = archive.bytes_of(&archive.name_of(digest));
        let document: Value = serde_json::from_slice(&bytes).expect("a document");
        let list = |key: &str| document[key].as_array().cloned().unwrap_or_default();
        let digest_of = |entry: &Value| -> Digest {
            let text = entry["digest"].as_str().expect("a descriptor");
            text.parse().expect("a digest")
        };
        for child in list("manifests") {
            self.push_tree(repository, archive, &digest_of(&child));
        }
        let config = document["config"].is_object().then(|| document["config"].clone());
        for blob in list("layers").into_iter().chain(config) {
            let digest = digest_of(&blob);
            self.put_blob(repository, &digest, &archive.bytes_of(&archive.name_of(&digest)));
        }
        self.put_manifest(repository, digest.as_ref(), &bytes);
    }

    fn put_blob(&self, repository: &str, digest: &Digest, bytes: &[u8]) {
        let (status, headers) = self.ask("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], &[]);
        assert_eq!(status, 202, "{}", self.log());
        let place = &headers["location"];
        let separator = if place.contains('?') { '&' } else { '?' };
        let place = format!("{place}{separator}digest={digest}");
        let kind = ("Content-Type", "application/octet-stream");
        let (status, _) = self.ask("PUT", &place, &[kind], bytes);
        assert_eq!(status, 201, "{}", self.log());
    }

    /// Pushes a manifest or index under a tag or its digest. Everything that it refers to must be
    /// in the registry.
    pub fn put_manifest(&self, repository: &str, reference: &str, bytes: &[u8]) {
        let document: Value = serde_json::from_slice(bytes).expect("a document");
        let kind = ("Content-Type", document["mediaType"].as_str().expect("a type"));
        let place = format!("/v2/{repository}/manifests/{reference}");
        let (status, _) = self.ask("PUT", &place, &[kind], bytes);
        assert_eq!(status, 201, "{}", self.log());
    }

    /// Returns the digest of a tag.
    pub fn digest(&self, repository: &str, tag: &str) -> String {
        let accept = [
            "application/vnd.oci.image.index.v1+json",
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.docker.distribution.manifest.list.v2+json",
            "application/vnd.docker.distribution.manifest.v2+json",
        ]
        .join(",");
        let place = format!("/v2/{repository}/manifests/{tag}");
        let (status, headers) = self.ask("HEAD", &place, &[("Accept", &accept)], &[]);
        assert_eq!(status, 200, "{}", self.log());
        headers["docker-content-digest"].clone()
    }

    fn ask(
        &self,
        method: &str,
        place: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> (u16, BTreeMap<String, String>) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the registry listens");
        let mut head = format!(
            "{method} {place} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n",
            self.host(),
            body.len()
        );
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        stream
            .write_all(format!("{head}\r\n").as_bytes())
            .expect("the other side reads");
        stream.write_all(body).expect("the other side reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the other side answers");
        let answer = String::from_utf8_lossy(&answer);
        let (first, rest) = answer.split_once("\r\n").expect("a status line");
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let lines = rest.lines().take_while(|line| !line.is_empty());
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
        (status.expect("a status"), headers.collect())
    }

    /// Copies an image of a bundle into the registry with skopeo, with all platforms. skopeo
    /// compresses layers that are not compressed.
    pub fn fill_with_skopeo(&self, bundle: &Path, name: &str, place: &str, flags: &[&str]) {
        let skopeo = tool("skopeo").expect("where there is a registry there is a skopeo");
        let mut copy = Command::new(skopeo);
        copy.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]);
        copy.args(flags);
        copy.arg(format!("oci-archive:{}:{name}", bundles::text(bundle)));
        run(copy.arg(format!("docker://{}/{place}", self.host())));
    }
}

/// Starts the program, and waits until it reports that it listens.
fn begin(program: &Path, configuration: &Path) -> (Child, u16, Arc<Mutex<String>>) {
    let mut child = Command::new(program)
        .arg("serve")
        .arg(configuration)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the registry starts");
    let log = Arc::new(Mutex::new(String::new()));
    let outputs: [Box<dyn Read + Send>; 2] = [
        Box::new(child.stdout.take().expect("the stream is piped")),
        Box::new(child.stderr.take().expect("the stream is piped")),
    ];
    for output in outputs {
        let log = Arc::clone(&log);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let mut log = log.lock().expect("no holder panics");
                log.push_str(&line);
                log.push('\n');
            }
        });
    }
    let mut port = None;
    wait_until("the registry listens", || {
        let log = log.lock().expect("no holder panics");
        let rest = log.split_once("listening on 127.0.0.1:").map(|(_, rest)| rest);
        let digits = rest.map(|rest| {
            rest.split(|c: char| !c.is_ascii_digit())
                .next()
                .unwrap_or_default()
        });
        port = digits.and_then(|digits| digits.parse().ok());
        port.is_some()
    });
    (child, port.expect("the wait ended with a port"), log)
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
