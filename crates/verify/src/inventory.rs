//! Images by name, as a containerd or a bundle has them, each with its missing parts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::Path;

use bundle::{Catalog, Content, Limits, Node};
use containerd::{Client, ImageRecord};
use import::content::{CONTAINERD, ContentStore};
use import::labels::{BUNDLE_PREFIX, EXPIRES, IMPORTED, pinned_by};
use import::select::{ChildKind, Problem, Skip, platform_text};
use import::{Judgement, Pattern, Policy, Verdict};
use jiff::Timestamp;
use oci_spec::image::{Descriptor, Digest};
use platforms::Wanted;

use super::Sought;

/// Most targets whose records are requested by target. For more targets, all records are listed.
const MOST_TARGETS: usize = 100;

/// A name and the image behind it.
#[derive(Clone, Debug)]
pub struct Held {
    /// The name of the record, or the name that the bundle's image would get.
    pub name: String,
    /// The digest that the name points at.
    pub target: Digest,
    /// The verdict whether the image can run on this node.
    pub state: Judgement,
    /// True if the image runs only because it is unpacked: the store lacks some of its layers.
    pub lacks_layers: bool,
    /// The manifest for this node, if containerd uses another manifest that is of no use.
    pub hidden: Option<Digest>,
    /// Reasons why the image may still not run, in sentences.
    pub doubts: Vec<String>,
    /// The manifests and indexes below the target, each with its platform.
    pub below: Vec<(Digest, String)>,
    /// `containerd`, or the bundle.
    pub place: String,
    /// True if kubelet's garbage collector leaves it alone. `None` for bundles.
    pub pinned: Option<bool>,
    /// Time from which containerd's garbage collector may delete the record, if the record has such
    /// a label.
    pub expires: Option<String>,
    /// The bundles that vouch for it.
    pub bundles: Vec<String>,
    /// The programs that pinned it, see [`import::labels::pinned_by`]. Empty for bundles.
    pub pinned_by: Vec<&'static str>,
    /// Time at which containerd's record was created.
    pub created_at: Option<Timestamp>,
    /// True if the image is unpacked for this node. `None` for bundles, and if containerd does not
    /// tell.
    pub unpacked: Option<bool>,
}

/// All images of a containerd or of several bundles.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    held: BTreeMap<String, Held>,
    /// Image names by the digest of the config, which CRI uses as the image's id.
    ids: BTreeMap<String, String>,
}

impl Inventory {
    /// Lists the records that matter to `sought` and the blobs of containerd. Reads the documents
    /// behind each of these records. If `store` shows containerd's store, a listed blob counts only
    /// if its file exists. An image without its layers counts as whole if it is completely unpacked
    /// with the snapshotter of `snapshots`.
    ///
    /// # Errors
    ///
    /// Returns the error of the client while it lists. A blob that cannot be read later is a
    /// problem of its image.
    pub async fn of_containerd(
        client: &Client,
        store: Option<&Path>,
        wanted: &Wanted,
        limits: &Limits,
        snapshots: Snapshots,
        sought: &Sought,
    ) -> Result<Inventory, containerd::Error> {
        let mut records = Vec::new();
        let look = |record| {
            if sought.may_be(&record) {
                records.push(record);
            }
        };
        let (records, store) = match client.each_image_if_few(look).await? {
            true => {
                let mut blobs = client.blobs().await?;
                let lost = import::survey::lost(client, &blobs, store).await?;
                let lost: HashSet<Digest> = lost.into_iter().map(|blob| blob.digest).collect();
                blobs.retain(|blob| !lost.contains(&blob.digest));
                let blobs = blobs.into_iter().map(|blob| (blob.digest, blob.size));
                (records, ContentStore::of(client, blobs))
            }
            false => (
                sought.among_many(client).await?,
                ContentStore::asking(client, store.map(Path::to_owned)),
            ),
        };
        Inventory::of_records(client, store, records, wanted, limits, snapshots).await
    }

