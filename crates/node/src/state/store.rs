//! The ledger's place on disk: `state.json`, replaced as a whole and locked against a second
//! daemon.
//!
//! A broken file is set aside, and one that a newer version wrote is left alone. It never looks
//! into a ledger.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::ledger::{Ledger, VERSION};

/// A ledger of a thousand bundles is a few MiB; anything beyond this is not ours.
const LARGEST: u64 = 64 << 20;

/// What the daemon last wrote down, for commands beside it. `None` where there is nothing to be
/// read.
pub fn read(folder: &Path) -> Option<Ledger> {
    match load(&folder.join(FILE)) {
        Loaded::Ledger(ledger, _) => Some(*ledger),
        Loaded::Nothing | Loaded::Newer(_) | Loaded::Broken(_) | Loaded::Unreadable(_) => None,
    }
}

const FILE: &str = "state.json";
const ASIDE: &str = "state.json.bad";
const LOCK: &str = "lock";
/// One fixed name rather than a random one: it is written under the lock only, and a kill in the
/// middle of a save cannot leave more than one behind.
const TEMPORARY: &str = ".state.json.new";

/// Why a state folder cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon has it.
    #[error("another airgapd{} already uses the state folder {}", owner(*pid), folder.display())]
    Taken {
        /// The state folder.
        folder: PathBuf,
        /// Its process id, where the lock file has it.
        pid: Option<u32>,
    },
}

fn owner(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

/// Something about the state that the operator should know. None of it keeps the daemon from
/// working.
#[derive(Debug)]
pub(crate) enum Notice {
    /// The file was broken; it is kept under another name and the ledger starts empty.
    SetAside { reason: String, kept_as: PathBuf },
    /// The file was broken and could not even be moved; the ledger starts empty and replaces it.
    Broken { reason: String },
    /// A newer airgapd wrote the file. It is left alone, and this run saves nothing.
    Newer { version: u64 },
    /// Nothing can be remembered: the folder or the file cannot be read or written.
    CannotRemember { path: PathBuf, error: io::Error },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::SetAside { reason, kept_as } => write!(
                f,
                "the state file was unreadable ({reason}); it is kept as {} and built anew from the bundles",
                kept_as.display()
            ),
            Notice::Broken { reason } => {
                write!(
                    f,
                    "the state file was unreadable ({reason}); it is built anew from the bundles"
                )
            }
            Notice::Newer { version } => write!(
                f,
                "the state file has version {version} of a newer airgapd (this one knows {VERSION}); \
                 it is left alone and nothing is remembered in this run"
            ),
            Notice::CannotRemember { path, error } => {
                write!(
                    f,
                    "cannot keep the state in {}: {error}; going on without memory",
                    path.display()
                )
            }
        }
    }
}

/// What a call to [`Store::save`] came to.
#[derive(Debug)]
#[expect(clippy::enum_variant_names, reason = "the opposite of saved is not saved")]
pub(crate) enum Saved {
    Written,
    /// The file already says the same.
    Unchanged,
    /// It could not be written; the notice comes the first time only, until a save succeeds again.
    NotSaved(Option<Notice>),
}

/// The ledger's place on disk. It holds the lock until it is dropped.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    lock: Option<File>,
    /// Cleared where a newer version owns the file.
    may_save: bool,
    told: bool,
    on_disk: Option<Vec<u8>>,
}

impl Store {
    /// Takes over the state folder, creating it (0700) where needed, and reads the ledger.
    ///
    /// # Errors
    ///
    /// Only [`LockError::Taken`]. Everything else gives an empty ledger and a notice.
    pub(crate) fn open(folder: &Path) -> Result<(Store, Ledger, Vec<Notice>), LockError> {
        let mut notices = Vec::new();
        let lock = match lock(folder) {
            Ok(Some(lock)) => Some(lock),
            Ok(None) => {
                return Err(LockError::Taken {
                    folder: folder.to_owned(),
                    pid: owner_pid(folder),
                });
            }
            Err(error) => {
                notices.push(Notice::CannotRemember {
                    path: folder.to_owned(),
                    error,
                });
                None
            }
        };
        let told = !notices.is_empty();
        let mut store = Store {
            folder: folder.to_owned(),
            lock,
            may_save: true,
            told,
            on_disk: None,
        };
        let ledger = store.load(&mut notices);
        Ok((store, ledger, notices))
    }

