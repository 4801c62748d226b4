//! When bundles leave the folder: what they vouched for is withdrawn, unless it is rather the folder that left.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::time::Instant;

use containerd::{ImageRecord, ImageUpdate};
use import::Survey;
use import::labels::BUNDLE_PREFIX;
use jiff::Timestamp;
use tracing::{info, warn};

use super::telling::shown;
use super::{Connection, Daemon};
use crate::ledger::{BundleId, Entry};
use crate::roster::Phase;
use crate::withdraw::{Vouch, Withdrawal, is_mass_loss, withdrawals};

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
        let fault = self.fault(missing.len(), known.len());
        if let Some(why) = &fault {
            if self.vanished.as_ref() != Some(why) {
                warn!(
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
            info!(bundle = %shown(name), outcome = "removed", "the bundle is gone");
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

    /// Takes labels and pins back that no bundle vouches for any more.
    ///
    /// # Errors
    ///
    /// What the client reports; what was not withdrawn is withdrawn at the next comparison.
    pub(super) async fn withdraw(&mut self, survey: &Survey) -> Result<(), containerd::Error> {
        let Connection::Up(up) = &self.connection else {
            return Ok(());
        };
        let client = up.runtime.client.clone();
        let records: Vec<&ImageRecord> = survey.records.values().collect();
        let vouch = |file: &str, record: &ImageRecord| self.vouch(file, record);
        for Withdrawal {
            name,
            bundles,
            unpins,
            changes,
        } in withdrawals(&records, vouch, self.settings.on_removal)
        {
            if self.jobs.writer_of(&name).is_some() {
                // Somebody is about to vouch for it; what is left to do is done after that.
                continue;
            }
            let update = ImageUpdate {
                target: None,
                labels: changes,
            };
            client.update_image(&name, &update).await?;
            let bundles: Vec<String> = bundles.iter().map(|bundle| shown(OsStr::new(bundle))).collect();
            let pin = if unpins {
                "unpinned, the record stays"
            } else {
                "still vouched for by others, or kept"
            };
            info!(
                image = name,
                outcome = "removed",
                "no longer in {}: {pin}",
                bundles.join(", ")
            );
        }
        self.forget_withdrawn(&records);
        self.wake_for_grace();
        Ok(())
    }

    /// What is known of a bundle's word for a record.
    fn vouch(&self, file: &str, record: &ImageRecord) -> Vouch {
        let Some(entry) = self.ledger.get_by_label(file) else {
            return Vouch::Unknown;
        };
        if let Some(gone) = entry.gone {
            let over = Timestamp::now().duration_since(gone).unsigned_abs() >= self.settings.unpin_grace;
            return if over { Vouch::No } else { Vouch::Unknown };
        }
        // Only the file as it is now counts, and only when all of it was imported.
        let imported = entry.imported.as_ref().filter(|imported| {
            self.roster.phase(&entry.file) == Some(Phase::Done)
                && entry.last_error.is_none()
                && self.roster.identity(&entry.file).as_ref() == Some(&imported.identity)
        });
        let Some(imported) = imported else {
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

    /// Whether an operator's pattern excludes a name: what is there of it stays as it is.
    fn is_excluded(&self, name: &str) -> bool {
        self.settings.exclude.iter().any(|pattern| pattern.matches(name))
    }

    /// Forgets files that are not there when no record carries their label (any more).
    fn forget_withdrawn(&mut self, records: &[&ImageRecord]) {
        let labelled = |file: &OsStr| {
            let key = format!("{BUNDLE_PREFIX}{}", BundleId::of(file));
            records.iter().any(|record| record.labels.contains_key(&key))
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

    /// Wakes the loop when the grace of a bundle that is gone is over.
    fn wake_for_grace(&mut self) {
        let grace = self.settings.unpin_grace;
        let now = Timestamp::now();
        let left = |gone: Timestamp| grace.saturating_sub(now.duration_since(gone).unsigned_abs());
        let next = self
            .ledger
            .entries()
            .into_iter()
            .filter_map(|entry| entry.gone)
            .map(left)
            .min();
        if let (Some(left), Connection::Up(up)) = (next, &mut self.connection) {
            up.compare = up.compare.min(Instant::now() + left.max(super::BURST));
        }
    }
}
