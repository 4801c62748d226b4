//! A private Prometheus for a scenario. It scrapes the given ports every second and answers
//! queries.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{tools, wait_until};

/// Returns a port of this machine that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("the socket has an address").port()
}

/// Returns the answer to a request on a port of this machine.
pub fn get(port: u16, target: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    // HTTP/1.0, so that the answer comes in one piece.
    write!(
        stream,
        "GET {target} HTTP/1.0\r\nHost: a\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The metrics of nodes that run no more, each at a path of its own.
pub struct Pages {
    port: u16,
    names: Vec<String>,
}

impl Pages {
    /// Serves a page for each node until the process ends: the node's name, and its metrics.
    pub fn serve(pages: Vec<(String, String)>) -> Pages {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("the socket has an address").port();
        let names = pages.iter().map(|(name, _)| name.clone()).collect();
        let pages: HashMap<_, _> = pages.into_iter().collect();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = answer(&mut stream, &pages);
            }
        });
        Pages { port, names }
    }
}

/// Answers one request with a page.
fn answer(stream: &mut TcpStream, pages: &HashMap<String, String>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let path = request.split(' ').nth(1).unwrap_or_default();
    let page = pages.get(path.trim_start_matches('/'));
    let (code, page) = page.map_or(("404 Not Found", ""), |page| ("200 OK", page));
    write!(
        stream,
        "HTTP/1.1 {code}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}",
        page.len()
    )
}

/// A running Prometheus. Dropping it kills it.
pub struct Prometheus {
    child: Child,
    port: u16,
    /// Its configuration and data.
    _folder: TempDir,
}

impl Prometheus {
    /// Starts a Prometheus that scrapes these ports in the job `airgapd` and evaluates these rules.
    /// `None` if this machine has no Prometheus.
    pub fn start(ports: &[u16], rules: &Path) -> Option<Prometheus> {
        let targets: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        Prometheus::scraping(&json!([{"targets": targets}]), rules)
    }

    /// Starts a Prometheus that scrapes the pages of nodes, each as an instance of its own.
    pub fn of_pages(pages: &Pages, rules: &Path) -> Option<Prometheus> {
        let target = |name: &String| {
            json!({
                "targets": [format!("127.0.0.1:{}", pages.port)],
                "labels": {"instance": name, "__metrics_path__": format!("/{name}")},
            })
        };
        let targets: Vec<_> = pages.names.iter().map(target).collect();
        Prometheus::scraping(&json!(targets), rules)
    }

    fn scraping(targets: &Value, rules: &Path) -> Option<Prometheus> {
        let program = tools::prometheus()?;
        let folder = tempfile::tempdir().expect("a folder");
        // One thread serves all pages, so it gets some 50 requests a second at most.
        let count = targets.as_array().map_or(0, Vec::len);
        let interval = format!("{}s", 1 + count / 50);
        // JSON is valid YAML.
        let configuration = json!({
            "global": {"scrape_interval": interval, "evaluation_interval": interval},
            "rule_files": [rules],
            "scrape_configs": [{"job_name": "airgapd", "static_configs": targets}],
        });
        let file = folder.path().join("prometheus.yml");
        fs::write(&file, configuration.to_string()).expect("the file can be written");
        let port = free_port();
        let child = Command::new(program)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.path().join("log")).expect("a log"))
            .spawn()
            .expect("Prometheus starts");
        let prometheus = Prometheus {
            child,
            port,
            _folder: folder,
        };
        wait_until("Prometheus is ready", || {
            get(port, "/-/ready").is_ok_and(|answer| answer.starts_with("HTTP/1.0 200"))
        });
        Some(prometheus)
    }

    /// Returns the current results of a query, each with its labels and value.
    ///
    /// # Panics
    ///
    /// Panics if Prometheus refuses the query.
    pub fn query(&self, query: &str) -> Vec<(Value, f64)> {
        let escaped: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let data = self.data(&format!("/api/v1/query?query={escaped}"));
        let results = data["result"].as_array().expect("a vector").iter();
        let value = |result: &Value| result["value"][1].as_str().and_then(|text| text.parse().ok());
        results
            .map(|result| (result["metric"].clone(), value(result).expect("a number")))
            .collect()
    }

    /// Returns the results of a query in each of the last seconds, as times in Unix seconds with
    /// values.
    ///
    /// # Panics
    ///
    /// Panics if Prometheus refuses the query.
    pub fn range(&self, query: &str, seconds: u32) -> Vec<(Value, Vec<(f64, f64)>)> {
        let escaped: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let end = jiff::Timestamp::now().as_second();
        let begin = end - i64::from(seconds);
        let data = self.data(&format!(
            "/api/v1/query_range?query={escaped}&start={begin}&end={end}&step=1"
        ));
        let point = |point: &Value| {
            let value: f64 = point[1].as_str()?.parse().ok()?;
            Some((point[0].as_f64()?, value)).filter(|_| value.is_finite())
        };
        let series = |result: &Value| {
            let points = result["values"].as_array().expect("values").iter();
            (result["metric"].clone(), points.filter_map(point).collect())
        };
        data["result"]
            .as_array()
            .expect("a matrix")
            .iter()
            .map(series)
            .collect()
    }

    /// Returns the answer of an address of its HTTP API.
    pub fn data(&self, target: &str) -> Value {
        let answer = get(self.port, target).expect("Prometheus answers");
        let (_, body) = answer.split_once("\r\n\r\n").expect("head and body");
        let document: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
        assert_eq!(document["status"], "success", "{target}: {document}");
        document["data"].clone()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
