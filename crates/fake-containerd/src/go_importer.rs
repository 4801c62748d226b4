//! Another importer beside ours, for tests: containerd's Go import as k0s and k3s call it, spoken
//! over gRPC.
//!
//! It does what that import was seen and read to do, with all its habits. Every file of the archive
//! becomes a blob under what its bytes hash to, in the order of the archive, for whatever platform,
//! through an ingest that is called after the path (`tar-blobs/sha256/…`) and says its size but not
//! its digest, so nothing that is there is ever skipped. Then the index is walked for this node's
//! platform: parents get their gc labels, what is missing is passed over. Then the names of the
//! index become records (their target updated, or created without labels), and only then, outside
//! the lease, the caller's labels are set. Archives of OCI image layouts only.
//!
//! The stand-in does not judge its manners: a header on each call tells it whose they are.

mod calls;
mod import;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;
use tonic::Status;

use self::calls::{Calls, label_path};
use crate::wire;

/// The label in which k0s keeps the bundles of a record: a JSON object of paths and their times of
/// change.
pub const K0S_SOURCES: &str = "io.k0sproject.ocibundle-paths";
/// The label by which k3s knows the records that it pinned.
pub const K3S_PINNED: &str = "io.cattle.k3s.pinned";
/// CRI's pin.
const PINNED: &str = "io.cri-containerd.pinned";

/// The beginning of the ids of its leases. Those of the original are random.
const LEASE: &str = "go-importer-";

/// Where the importer is, just before it does something. Whoever is asked may keep it waiting, or
/// let it die there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is about to send a piece of a file of the archive.
    Piece {
        /// The file, by its path in the archive.
        path: String,
        /// Bytes of it that are sent.
        offset: u64,
    },
    /// It is about to commit a file.
    Commit {
        /// The file, by its path in the archive.
        path: String,
    },
    /// It is about to write an image record.
    Record {
        /// The record's name.
        name: String,
    },
    /// It is about to label an image record.
    Label {
        /// The record's name.
        name: String,
    },
}

/// Why an import came to nothing.
#[derive(Debug)]
pub enum ImportFailed {
    /// It was let die: its lease, its ingests and what it did so far stay behind.
    Died,
    /// The archive or containerd was not to its liking; its lease was given back.
    Refused(String),
}

impl From<Status> for ImportFailed {
    fn from(status: Status) -> Self {
        ImportFailed::Refused(status.to_string())
    }
}

impl From<std::io::Error> for ImportFailed {
    fn from(error: std::io::Error) -> Self {
        ImportFailed::Refused(error.to_string())
    }
}

fn refused(why: impl Into<String>) -> ImportFailed {
    ImportFailed::Refused(why.into())
}

/// An importer, bound to one namespace of a containerd. It remembers nothing but what is in
/// containerd.
#[derive(Clone, Debug)]
pub struct GoImporter {
    calls: Calls,
}

impl GoImporter {
    /// Connects.
    ///
    /// # Panics
    /// If nobody listens on the socket.
    pub async fn connect(socket: &Path, namespace: &str) -> GoImporter {
        GoImporter {
            calls: Calls::connect(socket, namespace).await,
        }
    }

    /// Imports a bundle as k0s does, and labels its records with the bundle's path and time of
    /// change.
    ///
    /// # Errors
    /// As the original; and [`ImportFailed::Died`] where `gate` breaks.
    pub async fn import_as_k0s(
        &self,
        bundle: &Path,
        mut gate: impl AsyncFnMut(Step) -> ControlFlow<()>,
    ) -> Result<Vec<String>, ImportFailed> {
        let changed = fs::metadata(bundle)?.modified()?;
        let images = import::import(&self.calls, bundle, &mut gate).await?;
        for image in &images {
            pass(
                &mut gate,
                Step::Label {
                    name: image.name.clone(),
                },
            )
            .await?;
            let mut sources = present(sources(&image.labels));
            sources.insert(bundle.to_owned(), changed);
            let labels = [(PINNED, "pinned".to_owned()), (K0S_SOURCES, json(&sources))];
            self.calls
                .update(relabelled(image, labels), &[PINNED, K0S_SOURCES].map(label_path))
                .await?;
        }
        Ok(images.into_iter().map(|image| image.name).collect())
    }

