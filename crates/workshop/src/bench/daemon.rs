//! Measures the daemon: the time until it is ready after a restart, and until a new bundle is
//! imported.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::bundles::RUNNABLE;
use super::contender::{Contender, without_our_environment};
use super::events::Events;
use super::measure::{self, Sample};
use super::{Bench, Scenario};

/// Longest time for any step here.
const WITHIN: Duration = Duration::from_secs(120);

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
        let mut first = Daemon::start(bench, &node)?;
        first.until_in_place(MANY, 10 * MANY)?;
        first.stop()?;
    }
    rustix::fs::sync();
    measure::around(&bench.containerd, || {
        let started = Instant::now();
        let mut daemon = Daemon::start(bench, &node)?;
        daemon.until_in_place(MANY, 10 * MANY)?;
        let wall = started.elapsed().as_secs_f64();
        let (cpu, peak) = daemon.usage()?;
        daemon.stop()?;
        Ok(Sample {
            wall,
            cpu,
            peak,
            ..Sample::default()
        })
    })
}

/// Copies a bundle into the folder of a running daemon, and waits until containerd reports the last
/// record.
pub(super) fn drop_in(bench: &Bench) -> Result<Sample> {
    let (_, bundle) = bench.scenario.bundles(&bench.bundles)?;
    let node = Node::anew(bench)?;
    let events = Events::of(bench)?;
    let mut daemon = Daemon::start(bench, &node)?;
    daemon.until_in_place(0, 0)?;
    rustix::fs::sync();
    measure::around(&bench.containerd, || {
        let (before, _) = daemon.usage()?;
        fs::copy(&bundle.path, node.images.join("dropped.tar"))?;
        let closed = Instant::now();
        let last = events.wait_for(bundle.records)?;
        let (cpu, peak) = daemon.usage()?;
        daemon.stop()?;
        Ok(Sample {
            wall: last.duration_since(closed).as_secs_f64(),
            cpu: cpu - before,
            peak,
            ..Sample::default()
        })
    })
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
    let mut daemon = Daemon::start_with(bench, &node, &[("AIRGAPD_UNPACK", unpack)])?;
    daemon.until_in_place(0, 0)?;
    rustix::fs::sync();
    measure::around(&bench.containerd, || {
        let (before, _) = daemon.usage()?;
        fs::copy(&bundle.path, node.images.join("dropped.tar"))?;
        let mut since = Instant::now();
        events.wait_for(bundle.records)?;
        if bench.scenario == Scenario::First {
            daemon.until_in_place(1, 1)?;
            since = Instant::now();
        }
        bench.containerd.run(RUNNABLE, &["/bin/busybox", "true"])?;
        let wall = since.elapsed().as_secs_f64();
        let (cpu, peak) = daemon.usage()?;
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
struct Node {
    images: PathBuf,
    state: PathBuf,
}

impl Node {
    fn of(bench: &Bench) -> Self {
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

    fn create(&self) -> Result<()> {
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

/// A running daemon that sends this program the messages for systemd.
struct Daemon {
    child: Child,
    notifications: UnixDatagram,
}

impl Daemon {
    fn start(bench: &Bench, node: &Node) -> Result<Self> {
        Self::start_with(bench, node, &[])
    }

    /// Starts the daemon with settings as environment variables.
    fn start_with(bench: &Bench, node: &Node, settings: &[(&str, &str)]) -> Result<Self> {
        let path = bench.folder.path().join("notify.sock");
        if path.exists() {
            fs::remove_file(&path)?;
        }
        let notifications = UnixDatagram::bind(&path)?;
        let mut command = Command::new(&bench.program);
        command
            .args(["run", "--quiet", "--config"])
            .arg(bench.folder.path().join("config.yaml"))
            .arg("--images-dir")
            .arg(&node.images)
            .arg("--state-dir")
            .arg(&node.state)
            .arg("--address")
            .arg(bench.containerd.socket())
            .stdin(Stdio::null());
        without_our_environment(&mut command);
        // The removal of this process's variables comes first, since the daemon needs this one.
        command.env("NOTIFY_SOCKET", &path).envs(settings.iter().copied());
        let child = command.spawn().context("cannot start the daemon")?;
        Ok(Self { child, notifications })
    }

    /// Waits until the daemon is healthy with this number of bundles, and all their images are in
    /// place.
    fn until_in_place(&mut self, bundles: usize, images: usize) -> Result<()> {
        self.notifications
            .set_read_timeout(Some(Duration::from_millis(200)))?;
        let deadline = Instant::now() + WITHIN;
        let (mut message, mut last) = ([0; 4096], String::new());
        while Instant::now() < deadline {
            if let Ok(length) = self.notifications.recv(&mut message) {
                last = String::from_utf8_lossy(&message[..length]).into_owned();
                if last.lines().any(|line| is_in_place(line, bundles, images)) {
                    return Ok(());
                }
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the daemon exited on its own ({status})");
            }
        }
        bail!(
            "the daemon did not report {bundles} bundles and {images} images in place in {} s. Its last status was {last:?}",
            WITHIN.as_secs()
        )
    }

    /// Returns the processor time in seconds and the peak memory in MiB so far.
    fn usage(&self) -> Result<(f64, f64)> {
        let pid = self.child.id();
        Ok((
            measure::cpu_of(pid)?,
            measure::mib(measure::peak_of(pid).unwrap_or(0)),
        ))
    }

    fn stop(&mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns true if a line for systemd reports a healthy daemon with this number of bundles.
fn is_in_place(line: &str, bundles: usize, images: usize) -> bool {
    let Some(line) = line.strip_prefix("STATUS=healthy; ") else {
        return false;
    };
    let mut parts = line.split([',', ';']).map(str::trim);
    let number = |text: &str| text.split(' ').next()?.parse().ok();
    let is_whole = parts
        .next()
        .is_some_and(|text| text.starts_with(&format!("{images} of {images} ")));
    is_whole && parts.next().and_then(number) == Some(bundles)
}

#[cfg(test)]
mod tests {
    use super::is_in_place;

    #[test]
    fn a_healthy_daemon_with_all_images_is_recognised() {
        let table = [
            (
                "STATUS=healthy; 0 of 0 images in place, 0 bundles; containerd 2.1.9",
                (0, 0),
                true,
            ),
            (
                "STATUS=healthy; 1 of 1 image in place, 1 bundle; containerd 2.1.9",
                (1, 1),
                true,
            ),
            (
                "STATUS=healthy; 0 of 1 images in place, 1 bundle, 1 importing",
                (1, 1),
                false,
            ),
            (
                "STATUS=healthy; 20 of 20 images in place, 20 bundles",
                (2, 20),
                false,
            ),
            ("STATUS=waiting; 0 of 0 images in place, 0 bundles", (0, 0), false),
            ("READY=1", (0, 0), false),
        ];
        for (line, (bundles, images), expected) in table {
            assert_eq!(is_in_place(line, bundles, images), expected, "{line}");
        }
    }
}
