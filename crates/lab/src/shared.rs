//! Shares one real containerd of each generation among all scenarios of a test program.
//!
//! A test program can act when it starts but not when it ends. So another process serves the
//! containerd: the same test program, which runs only the test of
//! [`serves_a_containerd!`](crate::serves_a_containerd). It runs while its standard input is open,
//! no matter how the first process ends. Then it stops containerd in order.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context as _, Result, ensure};

use crate::{Containerd, Generation, Options, Parts, containerd_parts, is_root, left_out};

/// Environment variable that tells the serving process its generation.
const SERVE: &str = "AIRGAPD_TEST_SERVE_CONTAINERD";

/// Start of the line in which the serving process reports its socket and root.
const MARK: &str = "serving ";

/// A containerd that several scenarios use at the same time.
#[derive(Debug)]
pub struct Shared {
    /// Its programs.
    pub parts: Parts,
    /// The socket it serves.
    pub socket: PathBuf,
    /// Its root folder.
    pub root: PathBuf,
    kubernetes: Mutex<()>,
    _server: Child,
    _alive: ChildStdin,
}

impl Shared {
    /// Locks the Kubernetes namespace. Only one scenario at a time works in it, because a daemon
    /// would remove the records of another daemon.
    pub fn kubernetes(&self) -> MutexGuard<'_, ()> {
        self.kubernetes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the shared containerd of a generation. The first call starts it. `None` leaves the
/// scenario out.
///
/// # Panics
///
/// Panics if containerd does not start and the environment requires it ([`left_out::unless_had`]).
pub fn shared(generation: Generation) -> Option<&'static Shared> {
    static SHARED: [OnceLock<Option<Shared>>; Generation::ALL.len()] =
        [const { OnceLock::new() }; Generation::ALL.len()];
    let place = Generation::ALL
        .iter()
        .position(|each| *each == generation)
        .expect("the tests run on this generation");
    SHARED[place]
        .get_or_init(|| demanded(generation, started(generation)))
        .as_ref()
}

/// Starts a containerd that only one scenario uses. `None` leaves the scenario out.
///
/// # Panics
///
/// Like [`shared`].
pub fn own(generation: Generation, options: &Options) -> Option<Containerd> {
    demanded(generation, Containerd::start(generation, options))
}

fn demanded<T>(generation: Generation, started: Result<T>) -> Option<T> {
    left_out::unless_had(&format!("containerd {generation}"), started)
}

fn started(generation: Generation) -> Result<Shared> {
    ensure!(is_root(), "only root can start a containerd");
    let parts = containerd_parts(generation)?;
    let mut server = Command::new(std::env::current_exe()?)
        .args(["serves_a_containerd", "--nocapture", "--test-threads=1"])
        .env(SERVE, generation.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let alive = server.stdin.take().expect("the stream is piped");
    let said = BufReader::new(server.stdout.take().expect("the stream is piped"));
    let place = said
        .lines()
        .map_while(Result::ok)
        .find_map(|line| Some(line.split_once(MARK)?.1.to_owned()))
        .context("the serving process did not start containerd")?;
    let (socket, root) = place
        .split_once('\t')
        .context("the serving process named no root folder")?;
    Ok(Shared {
        parts,
        socket: socket.into(),
        root: root.into(),
        kubernetes: Mutex::new(()),
        _server: server,
        _alive: alive,
    })
}

/// Serves a containerd and ends the process if the environment variable is set. Otherwise it does
/// nothing.
///
/// # Panics
///
/// Panics if the containerd does not start.
#[doc(hidden)]
pub fn serve() {
    let Some(generation) = std::env::var(SERVE).ok().and_then(|text| text.parse().ok()) else {
        return;
    };
    let containerd = Containerd::start(generation, &Options::default()).expect("containerd starts");
    let (socket, root) = (containerd.socket(), containerd.root());
    writeln!(
        std::io::stdout(),
        "\n{MARK}{}\t{}",
        socket.display(),
        root.display()
    )
    .expect("the first process listens");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    drop(containerd);
    // The test harness would print the result of this test, but the pipe has no reader any more.
    std::process::exit(0);
}

/// Defines the test that serves containerds to a test program. Each program that uses [`shared`]
/// needs it once.
#[macro_export]
macro_rules! serves_a_containerd {
    () => {
        /// The test for the serving process. In a normal run it does nothing.
        #[test]
        fn serves_a_containerd() {
            $crate::shared::serve();
        }
    };
}
