//! Reads the operator's files, within limits.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Largest file that is read, in bytes.
const LARGEST: u64 = 64 << 20;

/// Most files of a folder, and its deepest level of sub-folders.
const MOST_FILES: usize = 10_000;
const DEEPEST: usize = 16;

/// A text and its name for messages.
#[derive(Clone, Debug)]
pub struct Text {
    /// The path as given, or `standard input`.
    pub name: String,
    pub text: String,
}

/// Returns the name of a file for messages.
pub(super) fn name(path: &Path) -> String {
    match path.as_os_str() == "-" {
        true => "standard input".to_owned(),
        false => path.display().to_string(),
    }
}

/// True once standard input was read. A second reader would find it empty.
static STDIN_TAKEN: AtomicBool = AtomicBool::new(false);

/// Reads a file, or standard input for `-`.
///
/// # Errors
///
/// Returns a sentence that names the file.
pub fn read(path: &Path) -> Result<Text, String> {
    let is_stdin = path.as_os_str() == "-";
    let name = name(path);
    if is_stdin && STDIN_TAKEN.swap(true, Ordering::Relaxed) {
        return Err("standard input was given twice: give one of the two as a file".to_owned());
    }
    let bytes = if is_stdin {
        bounded(io::stdin().lock())
    } else {
        open(path).and_then(bounded)
    };
    let bytes = bytes.map_err(|error| format!("cannot read {name}: {error}"))?;
    let text = String::from_utf8(bytes).map_err(|_| format!("{name} is no text in UTF-8"))?;
    Ok(Text { name, text })
}

/// Opens a file or a pipe, which shells make for `<(…)`. Rejects other devices, because they have
/// no end.
fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::FileTypeExt;
    let kind = fs::metadata(path)?.file_type();
    if kind.is_dir() {
        return Err(io::Error::other("it is a folder"));
    }
    if !kind.is_file() && !kind.is_fifo() {
        return Err(io::Error::other("it is no file"));
    }
    File::open(path)
}

fn bounded(source: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(io::Error::other(format!("it has more than {LARGEST} bytes")));
    }
    Ok(bytes)
}

/// Returns the manifests of a file or of a folder.
pub(super) fn texts(path: &Path, static_pods: bool, mistakes: &mut Vec<String>) -> Vec<Text> {
    let mut texts = Vec::new();
    for path in paths(path, static_pods, mistakes) {
        match read(&path) {
            Ok(text) => texts.push(text),
            Err(mistake) => mistakes.push(mistake),
        }
    }
    texts
}

/// Returns the path of a file, or those of the manifests in a folder: `.yaml`, `.yml` and `.json`,
/// at any depth, in the order of their names. A folder of static pods is read like kubelet reads
/// it: all files in it, under any name.
pub(super) fn paths(path: &Path, static_pods: bool, mistakes: &mut Vec<String>) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    if path.as_os_str() != "-" && path.is_dir() {
        let mut walk = Walk {
            static_pods,
            paths: &mut paths,
            seen: HashSet::new(),
            mistakes,
        };
        walk.folder(path, 0);
    } else {
        paths.push(path.to_owned());
    }
    paths
}

struct Walk<'a> {
    static_pods: bool,
    paths: &'a mut Vec<PathBuf>,
    /// Folders by device and inode, because links may lead back.
    seen: HashSet<(u64, u64)>,
    mistakes: &'a mut Vec<String>,
}

impl Walk<'_> {
    fn folder(&mut self, folder: &Path, depth: usize) {
        let entries = fs::metadata(folder).and_then(|metadata| {
            let is_new = self.seen.insert((metadata.dev(), metadata.ino()));
            let entries = if is_new { Some(fs::read_dir(folder)?) } else { None };
            entries.into_iter().flatten().collect::<io::Result<Vec<_>>>()
        });
        let mut entries: Vec<PathBuf> = match entries {
            Ok(entries) => entries.into_iter().map(|entry| entry.path()).collect(),
            Err(error) => {
                return self
                    .mistakes
                    .push(format!("cannot list {}: {error}", folder.display()));
            }
        };
        entries.sort();
        for path in entries {
            self.entry(path, depth);
        }
    }

    fn entry(&mut self, path: PathBuf, depth: usize) {
        // Hidden files are no manifests. The real files of a mounted ConfigMap are hidden, so they
        // are read only once, through their links.
        let is_hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if is_hidden {
            return;
        }
        if path.is_dir() {
            if self.static_pods {
                return;
            }
            if depth == DEEPEST {
                return self.mistakes.push(format!(
                    "{} is nested more than {DEEPEST} folders deep",
                    path.display()
                ));
            }
            return self.folder(&path, depth + 1);
        }
        let is_manifest = path.extension().is_some_and(|extension| {
            ["yaml", "yml", "json"]
                .iter()
                .any(|known| extension.eq_ignore_ascii_case(known))
        });
        if !is_manifest && !self.static_pods {
            return;
        }
        if self.paths.len() == MOST_FILES {
            self.mistakes.push(format!(
                "there are more than {MOST_FILES} manifests up to {}",
                path.display()
            ));
        }
        if self.paths.len() <= MOST_FILES {
            self.paths.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_read_to_its_depths_and_one_of_static_pods_only_itself() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for path in [
            "b.yaml",
            "a.yml",
            "c.JSON",
            "text.txt",
            ".hidden.yaml",
            "deep/d.yaml",
            "..data/e.yaml",
        ] {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "a: 1").unwrap();
        }
        std::os::unix::fs::symlink(root, root.join("deep/loop")).unwrap();
        let names = |static_pods| {
            let mut mistakes = Vec::new();
            let texts = texts(root, static_pods, &mut mistakes);
            assert!(mistakes.is_empty(), "{mistakes:?}");
            let prefix = format!("{}/", root.display());
            texts
                .into_iter()
                .map(|text| text.name.replace(&prefix, ""))
                .collect::<Vec<_>>()
        };
        assert_eq!(names(false), ["a.yml", "b.yaml", "c.JSON", "deep/d.yaml"]);
        assert_eq!(names(true), ["a.yml", "b.yaml", "c.JSON", "text.txt"]);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("binary.yaml");
        fs::write(&binary, [0xff, 0xfe]).unwrap();
        std::os::unix::fs::symlink("nowhere", folder.path().join("dangling.yaml")).unwrap();
        let mut mistakes = Vec::new();
        texts(folder.path(), false, &mut mistakes);
        texts(Path::new("/dev/zero"), false, &mut mistakes);
        texts(Path::new("/nonexistent.yaml"), false, &mut mistakes);
        for (mistake, part) in mistakes.iter().zip([
            "binary.yaml is no text",
            "dangling.yaml",
            "/dev/zero",
            "/nonexistent.yaml",
        ]) {
            assert!(mistake.contains(part), "{mistake}");
        }
        assert_eq!(mistakes.len(), 4);
    }
}
