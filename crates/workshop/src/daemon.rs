//! A daemon that reports its status to this program as it does to systemd.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Longest time until the images are in place.
const WITHIN: Duration = Duration::from_secs(600);

/// The folders and the containerd of a daemon.
pub(crate) struct Places<'a> {
    /// Folder with `config.yaml`. The socket for the daemon's reports is created there.
    pub(crate) folder: &'a Path,
    pub(crate) images: &'a Path,
    pub(crate) state: &'a Path,
    /// Socket of containerd.
    pub(crate) address: &'a Path,
}

/// A running daemon that sends this program the messages for systemd.
pub(crate) struct Daemon {
    child: Child,
    notifications: UnixDatagram,
}

impl Daemon {
    /// Starts a daemon with settings as environment variables.
    pub(crate) fn start(program: &Path, places: &Places<'_>, settings: &[(&str, &str)]) -> Result<Self> {
        let socket = places.folder.join("notify.sock");
        if socket.exists() {
            fs::remove_file(&socket)?;
        }
        let notifications = UnixDatagram::bind(&socket)?;
        let mut command = Command::new(program);
        command
            .args(["run", "--quiet", "--config"])
            .arg(places.folder.join("config.yaml"))
            .arg("--images-dir")
            .arg(places.images)
            .arg("--state-dir")
            .arg(places.state)
            .arg("--address")
            .arg(places.address)
            .stdin(Stdio::null());
        without_our_environment(&mut command);
        // The removal of this process's variables comes first, since the daemon needs this one.
        command
            .env("NOTIFY_SOCKET", &socket)
            .envs(settings.iter().copied());
        let child = command.spawn().context("cannot start the daemon")?;
        Ok(Self { child, notifications })
    }

    /// Waits until the daemon is healthy with this number of bundles, and all their images are in
    /// place.
    pub(crate) fn until_in_place(&mut self, bundles: usize, images: usize) -> Result<()> {
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

    /// Returns the process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn stop(&mut self) -> Result<()> {
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

/// Removes this program's own `AIRGAPD_` variables, so that they do not configure the daemon.
pub(crate) fn without_our_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AIRGAPD_")) {
        command.env_remove(name);
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
