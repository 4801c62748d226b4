//! A stand-in for a mirror between nodes, such as Spegel. It serves the content of one containerd
//! as a read-only registry.
//!
//! The mirror knows nothing of airgapd. It serves a blob for a repository only if a label of the
//! blob names that repository: `containerd.io/distribution.source.<registry>`. The registry is the
//! parameter `ns`, which containerd adds to each request to a mirror. It serves by digest only.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use containerd::Client;
use oci_spec::image::Digest;
use serde_json::Value;
use tokio::runtime::Runtime;

use super::Target;

/// Largest manifest or index in bytes, as containerd limits it.
const LARGEST_DOCUMENT: u64 = 8 << 20;

/// The mirror. Dropping it ends it.
pub struct Peer {
    port: u16,
    seen: Arc<Mutex<Vec<String>>>,
    is_over: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Peer {
    /// Serves the target's content on a free port of this machine.
    pub fn of(target: &Target) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("the socket is bound").port();
        let (seen, is_over) = (Arc::<Mutex<Vec<_>>>::default(), Arc::new(AtomicBool::new(false)));
        let runtime = Runtime::new().expect("threads for a client");
        let client = runtime.block_on(Client::connect(target.socket(), target.namespace()));
        let client = client.expect("containerd is there");
        let (log, end) = (Arc::clone(&seen), Arc::clone(&is_over));
        let server = thread::spawn(move || {
            thread::scope(|scope| {
                while let Ok((stream, _)) = listener.accept() {
                    if end.load(Ordering::Relaxed) {
                        return;
                    }
                    let shelf = Shelf {
                        client: &client,
                        runtime: &runtime,
                        log: &log,
                    };
                    // A client that hangs up early gets no more.
                    scope.spawn(move || drop(shelf.serve(&stream)));
                }
            });
        });
        Peer {
            port,
            seen,
            is_over,
            server: Some(server),
        }
    }

    /// Returns the requests so far, each as `<status> <method> <path and query>`.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("no holder panics").clone()
    }

    /// Writes the file of containerd that sends pulls from a registry to this mirror first. Returns
    /// the folder.
    pub fn write_hosts(&self, folder: PathBuf, registry: &str) -> PathBuf {
        let of_registry = folder.join(registry);
        std::fs::create_dir_all(&of_registry).expect("a folder");
        let port = self.port;
        let text = format!(
            "server = \"https://{registry}\"\n\n\
             [host.\"http://127.0.0.1:{port}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
        );
        std::fs::write(of_registry.join("hosts.toml"), text).expect("a file");
        folder
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // The connection ends the wait for one.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        if let Some(server) = self.server.take() {
            drop(server.join());
        }
    }
}

/// The content of a containerd, as one request sees it.
struct Shelf<'s> {
    client: &'s Client,
    runtime: &'s Runtime,
    log: &'s Mutex<Vec<String>>,
}

/// A blob that a request may have.
struct Found {
    digest: Digest,
    size: u64,
    kind: String,
}

impl Shelf<'_> {
    /// Answers the only request of a connection.
    fn serve(&self, mut stream: &TcpStream) -> io::Result<()> {
        let mut lines = BufReader::new(stream).lines();
        let first = lines
            .next()
            .unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))?;
        for line in lines {
            if line?.is_empty() {
                break;
            }
        }
        let mut words = first.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let found = self.runtime.block_on(self.find(target));
        let status = if found.is_some() { 200 } else { 404 };
        let line = format!("{status} {method} {target}");
        self.log.lock().expect("no holder panics").push(line);
        let Some(found) = found else {
            return stream
                .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        };
        let Found { digest, size, kind } = &found;
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n\
             Docker-Content-Digest: {digest}\r\nConnection: close\r\n\r\n"
        )?;
        if method == "HEAD" {
            return Ok(());
        }
        self.runtime.block_on(async {
            let open = self.client.open_blob(digest, 0);
            let mut reader = open.await.map_err(io::Error::other)?;
            while let Some(piece) = reader.next().await.map_err(io::Error::other)? {
                stream.write_all(&piece)?;
            }
            Ok(())
        })
    }

    /// Returns the blob of `/v2/<repository>/{manifests,blobs}/<digest>?ns=<registry>`.
    async fn find(&self, target: &str) -> Option<Found> {
        let (path, query) = target.split_once('?')?;
        let registry = query.split('&').find_map(|pair| pair.strip_prefix("ns="))?;
        let (rest, digest) = path.strip_prefix("/v2/")?.rsplit_once('/')?;
        let (repository, kind) = rest.rsplit_once('/')?;
        let digest: Digest = digest.replace("%3A", ":").parse().ok()?;
        let blob = self.client.blob(&digest).await.ok()??;
        let label = format!("containerd.io/distribution.source.{registry}");
        let mut repositories = blob.labels.get(&label)?.split(',');
        repositories.find(|name| *name == repository)?;
        let kind = match kind {
            "blobs" => "application/octet-stream".to_owned(),
            "manifests" => {
                let bytes = self.client.read_blob(&digest, LARGEST_DOCUMENT).await.ok()?;
                let document: Value = serde_json::from_slice(&bytes).ok()?;
                document["mediaType"].as_str()?.to_owned()
            }
            _ => return None,
        };
        Some(Found {
            digest,
            size: blob.size,
            kind,
        })
    }
}

/// Returns the folder in which a private containerd looks for `hosts.toml` of CRI's pulls.
pub fn hosts_folder(root: &Path) -> PathBuf {
    root.with_file_name("registries")
}
