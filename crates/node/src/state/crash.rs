//! The note that a daemon leaves if it dies during a job, and the conclusions of the next daemon.
//!
//! [`Marker`] is a small file beside the ledger. It names the files whose jobs run, and it is empty
//! while no job runs. The daemon never syncs it: the end of a process loses no written bytes, and
//! after a power cut the boot id differs.
//!
//! A panic and a fatal signal that the daemon itself raised add a line with the cause. A memory
//! kill adds no line. So the marker has the kernel's count of such kills from the start of the job.
//! [`Left::verdict`] is pure. Without a line and without a new memory kill, the end came from
//! outside and no file is to blame.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use basics::Foreign;
use basics::digest::{self, Hasher};
use bundle::Identity;
use serde::{Deserialize, Serialize};

use crate::state::{entry, ledger};
use crate::sys;

const FILE: &str = "under-way";

/// Bound for the marker's size, in bytes. A marker with two jobs has less than 1 KiB. A file name
/// has at most 255 bytes for each of its folders.
const LARGEST: u64 = 1 << 20;

/// The words for a memory kill in messages.
const MEMORY_KILL: &str = "a memory kill (OOM) of its own group";

/// The daemon's note of the files that it works on.
#[derive(Debug)]
pub(crate) struct Marker {
    /// `None` if the state folder takes no file. The daemon then remembers no crash.
    file: Option<File>,
    /// The content of the file, as this process wrote it.
    noted: BTreeMap<OsString, Identity>,
}

/// The note of the previous daemon.
#[derive(Debug, Default)]
pub(crate) struct Left(String);

/// The files that may have killed a daemon, and the cause of its death.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The cause of the daemon's end, for messages.
    pub(crate) cause: String,
    /// The files whose jobs ran. Empty if no job ran.
    pub(crate) suspects: Vec<(OsString, Identity)>,
}

#[derive(Serialize, Deserialize)]
struct Noted {
    boot: Option<String>,
    kills: Kills,
    files: Vec<Suspect>,
}

#[derive(Serialize, Deserialize)]
struct Suspect {
    #[serde(with = "entry::file_name")]
    file: OsString,
    identity: Identity,
}

/// Number of processes that the kernel killed for memory, as far as the daemon can see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kills {
    /// The daemon's memory group, as the inode of its folder.
    group: Option<u64>,
    /// Kills in that group alone.
    own: Option<Count>,
    /// Kills in the smallest area that contains the group and outlives it: the group above, or else
    /// the machine. A service manager makes a new group for each start, and the counts of the old
    /// group go with it.
    around: Option<Count>,
}

/// The kernel's counts of a group's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Count {
    /// Processes killed for memory.
    oom_kill: u64,
    /// Times that a limit of the group forced a kill. `None` if the kernel does not count this. A
    /// machine that is short of memory as a whole kills without raising this count.
    oom: Option<u64>,
}

impl Marker {
    /// Opens the marker and reads the previous note. This process must have the lock of the state
    /// folder. From then on, a fatal signal that the process itself raises adds a line to the
    /// marker.
    pub(crate) fn open(folder: &Path) -> (Marker, Left) {
        let opened = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
            .open(folder.join(FILE))
            .and_then(|file| {
                sys::note_own_death(file.try_clone()?);
                Ok(file)
            });
        let mut left = Vec::new();
        let file = match opened {
            Ok(mut file) => {
                let read = (&mut file).take(LARGEST).read_to_end(&mut left);
                read.is_ok().then_some(file)
            }
            Err(error) => {
                tracing::debug!("crashes are not remembered: {error}");
                None
            }
        };
        let noted = BTreeMap::new();
        let left = Left(String::from_utf8_lossy(&left).into_owned());
        (Marker { file, noted }, left)
    }

    /// Empties the note, since no job runs.
    pub(crate) fn clear(&mut self) {
        self.noted.clear();
        self.write(b"");
    }

