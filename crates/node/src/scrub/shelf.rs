//! The bundles on this disk, as sources of right bytes. Receipts are among them: they have
//! documents, and no layers.

use std::collections::{BTreeMap, HashMap, VecDeque};
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

/// Most bundles that stay open. An open bundle has its documents in memory.
const MOST_OPEN: usize = 4;

/// The bundles of the ledger. Each is opened when a blob is wrong or missing.
pub(super) struct Shelf {
    /// The first images folder. The names of bundles in other folders are whole paths.
    images_dir: PathBuf,
    limits: Limits,
    /// Names in the ledger, the bundle that is preferred for an image first.
    names: Vec<OsString>,
    /// The blobs that bundles vouch for, sorted.
    blobs: Arc<[Digest]>,
    /// The bundles that were opened, as they were then, or why they cannot be.
    known: HashMap<OsString, Result<Contents, String>>,
    /// The bundles that are open. The bundle that was used last is at the end.
    open: VecDeque<(OsString, Arc<Bundle>)>,
}

/// The part of a bundle that decides if it has a blob.
struct Contents {
    /// The blobs that it has, as places in [`Shelf::blobs`], in ascending order.
    has: Vec<u32>,
    leaves_to: LeavesTo,
}

/// The bundles that have the blobs which a bundle lacks.
#[derive(Clone, Debug)]
enum LeavesTo {
    /// It should have all its blobs.
    Nothing,
    /// It is a delta on this base.
    Base(String),
    /// It is a receipt of this bundle, with its content digest.
    BundleOfReceipt(String),
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
    /// Returns the bundles of a ledger. `needed` are the blobs that they vouch for.
    pub(super) fn of(
        ledger: &Ledger,
        needed: &BTreeMap<String, Needed>,
        images_dir: &Path,
        limits: &Limits,
    ) -> Shelf {
        let vouching = ledger.entries().into_iter().rev();
        let vouching = vouching.filter(|entry| entry.is_vouching());
        Shelf {
            images_dir: images_dir.to_owned(),
            limits: limits.clone(),
            names: vouching.map(|entry| entry.file.clone()).collect(),
            blobs: needed.values().map(|blob| blob.digest.clone()).collect(),
            known: HashMap::new(),
            open: VecDeque::new(),
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
            match self.lack(&name, needed).await {
                None => return None,
                Some(lack) if needed.bundles.contains(&name) => lacks.push(lack),
                Some(_) => {}
            }
        }
        Some(lacks)
    }

    /// Returns a blob of a bundle.
    async fn blob(&mut self, name: &OsStr, needed: &Needed) -> Result<Blob, Lack> {
        if let Some(lack) = self.lack(name, needed).await {
            return Err(lack);
        }
        let bring = label_name(name);
        let lack = |reason| Lack {
            reason,
            bring: bring.clone(),
        };
        let bundle = self.open(name).await.map_err(lack)?;
        // Another bundle may have its name by now.
        bundle
            .blob(&needed.digest)
            .ok_or_else(|| lack(format!("{bring} lacks the blob")))
    }

    /// Returns why a bundle does not have a blob. Returns `None` if it has the blob.
    async fn lack(&mut self, name: &OsStr, needed: &Needed) -> Option<Lack> {
        let shown = label_name(name);
        if !self.known.contains_key(name) {
            let known = match self.open(name).await {
                Ok(bundle) => Ok(Contents::of(bundle, Arc::clone(&self.blobs)).await),
                Err(reason) => Err(reason),
            };
            self.known.insert(name.to_owned(), known);
        }
        let place = self
            .blobs
            .binary_search_by(|blob| blob.as_ref().cmp(needed.digest.as_ref()));
        match &self.known[name] {
            Ok(contents) if place.is_ok_and(|at| contents.has_at(at)) => None,
            Ok(contents) => Some(contents.leaves_to.lack(&shown)),
            Err(reason) => Some(Lack {
                reason: reason.clone(),
                bring: shown,
            }),
        }
    }

    async fn open(&mut self, name: &OsStr) -> Result<Arc<Bundle>, String> {
        let at = self.open.iter().position(|(open, _)| open == name);
        let bundle = match at.and_then(|at| self.open.remove(at)) {
            Some((_, bundle)) => bundle,
            None => {
                let (path, limits) = (self.images_dir.join(name), self.limits.clone());
                if self.open.len() == MOST_OPEN {
                    self.open.pop_front();
                }
                Arc::new(aside(move || read(&path, &limits)).await?)
            }
        };
        self.open.push_back((name.to_owned(), Arc::clone(&bundle)));
        Ok(bundle)
    }
}

impl Contents {
    /// Finds out which of these blobs a bundle has.
    async fn of(bundle: Arc<Bundle>, blobs: Arc<[Digest]>) -> Contents {
        aside(move || {
            let places = (0_u32..).zip(blobs.iter());
            let has = places.filter(|(_, blob)| bundle.blob(blob).is_some());
            Contents {
                has: has.map(|(at, _)| at).collect(),
                leaves_to: LeavesTo::of(&bundle),
            }
        })
        .await
    }

