//! The receipts of a node, for `airgapd release`: their files, their leases, and the labels with
//! their paths. Each of them may be there without the others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use basics::digest;
use bundle::Limits;
use containerd::Client;
use import::labels::{LEASE_MARK, LEASE_OF_RECEIPT};
use import::lease;
use node::place::Place;
use node::receipts;
use node::state::ledger::label_name;
use serde::Serialize;

use super::path_of;

/// A receipt, and all that it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Held {
    /// Its path, in the form that labels have.
    pub(super) receipt: String,
    /// True if it has a file.
    pub(super) file: bool,
    /// The ids of its leases.
    pub(super) leases: BTreeSet<String>,
    #[serde(skip)]
    path: PathBuf,
}

impl Held {
    fn at(path: PathBuf) -> Held {
        Held {
            receipt: label_name(path.as_os_str()),
            file: false,
            leases: BTreeSet::new(),
            path,
        }
    }

    /// Returns true if the receipt has a file.
    ///
    /// # Errors
    ///
    /// Returns an error if the folder does not tell.
    pub(super) fn is_there(&self) -> io::Result<bool> {
        match self.path.symlink_metadata() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// All receipts of a node.
#[derive(Debug)]
pub(super) struct Receipts {
    folder: PathBuf,
    /// The receipts by their paths in the form that labels have.
    all: BTreeMap<String, Held>,
}

impl Receipts {
    /// Finds the receipts by their files, by their leases, and among the files that labels name.
    /// Takes one `Leases.List` with a filter.
    ///
    /// # Errors
    ///
    /// Returns the client's error. A folder that cannot be read is none, since leases and labels
    /// tell which receipts it may have.
    pub(super) async fn find(
        client: &Client,
        node: &Place,
        labels: &BTreeSet<String>,
    ) -> Result<Receipts, containerd::Error> {
        let mut found = Receipts {
            folder: node.receipts.clone(),
            all: BTreeMap::new(),
        };
        for path in receipts::all_in(&node.receipts).unwrap_or_default() {
            found.at(path).file = true;
        }
        for name in labels.iter().filter(|name| node.is_receipt(name.as_ref())) {
            found.at(PathBuf::from(name));
        }
        for lease in client.leases_beginning(lease::RECEIPT_PREFIX).await? {
            let mark = lease.labels.get(LEASE_MARK).map_or("", String::as_str);
            if let Some(path) = mark.strip_prefix(LEASE_OF_RECEIPT) {
                let held = found.at(PathBuf::from(path));
                // It may be of another state folder.
                held.file |= held.is_there().unwrap_or(false);
                held.leases.insert(lease.id);
            }
        }
        Ok(found)
    }

    fn at(&mut self, path: PathBuf) -> &mut Held {
        let held = Held::at(path);
        self.all.entry(held.receipt.clone()).or_insert(held)
    }

    /// Returns all receipts.
    pub(super) fn all(&self) -> impl Iterator<Item = &Held> {
        self.all.values()
    }

    /// Returns true if there is a receipt with this path, in the form that labels have.
    pub(super) fn has(&self, path: &str) -> bool {
        self.all.contains_key(path)
    }

    /// Returns true if there is a receipt of a bundle with this name in labels.
    pub(super) fn has_one_of(&self, bundle: &str) -> bool {
        self.of(bundle).next().is_some()
    }

    fn of<'r>(&'r self, bundle: &'r str) -> impl Iterator<Item = &'r Held> {
        self.all().filter(move |held| {
            let name = held.path.file_name();
            held.path.starts_with(&self.folder) && name.is_some_and(|name| receipts::is_of(name, bundle))
        })
    }

    /// Returns the receipts that hold leases, without their files.
    pub(super) fn leases(&self) -> Vec<Held> {
        let held = self.all().filter(|held| !held.leases.is_empty());
        held.map(|held| Held {
            file: false,
            ..held.clone()
        })
        .collect()
    }

    /// Returns the receipts that these names mean: paths, file names, or content digests of their
    /// bundles. Only a content digest makes the command read them.
    pub(super) async fn meant(&self, names: &[String], limits: &Limits) -> BTreeSet<String> {
        let mut meant = BTreeSet::new();
        for name in names {
            let typed: PathBuf = Path::new(&path_of(name)).components().collect();
            let typed = [typed.clone(), self.folder.join(&typed)];
            let is_meant = |held: &&Held| typed.contains(&held.path);
            meant.extend(self.all().filter(is_meant).map(|held| held.receipt.clone()));
            if let Ok(content) = digest::parse(name) {
                let (paths, limits) = (self.with_files(), limits.clone());
                let reading = tokio::task::spawn_blocking(move || {
                    let is_of = |path: &PathBuf| {
                        receipts::stood_for(path, &limits).is_some_and(|of| of.catalog == content)
                    };
                    paths.into_iter().filter(is_of).collect::<Vec<_>>()
                });
                let read = reading.await;
                let read = read.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
                meant.extend(read.iter().map(|path| label_name(path.as_os_str())));
            }
        }
        meant
    }

    fn with_files(&self) -> Vec<PathBuf> {
        let with_files = self.all().filter(|held| held.file);
        with_files.map(|held| held.path.clone()).collect()
    }

    /// Returns these receipts, and those of these bundles.
    pub(super) fn with_those_of(&self, mut receipts: BTreeSet<String>, bundles: &[String]) -> Vec<Held> {
        let of = bundles.iter().flat_map(|bundle| self.of(bundle));
        receipts.extend(of.map(|held| held.receipt.clone()));
        receipts
            .iter()
            .filter_map(|receipt| self.all.get(receipt))
            .cloned()
            .collect()
    }
}

/// Removes receipts: the files first, so that no daemon restores what is released, and then the
/// leases. The removal is on the disk before the first lease ends.
///
/// # Errors
///
/// Returns the error of a file or of containerd. The next call does the rest.
pub(super) async fn give_back(client: &Client, receipts: &[Held]) -> anyhow::Result<()> {
    for held in receipts.iter().filter(|held| held.file) {
        let removed = std::fs::remove_file(&held.path).and_then(|()| match held.path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        });
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error)
                    .with_context(|| format!("cannot remove the receipt {}", held.path.display()));
            }
            Ok(()) | Err(_) => {}
        }
    }
    for lease in receipts.iter().flat_map(|held| &held.leases) {
        client.delete_lease(lease, false).await?;
    }
    Ok(())
}
