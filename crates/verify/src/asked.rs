//! Gathers the images that a cluster will need on this node, from all sources that the operator
//! names.
//!
//! This module reads the files and starts the program of k0s. The crate `requirements` parses them.
//! The result is either complete or has every mistake at once: a list that lacks the images of one
//! unreadable manifest would be worse than none.

mod files;
mod k0s;
mod stamps;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use import::Reference;
use platforms::Platform;
use requirements::{Limits, lists, manifests};
use serde::Serialize;

use files::Text;
pub use files::read as read_text;
pub use k0s::{K0sAnswer, K0sQuestion, is_foreign_program};
pub use stamps::Stamps;

/// All sources that the operator can name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sources {
    /// References on the command line.
    pub references: Vec<String>,
    /// Lists of references.
    pub images: Vec<PathBuf>,
    /// The images of k0s.
    pub k0s: K0sQuestion,
    /// Kubernetes manifests, and folders of them.
    pub manifests: Vec<PathBuf>,
    /// kubelet's folder of static pods.
    pub static_pods: Option<PathBuf>,
    /// The image with which containerd starts every pod, if containerd does not tell.
    pub sandbox_image: Option<String>,
}

impl Sources {
    /// Returns true if the operator names no source.
    pub fn is_empty(&self) -> bool {
        self.references.is_empty()
            && self.images.is_empty()
            && !self.k0s.is_given()
            && self.manifests.is_empty()
            && self.static_pods.is_none()
            && self.sandbox_image.is_none()
    }
}

/// The source that is being read. A read from a dead network mount never ends, and the caller that
/// gives it up names the source.
#[derive(Clone, Debug, Default)]
pub struct Reading(Arc<Mutex<Option<PathBuf>>>);

impl Reading {
    /// Returns the file or folder that is being read, or was read last.
    pub fn path(&self) -> Option<PathBuf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn begin(&self, path: &Path) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(path.to_owned());
    }
}

/// The kinds of places that need an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The list of images of k0s.
    K0s,
    /// A Kubernetes manifest.
    Manifest,
    /// A manifest in kubelet's folder of static pods.
    StaticPod,
    /// A list of references.
    List,
    /// The sandbox that containerd starts every pod with.
    Sandbox,
}

/// A place that needs an image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Source {
    /// The kind of place.
    pub kind: Kind,
    /// The file, if there is one.
    pub path: Option<String>,
    /// The Kubernetes object.
    pub object: Option<String>,
    /// The field that has the reference.
    pub field: Option<String>,
    /// The reference as the place has it.
    pub given: String,
    /// The pull policy that follows.
    pub pull_policy: Option<String>,
}

impl Source {
    /// A place that is no file: the command line, or containerd.
    fn bare(kind: Kind, given: String) -> Self {
        Self {
            kind,
            path: None,
            object: None,
            field: None,
            given,
            pull_policy: None,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [&self.path, &self.object, &self.field];
        let mut parts: Vec<&str> = parts.into_iter().flatten().map(String::as_str).collect();
        match self.kind {
            Kind::K0s => parts.insert(0, "k0s"),
            Kind::Sandbox => parts.insert(0, "containerd's sandbox image"),
            Kind::List if self.path.is_none() => parts.push("the command line"),
            Kind::Manifest | Kind::StaticPod | Kind::List => {}
        }
        f.write_str(&parts.join(": "))
    }
}

/// An image that the node will need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Need {
    /// The normalised reference, or the given text if it is no reference.
    pub reference: String,
    /// The places that need it.
    pub sources: Vec<Source>,
}

impl Need {
    /// Returns the reference as its first source has it.
    pub fn given(&self) -> &str {
        self.sources
            .first()
            .map_or(self.reference.as_str(), |source| source.given.as_str())
    }
}

/// All images that were gathered.
#[derive(Debug, Default)]
pub struct Needs {
    /// The places, in the order of the sources.
    found: Vec<Source>,
    /// The origin of k0s's list, if that list was requested.
    pub k0s: Option<K0sAnswer>,
    /// Remarks for the operator that stop nothing.
    pub notes: Vec<String>,
    /// The reasons why the list is not complete.
    pub mistakes: Vec<String>,
    reading: Reading,
}

impl Needs {
    /// Returns no needs yet. `reading` follows the sources.
    pub fn followed_by(reading: &Reading) -> Needs {
        Needs {
            reading: reading.clone(),
            ..Needs::default()
        }
    }

