//! Another importer for tests: containerd's Go import as k0s and k3s call it, over gRPC.
//!
//! It behaves as that import does, according to its source and to observations:
//!
//! 1. Every file of the archive becomes a blob under the digest of its bytes. The files come in the
//!    order of the archive and for all platforms. The ingest is named after the path
//!    (`tar-blobs/sha256/…`) and gives the size but not the digest. So files that are already
//!    present are never skipped.
//! 2. The importer walks the index for this node's platform. Parents get their gc labels, and
//!    missing documents are skipped.
//! 3. The names of the index become records. Their target is updated, or they are created without
//!    labels.
//! 4. The caller's labels are set last, outside the lease.
//!
//! The archive must be an OCI image layout.
//!
//! The stand-in does not report violations of this importer. A header on each call identifies it.

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

/// The label in which k0s keeps the bundles of a record: a JSON object of paths and modification
/// times.
pub const K0S_SOURCES: &str = "io.k0sproject.ocibundle-paths";
/// The label that k3s sets on the records that it pinned.
pub const K3S_PINNED: &str = "io.cattle.k3s.pinned";
/// CRI's pin.
const PINNED: &str = "io.cri-containerd.pinned";

/// Prefix of the ids of its leases. The original's ids are random.
const LEASE: &str = "go-importer-";

/// The next action of the importer. The gate receives it before the action, and can delay or kill
/// the importer there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is about to send a piece of a file of the archive.
    Piece {
        /// Path of the file in the archive.
        path: String,
        /// Bytes of the file that have been sent.
        offset: u64,
    },
    /// It is about to commit a file.
    Commit {
        /// Path of the file in the archive.
        path: String,
    },
    /// It is about to write an image record.
    Record {
        /// Name of the record.
        name: String,
    },
    /// It is about to label an image record.
    Label {
        /// Name of the record.
        name: String,
    },
}

/// The reason why an import failed.
#[derive(Debug)]
pub enum ImportFailed {
    /// The gate killed it. Its lease, its ingests and its work so far stay behind.
    Died,
    /// The archive is unusable, or containerd returned an error. The lease was released.
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

/// An importer for one namespace of a containerd. It has no state of its own.
#[derive(Clone, Debug)]
pub struct GoImporter {
    calls: Calls,
}

impl GoImporter {
    /// Connects.
    ///
    /// # Panics
    /// Panics if no process listens on the socket.
    pub async fn connect(socket: &Path, namespace: &str) -> GoImporter {
        GoImporter {
            calls: Calls::connect(socket, namespace).await,
        }
    }

    /// Imports a bundle like k0s, and labels its records with the bundle's path and modification
    /// time.
    ///
    /// # Errors
    /// Returns the errors of the original, and [`ImportFailed::Died`] if `gate` breaks.
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

    /// Does what k0s does after each scan of its folder. A record loses its pin and sources if all
    /// its bundles have changed or are gone. That update has no mask, so it replaces the whole
    /// record by the listed version. Other records lose only their stale sources.
    ///
    /// `gate` is called between the listing and each such record.
    ///
    /// # Errors
    /// Returns the errors of the original, and [`ImportFailed::Died`] if `gate` breaks.
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

    /// Does what k3s does first when it starts. Every record that k3s pinned loses its pin and
    /// k3s's label, even if another importer needs it.
    ///
    /// # Errors
    /// Returns the errors of containerd.
    pub async fn clear_as_k3s(&self) -> Result<(), ImportFailed> {
        for mut image in self.calls.images().await? {
            if image.labels.remove(K3S_PINNED).is_some() {
                image.labels.remove(PINNED);
                self.calls.update(image, &["labels".to_owned()]).await?;
            }
        }
        Ok(())
    }

    /// Imports a bundle like k3s. It sets labels as a whole map. It deletes an existing
    /// `name@digest` and creates it again.
    ///
    /// # Errors
    /// Returns the errors of the original, and [`ImportFailed::Died`] if `gate` breaks.
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

    /// Removes the leases that dead importers have left, and with them their ingests.
    ///
    /// # Errors
    /// Returns the errors of containerd.
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

/// Returns the bundles that exist with these modification times.
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
            let time = Timestamp::try_from(*time).expect("a modification time fits");
            // In the node's time zone, as Go writes it.
            (path, time.display_with_offset(jiff::tz::offset(3)).to_string())
        })
        .collect();
    serde_json::to_string(&sources).expect("paths are text")
}
