//! Decides which bundles get a receipt, and which files go: those that a receipt stands for, and
//! receipts that no image needs.
//!
//! Each step follows from the files and the ledger. A crash between two steps therefore loses
//! nothing: the next daemon sees the same files and takes the next step.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

use bundle::Identity;
use import::Survey;
use oci_spec::image::Digest;

use super::lanes::Job;
use super::line::{Line, shown};
use super::listing::FolderState;
use super::record::Landed;
use super::{Action, Turn};
use crate::images::pull_list;
use crate::outcome::Outcome;
use crate::receipts;
use crate::settings::{AfterImport, Signatures};
use crate::state::State;
use crate::state::ledger::{self, Entry};
use crate::state::roster::{Phase, Version};

/// Pause before the daemon tries again to make a receipt. Every try reads all images of the bundle.
const PAUSE: Duration = Duration::from_secs(3600);

/// Most bundles that the error of a degraded receipt names besides its own.
const MOST_NAMED: usize = 3;

/// The daemon's work with receipts.
#[derive(Debug, Default)]
pub(crate) struct ReceiptsState {
    /// True if the files or the ledger may ask for a step.
    is_due: bool,
    /// Bundles that got no receipt, as they were then, and the time of the next try.
    put_off: HashMap<OsString, (Identity, Instant)>,
    /// Bundles whose images this process has read back from containerd for a receipt.
    proven: HashMap<OsString, Identity>,
    /// Files that could not be removed, as they were then.
    unremoved: HashMap<OsString, Identity>,
    /// Folders whose files stay, as the log has them.
    told: BTreeSet<OsString>,
    /// Leases that hold every blob of their receipts, by id. The last comparison found them.
    whole: BTreeSet<String>,
    /// Receipts that the ledger has forgotten, whose leases are to end. By path, in the form of
    /// labels.
    ended: BTreeSet<String>,
    /// Receipts without a file, whose leases stay, as the log has them.
    strangers: BTreeSet<String>,
}

impl ReceiptsState {
    /// Makes the daemon look for the next steps in this round.
    pub(super) fn tend_soon(&mut self) {
        self.is_due = true;
    }

    /// Makes the next comparison read the resources of all leases.
    pub(super) fn doubt_leases(&mut self) {
        self.whole.clear();
    }

    /// Notes that a receipt is gone and forgotten, so that its lease ends. A lease of which the
    /// daemon never knew the receipt stays: its file may be in a state folder that is not mounted.
    pub(super) fn end(&mut self, receipt: String) {
        self.ended.insert(receipt);
    }

    /// Returns the receipts whose leases are to end.
    pub(super) fn ended(&self) -> &BTreeSet<String> {
        &self.ended
    }

    /// Ends all pauses: other settings may give a bundle its receipt.
    pub(super) fn try_again(&mut self) {
        self.put_off.clear();
        self.is_due = true;
    }
}

impl State {
    /// Returns true if a file is a receipt, by its name.
    pub(crate) fn is_receipt(&self, name: &OsStr) -> bool {
        std::path::Path::new(name).starts_with(receipts::folder(&self.settings))
    }

    /// Returns true if a receipt is to take the place of a file, and this process has made none
    /// yet. A receipt of an earlier time proves nothing: containerd may have lost bytes since.
    ///
    /// With `signatures: require`, images from the time before that rule stay with their file: no
    /// signature would admit their receipt.
    pub(crate) fn wants_receipt(&self, name: &OsStr, version: &Version) -> bool {
        let imported = self.ledger.get(name).and_then(|entry| entry.imported.as_ref());
        let is_unsigned = imported.is_some_and(|imported| imported.signers.is_empty());
        if is_unsigned && self.settings.signatures == Some(Signatures::Require) {
            return false;
        }
        let folder = self.folder_of(name).map(|at| &self.folders[at]);
        let is_proven = self.receipts.proven.get(name) == Some(&version.identity);
        let entry = self.ledger.get(name).filter(|_| is_proven);
        let receipt = entry.and_then(|entry| self.ledger.receipt_of(entry));
        self.settings.after_import == AfterImport::Receipt
            && !version.is_layout
            && folder.is_some_and(|folder| folder.keeps.is_none())
            && !receipt.is_some_and(|receipt| {
                receipt.identity_stood_for() == Some(&version.identity) && self.is_there(&receipt.file)
            })
    }

    /// Returns true if the status shows a folder: any images folder, and that of receipts if it has
    /// receipts or a problem.
    pub(crate) fn is_of_interest(&self, folder: &FolderState) -> bool {
        folder.path != receipts::folder(&self.settings)
            || folder.trouble.is_some()
            || !self
                .roster
                .names(|_| true)
                .iter()
                .all(|name| !self.is_receipt(name))
            || self
                .ledger
                .entries()
                .iter()
                .any(|entry| self.is_receipt(&entry.file))
    }