    fn load(&mut self, notices: &mut Vec<Notice>) -> Ledger {
        let path = self.folder.join(FILE);
        match load(&path) {
            Loaded::Nothing => Ledger::default(),
            Loaded::Ledger(ledger, bytes) => {
                self.on_disk = Some(bytes);
                *ledger
            }
            Loaded::Newer(version) => {
                self.may_save = false;
                notices.push(Notice::Newer { version });
                Ledger::default()
            }
            Loaded::Broken(reason) => {
                let kept_as = self.folder.join(ASIDE);
                notices.push(match std::fs::rename(&path, &kept_as) {
                    Ok(()) => Notice::SetAside { reason, kept_as },
                    Err(_) => Notice::Broken { reason },
                });
                Ledger::default()
            }
            Loaded::Unreadable(error) => {
                notices.push(Notice::CannotRemember { path, error });
                self.told = true;
                Ledger::default()
            }
        }
    }

    /// Replaces the file by this ledger: temporary file, fsync, rename, fsync of the folder. It
    /// blocks for as long as the disk takes, and a crash at any instant leaves the old file or the
    /// new one.
    pub(crate) fn save(&mut self, ledger: &Ledger) -> Saved {
        if !self.may_save {
            return Saved::NotSaved(None);
        }
        let bytes = serde_json::to_vec(ledger).expect("a ledger is plain data with text keys");
        if self.on_disk.as_deref() == Some(&bytes) {
            return Saved::Unchanged;
        }
        match self.replace(&bytes) {
            Ok(()) => {
                self.on_disk = Some(bytes);
                self.told = false;
                Saved::Written
            }
            Err(error) => {
                // After a failed fsync nobody knows what the disk has.
                self.on_disk = None;
                let first = !std::mem::replace(&mut self.told, true);
                let path = self.folder.join(FILE);
                Saved::NotSaved(first.then_some(Notice::CannotRemember { path, error }))
            }
        }
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.lock.is_none() {
            // The folder was not writable at start; without the lock a second daemon may be at
            // work.
            self.lock =
                Some(lock(&self.folder)?.ok_or_else(|| io::Error::other("another airgapd has the lock"))?);
        }
        let temporary = self.folder.join(TEMPORARY);
        let written = write_synced(&temporary, bytes)
            .and_then(|()| std::fs::rename(&temporary, self.folder.join(FILE)))
            .and_then(|()| File::open(&self.folder)?.sync_all());
        if written.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        written
    }
}

enum Loaded {
    Nothing,
    Ledger(Box<Ledger>, Vec<u8>),
    Newer(u64),
    Broken(String),
    Unreadable(io::Error),
}

fn load(path: &Path) -> Loaded {
    // Should somebody have put a FIFO there, a blocking open would hang for ever.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Loaded::Nothing,
        Err(error) => return Loaded::Unreadable(error),
    };
    match file.metadata() {
        Ok(metadata) if !metadata.is_file() => return Loaded::Broken("it is not a regular file".into()),
        Ok(_) => {}
        Err(error) => return Loaded::Unreadable(error),
    }
    let mut bytes = Vec::new();
    match file.take(LARGEST + 1).read_to_end(&mut bytes) {
        Ok(_) if bytes.len() as u64 > LARGEST => {
            Loaded::Broken(format!("it is larger than {} MiB", LARGEST >> 20))
        }
        Ok(_) => parse(bytes),
        Err(error) => Loaded::Unreadable(error),
    }
}

fn parse(bytes: Vec<u8>) -> Loaded {
    #[derive(Deserialize)]
    struct Header {
        version: u64,
    }
    match serde_json::from_slice(&bytes) {
        Ok(Header { version }) if version > u64::from(VERSION) => return Loaded::Newer(version),
        Ok(Header { version: 0 }) => return Loaded::Broken("there is no version 0".into()),
        Ok(_) => {}
        Err(error) => return Loaded::Broken(error.to_string()),
    }
    match serde_json::from_slice::<Ledger>(&bytes) {
        Ok(mut ledger) => {
            ledger.go_on_counting();
            Loaded::Ledger(Box::new(ledger), bytes)
        }
        Err(error) => Loaded::Broken(error.to_string()),
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Takes the folder's lock; `None` where somebody else has it. The kernel frees it when its owner
/// dies, so a left-over file means nothing.
fn lock(folder: &Path) -> io::Result<Option<File>> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(folder.join(LOCK))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(Some(file))
}

fn owner_pid(folder: &Path) -> Option<u32> {
    std::fs::read_to_string(folder.join(LOCK))
        .ok()?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests;
