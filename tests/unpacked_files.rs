//! The files of unpacked layers: those that containerd's own unpacking makes, in every respect.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use bundle::fixtures::{Image, Layer};
use lab::{Containerd, Options};
use tar::{EntryType, Header};

use crate::support::bundles::{self, native};
use crate::support::{Node, Own, on_its_own_containerd, unique};

const NAME: &str = "registry.test/files/all:1";

/// Time of every entry. A file with a later time got it from containerd.
const LONG_AGO: u64 = 1_000_000_000;

/// Entries of a layer.
struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn entry(mut self, kind: EntryType, path: &str, mode: u32, user: u64, content: &str) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(user);
        header.set_gid(user + 1);
        header.set_mtime(LONG_AGO);
        header.set_size(0);
        let added = match kind {
            EntryType::Symlink | EntryType::Link => self.0.append_link(&mut header, path, content),
            _ => {
                header.set_size(content.len() as u64);
                self.0.append_data(&mut header, path, content.as_bytes())
            }
        };
        added.expect("memory takes any bytes");
        self
    }

    fn folder(self, path: &str, mode: u32, user: u64) -> Self {
        self.entry(EntryType::Directory, path, mode, user, "")
    }

    fn file(self, path: &str, mode: u32, user: u64, content: &str) -> Self {
        self.entry(EntryType::Regular, path, mode, user, content)
    }

    /// Gives the next entry an extended attribute, by a header of POSIX.
    fn attribute(self, name: &str, value: &str) -> Self {
        let rest = format!(" SCHILY.xattr.{name}={value}\n");
        // The number counts its own digits.
        let length = (rest.len()..).find(|length| length.to_string().len() + rest.len() == *length);
        let record = format!("{}{rest}", length.expect("a number"));
        self.entry(EntryType::XHeader, "attributes", 0o644, 0, &record)
    }

    fn layer(self) -> Layer {
        Layer::plain(self.0.into_inner().expect("memory takes any bytes").into())
    }
}

/// Returns layers that remove, replace and extend what is below. Some list no folders for that.
fn layers() -> [Layer; 6] {
    let lowest = Tar::new()
        .folder("./", 0o750, 1000)
        .folder("etc/", 0o755, 0)
        .file("etc/old", 0o644, 0, &unique())
        .file("etc/kept", 0o640, 7, "kept")
        .attribute("user.note", "of a folder")
        .folder("private/", 0o700, 1000)
        .file("private/key", 0o600, 1000, "key")
        .folder("replaced/", 0o755, 0)
        .file("replaced/one", 0o644, 0, "one")
        .folder("shared/", 0o1777, 0)
        .file("shared/gone", 0o644, 0, "gone");
    let removing = Tar::new()
        .folder("etc/", 0o755, 0)
        .file("etc/.wh.old", 0o644, 0, "")
        .folder("replaced/", 0o750, 3)
        .file("replaced/.wh..wh..opq", 0o644, 0, "")
        .file("replaced/two", 0o644, 0, "two");
    let kinds = Tar::new()
        .folder("kinds/", 0o2775, 5)
        .attribute("user.note", "of a file")
        .file("kinds/first", 0o4755, 6, "first")
        .entry(EntryType::Link, "kinds/second", 0o4755, 6, "kinds/first")
        .entry(EntryType::Symlink, "kinds/symbolic", 0o777, 8, "../etc/kept")
        .entry(EntryType::Fifo, "kinds/fifo", 0o620, 9, "");
    let unlisted = Tar::new().file("private/added", 0o600, 1000, "added");
    let unlisted_removing =
        Tar::new()
            .file("shared/.wh.gone", 0o644, 0, "")
            .file("new/made/up", 0o644, 0, "up");
    let folder_gone = Tar::new()
        .file(".wh.kinds", 0o644, 0, "")
        .file("last", 0o644, 0, "last");
    [lowest, removing, kinds, unlisted, unlisted_removing, folder_gone].map(Tar::layer)
}

/// Returns a folder and each file below it, with everything that a program can see of them.
fn files(folder: &Path) -> BTreeMap<PathBuf, String> {
    let metadata = fs::symlink_metadata(folder).expect("the folder is there");
    let mut found = BTreeMap::from([(PathBuf::new(), everything(folder, &metadata))]);
    let mut left = vec![folder.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(&next).expect("a folder") {
            let path = entry.expect("an entry").path();
            let metadata = fs::symlink_metadata(&path).expect("the file is there");
            let name = path.strip_prefix(folder).expect("it is below").to_owned();
            found.insert(name, everything(&path, &metadata));
            if metadata.is_dir() {
                left.push(path);
            }
        }
    }
    found
}

