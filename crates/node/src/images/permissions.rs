//! Judges by owner and mode whether the images folder and the targets of its links can be trusted.
//! A user who can write there can put images on the node.
//!
//! This module changes no permission.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::folder::Folder;

pub(super) fn us() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Returns true if a file belongs to root or to the daemon's user, and no other user can write it.
pub(crate) fn is_roots_alone(mode: u32, owner: u32) -> bool {
    is_trusted_target(mode, owner, us())
}

/// Returns true if the target of a link is as safe as the folder: owned by root or the daemon's
/// user, and writable by no other. A user who can write the target can put images on the node.
fn is_trusted_target(mode: u32, owner: u32, us: u32) -> bool {
    (owner == 0 || owner == us) && mode & 0o022 == 0
}

/// The verdict on the images folder's permissions. A user who can write the folder is as powerful
/// as root: such a user can give any image any name on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FolderTrust {
    /// Only root or the daemon's own user can write the folder.
    Trusted,
    /// The daemon uses the folder, but the operator should know of a risk.
    Warning(String),
    /// The daemon imports nothing from the folder.
    Refused(String),
}

impl FolderTrust {
    /// Returns the worse of two verdicts, or `self` if they are equally bad.
    fn or_worse(self, other: FolderTrust) -> FolderTrust {
        match (&self, &other) {
            (FolderTrust::Refused(_), _) | (_, FolderTrust::Trusted) => self,
            (FolderTrust::Warning(_), FolderTrust::Warning(_)) => self,
            (_, FolderTrust::Refused(_)) | (FolderTrust::Trusted, FolderTrust::Warning(_)) => other,
        }
    }
}

/// Judges an open folder and every folder above it, both on the given path and on the path without
/// links. A user who can rename a folder above can put another folder in its place.
pub fn judge(folder: &Folder, path: &Path, allow_insecure: bool) -> FolderTrust {
    let own = judge_folder(folder.stat.st_mode, folder.stat.st_uid, us(), allow_insecure);
    let resolved = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let above = resolved.ancestors().skip(1).chain(path.ancestors().skip(1));
    above.fold(own, |worst, ancestor| {
        worst.or_worse(judge_above(ancestor, allow_insecure))
    })
}

fn judge_above(ancestor: &Path, allow_insecure: bool) -> FolderTrust {
    let Ok(metadata) = std::fs::metadata(ancestor) else {
        return FolderTrust::Trusted;
    };
    let name = |why: String| format!("{}, which is above it: {why}", ancestor.display());
    match judge_ancestor(metadata.mode(), metadata.uid(), us(), allow_insecure) {
        FolderTrust::Trusted => FolderTrust::Trusted,
        FolderTrust::Warning(why) => FolderTrust::Warning(name(why)),
        FolderTrust::Refused(why) => FolderTrust::Refused(name(why)),
    }
}

/// Judges a folder above by its mode and owner. A folder with the sticky bit (`/tmp`) is safe even
/// if every user can write it: no other user can rename root's files there (inode(7)).
fn judge_ancestor(mode: u32, owner: u32, us: u32, allow_insecure: bool) -> FolderTrust {
    const STICKY: u32 = 0o1000;
    let mode = if mode & STICKY == 0 { mode } else { mode & !0o022 };
    judge_folder(mode, owner, us, allow_insecure)
}

