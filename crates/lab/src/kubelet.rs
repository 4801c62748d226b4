//! Private kubelets: the real program, without an API server, on a private containerd.
//!
//! A kubelet changes the machine that it runs on: kernel settings and folders below /var. So each
//! kubelet has its own mount namespace, with files of its own in those places. Its pods use the
//! host's network. Their control groups are in `/k8s.io`, which containerd uses by default, and
//! disappear with the pods.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::runtime::wait_until;
use crate::{golang, is_root, output_of, parts, tail};

/// Longest time from the start of a kubelet until it looks for pods.
const READY_WITHIN: Duration = Duration::from_secs(90);

/// Longest time that a kubelet may take to stop.
const STOPPED_WITHIN: Duration = Duration::from_secs(15);

/// Name of the node. kubelet appends it to the name of every static pod.
pub const NODE: &str = "node";

/// A Kubernetes release whose kubelet this crate can build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    minor: &'static str,
    version: &'static str,
}

impl Release {
    /// The newest patch of each minor version that the module proxy had when this was written,
    /// oldest first.
    pub const ALL: [Self; 4] = [
        Self::new("1.34", "1.34.4"),
        Self::new("1.35", "1.35.4"),
        Self::new("1.36", "1.36.3"),
        Self::new("1.37", "1.37.2"),
    ];

    /// The release to use if the caller names none.
    pub const USUAL: Self = Self::ALL[2];

    const fn new(minor: &'static str, version: &'static str) -> Self {
        Self { minor, version }
    }

    /// Returns the whole version, for example `1.36.3`.
    pub fn version(self) -> &'static str {
        self.version
    }

    /// Returns the program. The first call builds it from its source, which takes some minutes and
    /// some 3 GB in Go's own caches.
    ///
    /// # Errors
    ///
    /// Returns an error if no Go is available, or if a fetch or the build fails.
    pub fn program(self) -> Result<PathBuf> {
        let version = self.version;
        let folder = parts::provide(&format!("kubelet-{version}"), |folder| {
            golang::build_kubelet(version, folder)
        })
        .with_context(|| format!("cannot provide kubelet {version}"))?;
        Ok(folder.join("kubelet"))
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.minor)
    }
}

impl FromStr for Release {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|release| release.minor == text)
            .with_context(|| format!("unknown kubelet version `{text}`: use 1.34, 1.35, 1.36 or 1.37"))
    }
}

/// A kubelet that runs or has just stopped.
///
/// Dropping it stops the process. Its pods run on, as those of every kubelet do, until their
/// containerd is dropped. Drop the containerd last: the kubelet's folder is inside the folder of
/// the containerd.
#[derive(Debug)]
pub struct Kubelet {
    release: Release,
    program: PathBuf,
    folder: PathBuf,
    child: Option<Child>,
}

impl Kubelet {
    /// Starts a kubelet on the containerd at a socket, and waits until it looks for pods.
    /// `settings` are lines of its configuration.
    ///
    /// The kubelet dies with the thread that starts it, if it is not dropped before.
    ///
    /// # Errors
    ///
    /// Returns an error without root, without the program, or if
    /// kubelet does not get ready. That error has the end of kubelet's log.
    pub fn start(release: Release, socket: &Path, settings: &str) -> Result<Self> {
        if !is_root() {
            bail!("only root can start a kubelet");
        }
        let folder = socket
            .parent()
            .context("a socket lies in a folder")?
            .join("kubelet");
        let mut kubelet = Self {
            release,
            program: release.program()?,
            folder,
            child: None,
        };
        for part in ["pods", "pod-logs", "plugins", "var-lib", "var-log", "sys", "root"] {
            fs::create_dir_all(kubelet.folder.join(part))?;
        }
        for (name, value) in KERNEL {
            fs::write(
                kubelet.folder.join("sys").join(name.replace('/', ".")),
                format!("{value}\n"),
            )?;
        }
        fs::write(
            kubelet.folder.join("mounts.sh"),
            mounts(&kubelet.folder, &kubelet.program),
        )?;
        kubelet.configure(socket, settings)?;
        kubelet.spawn()?;
        Ok(kubelet)
    }

    /// Replaces the settings that were given at the start. They apply from the next start on.
    ///
    /// # Errors
    ///
    /// Returns an error if the file cannot be written.
    pub fn configure(&self, socket: &Path, settings: &str) -> Result<()> {
        Ok(fs::write(
            self.config(),
            config(self.release, &self.folder, socket, settings),
        )?)
    }