    /// Reads the images behind every record that matches `pattern`, and behind each other record
    /// with the same target. Without a pattern, reads the images of all records. Otherwise as
    /// [`Inventory::of_containerd`].
    ///
    /// # Errors
    ///
    /// As for [`Inventory::of_containerd`].
    pub async fn of_pattern(
        client: &Client,
        store: Option<&Path>,
        wanted: &Wanted,
        limits: &Limits,
        snapshots: Snapshots,
        pattern: Option<&Pattern>,
    ) -> Result<Inventory, containerd::Error> {
        let records = match pattern {
            None => client.images().await?,
            Some(pattern) => {
                let mut targets = HashSet::new();
                let look = |record: ImageRecord| {
                    if pattern.matches(&record.name) {
                        targets.insert(record.target.digest().clone());
                    }
                    ControlFlow::Continue(())
                };
                client.each_image(look).await?;
                match targets.len() {
                    // containerd compares every record with each of the targets.
                    ..=MOST_TARGETS => client.images_targeting(&Vec::from_iter(&targets)).await?,
                    _ => {
                        let mut records = client.images().await?;
                        records.retain(|record| targets.contains(record.target.digest()));
                        records
                    }
                }
            }
        };
        let store = ContentStore::asking(client, store.map(Path::to_owned));
        Inventory::of_records(client, store, records, wanted, limits, snapshots).await
    }

    async fn of_records(
        client: &Client,
        store: ContentStore,
        records: Vec<ImageRecord>,
        wanted: &Wanted,
        limits: &Limits,
        snapshots: Snapshots,
    ) -> Result<Inventory, containerd::Error> {
        let snapshots = snapshots.committed(client).await;
        let (wanted, limits) = (wanted.clone(), limits.clone());
        // Reading waits for each document, so it has a thread of its own.
        let read = tokio::task::spawn_blocking(move || {
            Inventory::read(records, store, &wanted, &limits, snapshots.as_ref())
        });
        read.await.expect("reading never panics")
    }

    fn read(
        records: Vec<ImageRecord>,
        mut store: ContentStore,
        wanted: &Wanted,
        limits: &Limits,
        snapshots: Option<&HashSet<String>>,
    ) -> Result<Inventory, containerd::Error> {
        let mut judged: HashMap<Digest, Examined> = HashMap::new();
        let mut inventory = Inventory::default();
        for record in records {
            let target = record.target.digest().clone();
            let Examined {
                state,
                lacks_layers,
                hidden,
                doubts,
                below,
                unpacked,
            } = judged
                .entry(target.clone())
                .or_insert_with(|| examine(&record.target, &mut store, wanted, limits, snapshots))
                .clone();
            if let Some(error) = store.take_failure() {
                return Err(error);
            }
            inventory.put(Held {
                target,
                state,
                lacks_layers,
                hidden,
                doubts,
                below,
                place: CONTAINERD.to_owned(),
                pinned: Some(!pinned_by(&record.labels).is_empty()),
                pinned_by: pinned_by(&record.labels),
                created_at: record.created_at,
                unpacked,
                expires: record.labels.get(EXPIRES).cloned(),
                bundles: vouchers(&record),
                name: record.name,
            });
        }
        Ok(inventory)
    }

