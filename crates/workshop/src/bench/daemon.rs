//! Measures the daemon: the time until it is ready after a restart, and until a new bundle is
//! imported.

use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

use super::bundles::{Bundle, RUNNABLE};
use super::contender::{self, Contender};
use super::events::Events;
use super::measure::{self, Sample};
use super::{Bench, Scenario};
use crate::daemon::{Daemon, Places};

/// Longest time for any step here.
const WITHIN: Duration = Duration::from_secs(600);

/// Number of bundles, with ten images each, in the folder of the restarted daemon.
const MANY: usize = 50;

/// Starts the daemon on a folder that it knows, and waits until it reports all bundles in place.
pub(super) fn restart(bench: &Bench) -> Result<Sample> {
    let node = Node::of(bench);
    if !node.images.exists() {
        node.create()?;
        for number in 0..MANY {
            let bundle = bench.bundles.many(number)?;
            fs::copy(&bundle.path, node.images.join(format!("many-{number}.tar")))?;
        }
        let mut first = node.start(bench, &[])?;
        first.until_in_place(MANY, 10 * MANY)?;
        first.stop()?;
    }
    rustix::fs::sync();
    measure::around(&bench.containerd, || {
        let started = Instant::now();
        let mut daemon = node.start(bench, &[])?;
        daemon.until_in_place(MANY, 10 * MANY)?;
        let wall = started.elapsed().as_secs_f64();
        let (cpu, peak) = usage(&daemon)?;
        daemon.stop()?;
        Ok(Sample {
            wall,
            cpu,
            peak,
            ..Sample::default()
        })
    })
}

/// Puts a bundle into the folder, and waits until containerd reports the importer's last record.
///
/// The other importers make one record of each image. airgapd also makes one with the digest.
pub(super) fn drop_in(bench: &Bench, contender: Contender) -> Result<Sample> {
    let (_, bundle) = bench.scenario.bundles(&bench.bundles)?;
    let node = Node::anew(bench)?;
    let events = Events::of(bench)?;
    let mut daemon = match contender {
        Contender::Airgapd => Some(node.start(bench, &[])?),
        _ => None,
    };
    if let Some(daemon) = &mut daemon {
        daemon.until_in_place(0, 0)?;
    }
    let changes = match contender {
        Contender::K0s => Some(Changes::of(&node.images)?),
        _ => None,
    };
    contender::rest(bench, &bundle.path)?;
    measure::around(&bench.containerd, || {
        let before = daemon.as_ref().map(usage).transpose()?;
        let dropped = node.drop_in(bench.scenario, &bundle)?;
        let since = |last: Instant| last.duration_since(dropped).as_secs_f64();
        if let (Some(daemon), Some((before, _))) = (&mut daemon, before) {
            let last = events.wait_for(bundle.records)?;
            let (cpu, peak) = usage(daemon)?;
            daemon.stop()?;
            return Ok(Sample {
                wall: since(last),
                cpu: cpu - before,
                peak,
                ..Sample::default()
            });
        }
        if let Some(changes) = changes {
            changes.until_none_for(K0S_WAITS)?;
        }
        let import = measure::run(contender::commands(bench, contender, &node.dropped())?)?;
        let last = events.wait_for(bundle.images())?;
        Ok(Sample {
            wall: since(last),
            ..import
        })
    })
}

/// Time without a change in the folder after which k0s imports it: `installWatcher` in k0s,
/// pkg/component/worker/ocibundle.go.
const K0S_WAITS: Duration = Duration::from_secs(10);

/// The changes of a folder that wake k0s: all but the closing of files.
struct Changes(Receiver<()>);

impl Changes {
    fn of(folder: &Path) -> Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC)?;
        let wanted = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE;
        inotify::add_watch(&inotify, folder, wanted)?;
        let (teller, told) = channel();
        // The thread ends with the folder, which the next run removes.
        thread::spawn(move || {
            let mut buffer = [MaybeUninit::uninit(); 16 << 10];
            let mut reader = inotify::Reader::new(inotify, &mut buffer);
            while let Ok(event) = reader.next() {
                if event.events().contains(ReadFlags::IGNORED) || teller.send(()).is_err() {
                    return;
                }
            }
        });
        Ok(Self(told))
    }

    /// Waits for a first change, and then until there is none for this time.
    fn until_none_for(&self, quiet: Duration) -> Result<()> {
        self.0
            .recv_timeout(WITHIN)
            .context("the kernel reports no change of the folder")?;
        while self.0.recv_timeout(quiet).is_ok() {}
        Ok(())
    }
}