    /// Logs once for each folder that receipts cannot take the place of its files.
    pub(super) fn tell_of_keeping(&mut self, turn: &mut Turn) {
        if self.settings.after_import != AfterImport::Receipt {
            return;
        }
        for folder in &self.folders {
            let name = folder.path.as_os_str();
            let Some(why) = folder.keeps.filter(|_| !self.receipts.told.contains(name)) else {
                continue;
            };
            self.receipts.told.insert(name.to_owned());
            let folder = folder.path.display();
            turn.say(Line::warn(format!(
                "{folder}: its bundles stay, although `afterImport` is receipt: {why}"
            )));
        }
    }

    /// Notes the end of an import that may have made a receipt. A bundle with the blobs that a
    /// degraded receipt lacks may have come.
    pub(super) fn note_receipt(&mut self, job: &Job, landed: &Landed, turn: &mut Turn) {
        self.receipts.tend_soon();
        if landed.is_read_back {
            let identity = landed.identity.clone();
            self.receipts.proven.insert(job.name.clone(), identity);
        } else if landed.sent_bytes > 0 {
            // containerd has bytes that this process has not read back.
            self.receipts.proven.remove(&job.name);
        }
        if self.is_receipt(&job.name) {
            // The lease of an earlier receipt under this name has no use any more.
            self.sweep_soon(turn.now);
        } else {
            // The folder of receipts may have a new one.
            self.relist |= self.settings.after_import == AfterImport::Receipt;
            self.queue_degraded();
        }
        if landed.is_read_back || landed.kept.is_some() {
            // A receipt that was made is taken on before the pause is over.
            let again = (job.version.identity.clone(), turn.now + PAUSE);
            self.receipts.put_off.insert(job.name.clone(), again);
        }
        if let Some(why) = &landed.kept {
            let text = format!("the file stays, and gets no receipt: {why}");
            turn.say(Line::warn(text).bundle(&job.name));
        }
    }

    /// Returns the other bundles that have blobs which a receipt has lost, in words: files of the
    /// images folders, or else the bundles of other receipts. It asks the ledger only, and a delta
    /// does not tell there which blobs it has itself.
    pub(super) fn files_with(&self, receipt: &OsStr, lost: &[Digest]) -> Option<String> {
        if lost.is_empty() {
            return None;
        }
        let (mut files, mut bundles) = (Vec::new(), Vec::new());
        for entry in self.ledger.entries().into_iter().rev() {
            let has = self.ledger.blobs_among(entry, lost);
            if has == 0 || entry.file == receipt || !entry.is_vouching() {
                continue;
            }
            let of_all = match has == lost.len() {
                true if has == 1 => "the lost blob".to_owned(),
                true => "all lost blobs".to_owned(),
                false => format!("{has} of {} lost blobs", lost.len()),
            };
            let is_delta = entry.imported.as_ref().is_some_and(|imported| imported.is_delta);
            match &entry.stands_for {
                None if !is_delta && self.roster.phase(&entry.file).is_some() => {
                    files.push(format!("{} on this node has {of_all}", shown(&entry.file)));
                }
                Some(of) => {
                    let (bundle, receipt) = (basics::foreign::shown(&of.bundle), shown(&entry.file));
                    bundles.push(format!(
                        "{bundle}, the bundle of the receipt {receipt}, had {of_all}"
                    ));
                }
                None => {}
            }
        }
        let mut named = if files.is_empty() { bundles } else { files };
        named.truncate(MOST_NAMED);
        (!named.is_empty()).then(|| named.join(". "))
    }

    /// Returns the leases of receipts whose resources the next comparison reads. A program that
    /// ended while it filled a lease leaves one with some of the blobs.
    pub(super) fn unread_leases(&self) -> BTreeSet<String> {
        let entries = self.ledger.entries().into_iter();
        let leases = entries.filter_map(|entry| Some(entry.stands_for.as_ref()?.lease.clone()));
        leases
            .filter(|lease| !self.receipts.whole.contains(lease))
            .collect()
    }

    /// Notes the leases that a comparison has found whole.
    pub(super) fn note_leases(&mut self, survey: &Survey) {
        let leases = survey.receipts.iter().flatten();
        self.receipts.whole = leases.cloned().collect();
    }

    /// Applies the end of leases without a use. The log has once that leases of unknown receipts
    /// stay.
    pub(super) fn on_swept(&mut self, unknown: BTreeSet<String>, turn: &mut Turn) {
        self.receipts.ended.clear();
        if let Some(receipt) = unknown.difference(&self.receipts.strangers).next() {
            turn.say(Line::warn(format!(
                "containerd has leases of {} without a file, such as {}: they stay, because the state folder may be \
                 another one than before. Mount the right one, or run `airgapd release --vanished`",
                basics::counted(unknown.len(), "receipt"),
                basics::foreign::shown(receipt)
            )));
        }
        self.receipts.strangers = unknown;
        self.end_comparison(turn);
    }

