//! Stamps of the operator's files: they tell a changed file without reading it.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::{Reading, Sources, files};

/// The stamps of all files that sources name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamps {
    /// A short form of paths, inodes, sizes and times. Another value means other content.
    pub digest: String,
    /// Sources that cannot be read again and again, each in a sentence.
    pub mistakes: Vec<String>,
}

impl Sources {
    /// Returns the stamps of the files, and of the manifests in folders. Opens no file. The call
    /// blocks while a file system does not answer, and `reading` names the source meanwhile.
    pub fn stamps(&self, reading: &Reading) -> Stamps {
        let (mut text, mut mistakes) = (String::new(), Vec::new());
        let k0s = [&self.k0s.k0s_config, &self.k0s.image_set];
        let single = self.images.iter().chain(k0s.into_iter().flatten());
        for file in single {
            reading.begin(file);
            stamp(file, &mut text, &mut mistakes);
        }
        let manifests = self.manifests.iter().map(|path| (path, false));
        let static_pods = self.static_pods.iter().map(|path| (path, true));
        for (path, is_of_static_pods) in manifests.chain(static_pods) {
            reading.begin(path);
            // The check itself reports a folder that cannot be listed.
            for file in files::paths(path, is_of_static_pods, &mut Vec::new()) {
                stamp(&file, &mut text, &mut mistakes);
            }
        }
        Stamps {
            digest: basics::digest::short(text.as_bytes()),
            mistakes,
        }
    }
}

/// Adds the stamp of a file. A copy with the old times still has another inode or another time of
/// the last change of its state.
fn stamp(file: &Path, text: &mut String, mistakes: &mut Vec<String>) {
    let stamp = fs::metadata(file).map(|metadata| {
        if metadata.file_type().is_fifo() {
            mistakes.push(format!(
                "{} is a pipe, which can be read once only: name a file",
                file.display()
            ));
        }
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        (metadata.ino(), metadata.size(), modified, changed)
    });
    let stamp = stamp.map_err(|error| error.kind());
    writeln!(text, "{file:?} {stamp:?}").expect("a text takes everything");
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::SystemTime;

    use super::*;

    /// Writes a file in the place of another, as a copy does.
    fn replace(path: &Path, text: &str) {
        let new = path.with_extension("new");
        fs::write(&new, text).expect("a file");
        fs::rename(&new, path).expect("one file system");
    }

    #[test]
    fn a_file_that_is_replaced_rewritten_added_or_removed_has_other_stamps() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for name in ["list.txt", "k0s.yaml", "set.yaml", "apps/deep/a.yaml", "pods/p"] {
            fs::create_dir_all(at(name).parent().expect("a folder")).expect("a folder");
            fs::write(at(name), "one").expect("a file");
        }
        let mut sources = Sources {
            images: vec![at("list.txt")],
            manifests: vec![at("apps")],
            static_pods: Some(at("pods")),
            ..Sources::default()
        };
        sources.k0s.k0s_config = Some(at("k0s.yaml"));
        sources.k0s.image_set = Some(at("set.yaml"));
        let reading = Reading::default();
        let stamps = || {
            let stamps = sources.stamps(&reading);
            assert_eq!(stamps.mistakes, Vec::<String>::new());
            stamps.digest
        };
        let mut seen = vec![stamps()];
        assert_eq!(stamps(), seen[0], "nothing has changed");
        assert_eq!(reading.path(), Some(at("pods")));
        let mut is_other = |change: &str| {
            let now = stamps();
            assert!(!seen.contains(&now), "{change}");
            seen.push(now);
        };
        for name in ["list.txt", "k0s.yaml", "set.yaml", "apps/deep/a.yaml", "pods/p"] {
            replace(&at(name), "two");
            is_other(name);
        }
        fs::write(at("list.txt"), "longer").expect("a file");
        is_other("a longer list");
        let file = fs::File::options()
            .append(true)
            .open(at("list.txt"))
            .expect("a file");
        file.set_modified(SystemTime::UNIX_EPOCH).expect("a time");
        is_other("another time");
        fs::write(at("apps/b.yaml"), "two").expect("a file");
        is_other("another manifest");
        fs::remove_file(at("pods/p")).expect("a file");
        is_other("no pod any more");
        fs::remove_file(at("list.txt")).expect("a file");
        is_other("no list any more");
    }

    #[test]
    fn a_pipe_is_named_and_not_opened() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipe: PathBuf = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.expect("coreutils are there").success());
        let sources = Sources {
            images: vec![pipe.clone()],
            ..Sources::default()
        };
        let stamps = sources.stamps(&Reading::default());
        let [mistake] = stamps.mistakes.as_slice() else {
            panic!("{stamps:?}")
        };
        assert!(
            mistake.starts_with(&format!("{} is a pipe", pipe.display())),
            "{mistake}"
        );
    }
}
