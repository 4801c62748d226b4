//! System calls without a safe wrapper: `fcntl(F_SETLEASE)` with its signal, waiting for urgent
//! data on a descriptor, a word about the signal that the process dies of, and a setting of glibc's
//! allocator.
//!
//! This is the only module of the workspace that may contain `unsafe`. It decides nothing.
#![allow(
    unsafe_code,
    reason = "F_SETLEASE, registering a descriptor, handlers of fatal signals and mallopt have no safe wrapper"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Once, OnceLock};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has glibc's allocator give back what is freed (mallopt(3)); musl's does so anyway.
///
/// All threads share two arenas. With one for each thread, memory that one has freed serves no
/// other thread: several MiB after an import. And a block of a MiB or more is always mapped by
/// itself, so that it grows without a copy and leaves nothing behind. By default the bound rises up
/// to 32 MiB as such blocks are freed.
pub fn give_back_memory() {
    // SAFETY: mallopt takes two numbers and touches no memory of ours.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
    }
}

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
    // SAFETY: F_SETLEASE takes an integer and no pointer; the descriptor is open for the whole
    // call, since it is borrowed.
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
        // SAFETY: SIG_IGN installs no handler, so no code of ours can run in signal context;
        // nothing else in this program uses SIGIO.
        unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    });
}

/// Registers a file with tokio for what poll(2) calls POLLPRI. Must be called inside a runtime.
pub(crate) fn watch_urgent(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: the descriptor is the file's own, open until the file is dropped; the AsyncFd owns
    // the file, nobody else can close or replace it, and a File always gives the same descriptor.
    let registered = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) };
    registered.map_err(|error| error.into_parts().1)
}

/// The signals that end the process by a fault of its own, each with the line that is written then.
/// abort(3) is what a failed allocation, a panic within a panic and a stack overflow come to; the
/// processor raises the others.
const FATAL: [(libc::c_int, &[u8]); 5] = [
    (libc::SIGABRT, b"SIGABRT\n"),
    (libc::SIGSEGV, b"SIGSEGV\n"),
    (libc::SIGBUS, b"SIGBUS\n"),
    (libc::SIGILL, b"SIGILL\n"),
    (libc::SIGFPE, b"SIGFPE\n"),
];

/// Where the line goes.
static LAST_WORDS: AtomicI32 = AtomicI32::new(-1);

/// The earlier action for each signal.
static BEFORE: OnceLock<[libc::sigaction; FATAL.len()]> = OnceLock::new();

/// From now on, a fatal signal of the process's own making adds a line with its name to `file`, and
/// then has the effect that it had before. A signal of another process writes nothing: a service
/// manager's watchdog sends SIGABRT.
///
/// `file` should append, and stays open for good. Of several calls the last one counts.
pub(crate) fn note_own_death(file: File) {
    LAST_WORDS.store(file.into_raw_fd(), Ordering::SeqCst);
    BEFORE.get_or_init(|| {
        FATAL.map(|(signal, _)| {
            // SAFETY: a zeroed sigaction is a valid one (SIG_DFL, no flags, an empty mask).
            let before: libc::sigaction = unsafe { std::mem::zeroed() };
            before_of(signal, before)
        })
    });
    for (signal, _) in FATAL {
        // SAFETY: as above.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_fatal;
        action.sa_sigaction = handler as libc::sighandler_t;
        // On the stack that the standard library keeps for a stack overflow.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler has the signature that SA_SIGINFO asks for and calls nothing but
        // async-signal-safe functions (signal-safety(7)); both pointers are valid for the call or
        // null.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    }
}

fn before_of(signal: libc::c_int, mut before: libc::sigaction) -> libc::sigaction {
    // SAFETY: no new action is given, and `before` is valid for writing.
    unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut before) };
    before
}

