//! A file without a name for a bundle from a pipe that cannot be read in one pass.
//!
//! The file disappears with the program, also if the program is killed.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use basics::bytes;
use bundle::Pipe;
use import::space::{Disk, MinFree};
use rustix::fs::{Mode, OFlags};

use crate::admit::Failure;
use crate::state::make_folder;

/// Size of a read in bytes.
const PIECE: usize = 1 << 20;

/// Bytes between two looks at the disk.
const LOOK: u64 = 64 << 20;

/// The place of a spool file, and its bounds.
#[derive(Clone, Debug)]
pub struct Spool {
    /// The folder on whose disk the file lies.
    pub folder: PathBuf,
    /// Most bytes of the file. 0 forbids it.
    pub most: u64,
    /// The space that must stay free on the disk.
    pub min_free: MinFree,
}

impl Spool {
    /// Writes all bytes of a pipe into a file. The call blocks, and ends early once `is_cancelled`
    /// is true.
    ///
    /// # Errors
    ///
    /// Returns [`Failure::Spool`] if the stream is longer than allowed, or the disk has no space.
    /// Returns [`Failure::Bundle`] if the stream cannot be read.
    pub(crate) fn take(&self, pipe: Pipe, is_cancelled: &AtomicBool) -> Result<File, Failure> {
        let path = pipe.path().to_owned();
        if self.most == 0 {
            return Err(refused("`--spool 0` forbids that", RAISE));
        }
        let mut stream = pipe.into_stream()?;
        let mut file = self.open().map_err(|error| self.failed(&error))?;
        tracing::info!(
            "{} has to be read as a whole before its import: writing it to {}",
            basics::foreign::path(&path),
            self.folder.display()
        );
        let mut piece = vec![0; PIECE];
        let (mut written, mut looked) = (0_u64, 0_u64);
        loop {
            let read = match stream.read(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                _ if is_cancelled.load(Ordering::Relaxed) => Err(io::Error::other("it was cancelled")),
                read => read,
            };
            let n = match read {
                Ok(0) => return Ok(file),
                Ok(n) => n,
                Err(source) => {
                    let action = "read the pipe";
                    let fault = bundle::Fault::Io { action, source };
                    return Err(bundle::Error { path, fault }.into());
                }
            };
            written += n as u64;
            if written > self.most {
                return Err(refused(&format!("it has more than {}", bytes(self.most)), RAISE));
            }
            if written >= looked {
                looked = written + LOOK;
                self.check_disk()?;
            }
            file.write_all(&piece[..n]).map_err(|error| self.failed(&error))?;
        }
    }

    fn open(&self) -> io::Result<File> {
        make_folder(&self.folder)?;
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::open(
            &self.folder,
            flags,
            Mode::RUSR | Mode::WUSR,
        )?))
    }

    fn check_disk(&self) -> Result<(), Failure> {
        let disk = Disk::of(&self.folder).map_err(|error| self.failed(&error))?;
        let least = self.min_free.bytes_of(&disk).saturating_add(LOOK);
        match disk.free < least {
            true => {
                let why = format!(
                    "the disk of {} has {} left, and {} must stay free",
                    self.folder.display(),
                    bytes(disk.free),
                    bytes(least)
                );
                Err(refused(&why, ""))
            }
            false => Ok(()),
        }
    }

    fn failed(&self, error: &io::Error) -> Failure {
        refused(&format!("cannot write to {}: {error}", self.folder.display()), "")
    }
}

/// A remedy for a bound that is too small.
const RAISE: &str = "raise `--spool`, ";

fn refused(why: &str, remedy: &str) -> Failure {
    Failure::Spool(format!(
        "this bundle has to be read as a whole before its import, and {why}. Copy the file to the node and import \
         it, {remedy}or send a bundle that `airgapd bundle merge` has made"
    ))
}
