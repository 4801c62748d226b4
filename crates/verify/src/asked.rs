//! What a cluster will ask this node for, gathered from everything the operator points at.
//!
//! The files are read here and the program of k0s is started here; what is in them is the business
//! of the crate `requirements`. Whoever asks gets all of it or every mistake at once: a list that
//! is short of the images of one unreadable manifest would be worse than none.

mod files;
mod k0s;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use import::Reference;
use platforms::Platform;
use requirements::{Limits, lists, manifests};
use serde::Serialize;

use files::Text;
pub use files::read as read_text;
pub use k0s::{K0sAnswer, K0sQuestion};

/// Everything the operator can point at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sources {
    /// References on the command line.
    pub references: Vec<String>,
    /// Lists of references.
    pub images: Vec<PathBuf>,
    /// What k0s will ask for.
    pub k0s: K0sQuestion,
    /// Kubernetes manifests, and folders of them.
    pub manifests: Vec<PathBuf>,
    /// kubelet's folder.
    pub static_pods: Option<PathBuf>,
    /// What containerd starts every pod with, where it does not tell.
    pub sandbox_image: Option<String>,
}

impl Sources {
    /// Whether nothing was pointed at.
    pub fn is_empty(&self) -> bool {
        self.references.is_empty()
            && self.images.is_empty()
            && !self.k0s.is_given()
            && self.manifests.is_empty()
            && self.static_pods.is_none()
            && self.sandbox_image.is_none()
    }
}

/// The kinds of places an image can be asked for.
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

/// One place that asks for an image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Source {
    /// The kind of place.
    pub kind: Kind,
    /// The file, where there is one.
    pub path: Option<String>,
    /// The Kubernetes object.
    pub object: Option<String>,
    /// The field that has the reference.
    pub field: Option<String>,
    /// The reference as it stands there.
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

/// An image that will be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Need {
    /// The normalised reference, or what stands in its place where it is none.
    pub reference: String,
    /// Who asks for it.
    pub sources: Vec<Source>,
}

impl Need {
    /// The reference as it was first written where it is asked for.
    pub fn given(&self) -> &str {
        self.sources
            .first()
            .map_or(self.reference.as_str(), |source| source.given.as_str())
    }
}

/// Everything that was gathered.
#[derive(Debug, Default)]
pub struct Needs {
    /// In the order of the sources.
    found: Vec<Source>,
    /// Where the list of k0s comes from, if it was asked for.
    pub k0s: Option<K0sAnswer>,
    /// What the operator should hear, although it stops nothing.
    pub notes: Vec<String>,
    /// Why the list is not whole.
    pub mistakes: Vec<String>,
}

impl Needs {
    /// Adds everything but what containerd itself is to be asked. `platform` is that of the node;
    /// `None` is this machine's.
    pub async fn add(&mut self, sources: &Sources, platform: Option<&Platform>) {
        let typed = sources.references.iter();
        self.found
            .extend(typed.map(|reference| Source::bare(Kind::List, reference.clone())));
        for list in &sources.images {
            self.add_list(list);
        }
        if sources.k0s.is_given() {
            self.add_k0s(&sources.k0s, platform).await;
        }
        self.add_manifests(&sources.manifests, Kind::Manifest);
        self.add_manifests(sources.static_pods.as_slice(), Kind::StaticPod);
        if let Some(image) = &sources.sandbox_image {
            self.add_sandbox(image.clone());
        }
    }

    /// Adds the images of manifests. For static pods kubelet's own rules hold: every file of the
    /// folder itself that does not begin with a dot.
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
            .extend(lists::parse(&text.text).into_iter().map(|line| Source {
                kind: Kind::List,
                path: Some(text.name.clone()),
                object: None,
                field: Some(format!("line {}", line.number)),
                given: line.reference,
                pull_policy: None,
            }));
    }

    /// Adds what containerd itself starts every pod with.
    pub fn add_sandbox(&mut self, reference: String) {
        self.found.push(Source::bare(Kind::Sandbox, reference));
    }

    /// Who asks for what, in the order of the sources.
    pub fn sources(&self) -> &[Source] {
        &self.found
    }

    /// The references as they stand there, in the order of the sources.
    pub fn as_given(&self) -> Vec<Need> {
        let need = |source: &Source| Need {
            reference: source.given.clone(),
            sources: vec![source.clone()],
        };
        self.found.iter().map(need).collect()
    }

    /// The references normalised, sorted, each once with everybody who asks for it.
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

/// The name that CRI would look for; what is no reference stays as it is.
fn normalised(given: &str) -> String {
    given
        .parse::<Reference>()
        .map_or_else(|_| given.to_owned(), |reference| reference.to_string())
}
