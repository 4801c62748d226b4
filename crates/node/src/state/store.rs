//! The ledger's place on disk: `state.json`, replaced as a whole and locked against a second daemon.
//!
//! A broken file is set aside, and one that a newer version wrote is left alone. It never looks into a ledger.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::ledger::{Ledger, VERSION};

/// A ledger of a thousand bundles is a few MiB; anything beyond this is not ours.
const LARGEST: u64 = 64 << 20;

/// What the daemon last wrote down, for commands beside it. `None` where there is nothing to be read.
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

/// Something about the state that the operator should know. None of it keeps the daemon from working.
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
            // The folder was not writable at start; without the lock a second daemon may be at work.
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
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::PermissionsExt;

    use super::super::crash::boot_id;
    use super::super::entry::{ErrorClass, Imported, LastError};
    use super::super::ledger::tests::{digest, failure, identity, imported, name, sample};
    use super::super::suspects::Crash;
    use super::*;
    use import::Outcome;

    #[test]
    fn what_is_saved_is_read_back_equal_odd_file_names_included() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _, notices) = Store::open(folder.path()).unwrap();
        assert!(notices.is_empty());
        let mut ledger = sample();
        let odd = OsStr::from_bytes(b"\xff\xfe\n.tar");
        ledger.record_import(odd, Outcome::Partial, imported(1, &[]), []);
        ledger.context.boot = boot_id();
        assert!(matches!(store.save(&ledger), Saved::Written));
        assert!(matches!(store.save(&ledger), Saved::Unchanged));
        drop(store);

        let (_, again, notices) = Store::open(folder.path()).unwrap();
        assert!(notices.is_empty());
        assert_eq!(again, ledger);
        assert!(!folder.path().join(TEMPORARY).exists());
        let mode = std::fs::metadata(folder.path().join(FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_second_daemon_is_refused_with_the_pid_of_the_first_until_that_one_ends() {
        let folder = tempfile::tempdir().unwrap();
        let first = Store::open(folder.path()).unwrap();
        let error = Store::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        drop(first);
        assert!(Store::open(folder.path()).is_ok());
    }

    #[test]
    fn broken_files_are_set_aside_and_the_ledger_starts_empty() {
        let whole = serde_json::to_vec(&sample()).unwrap();
        let cut = &whole[..whole.len() / 2];
        let bad_digest = String::from_utf8(whole.clone())
            .unwrap()
            .replace(&"1".repeat(64), "../etc");
        let table: [(&str, &[u8]); 7] = [
            ("empty", b""),
            ("no JSON", b"\0\0\0"),
            ("cut", cut),
            ("no version", b"{}"),
            ("foreign", b"[1, 2]"),
            ("version 0", br#"{"version": 0}"#),
            ("a digest that is none", bad_digest.as_bytes()),
        ];
        for (case, bytes) in table {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join(FILE), bytes).unwrap();
            let (mut store, ledger, notices) = Store::open(folder.path()).unwrap();
            assert_eq!(ledger, Ledger::default(), "{case}");
            assert!(
                matches!(notices.as_slice(), [Notice::SetAside { .. }]),
                "{case}: {notices:?}"
            );
            assert_eq!(std::fs::read(folder.path().join(ASIDE)).unwrap(), bytes, "{case}");
            assert!(matches!(store.save(&sample()), Saved::Written), "{case}");
        }
    }

    /// The form of `state.json` in 0.1.0, as far as a reader depends on it. It stays as it is.
    #[allow(dead_code, reason = "these keys are only read")]
    mod as_of_0_1_0 {
        use std::collections::{BTreeMap, HashMap};

        use jiff::Timestamp;
        use oci_spec::image::Digest;
        use serde::Deserialize;

        use super::super::super::entry::file_name;

        #[derive(Deserialize)]
        pub(super) struct Ledger {
            pub(super) version: u32,
            #[serde(default)]
            pub(super) context: Context,
            pub(super) next_arrival: u64,
            #[serde(default)]
            pub(super) bundles: BTreeMap<String, Entry>,
            #[serde(default)]
            pub(super) closures: HashMap<Digest, Vec<Digest>>,
        }

        #[derive(Default, Deserialize)]
        pub(super) struct Context {
            containerd: Option<String>,
            boot: Option<String>,
            selection: Option<String>,
            #[serde(default)]
            folder: Option<(u64, u64)>,
            #[serde(default)]
            program: Option<String>,
        }

        #[derive(Deserialize)]
        pub(super) struct Entry {
            #[serde(with = "file_name_only")]
            pub(super) file: std::ffi::OsString,
            arrival: u64,
            identity: Identity,
            pub(super) outcome: Outcome,
            #[serde(default)]
            attempts: u32,
            #[serde(default)]
            pub(super) last_error: Option<LastError>,
            #[serde(default)]
            pub(super) imported: Option<Imported>,
            #[serde(default)]
            pub(super) gone: Option<Timestamp>,
        }

        /// What `#[serde(with)]` asks of a type that is only read.
        mod file_name_only {
            pub(super) use super::file_name::deserialize;
        }

        #[derive(Debug, PartialEq, Eq, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub(super) enum Outcome {
            Pending,
            Imported,
            Unchanged,
            Partial,
            Skipped,
            Failed,
        }

        #[derive(Deserialize)]
        pub(super) struct LastError {
            pub(super) text: String,
            class: ErrorClass,
            at: Timestamp,
        }

        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        enum ErrorClass {
            Transient,
            Space,
            Disk,
            Bundle,
            Permanent,
            Refused,
        }

        #[derive(Deserialize)]
        pub(super) struct Imported {
            identity: Identity,
            #[serde(default)]
            sidecar: Option<Identity>,
            pub(super) catalog: Digest,
            pub(super) images: Vec<ImageEntry>,
            at: Timestamp,
            duration_ms: u64,
            sent_bytes: u64,
        }

        #[derive(Deserialize)]
        pub(super) struct ImageEntry {
            pub(super) name: String,
            pub(super) target: Digest,
        }

        #[derive(Deserialize)]
        struct Identity {
            device: u64,
            inode: u64,
            size: u64,
            mtime_ns: i64,
            ctime_ns: i64,
        }
    }

    /// A rollback: every key that came after 0.1.0 is in this ledger, and every class of error.
    #[test]
    fn a_ledger_of_this_version_is_read_by_0_1_0() {
        let mut ledger = sample();
        let again = Imported {
            at: jiff::Timestamp::from_second(9).unwrap(),
            ..imported(1, &[("docker.io/library/x:1", '1')])
        };
        ledger.record_import(name("a.tar"), Outcome::Unchanged, again, []);
        let classes = [
            ErrorClass::Transient,
            ErrorClass::Space,
            ErrorClass::Disk,
            ErrorClass::Bundle,
            ErrorClass::Permanent,
            ErrorClass::Refused,
        ];
        for (number, class) in classes.into_iter().enumerate() {
            let error = LastError {
                class,
                images: number,
                ..failure("bad")
            };
            let file = format!("bad-{number}.tar");
            ledger.record_failure(name(&file), identity(1), Outcome::Failed, error);
        }
        ledger.arrive(name("new.tar"), &identity(1));
        ledger.arrive(OsStr::from_bytes(b"\xff.tar"), &identity(1));
        let crash = Crash {
            cause: "a crash".to_owned(),
            boot: Some("a boot".to_owned()),
            program: Some("a program".to_owned()),
            at: jiff::Timestamp::UNIX_EPOCH,
        };
        ledger.record_crash(name("new.tar"), &identity(1), crash, "the way out");
        ledger.mark_gone(|file| file != "bad-0.tar", jiff::Timestamp::UNIX_EPOCH);
        let text = serde_json::to_string(&ledger).unwrap();
        for key in ["\"first\"", "\"crashes\"", "\"images\":5"] {
            assert!(text.contains(key), "{key} is not in {text}");
        }

        let read: as_of_0_1_0::Ledger = serde_json::from_str(&text).unwrap();
        assert_eq!((read.version, read.next_arrival), (1, 10));
        assert_eq!(read.closures.len(), 1);
        let of = |file: &str| read.bundles.values().find(|entry| entry.file == file).unwrap();
        let a = of("a.tar");
        assert_eq!(a.outcome, as_of_0_1_0::Outcome::Unchanged);
        let images = &a.imported.as_ref().unwrap().images;
        assert_eq!(
            (images[0].name.as_str(), &images[0].target),
            ("docker.io/library/x:1", &digest('1'))
        );
        assert_eq!(of("new.tar").outcome, as_of_0_1_0::Outcome::Pending);
        assert_eq!(of("bad-3.tar").last_error.as_ref().unwrap().text, "bad");
        assert!(of("bad-0.tar").gone.is_some());
        assert_eq!(read.bundles.len(), 9);
    }

    /// An upgrade: a file that 0.1.0 wrote is whole, and is not written again.
    #[test]
    fn a_ledger_of_0_1_0_is_read_by_this_version_and_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let written = include_bytes!("fixtures/state-0.1.0.json").trim_ascii_end();
        std::fs::write(folder.path().join(FILE), written).unwrap();
        let (mut store, ledger, notices) = Store::open(folder.path()).unwrap();
        assert!(notices.is_empty(), "{notices:?}");
        let entry = ledger.get(name("a.tar")).unwrap();
        let imported = entry.imported.as_ref().unwrap();
        assert_eq!(imported.images.len(), 6);
        assert_eq!(entry.first_imported(), Some(imported.at));
        let failed = ledger.get(name("bad.tar")).unwrap();
        assert_eq!(failed.last_error.as_ref().unwrap().images, 0);
        assert_eq!(ledger.closure(&imported.images[0].target).unwrap().len(), 4);
        assert!(matches!(store.save(&ledger), Saved::Unchanged));
    }

    #[test]
    fn a_file_of_a_newer_version_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let newer = br#"{"version": 2, "bundles": "in a form yet unknown"}"#;
        std::fs::write(folder.path().join(FILE), newer).unwrap();
        let (mut store, ledger, notices) = Store::open(folder.path()).unwrap();
        assert_eq!(ledger, Ledger::default());
        assert!(matches!(notices.as_slice(), [Notice::Newer { version: 2 }]));
        assert!(matches!(store.save(&sample()), Saved::NotSaved(None)));
        assert_eq!(std::fs::read(folder.path().join(FILE)).unwrap(), newer);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_told_once_and_again_after_it_healed() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let (mut store, _, _) = Store::open(&state).unwrap();
        assert!(matches!(store.save(&Ledger::default()), Saved::Written));
        // A folder in the way makes the save fail for root too.
        let obstacle = state.join(TEMPORARY);
        std::fs::create_dir(&obstacle).unwrap();
        assert!(matches!(store.save(&sample()), Saved::NotSaved(Some(_))));
        assert!(matches!(store.save(&sample()), Saved::NotSaved(None)));
        std::fs::remove_dir(&obstacle).unwrap();
        assert!(matches!(store.save(&sample()), Saved::Written));
        std::fs::create_dir(&obstacle).unwrap();
        assert!(matches!(store.save(&Ledger::default()), Saved::NotSaved(Some(_))));
    }

    #[test]
    fn a_state_folder_that_cannot_exist_gives_a_notice_and_an_empty_ledger() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        let (mut store, ledger, notices) = Store::open(&folder.path().join("file/state")).unwrap();
        assert_eq!(ledger, Ledger::default());
        assert!(!notices.is_empty());
        assert!(matches!(store.save(&sample()), Saved::NotSaved(None)));
    }
}