    /// Adds all sources except the answer of containerd itself. `platform` is the node's. `None` is
    /// this machine's.
    ///
    /// A list or a manifest without any image is a mistake: it may be a copy that was cut off. Many
    /// nodes have no static pods. So their folder may lack images if another source has some.
    pub async fn add(&mut self, sources: &Sources, platform: Option<&Platform>) {
        let typed = sources.references.iter();
        self.found
            .extend(typed.map(|reference| Source::bare(Kind::List, reference.clone())));
        for list in &sources.images {
            self.add_source(list, Needs::add_list);
        }
        if sources.k0s.is_given() {
            let files = [&sources.k0s.image_set, &sources.k0s.k0s_config];
            files
                .into_iter()
                .flatten()
                .for_each(|file| self.reading.begin(file));
            self.add_k0s(&sources.k0s, platform).await;
        }
        for path in &sources.manifests {
            self.add_source(path, |needs, path| needs.add_manifests(&[path], Kind::Manifest));
        }
        if let Some(folder) = &sources.static_pods {
            self.reading.begin(folder);
            self.add_manifests(&[folder], Kind::StaticPod);
            let is_empty = self.found.is_empty() && sources.sandbox_image.is_none();
            if is_empty && self.mistakes.is_empty() {
                self.mistakes.push(format!(
                    "{}: no static pod names an image, and no other source does: name a source with images",
                    folder.display()
                ));
            }
        }
        if let Some(image) = &sources.sandbox_image {
            self.add_sandbox(image.clone());
        }
    }

    /// Adds a source. If it can be read and names no image, that is a mistake.
    fn add_source(&mut self, path: &Path, add: impl FnOnce(&mut Needs, &Path)) {
        self.reading.begin(path);
        let before = (self.found.len(), self.mistakes.len());
        add(self, path);
        if before == (self.found.len(), self.mistakes.len()) {
            self.mistakes.push(format!(
                "{} names no image: copy it again if it was cut off, or leave this source out",
                files::name(path)
            ));
        }
    }

    /// Adds the images of manifests. For static pods, kubelet's own rules apply: every file of the
    /// folder itself whose name does not begin with a dot.
    pub fn add_manifests(&mut self, paths: &[impl AsRef<Path>], kind: Kind) {
        for path in paths {
            let texts = files::texts(path.as_ref(), kind == Kind::StaticPod, &mut self.mistakes);
            for text in texts {
                self.add_manifest(&text, kind);
            }
        }
    }

    fn add_manifest(&mut self, text: &Text, kind: Kind) {
        let found = manifests::read(&text.text, &Limits::default());
        let name = &text.name;
        self.mistakes
            .extend(found.problems.iter().map(|problem| format!("{name}: {problem}")));
        self.notes
            .extend(found.notes.iter().map(|note| format!("{name}: {note}")));
        if kind == Kind::StaticPod && found.objects == 0 && found.problems.is_empty() {
            self.notes.push(format!("{name}: there is no pod in it"));
        }
        self.found.extend(found.uses.into_iter().map(|found| Source {
            kind,
            path: Some(name.clone()),
            pull_policy: Some(found.effective_policy().to_owned()),
            object: Some(found.object),
            field: Some(found.field),
            given: found.reference,
        }));
    }

    /// Adds the references of a plain list.
    pub fn add_list(&mut self, path: &Path) {
        let text = match files::read(path) {
            Ok(text) => text,
            Err(mistake) => return self.mistakes.push(mistake),
        };
        self.found
            .extend(lists::parse(&text.text).into_iter().map(|entry| Source {
                kind: Kind::List,
                path: Some(text.name.clone()),
                object: None,
                field: Some(format!("line {}", entry.line)),
                given: entry.reference,
                pull_policy: None,
            }));
    }

    /// Adds the image with which containerd itself starts every pod.
    pub fn add_sandbox(&mut self, reference: String) {
        self.found.push(Source::bare(Kind::Sandbox, reference));
    }

    /// Returns the places and the images that they need, in the order of the sources.
    pub fn sources(&self) -> &[Source] {
        &self.found
    }

    /// Returns the references as they are in their sources, in the order of the sources.
    pub fn as_given(&self) -> Vec<Need> {
        let need = |source: &Source| Need {
            reference: source.given.clone(),
            sources: vec![source.clone()],
        };
        self.found.iter().map(need).collect()
    }

