//! Messages to systemd (sd_notify(3)): ready, status, stopping, alive.
//!
//! Without systemd every call does nothing. An unreachable service manager is no reason to stop
//! importing, so failures are only logged.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tracing::debug;

/// The service manager, if it started this process.
#[derive(Debug)]
pub struct Systemd {
    watchdog: Option<Duration>,
    /// Time of the last message to systemd that the daemon is alive.
    alive_said: Cell<Option<Instant>>,
    /// The current line of `systemctl status`. The same line is not sent twice.
    status: RefCell<String>,
}

impl Systemd {
    /// Finds the service manager by `NOTIFY_SOCKET` and `WATCHDOG_USEC`.
    pub fn from_environment() -> Systemd {
        Systemd {
            watchdog: sd_notify::watchdog_enabled(),
            alive_said: Cell::default(),
            status: RefCell::default(),
        }
    }

    /// Reports that the watch is set and the first listing is done. Units that are ordered after
    /// airgapd may start.
    pub fn ready(&self) {
        send(&[NotifyState::Ready]);
    }

    /// Reports that the configuration is being read again. [`Systemd::ready`] reports the end.
    pub(crate) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => send(&[NotifyState::Reloading, now]),
            Err(error) => debug!("cannot tell systemd: {error}"),
        }
    }

    /// Sets the line that `systemctl status` shows. Sends it only if it differs from the last, and
    /// drops it if systemd is too busy to take it: an old line does less harm than waiting.
    pub fn status(&self, status: &str) {
        if !self.is_news(status) {
            return;
        }
        let line = one_line(status);
        match send_if_possible(&format!("STATUS={line}\n")) {
            Ok(()) => drop(self.status.replace(line)),
            Err(error) => debug!("cannot tell systemd: {error}"),
        }
    }

    /// Returns true if `systemctl status` shows another line.
    pub(crate) fn is_news(&self, status: &str) -> bool {
        *self.status.borrow() != one_line(status)
    }

    /// Reports that a stop has begun, and the longest time that it takes. systemd waits that long
    /// before it kills the process, regardless of the unit's `TimeoutStopSec=`.
    pub fn stopping(&self, may_take: Duration) {
        let micros = u32::try_from(may_take.as_micros()).unwrap_or(u32::MAX);
        send(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]);
    }

    /// Tells systemd that the work continues, each time half of `WATCHDOG_USEC` is over. The caller
    /// must be the work itself: a separate timer would prove nothing. Returns when to call again,
    /// or `None` if systemd does not expect this.
    pub fn alive(&self) -> Option<Instant> {
        let (now, pace) = (Instant::now(), self.watchdog? / 2);
        let due = self.alive_said.get().map(|said| said + pace);
        if let Some(due) = due.filter(|due| *due > now) {
            return Some(due);
        }
        // A message that was not sent does not count. The next call retries, and the pace keeps the
        // loop from spinning.
        match send_if_possible("WATCHDOG=1\n") {
            Ok(()) => self.alive_said.set(Some(now)),
            Err(error) => {
                debug!("cannot tell systemd: {error}");
                return Some(now + pace.min(AGAIN));
            }
        }
        Some(now + pace)
    }
}

/// Time until the daemon sends a message again for which systemd had no room.
const AGAIN: Duration = Duration::from_secs(1);

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!("cannot tell systemd: {error}");
    }
}

/// Puts a text on one line, because a line break would start another assignment.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// Sends without waiting. Sends nothing if `NOTIFY_SOCKET` is not set.
fn send_if_possible(message: &str) -> io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(message.as_bytes(), &address).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::sys::forks;

    /// Runs in a separate process, with the test's environment.
    #[test]
    #[ignore = "the other tests run it with a notify socket"]
    fn a_service() {
        let systemd = Systemd::from_environment();
        systemd.ready();
        systemd.status("3 bundles");
        systemd.status("3 bundles");
        systemd.status("4 bundles\nREADY=0");
        let (before, next) = (Instant::now(), systemd.alive());
        assert_eq!(systemd.alive(), next, "half the time is not over");
        systemd.stopping(Duration::from_secs(30));
        if let Some(next) = next {
            let half = (next - before).as_secs_f32().round();
            systemd.status(&format!("again after {half} s"));
        }
    }

    /// Returns the messages that systemd gets from [`a_service`], started with these variables.
    fn heard(variables: &[(&str, &str)]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let mut program = Command::new(std::env::current_exe().unwrap());
        program
            .args(["--exact", "systemd::tests::a_service", "--ignored"])
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .env("NOTIFY_SOCKET", &path)
            .envs(variables.iter().copied())
            .stdout(Stdio::piped());
        let child = forks::spawn(&mut program).wait_with_output().unwrap();
        assert!(
            child.status.success(),
            "{}",
            String::from_utf8_lossy(&child.stdout)
        );
        socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 4096];
        let next = || {
            let length = socket.recv(&mut buffer).ok()?;
            Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
        };
        std::iter::from_fn(next)
            .map(|message| message.trim_end().to_owned())
            .collect()
    }

    #[test]
    fn systemd_hears_ready_each_new_status_once_and_stopping() {
        let expected = [
            "READY=1",
            "STATUS=3 bundles",
            "STATUS=4 bundles READY=0",
            "STOPPING=1\nEXTEND_TIMEOUT_USEC=30000000",
        ];
        assert_eq!(heard(&[]), expected);
    }

    #[test]
    fn with_a_watchdog_systemd_hears_that_we_are_alive() {
        let heard = heard(&[("WATCHDOG_USEC", "6000000")]);
        let alive = heard.iter().filter(|message| *message == "WATCHDOG=1").count();
        assert_eq!(alive, 1, "{heard:?}");
        assert!(heard.contains(&"STATUS=again after 3 s".to_owned()), "{heard:?}");
    }

    #[test]
    fn a_service_manager_that_is_gone_stops_nothing() {
        assert_eq!(
            heard(&[("NOTIFY_SOCKET", "/nonexistent/notify")]),
            Vec::<String>::new()
        );
    }
}