    /// Notes the files whose jobs run. The jobs wait until this is done.
    pub(crate) fn note(&mut self, files: BTreeMap<OsString, Identity>) {
        if files == self.noted {
            return;
        }
        if files.is_empty() {
            return self.clear();
        }
        let noted = Noted {
            boot: boot_id(),
            kills: Kills::now(),
            files: files
                .iter()
                .map(|(file, identity)| Suspect {
                    file: file.clone(),
                    identity: identity.clone(),
                })
                .collect(),
        };
        let mut line = serde_json::to_vec(&noted).expect("a note is plain data");
        line.push(b'\n');
        self.write(&line);
        self.noted = files;
    }

    /// Adds the cause just before the process ends.
    pub(crate) fn dies_of(&mut self, cause: &str) {
        let line = format!("{}\n", Foreign::new(cause));
        let written = self.file.as_mut().map(|file| file.write_all(line.as_bytes()));
        drop(written);
    }

    /// Replaces the note. A marker that cannot be written blames no file.
    fn write(&mut self, text: &[u8]) {
        let Some(file) = &mut self.file else { return };
        let written = file.set_len(0).and_then(|()| file.write_all(text));
        if let Err(error) = written {
            tracing::debug!("crashes are not remembered: {error}");
            let _ = file.set_len(0);
        }
    }
}

impl Left {
    /// Returns how the previous daemon died, if the fault was its own. `boot` and `kills` are the
    /// present values.
    pub(crate) fn verdict(&self, boot: Option<&str>, kills: &Kills) -> Option<Verdict> {
        let mut lines = self.0.lines();
        let noted: Option<Noted> = lines.next().and_then(|line| serde_json::from_str(line).ok());
        let Some(noted) = noted else {
            // No job ran. The first line is the cause, unless it is a note that was cut off.
            let cause = self.0.lines().next().filter(|line| !line.starts_with('{'))?;
            let cause = cause.to_owned();
            let suspects = Vec::new();
            return Some(Verdict { cause, suspects });
        };
        if boot.is_none() || noted.boot.as_deref() != boot {
            return None;
        }
        let killed = || noted.kills.grew_to(kills).then(|| MEMORY_KILL.to_owned());
        let cause = lines.next().map(str::to_owned).or_else(killed)?;
        let suspects = noted.files.into_iter();
        Some(Verdict {
            cause,
            suspects: suspects
                .map(|Suspect { file, identity }| (file, identity))
                .collect(),
        })
    }
}

impl Kills {
    /// Reads the present counts.
    pub(crate) fn now() -> Kills {
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let group = memory_group(&groups);
        let found = group.as_ref().and_then(|group| group.metadata().ok());
        let own = group.as_ref().filter(|_| found.is_some()).and_then(|group| {
            let modern = Count::of(&group.join("memory.events.local"));
            modern.or_else(|| Count::of(&group.join("memory.oom_control")))
        });
        // In cgroup v2, the counts of a group include those of the groups below it.
        let above = group.and_then(|group| Count::of(&group.parent()?.join("memory.events")));
        Kills {
            group: found.map(|found| found.ino()),
            own,
            around: above.or_else(|| Count::of(Path::new("/proc/vmstat"))),
        }
    }

    /// Returns true if the kernel killed a process in between. The group's own count decides if the
    /// group is still the same.
    fn grew_to(&self, now: &Kills) -> bool {
        let is_same = self.group.is_some() && self.group == now.group;
        match (self.own, now.own) {
            (Some(before), Some(after)) if is_same => before.grew_to(after),
            _ => match (self.around, now.around) {
                (Some(before), Some(after)) => before.grew_to(after),
                _ => false,
            },
        }
    }
}