    /// Returns the images that a bundle would bring, under the names that they would get.
    pub fn of_bundle(catalog: &Catalog, path: &Path, policy: &Policy) -> Inventory {
        let place = path.display().to_string();
        let mut inventory = Inventory::default();
        for choice in import::select(catalog, policy).choices {
            let digest = choice.target.digest().clone();
            let entries = catalog
                .images
                .iter()
                .filter(|image| *image.root.descriptor.digest() == digest);
            let entries: Vec<_> = entries.collect();
            let mut below = Vec::new();
            entries
                .iter()
                .take(1)
                .for_each(|image| collect(&image.root, &mut below));
            let root = entries.first().map(|image| &image.root);
            let hidden = root
                .and_then(|root| import::select::hidden_image(root, &policy.wanted))
                .cloned();
            let (state, names) = match choice.verdict {
                Verdict::Take(taken) => {
                    let names = taken
                        .records
                        .into_iter()
                        .map(|record| (record.name, record.target.digest().clone()));
                    (Judgement::Whole(taken.closure), names.collect())
                }
                verdict => {
                    let given = entries
                        .iter()
                        .flat_map(|image| policy.naming.names_of(&image.names, &digest).references);
                    let names = given.map(|name| (name.to_string(), digest.clone())).collect();
                    match state_of(verdict) {
                        Some(state) => (state, names),
                        None => continue,
                    }
                }
            };
            inventory.put_all(names, &state, hidden.as_ref(), &below, &place);
        }
        inventory
    }

    /// Returns an inventory of exactly these images.
    #[cfg(test)]
    pub(super) fn of(held: impl Iterator<Item = Held>) -> Inventory {
        let mut inventory = Inventory::default();
        held.for_each(|held| inventory.put(held));
        inventory
    }

    fn put_all(
        &mut self,
        names: Vec<(String, Digest)>,
        state: &Judgement,
        hidden: Option<&Digest>,
        below: &[(Digest, String)],
        place: &str,
    ) {
        for (name, target) in names {
            if let Judgement::Whole(closure) = state {
                let children = closure.blobs.iter().flat_map(|blob| &blob.children);
                let configs = children.filter(|child| child.kind == ChildKind::Config);
                self.ids
                    .extend(configs.map(|child| (child.digest.to_string(), name.clone())));
            }
            self.put(Held {
                name,
                target,
                state: state.clone(),
                lacks_layers: false,
                hidden: hidden.cloned(),
                doubts: Vec::new(),
                below: below.to_vec(),
                place: place.to_owned(),
                pinned: None,
                expires: None,
                bundles: Vec::new(),
                pinned_by: Vec::new(),
                created_at: None,
                unpacked: None,
            });
        }
    }

    /// Adds the images of another bundle. Of two images with the same name, a whole image counts.
    pub fn join(&mut self, other: Inventory) {
        self.ids.extend(other.ids);
        other.held.into_values().for_each(|held| self.put(held));
    }

    /// Adds an image. CRI also calls images by their ids.
    fn put(&mut self, held: Held) {
        if held.name.starts_with("sha256:") {
            self.ids.insert(held.name.clone(), held.name.clone());
        }
        let is_better = |known: &Held| !known.is_whole() && held.is_whole();
        if self.held.get(&held.name).is_none_or(is_better) {
            self.held.insert(held.name.clone(), held);
        }
    }

    /// Returns the image with exactly this name.
    pub fn get(&self, name: &str) -> Option<&Held> {
        self.held.get(name)
    }

    /// Returns the image with this id, or the only image whose id begins so.
    pub fn by_id(&self, id: &str) -> Option<&Held> {
        let id = if id.starts_with("sha256:") {
            id.to_owned()
        } else {
            format!("sha256:{id}")
        };
        let mut found = self
            .ids
            .range(id.clone()..)
            .take_while(|(known, _)| known.starts_with(&id));
        let (_, name) = found.next()?;
        match found.next() {
            Some(_) => None,
            None => self.get(name),
        }
    }

    /// Returns all images, by name.
    pub fn all(&self) -> impl Iterator<Item = &Held> {
        self.held.values()
    }
}

impl Held {
    /// Returns true if everything that this node needs of the image is there.
    pub fn is_whole(&self) -> bool {
        matches!(self.state, Judgement::Whole(_))
    }
}

/// Returns the state of an image by its verdict, or `None` if the image would get no record.
fn state_of(verdict: Verdict) -> Option<Judgement> {
    match verdict {
        Verdict::Broken(problems) => Some(Judgement::Broken(problems)),
        Verdict::Skip(Skip::Foreign { offered }) => Some(Judgement::Foreign(offered)),
        Verdict::Skip(Skip::Artifact(kind)) => Some(Judgement::Artifact(kind)),
        Verdict::Skip(Skip::Unnamed | Skip::Outranked) | Verdict::Forbidden(_) => None,
        Verdict::Take(taken) => Some(Judgement::Whole(taken.closure)),
    }
}

