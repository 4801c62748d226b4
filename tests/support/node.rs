//! The program on a separate node: folders, configuration, the daemon, and other commands.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::target::Target;
use super::{bundles, unique, wait_until};

/// Folders and configuration of a node that exists for one scenario.
pub struct Node {
    folder: TempDir,
}

impl Node {
    /// Returns a node that uses the target as its containerd.
    pub fn on(target: &Target) -> Node {
        Node::at(target.socket(), target.namespace())
    }

    /// Returns a node whose containerd is, or will be, at that socket.
    pub fn at(socket: &Path, namespace: &str) -> Node {
        let folder = tempfile::Builder::new()
            .prefix("airgapd-scenario-")
            .tempdir()
            .expect("a temporary folder");
        let node = Node { folder };
        fs::create_dir(node.images()).expect("a folder");
        fs::create_dir(node.state()).expect("a folder");
        node.configure(&format!(
            "imagesDir: {}\nstateDir: {}\nruntimeDir: {}\naddress: {}\nnamespace: {namespace}\n",
            node.images().display(),
            node.state().display(),
            node.path("run").display(),
            socket.display()
        ));
        node
    }

    /// Returns the path of a file or folder of this node that the daemon does not know.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the images folder.
    pub fn images(&self) -> PathBuf {
        self.path("images")
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// Returns the path of the daemon's ledger.
    pub fn ledger(&self) -> PathBuf {
        self.state().join("state.json")
    }

    /// Replaces the configuration file.
    pub fn configure(&self, text: &str) {
        fs::write(self.path("config.yaml"), text).expect("the configuration can be written");
    }

    /// Adds lines to the configuration file.
    pub fn configure_also(&self, text: &str) {
        let before = fs::read_to_string(self.path("config.yaml")).expect("there is a configuration");
        self.configure(&format!("{before}{text}\n"));
    }

    /// Copies a file into the images folder, like `cp`.
    pub fn drop_in(&self, bundle: &Path) -> PathBuf {
        let name = bundle.file_name().expect("a file has a name");
        let place = self.images().join(name);
        fs::copy(bundle, &place).expect("the bundle can be copied");
        place
    }

    /// Moves a bundle of one image into the folder.
    pub fn put(&self, file: &str, image_name: &str) {
        bundles::write(&self.path(file), [bundles::image(image_name)]);
        self.put_at_once(file);
    }

    /// Moves a file into the folder that is no bundle.
    pub fn put_broken(&self, file: &str) {
        fs::write(self.path(file), "no bundle\n".repeat(200)).expect("the file can be written");
        self.put_at_once(file);
    }

    fn put_at_once(&self, file: &str) {
        fs::rename(self.path(file), self.images().join(file)).expect("both paths are on one file system");
    }

    /// Copies a bundle into the folder, waits for its image, and returns the image's name. By then
    /// the daemon has handled all earlier files.
    pub fn drop_marker(&self, target: &Target, daemon: &Daemon) -> String {
        let (bundle, name) = bundles::marker(self.path(&format!("marker-{}.tar", unique())));
        self.drop_in(&bundle);
        daemon.wait_until("a bundle dropped later", || {
            target.record(&name).is_some() && target.leases().is_empty()
        });
        name
    }

    /// Imports a bundle with `records` records by a daemon, and stops the daemon. The ledger then
    /// knows the bundle.
    pub fn import_and_stop(&self, target: &Target, bundle: &Path, records: usize) {
        let daemon = self.start();
        let placed = self.drop_in(bundle);
        let name = placed.file_name().expect("a file has a name").to_string_lossy();
        daemon.wait_until("the images", || {
            target.names().len() == records && target.leases().is_empty()
        });
        daemon.wait_until("the ledger", || {
            fs::read_to_string(self.ledger()).is_ok_and(|text| text.contains(&*name))
        });
        daemon.stop();
    }

    /// Runs a command of the program to its end.
    pub fn airgapd<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Answer {
        let output = self
            .command(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("the program runs");
        Answer::from(output)
    }

    /// Runs `airgapd import -o json` with these arguments.
    pub fn import<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Answer {
        let arguments = arguments.into_iter().map(|argument| argument.as_ref().to_owned());
        let all: Vec<_> = ["import", "-o", "json"]
            .map(Into::into)
            .into_iter()
            .chain(arguments)
            .collect();
        self.airgapd(all)
    }

    /// Runs `airgapd import -o json` with these arguments. Its standard input has these bytes.
    pub fn pipe_in(&self, arguments: &[&str], bytes: &[u8]) -> Answer {
        let mut child = self.begin_to_pipe(arguments);
        let mut stdin = child.stdin.take().expect("the stream is piped");
        thread::scope(|scope| {
            // The program may end before it has read everything.
            scope.spawn(move || drop(stdin.write_all(bytes)));
            Answer::from(child.wait_with_output().expect("the program runs"))
        })
    }

    /// Starts `airgapd import -o json` with these arguments. The test writes its standard input.
    pub fn begin_to_pipe(&self, arguments: &[&str]) -> Child {
        let mut command = self.command([&["import", "-o", "json"], arguments].concat());
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts")
    }

    /// Returns the program with a subcommand, its arguments and this node's configuration.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = program();
        command
            .args(arguments)
            .arg("--config")
            .arg(self.path("config.yaml"));
        command
    }

    /// Copies the program into the node's folder for users other than root. The original may be
    /// below a folder that only root can enter, such as Debian's `/root`.
    pub fn program_for_all(&self) -> PathBuf {
        let copy = self.path("airgapd");
        if !copy.exists() {
            fs::set_permissions(self.path(""), fs::Permissions::from_mode(0o755)).expect("the test owns it");
            fs::copy(program().get_program(), &copy).expect("the program can be copied");
        }
        copy
    }

    /// Sends a request on the control socket, like `curl --unix-socket`. Returns the head and the
    /// body of the answer.
    pub fn ask(&self, path: &str, headers: &[(&str, &str)]) -> (String, String) {
        let mut stream = UnixStream::connect(self.path("run/control.sock")).expect("the server listens");
        let mut request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n");
        for (name, value) in headers {
            request = format!("{request}{name}: {value}\r\n");
        }
        stream
            .write_all(format!("{request}\r\n").as_bytes())
            .expect("the server listens");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the answer is text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        (head.to_owned(), body.to_owned())
    }

    /// Starts the daemon and waits until it reports that it is ready.
    pub fn start(&self) -> Daemon {
        let daemon = self.start_unready();
        daemon.wait_until_ready();
        daemon
    }

    /// Starts the daemon without waiting.
    pub fn start_unready(&self) -> Daemon {
        Daemon::start(self.command(["run"]), &self.path("notify.sock"))
    }
}

/// Returns the program without variables that configure it or a service manager.
pub fn program() -> Command {
    configured_by_no_variable(Command::new(env!("CARGO_BIN_EXE_airgapd")))
}

/// Returns a command that starts the program without these variables.
pub fn configured_by_no_variable(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("AIRGAPD_") || ["NOTIFY_SOCKET", "JOURNAL_STREAM", "RUST_LOG"].contains(&&*text) {
            command.env_remove(&name);
        }
    }
    command
}

