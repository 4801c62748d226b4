//! One real containerd of each generation for all scenarios of a test program.
//!
//! A test program learns when it begins, but not when it ends. So another process serves the
//! containerd: the same test program, which runs the single test of
//! [`serves_a_containerd!`](crate::serves_a_containerd). It runs as long as its standard input is
//! open, however the first process ends, and then stops the containerd in order.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context as _, Result, ensure};

use crate::{Containerd, Generation, Options, Parts, containerd_parts, is_root, left_out};

/// The environment variable that names the generation to the serving process.
const SERVE: &str = "AIRGAPD_TEST_SERVE_CONTAINERD";

/// The beginning of the line with which the serving process says where its containerd is.
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
    /// Holds the namespace of Kubernetes. One scenario at a time works there: daemons would tidy up
    /// after each other.
    pub fn kubernetes(&self) -> MutexGuard<'_, ()> {
        self.kubernetes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The shared containerd of a generation, which the first call starts. `None` leaves the scenario
/// out.
///
/// # Panics
///
/// If it cannot be had, and nothing may be left out ([`left_out::unless_had`]).
pub fn shared(generation: Generation) -> Option<&'static Shared> {
    static SHARED: [OnceLock<Option<Shared>>; Generation::ALL.len()] =
        [const { OnceLock::new() }; Generation::ALL.len()];
    let place = Generation::ALL
        .iter()
        .position(|each| *each == generation)
        .expect("it is one of them");
    SHARED[place]
        .get_or_init(|| demanded(generation, started(generation)))
        .as_ref()
}

/// A containerd for one scenario alone. `None` leaves the scenario out.
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
    ensure!(is_root(), "only root can start one");
    let parts = containerd_parts(generation)?;
    let mut server = Command::new(std::env::current_exe()?)
        .args(["serves_a_containerd", "--nocapture", "--test-threads=1"])
        .env(SERVE, generation.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let alive = server.stdin.take().expect("it is piped");
    let said = BufReader::new(server.stdout.take().expect("it is piped"));
    let place = said
        .lines()
        .map_while(Result::ok)
        .find_map(|line| Some(line.split_once(MARK)?.1.to_owned()))
        .context("it did not start")?;
    let (socket, root) = place.split_once('\t').context("it named no root folder")?;
    Ok(Shared {
        parts,
        socket: socket.into(),
        root: root.into(),
        kubernetes: Mutex::new(()),
        _server: server,
        _alive: alive,
    })
}

/// Serves a containerd where the environment asks for it, and then ends the process. Elsewhere it
/// does nothing.
///
/// # Panics
///
/// If the containerd does not start.
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
    // There is no reader any more for what a test says at its end.
    std::process::exit(0);
}

/// The test that serves containerds to a test program. Each program that uses [`shared`] has it
/// once.
#[macro_export]
macro_rules! serves_a_containerd {
    () => {
        /// The serving process. Among the other tests it does nothing.
        #[test]
        fn serves_a_containerd() {
            $crate::shared::serve();
        }
    };
}