    /// What k0s does after each look into its folder: records none of whose bundles is as it was
    /// lose pin and sources, in an update without a mask that replaces the whole record by what was
    /// listed; of the others the stale sources go.
    ///
    /// `gate` is asked between the listing and each such record.
    ///
    /// # Errors
    /// As the original; and [`ImportFailed::Died`] where `gate` breaks.
    pub async fn unpin_as_k0s(
        &self,
        mut gate: impl AsyncFnMut(Step) -> ControlFlow<()>,
    ) -> Result<(), ImportFailed> {
        for mut image in self.calls.images().await? {
            let sources = sources(&image.labels);
            if image.labels.get(PINNED).is_none_or(|value| value != "pinned") || sources.is_empty() {
                continue;
            }
            pass(
                &mut gate,
                Step::Label {
                    name: image.name.clone(),
                },
            )
            .await?;
            let left = present(sources);
            if left.is_empty() {
                image.labels.remove(PINNED);
                image.labels.remove(K0S_SOURCES);
                self.calls.update(image, &[]).await?;
            } else {
                let labels = [(K0S_SOURCES, json(&left))];
                self.calls
                    .update(relabelled(&image, labels), &[label_path(K0S_SOURCES)])
                    .await?;
            }
        }
        Ok(())
    }

    /// What k3s does first at its start: every record that it pinned loses its pin and k3s's mark,
    /// whoever else wants it.
    ///
    /// # Errors
    /// What containerd says.
    pub async fn clear_as_k3s(&self) -> Result<(), ImportFailed> {
        for mut image in self.calls.images().await? {
            if image.labels.remove(K3S_PINNED).is_some() {
                image.labels.remove(PINNED);
                self.calls.update(image, &["labels".to_owned()]).await?;
            }
        }
        Ok(())
    }

    /// Imports a bundle as k3s does: labels as a whole map, and a `name@digest` that is deleted and
    /// made anew where it exists.
    ///
    /// # Errors
    /// As the original; and [`ImportFailed::Died`] where `gate` breaks.
    pub async fn import_as_k3s(
        &self,
        bundle: &Path,
        mut gate: impl AsyncFnMut(Step) -> ControlFlow<()>,
    ) -> Result<Vec<String>, ImportFailed> {
        let images = import::import(&self.calls, bundle, &mut gate).await?;
        for image in &images {
            pass(
                &mut gate,
                Step::Label {
                    name: image.name.clone(),
                },
            )
            .await?;
            let pins = [(PINNED, "pinned".to_owned()), (K3S_PINNED, "pinned".to_owned())];
            let pinned = relabelled(image, pins);
            self.calls.update(pinned.clone(), &["labels".to_owned()]).await?;
            let repository = image.name.rsplit_once(':').map_or(&*image.name, |(name, _)| name);
            let digest = &target(image)?.digest;
            let by_digest = wire::Image {
                name: format!("{repository}@{digest}"),
                ..pinned
            };
            if self.calls.create(by_digest.clone()).await?.is_none() {
                self.calls.delete(&by_digest.name).await?;
                self.calls.create(by_digest).await?;
            }
        }
        Ok(images.into_iter().map(|image| image.name).collect())
    }

    /// Takes away what importers that died have left: their leases, and with them their ingests.
    ///
    /// # Errors
    /// What containerd says.
    pub async fn clear_up(&self) -> Result<(), ImportFailed> {
        let leases = self.calls.all_leases().await?;
        for lease in leases.into_iter().filter(|lease| lease.id.starts_with(LEASE)) {
            self.calls.give_back(&lease.id).await?;
        }
        Ok(())
    }
}

async fn pass(gate: &mut impl AsyncFnMut(Step) -> ControlFlow<()>, step: Step) -> Result<(), ImportFailed> {
    match gate(step).await {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ImportFailed::Died),
    }
}

fn target(image: &wire::Image) -> Result<&wire::Descriptor, ImportFailed> {
    image
        .target
        .as_ref()
        .ok_or_else(|| refused("a record without a target"))
}

fn relabelled<'l>(image: &wire::Image, labels: impl IntoIterator<Item = (&'l str, String)>) -> wire::Image {
    let mut image = image.clone();
    image
        .labels
        .extend(labels.into_iter().map(|(key, value)| (key.to_owned(), value)));
    image
}

fn sources(labels: &HashMap<String, String>) -> BTreeMap<PathBuf, SystemTime> {
    let Some(text) = labels.get(K0S_SOURCES) else {
        return BTreeMap::new();
    };
    let found: BTreeMap<PathBuf, Timestamp> = serde_json::from_str(text).expect("what k0s wrote");
    found
        .into_iter()
        .map(|(path, time)| (path, time.into()))
        .collect()
}

/// The bundles that are there, changed when they were.
fn present(mut sources: BTreeMap<PathBuf, SystemTime>) -> BTreeMap<PathBuf, SystemTime> {
    sources.retain(|path, time| {
        fs::metadata(path)
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|found| found == *time)
    });
    sources
}

fn json(sources: &BTreeMap<PathBuf, SystemTime>) -> String {
    let sources: BTreeMap<&PathBuf, String> = sources
        .iter()
        .map(|(path, time)| {
            let time = Timestamp::try_from(*time).expect("a time of our days");
            // In the node's zone, as Go writes it.
            (path, time.display_with_offset(jiff::tz::offset(3)).to_string())
        })
        .collect();
    serde_json::to_string(&sources).expect("paths are text")
}