    /// Returns the references normalised and sorted, each once with all its sources.
    pub fn merged(&self) -> Vec<Need> {
        let mut by_reference: BTreeMap<String, Vec<Source>> = BTreeMap::new();
        for source in &self.found {
            by_reference
                .entry(normalised(&source.given))
                .or_default()
                .push(source.clone());
        }
        let need = |(reference, sources)| Need { reference, sources };
        by_reference.into_iter().map(need).collect()
    }
}

/// Returns the name that CRI would look for. A text that is no reference stays as it is.
fn normalised(given: &str) -> String {
    given
        .parse::<Reference>()
        .map_or_else(|_| given.to_owned(), |reference| reference.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const POD: &str =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{image: r.test/p:1}]}\n";

    /// Returns the mistakes in sources, without the name of their folder.
    async fn mistakes(folder: &Path, sources: &Sources) -> Vec<String> {
        let mut needs = Needs::default();
        needs.add(sources, None).await;
        let prefix = format!("{}/", folder.display());
        let mistakes = needs.mistakes.iter();
        mistakes.map(|mistake| mistake.replace(&prefix, "")).collect()
    }

    #[tokio::test]
    async fn a_source_without_an_image_is_a_mistake_beside_others_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for name in ["apps", "none/deep"] {
            fs::create_dir_all(at(name)).expect("a folder");
        }
        for (name, text) in [
            ("list.txt", "r.test/a:1"),
            ("empty.txt", ""),
            ("comments.txt", "# r.test/a:1\n"),
            ("apps/pod.yaml", POD),
            ("service.yaml", "apiVersion: v1\nkind: Service\n"),
            ("none/deep/values.yaml", "a: 1"),
        ] {
            fs::write(at(name), text).expect("a file");
        }
        let cut = |name: &str| {
            format!("{name} names no image: copy it again if it was cut off, or leave this source out")
        };
        let table: [(&[&str], &[&str], &[&str]); 6] = [
            (&["list.txt"], &["apps"], &[]),
            (&["empty.txt"], &[], &["empty.txt"]),
            (
                &["list.txt", "empty.txt", "comments.txt"],
                &[],
                &["empty.txt", "comments.txt"],
            ),
            (&["list.txt"], &["none"], &["none"]),
            (&[], &["apps", "service.yaml"], &["service.yaml"]),
            (&["empty.txt"], &["none", "apps"], &["empty.txt", "none"]),
        ];
        for (images, manifests, wanted) in table {
            let paths = |names: &[&str]| names.iter().map(|name| at(name)).collect();
            let sources = Sources {
                images: paths(images),
                manifests: paths(manifests),
                ..Sources::default()
            };
            let wanted: Vec<String> = wanted.iter().map(|name| cut(name)).collect();
            assert_eq!(
                mistakes(folder.path(), &sources).await,
                wanted,
                "{images:?} {manifests:?}"
            );
        }
        // The reason why a source cannot be read is enough.
        let sources = Sources {
            images: vec![at("absent.txt")],
            ..Sources::default()
        };
        let [mistake] = &mistakes(folder.path(), &sources).await[..] else {
            panic!("not one mistake")
        };
        assert!(mistake.starts_with("cannot read absent.txt"), "{mistake}");
    }

    #[tokio::test]
    async fn a_folder_of_static_pods_may_be_empty_if_another_source_has_images() {
        let folder = tempfile::tempdir().expect("a folder");
        let list = folder.path().join("list.txt");
        fs::write(&list, "r.test/a:1").expect("a file");
        let pods = folder.path().join("pods");
        fs::create_dir(&pods).expect("a folder");
        let alone = Sources {
            static_pods: Some(pods.clone()),
            ..Sources::default()
        };
        let with_list = Sources {
            images: vec![list],
            ..alone.clone()
        };
        let with_sandbox = Sources {
            sandbox_image: Some("r.test/pause:1".to_owned()),
            ..alone.clone()
        };
        let text = "pods: no static pod names an image, and no other source does: name a source with images";
        assert_eq!(mistakes(folder.path(), &alone).await, [text]);
        for sources in [with_list, with_sandbox] {
            assert_eq!(mistakes(folder.path(), &sources).await, Vec::<String>::new());
        }
        fs::write(pods.join("p"), POD).expect("a file");
        assert_eq!(mistakes(folder.path(), &alone).await, Vec::<String>::new());
    }
}
