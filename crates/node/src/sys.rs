//! System calls without a safe wrapper:
//!
//! * `fcntl(F_SETLEASE)` with its signal,
//! * waiting for events of a descriptor,
//! * a note about the signal that the process dies of,
//! * the I/O priority of this process,
//! * settings of glibc's allocator, and the memory that it keeps.
//!
//! This is the only module of the workspace that may contain `unsafe`, besides one test. It decides
//! nothing.
#![allow(
    unsafe_code,
    reason = "F_SETLEASE, registering a descriptor, handlers of fatal signals, ioprio_set, mallopt and malloc_trim have no safe wrapper"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Once, OnceLock};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Makes glibc's allocator return freed memory to the kernel (mallopt(3)). musl's allocator does so
/// anyway.
///
/// All threads share two arenas. If each thread had an arena of its own, the memory that it frees
/// would serve no other thread: several MiB after an import. A block of a MiB or more is always
/// mapped separately. It grows without a copy and leaves nothing behind. By default this threshold
/// rises up to 32 MiB as such blocks are freed.
pub fn give_back_memory() {
    // SAFETY: mallopt takes two numbers and touches no memory of this program.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
    }
}

/// Gives freed memory back to the kernel that glibc keeps for later (malloc_trim(3)). It keeps
/// pieces of each import between blocks that stay. musl keeps next to nothing. Takes less than a
/// millisecond for a heap of 10 MiB.
pub(crate) fn trim_memory() {
    // SAFETY: malloc_trim takes a number and returns only memory that no block uses.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Returns the time since the boot of the machine, in whole seconds (sysinfo(2)). Sleep counts.
pub fn since_boot() -> Duration {
    let seconds = rustix::system::sysinfo().uptime;
    Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

/// Gives all threads of this process the idle I/O priority (ioprio_set(2)): the disk serves them
/// when no other program needs it. New threads inherit it. If the kernel refuses, the priority
/// stays.
pub fn read_when_idle() {
    /// `IOPRIO_WHO_PROCESS`: the id is that of a thread.
    const OF_THREAD: libc::c_long = 1;
    /// `IOPRIO_CLASS_IDLE`, shifted by `IOPRIO_CLASS_SHIFT`.
    const IDLE: libc::c_long = 3 << 13;
    let threads = std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let ids = threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for id in ids {
        let id: libc::c_long = id;
        // SAFETY: ioprio_set takes three numbers and touches no memory of this program.
        unsafe { libc::syscall(libc::SYS_ioprio_set, OF_THREAD, id, IDLE) };
    }
}

/// The kernel's answer about writers of an open file.
#[derive(Debug)]
pub(crate) enum Probe {
    /// No process had the file open for writing at that instant, through any name, mount or
    /// mapping.
    NoWriter,
    /// A process has the file open for writing.
    Busy,
    /// The file system or this process's privileges do not allow the question. fcntl(2) has EINVAL
    /// if leases are not supported, and EACCES for another user's file without `CAP_LEASE`.
    Unsupported,
}

/// Checks whether any process can still write to `file`: takes a read lease and drops it at once.
///
/// A writer's open(2) blocks during a lease. The lease is therefore never kept (it takes about
/// three microseconds). `file` must be a regular file that is open for reading only.
pub(crate) fn probe_writers(file: BorrowedFd<'_>) -> Probe {
    ignore_lease_breaks();
    match set_lease(file, libc::F_RDLCK) {
        Ok(()) => match set_lease(file, libc::F_UNLCK) {
            Ok(()) => Probe::NoWriter,
            // If the lease is broken, a writer has just opened the file.
            Err(_) => Probe::Busy,
        },
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Probe::Busy,
        Err(_) => Probe::Unsupported,
    }
}

fn set_lease(file: BorrowedFd<'_>, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: F_SETLEASE takes an integer and no pointer. The descriptor is borrowed, so it stays
    // open during the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Ignores SIGIO from the first call on. The kernel sends it when a writer breaks the lease, and
/// its default action ends the process.
fn ignore_lease_breaks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: SIG_IGN installs no handler, so no code of this program can run in signal
        // context. Nothing else in this program uses SIGIO.
        unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    });
}

/// Registers a descriptor with tokio for these events of poll(2). Must be called inside a runtime.
pub(crate) fn watch_events(descriptor: OwnedFd, events: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the OwnedFd keeps the descriptor open until it is dropped. The AsyncFd owns it, so no
    // other code can close or replace it. An OwnedFd always returns the same descriptor.
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, events) };
    registered.map_err(|error| error.into_parts().1)
}

