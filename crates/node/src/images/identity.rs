//! The identity of an entry of the images folder. Equal identities mean the same file, or a layout
//! folder without a write in between.
//!
//! This module reads the attributes of entries and never their bytes.

use std::ffi::OsStr;

use bundle::Identity;
use rustix::fs::{AtFlags, FileType, Stat};

use super::folder::Folder;

pub(super) fn identity_of(stat: &Stat) -> Identity {
    Identity {
        device: stat.st_dev,
        inode: stat.st_ino,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mtime_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
        ctime_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
    }
}

/// Returns a time in nanoseconds. 64 bits cover the years 1677 to 2262. Other times become the
/// nearest limit.
fn nanoseconds(seconds: i64, part: impl TryInto<i64>) -> i64 {
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(part.try_into().unwrap_or(0))
}

/// The documents of an OCI image layout. A folder with one of them is a layout (image-spec,
/// image-layout).
const LAYOUT_FILES: [&str; 2] = ["index.json", "oci-layout"];
/// The folders of a layout's blobs.
pub(super) const LAYOUT_FOLDERS: [&str; 3] = ["blobs", "blobs/sha256", "blobs/sha512"];

/// Mixes one identity into another. The result changes with each of the parts, and their order does
/// not matter.
fn fold(whole: &mut Identity, part: &Identity) {
    // The multiplication by a large odd number spreads every bit, and a sum does not depend on the
    // order (splitmix64).
    let spread = |value: u64| {
        let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
    };
    let times = spread(part.mtime_ns.cast_unsigned() ^ part.inode.rotate_left(32));
    let changes = spread(part.ctime_ns.cast_unsigned() ^ part.size.rotate_left(32));
    whole.size = whole.size.wrapping_add(part.size);
    whole.mtime_ns = whole.mtime_ns.wrapping_add(times.cast_signed());
    whole.ctime_ns = whole.ctime_ns.wrapping_add(changes.cast_signed());
}

/// Most blobs of a layout that count for its identity: more than a bundle may have.
const MOST_BLOBS: usize = 20_000;

impl Folder {
    pub(super) fn is_layout(&self) -> bool {
        LAYOUT_FILES.iter().any(|name| {
            let stat = rustix::fs::statat(&self.fd, *name, AtFlags::SYMLINK_NOFOLLOW);
            stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
        })
    }

    /// Returns an identity that changes with every write to a layout. It covers the layout's
    /// documents, and name, size and times of each blob.
    pub(super) fn layout_identity(&self) -> Identity {
        let mut whole = identity_of(&self.stat);
        for name in LAYOUT_FILES {
            if let Ok(stat) = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                fold(&mut whole, &identity_of(&stat));
            }
        }
        for name in LAYOUT_FOLDERS {
            if let Ok(folder) = self.sub_folder(OsStr::new(name)) {
                fold(&mut whole, &identity_of(&folder.stat));
                folder.fold_entries(&mut whole);
            }
        }
        whole
    }

    fn fold_entries(&self, whole: &mut Identity) {
        let Ok(entries) = rustix::fs::Dir::read_from(&self.fd) else {
            return;
        };
        for entry in entries.flatten().take(MOST_BLOBS) {
            if let Ok(stat) = rustix::fs::statat(&self.fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
                && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            {
                fold(whole, &identity_of(&stat));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;
    use crate::images::listing::tests::write_all;

    #[test]
    fn the_identity_of_a_layout_changes_with_everything_in_it() {
        let temporary = tempfile::tempdir().unwrap();
        write_all(
            temporary.path(),
            &[
                "l/index.json",
                "l/oci-layout",
                "l/blobs/sha256/aa",
                "l/blobs/sha256/bb",
            ],
        );
        let folder = Folder::open_dir(temporary.path()).unwrap();
        let identity = || folder.open_layout(OsStr::new("l")).unwrap().1;
        let mut seen = vec![identity()];
        assert_eq!(identity(), seen[0]);
        let path = |name: &str| temporary.path().join("l").join(name);
        let deeds: [&dyn Fn(); 4] = [
            &|| fs::write(path("blobs/sha256/cc"), "new").unwrap(),
            &|| fs::write(path("blobs/sha256/aa"), "a blob that grows in place").unwrap(),
            &|| fs::write(path("index.json"), "another").unwrap(),
            &|| fs::remove_file(path("blobs/sha256/bb")).unwrap(),
        ];
        for (number, deed) in deeds.iter().enumerate() {
            deed();
            let now = identity();
            assert!(!seen.contains(&now), "deed {number}");
            seen.push(now);
        }
    }

    #[test]
    fn any_rewrite_or_replacement_changes_the_identity_even_with_the_times_put_back() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("b.tar");
        fs::write(&path, "old").unwrap();
        let before = Identity::of(&fs::metadata(&path).unwrap());
        let modified = fs::metadata(&path).unwrap().modified().unwrap();

        let replacement = temporary.path().join("new");
        fs::write(&replacement, "new").unwrap();
        File::options()
            .write(true)
            .open(&replacement)
            .unwrap()
            .set_modified(modified)
            .unwrap();
        fs::rename(&replacement, &path).unwrap();
        let after = Identity::of(&fs::metadata(&path).unwrap());
        assert_eq!((before.size, before.mtime_ns), (after.size, after.mtime_ns));
        assert_ne!(before, after);
    }
}
