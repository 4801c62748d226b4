//! Private containerds: each has its own root, state and socket in a temporary folder, and leaves
//! no trace when it is dropped.
//!
//! Any number of them can run side by side. None touches the machine's own containerd. This module
//! talks to containerd only through `ctr`. Tests of the typed client run on these containerds, so
//! they must not depend on that client.

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

/// The Kubernetes namespace. Functions here use it unless they take another one.
pub const NAMESPACE: &str = "k8s.io";

/// Longest time until containerd answers. A busy machine with cold caches needs some seconds.
const READY_WITHIN: Duration = Duration::from_secs(90);

/// Longest time that containerd may take to stop.
const STOPPED_WITHIN: Duration = Duration::from_secs(15);

/// Options of a private containerd.
#[derive(Clone, Debug)]
pub struct Options {
    /// True if the CRI service runs on the socket.
    pub cri: bool,
    /// Image that CRI starts every pod with. Import an image of that name to start pods.
    pub sandbox_image: String,
    /// The snapshotter that unpacks layers.
    pub snapshotter: Snapshotter,
    /// Size in bytes of a separate disk for the root: an ext4 image on a loop device, or memory if
    /// the machine has no loop devices.
    pub disk: Option<u64>,
    /// True if CRI discards an image's layers after unpacking them.
    pub discard_unpacked_layers: bool,
    /// Lines that are appended to `config.toml` (format version 2), for plugins that it does not
    /// configure yet.
    pub extra_config: String,
    /// Folder that takes the place of this machine's `PATH`, so that containerd finds only its
    /// programs.
    pub programs: Option<PathBuf>,
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
            programs: None,
        }
    }
}

/// A way to unpack layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Snapshotter {
    /// overlayfs, or native if the temporary folder is itself on an overlay, as in a container.
    #[default]
    Auto,
    /// overlayfs.
    Overlayfs,
    /// Plain copies, which are slow but work everywhere.
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

/// A private containerd that runs or has just stopped.
///
/// Dropping it ends the process, its shims and its containers, unmounts their mounts and removes
/// the folder. It signals only processes that were started from this folder.
#[derive(Debug)]
pub struct Containerd {
    parts: Parts,
    snapshotter: &'static str,
    cri: bool,
    programs: Option<PathBuf>,
    folder: Folder,
    child: Option<Child>,
}

