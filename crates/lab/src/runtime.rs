//! Private containerds: each with its own root, state and socket in a temporary folder, gone
//! without a trace when dropped.
//!
//! Any number run side by side, next to the machine's own, which none of them touches. Everything
//! is asked of containerd through its `ctr`; the typed client is tested against these, so they must
//! not depend on it.

mod cleanup;
mod config;
mod disk;
mod folder;

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

use self::config::{Layout, config};
use self::folder::Folder;
use crate::parts::{Generation, Parts, containerd_parts};
use crate::{is_root, output_of, tail};

/// The namespace of Kubernetes, in which everything here works unless said otherwise.
pub const NAMESPACE: &str = "k8s.io";

/// How long containerd may take to answer; a busy machine with cold caches needs some seconds.
const READY_WITHIN: Duration = Duration::from_secs(90);

/// How long containerd may take to end when asked to.
const STOPPED_WITHIN: Duration = Duration::from_secs(15);

/// How one private containerd differs from the usual one.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether the CRI service runs on the socket.
    pub cri: bool,
    /// The image CRI starts every pod with; put one of that name into containerd to start pods.
    pub sandbox_image: String,
    /// Where layers are unpacked to.
    pub snapshotter: Snapshotter,
    /// Bytes of a disk of its own for the root: an ext4 image on a loop device, or memory where
    /// there are no loop devices.
    pub disk: Option<u64>,
    /// Whether CRI lets go of an image's layers once they are unpacked.
    pub discard_unpacked_layers: bool,
    /// Lines appended to `config.toml` (format version 2), for plugins that the file does not
    /// configure yet.
    pub extra_config: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cri: true,
            sandbox_image: "airgapd.test/pause:latest".to_owned(),
            snapshotter: Snapshotter::Auto,
            disk: None,
            discard_unpacked_layers: false,
            extra_config: String::new(),
        }
    }
}

/// Where layers are unpacked to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Snapshotter {
    /// overlayfs, or native where the temporary folder lies on an overlay itself, as inside a
    /// container.
    #[default]
    Auto,
    /// overlayfs.
    Overlayfs,
    /// Plain copies; slow, works everywhere.
    Native,
}

impl Snapshotter {
    fn name_for(self, folder: &Path) -> &'static str {
        match self {
            Self::Overlayfs => "overlayfs",
            Self::Native => "native",
            Self::Auto if is_overlay(folder) => "native",
            Self::Auto => "overlayfs",
        }
    }
}

fn is_overlay(folder: &Path) -> bool {
    /// `OVERLAYFS_SUPER_MAGIC`, linux/magic.h.
    const OVERLAYFS: rustix::fs::FsWord = 0x794c_7630;
    rustix::fs::statfs(folder).is_ok_and(|stat| stat.f_type == OVERLAYFS)
}

/// A running (or just stopped) private containerd.
///
/// Dropping it ends it, its shims and containers, unmounts what they mounted and removes the
/// folder. Only processes that were started from this folder are ever signalled.
#[derive(Debug)]
pub struct Containerd {
    parts: Parts,
    snapshotter: &'static str,
    cri: bool,
    folder: Folder,
    child: Option<Child>,
}

impl Containerd {
    /// Provides the programs if need be, starts them in a new folder and waits until gRPC (and CRI)
    /// answers.
    ///
    /// # Errors
    ///
    /// Without root, when the programs cannot be had, or when containerd does not come up: with the
    /// end of its log.
    pub fn start(generation: Generation, options: &Options) -> Result<Self> {
        if !is_root() {
            bail!("only root can start a containerd");
        }
        let parts = containerd_parts(generation)?;
        let folder = Folder::create(generation)?;
        let snapshotter = options.snapshotter.name_for(&folder.path);
        let layout = Layout {
            folder: &folder.path,
            runc: &parts.runc,
            snapshotter,
        };
        fs::write(folder.path.join("config.toml"), config(&layout, options))?;
        if let Some(bytes) = options.disk {
            disk::mount(&folder.path.join("disk.img"), &folder.path.join("root"), bytes)?;
        }
        let mut containerd = Self {
            parts,
            snapshotter,
            cri: options.cri,
            folder,
            child: None,
        };
        containerd.spawn()?;
        Ok(containerd)
    }

    /// The gRPC socket, for `--address`.
    pub fn socket(&self) -> PathBuf {
        self.folder.path.join("c.sock")
    }

    /// The folder with everything this containerd has, its content store at
    /// `io.containerd.content.v1.content`.
    pub fn root(&self) -> PathBuf {
        self.folder.path.join("root")
    }

    /// The file with all it has logged, over restarts.
    fn log_path(&self) -> PathBuf {
        self.folder.path.join("containerd.log")
    }

    /// The last lines it has logged.
    pub fn log_tail(&self) -> String {
        tail(&self.log_from(0), 30)
    }

