//! Removes all traces of a private containerd: processes, mounts and files. It works while the
//! owner lives and after its death.
//!
//! A killed test run leaves its folders behind. The next run finds them here and knows only the
//! path, so this module needs nothing else.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use super::folder::base_folder;
use super::wait_until;
use crate::output_of;
use crate::parts::runc;

/// Prefix of the folder name of every private containerd.
pub(super) const PREFIX: &str = "airgapd-containerd-";

/// Name of the file that the owner of a folder keeps locked.
const LOCK: &str = "lock";

/// Longest time until killed processes are gone.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// Marks a folder as in use while the returned file is open.
pub(super) fn lock(folder: &Path) -> io::Result<File> {
    let unlocked = folder.join("lock.new");
    let lock = File::create(&unlocked)?;
    lock.lock()?;
    // The file gets its name only after it is locked. Otherwise another process could find it
    // unlocked and take the folder for abandoned.
    fs::rename(unlocked, folder.join(LOCK))?;
    Ok(lock)
}

/// Removes the folders of earlier runs that could not clean up after themselves.
pub(super) fn remove_abandoned() {
    for folder in subfolders(base_folder()) {
        let is_ours = folder
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        if is_ours && is_abandoned(&folder) {
            remove(&folder);
        }
    }
}

/// Returns true if the owner of the folder is dead. A folder without the lock file is just being
/// made.
fn is_abandoned(folder: &Path) -> bool {
    File::open(folder.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok())
}

/// Ends all processes of the folder and removes it, as far as possible.
pub(super) fn remove(folder: &Path) {
    delete_containers(folder);
    remove_shim_sockets(folder);
    kill_processes(folder);
    unmount_below(folder);
    remove_files(folder);
}

/// Removes the files, the lock last. If this process dies before, the folder still counts as
/// abandoned.
fn remove_files(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_name() != LOCK {
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
    }
    let _ = fs::remove_dir_all(folder);
}

/// Deletes the containers with runc, which also ends their processes and removes their control
/// groups.
fn delete_containers(folder: &Path) {
    let Ok(runc) = runc() else { return };
    for namespace in subfolders(&folder.join("runc")) {
        for container in subfolders(&namespace) {
            let id = container.file_name().unwrap_or_default();
            let _ = output_of(
                Command::new(&runc)
                    .arg("--root")
                    .arg(&namespace)
                    .args(["delete", "--force"])
                    .arg(id),
            );
        }
    }
}

/// Removes the sockets of killed shims, which are in a folder that all containerds of the machine
/// share.
fn remove_shim_sockets(folder: &Path) {
    for namespace in subfolders(&folder.join("state/io.containerd.runtime.v2.task")) {
        for container in subfolders(&namespace) {
            // 1.x writes the plain address, and 2.x writes it as a member of a JSON document.
            for file in ["address", "bootstrap.json"] {
                let text = fs::read_to_string(container.join(file)).unwrap_or_default();
                if let Some(socket) = shim_socket(&text) {
                    let _ = fs::remove_file(socket);
                }
            }
        }
    }
}

fn shim_socket(text: &str) -> Option<&str> {
    let start = text.find("/run/containerd/s/")?;
    let socket = &text[start..];
    Some(
        socket
            .split(|end: char| end == '"' || end.is_whitespace())
            .next()
            .unwrap_or(socket),
    )
}

fn kill_processes(folder: &Path) {
    let running = processes_of(folder);
    for pid in &running {
        let _ = kill_process(*pid, Signal::KILL);
    }
    if !running.is_empty() {
        let _ = wait_until(GONE_WITHIN, || Ok(processes_of(folder).is_empty()));
    }
}

/// Returns the containerds and shims that were started with a path below the folder, and no other
/// process.
fn processes_of(folder: &Path) -> Vec<Pid> {
    subfolders(Path::new("/proc"))
        .iter()
        .filter(|process| {
            let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
            belongs_to(&arguments, folder)
        })
        .filter_map(|process| Pid::from_raw(process.file_name()?.to_str()?.parse().ok()?))
        .collect()
}