/// Returns the files that vouch for a record.
fn vouchers(record: &ImageRecord) -> Vec<String> {
    let sources = record.labels.iter();
    let sources = sources.filter(|(key, _)| key.starts_with(BUNDLE_PREFIX) || *key == IMPORTED);
    sources.map(|(_, file)| file.clone()).collect()
}

/// The snapshots that count for an image that lacks layers.
#[derive(Clone, Copy, Debug)]
pub enum Snapshots {
    /// No snapshots: only the store counts.
    Ignored,
    /// The snapshots of CRI's snapshotter.
    OfCri,
    /// The snapshots of the usual snapshotter, if there is no CRI.
    Usual,
}

impl Snapshots {
    /// Returns the names of the committed snapshots. Returns `None` if containerd does not list
    /// them, and then only the store counts.
    async fn committed(self, client: &Client) -> Option<HashSet<String>> {
        let cri = match self {
            Snapshots::Ignored => return None,
            Snapshots::OfCri => true,
            Snapshots::Usual => false,
        };
        let listed = async {
            match client.snapshotter(cri).await? {
                Some(snapshotter) => client.snapshots(&snapshotter.name).await.map(Some),
                None => Ok(None),
            }
        };
        listed.await.unwrap_or_else(|error| {
            tracing::debug!("snapshots do not count: {}", basics::chain(&error));
            None
        })
    }
}

/// The result of reading an image.
#[derive(Clone, Debug)]
struct Examined {
    state: Judgement,
    lacks_layers: bool,
    hidden: Option<Digest>,
    doubts: Vec<String>,
    below: Vec<(Digest, String)>,
    unpacked: Option<bool>,
}

fn examine(
    target: &Descriptor,
    store: &mut ContentStore,
    wanted: &Wanted,
    limits: &Limits,
    snapshots: Option<&HashSet<String>>,
) -> Examined {
    let node = match bundle::resolve(target, store, limits) {
        Ok(node) => node,
        Err(fault) => {
            return Examined {
                state: Judgement::Broken(vec![Problem::of_image(fault.to_string())]),
                lacks_layers: false,
                hidden: None,
                doubts: Vec::new(),
                below: Vec::new(),
                unpacked: None,
            };
        }
    };
    let mut below = Vec::new();
    collect(&node, &mut below);
    let mut state = import::judge(&node, wanted, CONTAINERD);
    let mut lacks_layers = false;
    if matches!(state, Judgement::Broken(_))
        && let Some(snapshots) = snapshots
        && let Some(unpacked) = import::unpack::as_unpacked(&node, snapshots)
        && let whole @ Judgement::Whole(_) = import::judge(&unpacked, wanted, CONTAINERD)
    {
        (state, lacks_layers) = (whole, true);
    }
    let doubts = match &state {
        Judgement::Whole(closure) if !lacks_layers => import::select::images_for_plugins(&node, closure),
        _ => Vec::new(),
    };
    let unpacked = match (&state, snapshots) {
        (Judgement::Whole(closure), Some(snapshots)) => {
            Some(import::unpack::is_unpacked(&node, closure, snapshots))
        }
        _ => None,
    };
    Examined {
        unpacked,
        hidden: import::select::hidden_image(&node, wanted).cloned(),
        state,
        lacks_layers,
        doubts,
        below,
    }
}

/// Collects the manifests and indexes below a node.
fn collect(node: &Node, below: &mut Vec<(Digest, String)>) {
    let Content::Index(children) = &node.content else {
        return;
    };
    for child in children.iter() {
        below.push((child.descriptor.digest().clone(), platform_text(child)));
        collect(child, below);
    }
}
