//! Receipts in the model: how jobs make and take them, and what a removal of a file needs.
//!
//! A receipt of the model is a file of the folder of receipts. Its lease is a set of blobs. A
//! receipt has the documents of its images, so only a lost layer degrades it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use bundle::Identity;
use import::labels::PINNED;
use import::result::ImageOutcome;
use import::{Source, lease};
use oci_spec::image::Digest;

use super::super::record::{Landed, LandedImage, Stop};
use super::super::{Event, desired};
use super::{Content, File, SECOND, Work, World, catalog, layer};
use crate::receipts;
use crate::settings::{AfterImport, Reloaded, Settings};
use crate::state::ledger::{ErrorClass, Ledger, StandsFor, label_name};

/// The images folders after the first one, and the folder of receipts.
static FOLDERS: LazyLock<[PathBuf; 2]> =
    LazyLock::new(|| [SECOND.into(), receipts::folder(&Settings::default())]);

/// The leases of receipts in containerd, and what the model remembers about removals.
#[derive(Debug, Default)]
pub(in crate::decide) struct Receipts {
    /// Path of the receipt and held blobs of each lease, by its id.
    pub(super) leases: BTreeMap<String, (String, BTreeSet<String>)>,
    /// Running jobs that are to make a receipt.
    makes: BTreeSet<OsString>,
    /// True if another program removed a lease since the last comparison.
    pub(super) is_robbed: bool,
    /// Files that the daemon could not remove.
    pub(super) unremoved: BTreeSet<OsString>,
    /// The ledger before it was saved last.
    pub(super) stale: Option<Ledger>,
    /// True if a ledger was lost. Labels of bundles that only this ledger knew then stay.
    pub(super) is_ledger_lost: bool,
    /// Number of files that the daemon has removed: bundles, and receipts.
    pub(super) removed: [u32; 2],
    /// Number of receipts that were made.
    made: i64,
    /// Number of daemons so far.
    pub(super) daemons: u32,
    /// Receipts without a file whose leases the last sweep has left, by path.
    strangers: BTreeSet<String>,
}

impl Receipts {
    /// Returns the leases that are there. Of the `unread` ones, returns those that hold all that
    /// the ledger asks for.
    pub(super) fn whole(&self, ledger: &Ledger, unread: &BTreeSet<String>) -> HashSet<String> {
        let needed = desired::held_by_leases(ledger);
        let is_whole = |(id, (_, held)): &(&String, &(String, BTreeSet<String>))| {
            let mut needed = needed.get(id.as_str()).into_iter().flatten();
            !unread.contains(*id) || needed.all(|blob| held.contains(blob.as_ref()))
        };
        let whole = self.leases.iter().filter(is_whole);
        whole.map(|(id, _)| id.clone()).collect()
    }
}

/// Returns the blobs of an image.
fn closure(target: &Digest) -> [String; 2] {
    [target.to_string(), layer(target).to_string()]
}

impl World {
    /// Returns a world whose daemon reads the folder of receipts, too.
    pub(in crate::decide) fn with_receipts(seed: u64) -> World {
        let mut world = World::new(seed);
        world.receipts = Some(Receipts::default());
        world.begin("boot", Ledger::default());
        world
    }