    fn queue_degraded(&mut self) {
        let is_failed = |phase| matches!(phase, Phase::Failed { retry: Some(_) });
        for name in self.roster.names(is_failed) {
            if self.is_receipt(&name) {
                self.roster.queue(&name);
            }
        }
    }

    /// Takes the steps that are due: queues bundles for a receipt, removes files that a receipt
    /// stands for, and removes receipts that no image needs.
    pub(super) fn tend_receipts(&mut self, turn: &mut Turn) {
        let is_idle = !self.connection.is_up() || self.is_draining;
        if is_idle || !std::mem::take(&mut self.receipts.is_due) {
            return;
        }
        let mut removals = Vec::new();
        let desired = self.ledger.desired_images();
        let entries = self.ledger.entries();
        let successors = self.successors(&entries);
        let taken_over: Vec<&Entry> = entries
            .iter()
            .copied()
            .filter(|entry| self.is_taken_over(entry, &desired, &successors))
            .collect();
        let kept = kept_releases(&taken_over, self.settings.keep_releases);
        let given_up: HashSet<&OsStr> = taken_over
            .into_iter()
            .filter(|receipt| !release_of(receipt).is_some_and(|name| kept.contains(name)))
            .map(|receipt| receipt.file.as_os_str())
            .collect();
        for entry in entries {
            let is_removable = match entry.stands_for.is_some() {
                true => given_up.contains(entry.file.as_os_str()),
                false => self.is_stood_for(entry),
            };
            let version = self.roster.version(&entry.file).filter(|_| is_removable);
            let is_tried =
                |version: &Version| self.receipts.unremoved.get(&entry.file) == Some(&version.identity);
            removals.extend(
                version
                    .filter(|version| !is_tried(version))
                    .map(|version| (entry.file.clone(), version)),
            );
        }
        for (name, version) in removals {
            turn.act(Action::Remove(name, version));
        }
        if self.settings.after_import == AfterImport::Receipt {
            self.queue_for_receipts(turn);
        }
    }

    /// Returns true if a file's last import is whole, and the file has not changed since.
    fn is_settled(&self, entry: &Entry) -> bool {
        let imported = entry.imported.as_ref();
        self.roster.phase(&entry.file) == Some(Phase::Done)
            && entry.is_vouching()
            && entry.last_error.is_none()
            && imported.is_some_and(|imported| {
                imported.withheld.is_empty()
                    && self.roster.identity(&entry.file).as_ref() == Some(&imported.identity)
            })
    }

    /// Returns true if a receipt that is in place stands for a bundle, and may take its place. This
    /// process must have read the images back. They must be unpacked, if `unpack` asks for that.
    fn is_stood_for(&self, bundle: &Entry) -> bool {
        if self.settings.after_import != AfterImport::Receipt || !self.is_settled(bundle) {
            return false;
        }
        let Some(receipt) = self.ledger.receipt_of(bundle) else {
            return false;
        };
        let version = self.roster.version(&bundle.file);
        let folder = self.folder_of(&bundle.file).map(|at| &self.folders[at]);
        let (Some(has), Some(needs)) = (&receipt.imported, &bundle.imported) else {
            return false;
        };
        version.is_some_and(|version| !version.is_layout)
            && folder.is_some_and(|folder| folder.keeps.is_none())
            && self.is_settled(receipt)
            && self.receipts.proven.get(&bundle.file) == Some(&needs.identity)
            && has.catalog == needs.catalog
            && needs.images.iter().all(|image| has.images.contains(image))
            && self.is_unpacked(needs.images.iter().map(|image| &image.target))
    }

    /// Returns true if a file is in place, and brings or holds every layer of its images. A delta
    /// and a list of images do neither.
    fn is_successor(&self, entry: &Entry) -> bool {
        let is_delta = entry.imported.as_ref().is_some_and(|imported| imported.is_delta);
        self.is_settled(entry) && (entry.stands_for.is_some() || !is_delta)
    }