extern "C" fn on_fatal(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let known = FATAL.iter().position(|(known, _)| *known == signal);
    // SAFETY: the kernel hands a handler with SA_SIGINFO a valid siginfo_t; who sent it is in there
    // for each code up to zero, and only read then. getpid, write, sigaction and raise are
    // async-signal-safe; the descriptor is never closed, the line is static, and BEFORE is filled
    // before the handler is installed.
    unsafe {
        let is_kernel = (*info).si_code > 0;
        if let Some(at) = known {
            if is_kernel || (*info).si_pid() == libc::getpid() {
                let line = FATAL[at].1;
                libc::write(
                    LAST_WORDS.load(Ordering::SeqCst),
                    line.as_ptr().cast(),
                    line.len(),
                );
            }
            if let Some(before) = BEFORE.get() {
                libc::sigaction(signal, &raw const before[at], std::ptr::null_mut());
            }
        }
        if !is_kernel {
            // The processor raises its signals again on return; a signal that was sent has to be
            // sent again.
            libc::raise(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::fd::AsFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use super::*;

    /// Runs in a process of its own, which does not survive it.
    #[test]
    #[ignore = "the other tests run it as a process of its own"]
    fn a_process_that_dies() {
        let Some(words) = std::env::var_os("AIRGAPD_TEST_WORDS") else {
            return;
        };
        let file = OpenOptions::new().append(true).open(words).unwrap();
        note_own_death(file);
        match std::env::var("AIRGAPD_TEST_END").as_deref() {
            Ok("abort") => std::process::abort(),
            Ok("overflow") => assert_eq!(sink(&[0; 1024]), 0),
            Ok("allocation") => drop(vec![1_u8; isize::MAX as usize]),
            _ => loop {
                std::thread::park();
            },
        }
    }

    #[expect(unconditional_recursion, reason = "it is to overflow the stack")]
    fn sink(above: &[u8; 1024]) -> u8 {
        let mut here = *above;
        here[1] = std::hint::black_box(1);
        sink(std::hint::black_box(&here)) + here[0]
    }

    /// The signal by which such a process ends, and the words that it leaves.
    fn end(way: &str, signal: Option<i32>) -> (Option<i32>, String) {
        let folder = tempfile::tempdir().unwrap();
        let words = folder.path().join("words");
        std::fs::write(&words, "").unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "sys::tests::a_process_that_dies",
                "--ignored",
                "--nocapture",
            ])
            .env("AIRGAPD_TEST_WORDS", &words)
            .env("AIRGAPD_TEST_END", way)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        if let Some(signal) = signal {
            // It has its handlers when the kernel says that it catches the signal
            // (proc_pid_status(5)).
            let catches = || {
                let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
                let mask = status
                    .lines()
                    .find_map(|line| line.strip_prefix("SigCgt:"))
                    .unwrap();
                let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
                mask & (1 << (libc::SIGABRT - 1)) != 0
            };
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
            while !catches() {
                assert!(std::time::Instant::now() < deadline, "it installs no handler");
                std::thread::yield_now();
            }
            let pid = rustix::process::Pid::from_child(&child);
            let signal = rustix::process::Signal::from_named_raw(signal).unwrap();
            rustix::process::kill_process(pid, signal).unwrap();
        }
        let status = child.wait().unwrap();
        let mut said = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
        assert_eq!(
            way == "overflow",
            said.contains("has overflowed its stack"),
            "{said}"
        );
        (status.signal(), std::fs::read_to_string(&words).unwrap())
    }

    #[test]
    fn a_process_that_dies_of_itself_says_so_and_one_that_is_killed_does_not() {
        let abort = Some(libc::SIGABRT);
        assert_eq!(end("abort", None), (abort, "SIGABRT\n".to_owned()));
        assert_eq!(end("allocation", None), (abort, "SIGABRT\n".to_owned()));
        let (signal, words) = end("overflow", None);
        assert_eq!((signal, words.lines().next()), (abort, Some("SIGSEGV")));
        assert_eq!(end("wait", abort), (abort, String::new()));
        let fault = Some(libc::SIGFPE);
        assert_eq!(end("wait", fault), (fault, String::new()));
    }

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