    /// Returns the folders after the first one.
    pub(super) fn later_folders(&self) -> &'static [PathBuf] {
        match self.receipts {
            Some(_) => &*FOLDERS,
            None => super::folders().1,
        }
    }

    /// Returns true if the world has receipts, and a file is one by its name.
    pub(super) fn is_receipt(&self, name: &OsStr) -> bool {
        self.receipts.is_some() && Path::new(name).starts_with(&FOLDERS[1])
    }

    pub(super) fn reload_after_import(&mut self) {
        let mut settings = Settings::clone(&self.state.settings);
        settings.after_import = match settings.after_import {
            AfterImport::Keep => AfterImport::Receipt,
            AfterImport::Receipt => AfterImport::Keep,
        };
        let kind = settings.after_import;
        self.history.push(format!("`afterImport` is {kind:?} now"));
        let reloaded = Reloaded {
            settings,
            applied: vec!["afterImport"],
            postponed: Vec::new(),
        };
        self.take(Event::Reloaded(Box::new(reloaded), None));
    }

    /// Notes whether a job that starts is to make a receipt.
    pub(super) fn note_start(&mut self, name: &OsStr) {
        let version = self.state.roster.version(name);
        let wants = version.is_some_and(|version| self.state.wants_receipt(name, &version));
        let wants = wants && !self.is_receipt(name);
        if let Some(receipts) = &mut self.receipts {
            match wants {
                true => receipts.makes.insert(name.to_owned()),
                false => receipts.makes.remove(name),
            };
        }
    }

    /// Returns the bundle that a receipt stands for, as its job reads it.
    pub(super) fn stands_for(&self, name: &OsStr) -> Option<StandsFor> {
        match &self.folder.get(name)?.content {
            Content::Receipt(of, _) => Some(of.clone()),
            Content::Bundle(_) | Content::Broken => None,
        }
    }

    /// Makes the receipt of a bundle whose job has imported everything.
    pub(super) fn make_receipt(&mut self, name: &OsStr, landed: &mut Landed, leave: &BTreeSet<String>) {
        let wants = self
            .receipts
            .as_mut()
            .is_some_and(|receipts| receipts.makes.remove(name));
        if !wants {
            return;
        }
        let there = self
            .folder
            .get(name)
            .filter(|file| file.identity == landed.identity);
        let Some(Content::Bundle(images)) = there.map(|file| file.content.clone()) else {
            landed.kept = Some("it has changed since its import".to_owned());
            return;
        };
        if !leave.is_empty() {
            landed.kept = Some("other bundles keep some of its names from it".to_owned());
            return;
        }
        let lost = images.iter().flat_map(|(_, target)| closure(target));
        if let Some(blob) = lost.into_iter().find(|blob| !self.blobs.contains_key(blob)) {
            landed.kept = Some(format!("blob {blob} is not in containerd"));
            return;
        }
        landed.is_read_back = true;
        let bundle = label_name(name);
        let path = FOLDERS[1].join(bundle.replace('%', "%25").replace('/', "%2F"));
        let receipts = self.receipts_mut();
        receipts.made += 1;
        let content = basics::digest::sha256(format!("{bundle} {}", receipts.made).as_bytes());
        let of = StandsFor {
            identity: landed.identity.clone(),
            // The ledger orders receipts by the second in which they were made.
            made_at: self.at.as_second(),
            rolled_back_at: None,
            lease: lease::of_receipt(&label_name(path.as_os_str()), &content),
            by_hand: false,
            catalog: Some(catalog(&images)),
            bundle,
        };
        self.history.push(format!("{} is made", path.display()));
        let identity = self.identity();
        let content = Content::Receipt(of, images);
        self.folder
            .insert(path.into_os_string(), File { identity, content });
        // The daemon watches the folder.
        self.state.relist = true;
    }

    /// Plays the import of a receipt. Nothing but documents can be sent. The lease comes first.
    pub(super) fn import_receipt(
        &mut self,
        name: &OsStr,
        of: &StandsFor,
        images: &[(String, Digest)],
        leave: &BTreeSet<String>,
    ) -> Landed {
        let source = Source::Receipt(label_name(name));
        let blobs = images.iter().flat_map(|(_, target)| closure(target)).collect();
        let receipts = self.receipts_mut();
        let held = (label_name(name), blobs);
        receipts.leases.insert(of.lease.clone(), held);
        let (whole, lost): (Vec<_>, Vec<_>) = images
            .iter()
            .cloned()
            .partition(|(_, target)| self.blobs.contains_key(layer(target).as_ref()));
        let mut landed = self.import_as(name, &source, &whole, leave);
        landed.catalog = of.catalog.clone().expect("a receipt of this version");
        landed
            .images
            .extend(lost.iter().map(|(image, target)| LandedImage {
                name: image.clone(),
                target: target.clone(),
                outcome: ImageOutcome::Failed,
                reason: None,
            }));
        if !lost.is_empty() {
            let names: Vec<_> = lost
                .iter()
                .map(|(image, target)| (image, layer(target)))
                .collect();
            landed.outcome = match whole.is_empty() {
                true => import::Outcome::Failed,
                false => import::Outcome::Partial,
            };
            landed.has_landed = !whole.is_empty();
            landed.stopped = Some(Stop {
                text: format!("degraded: {names:?}"),
                class: ErrorClass::Degraded,
                retry: true,
                shortage: None,
                unreachable: None,
                lost: lost.iter().map(|(_, target)| layer(target)).collect(),
            });
        }
        landed
    }

    /// Removes a file that the daemon needs no more. A bundle goes only after its receipt and its
    /// lease are in place. A receipt goes only if other files have its names.
    pub(super) fn remove(&mut self, name: &OsString, identity: &Identity) -> Event {
        let removed = self.try_to_remove(name, identity);
        self.history
            .push(format!("the daemon removes {name:?}: {removed:?}"));
        Event::Removed(name.clone(), identity.clone(), removed)
    }

    fn try_to_remove(&mut self, name: &OsString, identity: &Identity) -> Result<(), String> {
        let is_busy = self.is_shaky && self.dice(4) == 0;
        let file = self.folder.get(name);
        let content = match file.filter(|file| file.identity == *identity) {
            Some(file) if !is_busy => file.content.clone(),
            _ => {
                let receipts = self.receipts_mut();
                receipts.unremoved.insert(name.clone());
                return Err("it has changed, or is in use".to_owned());
            }
        };
        let reason = match &content {
            Content::Bundle(images) => self.why_bundle_stays(name, identity, images),
            Content::Receipt(of, images) => self.why_receipt_stays(name, of, images),
            Content::Broken => Some("it is broken".to_owned()),
        };
        if let Some(reason) = reason {
            self.fail(&format!("{name:?} goes: {reason}"));
        }
        self.folder.remove(name);
        let receipts = self.receipts_mut();
        receipts.removed[usize::from(matches!(content, Content::Receipt(..)))] += 1;
        Ok(())
    }

    fn why_bundle_stays(
        &self,
        name: &OsStr,
        identity: &Identity,
        images: &[(String, Digest)],
    ) -> Option<String> {
        if self.state.settings.after_import != AfterImport::Receipt {
            return Some("`afterImport` is keep".to_owned());
        }
        let of_it = self.folder.values().find_map(|file| match &file.content {
            Content::Receipt(of, held) if of.bundle == label_name(name) && of.identity == *identity => {
                Some((of, held))
            }
            _ => None,
        });
        let Some((of, held)) = of_it else {
            return Some("no receipt stands for it".to_owned());
        };
        if images.iter().any(|image| !held.contains(image)) {
            return Some("its receipt lacks an image".to_owned());
        }
        let receipts = self.receipts.as_ref()?;
        let blobs: BTreeSet<String> = images.iter().flat_map(|(_, target)| closure(target)).collect();
        let lease = receipts.leases.get(&of.lease);
        let is_held = lease.is_some_and(|(_, held)| blobs.is_subset(held));
        (!is_held && !receipts.is_robbed).then(|| "the lease of its receipt does not hold it".to_owned())
    }

    fn why_receipt_stays(&self, name: &OsStr, of: &StandsFor, images: &[(String, Digest)]) -> Option<String> {
        let others = self.folder.iter().filter(|(other, _)| *other != name);
        let names: BTreeSet<&String> = others
            .clone()
            .flat_map(|(_, file)| match &file.content {
                Content::Bundle(images) | Content::Receipt(_, images) => images.as_slice(),
                Content::Broken => &[],
            })
            .map(|(image, _)| image)
            .collect();
        let is_newer = |(other, file): (&OsString, &File)| {
            label_name(other) == of.bundle && matches!(file.content, Content::Bundle(_))
        };
        if others.clone().any(is_newer) {
            return None;
        }
        let lacking = images.iter().find(|(image, _)| !names.contains(image))?;
        Some(format!("no other file has its image {}", lacking.0))
    }

    /// Deletes the leases that the errand does not keep, as the daemon's hands do. Returns the
    /// receipts without a file whose leases stay.
    pub(super) fn sweep(&mut self, kept: &[String], ended: &BTreeSet<String>) -> BTreeSet<String> {
        let Some(receipts) = &mut self.receipts else {
            return BTreeSet::new();
        };
        let (folder, mut strangers) = (&self.folder, BTreeSet::new());
        receipts.leases.retain(|id, (path, _)| {
            if kept.iter().any(|kept| id.starts_with(kept.as_str())) {
                return true;
            }
            let start = lease::of_receipts_at(path);
            if kept.iter().any(|id| id.starts_with(&start)) {
                return false;
            }
            let is_absent = !folder.contains_key(OsStr::new(path.as_str()));
            if is_absent && !ended.contains(path) {
                strangers.insert(path.clone());
            }
            !is_absent || !ended.contains(path)
        });
        receipts.strangers.clone_from(&strangers);
        strangers
    }

    /// Removes the blobs that neither a record nor a lease needs.
    pub(super) fn collect_garbage(&mut self) {
        let records = self.records.values();
        let mut needed: BTreeSet<String> = records
            .flat_map(|record| closure(record.target.digest()))
            .collect();
        let leases = self.receipts.iter().flat_map(|receipts| receipts.leases.values());
        needed.extend(leases.flat_map(|(_, blobs)| blobs.iter().cloned()));
        self.blobs.retain(|digest, _| needed.contains(digest));
    }

    /// Removes the records without a pin, as kubelet does.
    pub(super) fn collect_records(&mut self) {
        self.records
            .retain(|_, record| record.labels.contains_key(PINNED));
    }

    /// Plays the rest of a job whose daemon dies before it hears of the end.
    pub(super) fn end_unheard(&mut self) {
        for (name, work) in std::mem::take(&mut self.jobs) {
            if let Work::Importing(images, leave) = work
                && self.is_up
            {
                self.history.push(format!("{name:?} is imported, unheard"));
                drop(self.land(&name, &images, &leave));
            }
        }
    }

    /// Returns the targets of all images that receipts stand for.
    pub(super) fn images_of_receipts(&self) -> Vec<Digest> {
        let images = self.folder.values().filter_map(|file| match &file.content {
            Content::Receipt(_, images) => Some(images),
            Content::Bundle(_) | Content::Broken => None,
        });
        images.flatten().map(|(_, target)| target.clone()).collect()
    }

    /// Returns the images of a receipt that lack a layer, with these layers.
    pub(super) fn lost_of<'i>(&self, images: &'i [(String, Digest)]) -> BTreeMap<&'i str, String> {
        let lost = images.iter().filter_map(|(image, target)| {
            let layer = layer(target).to_string();
            (!self.blobs.contains_key(&layer)).then_some((image.as_str(), layer))
        });
        lost.collect()
    }

    /// Checks that each receipt has its lease, and that a receipt that lacks a blob names it.
    pub(super) fn check_receipts(&self) {
        let Some(receipts) = &self.receipts else { return };
        for (name, file) in &self.folder {
            let Content::Receipt(of, images) = &file.content else {
                continue;
            };
            let blobs: BTreeSet<String> = images.iter().flat_map(|(_, target)| closure(target)).collect();
            let lease = receipts.leases.get(&of.lease);
            if !lease.is_some_and(|(_, held)| blobs.is_subset(held)) {
                self.fail(&format!("{name:?} has no lease that holds its blobs"));
            }
        }
        let is_of_file = |(id, (path, _)): (&String, &(String, BTreeSet<String>))| {
            let content = self.folder.get(OsStr::new(path.as_str()));
            matches!(content.map(|file| &file.content), Some(Content::Receipt(of, _)) if of.lease == *id)
        };
        // A later daemon may never have known a receipt. It tells of the lease that stays.
        let is_told = |path: &String| receipts.daemons > 1 && receipts.strangers.contains(path);
        let mut left = receipts.leases.iter().filter(|lease| !is_of_file(*lease));
        if let Some((id, (path, _))) = left.find(|(_, (path, _))| !is_told(path)) {
            self.fail(&format!("the lease {id} of {path} is left"));
        }
    }

    /// Returns true if the receipt is degraded, and its error names each of these layers.
    pub(super) fn is_degraded(&self, name: &OsStr, lost: &BTreeMap<&str, String>) -> bool {
        let error = self
            .state
            .ledger
            .get(name)
            .and_then(|entry| entry.last_error.as_ref());
        error.is_some_and(|error| {
            error.text.starts_with("degraded") && lost.values().all(|blob| error.text.contains(blob.as_str()))
        })
    }

    /// Checks that receipts have taken the place of all files that may go. Returns the number of
    /// receipts.
    pub(super) fn check_files(&self) -> u32 {
        let Some(receipts) = &self.receipts else { return 0 };
        let kept = self.files_with_names_of_others();
        let may_go = |(name, file): &(&OsString, &File)| {
            let Content::Bundle(images) = &file.content else {
                return false;
            };
            let is_moved = images.iter().any(|(image, _)| self.moved.contains(image));
            !is_moved && !kept.contains(*name) && !receipts.unremoved.contains(*name)
        };
        let is_asked = self.state.settings.after_import == AfterImport::Receipt && !self.has_vanished();
        if let Some((name, _)) = self.folder.iter().filter(|_| is_asked).find(may_go) {
            self.fail(&format!(
                "{name:?} stays, although a receipt could take its place"
            ));
        }
        let files = self.folder.values();
        let receipts = files.filter(|file| matches!(file.content, Content::Receipt(..)));
        u32::try_from(receipts.count()).expect("a few files")
    }

    /// Returns the files that leave a name to another file.
    fn files_with_names_of_others(&self) -> BTreeSet<&OsString> {
        let desired = self.state.ledger.desired_images();
        let leaves = |name: &OsString, images: &[(String, Digest)]| {
            images.iter().any(|(image, target)| {
                let last = desired.get(image.as_str());
                last.is_none_or(|(wanted, owner)| *wanted != target || owner.file != *name)
            })
        };
        let files = self.folder.iter();
        let files = files.filter(|(name, file)| match &file.content {
            Content::Bundle(images) => leaves(name, images),
            Content::Receipt(..) | Content::Broken => false,
        });
        files.map(|(name, _)| name).collect()
    }

    /// Returns the numbers of bundles and of receipts that the daemon has removed.
    pub(super) fn removals(&self) -> [u32; 2] {
        self.receipts.as_ref().map_or([0, 0], |receipts| receipts.removed)
    }

    /// Returns true if a ledger was lost.
    pub(super) fn has_lost_a_ledger(&self) -> bool {
        self.receipts
            .as_ref()
            .is_some_and(|receipts| receipts.is_ledger_lost)
    }

    pub(super) fn receipts_mut(&mut self) -> &mut Receipts {
        self.receipts.as_mut().expect("the world has receipts")
    }

    /// Sets what becomes of the files of bundles, before anything happens.
    pub(in crate::decide) fn after_import(&mut self, after_import: AfterImport) {
        Arc::make_mut(&mut self.state.settings).after_import = after_import;
    }

    /// Remembers the ledger before it is saved.
    pub(super) fn save(&mut self) {
        let before = std::mem::replace(&mut self.saved, self.state.ledger.clone());
        if let Some(receipts) = &mut self.receipts {
            receipts.stale = Some(before);
        }
    }
}
