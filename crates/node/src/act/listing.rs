//! What the folder holds: listings, and what they change in the work list.

use std::ffi::OsStr;
use std::time::Instant;

use tracing::{info, warn};

use super::Daemon;
use super::telling::{shown, tell};
use crate::images::folder::{self, Depth, Folder, FolderTrust, Listing};
use crate::images::trusted_digests;
use crate::settings::Checksums;
use crate::state::ledger;
use crate::state::roster::{self, Phase, Version};

impl Daemon {
    /// Takes the folder as it is now.
    pub(super) fn list(&mut self) {
        match self.listing() {
            Ok(listed) => {
                self.trouble = None;
                self.take_over(listed);
                self.look_at_trust();
            }
            Err(reason) => {
                if self.trouble.as_ref() != Some(&reason) {
                    warn!(outcome = "unusable", "{}: {reason}", self.images_dir.display());
                }
                self.trouble = Some(reason);
            }
        }
    }

    fn listing(&mut self) -> Result<Listing, String> {
        // A folder that was there and is gone has been moved, unmounted or removed; only its owner knows which.
        let create = self.place.is_none();
        match if create {
            folder::ensure(&self.images_dir)
        } else {
            Ok(false)
        } {
            Ok(true) => info!("created the images folder {}", self.images_dir.display()),
            Ok(false) => {}
            Err(error) => {
                return Err(format!(
                    "cannot create the images folder: {error}; waiting for it"
                ));
            }
        }
        let folder = self
            .folder()
            .map_err(|error| format!("cannot open the images folder: {error}"))?;
        self.place = Some(folder.place());
        match folder::judge(&folder, &self.images_dir, self.settings.allow_insecure_dir) {
            FolderTrust::Trusted => {}
            FolderTrust::Warning(why) => {
                if self.warned.as_ref() != Some(&why) {
                    warn!("{}: {why}", self.images_dir.display());
                }
                self.warned = Some(why);
            }
            FolderTrust::Refused(why) => return Err(format!("nothing is imported: {why}")),
        }
        let depth = Depth {
            recursive: self.settings.recursive,
            allow_insecure: self.settings.allow_insecure_dir,
        };
        folder
            .list(depth)
            .map_err(|error| format!("cannot list the images folder: {error}"))
    }

    pub(super) fn folder(&self) -> std::io::Result<Folder> {
        Folder::open_dir(&self.images_dir)
    }

    fn take_over(&mut self, listing: Listing) {
        self.watch.also(listing.folders);
        let mut listed = listing.entries;
        if self.settings.checksums == Checksums::Off {
            listed = roster::split_off_sidecars(listed).0;
        }
        let ledger = &self.ledger;
        let known = |name: &OsStr, version: &Version| version.is_known(ledger, name);
        let told = self.roster.list(listed, Instant::now(), known);
        for (name, reason) in told {
            let is_told = self.rows.ignored.admits(Instant::now());
            tell!(is_told, info, file = %shown(&name), "ignored: {reason}");
        }
        self.recall_damage();
        self.notice_gone();
        if !self.roster.names(|phase| phase == Phase::Known).is_empty() {
            self.compare_soon();
        }
    }

    /// Holds the bundles against the trusted digests again when those have changed.
    fn look_at_trust(&mut self) {
        let Some(folder) = &self.settings.trusted_digests else {
            return;
        };
        let stamp = Some(trusted_digests::stamp(folder));
        if self.trusted == stamp {
            return;
        }
        let ledger = &self.ledger;
        let is_settled = |phase| {
            matches!(
                phase,
                Phase::Known | Phase::Done | Phase::Failed { retry: None, .. }
            )
        };
        let mut names = self.roster.names(is_settled);
        names.retain(|name| {
            let entry = ledger.get(name);
            let catalog = entry.and_then(|entry| Some(&entry.imported.as_ref()?.catalog));
            let is_refused = entry.is_some_and(ledger::Entry::is_refused);
            let is_set_aside = entry.is_some_and(|entry| entry.is_set_aside(&entry.identity));
            is_refused
                || !is_set_aside
                    && catalog.is_some_and(|catalog| trusted_digests::check(folder, catalog).is_err())
        });
        for name in names {
            self.roster.set(&name, Phase::Ready);
        }
        self.trusted = stamp;
    }
}