impl Containerd {
    /// Provides the programs, starts containerd in a new folder and waits until gRPC and CRI
    /// answer.
    ///
    /// # Errors
    ///
    /// Returns an error without root, without the programs, or if containerd does not start. That
    /// error has the end of containerd's log.
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
            programs: options.programs.clone(),
            folder,
            child: None,
        };
        containerd.spawn()?;
        Ok(containerd)
    }

    /// Returns the path of the gRPC socket, for `--address`.
    pub fn socket(&self) -> PathBuf {
        self.folder.path.join("c.sock")
    }

    /// Returns the root folder, which holds all data of this containerd. The content store is at
    /// `io.containerd.content.v1.content`.
    pub fn root(&self) -> PathBuf {
        self.folder.path.join("root")
    }

    /// Returns the path of the log over all restarts.
    fn log_path(&self) -> PathBuf {
        self.folder.path.join("containerd.log")
    }

    /// Returns the last lines of the log.
    pub fn log_tail(&self) -> String {
        tail(&self.log_from(0), 30)
    }

    /// Returns the programs that it runs with.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Returns its generation.
    pub fn generation(&self) -> Generation {
        self.parts.generation
    }

    /// Returns its version, for example `2.1.9+unknown`.
    pub fn version_text(&self) -> &str {
        &self.parts.version
    }

    /// Returns the name of the snapshotter that CRI unpacks with.
    pub fn snapshotter(&self) -> &'static str {
        self.snapshotter
    }

    /// Returns the process id, or `None` after [`kill`](Self::kill) or [`stop`](Self::stop).
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Runs `ctr` in the Kubernetes namespace and returns its standard output.
    ///
    /// # Errors
    ///
    /// Returns an error with the output of `ctr` if it fails.
    pub fn ctr(&self, arguments: &[&str]) -> Result<String> {
        output_of(self.ctr_in(NAMESPACE).args(arguments))
    }

    /// Returns a `ctr` command for this containerd and a namespace. The caller adds the arguments.
    pub fn ctr_in(&self, namespace: &str) -> Command {
        let mut command = Command::new(&self.parts.ctr);
        command
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", namespace]);
        command
    }

    /// Runs a command to its end in a new container from an imported image. Returns the output of
    /// both streams.
    ///
    /// The layers are unpacked first if necessary. The container uses the host's network and is
    /// removed afterwards.
    ///
    /// # Errors
    ///
    /// Returns an error if the image cannot be unpacked or the command fails.
    pub fn run(&self, image: &str, command: &[&str]) -> Result<String> {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let id = format!(
            "airgapd-{}-{}",
            std::process::id(),
            RUNS.fetch_add(1, Ordering::Relaxed)
        );
        // ctr closes its fifos when the container ends, so the output of a short command can be
        // lost. The shim writes all output into a file before ctr deletes the task.
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
            Err(error) => Err(anyhow!(
                "{error:#}\nOutput of the container:\n{}",
                tail(&said, 12)
            )),
        }
    }

    /// Starts a command in a new container with that id. The container runs until this containerd
    /// is dropped.
    ///
    /// # Errors
    ///
    /// Returns an error if the image cannot be unpacked or the container cannot be started.
    pub fn run_in_background(&self, image: &str, id: &str, command: &[&str]) -> Result<()> {
        // The shim inherits ctr's output and would keep a pipe open for its whole life.
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

    /// Returns the flags that `ctr run` needs for this containerd, which shares neither programs
    /// nor folders with the machine's.
    pub fn run_flags(&self) -> Vec<OsString> {
        let folder = |name: &str| self.folder.path.join(name).into();
        let flags: [(&str, OsString); 5] = [
            ("--snapshotter", self.snapshotter.into()),
            ("--runc-binary", self.parts.runc.clone().into()),
            ("--runc-root", folder("runc")),
            ("--fifo-dir", folder("fifo")),
            // All containerds share the machine's control groups. The default, `/k8s.io/<id>`,
            // could collide with theirs.
            ("--cgroup", format!("/{}", unique_name()).into()),
        ];
        flags
            .into_iter()
            .flat_map(|(flag, value)| [flag.into(), value])
            .collect()
    }

    /// Makes containerd collect its garbage and waits for the end.
    ///
    /// # Errors
    ///
    /// Returns an error if containerd does not answer.
    pub fn force_gc(&self) -> Result<()> {
        // A synchronous deletion of a lease ends with a collection. Only this function uses this
        // lease.
        const LEASE: &str = "airgapd-force-gc";
        self.ctr(&["leases", "create", "--id", LEASE])?;
        self.ctr(&["leases", "delete", "--sync", LEASE])?;
        Ok(())
    }

    /// Kills containerd with SIGKILL, like a crash. Containers and their shims live on.
    ///
    /// # Errors
    ///
    /// Returns an error if waiting for the process fails.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Stops containerd the way its unit does: SIGTERM, then SIGKILL. Containers live on.
    ///
    /// # Errors
    ///
    /// Returns an error if waiting for the process fails.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(child) = &mut self.child {
            kill_process(pid_of(child), Signal::TERM)?;
            wait_until(STOPPED_WITHIN, || Ok(child.try_wait()?.is_some()))?;
        }
        self.kill()
    }

    /// Starts containerd again with its data, after stopping it if it runs.
    ///
    /// # Errors
    ///
    /// Like [`start`](Self::start).
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.spawn()
    }

    /// Starts another generation with the data of this one, like an upgrade.
    ///
    /// # Errors
    ///
    /// Like [`start`](Self::start).
    pub fn become_generation(&mut self, generation: Generation) -> Result<()> {
        self.stop()?;
        self.parts = containerd_parts(generation)?;
        self.spawn()
    }

    /// Starts containerd again without data. This is what happens when its root is wiped or another
    /// containerd replaces it.
    ///
    /// # Errors
    ///
    /// Like [`start`](Self::start). Also returns an error if files cannot be removed.
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

    /// Returns the `PATH` on which containerd looks for its shims. The shims of its own generation
    /// come first.
    fn search_path(&self) -> Result<OsString> {
        let path = match &self.programs {
            Some(folder) => folder.clone().into_os_string(),
            None => std::env::var_os("PATH").unwrap_or_default(),
        };
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
                bail!("it exited ({status}): {}", tail(&self.log_from(logged), 1));
            }
            if let Some(complaint) = self.failed_cri(logged) {
                bail!("its CRI service failed: {complaint}");
            }
            // `ctr version` fails if containerd has lost its identity, although containerd works.
            Ok(socket.exists() && self.ctr(&["namespaces", "list"]).is_ok() && self.cri_is_up(logged))
        })?;
        if !answered {
            bail!(
                "no answer within {} s. The last line of its log: {}",
                READY_WITHIN.as_secs(),
                tail(&self.log_from(logged), 1)
            );
        }
        Ok(())
    }

    /// Finds the failure of CRI. containerd runs on without a failed plugin, so a test that waits
    /// for CRI would wait forever.
    fn failed_cri(&self, logged: u64) -> Option<String> {
        let log = self.log_from(logged);
        self.cri.then(|| {
            log.lines()
                .find(|line| is_failure_of_cri(line))
                .map(str::to_owned)
        })?
    }

    /// Returns true if CRI is up. It refuses every call until its last part, the streaming server,
    /// has started.
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
        // The folder, dropped next, ends the processes that survive this.
        let _ = self.stop();
    }
}

/// Returns true if a line of containerd's log says that CRI failed to load. Since 2.0, CRI has two
/// parts.
fn is_failure_of_cri(line: &str) -> bool {
    line.contains("failed to load plugin")
        && ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1."]
            .iter()
            .any(|plugin| line.contains(plugin))
}

/// Returns a name that nothing else on this machine has.
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

/// Polls until `done` returns true, or returns false when the time is over.
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