    /// Returns the last successor with the name of each bundle: the bundle itself, or a receipt of
    /// it.
    fn successors<'l>(&self, entries: &[&'l Entry]) -> HashMap<Cow<'l, str>, &'l Entry> {
        let mut last = HashMap::new();
        for entry in entries.iter().copied().filter(|entry| self.is_successor(entry)) {
            let bundle = match &entry.stands_for {
                None => Cow::Owned(ledger::label_name(&entry.file)),
                Some(of) if of.by_hand => continue,
                Some(of) => Cow::Borrowed(of.bundle.as_str()),
            };
            last.insert(bundle, entry);
        }
        last
    }

    /// Returns true if bundles in place have taken over all names of a receipt. A newer bundle with
    /// the name of its bundle takes over everything. A receipt without a name for this node stays,
    /// since the settings may change back.
    ///
    /// `desired` has the last bundle that vouches for each name (`Ledger::desired_images`), and
    /// `successors` the last file of each bundle.
    fn is_taken_over(
        &self,
        receipt: &Entry,
        desired: &BTreeMap<&str, (&Digest, &Entry)>,
        successors: &HashMap<Cow<'_, str>, &Entry>,
    ) -> bool {
        let (Some(of), Some(imported)) = (&receipt.stands_for, &receipt.imported) else {
            return false;
        };
        if !self.is_settled(receipt) || imported.images.is_empty() {
            return false;
        }
        let rank = self.ledger.rank(&receipt.file);
        let newer = successors.get(of.bundle.as_str()).filter(|_| !of.by_hand);
        let is_replaced = newer.is_some_and(|newer| {
            let identity = match &newer.stands_for {
                Some(of) => Some(&of.identity),
                None => newer.imported.as_ref().map(|imported| &imported.identity),
            };
            identity != Some(&of.identity) && self.ledger.rank(&newer.file) > rank
        });
        let has_gone = |name: &str| {
            let last = desired.get(name);
            last.is_some_and(|(_, last)| self.ledger.rank(&last.file) > rank && self.is_successor(last))
        };
        is_replaced || imported.images.iter().all(|image| has_gone(&image.name))
    }

    /// Queues bundles that are in place and have no receipt. Their import sends nothing, and makes
    /// the receipt.
    fn queue_for_receipts(&mut self, turn: &Turn) {
        let now = turn.now;
        let names = self.roster.names(|phase| phase == Phase::Done);
        for name in names {
            let (Some(entry), Some(version)) = (self.ledger.get(&name), self.roster.version(&name)) else {
                continue;
            };
            let put_off = self.receipts.put_off.get(&name);
            let is_put_off =
                put_off.is_some_and(|(identity, until)| *identity == version.identity && *until > now);
            let is_wanted = !self.is_receipt(&name)
                && !pull_list::may_be_list(&name, version.identity.size)
                && !is_put_off
                && !self.receipts.unremoved.contains_key(&name)
                && self.is_settled(entry)
                && self.wants_receipt(&name, &version);
            if is_wanted {
                let again = (version.identity.clone(), now + PAUSE);
                self.receipts.put_off.insert(name.clone(), again);
                self.roster.queue(&name);
            }
        }
    }

    /// Applies the removal of a file that a receipt stands for, or of a receipt that no image
    /// needs. The file of a bundle counts as gone at once. So the log reports no removal by the
    /// operator.
    pub(super) fn on_removed(
        &mut self,
        name: &OsStr,
        identity: &Identity,
        removed: Result<(), String>,
        turn: &mut Turn,
    ) {
        let is_receipt = self.is_receipt(name);
        match removed {
            Ok(()) => {
                let text = match is_receipt {
                    true => "released the receipt: bundles that came later have all its names".to_owned(),
                    false => {
                        let bytes = basics::bytes(identity.size);
                        format!("its receipt takes its place: removed the file, which had {bytes}")
                    }
                };
                turn.say(Line::info(text).outcome(Outcome::Removed).bundle(name));
                self.receipts.proven.remove(name);
                self.ledger
                    .mark_gone(|file| (file == name).then_some(false), turn.at);
                turn.act(Action::Save);
                turn.act(Action::List);
                self.compare_soon(turn.now);
            }
            Err(why) => {
                self.receipts.unremoved.insert(name.to_owned(), identity.clone());
                turn.say(Line::warn(format!("the file stays: {why}")).bundle(name));
                self.relist = true;
            }
        }
    }
}

/// Returns the release of a receipt's bundle.
fn release_of(receipt: &Entry) -> Option<&str> {
    receipt.release().map(|release| release.name.as_str())
}

/// Returns the releases to keep, of receipts that other bundles have taken over: the last ones in
/// the order of `taken_over`.
fn kept_releases<'l>(taken_over: &[&'l Entry], most: usize) -> HashSet<&'l str> {
    let mut kept = HashSet::new();
    for name in taken_over.iter().rev().filter_map(|receipt| release_of(receipt)) {
        if kept.len() == most {
            break;
        }
        kept.insert(name);
    }
    kept
}

impl Entry {
    /// Returns the file that a receipt stands for.
    fn identity_stood_for(&self) -> Option<&Identity> {
        self.stands_for
            .as_ref()
            .map(|of: &ledger::StandsFor| &of.identity)
    }
}