    fn has_at(&self, place: usize) -> bool {
        u32::try_from(place).is_ok_and(|place| self.has.binary_search(&place).is_ok())
    }
}

impl LeavesTo {
    fn of(bundle: &Bundle) -> LeavesTo {
        let catalog = bundle.catalog();
        match (catalog.receipt(), &catalog.relies_on) {
            (Some(receipt), _) => LeavesTo::BundleOfReceipt(format!(
                "{} (content {})",
                foreign::shown(&receipt.bundle),
                receipt.catalog
            )),
            (None, Some(reliance)) => LeavesTo::Base(foreign::shown(&reliance.base)),
            (None, None) => LeavesTo::Nothing,
        }
    }

    /// Returns the lack of a blob in the bundle with this name.
    fn lack(&self, shown: &str) -> Lack {
        let (reason, bring) = match self {
            LeavesTo::Nothing => (format!("{shown} lacks the blob"), shown),
            LeavesTo::Base(base) => (format!("{shown} leaves the blob to {base}"), base.as_str()),
            LeavesTo::BundleOfReceipt(bundle) => (
                format!("{shown} is a receipt, which has no layers"),
                bundle.as_str(),
            ),
        };
        Lack {
            reason,
            bring: bring.to_owned(),
        }
    }
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

#[cfg(test)]
mod tests {
    use bundle::fixtures::{Archive, Image, Layout};
    use jiff::Timestamp;

    use super::super::pass;
    use super::*;
    use crate::state::ledger::{Carried, ImageEntry, Imported, Outcome};

    /// Notes in a ledger that a bundle has brought its only image, which also needs `more`.
    fn import(
        ledger: &mut Ledger,
        file: &str,
        archive: &Archive,
        identity: &bundle::Identity,
        more: &[Digest],
    ) {
        let image = &archive.images[0];
        let manifest = &image.manifests[0];
        let needed = [&image.root, &manifest.config].into_iter();
        let needed = needed.chain(&manifest.layers).chain(more).cloned();
        let imported = Imported {
            identity: identity.clone(),
            sidecar: None,
            catalog: image.root.clone(),
            images: vec![ImageEntry {
                name: file.to_owned(),
                target: image.root.clone(),
            }],
            at: Timestamp::UNIX_EPOCH,
            duration_ms: 0,
            sent_bytes: 0,
            signers: Vec::new(),
            withheld: Vec::new(),
            is_delta: false,
            release: Carried::default(),
        };
        let closure = (image.root.clone(), needed.collect());
        ledger.record_import(OsStr::new(file), Outcome::Imported, imported, [closure]);
    }

    #[test]
    fn few_bundles_stay_open_and_each_blob_is_found_in_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::default();
        let lost = basics::digest::sha256(b"in no bundle");
        let mut layers = Vec::new();
        for number in 0..20 {
            let (file, layer) = (format!("{number}.tar"), format!("layer {number}"));
            let image = Image::new(&format!("registry.test/app:{number}")).layer(layer.as_bytes());
            let archive = Layout::new().image(image).build();
            let path = folder.path().join(&file);
            std::fs::write(&path, archive.to_bytes()).unwrap();
            let opened = Bundle::open(&path, &Limits::default()).unwrap();
            let more = if number == 0 {
                std::slice::from_ref(&lost)
            } else {
                &[]
            };
            import(&mut ledger, &file, &archive, opened.identity(), more);
            layers.push(archive.images[0].manifests[0].layers[0].clone());
        }
        let needed = pass::needed(&ledger);
        let mut shelf = Shelf::of(&ledger, &needed, folder.path(), &Limits::default());
        let pace = Arc::new(Pace::new(None));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let lacks = shelf.lacks(&needed[lost.as_ref()]).await.unwrap();
            let lack = Lack {
                reason: "0.tar lacks the blob".to_owned(),
                bring: "0.tar".to_owned(),
            };
            assert_eq!(lacks, [lack]);
            assert_eq!((shelf.known.len(), shelf.open.len()), (20, MOST_OPEN));
            for (number, layer) in layers.iter().enumerate() {
                let blob = &needed[layer.as_ref()];
                assert!(shelf.lacks(blob).await.is_none());
                let Ok(found) = shelf.find(blob, &pace).await else {
                    panic!("{number}.tar has its layer")
                };
                assert_eq!(found.bundle, format!("{number}.tar"));
                assert_eq!(shelf.open.len(), MOST_OPEN);
            }
            std::fs::remove_file(folder.path().join("0.tar")).unwrap();
            let gone = shelf.find(&needed[layers[0].as_ref()], &pace).await;
            let reason = gone.err().map(|lacks| lacks[0].reason.clone());
            assert!(reason.is_some_and(|reason| reason.starts_with("cannot open")));
        });
    }
}