    /// The programs it runs with.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Which generation it is.
    pub fn generation(&self) -> Generation {
        self.parts.generation
    }

    /// Its version, `2.1.9+unknown` for instance.
    pub fn version_text(&self) -> &str {
        &self.parts.version
    }

    /// The name of the snapshotter that CRI unpacks with.
    pub fn snapshotter(&self) -> &'static str {
        self.snapshotter
    }

    /// The process id; `None` after [`kill`](Self::kill) or [`stop`](Self::stop).
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Runs `ctr` in the namespace of Kubernetes and gives its standard output.
    ///
    /// # Errors
    ///
    /// When `ctr` fails, with what it said.
    pub fn ctr(&self, arguments: &[&str]) -> Result<String> {
        output_of(self.ctr_in(NAMESPACE).args(arguments))
    }

    /// A `ctr` command for this containerd and that namespace, to which its arguments have yet to
    /// be added.
    pub fn ctr_in(&self, namespace: &str) -> Command {
        let mut command = Command::new(&self.parts.ctr);
        command
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", namespace]);
        command
    }

    /// Runs a command in a new container from an image that is there, to its end, and gives its
    /// output, both streams.
    ///
    /// The layers are unpacked first if they are not yet. The container has the host's network and
    /// is removed.
    ///
    /// # Errors
    ///
    /// When the image cannot be unpacked or the command fails.
    pub fn run(&self, image: &str, command: &[&str]) -> Result<String> {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let id = format!(
            "airgapd-{}-{}",
            std::process::id(),
            RUNS.fetch_add(1, Ordering::Relaxed)
        );
        // ctr gives up its fifos when the container ends, so the output of a short one can be lost
        // on the way to it. The shim writes all of it into a file before ctr deletes the task.
        let output = self.folder.path.join(format!("{id}.out"));
        fs::write(&output, "")?;
        let ran = output_of(
            self.ctr_run(&["--rm", "--log-uri", &format!("file://{}", output.display())])
                .args([image, &id])
                .args(command)
                .stdin(Stdio::null()),
        );
        let said = fs::read_to_string(&output)?;
        fs::remove_file(output)?;
        match ran {
            Ok(_) => Ok(said),
            Err(error) => Err(anyhow!("{error:#}\nThe container said:\n{}", tail(&said, 12))),
        }
    }

    /// Starts a command in a new container of that id and leaves it running, until this containerd
    /// is dropped.
    ///
    /// # Errors
    ///
    /// When the image cannot be unpacked or the container cannot be started.
    pub fn run_in_background(&self, image: &str, id: &str, command: &[&str]) -> Result<()> {
        // The shim inherits ctr's output and would keep a pipe open for as long as it lives.
        let output = self.folder.path.join(format!("{id}.log"));
        let log = File::create(&output)?;
        let status = self
            .ctr_run(&["--detach", "--null-io"])
            .args([image, id])
            .args(command)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()?;
        if !status.success() {
            bail!(
                "cannot start container {id} from {image}:\n{}",
                tail(&fs::read_to_string(output)?, 12)
            );
        }
        Ok(())
    }

    fn ctr_run(&self, flags: &[&str]) -> Command {
        let mut ctr = self.ctr_in(NAMESPACE);
        ctr.arg("run")
            .args(flags)
            .arg("--net-host")
            .args(self.run_flags());
        ctr
    }

    /// What `ctr run` has to be told of this containerd, which shares neither programs nor folders
    /// with the machine's.
    pub fn run_flags(&self) -> Vec<OsString> {
        let folder = |name: &str| self.folder.path.join(name).into();
        let flags: [(&str, OsString); 5] = [
            ("--snapshotter", self.snapshotter.into()),
            ("--runc-binary", self.parts.runc.clone().into()),
            ("--runc-root", folder("runc")),
            ("--fifo-dir", folder("fifo")),
            // Control groups are the machine's; the default, `/k8s.io/<id>`, would meet other
            // containerds' there.
            ("--cgroup", format!("/{}", unique_name()).into()),
        ];
        flags
            .into_iter()
            .flat_map(|(flag, value)| [flag.into(), value])
            .collect()
    }

    /// Makes containerd collect its garbage now, and returns when it has.
    ///
    /// # Errors
    ///
    /// When containerd does not answer.
    pub fn force_gc(&self) -> Result<()> {
        // Deleting a lease synchronously ends with a collection; nobody else uses this one.
        const LEASE: &str = "airgapd-force-gc";
        self.ctr(&["leases", "create", "--id", LEASE])?;
        self.ctr(&["leases", "delete", "--sync", LEASE])?;
        Ok(())
    }

    /// Ends containerd as a crash does (SIGKILL); containers and their shims live on.
    ///
    /// # Errors
    ///
    /// When it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Ends containerd as its unit does (SIGTERM, and SIGKILL after a while); containers live on.
    ///
    /// # Errors
    ///
    /// When it cannot be waited for.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(child) = &mut self.child {
            kill_process(pid_of(child), Signal::TERM)?;
            wait_until(STOPPED_WITHIN, || Ok(child.try_wait()?.is_some()))?;
        }
        self.kill()
    }

    /// Starts it again on what it has, stopping it first if it runs.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start).
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.spawn()
    }

    /// Starts another generation on what this one has, as an upgrade does.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start).
    pub fn become_generation(&mut self, generation: Generation) -> Result<()> {
        self.stop()?;
        self.parts = containerd_parts(generation)?;
        self.spawn()
    }

    /// Starts it again with nothing, as after its root was wiped or another containerd took its
    /// place.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start), and when files cannot be removed.
    pub fn restart_empty(&mut self) -> Result<()> {
        self.stop()?;
        fs::remove_dir_all(self.root())?;
        self.spawn()
    }

    fn spawn(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let logged = log.metadata()?.len();
        let child = Command::new(&self.parts.containerd)
            .arg("--config")
            .arg(self.folder.path.join("config.toml"))
            .env("PATH", self.search_path()?)
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.parts.containerd.display()))?;
        self.child = Some(child);
        self.wait_until_ready(logged).map_err(|reason| {
            anyhow!(
                "containerd {} does not start: {reason:#}\n\nThe end of its log:\n{}",
                self.version_text(),
                self.log_tail()
            )
        })
    }

    /// containerd looks for its shims on the `PATH`; ours come first.
    fn search_path(&self) -> Result<OsString> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = [self.parts.shims.clone()]
            .into_iter()
            .chain(std::env::split_paths(&path));
        Ok(std::env::join_paths(
            folders.chain(["/usr/sbin", "/sbin"].map(PathBuf::from)),
        )?)
    }

    fn wait_until_ready(&mut self, logged: u64) -> Result<()> {
        let socket = self.socket();
        let answered = wait_until(READY_WITHIN, || {
            if let Some(status) = self
                .child
                .as_mut()
                .and_then(|child| child.try_wait().transpose())
                .transpose()?
            {
                bail!("it ended ({status}): {}", tail(&self.log_from(logged), 1));
            }
            if let Some(complaint) = self.failed_cri(logged) {
                bail!("its CRI service failed: {complaint}");
            }
            // `ctr version` fails where containerd has lost its identity and works all the same.
            Ok(socket.exists() && self.ctr(&["namespaces", "list"]).is_ok() && self.cri_is_up(logged))
        })?;
        if !answered {
            bail!(
                "no answer within {} s; its last line: {}",
                READY_WITHIN.as_secs(),
                tail(&self.log_from(logged), 1)
            );
        }
        Ok(())
    }

    /// containerd goes on without a plugin that fails, and would never serve what waits for CRI.
    fn failed_cri(&self, logged: u64) -> Option<String> {
        let log = self.log_from(logged);
        self.cri.then(|| {
            log.lines()
                .find(|line| is_failure_of_cri(line))
                .map(str::to_owned)
        })?
    }

    /// CRI refuses every call until its last part, the streaming server, has started.
    fn cri_is_up(&self, logged: u64) -> bool {
        !self.cri || self.log_from(logged).contains("Start streaming server")
    }

    fn log_from(&self, offset: u64) -> String {
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        let offset = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        String::from_utf8_lossy(&bytes[offset..]).into_owned()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // The folder, dropped next, ends whatever outlives this.
        let _ = self.stop();
    }
}