fn everything(path: &Path, metadata: &Metadata) -> String {
    let kind = metadata.file_type();
    let mut text = format!(
        "mode {:o}, owner {}:{}, device {}",
        metadata.mode(),
        metadata.uid(),
        metadata.gid(),
        metadata.rdev()
    );
    match metadata.mtime().cast_unsigned() == LONG_AGO {
        true => text.push_str(", long ago"),
        false => text.push_str(", now"),
    }
    if !kind.is_dir() {
        write!(text, ", {} links", metadata.nlink()).expect("memory");
    }
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, names.as_mut_slice()).expect("a list");
    let mut names: Vec<_> = names[..length].split(|byte| *byte == 0).collect();
    names.sort_unstable();
    for name in names.into_iter().filter(|name| !name.is_empty()) {
        let mut value = vec![0; 4096];
        let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).expect("a value");
        let (name, value) = (name.escape_ascii(), value[..length].escape_ascii());
        write!(text, ", {name}={value}").expect("memory");
    }
    if kind.is_symlink() {
        let target = fs::read_link(path).expect("a link");
        write!(text, ", to {}", target.display()).expect("memory");
    } else if kind.is_file() {
        let content = fs::read(path).expect("a file");
        write!(text, ", {}", content.escape_ascii()).expect("memory");
    } else if kind.is_char_device() {
        text.push_str(", removed");
    }
    text
}

/// Returns the folders of the layers below a snapshot and of its own, uppermost first.
fn folders(containerd: &Containerd, namespace: &str, snapshot: &str) -> Vec<PathBuf> {
    let mut view = containerd.ctr_in(namespace);
    view.args([
        "snapshots",
        "--snapshotter",
        "overlayfs",
        "view",
        "--target",
        "/nowhere",
    ]);
    let output = view.args(["view", snapshot]).output().expect("ctr runs");
    assert!(output.status.success(), "{output:?}");
    let mount = String::from_utf8(output.stdout).expect("a command");
    let (_, lower) = mount.split_once("lowerdir=").expect("an overlay");
    let lower = lower.split([',', ' ', '\n']).next().expect("folders");
    lower.split(':').map(PathBuf::from).collect()
}

/// Options of the containerd.
fn usual() -> Options {
    Options::default()
}

fn unpacked_layers_have_the_files_that_containerd_itself_makes(own: &mut Own) {
    let node = Node::on(&own.target);
    let image = Image::new(NAME).platform(native());
    let image = layers().into_iter().fold(image, Image::with_layer);
    let file = bundles::text(&node.path("b.tar"));
    let archive = bundles::write(file.as_ref(), [image]);
    let report = node
        .import([&*file, "--unpack", "before-record"])
        .exits(0)
        .bundle();
    assert_eq!(report["unpacked"]["layers"], 6, "{report:#}");
    let config = archive.images[0].manifests[0].config.to_string();
    let labels = own.target.blobs().remove(&config).expect("the config");
    let top = &labels["containerd.io/gc.ref.snapshot.overlayfs"];

    let mut import = own.containerd.ctr_in("itself");
    import.args(["images", "import", "--snapshotter", "overlayfs", &file]);
    let output = import.output().expect("ctr runs");
    assert!(output.status.success(), "{output:?}");

    let ours = folders(&own.containerd, own.target.namespace(), top);
    let its = folders(&own.containerd, "itself", top);
    assert_eq!((ours.len(), its.len()), (6, 6));
    for (at, (ours, its)) in ours.iter().zip(&its).enumerate() {
        assert_ne!(ours, its, "each namespace has its own files");
        assert_eq!(files(ours), files(its), "layer {} of 6", 6 - at);
    }
    // The layers are those that this test is about.
    let [folder_gone, _, unlisted, kinds, removing, _] = ours.as_slice() else {
        unreachable!("there are six");
    };
    assert!(files(folder_gone)[Path::new("kinds")].ends_with("removed"));
    // containerd skips an entry for the root folder, so layers cannot give it another owner.
    for folder in &ours {
        let root = &files(folder)[Path::new("")];
        assert!(root.starts_with("mode 40755, owner 0:0"), "{root}");
    }
    let private = &files(unlisted)[Path::new("private")];
    assert!(private.starts_with("mode 40700, owner 1000:1001"), "{private}");
    assert!(private.contains("user.note=of a folder"), "{private}");
    let second = &files(kinds)[Path::new("kinds/second")];
    assert!(second.contains("2 links, user.note=of a file"), "{second}");
    let removing = files(removing);
    assert!(removing[Path::new("etc/old")].ends_with("removed"));
    assert!(removing[Path::new("replaced")].contains("trusted.overlay.opaque=y"));
}

on_its_own_containerd!(usual; unpacked_layers_have_the_files_that_containerd_itself_makes);
