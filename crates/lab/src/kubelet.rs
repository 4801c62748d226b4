//! Private kubelets: the real program, without an API server, on a private containerd.
//!
//! It stands apart because a kubelet, unlike a containerd, changes the machine wherever it runs:
//! kernel settings, folders below /var. So each one has a mount namespace of its own, in which
//! those places are its own files. Pods are on the host's network. Their control groups lie in
//! containerd's usual one, `/k8s.io`, and go with them.

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

/// How long a kubelet may take until it looks for pods.
const READY_WITHIN: Duration = Duration::from_secs(90);

/// How long it may take to end when asked to.
const STOPPED_WITHIN: Duration = Duration::from_secs(15);

/// The name of the node, which kubelet appends to that of every static pod.
pub const NODE: &str = "node";

/// A release of Kubernetes whose kubelet is built here.
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

    /// What runs where nothing else is asked for.
    pub const USUAL: Self = Self::ALL[2];

    const fn new(minor: &'static str, version: &'static str) -> Self {
        Self { minor, version }
    }

    /// The whole version, `1.36.3` for instance.
    pub fn version(self) -> &'static str {
        self.version
    }

    /// The program, built from its source if it is not here yet: some minutes, and some 3 GB in
    /// Go's own caches.
    ///
    /// # Errors
    ///
    /// When there is no Go, or when something cannot be fetched or built.
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
        all.find(|release| release.minor == text).with_context(|| {
            format!("`{text}` is no kubelet that is built here: it is one of 1.34, 1.35, 1.36 and 1.37")
        })
    }
}

/// A running (or just stopped) kubelet.
///
/// Dropping it ends it. Its pods go on, as those of every kubelet do, until their containerd is
/// dropped, which has to happen later: the folder of a kubelet lies in that of its containerd.
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
    /// It ends with the thread that starts it, if it is not dropped before.
    ///
    /// # Errors
    ///
    /// Without root, when the program cannot be had, or when it does not come up: with the end of
    /// its log.
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

    /// Replaces what its configuration says beyond the usual; counts from the next start on.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn configure(&self, socket: &Path, settings: &str) -> Result<()> {
        Ok(fs::write(
            self.config(),
            config(self.release, &self.folder, socket, settings),
        )?)
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.join("config.yaml")
    }

    /// The folder in which it looks for pods.
    pub fn static_pods(&self) -> PathBuf {
        self.folder.join("pods")
    }

    /// Its `--root-dir`.
    pub fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// All it has logged, over restarts, events of pods among it.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.folder.join("kubelet.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The version as the program gives it: `Kubernetes v1.36.3`.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn version_text(&self) -> Result<String> {
        let answer = output_of(Command::new(&self.program).arg("--version"))?;
        Ok(answer.trim().to_owned())
    }

    /// Ends it as its unit does (SIGTERM, and SIGKILL after a while); pods live on.
    ///
    /// # Errors
    ///
    /// When it cannot be waited for.
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

    /// Starts it again on what it has, stopping it first if it runs.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start).
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
        // A test that is killed must not leave a kubelet behind; all of these exec, so that the
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
            // Events are logged from 3 on.
            .args(["--hostname-override", NODE, "-v", "3"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start setpriv (util-linux)")?;
        self.child = Some(child);
        let ready = self.wait_until_ready(before);
        ready.with_context(|| format!("kubelet does not come up; it said:\n{}", tail(&self.log(), 30)))
    }

    fn wait_until_ready(&mut self, before: usize) -> Result<()> {
        let ready = wait_until(READY_WITHIN, || {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                bail!("it ended ({status})");
            }
            Ok(self.log()[before..].contains("\"SyncLoop ADD\" source=\"file\""))
        })?;
        if !ready {
            bail!("it does not look for pods within {} s", READY_WITHIN.as_secs());
        }
        Ok(())
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// Kernel settings that a kubelet changes where they differ, and what it wants them to be:
/// container_manager_linux.go.
const KERNEL: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// A script that puts files of our own in the place of those that a kubelet changes, and becomes
/// the kubelet.
fn mounts(folder: &Path, program: &Path) -> String {
    let folder = folder.display();
    // The program may lie below a folder that is about to be covered.
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

/// The configuration of a kubelet without a server, which evicts no pod and collects no image
/// unless the settings say so, however full the machine's disk is.
fn config(release: Release, folder: &Path, socket: &Path, settings: &str) -> String {
    let (folder, socket) = (folder.display(), socket.display());
    // What is on by itself from 1.35 on (KEP-2535), so that all kubelets here read these settings.
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