/// Whether a line of containerd's log says that CRI, or a half of it since 2.0, could not be
/// loaded.
fn is_failure_of_cri(line: &str) -> bool {
    line.contains("failed to load plugin")
        && ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1."]
            .iter()
            .any(|plugin| line.contains(plugin))
}

/// A name that nothing else on this machine has.
fn unique_name() -> String {
    static NAMES: AtomicU32 = AtomicU32::new(0);
    format!(
        "airgapd-{}-{}",
        std::process::id(),
        NAMES.fetch_add(1, Ordering::Relaxed)
    )
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Asks again and again until the answer is yes (true) or the time is over (false).
pub(crate) fn wait_until(limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        if done()? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cri_that_fails_is_seen_in_the_log_of_each_generation() {
        let table = [
            (
                r#"level=warning msg="failed to load plugin io.containerd.grpc.v1.cri" error="failed to create CRI service""#,
                true,
            ),
            (
                r#"level=warning msg="failed to load plugin" error="no mount" id=io.containerd.cri.v1.images type=io.containerd.cri.v1"#,
                true,
            ),
            (
                r#"level=warning msg="failed to load plugin" error="no zfs" id=io.containerd.snapshotter.v1.zfs"#,
                false,
            ),
            (
                r#"level=info msg="loading plugin" id=io.containerd.grpc.v1.cri"#,
                false,
            ),
        ];
        for (line, expected) in table {
            assert_eq!(is_failure_of_cri(line), expected, "{line}");
        }
    }
}
