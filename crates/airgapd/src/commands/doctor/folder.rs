//! Checks of the images folder and of the daemon's state folder.

use std::path::{Path, PathBuf};
use std::{fs, io};

use node::images::folder::{self, Folder, FolderTrust};
use node::images::keys::TrustedKeys;
use node::place::Place;
use node::settings::{Settings, Signatures};

use super::super::status::minute;
use super::{Finding, note, ok, problem};

pub(super) fn of_folders(node: &Place, settings: &Settings) -> Vec<Finding> {
    let folders = node.images_dirs();
    let folders = folders.iter().enumerate();
    let findings = folders.flat_map(|(at, path)| of_folder(path, at == 0, settings));
    findings.collect()
}

/// Checks the folder of trusted keys, if signatures are asked for.
pub(super) fn of_keys(settings: &Settings) -> Vec<Finding> {
    if settings.signatures.is_none() {
        return Vec::new();
    }
    let trusted = TrustedKeys::read(&settings.trusted_keys);
    let (keys, folder) = (trusted.keys(), settings.trusted_keys.display());
    let usable = basics::counted(keys.usable().len(), "usable key");
    let unusable = keys.problems().iter().map(|why| {
        note(
            "keys",
            format!("a key cannot be used: {why}"),
            "correct or remove it (docs/admission.md)",
        )
    });
    let all = match keys.lack() {
        None => ok("keys", format!("{folder}: {usable}")),
        Some(why) => {
            let text = format!("{folder}: no key can be used: {why}");
            let remedy = "make a key usable as docs/admission.md describes";
            match settings.signatures {
                Some(Signatures::Require) => problem("keys", text, remedy),
                _ => note("keys", text, remedy),
            }
        }
    };
    let is_usable = !keys.usable().is_empty();
    std::iter::once(all)
        .chain(unusable.filter(|_| is_usable))
        .collect()
}

/// Checks an images folder. The daemon creates only the first one.
fn of_folder(path: &Path, is_first: bool, settings: &Settings) -> Vec<Finding> {
    let folder = match Folder::open_dir(path) {
        Ok(folder) => folder,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_first => {
            return vec![note(
                "folder",
                format!("{} does not exist: no bundle comes from it", path.display()),
                "mount it, or take it out of `imagesDirs:`",
            )];
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return vec![note(
                "folder",
                format!("{} does not exist yet", path.display()),
                format!("install -d -m 0755 {}", path.display()),
            )];
        }
        Err(error) => {
            return vec![problem(
                "folder",
                format!("{}: {error}", path.display()),
                "make it a folder that root can read",
            )];
        }
    };
    let mut findings = vec![match folder::judge(&folder, path, settings.allow_insecure_dir) {
        FolderTrust::Trusted => ok("folder", path.display().to_string()),
        FolderTrust::Warning(why) => note(
            "folder",
            format!("{}: {why}", path.display()),
            "run chown root: and chmod go-w on it, unless its other writers may give any image any name",
        ),
        FolderTrust::Refused(why) => problem(
            "folder",
            format!("{}: {why}", path.display()),
            format!("chmod o-w {}", path.display()),
        ),
    }];
    if let Some(kind) = quiet_file_system(path) {
        findings.push(note(
            "folder",
            format!("it is on {kind}, which does not report every change, nor the programs that still write"),
            "copy bundles under a name that begins with a dot, and rename them when they are whole. Otherwise the \
             daemon imports a bundle when it has not changed for a while",
        ));
    }
    findings
}

/// Returns the name of a file system without reliable events and leases.
fn quiet_file_system(path: &Path) -> Option<&'static str> {
    let kind = rustix::fs::statfs(path).ok()?.f_type;
    // linux/magic.h
    match u64::try_from(kind).ok()? & 0xffff_ffff {
        0x6969 => Some("NFS"),
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => Some("SMB"),
        0x6573_5546 => Some("FUSE"),
        0x794c_7630 => Some("overlayfs"),
        0x0102_1997 => Some("9P"),
        0x00c3_6400 => Some("Ceph"),
        _ => None,
    }
}

pub(super) fn of_watches(folders: &[PathBuf]) -> Finding {
    let limit = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).unwrap_or_default();
        text.trim().to_owned()
    };
    let watched = node::images::try_watch(folders);
    let limits = format!(
        "{} instances and {} watches for each user",
        limit("max_user_instances"),
        limit("max_user_watches")
    );
    match watched {
        Ok(()) => ok("inotify", limits),
        Err(error) => note(
            "inotify",
            format!(
                "the kernel gives no watch: {error}. The limits are {limits}. The daemon lists the folder every few seconds instead"
            ),
            "sysctl -w fs.inotify.max_user_instances=1024 fs.inotify.max_user_watches=524288, and the same in /etc/sysctl.d",
        ),
    }
}

/// Reports the last scrub, and the blobs that it left wrong.
pub(super) fn of_scrub(state_dir: &Path) -> Option<Finding> {
    let scrub = node::scrub::last(state_dir)?;
    let when = minute(scrub.at);
    if scrub.wrong == 0 {
        return Some(ok("scrub", format!("{when}: {scrub}")));
    }
    let text = format!(
        "{} wrong in containerd after the last scrub ({when})",
        basics::counted(scrub.wrong, "blob")
    );
    let remedy = "`airgapd scrub` names each with its images, and the bundle to bring";
    Some(note("scrub", text, remedy))
}

pub(super) fn of_state(folder: &Path) -> Finding {
    let shown = folder.display();
    if rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok() {
        return ok("state", shown.to_string());
    }
    match folder.try_exists() {
        Ok(false) => note(
            "state",
            format!("{shown} does not exist yet"),
            "nothing: the daemon creates it",
        ),
        _ => note(
            "state",
            format!("{shown} cannot be written: after each restart the daemon reads every bundle again"),
            "mount it writable, or choose another `stateDir:`",
        ),
    }
}