/// The signals that end the process by a fault of its own, each with the line that is written then.
/// A failed allocation, a panic within a panic and a stack overflow end in abort(3). The processor
/// raises the other signals.
const FATAL: [(libc::c_int, &[u8]); 5] = [
    (libc::SIGABRT, b"SIGABRT\n"),
    (libc::SIGSEGV, b"SIGSEGV\n"),
    (libc::SIGBUS, b"SIGBUS\n"),
    (libc::SIGILL, b"SIGILL\n"),
    (libc::SIGFPE, b"SIGFPE\n"),
];

/// The descriptor for the line.
static LAST_WORDS: AtomicI32 = AtomicI32::new(-1);

/// The earlier action for each signal.
static BEFORE: OnceLock<[libc::sigaction; FATAL.len()]> = OnceLock::new();

/// Installs handlers for fatal signals. If the process itself causes the signal, the handler adds a
/// line with the signal's name to `file`. The signal then has its earlier effect. For a signal of
/// another process it writes nothing: a service manager's watchdog sends SIGABRT.
///
/// `file` should append, and is never closed. Of several calls the last one counts.
pub(crate) fn note_own_death(file: File) {
    LAST_WORDS.store(file.into_raw_fd(), Ordering::SeqCst);
    BEFORE.get_or_init(|| {
        FATAL.map(|(signal, _)| {
            // SAFETY: a zeroed sigaction is valid (SIG_DFL, no flags, an empty mask).
            let before: libc::sigaction = unsafe { std::mem::zeroed() };
            before_of(signal, before)
        })
    });
    for (signal, _) in FATAL {
        // SAFETY: as above.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_fatal;
        action.sa_sigaction = handler as libc::sighandler_t;
        // Run on the stack that the standard library keeps for a stack overflow.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler has the signature that SA_SIGINFO requires. It calls only
        // async-signal-safe functions (signal-safety(7)). Both pointers are valid for the call or
        // null.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    }
}

fn before_of(signal: libc::c_int, mut before: libc::sigaction) -> libc::sigaction {
    // SAFETY: the call sets no new action, and `before` is valid for writing.
    unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut before) };
    before
}

extern "C" fn on_fatal(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let known = FATAL.iter().position(|(known, _)| *known == signal);
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid siginfo_t. The sender is in it for
    // each code up to zero, and only read then. getpid, write, sigaction and raise are
    // async-signal-safe. The descriptor is never closed, the line is static, and BEFORE is filled
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
            // The processor raises its signals again on return. A signal that was sent has to be
            // sent again.
            libc::raise(signal);
        }
    }
}

/// Keeps tests that start programs apart from tests that ask who writes a file.
///
/// Between fork and exec a child has every file open that its parent has, close-on-exec or not. So
/// a file that another test has just closed may still have a writer.
#[cfg(test)]
pub(crate) mod forks {
    use std::process::{Child, Command};
    use std::sync::{PoisonError, RwLock, RwLockReadGuard};

    static FORKS: RwLock<()> = RwLock::new(());

    /// No test of this process forks while the guard lives.
    pub(crate) fn none() -> RwLockReadGuard<'static, ()> {
        FORKS.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the program. Returns after its exec.
    pub(crate) fn spawn(program: &mut Command) -> Child {
        let _alone = FORKS.write().unwrap_or_else(PoisonError::into_inner);
        program.spawn().unwrap()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::fd::AsFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use super::*;

    /// Runs in a separate process, which it ends.
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

    /// Returns the signal that ended such a process, and the line that it left.
    fn end(way: &str, signal: Option<i32>) -> (Option<i32>, String) {
        let folder = tempfile::tempdir().unwrap();
        let words = folder.path().join("words");
        std::fs::write(&words, "").unwrap();
        let mut program = Command::new(std::env::current_exe().unwrap());
        program
            .args([
                "--exact",
                "sys::tests::a_process_that_dies",
                "--ignored",
                "--nocapture",
            ])
            .env("AIRGAPD_TEST_WORDS", &words)
            .env("AIRGAPD_TEST_END", way)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = forks::spawn(&mut program);
        if let Some(signal) = signal {
            // The handlers are installed when the kernel says that the process catches the signal
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
        let _no_forks = forks::none();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bundle.tar");
        std::fs::write(&path, "x").unwrap();
        let file = File::open(&path).unwrap();
        assert!(matches!(probe_writers(file.as_fd()), Probe::NoWriter));
    }

    #[test]
    fn a_writer_through_another_hard_link_is_seen_until_it_closes() {
        let _no_forks = forks::none();
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
        let _no_forks = forks::none();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bundle.tar");
        std::fs::write(&path, "x").unwrap();
        let (file, _other) = (File::open(&path).unwrap(), File::open(&path).unwrap());
        assert!(matches!(probe_writers(file.as_fd()), Probe::NoWriter));
    }
}
