//! What no safe wrapper offers: `fcntl(F_SETLEASE)` with what it needs of signals, and waiting for urgent
//! data on a descriptor.
//!
//! This is the only module of the workspace that may contain `unsafe`. It decides nothing.
#![allow(
    unsafe_code,
    reason = "F_SETLEASE and registering a descriptor have no safe wrapper"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Once;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What the kernel says about writers of an open file.
#[derive(Debug)]
pub(crate) enum Probe {
    /// Nobody had the file open for writing, through any name, mount or mapping, at that instant.
    NoWriter,
    /// Somebody has.
    Busy,
    /// The file system, or our privileges, do not allow the question (fcntl(2): EINVAL where leases
    /// are not supported, EACCES for the file of another user without `CAP_LEASE`).
    Unsupported,
}

/// Asks whether anybody can still write to `file`, by taking a read lease and dropping it at once.
///
/// While a lease is held, a writer's open(2) blocks; it is therefore never kept (it takes about
/// three microseconds). `file` must be a regular file opened for reading only.
pub(crate) fn probe_writers(file: BorrowedFd<'_>) -> Probe {
    ignore_lease_breaks();
    match set_lease(file, libc::F_RDLCK) {
        Ok(()) => match set_lease(file, libc::F_UNLCK) {
            Ok(()) => Probe::NoWriter,
            // A lease that was broken meanwhile means that a writer has just come.
            Err(_) => Probe::Busy,
        },
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Probe::Busy,
        Err(_) => Probe::Unsupported,
    }
}

fn set_lease(file: BorrowedFd<'_>, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: F_SETLEASE takes an integer and no pointer; the descriptor is open for the whole call,
    // since it is borrowed.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes SIGIO harmless, once: it is what the kernel sends when a writer breaks our lease, and its
/// default action ends the process.
fn ignore_lease_breaks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: SIG_IGN installs no handler, so no code of ours can run in signal context; nothing
        // else in this program uses SIGIO.
        unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    });
}

/// Registers a file with tokio for what poll(2) calls POLLPRI. Must be called inside a runtime.
pub(crate) fn watch_urgent(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: the descriptor is the file's own, open until the file is dropped; the AsyncFd owns the
    // file, nobody else can close or replace it, and a File always gives the same descriptor.
    let registered = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) };
    registered.map_err(|error| error.into_parts().1)
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_file_that_nobody_writes_has_no_writer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bundle.tar");
        std::fs::write(&path, "x").unwrap();
        let file = File::open(&path).unwrap();
        assert!(matches!(probe_writers(file.as_fd()), Probe::NoWriter));
    }

    #[test]
    fn a_writer_through_another_hard_link_is_seen_until_it_closes() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("bundle.tar"), folder.path().join("link"));
        std::fs::write(&path, "x").unwrap();
        std::fs::hard_link(&path, &link).unwrap();
        let file = File::open(&path).unwrap();

        let writer = OpenOptions::new().append(true).open(&link).unwrap();
        assert!(matches!(probe_writers(file.as_fd()), Probe::Busy));
        drop(writer);
        assert!(matches!(probe_writers(file.as_fd()), Probe::NoWriter));
    }

    #[test]
    fn another_reader_is_no_writer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bundle.tar");
        std::fs::write(&path, "x").unwrap();
        let (file, _other) = (File::open(&path).unwrap(), File::open(&path).unwrap());
        assert!(matches!(probe_writers(file.as_fd()), Probe::NoWriter));
    }
}
