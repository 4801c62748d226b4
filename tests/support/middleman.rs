//! A server between the program and a registry. It treats requests like a faulty network or
//! registry.
//!
//! It speaks plain HTTP/1.1, with one request on each connection, and is also an HTTP proxy.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// A received request.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Path and query. A proxy receives the whole URL, or host and port.
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn is_for_a_blob(&self) -> bool {
        self.target.contains("/blobs/")
    }
}

/// The treatment of a request.
#[derive(Clone, Debug)]
pub enum Act {
    /// Passes the request on.
    Pass,
    /// Passes the request on without this header.
    Without(&'static str),
    /// Passes the request on, and breaks the connection after this many bytes of the body.
    Cut(usize),
    /// Passes the request on, and changes one byte of the body.
    Damage,
    /// Answers without the registry: status, header lines, body.
    Answer(u16, String, String),
}

type Judge = dyn Fn(&Request, usize) -> Act + Send + Sync;

/// The server. Dropping it ends it.
pub struct Middleman {
    port: u16,
    seen: Arc<Mutex<Vec<Request>>>,
    is_over: Arc<AtomicBool>,
}

impl Middleman {
    /// Starts a server in front of the registry on that port. `judge` gets each request, and the
    /// number of earlier requests with the same target.
    pub fn before(
        registry: u16,
        judge: impl Fn(&Request, usize) -> Act + Send + Sync + 'static,
    ) -> Middleman {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("the socket is bound").port();
        let (seen, is_over) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let middleman = Middleman {
            port,
            seen: Arc::clone(&seen),
            is_over: Arc::clone(&is_over),
        };
        let judge: Arc<Judge> = Arc::new(judge);
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                let (seen, judge) = (Arc::clone(&seen), Arc::clone(&judge));
                // A broken connection is part of some tests, so errors are ignored.
                thread::spawn(move || serve(client, registry, &seen, &*judge));
            }
        });
        middleman
    }

    /// Returns the host as references name it.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns the requests so far.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().expect("no holder panics").clone()
    }

    /// Returns the number of requests for blobs so far.
    pub fn blobs(&self) -> usize {
        self.seen()
            .iter()
            .filter(|request| request.is_for_a_blob())
            .count()
    }
}

impl Drop for Middleman {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn serve(client: TcpStream, registry: u16, seen: &Mutex<Vec<Request>>, judge: &Judge) -> io::Result<()> {
    let mut reader = BufReader::new(client);
    let Some(request) = read_request(&mut reader)? else {
        return Ok(());
    };
    let before = {
        let mut seen = seen.lock().expect("no holder panics");
        let before = seen.iter().filter(|other| other.target == request.target).count();
        seen.push(request.clone());
        before
    };
    let client = reader.into_inner();
    let act = judge(&request, before);
    match (request.method.as_str(), act) {
        (_, Act::Answer(status, headers, body)) => answer(client, status, &headers, &body),
        ("CONNECT", _) => tunnel(client, registry),
        (_, Act::Pass) => forward(client, registry, &request, None, usize::MAX, false),
        (_, Act::Without(header)) => forward(client, registry, &request, Some(header), usize::MAX, false),
        (_, Act::Cut(after)) => forward(client, registry, &request, None, after, false),
        (_, Act::Damage) => forward(client, registry, &request, None, usize::MAX, true),
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let head = read_head(reader)?;
    let mut words = head.first().map(String::as_str).unwrap_or_default().split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Ok(None);
    };
    let headers = head[1..].iter().filter_map(|line| line.split_once(": "));
    let mut request = Request {
        method: method.to_owned(),
        target: target.to_owned(),
        headers: headers
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        body: String::new(),
    };
    let length = request
        .header("content-length")
        .and_then(|value| value.parse().ok());
    reader
        .take(length.unwrap_or(0))
        .read_to_string(&mut request.body)?;
    Ok(Some(request))
}

/// Reads the lines up to the empty line.
fn read_head(reader: &mut impl BufRead) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end() {
            "" => return Ok(lines),
            line => lines.push(line.to_owned()),
        }
    }
}

fn answer(mut client: TcpStream, status: u16, headers: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status} Because\r\nConnection: close\r\nContent-Length: {length}\r\n");
    client.write_all(format!("{head}{headers}\r\n{body}").as_bytes())
}

fn tunnel(mut client: TcpStream, registry: u16) -> io::Result<()> {
    let mut server = TcpStream::connect(("127.0.0.1", registry))?;
    client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    io::copy(&mut server, &mut client).map(drop)
}

fn forward(
    mut client: TcpStream,
    registry: u16,
    request: &Request,
    without: Option<&str>,
    after: usize,
    damaged: bool,
) -> io::Result<()> {
    let mut server = TcpStream::connect(("127.0.0.1", registry))?;
    // A request to a proxy has a URL.
    let target = match request.target.strip_prefix("http://") {
        Some(rest) => &rest[rest.find('/').unwrap_or(rest.len())..],
        None => &request.target,
    };
    let mut head = format!("{} {target} HTTP/1.1\r\nConnection: close\r\n", request.method);
    for (name, value) in &request.headers {
        let left_out = without.is_some_and(|without| name.eq_ignore_ascii_case(without));
        if !left_out && !name.eq_ignore_ascii_case("connection") {
            head += &format!("{name}: {value}\r\n");
        }
    }
    server.write_all(format!("{head}\r\n").as_bytes())?;
    let mut reader = BufReader::new(server);
    let head = read_head(&mut reader)?.join("\r\n");
    client.write_all(format!("{head}\r\n\r\n").as_bytes())?;
    if damaged {
        let mut byte = [0];
        reader.read_exact(&mut byte)?;
        client.write_all(&[!byte[0]])?;
    }
    io::copy(&mut reader.take(after as u64), &mut client).map(drop)
}