fn belongs_to(command_line: &[u8], folder: &Path) -> bool {
    let mut arguments = command_line
        .split(|byte| *byte == 0)
        .map(|bytes| Path::new(as_os_str(bytes)));
    let program = arguments
        .next()
        .and_then(Path::file_name)
        .unwrap_or_default()
        .to_string_lossy();
    (program == "containerd" || program.starts_with("containerd-shim"))
        && arguments.any(|argument| argument.starts_with(folder))
}

fn as_os_str(bytes: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}

fn unmount_below(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // A later mount may lie on an earlier one.
    for mount in mounts_below(&mounts, folder).iter().rev() {
        let _ = unmount(mount, UnmountFlags::DETACH);
    }
}

/// Returns the mount points below a folder in the order of mounting. They are field 5 of each line
/// of proc_pid_mountinfo(5).
fn mounts_below(mountinfo: &str, folder: &Path) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|mount| mount.starts_with(folder))
        .collect()
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_abandoned_once_its_lock_is_free_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_abandoned(folder.path()), "a folder that is just being made");
        let held = lock(folder.path()).unwrap();
        assert!(!is_abandoned(folder.path()));
        drop(held);
        assert!(is_abandoned(folder.path()));
    }

    #[test]
    fn all_files_of_a_folder_are_removed() {
        let folder = tempfile::tempdir().unwrap().keep();
        drop(lock(&folder).unwrap());
        fs::create_dir_all(folder.join("root/deep")).unwrap();
        fs::write(folder.join("root/deep/file"), "x").unwrap();
        fs::write(folder.join("config.toml"), "x").unwrap();
        remove_files(&folder);
        assert!(!folder.exists());
    }

    #[test]
    fn only_containerd_and_shims_started_from_the_folder_belong_to_it() {
        let folder = Path::new("/tmp/airgapd-containerd-2-a");
        let table = [
            (
                "/parts/containerd\0--config\0/tmp/airgapd-containerd-2-a/config.toml\0",
                true,
            ),
            (
                "/p/containerd-shim-runc-v2\0-address\0/tmp/airgapd-containerd-2-a/c.sock\0",
                true,
            ),
            (
                "/parts/containerd\0--config\0/tmp/airgapd-containerd-2-ab/config.toml\0",
                false,
            ),
            ("/usr/bin/containerd\0", false),
            ("airgapd\0--address\0/tmp/airgapd-containerd-2-a/c.sock\0", false),
            ("vi\0/tmp/airgapd-containerd-2-a/config.toml\0", false),
            ("/tmp/airgapd-containerd-2-a/containerd\0", false),
            ("", false),
        ];
        for (command_line, expected) in table {
            assert_eq!(
                belongs_to(command_line.as_bytes(), folder),
                expected,
                "{command_line:?}"
            );
        }
    }

    #[test]
    fn mounts_of_the_folder_are_found_by_whole_path_parts() {
        let text = "\
30 1 254:0 / / rw - ext4 /dev/vda rw
40 30 0:40 / /tmp/f/state/rootfs rw,relatime shared:1 - overlay overlay rw
41 30 0:41 / /tmp/f/state/shm rw - tmpfs shm rw
42 30 0:42 / /tmp/ff/state/shm rw - tmpfs shm rw
";
        assert_eq!(
            mounts_below(text, Path::new("/tmp/f")),
            [
                PathBuf::from("/tmp/f/state/rootfs"),
                PathBuf::from("/tmp/f/state/shm")
            ]
        );
    }

    #[test]
    fn a_shim_names_its_socket_plainly_or_in_json() {
        let table = [
            ("unix:///run/containerd/s/ab12", Some("/run/containerd/s/ab12")),
            (
                r#"{"version":3,"address":"unix:///run/containerd/s/ab12","protocol":"ttrpc"}"#,
                Some("/run/containerd/s/ab12"),
            ),
            ("unix:///var/other", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(shim_socket(text), expected, "{text}");
        }
    }
}
