//! The mounts that a node configures: in fstab(5), and in mount units that start with the node
//! (systemd.mount(5)).
//!
//! A folder on a missing mount looks empty, although its files still exist.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The folders of units from operators and generators.
const UNITS: [&str; 3] = [
    "etc/systemd/system",
    "run/systemd/system",
    "run/systemd/generator",
];

/// Returns the innermost mount that the node below `root` configures for `folder` and that is
/// missing. Returns `None` if no mount is missing, or if the mounts are unreadable.
pub(crate) fn missing(folder: &Path, root: &Path) -> Option<PathBuf> {
    let folder = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    let mounted = fs::read(root.join("proc/self/mountinfo")).ok()?;
    let mounted = mount_points(&mounted);
    let fstab = fs::read(root.join("etc/fstab")).unwrap_or_default();
    let mut promised = of_fstab(&fstab);
    promised.extend(UNITS.iter().flat_map(|units| of_units(&root.join(units))));
    let missing = promised.into_iter().filter(|promised| {
        promised != Path::new("/") && folder.starts_with(promised) && !mounted.contains(promised)
    });
    missing.max_by_key(|mount| mount.as_os_str().len())
}

/// A mount, as a line of mountinfo describes it.
struct Mount {
    parent: Vec<u8>,
    device: Vec<u8>,
    /// The part of the file system that is mounted.
    root: PathBuf,
    point: PathBuf,
}

/// Returns the mount points of mountinfo, see proc_pid_mountinfo(5), except those of a folder over
/// itself. systemd makes such mounts for the folders that a unit may write (`ReadWritePaths=`),
/// even if their disk is not mounted.
fn mount_points(mountinfo: &[u8]) -> Vec<PathBuf> {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    let mounts: HashMap<Vec<u8>, Mount> = lines.filter_map(mount).collect();
    let is_over_itself = |mount: &Mount| {
        mounts.get(&mount.parent).is_some_and(|parent| {
            let below = mount.point.strip_prefix(&parent.point);
            parent.device == mount.device && below.is_ok_and(|below| parent.root.join(below) == mount.root)
        })
    };
    let real = mounts.values().filter(|mount| !is_over_itself(mount));
    real.map(|mount| mount.point.clone()).collect()
}

/// Parses the first five fields of a line: the id of the mount and that of its parent, the device,
/// the root and the mount point.
fn mount(line: &[u8]) -> Option<(Vec<u8>, Mount)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = fields.next()?.to_owned();
    let mount = Mount {
        parent: fields.next()?.to_owned(),
        device: fields.next()?.to_owned(),
        root: path(fields.next()?),
        point: path(fields.next()?),
    };
    Some((id, mount))
}

/// Returns the mount points of an fstab, except those that are not mounted at boot.
fn of_fstab(fstab: &[u8]) -> Vec<PathBuf> {
    let mut points = Vec::new();
    for line in fstab.split(|byte| *byte == b'\n') {
        let mut fields = line
            .split(u8::is_ascii_whitespace)
            .filter(|field| !field.is_empty());
        let (Some(what), Some(point), _, options) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let is_left_out = |option: &[u8]| option == b"noauto";
        let mut options = options.unwrap_or_default().split(|byte| *byte == b',');
        if !what.starts_with(b"#") && point.starts_with(b"/") && !options.any(is_left_out) {
            points.push(path(point));
        }
    }
    points
}

/// Returns the mount points of the mount units that other units in this folder want or require.
fn of_units(units: &Path) -> Vec<PathBuf> {
    let names = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let ends = |path: &Path, ending: &str| path.extension().is_some_and(|extension| extension == ending);
    let wanting = names(units)
        .into_iter()
        .filter(|path| ends(path, "wants") || ends(path, "requires"));
    let mounts = wanting
        .flat_map(|folder| names(&folder))
        .filter(|path| ends(path, "mount"));
    mounts
        .filter_map(|link| where_of(&fs::read(link).ok()?))
        .collect()
}

/// Returns the path after `Where=` in a mount unit. Specifiers (`%`) are not resolved, since
/// systemd allows none here.
fn where_of(unit: &[u8]) -> Option<PathBuf> {
    let mut lines = unit.split(|byte| *byte == b'\n');
    let value = lines.find_map(|line| line.trim_ascii().strip_prefix(b"Where="))?;
    Some(PathBuf::from(OsString::from_vec(value.trim_ascii().to_vec())))
}

/// Returns a path of fstab or mountinfo with its escapes (`\040` for a space) resolved. A slash at
/// the end does not count.
fn path(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let byte = digits.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[3..] } else { after };
    }
    let path = PathBuf::from(OsString::from_vec(bytes));
    path.components().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a root folder with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const ROOT: &str = "22 1 254:1 / / rw - ext4 /dev/vda1 rw\n";

    #[test]
    fn a_promised_mount_is_missed_where_it_holds_the_folder_and_is_not_there() {
        type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], Option<&'a str>);
        let mounted = format!("{ROOT}23 22 254:2 / /srv/my\\040disk rw - ext4 /dev/vdb rw\n");
        let itself = "/srv/my\\040disk";
        let over_itself = format!("{ROOT}23 22 254:1 {itself} {itself} rw - ext4 /dev/vda1 rw\n");
        let bound = format!("{ROOT}23 22 254:1 /data {itself} rw - ext4 /dev/vda1 rw\n");
        let fstab =
            "# a comment\n/dev/vdb /srv/my\\040disk/ ext4 defaults,nofail 0 2\nUUID=1 none swap sw 0 0\n";
        let unit = "[Mount]\nWhat=nas:/images\nWhere=/srv/my disk/images\n";
        let wanted = "etc/systemd/system/multi-user.target.wants/srv-images.mount";
        let table: [Row<'_>; 10] = [
            ("nothing is promised", &[("proc/self/mountinfo", ROOT)], None),
            (
                "fstab promises it",
                &[("proc/self/mountinfo", ROOT), ("etc/fstab", fstab)],
                Some("/srv/my disk"),
            ),
            (
                "it is there",
                &[("proc/self/mountinfo", &mounted), ("etc/fstab", fstab)],
                None,
            ),
            (
                "it is mounted by hand",
                &[
                    ("proc/self/mountinfo", ROOT),
                    ("etc/fstab", "/dev/vdb /srv ext4 noauto 0 0\n"),
                ],
                None,
            ),
            (
                "it is for another folder",
                &[
                    ("proc/self/mountinfo", ROOT),
                    ("etc/fstab", "/dev/vdb /srv/my ext4 rw 0 0\n"),
                ],
                None,
            ),
            (
                "a unit promises another one on it",
                &[
                    ("proc/self/mountinfo", &mounted),
                    ("etc/fstab", fstab),
                    (wanted, unit),
                ],
                Some("/srv/my disk/images"),
            ),
            (
                "a unit that nothing starts",
                &[
                    ("proc/self/mountinfo", &mounted),
                    ("etc/systemd/system/srv-images.mount", unit),
                ],
                None,
            ),
            ("mounts cannot be told", &[("etc/fstab", fstab)], None),
            (
                "a unit may write there, and nothing is mounted",
                &[("proc/self/mountinfo", &over_itself), ("etc/fstab", fstab)],
                Some("/srv/my disk"),
            ),
            (
                "another folder of the same disk is mounted",
                &[("proc/self/mountinfo", &bound), ("etc/fstab", fstab)],
                None,
            ),
        ];
        for (claim, files, wanted) in table {
            let root = root(files);
            let found = missing(Path::new("/srv/my disk/images"), root.path());
            assert_eq!(found.as_deref(), wanted.map(Path::new), "{claim}");
        }
    }
}