/// The answer of a command.
#[derive(Debug)]
pub struct Answer {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Answer {
    fn from(output: Output) -> Answer {
        let text = |bytes| String::from_utf8(bytes).expect("the program prints text");
        Answer {
            status: output.status,
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

impl Answer {
    /// Checks the exit code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Answer {
        assert_eq!(
            self.status.code(),
            Some(code),
            "stdout:\n{}\nstderr:\n{}",
            self.stdout,
            self.stderr
        );
        self
    }

    /// Parses the document on standard output.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}\nstdout:\n{}\nstderr:\n{}", self.stdout, self.stderr))
    }

    /// Returns the report of the only bundle.
    #[track_caller]
    pub fn bundle(&self) -> Value {
        let document = self.json();
        let bundles = document["bundles"].as_array().expect("there are bundles");
        assert_eq!(bundles.len(), 1, "{document:#}");
        bundles[0].clone()
    }

    /// Returns both outputs, for a search of words.
    pub fn said(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }
}

/// Returns the image outcomes of a bundle's report by name.
pub fn outcomes(bundle: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let images = bundle["images"].as_array().expect("there are images").iter();
    images
        .map(|image| (text(&image["name"]), text(&image["outcome"])))
        .collect()
}

/// Returns the part of a `status` or `wait` document about a bundle.
#[track_caller]
pub fn bundle<'a>(document: &'a Value, name: &str) -> &'a Value {
    let bundles = document["bundles"].as_array().expect("a list");
    let found = bundles.iter().find(|bundle| bundle["name"] == name);
    found.unwrap_or_else(|| panic!("{name} is not in {document:#}"))
}

/// A running `airgapd run`. Dropping it kills the process if it was not stopped before.
pub struct Daemon {
    child: Child,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    notified: Arc<Mutex<String>>,
}