/// Judges a folder by its mode and owner. `us` is the effective user id of the daemon.
pub(super) fn judge_folder(mode: u32, owner: u32, us: u32, allow_insecure: bool) -> FolderTrust {
    let mode = mode & 0o7777;
    if mode & 0o002 != 0 {
        let what = format!("every user can write it (mode {mode:04o}), and with it give any image any name");
        return match allow_insecure {
            true => FolderTrust::Warning(what),
            false => FolderTrust::Refused(format!(
                "{what}: run chmod o-w on it, or set `allowInsecureDir: true`"
            )),
        };
    }
    if owner != 0 && owner != us {
        return FolderTrust::Warning(format!("it belongs to user {owner} and not to root"));
    }
    if mode & 0o020 != 0 {
        return FolderTrust::Warning(format!("its group can write it (mode {mode:04o})"));
    }
    FolderTrust::Trusted
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_link_is_followed_only_to_what_nobody_else_can_write() {
        let table = [
            (0o600, 0, 0, true),
            (0o644, 0, 1000, true),
            (0o600, 1000, 1000, true),
            (0o600, 1000, 0, false),
            (0o664, 0, 0, false),
            (0o646, 0, 0, false),
        ];
        for (mode, owner, us, trusted) in table {
            assert_eq!(
                is_trusted_target(mode, owner, us),
                trusted,
                "{mode:o} {owner} {us}"
            );
        }
    }

    #[test]
    fn a_folder_that_others_can_write_is_refused_or_warned_about() {
        let trusted = |trust: &FolderTrust| matches!(trust, FolderTrust::Trusted);
        let warning = |trust: &FolderTrust| matches!(trust, FolderTrust::Warning(_));
        let refused = |trust: &FolderTrust| matches!(trust, FolderTrust::Refused(_));
        type Is = fn(&FolderTrust) -> bool;
        let table: [(u32, u32, u32, bool, Is); 10] = [
            (0o40755, 0, 0, false, trusted),
            (0o40700, 0, 0, false, trusted),
            (0o40755, 1000, 1000, false, trusted),
            (0o40775, 0, 0, false, warning),
            (0o40755, 1000, 0, false, warning),
            (0o40777, 0, 0, false, refused),
            (0o41777, 0, 0, false, refused),
            (0o40757, 0, 0, false, refused),
            (0o40777, 0, 0, true, warning),
            (0o40775, 1000, 0, true, warning),
        ];
        for (mode, owner, us, allow_insecure, expected) in table {
            let trust = judge_folder(mode, owner, us, allow_insecure);
            assert!(
                expected(&trust),
                "{mode:o} {owner} {us} {allow_insecure}: {trust:?}"
            );
        }
    }

    #[test]
    fn a_folder_above_is_judged_alike_and_a_sticky_one_is_safe() {
        let table = [
            (0o40755, 0, FolderTrust::Trusted),
            (0o41777, 0, FolderTrust::Trusted),
            (0o41775, 0, FolderTrust::Trusted),
        ];
        for (mode, owner, expected) in table {
            assert_eq!(judge_ancestor(mode, owner, 0, false), expected, "{mode:o}");
        }
        assert!(matches!(
            judge_ancestor(0o40777, 0, 0, false),
            FolderTrust::Refused(_)
        ));
        assert!(matches!(
            judge_ancestor(0o40777, 0, 0, true),
            FolderTrust::Warning(_)
        ));
        assert!(matches!(
            judge_ancestor(0o40775, 0, 0, false),
            FolderTrust::Warning(_)
        ));
        assert!(matches!(
            judge_ancestor(0o41777, 1000, 0, false),
            FolderTrust::Warning(_)
        ));
    }

    #[test]
    fn a_folder_above_that_everybody_can_write_is_named_through_links_too() {
        let temporary = tempfile::tempdir().unwrap();
        let (open, shut) = (temporary.path().join("open"), temporary.path().join("shut"));
        fs::create_dir_all(open.join("data/images")).unwrap();
        fs::create_dir(&shut).unwrap();
        std::os::unix::fs::symlink(open.join("data/images"), shut.join("images")).unwrap();
        let verdict = |path: &Path| judge(&Folder::open_dir(path).unwrap(), path, false);
        assert_eq!(verdict(&open.join("data/images")), FolderTrust::Trusted);
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        for path in [open.join("data/images"), shut.join("images")] {
            let FolderTrust::Refused(why) = verdict(&path) else {
                panic!("{}: {:?}", path.display(), verdict(&path));
            };
            assert!(
                why.contains("open, which is above it") && why.contains("chmod o-w"),
                "{why}"
            );
        }
        fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).unwrap();
        assert_eq!(verdict(&open.join("data/images")), FolderTrust::Trusted);
    }
}
