//! When bundles leave the folder: what they vouched for is withdrawn, unless it is rather the folder that left.

use std::collections::{BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::time::Instant;

use containerd::{Client, ImageRecord, ImageUpdate};
use import::Survey;
use import::labels::{BUNDLE_PREFIX, OUR_PIN};
use jiff::Timestamp;
use oci_spec::image::Digest;
use tracing::{debug, info, warn};

use super::telling::{shown, tell};
use super::{BURST, Connection, Daemon};
use crate::decide::withdraw::{Vouch, Withdrawal, grace_left, is_mass_loss, left_over, withdrawals};
use crate::state::ledger::{BundleId, Entry, Imported, label_name};
use crate::state::roster::Phase;
use crate::uses::{Uses, listed};

/// For so many labels or targets one walk over all records costs hardly more than for one.
const AT_ONCE: usize = 50;

impl Daemon {
    /// Takes the bundles for gone that the ledger knows and the listing lacks, unless the folder itself is at fault.
    pub(super) fn notice_gone(&mut self) {
        let known: Vec<&Entry> = self
            .ledger
            .entries()
            .into_iter()
            .filter(|entry| entry.gone.is_none())
            .collect();
        let missing: Vec<OsString> = known
            .iter()
            .filter(|entry| !self.is_there(&entry.file))
            .map(|entry| entry.file.clone())
            .collect();
        // What was never imported has nothing to lose: a thousand bad files may go at once.
        let vouches = |entry: &&&Entry| entry.imported.is_some();
        let lost = known.iter().filter(vouches);
        let lost = lost.filter(|entry| missing.contains(&entry.file)).count();
        let fault = self.fault(lost, known.iter().filter(vouches).count());
        if let Some(why) = &fault {
            if self.vanished.as_ref() != Some(why) {
                warn!(
                    outcome = "vanished",
                    "{why}; no pin goes until they are back, or `airgapd release --vanished` says that they are not coming back"
                );
            }
            self.vanished = fault;
            return;
        }
        if self.vanished.take().is_some() {
            info!("the bundles that were missing are accounted for");
        }
        for name in &missing {
            let is_told = self.rows.gone.admits(Instant::now());
            tell!(is_told, info, bundle = %shown(name), outcome = "removed", "the bundle is gone");
        }
        let there: Vec<OsString> = known
            .iter()
            .map(|entry| entry.file.clone())
            .filter(|name| !missing.contains(name))
            .collect();
        let back = self
            .ledger
            .entries()
            .into_iter()
            .filter(|entry| entry.gone.is_some() && self.is_there(&entry.file));
        let there: Vec<OsString> = back.map(|entry| entry.file.clone()).chain(there).collect();
        self.ledger
            .mark_gone(|name| there.iter().any(|there| there == name), Timestamp::now());
        self.ledger.context.folder = self.place;
        if !missing.is_empty() {
            self.compare_soon();
        }
    }

    /// Why bundles that are missing are not taken for removed.
    fn fault(&self, missing: usize, known: usize) -> Option<String> {
        let other_folder = self
            .ledger
            .context
            .folder
            .is_some_and(|folder| Some(folder) != self.place);
        let folder = self.images_dir.display();
        match missing {
            0 => None,
            _ if other_folder => Some(format!(
                "{folder} is another folder than before, and {missing} of {known} bundles are not in it"
            )),
            _ if is_mass_loss(missing, known) => Some(format!(
                "{missing} of {known} bundles are missing in {folder} at once"
            )),
            _ => None,
        }
    }

    /// Whether a file is in the folder, as far as can be told. What cannot be looked at is not gone.
    fn is_there(&self, name: &OsStr) -> bool {
        if self.roster.phase(name).is_some() {
            return true;
        }
        match self.images_dir.join(name).symlink_metadata() {
            // There, but no bundle any more.
            Ok(_) => false,
            Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
        }
    }

    /// Takes labels and pins back that no bundle vouches for any more, and deletes records where that is wanted.
    ///
    /// # Errors
    ///
    /// The error of the client; what was not withdrawn is withdrawn at the next comparison.
    pub(super) async fn withdraw(&mut self, mut survey: Survey) -> Result<(), containerd::Error> {
        let Connection::Up(up) = &self.connection else {
            return Ok(());
        };
        let client = up.runtime.client.clone();
        let looked_for = self.labels_in_doubt();
        for keys in looked_for.chunks(AT_ONCE) {
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            survey = survey.with_labelled(&client, &keys).await?;
        }
        let records: Vec<&ImageRecord> = survey.records.values().collect();
        let vouch = |file: &str, record: &ImageRecord| self.vouch(file, record);
        let mut plan = withdrawals(&records, vouch, self.settings.on_removal);
        let mut withheld = self.withhold(&mut plan);
        let uses = match plan.iter().any(|withdrawal| withdrawal.unpins) {
            true => uses(&client).await?,
            false => Some(Uses::default()),
        };
        for part in plan.chunks(AT_ONCE) {
            let mut deleted = Vec::new();
            for withdrawal in part {
                let Some(record) = survey.records.get(&withdrawal.name) else {
                    continue;
                };
                let users = uses.as_ref().map(|uses| uses.users(record));
                let deletes = withdrawal.deletes && users.as_ref().is_some_and(BTreeSet::is_empty);
                if deletes {
                    if client.image(&record.name).await?.as_ref() != Some(record) {
                        // Another program is at it just now: the next comparison judges it anew.
                        withheld.extend(withdrawal.bundles.iter().cloned());
                        self.compare_within(BURST);
                        continue;
                    }
                    client.delete_image(&record.name, false).await?;
                    deleted.push(record);
                } else {
                    let labels = withdrawal.changes.clone();
                    let update = ImageUpdate { target: None, labels };
                    client.update_image(&record.name, &update).await?;
                }
                log_withdrawal(withdrawal, deletes, &users.unwrap_or_default());
            }
            // Before anything else can go wrong: nothing tells of them later.
            delete_left_over(&client, &deleted).await?;
        }
        let is_known = |key: &str| survey.census.is_some() || looked_for.iter().any(|looked| looked == key);
        self.forget_withdrawn(&records, is_known);
        self.note_judged(&withheld);
        self.wake_for_grace(&withheld);
        Ok(())
    }

    /// Takes out of a plan the records that a job is about to vouch for: the comparison at the end of the job does what is
    /// left to do. Gives the bundles whose labels stay until then, by file name.
    fn withhold(&mut self, plan: &mut Vec<Withdrawal>) -> BTreeSet<String> {
        let mut withheld = BTreeSet::new();
        plan.retain(|withdrawal| {
            let Some(job) = self.jobs.writer_of(&withdrawal.name) else {
                return true;
            };
            job.disturbed = true;
            withheld.extend(withdrawal.bundles.iter().cloned());
            false
        });
        withheld
    }

    /// Keeps in mind the bundles whose labels could not be judged yet, or were and have to stay for now.
    fn note_judged(&mut self, withheld: &BTreeSet<String>) {
        let is_judged = |entry: &Entry| {
            self.imported_as_it_is(entry).is_some() && !withheld.contains(&label_name(&entry.file))
        };
        let is_over = |entry: &Entry| entry.gone.is_some() || entry.imported.is_none() || is_judged(entry);
        let are_all_over = self.ledger.entries().into_iter().all(is_over);
        let reworded = self.reworded.iter().filter(|file| {
            let entry = self.ledger.get(file);
            entry.is_some_and(|entry| !is_judged(entry))
        });
        self.reworded = reworded.cloned().collect();
        if let Connection::Up(up) = &mut self.connection {
            up.ours_listed |= are_all_over;
        }
    }

    /// Labels of ours that may be on records of which the ledger does not know, and may have to go: of bundles that are gone for
    /// good, of those that vanished, and of those that were imported with other images than before. After a connection was
    /// made, or the configuration has changed, every pin of ours is one.
    ///
    /// Where there are few records, all of ours are listed anyway. Where there are very many, this is the only list that is asked
    /// for, and only when there are such labels.
    fn labels_in_doubt(&self) -> Vec<String> {
        let (now, grace) = (Timestamp::now(), self.settings.unpin_grace);
        let is_over = |entry: &&Entry| match entry.gone {
            Some(gone) => grace_left(gone, now, grace).is_zero(),
            // An operator may have released it by hand.
            None => self.vanished.is_some() && !self.is_there(&entry.file),
        };
        let gone = self.ledger.entries().into_iter().filter(is_over);
        let files = gone.map(|entry| entry.file.as_os_str());
        let files: BTreeSet<&OsStr> = files
            .chain(self.reworded.iter().map(OsString::as_os_str))
            .collect();
        let ours_listed = matches!(&self.connection, Connection::Up(up) if up.ours_listed);
        let pin = (!ours_listed).then(|| OUR_PIN.to_owned());
        let labels = files.into_iter().map(label_of);
        pin.into_iter().chain(labels).collect()
    }

    /// What is known of a bundle's word for a record.
    fn vouch(&self, file: &str, record: &ImageRecord) -> Vouch {
        let Some(entry) = self.ledger.get_by_label(file) else {
            return Vouch::Unknown;
        };
        if let Some(gone) = entry.gone {
            let left = grace_left(gone, Timestamp::now(), self.settings.unpin_grace);
            return if left.is_zero() { Vouch::No } else { Vouch::Unknown };
        }
        let Some(imported) = self.imported_as_it_is(entry) else {
            return Vouch::Unknown;
        };
        match imported.images.iter().find(|image| image.name == record.name) {
            None if self.is_excluded(&record.name) => Vouch::Unknown,
            None => Vouch::No,
            Some(image) if image.target == *record.target.digest() => Vouch::Yes,
            // Another bundle of ours has the name by now; or somebody else moved it, which is told and left alone.
            Some(_) => match self.ledger.desired_images().get(record.name.as_str()) {
                Some((target, _)) if *target == record.target.digest() => Vouch::No,
                _ => Vouch::Unknown,
            },
        }
    }

    /// The imported content of a bundle, if the file is still the same and all of it was imported.
    fn imported_as_it_is<'e>(&self, entry: &'e Entry) -> Option<&'e Imported> {
        entry.imported.as_ref().filter(|imported| {
            self.roster.phase(&entry.file) == Some(Phase::Done)
                && entry.last_error.is_none()
                && self.roster.identity(&entry.file).as_ref() == Some(&imported.identity)
        })
    }

    /// Whether an operator's pattern excludes a name: what is there of it stays as it is.
    fn is_excluded(&self, name: &str) -> bool {
        self.settings.exclude.iter().any(|pattern| pattern.matches(name))
    }

    /// Forgets files that are not there when no record carries their label (any more), as far as that is known.
    fn forget_withdrawn(&mut self, records: &[&ImageRecord], is_known: impl Fn(&str) -> bool) {
        let labelled = |file: &OsStr| {
            let key = label_of(file);
            !is_known(&key) || records.iter().any(|record| record.labels.contains_key(&key))
        };
        let entries = self
            .ledger
            .entries()
            .into_iter()
            .filter(|entry| !self.is_there(&entry.file) && !labelled(&entry.file));
        let forgotten: Vec<OsString> = entries.map(|entry| entry.file.clone()).collect();
        for name in forgotten {
            self.ledger.forget(&name);
            self.healing.forget(&name);
            self.elsewhere.remove(&name);
        }
        if self.vanished.is_some() {
            self.notice_gone();
        }
    }

    /// Wakes the loop when the grace of a bundle that is gone is over, but for those that wait for a job.
    fn wake_for_grace(&mut self, withheld: &BTreeSet<String>) {
        let grace = self.settings.unpin_grace;
        let now = Timestamp::now();
        let left = |gone: Timestamp| grace_left(gone, now, grace);
        let next = self
            .ledger
            .entries()
            .into_iter()
            .filter(|entry| !withheld.contains(&label_name(&entry.file)))
            .filter_map(|entry| entry.gone)
            .map(left)
            .min();
        if let (Some(left), Connection::Up(up)) = (next, &mut self.connection) {
            up.compare = up.compare.min(Instant::now() + left.max(BURST));
        }
    }
}