/// Copies a bundle into the folder of a running daemon, waits for its records and runs a container.
/// Measures all of it, or only the container.
pub(super) fn run_first(bench: &Bench, contender: Contender) -> Result<Sample> {
    let (_, bundle) = bench.scenario.bundles(&bench.bundles)?;
    let node = Node::anew(bench)?;
    let unpack = match contender {
        Contender::AirgapdUnpacking => "before-record",
        _ => "none",
    };
    let events = Events::of(bench)?;
    let mut daemon = node.start(bench, &[("AIRGAPD_UNPACK", unpack)])?;
    daemon.until_in_place(0, 0)?;
    rustix::fs::sync();
    measure::around(&bench.containerd, || {
        let (before, _) = usage(&daemon)?;
        let mut since = node.drop_in(bench.scenario, &bundle)?;
        events.wait_for(bundle.records)?;
        if bench.scenario == Scenario::First {
            daemon.until_in_place(1, 1)?;
            since = Instant::now();
        }
        bench.containerd.run(RUNNABLE, &["/bin/busybox", "true"])?;
        let wall = since.elapsed().as_secs_f64();
        let (cpu, peak) = usage(&daemon)?;
        daemon.stop()?;
        Ok(Sample {
            wall,
            cpu: cpu - before,
            peak,
            ..Sample::default()
        })
    })
}

/// The folders of a node.
pub(super) struct Node {
    pub(super) images: PathBuf,
    pub(super) state: PathBuf,
}

impl Node {
    pub(super) fn of(bench: &Bench) -> Self {
        let folder = bench.folder.path();
        Self {
            images: folder.join("images"),
            state: folder.join("state"),
        }
    }

    /// Makes new folders and empties containerd.
    fn anew(bench: &Bench) -> Result<Self> {
        let node = Self::of(bench);
        if node.images.exists() {
            node.remove()?;
        }
        bench.empty()?;
        node.create()?;
        Ok(node)
    }

    /// Returns the path of a dropped bundle.
    fn dropped(&self) -> PathBuf {
        self.images.join("dropped.tar")
    }

    /// Puts a bundle into the folder the way of a scenario. Returns the time of the last change.
    fn drop_in(&self, scenario: Scenario, bundle: &Bundle) -> Result<Instant> {
        // rsync and others write into a hidden file and rename it.
        let hidden = self.images.join(".dropped.tar.part");
        let written = match scenario {
            Scenario::DropRenamed => &hidden,
            _ => &self.dropped(),
        };
        let mut file = File::create(written)?;
        io::copy(&mut File::open(&bundle.path)?, &mut file)?;
        drop(file);
        if scenario == Scenario::DropRenamed {
            fs::rename(&hidden, self.dropped())?;
        }
        Ok(Instant::now())
    }

    /// Starts a daemon on this node.
    pub(super) fn start(&self, bench: &Bench, settings: &[(&str, &str)]) -> Result<Daemon> {
        let places = Places {
            folder: bench.folder.path(),
            images: &self.images,
            state: &self.state,
            address: &bench.containerd.socket(),
        };
        Daemon::start(&bench.program, &places, settings)
    }

    pub(super) fn create(&self) -> Result<()> {
        fs::create_dir(&self.images)?;
        fs::create_dir(&self.state)?;
        Ok(())
    }

    fn remove(&self) -> Result<()> {
        fs::remove_dir_all(&self.images)?;
        fs::remove_dir_all(&self.state)?;
        Ok(())
    }
}

/// Returns the processor time of a daemon in seconds and its peak memory in MiB so far.
pub(super) fn usage(daemon: &Daemon) -> Result<(f64, f64)> {
    let pid = daemon.pid();
    Ok((
        measure::cpu_of(pid)?,
        measure::mib(measure::peak_of(pid).unwrap_or(0)),
    ))
}
