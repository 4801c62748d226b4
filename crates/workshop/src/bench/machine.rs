//! The machine that made the figures, and its load.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Facts that the figures depend on. Unknown facts are empty or zero.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Machine {
    /// Name of the processor as it reports it.
    pub(super) processor: String,
    pub(super) cores: usize,
    /// True if the processor has instructions for SHA-256, which is most of the work.
    pub(super) hashes_in_hardware: bool,
    /// In GiB.
    pub(super) memory: f64,
    pub(super) kernel: String,
    /// File system of containerd's content: `ext4`, or `ext4 without a journal`.
    pub(super) filesystem: String,
}

impl Machine {
    /// Returns this machine. `folder` has containerd's content.
    pub(super) fn this(folder: &Path) -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        let field = |name| field(&cpuinfo, name).unwrap_or_default();
        let kind = filesystem(&read("/proc/self/mounts"), folder);
        let flags = format!(" {} {} ", field("flags"), field("Features"));
        Self {
            processor: field("model name").to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            hashes_in_hardware: flags.contains(" sha_ni ") || flags.contains(" sha2 "),
            memory: memory(&read("/proc/meminfo")),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            filesystem: match lacks_journal(folder) {
                true => kind + " without a journal",
                false => kind,
            },
        }
    }

    /// Describes the machine as a list in Markdown.
    pub(super) fn list(&self) -> String {
        let sha = if self.hashes_in_hardware {
            "with"
        } else {
            "without"
        };
        format!(
            "* {} cores of {} ({sha} instructions for SHA-256)\n* {:.0} GiB of memory\n* Linux {}\n* containerd's content on {}\n",
            self.cores, self.processor, self.memory, self.kernel, self.filesystem
        )
    }
}

/// Returns the pause before a run, so that the run does not pay for earlier deletions. The kernel
/// works on these for a while after sync(2).
///
/// An ext4 without a journal does not reuse an inode until its deletion is a minute old and
/// written. For every new file it looks at these inodes one by one (`recently_deleted` in Linux,
/// fs/ext4/ialloc.c).
pub(super) fn rest(folder: &Path, makes_many_files: bool) -> Duration {
    Duration::from_secs(match makes_many_files && lacks_journal(folder) {
        true => 65,
        false => 1,
    })
}

/// Returns true if a folder is on an ext4 without a journal. The kernel lists journals by their
/// device (`sda1-8`).
fn lacks_journal(folder: &Path) -> bool {
    let Ok(metadata) = folder.metadata() else {
        return false;
    };
    let (major, minor) = (
        rustix::fs::major(metadata.dev()),
        rustix::fs::minor(metadata.dev()),
    );
    let Ok(device) = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")) else {
        return false;
    };
    let Some(name) = device.file_name() else {
        return false;
    };
    if !Path::new("/sys/fs/ext4").join(name).exists() {
        return false;
    }
    let prefix = format!("{}-", name.display());
    let mut journals = fs::read_dir("/proc/fs/jbd2").into_iter().flatten().flatten();
    !journals.any(|journal| journal.file_name().to_string_lossy().starts_with(&prefix))
}

/// Returns the number of processes that wanted a core, on average over the last minute.
pub(super) fn load() -> f64 {
    let text = read("/proc/loadavg");
    text.split(' ')
        .next()
        .and_then(|first| first.parse().ok())
        .unwrap_or(0.0)
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_once(':').map(|(_, value)| value.trim())
}

fn memory(meminfo: &str) -> f64 {
    let total = field(meminfo, "MemTotal").and_then(|text| text.split(' ').next());
    total.and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / f64::from(1 << 20)
}

/// Returns the file system of the mount that has the folder: the mount with the longest path above
/// it.
fn filesystem(mounts: &str, folder: &Path) -> String {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            Some((fields.nth(1)?, fields.next()?))
        })
        .filter(|(point, _)| folder.starts_with(point))
        // Of several mounts at one point the last counts, and `max_by_key` returns the last.
        .max_by_key(|(point, _)| point.len())
        .map(|(_, kind)| kind.to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_nearest_to_the_folder_says_its_filesystem() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /srv tmpfs rw 0 0\n/dev/b /srv/x xfs rw 0 0\n";
        for (folder, kind) in [("/srv/x/y", "xfs"), ("/srv/xy", "tmpfs"), ("/home", "ext4")] {
            assert_eq!(filesystem(mounts, Path::new(folder)), kind, "{folder}");
        }
        assert_eq!(filesystem("", Path::new("/")), "");
    }

    #[test]
    fn only_an_ext4_without_a_journal_is_given_a_long_rest() {
        let no_ext4 = Path::new("/proc");
        assert!(!lacks_journal(no_ext4));
        assert_eq!(rest(no_ext4, true), Duration::from_secs(1));
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert_eq!(rest(here, true) > Duration::from_secs(60), lacks_journal(here));
        assert_eq!(rest(here, false), Duration::from_secs(1));
    }

    #[test]
    fn memory_is_told_in_gib() {
        let text = "MemTotal:       24576000 kB\nMemFree:        1 kB\n";
        assert!((memory(text) - 23.4375).abs() < 1e-6);
        assert!(memory("").abs() < 1e-6);
    }
}