impl Daemon {
    /// Starts the daemon with the test's socket in place of systemd's.
    pub fn start(mut command: Command, socket: &Path) -> Daemon {
        let _ = fs::remove_file(socket);
        let notifications = UnixDatagram::bind(socket).expect("a socket");
        command
            .env("NOTIFY_SOCKET", socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let log = Arc::new(Mutex::new(String::new()));
        let (stderr, written) = (
            child.stderr.take().expect("the stream is piped"),
            Arc::clone(&log),
        );
        let reader = thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                let mut log = written.lock().expect("no holder panics");
                log.push_str(&String::from_utf8_lossy(&line));
                log.push('\n');
            }
        });
        Daemon {
            child,
            log,
            reader: Some(reader),
            notified: listen_to(notifications),
        }
    }

    /// Returns the log so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("no holder panics").clone()
    }

    /// Returns the number of lines of the log that contain a text.
    pub fn count(&self, text: &str) -> usize {
        self.log().lines().filter(|line| line.contains(text)).count()
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the messages to the service manager so far.
    pub fn notified(&self) -> String {
        self.notified.lock().expect("no holder panics").clone()
    }

    /// Waits for the message that systemd waits for (sd_notify(3)).
    pub fn wait_until_ready(&self) {
        self.wait_until("the daemon is ready", || {
            self.notified().lines().any(|line| line == "READY=1")
        });
    }

    /// Waits for a condition. After a failure, the log is shown.
    pub fn wait_until(&self, what: &str, holds: impl FnMut() -> bool) {
        wait_until(what, holds);
    }

    /// Waits for a line of the log.
    pub fn wait_for_log(&self, text: &str) {
        self.wait_until(&format!("the daemon says {text:?}"), || self.log().contains(text));
    }

    /// Waits for a line of the log that names a bundle and has a word.
    pub fn wait_for_line(&self, bundle: &str, word: &str) {
        self.wait_until(&format!("{word:?} about {bundle}"), || {
            let log = self.log();
            log.lines()
                .any(|line| line.contains(bundle) && line.contains(word))
        });
    }

    /// Sends a signal to the daemon.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the process runs");
    }

    /// Waits until it holds no lease or ingest in containerd, and stops it.
    pub fn finish(self, target: &Target) -> String {
        self.wait_until("leases and ingests are returned", || {
            target.leases().is_empty() && target.ingests().is_empty()
        });
        self.stop()
    }

    /// Stops it like systemd, checks its exit code, and returns the log.
    pub fn stop(self) -> String {
        self.stop_with(Signal::TERM)
    }

    /// Stops it with a signal, checks its exit code, and returns the log.
    pub fn stop_with(mut self, signal: Signal) -> String {
        self.signal(signal);
        let status = self.wait();
        assert!(
            status.success(),
            "the daemon ended with {status}:\n{}",
            self.log()
        );
        self.log()
    }

    /// Kills it like a crash.
    pub fn kill(mut self) -> String {
        self.child.kill().expect("the daemon can be killed");
        self.wait();
        self.log()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        let mut ended = || {
            status = self.child.try_wait().expect("waiting for the child works");
            status.is_some()
        };
        wait_until("the daemon ends", &mut ended);
        if let Some(reader) = self.reader.take() {
            reader.join().expect("reading does not panic");
        }
        status.expect("the daemon has ended")
    }
}

/// Receives the daemon's messages to the service manager, like systemd. The socket holds only a few
/// messages, and a sender waits when it is full.
fn listen_to(notifications: UnixDatagram) -> Arc<Mutex<String>> {
    /// Longest time until the listener notices that no test needs it any more.
    const PATIENCE: Duration = Duration::from_millis(200);
    notifications.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let notified = Arc::new(Mutex::new(String::new()));
    let wanted = Arc::downgrade(&notified);
    thread::spawn(move || {
        let mut message = [0; 4096];
        while let Some(notified) = wanted.upgrade() {
            if let Ok(length) = notifications.recv(&mut message) {
                let mut notified = notified.lock().expect("no holder panics");
                notified.push_str(&String::from_utf8_lossy(&message[..length]));
                notified.push('\n');
            }
        }
    });
    notified
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            show_log(&self.log());
        }
    }
}

#[allow(clippy::print_stderr, reason = "the daemon's log explains a failed test")]
fn show_log(log: &str) {
    eprintln!("the daemon said:\n{log}");
}

/// Size of the shipped program's code in bytes, as if each page were in memory. A test build is not
/// optimised and has twice as much code, which has nothing to do with imports.
const CODE: u64 = 15 << 20;

/// Returns the peak memory in bytes that the shipped program would have had in place of this
/// process (proc_pid_status(5)). It is the peak of this process with the code size of the shipped
/// program.
pub fn peak_memory(pid: u32) -> Option<u64> {
    let (peak, of_files) = (memory_of(pid, "VmHWM:")?, memory_of(pid, "RssFile:")?);
    Some(peak.saturating_sub(of_files) + CODE)
}

/// Returns an amount of memory of a process in bytes, by its name in proc_pid_status(5). `VmRSS:`
/// has the pages of files, and `RssAnon:` has not.
pub fn memory_of(pid: u32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}
