//! Images by name, as a containerd or a bundle has them, each with what it lacks.

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

/// Records of so many targets are asked for by their targets; of more, all records are listed
/// instead.
const MOST_TARGETS: usize = 100;

/// One name and what is behind it.
#[derive(Clone, Debug)]
pub struct Held {
    /// The name of the record, or the one that the bundle's image would get.
    pub name: String,
    /// The digest that the name points at.
    pub target: Digest,
    /// Whether it can run on this node.
    pub state: Judgement,
    /// Whether it runs only because it is unpacked: layers of it are not in the store.
    pub lacks_layers: bool,
    /// The manifest for this node, where containerd uses another manifest that is of no use.
    pub hidden: Option<Digest>,
    /// What may keep it from running all the same, in sentences.
    pub doubts: Vec<String>,
    /// The manifests and indexes below the target, each with its platform.
    pub below: Vec<(Digest, String)>,
    /// `containerd`, or the bundle.
    pub place: String,
    /// Whether kubelet's garbage collector leaves it alone; `None` for bundles.
    pub pinned: Option<bool>,
    /// When containerd's garbage collector may delete the record, if there is such a label on it.
    pub expires: Option<String>,
    /// The bundles that vouch for it.
    pub bundles: Vec<String>,
    /// Who pinned it, see [`import::labels::pinned_by`]; empty for bundles.
    pub pinned_by: Vec<&'static str>,
    /// When containerd's record was made.
    pub created_at: Option<Timestamp>,
    /// Whether it is unpacked for this node; `None` where containerd does not tell, and for
    /// bundles.
    pub unpacked: Option<bool>,
}

/// Everything that a containerd or several bundles have.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    held: BTreeMap<String, Held>,
    /// Images by the digest of their config, which is what CRI calls their id.
    ids: BTreeMap<String, String>,
}

impl Inventory {
    /// Asks containerd for the records that matter to `sought` and for its blobs, and reads the
    /// documents behind each of these records. Blobs that it lists count where its store has them,
    /// if `store` is where that can be seen. An image whose layers are not there counts as whole
    /// where it is unpacked as a whole with the snapshotter of `snapshots`.
    ///
    /// # Errors
    ///
    /// The error of the client while it lists. A blob that cannot be read later is a problem of its
    /// image.
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

    /// The images behind every record of `pattern`, and behind each other record that points at one
    /// of these; behind all records without one. Otherwise as [`Inventory::of_containerd`].
    ///
    /// # Errors
    ///
    /// As [`Inventory::of_containerd`].
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
                    // containerd holds every record against each of them.
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
        // Each document is waited for, so this has a thread of its own.
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

    /// What a bundle would bring, under the names it would have.
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

    /// These and nothing else.
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

    /// Adds what another bundle has; of two with the same name a whole one counts.
    pub fn join(&mut self, other: Inventory) {
        self.ids.extend(other.ids);
        other.held.into_values().for_each(|held| self.put(held));
    }

    /// CRI calls images by their ids, too.
    fn put(&mut self, held: Held) {
        if held.name.starts_with("sha256:") {
            self.ids.insert(held.name.clone(), held.name.clone());
        }
        let is_better = |known: &Held| !known.is_whole() && held.is_whole();
        if self.held.get(&held.name).is_none_or(is_better) {
            self.held.insert(held.name.clone(), held);
        }
    }

    /// The image of that exact name.
    pub fn get(&self, name: &str) -> Option<&Held> {
        self.held.get(name)
    }

    /// The image with that id, or the only one whose id begins so.
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

    /// Everything there is, by name.
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

/// What a verdict without records says of the image; `None` where nothing of it would ever be
/// there.
fn state_of(verdict: Verdict) -> Option<Judgement> {
    match verdict {
        Verdict::Broken(problems) => Some(Judgement::Broken(problems)),
        Verdict::Skip(Skip::Foreign { offered }) => Some(Judgement::Foreign(offered)),
        Verdict::Skip(Skip::Artifact(kind)) => Some(Judgement::Artifact(kind)),
        Verdict::Skip(Skip::Unnamed | Skip::Outranked) | Verdict::Forbidden => None,
        Verdict::Take(taken) => Some(Judgement::Whole(taken.closure)),
    }
}

/// The files that vouch for a record.
fn vouchers(record: &ImageRecord) -> Vec<String> {
    let sources = record.labels.iter();
    let sources = sources.filter(|(key, _)| key.starts_with(BUNDLE_PREFIX) || *key == IMPORTED);
    sources.map(|(_, file)| file.clone()).collect()
}

/// Which snapshots count for an image that lacks layers.
#[derive(Clone, Copy, Debug)]
pub enum Snapshots {
    /// None: what matters is the store.
    Ignored,
    /// Those of the snapshotter that CRI uses.
    OfCri,
    /// Those of the usual snapshotter, where there is no CRI.
    Usual,
}

impl Snapshots {
    /// The committed ones by name. `None` where containerd does not tell: then only the store
    /// counts.
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

/// What came of reading an image.
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

/// The manifests and indexes below a node.
fn collect(node: &Node, below: &mut Vec<(Digest, String)>) {
    let Content::Index(children) = &node.content else {
        return;
    };
    for child in children.iter() {
        below.push((child.descriptor.digest().clone(), platform_text(child)));
        collect(child, below);
    }
}
