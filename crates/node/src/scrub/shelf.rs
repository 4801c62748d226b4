//! The bundles on this disk, as sources of right bytes. Receipts are among them: they have
//! documents, and no layers.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use basics::{chain, foreign};
use bundle::{Blob, Bundle, Limits};
use import::Pace;
use import::scrub::prove;
use oci_spec::image::Digest;

use super::pass::Needed;
use crate::images::folder;
use crate::state::ledger::{Ledger, label_name};

/// The bundles of the ledger. Each is opened when a blob is wrong, and stays open.
pub(super) struct Shelf {
    /// The first images folder. The names of bundles in other folders are whole paths.
    images_dir: PathBuf,
    limits: Limits,
    /// Names in the ledger, the bundle that is preferred for an image first.
    names: Vec<OsString>,
    opened: HashMap<OsString, Result<Arc<Bundle>, String>>,
}

/// Right bytes for a blob.
pub(super) struct Found {
    /// Name of the bundle.
    pub(super) bundle: String,
    pub(super) blob: Blob,
}

/// A bundle that should have a blob and does not help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lack {
    /// The reason.
    pub(super) reason: String,
    /// Name of the bundle to bring: this one again, the base that a delta relies on, or the bundle
    /// that a receipt stands for.
    pub(super) bring: String,
}

impl Shelf {
    pub(super) fn of(ledger: &Ledger, images_dir: &Path, limits: &Limits) -> Shelf {
        let vouching = ledger.entries().into_iter().rev();
        let vouching = vouching.filter(|entry| entry.is_vouching());
        Shelf {
            images_dir: images_dir.to_owned(),
            limits: limits.clone(),
            names: vouching.map(|entry| entry.file.clone()).collect(),
            opened: HashMap::new(),
        }
    }

    /// Finds a bundle with the right bytes of a blob, and hashes these. Bundles that vouch for the
    /// blob come first. A delta lacks blobs, which another bundle may have.
    ///
    /// # Errors
    ///
    /// Returns the bundles that should have the blob, each with the reason.
    pub(super) async fn find(&mut self, needed: &Needed, pace: &Arc<Pace>) -> Result<Found, Vec<Lack>> {
        let mut names = self.names.clone();
        names.sort_by_key(|name| !needed.bundles.contains(name));
        let mut lacks = Vec::new();
        for name in names {
            let shown = label_name(&name);
            let proof = match self.blob(&name, needed).await {
                Ok(blob) => {
                    let proof = proven(blob.clone(), needed.digest.clone(), Arc::clone(pace)).await;
                    proof.map(|()| blob)
                }
                Err(lack) if needed.bundles.contains(&name) => {
                    lacks.push(lack);
                    continue;
                }
                Err(_) => continue,
            };
            match proof {
                Ok(blob) => return Ok(Found { bundle: shown, blob }),
                Err(error) => lacks.push(Lack {
                    reason: format!("the copy in {shown} is wrong, too: {error}"),
                    bring: shown,
                }),
            }
        }
        Err(lacks)
    }

    /// Returns `None` if a bundle has a blob, which is not read. Otherwise returns the bundles that
    /// should have it, each with the reason.
    pub(super) async fn lacks(&mut self, needed: &Needed) -> Option<Vec<Lack>> {
        let mut names = self.names.clone();
        names.sort_by_key(|name| !needed.bundles.contains(name));
        let mut lacks = Vec::new();
        for name in names {
            match self.blob(&name, needed).await {
                Ok(_) => return None,
                Err(lack) if needed.bundles.contains(&name) => lacks.push(lack),
                Err(_) => {}
            }
        }
        Some(lacks)
    }

    /// Returns a blob of a bundle.
    async fn blob(&mut self, name: &OsStr, needed: &Needed) -> Result<Blob, Lack> {
        let shown = label_name(name);
        match self.open(name).await {
            Ok(bundle) => in_bundle(&bundle, &shown, needed),
            Err(reason) => Err(Lack { reason, bring: shown }),
        }
    }

    async fn open(&mut self, name: &OsStr) -> Result<Arc<Bundle>, String> {
        if let Some(opened) = self.opened.get(name) {
            return opened.clone();
        }
        let (path, limits) = (self.images_dir.join(name), self.limits.clone());
        let opened = aside(move || read(&path, &limits)).await.map(Arc::new);
        self.opened.insert(name.to_owned(), opened.clone());
        opened
    }
}

/// Returns a blob of a bundle. A delta leaves blobs to its base, and a receipt all layers to
/// containerd.
fn in_bundle(bundle: &Bundle, shown: &str, needed: &Needed) -> Result<Blob, Lack> {
    let (base, receipt) = (&bundle.catalog().relies_on, bundle.catalog().receipt());
    bundle.blob(&needed.digest).ok_or_else(|| match (receipt, base) {
        (Some(receipt), _) => Lack {
            reason: format!("{shown} is a receipt, which has no layers"),
            bring: format!(
                "{} (content {})",
                foreign::shown(&receipt.bundle),
                receipt.catalog
            ),
        },
        (None, Some(reliance)) => Lack {
            reason: format!("{shown} leaves the blob to {}", foreign::shown(&reliance.base)),
            bring: foreign::shown(&reliance.base),
        },
        (None, None) => Lack {
            reason: format!("{shown} lacks the blob"),
            bring: shown.to_owned(),
        },
    })
}

fn read(path: &Path, limits: &Limits) -> Result<Bundle, String> {
    let file = folder::open_path(path).map_err(|error| format!("cannot open {}: {error}", path.display()))?;
    let is_folder = file.metadata().is_ok_and(|metadata| metadata.is_dir());
    let bundle = match is_folder {
        true => Bundle::from_dir(file, path, limits),
        false => Bundle::from_file(file, path, limits),
    };
    bundle.map_err(|error| chain(&error))
}

async fn proven(blob: Blob, digest: Digest, pace: Arc<Pace>) -> Result<(), String> {
    aside(move || prove(&blob, &digest, &pace)).await
}

/// Runs work that blocks.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work)
        .await
        .expect("reading a bundle never panics")
}
