//! The ledger on disk: `state.json`. The store replaces the file as a whole and locks it against a
//! second daemon.
//!
//! The store moves a broken file aside and leaves a file of a newer version alone. It does not look
//! into a ledger.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bundle::Identity;
use serde::Deserialize;

use super::ledger::{Ledger, VERSION};

/// Bound for the file's size, in bytes. A ledger of a thousand bundles has a few MiB, so a larger
/// file is not a ledger.
const LARGEST: u64 = 64 << 20;

/// Reads the ledger that the daemon last saved, for commands that run beside it. Returns `None` if
/// there is no readable ledger.
pub fn read(folder: &Path) -> Option<Ledger> {
    match load(&folder.join(FILE)) {
        Loaded::Ledger(ledger, _) => Some(*ledger),
        Loaded::Nothing | Loaded::Newer(_) | Loaded::Broken(_) | Loaded::Unreadable(_) => None,
    }
}

/// Reads the ledger like [`read`], and takes an absent ledger as an empty ledger. Returns `None` if
/// the ledger is there and cannot be read.
pub fn read_or_empty(folder: &Path) -> Option<Ledger> {
    match load(&folder.join(FILE)) {
        Loaded::Ledger(ledger, _) => Some(*ledger),
        Loaded::Nothing => Some(Ledger::default()),
        Loaded::Newer(_) | Loaded::Broken(_) | Loaded::Unreadable(_) => None,
    }
}

/// Returns the identity of the ledger's file, which another save changes. `None` if there is no
/// file that can be looked at.
pub(crate) fn stamp(folder: &Path) -> Option<Identity> {
    let metadata = std::fs::metadata(folder.join(FILE)).ok()?;
    Some(Identity::of(&metadata))
}

const FILE: &str = "state.json";
const ASIDE: &str = "state.json.bad";
const LOCK: &str = "lock";
/// A fixed name rather than a random one: only the owner of the lock writes this file, and a kill
/// during a save leaves at most one behind.
const TEMPORARY: &str = ".state.json.new";

/// An obstacle to the use of a state folder.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon uses it.
    #[error("another airgapd{} already uses the state folder {}", owner(*pid), folder.display())]
    Taken {
        /// The state folder.
        folder: PathBuf,
        /// The process id of that daemon, if the lock file has it.
        pid: Option<u32>,
    },
}

fn owner(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

/// News about the state for the operator. The daemon works in all of these cases.
#[derive(Debug)]
pub(crate) enum Notice {
    /// The file was broken. It has a new name, and the ledger starts empty.
    SetAside { reason: String, kept_as: PathBuf },
    /// The file was broken and could not be moved. The ledger starts empty and replaces it.
    Broken { reason: String },
    /// A newer airgapd wrote the file. The daemon leaves it alone and saves nothing in this run.
    Newer { version: u64 },
    /// The folder or the file cannot be read or written, so the daemon remembers nothing.
    CannotRemember { path: PathBuf, error: io::Error },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::SetAside { reason, kept_as } => write!(
                f,
                "the state file was unreadable ({reason}). It was moved to {}. The daemon reads the bundles again",
                kept_as.display()
            ),
            Notice::Broken { reason } => {
                write!(
                    f,
                    "the state file was unreadable ({reason}). The daemon replaces it and reads the bundles again"
                )
            }
            Notice::Newer { version } => write!(
                f,
                "the state file has version {version} of a newer airgapd (this one knows {VERSION}). \
                 It stays as it is, and this run saves nothing"
            ),
            Notice::CannotRemember { path, error } => {
                write!(
                    f,
                    "cannot keep the state in {}: {error}. After a restart the daemon reads every bundle again",
                    path.display()
                )
            }
        }
    }
}

/// The result of [`Store::save`].
#[derive(Debug)]
#[expect(clippy::enum_variant_names, reason = "the opposite of saved is not saved")]
pub(crate) enum Saved {
    Written,
    /// The file already has this content.
    Unchanged,
    /// Writing failed. The first failure has a notice, and so has the first one after a successful
    /// save.
    NotSaved(Option<Notice>),
}

/// The ledger on disk. It has the lock until it is dropped.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    lock: Option<File>,
    /// False if a newer version owns the file.
    may_save: bool,
    told: bool,
    on_disk: Option<Vec<u8>>,
}

impl Store {
    /// Locks the state folder, creates it (mode 0700) if needed, and reads the ledger.
    ///
    /// # Errors
    ///
    /// Returns [`LockError::Taken`] if another daemon uses the folder. Any other fault gives an
    /// empty ledger and a notice.
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

    /// Replaces the file by this ledger: temporary file, fsync, rename, fsync of the folder. The
    /// call blocks for as long as the disk takes. A crash at any moment leaves either the old file
    /// or the new one.
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
                // After a failed fsync, the content on the disk is unknown.
                self.on_disk = None;
                let first = !std::mem::replace(&mut self.told, true);
                let path = self.folder.join(FILE);
                Saved::NotSaved(first.then_some(Notice::CannotRemember { path, error }))
            }
        }
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.lock.is_none() {
            // The folder was not writable at start. Without the lock, a second daemon may be
            // running.
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
    // If the path is a FIFO, a blocking open would hang for ever.
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
        Ok(Header { version: 0 }) => return Loaded::Broken("version 0 does not exist".into()),
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

/// Takes the folder's lock. Returns `None` if another process has it. The kernel frees the lock
/// when its owner dies, so a left-over lock file means nothing.
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