impl Count {
    /// Reads a file of lines `<name> <number>`.
    fn of(file: &Path) -> Option<Count> {
        let text = std::fs::read_to_string(file).ok()?;
        let number = |wanted: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(' '));
            lines.find(|(name, _)| *name == wanted)?.1.trim().parse().ok()
        };
        Some(Count {
            oom_kill: number("oom_kill")?,
            oom: number("oom"),
        })
    }

    fn grew_to(self, now: Count) -> bool {
        let is_limit = match (self.oom, now.oom) {
            (Some(before), Some(after)) => after > before,
            _ => true,
        };
        now.oom_kill > self.oom_kill && is_limit
    }
}

/// Returns the folder of this process's memory group, from `/proc/self/cgroup` (cgroups(7)).
fn memory_group(groups: &str) -> Option<PathBuf> {
    let below = |root: &str, path: &str| Path::new(root).join(path.trim_start_matches('/'));
    let lines = || {
        groups
            .lines()
            .filter_map(|line| line.split_once(':')?.1.split_once(':'))
    };
    let first = lines().find(|(controllers, _)| controllers.split(',').any(|name| name == "memory"));
    let second = || lines().find(|(controllers, _)| controllers.is_empty());
    match first {
        Some((_, path)) => Some(below("/sys/fs/cgroup/memory", path)),
        None => second().map(|(_, path)| below("/sys/fs/cgroup", path)),
    }
}

/// Returns the text of a panic for messages.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!(
        "a panic: {}",
        Foreign::new(text.unwrap_or_else(|| "without a text".to_owned()))
    )
}

/// Returns the kernel's id of this boot, if /proc has it.
pub(crate) fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