/// The key of the label of a bundle.
fn label_of(file: &OsStr) -> String {
    format!("{BUNDLE_PREFIX}{}", BundleId::of(file))
}

/// Which containers were made from which images; `None` where containerd does not tell.
async fn uses(client: &Client) -> Result<Option<Uses>, containerd::Error> {
    let containers = match client.containers().await {
        Ok(containers) => containers,
        Err(error @ containerd::Error::Refused { .. }) => {
            debug!(
                "containerd does not tell which images are used: {}",
                basics::chain(&error)
            );
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let records = client.images_named(Uses::names(&containers)).await?.into_iter();
    let records = records.map(|record| (record.name.clone(), record)).collect();
    Ok(Some(Uses::of(&containers, &records)))
}

/// Deletes what CRI keeps of images whose names were all deleted.
async fn delete_left_over(client: &Client, deleted: &[&ImageRecord]) -> Result<(), containerd::Error> {
    let targets: HashSet<&Digest> = deleted.iter().map(|record| record.target.digest()).collect();
    let targets: Vec<&Digest> = targets.into_iter().collect();
    for record in left_over(&client.images_targeting(&targets).await?, deleted) {
        client.delete_image(&record.name, false).await?;
    }
    Ok(())
}

fn log_withdrawal(withdrawal: &Withdrawal, deleted: bool, users: &BTreeSet<&str>) {
    let Withdrawal {
        name,
        bundles,
        unpins,
        ..
    } = withdrawal;
    let bundles: Vec<String> = bundles.iter().map(|bundle| shown(OsStr::new(bundle))).collect();
    let what = match (deleted, unpins) {
        (true, _) => "deleted",
        (false, true) => "unpinned, the record stays",
        (false, false) => "still vouched for by others, or kept",
    };
    let bundles = bundles.join(", ");
    info!(
        bundle = bundles,
        image = name,
        outcome = "removed",
        "no longer in {bundles}: {what}"
    );
    if *unpins && !users.is_empty() {
        let users = listed(users);
        warn!(
            image = name,
            "lost its pin, and containers were made from it: {users}; once they are gone kubelet may collect it"
        );
    }
}
