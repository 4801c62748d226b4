//! One real containerd of each generation for all scenarios of a test run.
//!
//! A test program is told of its beginning but not of its end, so what serves the containerd is a process of its own:
//! this very program, running the one test below. It lives as long as we hold its standard input open, however we end,
//! and takes the containerd down in order.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use lab::{Containerd, Generation, Options, Parts, containerd_parts};
use serde::{Deserialize, Serialize};

/// Tells the serving process which generation to serve.
const SERVE: &str = "AIRGAPD_TEST_SERVE_CONTAINERD";

/// What begins the line in which the serving process says where its containerd is.
const MARK: &str = "serving ";

/// A containerd that other scenarios use at the same time.
pub struct Served {
    /// Its programs.
    pub parts: Parts,
    /// Where it is.
    pub place: Whereabouts,
    kubernetes: Mutex<()>,
    _server: Child,
    _alive: ChildStdin,
}

/// What the serving process tells of its containerd.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Whereabouts {
    pub socket: PathBuf,
    pub root: PathBuf,
}

impl Served {
    /// Holds the namespace of Kubernetes, in which one scenario at a time works: daemons would tidy up after each other.
    pub fn kubernetes(&self) -> MutexGuard<'_, ()> {
        self.kubernetes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The containerd of a generation, started when it is first asked for. `None` where there is none and none is demanded.
pub fn shared(generation: Generation) -> Option<&'static Served> {
    static SERVED: [OnceLock<Option<Served>>; Generation::ALL.len()] =
        [const { OnceLock::new() }; Generation::ALL.len()];
    let place = Generation::ALL
        .iter()
        .position(|each| *each == generation)
        .expect("it is one of them");
    SERVED[place]
        .get_or_init(|| demanded(generation, serve(generation)))
        .as_ref()
}

/// A containerd for one scenario alone. `None` where there is none and none is demanded.
pub fn own_with(generation: Generation, options: &Options) -> Option<Containerd> {
    demanded(generation, Containerd::start(generation, options))
}

/// Where containerd cannot be had, scenarios are left out, unless that would hide them where they must run.
fn demanded<T>(generation: Generation, started: anyhow::Result<T>) -> Option<T> {
    lab::left_out::unless_had(&format!("containerd {generation}"), started)
}

fn serve(generation: Generation) -> anyhow::Result<Served> {
    anyhow::ensure!(lab::is_root(), "only root can start one");
    let parts = containerd_parts(generation)?;
    let mut server = Command::new(std::env::current_exe()?)
        .args([
            "--exact",
            "support::containerds::serves_a_containerd",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(SERVE, generation.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let alive = server.stdin.take().expect("it is piped");
    let said = BufReader::new(server.stdout.take().expect("it is piped"));
    let place = said
        .lines()
        .map_while(Result::ok)
        .find_map(|line| Some(line.split_once(MARK)?.1.to_owned()));
    let place = place.ok_or_else(|| anyhow::anyhow!("it did not start"))?;
    Ok(Served {
        parts,
        place: serde_json::from_str(&place)?,
        kubernetes: Mutex::new(()),
        _server: server,
        _alive: alive,
    })
}

/// The serving process. Among the other tests it does nothing.
#[test]
fn serves_a_containerd() {
    let Some(generation) = std::env::var(SERVE).ok().and_then(|text| text.parse().ok()) else {
        return;
    };
    let containerd = Containerd::start(generation, &Options::default()).expect("containerd starts");
    let place = Whereabouts {
        socket: containerd.socket(),
        root: containerd.root(),
    };
    let mut out = std::io::stdout();
    writeln!(
        out,
        "\n{MARK}{}",
        serde_json::to_string(&place).expect("paths are text")
    )
    .expect("somebody listens");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    drop(containerd);
    // Nobody reads any more what a test would say at its end.
    std::process::exit(0);
}