    /// Returns the path of its configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.join("config.yaml")
    }

    /// Returns the folder in which it looks for pods.
    pub fn static_pods(&self) -> PathBuf {
        self.folder.join("pods")
    }

    /// Returns its `--root-dir`.
    pub fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// Returns its whole log over all restarts. The log contains the events of pods.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.folder.join("kubelet.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Returns the version as the program prints it, for example `Kubernetes v1.36.3`.
    ///
    /// # Errors
    ///
    /// Returns an error if the program does not run.
    pub fn version_text(&self) -> Result<String> {
        let answer = output_of(Command::new(&self.program).arg("--version"))?;
        Ok(answer.trim().to_owned())
    }

    /// Stops kubelet the way its unit does: SIGTERM, then SIGKILL. Its pods run on.
    ///
    /// # Errors
    ///
    /// Returns an error if waiting for the process fails.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            kill_process(Pid::from_child(&child), Signal::TERM)?;
            if !wait_until(STOPPED_WITHIN, || Ok(child.try_wait()?.is_some()))? {
                child.kill()?;
            }
            child.wait()?;
        }
        Ok(())
    }

    /// Starts kubelet again with its files, after stopping it if it runs.
    ///
    /// # Errors
    ///
    /// Like [`start`](Self::start).
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.spawn()
    }

    fn spawn(&mut self) -> Result<()> {
        let before = self.log().len();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("kubelet.log"))?;
        // A killed test must not leave a kubelet behind. Each of these programs calls exec, so the
        // child is the kubelet.
        let child = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "sh",
            ])
            .arg(self.folder.join("mounts.sh"))
            .arg("--config")
            .arg(self.config())
            .arg("--root-dir")
            .arg(self.root())
            .arg("--cert-dir")
            .arg(self.folder.join("certificates"))
            // kubelet logs events from verbosity 3 on.
            .args(["--hostname-override", NODE, "-v", "3"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start setpriv (util-linux)")?;
        self.child = Some(child);
        let ready = self.wait_until_ready(before);
        ready.with_context(|| {
            format!(
                "kubelet does not get ready. The end of its log:\n{}",
                tail(&self.log(), 30)
            )
        })
    }

    fn wait_until_ready(&mut self, before: usize) -> Result<()> {
        let ready = wait_until(READY_WITHIN, || {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                bail!("it exited ({status})");
            }
            Ok(self.log()[before..].contains("\"SyncLoop ADD\" source=\"file\""))
        })?;
        if !ready {
            bail!("it did not look for pods within {} s", READY_WITHIN.as_secs());
        }
        Ok(())
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// Kernel settings that a kubelet changes if they differ, and the values it wants
/// (container_manager_linux.go).
const KERNEL: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Returns a script that mounts private files over those that a kubelet changes, and then becomes
/// the kubelet.
fn mounts(folder: &Path, program: &Path) -> String {
    let folder = folder.display();
    // The program may be below a folder that the next mounts cover.
    let mut script = format!(
        "set -e\nfolder='{folder}'\n: > \"$folder/kubelet\"\nmount --bind '{}' \"$folder/kubelet\"\n",
        program.display()
    );
    for (name, _) in KERNEL {
        let file = name.replace('/', ".");
        script.push_str(&format!("mount --bind \"$folder/sys/{file}\" /proc/sys/{name}\n"));
    }
    // Links to the logs of containers, and the socket for device plugins.
    script.push_str("mount --bind \"$folder/var-log\" /var/log\nmount --bind \"$folder/var-lib\" /var/lib\n");
    script.push_str("exec \"$folder/kubelet\" \"$@\"\n");
    script
}

/// Returns the configuration of a kubelet without an API server. Unless the settings say otherwise,
/// it evicts no pod and collects no image, even on a full disk.
fn config(release: Release, folder: &Path, socket: &Path, settings: &str) -> String {
    let (folder, socket) = (folder.display(), socket.display());
    // From 1.35 on this is on by default (KEP-2535). With it, all kubelets here read the same
    // settings.
    let features = match release.minor {
        "1.34" => "featureGates: {KubeletEnsureSecretPulledImages: true}\n",
        _ => "",
    };
    let evictions = if settings.contains("evictionHard:") {
        ""
    } else {
        "evictionHard: {memory.available: 1Mi}\n"
    };
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://{socket}
staticPodPath: {folder}/pods
podLogsDir: {folder}/pod-logs
volumePluginDir: {folder}/plugins
enableServer: false
healthzPort: 0
readOnlyPort: 0
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: false}}}}
authorization: {{mode: AlwaysAllow}}
failSwapOn: false
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
makeIPTablesUtilChains: false
resolvConf: \"\"
imageGCHighThresholdPercent: 100
{features}{evictions}{settings}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_read_as_it_is_written_and_belongs_to_its_minor_version() {
        for release in Release::ALL {
            assert_eq!(release.to_string().parse::<Release>().unwrap(), release);
            assert!(
                release.version().starts_with(&format!("{release}.")),
                "{release:?}"
            );
        }
        let error = "1.20".parse::<Release>().unwrap_err().to_string();
        assert!(error.contains("`1.20`") && error.contains("1.36"), "{error}");
    }
}