/// Returns the identity of this program: its version and the digest of its bytes, so that a
/// repaired build counts as another program. This reads the whole executable, so callers ask only
/// if they know of a crash.
///
/// # Errors
///
/// Returns an error if `/proc/self/exe` cannot be read.
pub(crate) fn program() -> std::io::Result<String> {
    let digest = digest::of(&mut File::open("/proc/self/exe")?, Hasher::sha256())?;
    Ok(format!("{} {digest}", ledger::PROGRAM))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(inode: u64) -> Identity {
        Identity {
            device: 1,
            inode,
            size: 10,
            mtime_ns: 0,
            ctime_ns: 0,
        }
    }

    fn kills(group: u64, own: u64, around: u64) -> Kills {
        Kills {
            group: Some(group),
            own: Some(Count {
                oom_kill: own,
                oom: Some(own),
            }),
            around: Some(Count {
                oom_kill: around,
                oom: None,
            }),
        }
    }

    fn left(boot: &str, before: &Kills, lines: &str) -> Left {
        let noted = Noted {
            boot: Some(boot.to_owned()),
            kills: before.clone(),
            files: vec![Suspect {
                file: "a.tar".into(),
                identity: identity(1),
            }],
        };
        Left(format!("{}\n{lines}", serde_json::to_string(&noted).unwrap()))
    }

    #[test]
    fn only_a_fault_of_the_daemons_own_in_this_boot_makes_a_suspect() {
        let before = kills(7, 1, 5);
        let mut machine_wide = kills(7, 2, 6);
        machine_wide.own = Some(Count {
            oom_kill: 2,
            oom: Some(1),
        });
        type Row<'a> = (&'a str, &'a str, Kills, Option<&'a str>);
        let table: [Row<'_>; 10] = [
            ("now", "SIGABRT\n", before.clone(), Some("SIGABRT")),
            // A stack overflow first raises SIGSEGV and then SIGABRT.
            ("now", "SIGSEGV\nSIGABRT\n", before.clone(), Some("SIGSEGV")),
            ("earlier", "SIGABRT\n", before.clone(), None),
            // A kill from outside, or a watchdog.
            ("now", "", before.clone(), None),
            ("now", "", kills(7, 2, 6), Some(MEMORY_KILL)),
            // The machine was short of memory, not the group.
            ("now", "", machine_wide, None),
            // Another group was short of memory.
            ("now", "", kills(7, 1, 6), None),
            // The service manager made a new group.
            ("now", "", kills(8, 0, 6), Some(MEMORY_KILL)),
            ("now", "", kills(8, 0, 5), None),
            ("earlier", "", kills(8, 0, 9), None),
        ];
        for (boot, lines, after, cause) in table {
            let verdict = left(boot, &before, lines).verdict(Some("now"), &after);
            let found = verdict.as_ref().map(|verdict| verdict.cause.as_str());
            assert_eq!(found, cause, "{boot} {lines:?} {after:?}");
            if let Some(verdict) = verdict {
                assert_eq!(verdict.suspects, [("a.tar".into(), identity(1))]);
            }
        }
    }

    #[test]
    fn without_a_job_there_is_a_cause_and_nothing_to_blame() {
        let verdict = |text: &str| Left(text.to_owned()).verdict(Some("now"), &Kills::default());
        assert_eq!(verdict(""), None);
        let Verdict { cause, suspects } = verdict("SIGSEGV\n").unwrap();
        assert_eq!((cause.as_str(), suspects.len()), ("SIGSEGV", 0));
        // A note that was cut off in the middle.
        assert_eq!(verdict("{\"boot\":\"no"), None);
    }

    #[test]
    fn what_is_noted_is_what_the_next_one_finds() {
        let folder = tempfile::tempdir().unwrap();
        let (mut marker, left) = Marker::open(folder.path());
        assert_eq!(left.0, "");
        let name = OsString::from("new\nline.tar");
        marker.note(BTreeMap::from([(name.clone(), identity(1))]));
        marker.note(BTreeMap::from([(name.clone(), identity(2))]));
        marker.dies_of("a panic: two\nlines");
        let (mut marker, left) = Marker::open(folder.path());
        let verdict = left.verdict(boot_id().as_deref(), &Kills::now()).unwrap();
        assert_eq!(verdict.suspects, [(name.clone(), identity(2))]);
        assert!(verdict.cause.starts_with("a panic: two"), "{}", verdict.cause);
        marker.clear();
        marker.note(BTreeMap::from([(name, identity(1))]));
        marker.note(BTreeMap::new());
        assert_eq!(Marker::open(folder.path()).1.0, "");
    }

    #[test]
    fn the_kernels_counts_are_read_in_each_of_their_forms() {
        let folder = tempfile::tempdir().unwrap();
        let count = |text: &str| {
            let file = folder.path().join("file");
            std::fs::write(&file, text).unwrap();
            Count::of(&file).map(|count| (count.oom_kill, count.oom))
        };
        let events = "low 0\nhigh 3\nmax 40\noom 5\noom_kill 4\noom_group_kill 0\n";
        assert_eq!(count(events), Some((4, Some(5))), "memory.events");
        let control = "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n";
        assert_eq!(count(control), Some((2, None)), "memory.oom_control");
        assert_eq!(
            count("nr_free_pages 1\noom_kill 7\n"),
            Some((7, None)),
            "/proc/vmstat"
        );
        assert_eq!(
            count("oom_kill_disable 0\nunder_oom 0\n"),
            None,
            "before Linux 4.13"
        );
        assert_eq!(Count::of(&folder.path().join("none")), None);
    }

    #[test]
    fn the_memory_group_is_found_in_both_versions_and_in_mixtures() {
        let table = [
            (
                "0::/system.slice/a.service\n",
                "/sys/fs/cgroup/system.slice/a.service",
            ),
            ("0::/\n", "/sys/fs/cgroup/"),
            (
                "4:cpu:/b\n3:hugetlb,memory:/a\n0::/c\n",
                "/sys/fs/cgroup/memory/a",
            ),
            ("1:name=systemd:/x\n0::/c\n", "/sys/fs/cgroup/c"),
        ];
        for (text, path) in table {
            assert_eq!(memory_group(text), Some(PathBuf::from(path)), "{text:?}");
        }
        assert_eq!(memory_group(""), None);
        // This machine has one kind of count or the other.
        assert!(Kills::now().around.is_some());
    }
}
