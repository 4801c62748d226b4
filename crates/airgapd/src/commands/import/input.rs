//! The input of an import: a file, which can be read at any place, or a stream.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read, Seek as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bundle::{Error, Fault};
use node::images::folder;
use node::state;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags};

/// Name of standard input in messages and labels.
pub(super) const STDIN: &str = "stdin";

/// Longest time to wait for the next byte of a stream. A program that makes a bundle may pull its
/// images first.
const PATIENCE: Duration = Duration::from_mins(10);

/// Returns true if a path of the command line stands for standard input.
pub(super) fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Returns true if a path names an open file of the caller, as `-` and `<(...)` of a shell do. Such
/// a path says nothing about the bundle, and other processes use the same path.
pub(super) fn is_nameless(path: &Path) -> bool {
    is_stdin(path) || path == "/dev/stdin" || path.starts_with("/dev/fd") || path.starts_with("/proc")
}

/// The input of one import.
#[derive(Debug)]
pub(super) enum Input {
    File(File),
    Stream(Stream),
}

impl Input {
    /// Returns the bytes of an input whose name finds no file: of a pipe those that were read, as
    /// they grow. `None` for a file with a name.
    pub(super) fn nameless(&self, path: &Path) -> Option<Arc<AtomicU64>> {
        match self {
            Input::Stream(stream) => Some(stream.count()),
            Input::File(file) if is_nameless(path) => {
                let size = file.metadata().map_or(0, |metadata| metadata.len());
                Some(Arc::new(AtomicU64::new(size)))
            }
            Input::File(_) => None,
        }
    }

    /// Opens a path of the command line.
    ///
    /// # Errors
    ///
    /// Returns the error of the operating system, or says that standard input is a terminal.
    pub(super) fn open(path: &Path) -> Result<Input, Error> {
        let opened = match is_stdin(path) {
            true => standard_input(),
            false => folder::open_path(path).and_then(named),
        };
        opened.map_err(|source| Error {
            path: path.to_owned(),
            fault: Fault::Io {
                action: "open the file",
                source,
            },
        })
    }
}

fn named(file: File) -> io::Result<Input> {
    Ok(match file.metadata()?.file_type().is_fifo() {
        true => Input::Stream(Stream::new(file, PATIENCE)),
        false => Input::File(file),
    })
}

/// Returns standard input. A file from its first byte on is as good as a file with a name.
fn standard_input() -> io::Result<Input> {
    if io::stdin().is_terminal() {
        return Err(io::Error::other(
            "standard input is a terminal, so redirect a bundle to it",
        ));
    }
    let mut file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let is_whole = file.metadata()?.is_file() && file.stream_position()? == 0;
    Ok(match is_whole {
        true => Input::File(file),
        false => Input::Stream(Stream::new(file, PATIENCE)),
    })
}

/// A pipe, a socket, or the rest of a file. A read waits for bytes, and gives up in the end.
#[derive(Debug)]
pub(super) struct Stream {
    file: File,
    patience: Duration,
    /// Number of bytes that were read.
    read: Arc<AtomicU64>,
}

impl Stream {
    fn new(file: File, patience: Duration) -> Stream {
        Stream {
            file,
            patience,
            read: Arc::default(),
        }
    }

    /// Returns the number of bytes that were read, as it grows.
    pub(super) fn count(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.read)
    }

    /// Waits for bytes, or for the end. A named pipe without a writer has no end yet.
    fn wait(&self) -> io::Result<()> {
        let patience = Timespec::try_from(self.patience).map_err(io::Error::other)?;
        let ready = poll(&mut [PollFd::new(&self.file, PollFlags::IN)], Some(&patience))?;
        match ready {
            0 => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "the pipe brought no byte for {} s, so its writer has stopped or hangs",
                    self.patience.as_secs()
                ),
            )),
            _ => Ok(()),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.wait()?;
            match self.file.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(read) => {
                    self.read.fetch_add(read as u64, Ordering::Relaxed);
                    return Ok(read);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Returns the name from which the lease of a stream follows. It is the path of a named pipe.
///
/// The name is fixed, so the next import finds what a killed import left behind. Only one import at
/// a time has such a name. A lock on the state folder decides, and lasts as long as the returned
/// file. Another import has a name of its own.
pub(super) fn lease_name(path: &Path, state_dir: &Path) -> (OsString, Option<File>) {
    let name = match is_nameless(path) {
        true => OsString::from(STDIN),
        false => std::path::absolute(path)
            .unwrap_or_else(|_| path.to_owned())
            .into_os_string(),
    };
    match lock(state_dir) {
        Ok(turn) => (name, Some(turn)),
        Err(error) => {
            tracing::debug!(%error, "the lease of this import has a name of its own");
            let mut own = name;
            own.push(format!(" of process {}", std::process::id()));
            (own, None)
        }
    }
}

/// Locks a folder, and makes the folder first if needed.
fn lock(folder: &Path) -> io::Result<File> {
    state::make_folder(folder)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = File::from(rustix::fs::open(folder, flags, Mode::empty())?);
    rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_stream_gives_bytes_and_its_end_and_has_little_patience_with_silence() {
        let (reader, mut writer) = io::pipe().unwrap();
        let reader = File::from(std::os::fd::OwnedFd::from(reader));
        let mut stream = Stream::new(reader, Duration::from_millis(50));
        writer.write_all(b"hello").unwrap();
        let mut bytes = [0; 16];
        assert_eq!(stream.read(&mut bytes).unwrap(), 5);
        let error = stream.read(&mut bytes).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("no byte"), "{error}");
        writer.write_all(b"world").unwrap();
        drop(writer);
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "world");
        assert_eq!(stream.count().load(Ordering::Relaxed), 10);
    }

    #[test]
    fn one_import_at_a_time_has_the_fixed_lease_of_its_stream() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let name = |path: &str| lease_name(path.as_ref(), &state);
        let (first, turn) = name("-");
        assert_eq!(first, STDIN);
        for path in ["-", "/dev/fd/63", "/run/images.fifo"] {
            let (other, none) = name(path);
            assert!(other != first && none.is_none(), "{path}");
        }
        drop(turn);
        for path in ["-", "/dev/fd/63", "/dev/stdin", "/proc/self/fd/0"] {
            assert_eq!(name(path).0, STDIN, "{path}");
        }
        assert_eq!(name("/run/images.fifo").0, "/run/images.fifo");
        let mode = std::fs::metadata(&state).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        // A folder that cannot be made is no obstacle.
        std::fs::write(folder.path().join("file"), "").unwrap();
        let (own, none) = lease_name("-".as_ref(), &folder.path().join("file/state"));
        assert!(own != STDIN && none.is_none());
    }
}
